//! The checked protobuf → [`Graph`]: names resolved through nested scopes, constants and identities taken out, nodes in
//! an order in which they can run.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tract_onnx::pb;

use super::proto::{self, External};
use super::{ImportError, fallback, preflight};
use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::{self, Attrs, Kind};
use crate::plan::with_captures;
use crate::tensor::Tensor;

/// Version of a domain when the file does not state one: the first, as ONNX has it for its own.
const UNSTATED: i64 = 1;

/// What the whole file shares.
pub(super) struct Context<'a> {
    pub(super) opsets: HashMap<String, i64>,
    pub(super) external: External<'a>,
}

impl<'a> Context<'a> {
    pub(super) fn new(model: &pb::ModelProto, external: External<'a>) -> Context<'a> {
        let opsets = model.opset_import.iter().map(|o| (canonical(&o.domain).to_string(), o.version)).collect();
        Context { opsets, external }
    }

    fn opset(&self, domain: &str) -> i64 {
        self.opsets.get(domain).copied().unwrap_or(UNSTATED)
    }
}

/// The standard domain has two spellings.
pub(super) fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// A graph under construction and the names it can see.
struct Scope<'a> {
    graph: Graph,
    names: HashMap<String, ValueId>,
    /// Names that are there but cannot be held, and why.
    unheld: HashMap<String, String>,
    around: Option<&'a Scope<'a>>,
    /// Names taken from around this graph, in the order of the inputs they became.
    captured: Vec<String>,
}

/// The initializers of a graph, in its order.
type Made = Vec<Result<Tensor, String>>;

/// The graph of the model, whose own initializers are given.
pub(super) fn model(model: &pb::ModelProto, tensors: Made, context: &Context<'_>) -> Result<Graph, ImportError> {
    let proto = model.graph.as_ref().ok_or_else(|| ImportError::NotOnnx { why: "there is no graph in it".into() })?;
    Ok(graph(proto, tensors, context, None)?.0)
}

fn refused(what: &'static str, name: &str, why: impl Into<String>) -> ImportError {
    ImportError::Refused { what, name: name.to_string(), why: why.into() }
}

/// One graph, whose initializers are given; the names it takes from around it are its last inputs, in the order given back.
fn graph<'s>(
    proto: &pb::GraphProto,
    tensors: Made,
    context: &Context<'_>,
    around: Option<&'s Scope<'s>>,
) -> Result<(Graph, Vec<String>), ImportError> {
    let mut scope =
        Scope { graph: Graph::default(), names: HashMap::new(), unheld: HashMap::new(), around, captured: Vec::new() };
    let wanted: BTreeSet<&str> = proto.output.iter().map(|o| o.name.as_str()).collect();
    let sparse = proto
        .sparse_initializer
        .iter()
        .map(|s| (s.values.as_ref().map_or("", |v| v.name.as_str()), proto::sparse(s, &context.external)));
    let dense = proto.initializer.iter().map(|t| t.name.as_str()).zip(tensors);
    for (name, tensor) in dense.chain(sparse) {
        match tensor {
            Ok(t) => {
                let v = scope.graph.add_value(name, None, Some(Arc::new(t)));
                scope.names.insert(name.to_string(), v);
            }
            // Data that should be there and is not is an error at once; a type hone does not hold only when it is used.
            Err(why) if why.contains("does not hold") => {
                scope.unheld.insert(name.to_string(), why);
            }
            Err(why) => return Err(refused("initializer", name, why)),
        }
    }
    for i in &proto.input {
        // In old files every initializer is an input too.
        if scope.names.contains_key(&i.name) {
            continue;
        }
        let declared = proto::declared(i).map_err(|why| ImportError::Type { name: i.name.clone(), why })?;
        let v = scope.graph.add_value(&i.name, declared, None);
        scope.graph.inputs.push(v);
        scope.names.insert(i.name.clone(), v);
    }
    for &i in &order(proto) {
        scope.take(&proto.node[i], context, &wanted)?;
    }
    for o in &proto.output {
        let v = scope.resolve(&o.name, "output", &o.name)?;
        let declared = proto::declared(o).map_err(|why| ImportError::Type { name: o.name.clone(), why })?;
        let value = &mut scope.graph.values[v];
        if value.declared.is_none() {
            value.declared = declared;
        }
        scope.graph.outputs.push(v);
    }
    Ok((scope.graph, scope.captured))
}

/// Names a graph reads and does not make.
pub(super) fn free_names<'a>(proto: &'a pb::GraphProto, into: &mut BTreeSet<&'a str>) {
    let mut inner = BTreeSet::new();
    for n in &proto.node {
        inner.extend(n.input.iter().map(String::as_str));
        nested(n).for_each(|g| free_names(g, &mut inner));
    }
    inner.extend(proto.output.iter().map(|o| o.name.as_str()));
    let made = proto.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let given = proto.input.iter().map(|i| i.name.as_str()).chain(proto.initializer.iter().map(|t| t.name.as_str()));
    let sparse = proto.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name.as_str());
    for name in made.chain(given).chain(sparse) {
        inner.remove(name);
    }
    into.extend(inner);
}

/// The graphs among a node's attributes.
pub(super) fn nested(n: &pb::NodeProto) -> impl Iterator<Item = &pb::GraphProto> {
    n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// The nodes in an order in which they can run: the file's, unless it is not one.
fn order(proto: &pb::GraphProto) -> Vec<usize> {
    let makers: HashMap<&str, usize> = proto
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), i)))
        .collect();
    let mut sorted = Vec::with_capacity(proto.node.len());
    let mut state = vec![0u8; proto.node.len()];
    let needs = |i: usize| {
        let n = &proto.node[i];
        let mut names: BTreeSet<&str> = n.input.iter().map(String::as_str).collect();
        nested(n).for_each(|g| free_names(g, &mut names));
        names.into_iter().filter_map(|name| makers.get(name).copied()).collect::<Vec<_>>()
    };
    // Depth first without recursion: a chain may be as long as the file. Circles were refused by preflight.
    for start in 0..proto.node.len() {
        let mut stack = vec![start];
        while let Some(&i) = stack.last() {
            match state[i] {
                0 => {
                    state[i] = 1;
                    stack.extend(needs(i).into_iter().filter(|&d| state[d] == 0));
                }
                1 => {
                    state[i] = 2;
                    sorted.push(i);
                    stack.pop();
                }
                _ => {
                    stack.pop();
                }
            }
        }
    }
    sorted
}

impl Scope<'_> {
    /// The value of a name, taken from around this graph when it is not here.
    fn resolve(&mut self, name: &str, what: &'static str, reader: &str) -> Result<ValueId, ImportError> {
        if let Some(&v) = self.names.get(name) {
            return Ok(v);
        }
        if let Some(why) = self.unheld.get(name) {
            return Err(ImportError::Type { name: name.to_string(), why: why.clone() });
        }
        let v = match self.constant_around(name) {
            Some(t) => self.graph.add_value(name, None, Some(t)),
            None if self.is_around(name) => {
                let v = self.graph.add_value(name, None, None);
                self.graph.inputs.push(v);
                self.captured.push(name.to_string());
                v
            }
            None if what == "output" => return Err(refused("output", name, "is made by no node")),
            None => return Err(refused("node", reader, format!("reads `{name}`, which is made by no node"))),
        };
        self.names.insert(name.to_string(), v);
        Ok(v)
    }

    fn is_around(&self, name: &str) -> bool {
        self.around.is_some_and(|s| s.names.contains_key(name) || s.is_around(name))
    }

    /// A constant of a graph around this one: a copy of the reference, so that it stays a constant here.
    fn constant_around(&self, name: &str) -> Option<Arc<crate::tensor::Tensor>> {
        let around = self.around?;
        match around.names.get(name) {
            Some(&v) => around.graph.values[v].constant.clone(),
            None => around.constant_around(name),
        }
    }

    /// Takes in one node.
    fn take(&mut self, n: &pb::NodeProto, context: &Context<'_>, wanted: &BTreeSet<&str>) -> Result<(), ImportError> {
        let domain = canonical(&n.domain);
        let label = if n.name.is_empty() { n.output.first().map_or("", String::as_str) } else { &n.name };
        let fail = |why: String| refused("node", label, why);
        let single = n.output.len() == 1 && !wanted.contains(n.output[0].as_str());
        if domain.is_empty() && n.op_type == "Identity" && single && n.input.len() == 1 {
            let v = self.resolve(&n.input[0], "node", label)?;
            self.names.insert(n.output[0].clone(), v);
            return Ok(());
        }
        let mut graphs = BTreeMap::new();
        let mut captured: Vec<String> = Vec::new();
        let mut built = Vec::new();
        for a in &n.attribute {
            let Some(g) = &a.g else { continue };
            let tensors = g.initializer.iter().map(|t| proto::tensor(t, &context.external)).collect();
            let (inner, names) = graph(g, tensors, context, Some(self))?;
            for name in &names {
                if !captured.contains(name) {
                    captured.push(name.clone());
                }
            }
            built.push((a.name.as_str(), inner, names));
        }
        let (mut operands, mut results) = (n.input.clone(), n.output.clone());
        for (name, mut inner, names) in built {
            if domain.is_empty() && n.op_type == "Loop" {
                self.settle_carried(&mut inner, &mut operands, &mut results, wanted);
            }
            graphs.insert(name, Arc::new(with_inputs(inner, &names, &captured)));
        }
        let mut attrs = Attrs { opset: context.opset(domain), outputs: results.len(), ..Attrs::default() };
        for a in &n.attribute {
            attrs.map.insert(a.name.clone(), proto::attribute(a, &context.external, &graphs).map_err(fail)?);
        }
        let mut inputs = Vec::with_capacity(n.input.len() + captured.len());
        for name in &operands {
            inputs.push(if name.is_empty() { None } else { Some(self.resolve(name, "node", label)?) });
        }
        for name in &captured {
            inputs.push(Some(self.resolve(name, "node", label)?));
        }
        let op = match ops::find(domain, &n.op_type) {
            Some(def) => {
                if domain.is_empty() && n.op_type == "Constant" && single {
                    let made = (def.reference)(&attrs, &[]).map_err(|e| fail(e.to_string()))?;
                    if let Some(t) = made.into_iter().next() {
                        let v = self.graph.add_value(&n.output[0], None, Some(Arc::new(t)));
                        self.names.insert(n.output[0].clone(), v);
                        return Ok(());
                    }
                }
                let attrs = if def.kind == Kind::Control { with_captures(attrs, captured.len()) } else { attrs };
                Op::Own(def, Arc::new(attrs))
            }
            None => {
                let missing = || fail(format!("no code for {}", preflight::spelled(&n.domain, &n.op_type)));
                Op::Opaque(fallback::operator(n, context).ok_or_else(missing)?)
            }
        };
        let mut outputs = Vec::with_capacity(results.len());
        for name in &results {
            outputs.push((!name.is_empty()).then(|| {
                let v = self.graph.add_value(name, None, None);
                self.names.insert(name.clone(), v);
                v
            }));
        }
        self.graph.nodes.push(Node { name: label.to_string(), op, inputs, outputs });
        Ok(())
    }
}

impl Scope<'_> {
    /// What a `Loop` carries along and its body hands on as it is, and is constant around it, is a constant of the body. Some exporters carry
    /// all weights so, which would be copied, turned and packed in every turn.
    fn settle_carried(
        &mut self,
        body: &mut Graph,
        operands: &mut Vec<String>,
        results: &mut Vec<String>,
        wanted: &BTreeSet<&str>,
    ) {
        let carried = operands.len().saturating_sub(2);
        if body.inputs.len() < 2 + carried || body.outputs.len() < 1 + carried || results.len() < carried {
            // Not a body of this loop; it is refused elsewhere.
            return;
        }
        for i in (0..carried).rev() {
            let inside = body.inputs[2 + i];
            let outside = self.names.get(&operands[2 + i]).copied();
            let constant = outside.and_then(|v| self.graph.values[v].constant.clone());
            let (Some(outside), Some(constant)) = (outside, constant) else { continue };
            if body.outputs[1 + i] != inside || wanted.contains(results[i].as_str()) {
                continue;
            }
            body.values[inside].constant = Some(constant);
            body.inputs.remove(2 + i);
            body.outputs.remove(1 + i);
            operands.remove(2 + i);
            let result = results.remove(i);
            if !result.is_empty() {
                self.names.insert(result, outside);
            }
        }
    }
}

/// `inner`, whose last inputs are `names`, with `all` as its last inputs instead.
fn with_inputs(mut inner: Graph, names: &[String], all: &[String]) -> Graph {
    let formal = inner.inputs.len() - names.len();
    let own: Vec<ValueId> = inner.inputs.drain(formal..).collect();
    for name in all {
        let v = match names.iter().position(|n| n == name) {
            Some(i) => own[i],
            None => inner.add_value(name, None, None),
        };
        inner.inputs.push(v);
    }
    inner
}

/// Operators nobody here can run, as `domain.Name`, each once.
pub(super) fn unsupported(g: &pb::GraphProto, into: &mut BTreeSet<String>) {
    for n in &g.node {
        if ops::find(canonical(&n.domain), &n.op_type).is_none() && !fallback::knows(n) {
            into.insert(preflight::spelled(&n.domain, &n.op_type));
        }
        nested(n).for_each(|g| unsupported(g, into));
    }
}
