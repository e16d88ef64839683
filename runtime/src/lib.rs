//! The hone loop as a library.
#![forbid(unsafe_code)]
