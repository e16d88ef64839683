use super::*;
use crate::learn::fixture::{Kind, Sample, World, vectors};
use crate::learn::{Feedback, GateConfig, Learner, LearnerConfig, Mode, TrainingPress};

fn source(samples: &[Sample]) -> Vec<SourceSample> {
    let of = |s: &Sample| SourceSample { feature: s.feature.clone(), logits: s.logits.clone(), label: Some(s.label) };
    samples.iter().map(of).collect()
}

fn coreset() -> Coreset {
    // The source's own stream; the presses below are about the relabelled one, in another order of names.
    Coreset::choose(&source(&vectors().world(Kind::Source).stream), 120, 150)
}

/// Corrections on everything shown, with a part of the source learned beside them.
fn taught(world: &World, retain: Retain, presses: usize) -> Learner {
    let source = coreset().train[..retain.samples()].to_vec();
    let gate = GateConfig { mode: Mode::Off, ..GateConfig::default() };
    let mut learner =
        Learner::new(world.base.clone(), LearnerConfig { gate, source, ..LearnerConfig::default() }).unwrap();
    for (t, s) in world.stream.iter().take(presses).enumerate() {
        let shown = argmax(&learner.logits(&s.feature, &s.logits).unwrap());
        learner
            .press(TrainingPress {
                press_id: t as u64,
                prediction_id: t as u32,
                feature: s.feature.clone(),
                logits: s.logits.clone(),
                shown,
                mu: 1.0,
                feedback: Feedback::Correction { class: s.label },
                confirmed: false,
                source: "pad".into(),
            })
            .unwrap();
    }
    learner
}

#[test]
fn without_a_press_the_source_moves_nothing_by_a_bit() {
    let world = vectors().world(Kind::Shifted);
    for retain in Retain::ALL {
        let learner = taught(&world, retain, 0);
        assert!(learner.refit().unwrap().is_zero(), "{retain:?}");
        assert!(learner.incremental().is_zero());
    }
}

#[test]
fn more_of_the_source_is_more_kept_and_the_figures_say_so() {
    let world = vectors().world(Kind::Shifted);
    let source = vectors().world(Kind::Source);
    let own = |theta: &Theta| source.accuracy(theta);
    let probe = coreset();
    let figures: Vec<[f64; 3]> = Retain::ALL
        .into_iter()
        .map(|retain| {
            let theta = taught(&world, retain, 200).refit().unwrap();
            let kept = probe.kept(&Task::default(), &world.base, &theta).unwrap().unwrap();
            println!("{}: new {:.3}, own ground {:.3}, {kept:?}", retain.name(), world.accuracy(&theta), own(&theta));
            // The probe tells, without any data of the source on the device, what the source's own test tells.
            assert!((kept.now - own(&theta)).abs() < 0.06, "{kept:?} and {}", own(&theta));
            [world.accuracy(&theta), own(&theta), kept.now]
        })
        .collect();
    let [adapt, balanced, keep] = [figures[0], figures[1], figures[2]];
    assert!(keep[1] > adapt[1] + 0.03, "kept: {} and {}", keep[1], adapt[1]);
    assert!(balanced[1] >= adapt[1] && keep[1] >= balanced[1] - 0.01);
    let factory = world.accuracy(&world.factory());
    assert!(keep[0] > factory + 0.5 * (adapt[0] - factory), "it still learns: {keep:?}, {adapt:?}, factory {factory}");
}

#[test]
fn incremental_and_canonical_solutions_agree_with_a_source_and_undo_is_exact() {
    let world = vectors().world(Kind::Shifted);
    let mut learner = taught(&world, Retain::Balanced, 60);
    let (incremental, canonical) = (learner.incremental(), learner.refit().unwrap());
    let apart: f64 = incremental.values().iter().zip(canonical.values()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!(apart.sqrt() < 0.25 * canonical.norm(), "{} of {}", apart.sqrt(), canonical.norm());
    assert_eq!(learner.training_predictions(), 60, "source samples are no presses");
    let before = taught(&world, Retain::Balanced, 59).refit().unwrap();
    assert_eq!(learner.undo(59).unwrap(), before);
}

#[test]
fn a_coreset_comes_back_from_its_file_and_what_does_not_fit_is_named() {
    let full = coreset();
    assert_eq!((full.train.len(), full.probe.len()), (120, 150));
    let small = Coreset { train: full.train[..3].to_vec(), probe: full.probe[..4].to_vec() };
    let bytes = small.to_safetensors().unwrap();
    let (d, c) = (small.train[0].feature.len(), 10);
    let back = Coreset::from_safetensors(&bytes, d, c).unwrap();
    assert_eq!(back.probe[1].label, small.probe[1].label);
    assert_eq!(back.train[2].logits, small.train[2].logits);
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
    assert!(off(&back.train[0].feature, &small.train[0].feature) <= 1.0 / 2048.0, "half precision");
    for (features, classes, says) in [(d + 1, c, "columns"), (d, 9, "columns")] {
        let e = Coreset::from_safetensors(&bytes, features, classes).unwrap_err();
        assert!(e.contains(says), "{e}");
    }
    assert!(Coreset::from_safetensors(&bytes[..40], d, c).is_err());
    // Nothing to measure by is no figure.
    let none = Coreset::default();
    let world = vectors().world(Kind::Source);
    assert_eq!(none.kept(&Task::default(), &world.base, &world.factory()).unwrap(), None);
}

#[test]
fn the_samples_chosen_are_balanced_and_closer_to_their_classes_than_the_first_ones() {
    let all = source(&vectors().world(Kind::Source).stream);
    let chosen = Coreset::choose(&all, 30, 0).train;
    for c in 0..10 {
        assert_eq!(chosen.iter().filter(|s| s.label == Some(c)).count(), 3);
        let of = |set: &[SourceSample], n: usize| mean(set.iter().filter(|s| s.label == Some(c)).take(n));
        let far = |m: &[f64]| -> f64 { of(&all, usize::MAX).iter().zip(m).map(|(a, b)| (a - b).powi(2)).sum() };
        assert!(far(&of(&chosen, 3)) <= far(&of(&all, 3)), "class {c}");
    }
    // Where the truth is not known, the shipped head's answers are kept as they are.
    let probe = all.iter().take(20).map(|s| SourceSample { label: None, ..s.clone() }).collect();
    let world = vectors().world(Kind::Source);
    let kept =
        Coreset { train: Vec::new(), probe }.kept(&Task::default(), &world.base, &world.factory()).unwrap().unwrap();
    assert_eq!((kept.factory, kept.now, kept.forgotten()), (1.0, 1.0, 0.0));
}

#[test]
fn an_objective_that_cannot_hold_on_to_the_source_says_so() {
    let source = coreset().train;
    for objective in crate::learn::OBJECTIVES {
        let config =
            LearnerConfig { objective: objective.name.into(), source: source.clone(), ..LearnerConfig::default() };
        let made = Learner::new(vectors().world(Kind::Source).base, config);
        let holds = matches!(objective.fit, crate::learn::objective::HeadFit::Map);
        assert_eq!(made.is_ok(), holds, "{}", objective.name);
    }
}
