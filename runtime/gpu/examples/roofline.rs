//! What a GPU can do at most, measured by loops that do nothing else: bytes a second of copying and of reading a large buffer,
//! floating-point operations a second of `f32` and, where the device has it, `f16`, and those of products of four bytes at once.
//! Prints one line of JSON. `cargo xtask peers --gpu` holds what models reach against it.
//!
//! It measures the adapter that hone takes first. One in software, which is asked for by `--software`, gets smaller buffers and less
//! time: what it reaches says nothing of a GPU.
use std::time::{Duration, Instant};

use wgpu::{BufferUsages, Features};

mod vulkan;

use vulkan::wait;

/// Threads of a group.
const GROUP: usize = 256;
/// Turns of the loops that compute, each of eight steps on a vector of four.
const TURNS: usize = 64;
/// Submissions that are timed, of which the fastest counts.
const ROUNDS: usize = 5;

/// How much is measured.
struct Size {
    /// Of each of two buffers.
    bytes: usize,
    /// Groups of the loops that compute.
    groups: usize,
    /// A submission that is timed takes no less.
    least: Duration,
}

const SIZE: Size = Size { bytes: 256 << 20, groups: 8192, least: Duration::from_millis(100) };
const SOFTWARE: Size = Size { bytes: 32 << 20, groups: 64, least: Duration::from_millis(20) };

/// One loop.
struct Loop {
    name: &'static str,
    text: String,
    groups: usize,
    /// Bytes moved, or operations, of one call.
    amount: f64,
}

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    buffers: [wgpu::Buffer; 2],
}

fn main() {
    let software = std::env::args().any(|a| a == "--software");
    let likeliest = hone_gpu::device::Device::adapters().into_iter().find(|a| software || !a.is_software());
    let Some(likeliest) = likeliest else {
        eprintln!("roofline: there is no GPU; --software measures an adapter that is a program");
        std::process::exit(1);
    };
    let adapter = vulkan::adapters().into_iter().find(|a| a.get_info().name == likeliest.name);
    let adapter = adapter.expect("what is there once is there again");
    let size = if likeliest.is_software() { SOFTWARE } else { SIZE };
    let halves = adapter.features().contains(Features::SHADER_F16);
    let gpu = Gpu::open(&adapter, adapter.features() & Features::SHADER_F16, &size);
    let mut line =
        format!("{{\"adapter\":{:?},\"kind\":{:?},\"driver\":{:?}", likeliest.name, likeliest.kind, likeliest.driver);
    for l in loops(&size, gpu.bytes(), halves) {
        line += &format!(",\"{}\":{:.4e}", l.name, l.amount / gpu.seconds(&l, size.least));
    }
    println!("{line}}}");
}

/// What is measured, on buffers of so many bytes.
fn loops(size: &Size, bytes: usize, halves: bool) -> Vec<Loop> {
    let floats = "@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;";
    // Each thread has four elements, of which neighbours lie side by side.
    let (elements, threads) = (bytes / 16, bytes / 64);
    let copy = format!("for (var k = 0u; k < 4u; k++) {{ y[i + k * {threads}u] = x[i + k * {threads}u]; }}");
    let read = format!(
        "var s = vec4<f32>(); for (var k = 0u; k < 16u; k++) {{ s += x[i + k * {}u]; }} y[i] = s;",
        elements / 16
    );
    let (copies, reads) = (threads / GROUP, elements / 16 / GROUP);
    // Sums of eight that wait for one another no more than they must; a factor and a term that no compiler knows.
    let steps = |number: &str| {
        let step = |k: usize| format!("s{k} = fma(s{k}, a, b); ");
        let first: String = (0..8).map(|k| format!("var s{k} = a + {number}({k}.0); ")).collect();
        let sum: Vec<String> = (0..8).map(|k| format!("s{k}")).collect();
        let steps: String = (0..8).map(step).collect();
        format!(
            "let a = {number}(x[i & 255u]); let b = {number}(x[i & 127u]); {first}\
             for (var k = 0u; k < {TURNS}u; k++) {{ {steps} }} y[i] = vec4<f32>({});",
            sum.join(" + ")
        )
    };
    let words = "@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<i32>;";
    let dot = |k: usize| format!("s{k} += dot4I8Packed(u32(s{k}), a); ");
    let (first, dots): (String, String) =
        ((0..8).map(|k| format!("var s{k} = i32(a) + {k}; ")).collect(), (0..8).map(dot).collect());
    let products = format!(
        "let a = x[i & 255u]; {first} for (var k = 0u; k < {TURNS}u; k++) {{ {dots} }} \
         y[i] = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;"
    );
    let calls = (size.groups * GROUP * TURNS * 8) as f64;
    let main = |head: &str, body: &str| {
        format!(
            "{head}\n@compute @workgroup_size({GROUP}) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ let i = id.x; {body} }}"
        )
    };
    let mut all = vec![
        Loop { name: "copy_bytes_per_s", text: main(floats, &copy), groups: copies, amount: 2.0 * bytes as f64 },
        Loop { name: "read_bytes_per_s", text: main(floats, &read), groups: reads, amount: 1.0625 * bytes as f64 },
        // A product and a sum in each of four.
        Loop {
            name: "f32_ops_per_s",
            text: main(floats, &steps("vec4<f32>")),
            groups: size.groups,
            amount: 8.0 * calls,
        },
        // Four products and four sums.
        Loop { name: "i8_ops_per_s", text: main(words, &products), groups: size.groups, amount: 8.0 * calls },
    ];
    if halves {
        let text = format!("enable f16;\n{}", main(floats, &steps("vec4<f16>")));
        all.push(Loop { name: "f16_ops_per_s", text, groups: size.groups, amount: 8.0 * calls });
    }
    all
}

impl Gpu {
    fn open(adapter: &wgpu::Adapter, features: Features, size: &Size) -> Gpu {
        let limits = adapter.limits();
        let desc = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: limits.clone(),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = wait(adapter.request_device(&desc)).expect("the driver opens");
        // A power of two, so that threads divide it.
        let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size).min(size.bytes as u64);
        let bytes = 1u64 << most.ilog2();
        assert!(
            bytes as usize >= 16 * GROUP * size.groups,
            "buffers of {bytes} bytes have no room for what each thread writes"
        );
        let buffer = |_| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes,
                usage: BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let buffers = [0, 1].map(buffer);
        Gpu { device, queue, buffers }
    }

    fn bytes(&self) -> usize {
        self.buffers[0].size() as usize
    }

    /// What a call takes, of as many as make a submission of no less than `least`.
    fn seconds(&self, l: &Loop, least: Duration) -> f64 {
        let desc =
            wgpu::ShaderModuleDescriptor { label: Some(l.name), source: wgpu::ShaderSource::Wgsl((&*l.text).into()) };
        // SAFETY: every loop ends after as many turns as its text says. Grids of loops that move bytes are made of the buffers'
        // length; those that compute read among the first 256 elements and write one a thread, which `open` sees to.
        let module = unsafe { self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(l.name),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let [x, y] = &self.buffers;
        let entries = [(0, x), (1, y)]
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let run = |calls: usize| {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            for _ in 0..calls {
                pass.dispatch_workgroups(l.groups as u32, 1, 1);
            }
            drop(pass);
            let commands = encoder.finish();
            let began = Instant::now();
            self.queue.submit([commands]);
            self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
            began.elapsed()
        };
        // The first one compiles, and makes pages of what it touches.
        run(1);
        let mut calls = 1;
        while run(calls) < least && calls < 1 << 16 {
            calls *= 2;
        }
        (0..ROUNDS).map(|_| run(calls).as_secs_f64() / calls as f64).fold(f64::INFINITY, f64::min)
    }
}
