//! Hostile files: structure, sizes, names, places of data.
use crate::onnx::*;

use super::Case;

fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    let t = tensor_external("secret", FLOAT, &[4], entries);
    model(&graph(&[(5, t), node("Relu", "r", &["secret"], &["y"], &[]), output("y")]))
}

fn nested(depth: usize) -> Message {
    if depth == 0 {
        return graph(&[node("Relu", "leaf", &["x"], &["y"], &[]), output("y")]);
    }
    let inner = attribute_graph("then_branch", &nested(depth - 1));
    let other = attribute_graph("else_branch", &nested(0));
    graph(&[node("If", &format!("if{depth}"), &["x"], &["y"], &[inner, other]), output("y")])
}

/// One node between an input `x` of shape `dims` and an output `y`, with initializers.
pub(super) fn one(op: &str, dims: &[i64], more: &[&str], attributes: &[Message], constants: &[Part]) -> Vec<u8> {
    let names: Vec<&str> = std::iter::once("x").chain(more.iter().copied()).collect();
    let mut parts = constants.to_vec();
    parts.extend([input("x", dims), node(op, "culprit", &names, &["y"], attributes), output("y")]);
    model(&graph(&parts))
}

/// Whole files, by what is wrong with them.
pub(super) fn files() -> Vec<Case> {
    let relu = |parts: &[Part]| model(&graph(parts));
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
        ("no graph", Message::default().int(1, 8).message(8, &Message::default().int(2, 17)).0, "no graph"),
        (
            "no operator set",
            Message::default().int(1, 8).message(7, &graph(&[x(), plain("y"), output("y")])).0,
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
        ("data in a file above", external(&[("location", "../../../secret.bin")]), "secret.bin"),
        ("data at an absolute path", external(&[("location", "/etc/hostname")]), "/etc/hostname"),
        ("graphs nested twenty deep", model(&nested(20)), "nested"),
        ("graphs nested beyond the parser", model(&nested(400)), "not an ONNX model"),
        ("an unknown operator in an unknown domain", domain("Launder", "ai.evil"), "ai.evil.Launder"),
        ("an unknown standard operator", one("Launder", &[1, 4], &[], &[], &[]), "Launder"),
        ("another domain's operator of a standard name", domain("Relu", "ai.evil"), "ai.evil.Relu"),
        ("an attention that is not the standard one", domain("Attention", "com.microsoft"), "weights"),
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
            "culprit",
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
            "culprit",
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
            "W of a recurrence",
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
            "zero point",
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
        ("data in a place without a name", external(&[("location", "")]), "secret"),
        ("data in a place not said", external(&[("offset", "0")]), "secret"),
        ("data at an address", external(&[("location", "https://example.org/w.bin")]), "example.org"),
        ("data in a device", external(&[("location", "/dev/zero")]), "/dev/zero"),
        (
            "an input of strings",
            relu(&[input_of("words", 8, &[1]), node("Relu", "r", &["words"], &["y"], &[]), output("y")]),
            "words",
        ),
        (
            "an input of an unknown type",
            relu(&[input_of("alien", 99, &[1]), node("Relu", "r", &["alien"], &["y"], &[]), output("y")]),
            "alien",
        ),
        (
            "a sequence as an input",
            relu(&[sequence("many"), node("Relu", "r", &["many"], &["y"], &[]), output("y")]),
            "many",
        ),
        (
            "a circle through what a branch reads",
            relu(&[
                x(),
                (5, tensor("c", BOOL, &[], &[1])),
                node(
                    "If",
                    "knot",
                    &["c"],
                    &["y"],
                    &[
                        attribute_graph("then_branch", &graph(&[node("Relu", "r", &["z"], &["t"], &[]), output("t")])),
                        attribute_graph("else_branch", &graph(&[node("Relu", "r", &["x"], &["e"], &[]), output("e")])),
                    ],
                ),
                node("Relu", "back", &["y"], &["z"], &[]),
                output("z"),
            ]),
            "circle",
        ),
        (
            "a function that calls itself",
            function_of(&[function("F", &["a"], &["b"], &[], &[local("F", &["a"], &["b"])])]),
            "F",
        ),
        (
            "two functions that call each other",
            function_of(&[
                function("F", &["a"], &["b"], &[], &[local("G", &["a"], &["b"])]),
                function("G", &["a"], &["b"], &[], &[local("F", &["a"], &["b"])]),
            ]),
            "deep",
        ),
        ("functions that double twenty times", function_of(&doubling(20, 0)), "expands"),
        ("functions that copy a constant again and again", function_of(&doubling(10, 1 << 16)), "expands"),
        (
            "functions whose names grow",
            {
                let long = "n".repeat(4000);
                let calls: Vec<Part> = (0..40).map(|i| local_named(&long, "F1", &["a"], &[&format!("b{i}")])).collect();
                let mut all = doubling(12, 0);
                all.remove(0);
                all.push(function("F", &["a"], &["b0"], &[], &calls));
                function_of(&all)
            },
            "expands",
        ),
        (
            "a circle inside a function",
            function_of(&[function(
                "F",
                &["a"],
                &["b"],
                &[],
                &[
                    node("Add", "p", &["a", "v"], &["u"], &[]),
                    node("Relu", "q", &["u"], &["v"], &[]),
                    node("Relu", "r", &["v"], &["b"], &[]),
                ],
            )]),
            "circle",
        ),
        (
            "two functions of one name",
            function_of(&[
                function("F", &["a"], &["b"], &[], &[node("Relu", "r", &["a"], &["b"], &[])]),
                function("F", &["a"], &["b"], &[], &[node("Neg", "r", &["a"], &["b"], &[])]),
            ]),
            "defined twice",
        ),
        (
            "a value made twice in a function",
            function_of(&[function(
                "F",
                &["a"],
                &["b"],
                &[],
                &[
                    node("Relu", "r", &["a"], &["u"], &[]),
                    node("Neg", "s", &["a"], &["u"], &[]),
                    node("Add", "t", &["u", "a"], &["b"], &[]),
                ],
            )]),
            "made twice",
        ),
        ("a million empty nodes", model(&Message([0x0a, 0x00].repeat(1_000_000))), "nodes"),
        (
            "a million empty attributes",
            model(&Message::default().bytes(1, &[0x2a, 0x00].repeat(1_000_000))),
            "empty messages",
        ),
        (
            "half a million dimensions",
            relu(&[
                (
                    11,
                    Message::default().text(1, "deep").message(
                        2,
                        &Message::default()
                            .message(1, &Message::default().int(1, 1).bytes(2, &[0x0a, 0x00].repeat(500_000))),
                    ),
                ),
                node("Relu", "r", &["deep"], &["y"], &[]),
                output("y"),
            ]),
            "",
        ),
        ("a tensor of a hundred dimensions", relu(&[weights("deep", &[1; 100]), x(), plain("y"), output("y")]), "deep"),
        (
            "three hundred thousand nodes",
            {
                let mut parts: Vec<Part> =
                    (0..300_000).map(|_| (1, Message::default().text(2, "v").text(4, "Relu"))).collect();
                parts.push(output("v"));
                model(&graph(&parts))
            },
            "nodes",
        ),
        (
            "an operator whose name is a mebibyte",
            relu(&[x(), node(&"n".repeat(1 << 20), "r", &["x"], &["y"], &[]), output("y")]),
            "longer than",
        ),
        (
            "a node whose name is a mebibyte",
            relu(&[x(), node("Relu", &"n".repeat(1 << 20), &["x"], &["y"], &[]), output("y")]),
            "longer than",
        ),
        (
            "an operand whose name is a mebibyte",
            relu(&[x(), node("Relu", "r", &[&"n".repeat(1 << 20)], &["y"], &[]), output("y")]),
            "longer than",
        ),
        (
            "an initializer whose name is a mebibyte",
            relu(&[weights(&"n".repeat(1 << 20), &[1]), x(), plain("y"), output("y")]),
            "longer than",
        ),
        ("a sparse tensor of 2^40 elements", sparse(&[1 << 40], &[1], &[0], 1), "few"),
        ("a sparse tensor of 2^24 elements and one value", sparse(&[1 << 24], &[1], &[0], 1), "few"),
        ("two hundred sparse tensors of a mebi", sparse(&[1 << 20], &[1], &[0], 200), "few"),
        ("a sparse index beyond its tensor", sparse(&[4], &[1], &[9], 1), "few"),
        ("a sparse index below zero", sparse(&[4], &[1], &[-1], 1), "few"),
        ("a sparse coordinate that overflows", sparse(&[2, 2], &[1, 2], &[i64::MAX, i64::MAX], 1), "few"),
        (
            "sparse values without indices",
            relu(&[
                (15, Message::default().message(1, &floats_tensor("few", &[1], &[1.0])).int(3, 4)),
                x(),
                plain("y"),
                output("y"),
            ]),
            "few",
        ),
        (
            "packed numbers that are too few",
            relu(&[(5, tensor_typed("half", INT4, &[5], 5, &[0x21, 0x43])), x(), plain("y"), output("y")]),
            "half",
        ),
        (
            "a list of numbers that is too long",
            relu(&[(5, tensor_typed("long", INT64, &[2], 7, &[1, 2, 3])), x(), plain("y"), output("y")]),
            "long",
        ),
        (
            "numbers in the list of another type",
            relu(&[(5, tensor_typed("other", FLOAT, &[2], 7, &[1, 2])), x(), plain("y"), output("y")]),
            "other",
        ),
        (
            "a constant without a value",
            relu(&[
                x(),
                node("Constant", "culprit", &[], &["k"], &[]),
                node("Add", "a", &["x", "k"], &["y"], &[]),
                output("y"),
            ]),
            "culprit",
        ),
        (
            "an If without branches",
            relu(&[x(), (5, tensor("c", BOOL, &[], &[1])), node("If", "culprit", &["c"], &["y"], &[]), output("y")]),
            "culprit",
        ),
        (
            "an If on a number",
            relu(&[
                x(),
                node(
                    "If",
                    "culprit",
                    &["x"],
                    &["y"],
                    &[
                        attribute_graph("then_branch", &graph(&[node("Relu", "r", &["x"], &["t"], &[]), output("t")])),
                        attribute_graph("else_branch", &graph(&[node("Relu", "r", &["x"], &["e"], &[]), output("e")])),
                    ],
                ),
                output("y"),
            ]),
            "condition",
        ),
        (
            "a branch that gives nothing",
            relu(&[
                x(),
                (5, tensor("c", BOOL, &[], &[1])),
                node(
                    "If",
                    "culprit",
                    &["c"],
                    &["y"],
                    &[attribute_graph("then_branch", &graph(&[])), attribute_graph("else_branch", &graph(&[]))],
                ),
                output("y"),
            ]),
            "y",
        ),
        (
            "a Loop without a body",
            relu(&[x(), node("Loop", "culprit", &["", "", "x"], &["y"], &[]), output("y")]),
            "culprit",
        ),
        (
            "a Loop whose body takes nothing",
            relu(&[
                x(),
                node("Loop", "culprit", &["", "", "x"], &["y"], &[attribute_graph("body", &graph(&[]))]),
                output("y"),
            ]),
            "culprit",
        ),
        (
            "a Scan over more inputs than it has",
            relu(&[
                x(),
                node(
                    "Scan",
                    "culprit",
                    &["x"],
                    &["y"],
                    &[attribute_int("num_scan_inputs", 7), attribute_graph("body", &graph(&[]))],
                ),
                output("y"),
            ]),
            "num_scan_inputs",
        ),
        (
            "a Scan over less than nothing",
            relu(&[
                x(),
                node(
                    "Scan",
                    "culprit",
                    &["x"],
                    &["y"],
                    &[attribute_int("num_scan_inputs", i64::MIN), attribute_graph("body", &graph(&[]))],
                ),
                output("y"),
            ]),
            "num_scan_inputs",
        ),
        ("a Scan that gives a million results of a kibi", scan_of(1 << 20), "run_bytes"),
        (
            "a Loop that never ends",
            endless(&[node("Identity", "i", &["c"], &["d"], &[]), node("Identity", "j", &["v"], &["w"], &[])]),
            "ever end",
        ),
        (
            "a Loop of 2^63 turns within another",
            endless(&[
                node("Identity", "i", &["c"], &["d"], &[]),
                node(
                    "Loop",
                    "inner",
                    &["", "c", "v"],
                    &["w"],
                    &[attribute_graph(
                        "body",
                        &body(
                            "k",
                            &[
                                node("Identity", "i", &["kc"], &["kd"], &[]),
                                node("Identity", "j", &["kv"], &["kw"], &[]),
                            ],
                        ),
                    )],
                ),
            ]),
            "ever end",
        ),
        (
            "a Loop that doubles what it carries",
            endless(&[
                node("Identity", "i", &["c"], &["d"], &[]),
                node("Concat", "grow", &["v", "v"], &["w"], &[attribute_int("axis", 0)]),
            ]),
            "run_bytes",
        ),
        (
            "constants that each fold to sixteen mebibytes",
            {
                let mut parts = vec![input("x", &[1]), integers("shape", &[4 << 20])];
                for i in 0..40 {
                    let (c, r) = (format!("c{i}"), format!("r{i}"));
                    parts.push(node("ConstantOfShape", &c, &["shape"], &[&c], &[]));
                    parts.push(node("Neg", &r, &[&c], &[&r], &[]));
                }
                parts.push(node("Concat", "culprit", &["x", "r0", "nothing"], &["y"], &[attribute_int("axis", 0)]));
                parts.push(output("y"));
                model(&graph(&parts))
            },
            "nothing",
        ),
    ]
}

fn sequence(name: &str) -> Part {
    let t = Message::default()
        .message(4, &Message::default().message(1, &Message::default().message(1, &Message::default().int(1, FLOAT))));
    (11, Message::default().text(1, name).message(2, &t))
}

/// `n` sparse initializers `few`, `few1`, … with those values and indices.
fn sparse(dims: &[i64], index_dims: &[i64], indices: &[i64], n: usize) -> Vec<u8> {
    let values = index_dims[0];
    let mut parts = vec![input("x", &[1, 4]), node("Relu", "r", &["x"], &["y"], &[]), output("y")];
    for i in 0..n {
        let name = if i == 0 { "few".to_string() } else { format!("few{i}") };
        let m = Message::default().message(1, &floats_tensor(&name, &[values], &vec![1.0; values as usize]));
        let m = m.message(2, &integers_tensor("", index_dims, indices));
        parts.push((15, dims.iter().fold(m, |m, &d| m.int(3, d))));
    }
    model(&graph(&parts))
}

fn local(op: &str, inputs: &[&str], outputs: &[&str]) -> Part {
    local_named("call", op, inputs, outputs)
}

fn local_named(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> Part {
    node_in("local", op, name, inputs, outputs, &[])
}

/// A model that calls the last of those functions on its input.
fn function_of(functions: &[Message]) -> Vec<u8> {
    let calls = [input("x", &[1, 4]), local("F", &["x"], &["y"]), output("y")];
    model_of(&[("", 17), ("local", 1)], functions, &graph(&calls))
}

/// `F` calls `F1` twice, that one `F2` twice, and so on; the last has a constant of that many bytes.
fn doubling(levels: usize, bytes: usize) -> Vec<Message> {
    let name = |i: usize| if i == 0 { "F".to_string() } else { format!("F{i}") };
    let mut all = Vec::new();
    for i in 0..levels {
        let inner = name(i + 1);
        let calls = [local(&inner, &["a"], &["m"]), local(&inner, &["m"], &["b"])];
        all.push(function(&name(i), &["a"], &["b"], &[], &calls));
    }
    let constant = tensor("", INT8, &[bytes as i64], &vec![0; bytes]);
    let leaf = [
        node("Constant", "k", &[], &["k"], &[attribute_tensor("value", &constant)]),
        node("Relu", "r", &["a"], &["b"], &[]),
    ];
    all.push(function(&name(levels), &["a"], &["b"], &[], &leaf));
    all
}

/// The body of a Loop that carries one float tensor: `c` and `v` to `d` and `w`, all with a prefix.
fn body(prefix: &str, nodes: &[Part]) -> Message {
    let named = |n: &str| format!("{prefix}{n}");
    let mut parts = vec![
        input_of(&named("i"), INT64, &[]),
        input_of(&named("c"), BOOL, &[]),
        (11, Message::default().text(1, &named("v"))),
        output(&named("d")),
        output(&named("w")),
    ];
    parts.extend(nodes.iter().cloned());
    graph(&parts)
}

/// A Loop without a trip count whose condition is true.
fn endless(nodes: &[Part]) -> Vec<u8> {
    model(&graph(&[
        input("x", &[4]),
        (5, tensor("yes", BOOL, &[], &[1])),
        node("Loop", "culprit", &["", "yes", "x"], &["y"], &[attribute_graph("body", &body("", nodes))]),
        output("y"),
    ]))
}

/// A Scan over `steps` steps that gives 256 floats each.
fn scan_of(steps: i64) -> Vec<u8> {
    let inner =
        graph(&[input("s", &[]), integers("to", &[256]), node("Expand", "e", &["s", "to"], &["t"], &[]), output("t")]);
    model(&graph(&[
        integers("shape", &[steps]),
        node("ConstantOfShape", "zeros", &["shape"], &["z"], &[]),
        node(
            "Scan",
            "culprit",
            &["z"],
            &["y"],
            &[attribute_int("num_scan_inputs", 1), attribute_graph("body", &inner)],
        ),
        output("y"),
    ]))
}
