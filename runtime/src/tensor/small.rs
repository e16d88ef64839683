//! Floats of eight bits and fewer: codes to values and back.
//!
//! Layouts and special codes are those of the ONNX standard ("Float stored in 8 bits", "Float stored in 4 bits"); a code
//! is the byte the file holds.
use super::DType;

/// What distinguishes one layout from another.
struct Layout {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    special: Special,
}

#[derive(PartialEq)]
enum Special {
    /// Infinities and NaN as IEEE 754 has them.
    Ieee,
    /// One NaN, all bits set; no infinity.
    AllOnes,
    /// One NaN in the place of negative zero; no infinity.
    NegativeZero,
    /// Neither infinity nor NaN.
    None,
}

fn layout(dtype: DType) -> Layout {
    let (exponent, mantissa, bias, special) = match dtype {
        DType::F8E4M3FN => (4, 3, 7, Special::AllOnes),
        DType::F8E4M3FNUZ => (4, 3, 8, Special::NegativeZero),
        DType::F8E5M2 => (5, 2, 15, Special::Ieee),
        DType::F8E5M2FNUZ => (5, 2, 16, Special::NegativeZero),
        DType::F4E2M1 => (2, 1, 1, Special::None),
        other => panic!("{other} is no small float"),
    };
    Layout { exponent, mantissa, bias, special }
}

/// The value of a code.
///
/// # Panics
/// When `dtype` is not a float of eight bits or fewer.
pub fn decode(dtype: DType, code: u8) -> f32 {
    if dtype == DType::F8E8M0 {
        return if code == 255 { f32::NAN } else { 2f32.powi(i32::from(code) - 127) };
    }
    let l = layout(dtype);
    let bits = 1 + l.exponent + l.mantissa;
    let negative = code >> (bits - 1) & 1 == 1;
    let magnitude = u32::from(code) & ((1 << (bits - 1)) - 1);
    let (e, m) = (magnitude >> l.mantissa, magnitude & ((1 << l.mantissa) - 1));
    let top = (1 << l.exponent) - 1;
    let value = match l.special {
        Special::NegativeZero if negative && magnitude == 0 => return f32::NAN,
        Special::AllOnes if magnitude == (1 << (bits - 1)) - 1 => return f32::NAN,
        Special::Ieee if e == top => {
            if m == 0 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        }
        _ if e == 0 => m as f32 * 2f32.powi(1 - l.bias - l.mantissa as i32),
        _ => (1.0 + m as f32 / (1 << l.mantissa) as f32) * 2f32.powi(e as i32 - l.bias),
    };
    if negative { -value } else { value }
}

/// The code nearest to a value, half to even. What is too large becomes the largest finite value when `saturate`,
/// else infinity where the type has one and NaN where it has not.
///
/// # Panics
/// When `dtype` is not a float of eight bits or fewer.
pub fn encode(dtype: DType, value: f32, saturate: bool) -> u8 {
    if dtype == DType::F8E8M0 {
        return encode_scale(value, saturate);
    }
    let l = layout(dtype);
    let bits = 1 + l.exponent + l.mantissa;
    let sign = if value.is_sign_negative() { 1u8 << (bits - 1) } else { 0 };
    let nan = match l.special {
        Special::NegativeZero => 1 << (bits - 1),
        Special::AllOnes => sign | ((1 << (bits - 1)) - 1),
        Special::Ieee => {
            sign | ((((1u16 << (l.exponent + 1)) - 1) << (l.mantissa - 1)) as u8 & ((1 << (bits - 1)) - 1))
        }
        Special::None => return if value.is_nan() { 0 } else { finite(&l, value, sign, true) },
    };
    if value.is_nan() {
        return nan;
    }
    finite(&l, value, sign, saturate)
}

/// Magnitude code of the largest finite value.
fn largest(l: &Layout) -> u32 {
    let top = (1u32 << (l.exponent + l.mantissa)) - 1;
    match l.special {
        Special::Ieee => (((1 << l.exponent) - 1) << l.mantissa) - 1,
        Special::AllOnes => top - 1,
        Special::NegativeZero | Special::None => top,
    }
}

fn finite(l: &Layout, value: f32, sign: u8, saturate: bool) -> u8 {
    let bits = 1 + l.exponent + l.mantissa;
    let x = f64::from(value.abs());
    let largest = largest(l);
    // In units of the smallest subnormal the codes of one binade are consecutive integers.
    let code = if x.is_finite() {
        // The exponent of an f32 is exact in f64's own bits; zero and its subnormals are below every smallest exponent.
        let exponent = ((x.to_bits() >> 52) as i32 - 1023).max(1 - l.bias);
        let steps = (x / 2f64.powi(exponent - l.mantissa as i32)).round_ties_even();
        f64::from((exponent + l.bias - 1) << l.mantissa) + steps
    } else {
        f64::INFINITY
    };
    if code > f64::from(largest) {
        return match (saturate, &l.special) {
            (true, _) => sign | largest as u8,
            (false, Special::Ieee) => sign | (largest + 1) as u8,
            (false, Special::NegativeZero) => 1 << (bits - 1),
            (false, _) => sign | (largest + 1) as u8,
        };
    }
    let code = code as u8;
    if l.special == Special::NegativeZero && code == 0 { 0 } else { sign | code }
}

/// A power of two; the sign is lost, values between two powers go to the nearer one, half to even upwards.
fn encode_scale(value: f32, saturate: bool) -> u8 {
    if value.is_nan() {
        return 255;
    }
    if value.is_infinite() {
        return if saturate { 254 } else { 255 };
    }
    let bits = value.abs().to_bits();
    let (e, m) = (bits >> 23, bits & 0x7f_ffff);
    // The upper half of a binade rounds to the next power; a subnormal counts from the smallest one held, 2^-127.
    let up = if e == 0 { m > 0x40_0000 } else { m >= 0x40_0000 };
    let code = e + u32::from(up);
    if code > 254 { if saturate { 254 } else { 255 } } else { code as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOATS: [DType; 5] = [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F4E2M1];

    #[test]
    fn every_code_is_the_nearest_code_of_its_own_value() {
        for dtype in FLOATS {
            let codes = if dtype == DType::F4E2M1 { 16u16 } else { 256 };
            for code in 0..codes {
                let value = decode(dtype, code as u8);
                if value.is_finite() {
                    assert_eq!(encode(dtype, value, true), code as u8, "{dtype} {value}");
                } else if value.is_nan() {
                    assert!(decode(dtype, encode(dtype, value, true)).is_nan());
                }
            }
        }
    }

    #[test]
    fn the_largest_values_are_those_of_the_standard() {
        let max = |d| (0..=255u8).map(|c| decode(d, c)).filter(|v| v.is_finite()).fold(0f32, f32::max);
        assert_eq!(max(DType::F8E4M3FN), 448.0);
        assert_eq!(max(DType::F8E4M3FNUZ), 240.0);
        assert_eq!(max(DType::F8E5M2), 57344.0);
        assert_eq!(max(DType::F8E5M2FNUZ), 57344.0);
        assert_eq!((0..16u8).map(|c| decode(DType::F4E2M1, c)).fold(0f32, f32::max), 6.0);
    }

    #[test]
    fn ties_go_to_the_even_code_and_overflow_saturates_or_does_not() {
        assert_eq!(decode(DType::F8E4M3FN, encode(DType::F8E4M3FN, 17.0, true)), 16.0);
        assert_eq!(decode(DType::F8E4M3FN, encode(DType::F8E4M3FN, 19.0, true)), 20.0);
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, 1e6, true)), 57344.0);
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, -1e6, false)), f32::NEG_INFINITY);
        assert!(decode(DType::F8E4M3FN, encode(DType::F8E4M3FN, 1e6, false)).is_nan());
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, f32::INFINITY, false)), f32::INFINITY);
        assert_eq!(decode(DType::F4E2M1, encode(DType::F4E2M1, f32::NEG_INFINITY, true)), -6.0);
    }
}
