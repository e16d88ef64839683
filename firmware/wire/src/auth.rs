//! Who is speaking: session keys and frame tags, both SipHash-2-4.
//!
//! SipHash was made as a message authentication code for short inputs; a frame is at most 240 bytes. A pairing key is
//! 128 bits, a tag 64. Both greetings go into the keys byte for byte, so nothing in them (identity, epoch, numbering,
//! version range, nonces) can be changed on the way without every later tag failing.

use core::hash::Hasher;
use siphasher::sip::SipHasher24;

/// A 128-bit key: the pairing key of a pad, or one direction of a session.
pub type Key = [u8; 16];

/// Length of a frame's tag in bytes.
pub const TAG_LEN: usize = 8;

/// The keys of one session, one for each direction, so that a frame cannot be reflected to its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionKeys {
    /// Tags frames from the pad.
    pub pad_to_host: Key,
    /// Tags frames from the host.
    pub host_to_pad: Key,
}

impl core::fmt::Debug for SessionKeys {
    // Keys do not belong in logs.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SessionKeys(..)")
    }
}

impl SessionKeys {
    /// Derives the session keys from the pairing key and the two greetings **as they were on the wire**.
    ///
    /// `host_hello` and `pad_hello` are the whole bodies of the `HostHello` and of the `PadHello` that answers it,
    /// including bytes a later version may have appended: both sides must hash what was sent, not what was understood.
    #[must_use]
    pub fn derive(pairing: &Key, host_hello: &[u8], pad_hello: &[u8]) -> Self {
        Self {
            pad_to_host: direction_key(pairing, 0, host_hello, pad_hello),
            host_to_pad: direction_key(pairing, 1, host_hello, pad_hello),
        }
    }
}

/// The tag over `data`, which is everything in the frame before the tag.
#[must_use]
pub fn tag(key: &Key, data: &[u8]) -> [u8; TAG_LEN] {
    siphash(key, &[data]).to_le_bytes()
}

/// Whether two byte strings are equal, in a time that depends on their lengths alone.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    // The compiler must not turn the fold into an early exit.
    a.len() == b.len() && core::hint::black_box(differing) == 0
}

/// Six decimal digits (0 to 999,999) that both sides of a pairing show, for a person to compare.
#[must_use]
pub fn check_code(pairing: &Key) -> u32 {
    let digest = u64::from_le_bytes(tag(pairing, b"hone pairing check"));
    (digest % 1_000_000) as u32
}

/// Two calls of the pseudo-random function make 128 bits; lengths are hashed first, so that bytes cannot move from one
/// greeting into the other.
fn direction_key(pairing: &Key, direction: u8, host_hello: &[u8], pad_hello: &[u8]) -> Key {
    let mut key = [0; 16];
    for (half, out) in key.chunks_exact_mut(8).enumerate() {
        let lengths = [host_hello.len() as u32, pad_hello.len() as u32].map(u32::to_le_bytes);
        let parts = [&[direction, half as u8], &lengths[0][..], &lengths[1], host_hello, pad_hello];
        out.copy_from_slice(&siphash(pairing, &parts).to_le_bytes());
    }
    key
}

/// SipHash-2-4 of the parts, one after the other. Once in an image: it is a kilobyte.
#[inline(never)]
fn siphash(key: &Key, parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(key);
    for part in parts {
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_siphash_2_4_as_its_authors_published_it() {
        // Vector of the SipHash paper, appendix A: key 00..0f, input 00..0e.
        let key: Key = core::array::from_fn(|i| i as u8);
        let input: [u8; 15] = core::array::from_fn(|i| i as u8);
        assert_eq!(u64::from_le_bytes(tag(&key, &input)), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn each_byte_of_either_greeting_changes_both_keys() {
        let (host, pad) = ([1u8; 10], [2u8; 54]);
        let base = SessionKeys::derive(&[3; 16], &host, &pad);
        assert_ne!(base.pad_to_host, base.host_to_pad);
        for i in 0..host.len() + pad.len() {
            let (mut host, mut pad) = (host, pad);
            if i < host.len() {
                host[i] ^= 1
            } else {
                pad[i - 10] ^= 1
            }
            let other = SessionKeys::derive(&[3; 16], &host, &pad);
            assert_ne!(base.pad_to_host, other.pad_to_host, "byte {i}");
            assert_ne!(base.host_to_pad, other.host_to_pad, "byte {i}");
        }
        assert_ne!(base, SessionKeys::derive(&[3; 16], &[1; 11], &[2; 53]), "bytes may not move between the greetings");
    }

    #[test]
    fn comparison_sees_each_bit_and_the_length() {
        assert!(same(&[1, 2, 3], &[1, 2, 3]));
        assert!(!same(&[1, 2, 3], &[1, 2]));
        for bit in 0..64 {
            let mut other = [7u8; 8];
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!same(&[7; 8], &other));
        }
    }

    #[test]
    fn check_codes_have_six_digits_and_depend_on_the_key() {
        assert!(check_code(&[1; 16]) < 1_000_000);
        assert_ne!(check_code(&[1; 16]), check_code(&[2; 16]));
    }
}
