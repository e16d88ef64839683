//! Whether thumbs contradict each other: about the same answer to inputs alike they say different things.
//!
//! Each thumb is held against the one that was given, of the last ones about the same answer, to the most similar
//! input. Where the presses of a person hang together the two agree nearly always, whatever has been learned; where a
//! share `p` of the presses is wrong, `2p(1−p)` of them do not: 18 % of them at p = .1, 42 % at .3, and some more where
//! inputs alike are different things. It takes no confirmed press to see it, and only confirmed presses or corrections
//! help then. Foretelling thumbs from what was learned told less: it fails where learning is slow as it does where
//! presses are wrong.
use std::collections::VecDeque;

/// Thumbs among which the most similar one is looked for, and pairs that are counted: the last ones.
pub const WINDOW: usize = 250;
/// Pairs before which nothing is said.
pub const LEAST_PAIRS: usize = 150;
/// Share of pairs that differ from which thumbs contradict each other; it must be exceeded by two standard errors.
///
/// Chosen on 48 worlds of `benches/feedback` other than those reported.
pub const MOST_APART: f64 = 0.37;

/// The last thumbs, and which of them differed from the one before on the most similar input.
#[derive(Clone, Debug, Default)]
pub struct Contradiction {
    thumbs: VecDeque<Thumb>,
    differ: VecDeque<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Thumb {
    prediction: u32,
    shown: usize,
    up: bool,
}

impl Contradiction {
    /// A thumb came about the answer `shown`; `distance` of its input from that of an earlier prediction, `None` for
    /// one that is gone.
    pub fn thumb(&mut self, prediction: u32, shown: usize, up: bool, distance: impl Fn(u32) -> Option<f64>) {
        let alike =
            self.thumbs.iter().filter(|t| t.shown == shown).filter_map(|t| Some((distance(t.prediction)?, t.up)));
        if let Some((_, said)) = alike.min_by(|a, b| a.0.total_cmp(&b.0)) {
            if self.differ.len() == WINDOW {
                self.differ.pop_front();
            }
            self.differ.push_back(said != up);
        }
        if self.thumbs.len() == WINDOW {
            self.thumbs.pop_front();
        }
        self.thumbs.push_back(Thumb { prediction, shown, up });
    }

    /// Share of the pairs that differ; `None` before there are [`LEAST_PAIRS`].
    pub fn apart(&self) -> Option<f64> {
        let n = self.differ.len();
        (n >= LEAST_PAIRS).then(|| self.differ.iter().filter(|d| **d).count() as f64 / n as f64)
    }

    /// Whether the last thumbs contradict each other.
    pub fn is_one(&self) -> bool {
        let error = |p: f64| (p * (1.0 - p) / self.differ.len() as f64).sqrt();
        self.apart().is_some_and(|p| p - 2.0 * error(p) > MOST_APART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;

    /// 300 thumbs on inputs along a line, right answers on its lower half; `wrong` of the thumbs are wrong.
    fn told(wrong: f64, mut watch: impl FnMut(u64, &Contradiction)) -> Contradiction {
        let mut c = Contradiction::default();
        for t in 0..300 {
            let up = (uniform(1, t) < 0.5) != (uniform(2, t) < wrong);
            c.thumb(t as u32, t as usize % 2, up, |id| Some((uniform(1, t) - uniform(1, u64::from(id))).abs()));
            watch(t, &c);
        }
        c
    }

    #[test]
    fn thumbs_that_differ_on_inputs_alike_are_a_contradiction_and_one_in_ten_wrong_are_not() {
        let right =
            told(0.0, |t, c| assert_eq!(c.apart().is_none(), t < 151, "two answers, each first shown once: {t}"));
        assert!(right.apart().unwrap() < 0.05);
        told(0.1, |_, c| assert!(!c.is_one()));
        assert!(told(0.4, |_, _| ()).is_one());
        // All wrong hangs together as well as all right.
        assert!(!told(1.0, |_, _| ()).is_one());
    }

    #[test]
    fn only_thumbs_about_the_same_answer_are_held_against_each_other() {
        // Always up about one answer and down about the other, on the very same input.
        let mut c = Contradiction::default();
        (0..400).for_each(|t| c.thumb(t, t as usize % 2, t % 2 == 0, |_| Some(0.0)));
        assert_eq!(c.apart(), Some(0.0));
        // What is gone is held against nothing.
        let mut gone = Contradiction::default();
        (0..400).for_each(|t| gone.thumb(t, 0, t % 2 == 0, |_| None));
        assert_eq!(gone.apart(), None);
    }
}
