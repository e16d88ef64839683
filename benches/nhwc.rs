//! Channels-innermost convolutions at the shapes of MobileNetV2, ResNet-18, *which digit* and crepe, `f32` and 8 bits, one thread: reference ·
//! dispatched · each form, and by squares.
//!
//! Informs: how far each kind of layer is from what the core can do, which is printed, and from which sizes on squares pay
//! (`winograd::Shape::best`).
#![forbid(unsafe_code)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::gemm::{self, Packed};
use hone_kernels::isa::{Form, Isa};
use hone_kernels::qgemm::{self, Columns, Requant, Right};
use hone_kernels::quantize::Codes;
use hone_kernels::threads::Pool;
use hone_kernels::winograd::{self, Shape, Square};
use hone_kernels::{nhwc, qnhwc};

#[path = "support/layers.rs"]
mod layers;
mod support;
use layers::Rows;
use support::{Peak, ramp};

/// What convolves, height, width, kernel, stride, padding before, channels in and out; a depthwise layer has no channels out.
type Layer = (&'static str, [usize; 2], [usize; 2], usize, usize, usize, Option<usize>);

const LAYERS: &[Layer] = &[
    ("mobilenet.stem 3x3s2", [224, 224], [3, 3], 2, 0, 3, Some(32)),
    ("mobilenet.expand 1x1", [56, 56], [1, 1], 1, 0, 24, Some(144)),
    ("mobilenet.project 1x1", [14, 14], [1, 1], 1, 0, 576, Some(96)),
    ("mobilenet.depthwise 3x3", [56, 56], [3, 3], 1, 1, 144, None),
    ("mobilenet.depthwise 3x3s2", [112, 112], [3, 3], 2, 1, 96, None),
    ("resnet.3x3 56", [56, 56], [3, 3], 1, 1, 64, Some(64)),
    ("resnet.3x3 28", [28, 28], [3, 3], 1, 1, 128, Some(128)),
    ("resnet.3x3 14", [14, 14], [3, 3], 1, 1, 256, Some(256)),
    ("resnet.3x3 7", [7, 7], [3, 3], 1, 1, 512, Some(512)),
    ("which-digit.image.conv2", [14, 14], [3, 3], 1, 1, 16, Some(32)),
    ("which-digit.image.conv3", [7, 7], [3, 3], 1, 1, 32, Some(64)),
    ("which-digit.audio.conv1", [40, 100], [3, 3], 1, 1, 1, Some(16)),
    ("which-digit.audio.conv2", [20, 50], [3, 3], 1, 1, 16, Some(32)),
    ("which-digit.audio.conv3", [10, 25], [3, 3], 1, 1, 32, Some(48)),
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

fn bench(c: &mut Criterion) {
    let peak = Peak::measure();
    for layer in LAYERS {
        let (what, .., channels, outputs) = *layer;
        let w = window(layer);
        let (n, k) = (outputs.unwrap_or(channels), w.taps() * if outputs.is_some() { channels } else { 1 });
        let macs = w.positions() * n * k;
        let mut group = c.benchmark_group(format!("nhwc {what} {channels} to {n}"));
        group.throughput(Throughput::Elements(macs as u64));
        let bytes = w.pixels() * channels + n * k + w.positions() * n;
        let rows = Rows { what, group, peak: peak.as_ref(), macs, bytes };
        match outputs {
            Some(n) => dense(rows, w, channels, n),
            None => depthwise(rows, w, channels),
        }
    }
}

/// Codes that are made of sums, for `n` channels.
fn columns(n: usize) -> (Vec<i32>, Vec<f32>) {
    (vec![5; n], vec![1e-3; n])
}

const REQUANT: Requant<'_> = Requant { codes: Codes { zero: 3, low: 0, high: 255 }, table: None, add: None };

fn codes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 % 256) as u8).collect()
}

fn dense(mut rows: Rows<'_>, window: Window, channels: usize, outputs: usize) {
    let (pool, n, k) = (Pool::new(1), outputs, window.taps() * channels);
    let (x, weights, bias) = (ramp(window.pixels() * channels), ramp(n * k), ramp(n));
    let mut y = vec![0f32; window.positions() * n];
    let mut packed = vec![0f32; gemm::packed_len(n, k)];
    gemm::pack(n, k, |j, kk| weights[j * k + kk], &mut packed);
    let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
    let (bias, w) = (Some(&bias[..]), Packed::F32(&packed));
    let f = nhwc::Conv { window, batch: 1, channels, outputs, groups: 1, x: &x, w, bias, epilogue };
    rows.row("f32 reference", 4, || nhwc::reference(&f, &mut y));
    rows.row("f32 dispatched", 4, || nhwc::conv(&pool, &f, &mut y));
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        rows.row(&format!("f32 {isa:?}"), 4, || assert!(nhwc::conv_on(Form::Floats(isa), &pool, &f, &mut y)));
    }
    for square in [Square::Two, Square::Four].into_iter().filter(|_| Shape::supports(&window)) {
        let shape = Shape { window, batch: 1, channels, outputs, square };
        let mut transformed = vec![0f32; shape.packed_len()];
        shape.pack(|o, tap, ch| weights[o * k + tap * channels + ch], &mut transformed);
        let mut scratch = vec![0f32; shape.scratch_len(1)];
        let c = winograd::Conv { x: &x, w: &transformed, bias, epilogue };
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            rows.row(&format!("f32 by squares of {} {isa:?}", square.out()), 4, || {
                assert!(shape.conv_on(isa, &pool, &c, &mut scratch, &mut y));
            });
        }
    }
    let (mut packed, mut sums) = (vec![0i8; qgemm::packed_len(n, k)], vec![0; n]);
    qgemm::pack(n, k, |kk, j| (weights[j * k + kk] * 127.0) as i8, &mut packed, &mut sums);
    let ((offset, scale), x) = (columns(n), codes(x.len()));
    let (columns, w) = (Columns { offset: &offset, scale: &scale }, Right::Panels(&packed));
    let q = qnhwc::Conv { window, batch: 1, channels, outputs, groups: 1, x: &x, zero: 3, w, columns };
    let (mut y, mut sums) = (vec![0u8; y.len()], vec![0; y.len()]);
    rows.row("u8i8 reference", 1, || qnhwc::reference(&q, &mut sums));
    rows.row("u8i8 dispatched", 1, || qnhwc::conv_codes(&pool, &q, &REQUANT, &mut y));
    for kernel in qgemm::Kernel::all().filter(qgemm::Kernel::available) {
        rows.row(kernel.name, 1, || assert!(qnhwc::conv_codes_by(&kernel, &pool, &q, &REQUANT, &mut y)));
    }
}

fn depthwise(mut rows: Rows<'_>, window: Window, channels: usize) {
    let (pool, taps) = (Pool::new(1), window.taps());
    let (x, weights, bias) = (ramp(window.pixels() * channels), ramp(channels * taps), ramp(channels));
    let mut y = vec![0f32; window.positions() * channels];
    let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
    let f = nhwc::Depthwise { window, batch: 1, channels, x: &x, w: &weights, bias: Some(&bias), epilogue };
    rows.row("f32 reference", 4, || nhwc::depthwise_reference(&f, &mut y));
    rows.row("f32 dispatched", 4, || nhwc::depthwise(&pool, &f, &mut y));
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        rows.row(&format!("f32 {isa:?}"), 4, || assert!(nhwc::depthwise_on(isa, &pool, &f, &mut y)));
    }
    let mut packed = vec![0; qnhwc::depthwise_len(taps, channels)];
    qnhwc::pack_depthwise(taps, channels, |tap, ch| (weights[ch * taps + tap] * 127.0) as i8, &mut packed);
    let ((offset, scale), x) = (columns(channels), codes(x.len()));
    let columns = Columns { offset: &offset, scale: &scale };
    let q = qnhwc::Depthwise { window, batch: 1, channels, x: &x, zero: 3, w: &packed, columns };
    let (mut y, mut sums) = (vec![0u8; y.len()], vec![0; y.len()]);
    rows.row("u8i8 reference", 1, || qnhwc::depthwise_reference(&q, &mut sums));
    rows.row("u8i8 dispatched", 1, || qnhwc::depthwise_codes(&pool, &q, &REQUANT, &mut y));
    for kernel in qgemm::Kernel::all().filter(qgemm::Kernel::available) {
        rows.row(kernel.name, 1, || assert!(qnhwc::depthwise_codes_by(&kernel, &pool, &q, &REQUANT, &mut y)));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
