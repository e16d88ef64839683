//! Objectives: what a press asks of the logits.
//!
//! An objective turns one shown prediction and the presses on it into a loss and its gradient with respect to the
//! logits. It knows neither features nor weights: the head solver and the gradient scopes (bias, LoRA) carry `g` to
//! them. To add one: write `objective/<name>.rs`, add a row to [`OBJECTIVES`]; a row without words or gradient cases
//! fails by name.
//!
//! Letters: `C` classes, `a` the shown class, `π = softmax(logits)`, `L(y) = P(press | y, a)`.
use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_class, check_len};

pub mod ce;
pub mod dpo;
pub mod kto;
pub mod policy_gradient;
pub mod posterior;
pub mod q_learning;

/// Every objective hone can learn with.
pub static OBJECTIVES: &[&ObjectiveDef] =
    &[&posterior::POSTERIOR, &ce::CE, &policy_gradient::POLICY_GRADIENT, &kto::KTO, &dpo::DPO, &q_learning::Q_LEARNING];

/// The objective of that name; `None` for a name not in [`OBJECTIVES`].
pub fn find(name: &str) -> Option<&'static ObjectiveDef> {
    OBJECTIVES.iter().copied().find(|objective| objective.name == name)
}

/// The names of all of them, for people.
pub fn names() -> String {
    OBJECTIVES.iter().map(|o| o.name).collect::<Vec<_>>().join(", ")
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
    /// Something said about the shown answer that its task has a meaning for; see [`TASKS`](crate::learn::task::TASKS).
    Remark {
        /// The remark's number among those of the task.
        remark: usize,
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
            Feedback::Remark { .. } => "remark",
            Feedback::NotSure => "not-sure",
        }
    }

    /// Whether the press names the true class, as corrections and demonstrations do.
    pub fn names_class(self) -> bool {
        matches!(self, Feedback::Correction { .. } | Feedback::Demonstration { .. })
    }

    /// Whether it says anything for or against a class: neither "I do not know" nor the middle of the stars does.
    pub fn says_something(self) -> bool {
        !matches!(self, Feedback::NotSure | Feedback::Stars { stars: 3 })
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Press {
    /// What was said.
    pub feedback: Feedback,
    /// Whether the presser confirmed it (long press, repeat), so that the smaller error rate applies.
    pub confirmed: bool,
    /// How often whoever made it is wrong, in [0, 0.5), as confirmed presses tell of them; `None` for the usual rate.
    pub epsilon: Option<f64>,
}

impl Press {
    /// A press without emphasis of somebody about whom nothing is known.
    pub const fn plain(feedback: Feedback) -> Press {
        Press { feedback, confirmed: false, epsilon: None }
    }

    /// The error rate ε to weigh it with.
    pub fn error_rate(&self, hyper: &Hyper) -> f64 {
        self.epsilon.unwrap_or(if self.confirmed { hyper.epsilon_confirmed } else { hyper.epsilon })
    }
}

/// One shown prediction and everything said about it.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// Logits of the model being trained, `[C]`.
    pub logits: &'a [f64],
    /// Logits of the frozen reference (the factory model), `[C]`; `posterior` and `ce` do not read them.
    pub reference: &'a [f64],
    /// The shown class `a`.
    pub shown: usize,
    /// Probability with which `a` was chosen to be shown, in (0, 1]; only `policy-gradient` needs an importance weight
    /// and reads it.
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
    /// `policy-gradient`: weight of KL(π‖π_ref), at least 0.
    pub kl_weight: f64,
    /// `policy-gradient`: largest importance weight π(a)/μ, above 0.
    pub clip: f64,
    /// `policy-gradient`: mean reward before this press, in [−1, 1]. The solver keeps it; 0 where nobody does.
    pub baseline: f64,
    /// `kto`, `dpo`: steepness β of the sigmoid, above 0. Of a classifier 1; 0.1 is for log-ratios of whole sequences.
    pub beta: f64,
    /// `kto`: mean KL(π‖π_ref) of the batch at hand, which the solver computes; `None` for the example's own.
    pub kl_batch: Option<f64>,
    /// `kto`: weight λ_D of what was wanted; the solver balances it with the counts.
    pub weight_up: f64,
    /// `kto`: weight λ_U of what was not.
    pub weight_down: f64,
    /// `dpo`: weight α of cross-entropy on the winner, at least 0.
    pub alpha: f64,
    /// `q-learning`: how much what comes after an answer counts beside what was said of it, γ in [0, 1).
    pub discount: f64,
    /// `q-learning`: what is expected to come after the answer shown, in [0, 1], which the solver computes; `None`
    /// where nobody knows.
    pub ahead: Option<f64>,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper::DEFAULT
    }
}

impl Hyper {
    /// The default settings, for constants.
    pub const DEFAULT: Hyper = Hyper {
        epsilon: 0.1,
        epsilon_confirmed: 0.02,
        delta: 0.2,
        kl_weight: 0.05,
        clip: 2.0,
        baseline: 0.0,
        beta: 1.0,
        kl_batch: None,
        weight_up: 1.0,
        weight_down: 1.0,
        alpha: 0.5,
        discount: 0.0,
        ahead: None,
    };

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
        if !(-1.0..=1.0).contains(&self.baseline) {
            return Err(LearnError::OutOfRange { what: "baseline", value: self.baseline, range: "[-1, 1]" });
        }
        if !(0.0..1.0).contains(&self.discount) {
            return Err(LearnError::OutOfRange { what: "discount", value: self.discount, range: "[0, 1)" });
        }
        if let Some(value) = self.ahead.filter(|v| !(0.0..=1.0).contains(v)) {
            return Err(LearnError::OutOfRange { what: "ahead", value, range: "[0, 1]" });
        }
        for (what, value, least) in [
            ("kl_weight", self.kl_weight, 0.0),
            ("alpha", self.alpha, 0.0),
            ("kl_batch", self.kl_batch.unwrap_or(0.0), 0.0),
            ("weight_up", self.weight_up, 0.0),
            ("weight_down", self.weight_down, 0.0),
            ("clip", self.clip, f64::MIN_POSITIVE),
            ("beta", self.beta, f64::MIN_POSITIVE),
        ] {
            if !(value >= least && value.is_finite()) {
                let range = if least > 0.0 { "(0, inf)" } else { "[0, inf)" };
                return Err(LearnError::OutOfRange { what, value, range });
            }
        }
        Ok(())
    }
}

impl Hyper {
    /// The settings where examples were wanted (👍) and unwanted (👎) so often: `kto` weighs the rarer kind up, to a
    /// ratio of 4 : 3 at most.
    pub fn balanced(self, wanted: usize, unwanted: usize) -> Hyper {
        let ratio = unwanted.max(1) as f64 / wanted.max(1) as f64;
        Hyper {
            weight_up: self.weight_up * ratio.clamp(1.0, BALANCE),
            weight_down: self.weight_down * ratio.recip().clamp(1.0, BALANCE),
            ..self
        }
    }
}

/// Most that the rarer kind of thumb is weighed up.
const BALANCE: f64 = 4.0 / 3.0;

/// What an objective answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The loss, in nats, for logs and plots.
    pub loss: f64,
    /// dL/dlogits, `[C]`.
    pub gradient: Vec<f64>,
}

/// How the correction of a head is found for an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadFit {
    /// A convex loss with a bounded curvature: the MAP refit, without a learning rate.
    Map,
    /// Momentum on minibatches of replayed presses.
    Minibatch {
        /// Step, for features of |z|² near 2.
        learning_rate: f64,
    },
}

/// One row of [`OBJECTIVES`].
pub struct ObjectiveDef {
    /// The name on the command line and in adapters.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub summary: &'static str,
    /// The kinds of press it learns from, as [`Feedback::kind`] spells them.
    pub learns_from: &'static [&'static str],
    /// How a head is fitted to it.
    pub fit: HeadFit,
    /// Loss and gradient of one example.
    ///
    /// # Errors
    /// [`LearnError`] when lengths, classes, stars, μ or settings are out of range, or a press is of no supported kind.
    pub step: fn(&Example<'_>, &Hyper) -> Result<Step, LearnError>,
    /// Examples at which `gradient` is the derivative of `loss`; compared with central differences by the tests.
    pub cases: &'static [GradientCase],
}

impl ObjectiveDef {
    /// Checks that it can be learned by with these settings.
    ///
    /// # Errors
    /// Those of [`Hyper::check`]; [`LearnError::NoDiscount`] for a discount that it would not heed.
    pub fn check(&self, hyper: &Hyper) -> Result<(), LearnError> {
        hyper.check()?;
        match hyper.discount > 0.0 && self.name != q_learning::Q_LEARNING.name {
            true => Err(LearnError::NoDiscount { objective: self.name }),
            false => Ok(()),
        }
    }
}

impl std::fmt::Debug for ObjectiveDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectiveDef").field("name", &self.name).finish_non_exhaustive()
    }
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

/// `softmax(logits)` into `out`; both `[C]`. The largest logit is subtracted first, so finite logits give finite
/// probabilities.
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

/// Logarithms of `softmax(logits)`, `[C]`; finite for finite logits.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|f| (f - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|f| (f - largest) - log_sum).collect()
}

/// What a person's answer is worth to the one who showed class `shown`, in [−1, 1]; `None` when the press does not say.
///
/// 👍 1, 👎 −1, stars from −1 to 1 in halves, a class named 1 where it was the one shown and −1 otherwise.
pub fn reward(feedback: Feedback, shown: usize) -> Option<f64> {
    let sign = |good: bool| if good { 1.0 } else { -1.0 };
    match feedback {
        Feedback::Thumb { up } => Some(sign(up)),
        Feedback::Stars { stars } => Some((f64::from(stars) - 3.0) / 2.0),
        Feedback::Correction { class } => Some(sign(class == shown)),
        Feedback::Demonstration { .. } | Feedback::Preference { .. } | Feedback::Remark { .. } | Feedback::NotSure => {
            None
        }
    }
}

/// The mean of what several presses on class `shown` are worth; `None` when none of them says.
pub fn mean_reward(presses: &[Press], shown: usize) -> Option<f64> {
    let rewards: Vec<f64> = presses.iter().filter_map(|p| reward(p.feedback, shown)).collect();
    (!rewards.is_empty()).then(|| rewards.iter().sum::<f64>() / rewards.len() as f64)
}

/// `1 / (1 + e^−x)` without overflow.
pub(crate) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// `ln(1 + e^x)` without overflow.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// A checked example's probabilities.
pub(crate) struct Beliefs {
    pub(crate) pi: Vec<f64>,
    pub(crate) log_pi: Vec<f64>,
    pub(crate) log_ref: Vec<f64>,
}

impl Beliefs {
    /// KL(π‖π_ref), exactly; 0 where rounding would make it negative.
    pub(crate) fn kl(&self) -> f64 {
        let terms = self.pi.iter().zip(self.log_pi.iter().zip(&self.log_ref));
        terms.map(|(p, (f, r))| p * (f - r)).sum::<f64>().max(0.0)
    }
}

/// Checks lengths, finiteness, μ, settings and the presses' classes.
pub(crate) fn check_example(example: &Example<'_>, hyper: &Hyper) -> Result<Beliefs, LearnError> {
    hyper.check()?;
    let classes = example.logits.len();
    check_len("the reference logits", classes, example.reference.len())?;
    if !(example.mu > 0.0 && example.mu <= 1.0) {
        return Err(LearnError::OutOfRange { what: "mu", value: example.mu, range: "(0, 1]" });
    }
    for (what, logits) in [("the logits", example.logits), ("the reference logits", example.reference)] {
        if let Some(index) = logits.iter().position(|f| !f.is_finite()) {
            return Err(LearnError::NonFinite { what, index, value: logits[index] });
        }
    }
    check_class("the shown class", example.shown, classes)?;
    for press in example.presses {
        press.feedback.check(example.shown, classes)?;
    }
    let log_pi = log_softmax(example.logits);
    let pi = log_pi.iter().map(|f| f.exp()).collect();
    Ok(Beliefs { pi, log_pi, log_ref: log_softmax(example.reference) })
}

/// The mean of loss and gradient over the presses that say something: people who agree do not make the step longer.
///
/// `one` writes the gradient of one press and returns its loss, `None` for a press that says nothing. Without a press
/// that does, there is no loss and no gradient: never a step towards the reference alone.
///
/// # Errors
/// [`LearnError::UnsupportedFeedback`] for a kind the objective does not learn from.
pub(crate) fn mean_over_presses(
    objective: &ObjectiveDef,
    example: &Example<'_>,
    mut one: impl FnMut(&Press, &mut [f64]) -> Option<f64>,
) -> Result<Step, LearnError> {
    let mut step = Step { loss: 0.0, gradient: vec![0.0; example.logits.len()] };
    let mut gradient = step.gradient.clone();
    let mut n = 0.0;
    for press in example.presses {
        let feedback = press.feedback.kind();
        if !objective.learns_from.contains(&feedback) {
            return Err(LearnError::UnsupportedFeedback { objective: objective.name, feedback });
        }
        if let Some(loss) = one(press, &mut gradient) {
            n += 1.0;
            step.loss += loss;
            step.gradient.iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += g);
        }
    }
    if n > 1.0 {
        step.loss /= n;
        step.gradient.iter_mut().for_each(|g| *g /= n);
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;

    fn example<'a>(logits: &'a [f64], shown: usize, presses: &'a [Press]) -> Example<'a> {
        Example { logits, reference: logits, shown, mu: 1.0, presses }
    }

    fn thumb(up: bool) -> [Press; 1] {
        [Press::plain(Feedback::Thumb { up })]
    }

    fn random_logits(seed: u64, classes: usize, spread: f64) -> Vec<f64> {
        (0..classes).map(|c| spread * (uniform(seed, c as u64) - 0.5)).collect()
    }

    #[test]
    fn every_objective_has_a_name_words_kinds_and_gradient_cases() {
        assert!(!OBJECTIVES.is_empty());
        for (i, objective) in OBJECTIVES.iter().enumerate() {
            let name = objective.name;
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "name {name:?}");
            assert!(OBJECTIVES[..i].iter().all(|o| o.name != name), "{name} is registered twice");
            assert!(objective.summary.len() > 20, "{name} has no summary");
            assert!(!objective.learns_from.is_empty(), "{name} learns from nothing");
            assert!(!objective.cases.is_empty(), "{name} has no gradient cases");
            for kind in objective.learns_from {
                assert!(
                    objective.cases.iter().any(|c| c.presses.iter().any(|p| p.feedback.kind() == *kind)),
                    "{name} has no gradient case for {kind}"
                );
            }
            assert!(std::ptr::eq(find(name).unwrap(), *objective));
        }
        assert!(find("no-such-objective").is_none());
    }

    #[test]
    fn every_gradient_is_the_central_difference_of_its_loss() {
        for objective in OBJECTIVES {
            for case in objective.cases {
                let loss = |logits: &[f64]| {
                    let example = Example {
                        logits,
                        reference: case.reference,
                        shown: case.shown,
                        mu: case.mu,
                        presses: case.presses,
                    };
                    (objective.step)(&example, &case.hyper).unwrap()
                };
                let analytic = loss(case.logits).gradient;
                for c in 0..case.logits.len() {
                    let h = 1e-5;
                    let (mut up, mut down) = (case.logits.to_vec(), case.logits.to_vec());
                    up[c] += h;
                    down[c] -= h;
                    let numeric = (loss(&up).loss - loss(&down).loss) / (2.0 * h);
                    assert!(
                        (numeric - analytic[c]).abs() < 1e-8,
                        "{} / {} at class {c}: {numeric} and {}",
                        objective.name,
                        case.name,
                        analytic[c]
                    );
                }
            }
        }
    }

    #[test]
    fn a_thumb_up_and_a_thumb_down_have_different_gradients_of_the_right_sign_for_every_objective() {
        for objective in OBJECTIVES.iter().filter(|o| o.learns_from.contains(&"thumb")) {
            for seed in 0..200 {
                let classes = 2 + seed as usize % 9;
                let logits = random_logits(seed, classes, 5.0);
                let shown = seed as usize % classes;
                let mut pi = vec![0.0; classes];
                softmax_into(&logits, &mut pi);
                // The last is what a head begins with as shipped.
                for delta in [0.0, Hyper::default().delta, 0.4] {
                    let hyper = Hyper { delta, ..Hyper::default() };
                    let step = |up| (objective.step)(&example(&logits, shown, &thumb(up)), &hyper).unwrap();
                    let (up, down) = (step(true).gradient, step(false).gradient);
                    let name = objective.name;
                    // Where δ would keep a belief out of the last few per cent it gives way, and nothing moves.
                    if delta > 0.0 && !(0.02..0.85).contains(&pi[shown]) {
                        assert!(up[shown] <= 1e-12, "{name}: a thumb up lowers the shown class at {}", pi[shown]);
                        assert!(down[shown] >= -1e-12, "{name}: a thumb down raises it at {}", pi[shown]);
                        continue;
                    }
                    assert!(up[shown] < 0.0, "{name}: a thumb up lowers the shown class at {}", pi[shown]);
                    assert!(down[shown] > 0.0, "{name}: a thumb down raises the shown class at {}", pi[shown]);
                    // One small step along −g really moves the probability that way: at δ = 0 for any class shown, at
                    // δ > 0 for the top one (smoothing lowers a more probable rival at the same time).
                    if delta > 0.0 && pi.iter().any(|p| *p > pi[shown]) {
                        continue;
                    }
                    for (gradient, rises) in [(&up, true), (&down, false)] {
                        let moved: Vec<f64> = logits.iter().zip(gradient).map(|(f, g)| f - 0.01 * g).collect();
                        let mut after = vec![0.0; classes];
                        softmax_into(&moved, &mut after);
                        assert_eq!(after[shown] > pi[shown], rises, "{name} seed {seed}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_press_moves_a_certain_belief_against_what_it_says_and_one_below_the_bound_still_moves() {
        let said = [
            (Feedback::Thumb { up: true }, true),
            (Feedback::Stars { stars: 5 }, true),
            (Feedback::Correction { class: 3 }, true),
            (Feedback::Thumb { up: false }, false),
            (Feedback::Stars { stars: 1 }, false),
        ];
        for (feedback, rises) in said {
            for delta in [0.2, 0.4, 0.8] {
                for certain in [1e-9, 1e-4, 0.01, 0.2, 0.5, 0.9, 0.95, 0.99, 0.9999, 1.0 - 1e-9] {
                    let mut logits = vec![0.0; 10];
                    logits[3] = (9.0 * certain / (1.0_f64 - certain)).ln();
                    let presses = [Press::plain(feedback)];
                    let step = |delta| {
                        let hyper = Hyper { delta, ..Hyper::default() };
                        (posterior::POSTERIOR.step)(&example(&logits, 3, &presses), &hyper).unwrap().gradient[3]
                    };
                    let towards = |g: f64| if rises { -g } else { g };
                    assert!(towards(step(delta)) >= -1e-12, "{feedback:?}, delta {delta}, belief {certain}");
                    assert!(certain == 1.0 - 1e-9 || certain == 1e-9 || towards(step(0.0)) > 1e-6);
                    if (0.1..0.85).contains(&certain) && delta < 0.5 {
                        assert!(towards(step(delta)) > 0.01, "{feedback:?}, delta {delta}, belief {certain}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_of_a_thumb_are_bounded_even_for_extreme_logits_and_sum_to_zero_where_classes_compete() {
        for objective in OBJECTIVES.iter().filter(|o| o.learns_from.contains(&"thumb")) {
            let bound = if objective.name == "policy-gradient" { Hyper::default().clip } else { 1.0 };
            // A reward model judges each class by itself.
            let compete = objective.name != "q-learning";
            for seed in 0..100 {
                let logits = random_logits(seed, 7, 10.0_f64.powi(seed as i32 % 6 - 1));
                for up in [true, false] {
                    let step = (objective.step)(&example(&logits, 3, &thumb(up)), &Hyper::default()).unwrap();
                    assert!(step.loss.is_finite());
                    assert!(step.gradient.iter().all(|g| g.abs() <= bound), "{}", objective.name);
                    assert!(!compete || step.gradient.iter().sum::<f64>().abs() < 1e-12, "{}", objective.name);
                }
            }
        }
    }

    #[test]
    fn shifting_all_logits_or_renaming_the_classes_changes_nothing_else() {
        for objective in OBJECTIVES.iter().filter(|o| o.learns_from.contains(&"thumb")) {
            let logits = random_logits(5, 6, 4.0);
            let shifted: Vec<f64> = logits.iter().map(|f| f + 3.0).collect();
            let reversed: Vec<f64> = logits.iter().rev().copied().collect();
            let hyper = Hyper::default();
            let plain = (objective.step)(&example(&logits, 1, &thumb(false)), &hyper).unwrap();
            let other = (objective.step)(&example(&shifted, 1, &thumb(false)), &hyper).unwrap();
            let renamed = (objective.step)(&example(&reversed, 4, &thumb(false)), &hyper).unwrap();
            for c in 0..6 {
                assert!((plain.gradient[c] - other.gradient[c]).abs() < 1e-12);
                assert!((plain.gradient[c] - renamed.gradient[5 - c]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn one_correction_raises_the_class_named_for_every_objective_that_learns_from_them() {
        for objective in OBJECTIVES.iter().filter(|o| o.learns_from.contains(&"correction")) {
            for seed in 0..50 {
                let logits = random_logits(seed, 6, 4.0);
                let (shown, named) = (seed as usize % 6, (seed as usize + 2) % 6);
                let presses = [Press::plain(Feedback::Correction { class: named })];
                let hyper = Hyper { delta: 0.0, ..Hyper::default() };
                let g = (objective.step)(&example(&logits, shown, &presses), &hyper).unwrap().gradient;
                let moved: Vec<f64> = logits.iter().zip(&g).map(|(f, g)| f - 0.01 * g).collect();
                assert!(log_softmax(&moved)[named] > log_softmax(&logits)[named], "{} seed {seed}", objective.name);
            }
        }
    }

    #[test]
    fn kinds_an_objective_does_not_learn_from_are_refused_and_nothing_said_is_no_gradient() {
        let logits = random_logits(3, 4, 3.0);
        let all = [
            Feedback::Thumb { up: true },
            Feedback::Correction { class: 1 },
            Feedback::Demonstration { class: 1 },
            Feedback::Stars { stars: 4 },
            Feedback::Preference { over: 1 },
            Feedback::NotSure,
        ];
        for objective in OBJECTIVES {
            for feedback in all {
                let step = (objective.step)(&example(&logits, 0, &[Press::plain(feedback)]), &Hyper::default());
                let known = objective.learns_from.contains(&feedback.kind());
                assert_eq!(step.is_ok(), known, "{} {}", objective.name, feedback.kind());
                if !known {
                    assert!(matches!(step, Err(LearnError::UnsupportedFeedback { .. })));
                }
            }
            // A reference elsewhere does not pull when nothing was said.
            let reference = random_logits(4, 4, 3.0);
            for presses in [&[][..], &[Press::plain(Feedback::NotSure)]] {
                let example = Example { reference: &reference, ..example(&logits, 0, presses) };
                let step = (objective.step)(&example, &Hyper::default()).unwrap();
                assert!(step.gradient.iter().all(|g| *g == 0.0), "{}", objective.name);
            }
        }
    }

    #[test]
    fn presses_that_say_nothing_have_no_gradient_at_any_delta() {
        let press = Press::plain;
        let logits = random_logits(9, 5, 4.0);
        for presses in [
            vec![],
            vec![press(Feedback::NotSure)],
            vec![press(Feedback::Stars { stars: 3 })],
            vec![press(Feedback::Thumb { up: true }), press(Feedback::Thumb { up: false })],
        ] {
            let step = (posterior::POSTERIOR.step)(&example(&logits, 2, &presses), &Hyper::default()).unwrap();
            assert!(step.gradient.iter().all(|g| *g == 0.0), "{presses:?}");
        }
    }

    #[test]
    fn a_confirmed_press_and_a_second_presser_move_the_belief_further() {
        let logits = random_logits(11, 5, 3.0);
        let down = |confirmed| Press { confirmed, ..Press::plain(Feedback::Thumb { up: false }) };
        let pull = |presses: &[Press]| {
            (posterior::POSTERIOR.step)(&example(&logits, 0, presses), &Hyper::default()).unwrap().gradient[0]
        };
        let one = pull(&[down(false)]);
        assert!(pull(&[down(true)]) > one);
        assert!(pull(&[down(false), down(false)]) > one);
    }

    #[test]
    fn bad_input_is_an_error_that_names_it() {
        for objective in OBJECTIVES {
            let wrong = Hyper { beta: f64::NAN, ..Hyper::default() };
            assert!((objective.step)(&example(&[0.0, 1.0], 0, &[]), &wrong).is_err());
            assert!((objective.step)(&example(&[0.0, f64::NAN], 0, &[]), &Hyper::default()).is_err());
            assert!((objective.step)(&example(&[0.0, 1.0], 2, &[]), &Hyper::default()).is_err());
        }
        let step = posterior::POSTERIOR.step;
        let press = |feedback| [Press::plain(feedback)];
        let logits = [0.0, 1.0, 2.0];
        let hyper = Hyper::default();
        for (feedback, part) in [
            (Feedback::Correction { class: 3 }, "class 3"),
            (Feedback::Demonstration { class: 9 }, "class 9"),
            (Feedback::Stars { stars: 0 }, "0 stars"),
            (Feedback::Stars { stars: 6 }, "6 stars"),
            (Feedback::Preference { over: 1 }, "both are 1"),
            (Feedback::Preference { over: 7 }, "class 7"),
        ] {
            let error = step(&example(&logits, 1, &press(feedback)), &hyper).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(step(&example(&logits, 3, &thumb(true)), &hyper).is_err());
        assert!(step(&example(&[0.0, f64::NAN, 1.0], 0, &thumb(true)), &hyper).is_err());
        assert!(step(&Example { mu: 0.0, ..example(&logits, 0, &thumb(true)) }, &hyper).is_err());
        assert!(step(&Example { reference: &[], ..example(&logits, 0, &thumb(true)) }, &hyper).is_err());
        for hyper in [
            Hyper { epsilon: 0.5, ..hyper },
            Hyper { epsilon_confirmed: f64::NAN, ..hyper },
            Hyper { delta: 1.0, ..hyper },
        ] {
            assert!(step(&example(&logits, 0, &thumb(true)), &hyper).is_err());
        }
    }
}
