//! What is added to the scores before the softmax, as the operators say it: numbers, booleans, lengths, windows.
//!
//! A [`Mask`] is made from shapes alone, and read by the reference and by the kernel.
use crate::ops::{
    OpError,
    shape::{broadcast, broadcast_strides},
};
use crate::tensor::DType;

/// What one operand means for the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// Its numbers are added.
    Add,
    /// Where it is 0 (or below), this number is added.
    Keep(f64),
    /// `[B]`: keys from there on get this number.
    End(f64),
    /// `[2 · B]`: keys from the first `B` on, and keys before the second `B`, get this number.
    EndStart(f64),
}

/// One operand of a mask.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Its meaning.
    pub(crate) meaning: Meaning,
    /// Which input of the node it is.
    pub(crate) operand: usize,
    /// Its element type.
    pub(crate) dtype: DType,
    /// Elements from one batch, head, query and key to the next; 0 on broadcast axes.
    pub(crate) strides: [usize; 4],
    /// Element of the first batch, head, query and key.
    pub(crate) base: usize,
    /// The keys it speaks of; those behind them are hidden.
    pub(crate) keys: std::ops::Range<usize>,
}

impl Layer {
    /// An operand of `shape` that broadcasts to `to`: batches, query heads, queries, keys. Keys beyond those are hidden.
    ///
    /// # Errors
    /// [`OpError::Shape`] naming `name` when it does not broadcast.
    pub(crate) fn broadcast(
        name: &str,
        meaning: Meaning,
        operand: usize,
        (dtype, shape): (DType, &[usize]),
        to: [usize; 4],
    ) -> Result<Layer, OpError> {
        let wrong = || OpError::shape(name, to, shape);
        if broadcast(shape, &to).ok().as_deref() != Some(&to) {
            return Err(wrong());
        }
        let strides = broadcast_strides(shape, &to).try_into().map_err(|_| wrong())?;
        Ok(Layer { meaning, operand, dtype, strides, base: 0, keys: 0..to[3] })
    }

    /// A vector of lengths, one or two a batch.
    pub(crate) fn lengths(meaning: Meaning, operand: usize, dtype: DType) -> Layer {
        Layer { meaning, operand, dtype, strides: [0; 4], base: 0, keys: 0..0 }
    }

    /// Adds its part of query `(b, h, i)` to `row`, reading element `k` of the operand as `read(k)`.
    pub(crate) fn add<N: Number>(&self, at: [usize; 3], batches: usize, row: &mut [N], read: impl Fn(usize) -> f64) {
        let length = |k: usize| (read(k).max(0.0) as usize).min(row.len());
        match self.meaning {
            Meaning::End(value) => {
                let end = length(at[0]);
                row[end..].iter_mut().for_each(|x| x.put(value));
            }
            Meaning::EndStart(value) => {
                let (end, start) = (length(at[0]), length(batches + at[0]));
                row[end..].iter_mut().for_each(|x| x.put(value));
                // A key that is outside on both sides is outside once.
                row[..start.min(end)].iter_mut().for_each(|x| x.put(value));
            }
            Meaning::Add | Meaning::Keep(_) => {
                let first = self.base + at[0] * self.strides[0] + at[1] * self.strides[1] + at[2] * self.strides[2];
                let step = self.strides[3];
                let known = &mut row[self.keys.clone()];
                match self.meaning {
                    Meaning::Keep(value) => {
                        for (j, x) in known.iter_mut().enumerate() {
                            if read(first + j * step) <= 0.0 {
                                x.put(value);
                            }
                        }
                    }
                    _ => known.iter_mut().enumerate().for_each(|(j, x)| x.put(read(first + j * step))),
                }
                row[self.keys.end..].iter_mut().for_each(|x| x.put(f64::NEG_INFINITY));
            }
        }
    }
}

/// A number masks are summed in.
pub(crate) trait Number: Copy {
    /// Adds `v`.
    fn put(&mut self, v: f64);
}

impl Number for f64 {
    #[inline(always)]
    fn put(&mut self, v: f64) {
        *self += v;
    }
}

impl Number for f32 {
    #[inline(always)]
    fn put(&mut self, v: f64) {
        *self += v as f32;
    }
}

/// Which keys a query may see by position.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Window {
    /// Most keys before the query's own position; `None`: all.
    pub(crate) left: Option<usize>,
    /// Most keys behind the query's own position; `None`: all.
    pub(crate) right: Option<usize>,
}

impl Window {
    /// The keys below `limit` that a query at position `p` sees.
    pub(crate) fn keys(&self, p: i64, limit: usize) -> std::ops::Range<usize> {
        let clamp = |x: i64| x.clamp(0, limit as i64) as usize;
        let lo = self.left.map_or(0, |left| clamp(p.saturating_sub(left as i64)));
        let hi = self.right.map_or(limit, |right| clamp(p.saturating_add(right as i64).saturating_add(1)));
        lo..hi.max(lo)
    }
}

/// Where the first query of a batch stands among the keys, and how many keys there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Positions {
    /// Behind that many keys; every key counts.
    Past(usize),
    /// An operand of `[B]` says how many keys count; the queries are the last of them.
    Counted(usize),
    /// `seqlens_k`, an operand of `[B]`, is one less than how many keys count; the queries are the last of them.
    CountedLessOne(usize),
    /// The same, but the queries are the first keys.
    PromptLessOne(usize),
}

impl Positions {
    /// The operand it reads, if any.
    pub(crate) fn operand(&self) -> Option<usize> {
        match *self {
            Positions::Past(_) => None,
            Positions::Counted(o) | Positions::CountedLessOne(o) | Positions::PromptLessOne(o) => Some(o),
        }
    }

    /// Position of the first of `s` queries, and the number of keys, of `l` that there are. `value` is the batch's element
    /// of the operand.
    pub(crate) fn of(&self, value: i64, s: usize, l: usize) -> (i64, usize) {
        let count = |n: i64| n.clamp(0, l as i64);
        match *self {
            Positions::Past(p) => (p as i64, l),
            Positions::Counted(_) => (value.clamp(-(1 << 40), 1 << 40) - s as i64, count(value) as usize),
            Positions::CountedLessOne(_) => {
                let n = count(value.saturating_add(1));
                (n - s as i64, n as usize)
            }
            Positions::PromptLessOne(_) => (0, count(value.saturating_add(1)) as usize),
        }
    }
}

/// Everything that hides or weighs keys.
#[derive(Clone, Debug)]
pub(crate) struct Mask {
    /// Operands, summed.
    pub(crate) layers: Vec<Layer>,
    /// Keys outside are hidden.
    pub(crate) window: Window,
    /// Where queries stand.
    pub(crate) positions: Positions,
}

impl Mask {
    /// A mask that hides nothing.
    pub(crate) fn none() -> Mask {
        Mask { layers: Vec::new(), window: Window::default(), positions: Positions::Past(0) }
    }

    /// What [`super::core::Core::mask`] is to do for queries among `s` in `batches`; `values` are the operands as numbers.
    pub(crate) fn add(&self, values: &[Option<Vec<f64>>], [batches, s]: [usize; 2], at: [usize; 3], row: &mut [f64]) {
        let cell = |o: usize, k: usize| values.get(o).and_then(Option::as_ref).and_then(|v| v.get(k)).copied();
        for layer in &self.layers {
            layer.add(at, batches, row, |k| cell(layer.operand, k).unwrap_or(0.0));
        }
        let value = self.positions.operand().and_then(|o| cell(o, at[0])).unwrap_or(0.0) as i64;
        let (first, limit) = self.positions.of(value, s, row.len());
        let p = first.saturating_add(at[2] as i64);
        let seen = self.window.keys(p, limit);
        row[..seen.start].fill(f64::NEG_INFINITY);
        row[seen.end..].fill(f64::NEG_INFINITY);
    }

    /// The operands it reads, as numbers by input position.
    pub(crate) fn values(&self, inputs: &[Option<&crate::tensor::Tensor>]) -> Vec<Option<Vec<f64>>> {
        let mine = |i: usize| self.layers.iter().any(|l| l.operand == i) || self.positions.operand() == Some(i);
        inputs.iter().enumerate().map(|(i, t)| t.filter(|_| mine(i)).map(|t| t.data().to_f64())).collect()
    }
}
