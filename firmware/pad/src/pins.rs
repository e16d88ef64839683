//! Buttons on `embedded-hal` pins, as the bitmap that [`Pad::tick`](crate::Pad::tick) takes.

use embedded_hal::digital::InputPin;

/// How a button is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// To ground with a pull-up: low is pressed. The usual one.
    ActiveLow,
    /// To the supply with a pull-down: high is pressed.
    ActiveHigh,
}

/// `N` buttons on pins of one type (boards with mixed types erase theirs).
#[derive(Debug)]
pub struct Buttons<P, const N: usize> {
    pins: [P; N],
    wiring: Wiring,
}

impl<P: InputPin, const N: usize> Buttons<P, N> {
    /// Buttons in the order of their numbers. At most [`MAX_BUTTONS`](crate::MAX_BUTTONS), checked when compiled.
    pub fn new(pins: [P; N], wiring: Wiring) -> Self {
        const { assert!(N <= crate::MAX_BUTTONS) };
        Self { pins, wiring }
    }

    /// Reads all pins. Bit i: button i is down.
    ///
    /// # Errors
    /// The first pin's error; a sample is whole or not at all.
    pub fn sample(&mut self) -> Result<u16, P::Error> {
        let mut bitmap = 0;
        for (button, pin) in self.pins.iter_mut().enumerate() {
            let down = match self.wiring {
                Wiring::ActiveLow => pin.is_low()?,
                Wiring::ActiveHigh => pin.is_high()?,
            };
            bitmap |= u16::from(down) << button;
        }
        Ok(bitmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_hal::digital::{Error, ErrorKind, ErrorType};

    #[derive(Clone, Copy, Debug)]
    struct Pin(Result<bool, ErrorKind>);

    impl ErrorType for Pin {
        type Error = Broken;
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Broken;

    impl Error for Broken {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    impl InputPin for Pin {
        fn is_high(&mut self) -> Result<bool, Broken> {
            self.0.map_err(|_| Broken)
        }

        fn is_low(&mut self) -> Result<bool, Broken> {
            self.is_high().map(|high| !high)
        }
    }

    #[test]
    fn a_pin_is_a_bit_by_its_wiring() {
        let pins = [Pin(Ok(false)), Pin(Ok(true)), Pin(Ok(false))];
        assert_eq!(Buttons::new(pins, Wiring::ActiveLow).sample(), Ok(0b101));
        assert_eq!(Buttons::new(pins, Wiring::ActiveHigh).sample(), Ok(0b010));
    }

    #[test]
    fn a_broken_pin_spoils_the_sample() {
        let pins = [Pin(Ok(true)), Pin(Err(ErrorKind::Other))];
        assert_eq!(Buttons::new(pins, Wiring::ActiveHigh).sample(), Err(Broken));
    }
}
