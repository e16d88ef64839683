//! The graph: a small typed IR of ONNX-spelled operators over symbolic shapes.
//!
//! `import` builds it, passes rewrite it, `plan` lowers it. It knows no file format, no device and nothing of the
//! importer: an operator that is not ours is an [`Opaque`] box with the same face.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::ops::{Attrs, OpDef};
use crate::tensor::{DType, Tensor};

mod dim;
pub use dim::{Bindings, Dim, DimError};

/// Index of a value in [`Graph::values`].
pub type ValueId = usize;

/// What is known of a value: element type, shape, and the tensor itself when it is a constant.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its name in the ONNX file, or one derived from it; unique.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
    /// The value of an initializer or a folded constant.
    pub constant: Option<Arc<Tensor>>,
}

/// The operator of a node.
#[derive(Clone)]
pub enum Op {
    /// One of ours: a row of `ops::OPS` with its attributes.
    Own(&'static OpDef, Attrs),
    /// Somebody else's, run as it is.
    Opaque(Arc<dyn Opaque>),
}

impl Op {
    /// The operator's name, in ONNX spelling for ours.
    pub fn name(&self) -> &str {
        match self {
            Op::Own(def, _) => def.name,
            Op::Opaque(o) => o.name(),
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Own(def, attrs) => write!(f, "{}{attrs:?}", def.name),
            Op::Opaque(o) => write!(f, "opaque {}", o.name()),
        }
    }
}

/// An operator outside our registry: counted, never differentiated, run through tensors.
pub trait Opaque: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> &str;

    /// Makes it runnable for concrete input shapes.
    ///
    /// # Errors
    /// A sentence when the operator cannot run with these shapes.
    fn bind(&self, bindings: &Bindings, inputs: &[(DType, Vec<usize>)]) -> Result<Box<dyn OpaqueKernel>, String>;
}

/// An [`Opaque`] operator at concrete shapes. It keeps nothing between two runs.
pub trait OpaqueKernel: Send + Sync {
    /// Runs it once.
    ///
    /// # Errors
    /// The operator's own message.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String>;
}

/// One operator application. `inputs[i]` is `None` where ONNX allows an input to be left out.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name, for messages.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Operands, in ONNX order.
    pub inputs: Vec<Option<ValueId>>,
    /// Results, in ONNX order; `None` where nobody asked for it.
    pub outputs: Vec<Option<ValueId>>,
}

/// A directed acyclic graph in topological order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// All values.
    pub values: Vec<Value>,
    /// All nodes, each after the nodes it reads from.
    pub nodes: Vec<Node>,
    /// The values a caller gives.
    pub inputs: Vec<ValueId>,
    /// The values a caller gets.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// Adds a value and returns its index. A name already in use gets a numbered suffix.
    pub fn add_value(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, constant: Option<Arc<Tensor>>) -> ValueId {
        let mut unique = name.to_string();
        let mut n = 1;
        while self.values.iter().any(|v| v.name == unique) {
            unique = format!("{name}.{n}");
            n += 1;
        }
        self.values.push(Value { name: unique, dtype, shape, constant });
        self.values.len() - 1
    }

    /// The value of that name among inputs and outputs.
    pub fn port(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().chain(&self.outputs).copied().find(|&v| self.values[v].name == name)
    }

    /// How many times each operator occurs, ours and opaque apart: `(name, own)` → count.
    pub fn census(&self) -> BTreeMap<(String, bool), usize> {
        let mut out = BTreeMap::new();
        for n in &self.nodes {
            *out.entry((n.op.name().to_string(), matches!(n.op, Op::Own(..)))).or_insert(0) += 1;
        }
        out
    }

    /// Elements and bytes of all constants.
    pub fn constants_size(&self) -> (usize, usize) {
        self.values
            .iter()
            .filter_map(|v| v.constant.as_ref())
            .fold((0, 0), |(n, b), t| (n + t.len(), b + t.len() * t.dtype().size_bytes()))
    }

    /// Index of the node that makes each value, `None` for inputs and constants.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut out = vec![None; self.values.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            for &v in n.outputs.iter().flatten() {
                out[v] = Some(i);
            }
        }
        out
    }

    /// Binds the symbols of the inputs from concrete shapes.
    ///
    /// # Errors
    /// [`BindError`] naming the input when the rank differs, a fixed dimension differs, or a symbol would get two values.
    pub fn bind(&self, shapes: &[(&str, &[usize])]) -> Result<Bindings, BindError> {
        let mut bindings = Bindings::new();
        for &input in &self.inputs {
            let v = &self.values[input];
            let Some((_, shape)) = shapes.iter().find(|(n, _)| *n == v.name) else {
                return Err(BindError::Missing {
                    input: v.name.clone(),
                    given: shapes.iter().map(|(n, _)| n.to_string()).collect(),
                });
            };
            let mismatch = || BindError::Shape {
                input: v.name.clone(),
                expected: v.shape.iter().map(|d| d.to_string()).collect(),
                found: shape.to_vec(),
            };
            if shape.len() != v.shape.len() {
                return Err(mismatch());
            }
            for (d, &n) in v.shape.iter().zip(*shape) {
                match d {
                    Dim::Val(k) if *k == n as i64 => {}
                    Dim::Sym(s) => match bindings.insert(s.to_string(), n) {
                        Some(old) if old != n => return Err(mismatch()),
                        _ => {}
                    },
                    Dim::Val(_) => return Err(mismatch()),
                    _ => {}
                }
            }
            // Compound dimensions are checked once every plain symbol is known.
        }
        for &input in &self.inputs {
            let v = &self.values[input];
            let shape = shapes.iter().find(|(n, _)| *n == v.name).map_or(&[][..], |s| s.1);
            for (d, &n) in v.shape.iter().zip(shape) {
                if d.eval(&bindings).ok() != Some(n) {
                    return Err(BindError::Shape {
                        input: v.name.clone(),
                        expected: v.shape.iter().map(|d| d.to_string()).collect(),
                        found: shape.to_vec(),
                    });
                }
            }
        }
        Ok(bindings)
    }
}

/// Inputs that do not fit the graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// An input was not given.
    #[error("the model needs input `{input}`; given: {}", given.join(", "))]
    Missing {
        /// The input.
        input: String,
        /// What was given.
        given: Vec<String>,
    },
    /// An input has another shape.
    #[error("input `{input}` must have shape [{}], found {found:?}", expected.join(", "))]
    Shape {
        /// The input.
        input: String,
        /// The declared dimensions.
        expected: Vec<String>,
        /// The shape given.
        found: Vec<usize>,
    },
}
