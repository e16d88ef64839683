//! `RotaryEmbedding` of the standard (opset 23) and of ONNX Runtime: pairs of features turned by the token's angle.
use std::ops::{Add, Mul, Sub};

use super::core::head_size;
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, ints_of, need, optional, shape::same_as_input};
use crate::plan::{Fallible, Io, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `X [B, H, T, D]` or `[B, T, H·D]`, `cos_cache`, `sin_cache`, `position_ids`.
pub(super) static ROTARY_EMBEDDING: OpDef =
    OpDef::new("RotaryEmbedding", "rotary position embedding of heads", same_as_input, |attrs, inputs| {
        reference(attrs, inputs, Dialect::Standard)
    })
    .kernel(|l| lower(l, Dialect::Standard))
    .vjp(|b| super::backward::rotary(b, 2));

/// The same with the position ids second.
pub(super) static MICROSOFT_ROTARY_EMBEDDING: OpDef =
    OpDef::new("RotaryEmbedding", "rotary position embedding of heads", same_as_input, |attrs, inputs| {
        reference(attrs, inputs, Dialect::Microsoft)
    })
    .domain(MICROSOFT)
    .kernel(|l| lower(l, Dialect::Microsoft))
    .vjp(|b| super::backward::rotary(b, 3));

/// Whose operator it is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Dialect {
    Standard,
    Microsoft,
}

/// What turns and what is turned, by shapes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) b: usize,
    pub(super) heads: usize,
    pub(super) tokens: usize,
    /// Head size.
    pub(super) d: usize,
    /// How many of the `d` features turn, from the front.
    pub(super) turned: usize,
    /// Heads stand before tokens.
    pub(super) heads_first: bool,
    pub(super) interleaved: bool,
    /// Inputs of the cosines, the sines and the positions.
    pub(super) operands: [usize; 3],
    pub(super) angles: Angles,
    /// Rows of the caches.
    pub(super) rows: usize,
}

/// Which row of the caches a token takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Angles {
    /// Its own: the caches are `[B, T, turned / 2]`.
    Own,
    /// The one its position id names.
    Position,
    /// The one the only position id names, plus the token's number.
    From,
}

impl Call {
    /// `of(i)` is the shape of input `i`.
    pub(super) fn new<'a>(
        attrs: &Attrs,
        dialect: Dialect,
        of: impl Fn(usize) -> Option<&'a [usize]>,
    ) -> Result<Call, OpError> {
        let operands = if dialect == Dialect::Standard { [1, 2, 3] } else { [2, 3, 1] };
        let must = |index: usize, name: &'static str| of(index).ok_or(OpError::MissingInput { index, name });
        let x = must(0, "X")?;
        let (cos, sin) = (must(operands[0], "cos_cache")?, must(operands[1], "sin_cache")?);
        let half = cos.last().copied().unwrap_or(0);
        let rotary = usize::try_from(attrs.int("rotary_embedding_dim", 0)?).unwrap_or(usize::MAX);
        let heads_given = usize::try_from(attrs.int("num_heads", 0)?).unwrap_or(0);
        let (b, heads, tokens, d, heads_first) = match *x {
            [b, heads, tokens, d] => (b, heads, tokens, d, true),
            [b, tokens, width] => {
                let heads = match (heads_given, dialect) {
                    (0, Dialect::Microsoft) => width.checked_div(2 * half).unwrap_or(0),
                    (n, _) => n,
                };
                (b, heads, tokens, head_size("num_heads", heads, width)?, false)
            }
            _ => return Err(OpError::shape("X", "rank 3 or 4", x)),
        };
        let turned = if rotary == 0 { d } else { rotary };
        if turned > d || !turned.is_multiple_of(2) || half != turned / 2 || cos != sin {
            return Err(OpError::shape(
                "cos_cache and sin_cache",
                format!("rows of {} for {d}", turned / 2),
                (cos, sin),
            ));
        }
        let angles = match of(operands[2]) {
            None if dialect == Dialect::Standard => Angles::Own,
            None => return Err(OpError::MissingInput { index: 1, name: "position_ids" }),
            Some(ids) if ids == [b, tokens] => Angles::Position,
            Some([] | [1] | [1, 1]) if dialect == Dialect::Microsoft => Angles::From,
            Some(ids) => return Err(OpError::shape("position_ids", [b, tokens], ids)),
        };
        let fits = if angles == Angles::Own { cos == [b, tokens, half] } else { cos.len() == 2 };
        if !fits {
            return Err(OpError::shape("cos_cache", "[positions, half], or [B, T, half] without position ids", cos));
        }
        let rows = if angles == Angles::Own { b * tokens } else { cos[0] };
        let interleaved = attrs.flag("interleaved", false)?;
        Ok(Call { b, heads, tokens, d, turned, heads_first, interleaved, operands, angles, rows })
    }

    /// The row of the caches for a token, before it is checked against their length. `ids` are the position ids.
    pub(super) fn row(&self, batch: usize, token: usize, ids: &[i64]) -> i64 {
        match self.angles {
            Angles::Own => (batch * self.tokens + token) as i64,
            Angles::Position => ids[batch * self.tokens + token],
            Angles::From => ids[0].saturating_add(token as i64),
        }
    }

    /// Where the features of a head of a token start.
    pub(super) fn start(&self, batch: usize, head: usize, token: usize) -> usize {
        let at = if self.heads_first {
            (batch * self.heads + head) * self.tokens + token
        } else {
            (batch * self.tokens + token) * self.heads + head
        };
        at * self.d
    }
}

/// Turns the first `2 · cos.len()` features of `x`: pairs `(x1, x2)` become `(cos·x1 - sin·x2, sin·x1 + cos·x2)`. Pairs are
/// neighbours when `interleaved`, otherwise `cos.len()` apart.
#[inline(always)]
pub(super) fn turn<T>(x: &mut [T], cos: &[T], sin: &[T], interleaved: bool)
where
    T: Copy + Mul<Output = T> + Add<Output = T> + Sub<Output = T>,
{
    let half = cos.len();
    let turned = |x1: T, x2: T, c: T, s: T| (c * x1 - s * x2, s * x1 + c * x2);
    if interleaved {
        for (pair, (&c, &s)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
            (pair[0], pair[1]) = turned(pair[0], pair[1], c, s);
        }
    } else {
        let (first, second) = x.split_at_mut(half);
        for ((x1, x2), (&c, &s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            (*x1, *x2) = turned(*x1, *x2, c, s);
        }
    }
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>], dialect: Dialect) -> Result<Vec<Tensor>, OpError> {
    let c = Call::new(attrs, dialect, |i| optional(inputs, i).map(Tensor::shape))?;
    let x = need(inputs, 0, "X")?;
    let (cos, sin) = (need(inputs, c.operands[0], "cos_cache")?, need(inputs, c.operands[1], "sin_cache")?);
    let (cos, sin) = (cos.data().to_f64(), sin.data().to_f64());
    let ids = optional(inputs, c.operands[2]).map(ints_of).unwrap_or_default();
    let half = c.turned / 2;
    let mut y = x.data().to_f64();
    for batch in 0..c.b {
        for token in 0..c.tokens {
            let row = row_of(c.row(batch, token, &ids), c.rows)?;
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            for head in 0..c.heads {
                turn(&mut y[c.start(batch, head, token)..][..c.d], cos, sin, c.interleaved);
            }
        }
    }
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
}

/// A row of the caches.
///
/// # Errors
/// [`OpError::Shape`] when there is none of that number.
pub(super) fn row_of(row: i64, rows: usize) -> Result<usize, OpError> {
    usize::try_from(row)
        .ok()
        .filter(|&r| r < rows)
        .ok_or_else(|| OpError::shape("a position id", format!("below {rows}"), row))
}

/// The kernel for `f32`.
struct Turned {
    call: Call,
    ids: bool,
}

fn lower(l: &Lowering<'_>, dialect: Dialect) -> Result<Option<Lowered>, OpError> {
    let call = Call::new(l.attrs, dialect, |i| l.shape(i).ok())?;
    let [cos, sin, ids] = call.operands;
    if [0, cos, sin].iter().any(|&i| l.dtype(i) != Some(DType::F32)) || call.rows == 0 {
        return Ok(None);
    }
    let mut reads = vec![0, cos, sin];
    if l.has(ids) {
        if l.dtype(ids) != Some(DType::I64) || l.shape(ids)?.iter().product::<usize>() == 0 {
            return Ok(None);
        }
        reads.push(ids);
    }
    Ok(Some(Lowered::new(Turned { call, ids: l.has(ids) }, reads)))
}

impl Fallible for Turned {
    fn name(&self) -> &'static str {
        "rotary-f32"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let c = &self.call;
        let half = c.turned / 2;
        let (cos, sin) = (reads.f32(1), reads.f32(2));
        let ids = if self.ids { reads.i64(3) } else { &[] };
        let y = writes.f32(0);
        y.copy_from_slice(reads.f32(0));
        for batch in 0..c.b {
            for token in 0..c.tokens {
                let row = row_of(c.row(batch, token, ids), c.rows)?;
                let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
                for head in 0..c.heads {
                    turn(&mut y[c.start(batch, head, token)..][..c.d], cos, sin, c.interleaved);
                }
            }
        }
        Ok(())
    }
}
