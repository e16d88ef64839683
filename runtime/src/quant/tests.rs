//! Every scheme on small models: what it writes is what was recorded, and ONNX Runtime computes the same with it.
//!
//! `testdata/models.py` makes the float models and their samples. `HONE_UPDATE=1 cargo test -p hone-runtime --lib
//! quant::tests` writes `testdata/<model>.<scheme>.onnx`, and `testdata/record.py` what ONNX Runtime answers to them.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::bundle::npz;
use crate::import::{self, Limits};
use crate::plan::Runner;

const MODELS: [&str; 3] = ["picture", "sentence", "sequence"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/quant/testdata").join(name)
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The samples of a model, each the inputs in order.
pub(crate) fn samples(name: &str) -> Vec<Vec<Tensor>> {
    let members = npz::read_npz(&read(&format!("{name}.npz"))).unwrap();
    let count = members[0].1.shape()[0];
    let row = |t: &Tensor, i: usize| {
        let inner = t.len() / count;
        let picked: Vec<usize> = (i * inner..(i + 1) * inner).collect();
        Tensor::new(&t.shape()[1..], t.data().pick(&picked)).unwrap()
    };
    (0..count).map(|i| members.iter().map(|(_, t)| row(t, i)).collect()).collect()
}

pub(crate) fn float(name: &str) -> (Graph, i64) {
    let (graph, info) = import::from_onnx(&read(&format!("{name}.onnx")), &Limits::default()).unwrap();
    (graph, info.opset)
}

pub(crate) fn settings(scheme: &'static Scheme) -> Settings {
    Settings {
        scheme,
        calibration: Calibration::MinMax,
        smooth: None,
        correct_bias: false,
        reduced: false,
        blocks: Blocks { size: 32, symmetric: false, fit: Fit::Mse },
        fixed: BTreeSet::new(),
    }
}

/// Quantised with the reference operators, whose results do not depend on the processor.
pub(super) fn quantised(name: &str, settings: Settings) -> Quantised {
    let (graph, opset) = float(name);
    let run = RunOptions { reference: true, ..RunOptions::default() };
    let prepared = Prepared::new(&graph, opset, &samples(name), settings, &run).unwrap();
    prepared.apply(&BTreeSet::new(), &BTreeSet::new()).unwrap()
}

pub(super) fn run(graph: &Graph, reference: bool, sample: &[Tensor]) -> Vec<f32> {
    let mut runner = Runner::new(Arc::new(graph.clone()), RunOptions { reference, ..RunOptions::default() });
    let out = runner.run(&sample.iter().collect::<Vec<_>>()).unwrap();
    out[0].as_f32().unwrap().to_vec()
}

fn largest(v: &[f32]) -> f32 {
    v.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn every_scheme_writes_what_is_recorded_and_onnx_runtime_computes_what_we_do_with_it() {
    let update = std::env::var_os("HONE_UPDATE").is_some();
    for model in MODELS {
        for scheme in SCHEMES {
            let name = format!("{model}.{}", scheme.name);
            let made = quantised(model, settings(scheme));
            let bytes = import::to_onnx(&made.graph, &read(&format!("{model}.onnx"))).unwrap();
            let onnx = file(&format!("{name}.onnx"));
            if update {
                std::fs::write(&onnx, &bytes).unwrap();
            }
            let recorded = std::fs::read(&onnx).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (graph, _) = import::from_onnx(&recorded, &Limits::default()).unwrap();
            let (again, _) = import::from_onnx(&bytes, &Limits::default()).unwrap();
            assert_eq!(graph.census(), again.census(), "{name}: HONE_UPDATE=1 and record.py make the recording anew");
            if update {
                continue;
            }
            let answers = npz::read_npz(&read(&format!("{name}.npz"))).unwrap();
            let (mut signal, mut noise) = (0f32, 0f32);
            for (i, sample) in samples(model).iter().enumerate() {
                let want = answers.iter().find(|(n, _)| *n == format!("out{i}")).unwrap().1.as_f32().unwrap();
                let float = run(&float(model).0, true, sample);
                let tolerance = step(&graph).max(2e-5) * largest(&float);
                for (how, graph, reference) in
                    [("kernels", &graph, false), ("reference", &graph, true), ("now", &again, true)]
                {
                    let off = apart(want, &run(graph, reference, sample));
                    assert!(off <= tolerance, "{name}, sample {i}, {how}: {off} apart, allowed {tolerance}");
                }
                for (x, y) in float.iter().zip(want) {
                    signal += x * x;
                    noise += (x - y).powi(2);
                }
            }
            // The scheme must also be a model of the model; random weights of few elements are the worst case for 4 bits.
            // The sentence model has one activation planted far outside the others, and its table is in 8 bits per tensor
            // under `int8-qdq`: 0.21 was measured when it was recorded, and is a known weakness of the scheme.
            let most = match (model, scheme.name) {
                ("sentence", "int8-qdq") => 0.22,
                (_, "int4") => 0.2,
                _ => 0.08,
            };
            let lost = (noise / signal).sqrt();
            assert!(lost < most, "{name}: {lost} from f32");
        }
    }
}

/// How much of the largest value one turned rounding may move: activations of 8 bits have 255 steps, and a step that two
/// implementations round differently passes through the layers after it.
fn step(graph: &Graph) -> f32 {
    let rounds = |n: &crate::graph::Node| {
        matches!(n.op.name(), "QuantizeLinear" | "DynamicQuantizeLinear" | "DynamicQuantizeLSTM")
    };
    if graph.nodes.iter().any(rounds) { 2.0 / 255.0 } else { 0.0 }
}

#[test]
fn what_gets_eight_bits_is_nearer_to_the_float_one_and_kernels_compute_the_same() {
    let (graph, opset) = float("sentence");
    let prepared = Prepared::new(&graph, opset, &[], settings(&blocks::INT4), &RunOptions::default()).unwrap();
    let all = prepared.apply(&BTreeSet::new(), &BTreeSet::new()).unwrap();
    let names: BTreeSet<String> = all.layers.iter().map(|l| l.name.clone()).collect();
    let wide = prepared.apply(&BTreeSet::new(), &names).unwrap();
    assert_eq!(all.layers.len(), wide.layers.len());
    let widened = || all.layers.iter().zip(&wide.layers).filter(|(l, _)| l.bits < 8);
    let ops: BTreeSet<&str> = widened().map(|(l, _)| l.op).collect();
    assert!(ops.contains("Gather") && ops.contains("MatMul"), "{ops:?}");
    for (four, eight) in widened() {
        assert_eq!((four.bits, eight.bits), (4, 8), "{}", four.name);
        assert!(eight.weight_snr_db > four.weight_snr_db.map(|v| v + 12.0), "{}", four.name);
    }
    // What the report says is what the file has.
    for (q, bits) in [(&all, 4), (&wide, 8)] {
        let blocks = q.graph.nodes.iter().filter_map(|n| match &n.op {
            crate::graph::Op::Own(d, a) if ["GatherBlockQuantized", "MatMulNBits"].contains(&d.name) => {
                Some((d.name, a))
            }
            _ => None,
        });
        let found: Vec<(&str, i64)> = blocks.map(|(name, a)| (name, a.int("bits", 0).unwrap())).collect();
        assert!(
            found.iter().all(|(_, b)| *b == bits) && found.iter().any(|(n, _)| n.starts_with("Gather")),
            "{found:?}"
        );
    }
    let sample = &samples("sentence")[0];
    let float = run(&graph, true, sample);
    let off = |g: &Graph, reference: bool| apart(&float, &run(g, reference, sample));
    assert!(off(&wide.graph, true) < off(&all.graph, true));
    assert!((off(&wide.graph, false) - off(&wide.graph, true)).abs() < 1e-4 * largest(&float));
}

#[test]
fn nodes_that_are_kept_compute_floats_and_everything_kept_is_the_float_model() {
    for scheme in SCHEMES {
        let (graph, opset) = float("sentence");
        let samples = samples("sentence");
        let prepared = Prepared::new(&graph, opset, &samples, settings(scheme), &RunOptions::default()).unwrap();
        let all = prepared.apply(&BTreeSet::new(), &BTreeSet::new()).unwrap();
        let names: BTreeSet<String> = all.layers.iter().map(|l| l.name.clone()).collect();
        let some: BTreeSet<String> = names.iter().take(2).cloned().collect();
        let fewer = prepared.apply(&some, &BTreeSet::new()).unwrap();
        assert!(fewer.layers.iter().all(|l| !some.contains(&l.name)), "{}", scheme.name);
        assert!(fewer.layers.len() < all.layers.len() && !fewer.layers.is_empty(), "{}", scheme.name);
        run(&fewer.graph, false, &samples[0]);
        let none = prepared.apply(&names, &BTreeSet::new()).unwrap();
        assert!(none.layers.is_empty());
        assert!(none.graph.census().keys().all(|(op, _)| !op.contains("Quant") && !op.contains("NBits")));
        let off = apart(&run(&graph, true, &samples[0]), &run(&none.graph, true, &samples[0]));
        assert!(off < 1e-5, "folding changed the result by {off}");
    }
}

#[test]
fn folding_leaves_no_normalisation_and_no_padding_and_absorbs_every_rectifier_behind_a_product() {
    let (graph, opset) = float("picture");
    let folded = prepare::prepare(&graph, opset);
    let count = |g: &Graph, op: &str| g.nodes.iter().filter(|n| n.op.name() == op).count();
    assert_eq!((count(&graph, "BatchNormalization"), count(&graph, "Pad")), (1, 1));
    assert_eq!((count(&folded, "BatchNormalization"), count(&folded, "Pad")), (0, 0));
    for sample in samples("picture") {
        assert!(apart(&run(&graph, true, &sample), &run(&folded, true, &sample)) < 1e-5);
    }
    let q = quantised("picture", settings(&qdq::INT8_QDQ)).graph;
    assert_eq!((count(&q, "Relu"), count(&q, "Clip")), (0, 0));
    let named = |n: &str| q.nodes.iter().any(|node| node.name == n);
    assert!(named("stem.relu_QuantizeLinear") && !named("stem.out_QuantizeLinear"));
}

/// Root mean square difference of quantised from float results, over all samples, relative to the float ones.
fn noise(name: &str, settings: Settings) -> f32 {
    let (float, q) = (float(name).0, quantised(name, settings).graph);
    let (mut signal, mut noise) = (0f32, 0f32);
    for sample in samples(name) {
        for (x, y) in run(&float, true, &sample).iter().zip(run(&q, true, &sample)) {
            signal += x * x;
            noise += (x - y).powi(2);
        }
    }
    (noise / signal).sqrt()
}

#[test]
fn migration_computes_the_same_and_takes_noise_out_of_a_model_with_an_outlying_channel() {
    let (graph, opset) = float("sentence");
    let smooth = Settings { smooth: Some(0.5), ..settings(&qdq::INT8_QDQ) };
    let prepared = Prepared::new(&graph, opset, &samples("sentence"), smooth.clone(), &RunOptions::default()).unwrap();
    for sample in samples("sentence") {
        let (a, b) = (run(&graph, true, &sample), run(prepared.graph(), true, &sample));
        assert!(apart(&a, &b) < 1e-4 * largest(&a));
    }
    let count = |op: &str| prepared.graph().nodes.iter().filter(|n| n.op.name() == op).count();
    // One for each activation that others read too or that no normalisation makes; the last one is a normalisation's own.
    assert_eq!(count("Mul"), 4);
    let (plain, moved) = (noise("sentence", settings(&qdq::INT8_QDQ)), noise("sentence", smooth));
    assert!(moved < 0.8 * plain, "{moved} and {plain}");
}

#[test]
fn corrected_biases_bring_the_mean_of_the_result_back() {
    // Seven bits and one scale for all make the shift large enough to be seen on six samples.
    let plain = Settings { reduced: true, ..settings(&qdq::INT8_QDQ) };
    let corrected = Settings { correct_bias: true, ..plain.clone() };
    let float = float("picture").0;
    let shift = |settings: &Settings| {
        let q = quantised("picture", settings.clone()).graph;
        let mut off = [0f32; 5];
        for sample in samples("picture") {
            for (o, (x, y)) in off.iter_mut().zip(run(&float, true, &sample).iter().zip(run(&q, true, &sample))) {
                *o += y - x;
            }
        }
        off.iter().map(|o| o.abs()).sum::<f32>()
    };
    let (without, with) = (shift(&plain), shift(&corrected));
    assert!(with < without, "{with} and {without}");
}

#[test]
fn what_cannot_be_quantised_is_said() {
    let (graph, opset) = float("picture");
    let fails = |graph: &Graph, opset, samples: &[Vec<Tensor>]| {
        let prepared = Prepared::new(graph, opset, samples, settings(&qdq::INT8_QDQ), &RunOptions::default());
        prepared.and_then(|p| p.apply(&BTreeSet::new(), &BTreeSet::new())).unwrap_err()
    };
    assert!(matches!(fails(&graph, opset, &[]), QuantError::NoSamples { .. }));
    assert!(matches!(fails(&graph, 9, &samples("picture")), QuantError::Opset { .. }));
    let done = quantised("picture", settings(&qdq::INT8_QDQ)).graph;
    assert!(matches!(fails(&done, opset, &samples("picture")), QuantError::Nothing { .. }));
}
