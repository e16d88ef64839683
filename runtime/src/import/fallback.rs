//! An operator that is not ours, run by tract as a one-node model at concrete shapes.
use std::sync::{Arc, LazyLock};

use tract_onnx::pb;
use tract_onnx::prelude::InferenceModelExt as _;
use tract_onnx::tract_core::internal as tract;

use super::build::{Context, canonical};
use super::{convert, preflight};
use crate::graph::{Opaque, OpaqueKernel};
use crate::ops::Fact;
use crate::tensor::{DType, Tensor};

static STOCK: LazyLock<tract_onnx::Onnx> = LazyLock::new(tract_onnx::onnx);

/// The operator by tract's code; `None` when tract does not know it.
pub(super) fn operator(n: &pb::NodeProto, context: &Context<'_>) -> Option<Arc<dyn Opaque>> {
    knows(n).then(|| Arc::new(TractNode::new(n, context)) as Arc<dyn Opaque>)
}

/// Whether tract has a parser for the operator. Its registry ignores domains: a name of the standard set in another
/// domain is another operator.
pub(super) fn knows(n: &pb::NodeProto) -> bool {
    matches!(canonical(&n.domain), "" | "ai.onnx.ml") && STOCK.op_register.0.contains_key(&n.op_type)
}

struct TractNode {
    name: String,
    node: pb::NodeProto,
    opsets: Vec<pb::OperatorSetIdProto>,
}

impl TractNode {
    fn new(node: &pb::NodeProto, context: &Context<'_>) -> TractNode {
        let opset = |(domain, &version): (&String, &i64)| pb::OperatorSetIdProto { domain: domain.clone(), version };
        TractNode {
            name: preflight::spelled(&node.domain, &node.op_type),
            node: node.clone(),
            opsets: context.opsets.iter().map(opset).collect(),
        }
    }

    fn bind_to(&self, inputs: &[Option<&Fact>]) -> Result<Bound, String> {
        let mut node = self.node.clone();
        let mut graph = pb::GraphProto { name: "one".into(), ..Default::default() };
        let mut live = Vec::new();
        node.input.truncate(inputs.len());
        for (i, fact) in inputs.iter().enumerate().take(node.input.len()) {
            let Some(fact) = fact else {
                node.input[i].clear();
                continue;
            };
            node.input[i] = format!("i{i}");
            match &fact.value {
                Some(t) => graph.initializer.push(tensor_proto(&node.input[i], t)),
                None => {
                    graph.input.push(value_info(&node.input[i], fact.dtype, &fact.shape));
                    live.push(i);
                }
            }
        }
        for (i, o) in node.output.iter_mut().enumerate() {
            *o = format!("o{i}");
            graph.output.push(pb::ValueInfoProto { name: o.clone(), ..Default::default() });
        }
        graph.node.push(node);
        let model = pb::ModelProto {
            ir_version: 8,
            opset_import: self.opsets.clone(),
            graph: Some(graph),
            ..Default::default()
        };
        let text = |e: tract::TractError| format!("{e:#}");
        let parsed = tract_onnx::onnx().parse(&model, None).map_err(text)?;
        let typed = parsed.model.into_typed().map_err(text)?;
        let facts = typed.output_outlets().map_err(text)?;
        let facts: Option<Vec<(DType, Vec<usize>)>> = facts
            .iter()
            .map(|&o| {
                let fact = typed.outlet_fact(o).ok()?;
                let shape = fact.shape.as_concrete()?.to_vec();
                Some((convert::dtype(fact.datum_type)?, shape))
            })
            .collect();
        let plan = tract::SimplePlan::new(typed.into_optimized().map_err(text)?).map_err(text)?;
        Ok(Bound { plan, live, facts })
    }
}

fn tensor_proto(name: &str, t: &Tensor) -> pb::TensorProto {
    pb::TensorProto {
        name: name.into(),
        dims: t.shape().iter().map(|&d| d as i64).collect(),
        data_type: t.dtype().onnx(),
        raw_data: t.data().as_bytes().to_vec(),
        ..Default::default()
    }
}

fn value_info(name: &str, dtype: DType, shape: &[usize]) -> pb::ValueInfoProto {
    let dim = |&d: &usize| pb::tensor_shape_proto::Dimension {
        value: Some(pb::tensor_shape_proto::dimension::Value::DimValue(d as i64)),
        ..Default::default()
    };
    let shape = pb::TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = pb::type_proto::Tensor { elem_type: dtype.onnx(), shape: Some(shape) };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto { value, ..Default::default() }),
        ..Default::default()
    }
}

impl Opaque for TractNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn bind(&self, inputs: &[Option<&Fact>]) -> Result<Box<dyn OpaqueKernel>, String> {
        let bound = contained(|| self.bind_to(inputs)).unwrap_or_else(|why| Err(format!("panicked: {why}")))?;
        Ok(Box::new(bound))
    }
}

/// A fresh state is made for each run, so that an operator that keeps state starts from its initial one.
struct Bound {
    plan: Arc<tract::TypedSimplePlan>,
    /// Positions of the operands that are not part of the model.
    live: Vec<usize>,
    facts: Option<Vec<(DType, Vec<usize>)>>,
}

impl OpaqueKernel for Bound {
    fn outputs(&self) -> Option<Vec<(DType, Vec<usize>)>> {
        self.facts.clone()
    }

    fn run(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
        contained(|| self.evaluate(inputs)).unwrap_or_else(|why| Err(format!("panicked: {why}")))
    }
}

impl Bound {
    fn evaluate(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String> {
        let inputs = self
            .live
            .iter()
            .filter_map(|&i| inputs.get(i).copied().flatten())
            .map(|t| convert::to_tract(t).map(tract::IntoTValue::into_tvalue))
            .collect::<tract::TractResult<tract::TVec<_>>>()
            .map_err(|e| format!("{e:#}"))?;
        let out = self.plan.run(inputs).map_err(|e| format!("{e:#}"))?;
        out.iter().map(|t| convert::tensor(t)).collect()
    }
}

/// Runs code of tract's so that a panic in it becomes its message.
///
/// tract asserts what it takes for granted of a model (ranks, batch sizes, attribute values), and not everything it
/// takes for granted can be checked beforehand. Its models are values that are dropped with the panic, so nothing
/// half-changed survives. With `panic = "abort"` this contains nothing; hone's profiles unwind.
fn contained<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("without a message").to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_importer_becomes_its_message() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(contained(|| -> u8 { panic!("rank {}", 3) }), Err("rank 3".into()));
        assert_eq!(contained(|| -> u8 { panic!("plain") }), Err("plain".into()));
    }
}
