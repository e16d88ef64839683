//! The matrix product at the shapes of which-digit: reference · dispatched · each kernel.
//!
//! Informs: which row of `KERNELS` comes first, and whether int8 weights cost time or only save memory.
#![forbid(unsafe_code)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::gemm::{Gemm, KERNELS, Packed, gemm, pack, packed_len, reference};

/// What multiplies, `M` rows, `K` reduction, `N` columns.
const SHAPES: &[(&str, usize, usize, usize)] = &[
    ("image.conv2 as patches", 196, 144, 32),
    ("audio.conv2 as patches", 1000, 144, 32),
    ("audio.dense", 1, 1440, 128),
    ("image.dense", 1, 576, 128),
    ("text.lstm input", 16, 24, 288),
    ("text.lstm step", 1, 72, 288),
    ("head", 1, 128, 10),
];

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect()
}

fn bench(c: &mut Criterion) {
    for &(what, m, k, n) in SHAPES {
        let (x, w, scale) = (ramp(m * k), ramp(n * k), vec![0.01; n]);
        let (mut packed, mut packed_q) = (vec![0f32; packed_len(n, k)], vec![0i8; packed_len(n, k)]);
        pack(n, k, |j, kk| w[j * k + kk], &mut packed);
        pack(n, k, |j, kk| (w[j * k + kk] * 127.0) as i8, &mut packed_q);
        let forms = [("f32", Packed::F32(&packed)), ("int8", Packed::I8 { q: &packed_q, scale: &scale })];
        for (weights, packed) in forms {
            let mut group = c.benchmark_group(format!("gemm {what} {m}x{k}x{n} {weights}"));
            // Multiply-adds, so that rows of different shapes can be compared.
            group.throughput(Throughput::Elements((m * k * n) as u64));
            let problem = Gemm { m, k, n, x: &x, x_stride: k, w: packed, bias: None, accumulate: false };
            let mut y = vec![0f32; m * n];
            group.bench_function("reference", |b| b.iter(|| reference(&problem, &mut y)));
            group.bench_function("dispatched", |b| b.iter(|| gemm(&problem, &mut y)));
            for kernel in KERNELS {
                if !(kernel.available)() {
                    eprintln!("{}: this CPU cannot run it", kernel.name);
                    continue;
                }
                group.bench_function(BenchmarkId::from_parameter(kernel.name), |b| {
                    b.iter(|| assert!(kernel.run(&problem, &mut y)));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
