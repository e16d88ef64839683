//! Something is there, or not: wake words, detectors with a threshold, anomalies.
//!
//! Two hypotheses, label 0 (nothing) and label 1 (something), `logits = (0, s − logit τ)` of the graph's score `s`
//! before the sigmoid, or `(s₀, s₁ − logit τ)` where it has two outputs. So the answer is "something" from the
//! probability τ on, τ is part of what is learned (the constant of the correction), and a false alarm and a miss are
//! what 👎 says of the one answer and of the other: with two hypotheses 👎 tells the truth.
use super::{Form, Shipped, TaskDef};
use crate::bundle::Recipe;

/// The row of [`super::TASKS`].
pub(super) static WAKE_WORD: TaskDef = TaskDef {
    name: "wake-word",
    answer: "the word was said, or was not",
    up: "that was right",
    down: "false alarm, where it woke; missed, where it did not",
    ..ALARM
};

/// The row of [`super::TASKS`].
pub(super) static DETECTION: TaskDef = TaskDef {
    name: "detection",
    answer: "it is there, or is not: above a threshold or below",
    up: "that was right",
    down: "false alarm, where it was reported; missed, where it was not",
    ..ALARM
};

/// The row of [`super::TASKS`].
pub(super) static ANOMALY: TaskDef = TaskDef {
    name: "anomaly",
    answer: "normal, or not",
    up: "that was right",
    down: "this is normal, where it was reported; this is not, where it was not",
    ..ALARM
};

const ALARM: TaskDef = TaskDef {
    name: "",
    answer: "",
    up: "",
    down: "",
    named: "it is what was named",
    remarks: "none",
    right: "it is the case",
    measures: "false alarms (FAR), misses (FRR), area under the curve (AUC)",
    form,
};

/// The threshold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Alarm {
    /// `logit τ`.
    offset: f64,
}

fn form(recipe: &Recipe, labels: &[String], shipped: &Shipped) -> Result<Form, String> {
    if labels.len() != 2 {
        return Err(format!("it has {} labels, and needs two: that for nothing, and that for something", labels.len()));
    }
    if !matches!(shipped.outputs, 1 | 2) {
        return Err(format!("the head has {} outputs, and one or two are needed", shipped.outputs));
    }
    let threshold = f64::from(recipe.answers.threshold.unwrap_or(0.5));
    if !(threshold > 0.0 && threshold < 1.0) {
        return Err(format!("answers.threshold is {threshold}, not in (0, 1)"));
    }
    Ok(Form::Alarm(Alarm { offset: (threshold / (1.0 - threshold)).ln() }))
}

impl Alarm {
    pub(super) fn logits(&self, outputs: &[f32]) -> Vec<f32> {
        let above = |s: f32| (f64::from(s) - self.offset) as f32;
        match outputs {
            [s] => vec![0.0, above(*s)],
            [nothing, something] => vec![*nothing, above(*something)],
            _ => unreachable!("one or two outputs, which opening the bundle checks"),
        }
    }
}
