//! The discrete Fourier transform of one line, of any length, in `f64`.
use std::f64::consts::PI;

/// Tables for transforms of one length, made once. Running allocates nothing.
///
/// Powers of two by Cooley and Tukey's radix 2; short lines by the sum itself; other lengths by Bluestein's convolution
/// with a chirp, which is a transform of a power of two.
pub(super) struct Transform {
    n: usize,
    method: Method,
}

enum Method {
    /// `e^(-2πi k / n)` for every `k`.
    Sum(Vec<(f64, f64)>),
    /// `e^(-2πi k / n)` for `k < n / 2`.
    Radix2(Vec<(f64, f64)>),
    Chirp {
        /// `e^(-πi k² / n)`.
        chirp: Vec<(f64, f64)>,
        /// Transform of the chirp's conjugate, divided by its length.
        spectrum: (Vec<f64>, Vec<f64>),
        /// Twiddles of that length.
        twiddles: Vec<(f64, f64)>,
    },
}

/// Lines up to this length are transformed by the sum.
const SHORT: usize = 24;

impl Transform {
    /// The transform of lines of `n ≥ 1` elements.
    pub(super) fn new(n: usize) -> Transform {
        let method = if n.is_power_of_two() {
            Method::Radix2(roots(n, n / 2))
        } else if n <= SHORT {
            Method::Sum(roots(n, n))
        } else {
            let m = (2 * n - 1).next_power_of_two();
            let twiddles = roots(m, m / 2);
            // k² is taken modulo 2n, so that the angle stays small and exact.
            let chirp: Vec<(f64, f64)> = (0..n as u128)
                .map(|k| {
                    let (sin, cos) = (PI * (k * k % (2 * n as u128)) as f64 / n as f64).sin_cos();
                    (cos, -sin)
                })
                .collect();
            let (mut re, mut im) = (vec![0.0; m], vec![0.0; m]);
            for (k, &(c, s)) in chirp.iter().enumerate() {
                for at in [k, (m - k) % m] {
                    (re[at], im[at]) = (c / m as f64, -s / m as f64);
                }
            }
            radix2(&twiddles, &mut re, &mut im);
            Method::Chirp { chirp, spectrum: (re, im), twiddles }
        };
        Transform { n, method }
    }

    /// Elements of working memory [`Transform::run`] needs.
    pub(super) fn work(&self) -> usize {
        match &self.method {
            Method::Sum(_) => 2 * self.n,
            Method::Radix2(_) => 0,
            Method::Chirp { spectrum, .. } => 2 * spectrum.0.len(),
        }
    }

    /// `X[k] = Σ_t x[t] e^(-2πi k t / n)` in place; the inverse (without the division by `n`) has real and imaginary
    /// parts exchanged.
    ///
    /// # Panics
    /// When `re` or `im` has not `n` elements or `work` fewer than [`Transform::work`].
    pub(super) fn run(&self, re: &mut [f64], im: &mut [f64], work: &mut [f64]) {
        let n = self.n;
        assert!(re.len() == n && im.len() == n, "a line of {} for a transform of {n}", re.len());
        match &self.method {
            Method::Radix2(twiddles) => radix2(twiddles, re, im),
            Method::Sum(roots) => {
                let (a, b) = work[..2 * n].split_at_mut(n);
                a.copy_from_slice(re);
                b.copy_from_slice(im);
                for k in 0..n {
                    let (mut sum_re, mut sum_im, mut at) = (0.0, 0.0, 0);
                    for t in 0..n {
                        let (c, s) = roots[at];
                        sum_re += a[t] * c - b[t] * s;
                        sum_im += a[t] * s + b[t] * c;
                        at += k;
                        at -= if at >= n { n } else { 0 };
                    }
                    (re[k], im[k]) = (sum_re, sum_im);
                }
            }
            Method::Chirp { chirp, spectrum, twiddles } => {
                let m = spectrum.0.len();
                let (a, b) = work[..2 * m].split_at_mut(m);
                for (k, &(c, s)) in chirp.iter().enumerate() {
                    (a[k], b[k]) = (re[k] * c - im[k] * s, re[k] * s + im[k] * c);
                }
                a[n..].fill(0.0);
                b[n..].fill(0.0);
                radix2(twiddles, a, b);
                for k in 0..m {
                    let (c, s) = (spectrum.0[k], spectrum.1[k]);
                    (a[k], b[k]) = (a[k] * c - b[k] * s, a[k] * s + b[k] * c);
                }
                radix2(twiddles, b, a);
                for (k, &(c, s)) in chirp.iter().enumerate() {
                    (re[k], im[k]) = (a[k] * c - b[k] * s, a[k] * s + b[k] * c);
                }
            }
        }
    }
}

/// `e^(-2πi k / n)` for `k < count`.
fn roots(n: usize, count: usize) -> Vec<(f64, f64)> {
    (0..count)
        .map(|k| {
            let (sin, cos) = (2.0 * PI * k as f64 / n as f64).sin_cos();
            (cos, -sin)
        })
        .collect()
}

/// A transform of a power of two, in place: reversal of the bits of the index, then butterflies.
fn radix2(twiddles: &[(f64, f64)], re: &mut [f64], im: &mut [f64]) {
    let n = re.len();
    if n < 2 {
        return;
    }
    let shift = usize::BITS - n.trailing_zeros();
    for i in 0..n {
        let j = i.reverse_bits() >> shift;
        if i < j {
            re.swap(i, j);
            im.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        let stride = n / (2 * half);
        for start in (0..n).step_by(2 * half) {
            for k in 0..half {
                let (c, s) = twiddles[k * stride];
                let (i, j) = (start + k, start + k + half);
                let (x, y) = (re[j] * c - im[j] * s, re[j] * s + im[j] * c);
                (re[j], im[j]) = (re[i] - x, im[i] - y);
                (re[i], im[i]) = (re[i] + x, im[i] + y);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_gives_the_sum_of_the_definition_and_its_inverse_undoes_it() {
        for n in (1..70).chain([100, 127, 128, 200, 400, 441]) {
            let x: Vec<f64> = (0..n).map(|t| ((t * 37 + 11) % 101) as f64 / 50.0 - 1.0).collect();
            let y: Vec<f64> = (0..n).map(|t| ((t * 53 + 29) % 103) as f64 / 51.0 - 1.0).collect();
            let transform = Transform::new(n);
            let mut work = vec![f64::NAN; transform.work()];
            let (mut re, mut im) = (x.clone(), y.clone());
            transform.run(&mut re, &mut im, &mut work);
            for k in 0..n {
                let (mut a, mut b) = (0.0, 0.0);
                for t in 0..n {
                    let (s, c) = (-2.0 * PI * (k * t % n) as f64 / n as f64).sin_cos();
                    a += x[t] * c - y[t] * s;
                    b += x[t] * s + y[t] * c;
                }
                assert!((re[k] - a).abs() < 1e-12 * n as f64 && (im[k] - b).abs() < 1e-12 * n as f64, "{n} {k}");
            }
            transform.run(&mut im, &mut re, &mut work);
            assert!((0..n).all(|t| (re[t] / n as f64 - x[t]).abs() < 1e-12), "{n}");
        }
    }
}
