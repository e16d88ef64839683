//! The line of text that describes a source. One table holds every key: parsing, checks and help come from it.
use std::time::Duration;

use super::{CaptureError, Medium, SOURCES, SourceRow};

/// A key of a spec.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// The sources that know it.
    pub sources: &'static [&'static str],
    /// The media it is for.
    pub media: &'static [Medium],
    /// What it says, with unit and default.
    pub doc: &'static str,
    set: fn(&mut Options, &str) -> Result<(), String>,
}

/// The values of all keys; `None` where the default depends on what is read.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Options {
    /// Frames kept for a slow reader.
    pub keep: Option<usize>,
    /// Largest frame, bytes.
    pub max_bytes: Option<usize>,
    /// How the bytes are to be read.
    pub format: Option<String>,
    /// Silence after which a producer is started again; zero never.
    pub stall: Option<Duration>,
    /// Whether a producer that ends is started again.
    pub restart: Option<bool>,
    /// Starts without any result after which the source gives up.
    pub tries: Option<u32>,
    /// Sound: one window around each word, rather than one after the other.
    pub words: bool,
    /// Window: seconds of sound, or lines.
    pub length: Option<f64>,
    /// From the beginning of a window to that of the next, in the same unit.
    pub hop: Option<f64>,
    /// Seconds of sound before a word begins.
    pub pre_s: Option<f64>,
    /// Seconds of quiet that end a word.
    pub hang_s: Option<f64>,
    /// dB above the background where a word begins.
    pub on_db: Option<f64>,
    /// dB above the background where it ends.
    pub off_db: Option<f64>,
    /// dB below full scale under which nothing is a word.
    pub gate_dbfs: Option<f64>,
    /// Whether the first line names the columns.
    pub header: Option<bool>,
    /// Names of the columns, if no line does.
    pub columns: Option<String>,
    /// Frames a second; zero as fast as they are fetched.
    pub fps: f64,
    /// Begin again after the last file.
    pub repeat: bool,
    /// Also files that are in the directory already.
    pub all: bool,
    /// `falling`, `rising` or `both`.
    pub edge: Option<Edge>,
    /// Pull resistor to ask for.
    pub bias: Option<Bias>,
    /// Debounce time.
    pub debounce: Option<Duration>,
}

/// Which edges of a GPIO line are triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// High to low: a button to ground.
    Falling,
    /// Low to high.
    Rising,
    /// Both; a falling one is a press.
    Both,
}

/// Pull resistor of a GPIO line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// To the supply.
    Up,
    /// To ground.
    Down,
    /// None.
    Off,
}

const STREAMS: &[&str] = &["exec", "pipe"];
const AUDIO: &[Medium] = &[Medium::Audio];
const ANY: &[&str] = &["exec", "pipe", "file", "watch", "gpio", "key"];

/// Every key.
pub static KEYS: &[Key] = &[
    Key {
        name: "format",
        sources: STREAMS,
        media: &[Medium::Image, Medium::Audio],
        doc: "image: mjpeg (default), raw:gray:WxH, raw:rgb:WxH; audio: wav (default), raw:TYPE:RATE:CHANNELS with TYPE one of u8 s16le s24le s32le f32le",
        set: |o, v| {
            o.format = Some(v.to_owned());
            Ok(())
        },
    },
    Key {
        name: "keep",
        sources: ANY,
        media: &Medium::ALL,
        doc: "frames kept for a reader that is slow, 1 to 1024 (default: image 1, audio and sensor 8, trigger 64); older ones are dropped and counted",
        set: |o, v| number(v, 1.0, 1024.0).map(|n| o.keep = Some(n as usize)),
    },
    Key {
        name: "max_bytes",
        sources: &["exec", "pipe", "file", "watch"],
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        doc: "largest frame, file or window (default 16777216); larger ones are refused and counted",
        set: |o, v| number(v, 16.0, (1u64 << 30) as f64).map(|n| o.max_bytes = Some(n as usize)),
    },
    Key {
        name: "stall",
        sources: STREAMS,
        media: &Medium::ALL,
        doc: "seconds without anything after which the producer is ended and started again; 0 never (default: image and audio 5, sensor and trigger 0)",
        set: |o, v| seconds(v, 0.0, 86_400.0).map(|d| o.stall = Some(d)),
    },
    Key {
        name: "restart",
        sources: STREAMS,
        media: &Medium::ALL,
        doc: "yes (default) or no: whether a producer that ends is started again, after 0.1 s, doubling to 5 s",
        set: |o, v| yes(v).map(|b| o.restart = Some(b)),
    },
    Key {
        name: "tries",
        sources: STREAMS,
        media: &Medium::ALL,
        doc: "starts without any result after which the source gives up (default 5); one that has ever given something is tried for ever",
        set: |o, v| number(v, 1.0, 1e9).map(|n| o.tries = Some(n as u32)),
    },
    Key {
        name: "cut",
        sources: STREAMS,
        media: AUDIO,
        doc: "window (default): one window after the other; word: one window around each spoken word",
        set: |o, v| match v {
            "window" | "word" => {
                o.words = v == "word";
                Ok(())
            }
            _ => Err("is neither `window` nor `word`".into()),
        },
    },
    Key {
        name: "length",
        sources: &["exec", "pipe", "file"],
        media: &[Medium::Audio, Medium::Sensor],
        doc: "window: seconds of sound (default 1, at most 60) or lines (default 100; of a file all)",
        set: |o, v| number(v, 1e-3, 1e6).map(|n| o.length = Some(n)),
    },
    Key {
        name: "hop",
        sources: &["exec", "pipe", "file"],
        media: &[Medium::Audio, Medium::Sensor],
        doc: "seconds or lines from the beginning of one window to that of the next (default: length)",
        set: |o, v| number(v, 1e-3, 1e6).map(|n| o.hop = Some(n)),
    },
    Key {
        name: "pre",
        sources: STREAMS,
        media: AUDIO,
        doc: "cut=word: seconds of the window that lie before the word begins (default 0.2)",
        set: |o, v| number(v, 0.0, 60.0).map(|n| o.pre_s = Some(n)),
    },
    Key {
        name: "hang",
        sources: STREAMS,
        media: AUDIO,
        doc: "cut=word: seconds of quiet that end a word, so that the next may begin (default 0.3)",
        set: |o, v| number(v, 0.02, 10.0).map(|n| o.hang_s = Some(n)),
    },
    Key {
        name: "on",
        sources: STREAMS,
        media: AUDIO,
        doc: "cut=word: dB above the background where a word begins (default 12)",
        set: |o, v| number(v, 1.0, 60.0).map(|n| o.on_db = Some(n)),
    },
    Key {
        name: "off",
        sources: STREAMS,
        media: AUDIO,
        doc: "cut=word: dB above the background under which it is quiet again, at most `on` (default 6)",
        set: |o, v| number(v, 0.5, 60.0).map(|n| o.off_db = Some(n)),
    },
    Key {
        name: "gate",
        sources: STREAMS,
        media: AUDIO,
        doc: "cut=word: level in dB relative to full scale under which nothing is a word (default -50)",
        set: |o, v| number(v, -120.0, 0.0).map(|n| o.gate_dbfs = Some(n)),
    },
    Key {
        name: "header",
        sources: &["exec", "pipe", "file"],
        media: &[Medium::Sensor],
        doc: "first (default): the first line names the columns and is put before each window; none: no line does",
        set: |o, v| match v {
            "first" | "none" => {
                o.header = Some(v == "first");
                Ok(())
            }
            _ => Err("is neither `first` nor `none`".into()),
        },
    },
    Key {
        name: "columns",
        sources: &["exec", "pipe", "file"],
        media: &[Medium::Sensor],
        doc: "names of the columns with `;` between them, for producers that do not give any; implies header=none",
        set: |o, v| {
            o.columns = Some(v.replace(';', ","));
            o.header = Some(false);
            Ok(())
        },
    },
    Key {
        name: "fps",
        sources: &["file"],
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        doc: "frames a second, dropped if nobody fetches them, as a camera's are; 0 (default): as fast as they are fetched",
        set: |o, v| number(v, 0.0, 1000.0).map(|n| o.fps = n),
    },
    Key {
        name: "repeat",
        sources: &["file"],
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        doc: "yes or no (default): begin again after the last file",
        set: |o, v| yes(v).map(|b| o.repeat = b),
    },
    Key {
        name: "all",
        sources: &["watch"],
        media: &[Medium::Image, Medium::Audio, Medium::Sensor],
        doc: "yes or no (default): also the files that are there at the beginning",
        set: |o, v| yes(v).map(|b| o.all = b),
    },
    Key {
        name: "edge",
        sources: &["gpio"],
        media: &[Medium::Trigger],
        doc: "falling (default, a button to ground), rising or both (falling is the press)",
        set: |o, v| {
            o.edge = Some(match v {
                "falling" => Edge::Falling,
                "rising" => Edge::Rising,
                "both" => Edge::Both,
                _ => return Err("is none of `falling`, `rising`, `both`".into()),
            });
            Ok(())
        },
    },
    Key {
        name: "bias",
        sources: &["gpio"],
        media: &[Medium::Trigger],
        doc: "up, down or off: pull resistor to ask for (default: as it is). Chips without one accept this silently: see the idle level",
        set: |o, v| {
            o.bias = Some(match v {
                "up" => Bias::Up,
                "down" => Bias::Down,
                "off" => Bias::Off,
                _ => return Err("is none of `up`, `down`, `off`".into()),
            });
            Ok(())
        },
    },
    Key {
        name: "debounce",
        sources: &["gpio"],
        media: &[Medium::Trigger],
        doc: "milliseconds a level must last (default 5)",
        set: |o, v| number(v, 0.0, 10_000.0).map(|n| o.debounce = Some(Duration::from_secs_f64(n / 1e3))),
    },
];

/// A parsed spec: `{KEY=VALUE,}NAME[:REST]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    text: String,
    name: &'static str,
    rest: String,
    given: Vec<&'static str>,
    options: Options,
}

impl Spec {
    /// Parses `text`. Keys are read up to the first word that is none; the rest is taken as it stands.
    ///
    /// # Errors
    /// [`CaptureError::Spec`] naming the word.
    pub fn parse(text: &str) -> Result<Spec, CaptureError> {
        let refuse = |reason: String| CaptureError::Spec { spec: text.to_owned(), reason };
        let mut options = Options::default();
        let mut given = vec![];
        let mut rest = text.trim_start();
        while let Some((key, value, after)) = key_value(rest) {
            let known = KEYS.iter().find(|k| k.name == key).ok_or_else(|| {
                let names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
                refuse(format!("there is no key `{key}`; the keys are {}", names.join(", ")))
            })?;
            (known.set)(&mut options, value).map_err(|why| refuse(format!("`{value}` of key `{key}` {why}")))?;
            given.push(known.name);
            rest = after;
        }
        let (name, rest) = rest.split_once(':').unwrap_or((rest, ""));
        let row = SOURCES.iter().find(|row| row.name == name.trim()).ok_or_else(|| {
            let names: Vec<_> = SOURCES
                .iter()
                .map(|row| format!("{}{}", row.name, if row.rest.is_empty() { "" } else { ":" }))
                .collect();
            refuse(format!("there is no source `{}`; the sources are {}", name.trim(), names.join(" ")))
        })?;
        match (row.rest.is_empty(), rest.trim().is_empty()) {
            (true, false) => return Err(refuse(format!("nothing follows `{}`", row.name))),
            (false, true) => return Err(refuse(format!("`{}:` wants {} after it", row.name, row.rest))),
            _ => {}
        }
        Ok(Spec { text: text.to_owned(), name: row.name, rest: rest.trim().to_owned(), given, options })
    }

    /// Refuses what a source of this kind cannot give, and keys that would be without effect.
    ///
    /// # Errors
    /// [`CaptureError::Medium`], [`CaptureError::Spec`].
    pub fn check(&self, medium: Medium) -> Result<(), CaptureError> {
        let row = self.row();
        if !row.media.contains(&medium) {
            let gives = row.media.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
            return Err(CaptureError::Medium { source_name: row.name, medium: medium.name(), gives });
        }
        for key in KEYS.iter().filter(|key| self.given.contains(&key.name)) {
            if !key.sources.contains(&row.name) || !key.media.contains(&medium) {
                let reason = format!("the key `{}` means nothing to `{}` as a source of {medium}", key.name, row.name);
                return Err(self.refuse(reason));
            }
        }
        Ok(())
    }

    /// The spec as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What follows the name.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// The values of the keys.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn row(&self) -> &'static SourceRow {
        SOURCES.iter().find(|row| row.name == self.name).expect("a spec is only made for a row of SOURCES")
    }

    pub(super) fn refuse(&self, reason: impl Into<String>) -> CaptureError {
        CaptureError::Spec { spec: self.text.clone(), reason: reason.into() }
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.options.max_bytes.unwrap_or(16 << 20)
    }

    pub(super) fn keep(&self, medium: Medium) -> usize {
        self.options.keep.unwrap_or(match medium {
            Medium::Image => 1,
            Medium::Audio | Medium::Sensor => 8,
            Medium::Trigger => 64,
        })
    }
}

/// `KEY=VALUE,AFTER`, if the text begins like that: a key is of lower case letters and `_`.
fn key_value(text: &str) -> Option<(&str, &str, &str)> {
    let (key, after) = text.split_once('=')?;
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
        return None;
    }
    let (value, after) = after.split_once(',')?;
    Some((key, value, after))
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| (least..=most).contains(v));
    value.ok_or_else(|| format!("is not a number from {least} to {most}"))
}

fn seconds(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    number(text, least, most).map(Duration::from_secs_f64)
}

fn yes(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("is neither `yes` nor `no`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_in_the_table_parses_and_is_accepted_for_each_medium_its_keys_are_for() {
        for row in SOURCES {
            let spec = Spec::parse(row.example).unwrap();
            assert!(row.media.iter().any(|&m| spec.check(m).is_ok()), "{}", row.example);
            assert_eq!(spec.row().name, row.name);
        }
    }

    #[test]
    fn every_key_belongs_to_a_source_that_gives_its_medium_and_is_in_the_help() {
        let help = super::super::help();
        for key in KEYS {
            assert!(help.contains(key.doc), "{}", key.name);
            for name in key.sources {
                let row = SOURCES.iter().find(|row| row.name == *name).expect("a source of that name");
                assert!(key.media.iter().any(|m| row.media.contains(m)), "{} of {}", key.name, name);
            }
        }
    }

    #[test]
    fn keys_end_where_the_source_begins_and_its_rest_stays_as_written() {
        let spec = Spec::parse("format=raw:gray:28x28,stall=2.5,exec:cam --size=28,28 -o -").unwrap();
        assert_eq!(spec.rest(), "cam --size=28,28 -o -");
        assert_eq!(spec.options().format.as_deref(), Some("raw:gray:28x28"));
        assert_eq!(spec.options().stall, Some(Duration::from_millis(2500)));
        let spec = Spec::parse("exec:env A=1,2 cam").unwrap();
        assert_eq!(spec.rest(), "env A=1,2 cam");
    }

    #[test]
    fn a_key_given_twice_counts_the_last_time_so_that_defaults_can_go_first() {
        let spec = Spec::parse("length=1,length=2,exec:arecord").unwrap();
        assert_eq!(spec.options().length, Some(2.0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name_and_as_usage() {
        use crate::{Class, Classified};
        for (text, part) in [
            ("", "sources are exec:"),
            ("webcam", "no source `webcam`"),
            ("exec:", "wants COMMAND"),
            ("exec", "wants COMMAND"),
            ("key:x", "nothing follows `key`"),
            ("colour=blue,exec:cam", "no key `colour`"),
            ("keep=0,exec:cam", "from 1 to 1024"),
            ("keep=NaN,exec:cam", "from 1 to 1024"),
            ("stall=soon,exec:cam", "`soon` of key `stall`"),
            ("restart=maybe,exec:cam", "neither `yes` nor `no`"),
        ] {
            let error = Spec::parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.class(), Class::Usage);
        }
    }

    #[test]
    fn a_key_without_effect_and_a_medium_the_source_has_not_are_refused() {
        let spec = Spec::parse("cut=word,exec:cam").unwrap();
        assert!(spec.check(Medium::Audio).is_ok());
        assert!(spec.check(Medium::Image).unwrap_err().to_string().contains("`cut` means nothing"));
        let error = Spec::parse("key").unwrap().check(Medium::Image).unwrap_err();
        assert!(error.to_string().contains("it gives trigger"), "{error}");
    }
}
