//! A graph at concrete input shapes as a graph again: shape arithmetic is constants, a decided `If` is its branch, and
//! type and shape of every value are known. Passes that need shapes, such as differentiation, work on it.
use std::collections::BTreeMap;

use super::specialise::{Known, Special};
use super::{PlanError, RunOptions, passes};
use crate::graph::{Graph, Node, ValueId};
use crate::ops::Fact;
use crate::tensor::DType;

/// A graph whose every value has a known type and shape.
#[derive(Clone, Debug)]
pub struct Concrete {
    /// The graph; inputs and outputs are in the order of the one it was made from.
    pub graph: Graph,
    /// For each value: element type, shape, and the value itself for constants.
    pub facts: Vec<Fact>,
}

impl Concrete {
    /// `graph` for inputs of those types and shapes, in its order.
    ///
    /// # Errors
    /// [`PlanError`] naming the node that refuses its operands; [`PlanError::DataDependent`] when a shape depends on data.
    pub fn new(graph: &Graph, inputs: &[Fact], options: &RunOptions) -> Result<Concrete, PlanError> {
        Concrete::of(Special::new(graph, inputs, options.bytes)?)
    }

    /// The same, rewritten for what gradients are made of: what the graph computes in `f16` or `bf16` is computed in `f32`, where what is
    /// `f32`, goes through 16 bits and comes out as `f32` is not rounded on the way; borders of zeros before convolutions are padding of
    /// their windows.
    ///
    /// # Errors
    /// As [`Concrete::new`].
    pub fn prepared(graph: &Graph, inputs: &[Fact], options: &RunOptions) -> Result<Concrete, PlanError> {
        let mut special = Special::new(graph, inputs, options.bytes)?;
        passes::prepare(&mut special)?;
        let mut made = Concrete::of(special)?;
        let dtype = |made: &Concrete, v: ValueId| made.facts[v].dtype;
        // For each value of 16 bits what of `f32` it is, and for what is made of that again the same.
        let mut wide: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for i in 0..made.graph.nodes.len() {
            let through = |v: ValueId, wide: &BTreeMap<ValueId, ValueId>| match wide.get(&v) {
                Some(&w) if dtype(&made, v) == DType::F32 => w,
                _ => v,
            };
            let inputs: Vec<Option<ValueId>> =
                made.graph.nodes[i].inputs.iter().map(|v| v.map(|v| through(v, &wide))).collect();
            let node = &mut made.graph.nodes[i];
            node.inputs = inputs;
            if node.op.name() == "Cast"
                && let (Some(&Some(x)), Some(&Some(y))) = (node.inputs.first(), node.outputs.first())
            {
                let types = (made.facts[x].dtype, made.facts[y].dtype);
                match types {
                    (DType::F32, half) if half.is_half() => drop(wide.insert(y, x)),
                    (half, DType::F32) if half.is_half() => {
                        if let Some(&w) = wide.get(&x) {
                            wide.insert(y, w);
                        }
                    }
                    _ => {}
                }
            }
        }
        for v in &mut made.graph.outputs {
            *v = wide.get(v).copied().unwrap_or(*v);
        }
        Ok(made)
    }

    fn of(special: Special) -> Result<Concrete, PlanError> {
        let mut made = Graph { inputs: special.inputs.clone(), outputs: special.outputs.clone(), ..Graph::default() };
        if let Some(probe) = special.nodes.iter().find(|p| p.probe) {
            let (node, op) = (probe.node.name.clone(), probe.node.op.name().to_string());
            return Err(PlanError::DataDependent { node, op });
        }
        let mut facts = Vec::with_capacity(special.names.len());
        for (name, known) in special.names.iter().zip(&special.known) {
            let Known::Static(fact) = known else { return Err(PlanError::Unmade { value: name.clone() }) };
            made.add_value(name, None, fact.value.clone());
            facts.push(fact.clone());
        }
        made.nodes = special.nodes.into_iter().map(|p| p.node).collect::<Vec<Node>>();
        Ok(Concrete { graph: made, facts })
    }
}
