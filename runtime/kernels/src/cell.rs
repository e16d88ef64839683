//! Element-wise functions of recurrent cells, in place and vectorised.
//!
//! Each is within 3 units in the last place of the mathematical function over the whole range.

crate::dispatched! {
    /// `v = 1 / (1 + e^-v)`.
    pub fn sigmoid(v: &mut [f32]) = sigmoid_any;
    /// `v = tanh(v)`.
    pub fn tanh(v: &mut [f32]) = tanh_any;
    /// `c = f · c + i · g`: the new state of an LSTM.
    pub fn lstm_state(f: &[f32], i: &[f32], g: &[f32], c: &mut [f32]) = lstm_state_any;
    /// `h = (1 - z) · g + z · h`: the new state of a GRU.
    pub fn gru_state(z: &[f32], g: &[f32], h: &mut [f32]) = gru_state_any;
    /// `y = y + a · b`.
    pub fn add_product(a: &[f32], b: &[f32], y: &mut [f32]) = add_product_any;
    /// `y = a · b`.
    pub fn product(a: &[f32], b: &[f32], y: &mut [f32]) = product_any;
}

/// `e^x`; beyond ±87 the values at ±87.
///
/// Source: Cephes `expf`, its polynomial on `[-ln 2 / 2, ln 2 / 2]`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 87.0 { x } else { 87.0 };
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let scale = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32 - 127) << 23;
    y * f32::from_bits(scale as u32)
}

#[inline(always)]
fn sigmoid_any(v: &mut [f32]) {
    for x in v {
        // NaN compares false and would be taken for the limit.
        *x = if x.is_nan() { *x } else { 1.0 / (1.0 + exp(-*x)) };
    }
}

#[inline(always)]
fn tanh_any(v: &mut [f32]) {
    for x in v {
        let a = x.abs();
        // Near 0 the quotient below would cancel (Cephes `tanhf`).
        let s = a * a;
        let p = -5.704_988_7e-3;
        let p = p * s + 2.063_909e-2;
        let p = p * s - 5.373_971_6e-2;
        let p = p * s + 1.333_144_2e-1;
        let p = p * s - 3.333_328e-1;
        let near = p * s * a + a;
        let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
        let y = (if a < 0.625 { near } else { far }).copysign(*x);
        *x = if x.is_nan() { *x } else { y };
    }
}

#[inline(always)]
fn lstm_state_any(f: &[f32], i: &[f32], g: &[f32], c: &mut [f32]) {
    let n = c.len();
    let (f, i, g) = (&f[..n], &i[..n], &g[..n]);
    for j in 0..n {
        c[j] = f[j] * c[j] + i[j] * g[j];
    }
}

#[inline(always)]
fn gru_state_any(z: &[f32], g: &[f32], h: &mut [f32]) {
    let n = h.len();
    let (z, g) = (&z[..n], &g[..n]);
    for j in 0..n {
        h[j] = (1.0 - z[j]) * g[j] + z[j] * h[j];
    }
}

#[inline(always)]
fn add_product_any(a: &[f32], b: &[f32], y: &mut [f32]) {
    let n = y.len();
    let (a, b) = (&a[..n], &b[..n]);
    for j in 0..n {
        y[j] += a[j] * b[j];
    }
}

#[inline(always)]
fn product_any(a: &[f32], b: &[f32], y: &mut [f32]) {
    let n = y.len();
    let (a, b) = (&a[..n], &b[..n]);
    for j in 0..n {
        y[j] = a[j] * b[j];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_and_tanh_are_within_three_units_of_the_functions_and_have_their_limits() {
        let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 1e-3).chain([1e-20, -1e-20, 88.0, -80.0]).collect();
        let (mut s, mut t) = (x.clone(), x.clone());
        sigmoid(&mut s);
        tanh(&mut t);
        for i in 0..x.len() {
            let v = f64::from(x[i]);
            for (found, exact) in [(s[i], 1.0 / (1.0 + (-v).exp())), (t[i], v.tanh())] {
                let tolerance = 3.0 * f64::from(f32::EPSILON) * exact.abs() + 1e-37;
                assert!((f64::from(found) - exact).abs() <= tolerance, "{v}: {found} {exact}");
            }
        }
        let mut limits = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        tanh(&mut limits);
        assert_eq!(limits[..2], [1.0, -1.0]);
        assert!(limits[2].is_nan());
    }

    #[test]
    fn states_are_their_formulas() {
        let v = |k: f32| (0..21).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let (f, i, g) = (v(0.3), v(0.7), v(1.1));
        let (mut c, mut h) = (v(0.2), v(0.2));
        lstm_state(&f, &i, &g, &mut c);
        gru_state(&f, &g, &mut h);
        for j in 0..21 {
            let before = v(0.2)[j];
            assert!((c[j] - (f[j] * before + i[j] * g[j])).abs() < 1e-6);
            assert!((h[j] - ((1.0 - f[j]) * g[j] + f[j] * before)).abs() < 1e-6);
        }
    }
}
