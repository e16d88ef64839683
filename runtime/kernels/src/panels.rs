//! Panels of [`crate::gemm`], or of [`crate::bf16`], made of matrices as files have them, floats or 8-bit codes, in either orientation.
//!
//! Where many rows are multiplied at a time, a panel costs little beside its product: a frozen matrix then needs no copy of
//! its own for either direction of training, and 8-bit codes are converted once instead of once for every few rows.
//! Dimension letters as in [`crate::gemm`]: `K` reduction, `N` columns.
use crate::bf16::{self, Pair};
use crate::gemm::NR;
use crate::isa::{Isa, on_isa};
use crate::transpose::Element;

/// A matrix of `K` steps and `N` columns as it lies: `[K, N]`, or `[N, K]` when transposed.
#[derive(Clone, Copy, Debug)]
pub enum Lying<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// `q · scale`.
    I8 {
        /// The integers.
        q: &'a [i8],
        /// One for all, or one for each index along `along`.
        scale: &'a [f32],
        /// What scales run along, when they are several.
        along: Along,
    },
}

/// An axis of a right operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// The columns of the product.
    Columns,
    /// The reduction.
    Steps,
}

/// The formula: panel `p` of [`crate::gemm::pack`], element by element.
pub fn reference(p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [f32]) {
    for kk in 0..k {
        for j in 0..NR {
            let column = p * NR + j;
            let at = if transposed { column * k + kk } else { kk * n + column };
            out[kk * NR + j] = match *b {
                _ if column >= n => 0.0,
                Lying::F32(v) => v[at],
                Lying::I8 { q, scale: &[one], .. } => f32::from(q[at]) * one,
                Lying::I8 { q, scale, along: Along::Columns } => f32::from(q[at]) * scale[column],
                Lying::I8 { q, scale, along: Along::Steps } => f32::from(q[at]) * scale[kk],
            };
        }
    }
}

/// A form of it.
pub type Form = fn(usize, usize, usize, bool, &Lying<'_>, &mut [f32]);

/// Every faster form.
pub const KERNELS: &[(&str, Form)] = &[
    ("avx512", |p, n, k, transposed, b, out| panel_on(Isa::Avx512, p, n, k, transposed, b, out)),
    ("avx2", |p, n, k, transposed, b, out| panel_on(Isa::Avx2, p, n, k, transposed, b, out)),
    ("any", |p, n, k, transposed, b, out| panel_on(Isa::Any, p, n, k, transposed, b, out)),
];

/// Makes panel `p` of the `N / NR` of a matrix; `out` has `K · NR` elements.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn panel(p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [f32]) {
    panel_on(Isa::best(), p, n, k, transposed, b, out);
}

on_isa! {
    /// [`panel`] on one instruction set.
    pub fn panel_on = any;
    (p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [f32])
}

/// Every faster form of the panels of bf16, each of which is that of `f32` rounded.
pub const PAIRS: &[(&str, PairsForm)] = &[
    ("avx512", |p, n, k, transposed, b, out| pairs_on(Isa::Avx512, p, n, k, transposed, b, out)),
    ("avx2", |p, n, k, transposed, b, out| pairs_on(Isa::Avx2, p, n, k, transposed, b, out)),
    ("any", |p, n, k, transposed, b, out| pairs_on(Isa::Any, p, n, k, transposed, b, out)),
];

/// A form of them.
pub type PairsForm = fn(usize, usize, usize, bool, &Lying<'_>, &mut [Pair]);

/// Makes panel `p` of [`bf16::pack`]; `out` has `K / 2 · NR` elements, rounded up.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn pairs(p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [Pair]) {
    pairs_on(Isa::best(), p, n, k, transposed, b, out);
}

on_isa! {
    /// [`pairs`] on one instruction set.
    pub fn pairs_on = any_pairs;
    (p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [Pair])
}

/// Scales of 16 columns from `first` on, and those of all steps where there are such.
#[inline(always)]
fn scales(first: usize, width: usize, k: usize, scale: &[f32], along: Along) -> ([f32; NR], Option<&[f32]>) {
    let mut columns = [1.0; NR];
    match (scale, along) {
        (&[one], _) => columns = [one; NR],
        (_, Along::Columns) => columns[..width].copy_from_slice(&scale[first..][..width]),
        (_, Along::Steps) => return (columns, Some(&scale[..k])),
    }
    (columns, None)
}

#[inline(always)]
fn any(p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [f32]) {
    let first = p * NR;
    let width = NR.min(n - first);
    match *b {
        Lying::F32(v) if transposed => floats_turned(first, width, k, v, out),
        Lying::F32(v) => floats(first, width, n, k, v, out),
        Lying::I8 { q, scale, along } => {
            let (columns, steps) = scales(first, width, k, scale, along);
            codes(first, width, n, k, transposed, q, &columns, steps, out);
        }
    }
}

#[inline(always)]
fn any_pairs(p: usize, n: usize, k: usize, transposed: bool, b: &Lying<'_>, out: &mut [Pair]) {
    let first = p * NR;
    let width = NR.min(n - first);
    match *b {
        Lying::F32(v) if transposed => pairs_turned(first, width, k, v, &[1.0; NR], None, out),
        Lying::F32(v) => pairs_plain(first, width, n, k, v, &[1.0; NR], None, out),
        Lying::I8 { q, scale, along } => {
            let (columns, steps) = scales(first, width, k, scale, along);
            if transposed {
                pairs_turned(first, width, k, q, &columns, steps, out);
            } else {
                pairs_plain(first, width, n, k, q, &columns, steps, out);
            }
        }
    }
}

/// What a matrix lies in.
trait Value: Copy + Default {
    /// As a float.
    fn float(self) -> f32;
}

impl Value for f32 {
    #[inline(always)]
    fn float(self) -> f32 {
        self
    }
}

impl Value for i8 {
    #[inline(always)]
    fn float(self) -> f32 {
        f32::from(self)
    }
}

/// The first `N` elements, and 0 from the end of a shorter slice on.
#[inline(always)]
fn filled<T: Value, const N: usize>(from: &[T]) -> [T; N] {
    // A length that the compiler knows: else it is a call of `memcpy`.
    if let Some(whole) = from.first_chunk::<N>() {
        return *whole;
    }
    let mut row = [T::default(); N];
    row[..from.len()].copy_from_slice(from);
    row
}

/// `out[i][j] = (b[2i][first + j], b[2i + 1][first + j])`, each times its scales and rounded; 0 beyond the matrix.
#[inline(always)]
fn pairs_plain<T: Value>(
    first: usize,
    width: usize,
    n: usize,
    k: usize,
    b: &[T],
    columns: &[f32; NR],
    steps: Option<&[f32]>,
    out: &mut [Pair],
) {
    for (i, out) in out.as_chunks_mut::<NR>().0[..k.div_ceil(2)].iter_mut().enumerate() {
        let mut words = [0u32; NR];
        for half in 0..2 {
            let kk = 2 * i + half;
            if kk == k {
                break;
            }
            let row: [T; NR] = filled(&b[kk * n + first..][..width]);
            let step = steps.map_or(1.0, |s| s[kk]);
            for j in 0..NR {
                words[j] |= u32::from(bf16::round(row[j].float() * (columns[j] * step))) << (16 * half);
            }
        }
        for j in 0..NR {
            out[j] = Pair(words[j]);
        }
    }
}

/// `out[i][j] = (b[first + j][2i], b[first + j][2i + 1])`, each times its scales and rounded; 0 beyond the matrix.
#[inline(always)]
fn pairs_turned<T: Value>(
    first: usize,
    width: usize,
    k: usize,
    b: &[T],
    columns: &[f32; NR],
    steps: Option<&[f32]>,
    out: &mut [Pair],
) {
    const BLOCK: usize = <f32 as Element>::BLOCK;
    // Squares of pairs, so that both sides stay in the first-level cache; they are turned as if they were floats, by their bits.
    let out = &mut out.as_chunks_mut::<NR>().0[..k.div_ceil(2)];
    let mut square = [[0f32; NR]; NR];
    for (block, out) in out.chunks_mut(NR).enumerate() {
        let at = block * 2 * NR;
        let length = (k - at).min(2 * NR);
        let step: [f32; 2 * NR] = match steps {
            Some(s) => filled(&s[at..][..length]),
            None => [1.0; 2 * NR],
        };
        for (j, line) in square.iter_mut().enumerate().take(width) {
            let row: [T; 2 * NR] = filled(&b[(first + j) * k + at..][..length]);
            let mut halves = [0u16; 2 * NR];
            for i in 0..2 * NR {
                halves[i] = bf16::round(row[i].float() * (columns[j] * step[i]));
            }
            for i in 0..NR {
                line[i] = f32::from_bits(u32::from(halves[2 * i]) | u32::from(halves[2 * i + 1]) << 16);
            }
        }
        let mut turned = [[0f32; NR]; NR];
        for i in (0..NR).step_by(BLOCK) {
            for j in (0..NR).step_by(BLOCK) {
                // SAFETY: both squares have the block.
                unsafe {
                    let to = turned.as_mut_ptr().cast::<f32>().add(i * NR + j);
                    f32::block(square.as_ptr().cast::<f32>().add(j * NR + i), NR, to, NR);
                }
            }
        }
        for (out, line) in out.iter_mut().zip(&turned) {
            for j in 0..NR {
                out[j] = Pair(line[j].to_bits());
            }
        }
    }
}

/// `out[kk][j] = b[kk][first + j]`, and 0 from column `width` on.
#[inline(always)]
fn floats(first: usize, width: usize, n: usize, k: usize, b: &[f32], out: &mut [f32]) {
    let rows = &mut out.as_chunks_mut::<NR>().0[..k];
    // Lengths that the compiler knows: else each row is a call of `memcpy`, which costs as much again as all the rest.
    for (kk, out) in rows.iter_mut().enumerate() {
        let from = &b[kk * n + first..][..width];
        if let Some(whole) = from.first_chunk::<NR>() {
            *out = *whole;
            continue;
        }
        *out = [0.0; NR];
        let mut done = 0;
        if let Some(half) = from.first_chunk::<{ NR / 2 }>() {
            *out.first_chunk_mut().expect("a half of a whole") = *half;
            done = NR / 2;
        }
        out[done..width].copy_from_slice(&from[done..]);
    }
}

/// `out[kk][j] = b[first + j][kk]`, and 0 from column `width` on.
#[inline(always)]
fn floats_turned(first: usize, width: usize, k: usize, b: &[f32], out: &mut [f32]) {
    const BLOCK: usize = <f32 as Element>::BLOCK;
    let (out, b) = (&mut out[..k * NR], &b[first * k..][..width * k]);
    let (whole_columns, whole_rows) = (width / BLOCK * BLOCK, k / BLOCK * BLOCK);
    for kk in (0..whole_rows).step_by(BLOCK) {
        for j in (0..whole_columns).step_by(BLOCK) {
            // SAFETY: b has `width` rows of `k`, out `k` rows of NR, and the blocks end before either does.
            unsafe { f32::block(b.as_ptr().add(j * k + kk), k, out.as_mut_ptr().add(kk * NR + j), NR) };
        }
    }
    for (kk, out) in out.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
        for j in if kk < whole_rows { whole_columns } else { 0 }..NR {
            out[j] = if j < width { b[j * k + kk] } else { 0.0 };
        }
    }
}

/// `out[kk][j] = b[kk][first + j] · columns[j] · steps[kk]`, and 0 from column `width` on.
#[inline(always)]
fn codes(
    first: usize,
    width: usize,
    n: usize,
    k: usize,
    transposed: bool,
    b: &[i8],
    columns: &[f32; NR],
    steps: Option<&[f32]>,
    out: &mut [f32],
) {
    let rows = &mut out.as_chunks_mut::<NR>().0[..k];
    if !transposed {
        for (kk, out) in rows.iter_mut().enumerate() {
            let row: [i8; NR] = filled(&b[kk * n + first..][..width]);
            let step = steps.map_or(1.0, |s| s[kk]);
            for j in 0..NR {
                out[j] = f32::from(row[j]) * (columns[j] * step);
            }
        }
        return;
    }
    // Squares, so that both sides stay in the first-level cache.
    for (block, rows) in rows.chunks_mut(NR).enumerate() {
        let at = block * NR;
        let mut square = [[0f32; NR]; NR];
        for (j, line) in square.iter_mut().enumerate().take(width) {
            let row: [i8; NR] = filled(&b[(first + j) * k + at..][..rows.len()]);
            for i in 0..NR {
                line[i] = f32::from(row[i]) * columns[j];
            }
        }
        for (i, out) in rows.iter_mut().enumerate() {
            let step = steps.map_or(1.0, |s| s[at + i]);
            for j in 0..NR {
                out[j] = square[j][i] * step;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_makes_the_panels_of_the_formula_at_every_edge_and_writes_nothing_else() {
        for (n, k) in [(1, 1), (16, 3), (17, 5), (40, 16), (33, 47), (3, 0), (48, 33), (13, 7), (30, 22)] {
            let floats: Vec<f32> = (0..n * k).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
            let codes: Vec<i8> = (0..n * k).map(|i| ((i * 31) % 255) as u8 as i8).collect();
            let scale: Vec<f32> = (0..n.max(k)).map(|i| 0.5 + i as f32 / 64.0).collect();
            for transposed in [false, true] {
                for b in [
                    Lying::F32(&floats),
                    Lying::I8 { q: &codes, scale: &scale[..1], along: Along::Columns },
                    Lying::I8 { q: &codes, scale: &scale[..n], along: Along::Columns },
                    Lying::I8 { q: &codes, scale: &scale[..k], along: Along::Steps },
                ] {
                    if matches!(b, Lying::I8 { scale: [], .. }) {
                        continue;
                    }
                    for p in 0..n.div_ceil(NR) {
                        let mut want = vec![f32::NAN; k * NR + 4];
                        reference(p, n, k, transposed, &b, &mut want);
                        for (name, form) in KERNELS {
                            let mut got = vec![f32::NAN; k * NR + 4];
                            form(p, n, k, transposed, &b, &mut got);
                            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&got[..k * NR]), bits(&want[..k * NR]), "{name}: {n}x{k} {transposed} {p}");
                            assert!(got[k * NR..].iter().all(|v| v.is_nan()), "{name} wrote past the panel");
                        }
                        let rounded =
                            |kk: usize, j: usize| if kk < k { u32::from(bf16::round(want[kk * NR + j])) } else { 0 };
                        let len = k.div_ceil(2) * NR;
                        for (name, form) in PAIRS {
                            let mut got = vec![Pair(7); len + 4];
                            form(p, n, k, transposed, &b, &mut got);
                            for (at, &got) in got[..len].iter().enumerate() {
                                let (kk, j) = (at / NR * 2, at % NR);
                                let want = Pair(rounded(kk, j) | rounded(kk + 1, j) << 16);
                                assert_eq!(got, want, "{name} in pairs: {n}x{k} {transposed} {p} {kk} {j}");
                            }
                            assert!(got[len..].iter().all(|v| *v == Pair(7)), "{name} wrote past the panel");
                        }
                    }
                }
            }
        }
    }
}
