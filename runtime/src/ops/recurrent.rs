//! Whole-sequence recurrent operators.
//!
//! Dimension letters: `S` steps, `N` batch, `I` input size, `H` hidden size, `D` directions.
use hone_kernels::activation::{sigmoid, tanh};
use hone_kernels::{gemm, rows};

use super::matmul::PackedMatrix;
use super::{Attrs, Fact, OpDef, OpError, Origin, need};
use crate::graph::Dim;
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Long short-term memory over a whole sequence. Nothing is kept from one run to the next.
pub(super) static LSTM: OpDef = OpDef {
    name: "LSTM",
    doc: "whole-sequence long short-term memory, one or both directions, peepholes, initial state",
    origin: Origin::Onnx,
    shape: |attrs, inputs| {
        let (x, r) = (need(inputs, 0, "X")?, need(inputs, 2, "R")?);
        if x.shape.len() != 3 || r.shape.len() != 3 {
            return Err(OpError::Unsupported { what: "an LSTM whose X or R has not rank 3".into() });
        }
        let (d, h) = (r.shape[0].clone(), r.shape[2].clone());
        let (s, n) = if attrs.int("layout", 0)? == 0 { (0, 1) } else { (1, 0) };
        let (steps, batch) = (x.shape[s].clone(), x.shape[n].clone());
        let (y, state): (Vec<Dim>, Vec<Dim>) = if s == 0 {
            (vec![steps, d.clone(), batch.clone(), h.clone()], vec![d, batch, h])
        } else {
            (vec![batch.clone(), steps, d.clone(), h.clone()], vec![batch, d, h])
        };
        Ok(vec![Fact::new(x.dtype, y), Fact::new(x.dtype, state.clone()), Fact::new(x.dtype, state)])
    },
    reference,
    lower,
};

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    Reverse,
}

struct Shape {
    s: usize,
    n: usize,
    i: usize,
    h: usize,
    directions: Vec<Direction>,
    clip: Option<f32>,
}

impl Shape {
    fn new(attrs: &Attrs, x: &[usize], r: &[usize]) -> Result<Shape, OpError> {
        let directions = match attrs.str("direction", "forward")? {
            "forward" => vec![Direction::Forward],
            "reverse" => vec![Direction::Reverse],
            "bidirectional" => vec![Direction::Forward, Direction::Reverse],
            other => return Err(OpError::Attribute { name: "direction".into(), why: format!("is `{other}`") }),
        };
        if attrs.int("layout", 0)? != 0 {
            return Err(OpError::Unsupported { what: "LSTM with layout 1".into() });
        }
        if attrs.int("input_forget", 0)? != 0 {
            return Err(OpError::Unsupported { what: "LSTM with input_forget".into() });
        }
        if let Some(super::Attr::Strs(names)) = attrs.map.get("activations")
            && names.chunks(3).any(|c| c != ["Sigmoid", "Tanh", "Tanh"])
        {
            return Err(OpError::Unsupported { what: format!("LSTM with activations {names:?}") });
        }
        if x.len() != 3 || r.len() != 3 || r[0] != directions.len() || r[1] != 4 * r[2] {
            return Err(OpError::Shape {
                what: "R of an LSTM".into(),
                expected: format!("[{}, 4H, H]", directions.len()),
                found: format!("{r:?} for X {x:?}"),
            });
        }
        let clip = match attrs.map.get("clip") {
            Some(_) => Some(attrs.float("clip", 0.0)?),
            None => None,
        };
        Ok(Shape { s: x[0], n: x[1], i: x[2], h: r[2], directions, clip })
    }

    /// Checks the shape of every operand given.
    fn check(&self, inputs: &[Option<&[usize]>]) -> Result<(), OpError> {
        let (d, h) = (self.directions.len(), self.h);
        let expected: [(&str, &[usize]); 8] = [
            ("X", &[self.s, self.n, self.i]),
            ("W", &[d, 4 * h, self.i]),
            ("R", &[d, 4 * h, h]),
            ("B", &[d, 8 * h]),
            ("sequence_lens", &[self.n]),
            ("initial_h", &[d, self.n, h]),
            ("initial_c", &[d, self.n, h]),
            ("P", &[d, 3 * h]),
        ];
        for ((name, expected), found) in expected.into_iter().zip(inputs) {
            if let Some(found) = found.filter(|f| *f != expected) {
                return Err(OpError::Shape {
                    what: format!("{name} of an LSTM"),
                    expected: format!("{expected:?}"),
                    found: format!("{found:?}"),
                });
            }
        }
        Ok(())
    }
}

/// The formula of the ONNX operator, gate by gate: `i o f c` in `W [D, 4H, I]`, `R [D, 4H, H]`, `B [D, 8H]`, `P [D, 3H]`
/// (`i o f`).
fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>], shapes: &[Vec<usize>]) -> Result<Vec<Tensor>, OpError> {
    let (x, w, r) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, need(inputs, 2, "R")?);
    let g = Shape::new(attrs, x.shape(), r.shape())?;
    let optional = |i: usize| inputs.get(i).copied().flatten();
    let shapes_in: Vec<Option<&[usize]>> = (0..8).map(|i| optional(i).map(Tensor::shape)).collect();
    g.check(&shapes_in)?;
    let lens: Vec<usize> = match optional(4).map(Tensor::data) {
        Some(crate::tensor::Data::I32(v)) => v.iter().map(|&l| (l.max(0) as usize).min(g.s)).collect(),
        Some(other) => return Err(OpError::Unsupported { what: format!("sequence_lens of {}", other.dtype()) }),
        None => vec![g.s; g.n],
    };
    let (xs, ws, rs) = (x.as_f32()?, w.as_f32()?, r.as_f32()?);
    let b = optional(3).map(Tensor::as_f32).transpose()?;
    let (h0, c0) = (optional(5).map(Tensor::as_f32).transpose()?, optional(6).map(Tensor::as_f32).transpose()?);
    let p = optional(7).map(Tensor::as_f32).transpose()?;
    let d_count = g.directions.len();
    let mut y = vec![0f32; g.s * d_count * g.n * g.h];
    let (mut yh, mut yc) = (vec![0f32; d_count * g.n * g.h], vec![0f32; d_count * g.n * g.h]);
    let clip = |v: f64| g.clip.map_or(v, |c| v.clamp(-f64::from(c), f64::from(c)));
    for (d, &direction) in g.directions.iter().enumerate() {
        for n in 0..g.n {
            let at = (d * g.n + n) * g.h;
            let mut h: Vec<f32> = h0.map_or(vec![0.0; g.h], |v| v[at..at + g.h].to_vec());
            let mut c: Vec<f32> = c0.map_or(vec![0.0; g.h], |v| v[at..at + g.h].to_vec());
            for step in 0..lens[n] {
                let t = if direction == Direction::Forward { step } else { lens[n] - 1 - step };
                let before = h.clone();
                for j in 0..g.h {
                    let gate = |k: usize, cell: f32| -> f32 {
                        let row = d * 4 * g.h + k * g.h + j;
                        let mut sum: f64 = 0.0;
                        for i in 0..g.i {
                            sum += f64::from(xs[(t * g.n + n) * g.i + i]) * f64::from(ws[row * g.i + i]);
                        }
                        for i in 0..g.h {
                            sum += f64::from(before[i]) * f64::from(rs[row * g.h + i]);
                        }
                        if let Some(b) = b {
                            let wb = d * 8 * g.h + k * g.h + j;
                            sum += f64::from(b[wb]) + f64::from(b[wb + 4 * g.h]);
                        }
                        if let (Some(p), true) = (p, k < 3) {
                            sum += f64::from(p[d * 3 * g.h + k * g.h + j]) * f64::from(cell);
                        }
                        clip(sum) as f32
                    };
                    let i = sigmoid(gate(0, c[j]));
                    let f = sigmoid(gate(2, c[j]));
                    let cell = f * c[j] + i * tanh(gate(3, 0.0));
                    let o = sigmoid(gate(1, cell));
                    c[j] = cell;
                    h[j] = o * tanh(cell);
                    y[((t * d_count + d) * g.n + n) * g.h + j] = h[j];
                }
            }
            yh[at..at + g.h].copy_from_slice(&h);
            yc[at..at + g.h].copy_from_slice(&c);
        }
    }
    let shape = |i: usize, full: Vec<usize>| shapes.get(i).filter(|s| !s.is_empty()).cloned().unwrap_or(full);
    let state = vec![d_count, g.n, g.h];
    Ok(vec![
        Tensor::f32(&shape(0, vec![g.s, d_count, g.n, g.h]), y)?,
        Tensor::f32(&shape(1, state.clone()), yh)?,
        Tensor::f32(&shape(2, state), yc)?,
    ])
}

fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) || l.has(4) || l.has(7) || l.attrs.map.contains_key("clip") {
        return Ok(None);
    }
    let (Some(w), Some(r)) = (l.weight(1), l.weight(2)) else { return Ok(None) };
    let shape = Shape::new(l.attrs, l.shape(0)?, r.shape())?;
    let given: Vec<Option<&[usize]>> = (0..8).map(|i| l.shape(i).ok()).collect();
    shape.check(&given)?;
    let (i, h) = (shape.i, shape.h);
    let bias = match (l.has(3), l.constant(3)) {
        (false, _) => None,
        (true, Some(b)) => Some(b.as_f32()?),
        (true, None) => return Ok(None),
    };
    let mut cells = Vec::new();
    for d in 0..shape.directions.len() {
        let row0 = if d == 0 { 0 } else { 4 * h };
        let rows = |k: usize| move |j: usize, kk: usize| (d * 4 * h + j) * k + kk;
        // The scales of a quantised weight run along the gate axis of one direction.
        let single = shape.directions.len() == 1;
        let packable = |weight: &crate::plan::Weight| match weight {
            crate::plan::Weight::F32(_) => true,
            crate::plan::Weight::Q8 { scale, axis, .. } => scale.len() == 1 || (*axis == 1 && single),
        };
        if !packable(&w) || !packable(&r) {
            return Ok(None);
        }
        let (Some(pw), Some(pr)) =
            (PackedMatrix::new(&w, 4 * h, i, 1, row0, rows(i))?, PackedMatrix::new(&r, 4 * h, h, 1, row0, rows(h))?)
        else {
            return Ok(None);
        };
        let bias = bias.map(|b| (0..4 * h).map(|j| b[d * 8 * h + j] + b[d * 8 * h + 4 * h + j]).collect());
        cells.push((pw, pr, bias));
    }
    let mut reads = vec![0];
    let mut slot = |k: usize| {
        l.has(k).then(|| {
            reads.push(k);
            reads.len() - 1
        })
    };
    let (h0, c0) = (slot(5), slot(6));
    let bytes =
        cells.iter().map(|(w, r, _): &(PackedMatrix, PackedMatrix, Option<Vec<f32>>)| w.bytes() + r.bytes()).sum();
    let scratch = (shape.s + 1) * shape.n * 4 * h + 2 * shape.n * h;
    let k = Sequence { shape, cells, h0, c0, wants: [l.wants(0), l.wants(1), l.wants(2)] };
    Ok(Some(Lowered::new(k, reads).with_scratch(scratch).with_weights(bytes)))
}

struct Sequence {
    shape: Shape,
    cells: Vec<(PackedMatrix, PackedMatrix, Option<Vec<f32>>)>,
    h0: Option<usize>,
    c0: Option<usize>,
    wants: [bool; 3],
}

impl Kernel for Sequence {
    fn name(&self) -> &'static str {
        self.cells[0].0.label("lstm-sequence-f32", "lstm-sequence-f32w8")
    }

    fn run(&self, io: &mut Io<'_>) {
        let Shape { s, n, i, h, ref directions, .. } = self.shape;
        let (reads, writes, scratch) = io.parts();
        let (gates, rest) = scratch.split_at_mut(s * n * 4 * h);
        let (step_gates, rest) = rest.split_at_mut(n * 4 * h);
        let (hs, cs) = rest.split_at_mut(n * h);
        for (d, &direction) in directions.iter().enumerate() {
            let (w, r, bias) = &self.cells[d];
            let inputs = gemm::Gemm {
                m: s * n,
                k: i,
                n: 4 * h,
                x: reads.f32(0),
                x_stride: i,
                w: w.view(),
                bias: bias.as_deref(),
                accumulate: false,
            };
            gemm::gemm(&inputs, gates);
            for (state, from) in [(&mut *hs, self.h0), (&mut *cs, self.c0)] {
                match from {
                    Some(slot) => state.copy_from_slice(&reads.f32(slot)[d * n * h..][..n * h]),
                    None => state.fill(0.0),
                }
            }
            for step in 0..s {
                let t = if direction == Direction::Forward { step } else { s - 1 - step };
                step_gates.copy_from_slice(&gates[t * n * 4 * h..][..n * 4 * h]);
                let recurrence =
                    gemm::Gemm { m: n, k: h, n: 4 * h, x: hs, x_stride: h, w: r.view(), bias: None, accumulate: true };
                gemm::gemm(&recurrence, step_gates);
                for b in 0..n {
                    let (c, hh) = (&mut cs[b * h..][..h], &mut hs[b * h..][..h]);
                    rows::lstm_cell(h, &step_gates[b * 4 * h..][..4 * h], c, hh);
                }
                if self.wants[0] {
                    writes.f32(0)[(t * directions.len() + d) * n * h..][..n * h].copy_from_slice(hs);
                }
            }
            for (k, state) in [(1, &*hs), (2, &*cs)] {
                if self.wants[k] {
                    writes.f32(k)[d * n * h..][..n * h].copy_from_slice(state);
                }
            }
        }
    }
}
