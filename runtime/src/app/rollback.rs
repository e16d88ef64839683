//! Rollbacks asked for on a pad: which of them the loop still owes.
//!
//! A chord is durable and acknowledged before the loop acts on it, so a stop in between must neither lose the action
//! nor do it twice. The journal tells: a decision about the adapter in use that a person made is recorded *before* the
//! link is switched, with the number of the record that asked for it.
use std::collections::BTreeMap;

use crate::adapters::AdapterId;
use crate::journal::{AdapterAction, AdapterEvent, Filter, Kind, Reader, Record, StoreError};

use super::FACTORY;

/// The figure under which a rollback carries the number of the record that asked for it.
const REQUEST: &str = "request";
/// The name of a pad's record that asks for a rollback, as `feedback::meaning` gives it.
const ASKED: &str = "rollback";

/// The figures of a rollback, for the journal.
pub(super) fn request(seq: Option<u64>) -> BTreeMap<String, f64> {
    seq.map(|seq| (REQUEST.to_string(), seq as f64)).into_iter().collect()
}

/// What the journal says about the adapter in use, and about rollbacks asked for.
pub(super) struct History {
    /// Records of pads that ask for a rollback, rising.
    asked: Vec<u64>,
    /// Records that name the adapter in use from then on, of every bundle, rising.
    in_use: Vec<(u64, AdapterEvent)>,
}

impl History {
    /// Reads the requests after record `after`, and every event.
    pub(super) fn read(reader: &Reader, after: u64) -> Result<History, StoreError> {
        let asks = |record: &Record| {
            let payload: Option<serde_json::Value> =
                record.payload.as_deref().and_then(|text| serde_json::from_str(text).ok());
            payload.is_some_and(|p| p.get("name").and_then(|n| n.as_str()) == Some(ASKED))
        };
        let pads = reader.list(&Filter { kind: Some(Kind::Pad), after_seq: after, ..Filter::default() })?;
        let events = reader.list(&Filter { kind: Some(Kind::Adapter), ..Filter::default() })?;
        let event = |record: Record| {
            let event: AdapterEvent = serde_json::from_str(record.payload.as_deref()?).ok()?;
            let names =
                matches!(event.action, AdapterAction::Published | AdapterAction::RolledBack | AdapterAction::Used);
            names.then_some((record.seq, event))
        };
        Ok(History {
            asked: pads.iter().filter(|r| asks(r)).map(|r| r.seq).collect(),
            in_use: events.into_iter().filter_map(event).collect(),
        })
    }

    /// At a start: the newest record whose requests are settled. They have been acted on, or something else has been
    /// put in use since and a rollback now would be about that.
    pub(super) fn settled(&self) -> u64 {
        let settles = |(seq, event): &(u64, AdapterEvent)| match event.numbers.get(REQUEST) {
            Some(&request) if event.action == AdapterAction::RolledBack => request as u64,
            _ => *seq,
        };
        self.in_use.iter().map(settles).max().unwrap_or(0)
    }

    /// The requests that are about the adapters of the bundle `base`: what was in use when they came was one of them.
    pub(super) fn asked(&self, base: &str) -> Vec<u64> {
        let about =
            |seq: u64| self.in_use.iter().rev().find(|(s, _)| *s < seq).is_some_and(|(_, e)| e.base_digest == base);
        self.asked.iter().copied().filter(|&seq| about(seq)).collect()
    }

    /// What a person has put in use by the last record about `base`, where the stop came before the switch.
    ///
    /// `current` is what the link says. One the journal does not know was published last, just before a stop, and
    /// stays.
    pub(super) fn unfinished(&self, base: &str, current: Option<&AdapterId>) -> Option<Option<AdapterId>> {
        let (last, earlier) = self.in_use.split_last()?;
        let (_, event) = last;
        let now = super::name_of(current);
        let chosen = matches!(event.action, AdapterAction::RolledBack | AdapterAction::Used);
        let known = current.is_none() || earlier.iter().any(|(_, e)| e.base_digest == base && e.id == now);
        if !chosen || event.base_digest != base || event.id == now || !known {
            return None;
        }
        if event.id == FACTORY { Some(None) } else { event.id.parse().ok().map(Some) }
    }
}
