//! `cargo xtask worlds`: the README's table of what the demo teaches, measured now.
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::python::{commit, cpu};

/// Each world with the languages it is spoken in, where it is.
const WORLDS: &[(&str, &[&str])] =
    &[("new-pen", &[]), ("new-voice", &[]), ("new-language", &["es", "de", "fr", "it"]), ("left-handed", &[])];
const SEEDS: &[u32] = &[1, 2, 3];
const BEGIN: &str = "<!-- worlds: made by `cargo xtask worlds` -->";
const END: &str = "<!-- /worlds -->";

/// Runs the demo in every world and writes the table into README.md.
///
/// # Errors
/// When the demo cannot be built or run, or README.md lacks its markers.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let mut table = String::from(
        "| world | says | before | after | gain | own ground before → after | wrong answers shown | answer p50 | press → durable p50 | durable → better p50 |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut add = |name: &str, press: &str, runs: &[serde_json::Value]| -> anyhow::Result<()> {
        table += &row(name, press, runs)?;
        eprintln!("{}", table.lines().last().unwrap_or_default());
        Ok(())
    };
    for &(world, languages) in WORLDS {
        for press in ["thumbs", "corrections"] {
            if languages.is_empty() {
                add(world, press, &runs(root, &["--world", world, "--press", press])?)?;
                continue;
            }
            let mut all = Vec::new();
            for language in languages {
                let of_one = runs(root, &["--world", world, "--language", language, "--press", press])?;
                add(&format!("{world} ({language})"), press, &of_one)?;
                all.extend(of_one);
            }
            add(&format!("{world}, all {}", languages.len()), press, &all)?;
        }
    }
    let stamp = format!("\nMeasured by `cargo xtask worlds` at {} on {}, one thread used.\n", commit(root), cpu());
    let path = root.join("README.md");
    let text = std::fs::read_to_string(&path).context("cannot read README.md")?;
    let (head, rest) = text.split_once(BEGIN).context("README.md has no marker for the table")?;
    let tail = rest.split_once(END).map_or(rest, |(_, tail)| tail);
    std::fs::write(&path, format!("{head}{BEGIN}\n{table}{stamp}{END}{tail}")).context("cannot write README.md")?;
    Ok(true)
}

/// One line of the table: means over `runs`, and the smallest gain among them.
fn row(name: &str, press: &str, runs: &[serde_json::Value]) -> anyhow::Result<String> {
    let values = |pointer: &str| -> anyhow::Result<Vec<f64>> {
        let value = |d: &serde_json::Value| d.pointer(pointer).and_then(serde_json::Value::as_f64);
        runs.iter().map(|d| value(d).with_context(|| format!("no {pointer}"))).collect()
    };
    let mean = |pointer: &str| values(pointer).map(|v| v.iter().sum::<f64>() / v.len() as f64);
    let (before, after) = (values("/accuracy_before")?, values("/accuracy_after")?);
    let lost = values("/lost_presses")?.iter().chain(&values("/duplicated_presses")?).sum::<f64>();
    ensure!(lost == 0.0, "{name}: presses were lost or doubled");
    let least = before.iter().zip(&after).map(|(b, a)| a - b).fold(f64::INFINITY, f64::min);
    let (b, a) = (mean("/accuracy_before")?, mean("/accuracy_after")?);
    Ok(format!(
        "| {name} | {press} | {:.1} % | {:.1} % | **{:+.1}** [{:+.1}] | {:.1} → {:.1} % | {:.0} | {:.2} ms | {:.1} ms | {:.1} ms |\n",
        100.0 * b,
        100.0 * a,
        100.0 * (a - b),
        100.0 * least,
        100.0 * mean("/source_before")?,
        100.0 * mean("/source_after")?,
        mean("/regret")?,
        mean("/latency_ms/p50")?,
        mean("/press_durable_ms/p50")?,
        mean("/adapt_ms/p50")?,
    ))
}

/// The demo with these arguments, once for each seed.
fn runs(root: &Path, args: &[&str]) -> anyhow::Result<Vec<serde_json::Value>> {
    SEEDS.iter().map(|seed| demo(root, args, *seed)).collect()
}

fn demo(root: &Path, args: &[&str], seed: u32) -> anyhow::Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["run", "--quiet", "--release", "--locked", "--", "demo", "--json"]).args(args);
    let out = command.args(["--seed", &seed.to_string()]).output()?;
    if !out.status.success() {
        bail!("the demo with {} failed: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    }
    serde_json::from_slice(&out.stdout).context("the demo did not print JSON")
}
