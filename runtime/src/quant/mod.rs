//! Float graphs → quantised graphs of standard operators, which any ONNX runtime runs.
//!
//! [`Prepared::new`] folds what can be folded and looks at what the activations of calibration samples are;
//! [`Prepared::apply`] rewrites the graph by one of the [`SCHEMES`], all of it or all but some nodes, as often as a search
//! asks. This module knows no files and no tasks: what accuracy means, and which nodes are worth their bits, is decided by
//! `compress`, which calls it.
use std::collections::{BTreeMap, BTreeSet};

use crate::class::{Class, Classified};
use crate::graph::{Graph, ValueId};
use crate::plan::{PlanError, RunOptions};
use crate::tensor::Tensor;

mod bias;
mod blocks;
mod dynamic;
pub(crate) mod edit;
mod observe;
mod prepare;
mod qdq;
mod range;
mod smooth;
#[cfg(all(test, feature = "import"))]
pub(crate) mod tests;
mod weight;
mod weights;

pub(crate) use blocks::repack;
pub use blocks::{Blocks, Fit};
use edit::Edit;
use observe::{Stats, Watch};
pub use range::Calibration;

/// The schemes, in the order they are offered.
pub static SCHEMES: &[&Scheme] = &[&qdq::INT8_QDQ, &dynamic::INT8_DYNAMIC, &weights::INT8_WEIGHTS, &blocks::INT4];

/// The channel of each element of a tensor that is quantised along `axis`; 0 without one.
pub(crate) fn channel(shape: &[usize], axis: Option<usize>) -> impl Fn(usize) -> usize + use<> {
    let channel = weight::Channel::of(shape, axis);
    move |i| channel.at(i)
}

/// A way to quantise: a row of [`SCHEMES`].
pub struct Scheme {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for tables.
    pub doc: &'static str,
    /// Whether it needs calibration samples.
    pub calibrated: bool,
    /// Whether it has layers of fewer than 8 bits, which get 8 when they cost too much.
    pub widens: bool,
    /// First version of the standard operator set it can be written in.
    pub opset: i64,
    /// The activations it wants to know the range of.
    watch: fn(&Edit) -> Watch,
    /// Rewrites the graph; what it quantised.
    apply: fn(&mut Edit, &Context<'_>) -> Vec<Layer>,
}

impl std::fmt::Debug for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The scheme of that name.
pub fn scheme(name: &str) -> Option<&'static Scheme> {
    SCHEMES.iter().copied().find(|s| s.name == name)
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to quantise.
    pub scheme: &'static Scheme,
    /// How ranges of activations are chosen.
    pub calibration: Calibration,
    /// Share of the outliers of activations that is moved into the weights before they are quantised (static schemes).
    pub smooth: Option<f64>,
    /// Take off the biases what rounded weights shift the means by (static schemes).
    pub correct_bias: bool,
    /// Weights of seven bits, for ONNX Runtime on x86 processors without 8-bit dot products, whose sums of two products
    /// saturate at 16 bits.
    pub reduced: bool,
    /// Blocks of the 4-bit scheme.
    pub blocks: Blocks,
    /// Values of the graph that must stay as they are, by name: their makers give `f32`.
    pub fixed: BTreeSet<String>,
}

/// What a scheme works with.
struct Context<'a> {
    settings: &'a Settings,
    stats: &'a BTreeMap<String, Stats>,
    keep: &'a BTreeSet<String>,
    wide: &'a BTreeSet<String>,
}

impl Context<'_> {
    /// Whether a node is to be left alone.
    fn kept(&self, edit: &Edit, node: usize) -> bool {
        self.keep.contains(&edit.graph.nodes[node].name)
    }

    fn stats(&self, edit: &Edit, v: ValueId) -> Option<&Stats> {
        self.stats.get(&edit.graph.values[v].name).filter(|s| !s.histogram.bins.is_empty())
    }
}

/// A node that was quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node.
    pub name: String,
    /// Its operator.
    pub op: &'static str,
    /// Its result in the float graph, after an activation that was absorbed.
    pub output: String,
    /// The value of the quantised graph that stands for it.
    pub quantised_output: String,
    /// Elements of its weight.
    pub weight_elements: usize,
    /// Signal-to-noise ratio of its weight, in decibels.
    pub weight_snr_db: Option<f64>,
    /// Bits of its codes: 8, or fewer where they could be 8 (see [`Prepared::apply`]).
    pub bits: u32,
}

/// A quantised graph.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// The graph.
    pub graph: Graph,
    /// What was quantised in it, in the order of the nodes.
    pub layers: Vec<Layer>,
}

/// Why a graph cannot be quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantError {
    /// A calibration sample does not run.
    #[error("while calibrating: {0}")]
    Run(#[from] PlanError),
    /// The scheme needs samples.
    #[error("scheme {scheme} sets the ranges of activations from samples, and there are none: give --calib DIR")]
    NoSamples {
        /// The scheme.
        scheme: &'static str,
    },
    /// The file's operator set is too old.
    #[error(
        "the model is of opset {opset}, scheme {scheme} needs {needs}: convert it with onnx.version_converter first"
    )]
    Opset {
        /// The scheme.
        scheme: &'static str,
        /// Of the file.
        opset: i64,
        /// Of the scheme.
        needs: i64,
    },
    /// There is no layer with a constant float weight.
    #[error(
        "there is nothing to quantise: no {scheme} layer has a constant f32 weight (is the model quantised already?)"
    )]
    Nothing {
        /// The scheme.
        scheme: &'static str,
    },
}

impl Classified for QuantError {
    fn class(&self) -> Class {
        match self {
            QuantError::NoSamples { .. } => Class::Usage,
            QuantError::Run(_) => Class::Failed,
            QuantError::Opset { .. } | QuantError::Nothing { .. } => Class::Invalid,
        }
    }
}

/// A float graph made ready, with what was seen of its activations.
pub struct Prepared {
    graph: Graph,
    opset: i64,
    settings: Settings,
    stats: BTreeMap<String, Stats>,
}

impl Prepared {
    /// Folds constants, batch normalisation and padding, and runs the samples (each the graph's inputs in order) where
    /// the scheme is calibrated. `opset` is the file's version of the standard operator set.
    ///
    /// # Errors
    /// [`QuantError`].
    pub fn new(
        graph: &Graph,
        opset: i64,
        samples: &[Vec<Tensor>],
        settings: Settings,
        run: &RunOptions,
    ) -> Result<Prepared, QuantError> {
        let scheme = settings.scheme;
        if opset < scheme.opset {
            return Err(QuantError::Opset { scheme: scheme.name, opset, needs: scheme.opset });
        }
        if scheme.calibrated && samples.is_empty() {
            return Err(QuantError::NoSamples { scheme: scheme.name });
        }
        let mut graph = prepare::prepare(graph, opset);
        if let Some(alpha) = settings.smooth.filter(|_| scheme.calibrated) {
            let mut edit = Edit::new(graph.clone(), opset);
            let stats = observe::observe(&graph, &smooth::watch(&edit), samples, run)?;
            smooth::migrate(&mut edit, alpha, &stats);
            graph = edit.finish();
        }
        let watch = (scheme.watch)(&Edit::new(graph.clone(), opset));
        let stats = if watch.is_empty() { BTreeMap::new() } else { observe::observe(&graph, &watch, samples, run)? };
        Ok(Prepared { graph, opset, settings, stats })
    }

    /// The scheme.
    pub fn scheme(&self) -> &'static Scheme {
        self.settings.scheme
    }

    /// The float graph, folded.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Quantises every layer but the nodes `keep`; the nodes `wide` get 8 bits where the scheme has fewer.
    ///
    /// # Errors
    /// [`QuantError::Nothing`].
    pub fn apply(&self, keep: &BTreeSet<String>, wide: &BTreeSet<String>) -> Result<Quantised, QuantError> {
        let mut edit = Edit::new(self.graph.clone(), self.opset);
        let context = Context { settings: &self.settings, stats: &self.stats, keep, wide };
        let layers = (self.settings.scheme.apply)(&mut edit, &context);
        if layers.is_empty() && keep.is_empty() {
            return Err(QuantError::Nothing { scheme: self.settings.scheme.name });
        }
        Ok(Quantised { graph: edit.finish(), layers })
    }
}
