//! Everything known about an operator, in one place each: shape rule, reference forward, kernel lowering.
//!
//! To add an operator, write it in `ops/<family>.rs` and add its row to that family's `OPS`. Operators mean what ONNX
//! says of the version in [`Attrs::opset`]. Reference functions are the formula, loops and all, in `f64` where sums are
//! long; they are the oracle of the kernels, and what runs where no kernel was written yet. A shape rule may say that
//! the shape depends on the data; the plan then runs the operator to know it.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use crate::autodiff::Backward;
use crate::graph::Graph;
use crate::plan::{Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor, TensorError};

mod attention;
mod control;
mod conv;
mod elementwise;
mod image;
mod index;
pub(crate) mod internal;
mod matmul;
mod movement;
mod normalise;
mod pool;
mod quantize;
mod random;
mod record;
mod recurrent;
mod reduce;
pub(crate) mod shape;
mod signal;

#[cfg(all(test, feature = "import"))]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod support;

/// The operators that are ours, by family.
pub static FAMILIES: &[&[&OpDef]] = &[
    attention::OPS,
    control::OPS,
    conv::OPS,
    elementwise::OPS,
    image::OPS,
    index::OPS,
    matmul::OPS,
    movement::OPS,
    normalise::OPS,
    pool::OPS,
    quantize::OPS,
    random::OPS,
    recurrent::OPS,
    reduce::OPS,
    signal::OPS,
];

/// The domain of operators that only passes of ours make; no file has them.
pub(crate) use internal::DOMAIN as HONE;
pub(crate) use movement::border_of_zeros;
pub(crate) use quantize::nbits_weight;

/// The domain of the operators of ONNX Runtime that are not in the standard.
pub const MICROSOFT: &str = "com.microsoft";

static BY_NAME: LazyLock<HashMap<(&str, &str), &OpDef>> =
    LazyLock::new(|| all().map(|d| ((d.domain, d.name), d)).collect());

/// Every operator that is ours.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().flat_map(|f| f.iter().copied())
}

/// The operator of that ONNX name; `domain` is empty for the standard operators.
pub fn find(domain: &str, name: &str) -> Option<&'static OpDef> {
    BY_NAME.get(&(if domain == "ai.onnx" { "" } else { domain }, name)).copied()
}

/// What a plan may do with an operator besides running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A function of its inputs: computed beforehand when they are all constant.
    Pure,
    /// A function of its inputs that is not computed beforehand: a dequantised weight must stay small.
    Kept,
    /// Draws random numbers: never computed beforehand.
    Random,
    /// Runs graphs that are its attributes; the plan knows how.
    Control,
}

/// One operator: a row of a family's `OPS`.
pub struct OpDef {
    /// ONNX spelling.
    pub name: &'static str,
    /// Empty for the standard domain.
    pub domain: &'static str,
    /// One line for tables.
    pub doc: &'static str,
    /// What a plan may do with it.
    pub kind: Kind,
    /// Output facts from input facts.
    pub shape: ShapeRule,
    /// The formula.
    pub reference: Reference,
    /// The fast form at concrete shapes; `None` inside means "not these shapes or types: run the reference".
    pub lower: Lower,
    /// The form for GPUs at concrete shapes; `None` when there is none, and inside when not for these shapes or types.
    pub gpu: Option<Record>,
    /// The gradients of its inputs from those of its outputs; `None` when it is not differentiated.
    pub vjp: Option<Vjp>,
}

impl OpDef {
    /// A pure operator of the standard domain without a kernel.
    pub const fn new(name: &'static str, doc: &'static str, shape: ShapeRule, reference: Reference) -> OpDef {
        OpDef { name, domain: "", doc, kind: Kind::Pure, shape, reference, lower: no_kernel, gpu: None, vjp: None }
    }

    /// The same in another domain.
    pub const fn domain(mut self, domain: &'static str) -> OpDef {
        self.domain = domain;
        self
    }

    /// The same with a kernel.
    pub const fn kernel(mut self, lower: Lower) -> OpDef {
        self.lower = lower;
        self
    }

    /// The same with a form for GPUs.
    pub const fn gpu(mut self, gpu: Record) -> OpDef {
        self.gpu = Some(gpu);
        self
    }

    /// The same with a form for GPUs, if `there` is one.
    pub const fn gpu_where(self, there: bool, gpu: Record) -> OpDef {
        if there { self.gpu(gpu) } else { self }
    }

    /// The same with gradients.
    pub const fn vjp(mut self, vjp: Vjp) -> OpDef {
        self.vjp = Some(vjp);
        self
    }

    /// The same of another kind.
    pub const fn kind(mut self, kind: Kind) -> OpDef {
        self.kind = kind;
        self
    }

    /// The name as files and tables spell it: `Name`, or `domain.Name` outside the standard domain.
    pub fn spelled(&self) -> String {
        if self.domain.is_empty() { self.name.to_string() } else { format!("{}.{}", self.domain, self.name) }
    }
}

impl std::fmt::Debug for OpDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A shape rule: attributes and input facts to output facts, one for each output the operator has in this use (outputs
/// nobody asked for may be left out at the end). `None` when the shapes depend on values that are not known: the
/// operator is then run to know them.
pub type ShapeRule = fn(&Attrs, &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError>;
/// A reference forward: attributes and inputs to outputs. It meets hostile models: operands are checked before they are
/// indexed.
pub type Reference = fn(&Attrs, &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError>;
/// A lowering to a kernel.
pub type Lower = fn(&Lowering<'_>) -> Result<Option<Lowered>, OpError>;

/// A recording of the calls that compute it on a GPU.
pub type Record = fn(&Lowering<'_>) -> Result<Option<Recorded>, OpError>;

/// Gradients: adds nodes that make a vector-Jacobian product to the tape, and gives it to the inputs that want one.
pub type Vjp = fn(&mut Backward<'_>) -> Result<(), OpError>;

/// The gradients of an operator that is constant almost everywhere: none.
pub(crate) fn flat(_: &mut Backward<'_>) -> Result<(), OpError> {
    Ok(())
}

/// The lowering of operators that have no kernel of their own yet.
pub(crate) fn no_kernel(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}

/// Element type, shape and, when known, value of an operand while a plan is made.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The value, for constants.
    pub value: Option<Arc<Tensor>>,
}

impl Fact {
    /// A fact without a value.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Fact {
        Fact { dtype, shape: shape.into(), value: None }
    }

    /// What is known of a constant.
    pub fn constant(value: Arc<Tensor>) -> Fact {
        Fact { dtype: value.dtype(), shape: value.shape().to_vec(), value: Some(value) }
    }

    /// The elements of a constant as integers; `None` when the value is not known.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.value.as_ref().map(|t| ints_of(t))
    }
}

/// The elements of a tensor as `i64` (shapes, axes, indices).
pub(crate) fn ints_of(t: &Tensor) -> Vec<i64> {
    match t.data() {
        Data::I64(v) => v.clone(),
        other => other.to_i128().into_iter().map(|v| v as i64).collect(),
    }
}

/// Why an operator cannot be typed, run or lowered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpError {
    /// A required input is missing.
    #[error("input {index} (`{name}`) is missing")]
    MissingInput {
        /// Position in ONNX order.
        index: usize,
        /// Its ONNX name.
        name: &'static str,
    },
    /// A shape does not fit the operator.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which operand or attribute.
        what: String,
        /// What the operator needs.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// A combination the operator has no implementation for.
    #[error("not supported: {what}")]
    Unsupported {
        /// The combination.
        what: String,
    },
    /// A tensor of the wrong type or length.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An attribute is missing or of the wrong kind.
    #[error("attribute `{name}` {why}")]
    Attribute {
        /// The attribute.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl OpError {
    /// [`OpError::Unsupported`].
    pub(crate) fn unsupported(what: impl Into<String>) -> OpError {
        OpError::Unsupported { what: what.into() }
    }

    /// [`OpError::Shape`].
    pub(crate) fn shape(
        what: impl Into<String>,
        expected: impl std::fmt::Debug,
        found: impl std::fmt::Debug,
    ) -> OpError {
        OpError::Shape { what: what.into(), expected: format!("{expected:?}"), found: format!("{found:?}") }
    }

    /// [`OpError::Attribute`].
    pub(crate) fn attribute(name: &str, why: impl Into<String>) -> OpError {
        OpError::Attribute { name: name.to_string(), why: why.into() }
    }
}

/// The operand at `index`, if the node has it.
pub(crate) fn optional<'a, T>(inputs: &[Option<&'a T>], index: usize) -> Option<&'a T> {
    inputs.get(index).copied().flatten()
}

/// The operand at `index`, or an error naming it.
pub(crate) fn need<'a, T>(inputs: &[Option<&'a T>], index: usize, name: &'static str) -> Result<&'a T, OpError> {
    inputs.get(index).copied().flatten().ok_or(OpError::MissingInput { index, name })
}

/// One attribute value.
#[derive(Clone, Debug)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A float.
    Float(f32),
    /// A list of floats.
    Floats(Vec<f32>),
    /// A string.
    Str(String),
    /// A list of strings.
    Strs(Vec<String>),
    /// A tensor.
    Tensor(Arc<Tensor>),
    /// A graph. Its inputs are the formal ones followed by the values it takes from around it, which the node lists
    /// after its own inputs.
    Graph(Arc<Graph>),
}

/// The attributes of a node and the opset version its meaning comes from.
#[derive(Clone, Debug, Default)]
pub struct Attrs {
    /// Version of the operator set the file declares for the operator's domain.
    pub opset: i64,
    /// How many outputs the node lists, named or not: some operators mean something by it.
    pub outputs: usize,
    /// The attributes by name.
    pub map: BTreeMap<String, Attr>,
}

impl Attrs {
    /// Attributes from pairs, for operators built by a pass.
    pub fn of<const N: usize>(pairs: [(&str, Attr); N]) -> Attrs {
        Attrs { opset: 22, outputs: 1, map: pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect() }
    }

    fn wrong(name: &str, why: &str) -> OpError {
        OpError::Attribute { name: name.to_string(), why: why.to_string() }
    }

    /// An integer attribute, or `default`.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn int(&self, name: &str, default: i64) -> Result<i64, OpError> {
        match self.map.get(name) {
            None => Ok(default),
            Some(Attr::Int(v)) => Ok(*v),
            Some(_) => Err(Attrs::wrong(name, "is not an integer")),
        }
    }

    /// A float attribute, or `default`.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn float(&self, name: &str, default: f32) -> Result<f32, OpError> {
        match self.map.get(name) {
            None => Ok(default),
            Some(Attr::Float(v)) => Ok(*v),
            Some(_) => Err(Attrs::wrong(name, "is not a float")),
        }
    }

    /// A list of integers, `None` when absent.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, OpError> {
        match self.map.get(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v)),
            Some(_) => Err(Attrs::wrong(name, "is not a list of integers")),
        }
    }

    /// A string attribute, or `default`.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn str<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, OpError> {
        match self.map.get(name) {
            None => Ok(default),
            Some(Attr::Str(v)) => Ok(v),
            Some(_) => Err(Attrs::wrong(name, "is not a string")),
        }
    }

    /// Whether the attribute is given.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A flag: an integer attribute that is not 0.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, OpError> {
        Ok(self.int(name, i64::from(default))? != 0)
    }

    /// A list of floats, `None` when absent.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>, OpError> {
        match self.map.get(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v)),
            Some(_) => Err(Attrs::wrong(name, "is not a list of floats")),
        }
    }

    /// A list of strings, `None` when absent.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn strs(&self, name: &str) -> Result<Option<&[String]>, OpError> {
        match self.map.get(name) {
            None => Ok(None),
            Some(Attr::Strs(v)) => Ok(Some(v)),
            Some(_) => Err(Attrs::wrong(name, "is not a list of strings")),
        }
    }

    /// A tensor attribute, `None` when absent.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it has another kind.
    pub fn tensor(&self, name: &str) -> Result<Option<&Arc<Tensor>>, OpError> {
        match self.map.get(name) {
            None => Ok(None),
            Some(Attr::Tensor(t)) => Ok(Some(t)),
            Some(_) => Err(Attrs::wrong(name, "is not a tensor")),
        }
    }

    /// A graph attribute.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it is absent or has another kind.
    pub fn graph(&self, name: &str) -> Result<&Arc<Graph>, OpError> {
        match self.map.get(name) {
            Some(Attr::Graph(g)) => Ok(g),
            _ => Err(Attrs::wrong(name, "is not a graph")),
        }
    }
}

/// `axis` counted from the front; negative axes count from the end.
///
/// # Errors
/// [`OpError::Attribute`] when it is outside `-rank..rank`.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Result<usize, OpError> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    if a < 0 || a >= rank as i64 {
        return Err(OpError::Attribute {
            name: "axis".into(),
            why: format!("{axis} is outside a tensor of rank {rank}"),
        });
    }
    Ok(a as usize)
}

/// Calls `f` for every element of `shape` in row-major order with `base` plus its index times `strides`.
pub(crate) fn for_each_strided(base: usize, strides: &[usize], shape: &[usize], mut f: impl FnMut(usize)) {
    let n: usize = shape.iter().product();
    let mut at = vec![0usize; shape.len()];
    let mut i = base;
    for _ in 0..n {
        f(i);
        for ax in (0..shape.len()).rev() {
            at[ax] += 1;
            i += strides[ax];
            if at[ax] < shape[ax] {
                break;
            }
            i -= strides[ax] * at[ax];
            at[ax] = 0;
        }
    }
}

/// Row-major strides of `shape`, in elements.
pub(crate) fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut s = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        s[i] = s[i + 1] * shape[i + 1];
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_line_of_documentation_and_a_name_of_its_own() {
        let rows: Vec<&OpDef> = all().collect();
        for (i, d) in rows.iter().enumerate() {
            assert!(!d.doc.is_empty(), "{} has no doc", d.name);
            assert!(rows[..i].iter().all(|o| (o.domain, o.name) != (d.domain, d.name)), "{} is listed twice", d.name);
        }
    }
}
