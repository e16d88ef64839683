//! The `hone` program.
#![forbid(unsafe_code)]
fn main() {}
