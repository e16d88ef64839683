//! The recipe of the corpus: small models that run, one or a few for each thing the importer or the plan does.
//!
//! `HONE_WRITE_CORPUS=1 cargo test -p hone --test all fuzz::` writes them to `corpus/`; without it the files there are
//! compared with these.
use crate::onnx::*;

/// What a node reads.
enum In<'a> {
    /// An input: element type and shape.
    Given(i64, &'a [i64]),
    /// An initializer.
    Kept(Message),
    /// Left out.
    Nothing,
}
use In::{Given, Kept, Nothing};

const INT32: i64 = 6;
const UINT8: i64 = 2;

fn x(dims: &[i64]) -> In<'_> {
    Given(FLOAT, dims)
}

/// Small floats that are not all the same.
fn w(dims: &[i64]) -> In<'static> {
    let n = dims.iter().product::<i64>();
    Kept(floats_tensor("", dims, &(0..n).map(|i| (i % 5) as f32 * 0.5 - 1.0).collect::<Vec<f32>>()))
}

fn ints(v: &[i64]) -> In<'static> {
    Kept(integers_tensor("", &[v.len() as i64], v))
}

fn int0(v: i64) -> In<'static> {
    Kept(integers_tensor("", &[], &[v]))
}

fn bytes(dtype: i64, dims: &[i64]) -> In<'static> {
    Kept(tensor("", dtype, dims, &(0..dims.iter().product::<i64>()).map(|i| i as u8).collect::<Vec<u8>>()))
}

/// A model of one node and as many outputs as asked for.
fn one(domain: &str, opset: i64, op: &str, inputs: &[In<'_>], outputs: usize, attributes: &[Message]) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut names = Vec::new();
    for (i, of) in inputs.iter().enumerate() {
        let name = format!("i{i}");
        match of {
            Given(dtype, dims) => parts.push(input_of(&name, *dtype, dims)),
            // A field written again replaces the first.
            Kept(t) => parts.push((5, t.clone().text(8, &name))),
            Nothing => {}
        }
        names.push(if matches!(of, Nothing) { String::new() } else { name });
    }
    let made: Vec<String> = (0..outputs).map(|i| format!("o{i}")).collect();
    let refs = |l: &'_ [String]| -> Vec<String> { l.to_vec() };
    let (ins, outs) = (refs(&names), refs(&made));
    let ins: Vec<&str> = ins.iter().map(String::as_str).collect();
    let outs: Vec<&str> = outs.iter().map(String::as_str).collect();
    parts.push(node_in(domain, op, "n", &ins, &outs, attributes));
    parts.extend(outs.iter().map(|o| output(o)));
    let sets = [("", opset), ("com.microsoft", 1)];
    model_of(&sets[..if domain.is_empty() { 1 } else { 2 }], &[], &graph(&parts))
}

/// Name and bytes of every model of the corpus.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (int, list, text, float) = (attribute_int, attribute_ints, attribute_text, attribute_float);
    let std = |op: &str, inputs: &[In<'_>], a: &[Message]| one("", 21, op, inputs, 1, a);
    let image = || x(&[1, 2, 5, 5]);
    let mut all = vec![
        ("add", std("Add", &[x(&[2, 3]), w(&[3])], &[])),
        ("where", std("Where", &[Given(BOOL, &[2, 1]), x(&[3]), w(&[2, 3])], &[])),
        ("pow", std("Pow", &[x(&[3]), w(&[3])], &[])),
        ("mod", std("Mod", &[Given(INT64, &[3]), ints(&[2, 3, 5])], &[])),
        ("clip", std("Clip", &[x(&[3]), Nothing, w(&[])], &[])),
        ("cast", std("Cast", &[x(&[3])], &[int("to", BFLOAT16)])),
        ("gelu", std("Gelu", &[x(&[3])], &[text("approximate", "tanh")])),
        ("matmul", std("MatMul", &[x(&[2, 3]), w(&[3, 4])], &[])),
        ("gemm", std("Gemm", &[x(&[2, 3]), w(&[4, 3]), w(&[4])], &[int("transB", 1), float("alpha", 0.5)])),
        ("einsum", std("Einsum", &[x(&[2, 3]), w(&[3, 4])], &[text("equation", "ij,jk->ki")])),
        (
            "conv",
            std(
                "Conv",
                &[image(), w(&[3, 2, 3, 3]), w(&[3])],
                &[list("pads", &[1, 1, 1, 1]), list("strides", &[2, 1])],
            ),
        ),
        ("conv1d_groups", std("Conv", &[x(&[1, 4, 7]), w(&[4, 2, 3])], &[int("group", 2), list("dilations", &[2])])),
        (
            "conv_transpose",
            std(
                "ConvTranspose",
                &[image(), w(&[2, 1, 2, 2])],
                &[list("strides", &[2, 2]), list("output_padding", &[1, 0])],
            ),
        ),
        ("max_pool", one("", 21, "MaxPool", &[image()], 2, &[list("kernel_shape", &[2, 2]), int("ceil_mode", 1)])),
        (
            "average_pool",
            std("AveragePool", &[image()], &[list("kernel_shape", &[3, 3]), text("auto_pad", "SAME_UPPER")]),
        ),
        (
            "resize",
            std(
                "Resize",
                &[image(), Nothing, Kept(floats_tensor("", &[4], &[1.0, 1.0, 1.5, 0.5]))],
                &[text("mode", "linear")],
            ),
        ),
        (
            "resize_sizes",
            std(
                "Resize",
                &[image(), Nothing, Nothing, ints(&[1, 2, 3, 8])],
                &[text("mode", "cubic"), int("antialias", 1)],
            ),
        ),
        ("grid_sample", std("GridSample", &[image(), x(&[1, 2, 2, 2])], &[text("mode", "linear")])),
        (
            "roi_align",
            std("RoiAlign", &[image(), x(&[1, 4]), ints(&[0])], &[int("output_height", 2), int("output_width", 2)]),
        ),
        ("batch_norm", std("BatchNormalization", &[image(), w(&[2]), w(&[2]), w(&[2]), w(&[2])], &[])),
        ("layer_norm", one("", 21, "LayerNormalization", &[x(&[2, 3]), w(&[3]), w(&[3])], 3, &[int("axis", -1)])),
        ("group_norm", std("GroupNormalization", &[image(), w(&[2]), w(&[2])], &[int("num_groups", 2)])),
        ("softmax", std("Softmax", &[x(&[2, 3])], &[int("axis", 1)])),
        ("softmax_old", one("", 11, "Softmax", &[x(&[2, 3, 2])], 1, &[int("axis", 1)])),
        ("reduce", std("ReduceMean", &[x(&[2, 3]), ints(&[1])], &[int("keepdims", 0)])),
        ("arg_max", std("ArgMax", &[x(&[2, 3])], &[int("axis", 1), int("select_last_index", 1)])),
        ("cum_sum", std("CumSum", &[x(&[2, 3]), int0(1)], &[int("reverse", 1)])),
        ("top_k", one("", 21, "TopK", &[x(&[5]), ints(&[2])], 2, &[int("largest", 0)])),
        ("reshape", std("Reshape", &[x(&[2, 6]), ints(&[0, -1, 2])], &[])),
        ("transpose", std("Transpose", &[x(&[2, 3, 4])], &[list("perm", &[2, 0, 1])])),
        ("concat", std("Concat", &[x(&[2, 3]), w(&[1, 3])], &[int("axis", 0)])),
        ("split", one("", 21, "Split", &[x(&[5, 2]), ints(&[2, 3])], 2, &[int("axis", 0)])),
        ("slice", std("Slice", &[x(&[4, 5]), ints(&[3, 0]), ints(&[-9, 4]), ints(&[0, 1]), ints(&[-1, 2])], &[])),
        ("pad", std("Pad", &[x(&[2, 3]), ints(&[1, 0, 0, 2])], &[text("mode", "reflect")])),
        ("tile", std("Tile", &[x(&[2, 3]), ints(&[2, 1])], &[])),
        ("expand", std("Expand", &[x(&[3, 1]), ints(&[2, 1, 4])], &[])),
        ("squeeze", std("Squeeze", &[x(&[1, 3, 1]), ints(&[0, -1])], &[])),
        ("unsqueeze", std("Unsqueeze", &[x(&[3]), ints(&[0, 2])], &[])),
        ("depth_to_space", std("DepthToSpace", &[x(&[1, 8, 2, 3])], &[int("blocksize", 2), text("mode", "CRD")])),
        ("gather", std("Gather", &[x(&[4, 3]), ints(&[0, -1, 2])], &[int("axis", 0)])),
        ("gather_nd", std("GatherND", &[x(&[2, 3]), Given(INT64, &[2, 1])], &[])),
        ("scatter_elements", std("ScatterElements", &[x(&[4]), ints(&[1, 3]), w(&[2])], &[text("reduction", "add")])),
        ("scatter_nd", std("ScatterND", &[x(&[4]), Kept(integers_tensor("", &[2, 1], &[1, 3])), w(&[2])], &[])),
        ("one_hot", std("OneHot", &[Given(INT64, &[3]), int0(4), w(&[2])], &[int("axis", -1)])),
        ("non_zero", std("NonZero", &[x(&[2, 3])], &[])),
        ("unique", one("", 21, "Unique", &[x(&[6])], 4, &[int("sorted", 0)])),
        ("compress", std("Compress", &[x(&[3, 2]), Given(BOOL, &[3])], &[int("axis", 0)])),
        ("range", std("Range", &[Given(INT64, &[]), int0(7), int0(2)], &[])),
        (
            "constant_of_shape",
            std(
                "ConstantOfShape",
                &[Given(INT64, &[2])],
                &[attribute_tensor("value", &integers_tensor("", &[1], &[7]))],
            ),
        ),
        ("trilu", std("Trilu", &[x(&[3, 4]), int0(-1)], &[int("upper", 0)])),
        (
            "non_max_suppression",
            std(
                "NonMaxSuppression",
                &[x(&[1, 6, 4]), w(&[1, 1, 6]), ints(&[2]), Kept(floats_tensor("", &[1], &[0.5]))],
                &[],
            ),
        ),
        (
            "lstm",
            one(
                "",
                21,
                "LSTM",
                &[x(&[3, 2, 4]), w(&[2, 8, 4]), w(&[2, 8, 2]), w(&[2, 16]), Given(INT32, &[2])],
                3,
                &[int("hidden_size", 2), text("direction", "bidirectional")],
            ),
        ),
        (
            "gru",
            one(
                "",
                21,
                "GRU",
                &[x(&[3, 2, 4]), w(&[1, 6, 4]), w(&[1, 6, 2])],
                2,
                &[int("hidden_size", 2), int("linear_before_reset", 1)],
            ),
        ),
        (
            "rnn",
            one(
                "",
                21,
                "RNN",
                &[x(&[3, 2, 4]), w(&[1, 2, 4]), w(&[1, 2, 2])],
                2,
                &[int("hidden_size", 2), text("direction", "reverse")],
            ),
        ),
        (
            "quantize",
            std("QuantizeLinear", &[x(&[2, 3]), Kept(floats_tensor("", &[], &[0.5])), bytes(UINT8, &[])], &[]),
        ),
        (
            "dequantize",
            std(
                "DequantizeLinear",
                &[bytes(INT8, &[2, 3]), Kept(floats_tensor("", &[2], &[0.5, 2.0]))],
                &[int("axis", 0)],
            ),
        ),
        ("dynamic_quantize", one("", 21, "DynamicQuantizeLinear", &[x(&[5])], 3, &[])),
        ("matmul_integer", std("MatMulInteger", &[Given(UINT8, &[2, 3]), bytes(INT8, &[3, 2])], &[])),
        (
            "matmul_nbits",
            one(
                "com.microsoft",
                21,
                "MatMulNBits",
                &[x(&[1, 16]), bytes(UINT8, &[2, 1, 8]), w(&[2])],
                1,
                &[int("K", 16), int("N", 2), int("bits", 4), int("block_size", 16)],
            ),
        ),
        ("dft", std("DFT", &[x(&[1, 6, 1]), Nothing, int0(1)], &[int("onesided", 1)])),
        ("stft", std("STFT", &[x(&[1, 16, 1]), int0(4), w(&[8])], &[])),
        ("hann", std("HannWindow", &[int0(8)], &[])),
        ("random", std("RandomNormal", &[], &[list("shape", &[2, 3]), float("seed", 3.0)])),
    ];
    all.extend(structures());
    all
}

/// Models whose shape is the point: nested graphs, functions, folded shapes, sparse and odd forms.
fn structures() -> Vec<(&'static str, Vec<u8>)> {
    let branch = |op: &str, from: &str, to: &str| graph(&[node(op, to, &[from], &[to], &[]), output(to)]);
    let branches = [
        attribute_graph("then_branch", &branch("Relu", "x", "t")),
        attribute_graph("else_branch", &branch("Neg", "x", "e")),
    ];
    let body = graph(&[
        input_of("i", INT64, &[]),
        input_of("going", BOOL, &[]),
        input("v", &[2]),
        node("Identity", "again", &["going"], &["still"], &[]),
        node("Add", "sum", &["v", "x"], &["w"], &[]),
        node("Mul", "each", &["w", "k"], &["o"], &[]),
        output("still"),
        output("w"),
        output("o"),
    ]);
    let scan = graph(&[
        input("s", &[2]),
        input("e", &[2]),
        node("Add", "sum", &["s", "e"], &["s2"], &[]),
        node("Mul", "each", &["s2", "k"], &["o"], &[]),
        output("s2"),
        output("o"),
    ]);
    let inner = function(
        "Inner",
        &["a", "k"],
        &["b"],
        &["alpha"],
        &[
            node("LeakyRelu", "l", &["a"], &["m"], &[attribute_reference("alpha", "alpha", 1)]),
            node("Add", "p", &["m", "k"], &["b"], &[]),
        ],
    );
    let outer = function(
        "Outer",
        &["a", "k"],
        &["b"],
        &[],
        &[
            node_in("local", "Inner", "first", &["a", "k"], &["m"], &[attribute_float("alpha", 0.5)]),
            node_in("local", "Inner", "second", &["m", "m"], &["b"], &[]),
        ],
    );
    let calls = [
        input("x", &[2]),
        floats("k", &[2], &[1.0, -1.0]),
        node_in("local", "Outer", "call", &["x", "k"], &["y"], &[]),
        output("y"),
    ];
    let sparse = Message::default()
        .message(1, &floats_tensor("k", &[2], &[5.0, 7.0]))
        .message(2, &integers_tensor("", &[2], &[1, 2]))
        .int(3, 2)
        .int(3, 2);
    let packed = tensor_typed("k", INT4, &[3], 5, &[0x21, 0x03]);
    vec![
        (
            "if",
            model(&graph(&[
                input("x", &[2]),
                input_of("c", BOOL, &[]),
                node("If", "if", &["c"], &["y"], &branches),
                output("y"),
            ])),
        ),
        (
            "if_constant",
            model(&graph(&[
                input("x", &[2]),
                (5, tensor("c", BOOL, &[1], &[1])),
                node("If", "if", &["c"], &["y"], &branches),
                output("y"),
            ])),
        ),
        (
            "loop",
            model(&graph(&[
                input("x", &[2]),
                floats("k", &[], &[2.0]),
                (5, integers_tensor("n", &[], &[3])),
                node("Loop", "loop", &["n", "", "x"], &["last", "all"], &[attribute_graph("body", &body)]),
                output("last"),
                output("all"),
            ])),
        ),
        (
            "scan",
            model(&graph(&[
                input("s0", &[2]),
                input("xs", &[3, 2]),
                floats("k", &[], &[2.0]),
                node(
                    "Scan",
                    "scan",
                    &["s0", "xs"],
                    &["end", "each"],
                    &[attribute_int("num_scan_inputs", 1), attribute_graph("body", &scan)],
                ),
                output("end"),
                output("each"),
            ])),
        ),
        ("functions", model_of(&[("", 17), ("local", 1)], &[outer, inner], &graph(&calls))),
        (
            "sparse",
            model(&graph(&[
                input("x", &[2, 2]),
                (15, sparse),
                node("Add", "a", &["x", "k"], &["y"], &[]),
                output("y"),
            ])),
        ),
        (
            "packed",
            model_of(
                &[("", 21)],
                &[],
                &graph(&[(5, packed), node("Cast", "c", &["k"], &["y"], &[attribute_int("to", FLOAT)]), output("y")]),
            ),
        ),
        (
            "shape_arithmetic",
            model(&graph(&[
                value(11, "x", FLOAT, &[Dim::Name("N"), Dim::Length(3), Dim::Length(2)]),
                node("Shape", "s", &["x"], &["s"], &[]),
                integers("first", &[0]),
                integers("rest", &[-1]),
                node("Gather", "g", &["s", "first"], &["n"], &[]),
                node("Concat", "c", &["n", "rest"], &["to"], &[attribute_int("axis", 0)]),
                node("Reshape", "r", &["x", "to"], &["y"], &[]),
                output("y"),
            ])),
        ),
        (
            "computed_shape",
            model(&graph(&[
                input("x", &[2, 3]),
                node("NonZero", "z", &["x"], &["at"], &[]),
                node("Transpose", "t", &["at"], &["rows"], &[]),
                node("GatherND", "g", &["x", "rows"], &["taken"], &[]),
                node("Neg", "n", &["taken"], &["y"], &[]),
                output("y"),
            ])),
        ),
        (
            "quantised_layer",
            model(&graph(&[
                input("x", &[2, 3]),
                (5, tensor("w", INT8, &[4, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])),
                floats("scale", &[4], &[0.1, 0.2, 0.3, 0.4]),
                node("DequantizeLinear", "d", &["w", "scale"], &["wf"], &[attribute_int("axis", 0)]),
                node("Gemm", "g", &["x", "wf"], &["y"], &[attribute_int("transB", 1)]),
                output("y"),
            ])),
        ),
        (
            "transformer_block",
            model(&graph(&[
                input("x", &[1, 3, 4]),
                floats("w", &[4, 4], &[0.25; 16]),
                floats("g", &[4], &[1.0; 4]),
                node("MatMul", "q", &["x", "w"], &["q"], &[]),
                node("Transpose", "t", &["q"], &["qt"], &[attribute_ints("perm", &[0, 2, 1])]),
                node("MatMul", "s", &["q", "qt"], &["scores"], &[]),
                node("Softmax", "p", &["scores"], &["p"], &[attribute_int("axis", -1)]),
                node("MatMul", "o", &["p", "q"], &["o"], &[]),
                node("Add", "r", &["o", "x"], &["r"], &[]),
                node("LayerNormalization", "n", &["r", "g"], &["y"], &[]),
                output("y"),
            ])),
        ),
    ]
}
