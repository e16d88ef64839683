//! A graph and its plans, one per set of input shapes.
use std::collections::VecDeque;
use std::sync::Arc;

use hone_kernels::threads::Pool;

use super::{Arena, LARGEST_BYTES, Packs, Plan, PlanError, Profile};
use crate::device::Device;
use crate::graph::Graph;
use crate::ops::Fact;
use crate::tensor::{DType, Tensor};

/// How the plans of a [`Runner`] are made and run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Run every operator of ours by its reference function: slow and obvious, the oracle of the fast path.
    pub reference: bool,
    /// Plans kept; the least recently used goes first.
    pub plans: usize,
    /// The threads that compute; nested graphs use the same ones.
    pub pool: Arc<Pool>,
    /// Most bytes of one value, and of all values of a graph that are alive together.
    pub bytes: usize,
    /// Most turns of all loops of one run together.
    pub turns: u64,
    /// Collects the time of every step; `None` measures nothing.
    pub profile: Option<Arc<Profile>>,
    /// Packed weights, which plans of equal weights share.
    pub packs: Arc<Packs>,
    /// Frozen matrices stay as the graph has them and are packed in every run, where they meet many rows: less memory for a
    /// little time.
    pub lean: bool,
    /// What the plans run on.
    pub device: Device,
    /// What of frozen weights is multiplied in bf16.
    pub bf16: Bf16,
}

/// What of frozen weights is multiplied in bf16, where there is a kernel for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bf16 {
    /// Nothing.
    #[default]
    Nothing,
    /// Matrices of 8-bit codes that are made into floats in every run: those of a plan that is [`RunOptions::lean`].
    Codes,
    /// These, and products and convolutions with `f32` weights.
    Weights,
}

/// What is left to one run, over all its graphs.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) turns: u64,
}

impl Default for RunOptions {
    /// Kernels, four plans, the calling thread alone, any size.
    fn default() -> RunOptions {
        let pool = Arc::new(Pool::new(1));
        RunOptions {
            reference: false,
            plans: 4,
            pool,
            bytes: LARGEST_BYTES,
            turns: u64::MAX,
            profile: None,
            packs: Arc::default(),
            lean: false,
            device: Device::Cpu,
            bf16: Bf16::Nothing,
        }
    }
}

/// Types and shapes of inputs.
type Key = Vec<(DType, Vec<usize>)>;

/// Runs one graph at whatever shapes come. It keeps nothing of one run for the next, except plans and the memory they
/// run in.
#[derive(Debug)]
pub struct Runner {
    graph: Arc<Graph>,
    options: RunOptions,
    plans: VecDeque<(Key, Plan)>,
    arena: Arena,
}

impl Runner {
    /// A runner without a plan yet.
    pub fn new(graph: Arc<Graph>, options: RunOptions) -> Runner {
        Runner { graph, options, plans: VecDeque::new(), arena: Arena::default() }
    }

    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The plan for those input types and shapes, in the graph's order, made if need be.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&mut self, inputs: &[(DType, &[usize])]) -> Result<&mut Plan, PlanError> {
        let same =
            |key: &Key| key.len() == inputs.len() && key.iter().zip(inputs).all(|(a, b)| a.0 == b.0 && a.1 == b.1);
        match self.plans.iter().position(|(key, _)| same(key)) {
            Some(0) => {}
            Some(i) => {
                if let Some(hit) = self.plans.remove(i) {
                    self.plans.push_front(hit);
                }
            }
            None => {
                let facts: Vec<Fact> = inputs.iter().map(|(t, s)| Fact::new(*t, *s)).collect();
                let plan = Plan::new(&self.graph, &facts, &self.options)?;
                self.plans.truncate(self.options.plans.max(1) - 1);
                self.plans.push_front((inputs.iter().map(|(t, s)| (*t, s.to_vec())).collect(), plan));
            }
        }
        Ok(&mut self.plans[0].1)
    }

    /// The plan used last.
    pub fn last_plan(&self) -> Option<&Plan> {
        self.plans.front().map(|(_, plan)| plan)
    }

    /// Runs once on inputs in the graph's order.
    ///
    /// # Errors
    /// [`PlanError`] when an operator refuses its operands.
    pub fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, PlanError> {
        let mut budget = Budget { turns: self.options.turns };
        self.run_within(inputs, &mut budget)
    }

    /// Whether the plan used last is for inputs of these types and shapes.
    pub fn is_planned(&self, inputs: &[&Tensor]) -> bool {
        let same = |key: &Key| {
            key.len() == inputs.len() && key.iter().zip(inputs).all(|(k, t)| k.0 == t.dtype() && k.1 == t.shape())
        };
        self.plans.front().is_some_and(|(key, _)| same(key))
    }

    /// [`Runner::run`] into `outputs`: a tensor there of the type and shape of the result is overwritten, anything else
    /// replaced. A run like the one before allocates nothing, where all steps have kernels of ours.
    ///
    /// # Errors
    /// As [`Runner::run`]; what is in `outputs` is then undefined.
    pub fn run_into(&mut self, inputs: &[&Tensor], outputs: &mut Vec<Tensor>) -> Result<(), PlanError> {
        if !self.is_planned(inputs) {
            let shapes: Vec<(DType, &[usize])> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
            self.plan(&shapes)?;
        }
        let mut budget = Budget { turns: self.options.turns };
        self.plans[0].1.run_into(&mut self.arena, inputs, &mut budget, outputs)
    }

    /// Runs as part of a longer run, with what that one has left.
    pub(super) fn run_within(&mut self, inputs: &[&Tensor], budget: &mut Budget) -> Result<Vec<Tensor>, PlanError> {
        let shapes: Vec<(DType, &[usize])> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
        self.plan(&shapes)?;
        self.plans[0].1.run(&mut self.arena, inputs, budget)
    }

    /// Bytes of the arena in use now.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len_bytes()
    }
}
