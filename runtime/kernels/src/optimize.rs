//! Steps of optimizers on one tensor: the parameter and what the optimizer remembers of it are updated in place.
//!
//! `g` is the gradient; `scale` multiplies it first (clipping). Element by element, so that results do not depend on how
//! a tensor is shared out among threads. Adafactor sums over whole tensors, in one order.
use crate::isa::{Isa, on_isa};
use crate::reduce::fold_row;

/// Numbers of a step of stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f32,
    /// What stays of the last step's direction.
    pub momentum: f32,
    /// Whether to look ahead (Nesterov).
    pub nesterov: bool,
    /// Factor of the parameter that is added to its gradient.
    pub decay: f32,
    /// Factor of the gradient.
    pub scale: f32,
}

/// Numbers of a step of AdamW (Loshchilov and Hutter, 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f32,
    /// What stays of the mean of gradients.
    pub beta1: f32,
    /// What stays of the mean of their squares.
    pub beta2: f32,
    /// Added to the root of the second.
    pub epsilon: f32,
    /// Factor of the parameter that is taken off it, times the rate.
    pub decay: f32,
    /// `1 - beta1^t` at step `t`, counted from 1.
    pub bias1: f32,
    /// `1 - beta2^t`.
    pub bias2: f32,
    /// Factor of the gradient.
    pub scale: f32,
}

/// Numbers of a step of Adafactor (Shazeer and Stern, 2018) without momentum, with the steps of PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Learning rate.
    pub rate: f32,
    /// Which step it is, counted from 1.
    pub step: f32,
    /// Exponent of the step by which the second moment is renewed: at step `t` a share of `t^beta2_decay`.
    pub beta2_decay: f32,
    /// Least root mean square of the parameter that a step is relative to.
    pub epsilon: f32,
    /// Largest root mean square of a direction; longer ones are shortened to it.
    pub threshold: f32,
    /// Factor of the parameter that is taken off it, times the rate.
    pub decay: f32,
    /// Factor of the gradient.
    pub scale: f32,
}

/// Where the second moment of a parameter is kept.
#[derive(Debug)]
pub enum Moment<'a> {
    /// Of every element, as long as the parameter.
    Whole(&'a mut [f32]),
    /// Of a parameter of `[…, R, C]`: means over rows `[…, R]` and over columns `[…, C]`, whose product over the mean of
    /// the first stands for that of an element.
    Factored {
        /// Means of the rows.
        rows: &'a mut [f32],
        /// Means of the columns.
        columns: &'a mut [f32],
        /// `R` and `C`, neither 0.
        matrix: [usize; 2],
    },
}

/// Floats of scratch that [`adafactor`] takes for matrices of `c` columns.
pub fn adafactor_scratch(c: usize) -> usize {
    2 * c
}

/// `d = momentum · d + (scale · g + decay · w)`, `w -= rate · d` (with Nesterov, of what follows `d`).
///
/// # Panics
/// When a slice is shorter than `w`.
pub fn sgd(step: Sgd, g: &[f32], w: &mut [f32], d: &mut [f32]) {
    sgd_on(Isa::best(), step, g, w, d);
}

/// `w -= rate · decay · w`, then `w -= rate · (m / bias1) / (sqrt(v / bias2) + epsilon)` with `m` and `v` the running means
/// of the gradient and its square.
///
/// # Panics
/// When a slice is shorter than `w`.
pub fn adamw(step: AdamW, g: &[f32], w: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    adamw_on(Isa::best(), step, g, w, m, v);
}

/// With `s = scale · g`, `v` its second moment, of which a share of `t^beta2_decay` is renewed, and `u = s / √v` shortened
/// to the threshold: `w -= rate · decay · w`, then `w -= max(rms(w), epsilon) · min(rate, 1/√t) · u`, the size being that
/// of `w` before. `scratch` is [`adafactor_scratch`] long where the moment is factored.
///
/// # Panics
/// When a slice is shorter than `w` and the moment say.
pub fn adafactor(step: Adafactor, g: &[f32], w: &mut [f32], moment: Moment<'_>, scratch: &mut [f32]) {
    adafactor_on(Isa::best(), step, g, w, moment, scratch);
}

on_isa! {
    /// [`adafactor`] on one instruction set.
    pub fn adafactor_on = any_adafactor;
    (step: Adafactor, g: &[f32], w: &mut [f32], moment: Moment<'_>, scratch: &mut [f32])
}
on_isa! {
    /// [`sgd`] on one instruction set.
    pub fn sgd_on = any_sgd; (step: Sgd, g: &[f32], w: &mut [f32], d: &mut [f32])
}
on_isa! {
    /// [`adamw`] on one instruction set.
    pub fn adamw_on = any_adamw; (step: AdamW, g: &[f32], w: &mut [f32], m: &mut [f32], v: &mut [f32])
}

#[inline(always)]
fn any_sgd(step: Sgd, g: &[f32], w: &mut [f32], d: &mut [f32]) {
    let n = w.len();
    let (g, d) = (&g[..n], &mut d[..n]);
    for i in 0..n {
        let gradient = step.scale * g[i] + step.decay * w[i];
        d[i] = step.momentum * d[i] + gradient;
        let direction = if step.nesterov { gradient + step.momentum * d[i] } else { d[i] };
        w[i] -= step.rate * direction;
    }
}

#[inline(always)]
fn any_adamw(step: AdamW, g: &[f32], w: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let n = w.len();
    let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
    let keep = 1.0 - step.rate * step.decay;
    let (size, root) = (step.rate / step.bias1, 1.0 / step.bias2.sqrt());
    for i in 0..n {
        let gradient = step.scale * g[i];
        m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * gradient;
        v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * gradient * gradient;
        w[i] = keep * w[i] - size * m[i] / (v[i].sqrt() * root + step.epsilon);
    }
}

/// Elements that are summed in `f32` before their sum is added in `f64`: sums of millions would else lose their last
/// additions.
const BLOCK: usize = 4096;

/// `Σ x²`.
#[inline(always)]
fn squares(x: &[f32]) -> f64 {
    x.chunks(BLOCK).map(|b| f64::from(fold_row(b, 0.0, |a, v| a + v * v, |a, b| a + b))).sum()
}

/// Rows whose squares are added up before they are added to those of all rows.
const ROWS: usize = 64;

#[inline(always)]
fn any_adafactor(step: Adafactor, g: &[f32], w: &mut [f32], moment: Moment<'_>, scratch: &mut [f32]) {
    let n = w.len();
    if n == 0 {
        return;
    }
    let g = &g[..n];
    // As PyTorch bounds them: a mean by the distance from 1 to the next float, a moment by its square.
    let (least, floor) = (f32::EPSILON, f32::EPSILON * f32::EPSILON);
    let fresh = f64::from(step.step).powf(f64::from(step.beta2_decay)) as f32;
    let rms = |sum: f64| (sum / n as f64).sqrt();
    let relative = f64::from(step.rate).min(1.0 / f64::from(step.step).sqrt());
    let size = rms(squares(w)).max(f64::from(step.epsilon)) * relative;
    let keep = 1.0 - step.rate * step.decay;
    let scale = step.scale;
    // How far to go along the directions, whose lengths come to that together.
    let along = |length: f64| (size / (rms(length) / f64::from(step.threshold)).max(1.0)) as f32;
    match moment {
        Moment::Whole(square) => {
            let square = &mut square[..n];
            let mut length = 0.0;
            for (g, v) in g.chunks(BLOCK).zip(square.chunks_mut(BLOCK)) {
                let mut sum = 0.0f32;
                for (g, v) in g.iter().zip(v) {
                    let gradient = scale * g;
                    *v += fresh * (gradient * gradient - *v);
                    sum += gradient * gradient / v.max(floor);
                }
                length += f64::from(sum);
            }
            let along = along(length);
            for i in 0..n {
                w[i] = keep * w[i] - along * (scale * g[i] / square[i].max(floor).sqrt());
            }
        }
        Moment::Factored { rows, columns, matrix: [r, c] } => {
            let (part, scratch) = scratch.split_at_mut(c);
            let all = &mut scratch[..c];
            let mut length = 0.0;
            for ((g, rows), columns) in
                g.chunks_exact(r * c).zip(rows.chunks_exact_mut(r)).zip(columns.chunks_exact_mut(c))
            {
                all.fill(0.0);
                for (g, rows) in g.chunks(ROWS * c).zip(rows.chunks_mut(ROWS)) {
                    part.fill(0.0);
                    for (g, row) in g.chunks_exact(c).zip(rows) {
                        let mean = scale * scale * (squares(g) / c as f64) as f32;
                        *row += fresh * (mean - *row);
                        for (p, g) in part.iter_mut().zip(g) {
                            *p += scale * g * (scale * g);
                        }
                    }
                    all.iter_mut().zip(part.iter()).for_each(|(a, p)| *a += p);
                }
                for (column, sum) in columns.iter_mut().zip(all.iter()) {
                    *column += fresh * (sum / r as f32 - *column);
                }
                let level = mean_of(rows).max(least);
                for (g, row) in g.chunks_exact(c).zip(rows.iter()) {
                    let row = row / level;
                    let mut sum = 0.0f32;
                    for (g, column) in g.iter().zip(columns.iter()) {
                        let gradient = scale * g;
                        sum += gradient * gradient / (row * column).max(floor);
                    }
                    length += f64::from(sum);
                }
            }
            let along = along(length);
            let matrices = w.chunks_exact_mut(r * c).zip(g.chunks_exact(r * c));
            for ((w, g), (rows, columns)) in matrices.zip(rows.chunks_exact(r).zip(columns.chunks_exact(c))) {
                let level = mean_of(rows).max(least);
                for ((w, g), row) in w.chunks_exact_mut(c).zip(g.chunks_exact(c)).zip(rows) {
                    let row = row / level;
                    for j in 0..c {
                        w[j] = keep * w[j] - along * (scale * g[j] / (row * columns[j]).max(floor).sqrt());
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn mean_of(x: &[f32]) -> f32 {
    (x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, k: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 * 0.37 + k).sin()) * 0.8).collect()
    }

    #[test]
    fn steps_are_those_of_the_formulas_on_every_instruction_set() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for n in [0, 1, 15, 16, 33] {
                for nesterov in [false, true] {
                    let step = Sgd { rate: 0.1, momentum: 0.9, nesterov, decay: 0.01, scale: 0.5 };
                    let (g, before, held) = (numbers(n, 0.0), numbers(n, 1.0), numbers(n, 2.0));
                    let (mut w, mut d) = (before.clone(), held.clone());
                    sgd_on(isa, step, &g, &mut w, &mut d);
                    for i in 0..n {
                        let at = |v: &[f32]| f64::from(v[i]);
                        let gradient = 0.5 * at(&g) + f64::from(step.decay) * at(&before);
                        let want_d = f64::from(step.momentum) * at(&held) + gradient;
                        let along = if nesterov { gradient + f64::from(step.momentum) * want_d } else { want_d };
                        let want = at(&before) - f64::from(step.rate) * along;
                        assert!((at(&d) - want_d).abs() < 8.0 * f64::from(f32::EPSILON), "{isa:?} {n}");
                        assert!((at(&w) - want).abs() < 8.0 * f64::from(f32::EPSILON), "{isa:?} {n}");
                    }
                }
                let (beta1, beta2) = (0.9f32, 0.99f32);
                let (bias1, bias2) = (1.0 - beta1.powi(3), 1.0 - beta2.powi(3));
                let step = AdamW { rate: 0.05, beta1, beta2, epsilon: 1e-6, decay: 0.1, bias1, bias2, scale: 2.0 };
                let (g, before, m0) = (numbers(n, 3.0), numbers(n, 4.0), numbers(n, 5.0));
                let v0: Vec<f32> = numbers(n, 6.0).iter().map(|v| 0.01 + v * v).collect();
                let (mut w, mut m, mut v) = (before.clone(), m0.clone(), v0.clone());
                adamw_on(isa, step, &g, &mut w, &mut m, &mut v);
                for i in 0..n {
                    let at = |x: &[f32]| f64::from(x[i]);
                    let gradient = 2.0 * at(&g);
                    let want_m = f64::from(beta1) * at(&m0) + (1.0 - f64::from(beta1)) * gradient;
                    let want_v = f64::from(beta2) * at(&v0) + (1.0 - f64::from(beta2)) * gradient * gradient;
                    let root = (want_v / f64::from(bias2)).sqrt() + f64::from(step.epsilon);
                    let kept = at(&before) * (1.0 - f64::from(step.rate) * f64::from(step.decay));
                    let want = kept - f64::from(step.rate) * (want_m / f64::from(bias1)) / root;
                    // A few roundings of numbers up to 4; the quotient is below 16.
                    let allowed = 64.0 * f64::from(f32::EPSILON);
                    assert!((at(&m) - want_m).abs() < allowed && (at(&v) - want_v).abs() < allowed, "{isa:?} {n}");
                    assert!((at(&w) - want).abs() < allowed, "{isa:?} {n}: {} {want}", w[i]);
                }
            }
        }
    }

    /// The formulas in `f64`: the parameter, then the moments.
    fn reference(
        step: Adafactor,
        g: &[f32],
        w: &[f32],
        held: [&[f32]; 2],
        matrix: Option<[usize; 2]>,
    ) -> [Vec<f64>; 3] {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (mut w, mut first, mut second) = (wide(w), wide(held[0]), wide(held[1]));
        let g: Vec<f64> = g.iter().map(|&g| f64::from(g) * f64::from(step.scale)).collect();
        let n = w.len().max(1) as f64;
        let rms = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        let (t, least) = (f64::from(step.step), f64::from(f32::EPSILON));
        let fresh = t.powf(f64::from(step.beta2_decay));
        let size = rms(&w).max(f64::from(step.epsilon)) * f64::from(step.rate).min(1.0 / t.sqrt());
        let mut u = vec![0.0; w.len()];
        match matrix {
            None => {
                for i in 0..w.len() {
                    first[i] += fresh * (g[i] * g[i] - first[i]);
                    u[i] = g[i] / first[i].max(least * least).sqrt();
                }
            }
            Some([r, c]) => {
                for b in 0..w.len() / (r * c) {
                    let at = |i: usize, j: usize| g[b * r * c + i * c + j];
                    for i in 0..r {
                        let mean = (0..c).map(|j| at(i, j).powi(2)).sum::<f64>() / c as f64;
                        first[b * r + i] += fresh * (mean - first[b * r + i]);
                    }
                    for j in 0..c {
                        let mean = (0..r).map(|i| at(i, j).powi(2)).sum::<f64>() / r as f64;
                        second[b * c + j] += fresh * (mean - second[b * c + j]);
                    }
                    let level = (first[b * r..][..r].iter().sum::<f64>() / r as f64).max(least);
                    for (i, j) in (0..r).flat_map(|i| (0..c).map(move |j| (i, j))) {
                        let moment = first[b * r + i] * second[b * c + j] / level;
                        u[b * r * c + i * c + j] = at(i, j) / moment.max(least * least).sqrt();
                    }
                }
            }
        }
        let over = (rms(&u) / f64::from(step.threshold)).max(1.0);
        let keep = 1.0 - f64::from(step.rate) * f64::from(step.decay);
        w.iter_mut().zip(&u).for_each(|(w, u)| *w = keep * *w - size / over * u);
        [w, first, second]
    }

    #[test]
    fn steps_of_adafactor_are_those_of_the_formula_on_every_instruction_set() {
        // Blocks, rows and columns at the edges of what is summed at once; a scalar, and two matrices in one parameter.
        let whole = [0, 1, 33, BLOCK + 1].map(|n| (n, None));
        let factored =
            [[1, 1], [3, 1], [1, 5], [7, 33], [ROWS, 2], [2 * ROWS + 1, 31]].map(|m| (2 * m[0] * m[1], Some(m)));
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (n, matrix) in whole.into_iter().chain(factored) {
                // Long directions that are shortened, short ones that are not, gradients that are as good as none.
                for (threshold, scale) in [(1.0, 0.5), (1e3, 2.0), (1.0, 1e-9)] {
                    let step = Adafactor {
                        rate: 0.02,
                        step: 3.0,
                        beta2_decay: -0.8,
                        epsilon: 1e-3,
                        threshold,
                        decay: 0.1,
                        scale,
                    };
                    let lengths = matrix.map_or([n, 0], |[r, c]| [2 * r, 2 * c]);
                    let held = lengths.map(|n| numbers(n, 7.0).iter().map(|v| 0.01 + v * v).collect::<Vec<f32>>());
                    let (g, before) = (numbers(n, 8.0), numbers(n, 9.0));
                    let want = reference(step, &g, &before, [&held[0], &held[1]], matrix);
                    const GUARD: f32 = 77.0;
                    let [mut first, mut second] = held.map(|h| [h, vec![GUARD]].concat());
                    let mut w = [before, vec![GUARD]].concat();
                    let c = matrix.map_or(0, |m| m[1]);
                    let mut scratch = vec![f32::NAN; adafactor_scratch(c) + 1];
                    scratch[adafactor_scratch(c)] = GUARD;
                    let (at_first, at_second) = (&mut first[..lengths[0]], &mut second[..lengths[1]]);
                    let moment = match matrix {
                        None => Moment::Whole(at_first),
                        Some(matrix) => Moment::Factored { rows: at_first, columns: at_second, matrix },
                    };
                    adafactor_on(isa, step, &g, &mut w[..n], moment, &mut scratch);
                    for (what, (got, want)) in [w, first, second].iter().zip(&want).enumerate() {
                        assert_eq!(got.last(), Some(&GUARD), "{isa:?} {n} {matrix:?} {what}");
                        for (i, (a, b)) in got.iter().zip(want).enumerate() {
                            // Some roundings of what is at most 1, a sum of 64 squares the longest; a step is at most
                            // rate · 30 here.
                            let off = (f64::from(*a) - b).abs();
                            assert!(
                                off <= 64.0 * f64::from(f32::EPSILON),
                                "{isa:?} {n} {matrix:?} {what}[{i}]: {a} {b}"
                            );
                        }
                    }
                    assert_eq!(scratch.last(), Some(&GUARD), "{isa:?} {n} {matrix:?}");
                }
            }
        }
    }
}
