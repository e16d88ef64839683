//! What can be wrong with a press, a head or a learner's configuration.
use crate::{Class, Classified};

/// Why a head, a press or a learner was refused. Nothing is changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LearnError {
    /// A vector or matrix does not have the size its name asks for.
    #[error("{what} needs {expected} values, {found} were given")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Values asked for.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what} holds {value} at index {index}; find the model or sensor that produced it")]
    NonFinite {
        /// Which argument.
        what: &'static str,
        /// Index of the first such value.
        index: usize,
        /// NaN, inf or -inf.
        value: f64,
    },
    /// A class index is outside the head.
    #[error("{what} names class {class}, this head has {classes}")]
    ClassOutOfRange {
        /// Which argument.
        what: &'static str,
        /// The class named.
        class: usize,
        /// Classes of the head.
        classes: usize,
    },
    /// A preference of an answer over itself says nothing.
    #[error("a preference needs two different classes, both are {class}")]
    SelfPreference {
        /// The class given twice.
        class: usize,
    },
    /// Stars outside 1 to 5.
    #[error("{stars} stars given, 1 to 5 are possible")]
    Stars {
        /// The number given.
        stars: u8,
    },
    /// A probability outside its range.
    #[error("{what} is {value}, it must be in {range}")]
    OutOfRange {
        /// Which argument.
        what: &'static str,
        /// The value given.
        value: f64,
        /// The admissible interval, in words.
        range: &'static str,
    },
    /// An objective was asked about a kind of press it has no gradient for.
    #[error("objective {objective} cannot learn from {feedback}; use objective posterior")]
    UnsupportedFeedback {
        /// The objective's registered name.
        objective: &'static str,
        /// The kind of press.
        feedback: &'static str,
    },
    /// There is no objective of that name.
    #[error("there is no objective {name:?}; there are {}", super::objective::names())]
    UnknownObjective {
        /// The name asked for.
        name: String,
    },
    /// The objective's solver holds on to no source samples.
    #[error(
        "objective {objective} cannot learn source samples beside the presses; use posterior or ce, or --retain adapt"
    )]
    CannotRetain {
        /// The objective's registered name.
        objective: &'static str,
    },
    /// The objective looks at single answers, whatever comes after them.
    #[error("objective {objective} judges each answer by itself; what comes after it counts for q-learning alone")]
    NoDiscount {
        /// The objective's registered name.
        objective: &'static str,
    },
    /// The objective knows classes only.
    #[error("objective {objective} knows classes only, and this model's task is {task}; use objective posterior")]
    OtherTask {
        /// The objective's registered name.
        objective: &'static str,
        /// The task's registered name.
        task: &'static str,
    },
    /// No press of that id is in the log.
    #[error("press {press_id} is not in the training log; it was never recorded or already undone")]
    UnknownPress {
        /// The id asked for.
        press_id: u64,
    },
    /// The same press id arrived with other content.
    #[error("press {press_id} is already in the log with other content; press ids must be unique")]
    PressConflict {
        /// The id given twice.
        press_id: u64,
    },
    /// The same prediction id came with another feature, other logits, another class or probability.
    #[error("prediction {prediction_id} was recorded with another {what}; prediction ids must be unique within a log")]
    PredictionConflict {
        /// The prediction's id.
        prediction_id: u32,
        /// What differs.
        what: &'static str,
    },
    /// A head with classes that were added on the device cannot be written into the graph.
    #[error(
        "{added} classes were added on the device; the graph has no weights for them, so the head cannot be merged \
         into it"
    )]
    Unmergeable {
        /// How many.
        added: usize,
    },
    /// A head over random features cannot be written into the graph.
    #[error(
        "the head is learned on {random} random features beside the graph's; it cannot be merged into a linear layer"
    )]
    Bent {
        /// How many.
        random: usize,
    },
    /// The curvature matrix has no Cholesky factor.
    #[error("curvature matrix is not positive definite at row {row}; the features are too large, check mean and std")]
    NotPositiveDefinite {
        /// The row at which the factorisation stopped.
        row: usize,
    },
}

impl Classified for LearnError {
    fn class(&self) -> Class {
        match self {
            LearnError::Length { .. }
            | LearnError::NonFinite { .. }
            | LearnError::ClassOutOfRange { .. }
            | LearnError::SelfPreference { .. }
            | LearnError::Stars { .. }
            | LearnError::PressConflict { .. }
            | LearnError::PredictionConflict { .. } => Class::Invalid,
            LearnError::OutOfRange { .. } => Class::Config,
            LearnError::UnsupportedFeedback { .. }
            | LearnError::UnknownObjective { .. }
            | LearnError::CannotRetain { .. }
            | LearnError::NoDiscount { .. }
            | LearnError::OtherTask { .. }
            | LearnError::Unmergeable { .. }
            | LearnError::Bent { .. } => Class::Unsupported,
            LearnError::UnknownPress { .. } => Class::Usage,
            LearnError::NotPositiveDefinite { .. } => Class::Failed,
        }
    }
}

/// `Ok` when `found == expected`.
pub(crate) fn check_len(what: &'static str, expected: usize, found: usize) -> Result<(), LearnError> {
    if expected == found { Ok(()) } else { Err(LearnError::Length { what, expected, found }) }
}

/// `Ok` when every value is finite.
pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<(), LearnError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(LearnError::NonFinite { what, index, value: f64::from(values[index]) }),
    }
}

/// `Ok` when `class < classes`.
pub(crate) fn check_class(what: &'static str, class: usize, classes: usize) -> Result<(), LearnError> {
    if class < classes { Ok(()) } else { Err(LearnError::ClassOutOfRange { what, class, classes }) }
}
