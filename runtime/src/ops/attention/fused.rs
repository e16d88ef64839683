//! The kernel of softmax attention: what the operators of this family, and attention spelled out in a graph, lower to.
//!
//! One key head after the other, tile of queries after tile of queries: scores, softmax and mixture of a tile stay in
//! scratch of `O(LANES · L)`. All query heads that share a key head share its tiles. Before that come [`Step`]s that
//! project, copy into caches and turn.
use std::sync::Arc;

use hone_kernels::attention::{Bias, FEWEST, Kernel as Form, LANES, Mix, Softmax, pack_queries, scores};
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::threads::Pool;

use super::core::{Rows, Sizes};
use super::mask::{Layer, Mask, Meaning};
use super::rotary::{row_of, turn};
use crate::ops::{Attr, Attrs, OpDef, OpError};
use crate::plan::{Fallible, Io, Lowered, Lowering, Reads};
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
    /// `input[batch] + 1 - less`, which must be in `0..=most`.
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
        let scattered = self.k.rows.token != d || self.v.rows.token != e;
        let work = Work::new(self.sizes, scattered);
        let scratch = work.and_then(|w| w.floats().checked_add(self.held));
        let (Some(work), Some(scratch)) = (work, scratch) else {
            return Err(OpError::unsupported("attention larger than memory"));
        };
        let run = Run { fused: self, work, form: Form::best(), at, constants, integers, per_key };
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
    work: Work,
    form: &'static Form,
    /// Position among the kernel's operands of each input of the node that it reads and that is not constant.
    at: Vec<usize>,
    /// The others.
    constants: Vec<Option<Arc<Tensor>>>,
    /// Whether each input of the node is `i64`; integers are `i32` otherwise.
    integers: Vec<bool>,
    /// The mask's operands say the same for every head and query.
    per_key: bool,
}

/// Scratch of a task.
struct Area<'a> {
    panel: &'a mut [f32],
    x: &'a mut [f32],
    cells: &'a mut [f32],
    row: &'a mut [f32],
}

impl Fallible for Run {
    fn name(&self) -> &'static str {
        "attention-f32"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let [y, first, second] = writes.apart_f32::<3>();
        let (held, rest) = scratch.split_at_mut(self.fused.held);
        let tasks = &mut rest[..self.work.floats()];
        for step in &self.fused.steps {
            self.step(step, reads, [&mut *first, &mut *second], held, pool)?;
        }
        let from = Operands { reads, results: [first, second], held };
        let task = |i: usize, area: &mut [f32]| {
            let (tiles, scratch) = area.split_at_mut(self.work.mixed);
            let first = i * self.work.tiles_a_task;
            let count = self.work.tiles_a_task.min(self.work.tiles - first);
            self.tiles(first, &from, &mut tiles[..count * LANES * self.fused.sizes.e], scratch);
        };
        if self.work.shared {
            pool.pieces(tasks, self.work.task, task);
        } else {
            tasks.chunks_exact_mut(self.work.task).enumerate().for_each(|(i, area)| task(i, area));
        }
        // Rows of several heads share lines of the result, so they are put there when all are made.
        let e = self.fused.sizes.e;
        for tile in 0..self.work.tiles {
            let mixed = &tasks[tile / self.work.tiles_a_task * self.work.task..];
            let mixed = &mixed[tile % self.work.tiles_a_task * LANES * e..];
            let rows = self.rows_of(tile);
            for r in 0..rows.count {
                let (h, i) = rows.query(r);
                y[self.fused.y.at(rows.batch, h, i)..][..e].copy_from_slice(&mixed[r * e..][..e]);
            }
        }
        Ok(())
    }
}

/// How the tiles of an attention are shared out.
#[derive(Clone, Copy)]
struct Work {
    /// Tiles of one key head.
    tiles_a_head: usize,
    /// Tiles in all.
    tiles: usize,
    /// Tiles of one task, the last one's excepted.
    tiles_a_task: usize,
    /// Floats of a task that hold its results.
    mixed: usize,
    /// Floats of a task that hold the keys and values of a head, when they are gathered.
    gathered: usize,
    /// Floats of a task.
    task: usize,
    /// It is worth waking threads for.
    shared: bool,
}

/// Tiles of a head from which its keys and values, when those of several heads take turns in memory, are gathered first:
/// rows that far apart fall into the same few sets of a cache.
const GATHER: usize = 4;

/// Most tasks: each has scratch of its own.
const TASKS: usize = 16;

/// Multiplications from which sharing is worth it.
const WORTH_SHARING: usize = 1 << 17;

impl Work {
    /// `None` when its floats are more than can be counted.
    fn new(s: Sizes, scattered: bool) -> Option<Work> {
        let tiles_a_head = (s.h / s.g).checked_mul(s.s)?.div_ceil(LANES);
        let tiles = tiles_a_head.checked_mul(s.b * s.g)?;
        let tiles_a_task = tiles.div_ceil(TASKS);
        let mixed = tiles_a_task.checked_mul(LANES)?.checked_mul(s.e)?;
        let gathered = if scattered && tiles_a_head >= GATHER { s.l.checked_mul(s.d + s.e)? } else { 0 };
        let task = LANES.checked_mul(s.d)?.checked_add(s.l.checked_mul(2 * LANES + 1)?)?;
        let task = task.checked_add(mixed)?.checked_add(gathered)?;
        let products = tiles.saturating_mul(LANES).saturating_mul(s.l).saturating_mul(s.d + s.e);
        Some(Work { tiles_a_head, tiles, tiles_a_task, mixed, gathered, task, shared: products >= WORTH_SHARING })
    }

    fn floats(&self) -> usize {
        self.tiles.div_ceil(self.tiles_a_task) * self.task
    }
}

/// The queries of one tile.
#[derive(Clone, Copy)]
struct TileRows {
    batch: usize,
    /// The key head.
    head: usize,
    /// Query heads of it.
    group: usize,
    /// Number of the first query among those of the key head.
    first: usize,
    count: usize,
    s: usize,
}

impl TileRows {
    /// Head and number of query `r`.
    #[inline(always)]
    fn query(&self, r: usize) -> (usize, usize) {
        let n = self.first + r;
        (self.head * self.group + n / self.s, n % self.s)
    }
}

/// Keys and values of one head, from its first key on.
struct Side<'a> {
    keys: &'a [f32],
    k_stride: usize,
    values: &'a [f32],
    v_stride: usize,
}

/// What queries, keys and values are read from.
struct Operands<'a> {
    reads: &'a Reads<'a>,
    results: [&'a [f32]; 2],
    held: &'a [f32],
}

impl Operands<'_> {
    fn floats<'a>(&'a self, run: &'a Run, place: Place) -> &'a [f32] {
        match place {
            Place::Read(i) => run.f32(self.reads, i),
            Place::Write(i) => self.results[i - 1],
            Place::Held(from) => &self.held[from..],
        }
    }
}

impl Run {
    fn rows_of(&self, tile: usize) -> TileRows {
        let Sizes { h, g, s, .. } = self.fused.sizes;
        let (head, tile) = (tile / self.work.tiles_a_head, tile % self.work.tiles_a_head);
        let (group, first) = (h / g, tile * LANES);
        let count = LANES.min(group * s - first);
        TileRows { batch: head / g, head: head % g, group, first, count, s }
    }

    /// Some tiles from `first` on; `mixed: [tiles][LANES][E]`.
    fn tiles(&self, first: usize, from: &Operands<'_>, mixed: &mut [f32], scratch: &mut [f32]) {
        let Sizes { l, d, e, .. } = self.fused.sizes;
        let (panel, rest) = scratch.split_at_mut(LANES * d);
        let (x, rest) = rest.split_at_mut(LANES * l);
        let (cells, rest) = rest.split_at_mut(LANES * l);
        let (row, gathered) = rest.split_at_mut(l);
        let gathered = &mut gathered[..self.work.gathered];
        let mut area = Area { panel, x, cells, row };
        let (mut batch, mut head) = (usize::MAX, usize::MAX);
        for (tile, mixed) in mixed.chunks_exact_mut(LANES * e).enumerate() {
            let rows = self.rows_of(first + tile);
            if self.per_key && rows.batch != batch {
                area.row.fill(0.0);
                self.mask_row(from.reads, [rows.batch, 0, 0], area.row);
            }
            if !gathered.is_empty() && (rows.batch, rows.head) != (batch, head) {
                self.gather(rows, from, gathered);
            }
            (batch, head) = (rows.batch, rows.head);
            let side = self.side(rows, from, gathered);
            if rows.count >= FEWEST {
                self.tile(rows, from, &side, mixed, &mut area);
            } else {
                for (r, mixed) in mixed.chunks_exact_mut(e).take(rows.count).enumerate() {
                    self.one(TileRows { first: rows.first + r, count: 1, ..rows }, from, &side, mixed, &mut area);
                }
            }
        }
    }

    fn gather(&self, rows: TileRows, from: &Operands<'_>, gathered: &mut [f32]) {
        let Sizes { l, d, .. } = self.fused.sizes;
        let (keys, values) = gathered.split_at_mut(l * d);
        for (source, out, width) in [(&self.fused.k, keys, d), (&self.fused.v, values, self.fused.sizes.e)] {
            let x = from.floats(self, source.place);
            for (t, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&x[source.rows.at(rows.batch, rows.head, t)..][..width]);
            }
        }
    }

    fn side<'a>(&'a self, rows: TileRows, from: &'a Operands<'_>, gathered: &'a [f32]) -> Side<'a> {
        let Fused { sizes, k, v, .. } = &self.fused;
        if !gathered.is_empty() {
            let (keys, values) = gathered.split_at(sizes.l * sizes.d);
            return Side { keys, k_stride: sizes.d, values, v_stride: sizes.e };
        }
        let of = |s: &Source| &from.floats(self, s.place)[s.rows.at(rows.batch, rows.head, 0)..];
        Side { keys: of(k), k_stride: k.rows.token, values: of(v), v_stride: v.rows.token }
    }

    /// The keys each query of a tile sees.
    fn spans(&self, rows: TileRows, reads: &Reads<'_>) -> ([u32; LANES], [u32; LANES]) {
        let Sizes { s, l, .. } = self.fused.sizes;
        let mask = &self.fused.mask;
        let told = mask.positions.operand().map_or(0, |i| self.integer(reads, i, rows.batch));
        let (first, limit) = mask.positions.of(told, s, l);
        let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
        for r in 0..rows.count {
            let seen = mask.window.keys(first.saturating_add(rows.query(r).1 as i64), limit);
            (low[r], high[r]) = (seen.start as u32, seen.end as u32);
        }
        (low, high)
    }

    fn query<'a>(&'a self, from: &'a Operands<'_>, rows: TileRows, r: usize) -> &'a [f32] {
        let (h, i) = rows.query(r);
        let q = &self.fused.q;
        &from.floats(self, q.place)[q.rows.at(rows.batch, h, i)..][..self.fused.sizes.d]
    }

    fn sink(&self, reads: &Reads<'_>, rows: TileRows, r: usize) -> Option<f32> {
        self.fused.sink.map(|input| input.map_or(0.0, |i| self.f32(reads, i)[rows.query(r).0]))
    }

    /// A tile of queries; `mixed: [LANES][E]`.
    fn tile(&self, rows: TileRows, from: &Operands<'_>, side: &Side<'_>, mixed: &mut [f32], area: &mut Area<'_>) {
        let Fused { sizes, scale, softcap, ref mask, .. } = self.fused;
        let (mut low, mut high) = self.spans(rows, from.reads);
        let seen = (0..rows.count).filter(|&r| low[r] < high[r]);
        let (start, end) = seen.fold((u32::MAX, 0), |(a, b), r| (a.min(low[r]), b.max(high[r])));
        if start >= end {
            mixed.fill(0.0);
            return;
        }
        let even = (0..rows.count).all(|r| (low[r], high[r]) == (start, end));
        for r in 0..LANES {
            (low[r], high[r]) = (low[r].saturating_sub(start), high[r].saturating_sub(start));
        }
        let (start, end) = (start as usize, end as usize);
        let keys = end - start;
        pack_queries(rows.count, scale, |r| self.query(from, rows, r), area.panel);
        let x = &mut area.x[..keys * LANES];
        scores(area.panel, &side.keys[start * side.k_stride..], side.k_stride, x);
        let bias = if mask.layers.is_empty() {
            Bias::None
        } else if self.per_key {
            Bias::Keys(&area.row[start..end])
        } else {
            let cells = &mut area.cells[..keys * LANES];
            for r in 0..rows.count {
                let (h, i) = rows.query(r);
                area.row.fill(0.0);
                self.mask_row(from.reads, [rows.batch, h, i], area.row);
                area.row[start..end].iter().zip(cells.as_chunks_mut::<LANES>().0).for_each(|(&m, cell)| cell[r] = m);
            }
            Bias::Cells(cells)
        };
        let mut sinks = [0f32; LANES];
        for (r, sink) in sinks.iter_mut().enumerate().take(rows.count) {
            *sink = self.sink(from.reads, rows, r).unwrap_or(0.0);
        }
        let spans = (!even).then_some((&low, &high));
        let sinks = self.fused.sink.is_some().then_some(&sinks);
        let factors = self.form.softmax(&Softmax { softcap, bias, spans, sinks }, x);
        let v = &side.values[start * side.v_stride..];
        let mix = Mix { p: x, v, v_stride: side.v_stride, factors: &factors, rows: rows.count, e: sizes.e };
        self.form.mix(&mix, mixed);
    }

    /// One query; `mixed: [E]`.
    fn one(&self, rows: TileRows, from: &Operands<'_>, side: &Side<'_>, mixed: &mut [f32], area: &mut Area<'_>) {
        let Fused { sizes, scale, softcap, ref mask, .. } = self.fused;
        let (low, high) = self.spans(rows, from.reads);
        let (start, end) = (low[0] as usize, high[0] as usize);
        if start >= end {
            mixed.fill(0.0);
            return;
        }
        let q = &mut area.panel[..sizes.d];
        q.iter_mut().zip(self.query(from, rows, 0)).for_each(|(p, q)| *p = scale * q);
        let x = &mut area.x[..end - start];
        self.form.scores_one(q, &side.keys[start * side.k_stride..], side.k_stride, x);
        if !self.per_key {
            let (h, i) = rows.query(0);
            area.row.fill(0.0);
            self.mask_row(from.reads, [rows.batch, h, i], area.row);
        }
        let bias = (!mask.layers.is_empty()).then_some(&area.row[start..end]);
        let factor = self.form.softmax_one(x, softcap, bias, self.sink(from.reads, rows, 0));
        self.form.mix_one(x, &side.values[start * side.v_stride..], side.v_stride, factor, mixed);
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

    /// # Errors
    /// [`OpError::Shape`] when a length does not fit the caches.
    fn counted(&self, counted: Counted, reads: &Reads<'_>, batch: usize) -> Result<usize, OpError> {
        match counted {
            Counted::Fixed(n) => Ok(n),
            Counted::Told { input, less, most } => {
                let told = self.integer(reads, input, batch);
                usize::try_from(told.saturating_add(1).saturating_sub(less as i64))
                    .ok()
                    .filter(|&n| n <= most)
                    .ok_or_else(|| OpError::shape("seqlens_k", format!("a past of 0 to {most} keys"), told))
            }
        }
    }

    fn step(
        &self,
        step: &Step,
        reads: &Reads<'_>,
        results: [&mut [f32]; 2],
        held: &mut [f32],
        pool: &Pool,
    ) -> Result<(), OpError> {
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
                gemm::gemm_on(pool, &problem, &mut held[*to..][..m * n]);
                Ok(())
            }
            Step::Lay { past, new, to, .. } => {
                let past = past.map(|p| match p.place {
                    Place::Read(i) => (self.f32(reads, i), p.rows),
                    _ => (&[][..], p.rows),
                });
                match (new.place, to.place) {
                    (Place::Read(i), Place::Write(o)) => {
                        self.lay(step, reads, past, self.f32(reads, i), results[o - 1])
                    }
                    (Place::Read(i), Place::Held(at)) => {
                        self.lay(step, reads, past, self.f32(reads, i), &mut held[at..])
                    }
                    (Place::Held(from), Place::Write(o)) => self.lay(step, reads, past, &held[from..], results[o - 1]),
                    (Place::Held(from), Place::Held(at)) => {
                        // Areas are given out in the order in which they are filled.
                        let (made, making) = held.split_at_mut(at);
                        self.lay(step, reads, past, &made[from..], making)
                    }
                    (Place::Write(_), _) | (_, Place::Read(_)) => Ok(()),
                }
            }
            Step::Turn(turn) => match turn.at.place {
                Place::Write(o) => self.turn(turn, reads, &mut *results[o - 1]),
                Place::Held(at) => self.turn(turn, reads, &mut held[at..]),
                Place::Read(_) => Ok(()),
            },
        }
    }

    fn lay(
        &self,
        step: &Step,
        reads: &Reads<'_>,
        past: Option<(&[f32], Rows)>,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), OpError> {
        let Step::Lay { new, to, heads, counted, tokens, capacity, width, bias, .. } = *step else { return Ok(()) };
        for batch in 0..self.fused.sizes.b {
            let first = self.counted(counted, reads, batch)?;
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
        Ok(())
    }

    fn turn(&self, t: &Turn, reads: &Reads<'_>, x: &mut [f32]) -> Result<(), OpError> {
        let [cos, sin] = t.caches.map(|i| self.f32(reads, i));
        for batch in 0..self.fused.sizes.b {
            let counted = self.counted(t.counted, reads, batch)?;
            let first = if t.behind { counted } else { 0 };
            for token in 0..t.tokens {
                let position = match t.ids {
                    None => (counted + token) as i64,
                    Some((input, true)) => self.integer(reads, input, 0).saturating_add(token as i64),
                    Some((input, false)) => self.integer(reads, input, batch * t.tokens + token),
                };
                let at = row_of(position, t.positions)? * t.half;
                for head in 0..t.heads {
                    let row = &mut x[t.at.rows.at(batch, head, first + token)..][..t.width];
                    turn(row, &cos[at..][..t.half], &sin[at..][..t.half], t.interleaved);
                }
            }
        }
        Ok(())
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
