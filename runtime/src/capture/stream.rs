//! Bytes from a child process, a pipe or a device, decoded into frames by one loop that restarts what dies or falls silent.
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::exec::{Producer, Read};
use super::lines::{LinesFormat, Triggers, Windows};
use super::mailbox::{Full, Mailbox, Threaded};
use super::mjpeg::Mjpeg;
use super::pcm::{CutFormat, Microphone, PcmFormat};
use super::raw::{Raw, RawFormat};
use super::words::WordConfig;
use super::{CaptureError, Kind, Medium, Source, Spec, State, What};
use crate::Note;

/// First pause before a producer is started again; doubles to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A producer that gave something for so long starts the pauses from the beginning.
const HEALTHY: Duration = Duration::from_secs(5);
/// How soon a dropped source is noticed.
const TICK: Duration = Duration::from_millis(100);
const STALL: Duration = Duration::from_secs(5);
const TRIES: u32 = 5;
/// A pipe holds as much.
const READ_BYTES: usize = 64 << 10;
const O_NONBLOCK: i32 = 0o4000;

/// Makes frames of bytes. One decoder serves one run of a producer: what was begun is not continued with the next one's bytes.
pub(super) trait Decoder: Send {
    /// Takes bytes in, however they are cut.
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out));

    /// There are no more bytes in this run.
    fn finish(&mut self, out: &mut dyn FnMut(Out));
}

/// What comes out of a decoder.
#[derive(Debug)]
pub(super) enum Out {
    /// A frame.
    Frame(Kind, Vec<Note>),
    /// Something was refused, and is lost. Texts do not vary, so that a repeated one is told once.
    Refused(String),
    /// So many bytes were part of no frame.
    Skipped(u64),
    /// Something that is to be part of a frame: the producer is alive. A frame is progress without being told so.
    Progress,
    /// The level of the sound, dB relative to full scale.
    Level(f32),
}

/// Where the bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Feed {
    Exec(Vec<String>),
    Path(String),
    Stdin,
}

/// The row `exec` of [`super::SOURCES`].
pub(super) fn exec(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let command = shlex::split(spec.rest()).filter(|words| !words.is_empty());
    open(medium, spec, Feed::Exec(command.ok_or_else(|| spec.refuse("the command has a quote that is not closed"))?))
}

/// The row `pipe`.
pub(super) fn pipe(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let feed = if spec.rest() == "-" { Feed::Stdin } else { Feed::Path(spec.rest().to_owned()) };
    open(medium, spec, feed)
}

/// The row `key`.
pub(super) fn key(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    open(medium, spec, Feed::Stdin)
}

fn open(medium: Medium, spec: &Spec, feed: Feed) -> Result<Box<dyn Source>, CaptureError> {
    let format = Format::of(medium, spec)?;
    let default_stall = if matches!(medium, Medium::Image | Medium::Audio) { STALL } else { Duration::ZERO };
    let (producer, endless) = feed.start()?;
    let supervisor = Supervisor {
        spec: spec.text().to_owned(),
        stall: Some(spec.options().stall.unwrap_or(default_stall)).filter(|stall| !stall.is_zero()),
        restart: spec.options().restart.unwrap_or(true) && endless,
        tries: spec.options().tries.unwrap_or(TRIES),
        feed,
        format,
    };
    let mailbox = Mailbox::new(spec.keep(medium), Full::DropOldest);
    Threaded::start(spec.text(), mailbox, move |mailbox| supervisor.serve(mailbox, producer))
}

impl Feed {
    /// The producer, and whether its end is an accident (a regular file and standard input have one in earnest).
    fn start(&self) -> Result<(Producer, bool), CaptureError> {
        match self {
            Feed::Exec(command) => Ok((Producer::start(command)?, true)),
            Feed::Stdin => {
                let refuse = |error: std::io::Error| CaptureError::Open { path: "-".into(), detail: error.to_string() };
                Ok((Producer::of(std::io::stdin().as_fd().try_clone_to_owned().map_err(refuse)?), false))
            }
            Feed::Path(path) => {
                let refuse =
                    |error: std::io::Error| CaptureError::Open { path: path.clone(), detail: error.to_string() };
                let kind = Path::new(path).metadata().map_err(refuse)?.file_type();
                if kind.is_dir() {
                    let detail = "it is a directory; `watch:` and `file:` read those".to_string();
                    return Err(CaptureError::Open { path: path.clone(), detail });
                }
                // A named pipe that is also open for writing here neither waits for a writer nor ends with one.
                let mut options = OpenOptions::new();
                let file: File = if kind.is_fifo() {
                    options.read(true).write(true).open(path).map_err(refuse)?
                } else {
                    options.read(true).custom_flags(O_NONBLOCK).open(path).map_err(refuse)?
                };
                Ok((Producer::of(OwnedFd::from(file)), !kind.is_file()))
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Feed::Exec(command) => command.join(" "),
            Feed::Path(path) => path.clone(),
            Feed::Stdin => "standard input".into(),
        }
    }
}

/// How the bytes are read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Format {
    Mjpeg { max_bytes: usize },
    Raw(RawFormat),
    Sound(Option<PcmFormat>, CutFormat),
    Lines(LinesFormat),
    Triggers,
}

impl Format {
    pub(super) fn of(medium: Medium, spec: &Spec) -> Result<Format, CaptureError> {
        let given = spec.options().format.as_deref();
        let unknown = |known: &str| spec.refuse(format!("`format={}` is none of {known}", given.unwrap_or_default()));
        let max_bytes = spec.max_bytes();
        match medium {
            Medium::Image => match given {
                None | Some("mjpeg") => Ok(Format::Mjpeg { max_bytes }),
                Some(text) => {
                    let format = text.strip_prefix("raw:").and_then(RawFormat::parse);
                    let format = format.ok_or_else(|| unknown("mjpeg, raw:gray:WxH, raw:rgb:WxH"))?;
                    match format.bytes() {
                        Some(bytes) if bytes <= max_bytes => Ok(Format::Raw(format)),
                        _ => Err(spec.refuse(format!("a picture has more than {max_bytes} bytes (max_bytes)"))),
                    }
                }
            },
            Medium::Audio => {
                let format = match given {
                    None | Some("wav") => None,
                    Some(text) => {
                        let format = text.strip_prefix("raw:").and_then(PcmFormat::parse);
                        let known = "wav, raw:TYPE:RATE:CHANNELS with TYPE one of u8 s16le s24le s32le f32le, 1000 to \
                                     384000 Hz, 1 to 8 channels";
                        Some(format.ok_or_else(|| unknown(known))?)
                    }
                };
                Ok(Format::Sound(format, cut(spec)?))
            }
            Medium::Sensor => lines(spec, 100).map(Format::Lines),
            Medium::Trigger => Ok(Format::Triggers),
        }
    }

    pub(super) fn decoder(&self) -> Box<dyn Decoder> {
        match self {
            Format::Mjpeg { max_bytes } => Box::new(Mjpeg::new(*max_bytes)),
            Format::Raw(format) => Box::new(Raw::new(*format)),
            Format::Sound(format, cut) => Box::new(Microphone::new(*format, *cut)),
            Format::Lines(format) => Box::new(Windows::new(format.clone())),
            Format::Triggers => Box::new(Triggers::default()),
        }
    }
}

fn cut(spec: &Spec) -> Result<CutFormat, CaptureError> {
    let options = spec.options();
    let length_s = options.length.unwrap_or(1.0);
    if length_s > 60.0 {
        return Err(spec.refuse("`length` is more than 60 s"));
    }
    let default = WordConfig::default();
    let db = |given: Option<f64>, default: f32| given.map_or(default, |db| db as f32);
    let config = WordConfig {
        pre_s: options.pre_s.unwrap_or(default.pre_s),
        hang_s: options.hang_s.unwrap_or(default.hang_s),
        on_db: db(options.on_db, default.on_db),
        off_db: db(options.off_db, default.off_db),
        gate_dbfs: db(options.gate_dbfs, default.gate_dbfs),
    };
    if config.off_db > config.on_db {
        return Err(spec.refuse("`off` is above `on`"));
    }
    Ok(CutFormat { length_s, hop_s: options.hop.unwrap_or(length_s), words: options.words.then_some(config) })
}

/// How a spec cuts lines, with this many in a window unless it says otherwise.
pub(super) fn lines(spec: &Spec, default_length: usize) -> Result<LinesFormat, CaptureError> {
    let options = spec.options();
    let whole = |key: &str, value: Option<f64>, default: usize| match value {
        None => Ok(default),
        Some(n) if n >= 1.0 && n.fract() == 0.0 => Ok(n as usize),
        Some(n) => Err(spec.refuse(format!("`{key}={n}` is no number of lines"))),
    };
    let length = whole("length", options.length, default_length)?;
    Ok(LinesFormat {
        length,
        hop: whole("hop", options.hop, length)?,
        header: options.header.unwrap_or(true),
        columns: options.columns.clone(),
        max_bytes: spec.max_bytes(),
    })
}

/// Runs producers, one after the other.
struct Supervisor {
    spec: String,
    feed: Feed,
    format: Format,
    /// Silence that counts as a stall.
    stall: Option<Duration>,
    restart: bool,
    tries: u32,
}

/// How one run went.
struct Run {
    /// Something of use came.
    alive: bool,
    stop: Stop,
    lasted: Duration,
}

enum Stop {
    Dropped,
    Ended,
    Stalled(Duration),
    Failed(String),
}

impl Supervisor {
    fn serve(&self, mailbox: &Mailbox, first: Producer) -> Result<(), CaptureError> {
        let mut producer = Some(first);
        let (mut pause, mut ever_alive) = (BACKOFF_MIN, false);
        for attempt in 1u32.. {
            // The first was started by whoever opened the source.
            let started = producer.take().map_or_else(|| self.feed.start().map(|(producer, _)| producer), Ok);
            let last = match started {
                Err(error) => {
                    let how = error.to_string();
                    mailbox.tell(What::Stopped { how: how.clone() });
                    how
                }
                Ok(mut producer) => {
                    mailbox.update(|status| status.starts += 1);
                    mailbox.tell(What::Started { what: self.feed.describe() });
                    let run = self.run(mailbox, &mut producer);
                    let (how, words) = producer.end(matches!(run.stop, Stop::Ended));
                    if let Stop::Dropped = run.stop {
                        return Ok(());
                    }
                    ever_alive |= run.alive;
                    if run.alive && run.lasted >= HEALTHY {
                        pause = BACKOFF_MIN;
                    }
                    self.tell_end(mailbox, run.stop, how, words)
                }
            };
            if !self.restart {
                return Ok(());
            }
            if !ever_alive && attempt >= self.tries {
                return Err(CaptureError::GivenUp { spec: self.spec.clone(), attempts: attempt, last });
            }
            mailbox.update(|status| status.state = State::Restarting);
            mailbox.tell(What::Waiting { pause });
            if mailbox.sleep(pause) {
                return Ok(());
            }
            pause = (2 * pause).min(BACKOFF_MAX);
        }
        Ok(())
    }

    /// Reads from one producer until it ends, falls silent, or nobody wants it any more.
    fn run(&self, mailbox: &Mailbox, producer: &mut Producer) -> Run {
        let begun = Instant::now();
        let mut decoder = self.format.decoder();
        let mut sink = Sink { mailbox, alive: false, progress: begun, skipped: 0 };
        let mut buffer = vec![0; READ_BYTES];
        let stop = loop {
            if mailbox.stopped() {
                break Stop::Dropped;
            }
            let silent = sink.progress.elapsed();
            let left = self.stall.map_or(TICK, |stall| stall.saturating_sub(silent));
            if left.is_zero() {
                break Stop::Stalled(silent);
            }
            match producer.read(&mut buffer, left.min(TICK)) {
                Ok(Read::Bytes(n)) => decoder.feed(&buffer[..n], &mut |out| sink.take(out)),
                Ok(Read::Nothing) => {}
                Ok(Read::End) => break Stop::Ended,
                Err(error) => break Stop::Failed(error.to_string()),
            }
        };
        decoder.finish(&mut |out| sink.take(out));
        Run { alive: sink.alive, stop, lasted: begun.elapsed() }
    }

    /// Tells how a run ended, and gives it back in words.
    fn tell_end(&self, mailbox: &Mailbox, stop: Stop, how: String, words: Option<String>) -> String {
        let mut told = how;
        match stop {
            Stop::Stalled(after) => {
                mailbox.update(|status| status.stalls += 1);
                mailbox.tell(What::Stalled { after });
                told = format!("nothing of use for {:.1} s, so {told}", after.as_secs_f64());
            }
            Stop::Failed(why) => told = format!("{why}; {told}"),
            Stop::Ended | Stop::Dropped => {}
        }
        if let Some(words) = &words {
            told += &format!("; it said: {}", words.lines().last().unwrap_or_default());
        }
        mailbox.update(|status| status.last_words = words.or(status.last_words.take()));
        mailbox.tell(What::Stopped { how: told.clone() });
        told
    }
}

/// Takes what comes out of a decoder.
struct Sink<'a> {
    mailbox: &'a Mailbox,
    alive: bool,
    /// When something of use came last.
    progress: Instant,
    skipped: u64,
}

impl Sink<'_> {
    fn take(&mut self, out: Out) {
        match out {
            Out::Frame(kind, notes) => {
                self.progressed();
                // Whether anybody still wants it is asked before the next read.
                self.mailbox.push(kind, notes, None);
            }
            Out::Progress => self.progressed(),
            Out::Refused(reason) => self.mailbox.refuse(reason),
            Out::Level(level) => self.mailbox.update(|status| status.level_dbfs = Some(level)),
            Out::Skipped(bytes) => {
                if self.skipped == 0 {
                    self.mailbox.tell(What::Skipped { bytes });
                }
                self.skipped += bytes;
                self.mailbox.update(|status| status.skipped_bytes += bytes);
            }
        }
    }

    fn progressed(&mut self) {
        self.alive = true;
        self.progress = Instant::now();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All that came out of a decoder.
    #[derive(Debug, Default)]
    pub(in super::super) struct Decoded {
        pub(in super::super) frames: Vec<Kind>,
        pub(in super::super) notes: Vec<Vec<Note>>,
        pub(in super::super) refused: Vec<String>,
        pub(in super::super) skipped: u64,
        pub(in super::super) progress: bool,
    }

    /// Feeds `bytes` in pieces of `chunk`, then ends.
    pub(in super::super) fn decode(decoder: &mut dyn Decoder, bytes: &[u8], chunk: usize) -> Decoded {
        let mut decoded = Decoded::default();
        let mut take = |out: Out| match out {
            Out::Frame(kind, notes) => {
                decoded.frames.push(kind);
                decoded.notes.push(notes);
            }
            Out::Refused(reason) => decoded.refused.push(reason),
            Out::Skipped(n) => decoded.skipped += n,
            Out::Progress => decoded.progress = true,
            Out::Level(_) => {}
        };
        bytes.chunks(chunk).for_each(|chunk| decoder.feed(chunk, &mut take));
        decoder.finish(&mut take);
        decoded
    }
}
