//! Channels first where the file goes back and forth: exporters of TensorFlow's models write a transposition before and after every
//! convolution, and what lies between them with channels last.
//!
//! A value that is a transposition to channels last is not made; element-wise operators on it are moved to its channels-first form,
//! and the transposition back is that form itself. What else reads it gets the transposition where it is read. So batch
//! normalisations that are spelled out stand beside their convolutions, where they fold, and no tensor is moved to be moved back.
use std::sync::Arc;

use super::layout::{BROADCAST, UNARY};
use super::{Net, planned};
use crate::graph::ValueId;
use crate::ops::internal::{self, first, last, reordered};
use crate::ops::{Attr, Attrs, Fact, OpDef, OpError};
use crate::plan::specialise::{How, Planned};
use crate::tensor::Tensor;

/// Axes of tensors that are images or lines with channels.
const RANKS: [usize; 2] = [3, 4];

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    let back =
        |i: usize| net.is(i, "Transpose").is_some_and(|h| h.input(0).is_some_and(|x| turns(net, x, h.attrs, last)));
    if !(0..net.len()).any(back) {
        return Ok(());
    }
    let nodes = net.drain();
    let mut walk = Walk { net, first: Vec::new(), made: Vec::new(), same: Vec::new() };
    walk.settle();
    for p in nodes {
        walk.take(p)?;
    }
    for v in walk.net.lasting() {
        walk.make(v);
    }
    Ok(())
}

/// Whether a `Transpose` of `x` only moves the channels, as `to` does.
pub(super) fn turns(net: &Net<'_>, x: ValueId, attrs: &Attrs, to: fn(&[usize]) -> Vec<usize>) -> bool {
    let rank = net.shape(x).len();
    let wanted: Vec<i64> = to(&(0..rank).collect::<Vec<_>>()).into_iter().map(|a| a as i64).collect();
    RANKS.contains(&rank) && attrs.ints("perm").is_ok_and(|p| p == Some(&wanted[..]))
}

struct Walk<'n, 's> {
    net: &'n mut Net<'s>,
    /// The channels-first form of each value that is the channels-last form of another.
    first: Vec<Option<ValueId>>,
    /// Whether the value itself is there by now.
    made: Vec<bool>,
    /// The value that is read in its place.
    same: Vec<Option<ValueId>>,
}

impl Walk<'_, '_> {
    /// Room for the values added meanwhile.
    fn settle(&mut self) {
        let n = self.net.special.names.len();
        self.first.resize(n, None);
        self.made.resize(n, true);
        self.same.resize(n, None);
    }

    fn take(&mut self, mut p: Planned) -> Result<(), OpError> {
        for v in p.node.inputs.iter_mut().flatten() {
            *v = self.same[*v].unwrap_or(*v);
        }
        let form = match &p.how {
            How::Own(def, attrs) if !p.probe && p.node.outputs.len() == 1 => Some((*def, attrs.clone())),
            _ => None,
        };
        if let (Some((def, attrs)), Some(out)) = (form, p.node.outputs.first().copied().flatten())
            && self.turn(&p, def, &attrs, out)?
        {
            return Ok(());
        }
        for &v in p.node.inputs.iter().flatten() {
            self.make(v);
        }
        self.net.push(p);
        Ok(())
    }

    /// Makes the channels-last value if it is not there.
    fn make(&mut self, v: ValueId) {
        let Some(x) = self.first[v].filter(|_| !self.made[v]) else { return };
        self.made[v] = true;
        let perm = last(&(0..self.net.shape(v).len() as i64).collect::<Vec<_>>());
        let attrs = Arc::new(Attrs::of([("perm", Attr::Ints(perm))]));
        let name = format!("{}.turned", self.net.name(v));
        self.net.push(planned(name, internal::transpose(), attrs, vec![Some(x)], vec![Some(v)]));
    }

    /// Takes a node that needs no channels-last value; says whether it was one.
    fn turn(&mut self, p: &Planned, def: &'static OpDef, attrs: &Arc<Attrs>, out: ValueId) -> Result<bool, OpError> {
        let Some(x) = p.node.inputs.first().copied().flatten() else { return Ok(false) };
        let standard = def.domain.is_empty();
        if standard && def.name == "Transpose" {
            if turns(self.net, x, attrs, last) {
                (self.first[out], self.made[out]) = (Some(x), false);
                return Ok(true);
            }
            let there =
                self.first[x].filter(|_| turns(self.net, x, attrs, first) && !self.net.lasting().contains(&out));
            self.same[out] = there;
            return Ok(there.is_some());
        }
        // A number for a parameter of an operator on one tensor, or operands that broadcast.
        let unary = UNARY.contains(&def.name);
        if !(unary || standard && BROADCAST.contains(&def.name)) {
            return Ok(false);
        }
        let shape = self.net.shape(out).to_vec();
        if !RANKS.contains(&shape.len()) {
            return Ok(false);
        }
        let mut operands = Vec::new();
        for &v in &p.node.inputs {
            let Some(v) = v else {
                operands.push(None);
                continue;
            };
            operands.push(Some(match (self.first[v], self.net.constant(v)) {
                (Some(x), _) if self.net.shape(v).len() == shape.len() => x,
                (None, Some(t)) if t.len() == 1 && t.shape().len() <= shape.len() => v,
                (None, Some(t)) if !unary && t.shape().len() <= shape.len() => {
                    let mut whole = vec![1; shape.len() - t.shape().len()];
                    whole.extend(t.shape());
                    let t = reordered(&Tensor::new(&whole, t.data().clone())?, first)?;
                    let name = format!("{}.first", self.net.name(v));
                    self.net.add(name, Fact::constant(Arc::new(t)))
                }
                _ => return Ok(false),
            }));
        }
        if !p.node.inputs.iter().flatten().any(|&v| self.first[v].is_some()) {
            return Ok(false);
        }
        let dtype = self.net.fact(out).map(|f| f.dtype);
        let y = self.net.emit(&p.node.name, def, attrs.clone(), operands)?;
        self.settle();
        if self.net.shape(y) != first(&shape) || self.net.fact(y).map(|f| f.dtype) != dtype {
            return Err(OpError::unsupported(format!("{} that changes its shape when channels move", def.name)));
        }
        (self.first[out], self.made[out]) = (Some(y), false);
        Ok(true)
    }
}
