//! Steps of optimizers on one tensor: the parameter and what the optimizer remembers of it are updated in place.
//!
//! `g` is the gradient; `scale` multiplies it first (clipping). Element by element, so that results do not depend on how
//! a tensor is shared out among threads.
use crate::isa::{Isa, on_isa};

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
}
