//! The portable core of a hone pad: everything a board does except touch its pins, its clock and its serial port.
//!
//! A board samples its buttons each millisecond into [`Pad::tick`], passes received bytes to [`Pad::rx`], calls
//! [`Pad::poll`], and sends what [`Pad::pop_tx`] yields. The parts, from the button to the wire:
//!
//! | module | turns | into |
//! |---|---|---|
//! | [`debounce`] | samples | edges |
//! | [`gesture`] | edges | clicks, long presses, doubles, chords |
//! | [`knob`] | an encoder's contacts | turns |
//! | [`queue`] | gestures | numbered events that wait until the host has them |
//! | [`flash`] | that queue | records in NOR flash that outlive a power cut |
//! | [`warm`] | that queue | memory that a reset does not clear, for boards without flash to write |
//! | [`link`] | events | frames, again and again until acknowledged |
//! | [`pad`] | all of them | one core, with lamps that say how far a press has come |
//! | [`shell`] | a board's hardware | the loop every board runs |
//!
//! The pad decides what was *done*; what it *means* is the host's. Nothing here reads a clock: `now_ms` is an argument,
//! wrapping modulo 2³². Nothing allocates, and nothing a host sends can make it panic.
//!
//! A board's whole program, less its hardware:
//!
//! ```
//! use hone_pad::{Pad, PadConfig, RamStore};
//!
//! let mut pad = Pad::new(PadConfig::default(), RamStore::<32>::new());
//! for now_ms in 0..200 {
//!     // Button 0 is down from 50 to 120 ms.
//!     let buttons = u16::from((50..120).contains(&now_ms));
//!     pad.tick(now_ms, buttons);
//!     pad.rx(b"", now_ms);
//!     pad.poll(now_ms);
//!     while let Some(frame) = pad.pop_tx() {
//!         assert!(frame.len() <= 243); // goes to the serial port
//!     }
//! }
//! assert_eq!(pad.pending(), 1); // a click, waiting for a host
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub mod debounce;
pub mod flash;
pub mod gesture;
pub mod knob;
pub mod link;
pub mod pad;
pub mod pins;
pub mod queue;
pub mod shell;
pub mod warm;

pub use flash::FlashStore;
pub use hone_wire::message::RebootTarget;
pub use pad::{Lamp, Pad, PadConfig, Request};
pub use pins::Buttons;
pub use queue::{RamStore, Store, StoreError};
pub use shell::{Board, Shell};
pub use warm::WarmStore;

/// Most buttons a pad may have.
pub const MAX_BUTTONS: usize = 16;

/// Most knobs a pad may have.
pub const MAX_KNOBS: usize = 2;

/// Whether `ms` have passed from `since_ms` to `now_ms` on the wrapping clock.
pub(crate) fn passed(since_ms: u32, now_ms: u32, ms: u32) -> bool {
    now_ms.wrapping_sub(since_ms) >= ms
}
