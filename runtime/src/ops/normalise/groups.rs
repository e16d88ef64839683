//! Normalisation of groups of channels by their own moments; a group of one channel is an instance.
//!
//! Dimension letters: `N` batch, `C` channels, `G` groups, `L` elements of a channel.
use hone_kernels::normalise;

use super::backward::plain_rows;
use super::channels::channels;
use super::{PIECE, moments, parameter};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::shape::same_as_input;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, no_kernel, optional};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Each channel of each example by its own moments.
pub(super) static INSTANCE_NORMALIZATION: OpDef = OpDef::new(
    "InstanceNormalization",
    "(x - mean) / sqrt(var + epsilon) · scale + B, moments of each channel of each example",
    same_as_input,
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let (_, c, _) = channels(x.shape())?;
        grouped(attrs, inputs, c)
    },
)
.kernel(|l| {
    let (_, c, _) = channels(l.shape(0)?)?;
    lower(l, c)
})
.vjp(|b| {
    let (_, c, _) = channels(&b.x_shape(0)?)?;
    vjp(b, c)
});

/// Each group of channels of each example by its own moments; scale and bias by group (opset 18) or channel (21).
pub(super) static GROUP_NORMALIZATION: OpDef = OpDef::new(
    "GroupNormalization",
    "(x - mean) / sqrt(var + epsilon) · scale + bias, moments of each group of channels of each example",
    same_as_input,
    |attrs, inputs| grouped(attrs, inputs, group_count(attrs, "num_groups")?),
)
.kernel(|l| lower(l, group_count(l.attrs, "num_groups")?))
.vjp(|b| {
    let groups = group_count(&b.attrs(), "num_groups")?;
    vjp(b, groups)
});

/// By way of rows that are the groups.
fn vjp(b: &mut Backward<'_>, groups: usize) -> Result<(), OpError> {
    b.through(|b| {
        let (x, epsilon) = (b.x(0)?, b.attrs().float("epsilon", 1e-5)?);
        let y = by_rows(b, x, groups, epsilon, [1, 2])?;
        Ok(vec![y])
    })
}

/// `[N, C, …]` normalised by groups of channels, scaled and shifted by inputs of one element a channel or a group.
fn by_rows(
    b: &mut Backward<'_>,
    x: ValueId,
    groups: usize,
    epsilon: f32,
    parameters: [usize; 2],
) -> Result<ValueId, OpError> {
    let shape = b.shape(x).to_vec();
    let (n, c, len) = channels(&shape)?;
    let each = channels_of(c, groups)?;
    let rows = b.reshape(x, &[n, groups, each * len])?;
    let y = plain_rows(b, rows, None, epsilon, true)?;
    let mut y = b.reshape(y, &[n, c, len])?;
    for (i, op) in parameters.into_iter().zip(["Mul", "Add"]) {
        let p = b.x(i)?;
        let count: usize = b.shape(p).iter().product();
        let p = if count == groups && count != c {
            let p = b.reshape(p, &[groups, 1])?;
            b.expand(p, &[groups, each])?
        } else {
            p
        };
        let p = b.reshape(p, &[c, 1])?;
        y = b.binary(op, y, p)?;
    }
    b.reshape(y, &shape)
}

fn group_count(attrs: &Attrs, name: &str) -> Result<usize, OpError> {
    usize::try_from(attrs.int(name, 0)?)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| OpError::attribute(name, "is not positive"))
}

/// Channels in a group.
fn channels_of(c: usize, groups: usize) -> Result<usize, OpError> {
    if groups == 0 || !c.is_multiple_of(groups) {
        return Err(OpError::shape("channels", format!("a multiple of {groups} groups"), c));
    }
    Ok(c / groups)
}

/// One value a channel of a parameter that has one a channel or one a group.
fn by_channel(t: &Tensor, c: usize, groups: usize, name: &str) -> Result<Vec<f64>, OpError> {
    let v = parameter(t, if t.len() == groups { groups } else { c }, name)?;
    let each = c / v.len().max(1);
    Ok(v.iter().flat_map(|&v| std::iter::repeat_n(v, each)).collect())
}

fn grouped(attrs: &Attrs, inputs: &[Option<&Tensor>], groups: usize) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let (n, c, len) = channels(x.shape())?;
    if x.is_empty() {
        return Ok(vec![x.clone()]);
    }
    let layout = Layout { n, c, len, groups, each: channels_of(c, groups)?, last: false };
    let scale = by_channel(need(inputs, 1, "scale")?, c, groups, "scale")?;
    let offset = by_channel(need(inputs, 2, "bias")?, c, groups, "bias")?;
    let mut v = x.data().to_f64();
    layout.normalise(&mut v, f64::from(attrs.float("epsilon", 1e-5)?), &scale, &offset);
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
}

/// Where the elements of a group are.
struct Layout {
    n: usize,
    c: usize,
    len: usize,
    groups: usize,
    /// Channels of a group.
    each: usize,
    /// Channels are the last axis.
    last: bool,
}

impl Layout {
    fn at(&self, b: usize, c: usize, i: usize) -> usize {
        if self.last { (b * self.len + i) * self.c + c } else { (b * self.c + c) * self.len + i }
    }

    fn normalise(&self, v: &mut [f64], epsilon: f64, scale: &[f64], offset: &[f64]) {
        for b in 0..self.n {
            for g in 0..self.groups {
                let members = g * self.each..(g + 1) * self.each;
                let all = members.clone().flat_map(|c| (0..self.len).map(move |i| (c, i)));
                let (mean, var) = moments(all.map(|(c, i)| v[self.at(b, c, i)]));
                let root = (var + epsilon).sqrt();
                for c in members {
                    for i in 0..self.len {
                        let at = self.at(b, c, i);
                        v[at] = (v[at] - mean) / root * scale[c] + offset[c];
                    }
                }
            }
        }
    }
}

fn lower(l: &Lowering<'_>, groups: usize) -> Result<Option<Lowered>, OpError> {
    let (_, c, len) = channels(l.shape(0)?)?;
    let f32 = (0..3).all(|i| l.dtype(i) == Some(DType::F32));
    let count = |i: usize| l.shape(i).map_or(0, |s| s.iter().product::<usize>());
    let fits = |i: usize| count(i) == c || count(i) == groups;
    if !f32 || c * len == 0 || !fits(1) || !fits(2) {
        return no_kernel(l);
    }
    let epsilon = l.attrs.float("epsilon", 1e-5)?;
    let kernel = Groups { c, len, each: channels_of(c, groups)?, epsilon };
    Ok(Some(Lowered::new(kernel, vec![0, 1, 2]).with_scratch(2 * c)))
}

struct Groups {
    c: usize,
    len: usize,
    each: usize,
    epsilon: f32,
}

impl Kernel for Groups {
    fn name(&self) -> &'static str {
        "group-norm-channels"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (gain, rest) = scratch.split_at_mut(self.c);
        let offset = &mut rest[..self.c];
        for (all, own) in [(&mut *gain, reads.f32(1)), (&mut *offset, reads.f32(2))] {
            let repeats = self.c / own.len();
            all.iter_mut().enumerate().for_each(|(c, v)| *v = own[c / repeats]);
        }
        let block = self.each * self.len;
        let groups = self.c / self.each;
        let x = reads.f32(0);
        let y = writes.f32(0);
        let piece = pool.share(y.len(), block, PIECE);
        pool.pieces(y, piece, |p, y| {
            let inputs = x[p * piece..].chunks_exact(block);
            for (i, (x, y)) in inputs.zip(y.chunks_exact_mut(block)).enumerate() {
                let first = (p * piece / block + i) % groups * self.each;
                let (gain, offset) = (&gain[first..][..self.each], &offset[first..][..self.each]);
                normalise::group_norm(self.len, self.epsilon, x, gain, offset, y);
            }
        });
    }
}

/// Group normalisation of channels that are the last axis, with an activation.
pub(super) static MS_GROUP_NORM: OpDef = OpDef::new(
    "GroupNorm",
    "group normalisation of the channels in the last axis, then SiLU when asked for",
    same_as_input,
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let mut v = x.data().to_f64();
        channels_last(attrs, inputs, x.shape(), &mut v)?;
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?])
    },
)
.domain(MICROSOFT);

/// The same of a sum, which is the second output.
pub(super) static MS_SKIP_GROUP_NORM: OpDef = OpDef::new(
    "SkipGroupNorm",
    "group normalisation of X + skip + bias, channels in the last axis, then SiLU when asked for",
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        let fact = Fact::new(x.dtype, x.shape.clone());
        Ok(Some(vec![fact.clone(), fact]))
    },
    |attrs, inputs| {
        let (x, skip) = (need(inputs, 0, "X")?, need(inputs, 3, "skip")?);
        let (n, c) = (x.shape().first().copied().unwrap_or(1), x.shape().last().copied().unwrap_or(1));
        let mut v = x.data().to_f64();
        let s = skip.data().to_f64();
        // The whole, or one value for each channel of each example.
        if s.len() == v.len() {
            v.iter_mut().zip(&s).for_each(|(v, s)| *v += s);
        } else if s.len() == n * c && !s.is_empty() {
            let example = v.len() / n;
            v.iter_mut().enumerate().for_each(|(i, v)| *v += s[i / example * c + i % c]);
        } else {
            return Err(OpError::shape("skip", x.shape(), skip.shape()));
        }
        if let Some(bias) = optional(inputs, 4) {
            let bias = parameter(bias, c, "bias")?;
            v.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % c]);
        }
        let sum = Tensor::from_f64(x.dtype(), x.shape(), &v)?;
        channels_last(attrs, inputs, x.shape(), &mut v)?;
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &v)?, sum])
    },
)
.domain(MICROSOFT);

fn channels_last(attrs: &Attrs, inputs: &[Option<&Tensor>], shape: &[usize], v: &mut [f64]) -> Result<(), OpError> {
    let last = attrs.flag("channels_last", true)?;
    let (n, c, len) = match *shape {
        [n, ref rest @ .., c] if last => (n, c, rest.iter().product()),
        _ if last => return Err(OpError::shape("X", "[N, …, C]", shape)),
        _ => channels(shape)?,
    };
    let groups = group_count(attrs, "groups")?;
    let layout = Layout { n, c, len, groups, each: channels_of(c, groups)?, last };
    let scale = parameter(need(inputs, 1, "gamma")?, c, "gamma")?;
    let offset = parameter(need(inputs, 2, "beta")?, c, "beta")?;
    layout.normalise(v, f64::from(attrs.float("epsilon", 1e-5)?), &scale, &offset);
    match attrs.int("activation", 0)? {
        0 => {}
        1 => v.iter_mut().for_each(|v| *v /= 1.0 + (-*v).exp()),
        other => return Err(OpError::attribute("activation", format!("{other} is neither none (0) nor SiLU (1)"))),
    }
    Ok(())
}
