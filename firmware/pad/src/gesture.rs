//! From edges of several buttons to what a person did: click, long, double, release after long, chord.
//!
//! Reported is *what was done*, at the earliest moment it is certain: a long press while it is still held, a click at its
//! release (or, with the double window on, once no second press can come). Chords and stuck buttons are told apart here,
//! because only here the buttons are seen together.

use crate::{MAX_BUTTONS, passed};
use hone_wire::message::{Config, Diagnostic, Kind};

/// A chord held this long is reported as [`Kind::ChordHeld`].
pub const CHORD_HELD_MS: u32 = 5_000;
/// A button down for this long is stuck: a [`Diagnostic`], and no longer feedback.
pub const STUCK_MS: u32 = 10_000;

/// What a press is bound to: read at its first edge, carried unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Prompt shown; 0 = none.
    pub prompt: u32,
    /// Whether the prompt had only just changed.
    pub ambiguous: bool,
}

/// Something a person did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gesture {
    /// What.
    pub kind: Kind,
    /// The button; of a chord, the lowest.
    pub button: u8,
    /// Mask of a chord's buttons, code of a diagnostic, else 0.
    pub value: u16,
    /// First edge of the press, of the first press of a double or of a chord.
    pub began_ms: u32,
    /// From there to its end, or to now where it has not ended.
    pub lasted_ms: u32,
    /// What was shown at `began_ms`.
    pub context: Context,
}

#[derive(Clone, Copy, Debug, Default)]
struct Press {
    began_ms: u32,
    context: Context,
}

// Numbered from 0 so that idle buttons are zeros; see `Pad::idle`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default)]
enum Button {
    #[default]
    Up,
    /// Clicked once; a second press may still make it a double.
    Clicked { press: Press, released_ms: u32 },
    /// Down, not yet long. `after` is the click that this press would double.
    Down { press: Press, after: Option<(Press, u32)> },
    /// Down and reported as long.
    Long { press: Press },
    /// Down for too long; its release says nothing.
    Stuck,
    /// Down as part of the chord.
    InChord,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chord {
    press: Press,
    /// Since when all its buttons are down.
    whole_ms: u32,
    /// Its buttons; 0 = there is no chord.
    mask: u16,
    /// One of its buttons was lifted: it is held no more.
    loosened: bool,
    held: bool,
    /// A key is being offered: what this hold means is open until it ends.
    offered: bool,
    /// The hold was told as an event, or was the consent to a key: it is nothing else any more.
    spent: bool,
}

/// The gestures of all buttons of a pad.
#[derive(Clone, Debug, Default)]
pub struct Gestures {
    buttons: [Button; MAX_BUTTONS],
    chord: Chord,
}

impl Context {
    /// Nothing is shown.
    pub const NONE: Self = Self { prompt: 0, ambiguous: false };
}

impl Chord {
    const NONE: Self = Self {
        press: Press { began_ms: 0, context: Context::NONE },
        whole_ms: 0,
        mask: 0,
        loosened: false,
        held: false,
        offered: false,
        spent: false,
    };

    fn gesture(&self, kind: Kind, at_ms: u32) -> Gesture {
        let lasted_ms = at_ms.wrapping_sub(self.press.began_ms);
        let button = self.mask.trailing_zeros() as usize;
        Gesture { value: self.mask, ..self.press.gesture(kind, button, lasted_ms) }
    }

    /// Says what it was, unless it was said.
    fn end(self, at_ms: u32, emit: &mut dyn FnMut(Gesture)) {
        if self.mask != 0 && !self.spent {
            emit(self.gesture(if self.held { Kind::ChordHeld } else { Kind::Chord }, at_ms));
        }
    }
}

impl Gestures {
    /// All buttons up.
    pub const NEW: Self = Self { buttons: [Button::Up; MAX_BUTTONS], chord: Chord::NONE };

    /// A button below [`MAX_BUTTONS`] was pressed at `at_ms`, with what was shown then.
    pub fn pressed(
        &mut self,
        button: usize,
        at_ms: u32,
        context: Context,
        config: &Config,
        emit: &mut dyn FnMut(Gesture),
    ) {
        let press = Press { began_ms: at_ms, context };
        let after = match self.buttons[button] {
            Button::Clicked { press, released_ms } => {
                let in_time = at_ms.wrapping_sub(released_ms) <= u32::from(config.double_ms);
                if !in_time {
                    emit(press.click(button, released_ms));
                }
                in_time.then_some((press, released_ms))
            }
            _ => None,
        };
        self.buttons[button] = Button::Down { press, after };
        self.join_chord(button, press, config, emit);
    }

    /// The button was released at `at_ms`.
    pub fn released(&mut self, button: usize, at_ms: u32, config: &Config, emit: &mut dyn FnMut(Gesture)) {
        match core::mem::take(&mut self.buttons[button]) {
            Button::Down { press, after } => {
                let lasted_ms = at_ms.wrapping_sub(press.began_ms);
                if lasted_ms >= u32::from(config.long_ms) {
                    // Samples came late; the order of reports stays the same.
                    self.become_long(button, press, after, config, emit);
                    self.buttons[button] = Button::Up;
                    emit(press.gesture(Kind::LongRelease, button, lasted_ms));
                } else if let Some((first, _)) = after {
                    emit(first.gesture(Kind::Double, button, at_ms.wrapping_sub(first.began_ms)));
                } else if config.double_ms > 0 {
                    self.buttons[button] = Button::Clicked { press, released_ms: at_ms };
                } else {
                    emit(press.click(button, at_ms));
                }
            }
            Button::Long { press } => {
                emit(press.gesture(Kind::LongRelease, button, at_ms.wrapping_sub(press.began_ms)));
            }
            Button::InChord => {
                self.chord.loosened = true;
                self.leave_chord(at_ms, emit);
            }
            Button::Up | Button::Clicked { .. } | Button::Stuck => {}
        }
    }

    /// Reports what has become certain by the passing of time alone.
    pub fn tick(&mut self, now_ms: u32, config: &Config, emit: &mut dyn FnMut(Gesture)) {
        for button in 0..MAX_BUTTONS {
            match self.buttons[button] {
                Button::Clicked { press, released_ms } => {
                    // A second press that began in time is certain only once it is debounced.
                    let window_ms = u32::from(config.double_ms) + 2 * u32::from(config.debounce_ms);
                    if passed(released_ms, now_ms, window_ms) {
                        self.buttons[button] = Button::Up;
                        emit(press.click(button, released_ms));
                    }
                }
                Button::Down { press, after } => {
                    if passed(press.began_ms, now_ms, u32::from(config.long_ms)) {
                        self.become_long(button, press, after, config, emit);
                    }
                }
                Button::Long { press } => {
                    if passed(press.began_ms, now_ms, STUCK_MS) {
                        self.buttons[button] = Button::Stuck;
                        emit(press.stuck(button, now_ms));
                    }
                }
                Button::Up | Button::Stuck | Button::InChord => {}
            }
        }
        if self.chord.mask != 0 {
            self.hold_chord(now_ms, emit);
        }
    }

    /// Says that a host offers a key. Returns whether a person at the pad consents: by a chord held whole for
    /// [`CHORD_HELD_MS`], and still, whose hold was not yet told as an event.
    ///
    /// A hold during which a key is offered is told only when it ends, and not at all where it was the consent; see
    /// [`Gestures::consented`].
    pub fn offered(&mut self) -> bool {
        let chord = &mut self.chord;
        chord.offered = chord.mask != 0;
        chord.held && !chord.loosened && !chord.spent
    }

    /// The chord that is held was the consent to a key, and hence is no event.
    pub fn consented(&mut self) {
        self.chord.spent = true;
    }

    fn hold_chord(&mut self, now_ms: u32, emit: &mut dyn FnMut(Gesture)) {
        let chord = &mut self.chord;
        if !chord.held && !chord.loosened && passed(chord.whole_ms, now_ms, CHORD_HELD_MS) {
            chord.held = true;
            if !chord.offered {
                chord.spent = true;
                emit(chord.gesture(Kind::ChordHeld, now_ms));
            }
        }
        if passed(chord.press.began_ms, now_ms, STUCK_MS) {
            // Whichever of its buttons are stuck, the others must not join them for ever.
            let chord = core::mem::take(chord);
            for button in self.buttons.iter_mut().filter(|button| matches!(button, Button::InChord)) {
                *button = Button::Stuck;
            }
            if chord.held {
                chord.end(now_ms, emit);
            }
            emit(chord.press.stuck(chord.mask.trailing_zeros() as usize, now_ms));
        }
    }

    fn become_long(
        &mut self,
        button: usize,
        press: Press,
        after: Option<(Press, u32)>,
        config: &Config,
        emit: &mut dyn FnMut(Gesture),
    ) {
        if let Some((first, released_ms)) = after {
            emit(first.click(button, released_ms));
        }
        self.buttons[button] = Button::Long { press };
        emit(press.gesture(Kind::Long, button, u32::from(config.long_ms)));
    }

    /// Takes a button just pressed into the chord, or makes one with whichever others were pressed just before.
    fn join_chord(&mut self, button: usize, press: Press, config: &Config, emit: &mut dyn FnMut(Gesture)) {
        if config.chord_ms == 0 {
            return;
        }
        let window_ms = u32::from(config.chord_ms);
        let mut mask = 0u16;
        let mut earliest = press;
        for (other, state) in self.buttons.iter().enumerate() {
            if let Button::Down { press: theirs, .. } = state {
                let apart_ms = press.began_ms.wrapping_sub(theirs.began_ms) as i32;
                if apart_ms.unsigned_abs() <= window_ms {
                    mask |= 1 << other;
                    if (theirs.began_ms.wrapping_sub(earliest.began_ms) as i32) < 0 {
                        earliest = *theirs;
                    }
                }
            }
        }
        if mask.count_ones() < 2 && self.chord.mask == 0 {
            return;
        }
        mask |= 1 << button;
        for other in 0..MAX_BUTTONS {
            if mask & 1 << other == 0 {
                continue;
            }
            if let Button::Down { after: Some((first, released_ms)), .. } = self.buttons[other] {
                emit(first.click(other, released_ms));
            }
            self.buttons[other] = Button::InChord;
        }
        if self.chord.mask == 0 {
            self.chord.press = earliest;
        }
        self.chord.whole_ms = press.began_ms;
        self.chord.mask |= mask;
    }

    /// A chord ends when its last button is released.
    fn leave_chord(&mut self, at_ms: u32, emit: &mut dyn FnMut(Gesture)) {
        if self.buttons.iter().any(|state| matches!(state, Button::InChord)) {
            return;
        }
        core::mem::take(&mut self.chord).end(at_ms, emit);
    }
}

impl Press {
    fn gesture(&self, kind: Kind, button: usize, lasted_ms: u32) -> Gesture {
        Gesture { kind, button: button as u8, value: 0, began_ms: self.began_ms, lasted_ms, context: self.context }
    }

    fn click(&self, button: usize, released_ms: u32) -> Gesture {
        self.gesture(Kind::Click, button, released_ms.wrapping_sub(self.began_ms))
    }

    fn stuck(&self, button: usize, now_ms: u32) -> Gesture {
        let lasted_ms = now_ms.wrapping_sub(self.began_ms);
        Gesture { value: Diagnostic::StuckButton as u16, ..self.gesture(Kind::Diagnostic, button, lasted_ms) }
    }
}
