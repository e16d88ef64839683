//! A bundle that can answer and be taught: session, preprocessing, labels and the shipped head in one.
//!
//! It holds no state of a person: what was shown, said and learned is the business of `app`. What a graph carries from one
//! sample of a stream to the next is held here.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::adapters::{AdapterError, AdapterId, AdapterStore};
use crate::bundle::{self, Bundle, BundleError, Recipe, StateEntry};
use crate::class::{Class, Classified};
use crate::graph::Graph;
use crate::import::{self, WriteError};
use crate::learn::task::Shipped;
use crate::learn::{Coreset, HeadBase, LearnError, Task, Theta};
use crate::modality::{ModalityError, Preprocessor, Sample};
use crate::note::Note;
use crate::scope::{self, Asked, Moved, ScopeError};
use crate::session::{Outputs, Session, SessionError, SessionOptions};
use crate::tensor::{Tensor, TensorError};

/// Where a bundle has its source samples.
pub const CORESET: &str = "train/coreset.safetensors";

/// Why a model cannot be opened or cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The input.
    #[error(transparent)]
    Modality(#[from] ModalityError),
    /// The head.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What an adapter has tuned.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A tensor of the wrong kind.
    #[error("output `{output}`: {source}")]
    Output {
        /// The output.
        output: String,
        /// Why.
        source: TensorError,
    },
    /// The bundle's files do not fit each other.
    #[error("{what}: expected {expected}, found {found}; `hone export` makes a bundle whose files fit")]
    Mismatch {
        /// What was compared.
        what: &'static str,
        /// What was needed.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The shipped source samples cannot be read.
    #[error("{CORESET}: {why}")]
    Coreset {
        /// Why.
        why: String,
    },
    /// The recipe's task does not fit the bundle.
    #[error("train/recipe.json: {why}")]
    Task {
        /// Why.
        why: String,
    },
    /// The shipped head cannot be read.
    #[error("train/head.safetensors: {why}")]
    Head {
        /// Why.
        why: String,
    },
}

impl Classified for ModelError {
    fn class(&self) -> Class {
        match self {
            ModelError::Bundle(e) => e.class(),
            ModelError::Session(e) => e.class(),
            ModelError::Modality(e) => e.class(),
            ModelError::Learn(e) => e.class(),
            ModelError::Adapter(e) => e.class(),
            ModelError::Scope(e) => e.class(),
            ModelError::Write(e) => e.class(),
            ModelError::Output { .. }
            | ModelError::Mismatch { .. }
            | ModelError::Coreset { .. }
            | ModelError::Task { .. }
            | ModelError::Head { .. } => Class::Invalid,
        }
    }
}

/// What the graph made of one sample, before any adapter.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Pooled feature, `[d]`.
    pub feature: Vec<f32>,
    /// Logits of what can be answered, `[C]`, as the task makes them of the graph's outputs.
    pub logits: Vec<f32>,
    /// What the sample became: the graph's inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Everything lossy that happened to the sample.
    pub notes: Vec<Note>,
    /// Time of preprocessing and inference together.
    pub latency: Duration,
}

/// An adapter folded into its model.
#[derive(Clone, Debug)]
pub struct MergedModel {
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// Layers whose weights have changed.
    pub folded: Vec<String>,
    /// Layers beside whose weight something stays.
    pub beside: Vec<String>,
    /// How its logits differ from those with the adapter beside the weights; `None` where there was no sample.
    pub moved: Option<Moved>,
}

/// A bundle that can be taught, ready to answer.
pub struct Model {
    bundle: Bundle,
    recipe: Recipe,
    task: Task,
    session: Session,
    preprocessor: Preprocessor,
    /// The head over what can be answered.
    base: HeadBase,
    /// The head as the file has it, over the graph's outputs.
    head: HeadBase,
    coreset: Option<Coreset>,
    /// The graph as the bundle ships it.
    factory: Arc<Graph>,
    /// The tuned adapter whose body the session runs.
    body: Option<AdapterId>,
    /// What the graph's state inputs are before the next sample of a stream; empty before the first.
    carried: Vec<(String, Tensor)>,
}

impl Model {
    /// Opens a bundle; the session runs its golden sample.
    ///
    /// # Errors
    /// [`ModelError`]; a bundle without a recipe (a model that cannot be taught) is refused here.
    pub fn open(bundle: Bundle, options: SessionOptions) -> Result<Model, ModelError> {
        let recipe = bundle.recipe()?;
        let labels = bundle.labels()?;
        let session = Session::from_bundle(&bundle, options)?;
        for name in [&recipe.feature, &recipe.logits] {
            if !session.output_names().contains(&name.as_str()) {
                return Err(SessionError::NoOutput {
                    name: name.clone(),
                    by: "train/recipe.json",
                    has: session.output_names().into_iter().map(String::from).collect(),
                }
                .into());
            }
        }
        let preprocessor = Preprocessor::from_bundle(&bundle)?;
        let HeadFile { weight, bias, gallery } = head(&bundle, &recipe)?;
        let task = Task::new(&recipe, &labels, &Shipped { outputs: bias.len(), gallery })
            .map_err(|why| ModelError::Task { why })?;
        if bias.len() != task.outputs() {
            return Err(ModelError::Mismatch {
                what: "classes of the head",
                expected: format!("{} (id2label in config.json)", labels.len()),
                found: bias.len().to_string(),
            });
        }
        let (mean, std) = (recipe.mean.clone(), recipe.std.clone());
        let head = HeadBase::of_outputs(weight, bias, mean.clone(), std.clone())?;
        let base = if task.is_plain() {
            HeadBase::new(head.weight().to_vec(), head.bias().to_vec(), mean, std)?
        } else {
            // The graph's logits are given with every sample; of the head over the hypotheses only the size is needed.
            let n = task.names().len();
            HeadBase::new(vec![0.0; n * mean.len()], vec![0.0; n], mean, std)?
        };
        let coreset = match bundle.contains(CORESET) {
            true => {
                let bytes = bundle.read(CORESET)?;
                let read = Coreset::from_safetensors(&bytes, base.features(), base.classes());
                Some(read.map_err(|why| ModelError::Coreset { why })?)
            }
            false => None,
        };
        let factory = session.shared_graph();
        Ok(Model {
            bundle,
            recipe,
            task,
            session,
            preprocessor,
            base,
            head,
            coreset,
            factory,
            body: None,
            carried: Vec::new(),
        })
    }

    /// Puts the body the adapter `id` of the store stands on in place of the graph; `None` is the factory's. The model
    /// is as before when it fails.
    ///
    /// # Errors
    /// [`ModelError::Adapter`], [`ModelError::Scope`] when its leaves are not those of this graph.
    pub fn put_on(&mut self, store: &AdapterStore, id: Option<&AdapterId>) -> Result<(), ModelError> {
        let body = match id {
            None => None,
            Some(id) => store.body(id)?,
        };
        if body.as_ref().map(|(id, _)| id) != self.body.as_ref() {
            let graph = match &body {
                None => self.factory.clone(),
                Some((_, tuned)) => {
                    let scoped = scope::place(&self.factory, self.session.info().opset, &tuned.spec)?;
                    Arc::new(scoped.with(&tuned.tensors)?)
                }
            };
            self.session.replace(graph);
            self.carried.clear();
            self.body = body.map(|(id, _)| id);
        }
        Ok(())
    }

    /// The bundle's ONNX file with the adapter `id` folded in: what was tuned in the weights, quantised again where
    /// they are, and Θ in the head. How far that moves the logits is measured on `samples`, each the graph's inputs by
    /// name, and on the bundle's golden ones.
    ///
    /// # Errors
    /// [`ModelError::Adapter`], [`ModelError::Scope`] when it cannot be folded, [`ModelError::Write`];
    /// [`ModelError::Session`] for a sample that does not fit.
    pub fn merged(
        &self,
        store: &AdapterStore,
        id: &AdapterId,
        samples: Vec<Vec<(String, Tensor)>>,
    ) -> Result<MergedModel, ModelError> {
        let a = store.load(id)?;
        let opset = self.session.info().opset;
        let (mut made, beside) = match store.body(id)? {
            Some((_, t)) => {
                let scoped = scope::place(&self.factory, opset, &t.spec)?;
                let beside = Arc::new(scoped.with(&t.tensors)?);
                (scope::merge(&self.factory, opset, &t.spec, &t.tensors)?, beside)
            }
            None => {
                let graph = Graph::clone(&self.factory);
                (scope::Merged { graph, folded: Vec::new(), beside: Vec::new() }, self.factory.clone())
            }
        };
        // What Θ adds to the logits, of the feature.
        let mut change: Option<(Vec<f32>, Vec<f32>)> = None;
        if a.theta.iter().any(|&v| v != 0.0) {
            let theta = Theta::new(a.classes, a.columns, a.theta)?;
            // What has classes or features the graph has not is refused before anything is made of it.
            let merged = match self.task.is_plain() {
                true => self.base.merge(&theta)?,
                false => self.head.merge(&self.task.pull(&theta)?)?,
            };
            let less = |after: &[f32], before: &[f32]| after.iter().zip(before).map(|(a, b)| a - b).collect::<Vec<_>>();
            let (dw, db) = (less(&merged.weight, self.head.weight()), less(&merged.bias, self.head.bias()));
            let why = "train/recipe.json names no head".to_string();
            let head = self.recipe.head.as_ref().ok_or(ModelError::Head { why })?;
            scope::add_head(&mut made.graph, &head.weight, head.bias.as_deref(), &dw, &db)?;
            made.folded.push("the head".into());
            change = Some((dw, db));
        }
        let golden = self.bundle.contains("samples/input.npz").then(|| self.bundle.read("samples/input.npz"));
        let golden = golden.transpose()?.map(|bytes| bundle::npz::read_npz(&bytes)).transpose();
        let golden = golden.map_err(SessionError::from)?;
        let samples: Vec<_> = golden.into_iter().chain(samples).collect();
        let moved = self.moved(&beside, &made.graph, change, &samples)?;
        let path = self.bundle.manifest().graphs.first().map_or("onnx/model.onnx", |g| g.path.as_str());
        let onnx = import::to_onnx(&made.graph, &self.bundle.read(path)?)?;
        Ok(MergedModel { onnx, folded: made.folded, beside: made.beside, moved })
    }

    /// The graph's logits with an adapter beside its weights and folded into them, `change` being weight and bias of
    /// what is added to the former by the feature.
    fn moved(
        &self,
        beside: &Graph,
        folded: &Graph,
        change: Option<(Vec<f32>, Vec<f32>)>,
        samples: &[Vec<(String, Tensor)>],
    ) -> Result<Option<Moved>, ModelError> {
        let (feature, logits) = (&*self.recipe.feature, &*self.recipe.logits);
        let mut answers = Vec::with_capacity(samples.len());
        let (mut as_beside, mut as_folded) = (Asked::new(beside, &[logits, feature]), Asked::new(folded, &[logits]));
        for sample in samples {
            let inputs = scope::ordered(beside, sample).map_err(|name| ModelError::Mismatch {
                what: "inputs of a sample",
                expected: format!("`{name}` among them"),
                found: sample.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>().join(", "),
            })?;
            let output = |source| ModelError::Output { output: logits.to_string(), source };
            let before = as_beside.of(&inputs).map_err(SessionError::from)?;
            let after = as_folded.of(&inputs).map_err(SessionError::from)?;
            let mut want = before[0].as_f32().map_err(output)?.to_vec();
            let columns = before[0].shape().last().copied().unwrap_or(1).max(1);
            if let Some((dw, db)) = &change {
                let features = before[1].as_f32().map_err(output)?.chunks_exact(self.base.features());
                for (row, f) in want.chunks_exact_mut(columns).zip(features) {
                    for (c, v) in row.iter_mut().enumerate() {
                        let weight = &dw[c * f.len()..][..f.len()];
                        let sum: f64 = weight.iter().zip(f).map(|(w, f)| f64::from(*w) * f64::from(*f)).sum();
                        *v += sum as f32 + db[c];
                    }
                }
            }
            answers.push((want, after[0].as_f32().map_err(output)?.to_vec(), columns));
        }
        let pairs = answers.iter().map(|(a, b, n)| (&a[..], &b[..], *n));
        Ok((!answers.is_empty()).then(|| Moved::of(pairs)))
    }

    /// The tuned adapter whose body answers; `None` is the factory's.
    pub fn body(&self) -> Option<&AdapterId> {
        self.body.as_ref()
    }

    /// The graph as the bundle ships it.
    pub fn factory(&self) -> &Arc<Graph> {
        &self.factory
    }

    /// What makes features now: the bundle's base digest, with the tuned adapter behind a `+`, if one answers. Features
    /// of another maker are stale.
    pub fn maker(&self) -> String {
        match &self.body {
            None => self.bundle.base_digest().to_string(),
            Some(id) => format!("{}+{id}", self.bundle.base_digest()),
        }
    }

    /// The preprocessing.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The training recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What the answers are, and what presses on them say.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Names of what can be answered, by class: the labels of `config.json`, or what the task makes of them.
    pub fn labels(&self) -> &[String] {
        self.task.names()
    }

    /// Names of what can be said by number: [`Model::labels`], then the task's remarks.
    pub fn vocabulary(&self) -> Vec<String> {
        [self.task.names(), self.task.remarks()].concat()
    }

    /// The class of a label, as spelled in `config.json`, or of a class number; as the task reads it.
    pub fn class_of(&self, label: &str) -> Option<usize> {
        self.task.truth(label)
    }

    /// The head over what can be answered, with the statistics of its feature. Its weights are the file's in
    /// classification and zero elsewhere, see [`Model::head`].
    pub fn base(&self) -> &HeadBase {
        &self.base
    }

    /// The shipped head over the graph's outputs.
    pub fn head(&self) -> &HeadBase {
        &self.head
    }

    /// Samples of the source, where the bundle ships any.
    pub fn coreset(&self) -> Option<&Coreset> {
        self.coreset.as_ref()
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The modalities it takes.
    pub fn modalities(&self) -> Vec<&'static str> {
        self.preprocessor.modalities()
    }

    /// Runs the graph on one sample that stands for itself.
    ///
    /// # Errors
    /// [`ModelError::Modality`] for a sample that cannot be read, [`ModelError::Session`] if the graph fails.
    pub fn see(&mut self, sample: &Sample<'_>) -> Result<Seen, ModelError> {
        self.carried.clear();
        self.see_next(sample)
    }

    /// Runs the graph on the next sample of a stream: what the graph carries (`state` of the manifest) is what the sample
    /// before left. [`Model::see`] and another body begin a new stream.
    ///
    /// # Errors
    /// As [`Model::see`]; the stream is then where it was.
    pub fn see_next(&mut self, sample: &Sample<'_>) -> Result<Seen, ModelError> {
        let start = Instant::now();
        let (mut inputs, notes) = self.preprocessor.prepare(sample)?;
        for (name, before) in &self.carried {
            if let Some((_, tensor)) = inputs.iter_mut().find(|(n, _)| n == name) {
                tensor.clone_from(before);
            }
        }
        let outputs = self.session.run(&inputs)?;
        let (feature, logits) = self.read(&outputs)?;
        self.carry(outputs);
        Ok(Seen { feature, logits, inputs, notes, latency: start.elapsed() })
    }

    fn carry(&mut self, outputs: Outputs) {
        let state = self.bundle.manifest().graphs.first().map_or(&[][..], |g| &g.state);
        let left = |s: &StateEntry| Some((s.input.clone(), outputs.iter().find(|(n, _)| *n == s.output)?.1.clone()));
        self.carried = state.iter().filter_map(left).collect();
    }

    /// Feature and logits of prepared inputs; the logits are those of [`Seen`].
    ///
    /// # Errors
    /// [`ModelError::Session`] if they do not fit or the graph fails.
    pub fn look(&mut self, inputs: &[(String, Tensor)]) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let outputs = self.session.run(inputs)?;
        self.read(&outputs)
    }

    fn read(&self, outputs: &Outputs) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let take = |name: &str| -> Result<Vec<f32>, ModelError> {
            let tensor: Option<&Tensor> = outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let tensor = tensor.ok_or_else(|| SessionError::NoOutput {
                name: name.to_string(),
                by: "train/recipe.json",
                has: outputs.iter().map(|(n, _)| n.clone()).collect(),
            })?;
            let values = tensor.as_f32().map_err(|source| ModelError::Output { output: name.to_string(), source })?;
            Ok(values.to_vec())
        };
        let (feature, logits) = (take(&self.recipe.feature)?, take(&self.recipe.logits)?);
        if feature.len() != self.base.features() || logits.len() != self.task.outputs() {
            return Err(ModelError::Mismatch {
                what: "feature and logits of one sample",
                expected: format!("[{}] and [{}]", self.base.features(), self.task.outputs()),
                found: format!("[{}] and [{}]", feature.len(), logits.len()),
            });
        }
        Ok((feature, self.task.logits(&logits)))
    }
}

/// What `train/head.safetensors` holds.
struct HeadFile {
    /// `[P, d]`
    weight: Vec<f32>,
    /// `[P]`
    bias: Vec<f32>,
    /// `[N, P]`, where the recipe names one.
    gallery: Option<Vec<f32>>,
}

fn head(bundle: &Bundle, recipe: &Recipe) -> Result<HeadFile, ModelError> {
    let bytes = bundle.read("train/head.safetensors")?;
    let bad = |why: String| ModelError::Head { why };
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let Some(names) = &recipe.head else { return Err(bad("train/recipe.json names no head".into())) };
    let take = |name: &str| -> Result<(Vec<usize>, Vec<f32>), ModelError> {
        let view =
            file.tensor(name).map_err(|_| bad(format!("has no tensor `{name}`, which train/recipe.json names")))?;
        if view.dtype() != safetensors::Dtype::F32 {
            return Err(bad(format!("tensor `{name}` is {:?}, not F32", view.dtype())));
        }
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((view.shape().to_vec(), values))
    };
    let (shape, weight) = take(&names.weight)?;
    if shape.len() != 2 || shape[1] != recipe.mean.len() {
        return Err(bad(format!("tensor `{}` is {shape:?}, expected [classes, {}]", names.weight, recipe.mean.len())));
    }
    let bias = match &names.bias {
        Some(name) => take(name)?.1,
        None => vec![0.0; shape[0]],
    };
    if bias.len() != shape[0] {
        return Err(bad(format!("the bias has {} entries for {} classes", bias.len(), shape[0])));
    }
    let gallery = match &recipe.answers.gallery {
        None => None,
        Some(name) => {
            let (shape, values) = take(name)?;
            if shape.len() != 2 || shape[1] != bias.len() {
                return Err(bad(format!("tensor `{name}` is {shape:?}, expected [items, {}]", bias.len())));
            }
            Some(values)
        }
    };
    Ok(HeadFile { weight, bias, gallery })
}

/// Softmax of logits, in `f64` so that it sums to one.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| (v / sum) as f32).collect()
}
