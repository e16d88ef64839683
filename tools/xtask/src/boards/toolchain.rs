//! Which compiler builds for a microcontroller here: rustup's with the target's core library, or Debian's, which brings
//! the core library's source.
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "lld"];

/// How to build for a microcontroller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toolchain {
    /// The usual compiler has the target's core library.
    Usual,
    /// Debian's compiler; cargo builds the core library from source, once for each target: one to two minutes.
    Debian,
}

impl Toolchain {
    /// What there is, or what can be had; whatever is installed for it is said aloud. The environment variable
    /// `HONE_BOARDS_TOOLCHAIN` (`usual` or `debian`) asks for one of them.
    ///
    /// # Errors
    /// When there is neither, with the commands that bring one.
    pub(super) fn for_target(target: &str) -> anyhow::Result<Self> {
        match std::env::var("HONE_BOARDS_TOOLCHAIN").as_deref() {
            Ok("debian") => return debian().map(|()| Self::Debian),
            Ok("usual") | Err(_) => {}
            Ok(other) => bail!("HONE_BOARDS_TOOLCHAIN is `{other}`: usual or debian"),
        }
        if has_core(target) {
            return Ok(Self::Usual);
        }
        println!("boards: the compiler has no core library for {target}; trying `rustup target add {target}`");
        if says_yes(Command::new("rustup").args(["target", "add", target])) && has_core(target) {
            return Ok(Self::Usual);
        }
        debian().map(|()| Self::Debian).with_context(|| {
            format!("no compiler for {target}: `rustup target add {target}`, or Debian's {}", DEBIAN_PACKAGES.join(" "))
        })
    }

    /// `cargo build` in a board's folder.
    pub(super) fn cargo(self, dir: &Path, target: &str) -> Command {
        let mut command = crate::ci::cargo_command(dir);
        command.args(["build", "--release", "--target", target]);
        // What the workspace's own builds were told (coverage, sanitizers, a target) is not meant for a board.
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        if self == Self::Debian {
            let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
            // The core library can only be built by a compiler that believes it is a nightly one.
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").env(linker, "ld.lld");
            // It is older than what the product asks for; what boards use of it compiles, which is what this build shows.
            command.args(["-Zbuild-std=core", "--ignore-rust-version"]);
        }
        command
    }

    /// The command as a person would type it.
    pub(super) fn shown(self, target: &str) -> String {
        let build = format!("cargo build --release --target {target}");
        match self {
            Self::Usual => build,
            Self::Debian => format!("RUSTC={DEBIAN_RUSTC} RUSTC_BOOTSTRAP=1 {build} -Zbuild-std=core"),
        }
    }
}

/// Whether the compiler that cargo uses can link for the target.
fn has_core(target: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    said.is_ok_and(|out| out.status.success() && Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists())
}

/// Sees to Debian's compiler, installing it where that can be done.
fn debian() -> anyhow::Result<()> {
    let there = || {
        Path::new(DEBIAN_SOURCE).exists()
            && says_yes(Command::new(DEBIAN_RUSTC).arg("--version"))
            && says_yes(Command::new("ld.lld").arg("--version"))
    };
    if there() {
        return Ok(());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0");
    ensure!(root && says_yes(Command::new("apt-get").arg("--version")), "only root can install it, on Debian");
    println!("boards: installing Debian's {}", DEBIAN_PACKAGES.join(", "));
    for args in
        [&["update", "-qq"][..], &[&["install", "-y", "-qq", "--no-install-recommends"], &DEBIAN_PACKAGES[..]].concat()]
    {
        let status = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").status();
        ensure!(status.is_ok_and(|status| status.success()), "`apt-get {}` failed", args.join(" "));
    }
    ensure!(there(), "installed, but there is still no {DEBIAN_RUSTC} with its source and ld.lld");
    Ok(())
}

fn says_yes(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
