//! Policy gradient: the answer shown is an action, the press its reward `H` in [−1, 1].
//!
//! `∇J = E[∇ log π(a|x) · (H − b)]`, off policy with the weight `r = π(a)/μ` of the probability `μ` with which `a` was
//! shown: `ℓ = −(H − b)·ρ(r) + β·KL(π‖π_ref)`, `ρ(r) = r` up to the clip `k` and `k(1 + ln(r/k))` beyond it, so that
//! `ρ'·∇r = min(r, k)·∇ log π(a)`: the usual stop-gradient of the weight, as the true derivative of a loss. The
//! baseline `b` is a running mean of rewards that excludes the press at hand, which keeps the estimate unbiased. Where
//! a class was named, the supervised term `−log π(c)` stands beside it: `L' = L + λH` done right.
//!
//! Written as `L + λ·mean(H)`, the feedback is a constant: it has no gradient, and minimising it would minimise
//! approval. That is the mistake this file exists to avoid; a test shows that gradients at H = +1 and H = −1 differ
//! here and do not there.
//!
//! It needs answers drawn from π with their μ on record. Where the top answer is always shown, μ = 1 and the weight is
//! π(a): a heuristic with the right sign, no estimate.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
    reward,
};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static POLICY_GRADIENT: ObjectiveDef = ObjectiveDef {
    name: "policy-gradient",
    summary: "REINFORCE with a baseline, a clipped importance weight and a KL leash to the factory head; wants sampled \
        answers",
    learns_from: &["thumb", "stars", "correction", "demonstration", "not-sure"],
    fit: HeadFit::Minibatch { learning_rate: 0.3 },
    step,
    cases: CASES,
};

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    let seen = check_example(example, hyper)?;
    let kl = seen.kl();
    mean_over_presses(&POLICY_GRADIENT, example, |press, gradient| {
        let mut loss = hyper.kl_weight * kl;
        for c in 0..gradient.len() {
            gradient[c] = hyper.kl_weight * seen.pi[c] * (seen.log_pi[c] - seen.log_ref[c] - kl);
        }
        match press.feedback {
            Feedback::Correction { class } | Feedback::Demonstration { class } => {
                loss -= seen.log_pi[class];
                (0..gradient.len()).for_each(|c| gradient[c] += seen.pi[c]);
                gradient[class] -= 1.0;
            }
            _ => {
                let advantage = reward(press.feedback, example.shown)? - hyper.baseline;
                let ratio = seen.pi[example.shown] / example.mu;
                let weight = ratio.min(hyper.clip);
                let rho = if ratio <= hyper.clip { ratio } else { hyper.clip * (1.0 + (ratio / hyper.clip).ln()) };
                loss -= advantage * rho;
                (0..gradient.len()).for_each(|c| gradient[c] += weight * advantage * seen.pi[c]);
                gradient[example.shown] -= weight * advantage;
            }
        }
        Some(loss)
    })
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const OTHER: &[f64] = &[0.1, 0.4, 1.0, -0.6, 0.2];
const HYPER: Hyper = Hyper { baseline: 0.2, kl_weight: 0.3, ..Hyper::DEFAULT };

const fn case(name: &'static str, shown: usize, mu: f64, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: OTHER, shown, mu, presses, hyper: HYPER }
}

const CASES: &[GradientCase] = &[
    case("thumb up, on policy", 2, 0.6, &[Press::plain(Feedback::Thumb { up: true })]),
    case("thumb down on an unlikely class", 1, 0.1, &[Press::plain(Feedback::Thumb { up: false })]),
    case("thumb up with the weight clipped", 2, 0.1, &[Press::plain(Feedback::Thumb { up: true })]),
    case("argmax display", 2, 1.0, &[Press::plain(Feedback::Thumb { up: false })]),
    case("two stars", 0, 0.3, &[Press::plain(Feedback::Stars { stars: 2 })]),
    case("correction", 2, 0.6, &[Press::plain(Feedback::Correction { class: 3 })]),
    case("demonstration", 2, 1.0, &[Press::plain(Feedback::Demonstration { class: 1 })]),
    case("not sure", 2, 0.6, &[Press::plain(Feedback::NotSure)]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;
    use crate::learn::objective::softmax_into;

    /// Central differences of `loss` at `logits`.
    fn differences(logits: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        (0..logits.len())
            .map(|c| {
                let (mut up, mut down) = (logits.to_vec(), logits.to_vec());
                up[c] += 1e-5;
                down[c] -= 1e-5;
                (loss(&up) - loss(&down)) / 2e-5
            })
            .collect()
    }

    #[test]
    fn feedback_added_as_a_constant_has_no_gradient_and_here_it_has_one_of_the_right_sign() {
        let gradient = |up: bool| {
            let presses = [Press::plain(Feedback::Thumb { up })];
            let example = Example { logits: FIVE, reference: FIVE, shown: 2, mu: 0.7, presses: &presses };
            step(&example, &Hyper::default()).unwrap().gradient
        };
        let (up, down) = (gradient(true), gradient(false));
        assert!(up[2] < 0.0 && down[2] > 0.0 && (up[2] - down[2]).abs() > 0.1);
        // The mistake: L + λ·mean(H) with the shown answer as its own label.
        let naive = |h: f64| {
            differences(FIVE, |f| {
                let mut pi = vec![0.0; 5];
                softmax_into(f, &mut pi);
                -pi[2].ln() + 0.5 * h
            })
        };
        for (a, b) in naive(1.0).into_iter().zip(naive(-1.0)) {
            assert!((a - b).abs() < 1e-9, "a constant has found a gradient: {a} and {b}");
        }
    }

    #[test]
    fn over_sampled_answers_the_mean_gradient_is_that_of_the_expected_reward_whatever_the_baseline() {
        let rewards = [1.0, -1.0, -1.0, 1.0, -1.0];
        let mut pi = vec![0.0; 5];
        softmax_into(FIVE, &mut pi);
        let expected: f64 = pi.iter().zip(rewards).map(|(p, r)| p * r).sum();
        let exact: Vec<f64> = (0..5).map(|c| -pi[c] * (rewards[c] - expected)).collect();
        for baseline in [0.0, 0.4] {
            let hyper = Hyper { baseline, kl_weight: 0.0, ..Hyper::DEFAULT };
            // The expectation over what is shown, exactly: every class with its probability.
            let mut mean = [0.0; 5];
            for shown in 0..5 {
                let presses = [Press::plain(Feedback::Thumb { up: rewards[shown] > 0.0 })];
                let example = Example { logits: FIVE, reference: FIVE, shown, mu: pi[shown], presses: &presses };
                let g = step(&example, &hyper).unwrap().gradient;
                (0..5).for_each(|c| mean[c] += pi[shown] * g[c]);
            }
            (0..5).for_each(|c| assert!((mean[c] - exact[c]).abs() < 1e-12, "{mean:?} and {exact:?}"));
        }
        // And by sampling, so that the reading of μ is covered too.
        let mut mean = [0.0; 5];
        let n = 20_000;
        for t in 0..n {
            let u = uniform(5, t);
            let mut sum = 0.0;
            let shown = pi
                .iter()
                .position(|p| {
                    sum += p;
                    u < sum
                })
                .unwrap_or(4);
            let presses = [Press::plain(Feedback::Thumb { up: rewards[shown] > 0.0 })];
            let example = Example { logits: FIVE, reference: FIVE, shown, mu: pi[shown], presses: &presses };
            let g = step(&example, &Hyper { kl_weight: 0.0, ..Hyper::DEFAULT }).unwrap().gradient;
            (0..5).for_each(|c| mean[c] += g[c] / n as f64);
        }
        (0..5).for_each(|c| assert!((mean[c] - exact[c]).abs() < 0.02, "{mean:?} and {exact:?}"));
    }
}
