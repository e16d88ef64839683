//! The graph: a small IR of ONNX operators. Shapes are what the file declares; a plan finds the others.
//!
//! `import` builds it, passes rewrite it, `plan` lowers it at concrete shapes. It knows no file format, no device and
//! nothing of the importer: an operator that is not ours is an [`Opaque`] box with the same face.
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::ops::{Attr, Attrs, Fact, OpDef};
use crate::tensor::{DType, Tensor};

/// Index of a value in [`Graph::values`].
pub type ValueId = usize;

/// One declared dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A length.
    Fixed(usize),
    /// A name: equal names are equal lengths within one run. Formulas such as `N+1` are names too.
    Symbol(Arc<str>),
    /// Any length.
    Any,
}

impl Dim {
    /// The length, when it is declared.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Any => f.write_str("?"),
        }
    }
}

/// What is known of a value before any shape is: its name and, for constants, the tensor itself.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its name in the ONNX file, or one derived from it; unique.
    pub name: String,
    /// Element type and dimensions, where the file declares them: inputs always, outputs mostly.
    pub declared: Option<Declared>,
    /// The value of an initializer or a folded constant.
    pub constant: Option<Arc<Tensor>>,
}

/// A declared type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; `None` when not even the rank is declared.
    pub shape: Option<Vec<Dim>>,
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            None => write!(f, "{} of any shape", self.dtype),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                write!(f, "{} [{}]", self.dtype, dims.join(", "))
            }
        }
    }
}

/// The operator of a node.
#[derive(Clone)]
pub enum Op {
    /// One of ours: a row of `ops::FAMILIES` with its attributes.
    Own(&'static OpDef, Arc<Attrs>),
    /// Somebody else's, run as it is.
    Opaque(Arc<dyn Opaque>),
}

impl Op {
    /// The operator's name, in ONNX spelling.
    pub fn name(&self) -> &str {
        match self {
            Op::Own(def, _) => def.name,
            Op::Opaque(o) => o.name(),
        }
    }

    /// The graphs among the attributes.
    pub fn graphs(&self) -> impl Iterator<Item = &Arc<Graph>> {
        let attrs = match self {
            Op::Own(_, attrs) => Some(attrs),
            Op::Opaque(_) => None,
        };
        attrs.into_iter().flat_map(|a| a.map.values()).filter_map(|a| match a {
            Attr::Graph(g) => Some(g),
            _ => None,
        })
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

    /// Makes it runnable for what is known of its inputs.
    ///
    /// # Errors
    /// A sentence when the operator cannot run with these inputs.
    fn bind(&self, inputs: &[Option<&Fact>]) -> Result<Box<dyn OpaqueKernel>, String>;
}

/// An [`Opaque`] operator at concrete shapes. It keeps nothing between two runs.
pub trait OpaqueKernel: Send + Sync {
    /// Types and shapes of the results; `None` when they depend on the data.
    fn outputs(&self) -> Option<Vec<(DType, Vec<usize>)>>;

    /// Runs it once.
    ///
    /// # Errors
    /// The operator's own message.
    fn run(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, String>;
}

/// One operator application. `inputs[i]` is `None` where ONNX allows an input to be left out.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name, for messages.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Operands, in ONNX order; values a nested graph takes from around it follow.
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
    /// Adds a value and returns its index. The name must be new.
    pub fn add_value(&mut self, name: &str, declared: Option<Declared>, constant: Option<Arc<Tensor>>) -> ValueId {
        self.values.push(Value { name: name.to_string(), declared, constant });
        self.values.len() - 1
    }

    /// The value of that name among inputs and outputs.
    pub fn port(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().chain(&self.outputs).copied().find(|&v| self.values[v].name == name)
    }

    /// Drops the nodes no output depends on.
    pub fn prune(&mut self) {
        let mut needed = vec![false; self.values.len()];
        self.outputs.iter().for_each(|&v| needed[v] = true);
        let mut kept = Vec::with_capacity(self.nodes.len());
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            if node.outputs.iter().flatten().any(|&v| needed[v]) {
                node.inputs.iter().flatten().for_each(|&v| needed[v] = true);
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
    }

    /// How many times each operator occurs, nested graphs included: `(name, ours)` → count.
    pub fn census(&self) -> BTreeMap<(String, bool), usize> {
        let mut out = BTreeMap::new();
        self.census_into(&mut out);
        out
    }

    fn census_into(&self, out: &mut BTreeMap<(String, bool), usize>) {
        for n in &self.nodes {
            let (name, own) = match &n.op {
                Op::Own(def, _) => (def.spelled(), true),
                Op::Opaque(o) => (o.name().to_string(), false),
            };
            *out.entry((name, own)).or_insert(0) += 1;
            n.op.graphs().for_each(|g| g.census_into(out));
        }
    }

    /// Elements and bytes of all constants, nested graphs included.
    pub fn constants_size(&self) -> (usize, usize) {
        let own = self.values.iter().filter_map(|v| v.constant.as_ref());
        let own = own.fold((0, 0), |(n, b), t| (n + t.len(), b + t.len() * t.dtype().size_bytes()));
        self.nodes
            .iter()
            .flat_map(|n| n.op.graphs())
            .map(|g| g.constants_size())
            .fold(own, |a, b| (a.0 + b.0, a.1 + b.1))
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

    /// The names of dimensions the inputs declare, each once, in order.
    pub fn symbols(&self) -> Vec<Arc<str>> {
        let mut seen = HashSet::new();
        let dims = self.inputs.iter().filter_map(|&v| self.values[v].declared.as_ref()?.shape.as_ref()).flatten();
        dims.filter_map(|d| match d {
            Dim::Symbol(s) if seen.insert(s.clone()) => Some(s.clone()),
            _ => None,
        })
        .collect()
    }

    /// Types and shapes of the inputs when the dimensions have the given lengths; a dimension without one is 1, and so is
    /// every dimension the file names no length for.
    ///
    /// # Errors
    /// The name of an input whose rank the file does not declare.
    pub fn input_shapes(&self, lengths: &BTreeMap<String, usize>) -> Result<Vec<(String, DType, Vec<usize>)>, String> {
        self.inputs
            .iter()
            .map(|&v| {
                let value = &self.values[v];
                let declared = value.declared.as_ref().and_then(|d| Some((d.dtype, d.shape.as_ref()?)));
                let (dtype, dims) = declared.ok_or_else(|| value.name.clone())?;
                let length = |d: &Dim| match d {
                    Dim::Fixed(n) => *n,
                    Dim::Symbol(s) => lengths.get(&**s).copied().unwrap_or(1),
                    Dim::Any => 1,
                };
                Ok((value.name.clone(), dtype, dims.iter().map(length).collect()))
            })
            .collect()
    }

    /// Checks named inputs against what the graph declares, and puts them in the graph's order.
    ///
    /// # Errors
    /// [`BindError`] naming the input when it is missing or unknown, its type, rank or a fixed dimension differs, or a
    /// symbol would get two values.
    pub fn bind<'a>(&self, given: &[(&str, DType, &'a [usize])]) -> Result<Vec<(DType, &'a [usize])>, BindError> {
        if let Some((name, ..)) = given.iter().find(|(n, ..)| !self.inputs.iter().any(|&v| self.values[v].name == *n)) {
            return Err(BindError::Unknown { input: name.to_string(), has: self.input_names() });
        }
        let mut bound: BTreeMap<&str, usize> = BTreeMap::new();
        let mut ordered = Vec::with_capacity(self.inputs.len());
        for &input in &self.inputs {
            let v = &self.values[input];
            let Some(&(_, dtype, shape)) = given.iter().find(|(n, ..)| *n == v.name) else {
                let given = given.iter().map(|(n, ..)| n.to_string()).collect();
                return Err(BindError::Missing { input: v.name.clone(), given });
            };
            ordered.push((dtype, shape));
            let Some(declared) = &v.declared else { continue };
            let mismatch = || BindError::Mismatch {
                input: v.name.clone(),
                expected: declared.clone(),
                dtype,
                shape: shape.to_vec(),
            };
            if dtype != declared.dtype {
                return Err(mismatch());
            }
            let Some(dims) = &declared.shape else { continue };
            if shape.len() != dims.len() {
                return Err(mismatch());
            }
            for (d, &n) in dims.iter().zip(shape) {
                let fits = match d {
                    Dim::Fixed(k) => *k == n,
                    Dim::Symbol(s) => *bound.entry(s).or_insert(n) == n,
                    Dim::Any => true,
                };
                if !fits {
                    return Err(mismatch());
                }
            }
        }
        Ok(ordered)
    }

    /// Names of the inputs, in order.
    pub fn input_names(&self) -> Vec<String> {
        self.inputs.iter().map(|&v| self.values[v].name.clone()).collect()
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
    /// An input the model does not have.
    #[error("the model has no input `{input}`; it has: {}", has.join(", "))]
    Unknown {
        /// The input.
        input: String,
        /// What there is.
        has: Vec<String>,
    },
    /// An input has another type or shape.
    #[error("input `{input}` must be {expected}, found {dtype} {shape:?}")]
    Mismatch {
        /// The input.
        input: String,
        /// What is declared.
        expected: Declared,
        /// The type given.
        dtype: DType,
        /// The shape given.
        shape: Vec<usize>,
    },
}
