//! `--device cpu|gpu|auto`, for every verb that runs a model.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::ValueEnum;
use hone_runtime::Class;
use hone_runtime::choice::{self, Verdict};
use hone_runtime::device::{Device, Gpu};
use hone_runtime::plan::OnGpu;
use hone_runtime::session::Session;

use crate::exit::fail;
use crate::open::Source;

/// Time for measuring each of the two devices.
pub(crate) const BUDGET: Duration = Duration::from_millis(400);

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU, software ones included; what has no kernel for it runs on the CPU.
    Gpu,
    /// A GPU where one was measured to be faster on this very model; never a software one.
    Auto,
}

/// What was chosen, and why.
pub(crate) struct Chosen {
    pub(crate) device: Device,
    /// For reports: `cpu` or `gpu`.
    pub(crate) name: &'static str,
    pub(crate) why: Option<String>,
}

impl Choice {
    /// The device. `time` gives milliseconds of a run on one, `about` says of what, in the words of [`about`]; neither is
    /// asked unless there is something to choose.
    ///
    /// # Errors
    /// No GPU where one is asked for; those of `about` and `time`.
    pub(crate) fn choose(
        self,
        about: impl FnOnce() -> Result<String>,
        mut time: impl FnMut(Device) -> Result<f64>,
    ) -> Result<Chosen> {
        let cpu = |why| Chosen { device: Device::Cpu, name: "cpu", why };
        let none = |e: hone_runtime::device::DeviceError| fail(Class::Unsupported, e.to_string());
        match self {
            Choice::Cpu => Ok(cpu(None)),
            Choice::Gpu => {
                let gpu = Gpu::open(true, cache().as_deref()).map_err(none)?;
                Ok(Chosen { device: Device::Gpu(gpu), name: "gpu", why: None })
            }
            Choice::Auto => {
                let gpu = match Gpu::open(false, cache().as_deref()) {
                    Ok(gpu) => gpu,
                    Err(e) => return Ok(cpu(Some(format!("the CPU: {e}")))),
                };
                let device = Device::Gpu(gpu.clone());
                let key = format!("{} | {}", gpu.key(), about()?);
                let time = std::cell::RefCell::new(&mut time);
                let of = |device: Device| (time.borrow_mut())(device);
                let verdict: Verdict = choice::choose(
                    &key,
                    store().as_deref(),
                    SystemTime::now(),
                    || of(Device::Cpu),
                    || of(device.clone()),
                )?;
                let why = Some(verdict.why());
                Ok(if verdict.gpu { Chosen { device, name: "gpu", why } } else { cpu(why) })
            }
        }
    }
}

/// What a verdict is about: the model's contents by their digest, the class of what it is given, threads.
///
/// # Errors
/// Those of reading the model.
pub(crate) fn about(source: &Source, model: &Path, class: &str, threads: usize) -> Result<String> {
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let digest = source.digest(model)?;
    let digest = digest.rsplit(':').next().unwrap_or_default();
    Ok(format!("{name} {} | {class} | {threads} threads", digest.get(..12).unwrap_or(digest)))
}

/// [`choice::class`] of tensors.
pub(crate) fn class(inputs: &[(String, hone_runtime::Tensor)]) -> String {
    choice::class(inputs.iter().map(|(name, t)| (name.as_str(), t.shape())))
}

/// Where verdicts are kept: `$XDG_CACHE_HOME/hone/devices.json`.
pub(crate) fn store() -> Option<PathBuf> {
    Some(folder()?.join("devices.json"))
}

/// Where GPUs keep what they compiled: `$XDG_CACHE_HOME/hone/gpu`.
pub(crate) fn cache() -> Option<PathBuf> {
    Some(folder()?.join("gpu"))
}

fn folder() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")))?;
    Some(cache.join("hone"))
}

/// Milliseconds of a run of that session on those inputs.
///
/// # Errors
/// Those of the session.
pub(crate) fn time(session: &mut Session, inputs: &[(String, hone_runtime::Tensor)]) -> Result<f64> {
    choice::fastest_ms(BUDGET, || Ok(session.run(inputs).map(drop)?))
}

/// What of the last plan ran where, in one line; `None` for a plan for the CPU.
pub(crate) fn told(on: Option<&OnGpu>) -> Option<String> {
    let on = on?;
    if let Some(left) = &on.left {
        return Some(format!("all {} steps ran on the CPU: {left}", on.on_cpu.len()));
    }
    let mut text = format!(
        "{} of {} steps ran on the GPU, in {} calls and {} submissions",
        on.steps.len(),
        on.steps.len() + on.on_cpu.len(),
        on.calls,
        on.waits
    );
    if !on.on_cpu.is_empty() {
        let mut ops: Vec<&str> = on.on_cpu.iter().map(|s| s.op.as_str()).collect();
        ops.sort_unstable();
        ops.dedup();
        let _ = write!(text, "; on the CPU: {}", ops.join(", "));
    }
    for r in on.refused.iter().chain(&on.cache) {
        let _ = write!(text, "; {r}");
    }
    Some(text)
}
