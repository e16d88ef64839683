//! Models made to do harm: every one is refused by name, within memory and time, and none makes anything panic.
//!
//! The tables ([`files`], [`operators`]) run in a child process, so that what one of them takes can be measured and one
//! that never ends can be stopped. [`places`] has the tricks that need a file system.
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hone_runtime::bundle::npz::read_npz;
use hone_runtime::import::Limits;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::tensor::Tensor;

use crate::onnx::*;
use crate::support::model_dir;

mod files;
mod operators;
mod places;

/// What is wrong, the file, and a word its refusal must contain.
type Case = (&'static str, Vec<u8>, &'static str);

/// Set in the child that runs the tables.
const CHILD: &str = "HONE_TEST_HOSTILE_CHILD";
/// Begins each line of the child's that is not the test harness's.
const MARK: &str = "hostile-case";
/// Most memory one refusal may take beyond what the process had before the first.
const MOST_KIB: u64 = 100 << 10;
/// Longest one refusal may take: a build without optimisation on a busy machine, for work of at most a second or two.
const LONGEST: Duration = Duration::from_secs(60);

fn tables() -> Vec<Case> {
    [files::files(), operators::operators()].concat()
}

/// Loads a model and, when it loads, runs it on zeros. `Err` says how it was refused.
fn load_and_run(bytes: &[u8], reference: bool) -> Result<(), String> {
    // What may be allocated while running is the device's to say; here it is less than what a refusal may take.
    let limits = Limits { run_bytes: 16 << 20, turns: 50_000, ..Limits::default() };
    let options = SessionOptions { reference, limits, ..SessionOptions::default() };
    let mut session = Session::from_onnx(bytes, "hostile.onnx", options).map_err(|e| e.to_string())?;
    let shapes = session.graph().input_shapes(&BTreeMap::new())?;
    let zeros = |(name, dtype, shape): (String, _, Vec<usize>)| (name, Tensor::zeros(dtype, &shape).unwrap());
    let inputs: Vec<(String, Tensor)> = shapes.into_iter().map(zeros).collect();
    session.run(&inputs).map(drop).map_err(|e| e.to_string())
}

/// `None` when the file is refused as it should be.
fn judged(bytes: &[u8], culprit: &str) -> Option<String> {
    for reference in [false, true] {
        let wrong = match catch_unwind(AssertUnwindSafe(|| load_and_run(bytes, reference))) {
            Err(_) => "panicked".to_string(),
            Ok(Ok(())) => "was accepted and ran".into(),
            Ok(Err(why)) if !why.contains(culprit) => format!("`{culprit}` is not in: {why}"),
            // The importer's panics are caught, but a check of ours should have come first.
            Ok(Err(why)) if why.contains("panicked") => why,
            Ok(Err(_)) => continue,
        };
        return Some(wrong);
    }
    None
}

/// A line of `/proc/self/status`, in KiB; 0 where there is none.
fn status_kib(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn run_tables() {
    let cases = tables();
    let before = status_kib("VmRSS:");
    for (i, (name, bytes, culprit)) in cases.iter().enumerate() {
        println!("{MARK} begins {i} {name}");
        // Starts the peak anew, where the system has one to start.
        let _ = fs::write("/proc/self/clear_refs", "5");
        let wrong = judged(bytes, culprit).unwrap_or_default().replace('\n', " ");
        let kib = status_kib("VmHWM:").saturating_sub(before);
        println!("{MARK} ended {i} {kib} {wrong}");
    }
    println!("{MARK} all {}", cases.len());
}

#[test]
fn every_crafted_model_is_refused_by_name_in_little_memory_and_time_and_none_panics() {
    if std::env::var_os(CHILD).is_some() {
        return run_tables();
    }
    let me = "hostile::every_crafted_model_is_refused_by_name_in_little_memory_and_time_and_none_panics";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([me, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (lines, told) = mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            // The harness writes without an end of line before the first of ours.
            let ours = line.find(MARK).map(|at| line[at + MARK.len()..].trim().to_string());
            if ours.is_some_and(|l| lines.send(l).is_err()) {
                return;
            }
        }
    });
    let mut now = String::from("the start");
    let mut wrong = Vec::new();
    let mut seen = None;
    let mut began = Instant::now();
    let mut slowest = (Duration::ZERO, String::new());
    let mut largest = (0, String::new());
    loop {
        let Ok(line) = told.recv_timeout(LONGEST) else {
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            let how = ended.map_or(format!("is not done after {LONGEST:?}"), |s| format!("ended the process: {s}"));
            wrong.push(format!("{now}: {how}"));
            break;
        };
        let mut words = line.splitn(4, ' ');
        let (what, index) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match what {
            "begins" => {
                now = line["begins ".len() + index.len()..].trim().to_string();
                began = Instant::now();
            }
            "ended" => {
                let kib: u64 = words.next().unwrap_or_default().parse().unwrap();
                let why = words.next().unwrap_or_default().trim();
                if !why.is_empty() {
                    wrong.push(format!("{now}: {why}"));
                }
                if kib > MOST_KIB {
                    wrong.push(format!("{now}: took {kib} KiB, at most {MOST_KIB} are allowed"));
                }
                slowest = slowest.max((began.elapsed(), now.clone()));
                largest = largest.max((kib, now.clone()));
            }
            _ => {
                seen = index.parse::<usize>().ok();
                break;
            }
        }
    }
    child.wait().unwrap();
    reader.join().unwrap();
    println!("largest: {} KiB, {}; slowest: {:?}, {}", largest.0, largest.1, slowest.0, slowest.1);
    let of = tables().len();
    assert!(of >= 25 && (seen == Some(of) || !wrong.is_empty()), "the child told {seen:?} of {of} cases");
    assert!(wrong.is_empty(), "{} of {of}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_model_written_here_without_a_fault_loads_and_runs() {
    load_and_run(&files::one("Relu", &[1, 4], &[], &[], &[]), false).unwrap();
    load_and_run(&files::one("Conv", &[1, 1, 4, 4], &["w"], &[], &[weights("w", &[1, 1, 3, 3])]), false).unwrap();
    load_and_run(&files::one("Expand", &[1, 1], &["to"], &[], &[integers("to", &[4, 2])]), false).unwrap();
}

#[test]
fn every_truncation_of_the_shipped_model_is_refused_without_a_panic() {
    let whole = fs::read(model_dir().join("src/model.onnx")).unwrap();
    for length in (0..whole.len()).step_by(97) {
        match catch_unwind(|| load_and_run(&whole[..length], false)) {
            Err(_) => panic!("{length} of {} bytes: panicked", whole.len()),
            Ok(Ok(())) => panic!("{length} of {} bytes: was accepted and ran", whole.len()),
            Ok(Err(_)) => {}
        }
    }
}

#[test]
fn a_flipped_bit_in_the_shipped_model_or_random_bytes_never_cause_a_panic() {
    let whole = fs::read(model_dir().join("src/model.onnx")).unwrap();
    let case = read_npz(&fs::read(model_dir().join("src/check/case0.npz")).unwrap()).unwrap();
    let inputs: Vec<(String, Tensor)> =
        case.iter().filter_map(|(n, t)| n.strip_prefix("in_").map(|n| (n.to_string(), t.clone()))).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut refused, mut ran) = (0, 0);
    for i in 0..120 {
        let mut bad = whole.clone();
        // Most of the file is weights: the structure is in the first and the last few kibibytes.
        let reach = if i % 2 == 0 { bad.len() } else { 4096.min(bad.len()) };
        let at = random() as usize % reach;
        let at = if i % 4 == 1 { bad.len() - 1 - at } else { at };
        bad[at] ^= 1 << (random() % 8);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let mut s =
                Session::from_onnx(&bad, "flipped.onnx", SessionOptions::default()).map_err(|e| e.to_string())?;
            s.run(&inputs).map(drop).map_err(|e| e.to_string())
        }));
        match done {
            Err(_) => panic!("a flipped bit in byte {at} caused a panic"),
            Ok(Ok(())) => ran += 1,
            Ok(Err(_)) => refused += 1,
        }
        let noise: Vec<u8> = (0..random() % 512).map(|_| random() as u8).collect();
        assert!(catch_unwind(|| load_and_run(&noise, false)).is_ok(), "random bytes caused a panic: {noise:?}");
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran: one of the two ways was never taken");
}
