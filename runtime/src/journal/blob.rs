//! Kept inputs: content-addressed files `blobs/ab/<blake3>`, written before the record that refers to them. Where one was
//! dropped to make room, an empty file of its name stays, which says that it is not missing.
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use super::StoreError;
use super::record::Digest;
use crate::state::{self, StateDir, StateError};

/// Longest blob in bytes: one camera frame or ten minutes of speech.
pub const MAX_BLOB_BYTES: u64 = 64 << 20;

/// What [`StoreError::Blob`] says of one that was dropped to make room.
pub const DROPPED: &str = "dropped";

/// A blob on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobSize {
    /// Its name.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// When it was written.
    pub written: SystemTime,
}

/// The blobs of a state directory. Needs no lock: a name is its content, so two writers of one blob agree.
#[derive(Clone, Debug)]
pub struct Blobs {
    root: PathBuf,
}

impl Blobs {
    /// The blobs of `state`.
    pub fn new(state: &StateDir) -> Blobs {
        Blobs { root: state.blobs() }
    }

    /// Where the blob `digest` lies or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    /// Stores `bytes` and returns their digest; durable when it returns. Storing the same bytes again costs a read.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] above [`MAX_BLOB_BYTES`]; [`StoreError::State`] for trouble with the disk.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        if bytes.len() as u64 > MAX_BLOB_BYTES {
            let reason = format!("{} bytes, at most {MAX_BLOB_BYTES} are kept", bytes.len());
            return Err(StoreError::Unfit { field: "blob", reason });
        }
        let digest = Digest::of(bytes);
        // A damaged one of this name is replaced: its content is at hand.
        if self.get(&digest).is_ok() {
            return Ok(digest);
        }
        let path = self.path(&digest);
        let dir = path.parent().unwrap_or(&self.root).to_path_buf();
        let io = |e| StateError::io(&dir, e);
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(io)?;
            state::sync_dir(&self.root)?;
        }
        let temporary = dir.join(format!(".{digest}.{}", std::process::id()));
        let written = state::write_synced(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path).map_err(io))
            .and_then(|()| state::sync_dir(&dir));
        if let Err(e) = written {
            let _ = fs::remove_file(&temporary);
            return Err(e.into());
        }
        Ok(digest)
    }

    /// The bytes of `digest`, checked against it.
    ///
    /// # Errors
    /// [`StoreError::Blob`] when the file is missing or its content is not what its name says.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let blob = |what| StoreError::Blob { digest: digest.to_string(), what };
        let bytes = state::read_bounded(&self.path(digest), MAX_BLOB_BYTES)?.ok_or_else(|| blob("missing"))?;
        if Digest::of(&bytes) != *digest {
            return Err(blob(if bytes.is_empty() { DROPPED } else { "damaged" }));
        }
        Ok(bytes)
    }

    /// True when there is a file of that name; its content is not read.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Every blob with content, in no order.
    ///
    /// # Errors
    /// [`StoreError::State`] for trouble with the disk.
    pub fn sizes(&self) -> Result<Vec<BlobSize>, StoreError> {
        let mut out = Vec::new();
        let io = |e| StateError::io(&self.root, e);
        let folders = match fs::read_dir(&self.root) {
            Ok(folders) => folders,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(out),
            Err(e) => return Err(io(e).into()),
        };
        for folder in folders {
            let folder = folder.map_err(io)?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in fs::read_dir(&folder).map_err(io)? {
                let file = file.map_err(io)?;
                let Some(digest) = file.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
                // One that was removed meanwhile has no size.
                let Ok(about) = file.metadata() else { continue };
                if about.len() > 0 {
                    let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    out.push(BlobSize { digest, bytes: about.len(), written });
                }
            }
        }
        Ok(out)
    }

    /// Drops the content of a blob for good and leaves word of it: [`Blobs::get`] says `dropped`.
    ///
    /// # Errors
    /// [`StoreError::State`] for trouble with the disk.
    pub fn drop_content(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        let emptied = fs::OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(0));
        match emptied {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StateError::io(&path, e).into()),
            _ => Ok(()),
        }
    }

    /// Removes the blob, if it is there.
    pub(super) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(StateError::io(&path, e).into()),
        }
    }
}
