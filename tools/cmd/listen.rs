//! `hone listen`: the loop on a device.
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hone_runtime::Class;
use hone_runtime::app::listen::{Happening, ListenConfig, Naming, Word, listen};
use hone_runtime::app::question::Ask;
use hone_runtime::app::{App, Learned, Quota, Settings};
use hone_runtime::bundle::Bundle;
use hone_runtime::capture::{Medium, ShownConfig};
use hone_runtime::config::Config;
use hone_runtime::feedback::words::{self, Phrase, Said};
use hone_runtime::feedback::{Meaning, Notice, uid_text};
use hone_runtime::journal::{ClassChange, PressKind, Source};
use hone_runtime::learn::Display;
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde_json::{Value, json};

use crate::device::{self, Choice};
use crate::exit::fail;
use crate::output;
use crate::precision::{self, Precise};

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
    /// A pad: a name in the configuration, `auto`, a path, `usb:VID:PID[:SERIAL]`, `gpio:[CHIP/]LINE,LINE`,
    /// `lines:PORT` …
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
    /// Hear lines on standard input: up, down, correct LABEL, class N, stars N, unsure, rather than LABEL,
    /// this is LABEL (what is seen now, whatever was shown), undo, add NAME (a class more),
    /// rollback, show, quit; `!` in front confirms.
    #[arg(long)]
    stdin: bool,
    /// Seconds a new answer must hold before it is shown.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    hold: f64,
    /// The guard between a candidate and use.
    #[arg(long, value_enum, default_value_t = super::Guard::Veto)]
    guard: super::Guard,
    /// Keep what was put into the model for predictions that are pressed about, up to this size (such as 64MiB), so
    /// that features can be made again when another body is tuned.
    #[arg(long, value_name = "QUOTA")]
    keep_inputs: Option<Quota>,
    /// Where the model runs. A GPU answers as the CPU does, up to the order of sums; when it is lost the CPU goes on.
    #[arg(long, default_value_t)]
    device: Choice,
    /// What products of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Precise::F32)]
    precision: Precise,
    #[command(flatten)]
    learning: super::Learning,
    /// Which answer is shown: the most probable one, or others too now and then, recorded with their probability.
    #[arg(long, value_enum, default_value_t = Shows::Argmax)]
    display: Shows,
    /// Ask about the least sure answers: at most this share of what is shown.
    #[arg(long, value_name = "SHARE")]
    ask: Option<f64>,
    /// Hold back answers less sure than this, by the temperature fitted on confirmed presses, and ask which of two it
    /// is.
    #[arg(long, value_name = "P")]
    abstain: Option<f64>,
    /// After a thumbs-down, do not offer the class next in line.
    #[arg(long)]
    no_runner_up: bool,
    /// One JSON object a line on stdout in place of text.
    #[arg(long)]
    jsonl: bool,
}

/// Which answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shows {
    /// The most probable one.
    Argmax,
    /// Others too, the less often the further behind they are.
    Explore,
}

impl Listen {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if !self.hold.is_finite() || self.hold < 0.0 {
            return Err(fail(Class::Usage, format!("--hold is a number of seconds, not {}", self.hold)));
        }
        if self.abstain.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err(fail(Class::Usage, "--abstain is a probability from 0 to 1"));
        }
        let mut config = ListenConfig {
            offer: !self.no_runner_up,
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
        let precision = self.precision.asked();
        let options = |device| SessionOptions { precision, device, ..SessionOptions::default() };
        let chosen = self.device.for_bundle(&self.bundle, self.precision, options)?;
        let model = Model::open(Bundle::open(&self.bundle)?, options(chosen.device))?;
        let settings = Settings {
            display: match self.display {
                Shows::Argmax => Display::Argmax,
                Shows::Explore => Display::Explore,
            },
            ask: self.ask,
            abstain: self.abstain,
            ..self.learning.settings(self.guard)
        };
        let mut app = App::open_with(model, &state, settings)?;
        if let Some(quota) = self.keep_inputs {
            app.keep_inputs(quota)?;
        }
        match app.stale()? {
            0 => {}
            n => output::say(format!(
                "hone: {n} presses were about answers of another tuned adapter and their inputs were not kept, so that \
                 they do not train; `--keep-inputs 64MiB` keeps them"
            )),
        }

        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
        let (words, heard) = channel();
        if self.stdin {
            std::thread::spawn(move || read_words(&words));
        } else {
            drop(words);
        }
        eprintln!(
            "hone listens: {} with adapter {}, state in {}",
            app.model().bundle().manifest().name,
            app.current().map_or("factory", |a| a.as_str()),
            state.root().display()
        );
        if let Some(told) = precision::told(app.model().session().precision()) {
            output::say(format!("hone listens: {told}"));
        }
        // The bundle's own sample has run.
        for told in chosen.why.into_iter().chain(device::told(app.model().session().on_gpu().as_ref())) {
            output::say(format!("hone listens: {told}"));
        }
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

fn read_words(words: &Sender<Word>) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match word(&line) {
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
fn word(line: &str) -> Result<Option<Word>, String> {
    let Some(phrase) = words::parse(line)? else { return Ok(None) };
    let (confirmed, source) = (phrase.confirmed, Source::Stdin);
    // What names a class goes to the loop, which knows the classes there are by then.
    Ok(match phrase.said {
        Said::Show => Some(Word::Trigger),
        Said::Quit => Some(Word::Stop),
        Said::Add(name) => Some(Word::Classes(ClassChange::Add { name })),
        Said::Correct(label) => Some(Word::Named { label, naming: Naming::Right, confirmed, source }),
        Said::RatherThan(label) => Some(Word::Named { label, naming: Naming::RatherThan, confirmed, source }),
        Said::ThisIs(label) => Some(Word::Named { label, naming: Naming::Now, confirmed, source }),
        Said::Class(class) => Some(Word::Said { kind: PressKind::Correction { class }, confirmed, source }),
        said => match Meaning::of(&Phrase { said, confirmed }, &[])? {
            Meaning::Said { kind, confirmed } => Some(Word::Said { kind, confirmed, source }),
            Meaning::Undo => Some(Word::Said { kind: PressKind::Undo { press_id: None }, confirmed, source }),
            Meaning::Rollback => Some(Word::Rollback),
            Meaning::Nothing { .. } => None,
        },
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
    let classes = app.classes();
    Some(match what {
        Happening::Shown { prediction_id, answer, ask, notes, .. } => {
            let notes: String = answer.seen.notes.iter().chain(notes).map(|n| format!("  [{n}]")).collect();
            let (name, sure) = (classes.name(answer.class), 100.0 * answer.confidence);
            let asks = match ask {
                Ask::Nothing => String::new(),
                Ask::Right => "  is this right?".to_string(),
                Ask::Confirm => "  is this right? confirm it: hold the button, or `!` in front".to_string(),
                Ask::Which { or } => format!("  not sure: is it {name} or {}?", classes.name(*or)),
            };
            format!("#{prediction_id}  {name}  ({sure:.0} %){asks}{notes}")
        }
        Happening::Offered { prediction_id, after, answer } => {
            format!("#{prediction_id}  {}?  (in the place of #{after})", classes.name(answer.class))
        }
        Happening::Learned(Learned::Press { id, outcome }) => {
            format!("press {} heard: {outcome:?}", id.0).to_lowercase()
        }
        Happening::Learned(Learned::Undone { id }) => format!("press {} taken back", id.0),
        Happening::Learned(Learned::Contradicted { .. }) => {
            "these presses contradict each other; hold a button to confirm, or correct the answer".to_string()
        }
        Happening::Learned(Learned::Decided { decision, changed, kept }) => match changed {
            Some(Some(id)) => format!("adapter {id} is in use: {}; {}", decision.reason, output::kept(kept.as_ref())),
            Some(None) => format!("the factory head is back: {}", decision.reason),
            None => format!("{:?}: {}", decision.action, decision.reason).to_lowercase(),
        },
        Happening::Recorded { press } => format!("recorded as press {press}"),
        Happening::Classes => format!("the classes are {}", classes.visible_names().join(", ")),
        Happening::RolledBack(Some(id)) => format!("rolled back to adapter {id}"),
        Happening::RolledBack(None) => "rolled back to the factory head".into(),
        Happening::BadFrame(e) => format!("a frame could not be used: {e}"),
        Happening::Source { .. } | Happening::Pad(_) => return None,
        Happening::Refused(e) => format!("not done: {e}"),
    })
}

fn as_json(app: &App, what: &Happening<'_>) -> Option<Value> {
    let classes = app.classes();
    Some(match what {
        Happening::Offered { prediction_id, after, answer } => json!({
            "event": "offered", "prediction_id": prediction_id, "after": after, "label": classes.name(answer.class),
            "p": answer.p(),
        }),
        Happening::Shown { prediction_id, answer, ask, reason, notes } => json!({
            "event": "shown", "prediction_id": prediction_id, "label": classes.name(answer.class), "p": answer.p(),
            "confidence": answer.confidence, "mu": answer.mu, "ask": ask.name(),
            "latency_ms": answer.seen.latency.as_secs_f64() * 1e3, "reason": format!("{reason:?}"),
            "precision": app.model().session().precision().name(),
            "notes": answer.seen.notes.iter().chain(notes).collect::<Vec<_>>(),
        }),
        Happening::Learned(Learned::Press { id, outcome }) => {
            json!({"event": "press", "press_id": id.0, "outcome": format!("{outcome:?}").to_lowercase()})
        }
        Happening::Learned(Learned::Undone { id }) => json!({"event": "undone", "press_id": id.0}),
        Happening::Learned(Learned::Contradicted { apart }) => json!({"event": "contradicted", "apart": apart}),
        Happening::Learned(Learned::Decided { decision, changed, kept }) => json!({
            "event": "decided", "kept": kept, "reason": decision.reason,
            "action": format!("{:?}", decision.action).to_lowercase(),
            "adapter": changed.as_ref().map(|c| c.as_ref().map_or("factory", |a| a.as_str())),
        }),
        Happening::Recorded { press } => json!({"event": "recorded", "press_id": press}),
        Happening::Classes => json!({"event": "classes", "classes": classes.visible_names()}),
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
        Happening::Pad(Notice::Searching { why, absent }) => {
            json!({"event": "pad-searching", "why": why, "absent": absent})
        }
        Happening::Pad(Notice::Refused { source, why }) => {
            json!({"event": "pad-refused", "source": source, "why": format!("{why:?}")})
        }
        Happening::Pad(Notice::Committed { uid, events, .. }) => {
            let one = |kind: &dyn std::fmt::Debug, button: u8| {
                let kind = format!("{kind:?}").to_lowercase();
                json!({"kind": kind, "button": button})
            };
            let events: Vec<Value> = events.iter().map(|r| one(&r.event.kind, r.event.button())).collect();
            json!({"event": "committed", "uid": uid_text(uid), "events": events})
        }
        Happening::Pad(_) => return None,
        Happening::Refused(e) => json!({"event": "refused", "why": e.to_string()}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_a_person_may_type_are_understood_and_others_are_explained() {
        let said = |kind, confirmed| Ok(Some(Word::Said { kind, confirmed, source: Source::Stdin }));
        assert_eq!(word("up"), said(PressKind::Thumb { up: true }, false));
        assert_eq!(word(" ! down "), said(PressKind::Thumb { up: false }, true));
        let named = |label: &str, naming| {
            Ok(Some(Word::Named { label: label.into(), naming, confirmed: false, source: Source::Stdin }))
        };
        assert_eq!(word("correct hot dog"), named("hot dog", Naming::Right));
        assert_eq!(word("rather than hot dog"), named("hot dog", Naming::RatherThan));
        assert_eq!(word("this is a hot dog"), named("a hot dog", Naming::Now));
        assert_eq!(word("add cow"), Ok(Some(Word::Classes(ClassChange::Add { name: "cow".into() }))));
        assert_eq!(word("class 12"), said(PressKind::Correction { class: 12 }, false));
        assert!(word("stars 6").is_err());
        assert!(word("dance").unwrap_err().contains("not understood"));
        assert_eq!(word(""), Ok(None));
    }
}
