//! Recorded frames given again: files in an order that does not vary, at a rate of one's own.
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mailbox::{Full, Mailbox, Threaded};
use super::stream::{Format, Out, lines};
use super::{CaptureError, Kind, Medium, Picture, Sound, Source, Spec, State, What};
use crate::Note;

/// Endings of the files of each medium, in lower case.
pub(super) fn extensions(medium: Medium) -> &'static [&'static str] {
    match medium {
        Medium::Image => &["jpg", "jpeg", "png"],
        Medium::Audio => &["wav", "flac", "mp3"],
        Medium::Sensor => &["csv"],
        Medium::Trigger => &[],
    }
}

pub(super) fn is_of(medium: Medium, path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    extensions(medium).contains(&ending.as_str())
}

/// The frame that is this file.
///
/// # Errors
/// Why it is refused, in words.
pub(super) fn frame(medium: Medium, path: &Path, max_bytes: usize) -> Result<Kind, String> {
    let mut bytes = vec![];
    // One byte more tells a file that is too large from one that is just large enough.
    let read = File::open(path).and_then(|file| file.take(max_bytes as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    let refuse = |why: String| Err(format!("{}: {why}", path.display()));
    if bytes.len() > max_bytes {
        return refuse(format!("more than {max_bytes} bytes (max_bytes)"));
    }
    if bytes.is_empty() {
        return refuse("it is empty".into());
    }
    match medium {
        Medium::Image => Ok(Kind::Image(Picture::Encoded(bytes))),
        Medium::Audio => Ok(Kind::Audio(Sound::File(bytes))),
        Medium::Sensor => String::from_utf8(bytes).map(Kind::Sensor).or_else(|_| refuse("it is not UTF-8".into())),
        Medium::Trigger => refuse("a file is no trigger".into()),
    }
}

/// The row `file` of [`super::SOURCES`].
pub(super) fn open(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let options = spec.options().clone();
    let by_lines = medium == Medium::Sensor && (options.length.is_some() || options.hop.is_some());
    let given = |set: bool, key: &str| {
        // Recorded sound is given file by file.
        if set {
            Err(spec.refuse(format!("`{key}` does not cut files of {medium}; `exec:` and `pipe:` do")))
        } else {
            Ok(())
        }
    };
    given(medium == Medium::Audio && options.length.is_some(), "length")?;
    given(medium == Medium::Audio && options.hop.is_some(), "hop")?;
    if medium == Medium::Sensor && !by_lines && options.header == Some(false) {
        return Err(spec.refuse("`header` and `columns` are for files that are cut: give `length` too"));
    }
    let replay = Replay {
        medium,
        files: files(medium, spec.rest())?,
        max_bytes: spec.max_bytes(),
        lines: if by_lines { Some(Format::Lines(lines(spec, 100)?)) } else { None },
        period: (options.fps > 0.0).then(|| Duration::from_secs_f64(1.0 / options.fps)),
        repeat: options.repeat,
    };
    // At a rate the replay behaves as a camera does; without one it waits as files do.
    let full = if replay.period.is_some() { Full::DropOldest } else { Full::Wait };
    let mailbox = Mailbox::new(spec.keep(medium), full);
    Threaded::start(spec.text(), mailbox, move |mailbox| {
        replay.serve(mailbox);
        Ok(())
    })
}

/// The files `rest` names, at least one.
fn files(medium: Medium, rest: &str) -> Result<Vec<PathBuf>, CaptureError> {
    let fail = |path: &Path, error: std::io::Error| CaptureError::Open {
        path: path.display().to_string(),
        detail: error.to_string(),
    };
    let files = if let Some(list) = rest.strip_prefix('@') {
        let list = Path::new(list);
        let text = fs::read_to_string(list).map_err(|error| fail(list, error))?;
        // Names in a list are relative to it, so that it can be moved together with its files.
        let beside = list.parent().unwrap_or(Path::new(""));
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| beside.join(l)).collect()
    } else {
        let path = Path::new(rest);
        if path.metadata().map_err(|error| fail(path, error))?.is_dir() {
            let entries = fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
            let mut files: Vec<PathBuf> =
                entries.map_err(|error| fail(path, error))?.iter().map(|e| e.path()).collect();
            files.retain(|file| file.is_file() && is_of(medium, file));
            files.sort();
            files
        } else {
            vec![path.to_path_buf()]
        }
    };
    if files.is_empty() {
        let extensions = extensions(medium).join(", ");
        return Err(CaptureError::NoFiles { path: rest.into(), medium: medium.name(), extensions });
    }
    Ok(files)
}

struct Replay {
    medium: Medium,
    files: Vec<PathBuf>,
    max_bytes: usize,
    /// Cut each file into windows of lines, rather than give it whole.
    lines: Option<Format>,
    period: Option<Duration>,
    repeat: bool,
}

impl Replay {
    fn serve(&self, mailbox: &Mailbox) {
        let mut due = Instant::now();
        loop {
            mailbox.update(|status| status.starts += 1);
            let before = mailbox.status().came;
            for path in &self.files {
                let kind = frame(self.medium, path, self.max_bytes);
                let go_on = match (kind, &self.lines) {
                    (Err(reason), _) => {
                        mailbox.refuse(reason);
                        !mailbox.stopped()
                    }
                    (Ok(Kind::Sensor(csv)), Some(format)) => self.windows(mailbox, &mut due, path, &csv, format),
                    (Ok(kind), _) => self.give(mailbox, &mut due, path, kind, vec![]),
                };
                if !go_on {
                    return;
                }
            }
            // Files that are all refused are not read again and again without a pause.
            if !self.repeat || mailbox.status().came == before && mailbox.sleep(Duration::from_secs(1)) {
                return;
            }
        }
    }

    fn windows(&self, mailbox: &Mailbox, due: &mut Instant, path: &Path, csv: &str, format: &Format) -> bool {
        let mut decoder = format.decoder();
        let mut go_on = true;
        let mut take = |out: Out| match out {
            Out::Frame(kind, notes) if go_on => go_on = self.give(mailbox, due, path, kind, notes),
            Out::Refused(reason) => mailbox.refuse(reason),
            Out::Skipped(bytes) => mailbox.update(|status| status.skipped_bytes += bytes),
            Out::Frame(..) | Out::Progress | Out::Level(_) => {}
        };
        decoder.feed(csv.as_bytes(), &mut take);
        decoder.finish(&mut take);
        go_on
    }

    fn give(&self, mailbox: &Mailbox, due: &mut Instant, path: &Path, kind: Kind, notes: Vec<Note>) -> bool {
        if let Some(period) = self.period {
            let now = Instant::now();
            if mailbox.sleep(due.saturating_duration_since(now)) {
                return false;
            }
            // Kept to the beat, but what was missed is not made up for in a burst.
            *due = (*due + period).max(now);
        }
        mailbox.push(kind, notes, Some(path.to_path_buf()))
    }
}

/// What `watch` shares with a replay: tells of a directory that cannot be read, once while it stays so.
pub(super) fn unreadable(mailbox: &Mailbox, path: &Path, error: &std::io::Error, told: &mut bool) {
    if !std::mem::replace(told, true) {
        mailbox.update(|status| status.state = State::Restarting);
        mailbox.tell(What::Stopped { how: format!("{}: {error}", path.display()) });
    }
}
