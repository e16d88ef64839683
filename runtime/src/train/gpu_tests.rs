//! Training on a GPU beside the same on the CPU. On whatever adapter there is, software among them; where there is none
//! at all these tests fail and say so.
use super::tests::{Archive, values};
use super::*;
use crate::device::Gpu;
use crate::graph::{Node, Op};
use crate::ops::find;

fn gpu() -> Gpu {
    Gpu::open(true, None)
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"))
}

fn on(gpu: &Gpu) -> TrainOptions {
    TrainOptions { device: Device::Gpu(gpu.clone()), ..TrainOptions::default() }
}

/// What of their steps runs on the CPU in between.
const LEFT: &[&str] = &["Gemm"];

#[test]
fn steps_of_every_recorded_model_go_as_on_the_cpu_and_twice_to_the_same_bits() {
    let gpu = gpu();
    let archive = Archive::read();
    let mut rest = std::collections::BTreeSet::<String>::new();
    let mut wrong = Vec::new();
    let (mut calls, mut joined) = (0, 0);
    for case in archive.cases() {
        let run = |options: TrainOptions| {
            let (mut trainer, batch) = archive.trainer(&case, options, |r| r.clip = case.clip);
            let losses: Vec<f32> =
                (0..4).map(|_| trainer.step(std::slice::from_ref(&batch), 0.01).unwrap().loss).collect();
            let told = trainer.on_gpu();
            (losses, values(&trainer), told)
        };
        let (want, _, _) = run(TrainOptions::default());
        let (got, state, told) = run(on(&gpu));
        let told = told.unwrap();
        if told.left.is_some() || told.steps.is_empty() || !told.refused.is_empty() {
            wrong.push(format!("{}: {:?} {:?}", case.name, told.left, told.refused));
        }
        for s in &told.on_cpu {
            rest.insert(s.op.clone());
        }
        calls += told.calls;
        joined += told.joined;
        if want.iter().zip(&got).any(|(a, b)| (a - b).abs() > 1e-3 * a.abs().max(1e-2)) {
            wrong.push(format!("{}: {want:?} on the CPU, {got:?}", case.name));
        }
        let (again, same, _) = run(on(&gpu));
        if again != got || same != state {
            wrong.push(format!("{} goes otherwise the second time", case.name));
        }
    }
    assert_eq!(rest.iter().map(String::as_str).collect::<Vec<_>>(), LEFT);
    assert!(joined > 0, "no function of {calls} calls is part of another's");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_device_that_is_lost_between_steps_takes_nothing_with_it() {
    let gpu = gpu();
    let archive = Archive::read();
    let case = archive.case("mlp-labels");
    let (mut lost, batch) = archive.trainer(&case, on(&gpu), |_| {});
    let (mut cpu, _) = archive.trainer(&case, TrainOptions::default(), |_| {});
    let step = |t: &mut Trainer| t.step(std::slice::from_ref(&batch), 0.01).unwrap().loss;
    for i in 0..6 {
        if i == 3 {
            let before = values(&lost);
            gpu.lose();
            // From where it was, bit for bit, on the CPU.
            cpu.restore(&before, lost.steps_done()).unwrap();
        }
        let (a, b) = (step(&mut cpu), step(&mut lost));
        if i < 3 {
            assert!((a - b).abs() < 1e-4, "step {i}: {a}, {b}");
        } else {
            assert_eq!(a, b, "step {i}");
        }
    }
    assert!(values(&cpu) == values(&lost));
    let told = lost.on_gpu().unwrap();
    assert!(told.left.is_some_and(|why| why.contains("lost")));
}

#[test]
fn an_error_on_the_cpu_leaves_what_the_device_updated_before_as_it_was() {
    let gpu = gpu();
    let mut graph = Graph::default();
    let [acc, x, at, sum, picked] = ["acc", "x", "at", "sum", "picked"].map(|n| graph.add_value(n, None, None));
    let node = |name: &str, def, inputs: [ValueId; 2], output| Node {
        name: name.into(),
        op: Op::Own(def, Arc::new(Attrs::default())),
        inputs: inputs.map(Some).to_vec(),
        outputs: vec![Some(output)],
    };
    (graph.inputs, graph.outputs) = (vec![acc, x, at], vec![sum, picked]);
    // Without a form for GPUs, and with indices that may have no result.
    let gather = find("", "GatherND").unwrap();
    graph.nodes = vec![node("add", &optimizer::ACCUMULATE, [acc, x], sum), node("pick", gather, [sum, at], picked)];
    let facts = [(DType::F32, 3), (DType::F32, 3), (DType::I64, 1)].map(|(t, n)| Fact::new(t, vec![n]));
    let options = RunOptions { device: Device::Gpu(gpu), ..RunOptions::default() };
    let residents = [Resident { input: 0, next: Some(0) }];
    let mut plan = Plan::with_residents(&graph, &facts, &residents, &options).unwrap();
    let told = plan.on_gpu().unwrap();
    let ops = |steps: &[crate::plan::StepInfo]| steps.iter().map(|s| s.op.clone()).collect::<Vec<_>>();
    assert_eq!((ops(&told.steps), ops(&told.on_cpu)), (vec!["Accumulate".into()], vec!["GatherND".into()]));
    let three = |v: [f32; 3]| Tensor::f32(&[3], v.to_vec()).unwrap();
    let mut arena = Arena::default();
    arena.put(0, &three([1.0, 2.0, 3.0])).unwrap();
    let mut run = |arena: &mut Arena, at: i64| {
        let found = plan.run_in(arena, &[&three([10.0, 20.0, 30.0]), &Tensor::i64(&[1], vec![at]).unwrap()]);
        (found.map(|t| t[0].clone()), arena.take(0, DType::F32, &[3]).unwrap())
    };
    let (found, acc) = run(&mut arena, 2);
    assert_eq!((found.unwrap().as_f32().unwrap(), acc), (&[33.0][..], three([11.0, 22.0, 33.0])));
    for _ in 0..2 {
        let (found, acc) = run(&mut arena, 7);
        assert!(matches!(found, Err(PlanError::Op { .. })), "{found:?}");
        assert_eq!(acc, three([11.0, 22.0, 33.0]));
    }
    // It goes on from there, on the device too.
    let (found, acc) = run(&mut arena, 1);
    assert_eq!((found.unwrap().as_f32().unwrap(), acc), (&[42.0][..], three([21.0, 42.0, 63.0])));
    assert_eq!(plan.on_gpu().unwrap().left, None);
}

#[test]
fn functions_that_are_one_call_read_no_parameter_that_was_replaced_before_it() {
    let gpu = gpu();
    for late in [false, true] {
        let mut graph = Graph::default();
        let [acc, x, sum, size, y] = ["acc", "x", "sum", "size", "y"].map(|n| graph.add_value(n, None, None));
        let node = |name: &str, def, inputs: &[ValueId], output| Node {
            name: name.into(),
            op: Op::Own(def, Arc::new(Attrs::default())),
            inputs: inputs.iter().map(|&v| Some(v)).collect(),
            outputs: vec![Some(output)],
        };
        (graph.inputs, graph.outputs) = (vec![acc, x], vec![sum, y]);
        graph.nodes = vec![
            node("size", find("", "Abs").unwrap(), &[acc], size),
            node("y", find("", "Mul").unwrap(), &[size, x], y),
        ];
        graph.nodes.insert(1 + usize::from(!late), node("add", &optimizer::ACCUMULATE, &[acc, x], sum));
        let facts = [(); 2].map(|()| Fact::new(DType::F32, vec![3]));
        let options = RunOptions { device: Device::Gpu(gpu.clone()), ..RunOptions::default() };
        let residents = [Resident { input: 0, next: Some(0) }];
        let mut plan = Plan::with_residents(&graph, &facts, &residents, &options).unwrap();
        let told = plan.on_gpu().unwrap();
        assert_eq!((told.calls, told.joined), if late { (3, 0) } else { (2, 1) }, "{told:?}");
        let three = |v: [f32; 3]| Tensor::f32(&[3], v.to_vec()).unwrap();
        let mut arena = Arena::default();
        arena.put(0, &three([-1.0, 2.0, -3.0])).unwrap();
        let found = plan.run_in(&mut arena, &[&three([10.0, 20.0, 30.0])]).unwrap();
        assert_eq!(found[0], three([10.0, 40.0, 90.0]));
        assert_eq!(arena.take(0, DType::F32, &[3]).unwrap(), three([9.0, 22.0, 27.0]));
    }
}

#[test]
fn a_plan_that_finds_the_memory_of_the_device_full_takes_nothing_from_those_that_are_there() {
    let archive = Archive::read();
    let case = archive.case("mlp-labels");
    let run = |starved: bool| {
        let gpu = gpu();
        let (mut t, batch) = archive.trainer(&case, on(&gpu), |_| {});
        let step = |t: &mut Trainer| t.step(std::slice::from_ref(&batch), 0.01).unwrap().loss;
        let mut losses = vec![step(&mut t), step(&mut t)];
        // What was updated on the device is evaluated by a plan that is made now.
        gpu.starve(starved);
        let judged = t.evaluate(&batch).unwrap();
        losses.extend([step(&mut t), step(&mut t)]);
        gpu.starve(false);
        assert_eq!(t.on_gpu().unwrap().left, None);
        (losses, judged, values(&t))
    };
    let ((want, a, state), (got, b, same)) = (run(false), run(true));
    assert_eq!(want, got);
    assert!(state == same, "the same bits");
    assert!((a - b).abs() < 1e-4, "{a} on the device, {b}");
}

#[test]
fn parts_of_a_batch_accumulate_on_the_device_to_the_step_of_the_cpu() {
    let gpu = gpu();
    let archive = Archive::read();
    let case = archive.case("mlp-labels");
    let run = |options: TrainOptions| {
        let (mut t, batch) = archive.trainer(&case, options, |r| r.accumulate = true);
        // Evaluation in between reads what the other plan left on the device.
        let losses: Vec<f32> = (0..3)
            .flat_map(|_| {
                let step = t.step(&[batch.clone(), batch.clone()], 0.01).unwrap().loss;
                [step, t.evaluate(&batch).unwrap()]
            })
            .collect();
        (losses, values(&t))
    };
    let ((want, a), (got, b)) = (run(TrainOptions::default()), run(on(&gpu)));
    assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-4), "{want:?} {got:?}");
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3), "{name}");
    }
}

#[test]
fn steps_that_are_warm_make_nothing_on_the_device_any_more() {
    let gpu = gpu();
    let archive = Archive::read();
    let case = archive.case("mlp-cross-entropy");
    let (mut trainer, batch) = archive.trainer(&case, on(&gpu), |_| {});
    let mut step = || trainer.step(std::slice::from_ref(&batch), 0.01).unwrap();
    step();
    let made = gpu.objects_made();
    (0..5).for_each(|_| assert!(step().loss.is_finite()));
    assert_eq!(gpu.objects_made(), made);
}
