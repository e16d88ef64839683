//! From the two contacts of a rotary encoder to how far it was turned.
//!
//! Contacts that bounce count forth and back and so not at all. A detent is counted when both contacts are open again,
//! which is where encoders of the usual kind (one cycle a detent) rest, so a sample missed within one costs nothing.
//! Detents are merged until the knob has been still for a while: one turn of the hand is one event.

use crate::gesture::Context;
use crate::passed;

/// A turn has ended when the knob has been still for so long.
pub const STILL_MS: u32 = 200;
/// A turn that goes on is reported all the same after so long.
pub const LONGEST_MS: u32 = 1_000;

/// Steps by the contacts before and after: bit 0 the first contact, bit 1 the second, set when closed.
const STEPS: [[i8; 4]; 4] = [[0, 1, -1, 0], [-1, 0, 0, 1], [1, 0, 0, -1], [0, -1, 1, 0]];

/// What a hand did to a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Detents; positive when the first contact closes before the second. Never 0.
    pub detents: i16,
    /// When the first of them was passed.
    pub began_ms: u32,
    /// From there to the last.
    pub lasted_ms: u32,
    /// What was shown then.
    pub context: Context,
}

/// One encoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knob {
    contacts: u8,
    /// Since both contacts were open.
    steps: i8,
    detents: i16,
    /// Whether `began_ms` and what follows mean anything.
    turning: bool,
    began_ms: u32,
    last_ms: u32,
    context: Context,
}

impl Knob {
    /// At rest.
    pub const NEW: Self =
        Self { contacts: 0, steps: 0, detents: 0, turning: false, began_ms: 0, last_ms: 0, context: Context::NONE };

    /// Takes a sample of the contacts: bit 0 the first, bit 1 the second, set when closed. `context` is what is shown now.
    pub fn sample(&mut self, contacts: u8, now_ms: u32, context: Context) -> Option<Turn> {
        let contacts = contacts & 0b11;
        let step = STEPS[usize::from(self.contacts)][usize::from(contacts)];
        self.steps = self.steps.saturating_add(step);
        self.contacts = contacts;
        if contacts == 0 {
            // Of four steps one may have been missed; two are as much forth as back.
            let detent = i16::from(self.steps > 2) - i16::from(self.steps < -2);
            self.steps = 0;
            if detent != 0 {
                self.pass(detent, now_ms, context);
            }
        }
        let over = passed(self.last_ms, now_ms, STILL_MS) || passed(self.began_ms, now_ms, LONGEST_MS);
        if !self.turning || !over {
            return None;
        }
        self.turning = false;
        let lasted_ms = self.last_ms.wrapping_sub(self.began_ms);
        let turn = Turn { detents: self.detents, began_ms: self.began_ms, lasted_ms, context: self.context };
        // Forth and back again is nothing.
        (turn.detents != 0).then_some(turn)
    }

    fn pass(&mut self, detent: i16, now_ms: u32, context: Context) {
        if !self.turning {
            *self = Self { detents: 0, turning: true, began_ms: now_ms, context, ..*self };
        }
        self.detents = self.detents.saturating_add(detent);
        self.last_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    const FORTH: [u8; 4] = [0b01, 0b11, 0b10, 0b00];
    const BACK: [u8; 4] = [0b10, 0b11, 0b01, 0b00];

    /// Turns of samples 1 ms apart, followed by a rest.
    fn turns(samples: &[u8]) -> Vec<(i16, u32, u32)> {
        let mut knob = Knob::default();
        let rest = [0; 2 * STILL_MS as usize];
        let samples = samples.iter().chain(&rest).enumerate();
        let turns = samples.filter_map(|(ms, contacts)| knob.sample(*contacts, ms as u32, Context::NONE));
        turns.map(|turn| (turn.detents, turn.began_ms, turn.lasted_ms)).collect()
    }

    #[test]
    fn a_turn_is_one_event_of_all_its_detents() {
        assert_eq!(turns(&FORTH.repeat(5)), [(5, 3, 16)]);
        assert_eq!(turns(&BACK.repeat(3)), [(-3, 3, 8)]);
        assert_eq!(turns(&[FORTH.repeat(4), BACK.to_vec()].concat()), [(3, 3, 16)]);
        assert_eq!(turns(&[FORTH, BACK].concat()), []);
    }

    #[test]
    fn contacts_that_bounce_do_not_count() {
        let bouncing = [0b01, 0b00, 0b01, 0b11, 0b01, 0b11, 0b10, 0b11, 0b10, 0b00, 0b10, 0b00];
        assert_eq!(turns(&bouncing), [(1, 9, 0)]);
        assert_eq!(turns(&[0b01, 0b00].repeat(50)), []);
    }

    #[test]
    fn a_sample_that_was_missed_costs_nothing_and_a_half_detent_counts_nothing() {
        // From the second to rest in one sample.
        assert_eq!(turns(&[0b01, 0b11, 0b10, 0b10, 0b00]), [(1, 4, 0)]);
        assert_eq!(turns(&[0b01, 0b11, 0b01, 0b00]), []);
        assert_eq!(turns(&[0b11, 0b00].repeat(9)), []);
    }

    #[test]
    fn a_hand_that_goes_on_turning_is_reported_each_second() {
        let turns = turns(&FORTH.repeat(600));
        assert_eq!(turns.iter().map(|turn| turn.0).sum::<i16>(), 600);
        assert_eq!(turns.iter().map(|turn| turn.1).collect::<Vec<_>>(), [3, 1_007, 2_011]);
    }
}
