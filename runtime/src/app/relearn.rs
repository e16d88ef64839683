//! The learner made anew: when classes change, when a press names a class that slept, at a start and after a rollback.
use std::collections::BTreeMap;

use super::{App, AppError, Learned, learner_config};
use crate::adapters::{Adapter, AdapterId, Provenance};
use crate::feedback::ledger::lock;
use crate::journal::{AdapterAction, ClassChange, ClassesEvent, EffectivePress, Follower, Signal};
use crate::learn::classes::continued;
use crate::learn::{Classes, Feedback, Learner, Outcome, Temperature, Theta, TrainingPress, argmax};

impl App {
    /// Adds, renames or merges classes. The change is durable when this returns; the correction in use is published
    /// again with the new classes, unchanged. An added class takes no part in anything before a press names it.
    ///
    /// Returns the class it was about and the adapter now in use.
    ///
    /// # Errors
    /// [`AppError::Classes`] for a name that is taken or a class that is unknown, [`AppError::OtherTask`] where there
    /// are no classes; nothing is recorded then.
    pub fn change_classes(&mut self, change: &ClassChange) -> Result<(usize, AdapterId), AppError> {
        if !self.task().is_plain() {
            return Err(AppError::OtherTask { task: self.task().name(), what: "changes of classes" });
        }
        self.classes.clone().apply(0, change)?;
        let base_digest = self.model.bundle().base_digest().to_string();
        let seq = lock(&self.journal).classes(&ClassesEvent { base_digest, change: change.clone() })?;
        self.classes.apply(seq, change)?;
        let adapter = match &self.current {
            Some(id) => self.adapters.load(id)?,
            None => {
                let theta = Theta::zeros(self.classes.shipped_len(), self.base.width());
                let adapter = self.adapter(&theta);
                Adapter { provenance: Provenance { presses: 0, journal_seq: 0, ..adapter.provenance }, ..adapter }
            }
        };
        // A tuned adapter stays the body whose features the presses are about.
        let body = if adapter.tuned.is_some() { self.current.clone() } else { adapter.provenance.body.clone() };
        let provenance = Provenance { classes: self.known_classes(), body, ..adapter.provenance };
        let id = self.adapters.publish(&Adapter { provenance, tuned: None, ..adapter })?;
        let numbers = BTreeMap::from([("classes".to_string(), self.classes.visible().len() as f64)]);
        self.record(id.to_string(), AdapterAction::Published, numbers)?;
        self.adopt(Some(id.clone()))?;
        let class = match change {
            ClassChange::Add { .. } => self.classes.len() - 1,
            ClassChange::Rename { class, .. } => *class as usize,
            ClassChange::Merge { into, .. } => *into as usize,
        };
        Ok((class, id))
    }

    /// Makes the learner anew from everything that counted at record `seq`; what waits in the backlog is taken with it.
    pub(super) fn relearn(&mut self, effective: &[EffectivePress], seq: u64, published: Theta) -> Result<(), AppError> {
        self.kept.remake(&mut self.model, effective);
        self.named = effective.iter().filter_map(|p| Some((p.press_id, self.added_class(p)?))).collect();
        let awake = self.awake();
        self.learner = self.resumed(effective, awake, published)?;
        self.take_up_freeze(effective)?;
        // A class nobody names any more sleeps again, even if the adapter in use still has it.
        self.live = self.live.min(awake);
        self.temperature = Temperature::fit(&self.learner.told()?);
        let trains = |p: &&EffectivePress| self.training_press(p, awake).is_some();
        self.taken = effective.iter().filter(trains).map(|p| p.press_id).collect();
        self.last_seq = self.last_seq.max(seq);
        Ok(())
    }

    /// A learner of `awake` classes that has heard `effective`.
    pub(super) fn resumed(
        &self,
        effective: &[EffectivePress],
        awake: usize,
        published: Theta,
    ) -> Result<Learner, AppError> {
        let mut config = learner_config(&self.model, &self.settings);
        if let Some(coreset) = self.model.coreset() {
            config.source = coreset.train.iter().take(self.retain.samples()).cloned().collect();
        }
        if !config.tripwire.prior.is_empty() {
            config.tripwire.prior.resize(awake, 1.0 / awake as f64);
        }
        config.merged = self.classes.merged().to_vec();
        let presses: Vec<_> = effective.iter().filter_map(|p| self.training_press(p, awake)).collect();
        let base = self.base.with_classes(awake);
        Ok(Learner::resume(base, config, presses, published.with_classes(awake))?)
    }

    /// The classes that take part: those of the bundle, and added ones up to the last that a press has named.
    pub(super) fn awake(&self) -> usize {
        self.awake_by(self.named.values().copied())
    }

    pub(super) fn awake_by(&self, named: impl Iterator<Item = usize>) -> usize {
        named.map(|class| class + 1).max().unwrap_or(0).max(self.classes.shipped_len())
    }

    /// The last added class a press is about.
    pub(super) fn added_class(&self, p: &EffectivePress) -> Option<usize> {
        let trains = self.training_press(p, self.classes.len())?;
        let named = match trains.feedback {
            Feedback::Correction { class } | Feedback::Demonstration { class } => class,
            Feedback::Preference { over } => over,
            Feedback::Thumb { .. } | Feedback::Stars { .. } | Feedback::Remark { .. } | Feedback::NotSure => {
                trains.shown
            }
        };
        Some(named.max(trains.shown)).filter(|&class| class >= self.classes.shipped_len())
    }

    /// Takes up what waits in the backlog with a learner of other classes than before.
    pub(super) fn take_up_anew(&mut self) -> Result<Vec<Learned>, AppError> {
        let mut whole = Follower::default();
        let effective = lock(&self.journal).reader().changes(&mut whole)?.appeared;
        let published = self.learner.published().clone();
        let mut learned: Vec<Learned> = Vec::new();
        let undone = self.backlog.vanished.iter().filter(|id| self.taken.contains(id));
        learned.extend(undone.map(|&id| Learned::Undone { id }));
        self.relearn(&effective, whole.at(), published)?;
        let backlog = std::mem::take(&mut self.backlog);
        for p in &backlog.appeared {
            if !self.taken.contains(&p.press_id) {
                continue;
            }
            let outcome = if p.confirmed { Outcome::Confirmed } else { Outcome::Trained };
            learned.push(Learned::Press { id: p.press_id, outcome });
            self.heard(p);
        }
        Ok(learned)
    }

    /// The classes, where they are not those of the bundle.
    pub(super) fn known_classes(&self) -> Option<Classes> {
        (!self.classes.is_as_shipped(self.model.labels())).then(|| self.classes.clone())
    }

    /// The learner's form of an effective press, the first `awake` classes taking part; `None` when it may not train
    /// this model.
    pub(super) fn training_press(&self, p: &EffectivePress, awake: usize) -> Option<TrainingPress> {
        let (feature, logits) = self.kept.current(&self.model, p)?;
        if p.suspect || p.ambiguous {
            return None;
        }
        let class = |c: u32| c as usize;
        let feedback = match p.signal {
            Signal::Thumb { up } => Feedback::Thumb { up },
            Signal::Correction { class: c } => match self.task().remark(class(c)) {
                Some(remark) => Feedback::Remark { remark },
                None => Feedback::Correction { class: class(c) },
            },
            Signal::Demonstration { class: c } => Feedback::Demonstration { class: class(c) },
            Signal::Stars { stars } => Feedback::Stars { stars },
            Signal::Preference { over } => Feedback::Preference { over: class(over) },
            Signal::NotSure => Feedback::NotSure,
            Signal::Undo => return None,
        };
        let shown = p.shown_class.map_or_else(|| argmax(logits), class);
        if feedback.check(shown, awake).is_err() {
            return None;
        }
        // A demonstration has no prediction; its press number, out of the way of prediction ids, stands in.
        let prediction_id = p.prediction_id.unwrap_or(0x8000_0000 | (p.press_id.0 as u32 & 0x7fff_ffff));
        Some(TrainingPress {
            press_id: p.press_id.0,
            prediction_id,
            feature: feature.to_vec(),
            logits: continued(logits, awake),
            shown,
            mu: p.mu.unwrap_or(1.0),
            feedback,
            confirmed: p.confirmed,
            source: p.rater().to_string(),
        })
    }
}
