//! A rollback asked for on a pad and cut off by a stop, at each of its steps: it is done at the next start, and once.
use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use hone_runtime::Bundle;
use hone_runtime::adapters::AdapterId;
use hone_runtime::app::App;
use hone_runtime::dataset::Dataset;
use hone_runtime::feedback::ledger::lock;
use hone_runtime::journal::{AdapterAction, AdapterEvent, PadEvent, PadPress, Press, PressKind, Source};
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

use crate::support::{bundle, hone, model_dir};

const PAD: &str = "0123456789abcdef";

fn open(state: &StateDir) -> App {
    let model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    // Without the gate every candidate is published, so that what is in use is known.
    App::open(model, state, Mode::Off).unwrap()
}

/// Teaches until two adapters are published; returns the first, which is the one before the one in use.
fn two_adapters(app: &mut App) -> AdapterId {
    let world = Dataset::from_dir(&model_dir().join("worlds/new-pen")).unwrap();
    let mut published = Vec::new();
    for row in world.split("stream") {
        let answer = app.answer(&row.sample()).unwrap();
        let id = app.show(&answer).unwrap();
        let class = app.model().class_of(&row.label).unwrap() as u32;
        app.press(&Press::new(Some(id), PressKind::Correction { class }, Source::Stdin)).unwrap();
        if app.current() != published.last() {
            published.extend(app.current().cloned());
        }
        if published.len() == 2 {
            return published.swap_remove(0);
        }
    }
    panic!("the world is too short for two adapters");
}

/// The chord as the pad's ledger records it, acknowledged and not acted on; the number of its record.
fn chord(app: &App, seq: u32) -> u64 {
    let journal = app.journal();
    let mut journal = lock(&journal);
    let epoch = match journal.reader().epoch(PAD).unwrap() {
        Some(epoch) => epoch,
        None => journal.new_epoch(PAD).unwrap(),
    };
    let event = PadEvent::Other { name: "rollback".into(), detail: "chord held".into() };
    journal.pad_commit(PAD, epoch, &[PadPress { seq, event }]).unwrap();
    journal.reader().list(&Default::default()).unwrap().last().unwrap().seq
}

/// Records the decision of the rollback that record `asked` asked for, and nothing more.
fn decide(app: &App, to: &AdapterId, asked: u64) {
    let event = AdapterEvent {
        id: to.to_string(),
        base_digest: app.model().bundle().base_digest().to_string(),
        action: AdapterAction::RolledBack,
        numbers: BTreeMap::from([("request".to_string(), asked as f64)]),
    };
    lock(&app.journal()).adapter(&event).unwrap();
}

/// Starts the program on that state and stops it; what it told.
fn listen(state: &StateDir) -> String {
    let mut child = hone()
        .arg("listen")
        .arg(bundle())
        .arg("--state")
        .arg(state.root())
        .args(["--stdin", "--jsonl", "--camera"])
        .arg(format!("file:{}", model_dir().join("golden/gray-28x28.png").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"quit\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_rollback_cut_off_after_its_commit_is_done_once_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("state"));
    let mut app = open(&state);
    let before = two_adapters(&mut app);
    chord(&app, 1);
    drop(app);

    assert!(listen(&state).contains(&format!(r#""adapter":"{before}","event":"rolled-back""#)));
    for _ in 0..2 {
        assert!(!listen(&state).contains("rolled-back"));
        assert_eq!(open(&state).current(), Some(&before));
    }
}

#[test]
fn a_rollback_cut_off_before_or_after_its_switch_goes_back_one_adapter_and_not_two() {
    for switched in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state"));
        let mut app = open(&state);
        let before = two_adapters(&mut app);
        let asked = chord(&app, 1);
        decide(&app, &before, asked);
        if switched {
            app.adapters().switch(Some(&before)).unwrap();
        }
        drop(app);

        let mut app = open(&state);
        let done = app.finish_rollbacks().unwrap();
        assert_eq!(done.len(), usize::from(!switched), "{done:?}");
        assert_eq!(app.current(), Some(&before));
        assert!(app.finish_rollbacks().unwrap().is_empty());
        drop(app);
        assert!(open(&state).finish_rollbacks().unwrap().is_empty());
    }
}

#[test]
fn a_rollback_asked_for_at_the_factory_head_is_not_kept_for_an_adapter_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("state"));
    let mut app = open(&state);
    two_adapters(&mut app);
    for (seq, left) in [(1, true), (2, false)] {
        chord(&app, seq);
        let done = app.finish_rollbacks().unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!((done[0].is_ok(), app.current().is_some()), (true, left));
    }
    chord(&app, 3);
    let done = app.finish_rollbacks().unwrap();
    assert!(matches!(&done[..], [Err(e)] if e.to_string().contains("factory")), "{done:?}");
    drop(app);

    let mut app = open(&state);
    two_adapters(&mut app);
    let current = app.current().cloned();
    assert!(app.finish_rollbacks().unwrap().is_empty());
    drop(app);
    let mut app = open(&state);
    assert!(app.finish_rollbacks().unwrap().is_empty());
    assert_eq!(app.current(), current.as_ref());
}

#[test]
fn after_a_rollback_the_same_head_is_not_published_again_at_the_next_press() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("state"));
    let mut app = open(&state);
    let before = two_adapters(&mut app);
    assert_eq!(app.rollback().unwrap().as_ref(), Some(&before));
    assert!(app.catch_up().unwrap().is_empty());
    assert_eq!(app.current(), Some(&before));
}
