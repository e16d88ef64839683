//! `hone demo`: the whole loop on real input, with a person who is simulated and everything else real.
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hone_runtime::Class;
use hone_runtime::app::rehearsal::{self, Says, Script, Turn};
use hone_runtime::app::{App, Learned, Quota};
use hone_runtime::bundle::Bundle;
use hone_runtime::dataset::{Dataset, Row};
use hone_runtime::feedback::ledger::lock;
use hone_runtime::learn::task::Judged;
use hone_runtime::learn::{Action, Theta, argmax};
use hone_runtime::metrics::Latency;
use hone_runtime::modality::{image, render};
use hone_runtime::model::{Model, probabilities};
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde::Serialize;

use crate::exit::fail;
use crate::{assets, output};

/// Shows the whole loop in under a minute: a model that is wrong about somebody, a pad, presses, and a model that is
/// right.
///
/// The model, the quantised inference, the wire protocol, the journal, the learner and the gate are the real ones; the
/// pad is the firmware's core on a pseudo-terminal, and the person is simulated from labelled data.
#[derive(Args)]
pub(crate) struct Demo {
    /// Whom to adapt to.
    #[arg(long, default_value = "new-pen")]
    world: String,
    /// The language of the person in the world `new-language`: de, es, fr or it; es if not given.
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,
    /// Another model to teach than the one carried along: a .hone bundle of any task.
    #[arg(long, value_name = "BUNDLE", requires = "data", conflicts_with_all = ["world", "language"])]
    model: Option<PathBuf>,
    /// Its samples: a directory with index.csv of the splits `stream` (shown and pressed on), `test`, and `source`
    /// (what it was made for).
    #[arg(long, value_name = "DIR", requires = "model")]
    data: Option<PathBuf>,
    /// Presses to make.
    #[arg(long, default_value_t = 200)]
    presses: usize,
    /// What the person says: thumbs, or the right class each time; where a task has remarks, what is wrong with the
    /// answer.
    #[arg(long, value_enum, default_value_t = Press::Thumbs)]
    press: Press,
    /// Share of presses that are wrong.
    #[arg(long, default_value_t = 0.1)]
    wrong: f64,
    /// Order of the samples and which presses are wrong.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The guard between a candidate and use.
    #[arg(long, value_enum, default_value_t = super::Guard::Veto)]
    guard: super::Guard,
    #[command(flatten)]
    learning: super::Learning,
    /// Keep what was put into the model for predictions that are pressed about, up to this size.
    #[arg(long, value_name = "QUOTA")]
    keep_inputs: Option<Quota>,
    /// Where to keep the journal and the adapters; a new directory among the temporary files if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// One JSON document in place of the show.
    #[arg(long)]
    json: bool,
}

/// The language where none is asked for.
const LANGUAGE: &str = "es";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Press {
    Thumbs,
    Corrections,
}

#[derive(Serialize)]
struct Percentiles {
    p50: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
}

#[derive(Serialize)]
struct Measure {
    name: &'static str,
    before: f64,
    after: f64,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    world: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'static str>,
    /// The figures of the task on held-out samples, before and after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    measures: Vec<Measure>,
    presses: usize,
    press: &'static str,
    wrong: f64,
    seed: u64,
    guard: &'static str,
    retain: &'static str,
    accuracy_before: f64,
    accuracy_after: f64,
    source_before: f64,
    source_after: f64,
    regret: usize,
    latency_ms: Percentiles,
    press_durable_ms: Percentiles,
    adapt_ms: Percentiles,
    lost_presses: usize,
    duplicated_presses: usize,
    published: usize,
    vetoed: usize,
    journal_sound: bool,
    state: String,
    seconds: f64,
}

impl Demo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        if !(0.0..=1.0).contains(&self.wrong) {
            return Err(fail(Class::Usage, format!("--wrong is a share between 0 and 1, not {}", self.wrong)));
        }
        if self.presses == 0 {
            return Err(fail(Class::Usage, "--presses is a number from 1 on"));
        }
        let (place, world, bundle) = match (&self.model, &self.data) {
            (Some(model), Some(dir)) => (dir.display().to_string(), Dataset::from_dir(dir)?, Bundle::open(model)?),
            _ => {
                let place = self.place()?;
                let world = assets::world(&place)?;
                (place, world, assets::bundle()?)
            }
        };
        let factory = if self.data.is_some() { Dataset::default() } else { assets::world("factory")? };
        let state = match &self.state {
            Some(dir) => StateDir::at(dir),
            None => StateDir::at(fresh_directory()?),
        };
        let model = Model::open(bundle, SessionOptions::default())?;
        let name = model.bundle().manifest().name.clone();
        let mut app = App::open_with(model, &state, self.learning.settings(self.guard))?;
        if let Some(quota) = self.keep_inputs {
            app.keep_inputs(quota)?;
        }

        let stream: Vec<&Row> = world.split("stream").collect();
        let test: Vec<&Row> = world.split("test").collect();
        let source = match self.data {
            Some(_) => world.split("source").collect(),
            None => source_rows(&world, &factory, &test),
        };
        if stream.is_empty() || test.is_empty() {
            return Err(fail(Class::Invalid, format!("{place} needs samples of the splits `stream` and `test`")));
        }
        self.say(|out| {
            writeln!(out, "hone demo · {place} · {} presses, {:.0} % of them wrong", self.presses, 100.0 * self.wrong)?;
            match app.task().is_plain() {
                true if self.model.is_none() => {
                    writeln!(out, "The model: which of ten digits is meant? It was trained on other people.")
                }
                _ => writeln!(out, "The model: {name}; its answer is {}.", app.task().def().answer),
            }
        })?;
        let user = Features::of(&mut app, &test)?;
        let home = Features::of(&mut app, &source)?;
        let (accuracy_before, source_before) = (user.accuracy(&app)?, home.accuracy(&app)?);
        let measures_before = user.measures(&app)?;
        self.say(|out| {
            writeln!(
                out,
                "Before: right on {:.1} % of this person's {} held-out samples.",
                100.0 * accuracy_before,
                test.len()
            )
        })?;

        let script = Script {
            says: if self.press == Press::Thumbs { Says::Thumbs } else { Says::Corrections },
            presses: self.presses,
            wrong: self.wrong,
            undo_at: (self.presses > 10).then_some(self.presses / 4),
            seed: self.seed,
        };
        let mut show = Show::new(self.json);
        let played = rehearsal::play(&mut app, &stream, &script, |app, turn| show.turn(app, turn, stream[turn.row]))?;
        let (accuracy_after, source_after) = (user.accuracy(&app)?, home.accuracy(&app)?);
        let after = user.measures(&app)?.into_iter().map(|(_, after)| after);
        let measures: Vec<Measure> = measures_before
            .into_iter()
            .zip(after)
            .map(|((name, before), after)| Measure { name, before, after })
            .collect();
        let report = lock(&app.journal()).reader().verify()?;

        let ms = |f: fn(&Turn) -> Duration| -> anyhow::Result<Latency> {
            let v: Vec<f64> = played.turns.iter().map(|t| f(t).as_secs_f64() * 1e3).collect();
            Ok(Latency::from_samples(&v)?)
        };
        let (latency, durable, adapted) = (ms(|t| t.latency)?, ms(|t| t.durable)?, ms(|t| t.adapted)?);
        let decided = |action: Action| {
            let all = played.turns.iter().flat_map(|t| &t.learned);
            all.filter(|l| matches!(l, Learned::Decided { decision, .. } if decision.action == action)).count()
        };
        let document = Document {
            schema: "hone.demo/1",
            world: if self.data.is_some() { place.clone() } else { self.world.clone() },
            language: match self.data {
                Some(_) => None,
                None => place.split_once('/').map(|(_, language)| language.to_string()),
            },
            task: self.model.as_ref().map(|_| app.task().name()),
            measures,
            presses: self.presses,
            press: if self.press == Press::Thumbs { "thumbs" } else { "corrections" },
            wrong: self.wrong,
            seed: self.seed,
            guard: self.guard.name(),
            retain: app.retain().name(),
            accuracy_before,
            accuracy_after,
            source_before,
            source_after,
            regret: played.turns.iter().filter(|t| !t.right).count(),
            latency_ms: Percentiles { p50: latency.p50, p95: Some(latency.p95), p99: None },
            press_durable_ms: Percentiles { p50: durable.p50, p95: None, p99: Some(durable.p99) },
            adapt_ms: Percentiles { p50: adapted.p50, p95: None, p99: Some(adapted.p99) },
            lost_presses: played.lost,
            duplicated_presses: played.doubled,
            published: decided(Action::Publish),
            vetoed: decided(Action::Veto),
            journal_sound: report.is_sound(),
            state: state.root().display().to_string(),
            seconds: started.elapsed().as_secs_f64(),
        };
        if self.json {
            output::json(&document)?;
        } else {
            self.closing(&document, test.len(), source.len(), played.made, &played.port)?;
        }
        let kept = document.lost_presses == 0 && document.duplicated_presses == 0 && document.journal_sound;
        if kept {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(fail(Class::Store, "the journal does not hold exactly the presses made"))
        }
    }

    /// Where the world lies among the embedded ones: its name, and the language where it has several.
    fn place(&self) -> anyhow::Result<String> {
        let worlds = assets::worlds();
        let Some(world) = worlds.iter().find(|w| w.name == self.world) else {
            let known: Vec<&str> = worlds.iter().map(|w| w.name.as_str()).collect();
            let text = format!("there is no world `{}`; --world takes one of {}", self.world, known.join(", "));
            return Err(fail(Class::Usage, text));
        };
        let usual = world.parts.iter().find(|p| *p == LANGUAGE).or(world.parts.first());
        match (&self.language, usual) {
            (None, None) => Ok(world.name.clone()),
            (None, Some(usual)) => Ok(format!("{}/{usual}", world.name)),
            (Some(language), Some(_)) if world.parts.contains(language) => Ok(format!("{}/{language}", world.name)),
            (Some(language), Some(_)) => Err(fail(
                Class::Usage,
                format!("nobody speaks `{language}` here; --language takes one of {}", world.parts.join(", ")),
            )),
            (Some(_), None) => {
                Err(fail(Class::Usage, format!("--language goes with --world new-language, not with {}", world.name)))
            }
        }
    }

    fn say(&self, f: impl Fn(&mut std::io::StdoutLock<'_>) -> std::io::Result<()>) -> std::io::Result<()> {
        if self.json { Ok(()) } else { f(&mut std::io::stdout().lock()) }
    }

    fn closing(&self, d: &Document, test: usize, source: usize, made: usize, port: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let points =
            |a: f64, b: f64| format!("{:5.1} % → {:5.1} %  ({:+.1} points)", 100.0 * a, 100.0 * b, 100.0 * (b - a));
        writeln!(out)?;
        writeln!(out, "                    before     after")?;
        writeln!(
            out,
            "this person       {}   on {test} held-out samples",
            points(d.accuracy_before, d.accuracy_after)
        )?;
        writeln!(
            out,
            "everybody else    {}   on {source} of the factory's own",
            points(d.source_before, d.source_after)
        )?;
        for m in &d.measures {
            writeln!(out, "{:<17} {:7.3} → {:7.3}", m.name, m.before, m.after)?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "answer            {:.2} ms p50, {:.2} ms p95, preprocessing included",
            d.latency_ms.p50,
            d.latency_ms.p95.unwrap_or(0.0)
        )?;
        writeln!(
            out,
            "press → durable   {:.1} ms p50, {:.1} ms p99   (pad, line, fsync, acknowledgement)",
            d.press_durable_ms.p50,
            d.press_durable_ms.p99.unwrap_or(0.0)
        )?;
        writeln!(
            out,
            "durable → better  {:.1} ms p50, {:.1} ms p99   (learner, gate, publishing)",
            d.adapt_ms.p50,
            d.adapt_ms.p99.unwrap_or(0.0)
        )?;
        writeln!(
            out,
            "presses           {made} made on {port}, {} lost, {} doubled; wrong answers shown: {}",
            d.lost_presses, d.duplicated_presses, d.regret
        )?;
        writeln!(out, "adapters          {} published, {} vetoed by the gate", d.published, d.vetoed)?;
        writeln!(
            out,
            "journal           {}",
            if d.journal_sound { "its chain of digests verifies" } else { "DOES NOT VERIFY" }
        )?;
        writeln!(out)?;
        writeln!(out, "Written: journal.db and adapters/ in {}", d.state)?;
        writeln!(out, "See what was said:   hone feedback list --state {}", d.state)?;
        if self.data.is_some() {
            return writeln!(out, "                     (took {:.1} s)", d.seconds);
        }
        writeln!(
            out,
            "Another person:      hone demo --world {}",
            assets::worlds()
                .into_iter()
                .map(|w| w.name)
                .filter(|w| *w != self.world)
                .collect::<Vec<_>>()
                .join(" | --world ")
        )?;
        if let Some(spoken) = &d.language {
            let worlds = assets::worlds();
            let parts = worlds.iter().find(|w| w.name == self.world).map_or(&[][..], |w| &w.parts);
            let others: Vec<&str> = parts.iter().map(String::as_str).filter(|p| p != spoken).collect();
            writeln!(
                out,
                "Another language:    hone demo --world {} --language {}",
                self.world,
                others.join(" | --language ")
            )?;
        }
        writeln!(out, "By hand:             hone pad emulate, and in another terminal hone listen … --pad PORT")?;
        writeln!(out, "                     (took {:.1} s)", d.seconds)
    }
}

fn fresh_directory() -> anyhow::Result<PathBuf> {
    let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    Ok(std::env::temp_dir().join(format!("hone-demo-{}-{unique}", std::process::id())))
}

/// The factory's test rows in the world's own modality; for a world that swaps classes, the classes it leaves alone.
fn source_rows<'a>(world: &Dataset, factory: &'a Dataset, test: &[&Row]) -> Vec<&'a Row> {
    let used = test.iter().fold([false; 3], |u, r| {
        let m = r.modalities();
        [u[0] || m[0], u[1] || m[1], u[2] || m[2]]
    });
    factory
        .split("test")
        .filter(|r| r.modalities().iter().zip(used).all(|(has, used)| !has || used))
        .filter(|r| !world.swapped.contains_key(&r.label))
        .collect()
}

/// What the graph makes of labelled rows: computed once, judged under any adapter.
struct Features(Vec<Judgement>);

struct Judgement {
    feature: Vec<f32>,
    logits: Vec<f32>,
    truth: usize,
    value: Option<f64>,
}

impl Features {
    fn of(app: &mut App, rows: &[&Row]) -> anyhow::Result<Features> {
        let mut out = Vec::with_capacity(rows.len());
        for r in rows {
            let truth = app.model().class_of(&r.label).ok_or_else(|| {
                fail(Class::Invalid, format!("the data says `{}`, which is no label of the model", r.label))
            })?;
            let seen = app.answer(&r.sample())?.seen;
            let value = app.task().value(&r.label);
            out.push(Judgement { feature: seen.feature, logits: seen.logits, truth, value });
        }
        Ok(Features(out))
    }

    fn accuracy(&self, app: &App) -> anyhow::Result<f64> {
        let mut right = 0;
        for of in &self.0 {
            right += usize::from(app.task().near(argmax(&of.served(app)?), of.truth));
        }
        Ok(right as f64 / self.0.len().max(1) as f64)
    }

    fn measures(&self, app: &App) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let judged = self.0.iter().map(|of| {
            let probabilities = probabilities(&of.served(app)?);
            Ok(Judged { probabilities, truth: of.truth, value: of.value })
        });
        Ok(app.task().measures(&judged.collect::<anyhow::Result<Vec<_>>>()?)?)
    }
}

impl Judgement {
    /// Logits with what is published.
    fn served(&self, app: &App) -> anyhow::Result<Vec<f32>> {
        let theta: &Theta = app.learner().published();
        Ok(theta.apply(&app.learner().base().standardise(&self.feature)?, &self.logits)?)
    }
}

/// The show in the terminal: on a terminal one block that is drawn over, else a line a press.
struct Show {
    silent: bool,
    terminal: bool,
    drawn: usize,
    right: Vec<bool>,
}

impl Show {
    fn new(silent: bool) -> Show {
        Show { silent, terminal: std::io::stdout().is_terminal(), drawn: 0, right: Vec::new() }
    }

    fn turn(&mut self, app: &App, t: &Turn, row: &Row) {
        self.right.push(t.right);
        if self.silent {
            return;
        }
        let labels = app.model().labels();
        let recent = &self.right[self.right.len().saturating_sub(50)..];
        let share = 100.0 * recent.iter().filter(|r| **r).count() as f64 / recent.len() as f64;
        let mut says = t.said.clone();
        if t.confirmed {
            says.push_str(" (held: evidence for the gate)");
        }
        if t.mistaken {
            says.push_str(" (by mistake)");
        }
        if t.undone {
            says.push_str(" (after taking a slip back)");
        }
        let news: String = t
            .learned
            .iter()
            .filter_map(|l| match l {
                Learned::Decided { decision, changed: Some(Some(id)), .. } if decision.action == Action::Publish => {
                    Some(format!("  published {id}"))
                }
                Learned::Decided { decision, .. } if decision.action != Action::Publish => {
                    Some(format!("  {:?}: {}", decision.action, decision.reason).to_lowercase())
                }
                _ => None,
            })
            .collect();
        let mut lines = vec![
            format!("press {:3}   prediction {}", t.index + 1, t.prediction_id),
            format!("it says {}   ({:.0} %), it is {}", labels[t.shown], 100.0 * t.p, labels[t.truth]),
            format!("you say {says}"),
            format!("right of the last {}: {share:.0} %", recent.len()),
            news.trim().to_string(),
        ];
        if let Some(text) = &row.text {
            lines.push(format!("typed: {text}"));
        }
        if row.audio.is_some() {
            lines.push("spoken".into());
        }
        let picture =
            row.image.as_deref().and_then(|b| image::decode(b).ok()).map(|(p, _)| {
                if output::colour() { render::ansi_picture(&p, 20) } else { render::ascii_picture(&p, 20) }
            });
        let picture: Vec<&str> = picture.as_deref().map_or_else(Vec::new, |p| p.lines().collect());
        let mut out = std::io::stdout().lock();
        // A reader that has gone away ends the show, not the rehearsal.
        let _ = if self.terminal {
            self.draw(&mut out, &picture, &lines)
        } else {
            let mark = if t.right { " " } else { "x" };
            writeln!(
                out,
                "{:4} {mark} says {:>2} ({:3.0} %) is {:>2}  {says}  · {share:.0} % of the last {}{news}",
                t.index + 1,
                labels[t.shown],
                100.0 * t.p,
                labels[t.truth],
                recent.len()
            )
        };
    }

    fn draw(&mut self, out: &mut impl Write, picture: &[&str], lines: &[String]) -> std::io::Result<()> {
        if self.drawn > 0 {
            write!(out, "\x1b[{}A", self.drawn)?;
        }
        let height = picture.len().max(lines.len()).max(10);
        for i in 0..height {
            let cell = picture.get(i).map_or_else(|| " ".repeat(20), |p| (*p).to_string());
            writeln!(out, "\x1b[2K  {cell}   {}", lines.get(i).map_or("", String::as_str))?;
        }
        self.drawn = height;
        out.flush()
    }
}
