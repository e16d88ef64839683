//! Where inputs come from on a device: a camera, a microphone, lines of readings, files, a trigger.
//!
//! A [`Source`] is opened from one line of text, serves itself on a thread of its own and keeps the *newest* frames in a
//! bounded mailbox; what it drops is counted. Cameras and microphones are child processes on a pipe (`rpicam-vid`,
//! `gst-launch-1.0`, `ffmpeg`, `arecord`): that reaches every camera stack without linking one. A child that dies or falls
//! silent is ended with all its descendants and started again. This module knows nothing of models: it ends with encoded
//! bytes, samples or text, which `modality` turns into tensors.
//!
//! ```text
//! SPEC  = { KEY "=" VALUE "," } NAME [ ":" REST ]      the rest, a command or a path, is taken as it stands
//!
//! exec:rpicam-vid -t 0 --codec mjpeg -o -
//! format=raw:gray:28x28,exec:my-sensor --stream
//! cut=word,format=raw:s16le:16000:1,exec:arecord -q -t raw -f S16_LE -r 16000 -c 1
//! length=100,hop=50,pipe:/dev/ttyUSB0
//! fps=10,file:recorded/           watch:inbox           edge=falling,gpio:pinctrl-rp1/GPIO17           key
//! ```
//! What there is to say, [`SOURCES`] and [`KEYS`] say; a key that comes twice counts the last time, so that defaults can be
//! put in front.
use std::fmt;
use std::time::{Duration, Instant};

use crate::Note;

mod change;
mod error;
mod exec;
mod file;
#[cfg(all(feature = "gpio", target_os = "linux"))]
mod gpio;
mod lines;
mod mailbox;
mod mjpeg;
mod options;
mod pcm;
mod raw;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod watch;
mod words;

pub use change::{ShowReason, ShownConfig, ShownRule};
pub use error::CaptureError;
pub use options::{Bias, Edge, KEYS, Key, Options, Spec};
pub use status::{Event, State, Status, What};

/// What a source is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Pictures.
    Image,
    /// Sound.
    Audio,
    /// Lines of readings.
    Sensor,
    /// Moments.
    Trigger,
}

impl Medium {
    /// All of them.
    pub const ALL: [Medium; 4] = [Medium::Image, Medium::Audio, Medium::Sensor, Medium::Trigger];

    /// The name in messages: `image`, `audio`, `sensor`, `trigger`.
    pub fn name(self) -> &'static str {
        match self {
            Medium::Image => "image",
            Medium::Audio => "audio",
            Medium::Sensor => "sensor",
            Medium::Trigger => "trigger",
        }
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A picture as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Picture {
    /// A JPEG or PNG file; not yet decoded, so it may turn out to be damaged.
    Encoded(Vec<u8>),
    /// Pixels, rows from the top, channels interleaved: `width · height · channels` bytes.
    Raw {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// 1 (gray) or 3 (red, green, blue).
        channels: usize,
        /// The pixels.
        data: Vec<u8>,
    },
}

/// A sound as it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Sound {
    /// A WAV, FLAC or MP3 file; not yet decoded.
    File(Vec<u8>),
    /// Samples from a stream.
    Pcm(Pcm),
}

/// Samples, full scale ±1, finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Pcm {
    /// Samples a second of one channel.
    pub rate_hz: u32,
    /// Channels, at least 1.
    pub channels: usize,
    /// The samples, channels interleaved.
    pub samples: Vec<f32>,
}

impl Pcm {
    /// The mean of the channels, and a note if there was more than one.
    pub fn into_mono(self) -> (Vec<f32>, Option<Note>) {
        if self.channels <= 1 {
            return (self.samples, None);
        }
        let note = Note::new("downmixed", format!("{} channels", self.channels), "1 channel");
        (pcm::mono(&self.samples, self.channels), Some(note))
    }

    /// Seconds of sound.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / self.channels.max(1) as f64 / f64::from(self.rate_hz.max(1))
    }
}

/// A moment somebody or something chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The line of text that was read, or the name of the GPIO line.
    pub line: String,
    /// Whether it was pressed (as against released); always true for lines of text.
    pub pressed: bool,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A picture.
    Image(Picture),
    /// A sound: a file, or one window of a stream.
    Audio(Sound),
    /// CSV: a header if the source has one, then readings, each line ended by `\n`.
    Sensor(String),
    /// A moment.
    Trigger(Trigger),
}

/// One thing a source gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// When its last byte (or its edge) was seen.
    pub at: Instant,
    /// Number of the frame among all that came, from 0, those that were dropped included.
    pub seq: u64,
    /// Frames dropped since the last one that was delivered, because nobody fetched them in time.
    pub dropped_before: u64,
    /// Lossy steps on the way here.
    pub notes: Vec<Note>,
    /// The file it was read from, if it was one.
    pub origin: Option<std::path::PathBuf>,
}

/// The answer of [`Source::next`].
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// The oldest frame that is still kept.
    Frame(Frame),
    /// None within the time given.
    Nothing,
    /// There will be no more.
    Ended,
}

/// Gives frames until it ends. Dropping it ends its thread and every process it started.
pub trait Source: Send {
    /// Waits at most `timeout` for a frame.
    ///
    /// # Errors
    /// Once, when the source had to give up ([`CaptureError::GivenUp`] and others, by class a device that is not
    /// reachable); [`Poll::Ended`] from then on.
    fn next(&mut self, timeout: Duration) -> Result<Poll, CaptureError>;

    /// How it fares.
    fn status(&self) -> Status;

    /// What has happened since the last call, oldest first; at most the last 64.
    fn events(&mut self) -> Vec<Event>;
}

/// Opens what a checked spec describes.
type Open = fn(Medium, &Spec) -> Result<Box<dyn Source>, CaptureError>;

/// One kind of source.
pub struct SourceRow {
    /// The name a spec gives it.
    pub name: &'static str,
    /// What it can be asked for.
    pub media: &'static [Medium],
    /// What follows the name, for people: `COMMAND`; empty if nothing does.
    pub rest: &'static str,
    /// What it is, in a sentence.
    pub doc: &'static str,
    /// A spec that parses.
    pub example: &'static str,
    open: Open,
}

/// Every kind of source.
pub static SOURCES: &[SourceRow] = &[
    SourceRow {
        name: "exec",
        media: &Medium::ALL,
        rest: "COMMAND",
        doc: "The standard output of a program, split into words as a shell would and started without one.",
        example: "exec:rpicam-vid -t 0 --codec mjpeg -o -",
        open: stream::exec,
    },
    SourceRow {
        name: "pipe",
        media: &Medium::ALL,
        rest: "PATH",
        doc: "A named pipe, a device file or a file, read as it grows; `-` is standard input.",
        example: "length=50,pipe:/dev/ttyUSB0",
        open: stream::pipe,
    },
    SourceRow {
        name: "file",
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        rest: "PATH",
        doc: "A file, the files of a directory in order of name, or with `@` the files a list names, one a line.",
        example: "fps=10,file:recorded",
        open: file::open,
    },
    SourceRow {
        name: "watch",
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        rest: "DIRECTORY",
        doc: "Files put into a directory, each once it has stopped growing.",
        example: "watch:inbox",
        open: watch::open,
    },
    SourceRow {
        name: "gpio",
        media: &[Medium::Trigger],
        rest: "[CHIP/]LINE",
        doc: "Edges of a GPIO line; the chip by label (as its number moves between kernels), the line by name or offset.",
        example: "debounce=5,gpio:pinctrl-rp1/GPIO17",
        #[cfg(all(feature = "gpio", target_os = "linux"))]
        open: gpio::open,
        #[cfg(not(all(feature = "gpio", target_os = "linux")))]
        open: |_, _| Err(CaptureError::NotBuilt { source_name: "gpio", feature: "gpio" }),
    },
    SourceRow {
        name: "key",
        media: &[Medium::Trigger],
        rest: "",
        doc: "Lines of standard input: press Enter.",
        example: "key",
        open: stream::key,
    },
];

/// Opens what `spec` describes, as a source of `medium`. The first attempt is made here, so that a program or a device
/// that is not there is an error at once.
///
/// # Errors
/// [`CaptureError`]: by class usage for a spec that makes no sense, a device otherwise.
pub fn open(medium: Medium, spec: &str) -> Result<Box<dyn Source>, CaptureError> {
    let spec = Spec::parse(spec)?;
    spec.check(medium)?;
    (spec.row().open)(medium, &spec)
}

/// The sources and keys as lines for `--help`.
pub fn help() -> String {
    let mut text = String::new();
    let media = |media: &[Medium]| media.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
    for row in SOURCES {
        let colon = if row.rest.is_empty() { "" } else { ":" };
        text += &format!(
            "{}{colon}{}  ({})\n    {}\n    e.g. {}\n",
            row.name,
            row.rest,
            media(row.media),
            row.doc,
            row.example
        );
    }
    for key in KEYS {
        text += &format!("{}=  ({}; {})\n    {}\n", key.name, key.sources.join(", "), media(key.media), key.doc);
    }
    text
}
