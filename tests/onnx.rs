//! ONNX files written field by field: the models of tests that no exporter would make, and the small ones it would.
//!
//! Field numbers are those of `onnx.proto`. A part of a graph is its field number there and its message.

/// A protobuf message under construction.
#[derive(Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

/// A field of a graph: its number and what stands in it.
pub(crate) type Part = (u64, Message);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    pub(crate) fn int(mut self, field: u64, v: i64) -> Message {
        self.varint(field << 3);
        self.varint(v as u64);
        self
    }

    pub(crate) fn float(mut self, field: u64, v: f32) -> Message {
        self.varint(field << 3 | 5);
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, field: u64, v: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend_from_slice(v);
        self
    }

    pub(crate) fn text(self, field: u64, v: &str) -> Message {
        self.bytes(field, v.as_bytes())
    }

    pub(crate) fn message(self, field: u64, v: &Message) -> Message {
        self.bytes(field, &v.0)
    }
}

pub(crate) const FLOAT: i64 = 1;
pub(crate) const INT8: i64 = 3;
pub(crate) const INT64: i64 = 7;
pub(crate) const BOOL: i64 = 9;
pub(crate) const BFLOAT16: i64 = 16;
pub(crate) const FLOAT8E4M3FN: i64 = 17;
pub(crate) const UINT4: i64 = 21;
pub(crate) const INT4: i64 = 22;

/// The operator set most models here are written for.
const OPSET: i64 = 17;

pub(crate) fn model(graph: &Message) -> Vec<u8> {
    model_of(&[("", OPSET)], &[], graph)
}

/// A model that states operator sets and brings functions.
pub(crate) fn model_of(opsets: &[(&str, i64)], functions: &[Message], graph: &Message) -> Vec<u8> {
    let mut m = Message::default().int(1, 8);
    for (domain, version) in opsets {
        m = m.message(8, &Message::default().text(1, domain).int(2, *version));
    }
    functions.iter().fold(m.message(7, graph), |m, f| m.message(25, f)).0
}

pub(crate) fn graph(parts: &[Part]) -> Message {
    parts.iter().fold(Message::default().text(2, "g"), |g, (field, part)| g.message(*field, part))
}

/// A node; in a function its field is 7.
pub(crate) fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Part {
    node_in("", op, name, inputs, outputs, attributes)
}

pub(crate) fn node_in(
    domain: &str,
    op: &str,
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[Message],
) -> Part {
    let mut n = inputs.iter().fold(Message::default(), |n, i| n.text(1, i));
    n = outputs.iter().fold(n, |n, o| n.text(2, o)).text(3, name).text(4, op);
    if !domain.is_empty() {
        n = n.text(7, domain);
    }
    (1, attributes.iter().fold(n, |n, a| n.message(5, a)))
}

/// A function of domain `local`.
pub(crate) fn function(name: &str, inputs: &[&str], outputs: &[&str], attributes: &[&str], nodes: &[Part]) -> Message {
    let mut f = Message::default().text(1, name).text(10, "local");
    f = inputs.iter().fold(f, |f, i| f.text(4, i));
    f = outputs.iter().fold(f, |f, o| f.text(5, o));
    f = attributes.iter().fold(f, |f, a| f.text(6, a));
    f = nodes.iter().fold(f, |f, (_, n)| f.message(7, n));
    f.message(9, &Message::default().text(1, "").int(2, OPSET))
}

pub(crate) fn attribute_int(name: &str, v: i64) -> Message {
    Message::default().text(1, name).int(3, v).int(20, 2)
}

pub(crate) fn attribute_ints(name: &str, v: &[i64]) -> Message {
    v.iter().fold(Message::default().text(1, name), |a, &v| a.int(8, v)).int(20, 7)
}

pub(crate) fn attribute_float(name: &str, v: f32) -> Message {
    Message::default().text(1, name).float(2, v).int(20, 1)
}

pub(crate) fn attribute_text(name: &str, v: &str) -> Message {
    Message::default().text(1, name).text(4, v).int(20, 3)
}

pub(crate) fn attribute_tensor(name: &str, v: &Message) -> Message {
    Message::default().text(1, name).message(5, v).int(20, 4)
}

pub(crate) fn attribute_graph(name: &str, v: &Message) -> Message {
    Message::default().text(1, name).message(6, v).int(20, 5)
}

/// In a function: the attribute `name` is whatever the caller gives as `of`; `kind` is the number of its type.
pub(crate) fn attribute_reference(name: &str, of: &str, kind: i64) -> Message {
    Message::default().text(1, name).text(21, of).int(20, kind)
}

/// One dimension: a length, or a name.
pub(crate) enum Dim<'a> {
    Length(i64),
    Name(&'a str),
}

pub(crate) fn value(field: u64, name: &str, dtype: i64, dims: &[Dim<'_>]) -> Part {
    let shape = dims.iter().fold(Message::default(), |s, d| {
        let d = match d {
            Dim::Length(n) => Message::default().int(1, *n),
            Dim::Name(n) => Message::default().text(2, n),
        };
        s.message(1, &d)
    });
    let tensor = Message::default().int(1, dtype).message(2, &shape);
    (field, Message::default().text(1, name).message(2, &Message::default().message(1, &tensor)))
}

/// An input of floats.
pub(crate) fn input(name: &str, dims: &[i64]) -> Part {
    input_of(name, FLOAT, dims)
}

pub(crate) fn input_of(name: &str, dtype: i64, dims: &[i64]) -> Part {
    value(11, name, dtype, &dims.iter().map(|&d| Dim::Length(d)).collect::<Vec<_>>())
}

/// An output of which only the name is said.
pub(crate) fn output(name: &str) -> Part {
    (12, Message::default().text(1, name))
}

pub(crate) fn tensor(name: &str, dtype: i64, dims: &[i64], raw: &[u8]) -> Message {
    dims.iter().fold(Message::default(), |t, &d| t.int(1, d)).int(2, dtype).text(8, name).bytes(9, raw)
}

/// A tensor whose elements are in a list of numbers: field 5 is `int32_data`, 7 `int64_data`, 11 `uint64_data`.
pub(crate) fn tensor_typed(name: &str, dtype: i64, dims: &[i64], field: u64, v: &[i64]) -> Message {
    let t = dims.iter().fold(Message::default(), |t, &d| t.int(1, d)).int(2, dtype).text(8, name);
    v.iter().fold(t, |t, &v| t.int(field, v))
}

/// A tensor whose elements are in another file; `entries` are `location`, `offset`, `length`.
pub(crate) fn tensor_external(name: &str, dtype: i64, dims: &[i64], entries: &[(&str, &str)]) -> Message {
    let t = dims.iter().fold(Message::default(), |t, &d| t.int(1, d)).int(2, dtype).text(8, name);
    entries.iter().fold(t, |t, (k, v)| t.message(13, &Message::default().text(1, k).text(2, v))).int(14, 1)
}

pub(crate) fn floats_tensor(name: &str, dims: &[i64], v: &[f32]) -> Message {
    tensor(name, FLOAT, dims, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn integers_tensor(name: &str, dims: &[i64], v: &[i64]) -> Message {
    tensor(name, INT64, dims, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

/// An initializer of zeros.
pub(crate) fn weights(name: &str, dims: &[i64]) -> Part {
    (5, tensor(name, FLOAT, dims, &vec![0; 4 * dims.iter().product::<i64>() as usize]))
}

/// An initializer of floats.
pub(crate) fn floats(name: &str, dims: &[i64], v: &[f32]) -> Part {
    (5, floats_tensor(name, dims, v))
}

/// An initializer of int64 of rank 1.
pub(crate) fn integers(name: &str, v: &[i64]) -> Part {
    (5, integers_tensor(name, &[v.len() as i64], v))
}
