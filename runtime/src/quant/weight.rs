//! Weights as `i8` codes, symmetric, one scale a channel.
use super::edit::tensor;
use crate::tensor::{Data, Tensor};

/// Codes of a weight: `w ≈ codes · scale`, the scale along `axis`.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub(super) shape: Vec<usize>,
    pub(super) codes: Vec<i8>,
    /// One for each channel, or one.
    pub(super) scale: Vec<f32>,
    /// `None`: one scale for all.
    pub(super) axis: Option<usize>,
}

/// Largest code: symmetric, so that -128 is not used.
const LARGEST: f32 = 127.0;
/// Largest code of seven bits: sums of two products fit into 16 bits on processors without 8-bit dot products.
const LARGEST_REDUCED: f32 = 63.0;

impl Weight {
    /// The scales that just hold each channel. `least` gives the smallest scale a channel may have.
    pub(super) fn of(
        w: &Tensor,
        values: &[f32],
        axis: Option<usize>,
        reduced: bool,
        least: impl Fn(usize) -> f32,
    ) -> Weight {
        let largest = if reduced { LARGEST_REDUCED } else { LARGEST };
        let shape = w.shape().to_vec();
        let channels = axis.map_or(1, |a| shape[a]);
        let channel = Channel::of(&shape, axis);
        let mut absmax = vec![0f32; channels];
        for (i, v) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let c = channel.at(i);
            absmax[c] = absmax[c].max(v.abs());
        }
        let scale: Vec<f32> = absmax
            .iter()
            .enumerate()
            .map(|(c, &m)| {
                let own = m / largest;
                if own < f32::MIN_POSITIVE { 1.0f32.max(least(c)) } else { own.max(least(c)) }
            })
            .collect();
        let code = |(i, v): (usize, &f32)| (v / scale[channel.at(i)]).round_ties_even().clamp(-largest, largest) as i8;
        let codes = values.iter().enumerate().map(code).collect();
        Weight { shape, codes, scale, axis }
    }

    /// The reals the codes stand for.
    pub(super) fn reals(&self) -> Vec<f32> {
        let channel = Channel::of(&self.shape, self.axis);
        self.codes.iter().enumerate().map(|(i, &q)| f32::from(q) * self.scale[channel.at(i)]).collect()
    }

    /// The codes as a tensor.
    pub(super) fn tensor(&self) -> Tensor {
        Tensor::new(&self.shape, Data::I8(self.codes.clone())).expect("as many codes as the shape says")
    }

    /// Scale and zero point: scalars, or vectors along the axis.
    pub(super) fn scale_and_zero(&self) -> (Tensor, Tensor) {
        let shape: Vec<usize> = self.axis.iter().map(|&a| self.shape[a]).collect();
        let zeros = Data::I8(vec![0; self.scale.len()]);
        (tensor(&shape, self.scale.clone()), Tensor::new(&shape, zeros).expect("one for each scale"))
    }
}

/// The channel of each element.
#[derive(Clone, Copy)]
pub(super) struct Channel {
    inner: usize,
    channels: usize,
}

impl Channel {
    pub(super) fn of(shape: &[usize], axis: Option<usize>) -> Channel {
        match axis {
            None => Channel { inner: usize::MAX, channels: 1 },
            Some(a) => Channel { inner: shape[a + 1..].iter().product::<usize>().max(1), channels: shape[a].max(1) },
        }
    }

    pub(super) fn at(self, i: usize) -> usize {
        i / self.inner % self.channels
    }
}

/// Signal-to-noise ratio in decibels of what stands for `x`; infinite when equal.
pub(super) fn snr(x: &[f32], y: &[f32]) -> f64 {
    let (mut signal, mut noise) = (0f64, 0f64);
    for (&a, &b) in x.iter().zip(y) {
        signal += f64::from(a).powi(2);
        noise += (f64::from(a) - f64::from(b)).powi(2);
    }
    10.0 * (signal / noise).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_is_off_by_at_most_half_a_step_of_its_own() {
        let values: Vec<f32> = (0..24).map(|i| ((i * 37 % 23) as f32 - 11.0) * [0.01, 1.0, 300.0][i / 4 % 3]).collect();
        let t = Tensor::f32(&[2, 3, 4], values.clone()).unwrap();
        let w = Weight::of(&t, &values, Some(1), false, |_| 0.0);
        assert_eq!(w.scale.len(), 3);
        for (i, (v, r)) in values.iter().zip(w.reals()).enumerate() {
            assert!((v - r).abs() <= w.scale[i / 4 % 3] * 0.500_001, "{i}: {v} {r}");
        }
        assert!(w.codes.iter().any(|&q| q.abs() == 127) && w.codes.iter().all(|&q| q > -128));
        let seven = Weight::of(&t, &values, None, true, |_| 0.0);
        assert_eq!(seven.codes.iter().map(|q| q.abs()).max(), Some(63));
    }

    #[test]
    fn a_channel_of_zeros_has_a_scale_and_a_least_scale_is_kept() {
        let t = Tensor::f32(&[2, 2], vec![0.0, 0.0, 1.0, -1.0]).unwrap();
        let w = Weight::of(&t, &[0.0, 0.0, 1.0, -1.0], Some(0), false, |c| [0.0, 0.5][c]);
        assert_eq!((w.scale.clone(), w.codes.clone()), (vec![1.0, 0.5], vec![0, 0, 2, -2]));
    }
}
