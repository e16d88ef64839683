//! The micro-kernels of every 8-bit integer product and convolution: some rows of `u8` by panels of `i8`, summed exactly
//! in `i32`, and what becomes of the sums.
//!
//! Rows are found through the [`Table`] of [`crate::tile`]; panels are those of [`crate::qgemm`]. A micro-kernel leaves the
//! sums of a tile in a buffer that stays in the first-level cache; [`Finish`] takes them from there.
//!
//! No instruction saturates on the way: where there is no `vpdpbusd`, bytes are widened to 16 bits and multiplied by
//! `vpmaddwd`, which adds two products of 16 bits in 32. Constant weights have a form of their own there ([`crate::qbins`]).

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::epilogue::{self, Activation, Epilogue};
use crate::isa::Isa;
use crate::lookup;
use crate::qbins;
use crate::qgemm::{Added, NR, Requant, Right};
use crate::simd::{F32s, per_isa};
use crate::tile::{Table, Tile};

/// Rows of the largest tile of vectors.
pub(crate) const ROWS: usize = 12;
/// Columns of the widest tile.
pub(crate) const COLUMNS: usize = 4 * NR;
/// Bytes of four steps of `K` in a panel.
const STEP: usize = 4 * NR;

/// Rows from which AMX is quicker than vectors.
const TILES_WANT: usize = 8;
/// Longest row that it takes.
const TILED: usize = 8192;

/// Sums of a tile, rows [`COLUMNS`] apart.
#[repr(align(64))]
pub(crate) struct Sums {
    _sums: [i32; ROWS * COLUMNS],
}

/// How the sums of a tile are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dot {
    /// `tdpbusd` on tiles of 16 rows of 64 bytes (Intel Sapphire Rapids and later).
    Amx,
    /// `vpdpbusd` on 64 bytes.
    Vnni512,
    /// `vpdpbusd` on 32 bytes, in the encoding of VEX.
    Vnni256,
    /// `vpmaddwd` on 32 bytes.
    Avx2,
    /// `usdot` on 16 bytes (Armv8.6 and before it as an extension: Cortex-A78C, X1C and later).
    I8mm,
    /// `sdot` on 16 bytes (Cortex-A55, A75 and later: Raspberry Pi 5, Jetson Orin).
    Dotprod,
    /// `smull` and `sadalp` on 16 bytes: every 64-bit Arm.
    Neon,
    /// Loops.
    Any,
}

impl Dot {
    pub(crate) const ALL: [Dot; 8] =
        [Dot::Amx, Dot::Vnni512, Dot::Vnni256, Dot::Avx2, Dot::I8mm, Dot::Dotprod, Dot::Neon, Dot::Any];

    pub(crate) fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Dot::Amx => Dot::Vnni512.available() && crate::amx::bytes(),
            #[cfg(target_arch = "x86_64")]
            Dot::Vnni512 => Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Dot::Vnni256 => Isa::Avx2.available() && std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Dot::Avx2 => Isa::Avx2.available(),
            #[cfg(not(target_arch = "x86_64"))]
            Dot::Amx | Dot::Vnni512 | Dot::Vnni256 | Dot::Avx2 => false,
            #[cfg(target_arch = "aarch64")]
            Dot::I8mm => std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "aarch64")]
            Dot::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Dot::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Dot::I8mm | Dot::Dotprod | Dot::Neon => false,
            Dot::Any => true,
        }
    }

    /// Its name among kernels; `None` where other CPUs have it.
    pub(crate) fn name(self) -> Option<&'static str> {
        let (x86, arm) = (cfg!(target_arch = "x86_64"), cfg!(target_arch = "aarch64"));
        let (here, name) = match self {
            Dot::Amx => (x86, "x86_64-u8i8-amx"),
            Dot::Vnni512 => (x86, "x86_64-u8i8-avx512vnni"),
            Dot::Vnni256 => (x86, "x86_64-u8i8-avxvnni"),
            Dot::Avx2 => (x86, "x86_64-u8i8-avx2"),
            Dot::I8mm => (arm, "aarch64-u8i8-i8mm"),
            Dot::Dotprod => (arm, "aarch64-u8i8-dotprod"),
            Dot::Neon => (arm, "aarch64-u8i8-neon"),
            Dot::Any => (true, "any-u8i8"),
        };
        here.then_some(name)
    }

    /// The best this CPU has.
    pub(crate) fn best() -> Dot {
        Dot::ALL.into_iter().find(|d| d.available()).unwrap_or(Dot::Any)
    }

    /// The same, or the next best where so many rows of `k` bytes gain nothing by it: tiles want rows, and memory for copies.
    pub(crate) fn suited(self, rows: usize, k: usize) -> Dot {
        if self == Dot::Amx && (rows < TILES_WANT || k > TILED) { Dot::Vnni512 } else { self }
    }

    /// What works on vectors where this works on tiles.
    pub(crate) fn vectors(self) -> Dot {
        if self == Dot::Amx { Dot::Vnni512 } else { self }
    }

    /// What finishes the sums.
    pub(crate) fn isa(self) -> Isa {
        match self {
            Dot::Amx | Dot::Vnni512 => Isa::Avx512,
            Dot::Vnni256 | Dot::Avx2 => Isa::Avx2,
            Dot::I8mm | Dot::Dotprod | Dot::Neon | Dot::Any => Isa::Any,
        }
    }

    /// Most rows of a tile.
    pub(crate) fn rows(self, columns: usize) -> usize {
        match self {
            Dot::Amx => 16,
            Dot::Vnni512 if columns > 2 * NR => 6,
            Dot::Vnni512 => 12,
            Dot::Vnni256 => 6,
            Dot::Avx2 => 6,
            Dot::I8mm => 6,
            Dot::Dotprod => 5,
            Dot::Neon | Dot::Any => 4,
        }
    }

    /// Bytes of rows that a block of tiles should not exceed, so that they stay in the cache while every panel passes by.
    pub(crate) fn reach(self) -> usize {
        match self {
            // Weights are multiplied as fast as they come: better that they come once.
            Dot::Amx => 256 * 1024,
            _ => 64 * 1024,
        }
    }

    /// Panels of a tile.
    fn panels(self) -> usize {
        match self {
            Dot::Amx => 2,
            Dot::Vnni512 => 4,
            _ => 1,
        }
    }
}

/// What the rows are multiplied with, and what becomes of the sums.
pub(crate) struct Job<'a> {
    /// Panels of `steps` groups of four rows of [`NR`] weights, or the same arranged otherwise.
    pub(crate) b: Right<'a>,
    /// Where the panels begin in it.
    pub(crate) start: usize,
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
    /// `N` factors; null where there is nothing to scale.
    pub(crate) scale: *const f32,
    /// Distance between rows of results.
    pub(crate) stride: usize,
    /// Row 0, column 0 of the results.
    pub(crate) to: To<'a>,
}

/// Where results go.
#[derive(Clone, Copy)]
pub(crate) enum To<'a> {
    /// The sums with what is added to them; nothing is scaled.
    Sums { y: *mut i32 },
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
    let b = match job.b {
        // SAFETY: the caller's promise.
        Right::Bins(bins) => return unsafe { qbins::block(bins, &job.finish, dot, table, panels) },
        Right::Panels(b) => b[job.start..].as_ptr(),
    };
    #[cfg(target_arch = "x86_64")]
    if dot == Dot::Avx2 && job.steps <= x86::WIDE_STEPS && table.tiles().iter().map(|t| t.rows).sum::<usize>() > 4 {
        // SAFETY: the caller's promise.
        return unsafe { widened(job, b, table, panels) };
    }
    #[cfg(target_arch = "x86_64")]
    if dot == Dot::Amx {
        // SAFETY: the caller's promise.
        return unsafe { x86::tiles(job, b, table, panels) };
    }
    let mut sums = MaybeUninit::<Sums>::uninit();
    let out = sums.as_mut_ptr().cast::<i32>();
    let mut p = panels.start;
    while p < panels.end {
        let count = dot.panels().min(panels.end - p);
        let (first, width) = (p * NR, (count * NR).min(job.n - p * NR));
        for t in table.tiles() {
            // SAFETY: the caller's promise; the buffer has room for a tile's rows of 64, and is written before it is read.
            unsafe {
                let b = b.wrapping_add(p * job.steps * STEP);
                match dot {
                    #[cfg(target_arch = "x86_64")]
                    Dot::Vnni512 => {
                        let codes = x86::Emit::of(&job.finish, t.row, first, width);
                        x86::vnni512(t, table, b, job.steps, count, out, codes.as_ref());
                        if codes.is_some() {
                            continue;
                        }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Dot::Vnni256 => x86::vnni256(t, table, b, out),
                    #[cfg(target_arch = "x86_64")]
                    Dot::Avx2 => x86::avx2(t, table, b, out),
                    #[cfg(target_arch = "aarch64")]
                    Dot::I8mm => arm::i8mm(t, table, b, out),
                    #[cfg(target_arch = "aarch64")]
                    Dot::Dotprod => arm::dotprod(t, table, b, out),
                    #[cfg(target_arch = "aarch64")]
                    Dot::Neon => arm::neon(t, table, b, out),
                    _ => plain(t, table, b, out),
                }
                finish::on(dot.isa(), &job.finish, out, t.rows, t.row, first, width);
            }
        }
        p += count;
    }
}

/// [`block`] for `vpmaddwd` and more than a few rows: rows are widened to 16 bits once for all panels, and each panel once for
/// all rows.
///
/// # Safety
/// As [`block`]; the CPU has AVX2, and a panel is not longer than the memory for it.
#[cfg(target_arch = "x86_64")]
unsafe fn widened(job: &Job<'_>, panel: *const i8, table: &Table<u8>, panels: Range<usize>) {
    let mut sums = MaybeUninit::<Sums>::uninit();
    let out = sums.as_mut_ptr().cast::<i32>();
    let mut wide = MaybeUninit::<x86::Wide>::uninit();
    let (a, b) = x86::Wide::parts(&mut wide);
    let mut tiles = table.tiles();
    while !tiles.is_empty() {
        // As many tiles as there is memory for.
        let most = x86::ROW_ELEMENTS / (4 * job.steps.max(1));
        let mut rows = 0;
        let count = tiles
            .iter()
            .take_while(|t| {
                rows += t.rows;
                rows <= most
            })
            .count()
            .max(1);
        let (now, later) = tiles.split_at(count);
        // SAFETY: the caller's promise; a tile has at most 6 rows, and there is memory for 6 of the longest.
        unsafe {
            let mut to = a;
            for t in now {
                x86::widen_rows(t, table, job.steps, to);
                to = to.add(t.rows * job.steps * 4);
            }
            for p in panels.clone() {
                x86::widen_panel(panel.wrapping_add(p * job.steps * STEP), job.steps, b);
                let mut from = a.cast_const();
                for t in now {
                    x86::wide_tile(t.rows, from, job.steps, b, out);
                    from = from.add(t.rows * job.steps * 4);
                    finish::on(Isa::Avx2, &job.finish, out, t.rows, t.row, p * NR, NR.min(job.n - p * NR));
                }
            }
        }
        tiles = later;
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
    let (offset, scale, stride) = (f.offset.wrapping_add(column), f.scale.wrapping_add(column), f.stride);
    let at = row * stride + column;
    // SAFETY: the caller's promise; each vector begins inside a row, and what is left is taken one by one.
    unsafe {
        match f.to {
            To::Sums { y } => {
                let y = y.add(at);
                for r in 0..rows {
                    for j in 0..width {
                        *y.add(r * stride + j) = (*sums.add(r * COLUMNS + j)).wrapping_add(*offset.add(j));
                    }
                }
            }
            To::Codes { y, requant, shift } => {
                let y = y.add(at);
                let c = requant.codes;
                let limits = ((c.low - c.zero) as f32, (c.high - c.zero) as f32);
                let mut j = 0;
                while j + 2 * S::LANES <= width {
                    codes::<S>(sums, offset, scale, limits, c.zero, rows, j, y, stride);
                    j += 2 * S::LANES;
                }
                while j < width {
                    let n = S::LANES.min(width - j);
                    let (low, high, zero) = (S::splat(limits.0), S::splat(limits.1), S::splat(c.zero as f32));
                    let scale = S::load_part(scale.add(j), n);
                    for r in 0..rows {
                        let v = S::sum_i32_part(sums.add(r * COLUMNS + j), offset.add(j), n).mul(scale);
                        let v = high.min(low.max(v)).nearest().add(zero);
                        v.store_u8_part(y.add(r * stride + j), n);
                    }
                    j += n;
                }
                if requant.table.is_none() && requant.add.is_none() {
                    return;
                }
                for r in 0..rows {
                    then::<S>(requant, y.add(r * stride), shift + at + r * stride, width);
                }
            }
            To::Floats { y, bias, residual, epilogue: e } => {
                let y = y.add(at);
                let bias = if bias.is_null() { bias } else { bias.add(column) };
                let residual = if residual.is_null() { residual } else { residual.add(at) };
                let before = if e.after { std::ptr::null() } else { residual };
                let mut j = 0;
                while j + S::LANES <= width {
                    floats::<S>(sums, offset, scale, bias, before, rows, j, y, stride);
                    j += S::LANES;
                }
                for j in j..width {
                    floats::<f32>(sums, offset, scale, bias, before, rows, j, y, stride);
                }
                let after = if e.after { residual } else { std::ptr::null() };
                if e.activation != Activation::None || !after.is_null() {
                    epilogue::rows::on(S::ISA, e.activation, y, width, rows, stride, after);
                }
            }
        }
    }
}

/// Two vectors of columns from `j` on, as codes.
///
/// # Safety
/// As [`finished`].
#[inline(always)]
unsafe fn codes<S: F32s>(
    sums: *const i32,
    offset: *const i32,
    scale: *const f32,
    limits: (f32, f32),
    zero: i32,
    rows: usize,
    j: usize,
    y: *mut u8,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (S::splat(limits.0), S::splat(limits.1));
        let at = [j, j + S::LANES];
        let scale = at.map(|j| S::load(scale.add(j)));
        for r in 0..rows {
            let mut v = scale;
            for i in 0..2 {
                v[i] = S::sum_i32(sums.add(r * COLUMNS + at[i]), offset.add(at[i])).mul(scale[i]);
                v[i] = high.min(low.max(v[i]));
            }
            S::store_codes(v[0], v[1], zero, y.add(r * stride + j));
        }
    }
}

/// One vector of columns from `j` on, as floats.
///
/// # Safety
/// As [`finished`].
#[inline(always)]
unsafe fn floats<S: F32s>(
    sums: *const i32,
    offset: *const i32,
    scale: *const f32,
    bias: *const f32,
    residual: *const f32,
    rows: usize,
    j: usize,
    y: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = S::load(scale.add(j));
        let bias = if bias.is_null() { S::splat(0.0) } else { S::load(bias.add(j)) };
        for r in 0..rows {
            let mut v = S::sum_i32(sums.add(r * COLUMNS + j), offset.add(j)).mul(scale).add(bias);
            if !residual.is_null() {
                v = v.add(S::load(residual.add(r * stride + j)));
            }
            v.store(y.add(r * stride + j));
        }
    }
}

/// The table and the residual, on one row of codes; `at` is where it begins in the residual.
///
/// # Safety
/// As [`finished`].
#[inline(always)]
pub(crate) unsafe fn then<S: F32s>(requant: &Requant<'_>, y: *mut u8, at: usize, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(table) = requant.table {
            lookup::on(lookup::Form::best(), table, y, y, width);
        }
        if let Some(added) = &requant.add {
            let with = added.residual.as_ptr().add(at);
            let mut j = 0;
            while j < width {
                let n = S::LANES.min(width - j);
                add::<S>(added, y.add(j), with.add(j), n);
                j += n;
            }
        }
    }
}

/// `y = codes(left · y + fixed + right · with)` of `n` codes, at most a vector, as [`crate::quantize::of_u8::add`].
///
/// # Safety
/// As [`finished`].
#[inline(always)]
unsafe fn add<S: F32s>(added: &Added<'_>, y: *mut u8, with: *const u8, n: usize) {
    let (f, c) = (&added.sum, added.sum.codes);
    // SAFETY: the caller's promise.
    unsafe {
        let (own, other) = (S::load_u8_part(y, n), S::load_u8_part(with, n));
        let v = S::splat(f.left).mul(own).add(S::splat(f.fixed)).add(S::splat(f.right).mul(other));
        let (low, high) = (S::splat((c.low - c.zero) as f32), S::splat((c.high - c.zero) as f32));
        high.min(low.max(v)).nearest().add(S::splat(c.zero as f32)).store_u8_part(y, n);
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
pub(crate) use x86::{Bounds, store_bytes, to_codes};

#[cfg(target_arch = "x86_64")]
mod x86 {
    const _: () = assert!(amx::SUMS == COLUMNS, "sums of tiles are finished as those of vectors are");

    use std::arch::x86_64::*;

    use super::*;
    use crate::amx;
    use crate::quantize::Codes;
    use crate::simd::mask;

    /// Rows copied into tiles.
    #[repr(align(64))]
    struct Copies {
        _bytes: [u8; amx::ROWS * TILED],
    }

    /// [`block`] on tiles. Rows are read where they are when they lie evenly apart and `K` is divided into even tiles; else as
    /// many as there is memory for are copied, for all panels.
    ///
    /// # Safety
    /// As [`block`]; tiles have at most 16 rows, and rows at most [`TILED`] bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn tiles(job: &Job<'_>, b: *const i8, table: &Table<u8>, panels: Range<usize>) {
        let (mut memory, mut copies) = (MaybeUninit::uninit(), MaybeUninit::<Copies>::uninit());
        let copied = copies.as_mut_ptr().cast::<u8>();
        let finish = |t: &Tile, p: usize, wide: usize, sums: *const u32| {
            let width = (wide * NR).min(job.n - p * NR);
            // SAFETY: the caller's promise; the sums of the panels were just written.
            unsafe { finish_tile(&job.finish, sums.cast(), t, p * NR, width) };
        };
        let all = table.tiles();
        let stride = all.iter().try_fold(None, |any, t| amx::stride(t, table, 4 * job.steps, any).map(Some));
        if let Some(cut) = stride.flatten().and_then(|stride| amx::Cut::even(job.steps, stride)) {
            // SAFETY: the caller's promise; a tile has a pointer a row.
            let row = |i: usize| unsafe { *table.of(&all[i]).0 };
            // SAFETY: the caller's promise.
            return unsafe { amx::walk::<false>(&cut, all, row, b.cast(), panels, &mut memory, finish) };
        }
        let slot = job.steps.div_ceil(amx::LINES) * amx::TILE;
        for group in all.chunks(amx::ROWS * TILED / slot.max(1)) {
            for (i, t) in group.iter().enumerate() {
                // SAFETY: the caller's promise; a slot is at most as long as the memory.
                unsafe { copy(t, table, slot, copied.add(i * slot)) };
            }
            let row = |i: usize| copied.wrapping_add(i * slot).cast_const();
            let cut = amx::Cut::filled(job.steps, amx::BYTES, amx::TILE);
            // SAFETY: as above.
            unsafe { amx::walk::<false>(&cut, group, row, b.cast(), panels.clone(), &mut memory, finish) };
        }
    }

    /// Finishes the sums of a tile of rows and one or two panels.
    ///
    /// # Safety
    /// As [`finished`]; the sums of two panels may be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn finish_tile(f: &Finish<'_>, sums: *const i32, t: &Tile, first: usize, width: usize) {
        // SAFETY: the caller's promise; lanes that are masked are not read.
        unsafe {
            let Some(e) = Emit::of(f, t.row, first, width) else {
                return finish::avx512(f, sums, t.rows, t.row, first, width);
            };
            let load = |i: usize| {
                let mask = mask(width.saturating_sub(NR * i));
                let offset = _mm512_maskz_loadu_epi32(mask, e.offset.wrapping_add(NR * i));
                (offset, _mm512_maskz_loadu_ps(mask, e.scale.wrapping_add(NR * i)))
            };
            let ((o0, s0), (o1, s1)) = (load(0), load(1));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bounds = Bounds::of(&e.requant.codes);
            let (y, stride, whole) = (e.y, e.stride, width == 2 * NR);
            // Two rows at a time: 64 codes.
            let mut r = 0;
            while r < t.rows {
                let next = (r + 1).min(t.rows - 1);
                let sum = |r: usize, i: usize| _mm512_load_si512(sums.add(r * COLUMNS + NR * i).cast());
                let four = [
                    _mm512_add_epi32(sum(r, 0), o0),
                    _mm512_add_epi32(sum(r, 1), o1),
                    _mm512_add_epi32(sum(next, 0), o0),
                    _mm512_add_epi32(sum(next, 1), o1),
                ];
                let bytes = _mm512_permutexvar_epi32(order, to_codes(four, [s0, s1, s0, s1], &bounds));
                if whole {
                    _mm256_storeu_si256(y.add(r * stride).cast(), _mm512_castsi512_si256(bytes));
                    _mm256_storeu_si256(y.add(next * stride).cast(), _mm512_extracti64x4_epi64::<1>(bytes));
                } else {
                    store_bytes(y.add(r * stride), bytes, width);
                    store_bytes(y.add(next * stride), _mm512_shuffle_i64x2::<0b11_10>(bytes, bytes), width);
                }
                r += 2;
            }
            if e.requant.table.is_some() || e.requant.add.is_some() {
                for r in 0..t.rows {
                    then::<__m512>(e.requant, e.y.add(r * e.stride), e.at + r * e.stride, width);
                }
            }
        }
    }

    /// The rows of a tile as tiles along `K`: [`amx::TILE`] bytes apart, in each the rows [`amx::BYTES`] apart, 0 where there is no
    /// segment and from the end of a row to the end of its tile.
    ///
    /// # Safety
    /// As [`block`]; `to` has room for `slot` bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn copy(t: &Tile, table: &Table<u8>, slot: usize, to: *mut u8) {
        let (pointers, positions) = table.of(t);
        // SAFETY: the caller's promise; segments come in the order of `K`, and bytes that are masked are neither read nor written.
        unsafe {
            if t.segments > 1 {
                to.write_bytes(0, slot);
            }
            for s in 0..t.segments {
                let first = *positions.add(s) as usize;
                for r in 0..t.rows {
                    let from = *pointers.add(s * t.rows + r);
                    let mut done = 0;
                    while done < t.len {
                        let (tile, inside) = ((first + done) / amx::BYTES, (first + done) % amx::BYTES);
                        let n = (amx::BYTES - inside).min(t.len - done);
                        let read = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - n), from.add(done).cast());
                        let to = to.add(tile * amx::TILE + r * amx::BYTES + inside);
                        _mm512_mask_storeu_epi8(to.cast(), u64::MAX >> inside, read);
                        done += n;
                    }
                }
            }
        }
    }

    /// Groups of four steps of `K` that a widened panel holds.
    pub(super) const WIDE_STEPS: usize = 1152;
    /// Elements of widened rows: six of the longest, and many more of usual ones.
    pub(super) const ROW_ELEMENTS: usize = 48 * 1024;

    /// Widened rows and a widened panel.
    #[repr(align(64))]
    pub(super) struct Wide {
        _panel: [i16; WIDE_STEPS * STEP],
        _rows: [i16; ROW_ELEMENTS],
    }

    impl Wide {
        /// Where rows and panel go.
        pub(super) fn parts(wide: &mut MaybeUninit<Wide>) -> (*mut i16, *mut i16) {
            let panel = wide.as_mut_ptr().cast::<i16>();
            (panel.wrapping_add(WIDE_STEPS * STEP), panel)
        }
    }

    /// A panel as 16 bits: of each group of four steps first the even ones of all columns, then the odd ones.
    ///
    /// # Safety
    /// The panel exists, `wide` has room for it, and the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn widen_panel(b: *const i8, steps: usize, wide: *mut i16) {
        for g in 0..steps {
            for half in 0..2 {
                // SAFETY: the caller's promise.
                unsafe {
                    let bytes = _mm256_loadu_si256(b.add(g * STEP + 32 * half).cast());
                    let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
                    _mm256_storeu_si256(wide.add(g * STEP + 16 * half).cast(), even);
                    _mm256_storeu_si256(wide.add(g * STEP + 32 + 16 * half).cast(), _mm256_srai_epi16::<8>(bytes));
                }
            }
        }
    }

    /// The rows of a tile as 16 bits, `4 · steps` elements apart: of each group of four steps the even ones, then the odd
    /// ones; 0 where there is no segment.
    ///
    /// # Safety
    /// As [`block`]; `to` has room for the rows.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn widen_rows(t: &Tile, table: &Table<u8>, steps: usize, to: *mut i16) {
        let (pointers, positions) = table.of(t);
        // SAFETY: the caller's promise.
        unsafe {
            if t.segments * t.len != 4 * steps {
                to.write_bytes(0, t.rows * 4 * steps);
            }
            let mask = _mm_set1_epi16(255);
            for s in 0..t.segments {
                let first = *positions.add(s) as usize;
                for r in 0..t.rows {
                    let from = *pointers.add(s * t.rows + r);
                    let to = to.add(r * 4 * steps + first);
                    let mut i = 0;
                    while i + 16 <= t.len {
                        let bytes = _mm_loadu_si128(from.add(i).cast());
                        let (even, odd) = (_mm_and_si128(bytes, mask), _mm_srli_epi16::<8>(bytes));
                        _mm_storeu_si128(to.add(i).cast(), _mm_unpacklo_epi32(even, odd));
                        _mm_storeu_si128(to.add(i + 8).cast(), _mm_unpackhi_epi32(even, odd));
                        i += 16;
                    }
                    while i < t.len {
                        let n = (t.len - i).min(4);
                        let four =
                            if n == 4 { from.add(i).cast::<i32>().read_unaligned() } else { tail(from.add(i), n) };
                        let four = u64::from(four as u32);
                        let both = four & 0x00ff_00ff | (four >> 8 & 0x00ff_00ff) << 32;
                        to.add(i).cast::<u64>().write_unaligned(both);
                        i += 4;
                    }
                }
            }
        }
    }

    /// Widened rows by a widened panel.
    ///
    /// # Safety
    /// `rows` rows of `4 · steps` elements exist, as many rows of the panel, and room for the sums; the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn wide_tile(rows: usize, a: *const i16, steps: usize, b: *const i16, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => wide_rows::<1>(a, steps, b, out),
                2 => wide_rows::<2>(a, steps, b, out),
                3 => wide_rows::<3>(a, steps, b, out),
                4 => wide_rows::<4>(a, steps, b, out),
                5 => wide_rows::<5>(a, steps, b, out),
                _ => wide_rows::<6>(a, steps, b, out),
            }
        }
    }

    /// # Safety
    /// As [`wide_tile`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn wide_rows<const R: usize>(a: *const i16, steps: usize, b: *const i16, out: *mut i32) {
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            // Two bases, so that two multiples of the stride are all the addresses need.
            let bases = [a, a.wrapping_add(3 * 4 * steps)];
            for g in 0..steps {
                for half in 0..2 {
                    let w = b.add(g * STEP + 32 * half);
                    let w = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(16).cast())];
                    for r in 0..R {
                        let at = bases[r / 3].wrapping_add(r % 3 * 4 * steps + 4 * g + 2 * half);
                        let a = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                        for i in 0..2 {
                            acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(a, w[i]));
                        }
                    }
                }
            }
            for r in 0..R {
                for i in 0..2 {
                    _mm256_storeu_si256(out.add(r * COLUMNS + 8 * i).cast(), acc[r][i]);
                }
            }
        }
    }

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut r = 0;
            while r + 2 <= t.rows {
                avx2_tile::<2>(t, r, table, b, out);
                r += 2;
            }
            if r < t.rows {
                avx2_tile::<1>(t, r, table, b, out);
            }
        }
    }

    /// `R` rows of the tile, from `first` on.
    ///
    /// # Safety
    /// As [`block`]; the tile has the rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2_tile<const R: usize>(t: &Tile, first: usize, table: &Table<u8>, b: *const i8, out: *mut i32) {
        let (pointers, positions) = table.of(t);
        // Four columns a vector, each as the sums of steps 0 and 1 and of steps 2 and 3.
        let mut acc = [[_mm256_setzero_si256(); 4]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for s in 0..t.segments {
                let rows: [*const u8; R] = std::array::from_fn(|r| *pointers.add(s * t.rows + first + r));
                let b = b.add(*positions.add(s) as usize * NR);
                let (whole, rest) = groups(t.len);
                macro_rules! group {
                    ($g:expr, $read:expr) => {
                        let mut a = [_mm256_setzero_si256(); R];
                        for r in 0..R {
                            a[r] = _mm256_cvtepu8_epi16(_mm_set1_epi32($read(rows[r].add(4 * $g))));
                        }
                        for i in 0..4 {
                            let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(b.add($g * STEP + 16 * i).cast()));
                            for r in 0..R {
                                acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(a[r], w));
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
                    _mm256_storeu_si256(out.add((first + r) * COLUMNS + 8 * i).cast(), eight);
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

    /// Where the codes of a tile go straight from its accumulators.
    #[derive(Clone, Copy)]
    pub(super) struct Emit<'a> {
        offset: *const i32,
        scale: *const f32,
        requant: &'a Requant<'a>,
        y: *mut u8,
        stride: usize,
        width: usize,
        /// Where the first of them lies in the residual.
        at: usize,
    }

    impl<'a> Emit<'a> {
        /// The codes of the rows from `row` and `width` columns from `column` on, where the results are codes.
        pub(super) fn of(f: &Finish<'a>, row: usize, column: usize, width: usize) -> Option<Emit<'a>> {
            let To::Codes { y, requant, shift } = f.to else { return None };
            let at = row * f.stride + column;
            Some(Emit {
                offset: f.offset.wrapping_add(column),
                scale: f.scale.wrapping_add(column),
                requant,
                y: y.wrapping_add(at),
                stride: f.stride,
                width,
                at: shift + at,
            })
        }

        /// The columns from `n` on.
        fn after(self, n: usize) -> Emit<'a> {
            Emit {
                offset: self.offset.wrapping_add(n),
                scale: self.scale.wrapping_add(n),
                y: self.y.wrapping_add(n),
                width: self.width - n,
                at: self.at + n,
                ..self
            }
        }
    }

    /// What bounds codes, in every lane: held by who makes many of them.
    #[derive(Clone, Copy)]
    pub(crate) struct Bounds {
        /// Largest code, less the zero point.
        high: __m512,
        /// Zero points of 16 bits.
        zero: __m512i,
        /// Smallest codes.
        low: __m512i,
    }

    impl Bounds {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(crate) fn of(c: &Codes) -> Bounds {
            Bounds {
                high: _mm512_set1_ps((c.high - c.zero) as f32),
                zero: _mm512_set1_epi16(c.zero as i16),
                low: _mm512_set1_epi8(c.low as i8),
            }
        }
    }

    /// Sums as the nearest of codes that are `zero` more: four vectors to 64 bytes, each quarter of them from the same quarters of the
    /// vectors, and none above `high`, below `low` or outside of `0..=255`.
    ///
    /// Only what is too large is held back as a float: what is too small for an integer becomes the least of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) fn to_codes(sums: [__m512i; 4], scale: [__m512; 4], b: &Bounds) -> __m512i {
        let mut lanes = sums;
        for i in 0..4 {
            let v = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), scale[i]);
            lanes[i] = _mm512_cvtps_epi32(_mm512_min_ps(b.high, v));
        }
        let (low, high) = (_mm512_packs_epi32(lanes[0], lanes[1]), _mm512_packs_epi32(lanes[2], lanes[3]));
        let bytes = _mm512_packus_epi16(_mm512_adds_epi16(low, b.zero), _mm512_adds_epi16(high, b.zero));
        _mm512_max_epu8(bytes, b.low)
    }

    /// Writes the first `n` bytes. Masked stores of bytes are slow on some CPUs (Zen 5: tens of cycles), and left to what is
    /// no whole quarter.
    ///
    /// # Safety
    /// There is room for them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(crate) unsafe fn store_bytes(p: *mut u8, bytes: __m512i, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if n >= 64 {
                return _mm512_storeu_si512(p.cast(), bytes);
            }
            let (mut left, mut p) = (bytes, p);
            if n & 32 != 0 {
                _mm256_storeu_si256(p.cast(), _mm512_castsi512_si256(left));
                (left, p) = (_mm512_shuffle_i64x2::<0b11_10>(left, left), p.add(32));
            }
            if n & 16 != 0 {
                _mm_storeu_si128(p.cast(), _mm512_castsi512_si128(left));
                (left, p) = (_mm512_shuffle_i64x2::<0b01>(left, left), p.add(16));
            }
            if n & 15 != 0 {
                _mm_mask_storeu_epi8(p.cast(), (1 << (n & 15)) - 1, _mm512_castsi512_si128(left));
            }
        }
    }

    /// Makes codes of the accumulators of a tile.
    ///
    /// # Safety
    /// As [`block`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn emit<const R: usize, const P: usize>(acc: &[[__m512i; P]; R], e: &Emit<'_>) {
        let (mut offset, mut scale) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_ps(); 4]);
        for i in 0..P {
            let mask = mask(e.width.saturating_sub(16 * i));
            // SAFETY: lanes that are masked are not read.
            unsafe {
                offset[i] = _mm512_maskz_loadu_epi32(mask, e.offset.wrapping_add(16 * i));
                scale[i] = _mm512_maskz_loadu_ps(mask, e.scale.wrapping_add(16 * i));
            }
        }
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bounds = Bounds::of(&e.requant.codes);
        macro_rules! rows {
            ($($r:literal)*) => {
                $(if $r < R {
                    let mut sums = [_mm512_setzero_si512(); 4];
                    for i in 0..P {
                        sums[i] = _mm512_add_epi32(acc[$r % R][i], offset[i]);
                    }
                    let bytes = _mm512_permutexvar_epi32(order, to_codes(sums, scale, &bounds));
                    // SAFETY: the caller's promise.
                    unsafe { store_bytes(e.y.add($r * e.stride), bytes, e.width) };
                })*
            };
        }
        rows!(0 1 2 3 4 5 6 7 8 9 10 11);
        if e.requant.table.is_some() || e.requant.add.is_some() {
            for r in 0..R {
                // SAFETY: the caller's promise.
                unsafe { then::<__m512>(e.requant, e.y.add(r * e.stride), e.at + r * e.stride, e.width) };
            }
        }
    }

    /// `count` panels, at most 4, and at most 6 rows when there are more than 2: as codes where there is an `Emit`, else sums.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub(super) unsafe fn vnni512(
        t: &Tile,
        table: &Table<u8>,
        b: *const i8,
        steps: usize,
        count: usize,
        out: *mut i32,
        codes: Option<&Emit<'_>>,
    ) {
        macro_rules! by_height {
            ($($r:literal)*; $($s:literal)*) => {
                match (t.rows, count) {
                    // SAFETY: the caller's promise.
                    $(($r, 4) => unsafe { vnni512_tile::<$r, 4>(t, table, b, steps, out, codes) },
                    ($r, 3) => unsafe { vnni512_tile::<$r, 3>(t, table, b, steps, out, codes) },)*
                    // SAFETY: the caller's promise.
                    $(($s, 2) => unsafe { vnni512_tile::<$s, 2>(t, table, b, steps, out, codes) },
                    ($s, 1) => unsafe { vnni512_tile::<$s, 1>(t, table, b, steps, out, codes) },)*
                    _ => {
                        // Tall tiles before wide panels: two at a time.
                        let (first, rest) = (codes.map(|c| Emit { width: 2 * NR, ..*c }), codes.map(|c| c.after(2 * NR)));
                        // SAFETY: the caller's promise.
                        unsafe {
                            vnni512(t, table, b, steps, 2, out, first.as_ref());
                            let b = b.add(2 * steps * STEP);
                            vnni512(t, table, b, steps, count - 2, out.add(2 * NR), rest.as_ref());
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
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    unsafe fn vnni512_tile<const R: usize, const P: usize>(
        t: &Tile,
        table: &Table<u8>,
        b: *const i8,
        steps: usize,
        out: *mut i32,
        codes: Option<&Emit<'_>>,
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
            if let Some(codes) = codes {
                emit(&acc, codes);
                return;
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

/// The dot products of bytes have no stable intrinsics; they are one instruction each.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::*;

    /// Where a CPU multiplies signed bytes by signed ones only, `a` is read with its top bit flipped, which is 128 less.
    const FLIP: u32 = 0x8080_8080;

    /// `acc[j] + Σ_q a[4j + q] · b[4j + q]`.
    #[inline]
    #[target_feature(enable = "neon,i8mm")]
    fn usdot(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction reads and writes these registers only.
        unsafe {
            asm!("usdot {acc:v}.4s, {a:v}.16b, {b:v}.16b", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    /// The same of signed bytes.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction reads and writes these registers only.
        unsafe {
            asm!("sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    /// Calls `$f::<rows>` for as many rows as there are, up to six.
    macro_rules! by_rows {
        ($f:ident($rows:expr, $($arg:expr),*)) => {
            match $rows {
                1 => $f::<1>($($arg),*),
                2 => $f::<2>($($arg),*),
                3 => $f::<3>($($arg),*),
                4 => $f::<4>($($arg),*),
                5 => $f::<5>($($arg),*),
                _ => $f::<6>($($arg),*),
            }
        };
    }

    /// Runs the body for all groups of four steps of all segments: where the panel's group is, and what reads four bytes of a row.
    macro_rules! over_groups {
        ($t:ident, $first:expr, $table:ident, $b:ident, |$at:ident, $read:ident| $body:block) => {
            let (pointers, positions) = $table.of($t);
            for s in 0..$t.segments {
                let start = pointers.add(s * $t.rows + $first);
                let b = $b.add(*positions.add(s) as usize * NR);
                let (whole, rest) = groups($t.len);
                for g in 0..whole {
                    let $at = b.add(g * STEP);
                    let $read = |r: usize| (*start.add(r)).add(4 * g).cast::<u32>().read_unaligned();
                    $body
                }
                if rest > 0 {
                    let $at = b.add(whole * STEP);
                    let $read = |r: usize| tail((*start.add(r)).add(4 * whole), rest) as u32;
                    $body
                }
            }
        };
    }

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "neon,i8mm")]
    pub(super) unsafe fn i8mm(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(i8mm_tile(t.rows, t, table, b, out)) }
    }

    /// # Safety
    /// As [`block`]; the tile has `R` rows.
    #[inline]
    #[target_feature(enable = "neon,i8mm")]
    unsafe fn i8mm_tile<const R: usize>(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        let mut acc = [[vdupq_n_s32(0); 4]; R];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            over_groups!(t, 0, table, b, |at, read| {
                let w: [int8x16_t; 4] =
                    [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))];
                for r in 0..R {
                    let a = vreinterpretq_u8_u32(vdupq_n_u32(read(r)));
                    for i in 0..4 {
                        acc[r][i] = usdot(acc[r][i], a, w[i]);
                    }
                }
            });
            for r in 0..R {
                for i in 0..4 {
                    vst1q_s32(out.add(r * COLUMNS + 4 * i), acc[r][i]);
                }
            }
        }
    }

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "neon,dotprod")]
    pub(super) unsafe fn dotprod(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(dotprod_tile(t.rows, t, table, b, out)) }
    }

    /// Rows are 128 less than they are; a row of ones gives what that takes away.
    ///
    /// # Safety
    /// As [`block`]; the tile has `R` rows.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dotprod_tile<const R: usize>(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        let (mut acc, mut all) = ([[vdupq_n_s32(0); 4]; R], [vdupq_n_s32(0); 4]);
        let one = vdupq_n_s8(1);
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            over_groups!(t, 0, table, b, |at, read| {
                let w: [int8x16_t; 4] =
                    [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))];
                for i in 0..4 {
                    all[i] = sdot(all[i], one, w[i]);
                }
                for r in 0..R {
                    let a = vreinterpretq_s8_u32(vdupq_n_u32(read(r) ^ FLIP));
                    for i in 0..4 {
                        acc[r][i] = sdot(acc[r][i], a, w[i]);
                    }
                }
            });
            for r in 0..R {
                for i in 0..4 {
                    vst1q_s32(out.add(r * COLUMNS + 4 * i), vaddq_s32(acc[r][i], vshlq_n_s32::<7>(all[i])));
                }
            }
        }
    }

    /// One panel.
    ///
    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn neon(t: &Tile, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut r = 0;
            while r + 2 <= t.rows {
                neon_tile::<2>(t, r, table, b, out);
                r += 2;
            }
            if r < t.rows {
                neon_tile::<1>(t, r, table, b, out);
            }
        }
    }

    /// `R` rows of the tile, from `first` on, which are 128 less than they are as in [`dotprod_tile`].
    ///
    /// # Safety
    /// As [`block`]; the tile has the rows.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn neon_tile<const R: usize>(t: &Tile, first: usize, table: &Table<u8>, b: *const i8, out: *mut i32) {
        // Two columns a vector, each as the sums of steps 0 and 1 and of steps 2 and 3. A product of two signed bytes has 16 bits.
        let (mut acc, mut all) = ([[vdupq_n_s32(0); 8]; R], [vdupq_n_s32(0); 8]);
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            over_groups!(t, first, table, b, |at, read| {
                let a: [int8x8_t; R] = std::array::from_fn(|r| vreinterpret_s8_u32(vdup_n_u32(read(r) ^ FLIP)));
                for i in 0..8 {
                    let w = vld1_s8(at.add(8 * i));
                    all[i] = vpadalq_s16(all[i], vmovl_s8(w));
                    for r in 0..R {
                        acc[r][i] = vpadalq_s16(acc[r][i], vmull_s8(a[r], w));
                    }
                }
            });
            for r in 0..R {
                for i in 0..4 {
                    let sums = vpaddq_s32(acc[r][2 * i], acc[r][2 * i + 1]);
                    let flipped = vshlq_n_s32::<7>(vpaddq_s32(all[2 * i], all[2 * i + 1]));
                    vst1q_s32(out.add((first + r) * COLUMNS + 4 * i), vaddq_s32(sums, flipped));
                }
            }
        }
    }
}
