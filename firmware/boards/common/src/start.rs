//! How every board begins.

use crate::plate::Plate;
use crate::retained::{self, Boot, Crash};
use core::ops::Range;
use embedded_storage::nor_flash::NorFlash;
use hone_pad::link::Identity;
use hone_pad::{FlashStore, Pad, PadConfig, Shell, Store};
use hone_wire::auth::Key;
use hone_wire::message::Diagnostic;

/// What only the board knows.
#[derive(Debug)]
pub struct Hardware {
    /// Unique and fixed.
    pub uid: [u8; 8],
    /// Number of buttons.
    pub buttons: u8,
    /// Number of lamps.
    pub leds: u8,
    /// Random; where there is no source of chance, zeros: the boot count, which the flash keeps, makes it differ.
    pub chance: [u8; 8],
    /// Why the board restarted, in its own codes.
    pub reset_cause: u8,
}

/// Mounts the store in `range` of `flash`, tells the pad who it is, and has it report what the last boot ended by.
pub fn boot<F: NorFlash, const N: usize>(
    shell: &mut Shell<FlashStore<F, N>>,
    flash: F,
    range: Range<u32>,
    plate: &Plate,
    hardware: Hardware,
) {
    let before = retained::boot();
    let store = shell.pad_mut().store_mut();
    // A flash that fails makes a pad that counts each press as lost and says so: better than one that is silent.
    let _ = store.mount(flash, range);
    let (boot, key) = (store.boot(), store.pairing_key());
    introduce(shell.pad_mut(), boot, key, before, plate, hardware);
}

/// Tells a pad whose store is mounted who it is, and has it report what the last boot ended by.
///
/// `boot` is the count that its events carry, `before` what retained memory said.
pub fn introduce<S: Store>(
    pad: &mut Pad<S>,
    boot: u16,
    pairing_key: Option<Key>,
    before: Boot,
    plate: &Plate,
    hardware: Hardware,
) {
    let mut nonce = hardware.chance;
    for (byte, count) in nonce.iter_mut().zip(boot.to_le_bytes().into_iter().chain(before.number.to_le_bytes())) {
        *byte ^= count;
    }
    for (byte, uid) in nonce.iter_mut().zip(hardware.uid) {
        *byte ^= uid;
    }
    pad.boot(PadConfig {
        identity: Identity {
            uid: hardware.uid,
            boot,
            buttons: hardware.buttons,
            leds: hardware.leds,
            firmware: plate.version(),
            firmware_hash: plate.digest(),
        },
        pairing_key,
        nonce,
        reset_cause: hardware.reset_cause,
        ..PadConfig::default()
    });
    match before.crash {
        None => {}
        Some(Crash::Panic { line, file }) => {
            pad.report_crash(Diagnostic::Panic, line, file, 0);
        }
        Some(Crash::Fault { address }) => {
            pad.report_crash(Diagnostic::Fault, 0, address, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_pad::RamStore;

    #[test]
    fn what_the_last_boot_ended_by_is_the_first_event_of_this_one() {
        for (crash, code, line, at) in [
            (Crash::Panic { line: 71, file: 9 }, Diagnostic::Panic, 71, 9),
            (Crash::Fault { address: 0x1000_0abc }, Diagnostic::Fault, 0, 0x1000_0abc),
        ] {
            let mut pad = Pad::idle(RamStore::<4>::new());
            let hardware = Hardware { uid: [1; 8], buttons: 2, leds: 1, chance: [0; 8], reset_cause: 0 };
            let before = Boot { number: 3, crash: Some(crash) };
            introduce(&mut pad, 3, None, before, &Plate::new("test", [0, 1, 0]), hardware);
            let event = pad.store().event(1).unwrap();
            assert_eq!((event.boot, event.value, event.dur_10ms, event.prompt), (3, code as u16, line, at));
        }
    }
}
