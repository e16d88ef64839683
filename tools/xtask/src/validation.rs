//! Programs under Vulkan's validation layer, and what it says of them.
//!
//! The loader puts the layer between a program and its driver when the environment says so; the program knows nothing of it. A
//! file of settings lets the layer write to standard output, where nothing else says its words. (wgpu's own flag installs the
//! layer, and without its debug flag nobody who listens; with it, old layers report the source language of every shader.)
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::ci::cargo_command;

const LAYER: &str = "VK_LAYER_KHRONOS_validation";

/// Hazards between the calls of one submission are looked for, too: barriers are wgpu's, areas of the arena are ours.
const SETTINGS: &str = "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error,warn,perf
khronos_validation.log_filename = stdout
khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
";

/// Runs cargo with `args` under the layer, its output shown as it comes; what the layer reports.
///
/// # Errors
/// When it cannot be run, or does not end well.
pub(crate) fn reports(root: &Path, args: &[&str]) -> anyhow::Result<Vec<String>> {
    let folder = crate::target_dir(root).join("xtask");
    let settings = folder.join("vk_layer_settings.txt");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(&settings, SETTINGS).with_context(|| format!("cannot write {}", settings.display()))?;
    let mut command = cargo_command(root);
    command.args(args).env("VK_INSTANCE_LAYERS", LAYER).env("VK_LAYER_SETTINGS_PATH", &settings);
    println!("$ VK_INSTANCE_LAYERS={LAYER} cargo {}", args.join(" "));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut found = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(std::io::stdout(), "{line}")?;
        found.extend(is_report(&line).then_some(line));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`cargo {}` ended with {status}", args.join(" "));
    }
    Ok(found)
}

/// The layer's messages begin so, in every version of it.
fn is_report(line: &str) -> bool {
    ["Validation Error:", "Validation Warning:", "Validation Performance Warning:"].iter().any(|m| line.contains(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_layer_says_is_told_from_what_tests_say() {
        let of_layer = [
            "UNASSIGNED-CoreValidation-Shader-InconsistentSpirv(ERROR / SPEC): msgNum: 7060244 - Validation Error: [ UNA",
            "Validation Warning: [ UNASSIGNED-x ] Object 0",
            "Validation Performance Warning: [ UNASSIGNED-x ] Object 0",
        ];
        assert!(of_layer.into_iter().all(is_report));
        assert!(!is_report("test device::tests::every_kernel_computes_what_its_plain_loop_does ... ok"));
    }
}
