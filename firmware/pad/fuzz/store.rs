//! A store on flash in which any bytes were changed: it mounts, takes presses, forgets what it is told to, and whatever it
//! took is there until then, also when it is mounted again.
#![no_main]
#![forbid(unsafe_code)]

use hone_pad::FlashStore;
use hone_pad::queue::{Store, enqueue};
use hone_wire::message::{Event, Kind};
use libfuzzer_sys::fuzz_target;

#[path = "../tests/common/mod.rs"]
mod common;

use common::nor::{Nor, PAGE};

const PAGES: usize = 4;
const HOLDS: usize = 8;

type Tested = FlashStore<Nor, HOLDS>;

fn mounted(nor: &Nor) -> Tested {
    let mut store = Tested::idle();
    store.mount(nor.clone(), 0..nor.len()).expect("the power is on");
    store
}

fn seen(store: &Tested) -> (u32, u32, Vec<(Kind, u16)>) {
    let event = |seq| store.event(seq).expect("present for all of first..next");
    let events = (store.first()..store.next()).map(|seq| (event(seq).kind, event(seq).value)).collect();
    (store.epoch(), store.lost(), events)
}

thread_local! {
    // Made once: nearly all of a run would else be spent on them.
    static HISTORIES: Vec<Nor> = (0..64).map(after).collect();
}

/// A chip on which so many presses were kept, and most of them forgotten.
fn after(presses: u16) -> Nor {
    let nor = Nor::blank(PAGES);
    let mut store = mounted(&nor);
    store.adopt_epoch(9);
    for value in 0..presses {
        enqueue(&mut store, Event { kind: Kind::Click, value, boot: 1, ..Event::default() });
        if value % 5 == 4 {
            store.trim(store.next() - u32::from(value % 3));
        }
    }
    nor
}

fuzz_target!(|script: &[u8]| {
    let (&[history, pokes], mut rest) = script.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let nor = HISTORIES.with(|chips| chips[usize::from(history % 64)].copied());
    for _ in 0..pokes {
        let Some((&[low, high, byte], after)) = rest.split_first_chunk() else { break };
        let at = usize::from(u16::from_le_bytes([low, high])) % (PAGES * PAGE);
        nor.0.borrow_mut().bytes[at] = byte;
        nor.0.borrow_mut().damaged = true;
        rest = after;
    }
    let mut store = mounted(&nor);
    for (step, byte) in rest.iter().enumerate() {
        let before = seen(&store);
        match byte % 8 {
            0..=3 => {
                let event = Event { kind: Kind::Click, value: step as u16, boot: store.boot(), ..Event::default() };
                if let Some(seq) = enqueue(&mut store, event) {
                    assert_eq!(store.event(seq).map(|event| event.value), Some(step as u16));
                    assert_eq!(store.next(), seq + 1);
                }
            }
            4 => store.trim(store.first() + u32::from(byte >> 5)),
            5 => {
                store.idle();
                assert_eq!(seen(&store), before);
            }
            6 => {
                store = mounted(&nor);
                let after = seen(&store);
                assert_eq!((after.1, after.2), (before.1, before.2));
                // Where the newest record is a damaged one, its numbers may have been told: the name is given up, at each
                // mount until the host has them.
                assert!(after.0 == before.0 || after.0 == 0);
            }
            _ => store.adopt_epoch(1 + step as u32),
        }
    }
});
