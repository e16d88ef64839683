use super::*;
use crate::learn::fixture::{Kind, Sample, World, probabilities, vectors};
use crate::learn::objective::{log_softmax, softmax_into};
use crate::learn::{Action, GateConfig, HeadBase, Learner, LearnerConfig, Mode, Outcome, Theta, TrainingPress};

fn labels(n: usize) -> Vec<String> {
    (0..n).map(|c| format!("c{c}")).collect()
}

fn add(name: &str) -> ClassChange {
    ClassChange::Add { name: name.into() }
}

/// The digits' head without its last class: a bundle that has never seen a nine.
fn without_nine() -> World {
    let mut world = vectors().world(Kind::Source);
    let (base, d) = (&world.base, world.base.features());
    let (mean, std) = vectors().statistics();
    world.base = HeadBase::new(base.weight()[..9 * d].to_vec(), base.bias()[..9].to_vec(), mean, std).unwrap();
    world.stream.iter_mut().chain(&mut world.test).for_each(|s| s.logits.truncate(9));
    world
}

fn press(sample: &Sample, id: u64, shown: usize, feedback: Feedback, classes: usize) -> TrainingPress {
    TrainingPress {
        press_id: id,
        prediction_id: id as u32,
        feature: sample.feature.clone(),
        logits: continued(&sample.logits, classes),
        shown,
        mu: 1.0,
        feedback,
        confirmed: false,
        source: "pad".to_string(),
    }
}

/// Share of `samples` answered rightly by `theta`.
fn accuracy<'a>(world: &World, theta: &Theta, samples: impl Iterator<Item = &'a Sample>) -> f64 {
    let (mut right, mut n) = (0, 0);
    for s in samples {
        let z = world.base.standardise(&s.feature).unwrap();
        let served = theta.apply(&z, &continued(&s.logits, theta.classes())).unwrap();
        right += usize::from(argmax(&served) == s.label);
        n += 1;
    }
    f64::from(right as u32) / f64::from(n)
}

#[test]
fn a_class_that_nobody_has_named_changes_no_bit_of_any_probability() {
    let world = without_nine();
    let mut classes = Classes::shipped(&labels(9));
    classes.apply(1, &add("nine")).unwrap();
    for s in &world.test {
        let (before, after) = (probabilities(&s.logits), classes.probabilities(&s.logits));
        assert_eq!(after.len(), 10);
        assert!(before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(after[9], 0.0);
        assert_eq!(classes.top(&s.logits), argmax(&s.logits));
    }
}

#[test]
fn a_class_that_is_awake_and_unlearned_has_one_share_of_all_and_beats_no_answer() {
    let world = without_nine();
    let mut classes = Classes::shipped(&labels(9));
    classes.apply(1, &add("nine")).unwrap();
    for s in &world.test {
        let awake = continued(&s.logits, 10);
        assert!((classes.probabilities(&awake)[9] - 0.1).abs() < 1e-6);
        assert_eq!(classes.top(&awake), argmax(&s.logits));
    }
    // Even where nothing stands out: the first among equals is one of the bundle's.
    assert_eq!(classes.top(&continued(&[0.7; 9], 10)), 0);
}

#[test]
fn a_digit_the_bundle_never_saw_is_learned_from_presses_and_the_others_stay() {
    let world = without_nine();
    let config = LearnerConfig { gate: GateConfig { mode: Mode::Off, ..Default::default() }, ..Default::default() };
    let mut learner = Learner::new(world.base.with_classes(10), config).unwrap();
    let old = |theta: &Theta| accuracy(&world, theta, world.test.iter().filter(|s| s.label < 9));
    let new = |theta: &Theta| accuracy(&world, theta, world.test.iter().filter(|s| s.label == 9));
    let factory = Theta::zeros(10, world.base.features() + 1);
    assert_eq!(new(&factory), 0.0);
    // A person corrects what is wrong and thumbs up what is right.
    for (t, s) in world.stream.iter().take(100).enumerate() {
        let served = learner.logits(&s.feature, &continued(&s.logits, 10)).unwrap();
        let shown = argmax(&served);
        let feedback = match shown == s.label {
            true => Feedback::Thumb { up: true },
            false => Feedback::Correction { class: s.label },
        };
        learner.press(press(s, t as u64, shown, feedback, 10)).unwrap();
    }
    let theta = learner.refit().unwrap();
    let (before, kept, learned) = (old(&factory), old(&theta), new(&theta));
    println!("nines {learned:.3}, others {before:.3} before, {kept:.3} after");
    assert!(learned > 0.75, "nines: {learned}");
    assert!(kept > before - 0.03, "others: {before} before, {kept} after");
}

#[test]
fn merged_classes_are_one_answer_and_the_others_keep_every_bit() {
    let world = vectors().world(Kind::Source);
    let mut classes = Classes::shipped(&labels(10));
    classes.apply(5, &ClassChange::Merge { from: 1, into: 7 }).unwrap();
    assert_eq!((classes.class_of("c1"), classes.name(1), classes.visible().len()), (Some(7), "c7", 9));
    let mut disagreed = 0;
    for s in &world.test {
        let (before, after) = (probabilities(&s.logits), classes.probabilities(&s.logits));
        for c in (0..10).filter(|c| ![1, 7].contains(c)) {
            assert_eq!(before[c].to_bits(), after[c].to_bits());
        }
        assert_eq!(after[1], 0.0);
        assert!((after[7] - before[1] - before[7]).abs() < 1e-6);
        let top = classes.top(&s.logits);
        assert!((0..10).all(|c| after[c] <= after[top]));
        disagreed += usize::from(top != argmax(&s.logits));
    }
    assert!(disagreed > 0, "the data has no answer that the merge changes, so this test shows nothing");
}

#[test]
fn a_press_on_a_merged_answer_is_a_press_on_each_of_its_classes_and_an_older_one_is_not() {
    let merged = [Merged { since: 10, group: vec![0, 3, 2, 3] }];
    let likelihood = |press_id: u64, feedback: Feedback, shown: usize| {
        let mut l = vec![1.0; 4];
        let said = Press::plain(feedback);
        multiply_likelihood(&mut l, said, shown, &Hyper::default(), group_at(&merged, press_id)).unwrap();
        l
    };
    let down = Feedback::Thumb { up: false };
    assert_eq!(likelihood(11, down, 3), [0.9, 0.1, 0.9, 0.1]);
    assert_eq!(likelihood(10, down, 3), [0.9, 0.9, 0.9, 0.1]);
    // Three answers are left, so a wrong correction falls on one of two.
    assert_eq!(likelihood(11, Feedback::Correction { class: 1 }, 0), [0.05, 0.9, 0.05, 0.9]);
    assert_eq!(likelihood(11, Feedback::Preference { over: 1 }, 3), [1.0; 4], "one class over itself says nothing");
}

#[test]
fn evidence_against_one_of_two_merged_classes_is_no_evidence_against_both() {
    let world = vectors().world(Kind::Source);
    let at = |since: u64| {
        let merged = vec![Merged { since, group: vec![0, 7, 2, 3, 4, 5, 6, 7, 8, 9] }];
        let config = LearnerConfig { merged, ..LearnerConfig::default() };
        let mut learner = Learner::new(world.base.clone(), config).unwrap();
        for (t, s) in world.stream.iter().filter(|s| s.label == 7).take(4).enumerate() {
            // A seven taken for a one, refused with emphasis.
            let mut p = press(s, t as u64, 1, Feedback::Thumb { up: false }, 10);
            p.confirmed = true;
            assert_eq!(learner.press(p).unwrap(), Outcome::Confirmed);
        }
        learner.reservoir_ids().len()
    };
    assert_eq!(at(100), 0, "said before the merge: it was not a one, and may well be what both are now");
    // Ids start at 0, so all but the first were said after a merge at record 0.
    assert_eq!(at(0), 3, "said after it: neither");
}

#[test]
fn the_gate_takes_merged_classes_for_one() {
    let world = vectors().world(Kind::Source);
    let decide = |merged: Vec<Merged>| {
        let mut learner = Learner::new(world.base.clone(), LearnerConfig { merged, ..Default::default() }).unwrap();
        let ones = || world.stream.iter().filter(|s| s.label == 1);
        // Presses teach that every one is a seven; evidence says what they are.
        for (t, s) in ones().take(30).enumerate() {
            let mut p = press(s, t as u64 + 1, argmax(&s.logits), Feedback::Correction { class: 7 }, 10);
            if t % 2 == 0 {
                p = TrainingPress { feedback: Feedback::Correction { class: 1 }, confirmed: true, ..p };
            }
            learner.press(p).unwrap();
        }
        learner.candidate().unwrap().action
    };
    assert_eq!(decide(Vec::new()), Action::Veto);
    let merged = vec![Merged { since: 1_000, group: vec![0, 7, 2, 3, 4, 5, 6, 7, 8, 9] }];
    assert_eq!(decide(merged), Action::Publish, "one or seven is the same to a person who has merged them");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut classes = Classes::shipped(&labels(3));
    let before = classes.clone();
    let rename = |class, name: &str| ClassChange::Rename { class, name: name.into() };
    for (change, says) in [
        (add("c1"), "already"),
        (add(""), "no name"),
        (add(" x"), "no name"),
        (add("a\nb"), "no name"),
        (rename(3, "x"), "no class `3`"),
        (rename(0, "c1"), "already"),
        (ClassChange::Merge { from: 1, into: 1 }, "one class already"),
        (ClassChange::Merge { from: 1, into: 9 }, "no class `9`; there are c0, c1, c2"),
    ] {
        let e = classes.apply(1, &change).unwrap_err();
        assert!(e.to_string().contains(says), "{e}");
        assert_eq!(classes, before);
    }
    classes.apply(1, &ClassChange::Merge { from: 2, into: 0 }).unwrap();
    let e = classes.apply(2, &ClassChange::Merge { from: 1, into: 0 }).unwrap_err();
    assert!(e.to_string().contains("leave one class"), "{e}");
    assert!(classes.apply(2, &ClassChange::Rename { class: 2, name: "x".into() }).is_err(), "it is merged away");
    classes.apply(2, &add("c2")).unwrap();
    assert_eq!(classes.class_of("c2"), Some(3), "the name of a merged class is free");
}

#[test]
fn classes_come_back_from_an_adapter_and_contradictions_do_not() {
    let mut classes = Classes::shipped(&labels(3));
    classes.apply(1, &add("d")).unwrap();
    classes.apply(2, &ClassChange::Merge { from: 0, into: 1 }).unwrap();
    let text = serde_json::to_string(&classes).unwrap();
    let back: Classes = serde_json::from_str(&text).unwrap();
    assert_eq!((back.names(), back.visible(), back.shipped_len()), (classes.names(), classes.visible(), 3));
    for (from, to) in [("[1,1,2,3]", "[1,0,2,3]"), ("[1,1,2,3]", "[1,1,2]"), ("\"shipped\":3", "\"shipped\":5")] {
        assert!(serde_json::from_str::<Classes>(&text.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn a_head_with_added_classes_is_not_merged_into_a_graph_that_has_none_of_them() {
    let base = without_nine().base.with_classes(10);
    let e = base.merge(&Theta::zeros(10, base.features() + 1)).unwrap_err();
    assert_eq!(e, LearnError::Unmergeable { added: 1 });
}

#[test]
fn the_gradient_over_groups_is_the_derivative_over_classes() {
    let (group, f) = (Grouped::of(&[0, 0, 2], 4), [0.3, -1.2, 2.0, 0.1]);
    assert_eq!((group.len(), group.place(1), group.place(3)), (3, 0, 2));
    let loss = |f: &[f64]| -log_softmax(&group.logits(f))[0];
    let mut of_groups = vec![0.0; 3];
    softmax_into(&group.logits(&f), &mut of_groups);
    of_groups[0] -= 1.0;
    for (c, g) in group.gradient(&of_groups, &f).into_iter().enumerate() {
        let moved = |h: f64| {
            let mut f = f;
            f[c] += h;
            loss(&f)
        };
        // Central differences: a third derivative below 1 leaves h²/6, rounding 1e-16/h.
        let h = 1e-5;
        assert!((g - (moved(h) - moved(-h)) / (2.0 * h)).abs() < 1e-9, "class {c}");
    }
    assert_eq!(group.spread(&[0.0, 1.0, 0.0, 0.0]), [1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn every_objective_learns_of_merged_classes_as_of_one() {
    let world = vectors().world(Kind::Source);
    let mut group: Vec<usize> = (0..10).collect();
    group[9] = 4;
    for objective in crate::learn::OBJECTIVES {
        let config = LearnerConfig {
            objective: objective.name.into(),
            merged: vec![Merged { since: 0, group: group.clone() }],
            gate: GateConfig { mode: Mode::Off, ..GateConfig::default() },
            ..LearnerConfig::default()
        };
        let sample = world.stream.iter().find(|s| argmax(&s.logits) == 9).unwrap();
        let together = |theta: &Theta| {
            let served = theta.apply(&world.base.standardise(&sample.feature).unwrap(), &sample.logits).unwrap();
            let p = probabilities(&served);
            p[4] + p[9]
        };
        // Down where thumbs are learned from; otherwise another class is named.
        let feedback = match objective.learns_from.contains(&"thumb") {
            true => Feedback::Thumb { up: false },
            false => Feedback::Correction { class: 2 },
        };
        let mut learner = Learner::new(world.base.clone(), config).unwrap();
        assert_eq!(learner.press(press(sample, 1, 9, feedback, 10)).unwrap(), Outcome::Trained, "{}", objective.name);
        let before = together(&world.factory());
        assert!(together(&learner.refit().unwrap()) < before, "{}", objective.name);
        assert!(together(&learner.incremental()) < before, "{}", objective.name);
    }
}

#[test]
fn a_press_from_before_a_merge_is_no_evidence_against_whoever_made_it() {
    let world = vectors().world(Kind::Source);
    let mut group: Vec<usize> = (0..10).collect();
    group[9] = 4;
    let config = LearnerConfig { merged: vec![Merged { since: 5, group }], ..LearnerConfig::default() };
    let mut learner = Learner::new(world.base.clone(), config).unwrap();
    // "Not a nine", when nine and four were two; then, of both as one: "it is that".
    learner.press(press(&world.stream[0], 1, 9, Feedback::Thumb { up: false }, 10)).unwrap();
    let truth = press(&world.stream[0], 6, 9, Feedback::Correction { class: 4 }, 10);
    learner.press(TrainingPress { prediction_id: 1, confirmed: true, source: "desk".into(), ..truth }).unwrap();
    assert!(learner.raters().is_empty());
    // Named, it is judged by the classes of now.
    let named = press(&world.stream[1], 2, 9, Feedback::Correction { class: 9 }, 10);
    learner.press(named).unwrap();
    let truth = press(&world.stream[1], 7, 9, Feedback::Correction { class: 4 }, 10);
    learner.press(TrainingPress { prediction_id: 2, confirmed: true, source: "desk".into(), ..truth }).unwrap();
    assert_eq!((learner.raters()["pad"].checked, learner.raters()["pad"].wrong), (1, 0));
}
