//! Kernels of 8-bit matrix products with a constant right operand, packed once.
use hone_kernels::qgemm::{self, Problem, Scale, Terms};
use hone_kernels::quantize::{Codes, extent, of_i8, of_u8};

use super::linear::range_to_affine;
use super::matmul::{Product, gemm_shape};
use super::{codes, range_of};
use crate::ops::OpError;
use crate::plan::{Io, Kernel, Lowered, Lowering, Reads};
use crate::tensor::{DType, Tensor};

/// Rows of the left operand taken together: their products stay in the nearest caches until they are scaled.
const ROWS: usize = 48;

/// A constant right operand `[K, N]`: packed, with its zero points and the sums of its columns.
pub(in crate::ops) struct Right {
    k: usize,
    n: usize,
    packed: Vec<i8>,
    /// Zero points in the packed codes, one a column.
    zero: Vec<i32>,
    /// Sum of each column less its zero points.
    sums: Vec<i32>,
    /// Whether some zero point is not 0.
    centred: bool,
}

impl Right {
    /// Packs `b`, whose element `(k, j)` is at `at(k, j)`. `None` for types the kernels do not take.
    pub(in crate::ops) fn of(
        b: &Tensor,
        zero: Option<&Tensor>,
        k: usize,
        n: usize,
        at: impl Fn(usize, usize) -> usize,
    ) -> Result<Option<Right>, OpError> {
        let flip = match b.dtype() {
            DType::I8 => 0u8,
            // 128 less, so that it fits the kernels' signed side.
            DType::U8 => 0x80,
            _ => return Ok(None),
        };
        let bytes = b.data().as_bytes();
        if bytes.len() != k * n {
            return Ok(None);
        }
        let mut packed = vec![0i8; qgemm::packed_len(n, k)];
        let mut sums = vec![0i32; n];
        qgemm::pack(n, k, |kk, j| (bytes[at(kk, j)] ^ flip) as i8, &mut packed, &mut sums);
        let given = zero.map_or(Ok(vec![0]), |z| codes(z, "zero point of B"))?;
        if given.len() != 1 && given.len() != n {
            return Ok(None);
        }
        let shift = if flip == 0 { 0 } else { 128 };
        let zero: Vec<i32> = (0..n).map(|j| given[if given.len() == 1 { 0 } else { j }] - shift).collect();
        sums.iter_mut().zip(&zero).for_each(|(s, z)| *s = s.wrapping_sub((k as i32).wrapping_mul(*z)));
        let centred = zero.iter().any(|&z| z != 0);
        Ok(Some(Right { k, n, packed, zero, sums, centred }))
    }

    pub(in crate::ops) fn bytes(&self) -> usize {
        self.packed.len() + 8 * self.n
    }

    /// Floats of scratch that [`Right::dynamic`] needs for `m` rows.
    pub(in crate::ops) fn dynamic_scratch(&self, m: usize) -> usize {
        ROWS.min(m) * self.n + self.n + ROWS + (m * self.k).div_ceil(4)
    }

    /// `y = x · b · scale + bias`, where `x: f32 [M, K]` is quantised as it comes, with one scale and zero point for all of it,
    /// and `scale` has an entry a column of `b`; `scaled` is room for as many.
    pub(in crate::ops) fn dynamic(
        &self,
        m: usize,
        x: &[f32],
        scale: &[f32],
        bias: &[f32],
        scaled: &mut [f32],
        scratch: &mut [f32],
        y: &mut [f32],
    ) {
        let (acc, rest) = scratch.split_at_mut(ROWS.min(m) * self.n);
        let (col, rest) = rest.split_at_mut(self.n);
        let (row_sums, codes) = rest.split_at_mut(ROWS);
        let codes: &mut [u8] = &mut bytemuck::cast_slice_mut(codes)[..m * self.k];
        let mut e = [0.0; 2];
        extent(x, &mut e);
        let (x_scale, zero) = range_to_affine(e[0], e[1]);
        of_u8::quantise(x, x_scale, Codes { zero, low: 0, high: 255 }, codes);
        scaled.iter_mut().zip(scale).for_each(|(t, s)| *t = x_scale * s);
        let work = [acc, col, row_sums].map(bytemuck::cast_slice_mut);
        self.floats(m, codes, false, zero, scaled, bias, work, y);
    }

    /// `y = (a - zero) · b · scale + bias` for codes `a`, `flip` when they are signed; `work` has room for a block of sums,
    /// for a term a column, and for the sums of the rows of a block.
    #[rustfmt::skip]
    fn floats(
        &self, m: usize, a: &[u8], flip: bool, zero: i32, scale: &[f32], bias: &[f32], work: [&mut [i32]; 3], y: &mut [f32],
    ) {
        let [acc, col, row_sums] = work;
        let zero = if flip { zero + 128 } else { zero };
        col.iter_mut().zip(&self.sums).for_each(|(c, s)| *c = 0i32.wrapping_sub(zero.wrapping_mul(*s)));
        self.blocks(m, a, flip, col, acc, row_sums, |first, acc, terms| {
            let y = &mut y[first * self.n..][..acc.len()];
            qgemm::to_floats(self.n, terms, Scale::Columns(scale), bias, acc, y);
        });
    }

    /// Floats of scratch that [`Right::scaled`] needs for `m` rows.
    pub(super) fn scratch(&self, m: usize) -> usize {
        ROWS.min(m) * self.n + self.n + ROWS
    }

    /// `y = (a - zero) · b · scale + bias` for codes `a`, `flip` when they are signed.
    #[rustfmt::skip]
    pub(super) fn scaled(
        &self, m: usize, a: &[u8], flip: bool, zero: i32, scale: &[f32], bias: &[f32], scratch: &mut [f32], y: &mut [f32],
    ) {
        let (acc, rest) = scratch.split_at_mut(ROWS.min(m) * self.n);
        let (col, row_sums) = rest.split_at_mut(self.n);
        self.floats(m, a, flip, zero, scale, bias, [acc, col, &mut row_sums[..ROWS]].map(bytemuck::cast_slice_mut), y);
    }

    /// Multiplies rows of codes block by block, and hands each block of sums on with the terms that are still to be added:
    /// Σ (a - za)(b - zb) = Σ a b - za (Σ b - K zb) - zb Σ a, the second of which is in `col`.
    fn blocks(
        &self,
        m: usize,
        a: &[u8],
        flip: bool,
        col: &[i32],
        acc: &mut [i32],
        row_sums: &mut [i32],
        mut finish: impl FnMut(usize, &mut [i32], &Terms<'_>),
    ) {
        let (k, n) = (self.k, self.n);
        for first in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - first);
            let block = &a[first * k..][..rows * k];
            let acc = &mut acc[..rows * n];
            qgemm::product(&Problem { m: rows, k, n, a: block, a_stride: k, flip, b: &self.packed }, acc);
            let left: &mut [i32] = if self.centred { &mut row_sums[..rows] } else { &mut [] };
            if self.centred {
                // Rows of nothing have no sums.
                left.fill(0);
                if flip {
                    of_i8::sums(bytemuck::cast_slice(block), k, left);
                } else {
                    of_u8::sums(block, k, left);
                }
                let shift = if flip { 128 * k as i32 } else { 0 };
                left.iter_mut().for_each(|s| *s = -(*s + shift));
            }
            finish(first, acc, &Terms { row: &[], col, left, right: &self.zero });
        }
    }
}

/// The left operand.
enum Left {
    /// Codes, their type, and the slot of their zero point.
    Codes { flip: bool, zero: Option<usize> },
    /// Floats that are quantised as they come.
    Floats,
}

/// What becomes of the sums.
enum Finish {
    /// They are the result.
    Integers,
    /// Scaled: the slots of the scales of the operands (`a` is the dynamic one where there is none) and of the bias.
    Floats { a_scale: Option<usize>, b_scale: usize, bias: Option<usize>, alpha: f32 },
    /// Requantised, with scales known beforehand, one a column, and what a bias adds.
    Codes { scale: Vec<f32>, codes: Codes, bias: Vec<i32> },
}

struct Rows {
    name: &'static str,
    m: usize,
    right: Right,
    left: Left,
    finish: Finish,
}

impl Rows {
    /// Floats of scratch: sums of a block of rows, a vector of column terms, one of scales, sums of rows, and codes.
    fn scratch(&self) -> usize {
        let n = self.right.n;
        let codes = if matches!(self.left, Left::Floats) { (self.m * self.right.k).div_ceil(4) } else { 0 };
        ROWS.min(self.m) * n + 2 * n + ROWS + codes
    }
}

impl Kernel for Rows {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (k, n) = (self.right.k, self.right.n);
        let (acc, rest) = scratch.split_at_mut(ROWS.min(self.m) * n);
        let (col, rest) = rest.split_at_mut(n);
        let (scales, rest) = rest.split_at_mut(n);
        let (row_sums, rest) = rest.split_at_mut(ROWS);
        let acc: &mut [i32] = bytemuck::cast_slice_mut(acc);
        let col: &mut [i32] = bytemuck::cast_slice_mut(col);
        let row_sums: &mut [i32] = bytemuck::cast_slice_mut(row_sums);
        let codes_of: &mut [u8] = bytemuck::cast_slice_mut(rest);
        let mut dynamic = 1.0;
        let (a, flip, a_zero): (&[u8], bool, i32) = match &self.left {
            Left::Codes { flip, zero } => {
                let z = zero.map_or(0, |slot| code_at(reads, slot, *flip));
                (reads.bytes(0), *flip, if *flip { z + 128 } else { z })
            }
            Left::Floats => {
                let x = reads.f32(0);
                let mut e = [0.0; 2];
                extent(x, &mut e);
                let (scale, zero) = range_to_affine(e[0], e[1]);
                dynamic = scale;
                of_u8::quantise(x, scale, Codes { zero, low: 0, high: 255 }, &mut codes_of[..self.m * k]);
                (&codes_of[..self.m * k], false, zero)
            }
        };
        let bias: &[i32] = if let Finish::Codes { bias, .. } = &self.finish { bias } else { &[] };
        for j in 0..n {
            col[j] = bias.get(j).copied().unwrap_or(0).wrapping_sub(a_zero.wrapping_mul(self.right.sums[j]));
        }
        if let Finish::Floats { a_scale, b_scale, alpha, .. } = &self.finish {
            let a = a_scale.map_or(dynamic, |slot| reads.f32(slot)[0]);
            let b = reads.f32(*b_scale);
            (0..n).for_each(|j| scales[j] = a * (b[if b.len() == 1 { 0 } else { j }] * alpha));
        }
        self.right.blocks(self.m, a, flip, col, acc, row_sums, |first, acc, terms| {
            let len = acc.len();
            match &self.finish {
                Finish::Integers => {
                    qgemm::add_terms(n, terms, acc);
                    let y: &mut [i32] = bytemuck::cast_slice_mut(writes.bytes(0));
                    y[first * n..][..len].copy_from_slice(acc);
                }
                Finish::Floats { bias, .. } => {
                    let bias = bias.map_or(&[][..], |slot| reads.f32(slot));
                    let y = &mut writes.f32(0)[first * n..][..len];
                    qgemm::to_floats(n, terms, Scale::Columns(scales), bias, acc, y);
                }
                Finish::Codes { scale, codes, .. } => {
                    let y = &mut writes.bytes(0)[first * n..][..len];
                    qgemm::requantise(n, terms, Scale::Columns(scale), *codes, acc, y);
                }
            }
        });
    }
}

/// The 8-bit code an operand consists of.
pub(super) fn code_at(reads: &Reads<'_>, slot: usize, signed: bool) -> i32 {
    let byte = reads.bytes(slot).first().copied().unwrap_or(0);
    if signed { i32::from(byte as i8) } else { i32::from(byte) }
}

/// What the operators of this file have in common: where the operands are.
struct Operands {
    b: usize,
    a_zero: usize,
    b_zero: usize,
}

/// A constant right matrix and a left operand of codes; `None` when the kernel does not take them.
fn operands(l: &Lowering<'_>, at: &Operands, reads: &mut Vec<usize>) -> Result<Option<(usize, Right, Left)>, OpError> {
    let flip = match l.dtype(0) {
        Some(DType::U8) => false,
        Some(DType::I8) => true,
        _ => return Ok(None),
    };
    let Some((m, right)) = right(l, at)? else { return Ok(None) };
    let zero = match l.has(at.a_zero) {
        false => None,
        true if l.shape(at.a_zero)?.iter().product::<usize>() == 1 && l.dtype(at.a_zero) == l.dtype(0) => {
            reads.push(at.a_zero);
            Some(reads.len() - 1)
        }
        true => return Ok(None),
    };
    Ok(Some((m, right, Left::Codes { flip, zero })))
}

/// Rows of the left operand, and the packed right one.
fn right(l: &Lowering<'_>, at: &Operands) -> Result<Option<(usize, Right)>, OpError> {
    let Some(b) = l.constant(at.b) else { return Ok(None) };
    let zero = match (l.has(at.b_zero), l.constant(at.b_zero)) {
        (true, None) => return Ok(None),
        (_, z) => z.map(|z| &**z),
    };
    let p = Product::of(l.shape(0)?, b.shape())?;
    if b.shape().len() != 2 || zero.is_some_and(|z| z.shape().len() > 1) {
        return Ok(None);
    }
    let (k, n) = (p.k, p.n);
    let m = l.shape(0)?.iter().product::<usize>().checked_div(k).unwrap_or(p.m * p.offsets.len());
    Ok(Right::of(b, zero, k, n, |kk, j| kk * n + j)?.map(|r| (m, r)))
}

fn lowered(rows: Rows, reads: Vec<usize>) -> Lowered {
    let (bytes, scratch) = (rows.right.bytes(), rows.scratch());
    Lowered::new(rows, reads).with_scratch(scratch).with_weights(bytes)
}

/// `MatMulInteger`.
pub(super) fn integer(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let mut reads = vec![0];
    let Some((m, right, left)) = operands(l, &Operands { b: 1, a_zero: 2, b_zero: 3 }, &mut reads)? else {
        return Ok(None);
    };
    Ok(Some(lowered(Rows { name: "qgemm-i32", m, right, left, finish: Finish::Integers }, reads)))
}

/// Whether input `i` is one `f32`, or one for each of `n`.
fn vector(l: &Lowering<'_>, i: usize, n: usize) -> Result<bool, OpError> {
    let shape = l.shape(i)?;
    let len: usize = shape.iter().product();
    Ok(l.dtype(i) == Some(DType::F32) && (len == 1 || (len == n && shape.len() == 1)))
}

/// The bias at input `i`, as a slot: `Err(())` when the kernel does not take it.
fn bias(l: &Lowering<'_>, i: usize, n: usize, reads: &mut Vec<usize>) -> Result<Option<usize>, ()> {
    if !l.has(i) {
        return Ok(None);
    }
    if l.dtype(i) != Some(DType::F32) || l.shape(i).map_or(true, |s| s != [n]) {
        return Err(());
    }
    reads.push(i);
    Ok(Some(reads.len() - 1))
}

/// `MatMulIntegerToFloat`.
pub(super) fn to_float(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let mut reads = vec![0];
    let Some((m, right, left)) = operands(l, &Operands { b: 1, a_zero: 4, b_zero: 5 }, &mut reads)? else {
        return Ok(None);
    };
    if !vector(l, 2, 1)? || !vector(l, 3, right.n)? {
        return Ok(None);
    }
    reads.extend([2, 3]);
    let (a_scale, b_scale) = (reads.len() - 2, reads.len() - 1);
    let Ok(bias) = bias(l, 6, right.n, &mut reads) else { return Ok(None) };
    let finish = Finish::Floats { a_scale: Some(a_scale), b_scale, bias, alpha: 1.0 };
    Ok(Some(lowered(Rows { name: "qgemm-f32", m, right, left, finish }, reads)))
}

/// `DynamicQuantizeMatMul`.
pub(super) fn dynamic(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let Some((m, right)) = right(l, &Operands { b: 1, a_zero: 0, b_zero: 3 })? else { return Ok(None) };
    if !vector(l, 2, right.n)? {
        return Ok(None);
    }
    let mut reads = vec![0, 2];
    let Ok(bias) = bias(l, 4, right.n, &mut reads) else { return Ok(None) };
    let finish = Finish::Floats { a_scale: None, b_scale: 1, bias, alpha: 1.0 };
    Ok(Some(lowered(Rows { name: "qgemm-dynamic-f32", m, right, left: Left::Floats, finish }, reads)))
}

/// Scales of the operands and the parameters of the result, constants all: `a · b · alpha / y` a column.
fn requantisation(
    l: &Lowering<'_>,
    (a, b, y): (usize, usize, usize),
    n: usize,
    alpha: f32,
) -> Result<Option<(Vec<f32>, Codes)>, OpError> {
    let (Some(a), Some(b), Some(s)) = (l.constant(a), l.constant(b), l.constant(y)) else { return Ok(None) };
    if a.len() != 1 || s.len() != 1 || (b.len() != 1 && (b.len() != n || b.shape().len() != 1)) {
        return Ok(None);
    }
    let (zero, dtype) = match (l.has(y + 1), l.constant(y + 1)) {
        (true, None) => return Ok(None),
        (true, Some(z)) if z.len() == 1 => (codes(z, "y")?[0], z.dtype()),
        (true, Some(_)) => return Ok(None),
        (false, _) => (0, l.dtype(0).unwrap_or(DType::U8)),
    };
    if !matches!(dtype, DType::U8 | DType::I8) {
        return Ok(None);
    }
    let (low, high) = range_of(dtype)?;
    let first = |t: &Tensor| t.data().to_f64()[0] as f32;
    let (a, s, b) = (first(a), first(s), b.data().to_f64());
    let scale = (0..n).map(|j| a * (b[if b.len() == 1 { 0 } else { j }] as f32 * alpha) / s).collect();
    Ok(Some((scale, Codes { zero, low, high })))
}

/// `QLinearMatMul`.
pub(super) fn qlinear(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let mut reads = vec![0];
    let Some((m, right, left)) = operands(l, &Operands { b: 3, a_zero: 2, b_zero: 5 }, &mut reads)? else {
        return Ok(None);
    };
    let Some((scale, codes)) = requantisation(l, (1, 4, 6), right.n, 1.0)? else { return Ok(None) };
    let finish = Finish::Codes { scale, codes, bias: Vec::new() };
    Ok(Some(lowered(Rows { name: "qgemm-q8", m, right, left, finish }, reads)))
}

/// `QGemm`.
pub(super) fn gemm(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (m, k, n) = gemm_shape(l.attrs, l.shape(0)?, l.shape(3)?)?;
    let (ta, tb) = (l.attrs.flag("transA", false)?, l.attrs.flag("transB", false)?);
    let (Some(b), Some(flip)) = (l.constant(3), l.dtype(0).map(|t| t == DType::I8)) else { return Ok(None) };
    let zero = match (l.has(5), l.constant(5)) {
        (true, None) => return Ok(None),
        (_, z) => z.map(|z| &**z),
    };
    if ta || !matches!(l.dtype(0), Some(DType::U8 | DType::I8)) {
        return Ok(None);
    }
    let at = |kk: usize, j: usize| if tb { j * k + kk } else { kk * n + j };
    let Some(right) = Right::of(b, zero, k, n, at)? else { return Ok(None) };
    let mut reads = vec![0];
    let zero = match l.has(2) {
        true if l.shape(2)?.iter().product::<usize>() == 1 => {
            reads.push(2);
            Some(1)
        }
        true => return Ok(None),
        false => None,
    };
    let left = Left::Codes { flip, zero };
    let bias = match (l.has(6), l.constant(6)) {
        (false, _) => Vec::new(),
        (true, Some(c)) if c.len() == n && c.shape().last() == Some(&n) => codes(c, "C")?,
        _ => return Ok(None),
    };
    let alpha = l.attrs.float("alpha", 1.0)?;
    let finish = if l.has(7) {
        let Some((scale, codes)) = requantisation(l, (1, 4, 7), n, alpha)? else { return Ok(None) };
        Finish::Codes { scale, codes, bias }
    } else {
        if !bias.is_empty() || !vector(l, 1, 1)? || !vector(l, 4, n)? {
            return Ok(None);
        }
        reads.extend([1, 4]);
        let (a, b) = (reads.len() - 2, reads.len() - 1);
        Finish::Floats { a_scale: Some(a), b_scale: b, bias: None, alpha }
    };
    Ok(Some(lowered(Rows { name: "qgemm-q8", m, right, left, finish }, reads)))
}
