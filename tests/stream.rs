//! A graph that remembers: what it leaves with one sample of a stream is there with the next.
use hone_runtime::app::App;
use hone_runtime::bundle::Bundle;
use hone_runtime::dataset::Dataset;
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

use crate::onnx::*;
use crate::support::{fails, hone, said};

/// Columns of *diamond*'s head, whose description files are borrowed.
const WIDTH: usize = 24;

/// Readings `[N, 7, 1]` and what was before `[N, 24]`; the feature is their sum over all that came.
fn summing() -> Vec<u8> {
    let batch = |name, rest: &[i64]| {
        let dims: Vec<Dim<'_>> = std::iter::once(Dim::Name("N")).chain(rest.iter().map(|&n| Dim::Length(n))).collect();
        (name, dims)
    };
    let (sensor, before) = (batch("sensor", &[7, 1]), batch("before", &[WIDTH as i64]));
    let (feature, logits) = (batch("feature", &[WIDTH as i64]), batch("logits", &[1]));
    let mixed: Vec<f32> = (0..7 * WIDTH).map(|i| (i % 5) as f32 * 0.25 - 0.5).collect();
    model(&graph(&[
        value(11, sensor.0, FLOAT, &sensor.1),
        value(11, before.0, FLOAT, &before.1),
        floats("mixed", &[7, WIDTH as i64], &mixed),
        floats("weight", &[WIDTH as i64, 1], &[0.125; WIDTH]),
        node("Flatten", "flat", &["sensor"], &["flat"], &[attribute_int("axis", 1)]),
        node("MatMul", "mix", &["flat", "mixed"], &["now"], &[]),
        node("Add", "sum", &["now", "before"], &["feature"], &[]),
        node("MatMul", "head", &["feature", "weight"], &["logits"], &[]),
        value(12, logits.0, FLOAT, &logits.1),
        value(12, feature.0, FLOAT, &feature.1),
    ]))
}

#[test]
fn what_a_graph_carries_passes_along_a_stream_and_a_sample_alone_begins_anew() {
    let diamond = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/diamond");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    for file in ["config.json", "sensors.json", "train/recipe.json", "train/head.safetensors"] {
        let from = diamond.join("diamond.hone").join(file);
        std::fs::copy(&from, config.join(from.file_name().unwrap())).unwrap();
    }
    let (onnx, path) = (dir.path().join("sum.onnx"), dir.path().join("sum.hone"));
    std::fs::write(&onnx, summing()).unwrap();
    let export = |state: &str| {
        let mut hone = hone();
        hone.arg("export").arg(&onnx).arg("-o").arg(&path).arg("--config").arg(&config);
        hone.args(["--input", "sensor=sensor", "--state", state]).output().unwrap()
    };
    fails(&export("before=nothing"), 3, &["graphs[0].state[0].out", "'nothing' is not among outputs"]);
    let made = export("before=feature");
    assert!(made.status.success(), "{}", said(&made));

    let world = Dataset::from_dir(&diamond.join("world")).unwrap();
    let rows: Vec<_> = world.split("stream").take(2).collect();
    let (first, second) = (rows[0].sample(), rows[1].sample());
    let model = || Model::open(Bundle::open(&path).unwrap(), SessionOptions::default()).unwrap();
    let mut one = model();
    let (a, b) = (one.see(&first).unwrap().feature, one.see(&second).unwrap().feature);
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b + a).collect();
    assert_ne!(sum, b);
    // As in `hone listen`.
    let mut app = App::open(model(), &StateDir::at(dir.path().join("state")), Mode::Veto).unwrap();
    assert_eq!(app.answer_next(&first).unwrap().seen.feature, a);
    let next = app.answer_next(&second).unwrap().seen;
    assert_eq!(next.feature, sum);
    // What is kept of a prediction makes its feature anew, wherever the stream is by then.
    assert_eq!(one.look(&next.inputs).unwrap().0, sum);
    assert_eq!(app.answer(&second).unwrap().seen.feature, b);
    assert_eq!(app.answer_next(&first).unwrap().seen.feature, sum, "a sample alone is the first of a stream");
}
