//! What of the forward part is computed a second time in the backward part rather than kept, to stay below a limit.
//!
//! A value of the forward part that the backward part reads is alive over the whole time between. Computed again right
//! before its first reader there, it is alive twice for short. What only led to it is computed again with it: kept, it
//! would take its place. Which values: at the moment of the highest use, of those that only wait there, the one that
//! frees most for what it costs, again and again until the limit holds.
use std::collections::{BTreeMap, BTreeSet};

use crate::autodiff::Tape;
use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::Kind;

/// How often a choice is planned before it is given up: the planner's arena is a little more than what is alive.
pub(super) const ATTEMPTS: usize = 6;

/// Values to compute again so that what is alive at once takes at most `target` bytes, or as little as this finds for
/// `spend` operations; `None` when there is nothing to choose.
pub(super) fn choose(
    tape: &Tape,
    forward: usize,
    pinned: &BTreeSet<ValueId>,
    target: usize,
    spend: f64,
) -> Option<BTreeSet<ValueId>> {
    let graph = tape.graph();
    let needed = needed(graph);
    let producers = graph.producers();
    let backward = graph.nodes[forward..].iter().zip(&needed[forward..]).filter(|(_, needed)| **needed);
    let read_later: BTreeSet<ValueId> = backward.flat_map(|(n, _)| n.inputs.iter().flatten().copied()).collect();
    // The node that can make a value again.
    let maker = |v: ValueId| {
        let i = producers.get(v).copied().flatten().filter(|&i| i < forward && !pinned.contains(&v))?;
        matches!(&graph.nodes[i].op, Op::Own(def, _) if def.kind == Kind::Pure).then_some(i)
    };
    // What is to be made again for a value, itself included, and what that costs.
    let path = |v: ValueId| {
        let (mut path, mut cost, mut stack) = (BTreeSet::from([v]), 0.0, vec![v]);
        while let Some(node) = stack.pop().and_then(maker).map(|i| &graph.nodes[i]) {
            cost += self::cost(tape, node);
            for &u in node.inputs.iter().flatten() {
                if !read_later.contains(&u) && maker(u).is_some() && path.insert(u) {
                    stack.push(u);
                }
            }
        }
        (path, cost)
    };
    let waiting = read_later.iter().copied().filter(|&v| maker(v).is_some());
    let mut candidates: BTreeMap<ValueId, (BTreeSet<ValueId>, f64)> = waiting.map(|v| (v, path(v))).collect();
    let mut chosen = BTreeSet::new();
    let mut best: Option<(usize, BTreeSet<ValueId>)> = None;
    let (mut peak, mut at, mut alive) = peak_of(tape);
    let start = peak;
    let mut spent = 0.0;
    while peak > target {
        let waits = |v: &ValueId| alive.get(v).is_some_and(|&(born, last)| born < at && at < last);
        let gain = |v: ValueId, cost: f64| bytes(tape, v) as f64 / cost;
        let pick = (candidates.iter())
            .filter(|(v, _)| waits(v))
            .max_by(|a, b| gain(*a.0, a.1.1).total_cmp(&gain(*b.0, b.1.1)))
            .map(|(&v, _)| v);
        let Some((path, cost)) = pick.and_then(|v| candidates.remove(&v)) else { break };
        spent += cost;
        if spent > spend {
            break;
        }
        chosen.extend(path);
        let tried = apply(tape, forward, &chosen);
        (peak, at, alive) = peak_of(&tried);
        if peak < best.as_ref().map_or(start, |b| b.0) {
            best = Some((peak, chosen.clone()));
        }
    }
    best.map(|(_, chosen)| chosen)
}

/// The tape with the chosen values computed again before their first readers in the backward part.
pub(super) fn apply(tape: &Tape, forward: usize, chosen: &BTreeSet<ValueId>) -> Tape {
    let mut made = tape.clone();
    let producers = tape.graph().producers();
    let nodes = tape.graph().nodes.clone();
    let mut again: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut out: Vec<Node> = nodes[..forward].to_vec();
    for node in &nodes[forward..] {
        for &v in node.inputs.iter().flatten() {
            recompute(&mut made, &nodes, &producers, chosen, v, &mut again, &mut out);
        }
        let mut node = node.clone();
        for v in node.inputs.iter_mut().flatten() {
            *v = again.get(v).copied().unwrap_or(*v);
        }
        out.push(node);
    }
    made.set_nodes(out);
    made
}

/// Makes `v` again, after what it needs that is made again too.
fn recompute(
    made: &mut Tape,
    nodes: &[Node],
    producers: &[Option<usize>],
    chosen: &BTreeSet<ValueId>,
    v: ValueId,
    again: &mut BTreeMap<ValueId, ValueId>,
    out: &mut Vec<Node>,
) {
    let mut stack = vec![v];
    while let Some(&v) = stack.last() {
        let producer = producers.get(v).copied().flatten().filter(|_| chosen.contains(&v) && !again.contains_key(&v));
        let Some(i) = producer else {
            stack.pop();
            continue;
        };
        let waiting = nodes[i].inputs.iter().flatten().find(|u| chosen.contains(u) && !again.contains_key(u));
        if let Some(&u) = waiting {
            stack.push(u);
            continue;
        }
        let mut node = nodes[i].clone();
        node.name = format!("{}~again", node.name);
        for u in node.inputs.iter_mut().flatten() {
            *u = again.get(u).copied().unwrap_or(*u);
        }
        for o in &mut node.outputs {
            *o = o.filter(|o| chosen.contains(o)).map(|o| {
                let copy = made.copy_of(o);
                again.insert(o, copy);
                copy
            });
        }
        out.push(node);
        stack.pop();
    }
}

/// Which nodes lead to an output.
fn needed(graph: &Graph) -> Vec<bool> {
    let mut values: Vec<bool> = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|&v| values[v] = true);
    let mut nodes = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        nodes[i] = node.outputs.iter().flatten().any(|&v| values[v]);
        if nodes[i] {
            node.inputs.iter().flatten().for_each(|&v| values[v] = true);
        }
    }
    nodes
}

fn bytes(tape: &Tape, v: ValueId) -> usize {
    tape.shape(v).iter().product::<usize>() * tape.dtype(v).size_bytes()
}

/// Most bytes alive at one node, which node that is, and when each value is born and last read.
fn peak_of(tape: &Tape) -> (usize, usize, BTreeMap<ValueId, (usize, usize)>) {
    let graph = tape.graph();
    let needed = needed(graph);
    let mut alive: BTreeMap<ValueId, (usize, usize)> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
        for v in node.inputs.iter().flatten() {
            if let Some(life) = alive.get_mut(v) {
                life.1 = i;
            }
        }
        for &v in node.outputs.iter().flatten() {
            alive.insert(v, (i, i));
        }
    }
    let mut change = vec![0i64; graph.nodes.len() + 1];
    for (&v, &(born, last)) in &alive {
        change[born] += bytes(tape, v) as i64;
        change[last + 1] -= bytes(tape, v) as i64;
    }
    let (mut now, mut peak, mut at) = (0, 0, 0);
    for (i, c) in change.iter().enumerate() {
        now += c;
        if now > peak {
            (peak, at) = (now, i);
        }
    }
    (peak as usize, at, alive)
}

/// Operations of all nodes that lead to an output.
pub(super) fn operations(tape: &Tape) -> f64 {
    let graph = tape.graph();
    graph.nodes.iter().zip(needed(graph)).filter(|(_, needed)| *needed).map(|(n, _)| cost(tape, n)).sum()
}

/// Operations to make a node's results, about: of products, the length of their sums for each result. What is done once
/// for each element waits for memory as long as a product computes sixteen times.
fn cost(tape: &Tape, node: &Node) -> f64 {
    let results: usize = node.outputs.iter().flatten().map(|&v| tape.shape(v).iter().product::<usize>()).sum();
    let operand = |i: usize| {
        node.inputs.get(i).copied().flatten().map_or(1, |v| tape.shape(v).iter().product::<usize>().max(1)) as f64
    };
    let results = results.max(1) as f64;
    match node.op.name() {
        // A · B has √(|A| |B| / |Y|) steps in each sum; of a convolution the weights of one channel.
        "MatMul" | "Gemm" | "FusedMatMul" | "Einsum" => results * (operand(0) * operand(1) / results).sqrt().max(1.0),
        "Conv" | "ConvTranspose" => {
            let channels = node.inputs.get(1).copied().flatten().map_or(1, |v| tape.shape(v)[0].max(1));
            results * (operand(1) / channels as f64).max(1.0)
        }
        "LSTM" | "GRU" | "RNN" => results * 1024.0,
        "Softmax" | "LogSoftmax" | "LayerNormalization" | "Gelu" | "Erf" | "Tanh" | "Sigmoid" | "Exp" => 32.0 * results,
        // A view of what is there.
        "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" => results,
        _ => 16.0 * results,
    }
}
