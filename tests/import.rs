//! What the importer makes of models as exporters write them, odd ones included: every test runs the model it imports.
use hone_runtime::import::Limits;
use hone_runtime::session::{Session, SessionError, SessionOptions};
use hone_runtime::tensor::small;
use hone_runtime::{DType, Data, Tensor};

use crate::onnx::*;

fn opened(bytes: &[u8]) -> Result<Session, SessionError> {
    Session::from_onnx(bytes, "test.onnx", SessionOptions::default())
}

fn f32s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::new(shape, Data::F32(v.to_vec())).unwrap()
}

fn i64s(shape: &[usize], v: &[i64]) -> Tensor {
    Tensor::new(shape, Data::I64(v.to_vec())).unwrap()
}

fn flag(shape: &[usize], v: bool) -> Tensor {
    Tensor::new(shape, Data::Bool(vec![v])).unwrap()
}

/// Runs a model twice, by kernels and by reference; all must agree, and the outputs are given back in order.
fn run(bytes: &[u8], inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
    let inputs: Vec<(String, Tensor)> = inputs.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
    let mut session = opened(bytes).unwrap_or_else(|e| panic!("{e}"));
    let first = session.run(&inputs).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(session.run(&inputs).unwrap(), first, "a second run differs from the first");
    let options = SessionOptions { reference: true, ..SessionOptions::default() };
    let reference = Session::from_onnx(bytes, "test.onnx", options).unwrap().run(&inputs).unwrap();
    assert_eq!(reference, first, "the reference differs from the kernels");
    first.into_iter().map(|(_, t)| t).collect()
}

fn refusal(bytes: &[u8]) -> String {
    match opened(bytes) {
        Ok(_) => panic!("the model was accepted"),
        Err(e) => e.to_string(),
    }
}

/// `y = x + v` for a constant `v` made by those parts under the name `k`.
fn plus(parts: &[Part]) -> Vec<u8> {
    let mut all = parts.to_vec();
    all.extend([input("x", &[2]), node("Add", "add", &["x", "k"], &["y"], &[]), output("y")]);
    model(&graph(&all))
}

const X: [f32; 2] = [1.0, 2.0];

#[test]
fn names_may_hold_colons_slashes_and_anything_else() {
    let bytes = model(&graph(&[
        input("serving_default_x:0", &[2]),
        floats("model/dense/kernel:0", &[2], &[10.0, 20.0]),
        node("Add", "model/dense/Add", &["serving_default_x:0", "model/dense/kernel:0"], &["a/b:1"], &[]),
        node("Relu", "", &["a/b:1"], &["Identität; y"], &[]),
        output("Identität; y"),
    ]));
    assert_eq!(run(&bytes, &[("serving_default_x:0", f32s(&[2], &X))]), [f32s(&[2], &[11.0, 22.0])]);
    assert_eq!(opened(&bytes).unwrap().output_names(), ["Identität; y"]);
}

#[test]
fn an_initializer_that_is_also_an_input_need_not_be_given() {
    let bytes = plus(&[input("k", &[2]), floats("k", &[2], &[10.0, 20.0])]);
    assert_eq!(opened(&bytes).unwrap().input_names(), ["x"]);
    assert_eq!(run(&bytes, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[11.0, 22.0])]);
}

#[test]
fn constants_behind_constant_nodes_and_identities_are_constants() {
    let value = floats_tensor("", &[2], &[10.0, 20.0]);
    let bytes = plus(&[
        node("Identity", "i", &["c"], &["d"], &[]),
        node("Identity", "j", &["d"], &["k"], &[]),
        node("Constant", "c", &[], &["c"], &[attribute_tensor("value", &value)]),
    ]);
    assert_eq!(opened(&bytes).unwrap().graph().nodes.len(), 1, "only the addition is left");
    assert_eq!(run(&bytes, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[11.0, 22.0])]);
}

#[test]
fn every_form_of_a_constant_node_is_taken() {
    let k = |a: Message| plus(&[node("Constant", "c", &[], &["k"], &[a])]);
    let y = |a| run(&k(a), &[("x", f32s(&[2], &X))]);
    assert_eq!(y(attribute_float("value_float", 0.5)), [f32s(&[2], &[1.5, 2.5])]);
    let list = Message::default().text(1, "value_floats").float(7, 1.0).float(7, -2.0).int(20, 6);
    assert_eq!(y(list), [f32s(&[2], &[2.0, 0.0])]);
    let ints = plus(&[
        node("Constant", "c", &[], &["n"], &[attribute_ints("value_ints", &[3, 4])]),
        node("Cast", "f", &["n"], &["k"], &[attribute_int("to", FLOAT)]),
    ]);
    assert_eq!(run(&ints, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[4.0, 6.0])]);
}

#[test]
fn dimensions_may_be_minus_one_or_unsaid_or_named_by_formulas() {
    let dims = [Dim::Name("batch"), Dim::Length(-1), Dim::Name("2*seq + 1"), Dim::Name("")];
    let bytes = model(&graph(&[value(11, "x", FLOAT, &dims), node("Relu", "r", &["x"], &["y"], &[]), output("y")]));
    for shape in [[1, 1, 1, 1], [3, 2, 5, 1]] {
        let x = f32s(&shape, &vec![1.0; shape.iter().product()]);
        assert_eq!(run(&bytes, &[("x", x.clone())]), [x]);
    }
    // Equal names are equal lengths, whatever they say.
    let dims = || [Dim::Name("2*seq + 1")];
    let two = model(&graph(&[
        value(11, "a", FLOAT, &dims()),
        value(11, "b", FLOAT, &dims()),
        node("Add", "add", &["a", "b"], &["y"], &[]),
        output("y"),
    ]));
    let given = [("a".to_string(), f32s(&[2], &X)), ("b".to_string(), f32s(&[1], &[1.0]))];
    assert!(opened(&two).unwrap().run(&given).unwrap_err().to_string().contains('b'));
}

#[test]
fn operator_sets_nobody_uses_and_the_long_name_of_the_standard_one_change_nothing() {
    let add = [input("x", &[2]), node_in("ai.onnx", "Add", "add", &["x", "x"], &["y"], &[]), output("y")];
    let sets = [("ai.onnx.ml", 3), ("ai.onnx", 17), ("com.example.unused", 99), ("ai.onnx.training", 1)];
    let bytes = model_of(&sets, &[], &graph(&add));
    assert_eq!(run(&bytes, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[2.0, 4.0])]);
}

#[test]
fn nodes_may_stand_in_any_order() {
    let bytes = model(&graph(&[
        node("Neg", "last", &["b"], &["y"], &[]),
        node("Add", "middle", &["a", "a"], &["b"], &[]),
        node("Relu", "first", &["x"], &["a"], &[]),
        input("x", &[2]),
        output("y"),
    ]));
    assert_eq!(run(&bytes, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[-2.0, -4.0])]);
}

/// `If` on `cond` between `yes` and `no`, graphs with one output each.
fn if_node(cond: &str, yes: &Message, no: &Message) -> Part {
    node("If", "if", &[cond], &["y"], &[attribute_graph("then_branch", yes), attribute_graph("else_branch", no)])
}

/// A branch of one node from those names to `out`.
fn branch(op: &str, inputs: &[&str], out: &str) -> Message {
    graph(&[node(op, out, inputs, &[out], &[]), output(out)])
}

#[test]
fn a_constant_if_becomes_the_branch_it_takes() {
    let bytes = model(&graph(&[
        input("x", &[2]),
        (5, tensor("c", BOOL, &[], &[0])),
        if_node("c", &branch("Relu", &["x"], "t"), &branch("Neg", &["x"], "e")),
        output("y"),
    ]));
    assert_eq!(run(&bytes, &[("x", f32s(&[2], &X))]), [f32s(&[2], &[-1.0, -2.0])]);
    let mut session = opened(&bytes).unwrap();
    let steps = session.plan(&[("x", DType::F32, &[2])]).unwrap().steps();
    assert_eq!(steps.iter().map(|s| s.op.as_str()).collect::<Vec<_>>(), ["Neg"]);
}

#[test]
fn a_condition_of_one_element_is_a_condition_whatever_its_rank() {
    let bytes = model(&graph(&[
        input("x", &[2]),
        input_of("c", BOOL, &[1]),
        if_node("c", &branch("Relu", &["x"], "t"), &branch("Neg", &["x"], "e")),
        output("y"),
    ]));
    for (c, y) in [(true, [1.0, 2.0]), (false, [-1.0, -2.0])] {
        assert_eq!(run(&bytes, &[("x", f32s(&[2], &X)), ("c", flag(&[1], c))]), [f32s(&[2], &y)]);
    }
}

#[test]
fn a_graph_two_levels_down_reads_values_and_constants_of_all_around_it() {
    let inner = graph(&[
        // `x` and `k` are two levels up, `m` is one level up.
        node("Add", "p", &["m", "x"], &["pm"], &[]),
        node("Mul", "q", &["pm", "k"], &["t2"], &[]),
        output("t2"),
    ]);
    let middle = graph(&[
        node("Neg", "n", &["x"], &["m"], &[]),
        node(
            "If",
            "inner",
            &["d"],
            &["t1"],
            &[
                attribute_graph("then_branch", &inner),
                attribute_graph("else_branch", &branch("Mul", &["m", "k"], "e2")),
            ],
        ),
        output("t1"),
    ]);
    let bytes = model(&graph(&[
        input("x", &[2]),
        input_of("c", BOOL, &[]),
        input_of("d", BOOL, &[]),
        floats("k", &[], &[10.0]),
        if_node("c", &middle, &branch("Mul", &["x", "k"], "e1")),
        output("y"),
    ]));
    let y = |c: bool, d: bool| run(&bytes, &[("x", f32s(&[2], &X)), ("c", flag(&[], c)), ("d", flag(&[], d))]);
    assert_eq!(y(false, true), [f32s(&[2], &[10.0, 20.0])]);
    assert_eq!(y(true, false), [f32s(&[2], &[-10.0, -20.0])]);
    assert_eq!(y(true, true), [f32s(&[2], &[0.0, 0.0])]);
}

/// A Loop body that carries `v` to `w` by those nodes and goes on while its condition says so.
fn loop_body(nodes: &[Part], more_outputs: &[&str]) -> Message {
    let mut parts = vec![
        input_of("i", INT64, &[]),
        input_of("going", BOOL, &[]),
        input("v", &[2]),
        node("Identity", "again", &["going"], &["still"], &[]),
        output("still"),
        output("w"),
    ];
    parts.extend(more_outputs.iter().map(|o| output(o)));
    parts.extend(nodes.iter().cloned());
    graph(&parts)
}

#[test]
fn a_loop_reads_around_it_carries_values_and_collects_the_turns() {
    let choice = [
        attribute_graph("then_branch", &branch("Add", &["v", "x"], "t")),
        attribute_graph("else_branch", &branch("Add", &["v", "k"], "e")),
    ];
    let nodes = [
        // Two levels: the branches read `v` of the body, `x` and `k` of the model.
        node("If", "choice", &["odd"], &["w"], &choice),
        node("Cast", "odd?", &["i"], &["odd"], &[attribute_int("to", BOOL)]),
        node("Mul", "twice", &["w", "two"], &["double"], &[]),
        floats("two", &[], &[2.0]),
    ];
    let bytes = model(&graph(&[
        input_of("n", INT64, &[]),
        input("x", &[2]),
        floats("k", &[2], &[100.0, 200.0]),
        node(
            "Loop",
            "loop",
            &["n", "", "x"],
            &["last", "all"],
            &[attribute_graph("body", &loop_body(&nodes, &["double"]))],
        ),
        output("last"),
        output("all"),
    ]));
    let out = |n| run(&bytes, &[("n", i64s(&[], &[n])), ("x", f32s(&[2], &X))]);
    let expected = [f32s(&[2], &[102.0, 204.0]), f32s(&[2, 2], &[202.0, 404.0, 204.0, 408.0])];
    assert_eq!(out(2), expected);
    // Of no turn there is the first value, and nothing collected.
    assert_eq!(out(0)[0], f32s(&[2], &X));
    assert_eq!(out(0)[1].shape()[0], 0);
}

#[test]
fn a_loop_that_hands_on_constants_gives_what_it_was_given() {
    // `k` and `named` are constants that every turn hands on, `x` is handed on and no constant, `v` changes.
    let body = graph(&[
        input_of("i", INT64, &[]),
        input_of("going", BOOL, &[]),
        input("k_in", &[2]),
        input("v", &[2]),
        input("x_in", &[2]),
        input("named_in", &[2]),
        node("Identity", "again", &["going"], &["still"], &[]),
        node("Mul", "scaled", &["v", "k_in"], &["m"], &[]),
        node("Add", "moved", &["m", "x_in"], &["a"], &[]),
        node("Sub", "less", &["a", "named_in"], &["w"], &[]),
        output("still"),
        output("k_in"),
        output("w"),
        output("x_in"),
        output("named_in"),
        output("m"),
    ]);
    let bytes = model(&graph(&[
        input_of("n", INT64, &[]),
        input("x", &[2]),
        floats("k", &[2], &[2.0, 3.0]),
        floats("named", &[2], &[0.5, 0.25]),
        node(
            "Loop",
            "loop",
            &["n", "", "k", "x", "x", "named"],
            &["k_out", "last", "x_out", "named_out", "all"],
            &[attribute_graph("body", &body)],
        ),
        node("Add", "after", &["k_out", "x_out"], &["sum"], &[]),
        output("last"),
        output("sum"),
        output("named_out"),
        output("all"),
    ]));
    let out = |n| run(&bytes, &[("n", i64s(&[], &[n])), ("x", f32s(&[2], &X))]);
    let step = |v: [f32; 2]| [v[0] * 2.0 + X[0] - 0.5, v[1] * 3.0 + X[1] - 0.25];
    let (one, two) = (step([X[0], X[1]]), step(step([X[0], X[1]])));
    let all = [X[0] * 2.0, X[1] * 3.0, one[0] * 2.0, one[1] * 3.0];
    let (sum, named) = (f32s(&[2], &[2.0 + X[0], 3.0 + X[1]]), f32s(&[2], &[0.5, 0.25]));
    assert_eq!(out(2), [f32s(&[2], &two), sum.clone(), named.clone(), f32s(&[2, 2], &all)]);
    let none = out(0);
    assert_eq!(none[..3], [f32s(&[2], &X), sum, named]);
}

#[test]
fn a_scan_carries_a_state_and_reads_around_it() {
    let body = graph(&[
        input("s", &[2]),
        input("e", &[2]),
        node("Mul", "scaled", &["e", "k"], &["m"], &[]),
        node("Add", "sum", &["s", "m"], &["s2"], &[]),
        node("Add", "shifted", &["s2", "bias"], &["o"], &[]),
        output("s2"),
        output("o"),
    ]);
    let bytes = model(&graph(&[
        input("start", &[2]),
        input("xs", &[3, 2]),
        input("bias", &[2]),
        floats("k", &[], &[10.0]),
        node(
            "Scan",
            "scan",
            &["start", "xs"],
            &["end", "each"],
            &[attribute_int("num_scan_inputs", 1), attribute_graph("body", &body)],
        ),
        output("end"),
        output("each"),
    ]));
    let xs = f32s(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let given = [("start", f32s(&[2], &X)), ("xs", xs), ("bias", f32s(&[2], &[0.5, 0.25]))];
    let each = [11.5, 22.25, 41.5, 62.25, 91.5, 122.25];
    assert_eq!(run(&bytes, &given), [f32s(&[2], &[91.0, 122.0]), f32s(&[3, 2], &each)]);
}

fn with_functions(functions: &[Message], parts: &[Part]) -> Vec<u8> {
    model_of(&[("", 17), ("local", 1)], functions, &graph(parts))
}

fn call(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Part {
    node_in("local", op, &format!("call {op}"), inputs, outputs, attributes)
}

#[test]
fn functions_call_functions_and_hand_attributes_down() {
    // Outer(a) = Inner(Inner(a)) with the caller's slope; Inner(a) = LeakyRelu(a, alpha = slope) + 1.
    let inner = function(
        "Inner",
        &["a"],
        &["b"],
        &["alpha"],
        &[
            node("LeakyRelu", "leak", &["a"], &["l"], &[attribute_reference("alpha", "alpha", 1)]),
            node("Constant", "one", &[], &["k"], &[attribute_tensor("value", &floats_tensor("", &[], &[1.0]))]),
            node("Add", "plus", &["l", "k"], &["b"], &[]),
        ],
    );
    let outer = function(
        "Outer",
        &["a"],
        &["b"],
        &["slope"],
        &[
            call("Inner", &["a"], &["m"], &[attribute_reference("alpha", "slope", 1)]),
            call("Inner", &["m"], &["b"], &[attribute_reference("alpha", "slope", 1)]),
        ],
    );
    let x = f32s(&[2], &[-4.0, 2.0]);
    let parts = |a: &[Message]| vec![input("x", &[2]), call("Outer", &["x"], &["y"], a), output("y")];
    let bytes = with_functions(&[outer.clone(), inner.clone()], &parts(&[attribute_float("slope", 0.5)]));
    assert_eq!(run(&bytes, &[("x", x.clone())]), [f32s(&[2], &[0.5, 4.0])]);
    // An attribute the caller leaves out is left out inside: the operator's own default is 0.01.
    let bytes = with_functions(&[outer, inner], &parts(&[]));
    let y = run(&bytes, &[("x", x)]);
    assert!((y[0].as_f32().unwrap()[0] - 1.96).abs() < 1e-6, "{y:?}");
}

#[test]
fn a_function_may_be_called_without_its_optional_inputs_and_outputs() {
    let clip = function(
        "Bound",
        &["a", "low", "high"],
        &["b", "unused"],
        &[],
        &[node("Clip", "clip", &["a", "low", "high"], &["b"], &[]), node("Neg", "neg", &["a"], &["unused"], &[])],
    );
    let parts =
        [input("x", &[2]), floats("top", &[], &[1.5]), call("Bound", &["x", "", "top"], &["y"], &[]), output("y")];
    assert_eq!(run(&with_functions(&[clip], &parts), &[("x", f32s(&[2], &X))]), [f32s(&[2], &[1.0, 1.5])]);
}

#[test]
fn a_function_may_give_back_what_it_was_given_and_hold_graphs_that_read_it() {
    let pass = function(
        "Pass",
        &["a", "c"],
        &["a", "b"],
        &[],
        &[node(
            "If",
            "if",
            &["c"],
            &["b"],
            &[
                attribute_graph("then_branch", &branch("Relu", &["a"], "t")),
                attribute_graph("else_branch", &branch("Neg", &["a"], "e")),
            ],
        )],
    );
    let parts = [
        input("x", &[2]),
        input_of("c", BOOL, &[]),
        call("Pass", &["x", "c"], &["p", "q"], &[]),
        node("Add", "add", &["p", "q"], &["y"], &[]),
        output("y"),
    ];
    let bytes = with_functions(&[pass], &parts);
    for (c, y) in [(true, [2.0, 4.0]), (false, [0.0, 0.0])] {
        assert_eq!(run(&bytes, &[("x", f32s(&[2], &X)), ("c", flag(&[], c))]), [f32s(&[2], &y)]);
    }
}

#[test]
fn two_calls_of_a_function_do_not_share_names() {
    let f = function(
        "F",
        &["a"],
        &["b"],
        &[],
        &[node("Neg", "n", &["a"], &["m"], &[]), node("Add", "s", &["m", "m"], &["b"], &[])],
    );
    let parts = [input("x", &[2]), call("F", &["x"], &["u"], &[]), call("F", &["u"], &["y"], &[]), output("y")];
    assert_eq!(run(&with_functions(&[f], &parts), &[("x", f32s(&[2], &X))]), [f32s(&[2], &[4.0, 8.0])]);
}

#[test]
fn a_sparse_initializer_is_dense_in_the_graph() {
    let sparse = |indices: Message| {
        (
            15,
            Message::default()
                .message(1, &floats_tensor("k", &[2], &[5.0, 7.0]))
                .message(2, &indices)
                .int(3, 2)
                .int(3, 2),
        )
    };
    for indices in [integers_tensor("", &[2], &[1, 2]), integers_tensor("", &[2, 2], &[0, 1, 1, 0])] {
        let parts = [input("x", &[2, 2]), sparse(indices), node("Add", "a", &["x", "k"], &["y"], &[]), output("y")];
        let y = run(&model(&graph(&parts)), &[("x", f32s(&[2, 2], &[0.0; 4]))]);
        assert_eq!(y, [f32s(&[2, 2], &[0.0, 5.0, 7.0, 0.0])]);
    }
}

#[test]
fn small_types_are_read_from_raw_bytes_and_from_packed_integers_alike() {
    let types = [
        // Two codes a byte, the first in the low bits: 1, -2, 7, -8 and a half-filled byte.
        (INT4, vec![5], vec![0xe1, 0x87, 0x03], vec![1.0, -2.0, 7.0, -8.0, 3.0]),
        (UINT4, vec![3], vec![0xe1, 0x07], vec![1.0, 14.0, 7.0]),
        (BFLOAT16, vec![2], vec![0x80, 0x3f, 0x20, 0xc0], vec![1.0, -2.5]),
        (FLOAT8E4M3FN, vec![2], vec![0x38, 0xc0], vec![1.0, -2.0]),
    ];
    for (dtype, dims, raw, expected) in types {
        let wide = |pair: &[u8]| i64::from(u16::from_le_bytes([pair[0], pair[1]]));
        let typed: Vec<i64> = match dtype {
            BFLOAT16 => raw.chunks(2).map(wide).collect(),
            _ => raw.iter().map(|&b| i64::from(b)).collect(),
        };
        for k in [tensor("k", dtype, &dims, &raw), tensor_typed("k", dtype, &dims, 5, &typed)] {
            let parts = [(5, k), node("Cast", "cast", &["k"], &["y"], &[attribute_int("to", FLOAT)]), output("y")];
            let bytes = model_of(&[("", 21)], &[], &graph(&parts));
            assert_eq!(run(&bytes, &[]), [f32s(&[expected.len()], &expected)], "type {dtype}");
        }
    }
    // The codes themselves mean what the standard says.
    assert_eq!(small::decode(DType::F8E4M3FN, 0x38), 1.0);
}

#[test]
fn outputs_may_repeat_and_be_inputs_or_constants() {
    let bytes = model(&graph(&[
        input("x", &[2]),
        floats("k", &[2], &[10.0, 20.0]),
        node("Neg", "n", &["x"], &["y"], &[]),
        node("Identity", "i", &["x"], &["z"], &[]),
        output("y"),
        output("x"),
        output("k"),
        output("y"),
        output("z"),
    ]));
    let (x, y, k) = (f32s(&[2], &X), f32s(&[2], &[-1.0, -2.0]), f32s(&[2], &[10.0, 20.0]));
    assert_eq!(run(&bytes, &[("x", x.clone())]), [y.clone(), x.clone(), k, y, x]);
    assert_eq!(opened(&bytes).unwrap().output_names(), ["y", "x", "k", "y", "z"]);
}

#[test]
fn results_nobody_wants_may_be_left_out_by_an_empty_name() {
    let bytes = model(&graph(&[
        input("x", &[4]),
        integers("two", &[2]),
        node("TopK", "top", &["x", "two"], &["", "where"], &[]),
        output("where"),
    ]));
    assert_eq!(run(&bytes, &[("x", f32s(&[4], &[3.0, 9.0, 1.0, 5.0]))]), [i64s(&[2], &[1, 3])]);
}

#[test]
fn a_shape_found_while_running_is_planned_for_when_it_is_known() {
    let bytes = model(&graph(&[
        input("x", &[2, 3]),
        node("NonZero", "where", &["x"], &["at"], &[]),
        node("Transpose", "rows", &["at"], &["rows"], &[]),
        node("GatherND", "take", &["x", "rows"], &["taken"], &[]),
        node("Neg", "neg", &["taken"], &["y"], &[]),
        output("y"),
    ]));
    let y = run(&bytes, &[("x", f32s(&[2, 3], &[0.0, 4.0, 0.0, 5.0, 0.0, 6.0]))]);
    assert_eq!(y, [f32s(&[3], &[-4.0, -5.0, -6.0])]);
    assert_eq!(run(&bytes, &[("x", f32s(&[2, 3], &[0.0; 6]))]), [f32s(&[0], &[])]);
}

#[test]
fn every_operator_nobody_can_run_is_named_at_once_those_in_nested_graphs_and_functions_too() {
    let f = function("F", &["a"], &["b"], &[], &[node("InFunction", "n", &["a"], &["b"], &[])]);
    let branch_of = |op: &str, out: &str| branch(op, &["x"], out);
    let parts = [
        input("x", &[2]),
        input_of("c", BOOL, &[]),
        if_node("c", &branch_of("InBranch", "t"), &branch_of("Relu", "e")),
        node_in("com.example", "Elsewhere", "n", &["x"], &["u"], &[]),
        call("F", &["x"], &["v"], &[]),
        output("y"),
        output("u"),
        output("v"),
    ];
    let said = refusal(&with_functions(&[f], &parts));
    for name in ["InBranch", "InFunction", "com.example.Elsewhere"] {
        assert!(said.contains(name), "{name} is not in: {said}");
    }
    assert!(!said.contains("Relu"), "{said}");
}

#[test]
fn a_value_of_a_type_hone_does_not_hold_is_refused_only_when_it_is_used() {
    let text = Message::default().int(1, 1).int(2, 8).text(8, "k").text(6, "word");
    let unused = [(5, text.clone()), input("x", &[2]), node("Relu", "r", &["x"], &["y"], &[]), output("y")];
    assert_eq!(run(&model(&graph(&unused)), &[("x", f32s(&[2], &X))]), [f32s(&[2], &X)]);
    let said = refusal(&plus(&[(5, text)]));
    assert!(said.contains("`k`") && said.contains("strings"), "{said}");
}

#[test]
fn a_run_takes_no_more_memory_and_no_more_turns_than_its_limits() {
    let wide = model(&graph(&[input("x", &[1 << 16]), node("Relu", "r", &["x"], &["y"], &[]), output("y")]));
    let x = f32s(&[1 << 16], &vec![1.0; 1 << 16]);
    let with = |limits| SessionOptions { limits, ..SessionOptions::default() };
    let tight = Limits { run_bytes: 100 << 10, ..Limits::default() };
    let given = [("x".to_string(), x)];
    let said = Session::from_onnx(&wide, "t", with(tight)).unwrap().run(&given).unwrap_err().to_string();
    assert!(said.contains('x') && said.contains("Limits::run_bytes"), "{said}");
    let enough = Limits { run_bytes: 600 << 10, ..Limits::default() };
    Session::from_onnx(&wide, "t", with(enough)).unwrap().run(&given).unwrap();

    let body = loop_body(&[node("Neg", "n", &["v"], &["w"], &[])], &[]);
    let turning = model(&graph(&[
        input_of("n", INT64, &[]),
        input("x", &[2]),
        node("Loop", "loop", &["n", "", "x"], &["y"], &[attribute_graph("body", &body)]),
        output("y"),
    ]));
    let few = Limits { turns: 10, ..Limits::default() };
    let mut session = Session::from_onnx(&turning, "t", with(few)).unwrap();
    let mut turns = |n| session.run(&[("n".to_string(), i64s(&[], &[n])), ("x".to_string(), f32s(&[2], &X))]);
    // Each run has its own turns.
    turns(10).unwrap();
    turns(10).unwrap();
    assert!(turns(11).unwrap_err().to_string().contains("Limits::turns"));
}
