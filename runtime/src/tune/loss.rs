//! What a run can make small, by name.
use crate::train::Objective;

/// The losses, in the order they are offered.
pub static LOSSES: &[Loss] = &[
    Loss {
        name: "ce",
        doc: "softmax cross-entropy with the class of each sample",
        objective: Objective::Labels,
        wants: Wants::Classes,
    },
    Loss {
        name: "soft-ce",
        doc: "softmax cross-entropy with a distribution",
        objective: Objective::CrossEntropy,
        wants: Wants::Targets,
    },
    Loss {
        name: "tokens",
        doc: "softmax cross-entropy with a class for each token; a negative one is masked",
        objective: Objective::Labels,
        wants: Wants::Targets,
    },
    Loss {
        name: "bce",
        doc: "binary cross-entropy with probabilities",
        objective: Objective::BinaryCrossEntropy,
        wants: Wants::Targets,
    },
    Loss { name: "mse", doc: "mean squared error", objective: Objective::MeanSquared, wants: Wants::Targets },
    Loss {
        name: "cosine",
        doc: "one minus the cosine with a target",
        objective: Objective::Cosine,
        wants: Wants::Targets,
    },
    Loss {
        name: "contrastive",
        doc: "the two of each pair found by their cosine among all of a batch, in both directions",
        objective: Objective::Contrastive { temperature: 0.05 },
        wants: Wants::Pairs,
    },
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
    /// What it compares with.
    pub wants: Wants,
}

/// What a loss wants of each sample beside its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The label of a sample is its class.
    Classes,
    /// Each sample holds a target of its own.
    Targets,
    /// Nothing; each sample holds two rows of every input, which belong together.
    Pairs,
}
