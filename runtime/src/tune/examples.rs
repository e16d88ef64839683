//! What a run trains on.
use std::collections::BTreeMap;

use super::TuneError;
use crate::tensor::Tensor;

/// One example.
#[derive(Clone, Debug)]
pub struct Example {
    /// The graph's inputs in its order, each with one row; of a pair two.
    pub inputs: Vec<Tensor>,
    /// What the output should be.
    pub target: Target,
}

/// What the output of one example should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A class.
    Class(usize),
    /// Numbers of the output's shape with one row, or `i64` labels of its shape without the last axis.
    Values(Tensor),
    /// Nothing: its two rows belong together.
    None,
}

impl Target {
    /// Whether both can be in one batch.
    pub(super) fn alike(&self, other: &Target) -> bool {
        match (self, other) {
            (Target::Class(_), Target::Class(_)) | (Target::None, Target::None) => true,
            (Target::Values(a), Target::Values(b)) => a.shape() == b.shape() && a.dtype() == b.dtype(),
            _ => false,
        }
    }
}

/// Where examples come from: made when they are asked for, so that they need not all be in memory as tensors.
pub trait Examples {
    /// How many there are.
    fn count(&self) -> usize;

    /// The class of one, where it has one: validation takes its share of each.
    fn class(&self, i: usize) -> Option<usize>;

    /// One of them.
    ///
    /// # Errors
    /// [`TuneError::Data`] naming what cannot be read.
    fn example(&mut self, i: usize) -> Result<Example, TuneError>;

    /// Whether one is to validate (`true`) or to train, where that is not for a draw to say.
    fn held_out(&self, _i: usize) -> Option<bool> {
        None
    }

    /// Whether targets depend on what the model believes.
    fn renews(&self) -> bool {
        false
    }

    /// Makes the targets anew at the start of an epoch; `look` gives the trained output for the inputs of one example.
    ///
    /// # Errors
    /// [`TuneError`].
    fn renew(&mut self, _look: &mut dyn FnMut(&[Tensor]) -> Result<Tensor, TuneError>) -> Result<(), TuneError> {
        Ok(())
    }

    /// A digest of all of them.
    fn digest(&self) -> String;
}

/// Examples that are in memory as tensors.
impl Examples for Vec<Example> {
    fn count(&self) -> usize {
        self.len()
    }

    fn class(&self, i: usize) -> Option<usize> {
        match self[i].target {
            Target::Class(c) => Some(c),
            Target::Values(_) | Target::None => None,
        }
    }

    fn example(&mut self, i: usize) -> Result<Example, TuneError> {
        Ok(self[i].clone())
    }

    fn digest(&self) -> String {
        let mut h = blake3::Hasher::new();
        for e in self {
            let mut tensor = |t: &Tensor| {
                h.update(format!("{} {:?}", t.dtype(), t.shape()).as_bytes()).update(t.data().as_bytes());
            };
            e.inputs.iter().for_each(&mut tensor);
            match &e.target {
                Target::Values(t) => tensor(t),
                Target::Class(c) => drop(h.update(&(*c as u64).to_le_bytes())),
                Target::None => {}
            }
        }
        h.finalize().to_hex().to_string()
    }
}

/// Which train and which validate: of each class the share, drawn by the seed, at least one of two or more.
pub(super) fn divide(examples: &dyn Examples, share: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>), TuneError> {
    let mut classes: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for i in 0..examples.count() {
        match examples.held_out(i) {
            Some(true) => validation.push(i),
            Some(false) => train.push(i),
            None => classes.entry(examples.class(i)).or_default().push(i),
        }
    }
    for of in classes.values() {
        let order = super::shuffled(of, seed, u64::MAX);
        let n = (share * of.len() as f64).round() as usize;
        let n = if share > 0.0 && of.len() > 1 { n.clamp(1, of.len() - 1) } else { 0 };
        validation.extend(&order[..n]);
        train.extend(&order[n..]);
    }
    train.sort_unstable();
    validation.sort_unstable();
    if train.is_empty() {
        return Err(super::no_examples());
    }
    Ok((train, validation))
}
