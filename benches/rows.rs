//! Kernels over rows and elements, at shapes of MiniLM, MobileNetV2 and which-digit: reference · dispatched · each kernel, one thread.
//!
//! Informs: which of them wait for memory, where another instruction set or a fusion would gain nothing but a pass saved.
#![forbid(unsafe_code)]

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use hone_kernels::attention::{self, Bias, LANES, Mix, Softmax};
use hone_kernels::coded::{self, Blocks, Coded};
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{self, Activation};
use hone_kernels::isa::Isa;
use hone_kernels::nbits::{self, Shape, Weight};
use hone_kernels::nhwc_pool::{self, Kind, Pooling};
use hone_kernels::quantize::{self, Codes};
use hone_kernels::threads::Pool;
use hone_kernels::{cell, normalise, resample, rows, transpose};

mod support;
use support::{Peak, ramp};

/// What a run of a kernel is made of.
struct Work<'a> {
    what: &'a str,
    /// Multiply-adds; 0 where there are none to speak of.
    macs: usize,
    /// Bytes that have to be read and written.
    bytes: usize,
}

struct Bench<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    work: Work<'a>,
    peak: Option<&'a Peak>,
}

impl<'a> Bench<'a> {
    fn new(c: &'a mut Criterion, peak: Option<&'a Peak>, work: Work<'a>) -> Bench<'a> {
        let mut group = c.benchmark_group(work.what);
        group.throughput(Throughput::Bytes(work.bytes as u64));
        Bench { group, work, peak }
    }

    fn row(&mut self, name: &str, mut f: impl FnMut()) {
        self.group.bench_function(name, |b| b.iter(&mut f));
        if let Some(peak) = self.peak.filter(|_| name != "reference") {
            peak.reached(&format!("{}: {name}", self.work.what), self.work.macs, self.work.bytes, f);
        }
    }

    /// One row for each instruction set of this CPU.
    fn each(&mut self, mut f: impl FnMut(Isa)) {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            self.row(&format!("{isa:?}"), || f(isa));
        }
    }
}

fn softmax(c: &mut Criterion, peak: Option<&Peak>) {
    let n = 128;
    let x = ramp(12 * n * n);
    let mut y = vec![0.0; x.len()];
    let mut b = Bench::new(c, peak, Work { what: "softmax 1536x128", macs: 0, bytes: 8 * x.len() });
    b.row("reference", || rows::softmax(n, &x, &mut y));
    b.row("dispatched", || normalise::softmax(n, false, &x, &mut y));
    b.each(|isa| normalise::softmax_on(isa, n, false, &x, &mut y));
}

fn norm(c: &mut Criterion, peak: Option<&Peak>) {
    let n = 384;
    let (x, gain, offset) = (ramp(128 * n), ramp(n), ramp(n));
    let mut y = vec![0.0; x.len()];
    let mut b = Bench::new(c, peak, Work { what: "layer norm 128x384", macs: 0, bytes: 8 * x.len() });
    b.row("reference", || rows::layer_norm(n, 1e-5, &x, &gain, Some(&offset), &mut y));
    b.row("dispatched", || normalise::layer_norm(n, 1e-5, &x, &gain, Some(&offset), &mut y));
    b.each(|isa| normalise::layer_norm_on(isa, n, 1e-5, &x, &gain, Some(&offset), &mut y));
}

fn elementwise(c: &mut Criterion, peak: Option<&Peak>) {
    for (what, activation) in [
        ("gelu 128x1536", Activation::Gelu),
        ("sigmoid 128x1536", Activation::Sigmoid),
        ("hard swish 128x1536", Activation::HardSwish),
    ] {
        let mut y = ramp(128 * 1536);
        let mut b = Bench::new(c, peak, Work { what, macs: 0, bytes: 8 * y.len() });
        b.row("reference", || y.iter_mut().for_each(|v| *v = activation.reference(f64::from(*v)) as f32));
        b.row("dispatched", || epilogue::apply(activation, &mut y));
        b.each(|isa| epilogue::apply_on(isa, activation, &mut y));
    }
}

/// One head of MiniLM: 16 queries at a time over 128 keys.
fn heads(c: &mut Criterion, peak: Option<&Peak>) {
    let (l, d) = (128, 32);
    let (q, k, v) = (ramp(LANES * d), ramp(l * d), ramp(l * d));
    let (mut panel, mut scores, mut y) = (vec![0.0; d * LANES], vec![0.0; l * LANES], vec![0.0; LANES * d]);
    let bytes = 4 * (q.len() + k.len() + v.len() + y.len());
    let work = Work { what: "attention 16x128x32", macs: 2 * LANES * l * d, bytes };
    let mut b = Bench::new(c, peak, work);
    let one = |q: &[f32], y: &mut [f32]| {
        let dot = |j: usize| (0..d).map(|i| f64::from(q[i]) * f64::from(k[j * d + i])).sum::<f64>().exp();
        let p: Vec<f64> = (0..l).map(dot).collect();
        let sum: f64 = p.iter().sum();
        for (i, y) in y.iter_mut().enumerate() {
            *y = (p.iter().enumerate().map(|(j, p)| p * f64::from(v[j * d + i])).sum::<f64>() / sum) as f32;
        }
    };
    b.row("reference", || q.chunks_exact(d).zip(y.chunks_exact_mut(d)).for_each(|(q, y)| one(q, y)));
    let s = Softmax { softcap: 0.0, bias: Bias::None, spans: None, sinks: None };
    for kernel in attention::KERNELS.iter().filter(|k| (k.available)()) {
        b.row(kernel.name, || {
            attention::pack_queries(LANES, 1.0, |r| &q[r * d..], &mut panel);
            attention::scores(&panel, &k, d, &mut scores);
            let factors = kernel.softmax(&s, &mut scores);
            kernel.mix(&Mix { p: &scores, v: &v, v_stride: d, factors: &factors, rows: LANES, e: d }, &mut y);
        });
    }
}

fn cells(c: &mut Criterion, peak: Option<&Peak>) {
    let h = 1024;
    let (mut gates, mut state) = (ramp(4 * h), ramp(h));
    let mut out = vec![0.0; h];
    let mut b = Bench::new(c, peak, Work { what: "lstm cell 1024", macs: 0, bytes: 4 * (4 * h + 3 * h) });
    b.row("reference", || rows::lstm_cell(h, &gates, &mut state, &mut out));
    b.row("dispatched", || {
        let (sigmoids, candidate) = gates.split_at_mut(3 * h);
        cell::sigmoid(sigmoids);
        cell::tanh(candidate);
        cell::lstm_state(&sigmoids[2 * h..], &sigmoids[..h], candidate, &mut state);
        candidate.copy_from_slice(&state);
        cell::tanh(candidate);
        cell::product(&sigmoids[h..2 * h], candidate, &mut out);
    });
}

fn int4(c: &mut Criterion, peak: Option<&Peak>) {
    for (what, k, n) in [("int4 1x384x1536", 384, 1536), ("int4 1x1536x32000", 1536, 32_000)] {
        let shape = Shape { k, n, bits: 4, block: 32 };
        let blocks = n * shape.blocks();
        let codes: Vec<u8> = (0..blocks * shape.block_bytes()).map(|i| (i * 97 % 253) as u8).collect();
        let (scale, x) = (vec![0.01; blocks], ramp(k));
        let w = Weight { shape, codes: &codes, scale: &scale, zero: &[8.0] };
        let (mut laid, mut y) = (vec![0.0; shape.split_len()], vec![0.0; n]);
        let mut b = Bench::new(c, peak, Work { what, macs: k * n, bytes: codes.len() + 4 * (blocks + k + n) });
        if k * n < 1 << 22 {
            b.row("reference", || nbits::reference(&w, 1, &x, &mut y));
        }
        b.row("dispatched", || {
            nbits::split(shape, &x, &mut laid);
            nbits::rows(&w, 1, &laid, &[], &mut y);
        });
    }
}

/// The tokens of a sentence, from MiniLM's table of words in 4 bits.
fn embeddings(c: &mut Criterion, peak: Option<&Peak>) {
    let (words, width, tokens) = (30_522, 384, 128);
    let blocks = Blocks { along: width, inner: 1, block: 32, bits: 4, signed: false, middle: 8 };
    let codes: Vec<u8> = (0..words * width / 2).map(|i| (i * 97 % 253) as u8).collect();
    let scale = vec![0.01; words * blocks.count()];
    let t = Coded { blocks, codes: &codes, scale: &scale, zero: &[] };
    let mut y = vec![0.0; tokens * width];
    let bytes = tokens * (width / 2 + 4 * blocks.count() + 4 * width);
    let mut b = Bench::new(c, peak, Work { what: "int4 embeddings 128x384", macs: 0, bytes });
    let mut each = |f: &dyn Fn(usize, &mut [f32])| {
        y.chunks_exact_mut(width).enumerate().for_each(|(i, y)| f(i * 7919 % words * width, y));
    };
    b.row("reference", || each(&|first, y| coded::reference(&t, first, y)));
    b.row("dispatched", || each(&|first, y| coded::dequantise(&t, first, y)));
    b.each(|isa| each(&|first, y| assert!(coded::dequantise_on(isa, &t, first, y))));
}

fn codes(c: &mut Criterion, peak: Option<&Peak>) {
    let x = ramp(56 * 56 * 144);
    let (to, mut y, mut back) = (Codes { zero: 128, low: 0, high: 255 }, vec![0u8; x.len()], vec![0.0; x.len()]);
    let mut b = Bench::new(c, peak, Work { what: "quantise 56x56x144", macs: 0, bytes: 5 * x.len() });
    b.row("reference", || y.iter_mut().zip(&x).for_each(|(y, v)| *y = to.reference(v / 0.01) as u8));
    b.row("dispatched", || quantize::of_u8::quantise(&x, 0.01, to, &mut y));
    drop(b);
    let mut b = Bench::new(c, peak, Work { what: "dequantise 56x56x144", macs: 0, bytes: 5 * x.len() });
    b.row("reference", || back.iter_mut().zip(&y).for_each(|(b, &y)| *b = (f32::from(y) - 128.0) * 0.01));
    b.row("dispatched", || quantize::of_u8::dequantise(&y, 0.01, 128, &mut back));
}

fn pooling(c: &mut Criterion, peak: Option<&Peak>) {
    let window = Window {
        input: [1, 112, 112],
        kernel: [1, 3, 3],
        output: [1, 56, 56],
        stride: [1, 2, 2],
        dilation: [1; 3],
        pad: [0, 1, 1],
    };
    let (pool, channels) = (Pool::new(1), 64);
    let x = ramp(window.pixels() * channels);
    let mut y = vec![0.0; window.positions() * channels];
    let p = Pooling { window, batch: 1, channels, kind: Kind::Max, x: &x };
    let mut b = Bench::new(c, peak, Work { what: "max pool 112x112x64", macs: 0, bytes: 4 * (x.len() + y.len()) });
    b.row("reference", || nhwc_pool::reference(&p, &mut y));
    b.row("dispatched", || nhwc_pool::pooled(&pool, &p, &mut y));
    b.each(|isa| assert!(nhwc_pool::pooled_on(isa, &pool, &p, &mut y)));
}

fn resize(c: &mut Criterion, peak: Option<&Peak>) {
    let (input, output, inner) = (112, 224, 224 * 3);
    let at: Vec<u32> =
        (0..output).flat_map(|i| [(i / 2).min(input - 1) as u32, (i / 2 + 1).min(input - 1) as u32]).collect();
    let weights: Vec<f32> = (0..output).flat_map(|i| if i % 2 == 0 { [0.75, 0.25] } else { [0.25, 0.75] }).collect();
    let a = resample::Axis { outer: 1, input, output, inner, taps: 2, at: &at, weights: &weights };
    let x = ramp(input * inner);
    let mut y = vec![0.0; output * inner];
    let work = Work { what: "resize 112 to 224 rows of 672", macs: 2 * y.len(), bytes: 4 * (x.len() + y.len()) };
    let mut b = Bench::new(c, peak, work);
    b.row("reference", || resample::reference(&a, &x, &mut y));
    b.row("dispatched", || resample::resize(&a, &x, &mut y));
}

fn transposes(c: &mut Criterion, peak: Option<&Peak>) {
    let pool = Pool::new(1);
    for (what, rows, columns) in
        [("transpose 144x3136", 144, 56 * 56), ("transpose 3x50176", 3, 224 * 224), ("transpose 128x384", 128, 384)]
    {
        let x = ramp(rows * columns);
        let mut y = vec![0.0; x.len()];
        let mut b = Bench::new(c, peak, Work { what, macs: 0, bytes: 8 * x.len() });
        b.row("reference", || {
            for i in 0..rows {
                for j in 0..columns {
                    y[j * rows + i] = x[i * columns + j];
                }
            }
        });
        b.row("dispatched", || transpose::transpose(&pool, 1, rows, columns, &x, &mut y));
    }
}

fn bench(c: &mut Criterion) {
    let peak = Peak::measure();
    for of in [softmax, norm, elementwise, heads, cells, int4, embeddings, codes, pooling, resize, transposes] {
        of(c, peak.as_ref());
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
