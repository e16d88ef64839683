//! `hone feedback`: what was shown and what people said about it.
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::adapters::{AdapterId, AdapterStore};
use hone_runtime::app::redacted::learned_from_redacted;
use hone_runtime::app::{App, Learned, Quota, classes};
use hone_runtime::bundle::Bundle;
use hone_runtime::journal::{
    Age, Journal, Press, PressId, PressKind, PressLine, PressStatus, Reader, Redact, Signal, Source, Stats, StoreError,
    Story,
};
use hone_runtime::learn::{Feedback as Heard, Mode};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::fail;
use crate::{input, output};

/// Lists, adds to, exports, imports, verifies and redacts what people have said.
#[derive(Args)]
pub(crate) struct Feedback {
    #[command(subcommand)]
    what: What,
    /// The state directory; $STATE_DIRECTORY, or the XDG one, if not given.
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// The presses, oldest first, with what became of each.
    List {
        /// At most so many, the newest.
        #[arg(long)]
        limit: Option<usize>,
        /// Only presses of this source: pad:<uid>, gpio, stdin, web, key, command.
        #[arg(long)]
        source: Option<Source>,
        /// One JSON document.
        #[arg(long, conflicts_with = "jsonl")]
        json: bool,
        /// One JSON object a line.
        #[arg(long)]
        jsonl: bool,
    },
    /// One prediction and everything said about it.
    Show {
        /// The prediction's number.
        id: u32,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Counts over the whole journal.
    Stats {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Says something about a prediction, durably.
    Add(Add),
    /// Gives an example of a class, whatever was answered to it, and learns from it.
    Demonstrate(Demonstrate),
    /// Writes the whole journal as JSON Lines.
    Export {
        /// A file to write; standard output, if not given.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Reads an export into an empty state directory.
    Import {
        /// What `hone feedback export` wrote.
        file: PathBuf,
    },
    /// Reads everything and lists all that is wrong.
    Verify {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Makes records unreadable for good; the chain still verifies.
    Redact(RedactArgs),
}

#[derive(Args)]
struct Add {
    /// The prediction it is about.
    #[arg(long, value_name = "ID", required_unless_present = "undo")]
    prediction: Option<u32>,
    #[command(flatten)]
    said: Said,
    /// The bundle the label is of, for a label that is no class number.
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["up", "down", "stars", "unsure", "undo"])]
    bundle: Option<PathBuf>,
    /// Said with emphasis: it judges adapters and never trains.
    #[arg(long)]
    confirmed: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Said {
    /// The answer is right.
    #[arg(long)]
    up: bool,
    /// The answer is wrong.
    #[arg(long)]
    down: bool,
    /// The right class: its number, or its label if it is the shown one's or --bundle is given.
    #[arg(long, value_name = "LABEL")]
    correct: Option<String>,
    /// Whoever was asked does not know.
    #[arg(long)]
    unsure: bool,
    /// The answer is better than this class, named as with --correct.
    #[arg(long, value_name = "LABEL")]
    rather_than: Option<String>,
    /// One to five.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    stars: Option<u8>,
    /// Takes back a press about --prediction, the newest of this command or else of anybody, or without one the newest press made by this command.
    #[arg(long)]
    undo: bool,
}

#[derive(Args)]
struct Demonstrate {
    /// The bundle to teach.
    bundle: PathBuf,
    /// What the sample is: a label of the bundle's, or the number of a class.
    label: String,
    #[command(flatten)]
    given: input::Given,
    /// Said with emphasis: it judges adapters and never trains.
    #[arg(long)]
    confirmed: bool,
    /// Keep the sample as the model takes it, within this size of all such inputs, for scopes that change the body.
    #[arg(long, value_name = "QUOTA")]
    keep_inputs: Option<Quota>,
}

#[derive(Args)]
struct RedactArgs {
    #[command(flatten)]
    what: Redacted,
    /// The bundle whose head is then fitted anew to what remains, compared with the factory head alone, and whose
    /// adapters learned from what is redacted are removed.
    #[arg(long, value_name = "BUNDLE")]
    refit: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Redacted {
    /// Everything this source said.
    #[arg(long)]
    source: Option<Source>,
    /// Everything said with this badge, on whichever pad, and every time it was shown. Presses recorded before hone
    /// noted badges go with --source.
    #[arg(long, value_name = "N")]
    badge: Option<u16>,
    /// A prediction, its kept inputs and every press about it.
    #[arg(long, value_name = "ID")]
    prediction: Option<u32>,
}

impl Feedback {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let state = StateDir::resolve(self.state.as_deref())?;
        match self.what {
            What::List { limit, source, json, jsonl } => list(&state, limit, source, json, jsonl)?,
            What::Show { id, json } => show(&state, id, json)?,
            What::Stats { json } => stats(&state, json)?,
            What::Add(add) => add.run(&state)?,
            What::Demonstrate(demonstrate) => demonstrate.run(&state)?,
            What::Export { output } => export(&state, output.as_deref())?,
            What::Import { file } => import(&state, &file)?,
            What::Verify { json } => return verify(&state, json),
            What::Redact(what) => what.run(&state)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Serialize)]
struct Line {
    press_id: u64,
    prediction_id: Option<u32>,
    said: Value,
    status: &'static str,
    about: Option<u64>,
    confirmed: bool,
    ambiguous: bool,
    suspect: bool,
    source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u16>,
    age: Age,
    wall_ms: i64,
}

impl Line {
    fn new(p: &PressLine) -> Line {
        let (status, about) = status(p.status);
        Line {
            press_id: p.press_id.0,
            prediction_id: p.prediction_id,
            said: said(p.signal),
            status,
            about: about.map(|p| p.0),
            confirmed: p.confirmed,
            ambiguous: p.ambiguous,
            suspect: p.suspect,
            source: p.source.clone(),
            badge: p.badge,
            age: p.age,
            wall_ms: p.wall_ms,
        }
    }
}

/// As in the journal's export.
fn said(signal: Signal) -> Value {
    match signal {
        Signal::Thumb { up } => json!({"kind": "thumb", "up": up}),
        Signal::Correction { class } => json!({"kind": "correction", "class": class}),
        Signal::Demonstration { class } => json!({"kind": "demonstration", "class": class}),
        Signal::Stars { stars } => json!({"kind": "stars", "stars": stars}),
        Signal::Preference { over } => json!({"kind": "preference", "over": over}),
        Signal::NotSure => json!({"kind": "not-sure"}),
        Signal::Undo => json!({"kind": "undo"}),
    }
}

fn words(signal: Signal) -> String {
    match signal {
        Signal::Thumb { up: true } => "up".into(),
        Signal::Thumb { up: false } => "down".into(),
        Signal::Correction { class } => format!("class {class}"),
        Signal::Demonstration { class } => format!("shows class {class}"),
        Signal::Stars { stars } => format!("{stars} stars"),
        Signal::Preference { over } => format!("rather than class {over}"),
        Signal::NotSure => "not sure".into(),
        Signal::Undo => "undo".into(),
    }
}

/// What became of a press, and the other press in it.
fn status(status: PressStatus) -> (&'static str, Option<PressId>) {
    match status {
        PressStatus::Effective => ("effective", None),
        PressStatus::Orphan => ("orphan", None),
        PressStatus::Superseded { by } => ("superseded", Some(by)),
        PressStatus::Late { first } => ("late", Some(first)),
        PressStatus::Undone { by } => ("undone", by),
        PressStatus::Undo { of } => ("undo", of),
    }
}

fn time(wall_ms: i64) -> String {
    let since = std::time::Duration::from_millis(wall_ms.unsigned_abs());
    // Years beyond 9999 have no spelling; a clock that far off is shown as a number.
    match std::time::UNIX_EPOCH.checked_add(since) {
        Some(t) if (0..253_402_300_800_000).contains(&wall_ms) => humantime::format_rfc3339_seconds(t).to_string(),
        _ => format!("{wall_ms} ms"),
    }
}

fn table(presses: &[PressLine]) -> String {
    let mut rows = vec![["press", "prediction", "said", "became", "source", "recorded"].map(String::from).to_vec()];
    for p in presses {
        let (status, other) = status(p.status);
        let became = other.map_or(status.to_string(), |o| format!("{status} ({})", o.0));
        let mark = if p.confirmed { " (confirmed)" } else { "" };
        rows.push(vec![
            p.press_id.0.to_string(),
            p.prediction_id.map_or("-".into(), |id| id.to_string()),
            format!("{}{mark}", words(p.signal)),
            became,
            p.rater().to_string(),
            time(p.wall_ms),
        ]);
    }
    output::table(&rows)
}

fn list(state: &StateDir, limit: Option<usize>, source: Option<Source>, json: bool, jsonl: bool) -> anyhow::Result<()> {
    let mut presses = Reader::open(state)?.presses()?;
    presses.retain(|p| source.as_ref().is_none_or(|s| p.source == *s));
    if let Some(limit) = limit {
        presses.drain(..presses.len().saturating_sub(limit));
    }
    let lines = presses.iter().map(Line::new);
    if jsonl {
        return output::json_lines(lines);
    }
    if json {
        return output::document("hone.feedback-list/1", json!({"presses": lines.collect::<Vec<_>>()}));
    }
    Ok(output::line(table(&presses))?)
}

fn show(state: &StateDir, id: u32, json: bool) -> anyhow::Result<()> {
    let story: Story = Reader::open(state)?.show(id)?.ok_or_else(|| {
        fail(Class::Usage, format!("there is no prediction {id} to show; `hone feedback list` names those answered"))
    })?;
    if json {
        let e = &story.example;
        let inputs: Vec<String> = e.inputs.iter().map(|d| d.to_string()).collect();
        let presses: Vec<Line> = story.presses.iter().map(Line::new).collect();
        return output::document(
            "hone.feedback-show/1",
            json!({
                "prediction_id": story.prediction_id, "class": story.class, "label": story.label, "p": story.p,
                "mu": story.mu, "wall_ms": story.wall_ms, "model_digest": e.model_digest, "adapter_id": e.adapter_id,
                "logits": e.logits, "feature_len": e.feature.len(), "inputs": inputs, "presses": presses,
            }),
        );
    }
    let adapter = story.example.adapter_id.as_deref().unwrap_or("factory");
    output::line(format!(
        "prediction {id}: {} (class {}, p {:.3}), adapter {adapter}, {}",
        story.label,
        story.class,
        story.p,
        time(story.wall_ms)
    ))?;
    if story.presses.is_empty() {
        output::line("nobody has said anything about it")?;
    } else {
        output::line(table(&story.presses))?;
    }
    Ok(())
}

fn stats(state: &StateDir, json: bool) -> anyhow::Result<()> {
    let s: Stats = Reader::open(state)?.stats()?;
    if json {
        let kinds: serde_json::Map<String, Value> =
            s.kinds.iter().map(|(k, n)| (k.name().to_string(), json!(n))).collect();
        let sources: serde_json::Map<String, Value> =
            s.sources.iter().map(|(k, n)| (k.to_string(), json!(n))).collect();
        return output::document(
            "hone.feedback-stats/1",
            json!({
                "records": s.records, "kinds": kinds, "redacted": s.redacted, "sources": sources,
                "effective": s.effective, "confirmed": s.confirmed, "suspect": s.suspect, "thumbs_up": s.thumbs_up,
                "thumbs_down": s.thumbs_down, "orphans": s.orphans, "superseded": s.superseded, "late": s.late,
                "undone": s.undone, "file_bytes": s.file_bytes, "first_wall_ms": s.first_wall_ms,
                "last_wall_ms": s.last_wall_ms,
            }),
        );
    }
    let mut rows: Vec<(String, String)> = vec![("records".into(), s.records.to_string())];
    rows.extend(s.kinds.iter().map(|(k, n)| (format!("  {}", k.name()), n.to_string())));
    for (name, n) in [
        ("redacted", s.redacted),
        ("presses that count", s.effective),
        ("  thumbs up", s.thumbs_up),
        ("  thumbs down", s.thumbs_down),
        ("  confirmed", s.confirmed),
        ("  suspect", s.suspect),
        ("orphans", s.orphans),
        ("superseded", s.superseded),
        ("late", s.late),
        ("undone", s.undone),
    ] {
        rows.push((name.into(), n.to_string()));
    }
    rows.extend(s.sources.iter().map(|(k, n)| (format!("from {k}"), n.to_string())));
    rows.push(("file bytes".into(), s.file_bytes.to_string()));
    for (name, at) in [("first record", s.first_wall_ms), ("last record", s.last_wall_ms)] {
        rows.push((name.into(), at.map_or("none".into(), time)));
    }
    Ok(output::line(output::table(&rows.into_iter().map(|(a, b)| vec![a, b]).collect::<Vec<_>>()))?)
}

impl Add {
    fn run(self, state: &StateDir) -> anyhow::Result<()> {
        let mut journal = Journal::open(state.lock()?)?;
        let said = self.kind(journal.reader())?;
        let about = if self.said.undo { None } else { self.prediction };
        let press = Press { confirmed: self.confirmed, ..Press::new(about, said, Source::Command) };
        let id = journal.press(&press)?;
        let line = journal.reader().presses()?.into_iter().find(|p| p.press_id == id);
        journal.close()?;
        let became = line.map_or("recorded", |l| status(l.status).0);
        Ok(output::line(format!("press {}: {became}", id.0))?)
    }

    fn kind(&self, reader: &Reader) -> anyhow::Result<PressKind> {
        let shown = |id: u32| -> anyhow::Result<Story> {
            reader.show(id)?.ok_or_else(|| fail(Class::Usage, format!("there is no prediction {id} in this journal")))
        };
        if self.said.undo {
            let Some(id) = self.prediction else { return Ok(PressKind::Undo { press_id: None }) };
            // One's own first, else the newest of anybody's.
            let counting = shown(id)?.presses.into_iter().filter(|p| p.status == PressStatus::Effective);
            let counts = counting.max_by_key(|p| (p.source == Source::Command, p.press_id));
            let counts = counts.ok_or_else(|| {
                fail(Class::Usage, format!("no press about prediction {id} counts, so there is nothing to take back"))
            })?;
            return Ok(PressKind::Undo { press_id: Some(counts.press_id) });
        }
        // An orphan would be stored and never used: better said now.
        let story = shown(self.prediction.unwrap_or(0))?;
        if let Some(label) = &self.said.correct {
            return Ok(PressKind::Correction { class: self.class(label, &story, reader)? });
        }
        if let Some(label) = &self.said.rather_than {
            let over = self.class(label, &story, reader)?;
            // As the learner would see it, which would leave it aside.
            Heard::Preference { over: over as usize }
                .check(story.class as usize, story.example.logits.len())
                .map_err(|e| fail(Class::Usage, e.to_string()))?;
            return Ok(PressKind::Preference { over });
        }
        Ok(match self.said.stars {
            Some(stars) => PressKind::Stars { stars },
            None if self.said.unsure => PressKind::NotSure,
            None => PressKind::Thumb { up: self.said.up },
        })
    }

    /// The class of a label: by the bundle's names if there is one, else a class number within the prediction's logits.
    fn class(&self, label: &str, story: &Story, reader: &Reader) -> anyhow::Result<u32> {
        let classes = story.example.logits.len();
        if let Some(path) = &self.bundle {
            let bundle = Bundle::open(path).with_context(|| path.display().to_string())?;
            if bundle.recipe().with_context(|| path.display().to_string())?.task != "classification" {
                let model =
                    Model::open(bundle, SessionOptions::default()).with_context(|| path.display().to_string())?;
                let choice = model.task().choice(label).and_then(|c| u32::try_from(c).ok());
                return choice.ok_or_else(|| {
                    let known = model.vocabulary().join(", ");
                    fail(
                        Class::Usage,
                        format!("`{label}` is nothing that can be said of this model; there are {known}"),
                    )
                });
            }
            let labels = bundle.labels().with_context(|| path.display().to_string())?;
            return Ok(classes::told(&labels, bundle.base_digest(), reader)?.find(label)? as u32);
        }
        if label == story.label {
            return Ok(story.class);
        }
        let number = label.parse::<u32>().ok().filter(|&c| (c as usize) < classes);
        number.ok_or_else(|| {
            let text = format!("`{label}` is no class number below {classes}; give --bundle BUNDLE for its labels");
            fail(Class::Usage, text)
        })
    }
}

impl Demonstrate {
    fn run(self, state: &StateDir) -> anyhow::Result<()> {
        let loaded = self.given.load()?;
        let model = Model::open(Bundle::open(&self.bundle)?, SessionOptions::default())?;
        let mut app = App::open(model, state, Mode::Veto)?;
        if let Some(quota) = self.keep_inputs {
            app.keep_inputs(quota)?;
        }
        let class = app.choice(&self.label)?;
        let answer = app.answer(&loaded.sample())?;
        let kind = app.example_of(class, &answer)?;
        let (id, learned) =
            app.press(&Press { confirmed: self.confirmed, ..Press::new(None, kind, Source::Command) })?;
        let answered = app.classes().name(answer.class).to_string();
        output::line(format!("press {}: an example of {}, answered with {answered}", id.0, self.label))?;
        for l in learned {
            if let Learned::Decided { decision, .. } = l {
                output::line(format!("{}; in use: {}", decision.reason, in_use(&app)))?;
            }
        }
        Ok(())
    }
}

/// What answers now, for people.
fn in_use(app: &App) -> String {
    app.current().map_or("the factory head".to_string(), |id| format!("adapter {id}"))
}

fn export(state: &StateDir, target: Option<&Path>) -> anyhow::Result<()> {
    let reader = Reader::open(state)?;
    let Some(path) = target else {
        let mut out = io::BufWriter::new(io::stdout().lock());
        reader.export(&mut out)?;
        return Ok(out.flush()?);
    };
    // Beside the target and renamed: an export cut short must not look like one.
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".part-{}", std::process::id()));
    let part = PathBuf::from(name);
    let write = || -> anyhow::Result<u64> {
        let mut out = io::BufWriter::new(File::create(&part)?);
        let records = reader.export(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        fs::rename(&part, path)?;
        Ok(records)
    };
    let records = write().map_err(|e| {
        // The first error matters; a part that stays behind is named as one.
        let _ = fs::remove_file(&part);
        // A damaged journal is said as such; everything else is the disk.
        if e.is::<StoreError>() { e } else { fail(Class::Store, format!("cannot write {}: {e}", path.display())) }
    })?;
    output::say(format!("{records} records in {}; kept inputs are in {}", path.display(), state.blobs().display()));
    Ok(())
}

fn import(state: &StateDir, file: &Path) -> anyhow::Result<()> {
    let input = File::open(file).map_err(|e| fail(Class::Invalid, format!("cannot read {}: {e}", file.display())))?;
    let mut journal = Journal::open(state.lock()?)?;
    let records = journal.import(&mut BufReader::new(input)).with_context(|| file.display().to_string())?;
    journal.close()?;
    output::say(format!("{records} records imported into {}", state.root().display()));
    Ok(())
}

fn verify(state: &StateDir, json: bool) -> anyhow::Result<ExitCode> {
    let report = Reader::open(state)?.verify()?;
    let chain = report.chain.map(|c| c.to_string());
    let faults: Vec<String> = report.faults.iter().map(|f| f.to_string()).collect();
    if json {
        let body = json!({
            "records": report.records, "redacted": report.redacted, "blobs": report.blobs, "chain": chain,
            "faults": faults, "ok": report.is_sound(),
        });
        output::document("hone.feedback-verify/1", body)?;
    } else {
        for fault in &faults {
            output::line(fault)?;
        }
        let verdict = if report.is_sound() { "sound" } else { "DAMAGED" };
        output::line(format!(
            "{verdict}: {} records, {} redacted, {} blobs, chain {}",
            report.records,
            report.redacted,
            report.blobs,
            chain.as_deref().unwrap_or("none")
        ))?;
    }
    Ok(ExitCode::from(if report.is_sound() { 0 } else { Class::Store.exit_code() }))
}

impl RedactArgs {
    fn run(self, state: &StateDir) -> anyhow::Result<()> {
        let what = match (self.what.source, self.what.badge, self.what.prediction) {
            (Some(source), ..) => Redact::Source(source),
            (None, Some(badge), _) => Redact::Badge(badge),
            (None, None, Some(id)) => Redact::Prediction(id),
            // The command line requires one of the three.
            (None, None, None) => {
                return Err(fail(Class::Usage, "say what to redact: --source, --badge or --prediction"));
            }
        };
        let mut journal = Journal::open(state.lock()?)?;
        let done = journal.redact(&what)?;
        journal.close()?;
        output::line(format!("{} records made unreadable, {} kept inputs removed", done.records, done.blobs))?;
        if let Some(bundle) = self.refit {
            let model = Model::open(Bundle::open(&bundle)?, SessionOptions::default())?;
            let mut app = App::open(model, state, Mode::Veto)?;
            let (decided, removed) = app.refit_redacted()?;
            if let Learned::Decided { decision, .. } = decided {
                let presses = app.learner().training_predictions();
                output::line(format!(
                    "fitted anew to {presses} presses: {}; in use: {}",
                    decision.reason,
                    in_use(&app)
                ))?;
            }
            let ids: Vec<&str> = removed.iter().map(|id| id.as_str()).collect();
            if !ids.is_empty() {
                output::line(format!("removed, learned from what was redacted: {}", ids.join(", ")))?;
            }
        }
        for (base, ids) in still_learned(state)? {
            output::say(format!(
                "hone: adapters of bundle {base} learned from what was redacted stay: {}; the same command with --refit \
                 BUNDLE fits the head without it and removes them",
                ids.join(", ")
            ));
        }
        Ok(())
    }
}

/// By bundle, the adapters that were learned from redacted presses; the one in use is marked.
fn still_learned(state: &StateDir) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let reader = Reader::open(state)?;
    let mut all = Vec::new();
    let Ok(entries) = fs::read_dir(state.adapters()) else { return Ok(all) };
    for entry in entries.flatten() {
        let base = entry.file_name().to_string_lossy().into_owned();
        // Anything else there is none of ours.
        let Ok(store) = AdapterStore::new(state, &base) else { continue };
        let current = store.current_id().ok().flatten();
        let mark = |id: &AdapterId| if current.as_ref() == Some(id) { " (in use)" } else { "" };
        let ids: Vec<String> =
            learned_from_redacted(&reader, &store)?.iter().map(|id| format!("{id}{}", mark(id))).collect();
        if !ids.is_empty() {
            all.push((base, ids));
        }
    }
    all.sort();
    Ok(all)
}
