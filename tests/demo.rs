//! The demo as a stranger sees it, and what it promises.
use crate::support::hone;

fn demo(args: &[&str]) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let out = hone().args(["demo", "--json", "--state"]).arg(dir.path().join("s")).args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let doc: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(doc["schema"], "hone.demo/1");
    assert_eq!(doc["lost_presses"], 0);
    assert_eq!(doc["duplicated_presses"], 0);
    assert_eq!(doc["journal_sound"], true);
    doc
}

fn gain(d: &serde_json::Value) -> f64 {
    d["accuracy_after"].as_f64().unwrap() - d["accuracy_before"].as_f64().unwrap()
}

#[test]
fn two_hundred_thumbs_with_every_tenth_wrong_teach_a_new_pen() {
    let gains = ["11", "12", "13"].map(|seed| gain(&demo(&["--world", "new-pen", "--seed", seed])));
    assert!(gains.iter().sum::<f64>() / 3.0 >= 0.15, "{gains:?}");
}

#[test]
fn two_hundred_thumbs_with_every_tenth_wrong_teach_four_languages_the_model_never_heard() {
    let languages = ["es", "de", "fr", "it"];
    let gains = languages.map(|language| {
        let d = demo(&["--world", "new-language", "--language", language, "--seed", "11"]);
        assert_eq!((&d["world"], &d["language"]), (&"new-language".into(), &language.into()));
        gain(&d)
    });
    assert!(gains.iter().sum::<f64>() / 4.0 >= 0.20, "{gains:?}");
}

#[test]
fn corrections_teach_more_than_thumbs_in_a_world_that_swaps_classes() {
    let thumbs = demo(&["--world", "left-handed", "--presses", "100"]);
    let corrections = demo(&["--world", "left-handed", "--presses", "100", "--press", "corrections"]);
    assert!(corrections["accuracy_after"].as_f64() > thumbs["accuracy_after"].as_f64(), "{thumbs} {corrections}");
}

#[test]
fn the_same_seed_gives_the_same_accuracy() {
    let once = demo(&["--world", "new-pen", "--presses", "60", "--seed", "5"]);
    let again = demo(&["--world", "new-pen", "--presses", "60", "--seed", "5"]);
    assert_eq!(once["accuracy_after"], again["accuracy_after"]);
    assert_eq!(once["source_after"], again["source_after"]);
}

#[test]
fn a_world_that_does_not_exist_is_a_usage_error_that_lists_those_that_do() {
    let out = hone().args(["demo", "--world", "mars"]).output().unwrap();
    crate::support::fails(&out, 2, &["new-pen", "left-handed", "new-voice", "new-language"]);
}

#[test]
fn a_language_nobody_speaks_and_one_where_nobody_speaks_are_usage_errors() {
    let out = hone().args(["demo", "--world", "new-language", "--language", "tlh"]).output().unwrap();
    crate::support::fails(&out, 2, &["tlh", "de, es, fr, it"]);
    let out = hone().args(["demo", "--world", "new-pen", "--language", "de"]).output().unwrap();
    crate::support::fails(&out, 2, &["--language", "new-language", "new-pen"]);
}
