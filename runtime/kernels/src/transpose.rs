//! Transposes of matrices that lie one after another: channels before space to channels after it, and back.
//!
//! `[N, C, P]` to `[N, P, C]` is a transpose of `C` rows and `P` columns, the way back one of `P` rows and `C` columns.

use crate::gemm::{Out, share};
use crate::isa::{Isa, on_isa};
use crate::threads::Pool;

/// Bytes written below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;
/// Columns whose results are written side by side: a whole line of the cache of each row read.
const COLUMNS: usize = 64;

/// An element that can be transposed.
pub trait Element: Copy + Default + Send + Sync {
    /// Rows and columns of a block that is transposed in registers.
    #[doc(hidden)]
    const BLOCK: usize;

    /// Transposes one block of `BLOCK` rows of `x`, `x_stride` apart, to rows of `y`, `y_stride` apart.
    ///
    /// # Safety
    /// Both blocks exist, and nobody else is at that of `y`.
    #[doc(hidden)]
    unsafe fn block(x: *const Self, x_stride: usize, y: *mut Self, y_stride: usize);

    /// `y[i][r] = x[r][i]` for two rows.
    #[doc(hidden)]
    fn interleave_2(isa: Isa, x: [&[Self]; 2], y: &mut [Self]);
    /// The same for three.
    #[doc(hidden)]
    fn interleave_3(isa: Isa, x: [&[Self]; 3], y: &mut [Self]);
    /// The same for four.
    #[doc(hidden)]
    fn interleave_4(isa: Isa, x: [&[Self]; 4], y: &mut [Self]);
    /// `y[r][i] = x[i][r]` for two columns.
    #[doc(hidden)]
    fn apart_2(isa: Isa, x: &[Self], y: [&mut [Self]; 2]);
    /// The same for three.
    #[doc(hidden)]
    fn apart_3(isa: Isa, x: &[Self], y: [&mut [Self]; 3]);
    /// The same for four.
    #[doc(hidden)]
    fn apart_4(isa: Isa, x: &[Self], y: [&mut [Self]; 4]);
}

/// `y[n][j][i] = x[n][i][j]` for `x: [batch, rows, columns]`, on all threads of `pool`.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn transpose<T: Element>(pool: &Pool, batch: usize, rows: usize, columns: usize, x: &[T], y: &mut [T]) {
    let len = rows * columns;
    assert!(x.len() >= batch * len, "x is shorter than its shape says");
    assert!(y.len() >= batch * len, "y is shorter than its shape says");
    if len == 0 {
        return;
    }
    if rows == 1 || columns == 1 {
        y[..batch * len].copy_from_slice(&x[..batch * len]);
        return;
    }
    if rows.min(columns) <= FEW {
        return few(pool, batch, rows, columns, x, y);
    }
    let groups = columns.div_ceil(COLUMNS);
    let small = batch * len * size_of::<T>() < WORTH_SHARING;
    let parts = if small { 1 } else { (4 * pool.threads()).min(batch * groups) };
    let out = Out(y.as_mut_ptr());
    pool.run(parts, &|i| {
        for group in share(batch * groups, parts, i) {
            let (image, first) = (group / groups, group % groups * COLUMNS);
            let x = &x[image * len..][..len];
            // SAFETY: y holds all images, and no other call has these columns of x, rows of y.
            unsafe { strip(rows, columns, first, x, out.start().add(image * len)) };
        }
    });
}

/// Most rows, or columns, that are interleaved, or taken apart, as whole.
const FEW: usize = 4;
/// Elements of a row that are interleaved by one call.
const STRETCH: usize = 4096;

/// [`transpose`] of two to four rows, or columns: the colours of an image.
fn few<T: Element>(pool: &Pool, batch: usize, rows: usize, columns: usize, x: &[T], y: &mut [T]) {
    let (long, isa) = (rows.max(columns), Isa::best());
    let stretches = long.div_ceil(STRETCH);
    let out = Out(y.as_mut_ptr());
    pool.run(batch * stretches, &|i| {
        let (image, first) = (i / stretches, i % stretches * STRETCH);
        let n = STRETCH.min(long - first);
        let x = &x[image * rows * columns..][..rows * columns];
        let y = out.start().wrapping_add(image * rows * columns);
        if rows < columns {
            // SAFETY: these rows of the result are written by no other call.
            let y = unsafe { std::slice::from_raw_parts_mut(y.add(first * rows), n * rows) };
            let row = |r: usize| &x[r * columns + first..][..n];
            interleave_few(isa, rows, row, y);
        } else {
            // SAFETY: these parts of the rows of the result are written by no other call, and do not overlap.
            let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(y.add(r * rows + first), n) };
            apart_few(isa, &x[first * columns..][..n * columns], columns, row);
        }
    });
}

/// `y[i][r] = row(r)[i]` for two to four rows.
pub(crate) fn interleave_few<'a, T: Element + 'a>(isa: Isa, rows: usize, row: impl Fn(usize) -> &'a [T], y: &mut [T]) {
    match rows {
        2 => T::interleave_2(isa, [row(0), row(1)], y),
        3 => T::interleave_3(isa, [row(0), row(1), row(2)], y),
        _ => T::interleave_4(isa, [row(0), row(1), row(2), row(3)], y),
    }
}

/// `row(r)[i] = x[i][r]` for two to four columns.
pub(crate) fn apart_few<'a, T: Element + 'a>(
    isa: Isa,
    x: &[T],
    columns: usize,
    mut row: impl FnMut(usize) -> &'a mut [T],
) {
    match columns {
        2 => T::apart_2(isa, x, [row(0), row(1)]),
        3 => T::apart_3(isa, x, [row(0), row(1), row(2)]),
        _ => T::apart_4(isa, x, [row(0), row(1), row(2), row(3)]),
    }
}

/// `y[i][r] = x[r][i]`.
#[inline(always)]
fn interleave<T: Copy, const R: usize>(x: [&[T]; R], y: &mut [T]) {
    let n = x[0].len();
    let x = x.map(|x| &x[..n]);
    for (i, y) in y.as_chunks_mut::<R>().0[..n].iter_mut().enumerate() {
        for r in 0..R {
            y[r] = x[r][i];
        }
    }
}

/// `y[r][i] = x[i][r]`.
#[inline(always)]
fn apart<T: Copy, const R: usize>(x: &[T], y: [&mut [T]; R]) {
    for (i, x) in x.as_chunks::<R>().0.iter().enumerate() {
        for r in 0..R {
            y[r][i] = x[r];
        }
    }
}

macro_rules! few_of {
    ($module:ident, $t:ty) => {
        mod $module {
            use super::*;
            on_isa! { pub(super) fn interleave_2 = interleave::<$t, 2>; (x: [&[$t]; 2], y: &mut [$t]) }
            on_isa! { pub(super) fn interleave_3 = interleave::<$t, 3>; (x: [&[$t]; 3], y: &mut [$t]) }
            on_isa! { pub(super) fn interleave_4 = interleave::<$t, 4>; (x: [&[$t]; 4], y: &mut [$t]) }
            on_isa! { pub(super) fn apart_2 = apart::<$t, 2>; (x: &[$t], y: [&mut [$t]; 2]) }
            on_isa! { pub(super) fn apart_3 = apart::<$t, 3>; (x: &[$t], y: [&mut [$t]; 3]) }
            on_isa! { pub(super) fn apart_4 = apart::<$t, 4>; (x: &[$t], y: [&mut [$t]; 4]) }
        }
    };
}
few_of!(of_f32, f32);
few_of!(of_u8, u8);

/// Columns `first..first + COLUMNS` of one matrix.
///
/// # Safety
/// `y` has room for the matrix, and nobody else is at these rows of it.
#[inline]
unsafe fn strip<T: Element>(rows: usize, columns: usize, first: usize, x: &[T], y: *mut T) {
    let last = columns.min(first + COLUMNS);
    let whole_rows = rows / T::BLOCK * T::BLOCK;
    let whole_columns = first + (last - first) / T::BLOCK * T::BLOCK;
    for i in (0..whole_rows).step_by(T::BLOCK) {
        for j in (first..whole_columns).step_by(T::BLOCK) {
            // SAFETY: rows i.. and columns j.. of one block exist.
            unsafe { T::block(x.as_ptr().add(i * columns + j), columns, y.add(j * rows + i), rows) };
        }
    }
    let each = |i: usize, j: usize| {
        // SAFETY: element (j, i) of the result exists.
        unsafe { *y.add(j * rows + i) = x[i * columns + j] };
    };
    for j in first..last {
        let from = if j < whole_columns { whole_rows } else { 0 };
        for i in from..rows {
            each(i, j);
        }
    }
}

impl Element for f32 {
    const BLOCK: usize = 4;

    fn interleave_2(isa: Isa, x: [&[f32]; 2], y: &mut [f32]) {
        of_f32::interleave_2(isa, x, y);
    }
    fn interleave_3(isa: Isa, x: [&[f32]; 3], y: &mut [f32]) {
        of_f32::interleave_3(isa, x, y);
    }
    fn interleave_4(isa: Isa, x: [&[f32]; 4], y: &mut [f32]) {
        of_f32::interleave_4(isa, x, y);
    }
    fn apart_2(isa: Isa, x: &[f32], y: [&mut [f32]; 2]) {
        of_f32::apart_2(isa, x, y);
    }
    fn apart_3(isa: Isa, x: &[f32], y: [&mut [f32]; 3]) {
        of_f32::apart_3(isa, x, y);
    }
    fn apart_4(isa: Isa, x: &[f32], y: [&mut [f32]; 4]) {
        of_f32::apart_4(isa, x, y);
    }

    #[inline(always)]
    unsafe fn block(x: *const f32, x_stride: usize, y: *mut f32, y_stride: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise; every x86-64 has SSE2.
        unsafe {
            use std::arch::x86_64::*;
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| _mm_loadu_ps(x.add(i * x_stride)));
            let (p, q, r, s) =
                (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b), _mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(y, _mm_movelh_ps(p, r));
            _mm_storeu_ps(y.add(y_stride), _mm_movehl_ps(r, p));
            _mm_storeu_ps(y.add(2 * y_stride), _mm_movelh_ps(q, s));
            _mm_storeu_ps(y.add(3 * y_stride), _mm_movehl_ps(s, q));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise; every AArch64 has NEON.
        unsafe {
            use std::arch::aarch64::*;
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| vld1q_f32(x.add(i * x_stride)));
            let (p, q, r, s) = (vzip1q_f32(a, c), vzip2q_f32(a, c), vzip1q_f32(b, d), vzip2q_f32(b, d));
            vst1q_f32(y, vzip1q_f32(p, r));
            vst1q_f32(y.add(y_stride), vzip2q_f32(p, r));
            vst1q_f32(y.add(2 * y_stride), vzip1q_f32(q, s));
            vst1q_f32(y.add(3 * y_stride), vzip2q_f32(q, s));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        // SAFETY: the caller's promise.
        unsafe {
            plain::<f32, 4>(x, x_stride, y, y_stride);
        }
    }
}

impl Element for u8 {
    const BLOCK: usize = 8;

    fn interleave_2(isa: Isa, x: [&[u8]; 2], y: &mut [u8]) {
        of_u8::interleave_2(isa, x, y);
    }
    fn interleave_3(isa: Isa, x: [&[u8]; 3], y: &mut [u8]) {
        of_u8::interleave_3(isa, x, y);
    }
    fn interleave_4(isa: Isa, x: [&[u8]; 4], y: &mut [u8]) {
        of_u8::interleave_4(isa, x, y);
    }
    fn apart_2(isa: Isa, x: &[u8], y: [&mut [u8]; 2]) {
        of_u8::apart_2(isa, x, y);
    }
    fn apart_3(isa: Isa, x: &[u8], y: [&mut [u8]; 3]) {
        of_u8::apart_3(isa, x, y);
    }
    fn apart_4(isa: Isa, x: &[u8], y: [&mut [u8]; 4]) {
        of_u8::apart_4(isa, x, y);
    }

    #[inline(always)]
    unsafe fn block(x: *const u8, x_stride: usize, y: *mut u8, y_stride: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise; every x86-64 has SSE2.
        unsafe {
            use std::arch::x86_64::*;
            let [a, b, c, d, e, f, g, h] =
                [0, 1, 2, 3, 4, 5, 6, 7].map(|i| _mm_loadl_epi64(x.add(i * x_stride).cast()));
            let (ab, cd, ef, gh) =
                (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d), _mm_unpacklo_epi8(e, f), _mm_unpacklo_epi8(g, h));
            let (l, m) = (_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd));
            let (n, o) = (_mm_unpacklo_epi16(ef, gh), _mm_unpackhi_epi16(ef, gh));
            let pairs = [
                _mm_unpacklo_epi32(l, n),
                _mm_unpackhi_epi32(l, n),
                _mm_unpacklo_epi32(m, o),
                _mm_unpackhi_epi32(m, o),
            ];
            for (i, v) in pairs.into_iter().enumerate() {
                _mm_storel_epi64(y.add(2 * i * y_stride).cast(), v);
                _mm_storel_epi64(y.add((2 * i + 1) * y_stride).cast(), _mm_unpackhi_epi64(v, v));
            }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise; every AArch64 has NEON.
        unsafe {
            use std::arch::aarch64::*;
            let r: [uint8x8_t; 8] = std::array::from_fn(|i| vld1_u8(x.add(i * x_stride)));
            // Rows i and i + 4 side by side, three times: the order of the bits of the index is reversed, and back.
            let zip = |r: [uint8x8_t; 8]| -> [uint8x8_t; 8] {
                std::array::from_fn(|i| {
                    if i % 2 == 0 { vzip1_u8(r[i / 2], r[i / 2 + 4]) } else { vzip2_u8(r[i / 2], r[i / 2 + 4]) }
                })
            };
            for (i, v) in zip(zip(zip(r))).into_iter().enumerate() {
                vst1_u8(y.add(i * y_stride), v);
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        // SAFETY: the caller's promise.
        unsafe {
            plain::<u8, 8>(x, x_stride, y, y_stride);
        }
    }
}

/// # Safety
/// As [`Element::block`].
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn plain<T: Copy, const B: usize>(x: *const T, x_stride: usize, y: *mut T, y_stride: usize) {
    for i in 0..B {
        for j in 0..B {
            // SAFETY: the caller's promise.
            unsafe { *y.add(j * y_stride + i) = *x.add(i * x_stride + j) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element + PartialEq + std::fmt::Debug>(of: impl Fn(usize) -> T) {
        for (batch, rows, columns) in [
            (1, 1, 5),
            (2, 3, 70),
            (1, 70, 3),
            (3, 16, 16),
            (1, 33, 65),
            (2, 8, 129),
            (1, 4, 0),
            (1, 200, 130),
            (2, 2, 5000),
            (1, 4, 4099),
            (3, 4100, 3),
            (1, 77, 2),
            (2, 3, 3),
        ] {
            let x: Vec<T> = (0..batch * rows * columns).map(&of).collect();
            for threads in [1, 3] {
                let mut y = vec![of(250); x.len() + 9];
                transpose(&Pool::new(threads), batch, rows, columns, &x, &mut y);
                for (at, v) in y[..x.len()].iter().enumerate() {
                    let (n, j, i) = (at / (rows * columns), at / rows % columns, at % rows);
                    assert_eq!(*v, x[(n * rows + i) * columns + j], "{batch}x{rows}x{columns}");
                }
                assert!(y[x.len()..].iter().all(|v| *v == of(250)));
            }
        }
    }

    #[test]
    fn every_element_goes_to_its_place_and_nothing_else_is_written() {
        check(|i| i as f32);
        check(|i| (i % 251) as u8);
    }
}
