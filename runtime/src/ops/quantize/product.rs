//! Kernels of 8-bit matrix products with a constant right operand, packed once.
use std::sync::Arc;

use hone_gpu::codes as gpu;
use hone_kernels::epilogue::{self, Activation, Epilogue};
use hone_kernels::qbins::{self, Bins};
use hone_kernels::qgemm::{self, Columns, Problem, Requant, Scale, Terms};
use hone_kernels::quantize::{Codes, extent, of_u8};
use hone_kernels::threads::Pool;

use super::linear::range_to_affine;
use super::matmul::{Product, gemm_shape};
use super::{codes, quantised_as_it_comes, range_of};
use crate::ops::OpError;
use crate::ops::conv::activation;
use crate::plan::{At, Io, Kept, Kernel, Lowered, Lowering, Reads, Recorded, bytes};
use crate::tensor::{DType, Tensor};

/// Rows of the left operand taken together: their products stay in the nearest caches until they are scaled.
const ROWS: usize = 48;

/// A packed matrix `[K, N]`, or several of one after the other, in the form that this CPU multiplies fastest.
pub(super) struct Weights {
    n: usize,
    k: usize,
    /// The last element says in which form.
    packed: Arc<Kept<i8>>,
}

/// As [`qgemm::pack`] makes it.
const PANELS: i8 = 0;

/// As [`qbins::pack`] makes it.
const BINS: i8 = 1;

impl Weights {
    /// Of `groups` matrices, whose element `(k, j)` of group `g` is `flip` by bits beside the one of `w` at `at(g, k, j)`. `numbers` are all
    /// that the places depend on.
    pub(super) fn of(
        l: &Lowering<'_>,
        w: &Arc<Tensor>,
        flip: i8,
        (groups, n, k): (usize, usize, usize),
        numbers: &[usize],
        at: impl Fn(usize, usize, usize) -> usize + Send + 'static,
    ) -> Weights {
        let (numbers, size) = ([&[groups, n, k], numbers].concat(), qgemm::packed_len(n, k));
        let from = w.clone();
        let packed = l.packed("codes", &[w], &numbers, groups * size + 1, move || {
            let (w, mut sums) = (bytes(&from), vec![0; n]);
            let mut panels = vec![0; groups * size + 1];
            for (g, out) in panels[..groups * size].chunks_mut(size.max(1)).enumerate() {
                sums.fill(0);
                qgemm::pack(n, k, |kk, j| w[at(g, kk, j)] ^ flip, out, &mut sums);
            }
            if groups == 1 && qbins::preferred() {
                let mut out = vec![0; qbins::most_len(n, k)];
                if let Some(len) = qbins::pack(n, k, &panels[..size], &mut out) {
                    out.truncate(len);
                    out.push(BINS);
                    out.shrink_to_fit();
                    return out;
                }
            }
            panels[groups * size] = PANELS;
            panels
        });
        Weights { n, k, packed }
    }

    pub(super) fn right(&self) -> qgemm::Right<'_> {
        match self.packed.split_last() {
            Some((&BINS, w)) => qgemm::Right::Bins(Bins::new(self.n, self.k, w)),
            Some((_, w)) => qgemm::Right::Panels(w),
            None => qgemm::Right::Panels(&[]),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.packed.len()
    }
}

/// The sums of the columns of what [`Weights::of`] packs, those of each group one after the other.
pub(super) fn sums_of(
    l: &Lowering<'_>,
    w: &Arc<Tensor>,
    flip: i8,
    (groups, n, k): (usize, usize, usize),
    numbers: &[usize],
    at: impl Fn(usize, usize, usize) -> usize + Send + 'static,
) -> Arc<Kept<i32>> {
    let (numbers, from) = ([&[groups, n, k], numbers].concat(), w.clone());
    let sums = l.packed("sums of codes", &[w], &numbers, groups * n, move || {
        let (w, mut sums) = (bytes(&from), vec![0i32; groups * n]);
        for (g, sums) in sums.chunks_mut(n.max(1)).enumerate() {
            for kk in 0..k {
                sums.iter_mut().enumerate().for_each(|(j, s)| *s += i32::from(w[at(g, kk, j)] ^ flip));
            }
        }
        sums
    });
    l.now(sums)
}

/// Where a matrix lies in a constant: element `(k, j)` at `start + k · row + j · column`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Lie {
    pub(in crate::ops) start: usize,
    pub(in crate::ops) row: usize,
    pub(in crate::ops) column: usize,
}

impl Lie {
    /// Row after row of `n`, and nothing else.
    pub(in crate::ops) fn rows(n: usize) -> Lie {
        Lie { start: 0, row: n, column: 1 }
    }

    fn at(self, k: usize, j: usize) -> usize {
        self.start + k * self.row + j * self.column
    }

    fn numbers(self) -> [usize; 3] {
        [self.start, self.row, self.column]
    }
}

/// A constant right operand `[K, N]`: packed, with its zero points and the sums of its columns.
pub(in crate::ops) struct Right {
    k: usize,
    n: usize,
    packed: Weights,
    /// Zero points in the packed codes, one a column.
    zero: Vec<i32>,
    /// Sum of each column less its zero points.
    sums: Vec<i32>,
    /// Whether some zero point is not 0.
    centred: bool,
}

impl Right {
    /// Packs `[K, N]` that lies so in `b`. `None` for types the kernels do not take.
    pub(in crate::ops) fn of(
        l: &Lowering<'_>,
        b: &Arc<Tensor>,
        zero: Option<&Tensor>,
        k: usize,
        n: usize,
        lie: Lie,
    ) -> Result<Option<Right>, OpError> {
        let flip = match b.dtype() {
            DType::I8 => 0,
            // 128 less, so that it fits the kernels' signed side.
            DType::U8 => i8::MIN,
            _ => return Ok(None),
        };
        if k * n > 0 && lie.at(k - 1, n - 1) >= b.len() {
            return Ok(None);
        }
        let given = zero.map_or(Ok(vec![0]), |z| codes(z, "zero point of B"))?;
        if given.len() != 1 && given.len() != n {
            return Ok(None);
        }
        let (sizes, at) = ((1, n, k), move |_: usize, kk: usize, j: usize| lie.at(kk, j));
        let shift = if flip == 0 { 0 } else { 128 };
        let zero: Vec<i32> = (0..n).map(|j| given[if given.len() == 1 { 0 } else { j }] - shift).collect();
        let sums = sums_of(l, b, flip, sizes, &lie.numbers(), at);
        let less = |(s, z): (&i32, &i32)| s.wrapping_sub((k as i32).wrapping_mul(*z));
        let sums = sums.iter().zip(&zero).map(less).collect();
        let centred = zero.iter().any(|&z| z != 0);
        let packed = Weights::of(l, b, flip, sizes, &lie.numbers(), at);
        Ok(Some(Right { k, n, packed, zero, sums, centred }))
    }

    pub(in crate::ops) fn bytes(&self) -> usize {
        self.packed.bytes() + 8 * self.n
    }

    /// Floats of scratch that [`Right::product`] needs for `m` rows, whose codes are signed or not.
    pub(in crate::ops) fn scratch(&self, m: usize, signed: bool) -> usize {
        let rows = ROWS.min(m);
        let centred = if self.centred { rows * self.n + rows } else { 0 };
        let flipped = if signed { (m * self.k).div_ceil(4) } else { 0 };
        self.n + centred + flipped
    }

    /// `(a - zero) · b` for `m` rows of codes `a`, plus `bias` in units of both scales, or nothing.
    pub(super) fn product(&self, pool: &Pool, m: usize, a: &Codes8<'_>, bias: &[i32], work: &mut [f32], to: To<'_>) {
        let (k, n) = (self.k, self.n);
        let (col, work) = work.split_at_mut(n);
        let col: &mut [i32] = bytemuck::cast_slice_mut(col);
        let (mut codes, mut zero, mut rest) = (a.codes, a.zero, work);
        if a.signed {
            // The product takes `u8`: signed codes are 128 more there, and so is their zero point.
            let (flipped, after) = std::mem::take(&mut rest).split_at_mut((m * k).div_ceil(4));
            let flipped: &mut [u8] = bytemuck::cast_slice_mut(flipped);
            flipped.iter_mut().zip(a.codes).for_each(|(f, c)| *f = c ^ 0x80);
            (codes, zero, rest) = (&*flipped, zero + 128, after);
        }
        for (j, c) in col.iter_mut().enumerate() {
            *c = bias.get(j).copied().unwrap_or(0).wrapping_sub(zero.wrapping_mul(self.sums[j]));
        }
        let problem = Problem { m, k, n, a: codes, a_stride: k, b: self.packed.right() };
        if !self.centred {
            return match to {
                To::Sums(y) => qgemm::product_sums(pool, &problem, col, y),
                To::Floats { scale, bias, epilogue, y } => {
                    let columns = Columns { offset: col, scale };
                    qgemm::product_floats(pool, &problem, &columns, bias, &epilogue, y);
                }
                To::Codes { scale, mut codes, y } => {
                    // The product makes `u8`.
                    let signed = codes.low < 0;
                    if signed {
                        codes = Codes { zero: codes.zero + 128, low: codes.low + 128, high: codes.high + 128 };
                    }
                    let columns = Columns { offset: col, scale };
                    qgemm::product_codes(pool, &problem, &columns, &Requant { codes, table: None, add: None }, y);
                    if signed {
                        y.iter_mut().for_each(|y| *y ^= 0x80);
                    }
                }
            };
        }
        // Σ (a - za)(b - zb) = Σ a b - za (Σ b - K zb) - zb Σ a, the second of which is in `col`; in blocks, so that the sums
        // are at hand when they are scaled.
        let rows = ROWS.min(m);
        let (sums, row_sums) = rest.split_at_mut(rows * n);
        let (sums, row_sums): (&mut [i32], &mut [i32]) =
            (bytemuck::cast_slice_mut(sums), bytemuck::cast_slice_mut(row_sums));
        let mut to = to;
        for first in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - first);
            let block = &codes[first * k..][..rows * k];
            let (sums, left) = (&mut sums[..rows * n], &mut row_sums[..rows]);
            qgemm::product_sums(pool, &Problem { m: rows, a: block, ..problem }, col, sums);
            // Rows of nothing have no sums.
            left.fill(0);
            of_u8::sums(block, k, left);
            left.iter_mut().for_each(|s| *s = -*s);
            let terms = Terms { row: &[], col: &[], left, right: &self.zero };
            let part = first * n..first * n + rows * n;
            match &mut to {
                To::Sums(y) => {
                    qgemm::add_terms(n, &terms, sums);
                    y[part].copy_from_slice(sums);
                }
                To::Floats { scale, bias, epilogue, y } => {
                    let y = &mut y[part.clone()];
                    qgemm::to_floats(n, &terms, Scale::Columns(scale), bias.unwrap_or_default(), sums, y);
                    if let Some(z) = epilogue.residual {
                        y.iter_mut().zip(&z[part]).for_each(|(y, z)| *y += z);
                    }
                    epilogue::apply(epilogue.activation, y);
                }
                To::Codes { scale, codes, y } => {
                    qgemm::requantise(n, &terms, Scale::Columns(scale), *codes, sums, &mut y[part]);
                }
            }
        }
    }

    /// Floats of scratch that [`Right::dynamic`] needs for `m` rows.
    pub(in crate::ops) fn dynamic_scratch(&self, m: usize) -> usize {
        self.scratch(m, false) + self.n + (m * self.k).div_ceil(4)
    }

    /// `y = x · b · scale + bias`, where `x: f32 [M, K]` is quantised as it comes, with one scale and zero point for all of it,
    /// and `scale` has an entry a column of `b`.
    pub(in crate::ops) fn dynamic(
        &self,
        pool: &Pool,
        m: usize,
        x: &[f32],
        scale: &[f32],
        bias: Option<&[f32]>,
        scratch: &mut [f32],
        y: &mut [f32],
    ) {
        let (scaled, rest) = scratch.split_at_mut(self.n);
        let (work, codes) = rest.split_at_mut(self.scratch(m, false));
        let codes: &mut [u8] = &mut bytemuck::cast_slice_mut(codes)[..m * self.k];
        let mut e = [0.0; 2];
        extent(x, &mut e);
        let (x_scale, zero) = range_to_affine(e[0], e[1]);
        of_u8::quantise(x, x_scale, Codes { zero, low: 0, high: 255 }, codes);
        scaled.iter_mut().zip(scale).for_each(|(t, s)| *t = x_scale * s);
        self.product(
            pool,
            m,
            &Codes8 { codes, signed: false, zero },
            &[],
            work,
            To::Floats { scale: scaled, bias, epilogue: Epilogue::default(), y },
        );
    }
}

/// Rows of 8-bit codes.
pub(super) struct Codes8<'a> {
    pub(super) codes: &'a [u8],
    /// Whether the bytes are `i8`.
    pub(super) signed: bool,
    pub(super) zero: i32,
}

/// What becomes of the sums of a product; scales have an entry a column.
pub(super) enum To<'a> {
    Sums(&'a mut [i32]),
    Floats { scale: &'a [f32], bias: Option<&'a [f32]>, epilogue: Epilogue<'a>, y: &'a mut [f32] },
    Codes { scale: &'a [f32], codes: Codes, y: &'a mut [u8] },
}

/// The left operand: whether its codes are signed, and the slot of their zero point.
struct Left {
    signed: bool,
    zero: Option<usize>,
}

/// What becomes of the sums.
enum Finish {
    /// They are the result.
    Integers,
    /// Scaled: the slots of the scales of the operands, of the bias and of a tensor to add, and what comes last.
    Floats {
        a_scale: usize,
        b_scale: usize,
        bias: Option<usize>,
        residual: Option<usize>,
        alpha: f32,
        activation: Activation,
    },
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

impl Kernel for Rows {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let signed = self.left.signed;
        let zero = self.left.zero.map_or(0, |slot| code_at(reads, slot, signed));
        let a = Codes8 { codes: reads.bytes(0), signed, zero };
        let of = |work, bias: &[i32], to| self.right.product(pool, self.m, &a, bias, work, to);
        match &self.finish {
            Finish::Integers => of(scratch, &[], To::Sums(writes.of(0))),
            Finish::Floats { a_scale, b_scale, bias, residual, alpha, activation } => {
                let (scale, work) = scratch.split_at_mut(self.right.n);
                let (a, b) = (reads.f32(*a_scale)[0], reads.f32(*b_scale));
                for (j, scale) in scale.iter_mut().enumerate() {
                    *scale = a * (b[if b.len() == 1 { 0 } else { j }] * alpha);
                }
                let [bias, residual] = [bias, residual].map(|slot| slot.map(|slot| reads.f32(slot)));
                let epilogue = Epilogue { residual, after: false, activation: *activation };
                of(work, &[], To::Floats { scale, bias, epilogue, y: writes.f32(0) });
            }
            Finish::Codes { scale, codes, bias } => {
                of(scratch, bias, To::Codes { scale, codes: *codes, y: writes.bytes(0) });
            }
        }
    }
}

/// A left operand of floats, quantised as it comes.
struct Dynamic {
    m: usize,
    right: Right,
    bias: Option<usize>,
}

impl Kernel for Dynamic {
    fn name(&self) -> &'static str {
        "qgemm-dynamic-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (scale, work) = scratch.split_at_mut(self.right.n);
        let b = reads.f32(1);
        for (j, scale) in scale.iter_mut().enumerate() {
            *scale = b[if b.len() == 1 { 0 } else { j }];
        }
        let bias = self.bias.map(|slot| reads.f32(slot));
        self.right.dynamic(pool, self.m, reads.f32(0), scale, bias, work, writes.f32(0));
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
    let signed = match l.dtype(0) {
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
    Ok(Some((m, right, Left { signed, zero })))
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
    Ok(Right::of(l, b, zero, k, n, Lie::rows(n))?.map(|r| (m, r)))
}

fn lowered(rows: Rows, reads: Vec<usize>) -> Lowered {
    let scales = if matches!(rows.finish, Finish::Floats { .. }) { rows.right.n } else { 0 };
    let (bytes, scratch) = (rows.right.bytes(), rows.right.scratch(rows.m, rows.left.signed) + scales);
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

/// `MatMulIntegerToFloat`, and its form with a residual at input 7 and an activation.
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
    let residual = l.has(7).then(|| {
        reads.push(7);
        reads.len() - 1
    });
    if l.has(7) && l.dtype(7) != Some(DType::F32) {
        return Ok(None);
    }
    let finish = Finish::Floats { a_scale, b_scale, bias, residual, alpha: 1.0, activation: activation(l.attrs)? };
    Ok(Some(lowered(Rows { name: "qgemm-f32", m, right, left, finish }, reads)))
}

/// Codes `[K, N]` of a constant, from element `first` on, less their zero points, one a column: as a GPU has them, and the sums
/// of their columns. `None` where a difference is no signed byte; of unsigned codes around 128 they are.
pub(in crate::ops) fn less_zeros(
    l: &Lowering<'_>,
    b: &Arc<Tensor>,
    first: usize,
    (k, n): (usize, usize),
    zeros: Vec<i32>,
) -> Option<(At, Arc<Kept<i32>>)> {
    let numbers: Vec<usize> = [k, n, first].into_iter().chain(zeros.iter().map(|&z| z as usize)).collect();
    let from = b.clone();
    let less = move |i: usize| {
        let q = bytes(&from)[first + i];
        let q = if from.dtype() == DType::U8 { i32::from(q as u8) } else { i32::from(q) };
        q - zeros[i % n]
    };
    // The sum of each column, or nothing.
    let of = less.clone();
    let sums = l.packed("sums of codes less their zero points", &[b], &numbers, n, move || {
        let mut sums = vec![0i32; n];
        for i in 0..k * n {
            let Ok(q) = i8::try_from(of(i)) else { return Vec::new() };
            sums[i % n] += i32::from(q);
        }
        sums
    });
    let sums = l.now(sums);
    let packed = move || gpu::pack(k, k, n, |kk, j| less(kk * n + j) as i8);
    let packed = l.image("gpu codes less their zero points", &[b], &numbers, gpu::packed_len(k, k, n), packed);
    (sums.len() == n).then_some((packed, sums))
}

/// [`to_float`] on a GPU: weights without zero points.
pub(super) fn to_float_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let signed = match l.dtype(0) {
        Some(DType::U8) => false,
        Some(DType::I8) => true,
        _ => return Ok(None),
    };
    let Some(b) = l.constant(1).filter(|b| b.shape().len() == 2) else { return Ok(None) };
    let zeros = match (l.has(5), l.constant(5)) {
        (true, None) => return Ok(None),
        (true, Some(z)) => codes(z, "b")?,
        (false, _) => vec![0],
    };
    let &[k, n] = b.shape() else { return Ok(None) };
    if !matches!(b.dtype(), DType::U8 | DType::I8) || zeros.len() != 1 && zeros.len() != n {
        return Ok(None);
    }
    let zeros: Vec<i32> = (0..n).map(|j| zeros[if zeros.len() == 1 { 0 } else { j }]).collect();
    let Some((packed, sums_of_columns)) = less_zeros(l, b, 0, (k, n), zeros) else { return Ok(None) };
    let m = l.shape(0)?.iter().product::<usize>().checked_div(k).unwrap_or(0);
    let told = l.has(4);
    let one = |i: usize| l.shape(i).is_ok_and(|s| s.iter().product::<usize>() == 1);
    let zero_fits = !told || one(4) && l.dtype(4) == l.dtype(0);
    let floats = [2, 3, 6, 7].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let bias_fits = !l.has(6) || l.shape(6)? == [n];
    let Some(b_scale) = l.constant(3).filter(|_| zero_fits && floats && bias_fits) else { return Ok(None) };
    if l.shape(0)?.last() != Some(&k) || !one(2) || (b_scale.len() != 1 && b_scale.len() != n) {
        return Ok(None);
    }
    let scale: Vec<f32> =
        (0..n).map(|j| b_scale.as_f32().map(|s| s[if s.len() == 1 { 0 } else { j }])).collect::<Result<_, _>>()?;
    let zero = if told { gpu::Zero::Told } else { gpu::Zero::Known(0) };
    let factor = if told { 1 } else { gpu::factor(signed, 0) };
    let offset = sums_of_columns.iter().map(|s| s.wrapping_mul(factor));
    let offset = At::bytes(offset.flat_map(i32::to_le_bytes).collect());
    let mut out = Recorded::default();
    let sums = out.scratch(4 * m * n);
    let mut at = vec![At::In(0), packed, offset];
    at.extend(told.then_some(At::In(4)));
    at.push(sums.clone());
    let call = gpu::Sums { m, n, k, signed, left: gpu::Left::Matrix, zero }.call();
    let of = gpu::Of::Floats { factor: true, bias: l.has(6), residual: l.has(7), activation: activation(l.attrs)? };
    let mut last = vec![sums, At::floats(&scale), At::In(2)];
    last.extend([6, 7].into_iter().filter(|&i| l.has(i)).map(At::In));
    last.push(At::Out(0));
    let finish = gpu::Finish { elements: m * n, columns: n, of }.call();
    Ok(out.and(call, at).and_then(|r| r.and(finish, last)))
}

/// A product on a GPU of unsigned codes whose scale and zero point are there, with [`less_zeros`]: `y = (x - zero) · w · scale ·
/// scales + bias`.
pub(in crate::ops) fn told_product(
    mut out: Recorded,
    (m, k, n): (usize, usize, usize),
    [codes, scale, zero]: [At; 3],
    (w, sums): (At, &[i32]),
    scales: &[f32],
    bias: Option<At>,
    y: At,
) -> Option<Recorded> {
    let made = out.scratch(4 * m * n);
    let offset = At::bytes(sums.iter().flat_map(|s| s.to_le_bytes()).collect());
    let product = gpu::Sums { m, n, k, signed: false, left: gpu::Left::Matrix, zero: gpu::Zero::Told };
    let of = gpu::Of::Floats { factor: true, bias: bias.is_some(), residual: false, activation: Activation::None };
    let finish = gpu::Finish { elements: m * n, columns: n, of };
    let mut at = vec![made.clone(), At::floats(scales), scale];
    at.extend(bias);
    at.push(y);
    out.and(product.call(), vec![codes, w, offset, zero, made])?.and(finish.call(), at)
}

/// `DynamicQuantizeMatMul` on a GPU.
pub(super) fn dynamic_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let Some(b) = l.constant(1).filter(|b| b.shape().len() == 2 && matches!(b.dtype(), DType::U8 | DType::I8)) else {
        return Ok(None);
    };
    let &[k, n] = b.shape() else { return Ok(None) };
    let zeros = match (l.has(3), l.constant(3)) {
        (true, None) => return Ok(None),
        (true, Some(z)) => codes(z, "b")?,
        (false, _) => vec![0],
    };
    let floats = [0, 2, 4].into_iter().all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let bias_fits = !l.has(4) || l.shape(4)? == [n];
    let Some(scale) = l.constant(2).filter(|_| floats && bias_fits) else { return Ok(None) };
    let (scale, x) = (scale.as_f32()?, l.shape(0)?);
    let fits = |len: usize| len == 1 || len == n;
    if x.last() != Some(&k) || k == 0 || !fits(scale.len()) || !fits(zeros.len()) {
        return Ok(None);
    }
    let of = |len: usize, j: usize| if len == 1 { 0 } else { j };
    let zeros: Vec<i32> = (0..n).map(|j| zeros[of(zeros.len(), j)]).collect();
    let scales: Vec<f32> = (0..n).map(|j| scale[of(scale.len(), j)]).collect();
    let m = x.iter().product::<usize>() / k;
    let Some((w, sums)) = less_zeros(l, b, 0, (k, n), zeros) else { return Ok(None) };
    let mut out = Recorded::default();
    let x = [out.scratch(m * k), out.scratch(4), out.scratch(4)];
    let bias = l.has(4).then_some(At::In(4));
    let quantised = quantised_as_it_comes(out, m * k, At::In(0), x.clone());
    Ok(quantised.and_then(|out| told_product(out, (m, k, n), x, (w, &sums), &scales, bias, At::Out(0))))
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
    let (bytes, scratch) = (right.bytes(), right.n + right.dynamic_scratch(m));
    Ok(Some(Lowered::new(Dynamic { m, right, bias }, reads).with_scratch(scratch).with_weights(bytes)))
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
    let (Some(b), Some(signed)) = (l.constant(3), l.dtype(0).map(|t| t == DType::I8)) else { return Ok(None) };
    let zero = match (l.has(5), l.constant(5)) {
        (true, None) => return Ok(None),
        (_, z) => z.map(|z| &**z),
    };
    if ta || !matches!(l.dtype(0), Some(DType::U8 | DType::I8)) {
        return Ok(None);
    }
    let lie = if tb { Lie { start: 0, row: 1, column: k } } else { Lie::rows(n) };
    let Some(right) = Right::of(l, b, zero, k, n, lie)? else { return Ok(None) };
    let mut reads = vec![0];
    let zero = match l.has(2) {
        true if l.shape(2)?.iter().product::<usize>() == 1 && l.dtype(2) == l.dtype(0) => {
            reads.push(2);
            Some(1)
        }
        true => return Ok(None),
        false => None,
    };
    let left = Left { signed, zero };
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
        Finish::Floats { a_scale: a, b_scale: b, bias: None, residual: None, alpha, activation: Activation::None }
    };
    Ok(Some(lowered(Rows { name: "qgemm-q8", m, right, left, finish }, reads)))
}
