//! Products with weights of bf16: half the memory of `f32`, and twice the multiplications where the CPU multiplies bf16.
//!
//! A product is that of [`crate::gemm`] or [`crate::nhwc`] with other weights. Both operands are rounded to bf16, sums are
//! `f32`: so says the reference, and every form, whether or not the CPU has instructions for it, computes just that. Weights
//! are rounded when they are packed; rows when they are multiplied, once for all panels.
//!
//! `bfdot`, `bfmmla`, `vdpbf16ps` and `tdpbf16ps` take two steps of `K` at once, so weights are packed in pairs:
//! `panel[p][k / 2][j] = (w[p·NR + j][k], w[p·NR + j][k + 1])`, zero beyond `N` and `K`.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::gemm::{self, Kernel};
use crate::isa::{Form, Isa};
use crate::simd::{F32s, per_isa};
use crate::tile::{Job, Multiply, Table, Tile, Weight, block};

/// Two neighbouring steps of `K`, the first in the low half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pair(pub u32);

impl Pair {
    /// The first (0) or second (1) of the two.
    pub fn part(self, part: usize) -> f32 {
        widen((self.0 >> (16 * part)) as u16)
    }
}

/// The words of pairs.
pub fn words(pairs: &[Pair]) -> &[u32] {
    // SAFETY: a pair is a word, by its representation.
    unsafe { std::slice::from_raw_parts(pairs.as_ptr().cast(), pairs.len()) }
}

/// Memory for floats as memory for as many pairs.
pub fn of_floats(memory: &mut [f32]) -> &mut [Pair] {
    // SAFETY: a pair is a word, by its representation, and any bits are a pair or a float.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), memory.len()) }
}

/// The nearest bf16, half to even: the high half of such an `f32`. NaN stays NaN.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // The low half of a NaN may be all that makes it one.
    (if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x40_0000 } else { nearest } >> 16) as u16
}

/// The same number in `f32`.
#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Pairs a packed `[n, k]` matrix takes.
pub const fn packed_len(n: usize, k: usize) -> usize {
    gemm::packed_len(n, k.div_ceil(2))
}

/// Rounds `w` (`w(j, k)` gives row `j`, column `k`) and packs it. `out` has [`packed_len`]`(n, k)` elements.
///
/// # Panics
/// When `out` is too short.
pub fn pack(n: usize, k: usize, w: impl Fn(usize, usize) -> f32, out: &mut [Pair]) {
    let of = |j: usize, kk: usize| if kk < k { u32::from(round(w(j, kk))) } else { 0 };
    gemm::pack(n, k.div_ceil(2), |j, pair| Pair(of(j, 2 * pair) | of(j, 2 * pair + 1) << 16), out);
}

/// How this CPU multiplies bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    /// Widened to `f32`.
    Widened,
    /// Pair by pair in vectors: at twice the pace of `f32` on some CPUs, at the same on others.
    Pairs,
    /// In a matrix unit: many times faster.
    Tiles,
}

/// How this CPU does it.
pub fn native() -> Native {
    match Form::best() {
        Form::AmxBf16 => Native::Tiles,
        form if form.multiplies_bf16() => Native::Pairs,
        _ => Native::Widened,
    }
}

/// Every form for weights of bf16, best first.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wbf16-amx", available: || Form::AmxBf16.available(), form: Form::AmxBf16 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wbf16-avx512bf16", available: || Form::Avx512Bf16.available(), form: Form::Avx512Bf16 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "aarch64-f32wbf16-bfmmla", available: || Form::Bfmmla.available(), form: Form::Bfmmla },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "aarch64-f32wbf16-bfdot", available: || Form::Bfdot.available(), form: Form::Bfdot },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wbf16-avx512", available: || Isa::Avx512.available(), form: Form::Floats(Isa::Avx512) },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wbf16-avx2", available: || Isa::Avx2.available(), form: Form::Floats(Isa::Avx2) },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "aarch64-f32wbf16-neon", available: || Isa::Any.available(), form: Form::Floats(Isa::Any) },
    #[cfg(not(target_arch = "aarch64"))]
    Kernel { name: "any-f32wbf16", available: || Isa::Any.available(), form: Form::Floats(Isa::Any) },
];

impl Weight for Pair {
    fn rows(form: Form) -> usize {
        match form {
            Form::AmxBf16 => ROWS,
            _ => <f32 as Weight>::rows(form),
        }
    }

    fn reach(form: Form) -> usize {
        match form {
            // As many as there is memory for: weights are multiplied as fast as they come.
            Form::AmxBf16 => FAR / 2,
            _ => <f32 as Weight>::reach(form),
        }
    }

    unsafe fn block(form: Form, job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            match form {
                #[cfg(target_arch = "x86_64")]
                Form::AmxBf16 => x86::tiles(job, table, panels),
                #[cfg(target_arch = "x86_64")]
                Form::Avx512Bf16 => x86::dots(job, table, panels),
                #[cfg(target_arch = "aarch64")]
                Form::Bfmmla => arm::matrices(job, table, panels),
                #[cfg(target_arch = "aarch64")]
                Form::Bfdot => arm::dots(job, table, panels),
                _ => widened::on(form.isa(), job, table, panels),
            }
        }
    }
}

per_isa! { widened = block_widened; (job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) }

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn block_widened<S: F32s>(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { rounded::<By<S, Pair>, NEAR>(job, table, panels) }
}

// Rows and weights of `f32`, widened.
impl<S: F32s> Multiply<S> for Pair {
    type Left = [f32; 2];
    type Splat = S;
    type Lanes = S;
    const PARTS: usize = 2;
    #[inline(always)]
    unsafe fn splat(p: *const [f32; 2], part: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::splat(*p.cast::<f32>().add(part)) }
    }
    #[inline(always)]
    unsafe fn lanes(p: *const Pair, part: usize) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p.cast(), part) }
    }
    #[inline(always)]
    unsafe fn sum(a: S, b: S, acc: S) -> S {
        // SAFETY: the caller's promise.
        unsafe { a.mul_add(b, acc) }
    }
}

/// What becomes of rounded rows. A closure would not be compiled for the instruction set of who calls it.
trait Sums {
    /// Two neighbouring elements of such a row.
    type Left: Rounded;
    /// Rounds `n` elements.
    ///
    /// # Safety
    /// They exist, there is room for them elsewhere, and the CPU has the instructions.
    #[inline(always)]
    unsafe fn round(from: *const f32, n: usize, to: *mut <Self::Left as Rounded>::Part) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write(Self::Left::of(*from.add(i))) };
        }
    }
    /// Pairs from row to row of `pairs`; those in between are zero.
    fn pitch(pairs: usize) -> usize {
        pairs
    }
    /// The columns of some panels of the rows of all tiles.
    ///
    /// # Safety
    /// As [`block`].
    unsafe fn sums(job: &Job<Pair>, table: &Table<Self::Left>, panels: Range<usize>);
}

/// Sums in vectors `S` of pairs that are multiplied as `W`, a pair by its representation.
struct By<S, W>(PhantomData<(S, W)>);

impl<S: F32s, W: Multiply<S, Left: Rounded>> Sums for By<S, W> {
    type Left = W::Left;
    #[inline(always)]
    unsafe fn sums(job: &Job<Pair>, table: &Table<W::Left>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe { block::<S, W>(&multiplied_as(job), table, panels) }
    }
}

/// The same job, of weights taken as another type of the same bits.
#[inline(always)]
fn multiplied_as<W>(job: &Job<Pair>) -> Job<W> {
    const { assert!(size_of::<W>() == size_of::<Pair>()) };
    let Job { w, k, n, scale, bias, y, stride, addend, activation, after } = *job;
    Job { w: w.cast(), k, n, scale, bias, y, stride, addend, activation, after }
}

/// Two neighbouring elements of a rounded row.
trait Rounded: Copy {
    /// One of them.
    type Part: Copy;
    fn of(x: f32) -> Self::Part;
}

impl Rounded for Pair {
    type Part = u16;
    #[inline(always)]
    fn of(x: f32) -> u16 {
        round(x)
    }
}

impl Rounded for [f32; 2] {
    type Part = f32;
    #[inline(always)]
    fn of(x: f32) -> f32 {
        widen(round(x))
    }
}

/// Bytes of rounded rows at a time: they stay in the second-level cache while every panel passes by.
const NEAR: usize = 128 * 1024;
/// The same where a product takes less time than its weights to come, on CPUs with large caches.
const FAR: usize = 384 * 1024;
/// Most rows of a tile.
const ROWS: usize = 16;

/// Rounded rows, and where they lie: they begin at a whole word, where a table of pointers ends.
#[repr(align(64))]
struct Rows<L, const BYTES: usize> {
    table: Table<L>,
    rows: [MaybeUninit<u8>; BYTES],
}

/// Rounds the rows of the table, as many tiles as there is memory for at a time, and sums. Rows too long are taken
/// in parts, whose sums wait in the results.
///
/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn rounded<T: Sums, const BYTES: usize>(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
    let pairs = job.k.div_ceil(2);
    let room = BYTES / size_of::<T::Left>();
    // What is filled up is less than a row of [`ROWS`].
    let parts = pairs.div_ceil(room / ROWS - ROWS).max(1);
    // Parts have two lengths, and the shorter one may be filled up to more.
    let longest = T::pitch(pairs.div_ceil(parts)).max(T::pitch(pairs / parts));
    let mut memory = MaybeUninit::<Rows<T::Left, BYTES>>::uninit();
    let at = memory.as_mut_ptr();
    // SAFETY: an empty table is made where it lies; the rest of it, and the rows, may be uninitialised. A group of tiles has at most
    // as many pairs as there is room for, and at least one tile, which has at most [`ROWS`] rows.
    unsafe {
        Table::start(&raw mut (*at).table);
        let rows = &mut *at;
        let mut tiles = table.tiles();
        while !tiles.is_empty() {
            let mut all = 0;
            let fit = tiles.iter().take_while(|t| {
                all += t.rows * longest;
                all <= room
            });
            let (now, later) = tiles.split_at(fit.count().max(1));
            tiles = later;
            for part in 0..parts {
                let steps = gemm::share(pairs, parts, part);
                let mut to = rows.rows.as_mut_ptr().cast::<T::Left>();
                let pitch = T::pitch(steps.len());
                debug_assert!(now.iter().map(|t| t.rows * pitch).sum::<usize>() <= room, "rounded rows have no room");
                rows.table.clear();
                for t in now {
                    round_tile::<T>(t, table, &steps, pitch, to);
                    rows.table.push(t.row, t.rows, steps.len());
                    let starts = (0..t.rows).map(|r| to.wrapping_add(r * pitch).cast_const());
                    rows.table.segment(steps.start, starts);
                    to = to.wrapping_add(t.rows * pitch);
                }
                let (first, last) = (part == 0, part + 1 == parts);
                let job = Job {
                    k: pairs,
                    bias: if first { job.bias } else { std::ptr::null() },
                    addend: if first { job.addend } else { job.y.cast_const() },
                    activation: if last { job.activation } else { Default::default() },
                    after: if last { job.after } else { std::ptr::null() },
                    ..*job
                };
                T::sums(&job, &rows.table, panels.clone());
            }
        }
    }
}

/// Rounds pairs `steps` of the rows of a tile to rows `pitch` pairs apart. Positions that are in no segment are 0.
///
/// # Safety
/// The tile is the table's, whose pointers lead to rows, and there is room for the result.
#[inline(always)]
unsafe fn round_tile<T: Sums>(t: &Tile, table: &Table<f32>, steps: &Range<usize>, pitch: usize, to: *mut T::Left) {
    /// # Safety
    /// There is room for `n` elements, of which no bit set is 0.
    #[inline(always)]
    unsafe fn zero<P>(to: *mut P, n: usize) {
        if n > 0 {
            // SAFETY: the caller's promise.
            unsafe { to.write_bytes(0, n) };
        }
    }
    let (pointers, positions) = table.of(t);
    let (start, end) = (2 * steps.start, 2 * (steps.start + pitch));
    for r in 0..t.rows {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(r * pitch).cast::<<T::Left as Rounded>::Part>();
            let mut done = start;
            for s in 0..t.segments {
                let at = *positions.add(s) as usize;
                let (first, last) = (at.max(start), (at + t.len).min(2 * steps.end));
                if first >= last {
                    continue;
                }
                let from = (*pointers.add(s * t.rows + r)).add(first - at);
                zero(to.add(done - start), first - done);
                T::round(from, last - first, to.add(first - start));
                done = last;
            }
            zero(to.add(done - start), end - done);
        }
    }
}

/// A pair that is multiplied as it is.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Whole(#[allow(dead_code)] Pair);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::*;
    use crate::amx::{self, Cut};
    use crate::gemm::NR;
    use crate::simd::mask;
    use crate::tile::put;

    impl Multiply<__m512> for Whole {
        type Left = Pair;
        type Splat = __m512bh;
        type Lanes = __m512bh;
        #[inline(always)]
        unsafe fn splat(p: *const Pair, _: usize) -> __m512bh {
            // SAFETY: the caller's promise; any bits are numbers of bf16.
            unsafe { transmute(_mm512_set1_epi32((*p).0 as i32)) }
        }
        #[inline(always)]
        unsafe fn lanes(p: *const Whole, _: usize) -> __m512bh {
            // SAFETY: as above.
            unsafe { transmute(_mm512_loadu_si512(p.cast())) }
        }
        #[inline(always)]
        unsafe fn sum(a: __m512bh, b: __m512bh, acc: __m512) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { _mm512_dpbf16_ps(acc, b, a) }
        }
    }

    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn dots(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            rounded::<By<__m512, Whole>, NEAR>(job, table, panels);
        }
    }

    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn tiles(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            rounded::<Tiles, FAR>(job, table, panels);
        }
    }

    struct Tiles;

    impl Tiles {
        /// How a row of so many pairs is cut into tiles.
        fn cut(pairs: usize) -> Cut {
            let pitch = Self::pitch(pairs);
            if pitch == pairs {
                return Cut::even(pairs, 4 * pitch).expect("rows that are not filled up have even parts");
            }
            Cut::filled(pairs, 4 * pitch, amx::BYTES)
        }
    }

    impl Sums for Tiles {
        type Left = Pair;

        #[inline(always)]
        unsafe fn round(from: *const f32, n: usize, to: *mut u16) {
            // SAFETY: the caller's promise.
            unsafe { round_row(from, n, to) };
        }

        fn pitch(pairs: usize) -> usize {
            if Cut::even(pairs, 0).is_some() { pairs } else { pairs.next_multiple_of(amx::LINES) }
        }

        #[inline(always)]
        unsafe fn sums(job: &Job<Pair>, table: &Table<Pair>, panels: Range<usize>) {
            let whole: Job<Whole> = multiplied_as(job);
            let Some(first) = table.tiles().first() else { return };
            let mut memory = MaybeUninit::uninit();
            let cut = Tiles::cut(first.len).of_panels(job.k);
            // SAFETY: the caller's promise: tiles have one segment each, and all the same; their rows are as long as the pitch says.
            unsafe {
                let begins = *table.of(first).1 as usize;
                let w = job.w.wrapping_add(begins * NR).cast();
                let row = |i: usize| (*table.of(&table.tiles()[i]).0).cast();
                let finish = |t: &Tile, panel: usize, wide: usize, sums: *const u32| match wide {
                    1 => finish::<1>(&whole, t, panel, sums.cast()),
                    _ => finish::<2>(&whole, t, panel, sums.cast()),
                };
                amx::walk::<true>(&cut, table.tiles(), row, w, panels, &mut memory, finish);
            }
        }
    }

    /// Rounds `n` elements; what is too small for a normal number becomes 0, as where it is multiplied.
    ///
    /// # Safety
    /// They exist, and there is room for them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn round_row(from: *const f32, n: usize, to: *mut u16) {
        let mut i = 0;
        // SAFETY: the caller's promise; lanes that are masked are neither read nor written.
        unsafe {
            while i + 32 <= n {
                let (low, high) = (_mm512_loadu_ps(from.add(i)), _mm512_loadu_ps(from.add(i + 16)));
                let both: __m512i = transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(to.add(i).cast(), both);
                i += 32;
            }
            while i < n {
                let mask = mask(n - i);
                let rounded: __m256i = transmute(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.add(i))));
                _mm256_mask_storeu_epi16(to.add(i).cast(), mask, rounded);
                i += 16;
            }
        }
    }

    /// Finishes the sums of a tile and `P` panels, rows [`amx::SUMS`] apart.
    ///
    /// # Safety
    /// As [`block`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn finish<const P: usize>(job: &Job<Whole>, t: &Tile, panel: usize, sums: *const f32) {
        let mut row = 0;
        macro_rules! rows {
            ($($r:literal)*) => {
                $(while t.rows - row >= $r {
                    let mut acc = [[_mm512_setzero_ps(); P]; $r];
                    for r in 0..$r {
                        for i in 0..P {
                            // SAFETY: the caller's promise.
                            acc[r][i] = unsafe { _mm512_loadu_ps(sums.add((row + r) * amx::SUMS + i * NR)) };
                        }
                    }
                    // SAFETY: as above; the job has the rows.
                    unsafe { put::<__m512, Whole, $r, P>(job, &t.from(row), panel * NR, &acc) };
                    row += $r;
                })*
            };
        }
        rows!(8 1);
    }
}

/// The instructions for bf16 have no stable intrinsics; they are one instruction each.
#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::*;
    use crate::gemm::NR;
    use crate::tile::put;

    impl Multiply<float32x4_t> for Whole {
        type Left = Pair;
        type Splat = uint32x4_t;
        type Lanes = uint32x4_t;
        #[inline(always)]
        unsafe fn splat(p: *const Pair, _: usize) -> uint32x4_t {
            // SAFETY: the caller's promise.
            unsafe { vdupq_n_u32((*p).0) }
        }
        #[inline(always)]
        unsafe fn lanes(p: *const Whole, _: usize) -> uint32x4_t {
            // SAFETY: the caller's promise.
            unsafe { vld1q_u32(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(a: uint32x4_t, b: uint32x4_t, acc: float32x4_t) -> float32x4_t {
            // SAFETY: the caller's promise.
            unsafe { bfdot(acc, a, b) }
        }
    }

    /// `acc[j] + a[2j] · b[2j] + a[2j + 1] · b[2j + 1]`.
    #[inline]
    #[target_feature(enable = "neon,bf16")]
    fn bfdot(mut acc: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
        // SAFETY: the instruction reads and writes these registers only.
        unsafe {
            asm!("bfdot {acc:v}.4s, {a:v}.8h, {b:v}.8h", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    /// `acc[i][j] + Σ_k a[i][k] · b[j][k]`, two by two, of four steps.
    #[inline]
    #[target_feature(enable = "neon,bf16")]
    fn bfmmla(mut acc: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            asm!("bfmmla {acc:v}.4s, {a:v}.8h, {b:v}.8h", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "neon,bf16")]
    pub(super) unsafe fn dots(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            rounded::<By<float32x4_t, Whole>, NEAR>(job, table, panels);
        }
    }

    /// # Safety
    /// As [`block`].
    #[target_feature(enable = "neon,bf16")]
    pub(super) unsafe fn matrices(job: &Job<Pair>, table: &Table<f32>, panels: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            rounded::<Matrices, NEAR>(job, table, panels);
        }
    }

    struct Matrices;

    impl Sums for Matrices {
        type Left = Pair;
        #[inline(always)]
        unsafe fn sums(job: &Job<Pair>, table: &Table<Pair>, panels: Range<usize>) {
            let whole: Job<Whole> = multiplied_as(job);
            // SAFETY: the caller's promise; a tile of this instruction set has at most 6 rows.
            unsafe {
                // One row would use half of what is multiplied.
                if let [t] = table.tiles()
                    && t.rows == 1
                {
                    return By::<float32x4_t, Whole>::sums(job, table, panels);
                }
                for panel in panels {
                    for t in table.tiles() {
                        match t.rows {
                            1 => two_by_two::<1>(&whole, table, t, panel),
                            2 => two_by_two::<2>(&whole, table, t, panel),
                            3 => two_by_two::<3>(&whole, table, t, panel),
                            4 => two_by_two::<4>(&whole, table, t, panel),
                            5 => two_by_two::<5>(&whole, table, t, panel),
                            _ => two_by_two::<6>(&whole, table, t, panel),
                        }
                    }
                }
            }
        }
    }

    /// One panel by the `R` rows of a tile, two rows and two columns a register.
    ///
    /// # Safety
    /// As [`block`]; the tile has `R` rows and one segment.
    #[inline]
    #[target_feature(enable = "neon,bf16")]
    unsafe fn two_by_two<const R: usize>(job: &Job<Whole>, table: &Table<Pair>, t: &Tile, panel: usize) {
        /// Most pairs of rows.
        const TWOS: usize = 3;
        let (pointers, positions) = table.of(t);
        let mut acc = [[vdupq_n_f32(0.0); 8]; TWOS];
        // SAFETY: the caller's promise; loads need no alignment.
        unsafe {
            // An odd last row is taken twice.
            let rows: [*const Pair; R] = std::array::from_fn(|r| *pointers.add(r));
            let w = job.w.add((panel * job.k + *positions as usize) * NR).cast::<u32>();
            let mut k = 0;
            while k < t.len {
                // The last two steps may be two alone.
                let both = k + 2 <= t.len;
                let four = |r: usize| match both {
                    true => vld1_u32(rows[r.min(R - 1)].add(k).cast()),
                    false => vcreate_u32(u64::from((*rows[r.min(R - 1)].add(k)).0)),
                };
                let a: [uint32x4_t; TWOS] = std::array::from_fn(|i| vcombine_u32(four(2 * i), four(2 * i + 1)));
                for q in 0..4 {
                    let b0 = vld1q_u32(w.add(k * NR + 4 * q));
                    let b1 = if both { vld1q_u32(w.add((k + 1) * NR + 4 * q)) } else { vdupq_n_u32(0) };
                    let (low, high) = (vzip1q_u32(b0, b1), vzip2q_u32(b0, b1));
                    for i in 0..R.div_ceil(2) {
                        acc[i][2 * q] = bfmmla(acc[i][2 * q], a[i], low);
                        acc[i][2 * q + 1] = bfmmla(acc[i][2 * q + 1], a[i], high);
                    }
                }
                k += 2;
            }
            let row = |r: usize| -> [float32x4_t; 4] {
                std::array::from_fn(|q| {
                    let halves = [acc[r / 2][2 * q], acc[r / 2][2 * q + 1]].map(|v| vreinterpretq_f64_f32(v));
                    vreinterpretq_f32_f64(match r % 2 {
                        0 => vzip1q_f64(halves[0], halves[1]),
                        _ => vzip2q_f64(halves[0], halves[1]),
                    })
                })
            };
            let sums: [[float32x4_t; 4]; R] = std::array::from_fn(row);
            put::<float32x4_t, Whole, R, 4>(job, t, panel * NR, &sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::NR;

    #[test]
    fn rounding_is_to_the_nearest_half_to_even_and_keeps_what_is_no_number() {
        for (x, want) in [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f80_7fff), 0x3f80),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
        ] {
            assert_eq!(round(x), want, "{x:e}");
        }
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(widen(round(nan)).is_nan());
        }
        // Against the definition: no other bf16 is nearer.
        for bits in (0..0x7f00_0000u32).step_by(99_991) {
            let x = f64::from(f32::from_bits(bits));
            let got = round(f32::from_bits(bits));
            let error = (f64::from(widen(got)) - x).abs();
            for other in [got.saturating_sub(1), got + 1] {
                assert!(error <= (f64::from(widen(other)) - x).abs(), "{x:e}");
            }
        }
    }

    #[test]
    fn a_packed_element_is_where_the_packing_says_and_odd_ends_are_zero() {
        let (n, k) = (19, 5);
        let mut out = vec![Pair(u32::MAX); packed_len(n, k)];
        pack(n, k, |j, kk| (10 * j + kk) as f32, &mut out);
        for p in 0..2 {
            for pair in 0..3 {
                for j in 0..NR {
                    for part in 0..2 {
                        let (column, kk) = (p * NR + j, 2 * pair + part);
                        let want = if column < n && kk < k { (10 * column + kk) as f32 } else { 0.0 };
                        assert_eq!(out[(p * 3 + pair) * NR + j].part(part), want);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_longer_than_the_memory_for_them_are_summed_in_parts() {
        use crate::epilogue::{Activation, Epilogue};
        use crate::gemm::{Gemm, Packed, reference};
        use crate::nhwc::tests::noise;
        let mut ran = 0;
        // Two parts where a pair is 8 bytes; then two where it is 4; then parts of two lengths in tiles of AMX, of which the
        // shorter one is filled up to more than the longer one takes, and more tiles than one.
        for (m, k, n) in [(3, 3001, 33), (13, 6003, 20), (1, 6001, 70), (30, 13_078, 3)] {
            let (x, w, bias, add) = (noise(m * k, 3), noise(n * k, 5), noise(n, 7), noise(m * n, 9));
            let mut packed = vec![Pair::default(); packed_len(n, k)];
            pack(n, k, |j, kk| w[j * k + kk], &mut packed);
            for after in [false, true] {
                let g = Gemm {
                    m,
                    k,
                    n,
                    x: &x,
                    x_stride: k,
                    w: Packed::Bf16(&packed),
                    bias: Some(&bias),
                    accumulate: false,
                };
                let activation = Activation::Silu;
                let e = Epilogue { residual: Some(&add), after, activation };
                let mut want = vec![0.0; m * n];
                reference(&g, &mut want);
                for (v, add) in want.iter_mut().zip(&add) {
                    let (before, later) = if after { (0.0, *add) } else { (*add, 0.0) };
                    *v = activation.reference(f64::from(*v + before)) as f32 + later;
                }
                for kernel in KERNELS {
                    let mut found = vec![f32::NAN; m * n];
                    if !kernel.run_fused(&g, &e, &mut found) {
                        println!("{} cannot run on this CPU and was not tested", kernel.name);
                        continue;
                    }
                    ran += 1;
                    // As in `gemm`: K roundings of sums whose magnitude is about the root of K.
                    let tolerance = k as f32 * f32::EPSILON * 1.2;
                    for (e, f) in want.iter().zip(&found) {
                        assert!((e - f).abs() <= tolerance, "{} {m}x{k}x{n}: {e} {f}", kernel.name);
                    }
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }
}
