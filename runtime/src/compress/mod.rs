//! A model made smaller: calibration data in, `quant`, the effect measured on the task, a file and a report out.
//!
//! The answer to "what does it cost" is measured on the file that is written, opened as any other model. Where the cost
//! is more than allowed, `search` finds the layers that need 8 bits, or have to stay `f32`. Bundles keep their head exact, because a
//! device's learner computes with it.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hone_kernels::threads::Pool;
use serde::Serialize;

use crate::bundle::{Bundle, BundleError, BundleWriter, npz};
use crate::cases::{Case, CaseError};
use crate::class::{Class, Classified};
use crate::dataset::Dataset;
use crate::external::Beside;
use crate::graph::Graph;
use crate::import::{self, Limits, WriteError};
use crate::metrics::Latency;
use crate::modality::{ModalityError, Preprocessor};
use crate::plan::{PlanError, RunOptions};
use crate::quant::edit::glob;
use crate::quant::{Layer, Prepared, QuantError, Quantised, Settings};
use crate::session::{Session, SessionError, SessionOptions};
use crate::tensor::Tensor;

mod search;
mod task;

use task::Task;

/// Why a model cannot be compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The model cannot be opened or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A sample cannot be read.
    #[error(transparent)]
    Modality(#[from] ModalityError),
    /// A recorded case.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// The graph cannot be quantised.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The graph cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The data do not fit the model.
    #[error("{what}")]
    Data {
        /// What is wrong, and what to do.
        what: String,
    },
    /// No pattern of `--keep-f32` may be in vain: a misspelt one would be found out by the loss of accuracy only.
    #[error("--keep-f32 `{pattern}` matches no node; `hone inspect --ops` and Netron show their names")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
}

impl Classified for CompressError {
    fn class(&self) -> Class {
        match self {
            CompressError::Bundle(e) => e.class(),
            CompressError::Session(e) => e.class(),
            CompressError::Modality(e) => e.class(),
            CompressError::Case(e) => e.class(),
            CompressError::Quant(e) => e.class(),
            CompressError::Write(e) => e.class(),
            CompressError::Plan(_) => Class::Failed,
            CompressError::Data { .. } => Class::Invalid,
            CompressError::NoMatch { .. } => Class::Usage,
        }
    }
}

/// What to compress.
pub enum Model<'a> {
    /// A bundle.
    Bundle(&'a Bundle),
    /// The bytes of an ONNX file, whose tensors may be in files beside it.
    Onnx {
        /// The file.
        path: &'a Path,
        /// Its content.
        bytes: &'a [u8],
    },
}

/// What to calibrate and measure with.
pub enum Samples<'a> {
    /// Nothing: only schemes without calibration, and nothing is measured.
    None,
    /// Labelled samples for a bundle.
    Dataset(&'a Dataset),
    /// Recorded inputs, `case*.npz`.
    Cases(&'a [PathBuf]),
}

/// How a model without labels is compared with itself in `f32`, by its first output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Mean cosine of the angle between the outputs.
    Cosine,
    /// Share of rows (along the last axis) whose largest element is the same.
    Top1,
}

/// How to compress.
pub struct Options<'a> {
    /// The scheme and its settings; what must stay exact in a bundle is added here.
    pub settings: Settings,
    /// Glob patterns (`*`, `?`) of node or result names that stay `f32`.
    pub keep: &'a [String],
    /// Points (hundredths) of accuracy or agreement that may be lost.
    pub max_drop: Option<f64>,
    /// Comparison for a model without labels.
    pub agreement: Agreement,
    /// Most samples to calibrate with.
    pub calibrate: usize,
    /// Most samples to measure with.
    pub measure: usize,
    /// Threads that compute.
    pub threads: usize,
}

/// One side of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// Bytes of the ONNX file, with the tensors it keeps elsewhere.
    pub bytes: u64,
    /// Accuracy or agreement; absent when nothing was measured.
    pub accuracy: Option<f64>,
    /// Median time of one run, in milliseconds.
    pub latency_p50_ms: Option<f64>,
}

/// A quantised layer in the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The node.
    pub name: String,
    /// Its operator.
    pub op: &'static str,
    /// Elements of its weight.
    pub weight_elements: usize,
    /// Bits of its codes.
    pub bits: u32,
    /// Signal-to-noise ratio of its weight, decibels.
    pub weight_snr_db: Option<f64>,
    /// Signal-to-noise ratio of its result, all quantisation before it included, decibels.
    pub snr_db: Option<f64>,
}

/// A node that is not quantised as the scheme would: it stays `f32`, or has 8 bits in place of 4.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// The node.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// `asked`, `head`, `cost` or `cost: 8 bits`.
    pub why: &'static str,
    /// Points lost when it alone is quantised, where that was measured.
    pub alone: Option<f64>,
}

/// What was done and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The scheme.
    pub scheme: &'static str,
    /// `accuracy`, `top-1` or `cosine`.
    pub metric: &'static str,
    /// Samples the ranges come from.
    pub calibrated_on: usize,
    /// Samples the accuracy comes from.
    pub measured_on: usize,
    /// The float model.
    pub before: Side,
    /// The written file.
    pub after: Side,
    /// `before.bytes / after.bytes`.
    pub smaller: f64,
    /// Points of accuracy lost.
    pub drop: Option<f64>,
    /// Points that may be lost.
    pub max_drop: Option<f64>,
    /// Whether no more was lost, and something was quantised.
    pub ok: bool,
    /// What is quantised.
    pub layers: Vec<Row>,
    /// What could be and is not.
    pub kept: Vec<Kept>,
}

/// The result.
pub struct Compressed {
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// What it costs.
    pub report: Report,
}

/// Why a layer is not quantised as the others: it cost too much, and stays `f32` or gets 8 bits.
const COST: &str = "cost";
const COST_WIDE: &str = "cost: 8 bits";

/// Samples whose results are compared layer by layer.
const SNR_SAMPLES: usize = 8;

/// Quantises a model and measures the result.
///
/// # Errors
/// [`CompressError`]; a gate that is not met is no error but `report.ok == false`.
pub fn compress(model: &Model<'_>, samples: &Samples<'_>, options: &Options<'_>) -> Result<Compressed, CompressError> {
    let session_options = SessionOptions { threads: options.threads, ..SessionOptions::default() };
    let (path, source, mut before, external) = match model {
        Model::Bundle(b) => {
            let path = graph_path(b);
            let of = |f: &String| b.manifest().file(f).map_or(0, |f| f.size);
            let external = external_files(b)?.iter().map(of).sum();
            (path.clone(), b.read(&path)?.into_owned(), Session::from_bundle(b, session_options.clone())?, external)
        }
        Model::Onnx { path, bytes } => {
            let (beside, name) = (Beside::of(path), path.display().to_string());
            let read = |file: &str, needed: u64| beside.read(file, needed);
            let session = Session::open(*bytes, &name, session_options.clone(), Some(&read))?;
            (name, bytes.to_vec(), session, beside.bytes())
        }
    };
    let graph = before.graph().clone();
    let run = RunOptions { pool: Arc::new(Pool::new(options.threads)), ..RunOptions::default() };
    let data = gather(model, samples, &before, options)?;

    let mut settings = options.settings.clone();
    let mut kept: BTreeMap<String, &'static str> = BTreeMap::new();
    if let Model::Bundle(b) = model
        && b.contains("train/recipe.json")
    {
        // The learner computes the logits from the feature with the shipped head: both must stay exact.
        let recipe = b.recipe()?;
        kept.extend(head_nodes(&graph, &recipe.feature, &recipe.logits).into_iter().map(|n| (n, "head")));
        settings.fixed.extend([recipe.feature, recipe.logits]);
    }
    for pattern in options.keep {
        let matching = nodes_like(&graph, pattern);
        if matching.is_empty() {
            return Err(CompressError::NoMatch { pattern: pattern.clone() });
        }
        kept.extend(matching.into_iter().map(|n| (n, "asked")));
    }

    let scheme = settings.scheme.name;
    let prepared = Prepared::new(&graph, before.info().opset, &data.calibration, settings, &run)?;
    let task = Task::new(&data, &graph, options.agreement, &run)?;
    let always: BTreeSet<String> = kept.keys().cloned().collect();
    let mut quantised = prepared.apply(&always, &BTreeSet::new())?;
    let mut alone = BTreeMap::new();
    if let (Some(limit), true) = (options.max_drop, task.can_measure()) {
        let found = search::search(&prepared, quantised, &task, &always, limit, &run)?;
        kept.extend(found.kept.iter().map(|n| (n.clone(), COST)));
        kept.extend(found.wide.iter().map(|n| (n.clone(), COST_WIDE)));
        (quantised, alone) = (found.quantised, found.alone);
    }
    let onnx = import::to_onnx(&quantised.graph, &source)?;

    let mut after = Session::from_onnx(&onnx, &path, session_options)?;
    let (accuracy_before, latency_before) = measure(&task, &mut before)?;
    let (accuracy_after, latency_after) = measure(&task, &mut after)?;
    let drop = accuracy_before.zip(accuracy_after).map(|(a, b)| 100.0 * (a - b));
    let within = match (options.max_drop, drop) {
        (None, _) => true,
        (Some(limit), Some(drop)) => drop <= limit,
        // A limit that nobody could check is not met.
        (Some(_), None) => false,
    };
    let before =
        Side { bytes: source.len() as u64 + external, accuracy: accuracy_before, latency_p50_ms: latency_before };
    let after = Side { bytes: onnx.len() as u64, accuracy: accuracy_after, latency_p50_ms: latency_after };
    let ops: BTreeMap<&str, String> = graph.nodes.iter().map(|n| (n.name.as_str(), n.op.name().to_string())).collect();
    // Which layers there are does not depend on their bits, and 8 are found sooner.
    let everything: BTreeSet<String> = graph.nodes.iter().map(|n| n.name.clone()).collect();
    let could: BTreeSet<String> =
        prepared.apply(&BTreeSet::new(), &everything)?.layers.into_iter().map(|l| l.name).collect();
    let report = Report {
        scheme,
        metric: task.metric(),
        calibrated_on: data.calibration.len(),
        measured_on: task.len(),
        smaller: before.bytes as f64 / after.bytes as f64,
        before,
        after,
        drop,
        max_drop: options.max_drop,
        ok: within && !quantised.layers.is_empty(),
        layers: rows(&prepared, &quantised, &data.calibration, &run)?,
        kept: kept
            .into_iter()
            .filter(|(name, why)| *why == COST || *why == COST_WIDE || could.contains(name))
            .map(|(name, why)| Kept {
                op: ops.get(name.as_str()).cloned().unwrap_or_default(),
                alone: alone.get(&name).copied(),
                name,
                why,
            })
            .collect(),
    };
    Ok(Compressed { onnx, report })
}

/// The bundle with its graph replaced: a new golden output, the old bundle as its parent, no signature.
///
/// # Errors
/// [`CompressError::Bundle`] for a bundle that breaks a rule, [`CompressError::Session`] when the new graph does not run
/// its golden sample.
pub fn rebundle(bundle: &Bundle, onnx: &[u8]) -> Result<Bundle, CompressError> {
    let path = graph_path(bundle);
    let inside = external_files(bundle)?;
    let mut manifest = bundle.manifest().clone();
    manifest.parent = Some(bundle.digest());
    let mut writer = BundleWriter::new(manifest);
    for file in &bundle.manifest().files {
        // Tensors outside the graph's file are in it now.
        if file.path != path && !inside.contains(&file.path) {
            writer.add(&file.path, &file.role, bundle.read(&file.path)?.into_owned())?;
        }
    }
    writer.add(&path, "graph", onnx.to_vec())?;
    if bundle.contains("samples/input.npz") && bundle.contains("samples/expected.npz") {
        let input = npz::read_npz(&bundle.read("samples/input.npz")?)?;
        let named: BTreeSet<String> =
            npz::read_npz(&bundle.read("samples/expected.npz")?)?.into_iter().map(|(n, _)| n).collect();
        let options = SessionOptions { reference: true, ..SessionOptions::default() };
        let found = Session::from_onnx(onnx, &path, options)?.run(&input)?;
        let kept = found.iter().filter(|(n, _)| named.contains(n)).map(|(n, t)| (n.as_str(), t));
        writer.add("samples/expected.npz", "sample", npz::write_npz(kept)?)?;
    }
    Ok(writer.finish()?)
}

fn graph_path(bundle: &Bundle) -> String {
    bundle.manifest().graphs.first().map_or("onnx/model.onnx", |g| g.path.as_str()).to_string()
}

/// The files of a bundle that hold tensors of its first graph and of no other.
fn external_files(bundle: &Bundle) -> Result<BTreeSet<String>, CompressError> {
    let of = |graph: &str| -> Result<BTreeSet<String>, CompressError> {
        let named = import::external_files(&bundle.read(graph)?, &Limits::default())
            .map_err(|source| SessionError::Import { path: graph.to_string(), source })?;
        let folder = graph.rsplit_once('/').map_or(String::new(), |(f, _)| format!("{f}/"));
        Ok(named.into_iter().map(|name| format!("{folder}{name}")).filter(|f| bundle.contains(f)).collect())
    };
    let first = graph_path(bundle);
    let mut files = of(&first)?;
    for other in bundle.manifest().graphs.iter().filter(|g| g.path != first) {
        files.remove(&other.path);
        for shared in of(&other.path)? {
            files.remove(&shared);
        }
    }
    Ok(files)
}

/// Samples as the graph's inputs in order.
pub(crate) struct Gathered {
    calibration: Vec<Vec<Tensor>>,
    measure: Vec<Vec<Tensor>>,
    /// The class of each measured sample and the output that tells it.
    labels: Option<(String, Vec<usize>)>,
}

fn gather(
    model: &Model<'_>,
    samples: &Samples<'_>,
    session: &Session,
    options: &Options<'_>,
) -> Result<Gathered, CompressError> {
    let ordered = |named: Vec<(String, Tensor)>| -> Result<Vec<Tensor>, CompressError> {
        let given: Vec<_> = named.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
        session.graph().bind(&given).map_err(SessionError::from)?;
        let find = |name: &str| named.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        Ok(session.input_names().into_iter().filter_map(find).collect())
    };
    let mut out = Gathered { calibration: Vec::new(), measure: Vec::new(), labels: None };
    match (samples, model) {
        (Samples::None, _) => {}
        (Samples::Cases(paths), _) => {
            for path in paths.iter() {
                let inputs = ordered(Case::inputs(path)?)?;
                if out.calibration.len() < options.calibrate {
                    out.calibration.push(inputs.clone());
                }
                if out.measure.len() < options.measure {
                    out.measure.push(inputs);
                }
            }
        }
        (Samples::Dataset(data), Model::Bundle(bundle)) => {
            let preprocessor = Preprocessor::from_bundle(bundle)?;
            let labels = bundle.labels()?;
            let recipe = bundle.recipe()?;
            // What is right in another task is more than the largest output: the float model's outputs are the measure.
            let classes = recipe.task == "classification";
            let class_of = |label: &str| {
                let named = labels.iter().position(|l| l == label);
                named.or_else(|| label.parse().ok().filter(|&c| c < labels.len())).ok_or_else(|| CompressError::Data {
                    what: format!("the data says `{label}`, which is no label of the model"),
                })
            };
            let prepare = |row: &crate::dataset::Row| -> Result<Vec<Tensor>, CompressError> {
                ordered(preprocessor.prepare(&row.sample())?.0)
            };
            let (calibration, measured) = divide(data);
            for row in spread(&calibration, options.calibrate) {
                out.calibration.push(prepare(row)?);
            }
            let mut truths = Vec::new();
            for row in spread(&measured, options.measure) {
                out.measure.push(prepare(row)?);
                if classes {
                    truths.push(class_of(&row.label)?);
                }
            }
            out.labels = classes.then_some((recipe.logits, truths));
        }
        (Samples::Dataset(_), Model::Onnx { .. }) => {
            let what = "an ONNX file has no preprocessing and no labels: give --calib a directory of case*.npz, or make a \
                        bundle with `hone export`";
            return Err(CompressError::Data { what: what.into() });
        }
    }
    Ok(out)
}

/// Rows to calibrate with and rows to measure with: the split `test` is measured and the others calibrate; where there
/// is one split only, every second row does either.
fn divide(data: &Dataset) -> (Vec<&crate::dataset::Row>, Vec<&crate::dataset::Row>) {
    let (test, other): (Vec<_>, Vec<_>) = data.rows.iter().partition(|r| r.split == "test");
    if !test.is_empty() && !other.is_empty() {
        return (other, test);
    }
    let all = if test.is_empty() { other } else { test };
    let half = |rest: usize| all.iter().enumerate().filter(|(i, _)| i % 2 == rest).map(|(_, r)| *r).collect();
    (half(1), half(0))
}

/// At most `n` of the rows, evenly spread: data sets are sorted by modality or class.
fn spread<'a, T: Copy>(rows: &'a [T], n: usize) -> impl Iterator<Item = T> + 'a {
    let n = n.min(rows.len());
    (0..n).map(move |i| rows[i * rows.len() / n])
}

/// The nodes between a bundle's feature and its logits.
fn head_nodes(graph: &Graph, feature: &str, logits: &str) -> BTreeSet<String> {
    let (Some(from), Some(to)) = (graph.port(feature), graph.port(logits)) else { return BTreeSet::new() };
    let mut reached = BTreeSet::from([from]);
    let mut below = BTreeSet::new();
    for (i, n) in graph.nodes.iter().enumerate() {
        if n.inputs.iter().flatten().any(|v| reached.contains(v)) {
            reached.extend(n.outputs.iter().flatten());
            below.insert(i);
        }
    }
    let mut needed = BTreeSet::from([to]);
    let mut names = BTreeSet::new();
    for (i, n) in graph.nodes.iter().enumerate().rev() {
        if n.outputs.iter().flatten().any(|v| needed.contains(v)) && below.contains(&i) {
            needed.extend(n.inputs.iter().flatten());
            names.insert(n.name.clone());
        }
    }
    names
}

/// Nodes whose name, or the name of one of whose results, fits the pattern.
fn nodes_like(graph: &Graph, pattern: &str) -> Vec<String> {
    let fits = |name: &str| glob(pattern.as_bytes(), name.as_bytes());
    let named =
        |n: &&crate::graph::Node| fits(&n.name) || n.outputs.iter().flatten().any(|&v| fits(&graph.values[v].name));
    graph.nodes.iter().filter(named).map(|n| n.name.clone()).collect()
}

/// Accuracy and median time of a session on the task's samples.
fn measure(task: &Task<'_>, session: &mut Session) -> Result<(Option<f64>, Option<f64>), CompressError> {
    if !task.can_measure() {
        return Ok((None, None));
    }
    let names: Vec<String> = session.input_names().into_iter().map(String::from).collect();
    let mut times = Vec::with_capacity(task.len());
    let score = task.score(|sample| {
        let inputs: Vec<(String, Tensor)> = names.iter().cloned().zip(sample.iter().cloned()).collect();
        let start = Instant::now();
        let found = session.run(&inputs)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        Ok(found)
    })?;
    let latency = Latency::from_samples(&times).map(|l| l.p50).ok();
    Ok((Some(score.value), latency))
}

/// The quantised layers with how much of their results is noise.
fn rows(
    prepared: &Prepared,
    quantised: &Quantised,
    samples: &[Vec<Tensor>],
    run: &RunOptions,
) -> Result<Vec<Row>, CompressError> {
    let few = &samples[..samples.len().min(SNR_SAMPLES)];
    let of = |graph: &Graph, name: fn(&Layer) -> &String| {
        task::values(graph, quantised.layers.iter().map(|l| name(l).as_str()), few, run)
    };
    let want = of(prepared.graph(), |l| &l.output)?;
    let found = of(&quantised.graph, |l| &l.quantised_output)?;
    let ratio = |i: usize| {
        let (mut signal, mut noise) = (0f64, 0f64);
        for (a, b) in want.iter().zip(&found) {
            let (Ok(a), Ok(b)) = (a[i].as_f32(), b[i].as_f32()) else { return None };
            for (x, y) in a.iter().zip(b) {
                signal += f64::from(*x).powi(2);
                noise += (f64::from(*x) - f64::from(*y)).powi(2);
            }
        }
        Some(10.0 * (signal / noise).log10()).filter(|v| v.is_finite())
    };
    let row = |(i, l): (usize, &Layer)| Row {
        name: l.name.clone(),
        op: l.op,
        weight_elements: l.weight_elements,
        bits: l.bits,
        weight_snr_db: l.weight_snr_db.filter(|v| v.is_finite()),
        snr_db: ratio(i),
    };
    Ok(quantised.layers.iter().enumerate().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_globs() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("conv*", "conv1", true),
            ("*.weight", "a.b.weight", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("?1", "a1", true),
            ("?1", "1", false),
            ("conv", "conv1", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn rows_are_spread_and_the_test_split_is_measured() {
        let rows: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&rows, 5).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
        assert_eq!(spread(&rows, 50).count(), 10);
        let row = |split: &str| crate::dataset::Row { split: split.into(), ..Default::default() };
        let both = Dataset { rows: vec![row("stream"), row("test"), row("stream")], ..Default::default() };
        assert_eq!((divide(&both).0.len(), divide(&both).1.len()), (2, 1));
        let one = Dataset { rows: vec![row("test"); 5], ..Default::default() };
        assert_eq!((divide(&one).0.len(), divide(&one).1.len()), (2, 3));
    }
}
