//! Whether thumbs contradict each other: they can no longer be foretold better than by their mere frequency.
//!
//! Before a thumb is learned from, the learner says how probable it is. Where the presses of a person hang together those sayings
//! soon beat the share of 👍; where a third of the presses is wrong they do not, whatever is learned. It takes no confirmed press
//! to see it, and only confirmed presses or corrections help then.
use std::collections::VecDeque;

/// Thumbs looked at.
pub const WINDOW: usize = 100;
/// Thumbs contradict each other when foretelling them gains less than so many nats a thumb over their frequency.
pub const LEAST_GAIN: f64 = -0.01;
/// Where so large a share is 👍 the answers are right and there is nothing to foretell.
pub const CONTENT: f64 = 0.75;

/// The last thumbs and how well they were foretold.
#[derive(Clone, Debug, Default)]
pub struct Contradiction {
    window: VecDeque<(bool, f64)>,
}

impl Contradiction {
    /// A thumb came that was foretold to be up with probability `p_up`, in (0, 1).
    pub fn thumb(&mut self, up: bool, p_up: f64) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        let p = if up { p_up } else { 1.0 - p_up };
        self.window.push_back((up, p.max(f64::MIN_POSITIVE).ln()));
    }

    /// Nats a thumb by which foretelling beats the share of 👍 in the window; `None` before it is full.
    pub fn gain(&self) -> Option<f64> {
        if self.window.len() < WINDOW {
            return None;
        }
        let (n, share) = (WINDOW as f64, self.share());
        let entropy = [share, 1.0 - share].into_iter().filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum::<f64>();
        Some(self.window.iter().map(|(_, ll)| ll).sum::<f64>() / n + entropy)
    }

    /// Whether the last thumbs contradict each other.
    pub fn is_one(&self) -> bool {
        self.gain().is_some_and(|gain| gain < LEAST_GAIN) && self.share() < CONTENT
    }

    /// Share of 👍 in the window.
    fn share(&self) -> f64 {
        self.window.iter().filter(|(up, _)| *up).count() as f64 / self.window.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;

    #[test]
    fn thumbs_that_follow_what_was_foretold_gain_and_thumbs_that_do_not_are_a_contradiction() {
        let run = |wrong: f64| {
            let mut c = Contradiction::default();
            for t in 0..300 {
                let sure = if t % 2 == 0 { 0.85 } else { 0.15 };
                let said = (sure > 0.5) != (uniform(1, t) < wrong);
                assert_eq!(c.gain().is_none(), t < WINDOW as u64);
                c.thumb(said, sure);
            }
            c
        };
        assert!(run(0.1).gain().unwrap() > 0.2 && !run(0.1).is_one());
        assert!(run(0.5).is_one());
    }

    #[test]
    fn a_person_who_always_says_the_same_is_foretold_and_no_contradiction() {
        let mut c = Contradiction::default();
        (0..200).for_each(|_| c.thumb(true, 0.999));
        assert!(c.gain().unwrap() <= 0.0 && !c.is_one());
    }
}
