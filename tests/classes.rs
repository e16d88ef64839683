//! A class more, another name, two that are one: on the shipped model, over restarts, rollbacks and a copied journal.
use std::path::Path;

use hone_runtime::Bundle;
use hone_runtime::app::App;
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::feedback::ledger::lock;
use hone_runtime::journal::{ClassChange, Journal, Press, PressKind, Reader, Source};
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde_json::Value;

use crate::support::{bundle, fails, hone, model_dir, said};

fn open(state: &Path, gate: Mode) -> App {
    let model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    App::open(model, &StateDir::at(state), gate).unwrap()
}

fn world() -> Dataset {
    Dataset::from_dir(&model_dir().join("worlds/new-pen")).unwrap()
}

/// Shows a sample and says its class; the digits 8 and 9 are the new class 10 to this person.
fn correct(app: &mut App, row: &Row) {
    let answer = app.answer(&row.sample()).unwrap();
    let id = app.show(&answer).unwrap();
    let class = if matches!(row.label.as_str(), "8" | "9") { 10 } else { row.label.parse().unwrap() };
    app.press(&Press::new(Some(id), PressKind::Correction { class }, Source::Stdin)).unwrap();
}

/// Class and bits of every probability, over the test rows.
fn answers(app: &mut App, data: &Dataset) -> Vec<(usize, Vec<u32>)> {
    let answer = |app: &mut App, row: &Row| {
        let a = app.answer(&row.sample()).unwrap();
        (a.class, a.probabilities.iter().map(|p| p.to_bits()).collect())
    };
    data.split("test").take(60).map(|row| answer(app, row)).collect()
}

fn stdout(args: &[&str]) -> String {
    let out = hone().args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", said(&out));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn an_added_class_changes_nothing_until_it_is_named_then_is_learned_and_survives_everything() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world());
    let state = dir.path().join("state");
    let mut app = open(&state, Mode::Veto);
    for row in data.split("stream").filter(|r| !matches!(r.label.as_str(), "8" | "9")).take(10) {
        correct(&mut app, row);
    }
    let taught = app.current().cloned().expect("ten corrections are published");
    let before = answers(&mut app, &data);

    let (class, with_class) = app.change_classes(&ClassChange::Add { name: "a loop".into() }).unwrap();
    assert_eq!((class, app.classes().name(10)), (10, "a loop"));
    assert_eq!(app.adapters().load(&with_class).unwrap().theta, app.adapters().load(&taught).unwrap().theta);
    let same = |after: &[(usize, Vec<u32>)]| {
        after.iter().zip(&before).all(|(a, b)| a.0 == b.0 && a.1[..10] == b.1[..10] && a.1[10] == 0)
    };
    assert!(same(&answers(&mut app, &data)), "nobody has named it yet");
    // Presses about other classes are learned as if it were not there.
    let row = data.split("stream").find(|r| r.label == "3").unwrap();
    correct(&mut app, row);
    assert_eq!(app.learner().base().classes(), 10);

    for row in data.split("stream").filter(|r| matches!(r.label.as_str(), "8" | "9")).take(30) {
        correct(&mut app, row);
    }
    let loops = |app: &mut App| {
        let rows: Vec<&Row> = data.split("test").filter(|r| matches!(r.label.as_str(), "8" | "9")).collect();
        let hits = rows.iter().filter(|r| app.answer(&r.sample()).unwrap().class == 10).count();
        hits as f64 / rows.len() as f64
    };
    let found = loops(&mut app);
    assert!(found > 0.7, "the new class is found in {found} of its samples");
    let learned = app.current().cloned().unwrap();
    let (now, theta) = (answers(&mut app, &data), app.learner().published().clone());

    // A restart.
    drop(app);
    let mut app = open(&state, Mode::Veto);
    assert_eq!(answers(&mut app, &data), now);
    let seq = app.adapters().load(&learned).unwrap().provenance.journal_seq;
    assert_eq!(app.recompute(seq).unwrap(), theta, "the adapter is a function of the journal");

    // Its name, in every verb that answers.
    let (bundle_text, state_text) = (bundle(), state.display().to_string());
    let bundle_text = bundle_text.display().to_string();
    let image = dir.path().join("nine.png");
    let nine = data.split("test").find(|r| r.label == "9").unwrap();
    std::fs::write(&image, nine.image.as_ref().unwrap()).unwrap();
    drop(app);
    let args =
        ["run", &bundle_text, "--image", image.to_str().unwrap(), "--state", &state_text, "--json", "--top", "11"];
    let ran: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(ran["top"].as_array().unwrap().len(), 11);
    assert!(ran["top"].as_array().unwrap().iter().any(|t| t["label"] == "a loop" && t["p"].as_f64() > Some(0.0)));
    let explained = stdout(&["adapter", "explain", &bundle_text, learned.as_str(), "--state", &state_text]);
    assert!(explained.contains("a loop"), "{explained}");
    let data_dir = dir.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::copy(&image, data_dir.join("nine.png")).unwrap();
    std::fs::write(data_dir.join("index.csv"), "split,label,image\ntest,a loop,nine.png\ntest,9,nine.png\n").unwrap();
    let args = ["eval", &bundle_text, "--data", data_dir.to_str().unwrap(), "--state", &state_text, "--json"];
    let figures: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(figures["labels"].as_array().unwrap().len(), 11);
    assert_eq!(figures["confusion"].as_array().unwrap().len(), 11);

    // Back to before it was learned: the class is known, asleep, and everything is as it was then.
    let mut app = open(&state, Mode::Veto);
    while app.current() != Some(&with_class) {
        app.rollback().unwrap();
    }
    assert_eq!(app.classes().name(10), "a loop");
    assert!(same(&answers(&mut app, &data)));
    app.rollback().unwrap();
    assert_eq!(app.current(), Some(&taught));
    assert_eq!(app.classes().len(), 11, "going back forgets what was learned, not what things are called");

    // The journal alone makes the same head.
    let mut exported = Vec::new();
    lock(&app.journal()).reader().export(&mut exported).unwrap();
    drop(app);
    let copy = dir.path().join("copy");
    StateDir::at(&copy).create().unwrap();
    let mut journal = Journal::open(StateDir::at(&copy).lock().unwrap()).unwrap();
    journal.import(&mut exported.as_slice()).unwrap();
    journal.close().unwrap();
    let mut again = Vec::new();
    Reader::open(&StateDir::at(&copy)).unwrap().export(&mut again).unwrap();
    assert!(exported.starts_with(br#"{"epochs":0,"marks":0,"next_prediction_id"#));
    assert!(String::from_utf8_lossy(&exported).contains("hone.journal/2"));
    assert_eq!(lines_after_first(&again), lines_after_first(&exported));
    let app = open(&copy, Mode::Veto);
    assert_eq!(app.recompute(seq).unwrap(), theta);
    assert_eq!(app.classes().name(10), "a loop");
}

fn lines_after_first(export: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(export).lines().skip(1).map(String::from).collect()
}

#[test]
fn taking_back_the_only_press_that_named_a_class_puts_it_to_sleep_again() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world());
    let mut app = open(dir.path(), Mode::Off);
    for row in data.split("stream").filter(|r| !matches!(r.label.as_str(), "8" | "9")).take(7) {
        correct(&mut app, row);
    }
    app.change_classes(&ClassChange::Add { name: "loop".into() }).unwrap();
    let seq = |app: &App| lock(&app.journal()).reader().list(&Default::default()).unwrap().last().unwrap().seq;
    let before = app.recompute(seq(&app)).unwrap();
    let nine = data.split("stream").find(|r| r.label == "9").unwrap();
    correct(&mut app, nine);
    assert_eq!(app.learner().base().classes(), 11);
    app.press(&Press::new(None, PressKind::Undo { press_id: None }, Source::Stdin)).unwrap();
    assert_eq!(app.learner().base().classes(), 10);
    assert_eq!(app.recompute(seq(&app)).unwrap(), before, "bit for bit what it was");
    assert_eq!(app.answer(&nine.sample()).unwrap().probabilities[10], 0.0);
}

#[test]
fn the_command_line_adds_renames_and_merges_and_says_what_it_cannot() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world());
    let (bundle, state) = (bundle(), dir.path().display().to_string());
    let bundle = bundle.display().to_string();
    let tune = |args: &[&str]| {
        hone().args(["tune", &bundle, "--state", &state]).args(args).output().expect("the program starts")
    };
    let ok = |args: &[&str]| -> Value {
        let out = tune(&[args, &["--json"]].concat());
        assert!(out.status.success(), "{}", said(&out));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let changed = ok(&["--add-class", "ten", "--rename-class", "1=one", "--merge-class", "one=7"]);
    assert_eq!(changed["schema"], "hone.tune-classes/1");
    let names: Vec<&str> = changed["classes"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(names, ["0", "2", "3", "4", "5", "6", "7", "8", "9", "ten"]);
    fails(&tune(&["--add-class", "ten"]), 2, &["`ten`", "already"]);
    fails(&tune(&["--rename-class", "eleven=11"]), 2, &["`eleven`", "0, 2, 3"]);
    fails(&tune(&["--merge-class", "one=7"]), 2, &["one class already"]);
    assert_eq!(tune(&["--add-class", "x", "--dry-run"]).status.code(), Some(2), "a change is not a dry run");
    let verified = stdout(&["feedback", "verify", "--state", &state]);
    assert!(verified.starts_with("sound"), "{verified}");
    // What is drawn as a one is answered with the class it was merged into.
    let mut app = open(dir.path(), Mode::Veto);
    let ones = data.split("test").filter(|r| r.label == "1");
    let classes: Vec<usize> = ones.take(10).map(|r| app.answer(&r.sample()).unwrap().class).collect();
    assert!(classes.contains(&7) && !classes.contains(&1), "{classes:?}");
}
