//! Every press is recorded exactly once and in order, whatever the line, either side's power and the ledger do.
//!
//! A simulation of the shipped host link against the shipped pad over a line that flips, loses, doubles and invents bytes
//! and delays frames, with both sides restarting at random and a ledger that refuses now and then. The five rules the
//! promise rests on are each removed in turn, and each time the simulation must notice: a test that cannot fail proves
//! nothing.

mod common;

use common::nor::{Nor, Tear};
use common::{Disk, Flash, Mood, Rng};
use hone_pad::link::Identity;
use hone_pad::{FlashStore, Pad, PadConfig, Store, StoreError, WarmStore, warm};
use hone_wire::faults::Faults;
use hone_wire::host::{HostConfig, HostLink};
use hone_wire::message::{Event, Kind};
use std::collections::{HashSet, VecDeque};
use std::ops::AddAssign;

const UID: [u8; 8] = *b"sim-pad1";
const KEY: [u8; 16] = [7; 16];
/// Time in which presses are made and trouble is caused, ms.
const BUSY_MS: u64 = 60_000;
/// Time without trouble in which everything must arrive, ms.
const QUIET_MS: u64 = 20_000;
const STEP_MS: u64 = 5;
/// The promise and its four mutants are tried on the same runs.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=40;
/// Pages of the flash: room for 63 events beside the page that is erased next, or fewer after cuts.
const NOR_PAGES: usize = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Ideal: survives restarts, each change whole.
    Ideal,
    /// Forgotten by a restart.
    Volatile,
    /// The shipped store in memory that a reset leaves as it is.
    Warm,
    /// The shipped store on flash that loses its power in the middle of a byte.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
    keyed: bool,
    /// Damaged bytes in 10,000.
    noise: u32,
    /// Where the pad keeps its queue.
    memory: Memory,
    /// Events the pad can hold.
    capacity: usize,
    faults: Faults,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    presses: u32,
    recorded: u32,
    dropped: u32,
    reboots: u32,
    /// Of these, in the middle of a byte of flash.
    torn: u32,
    refused_frames: u32,
    refused_commits: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.presses += other.presses;
        self.recorded += other.recorded;
        self.dropped += other.dropped;
        self.reboots += other.reboots;
        self.torn += other.torn;
        self.refused_frames += other.refused_frames;
        self.refused_commits += other.refused_commits;
    }
}

/// One direction of the cable with its buffers: frames arrive in order, late, and perhaps not whole.
#[derive(Default)]
struct Line {
    under_way: VecDeque<(u64, Vec<u8>)>,
    last_due: u64,
}

impl Line {
    fn send(&mut self, frame: &[u8], now: u64, noise: u32, rng: &mut Rng) {
        if noise > 0 && rng.below(2_000) < noise {
            return;
        }
        let mut bytes = Vec::with_capacity(frame.len() + 4);
        for &byte in frame {
            if rng.below(10_000) >= noise {
                bytes.push(byte);
                continue;
            }
            match rng.below(4) {
                0 => {}
                1 => bytes.push(byte ^ 1 << rng.below(8)),
                2 => bytes.extend([byte, byte]),
                _ => bytes.extend([0, byte]),
            }
        }
        // Mostly the next step; now and then the operating system was busy.
        let delay = if rng.one_in(15) { u64::from(rng.below(400)) } else { 0 };
        self.last_due = self.last_due.max(now + delay);
        self.under_way.push_back((self.last_due, bytes));
    }

    fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.under_way.front()?.0 > now {
            return None;
        }
        self.under_way.pop_front().map(|(_, bytes)| bytes)
    }
}

/// The store of a scenario.
enum Kept {
    Double(Flash),
    Warm(WarmStore<64>),
    Flash(Box<FlashStore<Nor, 64>>),
}

impl Kept {
    fn store(&self) -> &dyn Store {
        match self {
            Self::Double(store) => store,
            Self::Warm(store) => store,
            Self::Flash(store) => &**store,
        }
    }

    fn store_mut(&mut self) -> &mut dyn Store {
        match self {
            Self::Double(store) => store,
            Self::Warm(store) => store,
            Self::Flash(store) => &mut **store,
        }
    }
}

impl Store for Kept {
    fn epoch(&self) -> u32 {
        self.store().epoch()
    }

    fn adopt_epoch(&mut self, epoch: u32) {
        self.store_mut().adopt_epoch(epoch);
    }

    fn first(&self) -> u32 {
        self.store().first()
    }

    fn next(&self) -> u32 {
        self.store().next()
    }

    fn push(&mut self, event: Event) -> Result<u32, StoreError> {
        self.store_mut().push(event)
    }

    fn event(&self, seq: u32) -> Option<Event> {
        self.store().event(seq)
    }

    fn trim(&mut self, upto: u32) {
        self.store_mut().trim(upto);
    }

    fn lost(&self) -> u32 {
        self.store().lost()
    }

    fn lose(&mut self) {
        self.store_mut().lose();
    }

    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError> {
        self.store_mut().push_dropped(event)
    }
}

struct World {
    scenario: Scenario,
    rng: Rng,
    disk: Disk,
    flash: Flash,
    nor: Nor,
    host: HostLink,
    pad: Pad<Kept>,
    boot: u16,
    booted: u64,
    power_cut: Option<u64>,
    to_host: Line,
    to_pad: Line,
    /// Presses the pad took, in order.
    kept: Vec<u16>,
    /// Presses the pad could not take.
    overflowed: u32,
    /// Presses that stood in memory when the power was cut: they may be missing, not doubled.
    excused: HashSet<u16>,
    /// Losses counted in memory when the power was cut.
    excused_losses: u32,
    tally: Tally,
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let flash = Flash::new(scenario.capacity);
        let host = host(&scenario, &mut rng);
        let nor = Nor::blank(NOR_PAGES);
        let memory = (scenario.memory == Memory::Warm).then(|| Box::leak(Box::new(warm::Memory::ZEROS)));
        let pad = pad(&scenario, &flash, &nor, memory, 1, &mut rng);
        Self {
            scenario,
            rng,
            disk: Disk::default(),
            flash,
            nor,
            host,
            pad,
            boot: 1,
            booted: 0,
            power_cut: None,
            to_host: Line::default(),
            to_pad: Line::default(),
            kept: Vec::new(),
            overflowed: 0,
            excused: HashSet::new(),
            excused_losses: 0,
            tally: Tally::default(),
        }
    }

    fn press(&mut self, now: u64) {
        let value = self.tally.presses as u16;
        self.tally.presses += 1;
        match self.pad.report(Kind::Class, (value % 5) as u8, value, (now - self.booted) as u32) {
            Some(_) => self.kept.push(value),
            // The power went while it was being kept: it may be there or not, and the lamp did not say that it is.
            None if self.nor.is_dead() => {
                self.excused.insert(value);
                self.excused_losses += 1;
                self.kept.push(value);
            }
            None => self.overflowed += 1,
        }
    }

    fn reboot_pad(&mut self, now: u64) {
        self.tally.reboots += 1;
        self.tally.refused_frames += self.pad.counters().refused();
        if self.scenario.memory == Memory::Volatile {
            for event in self.flash.held() {
                match event.kind {
                    Kind::Class => drop(self.excused.insert(event.value)),
                    _ => self.excused_losses += u32::from(event.value),
                }
            }
            self.excused_losses += self.flash.0.borrow().lost;
            self.flash.wipe();
        }
        self.boot += 1;
        self.booted = now;
        self.tally.torn += u32::from(self.nor.is_dead());
        let nobody = Pad::new(PadConfig::default(), Kept::Double(Flash::new(0)));
        let memory = match std::mem::replace(&mut self.pad, nobody).into_store() {
            Kept::Warm(store) => store.into_memory(),
            _ => None,
        };
        self.pad = pad(&self.scenario, &self.flash, &self.nor, memory, self.boot, &mut self.rng);
    }

    fn reboot_host(&mut self) {
        self.tally.reboots += 1;
        self.tally.refused_frames += self.host.counters().refused();
        self.host = host(&self.scenario, &mut self.rng);
        if self.rng.one_in(2) {
            // Committed, but the acknowledgement never left.
            self.to_pad.under_way.clear();
        }
    }

    fn trouble(&mut self, now: u64) {
        if self.rng.one_in(30) {
            self.press(now);
        }
        if self.rng.one_in(800) {
            if self.scenario.memory == Memory::Torn {
                let tear = if self.rng.one_in(2) { Tear::Clean } else { Tear::Ragged };
                self.nor.cut_after(self.rng.below(700) as usize, tear);
            } else {
                self.reboot_pad(now);
            }
        }
        if self.rng.one_in(900) {
            self.reboot_host();
            if self.rng.one_in(3) {
                // A host that restarts often cuts the power of its ports as well, at some moment.
                self.power_cut = Some(now + u64::from(self.rng.below(200)));
            }
        }
        if self.power_cut.is_some_and(|at| at <= now) {
            self.power_cut = None;
            self.reboot_pad(now);
        }
        if self.rng.one_in(300) {
            self.disk.mood = match self.rng.below(8) {
                0 => Mood::Full,
                1 => Mood::LyingFailure,
                _ => Mood::Willing,
            };
        }
    }

    fn step(&mut self, now: u64, noise: u32) {
        let pad_now = (now - self.booted) as u32;
        self.pad.poll(pad_now);
        self.host.poll(now, &mut |_| {});
        if self.nor.is_dead() {
            self.reboot_pad(now);
        }
        while let Some(frame) = self.pad.pop_tx() {
            self.to_host.send(&frame, now, noise, &mut self.rng);
        }
        while let Some(frame) = self.host.pop_tx() {
            self.to_pad.send(&frame, now, noise, &mut self.rng);
        }
        while let Some(bytes) = self.to_host.arrived(now) {
            self.host.rx(&bytes, now, &mut self.disk, &mut |_| {});
        }
        while let Some(bytes) = self.to_pad.arrived(now) {
            self.pad.rx(&bytes, pad_now);
        }
        if self.nor.is_dead() {
            self.reboot_pad(now);
        }
    }

    fn run(mut self) -> Result<Tally, String> {
        for now in (0..BUSY_MS).step_by(STEP_MS as usize) {
            self.trouble(now);
            self.step(now, self.scenario.noise);
        }
        self.disk.mood = Mood::Willing;
        self.nor.restore_power();
        for now in (BUSY_MS..BUSY_MS + QUIET_MS).step_by(STEP_MS as usize) {
            self.step(now, 0);
        }
        self.judge()
    }

    fn judge(mut self) -> Result<Tally, String> {
        self.tally.refused_frames += self.pad.counters().refused() + self.host.counters().refused();
        self.tally.refused_commits = self.disk.refusals;
        if !self.host.is_up() || !self.pad.is_up() {
            return Err("the link did not recover".into());
        }
        let held = self.pad.pending();
        if held > 0 {
            return Err(format!("{held} events never left the pad"));
        }
        let events: Vec<Event> = self.disk.log.iter().map(|received| received.event).collect();
        let recorded: Vec<u16> = events.iter().filter(|e| e.kind == Kind::Class).map(|e| e.value).collect();
        // What must be there, in order, with what may be.
        let mut kept = self.kept.iter();
        for value in &recorded {
            for missed in kept.by_ref().take_while(|kept| *kept != value) {
                if !self.excused.contains(missed) {
                    return Err(format!("press {missed} is missing before {value}, or {value} came twice"));
                }
            }
        }
        if let Some(missed) = kept.find(|value| !self.excused.contains(value)) {
            return Err(format!("press {missed} is missing at the end"));
        }
        let distinct: HashSet<u16> = recorded.iter().copied().collect();
        if distinct.len() != recorded.len() {
            return Err("a press was recorded twice".into());
        }
        let dropped: u32 = events.iter().filter(|e| e.kind == Kind::Dropped).map(|e| u32::from(e.value)).sum();
        let may_be_missing = self.overflowed.saturating_sub(self.excused_losses);
        if dropped > self.overflowed || dropped < may_be_missing {
            return Err(format!("{} presses overflowed, {dropped} were reported", self.overflowed));
        }
        if let Some(strange) = events.iter().find(|e| !matches!(e.kind, Kind::Class | Kind::Dropped)) {
            return Err(format!("{strange:?} was never made"));
        }
        self.tally.recorded = recorded.len() as u32;
        self.tally.dropped = dropped;
        Ok(self.tally)
    }
}

fn host(scenario: &Scenario, rng: &mut Rng) -> HostLink {
    let config = HostConfig {
        pairing_key: scenario.keyed.then_some(KEY),
        allow_unpaired: !scenario.keyed,
        nonce: rng.nonce(),
        ..HostConfig::default()
    };
    HostLink::with_faults(config, scenario.faults)
}

fn pad(
    scenario: &Scenario,
    flash: &Flash,
    nor: &Nor,
    memory: Option<&'static mut warm::Memory<64>>,
    boot: u16,
    rng: &mut Rng,
) -> Pad<Kept> {
    let kept = match scenario.memory {
        Memory::Ideal | Memory::Volatile => Kept::Double(flash.clone()),
        Memory::Warm => {
            let mut store = WarmStore::new();
            store.mount(memory.expect("a reset leaves it"));
            Kept::Warm(store)
        }
        Memory::Torn => {
            nor.restore_power();
            let mut store = Box::new(FlashStore::idle());
            store.mount(nor.clone(), 0..nor.len()).expect("the power is on");
            Kept::Flash(store)
        }
    };
    let config = PadConfig {
        identity: Identity { uid: UID, boot, buttons: 5, leds: 5, ..Identity::default() },
        pairing_key: scenario.keyed.then_some(KEY),
        nonce: rng.nonce(),
        ..PadConfig::default()
    };
    Pad::with_faults(config, kept, scenario.faults)
}

/// Seeds × keyed or not × noise × kinds of store.
fn scenarios(seeds: std::ops::RangeInclusive<u64>, faults: Faults) -> impl Iterator<Item = Scenario> {
    seeds.flat_map(move |seed| {
        [false, true].into_iter().flat_map(move |keyed| {
            [0, 20, 100, 400].into_iter().flat_map(move |noise| {
                let memories = [
                    (Memory::Ideal, 64),
                    (Memory::Ideal, 6),
                    (Memory::Volatile, 64),
                    (Memory::Warm, 64),
                    (Memory::Torn, 64),
                ];
                memories.into_iter().map(move |(memory, capacity)| Scenario {
                    seed,
                    keyed,
                    noise,
                    memory,
                    capacity,
                    faults,
                })
            })
        })
    })
}

/// `HONE_SIM_SEEDS=1050` is the whole proof: over a million presses recorded, and 100,000 power cuts in the middle of a byte of flash.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("HONE_SIM_SEEDS").ok();
    1..=asked.map_or(*SEEDS.end(), |seeds| seeds.parse().expect("HONE_SIM_SEEDS is a number"))
}

fn first_failure(faults: Faults) -> Option<(Scenario, String)> {
    scenarios(SEEDS, faults).find_map(|scenario| World::new(scenario).run().err().map(|error| (scenario, error)))
}

#[test]
fn every_press_is_recorded_exactly_once_in_order_under_noise_reboots_and_a_refusing_ledger() {
    let mut total = Tally::default();
    for scenario in scenarios(seeds(), Faults::default()) {
        match World::new(scenario).run() {
            Ok(tally) => total += tally,
            Err(error) => panic!("{error}: {scenario:?}"),
        }
    }
    println!("{total:?}");
    assert!(total.recorded >= 200_000, "{total:?}");
    assert!(total.reboots > 10_000 && total.refused_frames > 10_000 && total.refused_commits > 1_000, "{total:?}");
    assert!(total.dropped > 1_000 && total.torn > 3_000, "{total:?}");
}

#[test]
fn a_host_that_does_not_look_for_repeats_is_caught() {
    let failure = first_failure(Faults { no_dedupe: true, ..Faults::default() });
    println!("{failure:?}");
    assert!(failure.is_some());
}

#[test]
fn a_pad_that_forgets_what_it_has_sent_is_caught() {
    let failure = first_failure(Faults { trim_at_send: true, ..Faults::default() });
    println!("{failure:?}");
    assert!(failure.is_some());
}

#[test]
fn sides_that_do_not_check_sums_are_caught() {
    let failure = first_failure(Faults { ignore_crc: true, ..Faults::default() });
    println!("{failure:?}");
    assert!(failure.is_some());
}

#[test]
fn greetings_that_need_not_answer_each_other_are_caught() {
    let failure = first_failure(Faults { greet_without_echo: true, ..Faults::default() });
    println!("{failure:?}");
    assert!(failure.is_some());
}

#[test]
fn a_host_that_acknowledges_what_its_ledger_refused_is_caught() {
    let failure = first_failure(Faults { ack_unstored: true, ..Faults::default() });
    println!("{failure:?}");
    assert!(failure.is_some());
}
