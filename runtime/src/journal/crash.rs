//! Stops at any moment: killed processes, torn logs, directories that cannot be written.
//!
//! A test that needs a process to kill starts this very test binary again with an environment variable set; the same
//! test function then plays the child.
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::tests::shown;
use super::*;
use crate::state::StateDir;

const CHILD: &str = "HONE_TEST_CHILD";

/// The directory to work in, when this process is the child.
pub(crate) fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Starts this binary again to run only test `name` as a child working in `dir`; its standard output is piped.
pub(crate) fn start_child(name: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Says something to the parent, at once.
pub(crate) fn tell(line: &str) {
    // Past the capture of the test harness and in one write: a kill cannot tear it.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A cheap sequence of numbers below `bound` for moments to stop at.
pub(crate) fn moments(seed: u64, bound: u64) -> impl Iterator<Item = u64> {
    let mut x = seed;
    std::iter::repeat_with(move || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % bound
    })
}

/// Waits for the child's first line, lets it go on for a while, kills it, and returns every whole line it said.
pub(crate) fn kill_after(mut child: Child, first: &str, wait: Duration) -> Vec<String> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.lines().any(|l| l.starts_with(first)) {
        assert!(out.read_line(&mut said).unwrap() > 0, "the child ended before it said {first:?}: {said}");
    }
    std::thread::sleep(wait);
    child.kill().unwrap();
    out.read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    let whole = said.rfind('\n').map_or(0, |end| end + 1);
    said[..whole].lines().map(str::to_string).collect()
}

#[test]
fn every_acknowledged_press_is_there_exactly_once_after_120_kills() {
    if let Some(dir) = child_dir() {
        let mut j = Journal::open(StateDir::at(dir).lock().unwrap()).unwrap();
        let epoch = match j.reader().epoch("aa").unwrap() {
            Some(epoch) => epoch,
            None => j.new_epoch("aa").unwrap(),
        };
        let mut seq = j.reader().mark("aa", epoch).unwrap();
        tell("ready");
        loop {
            let id = j.shown(&shown(seq)).unwrap();
            tell(&format!("shown {id}"));
            let press = |seq, up| PadPress {
                seq,
                event: PadEvent::Press(Press::new(Some(id), PressKind::Thumb { up }, Source::Web)),
            };
            // As a pad would: the last one again, for its acknowledgement may have been lost, then a new one.
            let replayed = [press(seq.saturating_sub(1), false), press(seq, true)];
            let done = j.pad_commit("aa", epoch, &replayed).unwrap();
            for id in done.recorded {
                tell(&format!("press {}", id.0));
            }
            seq = done.next;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path());
    let name = "journal::crash::every_acknowledged_press_is_there_exactly_once_after_120_kills";
    let mut acknowledged: BTreeSet<u64> = BTreeSet::new();
    let mut prompts: Vec<u32> = Vec::new();
    for (round, wait) in moments(1, 40_000).take(120).enumerate() {
        let lines = kill_after(start_child(name, dir.path()), "ready", Duration::from_micros(wait));
        for line in lines {
            if let Some(id) = line.strip_prefix("press ") {
                assert!(acknowledged.insert(id.parse().unwrap()), "press {id} was acknowledged twice");
            } else if let Some(id) = line.strip_prefix("shown ") {
                prompts.push(id.parse().unwrap());
            }
        }
        if round % 20 == 19 {
            assert!(Reader::open(&state).unwrap().verify().unwrap().is_sound(), "after kill {}", round + 1);
        }
    }
    let reader = Reader::open(&state).unwrap();
    let stored: BTreeSet<u64> = reader.presses().unwrap().iter().map(|p| p.press_id.0).collect();
    assert!(acknowledged.len() >= 120, "only {} presses: the children were killed too early", acknowledged.len());
    assert!(stored.is_superset(&acknowledged), "lost: {:?}", acknowledged.difference(&stored).collect::<Vec<_>>());
    // A commit whose answer was cut off may be there; it was one press, and the pad's mark counts every one once.
    assert!(stored.len() - acknowledged.len() <= 120);
    assert_eq!(stored.len() as u32 + 1, reader.mark("aa", reader.epoch("aa").unwrap().unwrap()).unwrap());
    assert!(prompts.windows(2).all(|w| w[0] < w[1]), "prediction ids fell");
    assert_eq!(reader.effective_presses().unwrap().len(), stored.len());
    println!("{} presses acknowledged over 120 kills, {} stored", acknowledged.len(), stored.len());
}

/// A journal's files as a stop leaves them, with `wal` in the place of its log.
fn crash_image(from: &Path, wal: &[u8]) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    fs::copy(from.join("journal.db"), image.path().join("journal.db")).unwrap();
    fs::write(image.path().join("journal.db-wal"), wal).unwrap();
    image
}

/// Opens a crash image, and checks that it holds a whole prefix of what was acknowledged and can be written to.
fn surviving_prefix(image: &Path, acknowledged: &[String], what: &str) -> usize {
    let mut j = Journal::open(StateDir::at(image).lock().unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let report = j.reader().verify().unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.faults);
    let records = j.reader().list(&Filter::default()).unwrap();
    let texts: Vec<String> = records.into_iter().map(|r| r.payload.unwrap()).collect();
    assert!(acknowledged.starts_with(&texts), "{what}: what survives is not a prefix");
    j.note("written after the stop").unwrap();
    assert!(j.reader().verify().unwrap().is_sound(), "{what}");
    texts.len()
}

#[test]
fn a_torn_log_leaves_a_whole_prefix_and_never_less_than_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::open(StateDir::at(dir.path()).lock().unwrap()).unwrap();
    for n in 0..20 {
        j.note(&format!("note {n}")).unwrap();
    }
    j.close().unwrap();
    // The closing was a checkpoint of twenty; the next ten are in the log only.
    let checkpointed = 20;
    let mut j = Journal::open(StateDir::at(dir.path()).lock().unwrap()).unwrap();
    for n in 20..30 {
        j.note(&format!("note {n}")).unwrap();
    }
    let acknowledged: Vec<String> =
        j.reader().list(&Filter::default()).unwrap().into_iter().map(|r| r.payload.unwrap()).collect();
    let wal = fs::read(dir.path().join("journal.db-wal")).unwrap();
    let used = wal.iter().rposition(|&b| b != 0).unwrap() + 1;
    assert!(used > 10 * 4_096, "the ten notes are not in the log");

    assert_eq!(surviving_prefix(crash_image(dir.path(), &wal).path(), &acknowledged, "whole"), 30);
    let mut seen = BTreeSet::new();
    let mut lengths: Vec<usize> = moments(7, used as u64).take(40).map(|l| l as usize).collect();
    lengths.extend([0, 1, 31, 32, 33, 32 + 24, 32 + 4_120, used - 1, used]);
    lengths.sort();
    let mut last = 0;
    for length in lengths {
        let cut = surviving_prefix(
            crash_image(dir.path(), &wal[..length]).path(),
            &acknowledged,
            &format!("cut at {length}"),
        );
        assert!(cut >= checkpointed, "cut at {length}: {cut} records");
        assert!(cut >= last, "a longer log holds less");
        // The same bytes lost inside a log of full length, and garbage in their place.
        for filler in [0u8, 0xa5] {
            let mut torn = wal.clone();
            torn[length..used].fill(filler);
            let same =
                surviving_prefix(crash_image(dir.path(), &torn).path(), &acknowledged, &format!("torn at {length}"));
            assert!(same >= cut, "torn at {length} with {filler:#x}: {same} of {cut}");
        }
        last = cut;
        seen.insert(cut);
    }
    assert!(seen.contains(&20) && seen.contains(&30) && seen.len() > 4, "{seen:?}");
}

#[test]
fn a_directory_that_cannot_be_written_is_said_and_can_still_be_read() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if let Some(dir) = child_dir() {
        let state = StateDir::at(&dir);
        let reader = Reader::open(&state).unwrap();
        assert_eq!(reader.effective_presses().unwrap().len(), 1);
        assert!(reader.verify().unwrap().is_sound());
        tell("read");
        let refused = match state.lock() {
            Err(e) => StoreError::from(e),
            Ok(lock) => Journal::open(lock).err().unwrap(),
        };
        tell(&format!("refused {:?} {refused}", crate::Classified::class(&refused)));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut j = Journal::open(StateDir::at(&state).lock().unwrap()).unwrap();
    let id = j.shown(&shown(2)).unwrap();
    j.press(&Press::new(Some(id), PressKind::NotSure, Source::Web)).unwrap();
    j.close().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let binary = dir.path().join("this-test");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let is_root = std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.path()).unwrap()) == 0;
    let run = || {
        let mut command = Command::new(&binary);
        command
            .args([
                "journal::crash::a_directory_that_cannot_be_written_is_said_and_can_still_be_read",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, &state)
            .current_dir("/");
        // Nothing is forbidden to root, so the child is somebody else.
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        let done = command.output().unwrap();
        (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    for path in [dir.path(), &state, &binary] {
        mode(path, 0o755);
    }
    mode(&state, 0o555);
    for name in ["journal.db", "lock"] {
        mode(&state.join(name), 0o444);
    }
    let (out, err) = run();
    mode(&state, 0o755);
    assert!(out.contains("\nread\n"), "{out}{err}");
    assert!(out.contains("refused Store ") && out.contains("cannot write") && out.contains("read-only"), "{out}{err}");
}
