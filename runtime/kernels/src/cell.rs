//! Element-wise functions of recurrent cells, in place and vectorised.
//!
//! Logistic function and tangent are the rational functions of Eigen (`plogistic`, `ptanh`), fused, which ONNX Runtime's
//! cells use too. `DynamicQuantizeLSTM` rounds its state to eight bits at each turn, where a difference in the last place
//! decides which way a tie goes and the turns after it amplify that: with the same functions the results agree to 4e-7,
//! with more exact ones some models end 0.4 % apart. A CPU without fused multiply-add runs them through the library, slowly.

crate::dispatched! {
    /// `v = 1 / (1 + e^-v)`, absolute error at most 3e-7.
    pub fn sigmoid(v: &mut [f32]) = sigmoid_any;
    /// `v = tanh(v)`, absolute error at most 3e-7, so that it may exceed 1 by two units in the last place.
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

/// `c[0] · s^(n-1) + … + c[n-1]`, by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(c: [f32; N], s: f32) -> f32 {
    c[1..].iter().fold(c[0], |p, &c| p.mul_add(s, c))
}

#[expect(clippy::excessive_precision, reason = "the coefficients as they are published")]
mod eigen {
    pub(super) const SIGMOID_P: [f32; 5] =
        [4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01];
    pub(super) const SIGMOID_Q: [f32; 6] = [
        6.10247389755681e-13,
        5.76102136993427e-09,
        6.29106785017040e-06,
        1.70198817374094e-03,
        1.16817656904453e-01,
        9.93151921023180e-01,
    ];
    pub(super) const TANH_P: [f32; 7] = [
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ];
    pub(super) const TANH_Q: [f32; 4] =
        [1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03];
}

#[inline(always)]
fn sigmoid_any(v: &mut [f32]) {
    for x in v {
        let a = x.clamp(-18.0, 18.0);
        let s = a * a;
        *x = (polynomial(eigen::SIGMOID_P, s) * a / polynomial(eigen::SIGMOID_Q, s) + 0.5).clamp(0.0, 1.0);
    }
}

#[inline(always)]
fn tanh_any(v: &mut [f32]) {
    for x in v {
        let a = x.clamp(-9.0, 9.0);
        let s = a * a;
        *x = polynomial(eigen::TANH_P, s) * a / polynomial(eigen::TANH_Q, s);
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
    fn sigmoid_and_tanh_are_as_near_to_the_functions_as_stated_and_have_their_limits() {
        let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 1e-3).chain([1e-20, -1e-20, 88.0, -80.0]).collect();
        let (mut s, mut t) = (x.clone(), x.clone());
        sigmoid(&mut s);
        tanh(&mut t);
        for i in 0..x.len() {
            let v = f64::from(x[i]);
            for (found, exact, most) in [(s[i], 1.0 / (1.0 + (-v).exp()), 3e-7), (t[i], v.tanh(), 3e-7)] {
                assert!((f64::from(found) - exact).abs() <= most, "{v}: {found} {exact}");
            }
        }
        let mut limits = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        tanh(&mut limits);
        assert!(limits[0] > 0.999_999 && limits[1] < -0.999_999 && limits[2].is_nan());
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
