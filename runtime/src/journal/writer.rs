//! The one writer: every method that returns has made its records durable, except [`Journal::inference`].
use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::body::{Body, EpochBody, NoteBody, PadBody, PadRef, RedactionBody};
use super::reader::Reader;
use super::record::{
    AdapterEvent, ClassesEvent, Digest, Inference, PadEvent, PadPress, Press, PressId, Shown, Source, check_uid,
};
use super::resolve::PressStatus;
use super::sql::{self, Stored};
use super::{Blobs, Clock, Options, Stamp, StoreError};
use crate::state::{StateDir, WriterLock};

/// Inference records wait at most this long for company.
pub const GROUP_NS: u64 = 1_000_000_000;
/// Inference records that may wait; one more is an error of the flush that did not succeed.
const MAX_PENDING: usize = 4_096;
/// How far prediction ids jump after an unclean stop, so that a prompt still on a pad's screen is never mistaken.
const UNCLEAN_JUMP: u64 = 1_000;
/// Records whose chain is checked when the last stop was unclean.
const TAIL_CHECKED: u64 = 1_000;

/// The journal, open for writing. One per state directory: it holds the [`WriterLock`].
pub struct Journal {
    reader: Reader,
    lock: WriterLock,
    clock: Box<dyn Clock>,
    max_pages: Option<u32>,
    /// Number and chain of the last record that was acknowledged.
    head: (u64, Digest),
    next_prediction: u64,
    pending: Vec<(Stamp, String, Body)>,
    /// False between a failed write and the reopening that verifies what is there.
    trusted: bool,
    closed: bool,
}

/// What a commit of a pad's events came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PadCommit {
    /// The number the journal expects next from this pad: acknowledge everything below it.
    pub next: u32,
    /// The presses recorded by this call, in order; replays add nothing.
    pub recorded: Vec<PressId>,
}

/// What is to be made unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redact {
    /// Everything a source said.
    Source(Source),
    /// Everything said with a badge, on whichever pad, and every time it was shown.
    Badge(u16),
    /// A prediction, its kept inputs, and every press about it.
    Prediction(u32),
}

/// What a redaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redacted {
    /// Records made unreadable by this call.
    pub records: u64,
    /// Blobs removed, no readable record referring to them any more.
    pub blobs: u64,
}

/// One open transaction: what it appends and where the journal will stand when it commits.
struct Batch<'a> {
    tx: &'a Transaction<'a>,
    state: &'a StateDir,
    stamp: Stamp,
    head: (u64, Digest),
    next_prediction: u64,
}

impl Journal {
    /// Opens the journal of the locked state directory; makes it when there is none.
    ///
    /// After a stop that was not [`Journal::close`] or a drop, the database and the chain of the newest records are
    /// checked, and prediction ids go on 1,000 higher.
    ///
    /// # Errors
    /// [`StoreError::Full`] also when there is no room for the write-ahead log (1 MiB); [`StoreError::Damaged`],
    /// [`StoreError::NotAJournal`], [`StoreError::Newer`], or trouble with the disk.
    pub fn open(lock: WriterLock) -> Result<Journal, StoreError> {
        Journal::open_with(lock, Options::default())
    }

    /// [`Journal::open`] with a clock and bounds of its own.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_with(lock: WriterLock, options: Options) -> Result<Journal, StoreError> {
        let state = lock.state().clone();
        let path = state.journal_db();
        let fail = |e| StoreError::sql(&path, e);
        let conn = sql::connect(&state, options.max_pages)?;
        let mut next_prediction = sql::next_prediction(&conn).map_err(fail)?;
        let was_clean = sql::meta(&conn, "clean").map_err(fail)? != Some(0);
        if !was_clean {
            check_after_unclean_stop(&conn, &state)?;
            next_prediction += UNCLEAN_JUMP;
        }
        // An empty log closes away, and its successor starts with its full length. A reader in the way only costs that.
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail)?;
        conn.close().map_err(|(_, e)| fail(e))?;
        sql::presize_wal(&state)?;

        let mut conn = sql::connect(&state, options.max_pages)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        sql::set_meta(&tx, "clean", 0).map_err(fail)?;
        sql::set_meta(&tx, "next_prediction_id", next_prediction as i64).map_err(fail)?;
        tx.commit().map_err(fail)?;
        let head = sql::head(&conn).map_err(fail)?;
        Ok(Journal {
            reader: Reader::over(conn, state),
            lock,
            clock: options.clock,
            max_pages: options.max_pages,
            head,
            next_prediction,
            pending: Vec::new(),
            trusted: true,
            closed: false,
        })
    }

    /// The reading half, on the writer's own connection: sees every record acknowledged so far.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The directory this journal lies in.
    pub fn state(&self) -> &StateDir {
        self.lock.state()
    }

    /// Records an answer before it is put before a person, and gives it its id: rising, also across restarts, from 1.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for values that are not finite, no probability, or inputs that are not in `blobs/`.
    pub fn shown(&mut self, shown: &Shown) -> Result<u32, StoreError> {
        self.commit(|batch| {
            let id =
                u32::try_from(batch.next_prediction).map_err(|_| StoreError::Exhausted { what: "prediction ids" })?;
            batch.append(Body::Shown(shown.to_body(id)?))?;
            batch.next_prediction += 1;
            Ok(id)
        })
    }

    /// As [`Journal::shown`], for a class offered in the place of the refused prediction `after` of the same sample.
    ///
    /// # Errors
    /// As [`Journal::shown`]; [`StoreError::Unfit`] when `after` was never shown.
    pub fn offered(&mut self, shown: &Shown, after: u32) -> Result<u32, StoreError> {
        self.commit(|batch| {
            if !sql::is_shown(batch.tx, after).map_err(batch.fail())? {
                let reason = format!("prediction {after} was never shown");
                return Err(StoreError::Unfit { field: "after", reason });
            }
            let id =
                u32::try_from(batch.next_prediction).map_err(|_| StoreError::Exhausted { what: "prediction ids" })?;
            let body = super::body::ShownBody { after: Some(after), ..shown.to_body(id)? };
            batch.append(Body::Shown(body))?;
            batch.next_prediction += 1;
            Ok(id)
        })
    }

    /// Takes an inference record that nobody is asked about. It is durable with the next record of any other kind, with
    /// [`Journal::flush`], or when the oldest one waiting is a second old and another one comes.
    ///
    /// # Errors
    /// [`StoreError::Unfit`]; or that of the flush, when one was due: the record then waits on, at most 4,096 of them.
    pub fn inference(&mut self, inference: &Inference) -> Result<(), StoreError> {
        let body = Body::Inference(inference.to_body()?);
        let text = body.canonical()?;
        if self.pending.len() >= MAX_PENDING {
            self.flush()?;
        }
        let stamp = self.clock.now();
        let due = self.pending.first().is_some_and(|(first, ..)| {
            first.boot_id != stamp.boot_id || stamp.mono_ns.saturating_sub(first.mono_ns) >= GROUP_NS
        });
        self.pending.push((stamp, text, body));
        if due { self.flush() } else { Ok(()) }
    }

    /// Makes the waiting inference records durable.
    ///
    /// # Errors
    /// Trouble with the disk; the records wait on.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() { Ok(()) } else { self.commit(|_| Ok(())) }
    }

    /// Records what a person said. Acknowledge it to the person only after this returns.
    ///
    /// After an error the press may be handed in again: should the failed commit have reached the disk after all, the
    /// two are one press about one prediction.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for stars beyond 1..=5, a demonstration with a prediction id, or a feature not finite.
    pub fn press(&mut self, press: &Press) -> Result<PressId, StoreError> {
        self.commit(|batch| batch.press(press, None))
    }

    /// Records a run of events of a pad and moves its mark, in one transaction.
    ///
    /// Events below the mark are replays and change nothing; an event above it is a hole, where the run ends, unless it is a [`PadEvent::Gap`]. So any
    /// run may be handed in any number of times.
    ///
    /// # Errors
    /// [`StoreError::Epoch`] unless `epoch` is the one assigned to the pad; as [`Journal::press`] otherwise, and then
    /// nothing of the run is recorded.
    pub fn pad_commit(&mut self, uid: &str, epoch: u32, events: &[PadPress]) -> Result<PadCommit, StoreError> {
        check_uid(uid)?;
        self.commit(|batch| {
            let current = batch.epoch(uid)?;
            if current != Some(epoch) {
                return Err(StoreError::Epoch { uid: uid.to_string(), epoch, current });
            }
            let mut done = PadCommit { next: batch.mark(uid, epoch)?, recorded: Vec::new() };
            let began = done.next;
            for event in events {
                if event.seq > done.next && !matches!(event.event, PadEvent::Gap { .. }) {
                    break;
                }
                if event.seq < done.next {
                    continue;
                }
                let pad = PadRef { uid: uid.to_string(), epoch, seq: event.seq };
                match &event.event {
                    PadEvent::Press(press) => {
                        let press = Press { source: Source::Pad(uid.to_string()), ..press.clone() };
                        done.recorded.push(batch.press(&press, Some(pad))?);
                    }
                    PadEvent::Gap { missing } => {
                        let detail = format!("{missing} numbers before this one will never come");
                        batch.append(Body::Pad(PadBody { pad, name: "gap".to_string(), detail }))?;
                    }
                    PadEvent::Other { name, detail } => {
                        batch.append(Body::Pad(PadBody { pad, name: name.clone(), detail: detail.clone() }))?;
                    }
                }
                done.next = event.seq.checked_add(1).ok_or(StoreError::Exhausted { what: "the pad's epoch" })?;
            }
            if done.next != began {
                batch.set_mark(uid, epoch, done.next)?;
            }
            Ok(done)
        })
    }

    /// Assigns a pad whose numbering was lost a new epoch, which nobody has given it before; it counts from 1.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a malformed uid, or trouble with the disk.
    pub fn new_epoch(&mut self, uid: &str) -> Result<u32, StoreError> {
        check_uid(uid)?;
        self.commit(|batch| {
            let random = |error: getrandom::Error| StoreError::Random { detail: error.to_string() };
            let mut epoch = fresh_epoch().map_err(random)?;
            while mark_of(batch.tx, uid, epoch).map_err(batch.fail())?.is_some() {
                epoch = fresh_epoch().map_err(random)?;
            }
            batch.assign(uid, epoch, 1)?;
            Ok(epoch)
        })
    }

    /// Takes over a numbering of a pad that this journal did not assign: the pad is older than this state directory, or
    /// another host has renumbered it since. A mark known from before stays; else the pad's next number is `next`.
    ///
    /// # Errors
    /// [`StoreError::Epoch`] when that epoch is in force already; [`StoreError::Unfit`] when `epoch` or `next` is 0.
    pub fn adopt_epoch(&mut self, uid: &str, epoch: u32, next: u32) -> Result<(), StoreError> {
        check_uid(uid)?;
        if epoch == 0 || next == 0 {
            return Err(StoreError::Unfit {
                field: "pad epoch",
                reason: "epochs and numbers count from 1".to_string(),
            });
        }
        self.commit(|batch| match batch.epoch(uid)? {
            current if current == Some(epoch) => Err(StoreError::Epoch { uid: uid.to_string(), epoch, current }),
            _ => {
                let known = mark_of(batch.tx, uid, epoch).map_err(batch.fail())?;
                batch.assign(uid, epoch, known.unwrap_or(next))
            }
        })
    }

    /// Records what happened to an adapter; returns the `seq` of the record.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a figure that is not finite.
    pub fn adapter(&mut self, event: &AdapterEvent) -> Result<u64, StoreError> {
        event.check()?;
        self.commit(|batch| batch.append(Body::Adapter(event.clone())))
    }

    /// Records a change of the classes a model knows; returns the `seq` of the record.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a name that is empty, too long, or holds control characters.
    pub fn classes(&mut self, event: &ClassesEvent) -> Result<u64, StoreError> {
        event.check()?;
        self.commit(|batch| batch.append(Body::Classes(event.clone())))
    }

    /// Records a line of text; returns the `seq` of the record.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when it is too long.
    pub fn note(&mut self, text: &str) -> Result<u64, StoreError> {
        self.commit(|batch| batch.append(Body::Note(NoteBody { text: text.to_string() })))
    }

    /// Makes records unreadable for good: their payload is overwritten, their digest stays, so the chain still verifies.
    ///
    /// A redaction is itself a record, listing what it took. Undone presses of others stay undone. Blobs no readable
    /// record refers to any more are removed. Nothing to redact is not an error and leaves no record.
    ///
    /// # Errors
    /// Trouble with the disk. When the blobs could not be removed the records are redacted nevertheless; call again.
    pub fn redact(&mut self, what: &Redact) -> Result<Redacted, StoreError> {
        let state = self.state().clone();
        let statuses = self.reader.statuses()?;
        let (records, candidates) = self.commit(|batch| {
            let seqs = batch.redactable(what)?;
            let mut undone = Vec::new();
            let mut candidates = BTreeSet::new();
            for &seq in &seqs {
                candidates.extend(batch.inputs_of(seq)?);
                if let Some(PressStatus::Undo { of: Some(press) }) = statuses.get(&PressId(seq))
                    && !seqs.contains(&press.0)
                {
                    undone.push((PressId(seq), *press));
                }
            }
            if !seqs.is_empty() {
                let fail = batch.fail();
                for &seq in &seqs {
                    let seq = seq as i64;
                    batch.tx.execute("DELETE FROM press WHERE press_id=?", [seq]).map_err(&fail)?;
                    batch.tx.execute("UPDATE records SET payload=NULL WHERE seq=?", [seq]).map_err(&fail)?;
                }
                for &seq in &seqs {
                    batch.tx.execute("DELETE FROM shown WHERE seq=?", [seq as i64]).map_err(&fail)?;
                }
                // The highest id may just have left the table it is read from.
                sql::set_meta(batch.tx, "next_prediction_id", batch.next_prediction as i64).map_err(&fail)?;
                batch.append(Body::Redaction(RedactionBody { seqs: seqs.iter().copied().collect(), undone }))?;
            }
            Ok((seqs.len() as u64, candidates))
        })?;
        let fail = |e| StoreError::sql(&state.journal_db(), e);
        if records > 0 {
            // The old payloads still stand in the log until it is folded in and begun anew.
            let conn = self.reader.conn();
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail)?;
        }
        let kept = if candidates.is_empty() { BTreeSet::new() } else { self.reader.referenced_blobs()? };
        let blobs = Blobs::new(&state);
        let mut removed = 0;
        for digest in candidates.difference(&kept) {
            blobs.remove(digest)?;
            removed += 1;
        }
        Ok(Redacted { records, blobs: removed })
    }

    /// Flushes and marks the stop as clean.
    ///
    /// # Errors
    /// Trouble with the disk; the stop then counts as unclean.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), StoreError> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        self.commit(|batch| {
            let fail = batch.fail();
            sql::set_meta(batch.tx, "next_prediction_id", batch.next_prediction as i64).map_err(&fail)?;
            // An import asked for a jump of ids at the next start; an unclean stop is how that is said.
            let jump = sql::meta(batch.tx, "jump").map_err(&fail)? == Some(1);
            batch.tx.execute("DELETE FROM meta WHERE key='jump'", []).map_err(&fail)?;
            sql::set_meta(batch.tx, "clean", i64::from(!jump)).map_err(&fail)
        })
    }

    /// Runs `work` in one transaction, after the waiting inference records, and commits.
    fn commit<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if !self.trusted {
            self.reopen()?;
        }
        let outcome = self.attempt(work);
        if let Err(e) = &outcome
            && !e.is_callers_fault()
        {
            // A disk that failed a write may have lost more than it said: trust nothing until it has been read back.
            self.trusted = false;
            // A disk still in trouble is what the first error says, and the next call tries to reopen again.
            if let Err(damaged @ StoreError::Damaged { .. }) = self.reopen() {
                return Err(damaged);
            }
        }
        outcome
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let stamp = self.clock.now();
        let state = self.lock.state();
        let path = state.journal_db();
        let fail = |e| StoreError::sql(&path, e);
        let conn = self.reader.conn_mut();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let mut batch = Batch { tx: &tx, state, stamp, head: self.head, next_prediction: self.next_prediction };
        for (stamp, text, body) in &self.pending {
            batch.append_text(stamp.clone(), text.clone(), body)?;
        }
        let value = work(&mut batch)?;
        let (head, next_prediction) = (batch.head, batch.next_prediction);
        tx.commit().map_err(fail)?;
        self.head = head;
        self.next_prediction = next_prediction;
        self.pending.clear();
        Ok(value)
    }

    /// Opens a fresh connection and checks that everything acknowledged is there.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let state = self.lock.state();
        let path = state.journal_db();
        let fail = |e| StoreError::sql(&path, e);
        let conn = sql::connect(state, self.max_pages)?;
        check_after_unclean_stop(&conn, state)?;
        let (acknowledged, chain) = self.head;
        if acknowledged > 0 && sql::chain_at(&conn, acknowledged).map_err(fail)? != Some(chain) {
            let what = format!("record {acknowledged} was acknowledged and is not there any more");
            return Err(StoreError::Damaged { path, what });
        }
        let head = sql::head(&conn).map_err(fail)?;
        if head.0 > acknowledged {
            // The commit that reported an error reached the disk after all, and the waiting records with it.
            self.pending.clear();
        }
        self.head = head;
        self.next_prediction = self.next_prediction.max(sql::next_prediction(&conn).map_err(fail)?);
        self.reader = Reader::over(conn, state.clone());
        self.trusted = true;
        Ok(())
    }

    /// For the import: runs `work` on the connection in one transaction, then reads where the journal stands.
    pub(super) fn rebuild<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let value = self.commit(|batch| work(batch.tx))?;
        self.next_prediction = 0;
        self.trusted = false;
        self.reopen()?;
        Ok(value)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Whoever wants to hear of trouble calls `close`; without it the stop counts as unclean, which is safe.
        let _ = self.shut();
    }
}

impl Batch<'_> {
    fn fail(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.state.journal_db();
        move |e| StoreError::sql(&path, e)
    }

    fn append(&mut self, body: Body) -> Result<u64, StoreError> {
        let blobs = Blobs::new(self.state);
        if let Some(absent) = body.inputs().iter().find(|d| !blobs.has(d)) {
            return Err(StoreError::Blob { digest: absent.to_string(), what: "missing" });
        }
        let text = body.canonical()?;
        self.append_text(self.stamp.clone(), text, &body)
    }

    fn append_text(&mut self, stamp: Stamp, text: String, body: &Body) -> Result<u64, StoreError> {
        let seq = self.head.0 + 1;
        let kind = body.kind().name();
        let digest = Digest::of(text.as_bytes());
        let chain = sql::link(&self.head.1, seq, kind, &stamp, &digest);
        let stored = Stored { seq, kind: kind.to_string(), stamp, payload: Some(text), digest, chain };
        sql::insert(self.tx, &stored, Some(body)).map_err(self.fail())?;
        self.head = (seq, chain);
        Ok(seq)
    }

    fn press(&mut self, press: &Press, pad: Option<PadRef>) -> Result<PressId, StoreError> {
        let is_shown = match press.prediction_id {
            Some(id) => sql::is_shown(self.tx, id).map_err(self.fail())?,
            None => false,
        };
        let beside = match press.prediction_id {
            Some(id) if is_shown => self.stands_beside(press, id)?,
            _ => false,
        };
        Ok(PressId(self.append(Body::Press(press.to_body(pad, is_shown, beside)?))?))
    }

    /// Whether a press is one that versions 1 and 2 of the format would have read otherwise: another rater has spoken
    /// about its prediction, or it is confirmed and not the first.
    fn stands_beside(&self, press: &Press, prediction: u32) -> Result<bool, StoreError> {
        let text = "SELECT 1 FROM press p JOIN records r ON r.seq = p.press_id WHERE p.prediction_id = ?1
                    AND (?2 OR p.source <> ?3 OR json_extract(r.payload, '$.badge') IS NOT ?4)";
        let source = press.source.to_string();
        self.tx
            .prepare_cached(text)
            .and_then(|mut s| s.exists(params![prediction, press.confirmed, source, press.badge]))
            .map_err(self.fail())
    }

    fn epoch(&self, uid: &str) -> Result<Option<u32>, StoreError> {
        epoch_of(self.tx, uid).map_err(self.fail())
    }

    fn mark(&self, uid: &str, epoch: u32) -> Result<u32, StoreError> {
        Ok(mark_of(self.tx, uid, epoch).map_err(self.fail())?.unwrap_or(1))
    }

    fn set_mark(&self, uid: &str, epoch: u32, next: u32) -> Result<(), StoreError> {
        self.tx
            .execute(
                "INSERT INTO mark(uid, epoch, next) VALUES(?,?,?) ON CONFLICT(uid, epoch) DO UPDATE SET next=excluded.next",
                params![uid, epoch, next],
            )
            .map(drop)
            .map_err(self.fail())
    }

    fn assign(&mut self, uid: &str, epoch: u32, next: u32) -> Result<(), StoreError> {
        self.append(Body::Epoch(EpochBody { uid: uid.to_string(), epoch, next }))?;
        self.tx
            .execute(
                "INSERT INTO epoch(uid, epoch) VALUES(?,?) ON CONFLICT(uid) DO UPDATE SET epoch=excluded.epoch",
                params![uid, epoch],
            )
            .map_err(self.fail())?;
        self.set_mark(uid, epoch, next)
    }

    /// The readable records `what` covers.
    fn redactable(&self, what: &Redact) -> Result<BTreeSet<u64>, StoreError> {
        let fail = self.fail();
        let seqs = |text: &str, value: &dyn rusqlite::ToSql| -> rusqlite::Result<BTreeSet<u64>> {
            let mut statement = self.tx.prepare(text)?;
            let rows = statement.query_map([value], |r| r.get::<_, i64>(0))?;
            rows.map(|seq| Ok(seq? as u64)).collect()
        };
        match what {
            Redact::Source(source) => {
                let mut found =
                    seqs("SELECT press_id FROM press WHERE source=?", &source.to_string()).map_err(&fail)?;
                if let Source::Pad(uid) = source {
                    found.extend(self.pad_events(|pad| pad.pad.uid == *uid)?);
                }
                Ok(found)
            }
            Redact::Badge(badge) => {
                let text = "SELECT seq FROM records WHERE kind='press' AND json_extract(payload, '$.badge') = ?";
                let mut found = seqs(text, badge).map_err(&fail)?;
                found.extend(self.pad_events(|pad| pad.shows_badge(*badge))?);
                Ok(found)
            }
            Redact::Prediction(id) => {
                let mut found = seqs("SELECT seq FROM shown WHERE prediction_id=?", id).map_err(&fail)?;
                found.extend(seqs("SELECT press_id FROM press WHERE prediction_id=?", id).map_err(&fail)?);
                Ok(found)
            }
        }
    }

    /// Events of pads that are no presses: nothing is derived from them, so they are found by reading.
    fn pad_events(&self, which: impl Fn(&PadBody) -> bool) -> Result<BTreeSet<u64>, StoreError> {
        let fail = self.fail();
        let mut statement = self
            .tx
            .prepare("SELECT seq, payload FROM records WHERE kind='pad' AND payload IS NOT NULL")
            .map_err(&fail)?;
        let rows = statement.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?))).map_err(&fail)?;
        let mut found = BTreeSet::new();
        for row in rows {
            let (seq, text) = row.map_err(&fail)?;
            if let Ok(Body::Pad(body)) = Body::parse(super::Kind::Pad, &text)
                && which(&body)
            {
                found.insert(seq as u64);
            }
        }
        Ok(found)
    }

    /// The blobs a readable record refers to.
    fn inputs_of(&self, seq: u64) -> Result<Vec<Digest>, StoreError> {
        let row: Option<(String, Option<String>)> = self
            .tx
            .query_row("SELECT kind, payload FROM records WHERE seq=?", [seq as i64], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()
            .map_err(self.fail())?;
        let Some((kind, Some(text))) = row else { return Ok(Vec::new()) };
        // A payload that cannot be read refers to nothing; it is overwritten all the same.
        let body = super::Kind::from_name(&kind).and_then(|k| Body::parse(k, &text).ok());
        Ok(body.map(|b| b.inputs().to_vec()).unwrap_or_default())
    }
}

/// The epoch assigned to a pad.
pub(super) fn epoch_of(conn: &Connection, uid: &str) -> rusqlite::Result<Option<u32>> {
    conn.query_row("SELECT epoch FROM epoch WHERE uid=?", [uid], |r| r.get(0)).optional()
}

/// A name for a numbering that no host has given before, as far as chance goes: a pad that lost its memory between two hosts
/// would otherwise come back with numbers that stand for other presses here.
///
/// # Errors
/// When the operating system gives no random numbers.
pub(crate) fn fresh_epoch() -> Result<u32, getrandom::Error> {
    loop {
        let mut name = [0; 4];
        getrandom::fill(&mut name)?;
        if name != [0; 4] {
            return Ok(u32::from_le_bytes(name));
        }
    }
}

/// The number expected next from a pad in an epoch.
pub(super) fn mark_of(conn: &Connection, uid: &str, epoch: u32) -> rusqlite::Result<Option<u32>> {
    conn.query_row("SELECT next FROM mark WHERE uid=? AND epoch=?", params![uid, epoch], |r| r.get(0)).optional()
}

/// The check after an unclean stop or a failed write: the file's structure, and the chain of the newest records.
fn check_after_unclean_stop(conn: &Connection, state: &StateDir) -> Result<(), StoreError> {
    let path = state.journal_db();
    let fail = |e| StoreError::sql(&path, e);
    let found: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(fail)?;
    if found != "ok" {
        return Err(StoreError::Damaged { path, what: found });
    }
    let (last, _) = sql::head(conn).map_err(fail)?;
    let faults = super::verify::chain_faults(conn, last.saturating_sub(TAIL_CHECKED) + 1).map_err(fail)?;
    match faults.first() {
        Some(fault) => Err(StoreError::Damaged { path, what: fault.to_string() }),
        None => Ok(()),
    }
}
