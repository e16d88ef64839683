//! Gradients of matrix products: matrix products with one side transposed.
//!
//! A frozen quantised right operand stays as it is: its scales by column, which lie along the reduction of the gradient's
//! product, are put into the gradient instead where there are few rows, so that the weight needs one scale and its packed
//! form stays int8.
use super::lying::MANY_ROWS;
use crate::autodiff::Backward;
use crate::graph::{Op, ValueId};
use crate::ops::{Attr, Attrs, OpError, axis_of, find};

/// `dA = dY · Bᵀ`, `dB = Aᵀ · dY`, batches that were broadcast summed.
pub(super) fn matmul(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, w) = (b.dy()?, b.x(0)?, b.x(1)?);
    let (own_x, own_w) = (b.shape(x).to_vec(), b.shape(w).to_vec());
    // A vector is a row on the left and a column on the right; the product has no axis for it.
    let mut shape = b.shape(dy).to_vec();
    let mut left = own_x.clone();
    let mut right = own_w.clone();
    if right.len() == 1 {
        right.push(1);
        shape.push(1);
    }
    if left.len() == 1 {
        left.insert(0, 1);
        shape.insert(shape.len() - 1, 1);
    }
    let (dy, x, w) = (b.reshape(dy, &shape)?, b.reshape(x, &left)?, b.reshape(w, &right)?);
    if b.wants(0) {
        let (dy, w) = unscaled(b, dy, w, false)?;
        let g = b.matmul((dy, false), (w, true), 1.0)?;
        let g = b.unbroadcast(g, &left, &own_x)?;
        b.give(0, g);
    }
    if b.wants(1) {
        let (x, dy) = if right.len() == 2 { (flat(b, x)?, flat(b, dy)?) } else { (x, dy) };
        let g = b.matmul((x, true), (dy, false), 1.0)?;
        let g = b.unbroadcast(g, &right, &own_w)?;
        b.give(1, g);
    }
    Ok(())
}

/// All axes but the last as one.
fn flat(b: &mut Backward<'_>, x: ValueId) -> Result<ValueId, OpError> {
    let shape = b.shape(x).to_vec();
    match shape.split_last() {
        Some((&last, lead)) => b.reshape(x, &[lead.iter().product(), last]),
        None => Ok(x),
    }
}

/// The same product out of simpler operators, which are differentiated instead.
pub(super) fn fused_matmul(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let attrs = b.attrs();
        let mut sides = Vec::with_capacity(2);
        for (i, t, behind) in [(0, "transA", "transBatchA"), (1, "transB", "transBatchB")] {
            let x = b.x(i)?;
            let rank = b.shape(x).len();
            let mut order: Vec<usize> = (0..rank).collect();
            if attrs.flag(behind, false)? && rank > 2 {
                // The first axis belongs behind the batch axes.
                order = (1..rank - 1).chain([0, rank - 1]).collect();
            }
            if attrs.flag(t, false)? && rank > 1 {
                order.swap(rank - 2, rank - 1);
            }
            sides.push(b.transpose(x, &order)?);
        }
        let y = b.binary("MatMul", sides[0], sides[1])?;
        Ok(vec![b.scaled(y, f64::from(attrs.float("alpha", 1.0)?))?])
    })
}

/// Of `alpha · A' · B' + beta · C`.
pub(super) fn gemm(b: &mut Backward<'_>) -> Result<(), OpError> {
    let attrs = b.attrs();
    let (dy, x, w) = (b.dy()?, b.x(0)?, b.x(1)?);
    let (ta, tb) = (attrs.flag("transA", false)?, attrs.flag("transB", false)?);
    let (alpha, beta) = (attrs.float("alpha", 1.0)?, attrs.float("beta", 1.0)?);
    if b.wants(0) {
        let (dy, w) = unscaled(b, dy, w, tb)?;
        let g = if ta { b.matmul((w, tb), (dy, true), alpha)? } else { b.matmul((dy, false), (w, !tb), alpha)? };
        b.give(0, g);
    }
    if b.wants(1) {
        let g = if tb { b.matmul((dy, true), (x, ta), alpha)? } else { b.matmul((x, !ta), (dy, false), alpha)? };
        b.give(1, g);
    }
    if b.wants(2) {
        let g = b.scaled(dy, f64::from(beta))?;
        b.give_unbroadcast(2, g)?;
    }
    Ok(())
}

/// The gradient and the weight of a product with the scales of a frozen `[K, N]` (transposed: `[N, K]`) int8 weight moved
/// from the weight to the gradient, whose last axis they run along; both as they are when the weight is no such one, and when
/// there are so many rows that it is not packed beforehand.
fn unscaled(b: &mut Backward<'_>, dy: ValueId, w: ValueId, transposed: bool) -> Result<(ValueId, ValueId), OpError> {
    let rows: usize = b.shape(dy).iter().rev().skip(1).product();
    if rows >= MANY_ROWS {
        return Ok((dy, w));
    }
    let Some((codes, scale)) = frozen_codes(b, w, usize::from(!transposed), 2)? else { return Ok((dy, w)) };
    let one = b.scalar_like(scale, 1.0)?;
    let Some(dequantize) = find("", "DequantizeLinear") else { return Ok((dy, w)) };
    let plain = b.one(dequantize, Attrs::of([("axis", Attr::Int(0))]), &[Some(codes), Some(one)])?;
    let dy = b.mul(dy, scale)?;
    Ok((dy, plain))
}

/// Codes and scales of a weight of `rank` axes that is a `DequantizeLinear` of constants, int8, symmetric, with a scale for
/// each index of `axis`.
pub(in crate::ops) fn frozen_codes(
    b: &Backward<'_>,
    w: ValueId,
    axis: usize,
    rank: usize,
) -> Result<Option<(ValueId, ValueId)>, OpError> {
    let Some(node) = b.producer(w) else { return Ok(None) };
    let Op::Own(def, attrs) = &node.op else { return Ok(None) };
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let (Some(codes), Some(scale)) = (input(0), input(1)) else { return Ok(None) };
    let constant = |v: ValueId| b.fact(v).value.clone();
    let (Some(q), Some(s)) = (constant(codes), constant(scale)) else { return Ok(None) };
    let symmetric = match input(2).map(constant) {
        None => true,
        Some(Some(t)) => t.data().to_i128().iter().all(|&z| z == 0),
        Some(None) => false,
    };
    let plain = def.name == "DequantizeLinear"
        && q.dtype() == crate::tensor::DType::I8
        && q.shape().len() == rank
        && s.len() > 1
        && symmetric
        && attrs.int("block_size", 0)? == 0
        && axis_of(attrs.int("axis", 1)?, rank)? == axis;
    Ok(plain.then_some((codes, scale)))
}
