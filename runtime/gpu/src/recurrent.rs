//! LSTM and GRU over whole sequences, with the activations of the standard.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, floats};

/// Most units: the state is in the memory of a group.
const MOST_UNITS: usize = 1024;

/// Which recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Gates `i o f c`. Operands Z, R, first state, first cell; results Y, last state, last cell.
    Lstm,
    /// Gates `z r h`. Operands Z, R, first state and, when `late`, a bias of the last gate's product; results Y, last state.
    Gru {
        /// The product of the last gate is taken before the reset (`linear_before_reset`).
        late: bool,
    },
}

impl Cell {
    fn gates(self) -> usize {
        if self == Cell::Lstm { 4 } else { 3 }
    }
}

/// One direction of a recurrence.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence {
    /// The cell.
    pub cell: Cell,
    /// Steps.
    pub steps: usize,
    /// Sequences.
    pub batch: usize,
    /// Units.
    pub units: usize,
    /// From the last step to the first.
    pub reverse: bool,
    /// Rows of Z from one step and sequence to the next.
    pub z: [usize; 2],
    /// Elements of Y from one step and sequence to the next, and the first.
    pub y: [usize; 3],
    /// Elements of a state from one sequence to the next, and the first.
    pub state: [usize; 2],
}

impl Recurrence {
    /// The call; `None` for more units than it has memory for.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        if self.units > MOST_UNITS {
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
        ];
        kernel(self.cell).call(params, [self.batch, 1, 1])
    }
}

const LSTM: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let i = sigmoid(Z[z + u] + product(0u, u, row));
                let o = sigmoid(Z[z + P.units + u] + product(1u, u, row));
                let f = sigmoid(Z[z + 2u * P.units + u] + product(2u, u, row));
                let g = tanh_of(Z[z + 3u * P.units + u] + product(3u, u, row));
                more[k] = f * carried[u] + i * g;
                fresh[k] = o * tanh_of(more[k]);
            }
        }";

const GRU: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                more[k] = sigmoid(Z[z + u] + product(0u, u, row));
                carried[u] = state[u] * sigmoid(Z[z + P.units + u] + product(1u, u, row));
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let g = tanh_of(Z[z + 2u * P.units + u] + product_of_carried(2u, u, row));
                fresh[k] = (1.0 - more[k]) * g + more[k] * state[u];
            }
        }";

const GRU_LATE: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let keep = sigmoid(Z[z + u] + product(0u, u, row));
                let reset = sigmoid(Z[z + P.units + u] + product(1u, u, row));
                let g = tanh_of(Z[z + 2u * P.units + u] + reset * (product(2u, u, row) + B[u]));
                fresh[k] = (1.0 - keep) * g + keep * state[u];
            }
        }";

fn kernel(cell: Cell) -> Arc<Kernel> {
    let (name, what, operand, results, step): (_, _, &[&str], &[&str], _) = match cell {
        Cell::Lstm => ("recurrent-lstm", "Long short-term memory", &["C"], &["Y", "L", "K"], LSTM),
        Cell::Gru { late: false } => ("recurrent-gru", "Gated recurrent units", &[], &["Y", "L"], GRU),
        Cell::Gru { late: true } => ("recurrent-gru-late", "Gated recurrent units", &["B"], &["Y", "L"], GRU_LATE),
    };
    let bindings = floats(4, operand.iter().chain(results));
    let lstm = cell == Cell::Lstm;
    let gates = cell.gates().to_string();
    let source = filled(
        include_str!("recurrent.wgsl"),
        &[
            ("WHAT", what),
            ("MORE", if lstm { ", the last cell (K)" } else { "" }),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &bindings),
            ("GATES", &gates),
            ("CARRIED", if lstm { "C[first + u]" } else { "0.0" }),
            ("STEP", step),
            ("KEEP", if lstm { "                carried[u] = more[k];" } else { "" }),
            ("LAST", if lstm { "        K[first + u] = carried[u];" } else { "" }),
        ],
    );
    Kernel::new(name.into(), source, 3 + operand.len(), results.len(), move || {
        [(3, 2, 5, false), (4, 1, 300, true)].into_iter().filter_map(|(s, n, h, r)| trial(cell, s, n, h, r)).collect()
    })
}

fn trial(cell: Cell, steps: usize, batch: usize, units: usize, reverse: bool) -> Option<Trial> {
    let (g, h) = (cell.gates(), units);
    // As one of two directions has it.
    let recurrence = Recurrence {
        cell,
        steps,
        batch,
        units,
        reverse,
        z: [batch, 1],
        y: [2 * batch * h, h, batch * h],
        state: [h, batch * h],
    };
    let call = recurrence.call()?;
    let mut draws = Draws::new((steps + units) as u64);
    let z = draws.floats(steps * batch * g * h);
    let r: Vec<f32> = draws.floats(h * g * h).iter().map(|v| v * 0.2).collect();
    let (h0, c0, b) = (draws.floats(2 * batch * h), draws.floats(2 * batch * h), draws.floats(h));
    let mut y = vec![0f32; steps * 2 * batch * h];
    let (mut last, mut cells) = (vec![0f32; 2 * batch * h], vec![0f32; 2 * batch * h]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for n in 0..batch {
        let first = batch * h + n * h;
        let mut state: Vec<f64> = h0[first..first + h].iter().map(|v| f64::from(*v)).collect();
        let mut carried: Vec<f64> = c0[first..first + h].iter().map(|v| f64::from(*v)).collect();
        for turn in 0..steps {
            let t = if reverse { steps - 1 - turn } else { turn };
            let input = |gate: usize, u: usize| f64::from(z[(t * batch + n) * g * h + gate * h + u]);
            let of = |state: &[f64], gate: usize, u: usize| -> f64 {
                (0..h).map(|j| state[j] * f64::from(r[j * g * h + gate * h + u])).sum()
            };
            let gate = |k: usize, u: usize| sigmoid(input(k, u) + of(&state, k, u));
            let fresh: Vec<f64> = match cell {
                Cell::Lstm => {
                    let next: Vec<f64> = (0..h)
                        .map(|u| gate(2, u) * carried[u] + gate(0, u) * (input(3, u) + of(&state, 3, u)).tanh())
                        .collect();
                    let fresh = (0..h).map(|u| gate(1, u) * next[u].tanh()).collect();
                    carried = next;
                    fresh
                }
                Cell::Gru { late } => {
                    let reset: Vec<f64> = (0..h).map(|u| gate(1, u) * state[u]).collect();
                    let new = |u: usize| match late {
                        true => input(2, u) + gate(1, u) * (of(&state, 2, u) + f64::from(b[u])),
                        false => input(2, u) + of(&reset, 2, u),
                    };
                    (0..h).map(|u| (1.0 - gate(0, u)) * new(u).tanh() + gate(0, u) * state[u]).collect()
                }
            };
            state = fresh;
            for u in 0..h {
                y[batch * h + t * 2 * batch * h + n * h + u] = state[u] as f32;
            }
        }
        for u in 0..h {
            last[first + u] = state[u] as f32;
            cells[first + u] = carried[u] as f32;
        }
    }
    let mut operands = vec![bytes_of(&z), bytes_of(&r), bytes_of(&h0)];
    let mut results = vec![bytes_of(&y), bytes_of(&last)];
    match cell {
        Cell::Lstm => {
            operands.push(bytes_of(&c0));
            results.push(bytes_of(&cells));
        }
        Cell::Gru { late: true } => operands.push(bytes_of(&b)),
        Cell::Gru { late: false } => {}
    }
    Some(Trial { call, before: vec![], operands, results, allowed: Allowed::Floats(5e-5) })
}
