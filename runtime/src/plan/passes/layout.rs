//! Convolutions, and what lies between them, with channels last: `[N, H, W, C]` and `[N, L, C]`.
//!
//! With channels last a convolution is a matrix product whose rows are positions, and everything between convolutions
//! runs over unbroken rows of channels. The pass walks the graph once. A value may exist channels first (as in the
//! file), channels last (its *twin*), or both; a transposition is put in where an operator needs the form that is not
//! there, once. Operators that work on any axis are told the other number; element-wise ones do not care.
use std::sync::Arc;

use super::fold::Affine;
use super::{Here, Net, planned};
use crate::graph::{Node, ValueId};
use crate::ops::internal::{self, first, last, reordered};
use crate::ops::{Attr, Attrs, Fact, OpDef, OpError, find};
use crate::plan::specialise::{How, Planned};
use crate::tensor::{DType, Tensor};

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    if !(0..net.len()).any(|i| net.at(i).is_some_and(|h| convolution(net, h.node, h.def, h.attrs))) {
        return Ok(());
    }
    let nodes = net.drain();
    let mut made = vec![true; net.special.names.len()];
    for v in nodes.iter().flat_map(|p| p.node.outputs.iter().flatten()) {
        made[*v] = false;
    }
    let mut walk = Walk { net, twin: vec![None; made.len()], made, undone: Vec::new() };
    for p in nodes {
        walk.take(p)?;
    }
    // What was moved to channels first only to be moved back.
    for v in std::mem::take(&mut walk.undone) {
        walk.net.forget(v);
    }
    for v in walk.net.lasting() {
        walk.first(v)?;
    }
    Ok(())
}

/// Whether the node is a convolution that runs channels last.
fn convolution(net: &Net<'_>, node: &Node, def: &OpDef, attrs: &Attrs) -> bool {
    let fact = |i: usize| node.inputs.get(i).copied().flatten().and_then(|v| net.fact(v));
    let dequantised = |i: usize| {
        let maker = node.inputs.get(i).copied().flatten().and_then(|v| net.made_by(v, "DequantizeLinear"));
        maker.is_some_and(|d| d.node.inputs.iter().flatten().all(|&v| net.constant(v).is_some()))
    };
    def.name == "Conv"
        && def.domain.is_empty()
        && fact(0).is_some_and(|x| x.dtype == DType::F32 && matches!(x.shape.len(), 3 | 4))
        && (fact(1).is_some_and(|w| w.value.is_some()) || dequantised(1))
        && fact(1).is_some_and(|w| w.dtype == DType::F32)
        && fact(0).zip(fact(1)).is_some_and(|(x, w)| internal::takes(attrs, &x.shape, &w.shape))
}

/// Where channels-first axis `a` of a tensor of `rank` axes is with channels last.
fn moved(a: usize, rank: usize) -> usize {
    match a {
        0 => 0,
        1 => rank - 1,
        a => a - 1,
    }
}

struct Walk<'n, 's> {
    net: &'n mut Net<'s>,
    /// The channels-last form of each value.
    twin: Vec<Option<ValueId>>,
    /// Whether the channels-first form exists by now.
    made: Vec<bool>,
    /// Transpositions to channels first of what is their twin; nobody may read them any more.
    undone: Vec<ValueId>,
}

/// What becomes of a node whose operand has a twin.
enum Form {
    /// The operator on twins, making the twin of its only result.
    Twin(&'static OpDef, Attrs, Vec<Operand>),
    /// The operator on twins, making the result as it is in the file.
    Whole(&'static OpDef, Attrs, Vec<Operand>),
    /// `Split`: the operator on the twin, making twins of all its results.
    Parts(&'static OpDef, Attrs, Vec<Operand>),
    /// The twin of that value times the one constant plus the other, making the twin of the only result.
    Affine(ValueId, Tensor, Tensor),
}

/// An operand of a node in its new form.
enum Operand {
    None,
    /// The value as it is.
    As(ValueId),
    /// Its twin.
    Twin(ValueId),
    /// A constant made for it.
    New(Tensor),
}

impl Walk<'_, '_> {
    fn take(&mut self, p: Planned) -> Result<(), OpError> {
        let form = match &p.how {
            How::Own(def, attrs) if !p.probe => self.form(&p.node, def, attrs)?,
            _ => None,
        };
        let Some(form) = form else {
            for &v in p.node.inputs.iter().flatten() {
                self.first(v)?;
            }
            self.made.resize(self.net.special.names.len(), true);
            p.node.outputs.iter().flatten().for_each(|&v| self.made[v] = true);
            self.net.push(p);
            return Ok(());
        };
        let whole = matches!(form, Form::Whole(..));
        let (def, attrs, inputs) = match form {
            Form::Whole(def, attrs, operands)
            | Form::Twin(def, attrs, operands)
            | Form::Parts(def, attrs, operands) => (def, Arc::new(attrs), self.operands(&p.node.name, operands)?),
            Form::Affine(x, gain, shift) => {
                let (mul, add) = internal::affine();
                let scaled = self.operands(&p.node.name, vec![Operand::Twin(x), Operand::New(gain)])?;
                let scaled = self.net.emit(&format!("{}.scaled", p.node.name), mul, Arc::default(), scaled)?;
                self.settle();
                let shift = self.operands(&p.node.name, vec![Operand::As(scaled), Operand::New(shift)])?;
                (add, Arc::default(), shift)
            }
        };
        let mut outputs = p.node.outputs;
        for v in outputs.iter_mut().flatten() {
            if whole {
                self.made[*v] = true;
            } else {
                let twin = self.declare(*v);
                self.twin[*v] = Some(twin);
                *v = twin;
            }
        }
        self.net.push(planned(p.node.name, def, attrs, inputs, outputs));
        self.settle();
        Ok(())
    }

    /// The operands of a node in their new form, made where need be.
    fn operands(&mut self, node: &str, operands: Vec<Operand>) -> Result<Vec<Option<ValueId>>, OpError> {
        let one = |o| {
            Ok(match o {
                Operand::None => None,
                Operand::As(v) => {
                    self.first(v)?;
                    Some(v)
                }
                Operand::Twin(v) => Some(self.last(v)?),
                Operand::New(t) => Some(self.net.add(format!("{node}.last"), Fact::constant(Arc::new(t)))),
            })
        };
        let all = operands.into_iter().map(one).collect();
        self.settle();
        all
    }

    /// Room for the values added meanwhile.
    fn settle(&mut self) {
        self.twin.resize(self.net.special.names.len(), None);
        self.made.resize(self.net.special.names.len(), true);
    }

    /// A value for the twin of `v`, not made yet.
    fn declare(&mut self, v: ValueId) -> ValueId {
        let (name, dtype) = (format!("{}.last", self.net.name(v)), self.net.fact(v).map_or(DType::F32, |f| f.dtype));
        let shape = last(self.net.shape(v));
        let twin = self.net.add(name, Fact::new(dtype, shape));
        self.settle();
        twin
    }

    /// The channels-last form of `v`, made if need be.
    fn last(&mut self, v: ValueId) -> Result<ValueId, OpError> {
        if let Some(twin) = self.twin[v] {
            return Ok(twin);
        }
        if let Some(x) = self.turned(v) {
            self.undone.push(v);
            self.twin[v] = Some(x);
            return Ok(x);
        }
        let twin = match self.net.constant(v) {
            Some(t) => {
                let t = reordered(t, last)?;
                let name = format!("{}.last", self.net.name(v));
                self.net.add(name, Fact::constant(Arc::new(t)))
            }
            None => match self.codes(v) {
                // Bytes are moved in place of what they stand for.
                Some((def, attrs, mut inputs)) => {
                    if let Some(x) = inputs[0] {
                        inputs[0] = Some(self.last(x)?);
                    }
                    self.net.emit(&format!("{}.last", self.net.name(v)), def, attrs, inputs)?
                }
                None => {
                    let rank = self.net.shape(v).len() as i64;
                    let perm: Vec<i64> = last(&(0..rank).collect::<Vec<_>>());
                    let name = format!("{}.last", self.net.name(v));
                    self.net.emit(
                        &name,
                        internal::transpose(),
                        Arc::new(Attrs::of([("perm", Attr::Ints(perm))])),
                        vec![Some(v)],
                    )?
                }
            },
        };
        self.settle();
        self.twin[v] = Some(twin);
        Ok(twin)
    }

    /// What the file moves to channels first to make `v`, and what is there.
    fn turned(&self, v: ValueId) -> Option<ValueId> {
        let here = self.net.made_by(v, "Transpose")?;
        let x = here.input(0)?;
        (self.made[x] && super::turned::turns(self.net, x, here.attrs, first)).then_some(x)
    }

    /// The `DequantizeLinear` with one scale that makes `v`, when it is not of a constant.
    #[expect(clippy::type_complexity, reason = "the three parts of a node")]
    fn codes(&self, v: ValueId) -> Option<(&'static OpDef, Arc<Attrs>, Vec<Option<ValueId>>)> {
        let here = self.net.made_by(v, "DequantizeLinear")?;
        self.net.scalar(here.input(1)?)?;
        let whole = here.attrs.int("block_size", 0).ok()? == 0;
        (whole && self.net.constant(here.input(0)?).is_none())
            .then(|| (here.def, here.attrs.clone(), here.node.inputs.clone()))
    }

    /// Makes the channels-first form of `v` if it is not there.
    fn first(&mut self, v: ValueId) -> Result<(), OpError> {
        if self.made[v] {
            return Ok(());
        }
        self.made[v] = true;
        let Some(twin) = self.twin[v] else { return Ok(()) };
        let rank = self.net.shape(v).len();
        let perm: Vec<i64> = (0..rank).map(|a| moved(a, rank) as i64).collect();
        let name = format!("{}.first", self.net.name(v));
        let attrs = Arc::new(Attrs::of([("perm", Attr::Ints(perm))]));
        self.net.push(planned(name, internal::transpose(), attrs, vec![Some(twin)], vec![Some(v)]));
        Ok(())
    }

    /// The node in its channels-last form; `None` when it must stay as it is.
    fn form(&self, node: &Node, def: &'static OpDef, attrs: &Arc<Attrs>) -> Result<Option<Form>, OpError> {
        let input = |i: usize| node.inputs.get(i).copied().flatten();
        let Some(x) = input(0) else { return Ok(None) };
        if convolution(self.net, node, def, attrs) {
            let operands = node.inputs.iter().enumerate().map(|(i, v)| match (i, v) {
                (_, None) => Operand::None,
                (0, Some(v)) => Operand::Twin(*v),
                (_, Some(v)) => Operand::As(*v),
            });
            return Ok(Some(Form::Twin(&internal::CONV, (**attrs).clone(), operands.collect())));
        }
        let has_twin = |v: ValueId| self.twin[v].is_some() && self.net.constant(v).is_none();
        if !node.inputs.iter().flatten().any(|&v| has_twin(v)) {
            return Ok(None);
        }
        let standard = def.domain.is_empty();
        let rank = self.net.shape(x).len();
        let own = (**attrs).clone();
        Ok(match def.name {
            name if UNARY.contains(&name) && has_twin(x) => self.unary(node, def, own),
            name if standard && BROADCAST.contains(&name) => self.broadcast(node, def, own)?,
            "Concat" | "Softmax" | "LogSoftmax" if standard && (def.name == "Concat" || attrs.opset >= 13) => {
                let default = if def.name == "Concat" { 1 } else { -1 };
                let axis = crate::ops::axis_of(attrs.int("axis", default)?, rank)?;
                let all: Vec<Operand> = node.inputs.iter().flatten().map(|&v| Operand::Twin(v)).collect();
                let cheap = node.inputs.iter().flatten().filter(|&&v| has_twin(v)).count() * 2 >= all.len();
                cheap.then(|| Form::Twin(def, with(own, "axis", Attr::Int(moved(axis, rank) as i64)), all))
            }
            "Split" if standard && has_twin(x) => {
                let axis = crate::ops::axis_of(attrs.int("axis", 0)?, rank)?;
                let mut operands = vec![Operand::Twin(x)];
                operands.extend(node.inputs[1..].iter().map(|v| v.map_or(Operand::None, Operand::As)));
                Some(Form::Parts(def, with(own, "axis", Attr::Int(moved(axis, rank) as i64)), operands))
            }
            "Transpose" if standard => {
                let reversed: Vec<i64> = (0..rank as i64).rev().collect();
                let perm = attrs.ints("perm")?.unwrap_or(&reversed);
                let perm = perm.iter().map(|&p| moved(p as usize, rank) as i64).collect();
                Some(Form::Whole(def, with(own, "perm", Attr::Ints(perm)), vec![Operand::Twin(x)]))
            }
            "BatchNormalization" if standard && has_twin(x) => self.normalise(node, attrs)?,
            "GlobalAveragePool" | "GlobalMaxPool" if standard && has_twin(x) => {
                let Some(reduce) = find("", if def.name == "GlobalMaxPool" { "ReduceMax" } else { "ReduceMean" })
                else {
                    return Ok(None);
                };
                let axes: Vec<i64> = (1..rank as i64 - 1).collect();
                let mut attrs = Attrs::of([("axes", Attr::Ints(axes)), ("keepdims", Attr::Int(1))]);
                // Axes are an attribute up to here.
                attrs.opset = 13;
                Some(Form::Twin(reduce, attrs, vec![Operand::Twin(x)]))
            }
            name if standard && name.starts_with("Reduce") && has_twin(x) => self.reduce(node, def, attrs)?,
            "MaxPool" | "AveragePool" if standard && has_twin(x) && node.outputs.len() == 1 => {
                let def = if def.name == "MaxPool" { &internal::MAX_POOL } else { &internal::AVERAGE_POOL };
                (self.net.fact(x).is_some_and(|f| f.dtype == DType::F32))
                    .then(|| Form::Twin(def, own, vec![Operand::Twin(x)]))
            }
            "Pad" if standard && has_twin(x) => self.pad(node, def, own)?,
            "Slice" if standard && has_twin(x) => self.slice(node, def, own)?,
            "Resize" | "Upsample" if standard && has_twin(x) => self.resize(node, def, own)?,
            _ => None,
        })
    }

    /// One operand changes its axes, the others have none.
    fn unary(&self, node: &Node, def: &'static OpDef, attrs: Attrs) -> Option<Form> {
        let alone = |v: ValueId| self.net.fact(v).is_some_and(|f| f.shape.iter().product::<usize>() == 1);
        if node.outputs.len() != 1 || !node.inputs[1..].iter().flatten().all(|&v| alone(v)) {
            return None;
        }
        let mut operands = vec![Operand::Twin(node.inputs[0]?)];
        operands.extend(node.inputs[1..].iter().map(|v| v.map_or(Operand::None, Operand::As)));
        Some(Form::Twin(def, attrs, operands))
    }

    fn broadcast(&self, node: &Node, def: &'static OpDef, attrs: Attrs) -> Result<Option<Form>, OpError> {
        let Some(out) = node.outputs.first().copied().flatten() else { return Ok(None) };
        let shape = self.net.shape(out);
        let rank = shape.len();
        let mut whole = false;
        let mut operands = Vec::with_capacity(node.inputs.len());
        for v in &node.inputs {
            let Some(v) = *v else { return Ok(None) };
            let Some(fact) = self.net.fact(v) else { return Ok(None) };
            let elements: usize = fact.shape.iter().product();
            whole |= self.twin[v].is_some() && fact.shape == shape && fact.value.is_none();
            operands.push(if elements == 1 && fact.shape.len() <= rank && self.made[v] {
                Operand::As(v)
            } else if fact.shape.len() == rank {
                Operand::Twin(v)
            } else if let Some(t) = &fact.value {
                let mut full = vec![1; rank - fact.shape.len()];
                full.extend(&fact.shape);
                Operand::New(reordered(&Tensor::new(&full, t.data().clone())?, last)?)
            } else {
                return Ok(None);
            });
        }
        // Before version 7 an attribute aligned the operands.
        let plain = attrs.opset >= 7 || !attrs.has("axis");
        Ok((whole && plain).then_some(Form::Twin(def, attrs, operands)))
    }

    /// Over some axes, which must be known.
    fn reduce(&self, node: &Node, def: &'static OpDef, attrs: &Attrs) -> Result<Option<Form>, OpError> {
        let Some(x) = node.inputs[0] else { return Ok(None) };
        let rank = self.net.shape(x).len();
        let given = node.inputs.get(1).copied().flatten();
        let axes = match given {
            Some(a) => self.net.fact(a).and_then(Fact::ints),
            None => attrs.ints("axes")?.map(<[i64]>::to_vec),
        };
        let Some(axes) = axes.filter(|a| !a.is_empty()) else { return Ok(None) };
        let axes = crate::ops::shape::axes_of(&axes, rank)?;
        let axes: Vec<i64> = axes.into_iter().map(|a| moved(a, rank) as i64).collect();
        let mut operands = vec![Operand::Twin(x)];
        let mut own = attrs.clone();
        if given.is_some() {
            operands.push(Operand::New(Tensor::i64(&[axes.len()], axes.clone())?));
        } else {
            own = with(own, "axes", Attr::Ints(axes.clone()));
        }
        if attrs.flag("keepdims", true)? {
            return Ok(Some(Form::Twin(def, own, operands)));
        }
        // What is left is in the same order when the channels stay alone or go.
        let left: Vec<usize> = (0..rank).filter(|a| !axes.contains(&(*a as i64))).collect();
        let channels = rank - 1;
        let same = !left.contains(&channels) || left.iter().all(|&a| a == 0 || a == channels);
        Ok(same.then_some(Form::Whole(def, own, operands)))
    }

    /// `BatchNormalization` as a product and a sum.
    fn normalise(&self, node: &Node, attrs: &Attrs) -> Result<Option<Form>, OpError> {
        let (&[Some(x), ..], [Some(_)]) = (&node.inputs[..], &node.outputs[..]) else { return Ok(None) };
        let here = Here { node, def: internal::batch_normalization(), attrs: &Arc::new(attrs.clone()) };
        let rank = self.net.shape(x).len();
        let Some(Affine { gain, shift }) = super::fold::normalisation(self.net, here, self.net.shape(x)[1]) else {
            return Ok(None);
        };
        let mut shape = vec![1; rank];
        shape[rank - 1] = gain.len();
        Ok(Some(Form::Affine(x, Tensor::f32(&shape, gain)?, Tensor::f32(&shape, shift)?)))
    }

    fn pad(&self, node: &Node, def: &'static OpDef, attrs: Attrs) -> Result<Option<Form>, OpError> {
        let (Some(x), rank) = (node.inputs[0], self.net.shape(node.inputs[0].unwrap_or(0)).len()) else {
            return Ok(None);
        };
        if node.inputs.get(3).copied().flatten().is_some() {
            return Ok(None);
        }
        let order = |pads: &[i64]| {
            let mut v = last(&pads[..rank]);
            v.extend(last(&pads[rank..]));
            v
        };
        let mut operands = vec![Operand::Twin(x)];
        match node.inputs.get(1).copied().flatten() {
            Some(p) => {
                let Some(pads) = self.net.fact(p).and_then(Fact::ints).filter(|p| p.len() == 2 * rank) else {
                    return Ok(None);
                };
                operands.push(Operand::New(Tensor::i64(&[2 * rank], order(&pads))?));
                operands.extend(node.inputs[2..].iter().map(|v| v.map_or(Operand::None, Operand::As)));
                Ok(Some(Form::Twin(def, attrs, operands)))
            }
            None => {
                let Some(pads) = attrs.ints("pads")?.filter(|p| p.len() == 2 * rank).map(order) else {
                    return Ok(None);
                };
                Ok(Some(Form::Twin(def, with(attrs, "pads", Attr::Ints(pads)), operands)))
            }
        }
    }

    fn slice(&self, node: &Node, def: &'static OpDef, attrs: Attrs) -> Result<Option<Form>, OpError> {
        let Some(x) = node.inputs[0] else { return Ok(None) };
        let rank = self.net.shape(x).len();
        let known = |i: usize| node.inputs.get(i).copied().flatten().map(|v| self.net.fact(v).and_then(Fact::ints));
        let Some(Some(starts)) = known(1) else { return Ok(None) };
        let axes = match known(3) {
            Some(Some(axes)) => axes,
            Some(None) => return Ok(None),
            None => (0..starts.len() as i64).collect(),
        };
        let axes = crate::ops::shape::axes_of(&axes, rank)?;
        let axes: Vec<i64> = axes.into_iter().map(|a| moved(a, rank) as i64).collect();
        let mut operands = vec![Operand::Twin(x)];
        for i in 1..3 {
            operands.push(node.inputs.get(i).copied().flatten().map_or(Operand::None, Operand::As));
        }
        operands.push(Operand::New(Tensor::i64(&[axes.len()], axes)?));
        if let Some(Some(steps)) = node.inputs.get(4) {
            operands.push(Operand::As(*steps));
        }
        Ok(Some(Form::Twin(def, attrs, operands)))
    }

    fn resize(&self, node: &Node, def: &'static OpDef, attrs: Attrs) -> Result<Option<Form>, OpError> {
        let Some(x) = node.inputs[0] else { return Ok(None) };
        let rank = self.net.shape(x).len();
        if attrs.has("axes") {
            return Ok(None);
        }
        let mut operands = vec![Operand::Twin(x)];
        for v in &node.inputs[1..] {
            operands.push(match v {
                None => Operand::None,
                Some(v) => {
                    let Some(t) = self.net.constant(*v) else { return Ok(None) };
                    match t.len() {
                        0 => Operand::As(*v),
                        n if n == rank => Operand::New(permuted_list(t)?),
                        _ => return Ok(None),
                    }
                }
            });
        }
        let attrs = match attrs.floats("scales")? {
            Some(s) if s.len() == rank => {
                let scales = last(s);
                with(attrs, "scales", Attr::Floats(scales))
            }
            Some(_) => return Ok(None),
            None => attrs,
        };
        Ok(Some(Form::Twin(def, attrs, operands)))
    }
}

/// Operators on one tensor, element by element; every other operand is one number.
pub(super) static UNARY: &[&str] = &[
    "Relu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Softplus",
    "Softsign",
    "Mish",
    "Gelu",
    "FastGelu",
    "QuickGelu",
    "Tanh",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Abs",
    "Neg",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Clip",
    "Cast",
    "Identity",
    "Dropout",
    "Not",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// Operators that broadcast their operands by NumPy's rules.
pub(super) static BROADCAST: &[&str] =
    &["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where"];

fn with(mut attrs: Attrs, name: &str, value: Attr) -> Attrs {
    attrs.map.insert(name.to_string(), value);
    attrs
}

/// A list with an entry an axis, in channels-last order.
fn permuted_list(t: &Tensor) -> Result<Tensor, OpError> {
    let order = last(&(0..t.len()).collect::<Vec<_>>());
    Ok(Tensor::new(t.shape(), t.data().pick(&order))?)
}
