//! What a person says about an answer, and how it reaches the loop.
//!
//! `meaning` turns buttons into something said, `ledger` makes it durable before it is acknowledged, `serial` serves a
//! pad on a line, `notice` puts what happens there in words, `emulate` is the same pad without hardware. Nothing here knows weights.

pub mod emulate;
pub mod ledger;
pub mod meaning;
mod notice;
pub mod serial;

pub use ledger::{JournalLedger, SharedJournal};
pub use meaning::{Layout, Meaning, Role};
