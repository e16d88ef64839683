//! Micro-kernels of x86-64: AVX2, AVX-VNNI, AVX512-VNNI and AMX.

use std::arch::x86_64::*;

use super::*;
use crate::amx;
use crate::quantize::Codes;
use crate::simd::mask;

const _: () = assert!(amx::SUMS == COLUMNS, "sums of tiles are finished as those of vectors are");

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
                    let four = if n == 4 { from.add(i).cast::<i32>().read_unaligned() } else { tail(from.add(i), n) };
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
                    let w =
                        [_mm256_loadu_si256(b.add($g * STEP).cast()), _mm256_loadu_si256(b.add($g * STEP + 32).cast())];
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
