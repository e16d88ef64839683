//! What learning costs at the size the design promises: a head of 10 x 512 after 500 presses, and the refit of a long
//! log.
//!
//! Informs: that a press is learned before the thumb is up again. What is learned from it is measured by `hone bench
//! feedback`.
#![forbid(unsafe_code)]

use std::path::Path;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use hone_runtime::learn::objective::Feedback;
use hone_runtime::learn::{HeadBase, Learner, LearnerConfig, Retain, TrainingPress};
use hone_runtime::trial::{Condition, Says, run, worlds};

const CLASSES: usize = 10;
const FEATURES: usize = 512;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn press(i: u64) -> TrainingPress {
    TrainingPress {
        press_id: i,
        prediction_id: i as u32,
        feature: noise(FEATURES, i + 1),
        logits: noise(CLASSES, i + 1_000_001),
        shown: (i % CLASSES as u64) as usize,
        mu: 1.0,
        feedback: Feedback::Thumb { up: i.is_multiple_of(3) },
        confirmed: false,
        source: "bench".into(),
    }
}

fn learner(presses: u64) -> Learner {
    let base =
        HeadBase::new(noise(CLASSES * FEATURES, 7), vec![0.0; CLASSES], vec![0.0; FEATURES], vec![1.0; FEATURES])
            .expect("a head of that size");
    let factory = hone_runtime::learn::Theta::zeros(CLASSES, FEATURES + 1);
    Learner::resume(base, LearnerConfig::default(), (0..presses).map(press), factory).expect("a learner")
}

fn bench(c: &mut Criterion) {
    // With `--test` each is run once: then a short log is enough to see that it runs.
    let quick = std::env::args().any(|a| a == "--test");
    let (few, many) = if quick { (40, 60) } else { (500, 10_000) };
    let mut group = c.benchmark_group(format!("feedback, head {CLASSES}x{FEATURES}"));
    group.sample_size(10);
    let taught = learner(few);
    group.bench_function("press after 500", |b| {
        b.iter_batched_ref(|| taught.clone(), |l| l.press(press(few)).expect("a press"), BatchSize::LargeInput);
    });
    let taught = learner(many);
    group.bench_function("refit of 10000", |b| b.iter(|| taught.refit().expect("a refit")));
    group.finish();

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/feedback/worlds.npz");
    let all = worlds(&std::fs::read(file).expect("the recorded worlds")).expect("an archive of worlds");
    let world = all.iter().find(|w| w.task == "vowels-con").expect("a small world");
    let condition = Condition {
        learner: LearnerConfig::default(),
        says: Says::Thumbs,
        wrong: 0.1,
        presses: if quick { 20 } else { 200 },
        retain: Retain::Adapt,
        random_features: 0,
    };
    c.bench_function("feedback, 200 presses of one world", |b| {
        b.iter(|| run(world, &condition, |_, _| ()).expect("a run"));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
