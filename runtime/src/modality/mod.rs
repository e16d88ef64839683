//! Bytes → input tensors, exactly as the exporter made them, from the Hugging Face style JSON of a bundle.
//!
//! [`Preprocessor::from_bundle`] reads the manifest's inputs and prepares what each of them takes; every lossy step is a
//! [`Note`] in the result. This module knows nothing of models: it ends where a graph begins.
//!
//! | input modality | described by | takes |
//! |---|---|---|
//! | `image` | `preprocessor_config.json`, `image_processor` | PNG, JPEG |
//! | `audio` | `preprocessor_config.json`, `feature_extractor` | WAV, FLAC, MP3, or samples |
//! | `text` | `tokenizer.json` | a string |
//! | `sensor` | `sensors.json` | CSV lines |
//! | `present` | the manifest | nothing: 1 for each input that was given, 0 for the others |
use crate::bundle::{Bundle, Dim, Port};
use crate::{DType, Note, Tensor};

#[cfg(feature = "audio")]
pub mod audio;
#[cfg(any(feature = "image", feature = "audio"))]
mod config;
mod error;
#[cfg(feature = "image")]
pub mod image;
mod pixels;
pub mod render;
mod resize;
pub mod sensor;
#[cfg(test)]
mod tests;
#[cfg(feature = "text")]
pub mod text;

pub use error::ModalityError;
pub use pixels::Pixels;
pub use resize::{Resample, resize};

/// One sample: any of what the model takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// A picture.
    pub image: Option<Image<'a>>,
    /// A sound.
    pub audio: Option<Audio<'a>>,
    /// A text.
    pub text: Option<&'a str>,
    /// Sensor readings as CSV lines with a header.
    pub sensor: Option<&'a str>,
}

/// A picture, as a file or as pixels from a camera.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// A PNG or JPEG file.
    File(&'a [u8]),
    /// Pixels.
    Pixels(&'a Pixels),
}

/// A sound, as a file or as samples from a microphone.
#[derive(Clone, Copy, Debug)]
pub enum Audio<'a> {
    /// A WAV, FLAC or MP3 file.
    File(&'a [u8]),
    /// Mono samples, full scale ±1.
    Pcm {
        /// Samples a second.
        rate_hz: u32,
        /// The samples.
        samples: &'a [f32],
    },
}

/// What a person can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modality {
    Image,
    Audio,
    Text,
    Sensor,
}

impl Modality {
    const ALL: [Modality; 4] = [Modality::Image, Modality::Audio, Modality::Text, Modality::Sensor];

    fn name(self) -> &'static str {
        match self {
            Modality::Image => "image",
            Modality::Audio => "audio",
            Modality::Text => "text",
            Modality::Sensor => "sensor",
        }
    }

    fn given(self, sample: &Sample<'_>) -> bool {
        match self {
            Modality::Image => sample.image.is_some(),
            Modality::Audio => sample.audio.is_some(),
            Modality::Text => sample.text.is_some(),
            Modality::Sensor => sample.sensor.is_some(),
        }
    }
}

/// What fills one input.
enum Filling {
    From(Modality),
    /// For each column the modality whose presence it tells.
    Present(Vec<Modality>),
    /// What the graph carries from one run to the next: zeros, as before the first.
    State,
}

/// What prepares one modality.
enum Processor {
    #[cfg(feature = "image")]
    Image(image::ImageProcessor),
    #[cfg(feature = "audio")]
    Audio(Box<audio::AudioProcessor>),
    #[cfg(feature = "text")]
    Text(Box<text::TextProcessor>),
    Sensor(sensor::SensorProcessor),
}

/// Prepares samples for the inputs of one bundle.
pub struct Preprocessor {
    inputs: Vec<(Port, Filling)>,
    processors: Vec<(Modality, Processor)>,
    digest: String,
}

impl Preprocessor {
    /// Reads the manifest's inputs and the description files their modalities need.
    ///
    /// A modality may fill one input; `text` may fill several, told apart by name: `*attention_mask*`, `*token_type_ids*`
    /// and the token ids. At most one input is `present`; its columns are its `of` list, or all other inputs in order. Inputs
    /// that are the state of the first graph are not made from a sample.
    ///
    /// # Errors
    /// [`ModalityError::Input`] for inputs that do not fit together or have no modality, [`ModalityError::NotBuilt`], and
    /// whatever is wrong with a description file.
    pub fn from_bundle(bundle: &Bundle) -> Result<Preprocessor, ModalityError> {
        let manifest = bundle.manifest();
        let carried =
            |port: &Port| manifest.graphs.first().is_some_and(|g| g.state.iter().any(|s| s.input == port.name));
        let ports: Vec<Port> = manifest.inputs.iter().filter(|p| !carried(p)).cloned().collect();
        let refuse =
            |port: &Port, reason: &str| ModalityError::Input { input: port.name.clone(), reason: reason.into() };
        let modality_of = |port: &Port| match port.modality.as_deref() {
            Some("present") => Ok(None),
            Some(name) => match Modality::ALL.into_iter().find(|m| m.name() == name) {
                Some(modality) => Ok(Some(modality)),
                None => Err(refuse(port, &format!("the modality '{name}' is unknown"))),
            },
            None => Err(refuse(port, "has no modality, so hone cannot prepare it")),
        };
        let mut inputs: Vec<(Port, Filling)> = vec![];
        let mut taken: Vec<Modality> = vec![];
        for port in &manifest.inputs {
            if carried(port) {
                inputs.push((port.clone(), Filling::State));
                continue;
            }
            let filling = match modality_of(port)? {
                Some(modality) => {
                    if taken.contains(&modality) && modality != Modality::Text {
                        return Err(refuse(port, &format!("is the second for {}; one is known", modality.name())));
                    }
                    if !taken.contains(&modality) {
                        taken.push(modality);
                    }
                    let wanted = if modality == Modality::Text { DType::I64 } else { DType::F32 };
                    if port.dtype != wanted {
                        return Err(refuse(port, &format!("is {}; {} is {wanted}", port.dtype, modality.name())));
                    }
                    Filling::From(modality)
                }
                None => {
                    if inputs.iter().any(|(_, f)| matches!(f, Filling::Present(_))) {
                        return Err(refuse(port, "is the second of modality present"));
                    }
                    Filling::Present(present_columns(port, &ports, modality_of)?)
                }
            };
            inputs.push((port.clone(), filling));
        }
        let mut processors = vec![];
        for &modality in &taken {
            processors.push((modality, processor(bundle, modality, &taken)?));
        }
        let mut h = blake3::Hasher::new();
        h.update(bundle.base_digest().as_bytes()).update(format!("{ports:?}").as_bytes());
        Ok(Preprocessor { inputs, processors, digest: h.finalize().to_hex().to_string() })
    }

    /// What tells it from others: a digest of the bundle's files and of the inputs it fills. Two of one digest make the
    /// same tensors of a sample.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The modalities the model takes, in the order of its inputs: `["image", "audio"]`.
    pub fn modalities(&self) -> Vec<&'static str> {
        self.processors.iter().map(|(m, _)| m.name()).collect()
    }

    /// A sample → the model's inputs by name, in manifest order, each for one sample (`N = 1`), as if none had come before it.
    ///
    /// A modality that is missing becomes zeros of its input's shape (named dimensions as 1) and a 0 in `present`; a model
    /// without a `present` input cannot know, so there it is also the note `missing`.
    ///
    /// # Errors
    /// [`ModalityError::NotTaken`] for a modality the model lacks, [`ModalityError::Nothing`] for an empty sample,
    /// [`ModalityError::Shape`] when the description files do not fit the manifest, and whatever is wrong with the sample.
    #[expect(clippy::type_complexity, reason = "named inputs and their notes, nothing more")]
    pub fn prepare(&self, sample: &Sample<'_>) -> Result<(Vec<(String, Tensor)>, Vec<Note>), ModalityError> {
        let has = || self.modalities().join(", ");
        for modality in Modality::ALL {
            if modality.given(sample) && !self.processors.iter().any(|(m, _)| *m == modality) {
                return Err(ModalityError::NotTaken { given: modality.name(), has: has() });
            }
        }
        if !self.processors.iter().any(|(m, _)| m.given(sample)) {
            return Err(ModalityError::Nothing { has: has() });
        }
        let told = self.inputs.iter().any(|(_, f)| matches!(f, Filling::Present(_)));
        let mut notes = vec![];
        let mut prepared: Vec<(Modality, Prepared)> = vec![];
        for (modality, processor) in &self.processors {
            if modality.given(sample) {
                prepared.push((*modality, processor.encode(sample, &mut notes)?));
            } else if !told {
                notes.push(Note::new("missing", modality.name(), "zeros"));
            }
        }
        let mut tensors = vec![];
        for (port, filling) in &self.inputs {
            let tensor = match filling {
                Filling::Present(columns) => {
                    let row = columns.iter().map(|m| f32::from(u8::from(m.given(sample)))).collect();
                    Tensor::f32(&[1, columns.len()], row)?
                }
                Filling::State => Tensor::zeros(port.dtype, &zeros_shape(port))?,
                Filling::From(modality) => match prepared.iter().find(|(m, _)| m == modality) {
                    Some((_, p)) => p.of_input(&port.name).clone(),
                    None => Tensor::zeros(port.dtype, &zeros_shape(port))?,
                },
            };
            check_shape(port, &tensor)?;
            tensors.push((port.name.clone(), tensor));
        }
        Ok((tensors, notes))
    }
}

/// What one modality gave: one tensor, or for text a tensor for each part.
enum Prepared {
    One(Tensor),
    #[cfg(feature = "text")]
    Text(text::TextTensors),
}

impl Prepared {
    #[cfg_attr(not(feature = "text"), expect(unused_variables, reason = "only the inputs of text have parts"))]
    fn of_input(&self, name: &str) -> &Tensor {
        match self {
            Prepared::One(tensor) => tensor,
            #[cfg(feature = "text")]
            Prepared::Text(parts) if name.contains("attention_mask") => &parts.attention_mask,
            #[cfg(feature = "text")]
            Prepared::Text(parts) if name.contains("token_type_ids") => &parts.type_ids,
            #[cfg(feature = "text")]
            Prepared::Text(parts) => &parts.ids,
        }
    }
}

impl Processor {
    /// Prepares this processor's own part of `sample`, which must be there.
    fn encode(&self, sample: &Sample<'_>, notes: &mut Vec<Note>) -> Result<Prepared, ModalityError> {
        match self {
            #[cfg(feature = "image")]
            Processor::Image(processor) => {
                let (pixels, decoding) = match sample.image {
                    Some(Image::Pixels(pixels)) => (pixels.clone(), Vec::new()),
                    Some(Image::File(bytes)) => image::decode(bytes)?,
                    None => image::decode(&[])?,
                };
                let (tensor, encoding) = processor.encode(&pixels)?;
                notes.extend(decoding.into_iter().chain(encoding));
                Ok(Prepared::One(tensor))
            }
            #[cfg(feature = "audio")]
            Processor::Audio(processor) => {
                let (clip, decoding) = match sample.audio {
                    Some(Audio::Pcm { rate_hz, samples }) => (audio::clip(rate_hz, samples.to_vec())?, vec![]),
                    Some(Audio::File(bytes)) => audio::decode(bytes)?,
                    None => audio::decode(&[])?,
                };
                let (tensor, encoding) = processor.encode(clip)?;
                notes.extend(decoding.into_iter().chain(encoding));
                Ok(Prepared::One(tensor))
            }
            #[cfg(feature = "text")]
            Processor::Text(processor) => {
                let (tensors, encoding) = processor.encode_all(sample.text.unwrap_or_default())?;
                notes.extend(encoding);
                Ok(Prepared::Text(tensors))
            }
            Processor::Sensor(processor) => {
                let (tensor, encoding) = processor.encode(sample.sensor.unwrap_or_default())?;
                notes.extend(encoding);
                Ok(Prepared::One(tensor))
            }
        }
    }
}

fn present_columns(
    port: &Port,
    ports: &[Port],
    modality_of: impl Fn(&Port) -> Result<Option<Modality>, ModalityError>,
) -> Result<Vec<Modality>, ModalityError> {
    let refuse = |reason: String| ModalityError::Input { input: port.name.clone(), reason };
    if port.dtype != DType::F32 {
        return Err(refuse(format!("is {}; present is f32", port.dtype)));
    }
    let chosen: Vec<&Port> = match &port.of {
        Some(names) => ports.iter().filter(|p| names.contains(&p.name)).collect(),
        None => ports.iter().filter(|p| p.name != port.name).collect(),
    };
    let mut ordered = chosen;
    if let Some(names) = &port.of {
        ordered.sort_by_key(|p| names.iter().position(|n| *n == p.name));
    }
    let columns: Vec<Modality> = ordered
        .into_iter()
        .map(|p| modality_of(p)?.ok_or_else(|| refuse(format!("speaks of '{}', which is present too", p.name))))
        .collect::<Result<_, _>>()?;
    if let Some(Dim::Fixed(width)) = port.shape.last()
        && *width as usize != columns.len()
    {
        return Err(refuse(format!("has {width} columns for {} inputs; name them in `of`", columns.len())));
    }
    Ok(columns)
}

fn processor(bundle: &Bundle, modality: Modality, taken: &[Modality]) -> Result<Processor, ModalityError> {
    match modality {
        #[cfg(feature = "image")]
        Modality::Image => {
            let section = section(bundle, "image_processor", taken)?;
            Ok(Processor::Image(image::ImageProcessor::from_json(&section)?))
        }
        #[cfg(feature = "audio")]
        Modality::Audio => {
            let section = section(bundle, "feature_extractor", taken)?;
            Ok(Processor::Audio(Box::new(audio::AudioProcessor::from_json(&section)?)))
        }
        #[cfg(feature = "text")]
        Modality::Text => {
            let bytes = bundle.read("tokenizer.json")?;
            Ok(Processor::Text(Box::new(text::TextProcessor::from_json(&bytes)?)))
        }
        Modality::Sensor => Ok(Processor::Sensor(sensor::SensorProcessor::from_json(&bundle.text("sensors.json")?)?)),
        #[cfg(not(all(feature = "image", feature = "audio", feature = "text")))]
        missing => {
            let _ = taken;
            Err(ModalityError::NotBuilt { modality: missing.name(), feature: missing.name() })
        }
    }
}

/// The part of `preprocessor_config.json` under `key`; the whole file where it has no parts and one modality needs it.
#[cfg(any(feature = "image", feature = "audio"))]
fn section(bundle: &Bundle, key: &'static str, taken: &[Modality]) -> Result<String, ModalityError> {
    let refuse = |reason: String| ModalityError::Config { file: "preprocessor_config.json", key: key.into(), reason };
    let text = bundle.text("preprocessor_config.json")?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    if let Some(part) = value.get(key) {
        return Ok(part.to_string());
    }
    let nested = ["image_processor", "feature_extractor"].iter().any(|k| value.get(k).is_some());
    let needed_by = taken.iter().filter(|m| matches!(m, Modality::Image | Modality::Audio)).count();
    if nested || needed_by != 1 {
        return Err(refuse("is missing".into()));
    }
    Ok(text)
}

fn zeros_shape(port: &Port) -> Vec<usize> {
    let extent = |d: &Dim| match d {
        Dim::Fixed(n) => *n as usize,
        Dim::Symbol(_) => 1,
    };
    port.shape.iter().map(extent).collect()
}

fn check_shape(port: &Port, tensor: &Tensor) -> Result<(), ModalityError> {
    let fits = |(dim, &found): (&Dim, &usize)| match dim {
        Dim::Fixed(n) => *n as usize == found,
        Dim::Symbol(_) => true,
    };
    if port.shape.len() == tensor.shape().len() && port.shape.iter().zip(tensor.shape()).all(fits) {
        return Ok(());
    }
    let dims: Vec<String> = port
        .shape
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => s.clone(),
        })
        .collect();
    Err(ModalityError::Shape {
        input: port.name.clone(),
        expected: format!("[{}]", dims.join(", ")),
        found: tensor.shape().to_vec(),
    })
}
