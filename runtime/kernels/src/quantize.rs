//! Floats to codes and back, and element-wise arithmetic on codes.
//!
//! A code is `round(v / scale)`, half to even, plus a zero point, within its type; a real is `(code - zero) · scale`.

/// Compiles the body of a function for the vector extensions of this architecture and calls the widest this CPU has.
#[macro_export]
#[doc(hidden)]
macro_rules! dispatched {
    ($($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $t:ty),*) = $body:path;)*) => { $(
        $(#[$doc])*
        pub fn $name($($arg: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $t),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $t),*) {
                    $body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the features the function is compiled for have just been detected.
                    return unsafe { avx512($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    )* };
}

/// Zero point and range of codes of at most 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The code of 0.
    pub zero: i32,
    /// Smallest code.
    pub low: i32,
    /// Largest code.
    pub high: i32,
}

/// Adding it to a float of magnitude below 2²² rounds that half to even, and leaves the integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

impl Codes {
    /// The code of a real in units of the scale; NaN becomes the smallest code.
    #[inline(always)]
    pub fn of(self, v: f32) -> i32 {
        let (low, high) = ((self.low - self.zero) as f32, (self.high - self.zero) as f32);
        let v = if v > low { v } else { low };
        let v = if v < high { v } else { high };
        ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32) + self.zero
    }

    /// [`Codes::of`], by the formula.
    pub fn reference(self, v: f32) -> i32 {
        if v.is_nan() {
            return self.low;
        }
        (v.round_ties_even() as i64)
            .saturating_add(i64::from(self.zero))
            .clamp(i64::from(self.low), i64::from(self.high)) as i32
    }
}

/// An integer type of codes.
pub trait Code: Copy {
    /// As `i32`.
    fn wide(self) -> i32;
    /// The low bits of an `i32`.
    fn narrow(v: i32) -> Self;
}

macro_rules! code {
    ($($t:ty)*) => { $(
        impl Code for $t {
            #[inline(always)]
            fn wide(self) -> i32 {
                i32::from(self)
            }
            #[inline(always)]
            fn narrow(v: i32) -> $t {
                v as $t
            }
        }
    )* };
}
code!(u8 i8 u16 i16);

impl Code for i32 {
    #[inline(always)]
    fn wide(self) -> i32 {
        self
    }
    #[inline(always)]
    fn narrow(v: i32) -> i32 {
        v
    }
}

#[inline(always)]
fn quantise_any<T: Code>(x: &[f32], scale: f32, codes: Codes, y: &mut [T]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = T::narrow(codes.of(x / scale)));
}

#[inline(always)]
fn quantise_rows_any<T: Code>(x: &[f32], scale: &[f32], zero: &[i32], range: (i32, i32), y: &mut [T]) {
    let n = scale.len();
    let zero = &zero[..n];
    for (x, y) in x.chunks_exact(n.max(1)).zip(y.chunks_exact_mut(n.max(1))) {
        for j in 0..n {
            y[j] = T::narrow(Codes { zero: zero[j], low: range.0, high: range.1 }.of(x[j] / scale[j]));
        }
    }
}

#[inline(always)]
fn dequantise_any<T: Code>(x: &[T], scale: f32, zero: i32, y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = x.wide().wrapping_sub(zero) as f32 * scale);
}

#[inline(always)]
fn dequantise_rows_any<T: Code>(x: &[T], scale: &[f32], zero: &[i32], y: &mut [f32]) {
    let n = scale.len();
    let zero = &zero[..n];
    for (x, y) in x.chunks_exact(n.max(1)).zip(y.chunks_exact_mut(n.max(1))) {
        for j in 0..n {
            y[j] = x[j].wide().wrapping_sub(zero[j]) as f32 * scale[j];
        }
    }
}

#[inline(always)]
fn extent_any(x: &[f32], extent: &mut [f32; 2]) {
    // Many lanes, so that the comparisons do not wait for each other.
    let (mut low, mut high) = ([0f32; 64], [0f32; 64]);
    let (chunks, rest) = x.as_chunks::<64>();
    for c in chunks {
        for i in 0..64 {
            low[i] = if c[i] < low[i] { c[i] } else { low[i] };
            high[i] = if c[i] > high[i] { c[i] } else { high[i] };
        }
    }
    let least = low.iter().chain(rest).fold(0f32, |a, &b| a.min(b));
    let most = high.iter().chain(rest).fold(0f32, |a, &b| a.max(b));
    *extent = [least, most];
}

#[inline(always)]
fn add_any<T: Code>(a: &[T], b: &[T], f: &Sum, y: &mut [T]) {
    let (a, b) = (&a[..y.len()], &b[..y.len()]);
    for i in 0..y.len() {
        y[i] = T::narrow(f.codes.of(f.left * a[i].wide() as f32 + f.fixed + f.right * b[i].wide() as f32));
    }
}

#[inline(always)]
fn multiply_any<T: Code>(a: &[T], b: &[T], f: &Product, y: &mut [T]) {
    let (a, b) = (&a[..y.len()], &b[..y.len()]);
    for i in 0..y.len() {
        let v = (a[i].wide() - f.left) * (b[i].wide() - f.right);
        y[i] = T::narrow(f.codes.of(v as f32 * f.ratio));
    }
}

#[inline(always)]
fn sums_any<T: Code>(x: &[T], n: usize, y: &mut [i32]) {
    for (x, y) in x.chunks_exact(n.max(1)).zip(y) {
        *y = x.iter().fold(0i32, |a, v| a.wrapping_add(v.wide()));
    }
}

/// A sum of codes in units of the result's: `left · a + fixed + right · b`; `codes` has zero point 0, which is in `fixed`.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Ratio of the scales of `a` and the result.
    pub left: f32,
    /// Ratio of the scales of `b` and the result.
    pub right: f32,
    /// What the zero points add.
    pub fixed: f32,
    /// Of the result.
    pub codes: Codes,
}

/// A product of codes in units of the result's: `(a - left)(b - right) · ratio`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Zero point of `a`.
    pub left: i32,
    /// Zero point of `b`.
    pub right: i32,
    /// Scale of `a` times that of `b` over that of the result.
    pub ratio: f32,
    /// Of the result.
    pub codes: Codes,
}

macro_rules! of_type {
    ($module:ident, $t:ty) => {
        #[doc = concat!("The functions of this module on `", stringify!($t), "`.")]
        pub mod $module {
            use super::*;

            crate::dispatched! {
                /// `y = code(x / scale)`.
                pub fn quantise(x: &[f32], scale: f32, codes: Codes, y: &mut [$t]) = quantise_any::<$t>;
                /// The same of rows as long as `scale`, each element with its own scale and zero point.
                pub fn quantise_rows(x: &[f32], scale: &[f32], zero: &[i32], range: (i32, i32), y: &mut [$t]) = quantise_rows_any::<$t>;
                /// `y = (x - zero) · scale`.
                pub fn dequantise(x: &[$t], scale: f32, zero: i32, y: &mut [f32]) = dequantise_any::<$t>;
                /// The same of rows as long as `scale`, each element with its own scale and zero point.
                pub fn dequantise_rows(x: &[$t], scale: &[f32], zero: &[i32], y: &mut [f32]) = dequantise_rows_any::<$t>;
                /// A requantised sum.
                pub fn add(a: &[$t], b: &[$t], f: &Sum, y: &mut [$t]) = add_any::<$t>;
                /// A requantised product.
                pub fn multiply(a: &[$t], b: &[$t], f: &Product, y: &mut [$t]) = multiply_any::<$t>;
                /// Sums of rows of `n` codes, wrapping.
                pub fn sums(x: &[$t], n: usize, y: &mut [i32]) = sums_any::<$t>;
            }
        }
    };
}
of_type!(of_u8, u8);
of_type!(of_i8, i8);
of_type!(of_u16, u16);
of_type!(of_i16, i16);
of_type!(of_i32, i32);

crate::dispatched! {
    /// Least and greatest of the elements and 0; NaN does not take part.
    pub fn extent(x: &[f32], extent: &mut [f32; 2]) = extent_any;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_that_of_the_formula_at_ties_limits_and_nan() {
        for codes in [
            Codes { zero: 3, low: 0, high: 255 },
            Codes { zero: -5, low: -128, high: 127 },
            Codes { zero: 40_000, low: 0, high: 65_535 },
        ] {
            let values = (-3000..3000).map(|v| v as f32 * 0.25);
            let limits = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, -0.0, 25_535.5, -40_000.5];
            for v in values.chain(limits) {
                assert_eq!(codes.of(v), codes.reference(v), "{v} {codes:?}");
            }
        }
    }

    #[test]
    fn quantised_rows_are_those_of_single_elements_and_read_back() {
        let x: Vec<f32> = (0..111).map(|i| (i as f32 - 50.0) * 0.37).collect();
        let scale: Vec<f32> = (0..37).map(|i| 0.1 + i as f32 * 0.01).collect();
        let zero: Vec<i32> = (0..37).map(|i| i - 20).collect();
        let (mut y, mut back) = (vec![0i8; 111], vec![0f32; 111]);
        of_i8::quantise_rows(&x, &scale, &zero, (-128, 127), &mut y);
        of_i8::dequantise_rows(&y, &scale, &zero, &mut back);
        for i in 0..111 {
            let codes = Codes { zero: zero[i % 37], low: -128, high: 127 };
            let q = codes.reference(x[i] / scale[i % 37]);
            assert_eq!(i32::from(y[i]), q);
            assert_eq!(back[i], (q - codes.zero) as f32 * scale[i % 37]);
        }
        let mut whole = vec![0u8; 111];
        of_u8::quantise(&x, 0.5, Codes { zero: 7, low: 0, high: 255 }, &mut whole);
        assert!(
            whole.iter().zip(&x).all(|(q, x)| i32::from(*q) == ((x / 0.5).round_ties_even() as i32 + 7).clamp(0, 255))
        );
        let mut e = [0.0; 2];
        extent(&x, &mut e);
        assert_eq!(e, [-18.5, 22.2]);
    }
}
