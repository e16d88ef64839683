//! ONNX bytes → [`Graph`], through tract-onnx: the only module that knows tract.
//!
//! The protobuf is looked at first ([`preflight`]), before tract sees a byte. Operators that are ours and come from the
//! file ([`Origin::Onnx`]) are registered as our own parsers, by domain, so that quantisation and recurrences arrive
//! whole; tract infers shapes, folds shape arithmetic and declutters around them; then each node of its typed model
//! becomes one of our operators or an [`Opaque`] box (`opaque.rs`). Shapes stay symbolic; a plan binds them.
use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::InferenceModelExt as _;
use tract_onnx::tract_core::internal as tract;
use tract_onnx::tract_core::ops as core_ops;

use crate::class::{Class, Classified};
use crate::graph::{Dim, Graph, Node, Op, Opaque, ValueId};
use crate::ops::{Attr, Attrs, Origin};
use crate::tensor::DType;

mod convert;
mod opaque;
mod parsers;
mod preflight;

pub use preflight::Limits;

/// Why a model cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {why}; `hone inspect` reads .onnx files and .hone bundles")]
    NotOnnx {
        /// What the parser met.
        why: String,
    },
    /// The model is refused before it is interpreted.
    #[error("the model is refused: {what} `{name}`: {why}")]
    Refused {
        /// What kind of thing is wrong: `initializer`, `node`, `input`, …
        what: &'static str,
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// Operators nobody here can run, all of them.
    #[error("unsupported operators: {}", ops.join(", "))]
    Unsupported {
        /// `domain.Name` each once, sorted.
        ops: Vec<String>,
    },
    /// A node or the whole graph cannot be typed.
    #[error("the graph cannot be typed: {why}")]
    Graph {
        /// The chain of reasons, innermost last.
        why: String,
    },
}

impl Classified for ImportError {
    fn class(&self) -> Class {
        match self {
            ImportError::Unsupported { .. } => Class::Unsupported,
            _ => Class::Invalid,
        }
    }
}

fn graph_error(e: impl std::fmt::Debug) -> ImportError {
    // tract's errors print their chain of contexts and, behind a blank line, sometimes a backtrace nobody asked for.
    let text = format!("{e:?}");
    let text = text.split("\nStack backtrace").next().unwrap_or_default();
    let joined: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && *l != "Caused by:").collect();
    ImportError::Graph { why: joined.join("; ") }
}

/// Facts of the file itself, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Opset version of the standard domain.
    pub opset: i64,
    /// Who wrote it.
    pub producer: String,
    /// Operator counts of the file, as `domain.Name` (no prefix for the standard domain).
    pub ops: Vec<(String, usize)>,
}

/// Imports an ONNX model.
///
/// # Errors
/// [`ImportError`]; it names the culprit. No input makes it panic or open a file.
pub fn from_onnx(bytes: &[u8], limits: &Limits) -> Result<(Graph, ModelInfo), ImportError> {
    let proto = preflight::decode(bytes, limits)?;
    let info = preflight::info(&proto);
    parsers::unsupported(&proto)?;
    let graph = contained(|| translate(&proto))
        .unwrap_or_else(|why| Err(ImportError::Graph { why: format!("the importer panicked: {why}") }))?;
    Ok((graph, info))
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

/// From the checked protobuf to our graph, through tract.
fn translate(proto: &tract_onnx::pb::ModelProto) -> Result<Graph, ImportError> {
    let framework = parsers::framework();
    let parsed = framework.parse(proto, None).map_err(graph_error)?;
    if let Some(name) = parsed.unresolved_inputs.first() {
        return Err(ImportError::Refused {
            what: "value",
            name: name.clone(),
            why: "is used but made by no node".into(),
        });
    }
    let typed = parsed.model.into_typed().map_err(graph_error)?.into_decluttered().map_err(graph_error)?;
    let names: Vec<String> =
        proto.graph.as_ref().map(|g| g.output.iter().map(|o| o.name.clone()).collect()).unwrap_or_default();
    to_graph(&typed, &names)
}

/// From tract's decluttered model to ours.
fn to_graph(model: &tract::TypedModel, output_names: &[String]) -> Result<Graph, ImportError> {
    let mut graph = Graph::default();
    let mut made: HashMap<tract::OutletId, ValueId> = HashMap::new();
    let order = model.eval_order().map_err(graph_error)?;
    // Inputs in the file's order, whatever order they are used in.
    for &outlet in model.input_outlets().map_err(graph_error)? {
        let node = model.node(outlet.node);
        let (dtype, shape) = convert::fact(&node.outputs[outlet.slot].fact).map_err(|why| ImportError::Refused {
            what: "input",
            name: node.name.clone(),
            why,
        })?;
        let id = graph.add_value(&node.name, dtype, shape, None);
        graph.inputs.push(id);
        made.insert(outlet, id);
    }
    for id in order {
        let node = model.node(id);
        if made.contains_key(&tract::OutletId::new(id, 0)) {
            continue;
        }
        if let Some(konst) = node.op_as::<core_ops::konst::Const>() {
            let value = convert::tensor(konst.val()).map_err(|why| ImportError::Refused {
                what: "constant",
                name: node.name.clone(),
                why,
            });
            // A constant whose type we do not hold matters only if a node of ours needs it; tract keeps its own.
            if let Ok(value) = value {
                let shape = value.shape().iter().map(|&d| Dim::from(d)).collect();
                let v = graph.add_value(&node.name, value.dtype(), shape, Some(Arc::new(value)));
                made.insert(tract::OutletId::new(id, 0), v);
            }
            continue;
        }
        let (op, inputs, outputs) = operator(model, node)?;
        let inputs = inputs
            .into_iter()
            .map(|o| {
                o.map(|o| {
                    made.get(&o).copied().ok_or_else(|| ImportError::Refused {
                        what: "node",
                        name: node.name.clone(),
                        why: format!("reads `{}`, whose element type hone does not hold", model.node(o.node).name),
                    })
                })
                .transpose()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut results = Vec::with_capacity(outputs.len());
        for slot in outputs {
            let Some(slot) = slot else {
                results.push(None);
                continue;
            };
            let (dtype, shape) = convert::fact(&node.outputs[slot].fact).map_err(|why| ImportError::Refused {
                what: "node",
                name: node.name.clone(),
                why,
            })?;
            let v = graph.add_value(&node.name, dtype, shape, None);
            made.insert(tract::OutletId::new(id, slot), v);
            results.push(Some(v));
        }
        graph.nodes.push(Node { name: node.name.clone(), op, inputs, outputs: results });
    }
    for (i, outlet) in model.output_outlets().map_err(graph_error)?.iter().enumerate() {
        let Some(&v) = made.get(outlet) else {
            return Err(ImportError::Graph { why: format!("output {i} has an element type hone does not hold") });
        };
        let name = output_names.get(i).cloned().unwrap_or_else(|| format!("output_{i}"));
        let taken = graph.inputs.contains(&v) || graph.outputs.contains(&v) || graph.values[v].constant.is_some();
        let v = if taken { identity_of(&mut graph, v, &name)? } else { v };
        if graph.values[v].name != name {
            for (other, value) in graph.values.iter_mut().enumerate() {
                if value.name == name && other != v {
                    value.name = format!("{name}.inner");
                }
            }
            graph.values[v].name = name;
        }
        graph.outputs.push(v);
    }
    Ok(graph)
}

/// A copy of `v` of its own, for an output that would share its storage with something else.
fn identity_of(graph: &mut Graph, v: ValueId, name: &str) -> Result<ValueId, ImportError> {
    let (dtype, shape) = (graph.values[v].dtype, graph.values[v].shape.clone());
    let out = graph.add_value(name, dtype, shape, None);
    let op = own("Identity", Attrs::default())?;
    graph.nodes.push(Node { name: format!("{name}.copy"), op, inputs: vec![Some(v)], outputs: vec![Some(out)] });
    Ok(out)
}

fn own(name: &str, attrs: Attrs) -> Result<Op, ImportError> {
    let def = crate::ops::find(name).ok_or_else(|| ImportError::Unsupported { ops: vec![name.to_string()] })?;
    Ok(Op::Own(def, attrs))
}

type Wiring = (Op, Vec<Option<tract::OutletId>>, Vec<Option<usize>>);

/// Our operator for a node of tract's core, or an opaque one.
fn operator(model: &tract::TypedModel, node: &tract::TypedNode) -> Result<Wiring, ImportError> {
    let plain = || node.inputs.iter().map(|&o| Some(o)).collect::<Vec<_>>();
    if let Some(ours) = node.op_as::<parsers::Own>() {
        let inputs = ours.slots.iter().map(|s| s.map(|i| node.inputs[i])).collect();
        return Ok((Op::Own(ours.def, (*ours.attrs).clone()), inputs, ours.output_slots()));
    }
    let held = |o: &tract::OutletId| convert::fact(&model.node(o.node).outputs[o.slot].fact).is_ok();
    if node.inputs.iter().all(held)
        && let Some((name, attrs)) = core_operator(model, node)
    {
        return Ok((own(name, attrs)?, plain(), vec![Some(0)]));
    }
    let boxed = opaque::TractOp::new(model, node).map_err(graph_error)?;
    // Constants are part of the box; only live operands are wired.
    let live = boxed.live_inputs().map(|i| Some(node.inputs[i])).collect();
    let op: Arc<dyn Opaque> = Arc::new(boxed);
    Ok((Op::Opaque(op), live, (0..node.outputs.len()).map(Some).collect()))
}

/// The row of ours ([`Origin::Core`]) a core operator of tract corresponds to.
fn core_operator(model: &tract::TypedModel, node: &tract::TypedNode) -> Option<(&'static str, Attrs)> {
    use core_ops::array::{Gather, MultiBroadcastTo, Slice, TypedConcat};
    use core_ops::binary::TypedBinOp;
    use core_ops::cast::Cast;
    use core_ops::change_axes::AxisOp;
    use core_ops::nn::{Reduce, Reducer};

    let input = |i: usize| {
        let o = node.inputs.get(i)?;
        convert::fact(&model.node(o.node).outputs[o.slot].fact).ok()
    };
    let arithmetic = |d: Option<DType>| matches!(d, Some(DType::F32 | DType::I64));
    if let Some(op) = node.op_as::<AxisOp>() {
        return Some(match op {
            AxisOp::Move(from, to) => {
                let rank = input(0)?.1.len();
                let mut perm: Vec<i64> = (0..rank as i64).collect();
                let moved = perm.remove(*from);
                perm.insert(*to, moved);
                ("Transpose", Attrs::of([("perm", Attr::Ints(perm))]))
            }
            _ => ("Reshape", Attrs::default()),
        });
    }
    if let Some(op) = node.op_as::<TypedConcat>() {
        return Some(("Concat", Attrs::of([("axis", Attr::Int(op.axis as i64))])));
    }
    if let Some(op) = node.op_as::<Slice>() {
        let start = op.start.to_i64().ok()?;
        return Some(("Slice", Attrs::of([("axis", Attr::Int(op.axis as i64)), ("start", Attr::Int(start))])));
    }
    if node.op_is::<MultiBroadcastTo>() {
        return Some(("Expand", Attrs::default()));
    }
    if let Some(op) = node.op_as::<Gather>() {
        return Some(("Gather", Attrs::of([("axis", Attr::Int(op.axis as i64))])));
    }
    if let Some(op) = node.op_as::<Cast>() {
        return (convert::dtype(op.to)? == input(0)?.0).then(|| ("Identity", Attrs::default()));
    }
    if let Some(op) = node.op_as::<Reduce>() {
        let name = match op.reducer {
            Reducer::Sum => "ReduceSum",
            Reducer::Max => "ReduceMax",
            Reducer::Min => "ReduceMin",
            _ => return None,
        };
        let axes = op.axes.iter().map(|&a| a as i64).collect();
        return (input(0)?.0 == DType::F32).then(|| (name, Attrs::of([("axes", Attr::Ints(axes))])));
    }
    if let Some(op) = node.op_as::<TypedBinOp>() {
        let name = match op.0.name() {
            "Add" => "Add",
            "Sub" => "Sub",
            "Mul" => "Mul",
            "Div" => "Div",
            "Min" => "Min",
            "Max" => "Max",
            "Pow" => "Pow",
            _ => return None,
        };
        let (a, b) = (input(0)?.0, input(1)?.0);
        return (a == b && arithmetic(Some(a))).then(|| (name, Attrs::default()));
    }
    None
}

/// Names of operators that a file may use and hone runs with its own code, for the support table.
pub fn own_operators() -> impl Iterator<Item = &'static str> {
    crate::ops::OPS.iter().filter(|d| d.origin == Origin::Onnx).map(|d| d.name)
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
