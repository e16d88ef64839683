//! As much of an ELF file as a microcontroller's image needs: what goes into flash, what takes RAM, the plate to stamp.
use std::hash::Hasher;
use std::ops::Range;

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

/// A longer gap lies between two memories; it is not filled.
const LONGEST_GAP: u32 = 64 << 10;

const LOAD: u32 = 1;
const ALLOCATED: u32 = 2;
const SYMBOLS: usize = 2;
/// What is left of a memory, where a linker script says so: the stack has its own budget.
const STACK: &str = ".stack";

/// A 32-bit little-endian ELF file.
#[derive(Debug)]
pub(super) struct Elf {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    /// Where in the file the headers of sections are.
    headers: Vec<usize>,
}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: usize,
    /// Where it is put: for data that start-up code copies to RAM, its place in flash.
    address: u32,
    len: usize,
}

/// What takes memory.
#[derive(Debug)]
struct Section {
    name: String,
    address: u32,
    size: u32,
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
        let headers = table(32, 46, 48)?;
        // Where names are, in a file that has any.
        let names = match headers.get(usize::from(half(&bytes, 50)?)) {
            Some(at) => word(&bytes, at + 16)? as usize,
            None => bytes.len(),
        };
        let mut sections = Vec::new();
        for &at in &headers {
            let field = |i: usize| word(&bytes, at + 4 * i);
            if field(2)? & ALLOCATED != 0 {
                let name = bytes.get(names.saturating_add(field(0)? as usize)..).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                sections.push(Section { name, address: field(3)?, size: field(5)? });
            }
        }
        segments.sort_by_key(|segment| segment.address);
        ensure!(!segments.is_empty(), "nothing to load");
        Ok(Self { bytes, segments, sections, headers })
    }

    /// The file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything that is loaded, from the lowest address to the highest; gaps of up to [`LONGEST_GAP`] are `ff`, as erased
    /// flash is.
    pub(super) fn image(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, segment) in self.places() {
            bytes.resize(bytes.len().max(at + segment.len), 0xff);
            bytes[at..at + segment.len].copy_from_slice(&self.bytes[segment.offset..][..segment.len]);
        }
        bytes
    }

    /// Each segment with its place in the image.
    fn places(&self) -> Vec<(usize, Segment)> {
        let mut places = Vec::<(usize, Segment)>::new();
        for segment in &self.segments {
            let at = match places.last() {
                None => 0,
                Some((at, last)) => {
                    let apart = segment.address - last.address;
                    let gap = apart.saturating_sub(last.len as u32);
                    at + if gap > LONGEST_GAP { last.len } else { apart as usize }
                }
            };
            places.push((at, *segment));
        }
        places
    }

    /// Bytes of the memory at these addresses up to the end of the last section in it, less what is left for a stack.
    pub(super) fn takes(&self, memory: &Range<u32>) -> u32 {
        let within =
            |section: &&Section| section.size > 0 && memory.contains(&section.address) && section.name != STACK;
        let ends = self.sections.iter().filter(within).map(|section| section.address.saturating_add(section.size));
        ends.max().map_or(0, |end| end - memory.start)
    }

    /// Address of the static or function of that name, where the file has a table of symbols.
    pub(super) fn symbol(&self, name: &str) -> Option<u32> {
        let field = |at: usize, i: usize| word(&self.bytes, at.saturating_add(4 * i)).ok().map(|word| word as usize);
        let table = self.headers.iter().copied().find(|at| field(*at, 1) == Some(SYMBOLS))?;
        let (start, len) = (field(table, 4)?, field(table, 5)?);
        let names = field(*self.headers.get(field(table, 6)?)?, 4)?;
        (start..start.saturating_add(len)).step_by(16).find_map(|at| {
            let text = self.bytes.get(names.saturating_add(field(at, 0)?)..)?;
            let found = text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
            found.then_some(field(at, 1)? as u32)
        })
    }

    /// Writes the digest onto the plate.
    ///
    /// # Errors
    /// When there is not exactly one plate, or it is another board's.
    pub(super) fn stamp(&mut self, board: &str) -> anyhow::Result<Plate> {
        let mut image = self.image();
        let found: Vec<usize> =
            image.windows(PLATE).enumerate().filter(|(_, w)| w.starts_with(MAGIC)).map(|(at, _)| at).collect();
        let [at] = found[..] else { bail!("the image has {} name plates and should have one", found.len()) };
        let plate = &mut image[at..at + PLATE];
        let name = plate[BOARD_AT..VERSION_AT].split(|byte| *byte == 0).next().unwrap_or_default();
        ensure!(name == board.as_bytes(), "the plate says {:?}", String::from_utf8_lossy(name));
        let version = [plate[VERSION_AT], plate[VERSION_AT + 1], plate[VERSION_AT + 2]];
        plate[DIGEST_AT..].fill(0);
        let mut hasher = SipHasher24::new_with_key(KEY);
        hasher.write(&image);
        let digest = hasher.finish().to_le_bytes();
        let at = at + DIGEST_AT;
        let places = self.places();
        let (place, segment) = places
            .iter()
            .find(|(place, segment)| *place <= at && at + digest.len() <= place + segment.len)
            .context("the plate's digest is not in one segment")?;
        let offset = segment.offset + at - place;
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
        let image = elf.image();
        assert_eq!(image.len(), 0x30);
        assert_eq!((&image[..4], &image[36..40]), (&[1, 2, 3, 4][..], &[0xff; 4][..]));
        assert_eq!(image[40..], [9; 8]);
        assert_eq!((elf.takes(&(0x2000_0000..0x2000_1000)), elf.takes(&(0..0x1000))), (64, 0x100 + 36));
    }

    #[test]
    fn what_lies_in_another_memory_follows_without_a_gap() {
        let mut bytes = file(1);
        // The second segment's load address.
        bytes[52 + 32 + 12..][..4].copy_from_slice(&0x4200_0000u32.to_le_bytes());
        let mut elf = Elf::parse(bytes).unwrap();
        assert_eq!(elf.image()[36..], [9; 8]);
        let digest = elf.stamp("toaster").unwrap().digest;
        assert_eq!(elf.image()[4 + DIGEST_AT..][..8], digest);
    }

    #[test]
    fn a_stamp_is_the_digest_of_the_image_without_it_and_stands_in_the_file() {
        let mut elf = Elf::parse(file(1)).unwrap();
        let plate = elf.stamp("toaster").unwrap();
        assert_eq!(plate.version, [1, 2, 3]);
        let stamped = elf.image();
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
