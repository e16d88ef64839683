//! Which smaller run fits into a memory that the one asked for does not fit into.
use super::{Batcher, Example, Settings};
use crate::graph::Graph;
use crate::scope::{self, Spec};
use crate::train::{TrainOptions, Trainer};

/// The first of a row of smaller runs whose step takes at most `may` bytes, in the words of the command line, and what it
/// takes: the same on fewer examples at a time, a lower rank, only the last layers, other scopes.
pub(super) fn smaller(
    graph: &Graph,
    opset: i64,
    spec: &Spec,
    settings: &Settings,
    options: &TrainOptions,
    batcher: &Batcher,
    example: &Example,
    may: usize,
) -> Option<(String, usize)> {
    let mut tries: Vec<(String, Spec, usize)> = Vec::new();
    let rows = settings.batch * settings.accumulate;
    let mut batch = batcher.rows;
    while batch > 1 {
        batch = batch.div_ceil(2);
        let text = format!("--batch {batch} --accumulate {}", rows.div_ceil(batch));
        tries.push((text, spec.clone(), batch));
    }
    let with_lora = spec.scopes.iter().any(|s| s == "lora");
    let of = |scopes: &str| Spec {
        scopes: scopes.split(',').map(String::from).collect(),
        new_head: spec.new_head,
        ..spec.clone()
    };
    let head = if spec.scopes.iter().any(|s| s == "head") { "head," } else { "" };
    if with_lora || spec.scopes.iter().any(|s| s == "full" || s == "sparse") {
        let lora = of(&format!("{head}lora"));
        if let Ok(placed) = scope::place(graph, opset, &lora) {
            let layers: Vec<String> = placed.sides.iter().map(|s| s.layer.clone()).collect();
            for last in [layers.len() / 2, layers.len() / 4, 3, 1] {
                let rank = spec.rank.min(4);
                if last == 0 || last >= layers.len() {
                    continue;
                }
                let targets = layers[layers.len() - last..].to_vec();
                let text = format!(
                    "--batch 1 --scope {head}lora --rank {rank} on the last {last} layers (--targets {})",
                    targets.join(" ")
                );
                tries.push((text, Spec { rank, targets, ..lora.clone() }, 1));
            }
        }
    }
    if !spec.scopes.iter().all(|s| s == "bias") {
        tries.push(("--batch 1 --scope bias".into(), Spec { new_head: None, ..of("bias") }, 1));
    }
    if !spec.scopes.iter().all(|s| s == "head") {
        tries.push(("--batch 1 --scope head".into(), of("head"), 1));
    }
    tries.into_iter().find_map(|(text, spec, batch)| {
        let scoped = scope::place(graph, opset, &spec).ok()?;
        let batcher = Batcher { rows: batch, rowed: batcher.rowed.clone(), ..*batcher };
        let settings = Settings { accumulate: rows.div_ceil(batch), batch, max_bytes: Some(may), ..settings.clone() };
        let mut trainer =
            Trainer::new(&scoped.graph, super::recipe(&scoped, &spec, &settings, &batcher), options.clone()).ok()?;
        let taken = trainer.footprint(&batcher.shapes(example)).ok()?;
        (taken.total() <= may).then(|| (text, taken.total()))
    })
}
