//! What a button means. The pad says what was done; here it becomes something said about an answer.
use hone_wire::message::{Diagnostic, Event, Kind};

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

/// Which button stands for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    roles: Vec<Role>,
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
    /// last, which is 👎.
    pub fn for_buttons(buttons: usize) -> Layout {
        let roles = match buttons {
            0 | 1 => vec![Role::Down],
            2 => vec![Role::Up, Role::Down],
            n => (0..n as u32 - 1).map(Role::Class).chain([Role::Down]).collect(),
        };
        Layout { roles }
    }

    /// A layout of one's own.
    pub fn new(roles: Vec<Role>) -> Layout {
        Layout { roles }
    }

    /// The button that stands for `role`.
    pub fn button(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|&r| r == role)
    }

    /// What an event means: a click says it, a long press says it with emphasis, a double click or a chord takes back,
    /// a chord held for five seconds rolls back.
    pub fn meaning(&self, event: &Event) -> Meaning {
        let said = |kind, confirmed| Meaning::Said { kind, confirmed };
        let nothing = |name, detail: String| Meaning::Nothing { name, detail };
        match event.kind {
            Kind::Click | Kind::Long => {
                let confirmed = event.kind == Kind::Long;
                match self.roles.get(usize::from(event.button())) {
                    Some(Role::Up) => said(PressKind::Thumb { up: true }, confirmed),
                    Some(Role::Down) => said(PressKind::Thumb { up: false }, confirmed),
                    Some(Role::Class(class)) => said(PressKind::Correction { class: *class }, confirmed),
                    None => nothing("button", format!("button {} has no meaning", event.button())),
                }
            }
            Kind::Double | Kind::Chord | Kind::Undo => Meaning::Undo,
            Kind::ChordHeld => Meaning::Rollback,
            Kind::Class => said(PressKind::Correction { class: u32::from(event.value) }, false),
            Kind::Rating => {
                let (max, rating) = (f64::from(event.value >> 8), f64::from(event.value & 0xff));
                if max < 1.0 || rating > max {
                    return nothing("rating", format!("{rating} of {max}"));
                }
                said(PressKind::Stars { stars: 1 + (4.0 * rating / max).round() as u8 }, false)
            }
            Kind::LongRelease => nothing("long-release", format!("button {}", event.button())),
            Kind::Rotary => nothing("rotary", format!("{} detents", event.value as i16)),
            Kind::Badge => nothing("badge", format!("badge {}", event.value)),
            Kind::Dropped => nothing("dropped", format!("{} presses did not fit into the pad's queue", event.value)),
            Kind::Diagnostic => nothing(
                "diagnostic",
                format!("code {}, button {}, prompt {}", event.value, event.button(), event.prompt),
            ),
            Kind::Other(code) => nothing("unknown", format!("kind {code}, value {}", event.value)),
        }
    }

    /// The journal's form of a pad's event.
    pub fn pad_press(&self, uid: &str, event: &Event, age_ms: Option<u32>) -> PadPress {
        let age = age_ms.map_or(Age::Unknown, |ms| Age::Exact { ms: u64::from(ms) });
        let prediction_id = (event.prompt != 0).then_some(event.prompt);
        let press = |prediction_id, said, confirmed| {
            PadEvent::Press(Press {
                confirmed,
                ambiguous: event.is_ambiguous(),
                age,
                ..Press::new(prediction_id, said, Source::Pad(uid.to_string()))
            })
        };
        let is_gap = event.kind == Kind::Diagnostic && event.value == Diagnostic::Gap as u16;
        let event_of = match self.meaning(event) {
            _ if is_gap => PadEvent::Gap { missing: event.prompt },
            Meaning::Said { kind, confirmed } => press(prediction_id, kind, confirmed),
            Meaning::Undo => press(None, PressKind::Undo { press_id: None }, false),
            Meaning::Rollback => PadEvent::Other { name: "rollback".into(), detail: "chord held".into() },
            Meaning::Nothing { name, detail } => PadEvent::Other { name: name.into(), detail },
        };
        PadPress { seq: event.seq, event: event_of }
    }
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
        let PadEvent::Press(p) = l.pad_press("00", &event(Kind::Click, 0, 0), Some(40)).event else {
            panic!("a press")
        };
        assert_eq!((p.prediction_id, p.age), (Some(7), Age::Exact { ms: 40 }));
        let PadEvent::Press(p) = l.pad_press("00", &event(Kind::Chord, 0, 3), None).event else { panic!("a press") };
        assert_eq!((p.prediction_id, p.age), (None, Age::Unknown));
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
