//! Every operator against ONNX Runtime, on the recorded tiny models of `testdata/conformance.npz`.
//!
//! `testdata/record.py` wrote the archive and states how the tolerance of each case is derived; integers are equal, as
//! are floats where nothing is rounded. Each case runs through a whole session, by kernels and by reference functions,
//! twice in each, so that a state kept from one run to the next would show.
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::OPS;
use crate::bundle::npz::read_npz;
use crate::import::own_operators;
use crate::session::{Session, SessionOptions};
use crate::tensor::{DType, Data, Tensor};

/// Operators of the file that have no kernel yet and run by their reference function.
const WITHOUT_KERNEL: &[&str] = &["QuantizeLinear", "DequantizeLinear"];

struct Case {
    name: String,
    tolerance: f32,
    model: Vec<u8>,
    runs: Vec<Recorded>,
}

struct Recorded {
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<(String, Tensor)>,
}

type TensorIndex = Vec<(String, String, Vec<usize>)>;
type CaseIndex = (String, f32, usize, Vec<(TensorIndex, TensorIndex)>);

fn cases() -> Vec<Case> {
    let archive = read_npz(include_bytes!("testdata/conformance.npz")).unwrap();
    let member = |name: &str| match archive.iter().find(|(n, _)| n == name).map(|(_, t)| t.data()) {
        Some(Data::U8(bytes)) => bytes.clone(),
        _ => panic!("the archive has no bytes named {name}"),
    };
    let (index, data) = (member("index"), member("data"));
    let index: Vec<CaseIndex> = serde_json::from_slice(&index).unwrap();
    let mut rest = &data[..];
    let mut take = |bytes: usize| rest.split_off(..bytes).expect("the archive is as long as its index says");
    let mut tensors = |list: TensorIndex| -> Vec<(String, Tensor)> {
        let read = |(name, dtype, shape): (String, String, Vec<usize>)| {
            let dtype = DType::from_name(&dtype).unwrap();
            let bytes = take(shape.iter().product::<usize>() * dtype.size_bytes());
            (name, Tensor::new(&shape, elements(dtype, bytes)).unwrap())
        };
        list.into_iter().map(read).collect()
    };
    let mut out = Vec::new();
    for (name, tolerance, model_bytes, runs) in index {
        // The model is bytes like any other tensor.
        let model = tensors(vec![(String::new(), "u8".into(), vec![model_bytes])]);
        let Data::U8(model) = model[0].1.data().clone() else { unreachable!("asked for as u8") };
        let runs = runs.into_iter().map(|(i, o)| Recorded { inputs: tensors(i), outputs: tensors(o) }).collect();
        out.push(Case { name, tolerance, model, runs });
    }
    assert!(rest.is_empty(), "the archive is longer than its index says");
    out
}

fn elements(dtype: DType, bytes: &[u8]) -> Data {
    match dtype {
        DType::F32 => Data::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        DType::I64 => Data::I64(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        DType::I32 => Data::I32(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        DType::I8 => Data::I8(bytes.iter().map(|&b| b as i8).collect()),
        DType::U8 => Data::U8(bytes.to_vec()),
        other => panic!("nothing was recorded in {other}"),
    }
}

/// What differs between a recorded and a found tensor, if anything does.
fn differs(want: &Tensor, got: &Tensor, tolerance: f32) -> Option<String> {
    if want.shape() != got.shape() || want.dtype() != got.dtype() {
        let (w, g) = (want.shape(), got.shape());
        return Some(format!("{} {w:?} expected, {} {g:?} found", want.dtype(), got.dtype()));
    }
    let (Ok(a), Ok(b)) = (want.as_f32(), got.as_f32()) else {
        return (want != got).then(|| format!("{:?} expected, {:?} found", want.data(), got.data()));
    };
    // An infinity equals itself only; a NaN stands where a NaN stood.
    let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance;
    let at = a.iter().zip(b).position(|(&a, &b)| !same(a, b))?;
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    Some(format!("element {at}: {} expected, {} found; worst {worst:e}, allowed {tolerance:e}", a[at], b[at]))
}

/// Runs one case in one way; what went wrong, and which operators of ours ran by which kernels.
fn run(case: &Case, reference: bool, ran: &mut BTreeMap<String, BTreeSet<&'static str>>) -> Vec<String> {
    let options = SessionOptions { reference, ..SessionOptions::default() };
    let mut session = match Session::from_onnx(&case.model, &case.name, options) {
        Ok(s) => s,
        Err(e) => return vec![e.to_string()],
    };
    let mut wrong = Vec::new();
    for (i, recorded) in case.runs.iter().enumerate() {
        for turn in 1..=2 {
            let found = match session.run(&recorded.inputs) {
                Ok(found) => found,
                Err(e) => {
                    wrong.push(format!("inputs {i} turn {turn}: {e}"));
                    break;
                }
            };
            for (name, want) in &recorded.outputs {
                match found.iter().find(|(n, _)| n == name) {
                    Some((_, got)) => {
                        let what = differs(want, got, case.tolerance);
                        wrong.extend(what.map(|what| format!("inputs {i} turn {turn} output {name}: {what}")));
                    }
                    None => wrong.push(format!("no output {name}")),
                }
            }
        }
        let shapes: Vec<(&str, DType, &[usize])> =
            recorded.inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
        if let Ok(plan) = session.plan(&shapes) {
            for step in plan.steps() {
                ran.entry(step.op).or_default().insert(step.kernel);
            }
        }
    }
    wrong
}

#[test]
fn every_operator_computes_what_onnx_runtime_computes_by_its_kernel_and_by_its_reference() {
    let mut wrong = Vec::new();
    let (mut fast, mut slow) = (BTreeMap::new(), BTreeMap::new());
    for case in cases() {
        for (reference, ran) in [(false, &mut fast), (true, &mut slow)] {
            let way = if reference { "reference" } else { "kernels" };
            // A panic is a failure of the case that caused it, not of those that follow.
            let done = catch_unwind(AssertUnwindSafe(|| run(&case, reference, ran)));
            let found = done.unwrap_or_else(|_| vec!["panicked, see above".into()]);
            wrong.extend(found.into_iter().map(|w| format!("{} by {way}: {w}", case.name)));
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    for def in OPS {
        assert!(slow.get(def.name).is_some_and(|k| k.contains("reference")), "no case exercises {}", def.name);
    }
    for name in own_operators() {
        let has_kernel = fast[name].iter().any(|k| *k != "reference" && *k != "opaque");
        let expected = !WITHOUT_KERNEL.contains(&name);
        assert_eq!(has_kernel, expected, "{name} ran by {:?}; WITHOUT_KERNEL says otherwise", fast[name]);
    }
}

#[test]
fn a_difference_beyond_the_tolerance_or_of_a_single_integer_is_seen() {
    let f = |v: &[f32]| Tensor::f32(&[v.len()], v.to_vec()).unwrap();
    assert!(differs(&f(&[1.0]), &f(&[1.0 + 1e-6]), 1e-7).is_some());
    assert!(differs(&f(&[1.0]), &f(&[1.0 + 1e-6]), 1e-5).is_none());
    assert!(differs(&f(&[1.0]), &f(&[f32::NAN]), 1e9).is_some());
    assert!(differs(&f(&[f32::NAN]), &f(&[1.0]), 1e9).is_some());
    assert!(differs(&f(&[f32::INFINITY]), &f(&[f32::MAX]), 1e9).is_some());
    assert!(differs(&f(&[1.0]), &f(&[1.0, 1.0]), 1e9).is_some());
    let q = |v: u8| Tensor::new(&[1], Data::U8(vec![v])).unwrap();
    assert!(differs(&q(7), &q(8), 1e9).is_some());
}
