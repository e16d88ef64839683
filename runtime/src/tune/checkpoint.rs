//! How far a run is, in one file that is whole or the one before: everything the rest of the run depends on.
//!
//! A safetensors file; its metadata hold the figures as JSON under `hone`, `now/NAME` is the trainer's state,
//! `best/NAME` the tensors of the best epoch, `start/NAME` those at the start of the epoch, where targets depend on
//! them.
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Epoch, PATIENCE, TuneError};
use crate::plan::Bf16;
use crate::scope::Scoped;
use crate::state::{self, StateError};
use crate::tensor::{Tensor, safetensors};
use crate::train::Trainer;

/// Longest checkpoint that is read: three copies of the largest model that fits into an ONNX file.
const MAX_BYTES: u64 = 8 << 30;

/// The figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figures {
    /// Steps made.
    pub(super) step: u64,
    /// The loss of each.
    pub(super) losses: Vec<f32>,
    pub(super) epochs: Vec<Epoch>,
    /// Validation loss before the first step.
    pub(super) before: Option<f32>,
    /// The lowest so far, and whose it is; epoch 0 is before the first step.
    pub(super) lowest: Option<f32>,
    pub(super) best_epoch: Option<u64>,
    /// What `sparse` chose.
    pub(super) chosen: Vec<String>,
    /// Why it has ended.
    pub(super) ended: Option<String>,
    /// Time spent.
    pub(super) seconds: f64,
    /// What of frozen weights its steps multiply in bf16; `None` in a file of before this was written down.
    #[serde(default)]
    pub(super) bf16: Option<Bf16>,
}

/// A run as it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) progress: Figures,
    pub(super) state: Vec<(String, Tensor)>,
    pub(super) best: Vec<(String, Tensor)>,
    pub(super) start: Vec<(String, Tensor)>,
}

impl Checkpoint {
    /// Takes an epoch's figures up, and its tensors where it is the best.
    pub(super) fn epoch_done(
        &mut self,
        done: Epoch,
        patience: Option<u64>,
        trainer: &Trainer,
        scoped: &Scoped,
    ) -> Result<(), TuneError> {
        let p = &mut self.progress;
        p.epochs.push(done);
        let Some(loss) = done.validation else { return Ok(()) };
        if p.lowest.is_none_or(|l| loss < l) {
            (p.lowest, p.best_epoch) = (Some(loss), Some(done.epoch));
            // One copy at a time.
            self.best.clear();
            self.best = super::parameters_of(trainer, scoped)?;
        } else if patience.is_some_and(|n| done.epoch - p.best_epoch.unwrap_or(0) >= n) {
            p.ended = Some(PATIENCE.to_string());
        }
        Ok(())
    }

    /// Writes the file with the state of the trainer as it is now, durable on return; a stop at any moment leaves the
    /// one before.
    pub(super) fn write(&self, state: Vec<(String, Tensor)>, path: &Path) -> Result<(), TuneError> {
        let bad = |why: String| TuneError::Checkpoint { path: path.to_path_buf(), why };
        let named = |prefix: &'static str| move |(n, t): (String, Tensor)| (format!("{prefix}/{n}"), t);
        let mut all: Vec<(String, Tensor)> = state.into_iter().map(named("now")).collect();
        all.extend(self.best.iter().cloned().map(named("best")));
        all.extend(self.start.iter().cloned().map(named("start")));
        let figures = serde_json::to_string(&self.progress).map_err(|e| bad(e.to_string()))?;
        let bytes = safetensors::write(&all, HashMap::from([("hone".to_string(), figures)])).map_err(bad)?;
        drop(all);
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        state::write_synced(&fresh, &bytes)?;
        fs::rename(&fresh, path).map_err(|e| StateError::io(path, e))?;
        Ok(path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .map_or_else(|| state::sync_dir(Path::new(".")), state::sync_dir)?)
    }

    /// The run at `path`; `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Checkpoint>, TuneError> {
        let bad = |why: String| TuneError::Checkpoint { path: path.to_path_buf(), why };
        let Some(bytes) = state::read_bounded(path, MAX_BYTES)? else { return Ok(None) };
        let (tensors, metadata) = safetensors::read(&bytes).map_err(bad)?;
        let figures = metadata.get("hone").ok_or_else(|| bad("it has no figures".into()))?;
        let progress: Figures = serde_json::from_str(figures).map_err(|e| bad(e.to_string()))?;
        if progress.losses.len() as u64 != progress.step {
            return Err(bad(format!("{} losses of {} steps", progress.losses.len(), progress.step)));
        }
        let mut out = Checkpoint { progress, ..Checkpoint::default() };
        for (name, t) in tensors {
            match name.split_once('/') {
                Some(("now", name)) => out.state.push((name.to_string(), t)),
                Some(("best", name)) => out.best.push((name.to_string(), t)),
                Some(("start", name)) => out.start.push((name.to_string(), t)),
                _ => return Err(bad(format!("it has a tensor `{name}`"))),
            }
        }
        Ok(Some(out))
    }
}
