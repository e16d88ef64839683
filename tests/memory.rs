//! What is allocated: by a run an arena of the planned size once, then nothing; by a learner what its presses are about.
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::learn::{Feedback, HeadBase, Learner, LearnerConfig, TrainingPress};
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

#[test]
fn a_learner_of_512_features_and_ten_classes_holds_500_presses_in_two_megabytes() {
    let base = HeadBase::new(noise(5120, 7), vec![0.0; 10], noise(512, 8), vec![1.0; 512]).unwrap();
    // While several priors are fitted, and when one of them is left.
    for presses in [256, 500] {
        let mut learner = None;
        let taken = allocation_counter::measure(|| {
            let mut taught = Learner::new(base.clone(), LearnerConfig::default()).unwrap();
            for i in 0..presses {
                taught.press(press(i)).unwrap();
                if taught.candidate_due() {
                    taught.candidate().unwrap();
                }
            }
            learner = Some(taught);
        });
        assert_eq!(learner.unwrap().training_predictions(), presses as usize);
        println!("{presses} presses: {} bytes, {} while they were learned", taken.bytes_current, taken.bytes_max);
        assert!(taken.bytes_current <= 2_000_000, "{presses} presses: {} bytes", taken.bytes_current);
    }
}

/// A press as it comes out of a journal, whose features are numbers that f16 holds.
fn press(i: u64) -> TrainingPress {
    TrainingPress {
        press_id: i,
        prediction_id: i as u32,
        feature: noise(512, i + 100),
        logits: noise(10, i + 100_000),
        shown: (i % 10) as usize,
        mu: 1.0,
        feedback: Feedback::Thumb { up: i.is_multiple_of(3) },
        confirmed: false,
        source: "pad".into(),
    }
}

/// `n` numbers in [-1, 1), multiples of 2⁻¹⁰.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let draw = |_| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 53) as f32 / 1024.0 - 1.0
    };
    (0..n).map(draw).collect()
}

/// The recorded inputs of the shipped bundle, in the graph's order.
fn inputs_of(session: &Session) -> Vec<(String, Tensor)> {
    let sample = read_npz(&std::fs::read(model_dir().join("which-digit.hone/samples/input.npz")).unwrap()).unwrap();
    let of =
        |name: &str| sample.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no sample of {name}")).clone();
    session.input_names().into_iter().map(of).collect()
}
