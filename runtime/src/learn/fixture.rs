//! Test fixture: the recorded digit worlds of `testdata/record.py` and a simulated person.
use serde::Deserialize;

use super::head::{HeadBase, Theta, argmax};
use super::objective::{Feedback, Hyper, Press, posterior};
use super::solver::{Row, splitmix64};

/// The file as recorded.
#[derive(Deserialize)]
pub(crate) struct Vectors {
    w1: Vec<i8>,
    w1_scale: Vec<f32>,
    b1: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    names: String,
    stream_labels: String,
    test_labels: String,
    source_stream: String,
    source_test: String,
    shifted_stream: String,
    shifted_test: String,
    pub(crate) thumbs: Recorded,
    pub(crate) corrections: Recorded,
}

/// One run of the numpy reference.
#[derive(Deserialize)]
pub(crate) struct Recorded {
    pub(crate) shown: String,
    pub(crate) said: String,
    pub(crate) accuracy: std::collections::BTreeMap<usize, f64>,
    pub(crate) incremental: Vec<f32>,
    pub(crate) canonical: Vec<f32>,
    pub(crate) canonical_accuracy: f64,
    pub(crate) factory_accuracy: f64,
}

pub(crate) fn digits(text: &str) -> Vec<usize> {
    text.bytes().map(|b| usize::from(b - b'0')).collect()
}

/// What the graph gave for one input, and the truth.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) feature: Vec<f32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) label: usize,
}

/// A head, a stream of inputs to be pressed on, and a held-out test.
pub(crate) struct World {
    pub(crate) base: HeadBase,
    pub(crate) stream: Vec<Sample>,
    pub(crate) test: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Nothing changed.
    Source,
    /// Rotated, rolled, dimmed, noisy images.
    Shifted,
    /// Four classes traded names.
    Relabelled,
}

pub(crate) fn vectors() -> Vectors {
    serde_json::from_str(include_str!("testdata/digits.json")).expect("the recorded vectors parse")
}

impl Vectors {
    /// Mean and standard deviation of the features.
    pub(crate) fn statistics(&self) -> (Vec<f32>, Vec<f32>) {
        (self.mean.clone(), self.std.clone())
    }

    pub(crate) fn world(&self, kind: Kind) -> World {
        let base = HeadBase::new(self.weight.clone(), self.bias.clone(), self.mean.clone(), self.std.clone())
            .expect("the recorded head is sound");
        let names: Vec<usize> = if kind == Kind::Relabelled { digits(&self.names) } else { (0..10).collect() };
        let (stream, test) = if kind == Kind::Shifted {
            (&self.shifted_stream, &self.shifted_test)
        } else {
            (&self.source_stream, &self.source_test)
        };
        let samples = |pixels: &str, labels: &str| -> Vec<Sample> {
            pixels.as_bytes().chunks(64).zip(digits(labels)).map(|(p, y)| self.sample(p, names[y])).collect()
        };
        World { base, stream: samples(stream, &self.stream_labels), test: samples(test, &self.test_labels) }
    }

    fn sample(&self, pixels: &[u8], label: usize) -> Sample {
        let d = self.mean.len();
        let feature: Vec<f32> = (0..d)
            .map(|j| {
                let h: f64 = (0..64)
                    .map(|i| {
                        f64::from(pixels[i] - b'a') / 16.0
                            * (f64::from(self.w1[i * d + j]) * f64::from(self.w1_scale[j]))
                    })
                    .sum();
                (h + f64::from(self.b1[j])).max(0.0) as f32
            })
            .collect();
        let logits = (0..self.bias.len())
            .map(|c| {
                let f: f64 = (0..d).map(|j| f64::from(feature[j]) * f64::from(self.weight[c * d + j])).sum();
                (f + f64::from(self.bias[c])) as f32
            })
            .collect();
        Sample { feature, logits, label }
    }
}

impl World {
    pub(crate) fn answer(&self, theta: &Theta, sample: &Sample) -> usize {
        let z = self.base.standardise(&sample.feature).unwrap();
        argmax(&theta.apply(&z, &sample.logits).unwrap())
    }

    /// Share of right answers on the held-out test.
    pub(crate) fn accuracy(&self, theta: &Theta) -> f64 {
        self.test.iter().filter(|s| self.answer(theta, s) == s.label).count() as f64 / self.test.len() as f64
    }

    pub(crate) fn factory(&self) -> Theta {
        Theta::zeros(self.base.classes(), self.base.features() + 1)
    }

    pub(crate) fn row(&self, sample: &Sample, shown: usize, feedback: Feedback, hyper: &Hyper) -> Row {
        let mut likelihood = vec![1.0; self.base.classes()];
        posterior::multiply_likelihood(&mut likelihood, Press::plain(feedback), shown, hyper).unwrap();
        Row {
            z: self.base.input(&sample.feature).unwrap(),
            logits: sample.logits.clone().into(),
            likelihood,
            names_class: feedback.names_class(),
        }
    }
}

/// A repeatable uniform number in [0, 1) for step `t` of stream `seed`.
pub(crate) fn uniform(seed: u64, t: u64) -> f64 {
    (splitmix64(splitmix64(seed) ^ t) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Softmax as a model answers it.
pub(crate) fn probabilities(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| (v / sum) as f32).collect()
}
