//! Channels-innermost convolutions at the shapes of MobileNetV2, ResNet-18 and crepe: `f32` and 8 bits, one thread.
//!
//! Informs: how far each kind of layer is from what the core can do, which is printed first.
#![forbid(unsafe_code)]

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::gemm::{self, Packed};
use hone_kernels::qgemm::{self, Columns, Requant, Right};
use hone_kernels::quantize::Codes;
use hone_kernels::threads::Pool;
use hone_kernels::{nhwc, qnhwc, roofline};

/// What convolves, height, width, kernel, stride, padding before, channels in and out; a depthwise layer has no channels out.
type Layer = (&'static str, [usize; 2], [usize; 2], usize, usize, usize, Option<usize>);

const LAYERS: &[Layer] = &[
    ("mobilenet.stem 3x3s2", [224, 224], [3, 3], 2, 0, 3, Some(32)),
    ("mobilenet.expand 1x1", [56, 56], [1, 1], 1, 0, 24, Some(144)),
    ("mobilenet.project 1x1", [14, 14], [1, 1], 1, 0, 576, Some(96)),
    ("mobilenet.depthwise 3x3", [56, 56], [3, 3], 1, 1, 144, None),
    ("mobilenet.depthwise 3x3s2", [112, 112], [3, 3], 2, 1, 96, None),
    ("resnet.3x3", [28, 28], [3, 3], 1, 1, 128, Some(128)),
    ("crepe.512x1s4", [1024, 1], [512, 1], 4, 254, 1, Some(128)),
];

fn window(&(_, input, kernel, stride, pad, ..): &Layer) -> Window {
    let pads: [usize; 2] = std::array::from_fn(|a| if kernel[a] == 1 { 0 } else { pad });
    let steps: [usize; 2] = std::array::from_fn(|a| if input[a] == 1 { 1 } else { stride });
    let out: [usize; 2] = std::array::from_fn(|a| (input[a] + 2 * pads[a] - kernel[a]) / steps[a] + 1);
    Window {
        input: [1, input[0], input[1]],
        kernel: [1, kernel[0], kernel[1]],
        output: [1, out[0], out[1]],
        stride: [1, steps[0], steps[1]],
        dilation: [1; 3],
        pad: [0, pads[0] as isize, pads[1] as isize],
    }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect()
}

/// Multiply-adds a second, best of some runs.
fn peak() -> f64 {
    let run = || {
        let start = Instant::now();
        let n = roofline::multiply_adds(100_000);
        n as f64 / start.elapsed().as_secs_f64()
    };
    (0..20).map(|_| run()).fold(0.0, f64::max)
}

fn bench(c: &mut Criterion) {
    eprintln!("roofline: {:.1} GMAC/s of f32 on one core", peak() / 1e9);
    let pool = Pool::new(1);
    for layer in LAYERS {
        let (what, .., channels, outputs) = *layer;
        let w = window(layer);
        let (n, k) = (outputs.unwrap_or(channels), w.taps() * if outputs.is_some() { channels } else { 1 });
        let (x, weights, bias) = (ramp(w.pixels() * channels), ramp(n * k), ramp(n));
        let codes: Vec<u8> = (0..x.len()).map(|i| (i * 37 % 256) as u8).collect();
        let (offset, scale) = (vec![5; n], vec![1e-3; n]);
        let columns = Columns { offset: &offset, scale: &scale };
        let requant = Requant { codes: Codes { zero: 3, low: 0, high: 255 }, table: None, add: None };
        let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
        let (mut y, mut q) = (vec![0f32; w.positions() * n], vec![0u8; w.positions() * n]);
        let mut group = c.benchmark_group(format!("nhwc {what} {channels} to {n}"));
        // Multiply-adds, so that rows of different shapes can be compared with each other and with the roofline.
        group.throughput(Throughput::Elements((w.positions() * n * k) as u64));
        if outputs.is_some() {
            let mut packed = vec![0f32; gemm::packed_len(n, k)];
            gemm::pack(n, k, |j, kk| weights[j * k + kk], &mut packed);
            let (mut packed_q, mut sums) = (vec![0i8; qgemm::packed_len(n, k)], vec![0; n]);
            qgemm::pack(n, k, |kk, j| (weights[j * k + kk] * 127.0) as i8, &mut packed_q, &mut sums);
            let f = nhwc::Conv {
                window: w,
                batch: 1,
                channels,
                outputs: n,
                groups: 1,
                x: &x,
                w: Packed::F32(&packed),
                bias: Some(&bias),
                epilogue,
            };
            let i = qnhwc::Conv {
                window: w,
                batch: 1,
                channels,
                outputs: n,
                groups: 1,
                x: &codes,
                zero: 3,
                w: Right::Panels(&packed_q),
                columns,
            };
            group.bench_function("f32", |b| b.iter(|| nhwc::conv(&pool, &f, &mut y)));
            group.bench_function("u8i8", |b| b.iter(|| qnhwc::conv_codes(&pool, &i, &requant, &mut q)));
        } else {
            let mut packed = vec![0; qnhwc::depthwise_len(k, n)];
            qnhwc::pack_depthwise(k, n, |tap, ch| (weights[ch * k + tap] * 127.0) as i8, &mut packed);
            let f = nhwc::Depthwise { window: w, batch: 1, channels, x: &x, w: &weights, bias: Some(&bias), epilogue };
            let i = qnhwc::Depthwise { window: w, batch: 1, channels, x: &codes, zero: 3, w: &packed, columns };
            group.bench_function("f32", |b| b.iter(|| nhwc::depthwise(&pool, &f, &mut y)));
            group.bench_function("u8i8", |b| b.iter(|| qnhwc::depthwise_codes(&pool, &i, &requant, &mut q)));
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
