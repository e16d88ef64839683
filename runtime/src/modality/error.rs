//! What can be wrong with an input, or with the description of how to prepare it.
use crate::bundle::BundleError;
use crate::{Class, Classified, TensorError};

/// What is wrong with a sample, or with a bundle's description of how to prepare one.
#[derive(Debug, thiserror::Error)]
pub enum ModalityError {
    /// The bytes are no picture hone reads.
    #[error("the image cannot be read: {reason}; PNG and JPEG are supported")]
    Image {
        /// What the decoder said.
        reason: String,
    },
    /// The picture says it is larger than hone decodes; nothing was allocated.
    #[error("the image is {width}x{height}; at most {limit} pixels a side and {pixels} in all are decoded")]
    ImageTooLarge {
        /// Declared width.
        width: u32,
        /// Declared height.
        height: u32,
        /// Longest side.
        limit: u32,
        /// Most pixels.
        pixels: u64,
    },
    /// The bytes are no sound hone reads, or not all of one.
    #[error("the audio cannot be read: {reason}; WAV, FLAC and MP3 are supported")]
    Audio {
        /// What the decoder said.
        reason: String,
    },
    /// The text cannot be made into tokens.
    #[error("the text cannot be encoded: {reason}")]
    Text {
        /// Why.
        reason: String,
    },
    /// A line of sensor data is not what `sensors.json` describes.
    #[error("sensor data, line {line}: {reason}")]
    Sensor {
        /// Line number, from 1.
        line: usize,
        /// Why it is refused.
        reason: String,
    },
    /// A description file has a member that is missing, has a wrong value, or changes the result in a way hone does not do.
    #[error("{file}: {key}: {reason}")]
    Config {
        /// The file or object.
        file: &'static str,
        /// The member.
        key: String,
        /// Why it is refused.
        reason: String,
    },
    /// The manifest's inputs do not fit together.
    #[error("manifest.json: input '{input}': {reason}")]
    Input {
        /// The input.
        input: String,
        /// Why it is refused.
        reason: String,
    },
    /// The prepared tensor does not have the shape the model declares.
    #[error("input '{input}': preparing gives {found:?}, the model takes {expected}")]
    Shape {
        /// The input.
        input: String,
        /// The manifest's shape.
        expected: String,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// A modality was given that the model does not take.
    #[error("the model takes no {given}; it takes {has}")]
    NotTaken {
        /// What was given.
        given: &'static str,
        /// What the model takes.
        has: String,
    },
    /// Nothing was given.
    #[error("nothing was given; the model takes {has}")]
    Nothing {
        /// What the model takes.
        has: String,
    },
    /// This build lacks what the model needs.
    #[error("the model takes {modality}, and this hone was built without the feature `{feature}`")]
    NotBuilt {
        /// The modality.
        modality: &'static str,
        /// The missing Cargo feature.
        feature: &'static str,
    },
    /// A file of the bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A tensor that could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Classified for ModalityError {
    fn class(&self) -> Class {
        match self {
            ModalityError::NotTaken { .. } | ModalityError::Nothing { .. } => Class::Usage,
            ModalityError::NotBuilt { .. } => Class::Unsupported,
            ModalityError::Bundle(e) => e.class(),
            _ => Class::Invalid,
        }
    }
}
