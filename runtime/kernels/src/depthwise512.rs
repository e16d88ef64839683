//! Depthwise convolution of 8-bit codes by `vpdpbusd`: 64 channels at a time, four kernel positions to an instruction.
//!
//! Bytes of four kernel positions are interleaved by unpacking, which stays within quarters of a register: vector `v` of four
//! then has channels `4v..4v + 4` of each quarter, so quarter `q` of it has channels `16q + 4v..`. Weights, offsets and scales are brought
//! into that order once a block of channels; packing codes to bytes, which stays within quarters too, undoes it.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::conv::Window;
use crate::isa::Isa;
use crate::nhwc::Run;
use crate::qnhwc::{DEPTHWISE_TAPS, Depthwise, Tap, aim};
use crate::qtile::{self, Bounds, Finish, To};
use crate::quantize::Codes;
use crate::simd::mask;

/// Channels taken together.
const BLOCK: usize = 64;
/// Most groups of four kernel positions.
const GROUPS: usize = DEPTHWISE_TAPS / 4;

/// What is the same for all positions of a block of channels.
struct Block {
    weights: [[__m512i; 4]; GROUPS],
    offset: [__m512i; 4],
    scale: [__m512; 4],
    /// Of the codes that result, where codes do.
    bounds: Bounds,
}

/// The lines of those channels.
///
/// # Safety
/// As [`crate::qnhwc::depthwise_codes`] promises; the CPU has the instructions, and `pad` leads to `C` codes of 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn lines(
    d: &Depthwise<'_>,
    lines: Range<usize>,
    channels: &Range<usize>,
    pad: *const u8,
    finish: &Finish<'_>,
) {
    let groups = Groups::of(&d.window);
    let mut first = channels.start;
    while first < channels.end {
        let n = BLOCK.min(channels.end - first);
        // SAFETY: the caller's promise; of the block only the groups there are are made and read.
        unsafe {
            let mut block = MaybeUninit::<Block>::uninit();
            let block = prepare(d, &groups, first, n, finish, &mut block);
            let mut taps = [[Tap { x: pad, step: 0 }; 4]; GROUPS];
            for line in lines.clone() {
                match finish.to {
                    To::Codes { .. } => positions::<true>(d, &groups, line, first, n, block, pad, &mut taps, finish),
                    _ => positions::<false>(d, &groups, line, first, n, block, pad, &mut taps, finish),
                }
            }
        }
        first += n;
    }
}

/// Which kernel positions are summed by one instruction.
struct Groups {
    count: usize,
    /// Of each kernel position four times its group, plus its place there.
    slots: [u8; DEPTHWISE_TAPS],
    /// Each group is a column of the kernel, so that what one output position reads is read by its neighbours too.
    columns: bool,
}

impl Groups {
    fn of(g: &Window) -> Groups {
        let [depth, height, width] = g.kernel;
        let columns = depth == 1 && height <= 4 && width <= GROUPS;
        let mut slots = [0; DEPTHWISE_TAPS];
        for (tap, slot) in slots[..g.taps()].iter_mut().enumerate() {
            *slot = (if columns { 4 * (tap % width) + tap / width } else { tap }) as u8;
        }
        Groups { count: if columns { width } else { g.taps().div_ceil(4) }, slots, columns }
    }
}

/// Quarter `q` of vector `v` becomes quarter `v` of vector `q`.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(a: [__m512i; 4]) -> [__m512i; 4] {
    let (p, q) = (_mm512_shuffle_i32x4::<0x44>(a[0], a[1]), _mm512_shuffle_i32x4::<0xee>(a[0], a[1]));
    let (r, s) = (_mm512_shuffle_i32x4::<0x44>(a[2], a[3]), _mm512_shuffle_i32x4::<0xee>(a[2], a[3]));
    [
        _mm512_shuffle_i32x4::<0x88>(p, r),
        _mm512_shuffle_i32x4::<0xdd>(p, r),
        _mm512_shuffle_i32x4::<0x88>(q, s),
        _mm512_shuffle_i32x4::<0xdd>(q, s),
    ]
}

/// `n` words, at most 64, in the order of the block; what is behind them is 0.
///
/// # Safety
/// They exist.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn words(p: *const i32, n: usize) -> [__m512i; 4] {
    let mut v = [_mm512_setzero_si512(); 4];
    for (i, v) in v.iter_mut().enumerate() {
        // SAFETY: the caller's promise; lanes that are masked are not read.
        *v = unsafe { _mm512_maskz_loadu_epi32(mask(n.saturating_sub(16 * i)), p.wrapping_add(16 * i)) };
    }
    quarters(v)
}

/// # Safety
/// As [`lines`]; there are `n` channels from `first` on, at most 64.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn prepare<'a>(
    d: &Depthwise<'_>,
    groups: &Groups,
    first: usize,
    n: usize,
    finish: &Finish<'_>,
    memory: &'a mut MaybeUninit<Block>,
) -> &'a Block {
    let block = memory.as_mut_ptr();
    // SAFETY: the caller's promise; weights are two of 16 bits to a word, for each channel of each pair of kernel positions.
    unsafe {
        let weights = &mut *(&raw mut (*block).weights).cast::<[MaybeUninit<[__m512i; 4]>; GROUPS]>();
        for group in &mut weights[..groups.count] {
            group.write([_mm512_setzero_si512(); 4]);
        }
        for (tap, &slot) in groups.slots[..d.window.taps()].iter().enumerate() {
            let pairs = words(d.w.as_ptr().cast::<i32>().wrapping_add(tap / 2 * d.channels + first), n);
            let (down, up) = (_mm_cvtsi32_si128(16 * (tap % 2) as i32), _mm_cvtsi32_si128(8 * i32::from(slot % 4)));
            let bytes = weights[usize::from(slot / 4)].assume_init_mut();
            for v in 0..4 {
                let byte = _mm512_and_si512(_mm512_srl_epi32(pairs[v], down), _mm512_set1_epi32(0xff));
                bytes[v] = _mm512_or_si512(bytes[v], _mm512_sll_epi32(byte, up));
            }
        }
        (&raw mut (*block).offset).write(words(finish.offset.wrapping_add(first), n));
        let scale = words(finish.scale.wrapping_add(first).cast(), n);
        for v in 0..4 {
            (&raw mut (*block).scale[v]).write(_mm512_castsi512_ps(scale[v]));
        }
        let codes = match finish.to {
            To::Codes { requant, .. } => requant.codes,
            _ => Codes { zero: 0, low: 0, high: 255 },
        };
        (&raw mut (*block).bounds).write(Bounds::of(&codes));
        &*block
    }
}

/// Four kernel positions of a group, side by side for each channel.
///
/// # Safety
/// The taps lead to the channels that are not masked.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn gather(taps: [*const u8; 4], mask: u64) -> [__m512i; 4] {
    // SAFETY: the caller's promise; what is masked is not read.
    let (a, b, c, d) = unsafe {
        (
            _mm512_maskz_loadu_epi8(mask, taps[0].cast()),
            _mm512_maskz_loadu_epi8(mask, taps[1].cast()),
            _mm512_maskz_loadu_epi8(mask, taps[2].cast()),
            _mm512_maskz_loadu_epi8(mask, taps[3].cast()),
        )
    };
    let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
    let (more, most) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(low, high),
        _mm512_unpackhi_epi16(low, high),
        _mm512_unpacklo_epi16(more, most),
        _mm512_unpackhi_epi16(more, most),
    ]
}

/// One line of a block, `CODES` or not. Nothing is called while columns and sums are in registers, or they would have to leave them: what
/// becomes of codes later on comes after all positions.
///
/// # Safety
/// As [`lines`]; the block is of the channels from `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn positions<const CODES: bool>(
    d: &Depthwise<'_>,
    groups: &Groups,
    line: usize,
    first: usize,
    n: usize,
    block: &Block,
    pad: *const u8,
    taps: &mut [[Tap; 4]; GROUPS],
    finish: &Finish<'_>,
) {
    let g = &d.window;
    let inside = Run::of(g, 2);
    let mask = u64::MAX >> (BLOCK - n);
    let mut at = 0;
    while at < g.output[2] {
        let spots = if inside.contains(&at) { inside.end - at } else { 1 };
        aim(d, line, at, pad, &mut |tap, t| taps.as_flattened_mut()[usize::from(groups.slots[tap])] = t);
        let taps = &taps[..groups.count];
        let row = line * g.output[2] + at;
        // SAFETY: the taps lead to all channels of a pixel at every spot.
        unsafe {
            let sliding = groups.columns && groups.count == 3 && g.dilation[2] == 1 && spots > 1;
            match g.stride[2] {
                1 if sliding => slide::<1, CODES>(d, &taps[0], spots, row, first, n, block, finish),
                2 if sliding => slide::<2, CODES>(d, &taps[0], spots, row, first, n, block, finish),
                _ => {
                    for spot in 0..spots {
                        let mut acc = block.offset;
                        for (taps, weights) in taps.iter().zip(&block.weights) {
                            let mut at = [pad; 4];
                            for i in 0..4 {
                                at[i] = taps[i].x.wrapping_add(spot * taps[i].step + first);
                            }
                            let x = gather(at, mask);
                            for v in 0..4 {
                                acc[v] = _mm512_dpbusd_epi32(acc[v], x[v], weights[v]);
                            }
                        }
                        put::<CODES>(finish, block, acc, row + spot, first, n);
                    }
                }
            }
            if let To::Codes { y, requant, shift } = finish.to
                && (requant.table.is_some() || requant.add.is_some())
            {
                for row in row..row + spots {
                    let at = row * finish.stride + first;
                    qtile::then::<__m512>(requant, y.add(at), shift + at, n);
                }
            }
        }
        at += spots;
    }
}

/// Neighbouring positions of a kernel of three columns that lie inside: each column of the input is read and interleaved once.
///
/// # Safety
/// As [`positions`]; `column` is the first of the kernel at the first position, and rows that are padding do not move on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn slide<const STRIDE: usize, const CODES: bool>(
    d: &Depthwise<'_>,
    column: &[Tap; 4],
    spots: usize,
    row: usize,
    first: usize,
    n: usize,
    block: &Block,
    finish: &Finish<'_>,
) {
    let mask = u64::MAX >> (BLOCK - n);
    let (mut at, mut step) = ([column[0].x; 4], [0; 4]);
    for (i, t) in column.iter().enumerate() {
        (at[i], step[i]) = (t.x.wrapping_add(first), if t.step == 0 { 0 } else { d.channels });
    }
    macro_rules! next {
        () => {{
            // SAFETY: the caller's promise.
            let x = unsafe { gather(at, mask) };
            for i in 0..4 {
                at[i] = at[i].wrapping_add(step[i]);
            }
            x
        }};
    }
    let mut x = [next!(), next!(), next!()];
    let mut spot = 0;
    loop {
        let mut acc = block.offset;
        for i in 0..3 {
            for v in 0..4 {
                acc[v] = _mm512_dpbusd_epi32(acc[v], x[i][v], block.weights[i][v]);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { put::<CODES>(finish, block, acc, row + spot, first, n) };
        spot += 1;
        if spot == spots {
            return;
        }
        x = match STRIDE {
            1 => [x[1], x[2], next!()],
            _ => [x[2], next!(), next!()],
        };
    }
}

/// What becomes of the sums of a position: codes as they are before any table, or all that is to become of them.
///
/// # Safety
/// As [`positions`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn put<const CODES: bool>(f: &Finish<'_>, block: &Block, acc: [__m512i; 4], row: usize, first: usize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match f.to {
            To::Codes { y, .. } if CODES => {
                let bytes = qtile::to_codes(acc, block.scale, &block.bounds);
                qtile::store_bytes(y.add(row * f.stride + first), bytes, n);
            }
            _ => {
                // The offset is added once more there.
                let mut sums = [_mm512_setzero_si512(); 4];
                for v in 0..4 {
                    sums[v] = _mm512_sub_epi32(acc[v], block.offset[v]);
                }
                let sums = quarters(sums);
                qtile::finish::on(Isa::Avx512, f, sums.as_ptr().cast(), 1, row, first, n);
            }
        }
    }
}
