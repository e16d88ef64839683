//! Tensors that an ONNX file keeps in files beside it.
//!
//! A model names its files, and a model may come from anybody: only plain files of its own folder are read, by their name.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a file of tensors that are read even if the model takes few of them; a longer one must be mostly its own,
/// so that a file with a hole does not fill the memory.
const ALWAYS_READ: u64 = 16 << 20;

/// The files beside one ONNX file, as far as they were read.
pub struct Beside {
    folder: PathBuf,
    files: RefCell<BTreeMap<String, Arc<Vec<u8>>>>,
}

impl Beside {
    /// Of an ONNX file.
    pub fn of(onnx: &Path) -> Beside {
        Beside { folder: onnx.parent().unwrap_or(Path::new("")).to_path_buf(), files: RefCell::default() }
    }

    /// Reads a file of that name in the folder, of which the model takes `needed` bytes: no path, no link, so that a model cannot
    /// reach other files.
    ///
    /// # Errors
    /// What is wrong with the file, and what it must be.
    pub fn read(&self, name: &str, needed: u64) -> Result<Arc<Vec<u8>>, String> {
        if let Some(bytes) = self.files.borrow().get(name) {
            return Ok(bytes.clone());
        }
        let outside =
            |why: &str| Err(format!("its data is in `{name}`, which {why}: it must be a plain file beside the model"));
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':']) {
            return outside("is not a file name");
        }
        let path = self.folder.join(name);
        let fail = |e: std::io::Error| format!("its data is in `{name}`: {e}");
        let meta = fs::symlink_metadata(&path).map_err(fail)?;
        if !meta.is_file() {
            return outside("is not a regular file");
        }
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&meta) > 1 {
            return outside("has more than one hard link");
        }
        if meta.len() > ALWAYS_READ.max(needed.saturating_mul(4)) {
            let why = format!("has {} bytes, of which the model takes {needed}", meta.len());
            return Err(format!("its data is in `{name}`, which {why}: it is not read"));
        }
        let bytes = Arc::new(fs::read(&path).map_err(fail)?);
        self.files.borrow_mut().insert(name.to_string(), bytes.clone());
        Ok(bytes)
    }

    /// Bytes of the files read.
    pub fn bytes(&self) -> u64 {
        self.files.borrow().values().map(|f| f.len() as u64).sum()
    }

    /// The files read, by their names.
    pub fn into_files(self) -> impl Iterator<Item = (String, Vec<u8>)> {
        self.files.into_inner().into_iter().map(|(name, bytes)| (name, Arc::unwrap_or_clone(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_the_folder_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        fs::create_dir(&folder).unwrap();
        fs::write(dir.path().join("secret"), "abc").unwrap();
        fs::write(folder.join("weights.bin"), "abcd").unwrap();
        let beside = Beside::of(&folder.join("m.onnx"));
        assert_eq!(**beside.read("weights.bin", 4).unwrap(), *b"abcd");
        assert_eq!(beside.bytes(), 4);
        let absolute = dir.path().join("secret");
        for name in ["../secret", "", ".", "..", "a/b", "a\\b", "c:secret", ".hidden", absolute.to_str().unwrap()] {
            let why = beside.read(name, 3).unwrap_err();
            assert!(why.contains("beside the model"), "{name}: {why}");
        }
        assert!(beside.read("absent.bin", 3).unwrap_err().contains("absent.bin"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
            assert!(beside.read("link", 3).unwrap_err().contains("not a regular file"));
            fs::hard_link(dir.path().join("secret"), folder.join("twin")).unwrap();
            assert!(beside.read("twin", 3).unwrap_err().contains("hard link"));
        }
        let hole = fs::File::create(folder.join("hole.bin")).unwrap();
        hole.set_len(1 << 30).unwrap();
        assert!(beside.read("hole.bin", 4).unwrap_err().contains("not read"));
    }
}
