//! What recordings for GPUs of several families have in common.
use hone_gpu::copy::{Axis, Border, Copy};
use hone_gpu::functions::{Function, function, of_activation};
use hone_gpu::map::{Element, Map, Operand};
use hone_gpu::rows::{Along, Rows};
use hone_kernels::epilogue::Activation;

use super::OpError;
use super::shape::{broadcast, broadcast_strides};
use crate::plan::{At, Lowering, Recorded};
use crate::tensor::DType;

/// Elements as the kernels have them; `None` for types they do not.
pub(super) fn element(dtype: DType) -> Option<Element> {
    Some(match dtype {
        DType::F32 => Element::F32,
        DType::I32 => Element::I32,
        DType::U8 | DType::Bool => Element::U8,
        DType::I8 => Element::I8,
        _ => return None,
    })
}

/// A function of the inputs in `operands`, each taken as of a shape that broadcasts to that of result 0.
pub(super) fn mapped(
    l: &Lowering<'_>,
    function: Option<&'static Function>,
    constants: Vec<f32>,
    operands: &[(usize, &[usize])],
    result: Element,
) -> Option<Recorded> {
    let to = l.output_shape(0);
    let mut list = Vec::with_capacity(operands.len());
    let mut at = Vec::with_capacity(operands.len() + 1);
    for &(i, shape) in operands {
        if broadcast(shape, to).ok()? != to {
            return None;
        }
        let wide = result == Element::I64 && l.dtype(i)? == DType::I64;
        let element = if wide { Element::I64 } else { element(l.dtype(i)?)? };
        list.push(Operand { element, strides: broadcast_strides(shape, to) });
        at.push(At::In(i));
    }
    at.push(At::Out(0));
    let map = Map { function: function?, constants, shape: to.to_vec(), operands: list, result };
    Recorded::one(map.call(), at)
}

/// An activation of floats.
pub(super) fn activated(l: &Lowering<'_>, activation: Activation) -> Result<Option<Recorded>, OpError> {
    let (function, constants) = of_activation(activation);
    unary(l, Some(function), constants)
}

/// A function of floats of that name, with constants.
pub(super) fn named(l: &Lowering<'_>, name: &str, constants: &[f32]) -> Result<Option<Recorded>, OpError> {
    unary(l, function(name), constants.to_vec())
}

fn unary(
    l: &Lowering<'_>,
    function: Option<&'static Function>,
    constants: Vec<f32>,
) -> Result<Option<Recorded>, OpError> {
    let shape = l.shape(0)?;
    let floats = l.dtype(0) == Some(DType::F32);
    Ok(if floats { mapped(l, function, constants, &[(0, shape)], Element::F32) } else { None })
}

/// A function of two tensors of floats, taken as of the shapes `a` and `b`.
pub(super) fn binary(l: &Lowering<'_>, name: &str, a: &[usize], b: &[usize]) -> Option<Recorded> {
    let floats = [0, 1].into_iter().all(|i| l.dtype(i) == Some(DType::F32));
    let f = function(name)?;
    let result = if f.decides { Element::U8 } else { Element::F32 };
    if floats { mapped(l, Some(f), vec![], &[(0, a), (1, b)], result) } else { None }
}

/// The gradient of a function of one number by that name: of what comes back, and of the operand or the result. There is one
/// for those functions only that commonly stand in networks.
pub(super) fn derivative(l: &Lowering<'_>, name: &str, constants: Vec<f32>) -> Result<Option<Recorded>, OpError> {
    let (g, v) = (l.shape(0)?, l.shape(1)?);
    let floats = [0, 1].into_iter().all(|i| l.dtype(i) == Some(DType::F32));
    Ok(if floats && g == v { mapped(l, function(name), constants, &[(0, g), (1, v)], Element::F32) } else { None })
}

/// One copy of input 0 into result 0, through strides of elements. Elements of 2 bytes have none.
pub(super) fn copied(copy: &Copy) -> Option<Recorded> {
    Recorded::one(copy.call(), vec![At::In(0), At::Out(0)])
}

/// The axes of a view as a copy has them.
pub(super) fn axes(lengths: &[usize], strides: &[isize]) -> Vec<Axis> {
    let own = super::strides_of(lengths);
    lengths.iter().zip(strides).zip(own).map(|((len, from), to)| Axis::plain(*len, *from, to)).collect()
}

/// No border.
pub(super) const BARE: Border = Border::Fill([0; 8]);

/// `rows` along `length` elements of input 0, `inner` apart, into result 0.
pub(super) fn along(rows: Rows, outer: usize, length: usize, inner: usize, factor: f32) -> Option<Recorded> {
    let along = Along { rows, outer, length, inner, scales: length, epsilon: 0.0, factor };
    Recorded::one(along.call(), vec![At::In(0), At::Out(0)])
}
