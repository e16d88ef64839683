//! From raw samples of one button to edges.
//!
//! A level counts once enough equal samples in a row have shown it, for pressing and for releasing alike. The edge is
//! dated to the **first** sample that differed, not to the moment of certainty. A button that is down at power-up is not
//! pressed: it counts only after it was once seen released.

/// What a sample revealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The first sample of what may become a press. Whatever a press is to be bound to is to be read now.
    Began,
    /// The button is pressed.
    Pressed {
        /// When the press began.
        at_ms: u32,
    },
    /// The button is released.
    Released {
        /// When the release began.
        at_ms: u32,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Level {
    /// Never seen released.
    #[default]
    Unarmed,
    Released,
    Pressed,
}

/// The debouncer of one button.
#[derive(Clone, Copy, Debug, Default)]
pub struct Debounce {
    level: Level,
    last: bool,
    /// Equal samples up to the latest.
    run: u8,
    /// First sample that differed from `level`, until the level has been quiet again.
    edge_ms: Option<u32>,
}

impl Debounce {
    /// The debouncer of a button not yet seen.
    pub const NEW: Self = Self { level: Level::Unarmed, last: false, run: 0, edge_ms: None };

    /// Takes one sample, `down` or not. Samples are to be 1 ms apart; `samples` equal ones in a row make a level.
    pub fn sample(&mut self, down: bool, now_ms: u32, samples: u8) -> Option<Edge> {
        self.run = if down == self.last { self.run.saturating_add(1) } else { 1 };
        self.last = down;
        let certain = self.run >= samples.max(1);
        match self.level {
            Level::Unarmed => {
                if !down && certain {
                    self.level = Level::Released;
                }
                None
            }
            Level::Released if down => {
                let began = self.edge_ms.is_none();
                let at_ms = *self.edge_ms.get_or_insert(now_ms);
                if certain {
                    self.level = Level::Pressed;
                    self.edge_ms = None;
                    return Some(Edge::Pressed { at_ms });
                }
                began.then_some(Edge::Began)
            }
            Level::Pressed if !down => {
                let at_ms = *self.edge_ms.get_or_insert(now_ms);
                if certain {
                    self.level = Level::Released;
                    self.edge_ms = None;
                    return Some(Edge::Released { at_ms });
                }
                None
            }
            Level::Released | Level::Pressed => {
                if certain {
                    self.edge_ms = None;
                }
                None
            }
        }
    }

    /// Whether the button counts as pressed.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.level == Level::Pressed
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Edges of a script in which each character is one sample: `_` up, `#` down.
    fn edges(script: &str) -> Vec<Edge> {
        let mut button = Debounce::default();
        script.bytes().enumerate().filter_map(|(ms, c)| button.sample(c == b'#', ms as u32, 8)).collect()
    }

    #[test]
    fn a_press_is_dated_to_its_first_edge_however_it_bounces() {
        let (armed, pressed, released) = ("________", "#_#_##_########", "#_#_________");
        let script = std::format!("{armed}{pressed}{released}");
        assert_eq!(
            edges(&script),
            [Edge::Began, Edge::Pressed { at_ms: 8 }, Edge::Released { at_ms: 24 }],
            "pressed at 8 ms, let go at 24 ms"
        );
    }

    #[test]
    fn a_button_held_at_power_up_is_not_a_press() {
        assert_eq!(edges(&"#".repeat(10_000)), []);
        let then_released = std::format!("{}________########", "#".repeat(100));
        assert_eq!(edges(&then_released), [Edge::Began, Edge::Pressed { at_ms: 108 }]);
    }

    #[test]
    fn a_glitch_is_forgotten_and_does_not_date_the_next_press() {
        let script = "________#______________________########";
        assert_eq!(edges(script), [Edge::Began, Edge::Began, Edge::Pressed { at_ms: 31 }]);
    }

    #[test]
    fn seven_samples_are_not_enough() {
        assert_eq!(edges("________#######_________"), [Edge::Began]);
    }
}
