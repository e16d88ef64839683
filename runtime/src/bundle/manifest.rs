//! `manifest.json`: its types, its one canonical spelling and its own rules.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BundleError, MANIFEST, MAX_FILES, MAX_TOTAL_BYTES, SIGNATURE, path};
use crate::DType;

/// The schema this library reads and writes.
pub const SCHEMA: &str = "hone.bundle/1";

/// The version of this library, compared with `min_runtime`.
const RUNTIME: &str = env!("CARGO_PKG_VERSION");

/// The content of `manifest.json`, less its `seal`, which exists only in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The model's name: `[A-Za-z0-9._-]`, 1 to 64 bytes.
    pub name: String,
    /// The model's version, `major.minor.patch` with an optional `-suffix`.
    pub version: String,
    /// When it was made, RFC 3339 in UTC with whole seconds: `2026-11-23T18:00:00Z`.
    pub created: String,
    /// The oldest hone that runs it, `major.minor.patch`.
    pub min_runtime: String,
    /// What the model is given.
    pub inputs: Vec<Port>,
    /// What the model answers.
    pub outputs: Vec<Port>,
    /// The graphs, at least one.
    pub graphs: Vec<GraphEntry>,
    /// Every file but the manifest and its signature, sorted by path.
    pub files: Vec<FileEntry>,
    /// What the model may use.
    pub limits: Limits,
    /// Figures measured by the maker (`accuracy`, …), finite.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// The `base_digest` of the bundle this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What adapters are bound to; see [`base_digest`].
    pub base_digest: String,
}

/// One input or output of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The tensor's name in the graph.
    pub name: String,
    /// Its element type.
    #[serde(with = "dtype_by_name")]
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: Vec<Dim>,
    /// For inputs what it is made from: `image`, `audio`, `text`, `sensor`, `present`; for outputs free, or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<String>,
    /// For a `present` input: the inputs its columns speak of, in order. Absent: the other inputs in manifest order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Vec<String>>,
}

/// One dimension: a number, or a name that stands for any number (`"N"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A fixed extent, at least 1.
    Fixed(u32),
    /// An extent known only when the model runs.
    Symbol(String),
}

/// One graph of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphEntry {
    /// Its name within the bundle.
    pub name: String,
    /// Its file.
    pub path: String,
    /// What it does: `main`, `encoder`, `decoder`, …
    pub role: String,
    /// Tensors that are carried from one run to the next.
    #[serde(default)]
    pub state: Vec<StateEntry>,
}

/// A tensor carried from one run of a graph to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateEntry {
    /// The graph input that receives it.
    #[serde(rename = "in")]
    pub input: String,
    /// The graph output that produces it.
    #[serde(rename = "out")]
    pub output: String,
    /// Its value before the first run: `zeros`.
    pub init: String,
}

/// One file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative path, by the path rules.
    pub path: String,
    /// What it is for: `graph`, `weights`, `config`, `card`, `recipe`, `sample`, `adapter`, …
    pub role: String,
    /// SHA-256 of its content, 64 lowercase hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
}

/// What a model may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most memory the model's weights, state and scratch may take together, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

impl Manifest {
    /// A manifest without inputs, graphs or files, for [`super::BundleWriter`]. `created` is RFC 3339 in UTC.
    pub fn new(name: &str, version: &str, created: &str) -> Manifest {
        Manifest {
            schema: SCHEMA.into(),
            name: name.into(),
            version: version.into(),
            created: created.into(),
            min_runtime: RUNTIME.into(),
            inputs: vec![],
            outputs: vec![],
            graphs: vec![],
            files: vec![],
            limits: Limits::default(),
            metrics: BTreeMap::new(),
            parent: None,
            base_digest: String::new(),
        }
    }

    /// The entry of `path`.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().map(|i| &self.files[i])
    }

    /// Reads and checks the bytes of a `manifest.json`.
    ///
    /// # Errors
    /// Not JSON, not canonical, broken seal, unknown or missing members, values that break a rule, a newer `min_runtime`.
    pub fn from_canonical_json(bytes: &[u8]) -> Result<Manifest, BundleError> {
        let json = |e: serde_json::Error| BundleError::ManifestJson { reason: e.to_string() };
        let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(json)?;
        let canonical = serde_jcs::to_vec(&value).map_err(json)?;
        if canonical != bytes {
            let common = canonical.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(BundleError::ManifestNotCanonical { offset: common });
        }
        let members = value.as_object_mut().ok_or_else(|| refuse("(top)", "is not an object"))?;
        match members.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => return Err(refuse("schema", format!("'{other}' is not {SCHEMA}"))),
            None => return Err(refuse("schema", format!("is missing; this library reads {SCHEMA}"))),
        }
        let listed = match members.remove("seal") {
            Some(serde_json::Value::String(s)) => s,
            _ => return Err(refuse("seal", "is missing or not a string")),
        };
        let found = sha256_hex(&serde_jcs::to_vec(&value).map_err(json)?);
        if listed != found {
            return Err(BundleError::ManifestSeal { listed, found });
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|e| refuse("(members)", e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The one spelling of this manifest as a file, sealed.
    ///
    /// # Errors
    /// The rules of [`Manifest::check`]; in particular a metric that is not finite has no JSON spelling.
    pub fn to_canonical_json(&self) -> Result<Vec<u8>, BundleError> {
        self.check()?;
        let json = |e: serde_json::Error| BundleError::ManifestJson { reason: e.to_string() };
        let mut value = serde_json::to_value(self).map_err(json)?;
        let seal = sha256_hex(&serde_jcs::to_vec(&value).map_err(json)?);
        if let Some(members) = value.as_object_mut() {
            members.insert("seal".into(), seal.into());
        }
        serde_jcs::to_vec(&value).map_err(json)
    }

    /// Checks every rule that can be checked without the files.
    ///
    /// # Errors
    /// [`BundleError::Manifest`] naming the member, [`BundleError::Path`], [`BundleError::Duplicate`],
    /// [`BundleError::TooLarge`], [`BundleError::TooMany`], [`BundleError::NewerRuntime`].
    pub fn check(&self) -> Result<(), BundleError> {
        if self.schema != SCHEMA {
            return Err(refuse("schema", format!("'{}' is not {SCHEMA}", self.schema)));
        }
        if self.name.len() > 64 || self.name.contains('/') || path::check(&self.name).is_err() {
            return Err(refuse("name", format!("'{}' is not 1 to 64 of A-Z a-z 0-9 . _ -", self.name)));
        }
        if version_triple(&self.version).is_none() {
            return Err(refuse("version", format!("'{}' is not major.minor.patch", self.version)));
        }
        if !is_utc_second(&self.created) {
            return Err(refuse("created", format!("'{}' is not a time like 2026-11-23T18:00:00Z", self.created)));
        }
        let needs = version_triple(&self.min_runtime)
            .ok_or_else(|| refuse("min_runtime", format!("'{}' is not major.minor.patch", self.min_runtime)))?;
        if Some(needs) > version_triple(RUNTIME) {
            return Err(BundleError::NewerRuntime { needs: self.min_runtime.clone(), have: RUNTIME });
        }
        check_ports("inputs", &self.inputs)?;
        check_ports("outputs", &self.outputs)?;
        for (i, port) in self.inputs.iter().enumerate() {
            for name in port.of.iter().flatten() {
                if !self.inputs.iter().any(|p| p.name == *name && p.name != port.name) {
                    return Err(refuse(format!("inputs[{i}].of"), format!("'{name}' is not another input")));
                }
            }
        }
        if let Some((name, _)) = self.metrics.iter().find(|(_, v)| !v.is_finite()) {
            return Err(refuse(format!("metrics.{name}"), "is not finite"));
        }
        if let Some(parent) = &self.parent
            && !is_sha256(parent)
        {
            return Err(refuse("parent", "is not 64 lowercase hexadecimal digits"));
        }
        self.check_files()?;
        self.check_graphs()
    }

    fn check_files(&self) -> Result<(), BundleError> {
        if self.files.len() > MAX_FILES {
            return Err(BundleError::TooMany { what: "files", limit: MAX_FILES });
        }
        path::check_set(self.files.iter().map(|f| f.path.as_str()))?;
        let mut total = 0u64;
        for (i, file) in self.files.iter().enumerate() {
            if matches!(file.path.to_ascii_lowercase().as_str(), MANIFEST | SIGNATURE) {
                return Err(refuse(format!("files[{i}].path"), format!("'{}' cannot list itself", file.path)));
            }
            if i > 0 && self.files[i - 1].path >= file.path {
                return Err(refuse(format!("files[{i}].path"), format!("'{}' is not in sorted order", file.path)));
            }
            if !is_sha256(&file.sha256) {
                return Err(refuse(format!("files[{i}].sha256"), "is not 64 lowercase hexadecimal digits"));
            }
            total = total.saturating_add(file.size);
            if total > MAX_TOTAL_BYTES {
                let path = file.path.clone();
                return Err(BundleError::TooLarge { path, size: total, limit: MAX_TOTAL_BYTES });
            }
        }
        let found = base_digest(&self.files);
        if self.base_digest != found {
            let reason = format!("'{}' is not {found}, which the listed files give", self.base_digest);
            return Err(refuse("base_digest", reason));
        }
        Ok(())
    }

    fn check_graphs(&self) -> Result<(), BundleError> {
        if self.graphs.is_empty() {
            return Err(refuse("graphs", "is empty; a bundle has at least one graph"));
        }
        let mut names = BTreeSet::new();
        for (i, graph) in self.graphs.iter().enumerate() {
            if !names.insert(&graph.name) || graph.name.is_empty() {
                return Err(refuse(format!("graphs[{i}].name"), format!("'{}' is empty or used twice", graph.name)));
            }
            if self.file(&graph.path).is_none() {
                return Err(refuse(format!("graphs[{i}].path"), format!("'{}' is not among files", graph.path)));
            }
            for (j, state) in graph.state.iter().enumerate() {
                let member = |name: &str| format!("graphs[{i}].state[{j}].{name}");
                if state.init != "zeros" {
                    return Err(refuse(member("init"), "only 'zeros' is known"));
                }
                // Ports are those of the first graph.
                if i > 0 {
                    continue;
                }
                let Some(input) = self.inputs.iter().find(|p| p.name == state.input) else {
                    return Err(refuse(member("in"), format!("'{}' is not among inputs", state.input)));
                };
                let Some(output) = self.outputs.iter().find(|p| p.name == state.output) else {
                    return Err(refuse(member("out"), format!("'{}' is not among outputs", state.output)));
                };
                if graph.state[..j].iter().any(|s| s.input == state.input) {
                    return Err(refuse(member("in"), format!("'{}' is carried twice", state.input)));
                }
                if input.modality.is_some() {
                    return Err(refuse(member("in"), format!("'{}' is made from a sample", state.input)));
                }
                if input.dtype != output.dtype || input.shape.len() != output.shape.len() {
                    return Err(refuse(
                        member("out"),
                        format!("'{}' is of another type or rank than '{}'", output.name, input.name),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What adapters are bound to: everything that decides what the base model computes.
///
/// Byte recipe: take the `sha256` of every file whose path is neither `README.md` nor below `adapters/`; sort these
/// 64-digit strings; write each followed by a line feed; the SHA-256 of that text, in hexadecimal. In a shell, inside
/// the bundle: `sha256sum FILES | cut -c1-64 | LC_ALL=C sort | sha256sum`.
pub fn base_digest(files: &[FileEntry]) -> String {
    let mut digests: Vec<&str> = files
        .iter()
        .filter(|f| f.path != "README.md" && !f.path.starts_with("adapters/"))
        .map(|f| f.sha256.as_str())
        .collect();
    digests.sort_unstable();
    let mut hash = Sha256::new();
    for digest in digests {
        hash.update(digest.as_bytes());
        hash.update(b"\n");
    }
    hex(&hash.finalize())
}

/// SHA-256 of `bytes` as 64 lowercase hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn refuse(field: impl Into<String>, reason: impl Into<String>) -> BundleError {
    BundleError::Manifest { field: field.into(), reason: reason.into() }
}

fn check_ports(list: &str, ports: &[Port]) -> Result<(), BundleError> {
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        if !names.insert(&port.name) || port.name.is_empty() {
            return Err(refuse(format!("{list}[{i}].name"), format!("'{}' is empty or used twice", port.name)));
        }
        for dim in &port.shape {
            match dim {
                Dim::Fixed(0) => return Err(refuse(format!("{list}[{i}].shape"), "has a dimension of 0")),
                Dim::Symbol(s) if s.is_empty() => {
                    return Err(refuse(format!("{list}[{i}].shape"), "has a dimension without a name"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn version_triple(text: &str) -> Option<[u32; 3]> {
    let core = text.split_once('-').map_or(text, |(core, _)| core);
    let parts: Vec<u32> = core.split('.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// `YYYY-MM-DDTHH:MM:SSZ`, each field in its range (a day of 31 passes in every month).
fn is_utc_second(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() != 20 {
        return false;
    }
    let shape = b"0000-00-00T00:00:00Z";
    if !bytes.iter().zip(shape).all(|(b, s)| if *s == b'0' { b.is_ascii_digit() } else { b == s }) {
        return false;
    }
    let two = |at: usize| (bytes[at] - b'0') * 10 + bytes[at + 1] - b'0';
    (1..=12).contains(&two(5)) && (1..=31).contains(&two(8)) && two(11) < 24 && two(14) < 60 && two(17) < 61
}

mod dtype_by_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::DType;

    pub(super) fn serialize<S: Serializer>(dtype: &DType, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(dtype.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
        let name = String::deserialize(from)?;
        DType::from_name(&name).ok_or_else(|| D::Error::custom(format!("'{name}' is no element type hone knows")))
    }
}
