//! Operators that move elements and compute nothing, of every element type.
//!
//! Most are a [`view::View`]: their one operand read through strides. The rest are blocks copied to their places
//! (`join`), elements with a border (`pad`), and tensors made of little (`make`).
use super::OpDef;

mod join;
mod make;
mod mask;
pub(super) mod operands;
mod pad;
mod permute;
mod reshape;
mod slice;
mod unview;
pub(super) mod view;

pub(crate) use pad::border_of_zeros;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &join::CONCAT,
    &join::SPLIT,
    &make::CONSTANT_OF_SHAPE,
    &make::EYE_LIKE,
    &make::RANGE,
    &make::RANGE_MICROSOFT,
    &mask::REVERSE_SEQUENCE,
    &mask::TRILU,
    &mask::TRILU_MICROSOFT,
    &pad::CENTER_CROP_PAD,
    &pad::PAD,
    &pad::PAD_MICROSOFT,
    &permute::DEPTH_TO_SPACE,
    &permute::SPACE_TO_DEPTH,
    &permute::TRANSPOSE,
    &reshape::EXPAND_DIMS,
    &reshape::FLATTEN,
    &reshape::RESHAPE,
    &reshape::SHAPE,
    &reshape::SIZE,
    &reshape::SQUEEZE,
    &reshape::UNSQUEEZE,
    &slice::EXPAND,
    &slice::SLICE,
    &slice::TILE,
];
