//! What can be wrong with a bundle, each variant naming the culprit inside it.
use std::io;
use std::path::PathBuf;

use crate::{Class, Classified};

/// What is wrong with a bundle that was about to be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Something in the file system could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The zip container itself is damaged or of a kind bundles do not use.
    #[error("the zip is not a stored bundle: {reason}")]
    Zip {
        /// What was found.
        reason: String,
    },
    /// One entry of the zip is damaged or of a kind bundles do not use.
    #[error("zip entry '{path}': {reason}")]
    ZipEntry {
        /// The entry's name.
        path: String,
        /// What was found.
        reason: String,
    },
    /// A path breaks the path rules.
    #[error("path '{path}' is not allowed in a bundle: {rule}")]
    Path {
        /// The path as found, lossily decoded.
        path: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Two paths are the same to some file system.
    #[error("'{path}' and '{other}' would be the same file on some file system")]
    Duplicate {
        /// The later of the two.
        path: String,
        /// The earlier of the two.
        other: String,
    },
    /// A symbolic or hard link, a device, a pipe: anything but a regular file with one name.
    #[error("'{path}' is a {kind}; a bundle holds regular files with one name each")]
    Link {
        /// The offending path.
        path: String,
        /// `symbolic link`, `hard link`, `special file`.
        kind: &'static str,
    },
    /// A size limit was exceeded; nothing was read.
    #[error("'{path}' has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// The file, or the name of the whole.
        path: String,
        /// Bytes found or declared.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Too many files or too deep a tree.
    #[error("the bundle has more than {limit} {what}")]
    TooMany {
        /// `files` or `directory levels`.
        what: &'static str,
        /// The number allowed.
        limit: usize,
    },
    /// There is no `manifest.json` at the top.
    #[error("{origin} has no manifest.json at its top; a bundle is a directory NAME.hone/ or a stored zip of one")]
    ManifestMissing {
        /// Where the bundle came from.
        origin: String,
    },
    /// `manifest.json` is not JSON.
    #[error("manifest.json is not JSON: {reason}")]
    ManifestJson {
        /// The parser's message.
        reason: String,
    },
    /// `manifest.json` is JSON, but not the one spelling RFC 8785 allows.
    #[error(
        "manifest.json is not canonical JSON (RFC 8785): it differs at byte {offset}; write it with `hone pack` or a JCS library"
    )]
    ManifestNotCanonical {
        /// First differing byte.
        offset: usize,
    },
    /// `manifest.json` was changed after it was sealed.
    #[error(
        "manifest.json was changed after it was made: its seal is {listed}, its content gives {found}; export or download it again"
    )]
    ManifestSeal {
        /// The `seal` member.
        listed: String,
        /// The digest of the rest.
        found: String,
    },
    /// A member of the manifest has a value it may not have.
    #[error("manifest.json: {field}: {reason}")]
    Manifest {
        /// The member, as a path (`inputs[0].shape`).
        field: String,
        /// Why it is refused.
        reason: String,
    },
    /// The bundle needs a newer hone.
    #[error("this bundle needs hone {needs} or newer; this is {have}")]
    NewerRuntime {
        /// `min_runtime` of the manifest.
        needs: String,
        /// This library's version.
        have: &'static str,
    },
    /// A file lies in the bundle that the manifest does not list.
    #[error("'{path}' is in the bundle but not in its manifest; remove it, or export again")]
    Unlisted {
        /// The file.
        path: String,
    },
    /// The manifest lists a file that is not there.
    #[error("'{path}' is in the manifest but not in the bundle; the copy is incomplete")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file has another size than listed.
    #[error("'{path}' has {found} bytes, the manifest says {listed}")]
    Size {
        /// The file.
        path: String,
        /// Bytes listed.
        listed: u64,
        /// Bytes present.
        found: u64,
    },
    /// A file has other content than listed.
    #[error("'{path}' is not the file the manifest lists: SHA-256 {found}, listed {listed}")]
    Digest {
        /// The file.
        path: String,
        /// Digest listed.
        listed: String,
        /// Digest of what is present.
        found: String,
    },
    /// A file that was asked for is not part of the bundle.
    #[error("the bundle has no '{path}'")]
    NoSuchFile {
        /// The file asked for.
        path: String,
    },
    /// A text file is not UTF-8.
    #[error("'{path}' is not UTF-8 text")]
    NotUtf8 {
        /// The file.
        path: String,
    },
    /// A JSON file of the bundle does not parse, or a member of it has a value it may not have.
    #[error("'{path}': {reason}")]
    Content {
        /// The file.
        path: String,
        /// Which member, and why it is refused.
        reason: String,
    },
    /// An `.npz` archive is damaged or holds what hone has no tensor for.
    #[error("npz member '{member}': {reason}")]
    Npz {
        /// The member, or `(archive)`.
        member: String,
        /// Why it is refused.
        reason: String,
    },
    /// The target of a write exists.
    #[error("{} exists already; choose another name or say that it may be replaced", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target of a replacing write is not a bundle, so it is not deleted.
    #[error("{} is not a bundle and will not be replaced", path.display())]
    WillNotReplace {
        /// The target.
        path: PathBuf,
    },
    /// A write failed; the target is as it was.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Classified for BundleError {
    fn class(&self) -> Class {
        match self {
            BundleError::Exists { .. } | BundleError::WillNotReplace { .. } => Class::Usage,
            BundleError::Write { .. } => Class::Store,
            BundleError::NewerRuntime { .. } => Class::Unsupported,
            _ => Class::Invalid,
        }
    }
}
