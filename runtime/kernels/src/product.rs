//! Products of two matrices that are both made while a model runs, where packing one for [`crate::gemm`] would cost as
//! much as the product: few rows on the left.
//!
//! Dimension letters: `M` rows of `a`, `K` reduction, `N` columns of `y`.
use std::ops::Range;

use crate::gemm::{Out, share};
use crate::isa::{Isa, on_isa};
use crate::panels::{Lying, panel};
use crate::reduce::fold_row;
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;

/// Rows from which packing a right operand `[N, K]` is worth it.
pub const PACK_ROWS: usize = 6;
/// Most rows that meet a right operand `[K, N]` as it lies: it is read once for eight of them.
pub const PLAIN_ROWS: usize = 16;

/// Columns that no two threads share.
const NR: usize = 16;

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

/// `y = a · bᵀ`, `b: [N, K]` as it lies, `a: [M, K]`.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn product_transposed(m: usize, k: usize, n: usize, a: &[f32], b: &[f32], y: &mut [f32]) {
    transposed_on(Isa::best(), m, k, n, a, b, y);
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

/// `y = a · b`, `b: [K, N]` as it lies, on all threads of `pool`; the left side by its strides. Equal results whatever their
/// number.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn product_plain(pool: &Pool, k: usize, n: usize, a: &Rows<'_>, b: &[f32], y: &mut [f32]) {
    plain_on(Isa::best(), pool, k, n, a, b, y);
}

/// A left side: element `(i, k)` is `of[i · row + k · step]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// How many.
    pub m: usize,
    /// The elements.
    pub of: &'a [f32],
    /// Elements from row to row.
    pub row: usize,
    /// Elements from step to step of the reduction.
    pub step: usize,
}

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;
/// Steps of the reduction after which sums go back to memory: their rows of `b` come in as many streams.
const STEPS: usize = 32;

fn plain_on(isa: Isa, pool: &Pool, k: usize, n: usize, a: &Rows<'_>, b: &[f32], y: &mut [f32]) {
    assert!(isa.available(), "this CPU has not got the instructions");
    let last = |m: usize, k: usize| (m - 1) * a.row + (k - 1) * a.step;
    assert!(a.m * k == 0 || a.of.len() > last(a.m, k), "a is shorter than its shape says");
    assert!(b.len() >= k * n && y.len() >= a.m * n, "b or y is shorter than its shape says");
    let parts = if a.m * k * n < WORTH_SHARING { 1 } else { pool.threads().min(n.div_ceil(NR)).max(1) };
    let out = Out(y.as_mut_ptr());
    pool.run(parts, &|i| {
        // Whole lines of the cache.
        let strips = share(n.div_ceil(NR), parts, i);
        let columns = strips.start * NR..n.min(strips.end * NR);
        // SAFETY: the lengths were seen above, the CPU has the instructions, and no other call has these columns.
        unsafe { columns_of::on(isa, k, n, a, b.as_ptr(), columns, out.start()) };
    });
}

per_isa! {
    columns_of = some_columns;
    (k: usize, n: usize, a: &Rows<'_>, b: *const f32, columns: Range<usize>, y: *mut f32)
}

/// # Safety
/// `a`, `b` and `y` are as long as their shapes say, nobody else is at those columns of `y`, and the CPU has the instructions.
#[inline(always)]
unsafe fn some_columns<S: F32s>(k: usize, n: usize, a: &Rows<'_>, b: *const f32, columns: Range<usize>, y: *mut f32) {
    let mut first = 0;
    while first == 0 || first < k {
        let steps = first..k.min(first + STEPS);
        let mut j = columns.start;
        while j < columns.end {
            let width = (columns.end - j).min(2 * S::LANES);
            let mut i = 0;
            while i < a.m {
                macro_rules! by_height {
                    ($($r:literal)*) => {
                        match (a.m - i, width > S::LANES) {
                            // SAFETY: the caller's promise. Eight rows want the registers of AVX-512.
                            $((left, true) if left >= $r && ($r < 8 || S::LANES == 16) => unsafe {
                                strip::<S, $r, 2>(i, j, width, &steps, n, a, b, y);
                                i += $r;
                            },
                            // SAFETY: as above.
                            (left, false) if left >= $r && ($r < 8 || S::LANES == 16) => unsafe {
                                strip::<S, $r, 1>(i, j, width, &steps, n, a, b, y);
                                i += $r;
                            },)*
                            _ => unreachable!("one row is left"),
                        }
                    };
                }
                by_height!(8 4 2 1);
            }
            j += width;
        }
        first = steps.end.max(1);
    }
}

/// `R` rows by `V` vectors of `width` columns, of some steps; what was summed before is in `y`.
///
/// # Safety
/// As [`some_columns`]; the rows, columns and steps exist.
#[inline(always)]
unsafe fn strip<S: F32s, const R: usize, const V: usize>(
    i: usize,
    j: usize,
    width: usize,
    steps: &Range<usize>,
    n: usize,
    a: &Rows<'_>,
    b: *const f32,
    y: *mut f32,
) {
    // SAFETY: the caller's promise; vectors that are not whole are loaded and stored in part.
    unsafe {
        let whole = width == V * S::LANES;
        let y = y.add(i * n + j);
        let part = |v: usize| width.saturating_sub(v * S::LANES);
        let mut acc = [[S::splat(0.0); V]; R];
        if steps.start > 0 {
            for r in 0..R {
                for v in 0..V {
                    let from = y.wrapping_add(r * n + v * S::LANES);
                    acc[r][v] = if whole { S::load(from) } else { S::load_part(from, part(v)) };
                }
            }
        }
        let a_first = a.of.as_ptr().add(i * a.row);
        for kk in steps.clone() {
            let mut w = [S::splat(0.0); V];
            for v in 0..V {
                let from = b.wrapping_add(kk * n + j + v * S::LANES);
                w[v] = if whole { S::load(from) } else { S::load_part(from, part(v)) };
            }
            for r in 0..R {
                let x = S::splat(*a_first.add(r * a.row + kk * a.step));
                for v in 0..V {
                    acc[r][v] = x.mul_add(w[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let to = y.wrapping_add(r * n + v * S::LANES);
                if whole {
                    acc[r][v].store(to);
                } else {
                    acc[r][v].store_part(to, part(v));
                }
            }
        }
    }
}

on_isa! {
    /// [`product_transposed`] on one instruction set.
    pub fn transposed_on = any_transposed;
    (m: usize, k: usize, n: usize, a: &[f32], b: &[f32], y: &mut [f32])
}

#[inline(always)]
fn any_transposed(m: usize, k: usize, n: usize, a: &[f32], b: &[f32], y: &mut [f32]) {
    for i in 0..m {
        let row = &a[i * k..][..k];
        for j in 0..n {
            y[i * n + j] = dot(row, &b[j * k..][..k]);
        }
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
            for (m, k, n) in
                [(1, 1, 1), (1, 64, 33), (3, 9, 32), (2, 31, 31), (5, 70, 100), (8, 33, 64), (15, 65, 47), (2, 0, 3)]
            {
                let (a, b) = (noise(m * k, 1), noise(k * n, 5));
                let tolerance = (k as f64 + 1.0) * f64::from(f32::EPSILON) * (k as f64).max(1.0);
                let check = |want: &[f64], got: &[f32]| {
                    for (w, g) in want.iter().zip(got) {
                        assert!((w - f64::from(*g)).abs() <= tolerance, "{isa:?} {m}x{k}x{n}");
                    }
                    assert!(got[m * n..].iter().all(|v| v.is_nan()), "{isa:?} wrote past its output");
                };
                let mut got = vec![f32::NAN; m * n + 4];
                transposed_on(isa, m, k, n, &a, &b, &mut got);
                check(&reference(m, k, n, true, &a, &b), &got);
                // The left side as it lies, and turned.
                let want = reference(m, k, n, false, &a, &b);
                let turned: Vec<f32> = (0..m * k).map(|at| a[at % m * k + at / m]).collect();
                let mut same = Vec::new();
                for (threads, rows) in [
                    (1, Rows { m, of: &a, row: k, step: 1 }),
                    (3, Rows { m, of: &a, row: k, step: 1 }),
                    (1, Rows { m, of: &turned, row: 1, step: m }),
                ] {
                    let mut got = vec![f32::NAN; m * n + 4];
                    plain_on(isa, &Pool::new(threads), k, n, &rows, &b, &mut got);
                    check(&want, &got);
                    same.push(got[..m * n].to_vec());
                }
                assert!(same.iter().all(|v| *v == same[0]), "{isa:?} {m}x{k}x{n}: threads or strides change results");
                ran += 1;
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }
}
