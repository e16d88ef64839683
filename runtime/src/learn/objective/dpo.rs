//! DPO: one class rather than another, against a frozen reference (Rafailov et al. 2023), label-smoothed, with a
//! supervised term.
//!
//! `m = [log π(w) − log π(l)] − [the same under the reference]`; `ℓ = −(1−ε) log σ(βm) − ε log σ(−βm) − α log π(w)`. Of
//! a classifier, `m` is the difference of two changes of logits, so the first two terms move only `w` and `l`; α keeps
//! both from falling together. A correction of another answer is a pair of its own, a demonstration and a confirming
//! correction only the last term. For true preferences and generation: from a correction, plain cross-entropy learns
//! far more.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
    sigmoid, softplus,
};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static DPO: ObjectiveDef = ObjectiveDef {
    name: "dpo",
    summary: "pairs, this class rather than that, against the factory head as a reference; label-smoothed, plus \
        cross-entropy",
    learns_from: &["correction", "demonstration", "preference", "not-sure"],
    fit: HeadFit::Minibatch { learning_rate: 0.3 },
    step,
    cases: CASES,
};

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    let seen = check_example(example, hyper)?;
    let shown = example.shown;
    mean_over_presses(&DPO, example, |press, gradient| {
        let (winner, loser) = match press.feedback {
            Feedback::Correction { class } => (class, (class != shown).then_some(shown)),
            Feedback::Demonstration { class } => (class, None),
            Feedback::Preference { over } => (shown, Some(over)),
            _ => return None,
        };
        let mut loss = -hyper.alpha * seen.log_pi[winner];
        (0..gradient.len()).for_each(|c| gradient[c] = hyper.alpha * seen.pi[c]);
        gradient[winner] -= hyper.alpha;
        if let Some(loser) = loser {
            let eps = press.error_rate(hyper);
            let margin = hyper.beta
                * ((example.logits[winner] - example.logits[loser])
                    - (example.reference[winner] - example.reference[loser]));
            loss += (1.0 - eps) * softplus(-margin) + eps * softplus(margin);
            let slope = hyper.beta * (sigmoid(margin) - (1.0 - eps));
            gradient[winner] += slope;
            gradient[loser] -= slope;
        }
        Some(loss)
    })
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const OTHER: &[f64] = &[0.1, 0.4, 1.0, -0.6, 0.2];
const HYPER: Hyper = Hyper { beta: 0.7, alpha: 0.3, ..Hyper::DEFAULT };

const fn case(name: &'static str, shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: OTHER, shown, mu: 1.0, presses, hyper: HYPER }
}

const CASES: &[GradientCase] = &[
    case("preference", 3, &[Press::plain(Feedback::Preference { over: 2 })]),
    case("preference, confirmed", 3, &[Press { confirmed: true, ..Press::plain(Feedback::Preference { over: 2 }) }]),
    case("correction", 2, &[Press::plain(Feedback::Correction { class: 0 })]),
    case("correction to the class shown", 2, &[Press::plain(Feedback::Correction { class: 2 })]),
    case("demonstration", 2, &[Press::plain(Feedback::Demonstration { class: 4 })]),
    case("not sure", 2, &[Press::plain(Feedback::NotSure)]),
];
