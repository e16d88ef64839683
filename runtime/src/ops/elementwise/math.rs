//! Functions of one number.
//!
//! Trigonometric functions have no form for GPUs: Vulkan lets a device be 2^-11 off in them.
//! The inverse hyperbolic functions of the standard library overflow or lose digits in `f32`; they go by way of `f64`.
use hone_kernels::elementwise as fast;
use hone_kernels::epilogue::Activation;

use super::super::{OpDef, flat, need, record};
use super::derivative::derivative;
use super::walk::{activated, mapped};
use super::{erf, floats, numbers, same_as_input};
use crate::tensor::DType;

macro_rules! function {
    ($konst:ident, $name:literal, $doc:literal, gpu: $gpu:literal, $float:expr, f32: $f32:expr, vjp: $vjp:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, same_as_input, |_, inputs| floats(need(inputs, 0, "X")?, $name, $float))
                .kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| mapped::<f32, f32, _>($name, $f32))))
                .gpu_where($gpu, |l| record::named(l, $name, &[]))
                .vjp($vjp);
    };
    ($konst:ident, $name:literal, $doc:literal, gpu: $gpu:literal, $float:expr, int: $int:expr, f32: $f32:expr, vjp: $vjp:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, same_as_input, |_, inputs| numbers(need(inputs, 0, "X")?, $name, $float, $int))
                .kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| mapped::<f32, f32, _>($name, $f32))))
                .gpu_where($gpu, |l| record::named(l, $name, &[]))
                .vjp($vjp);
    };
}

function!(ABS, "Abs", "|x|", gpu: true, f64::abs, int: i128::abs, f32: f32::abs,
    vjp: derivative!("Abs", X, [], |x| sign(x), f32: if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { 0.0 }));
function!(NEG, "Neg", "-x", gpu: true, |x| -x, int: |x| -x, f32: |x: f32| -x,
vjp: |b| {
    let dy = b.dy()?;
    let dx = b.unary("Neg", dy)?;
    b.give(0, dx);
    Ok(())
});
function!(SIGN, "Sign", "-1, 0 or 1", gpu: true, sign, int: i128::signum,
    f32: |x: f32| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x },
    vjp: flat);
function!(CEIL, "Ceil", "rounded up", gpu: true, f64::ceil, f32: f32::ceil,
    vjp: flat);
function!(FLOOR, "Floor", "rounded down", gpu: true, f64::floor, f32: f32::floor,
    vjp: flat);
function!(ROUND, "Round", "rounded to the nearest integer, half to even", gpu: true, f64::round_ties_even,
    f32: f32::round_ties_even,
    vjp: flat);
function!(RECIPROCAL, "Reciprocal", "1 / x", gpu: true, |x| 1.0 / x, f32: |x: f32| 1.0 / x,
    vjp: derivative!("Reciprocal", Y, [], |y| -y * y, f32: -y * y));
function!(SQRT, "Sqrt", "square root", gpu: true, f64::sqrt, f32: f32::sqrt,
    vjp: derivative!("Sqrt", Y, [], |y| 0.5 / y, f32: 0.5 / y));
function!(EXP, "Exp", "e to the x", gpu: true, f64::exp, f32: fast::exp,
    vjp: derivative!("Exp", Y, [], |y| y, f32: y));
function!(LOG, "Log", "natural logarithm", gpu: true, f64::ln, f32: fast::ln,
    vjp: derivative!("Log", X, [], |x| 1.0 / x, f32: 1.0 / x));
function!(SIN, "Sin", "sine", gpu: false, f64::sin, f32: f32::sin,
    vjp: derivative!("Sin", X, [], |x| x.cos(), f32: x.cos()));
function!(COS, "Cos", "cosine", gpu: false, f64::cos, f32: f32::cos,
    vjp: derivative!("Cos", X, [], |x| -x.sin(), f32: -x.sin()));
function!(TAN, "Tan", "tangent", gpu: false, f64::tan, f32: f32::tan,
    vjp: derivative!("Tan", Y, [], |y| 1.0 + y * y, f32: 1.0 + y * y));
function!(ASIN, "Asin", "inverse sine", gpu: false, f64::asin, f32: f32::asin,
    vjp: derivative!("Asin", X, [], |x| 1.0 / (1.0 - x * x).sqrt(), f32: 1.0 / (1.0 - x * x).sqrt()));
function!(ACOS, "Acos", "inverse cosine", gpu: false, f64::acos, f32: f32::acos,
    vjp: derivative!("Acos", X, [], |x| -1.0 / (1.0 - x * x).sqrt(), f32: -1.0 / (1.0 - x * x).sqrt()));
function!(ATAN, "Atan", "inverse tangent", gpu: false, f64::atan, f32: f32::atan,
    vjp: derivative!("Atan", X, [], |x| 1.0 / (1.0 + x * x), f32: 1.0 / (1.0 + x * x)));
function!(SINH, "Sinh", "hyperbolic sine", gpu: false, f64::sinh, f32: f32::sinh,
    vjp: derivative!("Sinh", X, [], |x| x.cosh(), f32: x.cosh()));
function!(COSH, "Cosh", "hyperbolic cosine", gpu: false, f64::cosh, f32: f32::cosh,
    vjp: derivative!("Cosh", X, [], |x| x.sinh(), f32: x.sinh()));
/// hyperbolic tangent
pub(super) static TANH: OpDef = OpDef::new("Tanh", "hyperbolic tangent", same_as_input, |_, inputs| {
    floats(need(inputs, 0, "X")?, "Tanh", f64::tanh)
})
.kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| activated("Tanh", Activation::Tanh))))
.gpu(|l| record::activated(l, Activation::Tanh))
.vjp(derivative!("Tanh", Y, [], |y| 1.0 - y * y, f32: 1.0 - y * y));
function!(ASINH, "Asinh", "inverse hyperbolic sine", gpu: false, f64::asinh, f32: |x: f32| f64::from(x).asinh() as f32,
    vjp: derivative!("Asinh", X, [], |x| 1.0 / (x * x + 1.0).sqrt(), f32: 1.0 / (x * x + 1.0).sqrt()));
function!(ACOSH, "Acosh", "inverse hyperbolic cosine", gpu: false, f64::acosh, f32: |x: f32| f64::from(x).acosh() as f32,
    vjp: derivative!("Acosh", X, [], |x| 1.0 / (x * x - 1.0).sqrt(), f32: 1.0 / (x * x - 1.0).sqrt()));
function!(ATANH, "Atanh", "inverse hyperbolic tangent", gpu: false, f64::atanh, f32: |x: f32| f64::from(x).atanh() as f32,
    vjp: derivative!("Atanh", X, [], |x| 1.0 / (1.0 - x * x), f32: 1.0 / (1.0 - x * x)));
function!(ERF, "Erf", "Gauss error function", gpu: true, erf, int: |x| if x == 0 { 0 } else { erf(x as f64) as i128 }, f32: fast::erf,
    vjp: derivative!("Erf", X, [], |x| std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp(), f32: std::f32::consts::FRAC_2_SQRT_PI * fast::exp(-x * x)));

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}
