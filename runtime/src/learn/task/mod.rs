//! What a model answers with, and what a press on such an answer says: one row of [`TASKS`] each, named by
//! `train/recipe.json`.
//!
//! Whatever the task, an answer is one of `H` *hypotheses* about the truth, belief is a softmax over them, and a press
//! is a likelihood `L(y) = P(press | y, shown)`. So refit, gate, trip-wires, temperature, raters and journal are the
//! same for all; a task says which hypotheses there are, what the `P` outputs of the graph mean for them, what presses
//! say, and which answers count as right. What it has beside classification:
//!
//! * **remarks**: things said about what was shown rather than about what is ("too high", "this label is wrong"). They
//!   have the class numbers after the hypotheses, so that a button, a line and the journal name them as they name a
//!   class;
//! * a **link** `M [H, P]` where hypotheses outnumber outputs: the correction has `P` rows, `logits = graph's + M Θ z`.
//!   Columns are scaled so that Böhning's ½ bounds the curvature, which is all the solver asks;
//! * a **loss of its own** ([`Task::near`], `learn::truth`): what the gate counts as a win.
//!
//! [What presses mean in each](TASKS.md) is written by a test from the rows.
use super::error::LearnError;
use super::head::Theta;
use super::linalg::{Cholesky, Packed, dot};
use super::objective::{Feedback, Hyper, Press, posterior};
use super::solver::Link;
use crate::bundle::Recipe;

mod alarm;
mod items;
mod measure;
mod score;
mod sets;
#[cfg(test)]
mod tests;

use alarm::Alarm;
use items::Items;
pub use measure::Judged;
pub use score::Estimate;
use score::Score;
use sets::Sets;

/// Every task hone learns.
pub static TASKS: &[&TaskDef] = &[
    &CLASSIFICATION,
    &alarm::WAKE_WORD,
    &alarm::DETECTION,
    &alarm::ANOMALY,
    &score::SCORE,
    &sets::MULTI_LABEL,
    &items::RETRIEVAL,
];

/// One of several classes: the task of a bundle that names none.
static CLASSIFICATION: TaskDef = TaskDef {
    name: "classification",
    answer: "one class of several",
    up: "it is this class",
    down: "it is another class",
    named: "it is the class named",
    remarks: "none",
    right: "the class is the true one",
    measures: "accuracy, precision, recall, F1",
    form: |_, _, _| Ok(Form::Plain),
};

/// One row of [`TASKS`].
pub struct TaskDef {
    /// The name in `train/recipe.json`.
    pub name: &'static str,
    /// What an answer is.
    pub answer: &'static str,
    /// What 👍 says.
    pub up: &'static str,
    /// What 👎 says.
    pub down: &'static str,
    /// What naming a class says: a correction, a demonstration, a choice.
    pub named: &'static str,
    /// What else can be said about a shown answer, each a choice of its own.
    pub remarks: &'static str,
    /// When the gate counts an answer as right.
    pub right: &'static str,
    /// What `hone eval` reports.
    pub measures: &'static str,
    /// From the recipe, the labels of `config.json` and the shipped head.
    form: fn(&Recipe, &[String], &Shipped) -> Result<Form, String>,
}

impl std::fmt::Debug for TaskDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskDef").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a task has to know of the shipped head.
#[derive(Clone, Debug, Default)]
pub struct Shipped {
    /// `P`, outputs of the graph.
    pub outputs: usize,
    /// What is searched, one row of `P` numbers for each label, where the head file has it.
    pub gallery: Option<Vec<f32>>,
}

/// What is particular to a task.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    Plain,
    Alarm(Alarm),
    Score(Score),
    Sets(Sets),
    Items(Items),
}

/// The task of one bundle.
#[derive(Clone, Debug)]
pub struct Task {
    def: &'static TaskDef,
    form: Form,
    outputs: usize,
    names: Vec<String>,
    remarks: Vec<String>,
}

impl Default for Task {
    /// Classification, of whatever classes the head has.
    fn default() -> Task {
        Task { def: &CLASSIFICATION, form: Form::Plain, outputs: 0, names: Vec::new(), remarks: Vec::new() }
    }
}

impl PartialEq for Task {
    fn eq(&self, other: &Task) -> bool {
        self.def.name == other.def.name && self.form == other.form
    }
}

impl Task {
    /// The task that `recipe` names, for a bundle with these labels and this head.
    ///
    /// # Errors
    /// A sentence: a task there is not, or settings, labels or outputs that do not fit it.
    pub fn new(recipe: &Recipe, labels: &[String], shipped: &Shipped) -> Result<Task, String> {
        let def = TASKS.iter().copied().find(|def| def.name == recipe.task).ok_or_else(|| {
            let known: Vec<&str> = TASKS.iter().map(|def| def.name).collect();
            format!("there is no task `{}`; there are {}", recipe.task, known.join(", "))
        })?;
        let form = (def.form)(recipe, labels, shipped).map_err(|why| format!("task {}: {why}", def.name))?;
        let (names, remarks) = match &form {
            Form::Plain | Form::Alarm(_) | Form::Items(_) => (labels.to_vec(), Vec::new()),
            Form::Score(score) => (score.names(), score::REMARKS.map(String::from).to_vec()),
            Form::Sets(sets) => (sets.names(), sets.remarks()),
        };
        let outputs = if form == Form::Plain { labels.len() } else { shipped.outputs };
        Ok(Task { def, form, outputs, names, remarks })
    }

    /// Its row.
    pub fn def(&self) -> &'static TaskDef {
        self.def
    }

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        self.def.name
    }

    /// Whether it is classification.
    pub fn is_plain(&self) -> bool {
        self.form == Form::Plain
    }

    /// Names of the hypotheses, `[H]`: what can be answered.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What else can be said about a shown answer. The first has class number `H`.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// `P`, outputs of the graph it wants.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The remark a class number names.
    pub fn remark(&self, class: usize) -> Option<usize> {
        class.checked_sub(self.names.len()).filter(|&remark| remark < self.remarks.len())
    }

    /// Logits of the hypotheses, `[H]`, for the graph's outputs, `[P]`.
    pub fn logits(&self, outputs: &[f32]) -> Vec<f32> {
        match &self.form {
            Form::Plain => outputs.to_vec(),
            Form::Alarm(alarm) => alarm.logits(outputs),
            Form::Score(score) => score.logits(outputs[0]),
            Form::Sets(sets) => sets.logits(outputs),
            Form::Items(items) => items.logits(outputs),
        }
    }

    /// How a correction of the outputs moves the logits; `None` where each hypothesis has a row of its own.
    pub(super) fn link(&self) -> Option<Link> {
        match &self.form {
            Form::Plain | Form::Alarm(_) => None,
            Form::Score(score) => Some(score.link()),
            Form::Sets(sets) => Some(sets.link()),
            Form::Items(items) => Some(items.link()),
        }
    }

    /// The correction of the graph's outputs, `[P, width]`, that a correction of the hypotheses `[H, width]` stands
    /// for.
    ///
    /// # Errors
    /// [`LearnError::NotPositiveDefinite`] when outputs cannot be told apart by any hypothesis.
    pub fn pull(&self, theta: &Theta) -> Result<Theta, LearnError> {
        let (values, width) = (theta.values(), theta.width());
        // Least squares over the rows, each less the first: a constant over hypotheses changes no belief.
        let columns: Vec<Vec<f64>> = match &self.form {
            Form::Plain => return Ok(theta.clone()),
            Form::Alarm(_) if self.outputs == theta.classes() => return Ok(theta.clone()),
            Form::Alarm(_) => vec![vec![0.0, 1.0]],
            Form::Score(score) => vec![score.slope()],
            Form::Sets(sets) => sets.columns(),
            Form::Items(items) => items.columns(),
        };
        let centred = |v: &[f64]| {
            let mean = v.iter().sum::<f64>() / v.len() as f64;
            v.iter().map(|x| x - mean).collect::<Vec<f64>>()
        };
        let columns: Vec<Vec<f64>> = columns.iter().map(|c| centred(c)).collect();
        let mut gram = Packed::scaled_identity(0, 0.0);
        for (i, a) in columns.iter().enumerate() {
            gram.push_row(&columns[..=i].iter().map(|b| dot(a, b)).collect::<Vec<_>>());
        }
        let factor = Cholesky::of(&gram)?;
        let mut out = vec![0.0_f32; columns.len() * width];
        for j in 0..width {
            let of: Vec<f64> = (0..theta.classes()).map(|h| f64::from(values[h * width + j])).collect();
            let mut x: Vec<f64> = columns.iter().map(|c| dot(c, &of)).collect();
            factor.solve(&mut x);
            x.iter().enumerate().for_each(|(p, &v)| out[p * width + j] = v as f32);
        }
        Theta::new(columns.len(), width, out)
    }

    /// Whether answering `answer` is right where `truth` is the case.
    pub fn near(&self, answer: usize, truth: usize) -> bool {
        match &self.form {
            Form::Score(score) => score.near(answer, truth),
            _ => answer == truth,
        }
    }

    /// The probability that an answer is right, for probabilities `[H]`.
    pub fn mass(&self, probabilities: &[f32], answer: usize) -> f32 {
        match &self.form {
            Form::Score(_) => {
                let near = probabilities.iter().enumerate().filter(|&(y, _)| self.near(answer, y));
                near.map(|(_, &p)| f64::from(p)).sum::<f64>().min(1.0) as f32
            }
            _ => probabilities[answer],
        }
    }

    /// Whether a table of classes tells how good it is: few labels that exclude each other.
    pub fn has_classes(&self) -> bool {
        matches!(self.form, Form::Plain | Form::Alarm(_))
    }

    /// Whether answers can be right without being the very truth.
    pub fn is_graded(&self) -> bool {
        matches!(self.form, Form::Score(_))
    }

    /// Whether hypothesis `y` is as `remark` on the answer `shown` says.
    pub(super) fn agrees(&self, remark: usize, shown: usize, y: usize) -> bool {
        match &self.form {
            Form::Score(score) => score.agrees(remark, shown, y),
            Form::Sets(_) => (shown ^ y) >> remark & 1 == 1,
            Form::Plain | Form::Alarm(_) | Form::Items(_) => false,
        }
    }

    /// How many labels a hypothesis is made of, each a bit of its number; `None` where it is not made of any.
    pub fn parts(&self) -> Option<usize> {
        matches!(self.form, Form::Sets(_)).then_some(self.outputs)
    }

    /// Checks that a remark is one of this task.
    pub(super) fn check(&self, feedback: Feedback) -> Result<(), LearnError> {
        match feedback {
            Feedback::Remark { remark } if remark >= self.remarks.len() => {
                Err(LearnError::ClassOutOfRange { what: "a remark", class: remark, classes: self.remarks.len() })
            }
            _ => Ok(()),
        }
    }

    /// Multiplies `L(y)` of a press into `likelihood`, `[H]`.
    ///
    /// # Errors
    /// Those of [`posterior::multiply_likelihood`]; [`LearnError::ClassOutOfRange`] for a remark this task does not
    /// have.
    pub(super) fn multiply_likelihood(
        &self,
        likelihood: &mut [f64],
        press: Press,
        shown: usize,
        hyper: &Hyper,
    ) -> Result<(), LearnError> {
        self.check(press.feedback)?;
        let epsilon = press.error_rate(hyper);
        match (press.feedback, &self.form) {
            (Feedback::Remark { remark }, _) => {
                for (y, l) in likelihood.iter_mut().enumerate() {
                    *l *= if self.agrees(remark, shown, y) { 1.0 - epsilon } else { epsilon };
                }
                Ok(())
            }
            (feedback, Form::Score(score)) => {
                feedback.check(shown, likelihood.len())?;
                score.multiply_likelihood(likelihood, feedback, shown, epsilon);
                Ok(())
            }
            _ => posterior::multiply_likelihood(likelihood, press, shown, hyper),
        }
    }

    /// The hypothesis a label of data, or a person, names; of numbers the nearest of the grid, its ends for what lies
    /// beyond.
    pub fn truth(&self, label: &str) -> Option<usize> {
        match &self.form {
            Form::Score(score) => score.truth(label),
            Form::Sets(sets) => sets.truth(label),
            _ => {
                let number = || label.parse().ok().filter(|&c: &usize| c < self.names.len());
                self.names.iter().position(|l| l == label).or_else(number)
            }
        }
    }

    /// What a label of data says exactly, where the task is about numbers.
    pub fn value(&self, label: &str) -> Option<f64> {
        matches!(self.form, Form::Score(_)).then(|| label.trim().parse().ok()).flatten().filter(|v: &f64| v.is_finite())
    }

    /// The class number a name or number of a hypothesis or remark stands for.
    pub fn choice(&self, name: &str) -> Option<usize> {
        let remark = self.remarks.iter().position(|r| r == name).map(|r| self.names.len() + r);
        remark.or_else(|| self.truth(name))
    }

    /// The remarks that are true of `shown` where `truth` is the case, as class numbers; none where it is right.
    pub fn true_remarks(&self, shown: usize, truth: usize) -> Vec<usize> {
        let wrong = !self.near(shown, truth);
        let remarks = (0..self.remarks.len()).filter(|&remark| wrong && self.agrees(remark, shown, truth));
        remarks.map(|remark| self.names.len() + remark).collect()
    }

    /// Labels with their own probabilities, for probabilities `[H]` of the sets of them; `None` where labels exclude
    /// each other.
    pub fn labels(&self, probabilities: &[f32]) -> Option<Vec<(String, f32)>> {
        match &self.form {
            Form::Sets(sets) => Some(sets.marginals(probabilities)),
            _ => None,
        }
    }

    /// The number answered, with the range it is in four times out of five; `None` where the task is about no number.
    pub fn estimate(&self, probabilities: &[f32]) -> Option<Estimate> {
        match &self.form {
            Form::Score(score) => Some(score.estimate(probabilities)),
            _ => None,
        }
    }

    /// For probabilities `[H]`, that there is something: of alarms only.
    pub fn alarm(&self, probabilities: &[f32]) -> Option<f32> {
        matches!(self.form, Form::Alarm(_)).then(|| probabilities[1])
    }

    /// Expected largest share of each hypothesis among displays, for the trip-wire; empty for the wire's own.
    ///
    /// `prior` is the recipe's. Where hypotheses are many and fine, a third of the share that trips is granted to each.
    pub fn displayed_shares(&self, prior: Option<&[f32]>) -> Vec<f64> {
        match (&self.form, prior) {
            (Form::Plain | Form::Alarm(_), prior) => {
                prior.map_or_else(Vec::new, |p| p.iter().map(|&p| f64::from(p)).collect())
            }
            _ => vec![FINE; self.names.len()],
        }
    }
}

/// Granted to each of many hypotheses: one of them trips when it takes 60 % of the answers and the factory's head does
/// not give it 20 %.
const FINE: f64 = 0.2;
