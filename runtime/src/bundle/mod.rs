//! The model bundle: a directory `NAME.hone/`, or a stored zip of it, and its one file of our own, `manifest.json`.
//!
//! Opening checks everything: what is returned by [`Bundle::read`] has the size and SHA-256 the manifest lists. This
//! module knows nothing of what the graphs compute, and does not judge signatures: it hands out the signature's bytes
//! ([`Bundle::signature`]) and the bytes it signs ([`Bundle::manifest_bytes`]).
//!
//! ```
//! use hone_runtime::bundle::{Bundle, BundleWriter, GraphEntry, Manifest};
//!
//! let mut manifest = Manifest::new("tiny", "1.0.0", "2026-11-23T18:00:00Z");
//! manifest.graphs.push(GraphEntry {
//!     name: "main".into(), path: "onnx/model.onnx".into(), role: "main".into(), state: vec![],
//! });
//! let mut writer = BundleWriter::new(manifest);
//! writer.add("onnx/model.onnx", "graph", vec![1, 2, 3])?;
//! let bundle = writer.finish()?;
//! let again = Bundle::from_zip(bundle.to_zip()?)?;
//! assert_eq!(again.read("onnx/model.onnx")?, &[1, 2, 3][..]);
//! assert_eq!(again.manifest(), bundle.manifest());
//! # Ok::<(), hone_runtime::bundle::BundleError>(())
//! ```
#![doc = include_str!("FORMAT.md")]
use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

mod error;
mod manifest;
pub mod npz;
mod path;
mod recipe;
mod source;
mod stored;
#[cfg(test)]
mod tests;
mod writer;

pub use error::BundleError;
pub use manifest::{Dim, FileEntry, GraphEntry, Limits, Manifest, Port, SCHEMA, StateEntry, base_digest};
pub use recipe::{Defaults, Head, Recipe};
pub use writer::{BundleWriter, Overwrite, pack, unpack};

use source::Source;

/// Name of the manifest.
const MANIFEST: &str = "manifest.json";
/// Name of its signature, the only other file that is not listed.
const SIGNATURE: &str = "manifest.json.minisig";
/// Largest manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Largest signature file.
const MAX_SIGNATURE_BYTES: u64 = 4096;
/// Largest sum of all listed files, and largest zip: zip64 is not needed below it.
const MAX_TOTAL_BYTES: u64 = u32::MAX as u64;
/// Most files in a bundle.
const MAX_FILES: usize = 4096;

/// A path within the bundle and what lies there.
type NamedBytes<'a> = (&'a str, Cow<'a, [u8]>);

/// An opened, verified bundle.
pub struct Bundle {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    signature: Option<Vec<u8>>,
    source: Source,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.manifest;
        write!(f, "Bundle({} {}, {} files, base {})", m.name, m.version, m.files.len(), m.base_digest)
    }
}

impl Bundle {
    /// Opens and verifies a directory `NAME.hone/` or a stored zip of one.
    ///
    /// A directory stays on disk: its files are read again, and checked again, by [`Bundle::read`]. A zip is read into memory.
    ///
    /// # Errors
    /// Any [`BundleError`] of class `Invalid`, naming the file; nothing is read that is larger than it may be.
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle, BundleError> {
        let path = path.as_ref();
        let open = |source| BundleError::Open { path: path.to_path_buf(), source };
        let metadata = fs::metadata(path).map_err(open)?;
        if metadata.is_dir() {
            return Bundle::from_source(Source::directory(path)?, &path.display().to_string());
        }
        if !metadata.is_file() {
            return Err(BundleError::Link { path: path.display().to_string(), kind: "special file" });
        }
        // Besides the files a zip holds their names, twice.
        let limit = MAX_TOTAL_BYTES;
        if metadata.len() > limit {
            return Err(BundleError::TooLarge { path: path.display().to_string(), size: metadata.len(), limit });
        }
        let mut bytes = Vec::new();
        File::open(path).map_err(open)?.take(limit).read_to_end(&mut bytes).map_err(open)?;
        Bundle::from_source(Source::zip(bytes.into())?, &path.display().to_string())
    }

    /// Opens and verifies a stored zip in memory, for instance one embedded in a program.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn from_zip(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Bundle, BundleError> {
        Bundle::from_source(Source::zip(bytes.into())?, "the zip in memory")
    }

    /// Opens and verifies single files in memory, `manifest.json` among them.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn from_files(files: impl IntoIterator<Item = (String, Cow<'static, [u8]>)>) -> Result<Bundle, BundleError> {
        Bundle::from_source(Source::files(files)?, "the set of files in memory")
    }

    fn from_source(source: Source, origin: &str) -> Result<Bundle, BundleError> {
        let sizes = source.sizes();
        let limited = |name: &str, limit: u64| match sizes.get(name) {
            None => Ok(None),
            Some(&size) if size > limit => Err(BundleError::TooLarge { path: name.to_string(), size, limit }),
            Some(&size) => source.read(name, size).map(|b| Some(b.into_owned())),
        };
        let manifest_bytes = limited(MANIFEST, MAX_MANIFEST_BYTES)?
            .ok_or_else(|| BundleError::ManifestMissing { origin: origin.to_string() })?;
        let signature = limited(SIGNATURE, MAX_SIGNATURE_BYTES)?;
        let manifest = Manifest::from_canonical_json(&manifest_bytes)?;
        if let Some(path) = sizes.keys().find(|p| !matches!(**p, MANIFEST | SIGNATURE) && manifest.file(p).is_none()) {
            return Err(BundleError::Unlisted { path: path.to_string() });
        }
        // All sizes before any content: a wrong copy is found without reading it.
        for file in &manifest.files {
            match sizes.get(file.path.as_str()) {
                None => return Err(BundleError::Missing { path: file.path.clone() }),
                Some(&found) if found != file.size => {
                    return Err(BundleError::Size { path: file.path.clone(), listed: file.size, found });
                }
                Some(_) => {}
            }
        }
        for file in &manifest.files {
            verify(file, &source.read(&file.path, file.size)?)?;
        }
        Ok(Bundle { manifest, manifest_bytes, signature, source })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// `manifest.json` byte for byte: what a signature signs.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// `manifest.json.minisig`, unjudged, if there is one.
    pub fn signature(&self) -> Option<&[u8]> {
        self.signature.as_deref()
    }

    /// SHA-256 of `manifest.json` in hexadecimal: the identity of the bundle with everything in it, and the name of its release directory.
    pub fn digest(&self) -> String {
        manifest::sha256_hex(&self.manifest_bytes)
    }

    /// What adapters are bound to; see [`base_digest`].
    pub fn base_digest(&self) -> &str {
        &self.manifest.base_digest
    }

    /// The content of a listed file. From a directory it is read and verified again, so a change since opening is an error.
    ///
    /// # Errors
    /// [`BundleError::NoSuchFile`]; from a directory also what [`Bundle::open`] says of a changed file.
    pub fn read(&self, path: &str) -> Result<Cow<'_, [u8]>, BundleError> {
        let file = self.manifest.file(path).ok_or_else(|| BundleError::NoSuchFile { path: path.to_string() })?;
        let bytes = self.source.read(path, file.size)?;
        // What lies in this process's memory was verified at opening and cannot have changed.
        if matches!(self.source, Source::Directory { .. }) {
            verify(file, &bytes)?;
        }
        Ok(bytes)
    }

    /// True when the manifest lists `path`.
    pub fn contains(&self, path: &str) -> bool {
        self.manifest.file(path).is_some()
    }

    /// The content of a listed file as text.
    ///
    /// # Errors
    /// As [`Bundle::read`], and [`BundleError::NotUtf8`].
    pub fn text(&self, path: &str) -> Result<String, BundleError> {
        String::from_utf8(self.read(path)?.into_owned()).map_err(|_| BundleError::NotUtf8 { path: path.to_string() })
    }

    /// `train/recipe.json`, checked by itself and, where the bundle has labels, against their number.
    ///
    /// # Errors
    /// As [`Bundle::text`], and [`BundleError::Content`] naming the member.
    pub fn recipe(&self) -> Result<Recipe, BundleError> {
        const PATH: &str = "train/recipe.json";
        let content = |reason| BundleError::Content { path: PATH.into(), reason };
        let recipe = Recipe::from_json(&self.text(PATH)?).map_err(content)?;
        if let Some(prior) = &recipe.prior
            && self.contains("config.json")
        {
            let classes = self.labels()?.len();
            if prior.len() != classes {
                return Err(content(format!("prior has {} shares, config.json has {classes} labels", prior.len())));
            }
        }
        Ok(recipe)
    }

    /// The class names in class order: `id2label` of `config.json`.
    ///
    /// # Errors
    /// As [`Bundle::text`], and [`BundleError::Content`] when a class has no name.
    pub fn labels(&self) -> Result<Vec<String>, BundleError> {
        const PATH: &str = "config.json";
        recipe::labels_from_config(&self.text(PATH)?)
            .map_err(|reason| BundleError::Content { path: PATH.into(), reason })
    }

    /// Every file with its bytes, manifest first, then the signature, then by path: the order of a packed zip.
    fn each_file(&self) -> Result<Vec<NamedBytes<'_>>, BundleError> {
        let mut files: Vec<NamedBytes<'_>> = vec![(MANIFEST, Cow::Borrowed(&self.manifest_bytes))];
        if let Some(signature) = &self.signature {
            files.push((SIGNATURE, Cow::Borrowed(signature)));
        }
        for file in &self.manifest.files {
            files.push((&file.path, self.read(&file.path)?));
        }
        Ok(files)
    }
}

fn verify(file: &FileEntry, bytes: &[u8]) -> Result<(), BundleError> {
    let path = || file.path.clone();
    if bytes.len() as u64 != file.size {
        return Err(BundleError::Size { path: path(), listed: file.size, found: bytes.len() as u64 });
    }
    let found = manifest::sha256_hex(bytes);
    if found != file.sha256 {
        return Err(BundleError::Digest { path: path(), listed: file.sha256.clone(), found });
    }
    Ok(())
}
