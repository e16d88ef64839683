//! What goes to stdout (data) and how errors are put (one paragraph on stderr).
use std::io::{self, Write};

use hone_runtime::learn::Kept;
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

/// Writes one JSON document that begins with its schema; `body` is an object.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn document(schema: &'static str, body: impl Serialize) -> anyhow::Result<()> {
    json(&Document { schema, body })
}

/// Writes values as JSON Lines.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn json_lines<T: Serialize>(values: impl IntoIterator<Item = T>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for value in values {
        serde_json::to_writer(&mut out, &value)?;
        writeln!(out)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Document<T> {
    schema: &'static str,
    #[serde(flatten)]
    body: T,
}

/// Writes a line to stderr, for people. A closed stderr means nobody wants to know.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Rows as columns of equal width, two spaces apart, the first row being the heads; no trailing blanks.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(t, &w)| format!("{t:<w$}")).collect();
        cells.join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What is still known of the source, in words.
pub(crate) fn kept(kept: Option<&Kept>) -> String {
    match kept {
        Some(k) => format!(
            "own ground {:.1} % (shipped {:.1} %, forgotten {:+.1} points, {} samples)",
            100.0 * k.now,
            100.0 * k.factory,
            k.forgotten(),
            k.n
        ),
        None => "forgetting is not known: the bundle ships no source samples".to_string(),
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

/// Whether to colour what goes to stdout: a terminal, and no `NO_COLOR`.
#[cfg(feature = "host")]
pub(crate) fn colour() -> bool {
    io::IsTerminal::is_terminal(&io::stdout()) && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// True for an error that only says that the reader of our output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |e: &(dyn std::error::Error + 'static)| match e.downcast_ref::<io::Error>() {
        Some(e) => Some(e.kind()),
        // This one does not name the error of the stream as its source.
        None => e.downcast_ref::<serde_json::Error>().and_then(|e| e.io_error_kind()),
    };
    error.chain().any(|e| kind(e) == Some(io::ErrorKind::BrokenPipe))
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
