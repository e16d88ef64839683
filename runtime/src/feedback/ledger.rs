//! The journal as the ledger of a pad's link: presses and mark in one transaction, acknowledged after it.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hone_wire::host::{Ledger, LedgerError, Received};

use super::meaning::{Layout, uid_text};
use crate::journal::{Journal, StoreError};

/// The journal, shared between the loop and the threads that serve pads.
pub type SharedJournal = Arc<Mutex<Journal>>;

/// Locks the journal. A thread that panicked while holding it leaves a journal whose transactions are whole all the same.
pub fn lock(journal: &SharedJournal) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`Ledger`] over the shared journal; button meanings come from a [`Layout`].
pub struct JournalLedger {
    journal: SharedJournal,
    layout: Layout,
}

impl JournalLedger {
    /// A ledger for one pad's link.
    pub fn new(journal: SharedJournal, layout: Layout) -> JournalLedger {
        JournalLedger { journal, layout }
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
        let uid = uid_text(uid);
        let presses: Vec<_> = events.iter().map(|r| self.layout.pad_press(&uid, &r.event, r.age_ms)).collect();
        let mut journal = lock(&self.journal);
        if journal.reader().epoch(&uid).map_err(refusal)? != Some(epoch) {
            // A numbering another host began.
            let first = events.first().map_or(1, |r| r.event.seq);
            journal.adopt_epoch(&uid, epoch, first).map_err(refusal)?;
        }
        let done = journal.pad_commit(&uid, epoch, &presses).map_err(refusal)?;
        // The link hands in runs without gaps from the mark on; a shorter commit would acknowledge what is not there.
        let last = events.last().map_or(0, |r| r.event.seq);
        if done.next > last { Ok(()) } else { Err(LedgerError::Failed) }
    }

    fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError> {
        lock(&self.journal).new_epoch(&uid_text(uid)).map_err(refusal)
    }
}
