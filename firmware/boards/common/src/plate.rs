//! The name plate of an image: 32 bytes that say what it is and, once stamped, the digest of the whole.
//!
//! ```text
//! 00                08                      14        17 18               20
//! ├─ "HONEPAD\0" ───┼─ board, NUL-filled ───┼ version ┼w┼─ digest of image ┤
//! ```
//! `version` is major, minor, patch; `w` the wire's major version. The digest is SipHash-2-4 with the key
//! `hone firmware id`, little endian, over the bytes from the lowest to the highest load address in flash, with the
//! digest itself zero. Gaps of up to 64 KiB are `ff`; longer ones, between two memories, are left out. `cargo xtask boards` stamps it after linking; the pad says it in its greeting, so a
//! host that knows the image knows whether it is the one that runs.

use hone_wire::WIRE_MAJOR;

/// What a plate begins with.
pub const MAGIC: [u8; 8] = *b"HONEPAD\0";

/// A name plate. One static of this type, made by [`name_plate!`](crate::name_plate), is in each image.
#[repr(C)]
#[derive(Debug)]
pub struct Plate {
    magic: [u8; 8],
    board: [u8; 12],
    version: [u8; 3],
    wire: u8,
    digest: [u8; 8],
}

impl Plate {
    /// The unstamped plate of a board.
    ///
    /// # Panics
    /// When compiled, if the name is longer than 12 bytes.
    #[must_use]
    pub const fn new(board: &str, version: [u8; 3]) -> Self {
        let mut padded = [0; 12];
        let mut i = 0;
        while i < board.len() {
            padded[i] = board.as_bytes()[i];
            i += 1;
        }
        Self { magic: MAGIC, board: padded, version, wire: WIRE_MAJOR, digest: [0; 8] }
    }

    /// Version of the firmware: major, minor, patch.
    #[must_use]
    pub fn version(&self) -> [u8; 3] {
        self.version
    }

    /// The digest as stamped; zero when it was not.
    #[must_use]
    pub fn digest(&self) -> [u8; 8] {
        // SAFETY: a reference is valid for reads. Volatile because the bytes in flash are not those the compiler saw.
        unsafe { (&raw const self.digest).read_volatile() }
    }
}

/// Puts a [`Plate`] named `PLATE` into the image: `name_plate!("pico")`. The version is the package's.
#[macro_export]
macro_rules! name_plate {
    ($board:literal) => {
        #[used]
        static PLATE: $crate::plate::Plate = $crate::plate::Plate::new(
            $board,
            [
                $crate::plate::number(env!("CARGO_PKG_VERSION_MAJOR")),
                $crate::plate::number(env!("CARGO_PKG_VERSION_MINOR")),
                $crate::plate::number(env!("CARGO_PKG_VERSION_PATCH")),
            ],
        );
    };
}

/// A decimal number below 256, when compiled.
///
/// # Panics
/// When it is not one.
#[must_use]
pub const fn number(text: &str) -> u8 {
    let digits = text.as_bytes();
    let mut value = 0u8;
    let mut i = 0;
    while i < digits.len() {
        assert!(digits[i].is_ascii_digit(), "a decimal number");
        value = value * 10 + (digits[i] - b'0');
        i += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plate_is_these_32_bytes() {
        let plate = Plate::new("lm3s6965", [1, 2, 3]);
        assert_eq!(size_of::<Plate>(), 32);
        // SAFETY: `repr(C)` of bytes alone: no padding.
        let bytes: [u8; 32] = unsafe { core::mem::transmute(plate) };
        assert_eq!(&bytes[..24], b"HONEPAD\0lm3s6965\0\0\0\0\x01\x02\x03\x01");
        assert_eq!(bytes[24..], [0; 8]);
    }

    #[test]
    fn numbers_are_read_in_decimal() {
        assert_eq!([number("0"), number("7"), number("255")], [0, 7, 255]);
    }
}
