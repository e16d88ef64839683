//! What a button means. The pad says what was done; here it becomes something said about an answer.
use std::collections::BTreeMap;
use std::fmt;

use hone_wire::message::{Diagnostic, Event, Kind};

use super::words::{Phrase, Said};
use crate::journal::{Age, PadEvent, PadPress, Press, PressKind, Source};

/// What one button stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// 👍.
    Up,
    /// 👎.
    Down,
    /// "It is this class."
    Class(u32),
}

/// What a hand does, as far as it can be given a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// A short press of a button.
    Click(u8),
    /// A long one.
    Long(u8),
    /// Two in quick succession.
    Double(u8),
    /// Several buttons together.
    Chord,
    /// Several buttons together for five seconds.
    ChordHeld,
    /// A knob turned to the left, by however much.
    Left(u8),
    /// A knob turned to the right, by however much.
    Right(u8),
}

impl Act {
    /// `3.click`, `3.long`, `3.double`, `chord`, `chord-held`, and of knobs `0.left`, `0.right`.
    pub fn parse(text: &str) -> Option<Act> {
        match text.split_once('.') {
            None if text == "chord" => Some(Act::Chord),
            None if text == "chord-held" => Some(Act::ChordHeld),
            None => None,
            Some((button, gesture)) => {
                let button = button.parse().ok().filter(|b| usize::from(*b) < hone_pad::MAX_BUTTONS)?;
                match gesture {
                    "click" => Some(Act::Click(button)),
                    "long" => Some(Act::Long(button)),
                    "double" => Some(Act::Double(button)),
                    "left" => Some(Act::Left(button)),
                    "right" => Some(Act::Right(button)),
                    _ => None,
                }
            }
        }
    }

    /// What the event reports, if it is one.
    pub fn of(event: &Event) -> Option<Act> {
        match event.kind {
            Kind::Click => Some(Act::Click(event.button())),
            Kind::Long => Some(Act::Long(event.button())),
            Kind::Double => Some(Act::Double(event.button())),
            Kind::Chord => Some(Act::Chord),
            Kind::ChordHeld => Some(Act::ChordHeld),
            Kind::Rotary if (event.value as i16) < 0 => Some(Act::Left(event.button())),
            Kind::Rotary => Some(Act::Right(event.button())),
            _ => None,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Click(button) => write!(f, "{button}.click"),
            Act::Long(button) => write!(f, "{button}.long"),
            Act::Double(button) => write!(f, "{button}.double"),
            Act::Chord => f.write_str("chord"),
            Act::ChordHeld => f.write_str("chord-held"),
            Act::Left(knob) => write!(f, "{knob}.left"),
            Act::Right(knob) => write!(f, "{knob}.right"),
        }
    }
}

/// Meanings somebody gave, each with where that stands.
pub type Mapping = BTreeMap<Act, Given>;

/// A meaning somebody gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What is said.
    pub phrase: Phrase,
    /// Where it stands, `hone.toml:12`.
    pub origin: String,
}

/// What each act means on one pad, in one pair of hands.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    meanings: BTreeMap<Act, Meaning>,
}

/// What an event comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// Something said about the answer that was shown when the press began.
    Said {
        /// What.
        kind: PressKind,
        /// With emphasis.
        confirmed: bool,
    },
    /// Take back the newest press of this pad.
    Undo,
    /// Go back to the adapter before.
    Rollback,
    /// Recorded, and nothing more.
    Nothing {
        /// A short name.
        name: &'static str,
        /// For readers.
        detail: String,
    },
}

impl Layout {
    /// The default for a pad with that many buttons: one is 👎; two are 👍 and 👎; with more, each is a class but the
    /// last, which is 👎. A long press says it with emphasis, a double click and a chord take back, a chord held for
    /// five seconds rolls back.
    pub fn for_buttons(buttons: usize) -> Layout {
        let roles = match buttons {
            0 | 1 => vec![Role::Down],
            2 => vec![Role::Up, Role::Down],
            n => (0..n as u32 - 1).map(Role::Class).chain([Role::Down]).collect(),
        };
        Layout::new(&roles)
    }

    /// The default where a model's task has remarks, which `classes` name: one button is 👎; two are the remarks, if
    /// there are two, else 👍 and 👎; with more, each is a remark but the last, which is 👍. Gestures as with
    /// [`Layout::for_buttons`].
    pub fn for_remarks(buttons: usize, remarks: std::ops::Range<usize>) -> Layout {
        let of = |n: usize| remarks.clone().take(n).map(|class| Role::Class(class as u32));
        let roles: Vec<Role> = match buttons {
            2 if remarks.len() == 2 => of(2).collect(),
            0..=2 => return Layout::for_buttons(buttons),
            n => of(n - 1).chain([Role::Up]).collect(),
        };
        Layout::new(&roles)
    }

    /// Buttons that stand for these roles, with the gestures of [`Layout::for_buttons`].
    pub fn new(roles: &[Role]) -> Layout {
        let mut meanings = BTreeMap::from([(Act::Chord, Meaning::Undo), (Act::ChordHeld, Meaning::Rollback)]);
        for (button, role) in (0..).zip(roles) {
            let said = |confirmed| Meaning::Said { kind: role.says(), confirmed };
            meanings.insert(Act::Click(button), said(false));
            meanings.insert(Act::Long(button), said(true));
            meanings.insert(Act::Double(button), Meaning::Undo);
        }
        Layout { meanings }
    }

    /// Puts given meanings over these. `labels` are the model's.
    ///
    /// # Errors
    /// A meaning that no button can have, or a label or class the model does not have, with its origin.
    pub fn overlay(&mut self, mapping: &Mapping, labels: &[String]) -> Result<(), String> {
        for (act, Given { phrase, origin }) in mapping {
            let meaning = Meaning::of(phrase, labels).map_err(|why| format!("{origin}: {act}: {why}"))?;
            self.meanings.insert(*act, meaning);
        }
        Ok(())
    }

    /// The button a click of which stands for `role`.
    pub fn button(&self, role: Role) -> Option<usize> {
        self.meanings.iter().find_map(|(act, meaning)| match (act, meaning) {
            (Act::Click(button), Meaning::Said { kind, .. }) if *kind == role.says() => Some(usize::from(*button)),
            _ => None,
        })
    }

    /// What each act means, in order.
    pub fn meanings(&self) -> impl Iterator<Item = (Act, &Meaning)> {
        self.meanings.iter().map(|(act, meaning)| (*act, meaning))
    }

    /// What an event means.
    pub fn meaning(&self, event: &Event) -> Meaning {
        let said = |kind, confirmed| Meaning::Said { kind, confirmed };
        let nothing = |name, detail: String| Meaning::Nothing { name, detail };
        let act = Act::of(event);
        if let Some(meaning) = act.and_then(|act| self.meanings.get(&act)) {
            return meaning.clone();
        }
        match event.kind {
            Kind::Undo => Meaning::Undo,
            Kind::Class => said(PressKind::Correction { class: u32::from(event.value) }, false),
            Kind::Rating => {
                let (max, rating) = (f64::from(event.value >> 8), f64::from(event.value & 0xff));
                if max < 1.0 || rating > max {
                    return nothing("rating", format!("{rating} of {max}"));
                }
                said(PressKind::Stars { stars: 1 + (4.0 * rating / max).round() as u8 }, false)
            }
            Kind::Click | Kind::Long | Kind::Double | Kind::Chord | Kind::ChordHeld => {
                nothing("button", act.map_or_else(String::new, |act| format!("{act} has no meaning")))
            }
            Kind::LongRelease => nothing("long-release", format!("button {}", event.button())),
            Kind::Rotary => nothing("rotary", format!("{} detents", event.value as i16)),
            Kind::Badge => nothing("badge", format!("badge {}", event.value)),
            Kind::Dropped => nothing("dropped", format!("{} presses did not fit into the pad's queue", event.value)),
            Kind::Diagnostic if event.value == Diagnostic::StuckButton as u16 => {
                nothing("stuck", format!("button {} has been down for more than 10 s", event.button()))
            }
            Kind::Diagnostic if event.value == Diagnostic::Panic as u16 => nothing(
                "panic",
                format!(
                    "the pad's firmware restarted after a panic in line {} of the file whose path hashes to {:08x}",
                    event.dur_10ms, event.prompt
                ),
            ),
            Kind::Diagnostic => nothing(
                "diagnostic",
                format!("code {}, button {}, prompt {}", event.value, event.button(), event.prompt),
            ),
            Kind::Other(code) => nothing("unknown", format!("kind {code}, value {}", event.value)),
        }
    }
}

impl Role {
    fn says(self) -> PressKind {
        match self {
            Role::Up => PressKind::Thumb { up: true },
            Role::Down => PressKind::Thumb { up: false },
            Role::Class(class) => PressKind::Correction { class },
        }
    }
}

impl Meaning {
    /// What a phrase means on a button.
    ///
    /// # Errors
    /// A label or class that is none of `labels`; what only makes sense typed in.
    pub fn of(phrase: &Phrase, labels: &[String]) -> Result<Meaning, String> {
        let said = |kind| Ok(Meaning::Said { kind, confirmed: phrase.confirmed });
        let class = |label: &String| match labels.iter().position(|l| l == label) {
            Some(class) => Ok(class as u32),
            None => Err(format!("`{label}` is no label; the labels are {}", labels.join(", "))),
        };
        match &phrase.said {
            Said::Up => said(PressKind::Thumb { up: true }),
            Said::Down => said(PressKind::Thumb { up: false }),
            Said::Unsure => said(PressKind::NotSure),
            Said::Stars(stars) => said(PressKind::Stars { stars: *stars }),
            Said::Correct(label) => said(PressKind::Correction { class: class(label)? }),
            Said::RatherThan(label) => said(PressKind::Preference { over: class(label)? }),
            Said::Class(class) if (*class as usize) < labels.len() => said(PressKind::Correction { class: *class }),
            Said::Class(class) => {
                Err(format!("there is no class {class}; the classes are 0 to {}", labels.len().saturating_sub(1)))
            }
            Said::Undo => Ok(Meaning::Undo),
            Said::Rollback => Ok(Meaning::Rollback),
            Said::Nothing => Ok(Meaning::Nothing { name: "button", detail: "it was given no meaning".into() }),
            said @ (Said::ThisIs(_) | Said::Add(_) | Said::Show | Said::Quit) => {
                Err(said.only_typed().unwrap_or_default().into())
            }
        }
    }

    /// For people. `labels` are the model's.
    pub fn in_words(&self, labels: &[String]) -> String {
        match self {
            Meaning::Said { kind, confirmed } => {
                let emphasis = if *confirmed { ", with emphasis" } else { "" };
                let name = |class: u32| labels.get(class as usize).map_or("of no class", String::as_str);
                let said = match kind {
                    PressKind::Thumb { up: true } => "up".into(),
                    PressKind::Thumb { up: false } => "down".into(),
                    PressKind::Correction { class } => format!("it is {}", name(*class)),
                    PressKind::Preference { over } => format!("rather than {}", name(*over)),
                    PressKind::Stars { stars } => format!("{stars} stars"),
                    _ => "unsure".into(),
                };
                said + emphasis
            }
            Meaning::Undo => "undo".into(),
            Meaning::Rollback => "rollback".into(),
            Meaning::Nothing { .. } => "nothing".into(),
        }
    }

    /// The journal's form of `event` under this meaning. `suspect` presses are stored and never train; what is over the
    /// limit takes nothing back either.
    pub fn pad_press(self, uid: &str, event: &Event, age_ms: Option<u32>, judged: Judged) -> PadPress {
        let age = age_ms.map_or(Age::Unknown, |ms| Age::Exact { ms: u64::from(ms) });
        let prediction_id = (event.prompt != 0).then_some(event.prompt);
        let press = |prediction_id, said, confirmed| {
            PadEvent::Press(Press {
                confirmed,
                ambiguous: event.is_ambiguous(),
                suspect: judged != Judged::Trusted,
                age,
                ..Press::new(prediction_id, said, Source::Pad(uid.to_string()))
            })
        };
        let over = |what: &str| PadEvent::Other { name: "over-limit".into(), detail: what.into() };
        let is_gap = event.kind == Kind::Diagnostic && event.value == Diagnostic::Gap as u16;
        let event_of = match self {
            _ if is_gap => PadEvent::Gap { missing: event.prompt },
            Meaning::Said { kind, confirmed } => press(prediction_id, kind, confirmed),
            Meaning::Undo if judged == Judged::Trusted => press(None, PressKind::Undo { press_id: None }, false),
            Meaning::Undo => over("undo"),
            Meaning::Rollback if judged == Judged::Trusted => {
                PadEvent::Other { name: "rollback".into(), detail: "chord held".into() }
            }
            Meaning::Rollback => over("rollback"),
            Meaning::Nothing { name, detail } => PadEvent::Other { name: name.into(), detail },
        };
        PadPress { seq: event.seq, event: event_of }
    }
}

/// What is thought of a press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Nothing against it.
    Trusted,
    /// Over the limit, or by somebody whose presses are not to train.
    Suspect,
}

/// A pad's identity as the journal spells it: lowercase hexadecimal.
pub fn uid_text(uid: &[u8; 8]) -> String {
    uid.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, src: u8, value: u16) -> Event {
        Event { seq: 1, kind, src, value, prompt: 7, ..Event::default() }
    }

    #[test]
    fn one_button_says_down_and_a_long_press_says_it_with_emphasis() {
        let l = Layout::for_buttons(1);
        let down = PressKind::Thumb { up: false };
        assert_eq!(l.meaning(&event(Kind::Click, 0, 0)), Meaning::Said { kind: down.clone(), confirmed: false });
        assert_eq!(l.meaning(&event(Kind::Long, 0, 0)), Meaning::Said { kind: down, confirmed: true });
        assert_eq!(l.meaning(&event(Kind::Double, 0, 0)), Meaning::Undo);
    }

    #[test]
    fn two_buttons_are_thumbs_and_a_chord_takes_back_or_rolls_back() {
        let l = Layout::for_buttons(2);
        assert!(matches!(
            l.meaning(&event(Kind::Click, 0, 0)),
            Meaning::Said { kind: PressKind::Thumb { up: true }, .. }
        ));
        assert_eq!(l.meaning(&event(Kind::Chord, 0, 3)), Meaning::Undo);
        assert_eq!(l.meaning(&event(Kind::ChordHeld, 0, 3)), Meaning::Rollback);
    }

    #[test]
    fn more_buttons_are_classes_but_the_last() {
        let l = Layout::for_buttons(11);
        let class = |c| Meaning::Said { kind: PressKind::Correction { class: c }, confirmed: false };
        assert_eq!(l.meaning(&event(Kind::Click, 3, 0)), class(3));
        assert!(matches!(
            l.meaning(&event(Kind::Click, 10, 0)),
            Meaning::Said { kind: PressKind::Thumb { up: false }, .. }
        ));
    }

    #[test]
    fn a_press_carries_the_prompt_it_began_under_and_an_undo_none() {
        let l = Layout::for_buttons(2);
        let pressed = |kind, age_ms| {
            let event = event(kind, 0, 3);
            let press = l.meaning(&event).pad_press("00", &event, age_ms, Judged::Trusted);
            let PadEvent::Press(p) = press.event else { panic!("a press") };
            (p.prediction_id, p.age)
        };
        assert_eq!(pressed(Kind::Click, Some(40)), (Some(7), Age::Exact { ms: 40 }));
        assert_eq!(pressed(Kind::Chord, None), (None, Age::Unknown));
    }

    #[test]
    fn what_is_suspect_is_stored_and_takes_nothing_back() {
        let l = Layout::for_buttons(2);
        let judge = |kind| {
            let event = event(kind, 0, 3);
            l.meaning(&event).pad_press("00", &event, None, Judged::Suspect).event
        };
        assert!(matches!(judge(Kind::Click), PadEvent::Press(Press { suspect: true, .. })));
        for kind in [Kind::Chord, Kind::ChordHeld, Kind::Double] {
            assert!(matches!(judge(kind), PadEvent::Other { name, .. } if name == "over-limit"), "{kind:?}");
        }
    }

    #[test]
    fn a_given_meaning_replaces_that_of_its_act_alone_and_must_fit_the_model() {
        let labels = ["cat".to_string(), "dog".to_string()];
        let given = |act: &str, words: &str| {
            let phrase = crate::feedback::words::parse(words).unwrap().unwrap();
            Mapping::from([(Act::parse(act).unwrap(), Given { phrase, origin: "hone.toml:3".into() })])
        };
        let mut l = Layout::for_buttons(2);
        l.overlay(&given("0.long", "!correct dog"), &labels).unwrap();
        let dog = Meaning::Said { kind: PressKind::Correction { class: 1 }, confirmed: true };
        assert_eq!(l.meaning(&event(Kind::Long, 0, 0)), dog);
        let up = Meaning::Said { kind: PressKind::Thumb { up: true }, confirmed: false };
        assert_eq!(l.meaning(&event(Kind::Click, 0, 0)), up);
        l.overlay(&given("chord", "nothing"), &labels).unwrap();
        assert!(matches!(l.meaning(&event(Kind::Chord, 0, 3)), Meaning::Nothing { .. }));
        for words in ["correct cow", "class 2", "show"] {
            let why = l.overlay(&given("1.double", words), &labels).unwrap_err();
            assert!(why.starts_with("hone.toml:3: 1.double: "), "{why}");
        }
        for act in ["16.click", "0.triple", "0", "chords", "x.click"] {
            assert_eq!(Act::parse(act), None, "{act}");
        }
    }

    #[test]
    fn a_rating_that_makes_no_sense_is_recorded_and_says_nothing() {
        let l = Layout::for_buttons(2);
        assert!(matches!(l.meaning(&event(Kind::Rating, 0, 0)), Meaning::Nothing { .. }));
        assert!(matches!(l.meaning(&event(Kind::Rating, 0, 0x0509)), Meaning::Nothing { .. }));
        let five = Meaning::Said { kind: PressKind::Stars { stars: 5 }, confirmed: false };
        assert_eq!(l.meaning(&event(Kind::Rating, 0, 0x0a0a)), five);
    }
}
