//! Training on a GPU beside the same on the CPU. On whatever adapter there is, software among them; where there is none
//! at all these tests fail and say so.
use super::tests::{Archive, values};
use super::*;
use crate::device::Gpu;

fn gpu() -> Gpu {
    Gpu::open(true)
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"))
}

fn on(gpu: &Gpu) -> TrainOptions {
    TrainOptions { device: Device::Gpu(gpu.clone()), ..TrainOptions::default() }
}

#[test]
fn steps_of_every_recorded_model_go_as_on_the_cpu_and_twice_to_the_same_bits() {
    let gpu = gpu();
    let archive = Archive::read();
    let mut rest = std::collections::BTreeMap::<String, usize>::new();
    let mut wrong = Vec::new();
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
            *rest.entry(s.op.clone()).or_default() += 1;
        }
        if want.iter().zip(&got).any(|(a, b)| (a - b).abs() > 1e-3 * a.abs().max(1e-2)) {
            wrong.push(format!("{}: {want:?} on the CPU, {got:?}", case.name));
        }
        let (again, same, _) = run(on(&gpu));
        if again != got || same != state {
            wrong.push(format!("{} goes otherwise the second time", case.name));
        }
    }
    println!("on the CPU: {rest:?}");
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
