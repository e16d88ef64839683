//! How much is learned from how few presses: changed worlds, a simulated person, and the figures of the feedback
//! benchmark.
//!
//! [`worlds()`] reads recorded worlds (`benches/feedback/record.py` makes them), [`run`] plays one under a
//! [`Condition`]. The stream of samples and which presses are wrong are part of a world, so every learner, ours or
//! another's, meets the same.
pub mod protocol;
pub mod report;
pub mod worlds;

pub use protocol::{CHECKPOINTS, Condition, Curve, Sample, Says, World, accuracy, run};
pub use worlds::{WorldError, worlds};
