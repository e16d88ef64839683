//! `--precision f32|bf16|f16|auto`, for every verb that runs a model.
use std::path::Path;

use clap::ValueEnum;
use hone_runtime::cases::{self, Case};
use hone_runtime::precision::{Chosen, Precision};
use hone_runtime::session::Outputs;

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precise {
    /// f32.
    F32,
    /// bf16, on every CPU; refused where the golden samples of the bundle, or --cases, refuse it.
    Bf16,
    /// f16, on every GPU: weights, and where it multiplies matrices of f16 all products; refused on a CPU, and as bf16 is.
    F16,
    /// bf16 where this CPU, f16 where this GPU multiplies it faster than f32, and the golden samples of the bundle, or
    /// --cases, accept it; otherwise f32.
    Auto,
}

impl Precise {
    pub(crate) fn asked(self) -> Precision {
        match self {
            Precise::F32 => Precision::F32,
            Precise::Bf16 => Precision::Bf16,
            Precise::F16 => Precision::F16,
            Precise::Auto => Precision::Auto,
        }
    }
}

/// The inputs of the recorded cases of a directory.
///
/// # Errors
/// There are none, or one cannot be read.
pub(crate) fn cases(dir: &Path) -> anyhow::Result<Vec<Outputs>> {
    Ok(cases::files(dir)?.iter().map(|path| Case::inputs(path)).collect::<Result<_, _>>()?)
}

/// Why it is what it is; `None` where nobody asked for anything but f32.
pub(crate) fn why(chosen: &Chosen) -> Option<String> {
    (chosen.asked != Precision::F32).then(|| chosen.why.clone())
}

/// What was chosen, and why, in one line; `None` where nobody asked for anything but f32.
pub(crate) fn told(chosen: &Chosen) -> Option<String> {
    why(chosen).map(|_| chosen.to_string())
}
