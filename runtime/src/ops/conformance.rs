//! Every operator against ONNX Runtime, on the recorded tiny models of `testdata/conformance.npz`.
//!
//! `testdata/record.py` wrote the archive and states how the tolerance of each case is derived; integers are equal
//! unless the case says otherwise, as are floats where nothing is rounded. Each case is imported as a file is and runs
//! in three ways: by reference functions, by kernels, and by kernels with all inputs but the first as constants, which
//! is how most models have their weights, shapes and axes. Twice in each, so that a state kept from one run to the next
//! would show, and by kernels on several threads, which must change nothing.
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hone_kernels::threads::Pool;

use super::all;
use super::support::{NOT_RECORDED, WITHOUT_KERNEL};
use crate::bundle::npz::read_npz;
use crate::graph::{Graph, Op};
use crate::import::{Limits, from_onnx};
use crate::plan::{RunOptions, Runner};
use crate::tensor::{DType, Data, Tensor};

pub(crate) struct Case {
    pub(crate) name: String,
    /// Largest difference allowed to floats.
    tolerance: f64,
    /// The same for integers.
    codes: f64,
    pub(crate) model: Vec<u8>,
    pub(crate) runs: Vec<Recorded>,
}

pub(crate) struct Recorded {
    pub(crate) inputs: Vec<(String, Tensor)>,
    pub(crate) outputs: Vec<(String, Tensor)>,
}

type TensorIndex = Vec<(String, String, Vec<usize>)>;
type CaseIndex = (String, f64, f64, usize, Vec<(TensorIndex, TensorIndex)>);

pub(crate) fn cases() -> Vec<Case> {
    let archive = read_npz(include_bytes!("testdata/conformance.npz")).unwrap();
    let member = |name: &str| match archive.iter().find(|(n, _)| n == name).map(|(_, t)| t.data()) {
        Some(Data::U8(bytes)) => bytes.clone(),
        _ => panic!("the archive has no bytes named {name}"),
    };
    let (index, data) = (member("index"), member("data"));
    let index: Vec<CaseIndex> = serde_json::from_slice(&index).unwrap();
    let mut rest = &data[..];
    let mut take = |bytes: usize| rest.split_off(..bytes).expect("the archive is as long as its index says");
    let mut out = Vec::new();
    for (name, tolerance, codes, model_bytes, runs) in index {
        let model = take(model_bytes).to_vec();
        let mut tensors = |list: TensorIndex| -> Vec<(String, Tensor)> {
            let read = |(name, dtype, shape): (String, String, Vec<usize>)| {
                let dtype = DType::from_name(&dtype).unwrap();
                let bytes = take(shape.iter().product::<usize>() * dtype.size_bytes());
                (name, Tensor::new(&shape, Data::from_le_bytes(dtype, bytes)).unwrap())
            };
            list.into_iter().map(read).collect()
        };
        let runs = runs.into_iter().map(|(i, o)| Recorded { inputs: tensors(i), outputs: tensors(o) }).collect();
        out.push(Case { name, tolerance, codes, model, runs });
    }
    assert!(rest.is_empty(), "the archive is longer than its index says");
    out
}

/// What differs between a recorded and a found tensor, if anything does.
fn differs(want: &Tensor, got: &Tensor, tolerance: f64, codes: f64) -> Option<String> {
    if want.shape() != got.shape() || want.dtype() != got.dtype() {
        let (w, g) = (want.shape(), got.shape());
        return Some(format!("{} {w:?} expected, {} {g:?} found", want.dtype(), got.dtype()));
    }
    let float = want.dtype().is_float();
    let allowed = if float { tolerance } else { codes };
    if !float && allowed == 0.0 {
        // Not by way of f64, which would take neighbours beyond 2^53 for equal.
        let (a, b) = (want.data().to_i128(), got.data().to_i128());
        let at = a.iter().zip(&b).position(|(a, b)| a != b)?;
        return Some(format!("element {at}: {} expected, {} found", a[at], b[at]));
    }
    let (a, b) = (want.data().to_f64(), got.data().to_f64());
    // An infinity equals itself only; a NaN stands where a NaN stood.
    let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= allowed;
    let at = a.iter().zip(&b).position(|(&a, &b)| !same(a, b))?;
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
    Some(format!("element {at}: {} expected, {} found; worst {worst:e}, allowed {allowed:e}", a[at], b[at]))
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Reference,
    Kernels,
    Constants,
}

/// What a GPU computes, with all inputs but the first as constants and with none: every operator with a form for GPUs must
/// have run there in some case. A device is tried for the same cases as the kernels, and with the same tolerances.
#[cfg(feature = "gpu")]
#[test]
fn every_operator_with_a_form_for_gpus_computes_there_what_was_recorded() {
    use crate::device::{Device, Gpu};
    let gpu = Gpu::open(true, None)
        .unwrap_or_else(|e| panic!("{e}: this test needs one; on Debian `apt-get install mesa-vulkan-drivers`"));
    let options = RunOptions { device: Device::Gpu(gpu), ..RunOptions::default() };
    let forms: BTreeSet<String> = all().filter(|d| d.gpu.is_some()).map(|d| d.spelled()).collect();
    let (mut ran, mut wrong) = (BTreeSet::new(), Vec::new());
    for case in cases() {
        let Ok((graph, _)) = from_onnx(&case.model, &Limits::default()) else { continue };
        let graph = Arc::new(graph);
        let formed = |g: &Graph| g.census().keys().any(|(name, own)| *own && forms.contains(name));
        if !formed(&graph) {
            continue;
        }
        for (i, recorded) in case.runs.iter().enumerate() {
            let freed = freed(&graph, recorded);
            let (graph, recorded) = freed.as_ref().map_or((&graph, recorded), |(g, r)| (g, r));
            let fixed = with_constants(graph, recorded.inputs.get(1..).unwrap_or(&[]));
            for (way, graph) in [("all given", graph.clone()), ("constants", Arc::new(fixed))] {
                let mut runner = Runner::new(graph, options.clone());
                wrong.extend(
                    turns(&case, recorded, &mut runner).into_iter().map(|w| format!("{} {i} {way}: {w}", case.name)),
                );
                let graph = runner.graph().clone();
                let inputs = inputs(&graph, recorded);
                let shapes: Vec<_> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
                if let Ok(plan) = runner.plan(&shapes)
                    && let Some(on) = plan.on_gpu()
                {
                    wrong.extend(on.refused.iter().chain(&on.left).filter(|w| !w.contains("no step has")).cloned());
                    // What is its operand's bytes runs nowhere.
                    ran.extend(on.steps.into_iter().chain(plan.shared().iter().cloned()).map(|s| s.op));
                }
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} differ on the GPU:\n{}", wrong.len(), wrong.join("\n"));
    let missing: Vec<&String> = forms.iter().filter(|f| !ran.contains(f.rsplit('.').next().unwrap_or(f))).collect();
    assert!(missing.is_empty(), "no case of {missing:?} ran on the GPU");
}

/// How operators ran, by their spelled names: kernels, `reference`, `opaque` or `graph`.
type Ran = BTreeMap<String, BTreeSet<&'static str>>;

/// Runs one case in one way; what went wrong.
fn run(case: &Case, way: Way, pool: &Arc<Pool>, exercised: &mut BTreeSet<String>, ran: &mut Ran) -> Vec<String> {
    let graph = match from_onnx(&case.model, &Limits::default()) {
        Ok((graph, _)) => Arc::new(graph),
        Err(e) => return vec![e.to_string()],
    };
    exercised.extend(graph.census().into_keys().filter(|(_, own)| *own).map(|(name, _)| name));
    let options = || RunOptions { reference: way == Way::Reference, ..RunOptions::default() };
    let mut shared = Runner::new(graph.clone(), options());
    let mut wrong = Vec::new();
    for (i, recorded) in case.runs.iter().enumerate() {
        let freed = (way == Way::Kernels).then(|| freed(&graph, recorded)).flatten();
        let recorded = freed.as_ref().map_or(recorded, |(_, r)| r);
        let constants =
            (way == Way::Constants).then(|| Arc::new(with_constants(&graph, recorded.inputs.get(1..).unwrap_or(&[]))));
        let mut own = freed.as_ref().map(|(g, _)| g.clone()).or(constants).map(|g| Runner::new(g, options()));
        let runner = own.as_mut().unwrap_or(&mut shared);
        wrong.extend(turns(case, recorded, runner).into_iter().map(|w| format!("inputs {i} {w}")));
        if way != Way::Reference {
            let mut many = Runner::new(runner.graph().clone(), RunOptions { pool: pool.clone(), ..options() });
            wrong.extend(threads(recorded, runner, &mut many).map(|w| format!("inputs {i} {w}")));
        }
        for (op, kernel) in kernels(&graph, runner, recorded) {
            ran.entry(op).or_default().insert(kernel);
        }
    }
    wrong
}

/// The values of the graph's inputs, in its order.
fn inputs<'a>(graph: &Graph, recorded: &'a Recorded) -> Vec<&'a Tensor> {
    let value = |v: &usize| {
        let name = &graph.values[*v].name;
        recorded.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t).expect("every input is recorded")
    };
    graph.inputs.iter().map(value).collect()
}

/// Twice the same run.
fn turns(case: &Case, recorded: &Recorded, runner: &mut Runner) -> Vec<String> {
    let mut wrong = Vec::new();
    let graph = runner.graph().clone();
    for turn in 1..=2 {
        let found = match runner.run(&inputs(&graph, recorded)) {
            Ok(found) => found,
            Err(e) => return vec![format!("turn {turn}: {e}")],
        };
        for (&v, got) in graph.outputs.iter().zip(&found) {
            let name = &graph.values[v].name;
            let Some((_, want)) = recorded.outputs.iter().find(|(n, _)| n == name) else {
                wrong.push(format!("no output {name} was recorded"));
                continue;
            };
            let what = differs(want, got, case.tolerance, case.codes);
            wrong.extend(what.map(|what| format!("turn {turn} output {name}: {what}")));
        }
    }
    wrong
}

/// What several threads do otherwise than one: nothing, to the last bit.
fn threads(recorded: &Recorded, one: &mut Runner, many: &mut Runner) -> Option<String> {
    let graph = one.graph().clone();
    let given = inputs(&graph, recorded);
    // What fails on one thread has been told.
    let want = one.run(&given).ok()?;
    let found = match many.run(&given) {
        Ok(found) => found,
        Err(e) => return Some(format!("on several threads: {e}")),
    };
    let bits = |t: &Tensor| (t.dtype(), t.shape().to_vec(), t.data().as_bytes().to_vec());
    let differs = want.iter().zip(&found).position(|(a, b)| bits(a) != bits(b))?;
    Some(format!("output {differs} is another one on several threads"))
}

/// Where nothing is given: the graph with its constants as inputs, and the case with their values. What has nothing but constants
/// is computed once, by the reference, and no kernel is asked.
fn freed(graph: &Graph, recorded: &Recorded) -> Option<(Arc<Graph>, Recorded)> {
    if !recorded.inputs.is_empty() {
        return None;
    }
    let (mut graph, mut inputs) = (graph.clone(), Vec::new());
    for v in 0..graph.values.len() {
        if let Some(t) = graph.values[v].constant.take() {
            inputs.push((graph.values[v].name.clone(), Tensor::clone(&t)));
            graph.inputs.push(v);
        }
    }
    Some((Arc::new(graph), Recorded { inputs, outputs: recorded.outputs.clone() }))
}

/// The graph with those inputs as constants.
fn with_constants(graph: &Graph, given: &[(String, Tensor)]) -> Graph {
    let mut graph = graph.clone();
    let mut inputs = std::mem::take(&mut graph.inputs);
    inputs.retain(|&v| {
        let found = given.iter().find(|(n, _)| *n == graph.values[v].name);
        if let Some((_, t)) = found {
            graph.values[v].constant = Some(Arc::new(t.clone()));
        }
        found.is_none()
    });
    graph.inputs = inputs;
    graph
}

/// Which of our operators ran how. A step goes by the name of its node, which tells operators of two domains apart.
fn kernels(graph: &Graph, runner: &mut Runner, recorded: &Recorded) -> Vec<(String, &'static str)> {
    let given = inputs(&runner.graph().clone(), recorded);
    let shapes: Vec<(DType, &[usize])> = given.iter().map(|t| (t.dtype(), t.shape())).collect();
    let Ok(plan) = runner.plan(&shapes) else { return Vec::new() };
    let node = |name: &str| graph.nodes.iter().find(|n| n.name == name);
    let own = |name: &str| match node(name).map(|n| &n.op) {
        Some(Op::Own(def, _)) => Some(def.spelled()),
        _ => None,
    };
    plan.steps()
        .into_iter()
        .chain(plan.shared().iter().cloned())
        .filter_map(|s| Some((own(&s.node)?, s.kernel)))
        .collect()
}

/// What all cases came to.
#[derive(Default)]
struct Summary {
    wrong: Vec<String>,
    exercised: BTreeSet<String>,
    fast: Ran,
}

fn run_all(cases: &[Case]) -> Summary {
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Summary::default());
    let work = || {
        let (mut mine, pool) = (Summary::default(), Arc::new(Pool::new(3)));
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            for (way, by) in [(Way::Reference, "reference"), (Way::Kernels, "kernels"), (Way::Constants, "constants")] {
                let mut ran = Ran::new();
                // A panic is a failure of the case that caused it, not of those that follow.
                let done = catch_unwind(AssertUnwindSafe(|| run(case, way, &pool, &mut mine.exercised, &mut ran)));
                let found = done.unwrap_or_else(|_| vec!["panicked, see above".into()]);
                mine.wrong.extend(found.into_iter().map(|w| format!("{} by {by}: {w}", case.name)));
                if way != Way::Reference {
                    ran.into_iter().for_each(|(op, how)| mine.fast.entry(op).or_default().extend(how));
                }
            }
        }
        let mut total = total.lock().unwrap();
        total.wrong.append(&mut mine.wrong);
        total.exercised.append(&mut mine.exercised);
        mine.fast.into_iter().for_each(|(op, how)| total.fast.entry(op).or_default().extend(how));
    };
    std::thread::scope(|s| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(s.spawn(work)));
    });
    let mut total = total.into_inner().unwrap();
    total.wrong.sort();
    total
}

#[test]
fn every_operator_computes_what_onnx_runtime_computes_by_its_kernel_and_by_its_reference() {
    let Summary { mut wrong, exercised, fast } = run_all(&cases());
    let mut kernelless = BTreeSet::new();
    for name in all().map(|d| d.spelled()) {
        let listed = NOT_RECORDED.iter().any(|(n, _)| *n == name);
        match (exercised.contains(&name), listed) {
            (false, false) => wrong.push(format!("no case exercises {name}, and NOT_RECORDED gives no reason")),
            (true, true) => wrong.push(format!("NOT_RECORDED lists {name}, which a case exercises")),
            _ => {}
        }
        let has_kernel = fast.get(&name).is_some_and(|how| how.iter().any(|k| !matches!(*k, "reference" | "opaque")));
        if !has_kernel && !listed {
            kernelless.insert(name);
        }
    }
    for (name, _) in NOT_RECORDED.iter().filter(|(n, _)| all().all(|d| d.spelled() != *n)) {
        wrong.push(format!("NOT_RECORDED lists {name}, which is no operator of ours"));
    }
    let listed: BTreeSet<String> = WITHOUT_KERNEL.iter().map(|n| n.to_string()).collect();
    wrong.extend(kernelless.difference(&listed).map(|n| format!("{n} ran by no kernel of its own in any case")));
    wrong.extend(listed.difference(&kernelless).map(|n| format!("WITHOUT_KERNEL lists {n}, which has a kernel")));
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_difference_beyond_the_tolerance_or_of_a_single_integer_is_seen() {
    let f = |v: &[f32]| Tensor::f32(&[v.len()], v.to_vec()).unwrap();
    assert!(differs(&f(&[1.0]), &f(&[1.0 + 1e-6]), 1e-7, 9.0).is_some());
    assert!(differs(&f(&[1.0]), &f(&[1.0 + 1e-6]), 1e-5, 0.0).is_none());
    assert!(differs(&f(&[1.0]), &f(&[f32::NAN]), 1e9, 0.0).is_some());
    assert!(differs(&f(&[f32::NAN]), &f(&[1.0]), 1e9, 0.0).is_some());
    assert!(differs(&f(&[f32::INFINITY]), &f(&[f32::MAX]), 1e9, 0.0).is_some());
    assert!(differs(&f(&[1.0]), &f(&[1.0, 1.0]), 1e9, 0.0).is_some());
    let h = |v: f64| Tensor::from_f64(DType::BF16, &[1], &[v]).unwrap();
    assert!(differs(&h(1.0), &h(1.0078125), 1e-3, 0.0).is_some());
    let q = |v: u8| Tensor::new(&[1], Data::U8(vec![v])).unwrap();
    assert!(differs(&q(7), &q(8), 1e9, 0.0).is_some());
    assert!(differs(&q(7), &q(8), 0.0, 1.0).is_none());
    let l = |v: i64| Tensor::i64(&[1], vec![v]).unwrap();
    assert!(differs(&l(1 << 60), &l((1 << 60) + 1), 1e9, 0.0).is_some());
}
