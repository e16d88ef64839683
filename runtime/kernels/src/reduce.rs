//! Reductions of `f32` over any axes.
//!
//! A tensor is seen as rows of `len` neighbours, all of which are reduced to one number (`along`) or none of which are
//! reduced with another of the row; `targets` says which result each row goes to. Every reduction has such a form.
use crate::exp::exp;
use crate::isa::{Isa, on_isa};

/// What is accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// `Σ x`.
    Sum,
    /// `Σ |x|`.
    SumAbs,
    /// `Σ x²`.
    SumSquare,
    /// `Π x`.
    Prod,
    /// The largest; NaN when there is one.
    Max,
    /// The smallest; NaN when there is one.
    Min,
}

/// How rows map to results.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Elements of a row.
    pub len: usize,
    /// A row is reduced to one number; otherwise it is folded element by element into `len` numbers.
    pub along: bool,
    /// For each row, the result (the first of `len` results) it goes to.
    pub targets: &'a [u32],
}

/// The formula, element by element, accumulated in `f64`.
#[cfg(test)]
pub fn reference(fold: Fold, rows: Rows<'_>, x: &[f32]) -> Vec<f64> {
    let n = rows.targets.iter().map(|&t| t as usize + if rows.along { 1 } else { rows.len }).max().unwrap_or(0);
    let (start, f): (f64, fn(f64, f64) -> f64) = match fold {
        Fold::Sum => (0.0, |a, v| a + v),
        Fold::SumAbs => (0.0, |a, v| a + v.abs()),
        Fold::SumSquare => (0.0, |a, v| a + v * v),
        Fold::Prod => (1.0, |a, v| a * v),
        Fold::Max => (f64::NEG_INFINITY, |a, v| if v > a || v.is_nan() { v } else { a }),
        Fold::Min => (f64::INFINITY, |a, v| if v < a || v.is_nan() { v } else { a }),
    };
    let mut y = vec![start; n];
    for (r, &t) in rows.targets.iter().enumerate() {
        for j in 0..rows.len {
            let o = &mut y[t as usize + if rows.along { 0 } else { j }];
            *o = f(*o, f64::from(x[r * rows.len + j]));
        }
    }
    y
}

/// Reduces `x` into `y`.
///
/// # Panics
/// When a slice is shorter than the rows say.
pub fn reduce(fold: Fold, rows: Rows<'_>, x: &[f32], y: &mut [f32]) {
    reduce_on(Isa::best(), fold, rows, x, y);
}

/// `ln Σ e^x`. `largest` is scratch as long as `y`.
///
/// # Panics
/// When a slice is shorter than the rows say.
pub fn log_sum_exp(rows: Rows<'_>, x: &[f32], y: &mut [f32], largest: &mut [f32]) {
    log_sum_exp_on(Isa::best(), rows, x, y, largest);
}

on_isa! {
    /// [`reduce`] on one instruction set.
    pub fn reduce_on = any; (fold: Fold, rows: Rows<'_>, x: &[f32], y: &mut [f32])
}

on_isa! {
    /// [`log_sum_exp`] on one instruction set.
    pub fn log_sum_exp_on = any_log_sum_exp; (rows: Rows<'_>, x: &[f32], y: &mut [f32], largest: &mut [f32])
}

#[inline(always)]
fn any(fold: Fold, rows: Rows<'_>, x: &[f32], y: &mut [f32]) {
    match fold {
        Fold::Sum => over(rows, x, y, 0.0, |a, v| a + v, |a, b| a + b),
        Fold::SumAbs => over(rows, x, y, 0.0, |a, v| a + v.abs(), |a, b| a + b),
        Fold::SumSquare => over(rows, x, y, 0.0, |a, v| a + v * v, |a, b| a + b),
        Fold::Prod => over(rows, x, y, 1.0, |a, v| a * v, |a, b| a * b),
        Fold::Max => over(rows, x, y, f32::NEG_INFINITY, larger, larger),
        Fold::Min => over(rows, x, y, f32::INFINITY, smaller, smaller),
    }
}

#[inline(always)]
fn larger(a: f32, v: f32) -> f32 {
    if v > a || v.is_nan() { v } else { a }
}

#[inline(always)]
fn smaller(a: f32, v: f32) -> f32 {
    if v < a || v.is_nan() { v } else { a }
}

#[inline(always)]
fn over(
    rows: Rows<'_>,
    x: &[f32],
    y: &mut [f32],
    start: f32,
    take: impl Fn(f32, f32) -> f32 + Copy,
    join: impl Fn(f32, f32) -> f32 + Copy,
) {
    y.fill(start);
    if rows.len == 0 {
        return;
    }
    for (row, &t) in x.chunks_exact(rows.len).zip(rows.targets) {
        let t = t as usize;
        if rows.along {
            y[t] = join(y[t], fold_row(row, start, take, join));
        } else {
            for (o, &v) in y[t..][..rows.len].iter_mut().zip(row) {
                *o = take(*o, v);
            }
        }
    }
}

/// Independent sums a row is folded into, so that additions need not wait for each other.
const LANES: usize = 32;

/// Folds a row: [`LANES`] at a time, joined at the end.
#[inline(always)]
pub(crate) fn fold_row(
    row: &[f32],
    start: f32,
    take: impl Fn(f32, f32) -> f32 + Copy,
    join: impl Fn(f32, f32) -> f32 + Copy,
) -> f32 {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut total = start;
    if !blocks.is_empty() {
        let mut lanes = [start; LANES];
        for b in blocks {
            for j in 0..LANES {
                lanes[j] = take(lanes[j], b[j]);
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for j in 0..width {
                lanes[j] = join(lanes[j], lanes[j + width]);
            }
            width /= 2;
        }
        total = join(total, lanes[0]);
    }
    for &v in rest {
        total = take(total, v);
    }
    total
}

#[inline(always)]
fn any_log_sum_exp(rows: Rows<'_>, x: &[f32], y: &mut [f32], largest: &mut [f32]) {
    any(Fold::Max, rows, x, largest);
    // An infinite maximum would make e^(∞ - ∞) of itself; subtracting nothing gives the right limit.
    for m in largest.iter_mut() {
        if m.is_infinite() {
            *m = 0.0;
        }
    }
    y.fill(0.0);
    if rows.len > 0 {
        for (row, &t) in x.chunks_exact(rows.len).zip(rows.targets) {
            let t = t as usize;
            if rows.along {
                let m = largest[t];
                y[t] += fold_row(row, 0.0, |a, v| a + exp(v - m), |a, b| a + b);
            } else {
                for j in 0..rows.len {
                    y[t + j] += exp(row[j] - largest[t + j]);
                }
            }
        }
    }
    for (o, &m) in y.iter_mut().zip(largest.iter()) {
        *o = o.ln() + m;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDS: [Fold; 6] = [Fold::Sum, Fold::SumAbs, Fold::SumSquare, Fold::Prod, Fold::Max, Fold::Min];

    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn every_instruction_set_agrees_with_the_formula_at_every_row_length() {
        let mut ran = 0;
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for len in [1, 2, 31, 32, 33, 64, 100] {
                for along in [true, false] {
                    let step = if along { 1 } else { len as u32 };
                    let targets: Vec<u32> = [0, 2, 1, 0, 2].map(|t| t * step).to_vec();
                    let x = noise(5 * len);
                    let rows = Rows { len, along, targets: &targets };
                    for fold in FOLDS {
                        let want = reference(fold, rows, &x);
                        let mut got = vec![f32::NAN; want.len() + 2];
                        reduce_on(isa, fold, rows, &x, &mut got[..want.len()]);
                        // At most 5·len roundings of sums no larger than 5·len; products stay below 1.
                        let tolerance = (5 * len) as f64 * f64::from(f32::EPSILON) * (5 * len) as f64;
                        for (w, g) in want.iter().zip(&got) {
                            assert!((w - f64::from(*g)).abs() <= tolerance, "{isa:?} {fold:?} {len} {along}");
                        }
                        assert!(got[want.len()..].iter().all(|v| v.is_nan()));
                        ran += 1;
                    }
                    let sums = {
                        let e: Vec<f32> = x.iter().map(|v| v.exp()).collect();
                        reference(Fold::Sum, rows, &e)
                    };
                    let (mut got, mut scratch) = (vec![0.0; sums.len()], vec![0.0; sums.len()]);
                    log_sum_exp_on(isa, rows, &x, &mut got, &mut scratch);
                    for (w, g) in sums.iter().zip(&got) {
                        assert!((w.ln() - f64::from(*g)).abs() < 1e-5, "{isa:?} log-sum-exp {len} {along}");
                    }
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }

    #[test]
    fn a_nan_wins_every_maximum_and_minimum_wherever_it_stands() {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for at in [0, 5, 40, 69] {
                let mut x = noise(70);
                x[at] = f32::NAN;
                for fold in [Fold::Max, Fold::Min] {
                    let mut y = [0.0];
                    reduce_on(isa, fold, Rows { len: 70, along: true, targets: &[0] }, &x, &mut y);
                    assert!(y[0].is_nan(), "{isa:?} {fold:?} {at}");
                }
            }
        }
    }

    #[test]
    fn the_logarithm_of_a_sum_of_exponentials_has_its_limits() {
        let of = |x: &[f32]| {
            let (mut y, mut m) = ([0.0], [0.0]);
            log_sum_exp(Rows { len: x.len(), along: true, targets: &[0] }, x, &mut y, &mut m);
            y[0]
        };
        assert_eq!(of(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), f32::NEG_INFINITY);
        assert_eq!(of(&[1.0, f32::INFINITY]), f32::INFINITY);
        assert!((of(&[1000.0, 1000.0]) - 1_000.693_1).abs() < 1e-3);
        assert!(of(&[1.0, f32::NAN]).is_nan());
    }
}
