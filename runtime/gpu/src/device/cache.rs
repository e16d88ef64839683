//! What a device keeps on disk for the next process: what its driver compiled, which kernels passed their trials, and which of
//! several calls are the fastest.
//!
//! A file belongs to one adapter, driver, interface, version of wgpu and version of hone, and is named after them. It is written
//! whole under another name and then renamed. One that is damaged, or belongs to something else, is ignored as if it were not
//! there, and [`Cache::told`] says so: everything is then compiled and tried again, and the file written anew.
//!
//! ```text
//! bytes   what
//! 16      "hone-gpu-cache 2"
//! 4, n    what it belongs to: length, text in UTF-8
//! 4       kernels that passed
//! 32 each SHA-256 of such a kernel's name, a zero byte and its text; ascending
//! 4       calls that were measured beside others
//! 36 each SHA-256 of what was measured, ascending, and the number of the fastest
//! 4, n    what the driver compiled: length, bytes that only it understands; 0 where it gives none
//! 32      SHA-256 of all the bytes before
//! ```
//! Numbers are little-endian.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::{Adapter, locked};
use crate::kernel::Kernel;

const MAGIC: &[u8; 16] = b"hone-gpu-cache 2";

pub(super) type Sum = [u8; 32];

pub(super) fn sum(parts: &[&[u8]]) -> Sum {
    let mut hash = Sha256::new();
    parts.iter().for_each(|p| hash.update(p));
    hash.finalize().into()
}

/// One device's file.
pub(super) struct Cache {
    path: PathBuf,
    belongs: String,
    pipelines: Option<wgpu::PipelineCache>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    passed: BTreeSet<Sum>,
    chosen: BTreeMap<Sum, u32>,
    /// There is something that the file has not.
    fresh: bool,
    told: Option<String>,
}

impl Cache {
    /// The file of this device in `folder`, read; a device that can give nothing of its driver's keeps what passed alone.
    pub(super) fn open(folder: &Path, adapter: &Adapter, device: &wgpu::Device) -> Cache {
        let checked = if cfg!(debug_assertions) { "checked" } else { "unchecked" };
        let belongs = format!("{}|hone {}|{checked}", adapter.key(), env!("CARGO_PKG_VERSION"));
        let name: String = sum(&[belongs.as_bytes()])[..8].iter().map(|b| format!("{b:02x}")).collect();
        let path = folder.join(name).with_extension("bin");
        let read = match std::fs::read(&path) {
            Ok(bytes) => Contents::from_bytes(&bytes, &belongs),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Contents::default()),
            Err(e) => Err(e.to_string()),
        };
        let told = read.as_ref().err().map(|why| format!("{} is ignored and made again: {why}", path.display()));
        let Contents { passed, chosen, compiled } = read.unwrap_or_default();
        let pipelines = device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let data = (!compiled.is_empty()).then_some(&compiled[..]);
            let desc = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
            // SAFETY: the bytes are those that wgpu gave for this adapter and this version of its driver, which the file
            // names, and no other: its checksum says that none of them has changed since.
            unsafe { device.create_pipeline_cache(&desc) }
        });
        Cache { path, belongs, pipelines, state: Mutex::new(State { passed, chosen, fresh: false, told }) }
    }

    /// Where the driver keeps what it compiles.
    pub(super) fn pipelines(&self) -> Option<&wgpu::PipelineCache> {
        self.pipelines.as_ref()
    }

    /// Whether that very text passed its trials here before.
    pub(super) fn passed(&self, kernel: &Kernel) -> bool {
        locked(&self.state).passed.contains(&of(kernel))
    }

    /// Remembers that it did.
    pub(super) fn pass(&self, kernel: &Kernel) {
        let mut state = locked(&self.state);
        state.fresh |= state.passed.insert(of(kernel));
    }

    /// The numbers of calls that are the fastest of several, by what was measured.
    pub(super) fn chosen(&self) -> BTreeMap<Sum, u32> {
        locked(&self.state).chosen.clone()
    }

    /// Remembers one.
    pub(super) fn choose(&self, measured: Sum, number: u32) {
        let mut state = locked(&self.state);
        state.fresh |= state.chosen.insert(measured, number) != Some(number);
    }

    /// Writes the file, when there is something new.
    pub(super) fn keep(&self) {
        let mut state = locked(&self.state);
        if !std::mem::take(&mut state.fresh) {
            return;
        }
        let compiled = self.pipelines.as_ref().and_then(wgpu::PipelineCache::get_data).unwrap_or_default();
        let contents = Contents { passed: state.passed.clone(), chosen: state.chosen.clone(), compiled };
        if let Err(e) = replace(&self.path, &contents.to_bytes(&self.belongs)) {
            state.told =
                Some(format!("{} cannot be written, so that the next start takes longer: {e}", self.path.display()));
        }
    }

    pub(super) fn told(&self) -> Option<String> {
        locked(&self.state).told.clone()
    }
}

pub(super) fn of(kernel: &Kernel) -> Sum {
    sum(&[kernel.name.as_bytes(), &[0], kernel.source.as_bytes()])
}

/// The file at `path` with these bytes: the old one or the new one, whatever happens in between.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// What is in a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    passed: BTreeSet<Sum>,
    chosen: BTreeMap<Sum, u32>,
    compiled: Vec<u8>,
}

impl Contents {
    fn to_bytes(&self, belongs: &str) -> Vec<u8> {
        let length = |n: usize| u32::try_from(n).unwrap_or(0).to_le_bytes();
        let mut out = MAGIC.to_vec();
        out.extend(length(belongs.len()));
        out.extend(belongs.as_bytes());
        out.extend(length(self.passed.len()));
        out.extend(self.passed.iter().flatten());
        out.extend(length(self.chosen.len()));
        self.chosen.iter().for_each(|(measured, number)| {
            out.extend(measured);
            out.extend(number.to_le_bytes());
        });
        // More than a length can say is not worth keeping either.
        let compiled = if u32::try_from(self.compiled.len()).is_ok() { &self.compiled[..] } else { &[] };
        out.extend(length(compiled.len()));
        out.extend(compiled);
        let whole = sum(&[&out]);
        out.extend(whole);
        out
    }

    /// What is in a file that belongs to `belongs`.
    ///
    /// # Errors
    /// Why it is none.
    fn from_bytes(bytes: &[u8], belongs: &str) -> Result<Contents, String> {
        let damaged = || "it is damaged".to_string();
        let (rest, whole) = bytes.split_last_chunk::<32>().ok_or_else(damaged)?;
        if sum(&[rest]) != *whole {
            return Err(damaged());
        }
        let mut rest = rest.strip_prefix(MAGIC).ok_or("it is of another version, or no such file")?;
        let mut take = |n: usize| -> Result<&[u8], String> {
            let (taken, left) = rest.split_at_checked(n).ok_or_else(damaged)?;
            rest = left;
            Ok(taken)
        };
        let number = |b: &[u8]| b.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b) as usize);
        let n = number(take(4)?);
        let owner = take(n)?;
        if owner != belongs.as_bytes() {
            return Err(format!("it belongs to {}", String::from_utf8_lossy(owner)));
        }
        let n = number(take(4)?);
        let passed = take(n.checked_mul(32).ok_or_else(damaged)?)?.as_chunks::<32>().0.iter().copied().collect();
        let n = number(take(4)?);
        let chosen = take(n.checked_mul(36).ok_or_else(damaged)?)?.as_chunks::<36>().0;
        let chosen = chosen.iter().filter_map(|c| Some((*c.first_chunk::<32>()?, number(&c[32..]) as u32))).collect();
        let n = number(take(4)?);
        let compiled = take(n)?.to_vec();
        if rest.is_empty() { Ok(Contents { passed, chosen, compiled }) } else { Err(damaged()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Contents {
        let (passed, chosen) = (BTreeSet::from([[7; 32], [1; 32]]), BTreeMap::from([([9; 32], 2)]));
        Contents { passed, chosen, compiled: vec![1, 2, 3, 4, 5] }
    }

    #[test]
    fn a_file_says_what_was_put_into_it() {
        let bytes = some().to_bytes("a GPU");
        assert_eq!(bytes.len(), 16 + 4 + 5 + 4 + 64 + 4 + 36 + 4 + 5 + 32);
        assert_eq!((&bytes[..16], &bytes[16..25]), (&MAGIC[..], &b"\x05\0\0\0a GPU"[..]));
        assert_eq!(
            (bytes[25], bytes[29], bytes[61], &bytes[93..99], &bytes[129..142]),
            (2, 1, 7, &b"\x01\0\0\0\x09\x09"[..], &b"\x02\0\0\0\x05\0\0\0\x01\x02\x03\x04\x05"[..])
        );
        assert_eq!(Contents::from_bytes(&bytes, "a GPU").unwrap(), some());
        let none = Contents::default();
        assert_eq!(Contents::from_bytes(&none.to_bytes(""), "").unwrap(), none);
    }

    #[test]
    fn a_file_with_any_bit_changed_or_cut_anywhere_is_refused() {
        let bytes = some().to_bytes("a GPU");
        for i in 0..bytes.len() {
            let mut other = bytes.clone();
            other[i] ^= 0x10;
            assert!(Contents::from_bytes(&other, "a GPU").is_err(), "byte {i}");
            assert!(Contents::from_bytes(&bytes[..i], "a GPU").is_err(), "the first {i} bytes");
        }
        let other = Contents::from_bytes(&bytes, "another GPU").unwrap_err();
        assert_eq!(other, "it belongs to a GPU");
    }

    #[test]
    fn lengths_that_lead_out_of_a_file_are_refused_whatever_its_checksum() {
        for at in [16, 25, 93, 133] {
            for n in [u32::MAX, 1 << 27, 200] {
                let mut bytes = some().to_bytes("a GPU");
                bytes.truncate(bytes.len() - 32);
                bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
                let whole = sum(&[&bytes]);
                bytes.extend(whole);
                assert!(Contents::from_bytes(&bytes, "a GPU").is_err(), "{n} at {at}");
            }
        }
    }
}
