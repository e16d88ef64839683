//! hone's kernels for GPUs, and the device that runs them.
//!
//! A kernel is a text in WGSL with its contract in the head (`<name>.wgsl`), and beside it (`<name>.rs`) what says with which
//! parameters and on which grid it is called, and the plain loop it is tried against. Every text keeps to what every target
//! has: 8 storage bindings, 256 threads, 16 KiB of shared memory. All storage is `read_write`, because a device refuses one
//! buffer that is bound both ways, and the operands and results of a call are ranges of one buffer.
//!
//! Without the feature `device` there is only that; with it, `device::Device` runs it through wgpu. The crate knows nothing of
//! graphs or plans.
pub mod coded;
pub mod codes;
pub mod copy;
pub mod functions;
pub mod gather;
pub mod kernel;
pub mod lookup;
pub mod map;
pub mod norm;
pub mod pairs;
pub mod picks;
pub mod planes;
pub mod product;
pub mod recurrent;
pub mod recurrent_back;
pub mod recurrent_codes;
pub mod resample;
pub mod rows;
pub mod update;
pub mod window;

#[cfg(feature = "device")]
pub mod device;
