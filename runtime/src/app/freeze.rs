//! Freezes that last: a wire that trips is on record, and what is on record holds until a confirmed press, whatever is
//! restarted, rolled back or learned anew in between.
use std::collections::BTreeMap;

use super::{App, AppError};
use crate::feedback::ledger::lock;
use crate::journal::{AdapterAction, AdapterEvent, EffectivePress, Filter, Kind};
use crate::learn::{Decision, Learner, Trip};

impl App {
    /// Records a trip that is not on record yet.
    pub(super) fn record_freeze(&mut self) -> Result<(), AppError> {
        let Some(trip) = self.learner.frozen().cloned() else {
            self.frozen = None;
            return Ok(());
        };
        if self.frozen.as_ref() != Some(&trip) {
            let mut numbers = trip.figures();
            numbers.extend(gate_figures(&self.learner));
            self.record(self.current_name(), AdapterAction::Frozen, numbers)?;
            self.frozen = Some(trip);
        }
        Ok(())
    }

    /// Takes up the last trip on record, unless a confirmed press among `effective` came after it.
    pub(super) fn take_up_freeze(&mut self, effective: &[EffectivePress]) -> Result<(), AppError> {
        let base = self.model.bundle().base_digest();
        let events = lock(&self.journal).reader().list(&Filter { kind: Some(Kind::Adapter), ..Filter::default() })?;
        let tripped = events.iter().rev().find_map(|record| {
            let event: AdapterEvent = serde_json::from_str(record.payload.as_deref()?).ok()?;
            let here = event.action == AdapterAction::Frozen && event.base_digest == base;
            here.then(|| Trip::told(&event.numbers)).flatten().map(|trip| (record.seq, trip))
        });
        self.frozen = None;
        if let Some((seq, trip)) = tripped {
            let classes = self.classes.len();
            let thaws =
                |p: &EffectivePress| p.confirmed && p.press_id.0 > seq && self.training_press(p, classes).is_some();
            if !effective.iter().any(thaws) {
                self.learner.freeze(trip);
                self.frozen = self.learner.frozen().cloned();
            }
        }
        Ok(())
    }
}

/// A decision's figures, for the journal.
pub(super) fn numbers(d: &Decision, learner: &Learner) -> BTreeMap<String, f64> {
    let mut out = BTreeMap::from([
        ("confirmed".to_string(), d.n_confirmed as f64),
        ("presses".to_string(), learner.training_predictions() as f64),
        ("most_surprise".to_string(), learner.config().gate.surprise),
    ]);
    for (name, pair) in [
        ("candidate_factory", &d.candidate_factory),
        ("candidate_incumbent", &d.candidate_incumbent),
        ("incumbent_factory", &d.incumbent_factory),
    ] {
        out.insert(format!("{name}_wins"), pair.wins);
        out.insert(format!("{name}_losses"), pair.losses);
        out.insert(format!("{name}_p_worse"), pair.p_worse);
        out.insert(format!("{name}_p_worse_harsh"), pair.p_worse_harsh);
        out.insert(format!("{name}_surprise"), pair.surprise);
    }
    out.extend(gate_figures(learner));
    if let Some(trip) = learner.frozen() {
        out.extend(trip.figures());
    }
    out
}

/// By which rule, and with which bounds of it.
fn gate_figures(learner: &Learner) -> BTreeMap<String, f64> {
    let gate = &learner.config().gate;
    BTreeMap::from([
        (format!("gate_{}", gate.mode.name()), 1.0),
        ("gate_threshold".to_string(), gate.threshold),
        ("gate_rollback_threshold".to_string(), gate.rollback_threshold),
        ("gate_least_losses".to_string(), f64::from(gate.least_losses)),
    ])
}
