//! What a run allocates: an arena of the planned size once, then nothing.
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::tensor::{DType, Tensor};

use crate::support::model_dir;

#[test]
fn the_first_run_takes_what_is_planned_and_a_run_like_the_one_before_takes_nothing() {
    let mut measured = 0;
    for variant in ["attention", "concat", "weighted"] {
        for entry in std::fs::read_dir(model_dir().join("variants").join(variant)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "onnx") {
                continue;
            }
            let (bytes, name) = (std::fs::read(&path).unwrap(), path.display().to_string());
            let mut session = Session::from_onnx(&bytes, &name, SessionOptions::default()).unwrap();
            let inputs = inputs_of(&session);
            let ordered: Vec<&Tensor> = inputs.iter().map(|(_, t)| t).collect();
            let given: Vec<(&str, DType, &[usize])> =
                inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
            let planned = session.plan(&given).unwrap().arena_bytes() as f64;

            let mut outputs = Vec::new();
            let first = allocation_counter::measure(|| session.run_into(&ordered, &mut outputs).unwrap());
            let results: usize = outputs.iter().map(|t| t.data().as_bytes().len()).sum();
            let arena = first.bytes_max as f64 - results as f64;
            assert!((arena / planned - 1.0).abs() <= 0.05, "{name}: {arena} bytes taken, {planned} planned");

            let before = outputs.clone();
            let second = allocation_counter::measure(|| session.run_into(&ordered, &mut outputs).unwrap());
            assert_eq!(second.count_total, 0, "{name}: {second:?}");
            assert_eq!(outputs, before, "{name}");
            let named = session.run(&inputs).unwrap();
            assert!(named.iter().map(|(_, t)| t).eq(&outputs), "{name}: both ways to run give the same");
            measured += 1;
        }
    }
    assert!(measured >= 6, "three fusions in f32 and int8");
}

/// The recorded inputs of the shipped bundle, in the graph's order.
fn inputs_of(session: &Session) -> Vec<(String, Tensor)> {
    let sample = read_npz(&std::fs::read(model_dir().join("which-digit.hone/samples/input.npz")).unwrap()).unwrap();
    let of =
        |name: &str| sample.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no sample of {name}")).clone();
    session.input_names().into_iter().map(of).collect()
}
