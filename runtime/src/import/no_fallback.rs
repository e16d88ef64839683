//! In a build without tract's own operators none is known beside ours.
use std::sync::Arc;

use tract_onnx::pb;

use super::build::Context;
use crate::graph::Opaque;

/// None: this build has no code of tract's.
pub(super) fn operator(_: &pb::NodeProto, _: &Context<'_>) -> Option<Arc<dyn Opaque>> {
    None
}

/// No.
pub(super) fn knows(_: &pb::NodeProto) -> bool {
    false
}
