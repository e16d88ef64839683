//! Whole-sequence recurrent operators. Nothing is kept from one run to the next.
//!
//! Dimension letters: `S` steps, `N` batch, `I` input size, `H` hidden size, `D` directions, `G` gates of a cell.
use super::{Attrs, Fact, OpDef, OpError, ints_of, need, optional};
use crate::ops::shape::elements;
use crate::tensor::Tensor;

mod activation;
mod backward;
#[cfg(all(test, feature = "gpu"))]
mod gpu_tests;
mod live;
mod quantized;
mod record;
mod reference;
mod sequence;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[&LSTM, &GRU, &RNN, &quantized::DYNAMIC_QUANTIZE_LSTM];

/// Long short-term memory.
static LSTM: OpDef = OpDef::new(
    "LSTM",
    "whole-sequence long short-term memory, one or both directions, peepholes, initial state",
    |attrs, inputs| shape(attrs, inputs, Cell::Lstm),
    |attrs, inputs| reference::run(attrs, inputs, Cell::Lstm),
)
.kernel(|l| sequence::lower(l, Cell::Lstm))
.gpu(|l| record::recorded(l, Cell::Lstm))
.vjp(|b| backward::vjp(b, "LSTM"));

/// Gated recurrent unit.
static GRU: OpDef = OpDef::new(
    "GRU",
    "whole-sequence gated recurrent unit, one or both directions, initial state",
    |attrs, inputs| shape(attrs, inputs, Cell::Gru),
    |attrs, inputs| reference::run(attrs, inputs, Cell::Gru),
)
.kernel(|l| sequence::lower(l, Cell::Gru))
.gpu(|l| record::recorded(l, Cell::Gru))
.vjp(|b| backward::vjp(b, "GRU"));

/// One layer of the simplest recurrence.
static RNN: OpDef = OpDef::new(
    "RNN",
    "whole-sequence recurrence h' = f(W x + R h + b), one or both directions, initial state",
    |attrs, inputs| shape(attrs, inputs, Cell::Rnn),
    |attrs, inputs| reference::run(attrs, inputs, Cell::Rnn),
)
.kernel(|l| sequence::lower(l, Cell::Rnn))
.vjp(|b| backward::vjp(b, "RNN"));

/// Which recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Lstm,
    Gru,
    Rnn,
}

impl Cell {
    /// Gates of a cell: how many times `H` rows `W` has.
    pub(super) fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn => 1,
        }
    }

    /// Activations of a direction, as the standard has them when none are named.
    pub(super) fn activations(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Rnn => &["Tanh"],
        }
    }
}

/// Which way a direction walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Reverse,
}

/// The sizes of one use of a recurrent operator, checked against its operands.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) cell: Cell,
    pub(super) s: usize,
    pub(super) n: usize,
    pub(super) i: usize,
    pub(super) h: usize,
    pub(super) directions: Vec<Direction>,
    /// Batch before steps in `X` and `Y`, before directions in the states.
    pub(super) batch_first: bool,
}

impl Sequence {
    /// `r` is the shape of `R`, `[D, G·H, H]`.
    pub(super) fn of(attrs: &Attrs, cell: Cell, x: &[usize], r: &[usize]) -> Result<Sequence, OpError> {
        let directions = match &attrs.str("direction", "forward")?.to_ascii_lowercase()[..] {
            "forward" => vec![Direction::Forward],
            "reverse" => vec![Direction::Reverse],
            "bidirectional" => vec![Direction::Forward, Direction::Reverse],
            other => return Err(OpError::attribute("direction", format!("is `{other}`"))),
        };
        let batch_first = attrs.flag("layout", false)?;
        let (&[x0, x1, i], &[d, gh, h]) = (x, r) else {
            return Err(OpError::shape("X and R of a recurrence", "rank 3 each", (x, r)));
        };
        if d != directions.len() || Some(gh) != h.checked_mul(cell.gates()) {
            let expected = format!("[{}, {}H, H]", directions.len(), cell.gates());
            return Err(OpError::shape("R of a recurrence", expected, r));
        }
        let (s, n) = if batch_first { (x1, x0) } else { (x0, x1) };
        let sequence = Sequence { cell, s, n, i, h, directions, batch_first };
        elements(&[s, d, n, cell.gates(), h])?;
        Ok(sequence)
    }

    /// Directions.
    pub(super) fn d(&self) -> usize {
        self.directions.len()
    }

    /// Shape of `Y`.
    pub(super) fn y_shape(&self) -> Vec<usize> {
        let (s, d, n, h) = (self.s, self.d(), self.n, self.h);
        if self.batch_first { vec![n, s, d, h] } else { vec![s, d, n, h] }
    }

    /// Shape of a state.
    pub(super) fn state_shape(&self) -> Vec<usize> {
        let (d, n, h) = (self.d(), self.n, self.h);
        if self.batch_first { vec![n, d, h] } else { vec![d, n, h] }
    }

    /// Row of `X` for a step of a sequence.
    pub(super) fn x_row(&self, t: usize, n: usize) -> usize {
        if self.batch_first { n * self.s + t } else { t * self.n + n }
    }

    /// Row of `Y` for a step of a sequence.
    pub(super) fn y_row(&self, t: usize, d: usize, n: usize) -> usize {
        if self.batch_first { (n * self.s + t) * self.d() + d } else { (t * self.d() + d) * self.n + n }
    }

    /// Row of a state.
    pub(super) fn state_row(&self, d: usize, n: usize) -> usize {
        if self.batch_first { n * self.d() + d } else { d * self.n + n }
    }

    /// Checks the shape of every operand given; `w` is the shape `W` must have.
    pub(super) fn check(&self, inputs: &[Option<&[usize]>], w: &[usize]) -> Result<(), OpError> {
        let (d, h, g) = (self.d(), self.h, self.cell.gates());
        let bias = [d, 2 * g * h];
        let state = self.state_shape();
        let peepholes = [d, 3 * h];
        let lens = [self.n];
        let expected: [(usize, &str, &[usize]); 6] = [
            (1, "W", w),
            (3, "B", &bias),
            (4, "sequence_lens", &lens),
            (5, "initial_h", &state),
            (6, "initial_c", &state),
            (7, "P", &peepholes),
        ];
        for (at, name, expected) in expected {
            if at >= 6 && self.cell != Cell::Lstm {
                continue;
            }
            if let Some(found) = inputs.get(at).copied().flatten().filter(|f| *f != expected) {
                return Err(OpError::shape(format!("{name} of a recurrence"), expected, found));
            }
        }
        Ok(())
    }

    /// Steps of each sequence.
    pub(super) fn lengths(&self, lens: Option<&Tensor>) -> Vec<usize> {
        match lens {
            None => vec![self.s; self.n],
            Some(t) => ints_of(t).into_iter().map(|l| l.clamp(0, self.s as i64) as usize).collect(),
        }
    }

    /// The step a direction takes at turn `turn` of a sequence of `len` steps.
    pub(super) fn step(&self, d: usize, turn: usize, len: usize) -> usize {
        match self.directions[d] {
            Direction::Forward => turn,
            Direction::Reverse => len - 1 - turn,
        }
    }
}

fn shape(attrs: &Attrs, inputs: &[Option<&Fact>], cell: Cell) -> Result<Option<Vec<Fact>>, OpError> {
    need(inputs, 1, "W")?;
    let (x, r) = (need(inputs, 0, "X")?, need(inputs, 2, "R")?);
    let s = Sequence::of(attrs, cell, &x.shape, &r.shape)?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| optional(inputs, i).map(|f| &f.shape[..])).collect();
    s.check(&given, &[s.d(), cell.gates() * s.h, s.i])?;
    let mut facts = vec![Fact::new(x.dtype, s.y_shape()), Fact::new(x.dtype, s.state_shape())];
    if cell == Cell::Lstm {
        facts.push(Fact::new(x.dtype, s.state_shape()));
    }
    Ok(Some(facts))
}
