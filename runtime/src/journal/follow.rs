//! Following the log: what has changed among the presses that count since the last look.
//!
//! [`Reader::effective_presses`] reads every press again, which is right for a start and for a check. A loop that learns
//! after each press would read the whole log each time; a [`Follower`] remembers how far it has read and what it knows.
use std::collections::{BTreeMap, BTreeSet};

use super::StoreError;
use super::reader::{EffectivePress, NEWEST, PressLine, Reader};
use super::record::{Digest, PressId};
use super::resolve::{PressStatus, Resolver};
use super::sql::{self, CHAIN_START};

/// How far somebody has followed a journal, and which presses they have been told of. A new one has been told of none.
#[derive(Default)]
pub struct Follower {
    /// `None` before the first look, and after one that failed: the next look reads from the start.
    known: Option<Known>,
    told: BTreeSet<PressId>,
}

/// The log up to a record.
struct Known {
    /// Number and chain of that record.
    at: (u64, Digest),
    resolver: Resolver,
}

impl Follower {
    /// The record the log ended with at the last look; 0 before one.
    pub fn at(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.at.0)
    }
}

/// What has changed since the last look of a [`Follower`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Presses told of before that do not count any more, in journal order.
    pub vanished: Vec<PressId>,
    /// Presses that count and were not told of, in journal order.
    pub appeared: Vec<EffectivePress>,
}

impl Reader {
    /// What `follower` has not been told of yet; afterwards it has.
    ///
    /// The changes of all looks together are [`Reader::effective_presses`]. The cost is that of the records since the last
    /// look; the whole log is read at the first one, after a redaction, and when this is not the journal of the last look.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble. Nothing counts as told then.
    pub fn changes(&self, follower: &mut Follower) -> Result<Changes, StoreError> {
        let snapshot = self.conn().unchecked_transaction().map_err(|e| self.fail(e))?;
        let head = sql::head(self.conn()).map_err(|e| self.fail(e))?;
        let mut changes = Changes::default();
        let (lines, mut resolver) = match follower.known.take() {
            Some(known) if self.goes_on_from(&known)? => {
                let mut resolver = known.resolver;
                let lines = self.resolve(&mut resolver, known.at.0 + 1..=NEWEST, &BTreeMap::new())?;
                // What has stopped counting never counts again, so only what has just stopped can be missing now.
                changes.vanished =
                    resolver.take_stopped().into_iter().filter(|id| follower.told.contains(id)).collect();
                changes.vanished.sort_unstable();
                changes.vanished.dedup();
                (lines, resolver)
            }
            _ => {
                let mut resolver = Resolver::default();
                let lines = self.resolve(&mut resolver, 0..=NEWEST, &self.redacted_undos()?)?;
                changes.vanished = follower.told.iter().filter(|id| !resolver.is_effective(**id)).copied().collect();
                (lines, resolver)
            }
        };
        resolver.take_stopped();
        for line in lines {
            if resolver.is_effective(line.press_id) && !follower.told.contains(&line.press_id) {
                changes.appeared.push(self.effective(PressLine { status: PressStatus::Effective, ..line })?);
            }
        }
        drop(snapshot);
        for id in &changes.vanished {
            follower.told.remove(id);
        }
        follower.told.extend(changes.appeared.iter().map(|p| p.press_id));
        follower.known = Some(Known { at: head, resolver });
        Ok(changes)
    }

    /// Whether the log still begins with what `known` has seen of it, and nothing after that rewrites it.
    fn goes_on_from(&self, known: &Known) -> Result<bool, StoreError> {
        let (seq, chain) = known.at;
        let found =
            if seq == 0 { Some(CHAIN_START) } else { sql::chain_at(self.conn(), seq).map_err(|e| self.fail(e))? };
        let redacted = "SELECT 1 FROM records WHERE seq > ? AND kind = 'redaction'";
        let rewritten = || self.conn().prepare_cached(redacted).and_then(|mut s| s.exists([seq as i64]));
        Ok(found == Some(chain) && !rewritten().map_err(|e| self.fail(e))?)
    }
}
