//! `cargo xtask peers`: hone beside ONNX Runtime and OpenVINO on the same models, inputs, threads and machine.
//!
//! Models and timing of the peers are `benches/peers`; the zoo's models come with `cargo xtask zoo --fetch`. Rounds alternate
//! between the programs, so that what else the machine does meets all of them; a figure is the median over rounds of the median
//! over runs, and only ratios are to be read. Beside what a second thread gains stands what the machine has to give: two
//! processes of hone at one time, a thread each, against one alone.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::python::{commit, cpu, environment, quietly};
use crate::{target_dir, zoo};

pub(crate) mod gpu;
pub(crate) mod train;

/// What the command line asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    only: Vec<String>,
    threads: Vec<usize>,
    rounds: usize,
    seconds: f64,
    /// `--precision` of `hone bench`.
    precision: String,
    /// Models of the zoo that are made from published weights, too.
    export: bool,
    hone: Option<PathBuf>,
}

impl Options {
    /// `None` when the arguments are not those of the usage text.
    pub(crate) fn parse(args: &[&str]) -> Option<Options> {
        let mut o = Options {
            only: Vec::new(),
            threads: vec![1, 2],
            rounds: 3,
            seconds: 1.0,
            precision: "f32".to_owned(),
            export: false,
            hone: None,
        };
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
                "--precision" => {
                    o.precision =
                        args.next().filter(|p| ["f32", "bf16", "auto"].contains(p)).map(|p| (*p).to_owned())?;
                }
                "--export" => o.export = true,
                "--hone" => o.hone = Some(PathBuf::from(args.next()?)),
                _ => return None,
            }
        }
        Some(o)
    }
}

/// Who is measured, hone first.
const WHO: [&str; 3] = ["hone", "onnxruntime", "openvino"];

/// One round of one program: milliseconds, and MiB at its peak beyond what it had resident before it looked at the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Round {
    p50: f64,
    p99: f64,
    rss: f64,
}

/// What is written beside the table.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    machine: String,
    commit: String,
    rounds: usize,
    seconds: f64,
    precision: &'a str,
    rows: &'a [Row],
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
    /// With one thread: how much more two processes of hone get done at one time than one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    two_processes: Option<f64>,
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
    let models = models(root, &home, &recipes, &python, options.export)?;
    for name in &options.only {
        ensure!(models.iter().any(|m| m.0 == *name), "there is no model `{name}`; there are: {}", names(&models));
    }
    let hone = options.hone.clone().map_or_else(|| program(root, &[], "release"), Ok)?;
    let mut rows = Vec::new();
    for (name, model) in models.iter().filter(|m| options.only.is_empty() || options.only.contains(&m.0)) {
        for &threads in &options.threads {
            let inputs = home.join("inputs").join(format!("{name}.npz"));
            let mut rounds: BTreeMap<&'static str, Vec<Round>> = BTreeMap::new();
            let mut both = Vec::new();
            let how = Ours { device: "cpu", precision: &options.precision, threads, seconds: options.seconds };
            let ours = || round(&ours(&hone, model, &inputs, &how)?);
            for _ in 0..options.rounds {
                for who in WHO {
                    let one = match who {
                        "hone" => ours(),
                        _ => peer(&python, &recipes, who, model, &inputs, threads, options.seconds),
                    };
                    match one {
                        Ok(round) => rounds.entry(who).or_default().push(round),
                        // A peer that cannot run a model is a fact about the peer.
                        Err(e) if who != "hone" => eprintln!("{name}: {who} does not run it: {e:#}"),
                        Err(e) => bail!("{name}: {e:#}"),
                    }
                }
                if threads == 1 && options.threads.contains(&2) {
                    both.push(at_once(ours).with_context(|| name.clone())?);
                }
            }
            let row = Row::of(name, threads, &rounds, both);
            println!("{}", row.line());
            rows.push(row);
        }
    }
    let (machine, commit) = (cpu(), commit(root));
    let where_ =
        format!("{machine}, commit {commit}, {} rounds, hone's --precision {}", options.rounds, options.precision);
    let table = report(&rows, &where_);
    println!("\n{table}");
    std::fs::write(home.join("table.md"), &table)?;
    let document = Document {
        schema: "hone.peers/1",
        machine,
        commit,
        rounds: options.rounds,
        seconds: options.seconds,
        precision: &options.precision,
        rows: &rows,
    };
    std::fs::write(home.join("table.json"), serde_json::to_string_pretty(&document)?)?;
    println!("written to {}", home.join("table.md").display());
    Ok(true)
}

/// The program that is measured, built of the tree with those features in `release` or `debug`.
fn program(root: &Path, features: &[&str], profile: &str) -> anyhow::Result<PathBuf> {
    let mut build = crate::ci::cargo_command(root);
    build.args(["build", "--locked", "--bin", "hone"]).args(features);
    ensure!(build.args((profile == "release").then_some("--release")).status()?.success(), "hone cannot be built");
    Ok(target_dir(root).join(profile).join(if cfg!(windows) { "hone.exe" } else { "hone" }))
}

/// Twice the time of a run alone over that of a run beside another one: 2 where a second core is all one's own.
fn at_once(run: impl Fn() -> anyhow::Result<Round> + Sync) -> anyhow::Result<f64> {
    let alone = run()?.p50;
    let (one, other) = std::thread::scope(|s| {
        let other = s.spawn(&run);
        (run(), other.join())
    });
    let other = other.map_err(|_| anyhow::anyhow!("a run beside another panicked"))??;
    Ok(4.0 * alone / (one?.p50 + other.p50))
}

/// The models there are: those of `make.py` and *which digit*, and those of the zoo that have recorded inputs; made if need be.
fn models(
    root: &Path,
    home: &Path,
    recipes: &Path,
    python: &Path,
    export: bool,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut fetch = vec!["--fetch"];
    fetch.extend(export.then_some("--export"));
    zoo::run(root, &zoo::Options::parse(&fetch).context("the options of the zoo")?)?;
    let zoo = target_dir(root).join("zoo");
    make(root, home, recipes, python)?;
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

/// Runs `make.py`, unless nothing has changed since.
fn make(root: &Path, home: &Path, recipes: &Path, python: &Path) -> anyhow::Result<()> {
    let zoo = target_dir(root).join("zoo");
    let script = recipes.join("make.py");
    let mut wanted = std::fs::read(&script)?;
    // Models that were fetched since have no inputs yet.
    let mut there: Vec<_> = std::fs::read_dir(&zoo).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    there.sort();
    wanted.extend(there.iter().flat_map(|name| name.as_encoded_bytes()));
    let stamp = home.join("made-from");
    if !std::fs::read(&stamp).is_ok_and(|s| s == wanted) {
        println!("making the models, which takes a minute");
        let args = [script.as_path(), home, &zoo, &root.join("models")];
        quietly(Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").args(args))?;
        std::fs::write(&stamp, wanted)?;
    }
    Ok(())
}

fn names(models: &[(String, PathBuf)]) -> String {
    models.iter().map(|m| &m.0[..]).collect::<Vec<_>>().join(", ")
}

/// How hone runs a model.
struct Ours<'a> {
    device: &'a str,
    precision: &'a str,
    threads: usize,
    seconds: f64,
}

/// The row that `hone bench` says of a model.
fn ours(hone: &Path, model: &Path, inputs: &Path, how: &Ours<'_>) -> anyhow::Result<serde_json::Value> {
    let mut command = Command::new(hone);
    command.arg("bench").arg(model).arg("--tensors").arg(inputs).args(["--output", "json"]);
    command.args(["--precision", how.precision, "--device", how.device]);
    command.args(["--threads", &how.threads.to_string(), "--seconds", &how.seconds.to_string()]);
    let said: serde_json::Value = serde_json::from_str(&quietly(&mut command)?)?;
    said.pointer("/rows/0").cloned().context("hone bench printed no row")
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
    // What a process takes before it has seen the model, for a peer Python and its packages, is no part of what the model takes.
    let rss = of("peak_rss_bytes")? - of("rss_before_bytes")?;
    Ok(Round { p50: of("p50_ms")?, p99: of("p99_ms")?, rss: rss / f64::from(1 << 20) })
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    let n = v.len();
    if n == 0 { f64::NAN } else { (v[(n - 1) / 2] + v[n / 2]) / 2.0 }
}

impl Row {
    fn of(model: &str, threads: usize, rounds: &BTreeMap<&'static str, Vec<Round>>, both: Vec<f64>) -> Row {
        let over = |r: &[Round], f: fn(&Round) -> f64| median(r.iter().map(f).collect());
        let figures: BTreeMap<&'static str, [f64; 3]> = rounds
            .iter()
            .map(|(who, r)| (*who, [over(r, |r| r.p50), over(r, |r| r.p99), over(r, |r| r.rss)]))
            .collect();
        let ours = figures.get("hone").map_or(f64::NAN, |f| f[0]);
        let ratios = figures.iter().filter(|(who, _)| **who != "hone").map(|(who, f)| (*who, ours / f[0])).collect();
        let two_processes = (!both.is_empty()).then(|| median(both));
        Row { model: model.to_owned(), threads, figures, ratios, two_processes }
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
    text + "\n" + &second_thread(rows)
}

/// What a second thread gains each program, and what two processes of hone gain: the machine's own limit.
fn second_thread(rows: &[Row]) -> String {
    let mut text = String::new();
    for one in rows.iter().filter(|r| r.threads == 1) {
        let Some(two) = rows.iter().find(|r| r.threads == 2 && r.model == one.model) else { continue };
        if text.is_empty() {
            text = "\nTwo threads against one, and two processes of one thread against one process:\n\n\
                    | model | hone | ONNX Runtime | OpenVINO | two processes of hone |\n|---|---|---|---|---|\n"
                .to_owned();
        }
        text += &format!("| {} |", one.model);
        for who in WHO {
            let gain = one.figures.get(who).zip(two.figures.get(who)).map(|(a, b)| a[0] / b[0]);
            text += &gain.map_or(" – |".into(), |g| format!(" {g:.2} |"));
        }
        text += &one.two_processes.map_or(" – |\n".into(), |g| format!(" {g:.2} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_usage_text() {
        let o = Options::parse(&["--only", "minilm", "--threads", "1,4", "--rounds", "2", "--seconds", "0.5"]).unwrap();
        assert_eq!((o.only, o.threads, o.rounds, o.seconds), (vec!["minilm".to_owned()], vec![1, 4], 2, 0.5));
        for bad in [&["--threads", "0"][..], &["--rounds"], &["--seconds", "nan"], &["--precision", "f16"], &["minilm"]]
        {
            assert_eq!(Options::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn ratios_are_of_medians_and_a_peer_that_failed_has_none() {
        let at = |p50: f64| Round { p50, p99: 2.0 * p50, rss: 10.0 };
        let rounds = BTreeMap::from([("hone", vec![at(1.0), at(9.0), at(2.0)]), ("onnxruntime", vec![at(4.0)])]);
        let row = Row::of("m", 1, &rounds, vec![1.8]);
        assert_eq!(row.ratios, BTreeMap::from([("onnxruntime", 0.5)]));
        assert_eq!(row.line(), "| m | 1 | 2.000 (4.000) | 4.000 (8.000) | – | 0.50 | – | 10 / 10 |");
        let faster = BTreeMap::from([("hone", vec![at(1.25)])]);
        let text = report(&[row, Row::of("m", 2, &faster, Vec::new())], "here");
        assert!(text.contains("| m | 1.60 | – | – | 1.80 |"), "{text}");
        assert!(
            text.contains("hone / onnxruntime, 1 thread(s), 1 models: 0.50") && !text.contains("hone / openvino, ")
        );
    }
}
