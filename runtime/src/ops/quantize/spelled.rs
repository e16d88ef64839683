//! Gradients of quantised operators in one piece, as ONNX Runtime's quantiser writes them: each is spelled out as
//! `DequantizeLinear`, the operator on floats, and `QuantizeLinear`, whose gradients are taken in its place.
//!
//! Weights are codes and frozen; rounding is taken for the identity as everywhere (`backward`).
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, OpDef, OpError, axis_of, find};
use crate::tensor::{DType, Tensor};

fn standard(name: &str) -> Result<&'static OpDef, OpError> {
    find("", name).ok_or_else(|| OpError::unsupported(format!("an operator `{name}`")))
}

/// `(x - zero) · scale`, scale and zero point one number each, or a number for each place along `axis`.
fn real_of(
    b: &mut Backward<'_>,
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    axis: i64,
) -> Result<ValueId, OpError> {
    let len = |b: &Backward<'_>, v: ValueId| b.shape(v).iter().product::<usize>();
    let n = len(b, scale).max(zero.map_or(1, |z| len(b, z)));
    if n != 1 {
        let along = axis_of(axis, b.shape(x).len())?;
        if b.shape(x)[along] != n {
            return Err(OpError::unsupported(format!("a gradient through {n} scales of one operand")));
        }
    }
    let as_long = |b: &mut Backward<'_>, v: ValueId| match (len(b, v), n) {
        (_, 1) => b.reshape(v, &[]),
        (1, n) => {
            let one = b.reshape(v, &[1])?;
            b.expand(one, &[n])
        }
        (_, n) => b.reshape(v, &[n]),
    };
    let mut inputs = vec![Some(x), Some(as_long(b, scale)?)];
    if let Some(zero) = zero {
        inputs.push(Some(as_long(b, zero)?));
    }
    b.one(standard("DequantizeLinear")?, Attrs::of([("axis", Attr::Int(axis))]), &inputs)
}

/// The same of operands by their places.
fn real(b: &mut Backward<'_>, x: usize, scale: usize, zero: usize, axis: i64) -> Result<ValueId, OpError> {
    let (x, scale, zero) = (b.x(x)?, b.x(scale)?, b.optional(zero));
    real_of(b, x, scale, zero, axis)
}

/// `real` as codes of the node's result, by a scale and a zero point for all of it.
fn codes(b: &mut Backward<'_>, real: ValueId, scale: usize, zero: usize) -> Result<ValueId, OpError> {
    let (scale, y) = (b.x(scale)?, b.y()?);
    let zero = match b.optional(zero) {
        Some(zero) => zero,
        None => {
            let dtype = b.dtype(y);
            b.constant(Tensor::zeros(dtype, &[])?)
        }
    };
    for v in [scale, zero] {
        if b.shape(v).iter().product::<usize>() != 1 {
            return Err(OpError::unsupported("a gradient through several scales of a result"));
        }
    }
    let (scale, zero) = (b.reshape(scale, &[])?, b.reshape(zero, &[])?);
    b.one(standard("QuantizeLinear")?, Attrs::of([]), &[Some(real), Some(scale), Some(zero)])
}

/// The node's attributes of those names.
fn kept(b: &Backward<'_>, names: &[&str]) -> Attrs {
    let own = b.attrs();
    let map = own.map.iter().filter(|(k, _)| names.contains(&&***k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    Attrs { map, ..Attrs::of([]) }
}

const WINDOW: &[&str] =
    &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// Channels at the end, second.
fn channels_second(b: &mut Backward<'_>, x: ValueId) -> Result<ValueId, OpError> {
    let rank = b.shape(x).len();
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    b.transpose(x, &perm)
}

/// And back.
fn channels_last(b: &mut Backward<'_>, x: ValueId) -> Result<ValueId, OpError> {
    let rank = b.shape(x).len();
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    b.transpose(x, &perm)
}

/// What `f` makes of an image, where the node may have channels at the end.
fn on_image(
    b: &mut Backward<'_>,
    x: ValueId,
    f: impl FnOnce(&mut Backward<'_>, ValueId) -> Result<ValueId, OpError>,
) -> Result<ValueId, OpError> {
    if !b.attrs().flag("channels_last", false)? {
        return f(b, x);
    }
    let x = channels_second(b, x)?;
    let y = f(b, x)?;
    channels_last(b, y)
}

/// 32-bit sums with the scale of the product they are added to.
fn bias(b: &mut Backward<'_>, i: usize, scales: [usize; 2]) -> Result<Option<ValueId>, OpError> {
    let Some(v) = b.optional(i) else { return Ok(None) };
    let (one, two) = (b.x(scales[0])?, b.x(scales[1])?);
    let dtype = b.dtype(one);
    let v = b.cast(v, dtype)?;
    let flat = |b: &mut Backward<'_>, v: ValueId| {
        let n: usize = b.shape(v).iter().product();
        if n == 1 { b.reshape(v, &[]) } else { b.reshape(v, &[n]) }
    };
    let (one, two) = (flat(b, one)?, flat(b, two)?);
    let v = b.mul(v, one)?;
    Ok(Some(b.mul(v, two)?))
}

/// Of `ConvInteger`.
pub(super) fn conv_integer(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w) = (b.x(0)?, b.x(1)?);
        let dtype = b.cotangent(x);
        let one = b.scalar(dtype, 1.0)?;
        let (x_zero, w_zero) = (b.optional(2), b.optional(3));
        let x = real_of(b, x, one, x_zero, 1)?;
        let w = real_of(b, w, one, w_zero, 0)?;
        let attrs = kept(b, WINDOW);
        Ok(vec![b.one(standard("Conv")?, attrs, &[Some(x), Some(w)])?])
    })
}

/// Of `QLinearConv`.
pub(super) fn conv(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w, bias) = (real(b, 0, 1, 2, 1)?, real(b, 3, 4, 5, 0)?, bias(b, 8, [1, 4])?);
        let attrs = kept(b, WINDOW);
        let y = on_image(b, x, |b, x| b.one(standard("Conv")?, attrs, &[Some(x), Some(w), bias]))?;
        Ok(vec![codes(b, y, 6, 7)?])
    })
}

/// Of `QLinearMatMul`.
pub(super) fn matmul(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w) = (real(b, 0, 1, 2, -2)?, real(b, 3, 4, 5, -1)?);
        let y = b.binary("MatMul", x, w)?;
        Ok(vec![codes(b, y, 6, 7)?])
    })
}

/// Of `MatMulIntegerToFloat`, whose left operand has its scale from the data.
pub(super) fn to_float(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w) = (real(b, 0, 2, 4, -2)?, real(b, 1, 3, 5, -1)?);
        let y = b.binary("MatMul", x, w)?;
        Ok(vec![with_bias(b, y, 6)?])
    })
}

/// Of `DynamicQuantizeMatMul`.
pub(super) fn dynamic_matmul(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w) = (b.x(0)?, real(b, 1, 2, 3, -1)?);
        let y = b.binary("MatMul", x, w)?;
        Ok(vec![with_bias(b, y, 4)?])
    })
}

fn with_bias(b: &mut Backward<'_>, y: ValueId, i: usize) -> Result<ValueId, OpError> {
    match b.optional(i) {
        Some(bias) => b.add(y, bias),
        None => Ok(y),
    }
}

/// Of `QGemm`.
pub(super) fn gemm(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let attrs = b.attrs();
        let columns = if attrs.flag("transB", false)? { 0 } else { 1 };
        let (x, w, c) = (real(b, 0, 1, 2, 0)?, real(b, 3, 4, 5, columns)?, bias(b, 6, [1, 4])?);
        let alpha = f64::from(attrs.float("alpha", 1.0)?);
        // The factor is of the sum with C.
        let plain = kept(b, &["transA", "transB"]);
        let y = b.one(standard("Gemm")?, plain, &[Some(x), Some(w), c])?;
        let y = if alpha == 1.0 { y } else { b.scaled(y, alpha)? };
        Ok(vec![if b.optional(7).is_some() { codes(b, y, 7, 8)? } else { y }])
    })
}

/// Of an operator on two quantised tensors, by the one on floats.
pub(super) fn binary(b: &mut Backward<'_>, name: &str) -> Result<(), OpError> {
    b.through(|b| {
        let (x, y) = (real(b, 0, 1, 2, 0)?, real(b, 3, 4, 5, 0)?);
        let z = b.binary(name, x, y)?;
        Ok(vec![codes(b, z, 6, 7)?])
    })
}

/// Of a function of a quantised tensor, by the one on floats, which has those attributes of the node.
pub(super) fn unary(b: &mut Backward<'_>, name: &str, attrs: &[&str]) -> Result<(), OpError> {
    b.through(|b| {
        let x = real(b, 0, 1, 2, 0)?;
        let attrs = kept(b, attrs);
        let y = b.one(standard(name)?, attrs, &[Some(x)])?;
        Ok(vec![codes(b, y, 3, 4)?])
    })
}

/// Of a pool over a quantised image.
pub(super) fn pool(b: &mut Backward<'_>, name: &str) -> Result<(), OpError> {
    b.through(|b| {
        let x = real(b, 0, 1, 2, 0)?;
        let attrs = kept(b, WINDOW);
        let y = on_image(b, x, |b, x| b.one(standard(name)?, attrs, &[Some(x)]))?;
        Ok(vec![codes(b, y, 3, 4)?])
    })
}

/// Of `NhwcMaxPool`: the codes themselves are compared, and their results are codes of the same scale.
pub(super) fn max_pool(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let x = b.x(0)?;
        let (dtype, codes) = (b.cotangent(x), b.dtype(x));
        let one = b.scalar(dtype, 1.0)?;
        let x = real_of(b, x, one, None, 0)?;
        let x = channels_second(b, x)?;
        let attrs = kept(b, WINDOW);
        let y = b.one(standard("MaxPool")?, attrs, &[Some(x)])?;
        let y = channels_last(b, y)?;
        let zero = b.constant(Tensor::zeros(codes, &[])?);
        Ok(vec![b.one(standard("QuantizeLinear")?, Attrs::of([]), &[Some(y), Some(one), Some(zero)])?])
    })
}

/// Of `QAttention`.
pub(super) fn attention(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (x, w) = (real(b, 0, 3, 6, 0)?, real(b, 1, 4, 7, -1)?);
        let rows = b.binary("MatMul", x, w)?;
        let rows = with_bias(b, rows, 2)?;
        crate::ops::attention::of_codes(b, rows)
    })
}

/// Of `QLinearSoftmax`, which is of the version it says itself.
pub(super) fn softmax(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let x = real(b, 0, 1, 2, 0)?;
        let own = b.attrs();
        let attrs = Attrs { opset: own.int("opset", 13)?, ..Attrs::of([("axis", Attr::Int(own.int("axis", -1)?))]) };
        let y = b.one(standard("Softmax")?, attrs, &[Some(x)])?;
        Ok(vec![codes(b, y, 3, 4)?])
    })
}

/// Of `QLinearReduceMean`.
pub(super) fn mean(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let x = real(b, 0, 1, 2, 0)?;
        let attrs = b.attrs();
        let rank = b.shape(x).len();
        let axes = match attrs.ints("axes")? {
            Some(a) if !a.is_empty() => a.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?,
            _ => (0..rank).collect(),
        };
        let y = b.reduce("ReduceMean", x, &axes, attrs.flag("keepdims", true)?)?;
        Ok(vec![codes(b, y, 3, 4)?])
    })
}

/// Of `QLinearWhere`.
pub(super) fn choice(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (which, x, y) = (b.x(0)?, real(b, 1, 2, 3, 0)?, real(b, 4, 5, 6, 0)?);
        let z = b.standard("Where", [], &[which, x, y])?;
        Ok(vec![codes(b, z, 7, 8)?])
    })
}

/// Of `QLinearConcat`.
pub(super) fn concat(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let parts: Vec<usize> = (2..b.inputs()).step_by(3).collect();
        let parts = parts.into_iter().map(|i| Ok(Some(real(b, i, i + 1, i + 2, 0)?)));
        let parts = parts.collect::<Result<Vec<_>, OpError>>()?;
        let attrs = kept(b, &["axis"]);
        let y = b.one(standard("Concat")?, attrs, &parts)?;
        Ok(vec![codes(b, y, 0, 1)?])
    })
}

/// Of `DynamicQuantizeLSTM`: the LSTM of the weights its codes stand for, gone through once more on floats.
pub(in crate::ops) fn lstm(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let (w, r) = (gates(b, 1, 8, 9)?, gates(b, 2, 10, 11)?);
        let mut inputs: Vec<Option<ValueId>> = (0..8).map(|i| b.optional(i)).collect();
        (inputs[1], inputs[2]) = (Some(w), Some(r));
        let names =
            ["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget"];
        let results = b.results();
        let attrs = Attrs { outputs: results, ..kept(b, &names) };
        let wanted: Vec<bool> = (0..results).map(|i| b.result(i).is_some()).collect();
        let made = b.apply(standard("LSTM")?, attrs, &inputs, &wanted)?;
        // Results nobody has asked for have no gradient either: any value stands for them.
        let first = made.iter().flatten().copied().next();
        let none = || OpError::unsupported("a gradient through no result");
        made.into_iter().map(|v| v.or(first).ok_or_else(none)).collect()
    })
}

/// A weight `[D, K, 4H]` of codes, with a scale for each direction or for each of its columns, as `[D, 4H, K]` of floats.
fn gates(b: &mut Backward<'_>, w: usize, scale: usize, zero: usize) -> Result<ValueId, OpError> {
    let (w, scale, zero) = (b.x(w)?, b.x(scale)?, b.optional(zero));
    let &[d, _, columns] = b.shape(w) else {
        return Err(OpError::shape("a weight of DynamicQuantizeLSTM", "[D, K, 4H]", b.shape(w)));
    };
    let dtype: DType = b.dtype(scale);
    let spread = |b: &mut Backward<'_>, v: ValueId| {
        let v = b.cast(v, dtype)?;
        let n: usize = b.shape(v).iter().product();
        b.reshape(v, &[d, 1, if n == d { 1 } else { columns }])
    };
    let mut real = b.cast(w, dtype)?;
    if let Some(zero) = zero {
        let zero = spread(b, zero)?;
        real = b.sub(real, zero)?;
    }
    let scale = spread(b, scale)?;
    let real = b.mul(real, scale)?;
    b.transpose(real, &[0, 2, 1])
}
