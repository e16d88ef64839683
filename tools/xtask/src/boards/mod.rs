//! `cargo xtask boards`: the pads' firmware for each board, built, held to its budget, stamped with its digest.
//!
//! A board is a small workspace of its own under `firmware/boards`. They share one target directory, so the libraries
//! that several of them need are built once for each processor.
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

mod elf;
mod toolchain;

use elf::Elf;
use toolchain::Toolchain;

/// One board. The budgets are the pad's, not the chip's; the linker script has the same flash.
pub(crate) struct Board {
    /// The folder under `firmware/boards`, and the name on the image's plate.
    pub(crate) name: &'static str,
    /// Target triple.
    target: &'static str,
    /// Most bytes of flash the image may take.
    flash: u32,
    /// Most bytes of RAM for statics and stack together.
    ram: u32,
    /// Bytes of that for the stack.
    stack: u32,
    /// Whether `cargo xtask ci` builds it each time.
    pub(crate) in_ci: bool,
    /// What a person calls it.
    title: &'static str,
}

const KIB: u32 = 1024;

/// Every board. To add one: its folder under `firmware/boards`, its row here.
pub(crate) static BOARDS: &[Board] = &[
    Board {
        name: "lm3s6965",
        target: "thumbv7m-none-eabi",
        flash: 24 * KIB,
        ram: 8 * KIB,
        stack: 3 * KIB,
        in_ci: true,
        title: "Stellaris LM3S6965 evaluation board, as QEMU emulates it",
    },
    Board {
        name: "pico",
        target: "thumbv6m-none-eabi",
        flash: 48 * KIB,
        ram: 32 * KIB,
        stack: 20 * KIB,
        in_ci: true,
        title: "Raspberry Pi Pico (RP2040), USB and UART",
    },
];

/// What `cargo xtask boards` was asked.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Only these; all when empty.
    only: Vec<String>,
    /// Where images go; `boards/images` in the target directory when absent.
    out: Option<PathBuf>,
    list: bool,
}

impl Options {
    /// `None` when an argument is not understood.
    pub(crate) fn parse(args: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match *arg {
                "--board" => options.only.push((*rest.next()?).into()),
                "--out" => options.out = Some(rest.next()?.into()),
                "--list" => options.list = true,
                _ => return None,
            }
        }
        Some(options)
    }

    /// One board.
    pub(crate) fn only(name: &str) -> Self {
        Self { only: vec![name.into()], ..Self::default() }
    }

    /// The boards of CI.
    pub(crate) fn of_ci() -> Self {
        let only = BOARDS.iter().filter(|board| board.in_ci).map(|board| board.name.into()).collect();
        Self { only, ..Self::default() }
    }
}

/// What was built.
#[derive(Debug, serde::Serialize)]
struct Image {
    board: &'static str,
    target: &'static str,
    file: String,
    version: [u8; 3],
    /// The digest on the image's plate, in hexadecimal, as the pad's greeting carries it.
    digest: String,
    flash_bytes: u32,
    /// Statics alone.
    ram_bytes: u32,
}

/// Builds the boards asked for. Beside the images, `boards.json` says what each is.
///
/// # Errors
/// The first board that does not build or exceeds its budget, by name.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    if options.list {
        for board in BOARDS {
            println!("{:<10} {:<28} {}", board.name, board.target, board.title);
        }
        return Ok(());
    }
    for name in &options.only {
        let names: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
        ensure!(names.contains(&name.as_str()), "no board is called {name}; there are {}", names.join(", "));
    }
    let target_dir = crate::target_dir(root).join("boards");
    let out = options.out.clone().unwrap_or_else(|| target_dir.join("images"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let wanted = |board: &&Board| options.only.is_empty() || options.only.iter().any(|name| name == board.name);
    let mut images = Vec::new();
    for board in BOARDS.iter().filter(wanted) {
        let image = build(root, &target_dir, &out, board).with_context(|| format!("board {}", board.name))?;
        println!(
            "{:<10} flash {:>6} of {:>6} bytes, RAM {:>5} of {:>6} and {} for the stack, digest {}",
            image.board,
            image.flash_bytes,
            board.flash,
            image.ram_bytes,
            board.ram - board.stack,
            board.stack,
            image.digest
        );
        images.push(image);
    }
    let manifest = out.join("boards.json");
    let text = serde_json::to_string_pretty(&images).context("cannot write the list of images")?;
    std::fs::write(&manifest, text + "\n").with_context(|| format!("cannot write {}", manifest.display()))?;
    println!("images and boards.json are in {}", out.display());
    Ok(())
}

fn build(root: &Path, target_dir: &Path, out: &Path, board: &Board) -> anyhow::Result<Image> {
    let dir = root.join("firmware/boards").join(board.name);
    let toolchain = Toolchain::for_target(board.target)?;
    let mut command = toolchain.cargo(&dir, board.target);
    command.args(["--locked", "--target-dir"]).arg(target_dir);
    println!("$ {} (in firmware/boards/{})", toolchain.shown(board.target), board.name);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the build ended with {status}");

    let built = target_dir.join(board.target).join("release").join(format!("hone-board-{}", board.name));
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let mut elf = Elf::parse(bytes).with_context(|| format!("{} is not what a linker makes", built.display()))?;
    let flat = elf.flash_image();
    let flash_bytes = u32::try_from(flat.bytes.len()).unwrap_or(u32::MAX);
    let ram_bytes = elf.ram_bytes(flat.start, flash_bytes);
    if flash_bytes > board.flash {
        bail!("the image has {flash_bytes} bytes, {} more than its budget", flash_bytes - board.flash);
    }
    if ram_bytes + board.stack > board.ram {
        let over = ram_bytes + board.stack - board.ram;
        bail!("statics take {ram_bytes} bytes of RAM: with the stack that is {over} more than the budget");
    }
    let plate = elf.stamp(board.name)?;
    let file = format!("{}.elf", board.name);
    let to = out.join(&file);
    std::fs::write(&to, elf.bytes()).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(Image {
        board: board.name,
        target: board.target,
        file,
        version: plate.version,
        digest: plate.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        flash_bytes,
        ram_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_has_its_folder_and_every_folder_its_row() {
        let boards = crate::root().join("firmware/boards");
        let mut folders: Vec<String> = std::fs::read_dir(&boards)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("memory.x").exists() || path.join("src/main.rs").exists())
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        folders.sort();
        let mut rows: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
        rows.sort_unstable();
        assert_eq!(folders, rows);
    }

    #[test]
    fn the_head_comment_of_a_board_states_the_budget_of_its_row() {
        for board in BOARDS {
            let main = crate::root().join("firmware/boards").join(board.name).join("src/main.rs");
            let text = std::fs::read_to_string(&main).unwrap();
            let budget = format!("flash {} KiB, RAM {} KiB", board.flash / KIB, board.ram / KIB);
            let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
            assert!(head.contains(&budget), "{}: the head comment does not say `{budget}`", main.display());
        }
    }

    #[test]
    fn a_board_that_does_not_exist_is_named_with_those_that_do() {
        let options = Options::parse(&["--board", "toaster"]).unwrap();
        let error = run(&crate::root(), &options).unwrap_err().to_string();
        assert!(error.contains("toaster") && error.contains("lm3s6965"), "{error}");
    }
}
