//! Registers of the nRF51822, as its reference manual numbers them (nRF51 Series Reference Manual 3.0).

use core::convert::Infallible;
use embedded_hal::digital;
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

const POWER: u32 = 0x4000_0000;
const RESETREAS: u32 = POWER + 0x400;

const UART: u32 = 0x4000_2000;
const STARTRX: u32 = UART;
const STARTTX: u32 = UART + 0x8;
const RXDRDY: u32 = UART + 0x108;
const TXDRDY: u32 = UART + 0x11c;
const UART_INTENSET: u32 = UART + 0x304;
const UART_ENABLE: u32 = UART + 0x500;
const PSELTXD: u32 = UART + 0x50c;
const PSELRXD: u32 = UART + 0x514;
const RXD: u32 = UART + 0x518;
const TXD: u32 = UART + 0x51c;
const BAUDRATE: u32 = UART + 0x524;
const BAUD_115200: u32 = 0x01d7_e000;
const TX_PIN: u32 = 24;
const RX_PIN: u32 = 25;

const TIMER: u32 = 0x4000_8000;
const TIMER_START: u32 = TIMER;
/// Copies the counter into compare register 0.
const CAPTURE_0: u32 = TIMER + 0x40;
const COMPARE_1: u32 = TIMER + 0x144;
const TIMER_INTENSET: u32 = TIMER + 0x304;
const BITMODE: u32 = TIMER + 0x508;
const PRESCALER: u32 = TIMER + 0x510;
const CC_0: u32 = TIMER + 0x540;
const CC_1: u32 = TIMER + 0x544;

const RNG: u32 = 0x4000_d000;
const RNG_START: u32 = RNG;
const VALRDY: u32 = RNG + 0x100;
const VALUE: u32 = RNG + 0x508;

const WDT: u32 = 0x4001_0000;
const WDT_START: u32 = WDT;
const WDT_TICKS: u32 = WDT + 0x504;
const WDT_RELOAD_0: u32 = WDT + 0x600;

const NVMC: u32 = 0x4001_e000;
const READY: u32 = NVMC + 0x400;
const CONFIG: u32 = NVMC + 0x504;
const ERASEPAGE: u32 = NVMC + 0x508;
const WRITES: u32 = 1;
const ERASES: u32 = 2;

const FICR: u32 = 0x1000_0000;
const DEVICEID: u32 = FICR + 0x60;

const GPIO: u32 = 0x5000_0000;
const OUTSET: u32 = GPIO + 0x508;
const OUTCLR: u32 = GPIO + 0x50c;
const IN: u32 = GPIO + 0x510;
const DIRSET: u32 = GPIO + 0x518;
const PIN_CNF: u32 = GPIO + 0x700;
const BUTTON_PINS: [u32; 2] = [17, 26];
/// The first row of the matrix, and two of its columns.
const ROW: u32 = 13;
const COLUMNS: [u32; 2] = [4, 5];

const TIMER_IRQ: usize = 8;
const UART_IRQ: usize = 2;

/// An input.
pub struct Pin(u32);

impl digital::ErrorType for Pin {
    type Error = Infallible;
}

impl digital::InputPin for Pin {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(read(IN) & 1 << self.0 != 0)
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        self.is_high().map(|high| !high)
    }
}

/// Sets up pins, UART and clock. Returns the buttons.
pub fn start(nvic: &mut cortex_m::peripheral::NVIC) -> [Pin; 2] {
    // The board has pull-ups; the input buffers are to be connected, which is all zeros.
    BUTTON_PINS.iter().for_each(|pin| write(PIN_CNF + 4 * pin, 0));
    write(DIRSET, 1 << ROW | 1 << COLUMNS[0] | 1 << COLUMNS[1] | 1 << TX_PIN);
    write(OUTSET, 1 << ROW | 1 << TX_PIN);
    lamps([false; 2]);
    write(PIN_CNF + 4 * RX_PIN, 0);
    write(PSELTXD, TX_PIN);
    write(PSELRXD, RX_PIN);
    write(BAUDRATE, BAUD_115200);
    write(UART_ENABLE, 4);
    write(STARTRX, 1);
    write(STARTTX, 1);
    // The first byte does not wait for one before it.
    write(TXDRDY, 1);
    // 16 MHz / 2⁴; 32 bits wide.
    write(PRESCALER, 4);
    write(BITMODE, 3);
    write(TIMER_START, 1);
    again();
    // Bytes are fetched as they come, for there are but six places for them.
    write(UART_INTENSET, 1 << 2);
    write(TIMER_INTENSET, 1 << 17);
    for irq in [TIMER_IRQ, UART_IRQ] {
        // SAFETY: both interrupts have a handler, and nothing is shared with them but registers.
        unsafe { nvic.iser[0].write(1 << irq) };
    }
    BUTTON_PINS.map(Pin)
}

/// Microseconds since boot, wrapping.
pub fn micros() -> u32 {
    write(CAPTURE_0, 1);
    read(CC_0)
}

/// The next tick, a millisecond from now: one from the last could have passed while flash was written.
fn again() {
    write(CC_1, micros().wrapping_add(1000));
}

extern "C" fn ticked() {
    write(COMPARE_1, 0);
    again();
}

/// Wakes the shell. The byte stays where it is, and with it the event, until it is read.
extern "C" fn received() {
    write(RXDRDY + 0x200, 1 << 2);
}

/// The chip's number.
pub fn uid() -> [u8; 8] {
    (u64::from(read(DEVICEID)) | u64::from(read(DEVICEID + 4)) << 32).to_le_bytes()
}

/// Eight bytes of noise.
pub fn chance() -> [u8; 8] {
    write(RNG_START, 1);
    [(); 8].map(|()| {
        write(VALRDY, 0);
        while read(VALRDY) == 0 {}
        read(VALUE) as u8
    })
}

/// Bits of the RESETREAS register: 0 pin, 1 watchdog, 2 software, 3 lock-up; none after power-up.
pub fn reset_cause() -> u8 {
    let cause = read(RESETREAS) as u8;
    write(RESETREAS, u32::MAX);
    cause
}

pub fn lamps(lit: [bool; 2]) {
    for (column, lit) in COLUMNS.into_iter().zip(lit) {
        write(if lit { OUTCLR } else { OUTSET }, 1 << column);
    }
}

/// Starts the watchdog: it resets the chip when it was not fed for four seconds, asleep or not. QEMU has none.
pub fn watch() {
    write(WDT_TICKS, 4 * 32_768);
    write(WDT_START, 1);
}

/// Feeds the watchdog, by the word that its manual names.
pub fn feed() {
    write(WDT_RELOAD_0, 0x6e52_4635);
}

/// Takes what has arrived.
pub fn receive(bytes: &mut [u8]) -> usize {
    let mut n = 0;
    while n < bytes.len() && read(RXDRDY) != 0 {
        write(RXDRDY, 0);
        bytes[n] = read(RXD) as u8;
        n += 1;
    }
    write(UART_INTENSET, 1 << 2);
    n
}

/// Gives the port what it takes. Returns how many bytes that was.
pub fn send(bytes: &[u8]) -> usize {
    let mut n = 0;
    while n < bytes.len() && read(TXDRDY) != 0 {
        write(TXDRDY, 0);
        write(TXD, u32::from(bytes[n]));
        n += 1;
    }
    n
}

/// The chip's flash, from address 0.
pub struct Flash;

/// Bytes of it.
pub const FLASH_SIZE: usize = 256 << 10;

#[derive(Debug)]
pub struct FlashError(NorFlashErrorKind);

impl NorFlashError for FlashError {
    fn kind(&self) -> NorFlashErrorKind {
        self.0
    }
}

impl ErrorType for Flash {
    type Error = FlashError;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FlashError> {
        check_read(self, offset, bytes.len()).map_err(FlashError)?;
        for (address, byte) in (offset..).zip(bytes) {
            // SAFETY: an address in flash, as was checked. Volatile because flash changes behind the compiler's back.
            *byte = unsafe { (address as *const u8).read_volatile() };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        FLASH_SIZE
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = 1024;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashError> {
        check_erase(self, from, to).map_err(FlashError)?;
        write(CONFIG, ERASES);
        for page in (from..to).step_by(Self::ERASE_SIZE) {
            write(ERASEPAGE, page);
            while read(READY) == 0 {}
        }
        write(CONFIG, 0);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FlashError> {
        check_write(self, offset, bytes.len()).map_err(FlashError)?;
        write(CONFIG, WRITES);
        for (address, word) in (offset..).step_by(4).zip(bytes.chunks_exact(4)) {
            write(address, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            while read(READY) == 0 {}
        }
        write(CONFIG, 0);
        Ok(())
    }
}

fn read(address: u32) -> u32 {
    // SAFETY: the addresses in this file are registers of this chip, and reading them changes nothing in memory.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: u32, value: u32) {
    // SAFETY: the addresses in this file are registers of this chip, none of which gives it memory to write to, and words
    // of flash beyond the program, which nothing refers to.
    unsafe { (address as *mut u32).write_volatile(value) }
}

unsafe extern "C" {
    fn DefaultHandler();
}

#[derive(Clone, Copy)]
pub union Vector {
    default: unsafe extern "C" fn(),
    handler: extern "C" fn(),
}

/// The chip's 32 interrupts.
#[unsafe(link_section = ".vector_table.interrupts")]
#[unsafe(no_mangle)]
static __INTERRUPTS: [Vector; 32] = {
    let mut table = [Vector { default: DefaultHandler }; 32];
    table[TIMER_IRQ] = Vector { handler: ticked };
    table[UART_IRQ] = Vector { handler: received };
    table
};
