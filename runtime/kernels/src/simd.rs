//! Vectors of `f32` as one trait, so that a kernel is written once and compiled for every instruction set.
//!
//! A kernel is an `#[inline(always)]` function generic over [`F32s`]; a row of its table calls it from a function compiled
//! for the features of one implementation ([`per_isa`]). Every method is `unsafe` for one reason: the CPU must have those
//! features. That is the promise a row's `available` makes, and no comment below repeats it.
//! `f32` itself is a vector of one, so that a function of one element has the same text.
#![allow(clippy::missing_safety_doc)]

use crate::isa::Isa;

/// A vector of `f32`.
///
/// Minimum and maximum give the second operand when one of the two is NaN.
pub(crate) trait F32s: Copy {
    /// Elements.
    const LANES: usize;
    /// What it is compiled for.
    const ISA: Isa;
    /// Half of it, where a CPU takes two of those in the time of one; else itself.
    type Half: F32s;
    /// Vectors a row of a tile of the matrix product takes.
    const NV: usize;
    /// Rows of such a tile: what the register file holds.
    const ROWS: usize;

    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `min(n, LANES)` elements from memory, the others 0.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// The first `min(n, LANES)` elements to memory.
    unsafe fn store_part(self, p: *mut f32, n: usize);
    /// `LANES` integers as floats.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// The bf16 in the low (`part` 0) or high (1) half of `LANES` words.
    unsafe fn load_bf16(p: *const u32, part: usize) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    unsafe fn min(self, b: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    /// `self · b + c`, rounded once where the CPU has the instruction.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `yes` where `self < b`, else `no`.
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self;
    /// `LANES` sums of two integers each, wrapping, as floats.
    unsafe fn sum_i32(p: *const i32, q: *const i32) -> Self;
    /// [`F32s::sum_i32`] of the first `n` pairs, of which no more need exist at `q`; `LANES` exist at `p`.
    #[inline(always)]
    unsafe fn sum_i32_part(p: *const i32, q: *const i32, n: usize) -> Self {
        if n >= Self::LANES {
            // SAFETY: the caller's promise.
            return unsafe { Self::sum_i32(p, q) };
        }
        let mut part = [0; 16];
        // SAFETY: the caller's promise; no vector has more than 16 lanes.
        unsafe {
            (0..n).for_each(|i| part[i] = *q.add(i));
            Self::sum_i32(p, part.as_ptr())
        }
    }
    /// `LANES` bytes as floats.
    unsafe fn load_u8(p: *const u8) -> Self;
    /// The first `n` bytes as floats; no more need exist.
    #[inline(always)]
    unsafe fn load_u8_part(p: *const u8, n: usize) -> Self {
        if n >= Self::LANES {
            // SAFETY: the caller's promise.
            return unsafe { Self::load_u8(p) };
        }
        let mut part = [0; 16];
        // SAFETY: as for `sum_i32_part`.
        unsafe {
            (0..n).for_each(|i| part[i] = *p.add(i));
            Self::load_u8(part.as_ptr())
        }
    }
    /// The nearest integer, half to even, for magnitudes below 2²².
    unsafe fn nearest(self) -> Self;
    /// Integers as their low bytes, for magnitudes below 2¹⁵.
    unsafe fn store_u8(self, p: *mut u8);
    /// [`F32s::store_u8`] of the first `n`; nothing is written behind them.
    #[inline(always)]
    unsafe fn store_u8_part(self, p: *mut u8, n: usize) {
        if n >= Self::LANES {
            // SAFETY: the caller's promise.
            return unsafe { self.store_u8(p) };
        }
        let mut part = [0; 16];
        // SAFETY: as for `sum_i32_part`.
        unsafe {
            self.store_u8(part.as_mut_ptr());
            (0..n).for_each(|i| *p.add(i) = part[i]);
        }
    }
    /// The nearest integers of both, half to even, plus `zero`, as bytes: `2 · LANES` of them, which are `0..=255`.
    #[inline(always)]
    unsafe fn store_codes(a: Self, b: Self, zero: i32, p: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = Self::splat(zero as f32);
            a.nearest().add(zero).store_u8(p);
            b.nearest().add(zero).store_u8(p.add(Self::LANES));
        }
    }
    /// `self · 2^k`, where `shifted = k + 1.5·2²³`, for normal results.
    unsafe fn times_power(self, shifted: Self) -> Self;
}

impl F32s for f32 {
    const LANES: usize = 1;
    const ISA: Isa = Isa::Any;
    type Half = f32;
    const NV: usize = 16;
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn splat(v: f32) -> f32 {
        v
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *p = self }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> f32 {
        // SAFETY: the caller's promise, for one element when `n` is not 0.
        if n == 0 { 0.0 } else { unsafe { *p } }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        if n > 0 {
            // SAFETY: as above.
            unsafe { *p = self }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> f32 {
        // SAFETY: the caller's promise.
        f32::from(unsafe { *p })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u32, part: usize) -> f32 {
        // SAFETY: the caller's promise.
        let word = unsafe { *p };
        f32::from_bits(if part == 0 { word << 16 } else { word & 0xffff_0000 })
    }
    #[inline(always)]
    unsafe fn add(self, b: f32) -> f32 {
        self + b
    }
    #[inline(always)]
    unsafe fn sub(self, b: f32) -> f32 {
        self - b
    }
    #[inline(always)]
    unsafe fn mul(self, b: f32) -> f32 {
        self * b
    }
    #[inline(always)]
    unsafe fn div(self, b: f32) -> f32 {
        self / b
    }
    #[inline(always)]
    unsafe fn min(self, b: f32) -> f32 {
        if self < b { self } else { b }
    }
    #[inline(always)]
    unsafe fn max(self, b: f32) -> f32 {
        if self > b { self } else { b }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: f32, c: f32) -> f32 {
        crate::gemm::mul_add(self, b, c)
    }
    #[inline(always)]
    unsafe fn if_less(self, b: f32, yes: f32, no: f32) -> f32 {
        if self < b { yes } else { no }
    }
    #[inline(always)]
    unsafe fn sum_i32(p: *const i32, q: *const i32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { (*p).wrapping_add(*q) as f32 }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        f32::from(unsafe { *p })
    }
    #[inline(always)]
    unsafe fn nearest(self) -> f32 {
        const ROUNDER: f32 = 12_582_912.0;
        (self + ROUNDER) - ROUNDER
    }
    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { *p = self as i32 as u8 }
    }
    #[inline(always)]
    unsafe fn times_power(self, shifted: f32) -> f32 {
        f32::from_bits(self.to_bits().wrapping_add(shifted.to_bits() << 23))
    }
}

/// The vectors every CPU of the target has.
#[cfg(target_arch = "x86_64")]
pub(crate) type Base = std::arch::x86_64::__m128;
/// The vectors every CPU of the target has.
#[cfg(target_arch = "aarch64")]
pub(crate) type Base = std::arch::aarch64::float32x4_t;
/// The vectors every CPU of the target has.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) type Base = f32;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::F32s;
    use crate::isa::Isa;

    /// The methods that are one instruction each.
    macro_rules! one_to_one {
        ($v:ty: $set1:ident $load:ident $store:ident $add:ident $sub:ident $mul:ident $div:ident $min:ident $max:ident) => {
            #[inline(always)]
            unsafe fn splat(v: f32) -> $v {
                unsafe { $set1(v) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> $v {
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                unsafe { $store(p, self) }
            }
            #[inline(always)]
            unsafe fn add(self, b: $v) -> $v {
                unsafe { $add(self, b) }
            }
            #[inline(always)]
            unsafe fn sub(self, b: $v) -> $v {
                unsafe { $sub(self, b) }
            }
            #[inline(always)]
            unsafe fn mul(self, b: $v) -> $v {
                unsafe { $mul(self, b) }
            }
            #[inline(always)]
            unsafe fn div(self, b: $v) -> $v {
                unsafe { $div(self, b) }
            }
            #[inline(always)]
            unsafe fn min(self, b: $v) -> $v {
                unsafe { $min(self, b) }
            }
            #[inline(always)]
            unsafe fn max(self, b: $v) -> $v {
                unsafe { $max(self, b) }
            }
        };
    }

    impl F32s for __m128 {
        const LANES: usize = 4;
        const ISA: Isa = Isa::Any;
        type Half = __m128;
        const NV: usize = 4;
        const ROWS: usize = 2;

        one_to_one!(__m128: _mm_set1_ps _mm_loadu_ps _mm_storeu_ps _mm_add_ps _mm_sub_ps _mm_mul_ps _mm_div_ps
            _mm_min_ps _mm_max_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m128 {
            let mut all = [0f32; 4];
            unsafe {
                std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n.min(4));
                _mm_loadu_ps(all.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            let mut all = [0f32; 4];
            unsafe {
                _mm_storeu_ps(all.as_mut_ptr(), self);
                std::ptr::copy_nonoverlapping(all.as_ptr(), p, n.min(4));
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m128 {
            unsafe {
                let bytes = _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned());
                // Into the top byte of each lane, then down with the sign.
                let words = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);
                let lanes = _mm_unpacklo_epi16(_mm_setzero_si128(), words);
                _mm_cvtepi32_ps(_mm_srai_epi32::<24>(lanes))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u32, part: usize) -> __m128 {
            unsafe {
                let words = _mm_loadu_si128(p.cast());
                let high = if part == 0 {
                    _mm_slli_epi32::<16>(words)
                } else {
                    _mm_and_si128(words, _mm_set1_epi32(-0x1_0000))
                };
                _mm_castsi128_ps(high)
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: __m128, c: __m128) -> __m128 {
            unsafe { _mm_add_ps(_mm_mul_ps(self, b), c) }
        }
        #[inline(always)]
        unsafe fn if_less(self, b: __m128, yes: __m128, no: __m128) -> __m128 {
            unsafe {
                let m = _mm_cmplt_ps(self, b);
                _mm_or_ps(_mm_and_ps(m, yes), _mm_andnot_ps(m, no))
            }
        }
        #[inline(always)]
        unsafe fn sum_i32(p: *const i32, q: *const i32) -> __m128 {
            unsafe { _mm_cvtepi32_ps(_mm_add_epi32(_mm_loadu_si128(p.cast()), _mm_loadu_si128(q.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> __m128 {
            unsafe {
                let bytes = _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned());
                let words = _mm_unpacklo_epi8(bytes, _mm_setzero_si128());
                _mm_cvtepi32_ps(_mm_unpacklo_epi16(words, _mm_setzero_si128()))
            }
        }
        #[inline(always)]
        unsafe fn nearest(self) -> __m128 {
            unsafe { _mm_cvtepi32_ps(_mm_cvtps_epi32(self)) }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe {
                let lanes = _mm_and_si128(_mm_cvttps_epi32(self), _mm_set1_epi32(255));
                let words = _mm_packs_epi32(lanes, lanes);
                p.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
            }
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: __m128) -> __m128 {
            unsafe {
                let power = _mm_slli_epi32::<23>(_mm_castps_si128(shifted));
                _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(self), power))
            }
        }
    }

    /// All bits of the first `n` lanes.
    #[inline(always)]
    unsafe fn lanes(n: usize) -> __m256i {
        const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: 8 elements from 8 - min(n, 8) on lie in the 16.
        unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n.min(8)).cast()) }
    }

    impl F32s for __m256 {
        const LANES: usize = 8;
        const ISA: Isa = Isa::Avx2;
        type Half = __m256;
        const NV: usize = 2;
        const ROWS: usize = 6;

        one_to_one!(__m256: _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps
            _mm256_div_ps _mm256_min_ps _mm256_max_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(p, lanes(n)) }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            unsafe { _mm256_maskstore_ps(p, lanes(n), self) }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u32, part: usize) -> __m256 {
            unsafe {
                let words = _mm256_loadu_si256(p.cast());
                let high = if part == 0 {
                    _mm256_slli_epi32::<16>(words)
                } else {
                    _mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000))
                };
                _mm256_castsi256_ps(high)
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }
        #[inline(always)]
        unsafe fn if_less(self, b: __m256, yes: __m256, no: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(self, b)) }
        }
        #[inline(always)]
        unsafe fn sum_i32(p: *const i32, q: *const i32) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(q.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn nearest(self) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe {
                let lanes = _mm256_and_si256(_mm256_cvttps_epi32(self), _mm256_set1_epi32(255));
                let words = _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
                _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words));
            }
        }
        #[inline(always)]
        unsafe fn store_codes(a: __m256, b: __m256, zero: i32, p: *mut u8) {
            unsafe {
                let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
                let words = _mm256_adds_epi16(words, _mm256_set1_epi16(zero as i16));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(p.cast(), bytes);
            }
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: __m256) -> __m256 {
            unsafe {
                let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), power))
            }
        }
    }

    /// The first `n` lanes.
    #[inline(always)]
    pub(crate) fn mask(n: usize) -> __mmask16 {
        (0xffff_u32 >> (16 - n.min(16))) as __mmask16
    }

    impl F32s for __m512 {
        const LANES: usize = 16;
        const ISA: Isa = Isa::Avx512;
        type Half = __m256;
        const NV: usize = 2;
        const ROWS: usize = 12;

        one_to_one!(__m512: _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
            _mm512_div_ps _mm512_min_ps _mm512_max_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, mask(n), self) }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u32, part: usize) -> __m512 {
            unsafe {
                let words = _mm512_loadu_si512(p.cast());
                let high = if part == 0 {
                    _mm512_slli_epi32::<16>(words)
                } else {
                    _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000))
                };
                _mm512_castsi512_ps(high)
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }
        #[inline(always)]
        unsafe fn if_less(self, b: __m512, yes: __m512, no: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, b), no, yes) }
        }
        #[inline(always)]
        unsafe fn sum_i32(p: *const i32, q: *const i32) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(q.cast()))) }
        }
        #[inline(always)]
        unsafe fn sum_i32_part(p: *const i32, q: *const i32, n: usize) -> __m512 {
            unsafe {
                let part = _mm512_maskz_loadu_epi32(mask(n), q);
                _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(p.cast()), part))
            }
        }
        #[inline(always)]
        unsafe fn load_u8_part(p: *const u8, n: usize) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask(n), p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn nearest(self) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(self))) }
        }
        #[inline(always)]
        unsafe fn store_u8_part(self, p: *mut u8, n: usize) {
            unsafe { _mm512_mask_cvtepi32_storeu_epi8(p.cast(), mask(n), _mm512_cvttps_epi32(self)) }
        }
        #[inline(always)]
        unsafe fn store_codes(a: __m512, b: __m512, zero: i32, p: *mut u8) {
            unsafe {
                for (i, v) in [a, b].into_iter().enumerate() {
                    let lanes = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zero));
                    _mm_storeu_si128(p.add(16 * i).cast(), _mm512_cvtepi32_epi8(lanes));
                }
            }
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: __m512) -> __m512 {
            unsafe {
                let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), power))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::F32s;
    use crate::isa::Isa;

    impl F32s for float32x4_t {
        const LANES: usize = 4;
        const ISA: Isa = Isa::Any;
        type Half = float32x4_t;
        const NV: usize = 4;
        const ROWS: usize = 6;

        #[inline(always)]
        unsafe fn splat(v: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(v) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { vst1q_f32(p, self) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> float32x4_t {
            let mut all = [0f32; 4];
            unsafe {
                std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n.min(4));
                vld1q_f32(all.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            let mut all = [0f32; 4];
            unsafe {
                vst1q_f32(all.as_mut_ptr(), self);
                std::ptr::copy_nonoverlapping(all.as_ptr(), p, n.min(4));
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> float32x4_t {
            unsafe {
                let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u32, part: usize) -> float32x4_t {
            unsafe {
                let words = vld1q_u32(p);
                let high =
                    if part == 0 { vshlq_n_u32::<16>(words) } else { vandq_u32(words, vdupq_n_u32(0xffff_0000)) };
                vreinterpretq_f32_u32(high)
            }
        }
        #[inline(always)]
        unsafe fn add(self, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(self, b) }
        }
        #[inline(always)]
        unsafe fn sub(self, b: float32x4_t) -> float32x4_t {
            unsafe { vsubq_f32(self, b) }
        }
        #[inline(always)]
        unsafe fn mul(self, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(self, b) }
        }
        #[inline(always)]
        unsafe fn div(self, b: float32x4_t) -> float32x4_t {
            unsafe { vdivq_f32(self, b) }
        }
        #[inline(always)]
        unsafe fn min(self, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcltq_f32(self, b), self, b) }
        }
        #[inline(always)]
        unsafe fn max(self, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcgtq_f32(self, b), self, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, self, b) }
        }
        #[inline(always)]
        unsafe fn if_less(self, b: float32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcltq_f32(self, b), yes, no) }
        }
        #[inline(always)]
        unsafe fn sum_i32(p: *const i32, q: *const i32) -> float32x4_t {
            unsafe { vcvtq_f32_s32(vaddq_s32(vld1q_s32(p), vld1q_s32(q))) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> float32x4_t {
            unsafe {
                let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
            }
        }
        #[inline(always)]
        unsafe fn nearest(self) -> float32x4_t {
            unsafe { vrndnq_f32(self) }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe {
                let words = vmovn_s32(vcvtq_s32_f32(self));
                let bytes = vmovn_s16(vcombine_s16(words, words));
                p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
            }
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: float32x4_t) -> float32x4_t {
            unsafe {
                let power = vshlq_n_s32::<23>(vreinterpretq_s32_f32(shifted));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self), power))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::mask;

/// Defines `pub(crate) unsafe fn avx512, avx2, base` in a module `$module`, each the generic `$body::<V>` compiled for the
/// features of its vectors.
macro_rules! per_isa {
    ($vis:vis $module:ident = $body:ident; ($($arg:ident: $ty:ty),* $(,)?)) => {
        $vis mod $module {
            #![allow(clippy::missing_safety_doc)]
            #[allow(unused_imports)]
            use super::*;

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            pub(crate) unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            pub(crate) unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $body::<std::arch::x86_64::__m256>($($arg),*) }
            }
            pub(crate) unsafe fn base($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $body::<$crate::simd::Base>($($arg),*) }
            }

            /// The body for one instruction set that this CPU has.
            #[inline]
            pub(crate) unsafe fn on(isa: $crate::isa::Isa, $($arg: $ty),*) {
                match isa {
                    // SAFETY: the caller's promise.
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: the caller's promise.
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: the caller's promise.
                    _ => unsafe { base($($arg),*) },
                }
            }
        }
    };
}
pub(crate) use per_isa;
