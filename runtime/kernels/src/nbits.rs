//! Products with weights of 2, 4 or 8 bits in blocks, dequantised on the way: `y[m][n] = Σ_k x[m][k] · (q[n][k] - z) · s`.
//!
//! Dimension letters: `M` rows of `x`, `K` reduction, `N` rows of the weight. A row of the weight is `K` codes rounded up to
//! whole blocks, the low bits of a byte first; each block has a scale `s` and a zero point `z`.

use crate::isa::{Isa, on_isa};
use crate::simd::{F32s, per_isa};

/// The shape of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Reduction length.
    pub k: usize,
    /// Rows.
    pub n: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes of a block: a power of two, 16 or more.
    pub block: usize,
}

impl Shape {
    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block * self.bits / 8
    }

    /// Floats of one row as [`split`] leaves it.
    pub fn split_len(&self) -> usize {
        self.blocks() * self.block + self.blocks()
    }
}

/// The weight.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// Its shape.
    pub shape: Shape,
    /// `N` rows of blocks.
    pub codes: &'a [u8],
    /// `[N, blocks]`.
    pub scale: &'a [f32],
    /// `[N, blocks]`, or one for all.
    pub zero: &'a [f32],
}

impl Weight<'_> {
    fn zero(&self, block: usize) -> f32 {
        self.zero[if self.zero.len() == 1 { 0 } else { block }]
    }

    /// The formula of one element.
    pub fn at(&self, n: usize, k: usize) -> f32 {
        let s = self.shape;
        let block = n * s.blocks() + k / s.block;
        let row = &self.codes[n * s.blocks() * s.block_bytes()..];
        (f32::from(code(row, k, s.bits)) - self.zero(block)) * self.scale[block]
    }
}

/// Code `i` of packed bytes.
#[inline(always)]
pub(crate) fn code(bytes: &[u8], i: usize, bits: usize) -> u8 {
    let per = 8 / bits;
    bytes[i / per] >> (i % per * bits) & (0xffu16 >> (8 - bits)) as u8
}

/// The product by the formula, summed in `f64`.
pub fn reference(w: &Weight<'_>, m: usize, x: &[f32], y: &mut [f32]) {
    let Shape { k, n, .. } = w.shape;
    for r in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k).map(|kk| f64::from(x[r * k + kk]) * f64::from(w.at(j, kk))).sum();
            y[r * n + j] = sum as f32;
        }
    }
}

/// Lays out one row of `x` for [`rows`]: for each block the elements of the lowest bits of its bytes, then those of the next;
/// zeros after the end; then the sum of each block.
///
/// # Panics
/// When `out` is shorter than [`Shape::split_len`].
pub fn split(s: Shape, x: &[f32], out: &mut [f32]) {
    let per = 8 / s.bits;
    let (split, sums) = out.split_at_mut(s.blocks() * s.block);
    for (b, block) in split.chunks_exact_mut(s.block).enumerate() {
        let x = &x[b * s.block..s.k.min((b + 1) * s.block)];
        let bytes = s.block / per;
        for (i, v) in block.iter_mut().enumerate() {
            *v = x.get(i % bytes * per + i / bytes).copied().unwrap_or(0.0);
        }
        sums[b] = x.iter().sum();
    }
}

/// `y[r][j]` for the rows laid out one after another in `x`, at most [`ROWS`]; `bias` has `N` entries or none.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn rows(w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) {
    rows_on(Isa::best(), w, m, x, bias, y);
}

/// [`rows`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`rows`].
pub fn rows_on(isa: Isa, w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) -> bool {
    if !isa.available() {
        return false;
    }
    let (s, blocks) = (w.shape, w.shape.n * w.shape.blocks());
    assert!((1..=ROWS).contains(&m), "rows are few");
    assert!(w.codes.len() >= blocks * s.block_bytes(), "codes are fewer than the shape says");
    assert!(w.scale.len() >= blocks && (w.zero.len() == 1 || w.zero.len() >= blocks), "a block has no scale or zero");
    assert!(x.len() >= m * s.split_len() && y.len() >= m * s.n, "x or y is shorter than its shape says");
    if s.block_bytes().is_multiple_of(BYTES) {
        // SAFETY: the CPU has the instructions, and every slice is as long as its shape says.
        unsafe { whole::on(isa, w, m, x, bias, y) };
    } else {
        narrow(isa, w, m, x, bias, y);
    }
    true
}

on_isa! { fn narrow = rows_any; (w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) }
per_isa! { whole = rows_whole; (w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) }

crate::dispatched! {
    /// Dequantises rows `first..first + 16` of the weight into a panel of [`crate::gemm`]: `panel[k][j]`, zeros where there is
    /// no such row. `spare` has room for 16 blocks.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says.
    pub fn panel(w: &Weight<'_>, first: usize, spare: &mut [f32], panel: &mut [f32]) = panel_any;
}

/// Bytes of codes taken together.
const BYTES: usize = 16;

/// # Safety
/// As [`by_bits`], with at most [`ROWS`] rows.
#[inline(always)]
unsafe fn rows_whole<S: F32s>(w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match m {
            1 => by_bits::<S, 1>(w, x, bias, y),
            2 => by_bits::<S, 2>(w, x, bias, y),
            3 => by_bits::<S, 3>(w, x, bias, y),
            _ => by_bits::<S, ROWS>(w, x, bias, y),
        }
    }
}

/// # Safety
/// Every slice is as long as its shape says, with `R` rows; a block has a multiple of [`BYTES`] bytes; and the CPU has the
/// instructions.
#[inline(always)]
unsafe fn by_bits<S: F32s, const R: usize>(w: &Weight<'_>, x: &[f32], bias: &[f32], y: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match (w.shape.bits, w.shape.block_bytes() == BYTES) {
            (8, _) => whole_blocks::<S, 8, false, R>(w, x, bias, y),
            (4, true) => whole_blocks::<S, 4, true, R>(w, x, bias, y),
            (4, false) => whole_blocks::<S, 4, false, R>(w, x, bias, y),
            _ => whole_blocks::<S, 2, false, R>(w, x, bias, y),
        }
    }
}

/// # Safety
/// As [`by_bits`]; `ONE` only where a block has [`BYTES`] bytes.
#[inline(always)]
unsafe fn whole_blocks<S: F32s, const BITS: usize, const ONE: bool, const R: usize>(
    w: &Weight<'_>,
    x: &[f32],
    bias: &[f32],
    y: &mut [f32],
) {
    let s = w.shape;
    let (blocks, bytes) = (s.blocks(), s.block_bytes());
    let mask = 0x0101_0101_0101_0101 * ((1u64 << BITS) - 1);
    let one_zero = w.zero.len() == 1;
    for j in 0..s.n {
        // SAFETY: the caller's promise: codes and rows are as long as the shape says, and a code has `LANES` neighbours in its 16.
        unsafe {
            let codes = w.codes.as_ptr().add(j * blocks * bytes);
            let (scale, zero) = (w.scale.as_ptr().add(j * blocks), w.zero.as_ptr());
            let zero = if one_zero { zero } else { zero.add(j * blocks) };
            let mut acc = [S::splat(0.0); R];
            for b in 0..blocks {
                let z = S::splat(*zero.add(if one_zero { 0 } else { b }));
                let mut part = [S::splat(0.0); R];
                // One turn is most usual, and then no loop.
                let mut i = 0;
                loop {
                    let words = codes.add(b * bytes + i).cast::<[u64; 2]>().read_unaligned();
                    for q in 0..8 / BITS {
                        // What a shift brings from the next byte is masked away.
                        let parts = [words[0] >> (q * BITS) & mask, words[1] >> (q * BITS) & mask];
                        for l in (0..BYTES).step_by(S::LANES) {
                            let v = S::load_u8(parts.as_ptr().cast::<u8>().add(l)).sub(z);
                            for r in 0..R {
                                let x = x.as_ptr().add(r * s.split_len() + b * s.block + q * bytes + i + l);
                                part[r] = S::load(x).mul_add(v, part[r]);
                            }
                        }
                    }
                    i += BYTES;
                    if ONE || i >= bytes {
                        break;
                    }
                }
                let scale = S::splat(*scale.add(b));
                for r in 0..R {
                    acc[r] = part[r].mul_add(scale, acc[r]);
                }
            }
            for r in 0..R {
                let mut lanes = [0f32; 16];
                acc[r].store(lanes.as_mut_ptr());
                let sum: f32 = lanes[..S::LANES].iter().sum();
                y[r * s.n + j] = sum + bias.get(j).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Most rows [`rows`] takes at once.
pub const ROWS: usize = 4;

/// Blocks too short for [`rows_whole`].
#[inline(always)]
fn rows_any(w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) {
    match (w.shape.bits, w.shape.block_bytes()) {
        (4, _) => by_rows::<4, 8>(w, m, x, bias, y),
        (_, 4) => by_rows::<2, 4>(w, m, x, bias, y),
        _ => by_rows::<2, 8>(w, m, x, bias, y),
    }
}

#[inline(always)]
fn by_rows<const BITS: usize, const L: usize>(w: &Weight<'_>, m: usize, x: &[f32], bias: &[f32], y: &mut [f32]) {
    match m {
        1 => tile::<BITS, L, 1>(w, x, bias, y),
        2 => tile::<BITS, L, 2>(w, x, bias, y),
        3 => tile::<BITS, L, 3>(w, x, bias, y),
        _ => tile::<BITS, L, ROWS>(w, x, bias, y),
    }
}

/// `L` bytes at a time.
#[inline(always)]
fn tile<const BITS: usize, const L: usize, const R: usize>(w: &Weight<'_>, x: &[f32], bias: &[f32], y: &mut [f32]) {
    let s = w.shape;
    let (blocks, bytes, per) = (s.blocks(), s.block_bytes(), 8 / BITS);
    let mask = (0xffu16 >> (8 - BITS)) as u8;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * s.split_len()..][..s.split_len()]);
    for j in 0..s.n {
        let codes = &w.codes[j * blocks * bytes..][..blocks * bytes];
        let scale = &w.scale[j * blocks..][..blocks];
        let mut acc = [[0f32; L]; R];
        let mut offset = [0f32; R];
        for b in 0..blocks {
            let mut part = [[0f32; L]; R];
            for (i, chunk) in codes[b * bytes..][..bytes].as_chunks::<L>().0.iter().enumerate() {
                for q in 0..per {
                    let v: [f32; L] = std::array::from_fn(|l| f32::from(chunk[l] >> (q * BITS) & mask));
                    for r in 0..R {
                        let x = &rows[r][b * s.block + q * bytes + i * L..][..L];
                        for l in 0..L {
                            part[r][l] += x[l] * v[l];
                        }
                    }
                }
            }
            let zero = w.zero(j * blocks + b) * scale[b];
            for r in 0..R {
                for l in 0..L {
                    acc[r][l] += part[r][l] * scale[b];
                }
                offset[r] += rows[r][blocks * s.block + b] * zero;
            }
        }
        for r in 0..R {
            let sum: f32 = acc[r].iter().sum();
            y[r * s.n + j] = sum - offset[r] + bias.get(j).copied().unwrap_or(0.0);
        }
    }
}

#[inline(always)]
fn panel_any(w: &Weight<'_>, first: usize, spare: &mut [f32], panel: &mut [f32]) {
    const NR: usize = crate::gemm::NR;
    let s = w.shape;
    let (blocks, bytes, per) = (s.blocks(), s.block_bytes(), 8 / s.bits);
    let mask = (0xffu16 >> (8 - s.bits)) as u8;
    let live = NR.min(s.n - first);
    let spare = &mut spare[..NR * s.block];
    spare.fill(0.0);
    for b in 0..blocks {
        for (j, row) in spare.chunks_exact_mut(s.block).take(live).enumerate() {
            let at = (first + j) * blocks + b;
            let (scale, zero) = (w.scale[at], w.zero(at));
            for (byte, out) in w.codes[at * bytes..][..bytes].iter().zip(row.chunks_exact_mut(per)) {
                for (q, out) in out.iter_mut().enumerate() {
                    *out = (f32::from(byte >> (q * s.bits) & mask) - zero) * scale;
                }
            }
        }
        let width = s.block.min(s.k - b * s.block);
        let out = &mut panel[b * s.block * NR..][..width * NR];
        for (kk, out) in out.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
            for j in 0..NR {
                out[j] = spare[j * s.block + kk];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_block_agrees_with_the_formula_with_and_without_zero_points() {
        let mut ran = 0;
        for bits in [2, 4, 8] {
            for (m, k, n, block) in
                [(1, 64, 5, 16), (2, 100, 17, 32), (3, 128, 16, 64), (4, 300, 33, 128), (1, 20, 3, 256)]
            {
                let shape = Shape { k, n, bits, block };
                let count = n * shape.blocks();
                let codes: Vec<u8> = (0..count * shape.block_bytes()).map(|i| (i * 97 % 253) as u8).collect();
                let scale: Vec<f32> = (0..count).map(|i| 0.01 + (i % 7) as f32 * 0.003).collect();
                let zero: Vec<f32> = (0..count).map(|i| (i % (1 << bits)) as f32).collect();
                let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
                for zero in [&zero[..], &[(1 << (bits - 1)) as f32]] {
                    let w = Weight { shape, codes: &codes, scale: &scale, zero };
                    let mut expected = vec![0.0; m * n];
                    reference(&w, m, &x, &mut expected);
                    let mut laid = vec![0.0; m * shape.split_len()];
                    for r in 0..m {
                        split(shape, &x[r * k..][..k], &mut laid[r * shape.split_len()..][..shape.split_len()]);
                    }
                    // K roundings each of the codes' products and of the zero points', all below 2^bits · max scale.
                    let tolerance = 2.0 * (k as f32 + 4.0) * f32::EPSILON * (1 << bits) as f32 * 0.03 * 2.0;
                    for isa in Isa::ALL {
                        let mut y = vec![f32::NAN; m * n + 1];
                        if !rows_on(isa, &w, m, &laid, &[], &mut y) {
                            continue;
                        }
                        ran += 1;
                        for (e, f) in expected.iter().zip(&y) {
                            assert!((e - f).abs() <= tolerance, "{isa:?} {bits} bits {m}x{k}x{n}/{block}: {e} {f}");
                        }
                        assert!(y[m * n].is_nan());
                    }
                    let (mut spare, mut dense) = (vec![0.0; 16 * block], vec![0.0; 16 * k]);
                    for first in (0..n).step_by(16) {
                        panel(&w, first, &mut spare, &mut dense);
                        for kk in 0..k {
                            for j in 0..16 {
                                let e = if first + j < n { w.at(first + j, kk) } else { 0.0 };
                                assert_eq!(dense[kk * 16 + j], e);
                            }
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }
}
