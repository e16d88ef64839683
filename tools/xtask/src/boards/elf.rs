//! As much of an ELF file as a microcontroller's image needs: what goes into flash, what takes RAM, the plate to stamp.
use std::hash::Hasher;

use anyhow::{Context, bail, ensure};
use siphasher::sip::SipHasher24;

/// What the name plate begins with; `firmware/boards/common/src/plate.rs` has the layout.
const MAGIC: &[u8; 8] = b"HONEPAD\0";
const PLATE: usize = 32;
const BOARD_AT: usize = 8;
const VERSION_AT: usize = 20;
const DIGEST_AT: usize = 24;
/// Key of the digest.
const KEY: &[u8; 16] = b"hone firmware id";

const LOAD: u32 = 1;
const ALLOCATED: u32 = 2;

/// A 32-bit little-endian ELF file.
#[derive(Debug)]
pub(super) struct Elf {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    /// Address and size of each section that takes memory.
    sections: Vec<(u32, u32)>,
}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: usize,
    /// Where it is put: for data that start-up code copies to RAM, its place in flash.
    address: u32,
    len: usize,
}

/// An image as it stands in flash.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) start: u32,
    pub(super) bytes: Vec<u8>,
}

/// What the plate says.
#[derive(Debug)]
pub(super) struct Plate {
    pub(super) version: [u8; 3],
    pub(super) digest: [u8; 8],
}

impl Elf {
    /// Reads headers.
    ///
    /// # Errors
    /// When it is not a 32-bit little-endian ELF file with something to load.
    pub(super) fn parse(bytes: Vec<u8>) -> anyhow::Result<Self> {
        ensure!(bytes.get(..6) == Some(b"\x7fELF\x01\x01"), "no 32-bit little-endian ELF header");
        let table = |at: usize, size: usize, count: usize| -> anyhow::Result<Vec<usize>> {
            let (at, size, count) =
                (word(&bytes, at)? as usize, half(&bytes, size)? as usize, half(&bytes, count)? as usize);
            Ok((0..count).map(|i| at.saturating_add(i * size)).collect())
        };
        let mut segments = Vec::new();
        for at in table(28, 42, 44)? {
            let field = |i: usize| word(&bytes, at + 4 * i);
            let segment = Segment { offset: field(1)? as usize, address: field(3)?, len: field(4)? as usize };
            if field(0)? == LOAD && segment.len > 0 {
                let end = segment.offset.checked_add(segment.len).filter(|end| *end <= bytes.len());
                ensure!(end.is_some(), "a segment reaches beyond the end of the file");
                segments.push(segment);
            }
        }
        let mut sections = Vec::new();
        for at in table(32, 46, 48)? {
            let field = |i: usize| word(&bytes, at + 4 * i);
            if field(2)? & ALLOCATED != 0 {
                sections.push((field(3)?, field(5)?));
            }
        }
        segments.sort_by_key(|segment| segment.address);
        ensure!(!segments.is_empty(), "nothing to load");
        Ok(Self { bytes, segments, sections })
    }

    /// The file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything that is loaded, from the lowest address to the highest; gaps are `ff`, as erased flash is.
    pub(super) fn flash_image(&self) -> Flat {
        let start = self.segments[0].address;
        let mut bytes = Vec::new();
        for segment in &self.segments {
            let at = (segment.address - start) as usize;
            bytes.resize(bytes.len().max(at + segment.len), 0xff);
            bytes[at..at + segment.len].copy_from_slice(&self.bytes[segment.offset..][..segment.len]);
        }
        Flat { start, bytes }
    }

    /// Bytes of memory that sections take outside flash.
    pub(super) fn ram_bytes(&self, flash_start: u32, flash_len: u32) -> u32 {
        let outside = |address: u32| !(flash_start..=flash_start.saturating_add(flash_len)).contains(&address);
        self.sections.iter().filter(|(address, _)| outside(*address)).map(|(_, size)| size).sum()
    }

    /// Writes the digest onto the plate.
    ///
    /// # Errors
    /// When there is not exactly one plate, or it is another board's.
    pub(super) fn stamp(&mut self, board: &str) -> anyhow::Result<Plate> {
        let mut flat = self.flash_image();
        let found: Vec<usize> =
            flat.bytes.windows(PLATE).enumerate().filter(|(_, w)| w.starts_with(MAGIC)).map(|(at, _)| at).collect();
        let [at] = found[..] else { bail!("the image has {} name plates and should have one", found.len()) };
        let plate = &mut flat.bytes[at..at + PLATE];
        let name = plate[BOARD_AT..VERSION_AT].split(|byte| *byte == 0).next().unwrap_or_default();
        ensure!(name == board.as_bytes(), "the plate says {:?}", String::from_utf8_lossy(name));
        let version = [plate[VERSION_AT], plate[VERSION_AT + 1], plate[VERSION_AT + 2]];
        plate[DIGEST_AT..].fill(0);
        let mut hasher = SipHasher24::new_with_key(KEY);
        hasher.write(&flat.bytes);
        let digest = hasher.finish().to_le_bytes();
        let address = flat.start + at as u32 + DIGEST_AT as u32;
        let segment = self
            .segments
            .iter()
            .find(|s| s.address <= address && (address - s.address) as usize + digest.len() <= s.len)
            .context("the plate's digest is not in one segment")?;
        let offset = segment.offset + (address - segment.address) as usize;
        self.bytes[offset..][..digest.len()].copy_from_slice(&digest);
        Ok(Plate { version, digest })
    }
}

fn half(bytes: &[u8], at: usize) -> anyhow::Result<u16> {
    let half = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("the file is cut short")?;
    Ok(u16::from_le_bytes(*half))
}

fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("the file is cut short")?;
    Ok(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of two segments: code of 4 bytes and plates at 0x100, 4 bytes after them data that lives at 0x2000_0000.
    fn file(plates: usize) -> Vec<u8> {
        let mut code = vec![1, 2, 3, 4];
        for _ in 0..plates {
            code.extend(b"HONEPAD\0toaster\0\0\0\0\0\x01\x02\x03\x01\0\0\0\0\0\0\0\0");
        }
        let data = [9u8; 8];
        let mut bytes = vec![0; 52];
        bytes[..6].copy_from_slice(b"\x7fELF\x01\x01");
        for (at, value) in [(28, 52u32), (32, 52 + 64)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(42, 32u16), (44, 2), (46, 40), (48, 2)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let body = (52 + 64 + 80) as u32;
        let (code_len, data_len) = (code.len() as u32, data.len() as u32);
        let words = [
            [LOAD, body, 0x100, 0x100, code_len, code_len, 5, 4],
            [LOAD, body + code_len, 0x2000_0000, 0x100 + code_len + 4, data_len, 64, 6, 4],
        ];
        bytes.extend(words.iter().flatten().flat_map(|word| word.to_le_bytes()));
        let sections =
            [[0, 1, ALLOCATED, 0x100, body, code_len, 0, 0, 4, 0], [0, 8, ALLOCATED, 0x2000_0000, 0, 64, 0, 0, 4, 0]];
        bytes.extend(sections.iter().flatten().flat_map(|word| word.to_le_bytes()));
        bytes.extend(code);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn an_image_is_what_is_loaded_with_gaps_as_erased_flash() {
        let elf = Elf::parse(file(1)).unwrap();
        let flat = elf.flash_image();
        assert_eq!((flat.start, flat.bytes.len()), (0x100, 0x30));
        assert_eq!((&flat.bytes[..4], &flat.bytes[36..40]), (&[1, 2, 3, 4][..], &[0xff; 4][..]));
        assert_eq!(flat.bytes[40..], [9; 8]);
        assert_eq!(elf.ram_bytes(flat.start, 0x30), 64);
    }

    #[test]
    fn a_stamp_is_the_digest_of_the_image_without_it_and_stands_in_the_file() {
        let mut elf = Elf::parse(file(1)).unwrap();
        let plate = elf.stamp("toaster").unwrap();
        assert_eq!(plate.version, [1, 2, 3]);
        let stamped = elf.flash_image().bytes;
        assert_eq!(stamped[4 + DIGEST_AT..][..8], plate.digest);
        // By a second implementation, in Python from the paper's definition.
        assert_eq!(plate.digest, [234, 176, 201, 96, 73, 223, 171, 151]);
        // Stamped again it is the same.
        assert_eq!(elf.stamp("toaster").unwrap().digest, plate.digest);
    }

    #[test]
    fn an_image_without_its_plate_or_with_anothers_is_refused() {
        assert!(Elf::parse(file(0)).unwrap().stamp("toaster").is_err());
        assert!(Elf::parse(file(2)).unwrap().stamp("toaster").is_err());
        assert!(Elf::parse(file(1)).unwrap().stamp("kettle").is_err());
    }

    #[test]
    fn files_that_are_cut_short_are_refused() {
        let whole = file(1);
        for len in 0..whole.len() {
            assert!(Elf::parse(whole[..len].to_vec()).is_err(), "{len}");
        }
    }
}
