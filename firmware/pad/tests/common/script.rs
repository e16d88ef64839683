//! A life of a pad and its host, read from bytes: what is pressed, which frames are forged, lost or damaged, who restarts
//! when. The same for the fuzz target and for the short run in the tests.
//!
//! Both have the same key, and nobody else has it. So whatever the bytes say: nothing panics, and once the trouble has an
//! end every press that the pad kept is in the ledger, once and in order.

use super::{Disk, Mood};
use hone_pad::link::Identity;
use hone_pad::warm::Memory;
use hone_pad::{Pad, PadConfig, WarmStore};
use hone_wire::frame::{Body, Deframed, Deframer, Frame, MAX_BODY, MAX_ENCODED, encode_body};
use hone_wire::host::{HostConfig, HostLink};
use hone_wire::message::Kind;

const KEY: [u8; 16] = [9; 16];
/// Events that the pad holds.
const HOLDS: usize = 8;
/// Longest time without trouble until everything has arrived.
const QUIET_MS: u64 = 30_000;
/// A step in which only the link has something to do.
const STEP_MS: u64 = 20;

/// Memory that outlives the pad's restarts.
pub type Warm = Memory<HOLDS>;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub kept: usize,
    pub overflowed: usize,
    pub restarts: usize,
    pub refused: u32,
}

struct World {
    pad: Pad<WarmStore<HOLDS>>,
    host: HostLink,
    disk: Disk,
    now: u64,
    /// When the pad started.
    booted: u64,
    buttons: u16,
    boots: u16,
    /// Counts presses reported, and is their value.
    presses: u16,
    kept: Vec<u16>,
    life: Life,
    /// Session of the last frame of the host's, for forgeries.
    session: u32,
    /// Bits to damage in what goes out next, to the host and to the pad; `Some(0)` loses it.
    damage: [Option<usize>; 2],
}

/// Plays a script on memory of zeros, and gives it back.
///
/// # Panics
/// When anything in pad or wire does, or when a press is missing, doubled or out of order.
pub fn play(script: &[u8], memory: &'static mut Warm) -> (Life, &'static mut Warm) {
    *memory = Memory::ZEROS;
    let mut world = World {
        pad: pad(memory, 1),
        host: host(1),
        disk: Disk::default(),
        now: 1,
        booted: 0,
        buttons: 0,
        boots: 1,
        presses: 0,
        kept: Vec::new(),
        life: Life::default(),
        session: 0,
        damage: [None; 2],
    };
    let mut bytes = script.iter().copied();
    while let Some(order) = bytes.next() {
        world.obey(order, &mut bytes);
    }
    world.end()
}

impl World {
    fn obey(&mut self, order: u8, bytes: &mut impl Iterator<Item = u8>) {
        let n = usize::from(order >> 3);
        match order & 7 {
            // Time, in longer steps.
            0 => (0..n).for_each(|_| self.step(STEP_MS * 5)),
            // Buttons, sampled each millisecond.
            1 => {
                self.buttons = u16::from(bytes.next().unwrap_or_default());
                (0..=n).for_each(|_| self.step(1));
            }
            2 => {
                let noise: Vec<u8> = bytes.take(n).collect();
                self.pad.rx(&noise, self.pad_ms());
            }
            3 => {
                let noise: Vec<u8> = bytes.take(n).collect();
                self.host.rx(&noise, self.now, &mut self.disk, &mut |_| {});
            }
            // Frames with all right but the key.
            4 | 5 => {
                let (kind, ctr) = (bytes.next().unwrap_or_default(), u32::from(bytes.next().unwrap_or_default()) << 8);
                let body: Body = bytes.take(n).take(MAX_BODY).collect();
                let session = if n % 2 == 0 { self.session } else { 0 };
                let key = (n % 3 == 0).then_some([n as u8; 16]);
                let frame = encode_body(kind, &body, session, ctr, key.as_ref());
                if order & 7 == 4 {
                    self.pad.rx(&frame, self.pad_ms());
                } else {
                    self.host.rx(&frame, self.now, &mut self.disk, &mut |_| {});
                }
            }
            6 => (0..=n % 4).for_each(|_| self.press()),
            _ => self.trouble(n),
        }
    }

    fn trouble(&mut self, n: usize) {
        match n {
            0..4 => self.restart_pad(),
            4..8 => {
                self.life.restarts += 1;
                self.life.refused += self.host.counters().refused();
                self.host = host(self.now as u8);
            }
            8..12 => self.disk.mood = Mood::Full,
            12..14 => self.disk.mood = Mood::LyingFailure,
            14..16 => self.disk.mood = Mood::Willing,
            16..24 => self.damage[0] = Some(n - 16),
            _ => self.damage[1] = Some(n - 24),
        }
    }

    fn restart_pad(&mut self) {
        self.life.restarts += 1;
        self.life.refused += self.pad.counters().refused();
        let old = std::mem::replace(&mut self.pad, Pad::new(PadConfig::default(), WarmStore::new()));
        let memory = old.into_store().into_memory().expect("it was mounted");
        self.boots += 1;
        self.booted = self.now;
        self.pad = pad(memory, self.boots);
    }

    fn press(&mut self) {
        let value = self.presses;
        self.presses = self.presses.wrapping_add(1);
        match self.pad.report(Kind::Class, 1, value, self.pad_ms()) {
            Some(_) => self.kept.push(value),
            None => self.life.overflowed += 1,
        }
    }

    fn pad_ms(&self) -> u32 {
        (self.now - self.booted) as u32
    }

    fn step(&mut self, ms: u64) {
        self.now += ms;
        let pad_ms = self.pad_ms();
        self.pad.tick(pad_ms, self.buttons);
        self.pad.poll(pad_ms);
        self.host.poll(self.now, &mut |_| {});
        while let Some(frame) = self.pad.pop_tx() {
            let bytes = arrives(&frame, self.damage[0].take());
            self.host.rx(&bytes, self.now, &mut self.disk, &mut |_| {});
        }
        while let Some(frame) = self.host.pop_tx() {
            self.session = session(&frame).unwrap_or(self.session);
            let bytes = arrives(&frame, self.damage[1].take());
            self.pad.rx(&bytes, pad_ms);
        }
        let _ = (self.pad.pop_request(), self.pad.leds(pad_ms), self.pad.lamps());
        assert!(self.pad.pending() <= HOLDS as u32);
    }

    fn end(mut self) -> (Life, &'static mut Warm) {
        self.disk.mood = Mood::Willing;
        self.buttons = 0;
        let until = self.now + QUIET_MS;
        let done = |world: &World| world.pad.is_up() && world.host.is_up() && world.pad.pending() == 0;
        while !done(&self) {
            assert!(self.now < until, "the link does not recover: {} events wait", self.pad.pending());
            self.step(STEP_MS);
        }
        let events = self.disk.log.iter().map(|received| received.event);
        let recorded: Vec<u16> = events.filter(|event| event.kind == Kind::Class).map(|event| event.value).collect();
        assert_eq!(recorded, self.kept, "recorded and kept differ");
        self.life.kept = self.kept.len();
        self.life.refused += self.pad.counters().refused() + self.host.counters().refused();
        (self.life, self.pad.into_store().into_memory().expect("it was mounted"))
    }
}

/// What is left of a frame on its way.
fn arrives(frame: &[u8], damage: Option<usize>) -> Vec<u8> {
    assert!(frame.len() <= MAX_ENCODED);
    let mut bytes = frame.to_vec();
    match damage {
        None => {}
        Some(0) => bytes.clear(),
        Some(at) => {
            let at = at * bytes.len() / 8;
            bytes[at] ^= 1 << (at % 8);
        }
    }
    bytes
}

fn session(frame: &[u8]) -> Option<u32> {
    let mut deframer = Deframer::new();
    let raw = frame.iter().find_map(|byte| match deframer.push(*byte) {
        Deframed::Run(raw) => Some(raw),
        _ => None,
    })?;
    // Tagged ones are the session's, whatever the tag.
    match Frame::parse(&raw, None) {
        Ok(frame) => Some(frame.session),
        Err(_) => raw.get(2..6).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes),
    }
}

fn pad(memory: &'static mut Warm, boot: u16) -> Pad<WarmStore<HOLDS>> {
    let mut store = WarmStore::new();
    store.mount(memory);
    let config = PadConfig {
        identity: Identity { uid: *b"scripted", boot, buttons: 8, leds: 8, ..Identity::default() },
        pairing_key: Some(KEY),
        nonce: [boot as u8; 8],
        ..PadConfig::default()
    };
    Pad::new(config, store)
}

fn host(nonce: u8) -> HostLink {
    HostLink::new(HostConfig {
        pairing_key: Some(KEY),
        allow_unpaired: false,
        nonce: [nonce; 8],
        ..HostConfig::default()
    })
}
