//! What comes before the first trained value never changes: its results are the features of an example, computed once
//! and kept as long as there is memory for them.
//!
//! Features are always made of one example at a time, so that how many are kept changes no bit of the result.
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Batcher, Extremes};
use super::{Example, Examples, TuneError};
use crate::graph::Graph;
use crate::plan::{RunOptions, Runner};
use crate::scope::Scoped;
use crate::tensor::{DType, Tensor};
use crate::train::{TrainError, TrainOptions};

/// Most bytes of features that are kept where no limit is set.
const KEPT_BYTES: usize = 256 << 20;

/// What is kept of the features, and what making them takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Examples there are.
    pub examples: usize,
    /// Examples whose features are kept; the others' are made again when they are needed.
    pub kept: usize,
    /// Bytes of what is kept.
    pub bytes: usize,
    /// Bytes it takes to make features: activations, and weights beside the model's.
    pub body: usize,
    /// Time it took to make those that are kept.
    pub time: Duration,
}

/// A graph in two: what gives features, and what is trained on them.
pub(super) struct Split {
    body: Graph,
    /// The trainable leaves and the graph from the features on.
    pub(super) tail: Scoped,
}

/// Cuts `scoped` before the first node that depends on a trainable leaf. `None` when nothing comes before it, and for
/// graphs whose nodes hold graphs.
pub(super) fn split(scoped: &Scoped, output: &str) -> Option<Split> {
    let mut graph = scoped.graph.clone();
    graph.outputs = vec![graph.values.iter().position(|v| v.name == output)?];
    graph.prune();
    if graph.nodes.iter().any(|n| n.op.graphs().next().is_some()) {
        return None;
    }
    let names: HashSet<&str> = scoped.trainable.iter().map(String::as_str).collect();
    let mut trained: Vec<bool> = graph.values.iter().map(|v| names.contains(v.name.as_str())).collect();
    let mut given = vec![false; graph.values.len()];
    graph.inputs.iter().for_each(|&v| given[v] = true);
    let mut features = Vec::new();
    let (mut body, mut tail) = (Vec::new(), Vec::new());
    for n in &graph.nodes {
        let of = |marks: &[bool]| n.inputs.iter().flatten().any(|&v| marks[v]);
        let (is_trained, is_given) = (of(&trained), of(&given));
        for &v in n.outputs.iter().flatten() {
            (trained[v], given[v]) = (is_trained, is_given);
        }
        if is_trained {
            let before = n.inputs.iter().flatten().filter(|&&v| given[v] && !trained[v]);
            before.for_each(|v| {
                if !features.contains(v) {
                    features.push(*v)
                }
            });
        }
        // What depends on constants alone may be needed on both sides.
        if !is_trained {
            body.push(n.clone());
        }
        if is_trained || !is_given {
            tail.push(n.clone());
        }
    }
    if features.is_empty() || features.iter().all(|v| graph.inputs.contains(v)) {
        return None;
    }
    let part = |nodes, inputs: &[usize], outputs: &[usize]| {
        let mut part =
            Graph { nodes, inputs: inputs.to_vec(), outputs: outputs.to_vec(), values: graph.values.clone() };
        part.prune();
        part
    };
    let mut behind = part(tail, &features, &graph.outputs);
    features.iter().for_each(|&v| behind.values[v].declared = None);
    let body = part(body, &graph.inputs, &features);
    Some(Split { body, tail: Scoped { graph: behind, ..scoped.clone() } })
}

/// Types and shapes of the features of one example.
type Facts = Vec<(DType, Vec<usize>)>;

/// The body of a [`Split`], ready to make features.
pub(super) struct Body {
    runner: Runner,
    /// Types and shapes of the features of the largest examples, and of the smallest where there is one.
    largest: Vec<Facts>,
    smallest: Option<Facts>,
    /// Bytes it takes to make them.
    bytes: usize,
}

impl Body {
    /// `None` when features do not stand in rows, one for each example of a batch. The extremes of the examples tell the
    /// shapes.
    pub(super) fn new(
        split: &Split,
        extremes: &Extremes,
        batcher: &Batcher,
        options: &TrainOptions,
    ) -> Result<Option<Body>, TuneError> {
        let run = RunOptions {
            pool: options.pool.clone(),
            reference: options.reference,
            device: options.device.clone(),
            plans: 1,
            lean: true,
            bf16: options.bf16,
            ..RunOptions::default()
        };
        let mut runner = Runner::new(Arc::new(split.body.clone()), run);
        let mut facts = |one: &Example, rows: usize| -> Result<(Option<Facts>, usize), TuneError> {
            let shapes = batcher.shapes_of(one, rows);
            let shapes: Vec<(DType, &[usize])> = shapes.iter().map(|(t, s)| (*t, &s[..])).collect();
            let plan = runner.plan(&shapes).map_err(TrainError::from)?;
            let owned = |f: Option<(DType, &[usize])>| f.map(|(t, s)| (t, s.to_vec()));
            let facts: Option<Facts> = plan.output_facts().into_iter().map(owned).collect();
            Ok((facts, plan.arena_bytes() + plan.made_bytes(&split.body)))
        };
        if batcher.pairs() {
            return Ok(None);
        }
        let (mut made, mut bytes) = (Vec::new(), 0);
        for one in extremes.largest.iter().chain(&extremes.smallest) {
            let (Some(of_one), taken) = facts(one, 1)? else { return Ok(None) };
            if batcher.rows > 1 {
                let in_rows = |one: &(DType, Vec<usize>), two: &(DType, Vec<usize>)| {
                    one.1.first() == Some(&1) && two.1.first() == Some(&2) && one.1[1..] == two.1[1..]
                };
                let two = facts(one, 2)?.0;
                let fits = two.is_some_and(|two| of_one.iter().zip(&two).all(|(a, b)| in_rows(a, b)));
                if !fits || batcher.rowed.iter().any(|r| !r) {
                    return Ok(None);
                }
            }
            made.push(of_one);
            bytes = bytes.max(taken);
        }
        let smallest = if extremes.smallest.is_some() { made.pop() } else { None };
        Ok(Some(Body { runner, largest: made, smallest, bytes }))
    }

    /// What puts features together as `batcher` does the examples they are of.
    pub(super) fn batcher(&self, batcher: &Batcher) -> Batcher {
        Batcher { rowed: vec![true; self.largest[0].len()], ..*batcher }
    }

    /// Types and shapes of batches of `rows` examples, and before them of what packs most: one example, where batches can
    /// be that short.
    pub(super) fn shapes(&self, batcher: &Batcher) -> Vec<Facts> {
        let of = |facts: &Facts, rows: usize| {
            let rowed = |s: &[usize]| s.iter().enumerate().map(|(i, &d)| if i == 0 { d * rows } else { d }).collect();
            facts.iter().map(|(t, s)| (*t, rowed(s))).collect::<Facts>()
        };
        let few = self.smallest.as_ref().or(self.largest.first()).filter(|_| !batcher.fills()).map(|f| of(f, 1));
        few.into_iter().chain(self.largest.iter().map(|f| of(f, batcher.rows))).collect()
    }

    /// What is kept of `examples` beside a step of `step` bytes.
    pub(super) fn stored(&self, examples: usize, step: usize, may: Option<usize>) -> Stored {
        let bytes = |f: &Facts| f.iter().map(|(t, s)| s.iter().product::<usize>() * t.size_bytes()).sum::<usize>();
        let each = self.largest.iter().map(bytes).max().unwrap_or(0);
        let all = examples * each;
        let room = match may {
            None => KEPT_BYTES,
            // When all are kept they are made before the first step, and the body is gone then.
            Some(may) if all + step.max(self.bytes) <= may => all,
            Some(may) => may.saturating_sub(step + self.bytes),
        };
        let kept = examples.min(room / each.max(1));
        Stored { examples, kept, bytes: kept * each, body: self.bytes, time: Duration::ZERO }
    }

    fn features(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TuneError> {
        Ok(self.runner.run(&inputs.iter().collect::<Vec<_>>()).map_err(TrainError::from)?)
    }
}

/// Examples as features of a body that stays.
pub(super) struct Featured<'a> {
    examples: &'a mut dyn Examples,
    body: Body,
    kept: BTreeMap<usize, Example>,
}

impl<'a> Featured<'a> {
    /// The examples through the body; the features of the first of `of` are made and kept, as many as `stored` says.
    pub(super) fn new(
        examples: &'a mut dyn Examples,
        mut body: Body,
        of: &[usize],
        stored: &mut Stored,
    ) -> Result<Featured<'a>, TuneError> {
        let began = Instant::now();
        let mut kept = BTreeMap::new();
        for &i in &of[..stored.kept] {
            let Example { inputs, target } = examples.example(i)?;
            kept.insert(i, Example { inputs: body.features(&inputs)?, target });
        }
        if stored.kept == of.len() {
            // Its memory is free for the steps.
            body.runner = Runner::new(body.runner.graph().clone(), RunOptions::default());
        }
        stored.time = began.elapsed();
        Ok(Featured { examples, body, kept })
    }
}

impl Stored {
    /// Bytes at most, beside a step of `step` bytes.
    pub(super) fn peak(&self, step: usize) -> usize {
        if self.kept == self.examples { self.bytes + step.max(self.body) } else { self.bytes + step + self.body }
    }
}

impl Examples for Featured<'_> {
    fn count(&self) -> usize {
        self.examples.count()
    }

    fn class(&self, i: usize) -> Option<usize> {
        self.examples.class(i)
    }

    fn example(&mut self, i: usize) -> Result<Example, TuneError> {
        let kept = self.kept.get(&i);
        if let Some(kept) = kept
            && !self.examples.renews()
        {
            return Ok(kept.clone());
        }
        let Example { inputs, target } = self.examples.example(i)?;
        let features = match kept {
            Some(kept) => kept.inputs.clone(),
            None => self.body.features(&inputs)?,
        };
        Ok(Example { inputs: features, target })
    }

    fn held_out(&self, i: usize) -> Option<bool> {
        self.examples.held_out(i)
    }

    fn renews(&self) -> bool {
        self.examples.renews()
    }

    fn renew(&mut self, look: &mut dyn FnMut(&[Tensor]) -> Result<Tensor, TuneError>) -> Result<(), TuneError> {
        self.examples.renew(look)
    }

    fn digest(&self) -> String {
        self.examples.digest()
    }
}

#[cfg(all(test, feature = "import"))]
mod tests {
    use super::super::tests::{examples, model, settings, spec};
    use super::super::{memory, recipe};
    use super::*;
    use crate::scope;
    use crate::train::Trainer;

    #[test]
    fn a_head_learns_on_kept_features_what_it_learns_behind_the_whole_body() {
        for name in ["picture", "picture.int8-weights", "picture.int8-qdq"] {
            let (graph, opset) = model(name);
            let (spec, settings, options) = (spec("head"), settings(), TrainOptions::default());
            let scoped = scope::place(&graph, opset, &spec).unwrap();
            let mut all = examples(20);
            let batcher = Batcher::new(&graph, settings.objective, settings.batch);
            let one = all[0].clone();
            let extremes = batcher.extremes(&mut all, &[0]).unwrap();
            let planned = memory::plan(&scoped, &spec, &settings, &options, &batcher, &extremes, (20, 0)).unwrap();
            let (mut tail, body) = (planned.trainer, planned.body.unwrap());
            let mut whole =
                Trainer::new(&scoped.graph, recipe(&scoped, &spec, &settings, &batcher), options.clone()).unwrap();
            let of: Vec<usize> = (0..20).collect();
            let step = whole.footprint(&batcher.shapes_of(&one, batcher.rows)).unwrap();
            assert!(planned.needs.step.total() < step.total() / 2, "{name}: {:?}, {step:?}", planned.needs);
            let raw = batcher.batches(&mut all, &of[..8]).unwrap();
            let behind = body.batcher(&batcher);
            let mut stored = Stored { kept: 3, ..planned.needs.stored.unwrap() };
            let mut featured = Featured::new(&mut all, body, &of, &mut stored).unwrap();
            let features = behind.batches(&mut featured, &of[..8]).unwrap();
            let (want, got) = (whole.gradients(&raw[0]).unwrap(), tail.gradients(&features[0]).unwrap());
            assert!((want.0 - got.0).abs() < 1e-4, "{name}: {} {}", want.0, got.0);
            for (a, b) in want.1.iter().zip(&got.1) {
                let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
                // Codes of activations may round the other way behind kernels of another order.
                let tolerance = if name.ends_with("qdq") { 2e-2 } else { 1e-4 };
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance), "{name}: {a:?} {b:?}");
            }
            // The same bits, kept or made again.
            drop(featured);
            let body =
                memory::plan(&scoped, &spec, &settings, &options, &batcher, &extremes, (20, 0)).unwrap().body.unwrap();
            let mut stored = Stored { kept: 20, ..stored };
            let mut featured = Featured::new(&mut all, body, &of, &mut stored).unwrap();
            assert_eq!(behind.batches(&mut featured, &of[..8]).unwrap()[0].inputs, features[0].inputs);
        }
    }

    #[test]
    fn as_many_features_are_kept_as_there_is_room_for_and_none_of_a_body_that_is_trained() {
        let (graph, opset) = model("picture");
        let (settings, options) = (settings(), TrainOptions::default());
        let batcher = Batcher::new(&graph, settings.objective, settings.batch);
        let extremes = batcher.extremes(&mut examples(1), &[0]).unwrap();
        let body = |scopes: &str| {
            let spec = spec(scopes);
            let scoped = scope::place(&graph, opset, &spec).unwrap();
            memory::plan(&scoped, &spec, &settings, &options, &batcher, &extremes, (1, 0)).unwrap().body
        };
        assert!(body("bias").is_none() && body("lora,head").is_none());
        let body = body("head").unwrap();
        let each = body.stored(1, 0, None).bytes;
        let bytes = body.bytes;
        assert!(each > 0 && bytes > each);
        // All of them before the first step, or with the body beside it.
        assert_eq!(body.stored(10, 100, Some(bytes + 10 * each)).kept, 10);
        let some = body.stored(100_000, 100, Some(bytes + 100 + 5 * each));
        assert_eq!((some.kept, some.examples, some.peak(100)), (5, 100_000, bytes + 100 + 5 * each));
        assert_eq!(body.stored(100_000, 100, Some(50)).kept, 0);
        assert_eq!(body.stored(usize::MAX / (2 * each), 100, None).kept, KEPT_BYTES / each);
    }
}
