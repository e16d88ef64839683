//! The head a bundle ships, and the correction `Θ` that presses add to it: `logits = graph logits + Θ z`.
//!
//! `z` is the pooled backbone feature, standardised and followed by a constant 1. The solver that finds `Θ` is
//! [`super::solver`]; this file knows only the algebra of applying and merging it. The graph's own logits are passed in
//! and never recomputed from the shipped weights, so quantisation or a temperature inside the graph stay as they are.
//!
//! Letters: `C` classes, `d` feature width.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_finite, check_len};
use super::fourier::Fourier;
use super::input::{Input, Scale};

/// What a bundle ships about its last layer: the linear head and the statistics of the feature it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedHead")]
pub struct HeadBase {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    /// Classes at the end that were added on the device: the graph has none of them.
    added: usize,
    /// Random features learned on beside the graph's. A choice of this device, not of the file.
    #[serde(skip)]
    fourier: Option<Fourier>,
    /// As `mean` and `std` say; inputs share it.
    #[serde(skip)]
    scale: Arc<Scale>,
}

/// A head as it stands in a file, before its sizes are believed.
#[derive(Deserialize)]
struct UncheckedHead {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    #[serde(default)]
    added: usize,
}

impl TryFrom<UncheckedHead> for HeadBase {
    type Error = LearnError;

    fn try_from(raw: UncheckedHead) -> Result<HeadBase, LearnError> {
        let base = HeadBase::new(raw.weight, raw.bias, raw.mean, raw.std)?;
        if raw.added + 2 > base.classes() {
            let (expected, found) = (raw.added + 2, base.classes());
            return Err(LearnError::Length { what: "the head's bias (one per class)", expected, found });
        }
        Ok(HeadBase { added: raw.added, ..base })
    }
}

impl HeadBase {
    /// A head `logits = weight · feature + bias` with feature statistics.
    ///
    /// `weight [C, d]` row-major, `bias [C]`, `mean [d]`, `std [d]` (each > 0; add a floor such as 1e-3 when measuring
    /// it).
    ///
    /// # Errors
    /// [`LearnError::Length`] when the sizes do not fit or `C < 2` or `d < 1`, [`LearnError::NonFinite`],
    /// [`LearnError::OutOfRange`] when a `std` is not positive.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, mean: Vec<f32>, std: Vec<f32>) -> Result<HeadBase, LearnError> {
        if bias.len() < 2 {
            return Err(LearnError::Length { what: "the head's bias (one per class)", expected: 2, found: bias.len() });
        }
        HeadBase::of_outputs(weight, bias, mean, std)
    }

    /// As [`HeadBase::new`] for outputs that are no classes, of which one is enough.
    ///
    /// # Errors
    /// Those of [`HeadBase::new`].
    pub fn of_outputs(weight: Vec<f32>, bias: Vec<f32>, mean: Vec<f32>, std: Vec<f32>) -> Result<HeadBase, LearnError> {
        let (classes, d) = (bias.len(), mean.len());
        if classes < 1 {
            return Err(LearnError::Length { what: "the head's bias (one per output)", expected: 1, found: classes });
        }
        if d == 0 {
            return Err(LearnError::Length { what: "the feature's mean", expected: 1, found: 0 });
        }
        check_len("the head's weight", classes.saturating_mul(d), weight.len())?;
        check_len("the feature's std", d, std.len())?;
        check_finite("the head's weight", &weight)?;
        check_finite("the head's bias", &bias)?;
        check_finite("the feature's mean", &mean)?;
        check_finite("the feature's std", &std)?;
        if let Some(&value) = std.iter().find(|s| **s <= 0.0) {
            return Err(LearnError::OutOfRange { what: "std", value: f64::from(value), range: "(0, inf)" });
        }
        let root = (d as f64).sqrt();
        let scale = Arc::new(Scale {
            mean: mean.iter().map(|&m| f64::from(m)).collect(),
            inverse: std.iter().map(|&s| 1.0 / (f64::from(s) * root)).collect(),
        });
        Ok(HeadBase { weight, bias, mean, std, added: 0, fourier: None, scale })
    }

    /// This head with so many classes in all; those beyond its own have no weights, only what is learned.
    pub fn with_classes(&self, classes: usize) -> HeadBase {
        let added = classes.saturating_sub(self.classes());
        let mut base = self.clone();
        base.weight.resize(base.weight.len() + added * self.features(), 0.0);
        base.bias.resize(base.bias.len() + added, 0.0);
        base.added += added;
        base
    }

    /// This head with `random` Fourier features beside the graph's; none for 0.
    pub fn with_fourier(&self, random: usize) -> HeadBase {
        let fourier = (random > 0).then(|| Fourier::new(self.features(), random));
        HeadBase { fourier, ..self.clone() }
    }

    /// Random features beside the graph's.
    pub fn random_features(&self) -> usize {
        self.fourier.as_ref().map_or(0, Fourier::outputs)
    }

    /// Columns of a correction: the graph's features, random ones, and the constant.
    pub fn width(&self) -> usize {
        self.features() + self.random_features() + 1
    }

    /// `C`, classes added on the device included.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }

    /// Classes of the graph, those added on the device left out.
    pub(crate) fn shipped_classes(&self) -> usize {
        self.classes() - self.added
    }

    /// `d`, the width of the feature.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Shipped weight `[C, d]`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Shipped bias `[C]`.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// `z [d+1] = ((feature − mean) / (std · √d), 1)`; with random features `φ` of the standardised ones before the
    /// constant.
    ///
    /// The division by √d keeps |z|² near 2 whatever the width, so that one λ fits every backbone.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn standardise(&self, feature: &[f32]) -> Result<Vec<f32>, LearnError> {
        check_len("the feature", self.features(), feature.len())?;
        check_finite("the feature", feature)?;
        let mut z: Vec<f32> = feature.iter().enumerate().map(|(j, &v)| self.scale.apply(j, v)).collect();
        check_finite("the standardised feature", &z)?;
        if let Some(fourier) = &self.fourier {
            z.extend(fourier.apply(&z));
        }
        z.push(1.0);
        Ok(z)
    }

    /// [`HeadBase::standardise`] in the form that is kept.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn input(&self, feature: &[f32]) -> Result<Input, LearnError> {
        let z = self.standardise(feature)?;
        let of_feature = || Input::of_feature(feature, &self.scale);
        Ok(self.fourier.is_none().then(of_feature).flatten().unwrap_or_else(|| z.into()))
    }

    /// The head with `theta` folded in: `weight + Θ·diag(1/(std·√d))`, the bias adjusted by the mean.
    ///
    /// # Errors
    /// [`LearnError::Length`] when `theta` is not `[C, d+1]`; [`LearnError::Unmergeable`] with added classes, whose
    /// logits are no linear function of the feature.
    pub fn merge(&self, theta: &Theta) -> Result<MergedHead, LearnError> {
        let d = self.features();
        if self.added > 0 {
            return Err(LearnError::Unmergeable { added: self.added });
        }
        if let Some(fourier) = &self.fourier {
            return Err(LearnError::Bent { random: fourier.outputs() });
        }
        check_len("theta's classes", self.classes(), theta.classes())?;
        check_len("theta's width", d + 1, theta.width())?;
        let mut weight = self.weight.clone();
        let mut bias = self.bias.clone();
        for c in 0..self.classes() {
            let row = theta.row(c);
            let mut shift = f64::from(row[d]);
            for j in 0..d {
                let w = f64::from(row[j]) * self.inverse_scale(j);
                weight[c * d + j] = (f64::from(weight[c * d + j]) + w) as f32;
                shift -= w * f64::from(self.mean[j]);
            }
            bias[c] = (f64::from(bias[c]) + shift) as f32;
        }
        Ok(MergedHead { weight, bias })
    }

    /// The shipped head as a function of `z`, `[C, width]`: `weight · std · √d`, 0 for random features, and in the last
    /// column what the mean feature gives.
    pub(crate) fn over_z(&self) -> Vec<f64> {
        let (classes, d, width) = (self.classes(), self.features(), self.width());
        let mut out = vec![0.0; classes * width];
        for c in 0..classes {
            let mut constant = f64::from(self.bias[c]);
            for j in 0..d {
                let w = f64::from(self.weight[c * d + j]);
                out[c * width + j] = w / self.inverse_scale(j);
                constant += w * f64::from(self.mean[j]);
            }
            out[c * width + width - 1] = constant;
        }
        out
    }

    fn inverse_scale(&self, j: usize) -> f64 {
        self.scale.inverse[j]
    }
}

/// A head with its correction folded in, ready to be written over the ONNX initialisers.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedHead {
    /// `[C, d]`, acting on the raw feature.
    pub weight: Vec<f32>,
    /// `[C]`.
    pub bias: Vec<f32>,
}

/// The learned correction `Θ [C, d+1]`, row-major.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedTheta")]
pub struct Theta {
    classes: usize,
    width: usize,
    values: Vec<f32>,
}

/// A correction as it stands in a file, before its sizes are believed.
#[derive(Deserialize)]
struct UncheckedTheta {
    classes: usize,
    width: usize,
    values: Vec<f32>,
}

impl TryFrom<UncheckedTheta> for Theta {
    type Error = LearnError;

    fn try_from(raw: UncheckedTheta) -> Result<Theta, LearnError> {
        Theta::new(raw.classes, raw.width, raw.values)
    }
}

impl Theta {
    /// No correction: the factory head.
    pub fn zeros(classes: usize, width: usize) -> Theta {
        Theta { classes, width, values: vec![0.0; classes * width] }
    }

    /// The same correction over `random` more features, put before the constant, that it does not use.
    pub fn with_random(&self, random: usize) -> Theta {
        let width = self.width + random;
        let values = self
            .values
            .chunks(self.width)
            .flat_map(|row| {
                let (features, constant) = row.split_at(self.width - 1);
                features.iter().copied().chain(std::iter::repeat_n(0.0, random)).chain(constant.iter().copied())
            })
            .collect();
        Theta { classes: self.classes, width, values }
    }

    /// The correction of the first `classes` classes; where there are fewer, the others have none.
    pub fn with_classes(&self, classes: usize) -> Theta {
        let mut values = self.values.clone();
        values.resize(classes * self.width, 0.0);
        Theta { classes, width: self.width, values }
    }

    /// A stored correction; `values [classes, width]`.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn new(classes: usize, width: usize, values: Vec<f32>) -> Result<Theta, LearnError> {
        check_len("theta", classes.saturating_mul(width), values.len())?;
        check_finite("theta", &values)?;
        Ok(Theta { classes, width, values })
    }

    /// A correction the solver has just computed. Its values may be non-finite: the trip-wires must be able to see
    /// that.
    pub(crate) fn from_parts(classes: usize, width: usize, values: Vec<f32>) -> Theta {
        debug_assert_eq!(values.len(), classes * width);
        Theta { classes, width, values }
    }

    /// `C`.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// `d + 1`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All values, `[C, d+1]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Row of one class, `[d+1]`.
    ///
    /// # Panics
    /// When `class` is not below [`Theta::classes`].
    pub fn row(&self, class: usize) -> &[f32] {
        &self.values[class * self.width..(class + 1) * self.width]
    }

    /// True when it changes no logit.
    pub fn is_zero(&self) -> bool {
        self.values.iter().all(|&v| v == 0.0)
    }

    /// True when no value is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        self.values.iter().all(|v| v.is_finite())
    }

    /// Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    }

    /// `graph_logits + Θ z`, `[C]`. A zero correction returns the graph's logits bit for bit.
    ///
    /// # Errors
    /// [`LearnError::Length`] when `z` is not `[d+1]` or `graph_logits` not `[C]`.
    pub fn apply(&self, z: &[f32], graph_logits: &[f32]) -> Result<Vec<f32>, LearnError> {
        check_len("z", self.width, z.len())?;
        check_len("the graph's logits", self.classes, graph_logits.len())?;
        Ok((0..self.classes)
            .map(|c| {
                let change: f64 = self.row(c).iter().zip(z).map(|(&t, &z)| f64::from(t) * f64::from(z)).sum();
                if change == 0.0 { graph_logits[c] } else { (f64::from(graph_logits[c]) + change) as f32 }
            })
            .collect())
    }
}

/// Index of the largest logit, the first of equals; 0 for none. NaN never wins.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &f) in logits.iter().enumerate() {
        if f > logits[best] || logits[best].is_nan() {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::{Kind, uniform, vectors};

    #[test]
    fn the_merged_head_gives_the_graph_logits_plus_theta_z() {
        let world = vectors().world(Kind::Shifted);
        let values: Vec<f32> = (0..650).map(|i| 4.0 * (uniform(3, i) as f32 - 0.5)).collect();
        let theta = Theta::new(10, 65, values).unwrap();
        let merged = world.base.merge(&theta).unwrap();
        for sample in &world.test[..50] {
            let served = theta.apply(&world.base.standardise(&sample.feature).unwrap(), &sample.logits).unwrap();
            for c in 0..10 {
                let direct: f64 =
                    (0..64).map(|j| f64::from(merged.weight[c * 64 + j]) * f64::from(sample.feature[j])).sum::<f64>()
                        + f64::from(merged.bias[c]);
                assert!((direct - f64::from(served[c])).abs() < 1e-4, "class {c}: {direct} and {}", served[c]);
            }
        }
    }

    #[test]
    fn a_zero_correction_returns_the_graph_logits_and_the_shipped_head_bit_for_bit() {
        let world = vectors().world(Kind::Source);
        let factory = world.factory();
        assert!(factory.is_zero() && factory.norm() == 0.0);
        for sample in &world.test[..20] {
            let z = world.base.standardise(&sample.feature).unwrap();
            assert_eq!(factory.apply(&z, &sample.logits).unwrap(), sample.logits);
        }
        let merged = world.base.merge(&factory).unwrap();
        assert_eq!((merged.weight.as_slice(), merged.bias.as_slice()), (world.base.weight(), world.base.bias()));
    }

    #[test]
    fn standardised_features_have_a_constant_one_and_the_stated_scale() {
        let base = HeadBase::new(vec![0.0; 8], vec![0.0; 2], vec![1.0, 2.0, 3.0, 4.0], vec![0.5; 4]).unwrap();
        assert_eq!(base.standardise(&[2.0, 2.0, 2.0, 4.0]).unwrap(), [1.0, 0.0, -1.0, 0.0, 1.0]);
        assert_eq!((base.classes(), base.features()), (2, 4));
    }

    #[test]
    fn heads_and_features_that_do_not_fit_are_refused_by_name() {
        // weight, bias, mean, std
        type Parts = [Vec<f32>; 4];
        let ok = || -> Parts { [vec![0.0; 4], vec![0.0; 2], vec![0.0; 2], vec![1.0; 2]] };
        let refused = |change: fn(&mut Parts), part: &str| {
            let mut parts = ok();
            change(&mut parts);
            let [weight, bias, mean, std] = parts;
            let error = HeadBase::new(weight, bias, mean, std).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(|p| p[0].truncate(3), "weight needs 4");
        refused(|p| p[1].truncate(1), "bias");
        refused(|p| p[2].clear(), "mean");
        refused(|p| p[3][1] = 0.0, "std is 0");
        refused(|p| p[3][1] = f32::NAN, "std holds NaN");
        let base = HeadBase::new(vec![0.0; 4], vec![0.0; 2], vec![0.0; 2], vec![1.0; 2]).unwrap();
        assert!(base.standardise(&[1.0]).is_err());
        assert!(base.standardise(&[1.0, f32::INFINITY]).is_err());
        assert!(base.merge(&Theta::zeros(2, 2)).is_err());
        assert!(Theta::new(2, 3, vec![0.0; 5]).is_err());
        assert!(Theta::new(1, 1, vec![f32::NAN]).is_err());
        assert!(Theta::zeros(2, 3).apply(&[0.0; 2], &[0.0; 2]).is_err());
    }

    #[test]
    fn heads_and_corrections_survive_serialisation_and_are_checked_when_read() {
        let base = HeadBase::new(vec![0.1; 4], vec![0.2; 2], vec![0.3; 2], vec![1.5; 2]).unwrap();
        let text = serde_json::to_string(&base).unwrap();
        assert_eq!(serde_json::from_str::<HeadBase>(&text).unwrap(), base);
        assert!(serde_json::from_str::<HeadBase>(&text.replace("1.5", "0.0")).is_err());
        let theta = Theta::new(2, 3, vec![0.1, -2.5e-7, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let text = serde_json::to_string(&theta).unwrap();
        assert_eq!(serde_json::from_str::<Theta>(&text).unwrap(), theta);
        assert!(serde_json::from_str::<Theta>(&text.replace("\"classes\":2", "\"classes\":3")).is_err());
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_never_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN, 2.0]), 3);
        assert_eq!(argmax(&[]), 0);
    }
}
