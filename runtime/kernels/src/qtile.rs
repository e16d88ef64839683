//! The micro-kernels of every 8-bit integer product and convolution: some rows of `u8` by panels of `i8`, summed exactly
//! in `i32`, and what becomes of the sums.
//!
//! Rows are found through the [`Table`] of [`crate::tile`]; panels are those of [`crate::qgemm`]. A micro-kernel leaves the
//! sums of a tile in a buffer that stays in the first-level cache; [`Finish`] takes them from there.
//!
//! No instruction saturates on the way: where there is no `vpdpbusd`, bytes are widened to 16 bits and multiplied by
//! `vpmaddwd`, which adds two products of 16 bits in 32. `vpmaddubsw` would saturate, and is not faster where both
//! multiply on the same two ports: 16 multiplications an instruction, and the sums need a second one.

use std::ops::Range;

use crate::epilogue::{self, Activation, Epilogue};
use crate::isa::Isa;
use crate::qgemm::{Added, NR, Requant};
use crate::simd::{F32s, per_isa};
use crate::tile::{Table, Tile};

/// Rows of the largest tile.
pub(crate) const ROWS: usize = 12;
/// Columns of the widest tile.
pub(crate) const COLUMNS: usize = 4 * NR;
/// Bytes of four steps of `K` in a panel.
const STEP: usize = 4 * NR;

/// Sums of a tile, rows [`COLUMNS`] apart.
#[repr(align(64))]
pub(crate) struct Sums {
    _sums: [i32; ROWS * COLUMNS],
}

/// How the sums of a tile are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dot {
    /// `vpdpbusd` on 64 bytes.
    Vnni512,
    /// `vpdpbusd` on 32 bytes, in the encoding of VEX.
    Vnni256,
    /// `vpmaddwd` on 32 bytes.
    Avx2,
    /// Loops.
    Any,
}

impl Dot {
    pub(crate) const ALL: [Dot; 4] = [Dot::Vnni512, Dot::Vnni256, Dot::Avx2, Dot::Any];

    pub(crate) fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Dot::Vnni512 => Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Dot::Vnni256 => Isa::Avx2.available() && std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Dot::Avx2 => Isa::Avx2.available(),
            #[cfg(not(target_arch = "x86_64"))]
            Dot::Vnni512 | Dot::Vnni256 | Dot::Avx2 => false,
            Dot::Any => true,
        }
    }

    /// The best this CPU has.
    pub(crate) fn best() -> Dot {
        Dot::ALL.into_iter().find(|d| d.available()).unwrap_or(Dot::Any)
    }

    /// What finishes the sums.
    pub(crate) fn isa(self) -> Isa {
        match self {
            Dot::Vnni512 => Isa::Avx512,
            Dot::Vnni256 | Dot::Avx2 => Isa::Avx2,
            Dot::Any => Isa::Any,
        }
    }

    /// Most rows of a tile.
    pub(crate) fn rows(self, columns: usize) -> usize {
        match self {
            Dot::Vnni512 if columns > 2 * NR => 6,
            Dot::Vnni512 => 12,
            Dot::Vnni256 => 6,
            Dot::Avx2 => 3,
            Dot::Any => 4,
        }
    }

    /// Panels of a tile.
    fn panels(self) -> usize {
        if self == Dot::Vnni512 { 4 } else { 1 }
    }
}

/// What the rows are multiplied with, and what becomes of the sums.
pub(crate) struct Job<'a> {
    /// Panels of `steps` groups of four rows of [`NR`] weights.
    pub(crate) b: *const i8,
    /// Groups of four steps of `K`.
    pub(crate) steps: usize,
    /// Columns.
    pub(crate) n: usize,
    /// What becomes of the sums.
    pub(crate) finish: Finish<'a>,
}

/// What becomes of sums.
pub(crate) struct Finish<'a> {
    /// `N` integers to add to the sums.
    pub(crate) offset: *const i32,
    /// `N` factors.
    pub(crate) scale: *const f32,
    /// Distance between rows of results.
    pub(crate) stride: usize,
    /// Row 0, column 0 of the results.
    pub(crate) to: To<'a>,
}

/// Where results go.
#[derive(Clone, Copy)]
pub(crate) enum To<'a> {
    /// Codes; the residual begins at `shift` of the one given.
    Codes { y: *mut u8, requant: &'a Requant<'a>, shift: usize },
    /// Floats; bias and residual are null where there is none.
    Floats { y: *mut f32, bias: *const f32, residual: *const f32, epilogue: &'a Epilogue<'a> },
}

/// The columns of some panels of the rows of all tiles.
///
/// # Safety
/// The pointers of the table lead to segments as long as it says, their positions are multiples of 4 and lead to weights that
/// exist, everything in the job is as long as it says, nobody else is at those results, and the CPU has the instructions.
pub(crate) unsafe fn block(dot: Dot, job: &Job<'_>, table: &Table<u8>, panels: Range<usize>) {
    let mut sums = std::mem::MaybeUninit::<Sums>::uninit();
    let out = sums.as_mut_ptr().cast::<i32>();
    let mut p = panels.start;
    while p < panels.end {
        let count = dot.panels().min(panels.end - p);
        let (first, width) = (p * NR, (count * NR).min(job.n - p * NR));
        for t in table.tiles() {
            // SAFETY: the caller's promise; the buffer has room for 12 rows of 64, and is written before it is read.
            unsafe {
                let b = job.b.wrapping_add(p * job.steps * STEP);
                match dot {
                    #[cfg(target_arch = "x86_64")]
                    Dot::Vnni512 => x86::vnni512(t, table, b, job.steps, count, out),
                    #[cfg(target_arch = "x86_64")]
                    Dot::Vnni256 => x86::vnni256(t, table, b, out),
                    #[cfg(target_arch = "x86_64")]
                    Dot::Avx2 => x86::avx2(t, table, b, out),
                    _ => plain(t, table, b, out),
                }
                finish::on(dot.isa(), &job.finish, out, t.rows, t.row, first, width);
            }
        }
        p += count;
    }
}

per_isa! {
    pub(crate) finish = finished;
    (f: &Finish<'_>, sums: *const i32, rows: usize, row: usize, column: usize, width: usize)
}

/// Makes results of `rows` rows of sums, the first of them row `row` from column `column` on.
///
/// # Safety
/// As [`block`]; the sums are [`COLUMNS`] apart.
#[inline(always)]
unsafe fn finished<S: F32s>(f: &Finish<'_>, sums: *const i32, rows: usize, row: usize, column: usize, width: usize) {
    // SAFETY: the caller's promise; each vector begins inside a row, and what is left is taken one by one.
    unsafe {
        for r in 0..rows {
            let sums = sums.add(r * COLUMNS);
            let at = (row + r) * f.stride + column;
            let mut j = 0;
            while j + S::LANES <= width {
                value::<S>(f, sums.add(j), column + j, at + j);
                j += S::LANES;
            }
            while j < width {
                value::<f32>(f, sums.add(j), column + j, at + j);
                j += 1;
            }
            match f.to {
                To::Codes { y, requant, shift } => {
                    let y = y.add(at);
                    if let Some(table) = requant.table {
                        for j in 0..width {
                            *y.add(j) = table[usize::from(*y.add(j))];
                        }
                    }
                    if let Some(added) = &requant.add {
                        let with = added.residual.as_ptr().add(shift + at);
                        let mut j = 0;
                        while j + S::LANES <= width {
                            add::<S>(added, y.add(j), with.add(j));
                            j += S::LANES;
                        }
                        while j < width {
                            add::<f32>(added, y.add(j), with.add(j));
                            j += 1;
                        }
                    }
                }
                To::Floats { y, residual, epilogue: e, .. } => {
                    if e.activation != Activation::None || e.after && !residual.is_null() {
                        let after = if e.after && !residual.is_null() { residual.add(at) } else { std::ptr::null() };
                        epilogue::rows::on(S::ISA, e.activation, y.add(at), width, 1, 0, after);
                    }
                }
            }
        }
    }
}

/// One vector of sums that belong to columns from `column` on and go to `at`.
///
/// # Safety
/// As [`finished`].
#[inline(always)]
unsafe fn value<S: F32s>(f: &Finish<'_>, sums: *const i32, column: usize, at: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = S::sum_i32(sums, f.offset.add(column)).mul(S::load(f.scale.add(column)));
        match f.to {
            To::Codes { y, requant, .. } => {
                let c = requant.codes;
                let (low, high) = (S::splat((c.low - c.zero) as f32), S::splat((c.high - c.zero) as f32));
                high.min(low.max(v)).nearest().add(S::splat(c.zero as f32)).store_u8(y.add(at));
            }
            To::Floats { y, bias, residual, epilogue } => {
                let mut v = v;
                if !bias.is_null() {
                    v = v.add(S::load(bias.add(column)));
                }
                if !residual.is_null() && !epilogue.after {
                    v = v.add(S::load(residual.add(at)));
                }
                v.store(y.add(at));
            }
        }
    }
}

/// `y = codes(left · y + fixed + right · with)`, as [`crate::quantize::of_u8::add`].
///
/// # Safety
/// As [`finished`].
#[inline(always)]
unsafe fn add<S: F32s>(added: &Added<'_>, y: *mut u8, with: *const u8) {
    let (f, c) = (&added.sum, added.sum.codes);
    // SAFETY: the caller's promise.
    unsafe {
        let v = S::splat(f.left).mul(S::load_u8(y)).add(S::splat(f.fixed)).add(S::splat(f.right).mul(S::load_u8(with)));
        let (low, high) = (S::splat((c.low - c.zero) as f32), S::splat((c.high - c.zero) as f32));
        high.min(low.max(v)).nearest().add(S::splat(c.zero as f32)).store_u8(y);
    }
}

/// Whole groups of four bytes of a segment, and how many bytes are left.
#[inline(always)]
fn groups(len: usize) -> (usize, usize) {
    (len / 4, len % 4)
}

/// The last bytes of a row as a group.
///
/// # Safety
/// `n` bytes exist.
#[inline(always)]
unsafe fn tail(row: *const u8, n: usize) -> i32 {
    let mut four = [0u8; 4];
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(row, four.as_mut_ptr(), n) };
    i32::from_le_bytes(four)
}

/// One panel, any number of rows.
///
/// # Safety
/// As [`block`].
unsafe fn plain(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
    let (pointers, positions) = table.of(t);
    for r in 0..t.rows {
        let mut acc = [0i32; NR];
        for s in 0..t.segments {
            // SAFETY: the caller's promise.
            unsafe {
                let row = *pointers.add(s * t.rows + r);
                let b = b.add(*positions.add(s) as usize * NR);
                for k in 0..t.len {
                    let a = i32::from(*row.add(k));
                    let b = b.add(k / 4 * STEP + k % 4);
                    for j in 0..NR {
                        acc[j] += a * i32::from(*b.add(4 * j));
                    }
                }
            }
        }
        // SAFETY: the buffer has the row.
        unsafe { std::ptr::copy_nonoverlapping(acc.as_ptr(), out.add(r * COLUMNS), NR) };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match t.rows {
                1 => avx2_tile::<1>(t, table, b, out),
                2 => avx2_tile::<2>(t, table, b, out),
                _ => avx2_tile::<3>(t, table, b, out),
            }
        }
    }

    /// # Safety
    /// As [`block`]; the tile has `R` rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2_tile<const R: usize>(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        let (pointers, positions) = table.of(t);
        // Four columns a vector, each as the sums of steps 0 and 1 and of steps 2 and 3.
        let mut acc = [[_mm256_setzero_si256(); 4]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for s in 0..t.segments {
                let rows: [*const u8; R] = std::array::from_fn(|r| *pointers.add(s * R + r));
                let b = b.add(*positions.add(s) as usize * NR);
                let (whole, rest) = groups(t.len);
                macro_rules! group {
                    ($g:expr, $read:expr) => {
                        let mut w = [_mm256_setzero_si256(); 4];
                        for i in 0..4 {
                            w[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(b.add($g * STEP + 16 * i).cast()));
                        }
                        for r in 0..R {
                            let a = _mm256_cvtepu8_epi16(_mm_set1_epi32($read(rows[r].add(4 * $g))));
                            for i in 0..4 {
                                acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(a, w[i]));
                            }
                        }
                    };
                }
                for g in 0..whole {
                    group!(g, |p: *const u8| p.cast::<i32>().read_unaligned());
                }
                if rest > 0 {
                    group!(whole, |p: *const u8| tail(p, rest));
                }
            }
            for r in 0..R {
                for i in 0..2 {
                    let pairs = _mm256_hadd_epi32(acc[r][2 * i], acc[r][2 * i + 1]);
                    let eight = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                    _mm256_storeu_si256(out.add(r * COLUMNS + 8 * i).cast(), eight);
                }
            }
        }
    }

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn vnni256(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match t.rows {
                1 => vnni256_tile::<1>(t, table, b, out),
                2 => vnni256_tile::<2>(t, table, b, out),
                3 => vnni256_tile::<3>(t, table, b, out),
                4 => vnni256_tile::<4>(t, table, b, out),
                5 => vnni256_tile::<5>(t, table, b, out),
                _ => vnni256_tile::<6>(t, table, b, out),
            }
        }
    }

    /// # Safety
    /// As [`block`]; the tile has `R` rows.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn vnni256_tile<const R: usize>(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        let (pointers, positions) = table.of(t);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for s in 0..t.segments {
                let rows: [*const u8; R] = std::array::from_fn(|r| *pointers.add(s * R + r));
                let b = b.add(*positions.add(s) as usize * NR);
                let (whole, rest) = groups(t.len);
                macro_rules! group {
                    ($g:expr, $read:expr) => {
                        let w = [
                            _mm256_loadu_si256(b.add($g * STEP).cast()),
                            _mm256_loadu_si256(b.add($g * STEP + 32).cast()),
                        ];
                        for r in 0..R {
                            let a = _mm256_set1_epi32($read(rows[r].add(4 * $g)));
                            for i in 0..2 {
                                acc[r][i] = _mm256_dpbusd_avx_epi32(acc[r][i], a, w[i]);
                            }
                        }
                    };
                }
                for g in 0..whole {
                    group!(g, |p: *const u8| p.cast::<i32>().read_unaligned());
                }
                if rest > 0 {
                    group!(whole, |p: *const u8| tail(p, rest));
                }
            }
            for r in 0..R {
                for i in 0..2 {
                    _mm256_storeu_si256(out.add(r * COLUMNS + 8 * i).cast(), acc[r][i]);
                }
            }
        }
    }

    /// `count` panels, at most 4, and at most 6 rows when there are more than 2.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn vnni512(t: &Tile, table: &Table<u8>, b: *const i8, steps: usize, count: usize, out: *mut i32) {
        macro_rules! by_height {
            ($($r:literal)*; $($s:literal)*) => {
                match (t.rows, count) {
                    // SAFETY: the caller's promise.
                    $(($r, 4) => unsafe { vnni512_tile::<$r, 4>(t, table, b, steps, out) },
                    ($r, 3) => unsafe { vnni512_tile::<$r, 3>(t, table, b, steps, out) },)*
                    // SAFETY: the caller's promise.
                    $(($s, 2) => unsafe { vnni512_tile::<$s, 2>(t, table, b, steps, out) },
                    ($s, 1) => unsafe { vnni512_tile::<$s, 1>(t, table, b, steps, out) },)*
                    _ => {
                        // Tall tiles before wide panels: two at a time.
                        // SAFETY: the caller's promise.
                        unsafe {
                            vnni512(t, table, b, steps, 2, out);
                            vnni512(t, table, b.add(2 * steps * STEP), steps, count - 2, out.add(2 * NR));
                        }
                    }
                }
            };
        }
        by_height!(1 2 3 4 5 6; 1 2 3 4 5 6 7 8 9 10 11 12);
    }

    /// # Safety
    /// As [`block`]; the tile has `R` rows, and there are `P` panels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn vnni512_tile<const R: usize, const P: usize>(
        t: &Tile,
        table: &Table<u8>,
        b: *const i8,
        steps: usize,
        out: *mut i32,
    ) {
        let (pointers, positions) = table.of(t);
        let mut acc = [[_mm512_setzero_si512(); P]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for s in 0..t.segments {
                let rows: [*const u8; R] = std::array::from_fn(|r| *pointers.add(s * R + r));
                let b = b.add(*positions.add(s) as usize * NR);
                let (whole, rest) = groups(t.len);
                macro_rules! group {
                    ($g:expr, $read:expr) => {
                        let mut w = [_mm512_setzero_si512(); P];
                        for i in 0..P {
                            w[i] = _mm512_loadu_si512(b.add((i * steps + $g) * STEP).cast());
                        }
                        for r in 0..R {
                            let a = _mm512_set1_epi32($read(rows[r].add(4 * $g)));
                            for i in 0..P {
                                acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], a, w[i]);
                            }
                        }
                    };
                }
                for g in 0..whole {
                    group!(g, |p: *const u8| p.cast::<i32>().read_unaligned());
                }
                if rest > 0 {
                    group!(whole, |p: *const u8| tail(p, rest));
                }
            }
            // Written out row by row: a loop over twelve rows is not unrolled, and the accumulators would live in memory.
            macro_rules! rows {
                ($($r:literal)*) => {
                    $(if $r < R {
                        for i in 0..P {
                            _mm512_storeu_si512(out.add($r * COLUMNS + i * NR).cast(), acc[$r % R][i]);
                        }
                    })*
                };
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11);
        }
    }
}
