//! `--device cpu|gpu|auto`, for every verb that runs a model.
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParserFactory};
use hone_runtime::Class;
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::choice::{self, Verdict};
use hone_runtime::device::{Device, Gpu};
use hone_runtime::plan::{OnGpu, StepInfo};
use hone_runtime::session::{Session, SessionOptions};

use crate::exit::fail;
use crate::open::Source;
use crate::precision::Precise;

/// Time for measuring each of the two devices.
pub(crate) const BUDGET: Duration = Duration::from_millis(400);

/// Where to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU, software ones included: the likeliest, or the one of that number or name.
    Gpu(Option<String>),
    /// A GPU where one was measured to be faster on this very model; never a software one.
    Auto,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Choice::Cpu => f.write_str("cpu"),
            Choice::Gpu(None) => f.write_str("gpu"),
            Choice::Gpu(Some(which)) => write!(f, "gpu:{which}"),
            Choice::Auto => f.write_str("auto"),
        }
    }
}

impl ValueParserFactory for Choice {
    type Parser = Choices;

    fn value_parser() -> Choices {
        Choices
    }
}

/// Reads a [`Choice`].
#[derive(Clone)]
pub(crate) struct Choices;

impl TypedValueParser for Choices {
    type Value = Choice;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Choice, clap::Error> {
        let text = value.to_string_lossy();
        match (&*text, text.strip_prefix("gpu:")) {
            (_, Some(which)) if !which.is_empty() => Ok(Choice::Gpu(Some(which.to_string()))),
            ("cpu", _) => Ok(Choice::Cpu),
            ("gpu", _) => Ok(Choice::Gpu(None)),
            ("auto", _) => Ok(Choice::Auto),
            _ => {
                // It has the words for what is none of them.
                let known = PossibleValuesParser::new(self.possible_values().into_iter().flatten());
                known.parse_ref(command, arg, value).map(|_| Choice::Cpu)
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let gpu = "A GPU, software ones included; what has no kernel for it runs on the CPU. gpu:1 or gpu:NAME is one of those \
                   that `hone inspect --devices` lists";
        let auto = "A GPU where one was measured to be faster on this very model; never a software one";
        let all = [("cpu", "The CPU"), ("gpu", gpu), ("auto", auto)];
        Some(Box::new(all.into_iter().map(|(name, help)| PossibleValue::new(name).help(help))))
    }
}

/// What was chosen, and why.
pub(crate) struct Chosen {
    pub(crate) device: Device,
    /// For reports: `cpu` or `gpu`.
    pub(crate) name: &'static str,
    pub(crate) why: Option<String>,
}

impl Choice {
    /// The device. `time` gives milliseconds of a run on one, and is told what the other one took, as [`choice::fastest_ms`] wants it;
    /// `about` says of what, in the words of [`about`]; neither is asked unless there is something to choose.
    ///
    /// # Errors
    /// No GPU where one is asked for; those of `about` and `time`.
    pub(crate) fn choose(
        &self,
        about: impl FnOnce() -> Result<String>,
        time: impl FnMut(Device, Option<f64>) -> Result<f64>,
    ) -> Result<Chosen> {
        let cpu = |why| Chosen { device: Device::Cpu, name: "cpu", why };
        let none = |e: hone_runtime::device::DeviceError| fail(Class::Unsupported, e.to_string());
        match self {
            Choice::Cpu => Ok(cpu(None)),
            Choice::Gpu(which) => {
                let gpu = match which {
                    None => Gpu::open(true, cache().as_deref()),
                    Some(which) => Gpu::open_one(which, cache().as_deref()),
                };
                let gpu = gpu.map_err(none)?;
                let why = passed_over(&gpu);
                Ok(Chosen { device: Device::Gpu(gpu), name: "gpu", why })
            }
            Choice::Auto => {
                let gpu = match Gpu::open(false, cache().as_deref()) {
                    Ok(gpu) => gpu,
                    Err(e) => return Ok(cpu(Some(format!("the CPU: {e}")))),
                };
                let device = Device::Gpu(gpu.clone());
                let key = format!("{} | {}", gpu.key(), about()?);
                let time = std::cell::RefCell::new(time);
                let of = |device: Device, other: Option<f64>| (time.borrow_mut())(device, other);
                let verdict: Verdict = choice::choose(
                    &key,
                    store().as_deref(),
                    SystemTime::now(),
                    || of(Device::Cpu, None),
                    |cpu| of(device.clone(), Some(cpu)),
                )?;
                let why = [Some(verdict.why()), passed_over(&gpu)].into_iter().flatten().collect::<Vec<_>>();
                let why = Some(why.join("; "));
                Ok(if verdict.gpu { Chosen { device, name: "gpu", why } } else { cpu(why) })
            }
        }
    }

    /// The device for a bundle's model, measured on the bundle's own sample.
    ///
    /// # Errors
    /// As [`Choice::choose`].
    pub(crate) fn for_bundle(
        &self,
        path: &Path,
        precision: Precise,
        options: impl Fn(Device) -> SessionOptions,
    ) -> Result<Chosen> {
        if *self != Choice::Auto {
            return self.open();
        }
        let source = Source::open(path)?;
        let sample = match &source {
            Source::Bundle(b) if b.contains("samples/input.npz") => read_npz(&b.read("samples/input.npz")?)?,
            _ => {
                let why =
                    "the CPU: the bundle has no sample of its own to measure on; --device gpu takes a GPU all the same";
                return Ok(Chosen { device: Device::Cpu, name: "cpu", why: Some(why.into()) });
            }
        };
        self.choose(
            || self::about(&source, path, &class(&sample), 1, precision),
            |device, other| time(&mut source.session(path, options(device))?, &sample, other),
        )
    }

    /// The device, where there is nothing to measure.
    ///
    /// # Errors
    /// No GPU where one is asked for.
    pub(crate) fn open(&self) -> Result<Chosen> {
        self.choose(|| Ok(String::new()), |_, _| Ok(0.0))
    }
}

/// Which GPUs were preferred to it and did not open, in one line.
fn passed_over(gpu: &Gpu) -> Option<String> {
    let all = gpu.passed_over();
    (!all.is_empty()).then(|| format!("{gpu:?} in the place of another: {}", all.join("; ")))
}

/// What a verdict is about: the model's contents by their digest, the class of what it is given, threads, what products are asked for in.
///
/// # Errors
/// Those of reading the model.
pub(crate) fn about(source: &Source, model: &Path, class: &str, threads: usize, precision: Precise) -> Result<String> {
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let digest = source.digest(model)?;
    let digest = digest.rsplit(':').next().unwrap_or_default();
    let precision = precision.asked().name();
    Ok(format!("{name} {} | {class} | {threads} threads | {precision}", digest.get(..12).unwrap_or(digest)))
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

/// Milliseconds of a run of that session on those inputs, which the other device takes `against` milliseconds for.
///
/// # Errors
/// Those of the session.
pub(crate) fn time(
    session: &mut Session,
    inputs: &[(String, hone_runtime::Tensor)],
    against: Option<f64>,
) -> Result<f64> {
    // What is compiled and tried for the plan is no part of a run, and there the next time.
    let given: Vec<_> = inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
    session.plan(&given)?;
    choice::fastest_ms(BUDGET, against, || Ok(session.run(inputs).map(drop)?))
}

/// What of a plan ran where, in a document.
#[cfg(feature = "host")]
#[derive(Clone, serde::Serialize)]
pub(crate) struct Ran {
    /// Steps that ran on the GPU.
    steps: usize,
    /// Operators of those that ran on the CPU in between, each once.
    on_cpu: Vec<String>,
    /// Why all of them ran on the CPU, if they did.
    left: Option<String>,
    /// Steps that would have run there and were refused, and why.
    refused: Vec<String>,
}

#[cfg(feature = "host")]
impl Ran {
    pub(crate) fn of(on: OnGpu) -> Ran {
        Ran { steps: on.steps.len(), on_cpu: operators(&on.on_cpu), left: on.left, refused: on.refused }
    }
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
    if on.halves > 0 {
        let _ = write!(text, "; {} of the calls in f16", on.halves);
    }
    let _ = write!(text, "; {} bytes of weights and {} of arena are there", on.weight_bytes, on.arena_bytes);
    if !on.on_cpu.is_empty() {
        let _ = write!(text, "; on the CPU: {}", operators(&on.on_cpu).join(", "));
    }
    for r in on.refused.iter().chain(&on.cache) {
        let _ = write!(text, "; {r}");
    }
    Some(text)
}

/// The operators of those steps, each once, in the order of the alphabet.
pub(crate) fn operators(steps: &[StepInfo]) -> Vec<String> {
    steps.iter().map(|s| s.op.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_one_of_three_words_or_a_gpu_by_number_or_name() {
        let of = |text: &str| Choices.parse_ref(&clap::Command::new("hone"), None, OsStr::new(text));
        for (text, choice) in [
            ("cpu", Choice::Cpu),
            ("gpu", Choice::Gpu(None)),
            ("auto", Choice::Auto),
            ("gpu:1", Choice::Gpu(Some("1".into()))),
            ("gpu:RTX 3090", Choice::Gpu(Some("RTX 3090".into()))),
        ] {
            assert_eq!((of(text).unwrap(), choice.to_string()), (choice, text.to_string()));
        }
        for text in ["tpu", "gpu:", "cpu:1"] {
            let told = of(text).unwrap_err().to_string();
            assert!(told.contains("possible values: cpu, gpu, auto"), "{told}");
        }
    }
}
