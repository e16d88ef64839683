//! A hone pad on an ESP32-C3. It was built and never run: no board was at hand, and no emulator here has one.
//!
//! Budget: flash 96 KiB, RAM 64 KiB with the stack.
//!
//! | what | where |
//! |---|---|
//! | buttons 0 to 3 | GPIO4, GPIO5, GPIO6, GPIO7, to ground, pull-ups inside |
//! | lamps 0 to 3 | GPIO0, GPIO1, GPIO3, GPIO10, through a resistor to ground |
//! | serial port | the chip's own USB (CDC-ACM; GPIO18, GPIO19) |
//!
//! Presses, settings and the pairing key are where the usual table of partitions has `nvs`: 24 KiB at 0x9000.
#![no_std]
#![no_main]

use core::cell::RefCell;
use core::panic::PanicInfo;
use critical_section::Mutex;
use esp_hal::gpio::{Input, InputConfig, Level, Output, OutputConfig, Pull};
use esp_hal::interrupt::wait_for_interrupt;
use esp_hal::rng::Rng;
use esp_hal::rtc_cntl::{Rtc, RwdtStage};
use esp_hal::system::{reset_reason, software_reset};
use esp_hal::time::{Duration, Instant};
use esp_hal::timer::PeriodicTimer;
use esp_hal::timer::systimer::SystemTimer;
use esp_hal::usb::usb_serial_jtag::UsbSerialJtag;
use esp_hal::{Blocking, Config, efuse, handler, main};
use esp_storage::FlashStorage;
use hone_board::{retained, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

hone_board::name_plate!("esp32c3");
esp_bootloader_esp_idf::esp_app_desc!();

/// Events that wait for a host.
const HOLDS: usize = 200;
/// Where in flash events, settings and the key are.
const STORE: core::ops::Range<u32> = 0x9000..0xf000;
const BUTTONS: usize = 4;

static TICK: Mutex<RefCell<Option<PeriodicTimer<'static, Blocking>>>> = Mutex::new(RefCell::new(None));

/// Wakes the shell.
#[handler]
fn tick() {
    critical_section::with(|held| {
        if let Some(timer) = TICK.borrow_ref_mut(held).as_mut() {
            timer.clear_interrupt();
        }
    });
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    retained::note_panic(info);
    software_reset()
}

struct Esp32c3 {
    buttons: Buttons<Input<'static>, BUTTONS>,
    lamps: [Output<'static>; BUTTONS],
    usb: UsbSerialJtag<'static, Blocking>,
    rtc: Rtc<'static>,
    ms: u32,
}

impl Board for Esp32c3 {
    fn now_ms(&mut self) -> u32 {
        self.ms = Instant::now().duration_since_epoch().as_millis() as u32;
        self.ms
    }

    fn buttons(&mut self) -> u16 {
        let Ok(buttons) = self.buttons.sample();
        buttons
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let mut n = 0;
        while n < bytes.len() {
            let Ok(byte) = self.usb.read_byte() else { break };
            bytes[n] = byte;
            n += 1;
        }
        n
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.iter().take_while(|byte| self.usb.write_byte_nb(**byte).is_ok()).count();
        // Sends what is less than a packet. Where nobody listens it stays, and the rest waits; greetings come anew.
        let _ = self.usb.flush_tx_nb();
        taken
    }

    fn lamps(&mut self, brightness: &[u8; MAX_BUTTONS]) {
        let phase = (self.ms % 8) as u8 * 32;
        for (pin, lamp) in self.lamps.iter_mut().zip(brightness) {
            pin.set_level(if *lamp > phase { Level::High } else { Level::Low });
        }
    }

    fn reboot(&mut self, _: RebootTarget) {
        // The chip's own USB is always ready to be flashed.
        software_reset()
    }

    fn feed(&mut self) {
        self.rtc.rwdt.feed();
    }

    fn sleep(&mut self) {
        wait_for_interrupt();
    }
}

#[main]
fn main() -> ! {
    let p = esp_hal::init(Config::default());
    let mut timer = PeriodicTimer::new(SystemTimer::new(p.SYSTIMER).alarm0);
    timer.set_interrupt_handler(tick);
    timer.listen();
    critical_section::with(|held| {
        // A period that fits: the alarm counts 26 bits of 16 MHz.
        let _ = timer.start(Duration::from_millis(1));
        TICK.borrow_ref_mut(held).replace(timer);
    });
    let input = InputConfig::default().with_pull(Pull::Up);
    let pins = [
        Input::new(p.GPIO4, input),
        Input::new(p.GPIO5, input),
        Input::new(p.GPIO6, input),
        Input::new(p.GPIO7, input),
    ];
    let output = OutputConfig::default();
    let lamps = [
        Output::new(p.GPIO0, Level::Low, output),
        Output::new(p.GPIO1, Level::Low, output),
        Output::new(p.GPIO3, Level::Low, output),
        Output::new(p.GPIO10, Level::Low, output),
    ];
    let mut shell = Shell::new(Pad::idle(FlashStore::<FlashStorage<'_>, HOLDS>::idle()));
    let random = Rng::new();
    let [a, b, c, d] = random.random().to_le_bytes();
    let [e, f, g, h] = random.random().to_le_bytes();
    let hardware = start::Hardware {
        uid: uid(),
        buttons: BUTTONS as u8,
        leds: BUTTONS as u8,
        chance: [a, b, c, d, e, f, g, h],
        // The chip's own codes: 1 power, 3 and 12 software, 15 brown-out, the others watchdogs.
        reset_cause: reset_reason().map_or(0, |reason| reason as u8),
    };
    start::boot(&mut shell, FlashStorage::new(p.FLASH), STORE, &PLATE, hardware);
    // The chip is reset when the loop has not come round for four seconds.
    let mut rtc = Rtc::new(p.RTC_TIMER);
    rtc.rwdt.set_timeout(RwdtStage::Stage0, Duration::from_secs(4));
    rtc.rwdt.enable();
    let (buttons, usb) = (Buttons::new(pins, Wiring::ActiveLow), UsbSerialJtag::new(p.USB_DEVICE));
    let mut board = Esp32c3 { buttons, lamps, usb, rtc, ms: 0 };
    loop {
        shell.step(&mut board);
    }
}

/// `C3` and the network address, which the maker burnt into the chip.
fn uid() -> [u8; 8] {
    let mut uid = *b"C3\0\0\0\0\0\0";
    uid[2..].copy_from_slice(efuse::base_mac_address().as_bytes());
    uid
}
