//! NOR flash as its data sheets describe it, with a power supply that fails after a given number of bytes.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};
use std::cell::RefCell;
use std::rc::Rc;

pub const WORD: usize = 4;
pub const PAGE: usize = 512;

/// What the power cut leaves of the byte it interrupts and of a page being erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Bytes are changed or not; a page is erased from its start.
    Clean,
    /// Half of the bits of the byte being written are; a page is erased from its end.
    Ragged,
}

#[derive(Clone, Debug)]
pub struct Chip {
    pub bytes: Vec<u8>,
    /// Bytes that may still be written or erased; `None` = the power stays on.
    pub fuse: Option<usize>,
    pub dead: bool,
    pub tear: Tear,
    /// Bytes written and erased so far.
    pub worked: usize,
    /// Pages erased so far.
    pub erased: usize,
}

/// A chip that outlives the pad, written in words of `WORD` bytes and erased in pages of `PAGE`. Clones are the same chip.
#[derive(Clone, Debug)]
pub struct NorOf<const WORD: usize, const PAGE: usize>(pub Rc<RefCell<Chip>>);

pub type Nor = NorOf<WORD, PAGE>;
/// As that of a Pico.
pub type PicoNor = NorOf<1, 4096>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(NorFlashErrorKind);

impl NorFlashError for Refused {
    fn kind(&self) -> NorFlashErrorKind {
        self.0
    }
}

impl<const WORD: usize, const PAGE: usize> NorOf<WORD, PAGE> {
    pub fn new(pages: usize, fill: impl FnMut(usize) -> u8) -> Self {
        let bytes = (0..pages * PAGE).map(fill).collect();
        Self(Rc::new(RefCell::new(Chip { bytes, fuse: None, dead: false, tear: Tear::Clean, worked: 0, erased: 0 })))
    }

    pub fn blank(pages: usize) -> Self {
        Self::new(pages, |_| 0xff)
    }

    pub fn len(&self) -> u32 {
        self.0.borrow().bytes.len() as u32
    }

    pub fn cut_after(&self, bytes: usize, tear: Tear) {
        let mut chip = self.0.borrow_mut();
        (chip.fuse, chip.tear) = (Some(bytes), tear);
    }

    pub fn restore_power(&self) {
        let mut chip = self.0.borrow_mut();
        (chip.fuse, chip.dead) = (None, false);
    }

    pub fn is_dead(&self) -> bool {
        self.0.borrow().dead
    }

    pub fn worked(&self) -> usize {
        self.0.borrow().worked
    }

    /// An independent chip with the same content.
    pub fn copied(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

impl Chip {
    /// Whether one more byte can be changed; the first that cannot ends everything.
    fn spend(&mut self) -> bool {
        self.worked += 1;
        match &mut self.fuse {
            Some(0) => self.dead = true,
            Some(left) => *left -= 1,
            None => {}
        }
        !self.dead
    }

    fn powered(&self) -> Result<(), Refused> {
        if self.dead { Err(Refused(NorFlashErrorKind::Other)) } else { Ok(()) }
    }
}

impl<const WORD: usize, const PAGE: usize> ErrorType for NorOf<WORD, PAGE> {
    type Error = Refused;
}

impl<const WORD: usize, const PAGE: usize> ReadNorFlash for NorOf<WORD, PAGE> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, out: &mut [u8]) -> Result<(), Refused> {
        let chip = self.0.borrow();
        chip.powered()?;
        out.copy_from_slice(&chip.bytes[offset as usize..][..out.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.borrow().bytes.len()
    }
}

impl<const WORD: usize, const PAGE: usize> NorFlash for NorOf<WORD, PAGE> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Refused> {
        let chip = &mut *self.0.borrow_mut();
        chip.powered()?;
        assert!((from as usize).is_multiple_of(PAGE) && (to as usize).is_multiple_of(PAGE) && from < to);
        chip.erased += 1;
        for i in 0..(to - from) as usize {
            let at = match chip.tear {
                Tear::Clean => from as usize + i,
                Tear::Ragged => to as usize - 1 - i,
            };
            if !chip.spend() {
                return chip.powered();
            }
            chip.bytes[at] = 0xff;
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        let chip = &mut *self.0.borrow_mut();
        chip.powered()?;
        assert!((offset as usize).is_multiple_of(WORD) && bytes.len().is_multiple_of(WORD));
        let at = offset as usize;
        // The strictest of the chips (STM32F1): what is not erased takes zeros and nothing else.
        let erased = chip.bytes[at..at + bytes.len()].iter().all(|byte| *byte == 0xff);
        assert!(erased || bytes.iter().all(|byte| *byte == 0), "{at} was written twice without an erase between");
        for (i, byte) in bytes.iter().enumerate() {
            if !chip.spend() {
                if chip.tear == Tear::Ragged {
                    chip.bytes[at + i] &= byte | 0x55;
                }
                return chip.powered();
            }
            chip.bytes[at + i] = *byte;
        }
        Ok(())
    }
}
