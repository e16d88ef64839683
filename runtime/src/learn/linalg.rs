//! The few dense kernels a head refit needs, in f64 with a fixed order of summation.
//!
//! Written here rather than taken from a linear-algebra crate because the canonical refit must be bitwise reproducible:
//! a blocked or threaded product sums in an order that depends on the machine's cache and core count.
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
        self.values.extend_from_slice(row);
        self.n += 1;
    }

    /// `self += s · x xᵀ`.
    pub(crate) fn add_outer(&mut self, s: f64, x: &[f64]) {
        for i in 0..self.n {
            let row = start(i);
            axpy(s * x[i], &x[..=i], &mut self.values[row..row + i + 1]);
        }
    }

    /// `out = self · x`.
    pub(crate) fn times(&self, x: &[f64], out: &mut [f64]) {
        out.fill(0.0);
        for i in 0..self.n {
            let row = self.row(i);
            out[i] += dot(&row[..i], &x[..i]) + row[i] * x[i];
            axpy(x[i], &row[..i], &mut out[..i]);
        }
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
        cholesky.factor.values.reserve(matrix.values.len());
        for i in 0..matrix.n {
            cholesky.push_row(matrix.row(i))?;
        }
        Ok(cholesky)
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

    /// `x ← L⁻¹ x`.
    pub(crate) fn solve_lower(&self, x: &mut [f64]) {
        for i in 0..self.factor.n {
            let row = self.factor.row(i);
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
    }

    /// `x ← (L Lᵀ)⁻¹ x`.
    pub(crate) fn solve(&self, x: &mut [f64]) {
        self.solve_lower(x);
        for i in (0..self.factor.n).rev() {
            let row = self.factor.row(i);
            x[i] /= row[i];
            let xi = x[i];
            axpy(-xi, &row[..i], &mut x[..i]);
        }
    }

    /// `(L Lᵀ)⁻¹`.
    pub(crate) fn inverse(&self) -> Packed {
        let n = self.factor.n;
        let mut packed = Packed { n, values: vec![0.0; n * (n + 1) / 2] };
        let mut column = vec![0.0; n];
        for i in 0..n {
            column.fill(0.0);
            column[i] = 1.0;
            self.solve(&mut column);
            packed.values[start(i)..start(i) + i + 1].copy_from_slice(&column[..=i]);
        }
        packed
    }
}

fn start(row: usize) -> usize {
    row * (row + 1) / 2
}
