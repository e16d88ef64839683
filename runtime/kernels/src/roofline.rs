//! What a core can do at most, for comparison: multiply-adds from registers, and reading memory.

use crate::isa::Isa;
use crate::simd::{F32s, per_isa};

/// Sums under way: as many as hide the latency of a multiply-add.
const CHAINS: usize = 12;

/// Runs `rounds` rounds of multiply-adds that depend on no memory, with the best instruction set; returns how many
/// multiply-adds that was, one a lane.
pub fn multiply_adds(rounds: usize) -> usize {
    let mut lanes = 0;
    // SAFETY: this CPU has its best instruction set.
    unsafe { chains::on(Isa::best(), rounds, &mut lanes) };
    rounds * CHAINS * lanes
}

per_isa! { chains = chains_of; (rounds: usize, lanes: &mut usize) }

/// # Safety
/// The CPU has the instructions.
#[inline(always)]
unsafe fn chains_of<S: F32s>(rounds: usize, lanes: &mut usize) {
    *lanes = S::LANES;
    // SAFETY: the caller's promise; the buffer is as wide as the widest vector.
    unsafe {
        let mut acc = [S::splat(0.5); CHAINS];
        let (a, b) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(0.001)));
        for _ in 0..rounds {
            for i in 0..CHAINS {
                acc[i] = acc[i].mul_add(a, b);
            }
        }
        let mut out = [0f32; 16];
        for v in acc {
            v.store(out.as_mut_ptr());
            std::hint::black_box(&out);
        }
    }
}

/// Reads all of `x` and returns its sum: what it takes is what reading takes, when `x` is larger than the caches.
pub fn read(x: &[f32]) -> f32 {
    crate::pool::sum(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_multiply_adds_are_counted_as_rounds_chains_and_lanes_make() {
        assert_eq!(multiply_adds(0), 0);
        assert_eq!(multiply_adds(10) % (10 * CHAINS), 0);
        assert_eq!(multiply_adds(20), 2 * multiply_adds(10));
        assert_eq!(read(&[1.0; 33]), 33.0);
    }
}
