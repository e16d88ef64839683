//! Accuracy, precision, recall, F1 and the confusion matrix, with scikit-learn's definitions.
use serde::Serialize;

use super::MetricsError;

/// Classification quality of a list of (label, prediction) pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// Samples.
    pub n: usize,
    /// Share of right answers.
    pub accuracy: f64,
    /// Wilson interval of the accuracy at 95 %: low, high.
    pub accuracy_interval: (f64, f64),
    /// One row per class.
    pub per_class: Vec<PerClass>,
    /// Unweighted mean of the classes' precision.
    pub macro_precision: f64,
    /// Unweighted mean of the classes' recall (balanced accuracy when every class occurs).
    pub macro_recall: f64,
    /// Unweighted mean of the classes' F1.
    pub macro_f1: f64,
    /// `confusion[label][prediction]`, counts.
    pub confusion: Vec<Vec<u64>>,
}

/// Figures of one class; a quotient with an empty denominator is 0, as scikit-learn's `zero_division=0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerClass {
    /// Right among those predicted as this class.
    pub precision: f64,
    /// Right among those that are this class.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// Samples that are this class.
    pub support: u64,
}

impl Classification {
    /// Counts `labels` (truth) against `predictions`, both class indices below `n_classes`.
    ///
    /// # Errors
    /// [`MetricsError::Unpaired`], [`MetricsError::Empty`], [`MetricsError::ClassOutOfRange`].
    pub fn from_pairs(
        labels: &[usize],
        predictions: &[usize],
        n_classes: usize,
    ) -> Result<Classification, MetricsError> {
        if labels.len() != predictions.len() {
            let (labels, predictions) = (labels.len(), predictions.len());
            return Err(MetricsError::Unpaired { what: "predictions", labels, predictions });
        }
        if labels.is_empty() {
            return Err(MetricsError::Empty);
        }
        let mut confusion = vec![vec![0_u64; n_classes]; n_classes];
        for (index, (&label, &prediction)) in labels.iter().zip(predictions).enumerate() {
            if let Some(class) = [label, prediction].into_iter().find(|c| *c >= n_classes) {
                return Err(MetricsError::ClassOutOfRange { index, class, classes: n_classes });
            }
            confusion[label][prediction] += 1;
        }
        let per_class: Vec<PerClass> = (0..n_classes)
            .map(|c| {
                let right = confusion[c][c];
                let support: u64 = confusion[c].iter().sum();
                let predicted: u64 = confusion.iter().map(|row| row[c]).sum();
                PerClass {
                    precision: quotient(right, predicted),
                    recall: quotient(right, support),
                    f1: quotient(2 * right, support + predicted),
                    support,
                }
            })
            .collect();
        let right: u64 = (0..n_classes).map(|c| confusion[c][c]).sum();
        let n = labels.len();
        let mean = |f: fn(&PerClass) -> f64| per_class.iter().map(f).sum::<f64>() / n_classes as f64;
        Ok(Classification {
            n,
            accuracy: quotient(right, n as u64),
            accuracy_interval: wilson(right, n as u64),
            macro_precision: mean(|c| c.precision),
            macro_recall: mean(|c| c.recall),
            macro_f1: mean(|c| c.f1),
            per_class,
            confusion,
        })
    }
}

/// The 95 % Wilson score interval of `successes` in `n` trials; (0, 1) for none.
///
/// Source: Wilson 1927; unlike the normal interval it stays inside [0, 1] and is usable at 0 and n successes.
pub fn wilson(successes: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (n as f64, 1.959_963_984_540_054_f64);
    let p = successes as f64 / n;
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

fn quotient(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        classification: Vec<Recorded>,
    }

    #[derive(serde::Deserialize)]
    struct Recorded {
        name: String,
        labels: String,
        predictions: String,
        accuracy: f64,
        precision: Vec<f64>,
        recall: Vec<f64>,
        f1: Vec<f64>,
        support: Vec<u64>,
        r#macro: [f64; 3],
        confusion: Vec<u64>,
    }

    fn digits(text: &str) -> Vec<usize> {
        text.bytes().map(|b| usize::from(b - b'0')).collect()
    }

    #[test]
    fn every_figure_equals_the_one_scikit_learn_gives() {
        let file: File = serde_json::from_str(include_str!("testdata/sklearn.json")).unwrap();
        assert_eq!(file.classification.len(), 2);
        for recorded in file.classification {
            let name = &recorded.name;
            let ours =
                Classification::from_pairs(&digits(&recorded.labels), &digits(&recorded.predictions), 10).unwrap();
            let close = |a: f64, b: f64, what: &str| assert!((a - b).abs() < 1e-12, "{name} {what}: {a} and {b}");
            close(ours.accuracy, recorded.accuracy, "accuracy");
            for c in 0..10 {
                close(ours.per_class[c].precision, recorded.precision[c], "precision");
                close(ours.per_class[c].recall, recorded.recall[c], "recall");
                close(ours.per_class[c].f1, recorded.f1[c], "f1");
                assert_eq!(ours.per_class[c].support, recorded.support[c]);
            }
            close(ours.macro_precision, recorded.r#macro[0], "macro precision");
            close(ours.macro_recall, recorded.r#macro[1], "macro recall");
            close(ours.macro_f1, recorded.r#macro[2], "macro f1");
            assert_eq!(ours.confusion.concat(), recorded.confusion);
        }
    }

    #[test]
    fn the_wilson_interval_has_the_textbook_values_and_stays_inside_zero_and_one() {
        // Newcombe 1998, table I: 81/263 and 15/148.
        for (r, n, low, high) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)] {
            let (l, h) = wilson(r, n);
            assert!((l - low).abs() < 6e-5 && (h - high).abs() < 6e-5, "{r}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
        assert!(wilson(7, 7).1 <= 1.0 && wilson(7, 7).0 > 0.6);
    }

    #[test]
    fn lists_that_do_not_pair_up_are_refused() {
        assert!(matches!(Classification::from_pairs(&[0], &[], 2), Err(MetricsError::Unpaired { .. })));
        assert_eq!(Classification::from_pairs(&[], &[], 2), Err(MetricsError::Empty));
        let error = Classification::from_pairs(&[0, 1], &[0, 5], 2).unwrap_err();
        assert_eq!(error, MetricsError::ClassOutOfRange { index: 1, class: 5, classes: 2 });
    }
}
