//! Resampling of images and volumes.
use super::OpDef;

mod grid;
mod lower;
mod resize;

/// The operators of this family.
pub(super) static OPS: &[&OpDef] = &[
    &resize::RESIZE,
    &resize::UPSAMPLE,
    &resize::CROP_AND_RESIZE,
    &grid::GRID_SAMPLE,
    &grid::MICROSOFT_GRID_SAMPLE,
    &grid::AFFINE_GRID,
];
