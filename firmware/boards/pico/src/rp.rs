//! The pad on a chip of the RP family: the same for Pico and Pico 2.

use crate::{FLASH_SIZE, PLATE, TITLE, micros, reset_cause, uid};
use cortex_m_rt::entry;
use embassy_rp::clocks::{RoscRng, clk_sys_freq};
use embassy_rp::flash::{Blocking, ERASE_SIZE, Flash};
use embassy_rp::gpio::{AnyPin, Input, Level, Output, Pull};
use embassy_rp::peripherals::{FLASH, USB};
use embassy_rp::uart::{self, Uart};
use embassy_rp::{Peri, bind_interrupts, pac, rom_data, usb};
use embedded_hal_nb::serial::Read;
use hone_board::clock::Clock;
use hone_board::runs::Run;
use hone_board::{cortex, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

/// Events that wait for a host.
const HOLDS: usize = 200;
/// Bytes of flash for events, settings and the key, at its end.
const STORE: u32 = 16 * ERASE_SIZE as u32;
const END: u32 = FLASH_SIZE as u32;
const BUTTONS: usize = 5;
/// What the watchdog resets: everything but the two oscillators, as the drivers' library has it.
const WATCHED: u32 = 0x1_fffc;

/// The flash.
pub type Kept = Flash<'static, FLASH, Blocking, FLASH_SIZE>;
type UsbPort<'u> = hone_board::usb::Port<'u, usb::Driver<'static, USB>>;

bind_interrupts!(struct Irqs {
    USBCTRL_IRQ => usb::InterruptHandler<USB>;
});

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Uart,
    Usb,
}

struct Rp<'u> {
    buttons: Buttons<Input<'static>, BUTTONS>,
    knob: Buttons<Input<'static>, 2>,
    lamps: [Output<'static>; BUTTONS],
    own: Output<'static>,
    uart: Uart<'static, uart::Blocking>,
    usb: UsbPort<'u>,
    /// What comes in, of each port.
    runs: [Run; 2],
    /// Where the last bytes came from, and the last frame.
    reading: Heard,
    heard: Heard,
    clock: Clock,
    ms: u32,
}

impl Board for Rp<'_> {
    fn now_ms(&mut self) -> u32 {
        self.ms = self.clock.at(micros());
        self.ms
    }

    fn buttons(&mut self) -> u16 {
        let Ok(buttons) = self.buttons.sample();
        buttons
    }

    fn knobs(&mut self) -> Option<u8> {
        let Ok(contacts) = self.knob.sample();
        Some(contacts as u8)
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let Self { uart, usb, runs: [from_uart, from_usb], reading, .. } = self;
        usb.poll();
        if !from_uart.is_given_in_part() {
            *reading = Heard::Usb;
            let n = from_usb.read(bytes, &mut || usb.byte());
            if n > 0 {
                return n;
            }
        }
        *reading = Heard::Uart;
        // A byte that overran or came damaged is missing; the frame's checksum says so.
        from_uart.read(bytes, &mut || uart.read().ok())
    }

    fn accepted(&mut self) {
        self.heard = self.reading;
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.heard {
            Heard::Uart => {
                // The driver would wait for room.
                let room = |_: &&u8| !pac::UART0.uartfr().read().txff();
                bytes.iter().take_while(room).take_while(|byte| self.uart.blocking_write(&[**byte]).is_ok()).count()
            }
            Heard::Usb => self.usb.write(bytes),
        }
    }

    fn lamps(&mut self, brightness: &[u8; MAX_BUTTONS]) {
        let phase = (self.ms % 8) as u8 * 32;
        let lit = |lamp: u8| if lamp > phase { Level::High } else { Level::Low };
        for (pin, lamp) in self.lamps.iter_mut().zip(brightness) {
            pin.set_level(lit(*lamp));
        }
        self.own.set_level(lit(brightness.iter().copied().max().unwrap_or(0)));
    }

    fn reboot(&mut self, target: RebootTarget) {
        match target {
            RebootTarget::App => cortex::restart(),
            RebootTarget::Bootloader => {
                // It would end the loader, too.
                pac::WATCHDOG.ctrl().write(|_| {});
                rom_data::reset_to_usb_boot(0, 0);
            }
        }
    }

    fn feed(&mut self) {
        // Counts microseconds down, and on the first of these chips two at a time.
        pac::WATCHDOG.load().write_value(pac::watchdog::regs::Load(8_000_000));
    }

    fn sleep(&mut self) {
        cortex::sleep();
    }
}

#[entry]
fn main() -> ! {
    static mut SHELL: Shell<FlashStore<Kept, HOLDS>> = Shell::new(Pad::idle(FlashStore::idle()));
    static mut MEMORY: hone_board::usb::Memory = hone_board::usb::Memory::new();
    let p = embassy_rp::init(embassy_rp::config::Config::default());
    let reset_cause = reset_cause();
    if let Some(core) = cortex_m::Peripherals::take() {
        cortex::tick(core.SYST, clk_sys_freq());
    }
    let mut flash = Kept::new_blocking(p.FLASH);
    let uid = uid(&mut flash);
    let pins: [Peri<'static, AnyPin>; BUTTONS] =
        [p.PIN_2.into(), p.PIN_3.into(), p.PIN_4.into(), p.PIN_5.into(), p.PIN_6.into()];
    let lamps: [Peri<'static, AnyPin>; BUTTONS] =
        [p.PIN_10.into(), p.PIN_11.into(), p.PIN_12.into(), p.PIN_13.into(), p.PIN_14.into()];
    let buttons = Buttons::new(pins.map(|pin| Input::new(pin, Pull::Up)), Wiring::ActiveLow);
    let contacts: [Peri<'static, AnyPin>; 2] = [p.PIN_7.into(), p.PIN_8.into()];
    let knob = Buttons::new(contacts.map(|pin| Input::new(pin, Pull::Up)), Wiring::ActiveLow);
    let lamps = lamps.map(|pin| Output::new(pin, Level::Low));
    let own = Output::new(p.PIN_25, Level::Low);
    let uart = Uart::new_blocking(p.UART0, p.PIN_0, p.PIN_1, uart::Config::default());
    // The driver leaves the line without a pull; where nothing is connected, noise would be read.
    pac::PADS_BANK0.gpio(1).modify(|pad| pad.set_pue(true));
    let driver = usb::Driver::new(p.USB, Irqs);
    let chance = RoscRng.next_u64().to_le_bytes();
    let hardware = start::Hardware { uid, buttons: BUTTONS as u8, leds: BUTTONS as u8, chance, reset_cause };
    start::boot(SHELL, flash, END - STORE..END, &PLATE, hardware);
    hone_board::usb::with(driver, MEMORY, TITLE, uid, |usb| {
        let clock = Clock::new(1_000_000, 32);
        let runs = [Run::new(), Run::new()];
        let (reading, heard) = (Heard::Uart, Heard::Uart);
        let mut board = Rp { buttons, knob, lamps, own, uart, usb, runs, reading, heard, clock, ms: 0 };
        // The chip but its clocks is reset when the loop has not come round for four seconds, or eight on the second of
        // these chips.
        pac::PSM.wdsel().write_value(pac::psm::regs::Wdsel(WATCHED));
        board.feed();
        pac::WATCHDOG.ctrl().write(|watchdog| watchdog.set_enable(true));
        loop {
            SHELL.step(&mut board);
        }
    })
}
