//! `hone bench`: how long an answer takes on this machine, and whether to believe the figure.
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use hone_runtime::Class;
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::device::Device;
use hone_runtime::graph::{Dim, Graph};
use hone_runtime::metrics::Latency;
use hone_runtime::plan::Profile;
use hone_runtime::precision::Precision;
use hone_runtime::session::{Outputs, Session, SessionOptions};
use hone_runtime::tensor::{DType, Data, Tensor};
use serde::Serialize;

use super::inspect;
use crate::device::{self, Choice};
use crate::exit::fail;
use crate::input;
use crate::machine::{Machine, peak_rss_bytes, rss_bytes};
use crate::open::Source;
use crate::output;
use crate::precision::{self, Precise};
use crate::steps::StepRow;

/// Most runs whose steps are timed.
const PROFILED_RUNS: usize = 200;

/// What recorded cases are called among the kinds of inputs.
const CASES: &str = "cases";

/// Most timed runs; eight bytes each are kept.
const MAX_RUNS: usize = 1_000_000;

/// Measures one answer: load, first run, then warm runs one after another.
///
/// A bundle runs its golden sample, an ONNX file made-up tensors (noise for floats, zeros for integers), and either of
/// them what --cases or --tensors give. `hone bench feedback` measures the learner instead.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    answer: Option<Answer>,
}

#[derive(Subcommand)]
enum What {
    Feedback(super::bench_feedback::Feedback),
}

#[derive(Args)]
struct Answer {
    /// A .hone bundle (directory or zip) or an .onnx file.
    model: PathBuf,
    /// Timed runs; given, --seconds is not looked at.
    #[arg(long)]
    runs: Option<usize>,
    /// Time to measure for, at least ten runs.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Samples in one run.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// A value for a free dimension other than the batch; 1 where none is given.
    #[arg(long, value_name = "NAME=LENGTH", value_parser = inspect::length)]
    bind: Vec<(String, usize)>,
    /// The shape of an input, whose tensor is then made up; may be given several times. Free dimensions of the same name
    /// elsewhere get the same length.
    #[arg(long, value_name = "NAME:1x3x224x224", value_parser = shape, conflicts_with = "bind")]
    shape: Vec<(String, Vec<usize>)>,
    /// Recorded cases to run on in turn (case*.npz with the inputs as in_NAME), in place of a sample; they also judge
    /// 16 bits.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["bind", "shape", "tensors"])]
    cases: Option<PathBuf>,
    /// Named input tensors to run on, in place of a sample.
    #[arg(long, value_name = "IN.npz", conflicts_with_all = ["bind", "shape"])]
    tensors: Option<PathBuf>,
    /// Threads that compute; a list measures one after the other, a row each.
    #[arg(long, value_name = "N[,N]", default_value = "1", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Where to run.
    #[arg(long, default_value_t)]
    device: Choice,
    /// What products of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Precise::F32)]
    precision: Precise,
    /// Also say where the time goes, step by step (measuring it costs a little: the figures above are without).
    #[arg(long)]
    profile: bool,
    /// Form of the result.
    #[arg(short, long, value_enum, default_value_t = Form::Md)]
    output: Form,
}

/// Form of a bench's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Md,
    Csv,
    Json,
    Jsonl,
}

#[derive(Clone, Serialize)]
struct Row {
    model: String,
    scheme: &'static str,
    precision: &'static str,
    device: &'static str,
    threads: usize,
    test: String,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    mean_ms: f64,
    sd_ms: f64,
    items_per_s: f64,
    peak_rss_bytes: Option<u64>,
    /// Before the model was looked at.
    rss_before_bytes: Option<u64>,
    load_ms: f64,
    first_ms: f64,
    runs: usize,
    inputs: &'static str,
    /// Why, where another than f32 was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision_why: Option<String>,
    /// What of the last plan ran where, on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<device::Ran>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<StepRow>,
}

#[derive(Serialize)]
struct Body<'a> {
    machine: &'a Machine,
    rows: &'a [Row],
    warnings: &'a [String],
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match (self.what, self.answer) {
            (Some(What::Feedback(feedback)), _) => feedback.run(),
            (None, Some(answer)) => answer.run(),
            // The command line requires one of the two.
            (None, None) => Err(fail(Class::Usage, "say what to measure: a model, or `feedback`")),
        }
    }
}

impl Answer {
    fn run(self) -> anyhow::Result<ExitCode> {
        self.check()?;
        // Before the work, so that the load is that of others.
        let machine = Machine::now();
        let mut rows = Vec::with_capacity(self.threads.len());
        for &threads in &self.threads {
            let mut row = self.measure(threads)?;
            // The process's peak is that of the rows before, too.
            if !rows.is_empty() {
                (row.peak_rss_bytes, row.rss_before_bytes) = (None, None);
            }
            rows.push(row);
        }
        let mut warnings = machine.warnings();
        // Cases may be of different lengths.
        if rows.iter().any(|row| row.inputs != CASES && row.sd_ms > 0.25 * row.mean_ms) {
            warnings.push("the times scatter by more than a quarter of their mean; something else was running".into());
        }
        for w in &warnings {
            output::say(format!("hone: warning: {w}"));
        }
        match self.output {
            Form::Json => {
                output::document("hone.bench/1", Body { machine: &machine, rows: &rows, warnings: &warnings })?
            }
            Form::Jsonl => output::json_lines(&rows)?,
            Form::Csv => {
                let mut csv = csv::Writer::from_writer(Vec::new());
                for row in &rows {
                    // A table of rows has no room for steps and reasons.
                    csv.serialize(Row { steps: Vec::new(), gpu: None, precision_why: None, ..row.clone() })?;
                }
                let text = String::from_utf8(csv.into_inner().map_err(|e| e.into_error())?)?;
                output::line(text.trim_end())?;
            }
            Form::Md => print(&machine, &rows)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn check(&self) -> anyhow::Result<()> {
        let shaped = [
            ("--tensors", self.tensors.is_some()),
            ("--cases", self.cases.is_some()),
            ("--shape", !self.shape.is_empty()),
        ];
        if let Some((option, _)) = shaped.iter().find(|(_, given)| *given && self.batch != 1) {
            return Err(fail(
                Class::Usage,
                format!("--batch does not go with {option}: the shapes say how many samples there are"),
            ));
        }
        if self.threads.contains(&0)
            || self.batch == 0
            || self.runs == Some(0)
            || !(self.seconds > 0.0 && self.seconds <= 3600.0)
        {
            return Err(fail(
                Class::Usage,
                "--threads, --batch and --runs count from 1, --seconds is above 0 and at most 3600",
            ));
        }
        Ok(())
    }

    fn measure(&self, threads: usize) -> anyhow::Result<Row> {
        let cases = self.cases.as_deref().map(precision::cases).transpose()?.unwrap_or_default();
        let rss_before_bytes = rss_bytes();
        let start = Instant::now();
        let source = Source::open(&self.model)?;
        let open = |device: Device, profile| -> anyhow::Result<Session> {
            // Beside a GPU the CPU makes the inputs, and tells of its steps, in what it has.
            let beside = matches!((&device, &self.device), (Device::Cpu, device::Choice::Gpu(_)));
            let precision = match self.precision.asked() {
                Precision::F16 if beside => Precision::F32,
                asked => asked,
            };
            let usual = SessionOptions::default();
            // Cases of different shapes take turns.
            let plans = usual.plans.max(cases.len());
            source.session(&self.model, SessionOptions { threads, device, precision, plans, profile, ..usual })
        };
        let judged = |device: Device, profile| -> anyhow::Result<Session> {
            let mut session = open(device, profile)?;
            session.judge(&cases)?;
            Ok(session)
        };
        let mut session = open(Device::Cpu, None)?;
        let mut load_ms = ms(start.elapsed());
        session.judge(&cases)?;

        let (all, kind, test) = self.inputs(&source, &session, cases.clone())?;
        let inputs = &all[0];
        let chosen = self.device.choose(
            || device::about(&source, &self.model, &device::class(inputs), threads, self.precision),
            |device, other| device::time(&mut judged(device, None)?, inputs, other),
        )?;
        if let Some(why) = &chosen.why {
            output::say(format!("hone: {why}"));
        }
        if let Device::Gpu(_) = chosen.device {
            let start = Instant::now();
            session = open(chosen.device.clone(), None)?;
            load_ms = ms(start.elapsed());
            session.judge(&cases)?;
        }
        if let Some(told) = precision::told(session.precision()) {
            output::say(format!("hone: {told}"));
        }
        let start = Instant::now();
        black_box(session.run(inputs)?);
        let first_ms = ms(start.elapsed());

        let budget = Duration::from_secs_f64(self.seconds);
        let enough = |n: usize, since: Instant| match self.runs {
            Some(runs) => n >= runs.min(MAX_RUNS),
            None => n >= MAX_RUNS || (n >= 10 && since.elapsed() >= budget),
        };
        // Caches, branch predictors and the governor settle before anything counts.
        let warm = Instant::now();
        for n in 0.. {
            black_box(session.run(&all[n % all.len()])?);
            if n + 1 >= all.len().max(3) && (warm.elapsed() >= budget / 10 || self.runs.is_some_and(|r| n + 1 >= r)) {
                break;
            }
        }
        let mut times = Vec::new();
        let began = Instant::now();
        while !enough(times.len(), began) {
            let inputs = &all[times.len() % all.len()];
            let start = Instant::now();
            black_box(session.run(inputs)?);
            times.push(ms(start.elapsed()));
        }
        let on_gpu = session.on_gpu();
        if let Some(told) = device::told(on_gpu.as_ref()) {
            output::say(format!("hone: {told}"));
        }
        let steps = if self.profile {
            let profile = Arc::new(Profile::default());
            let session = judged(Device::Cpu, Some(profile.clone()))?;
            steps(session, &profile, &all, times.len().min(PROFILED_RUNS))?
        } else {
            Vec::new()
        };
        let t = Latency::from_samples(&times)?;
        Ok(Row {
            model: self.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            scheme: inspect::scheme(session.graph()),
            precision: session.precision().name(),
            device: chosen.name,
            threads,
            test,
            p50_ms: t.p50,
            p95_ms: t.p95,
            p99_ms: t.p99,
            mean_ms: t.mean,
            sd_ms: t.sd,
            items_per_s: self.batch as f64 * 1000.0 / t.mean,
            peak_rss_bytes: peak_rss_bytes(),
            rss_before_bytes,
            load_ms,
            first_ms,
            runs: t.n,
            inputs: kind,
            precision_why: precision::why(session.precision()),
            gpu: on_gpu.map(device::Ran::of),
            steps,
        })
    }

    /// What is run on, one after the other; what kind of tensors that is, and what a run is called.
    fn inputs(
        &self,
        source: &Source,
        session: &Session,
        cases: Vec<Outputs>,
    ) -> anyhow::Result<(Vec<Outputs>, &'static str, String)> {
        let batch = format!("batch {}", self.batch);
        if !cases.is_empty() {
            let test = if cases.len() == 1 { "1 case".into() } else { format!("{} cases in turn", cases.len()) };
            return Ok((cases, CASES, test));
        }
        if let Some(path) = &self.tensors {
            return Ok((vec![read_npz(&input::read(path)?)?], "tensors", batch));
        }
        if !self.shape.is_empty() {
            let made = self.shaped(session)?;
            let of = |(name, t): &(String, Tensor)| {
                let lengths: Vec<String> = t.shape().iter().map(usize::to_string).collect();
                format!("{name}:{}", lengths.join("x"))
            };
            let test = made.iter().map(of).collect::<Vec<_>>().join(" ");
            return Ok((vec![made], "synthetic", test));
        }
        match source {
            Source::Bundle(b) if b.contains("samples/input.npz") => {
                let sample = read_npz(&b.read("samples/input.npz")?)?;
                Ok((vec![self.tiled(sample, session)?], "sample", batch))
            }
            _ => Ok((vec![self.made_up(session)?], "synthetic", batch)),
        }
    }

    /// Made-up tensors of the shapes given, the other inputs at the lengths those say.
    fn shaped(&self, session: &Session) -> anyhow::Result<Outputs> {
        let graph = session.graph();
        let mut lengths = inspect::lengths(graph, &[]);
        let mut types = Vec::new();
        for (name, shape) in &self.shape {
            let Some(&v) = graph.inputs.iter().find(|&&v| graph.values[v].name == *name) else {
                let has = session.input_names().join(", ");
                return Err(fail(Class::Usage, format!("--shape: the model has no input `{name}`; it has: {has}")));
            };
            if self.shape.iter().filter(|(n, _)| n == name).count() > 1 {
                return Err(fail(Class::Usage, format!("--shape: `{name}` is given twice")));
            }
            let declared = graph.values[v].declared.as_ref();
            types.push(declared.map_or(DType::F32, |d| d.dtype));
            for (dim, &length) in declared.and_then(|d| d.shape.as_ref()).into_iter().flatten().zip(shape) {
                if let Dim::Symbol(s) = dim {
                    lengths.insert(s.to_string(), length);
                }
            }
        }
        let mut all: Vec<(String, DType, Vec<usize>)> =
            self.shape.iter().zip(types).map(|((name, shape), t)| (name.clone(), t, shape.clone())).collect();
        if all.len() < graph.inputs.len() {
            let others = inspect::shapes(graph, &lengths)?;
            all.extend(others.into_iter().filter(|(name, ..)| self.shape.iter().all(|(given, _)| given != name)));
        }
        let given: Vec<(&str, DType, &[usize])> = all.iter().map(|(n, t, s)| (n.as_str(), *t, &s[..])).collect();
        graph.bind(&given).map_err(|e| fail(Class::Usage, format!("--shape: {e}")))?;
        all.into_iter().map(|(name, dtype, shape)| made(name, dtype, &shape)).collect()
    }

    /// The first row of every sample tensor, `batch` times.
    fn tiled(&self, sample: Vec<(String, Tensor)>, session: &Session) -> anyhow::Result<Vec<(String, Tensor)>> {
        let graph = session.graph();
        let tile = |(name, t): (String, Tensor)| {
            let free = graph.port(&name).and_then(|v| first_dim(graph, v)).is_some_and(|d| d.known().is_none());
            if !free {
                if self.batch != 1 {
                    let text = format!("input `{name}` has no free first dimension, so --batch must be 1");
                    return Err(fail(Class::Usage, text));
                }
                return Ok((name, t));
            }
            let mut shape = t.shape().to_vec();
            let row = t.len() / shape[0].max(1);
            shape[0] = self.batch;
            let data = repeat_row(t.data(), row, self.batch);
            Ok((name, Tensor::new(&shape, data).context("tiling the sample")?))
        };
        sample.into_iter().map(tile).collect()
    }

    /// Noise for floats, zeros for everything else, in the graph's shapes.
    fn made_up(&self, session: &Session) -> anyhow::Result<Vec<(String, Tensor)>> {
        let graph = session.graph();
        let mut lengths = inspect::lengths(graph, &self.bind);
        let batch: Vec<String> = graph
            .inputs
            .iter()
            .filter_map(|&v| match first_dim(graph, v) {
                Some(Dim::Symbol(s)) => Some(s.to_string()),
                _ => None,
            })
            .collect();
        if batch.is_empty() && self.batch != 1 {
            return Err(fail(Class::Usage, "no input has a free first dimension, so --batch must be 1"));
        }
        for symbol in batch {
            lengths.insert(symbol, self.batch);
        }
        inspect::shapes(graph, &lengths)?.into_iter().map(|(name, dtype, shape)| made(name, dtype, &shape)).collect()
    }
}

/// The time of every step of `runs` warm runs of that session of its own, longest first.
fn steps(mut session: Session, profile: &Profile, all: &[Outputs], runs: usize) -> anyhow::Result<Vec<StepRow>> {
    for inputs in all {
        black_box(session.run(inputs)?);
    }
    profile.take();
    for n in 0..runs {
        black_box(session.run(&all[n % all.len()])?);
    }
    Ok(StepRow::of(profile, runs))
}

/// A tensor of noise, or of zeros where it is none of floats.
fn made(name: String, dtype: DType, shape: &[usize]) -> anyhow::Result<(String, Tensor)> {
    let tensor = match dtype {
        DType::F32 => Tensor::f32(shape, noise(shape.iter().product()))?,
        dtype => Tensor::zeros(dtype, shape)?,
    };
    Ok((name, tensor))
}

/// `NAME:1x3x224x224`; a scalar has no lengths.
fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    // Names may have colons, lengths have none.
    let (name, lengths) = text.rsplit_once(':').filter(|(n, _)| !n.is_empty()).ok_or("it is NAME:1x3x224x224")?;
    let of = |l: &str| l.parse().ok().filter(|&v: &usize| v > 0).ok_or(format!("`{l}` is not a length above 0"));
    let shape = lengths.split('x').filter(|_| !lengths.is_empty()).map(of).collect::<Result<_, _>>()?;
    Ok((name.to_string(), shape))
}

fn first_dim(graph: &Graph, v: usize) -> Option<&Dim> {
    graph.values[v].declared.as_ref()?.shape.as_ref()?.first()
}

/// Numbers in [-1, 1), the same every time (xorshift).
fn noise(n: usize) -> Vec<f32> {
    let mut s = 0x9e37_79b9u32;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn repeat_row(data: &Data, row: usize, times: usize) -> Data {
    let indices: Vec<usize> = (0..times).flat_map(|_| 0..row).collect();
    data.pick(&indices)
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn print(machine: &Machine, rows: &[Row]) -> anyhow::Result<()> {
    let known = |v: &Option<String>| v.clone().unwrap_or_else(|| "unknown".into());
    let temperature = machine.temperature_c.map_or("unknown".into(), |t| format!("{t:.0} °C"));
    let throttled = machine.throttled.clone().unwrap_or_else(|| "no sign of it".into());
    let load = machine.load_1min.map_or("unknown".into(), |l| format!("{l:.2}"));
    output::line(format!(
        "{} ({} processors, {}), kernel {}, governor {}, {temperature}, throttling: {throttled}, load {load}, {} \
         build, hone {}",
        machine.cpu,
        machine.cpus,
        machine.arch,
        machine.kernel,
        known(&machine.governor),
        machine.build,
        machine.hone
    ))?;
    output::line("")?;
    let heads = [
        "model",
        "scheme",
        "precision",
        "device",
        "threads",
        "test",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "mean ± sd ms",
        "items/s",
        "load ms",
        "first ms",
        "peak RSS MiB",
        "runs",
    ];
    let mut table = vec![heads.map(String::from).to_vec(), heads.map(|h| "-".repeat(h.chars().count())).to_vec()];
    for r in rows {
        table.push(vec![
            r.model.clone(),
            r.scheme.into(),
            r.precision.into(),
            r.device.into(),
            r.threads.to_string(),
            r.test.clone(),
            format!("{:.3}", r.p50_ms),
            format!("{:.3}", r.p95_ms),
            format!("{:.3}", r.p99_ms),
            format!("{:.3} ± {:.3}", r.mean_ms, r.sd_ms),
            format!("{:.1}", r.items_per_s),
            format!("{:.1}", r.load_ms),
            format!("{:.2}", r.first_ms),
            r.peak_rss_bytes.map_or("unknown".into(), |b| format!("{:.1}", b as f64 / (1 << 20) as f64)),
            r.runs.to_string(),
        ]);
    }
    for row in table {
        output::line(format!("| {} |", row.join(" | ")))?;
    }
    for r in rows.iter().filter(|r| !r.steps.is_empty()) {
        output::line(StepRow::table(&r.steps, &r.model))?;
    }
    Ok(())
}
