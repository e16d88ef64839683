//! Resampling of `f32` images: along one axis at a time with precomputed weights, and at free positions of a plane.

/// One axis of a tensor `[outer, input, inner]` to be resized to `[outer, output, inner]`.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// Product of the lengths before the axis.
    pub outer: usize,
    /// Length of the axis before.
    pub input: usize,
    /// Length of the axis after.
    pub output: usize,
    /// Product of the lengths after the axis.
    pub inner: usize,
    /// Input positions an output position is made of.
    pub taps: usize,
    /// `taps` input positions an output position.
    pub at: &'a [u32],
    /// Their weights.
    pub weights: &'a [f32],
}

/// The formula: `y[o][i][j] = Σ_t weights[i][t] · x[o][at[i][t]][j]`, summed in `f64`.
pub fn reference(a: &Axis<'_>, x: &[f32], y: &mut [f32]) {
    for o in 0..a.outer {
        for i in 0..a.output {
            for j in 0..a.inner {
                let taps = i * a.taps..(i + 1) * a.taps;
                let sum = taps
                    .map(|t| f64::from(x[(o * a.input + a.at[t] as usize) * a.inner + j]) * f64::from(a.weights[t]));
                y[(o * a.output + i) * a.inner + j] = sum.sum::<f64>() as f32;
            }
        }
    }
}

/// The same, fast: by rows where the axis is not the innermost one.
///
/// # Panics
/// When a slice is shorter than the axis says.
pub fn resize(a: &Axis<'_>, x: &[f32], y: &mut [f32]) {
    // Rows of no elements: there is nothing to write, and nothing to cut rows from.
    if a.inner == 0 {
        return;
    }
    for o in 0..a.outer {
        let x = &x[o * a.input * a.inner..][..a.input * a.inner];
        let y = &mut y[o * a.output * a.inner..][..a.output * a.inner];
        if a.inner == 1 {
            if a.taps == 2 {
                let pairs = a.at.as_chunks::<2>().0.iter().zip(a.weights.as_chunks::<2>().0);
                for (y, (at, w)) in y.iter_mut().zip(pairs) {
                    *y = x[at[0] as usize] * w[0] + x[at[1] as usize] * w[1];
                }
                continue;
            }
            let taps = a.at.chunks_exact(a.taps).zip(a.weights.chunks_exact(a.taps));
            for (y, (at, w)) in y.iter_mut().zip(taps) {
                *y = at.iter().zip(w).map(|(&i, w)| x[i as usize] * w).sum();
            }
            continue;
        }
        let row = |i: u32| &x[i as usize * a.inner..][..a.inner];
        for (i, y) in y.chunks_exact_mut(a.inner).enumerate() {
            let (at, w) = (&a.at[i * a.taps..][..a.taps], &a.weights[i * a.taps..][..a.taps]);
            if let ([i, k], [v, w]) = (at, w) {
                y.iter_mut().zip(row(*i)).zip(row(*k)).for_each(|((y, a), b)| *y = a * v + b * w);
                continue;
            }
            y.fill(0.0);
            for (&i, w) in at.iter().zip(w) {
                y.iter_mut().zip(row(i)).for_each(|(y, x)| *y += x * w);
            }
        }
    }
}

/// Positions taken together in [`gather`].
pub const TILE: usize = 64;

/// Four elements of a plane and their weights, for a tile of positions.
#[derive(Clone, Copy, Debug)]
pub struct Corners {
    /// Elements of the plane.
    pub at: [[u32; TILE]; 4],
    /// Their weights; 0 for an element that is not there.
    pub weights: [[f32; TILE]; 4],
}

impl Default for Corners {
    fn default() -> Corners {
        Corners { at: [[0; TILE]; 4], weights: [[0.0; TILE]; 4] }
    }
}

/// `y[q] = Σ_corner weights[corner][q] · x[at[corner][q]]` for at most [`TILE`] positions.
///
/// # Panics
/// When an element is not one of `x`.
pub fn gather(corners: &Corners, x: &[f32], y: &mut [f32]) {
    for (q, y) in y.iter_mut().enumerate() {
        *y = (0..4).map(|c| corners.weights[c][q] * x[corners.at[c][q] as usize]).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_resized_fast_is_the_formula() {
        for (outer, inner) in [(1, 1), (3, 1), (2, 5), (1, 33)] {
            for taps in [1, 2, 4, 6] {
                let (input, output) = (7, 10);
                let at: Vec<u32> = (0..output * taps).map(|i| (i as u32 * 5 + 3) % 7).collect();
                let weights: Vec<f32> = (0..output * taps).map(|i| (i % 11) as f32 / 11.0 - 0.3).collect();
                let a = Axis { outer, input, output, inner, taps, at: &at, weights: &weights };
                let x: Vec<f32> = (0..outer * input * inner).map(|i| (i * 37 % 19) as f32 / 19.0).collect();
                let mut want = vec![0.0; outer * output * inner];
                let mut found = vec![f32::NAN; want.len() + 3];
                reference(&a, &x, &mut want);
                resize(&a, &x, &mut found);
                for (w, f) in want.iter().zip(&found) {
                    // One product and one sum a tap, each below `taps` in magnitude.
                    assert!((w - f).abs() <= (2 * taps * taps) as f32 * f32::EPSILON, "{w} {f}");
                }
                assert!(found[want.len()..].iter().all(|v| v.is_nan()));
            }
        }
    }
}
