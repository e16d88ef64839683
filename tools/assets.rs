//! What `hone demo` carries with it: the which-digit bundle and its worlds.
use std::borrow::Cow;
use std::collections::BTreeMap;

use hone_runtime::bundle::Bundle;
use hone_runtime::dataset::{Dataset, DatasetError};
use rust_embed::Embed;

#[derive(Embed)]
#[folder = "models/which-digit"]
#[include = "which-digit.hone/*"]
#[include = "worlds/*"]
struct Files;

const BUNDLE: &str = "which-digit.hone/";

/// The embedded bundle, its digests checked like those of any other.
///
/// # Errors
/// When the program file is damaged.
pub(crate) fn bundle() -> anyhow::Result<Bundle> {
    let files = Files::iter().filter_map(|path| {
        let name = path.strip_prefix(BUNDLE)?.to_string();
        Some((name, Files::get(&path)?.data))
    });
    Ok(Bundle::from_files(files)?)
}

/// A person or place of the demo: one world, or several of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    /// The name `--world` takes.
    pub(crate) name: String,
    /// The parts of it, each a world of its own (languages); none where it is one world.
    pub(crate) parts: Vec<String>,
}

/// The embedded worlds a person can adapt to, by name.
pub(crate) fn worlds() -> Vec<World> {
    let mut worlds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in Files::iter() {
        let Some(place) = path.strip_prefix("worlds/").and_then(|p| p.strip_suffix("/index.csv")) else { continue };
        let (name, part) = place.split_once('/').map_or((place, None), |(name, part)| (name, Some(part)));
        if name != "factory" {
            worlds.entry(name.to_string()).or_default().extend(part.map(str::to_string));
        }
    }
    let in_order = |(name, mut parts): (String, Vec<String>)| {
        parts.sort();
        World { name, parts }
    };
    worlds.into_iter().map(in_order).collect()
}

/// An embedded world, `name` or `name/part`.
///
/// # Errors
/// [`DatasetError`] when there is none of that name.
pub(crate) fn world(name: &str) -> Result<Dataset, DatasetError> {
    Dataset::from_files(&format!("worlds/{name}"), |file| -> Result<Option<Cow<'static, [u8]>>, DatasetError> {
        Ok(Files::get(&format!("worlds/{name}/{file}")).map(|f| f.data))
    })
}
