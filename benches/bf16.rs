//! Products with weights of bf16 at the shapes of MiniLM, MobileNetV2 and a language model's head: reference · dispatched · each
//! form, beside `f32`, one thread.
//!
//! Informs: whether bf16 is worth having where the CPU only widens it. It is where weights come from memory (one row), and not
//! where the core multiplies all the time; so `--precision auto` asks for instructions that multiply bf16.
#![forbid(unsafe_code)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::bf16::{self, Pair};
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::nhwc;
use hone_kernels::threads::Pool;

mod support;
use support::{Peak, ramp};

/// What multiplies, `M` rows, `K` reduction, `N` columns.
const SHAPES: &[(&str, usize, usize, usize)] = &[
    ("minilm.query", 128, 384, 384),
    ("minilm.up", 128, 384, 1536),
    ("minilm.down", 128, 1536, 384),
    ("minilm.up one token", 1, 384, 1536),
    ("head one token", 1, 1536, 32_000),
];

/// What convolves, height and width, kernel, padding, channels in and out.
const LAYERS: &[(&str, usize, usize, usize, usize, usize)] =
    &[("mobilenet.expand 1x1", 56, 1, 0, 24, 144), ("resnet.3x3", 28, 3, 1, 128, 128)];

fn products(c: &mut Criterion, peak: Option<&Peak>) {
    for &(what, m, k, n) in SHAPES {
        let (x, w, bias) = (ramp(m * k), ramp(n * k), ramp(n));
        let mut floats = vec![0f32; gemm::packed_len(n, k)];
        gemm::pack(n, k, |j, kk| w[j * k + kk], &mut floats);
        let mut pairs = vec![Pair::default(); bf16::packed_len(n, k)];
        bf16::pack(n, k, |j, kk| w[j * k + kk], &mut pairs);
        let of = |w| Gemm { m, k, n, x: &x, x_stride: k, w, bias: Some(&bias), accumulate: false };
        let (exact, rough) = (of(Packed::F32(&floats)), of(Packed::Bf16(&pairs)));
        let mut y = vec![0f32; m * n];
        let mut group = c.benchmark_group(format!("bf16 {what} {m}x{k}x{n}"));
        // Multiply-adds, so that rows of different shapes can be compared with each other and with the roofline.
        group.throughput(Throughput::Elements((m * k * n) as u64));
        if m * k * n < 1 << 25 {
            group.bench_function("reference", |b| b.iter(|| gemm::reference(&rough, &mut y)));
        }
        group.bench_function("f32", |b| b.iter(|| gemm::gemm(&exact, &mut y)));
        group.bench_function("dispatched", |b| b.iter(|| gemm::gemm(&rough, &mut y)));
        for kernel in bf16::KERNELS {
            if !(kernel.available)() {
                eprintln!("{}: this CPU cannot run it", kernel.name);
                continue;
            }
            group.bench_function(BenchmarkId::from_parameter(kernel.name), |b| {
                b.iter(|| assert!(kernel.run(&rough, &mut y)));
            });
        }
        group.finish();
        if let Some(peak) = peak {
            let rest = 4 * (x.len() + y.len());
            peak.reached(&format!("{what} f32"), m * k * n, 4 * floats.len() + rest, || gemm::gemm(&exact, &mut y));
            peak.reached(&format!("{what} bf16"), m * k * n, 4 * pairs.len() + rest, || gemm::gemm(&rough, &mut y));
        }
    }
}

fn convolutions(c: &mut Criterion, peak: Option<&Peak>) {
    let pool = Pool::new(1);
    for &(what, side, kernel, pad, channels, n) in LAYERS {
        let window = Window {
            input: [1, side, side],
            kernel: [1, kernel, kernel],
            output: [1, side, side],
            stride: [1; 3],
            dilation: [1; 3],
            pad: [0, pad as isize, pad as isize],
        };
        let k = window.taps() * channels;
        let (x, w, bias) = (ramp(window.pixels() * channels), ramp(n * k), ramp(n));
        let mut floats = vec![0f32; gemm::packed_len(n, k)];
        gemm::pack(n, k, |j, kk| w[j * k + kk], &mut floats);
        let mut pairs = vec![Pair::default(); bf16::packed_len(n, k)];
        bf16::pack(n, k, |j, kk| w[j * k + kk], &mut pairs);
        let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
        let of =
            |w| nhwc::Conv { window, batch: 1, channels, outputs: n, groups: 1, x: &x, w, bias: Some(&bias), epilogue };
        let (exact, rough) = (of(Packed::F32(&floats)), of(Packed::Bf16(&pairs)));
        let macs = window.positions() * n * k;
        let mut y = vec![0f32; window.positions() * n];
        let mut group = c.benchmark_group(format!("bf16 {what} {channels} to {n}"));
        group.throughput(Throughput::Elements(macs as u64));
        group.bench_function("f32", |b| b.iter(|| nhwc::conv(&pool, &exact, &mut y)));
        group.bench_function("dispatched", |b| b.iter(|| nhwc::conv(&pool, &rough, &mut y)));
        group.finish();
        if let Some(peak) = peak {
            let bytes = 4 * (pairs.len() + x.len() + y.len());
            peak.reached(&format!("{what} bf16"), macs, bytes, || nhwc::conv(&pool, &rough, &mut y));
        }
    }
}

fn bench(c: &mut Criterion) {
    let peak = Peak::measure();
    products(c, peak.as_ref());
    convolutions(c, peak.as_ref());
}

criterion_group!(benches, bench);
criterion_main!(benches);
