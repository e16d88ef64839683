//! What a person says about an answer, and how it reaches the loop.

pub mod serial;
