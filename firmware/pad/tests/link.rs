//! The conversation, rule by rule.

mod common;

use common::table::{Table, framed, new_host, opened, unknown};
use common::{Mood, Rng};
use hone_pad::Request;
use hone_pad::queue::Store;
use hone_wire::auth::Key;
use hone_wire::host::{CommandError, DownReason, HostConfig, HostLink, LedgerError, Notice, Refusal};
use hone_wire::message::{
    Ack, Config, Diagnostic, Display, Events, Kind, Labels, Leds, Message, Nak, NakReason, Ping, Pong, Prompt, Reboot,
    RebootTarget, number,
};
use proptest::prelude::*;

const KEY: Key = *b"0123456789abcdef";

fn prompt(id: u32) -> Prompt {
    Prompt { prompt_id: id, ttl_ms: 0, labels: Labels::pack(["cat", "dog"]).unwrap() }
}

/// Messages of one type among recorded frames.
fn sent(frames: &[Vec<u8>], kind: u8, key: Option<&Key>) -> Vec<Message> {
    frames
        .iter()
        .filter(|frame| frame_kind(frame) == Some(kind))
        .map(|frame| {
            let (kind, _, _, body) = opened(frame, key);
            Message::parse(kind, &body).expect("a message")
        })
        .collect()
}

/// The type, unchecked: keys change from session to session.
fn frame_kind(frame: &[u8]) -> Option<u8> {
    let mut deframer = hone_wire::frame::Deframer::new();
    frame.iter().find_map(|byte| match deframer.push(*byte) {
        hone_wire::frame::Deframed::Run(raw) => Some(raw[1]),
        _ => None,
    })
}

/// Session and counter of the newest frame of a session.
fn newest(frames: &[Vec<u8>]) -> (u32, u32) {
    let (_, session, ctr, _) = opened(frames.last().expect("a frame"), None);
    (session, ctr)
}

#[test]
fn an_unknown_type_is_answered_with_nak_and_the_link_stays_up() {
    let mut table = Table::up();
    let (session, ctr) = newest(&table.to_pad);
    table.inject_to_pad(&unknown(session, ctr + 50));
    let (session, ctr) = newest(&table.to_host);
    table.inject_to_host(&unknown(session, ctr + 50));
    table.to_host.clear();
    table.to_pad.clear();
    table.run(5);
    let nak = |ctr| Message::from(Nak { kind: 99, reason: NakReason::UnknownType, ctr });
    assert!(matches!(sent(&table.to_host, number::Nak, None)[..], [Message::Nak(Nak { kind: 99, .. })]));
    assert_eq!(sent(&table.to_pad, number::Nak, None), [nak(ctr + 50)]);
    assert!(table.host.is_up() && table.pad.is_up());
    assert_eq!((table.host.counters().unknown, table.pad.counters().unknown), (1, 1));
}

#[test]
fn a_replayed_frame_changes_nothing() {
    let mut table = Table::up();
    table.hold(1, 60);
    table.host.leds(0b10000, table.now);
    table.run(5);
    table.host.leds(0, table.now);
    table.run(5);
    let (from_pad, from_host) = (table.to_host.clone(), table.to_pad.clone());
    let before = table.host.counters().replay + table.host.counters().session;
    for frame in &from_pad {
        if frame_kind(frame) != Some(number::PadHello) {
            table.inject_to_host(frame);
        }
    }
    for frame in from_host.iter().filter(|frame| frame_kind(frame) != Some(number::HostHello)) {
        table.inject_to_pad(frame);
    }
    assert!(table.host.counters().replay + table.host.counters().session > before);
    assert_eq!(table.events().len(), 1);
    assert_eq!(table.pad.leds(0)[4], 0);
}

#[test]
fn a_replayed_session_of_a_paired_pad_presses_nothing() {
    let mut table = Table::paired(KEY);
    table.hold(1, 60);
    assert_eq!(table.events().len(), 1);
    let recorded = table.to_host.clone();
    // A thief plays the recorded pad to the host, which has restarted.
    table.host = HostLink::new(HostConfig { pairing_key: Some(KEY), nonce: *b"afresh!!", ..HostConfig::default() });
    table.host.poll(table.now, &mut |_| {});
    table.notices.clear();
    for frame in &recorded {
        table.inject_to_host(frame);
    }
    assert_eq!(table.events().len(), 1);
    assert!(!table.host.is_up());
}

#[test]
fn a_wrong_key_is_refused_by_both_sides_and_named() {
    let mut table = Table::new(Some(KEY), Some([9; 16]));
    table.hold(1, 60);
    table.run(3_000);
    assert!(!table.host.is_up() && !table.pad.is_up());
    assert!(table.events().is_empty());
    assert_eq!(table.notices, [Notice::Refused(Refusal::WrongKey)]);
    assert!(table.pad.counters().tag > 0);
}

#[test]
fn an_unpaired_pad_is_refused_unless_allowed() {
    let mut table = Table::new(Some(KEY), None);
    table.run(2_000);
    assert!(!table.host.is_up());
    assert_eq!(table.notices, [Notice::Refused(Refusal::Unpaired)]);
    table.host = new_host(Some(KEY), true);
    table.run(2_000);
    assert!(table.host.is_up());
}

#[test]
fn a_paired_pad_is_not_heard_without_its_key() {
    let mut table = Table::new(None, Some(KEY));
    table.run(2_000);
    assert!(!table.host.is_up());
    assert_eq!(table.notices, [Notice::Refused(Refusal::NoKey)]);
}

#[test]
fn an_untagged_press_is_refused_where_a_key_is_agreed() {
    let mut table = Table::paired(KEY);
    let epoch = table.flash.epoch();
    let event = hone_wire::message::Event { seq: 1, ..Default::default() };
    let forged = Message::from(Events { epoch, now_ms: 1, events: [event].into_iter().collect() });
    // Session numbers are no secret.
    for session in 0..4 {
        let session = u32::from_le_bytes(*b"\x01hos") + session;
        table.inject_to_host(&framed(&forged, session, 1_000));
    }
    table.run(10);
    assert!(table.events().is_empty());
    assert!(table.host.counters().untagged >= 1);
    table.inject_to_pad(&framed(&Leds { mask: 1 }.into(), 1, 1_000));
    assert_eq!(table.pad.leds(0)[0], 0);
}

#[test]
fn a_full_ledger_stops_acknowledgements_and_nothing_is_lost_once_it_has_room() {
    let mut table = Table::up();
    table.disk.mood = Mood::Full;
    for _ in 0..20 {
        table.hold(1, 60);
    }
    table.run(10_000);
    assert!(table.events().is_empty());
    assert_eq!(table.pad.pending(), 20);
    let refusals: Vec<_> = table.notices.iter().filter(|n| matches!(n, Notice::Refused(_))).collect();
    assert_eq!(refusals, [&Notice::Refused(Refusal::Ledger(LedgerError::Full))], "said once, not at every attempt");
    assert!(
        sent(&table.to_pad, number::Ack, None).iter().all(|m| matches!(m, Message::Ack(Ack { ack: 1, credit: 0, .. }))),
        "no credit, nothing acknowledged"
    );
    assert!(table.disk.commits < 20, "and the host is asked ever less often: {}", table.disk.commits);
    table.disk.mood = Mood::Willing;
    table.run(4_000);
    assert_eq!(table.pad.pending(), 0);
    assert_eq!(table.events().iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_commit_that_fails_after_it_was_done_is_not_done_twice() {
    let mut table = Table::up();
    table.disk.mood = Mood::LyingFailure;
    table.hold(1, 60);
    table.run(1_000);
    table.disk.mood = Mood::Willing;
    table.run(3_000);
    assert_eq!((table.events().len(), table.pad.pending()), (1, 0));
}

#[test]
fn numbering_that_went_back_gets_a_new_epoch_and_loses_nothing() {
    let mut table = Table::up();
    for _ in 0..5 {
        table.hold(1, 60);
    }
    // The flash forgot everything but its epoch.
    table.flash.0.borrow_mut().next = 1;
    table.reboot_pad(None, 2);
    table.run(50);
    table.hold(2, 60);
    table.hold(4, 60);
    let events = table.events();
    assert_eq!(events.iter().map(|e| e.button()).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(table.flash.epoch(), 2);
}

#[test]
fn a_journal_younger_than_the_pads_numbering_records_the_gap_and_goes_on() {
    let mut table = Table::up();
    for _ in 0..5 {
        table.hold(1, 60);
    }
    table.disk.marks.clear();
    table.disk.log.clear();
    table.host = new_host(None, true);
    table.run(50);
    table.hold(2, 60);
    let events = table.events();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].kind, events[0].value), (Kind::Diagnostic, Diagnostic::Gap as u16));
    assert_eq!((events[0].seq, events[0].dur_10ms), (5, 5), "five numbers up to 5 are missing");
    assert_eq!((events[1].seq, events[1].button()), (6, 1));
}

#[test]
fn presses_of_an_earlier_boot_have_no_age() {
    let mut table = Table::up();
    table.plugged = false;
    table.hold(1, 60);
    table.reboot_pad(None, 2);
    table.run(100);
    table.hold(1, 60);
    table.plugged = true;
    table.run(6_000);
    let ages: Vec<_> = table.disk.log.iter().map(|received| received.age_ms.is_some()).collect();
    assert_eq!(ages, [false, true]);
}

#[test]
fn a_pad_that_restarts_is_back_within_a_tenth_of_a_second() {
    let mut table = Table::up();
    table.reboot_pad(None, 2);
    table.run(100);
    assert!(table.pad.is_up() && table.host.is_up());
    assert!(table.notices.contains(&Notice::Down(DownReason::PadRestarted)));
}

#[test]
fn a_silent_pad_is_down_after_three_and_a_half_seconds_and_an_idle_one_is_not() {
    let mut table = Table::up();
    table.run(20_000);
    assert!(table.host.is_up() && table.pad.is_up());
    table.plugged = false;
    table.run(3_400);
    assert!(table.host.is_up());
    table.run(1_200);
    assert!(!table.host.is_up() && !table.pad.is_up());
    assert!(table.notices.contains(&Notice::Down(DownReason::Silent)));
}

#[test]
fn prompt_ids_must_rise() {
    let mut table = Table::up();
    assert_eq!(table.host.prompt(prompt(5), 0), Ok(()));
    assert_eq!(table.host.prompt(prompt(5), 0), Err(CommandError::NotRising { highest: 5 }));
    assert_eq!(table.host.prompt(prompt(4), 0), Err(CommandError::NotRising { highest: 5 }));
}

#[test]
fn states_asked_for_while_the_pad_was_away_are_set_when_it_is_back() {
    let mut table = Table::new(None, None);
    table.host.prompt(prompt(5), 0).unwrap();
    table.host.leds(0b10, 0);
    table.host.configure(Config { long_ms: 900, hash: 3, ..Config::default() }, 0);
    table.host.display(Display { text: "cat?".try_into().unwrap() });
    table.run(100);
    assert_eq!(table.pad.prompt().labels.iter().collect::<Vec<_>>(), ["cat", "dog"]);
    assert_eq!(table.pad.timing().long_ms, 900);
    assert_eq!(table.pad.leds(0)[1], 255);
    assert_eq!(table.pad.pop_request(), Some(Request::Display(Display { text: "cat?".try_into().unwrap() })));
    table.reboot_pad(None, 2);
    table.run(100);
    assert_eq!((table.pad.prompt().prompt_id, table.pad.timing().long_ms), (5, 900));
}

#[test]
fn a_prompt_lost_on_the_way_is_sent_again() {
    let mut table = Table::up();
    table.plugged = false;
    table.host.prompt(prompt(5), table.now).unwrap();
    table.run(20);
    table.plugged = true;
    assert_eq!(table.pad.prompt().prompt_id, 0);
    table.run(600);
    assert_eq!(table.pad.prompt().prompt_id, 5);
    table.host.clear_prompt(table.now);
    table.run(20);
    assert_eq!(table.pad.prompt().prompt_id, 0);
}

#[test]
fn a_restart_is_obeyed_with_a_tag_only() {
    let mut table = Table::up();
    let reboot = Reboot { target: RebootTarget::Bootloader };
    assert_eq!(table.host.reboot(reboot), Err(CommandError::Unauthenticated));
    let (session, ctr) = newest(&table.to_pad);
    table.to_host.clear();
    table.inject_to_pad(&framed(&reboot.into(), session, ctr + 9));
    table.run(5);
    assert_eq!(table.pad.pop_request(), None);
    assert!(matches!(
        sent(&table.to_host, number::Nak, None)[..],
        [Message::Nak(Nak { kind: number::Reboot, reason: NakReason::Forbidden, .. })]
    ));

    let mut table = Table::paired(KEY);
    table.host.reboot(reboot).unwrap();
    table.run(5);
    assert_eq!(table.pad.pop_request(), Some(Request::Reboot(RebootTarget::Bootloader)));
}

/// Offers a key every half second while `buttons` are down for `ms`.
fn offer(table: &mut Table, key: Key, buttons: u16, ms: u64) {
    table.buttons = buttons;
    for _ in 0..ms / 500 {
        table.host.pair(key, &mut table.disk).unwrap();
        table.run(500);
    }
    table.buttons = 0;
    table.run(50);
}

fn is_paired_with(table: &mut Table, key: Key) -> bool {
    table.notices.contains(&Notice::Paired { uid: common::table::UID, key })
        && table.pad.pop_request() == Some(Request::KeepPairingKey(key))
        && table.host.is_up()
        && table.pad.is_up()
}

#[test]
fn a_pairing_key_is_taken_only_with_consent_at_the_pad_and_used_at_once() {
    let mut table = Table::up();
    offer(&mut table, KEY, 0, 500);
    assert!(matches!(table.notices.last(), Some(Notice::Nak(Nak { kind: number::Pair, .. }))));
    assert_eq!((table.pad.pop_request(), table.disk.offered), (None, Some(KEY)));
    offer(&mut table, KEY, 0b11, 4_500);
    assert_eq!(table.pad.pop_request(), None);
    offer(&mut table, KEY, 0b11, 6_000);
    assert!(is_paired_with(&mut table, KEY));
    assert!(table.notices.iter().any(|notice| matches!(notice, Notice::Up { authenticated: true, .. })));
    table.hold(4, 60);
    let presses: Vec<_> = table.events().iter().map(|event| (event.kind, event.button())).collect();
    assert_eq!(presses, [(Kind::Chord, 0), (Kind::Click, 2)], "a hold that paired is not an event as well");
}

#[test]
fn a_hold_is_an_event_or_the_consent_to_a_key_and_never_both() {
    let mut table = Table::up();
    table.buttons = 0b11;
    table.run(5_100);
    assert_eq!(table.events().last().map(|event| event.kind), Some(Kind::ChordHeld), "felt at once");
    offer(&mut table, KEY, 0b11, 2_000);
    assert_eq!(table.pad.pop_request(), None, "the hold meant something else");
    // A key was offered and withdrawn: the hold is told when it ends.
    let mut table = Table::up();
    table.buttons = 0b11;
    table.run(1_000);
    table.host.pair(KEY, &mut table.disk).unwrap();
    table.run(5_000);
    assert_eq!((table.events().len(), table.pad.pop_request()), (0, None));
    table.buttons = 0;
    table.run(50);
    let held = table.events()[0];
    assert_eq!((held.kind, held.value, held.dur_10ms), (Kind::ChordHeld, 0b11, 600));
}

#[test]
fn a_pad_whose_host_was_lost_is_paired_anew_by_whoever_holds_its_buttons_and_by_nobody_else() {
    for known in [None, Some([9; 16])] {
        let mut table = Table::new(known, Some([8; 16]));
        table.host = new_host(known, false);
        table.run(2_000);
        assert!(!table.host.is_up());
        for (buttons, ms) in [(0, 4_000), (0b01, 6_000), (0b11, 4_000)] {
            offer(&mut table, KEY, buttons, ms);
            assert!(!table.host.is_up() && table.pad.pop_request().is_none(), "{buttons:b} for {ms} ms");
        }
        // One of the two was lifted, so that it is no longer held.
        table.buttons = 0b11;
        table.run(2_000);
        offer(&mut table, KEY, 0b01, 4_000);
        assert!(!table.host.is_up() && table.pad.pop_request().is_none());
        offer(&mut table, KEY, 0b11, 7_500);
        assert!(is_paired_with(&mut table, KEY), "{known:?}: {:?}", table.notices);
        table.run(3_000);
        assert!(table.events().iter().all(|event| event.kind != Kind::ChordHeld), "{:?}", table.events());
        // The one before is a stranger now.
        table.host = new_host(Some([8; 16]), false);
        table.run(2_000);
        assert!(!table.host.is_up());
    }
}

#[test]
fn a_key_offered_to_a_pad_in_a_session_with_its_host_by_somebody_else_needs_consent_too() {
    let mut table = Table::paired(KEY);
    let offer = framed(&hone_wire::message::Pair { key: [6; 16] }.into(), 0, 0);
    let untagged = table.pad.counters().untagged;
    table.to_host.clear();
    table.inject_to_pad(&offer);
    table.run(3_000);
    assert_eq!((table.pad.pop_request(), table.pad.counters().untagged), (None, untagged + 1));
    assert!(table.host.is_up() && table.pad.is_up());
    assert!(sent(&table.to_host, number::PadHello, None).is_empty(), "the session goes on");
}

#[test]
fn a_key_is_kept_before_it_is_offered_and_not_offered_where_it_cannot_be() {
    let mut table = Table::up();
    table.disk.mood = Mood::Full;
    assert_eq!(table.host.pair(KEY, &mut table.disk), Err(CommandError::NotKept(LedgerError::Full)));
    table.to_pad.clear();
    table.run(500);
    assert!(sent(&table.to_pad, number::Pair, None).is_empty());
    table.disk.mood = Mood::Willing;
    table.host.pair(KEY, &mut table.disk).unwrap();
    assert_eq!(table.disk.offered, Some(KEY), "before any frame left");
    table.run(500);
    assert_eq!(sent(&table.to_pad, number::Pair, None).len(), 1);
}

#[test]
fn a_key_taken_by_the_pad_is_not_lost_with_the_answer_or_with_the_host() {
    const OLD: Key = [8; 16];
    for old in [None, Some(OLD)] {
        let mut table = Table::new(old, old);
        table.run(100);
        table.buttons = 0b11;
        while table.pad.pop_request().is_none() {
            table.host.pair(KEY, &mut table.disk).unwrap();
            table.run(10);
        }
        table.buttons = 0;
        // The cable is pulled: what the pad said is lost. Then the host is killed.
        table.plugged = false;
        table.run(if old.is_none() { 10 } else { 5_000 });
        let config =
            |offered_key| HostConfig { pairing_key: old, offered_key, nonce: *b"another!", ..HostConfig::default() };
        table.host = HostLink::new(config(table.disk.offered));
        table.notices.clear();
        table.plugged = true;
        table.run(4_000);
        assert_eq!(table.notices.first(), Some(&Notice::Paired { uid: common::table::UID, key: KEY }));
        assert!(table.host.is_up());
    }
    // It was not taken: the one before still holds, and nothing is said of the other.
    let mut table = Table::new(None, Some(OLD));
    let (pairing_key, offered_key) = (Some(OLD), Some(KEY));
    table.host = HostLink::new(HostConfig { pairing_key, offered_key, nonce: *b"another!", ..HostConfig::default() });
    table.run(4_000);
    assert!(table.host.is_up());
    assert!(
        !table.notices.iter().any(|n| matches!(n, Notice::Paired { .. } | Notice::Refused(_))),
        "{:?}",
        table.notices
    );
}

#[test]
fn what_only_the_other_side_may_say_is_refused() {
    let mut table = Table::up();
    let (session, ctr) = newest(&table.to_pad);
    table.to_host.clear();
    table.inject_to_pad(&framed(&Pong::default().into(), session, ctr + 9));
    table.run(3);
    assert!(matches!(
        sent(&table.to_host, number::Nak, None)[..],
        [Message::Nak(Nak { kind: number::Pong, reason: NakReason::Forbidden, .. })]
    ));
    let (session, ctr) = newest(&table.to_host);
    table.to_pad.clear();
    table.inject_to_host(&framed(&Ping::default().into(), session, ctr + 9));
    table.run(3);
    assert_eq!(sent(&table.to_pad, number::Nak, None).len(), 1);
}

#[test]
fn an_acknowledgement_beyond_what_was_pressed_trims_nothing() {
    let mut table = Table::up();
    table.plugged = false;
    table.hold(1, 60);
    let (session, ctr) = newest(&table.to_pad);
    let epoch = table.flash.epoch();
    table.inject_to_pad(&framed(&Ack { epoch, ack: 1_000_000, credit: 8 }.into(), session, ctr + 9));
    table.inject_to_pad(&framed(&Ack { epoch: epoch + 1, ack: 2, credit: 8 }.into(), session, ctr + 10));
    assert_eq!(table.pad.pending(), 1);
}

#[test]
fn a_pad_keeps_pressing_across_the_wrap_of_its_clock() {
    let mut table = Table::new(None, None);
    table.now = u64::from(u32::MAX) - 3_000;
    table.run(1_000);
    for _ in 0..40 {
        table.hold(1, 60);
    }
    table.run(20_000);
    assert!(table.now > u64::from(u32::MAX));
    assert_eq!((table.events().len(), table.pad.pending()), (40, 0));
    assert!(table.disk.log.iter().all(|received| received.age_ms.is_some_and(|age| age < 500)));
    assert!(table.host.is_up() && table.pad.is_up());
}

proptest! {
    #[test]
    fn neither_side_is_upset_by_any_bytes(seed: u64, keyed: bool) {
        let mut table = if keyed { Table::paired(KEY) } else { Table::up() };
        let mut rng = Rng::new(seed);
        for _ in 0..40 {
            let noise: Vec<u8> = (0..rng.below(300)).map(|_| (rng.below(256) >> rng.below(8)) as u8).collect();
            table.inject_to_host(&noise);
            table.inject_to_pad(&noise);
            // Well-formed frames with senseless bodies get further.
            let body = (0..rng.below(200)).map(|_| rng.below(256) as u8).collect();
            let (session, ctr) = (rng.below(3), rng.below(2_000));
            let frame = hone_wire::frame::encode_body(rng.below(20) as u8, &body, session, ctr, None);
            table.inject_to_host(&frame);
            table.inject_to_pad(&frame);
            table.run(20);
        }
        // A forged greeting may end a session; it may not end the link.
        table.run(12_000);
        prop_assert!(table.host.is_up() && table.pad.is_up());
        prop_assert!(table.events().is_empty());
        table.hold(1, 60);
        table.run(100);
        prop_assert_eq!(table.events().len(), 1);
    }
}
