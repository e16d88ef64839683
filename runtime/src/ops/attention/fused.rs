//! The kernel of softmax attention: what the operators of this family, and attention spelled out in a graph, lower to.
//!
//! One key head after the other, tile of queries after tile of queries: scores, softmax and mixture of a tile stay in
//! scratch of `O(LANES · L)`. All query heads that share a key head share its tiles. Before that come [`Step`]s that
//! project, copy into caches and turn.
use std::sync::Arc;

use hone_kernels::attention::{Bias, FEWEST, Kernel as Form, LANES, Mix, Softmax, pack_queries};
use hone_kernels::gemm::{self, Gemm, Packed};

use super::core::{Rows, Sizes};
use super::mask::{Layer, Mask, Meaning};
use super::rotary::turn;
use crate::ops::{Attr, Attrs, OpDef, OpError};
use crate::plan::{Io, Kernel, Lowered, Lowering, Reads, Writes};
use crate::tensor::{DType, Tensor};

/// The operator and attributes a pass gives a node in place of `MatMul(Softmax(MatMul(Q, Kᵀ) · scale + mask), V)`, with
/// `scale` the product of every factor on the way to the softmax (1 when there is none).
///
/// The node's inputs are `Q [B, H, S, D]`, `K [B, G, L, D]` (not transposed), `V [B, G, L, E]` and, when there is one, the
/// mask: numbers to add or booleans to keep by, broadcast to `[B, H, S, L]`. Its output is `[B, H, S, E]`. `G` is `H`, or a
/// divisor of it where keys and values were repeated head by head. The type of Q, K and V is the type of the scores.
///
/// One difference: a query whose keys are all `-inf` gives zeros here, not-a-number when spelled out.
#[allow(dead_code, reason = "the pass that recognises attention is a graph pass, not an operator")]
pub(crate) fn decomposed(scale: f32) -> (&'static OpDef, Attrs) {
    let attrs = Attrs { opset: 23, outputs: 1, ..Attrs::of([("scale", Attr::Float(scale))]) };
    (&super::standard::ATTENTION, attrs)
}

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// Operand of the kernel, by the node's input.
    Read(usize),
    /// Result of the node.
    Write(usize),
    /// The kernel's scratch, from that float on.
    Held(usize),
}

/// Rows of an operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) place: Place,
    pub(super) rows: Rows,
}

/// Keys that a batch already has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counted {
    /// That many.
    Fixed(usize),
    /// `input[batch] + 1 - less`, clamped to `0..=most`.
    Told { input: usize, less: usize, most: usize },
}

/// What happens before the attention.
pub(super) enum Step {
    /// `to[m][j] = Σ x[m][k] · w[j][k] + bias[j]`.
    Project { x: usize, m: usize, k: usize, n: usize, weight: Vec<f32>, bias: Option<Vec<f32>>, to: usize },
    /// Rows `[B, heads, capacity, width]` at `to`: those of the past, then the new ones plus a bias, then zeros.
    Lay {
        past: Option<Source>,
        new: Source,
        to: Source,
        heads: usize,
        counted: Counted,
        tokens: usize,
        capacity: usize,
        width: usize,
        /// Input and first element of a bias of `heads · width`.
        bias: Option<(usize, usize)>,
    },
    /// Turns the rows of new tokens in place.
    Turn(Turn),
}

/// A rotary embedding in place.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) at: Source,
    pub(super) heads: usize,
    pub(super) tokens: usize,
    pub(super) width: usize,
    /// Rows of new tokens start behind the counted ones; otherwise at 0.
    pub(super) behind: bool,
    pub(super) counted: Counted,
    /// Inputs of cosines and sines, their number of rows, and half the features that turn.
    pub(super) caches: [usize; 2],
    pub(super) positions: usize,
    pub(super) half: usize,
    /// Input of position ids, and whether only the first counts.
    pub(super) ids: Option<(usize, bool)>,
    pub(super) interleaved: bool,
}

/// One attention at concrete shapes.
pub(super) struct Fused {
    pub(super) sizes: Sizes,
    pub(super) q: Source,
    pub(super) k: Source,
    pub(super) v: Source,
    /// Rows of result 0.
    pub(super) y: Rows,
    pub(super) scale: f32,
    pub(super) softcap: f32,
    pub(super) mask: Mask,
    /// Input of a score a head without value; `Some(None)` is 0 throughout.
    pub(super) sink: Option<Option<usize>>,
    pub(super) steps: Vec<Step>,
    /// Floats of scratch the places name.
    pub(super) held: usize,
}

impl Fused {
    /// The kernel, or `None` when an operand has a type or a size it is not for.
    ///
    /// # Errors
    /// [`OpError`] when the scratch cannot be held.
    pub(super) fn lower(self, l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
        let Sizes { b, h, s, l: keys, d, e, .. } = self.sizes;
        if [b, h, s, keys, d, e].contains(&0) || u32::try_from(keys).is_err() {
            return Ok(None);
        }
        let readable = |layer: &Layer| {
            let floats = layer.meaning == Meaning::Add;
            match layer.dtype {
                DType::F32 => floats,
                DType::Bool | DType::I32 => !floats,
                _ => false,
            }
        };
        if !self.mask.layers.iter().all(readable) {
            return Ok(None);
        }
        let mut needed: Vec<usize> = Vec::new();
        let mut need = |place: Place| {
            if let Place::Read(i) = place
                && !needed.contains(&i)
            {
                needed.push(i);
            }
        };
        for source in [self.q, self.k, self.v] {
            need(source.place);
        }
        self.mask.layers.iter().for_each(|m| need(Place::Read(m.operand)));
        self.mask.positions.operand().into_iter().for_each(|i| need(Place::Read(i)));
        self.sink.flatten().into_iter().for_each(|i| need(Place::Read(i)));
        let mut weights = 0;
        for step in &self.steps {
            match step {
                Step::Project { x, weight, .. } => {
                    need(Place::Read(*x));
                    weights += 4 * weight.len();
                }
                Step::Lay { past, new, counted, bias, .. } => {
                    past.iter().chain([new]).for_each(|s| need(s.place));
                    bias.iter().for_each(|b| need(Place::Read(b.0)));
                    counted.input().into_iter().for_each(|i| need(Place::Read(i)));
                }
                Step::Turn(t) => {
                    t.caches.into_iter().chain(t.ids.map(|i| i.0)).for_each(|i| need(Place::Read(i)));
                    t.counted.input().into_iter().for_each(|i| need(Place::Read(i)));
                }
            }
        }
        let integers: Vec<bool> = (0..l.inputs()).map(|i| l.dtype(i) == Some(DType::I64)).collect();
        // What is constant takes none of the few operands a kernel may name.
        let constants: Vec<_> =
            (0..l.inputs()).map(|i| l.constant(i).filter(|_| needed.contains(&i)).cloned()).collect();
        needed.retain(|&i| constants[i].is_none());
        let mut at = vec![usize::MAX; l.inputs()];
        for (slot, &i) in needed.iter().enumerate() {
            at[i] = slot;
        }
        let per_key = self.mask.layers.iter().all(|m| m.strides[1] == 0 && m.strides[2] == 0);
        let tile = [LANES * d, LANES * e, LANES * keys, LANES * keys, keys];
        let scratch = tile.iter().try_fold(self.held, |n, &x| n.checked_add(x));
        let scratch = scratch.ok_or_else(|| OpError::unsupported("attention larger than memory"))?;
        let run = Run { fused: self, at, constants, integers, per_key };
        Ok(Some(Lowered::new(run, needed).with_scratch(scratch).with_weights(weights)))
    }
}

impl Counted {
    fn input(&self) -> Option<usize> {
        match *self {
            Counted::Fixed(_) => None,
            Counted::Told { input, .. } => Some(input),
        }
    }
}

/// [`Fused`] with the operands it reads.
struct Run {
    fused: Fused,
    /// Position among the kernel's operands of each input of the node that it reads and that is not constant.
    at: Vec<usize>,
    /// The others.
    constants: Vec<Option<Arc<Tensor>>>,
    /// Whether each input of the node is `i64`; integers are `i32` otherwise.
    integers: Vec<bool>,
    /// The mask's operands say the same for every head and query.
    per_key: bool,
}

/// The areas of scratch.
struct Scratch<'a> {
    panel: &'a mut [f32],
    mixed: &'a mut [f32],
    scores: &'a mut [f32],
    cells: &'a mut [f32],
    row: &'a mut [f32],
}

impl Kernel for Run {
    fn name(&self) -> &'static str {
        "attention-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let Sizes { b, g, l, d, e, .. } = self.fused.sizes;
        let (held, rest) = scratch.split_at_mut(self.fused.held);
        let (panel, rest) = rest.split_at_mut(LANES * d);
        let (mixed, rest) = rest.split_at_mut(LANES * e);
        let (scores, rest) = rest.split_at_mut(LANES * l);
        let (cells, rest) = rest.split_at_mut(LANES * l);
        let mut scratch = Scratch { panel, mixed, scores, cells, row: &mut rest[..l] };
        for step in &self.fused.steps {
            self.step(step, reads, writes, held);
        }
        for batch in 0..b {
            if self.per_key {
                scratch.row.fill(0.0);
                self.mask_row(reads, [batch, 0, 0], scratch.row);
            }
            for head in 0..g {
                self.head(batch, head, reads, writes, held, &mut scratch);
            }
        }
    }
}

/// The floats at a place.
fn floats<'a>(run: &'a Run, place: Place, reads: &Reads<'a>, writes: &'a mut Writes<'_>, held: &'a [f32]) -> &'a [f32] {
    match place {
        Place::Read(i) => run.f32(reads, i),
        Place::Write(i) => writes.f32(i),
        Place::Held(from) => &held[from..],
    }
}

impl Run {
    /// Every query of one key head.
    fn head(
        &self,
        batch: usize,
        head: usize,
        reads: &Reads<'_>,
        writes: &mut Writes<'_>,
        held: &[f32],
        scratch: &mut Scratch<'_>,
    ) {
        let Fused { sizes, q, k, v, y, scale, softcap, ref mask, .. } = self.fused;
        let Sizes { h, g, s, l, d, e, .. } = sizes;
        let group = h / g;
        let form = Form::best();
        let told = mask.positions.operand().map_or(0, |i| self.integer(reads, i, batch));
        let (first, limit) = mask.positions.of(told, s, l);
        let all = group * s;
        let mut start = 0;
        while start < all {
            let rows = (all - start).min(LANES);
            let rows = if rows < FEWEST { 1 } else { rows };
            let of = |r: usize| (head * group + (start + r) / s, (start + r) % s);
            let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
            let (mut from, mut to) = (l, 0);
            for r in 0..rows {
                let seen = mask.window.keys(first.saturating_add(of(r).1 as i64), limit);
                if !seen.is_empty() {
                    (from, to) = (from.min(seen.start), to.max(seen.end));
                }
                (low[r], high[r]) = (seen.start as u32, seen.end as u32);
            }
            if from >= to {
                (from, to) = (0, 0);
            }
            let keys = to - from;
            let even = (0..rows).all(|r| (low[r], high[r]) == (from as u32, to as u32));
            for r in 0..LANES {
                low[r] = low[r].saturating_sub(from as u32);
                high[r] = high[r].saturating_sub(from as u32);
            }
            let sinks = self.fused.sink.map(|input| {
                let mut sinks = [0f32; LANES];
                if let Some(i) = input {
                    (0..rows).for_each(|r| sinks[r] = self.f32(reads, i)[of(r).0]);
                }
                sinks
            });
            // Scores: only the keys are borrowed, because keys and values may both be results.
            let queries = floats(self, q.place, reads, writes, held);
            let query = |r: usize| {
                let (h, i) = of(r);
                &queries[q.rows.at(batch, h, i)..][..d]
            };
            let panel = &mut scratch.panel[..];
            if rows == 1 {
                panel.iter_mut().zip(query(0)).for_each(|(p, q)| *p = scale * q);
            } else {
                pack_queries(rows, scale, query, panel);
            }
            let masked = !mask.layers.is_empty() && keys > 0;
            if masked && !self.per_key {
                for r in 0..rows {
                    let (h, i) = of(r);
                    scratch.row.fill(0.0);
                    self.mask_row(reads, [batch, h, i], scratch.row);
                    let seen = &scratch.row[from..to];
                    if rows == 1 {
                        scratch.cells[..keys].copy_from_slice(seen);
                    } else {
                        seen.iter().enumerate().for_each(|(j, &m)| scratch.cells[j * LANES + r] = m);
                    }
                }
            }
            let k_first = k.rows.at(batch, head, from);
            let v_first = v.rows.at(batch, head, from);
            if keys == 0 {
                scratch.mixed.fill(0.0);
            } else if rows == 1 {
                let x = &mut scratch.scores[..keys];
                let rows_of_k = &floats(self, k.place, reads, writes, held)[k_first..];
                form.scores_one(&panel[..d], rows_of_k, k.rows.token, x);
                let bias = if self.per_key { &scratch.row[from..to] } else { &scratch.cells[..keys] };
                let factor = form.softmax_one(x, softcap, masked.then_some(bias), sinks.map(|s| s[0]));
                let rows_of_v = &floats(self, v.place, reads, writes, held)[v_first..];
                form.mix_one(x, rows_of_v, v.rows.token, factor, &mut scratch.mixed[..e]);
            } else {
                let x = &mut scratch.scores[..keys * LANES];
                form.scores(panel, &floats(self, k.place, reads, writes, held)[k_first..], k.rows.token, x);
                let bias = match (masked, self.per_key) {
                    (false, _) => Bias::None,
                    (_, true) => Bias::Keys(&scratch.row[from..to]),
                    (_, false) => Bias::Cells(&scratch.cells[..keys * LANES]),
                };
                let spans = (!even).then_some((&low, &high));
                let factors = form.softmax(&Softmax { softcap, bias, spans, sinks: sinks.as_ref() }, x);
                let rows_of_v = &floats(self, v.place, reads, writes, held)[v_first..];
                let mix = Mix { p: x, v: rows_of_v, v_stride: v.rows.token, factors: &factors, rows, e };
                form.mix(&mix, scratch.mixed);
            }
            let out = writes.f32(0);
            for r in 0..rows {
                let (h, i) = of(r);
                out[y.at(batch, h, i)..][..e].copy_from_slice(&scratch.mixed[r * e..][..e]);
            }
            start += rows;
        }
    }

    /// Element `k` of an input of integers.
    fn integer(&self, reads: &Reads<'_>, input: usize, k: usize) -> i64 {
        let bytes = self.bytes(reads, input);
        if self.integers[input] {
            return bytes.as_chunks().0.get(k).map_or(0, |b| i64::from_ne_bytes(*b));
        }
        bytes.as_chunks().0.get(k).map_or(0, |b| i64::from(i32::from_ne_bytes(*b)))
    }

    /// The bytes of an input.
    fn bytes<'a>(&'a self, reads: &Reads<'a>, input: usize) -> &'a [u8] {
        match &self.constants[input] {
            Some(t) => t.data().as_bytes(),
            None => reads.bytes(self.at[input]),
        }
    }

    /// The floats of an input.
    fn f32<'a>(&'a self, reads: &Reads<'a>, input: usize) -> &'a [f32] {
        bytemuck::cast_slice(self.bytes(reads, input))
    }

    /// Adds the mask's operands of one query.
    fn mask_row(&self, reads: &Reads<'_>, at: [usize; 3], row: &mut [f32]) {
        let batches = self.fused.sizes.b;
        for layer in &self.fused.mask.layers {
            match layer.dtype {
                DType::F32 => {
                    let x = self.f32(reads, layer.operand);
                    layer.add(at, batches, row, |k| f64::from(x[k]));
                }
                DType::Bool => {
                    let x = self.bytes(reads, layer.operand);
                    layer.add(at, batches, row, |k| f64::from(x[k]));
                }
                _ => layer.add(at, batches, row, |k| self.integer(reads, layer.operand, k) as f64),
            }
        }
    }

    fn counted(&self, counted: Counted, reads: &Reads<'_>, batch: usize) -> usize {
        match counted {
            Counted::Fixed(n) => n,
            // The reference refuses lengths that do not fit; a kernel cannot, and stays within the caches.
            Counted::Told { input, less, most } => {
                let n = self.integer(reads, input, batch).saturating_add(1).saturating_sub(less as i64);
                n.clamp(0, most as i64) as usize
            }
        }
    }

    fn step(&self, step: &Step, reads: &Reads<'_>, writes: &mut Writes<'_>, held: &mut [f32]) {
        match step {
            Step::Project { x, m, k, n, weight, bias, to } => {
                let problem = Gemm {
                    m: *m,
                    k: *k,
                    n: *n,
                    x: self.f32(reads, *x),
                    x_stride: *k,
                    w: Packed::F32(weight),
                    bias: bias.as_deref(),
                    accumulate: false,
                };
                gemm::gemm(&problem, &mut held[*to..][..m * n]);
            }
            Step::Lay { past, new, to, .. } => {
                let past = past.map(|p| match p.place {
                    Place::Read(i) => (self.f32(reads, i), p.rows),
                    _ => (&[][..], p.rows),
                });
                match (new.place, to.place) {
                    (Place::Read(i), Place::Write(o)) => {
                        self.lay(step, reads, past, self.f32(reads, i), writes.f32(o));
                    }
                    (Place::Read(i), Place::Held(at)) => {
                        self.lay(step, reads, past, self.f32(reads, i), &mut held[at..]);
                    }
                    (Place::Held(from), Place::Write(o)) => self.lay(step, reads, past, &held[from..], writes.f32(o)),
                    (Place::Held(from), Place::Held(at)) => {
                        // Areas are given out in the order in which they are filled.
                        let (made, making) = held.split_at_mut(at);
                        self.lay(step, reads, past, &made[from..], making);
                    }
                    _ => {}
                }
            }
            Step::Turn(turn) => match turn.at.place {
                Place::Write(o) => self.turn(turn, reads, writes.f32(o)),
                Place::Held(at) => self.turn(turn, reads, &mut held[at..]),
                Place::Read(_) => {}
            },
        }
    }

    fn lay(&self, step: &Step, reads: &Reads<'_>, past: Option<(&[f32], Rows)>, x: &[f32], out: &mut [f32]) {
        let Step::Lay { new, to, heads, counted, tokens, capacity, width, bias, .. } = *step else { return };
        for batch in 0..self.fused.sizes.b {
            let first = self.counted(counted, reads, batch);
            for head in 0..heads {
                if let Some((past, rows)) = past {
                    for t in 0..first {
                        let row = &past[rows.at(batch, head, t)..][..width];
                        out[to.rows.at(batch, head, t)..][..width].copy_from_slice(row);
                    }
                }
                let bias = bias.map(|(input, at)| &self.f32(reads, input)[at + head * width..][..width]);
                for t in 0..tokens {
                    let row = &x[new.rows.at(batch, head, t)..][..width];
                    let out = &mut out[to.rows.at(batch, head, first + t)..][..width];
                    match bias {
                        None => out.copy_from_slice(row),
                        Some(bias) => out.iter_mut().zip(row.iter().zip(bias)).for_each(|(y, (x, b))| *y = x + b),
                    }
                }
                for t in first + tokens..capacity {
                    out[to.rows.at(batch, head, t)..][..width].fill(0.0);
                }
            }
        }
    }

    fn turn(&self, t: &Turn, reads: &Reads<'_>, x: &mut [f32]) {
        let [cos, sin] = t.caches.map(|i| self.f32(reads, i));
        for batch in 0..self.fused.sizes.b {
            let counted = self.counted(t.counted, reads, batch);
            let first = if t.behind { counted } else { 0 };
            for token in 0..t.tokens {
                let position = match t.ids {
                    None => (counted + token) as i64,
                    Some((input, true)) => self.integer(reads, input, 0).saturating_add(token as i64),
                    Some((input, false)) => self.integer(reads, input, batch * t.tokens + token),
                };
                // As with lengths: the reference refuses positions outside.
                let at = position.clamp(0, t.positions as i64 - 1) as usize * t.half;
                for head in 0..t.heads {
                    let row = &mut x[t.at.rows.at(batch, head, first + token)..][..t.width];
                    turn(row, &cos[at..][..t.half], &sin[at..][..t.half], t.interleaved);
                }
            }
        }
    }
}

/// Gives out areas of the scratch that places name.
#[derive(Default)]
pub(super) struct Areas {
    /// Floats given out.
    pub(super) floats: usize,
}

impl Areas {
    /// An area of the product of `shape` floats.
    ///
    /// # Errors
    /// [`OpError::Tensor`] when it cannot be held.
    pub(super) fn take(&mut self, shape: &[usize]) -> Result<Place, OpError> {
        let at = self.floats;
        self.floats += crate::ops::shape::elements(shape)?;
        Ok(Place::Held(at))
    }
}
