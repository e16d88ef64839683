//! Depthwise convolutions with channels before space, and their transposes, plane by plane.
//!
//! A plane is laid out once with its border, so that under every tap of the window all positions lie one after another; what is
//! left is a sum of shifted copies of it, in vectors whatever the width of a line. A convolution that strides reads as many
//! planes as it has residues of its stride; a transpose that strides makes as many.
use crate::conv::Window;
use crate::isa::Isa;
use crate::nhwc::pixel;
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;

/// Most taps of a window.
pub const TAPS: usize = 64;
/// Longest stride.
const STRIDE: usize = 2;
/// Most residues of a stride, of both axes.
const PARTS: usize = STRIDE * STRIDE;
/// Floats behind a plane that the last vectors may read, and write.
const SLACK: usize = 128;
/// Positions times taps of all planes below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// One sum of shifted copies: a part of the result, of one residue.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Lines and positions of a line of it.
    size: [usize; 2],
    /// Where its first position is in the result.
    at: [usize; 2],
}

/// How planes of one shape are convolved, or the other way.
#[derive(Clone, Copy, Debug)]
pub struct Shifted {
    /// Of the plane that is read and of the one that is made: height, width.
    read: [usize; 2],
    made: [usize; 2],
    /// From one line or position of a laid out plane to the next in the plane that is read; of a part of the result the same there.
    step: [usize; 2],
    spread: [usize; 2],
    /// Lines and positions of the border before the plane; negative ones are cut off.
    border: [isize; 2],
    /// Lines and positions of a laid out plane; how many there are, a residue each.
    lines: usize,
    pitch: usize,
    planes: usize,
    /// Where each tap begins, and whose it is.
    offset: [usize; TAPS],
    of: [u8; TAPS],
    taps: usize,
    parts: [Part; PARTS],
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
            s.offset[tap] = (plane * lines + at[0] / height.stride) * pitch + at[1] / width.stride;
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
            s.offset[tap] = place(0)? * s.pitch + place(1)?;
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

    /// Floats that a thread needs beside.
    pub fn scratch(&self) -> usize {
        self.laid_out() + self.lines * self.pitch + SLACK
    }

    /// Floats of the planes as they are laid out.
    fn laid_out(&self) -> usize {
        self.planes * self.lines * self.pitch + SLACK
    }

    /// The lines of `x` with their border. What is behind the last plane is whatever was there.
    fn lay_out(&self, x: &[f32], out: &mut [f32]) {
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
    fn put(&self, part: &Part, sums: &[f32], y: &mut [f32]) {
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

/// Planes to be convolved, each with the weights and the bias of its channel.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// How.
    pub shifted: &'a Shifted,
    /// Channels of the result.
    pub channels: usize,
    /// Channels of the result that are made of one plane of `x`.
    pub multiplier: usize,
    /// The planes of all images.
    pub x: &'a [f32],
    /// The taps of every channel.
    pub w: &'a [f32],
    /// A number a channel, if any.
    pub bias: Option<&'a [f32]>,
}

/// The planes, on all threads of `pool` for which `scratch` has [`Shifted::scratch`] floats. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than the shapes say.
pub fn depthwise(pool: &Pool, d: &Depthwise<'_>, scratch: &mut [f32], y: &mut [f32]) {
    depthwise_on(Isa::best(), pool, d, scratch, y);
}

/// [`depthwise`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`depthwise`].
pub fn depthwise_on(isa: Isa, pool: &Pool, d: &Depthwise<'_>, scratch: &mut [f32], y: &mut [f32]) -> bool {
    if !isa.available() {
        return false;
    }
    let s = d.shifted;
    let (read, made) = (s.read[0] * s.read[1], s.made[0] * s.made[1]);
    let share = pool.share(y.len(), made, WORTH_SHARING / s.taps.max(1));
    pool.pieces_with(y, share, (scratch, s.scratch()), |piece, y, scratch| {
        for (k, y) in y.chunks_exact_mut(made).enumerate() {
            let plane = piece * share / made + k;
            let (image, channel) = (plane / d.channels, plane % d.channels);
            let of = image * (d.channels / d.multiplier) + channel / d.multiplier;
            let (laid, sums) = scratch.split_at_mut(s.laid_out());
            s.lay_out(&d.x[of * read..][..read], laid);
            let w = &d.w[channel * s.taps..][..s.taps];
            let bias = d.bias.map_or(0.0, |b| b[channel]);
            for (number, part) in s.parts[..s.spread[0] * s.spread[1]].iter().enumerate() {
                let [lines, positions] = part.size;
                if lines * positions == 0 {
                    continue;
                }
                let (mut taps, mut n) = ([(0, 0.0); TAPS], 0);
                for tap in (0..s.taps).filter(|&t| usize::from(s.of[t]) == number) {
                    taps[n] = (s.offset[tap], w[tap]);
                    n += 1;
                }
                summed(isa, laid, &taps[..n], bias, (lines - 1) * s.pitch + positions, sums);
                s.put(part, sums, y);
            }
        }
    });
    true
}

/// `out[i] = bias + Σ weight · x[offset + i]` for `len` positions, and perhaps some more.
fn summed(isa: Isa, x: &[f32], taps: &[(usize, f32)], bias: f32, len: usize, out: &mut [f32]) {
    let most = taps.iter().map(|t| t.0).max().unwrap_or(0);
    assert!(x.len() >= most + len + SLACK / 2 && out.len() >= len + SLACK / 2, "a plane is too short");
    // SAFETY: `isa` is there, as the caller has seen; at most four vectors, 64 floats, are read and written beyond `len`.
    unsafe { sums::on(isa, x, taps, bias, len, out) }
}

per_isa! { sums = summed_by; (x: &[f32], taps: &[(usize, f32)], bias: f32, len: usize, out: &mut [f32]) }

#[inline(always)]
unsafe fn summed_by<V: F32s>(x: &[f32], taps: &[(usize, f32)], bias: f32, len: usize, out: &mut [f32]) {
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    let mut i = 0;
    // SAFETY: see `summed`.
    unsafe {
        while i < len {
            if len - i > 2 * V::LANES {
                let mut s = [V::splat(bias); 4];
                for &(offset, w) in taps {
                    let (x, w) = (x.add(offset + i), V::splat(w));
                    for (k, s) in s.iter_mut().enumerate() {
                        *s = V::load(x.add(k * V::LANES)).mul_add(w, *s);
                    }
                }
                for (k, s) in s.into_iter().enumerate() {
                    s.store(out.add(i + k * V::LANES));
                }
                i += 4 * V::LANES;
            } else {
                let mut s = V::splat(bias);
                for &(offset, w) in taps {
                    s = V::load(x.add(offset + i)).mul_add(V::splat(w), s);
                }
                s.store(out.add(i));
                i += V::LANES;
            }
        }
    }
}

/// The formula of both, in `f64`.
///
/// # Panics
/// As [`depthwise`].
pub fn reference(window: &Window, transpose: bool, d: &Depthwise<'_>, y: &mut [f32]) {
    let (taps, pixels, positions) = (window.taps(), window.pixels(), window.positions());
    let (read, made, width) = match transpose {
        false => (pixels, positions, window.output[2]),
        true => (positions, pixels, window.input[2]),
    };
    for (i, y) in y.iter_mut().enumerate() {
        let (plane, at) = (i / made, [0, i % made / width, i % made % width]);
        let (image, channel) = (plane / d.channels, plane % d.channels);
        let x = &d.x[(image * (d.channels / d.multiplier) + channel / d.multiplier) * read..][..read];
        let mut sum = d.bias.map_or(0.0, |b| f64::from(b[channel]));
        for tap in 0..taps {
            let from = if transpose { position(window, at, tap) } else { pixel(window, at, tap) };
            if let Some(from) = from {
                sum += f64::from(x[from]) * f64::from(d.w[channel * taps + tap]);
            }
        }
        *y = sum as f32;
    }
}

/// The output position of a window without depth that meets the pixel at `at` by that tap, if one does.
fn position(w: &Window, at: [usize; 3], tap: usize) -> Option<usize> {
    let k = [0, tap / w.kernel[2], tap % w.kernel[2]];
    let along = |a: usize| {
        let v = usize::try_from((at[a] as isize) + w.pad[a] - (k[a] * w.dilation[a]) as isize).ok()?;
        (v.is_multiple_of(w.stride[a]) && v / w.stride[a] < w.output[a]).then_some(v / w.stride[a])
    };
    Some(along(1)? * w.output[2] + along(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 506.5 - 1.0).collect()
    }

    #[test]
    fn planes_are_the_formula_both_ways_for_every_window_and_nothing_else_is_written() {
        let mut windows = 0;
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
                    if output[1] * output[2] == 0 {
                        continue;
                    }
                    let window = Window {
                        input: [1, size[0], size[1]],
                        kernel: [1, kernel[0], kernel[1]],
                        output,
                        stride: [1, stride[0], stride[1]],
                        dilation: [1, dilation, dilation],
                        pad: [0, pad, pad],
                    };
                    windows += 1;
                    for (transpose, multiplier) in [(false, 1), (false, 2), (true, 1)] {
                        let made = if transpose { Shifted::transpose(&window) } else { Shifted::convolution(&window) };
                        let s = made.unwrap_or_else(|| panic!("{window:?}"));
                        let (images, channels) = (2, 6);
                        let (read, made) = (s.read[0] * s.read[1], s.made[0] * s.made[1]);
                        let x = noise(images * channels / multiplier * read, 3);
                        let (w, bias) = (noise(channels * window.taps(), 5), noise(channels, 9));
                        let d = Depthwise { shifted: &s, channels, multiplier, x: &x, w: &w, bias: Some(&bias) };
                        let mut want = vec![0.0; images * channels * made];
                        reference(&window, transpose, &d, &mut want);
                        for isa in Isa::ALL {
                            let mut first: Option<Vec<f32>> = None;
                            for threads in [1, 3] {
                                let mut found = vec![f32::NAN; want.len()];
                                let mut scratch = vec![f32::NAN; threads * s.scratch() + 1];
                                if !depthwise_on(isa, &Pool::new(threads), &d, &mut scratch, &mut found) {
                                    println!("{isa:?} is not on this CPU and was not tested");
                                    continue;
                                }
                                let allowed = (window.taps() as f32 + 2.0) * f32::EPSILON * 2.0;
                                for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                                    assert!((a - b).abs() <= allowed, "{isa:?} {transpose} {window:?} at {i}: {a} {b}");
                                }
                                assert!(first.get_or_insert(found.clone()) == &found, "{threads} threads");
                                assert!(scratch[threads * s.scratch()].is_nan());
                            }
                        }
                    }
                }
            }
        }
        assert!(windows > 60, "{windows} windows");
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
