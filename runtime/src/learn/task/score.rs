//! A number: a rating, a size, a price. Too high, too low, right.
//!
//! The hypotheses are the numbers `y_b` of a grid, the graph's one output ŷ is the mean of a normal belief with the
//! standard deviation σ of its errors on source data: `logits_b = −(y_b − ŷ)²/2σ²`. Correcting ŷ by `s` adds `y_b s/σ²`
//! but for a constant, so the link is one column, and the curvature in `s` is `Var(y)/σ⁴ ≤ (σ² + h²/12)/σ⁴` for a grid
//! of step `h ≤ σ`.
//!
//! "Right" says that the truth is within the tolerance of what was shown, "too high" that it is lower than that; an
//! interval known is a censored observation, as in Tobit regression, with ε for the press that is wrong. A number that
//! is named is believed to half the tolerance.
use super::{Form, Shipped, TaskDef};
use crate::bundle::Recipe;
use crate::learn::objective::Feedback;
use crate::learn::solver::Link;

/// The row of [`super::TASKS`].
pub(super) static SCORE: TaskDef = TaskDef {
    name: "score",
    answer: "a number",
    up: "right, within the tolerance",
    down: "not right, either way",
    named: "it is the number named, give or take half the tolerance",
    remarks: "too high, too low",
    right: "the number is within the tolerance of the true one",
    measures: "mean absolute error (MAE), root mean square error, share within the tolerance, bias",
    form,
};

/// Names of the remarks.
pub(super) const REMARKS: [&str; 2] = ["too high", "too low"];

/// Most numbers of a grid.
const MOST: usize = 512;
/// What every number keeps of the likelihood when one was named, of ε.
const STRAY: f64 = 0.1;

/// The doubtful belief is normal too and twice as wide. A uniform one would see the truth far off wherever a 👎 excludes
/// what was shown, and draw the answer to the middle of the grid: there 👎 says nothing about a direction, and teaches
/// none.
const DOUBT: f64 = 0.25;

/// The grid.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Score {
    low: f64,
    step: f64,
    count: usize,
    sigma: f64,
    tolerance: f64,
    unit: String,
}

/// A number answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The mean of the belief.
    pub value: f64,
    /// One time in ten it is below this.
    pub low: f64,
    /// One time in ten it is above this.
    pub high: f64,
    /// The unit, for people; may be empty.
    pub unit: String,
    /// Decimals that mean something.
    pub decimals: usize,
}

fn form(recipe: &Recipe, labels: &[String], shipped: &Shipped) -> Result<Form, String> {
    if labels.len() != 1 || shipped.outputs != 1 {
        return Err(format!("it has {} labels and {} outputs, and is about one number", labels.len(), shipped.outputs));
    }
    let a = &recipe.answers;
    let take = |name: &str, value: Option<f32>| match value {
        Some(v) if v.is_finite() => Ok(f64::from(v)),
        Some(v) => Err(format!("answers.{name} is {v}")),
        None => Err(format!("answers.{name} is missing")),
    };
    let (low, high, step) = (take("low", a.low)?, take("high", a.high)?, take("step", a.step)?);
    let (sigma, tolerance) = (take("sigma", a.sigma)?, take("tolerance", a.tolerance)?);
    if step <= 0.0 || high <= low {
        return Err(format!("answers: no grid from {low} to {high} by {step}"));
    }
    let count = ((high - low) / step).round() as usize + 1;
    if !(3..=MOST).contains(&count) {
        return Err(format!("answers: from {low} to {high} by {step} are {count} numbers, 3 to {MOST} are possible"));
    }
    if sigma < step || tolerance < 0.5 * step {
        return Err("answers: sigma must be at least the step, and tolerance half of it".into());
    }
    Ok(Form::Score(Score { low, step, count, sigma, tolerance, unit: a.unit.clone().unwrap_or_default() }))
}

impl Score {
    pub(super) fn at(&self, b: usize) -> f64 {
        self.low + b as f64 * self.step
    }

    fn decimals(&self) -> usize {
        (0..6)
            .find(|&d| (self.step * 10f64.powi(d)).fract().min(1.0 - (self.step * 10f64.powi(d)).fract()) < 1e-4)
            .unwrap_or(6) as usize
    }

    pub(super) fn names(&self) -> Vec<String> {
        let decimals = self.decimals();
        (0..self.count).map(|b| format!("{:.decimals$}", self.at(b))).collect()
    }

    pub(super) fn logits(&self, mean: f32) -> Vec<f32> {
        let z = |b: usize| (self.at(b) - f64::from(mean)) / self.sigma;
        (0..self.count).map(|b| (-0.5 * z(b) * z(b)) as f32).collect()
    }

    /// What one unit of the output adds to the logits.
    pub(super) fn slope(&self) -> Vec<f64> {
        let middle = 0.5 * (self.count - 1) as f64;
        (0..self.count).map(|b| (b as f64 - middle) * self.step / (self.sigma * self.sigma)).collect()
    }

    pub(super) fn link(&self) -> Link {
        let variance = self.sigma * self.sigma + self.step * self.step / 12.0;
        let scale = self.sigma * self.sigma / (2.0 * variance).sqrt();
        Link { outputs: 1, matrix: self.slope().iter().map(|s| s * scale).collect(), doubt: DOUBT }
    }

    /// Within the tolerance; half a thousandth of a step is rounding.
    pub(super) fn near(&self, a: usize, b: usize) -> bool {
        a.abs_diff(b) as f64 * self.step <= self.tolerance + 5e-4 * self.step
    }

    pub(super) fn agrees(&self, remark: usize, shown: usize, y: usize) -> bool {
        !self.near(shown, y) && (remark == 0) == (y < shown)
    }

    pub(super) fn multiply_likelihood(&self, likelihood: &mut [f64], feedback: Feedback, shown: usize, epsilon: f64) {
        let right = |y: usize, share: f64| {
            let at = epsilon + (1.0 - 2.0 * epsilon) * share;
            if self.near(shown, y) { at } else { 1.0 - at }
        };
        for (y, l) in likelihood.iter_mut().enumerate() {
            *l *= match feedback {
                Feedback::Thumb { up } => right(y, f64::from(u8::from(up))),
                Feedback::Stars { stars } => right(y, f64::from(stars - 1) / 4.0),
                Feedback::Correction { class } | Feedback::Demonstration { class } => {
                    let z = class.abs_diff(y) as f64 * self.step / (0.5 * self.tolerance);
                    (1.0 - epsilon) * (-0.5 * z * z).exp() + STRAY * epsilon
                }
                Feedback::Preference { over } => match shown.abs_diff(y).cmp(&over.abs_diff(y)) {
                    std::cmp::Ordering::Less => 1.0 - epsilon,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Greater => epsilon,
                },
                Feedback::NotSure | Feedback::Remark { .. } => 1.0,
            };
        }
    }

    pub(super) fn truth(&self, label: &str) -> Option<usize> {
        let value: f64 = label.trim().parse().ok().filter(|v: &f64| v.is_finite())?;
        Some(((value - self.low) / self.step).round().clamp(0.0, (self.count - 1) as f64) as usize)
    }

    pub(super) fn estimate(&self, probabilities: &[f32]) -> Estimate {
        let value = probabilities.iter().enumerate().map(|(b, &p)| self.at(b) * f64::from(p)).sum();
        let quantile = |q: f64| {
            let mut below = 0.0;
            let found = probabilities.iter().position(|&p| {
                below += f64::from(p);
                below >= q
            });
            self.at(found.unwrap_or(self.count - 1))
        };
        let (low, high) = (quantile(0.1), quantile(0.9));
        Estimate { value, low, high, unit: self.unit.clone(), decimals: self.decimals() }
    }
}
