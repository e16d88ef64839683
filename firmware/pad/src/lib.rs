//! The portable core of a hone pad.
#![no_std]
#![forbid(unsafe_code)]
