//! Files that somebody puts into a directory: for people without a camera, and for programs that write files.
//!
//! Looked at five times a second rather than with inotify, which network and overlay file systems do not serve. A file is
//! read once it has had the same size and time for two looks. None is dropped: the directory is the queue.
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::{frame, is_of, unreadable};
use super::mailbox::{Full, Mailbox, Threaded};
use super::{CaptureError, Medium, Source, Spec, What};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// The row `watch` of [`super::SOURCES`].
pub(super) fn open(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let mut watch = Watch { medium, directory: spec.rest().into(), max_bytes: spec.max_bytes(), files: HashMap::new() };
    let fail = |error: io::Error| CaptureError::Open { path: spec.rest().into(), detail: error.to_string() };
    let there = watch.look().map_err(fail)?;
    if !spec.options().all {
        watch.files = there.into_iter().map(|(name, stamp)| (name, Known { stamp, given: true })).collect();
    }
    let mailbox = Mailbox::new(spec.keep(medium), Full::Wait);
    Threaded::start(spec.text(), mailbox, move |mailbox| {
        watch.serve(mailbox);
        Ok(())
    })
}

type Stamp = (Option<SystemTime>, u64);

struct Known {
    stamp: Stamp,
    given: bool,
}

struct Watch {
    medium: Medium,
    directory: PathBuf,
    max_bytes: usize,
    files: HashMap<OsString, Known>,
}

impl Watch {
    fn serve(&mut self, mailbox: &Mailbox) {
        mailbox.update(|status| status.starts += 1);
        mailbox.tell(What::Started { what: self.directory.display().to_string() });
        let mut told = false;
        while !mailbox.sleep(PERIOD) {
            match self.look() {
                Err(error) => unreadable(mailbox, &self.directory, &error, &mut told),
                Ok(there) => {
                    if std::mem::take(&mut told) {
                        mailbox.tell(What::Started { what: self.directory.display().to_string() });
                    }
                    for name in self.ripe(there) {
                        let path = self.directory.join(name);
                        let go_on = match frame(self.medium, &path, self.max_bytes) {
                            Ok(kind) => mailbox.push(kind, vec![], Some(path)),
                            Err(reason) => {
                                mailbox.refuse(reason);
                                !mailbox.stopped()
                            }
                        };
                        if !go_on {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The files of the medium that are there and not hidden (programs write under a hidden name and rename).
    fn look(&self) -> io::Result<Vec<(OsString, Stamp)>> {
        let mut there = vec![];
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") || !is_of(self.medium, Path::new(&name)) {
                continue;
            }
            // Gone between the listing and now: not there. Through links, hence not the entry's own metadata.
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if meta.is_file() {
                there.push((name, (meta.modified().ok(), meta.len())));
            }
        }
        Ok(there)
    }

    /// Those that have not changed since the last look and were not given as they are, oldest first. An empty file is
    /// taken to be about to be written.
    fn ripe(&mut self, there: Vec<(OsString, Stamp)>) -> Vec<OsString> {
        let mut before = std::mem::take(&mut self.files);
        let mut ripe = vec![];
        for (name, stamp) in there {
            let known = before.remove(&name).filter(|known| known.stamp == stamp);
            let due = known.as_ref().is_some_and(|known| !known.given) && stamp.1 > 0;
            let given = due || known.is_some_and(|known| known.given);
            if due {
                ripe.push((stamp.0, name.clone()));
            }
            self.files.insert(name, Known { stamp, given });
        }
        ripe.sort();
        ripe.into_iter().map(|(_, name)| name).collect()
    }
}
