//! What one press costs once the journal has grown long: commit, the look at what has changed, learner, gate and
//! publishing.
//!
//! Informs: whether a device that has heard thousands of presses still answers the next one. `read` is the whole log,
//! as at a start; `follow` the press with the look of a reader that has followed; `adapt` the whole way to the better
//! answer, of which every fifth press pays for a canonical refit.
#![forbid(unsafe_code)]

use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hone_runtime::Bundle;
use hone_runtime::app::App;
use hone_runtime::app::rehearsal::Chance;
use hone_runtime::journal::{Example, Follower, Journal, Press, PressKind, Shown, Source};
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

const CLASSES: usize = 10;
const FEATURES: usize = 128;

fn bundle() -> Bundle {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit/which-digit.hone");
    Bundle::open(path).expect("the shipped bundle")
}

/// An answer about an input of chance, and the thumb about it.
fn shown_and_said(journal: &mut Journal, model_digest: &str, chance: &mut Chance) {
    let mut noise = |n: usize| (0..n).map(|_| 2.0 * chance.unit() as f32 - 1.0).collect::<Vec<f32>>();
    let (feature, logits) = (noise(FEATURES), noise(CLASSES));
    let example =
        Example { model_digest: model_digest.to_string(), adapter_id: None, feature, logits, inputs: Vec::new() };
    let class = chance.below(CLASSES) as u32;
    let id = journal.shown(&Shown { example, class, label: class.to_string(), mu: 1.0, p: 0.5 }).expect("room");
    let said = PressKind::Thumb { up: chance.unit() < 0.5 };
    journal.press(&Press::new(Some(id), said, Source::Stdin)).expect("room");
}

fn bench(c: &mut Criterion) {
    let bundle = bundle();
    let digest = bundle.base_digest().to_string();
    let mut group = c.benchmark_group("a press after so many");
    group.sample_size(10);
    for presses in [200, 5_000] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::at(dir.path());
        let mut chance = Chance::new(1);
        let mut journal = Journal::open(state.lock().expect("nobody else is here")).expect("a new journal");
        for _ in 0..presses {
            shown_and_said(&mut journal, &digest, &mut chance);
        }
        group.bench_function(BenchmarkId::new("read", presses), |b| {
            b.iter(|| journal.reader().effective_presses().expect("a sound journal"));
        });
        let mut follower = Follower::default();
        journal.reader().changes(&mut follower).expect("a sound journal");
        group.bench_function(BenchmarkId::new("follow", presses), |b| {
            b.iter(|| {
                shown_and_said(&mut journal, &digest, &mut chance);
                journal.reader().changes(&mut follower).expect("a sound journal")
            });
        });
        journal.close().expect("room");

        let model = Model::open(self::bundle(), SessionOptions::default()).expect("the shipped model");
        let mut app = App::open(model, &state, Mode::Veto).expect("a sound journal");
        group.bench_function(BenchmarkId::new("adapt", presses), |b| {
            b.iter(|| {
                shown_and_said(&mut app.journal().lock().expect("one thread"), &digest, &mut chance);
                app.catch_up().expect("a sound journal")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
