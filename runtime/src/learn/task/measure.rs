//! How good answers are, in the figures of their task.
use super::{Form, Task};
use crate::learn::head::argmax;
use crate::metrics::{Alarms, Errors, MetricsError, MultiLabel, Ranking};

/// One answer and the truth.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Probabilities of the hypotheses, `[H]`.
    pub probabilities: Vec<f32>,
    /// The true hypothesis.
    pub truth: usize,
    /// The true number, exactly, where the task is about numbers.
    pub value: Option<f64>,
}

impl Judged {
    /// The hypothesis answered.
    pub fn answer(&self) -> usize {
        argmax(&self.probabilities)
    }
}

impl Task {
    /// Share of answers that are right, as the gate counts them.
    pub fn share_right(&self, judged: &[Judged]) -> f64 {
        let right = judged.iter().filter(|j| self.near(j.answer(), j.truth)).count();
        right as f64 / judged.len().max(1) as f64
    }

    /// The figures of this task by name, the most telling first; none in classification, whose figures are
    /// [`Classification`](crate::metrics::Classification).
    ///
    /// # Errors
    /// [`MetricsError::Empty`].
    pub fn measures(&self, judged: &[Judged]) -> Result<Vec<(&'static str, f64)>, MetricsError> {
        Ok(match &self.form {
            Form::Plain => Vec::new(),
            Form::Alarm(_) => {
                let there: Vec<bool> = judged.iter().map(|j| j.truth == 1).collect();
                let scores: Vec<f64> = judged.iter().map(|j| f64::from(j.probabilities[1])).collect();
                let reported: Vec<bool> = judged.iter().map(|j| j.answer() == 1).collect();
                let a = Alarms::from_scores(&there, &scores, &reported)?;
                vec![("auc", a.auc), ("far", a.far), ("frr", a.frr)]
            }
            Form::Score(score) => {
                let answered: Vec<f64> = judged.iter().map(|j| score.estimate(&j.probabilities).value).collect();
                let truth: Vec<f64> = judged.iter().map(|j| j.value.unwrap_or_else(|| score.at(j.truth))).collect();
                let e = Errors::from_pairs(&truth, &answered)?;
                vec![("mae", e.mae), ("rmse", e.rmse), ("bias", e.bias), ("within", self.share_right(judged))]
            }
            Form::Sets(_) => {
                let m = self.sets(judged)?;
                vec![("micro_f1", m.micro_f1), ("macro_f1", m.macro_f1), ("labels", m.labels), ("exact", m.exact)]
            }
            Form::Items(_) => {
                let before = |j: &Judged| {
                    let own = j.probabilities[j.truth];
                    j.probabilities.iter().enumerate().filter(|&(i, &p)| p > own || p == own && i < j.truth).count()
                };
                let r = Ranking::from_places(&judged.iter().map(before).collect::<Vec<_>>())?;
                vec![("recall_at_1", r.recall_at_1), ("recall_at_5", r.recall_at_5), ("mrr", r.mrr)]
            }
        })
    }

    /// Figures by label, with the labels; `None` where labels exclude each other.
    ///
    /// # Errors
    /// [`MetricsError::Empty`].
    pub fn by_label(&self, judged: &[Judged]) -> Result<Option<(Vec<String>, MultiLabel)>, MetricsError> {
        match &self.form {
            Form::Sets(sets) => Ok(Some((sets.labels().to_vec(), self.sets(judged)?))),
            _ => Ok(None),
        }
    }

    fn sets(&self, judged: &[Judged]) -> Result<MultiLabel, MetricsError> {
        let truth: Vec<usize> = judged.iter().map(|j| j.truth).collect();
        let answered: Vec<usize> = judged.iter().map(Judged::answer).collect();
        MultiLabel::from_sets(&truth, &answered, self.outputs)
    }
}
