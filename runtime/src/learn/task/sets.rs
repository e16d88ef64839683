//! Several labels at once, each a Bernoulli: which genres, which faults, which things in a picture.
//!
//! The hypotheses are the `2^K` sets of `K` labels, set `h` holding label `k` where its bit `k` is one, and `logits_h =
//! Σ_k bit_k(h) s_k` of the graph's outputs `s [K]`: exactly the product of `K` independent Bernoullis. So a 👎 that
//! says "something in this set is wrong" is exact too, not spread over labels by a rule of thumb. With eight labels
//! there are 256 sets, and the refit still has eight rows. The curvature in `s` is at most ¼ a label.
use super::{Form, Shipped, TaskDef};
use crate::bundle::Recipe;
use crate::learn::solver::Link;

/// The row of [`super::TASKS`].
pub(super) static MULTI_LABEL: TaskDef = TaskDef {
    name: "multi-label",
    answer: "a set of labels, eight at most, each there or not",
    up: "every label is right",
    down: "some label is wrong",
    named: "it is the set named",
    remarks: "LABEL is wrong: it is there and was not shown, or the other way round; the others stay open",
    right: "the share of labels that are, of those on which heads differ; where a remark told one label only, the \
        others count half",
    measures: "F1 over all labels (micro) and by label (macro), labels that are right, sets that are exactly right",
    form,
};

/// The doubtful belief is half as sure of each label: a uniform one doubts six labels at once, and a 👎 would blame them
/// alike.
const DOUBT: f64 = 0.5;

/// Most labels: with nine a press would weigh 512 sets, and nobody has a button for each label any more.
const MOST: usize = 8;

/// The labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sets {
    labels: Vec<String>,
}

fn form(_: &Recipe, labels: &[String], shipped: &Shipped) -> Result<Form, String> {
    if !(1..=MOST).contains(&labels.len()) {
        return Err(format!(
            "it has {} labels, 1 to {MOST} are possible: all {} sets of so many are weighed against each other, so \
             that a thumb on a whole set counts exactly; share the labels out over several models",
            labels.len(),
            1 << MOST
        ));
    }
    if shipped.outputs != labels.len() {
        return Err(format!("the head has {} outputs for {} labels", shipped.outputs, labels.len()));
    }
    Ok(Form::Sets(Sets { labels: labels.to_vec() }))
}

impl Sets {
    pub(super) fn labels(&self) -> &[String] {
        &self.labels
    }

    fn count(&self) -> usize {
        1 << self.labels.len()
    }

    fn has(set: usize, label: usize) -> bool {
        set >> label & 1 == 1
    }

    pub(super) fn names(&self) -> Vec<String> {
        let of = |set: usize| {
            let held: Vec<&str> =
                self.labels.iter().enumerate().filter(|(k, _)| Sets::has(set, *k)).map(|(_, l)| l.as_str()).collect();
            if held.is_empty() { NONE.to_string() } else { held.join(" + ") }
        };
        (0..self.count()).map(of).collect()
    }

    pub(super) fn remarks(&self) -> Vec<String> {
        self.labels.iter().map(|l| format!("{l} is wrong")).collect()
    }

    pub(super) fn logits(&self, outputs: &[f32]) -> Vec<f32> {
        let of = |set: usize| {
            let held = outputs.iter().enumerate().filter(|(k, _)| Sets::has(set, *k));
            held.map(|(_, &s)| f64::from(s)).sum::<f64>() as f32
        };
        (0..self.count()).map(of).collect()
    }

    /// What one unit of each output adds to the logits.
    pub(super) fn columns(&self) -> Vec<Vec<f64>> {
        let column = |k: usize| (0..self.count()).map(|h| f64::from(u8::from(Sets::has(h, k)))).collect();
        (0..self.labels.len()).map(column).collect()
    }

    pub(super) fn link(&self) -> Link {
        let k = self.labels.len();
        let entry = |h: usize, label: usize| if Sets::has(h, label) { std::f64::consts::SQRT_2 } else { 0.0 };
        Link {
            outputs: k,
            matrix: (0..self.count()).flat_map(|h| (0..k).map(move |l| entry(h, l))).collect(),
            doubt: DOUBT,
        }
    }

    /// Labels are joined by `+` or `;`; `none` is the empty set.
    pub(super) fn truth(&self, label: &str) -> Option<usize> {
        if label.trim() == NONE {
            return Some(0);
        }
        label.split(['+', ';']).try_fold(0, |set, part| {
            let k = self.labels.iter().position(|l| l == part.trim())?;
            Some(set | 1 << k)
        })
    }

    pub(super) fn marginals(&self, probabilities: &[f32]) -> Vec<(String, f32)> {
        let of = |k: usize| {
            let held = probabilities.iter().enumerate().filter(|(h, _)| Sets::has(*h, k));
            held.map(|(_, &p)| f64::from(p)).sum::<f64>().min(1.0) as f32
        };
        self.labels.iter().enumerate().map(|(k, l)| (l.clone(), of(k))).collect()
    }
}

/// The name of the empty set.
const NONE: &str = "none";
