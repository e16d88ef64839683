//! Objectives: what a press asks of the logits.
//!
//! An objective turns one shown prediction and the presses on it into a loss and its gradient with respect to the logits.
//! It knows neither features nor weights: the head solver and the gradient scopes (bias, LoRA) carry `g` to them.
//! To add one: write `objective/<name>.rs`, add a row to [`OBJECTIVES`]; a row without words or gradient cases fails by name.
//!
//! Letters: `C` classes, `a` the shown class, `π = softmax(logits)`, `L(y) = P(press | y, a)`.
use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_class};

pub mod posterior;

/// Every objective hone can learn with.
pub static OBJECTIVES: &[&ObjectiveDef] = &[&posterior::POSTERIOR];

/// The objective of that name; `None` for a name not in [`OBJECTIVES`].
pub fn find(name: &str) -> Option<&'static ObjectiveDef> {
    OBJECTIVES.iter().copied().find(|objective| objective.name == name)
}

/// What a person can say about a shown answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feedback {
    /// Right (`up`) or wrong.
    Thumb {
        /// True for 👍.
        up: bool,
    },
    /// "It is this class."
    Correction {
        /// The class named.
        class: usize,
    },
    /// An example of a class given without an answer having been shown.
    Demonstration {
        /// The class named.
        class: usize,
    },
    /// One to five stars for the shown answer.
    Stars {
        /// 1 to 5.
        stars: u8,
    },
    /// "The shown answer rather than that one."
    Preference {
        /// The class the shown one was preferred to.
        over: usize,
    },
    /// "I do not know": no likelihood, no gradient.
    NotSure,
}

impl Feedback {
    /// The kind, as the logs and messages spell it.
    pub fn kind(self) -> &'static str {
        match self {
            Feedback::Thumb { .. } => "thumb",
            Feedback::Correction { .. } => "correction",
            Feedback::Demonstration { .. } => "demonstration",
            Feedback::Stars { .. } => "stars",
            Feedback::Preference { .. } => "preference",
            Feedback::NotSure => "not-sure",
        }
    }

    /// Whether the press names the true class, as corrections and demonstrations do.
    pub fn names_class(self) -> bool {
        matches!(self, Feedback::Correction { .. } | Feedback::Demonstration { .. })
    }

    /// Checks the classes and stars against a head of `classes` classes that had shown `shown`.
    ///
    /// # Errors
    /// [`LearnError::ClassOutOfRange`], [`LearnError::Stars`], [`LearnError::SelfPreference`].
    pub fn check(self, shown: usize, classes: usize) -> Result<(), LearnError> {
        check_class("the shown class", shown, classes)?;
        match self {
            Feedback::Correction { class } | Feedback::Demonstration { class } => {
                check_class("a press", class, classes)
            }
            Feedback::Stars { stars } if !(1..=5).contains(&stars) => Err(LearnError::Stars { stars }),
            Feedback::Preference { over } if over == shown => Err(LearnError::SelfPreference { class: over }),
            Feedback::Preference { over } => check_class("a preference", over, classes),
            _ => Ok(()),
        }
    }
}

/// One press as an objective sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Press {
    /// What was said.
    pub feedback: Feedback,
    /// Whether the presser confirmed it (long press, repeat), so that the smaller error rate applies.
    pub confirmed: bool,
}

/// One shown prediction and everything said about it.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// Logits of the model being trained, `[C]`.
    pub logits: &'a [f64],
    /// Logits of the frozen reference (the factory model), `[C]`; `posterior` does not read them.
    pub reference: &'a [f64],
    /// The shown class `a`.
    pub shown: usize,
    /// Probability with which `a` was chosen to be shown, in (0, 1]; `posterior` needs no importance weight and does not
    /// read it.
    pub mu: f64,
    /// The presses on it; several multiply their likelihoods.
    pub presses: &'a [Press],
}

/// Settings shared by the objectives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyper {
    /// Error rate ε of an ordinary press, in [0, 0.5).
    pub epsilon: f64,
    /// Error rate ε of a confirmed press, in [0, 0.5).
    pub epsilon_confirmed: f64,
    /// Share δ of the uniform distribution mixed into the model's belief before a press is weighed, in [0, 1).
    /// At 0 a confidently wrong model explains a 👎 away as a wrong press.
    pub delta: f64,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper { epsilon: 0.1, epsilon_confirmed: 0.02, delta: 0.2 }
    }
}

impl Hyper {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] naming the field.
    pub fn check(&self) -> Result<(), LearnError> {
        for (what, value) in [("epsilon", self.epsilon), ("epsilon_confirmed", self.epsilon_confirmed)] {
            if !(0.0..0.5).contains(&value) {
                return Err(LearnError::OutOfRange { what, value, range: "[0, 0.5)" });
            }
        }
        if !(0.0..1.0).contains(&self.delta) {
            return Err(LearnError::OutOfRange { what: "delta", value: self.delta, range: "[0, 1)" });
        }
        Ok(())
    }
}

/// What an objective answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The loss, in nats, for logs and plots.
    pub loss: f64,
    /// dL/dlogits, `[C]`.
    pub gradient: Vec<f64>,
}

/// One row of [`OBJECTIVES`].
pub struct ObjectiveDef {
    /// The name on the command line and in adapters.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub summary: &'static str,
    /// The kinds of press it learns from, as [`Feedback::kind`] spells them.
    pub learns_from: &'static [&'static str],
    /// Loss and gradient of one example.
    ///
    /// # Errors
    /// [`LearnError`] when lengths, classes, stars, μ or settings are out of range, or a press is of no supported kind.
    pub step: fn(&Example<'_>, &Hyper) -> Result<Step, LearnError>,
    /// Examples at which `gradient` is the derivative of `loss`; compared with central differences by the tests.
    pub cases: &'static [GradientCase],
}

/// An example, owned, at which an objective's gradient is checked.
pub struct GradientCase {
    /// What it stands for.
    pub name: &'static str,
    /// Logits `[C]`.
    pub logits: &'static [f64],
    /// Reference logits `[C]`.
    pub reference: &'static [f64],
    /// The shown class.
    pub shown: usize,
    /// Display probability.
    pub mu: f64,
    /// The presses.
    pub presses: &'static [Press],
    /// The settings.
    pub hyper: Hyper,
}

/// `softmax(logits)` into `out`; both `[C]`. The largest logit is subtracted first, so finite logits give finite probabilities.
pub fn softmax_into(logits: &[f64], out: &mut [f64]) {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for (p, &f) in out.iter_mut().zip(logits) {
        *p = (f - largest).exp();
        sum += *p;
    }
    for p in out.iter_mut() {
        *p /= sum;
    }
}
