//! Tuning on labelled data.
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hone_runtime::Class;
use hone_runtime::adapters::{AdapterFile, AdapterId, AdapterStore, Tuned};
use hone_runtime::app::App;
use hone_runtime::app::classes::Head;
use hone_runtime::bundle::{Bundle, Manifest};
use hone_runtime::choice;
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::export::{Export, Source};
use hone_runtime::graph::Graph;
use hone_runtime::learn::{self, Action, Decision, GateConfig, Mode, ObjectiveDef};
use hone_runtime::modality::Preprocessor;
use hone_runtime::model::{Model, Seen};
use hone_runtime::plan::{Bf16, Profile, RunOptions};
use hone_runtime::scope::{self, Spec};
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::state::StateDir;
use hone_runtime::train::{Objective, Optimizer, TrainOptions};
use hone_runtime::tune::{
    Course, Epoch, Examples, LOSSES, Labelled, Loss, Outcome, Progress, Settings, Stored, Wants, Work, judge,
};
use serde::Serialize;

use super::{Method, Schedule, Tune};
use crate::cmd::run::is_onnx;
use crate::device;
use crate::exit::fail;
use crate::machine::{anonymous_bytes, peak_rss_bytes, rss_bytes};
use crate::steps::StepRow;
use crate::{input, output};

/// What makes small what an objective of presses says of them.
fn of_presses(objective: &ObjectiveDef) -> Loss {
    Loss { name: objective.name, doc: objective.summary, objective: Objective::FenchelYoung, wants: Wants::Targets }
}

/// A class answered and the right one.
type Answer = (usize, usize);

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    adapter: String,
    scope: String,
    objective: &'a str,
    presses: usize,
    steps: u64,
    loss: &'a [f32],
    epochs: &'a [Epoch],
    /// The epoch whose parameters these are.
    best_epoch: Option<u64>,
    /// Accuracy on the validation samples where they tell classes, else the loss.
    before: Option<f64>,
    after: Option<f64>,
    validated_on: usize,
    parameters: usize,
    planned_bytes: usize,
    recomputed: usize,
    /// Features of a body that stays: of how many samples, how many kept, their bytes, and the time for one of them.
    features: Option<Features>,
    peak_bytes: Option<u64>,
    /// What the process took beyond what it held when the model and the data were there.
    peak_increment_bytes: Option<u64>,
    /// The same without pages of the program file, which take no memory that others want: read after each step.
    anonymous_increment_bytes: Option<u64>,
    step_ms: Option<f64>,
    /// What of the weights that do not learn was multiplied in bf16: nothing, codes of 8 bits, or all weights.
    bf16: &'static str,
    /// What of a step ran on the GPU, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    resumed_at: Option<u64>,
    ended: Option<&'static str>,
    published: bool,
    reason: String,
    seconds: f64,
    #[serde(skip_serializing_if = "<[StepRow]>::is_empty")]
    profile: &'a [StepRow],
}

#[derive(Serialize)]
struct Features {
    samples: usize,
    kept: usize,
    bytes: usize,
    ms_each: Option<f64>,
}

impl From<Stored> for Features {
    fn from(s: Stored) -> Features {
        let ms_each = (s.kept > 0).then(|| s.time.as_secs_f64() * 1e3 / s.kept as f64);
        Features { samples: s.examples, kept: s.kept, bytes: s.bytes, ms_each }
    }
}

/// What a run was, for the report.
struct Done {
    outcome: Outcome,
    /// Why it ran where it ran, where that was measured.
    device_why: Option<String>,
    profile: Vec<StepRow>,
    run: String,
    resumed_at: Option<u64>,
    parameters: usize,
    /// Predictions with presses that it learned from, or was judged by.
    presses: usize,
    /// Bytes the process held before.
    held: Option<u64>,
    /// Anonymous memory beyond what there was before, at most.
    anonymous: Option<u64>,
    began: Instant,
}

impl Tune {
    /// Trains on labelled data.
    pub(super) fn on_data(&self, dir: &Path) -> anyhow::Result<ExitCode> {
        let name = self.objective.as_deref().unwrap_or("ce");
        let Some(loss) = LOSSES.iter().find(|l| l.name == name) else {
            let known: Vec<&str> = LOSSES.iter().map(|l| l.name).collect();
            let text = format!("there is no objective `{name}` for labelled data; there are {}", known.join(", "));
            return Err(fail(Class::Usage, text));
        };
        let data = Dataset::from_dir(dir)?;
        let rows: Vec<&Row> = match &self.split {
            Some(split) => data.split(split).collect(),
            None => data.rows.iter().filter(|r| r.split != "test").collect(),
        };
        if rows.is_empty() {
            let which = self.split.as_deref().map_or("but `test`".to_string(), |s| format!("`{s}`"));
            return Err(fail(Class::Invalid, format!("{} has no split {which} to learn from", dir.display())));
        }
        if is_onnx(&self.model) { self.onnx(loss, &rows) } else { self.bundle(loss, &rows) }
    }

    fn bundle(&self, loss: &Loss, rows: &[&Row]) -> anyhow::Result<ExitCode> {
        self.only_bundles_options()?;
        let state = StateDir::resolve(self.state.as_deref())?;
        let model = Model::open(Bundle::open(&self.model)?, SessionOptions::default())?;
        if !model.task().is_plain() && loss.wants == Wants::Classes {
            let without: Vec<&str> = LOSSES.iter().filter(|l| l.wants != Wants::Classes).map(|l| l.name).collect();
            let text = format!(
                "this model's task is {}: a label is no class of its outputs, which `--objective {}` needs. `--objective` \
                 {} train its body on .npz samples that hold what the outputs should be; its head learns from presses: \
                 hone listen",
                model.task().name(),
                loss.name,
                without.join(", ")
            );
            return Err(fail(Class::Unsupported, text));
        }
        let mut spec = self.spec(model.recipe().logits.clone(), None);
        if spec.targets.is_empty() {
            spec.targets.clone_from(&model.recipe().lora_targets);
        }
        let graph = model.factory().clone();
        let opset = model.session().info().opset;
        let class_of = |label: &str| model.class_of(label);
        let rows = rows.iter().copied();
        let examples = Labelled::new(&graph, Some(model.preprocessor()), rows, loss.wants, &class_of)?;
        self.put_in_use(&state, &model, loss, spec, opset, examples)
    }

    /// Trains on presses whose inputs were kept.
    pub(super) fn on_presses(&self) -> anyhow::Result<ExitCode> {
        if is_onnx(&self.model) {
            let text = "presses are about a bundle; give --data DIR to tune an .onnx file on labelled data";
            return Err(fail(Class::Usage, text));
        }
        self.only_bundles_options()?;
        let asked = self.objective_of_presses()?;
        let state = StateDir::resolve(self.state.as_deref())?;
        let open =
            || -> anyhow::Result<Model> { Ok(Model::open(Bundle::open(&self.model)?, SessionOptions::default())?) };
        // The lock is held while the presses are read, not while they train.
        let (objective, mut presses) = {
            let app = App::open(open()?, &state, self.guard.mode())?;
            let objective = match asked {
                Some(objective) => objective,
                None => learn::objective::find(&app.learner().config().objective).context("the learner's objective")?,
            };
            (objective, app.presses(objective, self.learning.discount)?)
        };
        let unheard = presses.unheard();
        if presses.count() == 0 || presses.training() == 0 && unheard > 0 {
            let text = match unheard {
                0 => format!(
                    "no press with its input is kept in {}: `hone listen --keep-inputs 64MiB` keeps them, `--scope \
                     head` needs none",
                    state.root().display()
                ),
                n => format!(
                    "{n} predictions with presses have their inputs kept in {}, but `{}` learns from none of them: it \
                     takes {}",
                    state.root().display(),
                    objective.name,
                    objective.learns_from.join(", ")
                ),
            };
            return Err(fail(Class::Failed, text));
        }
        let mut model = open()?;
        presses.refer_to(&mut model)?;
        let mut spec = self.spec(model.recipe().logits.clone(), None);
        if spec.targets.is_empty() {
            spec.targets.clone_from(&model.recipe().lora_targets);
        }
        let opset = model.session().info().opset;
        self.put_in_use(&state, &model, &of_presses(objective), spec, opset, presses)
    }

    /// Trains a bundle's model and puts the result before the gate.
    fn put_in_use(
        &self,
        state: &StateDir,
        model: &Model,
        loss: &Loss,
        spec: Spec,
        opset: i64,
        mut examples: impl Examples,
    ) -> anyhow::Result<ExitCode> {
        let base = model.bundle().base_digest().to_string();
        let graph = model.factory().clone();
        state.create()?;
        let place = |run: &str| state.tune().join(format!("{run}.checkpoint"));
        let done = self.train(&graph, opset, spec, loss, &mut examples, &base, place)?;
        let outcome = &done.outcome;
        let tuned = outcome.scoped.with(&outcome.tensors)?;
        let options = run_options(self.threads);
        let mut answers =
            |graph: &Graph| judge::answers(graph, &outcome.spec.output, &mut examples, &outcome.validation, &options);
        let (candidate, factory) = (answers(&tuned)?, answers(&graph)?);
        // What is in use answers with its own body and Θ.
        let mut using = Model::open(Bundle::open(&self.model)?, SessionOptions::default())?;
        let store = AdapterStore::new(state, &base)?;
        using.put_on(&store, store.current_id()?.as_ref())?;
        let head = Head::new(&using, Some(state), store.current()?)?;
        let names = graph.input_names();
        let mut incumbent = Vec::new();
        for &i in &outcome.validation {
            let Some(truth) = examples.class(i) else { continue };
            let inputs = names.iter().cloned().zip(examples.example(i)?.inputs).collect::<Vec<_>>();
            let (feature, logits) = using.look(&inputs)?;
            let served = head.logits(&Seen { feature, logits, ..Seen::default() })?;
            incumbent.push((head.classes.top(&served), truth));
        }
        let mut decision = self.judged(outcome, &candidate, &incumbent, &factory);
        let (mut adapter, mut published) = ("none".to_string(), false);
        if self.dry_run {
            decision.reason = "--dry-run: nothing was published".into();
        } else {
            let leaves = Tuned { spec: outcome.spec.clone(), run: done.run.clone(), tensors: outcome.tensors.clone() };
            let mut app = App::open(using, state, self.guard.mode())?;
            let id: Option<AdapterId> = app.publish_tuned(leaves, loss.name, done.presses as u64, &decision)?;
            published = id.is_some();
            adapter = app.current().map_or("factory".into(), |a| a.to_string());
            remove(&place(&done.run));
        }
        let figures = (judge::accuracy(&incumbent), judge::accuracy(&candidate));
        self.report(loss, &done, adapter, published, &decision, figures)
    }

    /// The gate's decision, in words about samples. Where they have no classes the loss decides: what is no smaller than
    /// before the first step is not published.
    fn judged(&self, outcome: &Outcome, candidate: &[Answer], incumbent: &[Answer], factory: &[Answer]) -> Decision {
        let config = GateConfig { mode: self.guard.mode(), ..GateConfig::default() };
        let mut decision = judge::judge(&config, candidate, incumbent, factory);
        let lowest = outcome.epochs.iter().filter_map(|e| e.validation).reduce(f32::min);
        if let (true, false, Some(before), Some(lowest)) =
            (candidate.is_empty(), config.mode == Mode::Off, outcome.before, lowest)
        {
            let n = outcome.validation.len();
            (decision.action, decision.reason) = if lowest < before {
                (Action::Publish, format!("the loss on {n} validation samples fell from {before:.4} to {lowest:.4}"))
            } else {
                (Action::Veto, format!("the loss on {n} validation samples was {before:.4} and never fell below it"))
            };
            return decision;
        }
        decision.reason = decision.reason.replace("confirmed presses", "validation samples");
        decision.reason = decision.reason.replace("confirmed", "validation samples");
        decision
    }

    fn only_bundles_options(&self) -> anyhow::Result<()> {
        for (given, what) in [
            (self.output.is_some(), "--output"),
            (self.config.is_some(), "--config"),
            (self.logits.is_some(), "--logits"),
            (self.new_head, "--new-head"),
        ] {
            if given {
                return Err(fail(Class::Usage, format!("{what} is for .onnx files; a bundle says it itself")));
            }
        }
        Ok(())
    }

    fn onnx(&self, loss: &Loss, rows: &[&Row]) -> anyhow::Result<ExitCode> {
        let Some(output) = self.output.clone().or_else(|| self.dry_run.then(PathBuf::new)) else {
            return Err(fail(
                Class::Usage,
                "an .onnx file has no state directory: give --output OUT.safetensors for what is tuned",
            ));
        };
        let bytes = input::read(&self.model)?;
        let session = Session::from_onnx(&bytes, &self.model.display().to_string(), SessionOptions::default())?;
        let base = AdapterFile::digest(&bytes);
        // The graph has its weights; held while it trains, the file would be all of them once more.
        drop(bytes);
        let graph = session.graph();
        let first = session.output_names().first().map(ToString::to_string).unwrap_or_default();
        let logits = self.logits.clone().unwrap_or_else(|| scope::logits_of(graph, &first));
        let preprocessor = match &self.config {
            None => None,
            Some(dir) => {
                let manifest = Manifest::new("model", "0.0.0", "1970-01-01T00:00:00Z");
                let source =
                    Source { onnx: &self.model, config: Some(dir), check: None, manifest, modalities: &[], state: &[] };
                Some(Preprocessor::from_bundle(&Export::prepare(&source)?.into_bundle()?)?)
            }
        };
        // An .onnx file has no names of classes: numbers are its own, anything else is a new head's.
        let numbers = rows.iter().all(|r| r.label.parse::<usize>().is_ok());
        let mut labels: Vec<String> = rows.iter().map(|r| r.label.clone()).collect();
        labels.sort();
        labels.dedup();
        let new_head = (loss.wants == Wants::Classes && (self.new_head || !numbers)).then_some(labels.len());
        if new_head.is_none() {
            labels.clear();
        } else if !self.new_head && !self.json {
            output::say(format!(
                "hone: the model has no names for {}: its last layer becomes a new one",
                labels.join(", ")
            ));
        }
        let mut spec = self.spec(logits, new_head);
        if new_head.is_some() && !spec.scopes.iter().any(|s| s == "head") {
            spec.scopes.insert(0, "head".into());
        }
        let class_of = |label: &str| match new_head {
            Some(_) => labels.iter().position(|l| l == label),
            None => label.parse().ok(),
        };
        let mut examples = Labelled::new(graph, preprocessor.as_ref(), rows.iter().copied(), loss.wants, &class_of)?;
        let beside = |run: &str| output.with_extension(format!("{run}.checkpoint"));
        let done = self.train(graph, session.info().opset, spec, loss, &mut examples, &base, beside)?;
        let outcome = &done.outcome;
        let tuned = outcome.scoped.with(&outcome.tensors)?;
        let options = run_options(self.threads);
        let candidate = judge::answers(&tuned, &outcome.spec.output, &mut examples, &outcome.validation, &options)?;
        let before = match new_head {
            Some(_) => Vec::new(),
            None => judge::answers(graph, &outcome.spec.output, &mut examples, &outcome.validation, &options)?,
        };
        let mut decision = self.judged(outcome, &candidate, &before, &before);
        let mut published = false;
        if self.dry_run {
            decision.reason = "--dry-run: nothing was written".into();
        } else if decision.action == Action::Publish {
            let leaves = Tuned { spec: outcome.spec.clone(), run: done.run.clone(), tensors: outcome.tensors.clone() };
            let file = AdapterFile { base, tuned: leaves, labels };
            // Whole or not at all, as everything that may be killed.
            let fresh = output.with_extension("new");
            input::write(&fresh, &file.to_bytes()?)?;
            std::fs::rename(&fresh, &output)
                .map_err(|e| fail(Class::Store, format!("cannot write {}: {e}", output.display())))?;
            published = true;
        }
        remove(&beside(&done.run));
        let figures = (judge::accuracy(&before), judge::accuracy(&candidate));
        self.report(loss, &done, output.display().to_string(), published, &decision, figures)
    }

    fn spec(&self, output: String, new_head: Option<usize>) -> Spec {
        Spec {
            scopes: self.scope.clone(),
            output,
            new_head,
            rank: self.rank,
            alpha: self.alpha.unwrap_or(2.0 * self.rank as f32),
            targets: self.targets.clone(),
            freeze_a: self.freeze_a,
            seed: self.seed,
            tensors: Vec::new(),
        }
    }

    fn settings(&self, loss: &Loss, graph: &Graph) -> anyhow::Result<Settings> {
        let decay = self.weight_decay;
        let optimizer = match self.optimizer {
            Method::Adamw => {
                Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: decay.unwrap_or(0.01) }
            }
            Method::Sgd => Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: decay.unwrap_or(0.0) },
            Method::Adafactor => Optimizer::Adafactor {
                beta2_decay: -0.8,
                epsilon: 1e-3,
                threshold: 1.0,
                weight_decay: decay.unwrap_or(0.0),
            },
        };
        let bytes = |q: hone_runtime::app::Quota| usize::try_from(q.0).unwrap_or(usize::MAX);
        Ok(Settings {
            objective: loss.objective,
            optimizer,
            rate: self.lr.unwrap_or(if self.optimizer == Method::Sgd { 1e-2 } else { 1e-3 }),
            course: match self.schedule {
                Schedule::Constant => Course::Constant,
                Schedule::Linear => Course::Linear,
                Schedule::Cosine => Course::Cosine,
            },
            warmup: self.warmup,
            clip: self.clip,
            batch: self.batch,
            accumulate: self.accumulate,
            epochs: self.epochs,
            seed: self.seed,
            max_bytes: self.max_memory.map(bytes),
            validation: self.validation,
            patience: self.patience,
            budget: self.budget,
            sparse_bytes: bytes(self.sparse_bytes),
            bf16_by_speed: self.precision.by_speed(graph),
        })
    }

    fn train(
        &self,
        graph: &Graph,
        opset: i64,
        spec: Spec,
        loss: &Loss,
        examples: &mut dyn Examples,
        base: &str,
        place: impl Fn(&str) -> PathBuf,
    ) -> anyhow::Result<Done> {
        let (began, held) = (Instant::now(), rss_bytes());
        let (before, mut most) = (anonymous_bytes(), 0);
        let presses = if loss.objective == Objective::FenchelYoung { examples.count() } else { 0 };
        let profile = self.profile.then(|| Arc::new(Profile::default()));
        let bf16 = self.precision.bf16(graph);
        let on =
            |device| TrainOptions { profile: profile.clone(), device, bf16, ..TrainOptions::on_threads(self.threads) };
        let settings = self.settings(loss, graph)?;
        let chosen = self.device.choose(
            || {
                let (scopes, digest) = (spec.scopes.join(","), base.rsplit(':').next().unwrap_or(base));
                let rows = format!("{} × {} examples", settings.accumulate, settings.batch);
                let digest = digest.get(..12).unwrap_or(digest);
                Ok(format!("a step of {scopes} of {digest} | {rows} | {} threads", self.threads))
            },
            |device, other| {
                let (spec, settings, options) = (spec.clone(), settings.clone(), on(device));
                let mut work =
                    Work { graph, opset, spec, settings, examples: &mut *examples, options, checkpoint: None };
                Ok(work.timed(|step| choice::fastest_ms(device::BUDGET, other, step))?)
            },
        )?;
        let (options, device_why) = (on(chosen.device), chosen.why);
        if let Some(why) = device_why.as_ref().filter(|_| !self.json) {
            output::say(format!("hone tunes: {why}"));
        }
        let mut work = Work { graph, opset, spec, settings, examples, options, checkpoint: None };
        let run = work.identity(base);
        if !self.dry_run {
            work.checkpoint = Some((place(&run), self.checkpoint));
        }
        let quiet = self.json;
        let (mut resumed_at, mut parameters) = (None, 0);
        let mut said = Instant::now();
        let often = if std::io::stderr().is_terminal() { Duration::from_secs(1) } else { Duration::from_secs(10) };
        let outcome = work.run(&mut |what| {
            most = most.max(anonymous_bytes().unwrap_or(0));
            match what {
                Progress::Planned { parameters: n, .. } => parameters = n,
                Progress::Resumed { step } => resumed_at = Some(step),
                _ => {}
            }
            let due = !matches!(what, Progress::Step { .. }) || said.elapsed() >= often;
            if !quiet && due {
                said = Instant::now();
                output::say(format!("hone tunes: {}", line(&what)));
            }
        })?;
        let anonymous = before.map(|before| most.saturating_sub(before));
        // What a run before this one did was not measured.
        let taken = outcome.steps.saturating_sub(resumed_at.unwrap_or(0)) as usize;
        let profile = profile.map_or(Vec::new(), |profile| StepRow::of(&profile, taken));
        Ok(Done { outcome, device_why, profile, run, resumed_at, parameters, presses, held, anonymous, began })
    }

    fn report(
        &self,
        loss: &Loss,
        done: &Done,
        adapter: String,
        published: bool,
        decision: &Decision,
        accuracies: (Option<f64>, Option<f64>),
    ) -> anyhow::Result<ExitCode> {
        let o = &done.outcome;
        let lowest = o.epochs.iter().filter_map(|e| e.validation).chain(o.before).fold(f32::INFINITY, f32::min);
        let (before, after) = match accuracies {
            (before, Some(after)) => (before, Some(after)),
            _ => (o.before.map(f64::from), lowest.is_finite().then(|| f64::from(lowest))),
        };
        let document = Document {
            schema: "hone.tune/1",
            adapter,
            scope: o.spec.scopes.join(","),
            objective: loss.name,
            presses: done.presses,
            steps: o.steps,
            loss: &o.losses,
            epochs: &o.epochs,
            best_epoch: o.best,
            before,
            after,
            validated_on: o.validation.len(),
            parameters: done.parameters,
            planned_bytes: o.needs.total(),
            recomputed: o.needs.step.recomputed,
            features: o.needs.stored.map(Features::from),
            peak_bytes: peak_rss_bytes(),
            peak_increment_bytes: peak_rss_bytes().zip(done.held).map(|(peak, held)| peak.saturating_sub(held)),
            anonymous_increment_bytes: done.anonymous,
            step_ms: o.step.map(|t| t.as_secs_f64() * 1e3),
            bf16: o.bf16.words(),
            device: {
                let told = done.device_why.iter().cloned().chain(device::told(o.on_gpu.as_ref()));
                Some(told.collect::<Vec<_>>().join("; ")).filter(|told| !told.is_empty())
            },
            resumed_at: done.resumed_at,
            ended: o.ended,
            published,
            reason: decision.reason.clone(),
            seconds: done.began.elapsed().as_secs_f64(),
            profile: &done.profile,
        };
        if self.json {
            output::json(&document)?;
        } else {
            let what = if accuracies.1.is_some() { "accuracy" } else { "loss" };
            let number = |v: Option<f64>| v.map_or("unknown".to_string(), |v| format!("{v:.4}"));
            output::line(format!(
                "{} steps, {} numbers trained; {what} on {} validation samples {} → {}{}",
                o.steps,
                done.parameters,
                o.validation.len(),
                number(before),
                number(after),
                o.ended.map_or(String::new(), |e| format!("; ended because {e}"))
            ))?;
            let outcome = match (published, is_onnx(&self.model)) {
                (true, true) => format!("{} is written", document.adapter),
                (true, false) => format!("adapter {} is in use", document.adapter),
                (false, _) => "nothing published".into(),
            };
            output::line(format!("{outcome}: {}", document.reason))?;
            match o.bf16 {
                Bf16::Nothing => {}
                Bf16::Codes if done.resumed_at.is_some() => {
                    output::line("int8 weights were multiplied in bf16, as when the run began")?
                }
                Bf16::Codes => {
                    output::line("int8 weights were multiplied in bf16, which this CPU does faster than f32")?
                }
                Bf16::Weights => output::line("weights that did not learn were multiplied in bf16, as was asked for")?,
            }
            if let Some(told) = &document.device {
                output::line(told)?;
            }
            if !done.profile.is_empty() {
                output::line(StepRow::table(&done.profile, &self.model.display().to_string()))?;
            }
        }
        let refused = !self.dry_run && !published;
        Ok(if refused { ExitCode::from(Class::Gate.exit_code()) } else { ExitCode::SUCCESS })
    }
}

fn run_options(threads: usize) -> RunOptions {
    RunOptions { pool: TrainOptions::on_threads(threads).pool, lean: true, ..RunOptions::default() }
}

/// A checkpoint that is done with. One that stays is found finished by the next run of the same options.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// What is kept of a body that stays.
fn features(s: &Stored, mib: f64) -> String {
    let rest = match s.examples - s.kept {
        0 => "the body runs no more".to_string(),
        n => format!("those of the other {n} are made again in every epoch"),
    };
    format!("; features of {} samples are kept, {mib:.1} MiB, made in {:.1} s; {rest}", s.kept, s.time.as_secs_f64())
}

fn line(what: &Progress<'_>) -> String {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    match what {
        Progress::Planned { needs, parameters, steps, examples, validation } => format!(
            "{parameters} numbers on {examples} samples ({validation} more validate), {steps} steps of {:.1} MiB: \
             {:.1} packed weights, {:.1} parameters and optimizer, the rest activations{}; {:.1} MiB in all{}",
            mib(needs.step.total()),
            mib(needs.step.weights),
            mib(needs.step.resident),
            match needs.step.recomputed {
                0 => String::new(),
                n => format!("; {n} values are computed twice"),
            },
            mib(needs.total()),
            needs.stored.map_or(String::new(), |s| features(&s, mib(s.bytes)))
        ),
        Progress::Resumed { step } => format!("goes on after step {step}"),
        Progress::Step { step, steps, loss } => format!("step {step} of {steps}, loss {loss:.4}"),
        Progress::Epoch(e) => format!(
            "epoch {}: loss {:.4}{}",
            e.epoch,
            e.loss,
            e.validation.map_or(String::new(), |v| format!(", {v:.4} on the validation samples"))
        ),
    }
}
