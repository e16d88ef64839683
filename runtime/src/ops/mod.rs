//! Everything known about an operator, in one place each: shape rule, reference forward, kernel lowering.
//!
//! `OPS` is the registry. To add an operator, write it in `ops/<family>.rs` and add its row; `import` takes rows with
//! [`Origin::Onnx`] straight from the file, and makes those with [`Origin::Core`] from the importer's decluttered core.
//! Reference functions are the formula, loops and all, in `f64` where sums are long; they are the oracle of the
//! kernels, and what runs where no kernel was written yet.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::graph::Dim;
use crate::plan::{Lowered, Lowering};
use crate::tensor::{DType, Tensor, TensorError};

mod conv;
mod elementwise;
mod matmul;
mod movement;
mod normalise;
mod pool;
mod quantize;
mod recurrent;
mod reduce;

#[cfg(all(test, feature = "import"))]
mod conformance;

pub use elementwise::broadcast_index;

/// The operators that are ours.
pub static OPS: &[&OpDef] = &[
    &elementwise::ADD,
    &elementwise::SUB,
    &elementwise::MUL,
    &elementwise::DIV,
    &elementwise::MIN,
    &elementwise::MAX,
    &elementwise::POW,
    &elementwise::RELU,
    &elementwise::LEAKY_RELU,
    &elementwise::SIGMOID,
    &elementwise::TANH,
    &elementwise::HARD_SIGMOID,
    &elementwise::HARD_SWISH,
    &elementwise::ERF,
    &elementwise::EXP,
    &elementwise::LOG,
    &elementwise::SQRT,
    &movement::IDENTITY,
    &movement::RESHAPE,
    &movement::TRANSPOSE,
    &movement::CONCAT,
    &movement::SLICE,
    &movement::EXPAND,
    &movement::GATHER,
    &matmul::MATMUL,
    &matmul::GEMM,
    &conv::CONV,
    &pool::MAX_POOL,
    &pool::AVERAGE_POOL,
    &pool::GLOBAL_AVERAGE_POOL,
    &reduce::REDUCE_SUM,
    &reduce::REDUCE_MAX,
    &reduce::REDUCE_MIN,
    &normalise::SOFTMAX,
    &normalise::LAYER_NORMALIZATION,
    &recurrent::LSTM,
    &quantize::QUANTIZE_LINEAR,
    &quantize::DEQUANTIZE_LINEAR,
];

/// The row of `OPS` with that ONNX name.
pub fn find(name: &str) -> Option<&'static OpDef> {
    OPS.iter().copied().find(|d| d.name == name)
}

/// Where an operator enters the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Taken from the ONNX node of the same name in the standard domain.
    Onnx,
    /// Made from the importer's decluttered core, where shape arithmetic has been folded away.
    Core,
}

/// One operator: a row of [`OPS`].
pub struct OpDef {
    /// ONNX spelling.
    pub name: &'static str,
    /// One line for tables.
    pub doc: &'static str,
    /// Where it enters the graph.
    pub origin: Origin,
    /// Output facts from input facts. For [`Origin::Core`] rows the importer already knows them and this is not called.
    pub shape: ShapeRule,
    /// The formula.
    pub reference: Reference,
    /// The fast form at concrete shapes; `None` inside means "not these shapes or types: run the reference".
    pub lower: Lower,
}

impl std::fmt::Debug for OpDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A shape rule: attributes and input facts to output facts.
pub type ShapeRule = fn(&Attrs, &[Option<&Fact>]) -> Result<Vec<Fact>, OpError>;
/// A reference forward: attributes, inputs, planned output shapes to outputs.
pub type Reference = fn(&Attrs, &[Option<&Tensor>], &[Vec<usize>]) -> Result<Vec<Tensor>, OpError>;
/// A lowering to a kernel.
pub type Lower = fn(&Lowering<'_>) -> Result<Option<Lowered>, OpError>;

/// The lowering of operators that have no kernel of their own yet.
pub(crate) fn no_kernel(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}

/// The shape rule of [`Origin::Core`] rows.
pub(crate) fn shape_is_known(_: &Attrs, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    Err(OpError::Unsupported { what: "a shape rule for an operator that import builds with its shape".into() })
}

/// Element type, shape and, when known, value of an operand at import.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<Dim>,
    /// The value, for constants.
    pub value: Option<Arc<Tensor>>,
}

impl Fact {
    /// A fact without a value.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Fact {
        Fact { dtype, shape, value: None }
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

/// The operand at `index`, or an error naming it.
pub(crate) fn need<'a, T>(inputs: &[Option<&'a T>], index: usize, name: &'static str) -> Result<&'a T, OpError> {
    inputs.get(index).copied().flatten().ok_or(OpError::MissingInput { index, name })
}

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
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
}

/// The attributes of a node and the opset version its meaning comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs {
    /// Version of the operator set the file declares.
    pub opset: i64,
    /// The attributes by name.
    pub map: BTreeMap<String, Attr>,
}

impl Attrs {
    /// Attributes from pairs, for operators built by a pass.
    pub fn of<const N: usize>(pairs: [(&str, Attr); N]) -> Attrs {
        Attrs { opset: 22, map: pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect() }
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
        for (i, d) in OPS.iter().enumerate() {
            assert!(!d.doc.is_empty(), "{} has no doc", d.name);
            assert!(OPS[..i].iter().all(|o| o.name != d.name), "{} is listed twice", d.name);
        }
    }
}
