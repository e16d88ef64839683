//! Kernels of LSTM, GRU and RNN with weights known when the plan is made: `f32`, or int8 with a scale a row.
//!
//! The products with the inputs of all steps are one matrix product; each turn then adds that with the states.
use std::sync::Arc;

use hone_kernels::threads::Pool;
use hone_kernels::{cell, gemm};

use super::activation::Activation;
use super::{Cell, Sequence, live};
use crate::ops::OpError;
use crate::ops::quantize::{Lie, Right};
use crate::plan::{Io, Kept, Kernel, Lowered, Lowering, Reads, Weight, bytes, floats};
use crate::tensor::{DType, Tensor};

/// A frozen matrix.
struct Frozen {
    /// Packed for [`gemm`], or nothing.
    f32: Arc<Kept<f32>>,
    q: Arc<Kept<i8>>,
    scale: Vec<f32>,
    /// 8-bit codes whose other operand is quantised as it comes, a scale of [`Frozen::scale`] a row.
    dynamic: Option<Right>,
    n: usize,
    k: usize,
}

impl Frozen {
    /// Rows `first..first + n` of direction `d` of a weight `[D, rows, k]`. `None` when the scales of a quantised weight do
    /// not run along its rows.
    fn of(l: &Lowering<'_>, weight: &Weight, d: usize, first: usize, n: usize) -> Result<Option<Frozen>, OpError> {
        let &[directions, rows, k] = weight.shape() else { return Ok(None) };
        let mut m = Frozen { f32: Arc::default(), q: Arc::default(), scale: Vec::new(), dynamic: None, n, k };
        let start = (d * rows + first) * k;
        // As a product names them: the first element, and how far on the next step and the next row are.
        let (numbers, len) = ([n, k, start, 1, k], gemm::packed_len(n, k));
        match weight {
            Weight::F32(t) => {
                t.as_f32()?;
                let from = t.clone();
                m.f32 = l.packed("matrix", &[t], &numbers, len, move || {
                    let (v, mut packed) = (floats(&from), vec![0.0; len]);
                    gemm::pack(n, k, |j, kk| v[start + j * k + kk], &mut packed);
                    packed
                });
            }
            Weight::Q8 { q, scale, axis } => {
                if q.dtype() != DType::I8 {
                    return Ok(None);
                }
                let row: Box<dyn Fn(usize) -> f32> = match (scale.len(), axis) {
                    (1, _) => Box::new(|_| scale[0]),
                    (s, 0) if s == directions => Box::new(|_| scale[d]),
                    (s, 1) if s == rows => Box::new(|j| scale[first + j]),
                    _ => return Ok(None),
                };
                m.scale = (0..n).map(row).collect();
                let from = q.clone();
                m.q = l.packed("matrix", &[q], &numbers, len, move || {
                    let (v, mut packed) = (bytes(&from), vec![0; len]);
                    gemm::pack(n, k, |j, kk| v[start + j * k + kk], &mut packed);
                    packed
                });
            }
        }
        Ok(Some(m))
    }

    fn bytes(&self) -> usize {
        self.f32.len() * 4 + self.q.len() + self.scale.len() * 4 + self.dynamic.as_ref().map_or(0, Right::bytes)
    }

    /// Floats of scratch for the product with `m` rows.
    fn scratch(&self, m: usize) -> usize {
        self.dynamic.as_ref().map_or(0, |r| r.dynamic_scratch(m) + m * self.n)
    }

    /// Matrix of a quantised LSTM: direction `d` of codes `[D, k, n]`.
    fn of_codes(
        l: &Lowering<'_>,
        codes: &Arc<Tensor>,
        d: usize,
        scale: Vec<f32>,
        zero: Option<&Tensor>,
    ) -> Result<Option<Frozen>, OpError> {
        let &[_, k, n] = codes.shape() else { return Ok(None) };
        let dynamic = Right::of(l, codes, zero, k, n, Lie { start: d * k * n, row: n, column: 1 })?;
        Ok(dynamic.map(|r| Frozen { f32: Arc::default(), q: Arc::default(), scale, dynamic: Some(r), n, k }))
    }

    /// `y = x · wᵀ + bias`, or added to `y`.
    fn product(
        &self,
        pool: &Pool,
        m: usize,
        x: &[f32],
        bias: Option<&[f32]>,
        accumulate: bool,
        work: &mut [f32],
        y: &mut [f32],
    ) {
        if let Some(right) = &self.dynamic {
            if accumulate {
                let (sums, work) = work.split_at_mut(m * self.n);
                right.dynamic(pool, m, x, &self.scale, bias, work, sums);
                y.iter_mut().zip(&*sums).for_each(|(y, s)| *y += s);
            } else {
                right.dynamic(pool, m, x, &self.scale, bias, work, y);
            }
            return;
        }
        let w = if self.q.is_empty() {
            gemm::Packed::F32(&self.f32)
        } else {
            gemm::Packed::I8 { q: &self.q, scale: &self.scale }
        };
        gemm::gemm_on(pool, &gemm::Gemm { m, k: self.k, n: self.n, x, x_stride: self.k, w, bias, accumulate }, y);
    }
}

/// One direction.
struct Way {
    w: Frozen,
    /// Of all gates; of the first two of a GRU.
    r: Frozen,
    /// Of the last gate of a GRU.
    last: Option<Frozen>,
    /// What is added to the products with the inputs.
    bias: Option<Vec<f32>>,
    /// What is added to the last gate's product with the state, in a GRU with `linear_before_reset`.
    last_bias: Option<Vec<f32>>,
    /// `i o f`, or nothing.
    peepholes: Option<Vec<f32>>,
    activations: Vec<Activation>,
}

struct Steps {
    shape: Sequence,
    ways: Vec<Way>,
    /// Each direction has an area of scratch, and they run at one time.
    together: bool,
    /// Floats of an area.
    area: usize,
    clip: Option<f32>,
    coupled: bool,
    linear_before_reset: bool,
    lens: Option<usize>,
    h0: Option<usize>,
    c0: Option<usize>,
    wants: [bool; 3],
}

/// Lowers the operator of that cell, by its weights where they are known.
pub(super) fn lower(l: &Lowering<'_>, kind: Cell) -> Result<Option<Lowered>, OpError> {
    match frozen(l, kind)? {
        None => live::forward(l, kind),
        lowered => Ok(lowered),
    }
}

fn frozen(l: &Lowering<'_>, kind: Cell) -> Result<Option<Lowered>, OpError> {
    let (Some(w), Some(r)) = (l.weight(1), l.weight(2)) else { return Ok(None) };
    let &[_, rows, _] = r.shape() else { return Ok(None) };
    let h = rows / kind.gates();
    // The last gate of a GRU is apart: its product may be of another vector.
    let apart = if kind == Cell::Gru { h } else { 0 };
    steps(l, kind, w.shape(), r.shape(), |d| {
        let last = if apart > 0 { Frozen::of(l, &r, d, rows - apart, apart)? } else { None };
        Ok(Frozen::of(l, &w, d, 0, rows)?
            .zip(Frozen::of(l, &r, d, 0, rows - apart)?)
            .filter(|_| apart == 0 || last.is_some())
            .map(|(w, r)| (w, r, last)))
    })
}

/// Lowers a `DynamicQuantizeLSTM`.
pub(super) fn lower_quantised(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (Some(w), Some(r)) = (l.constant(1), l.constant(2)) else { return Ok(None) };
    let (&[d, i, gates], &[rd, h, r_gates]) = (w.shape(), r.shape()) else { return Ok(None) };
    if (rd, r_gates) != (d, gates) {
        return Ok(None);
    }
    // One a direction, or one a row of the gates.
    let of = |at: usize, d: usize| -> Result<Option<Tensor>, OpError> {
        let Some(t) = l.constant(at) else { return Ok(None) };
        let range = match t.len() {
            n if n == rd => d..d + 1,
            n if n == rd * gates => d * gates..(d + 1) * gates,
            _ => return Ok(None),
        };
        Ok(Some(Tensor::new(&[range.len()], t.data().pick(&range.collect::<Vec<_>>()))?))
    };
    let matrix = |codes: &Arc<Tensor>, at: usize, d: usize| -> Result<Option<Frozen>, OpError> {
        let (Some(scale), zero) = (of(at, d)?, of(at + 1, d)?) else { return Ok(None) };
        if scale.dtype() != DType::F32 || l.has(at + 1) && zero.is_none() {
            return Ok(None);
        }
        let scale = scale.as_f32()?;
        let scale = (0..gates).map(|j| scale[if scale.len() == 1 { 0 } else { j }]).collect();
        Frozen::of_codes(l, codes, d, scale, zero.as_ref())
    };
    steps(l, Cell::Lstm, &[d, gates, i], &[d, gates, h], |d| {
        Ok(matrix(w, 8, d)?.zip(matrix(r, 10, d)?).map(|(w, r)| (w, r, None)))
    })
}

/// The matrices of a direction: of the inputs, of the states, and of a GRU's last gate.
type Matrices = (Frozen, Frozen, Option<Frozen>);

/// `w` and `r` are the shapes of the weights as an LSTM has them; `matrices` packs those of a direction.
fn steps(
    l: &Lowering<'_>,
    kind: Cell,
    w: &[usize],
    r: &[usize],
    matrices: impl Fn(usize) -> Result<Option<Matrices>, OpError>,
) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let shape = Sequence::of(l.attrs, kind, l.shape(0)?, r)?;
    let (h, gates) = (shape.h, kind.gates());
    let mut given: Vec<Option<&[usize]>> = (0..8).map(|i| l.shape(i).ok()).collect();
    given[1] = Some(w);
    shape.check(&given, &[shape.d(), gates * h, shape.i])?;
    let lstm = kind == Cell::Lstm;
    let floats = |i: usize| -> Result<Option<Option<&[f32]>>, OpError> {
        match (l.has(i), l.constant(i)) {
            (false, _) => Ok(Some(None)),
            (true, Some(t)) if t.dtype() == DType::F32 => Ok(Some(Some(t.as_f32()?))),
            (true, _) => Ok(None),
        }
    };
    let Some(bias) = floats(3)? else { return Ok(None) };
    let Some(peepholes) = (if lstm { floats(7)? } else { Some(None) }) else { return Ok(None) };
    let other = |i: usize, t: DType| l.has(i) && l.dtype(i) != Some(t);
    if other(4, DType::I32) || other(5, DType::F32) || (lstm && other(6, DType::F32)) {
        return Ok(None);
    }
    let activations = Activation::list(l.attrs, kind.activations(), shape.d())?;
    let linear_before_reset = l.attrs.flag("linear_before_reset", false)?;
    let mut ways = Vec::with_capacity(shape.d());
    for (d, activations) in activations.into_iter().enumerate() {
        let Some((w, r, last)) = matrices(d)? else { return Ok(None) };
        let apart = kind == Cell::Gru && linear_before_reset;
        let of = |b: &[f32], j: usize| {
            let b = &b[d * 2 * gates * h..][..2 * gates * h];
            b[j] + if apart && j >= 2 * h { 0.0 } else { b[gates * h + j] }
        };
        let last_bias = bias.filter(|_| apart).map(|b| b[(d * 2 + 1) * gates * h + 2 * h..][..h].to_vec());
        let peepholes = peepholes.map(|p| p[d * 3 * h..][..3 * h].to_vec());
        let bias = bias.map(|b| (0..gates * h).map(|j| of(b, j)).collect());
        ways.push(Way { w, r, last, bias, last_bias, peepholes, activations });
    }
    let mut reads = vec![0];
    let mut slot = |k: usize| {
        l.has(k).then(|| {
            reads.push(k);
            reads.len() - 1
        })
    };
    let (lens, h0) = (slot(4), slot(5));
    let c0 = if lstm { slot(6) } else { None };
    let clip = l.attrs.float("clip", 0.0)?;
    let bytes = ways.iter().map(|w| w.w.bytes() + w.r.bytes() + w.last.as_ref().map_or(0, Frozen::bytes)).sum();
    let (s, n) = (shape.s, shape.n);
    let work = ways.iter().map(|w| w.w.scratch(s * n).max(w.r.scratch(n))).max().unwrap_or(0);
    // Directions do not look at each other, and a step of one is often too little to be shared.
    let together = ways.len() > 1 && l.threads > 1;
    let y = if together && l.wants(0) { s * n * h } else { 0 };
    let area = (s + 1) * n * gates * h + 3 * n * h + y + work;
    let scratch = area * if together { ways.len() } else { 1 };
    let k = Steps {
        shape,
        ways,
        together,
        area,
        clip: (clip > 0.0).then_some(clip),
        coupled: l.attrs.flag("input_forget", false)?,
        linear_before_reset,
        lens,
        h0,
        c0,
        wants: [l.wants(0), l.wants(1), l.wants(2)],
    };
    Ok(Some(Lowered::new(k, reads).with_scratch(scratch).with_weights(bytes)))
}

impl Kernel for Steps {
    fn name(&self) -> &'static str {
        let q = !self.ways[0].r.q.is_empty();
        if self.ways[0].r.dynamic.is_some() {
            return "lstm-sequence-dynamic-q8";
        }
        match (self.shape.cell, q) {
            (Cell::Lstm, false) => "lstm-sequence-f32",
            (Cell::Lstm, true) => "lstm-sequence-f32w8",
            (Cell::Gru, false) => "gru-sequence-f32",
            (Cell::Gru, true) => "gru-sequence-f32w8",
            (Cell::Rnn, false) => "rnn-sequence-f32",
            (Cell::Rnn, true) => "rnn-sequence-f32w8",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (g, pool) = (&self.shape, io.pool);
        let (reads, writes, scratch) = io.parts();
        if self.wants[0] && self.lens.is_some() {
            writes.f32(0).fill(0.0);
        }
        if self.together {
            // Products with the inputs are large: all threads share each.
            for (way, area) in self.ways.iter().zip(scratch.chunks_exact_mut(self.area)) {
                self.meet_inputs(way, reads, pool, &mut self.parts(area));
            }
            pool.pieces(&mut scratch[..self.ways.len() * self.area], self.area, |d, area| {
                let mut area = self.parts(area);
                let y = std::mem::take(&mut area.y);
                self.recur(d, reads, pool, &mut area, y, |t, b| g.x_row(t, b));
            });
        }
        for (d, way) in self.ways.iter().enumerate() {
            let from = if self.together { d * self.area } else { 0 };
            let mut area = self.parts(&mut scratch[from..][..self.area]);
            if !self.together {
                self.meet_inputs(way, reads, pool, &mut area);
                let y = if self.wants[0] { writes.f32(0) } else { &mut [] };
                self.recur(d, reads, pool, &mut area, y, |t, b| g.y_row(t, d, b));
            } else if self.wants[0] {
                for (t, b) in (0..g.n).flat_map(|b| (0..self.length(reads, b)).map(move |t| (t, b))) {
                    let y = &area.y[g.x_row(t, b) * g.h..][..g.h];
                    writes.f32(0)[g.y_row(t, d, b) * g.h..][..g.h].copy_from_slice(y);
                }
            }
            for (k, state) in [(1, &*area.hs), (2, &*area.cs)] {
                for b in (0..g.n).filter(|_| self.wants[k]) {
                    let row = &mut writes.f32(k)[g.state_row(d, b) * g.h..][..g.h];
                    if self.length(reads, b) == 0 {
                        row.fill(0.0)
                    } else {
                        row.copy_from_slice(&state[b * g.h..][..g.h])
                    }
                }
            }
        }
    }
}

/// What one direction works in.
struct Area<'a> {
    /// Products with the inputs, `[S, N, gates · H]`.
    inputs: &'a mut [f32],
    /// Of one turn, `[N, gates · H]`.
    gates: &'a mut [f32],
    hs: &'a mut [f32],
    cs: &'a mut [f32],
    spare: &'a mut [f32],
    /// States after every turn, rows as those of the inputs; empty where they go where they belong at once.
    y: &'a mut [f32],
    work: &'a mut [f32],
}

/// A sequence that has ended gets zeros.
fn copy_or_zero(from: Option<&[f32]>, to: &mut [f32]) {
    match from {
        Some(from) => to.copy_from_slice(from),
        None => to.fill(0.0),
    }
}

impl Steps {
    fn parts<'a>(&self, area: &'a mut [f32]) -> Area<'a> {
        let (s, n, h) = (self.shape.s, self.shape.n, self.shape.h);
        let width = self.shape.cell.gates() * h;
        let (inputs, rest) = area.split_at_mut(s * n * width);
        let (gates, rest) = rest.split_at_mut(n * width);
        let (hs, rest) = rest.split_at_mut(n * h);
        let (cs, rest) = rest.split_at_mut(n * h);
        let (spare, rest) = rest.split_at_mut(n * h);
        let (y, work) = rest.split_at_mut(if self.together && self.wants[0] { s * n * h } else { 0 });
        Area { inputs, gates, hs, cs, spare, y, work }
    }

    /// Turns of sequence `b`.
    fn length(&self, reads: &Reads<'_>, b: usize) -> usize {
        let s = self.shape.s;
        self.lens.map_or(s, |slot| (bytemuck::cast_slice::<u8, i32>(reads.bytes(slot))[b].max(0) as usize).min(s))
    }

    fn meet_inputs(&self, way: &Way, reads: &Reads<'_>, pool: &Pool, area: &mut Area<'_>) {
        let rows = self.shape.s * self.shape.n;
        let x = &reads.f32(0)[..rows * self.shape.i];
        way.w.product(pool, rows, x, way.bias.as_deref(), false, area.work, area.inputs);
    }

    /// All turns of direction `d`, whose products with the inputs are there. The state after a turn goes to row `place(t, b)` of `y`
    /// where it is wanted.
    fn recur(
        &self,
        d: usize,
        reads: &Reads<'_>,
        pool: &Pool,
        area: &mut Area<'_>,
        y: &mut [f32],
        place: impl Fn(usize, usize) -> usize,
    ) {
        let (g, way) = (&self.shape, &self.ways[d]);
        let (n, h, width) = (g.n, g.h, g.cell.gates() * g.h);
        let Area { inputs, gates: turn_gates, hs, cs, spare, work, .. } = area;
        for (state, from) in [(&mut **hs, self.h0), (&mut **cs, self.c0)] {
            for b in 0..n {
                let row = &mut state[b * h..][..h];
                match from {
                    Some(slot) => row.copy_from_slice(&reads.f32(slot)[g.state_row(d, b) * h..][..h]),
                    None => row.fill(0.0),
                }
            }
        }
        let longest = (0..n).map(|b| self.length(reads, b)).max().unwrap_or(0);
        for turn in 0..longest {
            let step = |b: usize| {
                let length = self.length(reads, b);
                (turn < length).then(|| g.step(d, turn, length))
            };
            let input = |b: usize| step(b).map(|t| &inputs[g.x_row(t, b) * width..][..width]);
            match g.cell {
                Cell::Gru => self.gru(pool, way, &input, turn_gates, hs, spare),
                Cell::Lstm | Cell::Rnn => {
                    for b in 0..n {
                        let row = &mut turn_gates[b * width..][..width];
                        copy_or_zero(input(b), row);
                    }
                    way.r.product(pool, n, hs, None, true, work, turn_gates);
                    for b in (0..n).filter(|&b| step(b).is_some()) {
                        let (gates, h_row) = (&mut turn_gates[b * width..][..width], &mut hs[b * h..][..h]);
                        if g.cell == Cell::Lstm {
                            self.lstm(way, gates, &mut cs[b * h..][..h], h_row);
                        } else {
                            self.clip(gates);
                            way.activations[0].apply(gates);
                            h_row.copy_from_slice(gates);
                        }
                    }
                }
            }
            for b in (0..n).filter(|_| self.wants[0]) {
                if let Some(t) = step(b) {
                    y[place(t, b) * h..][..h].copy_from_slice(&hs[b * h..][..h]);
                }
            }
        }
    }

    fn clip(&self, v: &mut [f32]) {
        if let Some(c) = self.clip {
            v.iter_mut().for_each(|v| *v = v.clamp(-c, c));
        }
    }

    /// One turn of one sequence, from its gates before activation, `i o f c`.
    fn lstm(&self, way: &Way, gates: &mut [f32], c: &mut [f32], h: &mut [f32]) {
        let n = h.len();
        let f = &way.activations;
        let (i, rest) = gates.split_at_mut(n);
        let (o, rest) = rest.split_at_mut(n);
        let (forget, candidate) = rest.split_at_mut(n);
        if let Some(p) = &way.peepholes {
            cell::add_product(&p[..n], c, i);
            cell::add_product(&p[2 * n..], c, forget);
        }
        for v in [&mut *i, &mut *forget, &mut *candidate] {
            self.clip(v);
        }
        f[0].apply(i);
        if self.coupled {
            forget.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
        } else {
            f[0].apply(forget);
        }
        f[1].apply(candidate);
        cell::lstm_state(forget, i, candidate, c);
        if let Some(p) = &way.peepholes {
            cell::add_product(&p[n..2 * n], c, o);
        }
        self.clip(o);
        f[0].apply(o);
        candidate.copy_from_slice(c);
        f[2].apply(candidate);
        cell::product(o, candidate, h);
    }

    /// One turn of all sequences: `z r` in the first part of `gates`, the candidate in the last.
    fn gru<'a>(
        &self,
        pool: &Pool,
        way: &Way,
        input: &dyn Fn(usize) -> Option<&'a [f32]>,
        gates: &mut [f32],
        hs: &mut [f32],
        reset: &mut [f32],
    ) {
        let (n, h) = (self.shape.n, self.shape.h);
        let (zr, last) = gates.split_at_mut(n * 2 * h);
        for b in 0..n {
            let row = &mut zr[b * 2 * h..][..2 * h];
            copy_or_zero(input(b).map(|v| &v[..2 * h]), row);
        }
        way.r.product(pool, n, hs, None, true, &mut [], zr);
        self.clip(zr);
        way.activations[0].apply(zr);
        let Some(r_last) = &way.last else { return };
        if self.linear_before_reset {
            r_last.product(pool, n, hs, way.last_bias.as_deref(), false, &mut [], last);
            for b in 0..n {
                let row = &mut last[b * h..][..h];
                let r = &zr[b * 2 * h + h..][..h];
                if let Some(v) = input(b) {
                    row.iter_mut().zip(r).zip(&v[2 * h..]).for_each(|((y, r), x)| *y = x + r * *y);
                }
            }
        } else {
            for b in 0..n {
                cell::product(&zr[b * 2 * h + h..][..h], &hs[b * h..][..h], &mut reset[b * h..][..h]);
                let row = &mut last[b * h..][..h];
                copy_or_zero(input(b).map(|v| &v[2 * h..]), row);
            }
            r_last.product(pool, n, reset, None, true, &mut [], last);
        }
        self.clip(last);
        way.activations[1].apply(last);
        for b in (0..n).filter(|&b| input(b).is_some()) {
            cell::gru_state(&zr[b * 2 * h..][..h], &last[b * h..][..h], &mut hs[b * h..][..h]);
        }
    }
}
