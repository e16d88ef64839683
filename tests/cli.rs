//! The program as a person or a script meets it: exit codes, messages that name the culprit, JSON that parses.
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hone_runtime::bundle::{Bundle, BundleWriter, GraphEntry, Manifest, Overwrite};
use hone_runtime::journal::{Example, Journal, Press, PressKind, Shown, Source};
use hone_runtime::state::StateDir;
use serde_json::Value;

const VERBS: &[&str] = &[
    "adapter",
    "bench",
    "check",
    "completions",
    "config",
    "demo",
    "doctor",
    "eval",
    "export",
    "feedback",
    "flash",
    "inspect",
    "listen",
    "man",
    "pad",
    "quantize",
    "run",
    "tune",
];

/// Runs `hone`; the environment names no state directory, so that no test touches a person's.
fn hone(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.args(args).env_remove("STATE_DIRECTORY").env_remove("XDG_STATE_HOME").env_remove("HOME");
    command.stdin(Stdio::null()).output().expect("the program starts")
}

fn code(out: &Output) -> i32 {
    out.status.code().unwrap_or_else(|| panic!("killed: {}", String::from_utf8_lossy(&out.stderr)))
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Runs `hone`, expects success, gives stdout.
fn ok(args: &[&str]) -> String {
    let out = hone(args);
    assert_eq!(code(&out), 0, "{args:?}: {}", stderr(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs `hone` and expects this exit code and every one of these texts in its one paragraph.
fn refused(args: &[&str], exit: i32, texts: &[&str]) {
    let out = hone(args);
    let said = stderr(&out);
    assert_eq!(code(&out), exit, "{args:?}: {said}");
    for text in texts {
        assert!(said.contains(text), "{args:?} does not say {text:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path that is UTF-8")
}

// ---- the smallest ONNX files ----------------------------------------------------------------------------------------

fn varint(mut v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
    out
}

fn number(field: u64, v: u64) -> Vec<u8> {
    [varint(field << 3), varint(v)].concat()
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// A value of f32 `[N, 3]`.
fn value(name: &str) -> Vec<u8> {
    let dims = [bytes(1, &bytes(2, b"N")), bytes(1, &number(1, 3))].concat();
    let tensor = [number(1, 1), bytes(2, &dims)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

/// A chain of unary operators from `x` to `y`.
fn onnx(ops: &[&str]) -> Vec<u8> {
    let name = |i: usize| match i {
        0 => "x".to_string(),
        i if i == ops.len() => "y".to_string(),
        i => format!("t{i}"),
    };
    let mut graph = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let (from, to) = (name(i), name(i + 1));
        let node = [bytes(1, from.as_bytes()), bytes(2, to.as_bytes()), bytes(4, op.as_bytes())].concat();
        graph.extend(bytes(1, &node));
    }
    graph.extend([bytes(2, b"chain"), bytes(11, &value("x")), bytes(12, &value("y"))].concat());
    [number(1, 8), bytes(8, &number(2, 17)), bytes(7, &graph)].concat()
}

/// A bundle of a chain with one Relu, as a directory.
fn tiny_bundle(dir: &Path) -> PathBuf {
    let mut manifest = Manifest::new("tiny", "1.0.0", "2026-11-23T18:00:00Z");
    let (name, path, role) = ("main".to_string(), "onnx/model.onnx".to_string(), "main".to_string());
    manifest.graphs.push(GraphEntry { name, path, role, state: vec![] });
    let mut writer = BundleWriter::new(manifest);
    writer.add("onnx/model.onnx", "graph", onnx(&["Relu"])).unwrap();
    let path = dir.join("tiny.hone");
    writer.finish().unwrap().write_dir(&path, Overwrite::Refuse).unwrap();
    path
}

/// A journal with two predictions, one of them answered.
fn journal(dir: &Path) -> PathBuf {
    let state = dir.join("state");
    let mut journal = Journal::open(StateDir::at(&state).lock().unwrap()).unwrap();
    for class in 0..2u32 {
        let example = Example {
            model_digest: "00".repeat(32),
            adapter_id: None,
            feature: vec![0.5, -1.0],
            logits: vec![0.25, 1.5, 0.0],
            inputs: vec![],
        };
        let id = journal.shown(&Shown { example, class, label: format!("c{class}"), mu: 1.0, p: 0.5 }).unwrap();
        if class == 0 {
            journal.press(&Press::new(Some(id), PressKind::Thumb { up: true }, Source::Gpio)).unwrap();
        }
    }
    journal.close().unwrap();
    state
}

// ---- promises -------------------------------------------------------------------------------------------------------

#[test]
fn every_verb_explains_itself_and_has_a_manual_page() {
    let listed = ok(&["--help"]);
    let dir = tempfile::tempdir().unwrap();
    ok(&["man", text(dir.path())]);
    for verb in VERBS {
        assert!(listed.contains(verb), "--help does not list {verb}");
        let help = ok(&[verb, "--help"]);
        assert!(help.contains("Usage: hone"), "{verb}: {help}");
        let page = dir.path().join(format!("hone-{verb}.1"));
        assert!(page.is_file(), "no manual page for {verb}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&["completions", shell]).contains("inspect"), "{shell}");
    }
    assert!(ok(&["man"]).contains(".TH hone 1"));
}

#[test]
fn a_wrong_command_line_is_exit_code_two() {
    refused(&["inspect"], 2, &["Usage"]);
    refused(&["feedback", "add", "--prediction", "1"], 2, &["--up"]);
    refused(&["feedback", "redact"], 2, &["--source"]);
    refused(&["export", "m.onnx", "-o", "m.hone", "--input", "x"], 2, &["KEY=VALUE"]);
}

#[test]
fn what_is_no_model_is_refused_with_code_three_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.onnx");
    fs::write(&path, "this is a letter to my aunt\n").unwrap();
    refused(&["inspect", text(&path)], 3, &["notes.onnx", "not an ONNX model"]);
    refused(&["bench", text(&path)], 3, &["notes.onnx"]);
    refused(&["export", text(&path), "-o", text(&dir.path().join("o.hone"))], 3, &["notes.onnx"]);
    assert!(!dir.path().join("o.hone").exists());
    let absent = dir.path().join("absent.hone");
    refused(&["inspect", text(&absent)], 3, &["absent.hone", "there is no"]);
    refused(&["export", text(&absent), "-o", "o.hone"], 3, &["absent.hone"]);
}

#[test]
fn a_truncated_bundle_and_a_flipped_byte_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(dir.path());
    let zip = Bundle::open(&bundle).unwrap().to_zip().unwrap();
    let cut = dir.path().join("cut.hone");
    fs::write(&cut, &zip[..zip.len() / 2]).unwrap();
    refused(&["inspect", text(&cut)], 3, &["cut.hone"]);

    ok(&["inspect", text(&bundle)]);
    let graph = bundle.join("onnx/model.onnx");
    let mut content = fs::read(&graph).unwrap();
    content[5] ^= 1;
    fs::write(&graph, content).unwrap();
    refused(&["inspect", text(&bundle)], 3, &["onnx/model.onnx", "SHA-256"]);
    refused(&["adapter", "list", text(&bundle), "--state", text(dir.path())], 3, &["onnx/model.onnx"]);
}

#[test]
fn every_unknown_operator_is_listed_with_code_seven() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.onnx");
    fs::write(&path, onnx(&["Relu", "Frobnicate", "Relu", "Quux"])).unwrap();
    refused(&["inspect", text(&path)], 7, &["Frobnicate", "Quux"]);
}

/// A node of one input and one output.
fn node(op: &str, domain: &str, from: &str, to: &str) -> Vec<u8> {
    let domain = if domain.is_empty() { Vec::new() } else { bytes(7, domain.as_bytes()) };
    [bytes(1, from.as_bytes()), bytes(2, to.as_bytes()), bytes(3, to.as_bytes()), bytes(4, op.as_bytes()), domain]
        .concat()
}

/// A model of those nodes from `x` to `y`, with functions of its own in the domain `mine`.
fn model(nodes: &[Vec<u8>], functions: &[Vec<u8>]) -> Vec<u8> {
    let mut graph: Vec<u8> = nodes.iter().flat_map(|n| bytes(1, n)).collect();
    graph.extend([bytes(2, b"g"), bytes(11, &value("x")), bytes(12, &value("y"))].concat());
    let opsets = [bytes(8, &number(2, 17)), bytes(8, &[bytes(1, b"mine"), number(2, 1)].concat())].concat();
    let functions: Vec<u8> = functions.iter().flat_map(|f| bytes(25, f)).collect();
    [number(1, 8), opsets, bytes(7, &graph), functions].concat()
}

/// An `If` on `cond` whose branches are that node.
fn branches(cond: &str, to: &str, inner: &[u8]) -> Vec<u8> {
    let branch = [bytes(1, inner), bytes(2, b"branch"), bytes(12, &value("inner"))].concat();
    let attribute = |name: &str| [bytes(1, name.as_bytes()), bytes(6, &branch), number(20, 5)].concat();
    let attributes = [bytes(5, &attribute("then_branch")), bytes(5, &attribute("else_branch"))].concat();
    [node("If", "", cond, to), attributes].concat()
}

#[test]
fn unknown_operators_in_nested_graphs_and_functions_are_listed_at_once_with_those_outside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.onnx");
    let body = [bytes(7, &node("Quux", "", "a", "b")), bytes(9, &number(2, 17))].concat();
    let function = [bytes(1, b"Call"), bytes(4, b"a"), bytes(5, b"b"), body, bytes(10, b"mine")].concat();
    let nodes = [
        node("Relu", "", "x", "h"),
        node("Frobnicate", "org.example", "h", "i"),
        node("Call", "mine", "i", "j"),
        node("IsNaN", "", "j", "k"),
        branches("k", "y", &node("Xyzzy", "", "j", "inner")),
    ];
    fs::write(&path, model(&nodes, &[function])).unwrap();
    refused(&["inspect", text(&path)], 7, &["Quux, Xyzzy, org.example.Frobnicate"]);
    refused(&["inspect", text(&path), "--ops", "--json"], 7, &["Quux, Xyzzy, org.example.Frobnicate"]);
}

#[test]
fn inspect_says_of_every_operator_how_it_runs_and_what_is_quantised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    // The number of columns of `h` is that of elements of `x` that are not 0: nobody knows it before.
    let nodes = [
        node("NonZero", "", "x", "h"),
        [node("Cast", "", "h", "f"), bytes(5, &[bytes(1, b"to"), number(3, 1), number(20, 2)].concat())].concat(),
        [bytes(1, b"f"), bytes(2, b"q"), bytes(2, b"s"), bytes(2, b"z"), bytes(4, b"DynamicQuantizeLinear")].concat(),
        [bytes(1, b"q"), bytes(1, b"s"), bytes(1, b"z"), bytes(2, b"y"), bytes(4, b"DequantizeLinear")].concat(),
    ];
    fs::write(&path, model(&nodes, &[])).unwrap();
    let doc: Value = serde_json::from_str(&ok(&["inspect", text(&path), "--ops", "--json"])).unwrap();
    let rows: Vec<(&str, &str)> = doc["ops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| (o["op"].as_str().unwrap(), o["runs_as"].as_str().unwrap()))
        .collect();
    assert_eq!(rows[0].0, "NonZero");
    for op in ["Cast", "DynamicQuantizeLinear", "DequantizeLinear"] {
        assert!(rows.contains(&(op, "planned at run time")), "{op}: {rows:?}");
    }
    assert_eq!(doc["quantisation"]["qdq"]["DequantizeLinear"], 1);
    assert_eq!(doc["quantisation"]["dynamic"]["DynamicQuantizeLinear"], 1);
    let said = ok(&["inspect", text(&path)]);
    assert!(said.contains("quantised   1 DequantizeLinear, 1 DynamicQuantizeLinear"), "{said}");
}

#[test]
fn inspect_tells_shapes_census_steps_and_memory_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    fs::write(&path, onnx(&["Relu", "Sigmoid"])).unwrap();
    let doc = ok(&["inspect", text(&path), "--ops", "--memory", "--bind", "N=4", "--json"]);
    assert!(doc.trim_start_matches(['{', '\n', ' ']).starts_with("\"schema\""), "the schema comes first: {doc}");
    let doc: Value = serde_json::from_str(&doc).unwrap();
    assert_eq!(doc["schema"], "hone.inspect/1");
    assert_eq!(doc["inputs"][0]["shape"], serde_json::json!(["N", "3"]));
    assert_eq!(doc["opset"], 17);
    assert_eq!(doc["graph_ops"].as_array().unwrap().len(), 2);
    assert_eq!(doc["ops"].as_array().unwrap().len(), 2);
    assert_eq!(doc["memory"]["bindings"]["N"], 4);
    // x and y of [4, 3] floats at least must be held.
    assert!(doc["memory"]["arena_bytes"].as_u64().unwrap() >= 2 * 4 * 3 * 4);
    assert_eq!(doc["memory"]["plans"], 16);
    assert!((100..10_000).contains(&doc["memory"]["plan_bytes"].as_u64().unwrap()), "{doc}");
}

#[test]
fn bench_gives_the_stable_keys_and_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    fs::write(&path, onnx(&["Relu"])).unwrap();
    let doc: Value =
        serde_json::from_str(&ok(&["bench", text(&path), "--runs", "7", "--batch", "2", "-o", "json"])).unwrap();
    assert_eq!(doc["schema"], "hone.bench/1");
    assert!(doc["machine"]["cpu"].is_string());
    let row = &doc["rows"][0];
    for key in ["p50_ms", "p95_ms", "p99_ms", "mean_ms", "sd_ms", "items_per_s", "load_ms", "first_ms"] {
        assert!(row[key].as_f64().is_some_and(|v| v >= 0.0), "{key}: {row}");
    }
    assert_eq!((&row["runs"], &row["threads"], &row["device"]), (&7.into(), &1.into(), &"cpu".into()));
    assert!(row.get("gpu").is_none(), "no GPU had a part in it: {row}");
    assert!(
        ok(&["bench", text(&path), "--runs", "1", "-o", "csv"])
            .starts_with("model,scheme,precision,device,threads,test")
    );
    if !cfg!(feature = "gpu") {
        refused(&["bench", text(&path), "--device", "gpu"], 7, &["--features gpu"]);
    }
    refused(&["check", text(&path), "--cases", ".", "--device", "auto"], 2, &["--device cpu"]);
    refused(&["tune", text(&path), "--data", ".", "--profile", "--device", "auto"], 2, &["--device cpu"]);
    refused(&["run", text(&path), "--device", "tpu"], 2, &["cpu, gpu, auto"]);
    refused(&["tune", text(&path), "--device", "gpu"], 2, &["presses", "--data"]);
    refused(&["tune", text(&path), "--data", ".", "--profile", "--device", "gpu"], 2, &["--profile"]);
    assert!(ok(&["inspect", "--devices"]).starts_with("cpu: always there"));
    ok(&["bench", text(&path), "--runs", "1", "--threads", "2"]);
    refused(&["bench", text(&path), "--threads", "0"], 2, &["--threads"]);
    refused(&["bench", text(&path), "--runs", "0"], 2, &["--runs"]);
}

#[test]
fn bench_runs_on_shapes_that_are_given_and_on_recorded_cases_in_turn_at_several_counts_of_threads() {
    use hone_runtime::bundle::npz::write_npz;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    fs::write(&path, onnx(&["Relu"])).unwrap();
    let rows = |args: &[&str]| -> Vec<Value> {
        let doc: Value =
            serde_json::from_str(&ok(&[&["bench", text(&path), "--runs", "3", "-o", "json"], args].concat())).unwrap();
        doc["rows"].as_array().unwrap().clone()
    };
    let row = &rows(&["--shape", "x:4x3"])[0];
    assert_eq!((&row["test"], &row["inputs"]), (&"x:4x3".into(), &"synthetic".into()));
    for (wrong, says) in [
        (&["--shape", "x:4x5"][..], "`x`"),
        (&["--shape", "z:4x3"], "it has: x"),
        (&["--shape", "x"], "NAME:1x3x224x224"),
        (&["--shape", "x:4x0"], "above 0"),
        (&["--shape", "x:4x3", "--shape", "x:5x3"], "twice"),
        (&["--shape", "x:4x3", "--batch", "2"], "--batch does not go with --shape"),
        (&["--shape", "x:4x3", "--bind", "N=4"], "--bind"),
    ] {
        refused(&[&["bench", text(&path)], wrong].concat(), 2, &[says]);
    }

    let cases = dir.path().join("cases");
    fs::create_dir(&cases).unwrap();
    for n in 1..3 {
        let x = hone_runtime::Tensor::f32(&[n, 3], vec![0.5; 3 * n]).unwrap();
        fs::write(cases.join(format!("case{n}.npz")), write_npz([("in_x", &x)]).unwrap()).unwrap();
    }
    let row = &rows(&["--cases", text(&cases)])[0];
    assert_eq!((&row["test"], &row["inputs"]), (&"2 cases in turn".into(), &"cases".into()));
    refused(&["bench", text(&path), "--cases", text(dir.path())], 3, &["case*.npz"]);
    refused(&["bench", text(&path), "--cases", text(&cases), "--batch", "2"], 2, &["--cases"]);

    let both = rows(&["--threads", "1,2"]);
    let threads: Vec<&Value> = both.iter().map(|r| &r["threads"]).collect();
    assert_eq!(threads, [&Value::from(1), &Value::from(2)]);
    refused(&["bench", text(&path), "--threads", "1,0"], 2, &["--threads"]);
}

#[test]
fn bench_says_which_scheme_a_model_is_quantised_by() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/src/quant/testdata");
    let scheme = |model: &Path| -> String {
        let doc: Value = serde_json::from_str(&ok(&["bench", text(model), "--runs", "1", "-o", "json"])).unwrap();
        doc["rows"][0]["scheme"].as_str().unwrap().to_string()
    };
    for name in ["int8-qdq", "int8-dynamic", "int8-weights", "int4"] {
        assert_eq!(scheme(&dir.join(format!("sentence.{name}.onnx"))), name);
    }
    assert_eq!(scheme(&dir.join("sentence.onnx")), "f32");
    let mixed = tempfile::tempdir().unwrap();
    let path = mixed.path().join("m.onnx");
    let nodes = [
        [bytes(1, b"x"), bytes(2, b"q"), bytes(2, b"s"), bytes(2, b"z"), bytes(4, b"DynamicQuantizeLinear")].concat(),
        [bytes(1, b"x"), bytes(1, b"s"), bytes(1, b"z"), bytes(2, b"r"), bytes(4, b"QuantizeLinear")].concat(),
        [bytes(1, b"r"), bytes(1, b"s"), bytes(1, b"z"), bytes(2, b"y"), bytes(4, b"DequantizeLinear")].concat(),
    ];
    fs::write(&path, model(&nodes, &[])).unwrap();
    assert_eq!(scheme(&path), "mixed");
}

#[test]
fn what_products_are_computed_in_and_why_is_in_the_result_of_every_verb() {
    use hone_runtime::bundle::npz::{read_npz, write_npz};
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let strip = root.join("models/strip/strip.hone");
    let json = |args: &[&str]| -> Value { serde_json::from_str(&ok(args)).unwrap() };

    let doc = json(&["bench", text(&strip), "--runs", "2", "--profile", "-o", "json", "--precision", "bf16"]);
    let row = &doc["rows"][0];
    assert_eq!(row["precision"], "bf16");
    assert!(row["precision_why"].as_str().unwrap().contains("cosine"), "{row}");
    let kernels: Vec<&str> = row["steps"].as_array().unwrap().iter().map(|s| s["kernel"].as_str().unwrap()).collect();
    assert!(kernels.iter().any(|k| k.ends_with("wbf16")), "{kernels:?}");
    assert!(doc["machine"]["kernel_bf16"].as_str().unwrap().contains("wbf16"));
    assert!(doc["machine"]["kernel_int8"].as_str().unwrap().contains("u8i8"));
    let doc = json(&["bench", text(&strip), "--runs", "1", "-o", "json"]);
    assert_eq!((&doc["rows"][0]["precision"], &doc["rows"][0]["precision_why"]), (&"f32".into(), &Value::Null));

    let data = root.join("models/strip/world");
    let doc = json(&["eval", text(&strip), "--data", text(&data), "--precision", "bf16", "--json"]);
    assert_eq!(doc["precision"], "bf16");
    assert!(doc["precision_why"].as_str().unwrap().contains("accepted"), "{doc}");

    // A file has no golden samples that could accept it; the reference functions have no bf16.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    fs::write(&path, onnx(&["Relu"])).unwrap();
    let doc = json(&["bench", text(&path), "--runs", "1", "-o", "json", "--precision", "auto"]);
    assert_eq!(doc["rows"][0]["precision"], "f32");
    assert!(doc["rows"][0]["precision_why"].as_str().unwrap().contains("golden samples"), "{doc}");
    // Recorded cases can.
    let (onnx, given, cases) =
        (strip.join("onnx/model.onnx"), strip.join("samples/input.npz"), dir.path().join("cases"));
    let sample = read_npz(&fs::read(&given).unwrap()).unwrap();
    let named: Vec<(String, _)> = sample.into_iter().map(|(n, t)| (format!("in_{n}"), t)).collect();
    fs::create_dir(&cases).unwrap();
    fs::write(cases.join("case0.npz"), write_npz(named.iter().map(|(n, t)| (n.as_str(), t))).unwrap()).unwrap();
    let doc = json(
        &[&["bench", text(&onnx), "--runs", "1", "-o", "json"][..], &["--precision", "bf16", "--cases", text(&cases)]]
            .concat(),
    );
    let why = doc["rows"][0]["precision_why"].as_str().unwrap();
    assert!(why.contains("accepted on 1 recorded case"), "{why}");
    let run = ["run", text(&onnx), "--tensors", text(&given), "--json", "--precision"];
    let judged = json(&[&run[..], &["bf16", "--cases", text(&cases)]].concat());
    assert!(judged["precision_why"].as_str().unwrap().contains("recorded case"), "{judged}");
    let alone = json(&[&run[..], &["bf16"]].concat());
    assert!(alone["precision_why"].as_str().unwrap().contains("nothing judged it"), "{alone}");
    refused(&[&run[..], &["f32", "--cases", text(&cases)]].concat(), 2, &["--cases", "--precision auto"]);
    let checked = ["check", text(&path), "--cases", text(dir.path()), "--reference", "--precision", "bf16"];
    refused(&checked, 7, &["reference functions", "--precision f32"]);
    refused(&["run", text(&path), "--precision", "half"], 2, &["bf16"]);
}

#[test]
fn a_state_directory_below_a_file_is_exit_code_six() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain");
    fs::write(&file, "x").unwrap();
    let state = file.join("state");
    let add = ["feedback", "add", "--prediction", "1", "--up", "--state", text(&state)];
    refused(&add, 6, &["plain"]);
    let doctor = hone(&["doctor", "--json", "--state", text(&state)]);
    assert_eq!(code(&doctor), 6, "{}", stderr(&doctor));
    let doc: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let broken = doc["checks"].as_array().unwrap().iter().find(|c| c["name"] == "state").unwrap();
    assert_eq!(broken["verdict"], "fail");
    assert!(broken["next"].is_string());
    refused(&["feedback", "list"], 78, &["--state"]);
}

#[test]
fn a_journal_that_is_held_may_be_read_but_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = journal(dir.path());
    let held = StateDir::at(&state).lock().unwrap();
    let add = ["feedback", "add", "--prediction", "2", "--up", "--state", text(&state)];
    refused(&add, 75, &["held", &std::process::id().to_string()]);
    assert!(ok(&["feedback", "list", "--state", text(&state)]).contains("effective"));
    let doctor = ok(&["doctor", "--state", text(&state)]);
    assert!(doctor.contains(&std::process::id().to_string()), "{doctor}");
    drop(held);
    assert!(ok(&add).contains("effective"));
}

#[test]
fn feedback_is_said_corrected_taken_back_and_refused_when_it_is_about_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = journal(dir.path());
    let at = text(&state);
    refused(&["feedback", "add", "--prediction", "9", "--up", "--state", at], 2, &["no prediction 9"]);
    refused(&["feedback", "add", "--prediction", "2", "--correct", "7", "--state", at], 2, &["below 3"]);
    assert!(
        ok(&["feedback", "add", "--prediction", "2", "--correct", "0", "--confirmed", "--state", at])
            .contains("effective")
    );
    let shown: Value = serde_json::from_str(&ok(&["feedback", "show", "2", "--json", "--state", at])).unwrap();
    assert_eq!(shown["presses"][0]["said"], serde_json::json!({"kind": "correction", "class": 0}));
    assert_eq!(shown["presses"][0]["confirmed"], true);
    ok(&["feedback", "add", "--prediction", "1", "--undo", "--state", at]);
    refused(&["feedback", "add", "--prediction", "1", "--undo", "--state", at], 2, &["nothing to take back"]);
    let stats: Value = serde_json::from_str(&ok(&["feedback", "stats", "--json", "--state", at])).unwrap();
    assert_eq!((&stats["effective"], &stats["undone"]), (&1.into(), &1.into()));
    let lines = ok(&["feedback", "list", "--jsonl", "--source", "command", "--state", at]);
    assert_eq!(lines.lines().filter(|l| serde_json::from_str::<Value>(l).unwrap().is_object()).count(), 2);
    assert!(ok(&["feedback", "redact", "--source", "gpio", "--state", at]).starts_with("1 records"));
    assert!(ok(&["feedback", "verify", "--state", at]).starts_with("sound"));
}

#[test]
fn an_export_imported_and_exported_again_is_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let state = journal(dir.path());
    let (first, second) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
    ok(&["feedback", "export", "-o", text(&first), "--state", text(&state)]);
    let copy = dir.path().join("copy");
    ok(&["feedback", "import", text(&first), "--state", text(&copy)]);
    ok(&["feedback", "export", "-o", text(&second), "--state", text(&copy)]);
    let content = fs::read(&first).unwrap();
    assert!(!content.is_empty());
    assert_eq!(content, fs::read(&second).unwrap());
    assert_eq!(content, ok(&["feedback", "export", "--state", text(&copy)]).into_bytes());
    refused(&["feedback", "import", text(&first), "--state", text(&copy)], 1, &["empty state directory"]);
    fs::write(&first, &content[..content.len() - 9]).unwrap();
    refused(
        &["feedback", "import", text(&first), "--state", text(&dir.path().join("new"))],
        3,
        &["nothing was imported"],
    );
}

#[test]
fn a_model_is_only_exported_when_it_gives_what_was_recorded() {
    use hone_runtime::bundle::npz::write_npz;
    use hone_runtime::tensor::Tensor;
    let dir = tempfile::tempdir().unwrap();
    let (model, cases, target) = (dir.path().join("m.onnx"), dir.path().join("check"), dir.path().join("m.hone"));
    fs::write(&model, onnx(&["Relu"])).unwrap();
    fs::create_dir(&cases).unwrap();
    let record = |y: [f32; 3]| {
        let x = Tensor::f32(&[1, 3], vec![-1.0, 0.5, 2.0]).unwrap();
        let y = Tensor::f32(&[1, 3], y.to_vec()).unwrap();
        fs::write(cases.join("case0.npz"), write_npz([("in_x", &x), ("out_0", &y)]).unwrap()).unwrap();
    };
    let args = |extra: &'static [&'static str]| {
        let mut a = vec!["export", text(&model), "-o", text(&target), "--check", text(&cases)];
        a.extend(["--created", "2026-11-23T18:00:00Z", "--input", "x=sensor"]);
        a.extend(extra);
        a
    };
    record([0.0, 0.5, 2.1]);
    refused(&args(&[]), 3, &["case0.npz", "`y`", "no bundle"]);
    assert!(!target.exists());

    record([0.0, 0.5, 2.0]);
    // A sensor input needs sensors.json, which nobody gave.
    refused(&args(&[]), 3, &["sensors.json"]);
    let plain: Vec<&str> = args(&[]).into_iter().filter(|a| !matches!(*a, "--input" | "x=sensor")).collect();
    let said = ok(&plain);
    assert!(said.contains("case0.npz") && said.contains("base "), "{said}");
    refused(&plain, 2, &["exists already"]);
    let bundle = Bundle::open(&target).unwrap();
    assert!(bundle.contains("samples/expected.npz"));
    let row: Value = serde_json::from_str(&ok(&["bench", text(&target), "--runs", "3", "-o", "jsonl"])).unwrap();
    assert_eq!(row["inputs"], "sample");
    let listed: Value = serde_json::from_str(&ok(&[
        "adapter",
        "list",
        text(&target),
        "--json",
        "--state",
        text(&dir.path().join("none")),
    ]))
    .unwrap();
    assert_eq!((&listed["current"], &listed["adapters"]), (&"factory".into(), &serde_json::json!([])));
}

#[test]
fn the_reader_of_our_output_may_leave_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    fs::write(&path, onnx(&["Relu"])).unwrap();
    for args in [vec!["inspect", text(&path), "--json"], vec!["completions", "zsh"], vec!["man"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hone"))
            .args(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert_eq!(code(&out), 0, "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).is_empty(), "{args:?}: {}", stderr(&out));
    }
}

#[test]
fn an_emulated_pad_says_its_port_first_and_does_what_it_is_told() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hone"))
        .args(["pad", "emulate", "--virtual", "--buttons", "3", "--uid", "0123456789abcdef"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"click 2\nclick 3\nfrobnicate\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let (port, said) = (String::from_utf8(out.stdout.clone()).unwrap(), stderr(&out));
    assert_eq!(code(&out), 0, "{said}");
    assert!(port.starts_with("/dev/") && port.lines().count() == 1, "{port}");
    assert!(said.contains("1 pending"), "the click is held until a host takes it: {said}");
    assert!(said.contains("not 3") && said.contains("frobnicate"), "{said}");
    refused(&["pad", "emulate", "--buttons", "17"], 5, &["1 to 16"]);
    ok(&["pad", "list"]);
}

fn which_digit(at: &str) -> String {
    text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit").join(at)).to_string()
}

/// The arguments of the command in the model's README, with another configuration and target.
fn export_which_digit(config: &str, target: &Path) -> Output {
    let (model, check) = (which_digit("src/model.onnx"), which_digit("src/check"));
    let created = "2026-11-23T18:00:00Z";
    let name = ["--name", "which-digit", "--created", created];
    hone(&[&["export", &model, "-o", text(target), "--config", config, "--check", &check], &name[..]].concat())
}

#[test]
fn the_shipped_bundle_is_what_its_sources_make() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("made.hone");
    let out = export_which_digit(&which_digit("src/config"), &target);
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    let made = fs::read_to_string(target.join("manifest.json")).unwrap();
    let shipped = fs::read_to_string(which_digit("which-digit.hone/manifest.json")).unwrap();
    assert_eq!(made, shipped, "run the export command in models/which-digit/README.md and commit the result");
    Bundle::open(which_digit("which-digit.hone")).unwrap();
}

#[test]
fn a_head_that_is_not_the_graphs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    for entry in fs::read_dir(which_digit("src/config")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, config.join(from.file_name().unwrap())).unwrap();
    }
    let head = config.join("head.safetensors");
    let mut content = fs::read(&head).unwrap();
    let last = content.len() - 4;
    content[last..].copy_from_slice(&1000f32.to_le_bytes());
    fs::write(&head, content).unwrap();
    let target = dir.path().join("made.hone");
    let out = export_which_digit(text(&config), &target);
    assert_eq!(code(&out), 3, "{}", stderr(&out));
    assert!(stderr(&out).contains("train/head.safetensors"), "{}", stderr(&out));
    assert!(!target.exists());
}

#[test]
fn an_option_of_another_scheme_is_refused_and_not_left_unsaid() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (which_digit("src/model.f32.onnx"), dir.path().join("small.onnx"));
    let cases = which_digit("src/check");
    let of_ranges: [&[&str]; 4] =
        [&["--smooth", "0.5"], &["--bias-correction"], &["--calibration", "entropy"], &["--percentile", "99"]];
    let of_blocks: [&[&str]; 3] = [&["--block", "64"], &["--asymmetric"], &["--fit", "hqq"]];
    for (options, right, wrong) in [
        (&of_ranges[..], "int8-qdq", &["int8-dynamic", "int8-weights", "int4"][..]),
        (&of_blocks[..], "int4", &["int8-qdq", "int8-dynamic", "int8-weights"][..]),
    ] {
        for (option, scheme) in options.iter().flat_map(|o| wrong.iter().map(move |s| (o, s))) {
            let args = ["quantize", &model, "-o", text(&out), "--calib", &cases, "--scheme", scheme];
            refused(&[&args, *option].concat(), 2, &[option[0], &format!("--scheme {scheme}"), right, "leave it out"]);
        }
    }
    let args = ["quantize", &model, "-o", text(&out), "--calib", &cases, "--percentile", "99"];
    refused(&args, 2, &["--percentile", "--calibration percentile", "neither"]);
    refused(&[&args[..], &["--calibration", "mse"]].concat(), 2, &["--percentile", "--calibration percentile"]);
    assert!(!out.exists());
    ok(&["quantize", &model, "-o", text(&out), "--scheme", "int4", "--block", "64", "--asymmetric"]);
}

#[test]
fn what_quantising_may_cost_is_measured_and_where_it_costs_more_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit/src");
    let (model, cases, out) = (src.join("model.f32.onnx"), src.join("check"), dir.path().join("small.onnx"));
    let args = |scheme: &'static str, most: &'static str| {
        ["quantize", text(&model), "-o", text(&out), "--scheme", scheme, "--max-drop", most]
    };
    let measured = ["--calib", text(&cases)];
    refused(&args("int4", "1"), 4, &["--max-drop", "--calib DIR", "nothing was written"]);
    let none = ["no layer", "--max-drop", "nothing was written"];
    refused(&[&args("int8-weights", "0")[..], &measured].concat(), 4, &none);
    assert!(!out.exists());
    ok(&[&args("int4", "1")[..], &measured].concat());
    let (before, after) = (fs::metadata(&model).unwrap().len(), fs::metadata(&out).unwrap().len());
    assert!(after * 4 < before, "{before} bytes before, {after} after");
}
