//! Concrete input shapes → the shape of everything else, as far as it can be known without running.
//!
//! Operators whose operands are all constant are computed here, which is where shape arithmetic disappears; an `If`
//! whose condition is known becomes the branch it takes. What remains is in three parts: *static* nodes, whose results
//! have known shapes; *probes*, whose results have shapes that depend on the data and are known once they ran; and the
//! *rest*, everything that reads a probe's result, planned again when the probes have run.
use std::sync::Arc;

use super::PlanError;
use super::control;
use super::runner::{RunOptions, Runner};
use crate::graph::{Graph, Node, Op, OpaqueKernel, ValueId};
use crate::ops::{Attrs, Fact, Kind, OpDef, OpError};
use crate::tensor::{Tensor, checked_len};

/// What is known of a value.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Its type and shape, and its value when that is constant.
    Static(Fact),
    /// Made by a probe: a tensor of whatever shape comes out.
    Probed,
    /// Made in the rest.
    Later,
}

/// How a node runs.
pub(super) enum How {
    Own(&'static OpDef, Arc<Attrs>),
    Opaque(Box<dyn OpaqueKernel>),
    Control(&'static OpDef, Arc<Attrs>),
}

/// A node over the values of [`Special`].
pub(super) struct Planned {
    pub(super) node: Node,
    pub(super) how: How,
    /// Its results are [`Known::Probed`].
    pub(super) probe: bool,
}

/// A graph at concrete input shapes.
pub(super) struct Special {
    pub(super) names: Vec<String>,
    pub(super) known: Vec<Known>,
    pub(super) nodes: Vec<Planned>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) rest: Vec<Node>,
    /// Node that makes each value, while it can still be folded away.
    pub(super) producers: Vec<Option<usize>>,
    /// Most bytes of one value.
    bytes: usize,
    /// Bytes that results computed here may still take.
    foldable: usize,
}

/// Operands of more bytes than this are computed with by kernels: whole weight matrices would take a reference function
/// seconds.
const FOLDED_BY_REFERENCE_BYTES: usize = 1 << 16;

/// Results larger than this are not computed beforehand unless their operands are large too.
const LARGEST_FOLDED_BYTES: usize = 16 << 20;
/// Bytes of all results computed beforehand, unless the graph's own constants are larger: what is folded is kept, so a
/// chain of large constants takes more memory than running it does.
const ALL_FOLDED_BYTES: usize = 64 << 20;
/// How many times the bytes of the graph's own constants may be computed beforehand: int8 weights behind `Cast` and `Mul`
/// (a common weight-only form) become four times as many bytes twice over, of which the plan keeps the second.
const FOLDED_TO_CONSTANTS: usize = 10;
/// Results this small are shape arithmetic and always computed.
const SHAPE_BYTES: usize = 1024;

/// Bytes of a value as it is held; `None` when no memory could.
pub(super) fn bytes_of(f: &Fact) -> Option<usize> {
    checked_len(&f.shape)?.checked_mul(f.dtype.size_bytes())
}

/// The results of a node on tensors, by its kernel where it has one.
fn by_kernel(node: &Node, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, PlanError> {
    let mut graph = Graph::default();
    let ids =
        |graph: &mut Graph, n: usize| (0..n).map(|i| graph.add_value(&i.to_string(), None, None)).collect::<Vec<_>>();
    let read = ids(&mut graph, inputs.len());
    graph.outputs = ids(&mut graph, node.outputs.len());
    let given: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
    graph.inputs = read.iter().zip(inputs).filter(|(_, t)| t.is_some()).map(|(&v, _)| v).collect();
    let inputs = read.iter().zip(inputs).map(|(&v, t)| t.map(|_| v)).collect();
    let outputs = graph.outputs.iter().map(|&v| Some(v)).collect();
    graph.nodes.push(Node { name: node.name.clone(), op: node.op.clone(), inputs, outputs });
    Runner::new(Arc::new(graph), RunOptions::default()).run(&given)
}

impl Special {
    /// Specialises `graph` for inputs of those types and shapes; no value may take more than `bytes`.
    ///
    /// # Errors
    /// [`PlanError`] naming the node that refuses its operands.
    pub(super) fn new(graph: &Graph, inputs: &[Fact], bytes: usize) -> Result<Special, PlanError> {
        let mut s = Special {
            names: Vec::new(),
            known: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            rest: Vec::new(),
            producers: Vec::new(),
            bytes,
            foldable: ALL_FOLDED_BYTES.max(graph.constants_size().1.saturating_mul(FOLDED_TO_CONSTANTS)),
        };
        let mut given = Vec::with_capacity(inputs.len());
        for (&v, fact) in graph.inputs.iter().zip(inputs) {
            given.push(s.add(&graph.values[v].name, Known::Static(fact.clone()))?);
        }
        s.inputs = given.clone();
        s.outputs = s.visit(graph, &given)?;
        Ok(s)
    }

    /// The outputs as facts, when nothing is left to run first.
    pub(super) fn output_facts(&self) -> Option<Vec<Fact>> {
        self.outputs
            .iter()
            .map(|&v| match &self.known[v] {
                Known::Static(f) => Some(f.clone()),
                _ => None,
            })
            .collect()
    }

    fn add(&mut self, name: &str, known: Known) -> Result<ValueId, PlanError> {
        if let Known::Static(f) = &known
            && f.value.is_none()
            && bytes_of(f).is_none_or(|bytes| bytes > self.bytes)
        {
            return Err(PlanError::TooLarge { value: name.to_string(), shape: f.shape.clone(), limit: self.bytes });
        }
        self.names.push(name.to_string());
        self.known.push(known);
        self.producers.push(None);
        Ok(self.names.len() - 1)
    }

    /// Takes in the nodes of `graph`, whose inputs are the values `given`; gives its outputs.
    fn visit(&mut self, graph: &Graph, given: &[ValueId]) -> Result<Vec<ValueId>, PlanError> {
        let mut here: Vec<Option<ValueId>> = vec![None; graph.values.len()];
        for (&v, &g) in graph.inputs.iter().zip(given) {
            here[v] = Some(g);
        }
        for (v, value) in graph.values.iter().enumerate() {
            if let Some(t) = &value.constant {
                here[v] = Some(self.add(&value.name, Known::Static(Fact::constant(t.clone())))?);
            }
        }
        for node in &graph.nodes {
            let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(|v| v.and_then(|v| here[v])).collect();
            let outputs = self.take(graph, node, inputs)?;
            for (&v, made) in node.outputs.iter().zip(outputs) {
                if let (Some(v), Some(made)) = (v, made) {
                    here[v] = Some(made);
                }
            }
        }
        graph
            .outputs
            .iter()
            .map(|&v| here[v].ok_or_else(|| PlanError::Unmade { value: graph.values[v].name.clone() }))
            .collect()
    }

    /// Takes in one node; gives its outputs, as many as it lists.
    fn take(
        &mut self,
        graph: &Graph,
        node: &Node,
        inputs: Vec<Option<ValueId>>,
    ) -> Result<Vec<Option<ValueId>>, PlanError> {
        let fail = |source: OpError| PlanError::Op { node: node.name.clone(), op: node.op.name().to_string(), source };
        let names: Vec<Option<&str>> = node.outputs.iter().map(|v| v.map(|v| graph.values[v].name.as_str())).collect();
        let mut facts: Vec<Option<Fact>> = Vec::with_capacity(inputs.len());
        for &v in &inputs {
            match v.map(|v| &self.known[v]) {
                None => facts.push(None),
                Some(Known::Static(f)) => facts.push(Some(f.clone())),
                Some(_) => return self.later(node, inputs, &names),
            }
        }
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let (how, shapes) = match &node.op {
            Op::Opaque(o) => {
                let kernel = o.bind(&refs).map_err(|why| PlanError::Opaque {
                    node: node.name.clone(),
                    op: o.name().to_string(),
                    why,
                })?;
                let shapes = kernel.outputs().map(|l| l.into_iter().map(|(t, s)| Fact::new(t, s)).collect::<Vec<_>>());
                (How::Opaque(kernel), shapes)
            }
            Op::Own(def, attrs) if def.kind == Kind::Control => {
                if let Some((branch, captured)) = control::decided(def, attrs, &refs).map_err(fail)? {
                    let given: Vec<ValueId> = inputs[captured..].iter().copied().flatten().collect();
                    return Ok(self.visit(&branch, &given)?.into_iter().map(Some).collect());
                }
                let shapes = control::shapes(def, attrs, &refs, self.bytes)?;
                (How::Control(def, attrs.clone()), shapes)
            }
            Op::Own(def, attrs) => {
                if def.kind == Kind::Pure
                    && let Some(made) = self.fold(def, attrs, node, &inputs, &names)?
                {
                    return Ok(made);
                }
                let shapes = (def.shape)(attrs, &refs).map_err(fail)?;
                (How::Own(def, attrs.clone()), shapes)
            }
        };
        let probe = shapes.is_none();
        let mut made = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            let Some(name) = name else {
                made.push(None);
                continue;
            };
            let known = match &shapes {
                None => Known::Probed,
                Some(list) => match list.get(i) {
                    Some(f) => Known::Static(f.clone()),
                    None => return Err(fail(OpError::unsupported(format!("output {i} is asked for")))),
                },
            };
            let v = self.add(name, known)?;
            self.producers[v] = Some(self.nodes.len());
            made.push(Some(v));
        }
        let node = Node { name: node.name.clone(), op: node.op.clone(), inputs, outputs: made.clone() };
        self.nodes.push(Planned { node, how, probe });
        Ok(made)
    }

    fn later(
        &mut self,
        node: &Node,
        inputs: Vec<Option<ValueId>>,
        names: &[Option<&str>],
    ) -> Result<Vec<Option<ValueId>>, PlanError> {
        let made =
            names.iter().map(|n| n.map(|n| self.add(n, Known::Later)).transpose()).collect::<Result<Vec<_>, _>>()?;
        self.rest.push(Node { name: node.name.clone(), op: node.op.clone(), inputs, outputs: made.clone() });
        Ok(made)
    }

    /// The value of `v` when it is constant, or a kept operator's result on constants, which is then computed.
    fn value_of(&mut self, v: ValueId) -> Result<Option<Arc<Tensor>>, PlanError> {
        let Known::Static(fact) = &self.known[v] else { return Ok(None) };
        if let Some(value) = &fact.value {
            return Ok(Some(value.clone()));
        }
        let Some(Planned { node, how: How::Own(def, attrs), .. }) = self.producers[v].map(|n| &self.nodes[n]) else {
            return Ok(None);
        };
        if def.kind != Kind::Kept {
            return Ok(None);
        }
        let held: Option<Vec<Option<Arc<Tensor>>>> = node
            .inputs
            .iter()
            .map(|i| match i.map(|i| &self.known[i]) {
                None => Some(None),
                Some(Known::Static(f)) => f.value.clone().map(Some),
                Some(_) => None,
            })
            .collect();
        let Some(held) = held else { return Ok(None) };
        let refs: Vec<Option<&Tensor>> = held.iter().map(|t| t.as_deref()).collect();
        let out = (def.reference)(attrs, &refs).map_err(|source| PlanError::Op {
            node: node.name.clone(),
            op: def.name.to_string(),
            source,
        })?;
        Ok(out.into_iter().next().map(Arc::new))
    }

    /// Computes a node whose operands are all constant.
    fn fold(
        &mut self,
        def: &OpDef,
        attrs: &Attrs,
        node: &Node,
        inputs: &[Option<ValueId>],
        names: &[Option<&str>],
    ) -> Result<Option<Vec<Option<ValueId>>>, PlanError> {
        // Nothing is computed before it is clear that everything can be.
        let foldable = |s: &Special, v: ValueId| match &s.known[v] {
            Known::Static(f) if f.value.is_some() => true,
            Known::Static(_) => s.producers[v].is_some_and(|n| {
                let p = &s.nodes[n];
                matches!(&p.how, How::Own(d, _) if d.kind == Kind::Kept)
                    && p.node
                        .inputs
                        .iter()
                        .flatten()
                        .all(|&i| matches!(&s.known[i], Known::Static(f) if f.value.is_some()))
            }),
            _ => false,
        };
        let shape_only = matches!(def.name, "Shape" | "Size") && def.domain.is_empty();
        if !shape_only && !inputs.iter().flatten().all(|&v| foldable(self, v)) {
            return Ok(None);
        }
        let fail = |source: OpError| PlanError::Op { node: node.name.clone(), op: def.name.to_string(), source };
        let mut held = Vec::with_capacity(inputs.len());
        for &v in inputs {
            held.push(match v {
                None => None,
                // An operator that asks only for the shape gets a constant of that shape from its rule.
                Some(_) if shape_only => None,
                Some(v) => self.value_of(v)?,
            });
        }
        let facts: Vec<Option<Fact>> = inputs
            .iter()
            .zip(&held)
            .map(|(v, t)| match (t, v.map(|v| &self.known[v])) {
                (Some(t), _) => Some(Fact::constant(t.clone())),
                (None, Some(Known::Static(f))) => Some(f.clone()),
                _ => None,
            })
            .collect();
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let shapes = (def.shape)(attrs, &refs).map_err(fail)?;
        let out: Vec<Arc<Tensor>> = if shape_only {
            match shapes.and_then(|l| l.into_iter().map(|f| f.value).collect::<Option<Vec<_>>>()) {
                Some(values) => values,
                None => return Ok(None),
            }
        } else {
            let bytes_in: usize = held.iter().flatten().map(|t| t.data().as_bytes().len()).sum();
            let most = LARGEST_FOLDED_BYTES.max(bytes_in.saturating_mul(4));
            match &shapes {
                Some(list) => {
                    let bytes = list.iter().try_fold(0usize, |n, f| n.checked_add(bytes_of(f)?));
                    let Some(bytes) = bytes.filter(|&b| b <= most && (b <= self.foldable || b <= SHAPE_BYTES)) else {
                        return Ok(None);
                    };
                    self.foldable = self.foldable.saturating_sub(bytes);
                }
                // Nobody knows what comes out, only that it is about what goes in.
                None if bytes_in > LARGEST_FOLDED_BYTES.min(self.foldable) => return Ok(None),
                None => self.foldable = self.foldable.saturating_sub(bytes_in),
            }
            let refs: Vec<Option<&Tensor>> = held.iter().map(|t| t.as_deref()).collect();
            if bytes_in < FOLDED_BY_REFERENCE_BYTES {
                (def.reference)(attrs, &refs).map_err(fail)?.into_iter().map(Arc::new).collect()
            } else {
                by_kernel(node, &refs)?.into_iter().map(Arc::new).collect()
            }
        };
        let mut made = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            made.push(match (name, out.get(i)) {
                (None, _) => None,
                (Some(name), Some(t)) => Some(self.add(name, Known::Static(Fact::constant(t.clone())))?),
                (Some(_), None) => return Err(fail(OpError::unsupported(format!("output {i} is asked for")))),
            });
        }
        Ok(Some(made))
    }

    /// The rest as a graph of its own, and the values of this one that it reads, in the order of its inputs.
    pub(super) fn split_rest(&self) -> (Graph, Vec<ValueId>) {
        let mut graph = Graph::default();
        let mut there: Vec<Option<ValueId>> = vec![None; self.names.len()];
        let mut feeds = Vec::new();
        for node in &self.rest {
            for &v in node.outputs.iter().flatten() {
                there[v] = Some(graph.add_value(&self.names[v], None, None));
            }
            for &v in node.inputs.iter().flatten() {
                if there[v].is_some() {
                    continue;
                }
                let constant = match &self.known[v] {
                    Known::Static(f) => f.value.clone(),
                    _ => None,
                };
                let fed = constant.is_none();
                let id = graph.add_value(&self.names[v], None, constant);
                there[v] = Some(id);
                if fed {
                    graph.inputs.push(id);
                    feeds.push(v);
                }
            }
        }
        let map = |l: &[Option<ValueId>]| l.iter().map(|v| v.and_then(|v| there[v])).collect();
        for node in &self.rest {
            graph.nodes.push(Node {
                name: node.name.clone(),
                op: node.op.clone(),
                inputs: map(&node.inputs),
                outputs: map(&node.outputs),
            });
        }
        graph.outputs =
            self.outputs.iter().filter(|&&v| matches!(self.known[v], Known::Later)).filter_map(|&v| there[v]).collect();
        (graph, feeds)
    }
}
