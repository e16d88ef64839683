//! Which of two devices runs a model: measured once on the model itself, remembered with what it was measured on.
//!
//! It knows no session and no device; the caller times both, and keeps the file where it likes.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much faster a GPU has to be: less is noise.
const MARGIN: f64 = 1.10;

/// What both took, and which one runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Milliseconds of a run on the CPU.
    pub cpu_ms: f64,
    /// Milliseconds of a run on the GPU.
    pub gpu_ms: f64,
    /// The GPU runs it.
    pub gpu: bool,
}

impl Verdict {
    /// From two times: the GPU has to be faster by the margin. A verdict does not change by itself: it is measured once.
    pub fn of(cpu_ms: f64, gpu_ms: f64) -> Verdict {
        Verdict { cpu_ms, gpu_ms, gpu: gpu_ms * MARGIN < cpu_ms }
    }

    /// One line that says why.
    pub fn why(&self) -> String {
        let Verdict { cpu_ms, gpu_ms, gpu } = self;
        let which = if *gpu { "the GPU" } else { "the CPU" };
        format!("{which}: {gpu_ms:.2} ms on the GPU, {cpu_ms:.2} ms on the CPU (it has to win by 10 %)")
    }
}

/// The verdict under `key` in `file`: remembered, or measured now and remembered. The file's being missing, damaged or not
/// writable only means that it is measured again next time.
///
/// # Errors
/// Those of the two timers, each of which gives milliseconds of a run.
pub fn choose<E>(
    key: &str,
    file: Option<&Path>,
    cpu: impl FnOnce() -> Result<f64, E>,
    gpu: impl FnOnce() -> Result<f64, E>,
) -> Result<Verdict, E> {
    let mut known = file.map(remembered).unwrap_or_default();
    if let Some(v) = known.get(key) {
        return Ok(*v);
    }
    let verdict = Verdict::of(cpu()?, gpu()?);
    known.insert(key.to_string(), verdict);
    if let Some(file) = file {
        keep(file, &known);
    }
    Ok(verdict)
}

/// Every verdict in a file, by its key.
pub fn remembered(file: &Path) -> BTreeMap<String, Verdict> {
    std::fs::read(file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
}

fn keep(file: &Path, known: &BTreeMap<String, Verdict>) {
    let Ok(text) = serde_json::to_vec_pretty(known) else { return };
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let written =
        file.parent().is_none_or(|d| std::fs::create_dir_all(d).is_ok()) && std::fs::write(&part, text).is_ok();
    if !written || std::fs::rename(&part, file).is_err() {
        let _ = std::fs::remove_file(&part);
    }
}

/// Milliseconds of the fastest of several runs, the first one not counted, in about `budget`.
///
/// # Errors
/// Those of `run`.
pub fn fastest_ms<E>(budget: Duration, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    run()?;
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    for i in 0.. {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
        if i >= 1 && began.elapsed() >= budget {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_to_win_by_more_than_a_tenth() {
        let of = |cpu, gpu| Verdict::of(cpu, gpu).gpu;
        assert!(!of(10.0, 9.5) && of(10.0, 9.0) && !of(10.0, 20.0));
    }

    #[test]
    fn what_was_measured_once_is_not_measured_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/devices.json");
        let first = choose("a", Some(&file), || Ok::<_, ()>(10.0), || Ok(1.0)).unwrap();
        assert!(first.gpu);
        let never = || -> Result<f64, ()> { panic!("measured again") };
        assert_eq!(choose("a", Some(&file), never, never).unwrap(), first);
        assert!(!choose("b", Some(&file), || Ok::<_, ()>(1.0), || Ok(10.0)).unwrap().gpu);
        assert_eq!(remembered(&file).len(), 2);
        std::fs::write(&file, "{").unwrap();
        assert!(choose("b", Some(&file), || Ok::<_, ()>(10.0), || Ok(1.0)).unwrap().gpu, "a damaged file says nothing");
        assert_eq!(choose("c", None, || Err("no model"), || Ok(1.0)), Err("no model"));
    }
}
