//! Memory that a reset does not clear, for what must outlive one where there is no flash to write: the count of boots and
//! a note of the last crash.
//!
//! The words lie in the section `.uninit`, which start-up code leaves alone. After power-up they are whatever the memory
//! happens to hold, so they count only with their check word.

use core::cell::UnsafeCell;
use core::panic::PanicInfo;

/// How a boot ended, in what fits into an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A panic.
    Panic {
        /// Line, saturating.
        line: u16,
        /// FNV-1a of the file's path as the compiler saw it.
        file: u32,
    },
    /// A fault of the processor.
    Fault {
        /// Of the instruction; of an exception that nothing handles, its number.
        address: u32,
    },
}

/// What memory says about the boots before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// This boot's number: one more than the last one's, 1 after power-up.
    pub number: u16,
    /// What the last boot ended by, if it was neither the power nor a restart.
    pub crash: Option<Crash>,
}

/// In place of a panic's line + 1.
const FAULT: u32 = u32::MAX;

/// Boot count, line of the panic + 1, file of the panic or address of the fault, check word.
#[repr(transparent)]
struct Words(UnsafeCell<[u32; 4]>);

// SAFETY: the boards are single-core, touch the words before interrupts are on or in the panic handler, which is the last
// thing that runs, and only by volatile accesses of whole words.
unsafe impl Sync for Words {}

#[unsafe(link_section = ".uninit.hone_retained")]
static WORDS: Words = Words(UnsafeCell::new([0; 4]));

const CHECK: u32 = 0x686f_6e65;

/// Counts this boot and takes the note of a crash. To be called once, first.
#[must_use]
pub fn boot() -> Boot {
    let (boots, crash) = match read() {
        [boots, line, file, check] if check == boots ^ line ^ file ^ CHECK => {
            let crash = match line {
                0 => None,
                FAULT => Some(Crash::Fault { address: file }),
                line => Some(Crash::Panic { line: (line - 1) as u16, file }),
            };
            (boots, crash)
        }
        _ => (0, None),
    };
    let number = boots.wrapping_add(1) & 0xffff;
    write(number, 0, 0);
    Boot { number: number as u16, crash }
}

/// Notes a panic for the next boot. To be called by the panic handler, before it resets the board.
pub fn note_panic(info: &PanicInfo<'_>) {
    let (line, file) = info.location().map_or((0, 0), |at| (at.line().min(0xffff), fnv1a(at.file().as_bytes())));
    let [boots, ..] = read();
    write(boots, line + 1, file);
}

/// Notes a fault for the next boot. To be called by its handler, before it resets the board.
pub fn note_fault(address: u32) {
    let [boots, ..] = read();
    write(boots, FAULT, address);
}

fn read() -> [u32; 4] {
    // SAFETY: valid and aligned; see `Words` for why nobody writes meanwhile.
    unsafe { WORDS.0.get().read_volatile() }
}

fn write(boots: u32, line: u32, file: u32) {
    // SAFETY: as in `read`.
    unsafe { WORDS.0.get().write_volatile([boots, line, file, boots ^ line ^ file ^ CHECK]) }
}

/// The hash by which a file is told from others: FNV-1a, 32 bits.
#[must_use]
pub const fn fnv1a(bytes: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_are_counted_and_senseless_memory_starts_anew() {
        assert_eq!(boot(), Boot { number: 1, crash: None });
        assert_eq!(boot(), Boot { number: 2, crash: None });
        write(2, 42 + 1, 7);
        assert_eq!(boot(), Boot { number: 3, crash: Some(Crash::Panic { line: 42, file: 7 }) });
        assert_eq!(boot(), Boot { number: 4, crash: None }, "a panic is reported once");
        note_fault(0x1000_0abc);
        assert_eq!(boot(), Boot { number: 5, crash: Some(Crash::Fault { address: 0x1000_0abc }) });
        assert_eq!(boot(), Boot { number: 6, crash: None });
        // SAFETY: one thread.
        unsafe { WORDS.0.get().write_volatile([9, 9, 9, 9]) };
        assert_eq!(boot(), Boot { number: 1, crash: None });
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the authors' list of test vectors.
        assert_eq!((fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }
}
