//! What a run can make small, by name.
use crate::train::Objective;

/// The losses, in the order they are offered.
pub static LOSSES: &[Loss] = &[
    Loss {
        name: "ce",
        doc: "softmax cross-entropy with the class of each sample",
        objective: Objective::Labels,
        classes: true,
    },
    Loss {
        name: "soft-ce",
        doc: "softmax cross-entropy with a distribution",
        objective: Objective::CrossEntropy,
        classes: false,
    },
    Loss {
        name: "tokens",
        doc: "softmax cross-entropy with a class for each token; a negative one is masked",
        objective: Objective::Labels,
        classes: false,
    },
    Loss {
        name: "bce",
        doc: "binary cross-entropy with probabilities",
        objective: Objective::BinaryCrossEntropy,
        classes: false,
    },
    Loss { name: "mse", doc: "mean squared error", objective: Objective::MeanSquared, classes: false },
    Loss { name: "cosine", doc: "one minus the cosine", objective: Objective::Cosine, classes: false },
];

/// A row of [`LOSSES`].
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for tables.
    pub doc: &'static str,
    /// What is computed.
    pub objective: Objective,
    /// Whether the label of a sample is its class; otherwise each sample holds a target of its own.
    pub classes: bool,
}
