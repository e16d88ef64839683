//! Gradients of recurrences on a GPU beside the CPU's kernels. On whatever adapter there is, software among them; where there is
//! none at all these tests fail and say so.
use std::sync::Arc;

use super::backward::RECURRENT_VJP;
use crate::device::{Device, Gpu};
use crate::graph::{Graph, Node, Op};
use crate::ops::{Attr, Attrs};
use crate::plan::{OnGpu, RunOptions, Runner};
use crate::tensor::Tensor;

#[derive(Clone, Copy, Debug)]
struct Case {
    cell: &'static str,
    direction: &'static str,
    layout: i64,
    /// Steps, sequences, inputs, units.
    sizes: [usize; 4],
    /// Operands that are given beside the first three, and gradients.
    given: &'static [usize],
    late: i64,
    /// Results that are asked for.
    wanted: &'static [usize],
}

fn floats(seed: &mut u64, shape: &[usize], scale: f32) -> Tensor {
    let mut one = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale
    };
    Tensor::f32(shape, (0..shape.iter().product()).map(|_| one()).collect()).unwrap()
}

/// The results of the same node on both, and what of it ran on the GPU.
fn both(gpu: &Gpu, c: Case) -> (Vec<Tensor>, Vec<Tensor>, OnGpu) {
    let [s, n, i, h] = c.sizes;
    let (d, g) = (if c.direction == "bidirectional" { 2 } else { 1 }, if c.cell == "LSTM" { 4 } else { 3 });
    let state = if c.layout == 1 { vec![n, d, h] } else { vec![d, n, h] };
    let (x, y) = match c.layout {
        1 => (vec![n, s, i], vec![n, s, d, h]),
        _ => (vec![s, n, i], vec![s, d, n, h]),
    };
    let (w, r, b) = (vec![d, g * h, i], vec![d, g * h, h], vec![d, 2 * g * h]);
    let shapes = [&x, &w, &r, &b, &vec![n], &state, &state, &vec![d, 3 * h], &y, &state, &state];
    let mut graph = Graph::default();
    let (mut inputs, mut seed, mut values) = (Vec::new(), 7, Vec::new());
    for (k, shape) in shapes.into_iter().enumerate() {
        let given = k < 3 || c.given.contains(&k);
        inputs.push(given.then(|| graph.add_value(&format!("in{k}"), None, None)));
        graph.inputs.extend(inputs[k]);
        let scale = if matches!(k, 1 | 2) { 1.0 / (h as f32).sqrt() } else { 1.0 };
        values.extend(given.then(|| floats(&mut seed, shape, scale)));
    }
    let outputs: Vec<_> =
        (0..7).map(|k| c.wanted.contains(&k).then(|| graph.add_value(&format!("out{k}"), None, None))).collect();
    graph.outputs = outputs.iter().flatten().copied().collect();
    let attrs = [
        ("cell", Attr::Str(c.cell.into())),
        ("direction", Attr::Str(c.direction.into())),
        ("hidden_size", Attr::Int(h as i64)),
        ("layout", Attr::Int(c.layout)),
        ("linear_before_reset", Attr::Int(c.late)),
    ];
    let op = Op::Own(&RECURRENT_VJP, Arc::new(Attrs::of(attrs)));
    graph.nodes.push(Node { name: "back".into(), op, inputs, outputs });
    let graph = Arc::new(graph);
    let given: Vec<&Tensor> = values.iter().collect();
    let want = Runner::new(graph.clone(), RunOptions::default()).run(&given).unwrap();
    let device = Device::Gpu(gpu.clone());
    let mut runner = Runner::new(graph, RunOptions { device, ..RunOptions::default() });
    let got = runner.run(&given).unwrap();
    (want, got, runner.last_plan().unwrap().on_gpu().unwrap())
}

const ALL: Case = Case {
    cell: "LSTM",
    direction: "forward",
    layout: 0,
    sizes: [5, 3, 4, 6],
    given: &[3, 5, 6, 8, 9, 10],
    late: 1,
    wanted: &[0, 1, 2, 3, 4, 5],
};

#[test]
fn gradients_of_lstm_and_gru_are_those_of_the_cpu() {
    let gpu = Gpu::open(true, None)
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"));
    let gru = Case { cell: "GRU", given: &[3, 5, 8, 9], wanted: &[0, 1, 2, 3, 4], ..ALL };
    let mut cases = Vec::new();
    for base in [ALL, gru] {
        for direction in ["forward", "reverse", "bidirectional"] {
            for layout in [0, 1] {
                cases.push(Case { direction, layout, ..base });
            }
        }
        // Only the last state, no biases and no first state; more units than threads; a part of the results.
        cases.push(Case { given: &[9], ..base });
        cases.push(Case { given: &[3, 8], direction: "bidirectional", sizes: [3, 2, 5, 300], ..base });
        cases.push(Case { given: &[8], wanted: &[0], ..base });
        cases.push(Case { given: &[3, 5, 8], wanted: &[2, 4], ..base });
    }
    for c in cases {
        let (want, got, told) = both(&gpu, c);
        assert_eq!((told.steps.len(), told.on_cpu.len(), &told.refused), (1, 0, &vec![]), "{c:?}");
        assert_eq!(got.len(), c.wanted.len());
        for (k, (a, b)) in want.iter().zip(&got).enumerate() {
            assert_eq!(a.shape(), b.shape(), "{c:?}");
            let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
            let most = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
            // Sums of at most 1200 products, over at most 5 steps, in another order, and functions good to a few units.
            let off =
                a.iter().zip(b).fold(0f32, |m, (a, b)| if b.is_nan() { f32::INFINITY } else { m.max((a - b).abs()) });
            assert!(off <= 2e-5 * most, "{c:?}: result {} is {off:e} off of {most}", c.wanted[k]);
            assert!(a.iter().any(|v| *v != 0.0), "{c:?}: result {} is nothing", c.wanted[k]);
        }
    }
}

#[test]
fn what_the_device_has_no_form_for_runs_on_the_cpu_and_is_told() {
    let gpu = Gpu::open(true, None)
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"));
    let early = Case { cell: "GRU", given: &[3, 8], late: 0, wanted: &[0, 1], ..ALL };
    let peepholes = Case { given: &[3, 7, 8], wanted: &[0, 6], ..ALL };
    for c in [early, peepholes] {
        let (want, got, told) = both(&gpu, c);
        assert!(told.left.is_some_and(|why| why.contains("no step")), "{c:?}");
        assert_eq!(want, got);
    }
}
