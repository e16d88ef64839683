//! From a standard ONNX file, its Hugging Face style configuration and recorded cases to a bundle.
//!
//! A bundle only comes out of [`Export::into_bundle`], and only when every recorded case of the other framework comes
//! out of our own session within tolerance and the shipped head gives the graph's logits: what is exported has been
//! run. This module places files and compares; it deliberately trains, quantises and rewrites nothing.
use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle::{self, Bundle, BundleError, BundleWriter, GraphEntry, Manifest, Port, StateEntry, npz};
use crate::cases::{self, Case, CaseError, Compared, Tolerance};
use crate::class::{Class, Classified};
use crate::dataset::Dataset;
use crate::external::Beside;
use crate::graph::{Dim, Graph, ValueId};
use crate::learn::argmax;
use crate::learn::retention::{Coreset, Retain, SourceSample};
use crate::modality::{ModalityError, Preprocessor};
use crate::model::{CORESET, Model, ModelError};
use crate::session::{Outputs, Session, SessionError, SessionOptions};
use crate::tensor::Tensor;

/// Where the graph lies in a bundle made here.
const GRAPH: &str = "onnx/model.onnx";
/// Largest difference between the graph's logits and those the shipped head makes of the graph's feature.
pub const HEAD_TOLERANCE: f32 = 1e-4;

/// The files a configuration directory may hold: its names for each, its place in the bundle, its role.
const PLACES: &[(&[&str], &str, &str)] = &[
    (&["README.md"], "README.md", "card"),
    (&["config.json"], "config.json", "config"),
    (&["preprocessor_config.json"], "preprocessor_config.json", "config"),
    (&["tokenizer.json"], "tokenizer.json", "config"),
    (&["sensors.json"], "sensors.json", "config"),
    (&["recipe.json", "train/recipe.json"], "train/recipe.json", "recipe"),
    (&["head.safetensors", "train/head.safetensors"], "train/head.safetensors", "head"),
    (&["coreset.safetensors", "train/coreset.safetensors"], CORESET, "coreset"),
];

/// What inputs are called, by us and by Hugging Face, and the modality they then are made from.
const MODALITIES: &[(&str, &[&str])] = &[
    ("image", &["image", "pixel_values"]),
    ("audio", &["audio", "input_features", "input_values"]),
    ("text", &["text", "input_ids"]),
    ("sensor", &["sensor"]),
    ("present", &["present"]),
];

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of the configuration directory has no place in a bundle.
    #[error(
        "{} has no place in a bundle; the configuration directory may hold {}",
        path.display(),
        PLACES.iter().map(|p| p.0[0]).collect::<Vec<_>>().join(", ")
    )]
    NoPlace {
        /// The file.
        path: PathBuf,
    },
    /// The model cannot be opened or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The bundle breaks a rule of the format.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The preprocessing files do not fit the inputs.
    #[error(transparent)]
    Modality(#[from] ModalityError),
    /// The training files do not fit the graph.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An input was given a modality that does not exist.
    #[error("input `{input}`: there is no modality `{modality}`; it is one of image, audio, text, sensor, present")]
    UnknownModality {
        /// The input.
        input: String,
        /// What was asked for.
        modality: String,
    },
    /// A modality was given to an input that does not exist.
    #[error("the graph has no input `{input}`; it has: {}", has.join(", "))]
    NoInput {
        /// The input named.
        input: String,
        /// The inputs there are.
        has: Vec<String>,
    },
    /// The recorded cases.
    #[error(transparent)]
    Cases(#[from] CaseError),
    /// An input or output whose type or rank the file does not declare.
    #[error(
        "the file does not declare the type and rank of `{port}`, which a bundle's manifest states; export the model anew with shape inference"
    )]
    Undeclared {
        /// The input or output.
        port: String,
    },
    /// The outputs are not those that were recorded.
    #[error(
        "{case}: output `{output}` differs by {max_abs:e} from what was recorded, allowed {allowed:e}; no bundle is made"
    )]
    Differs {
        /// The case's file name.
        case: String,
        /// The output.
        output: String,
        /// Largest absolute difference.
        max_abs: f64,
        /// Largest allowed.
        allowed: f64,
    },
    /// The source data cannot become a coreset.
    #[error("the source samples: {why}")]
    Source {
        /// What is wrong.
        why: String,
    },
    /// The shipped head is not the graph's.
    #[error(
        "train/head.safetensors makes logits that differ by {difference:e} from the graph's `{logits}`, allowed \
         {HEAD_TOLERANCE:e}; it must hold the last linear layer of this very graph"
    )]
    Head {
        /// The output compared with.
        logits: String,
        /// Largest absolute difference.
        difference: f32,
    },
}

impl Classified for ExportError {
    fn class(&self) -> Class {
        match self {
            ExportError::Session(e) => e.class(),
            ExportError::Cases(e) => e.class(),
            ExportError::Bundle(e) => e.class(),
            ExportError::Modality(e) => e.class(),
            ExportError::Model(e) => e.class(),
            ExportError::UnknownModality { .. } | ExportError::NoInput { .. } => Class::Usage,
            _ => Class::Invalid,
        }
    }
}

/// What to export.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The ONNX file.
    pub onnx: &'a Path,
    /// The configuration directory, if the model has one.
    pub config: Option<&'a Path>,
    /// The directory of recorded cases (`case*.npz`), if there are any. Without it nothing is compared and the bundle
    /// has no golden sample.
    pub check: Option<&'a Path>,
    /// Name, version, time of making, and whatever else the maker fills in; inputs, outputs, graphs and files are
    /// filled in here.
    pub manifest: Manifest,
    /// Modalities of inputs whose names do not say them: `(input, modality)`.
    pub modalities: &'a [(String, String)],
    /// Inputs that are, from the second sample of a stream on, what an output was: `(input, output)`.
    pub state: &'a [(String, String)],
}

/// A model that has been read, run and compared, about to become a bundle.
pub struct Export {
    /// Every output of every recorded case.
    pub compared: Vec<Compared>,
    /// Largest difference between the graph's logits and those of the shipped head; `None` without a recipe or cases.
    pub head_difference: Option<f32>,
    logits: String,
    writer: BundleWriter,
}

impl Export {
    /// Reads everything, runs every recorded case.
    ///
    /// # Errors
    /// [`ExportError`]; differences from the recordings are no error yet, see [`Export::into_bundle`].
    pub fn prepare(source: &Source<'_>) -> Result<Export, ExportError> {
        let onnx = read(source.onnx)?;
        let external = Beside::of(source.onnx);
        let name = source.onnx.display().to_string();
        let mut session =
            Session::open(&onnx, &name, SessionOptions::default(), Some(&|file, needed| external.read(file, needed)))?;
        let mut manifest = source.manifest.clone();
        manifest.inputs = ports(session.graph(), &session.graph().inputs)?;
        manifest.outputs = ports(session.graph(), &session.graph().outputs)?;
        name_modalities(&mut manifest.inputs, source.modalities)?;
        let carried = |(input, output): &(String, String)| {
            if let Some(port) = manifest.inputs.iter_mut().find(|p| p.name == *input) {
                // Its name may say a modality; it is not made from a sample.
                port.modality = None;
            }
            StateEntry { input: input.clone(), output: output.clone(), init: "zeros".into() }
        };
        let state = source.state.iter().map(carried).collect();
        manifest.graphs = vec![GraphEntry { name: "main".into(), path: GRAPH.into(), role: "main".into(), state }];

        let mut writer = BundleWriter::new(manifest);
        writer.add(GRAPH, "graph", onnx)?;
        for (file, bytes) in external.into_files() {
            writer.add(&format!("onnx/{file}"), "graph", bytes)?;
        }
        let mut has_recipe = false;
        if let Some(dir) = source.config {
            for (place, role, bytes) in config_files(dir)? {
                has_recipe |= place == "train/recipe.json";
                writer.add(place, role, bytes)?;
            }
        }

        let mut compared = Vec::new();
        let tolerance = Tolerance::default();
        let mut runs: Vec<Outputs> = Vec::new();
        if let Some(dir) = source.check {
            for (i, path) in cases::files(dir)?.iter().enumerate() {
                let case = Case::read(path, &session)?;
                let found = session.run(&case.inputs)?;
                if i == 0 {
                    let named = |list: &[(String, Tensor)]| npz::write_npz(list.iter().map(|(n, t)| (n.as_str(), t)));
                    writer.add("samples/input.npz", "sample", named(&case.inputs)?)?;
                    writer.add("samples/expected.npz", "sample", named(&case.outputs)?)?;
                }
                compared.extend(case.compare(&found, tolerance));
                runs.push(found);
            }
        }
        let mut export = Export { compared, head_difference: None, logits: String::new(), writer };
        if export.differs().is_none() {
            export.check_files(has_recipe, &runs)?;
        }
        Ok(export)
    }

    /// The finished bundle, verified as when it is opened.
    ///
    /// # Errors
    /// [`ExportError::Differs`], [`ExportError::Head`]; or a rule of the format that the manifest breaks.
    pub fn into_bundle(self) -> Result<Bundle, ExportError> {
        if let Some(row) = self.differs() {
            return Err(ExportError::Differs {
                case: row.case.clone(),
                output: row.output.clone(),
                max_abs: row.max_abs,
                allowed: row.allowed,
            });
        }
        if let Some(difference) = self.head_difference
            && !within(difference, HEAD_TOLERANCE)
        {
            return Err(ExportError::Head { logits: self.logits, difference });
        }
        Ok(self.writer.finish()?)
    }

    fn differs(&self) -> Option<&Compared> {
        self.compared.iter().find(|row| !row.ok)
    }

    /// Opens what would become the bundle as a device would, and holds the shipped head against `runs`.
    fn check_files(&mut self, has_recipe: bool, runs: &[Outputs]) -> Result<(), ExportError> {
        // A writer is consumed by finishing; the one that stays is made again from the result.
        let bundle = std::mem::replace(&mut self.writer, BundleWriter::new(Manifest::new("", "", ""))).finish()?;
        self.writer = BundleWriter::from_bundle(&bundle)?;
        if bundle.manifest().inputs.iter().any(|p| p.modality.is_some()) {
            Preprocessor::from_bundle(&bundle)?;
        }
        if !has_recipe {
            return Ok(());
        }
        let model = Model::open(bundle, SessionOptions::default())?;
        let (recipe, base) = (model.recipe(), model.head());
        self.logits = recipe.logits.clone();
        let (classes, d) = (base.classes(), base.features());
        for outputs in runs {
            let take = |name: &str| outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.as_f32().ok());
            // `Model::open` has found both among the outputs; what is not f32 fails on the first sample there.
            let (Some(feature), Some(logits)) = (take(&recipe.feature), take(&recipe.logits)) else { continue };
            let mut worst = if feature.len() / d == logits.len() / classes { 0f32 } else { f32::INFINITY };
            for (x, y) in feature.chunks_exact(d).zip(logits.chunks_exact(classes)) {
                for c in 0..classes {
                    let row = &base.weight()[c * d..(c + 1) * d];
                    let dot: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let off = ((dot + f64::from(base.bias()[c])) as f32 - y[c]).abs();
                    worst = if off.is_nan() { f32::INFINITY } else { worst.max(off) };
                }
            }
            self.head_difference = Some(self.head_difference.map_or(worst, |w| w.max(worst)));
        }
        Ok(())
    }
}

/// Source samples shipped to measure by; with this many, two points of accuracy are one standard error.
const PROBE: usize = 200;
/// Fewer samples to measure by are refused: a figure from them would say nothing.
const LEAST_PROBE: usize = 20;

/// What a coreset was made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceReport {
    /// Samples to learn from.
    pub train: usize,
    /// Samples to measure by.
    pub probe: usize,
    /// Share of the latter that the shipped head answers rightly.
    pub accuracy: f64,
}

/// The bundle with a coreset (`train/coreset.safetensors`) chosen from labelled samples of the data it was made from.
///
/// The samples are run through the graph; what is shipped are features, logits and labels, no inputs. Use data the
/// model's published figures were not measured on.
///
/// # Errors
/// [`ExportError::Source`] for labels the model does not know or too few samples; [`ExportError::Model`].
pub fn with_source(bundle: Bundle, data: &Dataset, split: &str) -> Result<(Bundle, SourceReport), ExportError> {
    let mut writer = BundleWriter::from_bundle(&bundle)?;
    let mut model = Model::open(bundle, SessionOptions::default())?;
    let mut samples = Vec::new();
    for row in data.split(split) {
        let label = model.class_of(&row.label);
        let why = || format!("the data says `{}`, which is no label of the model", row.label);
        let label = label.ok_or_else(|| ExportError::Source { why: why() })?;
        let seen = model.see(&row.sample())?;
        samples.push(SourceSample { feature: seen.feature, logits: seen.logits, label: Some(label) });
    }
    // Where there are few, half of them measure.
    let train = Retain::Keep.samples().min(samples.len() / 2);
    let coreset = Coreset::choose(&samples, train, PROBE.min(samples.len() - train));
    if coreset.probe.len() < LEAST_PROBE {
        let why = format!(
            "split `{split}` has {} of them; at least {} are needed, half to learn from and half to measure by",
            samples.len(),
            2 * LEAST_PROBE
        );
        return Err(ExportError::Source { why });
    }
    let near = |s: &&SourceSample| s.label.is_some_and(|truth| model.task().near(argmax(&s.logits), truth));
    let right = coreset.probe.iter().filter(near).count();
    let report = SourceReport {
        train: coreset.train.len(),
        probe: coreset.probe.len(),
        accuracy: right as f64 / coreset.probe.len() as f64,
    };
    writer.add(CORESET, "coreset", coreset.to_safetensors().map_err(|why| ExportError::Source { why })?)?;
    Ok((writer.finish()?, report))
}

/// `value ≤ limit`, false for NaN.
fn within(value: f32, limit: f32) -> bool {
    value <= limit
}

fn read(path: &Path) -> Result<Vec<u8>, ExportError> {
    fs::read(path).map_err(|source| ExportError::Read { path: path.to_path_buf(), source })
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ExportError> {
    let fail = |source| ExportError::Read { path: dir.to_path_buf(), source };
    let mut paths = fs::read_dir(dir)
        .map_err(fail)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    // Hidden files are the file manager's, not the model's.
    paths.retain(|p| !p.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
    paths.sort();
    Ok(paths)
}

/// Place in the bundle, role, content.
type ConfigFile = (&'static str, &'static str, Vec<u8>);

/// Place, role and content of every file of the configuration directory.
fn config_files(dir: &Path) -> Result<Vec<ConfigFile>, ExportError> {
    let mut found = Vec::new();
    for path in entries(dir)? {
        let inner = if path.is_dir() { entries(&path)? } else { vec![path] };
        for path in inner {
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            let place = PLACES.iter().find(|(names, ..)| names.contains(&name.as_str()));
            let Some((_, place, role)) = place else { return Err(ExportError::NoPlace { path }) };
            found.push((*place, *role, read(&path)?));
        }
    }
    Ok(found)
}

fn ports(graph: &Graph, ids: &[ValueId]) -> Result<Vec<Port>, ExportError> {
    let dim = |d: &Dim| match d.known().and_then(|n| u32::try_from(n).ok()) {
        Some(n) => bundle::Dim::Fixed(n),
        None => bundle::Dim::Symbol(d.to_string()),
    };
    ids.iter()
        .map(|&v| {
            let value = &graph.values[v];
            let declared = value.declared.as_ref().and_then(|d| Some((d.dtype, d.shape.as_ref()?)));
            let (dtype, shape) = declared.ok_or_else(|| ExportError::Undeclared { port: value.name.clone() })?;
            let shape = shape.iter().map(dim).collect();
            Ok(Port { name: value.name.clone(), dtype, shape, modality: None, of: None })
        })
        .collect()
}

fn name_modalities(inputs: &mut [Port], given: &[(String, String)]) -> Result<(), ExportError> {
    for port in inputs.iter_mut() {
        let name = port.name.to_ascii_lowercase();
        port.modality = MODALITIES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(m, _)| m.to_string());
    }
    for (input, modality) in given {
        if !MODALITIES.iter().any(|(m, _)| m == modality) {
            return Err(ExportError::UnknownModality { input: input.clone(), modality: modality.clone() });
        }
        let has = || inputs.iter().map(|p| p.name.clone()).collect();
        let Some(at) = inputs.iter().position(|p| p.name == *input) else {
            return Err(ExportError::NoInput { input: input.clone(), has: has() });
        };
        inputs[at].modality = Some(modality.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn port(name: &str) -> Port {
        Port { name: name.into(), dtype: DType::F32, shape: vec![], modality: None, of: None }
    }

    #[test]
    fn inputs_are_known_by_their_names_and_what_is_said_wins() {
        let mut inputs = vec![port("Image"), port("input_ids"), port("x"), port("present")];
        name_modalities(&mut inputs, &[("x".into(), "sensor".into()), ("input_ids".into(), "audio".into())]).unwrap();
        let found: Vec<_> = inputs.iter().map(|p| p.modality.as_deref()).collect();
        assert_eq!(found, [Some("image"), Some("audio"), Some("sensor"), Some("present")]);
        let unknown = name_modalities(&mut inputs, &[("x".into(), "smell".into())]).unwrap_err();
        assert_eq!(unknown.class(), Class::Usage);
        let absent = name_modalities(&mut inputs, &[("y".into(), "text".into())]).unwrap_err();
        assert!(absent.to_string().contains("input_ids"), "{absent}");
    }

    #[test]
    fn a_file_without_a_place_is_refused_by_name_and_hidden_ones_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::write(dir.path().join("train/recipe.json"), "{}").unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join(".hidden"), "").unwrap();
        let places: Vec<_> = config_files(dir.path()).unwrap().into_iter().map(|f| f.0).collect();
        assert_eq!(places, ["config.json", "train/recipe.json"]);
        fs::write(dir.path().join("vocab.txt"), "a").unwrap();
        assert!(config_files(dir.path()).unwrap_err().to_string().contains("vocab.txt"));
    }

    #[test]
    fn a_difference_that_is_no_number_is_not_within_any_limit() {
        assert!(within(1.0, 1.0) && !within(1.1, 1.0) && !within(f32::NAN, f32::INFINITY));
    }
}
