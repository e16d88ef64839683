//! Texts in the languages of Metal and Direct3D 12, written as wgpu writes them there (wgpu-hal 30, `metal/device.rs` and
//! `dx12/device.rs`: `load_shader` and `create_pipeline_layout`).
use std::path::Path;

use super::*;
use naga::back::{hlsl, msl};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{Module, ResourceBinding, ShaderStage};

/// The versions of Metal's language that wgpu asks for on the oldest system of an M1, macOS 11, and on the newest that it knows.
pub(super) const METAL_VERSIONS: [(u8, u8); 2] = [(2, 3), (4, 0)];

/// What wgpu puts into a text that checks it: indices, divisors and turns of loops in debug builds, nothing in others, where
/// texts are trusted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Checks {
    All,
    None,
}

/// A text in Metal's language of that version. The parameters are in the first slot of the buffers, behind them `buffers` that
/// may be written, then the sizes of these.
///
/// # Errors
/// What cannot be written.
pub(super) fn metal(
    module: &Module,
    info: &ModuleInfo,
    buffers: usize,
    lang_version: (u8, u8),
    checks: Checks,
) -> Result<String, String> {
    let target = |slot: u32| {
        let at = ResourceBinding { group: 0, binding: slot };
        (at, msl::BindTarget { buffer: Some(slot as u8), mutable: slot > 0, ..Default::default() })
    };
    let resources = msl::EntryPointResources {
        resources: (0..=buffers as u32).map(target).collect(),
        immediates_buffer: None,
        sizes_buffer: Some(buffers as u8 + 1),
    };
    let (all, policy) = match checks {
        Checks::All => (true, BoundsCheckPolicy::Restrict),
        Checks::None => (false, BoundsCheckPolicy::Unchecked),
    };
    let options = msl::Options {
        lang_version,
        per_entry_point_map: [("main".to_string(), resources)].into(),
        fake_missing_bindings: false,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: all,
        emit_int_div_checks: all,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, "main".into())),
        vertex_pulling_transform: true,
        ..Default::default()
    };
    let (text, made) = msl::write_string(module, info, &options, &pipeline).map_err(|e| e.to_string())?;
    made.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    Ok(text)
}

/// A text in HLSL of the shader model that the compiler knows which `instance` asks for. The parameters are the first constant
/// buffer, and `buffers` that may be written the first views of unordered access. The number of groups is in the constant buffer
/// behind the parameters, `counted`, as wgpu has it; or it is that of the group, where only texts are right that have one row of them.
///
/// # Errors
/// What cannot be written.
pub(super) fn direct3d(
    module: &Module,
    info: &ModuleInfo,
    buffers: usize,
    checks: Checks,
    counted: bool,
) -> Result<String, String> {
    let target = |binding: u32| {
        let at = ResourceBinding { group: 0, binding };
        (at, hlsl::BindTarget { register: binding.saturating_sub(1), ..Default::default() })
    };
    let all = matches!(checks, Checks::All);
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V5_1,
        binding_map: (0..=buffers as u32).map(target).collect(),
        fake_missing_bindings: false,
        special_constants_binding: counted.then_some(hlsl::BindTarget { register: 1, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: all,
        force_loop_bounding: all,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, "main".into())) };
    let mut text = String::new();
    let made =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| e.to_string())?;
    made.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    Ok(text)
}

/// Has glslang make SPIR-V of a file in HLSL, where it is installed. Constant buffers lie as Direct3D has them; what may be
/// written is bound behind the one there is.
fn glslang(hlsl: &Path, words: &Path) -> std::io::Result<std::process::Output> {
    let how = ["-D", "-V", "-S", "comp", "-e", "main", "--hlsl-offsets", "--shift-ssbo-binding", "1", "-o"];
    std::process::Command::new("glslangValidator").args(how).args([words, hlsl]).output()
}

/// Has glslang read these files as HLSL. Says so where it is not installed.
///
/// # Panics
/// When it refuses one, or takes what is none.
pub(super) fn judge(files: &[PathBuf]) {
    for file in files {
        match glslang(file, &file.with_extension("spv")) {
            Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout)),
            Err(_) => {
                println!(
                    "glslangValidator is not installed (Debian: glslang-tools): nothing but naga has read the HLSL"
                );
                return;
            }
        }
    }
    // What finds nothing wrong must find something wrong: a function that only later shader models have.
    let wrong = files[0].with_extension("wrong.hlsl");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let at = text.rfind('}').unwrap();
    std::fs::write(&wrong, format!("{} dot4add_i8packed(1u, 2u, 3); }}", &text[..at])).unwrap();
    assert!(!glslang(&wrong, &wrong.with_extension("spv")).unwrap().status.success());
}

/// The text of a kernel as it goes to Direct3D 12 in a release, as glslang reads it.
fn by_way_of_hlsl(kernel: &Kernel) -> Vec<u32> {
    let module = naga::front::wgsl::parse_str(&kernel.source).unwrap();
    let flags = naga::valid::ValidationFlags::all();
    let info = naga::valid::Validator::new(flags, EVERYWHERE).validate(&module).unwrap();
    let text = direct3d(&module, &info, kernel.reads + kernel.writes, Checks::None, false).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (hlsl, words) = (dir.path().join("text.hlsl"), dir.path().join("text.spv"));
    std::fs::write(&hlsl, text).unwrap();
    let out = glslang(&hlsl, &words).unwrap();
    assert!(out.status.success(), "{}: {}", kernel.name, String::from_utf8_lossy(&out.stdout));
    std::fs::read(&words).unwrap().as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect()
}

#[test]
fn texts_that_went_through_hlsl_pass_their_trials_on_vulkan() {
    if glslang(Path::new("none"), Path::new("none")).is_err() {
        println!("glslangValidator is not installed (Debian: glslang-tools): nothing is run by way of HLSL");
        return;
    }
    let device =
        Device::open(&Options { software: true, translated: Some(by_way_of_hlsl), ..Options::default() }).unwrap();
    if device.adapter().backend != "vulkan" {
        println!("this device is not driven through Vulkan: nothing is run by way of HLSL");
        return;
    }
    let (mut seen, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    // Chains are made of texts that are here by themselves.
    let calls = calls().into_iter().filter(|c| c.kernel.parts().is_empty());
    for call in calls.filter(|c| seen.insert(c.kernel.name.clone())) {
        wrong.extend(device.ready(&call.kernel).err().map(|e| e.to_string()));
    }
    println!("{} kernels", seen.len());
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), seen.len(), wrong.join("\n"));
}

#[test]
fn a_text_with_a_buffer_that_is_not_bound_is_written_neither_for_metal_nor_for_direct3d() {
    let text = "@group(0) @binding(1) var<storage, read_write> a: array<f32>;
        @group(0) @binding(2) var<storage, read_write> b: array<f32>;
        @compute @workgroup_size(64) fn main() { b[0] = a[0]; }";
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let flags = naga::valid::ValidationFlags::all();
    let info = naga::valid::Validator::new(flags, EVERYWHERE).validate(&module).unwrap();
    let written = |buffers| {
        let metal = metal(&module, &info, buffers, METAL_VERSIONS[1], Checks::None);
        (metal.is_ok(), direct3d(&module, &info, buffers, Checks::None, true).is_ok())
    };
    assert_eq!(written(2), (true, true));
    assert_eq!(written(1), (false, false));
}
