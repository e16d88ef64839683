//! Figures of what is no plain classification: alarms, numbers, sets of labels, search.
use serde::Serialize;

use super::{MetricsError, PerClass};

/// Alarms: is something there?
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Alarms {
    /// Share of the samples with nothing that were reported; 0 where there are none.
    pub far: f64,
    /// Share of the samples with something that were not reported; 0 where there are none.
    pub frr: f64,
    /// Area under the receiver operating characteristic: how often something has a higher score than nothing, ties
    /// half. ½ where there is only one of the two.
    pub auc: f64,
}

impl Alarms {
    /// From whether something is there, its score, and whether it was reported.
    ///
    /// # Errors
    /// [`MetricsError::Empty`], [`MetricsError::Unpaired`], [`MetricsError::OutOfRange`] for a score that is not a
    /// number.
    pub fn from_scores(there: &[bool], scores: &[f64], reported: &[bool]) -> Result<Alarms, MetricsError> {
        paired("scores", there.len(), scores.len())?;
        paired("reports", there.len(), reported.len())?;
        if let Some(index) = scores.iter().position(|s| s.is_nan()) {
            return Err(MetricsError::OutOfRange { index, value: f64::NAN, range: "the numbers" });
        }
        let share = |of: bool, wrong: bool| {
            let all = there.iter().zip(reported).filter(|(t, _)| **t == of);
            let (n, k) = all.fold((0.0, 0.0), |(n, k), (_, &r)| (n + 1.0, k + f64::from(u8::from(r == wrong))));
            if n == 0.0 { 0.0 } else { k / n }
        };
        // Ranks, the mean rank among equals.
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let positive = there.iter().filter(|t| **t).count() as f64;
        let negative = there.len() as f64 - positive;
        let mut ranks = 0.0;
        let mut start = 0;
        while start < order.len() {
            let end = (start..order.len()).find(|&i| scores[order[i]] != scores[order[start]]).unwrap_or(order.len());
            let held = order[start..end].iter().filter(|&&i| there[i]).count() as f64;
            ranks += held * 0.5 * (start + 1 + end) as f64;
            start = end;
        }
        let pairs = positive * negative;
        let auc = if pairs == 0.0 { 0.5 } else { (ranks - 0.5 * positive * (positive + 1.0)) / pairs };
        Ok(Alarms { far: share(false, true), frr: share(true, false), auc })
    }
}

/// Numbers against the true ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// Mean absolute error.
    pub mae: f64,
    /// Root mean square error.
    pub rmse: f64,
    /// Mean of what was answered less what is true.
    pub bias: f64,
}

impl Errors {
    /// From the true numbers and those answered.
    ///
    /// # Errors
    /// [`MetricsError::Empty`], [`MetricsError::Unpaired`].
    pub fn from_pairs(truth: &[f64], answered: &[f64]) -> Result<Errors, MetricsError> {
        paired("numbers", truth.len(), answered.len())?;
        let mean =
            |f: fn(f64) -> f64| truth.iter().zip(answered).map(|(t, a)| f(a - t)).sum::<f64>() / truth.len() as f64;
        Ok(Errors { mae: mean(f64::abs), rmse: mean(|e| e * e).sqrt(), bias: mean(|e| e) })
    }
}

/// Sets of labels against the true ones, with scikit-learn's definitions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MultiLabel {
    /// F1 of all labels taken together.
    pub micro_f1: f64,
    /// Mean of the labels' F1.
    pub macro_f1: f64,
    /// Share of labels that are right, there or not: one less the Hamming loss.
    pub labels: f64,
    /// Share of samples whose set is exactly right.
    pub exact: f64,
    /// One row per label.
    pub per_label: Vec<PerClass>,
}

impl MultiLabel {
    /// From sets as bits, label `k` being bit `k`, of `labels` labels.
    ///
    /// # Errors
    /// [`MetricsError::Empty`], [`MetricsError::Unpaired`].
    pub fn from_sets(truth: &[usize], answered: &[usize], labels: usize) -> Result<MultiLabel, MetricsError> {
        paired("sets", truth.len(), answered.len())?;
        let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
        let has = |set: usize, k: usize| set >> k & 1 == 1;
        let (mut both, mut either) = (0.0, 0.0);
        let per_label: Vec<PerClass> = (0..labels)
            .map(|k| {
                let count = |f: &dyn Fn(bool, bool) -> bool| {
                    truth.iter().zip(answered).filter(|&(&t, &a)| f(has(t, k), has(a, k))).count() as f64
                };
                let (hit, there, said) = (count(&|t, a| t && a), count(&|t, _| t), count(&|_, a| a));
                both += 2.0 * hit;
                either += there + said;
                PerClass {
                    precision: ratio(hit, said),
                    recall: ratio(hit, there),
                    f1: ratio(2.0 * hit, there + said),
                    support: there as u64,
                }
            })
            .collect();
        let exact = truth.iter().zip(answered).filter(|(t, a)| t == a).count() as f64 / truth.len() as f64;
        let wrong: f64 = truth.iter().zip(answered).map(|(t, a)| f64::from((t ^ a).count_ones())).sum();
        let right = 1.0 - ratio(wrong, (labels * truth.len()) as f64);
        let macro_f1 = ratio(per_label.iter().map(|l| l.f1).sum(), labels as f64);
        Ok(MultiLabel { micro_f1: ratio(both, either), macro_f1, labels: right, exact, per_label })
    }
}

/// Where the true item stands in the lists given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// Share of lists that begin with it.
    pub recall_at_1: f64,
    /// Share of lists that have it among the first five.
    pub recall_at_5: f64,
    /// Mean of one over its place.
    pub mrr: f64,
}

impl Ranking {
    /// From how many items stand before the true one.
    ///
    /// # Errors
    /// [`MetricsError::Empty`].
    pub fn from_places(before: &[usize]) -> Result<Ranking, MetricsError> {
        paired("places", before.len(), before.len())?;
        let mean = |f: &dyn Fn(usize) -> f64| before.iter().map(|&b| f(b)).sum::<f64>() / before.len() as f64;
        let within = |k: usize| mean(&|b| f64::from(u8::from(b < k)));
        Ok(Ranking { recall_at_1: within(1), recall_at_5: within(5), mrr: mean(&|b| 1.0 / (b + 1) as f64) })
    }
}

fn paired(what: &'static str, labels: usize, predictions: usize) -> Result<(), MetricsError> {
    match (labels, predictions) {
        (0, _) => Err(MetricsError::Empty),
        (a, b) if a != b => Err(MetricsError::Unpaired { what, labels, predictions }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_counted_and_the_area_is_that_of_scikit_learn() {
        // scikit-learn 1.9.1: roc_auc_score([0,0,1,1,0,1,1,0], [.1,.4,.35,.8,.4,.4,.9,.05]) = 0.8125
        let there = [false, false, true, true, false, true, true, false];
        let scores = [0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.9, 0.05];
        let reported = scores.map(|s| s >= 0.4);
        let a = Alarms::from_scores(&there, &scores, &reported).unwrap();
        assert!((a.auc - AUC).abs() < 1e-12, "{a:?}");
        assert_eq!((a.far, a.frr), (0.5, 0.25));
        let one_kind = Alarms::from_scores(&[true; 2], &[0.1, 0.2], &[true, false]).unwrap();
        assert_eq!((one_kind.far, one_kind.frr, one_kind.auc), (0.0, 0.5, 0.5));
        assert!(Alarms::from_scores(&there, &[f64::NAN; 8], &reported).is_err());
        assert_eq!(Alarms::from_scores(&[], &[], &[]), Err(MetricsError::Empty));
    }

    const AUC: f64 = 0.8125;

    #[test]
    fn errors_of_numbers_are_absolute_squared_and_signed() {
        let e = Errors::from_pairs(&[1.0, 2.0, 4.0], &[2.0, 2.0, 1.0]).unwrap();
        assert!((e.mae - 4.0 / 3.0).abs() < 1e-12 && (e.rmse - (10.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((e.bias + 2.0 / 3.0).abs() < 1e-12);
        assert!(Errors::from_pairs(&[1.0], &[]).is_err());
    }

    #[test]
    fn sets_of_labels_have_the_f1_of_scikit_learn() {
        // scikit-learn 1.9.1, f1_score of the bits of these: micro 0.6, macro 0.611111111111111; accuracy_score 0.25.
        let m = MultiLabel::from_sets(&[0b101, 0b001, 0b110, 0b000], &[0b100, 0b001, 0b011, 0b010], 3).unwrap();
        assert!((m.micro_f1 - MICRO).abs() < 1e-12 && (m.macro_f1 - MACRO).abs() < 1e-12, "{m:?}");
        assert_eq!((m.exact, m.per_label[1].support), (0.25, 1));
        assert!((m.labels - 8.0 / 12.0).abs() < 1e-12, "four of twelve bits differ");
        assert!(MultiLabel::from_sets(&[1], &[1, 2], 2).is_err());
    }

    const MICRO: f64 = 0.6;
    const MACRO: f64 = 0.611_111_111_111_111;

    #[test]
    fn places_in_lists_make_recall_and_reciprocal_ranks() {
        let r = Ranking::from_places(&[0, 1, 4, 9]).unwrap();
        assert_eq!((r.recall_at_1, r.recall_at_5), (0.25, 0.75));
        assert!((r.mrr - (1.0 + 0.5 + 0.2 + 0.1) / 4.0).abs() < 1e-12);
        assert_eq!(Ranking::from_places(&[]), Err(MetricsError::Empty));
    }
}
