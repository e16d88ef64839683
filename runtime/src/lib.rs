//! The hone loop as a library: see → answer → be told → learn → answer better, on the device.
#![forbid(unsafe_code)]

pub mod adapters;
#[cfg(feature = "import")]
pub mod app;
pub mod autodiff;
pub mod bundle;
pub mod capture;
#[cfg(feature = "import")]
pub mod cases;
pub mod choice;
pub mod class;
#[cfg(feature = "import")]
pub mod compress;
pub mod config;
pub mod cpu;
pub mod dataset;
pub mod device;
#[cfg(feature = "import")]
pub mod export;
pub mod external;
pub mod feedback;
pub mod flash;
pub mod gpio;
pub mod graph;
#[cfg(feature = "import")]
pub mod import;
pub mod journal;
pub mod learn;
pub mod metrics;
pub mod modality;
#[cfg(feature = "import")]
pub mod model;
pub mod note;
pub mod ops;
pub mod plan;
pub mod precision;
pub mod quant;
pub mod scope;
#[cfg(feature = "import")]
pub mod session;
pub mod state;
pub mod tensor;
pub mod train;
pub mod trial;
pub mod tune;

pub use bundle::Bundle;
pub use class::{Class, Classified};
pub use note::Note;
pub use tensor::{DType, Data, Tensor, TensorError};
