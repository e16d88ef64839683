//! `--device cpu|gpu|auto`, for every verb that runs a model.
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use hone_runtime::Class;
use hone_runtime::choice::{self, Verdict};
use hone_runtime::device::{Device, Gpu};
use hone_runtime::plan::OnGpu;
use hone_runtime::session::Session;

use crate::exit::fail;

/// Time for measuring each of the two devices.
const BUDGET: Duration = Duration::from_millis(400);

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU, software ones included; what has no kernel for it runs on the CPU.
    Gpu,
    /// A GPU where one is faster on this very model, measured once; never a software one.
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
    /// The device. `time` gives milliseconds of a run on one; `key` says of which model, on what shapes and threads.
    ///
    /// # Errors
    /// No GPU where one is asked for; those of `time`.
    pub(crate) fn choose(self, key: &str, mut time: impl FnMut(Device) -> Result<f64>) -> Result<Chosen> {
        let cpu = |why| Chosen { device: Device::Cpu, name: "cpu", why };
        let none = |e: hone_runtime::device::DeviceError| fail(Class::Unsupported, e.to_string());
        match self {
            Choice::Cpu => Ok(cpu(None)),
            Choice::Gpu => {
                let gpu = Gpu::open(true).map_err(none)?;
                Ok(Chosen { device: Device::Gpu(gpu), name: "gpu", why: None })
            }
            Choice::Auto => {
                let gpu = match Gpu::open(false) {
                    Ok(gpu) => gpu,
                    Err(e) => return Ok(cpu(Some(format!("the CPU: {e}")))),
                };
                let device = Device::Gpu(gpu.clone());
                let key = format!("{} | {key}", gpu.key());
                let time = std::cell::RefCell::new(&mut time);
                let of = |device: Device| (time.borrow_mut())(device);
                let verdict: Verdict =
                    choice::choose(&key, store().as_deref(), || of(Device::Cpu), || of(device.clone()))?;
                let why = Some(verdict.why());
                Ok(if verdict.gpu { Chosen { device, name: "gpu", why } } else { cpu(why) })
            }
        }
    }
}

/// Where verdicts are kept: `$XDG_CACHE_HOME/hone/devices.json`.
pub(crate) fn store() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")))?;
    Some(cache.join("hone").join("devices.json"))
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
    for r in &on.refused {
        let _ = write!(text, "; {r}");
    }
    Some(text)
}
