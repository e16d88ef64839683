//! Convolutions with channels first on GPUs, and their gradients: the weights may change from run to run.
use hone_gpu::planes::{Of, Planes};

use super::backward::{checked, weight_shape};
use super::transpose::Transposed;
use super::{Conv, Geometry};
use crate::ops::OpError;
use crate::plan::{At, Lowering, Recorded};
use crate::tensor::DType;

/// Of `Conv`.
pub(super) fn conv(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let bias = if l.has(2) { Some(l.shape(2)?) } else { None };
    let Conv { n, c, o, groups, geometry } = Conv::of(l.attrs, l.shape(0)?, l.shape(1)?, bias)?;
    recorded(l, Of::Forward { bias: bias.is_some() }, (n, groups, c, o / groups), &geometry)
}

/// Of `ConvTranspose`.
pub(super) fn transposed(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let bias = if l.has(2) { Some(l.shape(2)?) } else { None };
    let Transposed { n, c, o, groups, geometry } = Transposed::of(l.attrs, l.shape(0)?, l.shape(1)?, bias)?;
    recorded(l, Of::Input { bias: bias.is_some() }, (n, groups, o, c), &geometry)
}

/// Of `ConvVjpWeight`.
pub(super) fn by_weight(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let (x, dy) = (l.shape(0)?, l.shape(1)?);
    let Conv { n, c, o, groups, geometry } = checked(l.attrs, x, dy, &weight_shape(l.attrs, x, dy)?)?;
    recorded(l, Of::Weight, (n, groups, c, o / groups), &geometry)
}

/// `size` is the batch, the groups, and the channels of a group on the side a window reads from and on the other.
fn recorded(
    l: &Lowering<'_>,
    of: Of,
    (batch, groups, c, o): (usize, usize, usize, usize),
    geometry: &Geometry,
) -> Result<Option<Recorded>, OpError> {
    let floats = (0..l.inputs()).all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    let Some(window) = geometry.window().filter(|_| floats) else { return Ok(None) };
    let call = Planes { of, window, batch, groups, c, o }.call();
    let mut at: Vec<At> = (0..l.inputs()).filter(|&i| l.has(i)).map(At::In).collect();
    at.push(At::Out(0));
    Ok(Recorded::one(call, at))
}
