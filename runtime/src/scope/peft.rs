//! Low-rank paths, and a head or biases that were trained with them, as PEFT keeps them: for the PyTorch model the graph
//! came from.
use std::collections::BTreeSet;

use super::{ScopeError, Spec, place, values};
use crate::graph::{Graph, Op};
use crate::tensor::{Data, Tensor};

/// The two files of a PEFT adapter, as what they hold.
#[derive(Clone, Debug)]
pub struct Peft {
    /// `adapter_config.json`.
    pub config: String,
    /// The tensors of `adapter_model.safetensors`.
    pub tensors: Vec<(String, Tensor)>,
}

/// What PEFT puts before the path of a module.
const PREFIX: &str = "base_model.model.";

/// The trained values of `spec` in PEFT's names and layout: `A` is `[r, K]`, `B` is `[N, r]`. Layers are called as the
/// exporter called their weights.
///
/// A module whose weight is trained itself is one of `modules_to_save`, whole: what of it was not trained is written
/// with it. Biases of other modules, those with low-rank paths among them, are written as PEFT writes them for `bias`
/// `all`. Its `lora_only` would be nearer to some specs, but PEFT looks for those biases under names that layers with a
/// path do not have (`get_peft_model_state_dict` of 0.21), and would lose them when it saves.
///
/// # Errors
/// [`ScopeError`] as [`place`]; [`ScopeError::Nothing`] without a low-rank path, [`ScopeError::Misfit`] for a trained
/// tensor that PEFT has no form for.
pub fn peft(graph: &Graph, opset: i64, spec: &Spec, tensors: &[(String, Tensor)]) -> Result<Peft, ScopeError> {
    let scoped = place(graph, opset, spec)?;
    if scoped.sides.is_empty() {
        let (output, why) = (spec.output.clone(), "low-rank paths, which are what PEFT can load");
        return Err(ScopeError::Nothing { scope: "lora", output, why });
    }
    let trained = scoped.with(tensors)?;
    let misfit = |name: &str, why: &str| ScopeError::Misfit { name: name.to_string(), why: why.to_string() };
    let constant = |name: &str| values(&trained, &[name.to_string()]).pop().map(|(_, t)| t);
    let mut out = Vec::new();
    let mut of_sides = BTreeSet::new();
    for side in &scoped.sides {
        for (name, suffix) in [(&side.a, "lora_A"), (&side.b, "lora_B")] {
            let t = constant(name).ok_or_else(|| misfit(name, "is missing"))?;
            let t = if t.shape().len() == 2 { turned(&t) } else { t };
            out.push((format!("{PREFIX}{}.{suffix}.weight", side.layer), t));
            of_sides.insert(name.clone());
        }
    }
    let targets: BTreeSet<&str> = scoped.sides.iter().map(|s| s.layer.as_str()).collect();
    let own = |name: &str| graph.values.iter().any(|v| v.name == name && v.constant.is_some());
    let no_form = |name: &str| misfit(name, "is trained, and PEFT has no form for it: use --merged");
    let (mut saved, mut biases) = (BTreeSet::new(), Vec::new());
    for name in scoped.trainable.iter().filter(|n| !of_sides.contains(*n)) {
        match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
            (Some(module), _) if own(name) && !targets.contains(module) => drop(saved.insert(module)),
            (_, Some(module)) if own(name) => biases.push((module, name)),
            _ => return Err(no_form(name)),
        }
    }
    for module in &saved {
        for name in [format!("{module}.weight"), format!("{module}.bias")].into_iter().filter(|n| own(n)) {
            let t = constant(&name).ok_or_else(|| no_form(&name))?;
            let t = if is_turned(graph, &name) { turned(&t) } else { t };
            out.push((format!("{PREFIX}{name}"), t));
        }
    }
    biases.retain(|(module, _)| !saved.contains(module));
    for (module, name) in &biases {
        let t = constant(name).ok_or_else(|| no_form(name))?;
        // PEFT puts a layer with a path into one of its own.
        let layer = if targets.contains(module) { ".base_layer" } else { "" };
        out.push((format!("{PREFIX}{module}{layer}.bias"), t));
    }
    let targets: Vec<&String> = scoped.sides.iter().map(|s| &s.layer).collect();
    let config = serde_json::json!({
        "peft_type": "LORA",
        "base_model_name_or_path": null,
        "task_type": null,
        "inference_mode": true,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": if biases.is_empty() { "none" } else { "all" },
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "target_modules": targets,
        "modules_to_save": if saved.is_empty() { None } else { Some(saved) },
    });
    Ok(Peft { config: format!("{config:#}\n"), tensors: out })
}

/// Whether the graph holds a weight of two axes the other way round than `torch.nn.Linear`.
fn is_turned(graph: &Graph, name: &str) -> bool {
    let Some(v) = graph.values.iter().position(|v| v.name == name) else { return false };
    if graph.values[v].constant.as_ref().is_none_or(|t| t.shape().len() != 2) {
        return false;
    }
    graph.nodes.iter().any(|n| match &n.op {
        Op::Own(def, attrs) if n.inputs.get(1) == Some(&Some(v)) => {
            def.name == "MatMul" || def.name == "Gemm" && attrs.int("transB", 0).is_ok_and(|t| t == 0)
        }
        _ => false,
    })
}

/// A matrix the other way round.
fn turned(t: &Tensor) -> Tensor {
    let (rows, columns) = (t.shape()[0], t.shape()[1]);
    let order: Vec<usize> = (0..rows * columns).map(|i| i % rows * columns + i / rows).collect();
    let data: Data = t.data().pick(&order);
    Tensor::new(&[columns, rows], data).expect("as many elements as before")
}
