//! What `hone demo` carries with it: the which-digit bundle and its worlds.
use std::borrow::Cow;

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

/// The names of the embedded worlds a person can adapt to.
pub(crate) fn worlds() -> Vec<String> {
    let mut names: Vec<String> = Files::iter()
        .filter_map(|p| Some(p.strip_prefix("worlds/")?.strip_suffix("/index.csv")?.to_string()))
        .filter(|n| n != "factory")
        .collect();
    names.sort();
    names
}

/// An embedded world.
///
/// # Errors
/// [`DatasetError`] when there is none of that name.
pub(crate) fn world(name: &str) -> Result<Dataset, DatasetError> {
    Dataset::from_files(&format!("worlds/{name}"), |file| -> Result<Option<Cow<'static, [u8]>>, DatasetError> {
        Ok(Files::get(&format!("worlds/{name}/{file}")).map(|f| f.data))
    })
}
