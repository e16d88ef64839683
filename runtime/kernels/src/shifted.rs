//! Planes laid out so that a window over them is a shift.
//!
//! A plane is laid out once with its border, so that under every tap of the window all positions lie one after another; what is
//! left is a sum of shifted copies of it, in vectors whatever the width of a line. A convolution that strides reads as many
//! planes as it has residues of its stride; a transpose that strides makes as many. Depthwise convolutions ([`crate::planes`]),
//! others ([`crate::conv::Rows`]) and the gradient by their weights ([`crate::by_weight`]) read them so.
use crate::conv::{Lines, Rows, Window};

/// Most taps of a window.
pub const TAPS: usize = 64;
/// Longest stride.
const STRIDE: usize = 2;
/// Most residues of a stride, of both axes.
const PARTS: usize = STRIDE * STRIDE;
/// Floats behind a plane that the last vectors may read, and write.
pub(crate) const SLACK: usize = 128;

/// One sum of shifted copies: a part of the result, of one residue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    /// Lines and positions of a line of it.
    pub(crate) size: [usize; 2],
    /// Where its first position is in the result.
    at: [usize; 2],
}

/// How planes of one shape are convolved, or the other way.
#[derive(Clone, Copy, Debug)]
pub struct Shifted {
    /// Of the plane that is read and of the one that is made: height, width.
    pub(crate) read: [usize; 2],
    pub(crate) made: [usize; 2],
    /// From one line or position of a laid out plane to the next in the plane that is read; of a part of the result the same there.
    step: [usize; 2],
    pub(crate) spread: [usize; 2],
    /// Lines and positions of the border before the plane; negative ones are cut off.
    border: [isize; 2],
    /// Lines and positions of a laid out plane; how many there are, a residue each.
    lines: usize,
    pub(crate) pitch: usize,
    planes: usize,
    /// Where each tap begins, and whose it is.
    pub(crate) offset: [u32; TAPS],
    pub(crate) of: [u8; TAPS],
    pub(crate) taps: usize,
    pub(crate) parts: [Part; PARTS],
}

impl Shifted {
    /// For the convolution that `window` is; `None` for windows with depth, with long strides or with many taps.
    pub fn convolution(window: &Window) -> Option<Shifted> {
        let [height, width] = Shifted::axes(window)?;
        let spans = [height, width].map(|a| (a.output - 1) * a.stride + (a.kernel - 1) * a.dilation + 1);
        let (lines, pitch) = (spans[0].div_ceil(height.stride), spans[1].div_ceil(width.stride));
        let mut s = Shifted {
            read: [height.input, width.input],
            made: [height.output, width.output],
            step: [height.stride, width.stride],
            spread: [1, 1],
            border: [height.pad, width.pad],
            lines,
            pitch,
            planes: height.stride * width.stride,
            offset: [0; TAPS],
            of: [0; TAPS],
            taps: window.taps(),
            parts: [Part::default(); PARTS],
        };
        s.parts[0] = Part { size: s.made, at: [0, 0] };
        for tap in 0..s.taps {
            let at = [tap / width.kernel * height.dilation, tap % width.kernel * width.dilation];
            let plane = at[0] % height.stride * width.stride + at[1] % width.stride;
            s.offset[tap] =
                u32::try_from((plane * lines + at[0] / height.stride) * pitch + at[1] / width.stride).ok()?;
        }
        Some(s)
    }

    /// For the transpose of that convolution, which makes its input of its output; `None` as above.
    pub fn transpose(window: &Window) -> Option<Shifted> {
        let axes = Shifted::axes(window)?;
        // The result at i gets tap k of position (i + pad - k · dilation) / stride, where that is whole: with i + pad = stride · q + a,
        // of position q - e with e = (k · dilation - a) / stride.
        let first = |a: &Line, residue: usize| {
            let i = (residue as isize - a.pad).rem_euclid(a.stride as isize);
            (i as usize, (i + a.pad).div_euclid(a.stride as isize))
        };
        let count = |a: &Line, i: usize| a.input.saturating_sub(i).div_ceil(a.stride);
        let shift = |a: &Line| (a.kernel - 1) * a.dilation / a.stride;
        let residues = |a: &Line| 0..a.stride;
        let least = |a: &Line| residues(a).map(|r| first(a, r).1).min().unwrap_or(0);
        let most = |a: &Line| residues(a).map(|r| first(a, r).1 + count(a, first(a, r).0) as isize).max().unwrap_or(0);
        let [height, width] = &axes;
        let from = [height, width].map(|a| least(a) - shift(a) as isize);
        let mut s = Shifted {
            read: [height.output, width.output],
            made: [height.input, width.input],
            step: [1, 1],
            spread: [height.stride, width.stride],
            border: from.map(|f| -f),
            lines: usize::try_from(most(height) - from[0]).ok()?,
            pitch: usize::try_from(most(width) - from[1]).ok()?,
            planes: 1,
            offset: [0; TAPS],
            of: [0; TAPS],
            taps: window.taps(),
            parts: [Part::default(); PARTS],
        };
        for a in residues(height) {
            for b in residues(width) {
                let (i, k) = (first(height, a).0, first(width, b).0);
                s.parts[a * width.stride + b] = Part { size: [count(height, i), count(width, k)], at: [i, k] };
            }
        }
        for tap in 0..s.taps {
            let reach = [tap / width.kernel * height.dilation, tap % width.kernel * width.dilation];
            let residue = [reach[0] % height.stride, reach[1] % width.stride];
            s.of[tap] = (residue[0] * width.stride + residue[1]) as u8;
            let place = |axis: usize| {
                let back = ((reach[axis] - residue[axis]) / axes[axis].stride) as isize;
                usize::try_from(first(&axes[axis], residue[axis]).1 - back - from[axis]).ok()
            };
            s.offset[tap] = u32::try_from(place(0)? * s.pitch + place(1)?).ok()?;
        }
        Some(s)
    }

    fn axes(w: &Window) -> Option<[Line; 2]> {
        let axis = |a: usize| Line {
            input: w.input[a],
            output: w.output[a],
            kernel: w.kernel[a],
            stride: w.stride[a],
            dilation: w.dilation[a],
            pad: w.pad[a],
        };
        let all = [axis(1), axis(2)];
        let fits = |a: &Line| a.input > 0 && a.output > 0 && a.kernel > 0 && (1..=STRIDE).contains(&a.stride);
        (w.is_flat() && w.stride[0] == 1 && w.taps() <= TAPS && all.iter().all(fits)).then_some(all)
    }

    /// Floats that a thread of [`crate::planes::depthwise`] needs beside.
    pub fn scratch(&self) -> usize {
        self.floats(1) + self.lines * self.pitch + SLACK
    }

    /// Floats from one laid out channel to the next.
    pub fn step(&self) -> usize {
        self.planes * self.lines * self.pitch
    }

    /// Floats of so many channels as they are laid out, one after another, with what vectors may read behind them.
    pub fn floats(&self, channels: usize) -> usize {
        channels * self.step() + SLACK
    }

    /// Columns of a convolution: all lines, with what is between them.
    pub fn columns(&self) -> usize {
        (self.made[0] - 1) * self.pitch + self.made[1]
    }

    /// Which of them are its results.
    pub fn results(&self) -> Lines {
        Lines { pitch: self.pitch, width: self.made[1] }
    }

    /// The rows of a convolution's columns in channels that are laid out.
    pub fn rows(&self) -> Rows<'_> {
        Rows { taps: &self.offset[..self.taps], step: self.step() }
    }

    /// The lines of a channel `x` with their border, in [`Shifted::step`] floats. What is behind them is whatever was there.
    ///
    /// # Panics
    /// When a slice is shorter than the shapes say.
    pub fn lay_out(&self, x: &[f32], out: &mut [f32]) {
        let [height, width] = self.read;
        for (number, line) in out.chunks_exact_mut(self.pitch).take(self.planes * self.lines).enumerate() {
            let (plane, r) = (number / self.lines, number % self.lines);
            let residue = [plane / self.step[1], plane % self.step[1]];
            let i = (r * self.step[0] + residue[0]) as isize - self.border[0];
            if !(0..height as isize).contains(&i) {
                line.fill(0.0);
                continue;
            }
            let from = &x[i as usize * width..][..width];
            // Position c of the line is number c · step - before of `from`.
            let (step, before) = (self.step[1], self.border[1] - residue[1] as isize);
            let up = |v: isize| (v.max(0) as usize).div_ceil(step).min(self.pitch);
            let (first, last) = (up(before), up(before + width as isize));
            line[..first].fill(0.0);
            line[last..].fill(0.0);
            if first < last {
                let from = &from[(first * step).wrapping_add_signed(-before)..];
                let line = &mut line[first..last];
                if step == 1 {
                    line.copy_from_slice(&from[..line.len()]);
                } else {
                    line.iter_mut().zip(from.iter().step_by(step)).for_each(|(o, v)| *o = *v);
                }
            }
        }
    }

    /// The positions of a part of the result, one after another and with what is between its lines, to where they belong.
    pub(crate) fn put(&self, part: &Part, sums: &[f32], y: &mut [f32]) {
        for (line, sums) in sums.chunks(self.pitch).take(part.size[0]).enumerate() {
            let to = (part.at[0] + line * self.spread[0]) * self.made[1] + part.at[1];
            let sums = &sums[..part.size[1]];
            if self.spread[1] == 1 {
                y[to..][..sums.len()].copy_from_slice(sums);
            } else {
                y[to..].iter_mut().step_by(self.spread[1]).zip(sums).for_each(|(y, v)| *y = *v);
            }
        }
    }
}

/// One axis of a window.
#[derive(Clone, Copy)]
struct Line {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pad: isize,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::conv::{self, KERNELS, Packed, Product};
    use crate::nhwc::tests::noise;

    /// Windows of every kind that planes are laid out for.
    pub(crate) fn windows() -> Vec<Window> {
        let mut windows = Vec::new();
        for (size, kernel) in
            [([1, 1], [1, 1]), ([7, 7], [5, 5]), ([9, 40], [3, 3]), ([1, 70], [1, 7]), ([6, 5], [2, 4])]
        {
            for stride in [[1, 1], [2, 2], [1, 2], [2, 1]] {
                for (dilation, pad, more) in [(1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 1, 1), (1, -1, 0), (3, 4, 0)] {
                    // One position more than fits reads nothing but zeros.
                    let axis = |a: usize| {
                        let reach = (kernel[a] - 1) * dilation + 1;
                        let room = size[a] as isize + 2 * pad - reach as isize;
                        usize::try_from(room).map_or(0, |r| r / stride[a] + 1 + more)
                    };
                    let output = [1, axis(0), axis(1)];
                    if output[1] * output[2] > 0 {
                        windows.push(Window {
                            input: [1, size[0], size[1]],
                            kernel: [1, kernel[0], kernel[1]],
                            output,
                            stride: [1, stride[0], stride[1]],
                            dilation: [1, dilation, dilation],
                            pad: [0, pad, pad],
                        });
                    }
                }
            }
        }
        windows
    }

    #[test]
    fn every_product_of_shifted_channels_is_the_convolution_and_nothing_else_is_written() {
        let mut ran = 0;
        for window in windows() {
            let s = Shifted::convolution(&window).unwrap_or_else(|| panic!("{window:?}"));
            for (m, c, codes) in [(1, 1, false), (16, 3, false), (13, 5, true)] {
                let (k, positions) = (c * window.taps(), window.positions());
                let (x, bias) = (noise(c * window.pixels(), 3), noise(m, 5));
                let scale: Vec<f32> = noise(m, 9).iter().map(|s| s.abs() * 0.01 + 0.001).collect();
                let q: Vec<i8> = noise(m * k, 7).iter().map(|v| (v * 127.0) as i8).collect();
                let w: Vec<f32> = match codes {
                    true => (0..m * k).map(|i| f32::from(q[i]) * scale[i / k]).collect(),
                    false => noise(m * k, 7),
                };
                let len = conv::packed_len(m, k);
                let (mut packed, mut packed_q) = (vec![0f32; len], vec![0i8; len]);
                conv::pack(m, k, |i, kk| w[i * k + kk], &mut packed);
                conv::pack(m, k, |i, kk| q[i * k + kk], &mut packed_q);
                let mut want = vec![0.0; m * positions];
                conv::reference(&window, c, &x, m, &w, Some(&bias), &mut want);
                let mut laid = vec![f32::NAN; s.floats(c)];
                for (x, laid) in x.chunks_exact(window.pixels()).zip(laid.chunks_exact_mut(s.step())) {
                    s.lay_out(x, laid);
                }
                let product = Product {
                    m,
                    k,
                    part: 0..k,
                    w: if codes { Packed::I8 { q: &packed_q, scale: &scale } } else { Packed::F32(&packed) },
                    columns: &laid,
                    rows: s.rows(),
                    n: s.columns(),
                    lines: s.results(),
                    bias: Some(&bias),
                    y_stride: positions,
                };
                for kernel in KERNELS {
                    let mut found = vec![f32::NAN; m * positions + 40];
                    if !kernel.run(&product, &mut found) {
                        continue;
                    }
                    ran += 1;
                    let tolerance = 1.4 * (k as f32 + 4.0) * f32::EPSILON;
                    for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                        assert!((a - b).abs() <= tolerance, "{} {window:?} {m}x{c} at {i}: {a} {b}", kernel.name);
                    }
                    assert!(found[m * positions..].iter().all(|v| v.is_nan()), "{} wrote past its output", kernel.name);
                }
            }
        }
        assert!(ran >= 100, "only {ran} ran");
    }

    #[test]
    fn windows_with_depth_are_not_laid_out() {
        let deep = Window {
            input: [2, 3, 3],
            kernel: [2, 1, 1],
            output: [1, 3, 3],
            stride: [1; 3],
            dilation: [1; 3],
            pad: [0; 3],
        };
        assert!(Shifted::convolution(&deep).is_none() && Shifted::transpose(&deep).is_none());
    }
}
