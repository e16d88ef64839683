//! What goes to stdout (data) and how errors are put (one paragraph on stderr).
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Writes one JSON document and a newline to stdout.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Writes a line to stdout.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

/// Whether to colour what goes to stdout: a terminal, and no `NO_COLOR`.
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// True for an error that only says that the reader of our output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// The chain of reasons as one paragraph, none said twice.
pub(crate) fn paragraph(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for link in error.chain() {
        let said = link.to_string();
        if text.contains(&said) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}
