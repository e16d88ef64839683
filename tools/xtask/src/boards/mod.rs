//! `cargo xtask boards`: the pads' firmware for each board, built, held to its budget, stamped with its digest.
//!
//! A board is a small workspace of its own under `firmware/boards`. They share one target directory, so the libraries
//! that several of them need are built once for each processor.
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

mod board;
mod elf;
mod toolchain;

use board::Board;
use elf::Elf;

/// What `cargo xtask boards` was asked.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Only these; all when empty.
    only: Vec<String>,
    /// Where images go; `boards/images` in the target directory when absent.
    out: Option<PathBuf>,
    list: bool,
    /// Those that `cargo xtask ci` builds each time, instead of all.
    of_ci: bool,
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
        Self { of_ci: true, ..Self::default() }
    }

    fn wants(&self, board: &Board) -> bool {
        if self.only.is_empty() { !self.of_ci || board.in_ci } else { self.only.contains(&board.name) }
    }
}

/// How it ended.
#[must_use]
pub(crate) enum Ended {
    /// Built, within the budgets.
    Built,
    /// There is no compiler for a board's processor here, and none can be had.
    Unavailable(String),
}

/// What was built.
#[derive(Debug, serde::Serialize)]
struct Image {
    board: String,
    target: String,
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
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<Ended> {
    let boards = board::all(root)?;
    if options.list {
        for board in boards {
            println!("{:<10} {:<28} {}", board.name, board.target, board.title);
        }
        return Ok(Ended::Built);
    }
    for name in &options.only {
        let names: Vec<_> = boards.iter().map(|board| board.name.as_str()).collect();
        ensure!(names.contains(&name.as_str()), "no board is called {name}; there are {}", names.join(", "));
    }
    let target_dir = crate::target_dir(root).join("boards");
    if options.only.is_empty() {
        test_common(root, &target_dir)?;
    }
    let out = options.out.clone().unwrap_or_else(|| target_dir.join("images"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut images = Vec::new();
    for board in boards.iter().filter(|board| options.wants(board)) {
        if let Err(why) = toolchain::see_to(&board.target) {
            return Ok(Ended::Unavailable(why));
        }
        let image = build(root, &target_dir, &out, board).with_context(|| format!("board {}", board.name))?;
        println!(
            "{:<10} flash {:>6} of {:>6} bytes, RAM {:>5} of {:>6} and {} for the stack, digest {}",
            image.board,
            image.flash_bytes,
            board.flash(),
            image.ram_bytes,
            board.statics(),
            board.stack(),
            image.digest
        );
        images.push(image);
    }
    let manifest = out.join("boards.json");
    let text = serde_json::to_string_pretty(&images).context("cannot write the list of images")?;
    std::fs::write(&manifest, text + "\n").with_context(|| format!("cannot write {}", manifest.display()))?;
    println!("images and boards.json are in {}", out.display());
    Ok(Ended::Built)
}

/// Bytes of memory that an image takes, or may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Below the stack.
    pub(crate) statics: u32,
    /// Most for the stack.
    pub(crate) stack: u32,
}

/// Memory of the image that [`run`] has built last.
///
/// # Errors
/// When there is none.
pub(crate) fn memory(root: &Path, name: &str) -> anyhow::Result<Memory> {
    let board = board::all(root)?.into_iter().find(|board| board.name == name).context("no such board")?;
    let image = crate::target_dir(root).join("boards/images").join(format!("{name}.elf"));
    let bytes = std::fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    Ok(Memory { statics: Elf::parse(bytes)?.takes(&board.ram()), stack: board.stack() })
}

/// Sees to the core library of a target.
///
/// # Errors
/// Why there is none.
pub(crate) fn see_to_target(target: &str) -> Result<(), String> {
    toolchain::see_to(target)
}

/// Address of the static of that name in a board's image.
///
/// # Errors
/// When the file has none.
pub(crate) fn symbol(image: &Path, name: &str) -> anyhow::Result<u32> {
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    Elf::parse(bytes)?.symbol(name).with_context(|| format!("{} has no {name}", image.display()))
}

/// The tests of what boards share, which need none.
fn test_common(root: &Path, target_dir: &Path) -> anyhow::Result<()> {
    let mut command = crate::ci::cargo_command(&board::folder(root).join("common"));
    command.args(["test", "--quiet", "--locked", "--target-dir"]).arg(target_dir);
    println!("$ cargo test (in firmware/boards/common)");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the tests of firmware/boards/common ended with {status}");
    Ok(())
}

fn build(root: &Path, target_dir: &Path, out: &Path, board: &Board) -> anyhow::Result<Image> {
    let dir = board::folder(root).join(&board.name);
    let mut command = toolchain::cargo(&dir, &board.target);
    command.args(["--locked", "--target-dir"]).arg(target_dir);
    println!("$ cargo build --release --target {} (in firmware/boards/{})", board.target, board.name);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the build ended with {status}");

    let built = target_dir.join(&board.target).join("release").join(format!("hone-board-{}", board.name));
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let mut elf = Elf::parse(bytes).with_context(|| format!("{} is not what a linker makes", built.display()))?;
    let flash_bytes = u32::try_from(elf.image().len()).unwrap_or(u32::MAX);
    let ram_bytes = elf.takes(&board.ram());
    if flash_bytes > board.flash() {
        bail!("the image has {flash_bytes} bytes, {} more than its budget", flash_bytes - board.flash());
    }
    if ram_bytes > board.statics() {
        let over = ram_bytes - board.statics();
        bail!("statics take {ram_bytes} bytes of RAM: with the stack that is {over} more than the budget");
    }
    let plate = elf.stamp(&board.name)?;
    let file = format!("{}.elf", board.name);
    let to = out.join(&file);
    std::fs::write(&to, elf.bytes()).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(Image {
        board: board.name.clone(),
        target: board.target.clone(),
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
    fn a_board_that_does_not_exist_is_named_with_those_that_do() {
        let options = Options::parse(&["--board", "toaster"]).unwrap();
        let error = run(&crate::root(), &options).err().unwrap().to_string();
        assert!(error.contains("toaster") && error.contains("lm3s6965"), "{error}");
    }
}
