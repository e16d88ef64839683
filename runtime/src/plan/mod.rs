//! Concrete shapes → schedule, arena offsets, chosen kernels.
//!
//! A [`Plan`] is made once per set of input shapes, by a [`Runner`]. Its storage is in three kinds: weights (shared,
//! packed by the kernels when they are made), per-stream state (none yet declared by a graph), and scratch: one arena
//! whose offsets are settled by liveness before the first run, so that its size is known before anything is computed.
//! Where shapes depend on data (`NonZero`, a `Reshape` to computed dimensions) a plan ends in probes, and a second plan
//! for what reads them follows once they have run.
//! It deliberately knows nothing of files, of learning, or of what its outputs mean.
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use hone_kernels::threads::Pool;

use crate::graph::{Graph, OpaqueKernel, ValueId};
use crate::ops::{Attrs, Fact, Kind, OpDef, OpError};
use crate::tensor::{DType, Data, Tensor, TensorError};

mod arena;
mod concrete;
mod control;
mod lowering;
mod packs;
mod passes;
mod profile;
mod resident;
mod runner;
mod specialise;
pub use concrete::Concrete;
pub use control::with_captures;
pub use lowering::{Codes, Fallible, Io, Kernel, Lowered, Lowering, Reads, Weight, Writes};
pub use packs::Packs;
pub use profile::{Profile, StepTime};
pub use resident::Resident;
pub use runner::{RunOptions, Runner};

use control::{Control, ControlError};
use resident::Residents;
use runner::Budget;
use specialise::{How, Known, Special};

/// Most operands, results and scratch areas one fast step may name.
pub(crate) const MAX_SLOTS: usize = 20;

/// Most bytes of one value: more than any memory, little enough that no sum of offsets overflows.
const LARGEST_BYTES: usize = if usize::BITS > 32 { (1u64 << 44) as usize } else { 1 << 28 };

/// Why a plan cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A graph gives a value that nothing makes.
    #[error("output `{value}` is made by no node")]
    Unmade {
        /// The value.
        value: String,
    },
    /// A shape depends on data where every shape must be known.
    #[error("the shape of what node `{node}` ({op}) makes depends on the data: every shape must be known here")]
    DataDependent {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// A node reads a resident value after what replaces it was written.
    #[error("node `{node}` reads `{value}` after it was updated: a step must update last")]
    ReadAfterUpdate {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// A value is larger than one may be.
    #[error("value `{value}` of shape {shape:?} takes more than the {limit} bytes a value may (Limits::run_bytes)")]
    TooLarge {
        /// The value.
        value: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes it may take.
        limit: usize,
    },
    /// The memory of a run cannot be had.
    #[error(
        "running needs {bytes} bytes of memory at once, more than it may (Limits::run_bytes) or this machine gives; the \
         largest value is `{largest}`; smaller inputs need less"
    )]
    Memory {
        /// Bytes of the arena.
        bytes: usize,
        /// The largest value in it.
        largest: String,
    },
    /// An operator refuses its operands.
    #[error("node `{node}` ({op}): {source}")]
    Op {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// Why.
        source: OpError,
    },
    /// An opaque operator failed.
    #[error("node `{node}` ({op}, run by the importer's own code): {why}")]
    Opaque {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// The operator's message.
        why: String,
    },
    /// A graph inside a node failed.
    #[error("in the graph of node `{node}`: {source}")]
    Nested {
        /// The node.
        node: String,
        /// Why.
        source: Box<PlanError>,
    },
    /// A tensor does not have the planned type or shape.
    #[error("{what} `{name}` must be {expected_dtype} {expected:?}, found {found_dtype} {found:?}")]
    Mismatch {
        /// `input`, or `result of node`.
        what: &'static str,
        /// Which one.
        name: String,
        /// Planned type.
        expected_dtype: DType,
        /// Planned shape.
        expected: Vec<usize>,
        /// Actual type.
        found_dtype: DType,
        /// Actual shape.
        found: Vec<usize>,
    },
    /// A tensor that cannot be built.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Where a value lives while the plan runs.
#[derive(Clone, Debug)]
enum Place {
    /// A byte range of the arena.
    Arena(Range<usize>),
    /// A tensor of its own, of whatever shape a probe gives it.
    Held,
    /// A constant tensor.
    Constant(Arc<Tensor>),
    /// Never materialised: absorbed into a packed weight, or nobody reads it.
    Nowhere,
}

#[derive(Clone, Debug)]
struct Slot {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    place: Place,
}

enum Run {
    Fast(Box<dyn Fallible>),
    Reference(&'static OpDef, Arc<Attrs>),
    Opaque(Box<dyn OpaqueKernel>),
    Control(Box<Control>),
}

struct Step {
    node: String,
    op: String,
    run: Run,
    /// Values read, in the kernel's own order.
    reads: Vec<Option<ValueId>>,
    writes: Vec<Option<ValueId>>,
    scratch: Range<usize>,
}

/// One line of [`Plan::steps`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepInfo {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The kernel, `reference`, `opaque`, or `graph` for an operator that runs graphs.
    pub kernel: &'static str,
}

impl Step {
    fn info(&self) -> StepInfo {
        let kernel = match &self.run {
            Run::Fast(k) => k.name(),
            Run::Reference(..) => "reference",
            Run::Opaque(_) => "opaque",
            Run::Control(_) => "graph",
        };
        StepInfo { node: self.node.clone(), op: self.op.clone(), kernel }
    }
}

/// Where an output of the graph comes from.
enum Output {
    Here(ValueId),
    Rest(usize),
}

/// What follows when the probes have run.
struct Rest {
    runner: Runner,
    /// The values it reads, in the order of its inputs.
    feeds: Vec<ValueId>,
}

/// A graph at concrete shapes, ready to run.
pub struct Plan {
    steps: Vec<Step>,
    shared: Vec<StepInfo>,
    slots: Vec<Slot>,
    inputs: Vec<ValueId>,
    outputs: Vec<Output>,
    rest: Option<Rest>,
    /// Results of probes, by value; kept only while a run lasts.
    held: Vec<Option<Tensor>>,
    pool: Arc<Pool>,
    profile: Option<Arc<Profile>>,
    /// Most bytes of a value that a probe makes.
    bytes: usize,
    /// Name of the largest value in the arena.
    largest: String,
    arena_bytes: usize,
    weight_bytes: usize,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({} steps, arena {} bytes)", self.steps.len(), self.arena_bytes)
    }
}

impl Plan {
    /// Lowers `graph` for inputs of those types and shapes, in the graph's order.
    ///
    /// # Errors
    /// [`PlanError`] naming the value or node that cannot be planned.
    pub fn new(graph: &Graph, inputs: &[Fact], options: &RunOptions) -> Result<Plan, PlanError> {
        Plan::with_residents(graph, inputs, &[], options)
    }

    /// The same with inputs that stay in the arena. They are no inputs of a run, and what replaces them is no output.
    /// They take the first bytes of the arena, in their order, so that plans with equal residents can share it.
    ///
    /// # Errors
    /// [`PlanError`] as [`Plan::new`]; [`PlanError::ReadAfterUpdate`] when a node comes too late.
    pub fn with_residents(
        graph: &Graph,
        inputs: &[Fact],
        residents: &[Resident],
        options: &RunOptions,
    ) -> Result<Plan, PlanError> {
        let mut special = Special::new(graph, inputs, options.bytes)?;
        // A pass may move a node, and what reads a resident may not come after what replaces it.
        if !options.reference && residents.is_empty() {
            passes::optimise(&mut special)?;
        }
        let mut slots: Vec<Slot> = special
            .names
            .iter()
            .zip(&special.known)
            .map(|(name, known)| match known {
                Known::Static(f) => Slot {
                    name: name.clone(),
                    dtype: f.dtype,
                    shape: f.shape.clone(),
                    place: f.value.clone().map_or(Place::Nowhere, Place::Constant),
                },
                Known::Probed => Slot { name: name.clone(), dtype: DType::F32, shape: Vec::new(), place: Place::Held },
                Known::Later => {
                    Slot { name: name.clone(), dtype: DType::F32, shape: Vec::new(), place: Place::Nowhere }
                }
            })
            .collect();
        let (rest_graph, feeds) = special.split_rest();
        let mut rest_outputs = 0;
        let outputs: Vec<Output> = special
            .outputs
            .iter()
            .map(|&v| match special.known[v] {
                Known::Later => {
                    rest_outputs += 1;
                    Output::Rest(rest_outputs - 1)
                }
                _ => Output::Here(v),
            })
            .collect();
        let resident = Residents::new(residents, &special.inputs, &special.outputs, &slots);
        let Special { nodes, inputs, .. } = special;

        // Values that outlive the steps.
        let mut kept = vec![false; slots.len()];
        let here = outputs.iter().filter_map(|o| match o {
            Output::Here(v) => Some(*v),
            Output::Rest(_) => None,
        });
        here.chain(feeds.iter().copied()).for_each(|v| kept[v] = true);
        let rest =
            (rest_outputs > 0).then(|| Rest { runner: Runner::new(Arc::new(rest_graph), options.clone()), feeds });

        // Consumers first: a value nobody reads at run time (a dequantised weight its consumer packed) is never made.
        let mut producers = vec![None; slots.len()];
        for (i, p) in nodes.iter().enumerate() {
            p.node.outputs.iter().flatten().for_each(|&v| producers[v] = Some(i));
        }
        let mut needed = kept.clone();
        let mut steps = Vec::new();
        let mut scratch_bytes = Vec::new();
        let mut weight_bytes = 0;
        // Values that are another value's bytes under another shape.
        let mut shared = Vec::new();
        let mut same_as: Vec<Option<ValueId>> = vec![None; slots.len()];
        let lowered: Vec<crate::graph::Node> = nodes.iter().map(|p| p.node.clone()).collect();
        for planned in nodes.into_iter().rev() {
            let node = &planned.node;
            if !node.outputs.iter().flatten().any(|&o| needed[o]) {
                continue;
            }
            let op_error = |source| PlanError::Op { node: node.name.clone(), op: node.op.name().to_string(), source };
            let mut scratch = 0;
            let (run, reads) = match planned.how {
                How::Own(def, attrs) => {
                    if def.kind == Kind::Kept
                        && let Some(t) = computed(def, &attrs, node, &slots).map_err(op_error)?
                        && let Some(v) = node.outputs[0]
                    {
                        // A weight no kernel took as it is: made once, here.
                        slots[v].place = Place::Constant(Arc::new(t));
                        continue;
                    }
                    let lowering = Lowering {
                        nodes: &lowered,
                        node,
                        attrs: &attrs,
                        slots: &slots,
                        producers: &producers,
                        packs: &options.packs,
                    };
                    let fast = !options.reference && !planned.probe;
                    match if fast { (def.lower)(&lowering).map_err(op_error)? } else { None } {
                        // A kernel that does not know of it must not find its operand in its result.
                        Some(l) if !l.in_place && resident.updates(node) => {
                            (Run::Reference(def, attrs), node.inputs.clone())
                        }
                        Some(l) if let Some(of) = same_area(&l, node, &slots) => {
                            needed[of] = true;
                            same_as[node.outputs[0].unwrap_or(of)] = Some(of);
                            let (node, op) = (node.name.clone(), node.op.name().to_string());
                            shared.push(StepInfo { node, op, kernel: "shared" });
                            continue;
                        }
                        Some(l) if l.reads.len() + node.outputs.len() < MAX_SLOTS => {
                            scratch = l.scratch_floats.saturating_mul(4);
                            if scratch > options.bytes {
                                let value = format!("{}.scratch", node.name);
                                let (shape, limit) = (vec![l.scratch_floats], options.bytes);
                                return Err(PlanError::TooLarge { value, shape, limit });
                            }
                            weight_bytes += l.weight_bytes;
                            let in_result = |v: &Option<ValueId>| v.is_some_and(|v| resident.replaced_by(v, node));
                            let reads = l.reads.iter().map(|&i| node.inputs[i].filter(|_| !in_result(&node.inputs[i])));
                            let reads = reads.collect();
                            (Run::Fast(l.kernel), reads)
                        }
                        _ => (Run::Reference(def, attrs), node.inputs.clone()),
                    }
                }
                How::Opaque(kernel) => (Run::Opaque(kernel), node.inputs.clone()),
                How::Control(def, attrs) => {
                    (Run::Control(Box::new(Control::new(def, &attrs, options).map_err(op_error)?)), node.inputs.clone())
                }
            };
            for &v in reads.iter().flatten() {
                needed[v] = true;
            }
            scratch_bytes.push(scratch);
            let writes = node.outputs.clone();
            let (node, op) = (node.name.clone(), node.op.name().to_string());
            steps.push(Step { node, op, run, reads, writes, scratch: 0..0 });
        }
        steps.reverse();
        scratch_bytes.reverse();
        for (v, s) in slots.iter_mut().enumerate() {
            match &s.place {
                Place::Constant(t) if needed[v] => weight_bytes += t.len() * t.dtype().size_bytes(),
                // What only led to other constants, or was packed by a kernel, is not kept.
                Place::Constant(_) => s.place = Place::Nowhere,
                _ => {}
            }
        }

        // Lifetimes, in step numbers: inputs are born before the first step, outputs live past the last. An area lives
        // as long as any value that is its bytes.
        let area = |mut v: ValueId| {
            while let Some(of) = same_as[v] {
                v = of;
            }
            v
        };
        let mut last_use = vec![0; slots.len()];
        for (i, s) in steps.iter().enumerate() {
            s.reads.iter().flatten().for_each(|&v| last_use[area(v)] = i);
        }
        for (v, &k) in kept.iter().enumerate() {
            if k {
                last_use[area(v)] = steps.len();
            }
        }
        let mut requests = Vec::new();
        let mut owner = Vec::new();
        let mut ask = |v: ValueId, born: usize| {
            if resident.place(v).is_some() || matches!(slots[v].place, Place::Constant(_) | Place::Held) {
                return;
            }
            let bytes = slots[v].shape.iter().product::<usize>() * slots[v].dtype.size_bytes();
            requests.push(arena::Request { bytes, first: born, last: last_use[v].max(born) });
            owner.push(Some(v));
        };
        for &v in &inputs {
            ask(v, 0);
        }
        for (i, s) in steps.iter().enumerate() {
            for &v in s.writes.iter().flatten() {
                ask(v, i);
            }
        }
        for (i, &bytes) in scratch_bytes.iter().enumerate() {
            requests.push(arena::Request { bytes, first: i, last: i });
            owner.push(None);
        }
        let (ranges, moving_bytes) = arena::place(&requests);
        let shift = |r: Range<usize>| r.start + resident.bytes..r.end + resident.bytes;
        let arena_bytes = resident.bytes + moving_bytes;
        resident.check(&steps, &slots, area)?;
        let size = |(r, _): &(&arena::Request, &Option<ValueId>)| r.bytes;
        let largest = requests.iter().zip(&owner).max_by_key(size).and_then(|(_, owner)| *owner);
        let largest = largest.map_or_else(String::new, |v| slots[v].name.clone());
        if arena_bytes > options.bytes {
            return Err(PlanError::Memory { bytes: arena_bytes, largest });
        }
        let mut step_of_scratch = 0;
        for (range, owner) in ranges.into_iter().zip(owner) {
            let range = shift(range);
            match owner {
                Some(v) => slots[v].place = Place::Arena(range),
                None => {
                    steps[step_of_scratch].scratch = range;
                    step_of_scratch += 1;
                }
            }
        }
        for (v, range) in &resident.places {
            slots[*v].place = Place::Arena(range.clone());
        }
        let inputs: Vec<ValueId> = inputs.into_iter().filter(|&v| resident.place(v).is_none()).collect();
        let outputs: Vec<Output> =
            (outputs.into_iter()).filter(|o| !matches!(o, Output::Here(v) if resident.place(*v).is_some())).collect();
        for v in 0..slots.len() {
            if same_as[v].is_some() {
                slots[v].place = slots[area(v)].place.clone();
            }
        }
        let held = slots.iter().map(|_| None).collect();
        let pool = options.pool.clone();
        let (bytes, profile) = (options.bytes, options.profile.clone());
        shared.reverse();
        Ok(Plan {
            steps,
            shared,
            slots,
            inputs,
            outputs,
            rest,
            held,
            pool,
            profile,
            bytes,
            largest,
            arena_bytes,
            weight_bytes,
        })
    }

    /// Bytes of the arena: every activation and scratch area, overlapped by liveness.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of weights the steps hold, packed or plain.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Whether part of the graph can be planned only while it runs, because shapes depend on data.
    pub fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// The nodes that are planned while it runs, because shapes depend on data: node and operator, in order. Graphs
    /// inside nodes are not looked into.
    pub fn later(&self) -> Vec<(String, String)> {
        let nodes = self.rest.iter().flat_map(|r| &r.runner.graph().nodes);
        nodes.map(|n| (n.name.clone(), n.op.name().to_string())).collect()
    }

    /// The steps in order; those of the rest follow only while it runs and are in [`Plan::later`].
    pub fn steps(&self) -> Vec<StepInfo> {
        self.steps.iter().map(Step::info).collect()
    }

    /// The nodes that run nothing: their results are their operands' bytes under another shape.
    pub fn shared(&self) -> &[StepInfo] {
        &self.shared
    }

    /// Types and shapes of the inputs of a run, residents left out.
    pub fn inputs(&self) -> Vec<(DType, &[usize])> {
        self.inputs.iter().map(|&v| (self.slots[v].dtype, &self.slots[v].shape[..])).collect()
    }

    /// Types and shapes of the outputs; `None` for one whose shape depends on data.
    pub fn output_facts(&self) -> Vec<Option<(DType, &[usize])>> {
        self.outputs
            .iter()
            .map(|o| match o {
                Output::Here(v) if !matches!(self.slots[*v].place, Place::Held) => {
                    Some((self.slots[*v].dtype, &self.slots[*v].shape[..]))
                }
                _ => None,
            })
            .collect()
    }

    /// Runs once in an arena of the caller's. `inputs` in the order of [`Graph::inputs`], residents left out; so are what
    /// replaces them among the results.
    ///
    /// # Errors
    /// [`PlanError`] when an input has another type or shape, or a node fails.
    pub fn run_in(&mut self, arena: &mut Arena, inputs: &[&Tensor]) -> Result<Vec<Tensor>, PlanError> {
        self.run(arena, inputs, &mut Budget { turns: u64::MAX })
    }

    /// Runs once. `inputs` in the order of [`Graph::inputs`]; the results in the order of [`Graph::outputs`].
    ///
    /// # Errors
    /// [`PlanError`] when an input has another type or shape, or a node without a kernel of ours fails.
    fn run(&mut self, arena: &mut Arena, inputs: &[&Tensor], budget: &mut Budget) -> Result<Vec<Tensor>, PlanError> {
        let mut outputs = Vec::with_capacity(self.outputs.len());
        self.run_into(arena, inputs, budget, &mut outputs)?;
        Ok(outputs)
    }

    /// The same into `outputs`: a tensor there of the type and shape of the result is overwritten, anything else replaced. With
    /// such tensors, and kernels of ours for all steps, nothing is allocated once the arena has its size.
    fn run_into(
        &mut self,
        arena: &mut Arena,
        inputs: &[&Tensor],
        budget: &mut Budget,
        outputs: &mut Vec<Tensor>,
    ) -> Result<(), PlanError> {
        let words = self.arena_bytes.div_ceil(8);
        // A shape from a file must not be able to abort the process.
        let missing = words.saturating_sub(arena.words.len());
        arena
            .words
            .try_reserve_exact(missing)
            .map_err(|_| PlanError::Memory { bytes: self.arena_bytes, largest: self.largest.clone() })?;
        arena.words.resize(words.max(arena.words.len()), 0);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut arena.words);
        for (&v, t) in self.inputs.iter().zip(inputs) {
            self.check("input", v, t)?;
            self.store(bytes, v, t);
        }
        for i in 0..self.steps.len() {
            let began = self.profile.as_ref().map(|_| Instant::now());
            if matches!(self.steps[i].run, Run::Fast(_)) {
                self.run_fast(bytes, &self.steps[i])?;
            } else {
                self.run_slow(bytes, i, budget)?;
            }
            if let (Some(began), Some(profile)) = (began, &self.profile) {
                profile.add(self.steps[i].info(), began.elapsed());
            }
        }
        let mut later = Vec::new();
        if let Some(mut rest) = self.rest.take() {
            let fed: Result<Vec<Tensor>, PlanError> = rest.feeds.iter().map(|&v| self.load(bytes, v)).collect();
            let done = fed.and_then(|fed| rest.runner.run_within(&fed.iter().collect::<Vec<_>>(), budget));
            self.rest = Some(rest);
            later = done?.into_iter().map(Some).collect();
        }
        outputs.truncate(self.outputs.len());
        for (i, o) in self.outputs.iter().enumerate() {
            let unmade = || PlanError::Unmade { value: format!("output {i} of the rest") };
            let made = match o {
                Output::Here(v) => {
                    if outputs.get_mut(i).is_some_and(|there| self.overwritten(bytes, *v, there)) {
                        continue;
                    }
                    self.load(bytes, *v)?
                }
                Output::Rest(i) => later.get_mut(*i).and_then(Option::take).ok_or_else(unmade)?,
            };
            match outputs.get_mut(i) {
                Some(there) => *there = made,
                None => outputs.push(made),
            }
        }
        self.held.iter_mut().for_each(|t| *t = None);
        Ok(())
    }

    /// Writes `v` into `to` when it is in the arena and of the type and shape of `to`.
    fn overwritten(&self, arena: &[u8], v: ValueId, to: &mut Tensor) -> bool {
        let slot = &self.slots[v];
        let Place::Arena(r) = &slot.place else { return false };
        let same = to.dtype() == slot.dtype && to.shape() == slot.shape;
        if same {
            to.overwrite(&arena[r.clone()]);
        }
        same
    }

    /// A step that works on tensors: by reference, opaque, or by graphs.
    fn run_slow(&mut self, bytes: &mut [u8], i: usize, budget: &mut Budget) -> Result<(), PlanError> {
        let held = self.load_all(bytes, &self.steps[i].reads)?;
        let held = self.checked(i, held)?;
        let refs: Vec<Option<&Tensor>> = held.iter().map(|t| t.as_deref()).collect();
        let step = &mut self.steps[i];
        let op_error = |step: &Step, source| PlanError::Op { node: step.node.clone(), op: step.op.clone(), source };
        let out = match &mut step.run {
            Run::Reference(def, attrs) => (def.reference)(attrs, &refs).map_err(|e| op_error(step, e))?,
            Run::Opaque(kernel) => kernel.run(&refs).map_err(|why| PlanError::Opaque {
                node: step.node.clone(),
                op: step.op.clone(),
                why,
            })?,
            Run::Control(control) => match control.run(&refs, budget) {
                Ok(out) => out,
                Err(ControlError::Op(e)) => return Err(op_error(step, e)),
                Err(ControlError::Plan(e)) => {
                    return Err(PlanError::Nested { node: step.node.clone(), source: Box::new(e) });
                }
            },
            Run::Fast(_) => Vec::new(),
        };
        let writes = self.steps[i].writes.clone();
        let mut out = out.into_iter();
        for v in writes {
            let t = out.next();
            let (Some(v), t) = (v, t) else { continue };
            let Some(t) = t else {
                let source = OpError::unsupported(format!("result `{}` is asked for", self.slots[v].name));
                return Err(op_error(&self.steps[i], source));
            };
            if matches!(self.slots[v].place, Place::Held) {
                self.held[v] = Some(t);
            } else {
                self.check("result of node", v, &t)?;
                self.store(bytes, v, &t);
            }
        }
        Ok(())
    }

    /// The operands of a step, once it is known that a probe's result is one that may be made: its shape depends on
    /// values, and those come from outside.
    fn checked(&self, i: usize, held: Vec<Option<Tensor>>) -> Result<Vec<Option<Arc<Tensor>>>, PlanError> {
        let held: Vec<Option<Arc<Tensor>>> = held.into_iter().map(|t| t.map(Arc::new)).collect();
        let step = &self.steps[i];
        let probe = step.writes.iter().flatten().any(|&v| matches!(self.slots[v].place, Place::Held));
        let Run::Reference(def, attrs) = &step.run else { return Ok(held) };
        if !probe {
            return Ok(held);
        }
        let facts: Vec<Option<Fact>> = held.iter().map(|t| t.clone().map(Fact::constant)).collect();
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let op_error = |source| PlanError::Op { node: step.node.clone(), op: step.op.clone(), source };
        for (i, fact) in (def.shape)(attrs, &refs).map_err(op_error)?.unwrap_or_default().into_iter().enumerate() {
            if specialise::bytes_of(&fact).is_none_or(|b| b > self.bytes) {
                let value = step.writes.get(i).copied().flatten().map_or(&step.node, |v| &self.slots[v].name).clone();
                return Err(PlanError::TooLarge { value, shape: fact.shape, limit: self.bytes });
            }
        }
        Ok(held)
    }

    fn run_fast(&self, arena: &mut [u8], step: &Step) -> Result<(), PlanError> {
        let Run::Fast(kernel) = &step.run else { return Ok(()) };
        // Every operand gets a disjoint range; one that occurs twice is borrowed once and pointed at twice.
        let mut ranges: [Range<usize>; MAX_SLOTS] = std::array::from_fn(|_| 0..0);
        let mut used = 0;
        let mut read_slot = [None; MAX_SLOTS];
        for (i, v) in step.reads.iter().enumerate() {
            if let Some(v) = v
                && let Place::Arena(r) = &self.slots[*v].place
            {
                let known = (0..used).find(|&k| ranges[k] == *r && !r.is_empty());
                read_slot[i] = Some(known.unwrap_or_else(|| {
                    ranges[used] = r.clone();
                    used += 1;
                    used - 1
                }));
            }
        }
        let first_write = used;
        let mut write_slot = [None; MAX_SLOTS];
        for (i, v) in step.writes.iter().enumerate() {
            if let Some(v) = v
                && let Place::Arena(r) = &self.slots[*v].place
            {
                ranges[used] = r.clone();
                write_slot[i] = Some(used);
                used += 1;
            }
        }
        let scratch_slot = used;
        ranges[used] = step.scratch.clone();
        let mut parts =
            arena.get_disjoint_mut(ranges).expect("the planner gives the operands of a step disjoint ranges");
        let (read_parts, rest) = parts.split_at_mut(first_write);
        let (write_parts, rest) = rest.split_at_mut(scratch_slot - first_write);
        let mut reads = Reads { bytes: [&[]; MAX_SLOTS] };
        for (i, v) in step.reads.iter().enumerate() {
            let Some(v) = v else { continue };
            reads.bytes[i] = match &self.slots[*v].place {
                Place::Constant(t) => t.data().as_bytes(),
                _ => read_slot[i].map_or(&[], |k: usize| &*read_parts[k]),
            };
        }
        let mut writes = Writes { bytes: std::array::from_fn(|_| &mut [][..]) };
        let mut write_parts = write_parts.iter_mut();
        for (i, slot) in write_slot.iter().enumerate() {
            if slot.is_some()
                && let Some(part) = write_parts.next()
            {
                writes.bytes[i] = part;
            }
        }
        let scratch: &mut [f32] = bytemuck::cast_slice_mut(&mut *rest[0]);
        kernel.try_run(&mut Io { reads, writes, scratch, pool: &self.pool }).map_err(|source| PlanError::Op {
            node: step.node.clone(),
            op: step.op.clone(),
            source,
        })
    }

    fn check(&self, what: &'static str, v: ValueId, t: &Tensor) -> Result<(), PlanError> {
        let s = &self.slots[v];
        if s.dtype == t.dtype() && s.shape == t.shape() {
            return Ok(());
        }
        Err(PlanError::Mismatch {
            what,
            name: s.name.clone(),
            expected_dtype: s.dtype,
            expected: s.shape.clone(),
            found_dtype: t.dtype(),
            found: t.shape().to_vec(),
        })
    }

    fn store(&self, arena: &mut [u8], v: ValueId, t: &Tensor) {
        if let Place::Arena(r) = &self.slots[v].place {
            arena[r.clone()].copy_from_slice(t.data().as_bytes());
        }
    }

    fn load(&self, arena: &[u8], v: ValueId) -> Result<Tensor, PlanError> {
        let s = &self.slots[v];
        match &s.place {
            Place::Constant(t) if t.shape() == s.shape => Ok((**t).clone()),
            Place::Constant(t) => Ok(Tensor::new(&s.shape, t.data().clone())?),
            Place::Arena(r) => Ok(Tensor::new(&s.shape, Data::from_bytes(s.dtype, &arena[r.clone()]))?),
            Place::Held => self.held[v].clone().ok_or_else(|| PlanError::Unmade { value: s.name.clone() }),
            Place::Nowhere => Ok(Tensor::zeros(s.dtype, &s.shape)?),
        }
    }

    fn load_all(&self, arena: &[u8], reads: &[Option<ValueId>]) -> Result<Vec<Option<Tensor>>, PlanError> {
        reads.iter().map(|v| v.map(|v| self.load(arena, v)).transpose()).collect()
    }
}

/// The memory a plan runs in. One arena serves any number of plans, one at a time.
#[derive(Debug, Default)]
pub struct Arena {
    /// 8-byte words, so that every element type is aligned.
    words: Vec<u64>,
}

impl Arena {
    /// Bytes held now.
    pub fn len_bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// Puts a tensor at byte `at`, a multiple of 64: where [`Resident::layout`] says a resident value is.
    ///
    /// # Errors
    /// [`PlanError::Memory`] when the memory cannot be had.
    pub fn put(&mut self, at: usize, t: &Tensor) -> Result<(), PlanError> {
        let bytes = t.data().as_bytes();
        let words = (at + bytes.len()).div_ceil(8);
        let missing = words.saturating_sub(self.words.len());
        let refused = |_| PlanError::Memory { bytes: at + bytes.len(), largest: String::new() };
        self.words.try_reserve_exact(missing).map_err(refused)?;
        self.words.resize(words.max(self.words.len()), 0);
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        all[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// The tensor at byte `at`.
    ///
    /// # Errors
    /// [`PlanError::Tensor`] when there is none of that size.
    pub fn take(&self, at: usize, dtype: DType, shape: &[usize]) -> Result<Tensor, PlanError> {
        let all: &[u8] = bytemuck::cast_slice(&self.words);
        let n = shape.iter().product::<usize>() * dtype.size_bytes();
        let bytes = all.get(at..at + n).unwrap_or(&[]);
        Ok(Tensor::new(shape, Data::from_bytes(dtype, bytes))?)
    }
}

/// The value whose bytes the only result of a node is, when one area of the arena can serve both.
fn same_area(l: &Lowered, node: &crate::graph::Node, slots: &[Slot]) -> Option<ValueId> {
    let of = node.inputs.get(l.same?).copied().flatten()?;
    let &[Some(made)] = &node.outputs[..] else { return None };
    let bytes = |v: ValueId| slots[v].shape.iter().product::<usize>() * slots[v].dtype.size_bytes();
    (matches!(slots[of].place, Place::Nowhere) && bytes(of) == bytes(made)).then_some(of)
}

/// The result of an operator whose operands are all constant; `None` when one is not.
fn computed(def: &OpDef, attrs: &Attrs, node: &crate::graph::Node, slots: &[Slot]) -> Result<Option<Tensor>, OpError> {
    let mut held: Vec<Option<&Tensor>> = Vec::with_capacity(node.inputs.len());
    for v in &node.inputs {
        match v.map(|v| &slots[v].place) {
            None => held.push(None),
            Some(Place::Constant(t)) => held.push(Some(t)),
            Some(_) => return Ok(None),
        }
    }
    Ok((def.reference)(attrs, &held)?.into_iter().next())
}
