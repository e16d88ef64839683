//! Kernels of recurrences whose weights are values of the plan, as in training: forward, and back through time.
//!
//! One direction after the other. Rows are in the order of turns, row `turn · N + sequence`, whatever the direction and the
//! layout, so that the products of all turns with inputs, and of all gradients with what they met, are one matrix product
//! each; only those with the states are one a turn. A sequence that has ended has rows of zeros. `W` is short for `G · H`.
use hone_kernels::gemm::{Gemm, Packed, gemm_on, packed_len};
use hone_kernels::product::{pack_plain, pack_transposed};
use hone_kernels::threads::Pool;
use hone_kernels::transpose::transpose;

use super::activation::Activation;
use super::{Cell, Sequence};
use crate::ops::OpError;
use crate::plan::{Io, Kernel, Lowered, Lowering, Reads};
use crate::tensor::DType;

/// Operands by their place: eight of the recurrence, then the gradients by `Y`, `Y_h` and `Y_c`.
const OPERANDS: usize = 11;
const LENGTHS: usize = 4;

struct Live {
    shape: Sequence,
    activations: Vec<Vec<Activation>>,
    clip: Option<f32>,
    coupled: bool,
    linear_before_reset: bool,
    /// Where each operand that is given stands among those read.
    slots: [Option<usize>; OPERANDS],
    wants: [bool; 7],
}

/// The parts of the scratch area.
struct Areas<'a> {
    /// Inputs `[S·N, I]`.
    x: &'a mut [f32],
    /// Gates before clipping and activation, and after, `[S·N, W]`.
    pre: &'a mut [f32],
    gate: &'a mut [f32],
    /// States before each turn, `[S·N, H]`.
    h: &'a mut [f32],
    c: &'a mut [f32],
    /// The new cell of an LSTM; of a GRU what its last gate's weights meet, or with `linear_before_reset` what they made.
    extra: &'a mut [f32],
    /// The states now, `[N, H]`; on the way back the gradients by them.
    state: &'a mut [f32],
    cell: &'a mut [f32],
    /// Products of one turn, `[N, W]` and `[N, H]`.
    turn: &'a mut [f32],
    turn_last: &'a mut [f32],
    bias: &'a mut [f32],
    /// Weights packed for [`gemm_on`].
    pack: &'a mut [f32],
    states_pack: &'a mut [f32],
    last_pack: &'a mut [f32],
    /// Gradients by the gates before activation, and by the products with the state, `[S·N, W]`.
    dpre: &'a mut [f32],
    through: &'a mut [f32],
    /// Either transposed.
    turned: &'a mut [f32],
}

/// Lowers the operator of that cell when its weights are not known.
pub(super) fn forward(l: &Lowering<'_>, kind: Cell) -> Result<Option<Lowered>, OpError> {
    let Some((live, reads)) = Live::of(l, kind, 8)? else { return Ok(None) };
    let scratch = live.sizes(false).iter().sum();
    Ok(Some(Lowered::new(Forward(live), reads).with_scratch(scratch)))
}

/// Lowers the gradients of the operator of that cell.
pub(super) fn backward(l: &Lowering<'_>, kind: Cell) -> Result<Option<Lowered>, OpError> {
    let Some((live, reads)) = Live::of(l, kind, OPERANDS)? else { return Ok(None) };
    let scratch = live.sizes(true).iter().sum();
    Ok(Some(Lowered::new(Backward(live), reads).with_scratch(scratch)))
}

impl Live {
    fn of(l: &Lowering<'_>, kind: Cell, operands: usize) -> Result<Option<(Live, Vec<usize>)>, OpError> {
        let lstm = kind == Cell::Lstm;
        let (mut reads, mut slots) = (Vec::new(), [None; OPERANDS]);
        for (i, slot) in slots.iter_mut().enumerate().take(operands) {
            if !l.has(i) || matches!(i, 6 | 7 | 10) && !lstm {
                continue;
            }
            let expected = if i == LENGTHS { DType::I32 } else { DType::F32 };
            if l.dtype(i) != Some(expected) {
                return Ok(None);
            }
            *slot = Some(reads.len());
            reads.push(i);
        }
        let (w, r) = (l.shape(1)?, l.shape(2)?);
        let shape = Sequence::of(l.attrs, kind, l.shape(0)?, r)?;
        let given: Vec<Option<&[usize]>> = (0..8).map(|i| l.shape(i).ok()).collect();
        shape.check(&given, &[shape.d(), kind.gates() * shape.h, shape.i])?;
        debug_assert_eq!(w[2], shape.i);
        let clip = l.attrs.float("clip", 0.0)?;
        let live = Live {
            activations: Activation::list(l.attrs, kind.activations(), shape.d())?,
            clip: (clip > 0.0).then_some(clip),
            coupled: l.attrs.flag("input_forget", false)?,
            linear_before_reset: l.attrs.flag("linear_before_reset", false)?,
            slots,
            wants: std::array::from_fn(|i| l.wants(i)),
            shape,
        };
        Ok(Some((live, reads)))
    }

    fn width(&self) -> usize {
        self.shape.cell.gates() * self.shape.h
    }

    /// Whether the last gate's weights meet another vector than the state.
    fn last_apart(&self) -> bool {
        self.shape.cell == Cell::Gru && !self.linear_before_reset
    }

    /// Floats of each part of [`Areas`], in its order.
    fn sizes(&self, back: bool) -> [usize; 17] {
        let g = &self.shape;
        let (m, w, n, i, h) = (g.s * g.n, self.width(), g.n, g.i, g.h);
        let only = |when: bool, len: usize| if when { len } else { 0 };
        let pack = packed_len(w, i).max(only(back, packed_len(i, w).max(packed_len(i, m)).max(packed_len(h, m))));
        let states = packed_len(w, h).max(only(back, packed_len(h, w)));
        [
            m * i,
            m * w,
            m * w,
            m * h,
            only(g.cell == Cell::Lstm, m * h),
            m * h,
            n * h,
            n * h,
            n * w,
            n * h,
            w,
            pack,
            states,
            only(self.last_apart(), packed_len(h, h)),
            only(back, m * w),
            only(back && g.cell == Cell::Gru, m * w),
            only(back, m * w),
        ]
    }

    fn areas<'a>(&self, back: bool, mut scratch: &'a mut [f32]) -> Areas<'a> {
        let mut parts = self.sizes(back).into_iter().map(|len| {
            let (part, rest) = std::mem::take(&mut scratch).split_at_mut(len);
            scratch = rest;
            part
        });
        let mut next = || parts.next().unwrap_or_default();
        Areas {
            x: next(),
            pre: next(),
            gate: next(),
            h: next(),
            c: next(),
            extra: next(),
            state: next(),
            cell: next(),
            turn: next(),
            turn_last: next(),
            bias: next(),
            pack: next(),
            states_pack: next(),
            last_pack: next(),
            dpre: next(),
            through: next(),
            turned: next(),
        }
    }

    fn operand<'r>(&self, reads: &Reads<'r>, i: usize) -> Option<&'r [f32]> {
        self.slots[i].map(|slot| reads.f32(slot))
    }

    /// A weight's part of one direction.
    fn part<'r>(&self, reads: &Reads<'r>, i: usize, d: usize, len: usize) -> &'r [f32] {
        self.operand(reads, i).map_or(&[], |all| &all[d * len..(d + 1) * len])
    }

    fn length(&self, reads: &Reads<'_>, b: usize) -> usize {
        let s = self.shape.s;
        self.slots[LENGTHS].map_or(s, |slot| (reads.of::<i32>(slot)[b].max(0) as usize).min(s))
    }

    fn longest(&self, reads: &Reads<'_>) -> usize {
        (0..self.shape.n).map(|b| self.length(reads, b)).max().unwrap_or(0)
    }

    /// The step that a turn of a sequence takes, if it has not ended.
    fn step(&self, reads: &Reads<'_>, d: usize, turn: usize, b: usize) -> Option<usize> {
        let length = self.length(reads, b);
        (turn < length).then(|| self.shape.step(d, turn, length))
    }

    /// Clips and activates gates `first..first + count` of a row.
    fn activate(&self, f: Activation, pre: &[f32], gate: &mut [f32]) {
        gate.copy_from_slice(pre);
        if let Some(c) = self.clip {
            gate.iter_mut().for_each(|v| *v = v.clamp(-c, c));
        }
        f.apply(gate);
    }

    /// Multiplies gradients by the slope of an activation and of the clipping before it.
    fn descend(&self, f: Activation, pre: &[f32], gate: &[f32], d: &mut [f32]) {
        f.descend(pre, gate, d);
        if let Some(c) = self.clip {
            d.iter_mut().zip(pre).for_each(|(d, pre)| *d = if pre.abs() > c { 0.0 } else { *d });
        }
    }

    /// Goes through all turns of a direction. Leaves in `a` what each turn met, and the last states. `told` gets the state
    /// after each turn of each sequence: step, sequence, state.
    fn walk(
        &self,
        pool: &Pool,
        d: usize,
        reads: &Reads<'_>,
        a: &mut Areas<'_>,
        mut told: impl FnMut(usize, usize, &[f32]),
    ) {
        let g = &self.shape;
        let (n, i, h, w) = (g.n, g.i, g.h, self.width());
        let turns = self.longest(reads);
        for (row, to) in a.x.chunks_exact_mut(i.max(1)).take(turns * n).enumerate() {
            match self.step(reads, d, row / n, row % n) {
                Some(t) => to.copy_from_slice(&reads.f32(0)[g.x_row(t, row % n) * i..][..i]),
                None => to.fill(0.0),
            }
        }
        let bias = self.part(reads, 3, d, 2 * w);
        let (of_inputs, of_states) = bias.split_at(if bias.is_empty() { 0 } else { w });
        for (j, to) in a.bias.iter_mut().enumerate().take(if bias.is_empty() { 0 } else { w }) {
            let apart = g.cell == Cell::Gru && self.linear_before_reset && j >= 2 * h;
            *to = of_inputs[j] + if apart { 0.0 } else { of_states[j] };
        }
        pack_transposed(w, i, self.part(reads, 1, d, w * i), a.pack);
        let r = self.part(reads, 2, d, w * h);
        pack_transposed(w, h, r, a.states_pack);
        if self.last_apart() {
            pack_transposed(h, h, &r[2 * h * h..], a.last_pack);
        }
        let product = |m: usize, k: usize, n: usize, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]| {
            let w = Packed::F32(&w[..packed_len(n, k)]);
            gemm_on(pool, &Gemm { m, k, n, x, x_stride: k, w, bias, accumulate: false }, y);
        };
        product(turns * n, i, w, a.x, a.pack, (!bias.is_empty()).then_some(&*a.bias), &mut a.pre[..turns * n * w]);
        for (state, from) in [(&mut *a.state, 5), (&mut *a.cell, 6)] {
            for b in 0..n {
                let row = &mut state[b * h..][..h];
                match self.operand(reads, from) {
                    Some(given) => row.copy_from_slice(&given[g.state_row(d, b) * h..][..h]),
                    None => row.fill(0.0),
                }
            }
        }
        let peepholes = self.part(reads, 7, d, 3 * h);
        let f = &self.activations[d];
        for turn in 0..turns {
            let first = turn * n;
            a.h[first * h..][..n * h].copy_from_slice(a.state);
            product(n, h, w, a.state, a.states_pack, None, a.turn);
            let pre = &mut a.pre[first * w..][..n * w];
            let gate = &mut a.gate[first * w..][..n * w];
            let extra = &mut a.extra[first * h..][..n * h];
            match g.cell {
                Cell::Rnn => {
                    pre.iter_mut().zip(&*a.turn).for_each(|(p, t)| *p += t);
                    self.activate(f[0], pre, gate);
                    for b in (0..n).filter(|&b| self.step(reads, d, turn, b).is_some()) {
                        a.state[b * h..][..h].copy_from_slice(&gate[b * h..][..h]);
                    }
                }
                Cell::Lstm => {
                    pre.iter_mut().zip(&*a.turn).for_each(|(p, t)| *p += t);
                    a.c[first * h..][..n * h].copy_from_slice(a.cell);
                    for b in 0..n {
                        let (pre, gate) = (&mut pre[b * w..][..w], &mut gate[b * w..][..w]);
                        let (extra, cell) = (&mut extra[b * h..][..h], &mut a.cell[b * h..][..h]);
                        if self.step(reads, d, turn, b).is_none() {
                            extra.fill(0.0);
                            continue;
                        }
                        for j in 0..peepholes.len().min(h) {
                            pre[j] += peepholes[j] * cell[j];
                            pre[2 * h + j] += peepholes[2 * h + j] * cell[j];
                        }
                        self.activate(f[0], &pre[..h], &mut gate[..h]);
                        if self.coupled {
                            (0..h).for_each(|j| gate[2 * h + j] = 1.0 - gate[j]);
                        } else {
                            self.activate(f[0], &pre[2 * h..3 * h], &mut gate[2 * h..3 * h]);
                        }
                        self.activate(f[1], &pre[3 * h..], &mut gate[3 * h..]);
                        for j in 0..h {
                            cell[j] = gate[2 * h + j] * cell[j] + gate[j] * gate[3 * h + j];
                            extra[j] = cell[j];
                            if !peepholes.is_empty() {
                                pre[h + j] += peepholes[h + j] * cell[j];
                            }
                        }
                        self.activate(f[0], &pre[h..2 * h], &mut gate[h..2 * h]);
                        let state = &mut a.state[b * h..][..h];
                        state.copy_from_slice(cell);
                        f[2].apply(state);
                        state.iter_mut().zip(&gate[h..2 * h]).for_each(|(s, o)| *s *= o);
                    }
                }
                Cell::Gru => {
                    for b in 0..n {
                        let (pre, gate) = (&mut pre[b * w..][..w], &mut gate[b * w..][..w]);
                        let (extra, turned) = (&mut extra[b * h..][..h], &a.turn[b * w..][..w]);
                        if self.step(reads, d, turn, b).is_none() {
                            extra.fill(0.0);
                            continue;
                        }
                        (0..2 * h).for_each(|j| pre[j] += turned[j]);
                        self.activate(f[0], &pre[..2 * h], &mut gate[..2 * h]);
                        for j in 0..h {
                            if self.linear_before_reset {
                                extra[j] = turned[2 * h + j] + of_states.get(2 * h + j).unwrap_or(&0.0);
                                pre[2 * h + j] += gate[h + j] * extra[j];
                            } else {
                                extra[j] = gate[h + j] * a.state[b * h + j];
                            }
                        }
                    }
                    if self.last_apart() {
                        product(n, h, h, extra, a.last_pack, None, a.turn_last);
                    }
                    for b in (0..n).filter(|&b| self.step(reads, d, turn, b).is_some()) {
                        let (pre, gate) = (&mut pre[b * w..][..w], &mut gate[b * w..][..w]);
                        if self.last_apart() {
                            (0..h).for_each(|j| pre[2 * h + j] += a.turn_last[b * h + j]);
                        }
                        self.activate(f[1], &pre[2 * h..], &mut gate[2 * h..]);
                        let state = &mut a.state[b * h..][..h];
                        (0..h).for_each(|j| state[j] = (1.0 - gate[j]) * gate[2 * h + j] + gate[j] * state[j]);
                    }
                }
            }
            for b in 0..n {
                if let Some(t) = self.step(reads, d, turn, b) {
                    told(t, b, &a.state[b * h..][..h]);
                }
            }
        }
    }
}

struct Forward(Live);

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        match self.0.shape.cell {
            Cell::Lstm => "lstm-live-f32",
            Cell::Gru => "gru-live-f32",
            Cell::Rnn => "rnn-live-f32",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (live, pool) = (&self.0, io.pool);
        let (g, h) = (&live.shape, live.shape.h);
        let (reads, writes, scratch) = io.parts();
        let mut a = live.areas(false, scratch);
        if live.wants[0] && live.slots[LENGTHS].is_some() {
            writes.f32(0).fill(0.0);
        }
        for d in 0..g.d() {
            live.walk(pool, d, reads, &mut a, |t, b, state| {
                if live.wants[0] {
                    writes.f32(0)[g.y_row(t, d, b) * h..][..h].copy_from_slice(state);
                }
            });
            for (k, state) in [(1, &*a.state), (2, &*a.cell)] {
                for b in (0..g.n).filter(|_| live.wants[k]) {
                    let row = &mut writes.f32(k)[g.state_row(d, b) * h..][..h];
                    if live.length(reads, b) == 0 { row.fill(0.0) } else { row.copy_from_slice(&state[b * h..][..h]) }
                }
            }
        }
    }
}

struct Backward(Live);

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        match self.0.shape.cell {
            Cell::Lstm => "lstm-backward-f32",
            Cell::Gru => "gru-backward-f32",
            Cell::Rnn => "rnn-backward-f32",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (live, pool) = (&self.0, io.pool);
        let g = &live.shape;
        let (n, i, h, w) = (g.n, g.i, g.h, live.width());
        let (reads, writes, scratch) = io.parts();
        let mut a = live.areas(true, scratch);
        // By X, W, R, B, initial_h, initial_c, P.
        let [dx, dw, dr, db, dh0, dc0, dp] = writes.apart_f32::<7>();
        for to in [&mut *dx, &mut *db, &mut *dp] {
            to.fill(0.0);
        }
        let turns = live.longest(reads);
        let rows = turns * n;
        for d in 0..g.d() {
            live.walk(pool, d, reads, &mut a, |_, _, _| {});
            for (state, by) in [(&mut *a.state, 9), (&mut *a.cell, 10)] {
                for b in 0..n {
                    let row = &mut state[b * h..][..h];
                    match live.operand(reads, by).filter(|_| live.length(reads, b) > 0) {
                        Some(given) => row.copy_from_slice(&given[g.state_row(d, b) * h..][..h]),
                        None => row.fill(0.0),
                    }
                }
            }
            let r = live.part(reads, 2, d, w * h);
            pack_plain(h, w, r, a.states_pack);
            if live.last_apart() {
                pack_plain(h, h, &r[2 * h * h..], a.last_pack);
            }
            let dp = if live.wants[6] { &mut dp[d * 3 * h..][..3 * h] } else { &mut [][..] };
            for turn in (0..turns).rev() {
                self.turn(pool, d, turn, reads, &mut a, dp);
            }
            for (to, from) in [(&mut *dh0, &*a.state), (&mut *dc0, &*a.cell)] {
                for b in 0..if to.is_empty() { 0 } else { n } {
                    to[g.state_row(d, b) * h..][..h].copy_from_slice(&from[b * h..][..h]);
                }
            }
            let through = if g.cell == Cell::Gru { &*a.through } else { &*a.dpre };
            if live.wants[3] {
                // The last gate's product is of r ∘ h, but its second bias is a bias all the same.
                let by_states = if live.last_apart() { &*a.dpre } else { through };
                for (part, from) in db[d * 2 * w..][..2 * w].chunks_exact_mut(w).zip([&*a.dpre, by_states]) {
                    for row in from[..rows * w].chunks_exact(w) {
                        part.iter_mut().zip(row).for_each(|(b, g)| *b += g);
                    }
                }
            }
            // `leftᵀ · right`, both of all turns; the left turned already.
            let product = |m: usize, turned: &[f32], n: usize, right: &[f32], pack: &mut [f32], y: &mut [f32]| {
                if rows == 0 {
                    y.fill(0.0);
                    return;
                }
                pack_plain(n, rows, right, pack);
                let w = Packed::F32(&pack[..packed_len(n, rows)]);
                let g = Gemm { m, k: rows, n, x: turned, x_stride: rows, w, bias: None, accumulate: false };
                gemm_on(pool, &g, y);
            };
            let turned = &mut a.turned[..rows * w];
            transpose(pool, 1, rows, w, &a.dpre[..rows * w], turned);
            if live.wants[1] {
                product(w, turned, i, &a.x[..rows * i], a.pack, &mut dw[d * w * i..][..w * i]);
            }
            if live.wants[2] {
                let (states, last) =
                    dr[d * w * h..][..w * h].split_at_mut(if live.last_apart() { 2 * h * h } else { w * h });
                if !last.is_empty() {
                    product(h, &turned[(2 * h * rows).min(rows * w)..], h, &a.extra[..rows * h], a.pack, last);
                }
                if g.cell == Cell::Gru {
                    transpose(pool, 1, rows, w, &a.through[..rows * w], turned);
                }
                product(states.len() / h.max(1), turned, h, &a.h[..rows * h], a.pack, states);
            }
            if live.wants[0] {
                pack_plain(i, w, live.part(reads, 1, d, w * i), a.pack);
                let packed = Packed::F32(&a.pack[..packed_len(i, w)]);
                let by_gates =
                    Gemm { m: rows, k: w, n: i, x: a.dpre, x_stride: w, w: packed, bias: None, accumulate: false };
                gemm_on(pool, &by_gates, &mut a.x[..rows * i]);
                for (row, from) in a.x[..rows * i].chunks_exact(i.max(1)).enumerate() {
                    if let Some(t) = live.step(reads, d, row / n, row % n) {
                        let to = &mut dx[g.x_row(t, row % n) * i..][..i];
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    }
                }
            }
        }
    }
}

impl Backward {
    /// From the gradients by the states after a turn, in `a.state` and `a.cell`, to those before it.
    fn turn(&self, pool: &Pool, d: usize, turn: usize, reads: &Reads<'_>, a: &mut Areas<'_>, dp: &mut [f32]) {
        let live = &self.0;
        let g = &live.shape;
        let (n, h, w) = (g.n, g.h, live.width());
        let (first, f) = (turn * n, &live.activations[d]);
        let (dpre, through) = (&mut a.dpre[first * w..][..n * w], a.through.get_mut(first * w..(first + n) * w));
        let through = through.unwrap_or_default();
        let (pre, gate) = (&a.pre[first * w..][..n * w], &a.gate[first * w..][..n * w]);
        let (before, extra) = (&a.h[first * h..][..n * h], &a.extra[first * h..][..n * h]);
        let dy = live.operand(reads, 8);
        for b in 0..n {
            let dpre = &mut dpre[b * w..][..w];
            let Some(t) = live.step(reads, d, turn, b) else {
                dpre.fill(0.0);
                if !through.is_empty() {
                    through[b * w..][..w].fill(0.0);
                }
                continue;
            };
            let dh = &mut a.state[b * h..][..h];
            if let Some(dy) = dy {
                dh.iter_mut().zip(&dy[g.y_row(t, d, b) * h..][..h]).for_each(|(a, b)| *a += b);
            }
            let (pre, gate) = (&pre[b * w..][..w], &gate[b * w..][..w]);
            let (before, extra) = (&before[b * h..][..h], &extra[b * h..][..h]);
            match g.cell {
                Cell::Rnn => {
                    dpre.copy_from_slice(dh);
                    live.descend(f[0], pre, gate, dpre);
                    dh.fill(0.0);
                }
                Cell::Lstm => {
                    let (dc, c) = (&mut a.cell[b * h..][..h], &a.c[(first + b) * h..][..h]);
                    let peepholes = live.part(reads, 7, d, 3 * h);
                    // The cell through its activation.
                    let shown = &mut a.turn_last[b * h..][..h];
                    shown.copy_from_slice(extra);
                    f[2].apply(shown);
                    for j in 0..h {
                        dpre[h + j] = dh[j] * shown[j];
                        dh[j] *= gate[h + j];
                    }
                    live.descend(f[0], &pre[h..2 * h], &gate[h..2 * h], &mut dpre[h..2 * h]);
                    f[2].descend(extra, shown, dh);
                    for j in 0..h {
                        let (i, o, forget, new) = (j, h + j, 2 * h + j, 3 * h + j);
                        dc[j] += dh[j] + peepholes.get(o).map_or(0.0, |p| dpre[o] * p);
                        let df = dc[j] * c[j];
                        dpre[forget] = if live.coupled { 0.0 } else { df };
                        dpre[i] = dc[j] * gate[new] - if live.coupled { df } else { 0.0 };
                        dpre[new] = dc[j] * gate[i];
                    }
                    live.descend(f[0], &pre[..h], &gate[..h], &mut dpre[..h]);
                    if !live.coupled {
                        live.descend(f[0], &pre[2 * h..3 * h], &gate[2 * h..3 * h], &mut dpre[2 * h..3 * h]);
                    }
                    live.descend(f[1], &pre[3 * h..], &gate[3 * h..], &mut dpre[3 * h..]);
                    for j in 0..h {
                        let by = |k: usize, gate: usize| peepholes.get(k * h + j).map_or(0.0, |p| dpre[gate] * p);
                        dc[j] = dc[j] * gate[2 * h + j] + by(0, j) + by(2, 2 * h + j);
                        if !dp.is_empty() {
                            dp[j] += dpre[j] * c[j];
                            dp[h + j] += dpre[h + j] * extra[j];
                            dp[2 * h + j] += dpre[2 * h + j] * c[j];
                        }
                    }
                    dh.fill(0.0);
                }
                Cell::Gru => {
                    for j in 0..h {
                        dpre[j] = dh[j] * (before[j] - gate[2 * h + j]);
                        dpre[2 * h + j] = dh[j] * (1.0 - gate[j]);
                        dh[j] *= gate[j];
                    }
                    live.descend(f[0], &pre[..h], &gate[..h], &mut dpre[..h]);
                    live.descend(f[1], &pre[2 * h..], &gate[2 * h..], &mut dpre[2 * h..]);
                    // By the reset gate, but for the products that are still to be made.
                    for j in 0..h {
                        dpre[h + j] = if live.linear_before_reset { dpre[2 * h + j] * extra[j] } else { 0.0 };
                    }
                }
            }
        }
        if g.cell == Cell::Gru {
            if live.last_apart() {
                let w = Packed::F32(&a.last_pack[..packed_len(h, h)]);
                let by =
                    Gemm { m: n, k: h, n: h, x: &dpre[2 * h..], x_stride: 3 * h, w, bias: None, accumulate: false };
                gemm_on(pool, &by, a.turn_last);
            }
            for b in (0..n).filter(|&b| live.step(reads, d, turn, b).is_some()) {
                let (dpre, through) = (&mut dpre[b * w..][..w], &mut through[b * w..][..w]);
                let (pre, gate) = (&pre[b * w..][..w], &gate[b * w..][..w]);
                if live.last_apart() {
                    for j in 0..h {
                        let by_reset_state = a.turn_last[b * h + j];
                        a.state[b * h + j] += by_reset_state * gate[h + j];
                        dpre[h + j] = by_reset_state * before[b * h + j];
                    }
                }
                live.descend(f[0], &pre[h..2 * h], &gate[h..2 * h], &mut dpre[h..2 * h]);
                through[..2 * h].copy_from_slice(&dpre[..2 * h]);
                for j in 0..h {
                    through[2 * h + j] = if live.last_apart() { 0.0 } else { dpre[2 * h + j] * gate[h + j] };
                }
            }
        }
        let by_states = if g.cell == Cell::Gru { &*through } else { &*dpre };
        let packed = Packed::F32(&a.states_pack[..packed_len(h, w)]);
        let back = Gemm { m: n, k: w, n: h, x: by_states, x_stride: w, w: packed, bias: None, accumulate: true };
        gemm_on(pool, &back, a.state);
    }
}
