//! Numeric kernels of hone: slices in, slices out; nothing here allocates.
#![no_std]
