//! How far a source of presses can be trusted, as confirmed presses tell.
//!
//! Never from the training presses themselves: a model fitted to them explains them, and an error rate estimated from
//! its residue comes out near 0.02 whatever the truth is.
use super::objective::Feedback;
use super::truth::Truth;

/// What confirmed presses have shown of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rater {
    /// Its presses on predictions whose truth somebody has confirmed.
    pub checked: u32,
    /// Those among them that were wrong.
    pub wrong: u32,
}

/// Presses that the usual error rate counts for, before anything was checked: Beta(10ε, 10(1−ε)).
const PRIOR_PRESSES: f64 = 10.0;
/// An error rate never reaches ½: there a thumb says nothing, and beyond it would be believed to mean its opposite.
const LEAST_TRUST: f64 = 0.499;

impl Rater {
    /// Its error rate ε, `(wrong + 10·usual) / (checked + 10)`, below ½.
    pub fn epsilon(self, usual: f64) -> f64 {
        let rate = (f64::from(self.wrong) + PRIOR_PRESSES * usual) / (f64::from(self.checked) + PRIOR_PRESSES);
        rate.min(LEAST_TRUST)
    }

    pub(super) fn count(&mut self, right: bool) {
        self.checked += 1;
        self.wrong += u32::from(!right);
    }
}

/// Whether a press on a shown class agrees with what was confirmed; `None` where that does not tell.
pub(super) fn agrees(feedback: Feedback, shown: usize, truth: Truth) -> Option<bool> {
    let shown_is_right = match truth {
        Truth::Is(class) => class == shown,
        Truth::IsNot(_) => false,
        Truth::Remarked { .. } => return None,
    };
    match (feedback, truth) {
        (Feedback::Thumb { up }, _) => Some(up == shown_is_right),
        (Feedback::Stars { stars }, _) if stars != 3 => Some((stars > 3) == shown_is_right),
        (Feedback::Correction { class } | Feedback::Demonstration { class }, Truth::Is(truth)) => Some(class == truth),
        (Feedback::Correction { class } | Feedback::Demonstration { class }, Truth::IsNot(wrong)) if class == wrong => {
            Some(false)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_rate_is_the_usual_one_until_confirmed_presses_tell_and_stays_below_one_half() {
        let mut rater = Rater::default();
        assert!((rater.epsilon(0.1) - 0.1).abs() < 1e-12);
        (0..10).for_each(|_| rater.count(true));
        assert!((rater.epsilon(0.1) - 0.05).abs() < 1e-12);
        let mut liar = Rater::default();
        (0..100).for_each(|_| liar.count(false));
        assert!(liar.epsilon(0.1) < 0.5);
        assert_eq!((liar.checked, liar.wrong), (100, 100));
    }

    #[test]
    fn presses_agree_with_the_truth_where_it_tells() {
        let (is, is_not) = (Truth::Is(2), Truth::IsNot(1));
        for (feedback, shown, truth, expected) in [
            (Feedback::Thumb { up: true }, 2, is, Some(true)),
            (Feedback::Thumb { up: true }, 1, is, Some(false)),
            (Feedback::Thumb { up: false }, 1, is, Some(true)),
            (Feedback::Thumb { up: false }, 1, is_not, Some(true)),
            (Feedback::Thumb { up: true }, 1, is_not, Some(false)),
            (Feedback::Stars { stars: 5 }, 2, is, Some(true)),
            (Feedback::Stars { stars: 3 }, 2, is, None),
            (Feedback::Correction { class: 2 }, 1, is, Some(true)),
            (Feedback::Correction { class: 0 }, 1, is, Some(false)),
            (Feedback::Correction { class: 1 }, 1, is_not, Some(false)),
            (Feedback::Correction { class: 0 }, 1, is_not, None),
            (Feedback::Preference { over: 0 }, 1, is, None),
            (Feedback::NotSure, 1, is, None),
        ] {
            assert_eq!(agrees(feedback, shown, truth), expected, "{feedback:?} on {shown}, {truth:?}");
        }
    }
}
