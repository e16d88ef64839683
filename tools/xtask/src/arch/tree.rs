//! The text of the repository, as the rules see it.
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::rust::RustFile;

/// Every text file by its path from the root, with `/` between its parts; Rust files also as tokens and syntax.
#[derive(Default)]
pub(super) struct Tree {
    texts: BTreeMap<String, String>,
    rust: BTreeMap<String, RustFile>,
    manifests: BTreeMap<String, toml::Table>,
    /// Files that should parse and do not, with the parser's message.
    pub(super) broken: Vec<(String, usize, String)>,
}

impl Tree {
    /// Reads what git tracks or would track under `root`.
    ///
    /// # Errors
    /// When the files cannot be listed or read.
    pub(super) fn read(root: &Path) -> anyhow::Result<Tree> {
        let mut files = Vec::new();
        for path in listed(root)? {
            let bytes = match std::fs::read(root.join(&path)) {
                // A file that is deleted and not yet committed is still listed.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                read => read.with_context(|| format!("cannot read {path}"))?,
            };
            // Binary files have no lines to check.
            if let Ok(text) = String::from_utf8(bytes) {
                files.push((path, text));
            }
        }
        Ok(Tree::of(files))
    }

    /// A tree of the given files.
    pub(super) fn of(files: impl IntoIterator<Item = (String, String)>) -> Tree {
        let mut tree = Tree { texts: files.into_iter().collect(), ..Tree::default() };
        for (path, text) in &tree.texts {
            if path.ends_with(".rs") {
                match RustFile::parse(text) {
                    Ok(file) => drop(tree.rust.insert(path.clone(), file)),
                    Err((line, why)) => tree.broken.push((path.clone(), line, why)),
                }
            } else if path.ends_with("Cargo.toml") {
                match text.parse::<toml::Table>() {
                    Ok(table) => drop(tree.manifests.insert(path.clone(), table)),
                    Err(e) => tree.broken.push((path.clone(), 0, e.to_string())),
                }
            }
        }
        let test_modules: Vec<String> = tree
            .rust
            .iter()
            .flat_map(|(path, file)| {
                let dir = module_dir(path);
                file.test_modules().flat_map(move |m| [format!("{dir}{m}.rs"), format!("{dir}{m}/")])
            })
            .collect();
        for (path, file) in &mut tree.rust {
            // A module that is only there for tests may be a file or a folder of files.
            file.test_only = test_modules.iter().any(|m| path == m || m.ends_with('/') && path.starts_with(m.as_str()))
                || path.split('/').any(|part| part == "tests" || part == "benches");
        }
        tree
    }

    /// How many files it has.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Text files whose path begins with `prefix`.
    pub(super) fn texts(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().filter(move |(p, _)| p.starts_with(prefix)).map(|(p, t)| (p.as_str(), t.as_str()))
    }

    /// The text of one file.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Rust files whose path begins with `prefix`.
    pub(super) fn rust(&self, prefix: &str) -> impl Iterator<Item = (&str, &RustFile)> {
        self.rust.iter().filter(move |(p, _)| p.starts_with(prefix)).map(|(p, f)| (p.as_str(), f))
    }

    /// One Rust file.
    pub(super) fn rust_file(&self, path: &str) -> Option<&RustFile> {
        self.rust.get(path)
    }

    /// Every `Cargo.toml`: its folder (empty, or with a `/` at its end) and its table.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&str, &toml::Table)> {
        self.manifests.iter().map(|(p, t)| (p.trim_end_matches("Cargo.toml"), t))
    }

    /// The line (from 1) of the first occurrence of `needle` in a file, 0 when it is not there.
    pub(super) fn line_of(&self, path: &str, needle: &str) -> usize {
        let text = self.text(path).unwrap_or_default();
        text.lines().position(|l| l.contains(needle)).map_or(0, |i| i + 1)
    }
}

/// The folder in which the modules that `path` declares lie, with a `/` at its end.
fn module_dir(path: &str) -> String {
    let (dir, file) = path.rsplit_once('/').map_or(("", path), |(d, f)| (d, f));
    let dir = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    match file {
        "mod.rs" | "lib.rs" | "main.rs" => dir,
        file => format!("{dir}{}/", file.trim_end_matches(".rs")),
    }
}

/// Paths of the files git tracks or would track.
fn listed(root: &Path) -> anyhow::Result<Vec<String>> {
    let out = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git, which lists the files to check")?;
    anyhow::ensure!(out.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    let text = String::from_utf8(out.stdout).context("a path in the tree is not UTF-8")?;
    Ok(text.split_terminator('\0').map(str::to_string).collect())
}
