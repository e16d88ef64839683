//! The pairing keys of pads: one file each in `STATE/pads`, named after the pad, readable by its owner alone. A key that a pad
//! was offered is beside it until the pad is known to hold it: whatever happens on the way, one of the two is the pad's.
use std::fs;
use std::io;
use std::path::PathBuf;

use hone_wire::auth::Key;

use super::meaning::uid_text;
use crate::state::{self, StateDir, StateError};

/// The keys of one state directory.
#[derive(Clone, Debug)]
pub struct PadKeys {
    directory: PathBuf,
}

impl PadKeys {
    /// The keys in `state`, which need not be there yet.
    pub fn of(state: &StateDir) -> PadKeys {
        PadKeys { directory: state.pads() }
    }

    /// The key of a pad; `None` when it was never paired here.
    ///
    /// # Errors
    /// A file that cannot be read or holds no key.
    pub fn get(&self, uid: &[u8; 8]) -> Result<Option<Key>, StateError> {
        read(self.path(uid, "key"))
    }

    /// The key that a pad was offered and may have taken; `None` when there is none, or it is the pad's for certain.
    ///
    /// # Errors
    /// As for [`PadKeys::get`].
    pub fn offered(&self, uid: &[u8; 8]) -> Result<Option<Key>, StateError> {
        read(self.path(uid, "offer"))
    }

    /// Keeps a key that is about to be offered, durable on return, beside the one before it.
    ///
    /// # Errors
    /// Trouble with the disk.
    pub fn offer(&self, uid: &[u8; 8], key: &Key) -> Result<(), StateError> {
        self.write(uid, "offer", key)
    }

    /// Keeps a key, durable on return, in place of any before it and of one that was offered.
    ///
    /// # Errors
    /// Trouble with the disk; the key before, and one that was offered, are then still there.
    pub fn put(&self, uid: &[u8; 8], key: &Key) -> Result<(), StateError> {
        self.write(uid, "key", key)?;
        let offer = self.path(uid, "offer");
        match fs::remove_file(&offer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io(&offer, error)),
            _ => Ok(()),
        }
    }

    fn write(&self, uid: &[u8; 8], what: &str, key: &Key) -> Result<(), StateError> {
        fs::create_dir_all(&self.directory).map_err(|error| StateError::io(&self.directory, error))?;
        let text = format!("{:032x}\n", u128::from_be_bytes(*key));
        state::write_secret(&self.path(uid, what), text.as_bytes())
    }

    /// The pads that have keys, by name.
    ///
    /// # Errors
    /// A directory that cannot be read; one that is not there has none.
    pub fn list(&self) -> Result<Vec<[u8; 8]>, StateError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io(&self.directory, error)),
        };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut uids: Vec<[u8; 8]> = names.filter_map(|name| name.strip_suffix(".key").and_then(parse_uid)).collect();
        uids.sort_unstable();
        Ok(uids)
    }

    fn path(&self, uid: &[u8; 8], what: &str) -> PathBuf {
        self.directory.join(format!("{}.{what}", uid_text(uid)))
    }
}

/// The key in a file; none where there is no file.
fn read(path: PathBuf) -> Result<Option<Key>, StateError> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io(&path, error)),
    };
    let digits = text.trim();
    let value = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32);
    value.map(|value| Some(value.to_be_bytes())).ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is not 32 hexadecimal digits; pair the pad again");
        StateError::Io { path, source }
    })
}

/// A new key, from the operating system's source of chance.
///
/// # Errors
/// In words, when there is none.
pub fn new_key() -> Result<Key, String> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| format!("the operating system gave no random numbers: {error}"))?;
    Ok(key)
}

/// Six digits that are the same for whoever has the same key.
pub fn check_code(key: &Key) -> u32 {
    hone_wire::auth::check_code(key)
}

/// A pad's identity from 16 hexadecimal digits.
pub fn parse_uid(text: &str) -> Option<[u8; 8]> {
    u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16).map(u64::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_for_its_pad_alone_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = PadKeys::of(&StateDir::at(dir.path()));
        let (uid, other) = ([1, 2, 3, 4, 5, 6, 7, 0xab], *b"emulated");
        assert_eq!(keys.get(&uid).unwrap(), None);
        assert!(keys.list().unwrap().is_empty());
        let key = *b"0123456789abcdef";
        keys.put(&uid, &[9; 16]).unwrap();
        keys.put(&uid, &key).unwrap();
        assert_eq!((keys.get(&uid).unwrap(), keys.get(&other).unwrap()), (Some(key), None));
        assert_eq!(keys.list().unwrap(), [uid]);
        keys.offer(&uid, &[4; 16]).unwrap();
        assert_eq!((keys.get(&uid).unwrap(), keys.offered(&uid).unwrap()), (Some(key), Some([4; 16])), "either holds");
        assert_eq!(keys.list().unwrap(), [uid]);
        keys.put(&uid, &[4; 16]).unwrap();
        assert_eq!((keys.get(&uid).unwrap(), keys.offered(&uid).unwrap()), (Some([4; 16]), None));
        use std::os::unix::fs::PermissionsExt;
        let file = dir.path().join("pads/01020304050607ab.key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "not a key").unwrap();
        assert!(keys.get(&uid).unwrap_err().to_string().contains("pair the pad again"));
    }
}
