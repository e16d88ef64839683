//! GPIO lines of this machine, found by what they are called: the chip by its label, the line by its name, because numbers
//! move between kernels (the header of a Pi 5 went from `gpiochip4` to `gpiochip0`).
use crate::{Class, Classified};

/// The name under which lines are held, as `gpioinfo` shows it.
pub const CONSUMER: &str = "hone";

/// Why a GPIO line cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpioError {
    /// The machine shows no GPIO chips.
    #[error(
        "this machine has no GPIO that this user can see (no usable /dev/gpiochip*): {detail}; on a Raspberry Pi or a \
         Jetson add the user to the group `gpio`, elsewhere use `key` or a pad on a serial port"
    )]
    NoGpio {
        /// What was found instead.
        detail: String,
    },
    /// No such line.
    #[error("no GPIO line matches `{line}`; chips here: {chips}")]
    NoLine {
        /// What was looked for.
        line: String,
        /// Labels of the chips, or names of the chip's lines.
        chips: String,
    },
    /// The line could not be used.
    #[error("cannot use GPIO line `{line}`: {detail}; another program may hold it (`gpioinfo` names it)")]
    Line {
        /// The line.
        line: String,
        /// What the kernel said.
        detail: String,
    },
}

impl Classified for GpioError {
    fn class(&self) -> Class {
        Class::Device
    }
}

/// Where a line is: `[CHIP/]LINE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpioPlace {
    /// Label of the chip (`pinctrl-rp1`), its name (`gpiochip0`) or its device file; none: whichever has the line.
    pub chip: Option<String>,
    /// Name of the line (`GPIO17`, `PQ.05`), or its offset on the chip.
    pub line: String,
}

impl GpioPlace {
    /// Parses `[CHIP/]LINE`; `None` when a part is empty, or the line is a number without a chip.
    pub fn parse(text: &str) -> Option<GpioPlace> {
        let (chip, line) = match text.rsplit_once('/') {
            Some((chip, line)) => (Some(chip.to_owned()), line),
            None => (None, text),
        };
        let numbered = chip.is_none() && line.parse::<u32>().is_ok();
        let empty = line.is_empty() || chip.as_deref() == Some("");
        (!numbered && !empty).then(|| GpioPlace { chip, line: line.to_owned() })
    }
}

#[cfg(all(feature = "gpio", target_os = "linux"))]
mod linux {
    use std::path::PathBuf;

    use gpiocdev::Request;
    use gpiocdev::chip::Chip;
    use gpiocdev::line::Value;

    use super::{CONSUMER, GpioError, GpioPlace};

    impl GpioPlace {
        /// The chip's device file and the line's offset.
        pub(crate) fn find(&self) -> Result<(PathBuf, u32), GpioError> {
            let none = |detail: String| GpioError::NoGpio { detail };
            let paths = gpiocdev::chip::chips().map_err(|error| none(error.to_string()))?;
            if paths.is_empty() {
                return Err(none("there is none".into()));
            }
            let mut seen = vec![];
            for path in paths {
                // A chip this user may not open is not one to be chosen; the message shows which could be.
                let Ok(chip) = Chip::from_path(&path) else { continue };
                let Ok(info) = chip.info() else { continue };
                seen.push(format!("{} ({}, {} lines)", info.label, info.name, info.num_lines));
                let wanted = self
                    .chip
                    .as_ref()
                    .is_none_or(|name| *name == info.label || *name == info.name || *name == path.to_string_lossy());
                if !wanted {
                    continue;
                }
                if let Some(found) = chip.find_line_info(&self.line) {
                    return Ok((path, found.offset));
                }
                if let Ok(offset) = self.line.parse::<u32>()
                    && self.chip.is_some()
                    && offset < info.num_lines
                {
                    return Ok((path, offset));
                }
            }
            if seen.is_empty() {
                return Err(none("there are some, but none can be opened".into()));
            }
            let line = self.chip.iter().map(String::as_str).chain([self.line.as_str()]).collect::<Vec<_>>().join("/");
            Err(GpioError::NoLine { line, chips: seen.join(", ") })
        }
    }

    /// Whether the line is high now: with nothing pressed, true for a button to ground whose pull-up works.
    ///
    /// # Errors
    /// [`GpioError`].
    pub fn idle_level(place: &GpioPlace) -> Result<bool, GpioError> {
        let (chip, offset) = place.find()?;
        let refuse = |error: gpiocdev::Error| GpioError::Line { line: place.line.clone(), detail: error.to_string() };
        let mut builder = Request::builder();
        let request =
            builder.on_chip(chip).with_consumer(CONSUMER).with_line(offset).as_input().request().map_err(refuse)?;
        Ok(request.value(offset).map_err(refuse)? == Value::Active)
    }
}

#[cfg(all(feature = "gpio", target_os = "linux"))]
pub use linux::idle_level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_named_alone_or_behind_its_chip_and_a_number_alone_names_none() {
        let place = |chip: Option<&str>, line: &str| Some(GpioPlace { chip: chip.map(Into::into), line: line.into() });
        assert_eq!(GpioPlace::parse("GPIO17"), place(None, "GPIO17"));
        assert_eq!(GpioPlace::parse("tegra234-gpio/PQ.05"), place(Some("tegra234-gpio"), "PQ.05"));
        assert_eq!(GpioPlace::parse("/dev/gpiochip0/17"), place(Some("/dev/gpiochip0"), "17"));
        for text in ["", "17", "/17", "chip/"] {
            assert_eq!(GpioPlace::parse(text), None, "{text}");
        }
    }
}
