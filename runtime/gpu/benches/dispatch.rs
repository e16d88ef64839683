//! What a dispatch costs the CPU, on a queue that has nothing to do, and what opening a device costs without and with the file of
//! the last process.
//!
//! It informs how long a chain of small operators may be before encoding it, and not running it, is what takes the time.
//! `cargo bench -p hone-gpu --features device --bench dispatch`; by `cargo test` everything runs once.
use std::path::Path;
use std::time::{Duration, Instant};

use hone_gpu::device::{Binding, Builder, Device, Options, Recording};
use hone_gpu::functions::FUNCTIONS;
use hone_gpu::kernel::Call;
use hone_gpu::map::{Element, Map, Operand};

/// Calls of a recording: a small model has the first number, a large one the last.
const CALLS: [usize; 3] = [30, 100, 1000];

fn main() {
    let once = !std::env::args().any(|a| a == "--bench");
    let runs = if once { 1 } else { 200 };
    let open = |cache: Option<&Path>| {
        Device::open(&Options { software: true, cache: cache.map(Path::to_path_buf), ..Options::default() })
            .unwrap_or_else(|e| panic!("{e}: this bench needs one; on Debian `apt-get install mesa-vulkan-drivers`"))
    };
    let device = open(None);
    println!("{} ({}), {}", device.adapter().name, device.adapter().kind, device.adapter().driver);
    for calls in CALLS {
        let mut recording = recording(&device, calls);
        let mut encoded: Vec<Duration> = (0..runs).map(|_| run(&mut recording)).collect();
        encoded.sort();
        let us = |d: Duration| d.as_secs_f64() * 1e6 / calls as f64;
        let (least, median) = (us(encoded[0]), us(encoded[encoded.len() / 2]));
        println!("{calls:>5} dispatches: encode + submit {median:.2} us each, at best {least:.2}");
    }
    let folder = std::env::temp_dir().join(format!("hone-gpu-bench-{}", std::process::id()));
    for start in ["cold", "warm"] {
        let began = Instant::now();
        let device = open(Some(&folder));
        let opened = began.elapsed();
        let all = functions();
        all.iter().for_each(|call| device.ready(&call.kernel).unwrap_or_else(|e| panic!("{e}")));
        device.keep();
        assert_eq!(device.cache_told(), None);
        let (ms, kernels) = (|d: Duration| d.as_secs_f64() * 1e3, all.len());
        println!("{start} start: open {:.1} ms, {kernels} kernels {:.1} ms", ms(opened), ms(began.elapsed() - opened));
    }
    std::fs::remove_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
}

/// Small calls of one kernel, each on what the one before has made, as in a network.
fn recording(device: &Device, calls: usize) -> Recording {
    let call = &functions()[0];
    let mut builder = Builder::new(device, 1024);
    for i in 0..calls {
        let area = |i: usize| Binding::Arena(i % 2 * 512..i % 2 * 512 + 420);
        builder.dispatch(call, &[area(i), area(i + 1)]).unwrap_or_else(|e| panic!("{e}"));
    }
    builder.finish().unwrap_or_else(|e| panic!("{e}"))
}

/// What it took until it was submitted.
fn run(recording: &mut Recording) -> Duration {
    recording.run(0, &[], |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    recording.encoded()
}

/// A call of each function of one operand.
fn functions() -> Vec<Call> {
    let of = |function| {
        let operands = vec![Operand { element: Element::F32, strides: vec![1] }];
        Map { function, constants: vec![0.5, 1.5], shape: vec![105], operands, result: Element::F32 }.call()
    };
    FUNCTIONS.iter().filter(|f| f.operands == 1 && !f.decides && f.name != "CastToFloat").filter_map(of).collect()
}
