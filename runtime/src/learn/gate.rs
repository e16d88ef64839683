//! The gate: whether a refitted head may replace the one in use. Nothing else replaces weights.
//!
//! Evidence are confirmed presses that never trained. The default is a veto: a candidate is published unless the evidence says
//! that it is worse than the factory head or than the incumbent. Asking for proof of improvement instead (`superiority`) is
//! offered and costly: a few dozen confirmed presses cannot prove anything.
//!
//! Two heads are compared on the samples where exactly one of them is right: with `b` wins and `c` losses of the candidate and
//! a uniform prior, `P(candidate worse) = P(Beta(1+b, 1+c) < ½)`.
use serde::{Deserialize, Serialize};

use super::error::LearnError;

/// What the evidence has to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Publish unless probably worse.
    #[default]
    Veto,
    /// Publish only when probably better than the incumbent.
    Superiority,
    /// Publish always; the figures are reported all the same.
    Off,
}

/// Settings of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateConfig {
    /// The rule.
    pub mode: Mode,
    /// Probability from which "worse" (or, for `superiority`, "better") counts as shown, in (0.5, 1).
    pub threshold: f64,
    /// Losses below which nothing is called worse, whatever the probability.
    pub least_losses: u32,
}

impl Default for GateConfig {
    fn default() -> GateConfig {
        GateConfig { mode: Mode::Veto, threshold: 0.8, least_losses: 2 }
    }
}

impl GateConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    pub fn check(&self) -> Result<(), LearnError> {
        if self.threshold > 0.5 && self.threshold < 1.0 {
            Ok(())
        } else {
            Err(LearnError::OutOfRange { what: "the gate's threshold", value: self.threshold, range: "(0.5, 1)" })
        }
    }
}

/// One confirmed sample: which heads answer it rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The refitted head.
    pub candidate: bool,
    /// The head in use.
    pub incumbent: bool,
    /// The head the bundle shipped.
    pub factory: bool,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The candidate replaces the incumbent.
    Publish,
    /// The candidate is refused, the incumbent stays.
    Veto,
    /// The incumbent is worse than the factory head: back to the factory head.
    Rollback,
    /// Nothing new to publish.
    Hold,
    /// A trip-wire has frozen learning; a confirmed press is needed.
    Freeze,
}

/// A paired comparison of two heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// `b`: samples only the first head answers rightly.
    pub wins: u32,
    /// `c`: samples only the second head answers rightly.
    pub losses: u32,
    /// `P(first worse than second)`; ½ without evidence.
    pub p_worse: f64,
}

impl Paired {
    fn of(pairs: impl Iterator<Item = (bool, bool)>) -> Paired {
        let (mut wins, mut losses) = (0, 0);
        for (first, second) in pairs {
            wins += u32::from(first && !second);
            losses += u32::from(second && !first);
        }
        Paired { wins, losses, p_worse: p_worse(wins, losses) }
    }

    fn is_worse(&self, config: &GateConfig) -> bool {
        self.losses >= config.least_losses && self.p_worse >= config.threshold
    }
}

/// A decision and the figures it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Candidate against factory.
    pub candidate_factory: Paired,
    /// Candidate against incumbent.
    pub candidate_incumbent: Paired,
    /// Incumbent against factory.
    pub incumbent_factory: Paired,
    /// Confirmed samples looked at.
    pub n_confirmed: usize,
    /// One sentence for the journal and the screen.
    pub reason: String,
}

/// Decides on a candidate that differs from the incumbent.
///
/// Rollback is considered only when the candidate is refused: a published candidate has itself passed against the factory head.
pub fn judge(config: &GateConfig, evidence: &[Verdict]) -> Decision {
    let mut decision = compare(evidence);
    let (factory, incumbent) = (decision.candidate_factory, decision.candidate_incumbent);
    let refusal = match config.mode {
        Mode::Off => None,
        Mode::Veto | Mode::Superiority if factory.is_worse(config) => Some(("factory", factory)),
        Mode::Veto if incumbent.is_worse(config) => Some(("incumbent", incumbent)),
        Mode::Superiority if 1.0 - incumbent.p_worse < config.threshold => {
            decision.action = Action::Veto;
            decision.reason = format!(
                "not shown to be better than the incumbent: {} won, {} lost of {} confirmed",
                incumbent.wins, incumbent.losses, decision.n_confirmed
            );
            return or_rollback(config, decision);
        }
        Mode::Veto | Mode::Superiority => None,
    };
    match refusal {
        None => {
            decision.action = Action::Publish;
            decision.reason = match config.mode {
                Mode::Off => "published without a gate".to_string(),
                _ => format!("passed the gate on {} confirmed presses", decision.n_confirmed),
            };
            decision
        }
        Some((than, pair)) => {
            decision.action = Action::Veto;
            decision.reason = format!(
                "worse than the {than} head with probability {:.2}: {} won, {} lost of {} confirmed",
                pair.p_worse, pair.wins, pair.losses, decision.n_confirmed
            );
            or_rollback(config, decision)
        }
    }
}

/// Decides when there is no candidate other than the incumbent: [`Action::Hold`] or [`Action::Rollback`].
pub fn review(config: &GateConfig, evidence: &[Verdict]) -> Decision {
    let mut decision = compare(evidence);
    decision.reason = "the refit is what is in use already".to_string();
    or_rollback(config, decision)
}

/// `P(Beta(1+wins, 1+losses) < ½)`, exact: the regularised incomplete beta function at ½ is the upper tail
/// `P(Bin(wins+losses+1, ½) ≥ wins+1)`.
pub fn p_worse(wins: u32, losses: u32) -> f64 {
    let n = u64::from(wins) + u64::from(losses) + 1;
    // Pascal's row n, scaled down when it would overflow; only the ratio of the sums matters.
    let (mut term, mut total, mut tail) = (1.0_f64, 0.0_f64, 0.0_f64);
    for j in 0..=n {
        total += term;
        if j > u64::from(wins) {
            tail += term;
        }
        term *= (n - j) as f64 / (j + 1) as f64;
        if term > 1e280 {
            for v in [&mut term, &mut total, &mut tail] {
                *v *= 1e-280;
            }
        }
    }
    tail / total
}

fn compare(evidence: &[Verdict]) -> Decision {
    Decision {
        action: Action::Hold,
        candidate_factory: Paired::of(evidence.iter().map(|v| (v.candidate, v.factory))),
        candidate_incumbent: Paired::of(evidence.iter().map(|v| (v.candidate, v.incumbent))),
        incumbent_factory: Paired::of(evidence.iter().map(|v| (v.incumbent, v.factory))),
        n_confirmed: evidence.len(),
        reason: String::new(),
    }
}

fn or_rollback(config: &GateConfig, mut decision: Decision) -> Decision {
    let pair = decision.incumbent_factory;
    if config.mode != Mode::Off && pair.is_worse(config) {
        decision.action = Action::Rollback;
        decision.reason = format!(
            "the head in use is worse than the factory head with probability {:.2}: {} won, {} lost of {} confirmed",
            pair.p_worse, pair.wins, pair.losses, decision.n_confirmed
        );
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` samples of one verdict.
    fn evidence(n: usize, verdict: Verdict) -> Vec<Verdict> {
        vec![verdict; n]
    }

    const BETTER: Verdict = Verdict { candidate: true, incumbent: false, factory: false };
    const WORSE: Verdict = Verdict { candidate: false, incumbent: true, factory: true };

    #[test]
    fn p_worse_equals_the_integral_of_the_beta_density() {
        for (b, c) in [(0_u32, 0_u32), (0, 1), (0, 2), (1, 2), (3, 1), (5, 5), (10, 20), (40, 30)] {
            // Simpson's rule on x^b (1−x)^c over [0, ½] and [0, 1].
            let density = |x: f64| x.powi(b as i32) * (1.0 - x).powi(c as i32);
            let simpson = |to: f64| {
                let n = 4000;
                let h = to / f64::from(n);
                (0..=n)
                    .map(|i| {
                        let weight = if i == 0 || i == n { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
                        weight * density(f64::from(i) * h)
                    })
                    .sum::<f64>()
                    * h
                    / 3.0
            };
            let numeric = simpson(0.5) / simpson(1.0);
            assert!((p_worse(b, c) - numeric).abs() < 1e-9, "({b}, {c}): {} and {numeric}", p_worse(b, c));
        }
        assert_eq!(p_worse(0, 0), 0.5);
        assert_eq!(p_worse(0, 2), 0.875);
        let far = p_worse(3000, 3100);
        assert!(far > 0.89 && far < 0.91, "{far}");
    }

    #[test]
    fn two_losses_and_no_win_veto_one_loss_does_not() {
        let config = GateConfig::default();
        assert_eq!(judge(&config, &[]).action, Action::Publish);
        assert_eq!(judge(&config, &evidence(1, WORSE)).action, Action::Publish);
        let decision = judge(&config, &evidence(2, WORSE));
        assert_eq!(decision.action, Action::Veto);
        assert_eq!((decision.candidate_factory.losses, decision.candidate_factory.wins), (2, 0));
        assert!(decision.reason.contains("factory") && decision.reason.contains("0.88"), "{}", decision.reason);
        let mut mixed = evidence(2, WORSE);
        mixed.extend(evidence(1, BETTER));
        assert_eq!(judge(&config, &mixed).action, Action::Publish, "P(worse) is 0.69 with one win");
    }

    #[test]
    fn a_candidate_better_than_factory_but_worse_than_the_incumbent_is_vetoed() {
        let only_incumbent = Verdict { candidate: false, incumbent: true, factory: false };
        let decision = judge(&GateConfig::default(), &evidence(2, only_incumbent));
        assert_eq!(decision.action, Action::Veto);
        assert!(decision.reason.contains("incumbent"));
    }

    #[test]
    fn an_incumbent_worse_than_factory_is_rolled_back_when_the_candidate_does_not_help() {
        let both_worse = Verdict { candidate: false, incumbent: false, factory: true };
        assert_eq!(judge(&GateConfig::default(), &evidence(2, both_worse)).action, Action::Rollback);
        assert_eq!(review(&GateConfig::default(), &evidence(2, both_worse)).action, Action::Rollback);
        let repaired = Verdict { candidate: true, incumbent: false, factory: true };
        assert_eq!(judge(&GateConfig::default(), &evidence(2, repaired)).action, Action::Publish);
        assert_eq!(review(&GateConfig::default(), &[]).action, Action::Hold);
    }

    #[test]
    fn superiority_wants_proof_and_off_wants_nothing() {
        let superiority = GateConfig { mode: Mode::Superiority, ..GateConfig::default() };
        assert_eq!(judge(&superiority, &[]).action, Action::Veto);
        assert_eq!(judge(&superiority, &evidence(2, BETTER)).action, Action::Publish);
        let off = GateConfig { mode: Mode::Off, ..GateConfig::default() };
        let decision = judge(&off, &evidence(9, WORSE));
        assert_eq!(decision.action, Action::Publish);
        assert_eq!(decision.candidate_factory.losses, 9);
        assert!(GateConfig { threshold: 1.0, ..off }.check().is_err());
    }
}
