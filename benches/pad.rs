//! From a press to the lamp that says "recorded": the pad's core on a pseudo-terminal, the listener, the journal.
//!
//! Informs: whether a press is felt to count. `durable` is from the button's release to the press's record in the journal,
//! 8 ms of debouncing within, `lamp` to the acknowledgement at the pad. Each is timed on a journal in memory
//! (`/dev/shm`), which leaves the disk's own `fsync` out, and on the temporary directory's disk, whose `fsync` of a page is
//! quoted beside it.
//!
//! And what a flood costs the model: `answer` is one run of which-digit on one thread, alone, while a line carries forged
//! frames as fast as it takes them, and while a pad presses as fast as it can.
//!
//! In test mode three of each, without a verdict on times.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::{Duration, Instant};

use hone_runtime::bundle::npz::read_npz;
use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig, Gesture};
use hone_runtime::feedback::policy::Rules;
use hone_runtime::feedback::{JournalLedger, Listener, Notice, Opening, Policy, source};
use hone_runtime::journal::Journal;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::state::StateDir;
use hone_runtime::tensor::Tensor;
use hone_wire::frame::encode;
use hone_wire::message::{Event, Events};
use serialport::SerialPort;

const PRESSES: usize = 200;
/// A finger on the button.
const DOWN: Duration = Duration::from_millis(60);
/// Until the lamp has gone out, and so slow that no press is suspect.
const BETWEEN: Duration = Duration::from_millis(400);
/// Of runs beside each trouble.
const ROUNDS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let told = |option: &str| std::env::args().any(|argument| argument == option);
    // As cargo tells a bench that it is to be timed.
    let presses = if told("--bench") && !told("--test") { PRESSES } else { 3 };
    for (name, place) in [("memory", "/dev/shm"), ("disk", "")] {
        let place = if Path::new(place).is_dir() { place.into() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(&place).expect("a temporary directory");
        let [durable, lamp] = time(dir.path(), presses);
        print(&format!("{name}, durable"), durable);
        print(&format!("{name}, lamp"), lamp);
        print(&format!("{name}, fsync of 4 KiB"), fsync(dir.path(), presses));
    }
    flood(presses);
}

/// What goes on while a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Forged,
    Pressed,
}

/// Runs of the model beside each trouble in turn, so that what else this machine does meets them all alike.
fn flood(runs: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit/src");
    let case = read_npz(&std::fs::read(dir.join("check/case0.npz")).expect("the recorded case")).expect("an archive");
    let inputs: Vec<(String, Tensor)> =
        case.into_iter().filter_map(|(n, t)| n.strip_prefix("in_").map(|n| (n.to_string(), t))).collect();
    let model = std::fs::read(dir.join("model.onnx")).expect("the model");
    let options = SessionOptions { threads: 1, ..SessionOptions::default() };
    let mut session = Session::from_onnx(&model, "model.onnx", options).expect("the shipped model loads");
    let troubles = [Trouble::None, Trouble::Forged, Trouble::Pressed];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (trouble, times) in troubles.into_iter().zip(&mut times) {
            let state = tempfile::tempdir().expect("a temporary directory");
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _listener = (trouble != Trouble::None).then(|| disturb(scope, trouble, state.path(), &over));
                for _ in 0..runs {
                    let began = Instant::now();
                    session.run(&inputs).expect("it runs");
                    times.push(began.elapsed());
                }
                over.store(true, Relaxed);
            });
        }
    }
    for (trouble, times) in troubles.into_iter().zip(times) {
        print(&format!("answer, {trouble:?}").to_lowercase(), times);
    }
}

/// Something that listens to a pad that does not leave it in peace until it is `over`.
fn disturb<'scope>(
    scope: &'scope Scope<'scope, '_>,
    trouble: Trouble,
    state: &Path,
    over: &'scope AtomicBool,
) -> Listener {
    let (told, notices) = channel();
    let listen = |port: &str| {
        let source = source::parse(port).expect("a device file");
        Listener::start(source, Opening::Now, Box::new(ledger(state)), told).expect("the port is there")
    };
    if trouble == Trouble::Forged {
        let (mut near, far) = serialport::TTYPort::pair().expect("a pseudo-terminal");
        let listener = listen(&far.name().expect("it has one"));
        // Right in all but the session.
        let events = Events { epoch: 1, events: std::iter::once(Event::default()).collect() };
        let frames: Vec<u8> = encode(&events.into(), 4711, 1, None).repeat(64);
        near.set_timeout(Duration::from_millis(10)).expect("it has one");
        scope.spawn(move || {
            while !over.load(Relaxed) {
                // What the line does not take is lost.
                let _ = near.write(&frames);
            }
            drop(far);
        });
        return listener;
    }
    let pad = Emulator::start(EmulatorConfig { virtual_time: true, ..EmulatorConfig::default() }).expect("a pad");
    let listener = listen(&pad.port_name().expect("it has started"));
    until(&notices, |notice| matches!(notice, Notice::Up { .. }));
    scope.spawn(move || {
        while !over.load(Relaxed) {
            pad.press(0, Gesture::Click).expect("a button");
            while pad.pending() > 40 && !over.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    listener
}

fn ledger(state: &Path) -> JournalLedger {
    let journal = Journal::open(StateDir::at(state).lock().expect("nobody else is here")).expect("a new journal");
    let common = Rules { allow_unpaired: true, ..Rules::default() };
    let policy = Policy { common, ..Policy::default() };
    let labels = ["cat".to_string(), "dog".to_string()];
    JournalLedger::new(Arc::new(Mutex::new(journal)), Arc::new(policy), &labels)
}

fn time(state: &Path, presses: usize) -> [Vec<Duration>; 2] {
    let ledger = ledger(state);
    let pad = Emulator::start(EmulatorConfig::default()).expect("a pseudo-terminal");
    let source = source::parse(&pad.port_name().expect("it has started")).expect("a device file");
    let (told, notices) = channel();
    let _listener = Listener::start(source, Opening::Now, Box::new(ledger), told).expect("the port is there");
    until(&notices, |notice| matches!(notice, Notice::Up { .. }));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..presses {
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| pad.press(0, Gesture::Hold(DOWN.as_millis() as u32)).expect("a button"));
            until(&notices, |notice| matches!(notice, Notice::Committed { .. }));
            times[0].push(began.elapsed().saturating_sub(DOWN));
            // Lit when a press that waits would be dark: recorded.
            while pad.lamps()[0].brightness(200) < 255 {
                assert!(began.elapsed() < PATIENCE, "the lamp stays dark");
                std::thread::sleep(Duration::from_micros(200));
            }
            times[1].push(began.elapsed().saturating_sub(DOWN));
        });
        std::thread::sleep(BETWEEN);
    }
    times
}

fn until(notices: &Receiver<Notice>, wanted: impl Fn(&Notice) -> bool) {
    while !wanted(&notices.recv_timeout(PATIENCE).expect("the pad is heard")) {}
}

/// How long it takes here to make a page durable.
fn fsync(dir: &Path, times: usize) -> Vec<Duration> {
    let mut file = File::create(dir.join("page")).expect("room");
    let page = [7; 4096];
    (0..times)
        .map(|_| {
            file.write_all(&page).expect("room");
            let began = Instant::now();
            file.sync_data().expect("a sound disk");
            began.elapsed()
        })
        .collect()
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{name:<24} p50 {:>6.2} ms  p99 {:>6.2} ms  (n {})", at(0.5), at(0.99), times.len());
}
