//! Registers of the LM3S6965, as its data sheet numbers them (Stellaris LM3S6965, DS-LM3S6965).

use core::convert::Infallible;
use embedded_hal::digital::{ErrorType, InputPin};
use hone_pad::warm::Memory;

const SYSTEM_CONTROL: u32 = 0x400f_e000;
const RESC: u32 = SYSTEM_CONTROL + 0x5c;
const RCGC0: u32 = SYSTEM_CONTROL + 0x100;
const RCGC1: u32 = SYSTEM_CONTROL + 0x104;
const RCGC2: u32 = SYSTEM_CONTROL + 0x108;
const USER0: u32 = SYSTEM_CONTROL + 0x1e0;
const USER1: u32 = SYSTEM_CONTROL + 0x1e4;

const WATCHDOG: u32 = 0x4000_0000;
const WATCHDOG_LOAD: u32 = WATCHDOG;
const WATCHDOG_CTL: u32 = WATCHDOG + 0x8;
const WATCHDOG_ICR: u32 = WATCHDOG + 0xc;

const PORT_A: u32 = 0x4000_4000;
const PORT_E: u32 = 0x4002_4000;
const PORT_F: u32 = 0x4002_5000;
const DIR: u32 = 0x400;
const AFSEL: u32 = 0x420;
const PUR: u32 = 0x510;
const DEN: u32 = 0x51c;

const UART0: u32 = 0x4000_c000;
const DR: u32 = UART0;
const FR: u32 = UART0 + 0x18;
const IBRD: u32 = UART0 + 0x24;
const FBRD: u32 = UART0 + 0x28;
const LCRH: u32 = UART0 + 0x2c;
const CTL: u32 = UART0 + 0x30;
const RX_EMPTY: u32 = 1 << 4;
const TX_FULL: u32 = 1 << 5;

/// An input.
pub struct Pin {
    /// Address that reads this pin alone: the port's data register is masked by address bits 9..2.
    address: u32,
}

impl ErrorType for Pin {
    type Error = Infallible;
}

impl InputPin for Pin {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(read(self.address) != 0)
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        self.is_high().map(|high| !high)
    }
}

/// Powers and sets up ports and UART. Returns the buttons.
pub fn start() -> [Pin; 5] {
    write(RCGC1, read(RCGC1) | 1);
    write(RCGC2, read(RCGC2) | 1 << 0 | 1 << 4 | 1 << 5);
    // Three clocks until a block that was just powered may be touched.
    cortex_m::asm::delay(8);
    write(PORT_A + AFSEL, read(PORT_A + AFSEL) | 0b11);
    write(PORT_A + DEN, read(PORT_A + DEN) | 0b11);
    write(PORT_E + DIR, 0);
    write(PORT_E + PUR, 0b1111);
    write(PORT_E + DEN, 0b1111);
    write(PORT_F + DIR, 0b01);
    write(PORT_F + PUR, 0b10);
    write(PORT_F + DEN, 0b11);
    write(CTL, 0);
    // 12 MHz / (16 × 115,200) = 6.51 = 6 + 33/64.
    write(IBRD, 6);
    write(FBRD, 33);
    // 8 bits, FIFOs on.
    write(LCRH, 0x70);
    // Enabled, both ways.
    write(CTL, 0x301);
    let pin = |port, bit: u32| Pin { address: port + (1 << bit << 2) };
    [pin(PORT_E, 0), pin(PORT_E, 1), pin(PORT_E, 2), pin(PORT_E, 3), pin(PORT_F, 1)]
}

/// Starts the watchdog: it resets the chip when it was not fed for four seconds, twice what it counts.
pub fn watch(hertz: u32) {
    write(RCGC0, read(RCGC0) | 1 << 3);
    cortex_m::asm::delay(8);
    write(WATCHDOG_LOAD, 2 * hertz);
    // Counts, and resets the second time that it comes to nought.
    write(WATCHDOG_CTL, 0b11);
}

/// Feeds the watchdog.
pub fn feed() {
    write(WATCHDOG_ICR, 1);
}

/// `LM` and the Ethernet address, which the maker puts into the user registers.
pub fn uid() -> [u8; 8] {
    let [a, b, c, _] = read(USER0).to_le_bytes();
    let [d, e, f, _] = read(USER1).to_le_bytes();
    [b'L', b'M', a, b, c, d, e, f]
}

/// Of the causes of a reset, the power.
pub const POWER: u8 = 1 << 1;

/// Bits of the RESC register: 0 pin, 1 power, 2 brown-out, 3 watchdog, 4 software.
pub fn reset_cause() -> u8 {
    let cause = read(RESC);
    // A bit stays until it is cleared.
    write(RESC, 0);
    cause as u8
}

/// Memory for the queue, which start-up code leaves alone. To be called once.
pub fn warm() -> &'static mut Memory<32> {
    #[unsafe(link_section = ".uninit.hone_warm")]
    static mut WARM: Memory<32> = Memory::ZEROS;
    // SAFETY: nothing else names it, and it is asked for once. Any bytes are a value of its type; the compiler is not to
    // believe that they are those above.
    unsafe { &mut *core::hint::black_box(&raw mut WARM) }
}

pub fn lamp(on: bool) {
    write(PORT_F + (1 << 2), u32::from(on));
}

/// Takes what has arrived.
pub fn receive(bytes: &mut [u8]) -> usize {
    let mut n = 0;
    while n < bytes.len() && read(FR) & RX_EMPTY == 0 {
        bytes[n] = read(DR) as u8;
        n += 1;
    }
    n
}

/// Gives the UART what fits. Returns how many bytes that was.
pub fn send(bytes: &[u8]) -> usize {
    let mut n = 0;
    while n < bytes.len() && read(FR) & TX_FULL == 0 {
        write(DR, u32::from(bytes[n]));
        n += 1;
    }
    n
}

fn read(address: u32) -> u32 {
    // SAFETY: the addresses in this file are registers of this chip, readable as words.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: u32, value: u32) {
    // SAFETY: the addresses in this file are registers of this chip, and none of them gives the chip memory to write to.
    unsafe { (address as *mut u32).write_volatile(value) }
}

unsafe extern "C" {
    fn DefaultHandler();
}

/// The chip's 44 interrupts, none of them enabled: the clock's is the core's own. Without a table of the board's the image
/// would carry one for the 240 that a core may have.
#[unsafe(link_section = ".vector_table.interrupts")]
#[unsafe(no_mangle)]
static __INTERRUPTS: [unsafe extern "C" fn(); 44] = [DefaultHandler; 44];
