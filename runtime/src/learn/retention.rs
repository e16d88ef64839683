//! What a model knew before anybody taught it: source samples shipped in a bundle, to hold on to and to measure by.
//!
//! `train/coreset.safetensors` holds two disjoint sets of samples of the source data, as the graph sees them:
//!
//! ```text
//! train.feature  f16 [n, d]    probe.feature  f16 [m, d]     pooled feature
//! train.logits   f32 [n, C]    probe.logits   f32 [m, C]     logits of the graph
//!                              probe.label    i64 [m]        the truth, where it is known
//! ```
//!
//! The first set can be learned beside the presses, each sample with the shipped head's own belief as a fixed target
//! (distillation: `g = π − π₀`, zero where nothing was learned yet). The second never trains: by it is measured what
//! was forgotten, whatever was retained.
use std::collections::HashMap;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::error::LearnError;
use super::head::{HeadBase, Theta, argmax};
use super::task::Task;

/// How much of the source is learned beside the presses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retain {
    /// Nothing: the presses alone decide.
    #[default]
    Adapt,
    /// Thirty samples.
    Balanced,
    /// A hundred and twenty.
    Keep,
}

impl Retain {
    /// Every mode.
    pub const ALL: [Retain; 3] = [Retain::Adapt, Retain::Balanced, Retain::Keep];

    /// The name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Retain::Adapt => "adapt",
            Retain::Balanced => "balanced",
            Retain::Keep => "keep",
        }
    }

    /// The inverse of [`Retain::name`].
    pub fn find(name: &str) -> Option<Retain> {
        Retain::ALL.into_iter().find(|r| r.name() == name)
    }

    /// How many source samples are learned.
    pub fn samples(self) -> usize {
        match self {
            Retain::Adapt => 0,
            Retain::Balanced => 30,
            Retain::Keep => 120,
        }
    }
}

/// One sample of the source data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceSample {
    /// Pooled feature, `[d]`.
    pub feature: Vec<f32>,
    /// The graph's logits, `[C]`.
    pub logits: Vec<f32>,
    /// The truth, where it is known.
    pub label: Option<usize>,
}

/// The source samples of a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coreset {
    /// Samples that may be learned.
    pub train: Vec<SourceSample>,
    /// Samples that measure.
    pub probe: Vec<SourceSample>,
}

/// How much of the source is still known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Samples asked.
    pub n: usize,
    /// Share the shipped head answers rightly; 1 where the truth is not known, as its own answers then are the measure.
    pub factory: f64,
    /// Share answered rightly, or as the shipped head answers.
    pub now: f64,
}

impl Kept {
    /// Points of a hundred that were lost; negative when the source is answered better than before.
    pub fn forgotten(&self) -> f64 {
        100.0 * (self.factory - self.now)
    }
}

impl Coreset {
    /// Reads `train/coreset.safetensors` for a head of `classes` over `features`.
    ///
    /// # Errors
    /// A sentence naming the tensor.
    pub fn from_safetensors(bytes: &[u8], features: usize, classes: usize) -> Result<Coreset, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let set = |name: &str| -> Result<Vec<SourceSample>, String> {
            let feature = floats(&file, &format!("{name}.feature"), features)?;
            let logits = floats(&file, &format!("{name}.logits"), classes)?;
            if feature.len() != logits.len() {
                return Err(format!("`{name}` has {} features and {} logits", feature.len(), logits.len()));
            }
            let label = labels(&file, &format!("{name}.label"), feature.len(), classes)?;
            Ok(feature
                .into_iter()
                .zip(logits)
                .enumerate()
                .map(|(i, (feature, logits))| SourceSample { feature, logits, label: label.as_ref().map(|l| l[i]) })
                .collect())
        };
        Ok(Coreset { train: set("train")?, probe: set("probe")? })
    }

    /// Writes `train/coreset.safetensors`.
    ///
    /// # Errors
    /// A sentence: samples of different sizes.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, String> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, set) in [("train", &self.train), ("probe", &self.probe)] {
            let width = |f: fn(&SourceSample) -> &Vec<f32>| set.first().map_or(0, |s| f(s).len());
            let (d, c) = (width(|s| &s.feature), width(|s| &s.logits));
            if set.iter().any(|s| s.feature.len() != d || s.logits.len() != c) {
                return Err(format!("the samples of `{name}` are not all of one size"));
            }
            let half = set.iter().flat_map(|s| &s.feature).flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
            tensors.push((format!("{name}.feature"), Dtype::F16, vec![set.len(), d], half));
            let logits = set.iter().flat_map(|s| &s.logits).flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((format!("{name}.logits"), Dtype::F32, vec![set.len(), c], logits));
            let known: Option<Vec<usize>> = set.iter().map(|s| s.label).collect();
            if let Some(known) = known.filter(|k| !k.is_empty() && name == "probe") {
                let bytes = known.iter().flat_map(|&l| (l as i64).to_le_bytes()).collect();
                tensors.push((format!("{name}.label"), Dtype::I64, vec![set.len()], bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|v| (name.as_str(), v)).map_err(|e| e.to_string())
            })
            .collect::<Result<Vec<_>, String>>()?;
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        serialize(views, Some(metadata)).map_err(|e| e.to_string())
    }

    /// Chooses from labelled source samples: `train` of them to learn from and `probe` of the others to measure by, the
    /// classes in turn. Those to measure by are taken first, spread evenly over each class, for they stand for the
    /// whole source: what herding leaves would be the samples least like their class. Those to learn from are herded
    /// out of the rest (Welling 2009): each next one brings the mean of the chosen features of its class closest to the
    /// mean of the whole class. Where there are too few samples for both, they are shared in proportion.
    pub fn choose(samples: &[SourceSample], train: usize, probe: usize) -> Coreset {
        let class = |s: &SourceSample| s.label.unwrap_or_else(|| argmax(&s.logits));
        let classes = samples.iter().map(|s| class(s) + 1).max().unwrap_or(0);
        let mut left: Vec<Vec<usize>> =
            (0..classes).map(|c| (0..samples.len()).filter(|&i| class(&samples[i]) == c).collect()).collect();
        let means: Vec<Vec<f64>> = left.iter().map(|of| mean(of.iter().map(|&i| &samples[i]))).collect();
        let probe = probe.min((samples.len() * probe).div_ceil((train + probe).max(1)));
        let mut quota = vec![0; classes];
        for _ in 0..probe {
            // The class with the fewest so far, of those with samples left.
            let next = (0..classes).filter(|&c| quota[c] < left[c].len()).min_by_key(|&c| quota[c]);
            let Some(next) = next else { break };
            quota[next] += 1;
        }
        let mut measured = Vec::new();
        for (left, quota) in left.iter_mut().zip(quota) {
            let of: Vec<usize> = (0..quota).map(|k| left[k * left.len() / quota]).collect();
            left.retain(|i| !of.contains(i));
            measured.extend(of);
        }
        let mut sums: Vec<Vec<f64>> = means.iter().map(|m| vec![0.0; m.len()]).collect();
        let (mut chosen, mut taken) = (Vec::new(), vec![0.0; classes]);
        while chosen.len() < train && left.iter().any(|l| !l.is_empty()) {
            for c in (0..classes).filter(|&c| !left[c].is_empty()).collect::<Vec<_>>() {
                if chosen.len() == train {
                    break;
                }
                let distance = |i: usize| -> f64 {
                    let n = taken[c] + 1.0;
                    (0..means[c].len())
                        .map(|j| (means[c][j] - (sums[c][j] + f64::from(samples[i].feature[j])) / n).powi(2))
                        .sum()
                };
                let best = (0..left[c].len()).min_by(|&a, &b| distance(left[c][a]).total_cmp(&distance(left[c][b])));
                let i = left[c].remove(best.unwrap_or(0));
                sums[c].iter_mut().zip(&samples[i].feature).for_each(|(s, &v)| *s += f64::from(v));
                taken[c] += 1.0;
                chosen.push(i);
            }
        }
        let pick = |of: Vec<usize>| of.into_iter().map(|i| samples[i].clone()).collect();
        Coreset { train: pick(chosen), probe: pick(measured) }
    }

    /// How much of the measuring samples `theta` still answers as it should; `None` without any.
    ///
    /// `theta` may have more classes than the samples: added ones.
    ///
    /// # Errors
    /// [`LearnError::Length`] when it is of another head.
    pub fn kept(&self, task: &Task, base: &HeadBase, theta: &Theta) -> Result<Option<Kept>, LearnError> {
        let n = self.probe.len();
        if n == 0 {
            return Ok(None);
        }
        let (mut factory, mut now) = (0, 0);
        for s in &self.probe {
            let shipped = argmax(&s.logits);
            let right = s.label.unwrap_or(shipped);
            let graph = super::classes::continued(&s.logits, theta.classes());
            let served = theta.apply(&base.standardise(&s.feature)?, &graph)?;
            factory += usize::from(task.near(shipped, right));
            now += usize::from(task.near(argmax(&served), right));
        }
        Ok(Some(Kept { n, factory: factory as f64 / n as f64, now: now as f64 / n as f64 }))
    }
}

fn mean<'a>(samples: impl Iterator<Item = &'a SourceSample>) -> Vec<f64> {
    let (mut sum, mut n) = (Vec::new(), 0.0);
    for s in samples {
        sum.resize(s.feature.len(), 0.0);
        sum.iter_mut().zip(&s.feature).for_each(|(m, &v)| *m += f64::from(v));
        n += 1.0;
    }
    sum.iter_mut().for_each(|m: &mut f64| *m /= f64::max(n, 1.0));
    sum
}

/// The rows of a float tensor `[_, width]`.
fn floats(file: &SafeTensors<'_>, name: &str, width: usize) -> Result<Vec<Vec<f32>>, String> {
    let view = file.tensor(name).map_err(|_| format!("has no tensor `{name}`"))?;
    let &[n, found] = view.shape() else { return Err(format!("`{name}` has shape {:?}", view.shape())) };
    if n > 0 && found != width {
        return Err(format!("`{name}` has {found} columns, this head needs {width}"));
    }
    let values: Vec<f32> = match view.dtype() {
        Dtype::F16 => view.data().as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => return Err(format!("`{name}` is {other:?}, not F16 or F32")),
    };
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(format!("`{name}` holds {} at index {i}", values[i]));
    }
    Ok(values.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
}

fn labels(file: &SafeTensors<'_>, name: &str, n: usize, classes: usize) -> Result<Option<Vec<usize>>, String> {
    let Ok(view) = file.tensor(name) else { return Ok(None) };
    if view.dtype() != Dtype::I64 || view.shape() != [n] {
        return Err(format!("`{name}` is {:?} {:?}, not I64 [{n}]", view.dtype(), view.shape()));
    }
    let class = |b: &[u8; 8]| usize::try_from(i64::from_le_bytes(*b)).ok().filter(|&c| c < classes);
    let all: Option<Vec<usize>> = view.data().as_chunks::<8>().0.iter().map(class).collect();
    all.map(Some).ok_or_else(|| format!("`{name}` names a class that is not below {classes}"))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
