//! Scalar activations.

/// Logistic function `1 / (1 + e^-x)`, without overflow for either sign.
#[inline]
pub fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// Hyperbolic tangent.
#[inline]
pub fn tanh(x: f32) -> f32 {
    x.tanh()
}

/// Gauss error function, absolute error below 1.5e-7 before rounding to `f32`.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, evaluated in `f64`.
#[inline]
pub fn erf(x: f32) -> f32 {
    let v = f64::from(x).abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * v);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let y = 1.0 - poly * (-v * v).exp();
    (if x < 0.0 { -y } else { y }) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_finite_and_symmetric_at_the_extremes() {
        for x in [-1e4f32, -88.0, -1.5, 0.0, 1.5, 88.0, 1e4] {
            let (p, q) = (sigmoid(x), sigmoid(-x));
            assert!((0.0..=1.0).contains(&p));
            assert!((p + q - 1.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn erf_agrees_with_its_series_to_two_in_ten_million() {
        // erf(x) = 2/sqrt(pi) Σ (-1)^n x^(2n+1) / (n! (2n+1)), in f64, for moderate x.
        for i in -30..=30 {
            let x = f64::from(i) / 10.0;
            let (mut term, mut sum) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let exact = sum * 2.0 / std::f64::consts::PI.sqrt();
            assert!((f64::from(erf(x as f32)) - exact).abs() < 2.5e-7, "{x}");
        }
    }
}
