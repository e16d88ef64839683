//! What Vulkan's validation layer must report: a module that adds floats as if they were integers, handed to the driver as it is.
//! That the layer reports nothing of hone's own kernels says something only where it reports this.
//!
//! `cargo xtask ci` runs it under the layer. Without the layer a driver may take it in silence, and so does this program.
use wgpu::naga;

mod vulkan;

use vulkan::wait;

const TEXT: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(1)
fn main() {
    x[0] = x[0] + x[1];
}";

/// Opcodes of additions (SPIR-V 1.6, 3.49.13): of integers, and of floats.
const ADD: (u32, u32) = (128, 129);

fn main() {
    let adapter =
        vulkan::adapters().into_iter().next().expect("there is a Vulkan driver (Debian: mesa-vulkan-drivers)");
    let desc = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::PASSTHROUGH_SHADERS,
        required_limits: wgpu::Limits::downlevel_defaults(),
        // SAFETY: what is asked for is the one module below, which is made and never run.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, _queue) = wait(adapter.request_device(&desc)).expect("the driver opens");
    let words = bad();
    let desc = wgpu::ShaderModuleDescriptorPassthrough {
        label: Some("known bad"),
        spirv: Some(words.into()),
        ..wgpu::ShaderModuleDescriptorPassthrough::default()
    };
    // SAFETY: no pipeline is made of it, so that nothing runs it.
    drop(unsafe { device.create_shader_module_passthrough(desc) });
}

/// The words of a module whose one addition is of the wrong kind.
fn bad() -> Vec<u32> {
    let module = naga::front::wgsl::parse_str(TEXT).expect("the text is valid");
    let flags = naga::valid::ValidationFlags::all();
    let info = naga::valid::Validator::new(flags, naga::valid::Capabilities::empty()).validate(&module);
    let options = naga::back::spv::Options::default();
    let mut words = naga::back::spv::write_vec(&module, &info.expect("it is"), &options, None).expect("so it is here");
    let (mut at, mut found) = (5, 0);
    while let Some(word) = words.get_mut(at) {
        let (length, opcode) = (*word >> 16, *word & 0xffff);
        if opcode == ADD.1 {
            *word = length << 16 | ADD.0;
            found += 1;
        }
        at += length.max(1) as usize;
    }
    assert_eq!(found, 1, "one addition");
    words
}
