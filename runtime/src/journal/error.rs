//! What can go wrong with the journal, sorted by what a person does next.
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::state::StateError;
use crate::{Class, Classified};

/// Why the journal could not be opened, read or written.
///
/// After any error of a write nothing of that call was acknowledged; what was acknowledged before is still there, which
/// the journal itself has verified on a fresh connection (or it says [`StoreError::Damaged`]).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory: missing, not writable, locked.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk, or the bound set for tests, is full.
    #[error(
        "no space left for {path}; nothing was recorded, nothing recorded before is lost: free some space and try again"
    )]
    Full {
        /// The journal file.
        path: PathBuf,
    },
    /// The journal file may only be read.
    #[error("{path} is read-only; check its owner and that its file system is not mounted read-only")]
    ReadOnly {
        /// The journal file.
        path: PathBuf,
    },
    /// Another connection kept the journal busy for longer than the waiting time.
    #[error("{path} is busy; try again")]
    Busy {
        /// The journal file.
        path: PathBuf,
    },
    /// The journal contradicts itself, or no longer holds what it had acknowledged.
    #[error(
        "{path} is damaged: {what}; `hone feedback verify` lists everything wrong, `hone feedback export` saves what is readable"
    )]
    Damaged {
        /// The journal file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is some other program's database.
    #[error("{path} is not a hone journal")]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// The journal was written by a later version of hone.
    #[error("{path} has format version {found}, this hone knows up to {known}; use a newer hone")]
    Newer {
        /// The journal file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// A value that may not be recorded: the caller's mistake.
    #[error("{field} cannot be recorded: {reason}")]
    Unfit {
        /// The field of the record.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A pad counts its presses in an epoch that is not its current one.
    #[error("pad {uid} sent epoch {epoch}, its epoch here is {}; greet it again", current.map_or("not yet assigned".to_string(), |c| c.to_string()))]
    Epoch {
        /// The pad, in hexadecimal.
        uid: String,
        /// The epoch it named.
        epoch: u32,
        /// The epoch assigned to it, if any.
        current: Option<u32>,
    },
    /// A counter has reached its end.
    #[error("{what} has used up its numbers; export the journal and begin a new state directory")]
    Exhausted {
        /// The counter.
        what: &'static str,
    },
    /// No random numbers, hence no name for a numbering that nobody else has given.
    #[error("the operating system gave no random numbers: {detail}")]
    Random {
        /// What it said.
        detail: String,
    },
    /// A line of an import is not what an export writes. Nothing was imported.
    #[error("line {line} of the import: {reason}; nothing was imported")]
    Import {
        /// The line, counted from one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An import into a journal that already has records.
    #[error("{path} already holds {records} records; import into an empty state directory (--state DIR)")]
    NotEmpty {
        /// The journal file.
        path: PathBuf,
        /// Its records.
        records: u64,
    },
    /// A content-addressed file does not have the content its name promises.
    #[error("blob {digest} is {what}")]
    Blob {
        /// The BLAKE3 digest that names it, in hexadecimal.
        digest: String,
        /// `missing` or `damaged`.
        what: &'static str,
    },
    /// Reading an import or writing an export failed.
    #[error("{doing}: {source}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Any other failure of the disk or the database.
    #[error("{path}: {message}")]
    Disk {
        /// The journal file.
        path: PathBuf,
        /// What SQLite said.
        message: String,
    },
}

impl Classified for StoreError {
    fn class(&self) -> Class {
        match self {
            StoreError::State(e) => e.class(),
            StoreError::Busy { .. } => Class::TryAgain,
            StoreError::Unfit { .. } | StoreError::Import { .. } => Class::Invalid,
            StoreError::Epoch { .. } => Class::Device,
            StoreError::NotEmpty { .. } | StoreError::Stream { .. } | StoreError::Random { .. } => Class::Failed,
            _ => Class::Store,
        }
    }
}

impl StoreError {
    /// The error of a database call on the journal at `path`.
    pub(super) fn sql(path: &Path, e: rusqlite::Error) -> StoreError {
        let path = path.to_path_buf();
        let message = e.to_string();
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full { path },
            Some(ErrorCode::ReadOnly) => StoreError::ReadOnly { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { path },
            Some(ErrorCode::NotADatabase) => StoreError::NotAJournal { path },
            Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged { path, what: message },
            _ => StoreError::Disk { path, message },
        }
    }

    /// True when the call itself was at fault: the store was not touched, so there is nothing to reopen.
    pub(super) fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            StoreError::Unfit { .. }
                | StoreError::Epoch { .. }
                | StoreError::Exhausted { .. }
                | StoreError::Import { .. }
                | StoreError::NotEmpty { .. }
                | StoreError::Blob { .. }
                | StoreError::Stream { .. }
        )
    }
}
