//! `hone flash`: firmware onto a pad, done when the pad itself says that it runs it.
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::feedback::setup::SetupError;
use hone_runtime::feedback::uid_text;
use hone_runtime::flash::{Board, Drive, FlashError, Image, Plate, Tool, Way, find_drive, uf2};

use super::pad::{digits, greet, meet, version};
use crate::exit::fail;
use crate::machine::which;
use crate::output;

/// Looking for a pad that may not be there, or not be running.
const SHORT: Duration = Duration::from_secs(2);
/// From the loader to the drive.
const DRIVE: Duration = Duration::from_secs(20);
/// From the new firmware to its greeting.
const BOOT: Duration = Duration::from_secs(30);

/// Puts firmware onto a board.
#[derive(Args)]
pub(crate) struct Flash {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A pad's firmware: checks it against the board, writes it, and waits until the pad greets with its version and
    /// digest.
    Pad(FlashPad),
}

#[derive(Args)]
struct FlashPad {
    /// pico, pico2, stm32f103, nrf52840, esp32c3.
    #[arg(long)]
    board: String,
    /// An ELF or UF2 file, or `built-in`.
    firmware: String,
    /// The pad as `hone listen --pad` takes it, before and after.
    #[arg(long, default_value = "auto")]
    pad: String,
    /// Where the board is mounted as a drive, if it is not to be looked for.
    #[arg(long, value_name = "DIR")]
    drive: Option<PathBuf>,
    /// Flash although the pad still holds presses, which another version may not be able to read.
    #[arg(long)]
    force: bool,
    /// Say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Leave it at the bytes: do not wait for the pad to greet. The exit code then says nothing about what it runs.
    #[arg(long)]
    no_wait: bool,
    /// The state directory, for the pad's key.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl Flash {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let What::Pad(pad) = self.what;
        pad.run()
    }
}

impl FlashPad {
    fn run(self) -> anyhow::Result<ExitCode> {
        let board = Board::named(&self.board)?;
        let image = Image::parse(&self.firmware()?)?;
        let plate = board.accepts(&image)?;
        let (start, end) = image.range();
        output::say(format!(
            "{} {} ({} bytes at {start:#x}) for {}",
            version(plate.version),
            digits(&plate.digest),
            end - start,
            board.title
        ));
        let running = self.before(board, &plate)?;
        if self.dry_run {
            let how = match board.way {
                Way::Uf2 { without_drive, .. } => match find_drive(board, self.drive.as_deref(), Drive::mounted()) {
                    Ok(drive) => format!("copied to {}", drive.path.display()),
                    Err(FlashError::NoDrive { .. }) if self.by_tool(without_drive) => {
                        format!("given to `{without_drive}`")
                    }
                    Err(FlashError::NoDrive { .. }) => "copied to its drive, which is not there yet".into(),
                    Err(error) => return Err(error.into()),
                },
                Way::Tool { tool, .. } => format!("given to `{tool}`"),
            };
            output::line(format!("would be {how}; nothing was done"))?;
            return Ok(ExitCode::SUCCESS);
        }
        match board.way {
            Way::Uf2 { family, without_drive, .. } => match self.find(board, running && !self.by_tool(without_drive)) {
                Ok(drive) => {
                    drive.write(&uf2::write(&image, family))?;
                    output::say(format!("written to {}", drive.path.display()));
                }
                Err(FlashError::NoDrive { .. }) if self.by_tool(without_drive) => {
                    self.when_there(without_drive, running)?
                }
                Err(error) => return Err(error.into()),
            },
            Way::Tool { tool, install } => {
                if which(tool.program).is_none() {
                    return Err(FlashError::NoTool { title: board.title, tools: tool.program, install }.into());
                }
                self.call(tool)?;
            }
        }
        if self.no_wait {
            output::line("written; whether the pad runs it was not waited for")?;
            return Ok(ExitCode::SUCCESS);
        }
        self.after(board, &plate)?;
        output::line(format!("the pad runs {} {}", version(plate.version), digits(&plate.digest)))?;
        Ok(ExitCode::SUCCESS)
    }

    fn firmware(&self) -> anyhow::Result<Vec<u8>> {
        if self.firmware == "built-in" {
            return built_in(&self.board);
        }
        std::fs::read(&self.firmware)
            .map_err(|error| fail(Class::Invalid, format!("cannot read the firmware {}: {error}", self.firmware)))
    }

    /// Looks at the pad as it is, if it runs: what it holds is not to be lost. True when it goes into its loader.
    fn before(&self, board: &'static Board, plate: &Plate) -> anyhow::Result<bool> {
        let uf2 = matches!(board.way, Way::Uf2 { .. });
        if uf2 && self.pad == "auto" && find_drive(board, self.drive.as_deref(), Drive::mounted()).is_ok() {
            // The board is in its loader; a pad that greets would be another one.
            return Ok(false);
        }
        let (guest, hello) = match meet(self.pad(board), self.state.as_deref(), SHORT, false)? {
            Ok(met) => met,
            Err(why @ SetupError::Silent { withheld: true, .. }) if !self.force => {
                return Err(fail(
                    Class::TryAgain,
                    format!("whether the pad still holds presses cannot be seen: {why}; see to that, or say --force"),
                ));
            }
            // A new board, or one in its loader, does not greet; then there is nothing to lose that could be kept.
            Err(_) => return Ok(false),
        };
        let held = hello.next.wrapping_sub(hello.first);
        output::say(format!("the pad runs {} {}", version(hello.firmware), digits(&hello.firmware_hash)));
        if held > 0 && !self.force {
            return Err(fail(
                Class::TryAgain,
                format!(
                    "the pad still holds {held} events that {} may not be able to read; let `hone listen` fetch them \
                     first, or say --force",
                    version(plate.version)
                ),
            ));
        }
        if self.dry_run || !uf2 {
            // Where another program flashes, it also sees to the loader.
            return Ok(true);
        }
        output::say(format!("pad {} goes into its loader", uid_text(&hello.uid)));
        if let Err(error) = guest.reboot_to_loader() {
            output::say(format!("it does not go into its loader by itself ({error}); use its button"));
            return Ok(false);
        }
        Ok(true)
    }

    /// Where the pad is: for `auto`, where a board of that kind is.
    fn pad<'a>(&'a self, board: &'static Board) -> &'a str {
        if self.pad == "auto" { board.port } else { &self.pad }
    }

    fn find(&self, board: &'static Board, coming: bool) -> Result<Drive, FlashError> {
        let end = Instant::now() + DRIVE;
        loop {
            match find_drive(board, self.drive.as_deref(), Drive::mounted()) {
                Err(FlashError::NoDrive { .. }) if coming && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                other => return other,
            }
        }
    }

    /// Whether a board that shows no drive is given to a program: not if a drive was named.
    fn by_tool(&self, tool: Tool) -> bool {
        self.drive.is_none() && which(tool.program).is_some()
    }

    /// Calls it; for a board that is only now going into its loader, until that is there.
    fn when_there(&self, tool: Tool, coming: bool) -> anyhow::Result<()> {
        let end = Instant::now() + DRIVE;
        loop {
            match self.call(tool) {
                Err(why) if coming && Instant::now() < end => {
                    output::say(format!("{why}; the board may not be in its loader yet: trying again"));
                    std::thread::sleep(Duration::from_secs(1));
                }
                other => return other,
            }
        }
    }

    /// Calls a program that takes a file: of firmware that is built in, a file for as long as that lasts.
    fn call(&self, tool: Tool) -> anyhow::Result<()> {
        if self.firmware != "built-in" {
            return call(tool, Path::new(&self.firmware));
        }
        let path = std::env::temp_dir().join(format!("hone-{}-{}.elf", self.board, std::process::id()));
        let mut file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let done = self.firmware().and_then(|image| Ok(file.write_all(&image)?)).and_then(|()| call(tool, &path));
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        done
    }

    /// Waits for the greeting of what was flashed.
    fn after(&self, board: &'static Board, plate: &Plate) -> anyhow::Result<()> {
        let end = Instant::now() + BOOT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (_guest, hello) = greet(self.pad(board), self.state.as_deref(), left)?;
            let runs = (hello.firmware, hello.firmware_hash);
            if runs == (plate.version, plate.digest) {
                return Ok(());
            }
            if Instant::now() + SHORT > end {
                let runs = format!("{} {}", version(runs.0), digits(&runs.1));
                return Err(fail(Class::Device, format!("the pad greets, but it runs {runs}, not what was flashed")));
            }
            std::thread::sleep(SHORT / 4);
        }
    }
}

fn call(tool: Tool, image: &Path) -> anyhow::Result<()> {
    for call in tool.calls {
        let arguments = call.iter().map(|a| if *a == "{}" { image.as_os_str() } else { OsStr::new(a) });
        let status = Command::new(tool.program).args(arguments).status()?;
        if !status.success() {
            return Err(fail(Class::Device, format!("`{} {}` ended with {status}", tool.program, call.join(" "))));
        }
    }
    Ok(())
}

/// Every board's image in the directory that the program was built with.
#[cfg(feature = "firmware")]
#[derive(rust_embed::Embed)]
#[folder = "$HONE_FIRMWARE"]
#[include = "*.elf"]
struct Images;

#[cfg(feature = "firmware")]
fn built_in(board: &str) -> anyhow::Result<Vec<u8>> {
    match Images::get(&format!("{board}.elf")) {
        Some(image) => Ok(image.data.into_owned()),
        None => Err(fail(Class::Usage, format!("no firmware for {board} is built in; name a file"))),
    }
}

#[cfg(not(feature = "firmware"))]
fn built_in(board: &str) -> anyhow::Result<Vec<u8>> {
    Err(fail(
        Class::Unsupported,
        format!(
            "no firmware is built into this program; `cargo xtask boards --board {board}` makes it, or build with \
             `HONE_FIRMWARE=DIR cargo build --features firmware`"
        ),
    ))
}
