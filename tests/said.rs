//! What can be said beside thumbs and corrections: a preference, an example given without an answer.
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{bundle, fails, hone, model_dir, said};

/// Labels and pictures of a split of somebody's handwriting.
fn pictures(split: &str) -> Vec<(String, PathBuf)> {
    let world = model_dir().join("worlds/new-pen");
    let index = fs::read_to_string(world.join("index.csv")).unwrap();
    let rows = index.lines().filter(|l| l.starts_with(&format!("{split},")));
    let of = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[1].to_string(), world.join(fields[2]))
    };
    rows.map(of).collect()
}

fn well(out: Output) -> String {
    assert!(out.status.success(), "{}", said(&out));
    String::from_utf8(out.stdout).unwrap()
}

fn feedback(state: &Path, args: &[&str]) -> Output {
    hone().arg("feedback").args(args).arg("--state").arg(state).output().unwrap()
}

fn demonstrate(state: &Path, label: &str, picture: &Path, more: &[&str]) -> Output {
    let mut c = hone();
    c.args(["feedback", "demonstrate"]).arg(bundle()).arg(label).arg("--image").arg(picture).args(more);
    c.arg("--state").arg(state).output().unwrap()
}

#[test]
fn examples_given_without_an_answer_teach_a_hand_and_confirmed_ones_judge() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    for (i, (label, picture)) in pictures("stream").iter().take(40).enumerate() {
        let emphasis: &[&str] = if i % 10 == 9 { &["--confirmed"] } else { &[] };
        let told = well(demonstrate(&state, label, picture, emphasis));
        assert!(told.contains(&format!("an example of {label}")), "{told}");
    }
    let tuned: Value = serde_json::from_str(&well(
        hone().arg("tune").arg(bundle()).arg("--state").arg(&state).args(["--dry-run", "--json"]).output().unwrap(),
    ))
    .unwrap();
    assert_eq!((&tuned["presses"], &tuned["confirmed"]), (&36.into(), &4.into()), "{tuned}");
    let test = dir.path().join("test");
    for (i, (label, picture)) in pictures("test").iter().take(200).enumerate() {
        fs::create_dir_all(test.join(label)).unwrap();
        fs::copy(picture, test.join(label).join(format!("{i}.png"))).unwrap();
    }
    let accuracy = |state: Option<&Path>| {
        let mut c = hone();
        c.arg("eval").arg(bundle()).arg("--data").arg(&test).arg("--json");
        if let Some(state) = state {
            c.arg("--state").arg(state);
        }
        let figures: Value = serde_json::from_str(&well(c.output().unwrap())).unwrap();
        figures["accuracy"].as_f64().unwrap()
    };
    let (before, after) = (accuracy(None), accuracy(Some(&state)));
    assert!(after > before + 0.05, "{before} before, {after} after");

    let (label, picture) = &pictures("stream")[0];
    fails(&demonstrate(&state, "eleven", picture, &[]), 2, &["eleven", "0, 1, 2"]);
    fails(&demonstrate(&state, label, &dir.path().join("none.png"), &[]), 3, &["none.png"]);
    // The newest thing said by command is taken back as anything else is.
    well(feedback(&state, &["add", "--undo"]));
    assert!(well(feedback(&state, &["list"])).contains("shows class"), "as the list tells examples");
}

#[test]
fn a_preference_is_recorded_learned_from_and_refused_for_the_answer_itself() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    well(hone().args(["demo", "--presses", "12", "--json", "--state"]).arg(&state).output().unwrap());
    let shown = |id: &str| -> String {
        let story: Value = serde_json::from_str(&well(feedback(&state, &["show", id, "--json"]))).unwrap();
        story["class"].to_string()
    };
    let shown = shown("1");
    let other = if shown == "7" { "2" } else { "7" };
    let tell = |over: &str| feedback(&state, &["add", "--prediction", "1", "--rather-than", over]);
    fails(&tell(&shown), 2, &["two different classes"]);
    fails(&tell("10"), 2, &["no class number below 10"]);
    let objective = |name: &str| {
        let mut c = hone();
        c.arg("tune").arg(bundle()).arg("--state").arg(&state).args(["--objective", name, "--dry-run", "--json"]);
        c.output().unwrap()
    };
    fails(&objective("dpo"), 1, &["nothing was said yet"]);
    well(tell(other));
    assert!(well(feedback(&state, &["list"])).contains(&format!("rather than class {other}")));
    let tuned: Value = serde_json::from_str(&well(objective("dpo"))).unwrap();
    assert_eq!(tuned["presses"], 1, "thumbs say nothing to dpo: {tuned}");
    assert!(tuned["theta_norm"].as_f64().unwrap() > 0.0);
}

#[test]
fn lines_typed_into_the_loop_give_examples_of_what_is_seen_and_preferences_about_what_was_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (state, frames) = (dir.path().join("state"), dir.path().join("frames"));
    fs::create_dir(&frames).unwrap();
    for (i, (_, picture)) in pictures("stream").iter().filter(|(l, _)| l == "3").take(60).enumerate() {
        fs::copy(picture, frames.join(format!("{i:03}.png"))).unwrap();
    }
    let mut listen = hone();
    // Nothing is shown before somebody asks for it.
    listen.arg("listen").arg(bundle()).arg("--state").arg(&state).args(["--stdin", "--hold", "1000", "--jsonl"]);
    listen.args(["--keep-inputs", "8MiB", "--camera"]).arg(format!("fps=10,file:{}", frames.display()));
    let mut child = listen.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut to, err) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
    let writer = std::thread::spawn(move || {
        let mut told = BufReader::new(err).lines();
        assert!(told.any(|line| line.unwrap().starts_with("hone listens")));
        // The first frame is answered.
        std::thread::sleep(Duration::from_secs(1));
        for line in ["rather than 0", "this is 3", "! this is 3", "this is nothing", "show", "rather than 0", "quit"] {
            writeln!(to, "{line}").unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }
        told.for_each(drop);
    });
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let events: Vec<Value> = well(out).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    assert_eq!((of("recorded"), of("refused")), (3, 2), "{events:?}");
    let list: Value = serde_json::from_str(&well(feedback(&state, &["list", "--json"]))).unwrap();
    let told: Vec<(&Value, &Value, bool)> = list["presses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (&p["said"]["kind"], &p["confirmed"], p["prediction_id"].is_null()))
        .collect();
    let (example, preference) = (Value::from("demonstration"), Value::from("preference"));
    let (yes, no) = (Value::from(true), Value::from(false));
    assert_eq!(told, [(&example, &no, true), (&example, &yes, true), (&preference, &no, false)]);
    let inputs = ["--scope", "bias", "--objective", "ce", "--epochs", "1", "--dry-run", "--json"];
    let tuned = hone().arg("tune").arg(bundle()).arg("--state").arg(&state).args(inputs).output().unwrap();
    let tuned: Value = serde_json::from_str(&well(tuned)).unwrap();
    assert_eq!((&tuned["presses"], &tuned["validated_on"]), (&2.into(), &1.into()), "inputs of examples are kept");
}
