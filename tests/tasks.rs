//! Beyond classes: each task's example, from an answer to a press to a better answer, and back.
use std::path::{Path, PathBuf};

use hone_runtime::Bundle;
use hone_runtime::adapters::AdapterStore;
use hone_runtime::app::{App, Learned, Settings};
use hone_runtime::bundle::Overwrite;
use hone_runtime::bundle::npz::write_npz;
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::export::with_source;
use hone_runtime::journal::{ClassChange, Press, PressKind, Source};
use hone_runtime::learn::task::Judged;
use hone_runtime::learn::{Display, Mode, Retain, TASKS, Theta};
use hone_runtime::model::{Model, probabilities};
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::state::StateDir;
use hone_runtime::tensor::Tensor;
use serde_json::Value;

use crate::support::{fails, hone};

/// One example under `models/`, and what ninety presses, a tenth of them wrong, have to do for its first figure.
struct Example {
    name: &'static str,
    task: &'static str,
    press: &'static str,
    figure: &'static str,
    /// The figure falls as it gets better.
    falls: bool,
    least: f64,
}

const EXAMPLES: &[Example] = &[
    Example { name: "eight", task: "detection", press: "thumbs", figure: "frr", falls: true, least: 0.2 },
    Example { name: "seven", task: "wake-word", press: "thumbs", figure: "frr", falls: true, least: 0.2 },
    Example { name: "diamond", task: "score", press: "corrections", figure: "mae", falls: true, least: 0.2 },
    Example { name: "strip", task: "multi-label", press: "corrections", figure: "micro_f1", falls: false, least: 0.1 },
    Example { name: "lump", task: "anomaly", press: "thumbs", figure: "auc", falls: false, least: 0.05 },
    Example {
        name: "emoji",
        task: "retrieval",
        press: "corrections",
        figure: "recall_at_5",
        falls: false,
        least: 0.15,
    },
];

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn bundle(name: &str) -> PathBuf {
    dir(name).join(format!("{name}.hone"))
}

fn world(name: &str) -> Dataset {
    Dataset::from_dir(&dir(name).join("world")).unwrap()
}

fn open(name: &str) -> Model {
    Model::open(Bundle::open(bundle(name)).unwrap(), SessionOptions::default()).unwrap()
}

fn demo(e: &Example, args: &[&str]) -> Value {
    let state = tempfile::tempdir().unwrap();
    let out = hone()
        .args(["demo", "--json", "--press", e.press, "--state"])
        .arg(state.path().join("s"))
        .arg("--model")
        .arg(bundle(e.name))
        .arg("--data")
        .arg(dir(e.name).join("world"))
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}: {}", e.name, String::from_utf8_lossy(&out.stderr));
    let doc: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&doc["lost_presses"], &doc["duplicated_presses"]), (&0.into(), &0.into()), "{doc}");
    assert_eq!((doc["task"].as_str(), &doc["journal_sound"]), (Some(e.task), &true.into()), "{doc}");
    doc
}

/// Before and after.
fn figure(doc: &Value, name: &str) -> (f64, f64) {
    let found = doc["measures"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap();
    (found["before"].as_f64().unwrap(), found["after"].as_f64().unwrap())
}

/// What somebody says who has the right answer before them: a remark where the task has some, else what is right.
fn said(app: &App, shown: usize, truth: usize) -> PressKind {
    if app.task().near(shown, truth) {
        return PressKind::Thumb { up: true };
    }
    let remark = app.task().true_remarks(shown, truth).first().copied();
    PressKind::Correction { class: remark.unwrap_or(truth) as u32 }
}

/// Shows `n` samples and says what is true of each, every tenth time with emphasis.
fn teach(app: &mut App, rows: &[&Row], n: usize) {
    for (i, row) in rows.iter().cycle().take(n).enumerate() {
        let answer = app.answer(&row.sample()).unwrap();
        let id = app.show(&answer).unwrap();
        let truth = app.model().class_of(&row.label).unwrap();
        let press = Press::new(Some(id), said(app, answer.class, truth), Source::Stdin);
        app.press(&Press { confirmed: i % 10 == 9, ..press }).unwrap();
    }
}

fn bits(theta: &Theta) -> Vec<u32> {
    theta.values().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_task_beyond_classification_has_its_example() {
    for def in TASKS.iter().filter(|def| def.name != "classification") {
        assert!(EXAMPLES.iter().any(|e| e.task == def.name), "{}", def.name);
    }
    for e in EXAMPLES {
        assert_eq!(open(e.name).task().name(), e.task);
    }
}

#[test]
fn ninety_presses_on_a_pad_a_tenth_of_them_wrong_teach_every_task() {
    for e in EXAMPLES {
        let doc = demo(e, &["--presses", "90", "--wrong", "0.1", "--seed", "21"]);
        let (before, after) = figure(&doc, e.figure);
        let gain = if e.falls { before - after } else { after - before };
        assert!(gain >= e.least, "{}: {} from {before} to {after}", e.name, e.figure);
        assert!(doc["published"].as_u64().unwrap() > 0, "{doc}");
    }
}

#[test]
fn somebody_who_always_presses_wrongly_does_no_harm_to_any_task() {
    for e in EXAMPLES {
        // Twelve confirmed presses can fall so that a head and its opposite look alike: of ten seeds one does for `eight`,
        // whose factory head is right in two of three cases. Of twenty-four none does.
        let presses = if e.name == "eight" { "240" } else { "120" };
        let doc = demo(e, &["--presses", presses, "--wrong", "1", "--seed", "22"]);
        // What the gate counts: of sets the labels that are right.
        let (before, after) = match e.task {
            "multi-label" => figure(&doc, "labels"),
            _ => (doc["accuracy_before"].as_f64().unwrap(), doc["accuracy_after"].as_f64().unwrap()),
        };
        assert!(after >= before - 0.06, "{}: right {before} before, {after} after: {doc}", e.name);
        assert!(doc["vetoed"].as_u64().unwrap() > 0, "{}: the gate has refused nothing: {doc}", e.name);
    }
}

#[test]
fn what_is_learned_is_a_function_of_the_journal_bit_for_bit_and_one_press_takes_it_back() {
    for e in EXAMPLES {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::at(tmp.path().join("s"));
        let world = world(e.name);
        let rows: Vec<&Row> = world.split("stream").collect();
        let test: Vec<&Row> = world.split("test").take(20).collect();
        let (adapter, refit, taught) = {
            let mut app = App::open(open(e.name), &state, Mode::Veto).unwrap();
            teach(&mut app, &rows, 40);
            let id = app.current().cloned().unwrap_or_else(|| panic!("{}: nothing was published", e.name));
            let taught: Vec<_> = test.iter().map(|r| app.answer(&r.sample()).unwrap().served).collect();
            (id, app.learner().refit().unwrap(), taught)
        };
        let mut app = App::open(open(e.name), &state, Mode::Veto).unwrap();
        assert_eq!(bits(&app.learner().refit().unwrap()), bits(&refit), "{}", e.name);
        let stored = app.adapters().load(&adapter).unwrap();
        let again = app.recompute(stored.provenance.journal_seq).unwrap();
        assert_eq!(bits(&again), stored.theta.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), "{}", e.name);
        for (row, taught) in test.iter().zip(&taught) {
            assert_eq!(&app.answer(&row.sample()).unwrap().served, taught, "{}: a restart changes no answer", e.name);
        }
        while app.current().is_some() {
            app.rollback().unwrap();
        }
        for row in &test {
            let answer = app.answer(&row.sample()).unwrap();
            assert_eq!(answer.served, answer.seen.logits, "{}: the factory's answers are back", e.name);
        }
    }
}

#[test]
fn an_adapter_folded_into_the_file_gives_the_answers_it_gave_beside_it() {
    for e in EXAMPLES {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::at(tmp.path().join("s"));
        let world = world(e.name);
        let rows: Vec<&Row> = world.split("stream").collect();
        let mut app = App::open(open(e.name), &state, Mode::Veto).unwrap();
        teach(&mut app, &rows, 40);
        let id = app.current().cloned().unwrap();
        let store = AdapterStore::new(&state, app.model().bundle().base_digest()).unwrap();
        let merged = app.model().merged(&store, &id, Vec::new()).unwrap();
        let told = merged.moved.unwrap_or_else(|| panic!("{}: the bundle has a golden sample", e.name));
        assert!(told.largest <= 2e-3 * told.of.max(1.0) && told.rows > 0, "{}: {told:?}", e.name);
        let mut session = Session::from_onnx(&merged.onnx, "merged", SessionOptions::default()).unwrap();
        let mut moved = 0.0_f32;
        for row in world.split("test").take(15) {
            let answer = app.answer(&row.sample()).unwrap();
            let outputs = session.run(&answer.seen.inputs).unwrap();
            let logits = &outputs.iter().find(|(n, _)| n == "logits").unwrap().1;
            let folded = probabilities(&app.task().logits(logits.as_f32().unwrap()));
            let beside = probabilities(&answer.served);
            let far = folded.iter().zip(&beside).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 2e-3, "{}: {far}", e.name);
            let factory = probabilities(&answer.seen.logits);
            moved = factory.iter().zip(&beside).map(|(a, b)| (a - b).abs()).fold(moved, f32::max);
        }
        assert!(moved > 0.05, "{}: nothing was learned to fold", e.name);
    }
}

#[test]
fn what_a_task_knew_of_its_source_can_be_held_on_to_and_what_is_forgotten_is_told() {
    let mut held = Vec::new();
    for e in EXAMPLES {
        let tmp = tempfile::tempdir().unwrap();
        let world = world(e.name);
        // Half of the samples may be learned, the other half measures and never trains.
        let (taught, _) = with_source(Bundle::open(bundle(e.name)).unwrap(), &world, "source").unwrap();
        let path = tmp.path().join("with-source.hone");
        taught.write_dir(&path, Overwrite::Refuse).unwrap();
        let rows: Vec<&Row> = world.split("stream").collect();
        let test: Vec<&Row> = world.split("test").take(60).collect();
        let mut told = Vec::new();
        for retain in [Retain::Adapt, Retain::Keep] {
            let model = Model::open(Bundle::open(&path).unwrap(), SessionOptions::default()).unwrap();
            let state = StateDir::at(tmp.path().join(retain.name()));
            let settings = Settings { retain: Some(retain), gate: Mode::Off, ..Settings::default() };
            let mut app = App::open_with(model, &state, settings).unwrap();
            let sure = |app: &mut App, factory: bool| {
                let of = |app: &mut App, row: &&Row| {
                    let answer = app.answer(&row.sample()).unwrap();
                    let logits = if factory { &answer.seen.logits } else { &answer.served };
                    let truth = app.model().class_of(&row.label).unwrap();
                    f64::from(app.task().mass(&probabilities(logits), truth)).max(1e-6).ln()
                };
                test.iter().map(|row| of(app, row)).sum::<f64>() / test.len() as f64
            };
            let before = sure(&mut app, true);
            teach(&mut app, &rows, 80);
            let Learned::Decided { kept: Some(kept), .. } = app.decide().unwrap() else {
                panic!("{}: the bundle has source samples", e.name)
            };
            told.push((kept.factory, kept.now, before, sure(&mut app, false)));
        }
        println!("{}: source before, now; log probability of the truth before, now: {told:?}", e.name);
        held.push((e.name, told));
    }
    // Where presses cost what was known before, holding on keeps more of it; `lump` has become better on its source,
    // too.
    for (name, told) in &held {
        let [(factory, adapt, ..), (_, keep, before, after)] = told[..] else { panic!("two of each") };
        assert!(adapt > factory || keep >= adapt - 0.03, "{name}: {told:?}");
        assert!(after > before, "{name}: who holds on learns all the same: {told:?}");
    }
    let gain: f64 = held.iter().filter(|(n, _)| *n != "lump").map(|(_, told)| told[1].1 - told[0].1).sum();
    assert!(gain > 0.15, "{held:?}");
}

#[test]
fn eval_reports_the_figures_of_the_task_and_run_answers_in_its_words() {
    for e in EXAMPLES {
        let out =
            hone().arg("eval").arg(bundle(e.name)).arg("--data").arg(dir(e.name).join("world")).arg("--json").output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let doc: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(doc["task"], e.task);
        // The same, sample by sample.
        let mut model = open(e.name);
        let world = world(e.name);
        let judged: Vec<Judged> = world
            .split("test")
            .map(|row| Judged {
                probabilities: probabilities(&model.see(&row.sample()).unwrap().logits),
                truth: model.class_of(&row.label).unwrap(),
                value: model.task().value(&row.label),
            })
            .collect();
        for (name, value) in model.task().measures(&judged).unwrap() {
            let found = doc["measures"][name].as_f64().unwrap_or_else(|| panic!("{}: no {name}", e.name));
            assert!((found - value).abs() < 1e-9, "{}: {name} {found} and {value}", e.name);
        }
        assert!((doc["accuracy"].as_f64().unwrap() - model.task().share_right(&judged)).abs() < 1e-9);
    }
    let says = |args: &[&str]| {
        let out = hone().arg("run").args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let tmp = tempfile::tempdir().unwrap();
    let csv = tmp.path().join("stone.csv");
    std::fs::write(&csv, "carat,cut,color,clarity,depth,table,width\n0.7,4,3,2,61.5,57,5.7\n").unwrap();
    let path = |p: &Path| p.display().to_string();
    let price = says(&[&path(&bundle("diamond")), "--sensor", &path(&csv)]);
    assert!(price.contains("doublings of 100 USD") && price.contains("four times in five"), "{price}");
    let strip = says(&[&path(&bundle("strip")), "--image", &path(&dir("strip").join("world/test-0000.png"))]);
    assert!(strip.contains("exactly these") && strip.lines().count() == 7, "{strip}");
    let match_ = says(&[&path(&bundle("emoji")), "--text", "panda"]);
    assert!(match_.lines().next().unwrap().contains("🐼"), "{match_}");
    let word = says(&[&path(&bundle("seven")), "--audio", &path(&dir("seven").join("world/test-0000.flac"))]);
    assert!(word.starts_with("quiet\n") || word.starts_with("seven\n"), "{word}");
}

#[test]
fn what_only_classes_have_is_refused_for_other_tasks_with_the_task_named() {
    let tmp = tempfile::tempdir().unwrap();
    let state = StateDir::at(tmp.path().join("s"));
    let mut app = App::open(open("diamond"), &state, Mode::Veto).unwrap();
    let why = app.change_classes(&ClassChange::Add { name: "priceless".into() }).unwrap_err().to_string();
    assert!(why.contains("score"), "{why}");
    drop(app);
    let explore = Settings { display: Display::Explore, ..Settings::default() };
    let why = App::open_with(open("diamond"), &state, explore).err().unwrap().to_string();
    assert!(why.contains("score") && why.contains("explore"), "{why}");
    let out = hone()
        .arg("tune")
        .arg(bundle("diamond"))
        .arg("--data")
        .arg(dir("diamond").join("world"))
        .arg("--state")
        .arg(tmp.path().join("t"))
        .output()
        .unwrap();
    fails(&out, 7, &["score"]);
}

#[test]
fn the_body_of_a_model_without_classes_learns_from_samples_that_hold_what_its_outputs_should_be() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data/learn");
    std::fs::create_dir_all(&data).unwrap();
    let model = open("diamond");
    for (i, row) in world("diamond").split("stream").take(40).enumerate() {
        let mut members = model.preprocessor().prepare(&row.sample()).unwrap().0;
        let wanted = row.label.trim().parse::<f32>().unwrap() + 3.0;
        members.push(("target".into(), Tensor::f32(&[1, 1], vec![wanted]).unwrap()));
        let bytes = write_npz(members.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        std::fs::write(data.join(format!("{i:02}.npz")), bytes).unwrap();
    }
    let tune = |objective: &str| {
        let mut c = hone();
        c.arg("tune").arg(bundle("diamond")).arg("--state").arg(tmp.path().join("state"));
        c.arg("--data").arg(tmp.path().join("data")).args(["--scope", "bias", "--objective", objective, "--json"]);
        c.args(["--lr", "0.05", "--epochs", "8", "--batch", "8"]).output().unwrap()
    };
    fails(&tune("ce"), 7, &["score", "mse", "bce", "contrastive"]);
    fails(&tune("contrastive"), 3, &["two rows of every input"]);
    let out = tune("mse");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let tuned: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(tuned["published"], true, "{tuned}");
    assert!(tuned["after"].as_f64() < tuned["before"].as_f64(), "{tuned}");
    let reason = tuned["reason"].as_str().unwrap();
    assert!(reason.contains("validation samples fell from"), "{reason}");
    // It is in use: the same answers are larger now.
    let mut app = App::open(open("diamond"), &StateDir::at(tmp.path().join("state")), Mode::Veto).unwrap();
    assert_eq!(app.current().unwrap().as_str(), tuned["adapter"].as_str().unwrap());
    let row = world("diamond").split("test").next().unwrap().clone();
    let (before, now) = (open("diamond").see(&row.sample()).unwrap(), app.answer(&row.sample()).unwrap().seen);
    assert_ne!(before.logits, now.logits);
}
