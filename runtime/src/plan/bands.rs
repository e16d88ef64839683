//! Two steps as one, a few lines of an image at a time.
//!
//! What the first makes the second reads at once, while it lies in the caches, and it is never whole in memory. The widest
//! activations of a network of inverted bottlenecks are of this kind. Results are the same to the last bit: each element is
//! summed as it would be.
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use hone_kernels::threads::Pool;

use super::lowering::Lines;
use super::{Fallible, Io, MAX_SLOTS, Reads, Run, Slot, Step};
use crate::graph::ValueId;
use crate::ops::OpError;

/// Bytes that lines between two steps should not exceed: a part of the second-level cache of small CPUs.
const BAND: usize = 128 * 1024;
/// Bytes between two steps below which they stay two.
const WORTH_JOINING: usize = 2 * BAND;

/// Joins steps whose result is read by the next one alone with that one, where both go by lines and the result is large: the
/// largest results first, and no step twice. Returns how many steps are left. `apart` says which values somebody else needs.
pub(super) fn join(
    steps: &mut Vec<Step>,
    scratch_bytes: &mut Vec<usize>,
    slots: &[Slot],
    apart: impl Fn(ValueId) -> bool,
    threads: usize,
) -> usize {
    let mut readers = vec![0; slots.len()];
    steps.iter().flat_map(|s| s.reads.iter().flatten()).for_each(|&v| readers[v] += 1);
    let pair = |i: usize| {
        let own = scratch_bytes[i] + scratch_bytes[i + 1] == 0;
        passed(&steps[i], &steps[i + 1]).filter(|&v| own && readers[v] == 1 && !apart(v))?;
        Some((i, Size::of(&steps[i], &steps[i + 1], threads)?))
    };
    let mut pairs: Vec<(usize, Size)> = (1..steps.len()).filter_map(|i| pair(i - 1)).collect();
    pairs.sort_by_key(|&(i, size)| (std::cmp::Reverse(size.between), i));
    let mut chosen: Vec<(usize, Size)> = Vec::new();
    for (i, size) in pairs {
        if chosen.iter().all(|&(k, _)| k.abs_diff(i) > 1) {
            chosen.push((i, size));
        }
    }
    chosen.sort_by_key(|&(i, _)| std::cmp::Reverse(i));
    for (i, size) in chosen {
        let (second, first) = (steps.remove(i + 1), steps.remove(i));
        steps.insert(i, joined(first, second, size));
        scratch_bytes.remove(i);
        scratch_bytes[i] = size.tasks * size.buffer * 4;
    }
    steps.len()
}

/// The only result of a step, when it is the first operand of the next one.
fn passed(first: &Step, second: &Step) -> Option<ValueId> {
    let [Some(v)] = first.writes[..] else { return None };
    let fits = first.reads.len() + second.reads.len() + second.writes.len() < MAX_SLOTS;
    (fits && second.writes.len() == 1 && second.reads.first() == Some(&Some(v))).then_some(v)
}

fn joined(first: Step, second: Step, size: Size) -> Step {
    let (info, of_first) = (first.info(), first.reads.len());
    let reads = [first.reads, second.reads[1..].to_vec()].concat();
    let run = match (first.run, second.run) {
        (Run::Fast(first), Run::Fast(second)) => Run::Fast(Box::new(Bands { first, second, of_first, size })),
        // Only kernels go by lines.
        (_, run) => run,
    };
    let joined = Some(info);
    Step { run, reads, joined, ..second }
}

/// How many lines are made at once.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Lines of the result.
    band: usize,
    /// Floats of the lines between, a task.
    buffer: usize,
    tasks: usize,
    /// Bytes between the two for an image.
    between: usize,
}

impl Size {
    /// `None` where a step does not go by lines, or nothing is gained.
    fn of(first: &Step, second: &Step, threads: usize) -> Option<Size> {
        let (Run::Fast(a), Run::Fast(b)) = (&first.run, &second.run) else { return None };
        let (a, b) = (a.lines()?, b.lines()?);
        let (made, read) = (a.grid(), b.grid());
        let [lines, line] = made.result;
        if made.images != read.images || made.result != read.operand || lines * line < WORTH_JOINING {
            return None;
        }
        let all = 0..read.result[0];
        if all.clone().any(|l| b.meets(l..l + 1).is_empty()) || (0..lines).any(|l| a.meets(l..l + 1).is_empty()) {
            return None;
        }
        let between = |band: usize| {
            all.clone().step_by(band).map(|l| b.meets(l..(l + band).min(all.end)).len()).max().unwrap_or(0) * line
        };
        let band = all.clone().skip(1).take_while(|&band| between(band) <= BAND).last().unwrap_or(1);
        let tasks = threads.clamp(1, (read.images * all.end).div_ceil(band).max(1));
        // A whole number of cache lines.
        let buffer = between(band).div_ceil(64) * 16;
        (2 * tasks * buffer * 4 <= lines * line).then_some(Size { band, buffer, tasks, between: lines * line })
    }
}

/// Two kernels that go by lines.
struct Bands {
    first: Box<dyn Fallible>,
    second: Box<dyn Fallible>,
    /// Operands of the first; those of the second but its own first follow.
    of_first: usize,
    size: Size,
}

impl Fallible for Bands {
    fn name(&self) -> &'static str {
        self.second.name()
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (Some(first), Some(second)) = (self.first.lines(), self.second.lines()) else {
            return Err(OpError::unsupported("a step by lines that has none".to_string()));
        };
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let mut others = Reads { bytes: [&[]; MAX_SLOTS] };
        others.bytes[1..][..MAX_SLOTS - self.of_first].copy_from_slice(&reads.bytes[self.of_first..]);
        let grid = second.grid();
        let [lines, line] = grid.result;
        let share = (grid.images * lines).div_ceil(self.size.tasks).max(1);
        let buffers = Mutex::new(scratch.chunks_exact_mut(self.size.buffer));
        pool.pieces(writes.bytes(0), share * line.max(1), |i, mut y| {
            let Some(buffer) = buffers.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
            let mut at = i * share;
            while !y.is_empty() {
                let (image, from) = (at / lines, at % lines);
                let to = lines.min(from + y.len() / line);
                let (now, later) = std::mem::take(&mut y).split_at_mut((to - from) * line);
                let pass = Pass { first, second, reads, others: &others, pool, band: self.size.band };
                pass.image(image, from..to, bytemuck::cast_slice_mut(buffer), now);
                at += to - from;
                y = later;
            }
        });
        Ok(())
    }
}

/// What a pass over some lines of an image works with.
struct Pass<'a> {
    first: &'a dyn Lines,
    second: &'a dyn Lines,
    reads: &'a Reads<'a>,
    others: &'a Reads<'a>,
    pool: &'a Pool,
    band: usize,
}

impl Pass<'_> {
    fn image(&self, image: usize, lines: Range<usize>, buffer: &mut [u8], y: &mut [u8]) {
        let ([rows, row], [_, middle]) = (self.first.grid().operand, self.first.grid().result);
        let [_, line] = self.second.grid().result;
        let x = &self.reads.bytes(0)[image * rows * row..][..rows * row];
        let mut there = 0..0usize;
        for at in lines.clone().step_by(self.band) {
            let band = at..(at + self.band).min(lines.end);
            let meets = self.second.meets(band.clone());
            // Lines that the band before has met too are moved to the front.
            let kept = there.end.saturating_sub(meets.start).min(meets.len());
            if kept > 0 {
                let from = (meets.start - there.start) * middle;
                buffer.copy_within(from..from + kept * middle, 0);
            }
            let missing = meets.start + kept..meets.end;
            if !missing.is_empty() {
                let of = self.first.meets(missing.clone());
                let to = &mut buffer[kept * middle..meets.len() * middle];
                self.first.make(missing, &x[of.start * row..of.end * row], self.reads, self.pool, to);
            }
            let to = &mut y[(at - lines.start) * line..][..band.len() * line];
            self.second.make(band, &buffer[..meets.len() * middle], self.others, self.pool, to);
            there = meets;
        }
    }
}
