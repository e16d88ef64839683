//! How well a prior has foretold the presses, whatever it thinks of its own certainty.
use super::super::objective::softmax_into;
use super::Prior;

/// What the logits are multiplied with before they are held against a press.
///
/// A prior may know which class it is and be too sure of it, or not sure enough, for want of presses: that alters the
/// probability it gives to them, and hardly what it answers. Each is judged with the certainty that suits it.
const SHARPNESS: [f64; 4] = [0.25, 0.5, 1.0, 2.0];

/// Share of the uniform distribution in the belief: one press that was wrong, or that the best of the priors did not
/// foresee, must not settle the matter.
const UNSURE: f64 = 0.1;

/// `Σ log P(press | the presses before it)` at each sharpness, and the share the prior had at first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    share: f64,
    told: [f64; SHARPNESS.len()],
}

impl Record {
    /// Before any press.
    pub(super) fn of(prior: &Prior) -> Record {
        Record { share: prior.share, told: [0.0; SHARPNESS.len()] }
    }

    /// A press of this likelihood came where the logits were these: adds `log Σ_y π̃_y L_y`.
    pub(super) fn tell(&mut self, logits: &[f64], likelihood: &[f64]) {
        let mut sharp = vec![0.0; logits.len()];
        let mut pi = sharp.clone();
        for (told, factor) in self.told.iter_mut().zip(SHARPNESS) {
            sharp.iter_mut().zip(logits).for_each(|(s, l)| *s = factor * l);
            softmax_into(&sharp, &mut pi);
            let believed = |p: f64| (1.0 - UNSURE) * p + UNSURE / logits.len() as f64;
            let mass: f64 = pi.iter().zip(likelihood).map(|(&p, &l)| believed(p) * l).sum();
            *told += mass.max(f64::MIN_POSITIVE).ln();
        }
    }

    /// The logarithm of its share times the mean over sharpness of what it foretold.
    pub(super) fn score(&self) -> f64 {
        let best = self.told.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = self.told.iter().map(|told| (told - best).exp()).sum::<f64>() / SHARPNESS.len() as f64;
        self.share.ln() + best + mean.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_right_more_often_wins_over_who_is_surer() {
        // Nine presses in ten say class 0. One prior leans to it each time and is modest; the other is sure each time,
        // and of class 1 every eighth.
        let (mut modest, mut sure) = (Record::of(&Prior::PLAIN), Record::of(&Prior::PLAIN));
        for t in 0..60 {
            let says = if t % 10 == 3 { [0.1, 0.9, 0.1] } else { [0.9, 0.1, 0.1] };
            modest.tell(&[1.0, 0.0, 0.0], &says);
            sure.tell(if t % 8 == 0 { &[0.0, 8.0, 0.0] } else { &[8.0, 0.0, 0.0] }, &says);
        }
        assert!(modest.told[2] < sure.told[2], "as they stand nothing speaks for the modest one: {modest:?}, {sure:?}");
        assert!(modest.score() > sure.score() + 2.0, "{} and {}", modest.score(), sure.score());
    }

    #[test]
    fn before_a_press_a_prior_has_its_share_and_a_share_counts_as_much_as_ever() {
        let third = Prior { share: 1.0 / 3.0, ..Prior::PLAIN };
        let (mut a, mut b) = (Record::of(&Prior::PLAIN), Record::of(&third));
        assert!((b.score() - (1.0_f64 / 3.0).ln()).abs() < 1e-15);
        for record in [&mut a, &mut b] {
            record.tell(&[1.0, 0.0], &[0.9, 0.1]);
        }
        assert!((a.score() - b.score() - 3.0_f64.ln()).abs() < 1e-12);
        // A press nobody thought possible is no infinity.
        a.tell(&[1e300, 0.0], &[0.0, 0.0]);
        assert!(a.score().is_finite());
    }
}
