//! Operators that no file has: passes over a plan put them in the place of what a file says. They are in no family's
//! `OPS`, so that the importer does not find them.
//!
//! Channels last means that the axes of `[N, C, …]` are stored as `[N, …, C]`.
use super::{Attrs, Fact, OpDef, OpError, find, for_each_strided, strides_of};
use crate::tensor::Tensor;

pub(crate) use super::conv::last::{CONV, takes};
pub(crate) use super::matmul::dense::{DENSE, Z as DENSE_RESIDUAL, takes as takes_dense};
pub(crate) use super::pool::last::{AVERAGE_POOL, MAX_POOL};
pub(crate) use super::quantize::fused::{
    BIAS, CONV_CODES, CONV_FLOATS, LOOKUP, OTHER, PRODUCT_CODES, PRODUCT_FLOATS, PRODUCT_SCALED, RESIDUAL, SCALED_BIAS,
    SCALED_RESIDUAL, takes as takes_codes,
};

/// The domain of these operators.
pub(crate) const DOMAIN: &str = "hone";

/// The standard's `Transpose`.
pub(crate) fn transpose() -> &'static OpDef {
    standard("Transpose")
}

/// The standard's `BatchNormalization`.
pub(crate) fn batch_normalization() -> &'static OpDef {
    standard("BatchNormalization")
}

/// The standard's `Mul` and `Add`.
pub(crate) fn affine() -> (&'static OpDef, &'static OpDef) {
    (standard("Mul"), standard("Add"))
}

fn standard(name: &str) -> &'static OpDef {
    find("", name).expect("an operator of the standard that is ours")
}

/// `[N, C, …]` as `[N, …, C]`.
pub(crate) fn last<T: Clone>(first: &[T]) -> Vec<T> {
    let mut v = first.to_vec();
    if v.len() > 2 {
        v[1..].rotate_left(1);
    }
    v
}

/// `[N, …, C]` as `[N, C, …]`.
pub(crate) fn first<T: Clone>(last: &[T]) -> Vec<T> {
    let mut v = last.to_vec();
    if v.len() > 2 {
        v[1..].rotate_right(1);
    }
    v
}

/// The tensor whose axes are those of `t` in the order `to` gives.
///
/// # Errors
/// [`OpError::Tensor`] never in practice: it has as many elements.
pub(crate) fn reordered(t: &Tensor, to: fn(&[usize]) -> Vec<usize>) -> Result<Tensor, OpError> {
    let (shape, strides) = (to(t.shape()), to(&strides_of(t.shape())));
    let mut order = Vec::with_capacity(t.len());
    for_each_strided(0, &strides, &shape, |i| order.push(i));
    Ok(Tensor::new(&shape, t.data().pick(&order))?)
}

/// The facts of `inputs` with the first and those in `also` channels first, for a rule of the standard's operator.
pub(crate) fn facts_first(inputs: &[Option<&Fact>], also: &[usize]) -> Vec<Option<Fact>> {
    let one = |(i, f): (usize, &Option<&Fact>)| {
        f.map(|f| if i == 0 || also.contains(&i) { Fact::new(f.dtype, first(&f.shape)) } else { f.clone() })
    };
    inputs.iter().enumerate().map(one).collect()
}

/// The shape rule of the standard's operator `def` on channels-last facts.
///
/// # Errors
/// Those of the operator.
pub(crate) fn shape_last(
    def: &OpDef,
    attrs: &Attrs,
    inputs: &[Option<&Fact>],
    also: &[usize],
) -> Result<Option<Vec<Fact>>, OpError> {
    let facts = facts_first(inputs, also);
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    Ok((def.shape)(attrs, &refs)?.map(|l| l.into_iter().map(|f| Fact::new(f.dtype, last(&f.shape))).collect()))
}

/// The formula of the standard's operator `def` on channels-last tensors.
///
/// # Errors
/// Those of the operator.
pub(crate) fn reference_last(
    def: &OpDef,
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    also: &[usize],
) -> Result<Vec<Tensor>, OpError> {
    let turned: Vec<Option<Tensor>> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| {
            t.map(|t| if i == 0 || also.contains(&i) { reordered(t, first) } else { Ok(t.clone()) }).transpose()
        })
        .collect::<Result<_, _>>()?;
    let refs: Vec<Option<&Tensor>> = turned.iter().map(Option::as_ref).collect();
    (def.reference)(attrs, &refs)?.iter().map(|t| reordered(t, last)).collect()
}
