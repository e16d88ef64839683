//! Adapters on disk: what the learner has published, and which one is in use.
//!
//! ```text
//! STATE/adapters/<base_digest>/<id>/adapter_config.json        PEFT's layout, with an object "hone"
//!                                  /adapter_model.safetensors  base_model.model.head.theta, f32 [C, d+1]; of a tuned
//!                                                              one also base_model.model.<leaf>, f32
//! STATE/current -> adapters/<base_digest>/<id>                 absent, or -> factory: the factory weights
//! ```
//! The tensor is named as PEFT names a module of the wrapped model (`base_model.model.` + path); `theta` is the Θ added
//! to the shipped head, its last column the weight of the constant 1. A *tuned* adapter holds the trained leaves of a
//! scope as well (`hone tune`): it is another body, and the adapters learned from presses on it say so in their `body`.
//! `id` is the first 16 hexadecimal digits of a BLAKE3 over both files, so a file that was torn or has a flipped bit is
//! refused when it is read. It guards against damage, not against a forger.
//!
//! Deliberately without judgement: `learn` decides what is published. Whoever calls [`AdapterStore::publish`],
//! [`AdapterStore::switch`] or [`AdapterStore::remove`] holds the state directory's lock;
//! the readers need none, every switch is one `rename`.
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::learn::{Classes, Retain};
use crate::scope::Spec;
use crate::state::{self, StateDir, StateError};
use crate::tensor::{Tensor, safetensors};
use crate::{Class, Classified};

mod file;
pub use file::AdapterFile;

/// Name of the tensor every adapter has in `adapter_model.safetensors`.
pub const THETA: &str = "base_model.model.head.theta";

const CONFIG_FILE: &str = "adapter_config.json";
const TENSOR_FILE: &str = "adapter_model.safetensors";
const FACTORY: &str = "factory";
/// Marks a directory or link that is not finished; no id begins so.
const UNFINISHED: &str = ".unfinished-";
const MAX_CONFIG_BYTES: u64 = 64 << 10;
const MAX_TENSOR_BYTES: u64 = 256 << 20;

/// Why an adapter cannot be stored, read or used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Trouble with a file or directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The files of an adapter are not what was published.
    #[error(
        "adapter {id} is damaged: {what}; `hone adapter rm {id}` removes it, `hone adapter use factory` goes on without"
    )]
    Damaged {
        /// Its id.
        id: AdapterId,
        /// What was found.
        what: String,
    },
    /// There is no such adapter.
    #[error("there is no adapter {id} for this bundle; `hone adapter list` shows those there are")]
    Unknown {
        /// The id asked for.
        id: AdapterId,
    },
    /// The adapter in use belongs to another bundle.
    #[error(
        "the adapter in use belongs to bundle {found}, this is {expected}; `hone adapter use factory` goes on without"
    )]
    OtherBase {
        /// The bundle at hand.
        expected: String,
        /// The bundle of the adapter.
        found: String,
    },
    /// `current` is not a link this program makes.
    #[error("{path} is not a link to an adapter; `hone adapter use factory` replaces it")]
    NotALink {
        /// The path.
        path: PathBuf,
    },
    /// The adapter in use cannot be removed.
    #[error("adapter {id} is in use; `hone adapter rollback` or `hone adapter use factory` first")]
    InUse {
        /// Its id.
        id: AdapterId,
    },
    /// Another adapter was learned on it.
    #[error(
        "adapter {by} was learned on the tuned adapter {id} and cannot answer without it; `hone adapter rm {by}` first"
    )]
    Needed {
        /// The tuned one.
        id: AdapterId,
        /// One that needs it.
        by: AdapterId,
    },
    /// There is nothing before the factory weights.
    #[error("the factory weights are in use already, there is nothing to roll back to")]
    AtFactory,
    /// A value that may not be stored: the caller's mistake.
    #[error("{field} of the adapter: {reason}")]
    Unfit {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Classified for AdapterError {
    fn class(&self) -> Class {
        match self {
            AdapterError::State(e) => e.class(),
            AdapterError::Damaged { .. } | AdapterError::NotALink { .. } => Class::Store,
            AdapterError::OtherBase { .. } | AdapterError::Unfit { .. } => Class::Invalid,
            AdapterError::Unknown { .. } => Class::Usage,
            AdapterError::InUse { .. } | AdapterError::Needed { .. } | AdapterError::AtFactory => Class::Failed,
        }
    }
}

/// The name of an adapter: 16 lowercase hexadecimal digits of the digest of its files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdapterId(String);

impl AdapterId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of an adapter with these files: BLAKE3 over the tensor file's length (u64 little endian), it, and the
    /// config.
    fn of(tensors: &[u8], config: &[u8]) -> AdapterId {
        let mut h = blake3::Hasher::new();
        h.update(&(tensors.len() as u64).to_le_bytes()).update(tensors).update(config);
        AdapterId(h.finalize().to_hex()[..16].to_string())
    }
}

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AdapterId {
    type Err = AdapterError;

    /// # Errors
    /// [`AdapterError::Unfit`] unless `text` is 16 lowercase hexadecimal digits.
    fn from_str(text: &str) -> Result<AdapterId, AdapterError> {
        if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            let reason = format!("{text:?} is not 16 lowercase hexadecimal digits");
            return Err(AdapterError::Unfit { field: "id", reason });
        }
        Ok(AdapterId(text.to_string()))
    }
}

impl TryFrom<String> for AdapterId {
    type Error = AdapterError;

    fn try_from(text: String) -> Result<AdapterId, AdapterError> {
        text.parse()
    }
}

impl From<AdapterId> for String {
    fn from(id: AdapterId) -> String {
        id.0
    }
}

/// Where an adapter comes from and how it was computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The bundle it belongs to.
    pub base_digest: String,
    /// The objective's name in `OBJECTIVES`.
    pub objective: String,
    /// Presses it was computed from.
    pub presses: u64,
    /// The last record of the journal that was taken into account.
    pub journal_seq: u64,
    /// Weight of the quadratic penalty.
    pub lambda: f64,
    /// Mixing weight δ of the posterior target.
    pub delta: f64,
    /// Presser error ε.
    pub epsilon: f64,
    /// What is trained; `head` for Θ, the names of the scopes for a tuned one.
    pub scope: String,
    /// Rises with every publication for this bundle, from 1. [`AdapterStore::publish`] sets it.
    pub order: u64,
    /// The adapter in use when this one was published; `None` is factory. [`AdapterStore::publish`] sets it.
    pub parent: Option<AdapterId>,
    /// The tuned adapter whose body made the features Θ was learned from; `None` for the factory's, and for a tuned
    /// adapter, which is a body itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<AdapterId>,
    /// The classes as they were known, where they are not those of the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// How much of the source was learned beside the presses.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retain: Retain,
    /// Random Fourier features Θ is over, beside the graph's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub random_features: usize,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The trained leaves of a scope.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// How the leaves are put into the graph.
    pub spec: Spec,
    /// The run that trained them, see `tune::Work::identity`.
    pub run: String,
    /// Their values, `f32`, finite.
    pub tensors: Vec<(String, Tensor)>,
}

/// An adapter: Θ with its provenance, and what was tuned.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Where it comes from.
    pub provenance: Provenance,
    /// Classes `C`.
    pub classes: usize,
    /// Columns `d + 1`.
    pub columns: usize,
    /// Θ, `f32 [C, d+1]`, row-major, finite; zeros for a tuned adapter.
    pub theta: Vec<f32>,
    /// What was tuned; `None` for an adapter learned from presses.
    pub tuned: Option<Tuned>,
}

/// One line of [`AdapterStore::list`].
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its id.
    pub id: AdapterId,
    /// True for the one in use.
    pub current: bool,
    /// Its provenance; `None` when its files are damaged.
    pub provenance: Option<Provenance>,
}

/// The adapters of one bundle in a state directory.
#[derive(Clone, Debug)]
pub struct AdapterStore {
    state: StateDir,
    base_digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    base_model_name_or_path: String,
    hone: Provenance,
    inference_mode: bool,
    // PEFT has no type for a matrix added to a classifier; one it does not know makes it refuse the file instead of
    // loading a wrong thing.
    peft_type: String,
    target_modules: Vec<String>,
    task_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tuned: Option<TunedConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TunedConfig {
    run: String,
    spec: Spec,
}

impl AdapterStore {
    /// The adapters of the bundle `base_digest`. Touches nothing.
    ///
    /// # Errors
    /// [`AdapterError::Unfit`] unless `base_digest` is 8 to 128 lowercase letters and digits (it becomes a directory).
    pub fn new(state: &StateDir, base_digest: &str) -> Result<AdapterStore, AdapterError> {
        let plain = base_digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z'));
        if !(8..=128).contains(&base_digest.len()) || !plain {
            let reason = format!("{base_digest:?} is not 8 to 128 lowercase letters and digits");
            return Err(AdapterError::Unfit { field: "base_digest", reason });
        }
        Ok(AdapterStore { state: state.clone(), base_digest: base_digest.to_string() })
    }

    /// Stores `adapter` durably, then makes it the one in use; returns its id.
    ///
    /// `provenance.order` and `parent` are set here. A stop at any moment leaves the old adapter or the new one in use.
    ///
    /// # Errors
    /// [`AdapterError::Unfit`] when Θ is not finite, not `[classes, columns]`, or of another bundle; disk trouble.
    pub fn publish(&self, adapter: &Adapter) -> Result<AdapterId, AdapterError> {
        let parent = match self.current_id() {
            Ok(parent) => parent,
            // Publishing for this bundle is what replaces an adapter of another one.
            Err(AdapterError::OtherBase { .. }) => None,
            Err(e) => return Err(e),
        };
        self.sweep()?;
        let order = self.list()?.iter().filter_map(|l| l.provenance.as_ref()).map(|p| p.order).max().unwrap_or(0) + 1;
        let adapter =
            Adapter { provenance: Provenance { order, parent, ..adapter.provenance.clone() }, ..adapter.clone() };
        let id = self.store(&adapter)?;
        self.point_at(Some(&id))?;
        Ok(id)
    }

    /// The adapter in use; `None` is factory. Its files are read and checked.
    ///
    /// # Errors
    /// [`AdapterError::OtherBase`], [`AdapterError::Damaged`], [`AdapterError::Unknown`] when the link's end is gone.
    pub fn current(&self) -> Result<Option<Adapter>, AdapterError> {
        self.current_id()?.map(|id| self.load(&id)).transpose()
    }

    /// The id of the adapter in use; `None` is factory. Its files are not read.
    ///
    /// # Errors
    /// [`AdapterError::OtherBase`], [`AdapterError::NotALink`], disk trouble.
    pub fn current_id(&self) -> Result<Option<AdapterId>, AdapterError> {
        let path = self.state.current();
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(AdapterError::NotALink { path }),
            Err(e) => return Err(StateError::io(&path, e).into()),
        };
        if target == Path::new(FACTORY) {
            return Ok(None);
        }
        let parts: Vec<&str> = target.iter().filter_map(|p| p.to_str()).collect();
        match parts[..] {
            ["adapters", base, id] => {
                let id: AdapterId = id.parse().map_err(|_| AdapterError::NotALink { path })?;
                if base != self.base_digest {
                    let (expected, found) = (self.base_digest.clone(), base.to_string());
                    return Err(AdapterError::OtherBase { expected, found });
                }
                Ok(Some(id))
            }
            _ => Err(AdapterError::NotALink { path }),
        }
    }

    /// The adapter `id`, checked against it.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::Damaged`].
    pub fn load(&self, id: &AdapterId) -> Result<Adapter, AdapterError> {
        let dir = self.dir(id);
        if !dir.is_dir() {
            return Err(AdapterError::Unknown { id: id.clone() });
        }
        let damaged = |what: String| AdapterError::Damaged { id: id.clone(), what };
        let read = |name: &str, limit: u64| match state::read_bounded(&dir.join(name), limit) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(damaged(format!("{name} is missing"))),
            Err(e) => Err(damaged(e.to_string())),
        };
        let config = read(CONFIG_FILE, MAX_CONFIG_BYTES)?;
        let tensors = read(TENSOR_FILE, MAX_TENSOR_BYTES)?;
        if AdapterId::of(&tensors, &config) != *id {
            return Err(damaged("its files do not have the digest in its name".to_string()));
        }
        let config: ConfigFile = serde_json::from_slice(&config).map_err(|e| damaged(format!("{CONFIG_FILE}: {e}")))?;
        if config.hone.base_digest != self.base_digest {
            return Err(damaged(format!("it belongs to bundle {}", config.hone.base_digest)));
        }
        let Decoded { classes, columns, theta, leaves } =
            decode(&tensors).map_err(|why| damaged(format!("{TENSOR_FILE}: {why}")))?;
        let tuned = config.tuned.map(|t| Tuned { spec: t.spec, run: t.run, tensors: leaves });
        Ok(Adapter { provenance: config.hone, classes, columns, theta, tuned })
    }

    /// The tuned adapter whose body the adapter `id` stands on: itself, another one, or none.
    ///
    /// # Errors
    /// As [`AdapterStore::load`] of either.
    pub fn body(&self, id: &AdapterId) -> Result<Option<(AdapterId, Tuned)>, AdapterError> {
        let adapter = self.load(id)?;
        let (id, adapter) = match (adapter.tuned.is_some(), adapter.provenance.body.clone()) {
            (true, _) => (id.clone(), adapter),
            (false, None) => return Ok(None),
            (false, Some(body)) => (body.clone(), self.load(&body)?),
        };
        let what = || "it was learned on one that is not tuned".to_string();
        let tuned = adapter.tuned.ok_or_else(|| AdapterError::Damaged { id: id.clone(), what: what() })?;
        Ok(Some((id, tuned)))
    }

    /// Every adapter of this bundle, oldest first; damaged ones last. Each is read and checked.
    ///
    /// # Errors
    /// Disk trouble.
    pub fn list(&self) -> Result<Vec<Listed>, AdapterError> {
        let root = self.root();
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io(&root, e).into()),
        };
        // A link to elsewhere is nobody's current here; `current` itself is where it is reported.
        let current = self.current_id().ok().flatten();
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| StateError::io(&root, e))?;
            let Some(Ok(id)) = entry.file_name().to_str().map(AdapterId::from_str) else { continue };
            let provenance = match self.load(&id) {
                Ok(adapter) => Some(adapter.provenance),
                Err(AdapterError::Damaged { .. }) => None,
                // Removed by the writer since the directory was read.
                Err(AdapterError::Unknown { .. }) => continue,
                Err(e) => return Err(e),
            };
            listed.push(Listed { current: current.as_ref() == Some(&id), id, provenance });
        }
        listed.sort_by_key(|l| (l.provenance.as_ref().map_or(u64::MAX, |p| p.order), l.id.clone()));
        Ok(listed)
    }

    /// Makes `id` the adapter in use, or the factory weights for `None`. Its files are read and checked first.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`], [`AdapterError::Damaged`], disk trouble; the one in use then stays.
    pub fn switch(&self, id: Option<&AdapterId>) -> Result<(), AdapterError> {
        if let Some(id) = id {
            self.load(id)?;
        }
        self.point_at(id)
    }

    /// The adapter that was in use when the present one was published; `None` is factory. Where that one has been
    /// removed or damaged since, the one before it, and so on. Touches nothing.
    ///
    /// # Errors
    /// [`AdapterError::AtFactory`]; [`AdapterError::Damaged`] when the present one cannot say where it came from.
    pub fn before(&self) -> Result<Option<AdapterId>, AdapterError> {
        let current = self.current()?.ok_or(AdapterError::AtFactory)?;
        let mut before: Vec<Listed> = self.list()?;
        before.retain(|l| l.provenance.as_ref().is_some_and(|p| p.order < current.provenance.order));
        Ok(match current.provenance.parent {
            None => None,
            Some(parent) => match before.iter().find(|l| l.id == parent) {
                Some(parent) => Some(parent.id.clone()),
                None => before.last().map(|l| l.id.clone()),
            },
        })
    }

    /// Removes an adapter that is not in use.
    ///
    /// # Errors
    /// [`AdapterError::InUse`], [`AdapterError::Needed`], [`AdapterError::Unknown`], disk trouble.
    pub fn remove(&self, id: &AdapterId) -> Result<(), AdapterError> {
        if self.current_id().ok().flatten().as_ref() == Some(id) {
            return Err(AdapterError::InUse { id: id.clone() });
        }
        let dir = self.dir(id);
        if !dir.is_dir() {
            return Err(AdapterError::Unknown { id: id.clone() });
        }
        let needs = |l: &Listed| l.provenance.as_ref().is_some_and(|p| p.body.as_ref() == Some(id));
        if let Some(l) = self.list()?.into_iter().find(needs) {
            return Err(AdapterError::Needed { id: id.clone(), by: l.id });
        }
        // Renamed first: a stop in between leaves something that is swept up, not half an adapter.
        let doomed = self.unfinished(&self.root());
        fs::rename(&dir, &doomed).map_err(|e| StateError::io(&dir, e))?;
        fs::remove_dir_all(&doomed).map_err(|e| StateError::io(&doomed, e))?;
        Ok(state::sync_dir(&self.root())?)
    }

    fn root(&self) -> PathBuf {
        self.state.adapters().join(&self.base_digest)
    }

    fn dir(&self, id: &AdapterId) -> PathBuf {
        self.root().join(id.as_str())
    }

    /// A name in `dir` that no other call of this or another process uses.
    fn unfinished(&self, dir: &Path) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        dir.join(format!("{UNFINISHED}{}-{n}", std::process::id()))
    }

    /// Writes both files into a directory of their own, makes them durable, then gives it its name.
    fn store(&self, adapter: &Adapter) -> Result<AdapterId, AdapterError> {
        let tensors = encode(adapter)?;
        let config = config_text(adapter, &self.base_digest)?;
        let id = AdapterId::of(&tensors, config.as_bytes());
        let (root, dir) = (self.root(), self.dir(&id));
        fs::create_dir_all(&root).map_err(|e| StateError::io(&root, e))?;
        state::sync_dir(&self.state.adapters())?;
        let unfinished = self.unfinished(&root);
        fs::create_dir(&unfinished).map_err(|e| StateError::io(&unfinished, e))?;
        let written = state::write_synced(&unfinished.join(TENSOR_FILE), &tensors)
            .and_then(|()| state::write_synced(&unfinished.join(CONFIG_FILE), config.as_bytes()))
            .and_then(|()| state::sync_dir(&unfinished))
            .and_then(|()| fs::rename(&unfinished, &dir).map_err(|e| StateError::io(&dir, e)))
            .and_then(|()| state::sync_dir(&root));
        if let Err(e) = written {
            let _ = fs::remove_dir_all(&unfinished);
            return Err(e.into());
        }
        Ok(id)
    }

    /// Swaps the link in one `rename`.
    fn point_at(&self, id: Option<&AdapterId>) -> Result<(), AdapterError> {
        let target = match id {
            Some(id) => Path::new("adapters").join(&self.base_digest).join(id.as_str()),
            None => PathBuf::from(FACTORY),
        };
        let (root, current) = (self.state.root(), self.state.current());
        let link = self.unfinished(root);
        std::os::unix::fs::symlink(target, &link).map_err(|e| StateError::io(&link, e))?;
        if let Err(e) = fs::rename(&link, &current) {
            let _ = fs::remove_file(&link);
            return Err(StateError::io(&current, e).into());
        }
        Ok(state::sync_dir(root)?)
    }

    /// Removes what stops have left unfinished.
    fn sweep(&self) -> Result<(), AdapterError> {
        for dir in [self.state.root().to_path_buf(), self.root()] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    let path = entry.path();
                    let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
                    let gone = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                    gone.map_err(|e| StateError::io(&path, e))?;
                }
            }
        }
        Ok(())
    }
}

fn encode(adapter: &Adapter) -> Result<Vec<u8>, AdapterError> {
    let unfit = |reason: String| AdapterError::Unfit { field: "theta", reason };
    let (classes, columns) = (adapter.classes, adapter.columns);
    if classes == 0 || columns == 0 || classes.checked_mul(columns) != Some(adapter.theta.len()) {
        return Err(unfit(format!("{} elements are not [{classes}, {columns}]", adapter.theta.len())));
    }
    if let Some(i) = adapter.theta.iter().position(|v| !v.is_finite()) {
        return Err(unfit(format!("element {i} is {}", adapter.theta[i])));
    }
    let theta = Tensor::f32(&[classes, columns], adapter.theta.clone()).map_err(|e| unfit(e.to_string()))?;
    let mut tensors = vec![(THETA.to_string(), theta)];
    for (name, t) in adapter.tuned.iter().flat_map(|t| &t.tensors) {
        let values = t.as_f32().map_err(|e| unfit(format!("leaf `{name}`: {e}")))?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(unfit(format!("element {i} of leaf `{name}` is {}", values[i])));
        }
        tensors.push((format!("{PREFIX}{name}"), t.clone()));
    }
    let bytes = 4 * tensors.iter().map(|(_, t)| t.len()).sum::<usize>();
    if bytes as u64 > MAX_TENSOR_BYTES / 2 {
        return Err(unfit(format!("{bytes} bytes, at most {} are kept", MAX_TENSOR_BYTES / 2)));
    }
    safetensors::write(&tensors, HashMap::from([("format".to_string(), "pt".to_string())])).map_err(unfit)
}

/// What PEFT puts before the name of a module of the wrapped model.
const PREFIX: &str = "base_model.model.";

/// What is in `adapter_model.safetensors`.
struct Decoded {
    classes: usize,
    columns: usize,
    theta: Vec<f32>,
    leaves: Vec<(String, Tensor)>,
}

fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let (tensors, _) = safetensors::read(bytes)?;
    let mut theta = None;
    let mut leaves = Vec::new();
    for (name, t) in tensors {
        if t.as_f32().is_ok_and(|v| v.iter().any(|v| !v.is_finite())) {
            return Err(format!("{name} is not finite"));
        }
        match (name.as_str(), name.strip_prefix(PREFIX)) {
            (THETA, _) => {
                let &[classes, columns] = t.shape() else { return Err(format!("{THETA} has shape {:?}", t.shape())) };
                theta = Some((classes, columns, t.as_f32().map_err(|e| e.to_string())?.to_vec()));
            }
            (_, Some(leaf)) => leaves.push((leaf.to_string(), t)),
            _ => return Err(format!("{name} is no tensor of an adapter")),
        }
    }
    let (classes, columns, theta) = theta.ok_or_else(|| format!("there is no {THETA}"))?;
    Ok(Decoded { classes, columns, theta, leaves })
}

fn config_text(adapter: &Adapter, base_digest: &str) -> Result<String, AdapterError> {
    let p = &adapter.provenance;
    let unfit = |field, reason| AdapterError::Unfit { field, reason };
    if p.base_digest != base_digest {
        return Err(unfit("base_digest", format!("{} is not this store's {base_digest}", p.base_digest)));
    }
    for (field, value) in [("lambda", p.lambda), ("delta", p.delta), ("epsilon", p.epsilon)] {
        if !value.is_finite() {
            return Err(unfit(field, format!("{value}")));
        }
    }
    let file = ConfigFile {
        base_model_name_or_path: base_digest.to_string(),
        hone: p.clone(),
        inference_mode: true,
        peft_type: if adapter.tuned.is_some() { "HONE_TUNED" } else { "HONE_HEAD" }.to_string(),
        target_modules: vec!["head".to_string()],
        task_type: "SEQ_CLS".to_string(),
        tuned: adapter.tuned.as_ref().map(|t| TunedConfig { run: t.run.clone(), spec: t.spec.clone() }),
    };
    let mut text = serde_json::to_string_pretty(&file).map_err(|e| unfit("provenance", e.to_string()))?;
    text.push('\n');
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(unfit("provenance", format!("{} bytes, at most {MAX_CONFIG_BYTES} are kept", text.len())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
