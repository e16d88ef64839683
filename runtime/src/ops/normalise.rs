//! Operators that normalise along axes: softmax and layer normalisation.
use hone_kernels::rows;

use super::{Attrs, Fact, OpDef, OpError, Origin, axis_of, broadcast_index, need, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Softmax along one axis; before opset 13, over all axes from `axis` on.
pub(super) static SOFTMAX: OpDef = OpDef {
    name: "Softmax",
    doc: "e^(x - max) / Σ along one axis (from opset 13), or over the axis and all after it (before)",
    origin: Origin::Onnx,
    shape: |_, inputs| {
        let x = need(inputs, 0, "input")?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    },
    reference: |attrs, inputs, shapes| {
        let x = need(inputs, 0, "input")?;
        let (len, inner) = softmax_run(attrs, x.shape())?;
        let v = x.as_f32()?;
        let mut y = vec![0.0; v.len()];
        for start in starts(v.len(), len, inner) {
            let at = |i: usize| start + i * inner;
            let max = (0..len).map(|i| v[at(i)]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = (0..len).map(|i| f64::from(v[at(i)] - max).exp()).sum();
            for i in 0..len {
                y[at(i)] = (f64::from(v[at(i)] - max).exp() / sum) as f32;
            }
        }
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: |l: &Lowering<'_>| {
        let (len, inner) = softmax_run(l.attrs, l.shape(0)?)?;
        if inner != 1 || len == 0 || l.dtype(0) != Some(DType::F32) {
            return Ok(None);
        }
        Ok(Some(Lowered::new(SoftmaxRows { len }, vec![0])))
    },
};

/// Length of a run and distance between its elements.
fn softmax_run(attrs: &Attrs, shape: &[usize]) -> Result<(usize, usize), OpError> {
    let old = attrs.opset < 13;
    let axis = axis_of(attrs.int("axis", if old { 1 } else { -1 })?, shape.len())?;
    Ok(if old { (shape[axis..].iter().product(), 1) } else { (shape[axis], shape[axis + 1..].iter().product()) })
}

fn starts(total: usize, len: usize, inner: usize) -> impl Iterator<Item = usize> {
    let block = (len * inner).max(1);
    (0..total / block).flat_map(move |o| (0..inner).map(move |i| o * block + i))
}

struct SoftmaxRows {
    len: usize,
}

impl Kernel for SoftmaxRows {
    fn name(&self) -> &'static str {
        "softmax-rows"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        rows::softmax(self.len, reads.f32(0), writes.f32(0));
    }
}

/// Layer normalisation over the axes from `axis` on.
pub(super) static LAYER_NORMALIZATION: OpDef = OpDef {
    name: "LayerNormalization",
    doc: "(x - mean) / sqrt(var + epsilon) · scale + bias over the axes from `axis` on",
    origin: Origin::Onnx,
    shape: |_, inputs| {
        let x = need(inputs, 0, "X")?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    },
    reference: |attrs, inputs, shapes| {
        let (x, gain) = (need(inputs, 0, "X")?, need(inputs, 1, "Scale")?);
        let offset = inputs.get(2).copied().flatten();
        let axis = axis_of(attrs.int("axis", -1)?, x.shape().len())?;
        let n = x.shape()[axis..].iter().product::<usize>();
        // Scale and bias may be broadcast to the normalised axes.
        let source = broadcast_positions(gain.shape(), &x.shape()[axis..])?;
        let offset_source = offset.map(|o| broadcast_positions(o.shape(), &x.shape()[axis..])).transpose()?;
        let epsilon = f64::from(attrs.float("epsilon", 1e-5)?);
        let v = x.as_f32()?;
        let mut y = Vec::with_capacity(v.len());
        for row in v.chunks_exact(n.max(1)) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            for (j, &v) in row.iter().enumerate() {
                let z = (f64::from(v) - mean) / (var + epsilon).sqrt() * f64::from(gain.as_f32()?[source[j]]);
                let o = match (offset, &offset_source) {
                    (Some(o), Some(at)) => f64::from(o.as_f32()?[at[j]]),
                    _ => 0.0,
                };
                y.push((z + o) as f32);
            }
        }
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: |l: &Lowering<'_>| {
        let n = norm_len(l.attrs, l.shape(0)?)?;
        let fits = |i: usize| l.shape(i).is_ok_and(|s| s.iter().product::<usize>() == n);
        if n == 0 || l.wants(1) || l.wants(2) || l.dtype(0) != Some(DType::F32) || !fits(1) || (l.has(2) && !fits(2)) {
            return Ok(None);
        }
        let reads = if l.has(2) { vec![0, 1, 2] } else { vec![0, 1] };
        let k = NormRows { n, epsilon: l.attrs.float("epsilon", 1e-5)?, offset: l.has(2) };
        Ok(Some(Lowered::new(k, reads)))
    },
};

/// For each element of `to`, in order: its source in a tensor of `shape`, which must be broadcastable to it.
fn broadcast_positions(shape: &[usize], to: &[usize]) -> Result<Vec<usize>, OpError> {
    let fits = shape.len() <= to.len() && shape.iter().rev().zip(to.iter().rev()).all(|(&s, &t)| s == 1 || s == t);
    if !fits {
        return Err(OpError::Shape {
            what: "Scale or B of LayerNormalization".into(),
            expected: format!("a shape that broadcasts to {to:?}"),
            found: format!("{shape:?}"),
        });
    }
    let (own, full) = (broadcast_index(shape, to), strides_of(to));
    let at = |j: usize| (0..to.len()).map(|a| j / full[a] % to[a] * own[a]).sum();
    Ok((0..to.iter().product()).map(at).collect())
}

fn norm_len(attrs: &Attrs, shape: &[usize]) -> Result<usize, OpError> {
    Ok(shape[axis_of(attrs.int("axis", -1)?, shape.len())?..].iter().product())
}

struct NormRows {
    n: usize,
    epsilon: f32,
    offset: bool,
}

impl Kernel for NormRows {
    fn name(&self) -> &'static str {
        "layer-norm-rows"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let offset = self.offset.then(|| reads.f32(2));
        rows::layer_norm(self.n, self.epsilon, reads.f32(0), reads.f32(1), offset, writes.f32(0));
    }
}
