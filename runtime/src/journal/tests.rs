use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::state::{StateDir, StateError};
use crate::{Class, Classified};

/// A clock that stands still until it is moved.
#[derive(Clone)]
pub(super) struct TestClock(Arc<Mutex<Stamp>>);

impl TestClock {
    fn new() -> TestClock {
        let start = Stamp { boot_id: "boot-1".into(), mono_ns: 5_000_000_000, wall_ms: 1_760_000_000_000 };
        TestClock(Arc::new(Mutex::new(start)))
    }

    fn pass(&self, ms: u64) {
        let mut now = self.0.lock().unwrap();
        now.mono_ns += ms * 1_000_000;
        now.wall_ms += ms as i64;
    }
}

impl Clock for TestClock {
    fn now(&mut self) -> Stamp {
        self.0.lock().unwrap().clone()
    }
}

fn open(dir: &Path, clock: &TestClock) -> Journal {
    let options = Options { clock: Box::new(clock.clone()), max_pages: None };
    Journal::open_with(StateDir::at(dir).lock().unwrap(), options).unwrap()
}

fn fresh() -> (TempDir, TestClock, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let journal = open(dir.path(), &clock);
    (dir, clock, journal)
}

pub(super) fn example(seed: u32) -> Example {
    Example {
        model_digest: "5f1c2a".into(),
        adapter_id: (seed % 2 == 1).then(|| "00112233aabbccdd".into()),
        feature: vec![0.5, -1.25, seed as f32],
        logits: vec![0.1, -2.5e-3, 7.0],
        inputs: vec![],
    }
}

pub(super) fn shown(seed: u32) -> Shown {
    Shown { example: example(seed), class: seed % 3, label: format!("class {}", seed % 3), mu: 0.9, p: 0.7 }
}

fn thumb(id: u32, up: bool) -> Press {
    Press::new(Some(id), PressKind::Thumb { up }, Source::Stdin)
}

fn undo(press_id: Option<PressId>, source: Source) -> Press {
    Press::new(None, PressKind::Undo { press_id }, source)
}

fn ids(journal: &Journal) -> Vec<PressId> {
    journal.reader().effective_presses().unwrap().iter().map(|p| p.press_id).collect()
}

fn export_of(reader: &Reader) -> Vec<u8> {
    let mut out = Vec::new();
    reader.export(&mut out).unwrap();
    out
}

/// One of everything, with an undo, a double, a late press, an orphan and a redaction.
fn one_of_everything(dir: &Path, clock: &TestClock) -> Journal {
    let mut j = open(dir, clock);
    let kept = Blobs::new(j.state()).put(b"a kept input").unwrap();
    let mut with_input = shown(1);
    with_input.example.inputs = vec![kept];
    let first = j.shown(&with_input).unwrap();
    let second = j.shown(&shown(2)).unwrap();
    let third = j.shown(&shown(3)).unwrap();
    j.inference(&Inference {
        model_digest: "5f1c2a".into(), adapter_id: None, class: 1, label: "b\"ä".into(), p: 0.3
    })
    .unwrap();
    j.press(&thumb(first, false)).unwrap();
    clock.pass(900);
    j.press(&thumb(first, true)).unwrap();
    clock.pass(9_000);
    j.press(&thumb(first, false)).unwrap();
    j.press(&Press::new(Some(second), PressKind::Correction { class: 0 }, Source::Web)).unwrap();
    j.press(&Press::new(Some(third), PressKind::Stars { stars: 4 }, Source::Web)).unwrap();
    j.press(&undo(None, Source::Web)).unwrap();
    j.press(&thumb(77, true)).unwrap();
    let demonstration = PressKind::Demonstration { class: 2, example: Box::new(example(8)) };
    j.press(&Press { confirmed: true, ..Press::new(None, demonstration, Source::Key) }).unwrap();
    // As the journals of version 1 named it, for the recording.
    let epoch = 1;
    j.adopt_epoch("0a1b", epoch, 1).unwrap();
    let press =
        Press { age: Age::Between { min_ms: 5, max_ms: 900 }, ..Press::new(None, PressKind::NotSure, Source::Gpio) };
    let other = PadEvent::Other { name: "dropped".into(), detail: "3 events".into() };
    j.pad_commit(
        "0a1b",
        epoch,
        &[PadPress { seq: 1, event: PadEvent::Press(press) }, PadPress { seq: 2, event: other }],
    )
    .unwrap();
    j.adapter(&AdapterEvent {
        id: "0123456789abcdef".into(),
        base_digest: "5f1c".into(),
        action: AdapterAction::Published,
        numbers: [("accuracy".to_string(), 0.1f64 + 0.2)].into(),
    })
    .unwrap();
    j.note("said by nobody").unwrap();
    j.redact(&Redact::Prediction(second)).unwrap();
    j
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_features_come_back_as_f16() {
    let (dir, clock, mut j) = fresh();
    let mut about = shown(1);
    about.example.feature = vec![0.1, 1000.3, -3.0e-5];
    let id = j.shown(&about).unwrap();
    let press = j.press(&thumb(id, true)).unwrap();
    j.close().unwrap();
    let j = open(dir.path(), &clock);
    let found = j.reader().effective_presses().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].press_id, press);
    assert_eq!(found[0].signal, Signal::Thumb { up: true });
    let rounded: Vec<f32> = about.example.feature.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
    assert_eq!(found[0].example.feature, rounded);
    assert_ne!(found[0].example.feature, about.example.feature);
    assert_eq!(found[0].example.logits, about.example.logits);
    assert_eq!((found[0].shown_class, found[0].mu), (Some(1), Some(0.9)));
    assert_eq!(j.reader().show(id).unwrap().unwrap().p, 0.7);
    assert!(j.reader().verify().unwrap().is_sound());
}

#[test]
fn prediction_ids_rise_across_restarts_and_jump_by_a_thousand_after_an_unclean_stop() {
    let (dir, clock, mut j) = fresh();
    assert_eq!(j.shown(&shown(1)).unwrap(), 1);
    assert_eq!(j.shown(&shown(2)).unwrap(), 2);
    j.close().unwrap();
    let mut j = open(dir.path(), &clock);
    assert_eq!(j.shown(&shown(3)).unwrap(), 3);
    // The files as they lie while the journal is open are what a crash leaves.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["journal.db", "journal.db-wal"] {
        fs::copy(dir.path().join(name), crashed.path().join(name)).unwrap();
    }
    let mut after = open(crashed.path(), &clock);
    assert_eq!(after.shown(&shown(4)).unwrap(), 1_004);
    drop(after);
    assert_eq!(open(crashed.path(), &clock).shown(&shown(5)).unwrap(), 1_005);
}

#[test]
fn the_last_press_within_two_seconds_of_the_first_wins_and_later_ones_do_not_count() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let a = j.press(&thumb(id, true)).unwrap();
    clock.pass(1_500);
    let b = j.press(&thumb(id, false)).unwrap();
    clock.pass(500);
    let c = j.press(&Press::new(Some(id), PressKind::Correction { class: 2 }, Source::Stdin)).unwrap();
    clock.pass(1);
    let d = j.press(&thumb(id, true)).unwrap();
    let status: Vec<_> = j.reader().presses().unwrap().iter().map(|p| p.status).collect();
    assert_eq!(
        status,
        [
            PressStatus::Superseded { by: b },
            PressStatus::Superseded { by: c },
            PressStatus::Effective,
            PressStatus::Late { first: c },
        ]
    );
    assert_eq!(ids(&j), [c]);
    assert!(a < b && c < d);
}

#[test]
fn raters_stand_side_by_side_and_each_changes_and_takes_back_only_what_they_said() {
    let (dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let by =
        |source: &Source, badge, up| Press { badge, ..Press::new(Some(id), PressKind::Thumb { up }, source.clone()) };
    let pad = Source::Pad("cafe".into());
    let raters =
        [(Source::Web, None), (Source::Stdin, None), (pad.clone(), None), (pad.clone(), Some(7)), (pad, Some(8))];
    let first: Vec<_> = raters.iter().map(|(s, badge)| j.press(&by(s, *badge, true)).unwrap()).collect();
    assert_eq!(ids(&j), first);
    clock.pass(1_000);
    let changed = j.press(&by(&raters[3].0, Some(7), false)).unwrap();
    assert_eq!(ids(&j), [first[0], first[1], first[2], first[4], changed]);
    clock.pass(5_000);
    let late = j.press(&by(&raters[1].0, None, false)).unwrap();
    let undo_of = |(source, badge): &(Source, Option<u16>)| Press { badge: *badge, ..undo(None, source.clone()) };
    j.press(&undo_of(&raters[4])).unwrap();
    j.press(&undo_of(&raters[2])).unwrap();
    assert_eq!(ids(&j), [first[0], first[1], changed]);
    // Whoever took theirs back may say it anew, and nobody else is asked.
    let again = j.press(&by(&raters[4].0, Some(8), false)).unwrap();
    assert_eq!(ids(&j), [first[0], first[1], changed, again]);
    let line = j.reader().presses().unwrap().into_iter().find(|p| p.press_id == late).unwrap();
    assert_eq!((line.status, line.rater().to_string()), (PressStatus::Late { first: first[1] }, "stdin".into()));
    assert_eq!(j.reader().presses().unwrap()[3].rater().to_string(), "pad:cafe badge 7");
    assert!(j.reader().verify().unwrap().is_sound());
    // The same from an export, which is of version 3, and after a restart.
    let export = export_of(j.reader());
    assert!(String::from_utf8_lossy(&export).contains("hone.journal/3"));
    let counting = j.reader().effective_presses().unwrap();
    let (_other, _clock, mut copy) = fresh();
    copy.import(&mut &export[..]).unwrap();
    assert_eq!(copy.reader().effective_presses().unwrap(), counting);
    assert_eq!(export_of(copy.reader()), export);
    j.close().unwrap();
    assert_eq!(open(dir.path(), &clock).reader().effective_presses().unwrap(), counting);
}

#[test]
fn a_confirmed_press_counts_beside_the_plain_one_it_comes_too_late_to_replace() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let held = |up| Press { confirmed: true, ..thumb(id, up) };
    j.press(&thumb(id, true)).unwrap();
    clock.pass(1_000);
    // Within two seconds the last word is the word, whatever its emphasis.
    let hold = j.press(&held(false)).unwrap();
    assert_eq!(ids(&j), [hold]);
    j.press(&undo(None, Source::Stdin)).unwrap();
    let click = j.press(&thumb(id, true)).unwrap();
    clock.pass(3_000);
    let hold = j.press(&held(false)).unwrap();
    assert_eq!(ids(&j), [click, hold]);
    clock.pass(1_500);
    let other_hold = j.press(&held(true)).unwrap();
    assert_eq!(ids(&j), [click, other_hold]);
    // No third: neither a plain one nor another with emphasis.
    clock.pass(3_000);
    j.press(&thumb(id, false)).unwrap();
    j.press(&held(false)).unwrap();
    assert_eq!(ids(&j), [click, other_hold]);
    j.press(&undo(None, Source::Stdin)).unwrap();
    assert_eq!(ids(&j), [click], "an undo takes back the newest of the two");
    // A plain press is no afterthought to a confirmed one.
    let next = j.shown(&shown(2)).unwrap();
    let hold = j.press(&Press { confirmed: true, ..thumb(next, true) }).unwrap();
    clock.pass(3_000);
    j.press(&thumb(next, false)).unwrap();
    assert_eq!(ids(&j), [click, hold]);
    // Times that cannot be compared are too late to replace, and no reason to lose evidence.
    let last = j.shown(&shown(3)).unwrap();
    let unknown = |confirmed| Press { age: Age::Unknown, confirmed, ..thumb(last, true) };
    let both = [j.press(&unknown(false)).unwrap(), j.press(&unknown(true)).unwrap()];
    assert_eq!(ids(&j)[2..], both);
}

#[test]
fn a_press_without_the_mark_is_settled_as_versions_1_and_2_settled_it() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    // Plain presses of one rater are of version 1, however many.
    for _ in 0..3 {
        j.press(&thumb(id, true)).unwrap();
        clock.pass(1_500);
    }
    let version_1 = String::from_utf8(export_of(j.reader())).unwrap();
    assert!(version_1.contains("hone.journal/1"));
    // Another source and a confirmed press as a journal of version 2 holds them: without the mark.
    let others = [
        Press::new(Some(id), PressKind::Thumb { up: false }, Source::Web),
        Press { confirmed: true, ..thumb(id, true) },
    ];
    let mut resolver = resolve::Resolver::default();
    let stamp = |ms: u64| Stamp { boot_id: "b".into(), mono_ns: ms * 1_000_000, wall_ms: 0 };
    let unmarked = |press: &Press| press.to_body(None, true, false).unwrap();
    resolver.press(PressId(1), &stamp(0), &unmarked(&thumb(id, true)));
    resolver.press(PressId(2), &stamp(1_000), &unmarked(&others[0]));
    resolver.press(PressId(3), &stamp(9_000), &unmarked(&others[1]));
    let expected =
        [PressStatus::Superseded { by: PressId(2) }, PressStatus::Effective, PressStatus::Late { first: PressId(2) }];
    assert_eq!(resolver.finish().into_values().collect::<Vec<_>>(), expected);
}

#[test]
fn a_press_is_timed_by_its_age_and_not_by_its_arrival() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    clock.pass(60_000);
    // Both arrive together after the pad was out of reach; they were made ten seconds apart.
    let first = j.press(&Press { age: Age::Exact { ms: 20_000 }, ..thumb(id, true) }).unwrap();
    j.press(&Press { age: Age::Exact { ms: 10_000 }, ..thumb(id, false) }).unwrap();
    j.press(&Press { age: Age::Unknown, ..thumb(id, false) }).unwrap();
    assert_eq!(ids(&j), [first]);
}

#[test]
fn a_jump_of_the_wall_clock_changes_nothing() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    j.press(&thumb(id, true)).unwrap();
    clock.0.lock().unwrap().wall_ms -= 40_000_000_000;
    let second = j.press(&thumb(id, false)).unwrap();
    assert_eq!(ids(&j), [second]);
}

#[test]
fn presses_of_another_run_of_the_machine_never_replace() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let first = j.press(&thumb(id, true)).unwrap();
    clock.0.lock().unwrap().boot_id = "boot-2".into();
    j.press(&thumb(id, false)).unwrap();
    assert_eq!(ids(&j), [first]);
}

#[test]
fn orphans_are_stored_and_never_count() {
    let (_dir, _clock, mut j) = fresh();
    j.press(&thumb(5, true)).unwrap();
    j.press(&Press::new(None, PressKind::NotSure, Source::Gpio)).unwrap();
    for n in 1..=5 {
        assert_eq!(j.shown(&shown(n)).unwrap(), n);
    }
    assert_eq!(ids(&j), []);
    let stats = j.reader().stats().unwrap();
    assert_eq!((stats.orphans, stats.effective), (2, 0));
    assert!(j.reader().verify().unwrap().is_sound());
}

#[test]
fn undo_takes_back_the_newest_press_of_its_source_then_the_one_before() {
    let (_dir, _clock, mut j) = fresh();
    let shown: Vec<u32> = (1..=3).map(|n| j.shown(&shown(n)).unwrap()).collect();
    let a = j.press(&thumb(shown[0], true)).unwrap();
    let b = j.press(&thumb(shown[1], true)).unwrap();
    let web = j.press(&Press::new(Some(shown[2]), PressKind::NotSure, Source::Web)).unwrap();
    j.press(&undo(None, Source::Stdin)).unwrap();
    assert_eq!(ids(&j), [a, web]);
    j.press(&undo(None, Source::Stdin)).unwrap();
    assert_eq!(ids(&j), [web]);
    let idle = j.press(&undo(None, Source::Stdin)).unwrap();
    assert_eq!(ids(&j), [web]);
    j.press(&undo(Some(web), Source::Stdin)).unwrap();
    assert_eq!(ids(&j), []);
    let presses = j.reader().presses().unwrap();
    assert!(presses.iter().any(|p| p.press_id == idle && p.status == PressStatus::Undo { of: None }));
    // Nothing about the prediction counts any more, so a new press about it does.
    let again = j.press(&thumb(shown[1], false)).unwrap();
    assert_eq!(ids(&j), [again]);
    assert_ne!(again, b);
}

#[test]
fn undoing_a_replacement_does_not_bring_the_replaced_press_back() {
    let (_dir, _clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    j.press(&thumb(id, false)).unwrap();
    j.press(&thumb(id, true)).unwrap();
    j.press(&undo(None, Source::Stdin)).unwrap();
    j.press(&undo(None, Source::Stdin)).unwrap();
    assert_eq!(ids(&j), []);
}

fn pad_thumb(seq: u32, id: u32) -> PadPress {
    PadPress { seq, event: PadEvent::Press(thumb(id, true)) }
}

#[test]
fn a_pads_events_are_recorded_once_whatever_is_replayed_and_a_gap_ends_the_run() {
    let (dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let epoch = j.new_epoch("beef").unwrap();
    assert_eq!(j.reader().mark("beef", epoch).unwrap(), 1);
    let ahead = j.pad_commit("beef", epoch, &[pad_thumb(2, id)]).unwrap();
    assert_eq!((ahead.next, ahead.recorded.len()), (1, 0));
    let run = [pad_thumb(1, id), pad_thumb(2, id), pad_thumb(4, id)];
    assert_eq!(j.pad_commit("beef", epoch, &run).unwrap().next, 3);
    assert_eq!(j.pad_commit("beef", epoch, &run).unwrap(), PadCommit { next: 3, recorded: vec![] });
    j.close().unwrap();
    let mut j = open(dir.path(), &clock);
    assert_eq!(j.pad_commit("beef", epoch, &[pad_thumb(2, id), pad_thumb(3, id)]).unwrap().recorded.len(), 1);
    assert_eq!(j.pad_commit("beef", epoch, &run).unwrap().next, 5);
    assert_eq!(j.reader().presses().unwrap().len(), 4);
    assert!(j.reader().presses().unwrap().iter().all(|p| p.source == Source::Pad("beef".into())));
    assert!(j.reader().verify().unwrap().is_sound());
}

#[test]
fn a_pad_counts_only_in_the_epoch_assigned_to_it() {
    let (_dir, _clock, mut j) = fresh();
    let refused = j.pad_commit("aa", 1, &[pad_thumb(1, 1)]).unwrap_err();
    assert!(matches!(refused, StoreError::Epoch { current: None, .. }));
    let first = j.new_epoch("aa").unwrap();
    let second = j.new_epoch("aa").unwrap();
    assert_ne!(second, first);
    let refused = j.pad_commit("aa", first, &[pad_thumb(1, 1)]).unwrap_err();
    assert!(matches!(refused, StoreError::Epoch { current: Some(c), .. } if c == second));
    let (_other_dir, _other_clock, mut other) = fresh();
    assert_ne!(other.new_epoch("aa").unwrap(), first, "another host gives other names");
    j.adopt_epoch("bb", 7, 31).unwrap();
    assert_eq!(j.pad_commit("bb", 7, &[pad_thumb(30, 1), pad_thumb(31, 1)]).unwrap().next, 32);
    assert!(matches!(j.adopt_epoch("bb", 7, 1), Err(StoreError::Epoch { .. })));
}

#[test]
fn a_pad_renumbered_by_another_host_goes_on_and_coming_back_repeats_nothing() {
    let (_dir, _clock, mut j) = fresh();
    let here = j.new_epoch("aa").unwrap();
    assert_eq!(j.pad_commit("aa", here, &[pad_thumb(1, 1), pad_thumb(2, 1)]).unwrap().next, 3);
    j.adopt_epoch("aa", 900, 5).unwrap();
    assert_eq!(j.pad_commit("aa", 900, &[pad_thumb(5, 1)]).unwrap().next, 6);
    j.adopt_epoch("aa", here, 1).unwrap();
    let again = j.pad_commit("aa", here, &[pad_thumb(1, 1), pad_thumb(2, 1), pad_thumb(3, 1)]).unwrap();
    assert_eq!((again.next, again.recorded.len()), (4, 1));
}

#[test]
fn a_gap_the_host_declares_moves_the_mark_past_numbers_that_will_never_come() {
    let (_dir, _clock, mut j) = fresh();
    let epoch = j.new_epoch("aa").unwrap();
    let gap = PadPress { seq: 9, event: PadEvent::Gap { missing: 8 } };
    let done = j.pad_commit("aa", epoch, &[gap, pad_thumb(10, 1), pad_thumb(12, 1)]).unwrap();
    assert_eq!((done.next, done.recorded.len()), (11, 1));
}

#[test]
fn an_unfit_event_leaves_nothing_of_its_run_behind() {
    let (_dir, _clock, mut j) = fresh();
    let epoch = j.new_epoch("aa").unwrap();
    let bad =
        PadPress { seq: 2, event: PadEvent::Press(Press::new(Some(1), PressKind::Stars { stars: 6 }, Source::Web)) };
    assert_eq!(j.pad_commit("aa", epoch, &[pad_thumb(1, 1), bad]).unwrap_err().class(), Class::Invalid);
    assert_eq!(j.reader().mark("aa", epoch).unwrap(), 1);
    assert_eq!(j.reader().presses().unwrap(), []);
    assert_eq!(j.pad_commit("aa", epoch, &[pad_thumb(1, 1)]).unwrap().next, 2);
}

#[test]
fn values_that_cannot_be_learned_from_are_refused_by_field() {
    let (_dir, _clock, mut j) = fresh();
    let mut field = |change: fn(&mut Shown)| {
        let mut s = shown(1);
        change(&mut s);
        match j.shown(&s) {
            Err(StoreError::Unfit { field, .. }) => field,
            Err(StoreError::Blob { .. }) => "blob",
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(|s| s.example.feature[1] = f32::NAN), "feature");
    assert_eq!(field(|s| s.example.feature[1] = 70_000.0), "feature");
    assert_eq!(field(|s| s.example.feature.clear()), "feature");
    assert_eq!(field(|s| s.example.logits[0] = f32::INFINITY), "logits");
    assert_eq!(field(|s| s.mu = 0.0), "mu");
    assert_eq!(field(|s| s.mu = f32::NAN), "mu");
    assert_eq!(field(|s| s.p = 1.5), "p");
    assert_eq!(field(|s| s.example.model_digest.clear()), "model_digest");
    assert_eq!(field(|s| s.example.inputs = vec![Digest([7; 32])]), "blob");
    assert_eq!(j.shown(&shown(1)).unwrap(), 1);
}

#[test]
fn inference_records_are_grouped_by_the_second_and_keep_their_place_before_a_press() {
    let (dir, clock, mut j) = fresh();
    let inference = Inference { model_digest: "m".into(), adapter_id: None, class: 0, label: "a".into(), p: 0.5 };
    let outside = || Reader::open(&StateDir::at(dir.path())).unwrap().stats().unwrap().records;
    for _ in 0..9 {
        j.inference(&inference).unwrap();
        clock.pass(100);
    }
    assert_eq!(outside(), 0);
    clock.pass(100);
    j.inference(&inference).unwrap();
    assert_eq!(outside(), 10);
    j.inference(&inference).unwrap();
    j.press(&thumb(1, true)).unwrap();
    assert_eq!(outside(), 12);
    j.inference(&inference).unwrap();
    j.close().unwrap();
    assert_eq!(outside(), 13);
    let records = Reader::open(&StateDir::at(dir.path())).unwrap().list(&Filter::default()).unwrap();
    assert_eq!((records[10].kind, records[11].kind), (Kind::Inference, Kind::Press));
    assert_eq!(records[1].mono_ns - records[0].mono_ns, 100_000_000);
}

#[test]
fn what_a_follower_is_told_adds_up_to_the_presses_that_count_whatever_happens_between_its_looks() {
    let (mut vanished, mut appeared) = (0, 0);
    for seed in 1..=20u64 {
        let (dir, clock, mut j) = fresh();
        // Knuth's linear congruential generator, its high bits.
        let mut state = seed;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (mut follower, mut sum) = (Follower::default(), Vec::<EffectivePress>::new());
        let sources = [Source::Stdin, Source::Gpio];
        let mut predictions = vec![j.shown(&shown(0)).unwrap()];
        let mut past = Vec::new();
        for turn in 0..60u32 {
            for _ in 0..below(4) {
                clock.pass([100, 3_000][below(2)]);
                let source = sources[below(2)].clone();
                let about = predictions[predictions.len() - 1 - below(predictions.len().min(3))];
                match below(8) {
                    0 => predictions.push(j.shown(&shown(turn)).unwrap()),
                    1 => drop(j.press(&undo(None, source)).unwrap()),
                    2 => drop(j.note("something else").unwrap()),
                    3 if turn % 10 == 9 => drop(j.redact(&Redact::Prediction(about)).unwrap()),
                    4 if turn % 20 == 19 => drop(j.redact(&Redact::Source(source)).unwrap()),
                    _ => {
                        let (badge, confirmed) = ([None, Some(7)][below(2)], below(4) == 0);
                        let press = Press { source, badge, confirmed, ..thumb(about, below(2) == 0) };
                        j.press(&press).unwrap();
                    }
                }
            }
            if turn % 17 == 16 {
                // The follower outlives the connection.
                j.close().unwrap();
                j = open(dir.path(), &clock);
            }
            let changes = j.reader().changes(&mut follower).unwrap();
            if turn % 10 == 9 {
                // There may have been a redaction, after which the past is another.
                past.clear();
            }
            (vanished, appeared) = (vanished + changes.vanished.len(), appeared + changes.appeared.len());
            sum.retain(|p| !changes.vanished.contains(&p.press_id));
            sum.extend(changes.appeared);
            sum.sort_by_key(|p| p.press_id);
            assert_eq!(sum, j.reader().effective_presses().unwrap(), "seed {seed}, turn {turn}");
            assert_eq!(j.reader().changes(&mut follower).unwrap(), Changes::default());
            past.push((follower.at(), sum.clone()));
        }
        // Later presses and undos change nothing about what counted then.
        for (seq, then) in past {
            assert_eq!(j.reader().effective_presses_at(seq).unwrap(), then, "seed {seed}, record {seq}");
        }
    }
    assert!(vanished > 100 && appeared > 300, "{vanished} vanished, {appeared} appeared");
}

#[test]
fn a_follower_of_another_journal_reads_this_one_from_the_start() {
    let (_one, _clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let kept = j.press(&thumb(id, true)).unwrap();
    let mut follower = Follower::default();
    assert_eq!(j.reader().changes(&mut follower).unwrap().appeared[0].press_id, kept);

    let (_other, _clock, mut j) = fresh();
    j.note("its press has another number").unwrap();
    let id = j.shown(&shown(2)).unwrap();
    let here = j.press(&thumb(id, false)).unwrap();
    let changes = j.reader().changes(&mut follower).unwrap();
    assert_eq!((changes.vanished, changes.appeared[0].press_id), (vec![kept], here));
    assert_eq!(changes.appeared.len(), 1);
}

#[test]
fn list_filters_by_kind_source_prediction_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let j = one_of_everything(dir.path(), &TestClock::new());
    let count = |filter: Filter| j.reader().list(&filter).unwrap().len();
    assert_eq!(count(Filter { kind: Some(Kind::Shown), ..Filter::default() }), 3);
    assert_eq!(count(Filter { source: Some(Source::Web), ..Filter::default() }), 2);
    assert_eq!(count(Filter { prediction_id: Some(1), ..Filter::default() }), 4);
    let all = j.reader().list(&Filter::default()).unwrap();
    let newest = j.reader().list(&Filter { limit: Some(2), ..Filter::default() }).unwrap();
    assert_eq!(newest, all[all.len() - 2..]);
    assert_eq!(count(Filter { after_seq: 4, ..Filter::default() }), all.len() - 4);
    assert!(all.iter().zip(1..).all(|(r, n)| r.seq == n));
}

/// Changes the journal behind its back.
fn tamper(dir: &Path, sql: &str) {
    let conn = Connection::open(dir.join("journal.db")).unwrap();
    conn.execute_batch(
        "DROP TRIGGER IF EXISTS records_are_never_deleted; DROP TRIGGER IF EXISTS records_are_only_redacted;",
    )
    .unwrap();
    conn.execute_batch(sql).unwrap();
}

#[test]
fn every_single_changed_byte_of_a_payload_is_noticed() {
    let (dir, _clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let press = j.press(&thumb(id, true)).unwrap();
    j.note("after it").unwrap();
    let payload = j.reader().list(&Filter { kind: Some(Kind::Press), ..Filter::default() }).unwrap()[0].payload.clone();
    j.close().unwrap();
    let payload = payload.unwrap().into_bytes();
    assert!(payload.len() > 100);
    let reader = Reader::open(&StateDir::at(dir.path())).unwrap();
    tamper(dir.path(), "");
    let conn = Connection::open(dir.path().join("journal.db")).unwrap();
    conn.execute_batch("PRAGMA synchronous=OFF").unwrap();
    let put = |bytes: &[u8]| {
        conn.execute(
            "UPDATE records SET payload=CAST(? AS TEXT) WHERE seq=?",
            rusqlite::params![bytes, press.0 as i64],
        )
        .unwrap();
    };
    for at in 0..payload.len() {
        let mut changed = payload.clone();
        // Alternately a neighbouring character and a byte that is no UTF-8.
        changed[at] ^= if at % 2 == 0 { 1 } else { 0x80 };
        put(&changed);
        let report = reader.verify().unwrap();
        assert!(report.faults.contains(&Fault::Digest { seq: press.0 }), "byte {at}: {:?}", report.faults);
    }
    put(&payload);
    assert!(reader.verify().unwrap().is_sound());
}

#[test]
fn a_changed_header_a_missing_record_and_a_vanished_payload_are_noticed() {
    let faults = |sql: &str| {
        let dir = tempfile::tempdir().unwrap();
        one_of_everything(dir.path(), &TestClock::new()).close().unwrap();
        tamper(dir.path(), sql);
        Reader::open(&StateDir::at(dir.path())).unwrap().verify().unwrap().faults
    };
    assert_eq!(faults(""), []);
    for column in
        ["kind='note'", "boot_id='x'", "mono_ns=mono_ns+1", "wall_ms=0", "chain=zeroblob(32)", "digest=zeroblob(32)"]
    {
        let found = faults(&format!("UPDATE records SET {column} WHERE seq=6"));
        assert!(found.contains(&Fault::Chain { seq: 6 }), "{column}: {found:?}");
    }
    assert!(faults("PRAGMA foreign_keys=OFF; DELETE FROM records WHERE seq=6").contains(&Fault::Gap { seq: 7 }));
    assert!(faults("UPDATE records SET payload=NULL WHERE seq=4").contains(&Fault::Vanished { seq: 4 }));
    let press = faults("PRAGMA foreign_keys=OFF; DELETE FROM shown WHERE prediction_id=1");
    assert!(press.iter().any(|f| matches!(f, Fault::Derived { .. })), "{press:?}");
    let mark = faults("UPDATE mark SET next=1");
    assert!(mark.iter().any(|f| matches!(f, Fault::Derived { what, .. } if what.contains("mark"))), "{mark:?}");
}

#[test]
fn a_missing_and_a_damaged_blob_are_noticed_and_a_damaged_one_is_not_read() {
    let (dir, _clock, mut j) = fresh();
    let blobs = Blobs::new(j.state());
    let digest = blobs.put(b"what the camera saw").unwrap();
    assert_eq!(blobs.put(b"what the camera saw").unwrap(), digest);
    let mut s = shown(1);
    s.example.inputs = vec![digest];
    j.shown(&s).unwrap();
    assert_eq!(blobs.path(&digest), dir.path().join("blobs").join(&digest.to_string()[..2]).join(digest.to_string()));
    assert!(j.reader().verify().unwrap().is_sound());
    fs::write(blobs.path(&digest), b"what the camera paw").unwrap();
    assert!(matches!(blobs.get(&digest), Err(StoreError::Blob { what: "damaged", .. })));
    assert_eq!(j.reader().verify().unwrap().faults, [Fault::Blob { seq: 1, digest, what: "damaged" }]);
    assert_eq!(blobs.put(b"what the camera saw").unwrap(), digest);
    assert!(j.reader().verify().unwrap().is_sound());
    fs::remove_file(blobs.path(&digest)).unwrap();
    assert_eq!(j.reader().verify().unwrap().faults, [Fault::Blob { seq: 1, digest, what: "missing" }]);
}

#[test]
fn redaction_removes_every_trace_of_the_content_and_the_chain_still_verifies() {
    let (dir, clock, mut j) = fresh();
    let digest = Blobs::new(j.state()).put(b"a face").unwrap();
    let mut s = shown(1);
    s.label = "a-secret-label".into();
    s.example.inputs = vec![digest];
    let secret = j.shown(&s).unwrap();
    let open_one = j.shown(&shown(2)).unwrap();
    j.press(&thumb(secret, true)).unwrap();
    let kept = j.press(&thumb(open_one, true)).unwrap();
    let before = j.reader().verify().unwrap().chain;
    assert_eq!(j.redact(&Redact::Prediction(secret)).unwrap(), Redacted { records: 2, blobs: 1 });
    assert_eq!(j.redact(&Redact::Prediction(secret)).unwrap(), Redacted::default());
    assert_eq!(ids(&j), [kept]);
    assert_eq!(j.reader().show(secret).unwrap(), None);
    let report = j.reader().verify().unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!(report.redacted, 2);
    assert_ne!(report.chain, before);
    for name in ["journal.db", "journal.db-wal"] {
        let bytes = fs::read(dir.path().join(name)).unwrap_or_default();
        assert!(!bytes.windows(14).any(|w| w == b"a-secret-label"), "{name} still holds it");
    }
    // The highest prediction may be redacted too, and its id is not given out again.
    assert_eq!(j.redact(&Redact::Prediction(open_one)).unwrap().records, 2);
    j.close().unwrap();
    assert_eq!(open(dir.path(), &clock).shown(&shown(3)).unwrap(), 3);
}

#[test]
fn redacting_a_source_leaves_what_it_undid_undone_and_its_pads_mark_in_place() {
    let (_dir, clock, mut j) = fresh();
    let id = j.shown(&shown(1)).unwrap();
    let epoch = j.new_epoch("cafe").unwrap();
    let stdin = j.press(&thumb(id, true)).unwrap();
    let event = PadEvent::Press(undo(Some(stdin), Source::Stdin));
    j.pad_commit("cafe", epoch, &[PadPress { seq: 1, event }]).unwrap();
    clock.pass(10_000);
    let later = j.press(&thumb(id, false)).unwrap();
    assert_eq!(ids(&j), [later]);
    assert_eq!(j.redact(&Redact::Source(Source::Pad("cafe".into()))).unwrap().records, 1);
    assert_eq!(ids(&j), [later]);
    let replay = PadPress { seq: 1, event: PadEvent::Press(thumb(id, true)) };
    assert_eq!(j.pad_commit("cafe", epoch, &[replay]).unwrap(), PadCommit { next: 2, recorded: vec![] });
    assert!(j.reader().verify().unwrap().is_sound());
}

#[test]
fn export_import_export_is_byte_identical_and_what_counts_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let j = one_of_everything(dir.path(), &clock);
    let first = export_of(j.reader());
    let other = tempfile::tempdir().unwrap();
    let mut copy = open(other.path(), &clock);
    assert_eq!(copy.import(&mut &first[..]).unwrap(), j.reader().stats().unwrap().records);
    assert_eq!(export_of(copy.reader()), first);
    assert_eq!(copy.reader().effective_presses().unwrap(), j.reader().effective_presses().unwrap());
    assert_eq!(copy.reader().mark("0a1b", 1).unwrap(), 3);
    copy.close().unwrap();
    let reader = Reader::open(&StateDir::at(other.path())).unwrap();
    assert_eq!(export_of(&reader), first);
    // The blobs are not part of an export; that they are missing is said.
    let faults = reader.verify().unwrap().faults;
    assert!(matches!(faults[..], [Fault::Blob { what: "missing", .. }]), "{faults:?}");
    drop(reader);
    let mut copy = open(other.path(), &clock);
    assert_eq!(copy.shown(&shown(1)).unwrap(), 1_004, "the exporting journal may have gone on");
    let refused = copy.import(&mut &first[..]).unwrap_err();
    assert!(matches!(refused, StoreError::NotEmpty { .. }));
}

#[test]
fn an_import_with_any_line_changed_cut_or_doubled_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = String::from_utf8(export_of(one_of_everything(dir.path(), &TestClock::new()).reader())).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (_dir, _clock, mut j) = fresh();
    let mut refuse = |bytes: &[u8], what: &str| {
        let e = j.import(&mut &*bytes).expect_err(what);
        assert_eq!(e.class(), Class::Invalid, "{what}: {e}");
        assert!(matches!(e, StoreError::Import { .. }), "{what}: {e}");
        assert_eq!(j.reader().stats().unwrap().records, 0);
    };
    for at in 0..lines.len() {
        let join = |l: Vec<&str>| l.iter().map(|l| format!("{l}\n")).collect::<String>().into_bytes();
        let without = [&lines[..at], &lines[at + 1..]].concat();
        refuse(&join(without), &format!("without line {}", at + 1));
        let doubled = [&lines[..=at], &lines[at..]].concat();
        refuse(&join(doubled), &format!("line {} twice", at + 1));
        let spaced = lines[at].replacen(':', ": ", 1);
        refuse(
            &join([&lines[..at], &[spaced.as_str()], &lines[at + 1..]].concat()),
            &format!("space in line {}", at + 1),
        );
    }
    for cut in (0..text.len()).step_by(97) {
        refuse(&text.as_bytes()[..cut], &format!("cut at {cut}"));
    }
    for at in (0..text.len()).step_by(13) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        // Marks and epochs are not in the chain: another number there is another journal, not a damaged one.
        let line = text[..at].matches('\n').count();
        if (1..lines.len() - 3).contains(&line) {
            refuse(&bytes, &format!("byte {at}"));
        }
    }
    assert_eq!(j.import(&mut text.as_bytes()).unwrap() as usize, lines.len() - 4);
}

#[test]
fn the_export_of_version_1_stays_readable() {
    let golden = include_bytes!("golden-v1.jsonl");
    let (_dir, _clock, mut j) = fresh();
    j.import(&mut &golden[..]).unwrap();
    assert_eq!(export_of(j.reader()), golden);
    let signals: Vec<_> = j.reader().effective_presses().unwrap().iter().map(|p| p.signal).collect();
    assert_eq!(signals, [Signal::Thumb { up: true }, Signal::Demonstration { class: 2 }]);
    assert_eq!(j.reader().effective_presses().unwrap()[0].example.feature, [0.5, -1.25, 1.0]);
    // And this version still writes it, byte for byte.
    let dir = tempfile::tempdir().unwrap();
    let ours = one_of_everything(dir.path(), &TestClock::new());
    assert_eq!(String::from_utf8(export_of(ours.reader())).unwrap(), String::from_utf8_lossy(golden));
}

#[test]
fn what_is_new_and_nothing_else_makes_an_export_version_2_and_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = open(dir.path(), &TestClock::new());
    let first = j.shown(&shown(1)).unwrap();
    j.press(&thumb(first, false)).unwrap();
    assert!(export_of(j.reader()).starts_with(b"{\"epochs\":0,\"marks\":0,\"next_prediction_id\":2,"));
    let version = |j: &Journal| String::from_utf8(export_of(j.reader())).unwrap().contains("hone.journal/2");
    assert!(!version(&j));
    let second = j.offered(&shown(0), first).unwrap();
    assert!(version(&j));
    j.press(&thumb(second, true)).unwrap();
    for change in [
        ClassChange::Add { name: "a \"loop\"".into() },
        ClassChange::Rename { class: 1, name: "ä".into() },
        ClassChange::Merge { from: 0, into: 1 },
    ] {
        j.classes(&ClassesEvent { base_digest: "5f1c".into(), change }).unwrap();
    }
    let golden = export_of(j.reader());
    let (_dir, _clock, mut again) = fresh();
    again.import(&mut &golden[..]).unwrap();
    assert_eq!(export_of(again.reader()), golden);
    let after: Vec<_> = again.reader().effective_presses().unwrap().iter().map(|p| p.after).collect();
    assert_eq!(after, [None, Some(first)]);
    // A first line that says less than the records need is refused.
    let less = String::from_utf8(golden).unwrap().replace("hone.journal/2", "hone.journal/1");
    let (_dir, _clock, mut refused) = fresh();
    let e = refused.import(&mut less.as_bytes()).unwrap_err();
    assert!(e.to_string().contains("need"), "{e}");
    // A runner-up of nothing, a class without a name.
    assert!(j.offered(&shown(0), 99).is_err());
    let nameless = ClassesEvent { base_digest: "5f1c".into(), change: ClassChange::Add { name: " ".into() } };
    assert!(j.classes(&nameless).is_err());
}

#[test]
fn the_chain_is_what_the_byte_ruler_says() {
    let (_dir, _clock, mut j) = fresh();
    j.note("hello").unwrap();
    let r = j.reader().list(&Filter::default()).unwrap().remove(0);
    assert_eq!(r.payload.as_deref(), Some(r#"{"text":"hello"}"#));
    let mut bytes = vec![0u8; 32];
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(r.mono_ns.to_le_bytes());
    bytes.extend(r.wall_ms.to_le_bytes());
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(b"note");
    bytes.extend(6u32.to_le_bytes());
    bytes.extend(b"boot-1");
    bytes.extend(Digest::of(br#"{"text":"hello"}"#).0);
    assert_eq!(r.chain, Digest::of(&bytes));
}

#[test]
fn a_full_disk_stops_acknowledgements_loses_nothing_and_is_got_over() {
    let dir = tempfile::tempdir().unwrap();
    let lock = StateDir::at(dir.path()).lock().unwrap();
    let mut j = Journal::open_with(lock, Options { max_pages: Some(40), ..Options::default() }).unwrap();
    let id = j.shown(&shown(1)).unwrap();
    let inference = Inference { model_digest: "m".into(), adapter_id: None, class: 0, label: "a".into(), p: 0.5 };
    let mut acknowledged = Vec::new();
    let full = loop {
        j.inference(&inference).unwrap();
        match j.press(&Press::new(Some(id), PressKind::NotSure, Source::Stdin)) {
            Ok(press) => acknowledged.push(press),
            Err(e) => break e,
        }
        assert!(acknowledged.len() < 10_000, "the bound was never reached");
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert_eq!(full.class(), Class::Store);
    for _ in 0..3 {
        assert!(matches!(j.press(&thumb(id, true)), Err(StoreError::Full { .. })));
    }
    let stored = |r: &Reader| r.presses().unwrap().iter().map(|p| p.press_id).collect::<Vec<_>>();
    assert_eq!(stored(j.reader()), acknowledged);
    assert!(j.reader().verify().unwrap().is_sound());
    drop(j);
    let mut j = Journal::open(StateDir::at(dir.path()).lock().unwrap()).unwrap();
    assert_eq!(stored(j.reader()), acknowledged);
    acknowledged.push(j.press(&thumb(id, true)).unwrap());
    assert_eq!(stored(j.reader()), acknowledged);
    assert!(j.reader().verify().unwrap().is_sound());
}

#[test]
fn a_journal_that_lost_what_it_acknowledged_says_so_instead_of_going_on() {
    let (dir, _clock, mut j) = fresh();
    j.note("one").unwrap();
    j.note("two").unwrap();
    tamper(
        dir.path(),
        "DELETE FROM records WHERE seq=2; CREATE TRIGGER stop BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'no'); END;",
    );
    let e = j.note("three").unwrap_err();
    assert!(matches!(&e, StoreError::Damaged { what, .. } if what.contains("record 2")), "{e}");
    assert!(matches!(j.note("four"), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_second_writer_is_told_to_try_again_while_readers_come_and_go() {
    let (dir, _clock, mut j) = fresh();
    let state = StateDir::at(dir.path());
    let e = state.lock_within(std::time::Duration::ZERO).unwrap_err();
    assert_eq!(e.class(), Class::TryAgain);
    let reader = Reader::open(&state).unwrap();
    j.note("while it is read").unwrap();
    assert_eq!(reader.stats().unwrap().records, 1);
    drop(reader);
    j.note("and after").unwrap();
    assert_eq!(Reader::open(&state).unwrap().stats().unwrap().records, 2);
}

#[test]
fn reading_where_nothing_is_and_a_file_that_is_no_journal_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("absent"));
    let missing = Reader::open(&state).err().unwrap();
    assert!(matches!(missing, StoreError::State(StateError::Missing { .. })));
    let lock = state.lock().unwrap();
    // As a kill leaves it between the first page and the tables: without anything, or with a page in the other mode.
    fs::write(state.journal_db(), b"").unwrap();
    assert!(matches!(Reader::open(&state), Err(StoreError::State(StateError::Missing { .. }))));
    Connection::open(state.journal_db()).unwrap().execute_batch("PRAGMA journal_mode=WAL").unwrap();
    assert!(matches!(Reader::open(&state), Err(StoreError::State(StateError::Missing { .. }))));
    fs::write(state.journal_db(), b"not a database, but long enough to be looked at by one who expects it to be")
        .unwrap();
    let e = Journal::open(lock).err().unwrap();
    assert!(matches!(e, StoreError::NotAJournal { .. }), "{e}");
    let e = Reader::open(&state).err().unwrap();
    assert!(matches!(e, StoreError::NotAJournal { .. }), "{e}");
    fs::remove_file(state.journal_db()).unwrap();
    Connection::open(state.journal_db()).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(matches!(Journal::open(state.lock().unwrap()), Err(StoreError::NotAJournal { .. })));
}

#[test]
fn a_journal_of_a_later_version_is_not_touched() {
    let (dir, _clock, j) = fresh();
    j.close().unwrap();
    tamper(dir.path(), "PRAGMA user_version=4");
    let e = Journal::open(StateDir::at(dir.path()).lock().unwrap()).err().unwrap();
    assert!(matches!(e, StoreError::Newer { found: 4, .. }), "{e}");
}

#[test]
fn the_write_ahead_log_has_its_full_length_from_the_start_and_keeps_it() {
    let (dir, _clock, mut j) = fresh();
    let wal = dir.path().join("journal.db-wal");
    let length = || fs::metadata(&wal).unwrap().len();
    assert_eq!(length(), sql::WAL_BYTES as u64);
    for n in 0..300 {
        j.note(&format!("note {n}")).unwrap();
        assert_eq!(length(), sql::WAL_BYTES as u64, "after note {n}");
    }
}

#[test]
fn press_commit_times_are_printed_and_every_press_counts() {
    let (_dir, _clock, mut j) = fresh();
    let mut s = shown(1);
    s.example.feature = (0..1024).map(|i| i as f32 / 1024.0).collect();
    let mut took = Vec::new();
    for _ in 0..300 {
        let id = j.shown(&s).unwrap();
        let began = std::time::Instant::now();
        j.press(&thumb(id, true)).unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    println!("press commit: p50 {:?}, p99 {:?}, max {:?}", took[150], took[297], took[299]);
    assert_eq!(j.reader().stats().unwrap().effective, 300);
}
