//! How every board with a [`FlashStore`] begins.

use crate::plate::Plate;
use crate::retained;
use core::ops::Range;
use embedded_storage::nor_flash::NorFlash;
use hone_pad::link::Identity;
use hone_pad::{FlashStore, PadConfig, Shell};

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

/// Mounts the store in `range` of `flash`, tells the pad who it is, and reports the panic by which the last boot may have
/// ended.
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
    let (boot, pairing_key) = (store.boot(), store.pairing_key());
    let mut nonce = hardware.chance;
    for (byte, count) in nonce.iter_mut().zip(boot.to_le_bytes().into_iter().chain(before.number.to_le_bytes())) {
        *byte ^= count;
    }
    for (byte, uid) in nonce.iter_mut().zip(hardware.uid) {
        *byte ^= uid;
    }
    let pad = shell.pad_mut();
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
    if let Some(note) = before.panic {
        pad.report_panic(note.line, note.file, 0);
    }
}
