//! Doubles for the tests of the link: a ledger, a flash that survives restarts, a source of chance.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses its own part")]

pub mod nor;
pub mod script;
pub mod table;

use hone_pad::queue::{Store, StoreError};
use hone_wire::auth::Key;
use hone_wire::host::{Ledger, LedgerError, Received};
use hone_wire::message::Event;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Xorshift: the same run for the same seed, everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % bound
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub fn nonce(&mut self) -> [u8; 8] {
        std::array::from_fn(|_| self.below(256) as u8)
    }
}

/// The result of a future that never waits.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// How the ledger answers the next commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Willing,
    /// Refuses everything that writes.
    Full,
    /// Writes, and then says that it failed.
    LyingFailure,
}

/// A ledger in memory that does **not** look for repeats itself: that is the link's to do.
#[derive(Default)]
pub struct Disk {
    pub marks: HashMap<([u8; 8], u32), u32>,
    pub log: Vec<Received>,
    pub epochs: u32,
    pub mood: Mood,
    pub commits: u32,
    pub refusals: u32,
    pub offered: Option<Key>,
}

impl Ledger for Disk {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        Ok(*self.marks.get(&(*uid, epoch)).unwrap_or(&1))
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        self.commits += 1;
        if self.mood == Mood::Full {
            self.refusals += 1;
            return Err(LedgerError::Full);
        }
        self.log.extend_from_slice(events);
        self.marks.insert((*uid, epoch), events.last().expect("not empty").event.seq + 1);
        if self.mood == Mood::LyingFailure {
            self.refusals += 1;
            return Err(LedgerError::Failed);
        }
        Ok(())
    }

    fn new_epoch(&mut self, _uid: &[u8; 8]) -> Result<u32, LedgerError> {
        if self.mood == Mood::Full {
            return Err(LedgerError::Full);
        }
        self.epochs += 1;
        Ok(self.epochs)
    }

    fn keep_offered_key(&mut self, _uid: &[u8; 8], key: &Key) -> Result<(), LedgerError> {
        if self.mood == Mood::Full {
            return Err(LedgerError::Full);
        }
        self.offered = Some(*key);
        Ok(())
    }
}

/// A store that outlives the pad, as flash does; with `durable` unset it forgets, as memory does.
#[derive(Clone)]
pub struct Flash(pub Rc<RefCell<Cells>>);

pub struct Cells {
    pub epoch: u32,
    pub next: u32,
    pub lost: u32,
    pub capacity: usize,
    pub events: VecDeque<Event>,
}

impl Flash {
    pub fn new(capacity: usize) -> Self {
        Self(Rc::new(RefCell::new(Cells { epoch: 0, next: 1, lost: 0, capacity, events: VecDeque::new() })))
    }

    pub fn held(&self) -> Vec<Event> {
        self.0.borrow().events.iter().copied().collect()
    }

    /// What a power cut does to memory.
    pub fn wipe(&self) {
        let mut cells = self.0.borrow_mut();
        (cells.epoch, cells.next, cells.lost) = (0, 1, 0);
        cells.events.clear();
    }
}

impl Store for Flash {
    fn epoch(&self) -> u32 {
        self.0.borrow().epoch
    }

    fn adopt_epoch(&mut self, epoch: u32) {
        let mut cells = self.0.borrow_mut();
        cells.epoch = epoch;
        for (event, seq) in cells.events.iter_mut().zip(1..) {
            event.seq = seq;
        }
        cells.next = cells.events.len() as u32 + 1;
    }

    fn first(&self) -> u32 {
        let cells = self.0.borrow();
        cells.next - cells.events.len() as u32
    }

    fn next(&self) -> u32 {
        self.0.borrow().next
    }

    fn push(&mut self, event: Event) -> Result<u32, StoreError> {
        let mut cells = self.0.borrow_mut();
        if cells.events.len() == cells.capacity {
            return Err(StoreError::Full);
        }
        let seq = cells.next;
        cells.events.push_back(Event { seq, ..event });
        cells.next += 1;
        Ok(seq)
    }

    fn event(&self, seq: u32) -> Option<Event> {
        let index = seq.checked_sub(self.first())?;
        self.0.borrow().events.get(index as usize).copied()
    }

    fn trim(&mut self, upto: u32) {
        while self.first() < upto && self.0.borrow_mut().events.pop_front().is_some() {}
    }

    fn lost(&self) -> u32 {
        self.0.borrow().lost
    }

    fn lose(&mut self) {
        self.0.borrow_mut().lost += 1;
    }

    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError> {
        let seq = self.push(event)?;
        self.0.borrow_mut().lost -= u32::from(event.value);
        Ok(seq)
    }
}
