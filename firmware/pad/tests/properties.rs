//! What holds whatever a hand does: debounce, gestures, knob and queue against laws, not examples.

use hone_pad::debounce::{Debounce, Edge};
use hone_pad::gesture::{Context, Gesture, Gestures};
use hone_pad::knob::Knob;
use hone_pad::queue::{Store, enqueue};
use hone_pad::{MAX_BUTTONS, RamStore};
use hone_wire::message::{Config, Event, Kind};
use proptest::prelude::*;

/// Levels by turns, from up, with how long each lasts.
fn levels(pieces: &[u16]) -> Vec<bool> {
    let level = |at: usize| at % 2 == 1;
    pieces.iter().enumerate().flat_map(|(at, ms)| std::iter::repeat_n(level(at), usize::from(*ms))).collect()
}

/// When each button is down, by pieces of up and down; the same hand is played to the gestures through debouncers.
fn played(hands: &[Vec<u16>], config: &Config) -> Vec<Gesture> {
    let hands: Vec<Vec<bool>> = hands.iter().map(|pieces| levels(pieces)).collect();
    let longest = hands.iter().map(Vec::len).max().unwrap_or(0);
    let (mut gestures, mut done) = (Gestures::NEW, Vec::new());
    let mut debounce = [Debounce::NEW; MAX_BUTTONS];
    for now_ms in 0..longest as u32 + 400 {
        for (button, hand) in hands.iter().enumerate() {
            let down = hand.get(now_ms as usize).copied().unwrap_or(false);
            let emit = &mut |gesture| done.push(gesture);
            match debounce[button].sample(down, now_ms, config.debounce_ms) {
                Some(Edge::Pressed { at_ms }) => gestures.pressed(button, at_ms, Context::NONE, config, emit),
                Some(Edge::Released { at_ms }) => gestures.released(button, at_ms, config, emit),
                Some(Edge::Began) | None => {}
            }
        }
        gestures.tick(now_ms, config, &mut |gesture| done.push(gesture));
    }
    done
}

proptest! {
    #[test]
    fn edges_alternate_and_each_level_was_steady_when_it_was_believed(
        pieces in prop::collection::vec(1u16..30, 1..60), samples in 1u8..12,
    ) {
        let levels = levels(&pieces);
        let (mut button, mut pressed) = (Debounce::NEW, false);
        for (now, down) in levels.iter().enumerate() {
            let (is_edge, at) = match button.sample(*down, now as u32, samples) {
                Some(Edge::Pressed { at_ms }) => (true, at_ms),
                Some(Edge::Released { at_ms }) => (true, at_ms),
                Some(Edge::Began) | None => (false, 0),
            };
            if is_edge {
                prop_assert!(*down != pressed, "edges alternate");
                pressed = *down;
                let steady = &levels[now + 1 - usize::from(samples)..=now];
                prop_assert!(steady.iter().all(|level| level == down));
                prop_assert!(at as usize <= now && levels[at as usize] == *down);
            }
            prop_assert_eq!(button.is_pressed(), pressed);
            if now + 1 >= usize::from(samples) && button.is_pressed() {
                let steady = &levels[now + 1 - usize::from(samples)..=now];
                prop_assert!(steady.iter().any(|level| *level), "a steady level is believed at once");
            }
        }
    }

    #[test]
    fn presses_of_one_button_well_apart_are_told_each_by_what_it_was(
        holds in prop::collection::vec(prop_oneof![20u16..500, 700u16..3_000], 1..8), gaps in prop::collection::vec(300u16..900, 8),
        double_ms in prop_oneof![Just(0u16), Just(250)],
    ) {
        let config = Config { double_ms, ..Config::default() };
        let hand: Vec<u16> = holds.iter().zip(&gaps).flat_map(|(hold, gap)| [*gap, *hold]).collect();
        let expected: Vec<(Kind, u32)> = holds
            .iter()
            .flat_map(|ms| match *ms {
                ms if ms < config.long_ms => vec![(Kind::Click, u32::from(ms))],
                ms => vec![(Kind::Long, u32::from(config.long_ms)), (Kind::LongRelease, u32::from(ms))],
            })
            .collect();
        let told: Vec<_> = played(&[hand], &config).iter().map(|gesture| (gesture.kind, gesture.lasted_ms)).collect();
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn whatever_fingers_do_no_press_is_told_twice_and_a_held_chord_was_held(
        hands in prop::collection::vec(prop::collection::vec(1u16..7_000, 0..12), 1..4), double in any::<bool>(),
    ) {
        let config = Config { double_ms: if double { 250 } else { 0 }, ..Config::default() };
        let told = played(&hands, &config);
        let levels: Vec<Vec<bool>> = hands.iter().map(|pieces| levels(pieces)).collect();
        let presses: usize = levels.iter().map(|hand| hand.windows(2).filter(|pair| pair[0] != pair[1]).count().div_ceil(2)).sum();
        let of = |kind| told.iter().filter(|gesture| gesture.kind == kind).count();
        let chords = of(Kind::Chord) + of(Kind::ChordHeld);
        prop_assert!(of(Kind::Click) + of(Kind::Long) + 2 * of(Kind::Double) + 2 * chords <= presses, "{:?}", told);
        prop_assert!(of(Kind::LongRelease) <= of(Kind::Long));
        for held in told.iter().filter(|gesture| gesture.kind == Kind::ChordHeld) {
            prop_assert!(held.value.count_ones() >= 2 && held.lasted_ms >= 5_000);
            let end = (held.began_ms + held.lasted_ms) as usize;
            for button in (0..hands.len()).filter(|button| held.value & 1 << button != 0) {
                let debounce = 2 * usize::from(config.debounce_ms);
                let up = levels[button][end - 5_000..end].split(|down| *down).map(<[bool]>::len).max().unwrap_or(0);
                prop_assert!(up < debounce, "button {button} was up for {up} ms: {:?}", held);
            }
        }
    }

    #[test]
    fn a_knob_tells_as_many_detents_as_it_was_turned_however_its_contacts_bounce(
        turns in prop::collection::vec(-4i32..=4, 1..12), bounce in any::<u64>(),
    ) {
        let (mut knob, mut position, mut told, mut now) = (Knob::NEW, 0i32, 0i32, 0u32);
        let mut chance = bounce | 1;
        let gray = |position: i32| [0b00u8, 0b01, 0b11, 0b10][position.rem_euclid(4) as usize];
        let mut see = |knob: &mut Knob, contacts: u8, now: u32| {
            if let Some(turn) = knob.sample(contacts, now, Context::NONE) {
                told += i32::from(turn.detents);
            }
        };
        see(&mut knob, 0, now);
        for turn in &turns {
            for _ in 0..4 * turn.abs() {
                let next = position + turn.signum();
                // The contact that moves bounces between its two levels.
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                for _ in 0..(chance >> 60) % 4 {
                    now += 1;
                    see(&mut knob, gray(next), now);
                    now += 1;
                    see(&mut knob, gray(position), now);
                }
                now += 1;
                see(&mut knob, gray(next), now);
                position = next;
            }
            for _ in 0..1_000 {
                now += 1;
                see(&mut knob, gray(position), now);
            }
        }
        let turned: i32 = turns.iter().sum();
        prop_assert_eq!(told, turned);
    }

    #[test]
    fn a_queue_keeps_order_and_accounts_for_every_press(steps in prop::collection::vec((0u8..10, 0u32..6), 1..200)) {
        let mut store = RamStore::<8>::new();
        store.adopt_epoch(1);
        let (mut pressed, mut told, mut dropped) = (0u16, Vec::new(), 0u32);
        let mut take = |store: &mut RamStore<8>, n: u32| {
            let upto = (store.first() + n).min(store.next());
            for seq in store.first()..upto {
                let event = store.event(seq).expect("present for all of first..next");
                match event.kind {
                    Kind::Dropped => dropped += u32::from(event.value),
                    _ => told.push(event.value),
                }
            }
            store.trim(upto);
        };
        for (step, n) in steps {
            if step < 8 {
                pressed += 1;
                enqueue(&mut store, Event { kind: Kind::Click, value: pressed, ..Event::default() });
            } else {
                take(&mut store, n);
            }
            prop_assert!(store.next() - store.first() <= 8);
        }
        take(&mut store, 8);
        prop_assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
        prop_assert_eq!(told.len() as u32 + dropped + store.lost(), u32::from(pressed));
    }
}
