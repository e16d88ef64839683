//! Every gradient against finite differences, on the recorded cases of every operator.
//!
//! A case is widened to `f64`, its loss a random weighing of its outputs, and differentiated by every float input. By
//! reference functions the derivative along a random direction is compared with a central difference: equal to 1e-6 of
//! the sum of what it is made of. By kernels, in `f32`, the gradients themselves are compared with those.
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::graph::Graph;
use crate::import::{Limits, from_onnx};
use crate::ops::conformance::{Case, Recorded, cases};
use crate::ops::support::NOT_DIFFERENTIABLE;
use crate::ops::{Attr, Attrs, Fact, MICROSOFT, OpDef, all};
use crate::plan::{Concrete, Plan, RunOptions, Runner, StepInfo};
use crate::tensor::{DType, Tensor};

/// Numbers in -1..1 by a fixed rule.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

fn wide(t: &Tensor) -> Tensor {
    match t.dtype() {
        DType::F32 => Tensor::from_f64(DType::F64, t.shape(), &t.data().to_f64()).unwrap(),
        _ => t.clone(),
    }
}

/// The graph in `f64`.
fn widened(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    for v in &mut graph.values {
        v.declared = None;
        v.constant = v.constant.as_ref().map(|t| Arc::new(wide(t)));
    }
    for node in &mut graph.nodes {
        let Op::Own(def, attrs) = &mut node.op else { continue };
        let mut changed = Attrs::clone(attrs);
        for (name, a) in &mut changed.map {
            match a {
                Attr::Tensor(t) => *t = Arc::new(wide(t)),
                Attr::Int(to) if def.name == "Cast" && name == "to" && *to == 1 => *to = i64::from(DType::F64.onnx()),
                Attr::Graph(g) => *g = Arc::new(widened(g)),
                _ => {}
            }
        }
        if def.name.ends_with("LayerNormalization") || def.name == "RMSNormalization" {
            // Moments are of 32 bits unless it is said.
            changed.map.insert("stash_type".into(), Attr::Int(i64::from(DType::F64.onnx())));
        }
        *attrs = Arc::new(changed);
    }
    graph
}

/// A graph whose inputs are the leaves, and their values.
struct Problem {
    graph: Graph,
    leaves: Vec<Tensor>,
}

/// The case with every float input a leaf, or only the first one, and all else constant.
fn problem(graph: &Graph, recorded: &Recorded, float: DType, all_inputs: bool) -> Option<Problem> {
    let mut graph = graph.clone();
    let mut leaves = Vec::new();
    let mut inputs = Vec::new();
    for v in std::mem::take(&mut graph.inputs) {
        let t = &recorded.inputs.iter().find(|(n, _)| *n == graph.values[v].name)?.1;
        let t = if float == DType::F64 { wide(t) } else { t.clone() };
        if t.dtype() == float && !t.is_empty() && (all_inputs || leaves.is_empty()) {
            leaves.push(t);
            inputs.push(v);
        } else {
            graph.values[v].constant = Some(Arc::new(t));
        }
    }
    graph.inputs = inputs;
    (!leaves.is_empty()).then_some(Problem { graph, leaves })
}

/// The loss and its gradients as graphs.
struct Differentiated {
    loss: Graph,
    gradients: Graph,
    /// Leaves that have a gradient.
    touched: Vec<bool>,
}

fn differentiated(
    p: &Problem,
    weights: &BTreeMap<usize, Vec<f64>>,
    only_first: bool,
) -> Result<Option<Differentiated>, String> {
    let facts: Vec<Fact> = p.leaves.iter().map(|t| Fact::new(t.dtype(), t.shape())).collect();
    let concrete = Concrete::new(&p.graph, &facts, &RunOptions::default()).map_err(|e| format!("plan: {e}"))?;
    let outputs = concrete.graph.outputs.clone();
    let mut tape = Tape::new(concrete);
    let leaves = tape.graph().inputs.clone();
    let mut seeds = Vec::new();
    let mut total = None;
    for (k, &y) in outputs.iter().enumerate() {
        if tape.dtype(y) != p.leaves[0].dtype() || tape.fact(y).value.is_some() || (only_first && k > 0) {
            continue;
        }
        let Some(w) = weights.get(&k) else { continue };
        let w = Tensor::from_f64(tape.dtype(y), tape.shape(y), w).map_err(|e| e.to_string())?;
        let w = tape.constant(w);
        seeds.push((y, w));
    }
    if seeds.is_empty() {
        return Ok(None);
    }
    let forward = tape.clone();
    let mut found: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    differentiate(&mut tape, &seeds, &leaves, &mut |_, v, g| {
        found.insert(v, g);
        Ok(())
    })
    .map_err(|e| match e {
        AutodiffError::NotDifferentiable { op, .. } => format!("not differentiable: {op}"),
        other => format!("refused: {other}"),
    })?;
    let touched = leaves.iter().map(|v| found.contains_key(v)).collect();
    let mut losses = forward;
    for &(y, w) in &seeds {
        let product = losses.mul(y, w).map_err(|e| e.to_string())?;
        let axes: Vec<usize> = (0..losses.shape(product).len()).collect();
        let sum = losses.reduce("ReduceSum", product, &axes, false).map_err(|e| e.to_string())?;
        total = Some(match total {
            Some(t) => losses.add(t, sum).map_err(|e| e.to_string())?,
            None => sum,
        });
    }
    losses.set_outputs(total.into_iter().collect());
    tape.set_outputs(leaves.iter().filter_map(|v| found.get(v).copied()).collect());
    Ok(Some(Differentiated { loss: losses.into_parts().0, gradients: tape.into_parts().0, touched }))
}

fn run(graph: &Graph, inputs: &[Tensor], reference: bool) -> Result<Vec<Tensor>, String> {
    let options = RunOptions { reference, ..RunOptions::default() };
    let refs: Vec<&Tensor> = inputs.iter().collect();
    Runner::new(Arc::new(graph.clone()), options).run(&refs).map_err(|e| e.to_string())
}

/// How one case came out.
#[derive(Debug)]
enum Outcome {
    /// It has no float input or output.
    Nothing,
    /// An operator without a gradient.
    None,
    /// Equal; `smooth` when finite differences could tell.
    Right {
        smooth: bool,
    },
    Wrong(String),
}

/// Gradients in `f64` with zeros where a leaf has none.
fn gradients(p: &Problem, d: &Differentiated, reference: bool) -> Result<Vec<Vec<f64>>, String> {
    let mut made = run(&d.gradients, &p.leaves, reference)?.into_iter();
    let of = |(leaf, &touched): (&Tensor, &bool)| {
        if touched { made.next().map_or_else(Vec::new, |t| t.data().to_f64()) } else { vec![0.0; leaf.len()] }
    };
    Ok(p.leaves.iter().zip(&d.touched).map(of).collect())
}

/// Cases a gradient refuses, each for the reason the operator's gradient gives.
const REFUSED: &[&str] = &[
    "math: BatchNormalization/training",
    "math: Einsum/ii,ij->j",
    "math: Einsum/iji->j",
    "move: ScatterElements/max",
    "move: ScatterElements/min",
    "move: ScatterElements/mul",
    "move: ScatterND/max",
    "move: ScatterND/min",
    "move: ScatterND/mul",
];

fn check(case: &Case, recorded: &Recorded) -> Outcome {
    let graph = match from_onnx(&case.model, &Limits::default()) {
        Ok((graph, _)) => graph,
        Err(e) => return Outcome::Wrong(e.to_string()),
    };
    let mut numbers = Numbers(case.name.bytes().fold(7, |s: u64, b| s.wrapping_mul(31).wrapping_add(u64::from(b))));
    let weights: BTreeMap<usize, Vec<f64>> = (graph.outputs.iter().enumerate())
        .filter_map(|(k, &v)| {
            let t = &recorded.outputs.iter().find(|(n, _)| *n == graph.values[v].name)?.1;
            t.dtype().is_float().then(|| (k, (0..t.len()).map(|_| numbers.next()).collect()))
        })
        .collect();
    let wide_graph = widened(&graph);
    // Rounding is taken for the identity, which is not what finite differences see.
    let rounds = |n: &Node| matches!(n.op.name(), "QuantizeLinear" | "DynamicQuantizeLinear");
    if graph.nodes.iter().any(rounds) {
        return Outcome::Nothing;
    }
    let mut last = Outcome::Nothing;
    for (all_inputs, only_first) in [(true, false), (true, true), (false, false), (false, true)] {
        let Some(p) = problem(&wide_graph, recorded, DType::F64, all_inputs) else { return Outcome::Nothing };
        match differentiated(&p, &weights, only_first) {
            Ok(None) => return Outcome::Nothing,
            Ok(Some(d)) => {
                return match compare(&p, &d, &mut numbers) {
                    Ok((smooth, want)) => match by_kernels(&graph, recorded, &weights, (all_inputs, only_first), &want)
                    {
                        Ok(()) => Outcome::Right { smooth },
                        Err(e) => Outcome::Wrong(e),
                    },
                    Err(e) => Outcome::Wrong(e),
                };
            }
            // Scales are not trained: what is quantised in one piece is compared with its float form in `train`.
            Err(e) if e.contains("a gradient by a scale of quantisation") => last = Outcome::None,
            Err(e) if e.starts_with("not differentiable") || e.contains("depends on the data") => last = Outcome::None,
            Err(e) if REFUSED.iter().any(|r| case.name.starts_with(r)) && e.starts_with("refused") => {
                last = Outcome::None;
            }
            Err(e) => last = Outcome::Wrong(e),
        }
    }
    last
}

/// The derivative along a direction against central differences; whether those agree among each other, and the gradients.
fn compare(p: &Problem, d: &Differentiated, numbers: &mut Numbers) -> Result<(bool, Vec<Vec<f64>>), String> {
    let found = gradients(p, d, true)?;
    let along: Vec<Vec<f64>> = p.leaves.iter().map(|t| (0..t.len()).map(|_| numbers.next()).collect()).collect();
    let terms = found.iter().flatten().zip(along.iter().flatten()).map(|(g, d)| g * d);
    let (got, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
    let loss = |h: f64| -> Result<f64, String> {
        let moved: Vec<Tensor> = (p.leaves.iter().zip(&along))
            .map(|(t, d)| {
                let v: Vec<f64> = t.data().to_f64().iter().zip(d).map(|(x, d)| x + h * d).collect();
                Tensor::from_f64(DType::F64, t.shape(), &v).unwrap()
            })
            .collect();
        Ok(run(&d.loss, &moved, true)?[0].data().to_f64()[0])
    };
    let difference = |h: f64| Ok::<f64, String>((loss(h)? - loss(-h)?) / (2.0 * h));
    let mut worst = String::new();
    for h in [1e-3, 1e-4, 1e-5] {
        let (coarse, fine) = (difference(h)?, difference(h / 2.0)?);
        // Richardson: the error of the third derivative cancels.
        let want = (4.0 * fine - coarse) / 3.0;
        let scale = size.max(want.abs()).max(1e-9 / h);
        if (got - want).abs() <= 1e-6 * scale {
            return Ok((true, found));
        }
        // A kink lies between: differences do not settle. Or right here: those to either side differ, and go on to differ
        // as the step is halved, where a smooth function's would halve. Then they say nothing.
        let here = loss(0.0)?;
        let sides = |h: f64| Ok::<f64, String>(((loss(h)? - here) / h - (here - loss(-h)?) / h).abs());
        let (wide, narrow) = (sides(h)?, sides(h / 2.0)?);
        let kink = narrow > 0.75 * wide && narrow > 1e-7 * scale;
        if (coarse - fine).abs() <= 1e-4 * scale && !kink {
            worst = format!("derivative {got:e}, finite difference {want:e} (terms {size:e})");
        }
    }
    if worst.is_empty() { Ok((false, found)) } else { Err(worst) }
}

/// Gradients by kernels in `f32` against those in `f64`.
fn by_kernels(
    graph: &Graph,
    recorded: &Recorded,
    weights: &BTreeMap<usize, Vec<f64>>,
    (all_inputs, only_first): (bool, bool),
    want: &[Vec<f64>],
) -> Result<(), String> {
    let Some(p) = problem(graph, recorded, DType::F32, all_inputs) else { return Ok(()) };
    let Some(d) = differentiated(&p, weights, only_first).map_err(|e| format!("f32: {e}"))? else { return Ok(()) };
    let facts: Vec<Fact> = p.leaves.iter().map(|t| Fact::new(t.dtype(), t.shape())).collect();
    let plan = Plan::new(&d.gradients, &facts, &RunOptions::default()).map_err(|e| format!("kernels: {e}"))?;
    // Hours, not minutes, for whole sequences.
    let recurrent = |op: &str| ["LSTM", "GRU", "RNN", "RecurrentVjp"].iter().any(|name| op.ends_with(name));
    let slow = |s: &StepInfo| s.kernel == "reference" && recurrent(&s.op);
    if let Some(step) = plan.steps().into_iter().find(slow) {
        return Err(format!("kernels: {} has none", step.op));
    }
    let found = gradients(&p, &d, false).map_err(|e| format!("kernels: {e}"))?;
    for (k, (found, want)) in found.iter().zip(want).enumerate() {
        let largest = want.iter().fold(1f64, |m, v| m.max(v.abs()));
        let off = found.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
        // Not a bound of one operator: cases sum up to hundreds of roundings on the way, each 6e-8 of a number up to
        // `largest`.
        if found.len() != want.len() || off > 1e-4 * largest || off.is_nan() {
            return Err(format!("kernels: gradient {k} is off by {off:e}, largest {largest:e}"));
        }
    }
    Ok(())
}

#[test]
fn every_gradient_is_what_finite_differences_say_by_reference_and_by_kernel() {
    let cases = cases();
    let next = AtomicUsize::new(0);
    let total = Mutex::new((Vec::<String>::new(), BTreeSet::<String>::new(), BTreeSet::<String>::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Ok((graph, _)) = from_onnx(&case.model, &Limits::default()) else { continue };
            let names: Vec<String> = graph.census().into_keys().filter(|(_, own)| *own).map(|(name, _)| name).collect();
            // One run of a case is enough: the others differ in shape.
            let Some(recorded) = case.runs.first() else { continue };
            let outcome = catch_unwind(AssertUnwindSafe(|| check(case, recorded)));
            let outcome = outcome.unwrap_or_else(|_| Outcome::Wrong("panicked, see above".into()));
            let mut total = total.lock().unwrap();
            match outcome {
                Outcome::Right { smooth } => {
                    total.1.extend(names.clone());
                    if smooth {
                        total.2.extend(names);
                    }
                }
                Outcome::Wrong(why) => total.0.push(format!("{}: {why}", case.name)),
                Outcome::Nothing | Outcome::None => {}
            }
        }
    };
    std::thread::scope(|s| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(s.spawn(work)));
    });
    let (mut wrong, _, smooth) = total.into_inner().unwrap();
    wrong.sort();
    for def in all() {
        let name = def.spelled();
        let listed = NOT_DIFFERENTIABLE.iter().any(|(n, _)| *n == name);
        match (def.vjp.is_some(), listed) {
            (true, true) => wrong.push(format!("NOT_DIFFERENTIABLE lists {name}, which has a gradient")),
            (false, false) => wrong.push(format!("{name} has no gradient, and NOT_DIFFERENTIABLE gives no reason")),
            _ => {}
        }
        let own = OWN.iter().any(|o| o.spelled() == name) || STRAIGHT.iter().any(|(n, _)| *n == def.name);
        let starts = |n: &&str| def.name.starts_with(*n);
        let own = own || IN_ONE_PIECE.contains(&def.name) || ["QLinear", "DynamicQuantize"].iter().any(starts);
        if def.vjp.is_some() && !own && !smooth.contains(&name) {
            wrong.push(format!("no case shows the gradient of {name}"));
        }
    }
    for (name, _) in NOT_DIFFERENTIABLE.iter().filter(|(n, _)| all().all(|d| d.spelled() != *n)) {
        wrong.push(format!("NOT_DIFFERENTIABLE lists {name}, which is no operator of ours"));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Operators whose gradient is none of the function they compute, and which one it is.
const STRAIGHT: &[(&str, &str)] = &[
    ("Constant", "it has no operand"),
    (
        "DequantizeLinear",
        "of scale and zero point alone: codes have none; `train::tests` and `scope::tests` have training",
    ),
    ("DynamicQuantizeLinear", "rounding is taken for the identity, which no difference of it shows"),
    ("MatMulInteger", "of codes, whose rounding is taken for the identity"),
    ("QuantizeLinear", "rounding is taken for the identity where it does not saturate"),
];

/// What is quantised in one piece: rounded as well, and compared with its float form in `train::quantised_tests`.
const IN_ONE_PIECE: &[&str] = &["ConvInteger", "MatMulIntegerToFloat", "NhwcMaxPool", "QAttention", "QGemm"];

/// An operator whose recorded cases show nothing, or that has none.
struct Own {
    domain: &'static str,
    name: &'static str,
    /// Shapes of its operands.
    shapes: &'static [&'static [usize]],
}

impl Own {
    fn spelled(&self) -> String {
        crate::ops::find(self.domain, self.name).map_or_else(String::new, OpDef::spelled)
    }
}

const fn own(domain: &'static str, name: &'static str, shapes: &'static [&'static [usize]]) -> Own {
    Own { domain, name, shapes }
}

const FIVE: &[usize] = &[5];

const OWN: &[Own] = &[
    own("", "Abs", &[FIVE]),
    own("", "Sign", &[FIVE]),
    own("", "Ceil", &[FIVE]),
    own("", "Floor", &[FIVE]),
    own("", "Round", &[FIVE]),
    own("", "Clip", &[FIVE]),
    own("", "CastLike", &[FIVE, FIVE]),
    own("", "Mod", &[FIVE, FIVE]),
    own("", "SwiGLU", &[&[2, 5], &[2, 5]]),
    own(MICROSOFT, "BiasAdd", &[&[2, 3, 4], &[4], &[2, 3, 4]]),
    own(MICROSOFT, "BiasSoftmax", &[&[2, 3, 4], &[1, 3, 4]]),
    own(MICROSOFT, "BiasSplitGelu", &[&[2, 3, 8], &[8]]),
    own(MICROSOFT, "GemmFastGelu", &[&[2, 3], &[3, 4], &[4]]),
    own(MICROSOFT, "LayerNormalization", &[&[2, 3, 6], &[6], &[6]]),
    own(MICROSOFT, "SimplifiedLayerNormalization", &[&[2, 3, 6], &[6]]),
];

#[test]
fn functions_recorded_only_at_their_kinks_or_not_at_all_have_their_gradients_elsewhere() {
    for o in OWN {
        let name = o.spelled();
        let mut graph = Graph::default();
        let inputs: Vec<ValueId> = (0..o.shapes.len()).map(|i| graph.add_value(&i.to_string(), None, None)).collect();
        let y = graph.add_value("y", None, None);
        let double = Attr::Int(i64::from(DType::F64.onnx()));
        let mut attrs = Attrs::of([("fmod", Attr::Int(1)), ("stash_type", double)]);
        if o.name == "Clip" {
            attrs.map.extend([("min".into(), Attr::Float(-0.5)), ("max".into(), Attr::Float(1.0))]);
        }
        if o.name == "BiasSoftmax" {
            attrs.map.extend([("axis".into(), Attr::Int(2)), ("is_inner_broadcast".into(), Attr::Int(0))]);
        }
        let op = Op::Own(crate::ops::find(o.domain, o.name).unwrap(), Arc::new(attrs));
        let listed = inputs.iter().copied().map(Some).collect();
        graph.nodes.push(Node { name: name.clone(), op, inputs: listed, outputs: vec![Some(y)] });
        (graph.inputs, graph.outputs) = (inputs, vec![y]);
        let mut numbers = Numbers(1);
        // Away from 0 and from halves, where some of them jump.
        let (values, divisors) = ([-1.3, 0.7, 2.2, -0.4, 3.1], [1.1, -0.9, 0.8, 1.7, 2.3]);
        let leaf = |(i, shape): (usize, &&[usize])| {
            let n = shape.iter().product();
            let v: Vec<f64> = match (n, i) {
                (5, 0) => values.to_vec(),
                (5, _) => divisors.to_vec(),
                _ => (0..n).map(|_| 1.5 * numbers.next()).collect(),
            };
            Tensor::from_f64(DType::F64, shape, &v).unwrap()
        };
        let p = Problem { graph, leaves: o.shapes.iter().enumerate().map(leaf).collect() };
        let result = run(&p.graph, &p.leaves, true).unwrap_or_else(|e| panic!("{name}: {e}"));
        let weights = BTreeMap::from([(0, (0..result[0].len()).map(|_| numbers.next()).collect())]);
        let d = differentiated(&p, &weights, false).unwrap_or_else(|e| panic!("{name}: {e}")).unwrap();
        // A gradient by every operand that has a slope.
        let flat = ["Sign", "Ceil", "Floor", "Round"].contains(&o.name);
        assert!(flat || o.name == "CastLike" || d.touched.iter().all(|t| *t), "{name}: {:?}", d.touched);
        let compared = compare(&p, &d, &mut numbers);
        assert!(matches!(compared, Ok((true, _))), "{name}: {compared:?}");
    }
}
