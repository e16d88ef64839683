//! UF2, the file format of boards that show up as a drive (<https://github.com/microsoft/uf2>): blocks of 512 bytes, each with
//! the address its 256 bytes go to.
use super::FlashError;
use super::image::{Image, PAGE, Segments};

const BLOCK: usize = 512;
const MAGIC_0: u32 = 0x0a32_4655;
const MAGIC_1: u32 = 0x9e5d_5157;
const MAGIC_END: u32 = 0x0ab1_6f30;
const NOT_MAIN_FLASH: u32 = 0x0000_0001;
const FAMILY_PRESENT: u32 = 0x0000_2000;
/// Most bytes a block can carry.
const MAX_PAYLOAD: usize = 476;

/// The image as a UF2 file for boards of `family`: whole pages in ascending order, what the image leaves of a page `ff`.
pub fn write(image: &Image, family: u32) -> Vec<u8> {
    let pages = image.pages();
    let count = pages.len() as u32;
    let mut file = Vec::with_capacity(pages.len() * BLOCK);
    for (number, (address, page)) in (0u32..).zip(&pages) {
        for word in [MAGIC_0, MAGIC_1, FAMILY_PRESENT, *address, PAGE, number, count, family] {
            file.extend(word.to_le_bytes());
        }
        file.extend(page);
        file.extend([0; MAX_PAYLOAD - PAGE as usize]);
        file.extend(MAGIC_END.to_le_bytes());
    }
    file
}

/// The blocks of a UF2 file by address, and the family it is for.
pub(super) fn read(file: &[u8]) -> Result<(Segments, u32), FlashError> {
    let bad = |what: String| FlashError::Image { what };
    if file.is_empty() || !file.len().is_multiple_of(BLOCK) {
        return Err(bad(format!("it is neither an ELF nor a UF2 file ({} bytes)", file.len())));
    }
    let count = (file.len() / BLOCK) as u32;
    let (mut blocks, mut families) = (Vec::new(), Vec::new());
    for (number, block) in (0u32..).zip(file.chunks_exact(BLOCK)) {
        let word = |i: usize| u32::from_le_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]]);
        if [word(0), word(1), word(127)] != [MAGIC_0, MAGIC_1, MAGIC_END] {
            return Err(bad(format!("block {number} of it is no UF2 block")));
        }
        let (flags, address, len) = (word(2), word(3), word(4) as usize);
        if word(5) != number || word(6) != count {
            return Err(bad(format!("block {number} says it is {} of {}, and there are {count}", word(5), word(6))));
        }
        if len == 0 || len > MAX_PAYLOAD {
            return Err(bad(format!("block {number} says it carries {len} bytes")));
        }
        if flags & FAMILY_PRESENT == 0 {
            return Err(bad(format!("block {number} does not say for which family of chips it is")));
        }
        families.push(word(7));
        if flags & NOT_MAIN_FLASH == 0 {
            blocks.push((address, block[32..32 + len].to_vec()));
        }
    }
    families.dedup();
    let [family] = families[..] else { return Err(bad("it is for several families of chips at once".into())) };
    Ok((blocks, family))
}
