//! Reverse-mode differentiation of a graph at concrete shapes: a graph in, the same graph with its backward part out.
//!
//! The vector-Jacobian product of an operator is beside the operator, in its row ([`crate::ops::OpDef::vjp`]); it is made
//! of our own operators, so that the planner, the kernels and the reference functions serve the backward part as they
//! serve the forward one. Only what lies between the loss and a trainable leaf is differentiated. A gradient is handed
//! over the moment it is complete, so that whoever consumes it can do so where it is born.
//! It deliberately knows nothing of losses, optimizers or what is trainable and why: that is `train`.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::graph::{Node, Op, ValueId};
use crate::ops::OpError;

mod backward;
mod tape;
pub use backward::Backward;
pub use tape::Tape;

#[cfg(all(test, feature = "import"))]
mod tests;

/// Why a graph cannot be differentiated.
#[derive(Debug, thiserror::Error)]
pub enum AutodiffError {
    /// An operator without gradients is between the loss and something trainable.
    #[error(
        "node `{node}` ({op}) lies between the loss and `{parameter}` and has no gradient: only what comes after it can \
         be trained"
    )]
    NotDifferentiable {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// One trainable value before it.
        parameter: String,
    },
    /// A gradient cannot be made.
    #[error("gradient of node `{node}` ({op}): {source}")]
    Op {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// Why.
        source: OpError,
    },
}

/// What is called with a leaf and its complete gradient.
pub type Ready<'a> = dyn FnMut(&mut Tape, ValueId, ValueId) -> Result<(), OpError> + 'a;

/// Appends the backward part of all nodes on the tape: from `seeds`, each a value and the gradient of the loss by it, to
/// the `leaves` they depend on. `ready` is called with each leaf that has a gradient, when every contribution to it is
/// there; nodes it adds come right then.
///
/// # Errors
/// [`AutodiffError`] naming the node that cannot be differentiated.
pub fn differentiate(
    tape: &mut Tape,
    seeds: &[(ValueId, ValueId)],
    leaves: &[ValueId],
    ready: &mut Ready<'_>,
) -> Result<(), AutodiffError> {
    let all = 0..tape.graph().nodes.len();
    reverse(tape, all, seeds, leaves, ready)
}

/// The same of some of the nodes.
fn reverse(
    tape: &mut Tape,
    range: Range<usize>,
    seeds: &[(ValueId, ValueId)],
    leaves: &[ValueId],
    ready: &mut Ready<'_>,
) -> Result<(), AutodiffError> {
    // For each value that depends on a leaf, one such leaf.
    let mut leads: BTreeMap<ValueId, ValueId> = leaves.iter().map(|&v| (v, v)).collect();
    let mut first_reader: BTreeMap<ValueId, usize> = BTreeMap::new();
    for i in range.clone() {
        let node = &tape.graph().nodes[i];
        let from = node.inputs.iter().flatten().find_map(|v| leads.get(v)).copied();
        node.inputs.iter().flatten().for_each(|&v| {
            first_reader.entry(v).or_insert(i);
        });
        let Some(from) = from else { continue };
        for &v in node.outputs.iter().flatten() {
            leads.entry(v).or_insert(from);
        }
    }
    let wanted: BTreeSet<ValueId> = leaves.iter().copied().collect();
    let mut readers: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    for &leaf in &wanted {
        if let Some(&i) = first_reader.get(&leaf) {
            readers.entry(i).or_default().push(leaf);
        }
    }
    let mut grads: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let fail =
        |node: &Node, source| AutodiffError::Op { node: node.name.clone(), op: node.op.name().to_string(), source };
    let outside = |source| AutodiffError::Op { node: "seed".into(), op: "loss".into(), source };
    for &(v, g) in seeds {
        accumulate(tape, &mut grads, v, g).map_err(outside)?;
    }
    for i in range.rev() {
        let Some(node) = leading(tape, i, &leads) else { continue };
        let mut dy = Vec::with_capacity(node.outputs.len());
        for v in &node.outputs {
            let g = v.and_then(|v| grads.remove(&v));
            if let (Some(v), Some(g)) = (v, g)
                && wanted.contains(v)
            {
                ready(tape, *v, g).map_err(|e| fail(&node, e))?;
            }
            dy.push(g);
        }
        if dy.iter().any(Option::is_some) {
            let vjp = match &node.op {
                Op::Own(def, _) => def.vjp,
                Op::Opaque(_) => None,
            };
            let Some(vjp) = vjp else {
                let leaf = node.inputs.iter().flatten().find_map(|v| leads.get(v)).copied();
                let parameter = leaf.map_or_else(String::new, |v| tape.graph().values[v].name.clone());
                let (node, op) = (node.name.clone(), node.op.name().to_string());
                return Err(AutodiffError::NotDifferentiable { node, op, parameter });
            };
            let wants = node.inputs.iter().map(|v| v.is_some_and(|v| leads.contains_key(&v))).collect();
            tape.enter(&node.name);
            let mut b = Backward::new(tape, &node, dy, wants);
            vjp(&mut b).map_err(|e| fail(&node, e))?;
            for (v, g) in b.into_given() {
                accumulate(tape, &mut grads, v, g).map_err(|e| fail(&node, e))?;
            }
        }
        for leaf in readers.remove(&i).unwrap_or_default() {
            if let Some(g) = grads.remove(&leaf) {
                ready(tape, leaf, g).map_err(|e| fail(&node, e))?;
            }
        }
    }
    for leaf in wanted {
        if let Some(g) = grads.remove(&leaf) {
            ready(tape, leaf, g).map_err(outside)?;
        }
    }
    Ok(())
}

/// Node `i`, if an input of it depends on a leaf.
fn leading(tape: &Tape, i: usize, leads: &BTreeMap<ValueId, ValueId>) -> Option<Node> {
    let node = &tape.graph().nodes[i];
    node.inputs.iter().flatten().any(|v| leads.contains_key(v)).then(|| node.clone())
}

/// Adds `g` to what is known of the gradient of `v`.
///
/// # Errors
/// [`OpError::Shape`] when its type or shape is not that of the value: the operator's product is wrong.
fn accumulate(tape: &mut Tape, grads: &mut BTreeMap<ValueId, ValueId>, v: ValueId, g: ValueId) -> Result<(), OpError> {
    let (dtype, shape) = (tape.cotangent(v), tape.shape(v).to_vec());
    if tape.dtype(g) != dtype || tape.shape(g) != shape {
        let what = format!("gradient of `{}`", tape.graph().values[v].name);
        return Err(OpError::shape(what, (dtype, shape), (tape.dtype(g), tape.shape(g))));
    }
    let sum = match grads.get(&v) {
        Some(&before) => tape.binary("Add", before, g)?,
        None => g,
    };
    grads.insert(v, sum);
    Ok(())
}
