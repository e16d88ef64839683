//! Products of two matrices that are both made while a model runs, where packing one for [`crate::gemm`] would cost as
//! much as the product: few rows on the left.
//!
//! Dimension letters: `M` rows of `a`, `K` reduction, `N` columns of `y`.
use crate::isa::{Isa, on_isa};
use crate::panels::{Lying, panel};
use crate::reduce::fold_row;

/// Rows from which packing the right operand is worth it.
pub const PACK_ROWS: usize = 6;

/// Columns taken together.
const NR: usize = 32;
/// Rows taken together.
const MR: usize = 2;

/// The formula `y[i][j] = Σ_k a[i][k] · b[k][j]`, or `b[j][k]` when `transposed`, summed in `f64`.
#[cfg(test)]
pub fn reference(m: usize, k: usize, n: usize, transposed: bool, a: &[f32], b: &[f32]) -> Vec<f64> {
    let mut y = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let w = |kk: usize| f64::from(b[if transposed { j * k + kk } else { kk * n + j }]);
            y.push((0..k).map(|kk| f64::from(a[i * k + kk]) * w(kk)).sum());
        }
    }
    y
}

/// `y = a · b`, `b` as it lies: `[K, N]`, or `[N, K]` when `transposed`.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn product(m: usize, k: usize, n: usize, transposed: bool, a: &[f32], b: &[f32], y: &mut [f32]) {
    product_on(Isa::best(), m, k, n, transposed, a, b, y);
}

/// [`crate::gemm::pack`] of `b: [K, N]`, panel by panel.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn pack_plain(n: usize, k: usize, b: &[f32], out: &mut [f32]) {
    pack(n, k, false, b, out);
}

/// [`crate::gemm::pack`] of `b: [N, K]`, panel by panel.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn pack_transposed(n: usize, k: usize, b: &[f32], out: &mut [f32]) {
    pack(n, k, true, b, out);
}

fn pack(n: usize, k: usize, transposed: bool, b: &[f32], out: &mut [f32]) {
    const W: usize = crate::gemm::NR;
    for (p, out) in out.chunks_exact_mut((k * W).max(1)).take(n.div_ceil(W)).enumerate() {
        panel(p, n, k, transposed, &Lying::F32(b), out);
    }
}

on_isa! {
    /// [`product`] on one instruction set.
    pub fn product_on = any;
    (m: usize, k: usize, n: usize, transposed: bool, a: &[f32], b: &[f32], y: &mut [f32])
}

#[inline(always)]
fn any(m: usize, k: usize, n: usize, transposed: bool, a: &[f32], b: &[f32], y: &mut [f32]) {
    if transposed {
        for i in 0..m {
            let row = &a[i * k..][..k];
            for j in 0..n {
                y[i * n + j] = dot(row, &b[j * k..][..k]);
            }
        }
        return;
    }
    let whole = n / NR * NR;
    for first in (0..whole).step_by(NR) {
        let mut i = 0;
        while i + MR <= m {
            tile::<MR>(i, first, k, n, a, b, y);
            i += MR;
        }
        while i < m {
            tile::<1>(i, first, k, n, a, b, y);
            i += 1;
        }
    }
    if whole == n {
        return;
    }
    for i in 0..m {
        let out = &mut y[i * n + whole..(i + 1) * n];
        out.fill(0.0);
        for kk in 0..k {
            let (x, w) = (a[i * k + kk], &b[kk * n + whole..(kk + 1) * n]);
            for (o, &w) in out.iter_mut().zip(w) {
                *o += x * w;
            }
        }
    }
}

#[inline(always)]
fn tile<const R: usize>(i: usize, first: usize, k: usize, n: usize, a: &[f32], b: &[f32], y: &mut [f32]) {
    let mut acc = [[0f32; NR]; R];
    for kk in 0..k {
        let w = &b[kk * n + first..][..NR];
        for r in 0..R {
            let x = a[(i + r) * k + kk];
            for j in 0..NR {
                acc[r][j] += x * w[j];
            }
        }
    }
    for r in 0..R {
        y[(i + r) * n + first..][..NR].copy_from_slice(&acc[r]);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for j in 0..LANES {
            lanes[j] += a[j] * b[j];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    rest + fold_row(&lanes, 0.0, |a, v| a + v, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_packings_are_those_of_the_matrix_product() {
        for (n, k) in [(1, 1), (16, 3), (17, 5), (40, 7), (3, 0)] {
            let b: Vec<f32> = (0..n * k).map(|i| i as f32).collect();
            let mut want = vec![f32::NAN; crate::gemm::packed_len(n, k)];
            let mut got = want.clone();
            crate::gemm::pack(n, k, |j, kk| b[kk * n + j], &mut want);
            pack_plain(n, k, &b, &mut got);
            assert_eq!(want, got);
            crate::gemm::pack(n, k, |j, kk| b[j * k + kk], &mut want);
            pack_transposed(n, k, &b, &mut got);
            assert_eq!(want, got);
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_formula_at_every_tile_edge_and_writes_nothing_else() {
        let noise = |n: usize, s: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + s) % 2003) as f32 / 1001.5 - 1.0).collect()
        };
        let mut ran = 0;
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for (m, k, n) in [(1, 1, 1), (1, 64, 33), (3, 9, 32), (2, 31, 31), (5, 70, 100), (2, 0, 3)] {
                for transposed in [false, true] {
                    let (a, b) = (noise(m * k, 1), noise(k * n, 5));
                    let want = reference(m, k, n, transposed, &a, &b);
                    let mut got = vec![f32::NAN; m * n + 4];
                    product_on(isa, m, k, n, transposed, &a, &b, &mut got);
                    let tolerance = (k as f64 + 1.0) * f64::from(f32::EPSILON);
                    for (w, g) in want.iter().zip(&got) {
                        assert!((w - f64::from(*g)).abs() <= tolerance * (k as f64).max(1.0), "{isa:?} {m}x{k}x{n}");
                    }
                    assert!(got[m * n..].iter().all(|v| v.is_nan()), "{isa:?} wrote past its output");
                    ran += 1;
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }
}
