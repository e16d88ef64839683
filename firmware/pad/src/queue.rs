//! Where presses wait until the host has them, and where a loss is counted when they cannot.
//!
//! [`FlashStore`](crate::FlashStore) is the [`Store`] of a board with flash, [`WarmStore`](crate::WarmStore) of one without whose memory
//! outlives a reset; [`RamStore`] forgets. A store only keeps
//! records and numbers; what happens when it is full is decided here, once, in [`enqueue`].

use heapless::Deque;
use hone_wire::auth::Key;
use hone_wire::message::{Event, Kind};

/// Durable storage of numbered events. Every change is durable when the call returns: the lamp says "queued" then.
pub trait Store {
    /// Name of the numbering, 0 = none yet.
    fn epoch(&self) -> u32;

    /// Gives the numbering a new name, and numbers what is held from 1, in order. Numbers that the host gave up knowing
    /// cannot be continued. A store that cannot keep the name keeps its old one.
    fn adopt_epoch(&mut self, epoch: u32);

    /// Number of the oldest event held; equal to [`Store::next`] when none is.
    fn first(&self) -> u32;

    /// Number that the next event will get, from 1.
    fn next(&self) -> u32;

    /// Keeps an event and returns its number, which replaces whatever `event.seq` says.
    ///
    /// # Errors
    /// Nothing was kept and no number was used.
    fn push(&mut self, event: Event) -> Result<u32, StoreError>;

    /// The event with this number: present for all of `first..next`, a [`Kind::Diagnostic`] where its record is damaged.
    fn event(&self, seq: u32) -> Option<Event>;

    /// Forgets the events before `upto`.
    fn trim(&mut self, upto: u32);

    /// Presses lost and not yet reported.
    fn lost(&self) -> u32;

    /// Counts one more lost press.
    fn lose(&mut self);

    /// Keeps a [`Kind::Dropped`] event and takes its `value` from [`Store::lost`], **both or neither**: otherwise a power
    /// cut between the two would lose the loss, or tell it twice.
    ///
    /// # Errors
    /// As for [`Store::push`].
    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError>;

    /// Keeps the pad's pairing key, where the store has a place for it; else that is the board's to do, which is asked by
    /// [`Request::KeepPairingKey`](crate::Request::KeepPairingKey).
    fn keep_pairing_key(&mut self, _key: Key) {}

    /// Nothing is pressed, and was not for a while: time for what would be in the way of a press, such as erasing flash.
    fn idle(&mut self) {}
}

/// Why a store kept nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// No room until the host acknowledges.
    Full,
    /// The memory failed.
    Failed,
}

/// Keeps `event`, or counts it as lost. A loss is reported, as an event of its own, before anything that came after it.
///
/// Returns the event's number, or `None` when it was lost.
pub fn enqueue<S: Store>(store: &mut S, event: Event) -> Option<u32> {
    let kept = report_lost(store, event.boot, event.t_ms).and_then(|()| store.push(event));
    if kept.is_err() {
        store.lose();
    }
    kept.ok()
}

/// Turns counted losses into an event, if there are any and there is room. To be called when room was made.
///
/// # Errors
/// The store's, when losses remain unreported.
pub fn report_lost<S: Store>(store: &mut S, boot: u16, now_ms: u32) -> Result<(), StoreError> {
    while store.lost() > 0 {
        let value = u16::try_from(store.lost()).unwrap_or(u16::MAX);
        store.push_dropped(Event { kind: Kind::Dropped, boot, t_ms: now_ms, value, ..Event::default() })?;
    }
    Ok(())
}

/// A store of `N` events in memory. It forgets everything with the power, its epoch too, so the host names a new one.
#[derive(Clone, Debug)]
pub struct RamStore<const N: usize> {
    epoch: u32,
    /// Numbers used.
    used: u32,
    lost: u32,
    events: Deque<Event, N>,
}

impl<const N: usize> RamStore<N> {
    /// An empty store without an epoch.
    #[must_use]
    pub const fn new() -> Self {
        Self { epoch: 0, used: 0, lost: 0, events: Deque::new() }
    }
}

impl<const N: usize> Default for RamStore<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Store for RamStore<N> {
    fn epoch(&self) -> u32 {
        self.epoch
    }

    fn adopt_epoch(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.used = 0;
        for event in &mut self.events {
            self.used += 1;
            event.seq = self.used;
        }
    }

    fn first(&self) -> u32 {
        self.next() - self.events.len() as u32
    }

    fn next(&self) -> u32 {
        self.used + 1
    }

    fn push(&mut self, event: Event) -> Result<u32, StoreError> {
        let seq = self.next();
        self.events.push_back(Event { seq, ..event }).map_err(|_| StoreError::Full)?;
        self.used = seq;
        Ok(seq)
    }

    fn event(&self, seq: u32) -> Option<Event> {
        let index = seq.checked_sub(self.first())?;
        self.events.get(index as usize).copied()
    }

    fn trim(&mut self, upto: u32) {
        while self.first() < upto && self.events.pop_front().is_some() {}
    }

    fn lost(&self) -> u32 {
        self.lost
    }

    fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
    }

    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError> {
        let seq = self.push(event)?;
        self.lost = self.lost.saturating_sub(u32::from(event.value));
        Ok(seq)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn click(value: u16) -> Event {
        Event { kind: Kind::Click, value, ..Event::default() }
    }

    fn held(store: &RamStore<4>) -> Vec<(u32, Kind, u16)> {
        (store.first()..store.next()).map(|seq| store.event(seq).unwrap()).map(|e| (e.seq, e.kind, e.value)).collect()
    }

    #[test]
    fn a_full_queue_reports_how_many_it_lost_before_anything_newer() {
        let mut store = RamStore::<4>::new();
        for value in 1..=9 {
            assert_eq!(enqueue(&mut store, click(value)).is_some(), value <= 4);
        }
        assert_eq!(store.lost(), 5);
        store.trim(3);
        assert!(enqueue(&mut store, click(10)).is_some());
        assert_eq!(
            held(&store),
            [(3, Kind::Click, 3), (4, Kind::Click, 4), (5, Kind::Dropped, 5), (6, Kind::Click, 10)]
        );
        assert_eq!(store.lost(), 0);
    }

    #[test]
    fn a_press_that_finds_room_only_for_the_report_is_counted_in_the_next() {
        let mut store = RamStore::<4>::new();
        (1..=6).for_each(|value| {
            enqueue(&mut store, click(value));
        });
        store.trim(2);
        assert_eq!(enqueue(&mut store, click(7)), None);
        assert_eq!((held(&store)[3], store.lost()), ((5, Kind::Dropped, 2), 1));
    }

    #[test]
    fn losses_beyond_one_events_count_take_several_events() {
        let mut store = RamStore::<4>::new();
        (0..70_000).for_each(|_| store.lose());
        assert_eq!(report_lost(&mut store, 1, 0), Ok(()));
        assert_eq!(held(&store), [(1, Kind::Dropped, u16::MAX), (2, Kind::Dropped, 4465)]);
    }

    #[test]
    fn a_new_epoch_numbers_what_is_held_from_one() {
        let mut store = RamStore::<4>::new();
        (1..=4).for_each(|value| {
            enqueue(&mut store, click(value));
        });
        store.trim(3);
        store.adopt_epoch(9);
        assert_eq!((store.epoch(), store.first(), store.next()), (9, 1, 3));
        assert_eq!(held(&store), [(1, Kind::Click, 3), (2, Kind::Click, 4)]);
        assert_eq!(store.event(0), None);
        assert_eq!(store.event(3), None);
    }
}
