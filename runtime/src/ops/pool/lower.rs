//! Lowering of pooling.
use crate::ops::OpError;
use crate::plan::{Lowered, Lowering};

pub(super) fn max_pool(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn average_pool(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn global_average_pool(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
pub(super) fn global_max_pool(_: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(None)
}
