//! What several tests need: the program, the shipped bundle, a state directory.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under test, with nothing of the caller's own state or configuration in its environment.
pub(crate) fn hone() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_hone"));
    c.env_remove("STATE_DIRECTORY").env_remove("XDG_STATE_HOME").env("NO_COLOR", "1");
    // What GPUs compile, and which was faster, is kept there, and not in the user's own place.
    c.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    c.env("CONFIGURATION_DIRECTORY", "/nonexistent").env("XDG_CONFIG_HOME", "/nonexistent").env_remove("HONE_CONFIG");
    c
}

/// The folder of the shipped model.
pub(crate) fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit")
}

/// The shipped bundle.
pub(crate) fn bundle() -> PathBuf {
    model_dir().join("which-digit.hone")
}

/// Standard error as text.
pub(crate) fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Asserts an exit code and one paragraph on stderr that contains `words`, and no panic.
pub(crate) fn fails(out: &Output, code: i32, words: &[&str]) {
    let err = said(out);
    assert_eq!(out.status.code(), Some(code), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    for w in words {
        assert!(err.contains(w), "`{w}` is not in: {err}");
    }
    let paragraph: Vec<&str> = err.trim().lines().filter(|l| l.starts_with("hone: ")).collect();
    assert_eq!(paragraph.len(), 1, "one paragraph: {err}");
}

/// Copies a directory.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy_dir(&e.path(), &target)
        } else {
            std::fs::copy(e.path(), target).map(drop).unwrap()
        }
    }
}
