//! Calibration: does an answer given with 80 % confidence hold 80 % of the time?
use serde::Serialize;

use super::MetricsError;

/// Bins of the reliability diagram.
const BINS: usize = 15;

/// Expected calibration error and the reliability diagram behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Samples.
    pub n: usize,
    /// `Σ_bins (n_bin / n) · |accuracy − confidence|`. Source: Guo et al. 2017.
    pub expected_calibration_error: f64,
    /// Fifteen bins of equal width, `(low, high]`; the first holds 0 too.
    pub bins: Vec<ReliabilityBin>,
}

/// One bin of the diagram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Lower edge of confidence, exclusive.
    pub low: f64,
    /// Upper edge of confidence, inclusive.
    pub high: f64,
    /// Samples in it.
    pub n: usize,
    /// Mean confidence of its samples; 0 when empty.
    pub confidence: f64,
    /// Share of right answers among them; 0 when empty.
    pub accuracy: f64,
}

impl Calibration {
    /// Bins answers by `confidence` (probability of the answer, in [0, 1]); `right[i]` says whether answer `i` was
    /// right.
    ///
    /// # Errors
    /// [`MetricsError::Unpaired`], [`MetricsError::Empty`], [`MetricsError::OutOfRange`].
    pub fn from_answers(confidence: &[f64], right: &[bool]) -> Result<Calibration, MetricsError> {
        if confidence.len() != right.len() {
            let (labels, predictions) = (right.len(), confidence.len());
            return Err(MetricsError::Unpaired { what: "confidences", labels, predictions });
        }
        if confidence.is_empty() {
            return Err(MetricsError::Empty);
        }
        let mut sums = [(0_usize, 0.0_f64, 0_usize); BINS];
        for (index, (&p, &right)) in confidence.iter().zip(right).enumerate() {
            if !(0.0..=1.0).contains(&p) {
                return Err(MetricsError::OutOfRange { index, value: p, range: "[0, 1]" });
            }
            let bin = &mut sums[((p * BINS as f64).ceil() as usize).saturating_sub(1).min(BINS - 1)];
            bin.0 += 1;
            bin.1 += p;
            bin.2 += usize::from(right);
        }
        let bins: Vec<ReliabilityBin> = sums
            .iter()
            .enumerate()
            .map(|(i, &(n, sum, right))| ReliabilityBin {
                low: i as f64 / BINS as f64,
                high: (i + 1) as f64 / BINS as f64,
                n,
                confidence: if n == 0 { 0.0 } else { sum / n as f64 },
                accuracy: if n == 0 { 0.0 } else { right as f64 / n as f64 },
            })
            .collect();
        let n = confidence.len();
        let expected_calibration_error =
            bins.iter().map(|b| b.n as f64 / n as f64 * (b.accuracy - b.confidence).abs()).sum();
        Ok(Calibration { n, expected_calibration_error, bins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        calibration: Recorded,
    }

    #[derive(serde::Deserialize)]
    struct Recorded {
        confidence: Vec<f64>,
        right: String,
        ece: f64,
    }

    #[test]
    fn the_calibration_error_of_recorded_answers_equals_the_numpy_one() {
        let file: File = serde_json::from_str(include_str!("testdata/sklearn.json")).unwrap();
        let right: Vec<bool> = file.calibration.right.bytes().map(|b| b == b'1').collect();
        let ours = Calibration::from_answers(&file.calibration.confidence, &right).unwrap();
        assert!((ours.expected_calibration_error - file.calibration.ece).abs() < 1e-9);
        assert!(file.calibration.ece > 0.1, "the recorded answers are too well calibrated to tell errors apart");
        assert_eq!((ours.bins.len(), ours.n), (15, 600));
        assert_eq!(ours.bins.iter().map(|b| b.n).sum::<usize>(), 600);
    }

    #[test]
    fn confidences_on_an_edge_belong_to_the_lower_bin() {
        let ours = Calibration::from_answers(&[0.0, 1.0 / 15.0, 0.2, 1.0], &[false, true, true, true]).unwrap();
        let counts: Vec<usize> = ours.bins.iter().map(|b| b.n).collect();
        assert_eq!(counts, [2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn always_certain_and_half_right_is_off_by_a_half() {
        let ours = Calibration::from_answers(&[1.0; 4], &[true, false, true, false]).unwrap();
        assert!((ours.expected_calibration_error - 0.5).abs() < 1e-12);
    }

    #[test]
    fn confidences_outside_the_unit_interval_are_refused() {
        assert!(Calibration::from_answers(&[0.5, 1.1], &[true, true]).is_err());
        assert!(Calibration::from_answers(&[f64::NAN], &[true]).is_err());
        assert!(Calibration::from_answers(&[0.5], &[]).is_err());
        assert_eq!(Calibration::from_answers(&[], &[]), Err(MetricsError::Empty));
    }
}
