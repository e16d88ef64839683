//! The architecture, checked on text: every rule reads the tree, none compiles it.
//!
//! To add a rule: write it in `rules.rs` (or `signatures.rs`), add its row to [`RULES`] and a planted violation to
//! `PLANTED` in the tests; a row without one fails by name.
use std::path::Path;

mod modules;
mod rules;
mod rust;
mod signatures;
mod tree;

#[cfg(test)]
mod tests;

use tree::Tree;

/// One rule.
struct Rule {
    /// Its name in reports.
    name: &'static str,
    /// What must hold, in one line.
    holds: &'static str,
    /// Every place where it does not.
    check: fn(&Tree) -> Vec<Finding>,
    /// Whether a finding fails the run or is only shown.
    severity: Severity,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

/// One place where a rule does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: path.to_string(), line, what: what.into() }
    }
}

macro_rules! rule {
    ($name:literal, $holds:literal, $check:path) => {
        Rule { name: $name, holds: $holds, check: $check, severity: Severity::Error }
    };
}

/// Every rule.
static RULES: &[Rule] = &[
    rule!("parses", "every Rust file and manifest of the tree can be read", rules::parses),
    rule!("top-level", "everything lives in the given top-level folders", rules::top_level),
    rule!("unsafe", "`unsafe` is written in runtime/kernels, runtime/gpu and firmware/boards only", rules::unsafe_code),
    rule!("forbid-unsafe", "every other crate root says #![forbid(unsafe_code)]", rules::forbid_unsafe),
    rule!("tract", "only runtime/src/import knows tract", rules::importer),
    rule!("rusqlite", "only runtime/src/journal knows rusqlite", rules::database),
    rule!("wgpu", "only runtime/gpu knows wgpu", rules::gpu),
    rule!("kernels", "runtime/kernels has no dependency and allocates nothing", rules::kernels),
    rule!("no-std", "firmware/wire and firmware/pad are no_std and name neither std nor alloc", rules::no_std),
    rule!("pad-clock", "firmware/pad reads no clock", rules::pad_clock),
    rule!("wire-io", "firmware/wire does no I/O", rules::wire_io),
    rule!("network", "runtime opens no network connection", rules::network),
    rule!("crates", "crates depend on each other along the drawn arrows only", rules::crates),
    rule!("modules", "modules of runtime know nothing of what their row forbids", modules::modules),
    rule!("signatures", "no type of tract, serde_json, rusqlite or wgpu is public in runtime", signatures::signatures),
    rule!("unfinished", "no marker of unfinished work, no ignored test", rules::unfinished),
    rule!("machine-paths", "no absolute path of somebody's machine", rules::machine_paths),
    rule!("lints", "every crate takes the workspace's lints, and those deny missing docs", rules::lints),
    Rule {
        name: "length",
        holds: "no source file is longer than 1200 lines",
        check: rules::length,
        severity: Severity::Warning,
    },
];

/// Checks the tree under `root` and prints what was found. True when nothing that fails was found.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let tree = Tree::read(root)?;
    let mut failures = 0;
    for rule in RULES {
        let mut found = (rule.check)(&tree);
        found.sort();
        found.dedup();
        if found.is_empty() {
            continue;
        }
        let word = if rule.severity == Severity::Error { "error" } else { "warning" };
        println!("{word}[{}]: {}", rule.name, rule.holds);
        for f in &found {
            println!("  {}:{}: {}", f.path, f.line, f.what);
        }
        if rule.severity == Severity::Error {
            failures += found.len();
        }
    }
    println!("arch: {} rules over {} files, {failures} violations", RULES.len(), tree.len());
    Ok(failures == 0)
}
