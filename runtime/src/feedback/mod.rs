//! What a person says about an answer, and how it reaches the loop.

#[cfg(unix)]
pub mod emulate;
pub mod serial;
