//! x
use super::OpDef;
/// x
pub(super) static OPS: &[&OpDef] = &[];
