//! `cargo xtask onnx-node-tests`: the ONNX standard's own node tests through hone, compared with what is expected of them.
//!
//! The cases come from the pinned `onnx` package by `tools/xtask/onnx_node_tests.py` (its head documents their layout), made
//! once and kept in the target directory. What hone is known not to pass is in `onnx_node_tests.expected.toml`, what ONNX
//! Runtime does not pass in `onnx_node_tests.ort.txt`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

mod expected;
mod judge;
mod reference;

use expected::Expected;
use judge::{CaseResult, Judgement};
use reference::Reference;

use crate::python::{environment, quietly};

const DIR: &str = "tools/xtask";
/// The standard's own tolerance, `|y − ref| ≤ atol + rtol·|ref|`, which the recipe asserts of every case.
const TOLERANCE: &[&str] = &["--rtol", "1e-3", "--atol", "1e-7"];

/// What the recipe says about the cases it made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    /// The version of the `onnx` package.
    onnx: String,
    cases: BTreeMap<String, Case>,
}

/// What a case is made of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Operators of the graph and its subgraphs, `Name` or `domain.Name`.
    ops: Vec<String>,
    /// Element types of the graph's inputs and outputs; `string`, `sequence`, `optional`.
    types: Vec<String>,
}

/// How a run ended.
pub(crate) enum Ended {
    /// Every case did what is expected of it.
    AsExpected,
    /// Some did not; they have been printed.
    Otherwise,
    /// The cases cannot be made here, and why: no Python, or no package index in reach.
    Unavailable(String),
}

/// Makes the cases if need be, runs hone on all of them, prints every case that does not do what is expected of it, and a
/// summary with ONNX Runtime's count beside hone's.
///
/// `results`: verdicts that hone printed before, to be judged instead of running it.
///
/// # Errors
/// When hone cannot be built or run, or a committed list does not fit the cases.
pub(crate) fn run(root: &Path, results: Option<&Path>) -> anyhow::Result<Ended> {
    let read = |name: &str| {
        let path = root.join(DIR).join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let expected = Expected::parse(&read("onnx_node_tests.expected.toml")?).context("onnx_node_tests.expected.toml")?;
    let reference = Reference::parse(&read("onnx_node_tests.ort.txt")?).context("onnx_node_tests.ort.txt")?;
    let cases = match make_cases(root)? {
        Made::Cases(dir) => dir,
        Made::Unavailable(why) => return Ok(Ended::Unavailable(why)),
    };
    let index = std::fs::read(cases.join("index.json")).context("cannot read the index of the cases")?;
    let index: Index = serde_json::from_slice(&index).context("the index of the cases")?;
    reference.check(&index).context("onnx_node_tests.ort.txt")?;

    let said = match results {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => ask_hone(root, &cases)?,
    };
    let judgement = Judgement::of(&index, &expected, &CaseResult::parse_all(&said)?)?;
    print!("{}", judgement.report(&index, &reference));
    Ok(if judgement.as_expected() { Ended::AsExpected } else { Ended::Otherwise })
}

/// hone's verdicts as it printed them, one JSON object a line; kept beside the cases for a second look.
fn ask_hone(root: &Path, cases: &Path) -> anyhow::Result<String> {
    let mut command = crate::ci::cargo_command(root);
    // The development profile: its overflow checks are wanted, and the cases are tiny.
    command.args(["run", "--quiet", "--locked", "--package", "hone", "--"]);
    command.args(["check", "--batch"]).arg(cases).arg("--jsonl").args(TOLERANCE).stderr(Stdio::inherit());
    let out = command.output().context("cannot start cargo")?;
    let said = String::from_utf8(out.stdout).context("`hone check --batch` printed something that is not UTF-8")?;
    let kept = cases.with_extension("results.jsonl");
    std::fs::write(&kept, &said).with_context(|| format!("cannot write {}", kept.display()))?;
    // 3, 4 and 7 say that a case is invalid, differs or is unsupported, which the verdicts say better.
    if !matches!(out.status.code(), Some(0 | 3 | 4 | 7)) {
        let last = said.lines().last().unwrap_or("nothing");
        bail!(
            "`hone check --batch` ended with {} after {} cases; its last word: {last}",
            out.status,
            said.lines().count()
        );
    }
    Ok(said)
}

enum Made {
    Cases(PathBuf),
    Unavailable(String),
}

/// The folder of the cases, made anew when the recipe or its pins have changed.
fn make_cases(root: &Path) -> anyhow::Result<Made> {
    let (recipe, pins) =
        (root.join(DIR).join("onnx_node_tests.py"), root.join(DIR).join("onnx_node_tests.requirements.txt"));
    let text = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let target = crate::target_dir(root);
    let (cases, venv) = (target.join("onnx-node-tests"), target.join("xtask/onnx-node-tests-venv"));

    let wanted_cases = format!("{}\n{}", text(&pins)?, text(&recipe)?);
    if stamped(&cases, &wanted_cases) {
        return Ok(Made::Cases(cases));
    }
    let python = match environment(&venv, &pins) {
        Ok(python) => python,
        Err(why) => return Ok(Made::Unavailable(format!("{why:#}"))),
    };
    println!("making the cases");
    quietly(Command::new(python).arg(&recipe).arg("cases").arg(&cases))
        .with_context(|| format!("{} failed", recipe.display()))?;
    stamp(&cases, &wanted_cases)?;
    Ok(Made::Cases(cases))
}

/// Where it is written what a folder was made from: beside it, so that the folder holds nothing but its contents.
fn stamp_of(dir: &Path) -> PathBuf {
    dir.with_extension("made-from")
}

fn stamped(dir: &Path, wanted: &str) -> bool {
    dir.is_dir() && std::fs::read_to_string(stamp_of(dir)).is_ok_and(|s| s == wanted)
}

fn stamp(dir: &Path, wanted: &str) -> anyhow::Result<()> {
    let path = stamp_of(dir);
    std::fs::write(&path, wanted).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> String {
        std::fs::read_to_string(crate::root().join(DIR).join(name)).unwrap()
    }

    #[test]
    fn the_committed_lists_can_be_read() {
        Expected::parse(&committed("onnx_node_tests.expected.toml")).unwrap();
        Reference::parse(&committed("onnx_node_tests.ort.txt")).unwrap();
    }

    #[test]
    fn the_record_and_the_pins_are_of_one_version_of_onnx() {
        let reference = Reference::parse(&committed("onnx_node_tests.ort.txt")).unwrap();
        let pins = committed("onnx_node_tests.requirements.txt");
        assert!(pins.lines().any(|l| l == format!("onnx=={}", reference.onnx)), "{pins}");
        assert!(pins.lines().all(|l| l.contains("==")), "an unpinned package: {pins}");
    }

    #[test]
    fn a_folder_counts_as_made_only_from_the_same_recipe_and_only_while_it_is_there() {
        let dir = std::env::temp_dir().join(format!("hone-node-stamp-{}", std::process::id()));
        let made = dir.join("cases");
        std::fs::create_dir_all(&made).unwrap();
        assert!(!stamped(&made, "a"), "never stamped");
        stamp(&made, "a").unwrap();
        assert!(stamped(&made, "a"));
        assert!(!stamped(&made, "b"), "another recipe");
        std::fs::remove_dir_all(&made).unwrap();
        assert!(!stamped(&made, "a"), "the folder is gone");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
