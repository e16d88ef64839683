//! What the boards share beyond the portable core, because it cannot be written without `unsafe`.
//!
//! * [`plate`]: the image's name plate, by which a host knows that the pad runs the image it was given.
//! * [`retained`]: memory that a reset does not clear: a count of boots, a note of the last panic.
//! * [`start`]: from flash and retained memory to a pad that knows who it is.
#![no_std]

pub mod plate;
pub mod retained;
pub mod start;
