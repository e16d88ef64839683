//! Loops over elements, and the functions of one element that such loops need in a form a compiler can vectorise.
//!
//! The loops take a closure and are compiled for each, so that the operator is in the loop and not behind a pointer;
//! where the CPU has AVX2 they run in a copy compiled for it. No step is contracted or reordered, so that results do
//! not depend on the CPU. The functions have no branches, only selections. Their errors, in units in the last place,
//! are stated with each and tested against `f64`; NaN gives NaN.

/// Calls `f`, compiled for the best instructions this CPU has.
macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident, $avx2:ident, $body:ident [$($t:ident),*]
     ($($arg:ident: $ty:ty),*) where $($bound:tt)*) => {
        $(#[$doc])*
        #[inline]
        pub fn $name<$($t,)* F>($($arg: $ty,)* f: F) where $($bound)* {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn $avx2<$($t,)* F>($($arg: $ty,)* f: F) where $($bound)* {
                    $body($($arg,)* f);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: avx2, the feature the function is compiled for, has just been detected.
                    return unsafe { $avx2($($arg,)* f) };
                }
            }
            $body($($arg,)* f);
        }
    };
}

dispatched! {
    /// `y[i] = f(x[i])` up to the shorter length.
    map, map_avx2, map_body [A, B] (x: &[A], y: &mut [B]) where A: Copy, F: Fn(A) -> B + Copy
}

#[inline(always)]
fn map_body<A: Copy, B, F: Fn(A) -> B + Copy>(x: &[A], y: &mut [B], f: F) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
}

dispatched! {
    /// `y[i] = f(a[i], b[i])` up to the shortest length.
    zip, zip_avx2, zip_body [A, B, C] (a: &[A], b: &[B], y: &mut [C]) where A: Copy, B: Copy, F: Fn(A, B) -> C + Copy
}

#[inline(always)]
fn zip_body<A: Copy, B: Copy, C, F: Fn(A, B) -> C + Copy>(a: &[A], b: &[B], y: &mut [C], f: F) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        *y = f(a, b);
    }
}

dispatched! {
    /// `y[i] = f(y[i], x[i])` up to the shorter length.
    fold, fold_avx2, fold_body [A, B] (x: &[A], y: &mut [B]) where A: Copy, B: Copy, F: Fn(B, A) -> B + Copy
}

#[inline(always)]
fn fold_body<A: Copy, B: Copy, F: Fn(B, A) -> B + Copy>(x: &[A], y: &mut [B], f: F) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(*y, x);
    }
}

/// 1.5 · 2²³: adding it leaves the nearest integer in the low bits of the mantissa.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// 2 to the power `k`, for `k` in `-126..=127`.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// e to the x, within 2 units in the last place; subnormal results within one subnormal step.
///
/// Source: Cephes, `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let t = x * std::f32::consts::LOG2_E + ROUNDER;
    let k = (t.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let n = t - ROUNDER;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // In two steps, because 2^128 and 2^-149 are no normal numbers.
    let half = k >> 1;
    y * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// e to the x, less 1, within 4 units in the last place.
///
/// Near 0 the series, elsewhere [`exp`].
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let far = exp(x) - 1.0;
    let p = 1.0 / 40_320.0;
    let p = p * x + 1.0 / 5_040.0;
    let p = p * x + 1.0 / 720.0;
    let p = p * x + 1.0 / 120.0;
    let p = p * x + 1.0 / 24.0;
    let p = p * x + 1.0 / 6.0;
    let p = p * x + 0.5;
    let near = p * (x * x) + x;
    if x.abs() < 0.5 { near } else { far }
}

/// Natural logarithm, within 2 units in the last place.
///
/// Source: Cephes, `logf`.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits();
    let e = ((bits >> 23) as i32 - 126 - if tiny { 23 } else { 0 }) as f32;
    // Mantissa in [1/2, 1), then in [sqrt(1/2), sqrt(2)), less 1.
    let m = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    let e = if low { e - 1.0 } else { e };
    let r = if low { m + m - 1.0 } else { m - 1.0 };
    let z = r * r;
    let p = 7.037_683_6e-2;
    let p = p * r - 0.115_146_1;
    let p = p * r + 0.116_769_99;
    let p = p * r - 0.124_201_41;
    let p = p * r + 0.142_493_23;
    let p = p * r - 0.166_680_58;
    let p = p * r + 0.200_007_15;
    let p = p * r - 0.249_999_94;
    let p = p * r + 0.333_333_3;
    let y = p * r * z + LN2_LOW * e - 0.5 * z;
    let y = r + y + LN2_HIGH * e;
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f32::NAN }
}

/// Logistic function `1 / (1 + e^-x)`, within 4 units in the last place, without overflow for either sign.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let r = 1.0 / (1.0 + e);
    if x < 0.0 { e * r } else { r }
}

/// Hyperbolic tangent, within 3 units in the last place.
///
/// Source: Cephes, `tanhf`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let far = if x < 0.0 { -far } else { far };
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_909e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 0.133_314_42;
    let p = p * z - 0.333_332_8;
    let near = p * z * x + x;
    if a < 0.625 { near } else { far }
}

/// Gauss error function, within 3 units in the last place.
///
/// Source: N. Juffa, answer 35148199 on Stack Overflow ("Efficient faithfully rounded implementation of error function
/// erff()"), without fused operations.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let p = -1.728_534_7e-5 * t + 3.831_972e-4;
    let u = -3.883_964_4e-3 * t + 2.425_462_2e-2;
    let p = p * s + u;
    let p = p * t - 0.106_777_88;
    let p = p * t - 0.634_846_7;
    let p = p * t - 0.128_717_51;
    let p = p * t - t;
    let far = 1.0 - exp(p);
    // Beyond 4 every result is 1, and the polynomial is of no use.
    let far = if t > 4.0 { 1.0 } else { far };
    let far = if x < 0.0 { -far } else { far };
    let q = -5.967_617e-4;
    let q = q * s + 4.991_194e-3;
    let q = q * s - 2.676_813_4e-2;
    let q = q * s + 0.112_819_925;
    let q = q * s - 0.376_125_34;
    let q = q * s + 0.128_379_17;
    let near = q * x + x;
    if t > 0.927_734_4 { far } else { near }
}

/// `x · (1 + erf(x / √2)) / 2`, within `2^-23 · max(|x|, 1)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, within `2^-22 · max(|x|, 1)`.
///
/// Computed as `x · sigmoid(2 u)`, which is the same and keeps small results accurate.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(x * (1.595_769 + 0.071_354_814 * (x * x)))
}

/// `ln(1 + e^x)`, within 4 units in the last place.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    // ln(1 + e) with what was lost in the sum put back (Goldberg, "What every computer scientist …", theorem 4).
    let u = 1.0 + e;
    let l = ln(u) + (e - (u - 1.0)) / u;
    (if x > 0.0 { x } else { 0.0 }) + l
}

/// `x · tanh(ln(1 + e^x))`, within 6 units in the last place.
///
/// With `n = e^x (e^x + 2)` it is `x · n / (n + 2)`.
#[inline(always)]
pub fn mish(x: f32) -> f32 {
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error function in `f64`, by its series of positive terms (DLMF 7.6.2).
    fn erf64(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
    }

    /// Floats of both signs from the subnormals to `limit`, close together.
    fn sweep(limit: f32) -> impl Iterator<Item = f32> {
        let top = limit.to_bits();
        (0..=top).step_by(7_919).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    fn units(got: f32, want: f64) -> f64 {
        if want.is_nan() && got.is_nan() || f64::from(got) == want || want as f32 == got {
            return 0.0;
        }
        let near = (want as f32).abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn every_function_is_as_close_to_its_formula_as_it_says() {
        type Row = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f32, f64);
        let rows: &[Row] = &[
            ("exp", exp, f64::exp, 105.0, 2.0),
            ("exp_m1", exp_m1, f64::exp_m1, 105.0, 4.0),
            ("ln", ln, f64::ln, f32::MAX, 2.0),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 110.0, 4.0),
            ("tanh", tanh, f64::tanh, 100.0, 3.0),
            ("erf", erf, erf64, 100.0, 3.0),
            ("softplus", softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 110.0, 4.0),
            ("mish", mish, |x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(), 80.0, 6.0),
        ];
        for (name, f, exact, limit, bound) in rows {
            let mut worst = (0.0, 0.0);
            for x in sweep(*limit) {
                let e = units(f(x), exact(f64::from(x)));
                if e > worst.0 {
                    worst = (e, x);
                }
            }
            println!("{name}: {:.2} units at {}", worst.0, worst.1);
            assert!(worst.0 <= *bound, "{name}: {} units at {}", worst.0, worst.1);
        }
    }

    #[test]
    fn both_gelus_stay_within_their_absolute_bound() {
        for x in sweep(100.0) {
            let d = f64::from(x);
            let bound = 2f64.powi(-23) * d.abs().max(1.0);
            let exact = 0.5 * d * (1.0 + erf64(d * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(gelu(x)) - exact).abs() <= bound, "gelu {x}");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (d + 0.044_715 * d * d * d);
            let exact = 0.5 * d * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh(x)) - exact).abs() <= 2.0 * bound, "gelu_tanh {x}");
        }
    }

    #[test]
    fn nan_stays_nan_and_infinity_has_its_limit() {
        for f in [exp, exp_m1, ln, sigmoid, tanh, erf, gelu, gelu_tanh, softplus, mish] {
            assert!(f(f32::NAN).is_nan());
        }
        type Limits = (fn(f32) -> f32, f32, f32);
        let limits: &[Limits] = &[
            (exp, 0.0, f32::INFINITY),
            (exp_m1, -1.0, f32::INFINITY),
            (sigmoid, 0.0, 1.0),
            (tanh, -1.0, 1.0),
            (erf, -1.0, 1.0),
            (softplus, 0.0, f32::INFINITY),
        ];
        for (f, low, high) in limits {
            assert_eq!((f(f32::NEG_INFINITY), f(f32::INFINITY)), (*low, *high));
        }
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert!(ln(-1.0).is_nan());
    }

    #[test]
    fn loops_reach_every_element_and_no_other() {
        for n in 0..40 {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut y = vec![-1.0; n + 1];
            map(&x, &mut y, |v| v + 1.0);
            assert!((0..n).all(|i| y[i] == i as f32 + 1.0) && y[n] == -1.0);
            zip(&x, &x, &mut y, |a: f32, b: f32| a * b);
            assert!((0..n).all(|i| y[i] == (i * i) as f32) && y[n] == -1.0);
            fold(&x, &mut y, |y: f32, x: f32| y - x);
            assert!((0..n).all(|i| y[i] == (i * i) as f32 - i as f32) && y[n] == -1.0);
        }
    }
}
