//! Softmax and normalisation of `f32`: rows of neighbours, or columns `inner` apart.
//!
//! `reference` forms are summed in `f64`; the fast forms take each row three times from the cache.
use crate::exp::exp;
use crate::isa::{Isa, on_isa};
use crate::reduce::fold_row;

/// `e^(x - max) / Σ` over each row of `n`, or with `log` its logarithm.
///
/// # Panics
/// When `y` is shorter than `x`.
pub fn softmax(n: usize, log: bool, x: &[f32], y: &mut [f32]) {
    softmax_on(Isa::best(), n, log, x, y);
}

/// The same along the middle axis of `[…, n, inner]`. `scratch` has `2 · inner` elements.
///
/// # Panics
/// When a slice is shorter than said.
pub fn softmax_inner(n: usize, inner: usize, log: bool, x: &[f32], y: &mut [f32], scratch: &mut [f32]) {
    softmax_inner_on(Isa::best(), n, inner, log, x, y, scratch);
}

/// `(x - mean) / sqrt(var + epsilon) · gain + offset` over each row of `n`.
///
/// # Panics
/// When a slice is shorter than said.
pub fn layer_norm(n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    layer_norm_on(Isa::best(), n, epsilon, x, gain, offset, y);
}

/// `x / sqrt(mean(x²) + epsilon) · gain + offset` over each row of `n`.
///
/// # Panics
/// When a slice is shorter than said.
pub fn rms_norm(n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    rms_norm_on(Isa::best(), n, epsilon, x, gain, offset, y);
}

/// Group normalisation of one sample: `channels` rows of `len` are normalised together and then scaled and shifted, each
/// channel by its own `gain` and `offset`.
///
/// # Panics
/// When a slice is shorter than said.
pub fn group_norm(len: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: &[f32], y: &mut [f32]) {
    group_norm_on(Isa::best(), len, epsilon, x, gain, offset, y);
}

/// `y[r] = x[r] · scale[r % C] + shift[r % C]` for rows of `len`, `C` the length of `scale`.
///
/// # Panics
/// When a slice is shorter than said.
pub fn affine(len: usize, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    affine_on(Isa::best(), len, x, scale, shift, y);
}

on_isa! {
    /// [`softmax`] on one instruction set.
    pub fn softmax_on = any_softmax; (n: usize, log: bool, x: &[f32], y: &mut [f32])
}
on_isa! {
    /// [`softmax_inner`] on one instruction set.
    pub fn softmax_inner_on = any_softmax_inner;
    (n: usize, inner: usize, log: bool, x: &[f32], y: &mut [f32], scratch: &mut [f32])
}
on_isa! {
    /// [`layer_norm`] on one instruction set.
    pub fn layer_norm_on = any_layer_norm;
    (n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32])
}
on_isa! {
    /// [`rms_norm`] on one instruction set.
    pub fn rms_norm_on = any_rms_norm;
    (n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32])
}
on_isa! {
    /// [`group_norm`] on one instruction set.
    pub fn group_norm_on = any_group_norm;
    (len: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: &[f32], y: &mut [f32])
}
on_isa! {
    /// [`affine`] on one instruction set.
    pub fn affine_on = any_affine; (len: usize, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32])
}

/// [`softmax`] by the formula, in `f64`; `inner` apart as in [`softmax_inner`].
#[cfg(test)]
pub fn reference_softmax(n: usize, inner: usize, log: bool, x: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for block in (0..x.len()).step_by((n * inner).max(1)) {
        for i in block..block + inner {
            let at = |j: usize| f64::from(x[i + j * inner]);
            let max = (0..n).map(at).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..n).map(|j| (at(j) - max).exp()).sum();
            for j in 0..n {
                let z = at(j) - max;
                y[i + j * inner] = if log { z - sum.ln() } else { z.exp() / sum };
            }
        }
    }
    y
}

/// [`layer_norm`] by the formula, in `f64`; `centred` false is [`rms_norm`].
#[cfg(test)]
pub fn reference_norm(
    n: usize,
    epsilon: f32,
    centred: bool,
    x: &[f32],
    gain: &[f32],
    offset: Option<&[f32]>,
) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n) {
        let mean = if centred { row.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64 } else { 0.0 };
        let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
        let r = 1.0 / (var + f64::from(epsilon)).sqrt();
        for (j, &v) in row.iter().enumerate() {
            y.push((f64::from(v) - mean) * r * f64::from(gain[j]) + offset.map_or(0.0, |o| f64::from(o[j])));
        }
    }
    y
}

#[inline(always)]
fn larger(a: f32, v: f32) -> f32 {
    if v > a { v } else { a }
}

#[inline(always)]
fn any_softmax(n: usize, log: bool, x: &[f32], y: &mut [f32]) {
    if n == 0 {
        return;
    }
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = fold_row(x, f32::NEG_INFINITY, larger, larger);
        if log {
            let sum = fold_row(x, 0.0, |a, v| a + exp(v - max), |a, b| a + b);
            let shift = sum.ln();
            for (o, &v) in y.iter_mut().zip(x) {
                *o = (v - max) - shift;
            }
        } else {
            for (o, &v) in y.iter_mut().zip(x) {
                *o = exp(v - max);
            }
            let scale = 1.0 / fold_row(y, 0.0, |a, v| a + v, |a, b| a + b);
            for o in y.iter_mut() {
                *o *= scale;
            }
        }
    }
}

#[inline(always)]
fn any_softmax_inner(n: usize, inner: usize, log: bool, x: &[f32], y: &mut [f32], scratch: &mut [f32]) {
    if n * inner == 0 {
        return;
    }
    let (max, rest) = scratch.split_at_mut(inner);
    let sum = &mut rest[..inner];
    for (x, y) in x.chunks_exact(n * inner).zip(y.chunks_exact_mut(n * inner)) {
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for row in x.chunks_exact(inner) {
            for (m, &v) in max.iter_mut().zip(row) {
                *m = larger(*m, v);
            }
        }
        for (row, out) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)) {
            for j in 0..inner {
                let z = row[j] - max[j];
                let e = exp(z);
                sum[j] += e;
                out[j] = if log { z } else { e };
            }
        }
        if log {
            sum.iter_mut().for_each(|s| *s = s.ln());
            for out in y.chunks_exact_mut(inner) {
                for (o, &s) in out.iter_mut().zip(sum.iter()) {
                    *o -= s;
                }
            }
        } else {
            sum.iter_mut().for_each(|s| *s = 1.0 / *s);
            for out in y.chunks_exact_mut(inner) {
                for (o, &s) in out.iter_mut().zip(sum.iter()) {
                    *o *= s;
                }
            }
        }
    }
}

/// Mean and `1 / sqrt(var + epsilon)` of a row.
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = fold_row(x, 0.0, |a, v| a + v, |a, b| a + b) / n;
    let var = fold_row(x, 0.0, |a, v| a + (v - mean) * (v - mean), |a, b| a + b) / n;
    (mean, 1.0 / (var + epsilon).sqrt())
}

#[inline(always)]
fn any_layer_norm(n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    if n == 0 {
        return;
    }
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let (mean, r) = moments(x, epsilon);
        scaled(x, mean, r, gain, offset, y);
    }
}

#[inline(always)]
fn any_rms_norm(n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    if n == 0 {
        return;
    }
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let square = fold_row(x, 0.0, |a, v| a + v * v, |a, b| a + b) / n as f32;
        scaled(x, 0.0, 1.0 / (square + epsilon).sqrt(), gain, offset, y);
    }
}

/// `(x - mean) · r · gain + offset`.
#[inline(always)]
fn scaled(x: &[f32], mean: f32, r: f32, gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    let n = x.len();
    let (gain, y) = (&gain[..n], &mut y[..n]);
    match offset {
        Some(offset) => {
            let offset = &offset[..n];
            for j in 0..n {
                y[j] = (x[j] - mean) * r * gain[j] + offset[j];
            }
        }
        None => {
            for j in 0..n {
                y[j] = (x[j] - mean) * r * gain[j];
            }
        }
    }
}

#[inline(always)]
fn any_group_norm(len: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: &[f32], y: &mut [f32]) {
    if len == 0 {
        return;
    }
    let (mean, r) = moments(x, epsilon);
    for (c, (x, y)) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)).enumerate() {
        let (scale, shift) = (r * gain[c], offset[c]);
        for (o, &v) in y.iter_mut().zip(x) {
            *o = (v - mean) * scale + shift;
        }
    }
}

#[inline(always)]
fn any_affine(len: usize, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    if len == 0 || scale.is_empty() {
        return;
    }
    if len == 1 {
        let c = scale.len();
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for j in 0..c {
                y[j] = x[j] * scale[j] + shift[j];
            }
        }
        return;
    }
    let channels = scale.iter().zip(shift).cycle();
    for ((x, y), (&s, &t)) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)).zip(channels) {
        for (o, &v) in y.iter_mut().zip(x) {
            *o = v * s + t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, by: f32) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0) * by).collect()
    }

    fn isas() -> Vec<Isa> {
        let all: Vec<Isa> = Isa::ALL.into_iter().filter(|i| i.available()).collect();
        assert!(!all.is_empty(), "no instruction set ran");
        all
    }

    fn close(want: &[f64], got: &[f32], tolerance: f64, what: &str) {
        assert_eq!(want.len(), got.len(), "{what}");
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            assert!((w - f64::from(*g)).abs() <= tolerance, "{what} [{i}]: {w} {g}");
        }
    }

    #[test]
    fn softmax_is_the_formula_along_rows_and_along_columns() {
        for isa in isas() {
            for n in [1, 3, 31, 32, 65] {
                for log in [false, true] {
                    // Four roundings and two of `exp` a value of at most 1, or of 20 as a logarithm; n in the sum.
                    let tolerance = (n + 8) as f64 * f64::from(f32::EPSILON) * if log { 20.0 } else { 1.0 };
                    let x = noise(4 * n, 8.0);
                    let mut y = vec![0.0; x.len()];
                    softmax_on(isa, n, log, &x, &mut y);
                    close(&reference_softmax(n, 1, log, &x), &y, tolerance, "rows");
                    for inner in [1, 5, 40] {
                        let x = noise(2 * n * inner, 8.0);
                        let (mut y, mut scratch) = (vec![0.0; x.len()], vec![0.0; 2 * inner]);
                        softmax_inner_on(isa, n, inner, log, &x, &mut y, &mut scratch);
                        close(&reference_softmax(n, inner, log, &x), &y, tolerance, "columns");
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_gives_nothing_to_minus_infinity() {
        for isa in isas() {
            let mut y = [0.0; 3];
            softmax_on(isa, 3, false, &[0.0, f32::NEG_INFINITY, 0.0], &mut y);
            assert_eq!(y, [0.5, 0.0, 0.5]);
        }
    }

    #[test]
    fn normalised_rows_are_the_formula() {
        for isa in isas() {
            for n in [2, 31, 32, 100] {
                let (x, gain, offset) = (noise(3 * n, 2.0), noise(n, 1.0), noise(n, 0.5));
                let tolerance = (n + 8) as f64 * f64::from(f32::EPSILON) * 4.0;
                for offset in [None, Some(&offset[..])] {
                    let mut y = vec![0.0; x.len()];
                    layer_norm_on(isa, n, 1e-5, &x, &gain, offset, &mut y);
                    close(&reference_norm(n, 1e-5, true, &x, &gain, offset), &y, tolerance, "layer");
                    rms_norm_on(isa, n, 1e-5, &x, &gain, offset, &mut y);
                    close(&reference_norm(n, 1e-5, false, &x, &gain, offset), &y, tolerance, "rms");
                }
            }
        }
    }

    #[test]
    fn a_group_is_normalised_as_one_row_and_scaled_by_channel() {
        for isa in isas() {
            let (len, gain, offset) = (9, noise(4, 1.0), noise(4, 0.5));
            let x = noise(4 * len, 2.0);
            let spread = |v: &[f32]| -> Vec<f32> { v.iter().flat_map(|&v| vec![v; len]).collect() };
            let want = reference_norm(4 * len, 1e-5, true, &x, &spread(&gain), Some(&spread(&offset)));
            let mut y = vec![0.0; x.len()];
            group_norm_on(isa, len, 1e-5, &x, &gain, &offset, &mut y);
            close(&want, &y, 44.0 * f64::from(f32::EPSILON) * 4.0, "group");
        }
    }

    #[test]
    fn affine_repeats_its_channels_over_the_batch() {
        for isa in isas() {
            for len in [1, 7] {
                let x = noise(2 * 3 * len, 1.0);
                let mut y = vec![0.0; x.len()];
                affine_on(isa, len, &x, &[1.0, 2.0, 3.0], &[0.5, 0.0, -0.5], &mut y);
                for (i, (&v, &o)) in x.iter().zip(&y).enumerate() {
                    let c = i / len % 3;
                    let want = v * (c + 1) as f32 + 0.5 - 0.5 * c as f32;
                    assert!((o - want).abs() <= 2.0 * f32::EPSILON * 4.0);
                }
            }
        }
    }
}
