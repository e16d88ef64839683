//! The shipped model, whole: how long a person waits for an answer, and what int8 weights change about it.
//!
//! Informs: whether an answer fits between two frames of a camera, and the rate of `hone listen`.
#![forbid(unsafe_code)]

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::tensor::Tensor;

fn bench(c: &mut Criterion) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit/src");
    let case = read_npz(&std::fs::read(dir.join("check/case0.npz")).expect("the recorded case")).expect("an archive");
    let inputs: Vec<(String, Tensor)> =
        case.into_iter().filter_map(|(n, t)| n.strip_prefix("in_").map(|n| (n.to_string(), t))).collect();
    let samples = inputs[0].1.shape()[0];
    let mut group = c.benchmark_group(format!("which-digit, {samples} samples a run"));
    group.throughput(Throughput::Elements(samples as u64));
    for file in ["model.onnx", "model.f32.onnx"] {
        let bytes = std::fs::read(dir.join(file)).expect("the model");
        for (way, reference) in [("reference", true), ("kernels", false)] {
            let options = SessionOptions { reference, ..SessionOptions::default() };
            let mut session = Session::from_onnx(&bytes, file, options).expect("the shipped model loads");
            group.bench_function(BenchmarkId::new(file, way), |b| b.iter(|| session.run(&inputs).expect("it runs")));
        }
        group.bench_function(BenchmarkId::new(file, "load"), |b| {
            b.iter(|| Session::from_onnx(&bytes, file, SessionOptions::default()).expect("it loads"));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
