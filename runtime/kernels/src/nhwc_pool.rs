//! Pooling and resizing of images with channels innermost (`N[D]HWC`): every loop runs over channels.
//!
//! Dimension letters: `C` channels, `P` output positions of one image.

use crate::conv::Window;
use crate::gemm::{Out, share};
use crate::isa::{Isa, on_isa};
use crate::nhwc::{Run, pixel};
use crate::threads::Pool;

/// Bytes written below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// What a window becomes.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// Its largest value, NaN where there is one; -∞ where a window meets nothing.
    Max,
    /// Its sum times a factor, one of `P`: for an average one over the positions counted.
    Sum(&'a [f32]),
}

/// One pooling of `x: [N, …, C]`.
#[derive(Clone, Copy, Debug)]
pub struct Pooling<'a> {
    /// How the window slides.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// What a window becomes.
    pub kind: Kind<'a>,
    /// The images.
    pub x: &'a [f32],
}

impl Pooling<'_> {
    fn check(&self, y: usize) {
        let (g, n) = (&self.window, self.batch * self.channels);
        assert!(self.x.len() >= g.pixels() * n, "x is shorter than its shape says");
        assert!(y >= g.positions() * n, "y is shorter than its shape says");
        if let Kind::Sum(factor) = self.kind {
            assert!(factor.len() >= g.positions(), "there are fewer factors than output positions");
        }
    }
}

/// The formula, in `f64`.
pub fn reference(p: &Pooling<'_>, y: &mut [f32]) {
    let (g, c) = (&p.window, p.channels);
    for row in 0..p.batch * g.positions() {
        let (image, at) = (row / g.positions(), row % g.positions());
        let out = [at / g.output[2] / g.output[1], at / g.output[2] % g.output[1], at % g.output[2]];
        for ch in 0..c {
            let values = (0..g.taps()).filter_map(|tap| pixel(g, out, tap));
            let values = values.map(|i| f64::from(p.x[(image * g.pixels() + i) * c + ch]));
            y[row * c + ch] = match p.kind {
                Kind::Max => values.fold(f64::NEG_INFINITY, |a, v| if v > a || v.is_nan() { v } else { a }) as f32,
                Kind::Sum(factor) => (values.sum::<f64>() * f64::from(factor[at])) as f32,
            };
        }
    }
}

/// The pooling, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says: a planner's mistake, checked there.
pub fn pooled(pool: &Pool, p: &Pooling<'_>, y: &mut [f32]) {
    pooled_on(Isa::best(), pool, p, y);
}

/// [`pooled`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`pooled`].
pub fn pooled_on(isa: Isa, pool: &Pool, p: &Pooling<'_>, y: &mut [f32]) -> bool {
    if !isa.available() {
        return false;
    }
    p.check(y.len());
    shared(pool, p.batch * p.window.output[0] * p.window.output[1], p.window.output[2], p.channels, y, |line, y| {
        pooled_line(isa, p, line, y);
    });
    true
}

/// Codes of `u8`, the largest under each window; 0 where a window meets nothing.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn max_u8(pool: &Pool, window: &Window, batch: usize, channels: usize, x: &[u8], y: &mut [u8]) {
    assert!(x.len() >= window.pixels() * batch * channels, "x is shorter than its shape says");
    assert!(y.len() >= window.positions() * batch * channels, "y is shorter than its shape says");
    let isa = Isa::best();
    shared(pool, batch * window.output[0] * window.output[1], window.output[2], channels, y, |line, y| {
        max_u8_line(isa, window, channels, x, line, y);
    });
}

/// Calls `f(line, y)` for every output line; `y` is the line, `width · C` elements.
fn shared<T: Send>(
    pool: &Pool,
    lines: usize,
    width: usize,
    channels: usize,
    y: &mut [T],
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = width * channels;
    if len == 0 {
        return;
    }
    let small = lines * len * size_of::<T>() < WORTH_SHARING;
    let down = if small { 1 } else { lines.min(4 * pool.threads()) };
    let out = Out(y.as_mut_ptr());
    pool.run(down, &|i| {
        for line in share(lines, down, i) {
            // SAFETY: the caller has seen that y holds all lines, and no other call has this one.
            let y = unsafe { std::slice::from_raw_parts_mut(out.start().add(line * len), len) };
            f(line, y);
        }
    });
}

on_isa! { fn pooled_line = any_line; (p: &Pooling<'_>, line: usize, y: &mut [f32]) }
on_isa! {
    fn max_u8_line = any_max_u8;
    (g: &Window, c: usize, x: &[u8], line: usize, y: &mut [u8])
}
on_isa! { fn sums_on = any_sums; (c: usize, factor: f32, x: &[f32], y: &mut [f32]) }
on_isa! {
    fn blend_on = any_blend;
    (c: usize, rows: [&[f32]; 2], down: [f32; 2], at: &[[u32; 2]], weights: &[[f32; 2]], y: &mut [f32])
}

/// Pixels under a window, up to which it is known beforehand where they lie.
const FEW: usize = 64;

/// How the values under a window become one.
trait Fold<T> {
    /// That of a window that meets nothing.
    const NONE: T;
    fn with(a: T, b: T) -> T;
}

struct Largest;
struct Total;

impl Fold<f32> for Largest {
    const NONE: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn with(a: f32, b: f32) -> f32 {
        crate::pool::larger(a, b)
    }
}

impl Fold<u8> for Largest {
    const NONE: u8 = 0;
    #[inline(always)]
    fn with(a: u8, b: u8) -> u8 {
        a.max(b)
    }
}

impl Fold<f32> for Total {
    const NONE: f32 = 0.0;
    #[inline(always)]
    fn with(a: f32, b: f32) -> f32 {
        a + b
    }
}

/// One output line: for each of its positions the fold of all pixels its window meets, some channels at a time in registers.
#[inline(always)]
fn fold_line<T: Copy, F: Fold<T>>(g: &Window, c: usize, x: &[T], line: usize, y: &mut [T]) {
    let (image, out) = (line / (g.output[0] * g.output[1]), line % (g.output[0] * g.output[1]));
    let at = [out / g.output[1], out % g.output[1]];
    let first = |a: usize, o: usize| (o * g.stride[a]) as isize - g.pad[a];
    let (deep, down) = (Run::taps(g, 0, at[0]), Run::taps(g, 1, at[1]));
    // Where the pixels of a window that is not cut off to its left or right lie, from its first one on.
    let (mut offsets, mut taps) = ([0; FEW], 0);
    let few = deep.len() * down.len() * g.kernel[2] <= FEW;
    for (d, h) in deep.clone().flat_map(|d| down.clone().map(move |h| (d, h))).filter(|_| few) {
        let line = (d - deep.start) * g.dilation[0] * g.input[1] + (h - down.start) * g.dilation[1];
        for w in 0..g.kernel[2] {
            offsets[taps] = (line * g.input[2] + w * g.dilation[2]) * c;
            taps += 1;
        }
    }
    let offsets = &offsets[..taps];
    for (j, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
        let along = Run::taps(g, 2, j);
        let place = |k: [usize; 3]| {
            let of = |a: usize, o: usize| (first(a, o) + (k[a] * g.dilation[a]) as isize) as usize;
            ((image * g.input[0] + of(0, at[0])) * g.input[1] + of(1, at[1])) * g.input[2] + of(2, j)
        };
        let whole = taps > 0 && along == (0..g.kernel[2]);
        let x = if whole { &x[place([deep.start, down.start, 0]) * c..] } else { x };
        let mut ch = 0;
        macro_rules! channels {
            ($n:literal) => {
                while let Some(y) = y.get_mut(ch..).and_then(|y| y.first_chunk_mut::<$n>()) {
                    let mut all = [F::NONE; $n];
                    if whole {
                        for offset in offsets {
                            let v = &x[offset + ch..][..$n];
                            for k in 0..$n {
                                all[k] = F::with(all[k], v[k]);
                            }
                        }
                        *y = all;
                        ch += $n;
                        continue;
                    }
                    for kd in deep.clone() {
                        for kh in down.clone() {
                            let row = place([kd, kh, along.start]) * c + ch;
                            for (i, _) in along.clone().enumerate() {
                                let v = &x[row + i * g.dilation[2] * c..][..$n];
                                for k in 0..$n {
                                    all[k] = F::with(all[k], v[k]);
                                }
                            }
                        }
                    }
                    *y = all;
                    ch += $n;
                }
            };
        }
        channels!(16);
        channels!(8);
        channels!(1);
    }
}

#[inline(always)]
fn any_line(p: &Pooling<'_>, line: usize, y: &mut [f32]) {
    let (g, c) = (&p.window, p.channels);
    match p.kind {
        Kind::Max => fold_line::<f32, Largest>(g, c, p.x, line, y),
        Kind::Sum(factor) => {
            fold_line::<f32, Total>(g, c, p.x, line, y);
            let first = line % (g.output[0] * g.output[1]) * g.output[2];
            for j in 0..g.output[2] {
                y[j * c..(j + 1) * c].iter_mut().for_each(|y| *y *= factor[first + j]);
            }
        }
    }
}

#[inline(always)]
fn any_max_u8(g: &Window, c: usize, x: &[u8], line: usize, y: &mut [u8]) {
    fold_line::<u8, Largest>(g, c, x, line, y);
}

/// Channels of a global sum that stay in registers.
const LANES: usize = 32;
/// Pixels that are summed before they are added to the sum of all, so that rounding errors do not grow with the image.
const SOME: usize = 64;

/// `y[n][c] = Σ_p x[n][p][c] · factor`, for `x: [N, pixels, C]`: with `factor` one over the pixels an average.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn global_sum(pool: &Pool, batch: usize, pixels: usize, channels: usize, factor: f32, x: &[f32], y: &mut [f32]) {
    assert!(x.len() >= batch * pixels * channels, "x is shorter than its shape says");
    assert!(y.len() >= batch * channels, "y is shorter than its shape says");
    let isa = Isa::best();
    let out = Out(y.as_mut_ptr());
    // Parts of one image are channels, in whole vectors.
    let blocks = channels.div_ceil(LANES);
    let small = batch * pixels * channels * size_of::<f32>() < WORTH_SHARING;
    let parts = if small { 1 } else { (2 * pool.threads()).min(blocks).max(1) };
    pool.run(batch * parts, &|i| {
        let (image, part) = (i / parts, share(blocks, parts, i % parts));
        let channels_of = part.start * LANES..channels.min(part.end * LANES);
        if pixels == 0 || channels_of.is_empty() {
            return;
        }
        let from = image * pixels * channels + channels_of.start;
        let x = &x[from..from + (pixels - 1) * channels + channels_of.len()];
        // SAFETY: y holds the channels of all images, and no other call has these.
        let y = unsafe {
            let first = out.start().add(image * channels + channels_of.start);
            std::slice::from_raw_parts_mut(first, channels_of.len())
        };
        sums_on(isa, channels, factor, x, y);
    });
    if pixels == 0 {
        y[..batch * channels].fill(0.0);
    }
}

/// `y[j] = Σ x[i · c + j] · factor`.
#[inline(always)]
fn any_sums(c: usize, factor: f32, x: &[f32], y: &mut [f32]) {
    for (b, y) in y.chunks_mut(LANES).enumerate() {
        let mut total = [0f32; LANES];
        let x = &x[b * LANES..];
        let n = y.len();
        for some in x.chunks(SOME * c) {
            let mut sum = [0f32; LANES];
            for row in some.chunks(c) {
                match row.first_chunk::<LANES>() {
                    Some(row) if n == LANES => {
                        let row = *row;
                        for j in 0..LANES {
                            sum[j] += row[j];
                        }
                    }
                    _ => sum.iter_mut().zip(&row[..n]).for_each(|(s, &v)| *s += v),
                }
            }
            for j in 0..LANES {
                total[j] += sum[j];
            }
        }
        y.iter_mut().zip(total).for_each(|(y, t)| *y = t * factor);
    }
}

/// Sizes of a resize of `[N, H, W, C]`.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    /// Images.
    pub batch: usize,
    /// `H` and `W` before.
    pub input: [usize; 2],
    /// `H` and `W` after.
    pub output: [usize; 2],
    /// Channels.
    pub channels: usize,
}

impl Resize {
    fn check<T>(&self, x: &[T], y: &[T], most: [usize; 2]) {
        let n = self.batch * self.channels;
        assert!(x.len() >= n * self.input[0] * self.input[1], "x is shorter than its shape says");
        assert!(y.len() >= n * self.output[0] * self.output[1], "y is shorter than its shape says");
        assert!(most[0] < self.input[0] && most[1] < self.input[1], "a position lies outside the input");
    }
}

/// `y[n][i][j] = x[n][rows[i]][columns[j]]`, all channels of a pixel.
///
/// # Panics
/// When a slice is shorter than its shape says, or a position is not in the input.
pub fn nearest<T: Copy + Send + Sync>(pool: &Pool, r: &Resize, rows: &[u32], columns: &[u32], x: &[T], y: &mut [T]) {
    let [height, width] = r.output;
    let (rows, columns, c) = (&rows[..height], &columns[..width], r.channels);
    if height * width * c * r.batch == 0 {
        return;
    }
    let largest = |v: &[u32]| v.iter().copied().max().unwrap_or(0) as usize;
    r.check(x, y, [largest(rows), largest(columns)]);
    shared(pool, r.batch * height, width, c, y, |line, y| {
        let row = (line / height * r.input[0] + rows[line % height] as usize) * r.input[1];
        let x = &x[row * c..][..r.input[1] * c];
        for (y, &from) in y.chunks_exact_mut(c).zip(columns) {
            y.copy_from_slice(&x[from as usize * c..][..c]);
        }
    });
}

/// Where two neighbours of an axis lie, and their weights, for each output position.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// Two input positions an output position.
    pub at: &'a [[u32; 2]],
    /// Their weights.
    pub weights: &'a [[f32; 2]],
}

/// `y[n][i][j] = Σ_a Σ_b rows.weights[i][a] · columns.weights[j][b] · x[n][rows.at[i][a]][columns.at[j][b]]`, all channels.
///
/// # Panics
/// When a slice is shorter than its shape says, or a position is not in the input.
pub fn bilinear(pool: &Pool, r: &Resize, rows: Pairs<'_>, columns: Pairs<'_>, x: &[f32], y: &mut [f32]) {
    let [height, width] = r.output;
    let c = r.channels;
    if height * width * c * r.batch == 0 {
        return;
    }
    let largest = |v: &[[u32; 2]]| v.iter().flatten().copied().max().unwrap_or(0) as usize;
    let (across, weights) = (&columns.at[..width], &columns.weights[..width]);
    r.check(x, y, [largest(&rows.at[..height]), largest(across)]);
    let isa = Isa::best();
    shared(pool, r.batch * height, width, c, y, |line, y| {
        let (image, i) = (line / height, line % height);
        let row = |k: u32| &x[(image * r.input[0] + k as usize) * r.input[1] * c..][..r.input[1] * c];
        blend_on(isa, c, rows.at[i].map(row), rows.weights[i], across, weights, y);
    });
}

#[inline(always)]
fn any_blend(c: usize, rows: [&[f32]; 2], down: [f32; 2], at: &[[u32; 2]], weights: &[[f32; 2]], y: &mut [f32]) {
    for ((y, at), w) in y.chunks_exact_mut(c).zip(at).zip(weights) {
        let spot = |r: usize, k: usize| &rows[r][at[k] as usize * c..][..c];
        let (a, b, p, q) = (spot(0, 0), spot(0, 1), spot(1, 0), spot(1, 1));
        for j in 0..c {
            y[j] = (a[j] * w[0] + b[j] * w[1]) * down[0] + (p[j] * w[0] + q[j] * w[1]) * down[1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nhwc::tests::{noise, windows};

    #[test]
    fn every_pooling_is_the_formula_on_every_instruction_set_and_nothing_else_is_written() {
        let mut ran = 0;
        for isa in Isa::ALL {
            for window in windows() {
                for (batch, channels) in [(1, 3), (2, 16), (1, 37)] {
                    let mut x = noise(batch * window.pixels() * channels, 3);
                    let at = x.len() / 2;
                    x[at] = f32::NAN;
                    let factor: Vec<f32> = (0..window.positions()).map(|i| 1.0 / (i % 5 + 1) as f32).collect();
                    for kind in [Kind::Max, Kind::Sum(&factor)] {
                        let p = Pooling { window, batch, channels, kind, x: &x };
                        let mut want = vec![0.0; batch * window.positions() * channels];
                        reference(&p, &mut want);
                        for threads in [1, 3] {
                            let mut found = vec![-77.0; want.len() + 9];
                            if !pooled_on(isa, &Pool::new(threads), &p, &mut found) {
                                continue;
                            }
                            ran += 1;
                            let exact = matches!(kind, Kind::Max);
                            let tolerance =
                                if exact { 0.0 } else { (window.taps() * window.taps()) as f32 * f32::EPSILON };
                            for (w, f) in want.iter().zip(&found) {
                                let same = w.is_nan() && f.is_nan() || w == f;
                                assert!(same || (w - f).abs() <= tolerance, "{isa:?} {window:?} {kind:?}: {w} {f}");
                            }
                            assert!(found[want.len()..].iter().all(|&v| v == -77.0));
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }

    #[test]
    fn the_largest_code_is_that_of_the_largest_value() {
        for window in windows() {
            let (batch, channels) = (2, 21);
            let x: Vec<u8> = (0..batch * window.pixels() * channels).map(|i| (i * 37 % 251 + 3) as u8).collect();
            let floats: Vec<f32> = x.iter().map(|&v| f32::from(v)).collect();
            let mut want = vec![0.0; batch * window.positions() * channels];
            reference(&Pooling { window, batch, channels, kind: Kind::Max, x: &floats }, &mut want);
            let mut found = vec![1; want.len() + 1];
            max_u8(&Pool::new(2), &window, batch, channels, &x, &mut found);
            assert!(want.iter().zip(&found).all(|(w, f)| w.max(0.0) == f32::from(*f)), "{window:?}");
            assert_eq!(found[want.len()], 1);
        }
    }

    #[test]
    fn a_global_sum_is_the_sum_of_every_channel() {
        for (batch, pixels, channels) in [(1, 49, 100), (2, 130, 7), (3, 1, 32), (1, 0, 5)] {
            let x = noise(batch * pixels * channels, 3);
            for threads in [1, 2] {
                let mut y = vec![f32::NAN; batch * channels + 1];
                global_sum(&Pool::new(threads), batch, pixels, channels, 0.5, &x, &mut y);
                for n in 0..batch {
                    for c in 0..channels {
                        let at = |p: usize| f64::from(x[(n * pixels + p) * channels + c]);
                        let want = (0..pixels).map(at).sum::<f64>() * 0.5;
                        let tolerance = (pixels * pixels) as f64 * f64::from(f32::EPSILON);
                        assert!((want - f64::from(y[n * channels + c])).abs() <= tolerance);
                    }
                }
                assert!(y[batch * channels].is_nan());
            }
        }
    }

    #[test]
    fn resized_images_are_the_formula() {
        let r = Resize { batch: 2, input: [5, 4], output: [7, 9], channels: 11 };
        let x = noise(2 * 20 * 11, 3);
        let up = |n: usize, m: u32| (0..n as u32).map(|i| i * 7 % m).collect::<Vec<u32>>();
        let pairs = |n: usize, m: u32| (0..n as u32).map(|i| [i * 7 % m, (i * 3 + 1) % m]).collect::<Vec<_>>();
        let weights = |n: usize| (0..n).map(|i| [0.1 * i as f32, 1.0 - 0.1 * i as f32]).collect::<Vec<_>>();
        let (rows, columns) = (up(7, 5), up(9, 4));
        let mut y = vec![f32::NAN; 2 * 63 * 11 + 1];
        nearest(&Pool::new(2), &r, &rows, &columns, &x, &mut y);
        let at = |n: usize, i: u32, j: u32, c: usize| x[((n * 5 + i as usize) * 4 + j as usize) * 11 + c];
        for (e, v) in y[..2 * 63 * 11].iter().enumerate() {
            let (n, i, j, c) = (e / 693, e / 99 % 7, e / 11 % 9, e % 11);
            assert_eq!(*v, at(n, rows[i], columns[j], c));
        }
        let (ra, ca, rw, cw) = (pairs(7, 5), pairs(9, 4), weights(7), weights(9));
        bilinear(&Pool::new(2), &r, Pairs { at: &ra, weights: &rw }, Pairs { at: &ca, weights: &cw }, &x, &mut y);
        for (e, v) in y[..2 * 63 * 11].iter().enumerate() {
            let (n, i, j, c) = (e / 693, e / 99 % 7, e / 11 % 9, e % 11);
            let mut want = 0.0;
            for a in 0..2 {
                for b in 0..2 {
                    want += f64::from(rw[i][a]) * f64::from(cw[j][b]) * f64::from(at(n, ra[i][a], ca[j][b], c));
                }
            }
            assert!((want - f64::from(*v)).abs() <= 8.0 * f64::from(f32::EPSILON));
        }
        assert!(y[2 * 63 * 11].is_nan());
    }
}
