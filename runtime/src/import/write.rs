//! [`Graph`] → ONNX bytes: the way back, after a pass has rewritten what [`super::from_onnx`] read.
//!
//! What the graph does not hold is taken from the file it came from, byte for byte: producer, metadata, documentation,
//! the declared types of inputs, outputs and of every value that kept its name. Nodes and tensors are written from the
//! graph. Functions of the file are not, because they were expanded; `Identity` nodes and `Constant` nodes have become
//! names and initializers.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::build::canonical;
use crate::class::{Class, Classified};
use crate::graph::{Dim, Graph, Node, Op, ValueId};
use crate::ops::{Attr, Kind};
use crate::tensor::{DType, Tensor};

/// First version of the format in which an initializer need not be an input too.
const LEAST_IR: u64 = 4;
/// Longest message protobuf can hold.
const LONGEST: usize = i32::MAX as usize;

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file the graph came from is not one.
    #[error("the model to rewrite is no ONNX file: {why}")]
    NotOnnx {
        /// What is wrong.
        why: &'static str,
    },
    /// A node whose operator is not ours has no form but the importer's.
    #[error("node `{node}` ({op}) is run by the importer's own code and cannot be written back")]
    Opaque {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// The result does not fit into one file.
    #[error("the model takes {bytes} bytes; an ONNX file without external data holds 2 GiB")]
    TooLarge {
        /// Bytes it would have.
        bytes: usize,
    },
}

impl Classified for WriteError {
    fn class(&self) -> Class {
        match self {
            WriteError::NotOnnx { .. } => Class::Invalid,
            WriteError::Opaque { .. } => Class::Unsupported,
            WriteError::TooLarge { .. } => Class::Failed,
        }
    }
}

/// The bytes of an ONNX file that computes `graph`, which was imported from the ONNX file `source` and then changed.
///
/// # Errors
/// [`WriteError`] for an operator that is not ours, and for more than 2 GiB.
pub fn to_onnx(graph: &Graph, source: &[u8]) -> Result<Vec<u8>, WriteError> {
    let damaged = || WriteError::NotOnnx { why: "its protobuf is damaged" };
    let model = fields(source).ok_or_else(damaged)?;
    let old = model.iter().find(|f| f.number == 7).ok_or(WriteError::NotOnnx { why: "there is no graph in it" })?;
    let old_graph = fields(old.bytes).ok_or_else(damaged)?;

    let mut opsets: BTreeMap<String, i64> = BTreeMap::new();
    for f in model.iter().filter(|f| f.number == 8) {
        let entry = fields(f.bytes).ok_or_else(damaged)?;
        let domain = entry.iter().find(|f| f.number == 1).map_or("", |f| std::str::from_utf8(f.bytes).unwrap_or(""));
        let version = entry.iter().find(|f| f.number == 2).map_or(0, |f| f.varint);
        opsets.insert(canonical(domain).to_string(), version as i64);
    }
    used_opsets(graph, &mut opsets);

    let written = write_graph(graph, Some(&old_graph), None)?;
    if written.len() > LONGEST {
        return Err(WriteError::TooLarge { bytes: written.len() });
    }
    let mut out = Message::default();
    for f in &model {
        match f.number {
            1 => out.int(1, f.varint.max(LEAST_IR)),
            7 => out.bytes(7, &written),
            // Operator sets follow; functions were expanded; training information names tensors that may be gone.
            8 | 20 | 25 => {}
            _ => out.raw(f),
        }
    }
    for (domain, version) in opsets {
        let mut entry = Message::default();
        entry.text(1, &domain);
        entry.int(2, version as u64);
        out.bytes(8, &entry.0);
    }
    Ok(out.0)
}

/// Versions of the domains the nodes use, where the file states none.
fn used_opsets(graph: &Graph, into: &mut BTreeMap<String, i64>) {
    for n in &graph.nodes {
        if let Op::Own(def, attrs) = &n.op {
            into.entry(def.domain.to_string()).or_insert(attrs.opset.max(1));
        }
        n.op.graphs().for_each(|g| used_opsets(g, into));
    }
}

/// Names that nested graphs can take from around them.
struct Scope<'a> {
    names: Vec<String>,
    declared: BTreeMap<&'a str, Option<&'a Arc<Tensor>>>,
    around: Option<&'a Scope<'a>>,
}

impl Scope<'_> {
    /// What the name means around a graph: `None` when nothing, else the constant, if it is one.
    fn find(&self, name: &str) -> Option<Option<&Arc<Tensor>>> {
        self.declared.get(name).copied().or_else(|| self.around?.find(name))
    }
}

/// `GraphProto`. `old` are the fields of the graph this one came from; `inside` is what is around a nested graph with the
/// values of it that the node lists after its own operands.
fn write_graph(
    graph: &Graph,
    old: Option<&[Field<'_>]>,
    inside: Option<(&Scope<'_>, &[Option<ValueId>])>,
) -> Result<Vec<u8>, WriteError> {
    let captured = inside.map_or(&[][..], |(_, c)| c);
    let formal = graph.inputs.len() - captured.len().min(graph.inputs.len());
    let mut names: Vec<String> = graph.values.iter().map(|v| v.name.clone()).collect();
    let used: BTreeSet<ValueId> =
        graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).chain(&graph.outputs).copied().collect();
    let mut shared: BTreeSet<ValueId> = BTreeSet::new();
    if let Some((around, captured)) = inside {
        for (&v, from) in graph.inputs[formal..].iter().zip(captured) {
            if let Some(from) = from {
                names[v].clone_from(&around.names[*from]);
            }
        }
        for (v, value) in graph.values.iter().enumerate() {
            let Some(t) = value.constant.as_ref() else { continue };
            match around.find(&value.name) {
                // The same constant of a graph around this one, under the same name: it is still visible here.
                Some(Some(outer)) if Arc::ptr_eq(outer, t) => drop(shared.insert(v)),
                // A name must not mean two things.
                Some(_) => {
                    names[v] = (0..)
                        .map(|i| format!("{}_{i}", value.name))
                        .find(|n| around.find(n).is_none())
                        .unwrap_or_default()
                }
                None => {}
            }
        }
    }
    let constants: Vec<ValueId> = (0..graph.values.len())
        .filter(|v| graph.values[*v].constant.is_some() && used.contains(v) && !shared.contains(v))
        .collect();
    let made = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).copied();
    let mut scope = Scope { names: Vec::new(), declared: BTreeMap::new(), around: inside.map(|(s, _)| s) };
    for v in constants.iter().copied().chain(made.clone()).chain(graph.inputs[..formal].iter().copied()) {
        scope.declared.insert(&graph.values[v].name, graph.values[v].constant.as_ref());
    }
    scope.names = names;
    let names = &scope.names;

    let mut out = Message::default();
    for n in &graph.nodes {
        out.bytes(1, &write_node(n, &scope)?);
    }
    for &v in &constants {
        if let Some(t) = &graph.values[v].constant {
            out.bytes(5, &write_tensor(&names[v], t));
        }
    }
    // Name, documentation and metadata stay. Sparse initializers are dense now, annotations may name what is gone.
    let kept = |number: u64| matches!(number, 2 | 10 | 16);
    old.into_iter().flatten().filter(|f| kept(f.number)).for_each(|f| out.raw(f));
    if old.is_none_or(|o| o.iter().all(|f| f.number != 2)) {
        out.text(2, "graph");
    }
    let infos = |number: u64| -> HashMap<&str, &Field<'_>> {
        let named = |f| Some((name_of(f)?, f));
        old.into_iter().flatten().filter(|f| f.number == number).filter_map(named).collect()
    };
    for (number, values) in [(11, &graph.inputs[..formal]), (12, &graph.outputs[..])] {
        let stated = infos(number);
        for &v in values {
            match stated.get(names[v].as_str()).filter(|f| !contradicts(f, graph, v)) {
                Some(f) => out.raw(f),
                None => out.bytes(number, &write_value(&names[v], graph, v)),
            }
        }
    }
    let stated = infos(13);
    for v in made {
        if let Some(f) = stated.get(names[v].as_str()).filter(|f| !contradicts(f, graph, v)) {
            out.raw(f);
        }
    }
    Ok(out.0)
}

/// Whether a `ValueInfoProto` states another shape than the graph declares of the value now: another rank, or a length that
/// is another number.
fn contradicts(f: &Field<'_>, graph: &Graph, v: ValueId) -> bool {
    let Some(now) = graph.values[v].declared.as_ref().and_then(|d| d.shape.as_ref()) else { return false };
    let inner = |bytes, number: u64| fields(bytes)?.into_iter().find(|f| f.number == number).map(|f| f.bytes);
    // `type`, `tensor_type`, `shape`; then a `dim` each.
    let shape = inner(f.bytes, 2).and_then(|t| inner(t, 1)).and_then(|t| inner(t, 2)).and_then(fields);
    let Some(shape) = shape else { return false };
    let dims: Vec<_> = shape.iter().filter(|f| f.number == 1).map(|f| fields(f.bytes).unwrap_or_default()).collect();
    let length = |dim: &[Field<'_>]| dim.iter().find(|f| f.number == 1).map(|f| f.varint);
    dims.len() != now.len()
        || dims.iter().zip(now).any(|(was, now)| match (length(was), now) {
            (Some(was), Dim::Fixed(now)) => was != *now as u64,
            _ => false,
        })
}

/// The name in a `ValueInfoProto`.
fn name_of<'a>(f: &Field<'a>) -> Option<&'a str> {
    std::str::from_utf8(fields(f.bytes)?.iter().find(|f| f.number == 1)?.bytes).ok()
}

fn write_node(n: &Node, scope: &Scope<'_>) -> Result<Vec<u8>, WriteError> {
    let Op::Own(def, attrs) = &n.op else {
        return Err(WriteError::Opaque { node: n.name.clone(), op: n.op.name().to_string() });
    };
    // Values that nested graphs take from around them are operands in the graph, but not in the file.
    let captures = if def.kind == Kind::Control { attrs.int("captures", 0).unwrap_or(0) as usize } else { 0 };
    let own = n.inputs.len() - captures.min(n.inputs.len());
    let name = |v: &Option<ValueId>| v.map_or("", |v| scope.names[v].as_str());
    let mut out = Message::default();
    n.inputs[..own].iter().for_each(|v| out.text(1, name(v)));
    n.outputs.iter().for_each(|v| out.text(2, name(v)));
    out.text(3, &n.name);
    out.text(4, def.name);
    for (key, attr) in &attrs.map {
        if def.kind == Kind::Control && key == "captures" {
            continue;
        }
        out.bytes(5, &write_attribute(key, attr, scope, &n.inputs[own..])?);
    }
    if !def.domain.is_empty() {
        out.text(7, def.domain);
    }
    Ok(out.0)
}

fn write_attribute(
    name: &str,
    attr: &Attr,
    scope: &Scope<'_>,
    captured: &[Option<ValueId>],
) -> Result<Vec<u8>, WriteError> {
    let mut out = Message::default();
    out.text(1, name);
    let kind = match attr {
        Attr::Float(v) => {
            out.fixed(2, *v);
            1
        }
        Attr::Int(v) => {
            out.int(3, *v as u64);
            2
        }
        Attr::Str(s) => {
            out.text(4, s);
            3
        }
        Attr::Tensor(t) => {
            out.bytes(5, &write_tensor("", t));
            4
        }
        Attr::Graph(g) => {
            out.bytes(6, &write_graph(g, None, Some((scope, captured)))?);
            5
        }
        Attr::Floats(v) => {
            v.iter().for_each(|v| out.fixed(7, *v));
            6
        }
        Attr::Ints(v) => {
            v.iter().for_each(|v| out.int(8, *v as u64));
            7
        }
        Attr::Strs(v) => {
            v.iter().for_each(|s| out.text(9, s));
            8
        }
    };
    out.int(20, kind);
    Ok(out.0)
}

/// `TensorProto` with its elements as little-endian bytes.
fn write_tensor(name: &str, t: &Tensor) -> Vec<u8> {
    let mut out = Message::default();
    t.shape().iter().for_each(|&d| out.int(1, d as u64));
    out.int(2, t.dtype().onnx() as u64);
    if !name.is_empty() {
        out.text(8, name);
    }
    let bits = t.dtype().bits();
    if bits < 8 {
        let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
        let pack = |codes: &[u8]| codes.iter().rev().fold(0u8, |byte, &c| byte << bits | c & mask);
        let packed: Vec<u8> = t.data().as_bytes().chunks(per_byte).map(pack).collect();
        out.bytes(9, &packed);
    } else {
        out.bytes(9, &little_endian(t));
    }
    out.0
}

/// The elements as a file has them.
fn little_endian(t: &Tensor) -> std::borrow::Cow<'_, [u8]> {
    let bytes = t.data().as_bytes();
    if cfg!(target_endian = "little") || t.dtype().size_bytes() == 1 {
        return bytes.into();
    }
    bytes.chunks_exact(t.dtype().size_bytes()).flat_map(|e| e.iter().rev().copied()).collect::<Vec<u8>>().into()
}

/// `ValueInfoProto` of a value as far as it is declared.
fn write_value(name: &str, graph: &Graph, v: ValueId) -> Vec<u8> {
    let value = &graph.values[v];
    let constant =
        value.constant.as_ref().map(|t| (t.dtype(), Some(t.shape().iter().map(|&d| Dim::Fixed(d)).collect())));
    let declared: Option<(DType, Option<Vec<Dim>>)> =
        value.declared.as_ref().map(|d| (d.dtype, d.shape.clone())).or(constant);
    let mut out = Message::default();
    out.text(1, name);
    let Some((dtype, shape)) = declared else { return out.0 };
    let mut tensor = Message::default();
    tensor.int(1, dtype.onnx() as u64);
    if let Some(dims) = shape {
        let mut all = Message::default();
        for d in dims {
            let mut one = Message::default();
            match d {
                Dim::Fixed(n) => one.int(1, n as u64),
                Dim::Symbol(s) => one.text(2, &s),
                Dim::Any => {}
            }
            all.bytes(1, &one.0);
        }
        tensor.bytes(2, &all.0);
    }
    let mut kind = Message::default();
    kind.bytes(1, &tensor.0);
    out.bytes(2, &kind.0);
    out.0
}

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    fn int(&mut self, number: u64, v: u64) {
        self.varint(number << 3);
        self.varint(v);
    }

    fn fixed(&mut self, number: u64, v: f32) {
        self.varint(number << 3 | 5);
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    fn bytes(&mut self, number: u64, v: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend_from_slice(v);
    }

    fn text(&mut self, number: u64, v: &str) {
        self.bytes(number, v.as_bytes());
    }

    fn raw(&mut self, f: &Field<'_>) {
        self.0.extend_from_slice(f.whole);
    }
}

/// One field of a message as it stands in the bytes.
struct Field<'a> {
    number: u64,
    /// With its key.
    whole: &'a [u8],
    /// Of a length-delimited field; else empty.
    bytes: &'a [u8],
    /// Of a number; else 0.
    varint: u64,
}

/// The fields of a message; `None` when the bytes are none.
fn fields(mut bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let start = bytes;
        let key = super::wire::varint(&mut bytes)?;
        let mut field = Field { number: key >> 3, whole: &[], bytes: &[], varint: 0 };
        let skip = match key & 7 {
            0 => {
                field.varint = super::wire::varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => {
                let length = usize::try_from(super::wire::varint(&mut bytes)?).ok()?;
                field.bytes = bytes.get(..length)?;
                length
            }
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(skip..)?;
        field.whole = &start[..start.len() - bytes.len()];
        out.push(field);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{Limits, from_onnx};
    use crate::plan::{RunOptions, Runner};

    /// Every file of the fuzzers' corpus, by name.
    fn corpus() -> Vec<(String, Vec<u8>)> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
            .into_iter()
            .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap()))
            .collect()
    }

    /// Values that fit most graphs: small, positive, different.
    fn inputs(graph: &Graph) -> Option<Vec<Tensor>> {
        let shapes = graph.input_shapes(&BTreeMap::new()).ok()?;
        let fill = |(_, dtype, shape): (String, DType, Vec<usize>)| {
            let n = crate::tensor::checked_len(&shape)?;
            let v: Vec<f64> =
                (0..n).map(|i| if dtype.is_float() { 0.25 + (i % 7) as f64 } else { (i % 2) as f64 }).collect();
            Tensor::from_f64(dtype, &shape, &v).ok()
        };
        shapes.into_iter().map(fill).collect()
    }

    #[test]
    fn what_was_written_reads_back_as_the_same_graph_and_computes_the_same() {
        let mut compared = 0;
        for (name, bytes) in corpus() {
            let (graph, info) = from_onnx(&bytes, &Limits::default()).unwrap();
            let written = match to_onnx(&graph, &bytes) {
                Err(WriteError::Opaque { .. }) => continue,
                other => other.unwrap_or_else(|e| panic!("{name}: {e}")),
            };
            let (again, info2) = from_onnx(&written, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(graph.census(), again.census(), "{name}");
            assert_eq!((info.opset, info.producer), (info2.opset, info2.producer), "{name}");
            assert_eq!(graph.input_names(), again.input_names(), "{name}");
            // Writing what was written changes nothing any more.
            assert_eq!(to_onnx(&again, &written).unwrap(), written, "{name}");
            let random = graph.nodes.iter().any(|n| matches!(&n.op, Op::Own(def, _) if def.kind == Kind::Random));
            let Some(given) = inputs(&graph).filter(|_| !random) else { continue };
            let given: Vec<&Tensor> = given.iter().collect();
            let run = |g: Graph| Runner::new(Arc::new(g), RunOptions::default()).run(&given);
            let Ok(want) = run(graph) else { continue };
            let found = run(again).unwrap_or_else(|e| panic!("{name}: {e}"));
            // Compared by bytes: NaN is equal to itself here.
            let bytes =
                |v: &[Tensor]| v.iter().map(|t| (t.shape().to_vec(), t.data().as_bytes().to_vec())).collect::<Vec<_>>();
            assert_eq!(bytes(&want), bytes(&found), "{name}");
            compared += 1;
        }
        assert!(compared > 40, "only {compared} files were compared");
    }

    #[test]
    fn metadata_and_declared_types_stay_and_small_integers_are_packed() {
        let mut file = Message::default();
        file.int(1, 3);
        file.text(2, "me");
        let mut entry = Message::default();
        entry.text(1, "key");
        entry.text(2, "value");
        file.bytes(14, &entry.0);
        let mut opset = Message::default();
        opset.int(2, 21);
        file.bytes(8, &opset.0);
        let mut node = Message::default();
        node.text(1, "w");
        node.text(1, "s");
        node.text(2, "y");
        node.text(4, "DequantizeLinear");
        let codes = Tensor::new(&[3], crate::tensor::Data::Small(DType::I4, vec![0xff, 7, 0xf8])).unwrap();
        let mut g = Message::default();
        g.bytes(1, &node.0);
        g.text(2, "named");
        g.bytes(5, &write_tensor("w", &codes));
        g.bytes(5, &write_tensor("s", &Tensor::f32(&[], vec![0.5]).unwrap()));
        let mut y = Message::default();
        y.text(1, "y");
        y.text(3, "documented");
        g.bytes(12, &y.0);
        file.bytes(7, &g.0);
        let (graph, _) = from_onnx(&file.0, &Limits::default()).unwrap();
        let written = to_onnx(&graph, &file.0).unwrap();
        for text in ["me", "key", "value", "named", "documented"] {
            assert!(written.windows(text.len()).any(|w| w == text.as_bytes()), "{text}");
        }
        assert_eq!(fields(&written).unwrap()[0].varint, LEAST_IR);
        let (again, _) = from_onnx(&written, &Limits::default()).unwrap();
        let w = again.values.iter().find(|v| v.name == "w").unwrap();
        assert_eq!(w.constant.as_deref(), Some(&codes));
        assert!(matches!(to_onnx(&graph, b"buy milk"), Err(WriteError::NotOnnx { .. })));
    }
}
