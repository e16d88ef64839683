//! Q-learning: how well an answer will be received, learned for the answer shown alone.
//!
//! **γ = 0**, the row of [`super::OBJECTIVES`]: a Bernoulli reward model on the shown action, `Q(x, a) = σ(f_a −
//! c(x))`, binary cross-entropy with `r = 1` for 👍, `(s−1)/4` for `s` stars. `c(x)` is the level at which the
//! reference's values sum to one, as exactly one class is right; it is common to all classes, so the class with the
//! largest value is the class with the largest logit, and what is served needs no second head. A class that was named
//! has `r = 1`, and the shown one, where it was another, `r = 0`.
//!
//! **γ > 0**, [`Hyper::discount`]: answers that lead to what is seen next. `Q` is then the mean of all that will be
//! said, what comes `k` answers later counting `(1 − γ) γᵏ`, and stays a probability: the model above with
//! `r' = (1 − γ) r + γ Q⁻(x', argmax_b Q(x', b))` in the place of `r` (double DQN, van Hasselt et al. 2016), `x'` the
//! prediction pressed about next and `Q⁻` a target that follows slowly (`worth`). Of what nobody knows, what follows
//! the newest answer or would have followed another one, the present value stands for what comes.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
    sigmoid, softplus,
};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static Q_LEARNING: ObjectiveDef = ObjectiveDef {
    name: "q-learning",
    summary: "a reward model of the shown answer, one yes-or-no regression per class; learns nothing about classes not \
        shown",
    learns_from: &["thumb", "stars", "correction", "demonstration", "not-sure"],
    fit: HeadFit::Minibatch { learning_rate: 1.0 },
    step,
    cases: CASES,
};

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    check_example(example, hyper)?;
    let level = level(example.reference);
    let regress = |class: usize, r: f64, ahead: Option<f64>, gradient: &mut [f64]| {
        let value = example.logits[class] - level;
        let r = (1.0 - hyper.discount) * r + hyper.discount * ahead.unwrap_or_else(|| sigmoid(value));
        gradient[class] += sigmoid(value) - r;
        r * softplus(-value) + (1.0 - r) * softplus(value)
    };
    mean_over_presses(&Q_LEARNING, example, |press, gradient| {
        gradient.fill(0.0);
        match press.feedback {
            Feedback::Thumb { up } => Some(regress(example.shown, f64::from(u8::from(up)), hyper.ahead, gradient)),
            Feedback::Stars { stars } => {
                Some(regress(example.shown, f64::from(stars - 1) / 4.0, hyper.ahead, gradient))
            }
            Feedback::Correction { class } if class == example.shown => {
                Some(regress(class, 1.0, hyper.ahead, gradient))
            }
            Feedback::Correction { class } => {
                let named = regress(class, 1.0, None, gradient);
                Some(named + regress(example.shown, 0.0, hyper.ahead, gradient))
            }
            Feedback::Demonstration { class } => Some(regress(class, 1.0, None, gradient)),
            _ => None,
        }
    })
}

/// What is expected of an answer to an input with the logits `own`: the value, as the slow logits have it, of the class
/// whose own is the largest. All `[C]`; in [0, 1].
pub(crate) fn worth(own: &[f64], slow: &[f64], reference: &[f64]) -> f64 {
    let best = (0..own.len()).fold(0, |best, c| if own[c] > own[best] { c } else { best });
    sigmoid(slow[best] - level(reference))
}

/// The `c` at which `Σ_a σ(f_a − c) = 1`, by bisection: the sum falls from above one to below it within `ln C` of the
/// largest.
fn level(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut low, mut high) = (largest - 60.0, largest + (logits.len() as f64).ln() + 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if logits.iter().map(|f| sigmoid(f - middle)).sum::<f64>() > 1.0 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const OTHER: &[f64] = &[0.1, 0.4, 1.0, -0.6, 0.2];

const fn case(name: &'static str, shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: OTHER, shown, mu: 1.0, presses, hyper: Hyper::DEFAULT }
}

const CASES: &[GradientCase] = &[
    case("thumb up", 2, &[Press::plain(Feedback::Thumb { up: true })]),
    case("thumb down", 2, &[Press::plain(Feedback::Thumb { up: false })]),
    case("two stars", 1, &[Press::plain(Feedback::Stars { stars: 2 })]),
    case("correction", 2, &[Press::plain(Feedback::Correction { class: 3 })]),
    case("demonstration", 2, &[Press::plain(Feedback::Demonstration { class: 3 })]),
    case("not sure", 2, &[Press::plain(Feedback::NotSure)]),
    GradientCase {
        hyper: Hyper { discount: 0.6, ahead: Some(0.8), ..Hyper::DEFAULT },
        ..case("thumb down on the way to something better", 2, &[Press::plain(Feedback::Thumb { up: false })])
    },
    case("two people", 2, &[Press::plain(Feedback::Thumb { up: false }), Press::plain(Feedback::Stars { stars: 4 })]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_makes_the_values_of_the_reference_sum_to_one() {
        for logits in [&[0.0, 0.0][..], FIVE, &[30.0, -30.0, 0.0], &[0.0; 100]] {
            let c = level(logits);
            let sum: f64 = logits.iter().map(|f| sigmoid(f - c)).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
    }
}
