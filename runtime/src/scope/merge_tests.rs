//! What is folded in: the same answers as with the path beside, and ONNX Runtime's (`testdata/record_merged.py`).
//!
//! `HONE_UPDATE=1 cargo test -p hone-runtime --lib scope::` writes `testdata/<model>.merged.onnx`; `record_merged.py`
//! what ONNX Runtime answers to them.
use super::tests::{ALL, model, output_of, run, spec};
use super::*;
use crate::bundle::npz::read_npz;
use crate::import::{Limits, from_onnx, to_onnx};
use crate::quant::tests::{read, samples};
use crate::train::tests::numbers;

/// Models whose folded form is recorded.
const RECORDED: [&str; 6] = [
    "picture",
    "picture.int8-weights",
    "picture.int8-qdq",
    "sentence.int8-dynamic",
    "sentence.int8-qdq",
    "sentence.int4",
];

fn trained(name: &str) -> (Graph, i64, Spec, Vec<(String, Tensor)>) {
    let (graph, opset) = model(name);
    let spec = spec(&["lora", "head"], output_of(name));
    let scoped = place(&graph, opset, &spec).unwrap();
    let changed = |(n, t): (String, Tensor)| {
        let v: Vec<f64> = numbers(&n, t.len()).iter().zip(t.data().to_f64()).map(|(d, v)| v + 0.1 * d).collect();
        let t = Tensor::from_f64(DType::F32, t.shape(), &v).unwrap();
        (n, t)
    };
    let tensors = values(&scoped.graph, &scoped.trainable).into_iter().map(changed).collect();
    (graph, opset, spec, tensors)
}

fn file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scope/testdata").join(name)
}

#[test]
fn what_is_folded_in_answers_as_the_path_beside_it_and_needs_no_node_more() {
    for name in ALL {
        let (graph, opset, spec, tensors) = trained(name);
        let beside = place(&graph, opset, &spec).unwrap().with(&tensors).unwrap();
        let merged = merge(&graph, opset, &spec, &tensors).unwrap();
        assert_eq!(merged.beside, Vec::<String>::new(), "{name}");
        let extra = merged.graph.nodes.len() - graph.nodes.len();
        // A shift where a layer had no bias in floats is an addition more.
        assert!(extra <= usize::from(name.contains("qdq")), "{name}: {extra} nodes more");
        // The sentence model's answers are as far off as its planted activation makes them (`quant::tests`); its first
        // product is off by the rounding of a weight alone, which is half a step of 8 bits, or of 4 bits in blocks.
        let (value, most) = match name.split_once('.') {
            Some(("sentence", "int4")) => ("q.product", 0.12),
            Some(("sentence", _)) => ("q.product", 0.02),
            Some(_) => ("logits", 0.02),
            None => (output_of(name), 1e-5),
        };
        let at = |graph: &Graph, x: &[Tensor]| {
            let v = graph.values.iter().position(|v| v.name == value).unwrap();
            run(&Graph { outputs: vec![v], ..graph.clone() }, x)
        };
        let (mut noise, mut signal, mut before) = (0.0, 0.0, 0.0);
        for x in samples(name.split('.').next().unwrap()) {
            let (want, got, old) = (at(&beside, &x), at(&merged.graph, &x), at(&graph, &x));
            for ((w, g), o) in want.iter().zip(&got).zip(&old) {
                noise += f64::from(w - g).powi(2);
                signal += f64::from(*w).powi(2);
                before += f64::from(w - o).powi(2);
            }
        }
        let (off, moved) = ((noise / signal).sqrt(), (before / signal).sqrt());
        println!("{name}: off by {off:.4}, moved by {moved:.4}");
        assert!(off < most && moved > 1.2 * off, "{name}: {off} off, {moved} moved");
    }
}

#[test]
fn onnx_runtime_computes_what_we_do_with_what_is_folded_in() {
    let update = std::env::var_os("HONE_UPDATE").is_some();
    for name in RECORDED {
        let (graph, opset, spec, tensors) = trained(name);
        let merged = merge(&graph, opset, &spec, &tensors).unwrap();
        let bytes = to_onnx(&merged.graph, &read(&format!("{name}.onnx"))).unwrap();
        let onnx = file(&format!("{name}.merged.onnx"));
        if update {
            std::fs::write(&onnx, &bytes).unwrap();
            continue;
        }
        let recorded = std::fs::read(&onnx).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(recorded == bytes, "{name}: HONE_UPDATE=1 and record_merged.py make the recording anew");
        let (again, _) = from_onnx(&recorded, &Limits::default()).unwrap();
        let answers = read_npz(&std::fs::read(file(&format!("{name}.merged.npz"))).unwrap()).unwrap();
        for (i, x) in samples(name.split('.').next().unwrap()).iter().enumerate() {
            let want = answers.iter().find(|(n, _)| *n == format!("out{i}")).unwrap().1.as_f32().unwrap().to_vec();
            let got = run(&again, x);
            let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            // Activations of 8 bits are a step apart where a sum falls on the other side of a rounding.
            let most = if name.contains("qdq") || name.contains("dynamic") { 0.02 } else { 2e-5 };
            assert!(off <= most * largest, "{name}, sample {i}: {off} of {largest}");
        }
    }
}

#[test]
fn a_file_with_a_new_head_declares_the_new_classes() {
    let (graph, opset) = model("picture");
    let spec = Spec { new_head: Some(3), ..spec(&["head"], "logits") };
    let scoped = place(&graph, opset, &spec).unwrap();
    let tensors = values(&scoped.graph, &scoped.trainable);
    let merged = merge(&graph, opset, &spec, &tensors).unwrap();
    let bytes = to_onnx(&merged.graph, &read("picture.onnx")).unwrap();
    let (again, _) = from_onnx(&bytes, &Limits::default()).unwrap();
    let declared = again.values[again.outputs[0]].declared.clone().unwrap().shape.unwrap();
    assert_eq!(declared[1].known(), Some(3), "{declared:?}");
}

#[test]
fn a_weight_with_another_reader_keeps_its_path_beside_it() {
    let (mut graph, opset) = model("picture.int8-weights");
    // The dense layer's weight is an output too, dequantised.
    let dense = graph.nodes.iter().find(|n| n.name == "dense.out/Gemm").unwrap().inputs[1].unwrap();
    graph.outputs.push(dense);
    let spec = spec(&["lora"], "logits");
    let scoped = place(&graph, opset, &spec).unwrap();
    let tensors = values(&scoped.graph, &scoped.trainable);
    let merged = merge(&graph, opset, &spec, &tensors).unwrap();
    assert_eq!(merged.beside, ["dense"]);
    assert_eq!(merged.folded.len() + 1, scoped.sides.len());
}

#[test]
fn peft_gets_low_rank_paths_in_its_own_layout_and_what_it_has_no_form_for_is_named() {
    let (graph, opset) = model("sentence");
    let lora = Spec { targets: vec!["wide".into()], ..spec(&["lora"], "vector") };
    let scoped = place(&graph, opset, &lora).unwrap();
    let tensors = values(&scoped.graph, &scoped.trainable);
    let made = peft(&graph, opset, &lora, &tensors).unwrap();
    let shape = |name: &str| made.tensors.iter().find(|(n, _)| n == name).unwrap().1.shape().to_vec();
    let wide =
        graph.values.iter().find(|v| v.name == "wide.weight").unwrap().constant.as_ref().unwrap().shape().to_vec();
    assert_eq!(shape("base_model.model.wide.lora_A.weight"), [4, wide[0]]);
    assert_eq!(shape("base_model.model.wide.lora_B.weight"), [wide[1], 4]);
    let config: serde_json::Value = serde_json::from_str(&made.config).unwrap();
    assert_eq!((&config["r"], &config["target_modules"][0]), (&4.into(), &"wide".into()));
    let a = &made.tensors[0].1;
    let own = tensors.iter().find(|(n, _)| n == "wide.lora_A").unwrap().1.as_f32().unwrap().to_vec();
    assert_eq!(a.as_f32().unwrap()[1], own[4], "the second element of the first row is that of the first column");
    let with_bias = spec(&["lora", "bias"], "vector");
    let scoped = place(&graph, opset, &with_bias).unwrap();
    let e = peft(&graph, opset, &with_bias, &values(&scoped.graph, &scoped.trainable)).unwrap_err();
    assert!(e.to_string().contains("PEFT has no form"), "{e}");
}

#[test]
fn biases_beside_low_rank_paths_are_written_as_peft_keeps_them_and_no_module_is_told_twice() {
    let onnx = std::fs::read(file("peft.onnx")).unwrap();
    let (graph, info) = from_onnx(&onnx, &Limits::default()).unwrap();
    let made = |scopes: &[&str], targets: &[&str]| {
        let targets = targets.iter().map(ToString::to_string).collect();
        let spec = Spec { targets, ..spec(scopes, "logits") };
        let scoped = place(&graph, info.opset, &spec).unwrap();
        let tensors: Vec<(String, Tensor)> = values(&scoped.graph, &scoped.trainable)
            .into_iter()
            .map(|(n, t)| (n, Tensor::from_f64(DType::F32, t.shape(), &vec![0.5; t.len()]).unwrap()))
            .collect();
        let made = peft(&graph, info.opset, &spec, &tensors).unwrap();
        let config: serde_json::Value = serde_json::from_str(&made.config).unwrap();
        (config, made.tensors)
    };
    let named = |tensors: &[(String, Tensor)], suffix: &str| {
        let mut names: Vec<String> = tensors.iter().map(|(n, _)| n.replace("base_model.model.", "")).collect();
        names.retain(|n| n.ends_with(suffix));
        names.sort();
        names
    };
    // Of layers with a path beneath it, of others as they are.
    let (config, tensors) = made(&["lora", "bias"], &["body.wide", "stem"]);
    assert_eq!((&config["bias"], &config["modules_to_save"]), (&"all".into(), &serde_json::Value::Null));
    let biases = ["body.narrow.bias", "body.wide.base_layer.bias", "classifier.bias", "stem.base_layer.bias"];
    assert_eq!(named(&tensors, "bias"), biases);
    let of = |name: &str| tensors.iter().find(|(n, _)| n.ends_with(name)).unwrap().1.as_f32().unwrap().to_vec();
    assert_eq!(of("body.wide.base_layer.bias"), [0.5; 24]);
    // A layer that is trained itself is a module of its own, and is told so once.
    let (config, tensors) = made(&["lora", "bias", "head"], &[]);
    assert_eq!((&config["bias"], &config["modules_to_save"]), (&"all".into(), &serde_json::json!(["classifier"])));
    assert_eq!(config["target_modules"], serde_json::json!(["stem", "body.wide", "body.narrow"]));
    assert_eq!(named(&tensors, "classifier.weight"), ["classifier.weight"]);
    assert_eq!(named(&tensors, "classifier.bias"), ["classifier.bias"]);
    // Nothing is in the file twice, and no module in both lists.
    for targets in [&["stem"][..], &["classifier", "body.*"], &[]] {
        let (config, tensors) = made(&["lora", "bias"], targets);
        let mut names = named(&tensors, "");
        names.dedup();
        assert_eq!(names.len(), tensors.len());
        let list = |key: &str| config[key].as_array().cloned().unwrap_or_default();
        assert!(list("modules_to_save").iter().all(|m| !list("target_modules").contains(m)), "{config}");
    }
    // What has no form there: a layer with a path beside its weight that is trained as well.
    let both = spec(&["lora", "full"], "logits");
    let scoped = place(&graph, info.opset, &both).unwrap();
    let e = peft(&graph, info.opset, &both, &values(&scoped.graph, &scoped.trainable)).unwrap_err().to_string();
    assert!(e.contains("PEFT has no form") && e.contains("--merged"), "{e}");
}

#[test]
fn what_peft_computes_with_what_was_written_for_it_is_what_the_graph_computes() {
    let onnx = std::fs::read(file("peft.onnx")).unwrap();
    let (graph, info) = from_onnx(&onnx, &Limits::default()).unwrap();
    let lora = spec(&["lora", "head"], "logits");
    peft_computes("peft", &graph, info.opset, &lora, &["stem", "body.wide", "body.narrow"]);
    let biased = Spec { targets: vec!["stem".into(), "body.narrow".into()], ..spec(&["lora", "bias"], "logits") };
    peft_computes("peft-bias", &graph, info.opset, &biased, &["stem", "body.narrow"]);
}

fn peft_computes(recorded: &str, graph: &Graph, opset: i64, spec: &Spec, layers: &[&str]) {
    let scoped = place(graph, opset, spec).unwrap();
    assert_eq!(scoped.sides.iter().map(|s| s.layer.as_str()).collect::<Vec<_>>(), layers);
    let filled = |(n, t): (String, Tensor)| {
        let v: Vec<f64> = numbers(&n, t.len()).iter().map(|v| 0.3 * v).collect();
        let t = Tensor::from_f64(DType::F32, t.shape(), &v).unwrap();
        (n, t)
    };
    let tensors: Vec<(String, Tensor)> = values(&scoped.graph, &scoped.trainable).into_iter().map(filled).collect();
    let made = peft(graph, opset, spec, &tensors).unwrap();
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = crate::tensor::safetensors::write(&made.tensors, metadata).unwrap();
    let folder = file(recorded);
    let (config, model) = (folder.join("adapter_config.json"), folder.join("adapter_model.safetensors"));
    if std::env::var_os("HONE_UPDATE").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&config, &made.config).unwrap();
        std::fs::write(&model, &bytes).unwrap();
        return;
    }
    let renew = "HONE_UPDATE=1 and record_peft.py make the recording anew";
    assert_eq!(std::fs::read_to_string(config).unwrap(), made.config, "{renew}");
    assert!(std::fs::read(model).unwrap() == bytes, "{renew}");
    let recorded = read_npz(&std::fs::read(file(&format!("{recorded}.npz"))).unwrap()).unwrap();
    let tensor = |name: &str| recorded.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let want = tensor("logits").as_f32().unwrap().to_vec();
    let off = |graph: &Graph| {
        let got = run(graph, &[tensor("image")]);
        want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    let trained = scoped.with(&tensors).unwrap();
    let merged = merge(graph, opset, spec, &tensors).unwrap().graph;
    let (beside, folded, without) = (off(&trained), off(&merged), off(graph));
    assert!(beside < 1e-5 && folded < 1e-5 && without > 0.1, "{beside} beside, {folded} folded, {without} without");
}
