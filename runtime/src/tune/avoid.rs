//! What can be trained where a gradient stops half-way: low-rank paths on the layers behind the operator that has none.
use std::collections::BTreeSet;

use super::batch::{Batcher, Extremes};
use super::{Settings, TuneError, recipe};
use crate::autodiff::AutodiffError;
use crate::graph::Graph;
use crate::scope::{self, Side, Spec};
use crate::train::{TrainError, TrainOptions, Trainer};

/// How many operators without a gradient are looked behind.
const TRIES: usize = 16;

/// The options that train what lies behind the node at which `e` stopped, in the words of the command line; `None` for
/// other errors, and where nothing lies behind it.
pub(super) fn instead(
    e: &TrainError,
    graph: &Graph,
    opset: i64,
    spec: &Spec,
    settings: &Settings,
    options: &TrainOptions,
    batcher: &Batcher,
    extremes: &Extremes,
) -> Option<String> {
    let mut at = stopped(e)?.to_string();
    let of = |scopes: &[&str], targets: Vec<String>| Spec {
        scopes: scopes.iter().map(ToString::to_string).collect(),
        targets,
        tensors: Vec::new(),
        ..spec.clone()
    };
    // Whether it can be planned, or the node at which it stops.
    let settings = Settings { max_bytes: None, ..settings.clone() };
    let stops = |spec: &Spec| -> Option<Result<(), String>> {
        let scoped = scope::place(graph, opset, spec).ok()?;
        let recipe = recipe(&scoped, spec, &settings, batcher);
        let mut trainer = Trainer::new(&scoped.graph, recipe, options.clone()).ok()?;
        match trainer.footprint(&batcher.shapes_of(&extremes.largest[0], 1)) {
            Ok(_) => Some(Ok(())),
            Err(e) => Some(Err(stopped(&e)?.to_string())),
        }
    };
    let head = spec.new_head.is_some();
    let scopes = if head { &["head", "lora"][..] } else { &["lora"] };
    let placed = scope::place(graph, opset, &of(scopes, Vec::new())).ok();
    let (all, placed_graph) = placed.map_or((Vec::new(), Graph::default()), |p| (p.sides, p.graph));
    let mut left: Vec<&Side> = all.iter().collect();
    for _ in 0..TRIES {
        let before = ancestors(&placed_graph, &at);
        let count = left.len();
        left.retain(|s| !s.nodes.iter().any(|n| before.contains(n.as_str())));
        if left.len() == count {
            // A node that a pass has made of several, and that the graph does not know.
            left.drain(..count.div_ceil(2));
        }
        if left.is_empty() {
            break;
        }
        let targets = patterns(&left, &all);
        match stops(&of(scopes, targets.clone()))? {
            Ok(()) => return Some(format!("--scope {} --targets {}", scopes.join(","), quoted(&targets))),
            Err(next) => at = next,
        }
    }
    matches!(stops(&of(&["head"], Vec::new()))?, Ok(())).then(|| "--scope head".to_string())
}

/// The node that could not be differentiated.
fn stopped(e: &TrainError) -> Option<&str> {
    match e {
        TrainError::Autodiff(AutodiffError::NotDifferentiable { node, .. } | AutodiffError::Op { node, .. }) => {
            Some(node)
        }
        _ => None,
    }
}

/// Names of the nodes whose results lead to the node of that name, itself among them.
fn ancestors<'a>(graph: &'a Graph, name: &str) -> BTreeSet<&'a str> {
    let producers = graph.producers();
    let mut stack: Vec<usize> = graph.nodes.iter().position(|n| n.name == name).into_iter().collect();
    let mut found = BTreeSet::new();
    while let Some(i) = stack.pop() {
        if found.insert(i) {
            stack.extend(graph.nodes[i].inputs.iter().flatten().filter_map(|&v| producers.get(v).copied().flatten()));
        }
    }
    found.into_iter().map(|i| graph.nodes[i].name.as_str()).collect()
}

/// Patterns for some of the layers and for none of the others: beginnings of names up to a dot or a slash where they
/// stand for nothing else.
fn patterns(of: &[&Side], all: &[Side]) -> Vec<String> {
    let wanted: BTreeSet<&str> = of.iter().map(|s| s.layer.as_str()).collect();
    // A pattern may be of the name of a layer, of its weight and of its nodes.
    let others: Vec<&str> = (all.iter())
        .filter(|s| !wanted.contains(s.layer.as_str()))
        .flat_map(|s| [s.layer.as_str(), s.weight.as_str()].into_iter().chain(s.nodes.iter().map(String::as_str)))
        .collect();
    let mut out: Vec<String> = Vec::new();
    for layer in of.iter().map(|s| &s.layer) {
        if out.iter().any(|p| p.strip_suffix('*').is_some_and(|p| layer.starts_with(p))) {
            continue;
        }
        let ends = layer.char_indices().filter(|(_, c)| matches!(c, '.' | '/')).map(|(i, _)| &layer[..=i]);
        let alone = ends.filter(|p| p.len() > 1).find(|p| others.iter().all(|o| !o.starts_with(p)));
        // A beginning that only this one has says less than its name.
        let shared = alone.filter(|p| wanted.iter().filter(|w| w.starts_with(p)).count() > 1);
        out.push(shared.map_or_else(|| layer.clone(), |p| format!("{p}*")));
    }
    out
}

fn quoted(patterns: &[String]) -> String {
    let one = |p: &String| if p.ends_with('*') { format!("'{p}'") } else { p.clone() };
    patterns.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// `e` with what could be trained instead, where it is a gradient that there is not.
pub(super) fn with_advice(e: TuneError, advice: impl FnOnce(&TrainError) -> Option<String>) -> TuneError {
    match e {
        TuneError::Train(source) if stopped(&source).is_some() => {
            let instead = advice(&source);
            TuneError::Stopped { source, instead }
        }
        other => other,
    }
}
