//! The bytes before they are decoded: what the protobuf would take in memory.
//!
//! A message of two bytes decodes to a struct of hundreds, so a small file could ask for any amount of memory before
//! there is anything to check. This walk follows the same fields as the decoder and allocates nothing. Bytes it cannot
//! follow are left for the decoder to refuse.
use std::mem::size_of;

use tract_onnx::pb;

use super::{ImportError, Limits};

/// The messages of `onnx.proto` that repeat or nest.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    TensorType,
    Shape,
    Dimension,
    Opset,
    Function,
    Entry,
    Annotation,
    /// Bytes or text in a list.
    Text,
}

/// The kind of a length-delimited field; `None` for one that is not a message or repeats nothing.
fn child(kind: Kind, field: u64) -> Option<Kind> {
    use Kind as K;
    Some(match (kind, field) {
        (K::Model, 7) => K::Graph,
        (K::Model, 8) | (K::Function, 9) => K::Opset,
        (K::Model, 14) | (K::Tensor, 13) | (K::Annotation, 2) => K::Entry,
        (K::Model, 25) => K::Function,
        (K::Graph, 1) | (K::Function, 7) => K::Node,
        (K::Graph, 5) | (K::Attribute, 5 | 10) | (K::Sparse, 1 | 2) => K::Tensor,
        (K::Graph, 11..=13) => K::Value,
        (K::Graph, 14) => K::Annotation,
        (K::Graph, 15) | (K::Attribute, 22 | 23) => K::Sparse,
        (K::Node, 5) => K::Attribute,
        (K::Node, 1 | 2) | (K::Attribute, 9) | (K::Tensor, 6) | (K::Function, 4..=6) => K::Text,
        (K::Attribute, 6 | 11) => K::Graph,
        (K::Value, 2) | (K::Attribute, 14 | 15) => K::Type,
        (K::Type, 1) => K::TensorType,
        (K::TensorType, 2) => K::Shape,
        (K::Shape, 1) => K::Dimension,
        _ => return None,
    })
}

/// Bytes of the struct a message is decoded to.
fn decoded_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Model => size_of::<pb::ModelProto>(),
        Kind::Graph => size_of::<pb::GraphProto>(),
        Kind::Node => size_of::<pb::NodeProto>(),
        Kind::Attribute => size_of::<pb::AttributeProto>(),
        Kind::Tensor => size_of::<pb::TensorProto>(),
        Kind::Sparse => size_of::<pb::SparseTensorProto>(),
        Kind::Value => size_of::<pb::ValueInfoProto>(),
        Kind::Type | Kind::TensorType => size_of::<pb::TypeProto>(),
        Kind::Shape => size_of::<pb::TensorShapeProto>(),
        Kind::Dimension => size_of::<pb::tensor_shape_proto::Dimension>(),
        Kind::Opset => size_of::<pb::OperatorSetIdProto>(),
        Kind::Function => size_of::<pb::FunctionProto>(),
        Kind::Entry => size_of::<pb::StringStringEntryProto>(),
        Kind::Annotation => size_of::<pb::TensorAnnotation>(),
        Kind::Text => size_of::<String>(),
    }
}

/// Bytes any file may decode to; beyond them, as many times its own as a file of ordinary messages takes: an attribute of
/// a short name and a small integer, the densest thing exporters write, grows by about thirty.
const ALWAYS: usize = 32 << 20;
const GROWTH: usize = 32;
/// Deepest nesting that is followed; the decoder refuses a hundred levels.
const DEEPEST: usize = 100;

/// Refuses a file that would decode to far more than it is, or that has more nodes than a model may.
///
/// # Errors
/// [`ImportError::Refused`].
pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), ImportError> {
    let limit = ALWAYS.max(bytes.len().saturating_mul(GROWTH));
    let mut total = Total { bytes: 0, nodes: 0 };
    walk(bytes, Kind::Model, 0, &mut total);
    let why = if total.nodes > limits.nodes {
        format!("it has {} nodes, more than {}", total.nodes, limits.nodes)
    } else if total.bytes > limit {
        format!("its {} bytes hold so many empty messages that they decode to more than {limit}", bytes.len())
    } else {
        return Ok(());
    };
    Err(ImportError::Refused { what: "file", name: "model".into(), why })
}

/// What was met so far.
struct Total {
    bytes: usize,
    nodes: usize,
}

/// The next number; `None` when there is none.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut v = 0u64;
    for shift in (0..70).step_by(7) {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u64::from(b & 0x7f).checked_shl(shift).unwrap_or(0);
        if b < 0x80 {
            return Some(v);
        }
    }
    None
}

/// Adds what the message decodes to; stops at the first byte that is no field.
fn walk(mut bytes: &[u8], kind: Kind, depth: usize, total: &mut Total) -> Option<()> {
    total.bytes += decoded_bytes(kind);
    total.nodes += usize::from(matches!(kind, Kind::Node));
    if depth > DEEPEST || matches!(kind, Kind::Text) {
        return None;
    }
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let length = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                // Repeated numbers, eight bytes each at most.
                total.bytes += 8;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (inner, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        match child(kind, key >> 3) {
            Some(child) if key & 7 == 2 => drop(walk(inner, child, depth + 1, total)),
            // Packed numbers of one byte become eight; text and raw data stay as they are.
            _ if key & 7 == 2 && packed(kind, key >> 3) => total.bytes = total.bytes.saturating_add(inner.len() * 8),
            _ => total.bytes = total.bytes.saturating_add(inner.len()),
        }
    }
    Some(())
}

fn packed(kind: Kind, field: u64) -> bool {
    matches!((kind, field), (Kind::Tensor, 1 | 4 | 5 | 7 | 10 | 11) | (Kind::Attribute, 7 | 8) | (Kind::Sparse, 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose graph has `n` nodes of no content at all.
    fn empty_nodes(n: usize) -> Vec<u8> {
        let graph = [0x0a, 0x00].repeat(n);
        let mut model = vec![0x3a];
        let mut length = graph.len();
        while length >= 0x80 {
            model.push(length as u8 | 0x80);
            length >>= 7;
        }
        model.push(length as u8);
        model.extend(graph);
        model
    }

    #[test]
    fn a_file_of_empty_messages_is_refused_before_it_is_decoded() {
        let many = Limits { nodes: usize::MAX, ..Limits::default() };
        check(&empty_nodes(1000), &many).unwrap();
        assert!(check(&empty_nodes(1_000_000), &many).unwrap_err().to_string().contains("empty messages"));
        assert!(check(&empty_nodes(300_000), &Limits::default()).unwrap_err().to_string().contains("300000 nodes"));
    }

    #[test]
    fn bytes_that_are_no_protobuf_are_left_to_the_decoder() {
        for bytes in [&b"buy milk"[..], &[0xff; 40], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f], &[]] {
            check(bytes, &Limits::default()).unwrap();
        }
    }
}
