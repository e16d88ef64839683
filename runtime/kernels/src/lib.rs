//! Numeric kernels of hone: slices in, slices out; nothing here allocates (starting `threads` aside), reads a clock or does I/O.
//!
//! Each module holds a `reference` (the formula, loops and all) and, in `KERNELS`, every faster form of it. The tests
//! run each row of `KERNELS` against the reference on sizes that sweep its tile edges.
//! `unsafe` is allowed here and only for calling a function compiled for a CPU feature that was just detected, and for
//! vector loads and stores of whole arrays, and for instructions that have no intrinsics.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod bf16;
pub mod by_weight;
pub mod cell;
pub mod coded;
pub mod conv;
#[cfg(target_arch = "x86_64")]
mod depthwise512;
pub mod elementwise;
pub mod epilogue;
pub mod exp;
pub mod gemm;
pub mod gradient;
pub mod isa;
pub mod lookup;
pub mod nbits;
pub mod nhwc;
pub mod nhwc_pool;
pub mod normalise;
pub mod optimize;
pub mod panels;
pub mod planes;
pub mod pool;
pub mod product;
pub mod qbins;
pub mod qconv;
pub mod qgemm;
pub mod qnhwc;
mod qtile;
pub mod quantize;
pub mod reduce;
pub mod refit;
pub mod resample;
pub mod roofline;
pub mod rows;
pub mod shifted;
mod simd;
pub mod strided;
pub mod threads;
mod tile;
pub mod transpose;
mod window;
pub mod winograd;
