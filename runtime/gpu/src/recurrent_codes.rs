//! LSTM over whole sequences whose states are quantised as they come, with 8-bit weights: the standard's activations,
//! peepholes too.
//!
//! `recurrent` takes a group a sequence; here all sequences of a turn share a scale, so that one group takes them all.
use std::sync::Arc;

use crate::codes::{pack, packed_len};
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, bytes_of_words, filled, floats};
use crate::product::COLUMNS;

/// Most units of all sequences: the states are in the memory of a group.
const MOST_UNITS: usize = 1024;
/// Most words of their codes.
const MOST_WORDS: usize = 512;

/// One direction. Operands Z, R, M, first state, first cell; results Y, last state, last cell.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedLstm {
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
    /// Elements of Y from one step and sequence to the next, and the first.
    pub y: [usize; 3],
    /// Elements of a state from one sequence to the next, and the first.
    pub state: [usize; 2],
}

/// Of a column of the weights of the states.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The sum of its codes.
    pub sum: i32,
    /// Its scale.
    pub scale: f32,
    /// The peephole of its gate and unit, or 0.
    pub peephole: f32,
}

/// The bytes of operand M.
pub fn columns(of: impl IntoIterator<Item = Column>) -> Vec<u8> {
    let one = |c: Column| [c.sum as u32, c.scale.to_bits(), c.peephole.to_bits(), 0];
    bytes_of_words(&of.into_iter().flat_map(one).collect::<Vec<_>>())
}

/// Bytes of operand R, `pack`ed codes `[units, 4 · units]`.
pub fn weights_len(units: usize) -> usize {
    packed_len(units, units, 4 * units)
}

impl QuantisedLstm {
    /// The call; `None` for more units than it has memory for.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        let words = self.units.div_ceil(4);
        if self.units.checked_mul(self.batch)? > MOST_UNITS || words * self.batch > MOST_WORDS {
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
            word(self.z[2])?,
            word(self.batch)?,
            word(words)?,
            word((4 * self.units).next_multiple_of(COLUMNS))?,
        ];
        kernel().call(params, [1, 1, 1])
    }
}

fn kernel() -> Arc<Kernel> {
    let source = filled(
        include_str!("recurrent_codes.wgsl"),
        &[
            ("PADDED", &format!("a multiple of {COLUMNS}")),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &floats(4, &["H", "C", "Y", "L", "K"])),
            ("MOST", &MOST_UNITS.to_string()),
            ("WORDS", &MOST_WORDS.to_string()),
            ("QUOTIENT", include_str!("quotient.wgsl")),
        ],
    );
    Kernel::new("recurrent-lstm-codes".into(), source, 5, 3, || {
        [(3, 2, 5, false), (2, 1, 300, true), (1, 3, 4, false)].into_iter().filter_map(trial).collect()
    })
}

/// The first trial of those sizes in which no state is near the edge between two codes: what decides it there is the last bit
/// of functions that devices compute differently.
fn trial(sizes: (usize, usize, usize, bool)) -> Option<Trial> {
    (0..200).find_map(|seed| drawn(sizes, seed))
}

fn drawn((steps, batch, units, reverse): (usize, usize, usize, bool), seed: u64) -> Option<Trial> {
    let h = units;
    // As the second of two directions has it.
    let lstm = QuantisedLstm {
        steps,
        batch,
        units,
        reverse,
        z: [batch, 1, 1],
        y: [2 * batch * h, h, batch * h],
        state: [h, batch * h],
    };
    let call = lstm.call()?;
    let mut draws = Draws::new(seed * 1000 + (steps + units) as u64);
    let z = draws.floats((1 + steps * batch) * 4 * h);
    let r: Vec<i8> = draws.bytes(h * 4 * h).into_iter().map(|b| b as i8).collect();
    let (h0, c0) = (draws.floats(2 * batch * h), draws.floats(2 * batch * h));
    let column = |j: usize, draws: &mut Draws| Column {
        sum: (0..h).map(|k| i32::from(r[k * 4 * h + j])).sum(),
        scale: (draws.float().abs() + 0.1) * 0.02 / h as f32,
        peephole: if j < 3 * h { draws.float() * 0.5 } else { 0.0 },
    };
    let of: Vec<Column> = (0..4 * h).map(|j| column(j, &mut draws)).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let first = |n: usize| batch * h + n * h;
    let of_sequences =
        |v: &[f32]| -> Vec<f64> { (0..batch).flat_map(|n| v[first(n)..][..h].iter().map(|v| f64::from(*v))).collect() };
    let (mut state, mut cell) = (of_sequences(&h0), of_sequences(&c0));
    let mut y = vec![0f32; steps * 2 * batch * h];
    for turn in 0..steps {
        let t = if reverse { steps - 1 - turn } else { turn };
        let (low, high) = state.iter().fold((0f64, 0f64), |(l, h), v| (l.min(*v), h.max(*v)));
        let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
        let zero = -low / scale;
        // Far from an edge: what is half of a code away from one is decided by rounding.
        let edge = |v: f64| (v - v.floor() - 0.5).abs() < 1e-3;
        if edge(zero) || state.iter().any(|v| edge(v / scale)) {
            return None;
        }
        let code = |v: f64| ((v / scale).round_ties_even() + zero.round_ties_even()).clamp(0.0, 255.0);
        let codes: Vec<f64> = state.iter().map(|v| code(*v) - zero.round_ties_even()).collect();
        for n in 0..batch {
            let row = (1 + t * batch + n) * 4 * h;
            for u in 0..h {
                let e = n * h + u;
                let gate = |gate: usize| {
                    let j = gate * h + u;
                    let sum: f64 = (0..h).map(|k| codes[n * h + k] * f64::from(r[k * 4 * h + j])).sum();
                    f64::from(z[row + j]) + sum * scale * f64::from(of[j].scale)
                };
                let hole = |gate: usize, c: f64| f64::from(of[gate * h + u].peephole) * c;
                let old = cell[e];
                let (i, f) = (sigmoid(gate(0) + hole(0, old)), sigmoid(gate(2) + hole(2, old)));
                cell[e] = f * old + i * gate(3).tanh();
                state[e] = sigmoid(gate(1) + hole(1, cell[e])) * cell[e].tanh();
                y[first(n) + t * 2 * batch * h + u] = state[e] as f32;
            }
        }
    }
    let mut last = [vec![0f32; 2 * batch * h], vec![0f32; 2 * batch * h]];
    for e in 0..batch * h {
        last[0][batch * h + e] = state[e] as f32;
        last[1][batch * h + e] = cell[e] as f32;
    }
    let packed = pack(h, h, 4 * h, |k, j| r[k * 4 * h + j]);
    let operands = vec![bytes_of(&z), packed, columns(of), bytes_of(&h0), bytes_of(&c0)];
    let results = vec![bytes_of(&y), bytes_of(&last[0]), bytes_of(&last[1])];
    Some(Trial { call, before: vec![], operands, results, allowed: Allowed::Floats(5e-5) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_trial_in_which_no_rounding_is_close() {
        assert_eq!(kernel().trials().len(), 3);
    }
}
