//! The hone loop as a library: see → answer → be told → learn → answer better, on the device.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod class;
pub mod modality;
pub mod note;
pub mod tensor;

pub use bundle::Bundle;
pub use class::{Class, Classified};
pub use note::Note;
pub use tensor::{DType, Data, Tensor, TensorError};
