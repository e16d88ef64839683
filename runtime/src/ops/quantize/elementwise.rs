//! Element-wise operators, softmax, mean and concatenation on 8-bit codes.
use super::{Affine, coded, codes, fact, range_of, round_to};
use crate::ops::shape::{axes_of, broadcast, broadcast_all, broadcast_indices, elements};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, need};
use crate::tensor::{DType, Data, Tensor};

/// `requantise(a + b)`.
pub(super) static QLINEAR_ADD: OpDef =
    OpDef::new("QLinearAdd", "sum of quantised tensors", binary_shape, |_, inputs| {
        // The fixed part is what ONNX Runtime's kernel adds once.
        binary(inputs, |a, b, y| {
            let (ra, rb) = (a.scale / y.scale, b.scale / y.scale);
            let fixed = y.zero as f32 - (ra * a.zero as f32 + rb * b.zero as f32);
            move |qa, qb| ra.mul_add(qa as f32, fixed) + rb * qb as f32
        })
    })
    .domain(MICROSOFT)
    .kernel(super::tables::add)
    .gpu(super::tables::add_recorded)
    .vjp(|b| super::spelled::binary(b, "Add"));

/// `requantise(a · b)`.
pub(super) static QLINEAR_MUL: OpDef =
    OpDef::new("QLinearMul", "product of quantised tensors", binary_shape, |_, inputs| {
        binary(inputs, |a, b, y| {
            let ratio = a.scale * b.scale / y.scale;
            move |qa, qb| (qa - a.zero).wrapping_mul(qb - b.zero) as f32 * ratio + y.zero as f32
        })
    })
    .domain(MICROSOFT)
    .kernel(super::tables::multiply)
    .gpu(super::tables::multiply_recorded)
    .vjp(|b| super::spelled::binary(b, "Mul"));

fn binary_shape(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 3, "B")?);
    fact(a.dtype, broadcast(&a.shape, &b.shape)?)
}

/// `f` gives, for the parameters of `a`, `b` and `y`, the function from codes to a real in units of the result's code.
fn binary<F: Fn(i32, i32) -> f32>(
    inputs: &[Option<&Tensor>],
    f: impl Fn(Affine, Affine, Affine) -> F,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 3, "B")?);
    let f = f(Affine::of(inputs, 1, "A")?, Affine::of(inputs, 4, "B")?, Affine::of(inputs, 6, "C")?);
    let shape = broadcast(a.shape(), b.shape())?;
    let range = range_of(a.dtype())?;
    let (va, vb) = (codes(a, "A")?, codes(b, "B")?);
    let (ia, ib) = (broadcast_indices(a.shape(), &shape)?, broadcast_indices(b.shape(), &shape)?);
    let q: Vec<i32> = ia.into_iter().zip(ib).map(|(i, j)| round_to(f(va[i], vb[j]), 0, range)).collect();
    Ok(vec![coded(a.dtype(), &shape, &q)?])
}

/// `requantise(1 / (1 + e^-x))`.
pub(super) static QLINEAR_SIGMOID: OpDef =
    OpDef::new("QLinearSigmoid", "logistic function of a quantised tensor", unary_shape, |_, inputs| {
        unary(inputs, sigmoid)
    })
    .domain(MICROSOFT)
    .kernel(|l| super::tables::unary(l, sigmoid))
    .gpu(|l| super::tables::unary_recorded(l, sigmoid))
    .vjp(|b| super::spelled::unary(b, "Sigmoid", &[]));

/// `requantise(x)` where `x ≥ 0`, `requantise(alpha · x)` elsewhere.
pub(super) static QLINEAR_LEAKY_RELU: OpDef =
    OpDef::new("QLinearLeakyRelu", "leaky rectifier of a quantised tensor", unary_shape, |attrs, inputs| {
        let alpha = f64::from(attrs.float("alpha", 0.01)?);
        unary(inputs, |x| leaky(alpha, x))
    })
    .domain(MICROSOFT)
    .kernel(|l| {
        let alpha = f64::from(l.attrs.float("alpha", 0.01)?);
        super::tables::unary(l, |x| leaky(alpha, x))
    })
    .gpu(|l| {
        let alpha = f64::from(l.attrs.float("alpha", 0.01)?);
        super::tables::unary_recorded(l, |x| leaky(alpha, x))
    })
    .vjp(|b| super::spelled::unary(b, "LeakyRelu", &["alpha"]));

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn leaky(alpha: f64, x: f64) -> f64 {
    if x >= 0.0 { x } else { alpha * x }
}

pub(super) fn unary_shape(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "X")?;
    fact(x.dtype, x.shape.clone())
}

fn unary(inputs: &[Option<&Tensor>], f: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let (from, to) = (Affine::of(inputs, 1, "X")?, Affine::of(inputs, 3, "Y")?);
    let range = range_of(x.dtype())?;
    let table = table(x.dtype(), |q| to.code(f(f64::from(from.real(q))) as f32, range))?;
    let low = range.0;
    let q: Vec<i32> = codes(x, "X")?.into_iter().map(|q| table[(q - low) as usize]).collect();
    Ok(vec![coded(x.dtype(), x.shape(), &q)?])
}

/// `f` of every code of a type, the smallest first.
pub(super) fn table(dtype: DType, f: impl Fn(i32) -> i32) -> Result<Vec<i32>, OpError> {
    let (low, high) = range_of(dtype)?;
    Ok((low..=high).map(f).collect())
}

/// `requantise(softmax(x))` along an axis; before version 13 along all axes from it on.
pub(super) static QLINEAR_SOFTMAX: OpDef =
    OpDef::new("QLinearSoftmax", "softmax of a quantised tensor", unary_shape, |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let from = Affine::of(inputs, 1, "X")?;
        let to = Affine::of(inputs, 3, "Y")?;
        let range = range_of(x.dtype())?;
        let axis = axis_of(attrs.int("axis", -1)?, x.shape().len().max(1))?;
        let flat = attrs.int("opset", 13)? < 13;
        let shape = x.shape();
        let (len, inner) = match (shape.is_empty(), flat) {
            (true, _) => (1, 1),
            (false, true) => (elements(&shape[axis..])?, 1),
            (false, false) => (shape[axis], elements(&shape[axis + 1..])?),
        };
        let v = codes(x, "X")?;
        let mut q = vec![0i32; v.len()];
        for line in 0..v.len().checked_div(len).unwrap_or(0) {
            let first = line / inner * len * inner + line % inner;
            let at = |i: usize| first + i * inner;
            let max = (0..len).map(|i| v[at(i)]).max().unwrap_or(0);
            let e = |q: i32| (f64::from(q - max) * f64::from(from.scale)).exp();
            let sum: f64 = (0..len).map(|i| e(v[at(i)])).sum();
            for i in 0..len {
                q[at(i)] = to.code((e(v[at(i)]) / sum) as f32, range);
            }
        }
        Ok(vec![coded(x.dtype(), shape, &q)?])
    })
    .domain(MICROSOFT)
    .vjp(super::spelled::softmax);

/// `requantise(condition ? x : y)`.
pub(super) static QLINEAR_WHERE: OpDef = OpDef::new(
    "QLinearWhere",
    "one or the other quantised tensor, by a condition",
    |_, inputs| {
        let (c, x, y) = (need(inputs, 0, "condition")?, need(inputs, 1, "X")?, need(inputs, 4, "Y")?);
        fact(x.dtype, broadcast_all([&c.shape[..], &x.shape, &y.shape])?)
    },
    |_, inputs| {
        let (c, x, y) = (need(inputs, 0, "condition")?, need(inputs, 1, "X")?, need(inputs, 4, "Y")?);
        let shape = broadcast_all([c.shape(), x.shape(), y.shape()])?;
        let (fx, fy, to) = (Affine::of(inputs, 2, "X")?, Affine::of(inputs, 5, "Y")?, Affine::of(inputs, 7, "Z")?);
        let range = range_of(x.dtype())?;
        let Data::Bool(which) = c.data() else {
            return Err(OpError::unsupported(format!("condition of {}", c.dtype())));
        };
        let (vx, vy) = (codes(x, "X")?, codes(y, "Y")?);
        let at = |t: &Tensor| broadcast_indices(t.shape(), &shape);
        let q: Vec<i32> = at(c)?
            .into_iter()
            .zip(at(x)?)
            .zip(at(y)?)
            .map(|((c, x), y)| to.code(if which[c] { fx.real(vx[x]) } else { fy.real(vy[y]) }, range))
            .collect();
        Ok(vec![coded(x.dtype(), &shape, &q)?])
    },
)
.domain(MICROSOFT)
.vjp(super::spelled::choice);

/// Quantised tensors one after another along an axis, each requantised to the result's scale.
pub(super) static QLINEAR_CONCAT: OpDef = OpDef::new(
    "QLinearConcat",
    "concatenation of quantised tensors of different scales",
    |attrs, inputs| {
        let parts: Vec<&[usize]> = (2..inputs.len())
            .step_by(3)
            .map(|i| need(inputs, i, "input").map(|f| &f.shape[..]))
            .collect::<Result<_, _>>()?;
        fact(need(inputs, 1, "Y_zero_point")?.dtype, concat_shape(attrs, &parts)?.1)
    },
    |attrs, inputs| {
        let dtype = need(inputs, 1, "Y_zero_point")?.dtype();
        let (to, range) = (Affine::of(inputs, 0, "Y")?, range_of(dtype)?);
        let parts: Vec<&Tensor> =
            (2..inputs.len()).step_by(3).map(|i| need(inputs, i, "input")).collect::<Result<_, _>>()?;
        let (axis, shape) = concat_shape(attrs, &parts.iter().map(|t| t.shape()).collect::<Vec<_>>())?;
        let outer = elements(&shape[..axis])?;
        let mut lines = vec![Vec::new(); outer];
        for (i, t) in parts.iter().enumerate() {
            let from = Affine::of(inputs, 3 + 3 * i, "input")?;
            let map = |q: i32| if from == to && t.dtype() == dtype { q } else { to.code(from.real(q), range) };
            let q: Vec<i32> = codes(t, "input")?.into_iter().map(map).collect();
            let line = q.len().checked_div(outer).unwrap_or(0);
            for (o, l) in lines.iter_mut().enumerate() {
                l.extend_from_slice(&q[o * line..][..line]);
            }
        }
        Ok(vec![coded(dtype, &shape, &lines.concat())?])
    },
)
.domain(MICROSOFT)
.kernel(super::tables::concat)
.vjp(super::spelled::concat);

/// Axis and shape of a concatenation.
pub(super) fn concat_shape(attrs: &Attrs, parts: &[&[usize]]) -> Result<(usize, Vec<usize>), OpError> {
    let Some((first, rest)) = parts.split_first() else {
        return Err(OpError::MissingInput { index: 2, name: "input" });
    };
    if !attrs.has("axis") {
        return Err(OpError::attribute("axis", "is missing"));
    }
    let axis = axis_of(attrs.int("axis", 0)?, first.len())?;
    let mut shape = first.to_vec();
    for s in rest {
        if s.len() != shape.len() || (0..shape.len()).any(|i| i != axis && s[i] != shape[i]) {
            return Err(OpError::shape("an input of QLinearConcat", first, s));
        }
        shape[axis] = shape[axis].saturating_add(s[axis]);
    }
    elements(&shape)?;
    Ok((axis, shape))
}

/// `requantise(mean(x))` over axes.
pub(super) static QLINEAR_REDUCE_MEAN: OpDef = OpDef::new(
    "QLinearReduceMean",
    "mean of a quantised tensor over axes",
    |attrs, inputs| {
        let x = need(inputs, 0, "data")?;
        fact(x.dtype, reduced(attrs, &x.shape)?.1)
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "data")?;
        let (axes, shape) = reduced(attrs, x.shape())?;
        let (from, to) = (Affine::of(inputs, 1, "data")?, Affine::of(inputs, 3, "reduced")?);
        let range = range_of(x.dtype())?;
        let kept: Vec<usize> =
            x.shape().iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
        let mut sums = vec![0i64; elements(&kept)?];
        let count = axes.iter().map(|&a| x.shape()[a]).product::<usize>();
        for (q, at) in codes(x, "data")?.into_iter().zip(broadcast_indices(&kept, x.shape())?) {
            sums[at] += i64::from(q - from.zero);
        }
        let q: Vec<i32> =
            sums.iter().map(|&s| to.code((s as f64 / count as f64 * f64::from(from.scale)) as f32, range)).collect();
        Ok(vec![coded(x.dtype(), &shape, &q)?])
    },
)
.domain(MICROSOFT)
.vjp(super::spelled::mean);

fn reduced(attrs: &Attrs, x: &[usize]) -> Result<(Vec<usize>, Vec<usize>), OpError> {
    let axes = match attrs.ints("axes")? {
        Some(a) if !a.is_empty() => axes_of(a, x.len())?,
        _ => (0..x.len()).collect(),
    };
    let keep = attrs.flag("keepdims", true)?;
    let shape = x
        .iter()
        .enumerate()
        .filter_map(|(i, &d)| match (axes.contains(&i), keep) {
            (true, true) => Some(1),
            (true, false) => None,
            (false, _) => Some(d),
        })
        .collect();
    Ok((axes, shape))
}
