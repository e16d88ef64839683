//! Concrete shapes → schedule, arena offsets, chosen kernels.
//!
//! A [`Plan`] is made once per set of input shapes, by a [`Runner`]. Its storage is in three kinds: weights (shared,
//! packed by the kernels when they are made), per-stream state (none yet declared by a graph), and scratch: one arena
//! whose offsets are settled by liveness before the first run, so that its size is known before anything is computed.
//! Where shapes depend on data (`NonZero`, a `Reshape` to computed dimensions) a plan ends in probes, and a second plan
//! for what reads them follows once they have run.
//! It deliberately knows nothing of files, of learning, or of what its outputs mean.
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::{AddAssign, Range};
use std::sync::Arc;

use hone_kernels::threads::Pool;

use crate::device::Device;
use crate::graph::{Graph, OpaqueKernel, ValueId};
use crate::ops::{Attrs, Fact, Kind, OpDef, OpError};
use crate::tensor::{DType, Tensor};

mod arena;
mod bands;
#[cfg(feature = "gpu")]
mod chains;
mod concrete;
mod control;
mod error;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(all(test, feature = "gpu", feature = "import"))]
mod gpu_tests;
mod lowering;
mod packs;
mod passes;
mod profile;
mod record;
mod resident;
mod run;
mod runner;
mod specialise;
pub use concrete::Concrete;
pub use control::with_captures;
pub use error::PlanError;
pub use lowering::{Codes, Fallible, Grid, Io, Kernel, Lines, Lowered, Lowering, Reads, Weight, Writes};
pub use packs::{Kept, Packs, bytes, floats};
pub use profile::{Profile, StepTime};
pub use record::{At, Image, Recorded};
pub use resident::Resident;
pub use run::Arena;
pub use runner::{Bf16, PLANS, RunOptions, Runner};

use control::Control;
use resident::Residents;
use specialise::{How, Known, Special};

/// Most operands, results and scratch areas one fast step may name.
pub(crate) const MAX_SLOTS: usize = 20;

/// Most bytes of one value: more than any memory, little enough that no sum of offsets overflows.
const LARGEST_BYTES: usize = if usize::BITS > 32 { (1u64 << 44) as usize } else { 1 << 28 };

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
    /// The step that is done with it, a few lines at a time.
    joined: Option<StepInfo>,
    /// The node's inputs, in its own order.
    #[cfg(feature = "gpu")]
    all_inputs: Vec<Option<ValueId>>,
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
    /// Constants that steps read as they are, each once.
    constants: Vec<Arc<Tensor>>,
    /// What was made of constants for plans, and is here for those to come.
    _kept: Vec<Arc<dyn Any + Send + Sync>>,
    #[cfg(feature = "gpu")]
    gpu: Option<gpu::Accelerated>,
    /// Why it does not run on the GPU it was made for.
    left_gpu: Option<String>,
}

/// What of a plan runs on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnGpu {
    /// The steps that do.
    pub steps: Vec<StepInfo>,
    /// The steps that run on the CPU all the same.
    pub on_cpu: Vec<StepInfo>,
    /// Calls of kernels.
    pub calls: usize,
    /// Those of the steps there that have no call of their own: what they make is made by that of a later one.
    pub joined: usize,
    /// How many of those calls multiply in f16, or have weights in it.
    pub halves: usize,
    /// How often a run waits for the device.
    pub waits: usize,
    /// Bytes of the buffers there that the weights are in. Plans on one device share them.
    pub weight_bytes: usize,
    /// Bytes of the arena there, which every plan has for itself.
    pub arena_bytes: usize,
    /// Kernels that this device refuses, and why.
    pub refused: Vec<String>,
    /// What is to be said of the file that the device keeps compiled kernels in.
    pub cache: Option<String>,
    /// Why nothing runs there any more.
    pub left: Option<String>,
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
        if !options.reference {
            let replaced: Vec<ValueId> = residents.iter().map(|r| special.inputs[r.input]).collect();
            passes::optimise(&mut special, &replaced)?;
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
        let resident = Residents::new(residents, &special.inputs, &special.outputs, &slots, &options.device);
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
        let mut constants: Vec<Arc<Tensor>> = Vec::new();
        // Values that are another value's bytes under another shape.
        let mut shared = Vec::new();
        let mut same_as: Vec<Option<ValueId>> = vec![None; slots.len()];
        let lowered: Vec<crate::graph::Node> = nodes.iter().map(|p| p.node.clone()).collect();
        let for_gpu = !options.reference && matches!(options.device, Device::Gpu(_));
        #[cfg(feature = "gpu")]
        let matrices = match &options.device {
            Device::Gpu(gpu) if for_gpu && options.f16 => gpu.device.matrices(),
            _ => None,
        };
        #[cfg(not(feature = "gpu"))]
        let matrices = None;
        let mut recorded: Vec<Option<Recorded>> = Vec::new();
        let kept_packs = RefCell::default();
        // Of the weights of each step, those that wait to be packed.
        let mut waiting_bytes = Vec::new();
        for planned in nodes.into_iter().rev() {
            let node = &planned.node;
            if !node.outputs.iter().flatten().any(|&o| needed[o]) {
                continue;
            }
            let op_error = |source| PlanError::Op { node: node.name.clone(), op: node.op.name().to_string(), source };
            let mut scratch = 0;
            let mut record: Option<Recorded> = None;
            let mut waiting = 0;
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
                    let mut lowering = Lowering {
                        nodes: &lowered,
                        node,
                        attrs: &attrs,
                        slots: &slots,
                        producers: &producers,
                        packs: &options.packs,
                        waits: false,
                        kept: &kept_packs,
                        bf16: options.bf16,
                        f16: options.f16,
                        matrices,
                        lean: options.lean,
                        threads: options.pool.threads(),
                    };
                    let fast = !options.reference && !planned.probe;
                    if for_gpu && fast && !is_empty(node, &slots) {
                        record = def.gpu.map_or(Ok(None), |record| record(&lowering)).map_err(op_error)?;
                        // A form that does not know of it would find its operand in its result.
                        record = record.filter(|r| r.updates() || !resident.updates(node));
                        lowering.waits = record.is_some();
                    }
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
                            (if record.is_some() { &mut waiting } else { &mut weight_bytes })
                                .add_assign(l.weight_bytes);
                            constants.extend(l.held);
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
            let of_gpu = record.iter().flat_map(|r| Recorded::reads(&r.calls, &node.inputs));
            for v in reads.iter().flatten().copied().chain(of_gpu) {
                needed[v] = true;
            }
            scratch_bytes.push(scratch.max(record.as_ref().map_or(0, |r| r.scratch)));
            recorded.push(record);
            waiting_bytes.push(waiting);
            let writes = node.outputs.clone();
            #[cfg(feature = "gpu")]
            let all_inputs = node.inputs.clone();
            let (node, op) = (node.name.clone(), node.op.name().to_string());
            steps.push(Step {
                node,
                op,
                run,
                reads,
                writes,
                scratch: 0..0,
                joined: None,
                #[cfg(feature = "gpu")]
                all_inputs,
            });
        }
        steps.reverse();
        recorded.reverse();
        waiting_bytes.reverse();
        scratch_bytes.reverse();
        if !for_gpu {
            let apart = |v: ValueId| {
                kept[v] || same_as[v].is_some() || same_as.contains(&Some(v)) || resident.place(v).is_some()
            };
            let joined = bands::join(&mut steps, &mut scratch_bytes, &slots, apart, options.pool.threads());
            // Nothing is recorded where there is no GPU.
            recorded.truncate(joined);
        }
        // An area lives as long as any value that is its bytes.
        let area = |mut v: ValueId| {
            while let Some(of) = same_as[v] {
                v = of;
            }
            v
        };
        #[cfg(feature = "gpu")]
        if for_gpu {
            let mut lasting: HashSet<ValueId> = (0..slots.len()).filter(|&v| kept[v]).map(area).collect();
            lasting.extend(resident.places.keys());
            let replaced = resident.replaced(&steps);
            let apart = |v: ValueId| lasting.contains(&v) || matches!(slots[v].place, Place::Constant(_) | Place::Held);
            chains::join(&steps, &mut recorded, &chains::Values { area: &area, apart: &apart, replaced: &replaced });
        }
        let own = constants_of(graph);
        for (v, s) in slots.iter_mut().enumerate() {
            match &s.place {
                Place::Constant(t) if needed[v] => {
                    // What a pass made is made anew for every plan.
                    let t = if own.contains(&Arc::as_ptr(t)) { t.clone() } else { options.packs.constant(t) };
                    constants.push(t.clone());
                    s.place = Place::Constant(t);
                }
                // What only led to other constants, or was packed by a kernel, is not kept.
                Place::Constant(_) => s.place = Place::Nowhere,
                _ => {}
            }
        }
        constants.sort_by_key(|t| Arc::as_ptr(t) as usize);
        constants.dedup_by(|a, b| Arc::ptr_eq(a, b));
        weight_bytes += constants.iter().map(|t| bytes_of(t)).sum::<usize>();

        // Lifetimes, in step numbers: inputs are born before the first step, outputs live past the last.
        let mut last_use = vec![0; slots.len()];
        #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "a call stands for others on GPUs alone"))]
        let (mut late, mut within) = (vec![Vec::new(); slots.len()], vec![None; slots.len()]);
        for (i, s) in steps.iter().enumerate() {
            let read = s.reads.iter().flatten().copied();
            #[cfg(feature = "gpu")]
            let read = read.chain(recorded[i].iter().flat_map(|r| Recorded::reads(&r.calls, &s.all_inputs)));
            read.for_each(|v| last_use[area(v)] = i);
            #[cfg(feature = "gpu")]
            if let Some(joined) = recorded[i].as_ref().and_then(|r| r.joined.as_ref()) {
                Recorded::reads(&joined.calls, &s.all_inputs).for_each(|v| late[area(v)].push(i));
                joined.steps.iter().flat_map(|&k| steps[k].writes.iter().flatten()).for_each(|&v| within[v] = Some(i));
            }
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
            let last = last_use[v].max(born);
            let (late, within) = (std::mem::take(&mut late[v]), within[v]);
            requests.push(arena::Request { bytes, first: born, last, late, within });
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
            requests.push(arena::Request { bytes, first: i, last: i, late: Vec::new(), within: None });
            owner.push(None);
        }
        let (ranges, moving_bytes) = arena::place(&requests, arena::align(&options.device));
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
        #[cfg(feature = "gpu")]
        let (gpu, left_gpu) = match &options.device {
            Device::Gpu(device) if for_gpu => {
                let planned = gpu::Planned {
                    steps: &steps,
                    recorded,
                    slots: &slots,
                    packs: &options.packs,
                    area: &area,
                    inputs: &inputs,
                    resident: &resident,
                    kept: &kept,
                    arena_bytes,
                };
                match gpu::Accelerated::new(&device.device, planned) {
                    Ok(Some(mut gpu)) => {
                        if options.f16 {
                            gpu.refused.extend(device.device.no_matrices().iter().map(ToString::to_string));
                        }
                        (Some(gpu), None)
                    }
                    Ok(None) => (None, Some("no step has a kernel for it".to_string())),
                    Err(e) => (None, Some(e.to_string())),
                }
            }
            _ => (None, None),
        };
        #[cfg(not(feature = "gpu"))]
        let left_gpu = None;
        // What runs here all the same is packed by its first run.
        #[cfg(feature = "gpu")]
        let there = |i: usize| gpu.as_ref().is_some_and(|g| g.on_gpu[i]);
        #[cfg(not(feature = "gpu"))]
        let there = |_: usize| false;
        weight_bytes += waiting_bytes.iter().enumerate().filter(|(i, _)| !there(*i)).map(|(_, b)| b).sum::<usize>();
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
            constants,
            _kept: kept_packs.into_inner(),
            #[cfg(feature = "gpu")]
            gpu,
            left_gpu,
        })
    }

    /// What of it runs on a GPU; `None` for a plan for the CPU.
    pub fn on_gpu(&self) -> Option<OnGpu> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            let of = |there: bool| {
                let steps = self.steps.iter().zip(&gpu.on_gpu).filter(|(_, on)| **on == there);
                steps.map(|(s, _)| s.info()).collect()
            };
            let (calls, waits) = gpu.calls();
            return Some(OnGpu {
                steps: of(true),
                on_cpu: of(false),
                calls,
                joined: gpu.joined,
                halves: gpu.halves,
                waits,
                weight_bytes: gpu.weight_bytes(),
                arena_bytes: gpu.arena_bytes(),
                refused: gpu.refused.clone(),
                cache: gpu.cache.clone(),
                left: None,
            });
        }
        self.left_gpu.clone().map(|left| OnGpu { on_cpu: self.steps(), left: Some(left), ..OnGpu::default() })
    }

    /// Bytes of the arena: every activation and scratch area, overlapped by liveness.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of weights the steps hold, packed or plain. Those that wait to be packed, because a GPU runs their steps, are left out.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Bytes of its steps and values: about what another plan of the graph takes beside the weights and the arena, which plans share. What
    /// kernels hold for their shapes is not counted.
    pub fn own_bytes(&self) -> usize {
        let slot = |s: &Slot| size_of::<Slot>() + s.name.len() + s.shape.len() * size_of::<usize>();
        let values = |v: &[Option<ValueId>]| size_of_val(v);
        let step = |s: &Step| size_of::<Step>() + s.node.len() + s.op.len() + values(&s.reads) + values(&s.writes);
        self.slots.iter().map(slot).sum::<usize>() + self.steps.iter().map(step).sum::<usize>()
    }

    /// Bytes of its own on a GPU.
    fn there_bytes(&self) -> usize {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.arena_bytes();
        }
        0
    }

    /// Bytes of weights that are there because of the plan: all but the constants of `model` that it reads as they are.
    pub fn made_bytes(&self, model: &Graph) -> usize {
        let own = constants_of(model);
        let read = self.constants.iter().filter(|t| own.contains(&Arc::as_ptr(t)));
        self.weight_bytes - read.map(|t| bytes_of(t)).sum::<usize>()
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
        self.steps.iter().flat_map(|s| s.joined.clone().into_iter().chain([s.info()])).collect()
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
}

/// Where the constants of a graph are.
fn constants_of(graph: &Graph) -> HashSet<*const Tensor> {
    graph.values.iter().filter_map(|v| Some(Arc::as_ptr(v.constant.as_ref()?))).collect()
}

fn bytes_of(t: &Tensor) -> usize {
    t.len() * t.dtype().size_bytes()
}

/// Whether an operand or a result of the node has no elements.
fn is_empty(node: &crate::graph::Node, slots: &[Slot]) -> bool {
    node.inputs.iter().chain(&node.outputs).flatten().any(|&v| slots[v].shape.contains(&0))
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
