//! Learning from presses: what a person says about a shown answer becomes a correction of the model's head.
//!
//! [`objective`] turns presses into a gradient of the logits, [`solver`] carries it to the head's correction `Θ`
//! ([`head`]), [`Learner`] keeps the log, and [`gate`] with [`tripwire`] decides what may be used. Pure numbers: no
//! files, no clocks, no randomness but a seed; the journal and the adapter directory are elsewhere.
//!
//! ```
//! use hone_runtime::learn::{Feedback, HeadBase, Learner, LearnerConfig, TrainingPress};
//!
//! // Two classes over a feature of width 2; the shipped head always prefers class 0.
//! let base = HeadBase::new(vec![0.0; 4], vec![1.0, 0.0], vec![0.0; 2], vec![1.0; 2])?;
//! let mut learner = Learner::new(base, LearnerConfig::default())?;
//! for id in 0..10 {
//!     learner.press(TrainingPress {
//!         press_id: id, prediction_id: id as u32, feature: vec![1.0, -1.0], logits: vec![1.0, 0.0], shown: 0, mu: 1.0,
//!         feedback: Feedback::Thumb { up: false }, confirmed: false, source: "pad".into(),
//!     })?;
//! }
//! let decision = learner.candidate()?;
//! assert_eq!(decision.action, hone_runtime::learn::gate::Action::Publish);
//! let logits = learner.logits(&[1.0, -1.0], &[1.0, 0.0])?;
//! assert!(logits[1] > logits[0]);
//! # Ok::<(), hone_runtime::learn::LearnError>(())
//! ```
pub mod ask;
pub mod classes;
pub mod contradiction;
mod engine;
pub mod error;
#[cfg(test)]
pub(crate) mod fixture;
pub mod fourier;
pub mod gate;
pub mod head;
pub mod input;
pub mod learner;
mod linalg;
pub mod objective;
mod rater;
pub mod retention;
pub mod solver;
pub mod task;
pub mod temperature;
pub mod tripwire;
mod truth;

pub use ask::{Asker, Display};
pub use classes::{Classes, ClassesError};
pub use error::LearnError;
pub use gate::{Action, Decision, GateConfig, Mode};
pub use head::{HeadBase, MergedHead, Theta, argmax};
pub use input::Input;
pub use learner::{Learner, LearnerConfig, Outcome, TrainingPress};
pub use objective::{Feedback, Hyper, OBJECTIVES, ObjectiveDef};
pub use rater::Rater;
pub use retention::{Coreset, Kept, Retain, SourceSample};
pub use solver::minibatch::MinibatchConfig;
pub use solver::{HeadSolver, Prior, Row, SolverConfig, canonical_refit};
pub use task::{TASKS, Task, TaskDef};
pub use temperature::Temperature;
pub use tripwire::{Trip, Tripwire, TripwireConfig};
