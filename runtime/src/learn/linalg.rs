//! The few dense kernels a head refit needs, in f64 with a fixed order of summation.
//!
//! Written here rather than taken from a linear-algebra crate because the canonical refit must be bitwise reproducible:
//! a blocked or threaded product sums in an order that depends on the machine's cache and core count. The loops
//! themselves are kernels, which give the same bits on every instruction set.
use hone_kernels::refit::{self, COLUMNS};

use super::error::LearnError;

/// `Σ a_i b_i` in four interleaved partial sums.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0_f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a4.zip(b4) {
        for k in 0..4 {
            lanes[k] += x[k] * y[k];
        }
    }
    ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) + tail
}

/// `y += s·x`.
pub(crate) fn axpy(s: f64, x: &[f64], y: &mut [f64]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// Rows that room is made for when a triangle grows.
const ROWS_AHEAD: usize = 4;

/// A symmetric matrix `[N, N]` kept as its lower triangle, row after row: row `i` is `i + 1` long.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    n: usize,
    values: Vec<f64>,
}

impl Packed {
    /// `diagonal · I` of order `n`.
    pub(crate) fn scaled_identity(n: usize, diagonal: f64) -> Packed {
        let mut packed = Packed { n, values: vec![0.0; n * (n + 1) / 2] };
        for i in 0..n {
            packed.values[start(i) + i] = diagonal;
        }
        packed
    }

    /// Order of the matrix.
    pub(crate) fn order(&self) -> usize {
        self.n
    }

    /// Row `i` up to and with the diagonal.
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[start(i)..start(i) + i + 1]
    }

    /// Appends row `n` (`n + 1` values).
    pub(crate) fn push_row(&mut self, row: &[f64]) {
        debug_assert_eq!(row.len(), self.n + 1);
        if self.values.capacity() - self.values.len() < row.len() {
            // A triangle is most of what a learner holds, and doubling would hold as much again.
            self.reserve(self.n + ROWS_AHEAD);
        }
        self.values.extend_from_slice(row);
        self.n += 1;
    }

    /// Makes room for so many rows in all, and no more.
    fn reserve(&mut self, rows: usize) {
        self.values.reserve_exact(start(rows).saturating_sub(self.values.len()));
    }

    /// `self += s Σ x xᵀ` over the rows of `x [_, n]`.
    pub(crate) fn add_outer(&mut self, s: f64, x: &[f64]) {
        refit::add_outer(self.n, s, x, &mut self.values);
    }

    /// `x ← self · x` for each row of `columns [_, n]`.
    pub(crate) fn times(&self, columns: &mut [f64]) {
        let mut out = vec![[0.0; COLUMNS]; self.n];
        by_columns(self.n, columns, |x| {
            refit::times(&self.values, x, &mut out);
            x.copy_from_slice(&out);
        });
    }

    /// Largest absolute element.
    #[cfg(test)]
    pub(crate) fn max_abs(&self) -> f64 {
        self.values.iter().fold(0.0, |m, v| m.max(v.abs()))
    }

    /// Largest absolute difference from a matrix of the same order.
    #[cfg(test)]
    pub(crate) fn max_abs_difference(&self, other: &Packed) -> f64 {
        self.values.iter().zip(&other.values).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
    }
}

/// The lower Cholesky factor of a symmetric positive definite matrix; it can grow by one row at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cholesky {
    factor: Packed,
}

impl Cholesky {
    /// Factors `matrix`.
    ///
    /// # Errors
    /// [`LearnError::NotPositiveDefinite`] naming the row.
    pub(crate) fn of(matrix: &Packed) -> Result<Cholesky, LearnError> {
        let mut cholesky = Cholesky::default();
        cholesky.reserve(matrix.n);
        for i in 0..matrix.n {
            cholesky.push_row(matrix.row(i))?;
        }
        Ok(cholesky)
    }

    /// Makes room for so many rows in all, and no more.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.factor.reserve(rows);
    }

    /// Extends the factor by the next row of the matrix (`n + 1` values, diagonal last).
    ///
    /// # Errors
    /// [`LearnError::NotPositiveDefinite`]; the factor is then unchanged.
    pub(crate) fn push_row(&mut self, row: &[f64]) -> Result<(), LearnError> {
        let n = self.factor.n;
        let mut new = row.to_vec();
        self.solve_lower(&mut new[..n]);
        let pivot = row[n] - dot(&new[..n], &new[..n]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(LearnError::NotPositiveDefinite { row: n });
        }
        new[n] = pivot.sqrt();
        self.factor.push_row(&new);
        Ok(())
    }

    /// Keeps the first `n` rows.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.factor.values.truncate(start(n));
        self.factor.n = self.factor.n.min(n);
    }

    /// `x ← L⁻¹ x`.
    pub(crate) fn solve_lower(&self, x: &mut [f64]) {
        refit::solve_lower(&self.factor.values, x);
    }

    /// `x ← (L Lᵀ)⁻¹ x` for each row of `columns [_, n]`.
    pub(crate) fn solve(&self, columns: &mut [f64]) {
        by_columns(self.factor.n, columns, |x| refit::solve(&self.factor.values, x));
    }

    /// `(L Lᵀ)⁻¹`.
    pub(crate) fn inverse(&self) -> Packed {
        let n = self.factor.n;
        let mut packed = Packed { n, values: vec![0.0; n * (n + 1) / 2] };
        let mut x = vec![[0.0; COLUMNS]; n];
        for first in (0..n).step_by(COLUMNS) {
            let here = COLUMNS.min(n - first);
            x.fill([0.0; COLUMNS]);
            (0..here).for_each(|c| x[first + c][c] = 1.0);
            refit::solve(&self.factor.values, &mut x);
            for c in 0..here {
                let i = first + c;
                let row = &mut packed.values[start(i)..start(i) + i + 1];
                row.iter_mut().zip(&x).for_each(|(to, x)| *to = x[c]);
            }
        }
        packed
    }
}

/// Runs `f` over the rows of `columns [_, n]`, as many at a time as go together.
fn by_columns(n: usize, columns: &mut [f64], mut f: impl FnMut(&mut [[f64; COLUMNS]])) {
    if n == 0 {
        return;
    }
    let mut together = vec![[0.0; COLUMNS]; n];
    for group in columns.chunks_mut(COLUMNS * n) {
        together.fill([0.0; COLUMNS]);
        for (c, column) in group.chunks_exact(n).enumerate() {
            together.iter_mut().zip(column).for_each(|(to, &from)| to[c] = from);
        }
        f(&mut together);
        for (c, column) in group.chunks_exact_mut(n).enumerate() {
            column.iter_mut().zip(&together).for_each(|(to, from)| *to = from[c]);
        }
    }
}

fn start(row: usize) -> usize {
    row * (row + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;

    fn random(seed: u64, n: usize) -> Vec<f64> {
        (0..n).map(|i| uniform(seed, i as u64) - 0.5).collect()
    }

    fn positive_definite(n: usize) -> Packed {
        let mut matrix = Packed::scaled_identity(n, 0.1);
        (0..n as u64 + 3).for_each(|k| matrix.add_outer(0.5, &random(k, n)));
        matrix
    }

    #[test]
    fn solving_multiplying_and_inverting_undo_each_other_at_every_order() {
        for n in [1, 2, 3, 4, 5, 8, 13, 65] {
            let matrix = positive_definite(n);
            let x = random(99, n);
            let mut product = x.clone();
            matrix.times(&mut product);
            // The definition, element by element.
            for i in 0..n {
                let direct: f64 = (0..n).map(|j| matrix.row(i.max(j))[i.min(j)] * x[j]).sum();
                assert!((direct - product[i]).abs() < 1e-12, "order {n}");
            }
            let factor = Cholesky::of(&matrix).unwrap();
            let mut through_inverse = product.clone();
            factor.inverse().times(&mut through_inverse);
            factor.solve(&mut product);
            for i in 0..n {
                assert!((product[i] - x[i]).abs() < 1e-9, "order {n}");
                assert!((through_inverse[i] - x[i]).abs() < 1e-9, "order {n}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_names_the_row_and_leaves_the_factor() {
        let mut factor = Cholesky::of(&positive_definite(3)).unwrap();
        let before = factor.clone();
        for last in [-1.0, 0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(factor.push_row(&[0.0, 0.0, 0.0, last]), Err(LearnError::NotPositiveDefinite { row: 3 }));
            assert_eq!(factor.factor.values, before.factor.values);
        }
        factor.push_row(&[0.0, 0.0, 0.0, 4.0]).unwrap();
        assert_eq!(factor.factor.row(3), [0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn dot_takes_the_tail_that_does_not_fill_a_lane() {
        for n in 0..10 {
            let ones = vec![1.0; n];
            let ramp: Vec<f64> = (0..n).map(|i| i as f64).collect();
            assert_eq!(dot(&ones, &ramp), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
