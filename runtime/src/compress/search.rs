//! Which layers have to stay `f32`: found by what they cost on the task, not by what they look like.
//!
//! Every layer with a weight is quantised alone and measured; the costliest are kept, as few as meet the limit; then each
//! of those is quantised again where the limit still holds. Layers without a weight follow the ones around them. A scheme of
//! fewer than 8 bits gives its costly layers 8 bits in place of 32.
use std::collections::{BTreeMap, BTreeSet};

use super::CompressError;
use super::task::{Score, Task};
use crate::plan::RunOptions;
use crate::quant::{Prepared, Quantised};

/// Times a kept layer is tried again, at most.
const AGAIN: usize = 16;

/// What was found.
pub(super) struct Found {
    /// Nodes to keep besides those that are kept anyway.
    pub(super) kept: BTreeSet<String>,
    /// Points each layer costs alone.
    pub(super) alone: BTreeMap<String, f64>,
    /// The graph.
    pub(super) quantised: Quantised,
}

/// Quantises all but as few layers as it takes to lose at most `limit` points; `all` is everything quantised but the
/// nodes `always`.
///
/// # Errors
/// When a graph does not run.
pub(super) fn search(
    prepared: &Prepared,
    all: Quantised,
    task: &Task<'_>,
    always: &BTreeSet<String>,
    limit: f64,
    run: &RunOptions,
) -> Result<Found, CompressError> {
    let float = task.score_graph(prepared.graph(), run)?;
    let lost = |s: Score| 100.0 * (float.value - s.value);
    let try_with = |kept: &BTreeSet<String>| -> Result<(Quantised, Score), CompressError> {
        let q = if prepared.scheme().widens {
            prepared.apply(always, kept)?
        } else {
            prepared.apply(&always.union(kept).cloned().collect(), &BTreeSet::new())?
        };
        let score = task.score_graph(&q.graph, run)?;
        Ok((q, score))
    };
    if lost(task.score_graph(&all.graph, run)?) <= limit {
        return Ok(Found { kept: BTreeSet::new(), alone: BTreeMap::new(), quantised: all });
    }
    let layers: Vec<String> = all.layers.iter().filter(|l| l.weight_elements > 0).map(|l| l.name.clone()).collect();
    // Products of two activations have no weight, but cost.
    let unweighted = all.layers.iter().filter(|l| l.weight_elements == 0 && l.op == "MatMul").map(|l| l.name.clone());
    let layers: Vec<String> = layers.into_iter().chain(unweighted).collect();
    let everything: BTreeSet<String> = layers.iter().cloned().collect();
    let mut costs: Vec<(f64, f64, String)> = Vec::with_capacity(layers.len());
    for name in &layers {
        let mut others = everything.clone();
        others.remove(name);
        let (_, score) = try_with(&others)?;
        costs.push((lost(score), score.error, name.clone()));
    }
    costs.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let first = |k: usize| -> BTreeSet<String> { costs[..k].iter().map(|c| c.2.clone()).collect() };
    // The fewest of the costliest; keeping all of them is the float model.
    let (mut low, mut high) = (1, costs.len());
    while low < high {
        let middle = low.midpoint(high);
        if lost(try_with(&first(middle))?.1) <= limit {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let mut kept = first(high.min(costs.len()));
    for (_, _, name) in costs[..kept.len()].iter().rev().take(AGAIN) {
        let mut fewer = kept.clone();
        fewer.remove(name);
        if !fewer.is_empty() && lost(try_with(&fewer)?.1) <= limit {
            kept = fewer;
        }
    }
    let (quantised, _) = try_with(&kept)?;
    let alone = costs.into_iter().map(|(points, _, name)| (name, points)).collect();
    Ok(Found { kept, alone, quantised })
}
