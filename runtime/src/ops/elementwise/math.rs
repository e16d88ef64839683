//! Functions of one number.
//!
//! The inverse hyperbolic functions of the standard library overflow or lose digits in `f32`; they go by way of `f64`.
use hone_kernels::elementwise as fast;

use super::super::{OpDef, need};
use super::walk::mapped;
use super::{erf, floats, numbers, same_as_input};
use crate::tensor::DType;

macro_rules! function {
    ($konst:ident, $name:literal, $doc:literal, $float:expr, f32: $f32:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, same_as_input, |_, inputs| floats(need(inputs, 0, "X")?, $name, $float))
                .kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| mapped::<f32, f32, _>($name, $f32))));
    };
    ($konst:ident, $name:literal, $doc:literal, $float:expr, int: $int:expr, f32: $f32:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, same_as_input, |_, inputs| numbers(need(inputs, 0, "X")?, $name, $float, $int))
                .kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| mapped::<f32, f32, _>($name, $f32))));
    };
}

function!(ABS, "Abs", "|x|", f64::abs, int: i128::abs, f32: f32::abs);
function!(NEG, "Neg", "-x", |x| -x, int: |x| -x, f32: |x: f32| -x);
function!(SIGN, "Sign", "-1, 0 or 1", sign, int: i128::signum,
    f32: |x: f32| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x });
function!(CEIL, "Ceil", "rounded up", f64::ceil, f32: f32::ceil);
function!(FLOOR, "Floor", "rounded down", f64::floor, f32: f32::floor);
function!(ROUND, "Round", "rounded to the nearest integer, half to even", f64::round_ties_even,
    f32: f32::round_ties_even);
function!(RECIPROCAL, "Reciprocal", "1 / x", |x| 1.0 / x, f32: |x: f32| 1.0 / x);
function!(SQRT, "Sqrt", "square root", f64::sqrt, f32: f32::sqrt);
function!(EXP, "Exp", "e to the x", f64::exp, f32: fast::exp);
function!(LOG, "Log", "natural logarithm", f64::ln, f32: fast::ln);
function!(SIN, "Sin", "sine", f64::sin, f32: f32::sin);
function!(COS, "Cos", "cosine", f64::cos, f32: f32::cos);
function!(TAN, "Tan", "tangent", f64::tan, f32: f32::tan);
function!(ASIN, "Asin", "inverse sine", f64::asin, f32: f32::asin);
function!(ACOS, "Acos", "inverse cosine", f64::acos, f32: f32::acos);
function!(ATAN, "Atan", "inverse tangent", f64::atan, f32: f32::atan);
function!(SINH, "Sinh", "hyperbolic sine", f64::sinh, f32: f32::sinh);
function!(COSH, "Cosh", "hyperbolic cosine", f64::cosh, f32: f32::cosh);
function!(TANH, "Tanh", "hyperbolic tangent", f64::tanh, f32: fast::tanh);
function!(ASINH, "Asinh", "inverse hyperbolic sine", f64::asinh, f32: |x: f32| f64::from(x).asinh() as f32);
function!(ACOSH, "Acosh", "inverse hyperbolic cosine", f64::acosh, f32: |x: f32| f64::from(x).acosh() as f32);
function!(ATANH, "Atanh", "inverse hyperbolic tangent", f64::atanh, f32: |x: f32| f64::from(x).atanh() as f32);
function!(ERF, "Erf", "Gauss error function", erf, int: |x| if x == 0 { 0 } else { erf(x as f64) as i128 }, f32: fast::erf);

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}
