//! Where the bytes of a bundle lie: a directory, a stored zip in memory, or single files in memory.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{BundleError, MAX_FILES, path, stored};

/// Deepest directory level, and with `MAX_FILES` the bound on what a walk looks at.
const MAX_DEPTH: usize = 16;

pub(crate) enum Source {
    Directory { root: PathBuf, sizes: BTreeMap<String, u64> },
    Zip { bytes: Cow<'static, [u8]>, ranges: BTreeMap<String, Range<usize>> },
    Files(BTreeMap<String, Cow<'static, [u8]>>),
}

impl Source {
    /// Lists a directory without opening any file in it.
    pub(crate) fn directory(root: &Path) -> Result<Source, BundleError> {
        let root = fs::canonicalize(root).map_err(|source| BundleError::Open { path: root.to_path_buf(), source })?;
        let mut sizes = BTreeMap::new();
        walk(&root, "", 0, &mut sizes)?;
        path::check_set(sizes.keys().map(String::as_str))?;
        Ok(Source::Directory { root, sizes })
    }

    pub(crate) fn zip(bytes: Cow<'static, [u8]>) -> Result<Source, BundleError> {
        let index = stored::index(&bytes)?;
        path::check_set(index.iter().map(|(name, _)| name.as_str()))?;
        Ok(Source::Zip { ranges: index.into_iter().collect(), bytes })
    }

    pub(crate) fn files(files: impl IntoIterator<Item = (String, Cow<'static, [u8]>)>) -> Result<Source, BundleError> {
        let mut map = BTreeMap::new();
        for (name, bytes) in files {
            if map.len() >= MAX_FILES {
                return Err(BundleError::TooMany { what: "files", limit: MAX_FILES });
            }
            path::check(&name)?;
            if map.insert(name.clone(), bytes).is_some() {
                return Err(BundleError::Duplicate { path: name.clone(), other: name });
            }
        }
        path::check_set(map.keys().map(String::as_str))?;
        Ok(Source::Files(map))
    }

    /// Every file present with its size.
    pub(crate) fn sizes(&self) -> BTreeMap<&str, u64> {
        match self {
            Source::Directory { sizes, .. } => sizes.iter().map(|(p, s)| (p.as_str(), *s)).collect(),
            Source::Zip { ranges, .. } => ranges.iter().map(|(p, r)| (p.as_str(), r.len() as u64)).collect(),
            Source::Files(files) => files.iter().map(|(p, b)| (p.as_str(), b.len() as u64)).collect(),
        }
    }

    /// The bytes of one file, if they are exactly `size`. Nothing beyond `size + 1` bytes is ever read.
    pub(crate) fn read(&self, path: &str, size: u64) -> Result<Cow<'_, [u8]>, BundleError> {
        let no_such = || BundleError::NoSuchFile { path: path.to_string() };
        match self {
            Source::Directory { root, sizes } => {
                if !sizes.contains_key(path) {
                    return Err(no_such());
                }
                read_regular(root, path, size).map(Cow::Owned)
            }
            Source::Zip { bytes, ranges } => {
                let range = ranges.get(path).ok_or_else(no_such)?;
                Ok(Cow::Borrowed(&bytes[range.clone()]))
            }
            Source::Files(files) => Ok(Cow::Borrowed(files.get(path).ok_or_else(no_such)?)),
        }
    }
}

fn walk(root: &Path, prefix: &str, depth: usize, sizes: &mut BTreeMap<String, u64>) -> Result<(), BundleError> {
    if depth > MAX_DEPTH {
        return Err(BundleError::TooMany { what: "directory levels", limit: MAX_DEPTH });
    }
    let here = root.join(prefix);
    let open = |source| BundleError::Open { path: here.clone(), source };
    for (seen, entry) in fs::read_dir(&here).map_err(open)?.enumerate() {
        if seen >= MAX_FILES || sizes.len() >= MAX_FILES {
            return Err(BundleError::TooMany { what: "files", limit: MAX_FILES });
        }
        let entry = entry.map_err(open)?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| BundleError::Path {
            path: format!("{prefix}{}", name.to_string_lossy()),
            rule: "only A-Z a-z 0-9 . _ / - may be used",
        })?;
        let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") };
        path::check(&path)?;
        let metadata =
            fs::symlink_metadata(entry.path()).map_err(|source| BundleError::Open { path: entry.path(), source })?;
        if metadata.is_dir() {
            walk(root, &path, depth + 1, sizes)?;
        } else {
            check_regular(&path, &metadata)?;
            sizes.insert(path, metadata.len());
        }
    }
    Ok(())
}

fn check_regular(path: &str, metadata: &fs::Metadata) -> Result<(), BundleError> {
    let refuse = |kind| Err(BundleError::Link { path: path.to_string(), kind });
    if metadata.is_symlink() {
        return refuse("symbolic link");
    }
    if !metadata.is_file() {
        return refuse("special file");
    }
    if links(metadata) != 1 {
        return refuse("hard link");
    }
    Ok(())
}

/// Reads a file that was regular when listed, and refuses it when it has become something else since.
fn read_regular(root: &Path, path: &str, size: u64) -> Result<Vec<u8>, BundleError> {
    let full = root.join(path);
    let open = |source| BundleError::Open { path: full.clone(), source };
    let before = fs::symlink_metadata(&full).map_err(open)?;
    check_regular(path, &before)?;
    if before.len() != size {
        return Err(BundleError::Size { path: path.to_string(), listed: size, found: before.len() });
    }
    let file = File::open(&full).map_err(open)?;
    let opened = file.metadata().map_err(open)?;
    check_regular(path, &opened)?;
    if identity(&before) != identity(&opened) {
        return Err(BundleError::Link { path: path.to_string(), kind: "file that is being replaced" });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(open)?;
    if bytes.len() as u64 != size {
        return Err(BundleError::Size { path: path.to_string(), listed: size, found: bytes.len() as u64 });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn links(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(metadata)
}

#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

// Elsewhere the standard library tells neither; digests still decide what is accepted.
#[cfg(not(unix))]
fn links(_: &fs::Metadata) -> u64 {
    1
}

#[cfg(not(unix))]
fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (0, metadata.len())
}
