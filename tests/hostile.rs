//! Models made to do harm: every one is refused by name, none makes the importer or the planner panic.
//!
//! The files are written here field by field (`Message`), because no exporter would make them.
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hone_runtime::bundle::npz::read_npz;
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::tensor::Tensor;

use crate::support::model_dir;

/// A protobuf message under construction. Field numbers are those of `onnx.proto`.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    fn int(mut self, field: u64, v: i64) -> Message {
        self.varint(field << 3);
        self.varint(v as u64);
        self
    }

    fn bytes(mut self, field: u64, v: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend_from_slice(v);
        self
    }

    fn text(self, field: u64, v: &str) -> Message {
        self.bytes(field, v.as_bytes())
    }

    fn message(self, field: u64, v: Message) -> Message {
        self.bytes(field, &v.0)
    }
}

const FLOAT: i64 = 1;
const INT8: i64 = 3;
const INT64: i64 = 7;

fn model(graph: Message) -> Vec<u8> {
    let opset = Message::default().text(1, "").int(2, 17);
    Message::default().int(1, 8).message(8, opset).message(7, graph).0
}

fn graph(parts: &[(u64, Message)]) -> Message {
    parts.iter().fold(Message::default().text(2, "g"), |g, (field, part)| g.message(*field, part.clone()))
}

fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> (u64, Message) {
    let mut n = inputs.iter().fold(Message::default(), |n, i| n.text(1, i));
    n = outputs.iter().fold(n, |n, o| n.text(2, o));
    n = n.text(3, name).text(4, op);
    (1, attributes.iter().fold(n, |n, a| n.message(5, a.clone())))
}

fn attribute_int(name: &str, v: i64) -> Message {
    Message::default().text(1, name).int(3, v).int(20, 2)
}

fn attribute_ints(name: &str, v: &[i64]) -> Message {
    v.iter().fold(Message::default().text(1, name), |a, &v| a.int(8, v)).int(20, 7)
}

fn value(field: u64, name: &str, dims: &[i64]) -> (u64, Message) {
    let shape = dims.iter().fold(Message::default(), |s, &d| s.message(1, Message::default().int(1, d)));
    let tensor = Message::default().int(1, FLOAT).message(2, shape);
    (field, Message::default().text(1, name).message(2, Message::default().message(1, tensor)))
}

fn input(name: &str, dims: &[i64]) -> (u64, Message) {
    value(11, name, dims)
}

fn output(name: &str) -> (u64, Message) {
    (12, Message::default().text(1, name))
}

fn tensor(name: &str, dtype: i64, dims: &[i64], raw: &[u8]) -> Message {
    dims.iter().fold(Message::default(), |t, &d| t.int(1, d)).int(2, dtype).text(8, name).bytes(9, raw)
}

fn weights(name: &str, dims: &[i64]) -> (u64, Message) {
    (5, tensor(name, FLOAT, dims, &vec![0; 4 * dims.iter().product::<i64>() as usize]))
}

fn integers(name: &str, v: &[i64]) -> (u64, Message) {
    let raw: Vec<u8> = v.iter().flat_map(|v| v.to_le_bytes()).collect();
    (5, tensor(name, INT64, &[v.len() as i64], &raw))
}

fn external(location: &str) -> Vec<u8> {
    let entry = Message::default().text(1, "location").text(2, location);
    let t = Message::default().int(1, 4).int(2, FLOAT).text(8, "secret").message(13, entry).int(14, 1);
    model(graph(&[(5, t), node("Relu", "r", &["secret"], &["y"], &[]), output("y")]))
}

fn nested(depth: usize) -> Message {
    if depth == 0 {
        return graph(&[node("Relu", "leaf", &["x"], &["y"], &[]), output("y")]);
    }
    let inner = Message::default().text(1, "then_branch").message(6, nested(depth - 1)).int(20, 5);
    let other = Message::default().text(1, "else_branch").message(6, nested(0)).int(20, 5);
    graph(&[node("If", &format!("if{depth}"), &["x"], &["y"], &[inner, other]), output("y")])
}

/// One node between an input `x` of shape `dims` and an output `y`, with initializers.
fn one(op: &str, dims: &[i64], more: &[&str], attributes: &[Message], constants: &[(u64, Message)]) -> Vec<u8> {
    let names: Vec<&str> = std::iter::once("x").chain(more.iter().copied()).collect();
    let mut parts = constants.to_vec();
    parts.extend([input("x", dims), node(op, "culprit", &names, &["y"], attributes), output("y")]);
    model(graph(&parts))
}

/// What is handed over, and a word each refusal must contain.
fn crafted() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let relu = |parts: &[(u64, Message)]| model(graph(parts));
    let x = || input("x", &[1, 4]);
    let plain = |o: &'static str| node("Relu", "r", &["x"], &[o], &[]);
    let domain = |op: &str, domain: &str| {
        let (field, n) = node(op, "culprit", &["x"], &["y"], &[]);
        relu(&[x(), (field, n.text(7, domain)), output("y")])
    };
    let scales: Vec<u8> = [0.1f32; 4].iter().flat_map(|s| s.to_le_bytes()).collect();
    let lstm = [weights("w", &[1, 8, 3]), weights("r", &[1, 8, 2])];
    vec![
        ("an empty file", vec![], "empty"),
        ("text", b"buy milk, flour, two lemons\n".to_vec(), "not an ONNX model"),
        ("no graph", Message::default().int(1, 8).message(8, Message::default().int(2, 17)).0, "no graph"),
        (
            "no operator set",
            Message::default().int(1, 8).message(7, graph(&[x(), plain("y"), output("y")])).0,
            "operator set",
        ),
        (
            "raw data too short",
            relu(&[(5, tensor("short", FLOAT, &[4], &[0; 12])), x(), plain("y"), output("y")]),
            "short",
        ),
        (
            "raw data too long",
            relu(&[(5, tensor("long", FLOAT, &[4], &[0; 20])), x(), plain("y"), output("y")]),
            "long",
        ),
        ("no data at all", relu(&[(5, tensor("none", FLOAT, &[4], &[])), x(), plain("y"), output("y")]), "none"),
        (
            "2^40 elements without data",
            relu(&[(5, tensor("huge", FLOAT, &[1 << 40], &[])), x(), plain("y"), output("y")]),
            "huge",
        ),
        (
            "a product that overflows",
            relu(&[(5, tensor("wrap", FLOAT, &[1 << 33, 1 << 33], &[])), x(), plain("y"), output("y")]),
            "wrap",
        ),
        (
            "a negative dimension",
            relu(&[(5, tensor("minus", FLOAT, &[-4], &[0; 16])), x(), plain("y"), output("y")]),
            "minus",
        ),
        (
            "an unknown element type",
            relu(&[
                (5, tensor("alien", 99, &[4], &[0; 16])),
                node("Add", "a", &["x", "alien"], &["y"], &[]),
                x(),
                output("y"),
            ]),
            "",
        ),
        (
            "an input of 2^40 elements",
            relu(&[input("wide", &[1 << 20, 1 << 20]), node("Relu", "r", &["wide"], &["y"], &[]), output("y")]),
            "wide",
        ),
        (
            "a circle",
            relu(&[
                x(),
                node("Add", "a", &["x", "q"], &["p"], &[]),
                node("Relu", "b", &["p"], &["q"], &[]),
                node("Relu", "c", &["q"], &["y"], &[]),
                output("y"),
            ]),
            "circle",
        ),
        (
            "a node that feeds itself",
            relu(&[x(), node("Add", "ouroboros", &["x", "y"], &["y"], &[]), output("y")]),
            "ouroboros",
        ),
        (
            "two initializers of one name",
            relu(&[weights("twin", &[4]), weights("twin", &[4]), x(), plain("y"), output("y")]),
            "twin",
        ),
        ("two inputs of one name", relu(&[x(), x(), plain("y"), output("y")]), "defined twice"),
        ("a value made twice", relu(&[x(), plain("y"), plain("y"), output("y")]), "made twice"),
        ("data in a file above", external("../../../secret.bin"), "secret.bin"),
        ("data at an absolute path", external("/etc/hostname"), "/etc/hostname"),
        ("graphs nested twenty deep", model(nested(20)), "nested"),
        ("graphs nested beyond the parser", model(nested(400)), "not an ONNX model"),
        ("an unknown operator in an unknown domain", domain("Launder", "ai.evil"), "ai.evil.Launder"),
        ("an unknown standard operator", one("Launder", &[1, 4], &[], &[], &[]), "Launder"),
        ("another domain's operator of a standard name", domain("Relu", "ai.evil"), "ai.evil.Relu"),
        ("an attention that is not the standard one", domain("Attention", "com.microsoft"), "com.microsoft.Attention"),
        ("an undefined value", relu(&[x(), node("Add", "a", &["x", "ghost"], &["y"], &[]), output("y")]), "ghost"),
        ("an output nobody makes", relu(&[x(), plain("y"), output("phantom")]), "phantom"),
        (
            "a name of a mebibyte",
            relu(&[x(), node("Relu", "r", &["x"], &[&"n".repeat(1 << 20)], &[]), output("y")]),
            "longer than",
        ),
        (
            "a stride of zero",
            one("Conv", &[1, 1, 4, 4], &["w"], &[attribute_ints("strides", &[0, 1])], &[weights("w", &[1, 1, 3, 3])]),
            "strides",
        ),
        (
            "a dilation beyond reason",
            one(
                "Conv",
                &[1, 1, 4, 4],
                &["w"],
                &[attribute_ints("dilations", &[i64::MAX, 1])],
                &[weights("w", &[1, 1, 3, 3])],
            ),
            "dilations",
        ),
        (
            "padding below zero",
            one(
                "MaxPool",
                &[1, 1, 4, 4],
                &[],
                &[attribute_ints("kernel_shape", &[2, 2]), attribute_ints("pads", &[-9, 0, 0, 0])],
                &[],
            ),
            "pads",
        ),
        (
            "a kernel larger than its image",
            one("MaxPool", &[1, 1, 4, 4], &[], &[attribute_ints("kernel_shape", &[9, 9])], &[]),
            "a window of 9",
        ),
        (
            "a kernel that is not that of its weights",
            one(
                "Conv",
                &[1, 1, 9, 9],
                &["w"],
                &[attribute_ints("kernel_shape", &[5, 5])],
                &[weights("w", &[1, 1, 3, 3])],
            ),
            "kernel_shape",
        ),
        ("weights of another rank", one("Conv", &[1, 1, 4, 4], &["w"], &[], &[weights("w", &[3])]), "rank"),
        (
            "weights for other channels",
            one("Conv", &[1, 2, 4, 4], &["w"], &[], &[weights("w", &[1, 3, 3, 3])]),
            "culprit",
        ),
        (
            "a bias that is too short",
            one("Conv", &[1, 1, 4, 4], &["w", "b"], &[], &[weights("w", &[5, 1, 3, 3]), weights("b", &[2])]),
            "bias",
        ),
        (
            "no groups",
            one("Conv", &[1, 1, 4, 4], &["w"], &[attribute_int("group", 0)], &[weights("w", &[1, 1, 3, 3])]),
            "group",
        ),
        ("a convolution of nothing", relu(&[x(), node("Conv", "culprit", &[], &["y"], &[]), output("y")]), "missing"),
        ("an axis that is not there", one("Softmax", &[1, 4], &[], &[attribute_int("axis", 99)], &[]), "axis"),
        ("an axis that is a list", one("Softmax", &[1, 4], &[], &[attribute_ints("axis", &[1])], &[]), "axis"),
        ("a product of unequal lengths", one("MatMul", &[1, 4], &["w"], &[], &[weights("w", &[5, 2])]), "MatMul"),
        (
            "a bias that does not broadcast",
            one("Gemm", &[1, 4], &["w", "c"], &[], &[weights("w", &[4, 2]), weights("c", &[3])]),
            "C of Gemm",
        ),
        ("a reshape to more elements", one("Reshape", &[1, 4], &["to"], &[], &[integers("to", &[5])]), ""),
        (
            "an expansion to 2^40 elements",
            one("Expand", &[1, 1], &["to"], &[], &[integers("to", &[1 << 40, 1])]),
            "culprit",
        ),
        (
            "an expansion to 2^62 elements",
            one("Expand", &[1, 1], &["to"], &[], &[integers("to", &[1 << 31, 1 << 31])]),
            "",
        ),
        ("an index out of range", one("Gather", &[1, 4], &["i"], &[], &[integers("i", &[7])]), ""),
        (
            "an LSTM whose W is for other inputs",
            one("LSTM", &[2, 1, 4], &["w", "r"], &[attribute_int("hidden_size", 2)], &lstm),
            "W of an LSTM",
        ),
        (
            "scales without their zero points",
            one(
                "QuantizeLinear",
                &[1, 4],
                &["s", "z"],
                &[],
                &[(5, tensor("s", FLOAT, &[4], &scales)), (5, tensor("z", INT8, &[2], &[0; 2]))],
            ),
            "zero points",
        ),
        (
            "blocks of less than nothing",
            one(
                "QuantizeLinear",
                &[1, 4],
                &["s"],
                &[attribute_int("block_size", -1)],
                &[(5, tensor("s", FLOAT, &[4], &scales))],
            ),
            "block_size",
        ),
    ]
}

/// Loads a model and, when it loads, runs it on zeros. `Err` says how it was refused.
fn load_and_run(bytes: &[u8]) -> Result<(), String> {
    let mut session =
        Session::from_onnx(bytes, "hostile.onnx", SessionOptions::default()).map_err(|e| e.to_string())?;
    let shapes = session.graph().input_shapes(&BTreeMap::new())?;
    let zeros = |(name, dtype, shape): (String, _, Vec<usize>)| (name, Tensor::zeros(dtype, &shape).unwrap());
    let inputs: Vec<(String, Tensor)> = shapes.into_iter().map(zeros).collect();
    session.run(&inputs).map(drop).map_err(|e| e.to_string())
}

#[test]
fn every_crafted_model_is_refused_with_its_culprit_named_and_none_panics() {
    let cases = crafted();
    assert!(cases.len() >= 15);
    let mut wrong = Vec::new();
    for (name, bytes, culprit) in &cases {
        match catch_unwind(AssertUnwindSafe(|| load_and_run(bytes))) {
            Err(_) => wrong.push(format!("{name}: panicked")),
            Ok(Ok(())) => wrong.push(format!("{name}: was accepted and ran")),
            Ok(Err(why)) if !why.contains(culprit) => wrong.push(format!("{name}: `{culprit}` is not in: {why}")),
            // The importer's panics are caught, but a check of ours should have come first.
            Ok(Err(why)) if why.contains("panicked") => wrong.push(format!("{name}: {why}")),
            Ok(Err(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn the_model_written_here_without_a_fault_loads_and_runs() {
    load_and_run(&one("Relu", &[1, 4], &[], &[], &[])).unwrap();
    load_and_run(&one("Conv", &[1, 1, 4, 4], &["w"], &[], &[weights("w", &[1, 1, 3, 3])])).unwrap();
    load_and_run(&one("Expand", &[1, 1], &["to"], &[], &[integers("to", &[4, 2])])).unwrap();
}

#[test]
fn every_truncation_of_the_shipped_model_is_refused_without_a_panic() {
    let whole = fs::read(model_dir().join("src/model.onnx")).unwrap();
    for length in (0..whole.len()).step_by(97) {
        match catch_unwind(|| load_and_run(&whole[..length])) {
            Err(_) => panic!("{length} of {} bytes: panicked", whole.len()),
            Ok(Ok(())) => panic!("{length} of {} bytes: was accepted and ran", whole.len()),
            Ok(Err(_)) => {}
        }
    }
}

#[test]
fn a_flipped_bit_in_the_shipped_model_or_random_bytes_never_cause_a_panic() {
    let whole = fs::read(model_dir().join("src/model.onnx")).unwrap();
    let case = read_npz(&fs::read(model_dir().join("src/check/case0.npz")).unwrap()).unwrap();
    let inputs: Vec<(String, Tensor)> =
        case.iter().filter_map(|(n, t)| n.strip_prefix("in_").map(|n| (n.to_string(), t.clone()))).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut refused, mut ran) = (0, 0);
    for i in 0..120 {
        let mut bad = whole.clone();
        // Most of the file is weights: the structure is in the first and the last few kibibytes.
        let reach = if i % 2 == 0 { bad.len() } else { 4096.min(bad.len()) };
        let at = random() as usize % reach;
        let at = if i % 4 == 1 { bad.len() - 1 - at } else { at };
        bad[at] ^= 1 << (random() % 8);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let mut s =
                Session::from_onnx(&bad, "flipped.onnx", SessionOptions::default()).map_err(|e| e.to_string())?;
            s.run(&inputs).map(drop).map_err(|e| e.to_string())
        }));
        match done {
            Err(_) => panic!("a flipped bit in byte {at} caused a panic"),
            Ok(Ok(())) => ran += 1,
            Ok(Err(_)) => refused += 1,
        }
        let noise: Vec<u8> = (0..random() % 512).map(|_| random() as u8).collect();
        assert!(catch_unwind(|| load_and_run(&noise)).is_ok(), "random bytes caused a panic: {noise:?}");
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran: one of the two ways was never taken");
}
