//! Off-policy evaluation: how good would another rule have been on what was shown and said under this one?
//!
//! A decision of the log chose action `a` with probability `μ(a|x)` and was rewarded with `r`. With the other rule's
//! `π(·|x)`, weights `w = π(a|x)/μ(a|x)` and a reward model `q̂(x, ·)`:
//!
//! * SNIPS `Σ w r / Σ w` — self-normalised importance weights (Swaminathan and Joachims 2015);
//! * DR `mean(Σ_b π(b|x) q̂(x,b) + w (r − q̂(x,a)))` — doubly robust (Dudík, Langford and Li 2011);
//! * effective sample size `(Σ w)² / Σ w²` (Kish);
//! * intervals by the percentile bootstrap over decisions, with a fixed seed.
//!
//! A log that always showed the most probable answer says nothing about any other answer, and no estimator can make up
//! for that: such a log is refused and gives no number.
use serde::Serialize;

use crate::{Class, Classified};

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;
/// Share of an interval that lies outside on each side.
const TAIL: f64 = 0.025;
/// A probability this close to one is a choice without an alternative.
const CERTAIN: f64 = 1.0 - 1e-6;

/// Why there is no estimate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OffPolicyError {
    /// Nothing was said about anything shown.
    #[error("no press counts about anything this model has shown, so there is nothing to estimate from")]
    Empty,
    /// Every decision was the only one possible.
    #[error(
        "all {n} answers in the log were shown because they were the most probable ones (probability 1): such a log says \
         nothing about other answers, and no estimate is made. `hone listen --display explore` shows others now and then, \
         and records with which probability"
    )]
    ArgmaxOnly {
        /// Decisions looked at.
        n: usize,
    },
    /// The rule in question would have shown nothing of what was shown.
    #[error("of {n} explored answers none is one this adapter would have shown; there is nothing to weigh")]
    NoOverlap {
        /// Decisions looked at.
        n: usize,
    },
    /// A decision that cannot be.
    #[error("decision {index}: {what}")]
    Malformed {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        what: String,
    },
}

impl Classified for OffPolicyError {
    fn class(&self) -> Class {
        match self {
            OffPolicyError::Malformed { .. } => Class::Invalid,
            OffPolicyError::Empty => Class::Failed,
            OffPolicyError::ArgmaxOnly { .. } | OffPolicyError::NoOverlap { .. } => Class::Unsupported,
        }
    }
}

/// One decision of the log, with what the other rule would have done.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// The action shown.
    pub action: usize,
    /// Probability with which it was chosen, in (0, 1].
    pub mu: f64,
    /// What came of it.
    pub reward: f64,
    /// `π(·|x)` of the rule in question, `[C]`, summing to one.
    pub target: Vec<f64>,
    /// `q̂(x, ·)`, `[C]`: what a model that has not seen this log expects.
    pub model: Vec<f64>,
}

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What the log says about another rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OffPolicy {
    /// Decisions weighed.
    pub n: usize,
    /// Decisions left out because they had no alternative.
    pub certain: usize,
    /// Mean reward of the log itself.
    pub logged: Estimate,
    /// Self-normalised importance weighting.
    pub snips: Estimate,
    /// Doubly robust.
    pub dr: Estimate,
    /// Effective sample size: so many decisions of the rule itself would say as much.
    pub effective_sample_size: f64,
}

/// The sums an estimate is made of, of one decision.
#[derive(Clone, Copy)]
struct Terms {
    w: f64,
    wr: f64,
    dr: f64,
    r: f64,
}

/// Evaluates the rule whose choices stand in `log`.
///
/// Decisions with `μ = 1` are left out: where nothing else could have been shown there is nothing to weigh.
///
/// # Errors
/// [`OffPolicyError`].
pub fn off_policy(log: &[Logged], seed: u64) -> Result<OffPolicy, OffPolicyError> {
    if log.is_empty() {
        return Err(OffPolicyError::Empty);
    }
    for (index, d) in log.iter().enumerate() {
        check(index, d)?;
    }
    let terms: Vec<Terms> = log.iter().filter(|d| d.mu < CERTAIN).map(terms_of).collect();
    let n = terms.len();
    if n == 0 {
        return Err(OffPolicyError::ArgmaxOnly { n: log.len() });
    }
    let sum = |f: fn(&Terms) -> f64| terms.iter().map(f).sum::<f64>();
    let (w, w2) = (sum(|t| t.w), sum(|t| t.w * t.w));
    if w <= 0.0 {
        return Err(OffPolicyError::NoOverlap { n });
    }
    let mut resampled: [Vec<f64>; 3] = Default::default();
    let mut chance = seed;
    for _ in 0..RESAMPLES {
        let (mut w, mut wr, mut dr, mut r) = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..n {
            chance = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let t = terms[((u128::from(mixed(chance)) * n as u128) >> 64) as usize];
            w += t.w;
            wr += t.wr;
            dr += t.dr;
            r += t.r;
        }
        resampled[0].push(r / n as f64);
        // A resample without any overlap has no SNIPS; the interval is that of the others.
        if w > 0.0 {
            resampled[1].push(wr / w);
        }
        resampled[2].push(dr / n as f64);
    }
    let [logged, snips, dr] = resampled;
    Ok(OffPolicy {
        n,
        certain: log.len() - n,
        logged: estimate(sum(|t| t.r) / n as f64, logged),
        snips: estimate(sum(|t| t.wr) / w, snips),
        dr: estimate(sum(|t| t.dr) / n as f64, dr),
        effective_sample_size: w * w / w2,
    })
}

fn terms_of(d: &Logged) -> Terms {
    let w = d.target[d.action] / d.mu;
    let expected: f64 = d.target.iter().zip(&d.model).map(|(p, q)| p * q).sum();
    Terms { w, wr: w * d.reward, dr: expected + w * (d.reward - d.model[d.action]), r: d.reward }
}

fn estimate(value: f64, mut resampled: Vec<f64>) -> Estimate {
    resampled.sort_by(f64::total_cmp);
    let at = |q: f64| {
        let last = resampled.len().saturating_sub(1);
        resampled.get((q * last as f64).round() as usize).copied().unwrap_or(value)
    };
    Estimate { value, low: at(TAIL), high: at(1.0 - TAIL) }
}

fn check(index: usize, d: &Logged) -> Result<(), OffPolicyError> {
    let wrong = |what: String| Err(OffPolicyError::Malformed { index, what });
    if !(d.mu > 0.0 && d.mu <= 1.0) {
        return wrong(format!("it was chosen with probability {}, which is not in (0, 1]", d.mu));
    }
    if d.target.len() != d.model.len() || d.action >= d.target.len() {
        let (a, t, m) = (d.action, d.target.len(), d.model.len());
        return wrong(format!("action {a} of {t} probabilities and {m} expectations"));
    }
    if !d.reward.is_finite() || !d.model.iter().all(|q| q.is_finite()) {
        return wrong("a reward is not finite".into());
    }
    let sum: f64 = d.target.iter().sum();
    if (sum - 1.0).abs() > 1e-4 || d.target.iter().any(|p| !(0.0..=1.0 + 1e-6).contains(p)) {
        return wrong(format!("the rule's probabilities sum to {sum}"));
    }
    Ok(())
}

/// Steele, Lea and Flood's SplitMix64.
fn mixed(x: u64) -> u64 {
    let mut z = x;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "offpolicy_tests.rs"]
mod tests;
