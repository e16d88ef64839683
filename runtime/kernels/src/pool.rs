//! Pooling over planes of up to three spatial axes.

use crate::conv::{Window, for_each_run};
use crate::isa::{Isa, on_isa};
use crate::threads::Pool;

/// Elements that a piece of planes has at least: for fewer, waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 14;
/// Windows of a line whose largest are sought together.
const LINE: usize = 64;

/// Largest value under each window of planes that lie one after another, NaN where there is one; -∞ where a window meets
/// nothing. `x: [planes, pixels]`, `y: [planes, positions]`; on all threads of `pool`, with equal results whatever their number.
///
/// # Panics
/// When `x` has fewer planes than `y`.
pub fn max_planes(pool: &Pool, g: &Window, x: &[f32], y: &mut [f32]) {
    planes(pool, g, x, y, |x, y| max_plane(Isa::best(), g, x, y));
}

/// Sum under each window of planes that lie one after another, times `factor`, one a window; shapes and threads as in
/// [`max_planes`].
///
/// # Panics
/// As [`max_planes`], and when `factor` has fewer numbers than there are windows.
pub fn mean_planes(pool: &Pool, g: &Window, x: &[f32], factor: &[f32], y: &mut [f32]) {
    planes(pool, g, x, y, |x, y| sum_plane(Isa::best(), g, x, factor, y));
}

fn planes(pool: &Pool, g: &Window, x: &[f32], y: &mut [f32], each: impl Fn(&[f32], &mut [f32]) + Sync) {
    let (pixels, positions) = (g.pixels(), g.positions());
    if y.is_empty() {
        return;
    }
    let share = pool.share(y.len(), positions, WORTH_SHARING * positions / pixels.max(1));
    pool.pieces(y, share, |piece, y| {
        for (k, y) in y.chunks_exact_mut(positions).enumerate() {
            each(&x[(piece * share / positions + k) * pixels..][..pixels], y);
        }
    });
}

on_isa! { fn max_plane = max_plane_by; (g: &Window, x: &[f32], y: &mut [f32]) }
on_isa! { fn sum_plane = sum_plane_by; (g: &Window, x: &[f32], factor: &[f32], y: &mut [f32]) }

#[inline(always)]
fn max_plane_by(g: &Window, x: &[f32], y: &mut [f32]) {
    if tiles(g) {
        return match g.stride[2] {
            1 => largest_lines::<1>(g, x, y),
            2 => largest_lines::<2>(g, x, y),
            3 => largest_lines::<3>(g, x, y),
            _ => largest_lines::<4>(g, x, y),
        };
    }
    y.fill(f32::NEG_INFINITY);
    for_each_run(g, |_, y_first, x_first, n| {
        let y = &mut y[y_first..y_first + n];
        let x = &x[x_first..];
        match g.stride[2] {
            1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y = larger(*y, x)),
            2 => y.iter_mut().zip(x.chunks(2)).for_each(|(y, x)| *y = larger(*y, x[0])),
            s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y = larger(*y, x)),
        }
    });
}

/// Whether the windows tile their pixels: they lie inside, each pixel is in one at most, and along the innermost axis in just one
/// of those that [`max_gradients`] has loops for.
pub fn tiles(g: &Window) -> bool {
    let lies = |a: usize| {
        g.pad[a] == 0
            && g.stride[a] >= g.kernel[a]
            && g.dilation[a] == 1
            && g.output[a] > 0
            && (g.output[a] - 1) * g.stride[a] + g.kernel[a] <= g.input[a]
    };
    (0..3).all(lies) && g.kernel[2] == g.stride[2] && (1..=4).contains(&g.stride[2])
}

/// The gradient of [`max_planes`] where the windows tile ([`tiles`]): `dx: [planes, pixels]` gets `dy: [planes, positions]` at the first of
/// the largest under each window (a NaN is larger than all) and 0 elsewhere. On all threads of `pool`, with equal results whatever
/// their number.
///
/// # Panics
/// When `x` or `dy` has fewer planes than `dx`, or the windows do not tile.
pub fn max_gradients(pool: &Pool, g: &Window, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    max_gradients_on(Isa::best(), pool, g, x, dy, dx);
}

/// [`max_gradients`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`max_gradients`].
pub fn max_gradients_on(isa: Isa, pool: &Pool, g: &Window, x: &[f32], dy: &[f32], dx: &mut [f32]) -> bool {
    assert!(tiles(g), "windows that do not tile");
    if !isa.available() {
        return false;
    }
    let (pixels, positions) = (g.pixels(), g.positions());
    let share = pool.share(dx.len(), pixels, WORTH_SHARING);
    pool.pieces(dx, share, |piece, dx| {
        for (k, dx) in dx.chunks_exact_mut(pixels).enumerate() {
            let plane = piece * share / pixels + k;
            let (x, dy) = (&x[plane * pixels..][..pixels], &dy[plane * positions..][..positions]);
            max_gradient(isa, g, x, dy, dx);
        }
    });
    true
}

on_isa! { fn max_gradient = max_gradient_by; (g: &Window, x: &[f32], dy: &[f32], dx: &mut [f32]) }

#[inline(always)]
fn max_gradient_by(g: &Window, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    if (0..3).any(|a| g.output[a] * g.kernel[a] != g.input[a]) {
        dx.fill(0.0);
    }
    match g.stride[2] {
        1 => lines::<1>(g, x, dy, dx),
        2 => lines::<2>(g, x, dy, dx),
        3 => lines::<3>(g, x, dy, dx),
        _ => lines::<4>(g, x, dy, dx),
    }
}

/// Where line `k` of the windows of line `line` begins in a plane.
#[inline(always)]
fn start(g: &Window, line: usize, k: usize) -> usize {
    let (d, h) = (line / g.output[1] * g.stride[0], line % g.output[1] * g.stride[1]);
    ((d + k / g.kernel[1]) * g.input[1] + h + k % g.kernel[1]) * g.input[2]
}

/// The largest under windows that tile, of width `W`.
#[inline(always)]
fn largest_lines<const W: usize>(g: &Window, x: &[f32], y: &mut [f32]) {
    let width = g.output[2];
    for (line, y) in y.chunks_exact_mut(width).enumerate() {
        y.fill(f32::NEG_INFINITY);
        for k in 0..g.kernel[0] * g.kernel[1] {
            let pixels = x[start(g, line, k)..][..width * W].as_chunks::<W>().0;
            for (y, pixels) in y.iter_mut().zip(pixels) {
                for &v in pixels {
                    *y = larger(*y, v);
                }
            }
        }
    }
}

/// Windows of width `W`, up to [`LINE`] of them at a time: which pixel of each is the one, then all their pixels.
#[inline(always)]
fn lines<const W: usize>(g: &Window, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let [depth, height, width] = g.output;
    for line in 0..depth * height {
        for first in (0..width).step_by(LINE) {
            let n = LINE.min(width - first);
            let (mut most, mut found) = ([f32::NEG_INFINITY; LINE], [0u32; LINE]);
            for k in 0..g.kernel[0] * g.kernel[1] {
                let pixels = x[start(g, line, k) + first * W..][..n * W].as_chunks::<W>().0;
                for ((most, found), pixels) in most.iter_mut().zip(&mut found).zip(pixels) {
                    for (j, &v) in pixels.iter().enumerate() {
                        // Bitwise or: no branch stands in the way of vector instructions.
                        let stays = (v <= *most) | most.is_nan();
                        *found = if stays { *found } else { (k * W + j) as u32 };
                        *most = if stays { *most } else { v };
                    }
                }
            }
            let dy = &dy[line * width + first..][..n];
            for k in 0..g.kernel[0] * g.kernel[1] {
                let pixels = dx[start(g, line, k) + first * W..][..n * W].as_chunks_mut::<W>().0;
                for ((pixels, found), dy) in pixels.iter_mut().zip(&found).zip(dy) {
                    for (j, v) in pixels.iter_mut().enumerate() {
                        *v = if *found == (k * W + j) as u32 { *dy } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// The larger of two values; NaN if one of them is.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    // Bitwise or: no branch stands in the way of vector instructions.
    if (b > a) | b.is_nan() { b } else { a }
}

#[inline(always)]
fn sum_plane_by(g: &Window, x: &[f32], factor: &[f32], y: &mut [f32]) {
    y.fill(0.0);
    for_each_run(g, |_, y_first, x_first, n| {
        let y = &mut y[y_first..y_first + n];
        let x = &x[x_first..];
        match g.stride[2] {
            1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += x),
            2 => y.iter_mut().zip(x.chunks(2)).for_each(|(y, x)| *y += x[0]),
            s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y += x),
        }
    });
    y.iter_mut().zip(factor).for_each(|(y, f)| *y *= f);
}

/// Sum of a slice, in lanes: a sum of few rounding errors that vector instructions can take.
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l += v);
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Largest value of a slice, NaN if it holds one; -∞ of an empty one.
pub fn max(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l = larger(*l, *v));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &v| if a.is_nan() { a } else { larger(a, v) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(stride: usize, pad: isize) -> Window {
        Window {
            input: [1, 4, 7],
            kernel: [1, 3, 3],
            output: [1, (4 + 2 * pad as usize - 3) / stride + 1, (7 + 2 * pad as usize - 3) / stride + 1],
            stride: [1, stride, stride],
            dilation: [1; 3],
            pad: [0, pad, pad],
        }
    }

    #[test]
    fn a_plane_pooled_is_every_window_pooled() {
        let x: Vec<f32> = (0..28).map(|i| ((i * 37 + 11) % 29) as f32 - 14.0).collect();
        for (stride, pad) in [(1, 0), (1, 1), (2, 1), (3, 1)] {
            let g = window(stride, pad);
            let (mut largest, mut sums) = (vec![0.0; g.positions()], vec![0.0; g.positions()]);
            let one = Pool::new(1);
            max_planes(&one, &g, &x, &mut largest);
            mean_planes(&one, &g, &x, &vec![0.5; g.positions()], &mut sums);
            for p in 0..g.positions() {
                let (oy, ox) = (p / g.output[2] * stride, p % g.output[2] * stride);
                let inside: Vec<f32> = (0..9)
                    .map(|k| (oy as isize + k / 3 - pad, ox as isize + k % 3 - pad))
                    .filter(|&(y, x)| (0..4).contains(&y) && (0..7).contains(&x))
                    .map(|(y, v)| x[(y * 7 + v) as usize])
                    .collect();
                assert_eq!(largest[p], inside.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                assert_eq!(sums[p], inside.iter().sum::<f32>() * 0.5);
            }
        }
    }

    #[test]
    fn planes_shared_out_are_those_of_one_thread() {
        let g = Window { input: [1, 30, 41], output: [1, 15, 20], kernel: [1, 2, 2], ..window(2, 0) };
        let planes = 2 * WORTH_SHARING / g.pixels() + 5;
        let x: Vec<f32> = (0..planes * g.pixels()).map(|i| ((i * 37 + 11) % 1009) as f32 - 500.0).collect();
        let factors: Vec<f32> = (0..g.positions()).map(|i| i as f32).collect();
        let of = |threads: usize| {
            let pool = Pool::new(threads);
            let (mut largest, mut means) =
                (vec![f32::NAN; planes * g.positions()], vec![f32::NAN; planes * g.positions()]);
            max_planes(&pool, &g, &x, &mut largest);
            mean_planes(&pool, &g, &x, &factors, &mut means);
            (largest, means)
        };
        assert_eq!(of(1), of(3));
        let last = &x[(planes - 1) * g.pixels()..];
        let under = |p: usize| [0, 1, 41, 42].map(|t| last[p / 20 * 82 + p % 20 * 2 + t]);
        let (largest, means) = of(3);
        for p in 0..g.positions() {
            let at = (planes - 1) * g.positions() + p;
            assert_eq!(largest[at], under(p).into_iter().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(means[at], under(p).iter().sum::<f32>() * p as f32);
        }
    }

    #[test]
    fn a_gradient_goes_to_the_first_of_the_largest_of_each_window() {
        let mut seen = 0;
        for (kernel, stride) in
            [([1, 2, 2], [1, 2, 2]), ([1, 2, 4], [1, 2, 4]), ([2, 1, 3], [2, 3, 3]), ([1, 3, 1], [1, 4, 1])]
        {
            for input in [[2, 6, 12], [3, 9, 13], [2, 40, 150]] {
                let output = std::array::from_fn(|a| (input[a] - kernel[a]) / stride[a] + 1);
                let g = Window { input, kernel, output, stride, dilation: [1; 3], pad: [0; 3] };
                assert!(tiles(&g));
                let (pixels, positions) = (g.pixels(), g.positions());
                let planes = 3 + 2 * WORTH_SHARING / pixels;
                // Few values, so that many are largest together; now and then there is no number or none that is finite.
                let x: Vec<f32> = (0..planes * pixels)
                    .map(|i| match (i * 7919 + i / 31) % 101 {
                        0 => f32::NAN,
                        1..4 => f32::NEG_INFINITY,
                        v => (v % 5) as f32,
                    })
                    .collect();
                let dy: Vec<f32> = (0..planes * positions).map(|i| (i % 1013) as f32 + 1.0).collect();
                let mut want = vec![0.0; x.len()];
                for (i, dy) in dy.iter().enumerate() {
                    let (plane, p) = (i / positions, i % positions);
                    let at = [p / output[2] / output[1], p / output[2] % output[1], p % output[2]];
                    let mut under = (0..g.taps()).map(|t| {
                        let k = [t / kernel[2] / kernel[1], t / kernel[2] % kernel[1], t % kernel[2]];
                        let [d, h, w] = std::array::from_fn(|a| at[a] * stride[a] + k[a]);
                        plane * pixels + (d * input[1] + h) * input[2] + w
                    });
                    let first = under.next().unwrap();
                    let better = |a: f32, b: f32| !a.is_nan() && (b.is_nan() || b > a);
                    want[under.fold(first, |a, b| if better(x[a], x[b]) { b } else { a })] = *dy;
                }
                for isa in Isa::ALL {
                    for threads in [1, 3] {
                        let mut dx = vec![f32::NAN; x.len()];
                        if max_gradients_on(isa, &Pool::new(threads), &g, &x, &dy, &mut dx) {
                            assert_eq!(dx, want, "{g:?} {isa:?}");
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert!(seen >= 24);
        let g = window(2, 0);
        let wide = Window { kernel: [1, 2, 5], stride: [1, 2, 5], output: [1, 2, 1], ..g };
        for g in [g, window(3, 1), Window { kernel: [1, 2, 2], output: [1, 3, 3], ..g }, wide] {
            assert!(!tiles(&g), "{g:?}");
        }
    }

    #[test]
    fn a_nan_is_the_largest_value_wherever_it_stands() {
        for n in [1, 15, 16, 33] {
            for at in 0..n {
                let mut x = vec![1.0; n];
                assert_eq!(max(&x), 1.0);
                assert_eq!(sum(&x), n as f32);
                x[at] = f32::NAN;
                assert!(max(&x).is_nan(), "{at} of {n}");
            }
        }
        assert!(larger(f32::NAN, 1.0).is_nan() && larger(1.0, f32::NAN).is_nan());
    }
}
