//! Channels-first convolutions, as steps of training have them, at the shapes of *which digit*, ResNet-18 and EfficientNet, one thread:
//! reference · each form over channels under a shift · the same of columns laid out one by one; the gradient by their weights;
//! depthwise ones and their transposes; maxima of windows and their gradient.
//!
//! Informs: which layers of a step are far from what the core can do, and that a shift is not slower than columns.
#![forbid(unsafe_code)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::by_weight::{self, ByWeight};
use hone_kernels::conv::{self, Lines, Packed, Product, Window};
use hone_kernels::isa::Isa;
use hone_kernels::planes::{self, Depthwise};
use hone_kernels::pool;
use hone_kernels::shifted::Shifted;
use hone_kernels::threads::Pool;

#[path = "support/layers.rs"]
mod layers;
mod support;
use layers::Rows;
use support::{Peak, ramp};

/// What convolves, height, width, kernel, stride, channels in and out; a depthwise layer has no channels out.
type Layer = (&'static str, [usize; 2], usize, usize, usize, Option<usize>);

const LAYERS: &[Layer] = &[
    ("which-digit.image.conv1", [28, 28], 3, 1, 1, Some(16)),
    ("which-digit.image.conv2", [14, 14], 3, 1, 16, Some(32)),
    ("which-digit.image.conv3", [7, 7], 3, 1, 32, Some(64)),
    ("which-digit.audio.conv1", [40, 100], 3, 1, 1, Some(16)),
    ("which-digit.audio.conv2", [20, 50], 3, 1, 16, Some(32)),
    ("which-digit.audio.conv3", [10, 25], 3, 1, 32, Some(48)),
    ("resnet.3x3 56", [56, 56], 3, 1, 64, Some(64)),
    ("resnet.3x3s2 56", [56, 56], 3, 2, 64, Some(128)),
    ("efficientnet.depthwise 5x5 28", [28, 28], 5, 1, 240, None),
    ("efficientnet.depthwise 3x3s2 56", [56, 56], 3, 2, 144, None),
];

/// Rows of columns laid out together, and elements of them, as `ops::conv` has them where there is no shift.
const COLUMNS: [usize; 2] = [256, 32 * 1024];

fn window(&(_, input, kernel, stride, ..): &Layer) -> Window {
    let output = input.map(|i| i.div_ceil(stride));
    Window {
        input: [1, input[0], input[1]],
        kernel: [1, kernel, kernel],
        output: [1, output[0], output[1]],
        stride: [1, stride, stride],
        dilation: [1; 3],
        pad: [0, (kernel / 2) as isize, (kernel / 2) as isize],
    }
}

fn bench(c: &mut Criterion) {
    let peak = Peak::measure();
    for layer in LAYERS {
        let (what, .., channels, outputs) = *layer;
        let w = window(layer);
        let (n, k) = (outputs.unwrap_or(channels), w.taps() * if outputs.is_some() { channels } else { 1 });
        let macs = w.positions() * n * k;
        let mut group = c.benchmark_group(format!("planes {what} {channels} to {n}"));
        group.throughput(Throughput::Elements(macs as u64));
        let bytes = w.pixels() * channels + n * k + w.positions() * n;
        let rows = Rows { what, group, peak: peak.as_ref(), macs, bytes };
        match outputs {
            Some(n) => dense(rows, &w, channels, n),
            None => depthwise(rows, &w, channels),
        }
    }
    maxima(c, peak.as_ref());
}

fn dense(mut rows: Rows<'_>, w: &Window, channels: usize, outputs: usize) {
    let Some(shifted) = Shifted::convolution(w) else { return };
    let (m, k, positions) = (outputs, channels * w.taps(), w.positions());
    let (x, dy, weights) = (ramp(channels * w.pixels()), ramp(m * positions), ramp(m * k));
    let mut packed = vec![0f32; conv::packed_len(m, k)];
    conv::pack(m, k, |i, kk| weights[i * k + kk], &mut packed);
    let (mut y, mut dw) = (vec![0f32; m * positions], vec![0f32; m * k]);
    rows.row("reference", 4, || conv::reference(w, channels, &x, m, &weights, None, &mut y));
    let none = Product {
        m,
        k,
        part: 0..0,
        w: Packed::F32(&packed),
        columns: &[],
        rows: conv::Rows::apart(1),
        n: 0,
        lines: Lines::whole(1),
        bias: None,
        y_stride: positions,
    };
    let mut laid = vec![0f32; shifted.floats(channels)];
    for kernel in conv::KERNELS.iter().filter(|k| (k.available)()) {
        rows.row(&format!("{} shifted", kernel.name), 4, || {
            for (x, laid) in x.chunks_exact(w.pixels()).zip(laid.chunks_exact_mut(shifted.step())) {
                shifted.lay_out(x, laid);
            }
            let (rows, n, lines) = (shifted.rows(), shifted.columns(), shifted.results());
            let of = Product { part: 0..k, columns: &laid, rows, n, lines, ..none.clone() };
            assert!(kernel.run(&of, &mut y));
        });
    }
    let depth = k.min(COLUMNS[0]);
    let pitch = (COLUMNS[1] / depth / conv::NR * conv::NR).min(positions.next_multiple_of(conv::NR));
    let mut columns = vec![0f32; depth * pitch];
    rows.row("dispatched, columns laid out", 4, || {
        for first in (0..positions).step_by(pitch) {
            let n = pitch.min(positions - first);
            for start in (0..k).step_by(depth) {
                let part = start..k.min(start + depth);
                conv::columns(w, &x, part.clone(), first..first + n, pitch, &mut columns[..part.len() * pitch]);
                let (rows, lines) = (conv::Rows::apart(pitch), Lines::whole(n));
                let of = Product { part, columns: &columns, rows, n, lines, ..none.clone() };
                conv::product(&of, &mut y[first..]);
            }
        }
    });
    let (pool, sizes) = (Pool::new(1), [1, channels, outputs]);
    let of = ByWeight { shifted: &shifted, sizes, x: &x, dy: &dy };
    let mut scratch = vec![0f32; by_weight::scratch(&shifted, channels, outputs, 1)];
    rows.row("by weight, reference", 4, || by_weight::reference(w, sizes, &x, &dy, &mut dw));
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        rows.row(&format!("by weight, {isa:?}"), 4, || {
            assert!(by_weight::by_weight_on(isa, &pool, &of, &mut scratch, &mut dw));
        });
    }
}

fn depthwise(mut rows: Rows<'_>, w: &Window, channels: usize) {
    let pool = Pool::new(1);
    let weights = ramp(channels * w.taps());
    for (transpose, shifted) in [(false, Shifted::convolution(w)), (true, Shifted::transpose(w))] {
        let Some(shifted) = shifted else { continue };
        let (read, made) = if transpose { (w.positions(), w.pixels()) } else { (w.pixels(), w.positions()) };
        let (x, mut y) = (ramp(channels * read), vec![0f32; channels * made]);
        let of = Depthwise { shifted: &shifted, channels, multiplier: 1, x: &x, w: &weights, bias: None };
        let mut scratch = vec![0f32; shifted.scratch()];
        let what = if transpose { "transposed, " } else { "" };
        rows.row(&format!("{what}reference"), 4, || planes::reference(w, transpose, &of, &mut y));
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            rows.row(&format!("{what}{isa:?}"), 4, || {
                assert!(planes::depthwise_on(isa, &pool, &of, &mut scratch, &mut y));
            });
        }
    }
}

/// Of 2 by 2 windows over sixteen planes of *which digit*'s first layer of sound.
fn maxima(c: &mut Criterion, peak: Option<&Peak>) {
    let g = Window {
        input: [1, 40, 100],
        kernel: [1, 2, 2],
        output: [1, 20, 50],
        stride: [1, 2, 2],
        dilation: [1; 3],
        pad: [0; 3],
    };
    let (pool, count) = (Pool::new(1), 16);
    let (x, dy) = (ramp(count * g.pixels()), ramp(count * g.positions()));
    let (mut y, mut dx) = (dy.clone(), x.clone());
    let bytes = x.len() + y.len();
    let group = c.benchmark_group("planes maxima 2x2");
    let mut rows = Rows { what: "maxima 2x2", group, peak, macs: 0, bytes };
    rows.row("dispatched", 4, || pool::max_planes(&pool, &g, &x, &mut y));
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        rows.row(&format!("gradient, {isa:?}"), 4, || {
            assert!(pool::max_gradients_on(isa, &pool, &g, &x, &dy, &mut dx));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
