//! A hone pad on an STM32 Blue Pill (STM32F103C8). It was built and never run: no board was at hand, and no emulator here
//! has its pins.
//!
//! Budget: flash 48 KiB, RAM 20 KiB with the stack: all there is.
//!
//! | what | where |
//! |---|---|
//! | buttons 0 to 4 | PB12, PB13, PB14, PB15, PA8, to ground, pull-ups inside |
//! | lamps 0 to 4 | PA0, PA1, PA2, PA3, PA4, through a resistor to ground |
//! | any lamp | PC13, the board's own LED, lit when low |
//! | serial port | USB (CDC-ACM) |
//!
//! Presses, settings and the pairing key are in the last 8 KiB of the 64 KiB flash.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use embassy_stm32::flash::{Blocking, Flash, MAX_ERASE_SIZE};
use embassy_stm32::gpio::{AnyPin, Input, Level, Output, Pull, Speed};
use embassy_stm32::pac::iwdg::vals::{Key, Pr};
use embassy_stm32::rcc::{APBPrescaler, Hse, HseMode, Pll, PllMul, PllPreDiv, PllSource, Sysclk};
use embassy_stm32::time::Hertz;
use embassy_stm32::{Config, Peri, bind_interrupts, pac, peripherals, usb};
use hone_board::clock::Clock;
use hone_board::{cortex, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

hone_board::name_plate!("stm32f103");

/// Events that wait for a host.
const HOLDS: usize = 100;
/// Bytes of flash for events, settings and the key, at its end.
const STORE: u32 = 8 * MAX_ERASE_SIZE as u32;
const END: u32 = 64 << 10;
const BUTTONS: usize = 5;
/// Nine times the crystal's.
const CORE_HERTZ: u32 = 72_000_000;
const TICKS_PER_SECOND: u32 = 2_000;

type Kept = Flash<'static, Blocking>;
type UsbPort<'u> = hone_board::usb::Port<'u, usb::Driver<'static, peripherals::USB>>;

bind_interrupts!(struct Irqs {
    USB_LP_CAN1_RX0 => usb::InterruptHandler<peripherals::USB>;
});

struct Stm32f103<'u> {
    buttons: Buttons<Input<'static>, BUTTONS>,
    lamps: [Output<'static>; BUTTONS],
    own: Output<'static>,
    usb: UsbPort<'u>,
    clock: Clock,
    ms: u32,
}

impl Board for Stm32f103<'_> {
    fn now_ms(&mut self) -> u32 {
        self.ms = self.clock.at(u32::from(pac::TIM2.cnt().read().cnt()));
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
            pin.set_level(if *lamp > phase { Level::High } else { Level::Low });
        }
        self.own.set_level(if brightness.iter().any(|lamp| *lamp > phase) { Level::Low } else { Level::High });
    }

    fn reboot(&mut self, _: RebootTarget) {
        // The chip's boot loader is reached by a jumper alone.
        cortex::restart()
    }

    fn feed(&mut self) {
        pac::IWDG.kr().write(|key| key.set_key(Key::RESET));
    }

    fn sleep(&mut self) {
        cortex::sleep();
    }
}

#[entry]
fn main() -> ! {
    static mut SHELL: Shell<FlashStore<Kept, HOLDS>> = Shell::new(Pad::idle(FlashStore::idle()));
    static mut MEMORY: hone_board::usb::Memory = hone_board::usb::Memory::new();
    let reset_cause = reset_cause();
    let mut config = Config::default();
    config.rcc.hse = Some(Hse { freq: Hertz(8_000_000), mode: HseMode::Oscillator });
    config.rcc.pll = Some(Pll { src: PllSource::HSE, prediv: PllPreDiv::DIV1, mul: PllMul::MUL9 });
    config.rcc.sys = Sysclk::PLL1_P;
    config.rcc.apb1_pre = APBPrescaler::DIV2;
    let mut p = embassy_stm32::init(config);
    if let Some(core) = cortex_m::Peripherals::take() {
        cortex::tick(core.SYST, CORE_HERTZ);
    }
    start_clock();
    // The board pulls the line up by itself; low for a while it looks unplugged, so that a host meets the pad anew.
    let unplugged = Output::new(p.PA12.reborrow(), Level::Low, Speed::Low);
    cortex_m::asm::delay(CORE_HERTZ / 100);
    drop(unplugged);
    let driver = usb::Driver::new(p.USB, Irqs, p.PA12, p.PA11);
    let pins: [Peri<'static, AnyPin>; BUTTONS] =
        [p.PB12.into(), p.PB13.into(), p.PB14.into(), p.PB15.into(), p.PA8.into()];
    let lamps: [Peri<'static, AnyPin>; BUTTONS] =
        [p.PA0.into(), p.PA1.into(), p.PA2.into(), p.PA3.into(), p.PA4.into()];
    let buttons = Buttons::new(pins.map(|pin| Input::new(pin, Pull::Up)), Wiring::ActiveLow);
    let lamps = lamps.map(|pin| Output::new(pin, Level::Low, Speed::Low));
    let own = Output::new(p.PC13, Level::High, Speed::Low);
    let uid = uid();
    // There is no source of chance.
    let chance = [0; 8];
    let hardware = start::Hardware { uid, buttons: BUTTONS as u8, leds: BUTTONS as u8, chance, reset_cause };
    start::boot(SHELL, Flash::new_blocking(p.FLASH), END - STORE..END, &PLATE, hardware);
    hone_board::usb::with(driver, MEMORY, "hone pad (STM32F103)", uid, |usb| {
        // The chip is reset when the loop has not come round for six seconds: 4095 times 64 ticks of about 40 kHz.
        pac::IWDG.kr().write(|key| key.set_key(Key::START));
        pac::IWDG.kr().write(|key| key.set_key(Key::ENABLE));
        pac::IWDG.pr().write(|by| by.set_pr(Pr::DIVIDE_BY64));
        pac::IWDG.rlr().write(|from| from.set_rl(0xfff));
        let clock = Clock::new(TICKS_PER_SECOND, 16);
        let mut board = Stm32f103 { buttons, lamps, own, usb, clock, ms: 0 };
        loop {
            SHELL.step(&mut board);
        }
    })
}

/// Lets timer 2 count for ever: it goes on while the core waits for flash.
fn start_clock() {
    pac::RCC.apb1enr().modify(|enable| enable.set_tim2en(true));
    let timer = pac::TIM2;
    timer.psc().write_value((CORE_HERTZ / TICKS_PER_SECOND - 1) as u16);
    timer.egr().write(|event| event.set_ug(true));
    timer.cr1().modify(|control| control.set_cen(true));
}

/// The chip's number of 96 bits, folded.
fn uid() -> [u8; 8] {
    let number = embassy_stm32::uid::uid();
    let mut uid = [0; 8];
    for (at, byte) in number.iter().enumerate() {
        uid[at % 8] ^= byte;
    }
    uid
}

/// Bits: 0 pin, 1 power, 2 software, 3 a watchdog, 4 low power.
fn reset_cause() -> u8 {
    let cause = pac::RCC.csr().read();
    pac::RCC.csr().modify(|clear| clear.set_rmvf(true));
    u8::from(cause.pinrstf())
        | u8::from(cause.porrstf()) << 1
        | u8::from(cause.sftrstf()) << 2
        | u8::from(cause.iwdgrstf() || cause.wwdgrstf()) << 3
        | u8::from(cause.lpwrrstf()) << 4
}
