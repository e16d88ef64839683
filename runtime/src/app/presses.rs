//! Presses whose inputs are kept, as examples for the scopes that change the body.
//!
//! The target of a press is what the model should believe after it (`learn::objective::posterior`), made anew at the start
//! of each epoch from what the model believes then: expectation and maximisation in turn, whose gradient by the logits is
//! the objective's `π − t`. Confirmed presses that name a class judge and never train, as everywhere.
use std::collections::BTreeMap;

use crate::journal::{Blobs, Digest};
use crate::learn::objective::{Hyper, Press, posterior};
use crate::learn::{Feedback, TrainingPress};
use crate::model::probabilities;
use crate::tensor::Tensor;
use crate::tune::{Example, Examples, Target, TuneError};

use super::{App, AppError, kept, lock};

/// One prediction and what was said about it.
struct Row {
    input: Digest,
    shown: usize,
    presses: Vec<Press>,
    /// The class a confirmed press names.
    held_out: Option<usize>,
    target: Vec<f32>,
}

/// Presses with their inputs.
pub struct Presses {
    blobs: Blobs,
    inputs: Vec<String>,
    classes: usize,
    hyper: Hyper,
    rows: Vec<Row>,
}

impl App {
    /// The presses about this bundle whose inputs are kept.
    ///
    /// # Errors
    /// [`AppError::Store`]; [`AppError::OtherTask`] where the graph's outputs are no classes.
    pub fn presses(&self) -> Result<Presses, AppError> {
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
            let TrainingPress { prediction_id, shown, feedback, confirmed, .. } = press;
            let named = match feedback {
                Feedback::Correction { class } | Feedback::Demonstration { class } => Some(class),
                Feedback::Thumb { up: true } => Some(shown),
                _ => None,
            };
            let fresh = || Row { input, shown, presses: Vec::new(), held_out: None, target: Vec::new() };
            let row = rows.entry(prediction_id).or_insert_with(fresh);
            row.presses.push(Press { feedback, confirmed });
            if confirmed {
                row.held_out = named.or(row.held_out);
            }
        }
        let judged = |r: &Row| r.held_out.is_some() || !r.presses.iter().any(|p| p.confirmed);
        Ok(Presses {
            blobs: self.kept.blobs().clone(),
            inputs: self.model.factory().input_names(),
            classes,
            hyper: self.learner.config().solver.hyper,
            rows: rows.into_values().filter(judged).collect(),
        })
    }
}

impl Presses {
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
        for i in 0..self.rows.len() {
            if self.rows[i].held_out.is_some() {
                continue;
            }
            let logits = look(&self.inputs_of(i)?)?;
            let mut pi: Vec<f64> = probabilities(logits.as_f32()?).iter().map(|&p| f64::from(p)).collect();
            let belief = pi.clone();
            let mut likelihood = vec![1.0; self.classes];
            let row = &mut self.rows[i];
            let data = |e: crate::learn::LearnError| TuneError::Data { what: e.to_string() };
            for &press in &row.presses {
                posterior::multiply_likelihood(&mut likelihood, press, row.shown, &self.hyper).map_err(data)?;
            }
            posterior::gradient_in_place(&mut pi, &likelihood, self.hyper.delta);
            // `g = π − t`
            row.target = belief.iter().zip(&pi).map(|(p, g)| (p - g).max(0.0) as f32).collect();
        }
        Ok(())
    }

    fn digest(&self) -> String {
        let mut h = blake3::Hasher::new();
        for r in &self.rows {
            h.update(r.input.to_string().as_bytes());
            h.update(format!("{} {:?} {:?}", r.shown, r.held_out, r.presses).as_bytes());
        }
        h.update(format!("{:?}", self.hyper).as_bytes());
        h.finalize().to_hex().to_string()
    }
}
