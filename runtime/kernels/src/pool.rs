//! Pooling over planes of up to three spatial axes.

use crate::conv::{Window, for_each_run};

/// Largest value under each window of one plane, NaN where there is one; -∞ where a window meets nothing.
///
/// # Panics
/// When a slice is shorter than the window says.
pub fn max_plane(g: &Window, x: &[f32], y: &mut [f32]) {
    y.fill(f32::NEG_INFINITY);
    for_each_run(g, |_, y_first, x_first, n| {
        let y = &mut y[y_first..y_first + n];
        let x = &x[x_first..];
        match g.stride[2] {
            1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y = larger(*y, x)),
            2 => y.iter_mut().zip(x.chunks(2)).for_each(|(y, x)| *y = larger(*y, x[0])),
            s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y = larger(*y, x)),
        }
    });
}

/// The larger of two values; NaN if one of them is.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    // Bitwise or: no branch stands in the way of vector instructions.
    if (b > a) | b.is_nan() { b } else { a }
}

/// Sum under each window of one plane times `factor`, one a window.
///
/// # Panics
/// When a slice is shorter than the window says.
pub fn sum_plane(g: &Window, x: &[f32], factor: &[f32], y: &mut [f32]) {
    y.fill(0.0);
    for_each_run(g, |_, y_first, x_first, n| {
        let y = &mut y[y_first..y_first + n];
        let x = &x[x_first..];
        match g.stride[2] {
            1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += x),
            2 => y.iter_mut().zip(x.chunks(2)).for_each(|(y, x)| *y += x[0]),
            s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y += x),
        }
    });
    y.iter_mut().zip(factor).for_each(|(y, f)| *y *= f);
}

/// Sum of a slice, in lanes: a sum of few rounding errors that vector instructions can take.
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l += v);
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Largest value of a slice, NaN if it holds one; -∞ of an empty one.
pub fn max(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l = larger(*l, *v));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &v| if a.is_nan() { a } else { larger(a, v) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(stride: usize, pad: isize) -> Window {
        Window {
            input: [1, 4, 7],
            kernel: [1, 3, 3],
            output: [1, (4 + 2 * pad as usize - 3) / stride + 1, (7 + 2 * pad as usize - 3) / stride + 1],
            stride: [1, stride, stride],
            dilation: [1; 3],
            pad: [0, pad, pad],
        }
    }

    #[test]
    fn a_plane_pooled_is_every_window_pooled() {
        let x: Vec<f32> = (0..28).map(|i| ((i * 37 + 11) % 29) as f32 - 14.0).collect();
        for (stride, pad) in [(1, 0), (1, 1), (2, 1), (3, 1)] {
            let g = window(stride, pad);
            let (mut largest, mut sums) = (vec![0.0; g.positions()], vec![0.0; g.positions()]);
            max_plane(&g, &x, &mut largest);
            sum_plane(&g, &x, &vec![0.5; g.positions()], &mut sums);
            for p in 0..g.positions() {
                let (oy, ox) = (p / g.output[2] * stride, p % g.output[2] * stride);
                let inside: Vec<f32> = (0..9)
                    .map(|k| (oy as isize + k / 3 - pad, ox as isize + k % 3 - pad))
                    .filter(|&(y, x)| (0..4).contains(&y) && (0..7).contains(&x))
                    .map(|(y, v)| x[(y * 7 + v) as usize])
                    .collect();
                assert_eq!(largest[p], inside.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                assert_eq!(sums[p], inside.iter().sum::<f32>() * 0.5);
            }
        }
    }

    #[test]
    fn a_nan_is_the_largest_value_wherever_it_stands() {
        for n in [1, 15, 16, 33] {
            for at in 0..n {
                let mut x = vec![1.0; n];
                assert_eq!(max(&x), 1.0);
                assert_eq!(sum(&x), n as f32);
                x[at] = f32::NAN;
                assert!(max(&x).is_nan(), "{at} of {n}");
            }
        }
        assert!(larger(f32::NAN, 1.0).is_nan() && larger(1.0, f32::NAN).is_nan());
    }
}
