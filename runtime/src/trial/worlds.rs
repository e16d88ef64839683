//! Recorded worlds: an archive of `benches/feedback/record.py`, whose docstring is the format.
use std::collections::BTreeMap;

use super::protocol::{Sample, World};
use crate::bundle::BundleError;
use crate::bundle::npz::read_npz;
use crate::learn::{HeadBase, LearnError};
use crate::tensor::Tensor;
use crate::{Class, Classified};

/// Why an archive of worlds cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// It is no archive.
    #[error(transparent)]
    Archive(#[from] BundleError),
    /// The head of a world.
    #[error("the head of {world}: {source}")]
    Head {
        /// Task and seed.
        world: String,
        /// What is wrong with it.
        source: LearnError,
    },
    /// An array is missing or does not fit the others.
    #[error("array `{name}` {what}; `benches/feedback/record.py` writes such archives")]
    Array {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

impl Classified for WorldError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Every world of an archive, by task and seed.
///
/// # Errors
/// [`WorldError`] naming the array that is missing or does not fit.
pub fn worlds(bytes: &[u8]) -> Result<Vec<World>, WorldError> {
    let arrays = Arrays(read_npz(bytes)?.into_iter().collect());
    let mut names: Vec<(String, u64)> = Vec::new();
    for name in arrays.0.keys() {
        if let [task, seed, "w1"] = name.split('/').collect::<Vec<_>>()[..]
            && let Ok(seed) = seed.parse()
        {
            names.push((task.to_string(), seed));
        }
    }
    if names.is_empty() {
        return Err(WorldError::Array { name: "TASK/SEED/w1".into(), what: "is in it for no task".into() });
    }
    names.sort();
    names.into_iter().map(|(task, seed)| arrays.world(task, seed)).collect()
}

struct Arrays(BTreeMap<String, Tensor>);

impl Arrays {
    /// The values of an array, `[…]` flat.
    fn values(&self, name: &str) -> Result<Vec<f64>, WorldError> {
        let wrong = |what: &str| WorldError::Array { name: name.to_string(), what: what.to_string() };
        let values = self.0.get(name).ok_or_else(|| wrong("is missing"))?.data().to_f64();
        if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(wrong("holds a value that is not finite")) }
    }

    /// Indices below `limit`.
    fn indices(&self, name: &str, limit: usize) -> Result<Vec<usize>, WorldError> {
        let values = self.values(name)?;
        if let Some(v) = values.iter().find(|v| **v < 0.0 || **v >= limit as f64) {
            return Err(WorldError::Array {
                name: name.into(),
                what: format!("holds {v}, which is not below {limit}"),
            });
        }
        Ok(values.into_iter().map(|v| v as usize).collect())
    }

    fn world(&self, task: String, seed: u64) -> Result<World, WorldError> {
        let key = |array: &str| format!("{task}/{seed}/{array}");
        let misfit = |array: &str, what: String| WorldError::Array { name: key(array), what };
        let (table, _) = task.split_once('-').unwrap_or((&task, ""));
        let labels = self.values(&format!("{table}/y"))?;
        let x = self.values(&format!("{table}/x"))?;
        let rows = labels.len();
        let inputs = x.len() / rows.max(1);
        let f32s = |array: &str| {
            Ok::<_, WorldError>(self.values(&key(array))?.into_iter().map(|v| v as f32).collect::<Vec<_>>())
        };
        let base = HeadBase::new(f32s("weight")?, f32s("bias")?, f32s("mean")?, f32s("std")?)
            .map_err(|source| WorldError::Head { world: format!("{task}/{seed}"), source })?;
        let (classes, d) = (base.classes(), base.features());
        let (w1, scale, b1) = (self.values(&key("w1"))?, self.values(&key("w1_scale"))?, self.values(&key("b1"))?);
        for (array, expected, found) in
            [("w1", inputs * d, w1.len()), ("w1_scale", d, scale.len()), ("b1", d, b1.len())]
        {
            if expected != found {
                return Err(misfit(array, format!("has {found} values, {expected} are needed")));
            }
        }
        let network = Network { w1, scale, b1, base: &base };
        let names = self.indices(&key("names"), classes)?;
        if names.len() != classes {
            return Err(misfit("names", format!("has {} values for {classes} classes", names.len())));
        }
        let label = |row: usize| -> Result<usize, WorldError> {
            let class = labels[row] as usize;
            if class < classes {
                Ok(class)
            } else {
                Err(misfit("bias", format!("knows no class {class} of the table")))
            }
        };
        let (stream, test) = (self.indices(&key("stream"), rows)?, self.indices(&key("test"), rows)?);
        let source = self.indices(&key("source_test"), rows)?;
        let pixels = self.0.contains_key(&key("pixels")).then(|| self.values(&key("pixels"))).transpose()?;
        let drift = if self.0.contains_key(&key("gain")) {
            Some((self.values(&key("gain"))?, self.values(&key("offset"))?))
        } else {
            None
        };
        if let Some(p) = &pixels
            && p.len() != (stream.len() + test.len()) * inputs
        {
            return Err(misfit("pixels", format!("has {} values", p.len())));
        }
        if let Some((gain, offset)) = &drift
            && (gain.len() != inputs || offset.len() != inputs)
        {
            return Err(misfit("gain", "or offset does not have a value for each input".into()));
        }
        let plain = |row: usize| x[row * inputs..(row + 1) * inputs].to_vec();
        let changed = |place: usize, row: usize| match (&pixels, &drift) {
            (Some(p), _) => p[place * inputs..(place + 1) * inputs].iter().map(|v| v / 255.0).collect(),
            (None, Some((gain, offset))) => {
                plain(row).iter().zip(gain.iter().zip(offset)).map(|(v, (g, o))| v * g + o).collect()
            }
            (None, None) => plain(row),
        };
        let samples = |rows: &[usize], first: usize| -> Result<Vec<Sample>, WorldError> {
            let of = |(i, &row): (usize, &usize)| Ok(network.sample(&changed(first + i, row), names[label(row)?]));
            rows.iter().enumerate().map(of).collect()
        };
        let (stream_samples, test_samples) = (samples(&stream, 0)?, samples(&test, stream.len())?);
        let source_test = source
            .iter()
            .map(|&row| Ok(network.sample(&plain(row), label(row)?)))
            .collect::<Result<_, WorldError>>()?;
        let others: std::collections::BTreeSet<usize> =
            [&stream, &test, &source].into_iter().flatten().copied().collect();
        let rest = (0..rows).filter(|row| !others.contains(row));
        let old = rest.map(|row| Ok(network.sample(&plain(row), label(row)?))).collect::<Result<_, WorldError>>()?;
        let order = self.indices(&key("order"), stream.len())?;
        let (error, other) = (f32s("error")?, self.indices(&key("other"), classes)?);
        if error.len() != order.len() || other.len() != order.len() {
            return Err(misfit("order", "is of another length than error or other".into()));
        }
        drop(network);
        Ok(World {
            task,
            seed,
            base,
            stream: stream_samples,
            test: test_samples,
            source_test,
            source: old,
            order,
            error,
            other,
        })
    }
}

/// The source model: one hidden layer of int8 weights and the shipped head.
struct Network<'a> {
    w1: Vec<f64>,
    scale: Vec<f64>,
    b1: Vec<f64>,
    base: &'a HeadBase,
}

impl Network<'_> {
    fn sample(&self, x: &[f64], label: usize) -> Sample {
        let (classes, d) = (self.base.classes(), self.base.features());
        let mut hidden = vec![0.0; d];
        for (i, x) in x.iter().enumerate() {
            hidden.iter_mut().zip(&self.w1[i * d..(i + 1) * d]).for_each(|(h, w)| *h += x * w);
        }
        let feature: Vec<f32> = (0..d).map(|j| (hidden[j] * self.scale[j] + self.b1[j]).max(0.0) as f32).collect();
        let weight = self.base.weight();
        let logits = (0..classes)
            .map(|c| {
                let row = &weight[c * d..(c + 1) * d];
                let sum: f64 = row.iter().zip(&feature).map(|(&w, &f)| f64::from(w) * f64::from(f)).sum();
                (sum + f64::from(self.base.bias()[c])) as f32
            })
            .collect();
        Sample { feature, logits, label }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::npz::write_npz;
    use crate::learn::{LearnerConfig, Retain};
    use crate::trial::{Condition, Says, run};

    fn recorded() -> Vec<u8> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/feedback/worlds.npz");
        std::fs::read(path).expect("the recorded worlds")
    }

    #[test]
    fn the_recorded_worlds_are_those_of_the_recipe_and_no_test_sample_is_streamed() {
        let worlds = worlds(&recorded()).unwrap();
        assert_eq!(worlds.len(), 18);
        let mean = |f: fn(&World) -> f64| worlds.iter().map(f).sum::<f64>() / 18.0;
        // As measured by the recipe's own libraries: 0.599 on the changed world, 0.96 on the old.
        let changed = mean(|w| crate::trial::accuracy(&w.base, &zero(w), &w.test).unwrap());
        assert!((changed - 0.599).abs() < 0.005, "{changed}");
        let arrays = Arrays(read_npz(&recorded()).unwrap().into_iter().collect());
        for world in &worlds {
            assert_eq!(world.order.len(), 500);
            // By row of the table, not by value: 224 of the 2310 image segments are in it more than once.
            let rows = |of: &str| arrays.indices(&format!("{}/{}/{of}", world.task, world.seed), usize::MAX).unwrap();
            let streamed = rows("stream");
            assert_eq!((streamed.len(), rows("test").len()), (world.stream.len(), world.test.len()));
            assert!(rows("test").iter().all(|row| !streamed.contains(row)), "{}", world.task);
        }
        fn zero(w: &World) -> crate::learn::Theta {
            crate::learn::Theta::zeros(w.base.classes(), w.base.features() + 1)
        }
    }

    #[test]
    fn archives_that_do_not_fit_are_refused_by_name() {
        let arrays = read_npz(&recorded()).unwrap();
        let without = |name: &str| {
            let rest = arrays.iter().filter(|(n, _)| n != name).map(|(n, t)| (n.as_str(), t));
            worlds(&write_npz(rest).unwrap()).unwrap_err().to_string()
        };
        for name in ["digits/y", "breast-cov/0/mean", "vowels-con/2/order", "segment-cov/1/offset"] {
            assert!(without(name).contains(name), "{}", without(name));
        }
        assert!(worlds(b"no archive").is_err());
        let none = write_npz(arrays.iter().filter(|(n, _)| n == "digits/y").map(|(n, t)| (n.as_str(), t))).unwrap();
        assert!(worlds(&none).unwrap_err().to_string().contains("no task"));
    }

    #[test]
    fn sixty_corrections_improve_a_world_and_the_figures_are_those_of_the_stream() {
        let worlds = worlds(&recorded()).unwrap();
        let world = worlds.iter().find(|w| w.task == "vowels-con").unwrap();
        let condition = Condition {
            learner: LearnerConfig::default(),
            says: Says::Corrections,
            wrong: 0.0,
            presses: 60,
            retain: Retain::Adapt,
            random_features: 0,
        };
        let mut seen = 0;
        let curve = run(world, &condition, |_, _| seen += 1).unwrap();
        assert_eq!((seen, curve.trained + curve.confirmed), (60, 60));
        assert_eq!(curve.at.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [50, 60]);
        assert!(curve.at[1].1 > curve.factory + 0.1, "{curve:?}");
        assert!(curve.regret < 30 && curve.confirmed == 6);
        // Of six confirmed presses so many more are answered rightly than at the factory.
        let [(50, _), (60, gain)] = curve.over_factory[..] else { panic!("{curve:?}") };
        assert!(gain > 0.1 && ((gain * 6.0).round() - gain * 6.0).abs() < 1e-9, "{gain}");
        // What is learned beside the presses is kept.
        let world = worlds.iter().find(|w| w.task == "segment-cov").unwrap();
        let of = |retain, random_features| {
            run(world, &Condition { retain, random_features, ..condition.clone() }, |_, _| ()).unwrap()
        };
        let (adapt, keep) = (of(Retain::Adapt, 0), of(Retain::Keep, 0));
        assert!(keep.kept > adapt.kept + 0.03, "{adapt:?} {keep:?}");
        assert_ne!(of(Retain::Adapt, 64).at, adapt.at, "random features were not used");
    }
}
