//! `hone listen`: the loop on a device.
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use clap::Args;
use hone_runtime::Class;
use hone_runtime::app::listen::{Happening, ListenConfig, Word, listen};
use hone_runtime::app::{App, Learned, Quota};
use hone_runtime::bundle::Bundle;
use hone_runtime::capture::{Medium, ShownConfig};
use hone_runtime::config::Config;
use hone_runtime::feedback::words::{self, Said};
use hone_runtime::feedback::{Meaning, Notice, uid_text};
use hone_runtime::journal::{PressKind, Source};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde_json::{Value, json};

use crate::exit::fail;
use crate::output;

/// Watches, answers, is told, learns: until it is stopped.
#[derive(Args)]
pub(crate) struct Listen {
    /// A .hone bundle.
    bundle: PathBuf,
    /// The state directory; $STATE_DIRECTORY or the XDG state directory if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Pictures: `exec:rpicam-vid -t 0 --codec mjpeg -o -`, `watch:DIR`, `file:PATH` …
    #[arg(long, value_name = "SOURCE")]
    camera: Option<String>,
    /// Sound: `cut=word,format=raw:s16le:16000:1,exec:arecord -q -t raw -f S16_LE -r 16000 -c 1` …
    #[arg(long, value_name = "SOURCE")]
    mic: Option<String>,
    /// Readings: `length=100,pipe:/dev/ttyUSB0` …
    #[arg(long, value_name = "SOURCE")]
    sensor: Option<String>,
    /// What asks for the next answer to be shown: `gpio:CHIP/LINE`.
    #[arg(long, value_name = "SOURCE")]
    trigger: Vec<String>,
    /// A pad: a name in the configuration, `auto`, a path, `usb:VID:PID[:SERIAL]`, `gpio:[CHIP/]LINE,LINE`, `lines:PORT` …
    ///
    /// Without any, every pad of the configuration that has a port.
    #[arg(long, value_name = "PAD")]
    pad: Vec<String>,
    /// Hear pads that were never paired, whatever the configuration says.
    #[arg(long)]
    allow_unpaired: bool,
    /// The configuration; otherwise /etc/hone/hone.toml and ~/.config/hone/hone.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Hear lines on standard input: up, down, correct LABEL, stars N, unsure, undo, rollback, show, quit; `!` in front
    /// confirms.
    #[arg(long)]
    stdin: bool,
    /// Seconds a new answer must hold before it is shown.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    hold: f64,
    /// The guard between a candidate and use.
    #[arg(long, value_enum, default_value_t = super::Guard::Veto)]
    guard: super::Guard,
    /// Keep what was put into the model for predictions that are pressed about, up to this size (such as 64MiB), so that
    /// features can be made again when another body is tuned.
    #[arg(long, value_name = "QUOTA")]
    keep_inputs: Option<Quota>,
    /// One JSON object a line on stdout in place of text.
    #[arg(long)]
    jsonl: bool,
}

impl Listen {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if !self.hold.is_finite() || self.hold < 0.0 {
            return Err(fail(Class::Usage, format!("--hold is a number of seconds, not {}", self.hold)));
        }
        let mut config = ListenConfig {
            shown: ShownConfig { hold: Duration::from_secs_f64(self.hold), ..ShownConfig::default() },
            ..ListenConfig::default()
        };
        for (medium, spec) in
            [(Medium::Image, &self.camera), (Medium::Audio, &self.mic), (Medium::Sensor, &self.sensor)]
        {
            config.sources.extend(spec.iter().map(|s| (medium, s.clone())));
        }
        config.sources.extend(self.trigger.iter().map(|s| (Medium::Trigger, s.clone())));
        let settings = Config::load(self.config.as_deref())?;
        config.pads = super::pad::sources(&self.pad, &settings)?;
        config.policy = settings.policy;
        if self.allow_unpaired {
            config.policy.allow_unpaired();
        }
        let state = StateDir::resolve(self.state.as_deref())?;
        let model = Model::open(Bundle::open(&self.bundle)?, SessionOptions::default())?;
        let mut app = App::open(model, &state, self.guard.mode())?;
        if let Some(quota) = self.keep_inputs {
            app.keep_inputs(quota)?;
        }
        match app.stale()? {
            0 => {}
            n => output::say(format!(
                "hone: {n} presses were about answers of another tuned adapter and their inputs were not kept, so that they \
                 do not train; `--keep-inputs 64MiB` keeps them"
            )),
        }

        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
        let (words, heard) = channel();
        if self.stdin {
            let labels: Vec<String> = app.model().labels().to_vec();
            std::thread::spawn(move || read_words(&labels, &words));
        } else {
            drop(words);
        }
        eprintln!(
            "hone listens: {} with adapter {}, state in {}",
            app.model().bundle().manifest().name,
            app.current().map_or("factory", |a| a.as_str()),
            state.root().display()
        );
        let mut gone = false;
        let jsonl = self.jsonl;
        let done = listen(&mut app, config, &heard, &stop, |app, what| {
            if let Some(text) = for_people(&what) {
                output::say(format!("hone listens: {text}"));
            }
            let said = if jsonl { as_json(app, &what).map(|v| v.to_string()) } else { as_text(app, &what) };
            if let Some(line) = said {
                // Somebody who only wanted the first lines does not end the loop for everybody else.
                gone = gone || output::line(line).is_err();
            }
        });
        done?;
        let interrupted = stop.load(Ordering::Relaxed);
        eprintln!("hone has stopped; everything acknowledged is in the journal");
        Ok(if interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
    }
}

fn read_words(labels: &[String], words: &Sender<Word>) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match word(&line, labels) {
            Ok(Some(w)) => {
                if words.send(w).is_err() {
                    return;
                }
            }
            Ok(None) => {}
            Err(why) => eprintln!("hone: {why}"),
        }
    }
}

/// One line of the protocol of `--stdin`.
fn word(line: &str, labels: &[String]) -> Result<Option<Word>, String> {
    let Some(phrase) = words::parse(line)? else { return Ok(None) };
    match phrase.said {
        Said::Show => return Ok(Some(Word::Trigger)),
        Said::Quit => return Ok(Some(Word::Stop)),
        _ => {}
    }
    let said = |kind, confirmed| Word::Said { kind, confirmed, source: Source::Stdin };
    Ok(match Meaning::of(&phrase, labels)? {
        Meaning::Said { kind, confirmed } => Some(said(kind, confirmed)),
        Meaning::Undo => Some(said(PressKind::Undo { press_id: None }, phrase.confirmed)),
        Meaning::Rollback => Some(Word::Rollback),
        Meaning::Nothing { .. } => None,
    })
}

/// What goes wrong around the loop and comes right again: said on stderr, whatever stdout carries.
fn for_people(what: &Happening<'_>) -> Option<String> {
    match what {
        Happening::Source { medium, event } => Some(format!("{medium}: {}", event.what)),
        Happening::Pad(
            notice @ (Notice::Up { .. }
            | Notice::Down { .. }
            | Notice::Searching { .. }
            | Notice::Ended { .. }
            | Notice::Remark { .. }
            | Notice::Refused { .. }),
        ) => Some(notice.to_string()),
        _ => None,
    }
}

fn as_text(app: &App, what: &Happening<'_>) -> Option<String> {
    let labels = app.model().labels();
    Some(match what {
        Happening::Shown { prediction_id, answer, notes, .. } => {
            let notes: String = answer.seen.notes.iter().chain(notes).map(|n| format!("  [{n}]")).collect();
            format!("#{prediction_id}  {}  ({:.0} %){notes}", labels[answer.class], 100.0 * answer.p())
        }
        Happening::Learned(Learned::Press { id, outcome }) => {
            format!("press {} heard: {outcome:?}", id.0).to_lowercase()
        }
        Happening::Learned(Learned::Undone { id }) => format!("press {} taken back", id.0),
        Happening::Learned(Learned::Decided { decision, changed }) => match changed {
            Some(Some(id)) => format!("adapter {id} is in use: {}", decision.reason),
            Some(None) => format!("the factory head is back: {}", decision.reason),
            None => format!("{:?}: {}", decision.action, decision.reason).to_lowercase(),
        },
        Happening::Recorded { press } => format!("recorded as press {press}"),
        Happening::RolledBack(Some(id)) => format!("rolled back to adapter {id}"),
        Happening::RolledBack(None) => "rolled back to the factory head".into(),
        Happening::BadFrame(e) => format!("a frame could not be used: {e}"),
        Happening::Source { .. } | Happening::Pad(_) => return None,
        Happening::Refused(e) => format!("not done: {e}"),
    })
}

fn as_json(app: &App, what: &Happening<'_>) -> Option<Value> {
    let labels = app.model().labels();
    Some(match what {
        Happening::Shown { prediction_id, answer, reason, notes } => json!({
            "event": "shown", "prediction_id": prediction_id, "label": labels[answer.class], "p": answer.p(),
            "latency_ms": answer.seen.latency.as_secs_f64() * 1e3, "reason": format!("{reason:?}"),
            "notes": answer.seen.notes.iter().chain(notes).collect::<Vec<_>>(),
        }),
        Happening::Learned(Learned::Press { id, outcome }) => {
            json!({"event": "press", "press_id": id.0, "outcome": format!("{outcome:?}").to_lowercase()})
        }
        Happening::Learned(Learned::Undone { id }) => json!({"event": "undone", "press_id": id.0}),
        Happening::Learned(Learned::Decided { decision, changed }) => json!({
            "event": "decided", "action": format!("{:?}", decision.action).to_lowercase(), "reason": decision.reason,
            "adapter": changed.as_ref().map(|c| c.as_ref().map_or("factory", |a| a.as_str())),
        }),
        Happening::Recorded { press } => json!({"event": "recorded", "press_id": press}),
        Happening::RolledBack(id) => {
            json!({"event": "rolled-back", "adapter": id.as_ref().map_or("factory", |a| a.as_str())})
        }
        Happening::BadFrame(e) => json!({"event": "bad-frame", "why": e.to_string()}),
        Happening::Source { medium, event } => {
            json!({"event": "source", "medium": medium.name(), "what": event.what.to_string()})
        }
        Happening::Pad(Notice::Up { port, uid, authenticated, hello, .. }) => json!({
            "event": "pad-up", "port": port, "uid": uid_text(uid), "authenticated": authenticated,
            "buttons": hello.buttons, "firmware": super::pad::version(hello.firmware),
        }),
        Happening::Pad(Notice::Down { source, why }) => {
            json!({"event": "pad-down", "source": source, "why": format!("{why:?}")})
        }
        Happening::Pad(Notice::Ended { source }) => json!({"event": "pad-ended", "source": source}),
        Happening::Pad(Notice::Remark { source, text }) => {
            json!({"event": "pad-remark", "source": source, "what": text})
        }
        Happening::Pad(Notice::Searching { why }) => json!({"event": "pad-searching", "why": why}),
        Happening::Pad(Notice::Refused { source, why }) => {
            json!({"event": "pad-refused", "source": source, "why": format!("{why:?}")})
        }
        Happening::Pad(Notice::Committed { events, .. }) => json!({"event": "committed", "events": events.len()}),
        Happening::Pad(_) => return None,
        Happening::Refused(e) => json!({"event": "refused", "why": e.to_string()}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_a_person_may_type_are_understood_and_others_are_explained() {
        let labels = ["cat".to_string(), "dog".to_string()];
        let said = |kind, confirmed| Ok(Some(Word::Said { kind, confirmed, source: Source::Stdin }));
        assert_eq!(word("up", &labels), said(PressKind::Thumb { up: true }, false));
        assert_eq!(word(" ! down ", &labels), said(PressKind::Thumb { up: false }, true));
        assert_eq!(word("correct dog", &labels), said(PressKind::Correction { class: 1 }, false));
        assert!(word("correct cow", &labels).unwrap_err().contains("cat, dog"));
        assert!(word("stars 6", &labels).is_err());
        assert!(word("dance", &labels).unwrap_err().contains("not understood"));
        assert_eq!(word("", &labels), Ok(None));
    }
}
