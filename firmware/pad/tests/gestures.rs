//! What a person's fingers become, through the whole pad: samples in, committed events out.

mod common;

use common::table::Table;
use hone_pad::Lamp;
use hone_wire::message::{Config, Diagnostic, Event, Kind, Labels, Prompt};

/// Kind, button, value of each committed event.
fn done(table: &Table) -> Vec<(Kind, u8, u16)> {
    table.events().iter().map(|event| (event.kind, event.button(), event.value)).collect()
}

fn prompt(id: u32, ttl_ms: u32) -> Prompt {
    Prompt { prompt_id: id, ttl_ms, labels: Labels::pack(["yes", "no"]).unwrap() }
}

#[test]
fn a_short_press_is_a_click_at_its_release() {
    let mut table = Table::up();
    table.buttons = 0b10;
    table.run(200);
    assert_eq!(done(&table), []);
    table.buttons = 0;
    table.run(20);
    assert_eq!(done(&table), [(Kind::Click, 1, 0)]);
    let Event { t_ms, dur_10ms, boot, seq, .. } = table.events()[0];
    assert_eq!((t_ms, dur_10ms, boot, seq), (101, 20, 1, 1), "dated to the first edge");
    assert_eq!(table.disk.log[0].age_ms, Some(207), "released at 301, certain with the eighth sample at 308");
}

#[test]
fn a_long_press_is_told_while_held_and_again_at_its_end() {
    let mut table = Table::up();
    table.buttons = 1;
    table.run(620);
    assert_eq!(done(&table), [(Kind::Long, 0, 0)]);
    table.run(380);
    table.buttons = 0;
    table.run(30);
    assert_eq!(done(&table), [(Kind::Long, 0, 0), (Kind::LongRelease, 0, 0)]);
    assert_eq!(table.events()[1].dur_10ms, 100);
    assert_eq!(table.events()[0].t_ms, table.events()[1].t_ms);
}

#[test]
fn doubles_are_off_unless_asked_for() {
    let mut table = Table::up();
    table.hold(1, 60);
    table.hold(1, 60);
    assert_eq!(done(&table), [(Kind::Click, 0, 0), (Kind::Click, 0, 0)]);
}

#[test]
fn with_the_double_window_on_two_clicks_are_one_double_and_one_waits_its_turn() {
    let mut table = Table::up();
    table.host.configure(Config { double_ms: 250, hash: 5, ..Config::default() }, table.now);
    table.run(20);
    assert_eq!(table.pad.timing().double_ms, 250);
    table.hold(1, 60);
    table.hold(1, 60);
    assert_eq!(done(&table), [(Kind::Double, 0, 0)]);
    table.hold(2, 60);
    assert_eq!(done(&table).len(), 1, "not yet certain");
    table.run(300);
    assert_eq!(done(&table)[1..], [(Kind::Click, 1, 0)]);
    // A click, then a long press within the window: both are what they are.
    table.hold(1, 60);
    table.hold(1, 700);
    table.run(300);
    assert_eq!(done(&table)[2..], [(Kind::Click, 0, 0), (Kind::Long, 0, 0), (Kind::LongRelease, 0, 0)]);
}

#[test]
fn two_buttons_together_are_a_chord_and_nothing_else() {
    let mut table = Table::up();
    table.buttons = 0b01;
    table.run(50);
    table.buttons = 0b11;
    table.run(200);
    table.buttons = 0b10;
    table.run(50);
    table.buttons = 0;
    table.run(30);
    assert_eq!(done(&table), [(Kind::Chord, 0, 0b11)]);
    assert_eq!(table.events()[0].dur_10ms, 30);
}

#[test]
fn a_button_pressed_well_after_another_is_a_press_of_its_own() {
    let mut table = Table::up();
    table.buttons = 0b01;
    table.run(300);
    table.buttons = 0b11;
    table.run(100);
    table.buttons = 0;
    table.run(30);
    assert_eq!(done(&table), [(Kind::Click, 0, 0), (Kind::Click, 1, 0)]);
}

#[test]
fn a_chord_held_five_seconds_is_told_then_and_not_again() {
    let mut table = Table::up();
    table.hold(0b101, 6_000);
    assert_eq!(done(&table), [(Kind::ChordHeld, 0, 0b101)]);
    assert_eq!(table.events()[0].dur_10ms, 500);
}

#[test]
fn a_chord_of_which_a_button_was_lifted_is_a_chord_and_never_held() {
    let mut table = Table::up();
    table.buttons = 0b11;
    table.run(1_000);
    table.hold(0b01, 6_000);
    assert_eq!(done(&table), [(Kind::Chord, 0, 0b11)]);
    // And the time begins when the last of its buttons goes down.
    table.buttons = 0b01;
    table.run(100);
    table.hold(0b11, 4_950);
    assert_eq!(done(&table)[1..], [(Kind::Chord, 0, 0b11)]);
}

#[test]
fn a_stuck_button_of_a_chord_leaves_the_others_working() {
    let mut table = Table::up();
    table.buttons = 0b11;
    table.run(200);
    table.buttons = 0b01;
    table.run(10_000);
    let stuck = Diagnostic::StuckButton as u16;
    assert_eq!(done(&table), [(Kind::Diagnostic, 0, stuck)]);
    table.buttons = 0b101;
    table.run(100);
    table.buttons = 0b001;
    table.run(30);
    assert_eq!(done(&table)[1..], [(Kind::Click, 2, 0)]);
    table.buttons = 0;
    table.run(30);
    table.hold(0b110, 100);
    assert_eq!(done(&table)[2..], [(Kind::Chord, 1, 0b110)]);
}

#[test]
fn a_chord_held_until_it_is_stuck_is_told_once_and_its_buttons_say_nothing_more() {
    let mut table = Table::up();
    table.hold(0b11, 12_000);
    let stuck = Diagnostic::StuckButton as u16;
    assert_eq!(done(&table), [(Kind::ChordHeld, 0, 0b11), (Kind::Diagnostic, 0, stuck)]);
    table.hold(0b11, 100);
    assert_eq!(done(&table)[2..], [(Kind::Chord, 0, 0b11)]);
}

#[test]
fn a_stuck_button_is_a_diagnostic_and_its_release_says_nothing() {
    let mut table = Table::up();
    table.hold(1, 12_000);
    let stuck = Diagnostic::StuckButton as u16;
    assert_eq!(done(&table), [(Kind::Long, 0, 0), (Kind::Diagnostic, 0, stuck)]);
}

#[test]
fn a_button_held_through_a_restart_presses_nothing() {
    let mut table = Table::up();
    table.buttons = 1;
    table.reboot_pad(None, 2);
    table.run(2_000);
    table.buttons = 0;
    table.run(50);
    assert_eq!(done(&table), []);
    table.hold(1, 100);
    assert_eq!(done(&table), [(Kind::Click, 0, 0)]);
}

#[test]
fn a_press_is_bound_to_the_prompt_shown_when_it_began() {
    let mut table = Table::up();
    table.host.prompt(prompt(7, 0), table.now).unwrap();
    table.run(300);
    table.buttons = 1;
    table.run(3); // The finger is down, but not yet for 8 ms.
    table.host.prompt(prompt(8, 0), table.now).unwrap();
    table.run(100);
    table.buttons = 0;
    table.run(30);
    let first = table.events()[0];
    assert_eq!((first.prompt, first.is_ambiguous()), (7, false));
    table.hold(1, 60);
    assert_eq!((table.events()[1].prompt, table.events()[1].is_ambiguous()), (8, true), "133 ms after the change");
    table.hold(1, 60);
    assert_eq!((table.events()[2].prompt, table.events()[2].is_ambiguous()), (8, false));
}

#[test]
fn a_lapsed_prompt_binds_nothing() {
    let mut table = Table::up();
    table.host.prompt(prompt(7, 500), table.now).unwrap();
    table.run(300);
    assert_eq!(table.pad.prompt().prompt_id, 7);
    table.run(400);
    table.hold(1, 60);
    assert_eq!(table.pad.prompt().prompt_id, 0);
    assert_eq!(table.events()[0].prompt, 0);
}

#[test]
fn the_lamp_tells_queued_sent_and_recorded_apart() {
    let mut table = Table::up();
    table.plugged = false;
    table.hold(1, 60);
    assert_eq!(table.pad.lamps()[0], Lamp::Sent, "sent into the void");
    table.run(4_000);
    assert!(!table.pad.is_up());
    assert_eq!(table.pad.lamps()[0], Lamp::Queued);
    table.plugged = true;
    while table.pad.pending() > 0 {
        table.run(1);
    }
    assert_eq!(table.pad.lamps()[0], Lamp::Recorded);
    assert_eq!(table.events().len(), 1);
    table.run(400);
    assert_eq!(table.pad.lamps()[0], Lamp::Off);
}

#[test]
fn lamps_under_the_hosts_mask_burn_and_a_press_shows_over_them() {
    let mut table = Table::up();
    table.host.leds(0b110, table.now);
    table.run(20);
    assert_eq!(table.pad.leds(0)[..4], [0, 255, 255, 0]);
    table.plugged = false;
    table.hold(0b10, 60);
    assert_eq!(table.pad.leds(0)[..4], [0, 40, 255, 0]);
}

#[test]
fn a_turn_of_a_knob_is_one_event_bound_to_what_was_shown_when_it_began() {
    let mut table = Table::up();
    let now = table.now as u32;
    for (ms, contacts) in [0b0100, 0b1100, 0b1000, 0b0000].repeat(3).into_iter().enumerate() {
        table.pad.turn(now + ms as u32, contacts);
    }
    table.pad.turn(now + 500, 0);
    table.run(600);
    let [event] = table.events()[..] else { panic!("{:?}", table.events()) };
    assert_eq!((event.kind, event.button(), event.value as i16, event.t_ms), (Kind::Rotary, 1, 3, now + 3));
}
