//! Layer normalisation of a sum, as transformers use it after ONNX Runtime's optimiser: of a residual, of embeddings.
use hone_kernels::normalise;

use super::backward::plain_rows;
use super::layer::normalised;
use super::parameter;
use crate::autodiff::Backward;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, ints_of, need, no_kernel, optional};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Layer normalisation of `input + skip + bias`.
pub(super) static SKIP_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "SkipLayerNormalization",
    "layer normalisation of input + skip + bias over the last axis",
    skip_shape,
    |attrs, inputs| skip(attrs, inputs, true),
)
.domain(MICROSOFT)
.kernel(|l| lower(l, true))
.vjp(|b| skip_vjp(b, true));

/// The same by the mean square.
pub(super) static SKIP_SIMPLIFIED_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "SkipSimplifiedLayerNormalization",
    "(input + skip + bias) / sqrt(mean square + epsilon) · gamma over the last axis",
    skip_shape,
    |attrs, inputs| skip(attrs, inputs, false),
)
.domain(MICROSOFT)
.kernel(|l| lower(l, false))
.vjp(|b| skip_vjp(b, false));

/// By way of the sum and a layer normalisation of it.
fn skip_vjp(b: &mut Backward<'_>, centred: bool) -> Result<(), OpError> {
    if b.dy_of(1).is_some() || b.dy_of(2).is_some() {
        return Err(OpError::unsupported("a gradient through the moments of a fused layer normalisation"));
    }
    b.through(|b| {
        let (x, skip, gamma) = (b.x(0)?, b.x(1)?, b.x(2)?);
        let mut sum = b.add(x, skip)?;
        if let Some(bias) = b.optional(bias_index(centred)) {
            sum = b.add(sum, bias)?;
        }
        let epsilon = b.attrs().float("epsilon", EPSILON)?;
        let mut y = plain_rows(b, sum, Some(gamma), epsilon, centred)?;
        if centred && let Some(beta) = b.optional(3) {
            y = b.add(y, beta)?;
        }
        Ok(vec![y, y, y, sum])
    })
}

/// Epsilon of the operators here when none is given.
const EPSILON: f32 = 1e-12;

/// Where the bias is among the inputs: after `gamma` and, when centred, `beta`.
fn bias_index(centred: bool) -> usize {
    if centred { 4 } else { 3 }
}

fn last(shape: &[usize], name: &str) -> Result<usize, OpError> {
    shape.last().copied().ok_or_else(|| OpError::shape(name, "[…, H]", shape))
}

/// Output, mean, inverse of the root, and the sum that was normalised.
fn skip_shape(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "input")?;
    last(&x.shape, "input")?;
    let mut moments = x.shape.clone();
    if let Some(d) = moments.last_mut() {
        *d = 1;
    }
    let (y, m) = (Fact::new(x.dtype, x.shape.clone()), Fact::new(DType::F32, moments));
    Ok(Some(vec![y.clone(), m.clone(), m, y]))
}

fn skip(attrs: &Attrs, inputs: &[Option<&Tensor>], centred: bool) -> Result<Vec<Tensor>, OpError> {
    let (x, skip, gamma) = (need(inputs, 0, "input")?, need(inputs, 1, "skip")?, need(inputs, 2, "gamma")?);
    let n = last(x.shape(), "input")?;
    let mut v = x.data().to_f64();
    check_skip(x.shape(), skip.shape())?;
    let s = skip.data().to_f64();
    v.iter_mut().zip(s.iter().cycle()).for_each(|(v, s)| *v += s);
    if let Some(bias) = optional(inputs, bias_index(centred)) {
        let bias = parameter(bias, n, "bias")?;
        v.iter_mut().zip(bias.iter().cycle()).for_each(|(v, b)| *v += b);
    }
    let rows = x.shape()[..x.shape().len() - 1].iter().product();
    let epsilon = f64::from(attrs.float("epsilon", EPSILON)?);
    let y = normalised(v.clone(), rows, n, epsilon, centred);
    let gamma = parameter(gamma, n, "gamma")?;
    let beta = match optional(inputs, 3) {
        Some(beta) if centred => parameter(beta, n, "beta")?,
        _ => vec![0.0; n],
    };
    let scaled: Vec<f64> = y.rows.iter().enumerate().map(|(i, v)| v * gamma[i % n] + beta[i % n]).collect();
    let mut moments = x.shape().to_vec();
    if let Some(d) = moments.last_mut() {
        *d = 1;
    }
    Ok(vec![
        Tensor::from_f64(x.dtype(), x.shape(), &scaled)?,
        Tensor::from_f64(DType::F32, &moments, &y.mean)?,
        Tensor::from_f64(DType::F32, &moments, &y.inverse)?,
        Tensor::from_f64(x.dtype(), x.shape(), &v)?,
    ])
}

/// The skip is of the input's shape, or lacks the batch, or has a batch of one.
fn check_skip(x: &[usize], skip: &[usize]) -> Result<(), OpError> {
    let bare = &skip[skip.iter().take_while(|&&d| d == 1).count().min(skip.len().saturating_sub(1))..];
    if !skip.is_empty() && skip.len() <= x.len() && x.ends_with(bare) {
        return Ok(());
    }
    Err(OpError::shape("skip", format!("the last axes of {x:?}"), skip))
}

fn lower(l: &Lowering<'_>, centred: bool) -> Result<Option<Lowered>, OpError> {
    let bias = bias_index(centred);
    let n = last(l.shape(0)?, "input")?;
    let mut reads = vec![0, 1, 2];
    let mut next = |wanted: bool, i: usize| {
        (wanted && l.has(i)).then(|| {
            reads.push(i);
            reads.len() - 1
        })
    };
    let (beta, bias) = (next(centred, 3), next(true, bias));
    let f32 = reads.iter().all(|&i| l.dtype(i) == Some(DType::F32));
    let rows = reads[2..].iter().all(|&i| l.shape(i).is_ok_and(|s| s.iter().product::<usize>() == n));
    check_skip(l.shape(0)?, l.shape(1)?)?;
    if !f32 || !rows || l.wants(1) || l.wants(2) {
        return no_kernel(l);
    }
    let kernel = Skip { n, centred, beta, bias, epsilon: l.attrs.float("epsilon", EPSILON)?, sum: l.wants(3) };
    Ok(Some(Lowered::new(kernel, reads).with_scratch(n)))
}

struct Skip {
    n: usize,
    centred: bool,
    /// Positions among what it reads.
    beta: Option<usize>,
    bias: Option<usize>,
    epsilon: f32,
    sum: bool,
}

impl Kernel for Skip {
    fn name(&self) -> &'static str {
        if self.centred { "skip-layer-norm-rows" } else { "skip-rms-norm-rows" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let n = self.n;
        if n == 0 || reads.f32(0).is_empty() {
            return;
        }
        let row = &mut scratch[..n];
        let (gamma, beta) = (reads.f32(2), self.beta.map(|i| reads.f32(i)));
        let f = if self.centred { normalise::layer_norm } else { normalise::rms_norm };
        let skips = reads.f32(1).chunks_exact(n).cycle();
        for (i, (x, skip)) in reads.f32(0).chunks_exact(n).zip(skips).enumerate() {
            match self.bias {
                Some(bias) => {
                    let bias = reads.f32(bias);
                    (0..n).for_each(|j| row[j] = x[j] + skip[j] + bias[j]);
                }
                None => (0..n).for_each(|j| row[j] = x[j] + skip[j]),
            }
            if self.sum {
                writes.f32(3)[i * n..][..n].copy_from_slice(row);
            }
            f(n, self.epsilon, row, gamma, beta, &mut writes.f32(0)[i * n..][..n]);
        }
    }
}

/// Layer normalisation of the sum of a word's, a position's and a segment's embedding; the second output counts the ones
/// of each row of the mask, the third is the sum.
pub(super) static EMBED_LAYER_NORMALIZATION: OpDef = OpDef::new(
    "EmbedLayerNormalization",
    "layer normalisation of word + position + segment embeddings",
    |_, inputs| {
        let (ids, words) = (need(inputs, 0, "input_ids")?, need(inputs, 2, "word_embedding")?);
        let shape = [&ids.shape[..], &[last(&words.shape, "word_embedding")?]].concat();
        let y = Fact::new(words.dtype, shape);
        let batch = ids.shape.first().copied().unwrap_or(1);
        Ok(Some(vec![y.clone(), Fact::new(DType::I32, [batch]), y]))
    },
    embed,
)
.domain(MICROSOFT)
.vjp(|b| {
    b.through(|b| {
        let (ids, words, places, gamma, beta) = (b.x(0)?, b.x(2)?, b.x(3)?, b.x(5)?, b.x(6)?);
        let mut sum = b.binary("Gather", words, ids)?;
        let length = b.shape(ids).last().copied().unwrap_or(0);
        let at = match b.optional(8) {
            Some(own) => own,
            None => b.ints(0..length as i64)?,
        };
        let place = b.binary("Gather", places, at)?;
        sum = b.add(sum, place)?;
        if let (Some(segments), Some(table)) = (b.optional(1), b.optional(4)) {
            let segment = b.binary("Gather", table, segments)?;
            sum = b.add(sum, segment)?;
        }
        let epsilon = b.attrs().float("epsilon", EPSILON)?;
        let y = plain_rows(b, sum, Some(gamma), epsilon, true)?;
        let y = b.add(y, beta)?;
        Ok(vec![y, y, sum])
    })
});

fn embed(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (ids, words) = (need(inputs, 0, "input_ids")?, need(inputs, 2, "word_embedding")?);
    let positions = need(inputs, 3, "position_embedding")?;
    let [batch, length] = *ids.shape() else { return Err(OpError::shape("input_ids", "[B, S]", ids.shape())) };
    let n = last(words.shape(), "word_embedding")?;
    let tokens = batch * length;
    let mut v = vec![0.0; crate::ops::shape::elements(&[batch, length, n])?];
    let mut add = |name: &'static str, table: &Tensor, at: Vec<i64>| -> Result<(), OpError> {
        let [rows, width] = *table.shape() else { return Err(OpError::shape(name, "[rows, H]", table.shape())) };
        if width != n || at.len() < tokens {
            return Err(OpError::shape(name, format!("rows of {n} for {tokens} tokens"), (table.shape(), at.len())));
        }
        let table = table.data().to_f64();
        for (&i, out) in at.iter().zip(v.chunks_exact_mut(n.max(1))) {
            let i = usize::try_from(i).ok().filter(|&i| i < rows);
            let i = i.ok_or_else(|| OpError::shape(name, format!("indices below {rows}"), &at))?;
            out.iter_mut().zip(&table[i * n..(i + 1) * n]).for_each(|(o, v)| *o += v);
        }
        Ok(())
    };
    add("word_embedding", words, ints_of(ids))?;
    let places = match optional(inputs, 8) {
        Some(t) => {
            let own = ints_of(t);
            // One row of positions serves every batch.
            if own.len() == length { own.iter().copied().cycle().take(tokens).collect() } else { own }
        }
        None => (0..batch).flat_map(|_| 0..length as i64).collect(),
    };
    add("position_embedding", positions, places)?;
    if let (Some(segments), Some(table)) = (optional(inputs, 1), optional(inputs, 4)) {
        add("segment_embedding", table, ints_of(segments))?;
    }
    let gamma = parameter(need(inputs, 5, "gamma")?, n, "gamma")?;
    let beta = parameter(need(inputs, 6, "beta")?, n, "beta")?;
    let y = normalised(v.clone(), tokens, n, f64::from(attrs.float("epsilon", EPSILON)?), true);
    let scaled: Vec<f64> = y.rows.iter().enumerate().map(|(i, v)| v * gamma[i % n] + beta[i % n]).collect();
    let mask = optional(inputs, 7).map(ints_of).unwrap_or_default();
    let counts = (0..batch).map(|b| mask.iter().skip(b * length).take(length).filter(|&&m| m == 1).count() as i128);
    let shape = [batch, length, n];
    Ok(vec![
        Tensor::from_f64(words.dtype(), &shape, &scaled)?,
        Tensor::from_i128(DType::I32, &[batch], &counts.collect::<Vec<_>>())?,
        Tensor::from_f64(words.dtype(), &shape, &v)?,
    ])
}
