//! (being written)
use super::OpDef;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[];
