//! `DynamicQuantizeLSTM`: an LSTM whose inputs and states are quantised as they come.
use super::reference::{Operands, recur};
use super::{Cell, Sequence};
use crate::ops::quantize::{codes, dynamic_range, round_to};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, optional};
use crate::tensor::Tensor;

/// LSTM with `W: [D, I, 4H]` and `R: [D, H, 4H]` of 8-bit codes, a scale and zero point a direction or a gate.
pub(super) static DYNAMIC_QUANTIZE_LSTM: OpDef = OpDef::new(
    "DynamicQuantizeLSTM",
    "whole-sequence long short-term memory with 8-bit weights, its inputs quantised as they come",
    |attrs, inputs| {
        let (x, r) = (need(inputs, 0, "X")?, need(inputs, 2, "R")?);
        let g = Sequence::of(attrs, Cell::Lstm, &x.shape, &turned(&r.shape)?)?;
        let given: Vec<Option<&[usize]>> = (0..8).map(|i| optional(inputs, i).map(|f| &f.shape[..])).collect();
        g.check(&given, &[g.d(), g.i, 4 * g.h])?;
        let state = Fact::new(x.dtype, g.state_shape());
        Ok(Some(vec![Fact::new(x.dtype, g.y_shape()), state.clone(), state]))
    },
    reference,
)
.domain(MICROSOFT)
.kernel(super::sequence::lower_quantised)
.gpu(super::record::quantised)
.vjp(super::super::quantize::lstm_vjp);

/// `[D, H, 4H]` as an LSTM has it: `[D, 4H, H]`.
fn turned(r: &[usize]) -> Result<[usize; 3], OpError> {
    match *r {
        [d, h, gates] => Ok([d, gates, h]),
        _ => Err(OpError::shape("R of DynamicQuantizeLSTM", "[D, H, 4H]", r)),
    }
}

/// 8-bit weights `[D, K, 4H]`, centred, with a scale a column.
struct Weights {
    k: usize,
    columns: usize,
    centred: Vec<i32>,
    scale: Vec<f32>,
}

impl Weights {
    fn of(w: &Tensor, k: usize, scale: &Tensor, zero: Option<&Tensor>) -> Result<Weights, OpError> {
        let (d, columns) = (w.shape()[0], w.shape()[2]);
        let per_column = |v: Vec<f64>, what: &str| -> Result<Vec<f64>, OpError> {
            match v.len() {
                n if n == d => Ok((0..d * columns).map(|i| v[i / columns.max(1)]).collect()),
                n if n == d * columns => Ok(v),
                n => Err(OpError::shape(what, format!("[{d}] or [{d}, {columns}]"), n)),
            }
        };
        let scale = per_column(scale.data().to_f64(), "scale of an LSTM's weight")?;
        let zero = per_column(zero.map_or(vec![0.0; d], |z| z.data().to_f64()), "zero point of an LSTM's weight")?;
        let mut centred = codes(w, "a weight of DynamicQuantizeLSTM")?;
        for (i, q) in centred.iter_mut().enumerate() {
            *q -= zero[i / (k * columns).max(1) * columns + i % columns] as i32;
        }
        Ok(Weights { k, columns, centred, scale: scale.into_iter().map(|s| s as f32).collect() })
    }

    /// `x · w` of direction `d` for codes of a given scale and zero point.
    fn product(&self, d: usize, x: &[i32], (scale, zero): (f32, i32), out: &mut [f64]) {
        let w = &self.centred[d * self.k * self.columns..][..self.k * self.columns];
        let mut acc = vec![0i32; self.columns];
        for (x, row) in x.iter().zip(w.chunks_exact(self.columns.max(1))) {
            acc.iter_mut().zip(row).for_each(|(a, w)| *a = a.wrapping_add((x - zero).wrapping_mul(*w)));
        }
        for (j, o) in out.iter_mut().enumerate() {
            *o = f64::from(acc[j] as f32 * (scale * self.scale[d * self.columns + j]));
        }
    }
}

/// The whole input has one scale and zero point; so have the states of all sequences at one turn.
fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, w, r) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "R")?);
    let g = Sequence::of(attrs, Cell::Lstm, x.shape(), &turned(r.shape())?)?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| optional(inputs, i).map(Tensor::shape)).collect();
    g.check(&given, &[g.d(), g.i, 4 * g.h])?;
    let w = Weights::of(w, g.i, need(inputs, 8, "W_scale")?, optional(inputs, 9))?;
    let r = Weights::of(r, g.h, need(inputs, 10, "R_scale")?, optional(inputs, 11))?;
    let quantised = |v: &[f32]| -> (Vec<i32>, (f32, i32)) {
        let (scale, zero) = dynamic_range(v);
        (v.iter().map(|&v| round_to(v / scale, zero, (0, 255))).collect(), (scale, zero))
    };
    let xs: Vec<f32> = x.data().to_f64().into_iter().map(|v| v as f32).collect();
    let (qx, params) = quantised(&xs);
    let input = |d: usize, n: usize, t: usize, out: &mut [f64]| {
        w.product(d, &qx[g.x_row(t, n) * g.i..][..g.i], params, out);
    };
    let state = |d: usize, h: &[Vec<f64>], out: &mut [Vec<f64>]| {
        let all: Vec<f32> = h.concat().into_iter().map(|v| v as f32).collect();
        let (q, params) = quantised(&all);
        for (n, out) in out.iter_mut().enumerate() {
            r.product(d, &q[n * g.h..][..g.h], params, out);
        }
    };
    recur(attrs, &g, &Operands::of(&g, inputs), x.dtype(), input, state, |_, _, _| {})
}
