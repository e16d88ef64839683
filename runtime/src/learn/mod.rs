//! Learning from presses: what a person says about a shown answer becomes a correction of the model's head.
pub mod error;
#[cfg(test)]
pub(crate) mod fixture;
pub mod head;
mod linalg;
pub mod objective;
pub mod solver;

pub use error::LearnError;
pub use head::{HeadBase, MergedHead, Theta};
pub use objective::{Feedback, Hyper, OBJECTIVES, ObjectiveDef};
pub use solver::{HeadSolver, Row, SolverConfig, canonical_refit};
