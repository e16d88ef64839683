//! Gradients of what normalises rows, softmax, its logarithm and layer normalisation, and of Gelu.
//!
//! `dy` is the gradient of the loss by the result, `dx` that by the operand. Sums over the rows go in the order of the
//! rows, so that results do not depend on the number of threads.
use crate::elementwise::{erf, exp, tanh};
use crate::isa::{Isa, on_isa};

/// Of the softmax `y` of rows of `n`: `y · (dy - Σ dy · y)`; with `log`, of its logarithm `y`: `dy - e^y · Σ dy`.
///
/// # Panics
/// When a slice is shorter than `dx`.
pub fn softmax(n: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32]) {
    softmax_on(Isa::best(), n, log, dy, y, dx);
}

/// The same along the middle axis of `[…, n, inner]`. `scratch` has `inner` elements.
///
/// # Panics
/// When a slice is shorter than said.
pub fn softmax_inner(n: usize, inner: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32], scratch: &mut [f32]) {
    softmax_inner_on(Isa::best(), n, inner, log, dy, y, dx, scratch);
}

/// What a layer normalisation of rows of `n` is given for its gradient.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Elements normalised together.
    pub n: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// By mean and variance; else by the mean square alone.
    pub centred: bool,
    /// The factor of each element of a row.
    pub gain: &'a [f32],
}

/// `dx = r · (g - mean(g) - z · mean(g · z))` with `g = dy · gain`, `z` the normalised row and `r` the inverse of its
/// root; without the first mean when not centred.
///
/// # Panics
/// When a slice is shorter than said.
pub fn layer_norm(norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    layer_norm_on(Isa::best(), norm, dy, x, dx);
}

/// `dgain = Σ_rows dy · z` and `dbias = Σ_rows dy`, both written.
///
/// # Panics
/// When a slice is shorter than said.
pub fn layer_norm_parameters(norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dgain: &mut [f32], dbias: &mut [f32]) {
    layer_norm_parameters_on(Isa::best(), norm, dy, x, dgain, dbias);
}

/// Of `x · Φ(x)`: `dy · (Φ(x) + x φ(x))`; or of its form by tanh.
///
/// # Panics
/// When a slice is shorter than `dx`.
pub fn gelu(by_tanh: bool, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    gelu_on(Isa::best(), by_tanh, dy, x, dx);
}

on_isa! {
    /// [`gelu`] on one instruction set.
    pub fn gelu_on = any_gelu; (by_tanh: bool, dy: &[f32], x: &[f32], dx: &mut [f32])
}
on_isa! {
    /// [`softmax`] on one instruction set.
    pub fn softmax_on = any_softmax; (n: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32])
}
on_isa! {
    /// [`softmax_inner`] on one instruction set.
    pub fn softmax_inner_on = any_softmax_inner;
    (n: usize, inner: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32], scratch: &mut [f32])
}
on_isa! {
    /// [`layer_norm`] on one instruction set.
    pub fn layer_norm_on = any_layer_norm; (norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dx: &mut [f32])
}
on_isa! {
    /// [`layer_norm_parameters`] on one instruction set.
    pub fn layer_norm_parameters_on = any_layer_norm_parameters;
    (norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dgain: &mut [f32], dbias: &mut [f32])
}

/// Sums kept apart, so that the compiler may add vectors.
const LANES: usize = 16;

/// `Σ f(i)` over `0..n`, by lanes.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    let mut rest = 0.0;
    for j in whole..n {
        rest += f(j);
    }
    rest + lanes.iter().sum::<f32>()
}

#[inline(always)]
fn any_gelu(by_tanh: bool, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    let (dy, x) = (&dy[..dx.len()], &x[..dx.len()]);
    // No `for_each`: its closure would be compiled for the baseline, not for this function's instruction set.
    if by_tanh {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * gelu_tanh_slope(*x);
        }
    } else {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * gelu_slope(*x);
        }
    }
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    // 1 / √(2π).
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
}

#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    // √(2/π).
    const ROOT: f32 = 0.797_884_6;
    let t = tanh(ROOT * (x + 0.044_715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * 0.044_715 * x * x)
}

#[inline(always)]
fn any_softmax(n: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32]) {
    if n == 0 {
        return;
    }
    for ((dx, dy), y) in dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(y.chunks_exact(n)) {
        if log {
            let total = sum(n, |i| dy[i]);
            for i in 0..n {
                dx[i] = dy[i] - crate::elementwise::exp(y[i]) * total;
            }
        } else {
            let total = sum(n, |i| dy[i] * y[i]);
            for i in 0..n {
                dx[i] = y[i] * (dy[i] - total);
            }
        }
    }
}

#[inline(always)]
fn any_softmax_inner(n: usize, inner: usize, log: bool, dy: &[f32], y: &[f32], dx: &mut [f32], scratch: &mut [f32]) {
    let block = n * inner;
    if block == 0 {
        return;
    }
    let total = &mut scratch[..inner];
    for ((dx, dy), y) in dx.chunks_exact_mut(block).zip(dy.chunks_exact(block)).zip(y.chunks_exact(block)) {
        total.fill(0.0);
        for (dy, y) in dy.chunks_exact(inner).zip(y.chunks_exact(inner)) {
            for i in 0..inner {
                total[i] += if log { dy[i] } else { dy[i] * y[i] };
            }
        }
        for ((dx, dy), y) in dx.chunks_exact_mut(inner).zip(dy.chunks_exact(inner)).zip(y.chunks_exact(inner)) {
            for i in 0..inner {
                dx[i] = if log { dy[i] - crate::elementwise::exp(y[i]) * total[i] } else { y[i] * (dy[i] - total[i]) };
            }
        }
    }
}

/// Mean and inverse of the root of a row.
#[inline(always)]
fn moments(norm: &LayerNorm<'_>, x: &[f32]) -> (f32, f32) {
    let n = norm.n;
    let mean = if norm.centred { sum(n, |i| x[i]) / n as f32 } else { 0.0 };
    let var = sum(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, 1.0 / (var + norm.epsilon).sqrt())
}

#[inline(always)]
fn any_layer_norm(norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    let n = norm.n;
    if n == 0 {
        return;
    }
    let gain = &norm.gain[..n];
    for ((dx, dy), x) in dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(x.chunks_exact(n)) {
        let (mean, r) = moments(&norm, x);
        let along = sum(n, |i| dy[i] * gain[i] * ((x[i] - mean) * r)) / n as f32;
        let level = if norm.centred { sum(n, |i| dy[i] * gain[i]) / n as f32 } else { 0.0 };
        for i in 0..n {
            dx[i] = r * (dy[i] * gain[i] - level - (x[i] - mean) * r * along);
        }
    }
}

#[inline(always)]
fn any_layer_norm_parameters(norm: LayerNorm<'_>, dy: &[f32], x: &[f32], dgain: &mut [f32], dbias: &mut [f32]) {
    let n = norm.n;
    if n == 0 {
        return;
    }
    let (dgain, dbias) = (&mut dgain[..n], &mut dbias[..n]);
    dgain.fill(0.0);
    dbias.fill(0.0);
    for (dy, x) in dy.chunks_exact(n).zip(x.chunks_exact(n)) {
        let (mean, r) = moments(&norm, x);
        for i in 0..n {
            dgain[i] += dy[i] * ((x[i] - mean) * r);
            dbias[i] += dy[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((s >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 4.0
            })
            .collect()
    }

    fn softmax_of(n: usize, inner: usize, log: bool, x: &[f32]) -> Vec<f32> {
        crate::normalise::reference_softmax(n, inner, log, x).into_iter().map(|v| v as f32).collect()
    }

    /// The formula in `f64`, along the middle axis.
    fn reference_softmax(n: usize, inner: usize, log: bool, dy: &[f32], y: &[f32]) -> Vec<f64> {
        let mut dx = vec![0.0; y.len()];
        for block in (0..y.len()).step_by(n * inner) {
            for i in block..block + inner {
                let g = |j: usize| f64::from(dy[i + j * inner]);
                let v = |j: usize| f64::from(y[i + j * inner]);
                let total: f64 = (0..n).map(|j| if log { g(j) } else { g(j) * v(j) }).sum();
                for j in 0..n {
                    dx[i + j * inner] = if log { g(j) - v(j).exp() * total } else { v(j) * (g(j) - total) };
                }
            }
        }
        dx
    }

    #[test]
    fn gradients_of_softmax_are_those_of_the_formula_on_every_instruction_set() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (n, inner) in [(1, 1), (7, 1), (16, 1), (33, 1), (5, 3), (17, 9)] {
                for log in [false, true] {
                    let (dy, y) = (numbers(3 * n * inner, 1), softmax_of(n, inner, log, &numbers(3 * n * inner, 2)));
                    let mut dx = vec![f32::NAN; y.len() + 1];
                    if inner == 1 {
                        softmax_on(isa, n, log, &dy, &y, &mut dx[..y.len()]);
                    } else {
                        let mut scratch = vec![0.0; inner];
                        softmax_inner_on(isa, n, inner, log, &dy, &y, &mut dx[..y.len()], &mut scratch);
                    }
                    assert!(dx[y.len()].is_nan());
                    // n products of numbers up to 2 are summed, each rounding below n · ε · 2.
                    let allowed = 4.0 * (n as f64 + 2.0) * f64::from(f32::EPSILON) * 2.0;
                    for (got, want) in dx.iter().zip(reference_softmax(n, inner, log, &dy, &y)) {
                        assert!((f64::from(*got) - want).abs() <= allowed, "{isa:?} {n} {inner} {log}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_of_layer_normalisation_are_those_of_the_formula_on_every_instruction_set() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for n in [1, 5, 16, 39, 384] {
                for centred in [false, true] {
                    let (dy, x, gain) = (numbers(4 * n, 3), numbers(4 * n, 4), numbers(n, 5));
                    let norm = LayerNorm { n, epsilon: 1e-3, centred, gain: &gain };
                    let (mut dx, mut dgain, mut dbias) = (vec![f32::NAN; 4 * n + 1], vec![9.0; n], vec![9.0; n]);
                    layer_norm_on(isa, norm, &dy, &x, &mut dx[..4 * n]);
                    layer_norm_parameters_on(isa, norm, &dy, &x, &mut dgain, &mut dbias);
                    assert!(dx[4 * n].is_nan());
                    let (mut want_gain, mut want_bias) = (vec![0f64; n], vec![0f64; n]);
                    for row in 0..4 {
                        let at = |v: &[f32], i: usize| f64::from(v[row * n + i]);
                        let mean = if centred { (0..n).map(|i| at(&x, i)).sum::<f64>() / n as f64 } else { 0.0 };
                        let var = (0..n).map(|i| (at(&x, i) - mean).powi(2)).sum::<f64>() / n as f64;
                        let r = 1.0 / (var + 1e-3f32 as f64).sqrt();
                        let z = |i: usize| (at(&x, i) - mean) * r;
                        let g = |i: usize| at(&dy, i) * f64::from(gain[i]);
                        let level = if centred { (0..n).map(g).sum::<f64>() / n as f64 } else { 0.0 };
                        let along = (0..n).map(|i| g(i) * z(i)).sum::<f64>() / n as f64;
                        for i in 0..n {
                            let want = r * (g(i) - level - z(i) * along);
                            // The moments are sums of n numbers up to 2; r is at most 32.
                            let allowed = 64.0 * (n as f64 + 8.0) * f64::from(f32::EPSILON) * r.max(1.0);
                            let got = f64::from(dx[row * n + i]);
                            assert!((got - want).abs() <= allowed, "{isa:?} {n} {centred}: {got} {want}");
                            want_gain[i] += at(&dy, i) * z(i);
                            want_bias[i] += at(&dy, i);
                        }
                    }
                    for i in 0..n {
                        let allowed = 64.0 * (n as f64 + 8.0) * f64::from(f32::EPSILON);
                        assert!((f64::from(dgain[i]) - want_gain[i]).abs() <= allowed);
                        assert!((f64::from(dbias[i]) - want_bias[i]).abs() <= allowed);
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_gelu_is_the_derivative_of_its_formula_on_every_instruction_set() {
        // Central differences of the formulas in f64, whose own error is below 1e-9 here.
        let erf = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        let exact = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let by_tanh =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
        let x: Vec<f32> = (-80..=80).map(|i| i as f32 / 20.0).collect();
        let dy: Vec<f32> = (0..x.len()).map(|i| 1.0 + (i % 7) as f32 / 8.0).collect();
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for tanh in [false, true] {
                let f = |x: f64| if tanh { by_tanh(x) } else { exact(x) };
                let mut dx = vec![f32::NAN; x.len() + 2];
                gelu_on(isa, tanh, &dy, &x, &mut dx[..x.len()]);
                for ((x, dy), dx) in x.iter().zip(&dy).zip(&dx) {
                    let (x, h) = (f64::from(*x), 1e-5);
                    let want = f64::from(*dy) * (f(x + h) - f(x - h)) / (2.0 * h);
                    assert!((f64::from(*dx) - want).abs() < 2e-6, "{isa:?} {tanh} {x}: {dx} {want}");
                }
                assert!(dx[x.len()..].iter().all(|v| v.is_nan()), "{isa:?} wrote past its output");
            }
        }
    }
}
