//! Retention, random features, asking, runner-ups and off-policy estimates on the shipped model, through App and
//! program.
use std::path::{Path, PathBuf};

use hone_runtime::app::question::Ask;
use hone_runtime::app::{App, AppError, Learned, Settings};
use hone_runtime::bundle::{Bundle, Overwrite};
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::export::with_source;
use hone_runtime::journal::{Press, PressKind, Reader, Source};
use hone_runtime::learn::{Display, Mode, Retain};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde_json::Value;

use crate::support::{bundle, copy_dir, fails, hone, model_dir, said};

fn open_at(bundle: &Path, state: &Path, settings: Settings) -> Result<App, AppError> {
    let model = Model::open(Bundle::open(bundle).unwrap(), SessionOptions::default()).unwrap();
    App::open_with(model, &StateDir::at(state), settings)
}

fn open(state: &Path, settings: Settings) -> App {
    open_at(&bundle(), state, settings).unwrap()
}

fn world(name: &str) -> Dataset {
    Dataset::from_dir(&model_dir().join("worlds").join(name)).unwrap()
}

/// Shows what the settings show and says of it what is true; whether the most probable answer is right.
fn thumb(app: &mut App, row: &Row, confirmed: bool) -> bool {
    let (press, right) = judged(app, row, confirmed);
    app.press(&press).unwrap();
    right
}

/// As [`thumb`], the press not yet made.
fn judged(app: &mut App, row: &Row, confirmed: bool) -> (Press, bool) {
    let answer = app.answer(&row.sample()).unwrap();
    let right = app.classes().name(answer.class) == row.label;
    let answer = app.explore(answer);
    let id = app.show(&answer).unwrap();
    let up = app.classes().name(answer.class) == row.label;
    (Press { confirmed, ..Press::new(Some(id), PressKind::Thumb { up }, Source::Stdin) }, right)
}

fn correct(app: &mut App, row: &Row) {
    let answer = app.answer(&row.sample()).unwrap();
    let id = app.show(&answer).unwrap();
    let class = app.classes().class_of(&row.label).unwrap() as u32;
    app.press(&Press::new(Some(id), PressKind::Correction { class }, Source::Stdin)).unwrap();
}

/// The shipped bundle with a coreset made from one half of its own ground; the other half measures.
fn with_coreset(dir: &Path) -> (PathBuf, Dataset) {
    let mut own = world("factory");
    for (i, row) in own.rows.iter_mut().enumerate() {
        row.split = if i % 2 == 0 { "source" } else { "test" }.into();
    }
    let (bundle, report) = with_source(Bundle::open(bundle()).unwrap(), &own, "source").unwrap();
    assert_eq!((report.train, report.probe), (120, 200));
    assert!(report.accuracy > 0.97, "{report:?}");
    let path = dir.join("with-coreset.hone");
    bundle.write_dir(&path, Overwrite::Refuse).unwrap();
    (path, own)
}

#[test]
fn what_is_forgotten_is_told_and_retaining_keeps_more_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, own) = with_coreset(dir.path());
    let data = world("left-handed");
    let mut figures = Vec::new();
    for retain in [Retain::Adapt, Retain::Keep] {
        let state = dir.path().join(retain.name());
        let settings = Settings { retain: Some(retain), gate: Mode::Off, ..Settings::default() };
        let mut app = open_at(&bundle, &state, settings.clone()).unwrap();
        data.split("stream").take(80).for_each(|row| correct(&mut app, row));
        let Learned::Decided { kept: Some(kept), .. } = app.decide().unwrap() else {
            panic!("the bundle has a coreset")
        };
        let rows: Vec<&Row> = own.split("test").step_by(4).collect();
        let right = |app: &mut App, row: &Row| {
            let a = app.answer(&row.sample()).unwrap();
            app.classes().name(a.class) == row.label
        };
        let measured = rows.iter().filter(|r| right(&mut app, r)).count() as f64 / rows.len() as f64;
        // Samples of 200 and 100: standard errors of 0.035 and 0.05 where half is kept.
        assert!((kept.now - measured).abs() < 0.14, "{retain:?}: told {kept:?}, measured {measured}");
        figures.push((kept.now, measured));
        let (id, theta) = (app.current().unwrap().clone(), app.learner().published().clone());
        let provenance = app.adapters().load(&id).unwrap().provenance;
        assert_eq!(provenance.retain, retain);
        assert_eq!(app.recompute(provenance.journal_seq).unwrap(), theta, "the source is part of the function");
        drop(app);
        let explained = hone()
            .args(["adapter", "explain", bundle.to_str().unwrap(), id.as_str(), "--state", state.to_str().unwrap()])
            .output()
            .unwrap();
        let text = String::from_utf8(explained.stdout).unwrap();
        assert!(text.contains("kept_candidate") && text.contains("kept_factory"), "{text}");
        let eval = hone()
            .args(["eval", bundle.to_str().unwrap(), "--state", state.to_str().unwrap(), "--json", "--data"])
            .arg(one_sample(dir.path(), &data))
            .output()
            .unwrap();
        let figures: Value = serde_json::from_slice(&eval.stdout).unwrap();
        assert_eq!(figures["kept"]["now"], kept.now);
        let app = open_at(&bundle, &state, Settings { retain: None, ..settings }).unwrap();
        assert_eq!(app.learner().published(), &theta, "a restart");
        assert_eq!(app.retain(), retain, "as the adapter in use was learned");
    }
    println!("{figures:?}");
    assert!(figures[1].1 > figures[0].1 + 0.05, "keep and adapt: {figures:?}");
}

/// A data set of one picture.
fn one_sample(dir: &Path, of: &Dataset) -> PathBuf {
    let one = dir.join("one");
    std::fs::create_dir_all(&one).unwrap();
    let row = of.split("test").next().unwrap();
    std::fs::write(one.join("a.png"), row.image.as_ref().unwrap()).unwrap();
    std::fs::write(one.join("index.csv"), format!("split,label,image\ntest,{},a.png\n", row.label)).unwrap();
    one
}

#[test]
fn what_the_shipped_model_forgets_is_told_with_every_decision() {
    let dir = tempfile::tempdir().unwrap();
    let mut app = open(dir.path(), Settings::default());
    world("left-handed").split("stream").take(20).for_each(|row| correct(&mut app, row));
    let Learned::Decided { kept: Some(kept), .. } = app.decide().unwrap() else { panic!("it ships source samples") };
    assert_eq!(kept.n, 200);
    assert!(kept.factory > 0.98 && kept.now < kept.factory, "{kept:?}");
    // No picture or sound is in both; typed words recur.
    let coreset = app.model().coreset().unwrap();
    assert_eq!(coreset.train.len(), 120);
    let also = coreset.probe.iter().filter(|p| coreset.train.iter().any(|t| t.feature == p.feature)).count();
    assert!(also < 10, "{also} of 200");
}

/// The shipped model, made from its sources without the samples of its source.
fn without_coreset(dir: &Path) -> PathBuf {
    let (config, path) = (dir.join("config"), dir.join("without.hone"));
    copy_dir(&model_dir().join("src/config"), &config);
    std::fs::remove_file(config.join("coreset.safetensors")).unwrap();
    let mut export = hone();
    export.arg("export").arg(model_dir().join("src/model.onnx")).arg("-o").arg(&path).arg("--config").arg(&config);
    let out = export.arg("--check").arg(model_dir().join("src/check")).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    path
}

#[test]
fn nothing_to_retain_and_nothing_to_measure_by_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { retain: Some(Retain::Keep), ..Settings::default() };
    let bundle = without_coreset(dir.path());
    let state = dir.path().join("state").to_str().unwrap().to_string();
    let e = open_at(&bundle, Path::new(&state), settings).err().unwrap();
    assert!(e.to_string().contains("hone export --source"), "{e}");
    let out = hone().args(["tune", bundle.to_str().unwrap(), "--state", &state, "--retain", "keep"]).output().unwrap();
    fails(&out, 2, &["no source samples", "`keep`"]);
    let mut app = open_at(&bundle, Path::new(&state), Settings::default()).unwrap();
    world("new-pen").split("stream").take(5).for_each(|row| correct(&mut app, row));
    drop(app);
    let out = hone().args(["tune", bundle.to_str().unwrap(), "--state", &state, "--dry-run"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("forgetting is not known"), "{text}{}", said(&out));
}

#[test]
fn random_features_are_learned_on_kept_over_restarts_and_refused_where_they_cannot_be() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let with = |n| Settings { random_features: Some(n), gate: Mode::Off, ..Settings::default() };
    // First a linear one, then wider on top of it: the answers are the same until more is said.
    let mut app = open(dir.path(), with(0));
    data.split("stream").take(10).for_each(|row| correct(&mut app, row));
    app.decide().unwrap();
    let row = data.split("test").next().unwrap();
    let linear = app.answer(&row.sample()).unwrap();
    drop(app);
    let mut app = open(dir.path(), with(96));
    let wide = app.answer(&row.sample()).unwrap();
    let far = linear.served.iter().zip(&wide.served).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-5, "{far}");
    data.split("stream").skip(10).take(40).for_each(|row| correct(&mut app, row));
    app.decide().unwrap();
    assert_eq!(app.learner().published().width(), 128 + 96 + 1);
    let now = app.answer(&row.sample()).unwrap().served;
    drop(app);
    // Without a word it goes on as it was.
    let mut app = open(dir.path(), Settings::default());
    assert_eq!(app.answer(&row.sample()).unwrap().served, now);
    drop(app);
    let e = open_at(&bundle(), dir.path(), with(64)).err().unwrap();
    assert!(e.to_string().contains("96 random features, not 64"), "{e}");
    let image = dir.path().join("a.png");
    std::fs::write(&image, row.image.as_ref().unwrap()).unwrap();
    let out = hone()
        .args(["run", bundle().to_str().unwrap(), "--image", image.to_str().unwrap(), "--json"])
        .args(["--state", dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

#[test]
fn the_least_sure_answers_are_asked_about_and_evidence_is_asked_for_when_it_is_due() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let mut app = open(dir.path(), Settings { ask: Some(0.2), ..Settings::default() });
    let (mut asked, mut others, mut confirm) = (Vec::new(), Vec::new(), 0);
    for row in data.split("stream").take(120) {
        let answer = app.answer(&row.sample()).unwrap();
        let second = answer.probabilities[answer.ranking()[1]];
        let asks = app.ask(&answer);
        match asks {
            Ask::Right => asked.push(answer.p() - second),
            Ask::Nothing => others.push(answer.p() - second),
            Ask::Confirm => confirm += 1,
            Ask::Which { .. } => panic!("nothing is to be held back"),
        }
        let id = app.show(&answer).unwrap();
        let up = app.classes().name(answer.class) == row.label;
        let confirmed = asks == Ask::Confirm;
        app.press(&Press { confirmed, ..Press::new(Some(id), PressKind::Thumb { up }, Source::Stdin) }).unwrap();
    }
    assert!(!asked.is_empty() && asked.len() <= 24, "{} of 120", asked.len());
    let mean = |of: &[f32]| of.iter().sum::<f32>() / of.len() as f32;
    assert!(mean(&asked) < 0.5 * mean(&others), "{} and {}", mean(&asked), mean(&others));
    assert!((8..=14).contains(&confirm), "every tenth of 120 presses is evidence: {confirm}");
}

#[test]
fn confidence_follows_confirmed_presses_and_what_is_not_sure_enough_is_held_back() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let settings = Settings { abstain: Some(0.6), ..Settings::default() };
    let mut app = open(dir.path(), settings.clone());
    assert_eq!(app.temperature().n, 0);
    for row in data.split("stream").take(40) {
        thumb(&mut app, row, true);
    }
    let fitted = app.temperature();
    assert!(fitted.n > 30, "{fitted:?}");
    let (mut held, mut shown) = ((0, 0), (0, 0));
    for row in data.split("test").take(200) {
        let answer = app.answer(&row.sample()).unwrap();
        let scaled: Vec<f32> = answer.served.iter().map(|f| f / fitted.t as f32).collect();
        assert!((answer.confidence - hone_runtime::model::probabilities(&scaled)[answer.class]).abs() < 1e-4);
        let right = usize::from(app.classes().name(answer.class) == row.label);
        match app.ask(&answer) {
            Ask::Which { or } => {
                assert!(answer.confidence < 0.6 && or == answer.ranking()[1]);
                held = (held.0 + right, held.1 + 1);
            }
            _ => shown = (shown.0 + right, shown.1 + 1),
        }
    }
    let share = |(right, n): (usize, usize)| right as f64 / f64::from(u32::try_from(n).unwrap());
    assert!(held.1 > 5 && share(held) + 0.2 < share(shown), "held back {held:?}, shown {shown:?}");
    drop(app);
    assert_eq!(open(dir.path(), settings).temperature(), fitted, "a function of the journal");

    // Where a person means other digits by the same strokes, the model is far surer than it is right.
    let (dir, data) = (tempfile::tempdir().unwrap(), world("left-handed"));
    let mut app = open(dir.path(), Settings::default());
    for row in data.split("stream").take(30) {
        thumb(&mut app, row, true);
    }
    assert!(app.temperature().t > 1.5, "{:?}", app.temperature());
}

#[test]
fn after_a_thumbs_down_the_next_in_line_is_offered_once_and_learned_as_its_own_answer() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let mut app = open(dir.path(), Settings::default());
    let row = data
        .split("stream")
        .find(|r| {
            let a = app.answer(&r.sample()).unwrap();
            let second = a.ranking()[1];
            app.classes().name(a.class) != r.label && app.classes().name(second) == r.label
        })
        .expect("a sample whose truth is second");
    assert!(app.runner_up().is_none());
    let answer = app.answer(&row.sample()).unwrap();
    let id = app.show(&answer).unwrap();
    assert!(app.runner_up().is_none(), "nobody has refused it");
    app.press(&Press::new(Some(id), PressKind::Thumb { up: false }, Source::Stdin)).unwrap();
    let (after, offered) = app.runner_up().expect("the next in line");
    assert_eq!((after, offered.class), (id, answer.ranking()[1]));
    let second = app.offer(&offered, after).unwrap();
    app.press(&Press::new(Some(second), PressKind::Thumb { up: true }, Source::Stdin)).unwrap();
    assert_eq!(app.learner().training_predictions(), 2);
    assert!(app.runner_up().is_none());
    // Refused too: that was all that is offered.
    let id = app.show(&answer).unwrap();
    app.press(&Press::new(Some(id), PressKind::Thumb { up: false }, Source::Stdin)).unwrap();
    let (after, offered) = app.runner_up().unwrap();
    let second = app.offer(&offered, after).unwrap();
    app.press(&Press::new(Some(second), PressKind::Thumb { up: false }, Source::Stdin)).unwrap();
    assert!(app.runner_up().is_none());
    drop(app);
    let presses = Reader::open(&StateDir::at(dir.path())).unwrap().effective_presses().unwrap();
    assert_eq!(presses.iter().map(|p| p.after.is_some()).collect::<Vec<_>>(), [false, true, false, true]);
}

#[test]
fn a_log_that_explored_says_how_good_heads_are_and_one_that_did_not_is_refused() {
    let (dir, data) = (tempfile::tempdir().unwrap(), world("new-pen"));
    let (explored, certain) = (dir.path().join("explored"), dir.path().join("certain"));
    let bundle = bundle();
    let estimate = |state: &Path, more: &[&str]| {
        let args = ["eval", bundle.to_str().unwrap(), "--off-policy", "--json", "--state", state.to_str().unwrap()];
        hone().args(args).args(more).output().unwrap()
    };
    let mut app = open(&certain, Settings::default());
    for row in data.split("stream").take(10) {
        thumb(&mut app, row, false);
    }
    drop(app);
    fails(&estimate(&certain, &["--compare", "factory", "factory"]), 7, &["--display explore", "no estimate is made"]);
    fails(&estimate(&certain, &[]), 1, &["came later"]);

    // Nothing is learned on the way, which would take most of the time: the whole log is about the shipped head.
    let settings = Settings { display: Display::Explore, seed: Some(5), ..Settings::default() };
    let mut app = open(&explored, settings);
    let rows: Vec<&Row> = data.split("stream").take(250).collect();
    let mut right = 0;
    for row in &rows {
        let (press, is_right) = judged(&mut app, row, false);
        app.journal().lock().unwrap().press(&press).unwrap();
        right += usize::from(is_right);
    }
    assert_eq!(app.current(), None);
    let truth = right as f64 / rows.len() as f64;
    drop(app);
    let out = estimate(&explored, &["--compare", "factory", "factory"]);
    assert!(out.status.success(), "{}", said(&out));
    let document: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document["schema"], "hone.off-policy/1");
    let row = &document["rows"][0];
    assert_eq!(row["n"].as_u64().unwrap() + row["certain"].as_u64().unwrap(), 250);
    for name in ["snips", "dr"] {
        let at = |key: &str| row[name][key].as_f64().unwrap();
        assert!(
            at("low") <= truth && truth <= at("high"),
            "{name}: {} [{}, {}], truth {truth}",
            at("value"),
            at("low"),
            at("high")
        );
        assert!(at("high") - at("low") < 0.3);
    }
    assert!(row["effective_sample_size"].as_f64().unwrap() > 50.0);
    let text = hone()
        .args(["eval", bundle.to_str().unwrap(), "--off-policy", "--state", explored.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).contains("doubly robust"), "{}", said(&text));
}

#[test]
fn thumbs_that_contradict_each_other_are_said_to_once_and_those_with_every_tenth_wrong_are_not() {
    let data = world("new-pen");
    let told = |wrong_of_ten: u64| -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        let mut app = open(dir.path(), Settings { gate: Mode::Off, ..Settings::default() });
        let mut told = Vec::new();
        for (t, row) in data.split("stream").take(220).enumerate() {
            let (press, _) = judged(&mut app, row, false);
            let PressKind::Thumb { up } = press.said else { panic!("{press:?}") };
            // 7 t mod 10 goes through every digit, in an order that has nothing to do with the data's.
            let up = up != (7 * t as u64 % 10 < wrong_of_ten);
            for learned in app.press(&Press { said: PressKind::Thumb { up }, ..press }).unwrap().1 {
                if let Learned::Contradicted { apart } = learned {
                    told.push(apart);
                }
            }
        }
        told
    };
    assert!(told(1).is_empty());
    let said = told(4);
    assert!(said.len() == 1 && said[0] > 0.37, "{said:?}");
}

#[test]
fn an_adapter_is_a_function_of_the_journal_as_it_was_when_minds_changed_and_presses_were_taken_back_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut app = open(&dir.path().join("state"), Settings::default());
    let data = world("new-pen");
    let mut last = None;
    for row in data.split("stream").take(9) {
        let (press, _) = judged(&mut app, row, false);
        last = Some((app.press(&press).unwrap().0, press));
    }
    let (id, press) = last.unwrap();
    let Learned::Decided { changed: Some(_), .. } = app.decide().unwrap() else { panic!("nothing is published") };
    let of = |app: &App| app.adapters().current().unwrap().unwrap().provenance.journal_seq;
    let (seq, theta) = (of(&app), app.learner().published().clone());
    // A second thought within the window takes the place of a press the adapter was made of.
    let PressKind::Thumb { up } = press.said else { panic!("{press:?}") };
    let (other, _) = app.press(&Press { said: PressKind::Thumb { up: !up }, ..press }).unwrap();
    let counting = app.journal().lock().unwrap().reader().effective_presses().unwrap();
    assert!(counting.iter().all(|p| p.press_id != id) && counting.iter().any(|p| p.press_id == other));
    assert_eq!(app.recompute(seq).unwrap(), theta);
    // And one made after a press was taken back is made without it, though that press is older than the adapter.
    let (_, learned) = app.press(&Press::new(None, PressKind::Undo { press_id: Some(other) }, Source::Stdin)).unwrap();
    assert!(learned.iter().any(|l| matches!(l, Learned::Decided { changed: Some(_), .. })), "{learned:?}");
    assert!(of(&app) > seq);
    assert_eq!(app.recompute(of(&app)).unwrap(), *app.learner().published());
}
