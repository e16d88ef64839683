//! On whatever adapter there is, software among them. Where there is none at all these tests fail and say so.
use super::*;
use crate::coded::LookedUp;
use crate::codes::{self, Finish, Spread, Sums, Zero};
use crate::copy::{Axis, Border, Copy};
use crate::functions::{FUNCTIONS, Function, function};
use crate::gather::{Gather, Table};
use crate::kernel::{Call, Matrices, Needs, bytes_of, floats_of};
use crate::lookup::lookup;
use crate::map::{Element, Map, Operand};
use crate::norm::{self, NormBack};
use crate::pairs::{self, Pairs};
use crate::picks::{self, Picks};
use crate::planes::{self, Planes};
use crate::product::{Batch, Left, Product, Right};
use crate::recurrent::{Cell, Recurrence};
use crate::recurrent_back::Back;
use crate::recurrent_codes::QuantisedLstm;
use crate::resample::Resample;
use crate::rows::{Along, Rows};
use crate::update::Update;
use crate::window::{MaxCodes, Of, Windows};
use hone_kernels::coded::Blocks;
use hone_kernels::conv::Window;
use hone_kernels::epilogue::Activation;
use hone_kernels::quantize::{Codes, Sum};
use translations::{Checks, METAL_VERSIONS};
use wgpu::naga;

mod chains;
mod translations;

/// The device of these tests. One for each, as a lost one stays lost.
pub(crate) fn device() -> Device {
    Device::open(&Options { software: true, ..Options::default() })
        .unwrap_or_else(|e| panic!("{e}: these tests need one; on Debian `apt-get install mesa-vulkan-drivers`"))
}

fn map(name: &str, operands: &[(Element, [usize; 3])], result: Element) -> Map {
    let operands = operands.iter().map(|(e, s)| Operand { element: *e, strides: s.to_vec() }).collect();
    let function = function(name).unwrap();
    Map { function, constants: vec![0.5, 1.5], shape: vec![3, 5, 7], operands, result }
}

const SAME: [usize; 3] = [35, 7, 1];

/// The operands of a function, as they may lie, and its result.
fn signature(function: &Function) -> (Vec<(Element, [usize; 3])>, Element) {
    let f = Element::F32;
    let of = |e: Element| vec![(e, SAME); function.operands];
    match function.name {
        "Not" | "And" | "Or" | "Xor" => (of(Element::U8), Element::U8),
        "Where" => (vec![(Element::U8, SAME), (f, [1, 0, 3]), (f, [0; 3])], f),
        "AddUnless" => (vec![(f, SAME), (Element::U8, [1, 0, 3])], f),
        "CastToFloat" => (of(Element::I32), f),
        "CastToBool" => (of(Element::I64), Element::U8),
        "MaxInt" => (of(Element::I64), Element::I64),
        "AddInt" => (of(Element::I32), Element::I32),
        "Dequantize" => (vec![(Element::U8, SAME), (f, [0; 3]), (Element::U8, [0; 3])], f),
        "DequantizeSigned" => (vec![(Element::I8, SAME), (f, [0; 3])], f),
        "QuantizeSigned" => (vec![(f, SAME), (f, [0; 3]), (Element::I8, [0; 3])], Element::I8),
        "Quantize" => (vec![(f, SAME), (f, [0; 3]), (Element::U8, [0; 3])], Element::U8),
        _ if function.decides => (of(f), Element::U8),
        _ => (of(f), f),
    }
}

/// Everything that is computed along an axis.
fn every_row() -> Vec<Rows> {
    let mut rows = vec![
        Rows::Sum,
        Rows::Max,
        Rows::Min,
        Rows::Prod,
        Rows::L1,
        Rows::L2,
        Rows::SumSquare,
        Rows::LogSum,
        Rows::LogSumExp,
        Rows::Softmax,
        Rows::SoftmaxOrNothing,
        Rows::LogSoftmax,
    ];
    for centred in [false, true] {
        rows.extend([false, true].map(|bias| Rows::Norm { centred, bias }));
    }
    rows
}

fn along(rows: Rows, inner: usize) -> Along {
    Along { rows, outer: 2, length: 3, inner, scales: 3, epsilon: 1e-5, factor: 1.0 }
}

/// One call of the text of every kernel, and of some of chains, which have no end: what a kernel's text depends on is in its name.
pub(crate) fn calls() -> Vec<Call> {
    let mut out = Vec::new();
    let f = Element::F32;
    for function in FUNCTIONS {
        let (operands, result) = signature(function);
        out.extend(map(function.name, &operands, result).call());
    }
    out.extend((0..40).map(chains::random));
    out.extend(map("Add", &[(f, SAME), (f, [1, 0, 3])], f).call());
    out.extend(map("Equal", &[(Element::I64, SAME), (Element::I64, [0; 3])], Element::U8).call());
    out.extend(map("CastToFloat", &[(Element::U8, SAME)], f).call());
    for unit in [1, 4, 8] {
        let axes = vec![Axis::plain(3, 4, 4), Axis::plain(4, 1, 1)];
        out.extend(Copy { unit, base: 0, to: 0, axes, border: Border::Fill([0; 8]) }.call());
    }
    for table in [Table::Words, Table::Pairs, Table::I8] {
        for wide in [false, true] {
            out.extend(Gather { table, wide, outer: 1, length: 3, inner: 2, count: 2 }.call());
        }
    }
    for signed in [false, true] {
        let codes = Codes { zero: 0, low: 0, high: 255 };
        let sum = pairs::Of::Sum(Sum { left: 0.5, right: 0.5, fixed: 0.0, codes });
        let product = pairs::Of::Product(hone_kernels::quantize::Product { left: 0, right: 0, ratio: 0.5, codes });
        for of in [sum, product] {
            let strides = [vec![7, 1], vec![0, 1]];
            out.extend(Pairs { of, signed, shape: vec![3, 7], strides }.call());
        }
    }
    for (bits, signed) in [(2, false), (4, false), (8, false), (8, true)] {
        for (zeros, wide) in [(false, false), (true, true)] {
            let blocks = Blocks { along: 20, inner: 1, block: 16, bits, signed, middle: 0 };
            out.extend(LookedUp { blocks, zeros, wide, outer: 1, length: 4, inner: 20, count: 2 }.call());
        }
    }
    out.extend(lookup(9));
    for rows in every_row() {
        out.extend([1, 2].map(|inner| along(rows, inner)).iter().filter_map(Along::call));
    }
    let window = Window {
        input: [1, 4, 4],
        kernel: [1, 2, 2],
        output: [1, 3, 3],
        stride: [1; 3],
        dilation: [1; 3],
        pad: [0; 3],
    };
    out.extend(MaxCodes { window, batch: 1, channels: 3, signed: false }.call());
    // Small ones; one row and nine, whose long sums are shared; many rows, for which there is another manner.
    let products = [(9, 6, 8, 4), (9, 6, 5, 3), (1, 6, 64, 64), (9, 6, 65, 65), (9, 6, 64, 64), (4096, 64, 64, 64)];
    for (m, n, k, channels) in products {
        for right in
            [Right::Packed, Right::PackedBf16, Right::PackedF16, Right::PackedI8, Right::Plain { row: n, step: 1 }]
        {
            let ends = [
                (false, false, Activation::None),
                (true, true, Activation::Clip(0.0, 6.0)),
                (true, false, Activation::Relu),
                (true, false, Activation::HardSigmoid(0.2, 0.5)),
            ];
            // How a sum is made does not hang on what follows it.
            let ends = if k < 64 { &ends[..] } else { &ends[..2] };
            for &(bias, residual, activation) in ends {
                let batch = Batch::one();
                let base = Product {
                    m,
                    n,
                    k,
                    left: Left::Matrix { row: k, step: 1 },
                    right,
                    y_row: n,
                    batch,
                    bias,
                    residual,
                    alpha: 1.0,
                    activation,
                    matrices: None,
                };
                out.extend(base.call());
                if right == Right::Packed {
                    out.extend(Product { right: Right::Packed4 { block: 32 }, ..base.clone() }.call());
                }
                let left = Left::Window { window, channels, pixel: channels };
                out.extend(Product { left, k: 4 * channels, ..base }.call());
            }
        }
    }
    for signed in [false, true] {
        let sums = [(3, 5, 8), (3, 5, 7), (1, 5, 72), (3, 5, 72), (1, 5, 69), (3, 5, 69), (64, 64, 16), (64, 64, 17)];
        for (m, n, k) in sums {
            for zero in [Zero::Known(3), Zero::Told] {
                out.extend(Sums { m, n, k, signed, left: codes::Left::Matrix, zero }.call());
            }
            let left = codes::Left::Window { window, channels: k, groups: 1 };
            out.extend(Sums { m: 9 * m, n, k: 4 * k, signed, left, zero: Zero::Known(3) }.call());
        }
    }
    out.extend(Spread { window, batch: 1, channels: 4, zero: 3 }.call());
    let added = (0, 0, 255);
    for (table, added) in [(false, None), (true, None), (false, Some(added)), (true, Some(added))] {
        let of = codes::Of::Codes { codes: (0, 0, 255), table, added };
        out.extend(Finish { elements: 12, columns: 4, of }.call());
    }
    for (factor, bias, residual) in
        [(false, false, false), (true, true, false), (true, true, true), (false, true, true)]
    {
        let of = codes::Of::Floats { factor, bias, residual, activation: Activation::Relu };
        out.extend(Finish { elements: 12, columns: 4, of }.call());
    }
    out.extend(codes::dynamic(100));
    for cell in [Cell::Lstm, Cell::Gru { late: false }, Cell::Gru { late: true }] {
        let (z, y, state) = ([1, 1, 0], [4, 4, 0], [4, 0]);
        for bias in [None, Some(0)] {
            for tape in [false, true] {
                let of =
                    Recurrence { cell, steps: 2, batch: 1, units: 4, reverse: false, z, r: 0, y, state, bias, tape };
                out.extend(of.call());
            }
        }
        for dy in [false, true] {
            let back = Back { cell, steps: 2, batch: 1, units: 4, reverse: false, dy, z, y, state, r: 0, d: [16, 0] };
            out.extend(back.call());
        }
    }
    let (z, y, state) = ([1, 1, 0], [4, 4, 0], [4, 0]);
    out.extend(QuantisedLstm { steps: 2, batch: 1, units: 4, reverse: false, z, y, state }.call());
    out.extend(Resample { outer: 1, length: 3, count: 2, inner: 2, taps: 2 }.call());
    for clipped in [false, true] {
        let (decay, epsilon) = (0.1, 1e-8);
        out.extend(Update::Sgd { momentum: 0.9, nesterov: true, decay, clipped }.call(9));
        out.extend(Update::AdamW { beta1: 0.9, beta2: 0.999, epsilon, decay, clipped }.call(9));
    }
    out.extend([Update::Accumulate, Update::Clear].iter().filter_map(|u| u.call(9)));
    for wide in [false, true] {
        for of in [picks::Of::Pick, picks::Of::Add { shared: false }, picks::Of::Add { shared: true }] {
            out.extend(Picks { of, wide, outer: 1, length: 3, inner: 2, count: 2 }.call());
        }
    }
    for of in [norm::Of::Operand, norm::Of::Parameters] {
        out.extend(NormBack { of, rows: 2, length: 3, centred: true, epsilon: 1e-5 }.call());
    }
    let mut of = vec![planes::Of::Weight, planes::Of::Max, planes::Of::Average];
    for bias in [false, true] {
        of.extend([planes::Of::Forward { bias }, planes::Of::Input { bias }]);
    }
    for of in of {
        out.extend(Planes { of, window, batch: 1, groups: 2, c: 1, o: 1 }.call());
    }
    for channels in [3, 4] {
        for of in [
            Of::Max,
            Of::Average,
            Of::Depthwise { bias: false, residual: false, activation: Activation::None },
            Of::Depthwise { bias: true, residual: true, activation: Activation::Silu },
        ] {
            out.extend(Windows { window, batch: 1, channels, first: false, of }.call());
        }
    }
    out.into_iter().flat_map(with_others).collect()
}

/// A call and those that may be taken in its place, less those that ask more of a device than every one has.
fn with_others(mut call: Call) -> Vec<Call> {
    let mut all = std::mem::take(&mut call.others);
    all.retain(|other| other.kernel.needs == Needs::Nothing);
    all.push(call);
    all
}

/// Calls along rows of that length, which others by subgroups may be taken for.
fn of_rows(rows: usize, length: usize) -> Vec<Call> {
    let all = every_row()
        .into_iter()
        .map(|of| Along { rows: of, outer: rows, length, inner: 1, scales: length, epsilon: 1e-5, factor: 1.0 }.call());
    let back = NormBack { of: norm::Of::Operand, rows, length, centred: true, epsilon: 1e-5 };
    all.chain([back.call()]).map(Option::unwrap).collect()
}

/// One call of every text that asks for subgroups of that size.
fn by_subgroups(size: usize) -> Vec<Call> {
    let others = of_rows(2, 3).into_iter().flat_map(|call| call.others);
    others.filter(|other| other.kernel.needs == Needs::Subgroups(size)).collect()
}

#[test]
fn every_kernel_computes_what_its_plain_loop_does() {
    let device = device();
    let mut wrong = Vec::new();
    let calls = calls();
    assert!(calls.len() > 120, "{} calls", calls.len());
    for call in calls {
        if let Err(e) = device.ready(&call.kernel) {
            wrong.push(format!("{e}"));
        }
    }
    assert!(wrong.is_empty(), "{} kernels fail:\n{}", wrong.len(), wrong.join("\n"));
}

/// One call of every text that multiplies those matrices of a device: of both sizes of its squares.
fn with_matrices(of: Matrices) -> Vec<Call> {
    let window = Window {
        input: [1, 9, 9],
        kernel: [1, 2, 2],
        output: [1, 8, 8],
        stride: [1; 3],
        dilation: [1; 3],
        pad: [0; 3],
    };
    let mut out = Vec::new();
    let (n, k) = (64, 32);
    for m in [64, 64 * 64] {
        for right in [Right::PackedF16, Right::PackedI8, Right::Packed4 { block: 32 }, Right::Plain { row: n, step: 1 }]
        {
            for (end, activation) in [(false, Activation::None), (true, Activation::Clip(0.0, 6.0))] {
                let base = Product {
                    m,
                    n,
                    k,
                    left: Left::Matrix { row: k, step: 1 },
                    right,
                    y_row: n,
                    batch: Batch::one(),
                    bias: end,
                    residual: end,
                    alpha: 1.0,
                    activation,
                    matrices: Some(of),
                };
                out.extend(base.call());
                out.extend(Product { left: Left::Window { window, channels: k, pixel: k }, k: 4 * k, ..base }.call());
            }
        }
    }
    out.retain(|call| call.otherwise.is_some());
    out
}

#[test]
fn sums_by_subgroups_are_those_without_to_the_bit() {
    let device = device();
    let sizes = device.inner.subgroups.clone();
    if sizes.is_empty() {
        println!("`{}` ({}) has no subgroups: nothing was tried", device.adapter().name, device.adapter().driver);
        return;
    }
    println!("`{}` ({}): {sizes:?}", device.adapter().name, device.adapter().driver);
    let (rows, length) = (5, 201);
    let content = bytes_of(&crate::kernel::Draws::new(3).floats(rows * length));
    let bits = |call: &Call| {
        let alone = Call { others: Vec::new(), ..call.clone() };
        let kernel = &call.kernel;
        let step = content.len().next_multiple_of(ALIGN);
        let areas: Vec<_> = (0..kernel.reads + kernel.writes).map(|k| k * step..k * step + content.len()).collect();
        let mut builder = Builder::new(&device, areas.len() * step);
        builder.dispatch(&alone, &areas.iter().cloned().map(Binding::Arena).collect::<Vec<_>>()).unwrap();
        let mut recording = builder.finish().unwrap();
        let (read, written) = areas.split_at(kernel.reads);
        read.iter().for_each(|area| recording.upload(area.start, &content).unwrap());
        written.iter().for_each(|area| recording.upload(area.start, &vec![0; area.len()]).unwrap());
        let mut found = Vec::new();
        recording.run(0, written, |_, bytes| found.extend_from_slice(bytes)).unwrap();
        found
    };
    let calls = of_rows(rows, length);
    assert!(calls.len() >= 17, "{} calls", calls.len());
    let mut compared = 0;
    for call in &calls {
        let want = bits(call);
        // A device that says several sizes has one of them here.
        for other in call.others.iter().filter(|other| device.ready(&other.kernel).is_ok()) {
            assert!(want == bits(other), "{}", other.kernel.name);
            compared += 1;
        }
    }
    assert!(compared >= calls.len(), "{compared} of {}", calls.len());
}

#[test]
fn products_with_matrices_of_the_device_are_those_of_f16_with_sums_of_f32() {
    let device = device();
    assert_eq!(device.no_matrices(), [], "it says that it has them");
    let Some(of) = device.matrices() else {
        println!(
            "`{}` ({}) multiplies no matrices of f16: nothing was tried",
            device.adapter().name,
            device.adapter().driver
        );
        return;
    };
    println!("`{}` ({}): {of:?}", device.adapter().name, device.adapter().driver);
    let calls = with_matrices(of);
    assert!(calls.len() >= 24, "{} calls", calls.len());
    let refused: Vec<_> = calls.iter().filter_map(|c| device.ready(&c.kernel).err()).map(|e| e.to_string()).collect();
    assert!(refused.is_empty(), "{} of {} kernels fail:\n{}", refused.len(), calls.len(), refused.join("\n"));
}

#[test]
fn a_kernel_that_computes_something_else_is_refused() {
    let device = device();
    let right = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap().kernel;
    let source = right.source.replace("return a + b;", "return a + b * 1.01;");
    assert_ne!(source, right.source);
    let trials =
        move || map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap().kernel.trials();
    // Its trials call the kernel of the name they were made for; take the wrong text there.
    let liar = Kernel::new(right.name.clone(), source, 2, 1, trials);
    let refused = device.ready(&liar).unwrap_err();
    assert!(matches!(&refused, GpuError::Kernel { why, .. } if why.contains("element")), "{refused}");
    assert_eq!(device.ready(&right).unwrap_err(), refused, "it stays refused");
    let other = map("Mul", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let alone = liar.call(vec![], [1; 3]).unwrap();
    assert_eq!(device.usable(&alone).map(|(call, why)| (call.is_none(), why)).unwrap(), (true, vec![refused.clone()]));
    let instead = alone.otherwise(other.clone());
    let (found, why) = device.usable(&instead).unwrap();
    assert_eq!((found.unwrap().kernel.name.as_str(), why), (other.kernel.name.as_str(), vec![refused]));
    let broken = Kernel::new("broken".into(), "fn main( {".into(), 1, 1, Vec::new);
    assert!(matches!(device.ready(&broken), Err(GpuError::Kernel { .. })));
}

#[test]
fn of_calls_with_the_same_results_the_fastest_is_recorded_and_known_to_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = Options { software: true, cache: Some(folder.path().into()), ..Options::default() };
        Device::open(&options).unwrap_or_else(|e| panic!("{e}"))
    };
    let add = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    // The same sum, with those words in place of its own; tried as what it is.
    let other = |name: &str, body: &str| {
        let source = add.kernel.source.replace("return a + b;", body);
        assert_ne!(source, add.kernel.source);
        let of = add.kernel.clone();
        let trials = move || of.trials();
        let kernel = Kernel::new(name.into(), source, 2, 1, trials);
        crate::kernel::Call { kernel, others: Vec::new(), ..add.clone() }
    };
    // What it looks for is never there, which no compiler can know.
    let slow = other(
        "slow",
        "var s = a; for (var i = 0u; i < 40000u; i++) { if bitcast<u32>(s) == 0x7fc12345u + i { s = 0.0; } } return s + b;",
    );
    let quick = other("quick", "return b + a;");
    let nearly = other("nearly", "return a + b * 1.0000002;");
    let broken = other("broken", "return a + ;");
    let taken = |device: &Device, call: &crate::kernel::Call| {
        let (call, refused) = device.fastest(call, &[420, 420, 420]).unwrap();
        (call.kernel.name.clone(), refused.len())
    };
    let of = |first: &crate::kernel::Call, others: &[&crate::kernel::Call]| crate::kernel::Call {
        others: others.iter().map(|&c| c.clone()).collect(),
        ..first.clone()
    };
    let device = open();
    assert_eq!(taken(&device, &of(&slow, &[&quick])), ("quick".into(), 0));
    assert_eq!(taken(&device, &of(&quick, &[&slow])), ("quick".into(), 0), "in whatever order");
    assert_eq!(taken(&device, &of(&slow, &[&nearly])), ("slow".into(), 0), "other bits");
    assert_eq!(taken(&device, &of(&slow, &[&broken, &quick])), ("quick".into(), 1), "one is refused, and told");
    // What was measured is not measured again, in this process and the next.
    let made = device.objects_made();
    assert_eq!(taken(&device, &of(&slow, &[&quick])), ("quick".into(), 0));
    assert_eq!(device.objects_made(), made);
    device.keep();
    let next = open();
    let made = next.objects_made();
    assert_eq!(taken(&next, &of(&slow, &[&quick])), ("quick".into(), 0));
    assert_eq!(next.objects_made(), made);
    // Without room to try there is the call itself, and nothing is known.
    let full = Device::open(&Options { software: true, ..Options::default() }).unwrap();
    full.ready(&slow.kernel).unwrap();
    full.starve(true);
    assert_eq!(taken(&full, &of(&slow, &[&quick])), ("slow".into(), 0));
    full.starve(false);
    assert_eq!(taken(&full, &of(&slow, &[&quick])), ("quick".into(), 0));
}

#[test]
fn a_call_may_not_write_what_it_reads() {
    let device = device();
    let call = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let mut builder = Builder::new(&device, 2048);
    let area = |start: usize| Binding::Arena(start..start + 420);
    builder.dispatch(&call, &[area(0), area(0), area(512)]).unwrap();
    let refused =
        |b: &mut Builder<'_>, areas: [Binding; 3]| matches!(b.dispatch(&call, &areas), Err(GpuError::Call { .. }));
    assert!(refused(&mut builder, [area(0), area(512), area(512)]));
    assert!(refused(&mut builder, [area(0), Binding::Arena(256..676), area(512)]));
    assert!(refused(&mut builder, [area(0), area(4), area(512)]));
    assert!(refused(&mut builder, [area(0), area(1024), area(1792)]));
}

#[test]
fn a_recording_runs_again_without_making_anything_and_a_lost_device_is_an_error() {
    let device = device();
    let call = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let mut builder = Builder::new(&device, 1024);
    let one: Vec<f32> = (0..105).map(|i| i as f32).collect();
    let weights = builder.weights([1; 32], 420, move || bytes_of(&one)).unwrap();
    builder.dispatch(&call, &[Binding::Arena(0..420), Binding::Weights(weights), Binding::Arena(512..932)]).unwrap();
    let mut recording = builder.finish().unwrap();
    let mut run = |x: f32| {
        recording.upload(0, &bytes_of(&[x; 105]))?;
        let mut found = Vec::new();
        recording.run(0, std::slice::from_ref(&(512..932)), |_, bytes| found = floats_of(bytes))?;
        Ok::<_, GpuError>(found)
    };
    assert_eq!(run(1.0).unwrap()[104], 105.0);
    let made = device.objects_made();
    for i in 0..20 {
        assert_eq!(run(i as f32).unwrap()[3], 3.0 + i as f32);
    }
    assert_eq!(device.objects_made(), made);
    device.lose();
    assert!(matches!(run(1.0), Err(GpuError::Lost { .. })));
}

#[test]
fn a_submission_without_an_answer_is_waited_for_once_by_all_who_use_the_device() {
    let device = device();
    let call = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let recording = || {
        let mut builder = Builder::new(&device, 2048);
        let area = |i: usize| Binding::Arena(i * 512..i * 512 + 420);
        builder.dispatch(&call, &[area(0), area(1), area(2)]).unwrap();
        builder.finish().unwrap()
    };
    let (mut one, mut other) = (recording(), recording());
    let run = |r: &mut super::Recording| r.run(0, std::slice::from_ref(&(1024..1444)), |_, _| {});
    run(&mut one).unwrap();
    *locked(&device.inner.watchdog) = Duration::ZERO;
    // However fast it is: one of them is not done at once.
    let why = (0..1000).find_map(|_| run(&mut one).err()).expect("nothing was waited for");
    assert!(matches!(&why, GpuError::Lost { why } if why.contains("no answer within 0 s")), "{why}");
    *locked(&device.inner.watchdog) = WATCHDOG;
    let began = std::time::Instant::now();
    assert_eq!(run(&mut other), Err(why));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_kernel_that_computes_something_else_is_run_by_nobody_while_it_is_tried() {
    let device = device();
    let good = map("Mul", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let source = good.kernel.source.clone();
    let trials = {
        let good = good.kernel.clone();
        // The trials take long enough for others to come, and the last one fails.
        move || {
            std::thread::sleep(Duration::from_millis(200));
            let mut all = good.trials();
            all.last_mut().into_iter().flat_map(|t| &mut t.results[0]).for_each(|b| *b ^= 0x40);
            all
        }
    };
    let kernel = Kernel::new("wrong-mul".into(), source, 2, 1, trials);
    std::thread::scope(|s| {
        let all: Vec<_> = (0..4).map(|_| s.spawn(|| device.ready(&kernel))).collect();
        for found in all {
            assert!(matches!(found.join().unwrap(), Err(GpuError::Kernel { .. })));
        }
    });
}

#[test]
fn an_adapter_that_does_not_open_hides_none_that_does() {
    let refused = |i: usize| GpuError::Refused { adapter: i.to_string(), why: "old".into() };
    let open = |works: usize| move |i: usize| if i == works { Ok(i) } else { Err(refused(i)) };
    assert_eq!(first(0..3, open(1)), Ok((1, vec![refused(0)])));
    assert_eq!(first(0..3, open(9)), Err(refused(0)), "what the likeliest says");
}

#[test]
fn an_adapter_is_chosen_by_its_number_or_a_part_of_its_name() {
    let of = |name: &str, kind| Adapter { name: name.into(), driver: String::new(), kind, backend: "vulkan".into() };
    let all = [of("Fast 9000", "discrete"), of("Slow Iris", "integrated"), of("llvmpipe", "software")];
    let found = |which: Option<&str>, software| {
        candidates(&all, &Options { which: which.map(String::from), software, ..Options::default() })
    };
    assert_eq!((found(None, false), found(None, true)), (Ok(vec![0, 1]), Ok(vec![0, 1, 2])));
    assert_eq!((found(Some("1"), false), found(Some("iris"), false)), (Ok(vec![1]), Ok(vec![1])));
    // Who says which one it is takes software, too.
    assert_eq!(found(Some("2"), false), Ok(vec![2]));
    let why = found(Some("3"), true).unwrap_err().to_string();
    assert!(why.contains("`3` is none of 0: Fast 9000, 1: Slow Iris, 2: llvmpipe"), "{why}");
    assert!(candidates(&all[2..], &Options::default()).is_err());
}

#[test]
fn measurements_are_kept_under_the_version_of_wgpu_that_is_built_in() {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap();
    let version = lock.split("name = \"wgpu\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    assert_eq!(version, Some(WGPU), "write the version of Cargo.lock into WGPU");
    assert!(device().adapter().key().ends_with(&format!("|wgpu {WGPU}")));
}

#[test]
fn weights_of_one_name_are_made_and_there_once_for_as_long_as_a_recording_has_them() {
    let device = device();
    let call = map("Add", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    let count = std::cell::Cell::new(0);
    let made = &count;
    let record = |names: &[u8]| {
        let mut builder = Builder::new(&device, 1024);
        for &name in names {
            let make = move || {
                made.set(made.get() + 1);
                bytes_of(&[f32::from(name); 105])
            };
            let weights = builder.weights([name; 32], 420, make).unwrap();
            let bindings = [Binding::Arena(0..420), Binding::Weights(weights), Binding::Arena(512..932)];
            builder.dispatch(&call, &bindings).unwrap();
        }
        builder.finish().unwrap()
    };
    let answer = |recording: &mut super::Recording| {
        recording.upload(0, &bytes_of(&[1.0; 105])).unwrap();
        let mut found = Vec::new();
        recording.run(0, std::slice::from_ref(&(512..932)), |_, bytes| found = floats_of(bytes)).unwrap();
        found[104]
    };
    let mut first = record(&[1, 2, 1]);
    assert_eq!((made.get(), device.weights(), answer(&mut first)), (2, (1, 1024), 2.0));
    // One that is there, and one that is not.
    let mut second = record(&[2, 3]);
    assert_eq!((made.get(), device.weights(), answer(&mut second)), (3, (2, 1536), 4.0));
    drop(first);
    // The second has one of the first one's.
    assert_eq!((device.weights(), answer(&mut second), answer(&mut record(&[2]))), ((2, 1536), 4.0, 3.0));
    drop(second);
    assert_eq!(device.weights(), (0, 0));
    assert_eq!((answer(&mut record(&[2])), made.get()), (3.0, 4));
}

#[test]
fn a_full_device_says_nothing_of_a_kernel_and_stops_no_recording_that_is_warm() {
    let device = device();
    let call = map("Sub", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap();
    device.starve(true);
    for _ in 0..2 {
        assert!(matches!(device.ready(&call.kernel), Err(GpuError::Memory { .. })));
    }
    device.starve(false);
    let mut builder = Builder::new(&device, 2048);
    let area = |i: usize| Binding::Arena(i * 512..i * 512 + 420);
    builder.dispatch(&call, &[area(0), area(1), area(2)]).unwrap();
    device.starve(true);
    let refused = builder.finish().unwrap_err();
    assert!(matches!(refused, GpuError::Memory { what: "the arena", bytes: 2048 }), "{refused}");
    device.starve(false);
    let mut builder = Builder::new(&device, 2048);
    builder.dispatch(&call, &[area(0), area(1), area(2)]).unwrap();
    let mut recording = builder.finish().unwrap();
    let mut run = |x: f32, n: usize| {
        recording.upload(0, &bytes_of(&[x; 105]))?;
        recording.upload(512, &bytes_of(&vec![1.0; n]))?;
        let mut found = Vec::new();
        recording.run(0, std::slice::from_ref(&(1024..1444)), |_, bytes| found = floats_of(bytes))?;
        Ok::<_, GpuError>(found)
    };
    // Without a buffer for uploads, which is made behind the first run, and with it, and with more uploads than it has room for.
    assert_eq!(run(3.0, 20).unwrap()[19], 2.0);
    device.starve(true);
    assert_eq!(run(4.0, 20).unwrap()[19], 3.0);
    assert_eq!(run(5.0, 105).unwrap()[104], 4.0);
    assert_eq!(run(6.0, 105).unwrap()[104], 5.0);
    assert_eq!(run(7.0, 3).unwrap()[..3], [6.0; 3]);
    device.starve(false);
    assert_eq!(run(8.0, 105).unwrap()[104], 7.0);
    let made = device.objects_made();
    assert_eq!(run(9.0, 105).unwrap()[104], 8.0);
    assert_eq!(device.objects_made(), made);
}

#[test]
fn a_second_process_tries_nothing_again_unless_the_file_is_damaged_or_the_text_another() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = Options { software: true, cache: Some(folder.path().join("deep/gpu")), ..Options::default() };
        Device::open(&options).unwrap_or_else(|e| panic!("{e}"))
    };
    // Trials that say no: only where they do not run is the kernel ready.
    let kernel = |source: &str, trials: bool| {
        let right = map("Mul", &[(Element::F32, SAME), (Element::F32, SAME)], Element::F32).call().unwrap().kernel;
        let source = right.source.replace("return a * b;", source);
        let of = right.clone();
        Kernel::new("cached".into(), source, 2, 1, move || {
            let mut all = of.trials();
            all.iter_mut().for_each(|t| t.call.kernel = of.clone());
            if trials { all } else { Vec::new() }
        })
    };
    let (right, untried) = (kernel("return a * b;", true), kernel("return a * b;", false));
    let first = open();
    assert!(matches!(first.ready(&untried), Err(GpuError::Kernel { .. })));
    assert_eq!(first.cache_told(), None);
    let first = open();
    first.ready(&right).unwrap();
    first.keep();
    let file = std::fs::read_dir(folder.path().join("deep/gpu")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    let second = open();
    second.ready(&untried).unwrap();
    assert_eq!(second.cache_told(), None);
    assert!(matches!(open().ready(&kernel("return b * a;", false)), Err(GpuError::Kernel { .. })), "another text");
    // Damaged, the file is ignored, told of, and made again.
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let third = open();
    let told = third.cache_told().unwrap();
    assert!(told.contains("ignored") && told.contains("damaged"), "{told}");
    assert!(matches!(third.ready(&untried), Err(GpuError::Kernel { .. })));
    let third = open();
    third.ready(&right).unwrap();
    third.keep();
    open().ready(&untried).unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("deep/gpu")).unwrap().count(), 1, "nothing else is left there");
    // That it cannot be written is told, and stops nothing.
    std::fs::remove_dir_all(folder.path().join("deep")).unwrap();
    std::fs::write(folder.path().join("deep"), "a file").unwrap();
    let fourth = open();
    fourth.ready(&right).unwrap();
    fourth.keep();
    assert!(fourth.cache_told().unwrap().contains("deep"));
}

#[test]
fn what_passed_is_kept_only_for_a_driver_whose_version_is_known() {
    let kept = |backend, driver: &str| {
        let info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, backend);
        Adapter::of(&wgpu::AdapterInfo { driver: driver.into(), ..info }).says_its_version()
    };
    assert!(kept(wgpu::Backend::Vulkan, "llvmpipe") && kept(wgpu::Backend::Dx12, "31.0.15.5222"));
    assert!(!kept(wgpu::Backend::Metal, "") && !kept(wgpu::Backend::Dx12, "0.0.0.0"));
}

/// What wgpu has on every device.
const EVERYWHERE: naga::valid::Capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// A text in SPIR-V as naga writes it for a device with those capabilities, or with all.
fn spirv(kernel: &Kernel, only: Option<&[naga::back::spv::Capability]>) -> Vec<u32> {
    let module = naga::front::wgsl::parse_str(&kernel.source).unwrap();
    let flags = naga::valid::ValidationFlags::all();
    let info = naga::valid::Validator::new(flags, EVERYWHERE).validate(&module).unwrap();
    let capabilities = only.map(|c| c.iter().copied().collect());
    let zero_initialize_workgroup_memory = naga::back::spv::ZeroInitializeWorkgroupMemoryMode::None;
    let options = naga::back::spv::Options { capabilities, zero_initialize_workgroup_memory, ..Default::default() };
    naga::back::spv::write_vec(&module, &info, &options, None).unwrap()
}

#[test]
fn texts_compute_the_same_on_a_device_without_dot_products_of_bytes() {
    // What the Raspberry Pi's has, and drivers before Vulkan 1.3: there naga takes words apart.
    let bare = |kernel: &Kernel| spirv(kernel, Some(&[naga::back::spv::Capability::Shader]));
    let device = Device::open(&Options { software: true, translated: Some(bare), ..Options::default() }).unwrap();
    if device.adapter().backend != "vulkan" {
        println!("this device is not driven through Vulkan: what a Raspberry Pi's makes of them is not seen here");
        return;
    }
    // Opcodes OpSDot to OpSUDot.
    let dots = |words: &[u32]| {
        let mut at = 5;
        std::iter::from_fn(|| {
            let word = words.get(at)?;
            at += (word >> 16).max(1) as usize;
            Some(word & 0xffff)
        })
        .any(|op| (4450..=4452).contains(&op))
    };
    let mut without = 0;
    for call in calls().iter().filter(|c| c.kernel.source.contains("dot4I8Packed")) {
        assert!(dots(&spirv(&call.kernel, None)) && !dots(&bare(&call.kernel)), "{:?}", call.kernel);
        device.ready(&call.kernel).unwrap();
        without += 1;
    }
    assert!(without >= 8, "{without} kernels");
}

/// A GPU that the kernels are for: the language of its driver, what naga may take for granted on it, and its limits.
struct Target {
    name: &'static str,
    language: Language,
    capabilities: naga::valid::Capabilities,
    storage: usize,
    shared_bytes: u32,
    threads: u32,
}

enum Language {
    Spirv,
    Metal,
    Hlsl,
}

/// Mesa's V3DV for the Raspberry Pi 4 and 5 (no 16-bit arithmetic, no arithmetic of subgroups), NVIDIA's driver for Orin and
/// desktops; Apple's M1, of whose 31 buffers wgpu keeps two; Direct3D 12 where half of the 64 views of unordered access are
/// wgpu's for the other stage, half of the rest for textures (a device of feature level 11.0 and the first binding tier has 2 and
/// does not open), with what shader model 5.1 has.
fn targets() -> [Target; 6] {
    use naga::valid::Capabilities as C;
    let of = |name, language, capabilities, storage, shared_bytes, threads| Target {
        name,
        language,
        capabilities,
        storage,
        shared_bytes,
        threads,
    };
    let more = EVERYWHERE | C::SHADER_FLOAT16 | C::SUBGROUP | C::COOPERATIVE_MATRIX | C::IMMEDIATES;
    [
        of("pi4", Language::Spirv, EVERYWHERE, 8, 16 << 10, 256),
        of("pi5", Language::Spirv, EVERYWHERE, 8, 16 << 10, 256),
        of("orin", Language::Spirv, more, 16, 48 << 10, 1024),
        of("desktop", Language::Spirv, more, 16, 48 << 10, 1024),
        of("apple", Language::Metal, more, 29, 32 << 10, 1024),
        of("d3d12", Language::Hlsl, EVERYWHERE, 16, 32 << 10, 1024),
    ]
}

#[test]
fn every_text_is_one_for_every_target() {
    let mut seen = std::collections::BTreeSet::new();
    let dir = std::env::temp_dir().join(format!("hone-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (mut files, mut matrices, mut hlsl) = (Vec::new(), Vec::new(), Vec::new());
    let of = |side, subgroup| with_matrices(Matrices { side, subgroup });
    let special =
        crate::rows::SUBGROUPS.into_iter().flat_map(by_subgroups).chain([of(16, 32), of(16, 64), of(8, 32)].concat());
    for call in calls().into_iter().chain(special) {
        let kernel = &call.kernel;
        let asks = match kernel.needs {
            Needs::Nothing => naga::valid::Capabilities::empty(),
            Needs::Subgroups(_) => naga::valid::Capabilities::SUBGROUP,
            Needs::Matrices(_) => naga::valid::Capabilities::COOPERATIVE_MATRIX,
        };
        if !seen.insert(kernel.name.clone()) {
            continue;
        }
        let name = &kernel.name;
        let module = naga::front::wgsl::parse_str(&kernel.source).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut layouts = naga::proc::Layouter::default();
        layouts.update(module.to_ctx()).unwrap();
        let bytes = |space| {
            let of = module.global_variables.iter().filter(move |(_, v)| v.space == space);
            of.map(|(_, v)| layouts[v.ty].size).sum::<u32>()
        };
        let storage = |v: &naga::GlobalVariable| matches!(v.space, naga::AddressSpace::Storage { .. });
        let buffers = module.global_variables.iter().filter(|(_, v)| storage(v)).count();
        assert_eq!(buffers, kernel.reads + kernel.writes, "{name} binds what it says");
        assert!(bytes(naga::AddressSpace::Uniform) <= (PARAMS * 4) as u32, "{name} has too many parameters");
        let size = module.entry_points[0].workgroup_size;
        for t in targets().into_iter().filter(|t| t.capabilities.contains(asks)) {
            let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), t.capabilities);
            let info = validator.validate(&module).unwrap_or_else(|e| panic!("{name} on {}: {e:?}", t.name));
            assert!(buffers <= t.storage && size.iter().product::<u32>() <= t.threads, "{name} on {}", t.name);
            assert!(bytes(naga::AddressSpace::WorkGroup) <= t.shared_bytes, "{name} on {}", t.name);
            // Names of chains may be longer than those of files.
            let file = |end: &str| dir.join(format!("{}.{}.{end}", seen.len(), t.name));
            let one = |written: Result<String, String>| written.unwrap_or_else(|e| panic!("{name} on {}: {e}", t.name));
            match t.language {
                Language::Spirv => {
                    // What has subgroups has Vulkan 1.1, for which wgpu writes this.
                    let lang_version = if kernel.needs == Needs::Nothing { (1, 0) } else { (1, 3) };
                    let options = naga::back::spv::Options { lang_version, ..Default::default() };
                    let words = naga::back::spv::write_vec(&module, &info, &options, None).unwrap();
                    // Large texts are what the compiler of the Raspberry Pi fails on.
                    assert!(words.len() * 4 < 64 << 10, "{name} on {}: {} bytes", t.name, words.len() * 4);
                    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                    std::fs::write(file("spv"), bytes).unwrap();
                    (if matches!(kernel.needs, Needs::Matrices(_)) { &mut matrices } else { &mut files })
                        .push(file("spv"));
                }
                // There is no compiler of Apple's to read them: naga writes them, or says what it cannot.
                Language::Metal => {
                    for checks in [Checks::All, Checks::None] {
                        for version in METAL_VERSIONS {
                            one(translations::metal(&module, &info, buffers, version, checks));
                        }
                    }
                }
                Language::Hlsl => {
                    // Those without checks are run, by way of glslang.
                    one(translations::direct3d(&module, &info, buffers, Checks::None, true));
                    std::fs::write(
                        file("hlsl"),
                        one(translations::direct3d(&module, &info, buffers, Checks::All, true)),
                    )
                    .unwrap();
                    hlsl.push(file("hlsl"));
                }
            }
        }
    }
    println!("{} texts", seen.len());
    translations::judge(&hlsl);
    let valid = |file: &std::path::Path| {
        std::process::Command::new("spirv-val").arg("--target-env").arg("vulkan1.1").arg(file).output()
    };
    for file in &files {
        match valid(file) {
            Ok(out) => assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr)),
            Err(_) => {
                println!("spirv-val is not installed (Debian: spirv-tools): naga's own check alone has run");
                break;
            }
        }
    }
    // Validators of before 2023 know nothing of matrices; the validation layer of a driver that has them does.
    let unknown =
        |out: &std::process::Output| String::from_utf8_lossy(&out.stderr).contains("Invalid capability operand: 6022");
    assert!(!matrices.is_empty());
    for file in &matrices {
        match valid(file) {
            Ok(out) if unknown(&out) => {
                println!("this spirv-val does not know matrices: naga's own check alone has run on {}", matrices.len());
                break;
            }
            Ok(out) => assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr)),
            Err(_) => break,
        }
    }
    // What finds nothing wrong must find something wrong.
    let wrong = dir.join("wrong.spv");
    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes.truncate(bytes.len() - 4);
    std::fs::write(&wrong, bytes).unwrap();
    assert!(valid(&wrong).is_err() || valid(&wrong).is_ok_and(|out| !out.status.success()));
    std::fs::remove_dir_all(&dir).unwrap();
}
