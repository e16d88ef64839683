//! KTO: unpaired thumbs against a frozen reference (Ethayarajh et al. 2024), with the KL of a classifier computed
//! exactly.
//!
//! `h = log π(a) − log π_ref(a)`, `z₀ = max(0, KL(π‖π_ref))` without gradient. 👍: `ℓ = λ_D (1 − σ(β(h − z₀)))`; 👎: `ℓ =
//! λ_U (1 − σ(β(z₀ − h)))`. A correction is a 👍 for the class named and, where another was shown, a 👎 for that one.
//!
//! Training libraries estimate `z₀` from mismatched pairs of a batch and break at batches of one. Here it is a sum over
//! C classes, so a batch of one is as good as any and nothing is ever NaN. The minibatch solver passes the batch's mean
//! as [`Hyper::kl_batch`]; without it the example's own KL is used, held constant.
//!
//! It presupposes a reference that is nearly right: far from it the sigmoid saturates and learning stops. Nor can it
//! take back what thumbs down have made certain: `∂ log π(a)/∂f` vanishes as `π(a) → 1`, so two hundred 👎 in a row end
//! with one class that was hardly pressed about in .4 of the answers, and in .98 where the reference is far off; with ten
//! times the pull towards the factory head it is .75, and half as much is learned. Trip-wires stop it. For
//! preferences and generation, not for a world that has changed.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
    sigmoid,
};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static KTO: ObjectiveDef = ObjectiveDef {
    name: "kto",
    summary: "unpaired thumbs against the factory head as a reference, with its exact KL; for models that are nearly \
        right",
    learns_from: &["thumb", "stars", "correction", "demonstration", "not-sure"],
    fit: HeadFit::Minibatch { learning_rate: 0.3 },
    step,
    cases: CASES,
};

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    let seen = check_example(example, hyper)?;
    let z0 = hyper.kl_batch.unwrap_or_else(|| seen.kl()).max(0.0);
    // Adds one thumb on `class`; returns its loss.
    let thumb = |class: usize, up: bool, gradient: &mut [f64]| {
        let (sign, weight) = if up { (1.0, hyper.weight_up) } else { (-1.0, hyper.weight_down) };
        let s = sigmoid(sign * hyper.beta * (seen.log_pi[class] - seen.log_ref[class] - z0));
        let slope = -sign * weight * hyper.beta * s * (1.0 - s);
        (0..gradient.len()).for_each(|c| gradient[c] -= slope * seen.pi[c]);
        gradient[class] += slope;
        weight * (1.0 - s)
    };
    mean_over_presses(&KTO, example, |press, gradient| {
        gradient.fill(0.0);
        match press.feedback {
            Feedback::Thumb { up } => Some(thumb(example.shown, up, gradient)),
            Feedback::Stars { stars } if stars != 3 => Some(thumb(example.shown, stars > 3, gradient)),
            Feedback::Correction { class } | Feedback::Demonstration { class } => {
                let mut loss = thumb(class, true, gradient);
                if class != example.shown && matches!(press.feedback, Feedback::Correction { .. }) {
                    loss += thumb(example.shown, false, gradient);
                }
                Some(loss)
            }
            _ => None,
        }
    })
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const OTHER: &[f64] = &[0.1, 0.4, 1.0, -0.6, 0.2];
const HYPER: Hyper = Hyper { beta: 0.7, kl_batch: Some(0.15), weight_up: 1.2, ..Hyper::DEFAULT };

const fn case(name: &'static str, shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: OTHER, shown, mu: 1.0, presses, hyper: HYPER }
}

const CASES: &[GradientCase] = &[
    case("thumb up", 2, &[Press::plain(Feedback::Thumb { up: true })]),
    case("thumb down", 2, &[Press::plain(Feedback::Thumb { up: false })]),
    case("thumb down on an unlikely class", 1, &[Press::plain(Feedback::Thumb { up: false })]),
    case("five stars", 0, &[Press::plain(Feedback::Stars { stars: 5 })]),
    case("three stars say nothing", 0, &[Press::plain(Feedback::Stars { stars: 3 })]),
    case("correction", 2, &[Press::plain(Feedback::Correction { class: 3 })]),
    case("demonstration", 2, &[Press::plain(Feedback::Demonstration { class: 3 })]),
    case("not sure", 2, &[Press::plain(Feedback::NotSure)]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_one_far_from_the_reference_is_finite_and_without_kl_given_its_own_is_used() {
        for scale in [0.0, 1.0, 100.0, 1e6] {
            let logits: Vec<f64> = FIVE.iter().map(|f| f * scale).collect();
            for up in [true, false] {
                let presses = [Press::plain(Feedback::Thumb { up })];
                let example = Example { logits: &logits, reference: OTHER, shown: 1, mu: 1.0, presses: &presses };
                let own = step(&example, &Hyper::default()).unwrap();
                assert!(own.loss.is_finite() && own.gradient.iter().all(|g| g.is_finite()), "{own:?}");
            }
        }
        let presses = [Press::plain(Feedback::Thumb { up: true })];
        let example = Example { logits: FIVE, reference: OTHER, shown: 2, mu: 1.0, presses: &presses };
        let own = check_example(&example, &Hyper::default()).unwrap().kl();
        assert!(own > 0.05);
        let given = step(&example, &Hyper { kl_batch: Some(own), ..Hyper::default() }).unwrap();
        assert_eq!(step(&example, &Hyper::default()).unwrap(), given);
    }
}
