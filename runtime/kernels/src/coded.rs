//! Elements of a tensor of codes of 2, 4 or 8 bits in blocks along one axis, dequantised where they are looked up:
//! `y = (code - zero) · scale`, scale and zero point those of the element's block.
//!
//! `nbits` multiplies by such a tensor and reads all of it; this reads a run of it, wherever that begins.
//! The tensor is `[outer, A, I]`: `A` the quantised axis, `I` what lies after it. Scales are `[outer, ⌈A / block⌉, I]`.
use crate::isa::{Isa, on_isa};
use crate::nbits::code;

/// How a tensor of codes is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Length of the quantised axis.
    pub along: usize,
    /// Elements after it, which have their own scales; 1 where it is the last axis.
    pub inner: usize,
    /// Elements of a block.
    pub block: usize,
    /// Bits that a code takes of a byte, the low ones first: 2, 4 or 8.
    pub bits: usize,
    /// Whether codes are numbers with a sign; they then take a byte each.
    pub signed: bool,
    /// The zero point of every block where none are given, as a byte.
    pub middle: u8,
}

impl Blocks {
    /// Blocks along the quantised axis.
    pub fn count(&self) -> usize {
        self.along.div_ceil(self.block)
    }

    /// Bytes of the zero points of a line of the last axis, where that is the quantised one.
    fn zero_line(&self) -> usize {
        (self.count() * self.bits).div_ceil(8)
    }
}

/// A tensor of codes.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// How it is divided.
    pub blocks: Blocks,
    /// All of it, packed; a line of the last axis begins with a byte.
    pub codes: &'a [u8],
    /// One for each block.
    pub scale: &'a [f32],
    /// As many codes as scales, packed alike; empty where all are `middle`.
    pub zero: &'a [u8],
}

impl Coded<'_> {
    /// Element `e`, by the formula.
    pub fn at(&self, e: usize) -> f32 {
        let Blocks { along, inner, block, bits, signed, middle } = self.blocks;
        let (outer, a, r) = (e / inner / along, e / inner % along, e % inner);
        let of = (outer * self.blocks.count() + a / block) * inner + r;
        let zero = match (self.zero, inner) {
            ([], _) => middle,
            (zero, 1) => code(&zero[outer * self.blocks.zero_line()..], a / block, bits),
            // Where the quantised axis is not the last one, lines of scales are as long as those of codes: whole bytes.
            (zero, _) => code(zero, of, bits),
        };
        let number = |byte: u8| if signed { f32::from(byte as i8) } else { f32::from(byte) };
        (number(code(self.codes, e, bits)) - number(zero)) * self.scale[of]
    }
}

/// The elements from `first` on, as many as `y` has, by the formula.
pub fn reference(t: &Coded<'_>, first: usize, y: &mut [f32]) {
    y.iter_mut().enumerate().for_each(|(i, y)| *y = t.at(first + i));
}

/// [`reference()`], many at a time and to the same bits.
///
/// # Panics
/// When the tensor has fewer elements, or fewer scales or zero points than it says.
pub fn dequantise(t: &Coded<'_>, first: usize, y: &mut [f32]) {
    run(Isa::best(), t, first, y);
}

/// [`dequantise`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`dequantise`].
pub fn dequantise_on(isa: Isa, t: &Coded<'_>, first: usize, y: &mut [f32]) -> bool {
    if isa.available() {
        run(isa, t, first, y);
    }
    isa.available()
}

on_isa! { fn run = run_any; (t: &Coded<'_>, first: usize, y: &mut [f32]) }

#[inline(always)]
fn run_any(t: &Coded<'_>, first: usize, y: &mut [f32]) {
    match t.blocks.bits {
        2 => by_bits::<2>(t, first, y),
        4 => by_bits::<4>(t, first, y),
        _ => by_bits::<8>(t, first, y),
    }
}

/// Codes unpacked at once.
const CHUNK: usize = 64;

#[inline(always)]
fn by_bits<const BITS: usize>(t: &Coded<'_>, first: usize, y: &mut [f32]) {
    let Blocks { along, inner, block, signed, middle, .. } = t.blocks;
    let count = t.blocks.count();
    // With the sign bit turned, differences of signed bytes are those of unsigned ones.
    let flip = if signed { 128 } else { 0 };
    let (mut codes, mut zeros) = ([0u8; CHUNK], [0u8; CHUNK]);
    let mut e = first;
    let mut rest = y;
    while !rest.is_empty() {
        let (outer, a, r) = (e / inner / along, e / inner % along, e % inner);
        let of = (outer * count + a / block) * inner + r;
        // What has one scale lies together where the quantised axis is the last one; else what has scales that do.
        let together = if inner == 1 { block.min(along - a / block * block) - a % block } else { inner - r };
        let (y, after) = rest.split_at_mut(together.min(rest.len()));
        rest = after;
        if inner == 1 {
            let line = outer * t.blocks.zero_line();
            let zero = if t.zero.is_empty() { middle } else { code(&t.zero[line..], a / block, BITS) };
            let (zero, scale) = (f32::from(zero ^ flip), t.scale[of]);
            for (i, y) in y.chunks_mut(CHUNK).enumerate() {
                unpack::<BITS>(t.codes, e + i * CHUNK, flip, &mut codes, y.len());
                y.iter_mut().zip(&codes).for_each(|(y, &q)| *y = (f32::from(q) - zero) * scale);
            }
        } else {
            for (i, y) in y.chunks_mut(CHUNK).enumerate() {
                let at = i * CHUNK;
                unpack::<BITS>(t.codes, e + at, flip, &mut codes, y.len());
                if t.zero.is_empty() {
                    zeros = [middle ^ flip; CHUNK];
                } else {
                    unpack::<BITS>(t.zero, of + at, flip, &mut zeros, y.len());
                }
                let scale = &t.scale[of + at..][..y.len()];
                for (((y, &q), &z), s) in y.iter_mut().zip(&codes).zip(&zeros).zip(scale) {
                    *y = (f32::from(q) - f32::from(z)) * s;
                }
            }
        }
        e += y.len();
    }
}

/// Codes `first..first + n` of packed bytes, one a byte.
#[inline(always)]
fn unpack<const BITS: usize>(bytes: &[u8], first: usize, flip: u8, out: &mut [u8; CHUNK], n: usize) {
    let per = 8 / BITS;
    if n < CHUNK || !first.is_multiple_of(per) {
        out[..n].iter_mut().enumerate().for_each(|(i, v)| *v = code(bytes, first + i, BITS) ^ flip);
        return;
    }
    let mask = (0xffu16 >> (8 - BITS)) as u8;
    let bytes = &bytes[first / per..][..CHUNK / per];
    for (v, byte) in out.chunks_exact_mut(per).zip(bytes) {
        v.iter_mut().enumerate().for_each(|(q, v)| *v = byte >> (q * BITS) & mask ^ flip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_block_and_axis_is_the_formula_to_the_bit_wherever_a_run_begins() {
        let mut ran = 0;
        for (bits, signed) in [(2, false), (4, false), (8, false), (8, true)] {
            for (outer, along, inner, block) in
                [(5, 32, 1, 16), (3, 104, 1, 32), (2, 300, 1, 128), (1, 20, 1, 256), (2, 40, 12, 16), (1, 33, 136, 32)]
            {
                let blocks = Blocks { along, inner, block, bits, signed, middle: if signed { 0 } else { 1 } };
                let (len, scales) = (outer * along * inner, outer * blocks.count() * inner);
                let lines = if inner == 1 { outer * blocks.zero_line() } else { (scales * bits).div_ceil(8) };
                let codes: Vec<u8> = (0..len * bits / 8).map(|i| (i * 97 % 253) as u8).collect();
                let scale: Vec<f32> = (0..scales).map(|i| 0.01 + (i % 7) as f32 * 0.003).collect();
                let zeros: Vec<u8> = (0..lines).map(|i| (i * 59 % 251) as u8).collect();
                for zero in [&[][..], &zeros] {
                    let t = Coded { blocks, codes: &codes, scale: &scale, zero };
                    for (first, n) in [(0, len), (along, along.min(len - along)), (3, len.min(71) - 3), (len - 1, 1)] {
                        let mut want = vec![0.0; n];
                        reference(&t, first, &mut want);
                        for isa in Isa::ALL {
                            let mut y = vec![f32::NAN; n + 1];
                            if !dequantise_on(isa, &t, first, &mut y[..n]) {
                                continue;
                            }
                            ran += 1;
                            assert_eq!(y[..n], want, "{isa:?} {blocks:?} {first} {n}");
                            assert!(y[n].is_nan());
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }

    #[test]
    fn four_bits_are_read_as_they_are_written_by_hand() {
        let blocks = Blocks { along: 16, inner: 1, block: 16, bits: 4, signed: false, middle: 8 };
        // Two rows; low bits first.
        let mut codes = [0x88u8; 16];
        (codes[0], codes[15]) = (0xf0, 0x1a);
        let mut t = Coded { blocks, codes: &codes, scale: &[0.5, 2.0], zero: &[] };
        let mut y = [0.0; 32];
        dequantise(&t, 0, &mut y);
        assert_eq!((y[0], y[1], y[2], y[30], y[31]), (-4.0, 3.5, 0.0, 4.0, -14.0));
        t.zero = &[0x03, 0x0f];
        dequantise(&t, 0, &mut y);
        assert_eq!((y[0], y[1], y[2], y[30], y[31]), (-1.5, 6.0, 2.5, -10.0, -28.0));
        let numbers = [0xf8u8; 16];
        let blocks = Blocks { bits: 8, signed: true, middle: 0, ..blocks };
        dequantise(&Coded { blocks, codes: &numbers, scale: &[0.5], zero: &[2] }, 0, &mut y[..16]);
        assert_eq!(y[3], -5.0);
    }
}
