//! What the verbs that take `BUNDLE|FILE.onnx` share.
use std::path::Path;

use anyhow::Context;
use hone_runtime::Class;
use hone_runtime::adapters::AdapterFile;
use hone_runtime::bundle::Bundle;
use hone_runtime::session::{Session, SessionOptions};

use crate::exit::fail;
use crate::input;

/// A model named on the command line.
#[expect(clippy::large_enum_variant, reason = "one value in the life of a command")]
pub(crate) enum Source {
    /// A verified bundle.
    Bundle(Bundle),
    /// An ONNX file. It is read when a session is made, and not kept: weights are large.
    Onnx,
}

impl Source {
    /// Opens a bundle (a directory or a zip), or finds an ONNX file (any other file named `*.onnx`).
    ///
    /// # Errors
    /// A path that is not there, or a bundle that is damaged.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Source> {
        if !path.exists() {
            let text = format!("there is no {}; give a .hone bundle or an .onnx file", path.display());
            return Err(fail(Class::Invalid, text));
        }
        if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            return Ok(Source::Onnx);
        }
        Bundle::open(path).map(Source::Bundle).with_context(|| path.display().to_string())
    }

    /// What tells the model from every other.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn digest(&self, path: &Path) -> anyhow::Result<String> {
        Ok(match self {
            Source::Onnx => AdapterFile::digest(&input::read(path)?),
            Source::Bundle(b) => b.digest(),
        })
    }

    /// A session of the first graph; tensors kept elsewhere come from the bundle, or from files beside the ONNX file.
    ///
    /// # Errors
    /// As `Session::from_bundle` and `Session::from_file`.
    pub(crate) fn session(&self, path: &Path, options: SessionOptions) -> anyhow::Result<Session> {
        Ok(match self {
            Source::Onnx => Session::from_file(input::read(path)?, path, options)?,
            Source::Bundle(b) => Session::from_bundle(b, options)?,
        })
    }
}
