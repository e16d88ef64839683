//! What is done to a finished tile of a product or a convolution while it is in the cache: a residual, an activation.
//!
//! The activations are also functions of one element ([`Activation::reference`]), and loops over slices ([`apply`]).
use crate::gemm::{Out, share};
use crate::isa::Isa;
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;

/// A function of one element.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, low), high)`.
    Clip(f32, f32),
    /// `x`, or `alpha · x` below 0.
    LeakyRelu(f32),
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x / (1 + e^-x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `min(max(alpha · x + beta, 0), 1)`.
    HardSigmoid(f32, f32),
    /// `x · min(max(x / 6 + 1/2, 0), 1)`.
    HardSwish,
    /// `x · (1 + erf(x / √2)) / 2`.
    Gelu,
    /// `x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
    GeluTanh,
    /// `x`, or `alpha · (e^x - 1)` below 0.
    Elu(f32),
    /// `x · tanh(ln(1 + e^x))`.
    Mish,
    /// `ln(1 + e^x)`.
    Softplus,
}

impl Activation {
    /// The formula, in `f64`. NaN stays NaN.
    pub fn reference(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        if x.is_nan() {
            return x;
        }
        match self {
            Activation::None => x,
            Activation::Relu => x.max(0.0),
            Activation::Clip(low, high) => x.max(f64::from(low)).min(f64::from(high)),
            Activation::LeakyRelu(alpha) => {
                if x < 0.0 {
                    f64::from(alpha) * x
                } else {
                    x
                }
            }
            Activation::Sigmoid => sigmoid(x),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::HardSigmoid(alpha, beta) => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Activation::Gelu => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Activation::GeluTanh => {
                x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x))
            }
            Activation::Elu(alpha) => {
                if x < 0.0 {
                    f64::from(alpha) * x.exp_m1()
                } else {
                    x
                }
            }
            Activation::Mish => x * softplus(x).tanh(),
            Activation::Softplus => softplus(x),
        }
    }

    /// The limits a result is kept within, where that is all there is to do.
    pub(crate) fn limits(self) -> Option<(f32, f32)> {
        match self {
            Activation::None => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Clip(low, high) => Some((low, high)),
            _ => None,
        }
    }
}

/// `1 - erf(x)`, relative error below 1e-12 for `x < 6`: the series of positive terms (DLMF 7.6.2), the continued fraction
/// (7.9.3) where that would cancel.
fn erfc(x: f64) -> f64 {
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        let erf = if x < -6.0 { -1.0 } else { sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI };
        return 1.0 - erf;
    }
    let f = (1..200).rev().fold(x, |f, n| x + 0.5 * f64::from(n) / f);
    (-x * x).exp() / f / std::f64::consts::PI.sqrt()
}

/// What follows a sum and its bias.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// A tensor of the shape and strides of the result to add to it.
    pub residual: Option<&'a [f32]>,
    /// The residual is added to the activated value and not to the value that is activated.
    pub after: bool,
    /// The activation.
    pub activation: Activation,
}

/// `x = activation(x)` for each element, in place.
pub fn apply(activation: Activation, x: &mut [f32]) {
    apply_on(Isa::best(), activation, x);
}

/// [`apply`] on one instruction set, or nothing where this CPU has not got it.
pub fn apply_on(isa: Isa, activation: Activation, x: &mut [f32]) {
    if isa.available() {
        // SAFETY: the CPU has the instruction set, and there is one row as long as `x`.
        unsafe { rows::on(isa, activation, x.as_mut_ptr(), x.len(), 1, 0, std::ptr::null()) };
    }
}

/// Elements taken together: they stay in the first-level cache between the copy and the function.
const CHUNK: usize = 2048;
/// Elements below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 14;

/// `y = activation(x)` for each element, on all threads of `pool`.
///
/// # Panics
/// When `y` is shorter than `x`.
pub fn apply_to(pool: &Pool, activation: Activation, x: &[f32], y: &mut [f32]) {
    assert!(y.len() >= x.len(), "y is shorter than x");
    let (isa, out) = (Isa::best(), Out(y.as_mut_ptr()));
    let parts = if x.len() < WORTH_SHARING { 1 } else { pool.threads() };
    pool.run(parts, &|i| {
        let part = share(x.len(), parts, i);
        for first in part.clone().step_by(CHUNK) {
            let x = &x[first..part.end.min(first + CHUNK)];
            let y = out.start().wrapping_add(first);
            // SAFETY: the elements exist, as asserted, no other call has them, and the CPU has the instruction set.
            unsafe {
                std::ptr::copy_nonoverlapping(x.as_ptr(), y, x.len());
                rows::on(isa, activation, y, x.len(), 1, 0, std::ptr::null());
            }
        }
    });
}

per_isa! { pub(crate) rows = activate; (activation: Activation, y: *mut f32, width: usize, rows: usize, stride: usize, residual: *const f32) }

/// `y = activation(y) + residual` for `rows` rows of `width` elements, `stride` apart in both; no residual when null.
///
/// # Safety
/// The rows exist, nobody else has those of `y`, and the CPU has the instructions.
#[inline(always)]
pub(crate) unsafe fn activate<S: F32s>(
    activation: Activation,
    y: *mut f32,
    width: usize,
    rows: usize,
    stride: usize,
    residual: *const f32,
) {
    macro_rules! each {
        (|$x:ident| $f:expr) => {
            for r in 0..rows {
                let y = y.wrapping_add(r * stride);
                let residual = residual.wrapping_add(if residual.is_null() { 0 } else { r * stride });
                let mut j = 0;
                while j + S::LANES <= width {
                    let $x = S::load(y.add(j));
                    let mut v = $f;
                    if !residual.is_null() {
                        v = v.add(S::load(residual.add(j)));
                    }
                    v.store(y.add(j));
                    j += S::LANES;
                }
                if j < width {
                    let $x = S::load_part(y.add(j), width - j);
                    let mut v = $f;
                    if !residual.is_null() {
                        v = v.add(S::load_part(residual.add(j), width - j));
                    }
                    v.store_part(y.add(j), width - j);
                }
            }
        };
    }
    // SAFETY: the caller promises the instructions and the rows; vectors begin inside a row, the last is taken in part.
    unsafe {
        match activation {
            Activation::None => each!(|x| x),
            Activation::Relu => each!(|x| S::splat(0.0).max(x)),
            Activation::Clip(low, high) => {
                let (low, high) = (S::splat(low), S::splat(high));
                each!(|x| high.min(low.max(x)))
            }
            Activation::LeakyRelu(alpha) => {
                let alpha = S::splat(alpha);
                each!(|x| x.if_less(S::splat(0.0), x.mul(alpha), x))
            }
            Activation::Sigmoid => each!(|x| sigmoid(x)),
            Activation::Silu => each!(|x| x.mul(sigmoid(x))),
            Activation::Tanh => each!(|x| tanh(x)),
            Activation::HardSigmoid(alpha, beta) => {
                let (alpha, beta) = (S::splat(alpha), S::splat(beta));
                each!(|x| S::splat(1.0).min(S::splat(0.0).max(x.mul_add(alpha, beta))))
            }
            Activation::HardSwish => {
                each!(|x| x.mul(S::splat(1.0).min(S::splat(0.0).max(x.mul_add(S::splat(1.0 / 6.0), S::splat(0.5))))))
            }
            Activation::Gelu => each!(|x| gelu(x)),
            Activation::GeluTanh => each!(|x| {
                let u = x.mul(x.mul(x).mul_add(S::splat(0.071_354_814), S::splat(1.595_769)));
                x.mul(sigmoid(u))
            }),
            Activation::Elu(alpha) => {
                let alpha = S::splat(alpha);
                each!(|x| x.if_less(S::splat(0.0), exp_m1(x).mul(alpha), x))
            }
            Activation::Mish => each!(|x| {
                // With n = e^x (e^x + 2) it is x · n / (n + 2).
                let e = exp(S::splat(20.0).min(x));
                let n = e.mul(e.add(S::splat(2.0)));
                x.mul(n.div(n.add(S::splat(2.0))))
            }),
            Activation::Softplus => each!(|x| {
                let e = exp(S::splat(0.0).sub(abs(x)));
                S::splat(0.0).max(x).add(ln_1p(e))
            }),
        }
    }
}

/// 1.5 · 2²³: adding it leaves the nearest integer in the low bits of the mantissa.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
unsafe fn abs<S: F32s>(x: S) -> S {
    // SAFETY: the caller's promise.
    unsafe { S::splat(0.0).sub(x).max(x) }
}

/// `c[0] · x^(n-1) + … + c[n-1]`.
#[inline(always)]
unsafe fn polynomial<S: F32s, const N: usize>(x: S, c: [f32; N]) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let mut p = S::splat(c[0]);
        for i in 1..N {
            p = p.mul_add(x, S::splat(c[i]));
        }
        p
    }
}

/// `e^x` within 2 units in the last place for `x` in `-87..=88`; for others the value of the nearer end.
///
/// Source: Cephes, `expf`.
#[inline(always)]
unsafe fn exp<S: F32s>(x: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let x = S::splat(88.0).min(S::splat(-87.0).max(x));
        let shifted = x.mul_add(S::splat(std::f32::consts::LOG2_E), S::splat(ROUNDER));
        let n = shifted.sub(S::splat(ROUNDER));
        let r = n.mul_add(S::splat(-0.693_359_4), x);
        let r = n.mul_add(S::splat(2.121_944_4e-4), r);
        let p = polynomial(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5]);
        p.mul_add(r.mul(r), r).add(S::splat(1.0)).times_power(shifted)
    }
}

/// `e^x - 1` for `x` up to 0: near 0 the series.
#[inline(always)]
unsafe fn exp_m1<S: F32s>(x: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let far = exp(x).sub(S::splat(1.0));
        let series = [1.0 / 40_320.0, 1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
        let near = polynomial(x, series).mul_add(x.mul(x), x);
        x.if_less(S::splat(-0.5), far, near)
    }
}

#[inline(always)]
unsafe fn sigmoid<S: F32s>(x: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let e = exp(S::splat(0.0).sub(x));
        S::splat(1.0).div(S::splat(1.0).add(e))
    }
}

/// Source: Cephes, `tanhf`.
#[inline(always)]
unsafe fn tanh<S: F32s>(x: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let a = abs(x);
        let far = S::splat(1.0).sub(S::splat(2.0).div(exp(a.add(a)).add(S::splat(1.0))));
        let far = x.if_less(S::splat(0.0), S::splat(0.0).sub(far), far);
        let z = x.mul(x);
        let series = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8];
        let near = polynomial(z, series).mul(z).mul_add(x, x);
        S::splat(0.625).if_less(a, far, near)
    }
}

/// Source: N. Juffa, answer 35148199 on Stack Overflow ("Efficient faithfully rounded implementation of error function
/// erff()").
#[inline(always)]
unsafe fn gelu<S: F32s>(v: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let x = v.mul(S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::splat(4.0).min(abs(x));
        let s = t.mul(t);
        let p = t.mul_add(S::splat(-1.728_534_7e-5), S::splat(3.831_972e-4));
        let u = t.mul_add(S::splat(-3.883_964_4e-3), S::splat(2.425_462_2e-2));
        let p = p.mul_add(s, u);
        let p = p.mul_add(t, S::splat(-0.106_777_88));
        let p = p.mul_add(t, S::splat(-0.634_846_7));
        let p = p.mul_add(t, S::splat(-0.128_717_51));
        let tail = exp(p.mul_add(t, S::splat(0.0).sub(t)));
        let far = S::splat(1.0).sub(tail);
        let series = [-5.967_617e-4, 4.991_194e-3, -2.676_813_4e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17];
        let near = polynomial(s, series).mul_add(t, t);
        let e = S::splat(0.927_734_4).if_less(t, far, near);
        let e = x.if_less(S::splat(0.0), S::splat(0.0).sub(e), e);
        // The sum first: for very negative values it is 0, and NaN comes in by `v`.
        v.mul(S::splat(0.5)).mul(e.add(S::splat(1.0)))
    }
}

/// `ln(1 + e)` for `e` in `0..=1`: with `s = e / (e + 2)` it is `2 artanh(s)`, `s` at most 1/3.
#[inline(always)]
unsafe fn ln_1p<S: F32s>(e: S) -> S {
    // SAFETY: the caller's promise.
    unsafe {
        let s = e.div(e.add(S::splat(2.0)));
        let z = s.mul(s);
        let series = [2.0 / 15.0, 2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0];
        polynomial(z, series).mul(z).mul_add(s, s.add(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every activation, and how far a result may be from the formula in units of `ε · max(|x|, 1)`.
    const ALL: [(Activation, f64); 14] = [
        (Activation::None, 0.0),
        (Activation::Relu, 0.0),
        (Activation::Clip(-0.5, 6.0), 0.0),
        (Activation::LeakyRelu(0.1), 0.5),
        (Activation::Sigmoid, 1.0),
        (Activation::Silu, 1.5),
        (Activation::Tanh, 1.0),
        (Activation::HardSigmoid(0.2, 0.5), 0.5),
        (Activation::HardSwish, 1.0),
        (Activation::Gelu, 1.5),
        (Activation::GeluTanh, 1.5),
        (Activation::Elu(0.7), 1.0),
        (Activation::Mish, 1.5),
        (Activation::Softplus, 1.5),
    ];

    #[test]
    fn every_activation_is_as_near_to_its_formula_as_stated_on_every_instruction_set() {
        let mut ran = 0;
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (activation, bound) in ALL {
                let x: Vec<f32> =
                    (0..=200f32.to_bits()).step_by(100_003).map(f32::from_bits).flat_map(|x| [x, -x]).collect();
                let mut y = x.clone();
                apply_on(isa, activation, &mut y);
                let mut worst = (0.0, 0.0);
                for (&x, &y) in x.iter().zip(&y) {
                    let error = (f64::from(y) - activation.reference(f64::from(x))).abs();
                    let units = error / (f64::from(f32::EPSILON) * f64::from(x.abs()).max(1.0));
                    if units > worst.0 {
                        worst = (units, x);
                    }
                }
                println!("{isa:?} {activation:?}: {:.2} at {}", worst.0, worst.1);
                assert!(worst.0 <= bound, "{isa:?} {activation:?}: {} at {}", worst.0, worst.1);
                ran += 1;
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }

    #[test]
    fn nan_stays_nan_and_infinity_has_its_limit() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (activation, _) in ALL {
                let mut y = [f32::NAN; 17];
                apply_on(isa, activation, &mut y);
                assert!(y.iter().all(|v| v.is_nan()), "{isa:?} {activation:?}");
                let mut y = [f32::INFINITY; 17];
                apply_on(isa, activation, &mut y);
                let want = activation.reference(f64::INFINITY) as f32;
                let want = if want.is_nan() { f32::INFINITY } else { want };
                assert!(y.iter().all(|&v| v == want), "{isa:?} {activation:?}: {y:?}");
            }
        }
    }

    #[test]
    fn rows_of_every_width_are_activated_and_given_their_residual_and_nothing_else_is_written() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for width in 1..40 {
                let (stride, rows) = (width + 3, 3);
                let x: Vec<f32> = (0..rows * stride).map(|i| (i as f32 * 0.71).sin()).collect();
                let add: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
                for residual in [false, true] {
                    let mut y = x.clone();
                    let from = if residual { add.as_ptr() } else { std::ptr::null() };
                    // SAFETY: the instruction set is available; `y` and `add` hold the rows.
                    unsafe { super::rows::on(isa, Activation::Relu, y.as_mut_ptr(), width, rows, stride, from) };
                    for i in 0..y.len() {
                        let inside = i % stride < width;
                        let want = x[i].max(0.0) + if residual { add[i] } else { 0.0 };
                        assert_eq!(y[i], if inside { want } else { x[i] }, "{isa:?} {width} {i}");
                    }
                }
            }
        }
    }
}
