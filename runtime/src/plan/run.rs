//! A plan at work: its arena, and one run after the other in it.
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::arena::{LINE, to_line};
use super::control::ControlError;
use super::runner::Budget;
use super::{Io, MAX_SLOTS, Output, Place, Plan, PlanError, Reads, Run, Step, Writes};
use crate::graph::ValueId;
use crate::ops::{Fact, OpError};
use crate::tensor::{DType, Data, Tensor};

impl Plan {
    /// Runs once in an arena of the caller's. `inputs` in the order of [`Graph::inputs`](crate::graph::Graph::inputs), residents left out; so are what
    /// replaces them among the results.
    ///
    /// # Errors
    /// [`PlanError`] when an input has another type or shape, or a node fails.
    pub fn run_in(&mut self, arena: &mut Arena, inputs: &[&Tensor]) -> Result<Vec<Tensor>, PlanError> {
        self.run(arena, inputs, &mut Budget { turns: u64::MAX })
    }

    /// Runs once. `inputs` in the order of [`Graph::inputs`](crate::graph::Graph::inputs); the results in the order of [`Graph::outputs`](crate::graph::Graph::outputs).
    ///
    /// # Errors
    /// [`PlanError`] when an input has another type or shape, or a node without a kernel of ours fails.
    pub(super) fn run(
        &mut self,
        arena: &mut Arena,
        inputs: &[&Tensor],
        budget: &mut Budget,
    ) -> Result<Vec<Tensor>, PlanError> {
        let mut outputs = Vec::with_capacity(self.outputs.len());
        self.run_into(arena, inputs, budget, &mut outputs)?;
        Ok(outputs)
    }

    /// The same into `outputs`: a tensor there of the type and shape of the result is overwritten, anything else replaced. With
    /// such tensors, and kernels of ours for all steps, nothing is allocated once the arena has its size.
    pub(super) fn run_into(
        &mut self,
        arena: &mut Arena,
        inputs: &[&Tensor],
        budget: &mut Budget,
        outputs: &mut Vec<Tensor>,
    ) -> Result<(), PlanError> {
        arena
            .reserve(self.arena_bytes)
            .map_err(|_| PlanError::Memory { bytes: self.arena_bytes, largest: self.largest.clone() })?;
        let (bytes, state) = arena.parts();
        for (&v, t) in self.inputs.iter().zip(inputs) {
            self.check("input", v, t)?;
            self.store(bytes, v, t);
        }
        if !self.run_on_gpu(bytes, state, budget)? {
            for (&v, t) in self.inputs.iter().zip(inputs) {
                self.store(bytes, v, t);
            }
            // A GPU that has residents in an earlier state must see that they are others.
            *state = new_state();
            self.run_steps(bytes, 0..self.steps.len(), budget)?;
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

    /// Runs these steps on the CPU.
    fn run_steps(&mut self, bytes: &mut [u8], steps: Range<usize>, budget: &mut Budget) -> Result<(), PlanError> {
        for i in steps {
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
        Ok(())
    }

    /// Runs on the GPU, when the plan is for one. Whether it did; if not, the steps are to be run on the CPU.
    #[cfg(feature = "gpu")]
    fn run_on_gpu(&mut self, bytes: &mut [u8], state: &mut u64, budget: &mut Budget) -> Result<bool, PlanError> {
        let Some(mut gpu) = self.gpu.take() else { return Ok(false) };
        let outcome = gpu.run(bytes, state, |bytes, steps| self.run_steps(bytes, steps, budget));
        match outcome {
            Ok(super::gpu::Outcome::Lost(why)) => {
                self.left_gpu = Some(why.to_string());
                return Ok(false);
            }
            Ok(super::gpu::Outcome::Done) => {}
            // The device computed on with what it had; the CPU says what is wrong with it.
            Ok(super::gpu::Outcome::Fault) => {
                self.gpu = Some(gpu);
                return Ok(false);
            }
            Err(e) => {
                self.gpu = Some(gpu);
                return Err(e);
            }
        }
        self.gpu = Some(gpu);
        Ok(true)
    }

    #[cfg(not(feature = "gpu"))]
    fn run_on_gpu(&mut self, _: &mut [u8], _: &mut u64, _: &mut Budget) -> Result<bool, PlanError> {
        Ok(false)
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
            if super::specialise::bytes_of(&fact).is_none_or(|b| b > self.bytes) {
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

/// Words of an arena that are not in use: as many as may lie before its first cache line.
const SPARE: usize = LINE / 8 - 1;

/// The memory a plan runs in. One arena serves any number of plans, one at a time.
#[derive(Debug, Default)]
pub struct Arena {
    /// [`SPARE`] more than are in use, so that those can begin with a cache line.
    words: Vec<u64>,
    /// Where they begin.
    start: usize,
    /// Changes with every change of what is resident; no two arenas are in one state.
    state: u64,
}

/// A state no arena was in.
pub(super) fn new_state() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Arena {
    /// Bytes held now.
    pub fn len_bytes(&self) -> usize {
        self.len() * 8
    }

    /// Words in use.
    fn len(&self) -> usize {
        self.words.len().saturating_sub(SPARE)
    }

    /// The bytes in use, and the state they are in.
    fn parts(&mut self) -> (&mut [u8], &mut u64) {
        let words = self.start..self.start + self.len();
        (bytemuck::cast_slice_mut(&mut self.words[words]), &mut self.state)
    }

    /// Moves the first `n` words in use to where the memory's first cache line begins now.
    fn settle(&mut self, n: usize) {
        let start = to_line(self.words.as_ptr());
        if start != self.start {
            self.words.copy_within(self.start..self.start + n, start);
            self.start = start;
        }
    }

    /// Makes it at least that large.
    ///
    /// # Errors
    /// [`PlanError::Memory`] when the memory cannot be had.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), PlanError> {
        let (words, before) = (bytes.div_ceil(8), self.len());
        if words > before {
            let refused = |_| PlanError::Memory { bytes, largest: String::new() };
            // A shape from a file must not be able to abort the process.
            self.words.try_reserve_exact(words + SPARE - self.words.len()).map_err(refused)?;
            self.words.resize(words + SPARE, 0);
            self.settle(before);
        }
        Ok(())
    }

    /// Gives back what is behind the first `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let words = bytes.div_ceil(8);
        if words < self.len() {
            self.words.truncate(words + SPARE);
            self.words.shrink_to_fit();
            self.settle(words);
        }
    }

    /// Puts a tensor at byte `at`, a multiple of 64: where [`Resident::layout`](super::Resident::layout) says a resident value is.
    ///
    /// # Errors
    /// [`PlanError::Memory`] when the memory cannot be had.
    pub fn put(&mut self, at: usize, t: &Tensor) -> Result<(), PlanError> {
        let bytes = t.data().as_bytes();
        self.reserve(at + bytes.len())?;
        let (all, state) = self.parts();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        *state = new_state();
        Ok(())
    }

    /// The tensor at byte `at`.
    ///
    /// # Errors
    /// [`PlanError::Tensor`] when there is none of that size.
    pub fn take(&self, at: usize, dtype: DType, shape: &[usize]) -> Result<Tensor, PlanError> {
        let all: &[u8] = bytemuck::cast_slice(&self.words[self.start..self.start + self.len()]);
        let n = shape.iter().product::<usize>() * dtype.size_bytes();
        let bytes = all.get(at..at + n).unwrap_or(&[]);
        Ok(Tensor::new(shape, Data::from_bytes(dtype, bytes))?)
    }
}
