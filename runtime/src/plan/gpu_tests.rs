//! Plans on a GPU beside the same plans on the CPU. On whatever adapter there is, software among them; where there is none at
//! all these tests fail and say so.
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::{OnGpu, RunOptions, Runner};
use crate::device::{Device, Gpu};
use crate::graph::{Graph, Node, Op, ValueId};
use crate::import::{Limits, from_onnx};
use crate::ops::{Attr, Attrs, find};
use crate::quant::tests::samples;
use crate::tensor::{DType, Data, Tensor};

fn gpu() -> Gpu {
    Gpu::open(true, None)
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"))
}

fn on(gpu: &Gpu) -> RunOptions {
    RunOptions { device: Device::Gpu(gpu.clone()), ..RunOptions::default() }
}

fn file(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn graph(path: &str) -> Arc<Graph> {
    Arc::new(from_onnx(&file(path), &Limits::default()).unwrap().0)
}

/// Largest difference, relative to the largest element of `want`.
fn apart(want: &[Tensor], got: &[Tensor]) -> f64 {
    assert_eq!(want.len(), got.len());
    let mut worst = 0.0f64;
    for (a, b) in want.iter().zip(got) {
        assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
        let (a, b) = (a.data().to_f64(), b.data().to_f64());
        let most = a.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
        for (a, b) in a.iter().zip(&b) {
            // A NaN must show, which `max` would swallow.
            let off = (a - b).abs() / most;
            worst = if a.to_bits() == b.to_bits() {
                worst
            } else if off.is_nan() {
                f64::INFINITY
            } else {
                worst.max(off)
            };
        }
    }
    worst
}

/// Runs both ways; what of it ran on the GPU.
fn both(graph: &Arc<Graph>, gpu: &Gpu, inputs: &[&Tensor], tolerance: f64) -> OnGpu {
    let want = Runner::new(graph.clone(), RunOptions::default()).run(inputs).unwrap();
    let mut runner = Runner::new(graph.clone(), on(gpu));
    for _ in 0..2 {
        let off = apart(&want, &runner.run(inputs).unwrap());
        assert!(off <= tolerance, "{off:e} apart, allowed {tolerance:e}");
    }
    runner.last_plan().unwrap().on_gpu().unwrap()
}

#[test]
fn the_shipped_model_and_the_quantised_ones_answer_as_on_the_cpu() {
    let gpu = gpu();
    let mut rest = BTreeSet::new();
    for (model, sample) in [("picture", "picture"), ("sentence", "sentence"), ("sequence", "sequence")] {
        for scheme in ["", ".int8-qdq", ".int8-dynamic", ".int8-weights", ".int4"] {
            let graph = graph(&format!("src/quant/testdata/{model}{scheme}.onnx"));
            let sample = samples(sample).remove(0);
            // Codes are the CPU's own. Where floats lie between them what is left is the order of their sums, which a code here or
            // there may turn on.
            let tolerance = match (model, scheme) {
                ("picture", ".int8-qdq") => 0.0,
                (_, "" | ".int8-weights") => 2e-5,
                _ => 1e-2,
            };
            let told = both(&graph, &gpu, &sample.iter().collect::<Vec<_>>(), tolerance);
            assert_eq!(told.left, None, "{model}{scheme}");
            assert!(told.refused.is_empty(), "{:?}", told.refused);
            assert!(!told.steps.is_empty(), "{model}{scheme}");
            rest.extend(told.on_cpu.iter().map(|s| format!("{model}{scheme} {}", s.op)));
        }
    }
    // A form that is lost, or a pass that makes what has none, shows here.
    assert!(rest.is_empty(), "on the CPU in between: {rest:?}");
    let picture = graph("src/quant/testdata/picture.onnx");
    let sample = samples("picture").remove(0);
    let told = both(&picture, &gpu, &sample.iter().collect::<Vec<_>>(), 2e-5);
    assert_eq!((told.on_cpu.len(), told.waits), (0, 1), "one pass and one submission: {told:?}");
}

#[test]
fn products_of_f16_come_near_those_of_f32_and_to_the_same_bits_every_time() {
    let gpu = gpu();
    // Weights in f16 alone, or every product by matrices of it.
    let all = gpu.multiplies_halves();
    for (model, sample, least) in [
        ("picture", "picture", 2),
        ("sentence", "sentence", 2),
        ("sequence", "sequence", 1),
        ("picture.int8-weights", "picture", usize::from(all)),
    ] {
        let graph = graph(&format!("src/quant/testdata/{model}.onnx"));
        let sample = samples(sample).remove(0);
        let inputs: Vec<&Tensor> = sample.iter().collect();
        let exact = Runner::new(graph.clone(), on(&gpu)).run(&inputs).unwrap();
        let mut runner = Runner::new(graph, RunOptions { f16: true, ..on(&gpu) });
        let first = runner.run(&inputs).unwrap();
        let told = runner.last_plan().unwrap().on_gpu().unwrap();
        let off = apart(&exact, &first);
        println!("{model}: {} of {} calls in f16, {off:.1e} apart", told.halves, told.calls);
        assert!(told.refused.is_empty() && told.on_cpu.is_empty(), "{model}: {told:?}");
        assert!(told.halves >= least && off <= 2e-3, "{model}: {} calls in f16, {off:e} apart", told.halves);
        assert_eq!(told.halves > 0, off > 0.0, "{model}: {} calls in f16, {off:e} apart", told.halves);
        assert_eq!(first, runner.run(&inputs).unwrap(), "{model}");
    }
}

#[test]
fn a_device_that_is_lost_in_between_changes_no_answer_and_is_told() {
    let gpu = gpu();
    let graph = graph("src/quant/testdata/picture.onnx");
    let samples = samples("picture");
    let inputs: Vec<Vec<&Tensor>> = samples.iter().map(|s| s.iter().collect()).collect();
    let mut cpu = Runner::new(graph.clone(), RunOptions::default());
    let mut runner = Runner::new(graph, on(&gpu));
    let mut answers = Vec::new();
    for (i, given) in inputs.iter().enumerate().take(3) {
        if i == 1 {
            gpu.lose();
        }
        answers.push((cpu.run(given).unwrap(), runner.run(given).unwrap()));
    }
    let told = runner.last_plan().unwrap().on_gpu().unwrap();
    assert!(told.left.is_some_and(|why| why.contains("lost")) && told.steps.is_empty());
    assert!(apart(&answers[0].0, &answers[0].1) < 2e-5);
    // From the loss on they are the CPU's own.
    assert!(answers[1..].iter().all(|(a, b)| a == b));
}

#[test]
fn memory_that_is_not_to_be_had_in_between_changes_no_answer_and_is_told() {
    let gpu = gpu();
    let mut r = Random { state: 5, graph: Graph::default(), shapes: vec![vec![2, 3]] };
    let (x, w) = (r.value(None), r.floats(&[3, 4]));
    let w = r.value(Some(w));
    r.graph.inputs = vec![x];
    r.op("MatMul", [], &[x, w], &[2, 4]);
    r.op("Softmax", [("axis", Attr::Int(-1))], &[w + 1], &[2, 4]);
    r.graph.outputs = vec![w + 2];
    let given: Vec<Tensor> = (2..7).map(|n| r.floats(&[n, 3])).collect();
    let graph = Arc::new(r.graph);
    let mut cpu = Runner::new(graph.clone(), RunOptions::default());
    let mut runner = Runner::new(graph, RunOptions { plans: 8, ..on(&gpu) });
    let mut left = |runner: &mut Runner, i: usize| {
        let (want, got) = (cpu.run(&[&given[i]]).unwrap(), runner.run(&[&given[i]]).unwrap());
        assert!(apart(&want, &got) < 1e-6, "input {i}");
        runner.last_plan().unwrap().on_gpu().unwrap().left
    };
    assert_eq!(left(&mut runner, 0), None);
    // A plan that is there and has not run: what it reads its results from is still to come.
    runner.plan(&[(DType::F32, &[3, 3][..])]).unwrap();
    gpu.starve(true);
    for i in [1, 2, 2, 1] {
        let why = left(&mut runner, i).unwrap();
        assert!(why.contains("has not") && why.contains("bytes"), "{why}");
    }
    assert_eq!(left(&mut runner, 0), None, "what is warm asks for nothing");
    gpu.starve(false);
    assert_eq!(left(&mut runner, 3), None, "the next plan is on the device again");
    assert!(left(&mut runner, 2).is_some(), "one that left stays");
}

/// Two images of a sample of the picture in one, three, ….
fn images(n: usize) -> Tensor {
    let sample = samples("picture").remove(0).remove(0);
    let pixels = sample.as_f32().unwrap();
    let (one, shape) = (pixels.len() / sample.shape()[0], &sample.shape()[1..]);
    let many: Vec<f32> = (0..n * one).map(|i| pixels[i % pixels.len()] * (1.0 + (i / one) as f32 / 8.0)).collect();
    Tensor::f32(&[&[n], shape].concat(), many).unwrap()
}

#[test]
fn plans_of_other_shapes_have_the_same_weights_on_the_device_and_pack_none_here() {
    let gpu = gpu();
    for scheme in ["", ".int8-qdq", ".int8-dynamic", ".int8-weights"] {
        let graph = graph(&format!("src/quant/testdata/picture{scheme}.onnx"));
        let mut runner = Runner::new(graph.clone(), on(&gpu));
        let packs = runner.options().packs.clone();
        let mut there = Vec::new();
        for n in [1, 2, 3, 5] {
            let x = images(n);
            let want = Runner::new(graph.clone(), RunOptions::default()).run(&[&x]).unwrap();
            let off = apart(&want, &runner.run(&[&x]).unwrap());
            assert!(off < 1e-2, "{scheme} with {n}: {off:e} apart");
            let told = runner.last_plan().unwrap().on_gpu().unwrap();
            assert_eq!(told.left, None);
            there.push(gpu.weights().1);
            // What is left here is what has no form there, and no weights.
            let kernels: Vec<_> = told.on_cpu.iter().map(|s| s.kernel).collect();
            assert!(told.on_cpu.is_empty() || scheme == ".int8-qdq", "{scheme}: {kernels:?}");
        }
        // Side operands of another length may be more: never the weights again.
        let (first, last) = (there[0], there[3]);
        assert!(last - first < first / 8 + 4096, "{scheme}: {there:?} bytes");
        let sums = packs.packings();
        let mut cpu = Runner::new(graph.clone(), RunOptions { packs: packs.clone(), ..RunOptions::default() });
        cpu.run(&[&images(1)]).unwrap();
        assert!(packs.packings() > sums, "{scheme}: nothing had been packed here");
        drop(runner);
        assert_eq!(gpu.weights(), (0, 0), "{scheme}");
    }
}

#[test]
fn a_plan_whose_device_is_lost_packs_what_had_waited() {
    let gpu = gpu();
    let graph = graph("src/quant/testdata/picture.onnx");
    let mut runner = Runner::new(graph.clone(), on(&gpu));
    let packs = runner.options().packs.clone();
    runner.run(&[&images(1)]).unwrap();
    // The depthwise weights, which both sides have in one form.
    let before = packs.packings();
    assert!(before <= 1, "{before}");
    gpu.lose();
    let want = Runner::new(graph, RunOptions::default()).run(&[&images(1)]).unwrap();
    assert_eq!(runner.run(&[&images(1)]).unwrap(), want);
    assert!(packs.packings() > before);
}

#[test]
fn a_plan_that_is_warm_makes_nothing_on_the_device_any_more() {
    let gpu = gpu();
    let graph = graph("src/quant/testdata/picture.onnx");
    let sample = samples("picture").remove(0);
    let given: Vec<&Tensor> = sample.iter().collect();
    let mut runner = Runner::new(graph, on(&gpu));
    let first = runner.run(&given).unwrap();
    let made = gpu.objects_made();
    for _ in 0..10 {
        assert_eq!(runner.run(&given).unwrap(), first, "the same bits every time");
    }
    assert_eq!(gpu.objects_made(), made);
}

/// Random graphs of operators with forms for GPUs, and some without.
struct Random {
    state: u64,
    graph: Graph,
    shapes: Vec<Vec<usize>>,
}

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % n
    }

    fn floats(&mut self, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::f32(shape, (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()).unwrap()
    }

    fn value(&mut self, constant: Option<Tensor>) -> ValueId {
        let name = format!("v{}", self.graph.values.len());
        self.graph.add_value(&name, None, constant.map(Arc::new))
    }

    fn op<const N: usize>(&mut self, name: &str, attrs: [(&str, Attr); N], inputs: &[ValueId], shape: &[usize]) {
        let v = self.value(None);
        let def = find("", name).unwrap();
        self.graph.nodes.push(Node {
            name: format!("n{v}"),
            op: Op::Own(def, Arc::new(Attrs::of(attrs))),
            inputs: inputs.iter().map(|&v| Some(v)).collect(),
            outputs: vec![Some(v)],
        });
        self.shapes.resize(v, Vec::new());
        self.shapes.push(shape.to_vec());
    }

    fn grow(&mut self, values: &mut Vec<ValueId>) {
        let x = values[self.below(values.len())];
        let shape = self.shapes[x].clone();
        let rank = shape.len();
        match self.below(9) {
            0 => {
                let name = ["Relu", "Sigmoid", "Tanh", "Gelu", "Abs", "Neg", "Softsign", "Sin"][self.below(8)];
                self.op(name, [], &[x], &shape);
            }
            1 | 2 => {
                let same: Vec<ValueId> = values.iter().copied().filter(|&v| self.shapes[v] == shape).collect();
                let y = same[self.below(same.len())];
                let name = ["Add", "Sub", "Mul", "Max"][self.below(4)];
                self.op(name, [], &[x, y], &shape);
            }
            3 => {
                let perm: Vec<i64> = (0..rank as i64).rev().collect();
                let turned: Vec<usize> = shape.iter().rev().copied().collect();
                self.op("Transpose", [("perm", Attr::Ints(perm))], &[x], &turned);
            }
            4 => {
                let axis = self.below(rank);
                self.op("Softmax", [("axis", Attr::Int(axis as i64))], &[x], &shape);
            }
            5 => {
                let n = 1 + self.below(9);
                let w = self.floats(&[shape[rank - 1], n]);
                let w = self.value(Some(w));
                let to = [&shape[..rank - 1], &[n]].concat();
                self.op("MatMul", [], &[x, w], &to);
            }
            6 => {
                let axis = self.below(rank);
                let mut to = shape.clone();
                to[axis] *= 2;
                self.op("Concat", [("axis", Attr::Int(axis as i64))], &[x, x], &to);
            }
            7 => {
                let axis = self.below(rank);
                let len = 1 + self.below(shape[axis]);
                let ints = |v: i64| Tensor::i64(&[1], vec![v]).unwrap();
                let parts = [0, len as i64, axis as i64].map(|v| self.value(Some(ints(v))));
                let mut to = shape.clone();
                to[axis] = len;
                self.op("Slice", [], &[x, parts[0], parts[1], parts[2]], &to);
            }
            _ => {
                let axis = self.below(rank);
                let at = Tensor::i64(&[2], vec![0, -1]).unwrap();
                let at = self.value(Some(at));
                let mut to = shape.clone();
                to[axis] = 2;
                self.op("Gather", [("axis", Attr::Int(axis as i64))], &[x, at], &to);
            }
        }
        values.push(self.graph.values.len() - 1);
    }
}

#[test]
fn no_call_of_a_random_graph_reads_what_it_writes_and_all_of_them_answer_as_on_the_cpu() {
    let gpu = gpu();
    let mut mixed = 0;
    for seed in 0..40 {
        let mut r = Random { state: seed * 7919 + 1, graph: Graph::default(), shapes: Vec::new() };
        let shape = [1 + r.below(3), 1 + r.below(5), 1 + r.below(7)];
        let given = r.floats(&shape);
        let x = r.value(None);
        r.shapes.push(shape.to_vec());
        r.graph.inputs = vec![x];
        let mut values = vec![x];
        for _ in 0..3 + r.below(12) {
            r.grow(&mut values);
        }
        r.graph.outputs = vec![values[values.len() - 1], values[values.len() / 2]];
        r.graph.outputs.dedup();
        let graph = Arc::new(r.graph);
        // The recording refuses a call that would, and the plan would then have left the device.
        let want = Runner::new(graph.clone(), RunOptions::default()).run(&[&given]).unwrap();
        let mut runner = Runner::new(graph.clone(), on(&gpu));
        let off = apart(&want, &runner.run(&[&given]).unwrap());
        assert!(off < 1e-4, "seed {seed}: {off:e} apart");
        if let Some(told) = runner.last_plan().unwrap().on_gpu() {
            assert!(told.left.is_none_or(|why| why.contains("no step")), "seed {seed}");
            mixed += usize::from(!told.steps.is_empty() && !told.on_cpu.is_empty());
        }
    }
    assert!(mixed > 3, "some graphs are cut by what has no form: {mixed}");
}

impl Random {
    /// A function of elements of values there are: of one, or of two, one of which may be a constant that broadcasts, or of the same
    /// elements as of another shape.
    fn function(&mut self, values: &mut Vec<ValueId>) {
        // Most often of what was made last, as functions that follow one another are.
        let back = [1, 1, 1, 2, 3][self.below(5)].min(values.len());
        let x = values[values.len() - back];
        let shape = self.shapes[x].clone();
        let same: Vec<ValueId> = values.iter().copied().filter(|&v| self.shapes[v] == shape).collect();
        let y = same[self.below(same.len())];
        let repeated = [vec![1], shape[1..].to_vec(), [&shape[..1], &vec![1; shape.len() - 1]].concat()];
        match self.below(10) {
            0..3 => {
                let name = ["Abs", "Neg", "Tanh", "Softsign", "LeakyRelu", "Gelu"][self.below(6)];
                self.op(name, [], &[x], &shape);
            }
            3 | 4 => {
                let name = ["Add", "Sub", "Mul", "Max", "Min"][self.below(5)];
                self.op(name, [], &[x, y], &shape);
            }
            5 | 6 => {
                let way = self.below(3);
                let c = self.floats(&repeated[way]);
                let c = self.value(Some(c));
                let name = ["Add", "Sub", "Mul", "Max"][self.below(4)];
                let operands = if self.below(2) == 0 { [x, c] } else { [c, x] };
                self.op(name, [], &operands, &shape);
            }
            7 => {
                let [low, high] = [-0.5, 0.75].map(|v| self.value(Some(Tensor::f32(&[], vec![v]).unwrap())));
                self.op("Clip", [], &[x, low, high], &shape);
            }
            8 => {
                let test = ["Less", "Equal", "GreaterOrEqual"][self.below(3)];
                self.op(test, [], &[x, y], &shape);
                let v = self.graph.values.len() - 1;
                self.op("Where", [], &[v, y, x], &shape);
            }
            _ => {
                let to = if shape.len() == 3 { vec![shape[0], shape[1] * shape[2]] } else { shape.clone() };
                let dims = Tensor::i64(&[to.len()], to.iter().map(|&d| d as i64).collect()).unwrap();
                let dims = self.value(Some(dims));
                self.op("Reshape", [], &[x, dims], &to);
            }
        }
        values.push(self.graph.values.len() - 1);
    }
}

#[test]
fn functions_of_elements_one_after_the_other_are_one_call_with_the_bits_of_a_call_each() {
    let gpu = gpu();
    let (mut alone, mut joined, mut largest) = (0, 0, 0);
    for seed in 0..30 {
        let mut r = Random { state: seed * 104_729 + 3, graph: Graph::default(), shapes: Vec::new() };
        let shape = [2 + r.below(3), 1 + r.below(5), 2 + r.below(7)];
        let given = r.floats(&shape);
        let x = r.value(None);
        r.shapes.push(shape.to_vec());
        r.graph.inputs = vec![x];
        let mut values = vec![x];
        for _ in 0..4 + r.below(14) {
            r.function(&mut values);
        }
        let last = values[values.len() - 1];
        let run = |outputs: Vec<ValueId>| {
            let graph = Arc::new(Graph { outputs, ..r.graph.clone() });
            let want = Runner::new(graph.clone(), RunOptions::default()).run(&[&given]).unwrap();
            let mut runner = Runner::new(graph, on(&gpu));
            let got = runner.run(&[&given]).unwrap();
            let off = apart(&want, &got);
            assert!(off < 1e-4, "seed {seed}: {off:e} apart");
            (got, runner.last_plan().unwrap().on_gpu().unwrap())
        };
        // What is wanted of each function is in memory behind it.
        let (each, told) =
            run(r.graph.nodes.iter().filter_map(|n| n.outputs[0]).filter(|v| *v != last).chain([last]).collect());
        assert_eq!((told.joined, told.calls, &told.refused), (0, told.steps.len(), &vec![]), "seed {seed}");
        alone += told.calls;
        let (one, told) = run(vec![last]);
        let bits = |t: &Tensor| t.data().as_bytes().to_vec();
        assert_eq!(bits(&one[0]), bits(&each[each.len() - 1]), "seed {seed}: other bits");
        assert_eq!((told.calls + told.joined, &told.refused), (told.steps.len(), &vec![]), "seed {seed}");
        joined += told.calls;
        largest = largest.max(told.joined);
    }
    assert!(joined * 2 < alone && largest >= 6, "{joined} calls in place of {alone}, at most {largest} in another");
}

#[test]
fn what_lies_between_functions_is_made_where_others_want_it_and_comes_from_the_cpu_where_it_is_made_there() {
    let gpu = gpu();
    let mut r = Random { state: 9, graph: Graph::default(), shapes: Vec::new() };
    let (x, w) = (r.value(None), r.value(None));
    r.graph.inputs = vec![x, w];
    r.shapes = vec![vec![64], vec![64]];
    r.op("Abs", [], &[w], &[64]);
    r.op("Sin", [], &[x], &[64]);
    r.op("Mul", [], &[2, 3], &[64]);
    r.op("Neg", [], &[4], &[64]);
    r.graph.outputs = vec![5];
    let (graph, given) = (Arc::new(r.graph.clone()), [r.floats(&[64]), r.floats(&[64])]);
    let told = both(&graph, &gpu, &[&given[0], &given[1]], 1e-6);
    // The sine runs on the CPU, and is put there for the call of the other three.
    assert_eq!((told.calls, told.joined, told.on_cpu.len()), (1, 2, 1), "{told:?}");
    let wanted = Arc::new(Graph { outputs: vec![5, 4], ..r.graph.clone() });
    let told = both(&wanted, &gpu, &[&given[0], &given[1]], 1e-6);
    assert_eq!((told.calls, told.joined), (2, 1), "{told:?}");
}

#[test]
fn what_one_step_reads_in_two_calls_is_made_before_it() {
    let gpu = gpu();
    // The range of |x| comes first, then its codes, which alone are a function of elements.
    let mut r = Random { state: 11, graph: Graph::default(), shapes: vec![vec![64]] };
    let x = r.value(None);
    r.graph.inputs = vec![x];
    r.op("Abs", [], &[x], &[64]);
    let outputs = [(); 3].map(|()| r.value(None));
    r.graph.nodes.push(Node {
        name: "codes".into(),
        op: Op::Own(find("", "DynamicQuantizeLinear").unwrap(), Arc::new(Attrs::default())),
        inputs: vec![Some(x + 1)],
        outputs: outputs.map(Some).to_vec(),
    });
    r.graph.outputs = outputs.to_vec();
    let (graph, given) = (Arc::new(r.graph.clone()), r.floats(&[64]));
    let told = both(&graph, &gpu, &[&given], 0.0);
    assert_eq!((told.calls, told.joined, told.on_cpu.len()), (3, 0, 0), "{told:?}");
}

#[test]
fn a_function_joins_no_later_one_for_which_its_operand_would_be_kept_for_long() {
    let gpu = gpu();
    for (between, joined) in [(4, 1), (24, 0)] {
        let mut r = Random { state: 13, graph: Graph::default(), shapes: vec![vec![4, 16]] };
        let x = r.value(None);
        r.graph.inputs = vec![x];
        r.op("Abs", [], &[x], &[4, 16]);
        let size = x + 1;
        r.op("Softmax", [], &[x], &[4, 16]);
        for _ in 1..between {
            r.op("Softmax", [], &[r.graph.values.len() - 1], &[4, 16]);
        }
        r.op("Mul", [], &[r.graph.values.len() - 1, size], &[4, 16]);
        r.graph.outputs = vec![r.graph.values.len() - 1];
        let (graph, given) = (Arc::new(r.graph.clone()), r.floats(&[4, 16]));
        let told = both(&graph, &gpu, &[&given], 1e-6);
        assert_eq!((told.calls, told.joined), (between + 2 - joined, joined), "{told:?}");
    }
}

#[test]
fn an_index_out_of_range_is_the_error_it_is_on_the_cpu() {
    let gpu = gpu();
    let mut r = Random { state: 1, graph: Graph::default(), shapes: Vec::new() };
    let (x, at) = (r.value(None), r.value(None));
    r.graph.inputs = vec![x, at];
    r.shapes = vec![vec![3, 2], vec![2]];
    r.op("Gather", [], &[x, at], &[2, 2]);
    r.graph.outputs = vec![2];
    let table = Tensor::f32(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let index = |v: [i64; 2]| Tensor::new(&[2], Data::I64(v.to_vec())).unwrap();
    let mut runner = Runner::new(Arc::new(r.graph.clone()), on(&gpu));
    assert_eq!(runner.run(&[&table, &index([2, -3])]).unwrap()[0].as_f32().unwrap(), [5.0, 6.0, 1.0, 2.0]);
    let told = runner.run(&[&table, &index([0, 1 << 32])]).unwrap_err().to_string();
    let cpu = Runner::new(Arc::new(r.graph), RunOptions::default()).run(&[&table, &index([0, 1 << 32])]);
    assert_eq!(told, cpu.unwrap_err().to_string());
    assert_eq!(runner.run(&[&table, &index([1, 1])]).unwrap()[0].dtype(), DType::F32, "it goes on");
    assert_eq!(runner.last_plan().unwrap().on_gpu().unwrap().steps.len(), 1);
}
