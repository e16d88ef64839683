//! What a person says about an answer, and how it reaches the loop.
//!
//! | module | holds |
//! |---|---|
//! | `source` | where presses come from: one trait, one table of ways to name it |
//! | `serial` | a pad on a serial port |
//! | `gpio`, `lines` | buttons without a pad, behind the pad's core in this process (`local`) |
//! | `listener` | the thread that serves a source: link, ledger, misfortunes of the port |
//! | `ledger` | presses into the journal before they are acknowledged |
//! | `words`, `meaning`, `policy`, `limit`, `keys` | what is said, by which button, by whom, how often, with which key |
//! | `pace` | how much of this machine a line may take |
//! | `notice` | what happens on a line, in words |
//! | `setup` | a pad paired or watched without taking its presses |
//! | `emulate` | a pad without hardware |
//!
//! Nothing here knows weights.

pub mod emulate;
#[cfg(test)]
mod faulty;
pub mod gpio;
pub mod keys;
pub mod ledger;
pub mod limit;
pub mod lines;
pub mod listener;
mod local;
pub mod meaning;
mod notice;
mod pace;
pub mod policy;
pub mod serial;
pub mod setup;
pub mod source;
pub mod words;

pub use ledger::{JournalLedger, SharedJournal};
pub use listener::{Listener, Notice, Opening};
pub use meaning::{Layout, Meaning, Role, uid_text};
pub use policy::Policy;
pub use source::{Source, SourceError};
