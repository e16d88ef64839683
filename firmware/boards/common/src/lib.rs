//! What the boards share beyond the portable core.
//!
//! * [`plate`]: the image's name plate, by which a host knows that the pad runs the image it was given.
//! * [`retained`]: memory that a reset does not clear: a count of boots, a note of the last crash.
//! * [`start`]: from flash and retained memory to a pad that knows who it is.
//! * [`clock`]: milliseconds from a counter of the chip's.
//! * [`runs`]: of several serial ports, whole frames one after the other.
//! * `cortex` (feature `cortex-m`): the tick of a Cortex-M core, and what a panic or a fault does.
//! * `usb` (feature `usb`): a serial port on USB that is polled.
#![no_std]

pub mod clock;
#[cfg(feature = "cortex-m")]
pub mod cortex;
pub mod plate;
pub mod retained;
pub mod runs;
pub mod start;
#[cfg(feature = "usb")]
pub mod usb;
