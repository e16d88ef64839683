//! LSTM and GRU over whole sequences, with the activations of the standard.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, floats};

/// Most units: the state is in the memory of a group.
pub(crate) const MOST_UNITS: usize = 1024;

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
    /// Rows of Z from one step and sequence to the next, and the first.
    pub z: [usize; 3],
    /// The first element of R.
    pub r: usize,
    /// Elements of Y from one step and sequence to the next, and the first.
    pub y: [usize; 3],
    /// Elements of a state from one sequence to the next, and the first.
    pub state: [usize; 2],
    /// Where the biases of the direction begin in an operand of their own, all of them: those of the inputs, then those of the
    /// state. `None` when Z has them, but for the bias of a late GRU.
    pub bias: Option<usize>,
    /// For [`Back`](crate::recurrent_back::Back): in place of the results the states before every step, row by row as Z, and
    /// what every step went through: of an LSTM the gates `i o f c`, the new cell and the old one, of a late GRU the gates
    /// `z r h` and the product of the last one.
    pub tape: bool,
}

impl Recurrence {
    /// The call; `None` for more units than it has memory for.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        let early = matches!(self.cell, Cell::Gru { late: false });
        if self.units > MOST_UNITS || self.tape && early {
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
            word(self.bias.unwrap_or(0))?,
            word(self.z[2])?,
            word(self.r)?,
        ];
        kernel(Form { cell: self.cell, bias: self.bias.is_some(), tape: self.tape }).call(params, [self.batch, 1, 1])
    }
}

/// What the text depends on.
#[derive(Clone, Copy, Debug)]
struct Form {
    cell: Cell,
    bias: bool,
    tape: bool,
}

const LSTM: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let i = sigmoid(input(0u, u, z) + product(0u, u, row));
                let o = sigmoid(input(1u, u, z) + product(1u, u, row));
                let f = sigmoid(input(2u, u, z) + product(2u, u, row));
                let g = tanh_of(input(3u, u, z) + product(3u, u, row));
                more[k] = f * carried[u] + i * g;
                fresh[k] = o * tanh_of(more[k]);
                {{TAPE}}
            }
        }";

const LSTM_TAPE: &str = "let a = 6u * (z / 4u) + u;
                A[a] = i;
                A[a + P.units] = o;
                A[a + 2u * P.units] = f;
                A[a + 3u * P.units] = g;
                A[a + 4u * P.units] = more[k];
                A[a + 5u * P.units] = carried[u];
                Q[z / 4u + u] = state[u];";

const GRU: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                more[k] = sigmoid(input(0u, u, z) + product(0u, u, row));
                carried[u] = state[u] * sigmoid(input(1u, u, z) + product(1u, u, row));
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let g = tanh_of(input(2u, u, z) + product_of_carried(2u, u, row));
                fresh[k] = (1.0 - more[k]) * g + more[k] * state[u];
            }
        }";

const GRU_LATE: &str = "        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                let keep = sigmoid(input(0u, u, z) + product(0u, u, row));
                let reset = sigmoid(input(1u, u, z) + product(1u, u, row));
                let last = product(2u, u, row) + {{LATE}};
                let g = tanh_of({{LAST_INPUT}} + reset * last);
                fresh[k] = (1.0 - keep) * g + keep * state[u];
                {{TAPE}}
            }
        }";

const GRU_TAPE: &str = "let a = 4u * (z / 3u) + u;
                A[a] = keep;
                A[a + P.units] = reset;
                A[a + 2u * P.units] = g;
                A[a + 3u * P.units] = last;
                Q[z / 3u + u] = state[u];";

fn kernel(form: Form) -> Arc<Kernel> {
    let Form { cell, bias, tape } = form;
    let lstm = cell == Cell::Lstm;
    let late = cell == Cell::Gru { late: true };
    let (name, what, step, taped) = match cell {
        Cell::Lstm => ("recurrent-lstm", "Long short-term memory", LSTM, LSTM_TAPE),
        Cell::Gru { late: false } => ("recurrent-gru", "Gated recurrent units", GRU, ""),
        Cell::Gru { late: true } => ("recurrent-gru-late", "Gated recurrent units", GRU_LATE, GRU_TAPE),
    };
    let mut operands = Vec::from_iter(lstm.then_some("C"));
    operands.extend((bias || late).then_some("B"));
    let results: &[&str] = match (tape, lstm) {
        (true, _) => &["Q", "A"],
        (false, true) => &["Y", "L", "K"],
        (false, false) => &["Y", "L"],
    };
    let gates = cell.gates();
    // Of the last gate of a late GRU the bias of the state is under the reset.
    let biases = format!(" + B[P.bias + gate * P.units + unit] + B[P.bias + (gate + {gates}u) * P.units + unit]");
    let input = format!("Z[z + gate * P.units + unit]{}", flag(bias, &biases));
    let step = filled(
        step,
        &[
            ("TAPE", flag(tape, taped)),
            ("LATE", if bias { "B[P.bias + 5u * P.units + u]" } else { "B[u]" }),
            (
                "LAST_INPUT",
                if bias { "Z[z + 2u * P.units + u] + B[P.bias + 2u * P.units + u]" } else { "Z[z + 2u * P.units + u]" },
            ),
        ],
    );
    let source = filled(
        include_str!("recurrent.wgsl"),
        &[
            ("WHAT", what),
            (
                "RESULTS",
                match (tape, lstm) {
                    (true, _) => "the state before every step (Q) and what each went through (A)",
                    (false, true) => "the state after every step (Y), the last one (L), the last cell (K)",
                    (false, false) => "the state after every step (Y), the last one (L)",
                },
            ),
            ("BIAS", if bias { "without bias, which B has: of inputs, then of the state" } else { "bias and all" }),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &floats(4, operands.iter().chain(results))),
            ("GATES", &gates.to_string()),
            ("CARRIED", if lstm { "C[first + u]" } else { "0.0" }),
            ("INPUT", &input),
            ("STEP", &step),
            ("KEEP", flag(lstm, "                carried[u] = more[k];")),
            ("MADE", flag(!tape, "                Y[y + u] = fresh[k];")),
            ("LAST", flag(!tape, "        L[first + u] = state[u];")),
            ("CELL", flag(lstm && !tape, "        K[first + u] = carried[u];")),
        ],
    );
    let name = format!("{name}{}{}", flag(bias, "-bias"), flag(tape, "-tape"));
    Kernel::new(name, source, 3 + operands.len(), results.len(), move || {
        [(3, 2, 5, false), (4, 1, 300, true)].into_iter().filter_map(|(s, n, h, r)| trial(form, s, n, h, r)).collect()
    })
}

fn flag(holds: bool, text: &str) -> &str {
    if holds { text } else { "" }
}

fn trial(form: Form, steps: usize, batch: usize, units: usize, reverse: bool) -> Option<Trial> {
    let Form { cell, bias, tape } = form;
    let (g, h) = (cell.gates(), units);
    // As one of two directions has it.
    let recurrence = Recurrence {
        cell,
        steps,
        batch,
        units,
        reverse,
        z: [batch, 1, 1],
        r: 3,
        y: [2 * batch * h, h, batch * h],
        state: [h, batch * h],
        bias: bias.then_some(2 * g * h),
        tape,
    };
    let call = recurrence.call()?;
    let mut draws = Draws::new((steps + units) as u64);
    let z = draws.floats((1 + steps * batch) * g * h);
    let r: Vec<f32> = draws.floats(3 + h * g * h).iter().map(|v| v * 0.2).collect();
    let (h0, c0) = (draws.floats(2 * batch * h), draws.floats(2 * batch * h));
    let b = draws.floats(if bias { 4 * g * h } else { h });
    let mut y = vec![0f32; steps * 2 * batch * h];
    let (mut last, mut cells) = (vec![0f32; 2 * batch * h], vec![0f32; 2 * batch * h]);
    let taped = if cell == Cell::Lstm { 6 } else { 4 };
    let (mut before, mut tape_of) = (vec![0f32; (1 + steps * batch) * h], vec![0f32; (1 + steps * batch) * taped * h]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let late = cell == Cell::Gru { late: true };
    let biased = |gate: usize, u: usize, of_state: bool| match bias {
        true => f64::from(b[2 * g * h + (gate + if of_state { g } else { 0 }) * h + u]),
        false if late && gate == 2 && of_state => f64::from(b[u]),
        false => 0.0,
    };
    for n in 0..batch {
        let first = batch * h + n * h;
        let mut state: Vec<f64> = h0[first..first + h].iter().map(|v| f64::from(*v)).collect();
        let mut carried: Vec<f64> = c0[first..first + h].iter().map(|v| f64::from(*v)).collect();
        for turn in 0..steps {
            let t = if reverse { steps - 1 - turn } else { turn };
            let row = 1 + t * batch + n;
            let input = |gate: usize, u: usize| f64::from(z[row * g * h + gate * h + u]) + biased(gate, u, false);
            let of = |state: &[f64], gate: usize, u: usize| -> f64 {
                (0..h).map(|j| state[j] * f64::from(r[3 + j * g * h + gate * h + u])).sum::<f64>()
                    + biased(gate, u, true)
            };
            let gate = |k: usize, u: usize| sigmoid(input(k, u) + of(&state, k, u));
            let new = |u: usize| (input(3, u) + of(&state, 3, u)).tanh();
            before[row * h..][..h].iter_mut().zip(&state).for_each(|(to, v)| *to = *v as f32);
            let mut keep = |k: usize, u: usize, v: f64| tape_of[row * taped * h + k * h + u] = v as f32;
            let fresh: Vec<f64> = match cell {
                Cell::Lstm => {
                    let next: Vec<f64> = (0..h).map(|u| gate(2, u) * carried[u] + gate(0, u) * new(u)).collect();
                    let fresh = (0..h).map(|u| gate(1, u) * next[u].tanh()).collect();
                    for u in 0..if tape { h } else { 0 } {
                        let all = [gate(0, u), gate(1, u), gate(2, u), new(u), next[u], carried[u]];
                        all.into_iter().enumerate().for_each(|(k, v)| keep(k, u, v));
                    }
                    carried = next;
                    fresh
                }
                Cell::Gru { late } => {
                    let reset: Vec<f64> = (0..h).map(|u| gate(1, u) * state[u]).collect();
                    let new = |u: usize| match late {
                        true => input(2, u) + gate(1, u) * of(&state, 2, u),
                        false => input(2, u) + of(&reset, 2, u),
                    };
                    for u in 0..if tape { h } else { 0 } {
                        let all = [gate(0, u), gate(1, u), new(u).tanh(), of(&state, 2, u)];
                        all.into_iter().enumerate().for_each(|(k, v)| keep(k, u, v));
                    }
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
    let mut results =
        if tape { vec![bytes_of(&before), bytes_of(&tape_of)] } else { vec![bytes_of(&y), bytes_of(&last)] };
    if cell == Cell::Lstm {
        operands.push(bytes_of(&c0));
        results.extend((!tape).then(|| bytes_of(&cells)));
    }
    operands.extend((bias || late).then(|| bytes_of(&b)));
    // Rows before the first are not written.
    let before = if tape { results.iter().map(|r| vec![0; r.len()]).collect() } else { vec![] };
    Some(Trial { call, before, operands, results, allowed: Allowed::Floats(5e-5) })
}
