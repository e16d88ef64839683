//! Rewrites of a specialised graph before it is lowered.
//!
//! Shapes are concrete here and what is constant is known, so a pattern either holds or does not. A pass changes how a
//! result is computed, never what it means: sums may be taken in another order, what lies between codes is rounded once, what
//! lies between `f16` tensors not at all, and nothing else. The reference interpreter runs none of them, so that it is the
//! oracle of all of them.
//!
//! To add one: write `passes/<name>.rs`, add a row to [`PASSES`].
use std::sync::Arc;

use super::PlanError;
use super::specialise::{How, Known, Planned, Special};
use crate::graph::{Node, Op, ValueId};
use crate::ops::{Attrs, Fact, OpDef, OpError};
use crate::tensor::Tensor;

mod border;
mod canonical;
mod epilogue;
mod fold;
mod halves;
mod idle;
mod integer;
mod layout;
#[cfg(test)]
mod tests;
mod turned;

/// One rewrite.
pub(super) struct Pass {
    /// Its name in messages and tests.
    pub(super) name: &'static str,
    /// It also runs where inputs are replaced while a plan runs, and leaves every node that reads one where it is.
    beside_residents: bool,
    /// It also runs on what gradients are made of, and leaves only what has one.
    before_gradients: bool,
    run: fn(&mut Net<'_>) -> Result<(), OpError>,
}

/// Every pass, in the order in which they run.
pub(super) static PASSES: &[Pass] = &[
    Pass { name: "halves", beside_residents: false, before_gradients: true, run: halves::run },
    Pass { name: "idle", beside_residents: false, before_gradients: false, run: idle::run },
    Pass { name: "border", beside_residents: false, before_gradients: true, run: border::run },
    Pass { name: "canonical", beside_residents: false, before_gradients: false, run: canonical::run },
    Pass { name: "turned", beside_residents: false, before_gradients: false, run: turned::run },
    Pass { name: "fold", beside_residents: false, before_gradients: false, run: fold::run },
    Pass { name: "layout", beside_residents: false, before_gradients: false, run: layout::run },
    Pass { name: "integer", beside_residents: false, before_gradients: false, run: integer::run },
    Pass { name: "epilogue", beside_residents: true, before_gradients: false, run: epilogue::run },
];

/// Runs every pass over `special`, whose inputs `residents` are replaced while it runs: what reads one may not come later than
/// it does, nor what replaces it earlier, so that few passes run where there are some.
///
/// # Errors
/// [`PlanError::Op`] when a rewritten node refuses its operands, which is a mistake in a pass.
pub(super) fn optimise(special: &mut Special, residents: &[ValueId]) -> Result<(), PlanError> {
    run(special, residents, |p| residents.is_empty() || p.beside_residents)
}

/// Runs the passes whose result can be differentiated, before it is: what is `f16` or `bf16` is in `f32` from here on, as plans
/// compute it.
///
/// # Errors
/// As [`optimise`].
pub(super) fn prepare(special: &mut Special) -> Result<(), PlanError> {
    run(special, &[], |p| p.before_gradients)
}

fn run(special: &mut Special, residents: &[ValueId], which: impl Fn(&Pass) -> bool) -> Result<(), PlanError> {
    for pass in PASSES.iter().filter(|p| which(p)) {
        let mut net = Net::new(special, residents);
        (pass.run)(&mut net).map_err(|source| PlanError::Op {
            node: format!("(pass {})", pass.name),
            op: pass.name.to_string(),
            source,
        })?;
        net.finish();
    }
    Ok(())
}

/// The nodes of a specialised graph while they are rewritten.
pub(super) struct Net<'s> {
    special: &'s mut Special,
    /// In order; `None` where a node was removed.
    nodes: Vec<Option<Planned>>,
    /// The node that makes each value.
    makers: Vec<Option<usize>>,
    /// How often each value is read; being an output of the graph, or read by the rest, counts.
    readers: Vec<usize>,
    /// Inputs that are replaced while a plan runs.
    residents: Vec<ValueId>,
}

/// An operator of ours in the net.
#[derive(Clone, Copy)]
pub(super) struct Here<'n> {
    pub(super) node: &'n Node,
    pub(super) def: &'static OpDef,
    pub(super) attrs: &'n Arc<Attrs>,
}

impl Here<'_> {
    /// Input `i`, when it is given.
    pub(super) fn input(&self, i: usize) -> Option<ValueId> {
        self.node.inputs.get(i).copied().flatten()
    }

    /// The only result; `None` when there are more or none.
    pub(super) fn output(&self) -> Option<ValueId> {
        match self.node.outputs[..] {
            [v] => v,
            _ => None,
        }
    }
}

impl<'s> Net<'s> {
    fn new(special: &'s mut Special, residents: &[ValueId]) -> Net<'s> {
        let nodes: Vec<Option<Planned>> = std::mem::take(&mut special.nodes).into_iter().map(Some).collect();
        let residents = residents.to_vec();
        let mut net = Net { special, nodes: Vec::new(), makers: Vec::new(), readers: Vec::new(), residents };
        net.makers = vec![None; net.special.names.len()];
        net.readers = vec![0; net.special.names.len()];
        for v in net.lasting() {
            net.readers[v] += 1;
        }
        for node in nodes.into_iter().flatten() {
            net.push(node);
        }
        net
    }

    fn finish(self) {
        self.special.nodes = self.nodes.into_iter().flatten().collect();
    }

    /// Values that must be there under their own names, as often as they are wanted: outputs of the graph, and what the rest reads.
    pub(super) fn lasting(&self) -> Vec<ValueId> {
        let read = self.special.rest.iter().flat_map(|n| n.inputs.iter().flatten());
        self.special.outputs.iter().chain(read).copied().collect()
    }

    /// Numbers of the nodes there are now.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Node `i` when it is an operator of ours with known shapes.
    pub(super) fn at(&self, i: usize) -> Option<Here<'_>> {
        match self.nodes[i].as_ref()? {
            Planned { node, how: How::Own(def, attrs), probe: false } => Some(Here { node, def, attrs }),
            _ => None,
        }
    }

    /// Node `i` when it is that operator of the standard's domain.
    pub(super) fn is(&self, i: usize, name: &str) -> Option<Here<'_>> {
        self.at(i).filter(|h| h.def.name == name && h.def.domain.is_empty())
    }

    /// The node that makes `v`.
    pub(super) fn maker(&self, v: ValueId) -> Option<usize> {
        self.makers[v]
    }

    /// The operator of the standard's domain of that name that makes `v`.
    pub(super) fn made_by(&self, v: ValueId, name: &str) -> Option<Here<'_>> {
        self.is(self.makers[v]?, name)
    }

    /// Whether `v` is read once in all.
    pub(super) fn read_once(&self, v: ValueId) -> bool {
        self.readers[v] == 1
    }

    /// Whether a node may be moved to where a result of it is read: not when it reads what may be replaced in between.
    pub(super) fn may_move(&self, node: &Node) -> bool {
        !node.inputs.iter().flatten().any(|v| self.residents.contains(v))
    }

    /// Type, shape and, when constant, value of `v`; `None` when they are known only while it runs.
    pub(super) fn fact(&self, v: ValueId) -> Option<&Fact> {
        match &self.special.known[v] {
            Known::Static(f) => Some(f),
            _ => None,
        }
    }

    /// The shape of `v`; empty for what is known only while it runs.
    pub(super) fn shape(&self, v: ValueId) -> &[usize] {
        self.fact(v).map_or(&[], |f| &f.shape)
    }

    /// The value of `v`, when it is constant.
    pub(super) fn constant(&self, v: ValueId) -> Option<&Arc<Tensor>> {
        self.fact(v)?.value.as_ref()
    }

    /// The value of `v`, when it is a constant of one float.
    pub(super) fn scalar(&self, v: ValueId) -> Option<f32> {
        match self.constant(v)?.as_f32().ok()? {
            [x] => Some(*x),
            _ => None,
        }
    }

    pub(super) fn name(&self, v: ValueId) -> &str {
        &self.special.names[v]
    }

    /// Adds a value that a node is about to make, or a constant.
    pub(super) fn add(&mut self, name: String, fact: Fact) -> ValueId {
        self.special.names.push(name);
        self.special.known.push(Known::Static(fact));
        self.special.producers.push(None);
        self.makers.push(None);
        self.readers.push(0);
        self.special.names.len() - 1
    }

    /// Removes node `i`; the values it made are made by nobody.
    pub(super) fn remove(&mut self, i: usize) {
        if let Some(p) = self.nodes[i].take() {
            for &v in p.node.inputs.iter().flatten() {
                self.readers[v] -= 1;
            }
            for &v in p.node.outputs.iter().flatten() {
                self.makers[v] = None;
            }
        }
    }

    /// Removes what makes `v`, and what only that read, when nobody reads `v` any more.
    pub(super) fn forget(&mut self, v: ValueId) {
        let Some(i) = self.makers[v] else { return };
        let unread = |p: &Planned| !p.probe && p.node.outputs.iter().flatten().all(|&v| self.readers[v] == 0);
        let Some(inputs) = self.nodes[i].as_ref().filter(|p| unread(p)).map(|p| p.node.inputs.clone()) else { return };
        self.remove(i);
        inputs.into_iter().flatten().for_each(|v| self.forget(v));
    }

    /// Puts an operator in the place of node `i`, under its name and with its results.
    pub(super) fn replace(&mut self, i: usize, def: &'static OpDef, attrs: Arc<Attrs>, inputs: Vec<Option<ValueId>>) {
        let Some((name, outputs)) = self.nodes[i].as_ref().map(|p| (p.node.name.clone(), p.node.outputs.clone()))
        else {
            return;
        };
        self.remove(i);
        let at = self.nodes.len();
        self.push(planned(name, def, attrs, inputs, outputs));
        // `push` put it at the end.
        let made = self.nodes.pop().flatten();
        for v in made.iter().flat_map(|p| p.node.outputs.iter().flatten()) {
            debug_assert_eq!(self.makers[*v], Some(at));
            self.makers[*v] = Some(i);
        }
        self.nodes[i] = made;
    }

    /// Adds a node at the end.
    fn push(&mut self, p: Planned) {
        for &v in p.node.inputs.iter().flatten() {
            self.readers[v] += 1;
        }
        for &v in p.node.outputs.iter().flatten() {
            self.makers[v] = Some(self.nodes.len());
        }
        self.nodes.push(Some(p));
    }

    /// Adds an operator with one result at the end; gives that result.
    ///
    /// # Errors
    /// [`OpError`] when it refuses its operands.
    fn emit(
        &mut self,
        name: &str,
        def: &'static OpDef,
        attrs: Arc<Attrs>,
        inputs: Vec<Option<ValueId>>,
    ) -> Result<ValueId, OpError> {
        let facts: Vec<Option<Fact>> = inputs.iter().map(|v| v.and_then(|v| self.fact(v)).cloned()).collect();
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let made = (def.shape)(&attrs, &refs)?.and_then(|l| l.into_iter().next());
        let fact = made.ok_or_else(|| OpError::unsupported(format!("{} whose shape depends on data", def.name)))?;
        let v = self.add(name.to_string(), Fact::new(fact.dtype, fact.shape));
        self.push(planned(name.to_string(), def, attrs, inputs, vec![Some(v)]));
        Ok(v)
    }

    /// Takes all nodes out, for a pass that builds the list anew with [`Net::emit`] and [`Net::push`].
    fn drain(&mut self) -> Vec<Planned> {
        let nodes: Vec<Planned> = std::mem::take(&mut self.nodes).into_iter().flatten().collect();
        for p in &nodes {
            p.node.inputs.iter().flatten().for_each(|&v| self.readers[v] -= 1);
            p.node.outputs.iter().flatten().for_each(|&v| self.makers[v] = None);
        }
        nodes
    }
}

fn planned(
    name: String,
    def: &'static OpDef,
    attrs: Arc<Attrs>,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
) -> Planned {
    let node = Node { name, op: Op::Own(def, attrs.clone()), inputs, outputs };
    Planned { node, how: How::Own(def, attrs), probe: false }
}
