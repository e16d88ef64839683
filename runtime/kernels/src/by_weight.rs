//! Gradient of a convolution by its weight, channels before space: for each image the product of channels, shifted under every
//! tap of the window ([`Shifted`]), with what the result was multiplied with. Nothing is laid out once a tap.
//!
//! Dimension letters: `R` rows, a channel and a tap each; `K` positions, with what is behind each line; `O` channels of the result.
use std::mem::MaybeUninit;

use crate::conv::Window;
use crate::epilogue::Activation;
use crate::gemm::{NR, packed_len};
use crate::isa::{Form, Isa};
use crate::panels::{Lying, panel_on};
use crate::shifted::Shifted;
use crate::threads::Pool;
use crate::tile::{Job, Table, Weight, heights};
use crate::transpose::transpose;

/// Rows whose pointers are listed together.
const ROWS: usize = 240;
/// Positions that are packed in one piece at most, unless a line is longer.
const PACKED: usize = 512;

/// Images and the gradients of what was made of them.
#[derive(Clone, Copy, Debug)]
pub struct ByWeight<'a> {
    /// The window.
    pub shifted: &'a Shifted,
    /// Images, channels of one, and channels of the result.
    pub sizes: [usize; 3],
    /// The images.
    pub x: &'a [f32],
    /// The gradients.
    pub dy: &'a [f32],
}

/// How rows are shared out, and the memory that takes.
struct Plan {
    rows: usize,
    /// Rows of a piece.
    piece: usize,
    /// Positions.
    k: usize,
    /// Lines that are packed in one piece.
    lines: usize,
    /// Floats of a packed image of gradients, and what a thread needs.
    packed: usize,
    each: usize,
}

impl Plan {
    fn new(s: &Shifted, channels: usize, outputs: usize, threads: usize) -> Plan {
        let rows = channels * s.taps;
        // Whole channels, unless there are too few of them.
        let unit = if channels >= threads { s.taps } else { 1 };
        let piece = rows.div_ceil(threads.max(1)).next_multiple_of(unit).max(1);
        let touched = if unit == 1 { channels } else { piece / unit };
        let k = s.made[0] * s.pitch;
        let lines = if k <= PACKED { s.made[0] } else { 1 };
        // The last positions of the last channel are behind it.
        let each = (s.floats(touched) + s.pitch).max(NR * lines * s.pitch);
        Plan { rows, piece, k, lines, packed: packed_len(outputs, k), each }
    }
}

/// Floats that [`by_weight`] needs beside.
pub fn scratch(s: &Shifted, channels: usize, outputs: usize, threads: usize) -> usize {
    let plan = Plan::new(s, channels, outputs, threads);
    plan.packed + plan.rows * outputs + threads.max(1) * plan.each
}

/// `dw: [O, channels, taps]`, on all threads of `pool`, with [`scratch`] floats for as many. Equal results whatever their number. What is
/// behind lines is multiplied by zero: of `x` that is not finite more of `dw` is not than the formula says.
///
/// # Panics
/// When a slice is shorter than the shapes say.
pub fn by_weight(pool: &Pool, g: &ByWeight<'_>, memory: &mut [f32], dw: &mut [f32]) {
    by_weight_on(Isa::best(), pool, g, memory, dw);
}

/// [`by_weight`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`by_weight`].
pub fn by_weight_on(isa: Isa, pool: &Pool, g: &ByWeight<'_>, memory: &mut [f32], dw: &mut [f32]) -> bool {
    if !isa.available() {
        return false;
    }
    let (s, [images, channels, outputs]) = (g.shifted, g.sizes);
    let plan = Plan::new(s, channels, outputs, pool.threads());
    let (k, part) = (plan.k, plan.lines * s.pitch);
    let (packed, memory) = memory.split_at_mut(plan.packed);
    let (sums, own) = memory.split_at_mut(plan.rows * outputs);
    let (read, made) = (s.read[0] * s.read[1], s.made[0] * s.made[1]);
    for image in 0..images {
        let x = &g.x[image * channels * read..][..channels * read];
        let dy = &g.dy[image * outputs * made..][..outputs * made];
        pool.pieces_with(packed, NR * part, (&mut own[..], plan.each), |number, out, laid| {
            let (panel, first) = (number * plan.lines / s.made[0], number * plan.lines % s.made[0]);
            let rows = dy.chunks_exact(made).skip(panel * NR).take(NR);
            let count = rows.len();
            for (dy, laid) in rows.zip(laid.chunks_exact_mut(part)) {
                for (line, laid) in dy.chunks_exact(s.made[1]).skip(first).zip(laid.chunks_exact_mut(s.pitch)) {
                    laid[..line.len()].copy_from_slice(line);
                    laid[line.len()..].fill(0.0);
                }
            }
            panel_on(isa, 0, count, part, true, &Lying::F32(&laid[..count * part]), out);
        });
        let packed = &*packed;
        pool.pieces_with(sums, plan.piece * outputs, (&mut own[..], plan.each), |number, sums, laid| {
            let rows = number * plan.piece..plan.rows.min((number + 1) * plan.piece);
            let first = rows.start / s.taps;
            let touched = first..rows.end.div_ceil(s.taps);
            // What meets the zeros behind lines must be numbers.
            laid[touched.len() * s.step()..][..s.pitch].fill(0.0);
            for (channel, laid) in touched.zip(laid.chunks_exact_mut(s.step())) {
                s.lay_out(&x[channel * read..][..read], laid);
            }
            let null = std::ptr::null();
            let job = Job {
                w: packed.as_ptr(),
                k,
                n: outputs,
                scale: null,
                bias: null,
                y: sums.as_mut_ptr(),
                stride: outputs,
                addend: if image > 0 { sums.as_ptr() } else { null },
                activation: Activation::None,
                after: null,
            };
            assert!(sums.len() >= rows.len() * outputs && packed.len() >= plan.packed, "a slice is too short");
            let mut memory = MaybeUninit::<Table<f32>>::uninit();
            // SAFETY: an empty table is made where it lies; the rest of it may be uninitialised.
            let table = unsafe {
                Table::start(memory.as_mut_ptr());
                memory.assume_init_mut()
            };
            let form = Form::Floats(isa);
            for block in (0..rows.len()).step_by(ROWS) {
                table.clear();
                for (row, height) in heights(ROWS.min(rows.len() - block), f32::rows(form)) {
                    table.push(block + row, height, k);
                    let at = |r: usize| {
                        let row = rows.start + block + row + r;
                        let from = (row / s.taps - first) * s.step() + s.offset[row % s.taps] as usize;
                        laid[from..from + k].as_ptr()
                    };
                    table.segment(0, (0..height).map(at));
                }
                // SAFETY: every pointer leads to `K` floats, as was just seen; panels and results are as long as they say, the
                // results are borrowed alone, and the CPU has the instructions.
                unsafe { f32::block(form, &job, table, 0..outputs.div_ceil(NR)) };
            }
        });
    }
    if images == 0 {
        dw.fill(0.0);
    } else {
        transpose(pool, 1, plan.rows, outputs, sums, dw);
    }
    true
}

/// The formula for windows without depth, in `f64`.
///
/// # Panics
/// As [`by_weight`].
pub fn reference(window: &Window, [images, channels, outputs]: [usize; 3], x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (taps, pixels, positions) = (window.taps(), window.pixels(), window.positions());
    for (i, dw) in dw.iter_mut().enumerate() {
        let (o, channel, tap) = (i / taps / channels, i / taps % channels, i % taps);
        let mut sum = 0.0;
        for image in 0..images {
            for p in 0..positions {
                let at = [0, p / window.output[2], p % window.output[2]];
                if let Some(from) = crate::nhwc::pixel(window, at, tap) {
                    let x = x[(image * channels + channel) * pixels + from];
                    sum += f64::from(x) * f64::from(dy[(image * outputs + o) * positions + p]);
                }
            }
        }
        *dw = sum as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nhwc::tests::noise;
    use crate::shifted::tests::windows;

    #[test]
    fn shifted_channels_times_gradients_are_the_formula_and_nothing_else_is_written() {
        let mut ran = 0;
        // One more, whose lines are packed one by one.
        let large =
            Window { input: [1, 30, 40], kernel: [1, 3, 3], output: [1, 30, 40], pad: [0, 1, 1], ..windows()[0] };
        assert!(30 * Shifted::convolution(&large).unwrap().pitch > PACKED);
        for window in windows().into_iter().chain([large]) {
            let s = Shifted::convolution(&window).unwrap_or_else(|| panic!("{window:?}"));
            for sizes in [[1, 1, 16], [2, 5, 3], [3, 2, 35]] {
                let [images, channels, outputs] = sizes;
                let x = noise(images * channels * window.pixels(), 3);
                let dy = noise(images * outputs * window.positions(), 5);
                let mut want = vec![0.0; outputs * channels * window.taps()];
                reference(&window, sizes, &x, &dy, &mut want);
                let g = ByWeight { shifted: &s, sizes, x: &x, dy: &dy };
                for isa in Isa::ALL {
                    let mut first: Option<Vec<f32>> = None;
                    for threads in [1, 3] {
                        let mut found = vec![f32::NAN; want.len()];
                        let mut memory = vec![f32::NAN; scratch(&s, channels, outputs, threads)];
                        if !by_weight_on(isa, &Pool::new(threads), &g, &mut memory, &mut found) {
                            continue;
                        }
                        ran += 1;
                        // As many roundings as there are products below 1, and as many sums.
                        let tolerance = 2.0 * (images * window.positions()) as f32 * f32::EPSILON;
                        for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                            assert!((a - b).abs() <= tolerance, "{window:?} {sizes:?} {isa:?} at {i}: {a} {b}");
                        }
                        assert!(
                            first.get_or_insert_with(|| found.clone()) == &found,
                            "{window:?}: other bits on {threads} threads"
                        );
                    }
                }
            }
        }
        assert!(ran >= 100, "only {ran} ran");
    }
}
