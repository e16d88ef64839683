//! Firmware onto boards: images, the drives that boards show up as, and the tools of others for boards that are none.
//!
//! Deliberately no driver for debug probes: `probe-rs`, `espflash` and `picotool` are called where they are installed.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

mod image;
#[cfg(test)]
mod tests;
pub mod uf2;

pub use image::{Image, PAGE, Plate};

use crate::{Class, Classified};

/// What a board's drive has in it that says what it is.
const INFO: &str = "INFO_UF2.TXT";
/// Where drives are mounted.
const MOUNTS: &str = "/proc/self/mounts";

/// Why something cannot be flashed.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// The file is no image.
    #[error("the firmware cannot be used: {what}")]
    Image {
        /// Why.
        what: String,
    },
    /// The image is for something else.
    #[error(
        "this firmware is for {image}, the board is {board}; flashing it would do nothing or harm, so it is not done"
    )]
    WrongBoard {
        /// What the image is for.
        image: String,
        /// What was asked for, or is there.
        board: String,
    },
    /// No such board.
    #[error("no board is called `{name}`; there are {known}")]
    UnknownBoard {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// No drive.
    #[error(
        "no {title} shows up as a drive; hold its BOOTSEL button while plugging it in, mount the drive that appears, and try again, or say --drive DIR"
    )]
    NoDrive {
        /// The board.
        title: &'static str,
    },
    /// Several drives.
    #[error("several boards show up as drives: {}; say which with --drive DIR", drives.join(", "))]
    ManyDrives {
        /// Where they are mounted.
        drives: Vec<String>,
    },
    /// None of the programs is installed.
    #[error("{title} is flashed by {tools}, which is not installed; {install}")]
    NoTool {
        /// The board.
        title: &'static str,
        /// What would do it.
        tools: &'static str,
        /// How to get it.
        install: &'static str,
    },
    /// The drive cannot be written.
    #[error("cannot write {path}: {source}")]
    Drive {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Classified for FlashError {
    fn class(&self) -> Class {
        match self {
            FlashError::Image { .. } | FlashError::WrongBoard { .. } => Class::Invalid,
            FlashError::UnknownBoard { .. } | FlashError::ManyDrives { .. } => Class::Usage,
            FlashError::NoDrive { .. } | FlashError::NoTool { .. } | FlashError::Drive { .. } => Class::Device,
        }
    }
}

/// How firmware gets onto a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Copied to the drive it shows up as; the family of its UF2 files.
    Uf2 {
        /// UF2 family.
        family: u32,
        /// The start of `Board-ID` in its `INFO_UF2.TXT`.
        board_id: &'static str,
        /// What does it where the drive is not mounted, if it is installed.
        without_drive: Tool,
    },
    /// By another program.
    Tool {
        /// The program.
        tool: Tool,
        /// How to get it.
        install: &'static str,
    },
}

/// A program of others that flashes. Each of its commands ends, and the last leaves the board running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub program: &'static str,
    /// Arguments of each call of it, with `{}` in place of the image.
    pub calls: &'static [&'static [&'static str]],
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let calls: Vec<String> = self.calls.iter().map(|call| format!("{} {}", self.program, call.join(" "))).collect();
        f.write_str(&calls.join(" && "))
    }
}

/// A board that can be flashed.
#[derive(Debug)]
pub struct Board {
    /// As on an image's plate.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// How.
    pub way: Way,
    /// Where it is looked for, as `--pad` has it: pads say that they are one where the board has its own USB.
    pub port: &'static str,
}

const PROBE_RS: &str = "cargo install probe-rs-tools --locked";

const PICOTOOL: Tool = Tool { program: "picotool", calls: &[&["load", "-x", "{}"]] };

/// Every board. `cargo xtask boards --list` has those there is firmware for.
pub static BOARDS: &[Board] = &[
    Board {
        name: "pico",
        title: "Raspberry Pi Pico",
        way: Way::Uf2 { family: 0xe48b_ff56, board_id: "RPI-RP2", without_drive: PICOTOOL },
        port: "auto",
    },
    Board {
        name: "pico2",
        title: "Raspberry Pi Pico 2",
        way: Way::Uf2 { family: 0xe48b_ff59, board_id: "RP2350", without_drive: PICOTOOL },
        port: "auto",
    },
    Board {
        name: "stm32f103",
        title: "STM32 Blue Pill",
        way: Way::Tool {
            // `probe-rs run` would stay for the board's output, and `download` alone may leave it halted.
            tool: Tool {
                program: "probe-rs",
                calls: &[&["download", "--chip", "STM32F103C8", "{}"], &["reset", "--chip", "STM32F103C8"]],
            },
            install: PROBE_RS,
        },
        port: "auto",
    },
    Board {
        name: "nrf52840",
        title: "nRF52840",
        way: Way::Tool {
            tool: Tool {
                program: "probe-rs",
                calls: &[&["download", "--chip", "nRF52840_xxAA", "{}"], &["reset", "--chip", "nRF52840_xxAA"]],
            },
            install: PROBE_RS,
        },
        port: "auto",
    },
    Board {
        name: "esp32c3",
        title: "ESP32-C3",
        way: Way::Tool {
            tool: Tool { program: "espflash", calls: &[&["flash", "{}"]] },
            install: "cargo install espflash --locked",
        },
        // The chip's own serial port, whose name is the same for every program.
        port: "usb:303a:1001",
    },
];

impl Board {
    /// The board of that name.
    ///
    /// # Errors
    /// [`FlashError::UnknownBoard`].
    pub fn named(name: &str) -> Result<&'static Board, FlashError> {
        BOARDS.iter().find(|board| board.name == name).ok_or_else(|| FlashError::UnknownBoard {
            name: name.into(),
            known: BOARDS.iter().map(|board| board.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether the image is for this board, and what it says it is.
    ///
    /// # Errors
    /// [`FlashError::WrongBoard`], or that of [`Image::plate`].
    pub fn accepts(&self, image: &Image) -> Result<Plate, FlashError> {
        if let (Way::Uf2 { family, .. }, Some(of)) = (self.way, image.family())
            && of != family
        {
            let image = format!("chips of family {of:#010x}");
            return Err(FlashError::WrongBoard { image, board: format!("{} ({family:#010x})", self.title) });
        }
        let plate = image.plate()?;
        if plate.board != self.name {
            return Err(FlashError::WrongBoard { image: plate.board, board: self.name.into() });
        }
        Ok(plate)
    }
}

/// A board that shows up as a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Where it is mounted.
    pub path: PathBuf,
    /// `Board-ID` of its `INFO_UF2.TXT`.
    pub board_id: String,
}

impl Drive {
    /// The drive at `path`, if it is a board's.
    pub fn at(path: &Path) -> Option<Drive> {
        let info = fs::read_to_string(path.join(INFO)).ok()?;
        if !info.starts_with("UF2 Bootloader") {
            return None;
        }
        let board_id = info.lines().find_map(|line| line.strip_prefix("Board-ID:"))?.trim().to_owned();
        Some(Drive { path: path.into(), board_id })
    }

    /// Every board that is mounted as a drive now, found by what is in it and not by its label.
    pub fn mounted() -> Vec<Drive> {
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
        places.filter_map(|place| Drive::at(Path::new(&place))).collect()
    }

    /// Puts the image on it, durable on return, unless the board takes it and is gone first, which is how it says that it
    /// has it. Whether it runs is for its greeting to tell.
    ///
    /// # Errors
    /// [`FlashError::Drive`].
    pub fn write(&self, file: &[u8]) -> Result<(), FlashError> {
        let path = self.path.join("hone.uf2");
        let fail = |source| FlashError::Drive { path: path.clone(), source };
        let mut to: File = OpenOptions::new().write(true).create(true).truncate(true).open(&path).map_err(fail)?;
        to.write_all(file).map_err(fail)?;
        match to.sync_all() {
            Err(source) if self.path.join(INFO).exists() => Err(fail(source)),
            _ => Ok(()),
        }
    }
}

/// The one drive of this board.
///
/// # Errors
/// [`FlashError::NoDrive`], [`FlashError::ManyDrives`]; [`FlashError::WrongBoard`] when the named drive is another board's.
pub fn find_drive(board: &Board, named: Option<&Path>, mounted: Vec<Drive>) -> Result<Drive, FlashError> {
    let none = FlashError::NoDrive { title: board.title };
    let Way::Uf2 { board_id, .. } = board.way else { return Err(none) };
    if let Some(path) = named {
        let drive = Drive::at(path).ok_or(none)?;
        if !drive.board_id.starts_with(board_id) {
            return Err(FlashError::WrongBoard { image: board.title.into(), board: drive.board_id });
        }
        return Ok(drive);
    }
    let mut drives: Vec<Drive> = mounted.into_iter().filter(|drive| drive.board_id.starts_with(board_id)).collect();
    match (drives.pop(), drives.is_empty()) {
        (None, _) => Err(none),
        (Some(drive), true) => Ok(drive),
        (Some(last), false) => {
            let drives = drives.iter().chain([&last]).map(|drive| drive.path.display().to_string()).collect();
            Err(FlashError::ManyDrives { drives })
        }
    }
}

/// A path as `/proc/self/mounts` writes it: blanks and backslashes are octal.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                out.push(char::from(code));
                out.push_str(rest);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}
