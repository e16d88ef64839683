//! The loop around a pad that every board runs: samples, bytes, lamps, requests.
//!
//! A board implements [`Board`], which is nothing but its hardware, and calls [`Shell::step`] for ever. Nothing here
//! waits: a port that is busy takes the rest of a frame at a later step, and buttons are sampled meanwhile.

use crate::queue::Store;
use crate::{MAX_BUTTONS, Pad, Request};
use hone_wire::auth::Key;
use hone_wire::frame::Encoded;
use hone_wire::message::{Buzzer, Display, RebootTarget};

/// Bytes read from the port at once.
const READ: usize = 32;
/// Most times that it is read in a step: a host that floods the port must not keep buttons from being sampled.
const READS: usize = 8;

/// The hardware of a pad. No function waits.
pub trait Board {
    /// Milliseconds since boot, wrapping.
    fn now_ms(&mut self) -> u32;

    /// Bit i: button i is down.
    fn buttons(&mut self) -> u16;

    /// Bits 2i and 2i + 1: contacts of knob i that are closed. `None` where there is no knob.
    fn knobs(&mut self) -> Option<u8> {
        None
    }

    /// Takes what has arrived on the port. Returns how many bytes that was. A board with several ports gives a whole run
    /// between delimiters of one before it turns to another.
    fn read(&mut self, bytes: &mut [u8]) -> usize;

    /// What was read last ended a frame that is meant for this pad: where there are several ports, answers go to that one.
    fn accepted(&mut self) {}

    /// Gives the port what it takes now. Returns how many bytes that was.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// Sets the lamps, 0 to 255 each. Called each millisecond.
    fn lamps(&mut self, brightness: &[u8; MAX_BUTTONS]);

    /// Restarts; may return where the target is not there.
    fn reboot(&mut self, target: RebootTarget);

    /// Keeps a pairing key for the next boot.
    fn keep_pairing_key(&mut self, _key: Key) {}

    /// Shows text, where there is a display.
    fn display(&mut self, _display: &Display) {}

    /// Sounds a tone, where there is a buzzer.
    fn buzz(&mut self, _buzzer: Buzzer) {}

    /// Tells the watchdog that the loop still runs, where there is one. Called in each step.
    fn feed(&mut self) {}

    /// Waits for an interrupt; the clock's comes each millisecond.
    fn sleep(&mut self);
}

/// A pad with the frame that is going out.
#[derive(Debug)]
pub struct Shell<S> {
    pad: Pad<S>,
    frame: Encoded,
    written: usize,
    shown_ms: Option<u32>,
}

impl<S: Store> Shell<S> {
    /// The shell of a pad. In constants, so that it need not be built on a stack.
    #[must_use]
    pub const fn new(pad: Pad<S>) -> Self {
        Self { pad, frame: Encoded::new(), written: 0, shown_ms: None }
    }

    /// Does everything that is due, then sleeps until the next interrupt.
    pub fn step(&mut self, board: &mut impl Board) {
        board.feed();
        let mut bytes = [0; READ];
        for _ in 0..READS {
            let n = board.read(&mut bytes);
            let now_ms = board.now_ms();
            let accepted = self.pad.counters().accepted;
            self.pad.rx(&bytes[..n], now_ms);
            if self.pad.counters().accepted != accepted {
                board.accepted();
            }
            if n < READ {
                break;
            }
        }
        let now_ms = board.now_ms();
        self.pad.tick(now_ms, board.buttons());
        if let Some(contacts) = board.knobs() {
            self.pad.turn(now_ms, contacts);
        }
        self.pad.poll(now_ms);
        self.write(board);
        while let Some(request) = self.pad.pop_request() {
            match request {
                Request::Display(display) => board.display(&display),
                Request::Buzzer(buzzer) => board.buzz(buzzer),
                Request::Reboot(target) => board.reboot(target),
                Request::KeepPairingKey(key) => board.keep_pairing_key(key),
            }
        }
        if self.shown_ms.replace(now_ms) != Some(now_ms) {
            board.lamps(&self.pad.leds(now_ms));
        }
        board.sleep();
    }

    /// The pad within.
    #[must_use]
    pub fn pad(&self) -> &Pad<S> {
        &self.pad
    }

    /// The pad within.
    pub fn pad_mut(&mut self) -> &mut Pad<S> {
        &mut self.pad
    }

    #[inline(never)]
    fn write(&mut self, board: &mut impl Board) {
        loop {
            if self.written == self.frame.len() {
                let Some(frame) = self.pad.pop_tx() else { return };
                // Copied, for a moved one is the only thing in an image that wants the 1.3 kB of `memmove`.
                self.frame.clear();
                if self.frame.extend_from_slice(&frame).is_err() {
                    return;
                }
                self.written = 0;
            }
            let n = board.write(&self.frame[self.written..]);
            if n == 0 {
                return;
            }
            self.written += n;
        }
    }
}
