//! Offsets in one arena by liveness: two areas may overlap only when they never live at the same step.
use std::ops::Range;

use crate::device::Device;

/// One area: its size and the steps, first and last included, in which it must keep its bytes.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
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
        let mut neighbours: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&j| requests[j].first <= r.last && r.first <= requests[j].last)
            .map(|&j| ranges[j].clone())
            .collect();
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
        let requests: Vec<Request> =
            (0..40).map(|i| Request { bytes: 100 + (i * 37) % 500, first: i, last: i + (i * 7) % 5 }).collect();
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
}
