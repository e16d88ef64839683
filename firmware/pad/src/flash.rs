//! The queue in NOR flash: presses, numbering, losses and the pairing key outlive every reset and power cut.
//!
//! ```text
//! │ page 0 │ page 1 │ page 2 │ page 3 │ …
//! ├─── settings ────┼──────── events ────────
//! ```
//! Each page is a queue of `sequential-storage` 8: it knows where an item ends, whether it is whole, and what a torn write
//! has spoilt. Its format changes with its major version, and each record begins with [`FORMAT`] for the rest. The **order
//! of pages** is by the serial numbers in our records, not by the library's page marks: an interrupted erase leaves a page
//! undefined, and a ring that believes its marks can then lose the pages that are whole (the test with ragged tears shows
//! it). When a page is full the next one is erased and used.
//!
//! A record is whole or absent, so each change below is **one** record:
//!
//! * *settings*: the newest record counts. It has its own serial number, the boot count, the name of the numbering and where it begins, all
//!   presses ever lost, what the host has, and the key.
//! * *events*: each with its serial number, and with how many lost presses had been reported when it was made. So the
//!   report of a loss and the end of the loss are one write.
//!
//! Serial numbers never start anew while the flash holds; an event's number on the wire is its serial number less `base`,
//! so a new epoch numbers everything held from 1 by one settings record.
//!
//! The ring never overwrites what the host has not acknowledged: before a page is erased its records are read, and while one
//! of them is still needed the store is full. A page is erased ahead of need once nothing in it is, in [`Store::idle`], for
//! the processor stands still meanwhile. Reads come from a copy in memory.
//!
//! Flash is never assumed blank: what cannot be read is erased, and then the numbering has no name, so the host gives one.

use crate::queue::{Store, StoreError};
use core::ops::Range;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use embedded_storage_async::nor_flash as nor_async;
use heapless::Deque;
use hone_wire::auth::Key;
use hone_wire::message::{EVENT_LEN, Event, Kind};
use sequential_storage::cache::Cache;
use sequential_storage::queue::{QueueConfig, QueueStorage};

/// First byte of each record. A store of another format is not read but begun anew.
pub const FORMAT: u8 = 1;
/// Erasable pages of the settings.
const SETTINGS_PAGES: u32 = 2;
/// Fewest pages of a store.
pub const MIN_PAGES: u32 = SETTINGS_PAGES + 2;

/// `FORMAT`, three zero bytes, losses reported, the event with its serial number.
const EVENT_RECORD: usize = 8 + EVENT_LEN;
const SETTINGS_RECORD: usize = 44;

/// What the newest settings record says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settings {
    boot: u16,
    /// Rises from record to record.
    serial: u32,
    epoch: u32,
    /// Serial number of the event before number 1.
    base: u32,
    /// Presses ever lost, wrapping.
    lost: u32,
    /// Serial number of the oldest event that the host may not have.
    first: u32,
    /// No serial number below this is free.
    next: u32,
    key: Option<Key>,
}

impl Settings {
    const NEW: Self = Self { boot: 0, serial: 0, epoch: 0, base: 0, lost: 0, first: 1, next: 1, key: None };

    fn to_bytes(self) -> [u8; SETTINGS_RECORD] {
        let mut bytes = [0; SETTINGS_RECORD];
        bytes[0] = FORMAT;
        bytes[1] = u8::from(self.key.is_some());
        bytes[2..4].copy_from_slice(&self.boot.to_le_bytes());
        let fields = [self.serial, self.epoch, self.base, self.lost, self.first, self.next];
        for (at, value) in fields.into_iter().enumerate() {
            bytes[4 + 4 * at..][..4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[28..].copy_from_slice(&self.key.unwrap_or_default());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SETTINGS_RECORD] = bytes.try_into().ok().filter(|bytes: &&[u8; _]| bytes[0] == FORMAT)?;
        let field = |at: usize| word(&bytes[4 + 4 * at..]);
        let mut key = Key::default();
        key.copy_from_slice(&bytes[28..]);
        Some(Self {
            boot: u16::from_le_bytes([bytes[2], bytes[3]]),
            serial: field(0),
            epoch: field(1),
            base: field(2),
            lost: field(3),
            first: field(4),
            next: field(5),
            key: (bytes[1] == 1).then_some(key),
        })
    }
}

/// Where the flash will be. Numbered from 0 so that an idle store is zeros, which `Option` does not promise.
#[repr(u8)]
#[derive(Clone, Debug)]
enum Slot<F> {
    Empty,
    Full(F),
}

impl<F> Slot<F> {
    fn get(&mut self) -> Result<&mut F, StoreError> {
        match self {
            Slot::Empty => Err(StoreError::Failed),
            Slot::Full(flash) => Ok(flash),
        }
    }
}

/// Up to `N` events in a range of flash.
#[derive(Clone, Debug)]
pub struct FlashStore<F, const N: usize> {
    flash: Slot<F>,
    range: Range<u32>,
    settings: Settings,
    /// The page in use, of the settings and of the events.
    page: [u32; 2],
    /// Serial number of the next event.
    next: u32,
    /// Losses reported by the events so far, wrapping.
    reported: u32,
    /// Whether the page after the one in use may be neither blank nor known to be still needed.
    unseen: [bool; 2],
    /// The events from `next - held.len()`.
    held: Deque<Event, N>,
}

impl<F: NorFlash, const N: usize> FlashStore<F, N> {
    /// A store without flash, which keeps nothing; [`FlashStore::mount`] gives it some.
    ///
    /// A constant, and one of zeros only; see [`crate::Pad::idle`].
    #[must_use]
    pub const fn idle() -> Self {
        Self {
            flash: Slot::Empty,
            range: 0..0,
            settings: Settings { first: 0, next: 0, ..Settings::NEW },
            page: [0; 2],
            next: 0,
            reported: 0,
            unseen: [false; 2],
            held: Deque::new(),
        }
    }

    /// Takes up what the flash holds in `range`, which is in bytes, of at least [`MIN_PAGES`] whole pages, and counts this
    /// boot. To be called once, before anything else.
    ///
    /// # Errors
    /// When the flash cannot be written, or its range is not whole pages. Presses are then counted as lost.
    pub fn mount(&mut self, flash: F, range: Range<u32>) -> Result<(), StoreError> {
        (self.settings, self.next, self.unseen) = (Settings::NEW, 1, [true; 2]);
        let pages = (range.end - range.start) / F::ERASE_SIZE as u32;
        if pages < MIN_PAGES || !(range.end - range.start).is_multiple_of(F::ERASE_SIZE as u32) {
            return Err(StoreError::Failed);
        }
        (self.flash, self.range) = (Slot::Full(flash), range);
        self.load_settings()?;
        self.load()?;
        if self.held.is_empty() {
            self.settings.first = self.next;
        }
        if self.settings.base >= self.serial_first() {
            self.forget_numbering();
        }
        self.settings.boot = self.settings.boot.wrapping_add(1);
        self.save()
    }

    /// Number of this boot; one more than the last one's, from 1.
    #[must_use]
    pub fn boot(&self) -> u16 {
        self.settings.boot
    }

    /// The key that the pad was paired with.
    #[must_use]
    pub fn pairing_key(&self) -> Option<Key> {
        self.settings.key
    }

    fn load_settings(&mut self) -> Result<(), StoreError> {
        let mut newest = Settings::NEW;
        for page in 0..self.pages(Part::Settings) {
            let before = newest.serial;
            self.each(Part::Settings, page, &mut |record| {
                newest = Settings::from_bytes(record).filter(|found| found.serial > newest.serial).unwrap_or(newest);
            });
            if newest.serial > before {
                self.page[Part::Settings as usize] = page;
            }
        }
        self.settings = newest;
        self.clear_unless(newest.serial > 0, Part::Settings)
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let (mut newest, mut reported) = (0, self.settings.lost);
        for page in 0..self.pages(Part::Events) {
            let before = newest;
            self.each(Part::Events, page, &mut |record| {
                if let Some((event, told)) = event_from(record).filter(|(event, _)| event.seq > newest) {
                    (newest, reported) = (event.seq, told);
                }
            });
            if newest > before {
                self.page[Part::Events as usize] = page;
            }
        }
        let mut run = Run { held: core::mem::take(&mut self.held), next: self.settings.first };
        let pages = self.pages(Part::Events);
        // The page after the one in use is the oldest.
        for i in 1..=pages {
            let page = (self.page[Part::Events as usize] + i) % pages;
            self.each(Part::Events, page, &mut |record| {
                if let Some((event, _)) = event_from(record) {
                    // A damaged record keeps its number, or all after it would have another.
                    run.fill(event.seq);
                    run.push(event);
                }
            });
        }
        // Numbers were used of which the flash knows nothing any more.
        let lost = newest + 1 < self.settings.next;
        run.fill(self.settings.next);
        (self.held, self.next, self.reported) = (run.held, run.next, reported);
        if lost {
            self.forget_numbering();
        }
        self.clear_unless(newest > 0, Part::Events)
    }

    /// Begins a part anew in which nothing of ours was found.
    fn clear_unless(&mut self, found: bool, part: Part) -> Result<(), StoreError> {
        for page in 0..if found { 0 } else { self.pages(part) } {
            self.clear(part, page)?;
        }
        Ok(())
    }

    /// Takes the numbering's name away, so that the host gives a new one.
    fn forget_numbering(&mut self) {
        self.settings.epoch = 0;
        self.settings.base = self.serial_first() - 1;
    }

    fn serial_first(&self) -> u32 {
        self.next - self.held.len() as u32
    }

    /// Whether nothing in a page, which is not the one in use, is needed any more.
    fn is_spent(&mut self, part: Part, page: u32) -> bool {
        let (used, serial, oldest) = (self.page[part as usize], self.settings.serial, self.serial_first());
        let mut spent = match part {
            Part::Events => true,
            // The newest record is to be seen where it should be.
            Part::Settings => false,
        };
        let look = if part == Part::Events { page } else { used };
        self.each(part, look, &mut |record| match part {
            Part::Events => spent &= event_from(record).is_none_or(|(event, _)| event.seq < oldest),
            Part::Settings => spent |= Settings::from_bytes(record).is_some_and(|found| found.serial == serial),
        });
        spent
    }

    fn page_after(&self, part: Part) -> u32 {
        (self.page[part as usize] + 1) % self.pages(part)
    }

    fn keep(&mut self, event: Event, reported: u32) -> Result<u32, StoreError> {
        self.flash.get()?;
        if self.held.is_full() {
            return Err(StoreError::Full);
        }
        let event = Event { seq: self.next, ..event };
        let mut record = [0; EVENT_RECORD];
        record[0] = FORMAT;
        record[4..8].copy_from_slice(&reported.to_le_bytes());
        record[8..].copy_from_slice(&event.to_bytes());
        self.append(Part::Events, &record)?;
        // There was room.
        let _ = self.held.push_back(event);
        self.next += 1;
        self.reported = reported;
        Ok(event.seq - self.settings.base)
    }

    fn save(&mut self) -> Result<(), StoreError> {
        self.settings.next = self.next;
        self.settings.serial += 1;
        let record = self.settings.to_bytes();
        self.append(Part::Settings, &record)
    }

    fn pages(&self, part: Part) -> u32 {
        match part {
            Part::Settings => SETTINGS_PAGES,
            Part::Events => (self.range.end - self.range.start) / F::ERASE_SIZE as u32 - SETTINGS_PAGES,
        }
    }

    fn page_range(&self, part: Part, page: u32) -> Range<u32> {
        let before = if part == Part::Events { SETTINGS_PAGES } else { 0 };
        let start = self.range.start + (before + page) * F::ERASE_SIZE as u32;
        start..start + F::ERASE_SIZE as u32
    }

    fn queue(&mut self, range: Range<u32>) -> Result<QueueStorage<Blocking<&mut F>, Uncached>, StoreError> {
        let config = QueueConfig::try_new(range).map_err(|_| StoreError::Failed)?;
        let flash = self.flash.get()?;
        Ok(QueueStorage::new(Blocking(flash), config, Cache::new_uncached()))
    }

    /// Writes a record to the page in use, or to the next where that is full, which is erased if it was not before.
    fn append(&mut self, part: Part, record: &[u8]) -> Result<(), StoreError> {
        let page = self.page[part as usize];
        match self.push_to(self.page_range(part, page), record) {
            Err(StoreError::Full) => {}
            written => return written,
        }
        let page = self.page_after(part);
        if part == Part::Events && !self.is_spent(part, page) {
            return Err(StoreError::Full);
        }
        self.clear(part, page)?;
        self.page[part as usize] = page;
        self.unseen[part as usize] = true;
        self.push_to(self.page_range(part, page), record)
    }

    /// Erases a page that is not blank.
    fn clear(&mut self, part: Part, page: u32) -> Result<(), StoreError> {
        let range = self.page_range(part, page);
        let flash = self.flash.get()?;
        let mut bytes = [0; 64];
        for at in range.clone().step_by(bytes.len()) {
            flash.read(at, &mut bytes).map_err(|_| StoreError::Failed)?;
            if bytes.iter().any(|byte| *byte != 0xff) {
                return flash.erase(range.start, range.end).map_err(|_| StoreError::Failed);
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn push_to(&mut self, range: Range<u32>, record: &[u8]) -> Result<(), StoreError> {
        let mut queue = self.queue(range)?;
        finish(queue.push(record, false)).map_err(|error| match error {
            sequential_storage::Error::FullStorage => StoreError::Full,
            _ => StoreError::Failed,
        })
    }

    /// Visits the records of a page, in order. What cannot be read is passed over: an interrupted erase, other firmware.
    #[inline(never)]
    fn each(&mut self, part: Part, page: u32, visit: &mut dyn FnMut(&[u8])) {
        let Ok(mut queue) = self.queue(self.page_range(part, page)) else { return };
        finish(async {
            let mut buffer = [0; 64];
            let Ok(mut records) = queue.iter().await else { return };
            while let Ok(Some(record)) = records.next(&mut buffer).await {
                visit(&record);
            }
        });
    }
}

/// One of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Settings,
    Events,
}

/// In place of an event whose record cannot be read. Its `boot` is unknown.
const DAMAGED: Event =
    Event { seq: 0, t_ms: 0, boot: 0, kind: Kind::Diagnostic, src: 0, value: 0, dur_10ms: 0, prompt: 0 };

/// Events with consecutive serial numbers, as they are read.
struct Run<const N: usize> {
    held: Deque<Event, N>,
    next: u32,
}

impl<const N: usize> Run<N> {
    /// Takes an event that is not older than what the host has.
    fn push(&mut self, event: Event) {
        if event.seq != self.next {
            return;
        }
        if self.held.is_full() {
            self.held.pop_front();
        }
        // There is room now.
        let _ = self.held.push_back(event);
        self.next += 1;
    }

    /// Makes good for the records missing before `next`.
    fn fill(&mut self, next: u32) {
        if next.saturating_sub(self.next) > N as u32 {
            self.held.clear();
            self.next = next;
        }
        while self.next < next {
            self.push(Event { seq: self.next, ..DAMAGED });
        }
    }
}

/// The event in a record with the losses reported by then.
fn event_from(record: &[u8]) -> Option<(Event, u32)> {
    let record: &[u8; EVENT_RECORD] = record.try_into().ok().filter(|record: &&[u8; _]| record[0] == FORMAT)?;
    let (head, event) = record.split_at(8);
    let event = Event::from_bytes(event.try_into().ok()?);
    (event.seq > 0 && event.seq < u32::MAX).then_some((event, word(&head[4..])))
}

fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

impl<F: NorFlash, const N: usize> Store for FlashStore<F, N> {
    fn epoch(&self) -> u32 {
        self.settings.epoch
    }

    fn adopt_epoch(&mut self, epoch: u32) {
        let before = self.settings;
        self.settings.epoch = epoch;
        self.settings.base = self.serial_first() - 1;
        self.settings.first = self.serial_first();
        if self.save().is_err() {
            // After a reset it would be told under its old name again, and recorded twice.
            self.settings = before;
        }
    }

    fn first(&self) -> u32 {
        self.serial_first() - self.settings.base
    }

    fn next(&self) -> u32 {
        self.next - self.settings.base
    }

    fn push(&mut self, event: Event) -> Result<u32, StoreError> {
        self.keep(event, self.reported)
    }

    fn event(&self, seq: u32) -> Option<Event> {
        let index = seq.checked_sub(self.first())?;
        let event = self.held.get(index as usize)?;
        Some(Event { seq, ..*event })
    }

    fn trim(&mut self, upto: u32) {
        let before = self.held.len();
        while self.first() < upto && self.held.pop_front().is_some() {}
        if self.held.len() < before {
            self.settings.first = self.serial_first();
            self.unseen = [true; 2];
            // If the flash fails, the events are offered again after a reset, and the host knows them.
            let _ = self.save();
        }
    }

    fn lost(&self) -> u32 {
        self.settings.lost.wrapping_sub(self.reported)
    }

    fn lose(&mut self) {
        self.settings.lost = self.settings.lost.wrapping_add(1);
        // A flash that fails now has lost the press itself, too; the count goes out with the next record that it takes.
        let _ = self.save();
    }

    fn push_dropped(&mut self, event: Event) -> Result<u32, StoreError> {
        self.keep(event, self.reported.wrapping_add(u32::from(event.value)))
    }

    fn keep_pairing_key(&mut self, key: Key) {
        self.settings.key = Some(key);
        let _ = self.save();
    }

    fn idle(&mut self) {
        for part in [Part::Settings, Part::Events] {
            if core::mem::take(&mut self.unseen[part as usize]) {
                let page = self.page_after(part);
                if self.is_spent(part, page) {
                    // A flash that fails now fails again when the page is needed, and says so then.
                    let _ = self.clear(part, page);
                }
                return;
            }
        }
    }
}

type Uncached = Cache<
    sequential_storage::cache::Uncached,
    sequential_storage::cache::Uncached,
    sequential_storage::cache::Uncached,
    (),
>;

/// Flash whose every operation is over when the call returns, as the asynchronous traits want it.
struct Blocking<F>(F);

impl<F: ErrorType> ErrorType for Blocking<F> {
    type Error = F::Error;
}

impl<F: ReadNorFlash> nor_async::ReadNorFlash for Blocking<F> {
    const READ_SIZE: usize = F::READ_SIZE;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.read(offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl<F: NorFlash> nor_async::NorFlash for Blocking<F> {
    const WRITE_SIZE: usize = F::WRITE_SIZE;
    const ERASE_SIZE: usize = F::ERASE_SIZE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        self.0.erase(from, to)
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.write(offset, bytes)
    }
}

/// The result of a future that never waits, as all over [`Blocking`] are.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
}
