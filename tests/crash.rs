//! `kill -9` at random moments of a running `listen` under presses: nothing acknowledged is lost or doubled, the
//! adapter is an old or a new one, and the head computed from the journal is the published one.
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hone_runtime::Bundle;
use hone_runtime::adapters::AdapterStore;
use hone_runtime::app::App;
use hone_runtime::app::rehearsal::Chance;
use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig, Gesture, Step};
use hone_runtime::journal::{Filter, Kind, Reader};
use hone_runtime::learn::{Mode, Theta};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;

use crate::support::{bundle, hone, model_dir};

const KILLS: usize = 100;
const PRESSES: u32 = 200;

#[test]
fn a_hundred_kills_of_a_running_loop_lose_nothing_and_tear_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("pad");
    let state = StateDir::at(dir.path().join("state"));
    let pad =
        Emulator::start(EmulatorConfig { link: Some(link.clone()), virtual_time: true, ..EmulatorConfig::default() })
            .unwrap();
    // Its fingers are quicker than a person's.
    let config = dir.path().join("hone.toml");
    std::fs::write(&config, "[feedback]\napart_ms = 0\nper_minute = 10000\n").unwrap();
    let frames = dir.path().join("frames");
    std::fs::create_dir(&frames).unwrap();
    for i in 0..40 {
        let name = format!("stream-{i:04}.png");
        std::fs::copy(model_dir().join("worlds/new-pen").join(&name), frames.join(&name)).unwrap();
    }
    let mut chance = Chance::new(7);
    let (mut kills, mut pressed, mut answered) = (0, 0u32, 0);
    let started = Instant::now();
    // On a busy machine more lives end before the pad is greeted.
    while kills < KILLS || pressed <= PRESSES {
        assert!(started.elapsed() < Duration::from_secs(600), "{kills} kills in ten minutes");
        let mut child = hone()
            .arg("listen")
            .arg(bundle())
            .arg("--state")
            .arg(state.root())
            .arg("--pad")
            .arg(&link)
            .arg("--config")
            .arg(&config)
            .args(["--allow-unpaired", "--hold", "0", "--jsonl", "--camera"])
            .arg(format!("fps=60,repeat=yes,file:{}", frames.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Some lives end before the pad is greeted, most in the middle of presses.
        let life = Duration::from_millis(30 + chance.below(900) as u64);
        let born = Instant::now();
        while born.elapsed() < life {
            assert!(child.try_wait().unwrap().is_none(), "listen ended by itself");
            let asked = pad.current_prompt().map(|p| p.prompt_id).filter(|&id| id > answered);
            match asked {
                Some(id) if pad.is_up() && pad.pending() < 12 => {
                    answered = id;
                    // Longer than the pad takes for a press that may have meant the answer before.
                    pad.step(Step::Wait(400)).unwrap();
                    pad.press(chance.below(2) as u8, Gesture::Click).unwrap();
                    pressed += 1;
                }
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;

        // The adapter in use is whole, whichever it is.
        let base = Bundle::open(bundle()).unwrap().base_digest().to_string();
        AdapterStore::new(&state, &base).unwrap().current().expect("an old or a new adapter, never between");
    }
    // One last life hears what is still queued on the pad.
    let mut child = hone()
        .arg("listen")
        .arg(bundle())
        .arg("--state")
        .arg(state.root())
        .arg("--pad")
        .arg(&link)
        .arg("--config")
        .arg(&config)
        .args(["--allow-unpaired", "--camera"])
        .arg(format!("fps=5,repeat=yes,file:{}", frames.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    pad.await_drained(Duration::from_secs(30)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let reader = Reader::open(&state).unwrap();
    let report = reader.verify().unwrap();
    assert!(report.is_sound(), "{report:?}");
    let records = reader.list(&Filter { kind: Some(Kind::Press), ..Filter::default() }).unwrap();
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    for r in &records {
        let doc: serde_json::Value = serde_json::from_str(r.payload.as_deref().unwrap()).unwrap();
        *numbers.entry(doc["pad"].to_string()).or_default() += 1;
    }
    assert!(numbers.values().all(|&n| n == 1), "a press is recorded twice");
    assert_eq!(records.len() as u32, pressed, "presses made and presses recorded");
    drop(reader);

    // The head in use is a function of the journal: recomputed from the presses it was made of, it is the same, bit for
    // bit.
    let model = Model::open(Bundle::open(bundle()).unwrap(), SessionOptions::default()).unwrap();
    let app = App::open(model, &state, Mode::Veto).unwrap();
    let current = app.adapters().current().unwrap().expect("something was published");
    let recomputed = app.recompute(current.provenance.journal_seq).unwrap();
    let published = Theta::new(current.classes, current.columns, current.theta).unwrap();
    assert!(!published.is_zero());
    assert_eq!(published, recomputed);
}
