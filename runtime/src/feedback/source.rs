//! Where presses come from, and who keeps them: the two sides that [`Listener`](super::Listener) brings together.
//!
//! A [`Source`] opens a [`Port`], a two-way stream of the pad's frames. A pad on a serial port is one; buttons wired to this
//! machine and devices that send lines of text are others: for those the pad's core runs in this process, so that all of
//! them speak the same protocol to the same host, and what is proved of one holds for all.
use std::fmt;
use std::io::{Read, Write};

use hone_wire::auth::Key;
use hone_wire::host::{CommandError, Ledger};
use hone_wire::message::{Config, PadHello};

use super::gpio::GpioButtons;
use super::lines::LineDevice;
use super::serial::SerialPad;
use crate::gpio::GpioError;
use crate::{Class, Classified};

/// A way to presses.
pub trait Source: Send {
    /// What it is, as a person would write it.
    fn spec(&self) -> String;

    /// Opens it now. Called again, ever less often, when a port of it has failed; that port has then been dropped.
    ///
    /// # Errors
    /// [`SourceError`]; [`SourceError::Ended`] when there is no point in trying again.
    fn open(&mut self) -> Result<Port, SourceError>;

    /// Whether it is part of this machine, so that no pairing is asked of it.
    fn is_local(&self) -> bool {
        false
    }
}

/// An open source. Dropping it lets go of the device.
pub struct Port {
    /// The device file, or what stands for one.
    pub device: String,
    /// Its bytes.
    pub io: Box<dyn Duplex>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Frames both ways. `read` waits at most about 10 ms and then says `TimedOut`; any other error but `Interrupted`, and a
/// read of nothing, means that the port is lost.
pub trait Duplex: Read + Write + Send {
    /// Something people should know, once.
    fn remark(&mut self) -> Option<String> {
        None
    }
}

/// The ledger of a listener, which also knows whom to believe.
pub trait Keeper: Ledger + Send {
    /// On what terms the pad of this greeting is heard. The greeting is **not** authenticated.
    fn terms(&mut self, hello: &PadHello) -> Terms;

    /// The pad has proved that it is who it said, or need not. Called before any of its presses is committed.
    fn connected(&mut self, _hello: &PadHello) {}

    /// A key that the pad was offered and may have taken; see
    /// [`keep_offered_key`](hone_wire::host::Ledger::keep_offered_key).
    fn offered_key(&mut self, _uid: &[u8; 8]) -> Option<Key> {
        None
    }

    /// The pad took a pairing key, which is to be kept durably.
    ///
    /// # Errors
    /// In words; what was kept when the key was offered is then still to be there.
    fn paired(&mut self, _uid: &[u8; 8], _key: &Key) -> Result<(), String> {
        Ok(())
    }
}

/// On what terms a pad is heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Its pairing key, if it is known.
    pub pairing_key: Option<Key>,
    /// Whether it is heard without one.
    pub allow_unpaired: bool,
    /// Timings to set on it; none leaves its own.
    pub timing: Option<Config>,
}

/// Why a source could not be had or used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not a way to name one.
    #[error("`{spec}` names no pad: {reason}; {}", forms())]
    Spec {
        /// What was written.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such port.
    #[error("no serial port matches `{spec}`; ports here: {}", listed(present))]
    Absent {
        /// What was looked for.
        spec: String,
        /// What there is.
        present: Vec<String>,
    },
    /// Someone else has it.
    #[error("{port} is in use by {}; stop that first", holder.as_deref().unwrap_or("another process"))]
    Busy {
        /// The device file.
        port: String,
        /// Name and number of the process, where it may be seen.
        holder: Option<String>,
    },
    /// The operating system refused.
    #[error("cannot open {port}: {detail}; does this user belong to the group that owns it (often `dialout`)?")]
    Open {
        /// The device file.
        port: String,
        /// What it said.
        detail: String,
    },
    /// The lines are not to be had.
    #[error(transparent)]
    Gpio(#[from] GpioError),
    /// Left out of this program.
    #[error("buttons on GPIO lines are not part of this program; build it on Linux with the feature `gpio`")]
    NotBuilt,
    /// There will be nothing more.
    #[error("{spec} has ended")]
    Ended {
        /// What.
        spec: String,
    },
    /// No random numbers, hence no protection against replay.
    #[error("the operating system gave no random numbers: {detail}")]
    Random {
        /// What it said.
        detail: String,
    },
    /// The thread could not be started, or has ended.
    #[error("the pad's thread is not running: {detail}")]
    Thread {
        /// Why.
        detail: String,
    },
    /// The link did not accept a command.
    #[error("the pad's link refused: {0:?}")]
    Refused(CommandError),
}

impl Classified for SourceError {
    fn class(&self) -> Class {
        match self {
            SourceError::Spec { .. } => Class::Usage,
            SourceError::NotBuilt => Class::Unsupported,
            SourceError::Random { .. } | SourceError::Thread { .. } => Class::Failed,
            SourceError::Gpio(error) => error.class(),
            _ => Class::Device,
        }
    }
}

fn listed(ports: &[String]) -> String {
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}

/// One way to name a source.
pub struct SourceRow {
    /// How it is written.
    pub form: &'static str,
    /// What it means, in a sentence.
    pub doc: &'static str,
    prefix: &'static str,
    open: fn(&Spec<'_>) -> Result<Box<dyn Source>, String>,
}

/// Every way to name a source. The last stands for whatever has no prefix of its own.
pub static SOURCES: &[SourceRow] = &[
    SourceRow {
        form: "gpio:[CHIP/]LINE,LINE…",
        doc: "buttons on GPIO lines of one chip, by its label and their names; keys: active=low|high, bias=up|down|off",
        prefix: "gpio:",
        open: |spec| Ok(Box::new(GpioButtons::parse(spec)?)),
    },
    SourceRow {
        form: "lines:PORT",
        doc: "a device that writes `BTN 3 DOWN 12345`: a serial port, a pipe, a file, or - for standard input; key: baud=N",
        prefix: "lines:",
        open: |spec| Ok(Box::new(LineDevice::parse(spec)?)),
    },
    SourceRow {
        form: "auto | PATH | by-id:NAME | usb:VID:PID[:SERIAL]",
        doc: "a pad on a serial port: the first that looks like one, a device file, a name in /dev/serial/by-id, or a USB \
              device by its hexadecimal numbers; key: baud=N",
        prefix: "",
        open: |spec| Ok(Box::new(SerialPad::parse(spec)?)),
    },
];

/// The source that `text` names: `{KEY=VALUE,}FORM`, with the forms of [`SOURCES`].
///
/// # Errors
/// [`SourceError::Spec`].
pub fn parse(text: &str) -> Result<Box<dyn Source>, SourceError> {
    let refuse = |reason: String| SourceError::Spec { spec: text.to_owned(), reason };
    let mut keys = Vec::new();
    let mut rest = text.trim();
    while let Some((key, value, after)) = key_value(rest) {
        keys.push((key, value));
        rest = after;
    }
    let row =
        SOURCES.iter().find(|row| rest.starts_with(row.prefix)).ok_or_else(|| refuse("nothing is named".into()))?;
    (row.open)(&Spec { keys, rest: &rest[row.prefix.len()..] }).map_err(refuse)
}

/// The forms as lines for `--help`.
pub fn help() -> String {
    SOURCES.iter().map(|row| format!("{}\n    {}\n", row.form, row.doc)).collect()
}

fn forms() -> String {
    format!("write {}", SOURCES.iter().map(|row| row.form).collect::<Vec<_>>().join(" | "))
}

/// `KEY=VALUE,AFTER`, if the text begins like that: a key is of lower case letters.
fn key_value(text: &str) -> Option<(&str, &str, &str)> {
    let (key, after) = text.split_once('=')?;
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    let (value, after) = after.split_once(',')?;
    Some((key, value, after))
}

/// A spec taken apart, for the source that reads it.
pub(super) struct Spec<'a> {
    pub(super) keys: Vec<(&'a str, &'a str)>,
    pub(super) rest: &'a str,
}

impl Spec<'_> {
    /// The value of each of `known` keys; any other key is refused.
    pub(super) fn only<const N: usize>(&self, known: [&str; N]) -> Result<[Option<&str>; N], String> {
        if let Some((key, _)) = self.keys.iter().find(|(key, _)| !known.contains(key)) {
            return Err(format!("the key `{key}` means nothing here; known: {}", known.join(", ")));
        }
        Ok(known.map(|name| self.keys.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_parsed_by_its_row_and_what_is_none_is_told_all_forms() {
        for text in [
            "/dev/ttyACM0",
            "baud=9600,/dev/ttyUSB0",
            "by-id:usb-hone_pad_1",
            "usb:2e8a:000a",
            "usb:2e8a:000a:E660:38B7",
            "auto",
            "lines:/dev/ttyUSB1",
            "lines:-",
            "active=high,bias=down,gpio:pinctrl-rp1/GPIO17,GPIO27",
        ] {
            assert_eq!(parse(text).unwrap_or_else(|e| panic!("{e}")).spec(), text);
        }
        for (text, part) in [
            ("", "path is empty"),
            ("usb:2e8a", "hexadecimal"),
            ("by-id:../../etc/passwd", "by-id:NAME"),
            ("gpio:", "no line"),
            ("gpio:17", "`17`"),
            ("active=sideways,gpio:GPIO1", "sideways"),
            ("baud=fast,/dev/ttyUSB0", "fast"),
            ("parity=odd,/dev/ttyUSB0", "parity"),
            ("lines:", "path is empty"),
        ] {
            let error = parse(text).map(|_| ()).unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            let said = error.to_string();
            assert!(said.contains(part) && said.contains("usb:VID:PID"), "{text}: {said}");
        }
    }
}
