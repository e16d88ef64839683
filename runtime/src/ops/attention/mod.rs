//! Attention and what stands around it: `Attention` of the standard and of ONNX Runtime, `MultiHeadAttention`,
//! `GroupQueryAttention`, `RotaryEmbedding`, `LinearAttention`.
//!
//! Every softmax attention here is one function, [`core`], and one kernel, [`fused::Fused`]; the operators differ in how
//! they say what Q, K, V and the mask are.
//!
//! Dimension letters: `B` batch, `H` query heads, `G` key and value heads (`H` is a multiple of `G`), `S` queries,
//! `P` keys of the past, `L` keys in all, `D` head size of Q and K, `E` head size of V.
use super::OpDef;

mod backward;
mod core;
mod fused;
mod grouped;
mod linear;
mod mask;
mod microsoft;
mod multi_head;
mod rotary;
mod standard;

#[allow(
    unused_imports,
    reason = "QAttention of the quantised family and the fusion of decomposed attention call these"
)]
pub(super) use self::{
    backward::of_codes,
    core::{Attended, Core, Sizes, Stage, core, heads_first, tokens_first},
    microsoft::{Operands, Projected},
};

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &standard::ATTENTION,
    &rotary::ROTARY_EMBEDDING,
    &linear::LINEAR_ATTENTION,
    &microsoft::ATTENTION,
    &multi_head::MULTI_HEAD_ATTENTION,
    &grouped::GROUP_QUERY_ATTENTION,
    &rotary::MICROSOFT_ROTARY_EMBEDDING,
];
