//! `cargo xtask aarch64`: tests for 64-bit Arm, under QEMU's user mode on one CPU model after the other: the kernels', and
//! with `--plans` also the runtime's that run them in plans (passes, every operator's recorded cases, gradients).
//!
//! What a model lacks is not detected there, so that each runs another set of kernels: `cortex-a53` and `cortex-a72`
//! (Raspberry Pi 3 and 4) plain NEON, `cortex-a76` (Raspberry Pi 5, Jetson Orin) the dot products, `max` all there is.
//! Correctness only: an emulator has no speed worth quoting.
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";
const PACKAGES: [&str; 3] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"];
/// All models that are told apart.
pub(crate) const MODELS: [&str; 4] = ["cortex-a53", "cortex-a72", "cortex-a76", "max"];

/// How a run ended.
pub(crate) enum Ended {
    /// Every test passed on every model.
    Well,
    /// Some did not.
    Badly,
    /// It cannot be run here, and why.
    Unavailable(String),
}

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Kernels,
    /// And what runs them: building that takes minutes.
    Plans,
}

/// The tests of the runtime that run plans.
const PLANS: [&str; 4] = ["plan::", "ops::conformance", "autodiff::", "train::"];

/// Runs the tests on `models`, installing what is missing where that can be done, which is said aloud.
///
/// # Errors
/// When cargo cannot be started.
pub(crate) fn run(root: &Path, models: &[&str], of: Of) -> anyhow::Result<Ended> {
    if let Err(why) = ready() {
        return Ok(Ended::Unavailable(format!("{why:#}")));
    }
    let mut well = true;
    for model in models {
        println!("aarch64: {model}");
        well &= test(root, model, &["--package", "hone-kernels"], &[])?;
        if of == Of::Plans {
            well &= test(root, model, &["--package", "hone", "--package", "hone-runtime"], &PLANS)?;
        }
    }
    Ok(if well { Ended::Well } else { Ended::Badly })
}

fn test(root: &Path, model: &str, packages: &[&str], tests: &[&str]) -> anyhow::Result<bool> {
    let mut command = crate::ci::cargo_command(root);
    command.arg("test").args(packages).args(["--lib", "--locked", "--target", TARGET, "--", "--quiet"]).args(tests);
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", TARGET.to_uppercase().replace('-', "_"));
    command.env(variable("LINKER"), LINKER).env("CC_aarch64_unknown_linux_gnu", LINKER);
    command.env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar");
    command.env(variable("RUNNER"), format!("{EMULATOR} -L /usr/aarch64-linux-gnu -cpu {model}"));
    Ok(command.status().context("cannot start cargo")?.success())
}

/// Sees to the compiler's target, the linker and the emulator.
fn ready() -> anyhow::Result<()> {
    let here = |name: &str| succeeds(Command::new(name).arg("--version"));
    if !here(LINKER) || !here(EMULATOR) {
        println!("aarch64: installing {}", PACKAGES.join(" "));
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(PACKAGES);
        install.env("DEBIAN_FRONTEND", "noninteractive");
        let installed = succeeds(Command::new("apt-get").args(["update", "-qq"])) && succeeds(&mut install);
        ensure!(
            installed && here(LINKER) && here(EMULATOR),
            "{LINKER} and {EMULATOR} are missing: apt-get install {}",
            PACKAGES.join(" ")
        );
    }
    ensure!(
        succeeds(Command::new("rustup").args(["target", "add", TARGET])),
        "no compiler for {TARGET}: rustup target add {TARGET}"
    );
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
