//! A hone pad on Nordic's nRF52840 development kit (PCA10056). It was built and never run: no board was at hand, and no
//! emulator here has one.
//!
//! Budget: flash 48 KiB, RAM 32 KiB with the stack.
//!
//! | what | where |
//! |---|---|
//! | buttons 0 to 3 | P0.11, P0.12, P0.24, P0.25: the kit's own, to ground, pull-ups inside |
//! | lamps 0 to 3 | P0.13, P0.14, P0.15, P0.16: the kit's own, lit when low |
//! | serial port | the chip's own USB (CDC-ACM), the connector named nRF USB |
//!
//! Presses, settings and the pairing key are in the last 64 KiB of the 1 MiB flash. The clock is the kit's crystal of
//! 32,768 Hz: a core that sleeps has no tick of its own.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use embassy_nrf::config::{Config, HfclkSource, LfclkSource};
use embassy_nrf::gpio::{AnyPin, Input, Level, Output, OutputDrive, Pull};
use embassy_nrf::nvmc::{FLASH_SIZE, Nvmc, PAGE_SIZE};
use embassy_nrf::rng::Rng;
use embassy_nrf::rtc::{Interrupt, Rtc};
use embassy_nrf::usb::vbus_detect::{self, HardwareVbusDetect};
use embassy_nrf::{Peri, bind_interrupts, interrupt, pac, peripherals, usb};
use hone_board::clock::Clock;
use hone_board::{cortex, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

hone_board::name_plate!("nrf52840");

/// Events that wait for a host.
const HOLDS: usize = 200;
/// Bytes of flash for events, settings and the key, at its end.
const STORE: u32 = 16 * PAGE_SIZE as u32;
const END: u32 = FLASH_SIZE as u32;
const BUTTONS: usize = 4;
/// The crystal's, divided by 32.
const TICKS_PER_SECOND: u32 = 1_024;

type UsbPort<'u> = hone_board::usb::Port<'u, usb::Driver<'static, HardwareVbusDetect>>;

bind_interrupts!(struct Irqs {
    USBD => usb::InterruptHandler<peripherals::USBD>;
    CLOCK_POWER => vbus_detect::InterruptHandler;
});

/// Wakes the shell.
#[interrupt]
fn RTC0() {
    pac::RTC0.events_tick().write_value(0);
}

struct Nrf52840<'u> {
    buttons: Buttons<Input<'static>, BUTTONS>,
    lamps: [Output<'static>; BUTTONS],
    usb: UsbPort<'u>,
    rtc: Rtc<'static>,
    clock: Clock,
    ms: u32,
}

impl Board for Nrf52840<'_> {
    fn now_ms(&mut self) -> u32 {
        self.ms = self.clock.at(self.rtc.read());
        self.ms
    }

    fn buttons(&mut self) -> u16 {
        let Ok(buttons) = self.buttons.sample();
        buttons
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.usb.read(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.usb.write(bytes)
    }

    fn lamps(&mut self, brightness: &[u8; MAX_BUTTONS]) {
        let phase = (self.ms % 8) as u8 * 32;
        for (pin, lamp) in self.lamps.iter_mut().zip(brightness) {
            pin.set_level(if *lamp > phase { Level::Low } else { Level::High });
        }
    }

    fn reboot(&mut self, _: RebootTarget) {
        // The kit's other chip flashes this one; there is no boot loader to go to.
        cortex::restart()
    }

    fn feed(&mut self) {
        pac::WDT.rr(0).write(|reload| reload.set_rr(pac::wdt::vals::Rr::RELOAD));
    }

    fn sleep(&mut self) {
        cortex::sleep();
    }
}

#[entry]
fn main() -> ! {
    static mut SHELL: Shell<FlashStore<Nvmc<'static>, HOLDS>> = Shell::new(Pad::idle(FlashStore::idle()));
    static mut MEMORY: hone_board::usb::Memory = hone_board::usb::Memory::new();
    let mut config = Config::default();
    // What USB asks for, and what keeps time.
    config.hfclk_source = HfclkSource::ExternalXtal;
    config.lfclk_source = LfclkSource::ExternalXtal;
    let p = embassy_nrf::init(config);
    let Ok(mut rtc) = Rtc::new_for_freq(p.RTC0, TICKS_PER_SECOND) else { cortex::restart() };
    rtc.enable_interrupt(Interrupt::Tick, true);
    rtc.enable();
    let pins: [Peri<'static, AnyPin>; BUTTONS] = [p.P0_11.into(), p.P0_12.into(), p.P0_24.into(), p.P0_25.into()];
    let lamps: [Peri<'static, AnyPin>; BUTTONS] = [p.P0_13.into(), p.P0_14.into(), p.P0_15.into(), p.P0_16.into()];
    let buttons = Buttons::new(pins.map(|pin| Input::new(pin, Pull::Up)), Wiring::ActiveLow);
    let lamps = lamps.map(|pin| Output::new(pin, Level::High, OutputDrive::Standard));
    let driver = usb::Driver::new(p.USBD, Irqs, HardwareVbusDetect::new(Irqs));
    let uid = uid();
    let hardware = start::Hardware {
        uid,
        buttons: BUTTONS as u8,
        leds: BUTTONS as u8,
        chance: Rng::new_blocking(p.RNG).blocking_next_u64().to_le_bytes(),
        reset_cause: reset_cause(),
    };
    start::boot(SHELL, Nvmc::new(p.NVMC), END - STORE..END, &PLATE, hardware);
    hone_board::usb::with(driver, MEMORY, "hone pad (nRF52840)", uid, |usb| {
        // The chip is reset when the loop has not come round for four seconds, asleep or not.
        pac::WDT.crv().write_value(4 * 32_768);
        pac::WDT.tasks_start().write_value(1);
        let mut board = Nrf52840 { buttons, lamps, usb, rtc, clock: Clock::new(TICKS_PER_SECOND, 24), ms: 0 };
        loop {
            SHELL.step(&mut board);
        }
    })
}

/// The chip's number.
fn uid() -> [u8; 8] {
    let [low, high] = [0, 1].map(|half| u64::from(pac::FICR.deviceid(half).read()));
    (low | high << 32).to_le_bytes()
}

/// Bits of the RESETREAS register: 0 pin, 1 watchdog, 2 software, 3 lock-up; none after power-up.
fn reset_cause() -> u8 {
    let cause = pac::POWER.resetreas().read();
    // A bit stays until it is written.
    pac::POWER.resetreas().write_value(cause);
    cause.0 as u8
}
