//! Dense products in `f64` for the refit of a head: tall rows times a few classes, packed triangles times a few columns.
//!
//! Sums are in lanes and blocks that are written out, multiplied and added apart: every instruction set gives the same bits,
//! which a refit that is a function of its log needs.
//! A packed triangle of order `n` is the lower one, row after row, row `i` being `i + 1` long. Columns are kept four by four:
//! `[n]` of `[f64; 4]`.
use crate::isa::{Isa, on_isa};

/// Columns that go together.
pub const COLUMNS: usize = 4;
/// Partial sums of a dot product.
const LANES: usize = 8;

/// Where row `i` of a packed triangle begins.
fn start(i: usize) -> usize {
    i * (i + 1) / 2
}

/// `out[i, c] += x[i] · w[c]` for `x [n, m]`, `w [classes, m]`, `out [n, classes]`.
///
/// # Panics
/// When `m` is 0 or the lengths do not fit.
pub fn products(m: usize, x: &[f64], w: &[f64], out: &mut [f64]) {
    products_on(Isa::best(), m, x, w, out);
}

/// `sum[c] += Σ_i g[i, c] x[i]` for `x [n, m]`, `g [n, classes]`, `sum [classes, m]`.
///
/// # Panics
/// When `m` is 0 or the lengths do not fit.
pub fn gather(m: usize, x: &[f64], g: &[f64], sum: &mut [f64]) {
    gather_on(Isa::best(), m, x, g, sum);
}

/// `packed += s Σ_i x[i] x[i]ᵀ` for `x [n, m]` and a packed triangle of order `m`.
///
/// # Panics
/// When `m` is 0 or the lengths do not fit.
pub fn add_outer(m: usize, s: f64, x: &[f64], packed: &mut [f64]) {
    add_outer_on(Isa::best(), m, s, x, packed);
}

/// `x ← L⁻¹ x` for a packed factor of order `x.len()`.
///
/// # Panics
/// When the factor is shorter.
pub fn solve_lower(factor: &[f64], x: &mut [f64]) {
    solve_lower_on(Isa::best(), factor, x);
}

/// `x ← (L Lᵀ)⁻¹ x` for four columns at once, `x [n]`, and a packed factor of order `n`.
///
/// # Panics
/// When the factor is shorter.
pub fn solve(factor: &[f64], x: &mut [[f64; COLUMNS]]) {
    solve_on(Isa::best(), factor, x);
}

/// `out = P x` for four columns at once and a symmetric `P` kept as its packed triangle of order `x.len()`.
///
/// # Panics
/// When the triangle or `out` is shorter.
pub fn times(packed: &[f64], x: &[[f64; COLUMNS]], out: &mut [[f64; COLUMNS]]) {
    times_on(Isa::best(), packed, x, out);
}

on_isa! {
    /// [`products`] on one instruction set.
    pub fn products_on = any_products; (m: usize, x: &[f64], w: &[f64], out: &mut [f64])
}
on_isa! {
    /// [`gather`] on one instruction set.
    pub fn gather_on = any_gather; (m: usize, x: &[f64], g: &[f64], sum: &mut [f64])
}
on_isa! {
    /// [`add_outer`] on one instruction set.
    pub fn add_outer_on = any_add_outer; (m: usize, s: f64, x: &[f64], packed: &mut [f64])
}
on_isa! {
    /// [`solve_lower`] on one instruction set.
    pub fn solve_lower_on = any_solve_lower; (factor: &[f64], x: &mut [f64])
}
on_isa! {
    /// [`solve`] on one instruction set.
    pub fn solve_on = any_solve; (factor: &[f64], x: &mut [[f64; COLUMNS]])
}
on_isa! {
    /// [`times`] on one instruction set.
    pub fn times_on = any_times; (packed: &[f64], x: &[[f64; COLUMNS]], out: &mut [[f64; COLUMNS]])
}

#[inline(always)]
fn sum(lanes: &[f64; LANES]) -> f64 {
    let pair = |k: usize| lanes[k] + lanes[k + 4];
    (pair(0) + pair(2)) + (pair(1) + pair(3))
}

/// `rows[k] · x` for each of `K` rows.
#[inline(always)]
fn dots<const K: usize>(rows: [&[f64]; K], x: &[f64]) -> [f64; K] {
    let whole = x.len() / LANES * LANES;
    let mut lanes = [[0.0; LANES]; K];
    for at in (0..whole).step_by(LANES) {
        let x: &[f64; LANES] = x[at..at + LANES].try_into().expect("a chunk");
        for k in 0..K {
            let row: &[f64; LANES] = rows[k][at..at + LANES].try_into().expect("a chunk");
            for l in 0..LANES {
                lanes[k][l] += row[l] * x[l];
            }
        }
    }
    std::array::from_fn(|k| {
        let mut tail = 0.0;
        for j in whole..x.len() {
            tail += rows[k][j] * x[j];
        }
        sum(&lanes[k]) + tail
    })
}

#[inline(always)]
fn any_products(m: usize, x: &[f64], w: &[f64], out: &mut [f64]) {
    let classes = w.len() / m;
    for (x, out) in x.chunks_exact(m).zip(out.chunks_exact_mut(classes)) {
        let row = |c: usize| &w[c * m..c * m + m];
        let mut c = 0;
        while c + 4 <= classes {
            let four = dots([row(c), row(c + 1), row(c + 2), row(c + 3)], x);
            for k in 0..4 {
                out[c + k] += four[k];
            }
            c += 4;
        }
        while c < classes {
            out[c] += dots([row(c)], x)[0];
            c += 1;
        }
    }
}

#[inline(always)]
fn any_gather(m: usize, x: &[f64], g: &[f64], sum: &mut [f64]) {
    let classes = sum.len() / m;
    let n = x.len() / m;
    let row = |i: usize| &x[i * m..i * m + m];
    let mut i = 0;
    while i + 4 <= n {
        let (a, b, c, d) = (row(i), row(i + 1), row(i + 2), row(i + 3));
        for class in 0..classes {
            let weight = |k: usize| g[(i + k) * classes + class];
            let (wa, wb, wc, wd) = (weight(0), weight(1), weight(2), weight(3));
            let sum = &mut sum[class * m..class * m + m];
            for j in 0..m {
                sum[j] += (wa * a[j] + wb * b[j]) + (wc * c[j] + wd * d[j]);
            }
        }
        i += 4;
    }
    while i < n {
        let a = row(i);
        for class in 0..classes {
            let weight = g[i * classes + class];
            let sum = &mut sum[class * m..class * m + m];
            for j in 0..m {
                sum[j] += weight * a[j];
            }
        }
        i += 1;
    }
}

#[inline(always)]
fn any_add_outer(m: usize, s: f64, x: &[f64], packed: &mut [f64]) {
    let n = x.len() / m;
    let row = |i: usize| &x[i * m..i * m + m];
    let mut i = 0;
    while i + 4 <= n {
        let (a, b, c, d) = (row(i), row(i + 1), row(i + 2), row(i + 3));
        for r in 0..m {
            let (wa, wb, wc, wd) = (s * a[r], s * b[r], s * c[r], s * d[r]);
            let into = &mut packed[start(r)..start(r) + r + 1];
            let (a, b, c, d) = (&a[..=r], &b[..=r], &c[..=r], &d[..=r]);
            for j in 0..=r {
                into[j] += (wa * a[j] + wb * b[j]) + (wc * c[j] + wd * d[j]);
            }
        }
        i += 4;
    }
    while i < n {
        let a = row(i);
        for r in 0..m {
            let weight = s * a[r];
            let into = &mut packed[start(r)..start(r) + r + 1];
            for j in 0..=r {
                into[j] += weight * a[j];
            }
        }
        i += 1;
    }
}

#[inline(always)]
fn any_solve_lower(factor: &[f64], x: &mut [f64]) {
    for i in 0..x.len() {
        let row = &factor[start(i)..start(i) + i + 1];
        x[i] = (x[i] - dots([&row[..i]], &x[..i])[0]) / row[i];
    }
}

#[inline(always)]
fn any_solve(factor: &[f64], x: &mut [[f64; COLUMNS]]) {
    let n = x.len();
    for i in 0..n {
        let row = &factor[start(i)..start(i) + i + 1];
        let (known, rest) = x.split_at_mut(i);
        let four = combine(&row[..i], known);
        for c in 0..COLUMNS {
            rest[0][c] = (rest[0][c] - four[c]) / row[i];
        }
    }
    for i in (0..n).rev() {
        let row = &factor[start(i)..start(i) + i + 1];
        let (above, rest) = x.split_at_mut(i);
        for c in 0..COLUMNS {
            rest[0][c] /= row[i];
        }
        let at = rest[0];
        for (x, &l) in above.iter_mut().zip(&row[..i]) {
            for c in 0..COLUMNS {
                x[c] -= l * at[c];
            }
        }
    }
}

/// `Σ_j row[j] x[j]` in four interleaved partial sums.
#[inline(always)]
fn combine(row: &[f64], x: &[[f64; COLUMNS]]) -> [f64; COLUMNS] {
    let n = row.len();
    let x = &x[..n];
    let mut parts = [[0.0; COLUMNS]; 4];
    let whole = n / 4 * 4;
    for j in (0..whole).step_by(4) {
        for k in 0..4 {
            for c in 0..COLUMNS {
                parts[k][c] += row[j + k] * x[j + k][c];
            }
        }
    }
    for j in whole..n {
        for c in 0..COLUMNS {
            parts[j - whole][c] += row[j] * x[j][c];
        }
    }
    std::array::from_fn(|c| (parts[0][c] + parts[2][c]) + (parts[1][c] + parts[3][c]))
}

#[inline(always)]
fn any_times(packed: &[f64], x: &[[f64; COLUMNS]], out: &mut [[f64; COLUMNS]]) {
    let n = x.len();
    for i in 0..n {
        let row = &packed[start(i)..start(i) + i + 1];
        let four = combine(row, x);
        out[i] = four;
        let at = x[i];
        for (out, &p) in out[..i].iter_mut().zip(&row[..i]) {
            for c in 0..COLUMNS {
                out[c] += p * at[c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, k: f64) -> Vec<f64> {
        (0..n).map(|i| ((i as f64) * 0.37 + k).sin() * 0.8).collect()
    }

    fn columns(n: usize, k: f64) -> Vec<[f64; COLUMNS]> {
        numbers(n * COLUMNS, k).as_chunks::<COLUMNS>().0.to_vec()
    }

    /// The lower factor of a well-conditioned matrix.
    fn factor(n: usize) -> Vec<f64> {
        (0..n)
            .flat_map(|i| numbers(i + 1, i as f64).into_iter().enumerate().map(move |(j, v)| (i, j, v)))
            .map(|(i, j, v)| if i == j { 1.5 + v } else { v / n as f64 })
            .collect()
    }

    fn at(packed: &[f64], i: usize, j: usize) -> f64 {
        packed[start(i.max(j)) + i.min(j)]
    }

    fn close(ours: f64, want: f64, terms: usize, what: &str) {
        // Every product is at most 1 here; a sum of so many rounds at most so often.
        let allowed = (terms as f64 + 4.0) * terms.max(1) as f64 * f64::EPSILON;
        assert!((ours - want).abs() <= allowed, "{what}: {ours} and {want}");
    }

    fn each_isa<T: PartialEq + std::fmt::Debug>(mut run: impl FnMut(Isa) -> T) -> T {
        let plain = run(Isa::Any);
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            assert_eq!(run(isa), plain, "{isa:?} gives other bits");
        }
        plain
    }

    #[test]
    fn rows_times_classes_and_back_are_the_sums_of_their_definitions_in_the_same_bits_everywhere() {
        for (n, m, classes) in [(0, 3, 2), (1, 1, 1), (3, 7, 2), (4, 8, 3), (5, 9, 4), (6, 33, 5), (9, 65, 10)] {
            let (x, w, g) = (numbers(n * m, 0.1), numbers(classes * m, 0.2), numbers(n * classes, 0.3));
            let (out, sums) = (numbers(n * classes, 0.4), numbers(classes * m, 0.5));
            let (products, gathered) = each_isa(|isa| {
                let (mut products, mut gathered) = (out.clone(), sums.clone());
                products_on(isa, m, &x, &w, &mut products);
                gather_on(isa, m, &x, &g, &mut gathered);
                (products, gathered)
            });
            for c in 0..classes {
                for i in 0..n {
                    let sum: f64 = (0..m).map(|j| x[i * m + j] * w[c * m + j]).sum();
                    close(products[i * classes + c], out[i * classes + c] + sum, m, "products");
                }
                for j in 0..m {
                    let sum: f64 = (0..n).map(|i| g[i * classes + c] * x[i * m + j]).sum();
                    close(gathered[c * m + j], sums[c * m + j] + sum, n, "gather");
                }
            }
        }
    }

    #[test]
    fn outer_products_are_added_below_the_diagonal_and_nowhere_else() {
        for (n, m) in [(0, 3), (1, 1), (3, 4), (4, 5), (7, 33)] {
            let (x, before) = (numbers(n * m, 0.1), numbers(start(m), 0.2));
            let packed = each_isa(|isa| {
                let mut packed = before.clone();
                add_outer_on(isa, m, 0.5, &x, &mut packed);
                packed
            });
            for i in 0..m {
                for j in 0..=i {
                    let sum: f64 = (0..n).map(|k| 0.5 * x[k * m + i] * x[k * m + j]).sum();
                    close(at(&packed, i, j), at(&before, i, j) + sum, n, "outer");
                }
            }
        }
    }

    #[test]
    fn a_symmetric_triangle_multiplies_and_a_factor_solves_what_it_multiplied() {
        for n in [0, 1, 2, 3, 4, 5, 8, 13, 66] {
            let (packed, x) = (numbers(start(n), 0.1), columns(n, 0.2));
            let product = each_isa(|isa| {
                let mut out = vec![[f64::NAN; COLUMNS]; n];
                times_on(isa, &packed, &x, &mut out);
                out
            });
            for i in 0..n {
                for c in 0..COLUMNS {
                    let sum: f64 = (0..n).map(|j| at(&packed, i, j) * x[j][c]).sum();
                    close(product[i][c], sum, n, "times");
                }
            }
            let factor = factor(n);
            let l = |i: usize, j: usize| if j <= i { factor[start(i) + j] } else { 0.0 };
            let solved = each_isa(|isa| {
                let mut solved = x.clone();
                solve_on(isa, &factor, &mut solved);
                solved
            });
            let lower = each_isa(|isa| {
                let mut lower: Vec<f64> = x.iter().map(|v| v[0]).collect();
                solve_lower_on(isa, &factor, &mut lower);
                lower
            });
            for i in 0..n {
                let back: f64 = (0..n).map(|j| l(i, j) * lower[j]).sum();
                close(back, x[i][0], n, "lower");
                for c in 0..COLUMNS {
                    let through: f64 =
                        (0..n).map(|j| l(i, j) * (0..n).map(|k| l(k, j) * solved[k][c]).sum::<f64>()).sum();
                    // Diagonals lie between 0.7 and 2.3: a solution is at most four times its right side.
                    close(through, x[i][c], 8 * n, "solve");
                }
            }
        }
    }
}
