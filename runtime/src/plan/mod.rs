//! Concrete shapes → schedule, arena offsets, chosen kernels.
//!
//! A [`Plan`] is made once per set of input shapes. Its storage is in three kinds: weights (shared, packed by the
//! kernels when they are made), per-stream state (none yet declared by a graph), and scratch: one arena whose offsets
//! are settled by liveness before the first run, so that its size is known before anything is computed.
//! It deliberately knows nothing of files, of learning, or of what its outputs mean.
use std::ops::Range;
use std::sync::Arc;

use crate::graph::{Bindings, DimError, Graph, Op, OpaqueKernel, ValueId};
use crate::ops::{Attrs, OpDef, OpError};
use crate::tensor::{DType, Data, Tensor, TensorError, checked_len};

mod arena;
mod lowering;
pub use lowering::{Io, Kernel, Lowered, Lowering, Reads, Weight, Writes};

/// Most operands, results and scratch areas one fast step may name.
pub(crate) const MAX_SLOTS: usize = 12;

/// Most bytes of one value: more than any memory, little enough that no sum of offsets overflows.
const LARGEST_BYTES: usize = if usize::BITS > 32 { (1u64 << 44) as usize } else { 1 << 28 };

/// Why a plan cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A dimension of a value has no length.
    #[error("value `{value}`: {source}")]
    Dim {
        /// The value.
        value: String,
        /// Why.
        source: DimError,
    },
    /// A value is too large to address.
    #[error("value `{value}` of shape {shape:?} is larger than memory can be")]
    TooLarge {
        /// The value.
        value: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The memory of a run cannot be had.
    #[error("running needs {bytes} bytes of memory, which this machine does not give; smaller inputs need less")]
    Memory {
        /// Bytes of the arena.
        bytes: usize,
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
    Fast(Box<dyn Kernel>),
    Reference(&'static OpDef, Attrs),
    Opaque(Box<dyn OpaqueKernel>),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The kernel, `reference`, or `opaque`.
    pub kernel: &'static str,
}

/// A graph at concrete shapes, ready to run.
pub struct Plan {
    steps: Vec<Step>,
    slots: Vec<Slot>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    arena_bytes: usize,
    weight_bytes: usize,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({} steps, arena {} bytes)", self.steps.len(), self.arena_bytes)
    }
}

impl Plan {
    /// Lowers `graph` at the shapes `bindings` give.
    ///
    /// With `fast` false every operator of ours runs its reference function: the oracle of the fast plan.
    ///
    /// # Errors
    /// [`PlanError`] naming the value or node that cannot be planned.
    pub fn new(graph: &Graph, bindings: &Bindings, fast: bool) -> Result<Plan, PlanError> {
        let mut slots = Vec::with_capacity(graph.values.len());
        for v in &graph.values {
            let shape = v
                .shape
                .iter()
                .map(|d| d.eval(bindings))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| PlanError::Dim { value: v.name.clone(), source })?;
            if checked_len(&shape).and_then(|n| n.checked_mul(8)).is_none_or(|bytes| bytes > LARGEST_BYTES) {
                return Err(PlanError::TooLarge { value: v.name.clone(), shape });
            }
            let place = v.constant.clone().map_or(Place::Nowhere, Place::Constant);
            slots.push(Slot { name: v.name.clone(), dtype: v.dtype, shape, place });
        }

        // Consumers first: a value nobody reads at run time (a dequantised weight its consumer packed) is never made.
        let producers = graph.producers();
        let mut needed = vec![false; graph.values.len()];
        for &o in &graph.outputs {
            needed[o] = true;
        }
        let mut steps = Vec::new();
        let mut scratch_bytes = Vec::new();
        let mut weight_bytes = 0;
        for node in graph.nodes.iter().rev() {
            if !node.outputs.iter().flatten().any(|&o| needed[o]) {
                continue;
            }
            let op_error = |source| PlanError::Op { node: node.name.clone(), op: node.op.name().to_string(), source };
            let mut scratch = 0;
            let (run, reads) = match &node.op {
                Op::Own(def, attrs) => {
                    let lowering = Lowering { graph, node, attrs, slots: &slots, producers: &producers };
                    let lowered = if fast { (def.lower)(&lowering).map_err(op_error)? } else { None };
                    match lowered {
                        Some(l) if l.reads.len() + node.outputs.len() < MAX_SLOTS => {
                            scratch = l.scratch_floats.saturating_mul(4);
                            if scratch > LARGEST_BYTES {
                                let value = format!("{}.scratch", node.name);
                                return Err(PlanError::TooLarge { value, shape: vec![l.scratch_floats] });
                            }
                            weight_bytes += l.weight_bytes;
                            let reads = l.reads.iter().map(|&i| node.inputs[i]).collect();
                            (Run::Fast(l.kernel), reads)
                        }
                        _ => (Run::Reference(def, attrs.clone()), node.inputs.clone()),
                    }
                }
                Op::Opaque(o) => {
                    let facts: Vec<_> =
                        node.inputs.iter().flatten().map(|&v| (slots[v].dtype, slots[v].shape.clone())).collect();
                    let k = o.bind(bindings, &facts).map_err(|why| PlanError::Opaque {
                        node: node.name.clone(),
                        op: o.name().to_string(),
                        why,
                    })?;
                    (Run::Opaque(k), node.inputs.clone())
                }
            };
            for &v in reads.iter().flatten() {
                needed[v] = true;
            }
            scratch_bytes.push(scratch);
            steps.push(Step {
                node: node.name.clone(),
                op: node.op.name().to_string(),
                run,
                reads,
                writes: node.outputs.clone(),
                scratch: 0..0,
            });
        }
        steps.reverse();
        scratch_bytes.reverse();
        for (v, s) in slots.iter().enumerate() {
            if needed[v]
                && let Place::Constant(t) = &s.place
            {
                weight_bytes += t.len() * t.dtype().size_bytes();
            }
        }

        // Lifetimes, in step numbers: inputs are born before the first step, outputs live past the last.
        let mut requests = Vec::new();
        let mut owner = Vec::new();
        let last_use = |v: ValueId| {
            if graph.outputs.contains(&v) {
                return steps.len();
            }
            steps.iter().rposition(|s| s.reads.contains(&Some(v))).unwrap_or(0)
        };
        let mut ask = |v: ValueId, born: usize| {
            if matches!(slots[v].place, Place::Constant(_)) {
                return;
            }
            let bytes = slots[v].shape.iter().product::<usize>() * slots[v].dtype.size_bytes();
            requests.push(arena::Request { bytes, first: born, last: last_use(v).max(born) });
            owner.push(Some(v));
        };
        for &v in &graph.inputs {
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
        let (ranges, arena_bytes) = arena::place(&requests);
        let mut step_of_scratch = 0;
        for (range, owner) in ranges.into_iter().zip(owner) {
            match owner {
                Some(v) => slots[v].place = Place::Arena(range),
                None => {
                    steps[step_of_scratch].scratch = range;
                    step_of_scratch += 1;
                }
            }
        }
        Ok(Plan {
            steps,
            slots,
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
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

    /// The steps in order.
    pub fn steps(&self) -> Vec<StepInfo> {
        self.steps
            .iter()
            .map(|s| StepInfo {
                node: s.node.clone(),
                op: s.op.clone(),
                kernel: match &s.run {
                    Run::Fast(k) => k.name(),
                    Run::Reference(..) => "reference",
                    Run::Opaque(_) => "opaque",
                },
            })
            .collect()
    }

    /// Runs once. `inputs` in the order of [`Graph::inputs`]; the results in the order of [`Graph::outputs`].
    ///
    /// # Errors
    /// [`PlanError`] when an input has another type or shape, or a node without a kernel of ours fails.
    pub fn run(&self, arena: &mut Arena, inputs: &[&Tensor]) -> Result<Vec<Tensor>, PlanError> {
        let words = self.arena_bytes.div_ceil(8);
        // A shape from a file must not be able to abort the process.
        let missing = words.saturating_sub(arena.words.len());
        arena.words.try_reserve_exact(missing).map_err(|_| PlanError::Memory { bytes: self.arena_bytes })?;
        arena.words.resize(words, 0);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut arena.words);
        for (&v, t) in self.inputs.iter().zip(inputs) {
            self.check("input", v, t)?;
            self.store(bytes, v, t);
        }
        for step in &self.steps {
            match &step.run {
                Run::Fast(kernel) => self.run_fast(bytes, step, &**kernel),
                Run::Reference(def, attrs) => {
                    let held = self.load_all(bytes, &step.reads)?;
                    let refs: Vec<Option<&Tensor>> = held.iter().map(|t| t.as_ref()).collect();
                    let shapes: Vec<Vec<usize>> =
                        step.writes.iter().map(|w| w.map_or(Vec::new(), |v| self.slots[v].shape.clone())).collect();
                    let out = (def.reference)(attrs, &refs, &shapes).map_err(|source| PlanError::Op {
                        node: step.node.clone(),
                        op: step.op.clone(),
                        source,
                    })?;
                    self.store_all(bytes, step, out)?;
                }
                Run::Opaque(kernel) => {
                    let held: Vec<Tensor> = self.load_all(bytes, &step.reads)?.into_iter().flatten().collect();
                    let out = kernel.run(&held).map_err(|why| PlanError::Opaque {
                        node: step.node.clone(),
                        op: step.op.clone(),
                        why,
                    })?;
                    self.store_all(bytes, step, out)?;
                }
            }
        }
        self.outputs.iter().map(|&v| self.load(bytes, v)).collect()
    }

    fn run_fast(&self, arena: &mut [u8], step: &Step, kernel: &dyn Kernel) {
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
                Place::Constant(t) => bytes_of(t.data()),
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
        kernel.run(&mut Io { reads, writes, scratch });
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
            arena[r.clone()].copy_from_slice(bytes_of(t.data()));
        }
    }

    fn store_all(&self, arena: &mut [u8], step: &Step, out: Vec<Tensor>) -> Result<(), PlanError> {
        for (v, t) in step.writes.iter().zip(out) {
            if let Some(v) = *v {
                self.check("result of node", v, &t)?;
                self.store(arena, v, &t);
            }
        }
        Ok(())
    }

    fn load(&self, arena: &[u8], v: ValueId) -> Result<Tensor, PlanError> {
        let s = &self.slots[v];
        match &s.place {
            Place::Constant(t) => Ok((**t).clone()),
            Place::Arena(r) => Ok(Tensor::new(&s.shape, data_of(s.dtype, &arena[r.clone()]))?),
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
}

fn bytes_of(data: &Data) -> &[u8] {
    match data {
        Data::F32(v) => bytemuck::cast_slice(v),
        Data::F16(v) => bytemuck::cast_slice(v),
        Data::F64(v) => bytemuck::cast_slice(v),
        Data::I8(v) => bytemuck::cast_slice(v),
        Data::U8(v) => v,
        Data::I32(v) => bytemuck::cast_slice(v),
        Data::I64(v) => bytemuck::cast_slice(v),
        Data::Bool(v) => bytemuck::cast_slice(v),
    }
}

fn data_of(dtype: DType, bytes: &[u8]) -> Data {
    match dtype {
        DType::F32 => Data::F32(bytemuck::cast_slice(bytes).to_vec()),
        DType::F16 => Data::F16(bytemuck::cast_slice(bytes).to_vec()),
        DType::F64 => Data::F64(bytemuck::cast_slice(bytes).to_vec()),
        DType::I8 => Data::I8(bytemuck::cast_slice(bytes).to_vec()),
        DType::U8 => Data::U8(bytes.to_vec()),
        DType::I32 => Data::I32(bytemuck::cast_slice(bytes).to_vec()),
        DType::I64 => Data::I64(bytemuck::cast_slice(bytes).to_vec()),
        DType::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
    }
}
