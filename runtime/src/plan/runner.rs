//! A graph and its plans, one per set of input shapes.
use std::collections::VecDeque;
use std::sync::Arc;

use hone_kernels::threads::Pool;
use serde::{Deserialize, Serialize};

use super::{Arena, LARGEST_BYTES, Packs, Plan, PlanError, Profile};
use crate::device::Device;
use crate::graph::Graph;
use crate::ops::Fact;
use crate::tensor::{DType, Tensor};

/// Plans kept where nothing else is asked for: as many lengths of a sentence as come by turns. A plan has steps and values of its own,
/// some ten to a hundred kilobytes ([`Plan::own_bytes`]).
pub const PLANS: usize = 16;

/// Plans that are kept whatever their arenas on a GPU take.
const FEW: usize = 4;

/// Most bytes of such arenas with which more of them are kept.
const ARENAS: usize = 256 << 20;

/// How the plans of a [`Runner`] are made and run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Run every operator of ours by its reference function: slow and obvious, the oracle of the fast path.
    pub reference: bool,
    /// Plans kept; the least recently used goes first. They share packed weights and one arena here; on a GPU they share weights, and
    /// each has an arena there: more than four are kept while those take 256 MiB at most.
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
    /// On a GPU, frozen `f32` weights of products and convolutions are in f16, and where it multiplies matrices of f16 all of them do
    /// so. On a CPU nothing.
    pub f16: bool,
}

/// What of frozen weights is multiplied in bf16, where there is a kernel for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bf16 {
    /// Nothing.
    #[default]
    Nothing,
    /// Matrices of 8-bit codes that are made into floats in every run: those of a plan that is [`RunOptions::lean`].
    Codes,
    /// These, and products and convolutions with `f32` weights.
    Weights,
}

impl Bf16 {
    /// In a word.
    pub fn words(self) -> &'static str {
        match self {
            Bf16::Nothing => "nothing",
            Bf16::Codes => "codes",
            Bf16::Weights => "weights",
        }
    }
}

/// What is left to one run, over all its graphs.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) turns: u64,
}

impl Default for RunOptions {
    /// Kernels, [`PLANS`], the calling thread alone, any size.
    fn default() -> RunOptions {
        let pool = Arc::new(Pool::new(1));
        RunOptions {
            reference: false,
            plans: PLANS,
            pool,
            bytes: LARGEST_BYTES,
            turns: u64::MAX,
            profile: None,
            packs: Arc::default(),
            lean: false,
            device: Device::Cpu,
            bf16: Bf16::Nothing,
            f16: false,
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

    /// How its plans are made and run.
    pub fn options(&self) -> &RunOptions {
        &self.options
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
                let there = |plans: &VecDeque<(Key, Plan)>| plans.iter().map(|(_, p)| p.there_bytes()).sum::<usize>();
                while self.plans.len() > FEW && there(&self.plans) > ARENAS {
                    self.plans.pop_back();
                }
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

#[cfg(all(test, feature = "import"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::import::{Limits, from_onnx};
    use crate::quant::tests::samples;
    use crate::tensor::Data;

    /// The first so many samples in one.
    fn batch(model: &str, n: usize) -> Vec<Tensor> {
        let all = samples(model);
        let joined = |i: usize| {
            let parts: Vec<&Tensor> = all.iter().take(n).map(|s| &s[i]).collect();
            let shape = [&[n], &parts[0].shape()[1..]].concat();
            match parts[0].data() {
                Data::I64(_) => {
                    let codes = parts.iter().flat_map(|t| t.data().to_f64()).map(|v| v as i64).collect();
                    Tensor::i64(&shape, codes).unwrap()
                }
                _ => Tensor::f32(&shape, parts.iter().flat_map(|t| t.as_f32().unwrap()).copied().collect()).unwrap(),
            }
        };
        (0..all[0].len()).map(joined).collect()
    }

    #[test]
    fn a_plan_for_another_shape_packs_nothing_and_answers_as_one_that_packed_all() {
        let mut packed = 0;
        for model in ["picture", "sentence", "sequence"] {
            for scheme in ["", ".int8-qdq", ".int8-dynamic", ".int8-weights", ".int4"] {
                let path = format!("src/quant/testdata/{model}{scheme}.onnx");
                let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).unwrap();
                let graph = Arc::new(from_onnx(&bytes, &Limits::default()).unwrap().0);
                for bf16 in [Bf16::Nothing, Bf16::Weights] {
                    let new = || RunOptions { bf16, ..RunOptions::default() };
                    let mut runner = Runner::new(graph.clone(), new());
                    let given = |n: usize| batch(model, n);
                    let run = |r: &mut Runner, n: usize| r.run(&given(n).iter().collect::<Vec<_>>()).unwrap();
                    run(&mut runner, 1);
                    let once = runner.options().packs.packings();
                    packed += once;
                    for n in [2, 3, 4] {
                        let want = run(&mut Runner::new(graph.clone(), new()), n);
                        assert!(run(&mut runner, n) == want, "{path} with {n}");
                        assert_eq!(runner.options().packs.packings(), once, "{path} with {n}: packed again");
                    }
                }
            }
        }
        assert!(packed > 50, "{packed} arrays were packed at all");
    }

    #[test]
    fn as_many_plans_are_kept_as_are_asked_for() {
        let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/quant/testdata/sentence.onnx"));
        let graph = Arc::new(from_onnx(&bytes.unwrap(), &Limits::default()).unwrap().0);
        let shape = |n: usize| [1, n];
        let mut runner = Runner::new(graph, RunOptions::default());
        for n in 1..=PLANS + 3 {
            let own = runner.plan(&[(DType::I64, &shape(n))]).unwrap().own_bytes();
            assert!((1000..200_000).contains(&own), "{own} bytes of a plan");
        }
        assert_eq!(runner.plans.len(), PLANS);
        // The longest unused ones are gone.
        assert!(runner.plans.iter().all(|(key, _)| key[0].1[1] > 3));
    }
}
