//! Activations, and the forms of them ONNX Runtime adds.
use hone_kernels::elementwise as fast;
use hone_kernels::epilogue::Activation;
use hone_kernels::gradient;

use super::super::shape::elements;
use super::super::{Attr, Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional, record};
use super::derivative::derivative;
use super::walk::{activated, mapped, zipped};
use super::{alike, broadcast_indices, erf, floats, named, numbers, parameters, same_as_input, sigmoid, softplus};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

macro_rules! activation {
    ($konst:ident, $name:literal, $doc:literal, [$($p:ident = $default:expr),*], |$x:ident| $float:expr, f32: $f32:expr,
     $of:ident: |$v:ident| $slope:expr, f32: $slope32:expr) => {
        activation!($konst, $name, $doc, "", [$($p = $default),*], |$x| $float, f32: $f32, $of: |$v| $slope, f32: $slope32);
    };
    ($konst:ident, $name:literal, $doc:literal, $domain:expr, [$($p:ident = $default:expr),*], |$x:ident| $float:expr,
     f32: $f32:expr, $of:ident: |$v:ident| $slope:expr, f32: $slope32:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef::new($name, $doc, same_as_input, |attrs, inputs| {
            let [$($p),*] = parameters(attrs, [$((stringify!($p), $default)),*])?.map(f64::from);
            floats(need(inputs, 0, "X")?, $name, |$x: f64| $float)
        })
        .domain($domain)
        .kernel(|l| {
            let [$($p),*] = parameters(l.attrs, [$((stringify!($p), $default)),*])?;
            Ok((l.dtype(0) == Some(DType::F32)).then(|| match named($name, &[$($p),*]) {
                Some(a) => activated($name, a),
                None => mapped::<f32, f32, _>($name, move |$x: f32| $f32),
            }))
        })
        .gpu(|l| {
            let params = parameters(l.attrs, [$((stringify!($p), $default)),*])?;
            match named($name, &params) {
                Some(a) => record::activated(l, a),
                None => record::named(l, on_gpu($name), &params),
            }
        })
        .vjp(derivative!($name, $of, [$($p = $default),*], |$v| $slope, f32: $slope32));
    };
}

/// max(x, 0)
pub(super) static RELU: OpDef = OpDef::new("Relu", "max(x, 0)", same_as_input, |_, inputs| {
    numbers(need(inputs, 0, "X")?, "Relu", |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0))
})
.kernel(|l| Ok((l.dtype(0) == Some(DType::F32)).then(|| activated("Relu", Activation::Relu))))
.gpu(|l| record::activated(l, Activation::Relu))
.vjp(derivative!("Relu", Y, [], |y| f64::from(u8::from(y > 0.0)), f32: if y > 0.0 { 1.0 } else { 0.0 }));

activation!(LEAKY_RELU, "LeakyRelu", "x below zero is multiplied by alpha", [alpha = 0.01],
    |x| if x < 0.0 { alpha * x } else { x },
    f32: if x < 0.0 { alpha * x } else { x },
    X: |x| if x < 0.0 { alpha } else { 1.0 },
    f32: if x < 0.0 { alpha } else { 1.0 });
activation!(THRESHOLDED_RELU, "ThresholdedRelu", "x above alpha, else 0", [alpha = 1.0],
    |x| if x > alpha { x } else { 0.0 },
    f32: if x > alpha { x } else { 0.0 },
    X: |x| if x > alpha { 1.0 } else { 0.0 },
    f32: if x > alpha { 1.0 } else { 0.0 });
activation!(ELU, "Elu", "x below zero becomes alpha (e^x - 1)", [alpha = 1.0],
    |x| if x < 0.0 { alpha * x.exp_m1() } else { x },
    f32: if x < 0.0 { alpha * fast::exp_m1(x) } else { x },
    X: |x| if x < 0.0 { alpha * x.exp() } else { 1.0 },
    f32: if x < 0.0 { alpha * fast::exp(x) } else { 1.0 });
activation!(SELU, "Selu", "gamma times Elu", [alpha = 1.673_263_2, gamma = 1.050_701],
    |x| gamma * if x <= 0.0 { alpha * x.exp_m1() } else { x },
    f32: gamma * if x <= 0.0 { alpha * fast::exp_m1(x) } else { x },
    X: |x| gamma * if x <= 0.0 { alpha * x.exp() } else { 1.0 },
    f32: gamma * if x <= 0.0 { alpha * fast::exp(x) } else { 1.0 });
activation!(CELU, "Celu", "x below zero becomes alpha (e^(x/alpha) - 1)", [alpha = 1.0],
    |x| if x < 0.0 { alpha * (x / alpha).exp_m1() } else { x },
    f32: if x < 0.0 { alpha * fast::exp_m1(x / alpha) } else { x },
    X: |x| if x < 0.0 { (x / alpha).exp() } else { 1.0 },
    f32: if x < 0.0 { fast::exp(x / alpha) } else { 1.0 });
activation!(SIGMOID, "Sigmoid", "1 / (1 + e^-x)", [],
    |x| sigmoid(x),
    f32: fast::sigmoid(x),
    Y: |y| y * (1.0 - y),
    f32: y * (1.0 - y));
activation!(HARD_SIGMOID, "HardSigmoid", "alpha x + beta, between 0 and 1", [alpha = 0.2, beta = 0.5],
    |x| between(alpha * x + beta),
    f32: between_f32(alpha * x + beta),
    X: |x| if alpha * x + beta > 0.0 && alpha * x + beta < 1.0 { alpha } else { 0.0 },
    f32: if alpha * x + beta > 0.0 && alpha * x + beta < 1.0 { alpha } else { 0.0 });
activation!(HARD_SWISH, "HardSwish", "x times x/6 + 1/2, that between 0 and 1", [],
    |x| x * between(x / 6.0 + 0.5),
    f32: x * between_f32(x * (1.0 / 6.0) + 0.5),
    X: |x| hard_swish_slope(x),
    f32: hard_swish_slope_f32(x));
activation!(SWISH, "Swish", "x · sigmoid(alpha x)", [alpha = 1.0],
    |x| x * sigmoid(alpha * x),
    f32: x * fast::sigmoid(alpha * x),
    X: |x| swish_slope(alpha, x),
    f32: swish_slope_f32(alpha, x));
activation!(SOFTPLUS, "Softplus", "ln(1 + e^x)", [],
    |x| softplus(x),
    f32: fast::softplus(x),
    X: |x| sigmoid(x),
    f32: fast::sigmoid(x));
activation!(SOFTSIGN, "Softsign", "x / (1 + |x|)", [],
    |x| x / (1.0 + x.abs()),
    f32: x / (1.0 + x.abs()),
    X: |x| 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())),
    f32: 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())));
activation!(MISH, "Mish", "x · tanh(softplus(x))", [],
    |x| x * softplus(x).tanh(),
    f32: fast::mish(x),
    X: |x| mish_slope(x),
    f32: mish_slope_f32(x));
activation!(AFFINE, "Affine", "alpha x + beta", [alpha = 1.0, beta = 0.0],
    |x| alpha * x + beta,
    f32: alpha * x + beta,
    X: |x| alpha + 0.0 * x * beta,
    f32: alpha + 0.0 * x * beta);
activation!(SCALED_TANH, "ScaledTanh", "alpha · tanh(beta x)", [alpha = 1.0, beta = 1.0],
    |x| alpha * (beta * x).tanh(),
    f32: alpha * fast::tanh(beta * x),
    X: |x| alpha * beta * (1.0 - (beta * x).tanh().powi(2)),
    f32: scaled_tanh_slope_f32(alpha, beta, x));
activation!(PARAMETRIC_SOFTPLUS, "ParametricSoftplus", "alpha · softplus(beta x)", [alpha = 1.0, beta = 1.0],
    |x| alpha * softplus(beta * x),
    f32: alpha * fast::softplus(beta * x),
    X: |x| alpha * beta * sigmoid(beta * x),
    f32: alpha * beta * fast::sigmoid(beta * x));
activation!(MS_GELU, "Gelu", "x · Φ(x)", MICROSOFT, [],
    |x| gelu(x),
    f32: fast::gelu(x),
    X: |x| gelu_slope(x),
    f32: gelu_slope_f32(x));
activation!(QUICK_GELU, "QuickGelu", "x · sigmoid(alpha x)", MICROSOFT, [alpha = 1.702],
    |x| x * sigmoid(alpha * x),
    f32: x * fast::sigmoid(alpha * x),
    X: |x| swish_slope(alpha, x),
    f32: swish_slope_f32(alpha, x));

/// The function of that activation on a GPU.
fn on_gpu(name: &'static str) -> &'static str {
    if name == "QuickGelu" { "Swish" } else { name }
}

/// Keeps NaN, unlike `clamp` of a comparison the other way round.
fn between(x: f64) -> f64 {
    x.clamp(0.0, 1.0)
}

#[inline(always)]
fn between_f32(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 1.0 { 1.0 } else { x }
}

/// d/dx of `x · sigmoid(alpha x)`.
fn swish_slope(alpha: f64, x: f64) -> f64 {
    let s = sigmoid(alpha * x);
    s + alpha * x * s * (1.0 - s)
}

#[inline(always)]
fn swish_slope_f32(alpha: f32, x: f32) -> f32 {
    let s = fast::sigmoid(alpha * x);
    s + alpha * x * s * (1.0 - s)
}

/// d/dx of `x · (x/6 + 1/2)`, that between 0 and 1.
fn hard_swish_slope(x: f64) -> f64 {
    if x <= -3.0 {
        0.0
    } else if x >= 3.0 {
        1.0
    } else {
        x / 3.0 + 0.5
    }
}

#[inline(always)]
fn hard_swish_slope_f32(x: f32) -> f32 {
    let inside = x * (1.0 / 3.0) + 0.5;
    let low = if x <= -3.0 { 0.0 } else { inside };
    if x >= 3.0 { 1.0 } else { low }
}

/// d/dx of `x · tanh(softplus(x))`.
fn mish_slope(x: f64) -> f64 {
    let t = softplus(x).tanh();
    t + x * (1.0 - t * t) * sigmoid(x)
}

#[inline(always)]
fn mish_slope_f32(x: f32) -> f32 {
    let t = fast::tanh(fast::softplus(x));
    t + x * (1.0 - t * t) * fast::sigmoid(x)
}

#[inline(always)]
fn scaled_tanh_slope_f32(alpha: f32, beta: f32, x: f32) -> f32 {
    let t = fast::tanh(beta * x);
    alpha * beta * (1.0 - t * t)
}

/// d/dx of `x · Φ(x)`: `Φ(x) + x φ(x)`.
fn gelu_slope(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() * 0.5 * std::f64::consts::FRAC_1_SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI;
    0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
}

#[inline(always)]
fn gelu_slope_f32(x: f32) -> f32 {
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + fast::erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * fast::exp(-0.5 * x * x)
}

/// d/dx of the form of Gelu with tanh.
fn gelu_tanh_slope(x: f64) -> f64 {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let t = (root * (x + 0.044_715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044_715 * x * x)
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + u.tanh())
}

/// Whether the attribute `approximate` asks for the form with tanh.
fn by_tanh(attrs: &Attrs) -> Result<bool, OpError> {
    match attrs.str("approximate", "none")? {
        "none" => Ok(false),
        "tanh" => Ok(true),
        other => Err(OpError::attribute("approximate", format!("is `{other}`, not none or tanh"))),
    }
}

/// x · Φ(x)
pub(super) static GELU: OpDef = OpDef::new("Gelu", "x · Φ(x), exactly or by tanh", same_as_input, |attrs, inputs| {
    floats(need(inputs, 0, "X")?, "Gelu", if by_tanh(attrs)? { gelu_tanh } else { gelu })
})
.kernel(|l| {
    let form = if by_tanh(l.attrs)? { Activation::GeluTanh } else { Activation::Gelu };
    Ok((l.dtype(0) == Some(DType::F32)).then(|| activated("Gelu", form)))
})
.gpu(|l| record::activated(l, if by_tanh(l.attrs)? { Activation::GeluTanh } else { Activation::Gelu }))
.vjp(|b| super::derivative::mapped(b, &GELU_VJP, super::derivative::Of::X));

/// Its gradient, a kernel of its own: it takes a tenth of a step through a transformer where it is one number at a time.
static GELU_VJP: OpDef = OpDef::new("GeluVjp", "gradient times derivative", same_as_input, |attrs, inputs| {
    super::derivative::chained(inputs, if by_tanh(attrs)? { gelu_tanh_slope } else { gelu_slope })
})
.domain(super::super::HONE)
.kernel(|l| {
    let floats = l.dtype(0) == Some(DType::F32) && l.dtype(1) == Some(DType::F32);
    if !floats || l.shape(0)? != l.shape(1)? {
        return Ok(None);
    }
    Ok(Some(Lowered::new(GeluVjp { by_tanh: by_tanh(l.attrs)? }, vec![0, 1])))
})
.gpu(|l| record::derivative(l, if by_tanh(l.attrs)? { "GeluTanhVjp" } else { "GeluVjp" }, vec![]));

struct GeluVjp {
    by_tanh: bool,
}

impl Kernel for GeluVjp {
    fn name(&self) -> &'static str {
        "gelu-gradient"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (dy, x, dx) = (reads.f32(0), reads.f32(1), writes.f32(0));
        let piece = pool.share(dx.len(), 64, 4096);
        pool.pieces(dx, piece, |i, dx| gradient::gelu(self.by_tanh, &dy[i * piece..], &x[i * piece..], dx));
    }
}

/// Rows of `C` elements with a bias of `C`: the elements `f(x + bias)`.
fn biased(inputs: &[Option<&Tensor>], name: &str, f: fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let Some(bias) = optional(inputs, 1) else { return floats(x, name, f) };
    if bias.dtype() != x.dtype() || !x.dtype().is_float() {
        return Err(OpError::unsupported(format!("{name} of {} and {}", x.dtype(), bias.dtype())));
    }
    let at = broadcast_indices(bias.shape(), x.shape())?;
    let (v, b) = (x.data().to_f64(), bias.data().to_f64());
    let y: Vec<f64> = v.iter().zip(at).map(|(v, i)| f(v + b[i])).collect();
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
}

macro_rules! biased {
    ($konst:ident, $name:literal, $doc:literal, $float:expr, $form:expr, f32: $f32:expr, approximate: $how:literal) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, same_as_input, |_, inputs| biased(inputs, $name, $float))
                .domain(MICROSOFT)
                .vjp(|b| {
                    b.through(|b| {
                        let x = sum_with_bias(b)?;
                        Ok(vec![b.standard("Gelu", [("approximate", Attr::Str($how.into()))], &[x])?])
                    })
                })
                .kernel(|l| match (l.dtype(0), l.dtype(1)) {
                    (Some(DType::F32), None) => Ok(Some(activated($name, $form))),
                    (Some(DType::F32), Some(DType::F32)) => {
                        let (x, bias) = (l.shape(0)?, l.shape(1)?);
                        zipped::<f32, f32, f32, _>(l, $name, x, bias, |x: f32, b: f32| $f32(x + b))
                    }
                    _ => Ok(None),
                })
                .gpu(|l| {
                    if !l.has(1) {
                        return record::activated(l, $form);
                    }
                    Ok(record::binary(l, $name, l.shape(0)?, l.shape(1)?))
                });
    };
}

/// The first input plus the second, when there is one, as nodes.
fn sum_with_bias(b: &mut Backward<'_>) -> Result<ValueId, OpError> {
    let x = b.x(0)?;
    match b.optional(1) {
        Some(bias) => b.add(x, bias),
        None => Ok(x),
    }
}

biased!(FAST_GELU, "FastGelu", "Gelu by tanh of x + bias", gelu_tanh, Activation::GeluTanh, f32: fast::gelu_tanh,
    approximate: "tanh");
biased!(BIAS_GELU, "BiasGelu", "Gelu of x + bias", gelu, Activation::Gelu, f32: fast::gelu,
    approximate: "none");

/// The left half of x + bias times Gelu of the right half
pub(super) static BIAS_SPLIT_GELU: OpDef = OpDef::new(
    "BiasSplitGelu",
    "the left half of x + bias times Gelu of the right half",
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        let Some((last, lead)) = x.shape.split_last() else {
            return Err(OpError::shape("X", "at least one axis", &x.shape));
        };
        Ok(Some(vec![Fact::new(x.dtype, [lead, &[last / 2]].concat())]))
    },
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        need(inputs, 1, "bias")?;
        let sum = biased(inputs, "BiasSplitGelu", |v| v)?;
        let Some((last, lead)) = x.shape().split_last() else {
            return Err(OpError::shape("X", "at least one axis", x.shape()));
        };
        let to = [lead, &[last / 2]].concat();
        let mut y = Vec::with_capacity(elements(&to)?);
        if last / 2 > 0 {
            for row in sum[0].data().to_f64().chunks_exact(*last) {
                let (left, right) = row.split_at(last / 2);
                y.extend(left.iter().zip(right).map(|(l, r)| l * gelu(*r)));
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), &to, &y)?])
    },
)
.domain(MICROSOFT)
.vjp(|b| {
    b.through(|b| {
        let x = sum_with_bias(b)?;
        let (axis, half) = (b.shape(x).len() - 1, b.shape(x).last().copied().unwrap_or(0) / 2);
        let (left, right) = (b.slice(x, axis, 0, half)?, b.slice(x, axis, half, 2 * half)?);
        let right = b.standard("Gelu", [("approximate", Attr::Str("none".into()))], &[right])?;
        Ok(vec![b.mul(left, right)?])
    })
});

/// x + bias + skip
pub(super) static BIAS_ADD: OpDef = OpDef::new("BiasAdd", "x + bias + skip", same_as_input, |_, inputs| {
    let skip = need(inputs, 2, "skip")?;
    let sum = biased(inputs, "BiasAdd", |v| v)?;
    let at = broadcast_indices(skip.shape(), sum[0].shape())?;
    let s = skip.data().to_f64();
    let y: Vec<f64> = sum[0].data().to_f64().iter().zip(at).map(|(v, i)| v + s[i]).collect();
    Ok(vec![Tensor::from_f64(sum[0].dtype(), sum[0].shape(), &y)?])
})
.domain(MICROSOFT)
.vjp(|b| {
    let dy = b.dy()?;
    (0..3).try_for_each(|i| b.give_unbroadcast(i, dy))
});

/// swish(a) · b
pub(super) static SWIGLU: OpDef = OpDef::new("SwiGLU", "a · sigmoid(alpha a) · b", same_as_input, |attrs, inputs| {
    let alpha = f64::from(attrs.float("alpha", 1.0)?);
    let (a, b) = alike(inputs, "SwiGLU")?;
    if a.shape() != b.shape() || !a.dtype().is_float() {
        return Err(OpError::shape("SwiGLU of two float tensors", a.shape(), b.shape()));
    }
    let y: Vec<f64> =
        a.data().to_f64().iter().zip(b.data().to_f64()).map(|(&a, b)| a * sigmoid(alpha * a) * b).collect();
    Ok(vec![Tensor::from_f64(a.dtype(), a.shape(), &y)?])
})
.kernel(|l| {
    let alpha = l.attrs.float("alpha", 1.0)?;
    let (a, b) = (l.shape(0)?, l.shape(1)?);
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) || a != b {
        return Ok(None);
    }
    zipped::<f32, f32, f32, _>(l, "SwiGLU", a, b, move |a: f32, b: f32| a * fast::sigmoid(alpha * a) * b)
})
.vjp(|b| {
    b.through(|b| {
        let alpha = b.attrs().float("alpha", 1.0)?;
        let (x, gate) = (b.x(1)?, b.x(0)?);
        let gate = b.standard("Swish", [("alpha", Attr::Float(alpha))], &[gate])?;
        Ok(vec![b.mul(gate, x)?])
    })
});

/// x below zero is multiplied by the slope
pub(super) static PRELU: OpDef =
    OpDef::new("PRelu", "x below zero is multiplied by the slope", same_as_input, prelu_reference)
        .kernel(prelu_lower)
        .gpu(|l| {
            let (x, slope) = (l.shape(0)?, l.shape(1)?);
            Ok(record::binary(l, "PRelu", x, &slope_shape(l.attrs, x, slope)))
        })
        .vjp(|b| {
            let (dy, x, slope) = (b.dy()?, b.x(0)?, b.x(1)?);
            let (own, aligned) = (b.x_shape(1)?, slope_shape(&b.attrs(), b.shape(x), b.shape(slope)));
            let zero = b.scalar_like(x, 0.0)?;
            let below = b.binary("Less", x, zero)?;
            if b.wants(0) {
                let slope = b.reshape(slope, &aligned)?;
                let steep = b.mul(dy, slope)?;
                let dx = b.standard("Where", [], &[below, steep, dy])?;
                b.give(0, dx);
            }
            if b.wants(1) {
                let product = b.mul(dy, x)?;
                let product = b.only(below, product)?;
                let ds = b.unbroadcast(product, &aligned, &own)?;
                b.give(1, ds);
            }
            Ok(())
        });

/// The shape the slope broadcasts with. Before version 7 a vector had a slope for each channel.
fn slope_shape(attrs: &Attrs, x: &[usize], slope: &[usize]) -> Vec<usize> {
    let per_channel = attrs.opset < 7 && x.len() > 2 && slope.len() == 1 && slope[0] == x[1];
    let trailing = if per_channel { x.len() - 2 } else { 0 };
    [slope, &vec![1; trailing]].concat()
}

fn prelu_reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, slope) = alike(inputs, "PRelu")?;
    let at = broadcast_indices(&slope_shape(attrs, x.shape(), slope.shape()), x.shape())?;
    if x.dtype().is_integer() {
        let (v, s) = (x.data().to_i128(), slope.data().to_i128());
        let y: Vec<i128> = v.iter().zip(at).map(|(&v, i)| if v < 0 { v.wrapping_mul(s[i]) } else { v }).collect();
        return Ok(vec![Tensor::from_i128(x.dtype(), x.shape(), &y)?]);
    }
    let (v, s) = (x.data().to_f64(), slope.data().to_f64());
    let y: Vec<f64> = v.iter().zip(at).map(|(&v, i)| if v < 0.0 { v * s[i] } else { v }).collect();
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
}

fn prelu_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (x, slope) = (l.shape(0)?, l.shape(1)?);
    let slope = &slope_shape(l.attrs, x, slope);
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) {
        return Ok(None);
    }
    zipped::<f32, f32, f32, _>(l, "PRelu", x, slope, |x: f32, s: f32| if x < 0.0 { x * s } else { x })
}

/// x moved towards 0 by the bias beyond ±lambd, 0 between
pub(super) static SHRINK: OpDef = OpDef::new(
    "Shrink",
    "x moved towards 0 by the bias where it is beyond ±lambd, 0 between",
    same_as_input,
    |attrs, inputs| {
        let [bias, lambd] = parameters(attrs, [("bias", 0.0), ("lambd", 0.5)])?.map(f64::from);
        let f = move |x: f64| {
            if x < -lambd {
                x + bias
            } else if x > lambd {
                x - bias
            } else if x.is_nan() {
                x
            } else {
                0.0
            }
        };
        numbers(need(inputs, 0, "input")?, "Shrink", f, |x| f(x as f64) as i128)
    },
)
.vjp(derivative!("Shrink", X, [lambd = 0.5], |x| f64::from(u8::from(x.abs() > lambd)),
    f32: if x.abs() > lambd { 1.0 } else { 0.0 }));

/// scale · x + bias of the channel
pub(super) static IMAGE_SCALER: OpDef =
    OpDef::new("ImageScaler", "scale · x + bias of the channel", same_as_input, |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let scale = f64::from(attrs.float("scale", 1.0)?);
        let bias = attrs.floats("bias")?.unwrap_or(&[]);
        let [_, channels, rest @ ..] = x.shape() else {
            return Err(OpError::shape("input", "[N, C, …]", x.shape()));
        };
        if bias.len() != *channels {
            return Err(OpError::attribute("bias", format!("has {} entries for {channels} channels", bias.len())));
        }
        let plane = elements(rest)?.max(1);
        let y: Vec<f64> = x
            .data()
            .to_f64()
            .iter()
            .enumerate()
            .map(|(i, v)| scale * v + f64::from(bias[i / plane % channels]))
            .collect();
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
    })
    .vjp(|b| {
        let scale = f64::from(b.attrs().float("scale", 1.0)?);
        let dy = b.dy()?;
        let dx = b.scaled(dy, scale)?;
        b.give(0, dx);
        Ok(())
    });
