//! From what was seen of an activation to the range its codes stand for.
use super::observe::{BINS, Histogram};

/// How the range of an activation is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calibration {
    /// From the smallest to the largest value seen.
    MinMax,
    /// So that this share of the values, in percent, is inside; what is outside is divided between both ends.
    Percentile(f64),
    /// The range whose 128 steps lose the least information (Kullback-Leibler divergence). Source: Migacz, 8-bit Inference
    /// with TensorRT, GTC 2017; ONNX Runtime's `HistogramCollector`.
    Entropy,
    /// The range with the smallest mean squared error of clipping and rounding together.
    Mse,
}

/// Scale and zero point of `u8` codes: `real = (q - zero) · scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Codes {
    pub(super) scale: f32,
    pub(super) zero: u8,
}

impl Codes {
    /// Codes for a range, widened to hold 0. Source: `compute_scale_zp` of ONNX Runtime's quantizer.
    pub(super) fn of((low, high): (f32, f32)) -> Codes {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = (high - low) / 255.0;
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Codes { scale: 1.0, zero: 0 };
        }
        Codes { scale: scale as f32, zero: (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8 }
    }

    /// The real that stands for `v`.
    pub(super) fn nearest(self, v: f64) -> f64 {
        let (scale, zero) = (f64::from(self.scale), f64::from(self.zero));
        ((v / scale).round_ties_even().clamp(-zero, 255.0 - zero)) * scale
    }
}

/// Codes of the range that the method chooses.
pub(super) fn codes(method: Calibration, seen: &Histogram) -> Codes {
    if seen.bins.is_empty() {
        return Codes::of((0.0, 0.0));
    }
    let whole = (seen.min, seen.max);
    Codes::of(match method {
        Calibration::MinMax => whole,
        Calibration::Percentile(p) => percentile(seen, p),
        Calibration::Entropy => within(seen, entropy(seen)),
        Calibration::Mse => mse(seen),
    })
}

/// The symmetric range, cut to what was seen.
fn within(seen: &Histogram, threshold: f64) -> (f32, f32) {
    let t = threshold as f32;
    (seen.min.max(-t), seen.max.min(t))
}

fn percentile(seen: &Histogram, percent: f64) -> (f32, f32) {
    let total: u64 = seen.bins.iter().sum();
    let outside = ((1.0 - percent.clamp(0.0, 100.0) / 100.0) / 2.0 * total as f64) as u64;
    let width = 2.0 * seen.limit / BINS as f64;
    // The edge behind which no more than `outside` values lie.
    let cut = |bins: &mut dyn Iterator<Item = &u64>| {
        let mut left = outside;
        bins.take_while(|&&n| {
            let skip = n <= left;
            left = left.saturating_sub(n);
            skip
        })
        .count() as f64
            * width
    };
    let low = cut(&mut seen.bins.iter()) - seen.limit;
    let high = seen.limit - cut(&mut seen.bins.iter().rev());
    ((low as f32).max(seen.min), (high as f32).min(seen.max))
}

/// Steps of the quantised distribution that is compared.
const STEPS: usize = 128;
/// Candidate thresholds.
const CANDIDATES: usize = 256;

/// The magnitude beyond which clipping loses the least information.
fn entropy(seen: &Histogram) -> f64 {
    // Magnitudes: for a one-sided activation this is the distribution itself.
    let half = BINS / 2;
    let counts: Vec<f64> = (0..half).map(|i| (seen.bins[half + i] + seen.bins[half - 1 - i]) as f64).collect();
    let used = counts.iter().rposition(|&n| n > 0.0).map_or(0, |i| i + 1);
    let width = seen.limit / half as f64;
    let mut best = (f64::INFINITY, used);
    let step = used.saturating_sub(STEPS).div_ceil(CANDIDATES).max(1);
    for end in (STEPS.min(used)..=used).step_by(step).chain([used]) {
        let divergence = divergence(&counts[..end], counts[end..].iter().sum());
        if divergence < best.0 {
            best = (divergence, end);
        }
    }
    best.1 as f64 * width
}

/// Divergence of the distribution clipped to these bins (`outside` values join the last one) from itself in `STEPS` steps.
fn divergence(bins: &[f64], outside: f64) -> f64 {
    let n = bins.len();
    if n <= STEPS {
        return if outside > 0.0 { f64::INFINITY } else { 0.0 };
    }
    let mut p = bins.to_vec();
    p[n - 1] += outside;
    let mut q = vec![0.0; n];
    for s in 0..STEPS {
        let (from, to) = (s * n / STEPS, (s + 1) * n / STEPS);
        let filled = p[from..to].iter().filter(|&&v| v > 0.0).count();
        let each = bins[from..to].iter().sum::<f64>() / filled.max(1) as f64;
        (from..to).filter(|&i| p[i] > 0.0).for_each(|i| q[i] = each);
    }
    let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    // A bin the steps make empty would be infinitely far: it gets a small share, as in ONNX Runtime's smoothing.
    let floor = 1e-4 / n as f64;
    p.iter()
        .zip(&q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p / sum_p * (p / sum_p / (q / sum_q).max(floor)).ln())
        .sum()
}

/// The range with the smallest squared error, searched on a grid of both ends.
fn mse(seen: &Histogram) -> (f32, f32) {
    let points: Vec<(f64, u64)> = seen.points().collect();
    let (low, high) = (seen.min.min(0.0), seen.max.max(0.0));
    let error = |a: f32, b: f32| {
        let codes = Codes::of((low * a, high * b));
        points.iter().map(|&(v, n)| (v - codes.nearest(v)).powi(2) * n as f64).sum::<f64>()
    };
    let mut best = (error(1.0, 1.0), 1.0f32, 1.0f32);
    let take = |a: f32, b: f32, best: &mut (f64, f32, f32)| {
        let e = error(a, b);
        if e < best.0 {
            *best = (e, a, b);
        }
    };
    for i in 1..80 {
        let a = 1.0 - i as f32 / 80.0;
        take(a, a, &mut best);
        take(a, 1.0, &mut best);
        take(1.0, a, &mut best);
    }
    let (_, a, b) = best;
    for i in -6i8..=6 {
        for j in -6i8..=6 {
            let (a, b) = (a + f32::from(i) / 160.0, b + f32::from(j) / 160.0);
            if (0.0..=1.0).contains(&a) && (0.0..=1.0).contains(&b) {
                take(a, b, &mut best);
            }
        }
    }
    (low * best.1, high * best.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::observe::tests::histogram;

    /// A bell around 0 of ten thousand values, and one value far out.
    fn bell() -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        let mut v: Vec<f32> = (0..10_000).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect();
        v.push(40.0);
        v
    }

    fn squared_error(c: Codes, v: &[f32]) -> f64 {
        v.iter().map(|&v| (f64::from(v) - c.nearest(f64::from(v))).powi(2)).sum()
    }

    #[test]
    fn codes_are_those_of_onnx_runtimes_quantizer() {
        // compute_scale_zp(numpy.float32(a), numpy.float32(b), 0, 255) of onnxruntime 1.32.
        for (range, scale, zero) in [
            ((-1.0, 3.0), 0.015_686_275, 64),
            ((0.0, 6.0), 0.023_529_412, 0),
            ((2.0, 6.0), 0.023_529_412, 0),
            ((-4.0, -1.0), 0.015_686_275, 255),
            ((0.0, 0.0), 1.0, 0),
        ] {
            assert_eq!(Codes::of(range), Codes { scale, zero }, "{range:?}");
        }
    }

    #[test]
    fn an_outlier_widens_only_the_range_of_min_max_and_the_squared_error_is_least_where_it_is_asked_for() {
        let values = bell();
        let seen = histogram(&values);
        let of = |m| codes(m, &seen);
        let whole = of(Calibration::MinMax);
        assert!((whole.scale - (40.0 - seen.min) / 255.0).abs() < 1e-6);
        let methods = [Calibration::Percentile(99.9), Calibration::Entropy, Calibration::Mse];
        let errors: Vec<f64> = methods.iter().map(|&m| squared_error(of(m), &values[..10_000])).collect();
        for (m, e) in methods.iter().zip(&errors) {
            assert!(of(*m).scale < whole.scale, "{m:?}: {:?}", of(*m));
            assert!(e.is_finite());
        }
        let all = |m| squared_error(of(m), &values);
        for m in [Calibration::MinMax, Calibration::Percentile(99.9), Calibration::Entropy] {
            // Bins are narrower than a hundredth of a step: their middle stands for what is in them.
            assert!(all(Calibration::Mse) <= all(m) * 1.001, "{m:?}");
        }
    }

    #[test]
    fn a_percentile_leaves_the_stated_share_outside() {
        let values: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0).collect();
        let (low, high) = percentile(&histogram(&values), 98.0);
        assert!((low - 0.01).abs() < 1e-3 && (high - 0.99).abs() < 1e-3, "{low} {high}");
        let whole = percentile(&histogram(&values), 100.0);
        assert_eq!(whole, (0.0, values[99_999]));
    }

    #[test]
    fn nothing_seen_and_nothing_but_zero_have_codes_too() {
        for method in [Calibration::MinMax, Calibration::Percentile(99.0), Calibration::Entropy, Calibration::Mse] {
            assert_eq!(codes(method, &Histogram::default()), Codes { scale: 1.0, zero: 0 });
            assert_eq!(codes(method, &histogram(&[0.0; 9])), Codes { scale: 1.0, zero: 0 });
        }
    }
}
