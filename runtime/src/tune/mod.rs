//! A run of training: examples in an order, epochs, validation, an early end, and a checkpoint to go on from.
//!
//! [`Work::run`] is a function of the graph, the spec, the settings and the examples: the same ones give the same
//! tensors bit for bit, whatever the number of threads and however often the run was killed and taken up again. Only a
//! budget of time makes it depend on the clock, by where it ends. What a step takes is planned before the first one, for
//! the largest examples there are, and where it is more than it may be, the refusal says which smaller run would fit. It
//! knows neither where examples come from nor what becomes of the result.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::class::{Class, Classified};
use crate::device::Device;
use crate::graph::Graph;
use crate::plan::{Bf16, OnGpu, RunOptions, Runner};
use crate::scope::{self, ScopeError, Scoped, Spec};
use crate::state::StateError;
use crate::tensor::{Tensor, TensorError};
use crate::train::{Footprint, Objective, Optimizer, Recipe, Schedule, TrainError, TrainOptions, Trainer};

mod avoid;
mod batch;
mod body;
mod checkpoint;
mod chosen;
pub mod examples;
pub mod judge;
mod labelled;
mod loss;
mod memory;
mod timed;

use batch::Batcher;
use body::Featured;
pub use body::Stored;
use checkpoint::Checkpoint;
pub use examples::{Example, Examples, Target};
pub use labelled::{ClassOf, Labelled, TARGET};
pub use loss::{LOSSES, Loss, Wants};

#[cfg(all(test, feature = "import"))]
mod tests;

/// How the learning rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Course {
    /// It stays.
    Constant,
    /// It falls to 0 in a straight line.
    Linear,
    /// It falls to 0 along half a cosine.
    Cosine,
}

/// How to train.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is made small.
    pub objective: Objective,
    /// How parameters move.
    pub optimizer: Optimizer,
    /// The learning rate at its highest.
    pub rate: f32,
    /// How it goes.
    pub course: Course,
    /// Share of all steps over which it rises from 0, in [0, 1).
    pub warmup: f64,
    /// Largest norm of all gradients together.
    pub clip: Option<f32>,
    /// Examples computed together.
    pub batch: usize,
    /// Batches whose gradients make a step.
    pub accumulate: usize,
    /// Turns through the examples.
    pub epochs: u64,
    /// What their order and the validation examples are drawn by.
    pub seed: u64,
    /// Most bytes of a step.
    pub max_bytes: Option<usize>,
    /// Share of the examples that validates and never trains, in [0, 1).
    pub validation: f64,
    /// Epochs without a smaller validation loss after which the run ends; the best epoch is kept.
    pub patience: Option<u64>,
    /// Time after which no further step is begun.
    pub budget: Option<Duration>,
    /// Bytes of tensors that scope `sparse` may choose.
    pub sparse_bytes: usize,
    /// Whether [`TrainOptions::bf16`] is what was faster here and now rather than what was asked for. Then it tells no run
    /// from another, and a run that goes on keeps what it began with, whatever is faster by then.
    pub bf16_by_speed: bool,
}

/// Why a run ends without a result.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The scope.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// Training.
    #[error(transparent)]
    Train(Box<TrainError>),
    /// A gradient that there is not, on the way to something that should be trained.
    #[error(
        "{source}; {}",
        instead.as_ref().map_or("no scope does without it".to_string(), |what| format!("`{what}` needs no gradient through it"))
    )]
    Stopped {
        /// Which, and why.
        source: Box<TrainError>,
        /// Options that train only what comes after it.
        instead: Option<String>,
    },
    /// A step needs more than it may.
    #[error(
        "a step needs {}, may use {}; {}", mebibytes(*needs), mebibytes(*may),
        fits.as_ref().map_or("no smaller scope fits".to_string(), |(what, bytes)| format!("{what} needs {}", mebibytes(*bytes)))
    )]
    Memory {
        /// Planned peak.
        needs: usize,
        /// The limit.
        may: usize,
        /// Options with which it would fit, and what it would then need.
        fits: Option<(String, usize)>,
    },
    /// Too few examples.
    #[error("{what}")]
    Data {
        /// What is wrong, and what to do.
        what: String,
    },
    /// A setting out of range.
    #[error("{what} is {found}; it must be {expected}")]
    Setting {
        /// Which.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The loss is no number any more.
    #[error(
        "the loss is {loss} at step {step}; a smaller --lr, --clip 1 or --schedule cosine with --warmup 0.1 keeps it finite"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
    },
    /// The checkpoint.
    #[error(transparent)]
    State(#[from] StateError),
    /// The checkpoint is not one.
    #[error("{}: {why}; remove it to begin anew", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl From<TrainError> for TuneError {
    fn from(e: TrainError) -> TuneError {
        TuneError::Train(Box::new(e))
    }
}

impl Classified for TuneError {
    fn class(&self) -> Class {
        match self {
            TuneError::Scope(e) => e.class(),
            TuneError::Stopped { .. } => Class::Unsupported,
            TuneError::Train(e) if matches!(**e, TrainError::Autodiff(_)) => Class::Unsupported,
            TuneError::State(e) => e.class(),
            TuneError::Setting { .. } | TuneError::Memory { .. } => Class::Usage,
            TuneError::Data { .. } => Class::Invalid,
            TuneError::Checkpoint { .. } => Class::Store,
            _ => Class::Failed,
        }
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// One epoch in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u64,
    /// Mean of the steps' losses.
    pub loss: f32,
    /// Loss on the validation examples.
    pub validation: Option<f32>,
}

/// Memory a run takes, as planned, beyond that of the model and the examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A step.
    pub step: Footprint,
    /// Bytes of copies: of the trained parameters as they began, of the best epoch, and while a checkpoint is written;
    /// and of the examples of a step, as they are put together.
    pub copies: usize,
    /// Features of a body that stays; `None` where the body runs in every step.
    pub stored: Option<Stored>,
}

impl Needs {
    /// The most there is at one time.
    pub fn total(&self) -> usize {
        let step = self.step.total() + self.copies;
        self.stored.map_or(step, |s| s.peak(step))
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// What is going to run.
    Planned {
        /// Memory it takes.
        needs: Needs,
        /// Trained numbers.
        parameters: usize,
        /// All steps.
        steps: u64,
        /// Examples that train.
        examples: usize,
        /// Examples that validate.
        validation: usize,
    },
    /// It goes on from a checkpoint.
    Resumed {
        /// Steps done before.
        step: u64,
    },
    /// A step was made.
    Step {
        /// Steps so far.
        step: u64,
        /// All steps.
        steps: u64,
        /// The loss before it.
        loss: f32,
    },
    /// An epoch is over.
    Epoch(&'a Epoch),
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The trainable leaves and the graph they are in.
    pub scoped: Scoped,
    /// The spec with what `sparse` chose.
    pub spec: Spec,
    /// Their values.
    pub tensors: Vec<(String, Tensor)>,
    /// Steps made.
    pub steps: u64,
    /// Every loss, one a step.
    pub losses: Vec<f32>,
    /// The epochs.
    pub epochs: Vec<Epoch>,
    /// Validation loss before the first step.
    pub before: Option<f32>,
    /// Epoch the tensors are of; `None` where nothing validates.
    pub best: Option<u64>,
    /// Memory it takes, as planned.
    pub needs: Needs,
    /// Examples that validated.
    pub validation: Vec<usize>,
    /// Why it ended, when not by its last epoch.
    pub ended: Option<&'static str>,
    /// Median time of the steps made in this life of the run.
    pub step: Option<Duration>,
    /// What of a step ran on a GPU; `None` where there is none, or no step was made.
    pub on_gpu: Option<OnGpu>,
    /// What of frozen weights was multiplied in bf16.
    pub bf16: Bf16,
}

/// All that a run depends on.
pub struct Work<'a> {
    /// The model.
    pub graph: &'a Graph,
    /// Its version of the standard operator set.
    pub opset: i64,
    /// What is trained.
    pub spec: Spec,
    /// How.
    pub settings: Settings,
    /// On what.
    pub examples: &'a mut dyn Examples,
    /// How it computes.
    pub options: TrainOptions,
    /// Where it writes down how far it is, and how often; the name says what it is a run of.
    pub checkpoint: Option<(PathBuf, Duration)>,
}

impl Work<'_> {
    /// What tells this run from others: a digest of spec, settings and examples, and of `base`, which names the model.
    pub fn identity(&self, base: &str) -> String {
        let s = &self.settings;
        let spec = serde_json::to_string(&self.spec).unwrap_or_default();
        let mut h = blake3::Hasher::new();
        // How much memory and time there is changes no result; whoever has more of it goes on.
        let numbers = (s.rate, s.course, s.warmup, s.clip, s.batch, s.accumulate, s.epochs, s.seed);
        let rest = (s.validation, s.patience, s.sparse_bytes);
        let how = format!("{:?} {:?} {numbers:?} {rest:?}", s.objective, s.optimizer);
        // Another device rounds otherwise, and a run is one from its first step to its last.
        let device = match &self.options.device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu.key()),
        };
        // So does another type, but for one that was only faster: what it was is in the checkpoint.
        let bf16 = match (s.bf16_by_speed, self.options.bf16) {
            (true, _) => Some("bf16 by speed".to_string()),
            (false, Bf16::Nothing) => None,
            (false, asked) => Some(format!("bf16 {asked:?}")),
        };
        let parts = [base, &spec, &how, &self.examples.digest()].map(str::to_string);
        for part in parts.iter().chain(&device).chain(&bf16) {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        h.finalize().to_hex()[..16].to_string()
    }

    /// Trains to the end, from the checkpoint if there is one.
    ///
    /// # Errors
    /// [`TuneError`]; the checkpoint stays.
    pub fn run(self, tell: &mut dyn FnMut(Progress<'_>)) -> Result<Outcome, TuneError> {
        let Work { graph, opset, mut spec, settings, examples, mut options, checkpoint } = self;
        check(&settings)?;
        let began = Instant::now();
        let (train, validation) = examples::divide(examples, settings.validation, settings.seed)?;
        let batcher = Batcher::new(graph, settings.objective, settings.batch);
        let saved = checkpoint.as_ref().map(|(path, _)| Checkpoint::read(path)).transpose()?.flatten();
        if let (Some(began), Some((path, _))) = (saved.as_ref().and_then(|s| s.progress.bf16), &checkpoint) {
            if began != options.bf16 && !settings.bf16_by_speed {
                let why = format!("its run multiplies {} in bf16, this one {}", began.words(), options.bf16.words());
                return Err(TuneError::Checkpoint { path: path.clone(), why });
            }
            options.bf16 = began;
        }
        let all = [&train[..], &validation].concat();
        let extremes = batcher.extremes(examples, &all)?;
        let kept =
            memory::Kept { best: !validation.is_empty(), start: examples.renews(), written: checkpoint.is_some() };
        let smaller = |spec: &Spec, needs, may| {
            let fits = memory::smaller(graph, opset, spec, &settings, &options, &batcher, &extremes, kept, may);
            TuneError::Memory { needs, may, fits }
        };
        let avoiding = |spec: &Spec, e| {
            let instead =
                |e: &TrainError| avoid::instead(e, graph, opset, spec, &settings, &options, &batcher, &extremes);
            avoid::with_advice(e, instead)
        };
        if spec.scopes.iter().any(|s| s == "sparse") && spec.tensors.is_empty() {
            spec.tensors = match &saved {
                Some(saved) => saved.progress.chosen.clone(),
                None => match chosen::chosen(graph, opset, &spec, &settings, &options, examples, &batcher, &train) {
                    Err(TuneError::Memory { needs, may, .. }) => return Err(smaller(&spec, needs, may)),
                    Err(e) => return Err(avoiding(&spec, e)),
                    Ok(chosen) => chosen,
                },
            };
        }
        let scoped = scope::place(graph, opset, &spec)?;
        let copies = memory::copies(graph, &scoped, &settings, kept);
        let planned = memory::plan(&scoped, &spec, &settings, &options, &batcher, &extremes, (all.len(), copies))
            .and_then(|p| {
                let (needs, may) = (p.needs.total(), settings.max_bytes.unwrap_or(usize::MAX));
                if needs > may { Err(TuneError::Memory { needs, may, fits: None }) } else { Ok(p) }
            });
        let memory::Planned { mut trainer, mut needs, body } = match planned {
            Err(TuneError::Memory { needs, may, .. }) => return Err(smaller(&spec, needs, may)),
            Err(e) => return Err(avoiding(&spec, e)),
            Ok(planned) => planned,
        };
        drop(extremes);
        let mut featured;
        let (examples, batcher): (&mut dyn Examples, Batcher) = match (body, &mut needs.stored) {
            (Some(body), Some(stored)) => {
                let batcher = body.batcher(&batcher);
                featured = Featured::new(examples, body, &all, stored)?;
                (&mut featured, batcher)
            }
            _ => (examples, batcher),
        };
        let rows = settings.batch * settings.accumulate;
        let per_epoch = train.len().div_ceil(rows) as u64;
        let steps = per_epoch * settings.epochs;
        let parameters = memory::leaves(&scoped).map(|t| t.len()).sum();
        let (n, v) = (train.len(), validation.len());
        tell(Progress::Planned { needs, parameters, steps, examples: n, validation: v });
        let mut now = match saved {
            Some(mut saved) => {
                trainer.restore(&std::mem::take(&mut saved.state), saved.progress.step)?;
                tell(Progress::Resumed { step: saved.progress.step });
                saved
            }
            None => {
                let mut fresh = Checkpoint::default();
                fresh.progress.bf16 = Some(options.bf16);
                fresh.progress.chosen.clone_from(&spec.tensors);
                fresh.progress.before = loss_on(&mut trainer, examples, &batcher, &validation)?;
                fresh.progress.lowest = fresh.progress.before;
                if !validation.is_empty() {
                    fresh.best = scope::values(&scoped.graph, &scoped.trainable);
                }
                fresh
            }
        };
        let spent = Duration::from_secs_f64(now.progress.seconds);
        let mut written = Instant::now();
        let mut renewed = false;
        let mut times = Vec::new();
        let warmup = (settings.warmup * steps as f64).round() as u64;
        let schedule = match settings.course {
            Course::Constant if warmup == 0 => Schedule::Constant,
            // A straight line that ends beyond all steps falls by nothing to speak of; the rise is what is wanted of
            // it.
            Course::Constant => Schedule::Linear { warmup, total: u64::MAX / 2 },
            Course::Linear => Schedule::Linear { warmup, total: steps },
            Course::Cosine => Schedule::Cosine { warmup, total: steps },
        };
        while now.progress.ended.is_none() && now.progress.step < steps {
            if settings.budget.is_some_and(|b| spent + began.elapsed() >= b) {
                now.progress.ended = Some(BUDGET.to_string());
                break;
            }
            let (epoch, at) = (now.progress.step / per_epoch, (now.progress.step % per_epoch) as usize);
            let order = shuffled(&train, settings.seed, epoch);
            if examples.renews() && (at == 0 || !renewed) {
                if at == 0 {
                    now.start = parameters_of(&trainer, &scoped)?;
                }
                renew(examples, &scoped, &now.start, &spec.output, &options)?;
                renewed = true;
            }
            let part = &order[at * rows..order.len().min((at + 1) * rows)];
            let batches = batcher.batches(examples, part)?;
            let rate = (f64::from(settings.rate) * schedule.factor(now.progress.step)) as f32;
            let started = Instant::now();
            let report = trainer.step(&batches, rate)?;
            times.push(started.elapsed());
            drop(batches);
            now.progress.step += 1;
            if !report.loss.is_finite() {
                return Err(TuneError::Diverged { step: now.progress.step, loss: report.loss });
            }
            now.progress.losses.push(report.loss);
            tell(Progress::Step { step: now.progress.step, steps, loss: report.loss });
            if now.progress.step % per_epoch == 0 {
                let of_epoch = &now.progress.losses[now.progress.losses.len() - per_epoch as usize..];
                let loss = of_epoch.iter().sum::<f32>() / per_epoch as f32;
                let validated = loss_on(&mut trainer, examples, &batcher, &validation)?;
                let done = Epoch { epoch: epoch + 1, loss, validation: validated };
                tell(Progress::Epoch(&done));
                now.epoch_done(done, settings.patience, &trainer, &scoped)?;
            }
            if let Some((path, every)) = &checkpoint
                && written.elapsed() >= *every
            {
                now.progress.seconds = (spent + began.elapsed()).as_secs_f64();
                now.write(trainer.state()?, path)?;
                written = Instant::now();
            }
        }
        if now.progress.ended.as_deref() == Some(BUDGET) && now.progress.step % per_epoch != 0 && !validation.is_empty()
        {
            // An epoch that time has cut short is judged as a whole one would be.
            let at = (now.progress.step % per_epoch) as usize;
            let loss = now.progress.losses[now.progress.losses.len() - at..].iter().sum::<f32>() / at as f32;
            let validated = loss_on(&mut trainer, examples, &batcher, &validation)?;
            let done = Epoch { epoch: now.progress.step / per_epoch + 1, loss, validation: validated };
            now.epoch_done(done, None, &trainer, &scoped)?;
        }
        let on_gpu = trainer.on_gpu();
        let tensors = match validation.is_empty() {
            true => trainer.into_parameters()?,
            false => now.best,
        };
        let p = now.progress;
        times.sort_unstable();
        let ended = p.ended.as_deref().map(|e| if e == BUDGET { BUDGET } else { PATIENCE });
        Ok(Outcome {
            scoped,
            spec,
            tensors,
            steps: p.step,
            losses: p.losses,
            epochs: p.epochs,
            before: p.before,
            best: p.best_epoch,
            needs,
            validation,
            ended,
            step: times.get(times.len() / 2).copied(),
            on_gpu,
            bf16: options.bf16,
        })
    }
}

const BUDGET: &str = "the budget of time is spent";
const PATIENCE: &str = "the validation loss has not fallen any more";

fn no_examples() -> TuneError {
    TuneError::Data { what: "there is no example left to train on; give more data, or a smaller --validation".into() }
}

fn check(s: &Settings) -> Result<(), TuneError> {
    let wrong = |what, found: String, expected| Err(TuneError::Setting { what, found, expected });
    if s.batch == 0 || s.accumulate == 0 || s.epochs == 0 {
        return wrong("--batch, --accumulate or --epochs", "0".into(), "1 or more");
    }
    if !s.rate.is_finite() || s.rate <= 0.0 {
        return wrong("--lr", s.rate.to_string(), "a number above 0");
    }
    if s.clip.is_some_and(|c| !c.is_finite() || c <= 0.0) {
        return wrong("--clip", format!("{:?}", s.clip), "a number above 0");
    }
    for (what, v) in [("--validation", s.validation), ("--warmup", s.warmup)] {
        if !(0.0..1.0).contains(&v) {
            return wrong(what, v.to_string(), "in [0, 1)");
        }
    }
    if s.patience == Some(0) {
        return wrong("--patience", "0".into(), "1 or more");
    }
    Ok(())
}

fn recipe(scoped: &Scoped, spec: &Spec, settings: &Settings, batcher: &Batcher) -> Recipe {
    Recipe {
        output: spec.output.clone(),
        objective: settings.objective,
        trainable: scoped.trainable.clone(),
        undecayed: scoped.undecayed.clone(),
        optimizer: settings.optimizer,
        clip: settings.clip,
        accumulate: settings.accumulate > 1 || batcher.varies || batcher.rows < settings.batch,
        max_bytes: settings.max_bytes,
        spare: SPARE,
    }
}

/// What of a step is spent on less memory, limit or not: a little time for a third of what a transformer keeps.
const SPARE: f64 = 0.08;

fn parameters_of(trainer: &Trainer, scoped: &Scoped) -> Result<Vec<(String, Tensor)>, TuneError> {
    let value = |n: &String| Ok((n.clone(), trainer.parameter(n)?));
    scoped.trainable.iter().map(value).collect()
}

/// Lets the examples make their targets anew from what the model with those values believes.
fn renew(
    examples: &mut dyn Examples,
    scoped: &Scoped,
    values: &[(String, Tensor)],
    output: &str,
    options: &TrainOptions,
) -> Result<(), TuneError> {
    let mut graph = scoped.with(values)?;
    graph.outputs = graph.values.iter().position(|v| v.name == output).into_iter().collect();
    graph.prune();
    let run = RunOptions {
        pool: options.pool.clone(),
        reference: options.reference,
        device: options.device.clone(),
        bf16: options.bf16,
        ..RunOptions::default()
    };
    let mut runner = Runner::new(Arc::new(graph), run);
    examples.renew(&mut |inputs| {
        let out = runner.run(&inputs.iter().collect::<Vec<_>>()).map_err(TrainError::from)?;
        out.into_iter().next().ok_or_else(no_examples)
    })
}

/// The mean loss over examples.
fn loss_on(
    trainer: &mut Trainer,
    examples: &mut dyn Examples,
    batcher: &Batcher,
    of: &[usize],
) -> Result<Option<f32>, TuneError> {
    let (mut sum, mut weight) = (0.0, 0.0);
    for part in of.chunks(batcher.rows) {
        for batch in batcher.batches(examples, part)? {
            let w: f64 = batch.weights.as_ref().map_or(1.0, |w| w.data().to_f64().iter().sum());
            sum += f64::from(trainer.evaluate(&batch)?) * w;
            weight += w;
        }
    }
    Ok((weight > 0.0).then(|| (sum / weight) as f32))
}

/// The order of an epoch: a shuffle by Fisher and Yates, drawn by splitmix64.
fn shuffled(of: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
    let mut state = seed ^ epoch.wrapping_mul(0xd134_2543_de82_ef95);
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut order = of.to_vec();
    for i in (1..order.len()).rev() {
        order.swap(i, (next() % (i as u64 + 1)) as usize);
    }
    order
}
