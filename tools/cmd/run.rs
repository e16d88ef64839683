//! `hone run`: one answer from one model.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use hone_runtime::bundle::npz;
use hone_runtime::session::{Session, SessionOptions};

/// Runs a bundle on an image, a sound, a text or sensor lines, or an ONNX file on tensors.
#[derive(Args)]
pub(crate) struct Run {
    /// A .hone bundle (directory or zip) or an .onnx file.
    model: PathBuf,
    /// Named input tensors (.npz), for any model.
    #[arg(long, value_name = "IN.npz")]
    tensors: PathBuf,
    /// Where to write the outputs (.npz).
    #[arg(short, long, value_name = "OUT.npz")]
    output: Option<PathBuf>,
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let bytes = std::fs::read(&self.model).with_context(|| format!("cannot read {}", self.model.display()))?;
        let mut session = Session::from_onnx(&bytes, &self.model.display().to_string(), SessionOptions::default())?;
        let inputs = std::fs::read(&self.tensors).with_context(|| format!("cannot read {}", self.tensors.display()))?;
        let inputs = npz::read_npz(&inputs)?;
        let start = Instant::now();
        let outputs = session.run(&inputs)?;
        let _ = start.elapsed();
        if let Some(path) = &self.output {
            let bytes = npz::write_npz(outputs.iter().map(|(n, t)| (n.as_str(), t)))?;
            std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
