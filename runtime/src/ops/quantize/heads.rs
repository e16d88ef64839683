//! Kernel of `QAttention` on `f32` scales with a constant weight.
//!
//! Dimension letters as in [`super::attention`].
use hone_kernels::epilogue::Epilogue;
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::rows::softmax;

use super::attention::{Heads, MaskRule};
use super::product::{Codes8, Lie, Right, To, code_at};
use crate::ops::OpError;
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::DType;

struct Attention {
    g: Heads,
    projection: Right,
    signed: bool,
    rule: MaskRule,
    scale: f32,
    /// Slots of the operands after input, bias, input scale and weight scale.
    mask: Option<usize>,
    zero: Option<usize>,
    past: Option<usize>,
    /// Whether the keys and values are a result too.
    present: bool,
}

impl Attention {
    /// Floats of the parts of scratch: projections, scales, sums; keys and values; a packed head; scores; probabilities; a
    /// head's result.
    fn scratch(&self) -> [usize; 7] {
        let Heads { b, s, n, d, t, .. } = self.g;
        [
            b * s * 3 * n * d,
            3 * n * d,
            self.projection.scratch(b * s, self.signed),
            if self.present { 0 } else { 2 * b * n * t * d },
            gemm::packed_len(t, d).max(gemm::packed_len(d, t)),
            2 * s * t,
            s * d,
        ]
    }
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "qattention"
    }

    fn run(&self, io: &mut Io<'_>) {
        let Heads { b, s, n, d, t, .. } = self.g;
        let (h, columns) = (n * d, 3 * n * d);
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let sizes = self.scratch();
        let mut rest = scratch;
        let mut part = |i: usize| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(sizes[i]);
            rest = tail;
            head
        };
        let (qkv, scales, work, own) = (part(0), part(1), part(2), part(3));
        let (packed, scores, result) = (part(4), part(5), part(6));
        let (x_scale, w_scale) = (reads.f32(2)[0], reads.f32(3));
        let zero = self.zero.map_or(0, |slot| code_at(reads, slot, self.signed));
        for (j, scale) in scales.iter_mut().enumerate() {
            *scale = x_scale * w_scale[if w_scale.len() == 1 { 0 } else { j }];
        }
        let x = Codes8 { codes: reads.bytes(0), signed: self.signed, zero };
        let to = To::Floats { scale: scales, bias: Some(reads.f32(1)), epilogue: Epilogue::default(), y: qkv };
        self.projection.product(pool, b * s, &x, &[], work, to);
        let before = t - s;
        {
            let present: &mut [f32] = if self.present { writes.f32(1) } else { &mut *own };
            for (plane, to) in present.chunks_exact_mut(t * d).enumerate() {
                let (kv, bb, head) = (plane / (b * n), plane / n % b, plane % n);
                if let Some(slot) = self.past {
                    to[..before * d].copy_from_slice(&reads.f32(slot)[plane * before * d..][..before * d]);
                }
                for (step, row) in to[before * d..].chunks_exact_mut(d).enumerate() {
                    row.copy_from_slice(&qkv[(bb * s + step) * columns + (kv + 1) * h + head * d..][..d]);
                }
            }
        }
        let mask: &[i32] = self.mask.map_or(&[], |slot| bytemuck::cast_slice(reads.bytes(slot)));
        let (scores, probabilities) = scores.split_at_mut(s * t);
        for bb in 0..b {
            for head in 0..n {
                let plane = (bb * n + head) * t * d;
                let present: &[f32] = if self.present { writes.f32(1) } else { own };
                let (keys, values) = (&present[plane..][..t * d], &present[plane + b * n * t * d..][..t * d]);
                gemm::pack(t, d, |j, k| keys[j * d + k], packed);
                let x = &qkv[bb * s * columns + head * d..];
                product(s, d, t, x, columns, packed, scores);
                for (step, row) in scores.chunks_exact_mut(t).enumerate() {
                    for (i, v) in row.iter_mut().enumerate() {
                        *v = *v * self.scale + self.rule.added(|k| i64::from(mask[k]), bb, step, i);
                    }
                }
                softmax(t, scores, probabilities);
                gemm::pack(d, t, |j, k| values[k * d + j], packed);
                product(s, t, d, probabilities, t, packed, result);
                for (step, row) in result.chunks_exact(d).enumerate() {
                    writes.f32(0)[(bb * s + step) * h + head * d..][..d].copy_from_slice(row);
                }
            }
        }
    }
}

fn product(m: usize, k: usize, n: usize, x: &[f32], x_stride: usize, w: &[f32], y: &mut [f32]) {
    gemm::gemm(&Gemm { m, k, n, x, x_stride, w: Packed::F32(w), bias: None, accumulate: false }, y);
}

/// `QAttention`.
pub(super) fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(w) = l.constant(1) else { return Ok(None) };
    let Some(x @ (DType::U8 | DType::I8)) = l.dtype(0) else { return Ok(None) };
    let past = if l.has(8) { Some(l.shape(8)?) } else { None };
    let g = Heads::of(l.attrs, l.shape(0)?, w.shape(), past)?;
    let columns = 3 * g.n * g.d;
    let len = |i: usize| l.shape(i).map(|s| s.iter().product::<usize>());
    let f32 = |i: usize| !l.has(i) || l.dtype(i) == Some(DType::F32);
    let fits = [2, 3, 4, 8].into_iter().all(f32)
        && len(2)? == columns
        && len(3)? == 1
        && (len(4)? == 1 || len(4)? == columns)
        && (!l.has(5) || l.dtype(5) == Some(DType::I32))
        && (!l.has(6) || (len(6)? == 1 && l.dtype(6) == Some(x)))
        && (!l.has(7) || l.constant(7).is_some())
        && g.b * g.s > 0;
    if !fits {
        return Ok(None);
    }
    let zero = l.constant(7).map(|z| &**z);
    let Some(projection) = Right::of(l, w, zero, g.i, columns, Lie::rows(columns))? else { return Ok(None) };
    let mask = if l.has(5) { Some(l.shape(5)?) } else { None };
    let rule = MaskRule::of(l.attrs, mask, g.b, g.s, g.t)?;
    let scale = match l.attrs.float("scale", 0.0)? {
        0.0 => 1.0 / (g.d as f32).sqrt(),
        v => v,
    };
    let mut reads = vec![0, 2, 3, 4];
    let mut slot = |k: usize| {
        l.has(k).then(|| {
            reads.push(k);
            reads.len() - 1
        })
    };
    let (mask, zero, past) = (slot(5), slot(6), slot(8));
    let bytes = projection.bytes();
    let present = l.wants(1);
    let k = Attention { g, projection, signed: x == DType::I8, rule, scale, mask, zero, past, present };
    let scratch = k.scratch().iter().sum();
    Ok(Some(Lowered::new(k, reads).with_scratch(scratch).with_weights(bytes)))
}
