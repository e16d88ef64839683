//! The state directory of a device: where everything that must survive a power cut lives, and who may write there.
//!
//! ```text
//! STATE/journal.db   blobs/ab/<blake3>   pads/   adapters/<base_digest>/<id>/   current   tune/   lock
//! ```
//! This module knows paths, the writer lock and how a file is written so that it is whole or absent; it does not know
//! what the files mean (`journal`, `adapters`). Deliberately without a network or a daemon: readers need no lock at all.
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Class, Classified};

/// How long [`StateDir::lock`] waits for another writer before it gives up.
pub const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Why the state directory cannot be found, made, locked or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No place was given and the environment names none.
    #[error("no state directory: $STATE_DIRECTORY, $XDG_STATE_HOME and $HOME are all unset; pass --state DIR")]
    Unresolved,
    /// The directory is not there and this operation does not make it.
    #[error("there is no state directory at {path}; `hone listen` makes one, or pass --state DIR")]
    Missing {
        /// The directory looked for.
        path: PathBuf,
    },
    /// The directory or a file in it may not be written.
    #[error("cannot write {path}: {source}; check its owner and that its file system is not mounted read-only")]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file system is full.
    #[error("no space left for {path}; free some space and try again, nothing already recorded is lost")]
    Full {
        /// The file being written.
        path: PathBuf,
    },
    /// Another process is the writer.
    #[error("{path} is held by another writer{}; stop it or try again", by.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process id the holder wrote, when it can be read.
        by: Option<u32>,
    },
    /// Any other trouble with a file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl StateError {
    /// The error of an operation on `path`, sorted into the cases a person can act on.
    pub(crate) fn io(path: &Path, source: io::Error) -> StateError {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StateError::NotWritable { path, source }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StateError::Full { path },
            _ => StateError::Io { path, source },
        }
    }
}

impl Classified for StateError {
    fn class(&self) -> Class {
        match self {
            StateError::Unresolved => Class::Config,
            StateError::Locked { .. } => Class::TryAgain,
            _ => Class::Store,
        }
    }
}

/// A state directory: only a path and its layout, nothing is opened or made until asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The state directory at `root`.
    pub fn at(root: impl Into<PathBuf>) -> StateDir {
        StateDir { root: root.into() }
    }

    /// `explicit` (a person's `--state`), else `$STATE_DIRECTORY` (systemd; its first entry), else `$XDG_STATE_HOME/hone`,
    /// else `$HOME/.local/state/hone`. Nothing is created.
    ///
    /// # Errors
    /// [`StateError::Unresolved`] when none of them is set.
    pub fn resolve(explicit: Option<&Path>) -> Result<StateDir, StateError> {
        StateDir::resolve_in(explicit, |name| std::env::var_os(name))
    }

    /// [`StateDir::resolve`] with the environment as an argument.
    fn resolve_in(explicit: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Result<StateDir, StateError> {
        if let Some(path) = explicit {
            return Ok(StateDir::at(path));
        }
        // The XDG specification says that a relative path there is to be ignored; an empty variable counts as unset.
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|p| p.is_absolute());
        if let Some(list) = env("STATE_DIRECTORY")
            && let Some(first) = std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty())
        {
            return Ok(StateDir::at(first));
        }
        if let Some(xdg) = absolute("XDG_STATE_HOME") {
            return Ok(StateDir::at(xdg.join("hone")));
        }
        match absolute("HOME") {
            Some(home) => Ok(StateDir::at(home.join(".local/state/hone"))),
            None => Err(StateError::Unresolved),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `STATE/journal.db`.
    pub fn journal_db(&self) -> PathBuf {
        self.root.join("journal.db")
    }

    /// `STATE/blobs`, content-addressed files.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// `STATE/pads`, one file per paired pad.
    pub fn pads(&self) -> PathBuf {
        self.root.join("pads")
    }

    /// `STATE/adapters`.
    pub fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    /// `STATE/current`, the symbolic link to the adapter in use.
    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// `STATE/tune`, one directory per run.
    pub fn tune(&self) -> PathBuf {
        self.root.join("tune")
    }

    /// `STATE/lock`.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Makes the directory and its folders where they are missing (mode 0700 for the root: presses are personal).
    ///
    /// # Errors
    /// [`StateError::NotWritable`], [`StateError::Full`] or [`StateError::Io`], naming the path.
    pub fn create(&self) -> Result<(), StateError> {
        if !self.root.is_dir() {
            fs::create_dir_all(&self.root).map_err(|e| StateError::io(&self.root, e))?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
                    .map_err(|e| StateError::io(&self.root, e))?;
            }
        }
        for dir in [self.blobs(), self.pads(), self.adapters(), self.tune()] {
            fs::create_dir_all(&dir).map_err(|e| StateError::io(&dir, e))?;
        }
        sync_dir(&self.root)
    }

    /// Becomes the one writer of this directory, creating it where it is missing; waits up to [`LOCK_WAIT`].
    ///
    /// The lock is an advisory lock on an open file: the kernel lets go of it when the process dies, however it dies.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another writer holds it throughout; otherwise as [`StateDir::create`].
    pub fn lock(&self) -> Result<WriterLock, StateError> {
        self.lock_within(LOCK_WAIT)
    }

    /// [`StateDir::lock`] with a wait of its own; zero tries once.
    ///
    /// # Errors
    /// As [`StateDir::lock`].
    pub fn lock_within(&self, wait: Duration) -> Result<WriterLock, StateError> {
        self.create()?;
        let path = self.lock_file();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| StateError::io(&path, e))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < wait => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // Who holds it is a courtesy: an unreadable or empty file only makes the message shorter.
                    let by = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
                    return Err(StateError::Locked { path, by });
                }
                Err(TryLockError::Error(e)) => return Err(StateError::io(&path, e)),
            }
        }
        // Not made durable: the content only serves the message above while this process lives. A full disk must not
        // keep a writer from starting, for starting is how space is freed.
        let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(WriterLock { state: self.clone(), _file: file })
    }
}

/// The right to write a [`StateDir`]; held as long as the value lives.
#[derive(Debug)]
pub struct WriterLock {
    state: StateDir,
    _file: File,
}

impl WriterLock {
    /// The directory that is held.
    pub fn state(&self) -> &StateDir {
        &self.state
    }
}

/// Makes the entries of directory `path` durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(|e| StateError::io(path, e))
}

/// Writes `bytes` into a new file at `path` and makes them durable; the directory entry is the caller's to sync.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| StateError::io(path, e))
}

/// Puts a file at `path` that only its owner may read, whole or not at all, in place of one that is there; durable on
/// return.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        let mut file = options.open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|e| StateError::io(path, e))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The bytes of `path`, or `None` when the file is not there.
///
/// # Errors
/// [`StateError::Io`], also when it is longer than `max_bytes`: nothing this crate stores is, so it is not ours.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StateError::Io { path: path.to_path_buf(), source: e }),
    };
    let mut bytes = Vec::new();
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| StateError::Io { path: path.to_path_buf(), source: e })?;
    if bytes.len() as u64 > max_bytes {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("longer than {max_bytes} bytes"));
        return Err(StateError::Io { path: path.to_path_buf(), source });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| OsString::from(v))
    }

    #[test]
    fn what_a_person_typed_wins_then_systemd_then_xdg_then_home() {
        let all = &[("STATE_DIRECTORY", "/var/lib/hone:/x"), ("XDG_STATE_HOME", "/xdg"), ("HOME", "/h/a")];
        let at = |explicit: Option<&str>, e: &'static [(&'static str, &'static str)]| {
            StateDir::resolve_in(explicit.map(Path::new), env(e)).unwrap().root
        };
        assert_eq!(at(Some("here"), all), Path::new("here"));
        assert_eq!(at(None, all), Path::new("/var/lib/hone"));
        assert_eq!(at(None, &all[1..]), Path::new("/xdg/hone"));
        assert_eq!(at(None, &all[2..]), Path::new("/h/a/.local/state/hone"));
        assert_eq!(at(None, &[("STATE_DIRECTORY", ""), ("HOME", "/h")]), Path::new("/h/.local/state/hone"));
    }

    #[test]
    fn an_empty_environment_is_an_error_that_names_the_option() {
        let e = StateDir::resolve_in(None, env(&[])).unwrap_err();
        assert_eq!(e.class(), Class::Config);
        assert!(e.to_string().contains("--state"));
    }

    #[test]
    fn a_second_writer_is_told_who_holds_the_lock_and_may_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("s"));
        let held = state.lock().unwrap();
        let began = Instant::now();
        let e = state.lock_within(Duration::from_millis(60)).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(60));
        assert!(matches!(e, StateError::Locked { by: Some(pid), .. } if pid == std::process::id()));
        assert_eq!(e.class(), Class::TryAgain);
        drop(held);
        state.lock_within(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_writer_waits_for_one_that_is_about_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path());
        let held = state.lock().unwrap();
        let leaver = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        state.lock().unwrap();
        leaver.join().unwrap();
    }

    #[test]
    fn a_path_that_runs_through_a_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        fs::write(&file, b"x").unwrap();
        let e = StateDir::at(file.join("state")).lock().unwrap_err();
        assert_eq!(e.class(), Class::Store);
        assert!(e.to_string().contains("plain"));
    }

    #[test]
    fn a_file_longer_than_its_bound_is_refused_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [0u8; 11]).unwrap();
        assert!(read_bounded(&path, 10).is_err());
        assert_eq!(read_bounded(&path, 11).unwrap().unwrap().len(), 11);
        assert_eq!(read_bounded(&dir.path().join("absent"), 11).unwrap(), None);
    }
}
