//! The journal: what was shown, what people said about it, and what became of the adapters — durable before it is
//! acknowledged, in order, and never changed.
//!
//! [`Journal`] is the one writer (it holds the state directory's lock); any number of [`Reader`]s need no lock. The
//! records are the truth; tables beside them are derived in the same transaction. `learn` reads
//! [`Reader::effective_presses`], a pure function of the log, and follows it by [`Reader::changes`]. Deliberately without
//! policy: it does not decide what is shown, who may press, or what is trained.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hone_runtime::journal::{Example, Journal, Press, PressKind, Shown, Source};
//! use hone_runtime::state::StateDir;
//! let dir = tempfile::tempdir()?;
//! let mut journal = Journal::open(StateDir::at(dir.path()).lock()?)?;
//! let example = Example {
//!     model_digest: "5f1c".into(), adapter_id: None, feature: vec![0.5, -1.0], logits: vec![1.5, 0.25], inputs: vec![],
//! };
//! let id = journal.shown(&Shown { example, class: 0, label: "cat".into(), mu: 1.0, p: 0.78 })?;
//! journal.press(&Press::new(Some(id), PressKind::Thumb { up: true }, Source::Stdin))?; // now, and only now, acknowledge
//! assert_eq!(journal.reader().effective_presses()?[0].example.feature, [0.5, -1.0]);
//! journal.close()?;
//! # Ok(()) }
//! ```
//!
//! Durability is SQLite's: write-ahead log, `synchronous=FULL`, the log given its full length before its first use.
//! After a write that failed, nothing is trusted until a fresh connection has shown that everything acknowledged is
//! there.
//!
#![doc = include_str!("FORMAT.md")]

mod blob;
mod body;
mod error;
mod exchange;
mod follow;
mod reader;
mod record;
mod resolve;
mod sql;
mod verify;
mod writer;

#[cfg(test)]
pub(crate) mod crash;
#[cfg(test)]
mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

pub use blob::{BlobSize, Blobs, DROPPED, MAX_BLOB_BYTES};
pub use error::StoreError;
pub use exchange::EXPORT_SCHEMA;
pub use follow::{Changes, Follower};
pub use reader::{EffectivePress, Filter, PressLine, Reader, Signal, Stats, Story};
pub use record::{
    AdapterAction, AdapterEvent, Age, ClassChange, ClassesEvent, Digest, Example, Inference, Kind, MAX_PAYLOAD_BYTES,
    PadEvent, PadPress, Press, PressId, PressKind, RaterId, Record, Shown, Source,
};
pub use resolve::{PressStatus, REPLACE_WINDOW_MS};
pub use verify::{Fault, VerifyReport};
pub(crate) use writer::fresh_epoch;
pub use writer::{GROUP_NS, Journal, PadCommit, Redact, Redacted};

/// A moment, as every record carries it. Order is the record's `seq`; intervals are monotonic and only compare within
/// one `boot_id`; the wall clock may jump and is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run of the operating system.
    pub boot_id: String,
    /// Nanoseconds since that run began, suspended time included.
    pub mono_ns: u64,
    /// Milliseconds since 1970 UTC.
    pub wall_ms: i64,
}

/// Where a journal's time comes from.
pub trait Clock: Send {
    /// The present moment; `mono_ns` never falls while `boot_id` stays the same.
    fn now(&mut self) -> Stamp;
}

/// The clock of this machine.
#[derive(Clone, Debug)]
pub struct SystemClock {
    boot_id: String,
}

impl SystemClock {
    /// The clock of this machine and this run of it.
    pub fn new() -> SystemClock {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_string());
        // Without a boot id (not Linux) moments only compare within one process, which errs on the safe side.
        let unique = || format!("process-{}-{}", std::process::id(), wall_ms());
        SystemClock { boot_id: boot_id.ok().filter(|s| !s.is_empty()).unwrap_or_else(unique) }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&mut self) -> Stamp {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = rustix::time::ClockId::Monotonic;
        let t = rustix::time::clock_gettime(id);
        let mono_ns = (t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64);
        Stamp { boot_id: self.boot_id.clone(), mono_ns: mono_ns.min(i64::MAX as u64), wall_ms: wall_ms() }
    }
}

fn wall_ms() -> i64 {
    let ms = |d: std::time::Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(|e| -ms(e.duration()), ms)
}

/// What [`Journal::open_with`] takes beside the lock.
pub struct Options {
    /// Where time comes from.
    pub clock: Box<dyn Clock>,
    /// Bound on the database, in pages of 4,096 bytes; beyond it every write is [`StoreError::Full`], exactly as on a
    /// full disk. `None` is the disk's own bound.
    pub max_pages: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options { clock: Box::new(SystemClock::new()), max_pages: None }
    }
}
