//! `hone run`: one answer from one model.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use hone_runtime::adapters::{AdapterFile, AdapterStore};
use hone_runtime::app::classes::Head;
use hone_runtime::bundle::{Bundle, npz};
use hone_runtime::choice;
use hone_runtime::device::Device;
use hone_runtime::model::Model;
use hone_runtime::scope;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::state::StateDir;
use hone_runtime::{Class, Note};
use serde::Serialize;

use crate::device::{self, Choice};
use crate::exit::fail;
use crate::open::Source;
use crate::precision::{self, Precise};
use crate::{input, output};

/// Runs a bundle on an image, a sound, a text or sensor lines, or any ONNX file on tensors.
#[derive(Args)]
pub(crate) struct Run {
    /// A .hone bundle (directory or zip) or an .onnx file.
    model: PathBuf,
    #[command(flatten)]
    given: input::Given,
    /// Named input tensors, in place of a sample.
    #[arg(long, value_name = "IN.npz", conflicts_with_all = ["image", "audio", "text", "sensor"])]
    tensors: Option<PathBuf>,
    /// Where to write the outputs.
    #[arg(short, long, value_name = "OUT.npz", requires = "tensors")]
    output: Option<PathBuf>,
    /// Use the adapter that is in use in this state directory; without it the factory head answers.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Use what `hone tune` has written for this .onnx file.
    #[arg(long, value_name = "FILE.safetensors", requires = "tensors", conflicts_with = "state")]
    adapter: Option<PathBuf>,
    /// Where to run.
    #[arg(long, default_value_t)]
    device: Choice,
    /// What products of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Precise::F32)]
    precision: Precise,
    /// Recorded cases (case*.npz with the inputs as in_NAME) on which 16 bits are judged.
    #[arg(long, value_name = "DIR", requires = "tensors")]
    cases: Option<PathBuf>,
    /// Run every operator by its reference function.
    #[arg(long)]
    reference: bool,
    /// How many answers to list.
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// One JSON document in place of text.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Top {
    label: String,
    p: f32,
}

/// The number answered by a model of numbers.
#[derive(Serialize)]
struct Number {
    value: f64,
    /// One time in ten it is below.
    low: f64,
    /// One time in ten it is above.
    high: f64,
    unit: String,
}

#[derive(Serialize)]
struct Out {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    top: Vec<Top>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'static str>,
    /// The answer in words, where it is more than the first of `top`.
    #[serde(skip_serializing_if = "Option::is_none")]
    says: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<Number>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Out>,
    latency_ms: f64,
    device: &'static str,
    /// Why this device, and what of the plan ran where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    where_it_ran: Vec<String>,
    precision: &'static str,
    /// Why, where another than f32 was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision_why: Option<String>,
    adapter: String,
    notes: Vec<Note>,
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.cases.is_some() && self.precision == Precise::F32 {
            return Err(fail(
                Class::Usage,
                "--cases judges 16 bits and does nothing with --precision f32: give --precision auto, bf16 or f16 too, or leave \
                 it out",
            ));
        }
        let document = if self.tensors.is_some() { self.on_tensors()? } else { self.on_sample()? };
        if self.json {
            output::json(&document)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(says) = &document.says {
            output::line(says)?;
        }
        for t in &document.top {
            output::line(format!("{:5.1} %  {}", 100.0 * t.p, t.label))?;
        }
        for o in &document.outputs {
            output::line(format!("{}: {} {:?}", o.name, o.dtype, o.shape))?;
        }
        let device = document.device.to_uppercase();
        eprintln!("{:.2} ms on the {device}, adapter {}", document.latency_ms, document.adapter);
        for w in &document.where_it_ran {
            eprintln!("{w}");
        }
        if let Some(why) = &document.precision_why {
            eprintln!("products in {}: {why}", document.precision);
        }
        for n in &document.notes {
            eprintln!("note: {n}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self, device: Device) -> SessionOptions {
        let precision = self.precision.asked();
        SessionOptions { reference: self.reference, device, precision, ..SessionOptions::default() }
    }

    fn on_sample(&self) -> anyhow::Result<Document> {
        if is_onnx(&self.model) {
            return Err(fail(
                Class::Usage,
                "an .onnx file takes tensors, it does not say how to make them from a sample: \
                 give --tensors IN.npz, or make a bundle with `hone export`",
            ));
        }
        let loaded = self.given.load()?;
        let sample = loaded.sample();
        // Only what has no length of its own makes inputs of several classes.
        let lengths = [("text", sample.text.map(str::len)), ("audio", loaded.audio.as_deref().map(<[u8]>::len))];
        let lengths: Vec<_> = lengths.iter().filter_map(|(name, n)| Some((*name, [(*n)?]))).collect();
        let chosen = self.device.choose(
            || {
                let class = choice::class(lengths.iter().map(|(name, n)| (*name, &n[..])));
                device::about(&Source::open(&self.model)?, &self.model, &class, 1, self.precision)
            },
            |device, other| {
                let mut model = Model::open(Bundle::open(&self.model)?, self.options(device))?;
                choice::fastest_ms(device::BUDGET, other, || Ok(model.see(&sample).map(drop)?))
            },
        )?;
        let mut model = Model::open(Bundle::open(&self.model)?, self.options(chosen.device.clone()))?;
        let state = self.state.as_ref().map(StateDir::at);
        let (mut id, mut adapter) = (None, None);
        if let Some(state) = &state {
            let store = AdapterStore::new(state, model.bundle().base_digest())?;
            (id, adapter) = (store.current_id()?, store.current()?);
            model.put_on(&store, id.as_ref())?;
        }
        let head = Head::new(&model, state.as_ref(), adapter)?;
        let seen = model.see(&sample)?;
        let p = head.classes.probabilities(&head.logits(&seen)?);
        let mut order = head.classes.visible();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
        let best = order.iter().take(self.top.max(1)).map(|&c| Top { label: head.classes.name(c).into(), p: p[c] });
        let task = model.task();
        let (mut says, mut number, mut top) = (None, None, best.collect::<Vec<_>>());
        if let Some(e) = task.estimate(&p) {
            let (d, unit) = (e.decimals, if e.unit.is_empty() { String::new() } else { format!(" {}", e.unit) });
            says = Some(format!("{:.d$}{unit}  (four times in five {:.d$} to {:.d$})", e.value, e.low, e.high));
            top = vec![Top { label: head.classes.name(order[0]).into(), p: task.mass(&p, order[0]) }];
            number = Some(Number { value: e.value, low: e.low, high: e.high, unit: e.unit });
        } else if let Some(labels) = task.labels(&p) {
            says = Some(format!(
                "{}  ({:.1} % that it is exactly these)",
                head.classes.name(order[0]),
                100.0 * p[order[0]]
            ));
            top = labels.into_iter().map(|(label, p)| Top { label, p }).collect();
        } else if task.alarm(&p).is_some() {
            says = Some(head.classes.name(order[0]).to_string());
        }
        Ok(Document {
            schema: "hone.run/1",
            top,
            task: (!task.is_plain()).then(|| task.name()),
            says,
            number,
            outputs: Vec::new(),
            latency_ms: seen.latency.as_secs_f64() * 1e3,
            device: chosen.name,
            where_it_ran: chosen.why.into_iter().chain(device::told(model.session().on_gpu().as_ref())).collect(),
            precision: model.session().precision().name(),
            precision_why: precision::why(model.session().precision()),
            adapter: id.map_or_else(|| "factory".to_string(), |id| id.to_string()),
            notes: seen.notes,
        })
    }

    fn on_tensors(&self) -> anyhow::Result<Document> {
        let Some(tensors) = &self.tensors else { unreachable!("called only when --tensors was given") };
        let inputs = npz::read_npz(&input::read(tensors)?)?;
        let chosen = self.device.choose(
            || device::about(&Source::open(&self.model)?, &self.model, &device::class(&inputs), 1, self.precision),
            |device, other| device::time(&mut self.session(device)?, &inputs, other),
        )?;
        let mut session = self.session(chosen.device.clone())?;
        let start = Instant::now();
        let outputs = session.run(&inputs)?;
        let latency_ms = start.elapsed().as_secs_f64() * 1e3;
        if let Some(path) = &self.output {
            let bytes = npz::write_npz(outputs.iter().map(|(n, t)| (n.as_str(), t)))?;
            input::write(path, &bytes)?;
        }
        let outputs = outputs
            .iter()
            .map(|(n, t)| Out { name: n.clone(), dtype: t.dtype().name(), shape: t.shape().to_vec() })
            .collect();
        Ok(Document {
            schema: "hone.run/1",
            top: Vec::new(),
            task: None,
            says: None,
            number: None,
            outputs,
            latency_ms,
            device: chosen.name,
            where_it_ran: chosen.why.into_iter().chain(device::told(session.on_gpu().as_ref())).collect(),
            precision: session.precision().name(),
            precision_why: precision::why(session.precision()),
            adapter: self.adapter.as_ref().map_or_else(|| "factory".into(), |p| p.display().to_string()),
            notes: Vec::new(),
        })
    }

    /// The model with what was tuned in it.
    fn session(&self, device: Device) -> anyhow::Result<Session> {
        let mut session = if is_onnx(&self.model) {
            let onnx = input::read(&self.model)?;
            let adapter = self.adapter.as_ref();
            let file =
                adapter.map(|path| anyhow::Ok(AdapterFile::from_bytes(&input::read(path)?, &onnx)?)).transpose()?;
            let mut session = Session::from_file(onnx, &self.model, self.options(device))?;
            if let Some(file) = file {
                let scoped = scope::place(session.graph(), session.info().opset, &file.tuned.spec)?;
                session.replace(scoped.with(&file.tuned.tensors)?.into());
            }
            session
        } else if self.adapter.is_some() {
            return Err(fail(Class::Usage, "--adapter is for .onnx files; a bundle's adapters are in its --state"));
        } else {
            Session::from_bundle(&Bundle::open(&self.model)?, self.options(device))?
        };
        if let Some(dir) = &self.cases {
            session.judge(&precision::cases(dir)?)?;
        }
        Ok(session)
    }
}

/// True for a file that is to be read as plain ONNX.
pub(crate) fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}
