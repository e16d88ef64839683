//! A hone pad on a Raspberry Pi Pico.
//!
//! Budget: flash 48 KiB, RAM 32 KiB with the stack.
//!
//! | what | where |
//! |---|---|
//! | buttons 0 to 4 | GP2, GP3, GP4, GP5, GP6, to ground, pull-ups inside |
//! | knob 0 | GP7, GP8: an encoder's contacts to ground, pull-ups inside |
//! | lamps 0 to 4 | GP10, GP11, GP12, GP13, GP14, through a resistor to ground |
//! | any lamp | GP25, the board's own LED |
//! | serial port | USB (CDC-ACM), or UART0 (GP0 out, GP1 in), 115200 8N1 |
//!
//! Answers go to the port that the last whole frame came from. Presses, settings and the pairing key are in the last 64 KiB
//! of the 2 MiB flash. `Reboot{bootloader}` shows the drive that takes UF2 files, as holding BOOTSEL at power-up does.
#![no_std]
#![no_main]

mod rp;

use embassy_rp::pac;

hone_board::name_plate!("pico");

/// Bytes of flash on the board.
const FLASH_SIZE: usize = 2 << 20;
const TITLE: &str = "hone pad (Pico)";

/// Microseconds since boot, wrapping.
fn micros() -> u32 {
    pac::TIMER.timerawl().read()
}

/// The flash chip's number, which its maker gave it.
fn uid(flash: &mut rp::Kept) -> [u8; 8] {
    let mut uid = [0; 8];
    // A chip that does not tell has zeros; the host tells its pads apart by port then.
    let _ = flash.blocking_unique_id(&mut uid);
    uid
}

/// Bits: 0 power, 1 RUN pin, 2 debugger, 3 watchdog, 4 none of these: software.
fn reset_cause() -> u8 {
    let chip = pac::VREG_AND_CHIP_RESET.chip_reset().read();
    let watchdog = pac::WATCHDOG.reason().read();
    let known = u8::from(chip.had_por())
        | u8::from(chip.had_run()) << 1
        | u8::from(chip.had_psm_restart()) << 2
        | u8::from(watchdog.timer() || watchdog.force()) << 3;
    if known == 0 { 1 << 4 } else { known }
}
