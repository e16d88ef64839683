//! Gradients of normalisation along rows: by the operand, a group of threads a row, then by scale and bias, a thread a column.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Needs, Trial, bytes_of, filled, floats, plane};
use crate::rows::{Reduction, SUBGROUPS, together};

/// What of `y = (x - mean) / √(var + epsilon) · scale + bias` is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// dx, and mean and inverse root of every row. Operands dy, x, scale; results dx `[rows, length]`, moments `[rows, 2]`.
    Operand,
    /// Operands dy, x, moments; results dscale and dbias `[length]`.
    Parameters,
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct NormBack {
    /// What is wanted.
    pub of: Of,
    /// Rows.
    pub rows: usize,
    /// Elements of one.
    pub length: usize,
    /// The mean is taken off; otherwise the mean square takes the place of the variance.
    pub centred: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

impl NormBack {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        word(self.rows.checked_mul(self.length)?)?;
        let params = vec![word(self.rows)?, word(self.length)?, u32::from(self.centred), self.epsilon.to_bits()];
        match self.of {
            Of::Operand => {
                let call = |subgroup| Some(kernel(self.of, subgroup).call(params.clone(), plane(self.rows)?));
                SUBGROUPS.into_iter().try_fold(call(None)??, |of, size| Some(of.or(call(Some(size))?)))
            }
            Of::Parameters => kernel(self.of, None).line(params, self.length),
        }
    }
}

const OPERAND: &str = "    if number >= P.rows {
        return;
    }
    let first = number * P.length;
    let count = f32(P.length);
    var v = 0.0;
    for (var k = lane; k < P.length; k += 64u) {
        v += X[first + k];
    }
    let mean = select(0.0, all_sum(lane, v) / count, P.centred != 0u);
    v = 0.0;
    for (var k = lane; k < P.length; k += 64u) {
        let d = X[first + k] - mean;
        v += d * d;
    }
    let inverse = 1.0 / sqrt(all_sum(lane, v) / count + P.epsilon);
    v = 0.0;
    var w = 0.0;
    for (var k = lane; k < P.length; k += 64u) {
        let g = G[first + k] * S[k];
        v += g;
        w += g * (X[first + k] - mean) * inverse;
    }
    let level = select(0.0, all_sum(lane, v) / count, P.centred != 0u);
    let along = all_sum(lane, w) / count;
    for (var k = lane; k < P.length; k += 64u) {
        let z = (X[first + k] - mean) * inverse;
        D[first + k] = (G[first + k] * S[k] - level - z * along) * inverse;
    }
    if lane == 0u {
        M[2u * number] = mean;
        M[2u * number + 1u] = inverse;
    }";

const PARAMETERS: &str = "    let k = number * 64u + lane;
    if k >= P.length {
        return;
    }
    var v = 0.0;
    var w = 0.0;
    for (var row = 0u; row < P.rows; row++) {
        let g = G[row * P.length + k];
        v += g * (X[row * P.length + k] - M[2u * row]) * M[2u * row + 1u];
        w += g;
    }
    S[k] = v;
    B[k] = w;";

/// With sums by subgroups of so many threads, or without.
fn kernel(of: Of, subgroup: Option<usize>) -> Arc<Kernel> {
    let (name, what, names, reduce, body) = match of {
        Of::Operand => {
            let reduce = together(subgroup, &[Reduction::Sum]);
            ("norm-back", "The gradient by x", ["G", "X", "S", "D", "M"], reduce, OPERAND)
        }
        Of::Parameters => {
            let names = ["G", "X", "M", "S", "B"];
            ("norm-back-parameters", "The gradients by scale and bias", names, String::new(), PARAMETERS)
        }
    };
    let (end, needs) = match subgroup {
        None => (String::new(), Needs::Nothing),
        Some(size) => (format!("-by{size}"), Needs::Subgroups(size)),
    };
    let bindings = floats(1, &names);
    let values = [("WHAT", what), ("BINDINGS", &bindings), ("REDUCE", &reduce), ("BODY", body)];
    let source = filled(include_str!("norm.wgsl"), &values);
    Kernel::asking(needs, false, format!("{name}{end}"), source, [3, 2], move || {
        let all = [(1, 1, true), (3, 130, true), (5, 7, false)];
        all.iter().filter_map(|&(rows, length, centred)| trial(of, subgroup, rows, length, centred)).collect()
    })
}

fn trial(of: Of, subgroup: Option<usize>, rows: usize, length: usize, centred: bool) -> Option<Trial> {
    let epsilon = 1e-3f32;
    let mut call = NormBack { of, rows, length, centred, epsilon }.call()?;
    call.kernel = kernel(of, subgroup);
    let mut draws = Draws::new(length as u64);
    let [g, x] = [0; 2].map(|_| draws.floats(rows * length));
    let scale = draws.floats(length);
    let n = length as f64;
    let (mut dx, mut moments) = (Vec::new(), Vec::new());
    let (mut ds, mut db) = (vec![0.0f64; length], vec![0.0f64; length]);
    for (g, x) in g.chunks(length).zip(x.chunks(length)) {
        let of = |f: &dyn Fn(usize) -> f64| (0..length).map(f).sum::<f64>() / n;
        let mean = if centred { of(&|k| f64::from(x[k])) } else { 0.0 };
        let inverse = 1.0 / (of(&|k| (f64::from(x[k]) - mean).powi(2)) + f64::from(epsilon)).sqrt();
        let z = |k: usize| (f64::from(x[k]) - mean) * inverse;
        let back = |k: usize| f64::from(g[k]) * f64::from(scale[k]);
        let level = if centred { of(&back) } else { 0.0 };
        let along = of(&|k| back(k) * z(k));
        dx.extend((0..length).map(|k| ((back(k) - level - z(k) * along) * inverse) as f32));
        moments.extend([mean as f32, inverse as f32]);
        for k in 0..length {
            ds[k] += f64::from(g[k]) * z(k);
            db[k] += f64::from(g[k]);
        }
    }
    let rounded = |v: &[f64]| bytes_of(&v.iter().map(|v| *v as f32).collect::<Vec<_>>());
    let (third, results) = match of {
        Of::Operand => (bytes_of(&scale), vec![bytes_of(&dx), bytes_of(&moments)]),
        Of::Parameters => (bytes_of(&moments), vec![rounded(&ds), rounded(&db)]),
    };
    let operands = vec![bytes_of(&g), bytes_of(&x), third];
    Some(Trial { call, before: vec![], operands, results, allowed: Allowed::Floats(3e-5) })
}
