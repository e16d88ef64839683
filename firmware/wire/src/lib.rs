//! The wire between a hone pad and its host.
//!
//! A *pad* is a small board with buttons and lamps on a serial line. This crate is the whole contract between the two
//! sides and is linked into both: [`frame`] turns bytes into checked frames and back, [`message`] gives frames their
//! meaning, [`event`] is a press, [`auth`] derives session keys and tags, [`host`] is the host's side of the conversation as a state machine.
//! The pad's side lives in `hone-pad`, beside the gestures and the queue it drives.
//!
//! Everything is bytes in, bytes out: no I/O, no clock (`now_ms` is always an argument), no allocation, no panic on any
//! input. What is deliberately not here: what a press *means* (the host's configuration decides), rate limits, storage.
//!
//! ```
//! use hone_wire::frame::{Deframed, Deframer, Frame, encode};
//! use hone_wire::message::{Message, Ping};
//!
//! let key = [7; 16];
//! let wire = encode(&Ping { t_ms: 1234 }.into(), 1, 1, Some(&key));
//! let mut deframer = Deframer::new();
//! for byte in wire {
//!     if let Deframed::Run(raw) = deframer.push(byte) {
//!         let frame = Frame::parse(&raw, Some(&key)).expect("nothing was damaged");
//!         assert_eq!(Message::parse(frame.kind, frame.body), Ok(Ping { t_ms: 1234 }.into()));
//!     }
//! }
//! ```
#![doc = include_str!("../FORMAT.md")]
#![no_std]
#![forbid(unsafe_code)]

pub mod auth;
pub mod event;
pub mod frame;
pub mod host;
pub mod message;

#[doc(hidden)]
pub mod faults;

/// The wire's major version, carried in the top three bits of every frame.
pub const WIRE_MAJOR: u8 = 1;
