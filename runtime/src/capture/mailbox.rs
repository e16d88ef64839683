//! Between the thread that reads and whoever asks: a bounded queue that keeps the newest, and a thread that ends with it.
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{CaptureError, Event, Frame, Kind, Poll, Source, State, Status, What};
use crate::Note;

/// Events kept for whoever asks.
const EVENTS_KEPT: usize = 64;

/// What happens to a frame when the mailbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The oldest goes: the world does not wait.
    DropOldest,
    /// The producer waits: files do.
    Wait,
}

/// Holds at most `capacity` frames.
pub(super) struct Mailbox {
    inner: Mutex<Inner>,
    changed: Condvar,
    capacity: usize,
    full: Full,
}

struct Inner {
    /// With each frame the number of refusals before it.
    queue: VecDeque<(Frame, u64)>,
    next_seq: u64,
    /// One more than the sequence number last delivered.
    expected_seq: u64,
    refusals_told: u64,
    status: Status,
    events: VecDeque<Event>,
    failure: Option<CaptureError>,
    stop: bool,
}

impl Mailbox {
    pub(super) fn new(capacity: usize, full: Full) -> Mailbox {
        let inner = Inner {
            queue: VecDeque::new(),
            next_seq: 0,
            expected_seq: 0,
            refusals_told: 0,
            status: Status::default(),
            events: VecDeque::new(),
            failure: None,
            stop: false,
        };
        Mailbox { inner: Mutex::new(inner), changed: Condvar::new(), capacity: capacity.max(1), full }
    }

    /// A panic of either side leaves nothing half done here that could not be read.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame in; false when the source is being dropped.
    pub(super) fn push(&self, kind: Kind, notes: Vec<Note>, origin: Option<PathBuf>) -> bool {
        let at = Instant::now();
        let mut inner = self.lock();
        while self.full == Full::Wait && inner.queue.len() >= self.capacity && !inner.stop {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.queue.len() >= self.capacity {
            inner.queue.pop_front();
            inner.status.dropped += 1;
        }
        let frame = Frame { kind, at, seq: inner.next_seq, dropped_before: 0, notes, origin };
        let refused = inner.status.refused;
        inner.queue.push_back((frame, refused));
        inner.next_seq += 1;
        inner.status.came += 1;
        inner.status.state = State::Running;
        let go_on = !inner.stop;
        drop(inner);
        self.changed.notify_all();
        go_on
    }

    /// Counts something that was refused, and says so unless it was the last thing said.
    pub(super) fn refuse(&self, reason: String) {
        let mut inner = self.lock();
        inner.status.refused += 1;
        inner.tell_unless_repeated(What::Refused { reason });
    }

    pub(super) fn tell(&self, what: What) {
        self.lock().tell(what);
    }

    /// Changes what [`Source::status`] says.
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
    }

    pub(super) fn stopped(&self) -> bool {
        self.lock().stop
    }

    /// Waits `pause`, or until the source is dropped; true if it is.
    pub(super) fn sleep(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut inner = self.lock();
        while !inner.stop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn finish(&self, failure: Option<CaptureError>) {
        let mut inner = self.lock();
        inner.status.state = State::Ended;
        inner.failure = failure;
        drop(inner);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// What came before the end is handed out before the end is told.
    pub(super) fn next(&self, timeout: Duration) -> Result<Poll, CaptureError> {
        // A timeout too far for the clock is for ever.
        let until = Instant::now().checked_add(timeout);
        let mut inner = self.lock();
        loop {
            if let Some((mut frame, refused)) = inner.queue.pop_front() {
                frame.dropped_before = frame.seq - inner.expected_seq;
                inner.expected_seq = frame.seq + 1;
                let lost = refused - inner.refusals_told;
                if lost > 0 {
                    frame.notes.push(Note::new("refused", format!("{lost} before this"), "0"));
                    inner.refusals_told = refused;
                }
                inner.status.delivered += 1;
                drop(inner);
                self.changed.notify_all();
                return Ok(Poll::Frame(frame));
            }
            if inner.status.state == State::Ended {
                return inner.failure.take().map_or(Ok(Poll::Ended), Err);
            }
            let left = until.map_or(Duration::from_secs(3600), |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(Poll::Nothing);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn status(&self) -> Status {
        self.lock().status.clone()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().events.drain(..).collect()
    }
}

impl Inner {
    fn tell(&mut self, what: What) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
            self.status.events_lost += 1;
        }
        self.events.push_back(Event { at: Instant::now(), what });
    }

    fn tell_unless_repeated(&mut self, what: What) {
        if self.events.back().is_none_or(|last| last.what != what) {
            self.tell(what);
        }
    }
}

/// A source that is a thread filling a mailbox.
pub(super) struct Threaded {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Threaded {
    /// Starts `work`, which is to return soon after [`Mailbox::stopped`]; the source ends when it does.
    pub(super) fn start(
        spec: &str,
        mailbox: Mailbox,
        work: impl FnOnce(&Mailbox) -> Result<(), CaptureError> + Send + 'static,
    ) -> Result<Box<dyn Source>, CaptureError> {
        let mailbox = Arc::new(mailbox);
        let mut end = End { mailbox: Arc::clone(&mailbox), spec: spec.to_owned(), finished: false };
        let thread = thread::Builder::new()
            .name("hone-capture".into())
            .spawn(move || {
                let result = work(&end.mailbox);
                end.finished = true;
                end.mailbox.finish(result.err());
            })
            .map_err(|error| CaptureError::Thread { spec: spec.to_owned(), detail: error.to_string() })?;
        Ok(Box::new(Threaded { mailbox, thread: Some(thread) }))
    }
}

impl Source for Threaded {
    fn next(&mut self, timeout: Duration) -> Result<Poll, CaptureError> {
        self.mailbox.next(timeout)
    }

    fn status(&self) -> Status {
        self.mailbox.status()
    }

    fn events(&mut self) -> Vec<Event> {
        self.mailbox.events()
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.mailbox.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook and by `End`; nobody is left to tell.
            let _ = thread.join();
        }
    }
}

/// Sees to it that a thread that panics does not leave its reader waiting.
struct End {
    mailbox: Arc<Mailbox>,
    spec: String,
    finished: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.finished {
            let detail = "it panicked, which is a bug in hone".to_string();
            self.mailbox.finish(Some(CaptureError::Thread { spec: self.spec.clone(), detail }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Trigger;

    fn press(n: u64) -> Kind {
        Kind::Trigger(Trigger { line: n.to_string(), pressed: true })
    }

    #[test]
    fn a_full_mailbox_keeps_the_newest_and_says_how_many_went_before_each() {
        let mailbox = Mailbox::new(2, Full::DropOldest);
        for n in 0..5 {
            mailbox.push(press(n), vec![], None);
        }
        let Ok(Poll::Frame(first)) = mailbox.next(Duration::ZERO) else { panic!("two were kept") };
        let Ok(Poll::Frame(second)) = mailbox.next(Duration::ZERO) else { panic!("two were kept") };
        assert_eq!((first.seq, first.dropped_before), (3, 3));
        assert_eq!((second.seq, second.dropped_before), (4, 0));
        assert_eq!(mailbox.next(Duration::ZERO), Ok(Poll::Nothing));
        let status = mailbox.status();
        assert_eq!((status.came, status.delivered, status.dropped), (5, 2, 3));
    }

    #[test]
    fn a_refusal_is_a_note_on_the_next_frame_even_when_the_frame_after_it_was_dropped() {
        let mailbox = Mailbox::new(1, Full::DropOldest);
        mailbox.refuse("too large".into());
        mailbox.push(press(0), vec![], None);
        mailbox.push(press(1), vec![], None);
        let Ok(Poll::Frame(frame)) = mailbox.next(Duration::ZERO) else { panic!("one was kept") };
        assert_eq!(frame.notes, [Note::new("refused", "1 before this", "0")]);
        mailbox.push(press(2), vec![], None);
        let Ok(Poll::Frame(frame)) = mailbox.next(Duration::ZERO) else { panic!("one was kept") };
        assert_eq!(frame.notes, []);
    }

    #[test]
    fn events_nobody_fetches_are_bounded_and_counted_and_a_repeated_refusal_is_told_once() {
        let mailbox = Mailbox::new(1, Full::DropOldest);
        for _ in 0..1000 {
            mailbox.refuse("too large".into());
        }
        assert_eq!(mailbox.events().len(), 1);
        for n in 0..100 {
            mailbox.tell(What::Skipped { bytes: n });
        }
        assert_eq!(mailbox.events().len(), EVENTS_KEPT);
        assert_eq!(mailbox.status().events_lost, 100 - EVENTS_KEPT as u64);
        assert_eq!(mailbox.status().refused, 1000);
    }

    #[test]
    fn a_thread_that_panics_ends_the_source_with_an_error_instead_of_silence() {
        let mailbox = Mailbox::new(1, Full::DropOldest);
        let mut source = Threaded::start("test", mailbox, |_| panic!("on purpose")).unwrap();
        let error = source.next(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, CaptureError::Thread { .. }), "{error}");
        assert_eq!(source.next(Duration::ZERO), Ok(Poll::Ended));
    }

    #[test]
    fn a_producer_of_files_waits_for_its_reader_and_loses_nothing() {
        let mailbox = Mailbox::new(2, Full::Wait);
        let mut source = Threaded::start("test", mailbox, |mailbox| {
            assert!((0..50).all(|n| mailbox.push(press(n), vec![], None)), "nobody dropped the source");
            Ok(())
        })
        .unwrap();
        for n in 0..50 {
            let Ok(Poll::Frame(frame)) = source.next(Duration::from_secs(10)) else { panic!("frame {n} is missing") };
            assert_eq!((frame.seq, frame.dropped_before), (n, 0));
        }
        assert_eq!(source.next(Duration::from_secs(10)), Ok(Poll::Ended));
    }
}
