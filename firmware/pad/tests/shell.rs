//! The loop around a pad: which port is answered, and that the watchdog is fed.

use hone_pad::{Board, MAX_BUTTONS, Pad, PadConfig, RamStore, RebootTarget, Shell};
use hone_wire::frame::encode;
use hone_wire::message::{HostHello, Ping};
use std::collections::VecDeque;

#[derive(Default)]
struct Bench {
    now_ms: u32,
    line: VecDeque<u8>,
    accepted: u32,
    fed: u32,
}

impl Board for Bench {
    fn now_ms(&mut self) -> u32 {
        self.now_ms
    }

    fn buttons(&mut self) -> u16 {
        0
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let n = bytes.len().min(self.line.len());
        bytes.iter_mut().zip(self.line.drain(..n)).for_each(|(to, byte)| *to = byte);
        n
    }

    fn accepted(&mut self) {
        self.accepted += 1;
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn lamps(&mut self, _: &[u8; MAX_BUTTONS]) {}

    fn reboot(&mut self, _: RebootTarget) {}

    fn feed(&mut self) {
        self.fed += 1;
    }

    fn sleep(&mut self) {
        self.now_ms += 1;
    }
}

#[test]
fn a_port_is_answered_for_a_frame_that_is_meant_for_this_pad_and_not_for_noise() {
    let mut shell = Shell::new(Pad::new(PadConfig::default(), RamStore::<4>::new()));
    let mut board = Bench::default();
    let hello = encode(&HostHello { wire_min: 1, wire_max: 1, nonce: *b"hostnonc" }.into(), 0, 0, None);
    let stray = encode(&Ping { t_ms: 1 }.into(), 7, 7, None);
    for (bytes, accepted) in [(&[0x55; 40][..], 0), (&[0, 1, 2, 0], 0), (&stray, 0), (&hello, 1), (&[0xff, 0, 3], 1)] {
        board.line.extend(bytes);
        (0..12).for_each(|_| shell.step(&mut board));
        assert_eq!(board.accepted, accepted, "{bytes:02x?}");
    }
    assert_eq!(board.fed, board.now_ms, "in each step");
}
