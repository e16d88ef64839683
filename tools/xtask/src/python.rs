//! Python environments of the tasks that need one, and the machine and commit that figures go with.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The interpreter tasks start with.
pub(crate) fn interpreter() -> &'static str {
    if cfg!(windows) { "python" } else { "python3" }
}

/// The Python of the environment in `venv` that has the packages of `needs`; made when it is missing or the needs changed.
///
/// # Errors
/// When there is no Python, or a package cannot be had.
pub(crate) fn environment(venv: &Path, needs: &Path) -> anyhow::Result<PathBuf> {
    let wanted = std::fs::read(needs).with_context(|| format!("cannot read {}", needs.display()))?;
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let installed = venv.join("installed.txt");
    if std::fs::read(&installed).is_ok_and(|has| has == wanted) {
        return Ok(python);
    }
    println!("making a Python environment with the packages of {}", needs.display());
    // What an interrupted run left is no ground to build on.
    quietly(Command::new(interpreter()).args(["-m", "venv", "--clear"]).arg(venv))?;
    quietly(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(needs))?;
    std::fs::write(&installed, wanted)?;
    Ok(python)
}

/// Runs a command without showing what it says; gives what it printed.
///
/// # Errors
/// When it cannot be started or fails: its last word, which is where Python and npm put the reason.
pub(crate) fn quietly(command: &mut Command) -> anyhow::Result<String> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot start {name}"))?;
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &printed;
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").trim().to_string();
    ensure!(out.status.success(), "{name} ended with {}: {last}", out.status);
    Ok(printed)
}

/// The commit that is checked out.
pub(crate) fn commit(root: &Path) -> String {
    let out = Command::new("git").current_dir(root).args(["rev-parse", "--short", "HEAD"]).output();
    out.map_or_else(|_| "an unknown commit".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_string())
}

/// The CPU's name and how many cores of it there are.
pub(crate) fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim().to_string()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} ({cores} cores)", name.unwrap_or_else(|| "an unknown CPU".into()))
}
