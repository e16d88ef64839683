//! Posterior target: every press is a likelihood over the true class, the target is what the model should believe after
//! it.
//!
//! `t ∝ π̃ ⊙ L` with `π̃ = (1−δ)π + δ/C`, and `g = π − t`. Thumbs are partial labels, so no importance weights are
//! needed and the estimate is right for any display rule, argmax included. At δ = 0, `g` is exactly `∇(−log Σ_y π_y
//! L_y)`; at δ > 0 it is a fixed-point direction that is the gradient of nothing, and the loss reported is `−log Σ_y
//! π̃_y L_y`.
//!
//! A press whose likelihood is the same for every class (`not-sure`, three stars, a 👍 and a 👎 of equal ε) says nothing
//! and has no gradient; without that rule δ would pull the belief towards uniform on it.
//!
//! δ bounds how sure presses can make the model: at C = 10, ε = 0.1 and δ = 0.2 repeated 👍 settle at π(a) ≈ 0.97, at
//! δ = 0.4 at 0.94. An answer that is surer already is left as it is: δ gives way where it would turn a press against
//! what it says.
use super::{Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example};
use crate::learn::error::LearnError;

/// The row of [`super::OBJECTIVES`].
pub static POSTERIOR: ObjectiveDef = ObjectiveDef {
    name: "posterior",
    summary: "each press is a likelihood over the true class; moves the belief to the posterior, bounded by one per \
        press",
    learns_from: &["thumb", "correction", "demonstration", "stars", "preference", "not-sure"],
    fit: HeadFit::Map,
    step,
    cases: CASES,
};

/// Multiplies `L(y) = P(press | y, shown)` into `likelihood` (`[C]`, ones at first).
///
/// Per press, with error rate ε: 👍 `1−ε` at the shown class, ε elsewhere; 👎 the reverse; a named class `1−ε`, the
/// others `ε/(C−1)`; `s` stars with `u = (s−1)/4`: `ε+(1−2ε)u` and `ε+(1−2ε)(1−u)`; a preference `1−ε`, ε, the others
/// ½.
///
/// # Errors
/// Those of [`Feedback::check`]; [`LearnError::UnsupportedFeedback`] for a remark, whose meaning is the task's.
pub fn multiply_likelihood(
    likelihood: &mut [f64],
    press: Press,
    shown: usize,
    hyper: &Hyper,
) -> Result<(), LearnError> {
    let classes = likelihood.len();
    press.feedback.check(shown, classes)?;
    let eps = press.error_rate(hyper);
    let mut scale = |class: usize, at: f64, elsewhere: f64| {
        for (y, l) in likelihood.iter_mut().enumerate() {
            *l *= if y == class { at } else { elsewhere };
        }
    };
    match press.feedback {
        Feedback::Thumb { up: true } => scale(shown, 1.0 - eps, eps),
        Feedback::Thumb { up: false } => scale(shown, eps, 1.0 - eps),
        Feedback::Correction { class } | Feedback::Demonstration { class } => {
            scale(class, 1.0 - eps, eps / (classes as f64 - 1.0).max(1.0));
        }
        Feedback::Stars { stars } => {
            let u = f64::from(stars - 1) / 4.0;
            scale(shown, eps + (1.0 - 2.0 * eps) * u, eps + (1.0 - 2.0 * eps) * (1.0 - u));
        }
        Feedback::Preference { over } => {
            // Two factors per class so that the classes not compared get ½.
            for (y, l) in likelihood.iter_mut().enumerate() {
                *l *= if y == shown {
                    1.0 - eps
                } else if y == over {
                    eps
                } else {
                    0.5
                };
            }
        }
        // What a remark means is the task's to say.
        Feedback::Remark { .. } => {
            let feedback = press.feedback.kind();
            return Err(LearnError::UnsupportedFeedback { objective: POSTERIOR.name, feedback });
        }
        Feedback::NotSure => {}
    }
    Ok(())
}

/// Whether a likelihood distinguishes any two classes.
pub fn is_informative(likelihood: &[f64]) -> bool {
    let (low, high) = likelihood.iter().fold((f64::INFINITY, 0.0_f64), |(lo, hi), &l| (lo.min(l), hi.max(l)));
    // Products of the same factors in another order differ by rounding only.
    high - low > 1e-12 * high
}

/// Writes `g = π − t` over `pi` (`[C]`, a probability vector) and returns the loss `−log Σ π̃ L`.
///
/// `|g| ≤ 1` in every component. A likelihood that says nothing gives zeros. The caller keeps lengths equal.
pub fn gradient_in_place(pi: &mut [f64], likelihood: &[f64], delta: f64) -> f64 {
    let uniform = 1.0 / pi.len() as f64;
    weigh(pi, |_| uniform, likelihood, delta)
}

/// As [`gradient_in_place`] with `doubtful` (`[C]`, a probability vector) mixed into the belief in the place of the
/// uniform one.
pub fn gradient_with_doubt(pi: &mut [f64], doubtful: &[f64], likelihood: &[f64], delta: f64) {
    weigh(pi, |y| doubtful[y], likelihood, delta);
}

fn weigh(pi: &mut [f64], doubtful: impl Fn(usize) -> f64, likelihood: &[f64], delta: f64) -> f64 {
    let informative = is_informative(likelihood);
    let delta = if informative { never_against(pi, &doubtful, likelihood, delta) } else { delta };
    let belief = |y: usize, p: f64| (1.0 - delta) * p + delta * doubtful(y);
    let mass: f64 = pi.iter().zip(likelihood).enumerate().map(|(y, (&p, &l))| belief(y, p) * l).sum();
    if !informative || mass <= 0.0 {
        // mass = 0: ε = δ = 0 and the press contradicts certainty; no posterior exists, so there is no direction to go.
        pi.fill(0.0);
    } else {
        for (y, (p, &l)) in pi.iter_mut().zip(likelihood).enumerate() {
            *p -= belief(y, *p) * l / mass;
        }
    }
    -mass.max(f64::MIN_POSITIVE).ln()
}

/// The share of doubt up to `delta` with which what was said does not turn against itself: the classes it speaks for
/// most, `S`, are believed no less afterwards.
///
/// Doubt makes a belief of 0.999 one of 0.62, and a 👍 does not make that 0.999 again; unmended, praise for an answer
/// surer than doubt lets any be would lower it. With `t(S) = A/B`, both linear in δ, `A − π(S) B = (1−δ) u + δ v` falls
/// to zero at `δ = u / (u − v)` where `v < 0`; `u ≥ 0` is what the press alone is worth.
fn never_against(pi: &[f64], doubtful: impl Fn(usize) -> f64, likelihood: &[f64], delta: f64) -> f64 {
    let most = likelihood.iter().fold(0.0_f64, |a, &b| a.max(b));
    let (mut inside, mut outside, mut doubt_inside) = (0.0, 0.0, 0.0);
    let (mut short, mut doubt_outside) = (0.0, 0.0);
    for (y, (&p, &l)) in pi.iter().zip(likelihood).enumerate() {
        if most - l <= 1e-12 * most {
            inside += p;
            doubt_inside += doubtful(y);
        } else {
            outside += p;
            short += p * (most - l);
            doubt_outside += doubtful(y) * l;
        }
    }
    let (u, v) = (inside * short, most * doubt_inside * outside - inside * doubt_outside);
    if v >= 0.0 { delta } else { delta.min(u / (u - v)) }
}

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    let mut gradient = check_example(example, hyper)?.pi;
    let mut likelihood = vec![1.0; gradient.len()];
    for &press in example.presses {
        multiply_likelihood(&mut likelihood, press, example.shown, hyper)?;
    }
    let loss = gradient_in_place(&mut gradient, &likelihood, hyper.delta);
    Ok(Step { loss, gradient })
}

const EXACT: Hyper = Hyper { delta: 0.0, ..Hyper::DEFAULT };
const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const TWO: &[f64] = &[1.5, -0.5];

const fn press(feedback: Feedback) -> Press {
    Press::plain(feedback)
}

const fn case(name: &'static str, logits: &'static [f64], shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits, reference: logits, shown, mu: 1.0, presses, hyper: EXACT }
}

const CASES: &[GradientCase] = &[
    case("thumb up on the top class", FIVE, 2, &[press(Feedback::Thumb { up: true })]),
    case("thumb down on the top class", FIVE, 2, &[press(Feedback::Thumb { up: false })]),
    case("thumb down on an unlikely class", FIVE, 1, &[press(Feedback::Thumb { up: false })]),
    case("correction", FIVE, 2, &[press(Feedback::Correction { class: 0 })]),
    case("demonstration", FIVE, 2, &[press(Feedback::Demonstration { class: 4 })]),
    case("two stars", FIVE, 2, &[press(Feedback::Stars { stars: 2 })]),
    case("three stars say nothing", FIVE, 2, &[press(Feedback::Stars { stars: 3 })]),
    case("five stars", FIVE, 0, &[press(Feedback::Stars { stars: 5 })]),
    case("preference", FIVE, 3, &[press(Feedback::Preference { over: 2 })]),
    case("not sure", FIVE, 2, &[press(Feedback::NotSure)]),
    case("binary thumb down", TWO, 0, &[press(Feedback::Thumb { up: false })]),
    case("binary correction", TWO, 0, &[press(Feedback::Correction { class: 1 })]),
    case(
        "a thumb and a confirmed correction multiply",
        FIVE,
        2,
        &[press(Feedback::Thumb { up: false }), Press { confirmed: true, ..press(Feedback::Correction { class: 4 }) }],
    ),
];
