//! A disk that is really full, as the operating system says it: writes of a running `listen` fail, the error is one
//! paragraph with exit code 6, and everything acknowledged before is in the journal.
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use hone_runtime::journal::{Journal, Press, PressKind, Reader, Source};
use hone_runtime::state::StateDir;
use serde_json::Value;

use crate::support::{bundle, fails, hone, model_dir, said};

/// How long the loop may take for its next word.
const PATIENCE: Duration = Duration::from_secs(60);
/// Presses after which the disk must have been full.
const MOST: usize = 4_000;
/// What the journal holds before, so that little room is left.
const FILL_BYTES: usize = 1_900_000;

#[test]
fn a_limit_on_the_size_of_files_ends_the_loop_with_code_6_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    nearly_full(&state);
    // 4,096 blocks of 512 bytes. The signal that would end the process is ignored, so that the write fails instead.
    let script = r#"trap "" XFSZ; ulimit -f 4096; exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]);
    let (out, acknowledged) = press_until_full(command, &state);
    fails(&out, 6, &["journal.db"]);
    nothing_is_lost(&state, &acknowledged);
}

#[test]
fn a_file_system_without_room_ends_the_loop_with_code_6_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (before, full, after) = (dir.path().join("before"), dir.path().join("full"), dir.path().join("after"));
    std::fs::create_dir(&full).unwrap();
    let allowed = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none"]).arg(&full).output();
    if !allowed.as_ref().is_ok_and(|o| o.status.success()) {
        let why = allowed.map_or_else(|e| e.to_string(), |o| said(&o));
        eprintln!("not run: no small file system can be mounted here ({}); the limit on files is tested", why.trim());
        return;
    }
    nearly_full(&before);
    // The mount is the child's own and ends with it, so what is left on it is copied out before.
    let script = r#"full=$1 before=$2 after=$3; shift 3
        mount -t tmpfs -o size=3200k none "$full" && cp -a "$before" "$full/state" || exit 99
        "$@"; code=$?
        cp -a "$full/state" "$after" || exit 98
        exit $code"#;
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "sh"]).args([&full, &before, &after]);
    let (out, acknowledged) = press_until_full(command, &full.join("state"));
    fails(&out, 6, &["no space left", "journal.db"]);
    nothing_is_lost(&after, &acknowledged);
}

/// A state directory whose journal leaves little room below the limits of these tests.
fn nearly_full(state: &Path) {
    let mut journal = Journal::open(StateDir::at(state).lock().unwrap()).unwrap();
    journal.note(&"x".repeat(FILL_BYTES)).unwrap();
    journal.close().unwrap();
}

/// Runs `listen` behind `wrapper` and presses until a press is refused, then asks for an answer, which cannot be
/// recorded either. Returns how it ended and the presses it had acknowledged.
fn press_until_full(mut wrapper: Command, state: &Path) -> (Output, BTreeSet<u64>) {
    let program = hone().get_program().to_owned();
    let mut child = wrapper
        .arg(program)
        .arg("listen")
        .arg(bundle())
        .arg("--state")
        .arg(state)
        .args(["--hold", "0", "--stdin", "--jsonl", "--camera"])
        .arg(format!("fps=30,repeat=yes,file:{}", model_dir().join("golden/gray-28x28.png").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = child.stdin.take().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (told, events) = channel();
    let reading = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = told.send(serde_json::from_str::<Value>(&line).expect("a JSON line"));
        }
    });
    let mut acknowledged = BTreeSet::new();
    let mut say = |word: &str| {
        // The loop may have ended already; how is what the test is about.
        let _ = writeln!(words, "{word}");
    };
    while let Ok(event) = events.recv_timeout(PATIENCE) {
        match event["event"].as_str() {
            Some("shown") if acknowledged.is_empty() => say("up"),
            Some("recorded") => {
                acknowledged.insert(event["press_id"].as_u64().unwrap());
                assert!(acknowledged.len() < MOST, "the disk never became full");
                say("up");
            }
            Some("refused") => say("show"),
            _ => {}
        }
    }
    drop(words);
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    reading.join().unwrap();
    (Output { status, stdout: Vec::new(), stderr }, acknowledged)
}

/// With room again, the journal has exactly what was acknowledged, verifies, and takes the next press.
fn nothing_is_lost(state: &Path, acknowledged: &BTreeSet<u64>) {
    let state = StateDir::at(state);
    let stored: BTreeSet<u64> = Reader::open(&state).unwrap().presses().unwrap().iter().map(|p| p.press_id.0).collect();
    assert!(acknowledged.len() > 10, "only {} presses before the disk was full", acknowledged.len());
    assert_eq!(&stored, acknowledged);
    let mut journal = Journal::open(state.lock().unwrap()).unwrap();
    assert!(journal.reader().verify().unwrap().is_sound());
    journal.press(&Press::new(None, PressKind::NotSure, Source::Stdin)).unwrap();
    journal.close().unwrap();
}
