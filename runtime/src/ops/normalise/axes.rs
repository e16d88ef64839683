//! Normalisation over chosen axes: by a norm, and by mean and variance.
use crate::ops::shape::{axes_of, elements, same_as_input};
use crate::ops::{Attrs, OpDef, OpError, axis_of, for_each_strided, need, strides_of};
use crate::tensor::Tensor;

/// `x / |x|ₚ` along one axis; zero where the norm is zero.
pub(super) static LP_NORMALIZATION: OpDef = OpDef::new(
    "LpNormalization",
    "x divided by its norm of order 1 or 2 along one axis",
    same_as_input,
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let p = attrs.int("p", 2)?;
        if p != 1 && p != 2 {
            return Err(OpError::attribute("p", format!("{p} is neither 1 nor 2")));
        }
        let axis = axis_of(attrs.int("axis", -1)?, x.shape().len())?;
        let (at, n) = groups(x.shape(), &[axis])?;
        let mut v = x.data().to_f64();
        let mut norm = vec![0.0; n];
        v.iter().zip(&at).for_each(|(v, &g)| norm[g] += if p == 1 { v.abs() } else { v * v });
        if p == 2 {
            norm.iter_mut().for_each(|s| *s = s.sqrt());
        }
        v.iter_mut().zip(&at).for_each(|(v, &g)| *v = if norm[g] == 0.0 { 0.0 } else { *v / norm[g] });
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
    },
)
.vjp(|b| {
    b.through(|b| {
        let (x, attrs) = (b.x(0)?, b.attrs());
        let axis = axis_of(attrs.int("axis", -1)?, b.shape(x).len())?;
        let name = if attrs.int("p", 2)? == 1 { "ReduceL1" } else { "ReduceL2" };
        let norm = b.reduce(name, x, &[axis], true)?;
        let y = b.div(x, norm)?;
        let zero = b.scalar_like(x, 0.0)?;
        let some = b.binary("Greater", norm, zero)?;
        Ok(vec![b.only(some, y)?])
    })
});

/// `(x - mean) / (standard deviation + 1e-9)` over axes.
pub(super) static MEAN_VARIANCE_NORMALIZATION: OpDef = OpDef::new(
    "MeanVarianceNormalization",
    "(x - mean) / standard deviation over axes",
    same_as_input,
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let axes = axes_of(&moment_axes(attrs, x.shape().len())?, x.shape().len())?;
        let (at, n) = groups(x.shape(), &axes)?;
        let count = axes.iter().map(|&a| x.shape()[a]).product::<usize>() as f64;
        let mut v = x.data().to_f64();
        let mut mean = vec![0.0; n];
        v.iter().zip(&at).for_each(|(v, &g)| mean[g] += v / count);
        v.iter_mut().zip(&at).for_each(|(v, &g)| *v -= mean[g]);
        if attrs.flag("normalize_variance", true)? {
            let mut var = vec![0.0; n];
            v.iter().zip(&at).for_each(|(v, &g)| var[g] += v * v / count);
            v.iter_mut().zip(&at).for_each(|(v, &g)| *v /= var[g].sqrt() + 1e-9);
        }
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
    },
)
.vjp(|b| {
    b.through(|b| {
        let (x, attrs) = (b.x(0)?, b.attrs());
        let rank = b.shape(x).len();
        let axes = axes_of(&moment_axes(&attrs, rank)?, rank)?;
        let mean = b.reduce("ReduceMean", x, &axes, true)?;
        let y = b.sub(x, mean)?;
        if !attrs.flag("normalize_variance", true)? {
            return Ok(vec![y]);
        }
        let square = b.mul(y, y)?;
        let var = b.reduce("ReduceMean", square, &axes, true)?;
        let deviation = b.unary("Sqrt", var)?;
        let least = b.scalar_like(x, 1e-9)?;
        let deviation = b.add(deviation, least)?;
        Ok(vec![b.div(y, deviation)?])
    })
});

/// The axes moments are taken over: all but the channels when nothing is said. Before opset 9 an attribute says whether
/// the channels are among them.
fn moment_axes(attrs: &Attrs, rank: usize) -> Result<Vec<i64>, OpError> {
    if let Some(axes) = attrs.ints("axes")? {
        return Ok(axes.to_vec());
    }
    if attrs.opset >= 9 && !attrs.has("across_channels") {
        return Ok(vec![0, 2, 3]);
    }
    let across = attrs.flag("across_channels", false)?;
    Ok((0..rank as i64).filter(|&a| a > 1 || (a == 1 && across)).collect())
}

/// For each element, the group of those that differ along `axes` only; and how many groups there are.
fn groups(shape: &[usize], axes: &[usize]) -> Result<(Vec<usize>, usize), OpError> {
    let mut kept = shape.to_vec();
    axes.iter().for_each(|&a| kept[a] = 1);
    let mut strides = strides_of(&kept);
    axes.iter().for_each(|&a| strides[a] = 0);
    let mut at = Vec::with_capacity(elements(shape)?);
    for_each_strided(0, &strides, shape, |g| at.push(g));
    Ok((at, elements(&kept)?))
}
