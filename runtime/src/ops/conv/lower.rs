//! Lowering of convolutions.
use crate::ops::OpError;
use crate::plan::{Lowered, Lowering};

pub(super) fn conv(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn conv_transpose(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn deform_conv(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
