//! Whom to trouble, and when: asking about the answers that are least sure, within a budget; and which answer to show.
//!
//! An answer is worth a question when its margin, the best probability less the second, is among the lowest of the last
//! sixty: asking at random teaches 2 to 8 points of accuracy less. The budget is a share of what is shown, kept over
//! the same window, so that a run of hard samples does not become a run of questions.
//!
//! Which answer is shown is the most probable one, unless a person has allowed exploration: then others are shown now
//! and then, the less often the further behind they are, by inverse gap weighting (Abe and Long 1999; Foster and
//! Rakhlin 2020): `p(b) = 1/(C + γ √t (p̂_best − p̂_b))`, the best with the rest. The probability `μ` of what was shown
//! is recorded with it: without it nobody could later tell how good another rule would have been.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::error::LearnError;

/// Answers looked back on.
pub const WINDOW: usize = 60;
/// Margins known before the first question: before that, low is not known.
const LEAST: usize = 10;
/// γ of the inverse gap.
pub const GAMMA: f64 = 10.0;

/// Asks about answers within a budget.
#[derive(Clone, Debug)]
pub struct Asker {
    share: f64,
    /// Margins of the answers before, and whether each was asked about.
    shown: VecDeque<(f64, bool)>,
}

impl Asker {
    /// At most `share` of what is shown is asked about, in (0, 1].
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`].
    pub fn new(share: f64) -> Result<Asker, LearnError> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(LearnError::OutOfRange { what: "the share to ask about", value: share, range: "(0, 1]" });
        }
        Ok(Asker { share, shown: VecDeque::new() })
    }

    /// Whether the answer with this margin is one to ask about; it counts as shown.
    pub fn observe(&mut self, margin: f64) -> bool {
        // The window is this answer and those before it that are kept.
        let lower = self.shown.iter().filter(|(m, _)| *m <= margin).count() as f64;
        let spent = self.shown.iter().filter(|(_, asked)| *asked).count() as f64;
        let low = lower < self.share * (self.shown.len() + 1) as f64;
        let within = spent + 1.0 <= self.share * WINDOW as f64;
        let ask = self.share >= 1.0 || self.shown.len() >= LEAST && low && within;
        if self.shown.len() == WINDOW - 1 {
            self.shown.pop_front();
        }
        self.shown.push_back((margin, ask));
        ask
    }
}

/// Best probability less the second best.
pub fn margin(probabilities: &[f32]) -> f64 {
    let (mut best, mut second) = (0.0_f32, 0.0_f32);
    for &p in probabilities {
        if p > best {
            (best, second) = (p, best);
        } else if p > second {
            second = p;
        }
    }
    f64::from(best) - f64::from(second)
}

/// Which answer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// The most probable one, always.
    #[default]
    Argmax,
    /// Others now and then, by inverse gap weighting.
    Explore,
}

impl Display {
    /// With which probability each class is shown, of those with a probability above zero; `t` answers were shown
    /// before.
    ///
    /// `best` is the most probable class. Sums to one.
    pub fn distribution(self, probabilities: &[f32], best: usize, t: u64) -> Vec<f64> {
        let mut out = vec![0.0; probabilities.len()];
        if self == Display::Explore {
            let possible: Vec<usize> = (0..probabilities.len()).filter(|&c| probabilities[c] > 0.0).collect();
            let (classes, pace) = (possible.len() as f64, GAMMA * ((t + 1) as f64).sqrt());
            for c in possible.into_iter().filter(|&c| c != best) {
                let gap = (f64::from(probabilities[best]) - f64::from(probabilities[c])).max(0.0);
                out[c] = 1.0 / (classes + pace * gap);
            }
        }
        out[best] = 1.0 - out.iter().sum::<f64>();
        out
    }

    /// The class to show and the probability with which it was chosen; `chance` is uniform in [0, 1).
    pub fn choose(self, probabilities: &[f32], best: usize, t: u64, chance: f64) -> (usize, f64) {
        let distribution = self.distribution(probabilities, best, t);
        let mut left = chance;
        for (class, &p) in distribution.iter().enumerate() {
            if left < p {
                return (class, p);
            }
            left -= p;
        }
        (best, distribution[best])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(x: u64) -> f64 {
        (crate::learn::solver::splitmix64(x) >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn the_lowest_margins_are_asked_about_and_the_budget_holds_over_every_window() {
        let mut asker = Asker::new(0.2).unwrap();
        let mut asked: Vec<(f64, bool)> = Vec::new();
        for t in 0..2_000 {
            // The second half is harder throughout: no more is asked for all that.
            let margin = uniform(t) * if t < 1_000 { 1.0 } else { 0.3 };
            asked.push((margin, asker.observe(margin)));
        }
        for window in asked.windows(WINDOW) {
            let n = window.iter().filter(|(_, a)| *a).count();
            assert!(n <= 12, "{n} questions in {WINDOW} answers");
        }
        let mean = |of: bool| {
            let of: Vec<f64> = asked[60..1_000].iter().filter(|(_, a)| *a == of).map(|(m, _)| *m).collect();
            of.iter().sum::<f64>() / of.len() as f64
        };
        assert!(mean(true) < 0.15 && mean(false) > 0.5, "{} and {}", mean(true), mean(false));
        for half in [&asked[60..1_000], &asked[1_060..]] {
            let share = half.iter().filter(|(_, a)| *a).count() as f64 / half.len() as f64;
            assert!((0.14..=0.2).contains(&share), "the budget is used, not saved: {share}");
        }
    }

    #[test]
    fn easier_and_easier_answers_are_not_asked_about_and_harder_ones_only_within_the_budget() {
        let mut asker = Asker::new(0.1).unwrap();
        assert_eq!((0..200).filter(|&t| asker.observe(f64::from(t))).count(), 0);
        let mut asker = Asker::new(0.1).unwrap();
        let falling = (0..600).filter(|&t| asker.observe(f64::from(-t))).count();
        assert!((50..=60).contains(&falling), "{falling} of 600");
        let mut all = Asker::new(1.0).unwrap();
        assert!((0..100).all(|t| all.observe(f64::from(t))));
        assert!(Asker::new(0.0).is_err() && Asker::new(f64::NAN).is_err());
    }

    #[test]
    fn the_margin_is_the_best_less_the_second_wherever_they_stand() {
        let same = |p: &[f32], m: f64| (margin(p) - m).abs() < 1e-6;
        assert!(same(&[0.1, 0.6, 0.3], 0.3) && same(&[0.6, 0.3, 0.1], 0.3) && same(&[0.5, 0.5], 0.0));
    }

    #[test]
    fn without_leave_the_most_probable_answer_is_shown_with_certainty() {
        for chance in [0.0, 0.3, 0.999_999] {
            assert_eq!(Display::Argmax.choose(&[0.2, 0.5, 0.3], 1, 7, chance), (1, 1.0));
        }
    }

    #[test]
    fn exploration_shows_what_it_says_it_shows_less_with_time_and_never_a_class_that_sleeps() {
        let p = [0.2, 0.5, 0.0, 0.3];
        let distribution = Display::Explore.distribution(&p, 1, 100);
        assert!((distribution.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(distribution[2], 0.0);
        assert!(distribution[3] > distribution[0] && distribution[1] > 0.9, "{distribution:?}");
        assert!(Display::Explore.distribution(&p, 1, 10_000)[1] > distribution[1]);
        let mut counts = [0.0; 4];
        let n = 40_000;
        for t in 0..n {
            let (class, mu) = Display::Explore.choose(&p, 1, 100, uniform(t));
            assert_eq!(mu, distribution[class]);
            counts[class] += 1.0 / n as f64;
        }
        // Standard errors below 0.0013: four of them.
        assert!(counts.iter().zip(&distribution).all(|(a, b)| (a - b).abs() < 0.005), "{counts:?} {distribution:?}");
    }
}
