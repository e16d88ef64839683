//! Labelled samples in a directory: `index.csv` and the files it names, or a folder of files for each class.
//!
//! Folders: `DIR/CLASS/FILE` is one split, [`ALL`]; `DIR/SPLIT/CLASS/FILE` are the splits so named. What a file is, its ending
//! says: `.png`, `.jpg`, `.jpeg`; `.wav`, `.flac`, `.mp3`; `.txt`; `.npz` for the tensors a graph takes.
//!
//! Columns of the index: `split` (`stream`, `test`, …), `label` (a class's label or number), and one per modality (`image`, `audio`,
//! `text`): file names relative to the directory, the text itself; empty where missing. Columns `sensor.NAME` hold one reading of
//! each channel, for models that look at one at a time. Further columns are ignored.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::class::{Class, Classified};
use crate::modality::{Audio, Image, Sample};

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file cannot be read.
    #[error("cannot read {path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The index is not as described.
    #[error("{path}, line {line}: {why}; a data set is a directory with index.csv (split,label,image,audio,text)")]
    Index {
        /// The index.
        path: String,
        /// Where.
        line: u64,
        /// What.
        why: String,
    },
}

impl Classified for DatasetError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

/// One labelled sample, its files in memory.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Which part of the data it belongs to.
    pub split: String,
    /// The label, as written.
    pub label: String,
    /// An image file.
    pub image: Option<Vec<u8>>,
    /// An audio file.
    pub audio: Option<Vec<u8>>,
    /// A text.
    pub text: Option<String>,
    /// Sensor readings, as CSV lines with a header.
    pub sensor: Option<String>,
    /// An `.npz` of the inputs of a graph, in place of what they are made from.
    pub tensors: Option<Vec<u8>>,
}

impl Row {
    /// The sample in it.
    pub fn sample(&self) -> Sample<'_> {
        Sample {
            image: self.image.as_deref().map(Image::File),
            audio: self.audio.as_deref().map(Audio::File),
            text: self.text.as_deref(),
            sensor: self.sensor.as_deref(),
        }
    }

    /// Which of image, audio and text it has.
    pub fn modalities(&self) -> [bool; 3] {
        [self.image.is_some(), self.audio.is_some(), self.text.is_some()]
    }
}

/// The split of samples that are in folders of classes and no splits.
pub const ALL: &str = "all";

/// A data set in memory.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// The rows, in the order of the index.
    pub rows: Vec<Row>,
    /// `swapped` of `world.json`, where there is one: what the picture shows → what its owner means.
    pub swapped: BTreeMap<String, String>,
}

impl Dataset {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`DatasetError`] naming the file or line; for a directory of data sets, those in it.
    pub fn from_dir(dir: &Path) -> Result<Dataset, DatasetError> {
        let inside = data_sets_in(dir);
        if !inside.is_empty() && !dir.join("index.csv").exists() {
            let why = format!("it is no data set, but holds some: name one of {}", inside.join(", "));
            return Err(DatasetError::File { path: dir.display().to_string(), why });
        }
        if !dir.join("index.csv").exists()
            && let Some(found) = folders(dir)?
        {
            return Ok(found);
        }
        Dataset::from_files(&dir.display().to_string(), |name| {
            let path: PathBuf = dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(DatasetError::File { path: path.display().to_string(), why: e.to_string() }),
            }
        })
    }

    /// Reads from files given by name; `place` is only for messages.
    ///
    /// # Errors
    /// [`DatasetError`] naming the file or line.
    pub fn from_files<'a>(
        place: &str,
        read: impl Fn(&str) -> Result<Option<Cow<'a, [u8]>>, DatasetError>,
    ) -> Result<Dataset, DatasetError> {
        let index = format!("{place}/index.csv");
        let bytes = read("index.csv")?
            .ok_or_else(|| DatasetError::File { path: index.clone(), why: "there is no such file".into() })?;
        let mut reader = csv::Reader::from_reader(&*bytes);
        let bad = |line: u64, why: String| DatasetError::Index { path: index.clone(), line, why };
        let headers = reader.headers().map_err(|e| bad(1, e.to_string()))?.clone();
        let column = |name: &str| headers.iter().position(|h| h.trim() == name);
        let label = column("label").ok_or_else(|| bad(1, "there is no column `label`".into()))?;
        let (split, image, audio, text) = (column("split"), column("image"), column("audio"), column("text"));
        let channels: Vec<(usize, &str)> =
            headers.iter().enumerate().filter_map(|(i, h)| Some((i, h.trim().strip_prefix("sensor.")?))).collect();
        let mut out = Dataset::default();
        for record in reader.records() {
            let record = record.map_err(|e| bad(e.position().map_or(0, csv::Position::line), e.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let field = |c: Option<usize>| c.and_then(|c| record.get(c)).filter(|v| !v.is_empty()).map(str::to_string);
            let file = |c: Option<usize>| -> Result<Option<Vec<u8>>, DatasetError> {
                let Some(name) = field(c) else { return Ok(None) };
                let path = Path::new(&name);
                let inside = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                if !inside {
                    return Err(bad(line, format!("`{name}` is not a path inside the data set")));
                }
                let bytes = read(&name)?.ok_or_else(|| bad(line, format!("there is no file `{name}`")))?;
                Ok(Some(bytes.into_owned()))
            };
            let row = Row {
                split: field(split).unwrap_or_else(|| "test".into()),
                label: field(Some(label)).ok_or_else(|| bad(line, "the label is empty".into()))?,
                image: file(image)?,
                audio: file(audio)?,
                text: field(text),
                sensor: readings(&channels, &record),
                tensors: None,
            };
            if row.modalities() == [false; 3] && row.sensor.is_none() {
                return Err(bad(line, "the row has no image, no audio and no text, and no readings either".into()));
            }
            out.rows.push(row);
        }
        if let Some(bytes) = read("world.json")? {
            let path = format!("{place}/world.json");
            let doc: serde_json::Value = serde_json::from_slice(&bytes)
                .map_err(|e| DatasetError::File { path: path.clone(), why: e.to_string() })?;
            if let Some(map) = doc.get("swapped").and_then(|s| s.as_object()) {
                let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
                out.swapped = map.iter().map(|(k, v)| (k.clone(), text(v))).collect();
            }
        }
        Ok(out)
    }

    /// The rows of one split; those of [`ALL`] belong to every one.
    pub fn split<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |r| r.split == name || r.split == ALL)
    }

    /// The labels, each once, sorted.
    pub fn labels(&self) -> Vec<String> {
        let labels: std::collections::BTreeSet<&String> = self.rows.iter().map(|r| &r.label).collect();
        labels.into_iter().cloned().collect()
    }
}

/// The readings of a row of the index, as lines of a sensor; `None` where there are none.
fn readings(channels: &[(usize, &str)], record: &csv::StringRecord) -> Option<String> {
    let given: Vec<(&str, &str)> = channels
        .iter()
        .filter_map(|&(i, name)| Some((name, record.get(i)?.trim())))
        .filter(|(_, v)| !v.is_empty())
        .collect();
    let joined = |of: fn(&(&'_ str, &'_ str)) -> String| given.iter().map(of).collect::<Vec<_>>().join(",");
    (!given.is_empty()).then(|| format!("{}\n{}\n", joined(|g| g.0.to_string()), joined(|g| g.1.to_string())))
}

/// The samples of `DIR/CLASS/FILE` or `DIR/SPLIT/CLASS/FILE`; `None` when there are no such folders.
fn folders(dir: &Path) -> Result<Option<Dataset>, DatasetError> {
    let mut out = Dataset::default();
    for (label, of_class) in inside(dir)? {
        if !of_class.is_dir() {
            continue;
        }
        let entries = inside(&of_class)?;
        if entries.iter().any(|(_, p)| p.is_dir()) {
            for (class, files) in entries.iter().filter(|(_, p)| p.is_dir()) {
                for (_, file) in inside(files)? {
                    out.rows.extend(sample(&file, &label, class)?);
                }
            }
            continue;
        }
        for (_, file) in entries {
            out.rows.extend(sample(&file, ALL, &label)?);
        }
    }
    Ok((!out.rows.is_empty()).then_some(out))
}

/// What is in a directory, by name; hidden files are not.
fn inside(dir: &Path) -> Result<Vec<(String, PathBuf)>, DatasetError> {
    let bad = |e: std::io::Error| DatasetError::File { path: dir.display().to_string(), why: e.to_string() };
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            out.push((name, entry.path()));
        }
    }
    out.sort();
    Ok(out)
}

/// The sample in a file; `None` for an ending that is no sample's.
fn sample(path: &Path, split: &str, label: &str) -> Result<Option<Row>, DatasetError> {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let bad = |why: String| DatasetError::File { path: path.display().to_string(), why };
    let read = || std::fs::read(path).map_err(|e| bad(e.to_string()));
    let mut row = Row { split: split.into(), label: label.into(), ..Row::default() };
    match ending.as_str() {
        "png" | "jpg" | "jpeg" => row.image = Some(read()?),
        "wav" | "flac" | "mp3" => row.audio = Some(read()?),
        "npz" => row.tensors = Some(read()?),
        "txt" => {
            let text = String::from_utf8(read()?).map_err(|_| bad("it is not UTF-8 text".into()))?;
            row.text = Some(text.trim().to_string());
        }
        _ => return Ok(None),
    }
    Ok(Some(row))
}

/// The names of the directories in `dir` that are data sets, sorted.
fn data_sets_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("index.csv").is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(index: &str) -> Result<Dataset, DatasetError> {
        let index = index.to_string();
        Dataset::from_files("data", move |name| {
            Ok(match name {
                "index.csv" => Some(Cow::Owned(index.clone().into_bytes())),
                "a.png" => Some(Cow::Borrowed(&b"png"[..])),
                "world.json" => Some(Cow::Borrowed(&br#"{"swapped":{"1":7}}"#[..])),
                _ => None,
            })
        })
    }

    #[test]
    fn rows_carry_their_files_and_the_swap_of_the_world() {
        let d = set("split,label,image,audio,text\ntest,3,a.png,,\nstream,4,,,\"four, please\"\n").unwrap();
        assert_eq!(d.rows[0].image.as_deref(), Some(&b"png"[..]));
        assert_eq!(d.split("stream").next().unwrap().text.as_deref(), Some("four, please"));
        assert_eq!(d.swapped["1"], "7");
    }

    #[test]
    fn folders_are_classes_and_folders_of_folders_are_splits() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put("dog/b.txt", b"woof\n");
        put("cat/a.PNG", b"png");
        put("cat/notes.md", b"no sample");
        let d = Dataset::from_dir(dir.path()).unwrap();
        assert_eq!(d.labels(), ["cat", "dog"]);
        assert_eq!(d.rows[0].image.as_deref(), Some(&b"png"[..]));
        assert_eq!((d.rows[1].text.as_deref(), d.rows[1].split.as_str(), d.rows.len()), (Some("woof"), ALL, 2));
        assert_eq!(d.split("test").count(), 2);
        let both = tempfile::tempdir().unwrap();
        for (split, class) in [("train", "cat"), ("test", "dog")] {
            std::fs::create_dir_all(both.path().join(split).join(class)).unwrap();
            std::fs::write(both.path().join(split).join(class).join("1.wav"), b"wav").unwrap();
        }
        let d = Dataset::from_dir(both.path()).unwrap();
        assert_eq!(d.split("train").map(|r| r.label.as_str()).collect::<Vec<_>>(), ["cat"]);
        assert_eq!(d.split("test").count(), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (index, says) in [
            ("split,image\ntest,a.png\n", "no column `label`"),
            ("split,label,image\ntest,3,b.png\n", "line 2: there is no file `b.png`"),
            ("split,label,image\ntest,3,../a.png\n", "not a path inside"),
            ("split,label,image\ntest,,a.png\n", "the label is empty"),
            ("split,label,image\ntest,3,\n", "no image, no audio and no text"),
        ] {
            let e = set(index).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }
}
