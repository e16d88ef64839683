//! Recurrences on a GPU: the products with the inputs of all steps are one matrix product, the turns are one call a direction.
//! So it is backwards: the turns leave the gradients by the gates of all steps, of which the others are products.
use std::sync::Arc;

use hone_gpu::copy::{Axis, Border, Copy};
use hone_gpu::kernel::bytes_of;
use hone_gpu::product::{self as gpu, Batch, Left, Product, Right};
use hone_gpu::recurrent as cells;
use hone_gpu::recurrent_back::Back;
use hone_gpu::recurrent_codes::{self as codes, Column, QuantisedLstm};
use hone_gpu::rows::{Along, Rows};
use hone_kernels::epilogue::Activation;

use super::{Cell, Direction, Sequence};
use crate::ops::OpError;
use crate::ops::quantize::{less_zeros, quantised_as_it_comes, told_product};
use crate::plan::{At, Lowering, Recorded, floats};
use crate::tensor::{DType, Tensor};

/// Floats as the kernels have them: the activations of the standard, without peepholes, lengths, clipping and coupled gates.
/// `operands` is how many may be given.
fn plain(l: &Lowering<'_>, kind: Cell, operands: usize) -> Result<Option<(cells::Cell, Sequence)>, OpError> {
    let late = l.attrs.flag("linear_before_reset", false)?;
    let cell = match kind {
        Cell::Lstm => cells::Cell::Lstm,
        Cell::Gru => cells::Cell::Gru { late },
        Cell::Rnn => return Ok(None),
    };
    let floats = (0..operands).all(|i| !l.has(i) || matches!(i, 4 | 7) || l.dtype(i) == Some(DType::F32));
    let special = ["activations", "clip", "input_forget"].iter().any(|name| l.attrs.has(name)) || l.has(4) || l.has(7);
    if !floats || special {
        return Ok(None);
    }
    let s = Sequence::of(l.attrs, kind, l.shape(0)?, l.shape(2)?)?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| l.shape(i).ok()).collect();
    s.check(&given, &[s.d(), kind.gates() * s.h, s.i])?;
    let some = [s.s, s.n, s.i, s.h].iter().all(|&n| n > 0);
    Ok(some.then_some((cell, s)))
}

/// Where rows and states of direction `way` lie.
struct Lie {
    /// Rows of all steps from one step and sequence to the next.
    rows: [usize; 2],
    y: [usize; 3],
    state: [usize; 2],
    reverse: bool,
}

impl Lie {
    fn of(s: &Sequence, way: usize) -> Lie {
        let (h, d, n) = (s.h, s.d(), s.n);
        Lie {
            rows: if s.batch_first { [1, s.s] } else { [n, 1] },
            y: if s.batch_first { [d * h, s.s * d * h, way * h] } else { [d * n * h, h, way * n * h] },
            state: if s.batch_first { [d * h, way * h] } else { [h, way * n * h] },
            reverse: s.directions[way] == Direction::Reverse,
        }
    }
}

/// LSTM and GRU.
pub(super) fn recorded(l: &Lowering<'_>, kind: Cell) -> Result<Option<Recorded>, OpError> {
    let Some((cell, s)) = plain(l, kind, 8)? else { return Ok(None) };
    let mut out = Recorded::default();
    // Results that nobody asked for go where nobody reads them.
    let (h, d, n) = (s.h, s.d(), s.n);
    let sizes = [s.s * d * n * h, d * n * h, d * n * h];
    let mut results = Vec::new();
    for (i, size) in sizes.into_iter().enumerate().take(if kind == Cell::Lstm { 3 } else { 2 }) {
        results.push(if l.wants(i) { At::Out(i) } else { out.scratch(4 * size) });
    }
    match (l.constant(1), l.constant(2), l.has(3) && l.constant(3).is_none()) {
        (Some(_), Some(_), false) => frozen(l, cell, &s, out, &results),
        _ => Ok(turns(l, cell, &s, out, &results, false)),
    }
}

/// A state that is not given begins at 0.
fn state(l: &Lowering<'_>, s: &Sequence, i: usize) -> At {
    if l.has(i) { At::In(i) } else { At::floats(&vec![0.0; s.d() * s.n * s.h]) }
}

/// With constant weights, which are packed.
fn frozen(
    l: &Lowering<'_>,
    cell: cells::Cell,
    s: &Sequence,
    mut out: Recorded,
    results: &[At],
) -> Result<Option<Recorded>, OpError> {
    let (Some(w), Some(r)) = (l.constant(1), l.constant(2)) else { return Ok(None) };
    let bias = l.constant(3).map(|b| b.as_f32()).transpose()?;
    let (h, g, n) = (s.h, s.cell.gates(), s.n);
    w.as_f32().and(r.as_f32())?;
    let z = out.scratch(4 * s.s * n * g * h);
    let mut done = Some(out);
    for way in 0..s.d() {
        let b = |j: usize| bias.map_or(0.0, |b| b[way * 2 * g * h + j]);
        // What is added to the product of a late GRU's last gate with the state is not among the gates' own.
        let apart = |j: usize| cell == (cells::Cell::Gru { late: true }) && j >= 2 * h;
        let sum: Vec<f32> = (0..g * h).map(|j| b(j) + if apart(j) { 0.0 } else { b(g * h + j) }).collect();
        let product = Product {
            m: s.s * n,
            n: g * h,
            k: s.i,
            left: Left::Matrix { row: s.i, step: 1 },
            right: Right::Packed,
            y_row: g * h,
            batch: Batch::one(),
            bias: true,
            residual: false,
            alpha: 1.0,
            activation: Activation::None,
            matrices: l.matrices,
        };
        let (rows, i, first) = (g * h, s.i, way * g * h);
        let (from, numbers) = (w.clone(), [i, rows, first * i, 1, i]);
        let packed = move || gpu::pack(i, rows, |k, j| floats(&from)[(first + j) * i + k]);
        let packed = l.image("gpu matrix", &[w], &numbers, 4 * gpu::packed_len(i, rows), packed);
        let inputs = vec![At::In(0), packed, At::floats(&sum), z.clone()];
        let from = r.clone();
        let turned = move || {
            let r = floats(&from);
            let all: Vec<f32> = (0..h * rows).map(|e| r[(first + e % rows) * h + e / rows]).collect();
            bytes_of(&all)
        };
        let turned = l.image("gpu states turned", &[r], &[first, rows, h], 4 * h * rows, turned);
        let Lie { rows: [step, sequence], y, state: of_state, reverse } = Lie::of(s, way);
        let recurrence = cells::Recurrence {
            cell,
            steps: s.s,
            batch: n,
            units: h,
            reverse,
            z: [step, sequence, 0],
            r: 0,
            y,
            state: of_state,
            bias: None,
            tape: false,
        };
        let mut at = vec![z.clone(), turned, state(l, s, 5)];
        match cell {
            cells::Cell::Lstm => at.push(state(l, s, 6)),
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

/// A product of floats that lie anywhere.
fn product(m: usize, n: usize, k: usize, left: (usize, usize), right: (usize, usize), batch: Batch) -> Product {
    Product {
        m,
        n,
        k,
        left: Left::Matrix { row: left.0, step: left.1 },
        right: Right::Plain { row: right.0, step: right.1 },
        y_row: n,
        batch,
        bias: false,
        residual: false,
        alpha: 1.0,
        activation: Activation::None,
        matrices: None,
    }
}

/// As many products as directions, so many elements apart.
fn each(d: usize, a: usize, w: usize, y: usize) -> Batch {
    let of = |n: usize| [0, 0, 0, n];
    Batch { lengths: [1, 1, 1, d], a: of(a), w: of(w), y: of(y) }
}

fn copy(axes: Vec<Axis>, to: usize) -> Copy {
    Copy { unit: 4, base: 0, to, axes, border: Border::Fill([0; 8]) }
}

/// The way there with weights that are values of the plan: into `results`, or onto a tape.
fn turns(
    l: &Lowering<'_>,
    cell: cells::Cell,
    s: &Sequence,
    mut out: Recorded,
    results: &[At],
    tape: bool,
) -> Option<Recorded> {
    let (h, g, d, rows) = (s.h, s.cell.gates(), s.d(), s.s * s.n);
    let z = out.scratch(4 * d * rows * g * h);
    let turned = out.scratch(4 * d * h * g * h);
    let inputs = product(rows, g * h, s.i, (s.i, 1), (1, s.i), each(d, 0, g * h * s.i, rows * g * h));
    let turn = |n: usize, from: usize, to: usize| Axis::plain(n, from as isize, to);
    let turning = copy(vec![turn(d, g * h * h, g * h * h), turn(h, 1, g * h), turn(g * h, h, 1)], 0);
    let mut out = out
        .and(inputs.call(), vec![At::In(0), At::In(1), z.clone()])?
        .and(turning.call(), vec![At::In(2), turned.clone()])?;
    let bias = if l.has(3) { At::In(3) } else { At::floats(&vec![0.0; d * 2 * g * h]) };
    for way in 0..d {
        let Lie { rows: [step, sequence], y, state: of_state, reverse } = Lie::of(s, way);
        let recurrence = cells::Recurrence {
            cell,
            steps: s.s,
            batch: s.n,
            units: h,
            reverse,
            z: [step, sequence, way * rows],
            r: way * g * h * h,
            y,
            state: of_state,
            bias: Some(way * 2 * g * h),
            tape,
        };
        let mut at = vec![z.clone(), turned.clone(), state(l, s, 5)];
        at.extend((cell == cells::Cell::Lstm).then(|| state(l, s, 6)));
        at.push(bias.clone());
        at.extend(results.iter().cloned());
        out = out.and(recurrence.call(), at)?;
    }
    Some(out)
}

/// `DynamicQuantizeLSTM` whose weights are signed bytes once their zero points are taken away, with the activations of the
/// standard.
pub(super) fn quantised(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let (Some(w), Some(r)) = (l.constant(1), l.constant(2)) else { return Ok(None) };
    let (&[d, i, gates], &[rd, h, r_gates]) = (w.shape(), r.shape()) else { return Ok(None) };
    let known = |k: usize| !l.has(k) || l.constant(k).is_some();
    let floats = [0, 3, 5, 6, 7, 8, 10].into_iter().all(|k| !l.has(k) || l.dtype(k) == Some(DType::F32));
    let bytes = [w, r].into_iter().all(|t| matches!(t.dtype(), DType::I8 | DType::U8));
    let special =
        l.attrs.has("activations") || l.attrs.float("clip", 0.0)? > 0.0 || l.attrs.flag("input_forget", false)?;
    if (rd, r_gates) != (d, gates) || !floats || !bytes || special || l.has(4) {
        return Ok(None);
    }
    if ![3, 7, 8, 9, 10, 11].into_iter().all(known) {
        return Ok(None);
    }
    let s = Sequence::of(l.attrs, Cell::Lstm, l.shape(0)?, &[d, gates, h])?;
    let mut given: Vec<Option<&[usize]>> = (0..8).map(|k| l.shape(k).ok()).collect();
    given[1] = Some(w.shape());
    s.check(&given, &[d, i, gates])?;
    if [s.s, s.n, i, h].contains(&0) {
        return Ok(None);
    }
    // One a direction, or one a column of it.
    let columns = |v: &[f64], way: usize| -> Option<Vec<f64>> {
        match v.len() {
            n if n == d => Some(vec![v[way]; gates]),
            n if n == d * gates => Some(v[way * gates..][..gates].to_vec()),
            _ => None,
        }
    };
    let numbers = |k: usize| l.constant(k).map(|t| t.data().to_f64());
    let weights = |t: &Arc<Tensor>, k: usize, at: usize, way: usize| {
        let scale: Vec<f32> = columns(&numbers(at)?, way)?.into_iter().map(|v| v as f32).collect();
        let zeros = numbers(at + 1).map_or(Some(vec![0.0; gates]), |z| columns(&z, way))?;
        let zeros = zeros.into_iter().map(|z| z as i32).collect();
        let (packed, sums) = less_zeros(l, t, way * k * gates, (k, gates), zeros)?;
        Some((packed, sums, scale))
    };
    let mut out = Recorded::default();
    let sizes = [s.s * d * s.n * h, d * s.n * h, d * s.n * h].into_iter().enumerate();
    let results: Vec<At> = sizes.map(|(k, size)| if l.wants(k) { At::Out(k) } else { out.scratch(4 * size) }).collect();
    let rows = s.s * s.n;
    let x = [out.scratch(rows * i), out.scratch(4), out.scratch(4)];
    let z = out.scratch(4 * rows * gates);
    let (bias, peepholes) = (numbers(3), numbers(7));
    let mut done = quantised_as_it_comes(out, rows * i, At::In(0), x.clone());
    for way in 0..d {
        let Some((w, sums, scale)) = weights(w, i, 8, way) else { return Ok(None) };
        let Some((r, r_sums, r_scale)) = weights(r, h, 10, way) else { return Ok(None) };
        let bias = bias.as_ref().map(|b| {
            let b = &b[way * 2 * gates..][..2 * gates];
            At::floats(&(0..gates).map(|j| b[j] as f32 + b[gates + j] as f32).collect::<Vec<_>>())
        });
        let peephole = |j: usize| match &peepholes {
            Some(p) if j < 3 * h => p[way * 3 * h + j] as f32,
            _ => 0.0,
        };
        let column = |j: usize| Column { sum: r_sums[j], scale: r_scale[j], peephole: peephole(j) };
        let columns = At::bytes(codes::columns((0..gates).map(column)));
        let Lie { rows: [step, sequence], y, state: of_state, reverse } = Lie::of(&s, way);
        let lstm =
            QuantisedLstm { steps: s.s, batch: s.n, units: h, reverse, z: [step, sequence, 0], y, state: of_state };
        let mut at = vec![z.clone(), r, columns, state(l, &s, 5), state(l, &s, 6)];
        at.extend(results.iter().cloned());
        done = done
            .and_then(|out| told_product(out, (rows, i, gates), x.clone(), (w, &sums), &scale, bias, z.clone()))
            .and_then(|out| out.and(lstm.call(), at));
    }
    Ok(done)
}

/// The gradients of the operator of that cell: operands and results as of `RecurrentVjp`.
pub(super) fn backward(l: &Lowering<'_>, kind: Cell) -> Result<Option<Recorded>, OpError> {
    let Some((cell, s)) = plain(l, kind, 11)? else { return Ok(None) };
    Ok(back(l, cell, &s))
}

fn back(l: &Lowering<'_>, cell: cells::Cell, s: &Sequence) -> Option<Recorded> {
    let lstm = cell == cells::Cell::Lstm;
    if cell == (cells::Cell::Gru { late: false }) || l.wants(6) {
        return None;
    }
    let (h, g, d, rows) = (s.h, s.cell.gates(), s.d(), s.s * s.n);
    let mut out = Recorded::default();
    // States before every step, what every step went through, gradients by the gates, and by their products with the state.
    let before = out.scratch(4 * d * rows * h);
    let tape = out.scratch(4 * d * rows * h * if lstm { 6 } else { 4 });
    let by_gates = out.scratch(4 * d * rows * g * h);
    let by_products = if lstm { by_gates.clone() } else { out.scratch(4 * d * rows * g * h) };
    let states = d * s.n * h;
    let mut carried = Vec::new();
    for i in 0..if lstm { 2 } else { 1 } {
        carried.push(if l.wants(4 + i) { At::Out(4 + i) } else { out.scratch(4 * states) });
    }
    let mut out = turns(l, cell, s, out, &[before.clone(), tape.clone()], true)?;
    for (i, to) in carried.iter().enumerate() {
        let from = if l.has(9 + i) { At::In(9 + i) } else { At::floats(&vec![0.0; states]) };
        out = out.and(copy(vec![Axis::plain(states, 1, 1)], 0).call(), vec![from, to.clone()])?;
    }
    for way in 0..d {
        let Lie { rows: [step, sequence], y, state, reverse } = Lie::of(s, way);
        let back = Back {
            cell,
            steps: s.s,
            batch: s.n,
            units: h,
            reverse,
            dy: l.has(8),
            z: [step, sequence, way * rows],
            y,
            state,
            r: way * g * h * h,
            d: [d * g * h, way * g * h],
        };
        let mut at = vec![tape.clone(), At::In(2)];
        at.extend((!lstm).then(|| before.clone()));
        at.extend(l.has(8).then_some(At::In(8)));
        at.extend(carried.iter().cloned());
        at.push(by_gates.clone());
        at.extend((!lstm).then(|| by_products.clone()));
        out = out.and(back.call(), at)?;
    }
    let width = d * g * h;
    if l.wants(0) {
        let by_x = product(rows, s.i, width, (width, 1), (s.i, 1), Batch::one());
        out = out.and(by_x.call(), vec![by_gates.clone(), At::In(1), At::Out(0)])?;
    }
    if l.wants(1) {
        let by_w = product(width, s.i, rows, (1, width), (s.i, 1), Batch::one());
        out = out.and(by_w.call(), vec![by_gates.clone(), At::In(0), At::Out(1)])?;
    }
    if l.wants(2) {
        let by_r = product(g * h, h, rows, (1, width), (h, 1), each(d, g * h, rows * h, g * h * h));
        out = out.and(by_r.call(), vec![by_products.clone(), before, At::Out(2)])?;
    }
    if l.wants(3) {
        for (half, from) in [by_gates, by_products].into_iter().enumerate() {
            let sums = out.scratch(4 * width);
            let sum =
                Along { rows: Rows::Sum, outer: 1, length: rows, inner: width, scales: 1, epsilon: 0.0, factor: 1.0 };
            let half = copy(vec![Axis::plain(d, (g * h) as isize, 2 * g * h), Axis::plain(g * h, 1, 1)], half * g * h);
            out = out.and(sum.call(), vec![from, sums.clone()])?.and(half.call(), vec![sums, At::Out(3)])?;
        }
    }
    Some(out)
}
