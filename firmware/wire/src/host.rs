//! The host's side of the conversation: greets, keeps the session, commits presses, acknowledges what is durable.
//!
//! A state machine without I/O: bytes from the port go into [`HostLink::rx`], time into [`HostLink::poll`], and frames for
//! the port come out of [`HostLink::pop_tx`]. Storage is behind [`Ledger`]; what happened comes back as [`Notice`]s.
//!
//! Its one promise: **an acknowledgement leaves only after the ledger said that the press and the mark are durable**, and
//! a press whose number is not the one waited for is never committed. Not here: rate limits, the meaning of presses.

use crate::WIRE_MAJOR;
use crate::auth::{Key, SessionKeys};
use crate::faults::Faults;
use crate::frame::{Counters, Deframer, Encoded, Frame, bump, encode, encode_body};
use crate::message::{
    Ack, BodyError, Buzzer, Config, Diagnostic, Display, Event, Events, HostHello, Input, Kind, Leds, MAX_EVENTS,
    Message, Nak, NakReason, PadHello, Pair, Ping, Pong, Prompt, Reboot, Stats, Welcome, number,
};
use heapless::{Deque, Vec};

/// A greeting unanswered for this long is repeated.
pub const GREET_EVERY_MS: u64 = 500;
/// A link idle for this long is pinged.
pub const PING_AFTER_MS: u64 = 1_000;
/// A link silent for this long is down.
pub const SILENT_AFTER_MS: u64 = 3_500;
/// Events a pad may have in flight.
pub const CREDIT: u8 = 8;

/// A welcome that brought no valid frame for this long was not understood.
const PROVE_WITHIN_MS: u64 = 1_000;
/// While a state sent to the pad is unconfirmed, ask this often.
const CONFIRM_EVERY_MS: u64 = 250;
/// Frames waiting for the port.
const TX_FRAMES: usize = 16;

/// Durable storage of presses. One implementation per store; the link knows only this.
pub trait Ledger {
    /// The number wanted next under `(uid, epoch)`: one more than the last committed, 1 when there is none.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError>;

    /// Stores `events` and moves the mark to one past the last of them, **in one transaction, durable on return**.
    ///
    /// `events` is not empty, ascending, begins at the mark, and is without gaps — with one exception: a
    /// [`Diagnostic::Gap`] may stand beyond the mark.
    ///
    /// # Errors
    /// Nothing may be acknowledged; the link reads the mark again before the next attempt.
    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError>;

    /// Names a new numbering for this pad: durable on return, never 0, never given before by any host. Draw it at random
    /// rather than count: a pad may have been numbered by another host.
    ///
    /// # Errors
    /// When the name cannot be made durable.
    fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError>;

    /// Keeps a key that is about to be offered to this pad, beside the one it may have: durable on return. The pad may take
    /// it though its answer is lost; it comes back as [`HostConfig::offered_key`] until it is known which of the two holds.
    ///
    /// # Errors
    /// When it cannot be made durable, or this ledger keeps no keys; it is then not offered.
    fn keep_offered_key(&mut self, _uid: &[u8; 8], _key: &Key) -> Result<(), LedgerError> {
        Err(LedgerError::Failed)
    }
}

/// Why a ledger refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// No room. Presses wait on the pad until there is.
    Full,
    /// Anything else; details are in the ledger's own log.
    Failed,
}

/// An event with what only the receiver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The event as the pad numbered it.
    pub event: Event,
    /// How long ago the press began when its frame was made, ms, right to the link's delay and modulo 49.7 days. `None`
    /// when it was made in an earlier boot of the pad, whose clock is gone.
    pub age_ms: Option<u32>,
}

/// What a host brings to a link.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// The pad's pairing key, if it is known.
    pub pairing_key: Option<Key>,
    /// A key that the pad was offered and may have taken; tried by turns with the other.
    pub offered_key: Option<Key>,
    /// Whether a pad without a pairing key is heard at all.
    pub allow_unpaired: bool,
    /// Eight bytes from the operating system's generator, drawn for this link alone.
    pub nonce: [u8; 8],
    /// Timings to set on the pad; none leaves the pad's own.
    pub pad: Option<Config>,
}

/// What happened on a link.
#[expect(clippy::large_enum_variant, reason = "there is no heap to box on, and a notice lives for one call")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The pad answered, with the right key if it has one.
    Up {
        /// The pad's greeting.
        hello: PadHello,
        /// Numbering in force.
        epoch: u32,
        /// Whether frames are tagged.
        authenticated: bool,
    },
    /// The link was up and is no longer.
    Down(DownReason),
    /// These events are durable; the acknowledgement follows.
    Committed {
        /// Numbering they belong to.
        epoch: u32,
        /// The events.
        events: Vec<Received, MAX_EVENTS>,
    },
    /// Something was refused. Not repeated while the reason stays the same.
    Refused(Refusal),
    /// The pad took the offered pairing key, which is to be kept for it from now on.
    Paired {
        /// The pad.
        uid: [u8; 8],
        /// The key.
        key: Key,
    },
    /// Buttons, as they are.
    Input(Input),
    /// The pad's health.
    Stats(Stats),
    /// The pad could not use a frame.
    Nak(Nak),
}

/// Why a link went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing came for [`SILENT_AFTER_MS`].
    Silent,
    /// The pad says that it has restarted.
    PadRestarted,
    /// The transport is gone; see [`HostLink::disconnect`].
    Disconnected,
}

/// Why a pad or its presses were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pad has no pairing key and unpaired pads are not allowed.
    Unpaired,
    /// The pad has a pairing key which this host does not know.
    NoKey,
    /// The pad says that this host's key is not its own. A hint: it is not authenticated.
    WrongKey,
    /// No major version in common.
    Version {
        /// Oldest the pad speaks.
        min: u8,
        /// Newest the pad speaks.
        max: u8,
    },
    /// The ledger refused; presses wait on the pad.
    Ledger(LedgerError),
}

/// Why a command was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// Prompt ids must rise.
    NotRising {
        /// The highest id so far.
        highest: u32,
    },
    /// The link is down, and the command is not a state that could be sent later.
    Down,
    /// The command needs an authenticated link.
    Unauthenticated,
    /// The ledger did not keep the key, so it was not offered.
    NotKept(LedgerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Greeting until a pad answers.
    Greeting,
    /// Welcome sent; the pad has yet to show that it took it, hence that it holds the key.
    Proving,
    Up,
}

/// A prompt with the time at which it lapses.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Prompt,
    until_ms: Option<u64>,
}

/// One pad's link, host side. `now_ms` is any clock that only rises.
#[derive(Debug)]
pub struct HostLink {
    config: HostConfig,
    faults: Faults,
    phase: Phase,
    /// Of the session, or of the greeting under way.
    nonce: [u8; 8],
    session: u32,
    hello: PadHello,
    keys: Option<SessionKeys>,
    tx_ctr: u32,
    rx_ctr: u32,
    epoch: u32,
    /// The lowest number the pad can still send.
    first: u32,
    /// A number below which everything is durable; exactly the ledger's mark while `mark_is_exact`.
    mark: u32,
    mark_is_exact: bool,
    greeted_ms: Option<u64>,
    heard_ms: u64,
    pinged_ms: u64,
    /// Since when the pad's state differs, as far as is known, from what was asked of it.
    unconfirmed_since: Option<u32>,
    asked: Option<Asked>,
    highest_prompt: u32,
    leds: u16,
    display: Option<Display>,
    /// Whether the offered key is tried next, before the one from before.
    offered_first: bool,
    /// The key that the session's were derived from.
    tried: Option<Key>,
    /// A paired pad that answered and is not up.
    paired_uid: Option<[u8; 8]>,
    last_refusal: Option<Refusal>,
    deframer: Deframer,
    counters: Counters,
    out: Deque<Encoded, TX_FRAMES>,
}

impl HostLink {
    /// A link that will greet at its first [`HostLink::poll`].
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self::with_faults(config, Faults::default())
    }

    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(config: HostConfig, faults: Faults) -> Self {
        let [a, b, c, d, ..] = config.nonce;
        Self {
            nonce: config.nonce,
            session: u32::from_le_bytes([a, b, c, d]),
            offered_first: config.offered_key.is_some(),
            config,
            faults,
            phase: Phase::Greeting,
            hello: PadHello::default(),
            keys: None,
            tx_ctr: 0,
            rx_ctr: 0,
            epoch: 0,
            first: 1,
            mark: 1,
            mark_is_exact: false,
            greeted_ms: None,
            heard_ms: 0,
            pinged_ms: 0,
            unconfirmed_since: None,
            asked: None,
            highest_prompt: 0,
            leds: 0,
            display: None,
            tried: None,
            paired_uid: None,
            last_refusal: None,
            deframer: Deframer::new(),
            counters: Counters::default(),
            out: Deque::new(),
        }
    }

    /// Takes bytes from the port, in any portions.
    pub fn rx(&mut self, bytes: &[u8], now_ms: u64, ledger: &mut dyn Ledger, notices: &mut dyn FnMut(Notice)) {
        for &byte in bytes {
            if let Some(raw) = self.deframer.push_counted(byte, &mut self.counters) {
                self.frame(&raw, now_ms, ledger, notices);
            }
        }
    }

    /// Does what is due: greets, pings, notices silence. To be called at least every 100 ms.
    pub fn poll(&mut self, now_ms: u64, notices: &mut dyn FnMut(Notice)) {
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        match self.phase {
            Phase::Greeting => {
                if self.greeted_ms.is_none_or(|at| now_ms.saturating_sub(at) >= GREET_EVERY_MS) {
                    self.greet(now_ms);
                }
            }
            Phase::Proving => {
                if silent_ms >= PROVE_WITHIN_MS {
                    self.offered_first ^= true;
                    self.greet(now_ms);
                }
            }
            Phase::Up if silent_ms >= SILENT_AFTER_MS => {
                notices(Notice::Down(DownReason::Silent));
                self.greet(now_ms);
            }
            Phase::Up => {
                let since_ping_ms = now_ms.saturating_sub(self.pinged_ms);
                // The pad listens for silence too, so a pad that talks without needing an answer is
                // pinged as well, if less often.
                let idle = since_ping_ms >= PING_AFTER_MS
                    && (silent_ms >= PING_AFTER_MS || since_ping_ms >= 2 * PING_AFTER_MS);
                let unconfirmed = self.unconfirmed_since.is_some() && since_ping_ms >= CONFIRM_EVERY_MS;
                if idle || unconfirmed {
                    self.ping(now_ms);
                }
            }
        }
    }

    /// The next frame for the port, complete with delimiters.
    pub fn pop_tx(&mut self) -> Option<Encoded> {
        self.out.pop_front()
    }

    /// To be called when the transport was lost: half frames in either direction are void. Greets at the next poll.
    pub fn disconnect(&mut self, notices: &mut dyn FnMut(Notice)) {
        if self.phase == Phase::Up {
            notices(Notice::Down(DownReason::Disconnected));
        }
        self.phase = Phase::Greeting;
        self.greeted_ms = None;
        self.keys = None;
        self.paired_uid = None;
        self.deframer = Deframer::new();
        self.out.clear();
    }

    /// Whether the pad has shown that it is there and, if it is paired, that it holds the key.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// The pad at the other end, while the link is up.
    #[must_use]
    pub fn pad(&self) -> Option<&PadHello> {
        self.is_up().then_some(&self.hello)
    }

    /// What became of the frames received.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Asks a question: presses that begin once it is shown carry its id. Sent now or when the link comes up, and again
    /// until the pad confirms it or it lapses after `ttl_ms`.
    ///
    /// The caller must have committed the record of the prediction before: a press may come back at once.
    ///
    /// # Errors
    /// [`CommandError::NotRising`] unless the id is greater than any before it.
    pub fn prompt(&mut self, prompt: Prompt, now_ms: u64) -> Result<(), CommandError> {
        if prompt.prompt_id <= self.highest_prompt {
            return Err(CommandError::NotRising { highest: self.highest_prompt });
        }
        self.highest_prompt = prompt.prompt_id;
        let until_ms = (prompt.ttl_ms != 0).then(|| now_ms.saturating_add(u64::from(prompt.ttl_ms)));
        self.asked = Some(Asked { prompt, until_ms });
        self.send_prompt(now_ms);
        Ok(())
    }

    /// Takes the question back: presses answer nothing from now on.
    pub fn clear_prompt(&mut self, now_ms: u64) {
        self.asked = None;
        self.send_prompt(now_ms);
    }

    /// Sets the lamps that are the host's to set.
    pub fn leds(&mut self, mask: u16, now_ms: u64) {
        self.leds = mask;
        self.send_state(Leds { mask }.into(), now_ms);
    }

    /// Sets the pad's timings. A hash of 0 means the pad's own and is never confirmed as set.
    pub fn configure(&mut self, config: Config, now_ms: u64) {
        self.config.pad = Some(config);
        self.send_state(config.into(), now_ms);
    }

    /// Shows text. Sent now, and again whenever the link comes up.
    pub fn display(&mut self, display: Display) {
        self.display = Some(display.clone());
        if self.is_up() {
            self.send(&display.into());
        }
    }

    /// Sounds a tone, once.
    ///
    /// # Errors
    /// [`CommandError::Down`].
    pub fn buzz(&mut self, buzzer: Buzzer) -> Result<(), CommandError> {
        self.send_once(&buzzer.into())
    }

    /// Restarts the pad.
    ///
    /// # Errors
    /// [`CommandError::Down`], or [`CommandError::Unauthenticated`]: no pad obeys this without a tag.
    pub fn reboot(&mut self, reboot: Reboot) -> Result<(), CommandError> {
        if self.is_up() && self.keys.is_none() {
            return Err(CommandError::Unauthenticated);
        }
        self.send_once(&reboot.into())
    }

    /// Offers a pairing key, once the ledger has kept it. The pad takes it only while two of its buttons have been held for
    /// 5 s, and then greets anew; [`Notice::Paired`] tells that it did, a `Nak` that it did not.
    ///
    /// A pad that answers greetings and holds a key which this host has not is offered it as well, untagged: whoever is at
    /// the pad is to say whose it is.
    ///
    /// # Errors
    /// [`CommandError::Down`], [`CommandError::NotKept`].
    pub fn pair(&mut self, key: Key, ledger: &mut dyn Ledger) -> Result<(), CommandError> {
        let uid = if self.is_up() { Some(self.hello.uid) } else { self.paired_uid };
        let uid = uid.ok_or(CommandError::Down)?;
        if self.config.offered_key != Some(key) {
            ledger.keep_offered_key(&uid, &key).map_err(CommandError::NotKept)?;
            self.config.offered_key = Some(key);
        }
        let offer = Message::from(Pair { key });
        if self.is_up() {
            self.send(&offer);
        } else {
            self.queue(encode(&offer, 0, 0, None));
        }
        self.offered_first = true;
        Ok(())
    }

    fn frame(&mut self, raw: &[u8], now_ms: u64, ledger: &mut dyn Ledger, notices: &mut dyn FnMut(Notice)) {
        let key = self.keys.map(|keys| keys.pad_to_host);
        let frame = match Frame::parse_with(raw, key.as_ref(), self.faults) {
            Ok(frame) => frame,
            Err(error) => return self.counters.count(error),
        };
        if !frame.tagged {
            // Greetings and one hint are untagged by nature; whatever else is, is judged below.
            match Message::parse(frame.kind, frame.body) {
                Ok(Message::PadHello(hello)) => return self.on_hello(hello, frame.body, now_ms, ledger, notices),
                Ok(Message::Nak(nak)) if self.phase == Phase::Proving && nak.reason == NakReason::Tag => {
                    return self.on_wrong_key(now_ms, notices);
                }
                _ => {}
            }
        }
        if self.phase == Phase::Greeting || frame.session != self.session {
            return bump(&mut self.counters.session);
        }
        if self.keys.is_some() && !frame.tagged {
            return bump(&mut self.counters.untagged);
        }
        if frame.ctr <= self.rx_ctr {
            return bump(&mut self.counters.replay);
        }
        self.rx_ctr = frame.ctr;
        self.heard_ms = now_ms;
        if self.phase == Phase::Proving {
            self.come_up(now_ms, notices);
        }
        match Message::parse(frame.kind, frame.body) {
            Ok(message) => {
                bump(&mut self.counters.accepted);
                self.on_message(message, frame.ctr, now_ms, ledger, notices);
            }
            Err(BodyError::UnknownType) => {
                bump(&mut self.counters.unknown);
                self.nak(frame.kind, NakReason::UnknownType, frame.ctr);
            }
            Err(BodyError::Short | BodyError::Malformed | BodyError::WrongWay) => {
                bump(&mut self.counters.body);
                self.nak(frame.kind, NakReason::Body, frame.ctr);
            }
        }
    }

    fn on_hello(
        &mut self,
        hello: PadHello,
        body: &[u8],
        now_ms: u64,
        ledger: &mut dyn Ledger,
        notices: &mut dyn FnMut(Notice),
    ) {
        if !self.faults.greet_without_echo {
            if hello.echo == [0; 8] {
                // It has just booted, so whatever session there was is over: greet at once instead of waiting.
                if self.phase == Phase::Up {
                    notices(Notice::Down(DownReason::PadRestarted));
                }
                return self.greet(now_ms);
            }
            if hello.echo != self.nonce {
                return bump(&mut self.counters.replay);
            }
        }
        if self.phase != Phase::Greeting {
            return bump(&mut self.counters.replay);
        }
        if !(hello.wire_min..=hello.wire_max).contains(&WIRE_MAJOR) {
            return self.refuse(Refusal::Version { min: hello.wire_min, max: hello.wire_max }, notices);
        }
        self.paired_uid = hello.is_paired().then_some(hello.uid);
        let HostConfig { pairing_key, offered_key, .. } = self.config;
        self.tried = if self.offered_first { offered_key.or(pairing_key) } else { pairing_key.or(offered_key) };
        self.keys = match (self.tried, hello.is_paired()) {
            (Some(key), true) => Some(SessionKeys::derive(&key, &self.host_hello().body(), body)),
            (None, true) => return self.refuse(Refusal::NoKey, notices),
            (_, false) if self.config.allow_unpaired => None,
            (_, false) => return self.refuse(Refusal::Unpaired, notices),
        };
        match open_numbering(&hello, ledger) {
            Ok((epoch, first, mark)) => (self.epoch, self.first, self.mark) = (epoch, first, mark),
            Err(error) => {
                self.keys = None;
                return self.refuse(Refusal::Ledger(error), notices);
            }
        }
        self.mark_is_exact = true;
        self.phase = Phase::Proving;
        self.heard_ms = now_ms;
        self.send(
            &Welcome { wire: WIRE_MAJOR, epoch: self.epoch, ack: self.mark, credit: CREDIT, echo: hello.nonce }.into(),
        );
        self.hello = hello;
        // Its answer is the proof.
        self.ping(now_ms);
    }

    /// The pad could not use the key tried. The other one is tried at once, where there is one and it was not yet: anybody
    /// can say this, and must not keep the link busy with it.
    fn on_wrong_key(&mut self, now_ms: u64, notices: &mut dyn FnMut(Notice)) {
        let HostConfig { pairing_key, offered_key, .. } = self.config;
        if pairing_key.is_some() && self.offered_first && self.tried == offered_key {
            self.offered_first = false;
            return self.greet(now_ms);
        }
        let refusal = if pairing_key.is_some() { Refusal::WrongKey } else { Refusal::NoKey };
        self.refuse(refusal, notices);
    }

    fn come_up(&mut self, now_ms: u64, notices: &mut dyn FnMut(Notice)) {
        self.phase = Phase::Up;
        self.last_refusal = None;
        self.offered_first = false;
        if let Some(key) = self.config.offered_key.filter(|key| self.keys.is_some() && self.tried == Some(*key)) {
            self.config.pairing_key = Some(key);
            self.config.offered_key = None;
            notices(Notice::Paired { uid: self.hello.uid, key });
        }
        let (hello, epoch) = (self.hello.clone(), self.epoch);
        notices(Notice::Up { hello, epoch, authenticated: self.keys.is_some() });
        if let Some(config) = self.config.pad {
            self.send_state(config.into(), now_ms);
        }
        if self.leds != 0 {
            self.send_state(Leds { mask: self.leds }.into(), now_ms);
        }
        if self.asked.is_some() {
            self.send_prompt(now_ms);
        }
        if let Some(display) = self.display.clone() {
            self.send(&display.into());
        }
    }

    fn on_message(
        &mut self,
        message: Message,
        ctr: u32,
        now_ms: u64,
        ledger: &mut dyn Ledger,
        notices: &mut dyn FnMut(Notice),
    ) {
        match message {
            Message::Events(events) => self.on_events(&events, ledger, notices),
            Message::Pong(pong) => self.on_pong(&pong, now_ms),
            Message::Input(input) => notices(Notice::Input(input)),
            Message::Stats(stats) => notices(Notice::Stats(stats)),
            Message::Nak(nak) => {
                if nak.kind == number::Pair {
                    self.offered_first = false;
                }
                notices(Notice::Nak(nak));
            }
            // What only a host may say.
            other => self.nak(other.kind(), NakReason::Forbidden, ctr),
        }
    }

    fn on_events(&mut self, frame: &Events, ledger: &mut dyn Ledger, notices: &mut dyn FnMut(Notice)) {
        if frame.epoch != self.epoch {
            return bump(&mut self.counters.session);
        }
        let credit = match self.commit(frame, ledger, notices) {
            Ok(()) => CREDIT,
            Err(error) => {
                // Whether a failed commit took place is for the ledger to say, the next time it can.
                self.mark_is_exact = false;
                self.refuse(Refusal::Ledger(error), notices);
                if self.faults.ack_unstored {
                    self.mark = frame.events.last().map_or(self.mark, |event| event.seq + 1);
                }
                0
            }
        };
        self.send(&Ack { epoch: self.epoch, ack: self.mark, credit }.into());
    }

    /// Commits what continues the numbering; anything else was committed before or comes again in order.
    fn commit(
        &mut self,
        frame: &Events,
        ledger: &mut dyn Ledger,
        notices: &mut dyn FnMut(Notice),
    ) -> Result<(), LedgerError> {
        if !self.mark_is_exact {
            self.mark = ledger.mark(&self.hello.uid, self.epoch)?;
            self.mark_is_exact = true;
        }
        let mut accepted: Vec<Received, MAX_EVENTS> = Vec::new();
        if self.mark < self.first {
            // The pad no longer has what this ledger waits for. Were it not recorded, both would wait for ever.
            let missing = self.first - self.mark;
            let gap = Event {
                seq: self.first - 1,
                boot: self.hello.boot,
                kind: Kind::Diagnostic,
                value: Diagnostic::Gap as u16,
                dur_10ms: u16::try_from(missing).unwrap_or(u16::MAX),
                ..Event::default()
            };
            self.store([Received { event: gap, age_ms: None }].into_iter().collect(), ledger, notices)?;
        }
        let mut wanted = self.mark;
        for &event in &frame.events {
            if event.seq == wanted || self.faults.no_dedupe {
                let same_boot = event.boot == self.hello.boot;
                let age_ms = same_boot.then(|| frame.now_ms.wrapping_sub(event.t_ms));
                // A frame holds no more events than the vector.
                let _ = accepted.push(Received { event, age_ms });
                wanted = event.seq.saturating_add(1);
            }
        }
        if accepted.is_empty() {
            return Ok(());
        }
        self.store(accepted, ledger, notices)
    }

    fn store(
        &mut self,
        events: Vec<Received, MAX_EVENTS>,
        ledger: &mut dyn Ledger,
        notices: &mut dyn FnMut(Notice),
    ) -> Result<(), LedgerError> {
        ledger.commit(&self.hello.uid, self.epoch, &events)?;
        if let Some(last) = events.last() {
            self.mark = last.event.seq.saturating_add(1);
        }
        self.last_refusal = None;
        notices(Notice::Committed { epoch: self.epoch, events });
        Ok(())
    }

    /// Mends whatever state the pad turns out not to hold.
    fn on_pong(&mut self, pong: &Pong, now_ms: u64) {
        // A pong to a ping from before the latest change knows nothing of it.
        if self.unconfirmed_since.is_some_and(|since| (pong.t_ms.wrapping_sub(since) as i32) < 0) {
            return;
        }
        self.unconfirmed_since = None;
        if pong.prompt_id != self.standing_prompt(now_ms).prompt_id {
            self.send_prompt(now_ms);
        }
        if pong.leds != self.leds {
            self.send_state(Leds { mask: self.leds }.into(), now_ms);
        }
        if let Some(config) = self.config.pad.filter(|config| config.hash != 0 && config.hash != pong.config) {
            self.send_state(config.into(), now_ms);
        }
    }

    /// The prompt as it stands, with what is left of its time; the empty one when nothing is being asked.
    fn standing_prompt(&self, now_ms: u64) -> Prompt {
        match &self.asked {
            Some(Asked { prompt, until_ms: None }) => prompt.clone(),
            Some(Asked { prompt, until_ms: Some(until) }) if *until > now_ms => {
                Prompt { ttl_ms: u32::try_from(until - now_ms).unwrap_or(u32::MAX), ..prompt.clone() }
            }
            _ => Prompt::default(),
        }
    }

    fn send_prompt(&mut self, now_ms: u64) {
        let prompt = self.standing_prompt(now_ms);
        self.send_state(prompt.into(), now_ms);
    }

    /// Sends a state that the pad confirms, and asks for the confirmation.
    fn send_state(&mut self, message: Message, now_ms: u64) {
        if self.is_up() {
            self.send(&message);
            self.unconfirmed_since = Some(now_ms as u32);
            self.ping(now_ms);
        }
    }

    fn send_once(&mut self, message: &Message) -> Result<(), CommandError> {
        if !self.is_up() {
            return Err(CommandError::Down);
        }
        self.send(message);
        Ok(())
    }

    fn ping(&mut self, now_ms: u64) {
        self.pinged_ms = now_ms;
        self.send(&Ping { t_ms: now_ms as u32 }.into());
    }

    fn nak(&mut self, of: u8, reason: NakReason, ctr: u32) {
        // Two sides must not answer each other's refusals for ever.
        if of != number::Nak {
            self.send(&Nak { kind: of, reason, ctr }.into());
        }
    }

    fn send(&mut self, message: &Message) {
        self.tx_ctr += 1;
        let key = self.keys.map(|keys| keys.host_to_pad);
        self.queue(encode(message, self.session, self.tx_ctr, key.as_ref()));
    }

    fn queue(&mut self, frame: Encoded) {
        if self.out.push_back(frame).is_err() {
            // Whatever it was, it is repeated or reconciled: nothing on this link is sent only once and relied upon.
            bump(&mut self.counters.overrun);
        }
    }

    fn refuse(&mut self, refusal: Refusal, notices: &mut dyn FnMut(Notice)) {
        if self.last_refusal.replace(refusal) != Some(refusal) {
            notices(Notice::Refused(refusal));
        }
    }

    /// Begins a new session. The only way to recover from anything, and hence always tested.
    fn greet(&mut self, now_ms: u64) {
        self.phase = Phase::Greeting;
        self.keys = None;
        (self.tx_ctr, self.rx_ctr) = (0, 0);
        self.unconfirmed_since = None;
        self.session = self.session.wrapping_add(1).max(1);
        self.nonce = next_nonce(self.nonce);
        self.greeted_ms = Some(now_ms);
        self.out.clear();
        let hello = self.host_hello();
        self.queue(encode_body(hello.kind(), &hello.body(), 0, 0, None));
    }

    fn host_hello(&self) -> Message {
        HostHello { wire_min: WIRE_MAJOR, wire_max: WIRE_MAJOR, nonce: self.nonce }.into()
    }
}

/// Counts a nonce on; zero stands for "none" and is skipped. The start is random, so no two links share a value.
#[must_use]
pub fn next_nonce(nonce: [u8; 8]) -> [u8; 8] {
    u64::from_le_bytes(nonce).wrapping_add(1).max(1).to_le_bytes()
}

/// The numbering of a session: epoch, lowest number the pad can send, number wanted.
fn open_numbering(hello: &PadHello, ledger: &mut dyn Ledger) -> Result<(u32, u32, u32), LedgerError> {
    if hello.epoch != 0 {
        let mark = ledger.mark(&hello.uid, hello.epoch)?;
        if mark <= hello.next {
            return Ok((hello.epoch, hello.first, mark));
        }
        // The pad's numbers went back under the same name: new presses would be taken for old ones.
    }
    let epoch = ledger.new_epoch(&hello.uid)?;
    let mark = ledger.mark(&hello.uid, epoch)?;
    // Under a name it has not heard before, a pad numbers what it holds from 1.
    Ok((epoch, 1, mark))
}
