//! What scope `sparse` trains: the gradients of some batches measured, of as many tensors together as there is memory for.
use super::batch::Batcher;
use super::{Examples, Settings, TuneError, memory, recipe, renew, shuffled};
use crate::graph::Graph;
use crate::scope::{self, Contribution, Scoped, Spec};
use crate::tensor::{DType, Tensor};
use crate::train::{Batch, Optimizer, Recipe, TrainError, TrainOptions, Trainer};

/// How many batches of examples tensors are chosen by.
const MEASURED: usize = 8;

/// Names of the tensors to train. Tensors that alone are more than may be chosen are not measured.
///
/// # Errors
/// [`TuneError::Memory`] where the gradient of a single tensor does not fit; [`TuneError::Setting`] where no tensor is
/// small enough.
pub(super) fn chosen(
    graph: &Graph,
    opset: i64,
    spec: &Spec,
    settings: &Settings,
    options: &TrainOptions,
    examples: &mut dyn Examples,
    batcher: &Batcher,
    train: &[usize],
) -> Result<Vec<String>, TuneError> {
    let scoped = scope::place(graph, opset, spec)?;
    let order = shuffled(train, settings.seed, 0);
    let values = scope::values(&scoped.graph, &scoped.trainable);
    if examples.renews() {
        // Gradients of targets that nobody has made yet would choose at random.
        renew(examples, &scoped, &values, &spec.output, options)?;
    }
    let of_others = Spec { scopes: spec.scopes.iter().filter(|s| *s != "sparse").cloned().collect(), ..spec.clone() };
    let others =
        if of_others.scopes.is_empty() { Vec::new() } else { scope::place(graph, opset, &of_others)?.trainable };
    let bytes = |t: &Tensor| t.len() * t.dtype().size_bytes();
    let able: Vec<&(String, Tensor)> = values.iter().filter(|(name, _)| !others.contains(name)).collect();
    let least = able.iter().map(|(_, t)| bytes(t)).min().unwrap_or(0);
    let able: Vec<&(String, Tensor)> = able.into_iter().filter(|(_, t)| bytes(t) <= settings.sparse_bytes).collect();
    let mut contributions = Vec::with_capacity(able.len());
    if !able.is_empty() {
        let measured = measured(&order, batcher);
        let shapes = batcher.all_shapes(&batcher.extremes(examples, measured)?);
        let mut measuring =
            Measuring { scoped: &scoped, spec, settings, options, examples, batcher, measured, shapes: &shapes };
        let promises = measuring.promises(&able)?;
        contributions.extend(able.iter().zip(promises).map(|((name, t), promise)| Contribution {
            name: name.clone(),
            promise,
            bytes: bytes(t),
        }));
    }
    let chosen = scope::choose(&contributions, settings.sparse_bytes);
    if chosen.is_empty() {
        tracing::debug!(least, "no tensor fits");
        return Err(TuneError::Setting {
            what: "--sparse-bytes",
            found: format!("{} bytes", settings.sparse_bytes),
            expected: "enough for one tensor of the model",
        });
    }
    Ok(chosen)
}

/// The examples tensors are measured on, of those in `order`.
fn measured<'o>(order: &'o [usize], batcher: &Batcher) -> &'o [usize] {
    &order[..order.len().min(MEASURED * batcher.rows)]
}

/// All that a measurement depends on.
struct Measuring<'a> {
    scoped: &'a Scoped,
    spec: &'a Spec,
    settings: &'a Settings,
    options: &'a TrainOptions,
    examples: &'a mut dyn Examples,
    batcher: &'a Batcher,
    measured: &'a [usize],
    /// Inputs of batches of them, between which all others lie.
    shapes: &'a [Vec<(DType, Vec<usize>)>],
}

impl Measuring<'_> {
    /// The square of the norm of the gradient of each tensor. Where the gradients of all do not fit into memory they are
    /// halved until those of a part do; how they are parted changes a promise by rounding.
    fn promises(&mut self, of: &[&(String, Tensor)]) -> Result<Vec<f64>, TuneError> {
        match self.together(of) {
            Err(TuneError::Memory { .. }) if of.len() > 1 => {
                let (first, second) = of.split_at(of.len() / 2);
                Ok([self.promises(first)?, self.promises(second)?].concat())
            }
            other => other,
        }
    }

    fn together(&mut self, of: &[&(String, Tensor)]) -> Result<Vec<f64>, TuneError> {
        // Beside the plan: the gradients as they come out of it, and their sums.
        let numbers: usize = of.iter().map(|(_, t)| t.len()).sum();
        let given = self.shapes.iter().map(|s| memory::given(self.settings, self.batcher, s)).max().unwrap_or(0);
        let beside = numbers * (size_of::<f32>() + size_of::<f64>()) + given;
        let may = self.settings.max_bytes;
        let mut trainer = Trainer::new(
            &self.scoped.graph,
            Recipe {
                trainable: of.iter().map(|(name, _)| name.clone()).collect(),
                accumulate: false,
                // What is never updated needs the least to remember.
                optimizer: Optimizer::SGD,
                max_bytes: may.map(|m| m.saturating_sub(beside)),
                ..recipe(self.scoped, self.spec, self.settings, self.batcher)
            },
            self.options.clone(),
        )?;
        match trainer.prove_gradients(self.shapes) {
            Err(TrainError::Memory { needs, .. }) => {
                let may = may.unwrap_or(usize::MAX);
                return Err(TuneError::Memory { needs: needs + beside, may, fits: None });
            }
            other => other?,
        };
        let mut sums: Vec<Vec<f64>> = of.iter().map(|(_, t)| vec![0.0; t.len()]).collect();
        for part in self.measured.chunks(self.batcher.rows) {
            for batch in self.batcher.batches(self.examples, part)? {
                add(&mut trainer, &batch, &mut sums)?;
            }
        }
        Ok(sums.iter().map(|sum| sum.iter().map(|v| v * v).sum()).collect())
    }
}

/// Adds the gradients on a batch to `sums`.
fn add(trainer: &mut Trainer, batch: &Batch, sums: &mut [Vec<f64>]) -> Result<(), TuneError> {
    let (_, gradients) = trainer.gradients(batch)?;
    for (sum, g) in sums.iter_mut().zip(&gradients) {
        sum.iter_mut().zip(g.as_f32()?).for_each(|(s, g)| *s += f64::from(*g));
    }
    Ok(())
}

#[cfg(all(test, feature = "import"))]
mod tests {
    use super::super::tests::{examples, model, settings, spec};
    use super::*;

    #[test]
    fn gradients_of_all_tensors_are_measured_in_parts_where_memory_is_short_of_all_and_promise_the_same() {
        let (graph, opset) = model("picture");
        let spec = spec("sparse");
        let scoped = scope::place(&graph, opset, &spec).unwrap();
        let values = scope::values(&scoped.graph, &scoped.trainable);
        let of: Vec<&(String, Tensor)> = values.iter().collect();
        let options = TrainOptions::default();
        let batcher = Batcher::new(&graph, settings().objective, 8);
        let order: Vec<usize> = (0..16).collect();
        let within = |max_bytes: Option<usize>, of: &[&(String, Tensor)]| {
            let settings = Settings { max_bytes, ..settings() };
            let mut examples = examples(16);
            let measured = measured(&order, &batcher);
            let shapes = batcher.all_shapes(&batcher.extremes(&mut examples, measured).unwrap());
            let mut measuring = Measuring {
                scoped: &scoped,
                spec: &spec,
                settings: &settings,
                options: &options,
                examples: &mut examples,
                batcher: &batcher,
                measured,
                shapes: &shapes,
            };
            (measuring.together(of).map(drop), measuring.promises(of))
        };
        let (_, free) = within(None, &of);
        let free = free.unwrap();
        // What each alone needs, and all together: between the two they are measured in parts.
        let needs = |of: &[&(String, Tensor)]| match within(Some(1), of).0 {
            Err(TuneError::Memory { needs, .. }) => needs,
            other => panic!("{other:?}"),
        };
        let all = needs(&of);
        let most = of.iter().map(|&t| needs(&[t])).max().unwrap();
        assert!(most < all, "{most} {all}");
        let limit = most + (all - most) / 8;
        let (together, parted) = within(Some(limit), &of);
        assert!(matches!(together, Err(TuneError::Memory { needs, may, .. }) if needs > may), "{together:?}");
        for ((a, b), (name, _)) in free.iter().zip(&parted.unwrap()).zip(&values) {
            assert!((a - b).abs() <= 1e-4 * a.max(1e-9), "{name}: {a} {b}");
        }
        // One that does not fit alone is refused with both figures.
        let (_, none) = within(Some(most / 4), &of);
        assert!(matches!(none, Err(TuneError::Memory { needs, may, .. }) if needs > may), "{none:?}");
    }
}
