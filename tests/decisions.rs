//! Decisions about the head in use that a stop, a full disk or a redaction must not undo.
use std::path::Path;

use hone_runtime::Bundle;
use hone_runtime::app::{App, Learned};
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::journal::{AdapterAction, AdapterEvent, ClassChange, Filter, Kind, Press, PressKind, Source};
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

use crate::support::{bundle, model_dir};

fn open(state: &Path) -> App {
    let model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    App::open(model, &StateDir::at(state), Mode::Veto).unwrap()
}

fn world(name: &str) -> Dataset {
    Dataset::from_dir(&model_dir().join("worlds").join(name)).unwrap()
}

/// Shows the answer to a sample; its id, and whether it is right.
fn shown(app: &mut App, row: &Row) -> (u32, bool) {
    let answer = app.answer(&row.sample()).unwrap();
    (app.show(&answer).unwrap(), app.classes().name(answer.class) == row.label)
}

#[test]
fn a_head_that_could_not_be_published_answers_nothing_and_is_published_when_the_disk_is_well_again() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let mut app = open(dir.path());
    // A file where the directory of adapters has to be: every write below it fails, the journal's do not.
    let adapters = dir.path().join("adapters");
    let _ = std::fs::remove_dir_all(&adapters);
    std::fs::write(&adapters, b"in the way").unwrap();
    let correct = |app: &mut App, row: &Row| {
        let (id, _) = shown(app, row);
        let class = app.classes().class_of(&row.label).unwrap() as u32;
        app.press(&Press::new(Some(id), PressKind::Correction { class }, Source::Stdin))
    };
    let rows: Vec<&Row> = data.split("stream").take(6).collect();
    let before = app.answer(&rows[0].sample()).unwrap().served;
    for row in &rows[..4] {
        correct(&mut app, row).unwrap();
    }
    let error = correct(&mut app, rows[4]).unwrap_err();
    assert!(error.to_string().contains("adapters"), "{error}");
    assert!(app.learner().published().is_zero() && app.current().is_none());
    assert_eq!(app.answer(&rows[0].sample()).unwrap().served, before, "in memory as on the disk");
    std::fs::remove_file(&adapters).unwrap();
    let learned = correct(&mut app, rows[5]).unwrap().1;
    assert!(learned.iter().any(|l| matches!(l, Learned::Decided { changed: Some(Some(_)), .. })), "{learned:?}");
    let published = app.learner().published().clone();
    assert!(!published.is_zero());
    drop(app);
    assert_eq!(open(dir.path()).learner().published(), &published);
}

fn thumb(app: &mut App, row: &Row, up: bool, confirmed: bool) {
    let (id, _) = shown(app, row);
    app.press(&Press { confirmed, ..Press::new(Some(id), PressKind::Thumb { up }, Source::Stdin) }).unwrap();
}

/// What the journal says of freezes.
fn frozen(app: &App) -> Vec<AdapterEvent> {
    let journal = app.journal();
    let journal = journal.lock().unwrap();
    let records = journal.reader().list(&Filter { kind: Some(Kind::Adapter), ..Filter::default() }).unwrap();
    let events = records.iter().map(|r| serde_json::from_str(r.payload.as_deref().unwrap()).unwrap());
    events.filter(|e: &AdapterEvent| e.action == AdapterAction::Frozen).collect()
}

#[test]
fn a_freeze_lasts_over_restarts_rollbacks_and_new_classes_until_a_confirmed_press() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let mut app = open(dir.path());
    let rows: Vec<&Row> = data.split("stream").collect();
    for row in &rows[..10] {
        let (id, _) = shown(&mut app, row);
        let class = app.classes().class_of(&row.label).unwrap() as u32;
        app.press(&Press::new(Some(id), PressKind::Correction { class }, Source::Stdin)).unwrap();
    }
    assert!(app.current().is_some());
    for row in &rows[10..50] {
        thumb(&mut app, row, false, false);
    }
    let trip = app.learner().frozen().cloned().expect("forty thumbs down in a row");
    assert_eq!(frozen(&app)[0].numbers["trip_thumbs"], 40.0);
    assert_eq!(frozen(&app)[0].numbers["gate_veto"], 1.0);
    drop(app);
    let mut app = open(dir.path());
    assert_eq!(app.learner().frozen(), Some(&trip), "a restart");
    app.rollback().unwrap();
    assert_eq!(app.learner().frozen(), Some(&trip), "a rollback");
    app.change_classes(&ClassChange::Add { name: "loop".into() }).unwrap();
    assert_eq!(app.learner().frozen(), Some(&trip), "a change of classes");
    let held = app.current().cloned();
    for row in &rows[50..57] {
        thumb(&mut app, row, true, false);
    }
    assert_eq!(app.current(), held.as_ref(), "plain presses do not end it");
    thumb(&mut app, rows[57], true, true);
    assert_eq!(app.learner().frozen(), None);
    drop(app);
    let app = open(dir.path());
    assert_eq!(app.learner().frozen(), None, "and what has ended does not come back");
}

#[test]
fn a_wire_that_tripped_by_what_was_displayed_holds_after_a_restart_though_no_press_tells_of_it() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let mut app = open(dir.path());
    let row = data.split("stream").next().unwrap();
    let mut answer = app.answer(&row.sample()).unwrap();
    answer.served[0] = f32::NAN;
    app.show(&answer).unwrap();
    let trip = app.learner().frozen().cloned().expect("an answer that is no number");
    assert_eq!(frozen(&app).len(), 1, "on record at once, and once");
    drop(app);
    let app = open(dir.path());
    assert_eq!(app.learner().frozen(), Some(&trip));
    assert_eq!(frozen(&app).len(), 1);
}
