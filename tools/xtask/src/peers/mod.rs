//! `cargo xtask peers`: hone beside ONNX Runtime and OpenVINO on the same models, inputs, threads and machine.
//!
//! Models and timing of the peers are `benches/peers`; the zoo's models come with `cargo xtask zoo --fetch`. Rounds alternate
//! between the programs, so that what else the machine does meets all of them; a figure is the median over rounds of the median
//! over runs, and only ratios are to be read.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::python::{commit, cpu, environment, quietly};
use crate::{target_dir, zoo};

pub(crate) mod train;

/// What the command line asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    only: Vec<String>,
    threads: Vec<usize>,
    rounds: usize,
    seconds: f64,
    hone: Option<PathBuf>,
}

impl Options {
    /// `None` when the arguments are not those of the usage text.
    pub(crate) fn parse(args: &[&str]) -> Option<Options> {
        let mut o = Options { only: Vec::new(), threads: vec![1, 2], rounds: 3, seconds: 1.0, hone: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--only" => o.only.push((*args.next()?).to_owned()),
                "--threads" => {
                    let list: Option<Vec<usize>> = args.next()?.split(',').map(|n| n.parse().ok()).collect();
                    o.threads = list.filter(|l| l.iter().all(|&n| n > 0))?;
                }
                "--rounds" => o.rounds = args.next()?.parse().ok().filter(|&n| n > 0)?,
                "--seconds" => o.seconds = args.next()?.parse().ok().filter(|s: &f64| *s > 0.0 && s.is_finite())?,
                "--hone" => o.hone = Some(PathBuf::from(args.next()?)),
                _ => return None,
            }
        }
        Some(o)
    }
}

/// Who is measured, hone first.
const WHO: [&str; 3] = ["hone", "onnxruntime", "openvino"];

/// One round of one program: milliseconds, and bytes at its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Round {
    p50: f64,
    p99: f64,
    rss: f64,
}

/// What one model took with so many threads.
#[derive(Serialize)]
struct Row {
    model: String,
    threads: usize,
    /// Medians over rounds: of the median and the 99th percentile of a run in milliseconds, and of the peak of memory in MiB.
    figures: BTreeMap<&'static str, [f64; 3]>,
    /// hone's median over that of each peer.
    ratios: BTreeMap<&'static str, f64>,
}

/// Makes what is missing, measures, prints the table and writes it beside the models.
///
/// # Errors
/// When the environment cannot be made, hone cannot be built, or a model that is asked for is not there or fails.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    let home = target_dir(root).join("peers");
    let recipes = root.join("benches/peers");
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let python = environment(&home.join("venv"), &recipes.join("requirements.txt"))?;
    let models = models(root, &home, &recipes, &python)?;
    for name in &options.only {
        ensure!(models.iter().any(|m| m.0 == *name), "there is no model `{name}`; there are: {}", names(&models));
    }
    let hone = program(root, options.hone.as_deref())?;
    let mut rows = Vec::new();
    for (name, model) in models.iter().filter(|m| options.only.is_empty() || options.only.contains(&m.0)) {
        for &threads in &options.threads {
            let inputs = home.join("inputs").join(format!("{name}.npz"));
            let mut rounds: BTreeMap<&'static str, Vec<Round>> = BTreeMap::new();
            for _ in 0..options.rounds {
                for who in WHO {
                    let one = match who {
                        "hone" => ours(&hone, model, &inputs, threads, options.seconds),
                        _ => peer(&python, &recipes, who, model, &inputs, threads, options.seconds),
                    };
                    match one {
                        Ok(round) => rounds.entry(who).or_default().push(round),
                        // A peer that cannot run a model is a fact about the peer.
                        Err(e) if who != "hone" => eprintln!("{name}: {who} does not run it: {e:#}"),
                        Err(e) => bail!("{name}: {e:#}"),
                    }
                }
            }
            let row = Row::of(name, threads, &rounds);
            println!("{}", row.line());
            rows.push(row);
        }
    }
    let table = report(&rows, &format!("{}, commit {}, {} rounds", cpu(), commit(root), options.rounds));
    println!("\n{table}");
    std::fs::write(home.join("table.md"), &table)?;
    std::fs::write(home.join("table.json"), serde_json::to_string_pretty(&rows)?)?;
    println!("written to {}", home.join("table.md").display());
    Ok(true)
}

/// The program that is measured: the one given, or a release build of the tree.
fn program(root: &Path, given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_path_buf());
    }
    let mut build = crate::ci::cargo_command(root);
    ensure!(
        build.args(["build", "--release", "--locked", "--bin", "hone"]).status()?.success(),
        "hone cannot be built"
    );
    Ok(target_dir(root).join("release").join(if cfg!(windows) { "hone.exe" } else { "hone" }))
}

/// The models there are: those of `make.py`, made if need be, and those of the zoo that have recorded inputs.
fn models(root: &Path, home: &Path, recipes: &Path, python: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let fetched = zoo::Options::parse(&["--fetch"]).context("the options of the zoo")?;
    zoo::run(root, &fetched)?;
    let zoo = target_dir(root).join("zoo");
    let script = recipes.join("make.py");
    let wanted = std::fs::read(&script)?;
    let stamp = home.join("made-from");
    if !std::fs::read(&stamp).is_ok_and(|s| s == wanted) {
        println!("making the models, which takes a minute");
        let args = [script.as_path(), home, &zoo, &root.join("models/zoo")];
        quietly(Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").args(args))?;
        std::fs::write(&stamp, wanted)?;
    }
    let mut all = Vec::new();
    for (dir, file) in [(home.to_path_buf(), None), (zoo, Some("model.onnx"))] {
        let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for path in entries.flatten().map(|e| e.path()) {
            let (model, name) = (file.map_or(path.clone(), |f| path.join(f)), path.file_stem().unwrap_or_default());
            let name = name.to_string_lossy().into_owned();
            let has_inputs = home.join("inputs").join(format!("{name}.npz")).is_file();
            if model.extension().is_some_and(|e| e == "onnx") && model.is_file() && has_inputs {
                all.push((name, model));
            }
        }
    }
    all.sort();
    Ok(all)
}

fn names(models: &[(String, PathBuf)]) -> String {
    models.iter().map(|m| &m.0[..]).collect::<Vec<_>>().join(", ")
}

fn ours(hone: &Path, model: &Path, inputs: &Path, threads: usize, seconds: f64) -> anyhow::Result<Round> {
    let mut command = Command::new(hone);
    command.arg("bench").arg(model).arg("--tensors").arg(inputs);
    command.args(["--threads", &threads.to_string(), "--seconds", &seconds.to_string(), "--output", "json"]);
    let said: serde_json::Value = serde_json::from_str(&quietly(&mut command)?)?;
    round(said.pointer("/rows/0").context("hone bench printed no row")?)
}

fn peer(
    python: &Path,
    recipes: &Path,
    who: &str,
    model: &Path,
    inputs: &Path,
    threads: usize,
    seconds: f64,
) -> anyhow::Result<Round> {
    let mut command = Command::new(python);
    command.arg(recipes.join("time.py")).arg(who).arg(model).arg(inputs);
    command.args([threads.to_string(), seconds.to_string()]);
    round(&serde_json::from_str(&quietly(&mut command)?)?)
}

fn round(said: &serde_json::Value) -> anyhow::Result<Round> {
    let of = |name: &str| said.get(name).and_then(serde_json::Value::as_f64).with_context(|| format!("no {name}"));
    Ok(Round { p50: of("p50_ms")?, p99: of("p99_ms")?, rss: of("peak_rss_bytes")? / f64::from(1 << 20) })
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    let n = v.len();
    if n == 0 { f64::NAN } else { (v[(n - 1) / 2] + v[n / 2]) / 2.0 }
}

impl Row {
    fn of(model: &str, threads: usize, rounds: &BTreeMap<&'static str, Vec<Round>>) -> Row {
        let over = |r: &[Round], f: fn(&Round) -> f64| median(r.iter().map(f).collect());
        let figures: BTreeMap<&'static str, [f64; 3]> = rounds
            .iter()
            .map(|(who, r)| (*who, [over(r, |r| r.p50), over(r, |r| r.p99), over(r, |r| r.rss)]))
            .collect();
        let ours = figures.get("hone").map_or(f64::NAN, |f| f[0]);
        let ratios = figures.iter().filter(|(who, _)| **who != "hone").map(|(who, f)| (*who, ours / f[0])).collect();
        Row { model: model.to_owned(), threads, figures, ratios }
    }

    fn line(&self) -> String {
        let mut line = format!("| {} | {} |", self.model, self.threads);
        for who in WHO {
            line += &self.figures.get(who).map_or(" – |".into(), |[p50, p99, _]| format!(" {p50:.3} ({p99:.3}) |"));
        }
        for who in &WHO[1..] {
            line += &self.ratios.get(who).map_or(" – |".into(), |r| format!(" {r:.2} |"));
        }
        let rss = |who: &str| self.figures.get(who).map_or("–".into(), |f| format!("{:.0}", f[2]));
        line + &format!(" {} / {} |", rss("hone"), rss("onnxruntime"))
    }
}

fn report(rows: &[Row], where_: &str) -> String {
    let mut text = format!(
        "{where_}\n\n| model | threads | hone ms, p50 (p99) | ONNX Runtime | OpenVINO | hone / ONNX Runtime | hone / OpenVINO | peak MiB, hone / ONNX Runtime |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        text += &(row.line() + "\n");
    }
    let mut threads: Vec<usize> = rows.iter().map(|r| r.threads).collect();
    threads.sort_unstable();
    threads.dedup();
    for n in threads {
        for who in &WHO[1..] {
            let logs: Vec<f64> =
                rows.iter().filter(|r| r.threads == n).filter_map(|r| r.ratios.get(who)).map(|r| r.ln()).collect();
            if !logs.is_empty() {
                let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
                text += &format!("\nGeometric mean of hone / {who}, {n} thread(s), {} models: {mean:.2}", logs.len());
            }
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_usage_text() {
        let o = Options::parse(&["--only", "minilm", "--threads", "1,4", "--rounds", "2", "--seconds", "0.5"]).unwrap();
        assert_eq!((o.only, o.threads, o.rounds, o.seconds), (vec!["minilm".to_owned()], vec![1, 4], 2, 0.5));
        for bad in [&["--threads", "0"][..], &["--rounds"], &["--seconds", "nan"], &["minilm"]] {
            assert_eq!(Options::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn ratios_are_of_medians_and_a_peer_that_failed_has_none() {
        let at = |p50: f64| Round { p50, p99: 2.0 * p50, rss: 10.0 };
        let rounds = BTreeMap::from([("hone", vec![at(1.0), at(9.0), at(2.0)]), ("onnxruntime", vec![at(4.0)])]);
        let row = Row::of("m", 1, &rounds);
        assert_eq!(row.ratios, BTreeMap::from([("onnxruntime", 0.5)]));
        assert_eq!(row.line(), "| m | 1 | 2.000 (4.000) | 4.000 (8.000) | – | 0.50 | – | 10 / 10 |");
        let text = report(&[row], "here");
        assert!(
            text.contains("hone / onnxruntime, 1 thread(s), 1 models: 0.50") && !text.contains("hone / openvino, ")
        );
    }
}
