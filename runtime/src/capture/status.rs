//! What a source tells about itself.
use std::fmt;
use std::time::{Duration, Instant};

/// Where a source is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing has come yet.
    #[default]
    Starting,
    /// It gives.
    Running,
    /// What it reads from is gone or silent; it is about to be started again.
    Restarting,
    /// Nothing more will come.
    Ended,
}

/// How a source fares. All figures count from when it was opened.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Frames that came whole.
    pub came: u64,
    /// Frames handed out.
    pub delivered: u64,
    /// Frames that came whole and were replaced by newer ones before anybody fetched them.
    pub dropped: u64,
    /// Frames, files and lines that were refused: too large, torn, not text.
    pub refused: u64,
    /// Bytes that belonged to no frame.
    pub skipped_bytes: u64,
    /// Times its producer was started.
    pub starts: u64,
    /// Times its producer was found silent.
    pub stalls: u64,
    /// Level of the sound that came last, dB below full scale; none for other media.
    pub level_dbfs: Option<f32>,
    /// The last thing its producer wrote to standard error.
    pub last_words: Option<String>,
    /// Events nobody fetched in time.
    pub events_lost: u64,
}

/// Something that happened to a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub what: What,
}

/// What happened to a source.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Its producer runs.
    Started {
        /// The command, file or line, with what is worth knowing.
        what: String,
    },
    /// Its producer ended.
    Stopped {
        /// How, with its last words.
        how: String,
    },
    /// Its producer gave nothing for this long and was ended.
    Stalled {
        /// How long.
        after: Duration,
    },
    /// It will be started again after this pause.
    Waiting {
        /// The pause.
        pause: Duration,
    },
    /// Bytes came that belong to no frame; told once each time the producer is started.
    Skipped {
        /// How many so far.
        bytes: u64,
    },
    /// Something was refused; not repeated while the reason stays the same.
    Refused {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Started { what } => write!(f, "started: {what}"),
            What::Stopped { how } => write!(f, "stopped: {how}"),
            What::Stalled { after } => write!(f, "silent for {:.1} s", after.as_secs_f64()),
            What::Waiting { pause } => write!(f, "starting again in {} ms", pause.as_millis()),
            What::Skipped { bytes } => write!(f, "{bytes} bytes belong to no frame"),
            What::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}
