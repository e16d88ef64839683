//! What values a graph's activations take: streaming statistics over calibration samples.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::QuantError;
use crate::graph::{Graph, ValueId};
use crate::plan::{RunOptions, Runner};
use crate::tensor::Tensor;

/// Bins of a histogram over `[-limit, limit]`.
pub(super) const BINS: usize = 8192;

/// Which values to look at, and along which axis their channels lie (counted from the end when negative).
pub(super) type Watch = BTreeMap<ValueId, Option<i64>>;

/// What was seen of one value.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    pub(super) histogram: Histogram,
    /// Largest magnitude of each channel.
    pub(super) channel_absmax: Vec<f32>,
    /// Sum of each channel, and of how many elements.
    channel_sum: Vec<f64>,
    channel_count: u64,
}

impl Stats {
    /// Mean of each channel.
    pub(super) fn channel_mean(&self) -> Vec<f64> {
        self.channel_sum.iter().map(|s| s / self.channel_count.max(1) as f64).collect()
    }

    fn new() -> Stats {
        Stats { histogram: Histogram::default(), channel_absmax: Vec::new(), channel_sum: Vec::new(), channel_count: 0 }
    }

    fn add(&mut self, t: &Tensor, axis: Option<i64>) {
        let Ok(x) = t.as_f32() else { return };
        self.histogram.add(x);
        let shape = t.shape();
        let Some(axis) = axis.and_then(|a| crate::ops::axis_of(a, shape.len()).ok()) else { return };
        let (channels, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        if self.channel_sum.is_empty() {
            self.channel_sum = vec![0.0; channels];
            self.channel_absmax = vec![0.0; channels];
        }
        if self.channel_sum.len() != channels || channels * inner == 0 {
            return;
        }
        for (i, run) in x.chunks_exact(inner).enumerate() {
            let c = i % channels;
            for &v in run.iter().filter(|v| v.is_finite()) {
                self.channel_absmax[c] = self.channel_absmax[c].max(v.abs());
                self.channel_sum[c] += f64::from(v);
            }
        }
        self.channel_count += (x.len() / channels) as u64;
    }
}

/// Counts of values in bins of equal width over `[-limit, limit]`, where `limit` is a power of two and grows with the
/// data: two bins then become one, so that no count is ever split.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// Empty before the first value.
    pub(super) bins: Vec<u64>,
    pub(super) limit: f64,
    pub(super) min: f32,
    pub(super) max: f32,
}

impl Histogram {
    fn add(&mut self, x: &[f32]) {
        let finite = || x.iter().copied().filter(|v| v.is_finite());
        let (low, high) = finite().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return;
        }
        if self.bins.is_empty() {
            (self.min, self.max) = (low, high);
            self.bins = vec![0; BINS];
        }
        (self.min, self.max) = (self.min.min(low), self.max.max(high));
        let largest = f64::from(low.abs().max(high.abs())).max(f64::MIN_POSITIVE);
        if self.limit == 0.0 {
            // Subnormal limits would make the width of a bin zero.
            self.limit = largest.max(1e-30).log2().ceil().exp2();
        }
        while self.limit < largest {
            let half = BINS / 2;
            let mut wider = vec![0; BINS];
            for (i, &n) in self.bins.iter().enumerate() {
                wider[half / 2 + i / 2] += n;
            }
            self.bins = wider;
            self.limit *= 2.0;
        }
        let per = BINS as f64 / (2.0 * self.limit);
        for v in finite() {
            let bin = ((f64::from(v) + self.limit) * per) as usize;
            self.bins[bin.min(BINS - 1)] += 1;
        }
    }

    /// Middle of each bin that holds something, with its count.
    pub(super) fn points(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let width = 2.0 * self.limit / BINS as f64;
        let middle = move |i: usize| (i as f64 + 0.5) * width - self.limit;
        self.bins.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(i, &n)| (middle(i), n))
    }
}

/// Runs the samples, each the graph's inputs in order, and looks at the watched values.
///
/// # Errors
/// [`QuantError::Run`] when a sample does not run.
pub(super) fn observe(
    graph: &Graph,
    watch: &Watch,
    samples: &[Vec<Tensor>],
    options: &RunOptions,
) -> Result<BTreeMap<String, Stats>, QuantError> {
    let mut out: BTreeMap<String, Stats> = BTreeMap::new();
    let mut looking = graph.clone();
    looking.outputs = watch.keys().copied().collect();
    let mut runner = Runner::new(Arc::new(looking), options.clone());
    for sample in samples {
        let inputs: Vec<&Tensor> = sample.iter().collect();
        let found = runner.run(&inputs)?;
        for ((&v, &axis), t) in watch.iter().zip(&found) {
            out.entry(graph.values[v].name.clone()).or_insert_with(Stats::new).add(t, axis);
        }
    }
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::quant) fn histogram(v: &[f32]) -> Histogram {
        let mut h = Histogram::default();
        h.add(v);
        h
    }

    #[test]
    fn a_histogram_grows_without_losing_a_count_and_its_bins_hold_what_they_say() {
        let mut h = Histogram::default();
        h.add(&[0.3, -0.2, f32::NAN, f32::INFINITY]);
        assert_eq!(h.limit, 0.5);
        h.add(&[7.9, -3.0, 0.0]);
        assert_eq!((h.limit, h.min, h.max), (8.0, -3.0, 7.9));
        let width = 16.0 / BINS as f64;
        let points: Vec<(f64, u64)> = h.points().collect();
        assert_eq!(points.iter().map(|p| p.1).sum::<u64>(), 5);
        for v in [0.3, -0.2, 7.9, -3.0, 0.0] {
            assert!(points.iter().any(|(p, _)| (p - v).abs() <= width / 2.0 + 1e-9), "{v}: {points:?}");
        }
    }

    #[test]
    fn channels_are_told_apart_along_the_axis_that_was_asked_for() {
        let mut s = Stats::new();
        s.add(&Tensor::f32(&[2, 2, 2], vec![1.0, 3.0, -5.0, 1.0, 1.0, 3.0, 0.0, 0.0]).unwrap(), Some(1));
        assert_eq!(s.channel_mean(), [2.0, -1.0]);
        assert_eq!(s.channel_absmax, [3.0, 5.0]);
    }
}
