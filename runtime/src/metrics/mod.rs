//! Figures about answers and times: classification quality, calibration, latency. Plain numbers in, plain numbers out.
use crate::{Class, Classified};

pub mod calibration;
pub mod classification;
pub mod latency;
pub mod offpolicy;
pub mod tasks;

pub use calibration::{Calibration, ReliabilityBin};
pub use classification::{Classification, PerClass};
pub use latency::Latency;
pub use offpolicy::{OffPolicy, OffPolicyError};
pub use tasks::{Alarms, Errors, MultiLabel, Ranking};

/// Why a figure could not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// Two lists that belong together differ in length.
    #[error("{labels} labels and {predictions} {what} do not pair up")]
    Unpaired {
        /// What is paired with the labels.
        what: &'static str,
        /// Number of labels.
        labels: usize,
        /// Number of the other.
        predictions: usize,
    },
    /// There is nothing to measure.
    #[error("no samples were given, so there is no figure; run more inputs")]
    Empty,
    /// A class index is outside the number of classes.
    #[error("sample {index} names class {class}, there are {classes}")]
    ClassOutOfRange {
        /// Position of the sample.
        index: usize,
        /// The class.
        class: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A value is not finite or outside its range.
    #[error("sample {index} is {value}, it must be in {range}")]
    OutOfRange {
        /// Position of the sample.
        index: usize,
        /// The value.
        value: f64,
        /// The admissible interval, in words.
        range: &'static str,
    },
}

impl Classified for MetricsError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}
