//! The causal depthwise convolution of state-space and gated-delta models, with its carried state.
use hone_kernels::activation::sigmoid;

use super::rounded;
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `y[n, c, t] = activation(bias[c] + Σ_k w[c, 0, k] · padded[n, c, t + k])`, where `padded` is `past_state` (zeros when
/// absent) followed by the input along time; `present_state` is the last `K - 1` steps of `padded`.
pub(super) static CAUSAL_CONV_WITH_STATE: OpDef = OpDef::new(
    "CausalConvWithState",
    "causal depthwise convolution over time with carried state and optional SiLU",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "input")?, need(inputs, 1, "weight")?);
        let shapes = [optional(inputs, 2), optional(inputs, 3)].map(|f| f.map(|f| &f.shape[..]));
        let c = Causal::of(attrs, &x.shape, &w.shape, shapes[0], shapes[1])?;
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone()), Fact::new(x.dtype, c.state_shape())]))
    },
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "input")?, need(inputs, 1, "weight")?);
        let (bias, past) = (optional(inputs, 2), optional(inputs, 3));
        let c = Causal::of(attrs, x.shape(), w.shape(), bias.map(Tensor::shape), past.map(Tensor::shape))?;
        let (xs, ws) = (x.data().to_f64(), w.data().to_f64());
        let bias = bias.map(|b| b.data().to_f64());
        let past = match past {
            Some(p) => p.data().to_f64(),
            None => vec![0.0; crate::ops::shape::elements(&c.state_shape())?],
        };
        let mut y = Vec::with_capacity(xs.len());
        let mut present = Vec::with_capacity(past.len());
        let mut padded = Vec::with_capacity(c.k - 1 + c.length);
        for row in 0..c.rows {
            let channel = row % c.channels;
            padded.clear();
            padded.extend_from_slice(&past[row * (c.k - 1)..][..c.k - 1]);
            padded.extend_from_slice(&xs[row * c.length..][..c.length]);
            let w = &ws[channel * c.k..][..c.k];
            for window in padded.windows(c.k) {
                let bias = bias.as_ref().map_or(0.0, |b| b[channel]);
                y.push(bias + window.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
            }
            present.extend_from_slice(&padded[c.length..]);
        }
        if c.silu {
            // The standard rounds the convolution to the tensor's type before the activation.
            y = rounded(x, &y).into_iter().map(|v| v / (1.0 + (-v).exp())).collect();
        }
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?, Tensor::from_f64(x.dtype(), &c.state_shape(), &present)?])
    },
)
.kernel(lower);

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if (0..l.inputs()).any(|i| l.has(i) && l.dtype(i) != Some(DType::F32)) {
        return Ok(None);
    }
    let shape = |i: usize| if l.has(i) { l.shape(i).map(Some) } else { Ok(None) };
    let causal = Causal::of(l.attrs, l.shape(0)?, l.shape(1)?, shape(2)?, shape(3)?)?;
    let mut reads = vec![0, 1];
    let mut given = |i: usize| {
        l.has(i).then(|| {
            reads.push(i);
            reads.len() - 1
        })
    };
    let (bias, past) = (given(2), given(3));
    let scratch = causal.k - 1 + causal.length;
    Ok(Some(Lowered::new(Rows { causal, bias, past }, reads).with_scratch(scratch)))
}

struct Causal {
    /// `N · C`.
    rows: usize,
    channels: usize,
    length: usize,
    k: usize,
    silu: bool,
    n: usize,
}

impl Causal {
    fn of(
        attrs: &Attrs,
        x: &[usize],
        w: &[usize],
        bias: Option<&[usize]>,
        past: Option<&[usize]>,
    ) -> Result<Causal, OpError> {
        let &[n, channels, length] = x else { return Err(OpError::shape("input", "[N, C, length]", x)) };
        let k = match w {
            &[c, 1, k] if c == channels && k > 0 => k,
            _ => return Err(OpError::shape("weight", format!("[{channels}, 1, K]"), w)),
        };
        if let Some(b) = bias.filter(|b| **b != [channels]) {
            return Err(OpError::shape("bias", [channels], b));
        }
        if let Some(p) = past.filter(|p| **p != [n, channels, k - 1]) {
            return Err(OpError::shape("past_state", [n, channels, k - 1], p));
        }
        let silu = match attrs.str("activation", "none")? {
            "none" | "" => false,
            "silu" | "swish" => true,
            other => return Err(OpError::attribute("activation", format!("is `{other}`"))),
        };
        crate::ops::shape::elements(&[n, channels, k - 1])?;
        Ok(Causal { rows: n * channels, channels, length, k, silu, n })
    }

    fn state_shape(&self) -> Vec<usize> {
        vec![self.n, self.channels, self.k - 1]
    }
}

struct Rows {
    causal: Causal,
    /// Position among the operands read.
    bias: Option<usize>,
    past: Option<usize>,
}

impl Kernel for Rows {
    fn name(&self) -> &'static str {
        "conv-causal-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let c = &self.causal;
        let (reads, writes, padded) = io.parts();
        let (x, w) = (reads.f32(0), reads.f32(1));
        let state = c.k - 1;
        for row in 0..c.rows {
            let channel = row % c.channels;
            match self.past {
                Some(i) => padded[..state].copy_from_slice(&reads.f32(i)[row * state..][..state]),
                None => padded[..state].fill(0.0),
            }
            padded[state..].copy_from_slice(&x[row * c.length..][..c.length]);
            let present = writes.f32(1);
            if !present.is_empty() {
                present[row * state..][..state].copy_from_slice(&padded[c.length..]);
            }
            let y = writes.f32(0);
            if y.is_empty() {
                continue;
            }
            let y = &mut y[row * c.length..][..c.length];
            y.fill(self.bias.map_or(0.0, |i| reads.f32(i)[channel]));
            for (k, &w) in w[channel * c.k..][..c.k].iter().enumerate() {
                y.iter_mut().zip(&padded[k..]).for_each(|(y, &x)| *y += w * x);
            }
            if c.silu {
                y.iter_mut().for_each(|v| *v *= sigmoid(*v));
            }
        }
    }
}
