//! `cargo xtask peers --train`: a step of training in hone beside one in PyTorch, by `benches/peers/train.py`.
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
    hone: Option<PathBuf>,
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
                "--hone" => o.hone = Some(PathBuf::from(args.next()?)),
                _ => return None,
            }
        }
        Some(o)
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
    peer_bytes: f64,
    hone_bytes: f64,
    planned_bytes: f64,
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
    let hone = super::program(root, options.hone.as_deref())?;
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(recipes.join("train.py"));
    command.arg("--hone").arg(hone).arg("--work").arg(&home).arg("--threads");
    command.args(options.threads.iter().map(usize::to_string));
    if let Some(steps) = options.steps {
        command.args(["--steps", &steps.to_string()]);
    }
    let out = command.stderr(Stdio::inherit()).output().context("cannot start Python")?;
    ensure!(out.status.success(), "train.py ended with {}", out.status);
    let said = String::from_utf8_lossy(&out.stdout);
    let rows = said.lines().filter(|l| l.starts_with('{')).map(serde_json::from_str::<Row>);
    let table = table(&rows.collect::<Result<Vec<_>, _>>()?, &format!("{}, commit {}", cpu(), commit(root)));
    println!("{table}");
    std::fs::write(home.join("table.md"), &table)?;
    println!("written to {}", home.join("table.md").display());
    Ok(true)
}

/// Ratios are hone over PyTorch; bytes are what a process took beyond what it held before its first step.
fn table(rows: &[Row], where_: &str) -> String {
    let mut out = String::from(
        "| model | scope | threads | PyTorch ms | hone ms | ratio | PyTorch MiB | hone MiB | ratio | planned MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    for r in rows {
        out += &format!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.0} | {:.0} | {:.2} | {:.0} |\n",
            r.model,
            r.scope,
            r.threads,
            r.peer_ms,
            r.hone_ms,
            r.hone_ms / r.peer_ms,
            mib(r.peer_bytes),
            mib(r.hone_bytes),
            r.hone_bytes / r.peer_bytes,
            mib(r.planned_bytes)
        );
    }
    out + &format!("\nMeasured by `cargo xtask peers --train` on {where_}.\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_usage_text_and_a_row_is_a_line_of_ratios() {
        assert_eq!(Options::parse(&[]).unwrap().threads, [1, 2]);
        assert_eq!(Options::parse(&["--threads", "4", "--steps", "9"]).unwrap().steps, Some(9));
        assert_eq!(Options::parse(&["--threads", "0"]), None);
        let line = r#"{"model":"m","scope":"lora","threads":2,"peer_ms":4,"hone_ms":2,"peer_bytes":1048576,
                       "hone_bytes":2097152,"planned_bytes":2097152,"ratio":0.5}"#;
        let row: Row = serde_json::from_str(line).unwrap();
        assert!(table(&[row], "here").contains("| m | lora | 2 | 4.0 | 2.0 | 0.50 | 1 | 2 | 2.00 | 2 |"));
    }
}
