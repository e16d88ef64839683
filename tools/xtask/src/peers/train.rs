//! `cargo xtask peers --train`: a step of training in hone beside one in PyTorch and in onnxruntime-training, the sides in
//! turns, by `benches/peers/train.py`; `cargo xtask peers --memory`: what hone plans for a run and what the run then takes.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::python::{commit, cpu, environment};
use crate::target_dir;

/// What the command line asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    threads: Vec<usize>,
    steps: Option<usize>,
    rounds: Option<usize>,
    hone: Option<PathBuf>,
    /// Planned and taken memory in place of the peers.
    memory: bool,
}

impl Options {
    /// `None` when the arguments are not those of the usage text.
    pub(crate) fn parse(args: &[&str]) -> Option<Options> {
        let mut o = Options { threads: vec![1, 2], ..Options::default() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--threads" => {
                    let list: Option<Vec<usize>> = args.next()?.split(',').map(|n| n.parse().ok()).collect();
                    o.threads = list.filter(|l| l.iter().all(|&n| n > 0))?;
                }
                "--steps" => o.steps = Some(args.next()?.parse().ok().filter(|&n| n > 0)?),
                "--rounds" => o.rounds = Some(args.next()?.parse().ok().filter(|&n| n > 0)?),
                "--hone" => o.hone = Some(PathBuf::from(args.next()?)),
                _ => return None,
            }
        }
        Some(o)
    }

    /// The same for planned and taken memory.
    pub(crate) fn of_memory(self) -> Options {
        Options { memory: true, ..self }
    }
}

/// A line of the script.
#[derive(Deserialize)]
struct Row {
    model: String,
    scope: String,
    threads: usize,
    peer_ms: f64,
    hone_ms: f64,
    ort_ms: Option<f64>,
    peer_bytes: f64,
    hone_bytes: f64,
    ort_bytes: Option<f64>,
    planned_bytes: f64,
    /// Features of one example, where they are made once.
    features_ms: Option<f64>,
}

/// A line of the script about memory.
#[derive(Deserialize)]
struct Taken {
    model: String,
    scope: String,
    batch: usize,
    planned_bytes: f64,
    /// Without pages of the program file.
    taken_bytes: f64,
    resident_bytes: f64,
}

/// Makes the environment, measures, prints the table and writes it beside the models.
///
/// # Errors
/// When the environment cannot be made, hone cannot be built, or either side fails.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    let home = target_dir(root).join("peers/train");
    let recipes = root.join("benches/peers");
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let python = environment(&home.join("venv"), &recipes.join("train-requirements.txt"))?;
    let hone = options.hone.clone().map_or_else(|| super::program(root, &[], "release"), Ok)?;
    let ort = if options.memory {
        None
    } else {
        match environment(&home.join("venv-ort"), &recipes.join("train-ort-requirements.txt")) {
            Ok(python) => Some(python),
            Err(why) => {
                println!(
                    "onnxruntime-training 1.19.2 is left out, it does not install here (it needs Python 3.8 to 3.11): {why:#}"
                );
                None
            }
        }
    };
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(recipes.join("train.py"));
    command.arg("--hone").arg(hone).arg("--work").arg(&home).arg("--threads");
    command.args(options.threads.iter().map(usize::to_string));
    for (name, value) in [("--steps", options.steps), ("--rounds", options.rounds)] {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    if let Some(ort) = ort {
        command.arg("--ort").arg(ort);
    }
    if options.memory {
        command.arg("--memory");
    }
    let out = command.stderr(Stdio::inherit()).output().context("cannot start Python")?;
    ensure!(out.status.success(), "train.py ended with {}", out.status);
    let said = String::from_utf8_lossy(&out.stdout);
    let lines = || said.lines().filter(|l| l.starts_with('{'));
    let where_ = format!("{}, commit {}", cpu(), commit(root));
    let (name, table) = if options.memory {
        let rows: Vec<Taken> = lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ("memory.md", taken(&rows, &where_))
    } else {
        let rows: Vec<Row> = lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ("table.md", table(&rows, &where_))
    };
    println!("{table}");
    std::fs::write(home.join(name), &table)?;
    println!("written to {}", home.join(name).display());
    Ok(true)
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Ratios are hone over PyTorch; bytes are what a process took beyond what it held before its first step.
fn table(rows: &[Row], where_: &str) -> String {
    let mut out = String::from(
        "| model | scope | threads | PyTorch ms | ORT ms | hone ms | hone/PyTorch | PyTorch MiB | ORT MiB | hone MiB | hone/PyTorch | planned MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let or_dash = |v: Option<f64>, digits: usize| v.map_or("–".to_string(), |v| format!("{v:.digits$}"));
    for r in rows {
        out += &format!(
            "| {} | {} | {} | {:.1} | {} | {:.1}{} | {:.3} | {:.0} | {} | {:.0} | {:.2} | {:.0} |\n",
            r.model,
            r.scope,
            r.threads,
            r.peer_ms,
            or_dash(r.ort_ms, 1),
            r.hone_ms,
            r.features_ms.map_or(String::new(), |ms| format!(" (features once, {ms:.1} a sample)")),
            r.hone_ms / r.peer_ms,
            mib(r.peer_bytes),
            or_dash(r.ort_bytes.map(mib), 0),
            mib(r.hone_bytes),
            r.hone_bytes / r.peer_bytes,
            mib(r.planned_bytes)
        );
    }
    out + &format!("\nThe sides in turns, medians, by `cargo xtask peers --train` on {where_}.\n")
}

/// What is taken over what was planned.
fn taken(rows: &[Taken], where_: &str) -> String {
    let mut out = String::from(
        "| model | scope | batch | planned MiB | taken MiB | taken/planned | with pages of the program MiB |\n|---|---|---|---|---|---|---|\n",
    );
    for r in rows {
        let (planned, taken) = (mib(r.planned_bytes), mib(r.taken_bytes));
        let ratio = r.taken_bytes / r.planned_bytes;
        let resident = mib(r.resident_bytes);
        out += &format!(
            "| {} | {} | {} | {planned:.1} | {taken:.1} | {ratio:.3} | {resident:.1} |\n",
            r.model, r.scope, r.batch
        );
    }
    out + &format!("\nBy `cargo xtask peers --memory` on {where_}.\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_usage_text_and_a_row_is_a_line_of_ratios() {
        assert_eq!(Options::parse(&[]).unwrap().threads, [1, 2]);
        assert_eq!(Options::parse(&["--threads", "4", "--steps", "9"]).unwrap().steps, Some(9));
        assert_eq!(Options::parse(&["--threads", "0"]), None);
        assert_eq!(Options::parse(&["--rounds", "5"]).unwrap().rounds, Some(5));
        let line = r#"{"model":"m","scope":"head","threads":2,"peer_ms":4,"hone_ms":2,"ort_ms":null,"peer_bytes":1048576,
                       "hone_bytes":2097152,"ort_bytes":3145728,"planned_bytes":2097152,"features_ms":1.5}"#;
        let row: Row = serde_json::from_str(line).unwrap();
        let want = "| m | head | 2 | 4.0 | – | 2.0 (features once, 1.5 a sample) | 0.500 | 1 | 3 | 2 | 2.00 | 2 |";
        assert!(table(&[row], "here").contains(want));
        let line = r#"{"model":"m","scope":"lora","batch":8,"planned_bytes":2097152,"taken_bytes":3145728,"resident_bytes":4194304}"#;
        let row: Taken = serde_json::from_str(line).unwrap();
        assert!(taken(&[row], "here").contains("| m | lora | 8 | 2.0 | 3.0 | 1.500 | 4.0 |"));
    }
}
