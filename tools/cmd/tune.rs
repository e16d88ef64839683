//! `hone tune`: learn now from what the journal holds, or from labelled data.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use hone_runtime::Class;
use hone_runtime::app::{App, Learned, Quota, Settings};
use hone_runtime::bundle::Bundle;
use hone_runtime::graph::{Graph, Value};
use hone_runtime::journal::ClassChange;
use hone_runtime::learn::objective::{find, names};
use hone_runtime::learn::{Action, Kept, ObjectiveDef};
use hone_runtime::model::Model;
use hone_runtime::plan::Bf16;
use hone_runtime::precision;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use hone_runtime::tensor::DType;
use serde::Serialize;

use crate::device::Choice;
use crate::exit::fail;
use crate::output;

mod data;

/// Fits the adapter to everything said so far, or trains parts of the model on labelled data, and puts it before the
/// gate.
///
/// Without --data: from the presses in the journal, scopes other than `head` from those whose inputs were kept (`hone
/// listen --keep-inputs`). With --data: from a directory with index.csv, or with a folder of files for each class. A
/// run that was killed goes on where it was when it is called again with the same options, and comes to the same result
/// bit for bit.
#[derive(Args)]
pub(crate) struct Tune {
    /// A .hone bundle, or an .onnx file with --data and --output.
    model: PathBuf,
    /// The state directory; $STATE_DIRECTORY or the XDG state directory if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Labelled data: a directory with index.csv, or CLASS/FILE, or SPLIT/CLASS/FILE.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The split of the data to learn from; every one but `test` if not given.
    #[arg(long, requires = "data")]
    split: Option<String>,
    /// The objective: for presses the recipe's or `posterior`, for data `ce`, if not given; a name there is not is
    /// answered with those there are.
    #[arg(long)]
    objective: Option<String>,
    /// What is trained, one or several of head, bias, lora, full, sparse, with commas.
    #[arg(long, default_value = "head", value_delimiter = ',')]
    scope: Vec<String>,
    /// For an .onnx file: where to write what was tuned.
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: Option<PathBuf>,
    /// For an .onnx file: the directory with preprocessor_config.json or tokenizer.json, as `hone export` takes it.
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// For an .onnx file: the value to train; what its first output is before softmax, if not given.
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// For an .onnx file: put a new last layer with the classes of the data in place of the model's.
    #[arg(long)]
    new_head: bool,
    /// Rank of low-rank paths.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Scale of low-rank paths times their rank; twice the rank, if not given.
    #[arg(long)]
    alpha: Option<f32>,
    /// Layers that get a low-rank path, as patterns (`*`, `?`); the bundle's recipe says which, else all.
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    targets: Vec<String>,
    /// Leave the first half of low-rank paths as it was drawn.
    #[arg(long)]
    freeze_a: bool,
    /// Bytes of tensors that scope `sparse` chooses.
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    sparse_bytes: Quota,
    /// Turns through the data.
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Samples computed together.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Batches whose gradients make a step.
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Learning rate; 0.001, or 0.01 for sgd, if not given.
    #[arg(long, value_name = "RATE")]
    lr: Option<f32>,
    /// How parameters move.
    #[arg(long, value_enum, default_value_t = Method::Adamw)]
    optimizer: Method,
    /// Weight decay; that of the optimizer if not given.
    #[arg(long, value_name = "FACTOR")]
    weight_decay: Option<f32>,
    /// How the learning rate goes.
    #[arg(long, value_enum, default_value_t = Schedule::Cosine)]
    schedule: Schedule,
    /// Share of the steps over which it rises first.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    warmup: f64,
    /// Largest norm of all gradients together.
    #[arg(long, value_name = "NORM")]
    clip: Option<f32>,
    /// Order of the data, choice of the validation samples, first values of low-rank paths.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; the result does not depend on how many.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Where steps are computed; with auto a step is timed on both. A GPU's come to another adapter than the CPU's by
    /// rounding, and to the same every time on one device and driver.
    #[arg(long, default_value_t)]
    device: Choice,
    /// What steps multiply by weights that do not learn; what learns, and every sum, is f32.
    #[arg(long, value_enum, default_value_t = Factors::Auto)]
    precision: Factors,
    /// Most memory a step may take; proved before the first one.
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Quota>,
    /// Begin no step after this time, such as 120s or 10m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<std::time::Duration>,
    /// Share of the samples that judges and never trains.
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    validation: f64,
    /// End after this many epochs without a smaller validation loss.
    #[arg(long, value_name = "EPOCHS")]
    patience: Option<u64>,
    /// How often the run is written down, so that a killed one goes on.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    checkpoint: std::time::Duration,
    /// The guard between the candidate and use.
    #[arg(long, value_enum, default_value_t = super::Guard::Veto)]
    guard: super::Guard,
    /// A class more; nothing else changes before a press names it. Fits nothing.
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    add_class: Vec<String>,
    /// Another name for a class. Fits nothing.
    #[arg(long, value_name = "OLD=NEW", value_parser = super::pair, conflicts_with = "dry_run")]
    rename_class: Vec<(String, String)>,
    /// Two classes become the second; what was learned of both stays. Fits nothing.
    #[arg(long, value_name = "FROM=INTO", value_parser = super::pair, conflicts_with = "dry_run")]
    merge_class: Vec<(String, String)>,
    #[command(flatten)]
    learning: super::Learning,
    /// Also say where the time of the steps goes (measuring it costs a little).
    #[arg(long, requires = "data")]
    profile: bool,
    /// Fit and report, publish nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON document in place of text.
    #[arg(long)]
    json: bool,
}

/// An optimizer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Adamw,
    Sgd,
    Adafactor,
}

/// What weights that do not learn are multiplied in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Factors {
    /// f32.
    F32,
    /// bf16, on every CPU.
    Bf16,
    /// int8 weights in bf16 where this CPU multiplies it faster than f32, everything else in f32; a run that goes on keeps
    /// what it began with.
    Auto,
}

impl Factors {
    /// What that is for a model.
    fn bf16(self, graph: &Graph) -> Bf16 {
        match self {
            Factors::F32 => Bf16::Nothing,
            Factors::Bf16 => Bf16::Weights,
            Factors::Auto if self.by_speed(graph) && precision::cpu().is_ok() => Bf16::Codes,
            Factors::Auto => Bf16::Nothing,
        }
    }

    /// Whether that depends on what is faster here: where there are int8 weights.
    fn by_speed(self, graph: &Graph) -> bool {
        let codes = |v: &Value| v.constant.as_ref().is_some_and(|t| t.dtype() == DType::I8);
        self == Factors::Auto && graph.values.iter().any(codes)
    }
}

/// A schedule's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Schedule {
    Constant,
    Linear,
    Cosine,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    adapter: String,
    scope: String,
    objective: String,
    presses: usize,
    confirmed: usize,
    theta_norm: f64,
    published: bool,
    reason: String,
    retain: &'static str,
    /// What the candidate keeps of the source.
    kept: Option<Kept>,
    /// What was in use before keeps.
    kept_before: Option<Kept>,
    seconds: f64,
}

#[derive(Serialize)]
struct Changed {
    schema: &'static str,
    adapter: String,
    classes: Vec<String>,
}

impl Tune {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let changes = !(self.add_class.is_empty() && self.rename_class.is_empty() && self.merge_class.is_empty());
        let from_presses = self.data.is_none() && (self.scope == ["head"] || changes);
        match &self.device {
            Choice::Cpu => {}
            // The head is fitted on the CPU, whatever is faster.
            Choice::Auto if self.profile => {
                return Err(fail(Class::Usage, "--profile has the times of the CPU's kernels: say --device cpu"));
            }
            Choice::Auto => {}
            Choice::Gpu(_) if from_presses => {
                let why = "the head is fitted to presses on the CPU; --device gpu is for --data and for other scopes";
                return Err(fail(Class::Usage, why));
            }
            Choice::Gpu(_) if self.profile => {
                return Err(fail(Class::Usage, "--profile has the times of the CPU's kernels; leave it out on a GPU"));
            }
            Choice::Gpu(_) => {}
        }
        match &self.data {
            Some(_) if changes => {
                Err(fail(Class::Usage, "classes are changed without --data, and nothing is fitted then"))
            }
            Some(dir) => self.on_data(dir),
            None if from_presses => self.learn_from_presses(),
            None => self.on_presses(),
        }
    }

    /// The head, from everything said so far.
    fn learn_from_presses(self) -> anyhow::Result<ExitCode> {
        self.objective_of_presses()?;
        let started = Instant::now();
        let state = StateDir::resolve(self.state.as_deref())?;
        let model = Model::open(Bundle::open(&self.model)?, SessionOptions::default())?;
        let settings = Settings { objective: self.objective.clone(), ..self.learning.settings(self.guard) };
        let mut app = App::open_with(model, &state, settings)?;
        if !(self.add_class.is_empty() && self.rename_class.is_empty() && self.merge_class.is_empty()) {
            self.change_classes(&mut app)?;
            return Ok(ExitCode::SUCCESS);
        }
        let presses = app.learner().training_predictions();
        if presses == 0 {
            return Err(fail(
                Class::Failed,
                format!(
                    "nothing was said yet that could train this model in {}; `hone listen` or `hone feedback import` \
                     first",
                    state.root().display()
                ),
            ));
        }
        let candidate = app.learner().refit()?;
        let mut document = Document {
            schema: "hone.tune/1",
            adapter: app.current().map_or_else(|| "factory".into(), |a| a.to_string()),
            scope: self.scope.join(","),
            objective: app.learner().config().objective.clone(),
            presses,
            confirmed: app.learner().reservoir_ids().len(),
            theta_norm: candidate.norm(),
            published: false,
            reason: "--dry-run: nothing was put before the gate".into(),
            retain: app.retain().name(),
            kept: app.kept(&candidate)?,
            kept_before: app.kept(app.learner().published())?,
            seconds: 0.0,
        };
        let mut refused = false;
        if !self.dry_run
            && let Learned::Decided { decision, changed, .. } = app.decide()?
        {
            document.published = decision.action == Action::Publish;
            refused = !matches!(decision.action, Action::Publish | Action::Hold);
            document.reason = decision.reason;
            if let Some(now) = changed {
                document.adapter = now.map_or_else(|| "factory".into(), |a| a.to_string());
            }
        }
        document.seconds = started.elapsed().as_secs_f64();
        if self.json {
            output::json(&document)?;
        } else {
            output::line(format!(
                "{} presses, {} confirmed; {}: {}; {}",
                document.presses,
                document.confirmed,
                if document.published {
                    format!("adapter {} is in use", document.adapter)
                } else {
                    "nothing published".into()
                },
                document.reason,
                output::kept(document.kept.as_ref())
            ))?;
        }
        Ok(if refused { ExitCode::from(Class::Gate.exit_code()) } else { ExitCode::SUCCESS })
    }

    /// The objective for presses that was asked for.
    fn objective_of_presses(&self) -> anyhow::Result<Option<&'static ObjectiveDef>> {
        let Some(name) = &self.objective else { return Ok(None) };
        let unknown = || {
            let text = format!("there is no objective `{name}` for presses in this version; there are {}", names());
            fail(Class::Unsupported, text)
        };
        find(name).map(Some).ok_or_else(unknown)
    }

    /// Changes the classes: first additions, then names, then merges.
    fn change_classes(&self, app: &mut App) -> anyhow::Result<()> {
        let adapter = |app: &App| app.current().map_or_else(|| "factory".to_string(), |a| a.to_string());
        for name in &self.add_class {
            app.change_classes(&ClassChange::Add { name: name.clone() })?;
        }
        for (old, name) in &self.rename_class {
            let class = app.classes().find(old)? as u32;
            app.change_classes(&ClassChange::Rename { class, name: name.clone() })?;
        }
        for (from, into) in &self.merge_class {
            let (from, into) = (app.classes().find(from)? as u32, app.classes().find(into)? as u32);
            app.change_classes(&ClassChange::Merge { from, into })?;
        }
        let classes = app.classes().visible_names();
        if self.json {
            let document = Changed { schema: "hone.tune-classes/1", adapter: adapter(app), classes };
            return output::json(&document);
        }
        output::line(format!("adapter {} is in use; the classes are {}", adapter(app), classes.join(", ")))?;
        Ok(())
    }
}
