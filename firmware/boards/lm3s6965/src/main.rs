//! A hone pad on the Stellaris LM3S6965 evaluation board, which QEMU emulates (`-M lm3s6965evb`): the reference board.
//!
//! Budget: flash 24 KiB, RAM 8 KiB with the stack (`memory.x`).
//!
//! | what | where |
//! |---|---|
//! | button 0 up, 1 down, 2 left, 3 right | PE0, PE1, PE2, PE3, to ground, pull-ups inside |
//! | button 4 select | PF1, to ground, pull-up inside |
//! | lamp 0 | PF0 |
//! | serial port | UART0 (PA0 in, PA1 out), 115200 8N1 |
//!
//! The pad's identity is the board's Ethernet address. There is no flash that QEMU lets a program write: presses, numbering
//! and the pairing key are in memory that a reset does not clear, and go with the power.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use hone_board::{cortex, retained, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::warm::Memory;
use hone_pad::{Board, MAX_BUTTONS, Pad, Shell, WarmStore};

mod chip;

hone_board::name_plate!("lm3s6965");

/// The crystal's frequency: the clock after reset.
const CRYSTAL: u32 = 12_000_000;

struct Lm3s6965 {
    buttons: Buttons<chip::Pin, 5>,
}

impl Board for Lm3s6965 {
    fn now_ms(&mut self) -> u32 {
        cortex::ticks()
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
        chip::lamp(brightness.iter().any(|lamp| *lamp >= 128));
    }

    fn reboot(&mut self, _: hone_pad::RebootTarget) {
        // The chip's boot loader, where there is one, runs at every reset.
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
    static mut SHELL: Shell<WarmStore<32>> = Shell::new(Pad::idle(WarmStore::new()));
    let shell = SHELL;
    let boot = retained::boot();
    let reset_cause = chip::reset_cause();
    let memory = chip::warm();
    if reset_cause & chip::POWER != 0 {
        // What is left of it is not to be trusted.
        *memory = Memory::ZEROS;
    }
    let store = shell.pad_mut().store_mut();
    store.mount(memory);
    let pairing_key = store.pairing_key();
    let pins = chip::start();
    if let Some(core) = cortex_m::Peripherals::take() {
        cortex::tick(core.SYST, CRYSTAL);
    }
    // There is no source of chance; the count of boots makes the nonce differ.
    let hardware = start::Hardware { uid: chip::uid(), buttons: 5, leds: 1, chance: [0; 8], reset_cause };
    start::introduce(shell.pad_mut(), boot.number, pairing_key, boot, &PLATE, hardware);
    let mut board = Lm3s6965 { buttons: Buttons::new(pins, Wiring::ActiveLow) };
    chip::watch(CRYSTAL);
    loop {
        shell.step(&mut board);
    }
}
