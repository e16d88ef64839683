//! The formulas of the recurrent operators, gate by gate, in `f64`.
use super::activation::Activation;
use super::{Cell, Sequence};
use crate::ops::{Attrs, OpError, need, optional};
use crate::tensor::Tensor;

/// Gate pre-activations of a turn: `products(d, n, t, h)` gives `W x` and `R h` for one step of one sequence, `G·H` each.
pub(super) struct Operands {
    /// `[D, 2·G·H]`, or nothing.
    pub(super) bias: Option<Vec<f64>>,
    /// `i o f`: `[D, 3H]`, or nothing.
    pub(super) peepholes: Option<Vec<f64>>,
    pub(super) h0: Option<Vec<f64>>,
    pub(super) c0: Option<Vec<f64>>,
    pub(super) lengths: Vec<usize>,
}

impl Operands {
    pub(super) fn of(g: &Sequence, inputs: &[Option<&Tensor>]) -> Operands {
        let floats = |i: usize| optional(inputs, i).map(|t| t.data().to_f64());
        let lstm = g.cell == Cell::Lstm;
        Operands {
            bias: floats(3),
            lengths: g.lengths(optional(inputs, 4)),
            h0: floats(5),
            c0: if lstm { floats(6) } else { None },
            peepholes: if lstm { floats(7) } else { None },
        }
    }
}

/// Reads the operands of a float recurrence and runs it.
pub(super) fn run(attrs: &Attrs, inputs: &[Option<&Tensor>], cell: Cell) -> Result<Vec<Tensor>, OpError> {
    let (x, w, r) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "R")?);
    let g = Sequence::of(attrs, cell, x.shape(), r.shape())?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| optional(inputs, i).map(Tensor::shape)).collect();
    let rows = cell.gates() * g.h;
    g.check(&given, &[g.d(), rows, g.i])?;
    let (xs, ws, rs) = (x.data().to_f64(), w.data().to_f64(), r.data().to_f64());
    let dot = |m: &[f64], v: &[f64], out: &mut [f64]| {
        let k = v.len();
        for (j, o) in out.iter_mut().enumerate() {
            *o = m[j * k..][..k].iter().zip(v).map(|(a, b)| a * b).sum();
        }
    };
    let input = |d: usize, n: usize, t: usize, out: &mut [f64]| {
        dot(&ws[d * rows * g.i..][..rows * g.i], &xs[g.x_row(t, n) * g.i..][..g.i], out);
    };
    let state = |d: usize, h: &[Vec<f64>], out: &mut [Vec<f64>]| {
        h.iter().zip(out).for_each(|(h, out)| dot(&rs[d * rows * g.h..][..rows * g.h], h, out));
    };
    // The reset gate comes before R h in a GRU without linear_before_reset: its last product is of another vector.
    let last = |d: usize, h: &[f64], out: &mut [f64]| {
        dot(&rs[(d * rows + rows - g.h) * g.h..][..g.h * g.h], h, out);
    };
    recur(attrs, &g, &Operands::of(&g, inputs), x.dtype(), input, state, last)
}

/// Runs a recurrence over products of its weights: `input(d, n, t)` is `W x`, `state(d, h of every sequence)` is `R h`, each
/// `G·H` long, and `last(d, v)` the last gate's `R v`.
pub(super) fn recur(
    attrs: &Attrs,
    g: &Sequence,
    o: &Operands,
    dtype: crate::tensor::DType,
    input: impl Fn(usize, usize, usize, &mut [f64]),
    state: impl Fn(usize, &[Vec<f64>], &mut [Vec<f64>]),
    last: impl Fn(usize, &[f64], &mut [f64]),
) -> Result<Vec<Tensor>, OpError> {
    let (h, gates, rows) = (g.h, g.cell.gates(), g.cell.gates() * g.h);
    let activations = Activation::list(attrs, g.cell.activations(), g.d())?;
    let clip = attrs.float("clip", 0.0)?;
    let clipped = |v: f64| if clip > 0.0 { v.clamp(-f64::from(clip), f64::from(clip)) } else { v };
    let linear_before_reset = attrs.flag("linear_before_reset", false)?;
    let coupled = attrs.flag("input_forget", false)?;
    let mut y = vec![0f64; g.s * g.d() * g.n * h];
    let (mut y_h, mut y_c) = (vec![0f64; g.d() * g.n * h], vec![0f64; g.d() * g.n * h]);
    for d in 0..g.d() {
        let initial = |from: &Option<Vec<f64>>| -> Vec<Vec<f64>> {
            let row = |n: usize| from.as_ref().map_or(vec![0.0; h], |v| v[g.state_row(d, n) * h..][..h].to_vec());
            (0..g.n).map(row).collect()
        };
        let (mut hs, mut cs) = (initial(&o.h0), initial(&o.c0));
        let (mut wx, mut rh) = (vec![0f64; rows], vec![vec![0f64; rows]; g.n]);
        let f = &activations[d];
        let bias = |k: usize, j: usize, r: bool| {
            o.bias.as_ref().map_or(0.0, |b| b[(d * 2 + usize::from(r)) * gates * h + k * h + j])
        };
        for turn in 0..o.lengths.iter().copied().max().unwrap_or(0) {
            state(d, &hs, &mut rh);
            for n in 0..g.n {
                if turn >= o.lengths[n] {
                    continue;
                }
                let t = g.step(d, turn, o.lengths[n]);
                input(d, n, t, &mut wx);
                let (before, rh) = (hs[n].clone(), &mut rh[n]);
                let pre = |rh: &[f64], k: usize, j: usize| {
                    wx[k * h + j] + rh[k * h + j] + bias(k, j, false) + bias(k, j, true)
                };
                match g.cell {
                    Cell::Rnn => {
                        for j in 0..h {
                            hs[n][j] = f[0].at(clipped(pre(rh, 0, j)));
                        }
                    }
                    Cell::Gru => {
                        let reset: Vec<f64> = (0..h).map(|j| f[0].at(clipped(pre(rh, 1, j)))).collect();
                        if !linear_before_reset {
                            let v: Vec<f64> = reset.iter().zip(&before).map(|(r, h)| r * h).collect();
                            last(d, &v, &mut rh[2 * h..]);
                        }
                        for j in 0..h {
                            let z = f[0].at(clipped(pre(rh, 0, j)));
                            let inner = if linear_before_reset {
                                wx[2 * h + j] + bias(2, j, false) + reset[j] * (rh[2 * h + j] + bias(2, j, true))
                            } else {
                                pre(rh, 2, j)
                            };
                            let candidate = f[1].at(clipped(inner));
                            hs[n][j] = (1.0 - z) * candidate + z * before[j];
                        }
                    }
                    Cell::Lstm => {
                        for j in 0..h {
                            let p = |k: usize| o.peepholes.as_ref().map_or(0.0, |p| p[d * 3 * h + k * h + j]);
                            let c = cs[n][j];
                            let i = f[0].at(clipped(pre(rh, 0, j) + p(0) * c));
                            let forget = if coupled { 1.0 - i } else { f[0].at(clipped(pre(rh, 2, j) + p(2) * c)) };
                            let cell = forget * c + i * f[1].at(clipped(pre(rh, 3, j)));
                            let out = f[0].at(clipped(pre(rh, 1, j) + p(1) * cell));
                            cs[n][j] = cell;
                            hs[n][j] = out * f[2].at(cell);
                        }
                    }
                }
                y[g.y_row(t, d, n) * h..][..h].copy_from_slice(&hs[n]);
            }
        }
        // The state after no step at all is 0, as in ONNX Runtime, not the initial one.
        for n in (0..g.n).filter(|&n| o.lengths[n] > 0) {
            y_h[g.state_row(d, n) * h..][..h].copy_from_slice(&hs[n]);
            y_c[g.state_row(d, n) * h..][..h].copy_from_slice(&cs[n]);
        }
    }
    let mut out = vec![Tensor::from_f64(dtype, &g.y_shape(), &y)?, Tensor::from_f64(dtype, &g.state_shape(), &y_h)?];
    if g.cell == Cell::Lstm {
        out.push(Tensor::from_f64(dtype, &g.state_shape(), &y_c)?);
    }
    Ok(out)
}
