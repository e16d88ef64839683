//! Cross-entropy on the classes people named: `ℓ = −log π(c)`, `g = π − e_c`.
//!
//! `posterior` with ε = δ = 0 and corrections only; it takes every correction at its word. Offered for exact comparison
//! with what everybody does, and for data that was labelled with care.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static CE: ObjectiveDef = ObjectiveDef {
    name: "ce",
    summary: "cross-entropy on corrections and demonstrations, each taken at its word",
    learns_from: &["correction", "demonstration", "not-sure"],
    fit: HeadFit::Map,
    step,
    cases: CASES,
};

/// The likelihood under which the MAP refit is cross-entropy: 1 at the class named, 0 elsewhere; at settings with δ =
/// 0.
///
/// `None` when no press names a class. Where several do, the share of presses that name a class stands at it: the mean
/// of their cross-entropies has that target.
pub fn target(classes: usize, presses: &[Press]) -> Option<Vec<f64>> {
    let mut target = vec![0.0; classes];
    let mut named = 0.0;
    for press in presses {
        if let Feedback::Correction { class } | Feedback::Demonstration { class } = press.feedback {
            target[class] += 1.0;
            named += 1.0;
        }
    }
    target.iter_mut().for_each(|t| *t /= f64::max(named, 1.0));
    (named > 0.0).then_some(target)
}

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    let seen = check_example(example, hyper)?;
    mean_over_presses(&CE, example, |press, gradient| match press.feedback {
        Feedback::Correction { class } | Feedback::Demonstration { class } => {
            gradient.copy_from_slice(&seen.pi);
            gradient[class] -= 1.0;
            Some(-seen.log_pi[class])
        }
        _ => None,
    })
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];

const fn case(name: &'static str, shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: FIVE, shown, mu: 1.0, presses, hyper: Hyper::DEFAULT }
}

const CASES: &[GradientCase] = &[
    case("correction", 2, &[Press::plain(Feedback::Correction { class: 0 })]),
    case("correction to the class shown", 2, &[Press::plain(Feedback::Correction { class: 2 })]),
    case("demonstration", 2, &[Press::plain(Feedback::Demonstration { class: 4 })]),
    case(
        "two people who disagree",
        2,
        &[Press::plain(Feedback::Correction { class: 0 }), Press::plain(Feedback::Correction { class: 1 })],
    ),
    case("not sure", 2, &[Press::plain(Feedback::NotSure)]),
];
