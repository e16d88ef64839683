//! `--precision f32|bf16|auto`, for every verb that runs a model.
use clap::{Args, ValueEnum};
use hone_runtime::precision::{Chosen, Precision};

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// f32.
    F32,
    /// bf16, on every CPU; refused where the golden samples of the bundle refuse it.
    Bf16,
    /// bf16 where this CPU multiplies it and the golden samples of the bundle accept it, otherwise f32.
    Auto,
}

/// The option.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Precise {
    /// What products and convolutions of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Choice::F32)]
    precision: Choice,
}

impl Precise {
    pub(crate) fn asked(self) -> Precision {
        match self.precision {
            Choice::F32 => Precision::F32,
            Choice::Bf16 => Precision::Bf16,
            Choice::Auto => Precision::Auto,
        }
    }
}

/// Why it is what it is; `None` where nobody asked for anything but f32.
pub(crate) fn why(chosen: &Chosen) -> Option<String> {
    (chosen.asked != Precision::F32).then(|| chosen.why.clone())
}

/// What was chosen, and why, in one line; `None` where nobody asked for anything but f32.
pub(crate) fn told(chosen: &Chosen) -> Option<String> {
    why(chosen).map(|_| chosen.to_string())
}
