//! What comes in on a serial port, a whole run between delimiters at a time: a pad with several ports has one deframer, and
//! bytes of a port that nobody uses must not come between those of a frame on another.

use hone_wire::frame::MAX_ENCODED;

/// The run of bytes that is coming in on a port.
#[derive(Debug)]
pub struct Run {
    bytes: [u8; MAX_ENCODED],
    len: usize,
    /// Of a run that is whole, how much was given.
    given: usize,
    whole: bool,
}

impl Run {
    /// Nothing has come.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; MAX_ENCODED], len: 0, given: 0, whole: false }
    }

    /// Takes bytes from the port until a run is whole, and gives what fits of it, with its delimiter. Returns how many bytes
    /// that was: none until the run is whole.
    pub fn read(&mut self, out: &mut [u8], port: &mut dyn FnMut() -> Option<u8>) -> usize {
        while !self.whole {
            let Some(byte) = port() else { return 0 };
            // Of what is longer than any frame the end is left out: its checksum will not do.
            if self.len < MAX_ENCODED - 1 || byte == 0 {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
            self.whole = byte == 0 && self.len > 1;
            if byte == 0 && !self.whole {
                self.len = 0;
            }
        }
        let n = out.len().min(self.len - self.given);
        out[..n].copy_from_slice(&self.bytes[self.given..][..n]);
        self.given += n;
        if self.given == self.len {
            (self.len, self.given, self.whole) = (0, 0, false);
        }
        n
    }

    /// Whether a run was begun to be given and not ended.
    #[must_use]
    pub fn is_given_in_part(&self) -> bool {
        self.given > 0
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use hone_wire::frame::{Deframed, Deframer, Frame, encode};
    use hone_wire::message::Ping;
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[test]
    fn noise_on_one_port_does_not_come_between_the_bytes_of_a_frame_on_another() {
        let frame = encode(&Ping { t_ms: 7 }.into(), 1, 2, None);
        let noise: Vec<u8> = (0..2_000).map(|i| (i * 37 % 251) as u8 | 1).collect();
        let (mut good, mut bad) = (Run::new(), Run::new());
        let (mut frame_left, mut noise_left): (VecDeque<u8>, VecDeque<u8>) =
            (frame.into_iter().collect(), noise.into());
        noise_left.extend([0, 0]);
        let (mut deframer, mut pings, mut whole) = (Deframer::new(), 0, 0);
        for _ in 0..3_000 {
            let mut out = [0; 5];
            // A byte of each in turn.
            let (mut a, mut b) = (frame_left.pop_front(), noise_left.pop_front());
            let n = if bad.is_given_in_part() { 0 } else { good.read(&mut out, &mut || a.take()) };
            let n = if n == 0 { bad.read(&mut out, &mut || b.take()) } else { n };
            for byte in &out[..n] {
                if let Deframed::Run(raw) = deframer.push(*byte) {
                    whole += 1;
                    pings += u32::from(Frame::parse(&raw, None).is_ok_and(|frame| frame.kind == 7));
                }
            }
            for (left, byte) in [(&mut frame_left, a), (&mut noise_left, b)] {
                if let Some(byte) = byte {
                    left.push_front(byte);
                }
            }
        }
        assert_eq!((pings, whole), (1, 1), "and the noise is no frame");
        assert!(frame_left.is_empty() && noise_left.is_empty());
    }

    #[test]
    fn runs_are_given_whole_in_any_portions_and_empty_ones_are_not() {
        let mut left: VecDeque<u8> = [0, 0, 1, 2, 3, 0, 0, 4, 0].into();
        let (mut run, mut given) = (Run::new(), Vec::new());
        loop {
            let mut out = [0; 3];
            let n = run.read(&mut out, &mut || left.pop_front());
            if n == 0 {
                break;
            }
            given.extend_from_slice(&out[..n]);
        }
        assert_eq!(given, [1, 2, 3, 0, 4, 0]);
    }
}
