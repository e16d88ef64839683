//! Gradients and steps against PyTorch (`testdata/record.py`), and the promises of the trainer.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::bundle::npz::read_npz;
use crate::import::{Limits, from_onnx};

#[derive(serde::Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    model: String,
    output: String,
    objective: String,
    pub(super) clip: Option<f32>,
    inputs: Vec<String>,
    filled: Vec<String>,
    loss: f64,
    gradients: BTreeMap<String, Vec<f64>>,
    steps: BTreeMap<String, Steps>,
}

#[derive(serde::Deserialize)]
struct Steps {
    losses: Vec<f64>,
    norms: Vec<f64>,
    after: BTreeMap<String, Vec<f64>>,
}

pub(super) struct Archive(Vec<(String, Tensor)>);

impl Archive {
    pub(super) fn read() -> Archive {
        Archive(read_npz(include_bytes!("testdata/gradients.npz")).unwrap())
    }

    fn tensor(&self, name: &str) -> Option<Tensor> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        match self.tensor(name).map(Tensor::into_data) {
            Some(crate::tensor::Data::U8(v)) => v,
            _ => panic!("the archive has no bytes named {name}"),
        }
    }

    pub(super) fn cases(&self) -> Vec<Case> {
        serde_json::from_slice(&self.bytes("index")).unwrap()
    }

    pub(super) fn case(&self, name: &str) -> Case {
        self.cases().into_iter().find(|c| c.name == name).unwrap()
    }

    /// The graph with its weights.
    fn graph(&self, case: &Case) -> Graph {
        let bytes = match case.model.contains('/') {
            true => std::fs::read(format!("{}/../{}", env!("CARGO_MANIFEST_DIR"), case.model)).unwrap(),
            false => self.bytes(&case.model),
        };
        let (mut graph, _) = from_onnx(&bytes, &Limits::default()).unwrap();
        for v in std::mem::take(&mut graph.inputs) {
            let value = &mut graph.values[v];
            if !case.filled.contains(&value.name) {
                graph.inputs.push(v);
                continue;
            }
            let shape = value.declared.as_ref().and_then(|d| d.shape.clone()).unwrap();
            let shape: Vec<usize> = shape.iter().map(|d| d.known().unwrap()).collect();
            value.constant = Some(Arc::new(weight(&value.name, &shape)));
        }
        graph
    }

    /// A trainer of the case at its first step, and the batch.
    pub(super) fn trainer(
        &self,
        case: &Case,
        options: TrainOptions,
        change: impl FnOnce(&mut Recipe),
    ) -> (Trainer, Batch) {
        let graph = self.graph(case);
        let batch = self.batch(case, &graph);
        let mut recipe = recipe(case);
        change(&mut recipe);
        (Trainer::new(&graph, recipe, options).unwrap(), batch)
    }

    fn batch(&self, case: &Case, graph: &Graph) -> Batch {
        let input = |&v: &ValueId| {
            let name = &graph.values[v].name;
            assert!(case.inputs.contains(name));
            self.tensor(&format!("{}/{name}", case.name)).unwrap()
        };
        Batch {
            inputs: graph.inputs.iter().map(input).collect(),
            target: self.tensor(&format!("{}/~target", case.name)),
            weights: self.tensor(&format!("{}/~weights", case.name)),
        }
    }
}

/// `n` numbers in -1..1, by the recipe's rule of `name`.
pub(crate) fn numbers(name: &str, n: usize) -> Vec<f64> {
    let mut s = name.bytes().fold(7u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(b)));
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (s >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// The recipe's weights.
fn weight(name: &str, shape: &[usize]) -> Tensor {
    let mut v = numbers(name, shape.iter().product());
    if shape.len() > 1 {
        let fan: usize = shape[1..].iter().product();
        v.iter_mut().for_each(|v| *v *= (3.0 / fan as f64).sqrt());
    } else if name.contains("scale") || name.contains("var") {
        v.iter_mut().for_each(|v| *v = 1.0 + 0.3 * *v);
    } else {
        v.iter_mut().for_each(|v| *v *= 0.1);
    }
    Tensor::from_f64(DType::F32, shape, &v).unwrap()
}

fn objective(name: &str) -> Objective {
    match name {
        "CrossEntropy" => Objective::CrossEntropy,
        "Labels" => Objective::Labels,
        "BinaryCrossEntropy" => Objective::BinaryCrossEntropy,
        "MeanSquared" => Objective::MeanSquared,
        "Cosine" => Objective::Cosine,
        "Contrastive" => Objective::Contrastive { temperature: 0.1 },
        other => panic!("{other}"),
    }
}

fn recipe(case: &Case) -> Recipe {
    recipe_for(&case.output, &case.objective, case.gradients.keys().cloned().collect())
}

/// That trains these by AdamW, in whole batches and whatever memory it takes.
pub(crate) fn recipe_for(output: &str, kind: &str, trainable: Vec<String>) -> Recipe {
    Recipe {
        output: output.into(),
        objective: objective(kind),
        trainable,
        undecayed: Vec::new(),
        optimizer: Optimizer::ADAMW,
        clip: None,
        accumulate: false,
        max_bytes: None,
        spare: 0.0,
    }
}

fn trainer(archive: &Archive, case: &Case, change: impl FnOnce(&mut Recipe)) -> (Trainer, Batch) {
    archive.trainer(case, TrainOptions::default(), change)
}

/// What differs from the recorded norm and products with two tensors, relative to the norm or to `floor`, if that is
/// more: some gradients are 0 by symmetry and all rounding.
pub(crate) fn differs(name: &str, want: &[f64], t: &Tensor, allowed: f64, floor: f64) -> Option<String> {
    let v = t.data().to_f64();
    let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let product = |k: usize| numbers(&format!("{name}:{k}"), v.len()).iter().zip(&v).map(|(a, b)| a * b).sum::<f64>();
    let got = [norm, product(0), product(1)];
    // A difference e has products of about |e| / √3 with numbers in -1..1.
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max) / want[0].max(floor);
    (worst > allowed || worst.is_nan()).then(|| format!("{name} is off by {worst:e} of its norm {:e}", want[0]))
}

#[test]
fn gradients_of_whole_models_are_those_of_pytorch() {
    let archive = Archive::read();
    let mut wrong = Vec::new();
    for case in archive.cases() {
        let (mut trainer, batch) = trainer(&archive, &case, |_| {});
        let (loss, gradients) = match trainer.gradients(&batch) {
            Ok(found) => found,
            Err(e) => {
                wrong.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        if (f64::from(loss) - case.loss).abs() > 1e-5 * case.loss.abs().max(1.0) {
            wrong.push(format!("{}: loss {loss}, recorded {}", case.name, case.loss));
        }
        let floor = 1e-3 * case.gradients.values().map(|v| v[0]).fold(0f64, f64::max);
        for ((name, want), g) in case.gradients.iter().zip(&gradients) {
            wrong.extend(differs(name, want, g, 1e-4, floor).map(|w| format!("{}: {w}", case.name)));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn steps_of_every_optimizer_are_those_of_pytorch() {
    let archive = Archive::read();
    let mut wrong = Vec::new();
    for case in archive.cases() {
        for (optimizer, steps) in &case.steps {
            let (optimizer, rate) = match &optimizer[..] {
                "sgd" => (Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 }, 0.05),
                "adamw" => (Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 }, 0.01),
                "adafactor" => {
                    (Optimizer::Adafactor { beta2_decay: -0.8, epsilon: 1e-3, threshold: 1.0, weight_decay: 0.1 }, 0.01)
                }
                other => panic!("{other}"),
            };
            let (mut trainer, batch) = trainer(&archive, &case, |r| {
                r.optimizer = optimizer;
                r.clip = case.clip;
            });
            let name = format!("{} {optimizer:?}", case.name);
            // What runs by reference takes memory that no plan knows of.
            let shapes: Vec<_> = batch.inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
            let by_reference = |s: &crate::plan::StepInfo| s.op.ends_with("Step") && s.kernel == "reference";
            if let Some(s) = trainer.steps(&shapes).unwrap().iter().find(|s| by_reference(s)) {
                wrong.push(format!("{name}: {} of {} has no kernel", s.op, s.node));
            }
            for (i, want) in steps.losses.iter().enumerate() {
                let report = trainer.step(std::slice::from_ref(&batch), rate).unwrap();
                if (f64::from(report.loss) - want).abs() > 1e-4 * want.abs() {
                    wrong.push(format!("{name}: loss {i} is {}, recorded {want}", report.loss));
                }
                if let (Some(norm), Some(want)) = (report.norm, steps.norms.get(i))
                    && (f64::from(norm) - want).abs() > 1e-4 * want
                {
                    wrong.push(format!("{name}: norm {i} is {norm}, recorded {want}"));
                }
            }
            for (parameter, want) in &steps.after {
                let t = trainer.parameter(parameter).unwrap();
                wrong.extend(differs(parameter, want, &t, 1e-4, 1e-6).map(|w| format!("{name}: {w}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

pub(super) fn values(trainer: &Trainer) -> Vec<(String, Tensor)> {
    trainer.state().unwrap()
}

#[test]
fn micro_batches_accumulate_to_the_step_of_the_whole_batch() {
    let archive = Archive::read();
    let case = archive.case("mlp-labels");
    let (mut whole, batch) = trainer(&archive, &case, |_| {});
    let (mut parts, _) = trainer(&archive, &case, |r| r.accumulate = true);
    let rows = |t: &Tensor, from: usize, to: usize| {
        let width = t.len() / 8;
        let mut shape = t.shape().to_vec();
        shape[0] = to - from;
        Tensor::new(&shape, t.data().pick(&(from * width..to * width).collect::<Vec<_>>())).unwrap()
    };
    let part = |from: usize, to: usize| Batch {
        inputs: batch.inputs.iter().map(|t| rows(t, from, to)).collect(),
        target: batch.target.as_ref().map(|t| rows(t, from, to)),
        weights: batch.weights.as_ref().map(|t| rows(t, from, to)),
    };
    for _ in 0..3 {
        let a = whole.step(std::slice::from_ref(&batch), 0.01).unwrap();
        let b = parts.step(&[part(0, 3), part(3, 8)], 0.01).unwrap();
        assert!((a.loss - b.loss).abs() < 1e-5, "{a:?} {b:?}");
    }
    for ((name, a), (_, b)) in values(&whole).iter().zip(&values(&parts)) {
        let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
    }
}

/// A bidirectional LSTM or GRU over a whole sequence, as PyTorch's, wide enough that its products are shared out.
fn recurrent(op: &str) -> (Graph, Batch) {
    const T: usize = 7;
    const N: usize = 24;
    const I: usize = 72;
    const H: usize = 96;
    let gates = if op == "LSTM" { 4 } else { 3 };
    let mut graph = Graph::default();
    let tensor = |name: &str, shape: &[usize]| {
        let v = numbers(name, shape.iter().product()).iter().map(|v| 0.2 * *v as f32).collect();
        Tensor::f32(shape, v).unwrap()
    };
    let x = graph.add_value("x", None, None);
    let shapes = [("w", vec![2, gates * H, I]), ("r", vec![2, gates * H, H]), ("b", vec![2, 2 * gates * H])];
    let weights = shapes.map(|(name, shape)| graph.add_value(name, None, Some(Arc::new(tensor(name, &shape)))));
    let y = graph.add_value("y", None, None);
    let attrs = Attrs::of([
        ("hidden_size", crate::ops::Attr::Int(H as i64)),
        ("direction", crate::ops::Attr::Str("bidirectional".into())),
        ("linear_before_reset", crate::ops::Attr::Int(1)),
    ]);
    let inputs = [x].into_iter().chain(weights).map(Some).collect();
    let own = crate::graph::Op::Own(crate::ops::find("", op).unwrap(), Arc::new(attrs));
    graph.nodes.push(crate::graph::Node { name: op.into(), op: own, inputs, outputs: vec![Some(y)] });
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let (x, target) = (tensor("inputs", &[T, N, I]), tensor("target", &[T, 2, N, H]));
    (graph, Batch { inputs: vec![x], target: Some(target), weights: None })
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let archive = Archive::read();
    let recorded = ["transformer-full", "efficientnet-last", "eeg-conv-lstm"].map(|name| {
        let case = archive.case(name);
        let graph = archive.graph(&case);
        let batch = archive.batch(&case, &graph);
        (name, graph, batch, recipe(&case))
    });
    let sequences = ["LSTM", "GRU"].map(|op| {
        let (graph, batch) = recurrent(op);
        let recipe = Recipe {
            output: "y".into(),
            objective: Objective::MeanSquared,
            trainable: ["w", "r", "b"].map(String::from).to_vec(),
            ..recipe(&archive.case("transformer-full"))
        };
        (op, graph, batch, recipe)
    });
    for (name, graph, batch, recipe) in recorded.into_iter().chain(sequences) {
        let after = |threads: usize| {
            let mut trainer = Trainer::new(&graph, recipe.clone(), TrainOptions::on_threads(threads)).unwrap();
            let losses: Vec<f32> =
                (0..2).map(|_| trainer.step(std::slice::from_ref(&batch), 0.01).unwrap().loss).collect();
            (losses, values(&trainer))
        };
        let one = after(1);
        assert!(one.0[0] != one.0[1], "{name}: {:?}", one.0);
        for threads in [2, 3, 5] {
            assert!(after(threads) == one, "{name}: other bits on {threads} threads");
        }
    }
}

#[test]
fn the_plan_that_was_not_used_for_longest_makes_room_for_a_new_one() {
    let archive = Archive::read();
    let case = archive.case("mlp-labels");
    let (mut trainer, batch) = trainer(&archive, &case, |_| {});
    let shapes = |rows: usize| -> Vec<(DType, Vec<usize>)> {
        let of = |t: &Tensor| (t.dtype(), [&[rows], &t.shape()[1..]].concat());
        batch.inputs.iter().map(of).collect()
    };
    for rows in 1..=PLANS {
        trainer.footprint(&shapes(rows)).unwrap();
    }
    trainer.footprint(&shapes(1)).unwrap();
    trainer.footprint(&shapes(PLANS + 1)).unwrap();
    let kept = |rows: usize| trainer.plans.iter().any(|m| m.shapes == shapes(rows));
    assert!(kept(1) && !kept(2) && kept(3) && kept(PLANS + 1));
    assert_eq!(trainer.plans.len(), PLANS);
}

#[test]
fn a_trainer_restored_from_its_state_goes_on_bit_for_bit() {
    let archive = Archive::read();
    let case = archive.case("mlp-cross-entropy");
    let (mut first, batch) = trainer(&archive, &case, |_| {});
    let step = |t: &mut Trainer| t.step(std::slice::from_ref(&batch), 0.01).unwrap();
    for _ in 0..3 {
        step(&mut first);
    }
    let (mut second, _) = trainer(&archive, &case, |_| {});
    second.restore(&values(&first), first.steps_done()).unwrap();
    (0..3).for_each(|_| assert_eq!(step(&mut first), step(&mut second)));
    assert!(values(&first) == values(&second));
}

#[test]
fn handing_in_the_gradient_of_the_output_is_the_step_of_the_loss_it_is_of() {
    let archive = Archive::read();
    let case = archive.case("mlp-squared");
    let (mut by_loss, mut batch) = trainer(&archive, &case, |_| {});
    batch.weights = None;
    let (_, want) = by_loss.gradients(&batch).unwrap();
    let (mut handed, _) = trainer(&archive, &case, |r| r.objective = Objective::Handed);
    // Of the mean over 8 · 5 squares: 2 (y - t) / 40, with y as the graph computes it.
    let mut runner = crate::plan::Runner::new(Arc::new(archive.graph(&case)), RunOptions::default());
    let y = runner.run(&batch.inputs.iter().collect::<Vec<_>>()).unwrap().remove(0);
    let (y, t) = (y.as_f32().unwrap().to_vec(), batch.target.clone().unwrap());
    let g = y.iter().zip(t.as_f32().unwrap()).map(|(y, t)| (y - t) / 20.0).collect();
    batch.target = Some(Tensor::f32(&[8, 5], g).unwrap());
    let (_, got) = handed.gradients(&batch).unwrap();
    for (a, b) in want.iter().zip(&got) {
        assert!(a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
fn the_loss_of_a_target_that_is_no_distribution_has_the_gradient_of_one_that_is() {
    let archive = Archive::read();
    let case = archive.case("mlp-cross-entropy");
    let (mut entropy, mut batch) = trainer(&archive, &case, |_| {});
    let (mut young, _) = trainer(&archive, &case, |r| r.objective = Objective::FenchelYoung);
    let near = |a: &[Tensor], b: &[Tensor]| {
        let pairs = a.iter().zip(b).flat_map(|(a, b)| a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6
    };
    let ((want, by_entropy), (got, by_young)) = (entropy.gradients(&batch).unwrap(), young.gradients(&batch).unwrap());
    assert!((want - got).abs() < 1e-5 && near(&by_entropy, &by_young), "{want} and {got}");
    // Any target: softmax less it, handed in.
    batch.weights = None;
    let mut runner = crate::plan::Runner::new(Arc::new(archive.graph(&case)), RunOptions::default());
    let y = runner.run(&batch.inputs.iter().collect::<Vec<_>>()).unwrap().remove(0);
    let (rows, classes) = (y.shape()[0], y.shape()[1]);
    let target: Vec<f32> = (0..rows * classes).map(|i| (i as f32 * 0.7).sin() * 1.5).collect();
    let mut g = Vec::new();
    for (y, t) in y.as_f32().unwrap().chunks(classes).zip(target.chunks(classes)) {
        let sum: f32 = y.iter().map(|v| v.exp()).sum();
        g.extend(y.iter().zip(t).map(|(y, t)| (y.exp() / sum - t) / rows as f32));
    }
    let (mut handed, _) = trainer(&archive, &case, |r| r.objective = Objective::Handed);
    batch.target = Some(Tensor::f32(&[rows, classes], g).unwrap());
    let (_, want) = handed.gradients(&batch).unwrap();
    batch.target = Some(Tensor::f32(&[rows, classes], target).unwrap());
    let (_, got) = young.gradients(&batch).unwrap();
    assert!(near(&want, &got));
    // Cross-entropy weighs by the sum of the target, and is another thing.
    let (_, other) = entropy.gradients(&batch).unwrap();
    assert!(!near(&want, &other));
}

#[test]
fn a_step_fits_into_less_by_computing_again_to_the_same_bits_or_is_refused_with_both_figures() {
    let archive = Archive::read();
    let case = archive.case("transformer-full");
    let (mut free, batch) = trainer(&archive, &case, |_| {});
    let shapes: Vec<(DType, Vec<usize>)> = batch.inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
    let all = free.footprint(&shapes).unwrap();
    let moving = all.arena - all.resident;
    // Nearly half of what is not there for good.
    let may = all.total() - moving * 9 / 20;
    let (mut tight, _) = trainer(&archive, &case, |r| r.max_bytes = Some(may));
    let less = tight.footprint(&shapes).unwrap();
    assert!(less.total() <= may && less.recomputed > 0, "{less:?} of {all:?}");
    // Without a limit, for as many operations as are spared for it.
    let (mut thrifty, _) = trainer(&archive, &case, |r| r.spare = 1.0);
    let some = thrifty.footprint(&shapes).unwrap();
    assert!(some.total() < all.total() && some.recomputed > 0, "{some:?} of {all:?}");
    for _ in 0..2 {
        let step = |t: &mut Trainer| t.step(std::slice::from_ref(&batch), 0.01).unwrap();
        let first = step(&mut free);
        assert_eq!(first, step(&mut tight));
        assert_eq!(first, step(&mut thrifty));
    }
    assert!(values(&free) == values(&tight) && values(&free) == values(&thrifty));
    let (mut none, _) = trainer(&archive, &case, |r| r.max_bytes = Some(all.resident + all.weights));
    match none.footprint(&shapes) {
        Err(TrainError::Memory { needs, may, .. }) => assert!(needs > may && may == all.resident + all.weights),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_operator_without_a_gradient_on_the_way_is_named_with_what_is_before_it() {
    let archive = Archive::read();
    let case = archive.case("mlp-squared");
    let mut graph = archive.graph(&case);
    let y = graph.outputs[0];
    let made = graph.add_value("turned", None, None);
    let op = crate::graph::Op::Own(crate::ops::find("", "CumProd").unwrap(), Arc::new(Attrs::of([])));
    let axis = graph.add_value("axis", None, Some(Arc::new(Tensor::i64(&[], vec![1]).unwrap())));
    let inputs = vec![Some(y), Some(axis)];
    graph.nodes.push(crate::graph::Node { name: "products".into(), op, inputs, outputs: vec![Some(made)] });
    graph.outputs = vec![made];
    let batch = archive.batch(&case, &graph);
    let recipe = Recipe { output: "turned".into(), ..recipe(&case) };
    let mut trainer = Trainer::new(&graph, recipe, TrainOptions::default()).unwrap();
    let e = trainer.gradients(&batch).unwrap_err().to_string();
    assert!(e.contains("products") && e.contains("CumProd") && e.contains("between the loss and `"), "{e}");
}

/// The case's graph with every matrix of its products as int8 codes, a scale a column, behind `DequantizeLinear`; or
/// with what those stand for.
fn quantised(archive: &Archive, case: &Case, codes: bool) -> Graph {
    let mut graph = archive.graph(case);
    let mut made = Vec::new();
    for v in 0..graph.values.len() {
        let name = graph.values[v].name.clone();
        let Some(t) = graph.values[v].constant.clone().filter(|_| name.ends_with(".w") && name != "head.w") else {
            continue;
        };
        let &[_, n] = t.shape() else { panic!("{name}") };
        let w = t.as_f32().unwrap();
        let most = |j: usize| w.iter().skip(j).step_by(n).fold(0f32, |m, v| m.max(v.abs()));
        let scale: Vec<f32> = (0..n).map(|j| most(j) / 127.0).collect();
        let q: Vec<i8> = w.iter().enumerate().map(|(i, v)| (v / scale[i % n]).round() as i8).collect();
        if !codes {
            let plain = q.iter().enumerate().map(|(i, &q)| f32::from(q) * scale[i % n]).collect();
            graph.values[v].constant = Some(Arc::new(Tensor::f32(t.shape(), plain).unwrap()));
            continue;
        }
        graph.values[v].constant = None;
        let q = Tensor::new(t.shape(), crate::tensor::Data::I8(q)).unwrap();
        let q = graph.add_value(&format!("{name}.q"), None, Some(Arc::new(q)));
        let scale = Tensor::f32(&[n], scale).unwrap();
        let scale = graph.add_value(&format!("{name}.s"), None, Some(Arc::new(scale)));
        let attrs = Attrs::of([("axis", crate::ops::Attr::Int(1))]);
        let op = crate::graph::Op::Own(crate::ops::find("", "DequantizeLinear").unwrap(), Arc::new(attrs));
        let inputs = vec![Some(q), Some(scale)];
        made.push(crate::graph::Node { name: format!("dequantise {name}"), op, inputs, outputs: vec![Some(v)] });
    }
    graph.nodes.splice(0..0, made);
    graph
}

#[test]
fn gradients_through_frozen_int8_weights_are_those_through_what_they_stand_for_and_the_codes_stay() {
    let archive = Archive::read();
    let case = archive.case("transformer-lora");
    let batch = archive.batch(&case, &archive.graph(&case));
    let run_in = |bf16: Bf16, codes: bool, batch: &Batch, reference: bool| {
        let shapes: Vec<(DType, Vec<usize>)> = batch.inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        let graph = quantised(&archive, &case, codes);
        let options = TrainOptions { reference, bf16, ..TrainOptions::default() };
        let mut trainer = Trainer::new(&graph, recipe(&case), options).unwrap();
        let gradients = trainer.gradients(batch).unwrap().1;
        (gradients, trainer.footprint(&shapes).unwrap().weights, trainer.steps(&shapes).unwrap())
    };
    let run = |codes: bool, batch: &Batch, reference: bool| run_in(Bf16::Nothing, codes, batch, reference);
    let agree_within = |most: f32, want: &[Tensor], got: &[Tensor]| {
        for ((name, _), (a, b)) in case.gradients.iter().zip(want.iter().zip(got)) {
            let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
            let norm = a.iter().map(|v| v * v).sum::<f32>().sqrt();
            let off = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            assert!(off <= most * norm, "{name}: {off} of {norm}");
        }
    };
    let agree = |want: &[Tensor], got: &[Tensor]| agree_within(1e-5, want, got);
    let (plain, plain_bytes, _) = run(false, &batch, false);
    let (coded, coded_bytes, steps) = run(true, &batch, false);
    agree(&plain, &coded);
    // Forward and backward: twice the codes, where floats were. Before the first three products there is nothing to
    // train.
    assert!(coded_bytes * 2 < plain_bytes, "{coded_bytes} of {plain_bytes}");
    let coded = steps.iter().filter(|s| s.kernel == "dense-f32w8").count();
    assert!(coded >= 18, "{coded} products with codes, forward and backward");
    assert!(steps.iter().all(|s| s.op != "DequantizeLinear"), "a weight was dequantised");

    // With more rows than fit into a tile or two nothing is packed beforehand, in either direction.
    let many = Batch {
        inputs: batch.inputs.iter().map(twice).collect(),
        target: batch.target.as_ref().map(twice),
        weights: batch.weights.as_ref().map(twice),
    };
    for codes in [false, true] {
        let (slow, _, _) = run(codes, &many, true);
        let (fast, bytes, steps) = run(codes, &many, false);
        agree(&slow, &fast);
        agree(&plain, &fast);
        // What is packed are the matrices of the last rows alone: the head's, of one row for each example.
        assert!(bytes < coded_bytes / 2, "{bytes} of {coded_bytes}");
        let kernel = if codes { "gemm-f32w8-lying" } else { "gemm-f32-lying" };
        let lying = steps.iter().filter(|s| s.kernel == kernel).count();
        assert!(lying >= 18, "{lying} by {kernel}, forward and backward");
        assert!(steps.iter().all(|s| s.op != "DequantizeLinear"), "a weight was dequantised");
    }

    // In bf16 the codes alone, or all that is frozen: within the two per cent that are promised (0.8 was the most that was seen).
    for (bf16, codes, kernel) in [
        (Bf16::Codes, true, "gemm-f32w8bf16-lying"),
        (Bf16::Codes, false, "gemm-f32-lying"),
        (Bf16::Weights, true, "gemm-f32w8bf16-lying"),
        (Bf16::Weights, false, "gemm-f32wbf16-lying"),
    ] {
        let (rounded, _, steps) = run_in(bf16, codes, &many, false);
        agree_within(2e-2, &plain, &rounded);
        let lying = steps.iter().filter(|s| s.kernel == kernel).count();
        assert!(lying >= 18, "{lying} by {kernel}, forward and backward");
        let exact = run(codes, &many, false).0;
        assert_eq!(rounded == exact, kernel == "gemm-f32-lying", "{bf16:?}, codes: {codes}");
    }
}

/// All rows, and all rows again.
fn twice(t: &Tensor) -> Tensor {
    let mut shape = t.shape().to_vec();
    shape[0] *= 2;
    let mut data = t.data().clone();
    data.append(t.data());
    Tensor::new(&shape, data).unwrap()
}

#[test]
fn rounding_of_activations_passes_gradients_where_it_does_not_saturate() {
    let mut graph = Graph::default();
    let value = |graph: &mut Graph, name: &str, t: Option<Tensor>| graph.add_value(name, None, t.map(Arc::new));
    let x = value(&mut graph, "x", None);
    let w = value(&mut graph, "w", Some(Tensor::f32(&[4], vec![0.3, -0.7, 5.0, -5.0]).unwrap()));
    let scale = value(&mut graph, "scale", Some(Tensor::f32(&[], vec![0.01]).unwrap()));
    let zero = value(&mut graph, "zero", Some(Tensor::new(&[], crate::tensor::Data::I8(vec![3])).unwrap()));
    let [product, codes, y] = ["product", "codes", "y"].map(|n| value(&mut graph, n, None));
    for (op, inputs, made) in [
        ("Mul", vec![x, w], product),
        ("QuantizeLinear", vec![product, scale, zero], codes),
        ("DequantizeLinear", vec![codes, scale, zero], y),
    ] {
        let own = crate::graph::Op::Own(crate::ops::find("", op).unwrap(), Arc::new(Attrs::of([])));
        let inputs = inputs.into_iter().map(Some).collect();
        graph.nodes.push(crate::graph::Node { name: op.into(), op: own, inputs, outputs: vec![Some(made)] });
    }
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let recipe = Recipe {
        output: "y".into(),
        objective: Objective::Handed,
        trainable: vec!["w".into()],
        undecayed: Vec::new(),
        optimizer: Optimizer::SGD,
        clip: None,
        accumulate: false,
        max_bytes: None,
        spare: 0.0,
    };
    let x = Tensor::f32(&[1, 4], vec![1.0, 1.5, 1.0, 1.0]).unwrap();
    let batch = Batch { inputs: vec![x], target: Some(Tensor::f32(&[1, 4], vec![1.0; 4]).unwrap()), weights: None };
    let mut trainer = Trainer::new(&graph, recipe, TrainOptions::default()).unwrap();
    let gradients = trainer.gradients(&batch).unwrap().1;
    // 0.3 and -1.05 are within ±1.3, 5 and -5 are not.
    let g = gradients[0].as_f32().unwrap();
    assert!(g.iter().zip([1.0, 1.5, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{g:?}");
}
