//! What an operator sees when its gradients are made.
use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::{AutodiffError, Tape, reverse};
use crate::graph::{Node, Op, ValueId};
use crate::ops::{Attrs, OpDef, OpError};

/// One node while it is differentiated: its operands, the gradients of its results, and the tape to add nodes to.
pub struct Backward<'a> {
    tape: &'a mut Tape,
    node: &'a Node,
    dy: Vec<Option<ValueId>>,
    wants: Vec<bool>,
    given: Vec<(ValueId, ValueId)>,
}

impl Deref for Backward<'_> {
    type Target = Tape;

    fn deref(&self) -> &Tape {
        self.tape
    }
}

impl DerefMut for Backward<'_> {
    fn deref_mut(&mut self) -> &mut Tape {
        self.tape
    }
}

impl<'a> Backward<'a> {
    pub(super) fn new(tape: &'a mut Tape, node: &'a Node, dy: Vec<Option<ValueId>>, wants: Vec<bool>) -> Backward<'a> {
        Backward { tape, node, dy, wants, given: Vec::new() }
    }

    pub(super) fn into_given(self) -> Vec<(ValueId, ValueId)> {
        self.given
    }

    /// The node's attributes.
    pub fn attrs(&self) -> Arc<Attrs> {
        match &self.node.op {
            Op::Own(_, attrs) => attrs.clone(),
            Op::Opaque(_) => Arc::default(),
        }
    }

    /// The node's operator, when it is ours.
    pub fn node_op(&self) -> Option<&'static OpDef> {
        match &self.node.op {
            Op::Own(def, _) => Some(def),
            Op::Opaque(_) => None,
        }
    }

    /// How many inputs the node lists.
    pub fn inputs(&self) -> usize {
        self.node.inputs.len()
    }

    /// Input `i`, if it is given.
    pub fn optional(&self, i: usize) -> Option<ValueId> {
        self.node.inputs.get(i).copied().flatten()
    }

    /// All inputs, as the node lists them.
    pub fn operands(&self) -> Vec<Option<ValueId>> {
        self.node.inputs.clone()
    }

    /// Input `i`.
    ///
    /// # Errors
    /// [`OpError::MissingInput`].
    pub fn x(&self, i: usize) -> Result<ValueId, OpError> {
        self.optional(i).ok_or(OpError::MissingInput { index: i, name: "operand" })
    }

    /// Shape of input `i`.
    ///
    /// # Errors
    /// [`OpError::MissingInput`].
    pub fn x_shape(&self, i: usize) -> Result<Vec<usize>, OpError> {
        Ok(self.shape(self.x(i)?).to_vec())
    }

    /// Result 0.
    ///
    /// # Errors
    /// [`OpError::Unsupported`] when the node does not name it.
    pub fn y(&self) -> Result<ValueId, OpError> {
        self.result(0).ok_or_else(|| OpError::unsupported("a gradient that needs a result nobody asked for"))
    }

    /// Result `i`, if the node names it.
    pub fn result(&self, i: usize) -> Option<ValueId> {
        self.node.outputs.get(i).copied().flatten()
    }

    /// How many results the node lists.
    pub fn results(&self) -> usize {
        self.node.outputs.len()
    }

    /// The gradient by result `i`, when the loss depends on it.
    pub fn dy_of(&self, i: usize) -> Option<ValueId> {
        self.dy.get(i).copied().flatten()
    }

    /// The gradient by result 0.
    ///
    /// # Errors
    /// [`OpError::Unsupported`] when the loss depends on another result only.
    pub fn dy(&self) -> Result<ValueId, OpError> {
        if let Some(other) = (1..self.dy.len()).find(|&i| self.dy[i].is_some()) {
            return Err(OpError::unsupported(format!("a gradient through result {other}")));
        }
        self.dy_of(0).ok_or_else(|| OpError::unsupported("a gradient through another result than the first"))
    }

    /// Whether something trainable is behind input `i`.
    pub fn wants(&self, i: usize) -> bool {
        self.wants.get(i).copied().unwrap_or(false)
    }

    /// Gives `gradient` to input `i`, if it wants one.
    pub fn give(&mut self, i: usize, gradient: ValueId) {
        if self.wants(i)
            && let Some(v) = self.optional(i)
        {
            self.given.push((v, gradient));
        }
    }

    /// Gives `gradient`, which has the shape of the result, to input `i`, which was broadcast by NumPy's rules.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn give_unbroadcast(&mut self, i: usize, gradient: ValueId) -> Result<(), OpError> {
        if !self.wants(i) {
            return Ok(());
        }
        let shape = self.x_shape(i)?;
        let g = self.unbroadcast(gradient, &shape, &shape)?;
        self.give(i, g);
        Ok(())
    }

    /// Gradients by way of other operators: `make` builds results equal to the node's own out of its operands, and what it
    /// built is differentiated instead. What of it no gradient needs is never computed.
    ///
    /// # Errors
    /// Those of `make` and of the operators it used.
    pub fn through(
        &mut self,
        make: impl FnOnce(&mut Backward<'_>) -> Result<Vec<ValueId>, OpError>,
    ) -> Result<(), OpError> {
        let from = self.tape.graph().nodes.len();
        let made = make(self)?;
        let to = self.tape.graph().nodes.len();
        if let Some(i) = (made.len()..self.dy.len()).find(|&i| self.dy[i].is_some()) {
            return Err(OpError::unsupported(format!("a gradient through result {i}")));
        }
        let seeds: Vec<(ValueId, ValueId)> = made.iter().zip(&self.dy).filter_map(|(&v, g)| Some((v, (*g)?))).collect();
        let leaves: BTreeSet<ValueId> =
            (0..self.inputs()).filter(|&i| self.wants(i)).filter_map(|i| self.optional(i)).collect();
        let leaves: Vec<ValueId> = leaves.into_iter().collect();
        let mut given = Vec::new();
        let done = reverse(self.tape, from..to, &seeds, &leaves, &mut |_, v, g| {
            given.push((v, g));
            Ok(())
        });
        match done {
            Ok(()) => {}
            Err(AutodiffError::Op { source, .. }) => return Err(source),
            Err(e @ AutodiffError::NotDifferentiable { .. }) => return Err(OpError::unsupported(e.to_string())),
        }
        self.given.extend(given);
        Ok(())
    }
}
