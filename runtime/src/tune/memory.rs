//! What a run takes, and which smaller run fits into a memory that the one asked for does not fit into.
use std::collections::HashSet;
use std::sync::Arc;

use super::batch::{Batcher, Extremes};
use super::body::{self, Body};
use super::{Needs, Settings, TuneError};
use crate::graph::Graph;
use crate::scope::{self, Scoped, Spec};
use crate::tensor::{DType, Tensor};
use crate::train::{TrainError, TrainOptions, Trainer};

/// A run that is ready to begin.
pub(super) struct Planned {
    pub(super) trainer: Trainer,
    pub(super) needs: Needs,
    /// What makes features of examples, where the trainer learns on those.
    pub(super) body: Option<Body>,
}

/// Plans a run of `scoped` on that many examples between `extremes`, with that many bytes of copies of its parameters. Where
/// nothing trained changes what comes before it, it is trained on features. Its copies are those, and the examples of a
/// step.
pub(super) fn plan(
    scoped: &Scoped,
    spec: &Spec,
    settings: &Settings,
    options: &TrainOptions,
    batcher: &Batcher,
    extremes: &Extremes,
    (examples, copies): (usize, usize),
) -> Result<Planned, TuneError> {
    let split = if spec.changes_features() { None } else { body::split(scoped, &spec.output) };
    let body = split.as_ref().map(|s| Body::new(s, extremes, batcher, options)).transpose()?.flatten();
    let (scoped, batcher, shapes) = match (&split, &body) {
        (Some(split), Some(body)) => (&split.tail, &body.batcher(batcher), body.shapes(batcher)),
        _ => (scoped, batcher, batcher.all_shapes(extremes)),
    };
    let copies = copies + shapes.iter().map(|s| given(settings, batcher, s)).max().unwrap_or(0);
    let limit = settings.max_bytes;
    let may = limit.map(|m| m.saturating_sub(copies));
    let settings = Settings { max_bytes: may, ..settings.clone() };
    let mut trainer = Trainer::new(&scoped.graph, super::recipe(scoped, spec, &settings, batcher), options.clone())?;
    let step = match trainer.prove(&shapes) {
        Err(TrainError::Memory { needs, .. }) => {
            return Err(TuneError::Memory { needs: needs + copies, may: limit.unwrap_or(usize::MAX), fits: None });
        }
        other => other?,
    };
    let stored = body.as_ref().map(|b| b.stored(examples, step.total(), may));
    Ok(Planned { trainer, needs: Needs { step, copies, stored }, body })
}

/// What of parameters is kept beside those the trainer moves.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    /// The best epoch's, because epochs are compared.
    pub(super) best: bool,
    /// Those at the start of an epoch, because targets are made with them.
    pub(super) start: bool,
    /// Everything twice while a checkpoint is written: as tensors, and as the file.
    pub(super) written: bool,
}

/// Bytes of what is kept, and of the leaves that were put beside the model.
pub(super) fn copies(graph: &Graph, scoped: &Scoped, settings: &Settings, kept: Kept) -> usize {
    let own: HashSet<*const Tensor> =
        graph.values.iter().filter_map(|v| Some(Arc::as_ptr(v.constant.as_ref()?))).collect();
    let bytes = |t: &Arc<Tensor>| {
        let states = settings.optimizer.states(t.shape());
        let moved: usize = states.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let more = usize::from(kept.best) + usize::from(kept.start);
        let written = if kept.written { 2 * (t.len() * (1 + more) + moved) } else { 0 };
        let held = (usize::from(!own.contains(&Arc::as_ptr(t))) + more) * t.len();
        (held + written) * t.dtype().size_bytes()
    };
    leaves(scoped).map(bytes).sum()
}

/// Bytes of the examples of a step on batches of those inputs: one by one, and while they are put together one batch of
/// them twice. What the arena holds of them is the step's.
pub(super) fn given(settings: &Settings, batcher: &Batcher, shapes: &[(DType, Vec<usize>)]) -> usize {
    let batch: usize = shapes.iter().map(|(t, s)| s.iter().product::<usize>() * t.size_bytes()).sum();
    let batches = (settings.batch * settings.accumulate).div_ceil(batcher.rows);
    (batches + 1) * batch
}

/// The trainable leaves.
pub(super) fn leaves(scoped: &Scoped) -> impl Iterator<Item = &Arc<Tensor>> {
    let names: HashSet<&str> = scoped.trainable.iter().map(String::as_str).collect();
    let named = scoped.graph.values.iter().filter(move |v| names.contains(v.name.as_str()));
    named.filter_map(|v| v.constant.as_ref())
}

/// The first of a row of smaller runs whose step takes at most `may` bytes, in the words of the command line, and what
/// it takes: the same on fewer examples at a time, a lower rank, only the last layers, other scopes.
pub(super) fn smaller(
    graph: &Graph,
    opset: i64,
    spec: &Spec,
    settings: &Settings,
    options: &TrainOptions,
    batcher: &Batcher,
    extremes: &Extremes,
    kept: Kept,
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
        let copies = copies(graph, &scoped, &settings, kept);
        let planned = plan(&scoped, &spec, &settings, options, &batcher, extremes, (1, copies)).ok()?;
        let taken = planned.needs.total();
        (taken <= may).then_some((text, taken))
    })
}
