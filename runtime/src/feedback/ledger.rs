//! The journal as the ledger of pads: presses and mark in one transaction, acknowledged after it.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hone_wire::auth::Key;
use hone_wire::host::{Ledger, LedgerError, Received};
use hone_wire::message::{Event, Kind, PadHello};

use super::keys::PadKeys;
use super::limit::Meter;
use super::meaning::{Judged, Meaning, uid_text};
use super::policy::Policy;
use super::source::{Keeper, Terms};
use crate::journal::{Journal, PadPress, StoreError};

/// The journal, shared between the loop and the threads that serve pads.
pub type SharedJournal = Arc<Mutex<Journal>>;

/// Locks the journal. A thread that panicked while holding it leaves a journal whose transactions are whole all the same.
pub fn lock(journal: &SharedJournal) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`Keeper`] over the shared journal; what presses mean and who is heard comes from a [`Policy`].
pub struct JournalLedger {
    journal: SharedJournal,
    policy: Arc<Policy>,
    keys: PadKeys,
    labels: Vec<String>,
    pads: HashMap<[u8; 8], Known>,
}

/// What is known of a pad while this ledger lives.
#[derive(Clone, Debug, Default)]
struct Known {
    buttons: u8,
    meter: Meter,
    /// Whose badge was shown last, and when in the pad's time.
    badge: Option<Badge>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Badge {
    number: u16,
    boot: u16,
    t_ms: u32,
}

impl JournalLedger {
    /// A ledger for one source's link. `labels` are the model's, in order.
    pub fn new(journal: SharedJournal, policy: Arc<Policy>, labels: &[String]) -> JournalLedger {
        let keys = PadKeys::of(lock(&journal).state());
        JournalLedger { journal, policy, keys, labels: labels.to_vec(), pads: HashMap::new() }
    }

    /// What an event comes to, given what is known; `known` moves on as if it were committed.
    fn judge(&self, uid: &[u8; 8], known: &mut Known, received: &Received) -> Result<PadPress, LedgerError> {
        let event = &received.event;
        let rules = self.policy.rules(uid);
        known.badge = known.badge.filter(|badge| badge.counts(event, rules.badge_ms));
        let person = known.badge.map(|badge| badge.number);
        let layout = self.policy.layout(uid, known.buttons, person, &self.labels).map_err(|why| {
            tracing::warn!("the pad {} is not understood: {why}", uid_text(uid));
            LedgerError::Failed
        })?;
        let mut meaning = layout.meaning(event);
        if event.kind == Kind::Badge {
            known.badge = Some(Badge { number: event.value, boot: event.boot, t_ms: event.t_ms });
            let name = self.policy.people.get(&event.value).map_or("nobody known here", |person| person.name.as_str());
            meaning = Meaning::Nothing { name: "badge", detail: format!("badge {} ({name})", event.value) };
        }
        let speaks = !matches!(meaning, Meaning::Nothing { .. });
        let over = speaks && known.meter.is_over(&rules.limit, event.boot, event.t_ms);
        let trains = match person.map(|badge| self.policy.people.get(&badge)) {
            Some(Some(person)) => person.trains,
            Some(None) | None => !rules.needs_badge,
        };
        let judged = if over || !trains { Judged::Suspect } else { Judged::Trusted };
        Ok(meaning.pad_press(&uid_text(uid), event, received.age_ms, judged))
    }
}

impl Badge {
    fn counts(&self, event: &Event, badge_ms: u32) -> bool {
        event.boot == self.boot
            && (event.t_ms.wrapping_sub(self.t_ms) as i32) < i32::try_from(badge_ms).unwrap_or(i32::MAX)
    }
}

fn refusal(error: StoreError) -> LedgerError {
    tracing::warn!("the journal refused: {error}");
    match error {
        StoreError::Full { .. } => LedgerError::Full,
        _ => LedgerError::Failed,
    }
}

impl Ledger for JournalLedger {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        lock(&self.journal).reader().mark(&uid_text(uid), epoch).map_err(refusal)
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        // What is known moves on with the journal or not at all: a commit that failed comes again.
        let mut known = self.pads.get(uid).cloned().unwrap_or_default();
        let presses =
            events.iter().map(|r| self.judge(uid, &mut known, r)).collect::<Result<Vec<PadPress>, LedgerError>>()?;
        let uid_name = uid_text(uid);
        let mut journal = lock(&self.journal);
        if journal.reader().epoch(&uid_name).map_err(refusal)? != Some(epoch) {
            // A numbering another host began.
            let first = events.first().map_or(1, |r| r.event.seq);
            journal.adopt_epoch(&uid_name, epoch, first).map_err(refusal)?;
        }
        let done = journal.pad_commit(&uid_name, epoch, &presses).map_err(refusal)?;
        // The link hands in runs without gaps from the mark on; a shorter commit would acknowledge what is not there.
        let last = events.last().map_or(0, |r| r.event.seq);
        if done.next <= last {
            return Err(LedgerError::Failed);
        }
        self.pads.insert(*uid, known);
        Ok(())
    }

    fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError> {
        lock(&self.journal).new_epoch(&uid_text(uid)).map_err(refusal)
    }
}

impl Keeper for JournalLedger {
    fn terms(&mut self, hello: &PadHello) -> Terms {
        let rules = self.policy.rules(&hello.uid);
        let pairing_key = self.keys.get(&hello.uid).unwrap_or_else(|error| {
            tracing::warn!("the key of pad {} cannot be had: {error}", uid_text(&hello.uid));
            None
        });
        // A pad that was paired here is never again heard without its key.
        let allow_unpaired = rules.allow_unpaired && pairing_key.is_none();
        Terms { pairing_key, allow_unpaired, timing: rules.timing }
    }

    fn connected(&mut self, hello: &PadHello) {
        self.pads.entry(hello.uid).or_default().buttons = hello.buttons;
    }

    fn paired(&mut self, uid: &[u8; 8], key: &Key) -> Result<(), String> {
        self.keys.put(uid, key).map_err(|error| error.to_string())
    }
}
