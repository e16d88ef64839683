//! Times of repeated runs: exact percentiles, mean and spread. Keeps every sample, eight bytes each.
use serde::Serialize;

use super::MetricsError;

/// Summary of a list of durations, all in the unit of the samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Samples.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1); 0 for one sample.
    pub sd: f64,
    /// Shortest.
    pub min: f64,
    /// Longest.
    pub max: f64,
    /// Median by nearest rank.
    pub p50: f64,
    /// 95th percentile by nearest rank.
    pub p95: f64,
    /// 99th percentile by nearest rank.
    pub p99: f64,
    #[serde(skip)]
    sorted: Vec<f64>,
}

impl Latency {
    /// Summarises `samples` (finite, ≥ 0; any unit).
    ///
    /// # Errors
    /// [`MetricsError::Empty`], [`MetricsError::OutOfRange`].
    pub fn from_samples(samples: &[f64]) -> Result<Latency, MetricsError> {
        if samples.is_empty() {
            return Err(MetricsError::Empty);
        }
        if let Some(index) = samples.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(MetricsError::OutOfRange { index, value: samples[index], range: "[0, inf)" });
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|v| (v - mean) * (v - mean)).sum();
        let sd = if n == 1 { 0.0 } else { (squares / (n - 1) as f64).sqrt() };
        let (p50, p95, p99) = (nearest_rank(&sorted, 50.0), nearest_rank(&sorted, 95.0), nearest_rank(&sorted, 99.0));
        Ok(Latency { n, mean, sd, min: sorted[0], max: sorted[n - 1], p50, p95, p99, sorted })
    }

    /// The smallest sample that at least `percent` % of the samples do not exceed (nearest rank); `percent` is clamped
    /// to [0, 100], NaN counts as 0.
    pub fn percentile(&self, percent: f64) -> f64 {
        nearest_rank(&self.sorted, percent)
    }

    /// Counts in `buckets` buckets of equal width from the shortest to the longest sample: (upper edge, count). At
    /// least one bucket; the last edge is [`Latency::max`].
    pub fn histogram(&self, buckets: usize) -> Vec<(f64, usize)> {
        let buckets = buckets.max(1);
        let width = (self.max - self.min) / buckets as f64;
        let mut counts = vec![0; buckets];
        for &v in &self.sorted {
            let bucket = if width > 0.0 { ((v - self.min) / width) as usize } else { 0 };
            counts[bucket.min(buckets - 1)] += 1;
        }
        let edge = |i: usize| if i + 1 == buckets { self.max } else { self.min + width * (i + 1) as f64 };
        counts.into_iter().enumerate().map(|(i, count)| (edge(i), count)).collect()
    }
}

fn nearest_rank(sorted: &[f64], percent: f64) -> f64 {
    // The product before the division: 95 · 20 / 100 is exactly 19, 0.95 · 20 is not.
    let rank = (percent.clamp(0.0, 100.0) * sorted.len() as f64 / 100.0).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        latency: Recorded,
    }

    #[derive(serde::Deserialize)]
    struct Recorded {
        samples: Vec<f64>,
        mean: f64,
        sd: f64,
        p50: f64,
        p95: f64,
        p99: f64,
    }

    #[test]
    fn mean_spread_and_percentiles_equal_the_numpy_ones() {
        let recorded = serde_json::from_str::<File>(include_str!("testdata/sklearn.json")).unwrap().latency;
        let ours = Latency::from_samples(&recorded.samples).unwrap();
        assert!((ours.mean - recorded.mean).abs() < 1e-12 && (ours.sd - recorded.sd).abs() < 1e-12);
        assert_eq!((ours.p50, ours.p95, ours.p99), (recorded.p50, recorded.p95, recorded.p99));
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        // The textbook list: 15 20 35 40 50.
        let ours = Latency::from_samples(&[40.0, 15.0, 50.0, 20.0, 35.0]).unwrap();
        for (percent, value) in [(0.0, 15.0), (5.0, 15.0), (30.0, 20.0), (40.0, 20.0), (50.0, 35.0), (100.0, 50.0)] {
            assert_eq!(ours.percentile(percent), value, "{percent}");
        }
        assert_eq!((ours.min, ours.max, ours.n), (15.0, 50.0, 5));
        let twenty: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(Latency::from_samples(&twenty).unwrap().p95, 19.0);
        assert_eq!(ours.percentile(f64::NAN), 15.0);
    }

    #[test]
    fn a_histogram_counts_every_sample_once() {
        let ours = Latency::from_samples(&[1.0, 1.5, 2.0, 3.0, 5.0]).unwrap();
        assert_eq!(ours.histogram(4), [(2.0, 2), (3.0, 1), (4.0, 1), (5.0, 1)]);
        assert_eq!(Latency::from_samples(&[2.0; 3]).unwrap().histogram(2), [(2.0, 3), (2.0, 0)]);
        assert_eq!(ours.histogram(0).len(), 1);
    }

    #[test]
    fn impossible_durations_are_refused() {
        assert_eq!(Latency::from_samples(&[]), Err(MetricsError::Empty));
        assert!(Latency::from_samples(&[1.0, f64::NAN]).is_err());
        assert!(Latency::from_samples(&[-1.0]).is_err());
    }
}
