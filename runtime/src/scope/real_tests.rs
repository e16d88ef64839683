//! Gradients of real models, with the weights they were published with, against PyTorch's (`testdata/record_real.py`).
//!
//! The models are not in the repository: `HONE_ZOO` names the directory that `cargo xtask zoo --export` puts them in.
//! `cargo xtask ci` sets it.
use std::path::{Path, PathBuf};

use super::*;
use crate::import::{Limits, from_onnx, to_onnx};
use crate::plan::RunOptions;
use crate::quant::{self, Prepared};
use crate::train::tests::{differs, numbers, recipe_for};
use crate::train::{Batch, TrainOptions, Trainer};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    model: String,
    /// What `cargo xtask` holds against its list.
    #[serde(rename = "sha256")]
    _sha256: String,
    /// What it is quantised by.
    scheme: Option<String>,
    #[serde(flatten)]
    figures: Figures,
    /// Those of activations rounded as the model rounds them.
    rounded: Option<Figures>,
    /// How near those are to themselves when every weight is moved by a millionth: the smallest cosine.
    #[serde(default)]
    steady: f64,
    /// What its pictures are made of: names of `numbers`.
    #[serde(default)]
    tiles: Vec<String>,
}

/// A loss, and of each gradient its norm and its products with tensors of `numbers`.
#[derive(serde::Deserialize)]
struct Figures {
    loss: f64,
    gradients: BTreeMap<String, Vec<f64>>,
}

/// Where the models are; `None`, said aloud, where nobody has told.
fn zoo() -> Option<PathBuf> {
    let found = std::env::var_os("HONE_ZOO").filter(|v| !v.is_empty()).map(PathBuf::from);
    if found.is_none() {
        let told = "skipped: HONE_ZOO names no directory of `cargo xtask zoo --export`, so no real model was trained\n";
        // Not by `eprintln!`, which a test that passes is not heard by.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
    }
    found
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/scope/testdata/real.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask zoo --export` makes it", path.display()))
}

const ROWS: usize = 8;
const LENGTH: usize = 32;

/// The recipe's batch of word pieces: ids, mask, types.
fn sentences() -> Vec<Tensor> {
    let pieces = numbers("word pieces", ROWS * LENGTH);
    let (mut ids, mut mask) = (vec![0i64; ROWS * LENGTH], vec![0i64; ROWS * LENGTH]);
    for row in 0..ROWS {
        let (at, n) = (row * LENGTH, LENGTH - 3 * row);
        for i in at..at + n {
            (ids[i], mask[i]) = (1000 + (pieces[i].abs() * 29000.0).floor() as i64, 1);
        }
        (ids[at], ids[at + n - 1]) = (101, 102);
    }
    let of = |v| Tensor::i64(&[ROWS, LENGTH], v).unwrap();
    vec![of(ids), of(mask), of(vec![0; ROWS * LENGTH])]
}

/// The rows of a batch of sentences, each by itself and as long as it is.
fn rows(batch: &[Tensor]) -> Vec<Vec<Tensor>> {
    let row = |t: &Tensor, row: usize| {
        let n = LENGTH - 3 * row;
        let at: Vec<usize> = (row * LENGTH..row * LENGTH + n).collect();
        Tensor::new(&[1, n], t.data().pick(&at)).unwrap()
    };
    (0..ROWS).map(|i| batch.iter().map(|t| row(t, i)).collect()).collect()
}

/// The model of a case and its version of the operator set. What a scheme makes of it is also written beside it where
/// `HONE_UPDATE` asks, for the recipe to read.
fn model(zoo: &Path, case: &Case, batch: &[Tensor]) -> (Graph, i64) {
    let folder = zoo.join(&case.model);
    let bytes = read(&folder.join("model.onnx"));
    let (graph, info) = from_onnx(&bytes, &Limits::default()).unwrap();
    let Some(name) = &case.scheme else { return (graph, info.opset) };
    let settings = quant::tests::settings(quant::scheme(name).unwrap());
    let prepared = Prepared::new(&graph, info.opset, &rows(batch), settings, &RunOptions::default()).unwrap();
    let made = prepared.apply(&BTreeSet::new(), &BTreeSet::new()).unwrap();
    let written = to_onnx(&made.graph, &bytes).unwrap();
    if std::env::var_os("HONE_UPDATE").is_some() {
        std::fs::write(folder.join(format!("model.{name}.onnx")), &written).unwrap();
    }
    let (graph, info) = from_onnx(&written, &Limits::default()).unwrap();
    (graph, info.opset)
}

/// The loss, and the gradients by name, of low-rank paths beside every projection, filled by the recipe's rule.
fn sentence_gradients(graph: &Graph, opset: i64, inputs: Vec<Tensor>) -> (f64, BTreeMap<String, Tensor>) {
    let output = "sentence_embedding";
    let spec = Spec {
        scopes: vec!["lora".into()],
        output: output.into(),
        new_head: None,
        rank: 8,
        alpha: 16.0,
        targets: Vec::new(),
        freeze_a: false,
        seed: 1,
        tensors: Vec::new(),
    };
    let scoped = place(graph, opset, &spec).unwrap();
    let filled = |(name, t): (String, Tensor)| {
        let v: Vec<f64> = numbers(&name, t.len()).iter().map(|v| 0.02 * v).collect();
        (name, Tensor::from_f64(DType::F32, t.shape(), &v).unwrap())
    };
    let leaves: Vec<(String, Tensor)> = values(&scoped.graph, &scoped.trainable).into_iter().map(filled).collect();
    let graph = scoped.with(&leaves).unwrap();
    let recipe = recipe_for(output, "Contrastive", scoped.trainable.clone());
    let mut trainer = Trainer::new(&graph, recipe, TrainOptions::default()).unwrap();
    let (loss, gradients) = trainer.gradients(&Batch { inputs, target: None, weights: None }).unwrap();
    (f64::from(loss), scoped.trainable.into_iter().zip(gradients).collect())
}

/// Pictures of a tile of numbers beside and below itself, as the recipe chose them.
fn pictures(tiles: &[String]) -> Tensor {
    const SIDE: usize = 224;
    const TILE: usize = 32;
    let mut v = Vec::with_capacity(tiles.len() * 3 * SIDE * SIDE);
    for name in tiles {
        let tile = numbers(name, 3 * TILE * TILE);
        let at = |i: usize| (i / SIDE / SIDE * TILE + i / SIDE % SIDE % TILE) * TILE + i % SIDE % TILE;
        v.extend((0..3 * SIDE * SIDE).map(|i| tile[at(i)] as f32));
    }
    Tensor::f32(&[tiles.len(), 3, SIDE, SIDE], v).unwrap()
}

/// The loss, and the gradients by name, of the last blocks and every bias.
fn picture_gradients(graph: &Graph, tiles: &[String], names: Vec<String>) -> (f64, BTreeMap<String, Tensor>) {
    let image = pictures(tiles);
    let labels = (0..tiles.len() as i64).map(|i| 500 * i + 1).collect();
    let target = Some(Tensor::i64(&[tiles.len()], labels).unwrap());
    let recipe = recipe_for("logits", "Labels", names.clone());
    let mut trainer = Trainer::new(graph, recipe, TrainOptions::default()).unwrap();
    let (loss, gradients) = trainer.gradients(&Batch { inputs: vec![image], target, weights: None }).unwrap();
    (f64::from(loss), names.into_iter().zip(gradients).collect())
}

/// How far gradients are from recorded ones, all of them together: their cosine, and how much longer they are.
///
/// What is between the two is told by its products with tensors of numbers in -1..1, whose squares are a third of its
/// own on average: with eight for each of 72 tensors that is right within some per cent.
fn apart(want: &BTreeMap<String, Vec<f64>>, got: &BTreeMap<String, Tensor>) -> (f64, f64) {
    let (mut wanted, mut found, mut between) = (0.0, 0.0, 0.0);
    for (name, want) in want {
        let v = got[name].data().to_f64();
        let (norm, products) = want.split_first().unwrap();
        wanted += norm * norm;
        found += v.iter().map(|v| v * v).sum::<f64>();
        for (k, want) in products.iter().enumerate() {
            let product = numbers(&format!("{name}:{k}"), v.len()).iter().zip(&v).map(|(a, b)| a * b).sum::<f64>();
            between += 3.0 / products.len() as f64 * (product - want).powi(2);
        }
    }
    ((wanted + found - between) / (2.0 * (wanted * found).sqrt()), (found / wanted).sqrt() - 1.0)
}

/// What differs from recorded figures by more than rounding in `f32` makes of it.
fn exactly(name: &str, want: &Figures, loss: f64, got: &BTreeMap<String, Tensor>) -> Vec<String> {
    let floor = 1e-3 * want.gradients.values().map(|v| v[0]).fold(0f64, f64::max);
    let mut wrong: Vec<String> =
        want.gradients.iter().filter_map(|(n, v)| differs(n, v, &got[n], 1e-4, floor)).collect();
    if (loss - want.loss).abs() > 1e-5 * want.loss.abs().max(1.0) {
        wrong.push(format!("loss {loss}, recorded {}", want.loss));
    }
    wrong.into_iter().map(|w| format!("{name}: {w}")).collect()
}

#[test]
fn gradients_of_real_models_are_those_of_pytorch() {
    let Some(zoo) = zoo() else { return };
    let mut wrong = Vec::new();
    for case in cases() {
        let batch = sentences();
        let (graph, opset) = model(&zoo, &case, &batch);
        let (loss, gradients) = match &case.model[..] {
            "minilm-l6" => sentence_gradients(&graph, opset, batch),
            _ => picture_gradients(&graph, &case.tiles, case.figures.gradients.keys().cloned().collect()),
        };
        let (names, recorded): (Vec<_>, Vec<_>) = (gradients.keys().collect(), case.figures.gradients.keys().collect());
        assert_eq!(names, recorded, "{}", case.name);
        let Some(rounded) = &case.rounded else {
            let (cosine, longer) = apart(&case.figures.gradients, &gradients);
            println!("{}: loss {loss}, cosine 1 - {:.1e}, longer by {longer:.1e}", case.name, 1.0 - cosine);
            wrong.extend(exactly(&case.name, &case.figures, loss, &gradients));
            continue;
        };
        let (cosine, longer) = apart(&rounded.gradients, &gradients);
        let (plain, _) = apart(&case.figures.gradients, &gradients);
        println!("{}: loss {loss}, cosine {cosine:.4}, longer by {longer:.1e}; unrounded {plain:.4}", case.name);
        // A code that rounds the other way turns others after it, so that nobody comes nearer than numbers in `f32` allow:
        // as near as PyTorch comes to itself when its weights move by a millionth, which is what sums in `f32` leave.
        if !(1.0 - cosine <= 1.5 * (1.0 - case.steady) && longer.abs() <= 0.02) {
            let steady = case.steady;
            wrong.push(format!("{}: cosine {cosine}, longer by {longer:e}; itself {steady}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
