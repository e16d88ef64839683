//! A board that is emulated, whatever by.
use std::time::Duration;

/// What a test does to a board.
pub(super) trait Rig {
    /// The serial port's end on this machine.
    fn pty(&self) -> &str;

    /// Puts a button down or lets it go.
    fn set(&mut self, button: usize, down: bool) -> anyhow::Result<()>;

    /// Puts buttons down, or lets them go, at one moment of the board's time: fingers move within a chord's window, orders to
    /// an emulator on a busy machine need not.
    fn set_together(&mut self, buttons: &[usize], down: bool) -> anyhow::Result<()>;

    /// Presses a button for so long and waits until it has been up for a while, by the board's own clock: on a busy machine
    /// that stands while the wall's goes on.
    fn press(&mut self, button: usize, hold: Duration) -> anyhow::Result<()>;

    /// Waits until so much of the board's time has passed.
    fn pass(&mut self, time: Duration) -> anyhow::Result<()>;

    /// Resets the board. Memory keeps what it holds, as it does without a power cut.
    fn reset(&mut self) -> anyhow::Result<()>;

    /// Bytes of the board's memory.
    fn memory(&mut self, address: u32, len: u32) -> anyhow::Result<Vec<u8>>;
}

/// Bytes from hexadecimal digits.
pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(hex("00fFa1"), Some(vec![0, 0xff, 0xa1]));
        assert_eq!([hex("0"), hex("0g"), hex("")], [None, None, Some(vec![])]);
    }
}
