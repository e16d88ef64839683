//! Several people press on the same answers: what each of them says, how far each can be trusted, and what is left when
//! one is taken out.
use std::path::Path;

use hone_runtime::Bundle;
use hone_runtime::app::App;
use hone_runtime::app::redacted::learned_from_redacted;
use hone_runtime::dataset::Dataset;
use hone_runtime::journal::{Age, Press, PressKind, Source};
use hone_runtime::learn::{Mode, OBJECTIVES};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use hone_runtime::tensor::Tensor;
use hone_runtime::tune::{Examples, Target};

use crate::support::{bundle, hone, model_dir, said};

fn open(state: &Path) -> App {
    let model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    App::open(model, &StateDir::at(state), Mode::Veto).unwrap()
}

/// Two raters judge every answer, the second wrongly two times in five; every other answer the first one holds to
/// confirm, some seconds after the click.
fn two_raters(app: &mut App, answers: usize) {
    let world = Dataset::from_dir(&model_dir().join("worlds/new-pen")).unwrap();
    for (i, row) in world.split("stream").take(answers).enumerate() {
        let answer = app.answer(&row.sample()).unwrap();
        let id = app.show(&answer).unwrap();
        let right = app.classes().name(answer.class) == row.label;
        let by = |source, up| Press::new(Some(id), PressKind::Thumb { up }, source);
        app.press(&Press { age: Age::Exact { ms: 9_000 }, ..by(Source::Stdin, right) }).unwrap();
        app.press(&Press { age: Age::Exact { ms: 8_000 }, ..by(Source::Web, right != (i % 5 < 2)) }).unwrap();
        if i % 2 == 0 {
            app.press(&Press { confirmed: true, ..by(Source::Stdin, right) }).unwrap();
        }
    }
}

#[test]
fn two_sources_of_which_one_is_wrong_two_times_in_five_are_trusted_each_by_its_own_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut app = open(dir.path());
    two_raters(&mut app, 100);
    let raters = app.learner().raters().clone();
    let (careful, careless) = (raters["stdin"], raters["web"]);
    assert_eq!((careful.checked, careful.wrong, careless.checked, careless.wrong), (50, 0, 50, 20));
    assert!(careful.epsilon(0.1) < 0.02 && careless.epsilon(0.1) > 0.3, "{careful:?} {careless:?}");
    assert_eq!(app.learner().training_predictions(), 50, "what was confirmed never trains");
    drop(app);
    assert_eq!(*open(dir.path()).learner().raters(), raters, "a function of the journal");
}

#[test]
fn where_two_disagree_a_body_learns_what_the_one_says_who_is_mostly_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut app = open(dir.path());
    app.keep_inputs("64MiB".parse().unwrap()).unwrap();
    two_raters(&mut app, 100);
    let odds = |rater: &str| {
        let epsilon = app.learner().epsilon_of(rater).unwrap();
        (1.0 - epsilon) / epsilon
    };
    let (careful, careless) = (odds("stdin"), odds("web"));
    let objective = OBJECTIVES.iter().find(|o| o.name == "posterior").unwrap();
    let mut presses = app.presses(objective, None).unwrap();
    let mut model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    presses.refer_to(&mut model).unwrap();
    // The model knows nothing, so that a target is what the presses say and nothing else.
    let classes = app.learner().base().classes();
    presses.renew(&mut |_| Ok(Tensor::f32(&[1, classes], vec![0.0; classes]).unwrap())).unwrap();
    let (mut agree, mut apart) = (0, 0);
    let training: Vec<usize> = (0..presses.count()).filter(|&i| presses.class(i).is_none()).collect();
    for i in training {
        let Target::Values(target) = presses.example(i).unwrap().target else { panic!("posterior aims at beliefs") };
        let beliefs = target.as_f32().unwrap().iter().map(|&p| f64::from(p));
        let (least, most) = beliefs.fold((f64::INFINITY, 0.0_f64), |(lo, hi), p| (lo.min(p), hi.max(p)));
        let told = most / least;
        let near = |odds: f64| (told / odds - 1.0).abs() < 1e-3;
        agree += usize::from(near(careful * careless));
        apart += usize::from(near(careful / careless));
        assert!(near(careful * careless) || near(careful / careless), "{told}: {careful} and {careless}");
    }
    assert_eq!((agree, apart), (30, 20), "with one rate for both, where they disagree they would say nothing");
}

#[test]
fn what_a_liar_taught_is_gone_with_a_refit_and_said_to_stay_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path());
    let world = Dataset::from_dir(&model_dir().join("worlds/new-pen")).unwrap();
    let mut app = open(dir.path());
    let press = |app: &mut App, row, class: Option<u32>, source| {
        let answer = app.answer(&hone_runtime::dataset::Row::sample(row)).unwrap();
        let id = app.show(&answer).unwrap();
        let right = app.classes().class_of(&row.label).unwrap() as u32;
        let class = class.unwrap_or(right);
        app.press(&Press::new(Some(id), PressKind::Correction { class }, source)).unwrap();
    };
    let rows: Vec<_> = world.split("stream").collect();
    for row in &rows[..10] {
        press(&mut app, row, None, Source::Stdin);
    }
    let honest = app.adapters().list().unwrap().len();
    assert!(honest > 0 && app.current().is_some());
    // All is a seven to him; nobody has confirmed anything, so the gate lets it pass.
    for row in &rows[10..40] {
        press(&mut app, row, Some(7), Source::Web);
    }
    let poisoned = app.current().cloned().unwrap();
    let sevens = |app: &mut App| {
        let answers = rows[40..80].iter().map(|row| app.answer(&row.sample()).unwrap().class);
        answers.filter(|&class| class == 7).count()
    };
    assert!(sevens(&mut app) > 10, "the liar is believed");
    drop(app);
    let redact = |more: &[&str]| {
        let out = hone()
            .args(["feedback", "redact", "--source", "web", "--state", dir.path().to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", said(&out));
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (out, err) = redact(&[]);
    assert!(out.starts_with("30 records"), "{out}");
    assert!(err.contains(&format!("{poisoned} (in use)")) && err.contains("--refit"), "{err}");
    assert_eq!(open(dir.path()).current(), Some(&poisoned), "nothing has changed but the journal");
    let (out, err) = redact(&["--refit", bundle().to_str().unwrap()]);
    assert!(out.contains("fitted anew to 10 presses") && out.contains(poisoned.as_str()), "{out}");
    assert!(!err.contains("stay"), "{err}");
    let mut app = open(dir.path());
    assert_ne!(app.current(), Some(&poisoned));
    assert!(app.adapters().load(&poisoned).is_err(), "it cannot be chosen again");
    assert!(sevens(&mut app) < 10);
    assert!(app.current().is_some(), "what the others taught is in use");
    assert_eq!(app.learner().published(), &app.learner().refit().unwrap());
    let left = app.adapters().list().unwrap();
    assert_eq!(left.len(), honest + 1, "those from before the liar, and the new one");
    let reader = hone_runtime::journal::Reader::open(&state).unwrap();
    assert!(learned_from_redacted(&reader, app.adapters()).unwrap().is_empty());
    assert!(reader.verify().unwrap().is_sound());
}

#[test]
fn a_refit_after_a_redaction_does_not_ask_whether_it_is_worse_than_the_poisoned_head() {
    let dir = tempfile::tempdir().unwrap();
    let world = Dataset::from_dir(&model_dir().join("worlds/new-pen")).unwrap();
    let mut app = open(dir.path());
    let rows: Vec<_> = world.split("stream").collect();
    // He teaches his sevens, and confirms them: by his own evidence every other head is worse.
    for (i, row) in rows[..40].iter().enumerate() {
        let answer = app.answer(&row.sample()).unwrap();
        let id = app.show(&answer).unwrap();
        let press = Press::new(Some(id), PressKind::Correction { class: 7 }, Source::Web);
        app.press(&Press { badge: Some(9), ..press }).unwrap();
        // What somebody else has confirmed about the same is evidence that stays.
        if i % 5 == 4 {
            let answer = app.answer(&row.sample()).unwrap();
            let id = app.show(&answer).unwrap();
            let press = Press::new(Some(id), PressKind::Correction { class: 7 }, Source::Key);
            app.press(&Press { confirmed: true, ..press }).unwrap();
        }
    }
    let poisoned = app.current().cloned().expect("nothing speaks against it");
    app.journal().lock().unwrap().redact(&hone_runtime::journal::Redact::Badge(9)).unwrap();
    drop(app);
    let mut app = open(dir.path());
    assert_eq!(app.current(), Some(&poisoned));
    let (_, removed) = app.refit_redacted().unwrap();
    assert!(removed.contains(&poisoned) && app.current().is_none(), "the factory head is what is left");
    assert!(app.learner().published().is_zero());
}
