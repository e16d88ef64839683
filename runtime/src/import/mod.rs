//! ONNX bytes → [`Graph`]: the only module that knows tract.
//!
//! The protobuf is decoded by tract's reader and looked at before anything interprets it (`preflight`). Functions are
//! expanded (`functions`), names are resolved through nested graphs, and each node becomes one of our operators as it
//! stands in the file (`build`). An operator that is not ours and that tract has runs by tract's own code, as a model of
//! one node (`fallback`). Shapes are not inferred here: a plan finds them at concrete input shapes.
use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::class::{Class, Classified};
use crate::graph::Graph;

mod build;
#[cfg(feature = "fallback")]
mod convert;
#[cfg(feature = "fallback")]
mod fallback;
#[cfg(not(feature = "fallback"))]
#[path = "no_fallback.rs"]
mod fallback;
mod functions;
mod preflight;
mod proto;
mod wire;
mod write;

pub use preflight::Limits;
pub use proto::ExternalData;
pub use write::{WriteError, to_onnx};

/// What a build that lacks tract's operators says of those it does not know.
const ELSEWHERE: &str = if cfg!(feature = "fallback") {
    ""
} else {
    " (this build has hone's own operators only; `hone inspect --ops` of a full build says whether one of those runs it)"
};

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
    #[error("unsupported operators: {}{ELSEWHERE}", ops.join(", "))]
    Unsupported {
        /// `domain.Name` each once, sorted.
        ops: Vec<String>,
    },
    /// A value of a type hone does not hold is needed.
    #[error("value `{name}` {why}")]
    Type {
        /// The value.
        name: String,
        /// Which type.
        why: String,
    },
}

impl Classified for ImportError {
    fn class(&self) -> Class {
        match self {
            ImportError::Unsupported { .. } | ImportError::Type { .. } => Class::Unsupported,
            _ => Class::Invalid,
        }
    }
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

/// Imports an ONNX model whose tensors are all in the file.
///
/// # Errors
/// [`ImportError`]; it names the culprit. No input makes it panic or open a file.
pub fn from_onnx(bytes: &[u8], limits: &Limits) -> Result<(Graph, ModelInfo), ImportError> {
    from_onnx_with(bytes.into(), limits, None)
}

/// Names of the files in which an ONNX model keeps tensors, as it states them; none is opened.
///
/// # Errors
/// [`ImportError`] for what is no ONNX model.
pub fn external_files(bytes: &[u8], limits: &Limits) -> Result<BTreeSet<String>, ImportError> {
    let proto = preflight::decode(bytes, limits, true)?;
    let proto = if proto.functions.is_empty() { proto } else { functions::expand(proto, limits)? };
    Ok(proto::locations(proto.graph.as_ref()))
}

/// Imports an ONNX model; `external` gives the bytes of the files that hold the tensors the model keeps outside. Without
/// it such a model is refused. Bytes that are given away are freed as soon as they are read: at most two copies of the
/// weights are held at a time.
///
/// # Errors
/// [`ImportError`]; it names the culprit. No input makes it panic or open a file.
pub fn from_onnx_with(
    bytes: Cow<'_, [u8]>,
    limits: &Limits,
    external: Option<&ExternalData<'_>>,
) -> Result<(Graph, ModelInfo), ImportError> {
    let proto = preflight::decode(&bytes, limits, external.is_some())?;
    drop(bytes);
    let info = preflight::info(&proto);
    let mut proto = if proto.functions.is_empty() {
        proto
    } else {
        let proto = functions::expand(proto, limits)?;
        preflight::check_expanded(&proto, limits, external.is_some())?;
        proto
    };
    let mut missing = BTreeSet::new();
    if let Some(g) = &proto.graph {
        build::unsupported(g, &mut missing);
    }
    if !missing.is_empty() {
        return Err(ImportError::Unsupported { ops: missing.into_iter().collect() });
    }
    let none = |location: &str, _: u64| Err(format!("its data is in another file (`{location}`), which is not opened"));
    let external = proto::External::new(proto.graph.as_ref(), external.unwrap_or(&none));
    let tensors = proto.graph.iter_mut().flat_map(|g| &mut g.initializer).map(|t| proto::taken(t, &external)).collect();
    let context = build::Context::new(&proto, external);
    Ok((build::model(&proto, tensors, &context)?, info))
}
