//! Operators on elements: arithmetic and logic with broadcasting, functions, activations, conversions of type.
//!
//! References compute in `f64`, integers in `i128`, and round (or wrap) once to the type of the result. Division of an
//! integer by 0 gives 0, as in NumPy. Kernels compute in the type itself, by the functions of
//! [`hone_kernels::elementwise`], whose errors are stated there.
use hone_kernels::epilogue::Activation;

use super::shape::{broadcast_indices, same_as_input};
use super::{Attrs, Fact, OpDef, OpError, need};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::tensor::Tensor;

mod activation;
mod arithmetic;
mod cast;
mod derivative;
mod logic;
mod math;
mod value;
mod walk;

/// The activation of that name that kernels can end in, with its parameters in the order of the standard; `None` when
/// there is none of that name, or not with these parameters.
///
/// Source: ONNX Runtime, `fused_activation.cc`, for those up to `HardSigmoid`; the others are ours.
pub(in crate::ops) fn named(name: &str, params: &[f32]) -> Option<Activation> {
    let param = |i: usize, default: f32| params.get(i).copied().unwrap_or(default);
    Some(match name {
        "Relu" => Activation::Relu,
        "Tanh" => Activation::Tanh,
        "Sigmoid" => Activation::Sigmoid,
        "LeakyRelu" => Activation::LeakyRelu(param(0, 0.01)),
        "Clip" => Activation::Clip(param(0, f32::MIN), param(1, f32::MAX)),
        "HardSigmoid" => Activation::HardSigmoid(param(0, 0.2), param(1, 0.5)),
        "HardSwish" => Activation::HardSwish,
        "Swish" if param(0, 1.0) == 1.0 => Activation::Silu,
        "Gelu" => Activation::Gelu,
        "Elu" => Activation::Elu(param(0, 1.0)),
        "Mish" => Activation::Mish,
        "Softplus" => Activation::Softplus,
        _ => return None,
    })
}

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &arithmetic::ADD,
    &arithmetic::SUB,
    &arithmetic::MUL,
    &arithmetic::DIV,
    &arithmetic::POW,
    &arithmetic::MOD,
    &arithmetic::MIN,
    &arithmetic::MAX,
    &arithmetic::SUM,
    &arithmetic::MEAN,
    &logic::AND,
    &logic::OR,
    &logic::XOR,
    &logic::NOT,
    &logic::BITWISE_AND,
    &logic::BITWISE_OR,
    &logic::BITWISE_XOR,
    &logic::BITWISE_NOT,
    &logic::BIT_SHIFT,
    &logic::EQUAL,
    &logic::GREATER,
    &logic::GREATER_OR_EQUAL,
    &logic::LESS,
    &logic::LESS_OR_EQUAL,
    &logic::IS_NAN,
    &logic::IS_INF,
    &logic::WHERE,
    &cast::CAST,
    &cast::CAST_LIKE,
    &cast::BIT_CAST,
    &math::ABS,
    &math::NEG,
    &math::SIGN,
    &math::CEIL,
    &math::FLOOR,
    &math::ROUND,
    &math::RECIPROCAL,
    &math::SQRT,
    &math::EXP,
    &math::LOG,
    &math::SIN,
    &math::COS,
    &math::TAN,
    &math::ASIN,
    &math::ACOS,
    &math::ATAN,
    &math::SINH,
    &math::COSH,
    &math::TANH,
    &math::ASINH,
    &math::ACOSH,
    &math::ATANH,
    &math::ERF,
    &activation::RELU,
    &activation::LEAKY_RELU,
    &activation::PRELU,
    &activation::THRESHOLDED_RELU,
    &activation::ELU,
    &activation::SELU,
    &activation::CELU,
    &activation::SIGMOID,
    &activation::HARD_SIGMOID,
    &activation::HARD_SWISH,
    &activation::SWISH,
    &activation::SOFTPLUS,
    &activation::SOFTSIGN,
    &activation::MISH,
    &activation::GELU,
    &activation::SWIGLU,
    &activation::SHRINK,
    &activation::AFFINE,
    &activation::SCALED_TANH,
    &activation::PARAMETRIC_SOFTPLUS,
    &activation::IMAGE_SCALER,
    &activation::MS_GELU,
    &activation::FAST_GELU,
    &activation::QUICK_GELU,
    &activation::BIAS_GELU,
    &activation::BIAS_SPLIT_GELU,
    &activation::BIAS_ADD,
    &value::CLIP,
    &value::DROPOUT,
    &value::IDENTITY,
    &value::CONSTANT,
];

/// Float attributes and their defaults, as a function of one number sees them.
fn parameters<const N: usize>(attrs: &Attrs, names: [(&str, f32); N]) -> Result<[f32; N], OpError> {
    let mut out = [0.0; N];
    for (o, (name, default)) in out.iter_mut().zip(names) {
        *o = attrs.float(name, default)?;
    }
    Ok(out)
}

/// `f` of each element of a float tensor.
fn floats(x: &Tensor, what: &str, f: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    if !x.dtype().is_float() {
        return Err(OpError::unsupported(format!("{what} of {}", x.dtype())));
    }
    let y: Vec<f64> = x.data().to_f64().into_iter().map(f).collect();
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
}

/// `f` or `g` of each element of a tensor of floats or integers.
fn numbers(x: &Tensor, what: &str, f: impl Fn(f64) -> f64, g: impl Fn(i128) -> i128) -> Result<Vec<Tensor>, OpError> {
    if !x.dtype().is_integer() {
        return floats(x, what, f);
    }
    let y: Vec<i128> = x.data().to_i128().into_iter().map(g).collect();
    Ok(vec![Tensor::from_i128(x.dtype(), x.shape(), &y)?])
}

/// The shape operand `b` broadcasts with. Before version 7 the attribute `axis` aligned it with an axis of `a` other
/// than the last.
fn aligned(attrs: &Attrs, a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let mut b = b.to_vec();
    if attrs.opset >= 7 || !attrs.has("axis") || a.len() <= b.len() {
        return Ok(b);
    }
    let axis = super::axis_of(attrs.int("axis", 0)?, a.len())?;
    if axis + b.len() > a.len() {
        return Err(OpError::shape("broadcasting from `axis`", a, b));
    }
    b.resize(a.len() - axis, 1);
    Ok(b)
}

/// Indices into two operands for every element of the shape they broadcast to, and that shape.
type Pairs = (Vec<usize>, Vec<usize>, Vec<usize>);

fn pairs(attrs: &Attrs, a: &[usize], b: &[usize]) -> Result<Pairs, OpError> {
    let b = aligned(attrs, a, b)?;
    let to = super::shape::broadcast(a, &b)?;
    Ok((broadcast_indices(a, &to)?, broadcast_indices(&b, &to)?, to))
}

/// The operands of a node on two, the second under the shape it broadcasts with, that shape, and its own.
fn paired(b: &mut Backward<'_>) -> Result<(ValueId, ValueId, Vec<usize>, Vec<usize>), OpError> {
    let (x, y) = (b.x(0)?, b.x(1)?);
    let own = b.shape(y).to_vec();
    let aligned = aligned(&b.attrs(), b.shape(x), &own)?;
    let y = b.reshape(y, &aligned)?;
    Ok((x, y, aligned, own))
}

/// Gives a gradient of the shape of the result to the second of two operands.
fn give_second(b: &mut Backward<'_>, gradient: ValueId, aligned: &[usize], own: &[usize]) -> Result<(), OpError> {
    let g = b.unbroadcast(gradient, aligned, own)?;
    b.give(1, g);
    Ok(())
}

/// The shape rule of operators on two operands, with results of the type of the first.
fn broadcast_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    let to = super::shape::broadcast(&a.shape, &aligned(attrs, &a.shape, &b.shape)?)?;
    Ok(Some(vec![Fact::new(a.dtype, to)]))
}

/// Two operands of the same type, or an error that names both.
fn alike<'a>(inputs: &[Option<&'a Tensor>], what: &str) -> Result<(&'a Tensor, &'a Tensor), OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    if a.dtype() != b.dtype() {
        return Err(OpError::unsupported(format!("{what} of {} and {}", a.dtype(), b.dtype())));
    }
    Ok((a, b))
}

/// Error function, by its series of positive terms `2/√π · e^(-x²) · Σ 2^n x^(2n+1) / (1 · 3 · … · (2n+1))` (DLMF 7.6.2).
pub(super) fn erf(x: f64) -> f64 {
    // 1 - erf(6) is below half a unit in the last place of 1.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    let mut n = 1.0;
    while term.abs() > 1e-17 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// `1 / (1 + e^-x)`.
fn sigmoid(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Attr;

    fn run<const N: usize>(op: &OpDef, opset: i64, attrs: [(&str, Attr); N], inputs: &[&Tensor]) -> Tensor {
        let attrs = Attrs { opset, ..Attrs::of(attrs) };
        let inputs: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
        let facts: Vec<Fact> = inputs.iter().flatten().map(|t| Fact::new(t.dtype(), t.shape())).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Some).collect();
        let out = (op.reference)(&attrs, &inputs).unwrap().remove(0);
        let fact = (op.shape)(&attrs, &facts).unwrap().unwrap().remove(0);
        assert_eq!((fact.dtype, &fact.shape[..]), (out.dtype(), out.shape()));
        out
    }

    #[test]
    fn the_axis_of_old_versions_aligns_the_second_operand() {
        let a = Tensor::i64(&[2, 3, 2], (0..12).collect()).unwrap();
        let b = Tensor::i64(&[3], vec![0, 100, 200]).unwrap();
        let attrs = || [("broadcast", Attr::Int(1)), ("axis", Attr::Int(1))];
        let sum = run(&arithmetic::ADD, 6, attrs(), &[&a, &b]);
        assert_eq!(sum.as_i64().unwrap(), [0, 1, 102, 103, 204, 205, 6, 7, 108, 109, 210, 211]);
        let less = run(&logic::LESS, 6, attrs(), &[&a, &b]);
        assert_eq!(less.data().to_i128()[..4], [0, 0, 1, 1]);
    }

    #[test]
    fn old_versions_bound_by_attributes_and_have_a_slope_a_channel() {
        let x = Tensor::f32(&[1, 2, 2], vec![-3.0, -1.0, -2.0, 5.0]).unwrap();
        let attrs = [("min", Attr::Float(-2.0)), ("max", Attr::Float(1.0))];
        assert_eq!(run(&value::CLIP, 6, attrs, &[&x]).as_f32().unwrap(), [-2.0, -1.0, -2.0, 1.0]);
        let slope = Tensor::f32(&[2], vec![10.0, 100.0]).unwrap();
        assert_eq!(run(&activation::PRELU, 6, [], &[&x, &slope]).as_f32().unwrap(), [-30.0, -10.0, -200.0, 5.0]);
    }

    #[test]
    fn integers_wrap_and_divide_by_nothing_without_a_panic() {
        let a = Tensor::i64(&[4], vec![i64::MAX, i64::MIN, 7, -7]).unwrap();
        let b = Tensor::i64(&[4], vec![1, -1, 0, 2]).unwrap();
        let of = |op| run(op, 14, [], &[&a, &b]).as_i64().unwrap().to_vec();
        assert_eq!(of(&arithmetic::ADD), [i64::MIN, i64::MAX, 7, -5]);
        assert_eq!(of(&arithmetic::DIV), [i64::MAX, i64::MIN, 0, -3]);
        assert_eq!(of(&arithmetic::MOD), [0, 0, 0, 1]);
        assert_eq!(of(&arithmetic::POW), [i64::MAX, 0, 1, 49]);
    }

    #[test]
    fn the_error_function_has_its_known_values() {
        // DLMF, table 7.23 and symmetry.
        for (x, y) in [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (2.0, 0.995_322_265_018_952_7)] {
            assert!((erf(x) - y).abs() < 1e-15 && erf(-x) == -erf(x), "{x}");
        }
        assert!(erf(f64::NAN).is_nan() && erf(f64::INFINITY) == 1.0 && erf(0.0) == 0.0);
    }
}
