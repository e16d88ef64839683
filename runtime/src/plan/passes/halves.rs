//! Tensors of `f16` and `bf16` are computed in `f32`: as [`super`] says of sums, in between and not at the end.
//!
//! A value may exist as the file has it, in `f32` (its *twin*), or both. Between operators that have a twin form nothing is
//! rounded to 16 bits, as in ONNX Runtime; results of the graph are.
use std::sync::Arc;

use super::{Net, planned};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, Fact, OpDef, OpError, find};
use crate::plan::specialise::{How, Planned};
use crate::tensor::{DType, Tensor};

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    let half = |net: &Net<'_>, v: ValueId| net.fact(v).is_some_and(|f| f.dtype.is_half());
    if !(0..net.len()).any(|i| net.at(i).is_some_and(|h| h.node.outputs.iter().flatten().any(|&v| half(net, v)))) {
        return Ok(());
    }
    let Some(cast) = find("", "Cast") else { return Ok(()) };
    let nodes = net.drain();
    let mut made = vec![true; net.special.names.len()];
    for v in nodes.iter().flat_map(|p| p.node.outputs.iter().flatten()) {
        made[*v] = false;
    }
    let mut walk = Walk { twin: vec![None; made.len()], net, made, cast };
    for p in nodes {
        walk.take(p)?;
    }
    let read: Vec<ValueId> = walk.net.special.rest.iter().flat_map(|n| n.inputs.iter().flatten()).copied().collect();
    for v in walk.net.special.outputs.clone().into_iter().chain(read) {
        walk.narrow(v);
    }
    Ok(())
}

struct Walk<'n, 's> {
    net: &'n mut Net<'s>,
    /// The `f32` form of each value.
    twin: Vec<Option<ValueId>>,
    /// Whether the value exists by now as the file has it.
    made: Vec<bool>,
    cast: &'static OpDef,
}

impl Walk<'_, '_> {
    fn half(&self, v: ValueId) -> bool {
        self.net.fact(v).is_some_and(|f| f.dtype.is_half())
    }

    fn take(&mut self, p: Planned) -> Result<(), OpError> {
        if !self.widens(&p) {
            p.node.inputs.iter().flatten().for_each(|&v| self.narrow(v));
            p.node.outputs.iter().flatten().for_each(|&v| self.made[v] = true);
            self.net.push(p);
            return Ok(());
        }
        let How::Own(def, attrs) = p.how else { return Ok(()) };
        let mut inputs = p.node.inputs;
        for v in inputs.iter_mut().flatten() {
            *v = self.wide(*v)?;
        }
        let mut outputs = p.node.outputs;
        for v in outputs.iter_mut().flatten() {
            if self.half(*v) {
                let twin = self.add(*v, Fact::new(DType::F32, self.net.shape(*v)));
                self.twin[*v] = Some(twin);
                *v = twin;
            } else {
                self.made[*v] = true;
            }
        }
        self.net.push(planned(p.node.name, def, attrs, inputs, outputs));
        Ok(())
    }

    /// Whether the node does in `f32` what it does in 16 bits.
    fn widens(&self, p: &Planned) -> bool {
        let How::Own(def, _) = &p.how else { return false };
        let known = |v: &ValueId| self.net.fact(*v).is_some();
        let values = || p.node.inputs.iter().chain(&p.node.outputs).flatten();
        !p.probe
            && WIDENED.contains(&&*def.spelled())
            && values().all(known)
            && values().any(|&v| self.half(v))
            && values().all(|&v| self.half(v) || self.net.fact(v).is_some_and(|f| !f.dtype.is_float()))
    }

    /// A value after `v`, of that type and shape.
    fn add(&mut self, v: ValueId, fact: Fact) -> ValueId {
        let name = format!("{}.wide", self.net.name(v));
        let new = self.net.add(name, fact);
        self.twin.resize(new + 1, None);
        self.made.resize(new + 1, true);
        new
    }

    /// `v` in `f32` when it is of 16 bits, made if need be; else `v`.
    fn wide(&mut self, v: ValueId) -> Result<ValueId, OpError> {
        if !self.half(v) {
            return Ok(v);
        }
        if let Some(twin) = self.twin[v] {
            return Ok(twin);
        }
        let twin = match self.net.constant(v).cloned() {
            Some(t) => {
                let wide = Tensor::from_f64(DType::F32, t.shape(), &t.data().to_f64())?;
                self.add(v, Fact::constant(Arc::new(wide)))
            }
            None => {
                let twin = self.add(v, Fact::new(DType::F32, self.net.shape(v)));
                self.convert(v, twin, DType::F32);
                twin
            }
        };
        self.twin[v] = Some(twin);
        Ok(twin)
    }

    /// Makes `v` as the file has it if it is not there.
    fn narrow(&mut self, v: ValueId) {
        if let (false, Some(twin), Some(dtype)) = (self.made[v], self.twin[v], self.net.fact(v).map(|f| f.dtype)) {
            self.made[v] = true;
            self.convert(twin, v, dtype);
        }
    }

    fn convert(&mut self, from: ValueId, to: ValueId, dtype: DType) {
        let attrs = Arc::new(Attrs::of([("to", Attr::Int(dtype.onnx().into()))]));
        let name = format!("{}.{dtype}", self.net.name(from));
        self.net.push(planned(name, self.cast, attrs, vec![Some(from)], vec![Some(to)]));
    }
}

/// Operators whose results in `f32` are those in 16 bits, but for rounding.
static WIDENED: &[&str] = &[
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "DepthToSpace",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "GRU",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "RNN",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
    "com.microsoft.GatherBlockQuantized",
];
