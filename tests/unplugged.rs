//! A pad that vanishes while `listen` runs and comes back: said, survived, and every press recorded once.
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hone_runtime::journal::{Filter, Kind, Reader};
use hone_runtime::state::StateDir;
use serde_json::Value;

use crate::support::{bundle, hone, model_dir};

const PATIENCE: Duration = Duration::from_secs(30);
/// Presses made on each life of the pad.
const PRESSES: u64 = 4;

#[test]
fn a_pad_pulled_out_of_a_running_loop_is_missed_aloud_and_heard_again_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (link, state) = (dir.path().join("pad"), dir.path().join("state"));
    let (mut pad, mut finger) = emulate(&link);
    let mut listen = hone()
        .arg("listen")
        .arg(bundle())
        .arg("--state")
        .arg(&state)
        .arg("--pad")
        .arg(&link)
        .args(["--allow-unpaired", "--hold", "0", "--stdin", "--jsonl", "--camera"])
        .arg(format!("fps=20,repeat=yes,file:{}", model_dir().join("golden/gray-28x28.png").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = listen.stdin.take().unwrap();
    let events = events(&mut listen);

    let mut made = 0;
    let mut press = |finger: &mut ChildStdin| {
        for _ in 0..PRESSES {
            writeln!(finger, "prompt\nwait 400\nclick 0\ndrained").unwrap();
            until(&events, |e| e["event"] == "committed");
            made += 1;
        }
    };
    until(&events, |e| e["event"] == "pad-up");
    press(&mut finger);

    pad.kill().unwrap();
    pad.wait().unwrap();
    until(&events, |e| e["event"] == "pad-down");
    until(&events, |e| e["event"] == "pad-searching");
    let (mut pad, mut finger) = emulate(&link);
    until(&events, |e| e["event"] == "pad-up");
    // The pad has forgotten what it was asked, so the loop asks again.
    writeln!(words, "show").unwrap();
    press(&mut finger);

    writeln!(words, "quit").unwrap();
    let mut said = String::new();
    listen.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(listen.wait().unwrap().success(), "{said}");
    drop(finger);
    pad.wait().unwrap();
    assert!(!said.contains("panicked"), "{said}");
    for words in ["is gone: its port is lost", "looking for the pad", "is connected"] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }

    let reader = Reader::open(&StateDir::at(&state)).unwrap();
    assert!(reader.verify().unwrap().is_sound());
    let records = reader.list(&Filter { kind: Some(Kind::Press), ..Filter::default() }).unwrap();
    let number = |text: &str| serde_json::from_str::<Value>(text).unwrap()["pad"].to_string();
    let numbers: BTreeSet<String> = records.iter().map(|r| number(r.payload.as_deref().unwrap())).collect();
    assert_eq!((records.len() as u64, numbers.len() as u64), (made, made), "every press once");
}

/// The program's own emulated pad behind a link that outlives it.
fn emulate(link: &Path) -> (Child, ChildStdin) {
    let mut pad = hone()
        .args(["pad", "emulate", "--virtual", "--link"])
        .arg(link)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It says its port once it is there.
    let mut port = String::new();
    BufReader::new(pad.stdout.take().unwrap()).read_line(&mut port).unwrap();
    assert_eq!(port.trim_end(), link.to_str().unwrap());
    let finger = pad.stdin.take().unwrap();
    (pad, finger)
}

fn events(listen: &mut Child) -> Receiver<Value> {
    let lines = BufReader::new(listen.stdout.take().unwrap()).lines();
    let (told, events) = channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if told.send(serde_json::from_str(&line).expect("a JSON line")).is_err() {
                return;
            }
        }
    });
    events
}

fn until(events: &Receiver<Value>, wanted: impl Fn(&Value) -> bool) {
    loop {
        let event = events.recv_timeout(PATIENCE).expect("the loop goes on telling");
        if wanted(&event) {
            return;
        }
    }
}
