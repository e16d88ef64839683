//! Determinants and inverses of batches of square matrices, by elimination with row exchanges.
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need};
use crate::tensor::Tensor;

/// The determinant of the last two axes.
pub(super) static DET: OpDef = OpDef::new(
    "Det",
    "determinants of the matrices in the last two axes",
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        square(&x.shape)?;
        Ok(Some(vec![Fact::new(x.dtype, &x.shape[..x.shape.len() - 2])]))
    },
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        let n = square(x.shape())?;
        let shape = &x.shape()[..x.shape().len() - 2];
        let count = shape.iter().product::<usize>();
        let v = x.data().to_f64();
        // The determinant of nothing is one.
        let y: Vec<f64> = (0..count).map(|i| determinant(n, v[i * n * n..(i + 1) * n * n].to_vec())).collect();
        Ok(vec![Tensor::from_f64(x.dtype(), shape, &y)?])
    },
);

/// The inverse of the last two axes.
pub(super) static INVERSE: OpDef = OpDef::new(
    "Inverse",
    "inverses of the matrices in the last two axes",
    |attrs: &Attrs, inputs| {
        square(&need(inputs, 0, "X")?.shape)?;
        crate::ops::shape::same_as_input(attrs, inputs)
    },
    |_, inputs| {
        let x = need(inputs, 0, "X")?;
        let n = square(x.shape())?;
        let v = x.data().to_f64();
        let mut y = Vec::with_capacity(v.len());
        for matrix in v.chunks_exact((n * n).max(1)) {
            y.extend(inverse(n, matrix.to_vec()));
        }
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &y)?])
    },
)
.domain(MICROSOFT);

/// Side of the matrices in the last two axes.
fn square(shape: &[usize]) -> Result<usize, OpError> {
    match shape {
        [.., a, b] if a == b => Ok(*a),
        _ => Err(OpError::shape("X", "[…, N, N]", shape)),
    }
}

/// The row from `from` on with the largest entry in column `from`.
fn pivot(n: usize, a: &[f64], from: usize) -> usize {
    (from..n).max_by(|&i, &j| a[i * n + from].abs().total_cmp(&a[j * n + from].abs())).unwrap_or(from)
}

fn exchange(n: usize, a: &mut [f64], i: usize, j: usize) {
    (0..n).for_each(|c| a.swap(i * n + c, j * n + c));
}

fn determinant(n: usize, mut a: Vec<f64>) -> f64 {
    let mut det = 1.0;
    for c in 0..n {
        let p = pivot(n, &a, c);
        if p != c {
            exchange(n, &mut a, p, c);
            det = -det;
        }
        let top = a[c * n + c];
        det *= top;
        if top == 0.0 {
            return 0.0;
        }
        for r in c + 1..n {
            let f = a[r * n + c] / top;
            (c..n).for_each(|k| a[r * n + k] -= f * a[c * n + k]);
        }
    }
    det
}

/// A singular matrix has an inverse of infinities and NaN, as division says.
fn inverse(n: usize, mut a: Vec<f64>) -> Vec<f64> {
    let mut b: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for c in 0..n {
        let p = pivot(n, &a, c);
        exchange(n, &mut a, p, c);
        exchange(n, &mut b, p, c);
        let top = a[c * n + c];
        for k in 0..n {
            a[c * n + k] /= top;
            b[c * n + k] /= top;
        }
        for r in (0..n).filter(|&r| r != c) {
            let f = a[r * n + c];
            for k in 0..n {
                a[r * n + k] -= f * a[c * n + k];
                b[r * n + k] -= f * b[c * n + k];
            }
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_whose_first_entry_is_zero_still_has_its_determinant_and_inverse() {
        assert_eq!(determinant(2, vec![0.0, 2.0, 3.0, 4.0]), -6.0);
        let i = inverse(2, vec![0.0, 2.0, 3.0, 4.0]);
        for (found, want) in i.iter().zip([-2.0 / 3.0, 1.0 / 3.0, 0.5, 0.0]) {
            assert!((found - want).abs() < 1e-15);
        }
        assert_eq!(determinant(2, vec![1.0, 2.0, 2.0, 4.0]), 0.0);
        assert_eq!(determinant(0, vec![]), 1.0);
    }
}
