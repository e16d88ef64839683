//! `hone bench feedback`: how much is learned from how few presses, some of them wrong.
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use hone_runtime::Class;
use hone_runtime::learn::OBJECTIVES;
use hone_runtime::learn::objective::{find, names};
use hone_runtime::trial::report::{Plan, Row, no_adaptation, plot, row};
use hone_runtime::trial::{CHECKPOINTS, worlds};
use serde::{Deserialize, Serialize};

use super::Guard;
use super::bench::Form;
use crate::exit::fail;
use crate::{input, output};

/// The worlds this program carries: six tasks, three seeds.
const WORLDS: &[u8] = include_bytes!("../../benches/feedback/worlds.npz");
/// What others' learners did on the same streams, with their versions.
const PEERS: &str = include_str!("../../benches/feedback/peers.json");

/// Measures learning: changed worlds, one answer shown and one press a sample, accuracy after 50, 100, 200 and 500.
///
/// Rows are means over tasks and seeds; beside them stand Vowpal Wabbit, River and LinUCB as
/// `benches/feedback/peers.py` recorded them on the same streams.
#[derive(Args)]
pub(crate) struct Feedback {
    /// An archive of worlds that `benches/feedback/record.py` wrote; those in this program, if not given.
    #[arg(long, value_name = "FILE.npz")]
    worlds: Option<PathBuf>,
    /// Only this objective; may be given several times.
    #[arg(long, value_name = "NAME")]
    objective: Vec<String>,
    /// Only this guard; may be given several times. `off` and `veto`, if not given.
    #[arg(long, value_enum)]
    guard: Vec<Guard>,
    /// Only this share of wrong presses; may be given several times. 0, 0.1 and 0.3, if not given.
    #[arg(long, value_name = "SHARE")]
    wrong: Vec<f64>,
    /// Only tasks whose name begins so.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Presses in each world.
    #[arg(long, default_value_t = 500)]
    presses: usize,
    /// How much of the source is learned beside the presses.
    #[arg(long, value_enum, default_value_t = super::Retention::Adapt)]
    retain: super::Retention,
    /// Learn on so many random Fourier features beside the model's.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096))]
    random_features: u32,
    /// A directory for the learning curves, one SVG for each kind of press and share of wrong presses.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Form of the result.
    #[arg(short, long, value_enum, default_value_t = Form::Md)]
    output: Form,
}

#[derive(Deserialize)]
struct Peers {
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Body<'a> {
    rows: &'a [Row],
}

impl Feedback {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let plan = self.plan()?;
        let bytes = self.worlds.as_deref().map(input::read).transpose()?;
        let mut worlds = worlds(bytes.as_deref().unwrap_or(WORLDS))?;
        worlds.retain(|w| self.task.as_ref().is_none_or(|t| w.task.starts_with(t.as_str())));
        worlds.retain(|w| self.seed.is_none_or(|s| w.seed == s));
        if worlds.is_empty() {
            return Err(fail(Class::Usage, "no world of that task and seed is in the archive"));
        }
        let mut rows = vec![no_adaptation(&worlds, self.presses)?];
        // Peers played the worlds of this program, all of them; beside anything else they would be compared unfairly.
        if self.worlds.is_none() && self.task.is_none() && self.seed.is_none() && self.presses == 500 {
            let peers: Peers = serde_json::from_str(PEERS).context("the recorded peers")?;
            rows.extend(peers.rows.into_iter().filter(|r| r.press == "labels" || plan.wrong.contains(&r.wrong)));
        }
        let cells = plan.cells();
        for (k, &cell) in cells.iter().enumerate() {
            let made = row(&worlds, &plan, cell)?;
            let name =
                format!("{}, guard {}, {}, {:.0} % wrong", made.objective, made.guard, made.press, 100.0 * made.wrong);
            output::say(format!("{}/{}: {name}", k + 1, cells.len()));
            rows.push(made);
        }
        if let Some(dir) = &self.svg {
            self.draw(dir, &plan, &rows)?;
        }
        match self.output {
            Form::Json => output::document("hone.bench-feedback/1", Body { rows: &rows })?,
            Form::Jsonl => output::json_lines(&rows)?,
            Form::Csv => output::line(self.lines(&rows).iter().map(|l| l.join(",")).collect::<Vec<_>>().join("\n"))?,
            Form::Md => {
                let mut lines = self.lines(&rows);
                lines.insert(1, lines[0].iter().map(|h| "-".repeat(h.chars().count())).collect());
                for line in lines {
                    output::line(format!("| {} |", line.join(" | ")))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let unknown =
            |name: &String| fail(Class::Usage, format!("there is no objective `{name}`; there are {}", names()));
        let named = self.objective.iter().map(|name| find(name).ok_or_else(|| unknown(name)));
        let objectives = named.collect::<Result<Vec<_>, _>>()?;
        if let Some(share) = self.wrong.iter().find(|w| !(0.0..=1.0).contains(*w)) {
            return Err(fail(Class::Usage, format!("--wrong {share} is no share from 0 to 1")));
        }
        if self.presses == 0 {
            return Err(fail(Class::Usage, "--presses counts from 1"));
        }
        let or = |given: &[f64], usual: &[f64]| if given.is_empty() { usual.to_vec() } else { given.to_vec() };
        let guards: &[Guard] = if self.guard.is_empty() { &[Guard::Off, Guard::Veto] } else { &self.guard };
        Ok(Plan {
            objectives: if objectives.is_empty() { OBJECTIVES.to_vec() } else { objectives },
            guards: guards.iter().map(|g| g.mode()).collect(),
            wrong: or(&self.wrong, &[0.0, 0.1, 0.3]),
            presses: self.presses,
            retain: self.retain.mode(),
            random_features: self.random_features as usize,
        })
    }

    fn draw(&self, dir: &std::path::Path, plan: &Plan, rows: &[Row]) -> anyhow::Result<()> {
        fs::create_dir_all(dir).map_err(|e| fail(Class::Failed, format!("cannot make {}: {e}", dir.display())))?;
        for press in ["thumbs", "corrections"] {
            for &wrong in &plan.wrong {
                let of = |r: &&Row| r.press == "none" || r.press == "labels" || r.press == press && r.wrong == wrong;
                let shown: Vec<&Row> = rows.iter().filter(of).collect();
                let percent = (100.0 * wrong).round();
                let svg = plot(&format!("{press}, {percent} % of the presses wrong"), &shown);
                input::write(&dir.join(format!("{press}-{percent}.svg")), svg.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Head and rows as text.
    fn lines(&self, rows: &[Row]) -> Vec<Vec<String>> {
        let at: Vec<String> = CHECKPOINTS
            .iter()
            .copied()
            .filter(|&c| c < self.presses)
            .chain([self.presses])
            .map(|c| c.to_string())
            .collect();
        let mut lines = vec![["objective", "guard", "press", "wrong"].map(String::from).to_vec()];
        lines[0].extend(at.iter().cloned());
        lines[0].extend(["regret", "kept", "contradicted", "runs"].map(String::from));
        for r in rows {
            let mut line = vec![r.objective.clone(), r.guard.clone(), r.press.clone(), format!("{:.2}", r.wrong)];
            line.extend(at.iter().map(|n| r.at.get(n).map_or("-".into(), |v| format!("{v:.3}"))));
            let contradicted = if r.guard == "none" { "-".into() } else { r.contradicted.to_string() };
            line.extend([format!("{:.0}", r.regret), format!("{:.3}", r.kept), contradicted, r.runs.to_string()]);
            lines.push(line);
        }
        lines
    }
}
