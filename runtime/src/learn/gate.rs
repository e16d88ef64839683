//! The gate: whether a refitted head may replace the one in use. Nothing else replaces weights.
//!
//! Evidence are confirmed presses that never trained. The default is a veto: a candidate is published unless the
//! evidence says that it is worse than the factory head or than the incumbent. Asking for proof of improvement instead
//! (`superiority`) is offered and costly: a few dozen confirmed presses cannot prove anything.
//!
//! Two heads are compared on the samples where they answer differently: with `b` wins and `c` losses of the candidate
//! and a uniform prior, `P(candidate worse) = P(Beta(1+b, 1+c) < ½)`. A confirmed 👍 or correction tells the truth, and
//! such a sample is one whole win or loss. A confirmed 👎 only tells what it is not, and it is always said about an
//! answer of the head in use: counted as a win of every head that answered something else, it would make any learned
//! head look worse than the factory's (a head that is right nine times in ten would lose its tenth each time). So
//! another answer wins only the share that it is the truth, given that the refused one is not. That share is the heads'
//! own estimate, which a head spoilt by wrong presses spoils too; so the harsh count, a whole win for every answer not
//! refused, is kept beside it with a higher threshold.
//!
//! Answers alone tell little while confirmed presses are few, and presses that are all wrong teach their opposite as
//! consistently as right ones teach the truth: with five confirmed presses, heads 37 points below the factory's were in
//! use (24 worlds, all thumbs flipped). So it also counts how probable a head held what each confirmed press says,
//! whatever it answers itself: 👍 on `a` the probability of `a`, 👎 that of all else. No head is its own judge there, and
//! a 👎 on an answer of the head in use needs no guess about what is right. A head that foretold the confirmed presses
//! worse than the factory head, in all by more than a factor of e, is not used, and if it is in use already it is taken
//! back. No press counts for more than a factor of nine. Figures are in `benches/feedback/README.md`.
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

impl Mode {
    /// Its name in settings and records.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Veto => "veto",
            Mode::Superiority => "superiority",
            Mode::Off => "off",
        }
    }
}

/// Settings of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateConfig {
    /// The rule.
    pub mode: Mode,
    /// Probability from which "worse" (or, for `superiority`, "better") counts as shown, in (0.5, 1).
    pub threshold: f64,
    /// Probability, by the harsh count, from which a head counts as *proved* worse: a candidate is then refused, the
    /// head in use rolled back. In (0.5, 1), higher than `threshold`: dozens of candidates pass in review, and each is
    /// another chance of an accident. Three refused answers without a win are 0.94 and happen to heads that are right
    /// nine times in ten; four are 0.97.
    pub rollback_threshold: f64,
    /// Losses below which nothing is called worse, whatever the probability.
    pub least_losses: u32,
    /// How much worse than the factory head a head may foretell the confirmed presses, as a logarithm of probabilities'
    /// ratio; at least 0.
    #[serde(default = "usual_surprise")]
    pub surprise: f64,
}

fn usual_surprise() -> f64 {
    1.0
}

impl Default for GateConfig {
    fn default() -> GateConfig {
        GateConfig {
            mode: Mode::Veto,
            threshold: 0.8,
            rollback_threshold: 0.95,
            least_losses: 2,
            surprise: usual_surprise(),
        }
    }
}

impl GateConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    pub fn check(&self) -> Result<(), LearnError> {
        for (what, value) in
            [("the gate's threshold", self.threshold), ("the gate's rollback threshold", self.rollback_threshold)]
        {
            if !(value > 0.5 && value < 1.0) {
                return Err(LearnError::OutOfRange { what, value, range: "(0.5, 1)" });
            }
        }
        if self.surprise.is_nan() || self.surprise < 0.0 {
            return Err(LearnError::OutOfRange {
                what: "the gate's surprise", value: self.surprise, range: "[0, ∞)"
            });
        }
        Ok(())
    }
}

/// What one head answers to a confirmed sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    /// The class.
    pub class: usize,
    /// Probability that it is the truth, 0 or 1 where the press told.
    pub right: f64,
    /// Whether the press leaves it possible.
    pub possible: bool,
    /// Probability, in (0, 1), that the head gave to what the press says, whatever it answers itself.
    pub foretold: f64,
}

/// One confirmed sample: what each head answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The refitted head.
    pub candidate: Answered,
    /// The head in use.
    pub incumbent: Answered,
    /// The head the bundle shipped.
    pub factory: Answered,
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
    /// `b`: samples only the first head answers rightly; fractions from presses that told only what it is not.
    pub wins: f64,
    /// `c`: samples only the second head answers rightly.
    pub losses: f64,
    /// `P(first worse than second)`; ½ without evidence.
    pub p_worse: f64,
    /// The same when every answer that was not refused counts as right.
    pub p_worse_harsh: f64,
    /// How much better the second head foretold the presses than the first: the sum of logarithms of their
    /// probabilities' ratio.
    #[serde(default)]
    pub surprise: f64,
}

impl Paired {
    fn of(pairs: impl Iterator<Item = (Answered, Answered)>) -> Paired {
        let (mut wins, mut losses) = (0.0, 0.0);
        let (mut harsh_wins, mut harsh_losses) = (0.0, 0.0);
        let mut surprise = 0.0;
        for (first, second) in pairs {
            surprise += (second.foretold / first.foretold).ln();
            if first.class == second.class {
                continue;
            }
            wins += first.right;
            losses += second.right;
            harsh_wins += f64::from(u8::from(first.possible && !second.possible));
            harsh_losses += f64::from(u8::from(second.possible && !first.possible));
        }
        let (p_worse, p_worse_harsh) = (p_worse(wins, losses), p_worse(harsh_wins, harsh_losses));
        Paired { wins, losses, p_worse, p_worse_harsh, surprise }
    }

    fn is_worse(&self, config: &GateConfig) -> bool {
        self.is_proved_worse(config)
            || self.losses >= f64::from(config.least_losses) && self.p_worse >= config.threshold
    }

    fn is_proved_worse(&self, config: &GateConfig) -> bool {
        self.p_worse_harsh >= config.rollback_threshold
    }

    fn p_worst(&self) -> f64 {
        self.p_worse.max(self.p_worse_harsh)
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
/// Rollback is considered only when the candidate is refused: a published candidate has itself passed against the
/// factory head.
pub fn judge(config: &GateConfig, evidence: &[Verdict]) -> Decision {
    let mut decision = compare(evidence);
    let (factory, incumbent) = (decision.candidate_factory, decision.candidate_incumbent);
    let refusal = match config.mode {
        Mode::Off => None,
        _ if factory.surprise > config.surprise => {
            decision.action = Action::Veto;
            decision.reason = format!(
                "foretold {} confirmed presses worse than the factory head, by a factor of {:.1}",
                decision.n_confirmed,
                factory.surprise.exp()
            );
            return or_rollback(config, decision);
        }
        Mode::Veto | Mode::Superiority if factory.is_worse(config) => Some(("factory", factory)),
        Mode::Veto if incumbent.is_worse(config) => Some(("incumbent", incumbent)),
        Mode::Superiority if 1.0 - incumbent.p_worse < config.threshold => {
            decision.action = Action::Veto;
            decision.reason = format!(
                "not shown to be better than the incumbent: {:.1} won, {:.1} lost of {} confirmed",
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
                "worse than the {than} head with probability {:.2}: {:.1} won, {:.1} lost of {} confirmed",
                pair.p_worst(),
                pair.wins,
                pair.losses,
                decision.n_confirmed
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

/// `P(Beta(1+wins, 1+losses) < ½)`: the regularised incomplete beta function at ½, by its continued fraction.
///
/// Source: DLMF 8.17.22, evaluated by Lentz's method.
pub fn p_worse(wins: f64, losses: f64) -> f64 {
    let (a, b) = (1.0 + wins.max(0.0), 1.0 + losses.max(0.0));
    // The fraction converges fast on this side of the mean; the other side is its complement.
    if 0.5 < (a + 1.0) / (a + b + 2.0) { incomplete_beta_at_half(a, b) } else { 1.0 - incomplete_beta_at_half(b, a) }
}

fn incomplete_beta_at_half(a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) - (a + b) * std::f64::consts::LN_2).exp() / a;
    let guard = |v: f64| if v.abs() < TINY { TINY } else { v };
    let (mut c, mut d) = (1.0, 1.0 / guard(1.0 - (a + b) * 0.5 / (a + 1.0)));
    let mut f = d;
    for m in 1..10_000 {
        let m = f64::from(m);
        let even = m * (b - m) * 0.5 / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * 0.5 / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for step in [even, odd] {
            d = 1.0 / guard(1.0 + step * d);
            c = guard(1.0 + step / c);
            change = c * d;
            f *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * f
}

/// `ln Γ(x)` for `x ≥ 1`, relative error below 1e-13.
///
/// Source: Stirling's series (DLMF 5.11.1) after shifting the argument above 12.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 12.0 {
        shift += x.ln();
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    let series = (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z * (1.0 / 1680.0 - z / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
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
    if config.mode == Mode::Off {
        return decision;
    }
    if pair.surprise > config.surprise {
        decision.action = Action::Rollback;
        decision.reason = format!(
            "the head in use foretold {} confirmed presses worse than the factory head, by a factor of {:.1}",
            decision.n_confirmed,
            pair.surprise.exp()
        );
    } else if pair.is_proved_worse(config) {
        decision.action = Action::Rollback;
        decision.reason = format!(
            "the head in use is worse than the factory head with probability {:.2}: {:.1} won, {:.1} lost of {} \
             confirmed",
            pair.p_worst(),
            pair.wins,
            pair.losses,
            decision.n_confirmed
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

    const RIGHT: Answered = Answered { class: 1, right: 1.0, possible: true, foretold: 0.5 };
    const WRONG: Answered = Answered { class: 0, right: 0.0, possible: false, foretold: 0.5 };
    const BETTER: Verdict = Verdict { candidate: RIGHT, incumbent: WRONG, factory: WRONG };
    const WORSE: Verdict = Verdict { candidate: WRONG, incumbent: RIGHT, factory: RIGHT };

    #[test]
    fn p_worse_equals_the_integral_of_the_beta_density() {
        for (b, c) in [(0_u32, 0_u32), (0, 1), (0, 2), (1, 2), (3, 1), (5, 5), (10, 20), (40, 30), (2, 60)] {
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
            let found = p_worse(f64::from(b), f64::from(c));
            assert!((found - numeric).abs() < 1e-9, "({b}, {c}): {found} and {numeric}");
        }
        assert!((p_worse(0.0, 0.0) - 0.5).abs() < 1e-12);
        assert!((p_worse(0.0, 2.0) - 0.875).abs() < 1e-12);
        // Between the whole numbers it rises with the losses and falls with the wins.
        assert!(p_worse(1.5, 2.0) < p_worse(1.0, 2.0) && p_worse(1.0, 2.5) > p_worse(1.0, 2.0));
        let far = p_worse(3000.0, 3100.0);
        assert!(far > 0.89 && far < 0.91, "{far}");
    }

    #[test]
    fn two_losses_and_no_win_veto_one_loss_does_not() {
        let config = GateConfig::default();
        assert_eq!(judge(&config, &[]).action, Action::Publish);
        assert_eq!(judge(&config, &evidence(1, WORSE)).action, Action::Publish);
        let decision = judge(&config, &evidence(2, WORSE));
        assert_eq!(decision.action, Action::Veto);
        assert_eq!((decision.candidate_factory.losses, decision.candidate_factory.wins), (2.0, 0.0));
        assert!(decision.reason.contains("factory") && decision.reason.contains("0.88"), "{}", decision.reason);
        let mut mixed = evidence(2, WORSE);
        mixed.extend(evidence(1, BETTER));
        assert_eq!(judge(&config, &mixed).action, Action::Publish, "P(worse) is 0.69 with one win");
    }

    #[test]
    fn refusals_of_the_head_in_use_do_not_by_themselves_make_the_factory_head_look_better() {
        // Five confirmed 👎, each on an answer of the head in use; the factory's other answer is right one time in four.
        let other = Answered { class: 2, right: 0.25, possible: true, foretold: 0.5 };
        let mut all = evidence(5, Verdict { candidate: WRONG, incumbent: WRONG, factory: other });
        // Three of the confirmed 👍 stood where the factory head is wrong.
        all.extend(evidence(3, Verdict { candidate: RIGHT, incumbent: RIGHT, factory: WRONG }));
        assert_eq!(judge(&GateConfig::default(), &all).action, Action::Publish);
    }

    #[test]
    fn a_candidate_better_than_factory_but_worse_than_the_incumbent_is_vetoed() {
        let only_incumbent = Verdict { candidate: WRONG, incumbent: RIGHT, factory: WRONG };
        let decision = judge(&GateConfig::default(), &evidence(2, only_incumbent));
        assert_eq!(decision.action, Action::Veto);
        assert!(decision.reason.contains("incumbent"));
    }

    #[test]
    fn an_incumbent_worse_than_factory_is_rolled_back_when_the_candidate_does_not_help() {
        let both_worse = Verdict { candidate: WRONG, incumbent: WRONG, factory: RIGHT };
        assert_eq!(judge(&GateConfig::default(), &evidence(2, both_worse)).action, Action::Veto, "0.88 is no proof");
        assert_eq!(judge(&GateConfig::default(), &evidence(4, both_worse)).action, Action::Rollback);
        assert_eq!(review(&GateConfig::default(), &evidence(4, both_worse)).action, Action::Rollback);
        let repaired = Verdict { candidate: RIGHT, incumbent: WRONG, factory: RIGHT };
        assert_eq!(judge(&GateConfig::default(), &evidence(2, repaired)).action, Action::Publish);
        assert_eq!(review(&GateConfig::default(), &[]).action, Action::Hold);
    }

    #[test]
    fn a_head_that_foretold_confirmed_presses_worse_than_the_factory_head_is_not_used_whatever_it_answers() {
        let config = GateConfig::default();
        let told = |foretold: f64| Answered { foretold, ..RIGHT };
        let of = |candidate: f64, incumbent: f64| Verdict {
            candidate: told(candidate),
            incumbent: told(incumbent),
            factory: told(0.6),
        };
        // Three times ln(0.6 / 0.4) is 1.2; the head in use did as well as the factory head.
        assert_eq!(judge(&config, &evidence(2, of(0.4, 0.6))).action, Action::Publish);
        let refused = judge(&config, &evidence(3, of(0.4, 0.6)));
        assert_eq!(refused.action, Action::Veto);
        assert!(refused.reason.contains("foretold 3 confirmed presses worse"), "{}", refused.reason);
        assert!((refused.candidate_factory.surprise - 3.0 * 1.5_f64.ln()).abs() < 1e-12);
        // What is in use is taken back, unless the candidate has mended it.
        assert_eq!(judge(&config, &evidence(3, of(0.4, 0.4))).action, Action::Rollback);
        assert_eq!(review(&config, &evidence(3, of(0.4, 0.4))).action, Action::Rollback);
        assert_eq!(judge(&config, &evidence(3, of(0.7, 0.4))).action, Action::Publish);
        // What was foretold better makes up for it.
        let mut mixed = evidence(3, of(0.4, 0.6));
        mixed.extend(evidence(2, of(0.8, 0.6)));
        assert_eq!(judge(&config, &mixed).action, Action::Publish);
        let off = GateConfig { mode: Mode::Off, ..config };
        assert_eq!(judge(&off, &evidence(9, of(0.1, 0.1))).action, Action::Publish);
        assert!(GateConfig { surprise: f64::NAN, ..config }.check().is_err());
    }

    #[test]
    fn superiority_wants_proof_and_off_wants_nothing() {
        let superiority = GateConfig { mode: Mode::Superiority, ..GateConfig::default() };
        assert_eq!(judge(&superiority, &[]).action, Action::Veto);
        assert_eq!(judge(&superiority, &evidence(2, BETTER)).action, Action::Publish);
        let off = GateConfig { mode: Mode::Off, ..GateConfig::default() };
        let decision = judge(&off, &evidence(9, WORSE));
        assert_eq!(decision.action, Action::Publish);
        assert_eq!(decision.candidate_factory.losses, 9.0);
        assert!(GateConfig { threshold: 1.0, ..off }.check().is_err());
    }
}
