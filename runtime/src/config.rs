//! The configuration: TOML files, every value with the file and line it stands in.
//!
//! ```toml
//! [feedback]                       # for every pad
//! allow_unpaired = false
//! per_minute = 30
//! [feedback.buttons]
//! 0.click = "up"
//! 0.long = "!up"
//!
//! [pads.desk]                      # for one pad; anything [feedback] may hold, over it
//! uid = "e66038b713952a31"
//! port = "usb:2e8a:000a:E66038B7"  # what `--pad desk` opens
//! buttons.1.double = "correct cat"
//!
//! [people.4711]                    # for whoever shows badge 4711
//! name = "Ada"
//! trains = false
//! ```
//! The machine's file is read first, then the person's, each over the one before. `KEYS` has every key; what is not there
//! is refused, and every fault is told at once.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hone_wire::message::Config as Timing;
use toml::de::{DeTable, DeValue};

use crate::feedback::keys::parse_uid;
use crate::feedback::meaning::{Act, Given, Mapping};
use crate::feedback::policy::{Person, Policy, Rules};
use crate::feedback::words;
use crate::feedback::{source, uid_text};
use crate::{Class, Classified};

/// The name of a configuration file.
pub const FILE: &str = "hone.toml";
const SYSTEM: &str = "/etc/hone";

/// One fault of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files with faults.
    #[error("{}", faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
    Faults {
        /// All of them.
        faults: Vec<Fault>,
    },
}

impl Classified for ConfigError {
    fn class(&self) -> Class {
        Class::Config
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As in the file.
    pub value: String,
    /// `hone.toml:12`, or `default`.
    pub origin: String,
}

/// A pad that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPad {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: Option<[u8; 8]>,
    /// What to open for it.
    pub port: Option<String>,
}

/// A read configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The files it was read from, in order.
    pub files: Vec<PathBuf>,
    /// Whom to hear and what they mean.
    pub policy: Policy,
    /// Pads by name.
    pub pads: Vec<NamedPad>,
    /// Every value in force by its key, defaults of `[feedback]` too.
    pub settings: BTreeMap<String, Setting>,
}

/// A key of `[feedback]` and of every `[pads.NAME]`.
pub struct Key {
    /// Its name; `timing.` stands before those the pad is told.
    pub name: &'static str,
    /// What it says, with unit.
    pub doc: &'static str,
    set: fn(&mut Rules, &Value) -> Result<(), String>,
    get: fn(&Rules) -> String,
}

/// Every such key, beside `buttons.N.click|long|double`, `buttons.chord` and `buttons.chord-held`.
pub static KEYS: &[Key] = &[
    Key {
        name: "allow_unpaired",
        doc: "whether a pad is heard that was never paired",
        set: |r, v| v.bool().map(|b| r.allow_unpaired = b),
        get: |r| r.allow_unpaired.to_string(),
    },
    Key {
        name: "needs_badge",
        doc: "whether presses train only while a known person's badge counts",
        set: |r, v| v.bool().map(|b| r.needs_badge = b),
        get: |r| r.needs_badge.to_string(),
    },
    Key {
        name: "badge_minutes",
        doc: "how long a badge counts, minutes of the pad's time",
        set: |r, v| v.int(1, 1_440).map(|n| r.badge_ms = n * 60_000),
        get: |r| (r.badge_ms / 60_000).to_string(),
    },
    Key {
        name: "apart_ms",
        doc: "presses closer than this, in ms, are suspect",
        set: |r, v| v.int(0, 60_000).map(|n| r.limit.apart_ms = n),
        get: |r| r.limit.apart_ms.to_string(),
    },
    Key {
        name: "per_minute",
        doc: "presses beyond so many a minute are suspect",
        set: |r, v| v.int(1, 10_000).map(|n| r.limit.per_minute = n),
        get: |r| r.limit.per_minute.to_string(),
    },
    Key {
        name: "button_count",
        doc: "how many buttons there are, for the meanings by default; 0: as many as the pad says",
        set: |r, v| v.int(0, 16).map(|n| r.buttons = (n > 0).then_some(n as u8)),
        get: |r| r.buttons.unwrap_or(0).to_string(),
    },
    Key {
        name: "timing.debounce_ms",
        doc: "equal samples, 1 ms apart, that make a level",
        set: |r, v| v.int(1, 255).map(|n| timing(r).debounce_ms = n as u8),
        get: |r| r.timing.unwrap_or_default().debounce_ms.to_string(),
    },
    Key {
        name: "timing.long_ms",
        doc: "a press this long is a long one, ms",
        set: |r, v| v.int(50, 10_000).map(|n| timing(r).long_ms = n as u16),
        get: |r| r.timing.unwrap_or_default().long_ms.to_string(),
    },
    Key {
        name: "timing.double_ms",
        doc: "a second press within this time makes a double, ms; 0: none are made, and a click need not wait",
        set: |r, v| v.int(0, 5_000).map(|n| timing(r).double_ms = n as u16),
        get: |r| r.timing.unwrap_or_default().double_ms.to_string(),
    },
    Key {
        name: "timing.chord_ms",
        doc: "presses within this time of each other make a chord, ms; 0: none are made",
        set: |r, v| v.int(0, 5_000).map(|n| timing(r).chord_ms = n as u16),
        get: |r| r.timing.unwrap_or_default().chord_ms.to_string(),
    },
];

fn timing(rules: &mut Rules) -> &mut Timing {
    rules.timing.get_or_insert_default()
}

impl Config {
    /// The files that count: `explicit` alone if given (a person's `--config`, else `$HONE_CONFIG`), or the machine's in
    /// `$CONFIGURATION_DIRECTORY` (systemd) or `/etc/hone`, then the person's in the XDG configuration directory.
    pub fn places(explicit: Option<&Path>) -> Vec<PathBuf> {
        places_in(explicit, |name| std::env::var_os(name))
    }

    /// Reads the files of [`Config::places`]. One that was named must be there, the others may be missing.
    ///
    /// # Errors
    /// [`ConfigError`], with every fault there is.
    pub fn load(explicit: Option<&Path>) -> Result<Config, ConfigError> {
        let named = explicit.is_some() || std::env::var_os("HONE_CONFIG").is_some();
        let mut texts = Vec::new();
        for path in Config::places(explicit) {
            match fs::read_to_string(&path) {
                Ok(text) => texts.push((path, text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !named => {}
                Err(source) => return Err(ConfigError::Read { path, source }),
            }
        }
        Config::parse(texts)
    }

    /// Reads files that are in memory, each over the one before.
    ///
    /// # Errors
    /// [`ConfigError::Faults`].
    pub fn parse(texts: Vec<(PathBuf, String)>) -> Result<Config, ConfigError> {
        let mut faults = Vec::new();
        let mut leaves = BTreeMap::new();
        for (file, text) in &texts {
            read(file, text, &mut leaves, &mut faults);
        }
        let mut config = Config { files: texts.into_iter().map(|(file, _)| file).collect(), ..Config::default() };
        config.build(leaves.into_values().collect(), &mut faults);
        faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults { faults }) }
    }

    fn build(&mut self, leaves: Vec<Leaf>, faults: &mut Vec<Fault>) {
        let mut common = Rules::default();
        for key in KEYS {
            let setting = Setting { value: (key.get)(&common), origin: "default".into() };
            self.settings.insert(format!("feedback.{}", key.name), setting);
        }
        for leaf in &leaves {
            let setting = Setting { value: leaf.value.to_string(), origin: leaf.origin() };
            self.settings.insert(leaf.path.join("."), setting);
        }
        let mut done = |leaf: &Leaf, result: Result<(), String>| {
            if let Err(what) = result {
                faults.push(leaf.fault(what));
            }
        };
        let path = |leaf: &Leaf| leaf.path.iter().map(String::as_str).collect::<Vec<_>>().join(".");
        for leaf in &leaves {
            if let ["feedback", ref rest @ ..] = leaf.parts()[..] {
                done(leaf, rule(&mut common, rest, leaf));
            }
        }
        let mut pads: BTreeMap<&str, (NamedPad, Rules)> = BTreeMap::new();
        for leaf in &leaves {
            match leaf.parts()[..] {
                ["feedback", ..] => {}
                ["pads", name, ref rest @ ..] if !rest.is_empty() => {
                    let new = || {
                        let pad = NamedPad { name: name.into(), uid: None, port: None };
                        (pad, Rules { name: Some(name.into()), ..common.clone() })
                    };
                    let (pad, rules) = pads.entry(name).or_insert_with(new);
                    let result = match *rest {
                        ["uid"] => leaf.value.str().and_then(|text| {
                            let uid = parse_uid(text).ok_or(format!("`{text}` is not 16 hexadecimal digits"))?;
                            pad.uid = Some(uid);
                            Ok(())
                        }),
                        ["port"] => leaf.value.str().and_then(|text| {
                            source::parse(text).map_err(|error| error.to_string())?;
                            pad.port = Some(text.into());
                            Ok(())
                        }),
                        _ => rule(rules, rest, leaf),
                    };
                    done(leaf, result);
                }
                ["people", badge, ref rest @ ..] if !rest.is_empty() => {
                    let Ok(number) = badge.parse::<u16>() else {
                        done(leaf, Err(format!("`{badge}` is no badge; a badge is a number from 0 to 65535")));
                        continue;
                    };
                    let new = || Person { name: format!("badge {number}"), mapping: Mapping::new(), trains: true };
                    let person = self.policy.people.entry(number).or_insert_with(new);
                    let result = match *rest {
                        ["name"] => leaf.value.str().map(|name| person.name = name.into()),
                        ["trains"] => leaf.value.bool().map(|b| person.trains = b),
                        ["buttons", ref act @ ..] => given(&mut person.mapping, act, leaf),
                        _ => Err(format!("there is no key `{}`; a person has name, trains, buttons", path(leaf))),
                    };
                    done(leaf, result);
                }
                _ => done(
                    leaf,
                    Err(format!("there is no key `{}`; known are feedback, pads.NAME, people.BADGE", path(leaf))),
                ),
            }
        }
        for (name, (pad, mut rules)) in pads {
            seal(&mut rules);
            match pad.uid {
                Some(uid) => {
                    if let Some(other) = self.policy.pads.insert(uid, rules) {
                        let leaf = leaves.iter().find(|leaf| leaf.parts()[..] == ["pads", name, "uid"]);
                        let other = other.name.unwrap_or_default();
                        leaf.into_iter().for_each(|leaf| {
                            done(leaf, Err(format!("`{}` is also the pad `{other}`", uid_text(&uid))))
                        });
                    }
                }
                None => {
                    let ruled = leaves
                        .iter()
                        .find(|leaf| matches!(leaf.parts()[..], ["pads", n, key, ..] if n == name && key != "port"));
                    if let Some(leaf) = ruled {
                        done(
                            leaf,
                            Err(format!(
                                "rules for one pad need its identity: pads.{name}.uid; `hone pad list` tells it"
                            )),
                        );
                    }
                }
            }
            self.pads.push(pad);
        }
        seal(&mut common);
        self.policy.common = common;
    }
}

/// Gives timings the number by which the pad tells that it has them.
fn seal(rules: &mut Rules) {
    if let Some(t) = &mut rules.timing {
        let words = [u32::from(t.debounce_ms), u32::from(t.long_ms), u32::from(t.double_ms), u32::from(t.chord_ms)];
        // FNV-1a; 0 stands for the pad's own.
        t.hash = words.iter().fold(0x811c_9dc5u32, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193)).max(1);
    }
}

fn rule(rules: &mut Rules, path: &[&str], leaf: &Leaf) -> Result<(), String> {
    if let ["buttons", act @ ..] = path {
        return given(&mut rules.mapping, act, leaf);
    }
    let name = path.join(".");
    match KEYS.iter().find(|key| key.name == name) {
        Some(key) => (key.set)(rules, &leaf.value),
        None => {
            let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            Err(format!("there is no key `{name}`; known are {}, buttons", known.join(", ")))
        }
    }
}

fn given(mapping: &mut Mapping, act: &[&str], leaf: &Leaf) -> Result<(), String> {
    let name = act.join(".");
    let act = Act::parse(&name).ok_or(format!(
        "`{name}` is nothing a hand does; known are N.click, N.long, N.double, N.left, N.right with N from 0 to 15, chord, chord-held"
    ))?;
    let phrase = words::parse(leaf.value.str()?)?.ok_or("it is empty; `nothing` takes a meaning away")?;
    if let Some(why) = phrase.said.only_typed() {
        return Err(why.into());
    }
    mapping.insert(act, Given { phrase, origin: leaf.origin() });
    Ok(())
}

fn places_in(explicit: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(path) = explicit.map(Path::to_path_buf).or_else(|| env("HONE_CONFIG").map(PathBuf::from)) {
        return vec![path];
    }
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let system = absolute("CONFIGURATION_DIRECTORY").unwrap_or_else(|| SYSTEM.into());
    let user = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let mut places = vec![system.join(FILE)];
    places.extend(user.map(|user| user.join("hone").join(FILE)));
    places
}

/// A value of TOML that a key can have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bool(bool),
    Int(i64),
    Str(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Str(text) => write!(f, "{text:?}"),
        }
    }
}

impl Value {
    fn bool(&self) -> Result<bool, String> {
        if let Value::Bool(b) = self { Ok(*b) } else { Err(format!("{self} is neither true nor false")) }
    }

    fn int(&self, least: u32, most: u32) -> Result<u32, String> {
        let fits = |n: &i64| u32::try_from(*n).ok().filter(|n| (least..=most).contains(n));
        let n = if let Value::Int(n) = self { fits(n) } else { None };
        n.ok_or(format!("{self} is not a whole number from {least} to {most}"))
    }

    fn str(&self) -> Result<&str, String> {
        if let Value::Str(text) = self { Ok(text) } else { Err(format!("{self} is no text; write it in quotes")) }
    }
}

/// A value with its key and place.
#[derive(Clone, Debug)]
struct Leaf {
    path: Vec<String>,
    value: Value,
    file: PathBuf,
    line: usize,
}

impl Leaf {
    fn parts(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    fn origin(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    fn fault(&self, what: String) -> Fault {
        Fault { file: self.file.clone(), line: self.line, what }
    }
}

fn read(file: &Path, text: &str, leaves: &mut BTreeMap<Vec<String>, Leaf>, faults: &mut Vec<Fault>) {
    let line = |at: usize| 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        faults.push(Fault { file: file.into(), line: line(at), what: error.message().into() });
    }
    if errors.is_empty() {
        let mut walk = Walk { file, line: &line, leaves, faults };
        walk.table(&mut Vec::new(), table.get_ref());
    }
}

struct Walk<'a> {
    file: &'a Path,
    line: &'a dyn Fn(usize) -> usize,
    leaves: &'a mut BTreeMap<Vec<String>, Leaf>,
    faults: &'a mut Vec<Fault>,
}

impl Walk<'_> {
    fn table(&mut self, path: &mut Vec<String>, table: &DeTable<'_>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            let line = (self.line)(key.span().start);
            let value = match value.get_ref() {
                DeValue::Table(inner) => {
                    self.table(path, inner);
                    path.pop();
                    continue;
                }
                DeValue::Boolean(b) => Ok(Value::Bool(*b)),
                DeValue::String(text) => Ok(Value::Str(text.to_string())),
                DeValue::Integer(n) => {
                    i64::from_str_radix(n.as_str(), n.radix()).map(Value::Int).map_err(|_| format!("{n} is too large"))
                }
                other => Err(format!("no key takes a value of type {}", other.type_str())),
            };
            match value {
                Ok(value) => {
                    let leaf = Leaf { path: path.clone(), value, file: self.file.into(), line };
                    self.leaves.insert(path.clone(), leaf);
                }
                Err(what) => self.faults.push(Fault {
                    file: self.file.into(),
                    line,
                    what: format!("{}: {what}", path.join(".")),
                }),
            }
            path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::limit::Limit;
    use crate::feedback::meaning::Meaning;
    use crate::journal::PressKind;
    use hone_wire::message::{Event, Kind};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(vec![("hone.toml".into(), text.into())])
    }

    fn faults(text: &str) -> Vec<String> {
        match parse(text) {
            Err(ConfigError::Faults { faults }) => faults.iter().map(Fault::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    const WHOLE: &str = r#"
[feedback]
allow_unpaired = true
per_minute = 12
[feedback.buttons]
0.click = "down"
chord = "nothing"

[pads.desk]
uid = "0102030405060708"
port = "usb:2e8a:000a:E660"
apart_ms = 500
timing.long_ms = 900
buttons.1.double = "correct dog"

[people.4711]
name = "Ada"
trains = false
buttons.0.click = "!up"
"#;

    #[test]
    fn what_is_for_all_holds_for_each_pad_that_does_not_say_otherwise_and_a_person_comes_last() {
        let config = parse(WHOLE).unwrap_or_else(|e| panic!("{e}"));
        let (desk, other) = ([1, 2, 3, 4, 5, 6, 7, 8], [9; 8]);
        let rules = config.policy.rules(&desk);
        assert_eq!((rules.limit, rules.allow_unpaired), (Limit { apart_ms: 500, per_minute: 12 }, true));
        assert_eq!(config.policy.rules(&other).limit, Limit { apart_ms: 200, per_minute: 12 });
        let timing = rules.timing.unwrap();
        assert_eq!((timing.long_ms, timing.debounce_ms), (900, Timing::default().debounce_ms));
        assert_ne!(timing.hash, 0, "or the pad could not tell that it has them");
        assert_eq!(config.policy.rules(&other).timing, None);

        let labels = ["cat".to_string(), "dog".to_string()];
        let meaning = |uid, person, kind, src| {
            let layout = config.policy.layout(&uid, 2, person, &labels).unwrap();
            layout.meaning(&Event { kind, src, ..Event::default() })
        };
        let said = |kind, confirmed| Meaning::Said { kind, confirmed };
        assert_eq!(meaning(other, None, Kind::Click, 0), said(PressKind::Thumb { up: false }, false));
        assert_eq!(meaning(other, Some(4711), Kind::Click, 0), said(PressKind::Thumb { up: true }, true));
        assert_eq!(meaning(other, Some(4712), Kind::Click, 0), said(PressKind::Thumb { up: false }, false));
        assert_eq!(meaning(desk, None, Kind::Double, 1), said(PressKind::Correction { class: 1 }, false));
        assert_eq!(meaning(other, None, Kind::Double, 1), Meaning::Undo);
        assert!(matches!(meaning(desk, None, Kind::Chord, 0), Meaning::Nothing { .. }));
        let pad = NamedPad { name: "desk".into(), uid: Some(desk), port: Some("usb:2e8a:000a:E660".into()) };
        assert_eq!(config.pads, [pad]);
        assert!(!config.policy.people[&4711].trains);
    }

    #[test]
    fn every_value_tells_where_it_stands_and_defaults_that_they_are() {
        let config = parse(WHOLE).unwrap();
        let of = |key: &str| {
            let setting = &config.settings[key];
            (setting.value.as_str(), setting.origin.as_str())
        };
        assert_eq!(of("feedback.per_minute"), ("12", "hone.toml:4"));
        assert_eq!(of("feedback.apart_ms"), ("200", "default"));
        assert_eq!(of("pads.desk.buttons.1.double"), ("\"correct dog\"", "hone.toml:14"));
        let files =
            vec![("/etc/hone/hone.toml".into(), WHOLE.into()), ("mine.toml".into(), "feedback.per_minute = 5".into())];
        let both = Config::parse(files).unwrap();
        assert_eq!(both.settings["feedback.per_minute"].origin, "mine.toml:1");
        assert_eq!(both.policy.common.limit.per_minute, 5);
        assert_eq!(both.settings["feedback.allow_unpaired"].origin, "/etc/hone/hone.toml:3");
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_line() {
        let text = "[feedback]\nper_minute = 0\nallow = true\nbuttons.0.click = \"dance\"\n[pads.x]\nuid = \"12\"\nport = \"usb:1\"\n\
                    [people.nobody]\nname = \"N\"\n[people.1]\nage = 7\n[other]\na = [1]\n";
        let told = faults(text);
        for (line, part) in [
            (2, "0 is not a whole number from 1 to 10000"),
            (3, "there is no key `allow`; known are allow_unpaired"),
            (4, "`dance` is not understood"),
            (6, "16 hexadecimal digits"),
            (7, "usb:VID:PID"),
            (9, "`nobody` is no badge"),
            (11, "a person has name, trains, buttons"),
            (13, "type array"),
        ] {
            let place = format!("hone.toml:{line}: ");
            assert!(
                told.iter().any(|t| t.starts_with(&place) && t.contains(part)),
                "{place}{part} is not in {told:#?}"
            );
        }
        assert!(faults("[feedback\n")[0].starts_with("hone.toml:1: "));
        assert!(faults("[pads.a]\nneeds_badge = true\n")[0].contains("pads.a.uid"));
        let twice = "[pads.a]\nuid=\"0000000000000001\"\n[pads.b]\nuid=\"0000000000000001\"\n";
        assert!(faults(twice)[0].starts_with("hone.toml:4: "), "{:?}", faults(twice));
    }

    #[test]
    fn meanings_are_checked_against_a_model_with_their_lines() {
        let config = parse(WHOLE).unwrap();
        assert_eq!(config.policy.check(&["cat".into(), "dog".into()]), Ok(()));
        let wrong = config.policy.check(&["cow".into()]).unwrap_err();
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("hone.toml:14: 1.double: `dog` is no label"), "{wrong:?}");
    }

    #[test]
    fn a_named_file_stands_alone_and_else_the_machines_comes_before_the_persons() {
        let env = |name: &str| match name {
            "HOME" => Some(OsString::from("/h/a")),
            _ => None,
        };
        let all: Vec<PathBuf> = vec!["/etc/hone/hone.toml".into(), "/h/a/.config/hone/hone.toml".into()];
        assert_eq!(places_in(None, env), all);
        assert_eq!(places_in(Some(Path::new("x.toml")), env), [PathBuf::from("x.toml")]);
        assert_eq!(places_in(None, |name| (name == "HONE_CONFIG").then(|| "y.toml".into())), [PathBuf::from("y.toml")]);
    }
}
