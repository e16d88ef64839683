//! `hone inspect`: what a model is, without running it.
use std::collections::BTreeMap;
#[cfg(feature = "host")]
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use hone_runtime::Class;
use hone_runtime::DType;
use hone_runtime::choice::{self, Verdict};
use hone_runtime::device::Gpu;
use hone_runtime::graph::{Graph, Op, ValueId};
use hone_runtime::plan::{PLANS, Plan};
use hone_runtime::session::SessionOptions;
use serde::Serialize;

use crate::device;
use crate::exit::fail;
use crate::open::Source;
use crate::output;

/// Shows what a bundle or an ONNX file takes, gives and consists of, without running it.
///
/// Operators that cannot be run are all listed, and the exit code is 7.
#[derive(Args)]
pub(crate) struct Inspect {
    /// A .hone bundle (directory or zip) or an .onnx file.
    #[arg(required_unless_present = "devices")]
    model: Option<PathBuf>,
    /// The GPUs there are, and on which models `--device auto` measured them, with what came of it.
    #[arg(long, conflicts_with = "model")]
    devices: bool,
    /// How each operator will run: the kernel's name, `reference`, `opaque` (tract's code), `graph` (it runs nested
    /// graphs), or `planned at run time` (in nested graphs, and where shapes depend on data).
    #[arg(long)]
    ops: bool,
    /// Bytes of weights and of the arena.
    #[arg(long)]
    memory: bool,
    /// A value for a free dimension, for --ops and --memory; 1 where none is given.
    #[arg(long, value_name = "NAME=LENGTH", value_parser = length)]
    bind: Vec<(String, usize)>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Port {
    name: String,
    dtype: &'static str,
    /// `None` when not even the rank is declared.
    shape: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modality: Option<String>,
}

#[derive(Serialize)]
struct Census {
    op: String,
    count: usize,
    own: bool,
}

#[derive(Serialize)]
struct OpRow {
    node: String,
    op: String,
    runs_as: &'static str,
}

/// What of the model is quantised, and how.
#[derive(Serialize)]
struct Quantisation {
    /// `QuantizeLinear` and `DequantizeLinear`: operators between them compute on floats, or on codes where hone sees
    /// that it may.
    qdq: BTreeMap<String, usize>,
    /// Operators on codes of fixed scales: `QLinear…`, `QGemm`, `QAttention`, ….
    codes: BTreeMap<String, usize>,
    /// Activations quantised as they come: `DynamicQuantize…`, `MatMulInteger`, `ConvInteger`, ….
    dynamic: BTreeMap<String, usize>,
    /// Weights in blocks of a few bits: `MatMulNBits`, `GatherBlockQuantized`.
    blocks: BTreeMap<String, usize>,
    /// Constants of those operators in types of at most 8 bits: elements by type.
    weights: BTreeMap<&'static str, usize>,
}

impl Quantisation {
    fn of(graph: &Graph) -> Quantisation {
        let empty = BTreeMap::new;
        let mut all =
            Quantisation { qdq: empty(), codes: empty(), dynamic: empty(), blocks: empty(), weights: BTreeMap::new() };
        all.add(graph);
        all
    }

    fn add(&mut self, graph: &Graph) {
        for n in &graph.nodes {
            n.op.graphs().for_each(|g| self.add(g));
            let Op::Own(def, _) = &n.op else { continue };
            let form = match Form::of(def.name) {
                Some(Form::Qdq) => &mut self.qdq,
                Some(Form::Codes) => &mut self.codes,
                Some(Form::Dynamic) => &mut self.dynamic,
                Some(Form::Blocks) => &mut self.blocks,
                None => continue,
            };
            *form.entry(def.spelled()).or_insert(0) += 1;
            // One element is a zero point.
            let constants = n.inputs.iter().flatten().filter_map(|&v| graph.values[v].constant.as_ref());
            for t in constants.filter(|t| t.dtype().bits() <= 8 && t.dtype() != DType::Bool && t.len() > 1) {
                *self.weights.entry(t.dtype().name()).or_insert(0) += t.len();
            }
        }
    }

    fn counts(&self) -> impl Iterator<Item = String> {
        let forms = [&self.qdq, &self.codes, &self.dynamic, &self.blocks];
        forms.into_iter().flatten().map(|(op, n)| format!("{n} {op}"))
    }
}

/// Which of the ways of [`Quantisation`] an operator is of.
enum Form {
    Qdq,
    Codes,
    Dynamic,
    Blocks,
}

impl Form {
    fn of(op: &str) -> Option<Form> {
        Some(match op {
            "QuantizeLinear" | "DequantizeLinear" => Form::Qdq,
            name if name.contains("NBits") || name.contains("BlockQuantized") => Form::Blocks,
            name if name.starts_with("Dynamic") || name.contains("Integer") => Form::Dynamic,
            name if QUANTISED.iter().any(|q| name.starts_with(q)) => Form::Codes,
            _ => return None,
        })
    }
}

/// How names of operators on codes of fixed scales begin.
const QUANTISED: &[&str] = &["QLinear", "QGemm", "QAttention", "QEmbed", "QOrdered", "QMoE"];

/// How an operator runs whose shapes are known only then.
const LATER: &str = "planned at run time";

#[derive(Serialize)]
struct Memory {
    bindings: BTreeMap<String, usize>,
    weight_bytes: usize,
    arena_bytes: usize,
    /// What a session takes for each further set of input shapes, and how many it keeps.
    plan_bytes: usize,
    plans: usize,
}

#[derive(Serialize)]
struct BundleFacts {
    name: String,
    version: String,
    created: String,
    base_digest: String,
    digest: String,
    signed: bool,
    labels: Option<Vec<String>>,
    teachable: bool,
    /// What it is taught, see the recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
}

#[derive(Serialize)]
struct Body {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<BundleFacts>,
    opset: i64,
    producer: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    parameters: usize,
    parameter_bytes: usize,
    int8_weights: usize,
    int8_parameters: usize,
    quantisation: Quantisation,
    file_ops: BTreeMap<String, usize>,
    graph_ops: Vec<Census>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<Vec<OpRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
}

#[derive(Serialize)]
struct GpuRow {
    name: String,
    driver: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct Devices {
    /// Why there are none, where this build can have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<String>,
    gpus: Vec<GpuRow>,
    verdicts: BTreeMap<String, Verdict>,
}

fn devices(json: bool) -> anyhow::Result<ExitCode> {
    let (gpus, without) = match Gpu::all() {
        Ok(all) => (all, None),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    let gpus: Vec<GpuRow> = gpus.into_iter().map(|a| GpuRow { name: a.name, driver: a.driver, kind: a.kind }).collect();
    let verdicts = device::store().map(|file| choice::remembered(&file)).unwrap_or_default();
    if json {
        output::document("hone.devices/1", Devices { without, gpus, verdicts })?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line("cpu: always there")?;
    for (i, g) in gpus.iter().enumerate() {
        let note = if g.kind == "software" { "; for tests: `--device auto` never takes it" } else { "" };
        output::line(format!("gpu:{i}: {} ({}, {}){note}", g.name, g.kind, g.driver))?;
    }
    if gpus.is_empty() {
        output::line(format!("gpu: {}", without.as_deref().unwrap_or("none that a driver offers")))?;
    }
    for (key, verdict) in &verdicts {
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(verdict.measured_s);
        output::line(format!(
            "{key}\n    {}\n    measured {}",
            verdict.why(),
            humantime::format_rfc3339_seconds(when)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Some(model) = &self.model else { return devices(self.json) };
        let source = Source::open(model)?;
        let mut session = source.session(model, SessionOptions::default())?;
        let (graph, info) = (session.graph().clone(), session.info().clone());
        let bundle = match &source {
            Source::Onnx => None,
            Source::Bundle(b) => Some(BundleFacts {
                name: b.manifest().name.clone(),
                version: b.manifest().version.clone(),
                created: b.manifest().created.clone(),
                base_digest: b.base_digest().to_string(),
                digest: b.digest(),
                signed: b.signature().is_some(),
                labels: if b.contains("config.json") { Some(b.labels()?) } else { None },
                teachable: b.contains("train/recipe.json"),
                task: match b.contains("train/recipe.json") {
                    true => Some(b.recipe()?.task),
                    false => None,
                },
            }),
        };
        let modality = |name: &str| match &source {
            Source::Onnx => None,
            Source::Bundle(b) => b.manifest().inputs.iter().find(|p| p.name == name).and_then(|p| p.modality.clone()),
        };
        let ports = |ids: &[ValueId]| -> Vec<Port> {
            let port = |&v: &ValueId| {
                let value = &graph.values[v];
                let declared = value.declared.as_ref();
                let shape = declared.and_then(|d| d.shape.as_ref());
                let shape = shape.map(|dims| dims.iter().map(|d| d.to_string()).collect());
                let (name, dtype) = (value.name.clone(), declared.map_or("?", |d| d.dtype.name()));
                Port { modality: modality(&name), name, dtype, shape }
            };
            ids.iter().map(port).collect()
        };
        let (parameters, parameter_bytes) = graph.constants_size();
        let (int8_weights, int8_parameters) = int8(&graph);
        let census = graph.census().into_iter().map(|((op, own), count)| Census { op, count, own }).collect();
        let mut body = Body {
            model: model.display().to_string(),
            bundle,
            opset: info.opset,
            producer: info.producer.clone(),
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
            parameters,
            parameter_bytes,
            int8_weights,
            int8_parameters,
            quantisation: Quantisation::of(&graph),
            file_ops: info.ops.iter().cloned().collect(),
            graph_ops: census,
            ops: None,
            memory: None,
        };
        if self.ops || self.memory {
            let bindings = lengths(&graph, &self.bind);
            let shapes = shapes(&graph, &bindings)?;
            let given: Vec<(&str, DType, &[usize])> = shapes.iter().map(|(n, t, s)| (n.as_str(), *t, &s[..])).collect();
            let plan = session.plan(&given)?;
            if plan.has_rest() {
                output::say("hone: some shapes depend on the data; what follows from them is planned while it runs");
            }
            body.ops = self.ops.then(|| rows(&graph, plan));
            let (weight_bytes, arena_bytes, plan_bytes) = (plan.weight_bytes(), plan.arena_bytes(), plan.own_bytes());
            body.memory =
                self.memory.then_some(Memory { bindings, weight_bytes, arena_bytes, plan_bytes, plans: PLANS });
        }
        if self.json {
            output::document("hone.inspect/1", &body)?
        } else {
            print(&body)?
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Every step and how it will run, in the order of the plan; after an operator that runs graphs those of its graphs.
/// What runs nothing (`shared`) follows, then what is planned later.
fn rows(graph: &Graph, plan: &Plan) -> Vec<OpRow> {
    let mut rows = Vec::new();
    let inner = |rows: &mut Vec<OpRow>, node: &str| {
        let made = graph.nodes.iter().find(|n| n.name == node);
        made.into_iter().flat_map(|n| n.op.graphs()).for_each(|g| nested(g, node, rows));
    };
    for s in plan.steps() {
        rows.push(OpRow { node: s.node.clone(), op: s.op, runs_as: s.kernel });
        inner(&mut rows, &s.node);
    }
    rows.extend(plan.shared().iter().map(|s| OpRow { node: s.node.clone(), op: s.op.clone(), runs_as: s.kernel }));
    for (node, op) in plan.later() {
        rows.push(OpRow { node: node.clone(), op, runs_as: LATER });
        inner(&mut rows, &node);
    }
    rows
}

fn nested(graph: &Graph, around: &str, rows: &mut Vec<OpRow>) {
    for n in &graph.nodes {
        let node = format!("{around}/{}", n.name);
        n.op.graphs().for_each(|g| nested(g, &node, rows));
        rows.push(OpRow { node, op: n.op.name().to_string(), runs_as: LATER });
    }
}

/// `given`, and 1 for every other symbol of the inputs.
pub(super) fn lengths(graph: &Graph, given: &[(String, usize)]) -> BTreeMap<String, usize> {
    let mut all: BTreeMap<String, usize> = graph.symbols().iter().map(|s| (s.to_string(), 1)).collect();
    all.extend(given.iter().cloned());
    all
}

/// The inputs at those lengths.
pub(super) fn shapes(
    graph: &Graph,
    lengths: &BTreeMap<String, usize>,
) -> anyhow::Result<Vec<(String, DType, Vec<usize>)>> {
    graph.input_shapes(lengths).map_err(|input| {
        let text = format!("the file does not declare the rank of input `{input}`, so that its shape is not known");
        fail(Class::Usage, text)
    })
}

/// How a model is quantised, in one word: `f32` where nothing is, `mixed` where several ways are there.
///
/// 8-bit weights behind a `DequantizeLinear` count where nothing else is quantised: every scheme has them for what it has no other
/// form for.
#[cfg(feature = "host")]
pub(super) fn scheme(graph: &Graph) -> &'static str {
    let mut found = BTreeSet::new();
    ways(graph, &mut found);
    if found.len() > 1 {
        found.remove(WEIGHTS);
    }
    match found.len() {
        0 => "f32",
        1 => found.first().copied().unwrap_or("f32"),
        _ => "mixed",
    }
}

#[cfg(feature = "host")]
const WEIGHTS: &str = "int8-weights";

#[cfg(feature = "host")]
fn ways(graph: &Graph, found: &mut BTreeSet<&'static str>) {
    for n in &graph.nodes {
        n.op.graphs().for_each(|g| ways(g, found));
        let Op::Own(def, attrs) = &n.op else { continue };
        match Form::of(def.name) {
            Some(Form::Qdq) if def.name == "QuantizeLinear" => found.insert("int8-qdq"),
            Some(Form::Qdq) => {
                let codes = n.inputs.first().copied().flatten();
                codes.is_some_and(|v| graph.values[v].constant.is_some()) && found.insert(WEIGHTS)
            }
            Some(Form::Codes) => found.insert("int8-qlinear"),
            Some(Form::Dynamic) => found.insert("int8-dynamic"),
            Some(Form::Blocks) => found.insert(match attrs.int("bits", 4) {
                Ok(2) => "int2",
                Ok(8) => "int8-blocks",
                _ => "int4",
            }),
            None => false,
        };
    }
}

/// Weights and elements that are int8 behind a `DequantizeLinear`.
pub(super) fn int8(graph: &Graph) -> (usize, usize) {
    let quantised = |n: &hone_runtime::graph::Node| {
        let Op::Own(def, _) = &n.op else { return None };
        let tensor = graph.values[(*n.inputs.first()?)?].constant.as_ref()?;
        let int8 = def.name == "DequantizeLinear" && matches!(tensor.dtype(), DType::I8 | DType::U8);
        int8.then_some(tensor.len())
    };
    graph.nodes.iter().filter_map(quantised).fold((0, 0), |(n, e), len| (n + 1, e + len))
}

/// `NAME=LENGTH`.
pub(super) fn length(text: &str) -> Result<(String, usize), String> {
    let (name, value) = super::pair(text)?;
    let value = value.parse().ok().filter(|&v: &usize| v > 0).ok_or(format!("`{value}` is not a length above 0"))?;
    Ok((name, value))
}

fn print(body: &Body) -> anyhow::Result<()> {
    output::line(&body.model)?;
    if let Some(b) = &body.bundle {
        let signed = if b.signed { "signed" } else { "not signed" };
        output::line(format!("  bundle      {} {}, made {}, {signed}", b.name, b.version, b.created))?;
        output::line(format!("  base        {}", b.base_digest))?;
        if let Some(labels) = &b.labels {
            output::line(format!("  classes     {}: {}", labels.len(), shortened(labels)))?;
        }
        let teachable = if b.teachable { "yes (train/recipe.json)" } else { "no: there is no train/recipe.json" };
        output::line(format!("  teachable   {teachable}"))?;
        if let Some(task) = &b.task {
            output::line(format!("  task        {task}"))?;
        }
    }
    let producer = if body.producer.is_empty() { "an unnamed producer" } else { &body.producer };
    output::line(format!("  graph       ONNX opset {} by {producer}", body.opset))?;
    let int8 = match body.int8_weights {
        0 => String::new(),
        n => format!(", {} of them int8 in {n} weights", body.int8_parameters),
    };
    output::line(format!("  parameters  {} in {} bytes{int8}", body.parameters, body.parameter_bytes))?;
    let counts: Vec<String> = body.quantisation.counts().collect();
    if !counts.is_empty() {
        let weights = body.quantisation.weights.iter().map(|(t, n)| format!("{n} {t}")).collect::<Vec<_>>();
        let weights = if weights.is_empty() { String::new() } else { format!("; weights: {}", weights.join(", ")) };
        output::line(format!("  quantised   {}{weights}", counts.join(", ")))?;
    }
    for (head, ports) in [("inputs", &body.inputs), ("outputs", &body.outputs)] {
        output::line(format!("  {head}"))?;
        let rows: Vec<Vec<String>> = ports
            .iter()
            .map(|p| {
                let shape = p.shape.as_ref().map_or("of any shape".into(), |s| format!("[{}]", s.join(", ")));
                let modality = p.modality.clone().unwrap_or_default();
                vec![format!("    {}", p.name), p.dtype.to_string(), shape, modality]
            })
            .collect();
        output::line(output::table(&rows))?;
    }
    output::line("  operators after import")?;
    let row = |c: &Census| {
        let by = if c.own { "own" } else { "run by tract" };
        vec![format!("    {}", c.op), c.count.to_string(), by.to_string()]
    };
    output::line(output::table(&body.graph_ops.iter().map(row).collect::<Vec<_>>()))?;
    if let Some(ops) = &body.ops {
        output::line("  steps")?;
        let row = |o: &OpRow| vec![format!("    {}", o.op), o.runs_as.to_string(), o.node.clone()];
        output::line(output::table(&ops.iter().map(row).collect::<Vec<_>>()))?;
    }
    if let Some(m) = &body.memory {
        let bound: Vec<String> = m.bindings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let at = if bound.is_empty() { String::new() } else { format!(" at {}", bound.join(", ")) };
        output::line(format!(
            "  memory      {} bytes of weights, {} bytes of arena{at}",
            m.weight_bytes, m.arena_bytes
        ))?;
        output::line(format!(
            "  plans       {} kept, one for each set of input shapes, of about {} bytes each beside them",
            m.plans, m.plan_bytes
        ))?;
    }
    Ok(())
}

/// At most the first twelve.
fn shortened(labels: &[String]) -> String {
    let shown = labels.iter().take(12).cloned().collect::<Vec<_>>().join(", ");
    if labels.len() > 12 { format!("{shown}, …") } else { shown }
}
