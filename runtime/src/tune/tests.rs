//! Promises of a run: it learns, it stops and goes on to the same bits, it says what it needs.
use super::*;
use crate::graph::{Declared, Dim, Node, Op};
use crate::import::{Limits, from_onnx};
use crate::ops::{Attr, Attrs};
use crate::quant::tests::read;
use crate::tensor::DType;
use crate::train::tests::numbers;

pub(super) fn model(name: &str) -> (Graph, i64) {
    let (graph, info) = from_onnx(&read(&format!("{name}.onnx")), &Limits::default()).unwrap();
    (graph, info.opset)
}

/// Pictures whose class is the one of five stripes that is bright.
pub(super) fn examples(n: usize) -> Vec<Example> {
    let one = |i: usize| {
        let class = i % 5;
        let noise = numbers(&format!("picture {i}"), 3 * 16 * 16);
        let pixel = |k: usize| noise[k] as f32 * 0.3 + if k / 16 % 16 / 3 == class { 1.0 } else { 0.0 };
        let x = Tensor::f32(&[1, 3, 16, 16], (0..3 * 16 * 16).map(pixel).collect()).unwrap();
        Example { inputs: vec![x], target: Target::Class(class) }
    };
    (0..n).map(one).collect()
}

pub(super) fn spec(scopes: &str) -> Spec {
    Spec {
        scopes: scopes.split(',').map(String::from).collect(),
        output: "logits".into(),
        new_head: None,
        rank: 4,
        alpha: 8.0,
        targets: Vec::new(),
        freeze_a: false,
        seed: 3,
        tensors: Vec::new(),
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        objective: Objective::Labels,
        optimizer: Optimizer::ADAMW,
        rate: 0.01,
        course: Course::Cosine,
        warmup: 0.1,
        clip: Some(1.0),
        batch: 8,
        accumulate: 1,
        epochs: 4,
        seed: 7,
        max_bytes: None,
        validation: 0.25,
        patience: None,
        budget: None,
        sparse_bytes: 1 << 10,
        bf16_by_speed: false,
    }
}

fn tune(
    name: &str,
    scopes: &str,
    settings: Settings,
    checkpoint: Option<PathBuf>,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Outcome, TuneError> {
    let (graph, opset) = model(name);
    let mut examples = examples(60);
    let checkpoint = checkpoint.map(|p| (p, Duration::ZERO));
    let (spec, options) = (spec(scopes), TrainOptions::default());
    Work { graph: &graph, opset, spec, settings, examples: &mut examples, options, checkpoint }.run(tell)
}

#[test]
fn every_scope_learns_on_a_float_and_on_a_quantised_model() {
    for name in ["picture", "picture.int8-weights", "picture.int8-qdq", "picture.int4"] {
        for scopes in ["head", "bias", "lora", "full", "sparse", "lora,head"] {
            let out = match tune(name, scopes, settings(), None, &mut |_| {}) {
                Err(TuneError::Scope(ScopeError::Quantised { .. })) if scopes == "full" && name != "picture" => {
                    continue;
                }
                Err(TuneError::Scope(ScopeError::Nothing { .. }))
                    if scopes == "sparse" && name == "picture.int8-qdq" =>
                {
                    continue;
                }
                other => other.unwrap_or_else(|e| panic!("{name}, {scopes}: {e}")),
            };
            let last = out.epochs.last().unwrap();
            assert!(last.loss < out.losses[0], "{name}, {scopes}: {:?}", out.epochs);
            assert!(last.validation < out.before, "{name}, {scopes}: {:?} from {:?}", out.epochs, out.before);
            if scopes == "sparse" {
                let bytes: usize = out.tensors.iter().map(|(_, t)| 4 * t.len()).sum();
                assert!(bytes <= 1 << 10 && bytes > 0 && !out.spec.tensors.is_empty(), "{name}: {bytes}");
            }
        }
    }
}

#[test]
fn a_run_stopped_after_any_step_goes_on_to_the_same_bits_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tune("picture.int8-weights", "lora,head", settings(), None, &mut |_| {}).unwrap();
    assert!(whole.steps > 20, "{}", whole.steps);
    for at in [1, 5, 6, 7, 20, whole.steps] {
        let path = dir.path().join(format!("{at}.checkpoint"));
        // Ends as a kill would: what was written is all that is left.
        let kept = path.with_extension("kept");
        tune("picture.int8-weights", "lora,head", settings(), Some(path.clone()), &mut |p| {
            // Told before the step's own checkpoint: the one there is of the step before.
            if let Progress::Step { step, .. } = p
                && step == at
                && path.exists()
            {
                std::fs::copy(&path, &kept).unwrap();
            }
        })
        .unwrap();
        let (graph, opset) = model("picture.int8-weights");
        let mut examples = examples(60);
        let mut resumed = None;
        let work = Work {
            graph: &graph,
            opset,
            spec: spec("lora,head"),
            settings: settings(),
            examples: &mut examples,
            options: TrainOptions::on_threads(2),
            checkpoint: kept.exists().then(|| (kept.clone(), Duration::from_secs(60))),
        };
        let out = work
            .run(&mut |p| {
                if let Progress::Resumed { step } = p {
                    resumed = Some(step)
                }
            })
            .unwrap();
        assert_eq!(resumed, (at > 1).then(|| at - 1));
        assert_eq!(out.tensors, whole.tensors, "stopped after {at}");
        assert_eq!((out.losses, out.epochs, out.best), (whole.losses.clone(), whole.epochs.clone(), whole.best));
    }
}

#[test]
fn a_run_whose_precision_was_a_matter_of_speed_goes_on_in_it_when_the_other_is_faster() {
    let dir = tempfile::tempdir().unwrap();
    let graph = lengths();
    let by_speed = || Settings { bf16_by_speed: true, ..settings() };
    let run = |bf16: Bf16, settings: Settings, checkpoint: Option<&PathBuf>, tell: &mut dyn FnMut(Progress<'_>)| {
        let mut examples = of_lengths(&[12; 60]);
        let options = TrainOptions { bf16, ..TrainOptions::default() };
        let checkpoint = checkpoint.map(|path| (path.clone(), Duration::ZERO));
        let spec = spec("lora");
        let work = Work { graph: &graph, opset: 17, spec, settings, examples: &mut examples, options, checkpoint };
        (work.identity("base"), work.run(tell))
    };
    let (one, float) = run(Bf16::Nothing, by_speed(), None, &mut |_| {});
    let (other, half) = run(Bf16::Weights, by_speed(), None, &mut |_| {});
    let (float, half) = (float.unwrap(), half.unwrap());
    assert_eq!(one, other, "a restart where the other is faster does not find its checkpoint");
    // The tensors are those of the best validation, which random examples leave where they began.
    assert_ne!(float.losses, half.losses, "no product was in bf16");
    assert_eq!((float.bf16, half.bf16), (Bf16::Nothing, Bf16::Weights));
    for (began, now, whole) in [(Bf16::Weights, Bf16::Nothing, &half), (Bf16::Nothing, Bf16::Weights, &float)] {
        let path = dir.path().join(format!("{}.checkpoint", began.words()));
        let kept = path.with_extension("kept");
        run(began, by_speed(), Some(&path), &mut |p| {
            if matches!(p, Progress::Step { step: 9, .. }) {
                std::fs::copy(&path, &kept).unwrap();
            }
        })
        .1
        .unwrap();
        // Asked for by name it is another run, under another name; a file that was renamed is refused.
        let asked = run(now, settings(), Some(&kept), &mut |_| {});
        assert_ne!(asked.0, one);
        let e = asked.1.unwrap_err().to_string();
        assert!(e.contains(began.words()) && e.contains(now.words()), "{e}");
        let out = run(now, by_speed(), Some(&kept), &mut |_| {}).1.unwrap();
        assert_eq!(out.bf16, began);
        // Tensors of a checkpoint come in the order of their names.
        let named = |of: &Outcome| of.tensors.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
        assert_eq!((named(&out), &out.losses), (named(whole), &whole.losses));
    }
}

#[test]
fn a_torn_checkpoint_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torn.checkpoint");
    std::fs::write(&path, b"half a file").unwrap();
    let e = tune("picture", "head", settings(), Some(path), &mut |_| {}).unwrap_err();
    assert_eq!(e.class(), Class::Store);
    assert!(e.to_string().contains("torn.checkpoint"), "{e}");
}

#[test]
fn accumulated_batches_are_a_step_of_the_whole_batch_and_a_short_batch_counts_as_what_it_is() {
    let one = tune("picture", "head", Settings { batch: 16, ..settings() }, None, &mut |_| {}).unwrap();
    let two = tune("picture", "head", Settings { batch: 8, accumulate: 2, ..settings() }, None, &mut |_| {}).unwrap();
    assert_eq!(one.steps, two.steps);
    for ((_, a), (_, b)) in one.tensors.iter().zip(&two.tensors) {
        for (a, b) in a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn patience_ends_a_run_that_gets_worse_and_gives_the_best_epoch() {
    let wild =
        Settings { rate: 3.0, course: Course::Constant, clip: None, epochs: 30, patience: Some(2), ..settings() };
    let out = tune("picture", "head", wild, None, &mut |_| {}).unwrap();
    assert!(out.epochs.len() < 30 && out.ended == Some(PATIENCE), "{:?}", out.epochs);
    let lowest = out.epochs.iter().filter_map(|e| e.validation).chain(out.before).fold(f32::INFINITY, f32::min);
    let best = out.best.and_then(|b| out.epochs[b as usize - 1].validation).or(out.before);
    assert_eq!(best, Some(lowest));
}

#[test]
fn a_budget_of_no_time_makes_no_step_and_says_so() {
    let out =
        tune("picture", "head", Settings { budget: Some(Duration::ZERO), ..settings() }, None, &mut |_| {}).unwrap();
    assert_eq!((out.steps, out.ended), (0, Some(BUDGET)));
}

#[test]
fn a_step_that_needs_more_than_it_may_is_refused_with_both_figures_and_what_would_fit() {
    let needs = |s: Settings, scopes: &str| match tune("picture", scopes, s, None, &mut |_| {}) {
        Ok(out) => out.needs.total(),
        Err(e) => panic!("{e}"),
    };
    let full = needs(Settings { epochs: 1, ..settings() }, "full");
    let e =
        tune("picture", "full", Settings { max_bytes: Some(full / 8), ..settings() }, None, &mut |_| {}).unwrap_err();
    let TuneError::Memory { needs, may, fits: Some((what, bytes)) } = &e else { panic!("{e}") };
    assert!(*needs > *may && bytes <= may, "{e}");
    assert!(what.contains("--"), "{what}");
    let e = tune("picture", "full", Settings { max_bytes: Some(10), ..settings() }, None, &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("no smaller scope fits"), "{e}");
    assert_eq!(e.class(), Class::Usage);
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    for (s, text) in [
        (Settings { rate: f32::NAN, ..settings() }, "--lr is NaN"),
        (Settings { batch: 0, ..settings() }, "--batch"),
        (Settings { validation: 1.0, ..settings() }, "--validation is 1"),
        (Settings { warmup: -0.1, ..settings() }, "--warmup"),
        (Settings { clip: Some(0.0), ..settings() }, "--clip"),
        (Settings { patience: Some(0), ..settings() }, "--patience"),
    ] {
        let e = tune("picture", "head", s, None, &mut |_| {}).unwrap_err();
        assert!(e.to_string().contains(text), "{e}");
    }
    let e = tune("picture", "full", Settings { rate: 1e30, clip: None, warmup: 0.0, ..settings() }, None, &mut |_| {})
        .unwrap_err();
    assert!(matches!(e, TuneError::Diverged { .. }), "{e}");
}

#[test]
fn a_run_is_told_from_others_by_everything_that_changes_its_result() {
    let (graph, opset) = model("picture");
    let identity = |settings: Settings, scopes: &str, n: usize| {
        let mut examples = examples(n);
        let (spec, options) = (spec(scopes), TrainOptions::default());
        Work { graph: &graph, opset, spec, settings, examples: &mut examples, options, checkpoint: None }
            .identity("base")
    };
    let own = identity(settings(), "head", 10);
    assert_eq!(
        own,
        identity(Settings { max_bytes: Some(1 << 30), budget: Some(Duration::ZERO), ..settings() }, "head", 10)
    );
    for other in [
        identity(Settings { seed: 8, ..settings() }, "head", 10),
        identity(Settings { rate: 0.02, ..settings() }, "head", 10),
        identity(settings(), "bias", 10),
        identity(settings(), "head", 11),
    ] {
        assert_ne!(own, other);
    }
}

/// A model of rows of any length: `[N, L, 8]` → five classes.
fn lengths() -> Graph {
    let mut g = Graph::default();
    let weight = |name: &str, shape: &[usize]| {
        let v = numbers(name, shape.iter().product()).iter().map(|v| 0.5 * *v as f32).collect();
        Arc::new(Tensor::f32(shape, v).unwrap())
    };
    let dims = vec![Dim::Any, Dim::Any, Dim::Fixed(8)];
    let x = g.add_value("x", Some(Declared { dtype: DType::F32, shape: Some(dims) }), None);
    let wide = g.add_value("wide", None, Some(weight("wide", &[8, 64])));
    let narrow = g.add_value("narrow", None, Some(weight("narrow", &[64, 5])));
    let turn = ("perm", Attr::Ints(vec![0, 2, 1]));
    let mut at = x;
    for (name, op, other, attrs) in [
        ("spread", "MatMul", Some(wide), None),
        ("bent", "Tanh", None, None),
        ("turned", "Transpose", None, Some(turn)),
        ("pooled", "GlobalAveragePool", None, None),
        ("flat", "Flatten", None, None),
        ("logits", "MatMul", Some(narrow), None),
    ] {
        let y = g.add_value(name, None, None);
        let attrs = attrs.map_or_else(|| Attrs::of([]), |a| Attrs::of([a]));
        let op = Op::Own(crate::ops::find("", op).unwrap(), Arc::new(attrs));
        let inputs = [Some(at)].into_iter().chain(other.map(Some)).collect();
        g.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![Some(y)] });
        at = y;
    }
    (g.inputs, g.outputs) = (vec![x], vec![at]);
    g
}

fn of_lengths(of: &[usize]) -> Vec<Example> {
    let one = |(i, &n): (usize, &usize)| {
        let v = numbers(&format!("row {i}"), 8 * n).iter().map(|v| *v as f32).collect();
        Example { inputs: vec![Tensor::f32(&[1, n, 8], v).unwrap()], target: Target::Class(i % 5) }
    };
    of.iter().enumerate().map(one).collect()
}

#[test]
fn examples_of_different_lengths_are_computed_once_each_and_weigh_the_same_in_the_mean() {
    let graph = lengths();
    let mut all = of_lengths(&[3, 4, 3, 9, 5, 3, 6, 7]);
    let batcher = Batcher::new(&graph, Objective::Labels, 8);
    let of: Vec<usize> = (0..all.len()).collect();
    let batches = batcher.batches(&mut all, &of).unwrap();
    let rows: Vec<usize> = batches.iter().map(|b| b.inputs[0].shape()[0]).collect();
    assert_eq!(rows, [3, 1, 1, 1, 1, 1], "nothing is computed that weighs nothing");
    // Steps as long as the gradients are, so that a gradient of nearly nothing moves nothing.
    let (spec, settings) = (spec("full"), Settings { optimizer: Optimizer::SGD, ..settings() });
    let scoped = scope::place(&graph, 17, &spec).unwrap();
    let trainer = || {
        let recipe = recipe(&scoped, &spec, &settings, &batcher);
        Trainer::new(&scoped.graph, recipe, TrainOptions::default()).unwrap()
    };
    let mut together = trainer();
    let each = |t: &mut Trainer, i: usize| {
        let batch = batcher.batches(&mut of_lengths(&[3, 4, 3, 9, 5, 3, 6, 7]), &[i]).unwrap().remove(0);
        t.evaluate(&batch).unwrap()
    };
    let mean = of.iter().map(|&i| each(&mut together, i)).sum::<f32>() / of.len() as f32;
    let loss = together.step(&batches, 0.01).unwrap().loss;
    assert!((loss - mean).abs() < 1e-5, "{loss} {mean}");
    // The same parameters as after a step on each alone, summed up.
    let mut apart = trainer();
    let ones: Vec<_> = of.iter().map(|&i| batcher.batches(&mut all, &[i]).unwrap().remove(0)).collect();
    apart.step(&ones, 0.01).unwrap();
    for name in &scoped.trainable {
        let (a, b) = (together.parameter(name).unwrap(), apart.parameter(name).unwrap());
        let off = a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0f32, f32::max) < 1e-4, "{name}");
    }
}

#[test]
fn the_longest_example_is_planned_before_the_first_step_and_refused_then_with_both_figures() {
    let graph = lengths();
    let tune = |of: &[usize], max_bytes: Option<usize>| {
        let mut examples = of_lengths(of);
        let (spec, options) = (spec("full"), TrainOptions::default());
        let settings = Settings { max_bytes, epochs: 1, batch: 4, validation: 0.2, ..settings() };
        let work =
            Work { graph: &graph, opset: 17, spec, settings, examples: &mut examples, options, checkpoint: None };
        let mut told = 0;
        let out = work.run(&mut |_| told += 1);
        (out, told)
    };
    let short = [5; 40];
    let (mut first, mut last) = (short, short);
    (first[0], last[39]) = (600, 600);
    let needs = |of: &[usize]| tune(of, None).0.unwrap().needs.total();
    let (small, large) = (needs(&short), needs(&last));
    assert!(large > 2 * small, "{small} {large}");
    assert_eq!(needs(&first), large, "whichever comes first");
    assert!(tune(&last, Some(large)).0.is_ok());
    // Between the two: nothing has begun when it is refused.
    let (out, told) = tune(&last, Some((small + large) / 4));
    match out.unwrap_err() {
        TuneError::Memory { needs, may, .. } => assert!(needs > may && may == (small + large) / 4 && told == 0),
        e => panic!("{e}"),
    }
}

/// Layers in a row with an operator without a gradient, or with one that refuses its own, in the middle.
fn blocked(op: &str) -> Graph {
    let mut g = Graph::default();
    let dims = vec![Dim::Any, Dim::Fixed(8)];
    let x = g.add_value("x", Some(Declared { dtype: DType::F32, shape: Some(dims) }), None);
    let mut at = x;
    let layer = |g: &mut Graph, x: usize, name: &str, n: usize| {
        let v = numbers(name, 8 * n).iter().map(|v| 0.5 * *v as f32).collect();
        let w = g.add_value(&format!("{name}.weight"), None, Some(Arc::new(Tensor::f32(&[8, n], v).unwrap())));
        node(g, name, "MatMul", &[x, w], Attrs::of([]))
    };
    for name in ["early.a", "early.b"] {
        at = layer(&mut g, at, name, 8);
    }
    let constant = |g: &mut Graph, name: &str, t: Tensor| g.add_value(name, None, Some(Arc::new(t)));
    at = match op {
        "CumProd" => {
            let axis = constant(&mut g, "axis", Tensor::i64(&[], vec![1]).unwrap());
            node(&mut g, "block", op, &[at, axis], Attrs::of([]))
        }
        _ => {
            let to = constant(&mut g, "to", Tensor::i64(&[1, 2], vec![0, 3]).unwrap());
            let by = constant(&mut g, "by", Tensor::f32(&[1, 2], vec![1.5, 2.0]).unwrap());
            let attrs = Attrs::of([("axis", Attr::Int(1)), ("reduction", Attr::Str("mul".into()))]);
            node(&mut g, "block", op, &[at, to, by], attrs)
        }
    };
    for (name, n) in [("late.a", 8), ("late.b", 8), ("narrow", 5)] {
        at = layer(&mut g, at, name, n);
    }
    (g.inputs, g.outputs) = (vec![x], vec![at]);
    g
}

fn node(g: &mut Graph, name: &str, op: &str, inputs: &[usize], attrs: Attrs) -> usize {
    let y = g.add_value(&format!("{name}/y"), None, None);
    let op = Op::Own(crate::ops::find("", op).unwrap(), Arc::new(attrs));
    let inputs = inputs.iter().copied().map(Some).collect();
    g.nodes.push(Node { name: name.into(), op, inputs, outputs: vec![Some(y)] });
    y
}

#[test]
fn a_gradient_that_there_is_not_is_refused_with_the_options_that_need_none_and_those_work() {
    for op in ["CumProd", "ScatterElements"] {
        let graph = blocked(op);
        let run = |scopes: &str, targets: &[&str]| {
            let one = |i: usize| {
                let v = numbers(&format!("{i}"), 8).iter().map(|v| *v as f32).collect();
                Example { inputs: vec![Tensor::f32(&[1, 8], v).unwrap()], target: Target::Class(i % 5) }
            };
            let mut examples: Vec<Example> = (0..20).map(one).collect();
            let targets = targets.iter().map(ToString::to_string).collect();
            let spec = Spec { output: "narrow/y".into(), targets, ..spec(scopes) };
            let (settings, options) = (Settings { epochs: 1, ..settings() }, TrainOptions::default());
            let work =
                Work { graph: &graph, opset: 17, spec, settings, examples: &mut examples, options, checkpoint: None };
            work.run(&mut |_| {})
        };
        for scopes in ["lora", "full", "sparse"] {
            let e = run(scopes, &[]).unwrap_err();
            assert_eq!(e.class(), Class::Unsupported, "{e}");
            let TuneError::Stopped { instead: Some(what), .. } = &e else { panic!("{op}, {scopes}: {e}") };
            assert_eq!(what, "--scope lora --targets 'late.*' narrow", "{op}, {scopes}");
            let told = e.to_string();
            assert!(told.contains("`block`") && told.contains(op) && told.contains("needs no gradient"), "{told}");
        }
        run("lora", &["late.*", "narrow"]).unwrap_or_else(|e| panic!("{op}: {e}"));
        run("head", &[]).unwrap_or_else(|e| panic!("{op}: {e}"));
    }
}

#[test]
fn pairs_are_found_among_those_of_their_batch_and_a_short_batch_holds_no_others() {
    let graph = lengths();
    let pair = |i: usize| {
        let (own, noise) = (numbers(&format!("pair {i}"), 40), numbers(&format!("noise {i}"), 80));
        let v = (0..80).map(|k| (own[k % 40] + 0.7 * noise[k]) as f32).collect();
        Example { inputs: vec![Tensor::f32(&[2, 5, 8], v).unwrap()], target: Target::None }
    };
    let mut examples: Vec<Example> = (0..26).map(pair).collect();
    let objective = Objective::Contrastive { temperature: 0.5 };
    let settings = Settings { objective, batch: 8, validation: 0.0, rate: 0.02, epochs: 12, ..settings() };
    let batcher = Batcher::new(&graph, objective, 8);
    let batches = batcher.batches(&mut examples, &(0..10).collect::<Vec<_>>()).unwrap();
    let shapes: Vec<&[usize]> = batches.iter().map(|b| b.inputs[0].shape()).collect();
    assert_eq!(shapes, [[16, 5, 8], [4, 5, 8]]);
    // The first of each, then the second of each.
    let (all, one) = (batches[1].inputs[0].as_f32().unwrap(), examples[8].inputs[0].as_f32().unwrap());
    assert!(all[..40] == one[..40] && all[80..120] == one[40..]);
    let (spec, options) = (spec("full"), TrainOptions::default());
    let work = Work { graph: &graph, opset: 17, spec, settings, examples: &mut examples, options, checkpoint: None };
    let out = work.run(&mut |_| {}).unwrap();
    let epoch = |e: usize| out.epochs[e].loss;
    assert!(epoch(11) < 0.8 * epoch(0), "{:?}", out.epochs);
    assert!(LOSSES.iter().any(|l| l.name == "contrastive" && l.wants == Wants::Pairs));
}
