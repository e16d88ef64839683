//! Training on the device: forward, loss, backward and update as one plan in one arena.
//!
//! A [`Trainer`] is a graph with some of its constants made parameters, an [`Objective`] on one of its values, and an
//! [`Optimizer`]. Parameters and what the optimizer remembers are resident in the arena; each update takes the place of
//! what it updates, where its gradient is complete, so that no gradient outlives its use. What a step needs is known
//! before the first one, and refused with both figures when it is more than it may be.
//! It deliberately knows nothing of files, of what a scope is and of where examples come from.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use hone_kernels::threads::Pool;

use crate::autodiff::{AutodiffError, Tape, differentiate};
use crate::device::Device;
use crate::graph::{Graph, ValueId};
use crate::ops::{Attrs, Fact, OpError};
use crate::plan::{Arena, Bf16, Concrete, OnGpu, Packs, Plan, PlanError, Profile, Resident, RunOptions};
use crate::tensor::{DType, Tensor, TensorError};

mod loss;
mod optimizer;
mod recompute;

pub use loss::Objective;
pub use optimizer::{Optimizer, Schedule};

#[cfg(all(test, feature = "import"))]
mod quantised_tests;
#[cfg(all(test, feature = "import"))]
pub(crate) mod tests;

#[cfg(all(test, feature = "gpu", feature = "import"))]
mod gpu_tests;

/// What is trained, and how.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The value the objective is of, by name: an output of the graph, or any value before it.
    pub output: String,
    /// What is made small.
    pub objective: Objective,
    /// Constants of the graph that are trained, by name.
    pub trainable: Vec<String>,
    /// Those of them that weight decay leaves alone; commonly biases and scales of normalisation.
    pub undecayed: Vec<String>,
    /// How parameters move.
    pub optimizer: Optimizer,
    /// Largest norm of all gradients together; longer ones are shortened to it.
    pub clip: Option<f32>,
    /// Whether [`Trainer::step`] is given several batches: a gradient of each parameter is then kept.
    pub accumulate: bool,
    /// Most bytes of a step: parameters, optimizer, activations and frozen weights. Activations are computed twice
    /// rather than kept where that is needed.
    pub max_bytes: Option<usize>,
    /// Share of a step's operations that is spent on computing activations twice rather than keeping them even where no
    /// limit asks for it: the cheapest for the memory they take.
    pub spare: f64,
}

/// How a trainer runs.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The threads that compute. Results do not depend on how many they are.
    pub pool: Arc<Pool>,
    /// Run by reference functions: slow and obvious.
    pub reference: bool,
    /// What steps run on; of a GPU, steps without a form for it on the CPU in between. Residents come back from it
    /// after every step, so that a device that is lost takes nothing with it.
    pub device: Device,
    /// What of frozen weights is multiplied in bf16, forward and backward. What is trained, and all sums, are `f32`.
    pub bf16: Bf16,
    /// Collects the time of every step of the plans that train, not of those that only evaluate; `None` measures
    /// nothing.
    pub profile: Option<Arc<Profile>>,
}

impl TrainOptions {
    /// Kernels on that many threads.
    pub fn on_threads(threads: usize) -> TrainOptions {
        TrainOptions { pool: Arc::new(Pool::new(threads.max(1))), ..TrainOptions::default() }
    }
}

impl Default for TrainOptions {
    /// Kernels, the calling thread alone.
    fn default() -> TrainOptions {
        let (pool, device) = (Arc::new(Pool::new(1)), Device::Cpu);
        TrainOptions { pool, reference: false, device, bf16: Bf16::Nothing, profile: None }
    }
}

/// Why something cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A name nothing has.
    #[error("the graph has no {what} `{name}`")]
    Unknown {
        /// `constant` or `value`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A parameter the loss does not depend on.
    #[error("the loss does not depend on `{0}`: leave it out of what is trained")]
    Untouched(String),
    /// A parameter that is no `f32`.
    #[error("`{name}` is {dtype}; only floats can be trained: an adapter beside it can")]
    NotFloat {
        /// The constant.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// A step needs more memory than it may use.
    #[error(
        "a step needs {needs} bytes, may use {may}: of them {parameters} are parameters and optimizer, {weights} frozen \
         weights; a smaller batch, a lower rank or fewer layers need less"
    )]
    Memory {
        /// Planned peak with everything recomputed that helps.
        needs: usize,
        /// The limit.
        may: usize,
        /// Bytes that are resident.
        parameters: usize,
        /// Bytes of frozen weights.
        weights: usize,
    },
    /// The batch does not fit.
    #[error("{what}: expected {expected}, found {found}")]
    Batch {
        /// Which input.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A graph that cannot be differentiated.
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    /// A loss or an update that does not fit.
    #[error("objective: {0}")]
    Op(#[from] OpError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Examples of one step, or of a part of it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The graph's inputs, in its order.
    pub inputs: Vec<Tensor>,
    /// What the objective compares with, as [`Objective::target`] says.
    pub target: Option<Tensor>,
    /// A weight for each row, as [`Objective::weights`] says; all 1 when `None`.
    pub weights: Option<Tensor>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The weighed mean of the objective before the step; NaN for [`Objective::Handed`].
    pub loss: f32,
    /// Norm of all gradients before clipping; `None` without clipping.
    pub norm: Option<f32>,
}

/// Bytes a step takes, as planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Arena: residents, activations, gradients, scratch.
    pub arena: usize,
    /// Of the arena: parameters, optimizer, accumulated gradients.
    pub resident: usize,
    /// Frozen weights beside those of the model that are read where they are: packed ones, and constants that were
    /// computed.
    pub weights: usize,
    /// Values that are computed a second time rather than kept.
    pub recomputed: usize,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> usize {
        self.arena + self.weights
    }
}

/// What is resident: name, type, shape and place.
#[derive(Clone, Debug)]
struct Slot {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    place: Range<usize>,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Loss, gradients and update.
    Step,
    /// Loss and gradients, added to what was accumulated.
    Accumulate,
    /// Update by what was accumulated.
    Apply,
    /// Loss alone.
    Evaluate,
    /// The gradients themselves.
    Gradients,
}

struct Made {
    task: Task,
    shapes: Vec<(DType, Vec<usize>)>,
    plan: Plan,
    footprint: Footprint,
    /// Shape of the weights of the objective.
    weights: Option<Vec<usize>>,
}

/// A model while it is trained.
pub struct Trainer {
    recipe: Recipe,
    options: TrainOptions,
    /// The graph with its parameters as inputs after its own.
    graph: Graph,
    own_inputs: usize,
    residents: Vec<Slot>,
    resident_bytes: usize,
    arena: Arena,
    /// What belongs into the arena and at which byte, until the arena has the size of a plan: grown later it would
    /// leave its first place behind. Residents that are not named begin at 0.
    waiting: Vec<(usize, Arc<Tensor>)>,
    /// The one used last at the end.
    plans: Vec<Made>,
    /// Most bytes of frozen weights that a plan had so far: what is packed for one is there while another runs.
    packed: usize,
    /// Frozen weights, which plans of all tasks and shapes share.
    packs: Arc<Packs>,
    /// Frozen weights of half floats in `f32`, which they share as well.
    widened: Mutex<Vec<Arc<Tensor>>>,
    step: u64,
}

/// Plans kept: of a step, an update and an evaluation, and of as many shapes as there is use for keeping.
const PLANS: usize = 16;

impl Trainer {
    /// A trainer at the values the graph's constants have.
    ///
    /// # Errors
    /// [`TrainError`] naming what is not in the graph or cannot be trained.
    pub fn new(graph: &Graph, recipe: Recipe, options: TrainOptions) -> Result<Trainer, TrainError> {
        let (graph, initial) = with_parameters(graph, &recipe.trainable)?;
        if !graph.values.iter().any(|v| v.name == recipe.output) {
            return Err(TrainError::Unknown { what: "value", name: recipe.output.clone() });
        }
        let names = recipe.trainable.iter().cloned();
        let mut list: Vec<(String, DType, Vec<usize>)> =
            names.zip(&initial).map(|(n, t)| (n, t.dtype(), t.shape().to_vec())).collect();
        for i in 0..recipe.trainable.len() {
            let (name, dtype, shape) = list[i].clone();
            for (suffix, shape) in recipe.optimizer.states(&shape) {
                list.push((format!("{name}/{suffix}"), dtype, shape));
            }
        }
        if recipe.accumulate {
            for i in 0..recipe.trainable.len() {
                let (name, dtype, shape) = list[i].clone();
                list.push((format!("{name}/gradient"), dtype, shape));
            }
        }
        let facts = list.iter().map(|(_, t, s)| (*t, &s[..]));
        let (places, resident_bytes) = Resident::layout(facts, &options.device);
        let slot = |((name, dtype, shape), place)| Slot { name, dtype, shape, place };
        let residents: Vec<Slot> = list.into_iter().zip(places).map(slot).collect();
        let waiting = residents.iter().map(|s| s.place.start).zip(initial).collect();
        let own_inputs = graph.inputs.len() - recipe.trainable.len();
        let (arena, plans, packed, packs, step) = (Arena::default(), Vec::new(), 0, Arc::default(), 0);
        Ok(Trainer {
            recipe,
            options,
            graph,
            own_inputs,
            residents,
            resident_bytes,
            arena,
            waiting,
            plans,
            packed,
            packs,
            widened: Mutex::default(),
            step,
        })
    }

    /// Constants that are there because the graph's are half floats, each once for all plans.
    fn share(&self, concrete: &mut Concrete) {
        if !self.graph.values.iter().any(|v| v.constant.as_ref().is_some_and(|t| t.dtype().is_half())) {
            return;
        }
        let own: HashSet<*const Tensor> =
            self.graph.values.iter().filter_map(|v| Some(Arc::as_ptr(v.constant.as_ref()?))).collect();
        let mut known = self.widened.lock().unwrap_or_else(PoisonError::into_inner);
        for (v, fact) in concrete.graph.values.iter_mut().zip(&mut concrete.facts) {
            let Some(t) = v.constant.clone().filter(|t| t.dtype() == DType::F32 && !own.contains(&Arc::as_ptr(t)))
            else {
                continue;
            };
            let same = match known.iter().find(|k| ***k == *t) {
                Some(same) => same.clone(),
                None => {
                    known.push(t.clone());
                    t
                }
            };
            v.constant = Some(same.clone());
            fact.value = Some(same);
        }
    }

    /// The arena, of the size of the largest plan, with everything in its place.
    fn settle(&mut self) -> Result<(), TrainError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let largest = self.plans.iter().map(|m| m.plan.arena_bytes()).max().unwrap_or(0);
        self.arena.reserve(largest.max(self.resident_bytes))?;
        for (at, t) in std::mem::take(&mut self.waiting) {
            self.arena.put(at, &t)?;
        }
        Ok(())
    }

    /// What is resident in a slot.
    fn held(&self, slot: &Slot) -> Result<Tensor, TrainError> {
        if self.waiting.is_empty() {
            return Ok(self.arena.take(slot.place.start, slot.dtype, &slot.shape)?);
        }
        match self.waiting.iter().find(|(at, _)| *at == slot.place.start) {
            Some((_, t)) => Ok(Tensor::clone(t)),
            None => Ok(Tensor::zeros(slot.dtype, &slot.shape)?),
        }
    }

    /// The parameters at the end, in the recipe's order; what only steps need is given back before they are copied.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub fn into_parameters(mut self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.plans.clear();
        self.arena.shrink(self.resident_bytes);
        let trained = &self.residents[..self.recipe.trainable.len()];
        trained.iter().map(|s| Ok((s.name.clone(), self.held(s)?))).collect()
    }

    /// One step on all of `batches` together, at a learning rate: their gradients are accumulated when they are
    /// several.
    ///
    /// # Errors
    /// [`TrainError`]; nothing is updated when a batch does not fit.
    pub fn step(&mut self, batches: &[Batch], rate: f32) -> Result<StepReport, TrainError> {
        let task = if batches.len() == 1 { Task::Step } else { Task::Accumulate };
        let mut totals = 0.0;
        for batch in batches {
            totals += self.total_weight(task, batch)?;
        }
        match batches {
            [] => Err(TrainError::Batch { what: "batches".into(), expected: "at least one".into(), found: "0".into() }),
            [only] => {
                let out = self.run(Task::Step, Some(only), totals, rate)?;
                self.step += 1;
                Ok(report(&out))
            }
            many => {
                let mut loss = 0.0;
                for batch in many {
                    let out = self.run(Task::Accumulate, Some(batch), totals, rate)?;
                    loss += report(&out).loss;
                }
                let out = self.run(Task::Apply, None, 1.0, rate)?;
                self.step += 1;
                Ok(StepReport { loss, norm: report(&out).norm })
            }
        }
    }

    /// The loss on a batch, the weighed mean over its rows, without learning from it.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn evaluate(&mut self, batch: &Batch) -> Result<f32, TrainError> {
        let total = self.total_weight(Task::Evaluate, batch)?;
        Ok(report(&self.run(Task::Evaluate, Some(batch), total, 0.0)?).loss)
    }

    /// The loss on a batch and its gradient by each parameter, in the recipe's order; nothing is updated.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn gradients(&mut self, batch: &Batch) -> Result<(f32, Vec<Tensor>), TrainError> {
        let total = self.total_weight(Task::Gradients, batch)?;
        let mut out = self.run(Task::Gradients, Some(batch), total, 0.0)?;
        let gradients = out.split_off(1);
        Ok((report(&out).loss, gradients))
    }

    /// What a step on batches of those inputs takes.
    ///
    /// # Errors
    /// [`TrainError::Memory`] when it is more than it may, and what else planning refuses.
    pub fn footprint(&mut self, inputs: &[(DType, Vec<usize>)]) -> Result<Footprint, TrainError> {
        let at = self.plan(Task::Step, inputs)?;
        Ok(self.plans[at].footprint)
    }

    /// What steps on batches of any of those inputs take, planned in that order: the arena of the largest, with all that
    /// is packed beside it. Inputs for which most is packed come first, so that the others are fitted into what is left.
    ///
    /// # Errors
    /// As [`Trainer::footprint`].
    pub fn prove(&mut self, of: &[Vec<(DType, Vec<usize>)>]) -> Result<Footprint, TrainError> {
        self.most(Task::Step, of)
    }

    /// As [`Trainer::prove`], of what [`Trainer::gradients`] takes beside the gradients that it gives.
    ///
    /// # Errors
    /// As [`Trainer::footprint`].
    pub fn prove_gradients(&mut self, of: &[Vec<(DType, Vec<usize>)>]) -> Result<Footprint, TrainError> {
        self.most(Task::Gradients, of)
    }

    fn most(&mut self, task: Task, of: &[Vec<(DType, Vec<usize>)>]) -> Result<Footprint, TrainError> {
        let mut most: Option<Footprint> = None;
        for inputs in of {
            let at = self.plan(task, inputs)?;
            let f = self.plans[at].footprint;
            most = Some(most.map_or(f, |m| Footprint {
                arena: m.arena.max(f.arena),
                weights: m.weights.max(f.weights),
                recomputed: m.recomputed.max(f.recomputed),
                ..m
            }));
        }
        most.ok_or_else(|| TrainError::Batch { what: "inputs".into(), expected: "some".into(), found: "none".into() })
    }

    /// Names, kernels and operators of the steps of a training step.
    ///
    /// # Errors
    /// As [`Trainer::footprint`].
    pub fn steps(&mut self, inputs: &[(DType, Vec<usize>)]) -> Result<Vec<crate::plan::StepInfo>, TrainError> {
        let at = self.plan(Task::Step, inputs)?;
        Ok(self.plans[at].plan.steps())
    }

    /// What of the last plan that trains runs on a GPU; `None` where there is none, or no plan yet.
    pub fn on_gpu(&self) -> Option<OnGpu> {
        self.plans.iter().rev().find(|m| matches!(m.task, Task::Step | Task::Accumulate))?.plan.on_gpu()
    }

    /// Updates made so far.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// [`TrainError::Unknown`].
    pub fn parameter(&self, name: &str) -> Result<Tensor, TrainError> {
        let trained = &self.residents[..self.recipe.trainable.len()];
        let slot = trained.iter().find(|s| s.name == name);
        let slot = slot.ok_or_else(|| TrainError::Unknown { what: "parameter", name: name.to_string() })?;
        self.held(slot)
    }

    /// Everything that outlives a step, by name: parameters, and under their names what the optimizer remembers. With
    /// [`Trainer::steps_done`] it is all that a trainer needs to go on as if it had never stopped.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.residents.iter().map(|s| Ok((s.name.clone(), self.held(s)?))).collect()
    }

    /// Goes back to a state. What `state` does not name stays.
    ///
    /// # Errors
    /// [`TrainError::Unknown`] and [`TrainError::Batch`] when a tensor is none of this trainer's; nothing is changed
    /// then.
    pub fn restore(&mut self, state: &[(String, Tensor)], steps_done: u64) -> Result<(), TrainError> {
        let mut places = Vec::with_capacity(state.len());
        for (name, t) in state {
            let slot = self.residents.iter().find(|s| s.name == *name);
            let slot = slot.ok_or_else(|| TrainError::Unknown { what: "parameter", name: name.clone() })?;
            fits(name, (slot.dtype, &slot.shape), t)?;
            places.push(slot.place.start);
        }
        self.settle()?;
        for ((_, t), at) in state.iter().zip(places) {
            self.arena.put(at, t)?;
        }
        self.step = steps_done;
        Ok(())
    }

    /// The graph with the parameters' values now.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub fn trained(&self) -> Result<Graph, TrainError> {
        let mut graph = self.graph.clone();
        let parameters = graph.inputs.split_off(self.own_inputs);
        for (v, slot) in parameters.into_iter().zip(&self.residents) {
            let t = self.held(slot)?;
            graph.values[v].constant = Some(Arc::new(t));
        }
        Ok(graph)
    }

    /// `task` is what is done with the batch next, so that nothing is planned only to know how many rows it has.
    fn total_weight(&mut self, task: Task, batch: &Batch) -> Result<f64, TrainError> {
        if let Some(w) = &batch.weights {
            return Ok(w.data().to_f64().iter().sum());
        }
        let shapes: Vec<(DType, Vec<usize>)> = batch.inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        // Every task has the same rows.
        if let Some(made) = self.plans.iter().find(|m| m.shapes == shapes) {
            return Ok(made.weights.as_ref().map_or(1.0, |s| s.iter().product::<usize>() as f64));
        }
        let at = self.plan(task, &shapes)?;
        Ok(self.plans[at].weights.as_ref().map_or(1.0, |s| s.iter().product::<usize>() as f64))
    }

    fn run(&mut self, task: Task, batch: Option<&Batch>, total: f64, rate: f32) -> Result<Vec<Tensor>, TrainError> {
        let inputs = batch.map_or(&[][..], |b| &b.inputs);
        let shapes: Vec<(DType, Vec<usize>)> = inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        let at = self.plan(task, &shapes)?;
        self.settle()?;
        let made = &mut self.plans[at];
        // What is made here; a batch itself is only lent.
        let mut made_here: Vec<Tensor> = Vec::new();
        if let Some(batch) = batch
            && let Some(shape) = &made.weights
        {
            let dtype = self.residents.first().map_or(DType::F32, |s| s.dtype);
            let n: usize = shape.iter().product();
            let weights = match &batch.weights {
                Some(w) => {
                    fits("weights", (w.dtype(), shape), w)?;
                    w.data().to_f64()
                }
                None => vec![1.0; n],
            };
            let total = if total == 0.0 { 1.0 } else { total };
            let weights: Vec<f64> = weights.iter().map(|w| w / total).collect();
            made_here.push(Tensor::from_f64(dtype, shape, &weights)?);
        }
        if matches!(task, Task::Step | Task::Apply) {
            made_here.push(Tensor::f32(&[2], vec![rate, (self.step + 1) as f32])?);
        }
        let target = batch.and_then(|b| b.target.as_ref());
        let refs: Vec<&Tensor> = inputs.iter().chain(target).chain(&made_here).collect();
        let wants = made.plan.inputs();
        if wants.len() != refs.len() {
            let (expected, found) = (format!("{} tensors", wants.len()), format!("{}", refs.len()));
            return Err(TrainError::Batch { what: "inputs and target".into(), expected, found });
        }
        Ok(made.plan.run_in(&mut self.arena, &refs)?)
    }

    /// The plan for a task at those shapes, made if need be; its place among the plans.
    fn plan(&mut self, task: Task, shapes: &[(DType, Vec<usize>)]) -> Result<usize, TrainError> {
        let made = match self.plans.iter().position(|m| m.task == task && m.shapes == shapes) {
            Some(i) => self.plans.remove(i),
            None => {
                let made = self.make(task, shapes)?;
                self.packed = self.packed.max(made.footprint.weights);
                if self.plans.len() == PLANS {
                    // The one that was not used for longest.
                    self.plans.remove(0);
                }
                made
            }
        };
        self.plans.push(made);
        Ok(self.plans.len() - 1)
    }

    fn make(&self, task: Task, shapes: &[(DType, Vec<usize>)]) -> Result<Made, TrainError> {
        let options = RunOptions {
            reference: self.options.reference,
            pool: self.options.pool.clone(),
            packs: self.packs.clone(),
            device: self.options.device.clone(),
            profile: self.options.profile.clone().filter(|_| task != Task::Evaluate),
            lean: true,
            bf16: self.options.bf16,
            ..RunOptions::default()
        };
        let mut built = self.build(task, shapes, &options)?;
        let plan = |tape: &Tape, residents: &[Resident]| {
            let graph = tape.graph();
            let inputs: Vec<Fact> =
                graph.inputs.iter().map(|&v| Fact { value: None, ..tape.fact(v).clone() }).collect();
            Plan::with_residents(graph, &inputs, residents, &options)
        };
        let footprint = |plan: &Plan, recomputed: usize| Footprint {
            arena: plan.arena_bytes(),
            resident: self.resident_bytes,
            weights: plan.made_bytes(&self.graph).max(self.packed),
            recomputed,
        };
        let first = plan(&built.tape, &built.residents)?;
        let mut taken = footprint(&first, 0);
        let mut made = Some(first);
        if self.recipe.spare > 0.0 && built.forward < built.tape.graph().nodes.len() {
            let spend = self.recipe.spare * recompute::operations(&built.tape);
            let chosen = recompute::choose(&built.tape, built.forward, &built.pinned, 0, spend);
            if let Some(chosen) = chosen {
                // One plan at a time, here and below: each has scratch and packed weights of its own.
                drop(made);
                let tried = plan(&recompute::apply(&built.tape, built.forward, &chosen), &built.residents)?;
                let now = footprint(&tried, chosen.len());
                if now.total() < taken.total() {
                    (made, taken) = (Some(tried), now);
                } else {
                    made = Some(plan(&built.tape, &built.residents)?);
                }
            }
        }
        if let Some(may) = self.recipe.max_bytes
            && taken.total() > may
        {
            // What the steps themselves take beyond activations (scratch, fragmentation) is known from the first plan.
            let fixed = taken.weights + self.resident_bytes;
            let mut target = may.saturating_sub(fixed);
            made = None;
            for _ in 0..recompute::ATTEMPTS {
                let Some(chosen) = recompute::choose(&built.tape, built.forward, &built.pinned, target, f64::INFINITY)
                else {
                    break;
                };
                let tape = recompute::apply(&built.tape, built.forward, &chosen);
                let tried = plan(&tape, &built.residents)?;
                let now = footprint(&tried, chosen.len());
                if now.total() <= may {
                    (made, taken) = (Some(tried), now);
                    break;
                }
                if now.total() < taken.total() {
                    taken = now;
                }
                target = target.saturating_sub((now.total().saturating_sub(may)).max(target / 16));
            }
        }
        let Some(plan) = made else {
            return Err(TrainError::Memory {
                needs: taken.total(),
                may: self.recipe.max_bytes.unwrap_or(usize::MAX),
                parameters: self.resident_bytes,
                weights: taken.weights,
            });
        };
        Ok(Made { task, shapes: shapes.to_vec(), plan, footprint: taken, weights: built.weights.take() })
    }

    /// The graph of a task.
    fn build(&self, task: Task, shapes: &[(DType, Vec<usize>)], options: &RunOptions) -> Result<Built, TrainError> {
        let trainable = self.recipe.trainable.len();
        let parameters = &self.residents[..trainable];
        let mut tape;
        let (mut loss, mut weights, mut forward) = (None, None, 0);
        let mut seed = None;
        let leaves: Vec<ValueId>;
        if task == Task::Apply {
            let mut graph = Graph::default();
            let mut facts = Vec::new();
            for slot in parameters {
                let v = graph.add_value(&slot.name, None, None);
                graph.inputs.push(v);
                facts.push(Fact::new(slot.dtype, slot.shape.clone()));
            }
            leaves = graph.inputs.clone();
            tape = Tape::new(Concrete { graph, facts });
        } else {
            if shapes.len() != self.own_inputs {
                let (expected, found) = (format!("{} tensors", self.own_inputs), format!("{}", shapes.len()));
                return Err(TrainError::Batch { what: "inputs".into(), expected, found });
            }
            let mut facts: Vec<Fact> = shapes.iter().map(|(t, s)| Fact::new(*t, s.clone())).collect();
            facts.extend(parameters.iter().map(|s| Fact::new(s.dtype, s.shape.clone())));
            let mut graph = self.graph.clone();
            let output = graph.values.iter().position(|v| v.name == self.recipe.output);
            graph.outputs = output.into_iter().collect();
            graph.prune();
            let mut concrete = Concrete::prepared(&graph, &facts, options)?;
            self.share(&mut concrete);
            let output = concrete.graph.outputs.first().copied();
            let output =
                output.ok_or_else(|| TrainError::Unknown { what: "value", name: self.recipe.output.clone() })?;
            leaves = concrete.graph.inputs[self.own_inputs..].to_vec();
            tape = Tape::new(concrete);
            let placed = self.recipe.objective.place(&mut tape, output)?;
            weights = placed.weight.map(|v| tape.shape(v).to_vec());
            loss = placed.loss;
            seed = Some(placed.seed);
            forward = tape.graph().nodes.len();
        }
        // States and accumulated gradients are inputs of every plan, so that all have the same residents.
        let mut others = Vec::with_capacity(self.residents.len() - trainable);
        for slot in &self.residents[trainable..] {
            others.push(tape.input(&slot.name, slot.dtype, &slot.shape));
        }
        let now = match task {
            Task::Step | Task::Apply => Some(tape.input("now", DType::F32, &[2])),
            _ => None,
        };
        let mut next: Vec<Option<ValueId>> = vec![None; self.residents.len()];
        let mut gradients: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let at_once = task == Task::Step && self.recipe.clip.is_none();
        let update = Update { trainer: self, leaves: &leaves, others: &others, now };
        match (task, seed) {
            (Task::Apply, _) => {
                let held = &others[others.len() - trainable..];
                gradients = leaves.iter().copied().zip(held.iter().copied()).collect();
            }
            (Task::Evaluate, _) | (_, None) => {}
            (_, Some(seed)) => differentiate(&mut tape, &[seed], &leaves, &mut |tape, leaf, g| {
                let i = leaves.iter().position(|&v| v == leaf).unwrap_or(0);
                if at_once {
                    update.add(tape, i, g, None, &mut next)?;
                } else if task == Task::Accumulate {
                    let at = self.residents.len() - trainable + i;
                    let attrs = Attrs::of([]);
                    let held = others[at - trainable];
                    next[at] = Some(tape.one(&optimizer::ACCUMULATE, attrs, &[Some(held), Some(g)])?);
                }
                gradients.insert(leaf, g);
                Ok(())
            })?,
        }
        if task != Task::Evaluate
            && let Some(i) = leaves.iter().position(|v| !gradients.contains_key(v))
        {
            return Err(TrainError::Untouched(self.recipe.trainable[i].clone()));
        }
        tape.enter("update");
        let mut outputs = Vec::new();
        let nan = tape.scalar(DType::F32, f64::NAN)?;
        outputs.push(loss.unwrap_or(nan));
        if matches!(task, Task::Step | Task::Apply) && !at_once {
            let factor = match self.recipe.clip {
                Some(most) => {
                    let (norm, factor) = clipping(&mut tape, gradients.values().copied(), most)?;
                    outputs.push(norm);
                    Some(factor)
                }
                None => None,
            };
            for (i, leaf) in leaves.iter().enumerate() {
                update.add(&mut tape, i, gradients[leaf], factor, &mut next)?;
            }
        }
        if task == Task::Apply {
            for i in self.residents.len() - trainable..self.residents.len() {
                let held = others[i - trainable];
                next[i] = Some(tape.one(&optimizer::CLEAR, Attrs::of([]), &[Some(held)])?);
            }
        }
        if task == Task::Gradients {
            outputs.extend(leaves.iter().map(|leaf| gradients[leaf]));
        }
        let mut residents = Vec::with_capacity(self.residents.len());
        let input_of = |v: ValueId, tape: &Tape| tape.graph().inputs.iter().position(|&i| i == v).unwrap_or(0);
        for (v, next) in leaves.iter().chain(&others).zip(next) {
            let input = input_of(*v, &tape);
            let next = next.map(|next| {
                outputs.push(next);
                outputs.len() - 1
            });
            residents.push(Resident { input, next });
        }
        let pinned: BTreeSet<ValueId> = outputs.iter().copied().collect();
        tape.set_outputs(outputs);
        Ok(Built { tape, residents, weights, forward, pinned })
    }
}

struct Built {
    tape: Tape,
    residents: Vec<Resident>,
    weights: Option<Vec<usize>>,
    /// Nodes before this one are the forward part.
    forward: usize,
    /// Values that are results.
    pinned: BTreeSet<ValueId>,
}

/// Makes update nodes.
struct Update<'a> {
    trainer: &'a Trainer,
    leaves: &'a [ValueId],
    others: &'a [ValueId],
    now: Option<ValueId>,
}

impl Update<'_> {
    /// Of parameter `i` by gradient `g`.
    fn add(
        &self,
        tape: &mut Tape,
        i: usize,
        g: ValueId,
        factor: Option<ValueId>,
        next: &mut [Option<ValueId>],
    ) -> Result<(), OpError> {
        let Recipe { optimizer, trainable, undecayed, .. } = &self.trainer.recipe;
        let count = |k: usize| optimizer.states(&self.trainer.residents[k].shape).len();
        let first: usize = (0..i).map(count).sum();
        let (op, attrs) = optimizer.operator(!undecayed.contains(&trainable[i]));
        let mut inputs = vec![Some(self.leaves[i]), Some(g), self.now, factor];
        inputs.extend((first..first + count(i)).map(|k| Some(self.others[k])));
        tape.enter(&trainable[i]);
        let made = tape.apply(op, attrs, &inputs, &vec![true; 1 + count(i)])?;
        next[i] = made[0];
        for (k, v) in made[1..].iter().enumerate() {
            next[trainable.len() + first + k] = *v;
        }
        Ok(())
    }
}

/// The norm of all gradients together, and the factor that brings it to at most `most`.
fn clipping(
    tape: &mut Tape,
    gradients: impl Iterator<Item = ValueId>,
    most: f32,
) -> Result<(ValueId, ValueId), OpError> {
    let mut total: Option<ValueId> = None;
    for g in gradients {
        let axes: Vec<usize> = (0..tape.shape(g).len()).collect();
        let square = tape.reduce("ReduceSumSquare", g, &axes, false)?;
        let square = tape.cast(square, DType::F32)?;
        total = Some(match total {
            Some(total) => tape.add(total, square)?,
            None => square,
        });
    }
    let total = match total {
        Some(total) => total,
        None => tape.scalar(DType::F32, 0.0)?,
    };
    let norm = tape.unary("Sqrt", total)?;
    // As PyTorch does, so that a norm of 0 has a factor.
    let least = tape.scalar(DType::F32, 1e-6)?;
    let length = tape.add(norm, least)?;
    let most = tape.scalar(DType::F32, f64::from(most))?;
    let factor = tape.div(most, length)?;
    let one = tape.scalar(DType::F32, 1.0)?;
    let factor = tape.standard("Min", [], &[factor, one])?;
    Ok((norm, factor))
}

fn report(out: &[Tensor]) -> StepReport {
    let number = |i: usize| out.get(i).and_then(|t| t.data().to_f64().first().map(|&v| v as f32));
    StepReport { loss: number(0).unwrap_or(f32::NAN), norm: number(1) }
}

fn fits(what: &str, (dtype, shape): (DType, &[usize]), t: &Tensor) -> Result<(), TrainError> {
    if t.dtype() == dtype && t.shape() == shape {
        return Ok(());
    }
    let (expected, found) = (format!("{dtype} {shape:?}"), format!("{} {:?}", t.dtype(), t.shape()));
    Err(TrainError::Batch { what: what.to_string(), expected, found })
}

/// The graph with those constants as inputs after its own, and their values.
fn with_parameters(graph: &Graph, names: &[String]) -> Result<(Graph, Vec<Arc<Tensor>>), TrainError> {
    let mut graph = graph.clone();
    let mut values = Vec::with_capacity(names.len());
    for name in names {
        let unknown = || TrainError::Unknown { what: "constant", name: name.clone() };
        let v = graph.values.iter().position(|v| v.name == *name).ok_or_else(unknown)?;
        let t = graph.values[v].constant.take().ok_or_else(unknown)?;
        if !matches!(t.dtype(), DType::F32 | DType::F64) {
            return Err(TrainError::NotFloat { name: name.clone(), dtype: t.dtype() });
        }
        graph.inputs.push(v);
        values.push(t);
    }
    Ok((graph, values))
}
