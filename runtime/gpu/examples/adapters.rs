//! What Vulkan has on this machine, a line an adapter, in columns between tabs: its name, what it is, its driver, and which things it
//! has that kernels could use and not every driver has. `cargo xtask mesa` tells drivers apart by it.
use wgpu::Features;

mod vulkan;

const HAS: [(Features, &str); 3] = [
    (Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
    (Features::SHADER_F16, "floats of 16 bits"),
    (Features::SUBGROUP, "subgroups"),
];

fn main() {
    for adapter in vulkan::adapters() {
        let (info, features) = (adapter.get_info(), adapter.features());
        let has: Vec<&str> = HAS.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect();
        println!("{}\t{:?}\t{} {}\t{}", info.name, info.device_type, info.driver, info.driver_info, has.join(", "));
    }
}
