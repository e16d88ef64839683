//! `cargo xtask size`: how large the program is with each set of features, built as it goes to a device.
use std::env::consts::{ARCH, OS};
use std::path::Path;

use anyhow::{Context, ensure};

use crate::ci::cargo_command;
use crate::python::commit;
use crate::target_dir;

/// What is built when nothing is named: a device with some of its inputs and with all, a host, and both with GPUs.
const SETS: [&str; 6] = ["gpio", "image,gpio", "device", "device,gpu", "host", "host,gpu"];

/// Builds the program with each set of features, prints a line each, and says where the table is.
///
/// # Errors
/// When a set cannot be built, or a file not be written.
pub(crate) fn run(root: &Path, sets: &[&str]) -> anyhow::Result<bool> {
    let sets = if sets.is_empty() { &SETS } else { sets };
    let mut table = format!("Profile `dist`, stripped, {} {}, commit {}\n\n", ARCH, OS, commit(root));
    table += "| features | MB |\n|---|---|\n";
    for set in sets {
        let args =
            ["build", "--profile", "dist", "--locked", "--bin", "hone", "--no-default-features", "--features", set];
        ensure!(cargo_command(root).args(args).status()?.success(), "hone cannot be built with `{set}`");
        let program = target_dir(root).join("dist").join(if cfg!(windows) { "hone.exe" } else { "hone" });
        let bytes = std::fs::metadata(&program).with_context(|| format!("no {}", program.display()))?.len();
        let line = format!("| `{set}` | {:.1} |\n", bytes as f64 / 1e6);
        print!("{line}");
        table += &line;
    }
    let path = target_dir(root).join("size.md");
    std::fs::write(&path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n{table}\nwritten to {}", path.display());
    Ok(true)
}
