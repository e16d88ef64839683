//! `e^x` in a form that compilers vectorise: no branch, no table, no conversion between floats and integers.

/// `e^x`, within two units in the last place where the result is a normal number, and within one smallest number below;
/// 0 for -∞, ∞ from 88.73 on, NaN for NaN.
///
/// Source: Cephes `expf` (S. Moshier): `x = n ln 2 + r`, a polynomial of degree 7 for `e^r`, then `2^n` in two factors so
/// that results below the normal numbers come out too.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2^23 rounds to an integer; its low bits are that integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-104.0, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_library_over_its_whole_range() {
        let mut x = -103.9f32;
        while x < 88.7 {
            let (want, got) = (f64::from(x).exp(), f64::from(exp(x)));
            let unit = (want * 2f64.powi(-23)).max(2f64.powi(-149));
            assert!((want - got).abs() <= 2.0 * unit, "{x}: {want} {got}");
            x += 0.003_7;
        }
    }

    #[test]
    fn exp_has_the_limits_of_the_formula() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
