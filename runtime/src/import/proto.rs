//! Tensors, types and attributes of the protobuf as ours.
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::dimension;

use super::build;
use crate::graph::{Declared, Dim};
use crate::ops::Attr;
use crate::tensor::{DType, Data, Tensor};

/// Gives the bytes of a file that holds external data, by the location the model states; the number is how many of them
/// the model needs, counted from the beginning.
pub type ExternalData<'a> = dyn Fn(&str, u64) -> Result<Arc<Vec<u8>>, String> + 'a;

/// The files of tensors, as far as they were read, while one model is imported.
pub(super) struct External<'a> {
    read: &'a ExternalData<'a>,
    /// Where the last tensor of each file ends.
    ends: HashMap<String, u64>,
    /// Each file that was read, and how many of its bytes tensors have taken.
    files: RefCell<HashMap<String, Taken>>,
}

type Taken = (Arc<Vec<u8>>, usize);

/// How many times over tensors may take the bytes of a file: tied weights share some, but a small file must not become
/// any amount of memory.
const MOST_SHARED: usize = 4;

impl<'a> External<'a> {
    /// For the tensors of `graph`; `read` is asked once for each file.
    pub(super) fn new(graph: Option<&pb::GraphProto>, read: &'a ExternalData<'a>) -> External<'a> {
        let mut ends = HashMap::new();
        graph.into_iter().for_each(|g| find_ends(g, &mut ends));
        External { read, ends, files: RefCell::default() }
    }

    /// The file, of which a tensor takes `len` bytes.
    fn take(&self, location: &str, len: usize) -> Result<Arc<Vec<u8>>, String> {
        let mut files = self.files.borrow_mut();
        if !files.contains_key(location) {
            files.insert(
                location.to_string(),
                ((self.read)(location, self.ends.get(location).copied().unwrap_or(0))?, 0),
            );
        }
        let Some((bytes, taken)) = files.get_mut(location) else { return Err(format!("`{location}` is not there")) };
        *taken = taken.saturating_add(len);
        if *taken > bytes.len().saturating_mul(MOST_SHARED) && *taken > len {
            return Err(format!(
                "tensors take the {} bytes of `{location}` more than {MOST_SHARED} times",
                bytes.len()
            ));
        }
        Ok(bytes.clone())
    }
}

/// The files that hold tensors of a graph and of those in it.
pub(super) fn locations(graph: Option<&pb::GraphProto>) -> BTreeSet<String> {
    let mut ends = HashMap::new();
    graph.into_iter().for_each(|g| find_ends(g, &mut ends));
    ends.into_keys().collect()
}

/// Where the last tensor of each file ends; what cannot be told is found out when the tensor is made.
fn find_ends(g: &pb::GraphProto, ends: &mut HashMap<String, u64>) {
    let mut note = |t: &pb::TensorProto| {
        let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let (Some(location), Ok(dtype), Ok((_, n))) = (entry("location"), dtype(t.data_type), shape_of(t)) else {
            return;
        };
        let offset = entry("offset").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let end = offset.saturating_add((n as u64).saturating_mul(dtype.bits() as u64).div_ceil(8));
        let known = ends.entry(location.to_string()).or_insert(0);
        *known = end.max(*known);
    };
    let attributes = || g.node.iter().flat_map(|n| &n.attribute);
    let sparse = g.sparse_initializer.iter().chain(attributes().filter_map(|a| a.sparse_tensor.as_ref()));
    let sparse = sparse.flat_map(|s| s.values.iter().chain(&s.indices));
    let dense = g.initializer.iter().chain(attributes().flat_map(|a| a.t.iter().chain(&a.tensors)));
    dense.chain(sparse).filter(|t| is_external(t)).for_each(&mut note);
    g.node.iter().flat_map(build::nested).for_each(|g| find_ends(g, ends));
}

/// Element types hone does not hold, by their ONNX number.
fn type_name(number: i32) -> String {
    match number {
        8 => "strings".into(),
        14 | 15 => "complex numbers".into(),
        n => format!("elements of ONNX data type {n}"),
    }
}

/// The type of a tensor's elements.
pub(super) fn dtype(number: i32) -> Result<DType, String> {
    DType::from_onnx(i64::from(number)).ok_or_else(|| format!("has {}, which hone does not hold", type_name(number)))
}

/// A declared type; `None` when the file says nothing.
pub(super) fn declared(v: &pb::ValueInfoProto) -> Result<Option<Declared>, String> {
    let Some(t) = v.r#type.as_ref().and_then(|t| t.value.as_ref()) else { return Ok(None) };
    // The reader knows tensors only: of a sequence, an optional or a map it says nothing.
    let pb::type_proto::Value::TensorType(t) = t;
    if t.elem_type == 0 {
        return Ok(None);
    }
    let dim = |d: &pb::tensor_shape_proto::Dimension| match &d.value {
        // -1 is an old spelling of "any".
        Some(dimension::Value::DimValue(n)) => usize::try_from(*n).map_or(Dim::Any, Dim::Fixed),
        Some(dimension::Value::DimParam(s)) if !s.is_empty() => Dim::Symbol(Arc::from(s.as_str())),
        _ => Dim::Any,
    };
    let shape = t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect());
    Ok(Some(Declared { dtype: dtype(t.elem_type)?, shape }))
}

/// Number of elements the shape of a checked tensor asks for.
fn shape_of(t: &pb::TensorProto) -> Result<(Vec<usize>, usize), String> {
    let shape: Vec<usize> = t
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("has the dimension {d}")))
        .collect::<Result<_, _>>()?;
    let n = crate::tensor::checked_len(&shape).ok_or_else(|| format!("shape {shape:?} is too large"))?;
    Ok((shape, n))
}

/// One code a byte from codes packed as ONNX packs types of fewer than eight bits: the first in the lowest bits.
fn unpack(dtype: DType, packed: &[u8], n: usize) -> Data {
    let bits = dtype.bits();
    let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
    let codes: Vec<u8> = (0..n).map(|i| packed[i / per_byte] >> (i % per_byte * bits) & mask).collect();
    if dtype.is_signed_integer() {
        Data::from_i128(dtype, &codes.iter().map(|&c| i128::from(c)).collect::<Vec<_>>())
    } else {
        Data::Small(dtype, codes)
    }
}

/// A tensor of the file, whose lengths preflight has checked.
pub(super) fn tensor(t: &pb::TensorProto, external: &External<'_>) -> Result<Tensor, String> {
    let dtype = dtype(t.data_type)?;
    let (shape, n) = shape_of(t)?;
    let bytes_needed = (n * dtype.bits()).div_ceil(8);
    let held;
    let raw: &[u8] = if is_external(t) {
        let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(v) => v.parse::<usize>().map(Some).map_err(|_| format!("its external {key} is `{v}`")),
        };
        let location = entry("location").ok_or("its data is in another file, which is not named")?;
        if location.is_empty() {
            return Err("its data is in another file, whose name is empty".into());
        }
        let from = number("offset")?.unwrap_or(0);
        let len = number("length")?.unwrap_or(bytes_needed);
        if len != bytes_needed {
            return Err(format!("shape {shape:?} needs {bytes_needed} bytes, {len} are stated in `{location}`"));
        }
        held = external.take(location, len)?;
        let end = from.checked_add(len).filter(|&e| e <= held.len());
        let end = end.ok_or_else(|| {
            format!("needs bytes {from}..{} of `{location}`, which has {}", from.saturating_add(len), held.len())
        })?;
        &held[from..end]
    } else {
        &t.raw_data
    };
    if !raw.is_empty() || n == 0 {
        if raw.len() != bytes_needed {
            return Err(format!("shape {shape:?} needs {bytes_needed} bytes, {} are there", raw.len()));
        }
        let data = if dtype.bits() < 8 { unpack(dtype, raw, n) } else { Data::from_le_bytes(dtype, raw) };
        return Tensor::new(&shape, data).map_err(|e| e.to_string());
    }
    let ints = &t.int32_data;
    let data = match dtype {
        DType::F32 => Data::F32(t.float_data.clone()),
        DType::F64 => Data::F64(t.double_data.clone()),
        DType::I64 => Data::I64(t.int64_data.clone()),
        DType::U64 => Data::U64(t.uint64_data.clone()),
        DType::U32 => Data::U32(t.uint64_data.iter().map(|&v| v as u32).collect()),
        // Half floats are their bits in an int32.
        DType::F16 => Data::F16(ints.iter().map(|&v| half::f16::from_bits(v as u16)).collect()),
        DType::BF16 => Data::BF16(ints.iter().map(|&v| half::bf16::from_bits(v as u16)).collect()),
        d if d.bits() < 8 => {
            let packed: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
            if packed.len() != bytes_needed {
                return Err(format!("shape {shape:?} needs {bytes_needed} packed bytes, {} are there", packed.len()));
            }
            unpack(d, &packed, n)
        }
        d if d.is_float() => Data::Small(d, ints.iter().map(|&v| v as u8).collect()),
        d => Data::from_i128(d, &ints.iter().map(|&v| i128::from(v)).collect::<Vec<_>>()),
    };
    Tensor::new(&shape, data).map_err(|e| e.to_string())
}

/// The same, leaving nothing of the elements where they were.
pub(super) fn taken(t: &mut pb::TensorProto, external: &External<'_>) -> Result<Tensor, String> {
    let made = tensor(t, external);
    t.raw_data = Vec::new();
    (t.float_data, t.double_data) = (Vec::new(), Vec::new());
    (t.int32_data, t.int64_data, t.uint64_data) = (Vec::new(), Vec::new(), Vec::new());
    made
}

/// Whether the elements are in another file.
pub(super) fn is_external(t: &pb::TensorProto) -> bool {
    t.data_location == Some(pb::tensor_proto::DataLocation::External as i32) || !t.external_data.is_empty()
}

/// A sparse tensor made dense.
pub(super) fn sparse(s: &pb::SparseTensorProto, external: &External<'_>) -> Result<Tensor, String> {
    let (Some(values), Some(indices)) = (&s.values, &s.indices) else {
        return Err("is sparse without values or indices".into());
    };
    let values = tensor(values, external)?;
    let indices = crate::ops::ints_of(&tensor(indices, external)?);
    let shape: Vec<usize> = s
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("has the dimension {d}")))
        .collect::<Result<_, _>>()?;
    let mut out = Tensor::zeros(values.dtype(), &shape).map_err(|e| e.to_string())?.into_data();
    let rank = shape.len();
    // Flat positions, or one row of coordinates a value.
    let flat: Vec<i64> = if indices.len() == values.len() {
        indices
    } else if rank > 0 && indices.len() == values.len() * rank {
        let position = |row: &[i64]| {
            row.iter().zip(&shape).try_fold(0usize, |at, (&i, &d)| {
                let i = usize::try_from(i).ok().filter(|&i| i < d).ok_or_else(|| format!("has the index {row:?}"))?;
                Ok::<_, String>(at * d + i)
            })
        };
        indices.chunks(rank).map(|row| position(row).map(|i| i as i64)).collect::<Result<_, _>>()?
    } else {
        return Err(format!("has {} values and {} indices", values.len(), indices.len()));
    };
    let at: Vec<usize> = flat
        .into_iter()
        .map(|i| usize::try_from(i).ok().filter(|&i| i < out.len()).ok_or_else(|| format!("has the index {i}")))
        .collect::<Result<_, _>>()?;
    out.put(&at, values.data());
    Tensor::new(&shape, out).map_err(|e| e.to_string())
}

/// What an attribute is. Old exporters leave the type out; then the one member that is set tells.
fn kind(a: &pb::AttributeProto) -> AttributeType {
    match AttributeType::try_from(a.r#type) {
        Ok(AttributeType::Undefined) | Err(_) => {}
        Ok(kind) => return kind,
    }
    if a.t.is_some() {
        AttributeType::Tensor
    } else if a.g.is_some() {
        AttributeType::Graph
    } else if !a.ints.is_empty() {
        AttributeType::Ints
    } else if !a.floats.is_empty() {
        AttributeType::Floats
    } else if !a.strings.is_empty() {
        AttributeType::Strings
    } else if !a.s.is_empty() {
        AttributeType::String
    } else if a.f != 0.0 {
        AttributeType::Float
    } else {
        AttributeType::Int
    }
}

/// An attribute; graphs are built by `graph`.
pub(super) fn attribute(
    a: &pb::AttributeProto,
    external: &External<'_>,
    graphs: &BTreeMap<&str, Arc<crate::graph::Graph>>,
) -> Result<Attr, String> {
    let text = |s: &[u8]| String::from_utf8_lossy(s).into_owned();
    Ok(match kind(a) {
        AttributeType::Int => Attr::Int(a.i),
        AttributeType::Ints => Attr::Ints(a.ints.clone()),
        AttributeType::Float => Attr::Float(a.f),
        AttributeType::Floats => Attr::Floats(a.floats.clone()),
        AttributeType::String => Attr::Str(text(&a.s)),
        AttributeType::Strings => Attr::Strs(a.strings.iter().map(|s| text(s)).collect()),
        AttributeType::Tensor => {
            let t = a.t.as_ref().ok_or_else(|| format!("attribute `{}` has no tensor", a.name))?;
            Attr::Tensor(Arc::new(tensor(t, external).map_err(|why| format!("attribute `{}` {why}", a.name))?))
        }
        AttributeType::SparseTensor => {
            let t = a.sparse_tensor.as_ref().ok_or_else(|| format!("attribute `{}` has no tensor", a.name))?;
            Attr::Tensor(Arc::new(sparse(t, external).map_err(|why| format!("attribute `{}` {why}", a.name))?))
        }
        AttributeType::Graph => {
            let g = graphs.get(a.name.as_str()).ok_or_else(|| format!("attribute `{}` has no graph", a.name))?;
            Attr::Graph(g.clone())
        }
        other => return Err(format!("attribute `{}` is of kind {other:?}", a.name)),
    })
}
