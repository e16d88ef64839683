//! The queue in memory that a reset does not clear, for a board without flash that a program may write. It outlives every
//! reset, and not the power.
//!
//! Two heads say what is held; the newer one whose checksum is right counts. A change writes what is new where the newer
//! head says nothing is, and then the older head: so a reset between any two bytes leaves the state before or after it.
//! After power-up the memory holds whatever it happens to, which no checksum fits.

use crate::queue::{Store, StoreError};
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};
use hone_wire::auth::Key;
use hone_wire::frame::{crc32c, crc32c_more};
use hone_wire::message::{EVENT_LEN, Event};

const HEAD: usize = 48;
const CHECK_AT: usize = HEAD - 4;

/// Memory for `N` events. Any bytes may be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Memory<const N: usize> {
    heads: [[u8; HEAD]; 2],
    events: [[u8; EVENT_LEN]; N],
}

impl<const N: usize> Memory<N> {
    /// Zeros, in which nothing is held.
    pub const ZEROS: Self = Self { heads: [[0; HEAD]; 2], events: [[0; EVENT_LEN]; N] };
}

/// What a head says. Events have serial numbers, which never start anew; their numbers on the wire are those less `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// Rises from head to head.
    generation: u32,
    epoch: u32,
    base: u32,
    first: u32,
    next: u32,
    lost: u32,
    key: Option<Key>,
}

impl Head {
    const NEW: Self = Self { generation: 0, epoch: 0, base: 0, first: 1, next: 1, lost: 0, key: None };

    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let fields = [self.generation, self.epoch, self.base, self.first, self.next, self.lost];
        for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes[24..40].copy_from_slice(&self.key.unwrap_or_default());
        bytes[40] = u8::from(self.key.is_some());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEAD]) -> Self {
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut key = Key::default();
        key.copy_from_slice(&bytes[24..40]);
        Self {
            generation: field(0),
            epoch: field(4),
            base: field(8),
            first: field(12),
            next: field(16),
            lost: field(20),
            key: (bytes[40] == 1).then_some(key),
        }
    }
}

/// Up to `N` events in memory that outlives a reset.
#[derive(Debug)]
pub struct WarmStore<const N: usize> {
    memory: Option<&'static mut Memory<N>>,
    /// The newer head.
    newer: u8,
}

impl<const N: usize> WarmStore<N> {
    /// A store that has no memory yet, and keeps nothing until [`WarmStore::mount`] gives it some.
    #[must_use]
    pub const fn new() -> Self {
        Self { memory: None, newer: 0 }
    }

    /// Takes up what the memory holds. To be called once, before anything else.
    pub fn mount(&mut self, memory: &'static mut Memory<N>) {
        let heads = [0, 1].map(|at| whole(memory, at));
        self.newer = match heads {
            [Some(a), Some(b)] => u8::from(b.generation.wrapping_sub(a.generation) as i32 > 0),
            [_, Some(_)] => 1,
            _ => 0,
        };
        self.memory = Some(memory);
        if heads == [None, None] {
            self.write(Head::NEW);
        }
    }

    /// Gives the memory back, for the next boot.
    #[must_use]
    pub fn into_memory(self) -> Option<&'static mut Memory<N>> {
        self.memory
    }

    /// The key that the pad was paired with.
    #[must_use]
    pub fn pairing_key(&self) -> Option<Key> {
        self.head().key
    }

    fn head(&self) -> Head {
        self.memory.as_ref().map_or(Head::NEW, |memory| Head::from_bytes(&memory.heads[usize::from(self.newer)]))
    }

    /// Makes this head the newer one.
    fn write(&mut self, head: Head) {
        let Some(memory) = &mut self.memory else { return };
        let generation = head.generation.wrapping_add(1);
        let head = Head { generation, ..head };
        let mut bytes = head.to_bytes();
        let check = checksum(memory, &head, &bytes);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        let older = 1 - self.newer;
        // What the head speaks of comes first, and nothing before the head is whole.
        compiler_fence(SeqCst);
        memory.heads[usize::from(older)] = bytes;
        compiler_fence(SeqCst);
        self.newer = older;
    }

    fn keep(&mut self, event: Event, lost: u32) -> Result<u32, StoreError> {
        let head = self.head();
        let Some(memory) = &mut self.memory else { return Err(StoreError::Failed) };
        if (head.next - head.first) as usize >= N {
            return Err(StoreError::Full);
        }
        memory.events[head.next as usize % N] = event.to_bytes();
        self.write(Head { next: head.next + 1, lost, ..head });
        Ok(head.next - head.base)
    }
}

impl<const N: usize> Default for WarmStore<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The head at this place, if its checksum is right.
fn whole<const N: usize>(memory: &Memory<N>, at: usize) -> Option<Head> {
    let bytes = &memory.heads[at];
    let head = Head::from_bytes(bytes);
    let sensible = head.base < head.first && head.first <= head.next && (head.next - head.first) as usize <= N;
    (sensible && checksum(memory, &head, bytes).to_le_bytes() == bytes[CHECK_AT..]).then_some(head)
}

/// Of a head's bytes before the checksum, and of the events it speaks of.
fn checksum<const N: usize>(memory: &Memory<N>, head: &Head, bytes: &[u8; HEAD]) -> u32 {
    let slots = (head.first..head.next).map(|serial| serial as usize % N);
    slots.fold(crc32c(&bytes[..CHECK_AT]), |crc, slot| crc32c_more(crc, &memory.events[slot]))
}

impl<const N: usize> Store for WarmStore<N> {
    fn epoch(&self) -> u32 {
        self.head().epoch
    }

    fn adopt_epoch(&mut self, epoch: u32) {
        let head = self.head();
        self.write(Head { epoch, base: head.first - 1, ..head });
    }

    fn first(&self) -> u32 {
        let head = self.head();
        head.first - head.base
    }

    fn next(&self) -> u32 {
        let head = self.head();
        head.next - head.base
    }

    fn push(&mut self, event: Event) -> Result<u32, StoreError> {
        self.keep(event, self.lost())
    }

    fn event(&self, seq: u32) -> Option<Event> {
        let head = self.head();
        let serial = seq.checked_add(head.base).filter(|serial| (head.first..head.next).contains(serial))?;
        let bytes = &self.memory.as_ref()?.events[serial as usize % N];
        Some(Event { seq, ..Event::from_bytes(bytes) })
    }

    fn trim(&mut self, upto: u32) {
        let head = self.head();
        let first = head.base.saturating_add(upto).min(head.next);
        if first > head.first {
            self.write(Head { first, ..head });
        }
    }

    fn lost(&self) -> u32 {
        self.head().lost
    }

    fn lose(&mut self) {
        let head = self.head();
        self.write(Head { lost: head.lost.saturating_add(1), ..head });
    }

    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError> {
        self.keep(event, self.lost().saturating_sub(u32::from(event.value)))
    }

    fn keep_pairing_key(&mut self, key: Key) {
        let head = self.head();
        self.write(Head { key: Some(key), ..head });
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use hone_wire::message::Kind;
    use std::boxed::Box;
    use std::vec::Vec;

    const N: usize = 3;

    fn mounted(memory: &Memory<N>) -> WarmStore<N> {
        let mut store = WarmStore::new();
        store.mount(Box::leak(Box::new(memory.clone())));
        store
    }

    fn memory(store: &WarmStore<N>) -> Memory<N> {
        store.memory.as_deref().unwrap().clone()
    }

    fn event(value: u16) -> Event {
        Event { kind: Kind::Class, value, t_ms: 7, ..Event::default() }
    }

    /// All a store tells.
    fn told(store: &WarmStore<N>) -> (u32, Vec<Event>, u32, u32, Option<Key>) {
        let events = (store.first()..store.next()).map(|seq| store.event(seq).unwrap()).collect();
        (store.epoch(), events, store.next(), store.lost(), store.pairing_key())
    }

    fn do_one(store: &mut WarmStore<N>, step: u16) {
        match step % 11 {
            0 => store.adopt_epoch(u32::from(step) + 1),
            4 | 9 => store.trim(store.first() + 1 + u32::from(step % 2)),
            5 => store.lose(),
            7 => {
                let _ = store.push_dropped(Event { kind: Kind::Dropped, value: store.lost() as u16, ..event(0) });
            }
            10 => store.keep_pairing_key([step as u8; 16]),
            _ => {
                let _ = store.push(event(step));
            }
        }
    }

    #[test]
    fn a_reset_between_any_two_bytes_leaves_the_state_before_or_after() {
        let mut store = mounted(&Memory::ZEROS);
        for step in 0..200 {
            let (before, told_before) = (memory(&store), told(&store));
            do_one(&mut store, step);
            let (after, told_after) = (memory(&store), told(&store));
            let mut torn = before.clone();
            let mut seen = [false; 2];
            let mut look = |torn: &Memory<N>| {
                let found = told(&mounted(torn));
                assert!(found == told_before || found == told_after, "step {step}: {found:?}");
                seen[usize::from(found == told_after)] = true;
            };
            for slot in 0..N {
                for at in 0..EVENT_LEN {
                    torn.events[slot][at] = after.events[slot][at];
                    look(&torn);
                }
            }
            for head in 0..2 {
                for at in 0..HEAD {
                    torn.heads[head][at] = after.heads[head][at];
                    look(&torn);
                }
            }
            assert!(torn == after && (seen[1] || told_before == told_after), "step {step}");
        }
    }

    #[test]
    fn memory_that_lost_its_power_holds_nothing() {
        let mut held = mounted(&Memory::ZEROS);
        held.adopt_epoch(9);
        (0..3).for_each(|value| assert!(held.push(event(value)).is_ok()));
        let good = memory(&held);
        assert_eq!(told(&mounted(&good)).1.len(), 3);
        // Head 0 is the older by now; the newer's checksum covers the events.
        for (slot, at) in [(0, 0), (1, 13), (2, 19)] {
            let mut faded = good.clone();
            faded.events[slot][at] ^= 0x20;
            let found = told(&mounted(&faded));
            assert_ne!(found, told(&held), "slot {slot}, byte {at}");
        }
        let noise = Memory::<N> { heads: [[0x5a; HEAD], [0xff; HEAD]], events: [[0x33; EVENT_LEN]; N] };
        assert_eq!(told(&mounted(&noise)), (0, Vec::new(), 1, 0, None));
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let mut store = WarmStore::<N>::new();
        assert_eq!((store.push(event(1)), store.first(), store.next()), (Err(StoreError::Failed), 1, 1));
    }

    #[test]
    fn a_full_store_takes_nothing_until_it_is_trimmed() {
        let mut store = mounted(&Memory::ZEROS);
        for value in 1..=3 {
            assert_eq!(store.push(event(value)), Ok(u32::from(value)));
        }
        assert_eq!(store.push(event(4)), Err(StoreError::Full));
        store.trim(3);
        assert_eq!((store.first(), store.push(event(5))), (3, Ok(4)));
        assert_eq!(store.event(4).map(|event| (event.seq, event.value)), Some((4, 5)));
    }
}
