//! A graph at concrete input shapes as a graph again: shape arithmetic is constants, a decided `If` is its branch, and
//! type and shape of every value are known. Passes that need shapes, such as differentiation, work on it.
use super::specialise::{Known, Special};
use super::{PlanError, RunOptions};
use crate::graph::{Graph, Node};
use crate::ops::Fact;

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
        let special = Special::new(graph, inputs, options.bytes)?;
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
