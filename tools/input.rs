//! Files named on the command line, with errors that name them.
use std::path::Path;

use hone_runtime::Class;

use crate::exit::fail;

/// The bytes of a file.
///
/// # Errors
/// A sentence with the path; exit code 3, the input is not there or not readable.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| fail(Class::Invalid, format!("cannot read {}: {e}", path.display())))
}

/// The text of a file.
///
/// # Errors
/// As [`read`], also when it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| fail(Class::Invalid, format!("{} is not UTF-8 text", path.display())))
}

/// Writes a file whole.
///
/// # Errors
/// A sentence with the path; exit code 6.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).map_err(|e| fail(Class::Store, format!("cannot write {}: {e}", path.display())))
}
