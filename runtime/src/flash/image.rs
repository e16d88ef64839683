//! A firmware image: bytes at addresses in flash, from ELF or UF2, and the name plate in it.
//!
//! The plate is described in `firmware/boards/common/src/plate.rs`: `HONEPAD\0`, board (12 bytes), version (3), wire (1),
//! and SipHash-2-4 (key `hone firmware id`) over the bytes from the lowest to the highest address, the digest itself zero;
//! gaps of up to 64 KiB are `ff`, longer ones, between two memories, are left out.
use std::collections::BTreeMap;

use hone_wire::auth::{Key, tag};

use super::FlashError;
use super::uf2;

/// Bytes of a page of flash, which is what a UF2 block carries.
pub const PAGE: u32 = 256;
/// More than any board has.
const MAX_BYTES: usize = 16 << 20;
/// A longer gap lies between two memories.
const LONGEST_GAP: u32 = 64 << 10;

const MAGIC: &[u8; 8] = b"HONEPAD\0";
const PLATE: usize = 32;
const BOARD_AT: usize = 8;
const VERSION_AT: usize = 20;
const DIGEST_AT: usize = 24;
const DIGEST_KEY: &Key = b"hone firmware id";

/// What an image says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plate {
    /// The board it is for.
    pub board: String,
    /// Major, minor, patch.
    pub version: [u8; 3],
    /// Digest of the image, as the pad's greeting carries it.
    pub digest: [u8; 8],
}

/// Runs of bytes by address.
pub(super) type Segments = Vec<(u32, Vec<u8>)>;

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Runs of bytes by address, ascending, not overlapping.
    segments: Segments,
    /// The family a UF2 file says it is for.
    family: Option<u32>,
}

impl Image {
    /// Reads an ELF or a UF2 file, told apart by their first bytes.
    ///
    /// # Errors
    /// [`FlashError::Image`].
    pub fn parse(bytes: &[u8]) -> Result<Image, FlashError> {
        if bytes.starts_with(b"\x7fELF") {
            return Image::from_elf(bytes);
        }
        let (blocks, family) = uf2::read(bytes)?;
        Image::of(blocks, Some(family))
    }

    /// What an ELF file for a 32-bit little-endian processor loads into flash: for data that start-up code copies to RAM,
    /// its place in flash.
    fn from_elf(bytes: &[u8]) -> Result<Image, FlashError> {
        let bad = |what: &str| FlashError::Image { what: what.into() };
        let short = || bad("the ELF file is cut short");
        let half = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u16::from_le_bytes(*b));
        let word = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_le_bytes(*b));
        if bytes.get(4..6) != Some(&[1, 1]) {
            return Err(bad("it is no ELF file for a 32-bit little-endian processor"));
        }
        let table = word(28).ok_or_else(short)? as usize;
        let (size, count) = (half(42).ok_or_else(short)?, half(44).ok_or_else(short)?);
        let mut segments = Vec::new();
        for i in 0..usize::from(count) {
            let at = table.saturating_add(i * usize::from(size));
            let field = |n: usize| word(at.saturating_add(4 * n)).ok_or_else(short);
            let (kind, offset, address, len) = (field(0)?, field(1)? as usize, field(3)?, field(4)? as usize);
            if kind == 1 && len > 0 {
                let end = offset.checked_add(len).ok_or_else(short)?;
                segments.push((address, bytes.get(offset..end).ok_or_else(short)?.to_vec()));
            }
        }
        Image::of(segments, None)
    }

    fn of(mut segments: Segments, family: Option<u32>) -> Result<Image, FlashError> {
        segments.sort_by_key(|(address, _)| *address);
        let bad = |what: String| Err(FlashError::Image { what });
        let Some((last, bytes)) = segments.last() else {
            return bad("there is nothing in it to load".into());
        };
        if u32::try_from(bytes.len()).ok().and_then(|len| last.checked_add(len)).is_none() {
            return bad("it reaches beyond the end of memory".into());
        }
        if segments.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > MAX_BYTES {
            return bad("it has more bytes than any board's flash".into());
        }
        for pair in segments.windows(2) {
            if u64::from(pair[0].0) + pair[0].1.len() as u64 > u64::from(pair[1].0) {
                return bad(format!("two parts of it overlap at {:#x}", pair[1].0));
            }
        }
        Ok(Image { segments, family })
    }

    /// The family a UF2 file says it is for; none for an ELF file.
    pub fn family(&self) -> Option<u32> {
        self.family
    }

    /// The lowest address and one past the highest.
    pub fn range(&self) -> (u32, u32) {
        let start = self.segments.first().map_or(0, |(address, _)| *address);
        (start, self.segments.last().map_or(start, |(address, bytes)| address + bytes.len() as u32))
    }

    /// From the lowest address to the highest; gaps of up to [`LONGEST_GAP`] are `ff`, as erased flash is.
    fn flat(&self) -> Vec<u8> {
        let mut flat = Vec::new();
        let mut end = None;
        for (address, bytes) in &self.segments {
            // They do not overlap, see `of`.
            let gap = end.map_or(0, |end| address - end);
            if gap <= LONGEST_GAP {
                flat.resize(flat.len() + gap as usize, 0xff);
            }
            flat.extend_from_slice(bytes);
            end = Some(address + bytes.len() as u32);
        }
        flat
    }

    /// Whole pages by address; what no segment fills is `ff`, as erased flash is, so that the digest holds.
    pub(super) fn pages(&self) -> BTreeMap<u32, [u8; PAGE as usize]> {
        let mut pages = BTreeMap::new();
        for (address, bytes) in &self.segments {
            for (at, byte) in (*address..).zip(bytes) {
                pages.entry(at & !(PAGE - 1)).or_insert([0xff; PAGE as usize])[(at & (PAGE - 1)) as usize] = *byte;
            }
        }
        pages
    }

    /// The plate, whose digest is that of this image.
    ///
    /// # Errors
    /// When there is not exactly one, or its digest is another image's: the file is damaged, or was never stamped.
    pub fn plate(&self) -> Result<Plate, FlashError> {
        let bad = |what: String| Err(FlashError::Image { what });
        let mut flat = self.flat();
        let found: Vec<usize> =
            (0..flat.len().saturating_sub(PLATE - 1)).filter(|&at| flat[at..].starts_with(MAGIC)).collect();
        let [at] = found[..] else {
            return bad(format!("it has {} name plates of hone and should have one", found.len()));
        };
        let plate = &mut flat[at..at + PLATE];
        let board = plate[BOARD_AT..VERSION_AT].split(|byte| *byte == 0).next().unwrap_or_default();
        let board = String::from_utf8_lossy(board).into_owned();
        let version = [plate[VERSION_AT], plate[VERSION_AT + 1], plate[VERSION_AT + 2]];
        let mut digest = [0; 8];
        digest.copy_from_slice(&plate[DIGEST_AT..]);
        plate[DIGEST_AT..].fill(0);
        // UF2 blocks are whole pages: what lies behind the last byte of the linker's image is not in the digest.
        let len = flat.len();
        let candidates = (0..PAGE as usize).map(|cut| len - cut).take_while(|&n| n > at + PLATE);
        let erased = |n: usize| flat[n..].iter().all(|byte| *byte == 0xff);
        let fits = candidates.filter(|&n| erased(n)).any(|n| tag(DIGEST_KEY, &flat[..n]) == digest);
        if !fits {
            return bad("its bytes are not those its name plate was stamped for: it is damaged or unstamped".into());
        }
        Ok(Plate { board, version, digest })
    }
}
