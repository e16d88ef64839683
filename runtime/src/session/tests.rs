//! What a session computes products in, on bundles that accept bf16 and on one made so that only bf16 fails.
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::import::to_onnx;
use crate::precision::COSINE;

fn bundle(name: &str) -> Bundle {
    Bundle::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name).join(format!("{name}.hone")))
        .unwrap()
}

fn open(bundle: &Bundle, precision: Precision, multiplies: bool) -> Result<Session, SessionError> {
    Session::on_cpu(
        bundle,
        SessionOptions { precision, ..SessionOptions::default() },
        multiplies.then_some(()).ok_or("this CPU has no instructions"),
    )
}

fn kernels(session: &Session) -> Vec<&'static str> {
    session.runner.last_plan().unwrap().steps().iter().map(|s| s.kernel).collect()
}

fn logits(session: &mut Session, bundle: &Bundle) -> Vec<f32> {
    let (input, _) = golden(bundle).unwrap().unwrap();
    let name = bundle.recipe().unwrap().logits;
    let found = session.run(&input).unwrap();
    found.iter().find(|(n, _)| *n == name).unwrap().1.as_f32().unwrap().to_vec()
}

/// The bundle with a bias of the head moved so that two classes are nearly equal: in `f32` the one is ahead, in bf16 the other.
fn torn(of: &Bundle) -> Bundle {
    let (mut exact, mut rough) = (open(of, Precision::F32, false).unwrap(), open(of, Precision::Bf16, false).unwrap());
    let (a, b) = (logits(&mut exact, of), logits(&mut rough, of));
    let classes = of.recipe().unwrap();
    let shape = exact.run(&golden(of).unwrap().unwrap().0).unwrap();
    let columns = *shape.iter().find(|(n, _)| *n == classes.logits).unwrap().1.shape().last().unwrap();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&i, &j| a[j].total_cmp(&a[i]));
    let (i, j) = (order[0], order[1]);
    let turn = (b[i] - b[j]) - (a[i] - a[j]);
    assert!(turn != 0.0, "bf16 changes nothing here");
    let (ahead, behind) = if turn < 0.0 { (i, j) } else { (j, i) };
    let mut graph = exact.graph().clone();
    let bias = graph.values.iter_mut().find(|v| v.name == "head.bias").unwrap();
    let mut moved = bias.constant.as_ref().unwrap().as_f32().unwrap().to_vec();
    moved[ahead] += turn.abs() / 2.0 - (a[ahead] - a[behind]);
    bias.constant = Some(Arc::new(Tensor::f32(&[columns], moved).unwrap()));
    let onnx = to_onnx(&graph, &of.read("onnx/model.onnx").unwrap()).unwrap();
    crate::compress::rebundle(of, &onnx).unwrap()
}

#[test]
fn bf16_is_taken_where_the_golden_samples_accept_it_and_the_result_says_so() {
    let strip = bundle("strip");
    for (precision, multiplies) in [(Precision::Bf16, false), (Precision::Auto, true)] {
        let mut session = open(&strip, precision, multiplies).unwrap();
        let rough = logits(&mut session, &strip);
        assert!(kernels(&session).iter().filter(|k| k.ends_with("wbf16")).count() >= 2, "{:?}", kernels(&session));
        let chosen = session.precision();
        assert_eq!((chosen.name(), chosen.asked), ("bf16", precision));
        let agreement = chosen.agreement.unwrap();
        assert!(agreement.relative > 0.0 && agreement.cosine >= COSINE && agreement.rows > 0, "{agreement}");
        // Not the same bits: bf16 was really multiplied.
        assert_ne!(rough, logits(&mut open(&strip, Precision::F32, multiplies).unwrap(), &strip));
    }
}

#[test]
fn auto_stays_with_f32_to_the_bit_where_the_cpu_or_the_samples_say_no() {
    let strip = bundle("strip");
    let torn = torn(&strip);
    for (of, multiplies, why) in [(&strip, false, "instructions"), (&torn, true, "top answers")] {
        let mut session = open(of, Precision::Auto, multiplies).unwrap();
        let found = logits(&mut session, of);
        assert!(kernels(&session).iter().all(|k| !k.contains("bf16")), "{:?}", kernels(&session));
        assert_eq!(session.precision().name(), "f32");
        assert!(session.precision().why.contains(why), "{}", session.precision());
        assert_eq!(found, logits(&mut open(of, Precision::F32, multiplies).unwrap(), of));
    }
}

#[test]
fn bf16_that_the_samples_refuse_is_an_error_with_figures() {
    let torn = torn(&bundle("strip"));
    let Err(refused) = open(&torn, Precision::Bf16, true) else { panic!("bf16 was taken") };
    assert_eq!(refused.class(), Class::Gate);
    let said = refused.to_string();
    assert!(said.contains("top answers equal") && said.contains("--precision f32"), "{said}");
}

#[test]
fn recorded_inputs_judge_the_bf16_of_a_file_and_of_a_bundle() {
    let strip = bundle("strip");
    let sample = golden(&strip).unwrap().unwrap().0;
    let file = |of: &Bundle, precision| {
        let onnx = of.read("onnx/model.onnx").unwrap().into_owned();
        Session::from_onnx(onnx, "m.onnx", SessionOptions { precision, ..SessionOptions::default() }).unwrap()
    };
    let cases = [sample.clone(), sample.clone()];
    for precision in [Precision::Auto, Precision::Bf16] {
        let mut session = file(&strip, precision);
        session.judge_on(&cases, Ok(())).unwrap();
        session.run(&sample).unwrap();
        assert!(kernels(&session).iter().any(|k| k.ends_with("wbf16")), "{:?}", kernels(&session));
        let why = &session.precision().why;
        assert!(why.contains("accepted on 2 recorded cases") && why.contains("cosine"), "{why}");
    }
    // On a CPU without the instructions nothing is judged, with f32 nothing is asked.
    let mut session = file(&strip, Precision::Auto);
    session.judge_on(&cases, Err("no instructions")).unwrap();
    assert_eq!((session.precision().half, session.precision().why.as_str()), (None, "no instructions"));
    let mut session = file(&strip, Precision::F32);
    session.judge_on(&cases, Ok(())).unwrap();
    assert!(session.precision().agreement.is_none());

    let torn = torn(&strip);
    let mut session = file(&torn, Precision::Auto);
    session.judge_on(&cases, Ok(())).unwrap();
    session.run(&sample).unwrap();
    assert!(
        session.precision().half.is_none() && session.precision().why.contains("refused"),
        "{}",
        session.precision()
    );
    assert!(kernels(&session).iter().all(|k| !k.contains("bf16")), "{:?}", kernels(&session));
    let refused = file(&torn, Precision::Bf16).judge_on(&cases, Ok(())).unwrap_err();
    assert_eq!(refused.class(), Class::Gate);
    assert!(refused.to_string().contains("recorded cases"), "{refused}");
    // What the golden samples refused, cases do not allow.
    let mut session = open(&torn, Precision::Auto, true).unwrap();
    session.judge_on(&cases, Ok(())).unwrap();
    assert!(session.precision().why.contains("golden samples"), "{}", session.precision());
}

#[test]
fn without_samples_and_by_reference_it_is_said_why_there_is_no_bf16() {
    let onnx = bundle("strip").read("onnx/model.onnx").unwrap().into_owned();
    let file = |precision, reference| {
        Session::from_onnx(&onnx, "m.onnx", SessionOptions { precision, reference, ..SessionOptions::default() })
    };
    let auto = file(Precision::Auto, false).unwrap();
    assert!(
        auto.precision().half.is_none() && auto.precision().why.contains("no golden samples"),
        "{}",
        auto.precision()
    );
    let asked = file(Precision::Bf16, false).unwrap();
    assert!(
        asked.precision().half == Some(Half::Bf16) && asked.precision().why.contains("no golden samples"),
        "{}",
        asked.precision()
    );
    let Err(e) = file(Precision::F16, false) else { panic!("a CPU has no f16") };
    assert!(e.to_string().contains("--device gpu"), "{e}");
    let Err(e) = file(Precision::Bf16, true) else { panic!("reference functions have no bf16") };
    assert_eq!(e.class(), Class::Unsupported);
}

#[cfg(feature = "gpu")]
mod gpu_tests {
    use super::*;
    use crate::device::Gpu;

    #[test]
    fn on_a_gpu_weights_in_16_bits_take_half_the_memory_and_answer_within_their_bounds() {
        let strip = bundle("strip");
        let open = |precision| {
            let gpu = Gpu::open(true, None).unwrap_or_else(|e| panic!("{e}: apt-get install mesa-vulkan-drivers"));
            let device = Device::Gpu(gpu.clone());
            let mut session =
                Session::on_cpu(&strip, SessionOptions { precision, device, ..SessionOptions::default() }, Ok(()))
                    .unwrap();
            let found = logits(&mut session, &strip);
            let told = session.on_gpu().unwrap();
            assert!(told.refused.is_empty() && told.left.is_none(), "{told:?}");
            (found, gpu.weights().1, session.precision().clone(), gpu.multiplies_halves())
        };
        let (exact, all, ..) = open(Precision::F32);
        let mut rounded = Vec::new();
        for (precision, of) in [(Precision::Bf16, Half::Bf16), (Precision::F16, Half::F16)] {
            let (rough, half, chosen, _) = open(precision);
            assert!(chosen.half == Some(of) && chosen.agreement.is_some(), "{chosen}");
            assert_ne!(rough, exact);
            assert!(half * 10 < all * 7, "{half} of {all} bytes");
            rounded.push((rough, chosen.agreement.unwrap().relative));
        }
        // Three bits more.
        assert!(rounded[1].1 * 2.0 < rounded[0].1, "f16 {} and bf16 {} apart", rounded[1].1, rounded[0].1);
        // By itself it is taken where the device multiplies matrices of it: what else it gains nobody has measured.
        let (auto, bytes, chosen, multiplies) = open(Precision::Auto);
        if multiplies {
            assert_eq!((chosen.half, auto), (Some(Half::F16), rounded[1].0.clone()), "{chosen}");
        } else {
            assert!(chosen.half.is_none() && chosen.why.contains("--precision f16"), "{chosen}");
            assert_eq!((auto, bytes), (exact, all));
        }
    }
}
