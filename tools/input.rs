//! Files named on the command line, with errors that name them.
use std::path::{Path, PathBuf};

use clap::Args;
use hone_runtime::Class;
use hone_runtime::modality::{Audio, Image, Sample};

use crate::exit::fail;

/// The bytes of a file.
///
/// # Errors
/// A sentence with the path; exit code 3, the input is not there or not readable.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| fail(Class::Invalid, format!("cannot read {}: {e}", path.display())))
}

/// The text of a file.
///
/// # Errors
/// As [`read`], also when it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| fail(Class::Invalid, format!("{} is not UTF-8 text", path.display())))
}

/// Writes a file whole.
///
/// # Errors
/// A sentence with the path; exit code 6.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).map_err(|e| fail(Class::Store, format!("cannot write {}: {e}", path.display())))
}

/// A sample, as it is given on the command line.
#[derive(Args)]
pub(crate) struct Given {
    /// A PNG or JPEG file.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// A WAV, FLAC or MP3 file of any rate.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// A text.
    #[arg(long)]
    text: Option<String>,
    /// Sensor readings as CSV lines with a header.
    #[arg(long, value_name = "FILE.csv")]
    sensor: Option<PathBuf>,
}

/// The files of a sample, in memory.
pub(crate) struct Loaded {
    image: Option<Vec<u8>>,
    pub(crate) audio: Option<Vec<u8>>,
    text: Option<String>,
    sensor: Option<String>,
}

impl Given {
    /// Reads what is given.
    ///
    /// # Errors
    /// As [`read`]; exit code 2 for a text that says nothing.
    pub(crate) fn load(&self) -> anyhow::Result<Loaded> {
        // A model would answer it all the same, with what it thinks of nothing.
        if self.text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return Err(fail(Class::Usage, "--text is empty; say something, or leave it out"));
        }
        Ok(Loaded {
            image: self.image.as_deref().map(read).transpose()?,
            audio: self.audio.as_deref().map(read).transpose()?,
            text: self.text.clone(),
            sensor: self.sensor.as_deref().map(read_text).transpose()?,
        })
    }
}

impl Loaded {
    /// For a model to look at.
    pub(crate) fn sample(&self) -> Sample<'_> {
        Sample {
            image: self.image.as_deref().map(Image::File),
            audio: self.audio.as_deref().map(Audio::File),
            text: self.text.as_deref(),
            sensor: self.sensor.as_deref(),
        }
    }
}
