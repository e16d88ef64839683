//! Backpropagation through time: the part of it that goes from step to step. What it leaves is matrix products.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, floats};
use crate::recurrent::{Cell, MOST_UNITS};

/// One direction of a recurrence backwards, from a [`tape`](crate::recurrent::Recurrence::tape). Operands the tape, of a GRU the
/// states before every step, R as the standard has it and, when `dy`, the gradients by Y; updates the gradients by the state
/// and, of an LSTM, the cell; results the gradients by the gates before their activation and, of a GRU, those by the products
/// with the state. Of GRUs the late one alone.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    /// The cell.
    pub cell: Cell,
    /// Steps.
    pub steps: usize,
    /// Sequences.
    pub batch: usize,
    /// Units.
    pub units: usize,
    /// The way there went from the last step to the first.
    pub reverse: bool,
    /// Something comes back by Y.
    pub dy: bool,
    /// Rows of the tape, and of the results, from one step and sequence to the next, and the first one of the tape.
    pub z: [usize; 3],
    /// Elements of the gradient by Y from one step and sequence to the next, and the first.
    pub y: [usize; 3],
    /// Elements of a state from one sequence to the next, and the first.
    pub state: [usize; 2],
    /// The first element of R.
    pub r: usize,
    /// Elements of a row of the results, and the first of this direction.
    pub d: [usize; 2],
}

impl Back {
    /// The call; `None` for what the kernel does not do.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        if self.units > MOST_UNITS || self.cell == (Cell::Gru { late: false }) {
            return None;
        }
        let params = vec![
            word(self.steps)?,
            word(self.units)?,
            u32::from(self.reverse),
            word(self.z[0])?,
            word(self.z[1])?,
            word(self.y[0])?,
            word(self.y[1])?,
            word(self.y[2])?,
            word(self.state[0])?,
            word(self.state[1])?,
            word(self.r)?,
            word(self.d[0])?,
            word(self.d[1])?,
            word(self.z[2])?,
        ];
        kernel(self.cell, self.dy).call(params, [self.batch, 1, 1])
    }
}

const LSTM: &str = "                let a = 6u * (P.a_base + row) * P.units + u;
                let i = A[a];
                let o = A[a + P.units];
                let f = A[a + 2u * P.units];
                let g = A[a + 3u * P.units];
                let c = tanh_of(A[a + 4u * P.units]);
                let by_h = dh[k]{{DY}};
                let by_c = dc[k] + by_h * o * (1.0 - c * c);
                D[d + u] = by_c * g * i * (1.0 - i);
                D[d + P.units + u] = by_h * c * o * (1.0 - o);
                D[d + 2u * P.units + u] = by_c * A[a + 5u * P.units] * f * (1.0 - f);
                D[d + 3u * P.units + u] = by_c * i * (1.0 - g * g);
                dc[k] = by_c * f;";

const GRU: &str = "                let a = 4u * (P.a_base + row) * P.units + u;
                let keep = A[a];
                let reset = A[a + P.units];
                let g = A[a + 2u * P.units];
                let by_h = dh[k]{{DY}};
                let by_keep = by_h * (Q[(P.a_base + row) * P.units + u] - g) * keep * (1.0 - keep);
                let by_g = by_h * (1.0 - keep) * (1.0 - g * g);
                let by_reset = by_g * A[a + 3u * P.units] * reset * (1.0 - reset);
                D[d + u] = by_keep;
                E[d + u] = by_keep;
                D[d + P.units + u] = by_reset;
                E[d + P.units + u] = by_reset;
                D[d + 2u * P.units + u] = by_g;
                E[d + 2u * P.units + u] = by_g * reset;
                // What reaches the state past the gates, until the sum below is added.
                dc[k] = by_h * keep;";

fn kernel(cell: Cell, dy: bool) -> Arc<Kernel> {
    let lstm = cell == Cell::Lstm;
    let flag = |holds: bool, text: &'static str| if holds { text } else { "" };
    let mut reads = Vec::from_iter((!lstm).then_some("Q"));
    reads.extend(dy.then_some("DY"));
    let writes: &[&str] = if lstm { &["S", "T", "D"] } else { &["S", "D", "E"] };
    let by_y = flag(dy, " + DY[P.y_base + t * P.y_step + n * P.y_batch + u]");
    let step = filled(if lstm { LSTM } else { GRU }, &[("DY", by_y)]);
    let source = filled(
        include_str!("recurrent_back.wgsl"),
        &[
            ("WHAT", if lstm { "Long short-term memory" } else { "Gated recurrent units" }),
            (
                "TAPE",
                if lstm {
                    "gates i o f c, the new cell, the old one"
                } else {
                    "gates z r h, what the last one's R made; Q are the states before"
                },
            ),
            ("CELLS", flag(lstm, " and T")),
            ("CELL", flag(lstm, " and cell")),
            ("THROUGH", flag(!lstm, " and by their products with the state (E)")),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &floats(3, reads.iter().chain(writes))),
            ("BEGIN", flag(lstm, "            dc[k] = T[first + u];")),
            ("STEP", &step),
            ("GATES", if lstm { "4" } else { "3" }),
            ("BY_STATE", if lstm { "D" } else { "E" }),
            ("STRAIGHT", flag(!lstm, "dc[k] + ")),
            ("END", flag(lstm, "            T[first + u] = dc[k];")),
        ],
    );
    let name = format!("recurrent-back-{}{}", if lstm { "lstm" } else { "gru" }, flag(!dy, "-last"));
    Kernel::new(name, source, 2 + reads.len(), writes.len(), move || {
        [(3, 2, 5, false), (3, 1, 270, true)]
            .into_iter()
            .filter_map(|(s, n, h, r)| trial(cell, dy, s, n, h, r))
            .collect()
    })
}

fn trial(cell: Cell, dy: bool, steps: usize, batch: usize, units: usize, reverse: bool) -> Option<Trial> {
    let (lstm, h) = (cell == Cell::Lstm, units);
    let (g, taped) = if lstm { (4, 6) } else { (3, 4) };
    // As the second of two directions has it.
    let (d_row, d_base) = (2 * g * h, g * h);
    let back = Back {
        cell,
        steps,
        batch,
        units,
        reverse,
        dy,
        z: [batch, 1, 1],
        y: [2 * batch * h, h, batch * h],
        state: [h, batch * h],
        r: g * h * h,
        d: [d_row, d_base],
    };
    let call = back.call()?;
    let mut draws = Draws::new((steps + units + g) as u64);
    let rows = steps * batch;
    // Gates are between 0 and 1, or -1 and 1 where they are the new value.
    let tape = draws.floats((1 + rows) * taped * h);
    let signed = |k: usize| if lstm { k >= 3 } else { k >= 2 };
    let tape: Vec<f32> =
        tape.iter().enumerate().map(|(i, v)| if signed(i / h % taped) { *v } else { 0.5 + 0.5 * v }).collect();
    let before = draws.floats((1 + rows) * h);
    let r: Vec<f32> = draws.floats(2 * g * h * h).iter().map(|v| v * 0.2).collect();
    let by_y = draws.floats(steps * 2 * batch * h);
    let (s, t) = (draws.floats(2 * batch * h), draws.floats(2 * batch * h));
    let (mut d, mut e) = (vec![0f32; rows * d_row], vec![0f32; rows * d_row]);
    let (mut s_after, mut t_after) = (s.clone(), t.clone());
    for n in 0..batch {
        let first = batch * h + n * h;
        let mut dh: Vec<f64> = s[first..first + h].iter().map(|v| f64::from(*v)).collect();
        let mut dc: Vec<f64> = t[first..first + h].iter().map(|v| f64::from(*v)).collect();
        for turn in 0..steps {
            let at = if reverse { turn } else { steps - 1 - turn };
            let row = at * batch + n;
            let mut through = vec![0f64; g * h];
            for u in 0..h {
                let a = |k: usize| f64::from(tape[(1 + row) * taped * h + k * h + u]);
                let y = if dy { f64::from(by_y[batch * h + at * 2 * batch * h + n * h + u]) } else { 0.0 };
                let by_h = dh[u] + y;
                let slope = |v: f64| v * (1.0 - v);
                let by_gates: Vec<f64> = if lstm {
                    let cell = a(4).tanh();
                    let by_c = dc[u] + by_h * a(1) * (1.0 - cell * cell);
                    dc[u] = by_c * a(2);
                    vec![
                        by_c * a(3) * slope(a(0)),
                        by_h * cell * slope(a(1)),
                        by_c * a(5) * slope(a(2)),
                        by_c * a(0) * (1.0 - a(3) * a(3)),
                    ]
                } else {
                    let by_g = by_h * (1.0 - a(0)) * (1.0 - a(2) * a(2));
                    dh[u] = by_h * a(0);
                    let by_keep = by_h * (f64::from(before[(1 + row) * h + u]) - a(2)) * slope(a(0));
                    vec![by_keep, by_g * a(3) * slope(a(1)), by_g]
                };
                for (k, v) in by_gates.iter().enumerate() {
                    through[k * h + u] = if !lstm && k == 2 { v * a(1) } else { *v };
                    d[row * d_row + d_base + k * h + u] = *v as f32;
                    e[row * d_row + d_base + k * h + u] = through[k * h + u] as f32;
                }
            }
            for u in 0..h {
                let sum: f64 = (0..g * h).map(|j| through[j] * f64::from(r[g * h * h + j * h + u])).sum();
                dh[u] = if lstm { sum } else { dh[u] + sum };
            }
        }
        for u in 0..h {
            s_after[first + u] = dh[u] as f32;
            t_after[first + u] = dc[u] as f32;
        }
    }
    let mut operands = vec![bytes_of(&tape), bytes_of(&r)];
    operands.extend((!lstm).then(|| bytes_of(&before)));
    operands.extend(dy.then(|| bytes_of(&by_y)));
    let (mut given, mut results) = (vec![bytes_of(&s)], vec![bytes_of(&s_after)]);
    if lstm {
        given.push(bytes_of(&t));
        results.push(bytes_of(&t_after));
    }
    results.push(bytes_of(&d));
    results.extend((!lstm).then(|| bytes_of(&e)));
    // The other direction's part of the rows is not written.
    given.extend((given.len()..results.len()).map(|_| vec![0; rows * d_row * 4]).collect::<Vec<_>>());
    Some(Trial { call, before: given, operands, results, allowed: Allowed::Floats(5e-5) })
}
