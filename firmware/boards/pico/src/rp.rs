//! The pad on a chip of the RP family: the same for Pico and Pico 2.
//!
//! There is no executor: the USB stack's futures are polled in each step of the shell, which comes at least every
//! millisecond.

use crate::{FLASH_SIZE, PLATE, TITLE, micros, reset_cause};
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use cortex_m::peripheral::{SCB, syst::SystClkSource};
use cortex_m_rt::{entry, exception};
use embassy_rp::clocks::{RoscRng, clk_sys_freq};
use embassy_rp::flash::{Blocking, ERASE_SIZE, Flash};
use embassy_rp::gpio::{Input, Level, Output, Pull};
use embassy_rp::peripherals::{FLASH, USB};
use embassy_rp::uart::{self, Uart};
use embassy_rp::{bind_interrupts, rom_data, usb};
use embassy_usb::class::cdc_acm::{CdcAcmClass, Receiver, Sender, State};
use embassy_usb::{Builder, Config};
use embedded_hal_nb::serial::{Read, Write};
use hone_board::{retained, start};
use hone_pad::pins::{Buttons, Wiring};
use hone_pad::{Board, FlashStore, MAX_BUTTONS, Pad, RebootTarget, Shell};

/// Events that wait for a host.
const HOLDS: usize = 200;
/// Bytes of flash for events, settings and the key, at its end.
const STORE: u32 = 16 * ERASE_SIZE as u32;
const BUTTONS: usize = 5;
/// Bytes of a USB packet.
const PACKET: usize = 64;

type Kept = Flash<'static, FLASH, Blocking, FLASH_SIZE>;
type UsbDriver<'a> = usb::Driver<'a, USB>;

bind_interrupts!(struct Irqs {
    USBCTRL_IRQ => usb::InterruptHandler<USB>;
});

/// Wakes the shell.
#[exception]
fn SysTick() {}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    retained::note_panic(info);
    SCB::sys_reset()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Uart,
    Usb,
}

struct Rp<'p, 'a, U> {
    buttons: Buttons<Input<'static>, BUTTONS>,
    lamps: [Output<'static>; BUTTONS],
    own: Output<'static>,
    uart: Uart<'static, uart::Blocking>,
    usb: Pin<&'p mut U>,
    sender: Sender<'a, UsbDriver<'a>>,
    receiver: Receiver<'a, UsbDriver<'a>>,
    packet: [u8; PACKET],
    /// What of `packet` is still to be read.
    unread: core::ops::Range<usize>,
    heard: Port,
    ms: u32,
    /// Microseconds that `ms` has counted.
    counted_us: u32,
}

impl<U: Future> Board for Rp<'_, '_, U> {
    fn now_ms(&mut self) -> u32 {
        // In steps of whole milliseconds, because the microseconds wrap after 71 minutes.
        let ms = micros().wrapping_sub(self.counted_us) / 1000;
        self.counted_us = self.counted_us.wrapping_add(ms * 1000);
        self.ms = self.ms.wrapping_add(ms);
        self.ms
    }

    fn buttons(&mut self) -> u16 {
        let Ok(buttons) = self.buttons.sample();
        buttons
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let _ = once(self.usb.as_mut());
        let mut n = 0;
        while n < bytes.len() {
            // A byte that overran or came damaged is missing; the frame's checksum says so.
            match self.uart.read() {
                Ok(byte) => bytes[n] = byte,
                Err(_) => break,
            }
            self.heard = Port::Uart;
            n += 1;
        }
        while n < bytes.len() {
            if self.unread.is_empty() {
                match once(pin!(self.receiver.read_packet(&mut self.packet))) {
                    Some(Ok(len)) => self.unread = 0..len,
                    _ => break,
                }
                self.heard = Port::Usb;
                continue;
            }
            bytes[n] = self.packet[self.unread.start];
            self.unread.start += 1;
            n += 1;
        }
        n
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.heard {
            Port::Uart => bytes.iter().take_while(|byte| self.uart.write(**byte).is_ok()).count(),
            Port::Usb if !self.sender.dtr() => {
                // Nobody has the port open. What is not read is lost, as on a cable.
                bytes.len()
            }
            // One byte short of a full packet, so that none needs an empty one after it.
            Port::Usb => {
                let part = &bytes[..bytes.len().min(PACKET - 1)];
                match once(pin!(self.sender.write_packet(part))) {
                    Some(Ok(())) => part.len(),
                    Some(Err(_)) => bytes.len(),
                    None => 0,
                }
            }
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
            RebootTarget::App => SCB::sys_reset(),
            RebootTarget::Bootloader => rom_data::reset_to_usb_boot(0, 0),
        }
    }

    fn sleep(&mut self) {
        cortex_m::asm::wfi();
    }
}

#[entry]
fn main() -> ! {
    static mut DESCRIPTORS: [[u8; 256]; 2] = [[0; 256]; 2];
    static mut CONTROL: [u8; 64] = [0; 64];
    let p = embassy_rp::init(embassy_rp::config::Config::default());
    let cause = reset_cause();
    if let Some(mut core) = cortex_m::Peripherals::take() {
        core.SYST.set_clock_source(SystClkSource::Core);
        core.SYST.set_reload(clk_sys_freq() / 1000 - 1);
        core.SYST.clear_current();
        core.SYST.enable_counter();
        core.SYST.enable_interrupt();
    }
    let mut flash = Kept::new_blocking(p.FLASH);
    let uid = identity(&mut flash);
    let mut digits = [0; 16];
    let mut config = Config::new(0x1209, 0x0001);
    config.manufacturer = Some("hone");
    config.product = Some(TITLE);
    config.serial_number = Some(hex(&uid, &mut digits));
    let mut state = State::new();
    let [configuration, bos] = DESCRIPTORS;
    let driver = UsbDriver::new(p.USB, Irqs);
    let mut builder = Builder::new(driver, config, configuration, bos, &mut [], CONTROL);
    let (sender, receiver) = CdcAcmClass::new(&mut builder, &mut state, PACKET as u16).split();
    let mut device = builder.build();
    let usb = pin!(device.run());
    let input = |pin| Input::new(pin, Pull::Up);
    let output = |pin| Output::new(pin, Level::Low);
    let pins: [embassy_rp::Peri<'static, embassy_rp::gpio::AnyPin>; BUTTONS] =
        [p.PIN_2.into(), p.PIN_3.into(), p.PIN_4.into(), p.PIN_5.into(), p.PIN_6.into()];
    let lamps: [embassy_rp::Peri<'static, embassy_rp::gpio::AnyPin>; BUTTONS] =
        [p.PIN_10.into(), p.PIN_11.into(), p.PIN_12.into(), p.PIN_13.into(), p.PIN_14.into()];
    let mut board = Rp {
        buttons: Buttons::new(pins.map(input), Wiring::ActiveLow),
        lamps: lamps.map(output),
        own: Output::new(p.PIN_25, Level::Low),
        uart: Uart::new_blocking(p.UART0, p.PIN_0, p.PIN_1, uart::Config::default()),
        usb,
        sender,
        receiver,
        packet: [0; PACKET],
        unread: 0..0,
        heard: Port::Uart,
        ms: 0,
        counted_us: 0,
    };
    let store = FlashStore::<Kept, HOLDS>::new(flash, FLASH_SIZE as u32 - STORE..FLASH_SIZE as u32);
    let mut shell = Shell::new(Pad::idle(store));
    let hardware = start::Hardware {
        uid,
        buttons: BUTTONS as u8,
        leds: BUTTONS as u8,
        chance: RoscRng.next_u64().to_le_bytes(),
        reset_cause: cause,
    };
    start::boot(&mut shell, &PLATE, hardware);
    loop {
        shell.step(&mut board);
    }
}

/// The flash chip's number, which its maker gave it.
fn identity(flash: &mut Kept) -> [u8; 8] {
    let mut uid = [0; 8];
    // A chip that does not tell has zeros; the host tells its pads apart by port then.
    let _ = flash.blocking_unique_id(&mut uid);
    uid
}

fn hex<'a>(bytes: &[u8; 8], digits: &'a mut [u8; 16]) -> &'a str {
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 0xf]) {
            *digit = b"0123456789abcdef"[usize::from(half)];
        }
    }
    core::str::from_utf8(digits).unwrap_or_default()
}

/// Polls a future once; whoever would be woken is polled again within a millisecond anyway.
fn once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
