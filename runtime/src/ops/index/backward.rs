//! Gradients of what is chosen by index: added up where it was taken from.
use super::around;
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, OpDef, OpError, axis_of, find};
use crate::tensor::{DType, Tensor};

fn op(name: &str) -> Result<&'static OpDef, OpError> {
    find("", name).ok_or_else(|| OpError::unsupported(format!("an operator `{name}`")))
}

fn add() -> Attr {
    Attr::Str("add".into())
}

/// Of `Gather`: slices added into zeros, the axis of the indices foremost meanwhile.
pub(super) fn gather(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, indices) = (b.dy()?, b.x(0)?, b.x(1)?);
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(dy));
    let (rank, axis) = (shape.len(), axis_of(b.attrs().int("axis", 0)?, shape.len())?);
    let tuples = b.shape(indices).to_vec();
    // [outer…, tuples…, inner…] → [tuples…, outer…, inner…].
    let t = tuples.len();
    let order: Vec<usize> = (axis..axis + t).chain(0..axis).chain(axis + t..t + rank - 1).collect();
    let dy = b.transpose(dy, &order)?;
    let moved: Vec<usize> = [axis].into_iter().chain((0..rank).filter(|&a| a != axis)).collect();
    let zeros = b.zeros(dtype, &moved.iter().map(|&a| shape[a]).collect::<Vec<_>>())?;
    let indices = b.reshape(indices, &[&tuples[..], &[1]].concat())?;
    let sum = b.standard("ScatterND", [("reduction", add())], &[zeros, indices, dy])?;
    let mut back = vec![0; rank];
    moved.iter().enumerate().for_each(|(i, &a)| back[a] = i);
    let dx = b.transpose(sum, &back)?;
    b.give(0, dx);
    Ok(())
}

/// Of `GatherElements`.
pub(super) fn gather_elements(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, indices) = (b.dy()?, b.x(0)?, b.x(1)?);
    let axis = b.attrs().int("axis", 0)?;
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(dy));
    let zeros = b.zeros(dtype, &shape)?;
    let attrs = [("axis", Attr::Int(axis)), ("reduction", add())];
    let dx = b.standard("ScatterElements", attrs, &[zeros, indices, dy])?;
    b.give(0, dx);
    Ok(())
}

/// Of `GatherND`, the numbers of the batch axes put before the indices.
pub(super) fn gather_nd(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, mut indices) = (b.dy()?, b.x(0)?, b.x(1)?);
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(dy));
    let batch = usize::try_from(b.attrs().int("batch_dims", 0)?).unwrap_or(0);
    if batch > 0 {
        indices = b.cast(indices, DType::I64)?;
        let tuples = b.shape(indices).to_vec();
        let lead = &tuples[..tuples.len() - 1];
        let mut parts = Vec::with_capacity(batch + 1);
        for axis in 0..batch {
            let (outer, dim, inner) = around(lead, axis);
            let at: Vec<i64> = (0..outer * dim * inner).map(|i| (i / inner.max(1) % dim.max(1)) as i64).collect();
            let numbers = Tensor::i64(&[lead, &[1]].concat(), at)?;
            parts.push(b.constant(numbers));
        }
        parts.push(indices);
        indices = b.concat(&parts, tuples.len() - 1)?;
    }
    let zeros = b.zeros(dtype, &shape)?;
    let dx = b.standard("ScatterND", [("reduction", add())], &[zeros, indices, dy])?;
    b.give(0, dx);
    Ok(())
}

/// Of `ScatterElements` and `ScatterND`, whose updates replace or are added. Of several updates of one place all are taken
/// for the one that stayed: which it is, ONNX leaves open.
pub(super) fn scatter(b: &mut Backward<'_>, name: &'static str, gather: &'static str) -> Result<(), OpError> {
    let attrs = b.attrs();
    let (dy, indices, updates) = (b.dy()?, b.x(1)?, b.x(2)?);
    let replaces = match attrs.str("reduction", "none")? {
        "none" => true,
        "add" => false,
        other => return Err(OpError::unsupported(format!("a gradient through updates combined by `{other}`"))),
    };
    let axis = attrs.int("axis", 0)?;
    let own = || if name == "ScatterND" { Attrs::of([]) } else { Attrs::of([("axis", Attr::Int(axis))]) };
    if b.wants(0) {
        let dx = if replaces {
            let (shape, dtype) = (b.shape(updates).to_vec(), b.dtype(dy));
            let zeros = b.zeros(dtype, &shape)?;
            b.one(op(name)?, own(), &[Some(dy), Some(indices), Some(zeros)])?
        } else {
            dy
        };
        b.give(0, dx);
    }
    if b.wants(2) {
        let g = b.one(op(gather)?, own(), &[Some(dy), Some(indices)])?;
        b.give(2, g);
    }
    Ok(())
}

/// Of `TopK`: to where the elements were found.
pub(super) fn top_k(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, x, attrs) = (b.dy()?, b.x(0)?, b.attrs());
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(dy));
    let indices = match b.result(1) {
        Some(v) => v,
        None => {
            let operands = b.operands();
            let made = b.apply(op("TopK")?, Attrs::clone(&attrs), &operands, &[false, true])?;
            made.get(1).copied().flatten().ok_or_else(|| OpError::unsupported("TopK without indices"))?
        }
    };
    let zeros = b.zeros(dtype, &shape)?;
    let at = [("axis", Attr::Int(attrs.int("axis", -1)?)), ("reduction", add())];
    let dx = b.standard("ScatterElements", at, &[zeros, indices, dy])?;
    b.give(0, dx);
    Ok(())
}

/// Of `CumSum`: summed from the other end.
pub(super) fn cum_sum(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, axis, attrs): (ValueId, ValueId, _) = (b.dy()?, b.x(1)?, b.attrs());
    let own = [
        ("exclusive", Attr::Int(attrs.int("exclusive", 0)?)),
        ("reverse", Attr::Int(i64::from(!attrs.flag("reverse", false)?))),
    ];
    let dx = b.standard("CumSum", own, &[dy, axis])?;
    b.give(0, dx);
    Ok(())
}
