//! Several people press on the same answers: what each of them says, how far each can be trusted, and what is left when
//! one is taken out.
use std::path::Path;

use hone_runtime::Bundle;
use hone_runtime::app::App;
use hone_runtime::dataset::Dataset;
use hone_runtime::journal::{Age, Press, PressKind, Source};
use hone_runtime::learn::Mode;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

use crate::support::{bundle, model_dir};

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
