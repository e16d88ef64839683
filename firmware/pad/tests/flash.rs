//! The store in flash, with the power cut after every byte that it writes or erases.
//!
//! A script of changes runs against the shipped store and against a model that is ten lines long. After each cut the store,
//! mounted again, must be the model before the interrupted change or after it: nothing else, and never half of it.

mod common;

use common::Rng;
use common::nor::{Nor, NorOf, PAGE, PicoNor, Tear};
use embedded_storage::nor_flash::NorFlash;
use hone_pad::flash::{FORMAT, FlashStore, MIN_PAGES};
use hone_pad::queue::{Store, StoreError, enqueue, report_lost};
use hone_wire::auth::Key;
use hone_wire::message::{Event, Kind};

const HOLDS: usize = 10;
const PAGES: usize = 5;

type Tested = FlashStore<Nor, HOLDS>;

#[derive(Clone, Copy, Debug)]
enum Change {
    /// A press, or its loss where the store is full.
    Press(u16),
    /// The host has all but this many.
    Acknowledge(u32),
    Adopt(u32),
    Pair(u8),
}

/// What can be seen of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    epoch: u32,
    first: u32,
    lost: u32,
    key: Option<Key>,
    events: Vec<(Kind, u16)>,
}

impl Seen {
    const NEW: Self = Self { epoch: 0, first: 1, lost: 0, key: None, events: Vec::new() };

    fn of<F: NorFlash>(store: &FlashStore<F, HOLDS>) -> Self {
        let events = (store.first()..store.next()).map(|seq| {
            let event = store.event(seq).expect("present for all of first..next");
            assert_eq!(event.seq, seq);
            (event.kind, event.value)
        });
        Self {
            epoch: store.epoch(),
            first: store.first(),
            lost: store.lost(),
            key: store.pairing_key(),
            events: events.collect(),
        }
    }

    /// The states that a change goes through, each whole.
    fn stages(&self, change: Change, holds: usize) -> Vec<Self> {
        let mut stages = vec![self.clone()];
        let mut now = self.clone();
        match change {
            Change::Press(value) => {
                if now.lost > 0 && now.events.len() < holds {
                    now.events.push((Kind::Dropped, now.lost as u16));
                    now.lost = 0;
                    stages.push(now.clone());
                }
                if now.events.len() < holds {
                    now.events.push((Kind::Click, value));
                } else {
                    now.lost += 1;
                }
            }
            Change::Acknowledge(but) => {
                let gone = now.events.len().saturating_sub(but as usize);
                now.events.drain(..gone);
                now.first += gone as u32;
            }
            Change::Adopt(epoch) => (now.epoch, now.first) = (epoch, 1),
            Change::Pair(byte) => now.key = Some([byte; 16]),
        }
        stages.push(now);
        stages
    }
}

fn apply<F: NorFlash>(store: &mut FlashStore<F, HOLDS>, change: Change) {
    match change {
        Change::Press(value) => {
            let event = Event { kind: Kind::Click, value, boot: store.boot(), ..Event::default() };
            enqueue(store, event);
        }
        Change::Acknowledge(but) => store.trim(store.next().saturating_sub(but)),
        Change::Adopt(epoch) => store.adopt_epoch(epoch),
        Change::Pair(byte) => store.keep_pairing_key([byte; 16]),
    }
}

/// Mounts a store as a board does.
fn mount<const W: usize, const P: usize>(
    store: &mut FlashStore<NorOf<W, P>, HOLDS>,
    nor: &NorOf<W, P>,
) -> Result<(), StoreError> {
    store.mount(nor.clone(), 0..nor.len())
}

fn mounted<const W: usize, const P: usize>(nor: &NorOf<W, P>) -> FlashStore<NorOf<W, P>, HOLDS> {
    nor.restore_power();
    let mut store = FlashStore::idle();
    mount(&mut store, nor).expect("the power is on");
    store
}

/// Presses in several pages, a full queue with losses, a report of them, new names, a key.
fn script() -> Vec<Change> {
    let mut script = vec![Change::Adopt(7)];
    script.extend((1..=6).map(Change::Press));
    script.extend([Change::Acknowledge(2), Change::Pair(9)]);
    script.extend((7..=18).map(Change::Press));
    script.extend([Change::Acknowledge(3), Change::Press(19), Change::Acknowledge(0), Change::Adopt(8)]);
    for round in 0..16 {
        script.extend((0..7).map(|i| Change::Press(100 + 10 * round + i)));
        script.push(Change::Acknowledge(round as u32 % 3));
    }
    script
}

#[test]
fn a_power_cut_after_any_byte_leaves_the_state_before_or_after_a_change() {
    let mut cuts = 0;
    for tear in [Tear::Clean, Tear::Ragged] {
        let whole = Nor::blank(PAGES);
        let mut uncut = mounted(&whole);
        script().into_iter().for_each(|change| apply(&mut uncut, change));
        let bytes = whole.worked();
        assert!(bytes > 3 * PAGES * PAGE, "the script goes round both rings: {bytes} bytes");
        for k in 0..bytes {
            let nor = Nor::blank(PAGES);
            nor.cut_after(k, tear);
            let mut store = Tested::idle();
            let _ = mount(&mut store, &nor);
            let mut may = vec![Seen::NEW];
            for change in script() {
                if nor.is_dead() {
                    break;
                }
                let before = may.last().expect("never empty");
                may = before.stages(change, HOLDS);
                apply(&mut store, change);
            }
            assert!(nor.is_dead(), "{k}");
            // A second cut while the first is being mended.
            nor.restore_power();
            nor.cut_after(k * 7 % 120, tear);
            let _ = mount(&mut Tested::idle(), &nor);
            let mut store = mounted(&nor);
            let seen = Seen::of(&store);
            assert!(may.contains(&seen), "{tear:?} after {k} bytes: {seen:?} is none of {may:?}");
            // And it goes on.
            let mut now = seen;
            for change in [Change::Press(900), Change::Acknowledge(1), Change::Press(901), Change::Acknowledge(0)] {
                now = now.stages(change, HOLDS).pop().expect("never empty");
                apply(&mut store, change);
                assert_eq!(Seen::of(&store), now, "{tear:?} after {k} bytes");
            }
            assert_eq!(Seen::of(&mounted(&nor)), now, "{tear:?} after {k} bytes");
            cuts += 1;
        }
    }
    println!("{cuts} cuts");
}

#[test]
fn however_often_the_power_fails_no_press_that_was_kept_is_overwritten() {
    let (boots, presses) = lives::<{ common::nor::WORD }, PAGE>(340, 900);
    assert!(boots > 10_000 && presses > 50_000, "{boots} boots, {presses} presses");
    // Bytes that a page takes and its erasure cost; the geometry of a Pico's flash.
    let (boots, presses) = lives::<1, 4096>(20, 9_000);
    assert!(boots > 700 && presses > 20_000, "{boots} boots, {presses} presses");
}

/// `runs` lives of 60 boots each, of which none has the power for more than `fuse` bytes written or erased. Returns how many
/// boots and presses there were.
fn lives<const W: usize, const P: usize>(runs: u32, fuse: u32) -> (u32, u32) {
    let mut rng = Rng::new(1);
    let (mut boots, mut presses) = (0, 0);
    for run in 0..runs {
        let nor = NorOf::<W, P>::blank(PAGES);
        let mut may = vec![Seen::NEW];
        let mut kept = Seen::NEW;
        for boot in 0..60 {
            if boot > 0 {
                nor.restore_power();
            }
            nor.cut_after(rng.below(fuse) as usize, if rng.one_in(2) { Tear::Clean } else { Tear::Ragged });
            let mut store = FlashStore::idle();
            if mount(&mut store, &nor).is_ok() {
                kept = Seen::of(&store);
                assert!(may.contains(&kept), "run {run}, boot {boot}: {kept:?} is none of {may:?}");
                may = vec![kept.clone()];
                boots += 1;
            }
            while !nor.is_dead() {
                // Spoilt slots make a store hold less than it could: what it really took is asked.
                let change = match rng.below(12) {
                    0 => Change::Acknowledge(rng.below(4)),
                    1 => Change::Pair(rng.below(200) as u8),
                    2 if kept.events.is_empty() => Change::Adopt(1 + rng.below(1000)),
                    _ => Change::Press(rng.below(60_000) as u16),
                };
                presses += u32::from(matches!(change, Change::Press(_)));
                let (full, roomy) = (kept.stages(change, kept.events.len()), kept.stages(change, HOLDS));
                let half = kept.stages(change, kept.events.len() + 1);
                apply(&mut store, change);
                if rng.one_in(4) {
                    store.idle();
                }
                may = [full, half, roomy].concat();
                if !nor.is_dead() {
                    let seen = Seen::of(&store);
                    assert!(may.contains(&seen), "run {run}: {seen:?} is none of {may:?}");
                    kept = seen;
                    may = vec![kept.clone()];
                }
            }
        }
    }
    println!("{boots} boots, {presses} presses");
    (boots, presses)
}

#[test]
fn flash_is_never_assumed_blank() {
    let mut rng = Rng::new(3);
    let fills: [Box<dyn FnMut(usize) -> u8>; 4] =
        [Box::new(|_| 0), Box::new(|_| 0x55), Box::new(|i| i as u8), Box::new(move |_| rng.below(256) as u8)];
    for (which, fill) in fills.into_iter().enumerate() {
        let nor = Nor::new(PAGES, fill);
        let mut store = mounted(&nor);
        assert_eq!(Seen::of(&store), Seen::NEW, "{which}");
        apply(&mut store, Change::Press(5));
        apply(&mut store, Change::Adopt(3));
        let again = mounted(&nor);
        assert_eq!(Seen::of(&again).events, [(Kind::Click, 5)], "{which}");
        assert_eq!((again.epoch(), again.boot()), (3, 2), "{which}");
    }
}

#[test]
fn a_store_of_another_format_is_begun_anew_and_not_misread() {
    let nor = Nor::blank(PAGES);
    let mut old = mounted(&nor);
    script().into_iter().for_each(|change| apply(&mut old, change));
    // The first byte of every record; sums are the library's, so its own queue writes them.
    let other = Nor::blank(PAGES);
    for range in [0..2 * PAGE as u32, 2 * PAGE as u32..other.len()] {
        let mut ring = sequential_storage::queue::QueueStorage::new(
            Async(other.clone()),
            sequential_storage::queue::QueueConfig::new(range),
            sequential_storage::cache::Cache::new_uncached(),
        );
        let mut record = [0u8; 40];
        record[0] = FORMAT + 1;
        common::ready(ring.push(&record, false)).unwrap();
    }
    assert_eq!(Seen::of(&mounted(&other)), Seen::NEW);
    assert_ne!(Seen::of(&mounted(&nor)), Seen::NEW);
}

#[test]
fn a_queue_that_was_erased_gives_up_its_name_so_that_no_number_is_used_twice() {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    store.adopt_epoch(5);
    (0..4).for_each(|value| apply(&mut store, Change::Press(value)));
    store.trim(3);
    nor.0.borrow_mut().bytes[2 * PAGE..].fill(0xff);
    assert_eq!(mounted(&nor).epoch(), 0);
}

#[test]
fn a_damaged_record_keeps_its_number_and_is_told_as_a_diagnostic() {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    store.adopt_epoch(5);
    (0..4).for_each(|value| apply(&mut store, Change::Press(value)));
    let value_of_2 = {
        let chip = nor.0.borrow();
        let at = chip.bytes[2 * PAGE..].windows(8).position(|w| w == [2, 0, 0, 0, 0, 0, 0, 0]);
        2 * PAGE + at.expect("the second event's number")
    };
    nor.0.borrow_mut().bytes[value_of_2 + 5] ^= 0x10;
    let seen = Seen::of(&mounted(&nor));
    let kinds: Vec<Kind> = seen.events.iter().map(|(kind, _)| *kind).collect();
    assert_eq!((seen.epoch, kinds), (5, vec![Kind::Click, Kind::Diagnostic, Kind::Click, Kind::Click]));
}

#[test]
fn a_flash_that_fails_makes_presses_counted_losses_and_not_panics() {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    nor.cut_after(0, Tear::Clean);
    let event = Event { kind: Kind::Click, ..Event::default() };
    assert_eq!(store.push(event), Err(StoreError::Failed));
    assert_eq!((enqueue(&mut store, event), store.lost()), (None, 1));
    assert_eq!(report_lost(&mut store, 1, 0), Err(StoreError::Failed));
    store.adopt_epoch(4);
    assert_eq!(store.epoch(), 0, "a name that cannot be kept is not taken");
    assert_eq!(mount(&mut store, &nor), Err(StoreError::Failed));
    let mut nowhere = Tested::idle();
    assert_eq!((nowhere.push(event), enqueue(&mut nowhere, event)), (Err(StoreError::Failed), None));
    assert_eq!(nowhere.mount(nor, 0..MIN_PAGES * PAGE as u32 - 4), Err(StoreError::Failed));
    nowhere.adopt_epoch(4);
    assert_eq!((nowhere.push(event), nowhere.epoch()), (Err(StoreError::Failed), 0));
}

/// The library wants its flash asynchronous.
struct Async(Nor);

impl embedded_storage::nor_flash::ErrorType for Async {
    type Error = common::nor::Refused;
}

impl embedded_storage_async::nor_flash::ReadNorFlash for Async {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        embedded_storage::nor_flash::ReadNorFlash::read(&mut self.0, offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.len() as usize
    }
}

impl embedded_storage_async::nor_flash::NorFlash for Async {
    const WRITE_SIZE: usize = common::nor::WORD;
    const ERASE_SIZE: usize = PAGE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        embedded_storage::nor_flash::NorFlash::erase(&mut self.0, from, to)
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        embedded_storage::nor_flash::NorFlash::write(&mut self.0, offset, bytes)
    }
}

#[test]
fn damaged_records_and_old_ones_do_not_fill_the_store() {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    store.adopt_epoch(5);
    (0..3).for_each(|value| apply(&mut store, Change::Press(value)));
    // Its oldest record can no longer be read, and it is started often.
    let at = nor.0.borrow().bytes[2 * PAGE..].windows(8).position(|w| w == [1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    nor.0.borrow_mut().bytes[2 * PAGE + at + 5] ^= 0x10;
    for _ in 0..100 {
        store = mounted(&nor);
    }
    assert_eq!(Seen::of(&store).events[0].0, Kind::Diagnostic);
    (3..HOLDS as u16).for_each(|value| apply(&mut store, Change::Press(value)));
    let seen = Seen::of(&mounted(&nor));
    assert_eq!((seen.events.len(), seen.lost), (HOLDS, 0));
}

#[test]
fn a_store_that_is_left_idle_erases_ahead_so_that_no_press_waits_for_it() {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    store.adopt_epoch(5);
    let erased = || nor.0.borrow().erased;
    let (mut while_idle, mut while_pressed) = (0, 0);
    for round in 0..200 {
        let before = erased();
        for value in 0..3 {
            apply(&mut store, Change::Press(3 * round + value));
        }
        while_pressed += erased() - before;
        store.trim(store.next() - round as u32 % 3);
        let before = erased();
        let worked = nor.worked();
        (0..4).for_each(|_| store.idle());
        while_idle += erased() - before;
        let again = nor.worked();
        (0..100).for_each(|_| store.idle());
        assert_eq!(nor.worked(), again, "it does nothing without need: {worked}");
        let seen = Seen::of(&store);
        let mounted = Seen::of(&mounted(&nor.copied()));
        assert_eq!(seen, mounted, "{round}");
    }
    assert_eq!(while_pressed, 0);
    assert!(while_idle > 10, "{while_idle}");
}

#[test]
fn a_store_in_pages_as_a_picos_goes_round_its_ring_and_keeps_what_was_kept() {
    let nor = PicoNor::blank(PAGES);
    let mut store = mounted(&nor);
    let mut now = Seen::NEW;
    for (step, change) in script().into_iter().cycle().take(3_000).enumerate() {
        now = now.stages(change, HOLDS).pop().expect("never empty");
        apply(&mut store, change);
        if step % 97 == 0 {
            store = mounted(&nor);
        }
        assert_eq!(Seen::of(&store), now, "{step}");
    }
    assert!(nor.0.borrow().erased > 2 * PAGES, "{} pages were erased", nor.0.borrow().erased);
}
