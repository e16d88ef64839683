//! `hone eval`: how good is a model, with and without what it learned.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hone_runtime::Class;
use hone_runtime::adapters::{AdapterId, AdapterStore};
use hone_runtime::app::classes::Head;
use hone_runtime::bundle::Bundle;
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::learn::task::Judged;
use hone_runtime::learn::{Classes, Kept};
use hone_runtime::metrics::{self, Calibration, Classification, Latency};
use hone_runtime::model::{Model, Seen};
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde::Serialize;

use crate::device::{self, Choice};
use crate::exit::fail;
use crate::precision::{self, Precise};
use crate::{input, output, report};

/// Measures a model on labelled data: accuracy, calibration, and the figures of its task (of classes precision, recall,
/// F1 and confusion; of alarms FAR, FRR and AUC; of numbers the mean error; of sets F1; of search recall).
#[derive(Args)]
pub(crate) struct Eval {
    /// A .hone bundle.
    pub(crate) bundle: PathBuf,
    /// A directory with index.csv (split,label,image,audio,text), or with CLASS/FILE or SPLIT/CLASS/FILE.
    #[arg(long, value_name = "DIR", required_unless_present = "off_policy")]
    data: Option<PathBuf>,
    /// Estimate from the journal of --state how often an adapter would have been right, without data: only where
    /// answers were explored (`hone listen --display explore`).
    #[arg(long, requires = "state", conflicts_with_all = ["data", "min_accuracy", "report"])]
    off_policy: bool,
    /// Which split of the data.
    #[arg(long, default_value = "test")]
    split: String,
    /// The state directory whose adapter in use answers; without it the factory head does.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Two adapters to compare, each `factory`, `current` or an id; needs --state for all but factory.
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Option<Vec<String>>,
    /// Exit with 4 when the accuracy (of B, when comparing) is below this share.
    #[arg(long, value_name = "SHARE")]
    min_accuracy: Option<f64>,
    /// Where the model runs. A GPU answers as the CPU does, up to the order of sums.
    #[arg(long, default_value_t, conflicts_with = "off_policy")]
    device: Choice,
    /// What products of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Precise::F32)]
    precision: Precise,
    /// Writes a self-contained HTML report.
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// One JSON document in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The figures of one adapter on one data set.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) adapter: String,
    pub(crate) task: &'static str,
    /// The figures of a task that is no classification.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) measures: BTreeMap<&'static str, f64>,
    pub(crate) n: usize,
    pub(crate) accuracy: f64,
    pub(crate) accuracy_interval: (f64, f64),
    pub(crate) precision: f64,
    pub(crate) recall: f64,
    pub(crate) f1: f64,
    pub(crate) per_class: BTreeMap<String, PerClass>,
    pub(crate) confusion: Vec<Vec<u64>>,
    pub(crate) ece: f64,
    /// What it keeps of the source the bundle was made from.
    pub(crate) kept: Option<Kept>,
    #[serde(skip)]
    pub(crate) calibration: Calibration,
}

#[derive(Serialize)]
pub(crate) struct PerClass {
    pub(crate) precision: f64,
    pub(crate) recall: f64,
    pub(crate) f1: f64,
    pub(crate) support: u64,
}

#[derive(Serialize)]
pub(crate) struct LatencyMs {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) mean: f64,
}

/// What the verb found.
#[derive(Serialize)]
pub(crate) struct Document {
    schema: &'static str,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compared_with: Option<Figures>,
    pub(crate) latency_ms: LatencyMs,
    pub(crate) labels: Vec<String>,
    pub(crate) data: String,
    pub(crate) model: String,
    device: &'static str,
    /// Why this device, and what of the last plan ran where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    where_it_ran: Vec<String>,
    precision: &'static str,
    /// Why, where another than f32 was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision_why: Option<String>,
    /// How often each lossy step happened.
    pub(crate) notes: BTreeMap<String, usize>,
}

impl Eval {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.off_policy {
            return super::offpolicy::run(self);
        }
        let Some(dir) = &self.data else {
            return Err(fail(Class::Usage, "give --data DIR, or --off-policy with --state DIR"));
        };
        let data = Dataset::from_dir(dir)?;
        let precision = self.precision.asked();
        let options = |device| SessionOptions { precision, device, ..SessionOptions::default() };
        let chosen = self.device.for_bundle(&self.bundle, self.precision, options)?;
        if let Some(why) = &chosen.why {
            output::say(format!("hone: {why}"));
        }
        let mut model = Model::open(Bundle::open(&self.bundle)?, options(chosen.device))?;
        if let Some(told) = precision::told(model.session().precision()) {
            output::say(format!("hone: {told}"));
        }
        let heads = self.wanted().iter().map(|name| self.head(&model, name)).collect::<anyhow::Result<Vec<_>>>()?;
        // The one with the most classes tells what the data may say; both answer in its words.
        let classes = heads.iter().map(|(_, h)| &h.classes).max_by_key(|c| c.len()).cloned();
        let classes = classes.unwrap_or_else(|| Classes::shipped(model.labels()));
        let mut seen: Vec<(Seen, Truth)> = Vec::new();
        let mut notes = BTreeMap::new();
        if data.split(&self.split).next().is_none() {
            let splits: std::collections::BTreeSet<&str> = data.rows.iter().map(|r| r.split.as_str()).collect();
            let known: Vec<&str> = splits.into_iter().collect();
            return Err(fail(
                Class::Invalid,
                format!("{} has no split `{}`; it has {}", dir.display(), self.split, known.join(", ")),
            ));
        }
        let mut all = Vec::new();
        for (name, head) in &heads {
            let body = model.body().cloned();
            self.put_on(&mut model, name)?;
            // Two adapters on one body differ in what they make of the same features.
            if seen.is_empty() || model.body() != body.as_ref() {
                notes.clear();
                seen = look(&mut model, &classes, data.split(&self.split), &mut notes)?;
            }
            all.push(figures(&model, name.clone(), head, &classes, &seen)?);
        }
        let told = device::told(model.session().on_gpu().as_ref());
        if let Some(told) = &told {
            output::say(format!("hone: {told}"));
        }
        let ms: Vec<f64> = seen.iter().map(|(s, _)| s.latency.as_secs_f64() * 1e3).collect();
        let latency = Latency::from_samples(&ms)?;
        let compared_with = if all.len() == 2 { Some(all.remove(0)) } else { None };
        let document = Document {
            schema: "hone.eval/1",
            figures: all.remove(0),
            compared_with,
            latency_ms: LatencyMs { p50: latency.p50, p95: latency.p95, p99: latency.p99, mean: latency.mean },
            labels: labels(&model, &classes, &seen)?,
            data: dir.display().to_string(),
            model: model.bundle().manifest().name.clone(),
            device: chosen.name,
            where_it_ran: chosen.why.into_iter().chain(told).collect(),
            precision: model.session().precision().name(),
            precision_why: precision::why(model.session().precision()),
            notes,
        };
        if let Some(path) = &self.report {
            input::write(path, report::html(&document, &latency).as_bytes())?;
            eprintln!("report: {}", path.display());
        }
        if self.json {
            output::json(&document)?;
        } else {
            text(&document)?;
        }
        if self.min_accuracy.is_some_and(|m| document.figures.accuracy < m) {
            eprintln!("accuracy is below --min-accuracy");
            return Ok(ExitCode::from(Class::Gate.exit_code()));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The adapters asked for.
    pub(crate) fn wanted(&self) -> Vec<String> {
        match &self.compare {
            Some(pair) => pair.clone(),
            None if self.state.is_some() => vec!["current".to_string()],
            None => vec!["factory".to_string()],
        }
    }

    /// Puts on the body an adapter stands on.
    fn put_on(&self, model: &mut Model, name: &str) -> anyhow::Result<()> {
        let Some(dir) = &self.state else { return Ok(()) };
        let store = AdapterStore::new(&StateDir::at(dir), model.bundle().base_digest())?;
        let id = (name != "factory").then(|| name.parse::<AdapterId>()).transpose()?;
        Ok(model.put_on(&store, id.as_ref())?)
    }

    /// The name and the head of an adapter.
    fn head(&self, model: &Model, name: &str) -> anyhow::Result<(String, Head)> {
        let state = self.state.as_ref().map(StateDir::at);
        if name == "factory" {
            return Ok((name.to_string(), Head::new(model, state.as_ref(), None)?));
        }
        let Some(state) = state else {
            return Err(fail(Class::Usage, format!("adapter `{name}` lies in a state directory: give --state DIR")));
        };
        let store = AdapterStore::new(&state, model.bundle().base_digest())?;
        let id = match name {
            "current" => store.current_id()?,
            id => Some(id.parse::<AdapterId>()?),
        };
        let adapter = id.as_ref().map(|id| store.load(id)).transpose()?;
        let name = id.map_or_else(|| "factory".to_string(), |id| id.to_string());
        Ok((name, Head::new(model, Some(&state), adapter)?))
    }
}

/// What is right.
struct Truth {
    class: usize,
    /// The very number, where the task is about numbers.
    value: Option<f64>,
}

/// What the model sees in every row, with what is right.
fn look<'a>(
    model: &mut Model,
    classes: &Classes,
    rows: impl Iterator<Item = &'a Row>,
    notes: &mut BTreeMap<String, usize>,
) -> anyhow::Result<Vec<(Seen, Truth)>> {
    let mut seen = Vec::new();
    for row in rows {
        let truth = match model.task().is_plain() {
            true => classes.class_of(&row.label),
            false => model.class_of(&row.label),
        };
        let truth = truth.ok_or_else(|| {
            fail(Class::Invalid, format!("the data says `{}`, which is no label of the model", row.label))
        })?;
        let s = model.see(&row.sample())?;
        for n in &s.notes {
            *notes.entry(n.code.clone()).or_insert(0) += 1;
        }
        // Thousands of pictures need not be in memory to be counted.
        let value = model.task().value(&row.label);
        seen.push((Seen { inputs: Vec::new(), ..s }, Truth { class: truth, value }));
    }
    Ok(seen)
}

fn figures(
    model: &Model,
    adapter: String,
    head: &Head,
    classes: &Classes,
    seen: &[(Seen, Truth)],
) -> anyhow::Result<Figures> {
    let task = model.task();
    // Merged classes are not among the figures: the others keep their order.
    let visible = classes.visible();
    let place = |class: usize| visible.iter().position(|&c| c == class).unwrap_or_default();
    let (mut truths, mut answers, mut confidence, mut right) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut judged = Vec::new();
    for (s, truth) in seen {
        let served = head.logits(s)?;
        let class = classes.top(&served);
        let probabilities = classes.probabilities(&served);
        truths.push(place(truth.class));
        answers.push(place(class));
        confidence.push(f64::from(task.mass(&probabilities, class)));
        right.push(task.near(class, truth.class));
        if !task.is_plain() {
            judged.push(Judged { probabilities, truth: truth.class, value: truth.value });
        }
    }
    let calibration = Calibration::from_answers(&confidence, &right)?;
    let (mut c, mut names) = if task.has_classes() {
        (Classification::from_pairs(&truths, &answers, visible.len())?, classes.visible_names())
    } else {
        // Right or wrong is all that a table of classes would say.
        let right: Vec<usize> = right.iter().map(|&r| usize::from(r)).collect();
        let c = Classification::from_pairs(&vec![1; right.len()], &right, 2)?;
        (Classification { per_class: Vec::new(), confusion: Vec::new(), ..c }, Vec::new())
    };
    if let Some((labels, of)) = task.by_label(&judged)? {
        let mean = |f: fn(&metrics::PerClass) -> f64| of.per_label.iter().map(f).sum::<f64>() / labels.len() as f64;
        (c.macro_precision, c.macro_recall, c.macro_f1) = (mean(|p| p.precision), mean(|p| p.recall), of.macro_f1);
        (c.per_class, names) = (of.per_label, labels);
    }
    let per_class = names
        .into_iter()
        .zip(&c.per_class)
        .map(|(l, p)| (l, PerClass { precision: p.precision, recall: p.recall, f1: p.f1, support: p.support }))
        .collect();
    let measures = if judged.is_empty() { BTreeMap::new() } else { task.measures(&judged)?.into_iter().collect() };
    Ok(Figures {
        adapter,
        task: task.name(),
        measures,
        n: c.n,
        accuracy: c.accuracy,
        accuracy_interval: c.accuracy_interval,
        precision: c.macro_precision,
        recall: c.macro_recall,
        f1: c.macro_f1,
        per_class,
        confusion: c.confusion,
        ece: calibration.expected_calibration_error,
        kept: head.kept(model)?,
        calibration,
    })
}

/// The labels figures are given by: the classes, or the labels of sets; none where answers are too many for a table.
fn labels(model: &Model, classes: &Classes, seen: &[(Seen, Truth)]) -> anyhow::Result<Vec<String>> {
    if model.task().has_classes() {
        return Ok(classes.visible_names());
    }
    let judged: Vec<Judged> =
        seen.iter().map(|(s, t)| Judged { probabilities: s.logits.clone(), truth: t.class, value: t.value }).collect();
    Ok(model.task().by_label(&judged)?.map_or_else(Vec::new, |(labels, _)| labels))
}

fn text(d: &Document) -> std::io::Result<()> {
    for f in d.compared_with.iter().chain([&d.figures]) {
        if !f.measures.is_empty() {
            let figures: Vec<String> = f.measures.iter().map(|(name, v)| format!("{name} {v:.3}")).collect();
            output::line(format!("adapter {}: {}: {}", f.adapter, f.task, figures.join(", ")))?;
        }
        if f.per_class.is_empty() {
            output::line(format!(
                "adapter {}: right {:.2} % [{:.1}, {:.1}] of {}; calibration error {:.3}; {}",
                f.adapter,
                100.0 * f.accuracy,
                100.0 * f.accuracy_interval.0,
                100.0 * f.accuracy_interval.1,
                f.n,
                f.ece,
                output::kept(f.kept.as_ref())
            ))?;
            continue;
        }
        output::line(format!(
            "adapter {}: accuracy {:.2} % [{:.1}, {:.1}] on {}; macro precision {:.2} %, recall {:.2} %, F1 {:.2} %; \
             calibration error {:.3}; {}",
            f.adapter,
            100.0 * f.accuracy,
            100.0 * f.accuracy_interval.0,
            100.0 * f.accuracy_interval.1,
            f.n,
            100.0 * f.precision,
            100.0 * f.recall,
            100.0 * f.f1,
            f.ece,
            output::kept(f.kept.as_ref())
        ))?;
    }
    if !d.labels.is_empty() {
        output::line("")?;
        by_class(d)?;
    }
    let l = &d.latency_ms;
    output::line(format!("\nlatency {:.2} ms p50, {:.2} p95, {:.2} p99, preprocessing included", l.p50, l.p95, l.p99))?;
    for (code, n) in &d.notes {
        output::line(format!("note: {code} × {n}"))?;
    }
    Ok(())
}

fn by_class(d: &Document) -> std::io::Result<()> {
    let width = d.labels.iter().map(|l| l.chars().count()).max().unwrap_or(1).max(5);
    output::line(format!("{:>width$}  precision  recall      F1  samples", "class"))?;
    for l in &d.labels {
        let p = &d.figures.per_class[l];
        output::line(format!(
            "{l:>width$}  {:8.2} %{:7.2} %{:7.2} %  {:7}",
            100.0 * p.precision,
            100.0 * p.recall,
            100.0 * p.f1,
            p.support
        ))?;
    }
    if d.figures.confusion.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::line("rows: truth, columns: answer")?;
    for (l, row) in d.labels.iter().zip(&d.figures.confusion) {
        let cells: String = row.iter().map(|n| format!("{n:5}")).collect();
        output::line(format!("{l:>width$}{cells}"))?;
    }
    Ok(())
}
