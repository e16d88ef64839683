//! Making bundles: collecting files, computing digests, writing whole or not at all.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::manifest::{base_digest, sha256_hex};
use super::{Bundle, BundleError, FileEntry, MANIFEST, MAX_TOTAL_BYTES, Manifest, SIGNATURE, path, stored};

/// What to do when the target of a write exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Say so and change nothing.
    Refuse,
    /// Replace it, if it is a bundle of the same form.
    Replace,
}

/// Collects the files of a bundle and seals them under a manifest.
pub struct BundleWriter {
    manifest: Manifest,
    files: BTreeMap<String, (String, Cow<'static, [u8]>)>,
}

impl BundleWriter {
    /// A writer under `manifest`, whose `files` and `base_digest` are computed by [`BundleWriter::finish`].
    pub fn new(manifest: Manifest) -> BundleWriter {
        BundleWriter { manifest, files: BTreeMap::new() }
    }

    /// A writer that holds what `bundle` holds, to change some of it. The signature, which would no longer fit, is left out.
    ///
    /// # Errors
    /// As [`Bundle::read`].
    pub fn from_bundle(bundle: &Bundle) -> Result<BundleWriter, BundleError> {
        let mut writer = BundleWriter::new(bundle.manifest().clone());
        for file in &bundle.manifest().files {
            writer.add(&file.path, &file.role, bundle.read(&file.path)?.into_owned())?;
        }
        Ok(writer)
    }

    /// The manifest, to change.
    pub fn manifest_mut(&mut self) -> &mut Manifest {
        &mut self.manifest
    }

    /// Adds a file, or replaces one of the same path.
    ///
    /// # Errors
    /// [`BundleError::Path`] when the path breaks the rules or belongs to the manifest.
    pub fn add(&mut self, path: &str, role: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<(), BundleError> {
        path::check(path)?;
        if matches!(path.to_ascii_lowercase().as_str(), MANIFEST | SIGNATURE) {
            return Err(BundleError::Path { path: path.into(), rule: "it is the manifest's own name" });
        }
        self.files.insert(path.to_string(), (role.to_string(), bytes.into()));
        Ok(())
    }

    /// Adds the file at `from` on this machine.
    ///
    /// # Errors
    /// As [`BundleWriter::add`], and [`BundleError::Open`].
    pub fn add_file(&mut self, path: &str, role: &str, from: &Path) -> Result<(), BundleError> {
        let bytes = fs::read(from).map_err(|source| BundleError::Open { path: from.to_path_buf(), source })?;
        self.add(path, role, bytes)
    }

    /// Computes sizes and digests, seals the manifest and verifies the result as [`Bundle::open`] would.
    ///
    /// # Errors
    /// Whatever rule the manifest breaks.
    pub fn finish(mut self) -> Result<Bundle, BundleError> {
        self.manifest.files = self
            .files
            .iter()
            .map(|(path, (role, bytes))| FileEntry {
                path: path.clone(),
                role: role.clone(),
                sha256: sha256_hex(bytes),
                size: bytes.len() as u64,
            })
            .collect();
        self.manifest.base_digest = base_digest(&self.manifest.files);
        let manifest = self.manifest.to_canonical_json()?;
        let files = self.files.into_iter().map(|(path, (_, bytes))| (path, bytes));
        Bundle::from_files(files.chain([(MANIFEST.to_string(), Cow::Owned(manifest))]))
    }
}

impl Bundle {
    /// The stored zip of this bundle. Equal bundles give equal bytes.
    ///
    /// # Errors
    /// As [`Bundle::read`], and [`BundleError::TooLarge`] beyond 4 GiB.
    pub fn to_zip(&self) -> Result<Vec<u8>, BundleError> {
        let files = self.each_file()?;
        let bytes = stored::write(files.iter().map(|(p, b)| (*p, b.as_ref())))
            .map_err(|e| BundleError::Zip { reason: e.to_string() })?;
        if bytes.len() as u64 > MAX_TOTAL_BYTES {
            return Err(BundleError::TooLarge {
                path: "the zip".into(),
                size: bytes.len() as u64,
                limit: MAX_TOTAL_BYTES,
            });
        }
        Ok(bytes)
    }

    /// Writes the stored zip to `target`: staged beside it, made durable, renamed.
    ///
    /// # Errors
    /// [`BundleError::Exists`], [`BundleError::WillNotReplace`] when `target` is a directory, [`BundleError::Write`].
    pub fn write_zip(&self, target: &Path, overwrite: Overwrite) -> Result<(), BundleError> {
        check_target(target, overwrite, |m| m.is_file())?;
        let bytes = self.to_zip()?;
        let stage = stage_beside(target);
        let result = write_durable(&stage, &bytes)
            .and_then(|()| rename(&stage, target))
            .and_then(|()| sync_directory(parent(target)));
        if result.is_err() {
            // The error that matters is the first one; the stage's name says what it is.
            let _ = fs::remove_file(&stage);
        }
        result
    }

    /// Writes the directory `target`: staged beside it, made durable, renamed.
    ///
    /// # Errors
    /// [`BundleError::Exists`], [`BundleError::WillNotReplace`] when `target` is not a bundle directory, [`BundleError::Write`].
    pub fn write_dir(&self, target: &Path, overwrite: Overwrite) -> Result<(), BundleError> {
        check_target(target, overwrite, |m| m.is_dir())?;
        if target.is_dir() && !target.join(MANIFEST).is_file() {
            return Err(BundleError::WillNotReplace { path: target.to_path_buf() });
        }
        let stage = stage_beside(target);
        let result = self.fill_directory(&stage).and_then(|()| {
            if !target.exists() {
                return rename(&stage, target).and_then(|()| sync_directory(parent(target)));
            }
            let old = stage_beside(target);
            rename(target, &old)?;
            if let Err(e) = rename(&stage, target) {
                rename(&old, target)?;
                return Err(e);
            }
            sync_directory(parent(target))?;
            fs::remove_dir_all(&old).map_err(|source| BundleError::Write { path: old.clone(), source })
        });
        if result.is_err() {
            let _ = fs::remove_dir_all(&stage);
        }
        result
    }

    fn fill_directory(&self, root: &Path) -> Result<(), BundleError> {
        let write = |path: &Path, source| BundleError::Write { path: path.to_path_buf(), source };
        fs::create_dir(root).map_err(|e| write(root, e))?;
        let mut directories = vec![root.to_path_buf()];
        for (path, bytes) in self.each_file()? {
            let full = root.join(path);
            let directory = parent(&full).to_path_buf();
            if !directories.contains(&directory) {
                fs::create_dir_all(&directory).map_err(|e| write(&directory, e))?;
                directories.push(directory);
            }
            write_durable(&full, &bytes)?;
        }
        directories.iter().rev().try_for_each(|d| sync_directory(d))
    }
}

/// Packs the bundle directory `from` into the stored zip `to`.
///
/// # Errors
/// As [`Bundle::open`] and [`Bundle::write_zip`].
pub fn pack(from: &Path, to: &Path, overwrite: Overwrite) -> Result<Bundle, BundleError> {
    let bundle = Bundle::open(from)?;
    bundle.write_zip(to, overwrite)?;
    Ok(bundle)
}

/// Unpacks the stored zip `from` into the bundle directory `to`.
///
/// # Errors
/// As [`Bundle::open`] and [`Bundle::write_dir`].
pub fn unpack(from: &Path, to: &Path, overwrite: Overwrite) -> Result<Bundle, BundleError> {
    let bundle = Bundle::open(from)?;
    bundle.write_dir(to, overwrite)?;
    Ok(bundle)
}

fn check_target(
    target: &Path,
    overwrite: Overwrite,
    same_form: impl Fn(&fs::Metadata) -> bool,
) -> Result<(), BundleError> {
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BundleError::Write { path: target.to_path_buf(), source }),
        Ok(_) if overwrite == Overwrite::Refuse => Err(BundleError::Exists { path: target.to_path_buf() }),
        Ok(m) if same_form(&m) => Ok(()),
        Ok(_) => Err(BundleError::WillNotReplace { path: target.to_path_buf() }),
    }
}

/// A name nobody else uses, on the same file system as `target`.
fn stage_beside(target: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    parent(target).join(format!(".{name}.stage-{}-{count}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    File::create_new(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| BundleError::Write { path: path.to_path_buf(), source })
}

fn rename(from: &Path, to: &Path) -> Result<(), BundleError> {
    fs::rename(from, to).map_err(|source| BundleError::Write { path: to.to_path_buf(), source })
}

fn sync_directory(path: &Path) -> Result<(), BundleError> {
    // Only unix opens a directory as a file; elsewhere the rename is as durable as the system makes it.
    if cfg!(unix) {
        File::open(path)
            .and_then(|d| d.sync_all())
            .map_err(|source| BundleError::Write { path: path.to_path_buf(), source })?;
    }
    Ok(())
}
