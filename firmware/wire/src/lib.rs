//! The wire between a hone pad and its host.
#![no_std]
#![forbid(unsafe_code)]
