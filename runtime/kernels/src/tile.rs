//! The micro-kernel of every product and convolution summed in `f32`: some rows of the left side by one panel of weights, summed in
//! registers, finished there, stored.
//!
//! Where the rows lie is in a [`Table`]: for each tile of rows one or more segments, for each segment a pointer a row. A row of
//! a matrix is one segment; a row of a convolution is one segment a kernel position (or fewer, where neighbours in the
//! kernel are neighbours in memory). So a convolution is a matrix product that copies nothing.
//!
//! How elements are multiplied is a [`Multiply`]: one more type of weights is one more of these.
//!
//! Dimension letters: `M` rows, `K` reduction, `N` columns.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::epilogue::{self, Activation};
use crate::gemm::NR;
use crate::isa::{Form, Isa};
use crate::simd::{F32s, per_isa};

/// Pointers a table holds.
pub(crate) const POINTERS: usize = 4096;
/// Tiles a table holds, and rows of segments.
const TILES: usize = 256;

/// An element type of packed weights.
pub(crate) trait Weight: Copy {
    /// Most rows of a tile.
    fn rows(form: Form) -> usize {
        tile_rows(form.isa())
    }

    /// Elements of left rows that a block of tiles should not exceed, so that they stay in the second-level cache while every
    /// panel passes by.
    fn reach(_form: Form) -> usize {
        32 * 1024
    }

    /// The columns of some panels of the rows of all tiles, in one of the forms this CPU has.
    ///
    /// # Safety
    /// As [`block`].
    unsafe fn block(form: Form, job: &Job<Self>, table: &Table<f32>, panels: Range<usize>)
    where
        Self: Sized;
}

impl Weight for f32 {
    unsafe fn block(form: Form, job: &Job<f32>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe { floats::on(form.isa(), job, table, panels) }
    }
}

impl Weight for i8 {
    unsafe fn block(form: Form, job: &Job<i8>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe { integers::on(form.isa(), job, table, panels) }
    }
}

/// How elements of rows and weights are multiplied in vectors `S`. One step of `K` takes one element of each.
///
/// Every method is `unsafe` for two reasons: the element must exist, and the CPU must have the instructions.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Multiply<S: F32s>: Copy {
    /// An element of a row.
    type Left: Copy;
    /// An element of a row for every lane.
    type Splat: Copy;
    /// A weight for every lane.
    type Lanes: Copy;
    /// Sums are multiplied by a scale a column.
    const SCALED: bool = false;
    /// Products an element of a row and one of the weights make, one after the other.
    const PARTS: usize = 1;
    unsafe fn splat(p: *const Self::Left, part: usize) -> Self::Splat;
    /// `S::LANES` weights.
    unsafe fn lanes(p: *const Self, part: usize) -> Self::Lanes;
    unsafe fn sum(a: Self::Splat, b: Self::Lanes, acc: S) -> S;
}

impl<S: F32s> Multiply<S> for f32 {
    type Left = f32;
    type Splat = S;
    type Lanes = S;
    #[inline(always)]
    unsafe fn splat(p: *const f32, _: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::splat(*p) }
    }
    #[inline(always)]
    unsafe fn lanes(p: *const f32, _: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn sum(a: S, b: S, acc: S) -> S {
        // SAFETY: the caller's promise.
        unsafe { a.mul_add(b, acc) }
    }
}

impl<S: F32s> Multiply<S> for i8 {
    type Left = f32;
    type Splat = S;
    type Lanes = S;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn splat(p: *const f32, _: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::splat(*p) }
    }
    #[inline(always)]
    unsafe fn lanes(p: *const i8, _: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load_i8(p) }
    }
    #[inline(always)]
    unsafe fn sum(a: S, b: S, acc: S) -> S {
        // SAFETY: the caller's promise.
        unsafe { a.mul_add(b, acc) }
    }
}

/// Some neighbouring rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// The first of them.
    pub(crate) row: usize,
    /// How many, at most [`Weight::rows`].
    pub(crate) rows: usize,
    /// Segments.
    pub(crate) segments: usize,
    /// Elements of a segment.
    pub(crate) len: usize,
    /// The first of `segments · rows` pointers, segments outermost.
    pointers: usize,
    /// The first of `segments` positions.
    positions: usize,
}

impl Tile {
    /// Where results of its rows from `row` on go: no rows of a table any more.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn from(&self, row: usize) -> Tile {
        Tile { row: self.row + row, rows: self.rows - row, ..*self }
    }
}

/// Where the rows of a block of tiles lie.
pub(crate) struct Table<T> {
    tiles: [MaybeUninit<Tile>; TILES],
    count: usize,
    pointers: [MaybeUninit<*const T>; POINTERS],
    used: usize,
    positions: [MaybeUninit<u32>; POINTERS],
    placed: usize,
}

impl<T> Table<T> {
    /// An empty table in memory that was not written yet.
    ///
    /// # Safety
    /// `at` is good for writes.
    #[inline(always)]
    pub(crate) unsafe fn start(at: *mut Table<T>) {
        // SAFETY: the caller's promise; everything else may be uninitialised.
        unsafe {
            (&raw mut (*at).count).write(0);
            (&raw mut (*at).used).write(0);
            (&raw mut (*at).placed).write(0);
        }
    }

    pub(crate) fn clear(&mut self) {
        (self.count, self.used, self.placed) = (0, 0, 0);
    }

    pub(crate) fn tiles(&self) -> &[Tile] {
        // SAFETY: `push` has written the first `count`.
        unsafe { std::slice::from_raw_parts(self.tiles.as_ptr().cast(), self.count) }
    }

    /// Whether a tile of so many pointers still fits.
    pub(crate) fn has_room(&self, segments: usize, rows: usize) -> bool {
        self.count < TILES && self.used + segments * rows <= POINTERS && self.placed + segments <= POINTERS
    }

    /// Adds a tile of `rows` rows whose segments are given by [`Table::segment`] afterwards.
    pub(crate) fn push(&mut self, row: usize, rows: usize, len: usize) {
        let tile = Tile { row, rows, segments: 0, len, pointers: self.used, positions: self.placed };
        self.tiles[self.count].write(tile);
        self.count += 1;
    }

    /// Adds a segment to the last tile, which starts at position `at` of `K`: one pointer for each of its rows.
    #[inline(always)]
    pub(crate) fn segment(&mut self, at: usize, pointers: impl ExactSizeIterator<Item = *const T>) {
        // SAFETY: a tile has been pushed.
        let tile = unsafe { self.tiles[self.count - 1].assume_init_mut() };
        assert!(pointers.len() == tile.rows, "a segment has a pointer a row");
        for (to, pointer) in self.pointers[self.used..self.used + tile.rows].iter_mut().zip(pointers) {
            to.write(pointer);
        }
        tile.segments += 1;
        self.used += tile.rows;
        self.positions[self.placed].write(at as u32);
        self.placed += 1;
    }

    /// Pointers and positions of a tile of this table.
    pub(crate) fn of(&self, tile: &Tile) -> (*const *const T, *const u32) {
        let pointers = self.pointers[tile.pointers..tile.pointers + tile.segments * tile.rows].as_ptr();
        (pointers.cast(), self.positions[tile.positions..tile.positions + tile.segments].as_ptr().cast())
    }
}

/// Most rows of a tile on an instruction set.
fn tile_rows(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => std::arch::x86_64::__m512::ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => std::arch::x86_64::__m256::ROWS,
        _ => crate::simd::Base::ROWS,
    }
}

/// Heights of tiles: `rows` in nearly equal parts of at most `most`, because a tile of one row would wait for memory.
pub(crate) fn heights(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    let (base, more) = (rows.checked_div(count).unwrap_or(0), rows.checked_rem(count).unwrap_or(0));
    (0..count).map(move |t| (t * base + t.min(more), base + usize::from(t < more)))
}

/// What tiles are multiplied with, and where the results go.
#[derive(Clone, Copy)]
pub(crate) struct Job<W> {
    /// Panels of `K` rows of [`NR`] weights.
    pub(crate) w: *const W,
    /// Reduction length of a panel.
    pub(crate) k: usize,
    /// Columns.
    pub(crate) n: usize,
    /// `N` scales, when weights are scaled.
    pub(crate) scale: *const f32,
    /// `N` floats, or null.
    pub(crate) bias: *const f32,
    /// Row 0, column 0 of the results.
    pub(crate) y: *mut f32,
    /// Distance between rows of results.
    pub(crate) stride: usize,
    /// Added before the activation: of the same shape and strides as `y`, may be `y`; or null.
    pub(crate) addend: *const f32,
    /// The activation.
    pub(crate) activation: Activation,
    /// Added after the activation, or null.
    pub(crate) after: *const f32,
}

per_isa! { floats = block_f32; (job: &Job<f32>, table: &Table<f32>, panels: Range<usize>) }
per_isa! { integers = block_i8; (job: &Job<i8>, table: &Table<f32>, panels: Range<usize>) }

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn block_f32<S: F32s>(job: &Job<f32>, table: &Table<f32>, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        if S::Half::LANES < S::LANES && job.n <= S::Half::LANES && panels.contains(&0) {
            // Half of each vector would be multiplied for nothing: low-rank paths are as wide as their rank.
            narrow::<S, f32>(job, table);
        } else {
            block::<S, f32>(job, table, panels);
        }
    }
}

/// All columns, of which there are no more than half a vector, of the rows of all tiles.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn narrow<S: F32s, W: Multiply<S::Half>>(job: &Job<W>, table: &Table<W::Left>) {
    for t in table.tiles() {
        macro_rules! by_height {
            ($($r:literal)*) => {
                match t.rows {
                    // SAFETY: the caller's promise; half vectors need no more registers.
                    $($r if $r <= S::ROWS => unsafe { tile::<S::Half, W, $r, 1>(job, table, t, 0) },)*
                    _ => {}
                }
            };
        }
        by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn block_i8<S: F32s>(job: &Job<i8>, table: &Table<f32>, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { block::<S, i8>(job, table, panels) }
}

/// The columns of some panels of the rows of all tiles.
///
/// # Safety
/// The pointers of the table lead to segments as long as it says, the positions to weights that exist, everything in the job is
/// as long as it says, nobody else is at those results, and the CPU has the instructions.
#[inline(always)]
pub(crate) unsafe fn block<S: F32s, W: Multiply<S>>(job: &Job<W>, table: &Table<W::Left>, panels: Range<usize>) {
    let last = job.n.min(panels.end * NR);
    let mut column = panels.start * NR;
    let tiles = table.tiles();
    while column < last {
        let left = last - column;
        let mut taken = S::NV * S::LANES;
        if let [t] = tiles
            && t.rows <= 2
            && left > taken
        {
            // Few rows: more columns at once, so that enough sums are under way and the weights come in several streams.
            taken = 64;
            // SAFETY: the caller's promise; the tile has at least one row.
            unsafe {
                match (t.rows, S::LANES) {
                    (1, 4) => tile::<S, W, 1, 16>(job, table, t, column),
                    (1, 8) => tile::<S, W, 1, 8>(job, table, t, column),
                    (1, _) => tile::<S, W, 1, 4>(job, table, t, column),
                    (_, 8) => {
                        tile::<S, W, 2, 4>(job, table, t, column);
                        taken = 32;
                    }
                    (_, 16) => tile::<S, W, 2, 4>(job, table, t, column),
                    _ => {
                        tile::<S, W, 2, 4>(job, table, t, column);
                        taken = 16;
                    }
                }
            }
        } else if left <= taken / 2 {
            for t in tiles {
                macro_rules! by_height {
                    ($($r:literal)*) => {
                        match (t.rows, S::NV) {
                            // SAFETY: the caller's promise.
                            $(($r, 4) if $r <= S::ROWS => unsafe { tile::<S, W, $r, 2>(job, table, t, column) },
                            ($r, 2) if $r <= S::ROWS => unsafe { tile::<S, W, $r, 1>(job, table, t, column) },)*
                            _ => {}
                        }
                    };
                }
                by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
            }
        } else {
            for t in tiles {
                macro_rules! by_height {
                    ($($r:literal)*) => {
                        match (t.rows, S::NV) {
                            // SAFETY: the caller's promise.
                            $(($r, 4) if $r <= S::ROWS => unsafe { tile::<S, W, $r, 4>(job, table, t, column) },
                            ($r, 2) if $r <= S::ROWS => unsafe { tile::<S, W, $r, 2>(job, table, t, column) },)*
                            // SAFETY: as above; where there are no vectors at all.
                            (1, _) => unsafe { tile::<S, W, 1, 16>(job, table, t, column) },
                            _ => {}
                        }
                    };
                }
                by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
            }
        }
        column += taken;
    }
}

/// `R` rows by `V` vectors of columns from `column` on.
///
/// # Safety
/// As [`block`]; the tile has `R` rows, and `column` is below `N`.
#[inline(always)]
unsafe fn tile<S: F32s, W: Multiply<S>, const R: usize, const V: usize>(
    job: &Job<W>,
    table: &Table<W::Left>,
    t: &Tile,
    column: usize,
) {
    // SAFETY: all pointers stay inside what the caller promises. Panels whose columns are all beyond N are not read: a
    // vector that begins there reads the panel of the last column in its place, and its sums are not stored.
    unsafe {
        let (pointers, positions) = table.of(t);
        let mut acc = [[S::splat(0.0); V]; R];
        let panels: [*const W; V] = std::array::from_fn(|v| {
            let at = column + v * S::LANES;
            let at = if at < job.n { at } else { column };
            job.w.add(at / NR * job.k * NR + at % NR)
        });
        for s in 0..t.segments {
            let rows: [*const W::Left; R] = std::array::from_fn(|r| *pointers.add(s * R + r));
            let first = *positions.add(s) as usize * NR;
            for k in 0..t.len {
                for part in 0..W::PARTS {
                    let b: [W::Lanes; V] = std::array::from_fn(|v| W::lanes(panels[v].add(first + k * NR), part));
                    for r in 0..R {
                        let a = W::splat(rows[r].add(k), part);
                        for v in 0..V {
                            acc[r][v] = W::sum(a, b[v], acc[r][v]);
                        }
                    }
                }
            }
        }
        put::<S, W, R, V>(job, t, column, &acc);
    }
}

/// Finishes and stores the sums of a tile.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(crate) unsafe fn put<S: F32s, W: Multiply<S>, const R: usize, const V: usize>(
    job: &Job<W>,
    t: &Tile,
    column: usize,
    acc: &[[S; V]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let width = (V * S::LANES).min(job.n - column);
        let at = t.row * job.stride + column;
        // Written out row by row: a loop over twelve rows is not unrolled, and the accumulators would live in memory.
        macro_rules! rows {
            ($whole:literal: $($r:literal)*) => {{
                let finish = Finish::<S, V>::new::<W, $whole>(job, column, width);
                $(if $r < R {
                    finish.row::<W, $whole>(job, acc[$r % R], at + $r * job.stride, width);
                })*
            }};
        }
        if width == V * S::LANES {
            rows!(true: 0 1 2 3 4 5 6 7 8 9 10 11);
        } else {
            rows!(false: 0 1 2 3 4 5 6 7 8 9 10 11);
        }
        if job.activation.limits().is_none() || !job.after.is_null() {
            let activation = if job.activation.limits().is_none() { job.activation } else { Activation::None };
            let after = if job.after.is_null() { job.after } else { job.after.add(at) };
            epilogue::rows::on(S::ISA, activation, job.y.add(at), width, R, job.stride, after);
        }
    }
}

/// What the sums of some columns become.
struct Finish<S, const V: usize> {
    scale: [S; V],
    bias: [S; V],
    low: S,
    high: S,
}

impl<S: F32s, const V: usize> Finish<S, V> {
    /// # Safety
    /// As [`tile`]; `WHOLE` only when all columns exist.
    #[inline(always)]
    unsafe fn new<W: Multiply<S>, const WHOLE: bool>(job: &Job<W>, column: usize, width: usize) -> Finish<S, V> {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = job.activation.limits().unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
            let (mut scale, mut bias) = ([S::splat(1.0); V], [S::splat(0.0); V]);
            for v in 0..V {
                let at = column + v * S::LANES;
                if W::SCALED {
                    scale[v] = load::<S, WHOLE>(job.scale.wrapping_add(at), width, v);
                }
                if !job.bias.is_null() {
                    bias[v] = load::<S, WHOLE>(job.bias.wrapping_add(at), width, v);
                }
            }
            Finish { scale, bias, low: S::splat(low), high: S::splat(high) }
        }
    }

    /// Stores one row at `at`.
    ///
    /// # Safety
    /// As [`Finish::new`].
    #[inline(always)]
    unsafe fn row<W: Multiply<S>, const WHOLE: bool>(&self, job: &Job<W>, mut sums: [S; V], at: usize, width: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for v in 0..V {
                if W::SCALED {
                    sums[v] = sums[v].mul(self.scale[v]);
                }
                sums[v] = sums[v].add(self.bias[v]);
            }
            if !job.addend.is_null() {
                for v in 0..V {
                    let from = job.addend.wrapping_add(at + v * S::LANES);
                    sums[v] = sums[v].add(load::<S, WHOLE>(from, width, v));
                }
            }
            for v in 0..V {
                let value = self.high.min(self.low.max(sums[v]));
                let to = job.y.wrapping_add(at + v * S::LANES);
                if WHOLE {
                    value.store(to);
                } else {
                    value.store_part(to, width.saturating_sub(v * S::LANES));
                }
            }
        }
    }
}

/// Vector `v` of a row of `width`, from `p` on.
///
/// # Safety
/// What lies within the width exists, and the CPU has the instructions.
#[inline(always)]
pub(crate) unsafe fn load<S: F32s, const WHOLE: bool>(p: *const f32, width: usize, v: usize) -> S {
    // SAFETY: the caller's promise.
    unsafe { if WHOLE { S::load(p) } else { S::load_part(p, width.saturating_sub(v * S::LANES)) } }
}
