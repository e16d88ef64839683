//! A model ready to answer: graph, plans by shape, one arena.
//!
//! A session keeps nothing of one run for the next, except plans and the memory they run in. It knows no feedback and
//! no adapter: those act on its `feature` and `logits` outputs.
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use hone_kernels::threads::Pool;

use crate::bundle::{self, Bundle, BundleError};
use crate::class::{Class, Classified};
use crate::device::Device;
use crate::external::Beside;
use crate::graph::{BindError, Graph};
use crate::import::{self, ExternalData, ImportError, Limits, ModelInfo};
use crate::plan::{Bf16, OnGpu, PLANS, Plan, PlanError, Profile, RunOptions, Runner};
use crate::precision::{self, Agreement, Chosen, Half, Precision, PrecisionError};
use crate::tensor::{DType, Tensor};

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Run every operator of ours by its reference function: slow and obvious, the oracle of the fast path.
    pub reference: bool,
    /// Plans kept, one per set of input shapes; the least recently used goes first. They share weights and, here, their arena.
    pub plans: usize,
    /// Threads that compute, the calling one among them; the session's own.
    pub threads: usize,
    /// What a model may at most be.
    pub limits: Limits,
    /// Collects the time of every step; `None` measures nothing.
    pub profile: Option<Arc<Profile>>,
    /// What it runs on.
    pub device: Device,
    /// What products and convolutions of floats with frozen weights are computed in.
    pub precision: Precision,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            reference: false,
            plans: PLANS,
            threads: 1,
            limits: Limits::default(),
            profile: None,
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }
}

/// Why a session cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The model.
    #[error("{path}: {source}")]
    Import {
        /// The graph's path in its bundle, or the file.
        path: String,
        /// Why.
        source: ImportError,
    },
    /// The inputs.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The bundle's own sample does not come out as recorded.
    #[error(
        "the self test of the bundle fails: output `{output}` differs from samples/expected.npz by {difference:e}, \
         allowed {allowed:e}; the model or this build is damaged: do not use it"
    )]
    Golden {
        /// The output.
        output: String,
        /// Largest difference found.
        difference: f32,
        /// Largest difference allowed.
        allowed: f32,
    },
    /// bf16 was asked for, and is not to be had.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// An output the bundle's recipe names is not made by the graph.
    #[error("the graph has no output `{name}`, which {by} names; it has: {}", has.join(", "))]
    NoOutput {
        /// The output.
        name: String,
        /// Who names it.
        by: &'static str,
        /// The outputs there are.
        has: Vec<String>,
    },
}

impl Classified for SessionError {
    fn class(&self) -> Class {
        match self {
            SessionError::Bundle(e) => e.class(),
            SessionError::Import { source, .. } => source.class(),
            SessionError::Plan(PlanError::Op { source: crate::ops::OpError::Unsupported { .. }, .. }) => {
                Class::Unsupported
            }
            SessionError::Precision(PrecisionError::Impossible { .. }) => Class::Unsupported,
            SessionError::Precision(PrecisionError::Refused { .. }) => Class::Gate,
            _ => Class::Invalid,
        }
    }
}

/// A model and the memory it runs in.
pub struct Session {
    info: ModelInfo,
    runner: Runner,
    run: RunOptions,
    precision: Chosen,
}

/// Named tensors, in the graph's order.
pub type Outputs = Vec<(String, Tensor)>;

impl Session {
    /// Opens the first graph of a bundle and runs its golden sample, which also says whether bf16 is good enough.
    ///
    /// # Errors
    /// [`SessionError`] when the model cannot be imported, the sample does not come out as recorded, or bf16 is asked for and is
    /// not to be had.
    pub fn from_bundle(bundle: &Bundle, options: SessionOptions) -> Result<Session, SessionError> {
        Session::on_cpu(bundle, options, precision::cpu())
    }

    /// The same on a CPU for which that is, or is not, a reason to compute in bf16.
    fn on_cpu(
        bundle: &Bundle,
        options: SessionOptions,
        cpu: Result<(), &'static str>,
    ) -> Result<Session, SessionError> {
        let path = bundle.manifest().graphs.first().map_or("onnx/model.onnx", |g| g.path.as_str()).to_string();
        let bytes = bundle.read(&path)?;
        let folder = path.rsplit_once('/').map_or("", |(f, _)| f);
        // Only what the manifest lists can be read; `Bundle::read` refuses every other path.
        let external = |location: &str, _: u64| {
            let file = if folder.is_empty() { location.to_string() } else { format!("{folder}/{location}") };
            bundle
                .read(&file)
                .map(|b| Arc::new(b.into_owned()))
                .map_err(|e| format!("its data is in another file: {e}"))
        };
        let mut session = Session::open(bytes, &path, options, Some(&external))?;
        let Some((input, expected)) = golden(bundle)? else { return Ok(session) };
        if let Some(half) = session.precision.asks(|| gains(&session.run.device, cpu)) {
            let logits = bundle.recipe().ok().map(|r| r.logits);
            session.compare(half, &[(&input, &expected)], "the golden samples", logits.as_deref())?;
            if session.precision.half.is_some() {
                return Ok(session);
            }
        }
        session.self_test(&input, &expected)?;
        Ok(session)
    }

    /// Lets recorded inputs say whether 16 bits are good enough: what those make of them beside what `f32` does. Nothing is run where
    /// none are asked for, or golden samples or what runs the model have said no.
    ///
    /// # Errors
    /// [`SessionError`] when the inputs do not fit, or refuse what is asked for.
    pub fn judge(&mut self, cases: &[Outputs]) -> Result<(), SessionError> {
        self.judge_on(cases, precision::cpu())
    }

    /// The same on a CPU for which that is, or is not, a reason to compute in bf16.
    fn judge_on(&mut self, cases: &[Outputs], cpu: Result<(), &'static str>) -> Result<(), SessionError> {
        let no = self.precision.agreement.is_some() && self.precision.half.is_none();
        if cases.is_empty() || no {
            return Ok(());
        }
        let Some(half) = self.precision.asks(|| gains(&self.run.device, cpu)) else { return Ok(()) };
        self.choose(None);
        let want = cases.iter().map(|inputs| self.run(inputs)).collect::<Result<Vec<_>, _>>()?;
        let on = if cases.len() == 1 { "1 recorded case".into() } else { format!("{} recorded cases", cases.len()) };
        self.compare(half, &cases.iter().zip(&want).collect::<Vec<_>>(), &on, None)
    }

    /// Compares results in 16 bits with those that are wanted of the same inputs, and goes on as they say. `answer` names the output
    /// whose largest elements are the answers.
    fn compare(
        &mut self,
        half: Half,
        cases: &[(&Outputs, &Outputs)],
        on: &str,
        answer: Option<&str>,
    ) -> Result<(), SessionError> {
        self.choose(Some(half));
        let (mut agreement, mut products) = (Agreement::FULL, false);
        for (inputs, want) in cases {
            let found = self.run(inputs)?;
            // Where nobody says which it is every output of one row a sample may be an answer.
            let ranked = |name: &str| match answer {
                Some(a) => name == a,
                None => want.iter().any(|(n, t)| n == name && t.shape().len() <= 2),
            };
            agreement = agreement.and(Agreement::of(want, &found, ranked));
            let plan = self.runner.last_plan();
            products |= plan.is_some_and(|p| match half {
                Half::Bf16 => p.steps().iter().any(|s| s.kernel.ends_with("wbf16")),
                Half::F16 => p.on_gpu().is_some_and(|on| on.halves > 0),
            });
        }
        self.precision = self.precision.clone().judged(half, agreement, on, products)?;
        if self.precision.half.is_none() {
            self.choose(None);
        }
        Ok(())
    }

    /// Opens an ONNX file's bytes with all its tensors; `path` is only for messages. Bytes given away are freed before weights are packed.
    ///
    /// # Errors
    /// [`SessionError::Import`].
    pub fn from_onnx<'b>(
        bytes: impl Into<Cow<'b, [u8]>>,
        path: &str,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        Session::open(bytes, path, options, None)
    }

    /// Opens the bytes of the ONNX file at `path`, whose tensors may be in files beside it (see [`Beside`]).
    ///
    /// # Errors
    /// [`SessionError::Import`]; also where a file of tensors is not to be had.
    pub fn from_file<'b>(
        bytes: impl Into<Cow<'b, [u8]>>,
        path: &Path,
        options: SessionOptions,
    ) -> Result<Session, SessionError> {
        let beside = Beside::of(path);
        Session::open(bytes, &path.display().to_string(), options, Some(&|name, needed| beside.read(name, needed)))
    }

    /// Opens an ONNX file's bytes whose tensors may be in other files, which `external` gives by their location.
    ///
    /// # Errors
    /// [`SessionError::Import`].
    pub fn open<'b>(
        bytes: impl Into<Cow<'b, [u8]>>,
        path: &str,
        options: SessionOptions,
        external: Option<&ExternalData<'_>>,
    ) -> Result<Session, SessionError> {
        let precision = Chosen::first(options.precision, offered(&options, options.precision))?;
        let (graph, info) = import::from_onnx_with(bytes.into(), &options.limits, external)
            .map_err(|source| SessionError::Import { path: path.to_string(), source })?;
        let pool = Arc::new(Pool::new(options.threads));
        let Limits { run_bytes: bytes, turns, .. } = options.limits;
        let SessionOptions { reference, plans, profile, device, .. } = options;
        let packs = Arc::default();
        let mut run =
            RunOptions { reference, plans, pool, bytes, turns, profile, packs, device, ..RunOptions::default() };
        set(&mut run, precision.half);
        Ok(Session { info, runner: Runner::new(Arc::new(graph), run.clone()), run, precision })
    }

    fn choose(&mut self, half: Option<Half>) {
        set(&mut self.run, half);
        self.runner = Runner::new(self.runner.graph().clone(), self.run.clone());
    }

    /// What products are computed in, and why.
    pub fn precision(&self) -> &Chosen {
        &self.precision
    }

    /// Goes on with another graph of the same inputs and outputs: the one of the file with something trained in it.
    pub fn replace(&mut self, graph: Arc<Graph>) {
        self.runner = Runner::new(graph, self.run.clone());
    }

    /// The graph, to keep.
    pub fn shared_graph(&self) -> Arc<Graph> {
        self.runner.graph().clone()
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        self.runner.graph()
    }

    /// Facts of the file.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Names of the inputs, in order.
    pub fn input_names(&self) -> Vec<&str> {
        self.names(&self.graph().inputs)
    }

    /// Names of the outputs, in order.
    pub fn output_names(&self) -> Vec<&str> {
        self.names(&self.graph().outputs)
    }

    fn names(&self, ids: &[usize]) -> Vec<&str> {
        ids.iter().map(|&v| self.graph().values[v].name.as_str()).collect()
    }

    /// The plan for inputs of those types and shapes, made if need be.
    ///
    /// # Errors
    /// [`SessionError::Bind`] or [`SessionError::Plan`].
    pub fn plan(&mut self, inputs: &[(&str, DType, &[usize])]) -> Result<&Plan, SessionError> {
        let ordered = self.graph().bind(inputs)?;
        Ok(self.runner.plan(&ordered)?)
    }

    /// What of the plan used last runs on a GPU; `None` for one for the CPU, or before there is a plan.
    pub fn on_gpu(&self) -> Option<OnGpu> {
        self.runner.last_plan()?.on_gpu()
    }

    /// Runs once on named inputs, in any order; the outputs come in the graph's order.
    ///
    /// # Errors
    /// [`SessionError`] when an input is missing or does not fit.
    pub fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Outputs, SessionError> {
        let given: Vec<(&str, DType, &[usize])> =
            inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
        self.graph().bind(&given)?;
        let graph = self.runner.graph().clone();
        // `bind` has found every input by name.
        let ordered: Vec<&Tensor> = graph
            .inputs
            .iter()
            .filter_map(|&v| inputs.iter().find(|(n, _)| *n == graph.values[v].name).map(|(_, t)| t))
            .collect();
        let out = self.runner.run(&ordered)?;
        Ok(graph.outputs.iter().map(|&v| graph.values[v].name.clone()).zip(out).collect())
    }

    /// Runs on inputs in the graph's order into `outputs`, in the graph's order: a tensor there of the type and shape of the
    /// result is overwritten, anything else replaced. A run like the one before allocates nothing, where every step has a kernel
    /// of ours.
    ///
    /// # Errors
    /// [`SessionError`] when the inputs do not fit; what is in `outputs` is then undefined.
    pub fn run_into(&mut self, inputs: &[&Tensor], outputs: &mut Vec<Tensor>) -> Result<(), SessionError> {
        if !self.runner.is_planned(inputs) {
            let names = self.input_names();
            let given: Vec<(&str, DType, &[usize])> =
                names.iter().zip(inputs).map(|(n, t)| (*n, t.dtype(), t.shape())).collect();
            self.graph().bind(&given)?;
        }
        Ok(self.runner.run_into(inputs, outputs)?)
    }

    /// The load-time self test: `samples/input.npz` must give `samples/expected.npz`.
    fn self_test(&mut self, input: &Outputs, expected: &Outputs) -> Result<(), SessionError> {
        let found = self.run(input)?;
        for (name, want) in expected {
            let Some((_, got)) = found.iter().find(|(n, _)| n == name) else {
                return Err(SessionError::NoOutput {
                    name: name.clone(),
                    by: "samples/expected.npz",
                    has: self.output_names().into_iter().map(String::from).collect(),
                });
            };
            let (difference, allowed) = difference(want, got);
            // A NaN must fail, which `>` would let through.
            if !matches!(difference.partial_cmp(&allowed), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
                return Err(SessionError::Golden { output: name.clone(), difference, allowed });
            }
        }
        Ok(())
    }
}

/// What of 16 bits there is for what is asked, or why there is nothing.
fn offered(options: &SessionOptions, asked: Precision) -> Result<Half, &'static str> {
    match (&options.device, asked) {
        (Device::Cpu, _) if options.reference => Err("reference functions compute in f32"),
        (Device::Cpu, Precision::F16) => Err("it is for GPUs (--device gpu), a CPU has bf16"),
        (Device::Cpu, _) | (Device::Gpu(_), Precision::Bf16) => Ok(Half::Bf16),
        (Device::Gpu(_), _) => Ok(Half::F16),
    }
}

/// Whether 16 bits are faster there, where `cpu` says that of the CPU.
fn gains(device: &Device, cpu: Result<(), &'static str>) -> Result<(), &'static str> {
    match device {
        Device::Gpu(gpu) if gpu.multiplies_halves() => Ok(()),
        Device::Gpu(_) => {
            Err("this GPU multiplies no matrices of f16, and what else it gains by 16 bits is not measured; \
             --precision f16 asks for them")
        }
        Device::Cpu => cpu,
    }
}

/// Makes plans compute in those 16 bits.
fn set(run: &mut RunOptions, half: Option<Half>) {
    run.bf16 = if half == Some(Half::Bf16) { Bf16::Weights } else { Bf16::Nothing };
    run.f16 = half == Some(Half::F16);
}

/// The golden samples of a bundle, inputs and recorded outputs, if it has any.
fn golden(bundle: &Bundle) -> Result<Option<(Outputs, Outputs)>, SessionError> {
    let read = |path: &str| {
        let listed = bundle.manifest().files.iter().any(|f| f.path == path);
        listed.then(|| Ok::<_, SessionError>(bundle::npz::read_npz(&bundle.read(path)?)?)).transpose()
    };
    Ok(read("samples/input.npz")?.zip(read("samples/expected.npz")?))
}

/// Largest absolute difference between two tensors, and the largest a faithful run may show
/// (`5e-4 · max|want| + 1e-6`); different shapes or types are infinitely far apart.
pub fn difference(want: &Tensor, got: &Tensor) -> (f32, f32) {
    let (Ok(a), Ok(b)) = (want.as_f32(), got.as_f32()) else {
        return (if want == got { 0.0 } else { f32::INFINITY }, 0.0);
    };
    if want.shape() != got.shape() {
        return (f32::INFINITY, 0.0);
    }
    let max = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) });
    (worst, 5e-4 * max + 1e-6)
}

#[cfg(test)]
mod tests;
