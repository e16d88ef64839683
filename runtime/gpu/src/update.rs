//! Steps of optimizers, and gradients added up: in place, element by element.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, floats};

/// How a parameter moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// `d = momentum · d + (factor · g + decay · w)`, `w -= rate · d`; with Nesterov of what follows `d`. Operands g,
    /// `[rate, step]` and, when it is clipped, factor; updates w and d.
    Sgd {
        /// What stays of the last direction.
        momentum: f32,
        /// Whether to look ahead.
        nesterov: bool,
        /// Factor of the parameter added to its gradient.
        decay: f32,
        /// Whether the gradient is multiplied first.
        clipped: bool,
    },
    /// `w -= rate · decay · w`, then `w -= rate · (m / bias1) / (sqrt(v / bias2) + epsilon)`, with m and v the running means of
    /// the gradient and its square. Operands as of SGD; updates w, m and v.
    AdamW {
        /// What stays of the mean.
        beta1: f32,
        /// What stays of the mean of squares.
        beta2: f32,
        /// Added to the root.
        epsilon: f32,
        /// Factor of the parameter that is taken off it, times the rate.
        decay: f32,
        /// Whether the gradient is multiplied first.
        clipped: bool,
    },
    /// `acc += g`.
    Accumulate,
    /// `acc = 0`.
    Clear,
}

impl Update {
    /// The call on `n` elements; `None` when they are more than a grid has.
    pub fn call(&self, n: usize) -> Option<Call> {
        let mut params = vec![u32::try_from(n).ok()?, 0];
        let floats: Vec<f32> = match *self {
            Update::Sgd { momentum, nesterov, decay, .. } => {
                params[1] = u32::from(nesterov);
                vec![decay, momentum]
            }
            Update::AdamW { beta1, beta2, epsilon, decay, .. } => {
                // Near 1 a power in 32 bits would lose what is asked of it.
                let log = |b: f32| f64::from(b).ln() as f32;
                let rest = |b: f32| (1.0 - f64::from(b)) as f32;
                vec![decay, beta1, beta2, log(beta1), log(beta2), epsilon, rest(beta1), rest(beta2)]
            }
            Update::Accumulate | Update::Clear => vec![],
        };
        params.extend(floats.iter().map(|v| v.to_bits()));
        params.resize(12, 0);
        kernel(*self).line(params, n)
    }
}

fn kernel(update: Update) -> Arc<Kernel> {
    let (name, what, operands, results, body, clipped) = match update {
        Update::Sgd { clipped, .. } => (
            "update-sgd",
            "A step of stochastic gradient descent with momentum.",
            &["G", "NOW"][..],
            &["W", "D"][..],
            "    let g = FACTOR * G[i] + P.decay * W[i];
    let d = P.c0 * D[i] + g;
    D[i] = d;
    W[i] -= NOW[0] * select(d, g + P.c0 * d, P.nesterov != 0u);",
            clipped,
        ),
        Update::AdamW { clipped, .. } => (
            "update-adamw",
            "A step of AdamW.",
            &["G", "NOW"][..],
            &["W", "M", "V"][..],
            "    let g = FACTOR * G[i];
    let m = P.c0 * M[i] + P.rest0 * g;
    let v = P.c1 * V[i] + P.rest1 * g * g;
    M[i] = m;
    V[i] = v;
    let w = W[i] - NOW[0] * P.decay * W[i];
    let bias0 = -expm1_of(NOW[1] * P.log0);
    let bias1 = -expm1_of(NOW[1] * P.log1);
    W[i] = w - NOW[0] * (m / bias0) / (sqrt(v / bias1) + P.epsilon);",
            clipped,
        ),
        Update::Accumulate => ("update-add", "acc += g.", &["G"][..], &["W"][..], "    W[i] += G[i];", false),
        Update::Clear => ("update-clear", "acc = 0.", &[][..], &["W"][..], "    W[i] = 0.0;", false),
    };
    let mut names = operands.to_vec();
    if clipped {
        names.push("F");
    }
    let reads = names.len();
    names.extend(results);
    let bindings = floats(1, &names);
    let source = filled(
        include_str!("update.wgsl"),
        &[
            ("WHAT", what),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &bindings),
            ("BODY", &body.replace("FACTOR", if clipped { "F[0]" } else { "1.0" })),
        ],
    );
    let name = format!("{name}{}", if clipped { "-clipped" } else { "" });
    Kernel::new(name, source, reads, results.len(), move || trials(update))
}

fn trials(update: Update) -> Vec<Trial> {
    let n = 131;
    let tried = match update {
        Update::Sgd { clipped, .. } => {
            [false, true].map(|nesterov| Update::Sgd { momentum: 0.9, nesterov, decay: 0.01, clipped }).to_vec()
        }
        Update::AdamW { clipped, .. } => {
            [0.0, 0.1].map(|decay| Update::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay, clipped }).to_vec()
        }
        other => vec![other],
    };
    let mut out = Vec::new();
    for update in tried {
        for step in [1.0f32, 3.0, 900.0] {
            let mut draws = Draws::new(n as u64);
            let (g, now, factor) = (draws.floats(n), [0.05f32, step], [0.5f32]);
            let states: Vec<Vec<f32>> =
                (0..3).map(|k| draws.floats(n).iter().map(|v| if k == 2 { v.abs() } else { *v }).collect()).collect();
            let Some(call) = update.call(n) else { return Vec::new() };
            let (reads, writes) = (call.kernel.reads, call.kernel.writes);
            let mut after: Vec<Vec<f64>> =
                states[..writes].iter().map(|s| s.iter().map(|v| f64::from(*v)).collect()).collect();
            for i in 0..n {
                formula(update, f64::from(g[i]), (f64::from(now[0]), f64::from(step)), i, &mut after);
            }
            let operands = [bytes_of(&g), bytes_of(&now), bytes_of(&factor)];
            let before = states[..writes].iter().map(|s| bytes_of(s)).collect();
            let rounded = |v: &Vec<f64>| bytes_of(&v.iter().map(|v| *v as f32).collect::<Vec<_>>());
            let results = after.iter().map(rounded).collect();
            let allowed = Allowed::Floats(2e-6);
            out.push(Trial { call, operands: operands[..reads].to_vec(), before, results, allowed });
        }
    }
    out
}

/// The formula on element `i` of what is updated, with a factor of a half where one is asked for.
fn formula(update: Update, g: f64, (rate, step): (f64, f64), i: usize, after: &mut [Vec<f64>]) {
    let scaled = |clipped: bool| if clipped { 0.5 * g } else { g };
    match update {
        Update::Sgd { momentum, nesterov, decay, clipped } => {
            let momentum = f64::from(momentum);
            let g = scaled(clipped) + f64::from(decay) * after[0][i];
            after[1][i] = momentum * after[1][i] + g;
            after[0][i] -= rate * if nesterov { g + momentum * after[1][i] } else { after[1][i] };
        }
        Update::AdamW { beta1, beta2, epsilon, decay, clipped } => {
            let (g, b1, b2) = (scaled(clipped), f64::from(beta1), f64::from(beta2));
            after[1][i] = b1 * after[1][i] + (1.0 - b1) * g;
            after[2][i] = b2 * after[2][i] + (1.0 - b2) * g * g;
            let (m, v) = (after[1][i] / (1.0 - b1.powf(step)), after[2][i] / (1.0 - b2.powf(step)));
            after[0][i] -= rate * f64::from(decay) * after[0][i];
            after[0][i] -= rate * m / (v.sqrt() + f64::from(epsilon));
        }
        Update::Accumulate => after[0][i] += g,
        Update::Clear => after[0][i] = 0.0,
    }
}
