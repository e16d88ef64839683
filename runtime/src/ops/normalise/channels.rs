//! Normalisation along channels: by given moments, and by neighbouring channels.
//!
//! Dimension letters: `N` batch, `C` channels, `L` elements of a channel.
use hone_gpu::functions::function;
use hone_gpu::map::{Element, Map, Operand};
use hone_kernels::normalise;

use super::{moments, parameter};
use crate::autodiff::Backward;
use crate::ops::shape::same_as_input;
use crate::ops::{Attrs, Fact, OpDef, OpError, need, no_kernel};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// `[N, C, L]` of a tensor whose second axis is the channels.
pub(super) fn channels(shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
    match *shape {
        [] => Err(OpError::shape("X", "[N, C, …]", shape)),
        // One axis is a batch of single channels.
        [n] => Ok((n, 1, 1)),
        [n, c, ref rest @ ..] => Ok((n, c, rest.iter().product())),
    }
}

/// `(x - mean) / sqrt(var + epsilon) · scale + B`, moments given or, in training, those of the batch.
pub(super) static BATCH_NORMALIZATION: OpDef = OpDef::new(
    "BatchNormalization",
    "(x - mean) / sqrt(var + epsilon) · scale + B by channel; in training by the moments of the batch",
    |attrs, inputs| {
        let (x, mean) = (need(inputs, 0, "X")?, need(inputs, 3, "input_mean")?);
        let mut facts = vec![Fact::new(x.dtype, x.shape.clone())];
        if let Some(outputs) = trained_outputs(attrs)? {
            facts.resize(1 + outputs, Fact::new(mean.dtype, mean.shape.clone()));
        }
        Ok(Some(facts))
    },
    batch_normalization,
)
.kernel(|l| {
    let (_, c, len) = batch_layout(l.attrs, l.shape(0)?)?;
    let f32 = (0..5).all(|i| l.dtype(i) == Some(DType::F32));
    let fits = (1..5).all(|i| l.shape(i).is_ok_and(|s| s.iter().product::<usize>() == c));
    if !f32 || !fits || trained_outputs(l.attrs)?.is_some() {
        return no_kernel(l);
    }
    let epsilon = l.attrs.float("epsilon", 1e-5)?;
    let parameters: Option<Vec<&[f32]>> = (1..5).map(|i| l.constant(i).and_then(|t| t.as_f32().ok())).collect();
    if let Some(p) = parameters {
        let (mut scale, mut shift) = (vec![0.0; c], vec![0.0; c]);
        scale_and_shift(epsilon, [p[0], p[1], p[2], p[3]], &mut scale, &mut shift);
        let kernel = Affine { c, len, epsilon, frozen: Some((scale, shift)) };
        return Ok(Some(Lowered::new(kernel, vec![0]).with_weights(8 * c)));
    }
    let kernel = Affine { c, len, epsilon, frozen: None };
    Ok(Some(Lowered::new(kernel, vec![0, 1, 2, 3, 4]).with_scratch(2 * c)))
})
.gpu(|l| {
    let (n, c, len) = batch_layout(l.attrs, l.shape(0)?)?;
    let f32 = (0..5).all(|i| l.dtype(i) == Some(DType::F32));
    let fits = (1..5).all(|i| l.shape(i).is_ok_and(|s| s.iter().product::<usize>() == c));
    if !f32 || !fits || trained_outputs(l.attrs)?.is_some() {
        return Ok(None);
    }
    let operand = |strides: &[usize]| Operand { element: Element::F32, strides: strides.to_vec() };
    let map = |name: &str, constants, shape: &[usize], operands| {
        let shape = shape.to_vec();
        Map { function: function(name)?, constants, shape, operands, result: Element::F32 }.call()
    };
    let mut out = Recorded::default();
    let scale = out.scratch(4 * c);
    let call = map("BatchScale", vec![l.attrs.float("epsilon", 1e-5)?], &[c], vec![operand(&[1]), operand(&[1])]);
    let Some(out) = out.and(call, vec![At::In(1), At::In(4), scale.clone()]) else { return Ok(None) };
    let each = || operand(&[0, 1, 0]);
    let call = map("BatchShift", vec![], &[n, c, len], vec![operand(&[c * len, len, 1]), each(), each(), each()]);
    Ok(out.and(call, vec![At::In(0), At::In(3), scale, At::In(2), At::Out(0)]))
})
.vjp(batch_vjp);

/// Outside of training the moments are constants: `dx = dy · scale / root`, `dscale = Σ dy · (x - mean) / root`,
/// `dB = Σ dy`.
fn batch_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let attrs = b.attrs();
    if trained_outputs(&attrs)?.is_some() {
        return Err(OpError::unsupported("a gradient through BatchNormalization in training: export it for inference"));
    }
    if b.wants(3) || b.wants(4) {
        return Err(OpError::unsupported("a gradient by the moments of BatchNormalization"));
    }
    let (dy, x) = (b.dy()?, b.x(0)?);
    let shape = b.shape(x).to_vec();
    let (n, c, len) = batch_layout(&attrs, &shape)?;
    let (dtype, own) = (b.dtype(x), b.x_shape(1)?);
    let epsilon = b.scalar(dtype, f64::from(attrs.float("epsilon", 1e-5)?))?;
    let (scale, mean, var) = (b.x(1)?, b.x(3)?, b.x(4)?);
    let root = b.add(var, epsilon)?;
    let root = b.unary("Sqrt", root)?;
    let dy = b.reshape(dy, &[n, c, len])?;
    if b.wants(0) {
        let factor = b.div(scale, root)?;
        let factor = b.reshape(factor, &[c, 1])?;
        let dx = b.mul(dy, factor)?;
        let dx = b.reshape(dx, &shape)?;
        b.give(0, dx);
    }
    if b.wants(1) {
        let (x, mean, root) = (b.reshape(x, &[n, c, len])?, b.reshape(mean, &[c, 1])?, b.reshape(root, &[c, 1])?);
        let centred = b.sub(x, mean)?;
        let product = b.mul(dy, centred)?;
        let sum = b.sum(product, &[0, 2])?;
        let g = b.div(sum, root)?;
        let g = b.reshape(g, &own)?;
        b.give(1, g);
    }
    if b.wants(2) {
        let own = b.x_shape(2)?;
        let sum = b.sum(dy, &[0, 2])?;
        let g = b.reshape(sum, &own)?;
        b.give(2, g);
    }
    Ok(())
}

/// How many outputs follow the first in training; `None` outside of it. Versions before 14 say so by asking for them,
/// and have the moments of the batch as fourth and fifth output.
fn trained_outputs(attrs: &Attrs) -> Result<Option<usize>, OpError> {
    if attrs.opset >= 14 {
        return Ok(attrs.flag("training_mode", false)?.then_some(2));
    }
    Ok((attrs.outputs > 1).then_some(4))
}

/// `[N, C, L]`; before opset 9 every element of an example can be a channel.
fn batch_layout(attrs: &Attrs, shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
    let (n, c, len) = channels(shape)?;
    Ok(if attrs.opset < 9 && !attrs.flag("spatial", true)? { (n, c * len, 1) } else { (n, c, len) })
}

fn batch_normalization(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let (n, c, len) = batch_layout(attrs, x.shape())?;
    let scale = parameter(need(inputs, 1, "scale")?, c, "scale")?;
    let offset = parameter(need(inputs, 2, "B")?, c, "B")?;
    let (mean_in, var_in) = (need(inputs, 3, "input_mean")?, need(inputs, 4, "input_var")?);
    let mut mean = parameter(mean_in, c, "input_mean")?;
    let mut var = parameter(var_in, c, "input_var")?;
    let epsilon = f64::from(attrs.float("epsilon", 1e-5)?);
    let mut v = x.data().to_f64();
    let mut more = Vec::new();
    if trained_outputs(attrs)?.is_some() {
        let momentum = f64::from(attrs.float("momentum", 0.9)?);
        let (mut running_mean, mut running_var) = (mean.clone(), var.clone());
        for ch in 0..c {
            let of = (0..n).flat_map(|b| &v[(b * c + ch) * len..(b * c + ch + 1) * len]).copied();
            (mean[ch], var[ch]) = moments(of);
            running_mean[ch] = running_mean[ch] * momentum + mean[ch] * (1.0 - momentum);
            running_var[ch] = running_var[ch] * momentum + var[ch] * (1.0 - momentum);
        }
        let (dtype, shape) = (mean_in.dtype(), mean_in.shape());
        for values in [&running_mean, &running_var, &mean, &var] {
            more.push(Tensor::from_f64(dtype, shape, values)?);
        }
        if attrs.opset >= 14 {
            more.truncate(2);
        }
    }
    for (i, row) in v.chunks_exact_mut(len.max(1)).enumerate() {
        let ch = i % c.max(1);
        let root = (var[ch] + epsilon).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean[ch]) / root * scale[ch] + offset[ch]);
    }
    more.insert(0, Tensor::from_f64(x.dtype(), x.shape(), &v)?);
    Ok(more)
}

/// The factor and summand of each channel, from scale, offset, mean and variance.
fn scale_and_shift(epsilon: f32, parameters: [&[f32]; 4], scale: &mut [f32], shift: &mut [f32]) {
    let [gain, offset, mean, var] = parameters;
    for c in 0..scale.len() {
        let s = f64::from(gain[c]) / (f64::from(var[c]) + f64::from(epsilon)).sqrt();
        scale[c] = s as f32;
        shift[c] = (f64::from(offset[c]) - f64::from(mean[c]) * s) as f32;
    }
}

struct Affine {
    c: usize,
    len: usize,
    epsilon: f32,
    /// Factors and summands, when the parameters are constants.
    frozen: Option<(Vec<f32>, Vec<f32>)>,
}

impl Kernel for Affine {
    fn name(&self) -> &'static str {
        "affine-channels"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        if let Some((scale, shift)) = &self.frozen {
            return normalise::affine(self.len, reads.f32(0), scale, shift, writes.f32(0));
        }
        let (scale, rest) = scratch.split_at_mut(self.c);
        let shift = &mut rest[..self.c];
        let parameters = [reads.f32(1), reads.f32(2), reads.f32(3), reads.f32(4)];
        scale_and_shift(self.epsilon, parameters, scale, shift);
        normalise::affine(self.len, reads.f32(0), scale, shift, writes.f32(0));
    }
}

/// Local response normalisation: `x / (bias + alpha / size · Σ x²)^beta` over `size` neighbouring channels.
pub(super) static LRN: OpDef = OpDef::new(
    "LRN",
    "x / (bias + alpha / size · Σ x²)^beta over neighbouring channels",
    same_as_input,
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let p = Response::new(attrs, x.shape())?;
        let v = x.data().to_f64();
        let mut y = Vec::with_capacity(v.len());
        for i in 0..v.len() {
            let (at, block) = (i / p.len % p.c, i / (p.c * p.len) * p.c * p.len + i % p.len);
            let sum: f64 = p.window(at).map(|c| v[block + c * p.len].powi(2)).sum();
            y.push(v[i] / (f64::from(p.bias) + f64::from(p.alpha) / p.size as f64 * sum).powf(f64::from(p.beta)));
        }
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
    },
)
.kernel(|l: &Lowering<'_>| {
    if l.dtype(0) != Some(DType::F32) {
        return no_kernel(l);
    }
    Ok(Some(Lowered::new(Response::new(l.attrs, l.shape(0)?)?, vec![0])))
})
.vjp(|b| {
    b.through(|b| {
        let x = b.x(0)?;
        let shape = b.shape(x).to_vec();
        let p = Response::new(&b.attrs(), &shape)?;
        let n = shape.first().copied().unwrap_or(1);
        let rows = b.reshape(x, &[n, p.c, p.len])?;
        let square = b.mul(rows, rows)?;
        let before = (p.size - 1) / 2;
        let pads = b.ints([0, before as i64, 0, 0, (p.size - 1 - before) as i64, 0])?;
        let wide = b.standard("Pad", [], &[square, pads])?;
        let mut sum = b.slice(wide, 1, 0, p.c)?;
        for k in 1..p.size {
            let next = b.slice(wide, 1, k, k + p.c)?;
            sum = b.add(sum, next)?;
        }
        let sum = b.scaled(sum, f64::from(p.alpha) / p.size as f64)?;
        let bias = b.scalar_like(x, f64::from(p.bias))?;
        let base = b.add(sum, bias)?;
        let power = b.scalar_like(x, -f64::from(p.beta))?;
        let factor = b.binary("Pow", base, power)?;
        let y = b.mul(rows, factor)?;
        Ok(vec![b.reshape(y, &shape)?])
    })
});

struct Response {
    c: usize,
    len: usize,
    size: usize,
    alpha: f32,
    beta: f32,
    bias: f32,
}

impl Response {
    fn new(attrs: &Attrs, shape: &[usize]) -> Result<Response, OpError> {
        let (_, c, len) = channels(shape)?;
        let size = attrs.int("size", 0)?;
        let size = usize::try_from(size).ok().filter(|&s| s > 0);
        Ok(Response {
            c,
            len,
            size: size.ok_or_else(|| OpError::attribute("size", "is not a positive number of channels"))?,
            alpha: attrs.float("alpha", 1e-4)?,
            beta: attrs.float("beta", 0.75)?,
            bias: attrs.float("bias", 1.0)?,
        })
    }

    /// The channels summed for one.
    fn window(&self, c: usize) -> std::ops::Range<usize> {
        let before = (self.size - 1) / 2;
        c.saturating_sub(before)..self.c.min((c + 1).saturating_add(self.size - 1 - before))
    }
}

impl Kernel for Response {
    fn name(&self) -> &'static str {
        "response-channels"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (len, factor) = (self.len, self.alpha / self.size as f32);
        let block = self.c * len;
        if block == 0 {
            return;
        }
        for (x, y) in reads.f32(0).chunks_exact(block).zip(writes.f32(0).chunks_exact_mut(block)) {
            for c in 0..self.c {
                let out = &mut y[c * len..][..len];
                out.fill(0.0);
                for w in self.window(c) {
                    out.iter_mut().zip(&x[w * len..][..len]).for_each(|(o, v)| *o += v * v);
                }
                let x = &x[c * len..][..len];
                if self.beta == 0.75 {
                    // The power nearly all models ask for, by two square roots.
                    for (o, v) in out.iter_mut().zip(x) {
                        let root = (self.bias + factor * *o).sqrt();
                        *o = v / (root * root.sqrt());
                    }
                } else {
                    for (o, v) in out.iter_mut().zip(x) {
                        *o = v / (self.bias + factor * *o).powf(self.beta);
                    }
                }
            }
        }
    }
}
