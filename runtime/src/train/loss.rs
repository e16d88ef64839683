//! What training makes small: a number out of the model's output and a target, as nodes on a tape.
//!
//! Every objective is a sum over rows (all axes of the output but the last) of `weight · l(row)`. The weights are an
//! input; whoever fills them decides whether the sum is a mean, and that a padded row counts for nothing.
use crate::autodiff::Tape;
use crate::graph::ValueId;
use crate::ops::{Attr, OpError};
use crate::tensor::DType;

/// What a row of the output is compared with, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Softmax cross-entropy with a distribution of the output's shape: `-Σ target · log softmax(output)`.
    CrossEntropy,
    /// The same with a class as `i64` for each row; a negative one stands for class 0 and should have the weight 0.
    Labels,
    /// The Fenchel-Young loss of softmax (Blondel et al., 2020) but for a constant: `log Σ exp(output) - Σ target ·
    /// output`. Of a distribution it is the cross-entropy; whatever the target, its gradient is `softmax(output) -
    /// target`.
    FenchelYoung,
    /// Binary cross-entropy of logits with probabilities of the output's shape, the mean over the last axis.
    BinaryCrossEntropy,
    /// The mean over the last axis of the squared difference from a target of the output's shape.
    MeanSquared,
    /// One minus the cosine between the row and a target of the output's shape.
    Cosine,
    /// Pairs of embeddings, row `i` and row `B + i` of `[2 B, D]`, found among all by their cosine over `temperature`,
    /// in both directions (van den Oord et al., 2018). No target; a weight for each of the `B` pairs.
    Contrastive {
        /// Divides the cosines.
        temperature: f32,
    },
    /// None: the gradient of the loss by the output is the target, and the loss is not computed.
    Handed,
}

/// The objective on tape: its inputs and results.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// The weights, when it has rows to weigh.
    pub(super) weight: Option<ValueId>,
    /// The loss, one number, and the value it is differentiated from with its gradient.
    pub(super) loss: Option<ValueId>,
    pub(super) seed: (ValueId, ValueId),
}

impl Objective {
    /// Type and shape of the target for an output of that shape; `None` when there is none.
    pub fn target(self, dtype: DType, output: &[usize]) -> Option<(DType, Vec<usize>)> {
        match self {
            Objective::Labels => Some((DType::I64, rows(output).to_vec())),
            Objective::Contrastive { .. } => None,
            _ => Some((dtype, output.to_vec())),
        }
    }

    /// Shape of the weights; `None` when there are none.
    pub fn weights(self, output: &[usize]) -> Option<Vec<usize>> {
        match self {
            Objective::Handed => None,
            Objective::Contrastive { .. } => Some(vec![output.first().copied().unwrap_or(0) / 2]),
            _ => Some(rows(output).to_vec()),
        }
    }

    /// Adds the objective of `output` to the tape, its inputs `target` and `weight` among the graph's.
    ///
    /// # Errors
    /// [`OpError::Shape`] when the output is nothing the objective is of.
    pub(super) fn place(self, tape: &mut Tape, output: ValueId) -> Result<Placed, OpError> {
        tape.enter("loss");
        let (dtype, shape) = (tape.dtype(output), tape.shape(output).to_vec());
        if !dtype.is_float() || shape.is_empty() {
            return Err(OpError::shape("output to train", "floats with at least one axis", (dtype, shape)));
        }
        let target = self.target(dtype, &shape).map(|(dtype, shape)| tape.input("target", dtype, &shape));
        let weight = self.weights(&shape).map(|shape| tape.input("weight", dtype, &shape));
        if let (Objective::Handed, Some(target)) = (self, target) {
            return Ok(Placed { weight, loss: None, seed: (output, target) });
        }
        let last = shape.len() - 1;
        let row = match (self, target) {
            (Objective::CrossEntropy, Some(target)) => {
                let log = log_softmax(tape, output)?;
                let product = tape.mul(log, target)?;
                let sum = tape.reduce("ReduceSum", product, &[last], false)?;
                tape.unary("Neg", sum)?
            }
            (Objective::FenchelYoung, Some(target)) => {
                let log = log_softmax(tape, output)?;
                // The same for every class: the logarithm of the sum.
                let each = tape.sub(output, log)?;
                let partition = tape.reduce("ReduceMean", each, &[last], false)?;
                let product = tape.mul(output, target)?;
                let product = tape.reduce("ReduceSum", product, &[last], false)?;
                tape.sub(partition, product)?
            }
            (Objective::Labels, Some(target)) => {
                let log = log_softmax(tape, output)?;
                picked(tape, log, target)?
            }
            (Objective::BinaryCrossEntropy, Some(target)) => {
                let (all, product) = (tape.unary("Softplus", output)?, tape.mul(output, target)?);
                let each = tape.sub(all, product)?;
                tape.reduce("ReduceMean", each, &[last], false)?
            }
            (Objective::MeanSquared, Some(target)) => {
                let difference = tape.sub(output, target)?;
                let square = tape.mul(difference, difference)?;
                tape.reduce("ReduceMean", square, &[last], false)?
            }
            (Objective::Cosine, Some(target)) => {
                let (a, b) = (unit(tape, output)?, unit(tape, target)?);
                let product = tape.mul(a, b)?;
                let cosine = tape.reduce("ReduceSum", product, &[last], false)?;
                let one = tape.scalar(dtype, 1.0)?;
                tape.sub(one, cosine)?
            }
            (Objective::Contrastive { temperature }, _) => pairs(tape, output, temperature)?,
            (_, None) | (Objective::Handed, _) => return Err(OpError::unsupported("an objective without a target")),
        };
        let weighed = match weight {
            Some(weight) => tape.mul(row, weight)?,
            None => row,
        };
        let axes: Vec<usize> = (0..tape.shape(weighed).len()).collect();
        let loss = tape.reduce("ReduceSum", weighed, &axes, false)?;
        let seed = tape.scalar(dtype, 1.0)?;
        Ok(Placed { weight, loss: Some(loss), seed: (loss, seed) })
    }
}

fn rows(output: &[usize]) -> &[usize] {
    output.split_last().map_or(&[], |(_, rows)| rows)
}

fn log_softmax(tape: &mut Tape, x: ValueId) -> Result<ValueId, OpError> {
    tape.standard("LogSoftmax", [("axis", Attr::Int(-1))], &[x])
}

/// `-x[…, label]`.
fn picked(tape: &mut Tape, x: ValueId, labels: ValueId) -> Result<ValueId, OpError> {
    let shape = tape.shape(labels).to_vec();
    let column = tape.reshape(labels, &[&shape[..], &[1]].concat())?;
    let zero = tape.ints([0])?;
    let column = tape.binary("Max", column, zero)?;
    let chosen = tape.standard("GatherElements", [("axis", Attr::Int(-1))], &[x, column])?;
    let chosen = tape.reshape(chosen, &shape)?;
    tape.unary("Neg", chosen)
}

/// Rows divided by their lengths.
fn unit(tape: &mut Tape, x: ValueId) -> Result<ValueId, OpError> {
    let last = tape.shape(x).len() - 1;
    let norm = tape.reduce("ReduceL2", x, &[last], true)?;
    // As PyTorch bounds it: a row of zeros has the cosine 0 with everything.
    let least = tape.scalar_like(x, 1e-8)?;
    let norm = tape.binary("Max", norm, least)?;
    tape.div(x, norm)
}

fn pairs(tape: &mut Tape, output: ValueId, temperature: f32) -> Result<ValueId, OpError> {
    let &[n, _] = tape.shape(output) else {
        return Err(OpError::shape("embeddings", "[2 B, D]", tape.shape(output)));
    };
    if n % 2 != 0 || temperature.is_nan() || temperature <= 0.0 {
        return Err(OpError::shape("embeddings", "pairs and a positive temperature", (n, temperature)));
    }
    let all = unit(tape, output)?;
    let (a, b) = (tape.slice(all, 0, 0, n / 2)?, tape.slice(all, 0, n / 2, n)?);
    let labels = tape.ints(0..(n / 2) as i64)?;
    let mut rows = Vec::with_capacity(2);
    for (a, b) in [(a, b), (b, a)] {
        let cosines = tape.matmul((a, false), (b, true), 1.0)?;
        let scores = tape.scaled(cosines, 1.0 / f64::from(temperature))?;
        let log = log_softmax(tape, scores)?;
        rows.push(picked(tape, log, labels)?);
    }
    let sum = tape.add(rows[0], rows[1])?;
    tape.scaled(sum, 0.5)
}
