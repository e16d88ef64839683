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
mod x86;

#[cfg(target_arch = "aarch64")]
mod arm;
