//! Whether the compiler can build for a microcontroller here: it needs the target's core library, which rustup has.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sees to the target's core library, fetching it where that can be done.
///
/// # Errors
/// Why there is none, with the command that brings it.
pub(super) fn see_to(target: &str) -> Result<(), String> {
    if has_core(target) {
        return Ok(());
    }
    println!("boards: the compiler has no core library for {target}; trying `rustup target add {target}`");
    let added = Command::new("rustup").args(["target", "add", target]).stdout(Stdio::null()).status();
    if added.is_ok_and(|status| status.success()) && has_core(target) {
        return Ok(());
    }
    Err(format!("the compiler has no core library for {target}: `rustup target add {target}`"))
}

/// `cargo build` in a board's folder.
pub(super) fn cargo(dir: &Path, target: &str) -> Command {
    let mut command = crate::ci::cargo_command(dir);
    command.args(["build", "--release", "--target", target]);
    // What the workspace's own builds were told (coverage, sanitizers, a target) is not meant for a board.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", short_paths(dir).join("\x1f"));
    command
}

/// Flags by which the files that panics name are told without where this machine keeps them: they are a kilobyte of an
/// image, and would make another one of it, with another digest, on each machine.
fn short_paths(dir: &Path) -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registries = home.and_then(|home| std::fs::read_dir(home.join("registry/src")).ok());
    let registries = registries.into_iter().flatten().flatten().map(|entry| entry.path());
    // `firmware/boards/NAME` is three folders below the root.
    let root = dir.ancestors().nth(3).map(Path::to_path_buf);
    registries.chain(root).map(|from| format!("--remap-path-prefix={}/=", from.display())).collect()
}

/// Whether the compiler that cargo uses can link for the target.
fn has_core(target: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    said.is_ok_and(|out| out.status.success() && Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists())
}
