//! What of a model is trained: a graph in, the same graph with trainable leaves out.
//!
//! A [`Scope`] is a row of [`SCOPES`]. [`place`] lets the scopes of a [`Spec`] mark constants of the graph as
//! trainable, or put new ones beside its operators; frozen weights stay as they are, whole numbers stay whole numbers.
//! What is placed computes what the graph computed until it is trained, but for a new head. The same spec on the same
//! graph gives the same leaves under the same names, so that a spec and the values of its leaves are all there is to an
//! adapter: [`Scoped::with`] puts them back. It deliberately knows nothing of how leaves are trained, of files, and of
//! where a spec comes from.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::class::{Class, Classified};
use crate::graph::{Graph, ValueId};
use crate::ops::Attr;
use crate::quant::edit::Edit;
use crate::tensor::{DType, Tensor};

mod bias;
mod full;
mod head;
mod lora;
mod merge;
mod moved;
mod parameters;
mod peft;
mod sparse;

pub use head::logits_of;
pub use lora::Side;
pub use merge::{Merged, add_head, merge};
pub use moved::{Asked, Moved, ordered};
pub use peft::{Peft, peft};
pub use sparse::{Contribution, choose};

#[cfg(all(test, feature = "import"))]
mod merge_tests;
#[cfg(all(test, feature = "import"))]
mod real_tests;
#[cfg(all(test, feature = "import"))]
mod tests;

/// The scopes, in the order in which they are placed.
pub static SCOPES: &[&Scope] = &[&head::HEAD, &bias::BIAS, &lora::LORA, &full::FULL, &sparse::SPARSE];

/// A choice of what is trained: a row of [`SCOPES`].
pub struct Scope {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for tables.
    pub doc: &'static str,
    /// Whether a trained value can change what comes before the last layer: features stored before are then stale.
    pub changes_features: bool,
    place: fn(&mut Placing<'_>) -> Result<(), ScopeError>,
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The scope of that name.
pub fn find(name: &str) -> Option<&'static Scope> {
    SCOPES.iter().copied().find(|s| s.name == name)
}

/// What is to be trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Names in [`SCOPES`].
    pub scopes: Vec<String>,
    /// The value the loss is of; what it does not depend on is never trained.
    pub output: String,
    /// Outputs of a new head in place of the last layer; `None` leaves it.
    pub new_head: Option<usize>,
    /// `r` of low-rank paths.
    pub rank: usize,
    /// Their scale times `r`.
    pub alpha: f32,
    /// Glob patterns (`*`, `?`) of weights, or of the nodes that use them, that get a low-rank path; none for all.
    pub targets: Vec<String>,
    /// Whether `A` of low-rank paths stays as it was seeded.
    pub freeze_a: bool,
    /// What `A` is drawn by.
    pub seed: u64,
    /// What `sparse` trains; empty for everything it could.
    pub tensors: Vec<String>,
}

impl Spec {
    /// Whether features made before the spec's leaves are trained are stale afterwards.
    pub fn changes_features(&self) -> bool {
        self.scopes.iter().any(|s| find(s).is_none_or(|s| s.changes_features))
    }
}

/// Why a scope cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// There is no such scope.
    #[error("there is no scope `{name}`; there are {}", SCOPES.iter().map(|s| s.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A value that is not in the graph.
    #[error("the graph has no value `{name}` to train for; its outputs are {}", has.join(", "))]
    NoOutput {
        /// The value.
        name: String,
        /// The outputs.
        has: Vec<String>,
    },
    /// The last layer cannot be found.
    #[error("scope `head`: {why}; `--scope lora` and `--scope bias` need no last layer")]
    NoHead {
        /// What is in its place.
        why: String,
    },
    /// Nothing is there to train.
    #[error("scope `{scope}` finds nothing to train before `{output}`: {why}")]
    Nothing {
        /// The scope.
        scope: &'static str,
        /// The value the loss is of.
        output: String,
        /// What it looks for.
        why: &'static str,
    },
    /// A pattern in vain.
    #[error("target `{pattern}` matches no layer that can get a low-rank path; there are {}", shortened(has))]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The layers there are.
        has: Vec<String>,
    },
    /// Weights that are not floats.
    #[error(
        "scope `full` trains f32 weights, and {count} of this model are quantised, `{example}` among them; \
         `--scope lora` trains beside them, or tune the f32 model and `hone quantize` it afterwards"
    )]
    Quantised {
        /// How many.
        count: usize,
        /// One of them.
        example: String,
    },
    /// A setting out of range.
    #[error("{what} is {found}; it must be {expected}")]
    Setting {
        /// Which.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Trained values that are not those of this spec on this graph.
    #[error("the trained tensor `{name}` {why}; the adapter belongs to another model")]
    Misfit {
        /// The tensor.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl Classified for ScopeError {
    fn class(&self) -> Class {
        match self {
            ScopeError::Unknown { .. } | ScopeError::Pattern { .. } | ScopeError::Setting { .. } => Class::Usage,
            ScopeError::Misfit { .. } => Class::Invalid,
            _ => Class::Unsupported,
        }
    }
}

fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// A graph with trainable leaves.
#[derive(Clone, Debug)]
pub struct Scoped {
    /// The graph.
    pub graph: Graph,
    /// Constants that are trained, by name.
    pub trainable: Vec<String>,
    /// Those of them that weight decay should leave alone: biases and scales of normalisation.
    pub undecayed: Vec<String>,
    /// The low-rank paths, one for each weight.
    pub sides: Vec<Side>,
    /// Differences of whole weights beside them.
    pub deltas: Vec<Delta>,
}

/// A difference that is trained beside a weight of whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// What the layer is called.
    pub layer: String,
    /// The constant that holds the difference.
    pub delta: String,
    /// The node whose product it stands beside, by name.
    pub node: String,
}

impl Scoped {
    /// The graph with trained values in place of the ones the leaves begin with.
    ///
    /// # Errors
    /// [`ScopeError::Misfit`] when the tensors are not those of the trainable leaves.
    pub fn with(&self, tensors: &[(String, Tensor)]) -> Result<Graph, ScopeError> {
        let misfit = |name: &str, why: String| ScopeError::Misfit { name: name.to_string(), why };
        let mut graph = self.graph.clone();
        let mut left: BTreeSet<&str> = self.trainable.iter().map(String::as_str).collect();
        for (name, t) in tensors {
            if !left.remove(name.as_str()) {
                return Err(misfit(name, "is none of the model's trainable leaves".into()));
            }
            let value = graph.values.iter_mut().find(|v| v.name == *name);
            let Some(before) = value.and_then(|v| v.constant.as_mut()) else {
                return Err(misfit(name, "is no constant of the model".into()));
            };
            if before.dtype() != t.dtype() || before.shape() != t.shape() {
                let (d, s) = (before.dtype(), before.shape());
                return Err(misfit(name, format!("is {} {:?}, expected {d} {s:?}", t.dtype(), t.shape())));
            }
            *before = Arc::new(t.clone());
        }
        match left.first() {
            Some(name) => Err(misfit(name, "is missing".into())),
            None => Ok(graph),
        }
    }
}

/// Places the scopes of `spec` in `graph`, whose operators are of version `opset` of the standard set.
///
/// # Errors
/// [`ScopeError`].
pub fn place(graph: &Graph, opset: i64, spec: &Spec) -> Result<Scoped, ScopeError> {
    for name in &spec.scopes {
        find(name).ok_or_else(|| ScopeError::Unknown { name: name.clone() })?;
    }
    let setting = |what, found: String, expected| Err(ScopeError::Setting { what, found, expected });
    if spec.scopes.is_empty() {
        return setting("the scope", "empty".into(), "one or several of head, bias, lora, full, sparse");
    }
    if spec.rank == 0 {
        return setting("the rank", "0".into(), "1 or more");
    }
    if !spec.alpha.is_finite() || spec.alpha <= 0.0 {
        return setting("alpha", spec.alpha.to_string(), "a number above 0");
    }
    let output = graph.values.iter().position(|v| v.name == spec.output).ok_or_else(|| ScopeError::NoOutput {
        name: spec.output.clone(),
        has: graph.outputs.iter().map(|&v| graph.values[v].name.clone()).collect(),
    })?;
    let live = live(graph, output);
    let mut placing = Placing {
        spec,
        output,
        live,
        edit: Edit::new(graph.clone(), opset),
        trainable: Vec::new(),
        undecayed: BTreeSet::new(),
        headed: BTreeSet::new(),
        sides: Vec::new(),
        deltas: Vec::new(),
    };
    if spec.new_head.is_some() && !spec.scopes.iter().any(|s| s == head::HEAD.name) {
        return setting("the scope", spec.scopes.join(","), "with `head`, because the head is new");
    }
    for scope in SCOPES {
        if spec.scopes.iter().any(|s| s == scope.name) {
            let before = placing.trainable.len();
            (scope.place)(&mut placing)?;
            if placing.trainable.len() == before && before == 0 {
                let (output, why) = (spec.output.clone(), scope.doc);
                return Err(ScopeError::Nothing { scope: scope.name, output, why });
            }
        }
    }
    let Placing { edit, trainable, undecayed, sides, deltas, .. } = placing;
    let undecayed = trainable.iter().filter(|n| undecayed.contains(*n)).cloned().collect();
    Ok(Scoped { graph: edit.finish(), trainable, undecayed, sides, deltas })
}

/// What follows the name of a leaf in the name of what it is rounded to.
const HALF: &str = "/half";

/// Whether the output depends on each node.
fn live(graph: &Graph, output: ValueId) -> Vec<bool> {
    let mut needed = vec![false; graph.values.len()];
    needed[output] = true;
    let mut live = vec![false; graph.nodes.len()];
    for (i, n) in graph.nodes.iter().enumerate().rev() {
        live[i] = n.outputs.iter().flatten().any(|&v| needed[v]);
        if live[i] {
            n.inputs.iter().flatten().for_each(|&v| needed[v] = true);
        }
    }
    live
}

/// A graph while scopes are placed in it.
struct Placing<'a> {
    spec: &'a Spec,
    output: ValueId,
    /// Of the nodes the graph had at first.
    live: Vec<bool>,
    edit: Edit,
    trainable: Vec<String>,
    undecayed: BTreeSet<String>,
    /// Nodes of a head that is trained itself.
    headed: BTreeSet<usize>,
    sides: Vec<Side>,
    deltas: Vec<Delta>,
}

impl Placing<'_> {
    /// Nodes of the graph as it was that the output depends on.
    fn nodes(&self) -> Vec<usize> {
        (0..self.live.len()).filter(|&i| self.live[i]).collect()
    }

    /// Makes a constant trainable.
    fn train(&mut self, v: ValueId, decays: bool) {
        let v = self.master(v);
        let name = self.edit.name(v);
        if !decays {
            self.undecayed.insert(name.clone());
        }
        if !self.trainable.contains(&name) {
            self.trainable.push(name);
        }
    }

    /// The constant, or of half floats one in `f32` under its name, which is rounded where they were read: steps smaller
    /// than what 16 bits tell apart add up.
    fn master(&mut self, v: ValueId) -> ValueId {
        let half = self.edit.graph.values[v].constant.clone().filter(|t| t.dtype().is_half());
        let Some(t) = half else { return v };
        let wide: Vec<f32> = t.data().to_f64().into_iter().map(|v| v as f32).collect();
        let name = self.edit.name(v);
        let master = self.edit.constant(&format!("{name}{HALF}"), crate::quant::edit::tensor(t.shape(), wide));
        let values = &mut self.edit.graph.values;
        values[v].constant = None;
        values[v].declared = None;
        values[v].name = std::mem::replace(&mut values[master].name, name.clone());
        self.cast(&format!("{name}{HALF}"), master, v, t.dtype());
        master
    }

    /// A node that gives `x` as `y` of that type.
    fn cast(&mut self, name: &str, x: ValueId, y: ValueId, dtype: DType) {
        let to = Attr::Int(i64::from(dtype.onnx()));
        self.edit.node(("", "Cast"), name, &[Some(x)], &[y], [("to", to)]);
    }

    /// `x` of that type, made by a node where it is half floats.
    fn wide(&mut self, x: ValueId, half: Option<DType>) -> ValueId {
        if half.is_none() {
            return x;
        }
        let name = format!("{}/wide", self.edit.name(x));
        let y = self.edit.value(&name);
        self.cast(&name, x, y, DType::F32);
        y
    }

    /// A value of `f32` that becomes `y` of the graph's type, `y` itself where that is no half float.
    fn narrowed(&mut self, y: ValueId, half: Option<DType>) -> ValueId {
        let Some(half) = half else { return y };
        let name = format!("{}/wide", self.edit.name(y));
        let x = self.edit.value(&name);
        self.cast(&name, x, y, half);
        x
    }

    /// A new trainable constant.
    fn leaf(&mut self, name: &str, shape: &[usize], values: Vec<f32>, decays: bool) -> ValueId {
        let v = self.edit.constant(name, crate::quant::edit::tensor(shape, values));
        self.train(v, decays);
        v
    }

    /// Adds `side` to result `slot` of a node, under the result's name.
    fn beside(&mut self, node: usize, slot: usize, side: ValueId) {
        let Some(y) = self.edit.graph.nodes[node].outputs[slot] else { return };
        let name = self.edit.name(y);
        let alone = self.edit.value(&format!("{name}/frozen"));
        self.edit.graph.nodes[node].outputs[slot] = Some(alone);
        self.edit.node(("", "Add"), &format!("{name}/side"), &[Some(alone), Some(side)], &[y], []);
    }
}

/// `n` numbers uniform in -`bound`..`bound`, by a seed and a name (splitmix64 of Steele, Lea and Flood, 2014).
fn uniform(seed: u64, name: &str, n: usize, bound: f32) -> Vec<f32> {
    // FNV-1a: names must not be told apart by their order in the graph.
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            // 24 bits: as many as an f32 holds.
            let unit = (z >> 40) as f32 / (1u32 << 24) as f32;
            bound * (2.0 * unit - 1.0)
        })
        .collect()
}

/// Names and values of the trainable leaves as they are in a graph.
pub fn values(graph: &Graph, names: &[String]) -> Vec<(String, Tensor)> {
    let by_name: BTreeMap<&str, &Arc<Tensor>> =
        graph.values.iter().filter_map(|v| Some((v.name.as_str(), v.constant.as_ref()?))).collect();
    names.iter().filter_map(|n| Some((n.clone(), Tensor::clone(by_name.get(n.as_str())?)))).collect()
}

/// Whether a constant can be trained: half floats by a master in `f32`.
fn is_float(t: &Tensor) -> bool {
    (t.dtype() == DType::F32 || t.dtype().is_half()) && !t.is_empty()
}
