//! Offsets in one arena by liveness: two areas may overlap only when they never live at the same step.
use std::ops::Range;

use crate::device::Device;

/// One area: its size and the steps, first and last included, in which it must keep its bytes.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
    /// Later steps that read it on a GPU, where a call of theirs stands for earlier ones.
    pub(super) late: Vec<usize>,
    /// The step whose call stands for the one that makes it, and for all that read it: where a GPU takes that call it never has this.
    pub(super) within: Option<usize>,
}

impl Request {
    /// Whether there is a step, here or there, at which both must keep their bytes. A call that a GPU does not take is done step by
    /// step, as here: what is within it may then lie where what it alone would have read later lay.
    fn meets(&self, other: &Request) -> bool {
        self.first <= other.last_beside(self) && other.first <= self.last_beside(other)
    }

    fn last_beside(&self, other: &Request) -> usize {
        self.late.iter().copied().filter(|by| other.within != Some(*by)).fold(self.last, usize::max)
    }
}

/// Bytes of a cache line, with which everything begins that kernels read in vectors: a load that lies in two takes twice as long.
pub(super) const LINE: usize = 64;

/// How many elements from `at` on the next cache line begins.
pub(super) fn to_line<T>(at: *const T) -> usize {
    at.align_offset(LINE).min(LINE / size_of::<T>().max(1) - 1)
}
/// Areas of an arena that a GPU binds begin at multiples of it.
const GPU_ALIGN: usize = 256;

/// Areas of a plan for that device begin at multiples of it.
pub(super) fn align(device: &Device) -> usize {
    match device {
        Device::Cpu => LINE,
        Device::Gpu(_) => GPU_ALIGN,
    }
}

/// Byte ranges for `requests`, in their order, each at a multiple of `align`, and the size of the arena.
///
/// Greedy by size: the largest area first, each at the lowest offset where it fits between the areas it shares a step
/// with (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
pub(super) fn place(requests: &[Request], align: usize) -> (Vec<Range<usize>>, usize) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(requests[i].bytes), i));
    let mut ranges = vec![0..0; requests.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let r = &requests[i];
        if r.bytes == 0 {
            continue;
        }
        let mut neighbours: Vec<Range<usize>> =
            placed.iter().filter(|&&j| requests[j].meets(r)).map(|&j| ranges[j].clone()).collect();
        neighbours.sort_by_key(|n| n.start);
        let mut at = 0;
        for n in neighbours {
            if at + r.bytes <= n.start {
                break;
            }
            at = at.max(n.end.next_multiple_of(align));
        }
        ranges[i] = at..at + r.bytes;
        total = total.max(at + r.bytes);
        placed.push(i);
    }
    (ranges, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_alive_together_never_overlap_and_dead_ones_are_reused() {
        let one = |i: usize| (100 + (i * 37) % 500, i, i + (i * 7) % 5);
        let request = |(bytes, first, last)| Request { bytes, first, last, late: vec![], within: None };
        let requests: Vec<Request> = (0..40).map(one).map(request).collect();
        let (ranges, total) = place(&requests, LINE);
        for i in 0..requests.len() {
            assert_eq!(ranges[i].len(), requests[i].bytes);
            assert_eq!(ranges[i].start % LINE, 0);
            for j in 0..i {
                let together = requests[i].first <= requests[j].last && requests[j].first <= requests[i].last;
                let apart = ranges[i].end <= ranges[j].start || ranges[j].end <= ranges[i].start;
                assert!(!together || apart, "areas {i} and {j}");
            }
        }
        assert!(total < requests.iter().map(|r| r.bytes).sum::<usize>() / 2);
    }

    #[test]
    fn what_a_gpu_keeps_for_longer_lies_apart_from_what_it_makes_meanwhile_and_not_from_what_it_never_has() {
        let request =
            |first, last, late: &[usize], within| Request { bytes: 64, first, last, late: late.to_vec(), within };
        // x is read by step 1, or there by step 3, which stands for steps 1 and 2 as well.
        let x = request(0, 1, &[3], None);
        let (between, late) = (request(1, 2, &[], Some(3)), request(2, 3, &[], Some(3)));
        let (other, result) = (request(2, 2, &[], None), request(3, 4, &[], None));
        assert!(x.meets(&between) && between.meets(&late), "they are there together on the CPU");
        assert!(!x.meets(&late) && !late.meets(&x));
        assert!(x.meets(&other) && other.meets(&x) && x.meets(&result));
        // Whether a GPU takes one call says nothing of another.
        let (of_another, twice) = (request(2, 3, &[], Some(9)), request(0, 1, &[3, 9], None));
        assert!(x.meets(&of_another) && of_another.meets(&x));
        assert!(twice.meets(&late) && late.meets(&twice) && twice.meets(&of_another));
        let (ranges, total) = place(&[x, between, late, result], LINE);
        assert_eq!((ranges[0].clone(), total), (ranges[2].clone(), 128), "{ranges:?}");
    }
}
