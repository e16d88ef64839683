//! Backpropagation through time: gradients of whole-sequence recurrences, all directions, by hand.
//!
//! What the forward part went through is computed again, turn by turn, and then walked backwards. The letters are those of
//! the family.
use super::activation::Activation;
use super::{Cell, Sequence, live, record};
use crate::autodiff::Backward;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, optional};
use crate::tensor::Tensor;

/// Operands of the recurrence (0 to 7, as ONNX has them) and the gradients by `Y`, `Y_h` and `Y_c` (8 to 10) to those by
/// `X`, `W`, `R`, `B`, `initial_h`, `initial_c` and `P`.
pub(super) static RECURRENT_VJP: OpDef = OpDef::new(
    "RecurrentVjp",
    "gradients of a whole-sequence recurrence",
    |attrs, inputs| {
        let cell = cell_of(attrs)?;
        let (x, w, r) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "R")?);
        let g = Sequence::of(attrs, cell, &x.shape, &r.shape)?;
        let bias = vec![g.d(), 2 * cell.gates() * g.h];
        let shapes = [
            x.shape.clone(),
            w.shape.clone(),
            r.shape.clone(),
            bias,
            g.state_shape(),
            g.state_shape(),
            vec![g.d(), 3 * g.h],
        ];
        Ok(Some(shapes.into_iter().map(|s| Fact::new(x.dtype, s)).collect()))
    },
    reference,
)
.domain(HONE)
.kernel(|l| live::backward(l, cell_of(l.attrs)?))
.gpu(|l| record::backward(l, cell_of(l.attrs)?));

fn cell_of(attrs: &Attrs) -> Result<Cell, OpError> {
    match attrs.str("cell", "")? {
        "LSTM" => Ok(Cell::Lstm),
        "GRU" => Ok(Cell::Gru),
        "RNN" => Ok(Cell::Rnn),
        other => Err(OpError::attribute("cell", format!("is `{other}`"))),
    }
}

/// Where the operand of each result of [`RECURRENT_VJP`] is among those of the recurrence.
const OPERANDS: [usize; 7] = [0, 1, 2, 3, 5, 6, 7];

/// Of a recurrence.
pub(super) fn vjp(b: &mut Backward<'_>, cell: &str) -> Result<(), OpError> {
    let mut attrs = Attrs::clone(&b.attrs());
    attrs.map.insert("cell".into(), Attr::Str(cell.into()));
    let mut inputs: Vec<_> = (0..8).map(|i| b.optional(i)).collect();
    inputs.extend((0..3).map(|i| b.dy_of(i)));
    let wanted: Vec<bool> = OPERANDS.iter().map(|&i| b.wants(i)).collect();
    let last = wanted.iter().rposition(|&w| w).map_or(0, |i| i + 1);
    let made = b.apply(&RECURRENT_VJP, attrs, &inputs, &wanted[..last])?;
    for (i, g) in OPERANDS.into_iter().zip(made) {
        if let Some(g) = g {
            b.give(i, g);
        }
    }
    Ok(())
}

/// What one turn of one sequence went through.
struct Turn {
    t: usize,
    /// State before.
    h: Vec<f64>,
    c: Vec<f64>,
    /// Gates before activation, clipped as they were, in the order of the weights.
    pre: Vec<f64>,
    /// Whether clipping left each as it was.
    free: Vec<bool>,
    /// Gates after activation.
    gate: Vec<f64>,
    /// The new cell of an LSTM; of a GRU what its reset gate scales: the last gate's product with the state.
    extra: Vec<f64>,
}

struct Run<'a> {
    g: Sequence,
    x: Vec<f64>,
    w: Vec<f64>,
    r: Vec<f64>,
    bias: Option<Vec<f64>>,
    peepholes: Option<Vec<f64>>,
    activations: Vec<Vec<Activation>>,
    clip: f64,
    linear_before_reset: bool,
    coupled: bool,
    dy: Option<Vec<f64>>,
    dx: &'a mut [f64],
    dw: &'a mut [f64],
    dr: &'a mut [f64],
    db: &'a mut [f64],
    dp: &'a mut [f64],
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let cell = cell_of(attrs)?;
    let (x, w, r) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "R")?);
    let g = Sequence::of(attrs, cell, x.shape(), r.shape())?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| optional(inputs, i).map(Tensor::shape)).collect();
    g.check(&given, &[g.d(), cell.gates() * g.h, g.i])?;
    let floats = |i: usize| optional(inputs, i).map(|t| t.data().to_f64());
    let lengths = g.lengths(optional(inputs, 4));
    let lstm = cell == Cell::Lstm;
    let (h0, c0) = (floats(5), if lstm { floats(6) } else { None });
    let (dy_h, dy_c) = (floats(9), floats(10));
    let (h, d, n) = (g.h, g.d(), g.n);
    let (mut dx, mut dw, mut dr) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; r.len()]);
    let (mut db, mut dp) = (vec![0.0; d * 2 * cell.gates() * h], vec![0.0; d * 3 * h]);
    let (mut dh0, mut dc0) = (vec![0.0; d * n * h], vec![0.0; d * n * h]);
    let mut run = Run {
        x: x.data().to_f64(),
        w: w.data().to_f64(),
        r: r.data().to_f64(),
        bias: floats(3),
        peepholes: if lstm { floats(7) } else { None },
        activations: Activation::list(attrs, cell.activations(), d)?,
        clip: f64::from(attrs.float("clip", 0.0)?),
        linear_before_reset: attrs.flag("linear_before_reset", false)?,
        coupled: attrs.flag("input_forget", false)?,
        dy: floats(8),
        dx: &mut dx,
        dw: &mut dw,
        dr: &mut dr,
        db: &mut db,
        dp: &mut dp,
        g,
    };
    for d in 0..d {
        for (n, &length) in lengths.iter().enumerate() {
            if length == 0 {
                continue;
            }
            let row = run.g.state_row(d, n) * h;
            let at = |from: &Option<Vec<f64>>| from.as_ref().map_or(vec![0.0; h], |v| v[row..row + h].to_vec());
            let turns = run.forward(d, n, length, at(&h0), at(&c0));
            let (mut dh, mut dc) = (at(&dy_h), at(&dy_c));
            for turn in turns.iter().rev() {
                (dh, dc) = run.backward(d, n, turn, dh, dc);
            }
            dh0[row..row + h].copy_from_slice(&dh);
            dc0[row..row + h].copy_from_slice(&dc);
        }
    }
    let g = run.g.clone();
    let bias = [g.d(), 2 * cell.gates() * h];
    let dtype = x.dtype();
    Ok(vec![
        Tensor::from_f64(dtype, x.shape(), &dx)?,
        Tensor::from_f64(dtype, w.shape(), &dw)?,
        Tensor::from_f64(dtype, r.shape(), &dr)?,
        Tensor::from_f64(dtype, &bias, &db)?,
        Tensor::from_f64(dtype, &g.state_shape(), &dh0)?,
        Tensor::from_f64(dtype, &g.state_shape(), &dc0)?,
        Tensor::from_f64(dtype, &[g.d(), 3 * h], &dp)?,
    ])
}

/// Which activation a gate goes through, in the order of the weights.
fn activation_of(cell: Cell, gate: usize) -> usize {
    match (cell, gate) {
        (Cell::Lstm, 3) | (Cell::Gru, 2) => 1,
        _ => 0,
    }
}

impl Run<'_> {
    fn rows(&self) -> usize {
        self.g.cell.gates() * self.g.h
    }

    /// `m · v` of direction `d`, rows `first..first + count` of a weight with rows of `v`'s length.
    fn product(&self, m: &[f64], d: usize, first: usize, count: usize, v: &[f64]) -> Vec<f64> {
        let k = v.len();
        let m = &m[(d * self.rows() + first) * k..][..count * k];
        (0..count).map(|j| m[j * k..][..k].iter().zip(v).map(|(a, b)| a * b).sum()).collect()
    }

    fn bias(&self, d: usize, j: usize, recurrent: bool) -> f64 {
        let rows = self.rows();
        self.bias.as_ref().map_or(0.0, |b| b[(d * 2 + usize::from(recurrent)) * rows + j])
    }

    fn peephole(&self, d: usize, k: usize, j: usize) -> f64 {
        self.peepholes.as_ref().map_or(0.0, |p| p[d * 3 * self.g.h + k * self.g.h + j])
    }

    /// Clips gate `j` and applies its activation.
    fn activate(&self, d: usize, turn: &mut Turn, j: usize, pre: f64) {
        let clipped = if self.clip > 0.0 { pre.clamp(-self.clip, self.clip) } else { pre };
        turn.pre[j] = clipped;
        turn.free[j] = clipped == pre;
        turn.gate[j] = self.activations[d][activation_of(self.g.cell, j / self.g.h)].at(clipped);
    }

    fn slope(&self, d: usize, turn: &Turn, j: usize) -> f64 {
        let f = self.activations[d][activation_of(self.g.cell, j / self.g.h)];
        if turn.free[j] { f.slope(turn.pre[j]) } else { 0.0 }
    }

    fn forward(&self, d: usize, n: usize, length: usize, mut h: Vec<f64>, mut c: Vec<f64>) -> Vec<Turn> {
        let (size, rows) = (self.g.h, self.rows());
        let mut turns = Vec::with_capacity(length);
        for k in 0..length {
            let t = self.g.step(d, k, length);
            let x = &self.x[self.g.x_row(t, n) * self.g.i..][..self.g.i];
            let wx = self.product(&self.w, d, 0, rows, x);
            let rh = self.product(&self.r, d, 0, rows, &h);
            let mut turn = Turn {
                t,
                h: h.clone(),
                c: c.clone(),
                pre: vec![0.0; rows],
                free: vec![true; rows],
                gate: vec![0.0; rows],
                extra: vec![0.0; size],
            };
            let sum = |j: usize, rh: f64| wx[j] + rh + self.bias(d, j, false) + self.bias(d, j, true);
            match self.g.cell {
                Cell::Rnn => {
                    (0..size).for_each(|j| self.activate(d, &mut turn, j, sum(j, rh[j])));
                    h.copy_from_slice(&turn.gate);
                }
                Cell::Gru => {
                    (0..2 * size).for_each(|j| self.activate(d, &mut turn, j, sum(j, rh[j])));
                    let reset = turn.gate[size..2 * size].to_vec();
                    if self.linear_before_reset {
                        for j in 0..size {
                            let row = 2 * size + j;
                            turn.extra[j] = rh[row] + self.bias(d, row, true);
                            let pre = wx[row] + self.bias(d, row, false) + reset[j] * turn.extra[j];
                            self.activate(d, &mut turn, row, pre);
                        }
                    } else {
                        let v: Vec<f64> = reset.iter().zip(&h).map(|(r, h)| r * h).collect();
                        let rv = self.product(&self.r, d, 2 * size, size, &v);
                        (0..size).for_each(|j| self.activate(d, &mut turn, 2 * size + j, sum(2 * size + j, rv[j])));
                        turn.extra = v;
                    }
                    for j in 0..size {
                        let z = turn.gate[j];
                        h[j] = (1.0 - z) * turn.gate[2 * size + j] + z * h[j];
                    }
                }
                Cell::Lstm => {
                    for j in 0..size {
                        let (i, o, f, g) = (j, size + j, 2 * size + j, 3 * size + j);
                        self.activate(d, &mut turn, i, sum(i, rh[i]) + self.peephole(d, 0, j) * c[j]);
                        if self.coupled {
                            turn.gate[f] = 1.0 - turn.gate[i];
                        } else {
                            self.activate(d, &mut turn, f, sum(f, rh[f]) + self.peephole(d, 2, j) * c[j]);
                        }
                        self.activate(d, &mut turn, g, sum(g, rh[g]));
                        let cell = turn.gate[f] * c[j] + turn.gate[i] * turn.gate[g];
                        self.activate(d, &mut turn, o, sum(o, rh[o]) + self.peephole(d, 1, j) * cell);
                        turn.extra[j] = cell;
                        c[j] = cell;
                        h[j] = turn.gate[o] * self.activations[d][2].at(cell);
                    }
                }
            }
            turns.push(turn);
        }
        turns
    }

    /// From the gradients by the states after a turn to those before it.
    fn backward(
        &mut self,
        d: usize,
        n: usize,
        turn: &Turn,
        mut dh: Vec<f64>,
        mut dc: Vec<f64>,
    ) -> (Vec<f64>, Vec<f64>) {
        let (size, rows) = (self.g.h, self.rows());
        if let Some(dy) = &self.dy {
            let at = self.g.y_row(turn.t, d, n) * size;
            dh.iter_mut().zip(&dy[at..at + size]).for_each(|(a, b)| *a += b);
        }
        let mut dpre = vec![0.0; rows];
        // Gradients by the states before, without those through the recurrent weights.
        let (mut dh_before, mut dc_before) = (vec![0.0; size], vec![0.0; size]);
        // By the products with the state, where they are not those by the gates.
        let mut recurrent: Option<Vec<f64>> = None;
        match self.g.cell {
            Cell::Rnn => (0..size).for_each(|j| dpre[j] = dh[j] * self.slope(d, turn, j)),
            Cell::Gru => {
                let mut dreset = vec![0.0; size];
                for j in 0..size {
                    let (z, g) = (j, 2 * size + j);
                    dpre[z] = dh[j] * (turn.h[j] - turn.gate[g]) * self.slope(d, turn, z);
                    dpre[g] = dh[j] * (1.0 - turn.gate[z]) * self.slope(d, turn, g);
                    dh_before[j] = dh[j] * turn.gate[z];
                    if self.linear_before_reset {
                        dreset[j] = dpre[g] * turn.extra[j];
                    }
                }
                let mut through = dpre.clone();
                if self.linear_before_reset {
                    (0..size).for_each(|j| through[2 * size + j] = dpre[2 * size + j] * turn.gate[size + j]);
                } else {
                    // The last gate's product is of r ∘ h.
                    for j in 0..size {
                        for k in 0..size {
                            let m = (d * rows + 2 * size + j) * size + k;
                            dreset[k] += dpre[2 * size + j] * self.r[m];
                            self.dr[m] += dpre[2 * size + j] * turn.extra[k];
                        }
                    }
                    for k in 0..size {
                        dh_before[k] += dreset[k] * turn.gate[size + k];
                        dreset[k] *= turn.h[k];
                    }
                }
                for j in 0..size {
                    dpre[size + j] = dreset[j] * self.slope(d, turn, size + j);
                    through[size + j] = dpre[size + j];
                }
                recurrent = Some(through);
            }
            Cell::Lstm => {
                for j in 0..size {
                    let (i, o, f, g) = (j, size + j, 2 * size + j, 3 * size + j);
                    let (cell, last) = (turn.extra[j], self.activations[d][2]);
                    dpre[o] = dh[j] * last.at(cell) * self.slope(d, turn, o);
                    dc[j] += dh[j] * turn.gate[o] * last.slope(cell) + dpre[o] * self.peephole(d, 1, j);
                    let df = dc[j] * turn.c[j];
                    let mut di = dc[j] * turn.gate[g];
                    if self.coupled {
                        di -= df;
                    } else {
                        dpre[f] = df * self.slope(d, turn, f);
                    }
                    dpre[i] = di * self.slope(d, turn, i);
                    dpre[g] = dc[j] * turn.gate[i] * self.slope(d, turn, g);
                    dc_before[j] =
                        dc[j] * turn.gate[f] + dpre[i] * self.peephole(d, 0, j) + dpre[f] * self.peephole(d, 2, j);
                    for (k, by) in [(0, dpre[i] * turn.c[j]), (1, dpre[o] * cell), (2, dpre[f] * turn.c[j])] {
                        self.dp[d * 3 * size + k * size + j] += by;
                    }
                }
            }
        }
        let inputs = self.g.i;
        let x_at = self.g.x_row(turn.t, n) * inputs;
        let last_apart = self.g.cell == Cell::Gru && !self.linear_before_reset;
        for j in 0..rows {
            let (g, by_state) = (dpre[j], recurrent.as_ref().map_or(dpre[j], |r| r[j]));
            self.db[d * 2 * rows + j] += g;
            self.db[(d * 2 + 1) * rows + j] += by_state;
            for k in 0..inputs {
                let m = (d * rows + j) * inputs + k;
                self.dw[m] += g * self.x[x_at + k];
                self.dx[x_at + k] += g * self.w[m];
            }
            if last_apart && j >= 2 * size {
                continue;
            }
            for k in 0..size {
                let m = (d * rows + j) * size + k;
                self.dr[m] += by_state * turn.h[k];
                dh_before[k] += by_state * self.r[m];
            }
        }
        (dh_before, dc_before)
    }
}
