//! The boards there are: each folder under `firmware/boards` whose `Cargo.toml` has a table `package.metadata.board`.
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

const KIB: u32 = 1024;

/// One board, as its `Cargo.toml` describes it. The budgets are the pad's, not the chip's; the linker script has the same
/// flash.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Board {
    /// The folder's name, and the name on the image's plate.
    #[serde(skip)]
    pub(super) name: String,
    /// What a person calls it.
    pub(super) title: String,
    /// Target triple.
    pub(super) target: String,
    flash_kib: u32,
    ram_kib: u32,
    stack_kib: u32,
    /// First address of RAM, and the one after the last; of Cortex-M chips it is where all of them have theirs.
    #[serde(default = "cortex_m_ram")]
    ram_at: [u32; 2],
    /// Whether `cargo xtask ci` builds it each time.
    #[serde(default)]
    pub(super) in_ci: bool,
}

impl Board {
    /// Most bytes of flash the image may take.
    pub(super) fn flash(&self) -> u32 {
        self.flash_kib * KIB
    }

    /// Most bytes of RAM for statics alone.
    pub(super) fn statics(&self) -> u32 {
        (self.ram_kib - self.stack_kib) * KIB
    }

    /// Where RAM is.
    pub(super) fn ram(&self) -> Range<u32> {
        self.ram_at[0]..self.ram_at[1]
    }

    /// Bytes of RAM for the stack.
    pub(super) fn stack(&self) -> u32 {
        self.stack_kib * KIB
    }
}

fn cortex_m_ram() -> [u32; 2] {
    [0x2000_0000, 0x4000_0000]
}

/// Where the boards are.
pub(super) fn folder(root: &Path) -> PathBuf {
    root.join("firmware/boards")
}

/// Every board, by name.
///
/// # Errors
/// A folder with a program but without the table, or with one that is not understood.
pub(super) fn all(root: &Path) -> anyhow::Result<Vec<Board>> {
    let folder = folder(root);
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut boards = Vec::new();
    for entry in entries {
        let dir = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if dir.join("src/main.rs").exists() {
            boards.push(read(&dir).with_context(|| format!("{}", dir.join("Cargo.toml").display()))?);
        }
    }
    boards.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(boards)
}

fn read(dir: &Path) -> anyhow::Result<Board> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        board: Board,
    }
    let text = std::fs::read_to_string(dir.join("Cargo.toml"))?;
    let mut board = toml::from_str::<Manifest>(&text)?.package.metadata.board;
    board.name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(board.stack_kib < board.ram_kib, "stack-kib leaves nothing of ram-kib for statics");
    Ok(board)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_comment_and_the_linker_script_of_a_board_state_its_budget() {
        let root = crate::root();
        let boards = all(&root).unwrap();
        assert!(boards.iter().any(|board| board.in_ci));
        for Board { name, flash_kib, ram_kib, .. } in boards {
            let dir = folder(&root).join(&name);
            let text = std::fs::read_to_string(dir.join("src/main.rs")).unwrap();
            let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
            let budget = format!("flash {flash_kib} KiB, RAM {ram_kib} KiB");
            assert!(head.contains(&budget), "{name}: the head comment does not say `{budget}`");
            // The chip's own script where there is none.
            if let Ok(script) = std::fs::read_to_string(dir.join("memory.x")) {
                let length = format!("LENGTH = {flash_kib}K");
                assert!(script.contains(&length), "{name}: memory.x does not say `{length}`");
            }
        }
    }

    #[test]
    fn a_folder_with_a_program_and_no_table_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("firmware/boards/toaster");
        std::fs::create_dir_all(dir.join("src")).unwrap();
        std::fs::write(dir.join("src/main.rs"), "").unwrap();
        let table = "title = 'x'\ntarget = 'thumbv7m-none-eabi'\nflash-kib = 24\nram-kib = 8\nstack-kib = 3\n";
        for (manifest, good) in [
            (String::from("[package]\nname = 'x'\n"), false),
            (format!("[package.metadata.board]\n{table}speed = 3\n"), false),
            (format!("[package.metadata.board]\n{table}"), true),
        ] {
            std::fs::write(dir.join("Cargo.toml"), &manifest).unwrap();
            match all(root.path()) {
                Ok(boards) => assert!(good && boards[0].name == "toaster", "{manifest}"),
                Err(error) => assert!(!good && format!("{error:#}").contains("toaster"), "{error:#}"),
            }
        }
    }
}
