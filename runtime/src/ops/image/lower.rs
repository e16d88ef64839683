//! Lowering of resampling.
use crate::ops::OpError;
use crate::plan::{Lowered, Lowering};

pub(super) fn resize(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn upsample(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn grid_sample(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
