//! The classes a device knows: those its bundle ships, and what people have made of them since.
//!
//! A class is a number that never changes; what people do is told by the journal, and the classes are a function of it.
//!
//! * An **added** class sleeps until a press names it: before that nothing is computed with it, so that every other
//!   answer and its probability stay as they were, bit for bit. Awake, its logit before any correction is that of the
//!   graph's logits `f [C]`, `ln Σ exp f − ln C`: the probability of a class about which nothing is known, `1/(C+1)` on
//!   every input. It never beats the top class of the graph, so being awake alone changes no answer either.
//! * **Renaming** changes a name.
//! * **Merged** classes stay apart inside the head and are one for people: their probabilities are added, and a press
//!   on the answer is a press on all of them, `L(y)` equal for each. Presses made before the merge keep the meaning
//!   they had.
//!
//! Letters: `C` classes of the bundle, `K` classes known.
use serde::{Deserialize, Serialize};

use super::error::LearnError;
use super::head::argmax;
use super::objective::{Feedback, Hyper, Press, posterior};
use crate::journal::ClassChange;
use crate::{Class, Classified};

/// Why a change of the classes is refused. Nothing is changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassesError {
    /// No class of that name or number.
    #[error("there is no class `{class}`; there are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        class: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Two classes of one name could not be told apart.
    #[error("there is a class `{name}` already; choose another name, or merge the two with --merge-class")]
    Taken {
        /// The name.
        name: String,
    },
    /// A name nobody could read or type.
    #[error("`{name}` is no name for a class: 1 to 64 bytes, no control characters, no blanks at its ends")]
    Name {
        /// The name.
        name: String,
    },
    /// A class that already is the other one.
    #[error("`{from}` and `{into}` are one class already")]
    Same {
        /// The class to go.
        from: String,
        /// The class to stay.
        into: String,
    },
    /// Nothing would be left to tell apart.
    #[error("merging `{from}` into `{into}` would leave one class, and a head needs two")]
    TooFew {
        /// The class to go.
        from: String,
        /// The class to stay.
        into: String,
    },
    /// Classes stored with an adapter that contradict themselves.
    #[error("the classes of an adapter: {why}")]
    Damaged {
        /// What is wrong.
        why: String,
    },
}

impl Classified for ClassesError {
    fn class(&self) -> Class {
        match self {
            ClassesError::Damaged { .. } => Class::Store,
            _ => Class::Usage,
        }
    }
}

/// From which press on which classes are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// Presses with a greater id are meant so.
    pub since: u64,
    /// Of each class known then the one that stands for it; later classes stand for themselves.
    pub group: Vec<usize>,
}

/// The classes, by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Classes {
    shipped: usize,
    names: Vec<String>,
    group: Vec<usize>,
    /// The merges, oldest first. Not with an adapter: presses are the journal's, and so is their meaning.
    #[serde(skip)]
    merged: Vec<Merged>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    shipped: usize,
    names: Vec<String>,
    group: Vec<usize>,
}

impl TryFrom<Unchecked> for Classes {
    type Error = ClassesError;

    fn try_from(raw: Unchecked) -> Result<Classes, ClassesError> {
        let Unchecked { shipped, names, group } = raw;
        let stands = |&g: &usize| group.get(g) == Some(&g);
        if shipped < 2 || shipped > names.len() || group.len() != names.len() || !group.iter().all(stands) {
            let why = format!("{shipped} shipped, {} names, groups {group:?}", names.len());
            return Err(ClassesError::Damaged { why });
        }
        Ok(Classes { shipped, names, group, merged: Vec::new() })
    }
}

impl Classes {
    /// The classes of a bundle, as it ships them.
    pub fn shipped(labels: &[String]) -> Classes {
        Classes {
            shipped: labels.len(),
            names: labels.to_vec(),
            group: (0..labels.len()).collect(),
            merged: Vec::new(),
        }
    }

    /// `K`, merged ones included.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// False: a head has at least two classes.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// `C`, the classes of the bundle.
    pub fn shipped_len(&self) -> usize {
        self.shipped
    }

    /// True when nobody has changed anything.
    pub fn is_as_shipped(&self, labels: &[String]) -> bool {
        *self == Classes::shipped(labels)
    }

    /// Every name by class number, merged classes under their old names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of the class that stands for `class`.
    ///
    /// # Panics
    /// When `class` is not below [`Classes::len`].
    pub fn name(&self, class: usize) -> &str {
        &self.names[self.group[class]]
    }

    /// The class that stands for `class`: itself unless merged.
    ///
    /// # Panics
    /// When `class` is not below [`Classes::len`].
    pub fn stands_for(&self, class: usize) -> usize {
        self.group[class]
    }

    /// The classes that can be answered, rising.
    pub fn visible(&self) -> Vec<usize> {
        (0..self.len()).filter(|&c| self.group[c] == c).collect()
    }

    /// The names of the classes that can be answered.
    pub fn visible_names(&self) -> Vec<String> {
        self.visible().into_iter().map(|c| self.names[c].clone()).collect()
    }

    /// The class of a name, of the old name of a merged class, or of a class number; always one that can be answered.
    pub fn class_of(&self, name: &str) -> Option<usize> {
        let visible = self.visible().into_iter().find(|&c| self.names[c] == name);
        let merged = || self.names.iter().position(|n| n == name);
        let number = || name.parse().ok().filter(|&c| c < self.len());
        visible.or_else(merged).or_else(number).map(|c| self.group[c])
    }

    /// As [`Classes::class_of`], for people.
    ///
    /// # Errors
    /// [`ClassesError::Unknown`] with the names there are.
    pub fn find(&self, name: &str) -> Result<usize, ClassesError> {
        let unknown = || ClassesError::Unknown { class: name.to_string(), known: self.visible_names() };
        self.class_of(name).ok_or_else(unknown)
    }

    /// The merges, oldest first, for a learner.
    pub fn merged(&self) -> &[Merged] {
        &self.merged
    }

    /// Makes a change that the journal holds as record `seq`.
    ///
    /// # Errors
    /// [`ClassesError`].
    pub fn apply(&mut self, seq: u64, change: &ClassChange) -> Result<(), ClassesError> {
        match change {
            ClassChange::Add { name } => {
                self.check_name(name, None)?;
                self.group.push(self.names.len());
                self.names.push(name.clone());
            }
            ClassChange::Rename { class, name } => {
                let class = self.visible_class(*class)?;
                self.check_name(name, Some(class))?;
                self.names[class] = name.clone();
            }
            ClassChange::Merge { from, into } => {
                let (from, into) = (self.visible_class(*from)?, self.visible_class(*into)?);
                let names = || (self.names[from].clone(), self.names[into].clone());
                if from == into {
                    let (from, into) = names();
                    return Err(ClassesError::Same { from, into });
                }
                if self.visible().len() == 2 {
                    let (from, into) = names();
                    return Err(ClassesError::TooFew { from, into });
                }
                self.group.iter_mut().filter(|g| **g == from).for_each(|g| *g = into);
                self.merged.push(Merged { since: seq, group: self.group.clone() });
            }
        }
        Ok(())
    }

    /// Probabilities of all `K` classes from the served logits of the first of them: softmax in f64, merged classes
    /// added to the one that stands for them, 0 for those and for classes that sleep.
    ///
    /// The probabilities of classes no change is about are those of [`crate::model::probabilities`], bit for bit.
    pub fn probabilities(&self, served: &[f32]) -> Vec<f32> {
        self.shares(served).into_iter().map(|p| p as f32).collect()
    }

    /// The class to answer: the most probable, the first one among equals.
    pub fn top(&self, served: &[f32]) -> usize {
        if self.merged_now() {
            let shares = self.shares(served);
            return (0..shares.len()).fold(0, |best, c| if shares[c] > shares[best] { c } else { best });
        }
        argmax(served)
    }

    /// Whether any two classes are one.
    pub fn merged_now(&self) -> bool {
        self.group.iter().enumerate().any(|(c, &g)| c != g)
    }

    fn shares(&self, served: &[f32]) -> Vec<f64> {
        let max = served.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let e: Vec<f64> = served.iter().map(|&v| f64::from(v - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        let mut out = vec![0.0; self.len()];
        for (c, e) in e.iter().enumerate().take(self.len()) {
            out[self.group[c]] += e / sum;
        }
        out
    }

    fn visible_class(&self, class: u32) -> Result<usize, ClassesError> {
        let c = class as usize;
        let visible = self.group.get(c) == Some(&c);
        let unknown = || ClassesError::Unknown { class: class.to_string(), known: self.visible_names() };
        if visible { Ok(c) } else { Err(unknown()) }
    }

    /// A name is free when no class that can be answered has it, `but` excepted.
    fn check_name(&self, name: &str, but: Option<usize>) -> Result<(), ClassesError> {
        let bad = name.is_empty() || name.trim() != name || name.len() > 64 || name.chars().any(char::is_control);
        if bad {
            return Err(ClassesError::Name { name: name.to_string() });
        }
        if self.visible().into_iter().any(|c| Some(c) != but && self.names[c] == name) {
            return Err(ClassesError::Taken { name: name.to_string() });
        }
        Ok(())
    }
}

/// The graph's logits `[C]` continued to `live ≥ C` classes: added ones have `ln Σ exp f − ln C`, see the module.
pub fn continued(graph: &[f32], live: usize) -> Vec<f32> {
    let mut out = graph.to_vec();
    if live > graph.len() {
        let max = graph.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = graph.iter().map(|&v| f64::from(v - max).exp()).sum();
        let unknown = (f64::from(max) + sum.ln() - (graph.len() as f64).ln()) as f32;
        out.resize(live, unknown);
    }
    out
}

/// The group that presses of this id are meant in; `None` where every class stands for itself.
pub(super) fn group_at(merged: &[Merged], press_id: u64) -> Option<&[usize]> {
    merged.iter().rev().find(|m| m.since < press_id).map(|m| m.group.as_slice())
}

/// The class that stands for `class`.
pub(super) fn stands_for(group: Option<&[usize]>, class: usize) -> usize {
    group.and_then(|g| g.get(class)).copied().unwrap_or(class)
}

/// Whether a class stands for the same classes in both groups, of `classes` in all.
pub(super) fn same_members(then: Option<&[usize]>, now: Option<&[usize]>, class: usize, classes: usize) -> bool {
    let (a, b) = (stands_for(then, class), stands_for(now, class));
    (0..classes).all(|y| (stands_for(then, y) == a) == (stands_for(now, y) == b))
}

/// Logits of a group's classes added up in the one that stands for them; −∞ for the others.
pub(super) fn collapse(group: Option<&[usize]>, logits: &mut [f32]) {
    let Some(group) = group else { return };
    let before = logits.to_vec();
    for c in 0..logits.len() {
        let members = (0..before.len()).filter(|&y| stands_for(Some(group), y) == c);
        let max = members.clone().map(|y| before[y]).fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = members.map(|y| f64::from(before[y] - max).exp()).sum();
        logits[c] = if max == f32::NEG_INFINITY { max } else { (f64::from(max) + sum.ln()) as f32 };
    }
}

/// [`posterior::multiply_likelihood`] for a press whose classes are groups: equal for the members of one.
pub(super) fn multiply_likelihood(
    likelihood: &mut [f64],
    press: Press,
    shown: usize,
    hyper: &Hyper,
    group: Option<&[usize]>,
) -> Result<(), LearnError> {
    let Some(group) = group else { return posterior::multiply_likelihood(likelihood, press, shown, hyper) };
    press.feedback.check(shown, likelihood.len())?;
    let grouped = Grouped::of(group, likelihood.len());
    let mut of_groups = vec![1.0; grouped.len()];
    posterior::multiply_likelihood(&mut of_groups, grouped.press(press, shown), grouped.place(shown), hyper)?;
    likelihood.iter_mut().enumerate().for_each(|(y, l)| *l *= of_groups[grouped.place(y)]);
    Ok(())
}

/// A head whose classes are groups of the classes of another.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    /// The group of each class.
    place: Vec<usize>,
    groups: usize,
}

impl Grouped {
    /// `group` names the class that stands for each of the first of `classes` classes; later ones stand for themselves.
    pub fn of(group: &[usize], classes: usize) -> Grouped {
        let stands = |class| stands_for(Some(group), class);
        let standing: Vec<usize> = (0..classes).filter(|&c| stands(c) == c).collect();
        let place = (0..classes).map(|c| standing.iter().position(|&s| s == stands(c)).unwrap_or(0)).collect();
        Grouped { place, groups: standing.len() }
    }

    /// How many groups there are; at least one class is in each.
    pub(super) fn len(&self) -> usize {
        self.groups
    }

    /// The group of a class.
    pub(super) fn place(&self, class: usize) -> usize {
        self.place[class]
    }

    /// A press on the shown class as one on groups.
    pub(super) fn press(&self, press: Press, shown: usize) -> Press {
        let feedback = match press.feedback {
            Feedback::Correction { class } => Feedback::Correction { class: self.place(class) },
            Feedback::Demonstration { class } => Feedback::Demonstration { class: self.place(class) },
            // Between two names of one class there is nothing to prefer.
            Feedback::Preference { over } if self.place(over) == self.place(shown) => Feedback::NotSure,
            Feedback::Preference { over } => Feedback::Preference { over: self.place(over) },
            other => other,
        };
        Press { feedback, ..press }
    }

    /// The sums over each group, given to every class in it.
    pub(super) fn spread(&self, values: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.groups];
        values.iter().zip(&self.place).for_each(|(v, &g)| sums[g] += v);
        self.place.iter().map(|&g| sums[g]).collect()
    }

    /// Logits of the groups, whose softmax is the sum over each: `ln Σ exp f`.
    pub(super) fn logits(&self, logits: &[f64]) -> Vec<f64> {
        let mut most = vec![f64::NEG_INFINITY; self.groups];
        logits.iter().zip(&self.place).for_each(|(&f, &g)| most[g] = most[g].max(f));
        let mut sums = vec![0.0; self.groups];
        logits.iter().zip(&self.place).for_each(|(f, &g)| sums[g] += (f - most[g]).exp());
        most.iter().zip(sums).map(|(most, sum)| most + sum.ln()).collect()
    }

    /// dL/dlogits from dL/d[`Grouped::logits`]: each class has its share of its group.
    pub(super) fn gradient(&self, of_groups: &[f64], logits: &[f64]) -> Vec<f64> {
        let whole = self.logits(logits);
        logits.iter().zip(&self.place).map(|(f, &g)| of_groups[g] * (f - whole[g]).exp()).collect()
    }
}

#[cfg(test)]
#[path = "classes_tests.rs"]
mod tests;
