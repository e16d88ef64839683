//! Stored (uncompressed) zip archives as byte ranges, with nothing hidden between them.
use std::io::{self, Cursor, Write};
use std::ops::Range;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::{BundleError, MAX_FILES};

/// The files of a stored zip, by name, as ranges of `bytes`, in archive order. Directory entries are left out.
///
/// Entries must cover the archive without gap or overlap up to the central directory, so that nothing can lie in it
/// that this list does not show. Every CRC is checked.
///
/// # Errors
/// [`BundleError::Zip`] and [`BundleError::ZipEntry`]: damage, compression, encryption, links, doubled or hidden entries.
pub(crate) fn index(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, BundleError> {
    let damaged = |e: zip::result::ZipError| BundleError::Zip { reason: e.to_string() };
    let whole = |reason: &str| BundleError::Zip { reason: reason.to_string() };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    if archive.len() > MAX_FILES {
        return Err(BundleError::TooMany { what: "files", limit: MAX_FILES });
    }
    if archive.has_duplicate_names() {
        return Err(whole("two entries have the same name"));
    }
    // The end record is 22 bytes when it has no comment; the reader would look for it further up.
    let end_record = bytes.len().checked_sub(22).map(|at| &bytes[at..at + 4]);
    if archive.offset() != 0 || !archive.comment().is_empty() || end_record != Some(b"PK\x05\x06") {
        return Err(whole("something stands before or after the archive"));
    }
    let mut spans = Vec::with_capacity(archive.len());
    for i in 0..archive.len() {
        let name = archive
            .name_for_index(i)
            .ok_or_else(|| whole("an entry has no name"))?
            .map_err(|e| BundleError::ZipEntry { path: format!("#{i}"), reason: e.to_string() })?
            .into_owned();
        let refuse = |reason: String| BundleError::ZipEntry { path: name.clone(), reason };
        let mut entry = archive.by_index(i).map_err(|e| refuse(e.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(refuse(format!("is compressed ({}); a bundle is stored: zip -0", entry.compression())));
        }
        if entry.encrypted() {
            return Err(refuse("is encrypted".into()));
        }
        if entry.is_symlink() || entry.unix_mode().is_some_and(|m| !matches!(m & 0o170000, 0 | 0o100000 | 0o040000)) {
            return Err(BundleError::Link { path: name, kind: "symbolic link" });
        }
        let start = entry.data_start().ok_or_else(|| refuse("has no data".into()))?;
        let (header, size) = (entry.header_start(), entry.compressed_size());
        if size != entry.size() {
            return Err(refuse(format!("is stored, but says {} bytes become {size}", entry.size())));
        }
        let end = start.checked_add(size).filter(|&e| e <= bytes.len() as u64);
        let end = end.ok_or_else(|| refuse(format!("says {size} bytes, more than the archive holds")))?;
        // The bounds above make this read no more than the archive; its purpose is the CRC.
        io::copy(&mut entry, &mut io::sink()).map_err(|e| refuse(e.to_string()))?;
        let directory = entry.is_dir();
        if directory && size != 0 {
            return Err(refuse("is a directory with content".into()));
        }
        drop(entry);
        spans.push((header, start, end, name, directory));
    }
    spans.sort_by_key(|s| s.0);
    let mut at = 0;
    for (header, _, end, name, _) in &spans {
        if *header != at {
            return Err(BundleError::ZipEntry { path: name.clone(), reason: "hidden bytes stand before it".into() });
        }
        at = *end;
    }
    if at != archive.central_directory_start() {
        return Err(whole("hidden bytes stand before the central directory"));
    }
    // Offsets are at most bytes.len(), so they fit usize.
    Ok(spans.into_iter().filter(|s| !s.4).map(|s| (s.3, s.1 as usize..s.2 as usize)).collect())
}

/// A stored zip of `files` in the given order: no times, mode 0644, so equal files give equal bytes.
///
/// # Errors
/// What the zip writer says, for instance two equal names.
pub(crate) fn write<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> io::Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    for (path, bytes) in files {
        zip.start_file(path, options)?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}
