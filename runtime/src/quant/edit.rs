//! A graph while a pass rewrites it: new names, values and nodes, and putting it in order at the end.
use std::collections::BTreeSet;
use std::sync::Arc;

use super::Layer;
use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::{self, Attr, Attrs, MICROSOFT};
use crate::tensor::{DType, Tensor};

/// A graph under change. Nodes may be added in any order.
pub(crate) struct Edit {
    pub(crate) graph: Graph,
    /// Version of the standard operator set in the file.
    pub(crate) opset: i64,
    taken: BTreeSet<String>,
}

/// Where a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) node: usize,
    pub(crate) slot: usize,
}

impl Edit {
    pub(crate) fn new(graph: Graph, opset: i64) -> Edit {
        let mut taken = BTreeSet::new();
        names(&graph, &mut taken);
        Edit { graph, opset, taken }
    }

    /// The name itself, or with a number where it is taken.
    fn fresh(&mut self, want: &str) -> String {
        let mut name = want.to_string();
        let mut i = 1;
        while !self.taken.insert(name.clone()) {
            i += 1;
            name = format!("{want}_{i}");
        }
        name
    }

    /// A new value.
    pub(crate) fn value(&mut self, want: &str) -> ValueId {
        let name = self.fresh(want);
        self.graph.add_value(&name, None, None)
    }

    /// A new constant.
    pub(crate) fn constant(&mut self, want: &str, t: Tensor) -> ValueId {
        let name = self.fresh(want);
        self.graph.add_value(&name, None, Some(Arc::new(t)))
    }

    /// A new `f32` scalar.
    pub(crate) fn scalar(&mut self, want: &str, v: f32) -> ValueId {
        self.constant(want, tensor(&[], vec![v]))
    }

    /// Adds a node of a registered operator; returns its index, which is valid until nodes are removed.
    pub(crate) fn node<const N: usize>(
        &mut self,
        (domain, op): (&str, &str),
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
        attrs: [(&str, Attr); N],
    ) -> usize {
        let mut attrs = Attrs::of(attrs);
        attrs.opset = if domain == MICROSOFT { 1 } else { self.opset };
        attrs.outputs = outputs.len();
        let def = ops::find(domain, op).unwrap_or_else(|| panic!("{op} is an operator of ours"));
        let name = self.fresh(name);
        self.graph.nodes.push(Node {
            name,
            op: Op::Own(def, Arc::new(attrs)),
            inputs: inputs.to_vec(),
            outputs: outputs.iter().map(|&v| Some(v)).collect(),
        });
        self.graph.nodes.len() - 1
    }

    /// Every place where each value is read.
    pub(crate) fn uses(&self) -> Vec<Vec<Use>> {
        let mut out = vec![Vec::new(); self.graph.values.len()];
        for (node, n) in self.graph.nodes.iter().enumerate() {
            for (slot, v) in n.inputs.iter().enumerate() {
                if let Some(v) = v {
                    out[*v].push(Use { node, slot });
                }
            }
        }
        out
    }

    /// Whether the graph gives the value to its caller.
    pub(crate) fn is_output(&self, v: ValueId) -> bool {
        self.graph.outputs.contains(&v)
    }

    /// The name of a value.
    pub(crate) fn name(&self, v: ValueId) -> String {
        self.graph.values[v].name.clone()
    }

    /// The constant at an input of a node.
    pub(crate) fn operand(&self, node: usize, slot: usize) -> Option<(ValueId, Arc<Tensor>)> {
        let v = self.graph.nodes[node].inputs.get(slot).copied().flatten()?;
        Some((v, self.graph.values[v].constant.clone()?))
    }

    /// The same, of `f32` elements.
    pub(crate) fn floats(&self, node: usize, slot: usize) -> Option<(ValueId, Arc<Tensor>)> {
        self.operand(node, slot).filter(|(_, t)| t.dtype() == DType::F32 && !t.is_empty())
    }

    /// The operator's name and attributes, for an operator of ours in the standard domain.
    pub(crate) fn standard(&self, node: usize) -> Option<(&'static str, Arc<Attrs>)> {
        standard(&self.graph.nodes[node])
    }

    /// What a report says of a node that is being quantised: to be called while the node has its result.
    pub(crate) fn layer(&self, node: usize, weight_elements: usize, weight_snr_db: Option<f64>) -> Layer {
        let n = &self.graph.nodes[node];
        let op = standard(n).map_or("", |(op, _)| op);
        let output = n.outputs.iter().flatten().next().map_or(String::new(), |&v| self.name(v));
        Layer {
            name: n.name.clone(),
            op,
            quantised_output: output.clone(),
            output,
            weight_elements,
            weight_snr_db,
            bits: 8,
        }
    }

    /// The graph, its nodes in an order in which they can run, without what nobody needs any more.
    pub(crate) fn finish(mut self) -> Graph {
        self.graph.nodes = sorted(std::mem::take(&mut self.graph.nodes), self.graph.values.len());
        let mut needed = vec![false; self.graph.values.len()];
        self.graph.outputs.iter().for_each(|&v| needed[v] = true);
        let mut kept: Vec<Node> = Vec::with_capacity(self.graph.nodes.len());
        for n in std::mem::take(&mut self.graph.nodes).into_iter().rev() {
            if n.outputs.iter().flatten().any(|&v| needed[v]) {
                n.inputs.iter().flatten().for_each(|&v| needed[v] = true);
                kept.push(n);
            }
        }
        kept.reverse();
        self.graph.nodes = kept;
        for (v, value) in self.graph.values.iter_mut().enumerate() {
            if !needed[v] {
                value.constant = None;
            }
        }
        self.graph
    }
}

/// The operator's name and attributes, for an operator of ours in the standard domain.
pub(crate) fn standard(n: &Node) -> Option<(&'static str, Arc<Attrs>)> {
    match &n.op {
        Op::Own(def, attrs) if def.domain.is_empty() => Some((def.name, attrs.clone())),
        _ => None,
    }
}

/// An `f32` tensor whose length fits its shape.
pub(crate) fn tensor(shape: &[usize], v: Vec<f32>) -> Tensor {
    Tensor::f32(shape, v).expect("as many elements as the shape says")
}

/// `*` is any text, `?` any byte.
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

fn names(graph: &Graph, into: &mut BTreeSet<String>) {
    into.extend(graph.values.iter().map(|v| v.name.clone()));
    for n in &graph.nodes {
        into.insert(n.name.clone());
        n.op.graphs().for_each(|g| names(g, into));
    }
}

/// Nodes after the ones they read from, otherwise as they were.
fn sorted(nodes: Vec<Node>, values: usize) -> Vec<Node> {
    let mut makers: Vec<Option<usize>> = vec![None; values];
    for (i, n) in nodes.iter().enumerate() {
        n.outputs.iter().flatten().for_each(|&v| makers[v] = Some(i));
    }
    let mut order = Vec::with_capacity(nodes.len());
    let mut state = vec![0u8; nodes.len()];
    for start in 0..nodes.len() {
        let mut stack = vec![start];
        while let Some(&i) = stack.last() {
            match state[i] {
                0 => {
                    state[i] = 1;
                    let needs = nodes[i].inputs.iter().flatten().filter_map(|&v| makers[v]);
                    stack.extend(needs.filter(|&d| state[d] == 0));
                }
                1 => {
                    state[i] = 2;
                    order.push(i);
                    stack.pop();
                }
                _ => drop(stack.pop()),
            }
        }
    }
    let mut nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| nodes[i].take()).collect()
}
