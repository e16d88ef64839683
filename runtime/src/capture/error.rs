//! Why a source could not be had, or had to stop.
use crate::gpio::GpioError;
use crate::{Class, Classified};

/// Why a source could not be had, or had to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// Not a spec.
    #[error("`{spec}` describes no source: {reason}")]
    Spec {
        /// What was written.
        spec: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The source gives other things.
    #[error("`{source_name}` cannot be a source of {medium}; it gives {gives}")]
    Medium {
        /// The source.
        source_name: &'static str,
        /// What was asked for.
        medium: &'static str,
        /// What it gives.
        gives: String,
    },
    /// Left out of this program.
    #[error("`{source_name}` is not part of this program; build it on Linux with the feature `{feature}`")]
    NotBuilt {
        /// The source.
        source_name: &'static str,
        /// The Cargo feature.
        feature: &'static str,
    },
    /// The program of an `exec:` source could not be started.
    #[error("cannot start `{command}`: {detail}; is it installed, and does it run by itself?")]
    Spawn {
        /// The program and its arguments.
        command: String,
        /// What the operating system said.
        detail: String,
    },
    /// A file, pipe, directory or device could not be opened or read.
    #[error("cannot read `{path}`: {detail}")]
    Open {
        /// The path.
        path: String,
        /// What the operating system said.
        detail: String,
    },
    /// There is nothing in the files that were named.
    #[error("`{path}` has no {medium} files ({extensions})")]
    NoFiles {
        /// The path.
        path: String,
        /// What was looked for.
        medium: &'static str,
        /// By which endings.
        extensions: String,
    },
    /// It never gave anything.
    #[error("`{spec}` has given nothing in {attempts} attempts; the last: {last}. Run its command by hand to see why")]
    GivenUp {
        /// The spec.
        spec: String,
        /// How often it was started.
        attempts: u32,
        /// How the last attempt ended.
        last: String,
    },
    /// The GPIO line cannot be had.
    #[error(transparent)]
    Gpio(#[from] GpioError),
    /// The thread could not be started, or has died.
    #[error("the thread of `{spec}` is not running: {detail}")]
    Thread {
        /// The spec.
        spec: String,
        /// Why.
        detail: String,
    },
}

impl Classified for CaptureError {
    fn class(&self) -> Class {
        match self {
            CaptureError::Spec { .. } | CaptureError::Medium { .. } => Class::Usage,
            CaptureError::NotBuilt { .. } => Class::Unsupported,
            CaptureError::NoFiles { .. } => Class::Invalid,
            CaptureError::Thread { .. } => Class::Failed,
            CaptureError::Spawn { .. }
            | CaptureError::Open { .. }
            | CaptureError::GivenUp { .. }
            | CaptureError::Gpio(_) => Class::Device,
        }
    }
}
