//! The pad's side of the conversation: answers greetings, sends events until they are acknowledged.
//!
//! Go-back-N: new events go out at once while the host's credit lasts; without an acknowledgement everything from the
//! oldest goes out again, after 200 ms, doubling to 2 s. The store gives an event up only when the host says that it is
//! durable there. Any doubt about the session ends in a new greeting: the one way to recover, so the one always tested.
//!
//! Where events are kept, what messages do to the board, and the buttons are not here; see [`crate::pad`].

use crate::passed;
use crate::queue::Store;
use heapless::{Deque, Vec};
use hone_wire::WIRE_MAJOR;
use hone_wire::auth::{Key, SessionKeys};
use hone_wire::faults::Faults;
use hone_wire::frame::{Counters, Deframer, Encoded, Frame, FrameError, Raw, bump, encode, encode_body};
use hone_wire::host::next_nonce;
use hone_wire::message::{
    Ack, BodyError, Events, HostHello, MAX_EVENTS, Message, Nak, NakReason, PadHello, Pair, Welcome, number,
};

/// First wait for an acknowledgement.
pub const RESEND_MS: u32 = 200;
/// Longest wait for one; also how often a host without credit is asked again.
pub const RESEND_MAX_MS: u32 = 2_000;
/// A host silent for this long is gone.
pub const SILENT_MS: u32 = 3_500;
/// A pad without a link says so this long after its last greeting, doubling to [`ANNOUNCE_MAX_MS`].
pub const ANNOUNCE_MS: u32 = 1_000;
/// Longest pause between two announcements.
pub const ANNOUNCE_MAX_MS: u32 = 8_000;

/// Frames waiting for the port.
const TX_FRAMES: usize = 6;
/// Room that events leave in it for answers.
const TX_SPARE: usize = 3;

/// Who the pad is; goes into its greeting.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Unique and fixed identity of the board.
    pub uid: [u8; 8],
    /// Counts restarts. A board that cannot count draws it at random: it only tells one boot's clock from another's.
    pub boot: u16,
    /// Number of buttons.
    pub buttons: u8,
    /// Number of lamps.
    pub leds: u8,
    /// Firmware version: major, minor, patch.
    pub firmware: [u8; 3],
    /// First bytes of the firmware image's digest.
    pub firmware_hash: [u8; 8],
}

impl Identity {
    /// Of a pad that has not yet been told who it is.
    pub const NOBODY: Self =
        Self { uid: [0; 8], boot: 0, buttons: 0, leds: 0, firmware: [0; 3], firmware_hash: [0; 8] };
}

/// What a received frame asks of the pad beyond the link itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "without a heap there is nothing to box it in")]
pub enum Heard {
    /// The link came up; the numbering may have changed.
    Up,
    /// The host has everything before the store's first event.
    Acknowledged,
    /// Somebody offers a pairing key outside of a session: to be taken by consent at the pad alone.
    Offer(Key),
    /// A message for the pad, with whether it was authenticated and its frame's counter.
    Message {
        /// The message.
        message: Message,
        /// Whether its frame carried a tag.
        tagged: bool,
        /// Counter of its frame, for an answer.
        ctr: u32,
    },
}

/// One host's link, pad side. `now_ms` wraps.
#[derive(Debug)]
pub struct PadLink {
    identity: Identity,
    pairing_key: Option<Key>,
    faults: Faults,
    nonce: [u8; 8],
    /// A greeting was answered with `nonce` and `keys`; its welcome is awaited.
    answered: bool,
    up: bool,
    keys: Option<SessionKeys>,
    session: u32,
    tx_ctr: u32,
    rx_ctr: u32,
    /// One past the newest event ever sent in this session.
    sent: u32,
    /// The host takes events below this.
    limit: u32,
    resend_since_ms: u32,
    resend_ms: u32,
    heard_ms: u32,
    announced_ms: Option<u32>,
    announce_ms: u32,
    deframer: Deframer,
    counters: Counters,
    out: Deque<Encoded, TX_FRAMES>,
}

impl PadLink {
    /// A link of nobody, of zeros only; see [`crate::Pad::idle`].
    pub const IDLE: Self = {
        Self {
            identity: Identity::NOBODY,
            pairing_key: None,
            faults: Faults::NONE,
            nonce: [0; 8],
            answered: false,
            up: false,
            keys: None,
            session: 0,
            tx_ctr: 0,
            rx_ctr: 0,
            sent: 0,
            limit: 0,
            resend_since_ms: 0,
            resend_ms: 0,
            heard_ms: 0,
            announced_ms: None,
            announce_ms: 0,
            deframer: Deframer::new(),
            counters: Counters::new(),
            out: Deque::new(),
        }
    };

    /// Says who the pad is. It announces itself at the next [`PadLink::poll`]. `nonce` is to differ in every boot: random,
    /// or a boot counter where there is no source of chance.
    pub fn boot(&mut self, identity: Identity, pairing_key: Option<Key>, nonce: [u8; 8], faults: Faults) {
        self.identity = identity;
        self.pairing_key = pairing_key;
        self.nonce = next_nonce(nonce);
        self.faults = faults;
        self.announce_ms = ANNOUNCE_MS;
    }

    /// Takes one byte from the port.
    pub fn rx<S: Store>(&mut self, byte: u8, now_ms: u32, store: &mut S) -> Option<Heard> {
        let raw = self.deframer.push_counted(byte, &mut self.counters)?;
        self.frame(&raw, now_ms, store)
    }

    /// Does what is due: announces, sends, sends again.
    pub fn poll<S: Store>(&mut self, now_ms: u32, store: &mut S) {
        if !self.up {
            let due = self.announced_ms.is_none_or(|at| passed(at, now_ms, self.announce_ms));
            if due {
                self.announce_ms = (2 * self.announce_ms).min(ANNOUNCE_MAX_MS);
                self.greet([0; 8], now_ms, store);
            }
            return;
        }
        if passed(self.heard_ms, now_ms, SILENT_MS) {
            self.restart(now_ms, store);
            return;
        }
        self.send_events(now_ms, store);
    }

    /// The next frame for the port, complete with delimiters.
    pub fn pop_tx(&mut self) -> Option<Encoded> {
        self.out.pop_front()
    }

    /// Queues a message of the session; dropped and counted when the port does not keep up.
    pub fn send(&mut self, message: &Message) {
        self.tx_ctr += 1;
        let key = self.keys.filter(|_| self.up).map(|keys| keys.pad_to_host);
        self.queue(encode(message, self.session, self.tx_ctr, key.as_ref()));
    }

    /// Answers a frame that could not be used.
    pub fn nak(&mut self, kind: u8, reason: NakReason, ctr: u32) {
        // Two sides must not answer each other's refusals for ever.
        if kind != number::Nak {
            self.send(&Nak { kind, reason, ctr }.into());
        }
    }

    /// Takes a new pairing key and begins anew with it.
    pub fn pair<S: Store>(&mut self, key: Key, now_ms: u32, store: &mut S) {
        self.pairing_key = Some(key);
        self.restart(now_ms, store);
    }

    /// Whether there is a session.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// One past the newest event sent in this session.
    #[must_use]
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// What became of the frames received.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    #[inline(never)]
    fn frame<S: Store>(&mut self, raw: &Raw, now_ms: u32, store: &mut S) -> Option<Heard> {
        let key = self.keys.map(|keys| keys.host_to_pad);
        let frame = match Frame::parse_with(raw, key.as_ref(), self.faults) {
            Ok(frame) => frame,
            Err(error) => {
                self.counters.count(error);
                if error == FrameError::Tag && self.answered && self.keys.is_some() && !self.up {
                    // Tells a person with the wrong key why nothing happens.
                    self.nak(number::Welcome, NakReason::Tag, 0);
                }
                return None;
            }
        };
        if frame.kind == number::HostHello && !frame.tagged {
            match Message::parse_for_pad(frame.kind, frame.body) {
                Ok(Message::HostHello(hello)) => {
                    bump(&mut self.counters.accepted);
                    self.answer(&hello, frame.body, now_ms, store);
                }
                _ => bump(&mut self.counters.body),
            }
            return None;
        }
        if self.keys.is_some() && !frame.tagged || !self.up && frame.kind == number::Pair {
            bump(&mut self.counters.untagged);
            // Who may take over a pad whose host was lost is for the person at it to say.
            return match Message::parse_for_pad(frame.kind, frame.body) {
                Ok(Message::Pair(Pair { key })) => Some(Heard::Offer(key)),
                _ => None,
            };
        }
        if !self.up {
            let welcome = Message::parse_for_pad(frame.kind, frame.body);
            let Ok(Message::Welcome(welcome)) = welcome else {
                bump(&mut self.counters.session);
                return None;
            };
            return self.on_welcome(&welcome, &frame, now_ms, store);
        }
        if frame.session != self.session {
            bump(&mut self.counters.session);
            return None;
        }
        if frame.ctr <= self.rx_ctr {
            bump(&mut self.counters.replay);
            return None;
        }
        self.rx_ctr = frame.ctr;
        self.heard_ms = now_ms;
        match Message::parse_for_pad(frame.kind, frame.body) {
            Ok(message) => {
                bump(&mut self.counters.accepted);
                match message {
                    Message::Ack(ack) => self.on_ack(ack, now_ms, store),
                    message => Some(Heard::Message { message, tagged: frame.tagged, ctr: frame.ctr }),
                }
            }
            Err(BodyError::UnknownType) => {
                bump(&mut self.counters.unknown);
                self.nak(frame.kind, NakReason::UnknownType, frame.ctr);
                None
            }
            Err(BodyError::WrongWay) => {
                bump(&mut self.counters.accepted);
                self.nak(frame.kind, NakReason::Forbidden, frame.ctr);
                None
            }
            Err(BodyError::Short | BodyError::Malformed) => {
                bump(&mut self.counters.body);
                self.nak(frame.kind, NakReason::Body, frame.ctr);
                None
            }
        }
    }

    /// Answers a host's greeting: whatever session there was is over.
    fn answer<S: Store>(&mut self, hello: &HostHello, body: &[u8], now_ms: u32, store: &S) {
        if !(hello.wire_min..=hello.wire_max).contains(&WIRE_MAJOR) {
            // It can say so to a person, once it knows which versions are spoken here.
            bump(&mut self.counters.version);
            self.greet(hello.nonce, now_ms, store);
            return;
        }
        self.drop_session();
        self.nonce = next_nonce(self.nonce);
        let pad_hello = self.greet(hello.nonce, now_ms, store);
        self.keys = self.pairing_key.map(|key| SessionKeys::derive(&key, body, &pad_hello.body()));
        self.answered = true;
    }

    /// Sends the pad's greeting and returns it.
    fn greet<S: Store>(&mut self, echo: [u8; 8], now_ms: u32, store: &S) -> Message {
        let identity = self.identity.clone();
        let hello = Message::from(PadHello {
            wire_min: WIRE_MAJOR,
            wire_max: WIRE_MAJOR,
            flags: if self.pairing_key.is_some() { PadHello::PAIRED } else { 0 },
            buttons: identity.buttons,
            leds: identity.leds,
            uid: identity.uid,
            epoch: store.epoch(),
            boot: identity.boot,
            first: store.first(),
            next: store.next(),
            nonce: self.nonce,
            echo,
            firmware: identity.firmware,
            firmware_hash: identity.firmware_hash,
        });
        self.announced_ms = Some(now_ms);
        self.queue(encode_body(hello.kind(), &hello.body(), 0, 0, None));
        hello
    }

    fn on_welcome<S: Store>(
        &mut self,
        welcome: &Welcome,
        frame: &Frame<'_>,
        now_ms: u32,
        store: &mut S,
    ) -> Option<Heard> {
        let answers = self.answered && welcome.echo == self.nonce;
        if (!answers && !self.faults.greet_without_echo) || welcome.wire != WIRE_MAJOR || welcome.epoch == 0 {
            // Late, meant for a pad before its restart, or senseless.
            bump(&mut self.counters.replay);
            return None;
        }
        if welcome.epoch == store.epoch() {
            // Beyond `next` lies nothing that could have been acknowledged.
            store.trim(welcome.ack.min(store.next()));
        } else {
            // Under a new name nothing can have been acknowledged, whatever the welcome says.
            store.adopt_epoch(welcome.epoch);
            if store.epoch() != welcome.epoch {
                // Presses told under a name that the next boot does not know would be recorded twice.
                bump(&mut self.counters.overrun);
                return None;
            }
        }
        self.up = true;
        self.session = frame.session;
        self.rx_ctr = frame.ctr;
        self.heard_ms = now_ms;
        self.announce_ms = ANNOUNCE_MS;
        self.sent = store.first();
        self.limit = self.sent.saturating_add(u32::from(welcome.credit));
        self.resend_ms = RESEND_MS;
        self.resend_since_ms = now_ms;
        bump(&mut self.counters.accepted);
        Some(Heard::Up)
    }

    fn on_ack<S: Store>(&mut self, ack: Ack, now_ms: u32, store: &mut S) -> Option<Heard> {
        if ack.epoch != store.epoch() || ack.ack > store.next() {
            bump(&mut self.counters.session);
            return None;
        }
        let advanced = ack.ack > store.first();
        store.trim(ack.ack);
        self.sent = self.sent.max(store.first());
        self.limit = store.first().saturating_add(u32::from(ack.credit));
        if advanced {
            self.resend_ms = RESEND_MS;
            self.resend_since_ms = now_ms;
        }
        advanced.then_some(Heard::Acknowledged)
    }

    #[inline(never)]
    fn send_events<S: Store>(&mut self, now_ms: u32, store: &mut S) {
        let (first, next) = (store.first(), store.next());
        if first == next || self.out.len() + TX_SPARE > TX_FRAMES {
            return;
        }
        let fresh = self.sent < next && self.sent < self.limit;
        let late = passed(self.resend_since_ms, now_ms, self.resend_ms);
        let from = match (fresh, late) {
            (true, _) => self.sent,
            (false, true) => {
                self.resend_ms = (2 * self.resend_ms).min(RESEND_MAX_MS);
                first
            }
            (false, false) => return,
        };
        // Without credit the oldest still goes out now and then: the grant of new credit may have been lost.
        let upto = next.min(self.limit.max(first + 1));
        let events: Vec<_, MAX_EVENTS> = (from..upto).take(MAX_EVENTS).map_while(|seq| store.event(seq)).collect();
        if from == first {
            // The wait is the oldest event's; newer ones do not prolong it.
            self.resend_since_ms = now_ms;
        }
        let Some(newest) = events.last() else { return };
        self.sent = self.sent.max(newest.seq + 1);
        let trim_at_send = self.faults.trim_at_send.then_some(newest.seq + 1);
        self.send(&Events { epoch: store.epoch(), now_ms, events }.into());
        if let Some(upto) = trim_at_send {
            store.trim(upto);
        }
    }

    fn drop_session(&mut self) {
        self.up = false;
        self.answered = false;
        self.keys = None;
        self.session = 0;
        (self.tx_ctr, self.rx_ctr) = (0, 0);
        self.out.clear();
    }

    fn restart<S: Store>(&mut self, now_ms: u32, store: &S) {
        self.drop_session();
        self.announce_ms = ANNOUNCE_MS;
        self.greet([0; 8], now_ms, store);
    }

    fn queue(&mut self, frame: Encoded) {
        if self.out.push_back(frame).is_err() {
            bump(&mut self.counters.overrun);
        }
    }
}
