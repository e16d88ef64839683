//! What `hone tune` has trained, put in use: through the gate, by one rename, in the journal as every other decision.
use std::collections::BTreeMap;

use crate::adapters::{Adapter, AdapterId, Provenance, Tuned};
use crate::journal::AdapterAction;
use crate::learn::{Action, Decision, Theta};

use super::freeze::numbers;
use super::{App, AppError};

impl App {
    /// Publishes leaves tuned on `presses` presses, 0 for labelled data, where `decision` lets it, and goes on with them; `None` when it does not. A run that was
    /// published before and cut off right then is not published twice.
    ///
    /// # Errors
    /// [`AppError`]; the adapter in use is then the one before.
    pub fn publish_tuned(
        &mut self,
        tuned: Tuned,
        objective: &str,
        presses: u64,
        decision: &Decision,
    ) -> Result<Option<AdapterId>, AppError> {
        let figures = numbers(decision, &self.learner);
        if decision.action != Action::Publish {
            self.record(self.current_name(), AdapterAction::Vetoed, figures)?;
            return Ok(None);
        }
        // A run that was killed when all was done but its end comes here again; a file has tensors in another order.
        let by_name = |t: &Tuned| t.tensors.iter().cloned().collect::<BTreeMap<_, _>>();
        let made = by_name(&tuned);
        for listed in self.adapters.list()? {
            let before = self.adapters.load(&listed.id).ok().and_then(|a| a.tuned);
            if before.is_some_and(|t| t.run == tuned.run && by_name(&t) == made) {
                if !listed.current {
                    self.record(listed.id.to_string(), AdapterAction::Used, figures)?;
                    self.adapters.switch(Some(&listed.id))?;
                }
                self.adopt(Some(listed.id.clone()))?;
                return Ok(Some(listed.id));
            }
        }
        let (classes, width) = (self.model.base().classes(), self.model.base().features() + 1);
        let solver = &self.learner.config().solver;
        let adapter = Adapter {
            provenance: Provenance {
                base_digest: self.model.bundle().base_digest().to_string(),
                objective: objective.to_string(),
                presses,
                journal_seq: self.last_seq,
                lambda: solver.lambda_partial,
                delta: solver.hyper.delta,
                epsilon: solver.hyper.epsilon,
                scope: tuned.spec.scopes.join(","),
                order: 0,
                parent: None,
                body: None,
                classes: None,
                retain: self.retain,
                random_features: 0,
            },
            classes,
            columns: width,
            theta: Theta::zeros(classes, width).values().to_vec(),
            tuned: Some(tuned),
        };
        let id = self.adapters.publish(&adapter)?;
        self.record(id.to_string(), AdapterAction::Published, figures)?;
        self.adopt(Some(id.clone()))?;
        Ok(Some(id))
    }
}
