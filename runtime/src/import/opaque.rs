//! A core operator of tract that is not ours yet, run as a one-node model of its own.
//!
//! A fresh state is made for each run, so that an operator that keeps state (a scan) starts from its initial one.
use std::collections::HashMap;

use tract_onnx::tract_core::internal as tract;
use tract_onnx::tract_core::internal::SpecialOps as _;

use super::convert;
use crate::graph::{Bindings, Opaque, OpaqueKernel};
use crate::tensor::{DType, Tensor};

pub(super) struct TractOp {
    name: String,
    model: tract::TypedModel,
    live: Vec<usize>,
}

impl TractOp {
    pub(super) fn new(model: &tract::TypedModel, node: &tract::TypedNode) -> tract::TractResult<TractOp> {
        let mut own = tract::TypedModel { symbols: model.symbols.clone(), ..Default::default() };
        let mut live = Vec::new();
        let mut wires = tract::tvec![];
        for (i, &outlet) in node.inputs.iter().enumerate() {
            let fact = model.outlet_fact(outlet)?;
            match &fact.konst {
                Some(k) => wires.push(own.add_const(format!("constant_{i}"), k.clone())?),
                None => {
                    live.push(i);
                    wires.push(own.add_source(format!("input_{i}"), fact.without_value())?);
                }
            }
        }
        let outputs = own.wire_node(&node.name, node.op.clone(), &wires)?;
        own.select_output_outlets(&outputs)?;
        Ok(TractOp { name: node.op.name().to_string(), model: own, live })
    }

    /// Positions of the operands that are not constants.
    pub(super) fn live_inputs(&self) -> impl Iterator<Item = usize> {
        self.live.iter().copied()
    }
}

impl Opaque for TractOp {
    fn name(&self) -> &str {
        &self.name
    }

    fn bind(&self, bindings: &Bindings, _: &[(DType, Vec<usize>)]) -> Result<Box<dyn OpaqueKernel>, String> {
        super::contained(|| self.bind_to(bindings)).unwrap_or_else(|why| Err(format!("panicked: {why}")))
    }
}

impl TractOp {
    fn bind_to(&self, bindings: &Bindings) -> Result<Box<dyn OpaqueKernel>, String> {
        let symbols: HashMap<tract::Symbol, tract::TDim> =
            bindings.iter().map(|(name, &v)| (self.model.symbols.sym(name), tract::TDim::Val(v as i64))).collect();
        let concrete = self.model.set_symbols(&symbols).map_err(|e| format!("{e:#}"))?;
        let plan = tract::SimplePlan::new(concrete).map_err(|e| format!("{e:#}"))?;
        Ok(Box::new(Bound { plan }))
    }
}

struct Bound {
    plan: std::sync::Arc<tract::TypedSimplePlan>,
}

impl OpaqueKernel for Bound {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        super::contained(|| self.evaluate(inputs)).unwrap_or_else(|why| Err(format!("panicked: {why}")))
    }
}

impl Bound {
    fn evaluate(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let inputs = inputs
            .iter()
            .map(|t| convert::to_tract(t).map(tract::IntoTValue::into_tvalue))
            .collect::<tract::TractResult<tract::TVec<_>>>()
            .map_err(|e| format!("{e:#}"))?;
        let out = self.plan.run(inputs).map_err(|e| format!("{e:#}"))?;
        out.iter().map(|t| convert::tensor(t)).collect()
    }
}
