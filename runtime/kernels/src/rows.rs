//! Kernels over rows: softmax, layer normalisation, the LSTM cell.

/// Softmax of each row of `n` values: `e^(x - max) / Σ`.
///
/// # Panics
/// When `y` is shorter than `x`.
pub fn softmax(n: usize, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let max = x.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let mut sum = 0.0;
        for (o, &v) in y.iter_mut().zip(x) {
            *o = (v - max).exp();
            sum += *o;
        }
        y.iter_mut().for_each(|v| *v /= sum);
    }
}

/// Layer normalisation of each row of `n` values: `(x - mean) / sqrt(var + epsilon) · gain + offset`.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn layer_norm(n: usize, epsilon: f32, x: &[f32], gain: &[f32], offset: Option<&[f32]>, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let mean = x.iter().sum::<f32>() / n as f32;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n as f32;
        let r = 1.0 / (var + epsilon).sqrt();
        for j in 0..n {
            y[j] = (x[j] - mean) * r * gain[j] + offset.map_or(0.0, |o| o[j]);
        }
    }
}

/// One LSTM step of one sequence: from gate pre-activations in ONNX order `[i, o, f, c]`, each `H` long.
///
/// `c: [H]` is updated in place, `h: [H]` is written.
///
/// # Panics
/// When a slice is shorter than `H` or `4 H`.
pub fn lstm_cell(hidden: usize, gates: &[f32], c: &mut [f32], h: &mut [f32]) {
    use crate::activation::{sigmoid, tanh};
    let (i, rest) = gates.split_at(hidden);
    let (o, rest) = rest.split_at(hidden);
    let (f, g) = rest.split_at(hidden);
    for j in 0..hidden {
        let v = sigmoid(f[j]) * c[j] + sigmoid(i[j]) * tanh(g[j]);
        c[j] = v;
        h[j] = sigmoid(o[j]) * tanh(v);
    }
}
