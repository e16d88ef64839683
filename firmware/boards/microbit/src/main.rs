//! A hone pad on a BBC micro:bit of the first version (nRF51822), for tests: QEMU emulates the board with its flash
//! (`-M microbit`), so what is in the queue is seen to survive a reset.
//!
//! Budget: flash 32 KiB, RAM 16 KiB with the stack.
//!
//! | what | where |
//! |---|---|
//! | button 0 A, 1 B | P0.17, P0.26, to ground, pull-ups on the board |
//! | lamps 0, 1 | the first two of the matrix: P0.13 to P0.04, P0.05 |
//! | serial port | UART (P0.24 out, P0.25 in), on the board's USB, 115200 8N1 |
//!
//! Presses, settings and the pairing key are in the last 8 KiB of the 256 KiB flash.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use hone_board::clock::Clock;
use hone_board::{cortex, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

mod chip;

hone_board::name_plate!("microbit");

/// Events that wait for a host.
const HOLDS: usize = 64;
/// Bytes of flash for events, settings and the key, at its end.
const STORE: u32 = 8 << 10;
const END: u32 = chip::FLASH_SIZE as u32;

struct Microbit {
    buttons: Buttons<chip::Pin, 2>,
    clock: Clock,
}

impl Board for Microbit {
    fn now_ms(&mut self) -> u32 {
        self.clock.at(chip::micros())
    }

    fn buttons(&mut self) -> u16 {
        let Ok(buttons) = self.buttons.sample();
        buttons
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        chip::receive(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        chip::send(bytes)
    }

    fn lamps(&mut self, brightness: &[u8; MAX_BUTTONS]) {
        chip::lamps([brightness[0] >= 128, brightness[1] >= 128]);
    }

    fn reboot(&mut self, _: RebootTarget) {
        // The board's other chip flashes this one; there is no boot loader to go to.
        cortex::restart()
    }

    fn feed(&mut self) {
        chip::feed();
    }

    fn sleep(&mut self) {
        cortex::sleep();
    }
}

#[entry]
fn main() -> ! {
    static mut SHELL: Shell<FlashStore<chip::Flash, HOLDS>> = Shell::new(Pad::idle(FlashStore::idle()));
    let reset_cause = chip::reset_cause();
    let Some(mut core) = cortex_m::Peripherals::take() else { cortex::restart() };
    let pins = chip::start(&mut core.NVIC);
    let mut board = Microbit { buttons: Buttons::new(pins, Wiring::ActiveLow), clock: Clock::new(1_000_000, 32) };
    let hardware = start::Hardware { uid: chip::uid(), buttons: 2, leds: 2, chance: chip::chance(), reset_cause };
    start::boot(SHELL, chip::Flash, END - STORE..END, &PLATE, hardware);
    chip::watch();
    loop {
        SHELL.step(&mut board);
    }
}
