//! Depthwise convolutions with channels before space, and their transposes, plane by plane: sums of shifted copies ([`Shifted`]).
use crate::conv::Window;
use crate::isa::Isa;
use crate::nhwc::pixel;
use crate::shifted::{SLACK, Shifted, TAPS};
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;

/// Positions times taps of all planes below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

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
            let (laid, sums) = scratch.split_at_mut(s.floats(1));
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
                    taps[n] = (s.offset[tap] as usize, w[tap]);
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
        for window in crate::shifted::tests::windows() {
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
        assert!(windows > 60, "{windows} windows");
    }
}
