//! The protobuf, before anything interprets it: sizes, shapes, names, lengths. Everything hostile is refused here by name.
use tract_onnx::pb;

use super::proto::is_external;
use super::{ImportError, ModelInfo, build, wire};
use crate::tensor::{DType, MOST_DIMENSIONS};
use std::collections::{BTreeMap, BTreeSet};

/// What a model may at most be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub file_bytes: usize,
    /// Nodes, over all nested graphs.
    pub nodes: usize,
    /// Depth of nested graphs.
    pub depth: usize,
    /// Elements of one tensor.
    pub elements: u64,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Bytes of one value while the model runs, and of all values of a graph that are alive together.
    pub run_bytes: usize,
    /// Turns of all `Loop`s of one run together: one that never ends must end.
    pub turns: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            file_bytes: 2 << 30,
            nodes: 200_000,
            depth: 16,
            elements: 1 << 32,
            name_bytes: 4096,
            run_bytes: if usize::BITS > 32 { (1u64 << 32) as usize } else { 1 << 29 },
            turns: 1 << 20,
        }
    }
}

fn refused(what: &'static str, name: &str, why: impl Into<String>) -> ImportError {
    let shown: String = name.chars().take(80).collect();
    ImportError::Refused { what, name: shown, why: why.into() }
}

/// Decodes and checks.
pub(super) fn decode(bytes: &[u8], limits: &Limits, external: bool) -> Result<pb::ModelProto, ImportError> {
    if bytes.is_empty() {
        return Err(ImportError::NotOnnx { why: "the file is empty".into() });
    }
    if bytes.len() > limits.file_bytes {
        return Err(refused("file", "model", format!("{} bytes, at most {} are read", bytes.len(), limits.file_bytes)));
    }
    wire::check(bytes, limits)?;
    let proto = <pb::ModelProto as prost::Message>::decode(bytes)
        .map_err(|e| ImportError::NotOnnx { why: format!("{:#}", e) })?;
    let Some(graph) = &proto.graph else {
        return Err(ImportError::NotOnnx { why: "there is no graph in it".into() });
    };
    if proto.opset_import.is_empty() {
        return Err(ImportError::NotOnnx { why: "it names no operator set".into() });
    }
    let mut check = Check::new(limits, external);
    check.graph(graph, 0)?;
    for f in &proto.functions {
        let name = f.name.as_deref().unwrap_or("");
        for text in f.input.iter().chain(&f.output).map(String::as_str).chain([name, f.domain.as_deref().unwrap_or("")])
        {
            check.name("function", text)?;
        }
        for n in &f.node {
            check.node(n, 0)?;
        }
    }
    Ok(proto)
}

/// Checks a model whose functions were expanded: what stood in several functions stands in one graph now.
///
/// # Errors
/// [`ImportError::Refused`].
pub(super) fn check_expanded(proto: &pb::ModelProto, limits: &Limits, external: bool) -> Result<(), ImportError> {
    proto.graph.as_ref().map_or(Ok(()), |g| Check::new(limits, external).graph(g, 0))
}

/// Opset, producer, operator counts.
pub(super) fn info(proto: &pb::ModelProto) -> ModelInfo {
    fn count(g: &pb::GraphProto, into: &mut BTreeMap<String, usize>) {
        for n in &g.node {
            *into.entry(spelled(&n.domain, &n.op_type)).or_insert(0) += 1;
            n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|g| count(g, into));
        }
    }
    let mut ops = BTreeMap::new();
    if let Some(g) = &proto.graph {
        count(g, &mut ops);
    }
    let opset =
        proto.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx").map_or(0, |o| o.version);
    let producer = format!("{} {}", proto.producer_name, proto.producer_version).trim().to_string();
    ModelInfo { opset, producer, ops: ops.into_iter().collect() }
}

/// `Name` in the standard domain, `domain.Name` in others.
pub(super) fn spelled(domain: &str, op_type: &str) -> String {
    if domain.is_empty() || domain == "ai.onnx" { op_type.to_string() } else { format!("{domain}.{op_type}") }
}

/// One walk over everything the file holds.
struct Check<'a> {
    limits: &'a Limits,
    /// Whether tensors may be kept in other files.
    external: bool,
    nodes: usize,
    /// Elements that sparse tensors have when they are made dense, and that they list.
    dense: u64,
    listed: u64,
}

impl<'a> Check<'a> {
    fn new(limits: &'a Limits, external: bool) -> Check<'a> {
        Check { limits, external, nodes: 0, dense: 0, listed: 0 }
    }

    fn graph(&mut self, g: &pb::GraphProto, depth: usize) -> Result<(), ImportError> {
        if depth > self.limits.depth {
            return Err(refused("graph", &g.name, format!("graphs are nested more than {} deep", self.limits.depth)));
        }
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
        for s in &g.sparse_initializer {
            self.sparse("initializer", s)?;
        }
        for t in &g.initializer {
            self.tensor("initializer", t)?;
        }
        for t in g.initializer.iter().chain(sparse) {
            if !known.insert(&t.name) {
                return Err(refused("initializer", &t.name, "is defined twice"));
            }
        }
        for i in &g.input {
            self.value(i)?;
            // An input of an old file may carry the name of its initializer; two inputs may not share one.
            if !known.insert(&i.name) && !g.initializer.iter().any(|t| t.name == i.name) {
                return Err(refused("input", &i.name, "is defined twice"));
            }
        }
        for n in &g.node {
            for name in n.output.iter().filter(|o| !o.is_empty()) {
                if !known.insert(name) {
                    return Err(refused("value", name, "is made twice"));
                }
            }
            self.node(n, depth)?;
        }
        check_asked_shapes(g, self.limits)?;
        for o in &g.output {
            self.value(o)?;
            if depth == 0 && !known.contains(o.name.as_str()) {
                return Err(refused("output", &o.name, "is made by no node"));
            }
        }
        cycle(g)
    }

    fn node(&mut self, n: &pb::NodeProto, depth: usize) -> Result<(), ImportError> {
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(refused("node", &n.name, format!("is one of more than {} nodes", self.limits.nodes)));
        }
        for name in n.input.iter().chain(&n.output) {
            self.name("value", name)?;
        }
        for name in [&n.name, &n.op_type, &n.domain] {
            self.name("node", name)?;
        }
        for a in &n.attribute {
            self.name("attribute", &a.name)?;
            self.name("attribute", &a.ref_attr_name)?;
            if let Some(t) = &a.t {
                self.tensor("attribute", t)?;
            }
            a.tensors.iter().try_for_each(|t| self.tensor("attribute", t))?;
            a.sparse_tensor.iter().try_for_each(|s| self.sparse("attribute", s))?;
            for sub in a.g.iter().chain(&a.graphs) {
                self.graph(sub, depth + 1)?;
            }
        }
        Ok(())
    }

    fn name(&self, what: &'static str, name: &str) -> Result<(), ImportError> {
        if name.len() > self.limits.name_bytes {
            return Err(refused(what, name, format!("its name is longer than {} bytes", self.limits.name_bytes)));
        }
        Ok(())
    }

    fn value(&self, v: &pb::ValueInfoProto) -> Result<(), ImportError> {
        self.name("value", &v.name)?;
        let Some(pb::type_proto::Value::TensorType(t)) = v.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
            return Ok(());
        };
        let Some(shape) = &t.shape else { return Ok(()) };
        if shape.dim.len() > MOST_DIMENSIONS {
            let why = format!("has {} dimensions, more than {MOST_DIMENSIONS}", shape.dim.len());
            return Err(refused("value", &v.name, why));
        }
        let mut elements = 1u64;
        for d in &shape.dim {
            if let Some(pb::tensor_shape_proto::dimension::Value::DimValue(n)) = d.value {
                // -1 is an old spelling of "any".
                elements = elements
                    .checked_mul(u64::try_from(n.max(1)).unwrap_or(1))
                    .filter(|&e| e <= self.limits.elements)
                    .ok_or_else(|| refused("value", &v.name, format!("more than {} elements", self.limits.elements)))?;
            }
        }
        Ok(())
    }

    /// Elements of a shape, when they are few enough.
    fn elements(&self, what: &'static str, name: &str, dims: &[i64]) -> Result<u64, ImportError> {
        if dims.len() > MOST_DIMENSIONS {
            return Err(refused(what, name, format!("has {} dimensions, more than {MOST_DIMENSIONS}", dims.len())));
        }
        dims.iter().try_fold(1u64, |n, &d| {
            let d = u64::try_from(d).map_err(|_| refused(what, name, format!("has the dimension {d}")))?;
            n.checked_mul(d).filter(|&e| e <= self.limits.elements).ok_or_else(|| {
                refused(what, name, format!("shape {dims:?} has more than {} elements", self.limits.elements))
            })
        })
    }

    fn sparse(&mut self, what: &'static str, s: &pb::SparseTensorProto) -> Result<(), ImportError> {
        let name = s.values.as_ref().map_or("", |v| &v.name);
        self.dense = self.dense.saturating_add(self.elements(what, name, &s.dims)?);
        let values = s.values.as_ref().map_or(Ok(0), |v| self.elements(what, name, &v.dims))?;
        self.listed = self.listed.saturating_add(values);
        // It is made dense: its zeros cost memory that the file does not have.
        let most = LARGEST_SPARSE.max(self.listed.saturating_mul(SPARSE_GROWTH));
        if self.dense > most {
            let why = format!("sparse shape {:?}: more than {most} elements for {} values", s.dims, self.listed);
            return Err(refused(what, name, why));
        }
        s.values.iter().chain(&s.indices).try_for_each(|t| self.tensor(what, t))
    }

    fn tensor(&self, what: &'static str, t: &pb::TensorProto) -> Result<(), ImportError> {
        self.name(what, &t.name)?;
        let elements = self.elements(what, &t.name, &t.dims)?;
        if is_external(t) {
            if self.external {
                return Ok(());
            }
            let file = t.external_data.iter().find(|e| e.key == "location").map_or("?", |e| e.value.as_str());
            let why = format!("its data is in another file (`{file}`), which is not opened: a bundle can list it");
            return Err(refused(what, &t.name, why));
        }
        let Some(bits) = DType::from_onnx(i64::from(t.data_type)).map(|d| d.bits() as u64) else { return Ok(()) };
        if !t.raw_data.is_empty() {
            let needed = (elements * bits).div_ceil(8);
            if needed != t.raw_data.len() as u64 {
                let why = format!("shape {:?} needs {needed} bytes, {} are there", t.dims, t.raw_data.len());
                return Err(refused(what, &t.name, why));
            }
            return Ok(());
        }
        let typed = [
            t.float_data.len(),
            t.int32_data.len(),
            t.int64_data.len(),
            t.double_data.len(),
            t.uint64_data.len(),
            t.string_data.len(),
        ];
        let given = typed.into_iter().max().unwrap_or(0) as u64;
        // Types of fewer than eight bits come packed, a byte in each integer.
        let needed = if bits < 8 { (elements * bits).div_ceil(8) } else { elements };
        if given != needed {
            let why = format!("shape {:?} needs {needed} elements, {given} are there", t.dims);
            return Err(refused(what, &t.name, why));
        }
        Ok(())
    }
}

/// Most elements of all sparse tensors of a file together; more where they list a good part of them.
const LARGEST_SPARSE: u64 = 1 << 20;
const SPARSE_GROWTH: u64 = 16;

/// Operators that make a tensor of a shape given as data, and which input that is.
const SHAPE_OPERANDS: &[(&str, usize)] = &[("Expand", 1), ("Reshape", 1), ("Tile", 1), ("ConstantOfShape", 0)];

/// Refuses constant shapes nobody can hold. They are told here by the name of the node, before anything is computed.
fn check_asked_shapes(g: &pb::GraphProto, limits: &Limits) -> Result<(), ImportError> {
    let made = g.node.iter().filter(|n| n.op_type == "Constant").filter_map(|n| {
        let t = n.attribute.iter().find_map(|a| a.t.as_ref())?;
        Some((n.output.first()?.as_str(), t))
    });
    let constants: BTreeMap<&str, &pb::TensorProto> =
        g.initializer.iter().map(|t| (t.name.as_str(), t)).chain(made).collect();
    for n in &g.node {
        let Some((_, operand)) = SHAPE_OPERANDS.iter().find(|(op, _)| *op == n.op_type) else { continue };
        let Some(shape) = n.input.get(*operand).and_then(|name| constants.get(name.as_str())) else { continue };
        let mut elements = 1u64;
        for d in int64s(shape) {
            // 0 and -1 have meanings of their own in Reshape.
            let length = u64::try_from(d).unwrap_or(1).max(1);
            elements = elements.saturating_mul(length);
            if d > i64::from(i32::MAX) || elements > limits.elements {
                let why =
                    format!("asks for a tensor of shape {:?}, more than {} elements", int64s(shape), limits.elements);
                return Err(refused("node", &n.name, why));
            }
        }
    }
    Ok(())
}

/// The elements of an int64 tensor; empty for others.
fn int64s(t: &pb::TensorProto) -> Vec<i64> {
    if t.data_type != pb::tensor_proto::DataType::Int64 as i32 {
        return Vec::new();
    }
    if t.raw_data.is_empty() {
        return t.int64_data.clone();
    }
    t.raw_data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

/// Refuses a graph whose nodes feed each other in a circle, be it through what their nested graphs read.
fn cycle(g: &pb::GraphProto) -> Result<(), ImportError> {
    let made: BTreeMap<&str, usize> =
        g.node.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
    let mut waiting: Vec<usize> = vec![0; g.node.len()];
    let mut feeds: Vec<Vec<usize>> = vec![Vec::new(); g.node.len()];
    for (i, n) in g.node.iter().enumerate() {
        let mut reads: BTreeSet<&str> = n.input.iter().map(String::as_str).collect();
        build::nested(n).for_each(|g| build::free_names(g, &mut reads));
        for input in reads {
            if let Some(&from) = made.get(input).filter(|_| !input.is_empty()) {
                waiting[i] += 1;
                feeds[from].push(i);
            }
        }
    }
    let mut ready: Vec<usize> = (0..g.node.len()).filter(|&i| waiting[i] == 0).collect();
    let mut done = 0;
    while let Some(i) = ready.pop() {
        done += 1;
        for &next in &feeds[i] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.push(next);
            }
        }
    }
    match waiting.iter().position(|&w| w > 0) {
        Some(i) if done < g.node.len() => {
            Err(refused("node", &g.node[i].name, "is part of a circle: its input depends on its output"))
        }
        _ => Ok(()),
    }
}
