//! What is allocated: by a run an arena of the planned size once, then nothing; by a run of training what was planned;
//! by a learner what its presses are about.
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::learn::{Feedback, HeadBase, Learner, LearnerConfig, TrainingPress};
use hone_runtime::scope::Spec;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::tensor::{DType, Tensor};
use hone_runtime::train::{Objective, Optimizer, TrainOptions};
use hone_runtime::tune::{Course, Example, Settings, Target, Work};

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
            let session = Session::from_onnx(&bytes, &name, SessionOptions::default()).unwrap();
            let inputs = inputs_of(&session);
            takes_what_is_planned(session, &inputs, &name);
            measured += 1;
        }
    }
    assert!(measured >= 6, "three fusions in f32 and int8");
}

/// A table of words and products in 4 bits: neither is ever made whole.
#[test]
fn a_model_in_four_bits_takes_what_is_planned_and_then_nothing() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/runtime/src/quant/testdata/");
    let read = |name: &str| std::fs::read(format!("{dir}{name}")).unwrap();
    let session = Session::from_onnx(read("sentence.int4.onnx"), "int4", SessionOptions::default()).unwrap();
    assert!(session.graph().census().keys().any(|(op, _)| op == "com.microsoft.GatherBlockQuantized"));
    let samples = read_npz(&read("sentence.npz")).unwrap();
    let first = |(name, t): (String, Tensor)| {
        let shape = &t.shape()[1..];
        let row: Vec<usize> = (0..shape.iter().product()).collect();
        (name, Tensor::new(shape, t.data().pick(&row)).unwrap())
    };
    takes_what_is_planned(session, &samples.into_iter().map(first).collect::<Vec<_>>(), "int4");
}

fn takes_what_is_planned(mut session: Session, inputs: &[(String, Tensor)], name: &str) {
    let ordered: Vec<&Tensor> = inputs.iter().map(|(_, t)| t).collect();
    let given: Vec<(&str, DType, &[usize])> = inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.shape())).collect();
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
    let named = session.run(inputs).unwrap();
    assert!(named.iter().map(|(_, t)| t).eq(&outputs), "{name}: both ways to run give the same");
}

/// Graph, scopes, examples at once, optimizer.
const RUNS: [(&str, &str, usize, Optimizer); 15] = [
    ("attention/model.f32", "full", 16, Optimizer::ADAMW),
    ("attention/model.f32", "lora,head", 16, Optimizer::ADAMW),
    ("attention/model.f32", "bias", 32, Optimizer::ADAMW),
    ("attention/model", "lora,head", 16, Optimizer::ADAMW),
    ("attention/model", "lora,head", 64, Optimizer::ADAMW),
    ("attention/model", "bias,head", 32, Optimizer::ADAMW),
    ("concat/model.f32", "full", 32, Optimizer::ADAMW),
    ("concat/model", "lora", 32, Optimizer::ADAMW),
    ("weighted/model.f32", "lora", 64, Optimizer::ADAMW),
    ("weighted/model", "bias", 16, Optimizer::ADAMW),
    ("attention/model.f32", "full", 16, Optimizer::ADAFACTOR),
    ("concat/model.f32", "full", 32, Optimizer::SGD),
    // With a few examples at once the copies of parameters weigh as much as the step.
    ("attention/model.f32", "full", 2, Optimizer::ADAMW),
    ("attention/model.f32", "full", 2, Optimizer::SGD),
    ("concat/model.f32", "full", 4, Optimizer::ADAFACTOR),
];

#[test]
fn a_run_of_training_takes_what_was_planned_whatever_the_scope_and_however_many_examples_at_once() {
    let mut off = Vec::new();
    for (model, scopes, batch, optimizer) in RUNS {
        let path = model_dir().join("variants").join(format!("{model}.onnx"));
        let session = Session::from_onnx(std::fs::read(path).unwrap(), model, SessionOptions::default()).unwrap();
        let inputs: Vec<Tensor> = inputs_of(&session).into_iter().map(|(_, t)| t).collect();
        let example = |i: usize| Example { inputs: inputs.clone(), target: Target::Class(i % 10) };
        // Two of each class at least, so that some validate.
        let mut examples: Vec<Example> = (0..2 * batch.max(10)).map(example).collect();
        let spec = Spec {
            scopes: scopes.split(',').map(String::from).collect(),
            output: "logits".into(),
            new_head: None,
            rank: 4,
            alpha: 8.0,
            targets: Vec::new(),
            freeze_a: false,
            seed: 1,
            tensors: Vec::new(),
        };
        let settings = Settings {
            objective: Objective::Labels,
            optimizer,
            rate: 1e-3,
            course: Course::Cosine,
            warmup: 0.0,
            clip: None,
            batch,
            accumulate: 1,
            epochs: 2,
            seed: 1,
            max_bytes: None,
            // The best epoch is handed out as it was kept. The end of a run without validation shrinks the arena where
            // it lies, which the counting allocator cannot: it takes new memory and copies.
            validation: 0.5,
            patience: None,
            budget: None,
            sparse_bytes: 0,
            bf16_by_speed: false,
        };
        // On the calling thread alone, whose allocations are counted.
        let options = TrainOptions::default();
        let (graph, opset) = (session.graph(), session.info().opset);
        let work = Work { graph, opset, spec, settings, examples: &mut examples, options, checkpoint: None };
        let mut outcome = None;
        let taken = allocation_counter::measure(|| outcome = Some(work.run(&mut |_| {}).unwrap())).bytes_max as f64;
        let planned = outcome.unwrap().needs.total() as f64;
        println!(
            "{model}, {scopes}, {batch}, {optimizer:?}: {taken} bytes taken, {planned} planned, {:+.1} %",
            100.0 * (taken / planned - 1.0)
        );
        if (taken / planned - 1.0).abs() > 0.05 {
            off.push(format!("{model}, {scopes}, {batch}, {optimizer:?}: {taken} bytes taken, {planned} planned"));
        }
    }
    assert!(off.is_empty(), "{off:#?}");
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
