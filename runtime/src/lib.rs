//! The hone loop as a library: see → answer → be told → learn → answer better, on the device.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod class;
pub mod journal;
pub mod note;
pub mod state;
pub mod tensor;

pub use class::{Class, Classified};
pub use note::Note;
pub use tensor::{DType, Data, Tensor, TensorError};
