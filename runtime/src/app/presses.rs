//! Presses whose inputs are kept, as examples for the scopes that change the body, by any objective of
//! `learn::OBJECTIVES`.
//!
//! At the start of each epoch an objective says of every press by which gradient `g` the logits should move, from what
//! the model believes then, and the target becomes `π − g`. The loss between ([`train::Objective::FenchelYoung`]) has
//! the gradient `π' − π + g`: the objective's own where the epoch begins, and from there on as much less as the model
//! has moved already. For `posterior` (`g = π − t`) that is expectation and maximisation in turn, for `ce`
//! cross-entropy itself, and for a loss without a lower bound each epoch's target is a bounded step away. Confirmed
//! presses that name a class judge and never train, as everywhere.
//!
//! [`train::Objective::FenchelYoung`]: crate::train::Objective::FenchelYoung
use std::collections::BTreeMap;

use crate::journal::{Blobs, Digest};
use crate::learn::objective::{
    Example as Said, Hyper, ObjectiveDef, Press, check_example, mean_reward, q_learning, softmax_into,
};
use crate::learn::{Feedback, LearnError, TrainingPress};
use crate::model::Model;
use crate::tensor::Tensor;
use crate::tune::{Example, Examples, Target, TuneError};

use super::{App, AppError, kept, lock};

/// One prediction and what was said about it.
struct Row {
    input: Digest,
    shown: usize,
    mu: f64,
    presses: Vec<Press>,
    /// The class a confirmed press names.
    held_out: Option<usize>,
    /// The mean reward before it.
    baseline: f64,
    /// The shipped model's logits.
    reference: Vec<f64>,
    target: Vec<f32>,
}

impl Row {
    fn trains(&self) -> bool {
        self.held_out.is_none()
    }

    fn said<'a>(&'a self, logits: &'a [f64]) -> Said<'a> {
        Said { logits, reference: &self.reference, shown: self.shown, mu: self.mu, presses: &self.presses }
    }
}

/// Presses with their inputs.
pub struct Presses {
    blobs: Blobs,
    inputs: Vec<String>,
    classes: usize,
    objective: &'static ObjectiveDef,
    hyper: Hyper,
    rows: Vec<Row>,
    unheard: usize,
}

impl App {
    /// The presses about this bundle whose inputs are kept, for `objective`, with `discount` or what the learner has.
    /// [`Presses::refer_to`] comes before they train.
    ///
    /// # Errors
    /// [`AppError::Store`]; [`AppError::Learn`] for settings that the objective cannot have; [`AppError::OtherTask`]
    /// where the graph's outputs are no classes.
    pub fn presses(&self, objective: &'static ObjectiveDef, discount: Option<f64>) -> Result<Presses, AppError> {
        if !self.task().is_plain() {
            return Err(AppError::OtherTask { task: self.task().name(), what: "presses that train the body" });
        }
        let classes = self.model.base().classes();
        let mut rows: BTreeMap<u32, Row> = BTreeMap::new();
        for p in &lock(&self.journal).reader().effective_presses()? {
            let (Some(press), Some(&input)) = (self.training_press(p, classes), p.example.inputs.first()) else {
                continue;
            };
            if !self.kept.blobs().get(&input).is_ok_and(|b| !b.is_empty()) {
                continue;
            }
            let TrainingPress { prediction_id, shown, mu, feedback, confirmed, source, .. } = press;
            let named = match feedback {
                Feedback::Correction { class } | Feedback::Demonstration { class } => Some(class),
                Feedback::Thumb { up: true } => Some(shown),
                _ => None,
            };
            let row = rows.entry(prediction_id).or_insert_with(|| Row {
                input,
                shown,
                mu: f64::from(mu),
                presses: Vec::new(),
                held_out: None,
                baseline: 0.0,
                reference: Vec::new(),
                target: Vec::new(),
            });
            // What is known of whoever pressed is about their plain presses.
            let epsilon = self.learner.epsilon_of(&source).filter(|_| !confirmed);
            row.presses.push(Press { feedback, confirmed, epsilon });
            if confirmed {
                row.held_out = named.or(row.held_out);
            }
        }
        let config = self.learner.config();
        let discount = discount.unwrap_or(config.solver.hyper.discount);
        let hyper = Hyper { discount, ..config.solver.hyper };
        objective.check(&hyper)?;
        let (mut kept, mut unheard, mut baseline) = (Vec::new(), 0, 0.0);
        for mut row in rows.into_values() {
            if row.trains() {
                if row.presses.iter().any(|p| p.confirmed) {
                    continue;
                }
                row.presses.retain(|p| objective.learns_from.contains(&p.feedback.kind()));
                if !row.presses.iter().any(|p| p.feedback.says_something()) {
                    // Without a gradient the target would hold the model where it is.
                    unheard += 1;
                    continue;
                }
                row.baseline = baseline;
                if let Some(reward) = mean_reward(&row.presses, row.shown) {
                    let decay = config.minibatch.baseline_decay;
                    baseline = decay * baseline + (1.0 - decay) * reward;
                }
            }
            kept.push(row);
        }
        Ok(Presses {
            blobs: self.kept.blobs().clone(),
            inputs: self.model.factory().input_names(),
            classes,
            objective,
            hyper,
            rows: kept,
            unheard,
        })
    }
}

impl Presses {
    /// Predictions that train; the others judge.
    pub fn training(&self) -> usize {
        self.rows.iter().filter(|row| row.trains()).count()
    }

    /// Predictions with kept inputs about which nothing was said that the objective learns from.
    pub fn unheard(&self) -> usize {
        self.unheard
    }

    /// Takes what `model`, as it is shipped, answers to each input as what objectives compare with.
    ///
    /// # Errors
    /// [`TuneError::Data`] when a kept input cannot be read any more or is none of that model.
    pub fn refer_to(&mut self, model: &mut Model) -> Result<(), TuneError> {
        for i in 0..self.rows.len() {
            let inputs: Vec<_> = self.inputs.iter().cloned().zip(self.inputs_of(i)?).collect();
            let (_, logits) = model.look(&inputs).map_err(|e| TuneError::Data { what: e.to_string() })?;
            self.rows[i].reference = logits.iter().map(|&f| f64::from(f)).collect();
        }
        Ok(())
    }

    fn inputs_of(&self, i: usize) -> Result<Vec<Tensor>, TuneError> {
        let digest = &self.rows[i].input;
        let bad = |why: &str| TuneError::Data { what: format!("the kept input {digest} {why}") };
        let named = kept::inputs(&self.blobs, digest).ok_or_else(|| bad("cannot be read any more"))?;
        let take = |name: &String| {
            let found = named.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
            found.ok_or_else(|| bad(&format!("has no `{name}`")))
        };
        self.inputs.iter().map(take).collect()
    }

    /// The targets `π − g`, one for each row that trains; `logits` are the model's for all of them.
    fn aim(&mut self, logits: &BTreeMap<usize, Vec<f64>>) -> Result<(), LearnError> {
        let (mut kl, n) = (0.0, logits.len() as f64);
        let (mut wanted, mut unwanted) = (0, 0);
        for (&i, logits) in logits {
            let row = &self.rows[i];
            kl += check_example(&row.said(logits), &self.hyper)?.kl() / n;
            let reward = mean_reward(&row.presses, row.shown).unwrap_or(0.0);
            wanted += usize::from(reward > 0.0);
            unwanted += usize::from(reward < 0.0);
        }
        let hyper = Hyper { kl_batch: Some(kl), ..self.hyper.balanced(wanted, unwanted) };
        let mut pi = vec![0.0; self.classes];
        for (&i, own) in logits {
            // What the model believes as an epoch begins stands still while it moves: the slow target.
            let next = logits.range(i + 1..).next().filter(|_| hyper.discount > 0.0);
            let ahead = next.map(|(&j, next)| q_learning::worth(next, next, &self.rows[j].reference));
            let row = &mut self.rows[i];
            let hyper = Hyper { baseline: row.baseline, ahead, ..hyper };
            let step = (self.objective.step)(&row.said(own), &hyper)?;
            softmax_into(own, &mut pi);
            row.target = pi.iter().zip(&step.gradient).map(|(p, g)| (p - g) as f32).collect();
        }
        Ok(())
    }
}

impl Examples for Presses {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn class(&self, i: usize) -> Option<usize> {
        self.rows[i].held_out
    }

    fn held_out(&self, i: usize) -> Option<bool> {
        Some(self.rows[i].held_out.is_some())
    }

    fn example(&mut self, i: usize) -> Result<Example, TuneError> {
        let row = &self.rows[i];
        let target = match (row.held_out, row.target.is_empty()) {
            (Some(class), _) => (0..self.classes).map(|c| f32::from(u8::from(c == class))).collect(),
            (None, false) => row.target.clone(),
            // Before the first epoch nothing is asked but what a step takes.
            (None, true) => vec![1.0 / self.classes as f32; self.classes],
        };
        let target = Target::Values(Tensor::f32(&[1, self.classes], target)?);
        Ok(Example { inputs: self.inputs_of(i)?, target })
    }

    fn renews(&self) -> bool {
        true
    }

    fn renew(&mut self, look: &mut dyn FnMut(&[Tensor]) -> Result<Tensor, TuneError>) -> Result<(), TuneError> {
        let mut logits = BTreeMap::new();
        for i in (0..self.rows.len()).filter(|&i| self.rows[i].trains()) {
            let found = look(&self.inputs_of(i)?)?;
            logits.insert(i, found.as_f32()?.iter().map(|&f| f64::from(f)).collect());
        }
        self.aim(&logits).map_err(|e| TuneError::Data { what: e.to_string() })
    }

    fn digest(&self) -> String {
        let mut h = blake3::Hasher::new();
        for r in &self.rows {
            h.update(r.input.to_string().as_bytes());
            h.update(format!("{} {} {:?} {:?}", r.shown, r.mu, r.held_out, r.presses).as_bytes());
        }
        h.update(format!("{} {:?}", self.objective.name, self.hyper).as_bytes());
        h.finalize().to_hex().to_string()
    }
}
