//! The learner at the size of which-digit's head: what one press costs, and what the canonical refit costs.
//!
//! Informs: that a press is learned before the thumb is up again, and how often the refit may run.
#![forbid(unsafe_code)]

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use hone_runtime::learn::objective::Feedback;
use hone_runtime::learn::{HeadBase, Learner, LearnerConfig, TrainingPress};

const CLASSES: usize = 10;
const FEATURES: usize = 128;

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
    let shown = (i % CLASSES as u64) as usize;
    // Every second answer is right, the others are corrected.
    let feedback = if i.is_multiple_of(2) {
        Feedback::Thumb { up: true }
    } else {
        Feedback::Correction { class: (shown + 1) % CLASSES }
    };
    TrainingPress {
        press_id: i,
        prediction_id: i as u32,
        feature: noise(FEATURES, i + 1),
        logits: noise(CLASSES, i + 1_000_001),
        shown,
        mu: 1.0,
        feedback,
        confirmed: false,
        source: "bench".into(),
    }
}

/// A learner that has heard `presses`.
fn taught(presses: u64) -> Learner {
    let base =
        HeadBase::new(noise(CLASSES * FEATURES, 7), vec![0.0; CLASSES], vec![0.0; FEATURES], vec![1.0; FEATURES])
            .expect("a head of that size");
    let mut learner = Learner::new(base, LearnerConfig::default()).expect("the default settings");
    for i in 0..presses {
        learner.press(press(i)).expect("a press");
    }
    learner
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("learner, head {CLASSES}x{FEATURES}"));
    group.sample_size(10);
    for presses in [20, 200] {
        let learner = taught(presses);
        group.bench_function(BenchmarkId::new("press", presses), |b| {
            b.iter_batched_ref(
                || learner.clone(),
                |l| l.press(press(presses)).expect("a press"),
                BatchSize::LargeInput,
            );
        });
        group.bench_function(BenchmarkId::new("refit", presses), |b| b.iter(|| learner.refit().expect("a refit")));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
