//! The whole core of a pad, from button samples to frames.

use crate::debounce::{Debounce, Edge};
use crate::gesture::{Context, Gesture, Gestures};
use crate::knob::{Knob, Turn};
use crate::link::{Heard, Identity, PadLink};
use crate::queue::{Store, enqueue, report_lost};
use crate::{MAX_BUTTONS, MAX_KNOBS, passed};
use heapless::Deque;
use hone_wire::auth::Key;
use hone_wire::faults::Faults;
use hone_wire::frame::{Counters, Encoded};
use hone_wire::message::{
    Buzzer, Config, Diagnostic, Display, Event, Input, Kind, Message, NakReason, Pair, Pong, Prompt, Reboot,
    RebootTarget, Stats, number,
};

/// Presses beginning within this time of a change of prompt may answer the one before.
pub const AMBIGUOUS_MS: u32 = 150;
/// How long a lamp flashes once a press is recorded.
pub const RECORDED_MS: u32 = 300;
/// Buttons untouched for this long are so for a while longer, as far as anybody can say: the store may erase flash.
pub const IDLE_MS: u32 = 1_000;
/// How often the pad's health is sent.
pub const STATS_EVERY_MS: u32 = 60_000;

/// Requests waiting for the board.
const REQUESTS: usize = 4;

/// What a board brings to its core.
#[derive(Clone, Debug, Default)]
pub struct PadConfig {
    /// Who the pad is.
    pub identity: Identity,
    /// Its pairing key, if it was paired.
    pub pairing_key: Option<Key>,
    /// Different in every boot: random, or made from a boot counter.
    pub nonce: [u8; 8],
    /// How buttons are read until a host says otherwise.
    pub timing: Config,
    /// Why the board restarted, in its own codes.
    pub reset_cause: u8,
}

/// How far the latest press of a button has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lamp {
    /// Nothing under way.
    #[default]
    Off,
    /// Kept on the pad, not yet sent: blinks.
    Queued,
    /// Sent, not yet acknowledged: dim.
    Sent,
    /// Durable at the host: one flash.
    Recorded,
}

impl Lamp {
    /// Brightness at `now_ms`, 0 to 255.
    #[must_use]
    pub fn brightness(self, now_ms: u32) -> u8 {
        match self {
            Lamp::Off => 0,
            Lamp::Queued if now_ms % 250 < 125 => 255,
            Lamp::Queued => 0,
            Lamp::Sent => 40,
            Lamp::Recorded => 255,
        }
    }
}

/// Something only the board can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Show text.
    Display(Display),
    /// Sound a tone.
    Buzzer(Buzzer),
    /// Restart. Only ever asked by an authenticated host.
    Reboot(RebootTarget),
    /// Keep this pairing key for the next boot.
    KeepPairingKey(Key),
}

#[derive(Clone, Copy, Debug, Default)]
struct Track {
    /// Number of the latest event of this button; 0 = none, or recorded.
    seq: u32,
    recorded_ms: Option<u32>,
}

/// Where gestures become numbered events, and how far each button's latest one has come.
#[derive(Debug)]
struct Keeper<S> {
    boot: u16,
    store: S,
    tracks: [Track; MAX_BUTTONS],
}

impl<S: Store> Keeper<S> {
    /// Number of the event, or `None` when it was lost.
    fn keep(&mut self, gesture: Gesture) -> Option<u32> {
        let Gesture { kind, button, value, began_ms, lasted_ms, context } = gesture;
        let event = Event {
            seq: 0,
            t_ms: began_ms,
            boot: self.boot,
            kind,
            src: button & 0x1f | if context.ambiguous { Event::AMBIGUOUS } else { 0 },
            value,
            dur_10ms: u16::try_from(lasted_ms / 10).unwrap_or(u16::MAX),
            prompt: context.prompt,
        };
        let seq = enqueue(&mut self.store, event)?;
        self.track(&event, seq);
        Some(seq)
    }

    /// Lights the lamps of the buttons an event came from.
    fn track(&mut self, event: &Event, seq: u32) {
        let mask = match event.kind {
            Kind::Chord | Kind::ChordHeld => event.value,
            Kind::Click | Kind::Long | Kind::Double | Kind::LongRelease => 1 << event.button().min(15),
            _ => 0,
        };
        for (button, track) in self.tracks.iter_mut().enumerate() {
            if mask & 1 << button != 0 {
                *track = Track { seq, recorded_ms: None };
            }
        }
    }
}

/// The core of a pad with its events in `S`.
#[derive(Debug)]
pub struct Pad<S> {
    keeper: Keeper<S>,
    reset_cause: u8,
    timing: Config,
    link: PadLink,
    debounce: [Debounce; MAX_BUTTONS],
    /// What was shown at each button's latest first edge.
    contexts: [Context; MAX_BUTTONS],
    gestures: Gestures,
    knobs: [Knob; MAX_KNOBS],
    sampled_ms: Option<u32>,
    /// When a button was last seen down, bouncing or not.
    touched_ms: u32,
    pressed: u16,
    prompt: Prompt,
    prompt_since_ms: u32,
    /// A prompt has come or gone within [`AMBIGUOUS_MS`].
    prompt_is_new: bool,
    host_leds: u16,
    stats_ms: u32,
    requests: Deque<Request, REQUESTS>,
}

impl<S: Store> Pad<S> {
    /// A pad that has just booted, with whatever `store` still holds.
    #[must_use]
    pub fn new(config: PadConfig, store: S) -> Self {
        Self::with_faults(config, store, Faults::default())
    }

    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(config: PadConfig, store: S, faults: Faults) -> Self {
        let mut pad = Self::idle(store);
        pad.start(config, faults);
        pad
    }

    /// A pad that does not yet know who it is; [`Pad::boot`] tells it.
    ///
    /// A constant, and one of zeros only: a microcontroller must neither build a thing of this size on its stack nor keep
    /// a copy of it in flash.
    #[must_use]
    pub const fn idle(store: S) -> Self {
        Self {
            keeper: Keeper { boot: 0, store, tracks: [Track { seq: 0, recorded_ms: None }; MAX_BUTTONS] },
            reset_cause: 0,
            timing: Config { debounce_ms: 0, long_ms: 0, double_ms: 0, chord_ms: 0, hash: 0 },
            link: PadLink::IDLE,
            debounce: [Debounce::NEW; MAX_BUTTONS],
            contexts: [Context::NONE; MAX_BUTTONS],
            gestures: Gestures::NEW,
            knobs: [Knob::NEW; MAX_KNOBS],
            sampled_ms: None,
            touched_ms: 0,
            pressed: 0,
            prompt: Prompt::NONE,
            prompt_since_ms: 0,
            prompt_is_new: false,
            host_leds: 0,
            stats_ms: 0,
            requests: Deque::new(),
        }
    }

    /// Tells an idle pad who it is, once; it takes up whatever its store holds.
    pub fn boot(&mut self, config: PadConfig) {
        self.start(config, Faults::NONE);
    }

    fn start(&mut self, config: PadConfig, faults: Faults) {
        self.keeper.boot = config.identity.boot;
        self.reset_cause = config.reset_cause;
        self.timing = config.timing;
        self.link.boot(config.identity, config.pairing_key, config.nonce, faults);
        for seq in self.keeper.store.first()..self.keeper.store.next() {
            if let Some(event) = self.keeper.store.event(seq) {
                self.keeper.track(&event, seq);
            }
        }
    }

    /// Takes a sample of all buttons; bit i is set while button i is down. To be called once each millisecond; a second
    /// call within the same one is ignored.
    #[inline(never)]
    pub fn tick(&mut self, now_ms: u32, buttons: u16) {
        if self.sampled_ms.replace(now_ms) == Some(now_ms) {
            return;
        }
        self.age_prompt(now_ms);
        if buttons != 0 {
            self.touched_ms = now_ms;
        } else if passed(self.touched_ms, now_ms, IDLE_MS) {
            self.keeper.store.idle();
        }
        let before = self.pressed;
        for button in 0..MAX_BUTTONS {
            let down = buttons & 1 << button != 0;
            match self.debounce[button].sample(down, now_ms, self.timing.debounce_ms) {
                Some(Edge::Began) => self.contexts[button] = self.context(),
                Some(Edge::Pressed { at_ms }) => {
                    if self.timing.debounce_ms <= 1 {
                        // Then the first edge is certain at once and was not announced.
                        self.contexts[button] = self.context();
                    }
                    self.pressed |= 1 << button;
                    let context = self.contexts[button];
                    self.gestures(|gestures, timing, emit| {
                        gestures.pressed(button, at_ms, context, timing, emit);
                    });
                }
                Some(Edge::Released { at_ms }) => {
                    self.pressed &= !(1 << button);
                    self.gestures(|gestures, timing, emit| gestures.released(button, at_ms, timing, emit));
                }
                None => {}
            }
        }
        self.gestures(|gestures, timing, emit| gestures.tick(now_ms, timing, emit));
        if self.pressed != before && self.link.is_up() {
            self.link.send(&Input { now_ms, buttons: self.pressed }.into());
        }
    }

    /// Takes a sample of all knobs' contacts: of knob i bits 2i and 2i + 1, set while closed. To be called once each
    /// millisecond, or more often.
    pub fn turn(&mut self, now_ms: u32, contacts: u8) {
        self.age_prompt(now_ms);
        let context = self.context();
        for (button, knob) in (0u8..).zip(&mut self.knobs) {
            let turn = knob.sample(contacts >> (2 * button), now_ms, context);
            if let Some(Turn { detents, began_ms, lasted_ms, context }) = turn {
                let value = detents as u16;
                self.keeper.keep(Gesture { kind: Kind::Rotary, button, value, began_ms, lasted_ms, context });
            }
        }
    }

    /// Takes bytes from the port, in any portions.
    pub fn rx(&mut self, bytes: &[u8], now_ms: u32) {
        self.age_prompt(now_ms);
        for &byte in bytes {
            let (first, epoch) = (self.keeper.store.first(), self.keeper.store.epoch());
            match self.link.rx(byte, now_ms, &mut self.keeper.store) {
                None => {}
                Some(Heard::Up) => {
                    if self.keeper.store.epoch() != epoch {
                        // Numbered anew from 1.
                        self.keeper
                            .tracks
                            .iter_mut()
                            .for_each(|track| track.seq = (track.seq + 1).saturating_sub(first));
                    }
                    self.acknowledged(now_ms);
                    self.send_stats(now_ms);
                }
                Some(Heard::Acknowledged) => self.acknowledged(now_ms),
                Some(Heard::Offer(key)) => {
                    self.take_key(key, now_ms);
                }
                Some(Heard::Message { message, tagged, ctr }) => self.obey(message, tagged, ctr, now_ms),
            }
        }
    }

    /// Does what is due. To be called at least every 20 ms, and after [`Pad::tick`] and [`Pad::rx`].
    pub fn poll(&mut self, now_ms: u32) {
        self.age_prompt(now_ms);
        for track in &mut self.keeper.tracks {
            track.recorded_ms = track.recorded_ms.filter(|at| !passed(*at, now_ms, RECORDED_MS));
        }
        self.link.poll(now_ms, &mut self.keeper.store);
        if self.link.is_up() && passed(self.stats_ms, now_ms, STATS_EVERY_MS) {
            self.send_stats(now_ms);
        }
    }

    /// The next frame for the port.
    pub fn pop_tx(&mut self) -> Option<Encoded> {
        self.link.pop_tx()
    }

    /// The next thing only the board can do.
    pub fn pop_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Reports something that is not a button's gesture: a rating, a knob, a badge, a panic before this boot.
    ///
    /// Returns the event's number, or `None` when the queue is full (the loss is counted and will be reported).
    pub fn report(&mut self, kind: Kind, src: u8, value: u16, now_ms: u32) -> Option<u32> {
        self.age_prompt(now_ms);
        let context = self.context();
        self.keeper.keep(Gesture { kind, button: src, value, began_ms: now_ms, lasted_ms: 0, context })
    }

    /// Reports what the last boot ended by: a panic's line and a hash that tells its file, or a fault's address.
    ///
    /// Returns as [`Pad::report`] does.
    pub fn report_crash(&mut self, what: Diagnostic, line: u16, at: u32, now_ms: u32) -> Option<u32> {
        let event = Event {
            t_ms: now_ms,
            boot: self.keeper.boot,
            kind: Kind::Diagnostic,
            value: what as u16,
            dur_10ms: line,
            prompt: at,
            ..Event::default()
        };
        enqueue(&mut self.keeper.store, event)
    }

    /// How far the latest press of each button has come.
    #[must_use]
    pub fn lamps(&self) -> [Lamp; MAX_BUTTONS] {
        self.keeper.tracks.map(|track| match track {
            Track { seq: 0, recorded_ms: None } => Lamp::Off,
            Track { seq: 0, .. } => Lamp::Recorded,
            Track { seq, .. } if self.link.is_up() && seq < self.link.sent() => Lamp::Sent,
            _ => Lamp::Queued,
        })
    }

    /// Brightness of each lamp at `now_ms`: the host's mask, over it the state of presses under way.
    #[must_use]
    pub fn leds(&self, now_ms: u32) -> [u8; MAX_BUTTONS] {
        let mut leds = [0; MAX_BUTTONS];
        for (button, (led, lamp)) in leds.iter_mut().zip(self.lamps()).enumerate() {
            *led = match lamp {
                Lamp::Off if self.host_leds & 1 << button != 0 => 255,
                lamp => lamp.brightness(now_ms),
            };
        }
        leds
    }

    /// The question presses answer now; id 0 when there is none.
    #[must_use]
    pub fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// Buttons that count as pressed.
    #[must_use]
    pub fn pressed(&self) -> u16 {
        self.pressed
    }

    /// Whether a host is connected.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Events not yet acknowledged.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.keeper.store.next() - self.keeper.store.first()
    }

    /// Timings in force.
    #[must_use]
    pub fn timing(&self) -> &Config {
        &self.timing
    }

    /// What became of the frames received.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.link.counters()
    }

    /// The events' store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.keeper.store
    }

    /// The events' store, for a board to mount before [`Pad::boot`].
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.keeper.store
    }

    /// Gives the store back, for the next boot.
    #[must_use]
    pub fn into_store(self) -> S {
        self.keeper.store
    }

    #[inline(never)]
    fn obey(&mut self, message: Message, tagged: bool, ctr: u32, now_ms: u32) {
        match message {
            Message::Ping(ping) => {
                let pong = Pong {
                    t_ms: ping.t_ms,
                    now_ms,
                    prompt_id: self.prompt.prompt_id,
                    leds: self.host_leds,
                    config: self.timing.hash,
                };
                self.link.send(&pong.into());
            }
            Message::Leds(leds) => self.host_leds = leds.mask,
            Message::Prompt(prompt) => self.show(prompt, now_ms),
            Message::Config(config) => self.timing = config,
            Message::Display(display) => self.request(Request::Display(display), number::Display, ctr),
            Message::Buzzer(buzzer) => self.request(Request::Buzzer(buzzer), number::Buzzer, ctr),
            Message::Reboot(Reboot { target }) if tagged => self.request(Request::Reboot(target), number::Reboot, ctr),
            Message::Pair(Pair { key }) if self.take_key(key, now_ms) => {}
            Message::Nak(_) => {}
            // Without a tag, without consent at the pad, or what only a pad may say.
            other => self.link.nak(other.kind(), NakReason::Forbidden, ctr),
        }
    }

    /// Takes a pairing key, if a person at the pad consents: whoever offers it need hold no other.
    fn take_key(&mut self, key: Key, now_ms: u32) -> bool {
        if !self.gestures.offered() || self.requests.push_back(Request::KeepPairingKey(key)).is_err() {
            return false;
        }
        self.gestures.consented();
        self.keeper.store.keep_pairing_key(key);
        self.link.pair(key, now_ms, &mut self.keeper.store);
        true
    }

    fn request(&mut self, request: Request, kind: u8, ctr: u32) {
        if self.requests.push_back(request).is_err() {
            self.link.nak(kind, NakReason::Forbidden, ctr);
        }
    }

    fn show(&mut self, prompt: Prompt, now_ms: u32) {
        // The same prompt sent again is not a change, and does not live longer for it.
        if prompt.prompt_id != self.prompt.prompt_id {
            self.prompt = prompt;
            self.prompt_since_ms = now_ms;
            self.prompt_is_new = true;
        }
    }

    /// Lets a prompt lapse, and forgets that it was new before the clock can wrap round to it.
    fn age_prompt(&mut self, now_ms: u32) {
        self.prompt_is_new &= !passed(self.prompt_since_ms, now_ms, AMBIGUOUS_MS);
        if self.prompt.ttl_ms != 0 && passed(self.prompt_since_ms, now_ms, self.prompt.ttl_ms) {
            self.show(Prompt::default(), now_ms);
        }
    }

    fn context(&self) -> Context {
        Context { prompt: self.prompt.prompt_id, ambiguous: self.prompt_is_new }
    }

    /// Runs the gestures and keeps what they report, as they report it.
    fn gestures(&mut self, run: impl FnOnce(&mut Gestures, &Config, &mut dyn FnMut(Gesture))) {
        let Self { gestures, timing, keeper, .. } = self;
        run(gestures, timing, &mut |gesture| {
            keeper.keep(gesture);
        });
    }

    fn acknowledged(&mut self, now_ms: u32) {
        for track in &mut self.keeper.tracks {
            if track.seq != 0 && track.seq < self.keeper.store.first() {
                *track = Track { seq: 0, recorded_ms: Some(now_ms) };
            }
        }
        // There may be room now to say what was lost; if not, the count stands.
        let _ = report_lost(&mut self.keeper.store, self.keeper.boot, now_ms);
    }

    fn send_stats(&mut self, now_ms: u32) {
        self.stats_ms = now_ms;
        let counters = self.link.counters();
        let noise = counters.crc.saturating_add(counters.stuffing).saturating_add(counters.overlong);
        let tag = counters.tag.saturating_add(counters.untagged);
        let stats = Stats {
            uptime_ms: now_ms,
            reset_cause: self.reset_cause,
            queued: u16::try_from(self.pending()).unwrap_or(u16::MAX),
            lost: self.keeper.store.lost(),
            noise,
            tag,
            other: counters.refused().saturating_sub(noise.saturating_add(tag)),
        };
        self.link.send(&stats.into());
    }
}
