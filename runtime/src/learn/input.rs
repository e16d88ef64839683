//! The standardised feature `z` of one input, kept once for everything that looks at it.
//!
//! A journal stores features as f16. Kept as that, a log takes half the memory, and `z` is made again from them, to the
//! last bit, by whoever sums over it. Of a feature that f16 would round, and of one with random features beside it, `z`
//! itself is kept.
use std::borrow::Cow;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
/// `z [d+1]` of one input; clones share it.
#[derive(Clone, Debug)]
pub struct Input(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Feature(Arc<[f16]>, Arc<Scale>),
    Z(Arc<[f32]>),
}

/// How a feature is standardised: `(feature − mean) · inverse`, each `[d]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) mean: Vec<f64>,
    pub(crate) inverse: Vec<f64>,
}

/// Elements that are made at a time.
const CHUNK: usize = 64;

impl Scale {
    /// Element `j` of `z`.
    pub(crate) fn apply(&self, j: usize, feature: f32) -> f32 {
        ((f64::from(feature) - self.mean[j]) * self.inverse[j]) as f32
    }
}

impl Input {
    /// Of a feature `[d]` whose `z` by `scale` is finite; `None` where f16 would round it.
    pub(crate) fn of_feature(feature: &[f32], scale: &Arc<Scale>) -> Option<Input> {
        let half: Arc<[f16]> = feature.iter().map(|&v| f16::from_f32(v)).collect();
        let same = half.iter().zip(feature).all(|(h, v)| h.to_f32().to_bits() == v.to_bits());
        same.then(|| Input(Kept::Feature(half, Arc::clone(scale))))
    }

    /// `d + 1`.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Feature(half, _) => half.len() + 1,
            Kept::Z(z) => z.len(),
        }
    }

    /// Whether there is nothing, not even the constant.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `z`, `[d+1]`.
    pub fn z(&self) -> Cow<'_, [f32]> {
        match &self.0 {
            Kept::Z(z) => Cow::Borrowed(z),
            Kept::Feature(half, scale) => {
                let mut z = vec![0.0; half.len() + 1];
                each(half, scale, |j, v| z[j] = v);
                z[half.len()] = 1.0;
                Cow::Owned(z)
            }
        }
    }

    /// Writes `z` into `out`, `[d+1]`.
    pub(crate) fn z_into(&self, out: &mut [f64]) {
        match &self.0 {
            Kept::Z(z) => out.iter_mut().zip(z.iter()).for_each(|(out, &v)| *out = f64::from(v)),
            Kept::Feature(half, scale) => {
                each(half, scale, |j, v| out[j] = f64::from(v));
                out[half.len()] = 1.0;
            }
        }
    }

    /// `|z − z'|²` of two inputs of one head.
    pub(crate) fn distance(&self, other: &Input) -> f64 {
        if let (Kept::Feature(a, scale), Kept::Feature(b, other)) = (&self.0, &other.0)
            && Arc::ptr_eq(scale, other)
        {
            let (mut from, mut to) = ([0.0; CHUNK], [0.0; CHUNK]);
            let mut sum = 0.0;
            for ((a, b), inverse) in a.chunks(CHUNK).zip(b.chunks(CHUNK)).zip(scale.inverse.chunks(CHUNK)) {
                let (from, to) = (&mut from[..a.len()], &mut to[..a.len()]);
                a.convert_to_f32_slice(from);
                b.convert_to_f32_slice(to);
                let apart = |((a, b), inverse): ((&f32, &f32), &f64)| (f64::from(a - b) * inverse).powi(2);
                sum += from.iter().zip(&*to).zip(inverse).map(apart).sum::<f64>();
            }
            return sum;
        }
        self.z().iter().zip(other.z().iter()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }
}

/// Calls `f` with each place and element of `z`, the constant left out.
#[inline(always)]
fn each(half: &[f16], scale: &Scale, mut f: impl FnMut(usize, f32)) {
    let mut feature = [0.0; CHUNK];
    for first in (0..half.len()).step_by(CHUNK) {
        let until = half.len().min(first + CHUNK);
        let feature = &mut feature[..until - first];
        half[first..until].convert_to_f32_slice(feature);
        for (j, &v) in (first..until).zip(&*feature) {
            f(j, scale.apply(j, v));
        }
    }
}

impl From<Vec<f32>> for Input {
    fn from(z: Vec<f32>) -> Input {
        Input(Kept::Z(z.into()))
    }
}

impl PartialEq for Input {
    fn eq(&self, other: &Input) -> bool {
        self.z() == other.z()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::HeadBase;
    use crate::learn::fixture::uniform;

    fn head(d: usize) -> HeadBase {
        let of = |seed, low: f64| (0..d as u64).map(|j| (low + uniform(seed, j)) as f32).collect::<Vec<_>>();
        HeadBase::new(of(1, -0.5).repeat(2), vec![0.0; 2], of(2, -0.5), of(3, 0.1)).unwrap()
    }

    #[test]
    fn what_is_kept_as_f16_gives_the_bits_of_z_and_what_f16_would_round_is_kept_as_z() {
        // Around the length that is made at a time.
        for d in [1, 63, 64, 65, 200] {
            let base = head(d);
            let exact = |v: f32| f16::from_f32(v).to_f32();
            let plain: Vec<f32> = (0..d as u64).map(|j| 3.0 * uniform(9, j) as f32 - 1.0).collect();
            let rounded: Vec<f32> = plain.iter().map(|&v| exact(v)).collect();
            for (feature, half) in [(&plain, false), (&rounded, true)] {
                let (input, z) = (base.input(feature).unwrap(), base.standardise(feature).unwrap());
                assert_eq!(matches!(input.0, Kept::Feature(..)), half, "d = {d}");
                assert_eq!((&*input.z(), input.len()), (&z[..], d + 1));
                let mut wide = vec![0.0; d + 1];
                input.z_into(&mut wide);
                assert!(wide.iter().zip(&z).all(|(a, &b)| a.to_bits() == f64::from(b).to_bits()), "d = {d}");
            }
            let other: Vec<f32> = rounded.iter().map(|&v| exact(0.5 * v)).collect();
            let (a, b) = (base.input(&rounded).unwrap(), base.input(&other).unwrap());
            let want: f64 = a.z().iter().zip(b.z().iter()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            // Each element and each difference is rounded to f32 once, on either way.
            let (z, apart) =
                (a.z(), a.z().iter().zip(b.z().iter()).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>());
            let e = 4.0 * f64::from(f32::EPSILON) * z.iter().fold(1.0, |m, v| f64::from(v.abs()).max(m));
            assert!((a.distance(&b) - want).abs() <= 2.0 * e * apart + d as f64 * e * e, "{}, {want}", a.distance(&b));
            assert_eq!(a.distance(&Input::from(a.z().into_owned())), 0.0);
        }
    }

    #[test]
    fn numbers_beyond_f16_are_kept_too() {
        let base = head(3);
        for feature in [[1e6, 0.0, 1.0], [1e-12, 0.0, 1.0], [-0.0, 65504.0, 6e-8]] {
            assert_eq!(base.input(&feature).unwrap().z(), base.standardise(&feature).unwrap());
        }
        assert!(base.input(&[f32::NAN, 0.0, 0.0]).is_err() && base.input(&[0.0; 2]).is_err());
    }
}
