//! What was learned from presses that are redacted since, and how it goes.
//!
//! A redaction makes records unreadable; the adapters computed from them still hold what they taught. The gate would keep
//! such a head in use for as long as nothing speaks against it, so here it is no incumbent: what is fitted anew has to
//! stand beside the factory head alone, and the adapters that were learned from those presses are removed.
use std::collections::{BTreeMap, BTreeSet};

use super::{App, AppError, FACTORY, Learned, name_of};
use crate::adapters::{AdapterId, AdapterStore, Listed};
use crate::feedback::ledger::lock;
use crate::journal::{AdapterAction, Reader};
use crate::learn::OBJECTIVES;

/// The adapters of `store` that were learned from presses of the journal which are redacted since, oldest first, and
/// those that stand on a body that was.
///
/// Of bodies trained by versions that did not say from what, one whose loss is an objective of presses counts as
/// learned from them.
///
/// # Errors
/// [`AppError::Store`], [`AppError::Adapter`].
pub fn learned_from_redacted(reader: &Reader, store: &AdapterStore) -> Result<Vec<AdapterId>, AppError> {
    let redactions = reader.redacted_presses()?;
    let listed = store.list()?;
    let held = |l: &Listed| {
        let Some(p) = &l.provenance else { return false };
        let from_presses = p.scope == "head" || p.presses > 0 || OBJECTIVES.iter().any(|o| o.name == p.objective);
        let between = |&(redaction, first): &(u64, u64)| (first..redaction).contains(&p.journal_seq);
        from_presses && redactions.iter().any(between)
    };
    let bodies: BTreeSet<&AdapterId> = listed.iter().filter(|l| held(l)).map(|l| &l.id).collect();
    let stands_on_one =
        |l: &Listed| l.provenance.as_ref().and_then(|p| p.body.as_ref()).is_some_and(|body| bodies.contains(body));
    Ok(listed.iter().filter(|l| held(l) || stands_on_one(l)).map(|l| l.id.clone()).collect())
}

impl App {
    /// Fits the head anew to the presses that are left and removes every adapter that was learned from redacted ones.
    ///
    /// If the head in use was, the factory head takes its place before the gate is asked, which then compares with
    /// nothing else: a candidate that is refused leaves the factory head. Returns the decision and the adapters removed.
    ///
    /// # Errors
    /// [`AppError`]; calling again goes on where it stopped.
    pub fn refit_redacted(&mut self) -> Result<(Learned, Vec<AdapterId>), AppError> {
        let held = learned_from_redacted(lock(&self.journal).reader(), &self.adapters)?;
        if self.current.as_ref().is_some_and(|id| held.contains(id)) {
            self.record(FACTORY.to_string(), AdapterAction::RolledBack, BTreeMap::new())?;
            self.adapters.switch(None)?;
            self.adopt(None)?;
        }
        let decided = self.decide()?;
        // A body goes after what stands on it.
        let (mut heads, bodies): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|id| self.adapters.load(id).is_ok_and(|a| a.tuned.is_none()));
        heads.extend(bodies);
        for id in &heads {
            self.record(name_of(Some(id)), AdapterAction::Retired, BTreeMap::new())?;
            self.adapters.remove(id)?;
        }
        Ok((decided, heads))
    }
}
