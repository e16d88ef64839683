//! The dot products of bytes have no stable intrinsics; they are one instruction each.
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
            let w: [int8x16_t; 4] = [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))];
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
            let w: [int8x16_t; 4] = [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))];
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
