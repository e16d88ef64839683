//! Which layers need more bits: found by what they cost on the task, not by what they look like.
//!
//! Every layer that may have more is left with few alone and measured; the costliest get more, as few as meet the limit; then
//! each of those loses them again where the limit still holds. A scheme of fewer than 8 bits gives its layers 8 first. Only where
//! that is not enough do layers stay `f32`, and then 8 bits are given back where they are no longer needed. Layers without a
//! weight follow the ones around them.
use std::collections::{BTreeMap, BTreeSet};

use super::CompressError;
use super::task::{Score, Task};
use crate::plan::RunOptions;
use crate::quant::{Prepared, Quantised};

/// Times a layer with more bits is tried again with few, at most.
const AGAIN: usize = 16;

/// What was found.
pub(super) struct Found {
    /// Nodes to keep `f32` besides those that are kept anyway.
    pub(super) kept: BTreeSet<String>,
    /// Nodes with 8 bits in place of fewer.
    pub(super) wide: BTreeSet<String>,
    /// Points that a layer costs alone, with the bits that were not enough.
    pub(super) alone: BTreeMap<String, f64>,
    /// The graph.
    pub(super) quantised: Quantised,
}

type Names = BTreeSet<String>;

/// Quantises all layers with as few bits as lose at most `limit` points; `all` is everything quantised but the nodes `always`.
///
/// # Errors
/// When a graph does not run.
pub(super) fn search(
    prepared: &Prepared,
    all: Quantised,
    task: &Task<'_>,
    always: &Names,
    limit: f64,
    run: &RunOptions,
) -> Result<Found, CompressError> {
    let float = task.score_graph(prepared.graph(), run)?;
    let measure = |q: &Quantised| -> Result<Cost, CompressError> {
        let Score { value, error } = task.score_graph(&q.graph, run)?;
        Ok(Cost { points: 100.0 * (float.value - value), error })
    };
    let apply = |kept: &Names, wide: &Names| prepared.apply(&always.union(kept).cloned().collect(), wide);
    let of = |kept: &Names, wide: &Names| measure(&apply(kept, wide)?);
    let none = Names::new();
    if measure(&all)?.points <= limit {
        return Ok(Found { kept: none.clone(), wide: none, alone: BTreeMap::new(), quantised: all });
    }
    let narrow: Names = all.layers.iter().filter(|l| l.bits < 8).map(|l| l.name.clone()).collect();
    let mut kept = none.clone();
    let mut alone = BTreeMap::new();
    if narrow.is_empty() || of(&none, &narrow)?.points > limit {
        // Products of two activations have no weight, but cost.
        let costs = |l: &&crate::quant::Layer| l.weight_elements > 0 || l.op == "MatMul";
        let layers: Names = all.layers.iter().filter(costs).map(|l| l.name.clone()).collect();
        kept = fewest(&layers, limit, &mut alone, |kept| of(kept, &narrow))?;
    }
    let left: Names = narrow.difference(&kept).cloned().collect();
    let mut wide = none.clone();
    if !left.is_empty() && of(&kept, &none)?.points > limit {
        let mut points = BTreeMap::new();
        wide = fewest(&left, limit, &mut points, |wide| of(&kept, wide))?;
        points.retain(|name, _| wide.contains(name));
        alone.append(&mut points);
    }
    let quantised = apply(&kept, &wide)?;
    Ok(Found { kept, wide, alone, quantised })
}

/// What a graph loses.
struct Cost {
    points: f64,
    /// Tells two that lose equally many points apart.
    error: f64,
}

/// The fewest of the layers that `cost` has to be given to lose at most `limit` points, where giving it all of them is enough;
/// notes what each costs when it alone is not given.
fn fewest(
    layers: &Names,
    limit: f64,
    alone: &mut BTreeMap<String, f64>,
    cost: impl Fn(&Names) -> Result<Cost, CompressError>,
) -> Result<Names, CompressError> {
    let mut costs: Vec<(Cost, &String)> = Vec::with_capacity(layers.len());
    for name in layers {
        let mut others = layers.clone();
        others.remove(name);
        costs.push((cost(&others)?, name));
    }
    costs.sort_by(|(a, _), (b, _)| b.points.total_cmp(&a.points).then(b.error.total_cmp(&a.error)));
    alone.extend(costs.iter().map(|(c, name)| (name.to_string(), c.points)));
    let first = |k: usize| -> Names { costs[..k].iter().map(|c| c.1.clone()).collect() };
    let (mut low, mut high) = (1.min(costs.len()), costs.len());
    while low < high {
        let middle = low.midpoint(high);
        if cost(&first(middle))?.points <= limit {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let mut given = first(high);
    for (_, name) in costs[..high].iter().rev().take(AGAIN) {
        let mut fewer = given.clone();
        fewer.remove(*name);
        if !fewer.is_empty() && cost(&fewer)?.points <= limit {
            given = fewer;
        }
    }
    Ok(given)
}

#[cfg(all(test, feature = "import"))]
mod tests {
    use super::super::{Agreement, Gathered};
    use super::*;
    use crate::quant::scheme;
    use crate::quant::tests::{float, samples, settings};

    /// A search on the sentence model in 4 bits within a limit, and what all of it loses in 4 and in 8 bits.
    fn within(limit: impl Fn(f64, f64) -> f64) -> (Found, f64, f64, f64) {
        let (graph, opset) = float("sentence");
        let run = RunOptions::default();
        let data = Gathered { calibration: Vec::new(), measure: samples("sentence"), labels: None };
        let task = Task::new(&data, &graph, Agreement::Cosine, &run).unwrap();
        let prepared = Prepared::new(&graph, opset, &[], settings(scheme("int4").unwrap()), &run).unwrap();
        let none = Names::new();
        let all = prepared.apply(&none, &none).unwrap();
        let names: Names = all.layers.iter().map(|l| l.name.clone()).collect();
        let lost = |q: &Quantised| {
            let of = |g| task.score_graph(g, &run).unwrap().value;
            100.0 * (of(prepared.graph()) - of(&q.graph))
        };
        let (four, eight) = (lost(&all), lost(&prepared.apply(&none, &names).unwrap()));
        let found = search(&prepared, all, &task, &none, limit(four, eight), &run).unwrap();
        let after = lost(&found.quantised);
        assert!(after <= limit(four, eight), "{after} points, {four} in 4 bits, {eight} in 8");
        (found, four, eight, after)
    }

    fn bits(found: &Found, name: &str) -> Option<u32> {
        found.quantised.layers.iter().find(|l| l.name == name).map(|l| l.bits)
    }

    #[test]
    fn layers_of_four_bits_get_eight_before_any_stays_f32_and_only_those_that_can() {
        let (found, ..) = within(|four, eight| four.midpoint(eight));
        assert!(found.kept.is_empty() && !found.wide.is_empty());
        for name in &found.wide {
            assert_eq!(bits(&found, name), Some(8), "{name} is said to have 8 bits");
            assert!(found.alone.contains_key(name), "{name} was measured alone");
        }
        // What had 8 bits all along is no answer to the search.
        assert!(found.quantised.layers.iter().any(|l| l.bits == 4), "something stays small");
        assert!(found.alone.keys().all(|name| found.wide.contains(name)));
    }

    #[test]
    fn where_eight_bits_are_not_enough_layers_stay_f32_and_the_others_have_no_more_than_they_need() {
        let (found, _, eight, after) = within(|_, eight| 0.5 * eight);
        assert!(!found.kept.is_empty() && eight > 0.0, "{after}");
        assert!(found.kept.iter().all(|name| bits(&found, name).is_none()));
        assert!(found.wide.iter().all(|name| bits(&found, name) == Some(8)));
        assert!(found.kept.is_disjoint(&found.wide));
    }
}
