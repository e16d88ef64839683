//! Why a plan cannot be made or run.
use crate::ops::OpError;
use crate::tensor::{DType, TensorError};

/// Why a plan cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A graph gives a value that nothing makes.
    #[error("output `{value}` is made by no node")]
    Unmade {
        /// The value.
        value: String,
    },
    /// A shape depends on data where every shape must be known.
    #[error("the shape of what node `{node}` ({op}) makes depends on the data: every shape must be known here")]
    DataDependent {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// A node reads a resident value after what replaces it was written.
    #[error("node `{node}` reads `{value}` after it was updated: a step must update last")]
    ReadAfterUpdate {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// A value is larger than one may be.
    #[error("value `{value}` of shape {shape:?} takes more than the {limit} bytes a value may (Limits::run_bytes)")]
    TooLarge {
        /// The value.
        value: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes it may take.
        limit: usize,
    },
    /// The memory of a run cannot be had.
    #[error(
        "running needs {bytes} bytes of memory at once, more than it may (Limits::run_bytes) or this machine gives; the \
         largest value is `{largest}`; smaller inputs need less"
    )]
    Memory {
        /// Bytes of the arena.
        bytes: usize,
        /// The largest value in it.
        largest: String,
    },
    /// An operator refuses its operands.
    #[error("node `{node}` ({op}): {source}")]
    Op {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// Why.
        source: OpError,
    },
    /// An opaque operator failed.
    #[error("node `{node}` ({op}, run by the importer's own code): {why}")]
    Opaque {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// The operator's message.
        why: String,
    },
    /// A graph inside a node failed.
    #[error("in the graph of node `{node}`: {source}")]
    Nested {
        /// The node.
        node: String,
        /// Why.
        source: Box<PlanError>,
    },
    /// A tensor does not have the planned type or shape.
    #[error("{what} `{name}` must be {expected_dtype} {expected:?}, found {found_dtype} {found:?}")]
    Mismatch {
        /// `input`, or `result of node`.
        what: &'static str,
        /// Which one.
        name: String,
        /// Planned type.
        expected_dtype: DType,
        /// Planned shape.
        expected: Vec<usize>,
        /// Actual type.
        found_dtype: DType,
        /// Actual shape.
        found: Vec<usize>,
    },
    /// A tensor that cannot be built.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
