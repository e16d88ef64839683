//! Recurrences on a GPU: the products with the inputs of all steps are one matrix product, the turns are one call a direction.
use hone_gpu::product as gpu;
use hone_gpu::recurrent as cells;
use hone_kernels::epilogue::Activation;

use super::{Cell, Direction, Sequence};
use crate::ops::OpError;
use crate::plan::{At, Lowering, Recorded};
use crate::tensor::DType;

/// LSTM and GRU with constant float weights and the activations of the standard; without peepholes, lengths, clipping and coupled
/// gates.
pub(super) fn recorded(l: &Lowering<'_>, kind: Cell) -> Result<Option<Recorded>, OpError> {
    let (Some(w), Some(r)) = (l.constant(1), l.constant(2)) else { return Ok(None) };
    let late = l.attrs.flag("linear_before_reset", false)?;
    let cell = match kind {
        Cell::Lstm => cells::Cell::Lstm,
        Cell::Gru => cells::Cell::Gru { late },
        Cell::Rnn => return Ok(None),
    };
    let floats = [0, 1, 2, 3, 5, 6].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let bias = match (l.has(3), l.constant(3)) {
        (true, None) => return Ok(None),
        (_, b) => b.map(|b| b.as_f32()).transpose()?,
    };
    let special = ["activations", "clip", "input_forget"].iter().any(|name| l.attrs.has(name)) || l.has(4) || l.has(7);
    if !floats || special {
        return Ok(None);
    }
    let s = Sequence::of(l.attrs, kind, l.shape(0)?, r.shape())?;
    let (h, g, d, n) = (s.h, kind.gates(), s.d(), s.n);
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| l.shape(i).ok()).collect();
    s.check(&given, &[d, g * h, s.i])?;
    let (ws, rs) = (w.as_f32()?, r.as_f32()?);
    let mut out = Recorded::default();
    let z = out.scratch(4 * s.s * n * g * h);
    // Results that nobody asked for go where nobody reads them; states that are not given begin at 0.
    let sizes = [s.s * d * n * h, d * n * h, d * n * h];
    let mut results = Vec::new();
    for (i, size) in sizes.into_iter().enumerate().take(if kind == Cell::Lstm { 3 } else { 2 }) {
        results.push(if l.wants(i) { At::Out(i) } else { out.scratch(4 * size) });
    }
    let state = |i: usize| if l.has(i) { At::In(i) } else { At::floats(&vec![0.0; d * n * h]) };
    let mut done = Some(out);
    for (way, direction) in s.directions.iter().enumerate() {
        let b = |j: usize| bias.map_or(0.0, |b| b[way * 2 * g * h + j]);
        // What is added to the product of a late GRU's last gate with the state is not among the gates' own.
        let apart = |j: usize| kind == Cell::Gru && late && j >= 2 * h;
        let sum: Vec<f32> = (0..g * h).map(|j| b(j) + if apart(j) { 0.0 } else { b(g * h + j) }).collect();
        let product = gpu::Product {
            m: s.s * n,
            n: g * h,
            k: s.i,
            left: gpu::Left::Matrix { row: s.i, step: 1 },
            right: gpu::Right::Packed,
            y_row: g * h,
            batch: gpu::Batch::one(),
            bias: true,
            residual: false,
            alpha: 1.0,
            activation: Activation::None,
        };
        let packed = gpu::pack(s.i, g * h, |k, j| ws[(way * g * h + j) * s.i + k]);
        let inputs = vec![At::In(0), At::Weights(packed.into()), At::floats(&sum), z.clone()];
        let turned: Vec<f32> = (0..h * g * h).map(|e| rs[(way * g * h + e % (g * h)) * h + e / (g * h)]).collect();
        let recurrence = cells::Recurrence {
            cell,
            steps: s.s,
            batch: n,
            units: h,
            reverse: *direction == Direction::Reverse,
            z: if s.batch_first { [1, s.s] } else { [n, 1] },
            y: if s.batch_first { [d * h, s.s * d * h, way * h] } else { [d * n * h, h, way * n * h] },
            state: if s.batch_first { [d * h, way * h] } else { [h, way * n * h] },
        };
        let mut at = vec![z.clone(), At::floats(&turned), state(5)];
        match cell {
            cells::Cell::Lstm => at.push(state(6)),
            cells::Cell::Gru { late: true } => {
                at.push(At::floats(&(0..h).map(|u| b(g * h + 2 * h + u)).collect::<Vec<_>>()));
            }
            cells::Cell::Gru { late: false } => {}
        }
        at.extend(results.iter().cloned());
        done = done.and_then(|r| r.and(product.call(), inputs)).and_then(|r| r.and(recurrence.call(), at));
    }
    Ok(done)
}
