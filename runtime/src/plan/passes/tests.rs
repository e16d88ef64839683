//! Every pass against the reference interpreter, which runs none: the same graph both ways, and what became of it.
use std::sync::Arc;

use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::{Attr, Attrs, find};
use crate::plan::{RunOptions, Runner, StepInfo};
use crate::tensor::{DType, Data, Tensor};

/// A graph under construction, with numbers that repeat.
#[derive(Default)]
struct Net {
    graph: Graph,
    given: Vec<Tensor>,
    seed: u32,
}

impl Net {
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.seed >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn input(&mut self, shape: &[usize]) -> ValueId {
        let n = self.numbers(shape.iter().product());
        self.given.push(Tensor::f32(shape, n.into_iter().map(|v| v * 4.0).collect()).unwrap());
        let v = self.graph.add_value(&format!("input {}", self.given.len()), None, None);
        self.graph.inputs.push(v);
        v
    }

    fn constant(&mut self, t: Tensor) -> ValueId {
        let name = format!("constant {}", self.graph.values.len());
        self.graph.add_value(&name, None, Some(Arc::new(t)))
    }

    fn weights(&mut self, shape: &[usize]) -> ValueId {
        let n = self.numbers(shape.iter().product());
        self.constant(Tensor::f32(shape, n).unwrap())
    }

    fn scalar(&mut self, v: f32) -> ValueId {
        self.constant(Tensor::f32(&[], vec![v]).unwrap())
    }

    fn ints(&mut self, v: &[i64]) -> ValueId {
        self.constant(Tensor::i64(&[v.len()], v.to_vec()).unwrap())
    }

    fn op<const N: usize>(&mut self, op: &str, attrs: [(&str, Attr); N], inputs: &[ValueId]) -> ValueId {
        let name = format!("{op} {}", self.graph.nodes.len());
        let to = self.graph.add_value(&format!("{name} makes"), None, None);
        let inputs = inputs.iter().map(|&v| (v != NONE).then_some(v)).collect();
        let op = Op::Own(find("", op).expect("a row of ours"), Arc::new(Attrs::of(attrs)));
        self.graph.nodes.push(Node { name, op, inputs, outputs: vec![Some(to)] });
        to
    }

    /// A convolution of `o` channels with a window of 3 and a border of 1.
    fn conv(&mut self, x: ValueId, c: usize, o: usize) -> ValueId {
        let (w, b) = (self.weights(&[o, c, 3, 3]), self.weights(&[o]));
        self.op("Conv", [("pads", Attr::Ints(vec![1; 4]))], &[x, w, b])
    }

    /// Runs both ways; the results must agree. Gives the operators of the plan, in order.
    fn check(self, outputs: &[ValueId]) -> Vec<String> {
        self.check_within(2e-6, outputs)
    }

    /// The same with a tolerance relative to the largest result.
    fn check_within(self, tolerance: f32, outputs: &[ValueId]) -> Vec<String> {
        self.steps_within(tolerance, outputs).into_iter().map(|s| s.op).collect()
    }

    fn steps_within(mut self, tolerance: f32, outputs: &[ValueId]) -> Vec<StepInfo> {
        self.graph.outputs = outputs.to_vec();
        let graph = Arc::new(self.graph);
        let given: Vec<&Tensor> = self.given.iter().collect();
        let mut both = [true, false].map(|reference| {
            let mut runner = Runner::new(graph.clone(), RunOptions { reference, ..RunOptions::default() });
            let out = runner.run(&given).unwrap();
            (runner, out)
        });
        for (want, got) in both[0].1.iter().zip(&both[1].1) {
            assert_eq!(want.shape(), got.shape());
            let (a, b) = (want.as_f32().unwrap(), got.as_f32().unwrap());
            let most = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                assert!((a - b).abs() <= tolerance * most.max(1.0), "element {i}: {a} by reference, {b} planned");
            }
        }
        let shapes: Vec<_> = given.iter().map(|t| (t.dtype(), t.shape())).collect();
        both[1].0.plan(&shapes).unwrap().steps()
    }
}

const NONE: ValueId = ValueId::MAX;

#[test]
fn a_convolution_takes_in_its_normalisation_its_residual_and_its_activation() {
    let mut n = Net::default();
    let x = n.input(&[2, 5, 6, 7]);
    let a = n.conv(x, 5, 4);
    let stats: Vec<ValueId> = (0..3).map(|_| n.weights(&[4])).collect();
    let variance = n.constant(Tensor::f32(&[4], vec![0.5, 1.0, 2.0, 3.0]).unwrap());
    let a = n.op("BatchNormalization", [], &[a, stats[0], stats[1], stats[2], variance]);
    let a = n.op("Relu", [], &[a]);
    let b = n.conv(a, 4, 4);
    let gain = n.weights(&[4, 1, 1]);
    let b = n.op("Mul", [], &[b, gain]);
    let shift = n.weights(&[1, 4, 1, 1]);
    let b = n.op("Sub", [], &[b, shift]);
    let sum = n.op("Add", [], &[a, b]);
    let (low, high) = (n.scalar(-0.5), n.scalar(3.0));
    let y = n.op("Clip", [], &[sum, low, high]);
    assert_eq!(n.check(&[y]), ["Transpose", "ConvLast", "ConvLast", "Transpose"]);
}

#[test]
fn a_border_of_zeros_before_a_convolution_is_padding_and_any_other_stays() {
    let conv = |n: &mut Net, x: ValueId, more: &[(&'static str, Attr)]| {
        let w = n.weights(&[4, 3, 3, 3]);
        let y = n.op("Conv", [("strides", Attr::Ints(vec![2, 1]))], &[x, w]);
        let node = n.graph.nodes.last_mut().unwrap();
        let Op::Own(_, attrs) = &mut node.op else { unreachable!() };
        Arc::make_mut(attrs).map.extend(more.iter().map(|(k, v)| (k.to_string(), v.clone())));
        y
    };
    let own = ("pads", Attr::Ints(vec![1, 0, 0, 2]));
    let pads = |n: &mut Net, by: &[i64], value: f32, mode: &str| {
        let (x, by, value) = (n.input(&[2, 3, 9, 8]), n.ints(by), n.scalar(value));
        n.op("Pad", [("mode", Attr::Str(mode.into()))], &[x, by, value])
    };
    const AROUND: &[i64] = &[0, 0, 0, 1, 0, 0, 2, 1];
    for more in [&[][..], std::slice::from_ref(&own), &[("auto_pad", Attr::Str("VALID".into()))]] {
        let mut n = Net::default();
        let x = pads(&mut n, AROUND, 0.0, "constant");
        let y = conv(&mut n, x, more);
        let steps = n.check(&[y]);
        assert!(steps.iter().all(|s| !s.contains("Pad")), "{steps:?}");
    }
    for (by, value, mode, more) in [
        (AROUND, 0.25, "constant", &[][..]),
        (AROUND, 0.0, "reflect", &[]),
        (&[0, 0, 0, 1, 0, 0, -1, 1], 0.0, "constant", &[]),
        (AROUND, 0.0, "constant", &[("auto_pad", Attr::Str("SAME_UPPER".into()))]),
    ] {
        let mut n = Net::default();
        let x = pads(&mut n, by, value, mode);
        let y = conv(&mut n, x, more);
        assert!(n.check(&[y]).iter().any(|s| s.contains("Pad")), "{by:?} {value} {mode} {more:?}");
    }
    // More channels are none of its window's.
    let mut n = Net::default();
    let (x, by) = (n.input(&[1, 2, 6, 6]), n.ints(&[0, 1, 0, 0, 0, 0, 0, 0]));
    let x = n.op("Pad", [], &[x, by]);
    let y = conv(&mut n, x, &[]);
    assert!(n.check(&[y]).iter().any(|s| s.contains("Pad")));
    // What somebody else reads too is made for them.
    let mut n = Net::default();
    let x = pads(&mut n, AROUND, 0.0, "constant");
    let y = conv(&mut n, x, &[own]);
    assert_eq!(n.check(&[x, y]).iter().filter(|s| s.contains("Pad")).count(), 1);
}

#[test]
fn a_result_that_somebody_else_reads_is_made() {
    let mut n = Net::default();
    let x = n.input(&[1, 3, 5, 5]);
    let a = n.conv(x, 3, 3);
    let b = n.op("Relu", [], &[a]);
    assert_eq!(n.check(&[a, b]).iter().filter(|o| *o == "ConvLast").count(), 1);
}

#[test]
fn between_convolutions_channels_stay_last() {
    let mut n = Net::default();
    let x = n.input(&[1, 3, 12, 12]);
    let a = n.conv(x, 3, 4);
    let pool = [("kernel_shape", Attr::Ints(vec![3, 3])), ("strides", Attr::Ints(vec![2, 2]))];
    let b = n.op("MaxPool", pool.clone(), &[a]);
    let c = n.op("AveragePool", pool, &[a]);
    let d = n.op("Concat", [("axis", Attr::Int(1))], &[b, c]);
    let slope = n.weights(&[8, 1, 1]);
    let d = n.op("PRelu", [], &[d, slope]);
    let (pads, zero) = (n.ints(&[0, 1, 2, 0, 0, 1, 1, 3]), n.scalar(0.25));
    let d = n.op("Pad", [("mode", Attr::Str("constant".into()))], &[d, pads, zero]);
    let (starts, ends, axes) = (n.ints(&[1, 0]), n.ints(&[9, 6]), n.ints(&[1, -1]));
    let d = n.op("Slice", [], &[d, starts, ends, axes]);
    let e = n.op("GlobalAveragePool", [], &[d]);
    let e = n.op("HardSigmoid", [], &[e]);
    let d = n.op("Mul", [], &[d, e]);
    let scales = n.constant(Tensor::f32(&[4], vec![1.0, 1.0, 2.0, 2.0]).unwrap());
    let up = [
        ("mode", Attr::Str("nearest".into())),
        ("nearest_mode", Attr::Str("floor".into())),
        ("coordinate_transformation_mode", Attr::Str("asymmetric".into())),
    ];
    let d = n.op("Resize", up, &[d, NONE, scales]);
    let d = n.op("Softmax", [("axis", Attr::Int(1))], &[d]);
    let y = n.conv(d, 8, 2);
    let axes = n.ints(&[2, 3]);
    let mean = n.op("ReduceMean", [("keepdims", Attr::Int(0))], &[y, axes]);
    let over = n.ints(&[1]);
    let most = n.op("ReduceMax", [("keepdims", Attr::Int(1))], &[y, over]);
    let turned = n.op("Transpose", [("perm", Attr::Ints(vec![0, 2, 3, 1]))], &[y]);
    let ops = n.check(&[mean, most, turned]);
    assert_eq!(ops.iter().filter(|o| *o == "Transpose").count(), 1, "{ops:?}");
}

#[test]
fn what_a_file_turns_to_and_fro_around_convolutions_is_not_turned() {
    let mut n = Net::default();
    let to_first = [("perm", Attr::Ints(vec![0, 3, 1, 2]))];
    let to_last = [("perm", Attr::Ints(vec![0, 2, 3, 1]))];
    let x = n.input(&[1, 6, 5, 3]);
    let a = n.op("Transpose", to_first.clone(), &[x]);
    let a = n.conv(a, 3, 4);
    let a = n.op("Transpose", to_last.clone(), &[a]);
    let (mean, gain, shift) = (n.weights(&[4]), n.weights(&[1, 1, 4]), n.weights(&[1, 1, 1, 4]));
    let a = n.op("Sub", [], &[a, mean]);
    let a = n.op("Mul", [], &[gain, a]);
    let a = n.op("Add", [], &[a, shift]);
    let a = n.op("Relu", [], &[a]);
    let b = n.op("Transpose", to_first, &[a]);
    let b = n.conv(b, 4, 4);
    let b = n.op("Transpose", to_last, &[b]);
    // As those files also have: casts to the type that is there.
    let b = n.op("Cast", [("to", Attr::Int(1))], &[b]);
    let b = n.op("Identity", [], &[b]);
    let shift = n.weights(&[4]);
    let b = n.op("Add", [], &[b, shift]);
    let (low, high) = (n.scalar(-0.5), n.scalar(3.0));
    let b = n.op("Clip", [], &[b, low, high]);
    let y = n.op("Add", [], &[a, b]);
    let axes = n.ints(&[1, 2]);
    let mean = n.op("ReduceMean", [("keepdims", Attr::Int(0))], &[y, axes]);
    let named = n.op("Identity", [], &[mean]);
    let ops = n.check(&[y, mean, named]);
    assert_eq!(ops, ["ConvLast", "ConvLast", "Add", "ReduceMean"]);
}

#[test]
fn turned_values_that_somebody_else_reads_are_made_and_other_orders_stay() {
    let mut n = Net::default();
    let x = n.input(&[2, 3, 4, 5]);
    let y = n.input(&[2, 4, 5, 3]);
    let a = n.op("Transpose", [("perm", Attr::Ints(vec![0, 2, 3, 1]))], &[x]);
    // An operand that is no constant and stands in the other order.
    let sum = n.op("Add", [], &[a, y]);
    let r = n.op("Relu", [], &[a]);
    let slope = n.weights(&[3]);
    let p = n.op("PRelu", [], &[r, slope]);
    let s = n.op("Softmax", [("axis", Attr::Int(-1))], &[p]);
    let back = n.op("Transpose", [("perm", Attr::Ints(vec![0, 3, 1, 2]))], &[p]);
    let twice = n.op("Mul", [], &[back, x]);
    let other = n.op("Transpose", [("perm", Attr::Ints(vec![3, 0, 1, 2]))], &[p]);
    n.check(&[sum, s, back, twice, other, r]);
}

#[test]
fn what_needs_channels_first_gets_them() {
    let mut n = Net::default();
    let x = n.input(&[2, 3, 8]);
    let (w, b) = (n.weights(&[4, 3, 3]), n.weights(&[4]));
    let a = n.op("Conv", [("strides", Attr::Ints(vec![2])), ("dilations", Attr::Ints(vec![2]))], &[x, w, b]);
    let to = n.ints(&[0, -1]);
    let flat = n.op("Reshape", [], &[a, to]);
    let s = n.op("Softmax", [("axis", Attr::Int(-1))], &[flat]);
    let whole = n.op("Flatten", [("axis", Attr::Int(1))], &[a]);
    let other = n.input(&[2, 4, 2]);
    let sum = n.op("Add", [], &[other, a]);
    n.check(&[s, whole, sum]);
}

#[test]
fn groups_strides_and_quantised_weights_run_channels_last() {
    let mut n = Net::default();
    let x = n.input(&[1, 8, 9, 9]);
    let w = n.weights(&[8, 1, 3, 3]);
    let same = ("auto_pad", Attr::Str("SAME_UPPER".into()));
    let a = n.op("Conv", [("group", Attr::Int(8)), ("strides", Attr::Ints(vec![2, 2])), same], &[x, w]);
    let w = n.weights(&[6, 4, 1, 1]);
    let a = n.op("Conv", [("group", Attr::Int(2))], &[a, w]);
    let q = n.constant(Tensor::new(&[3, 6, 2, 2], crate::tensor::Data::I8((0..72).map(|v| v - 36).collect())).unwrap());
    let s = n.constant(Tensor::f32(&[3], vec![0.01, 0.02, 0.03]).unwrap());
    let w = n.op("DequantizeLinear", [("axis", Attr::Int(0))], &[q, s]);
    let y = n.op("Conv", [("dilations", Attr::Ints(vec![2, 2]))], &[a, w]);
    let ops = n.check(&[y]);
    assert!(ops.iter().all(|o| o == "Transpose" || o == "ConvLast"), "{ops:?}");
}

/// `x` through operators that files spell an activation with.
fn spelled(n: &mut Net, x: ValueId, form: &str) -> ValueId {
    let (half, one, three, six, root) =
        (n.scalar(0.5), n.scalar(1.0), n.scalar(3.0), n.scalar(6.0), n.scalar(std::f32::consts::SQRT_2));
    let zero = n.scalar(0.0);
    match form {
        "Swish" => {
            let s = n.op("Sigmoid", [], &[x]);
            n.op("Mul", [], &[s, x])
        }
        "HardSwish" | "HardSigmoid" | "HardSwish, divided last" => {
            let shifted = n.op("Add", [], &[three, x]);
            let held = n.op("Clip", [], &[shifted, zero, six]);
            match form {
                "HardSwish, divided last" => {
                    let product = n.op("Mul", [], &[x, held]);
                    n.op("Div", [], &[product, six])
                }
                _ => {
                    let gate = n.op("Div", [], &[held, six]);
                    if form == "HardSigmoid" { gate } else { n.op("Mul", [], &[x, gate]) }
                }
            }
        }
        _ => {
            let scaled = n.op("Div", [], &[x, root]);
            let erf = n.op("Erf", [], &[scaled]);
            let sum = n.op("Add", [], &[erf, one]);
            if form == "Gelu" {
                let product = n.op("Mul", [], &[x, sum]);
                n.op("Mul", [], &[product, half])
            } else {
                let x2 = n.op("Mul", [], &[x, half]);
                n.op("Mul", [], &[x2, sum])
            }
        }
    }
}

#[test]
fn activations_that_are_spelled_out_become_one_operator() {
    for (form, op) in [
        ("Swish", "Swish"),
        ("HardSigmoid", "HardSigmoid"),
        ("HardSwish", "HardSwish"),
        ("HardSwish, divided last", "HardSwish"),
        ("Gelu", "Gelu"),
        ("Gelu, halved first", "Gelu"),
    ] {
        let mut n = Net::default();
        let x = n.input(&[3, 40]);
        let y = spelled(&mut n, x, form);
        assert_eq!(n.check(&[y]), [op], "{form}");
        // What is read elsewhere stays, and nothing is lost.
        let mut n = Net::default();
        let x = n.input(&[3, 40]);
        let y = spelled(&mut n, x, form);
        let inner = n.graph.nodes[1].outputs[0].unwrap_or(0);
        if inner != y {
            n.check(&[y, inner]);
        }
    }
}

#[test]
fn a_layer_normalisation_that_is_spelled_out_becomes_one_operator() {
    for (twice, square) in [(false, "Pow"), (true, "Pow"), (false, "Mul")] {
        let mut n = Net::default();
        let x = n.input(&[2, 3, 16]);
        let two = n.scalar(2.0);
        let epsilon = n.scalar(1e-5);
        let (scale, shift) = (n.weights(&[16]), n.weights(&[16]));
        let last = [("axes", Attr::Ints(vec![-1]))];
        let mean_of = |n: &mut Net, v: ValueId| {
            let v = n.op("ReduceMean", last.clone(), &[v]);
            if let Op::Own(_, attrs) = &mut n.graph.nodes.last_mut().unwrap().op {
                // Axes were an attribute then.
                *attrs = Arc::new(Attrs { opset: 13, ..(**attrs).clone() });
            }
            v
        };
        let mean = mean_of(&mut n, x);
        let d = n.op("Sub", [], &[x, mean]);
        let again = if twice { n.op("Sub", [], &[x, mean]) } else { d };
        let squared = n.op(square, [], &[again, if square == "Pow" { two } else { again }]);
        let variance = mean_of(&mut n, squared);
        let sum = n.op("Add", [], &[variance, epsilon]);
        let root = n.op("Sqrt", [], &[sum]);
        let normed = n.op("Div", [], &[d, root]);
        let scaled = n.op("Mul", [], &[normed, scale]);
        let y = n.op("Add", [], &[scaled, shift]);
        assert_eq!(n.check(&[y]), ["LayerNormalization"], "{twice} {square}");
    }
}

/// Scales that are powers of two and few bits: sums of products and their rescaling are exact in `f32`, so that the reference
/// and integers round alike.
impl Net {
    fn zero(&mut self, z: u8) -> ValueId {
        self.constant(Tensor::new(&[], Data::U8(vec![z])).unwrap())
    }

    /// `x` as `u8` codes.
    fn quantised(&mut self, x: ValueId, scale: f32, zero: u8) -> ValueId {
        let (s, z) = (self.scalar(scale), self.zero(zero));
        self.op("QuantizeLinear", [], &[x, s, z])
    }

    fn dequantised(&mut self, q: ValueId, scale: f32, zero: u8) -> ValueId {
        let (s, z) = (self.scalar(scale), self.zero(zero));
        self.op("DequantizeLinear", [], &[q, s, z])
    }

    /// There and back.
    fn coded(&mut self, x: ValueId, scale: f32, zero: u8) -> ValueId {
        let q = self.quantised(x, scale, zero);
        self.dequantised(q, scale, zero)
    }

    /// A bias of a convolution of codes, or of floats.
    fn bias_like(&mut self, codes: bool, n: usize) -> ValueId {
        if codes { self.bias(n) } else { self.weights(&[n]) }
    }

    /// Dequantised `i8` weights with a scale for each index of `axis`.
    fn int8(&mut self, shape: &[usize], axis: usize) -> ValueId {
        let n: usize = shape.iter().product();
        let q = self.numbers(n).into_iter().map(|v| (v * 100.0) as i8).collect();
        let q = self.constant(Tensor::new(shape, Data::I8(q)).unwrap());
        let scales = (0..shape[axis]).map(|i| [1.0 / 64.0, 1.0 / 128.0][i % 2]).collect();
        let s = self.constant(Tensor::f32(&[shape[axis]], scales).unwrap());
        self.op("DequantizeLinear", [("axis", Attr::Int(axis as i64))], &[q, s])
    }

    /// A dequantised bias in units of `1/16` times those of [`Net::int8`].
    fn bias(&mut self, n: usize) -> ValueId {
        let q = self.numbers(n).into_iter().map(|v| (v * 3000.0) as i32).collect();
        let q = self.constant(Tensor::new(&[n], Data::I32(q)).unwrap());
        let s =
            self.constant(Tensor::f32(&[n], (0..n).map(|i| [1.0 / 1024.0, 1.0 / 2048.0][i % 2]).collect()).unwrap());
        self.op("DequantizeLinear", [("axis", Attr::Int(0))], &[q, s])
    }
}

#[test]
fn a_residual_block_of_codes_is_integers_from_end_to_end() {
    let mut n = Net::default();
    let x = n.input(&[2, 6, 7, 9]);
    let x = n.coded(x, 1.0 / 16.0, 120);
    let (w, b) = (n.int8(&[8, 6, 1, 1], 0), n.bias(8));
    let a = n.op("Conv", [], &[x, w, b]);
    let (low, high) = (n.scalar(0.0), n.scalar(6.0));
    let a = n.op("Clip", [], &[a, low, high]);
    let a = n.coded(a, 1.0 / 16.0, 3);
    let (w, b) = (n.int8(&[8, 1, 3, 3], 0), n.bias(8));
    let a = n.op("Conv", [("group", Attr::Int(8)), ("pads", Attr::Ints(vec![1; 4]))], &[a, w, b]);
    let a = n.op("Relu", [], &[a]);
    let a = n.coded(a, 1.0 / 16.0, 0);
    let (w, b) = (n.int8(&[6, 8, 3, 3], 0), n.bias(6));
    let a = n.op("Conv", [("pads", Attr::Ints(vec![1; 4]))], &[a, w, b]);
    let a = n.coded(a, 1.0 / 8.0, 100);
    let sum = n.op("Add", [], &[x, a]);
    let sum = n.op("Relu", [], &[sum]);
    let y = n.coded(sum, 1.0 / 4.0, 10);
    let pool = [("kernel_shape", Attr::Ints(vec![2, 2])), ("strides", Attr::Ints(vec![2, 2]))];
    let p = n.op("MaxPool", pool, &[y]);
    let p = n.coded(p, 1.0 / 4.0, 10);
    let ops = n.check(&[y, p]);
    assert_eq!(ops.iter().filter(|o| *o == "ConvCodes").count(), 3, "{ops:?}");
    let left = ["QuantizeLinear", "Transpose", "ConvCodes", "MaxPoolLast", "DequantizeLinear"];
    assert!(ops.iter().all(|o| left.contains(&o.as_str())), "{ops:?}");
}

/// What is planned and what it makes of its inputs on so many threads, to the last bit.
fn bits(graph: &Graph, given: &[Tensor], threads: usize) -> (Vec<StepInfo>, usize, Vec<Vec<u8>>) {
    let pool = Arc::new(hone_kernels::threads::Pool::new(threads));
    let mut runner = Runner::new(Arc::new(graph.clone()), RunOptions { pool, ..RunOptions::default() });
    let given: Vec<&Tensor> = given.iter().collect();
    let made = runner.run(&given).unwrap().iter().map(|t| t.data().as_bytes().to_vec()).collect();
    let shapes: Vec<_> = given.iter().map(|t| (t.dtype(), t.shape())).collect();
    let plan = runner.plan(&shapes).unwrap();
    (plan.steps(), plan.arena_bytes(), made)
}

#[test]
fn what_is_wide_between_two_convolutions_is_made_a_few_lines_at_a_time_and_the_same_to_the_last_bit() {
    for codes in [false, true] {
        for (batch, stride, last) in [(1, 1, false), (3, 2, false), (2, 2, true), (1, 3, true)] {
            let mut n = Net::default();
            let x = n.input(&[batch, 6, 61, 64]);
            let coded = |n: &mut Net, v: ValueId| if codes { n.coded(v, 1.0 / 16.0, 3) } else { v };
            let weights = |n: &mut Net, shape: &[usize; 4]| if codes { n.int8(shape, 0) } else { n.weights(shape) };
            let x = coded(&mut n, x);
            let (w, b) = (weights(&mut n, &[96, 6, 1, 1]), n.bias_like(codes, 96));
            let a = n.op("Conv", [], &[x, w, b]);
            let (low, high) = (n.scalar(0.0), n.scalar(6.0));
            let a = n.op("Clip", [], &[a, low, high]);
            let wide = coded(&mut n, a);
            let strides = ("strides", Attr::Ints(vec![stride; 2]));
            let y = if last {
                let (w, b) = (weights(&mut n, &[8, 96, 3, 3]), n.bias_like(codes, 8));
                n.op("Conv", [("pads", Attr::Ints(vec![1, 0, 2, 1])), strides], &[wide, w, b])
            } else {
                let (w, b) = (weights(&mut n, &[96, 1, 3, 3]), n.bias_like(codes, 96));
                n.op("Conv", [("group", Attr::Int(96)), ("pads", Attr::Ints(vec![1; 4])), strides], &[wide, w, b])
            };
            let y = coded(&mut n, y);
            // Where somebody else reads it, it is made whole.
            n.graph.outputs = vec![y, wide];
            let (_, apart, whole) = bits(&n.graph, &n.given, 1);
            n.graph.outputs = vec![y];
            let (steps, arena, one) = bits(&n.graph, &n.given, 1);
            let between = 61 * 64 * 96 * if codes { 1 } else { 4 };
            assert!(apart - arena > between * batch / 2, "{apart} whole, {arena} by lines");
            assert_eq!(steps.iter().filter(|s| s.op.starts_with("Conv")).count(), 2, "{steps:?}");
            assert_eq!(one[0], whole[0], "codes {codes}, stride {stride}");
            assert_eq!(one, bits(&n.graph, &n.given, 3).2);
            n.check(&[y]);
        }
    }
}

#[test]
fn products_of_codes_take_in_bias_residual_and_activation() {
    let mut n = Net::default();
    let x = n.input(&[2, 5, 12]);
    let x = n.coded(x, 1.0 / 16.0, 128);
    let (w, b) = (n.int8(&[12, 20], 1), n.bias(20));
    let a = n.op("MatMul", [], &[x, w]);
    let a = n.op("Add", [], &[b, a]);
    let a = n.coded(a, 1.0 / 8.0, 90);
    // A function between codes is a table.
    let a = n.op("HardSigmoid", [], &[a]);
    let a = n.coded(a, 1.0 / 128.0, 0);
    // What stays in floats: a product whose result is read as it is.
    let w = n.int8(&[20, 12], 1);
    let c = n.op("MatMul", [], &[a, w]);
    let shift = n.constant(Tensor::f32(&[12], vec![0.25; 12]).unwrap());
    let c = n.op("Add", [], &[c, shift]);
    let c = n.op("Add", [], &[c, x]);
    let y = n.op("Relu", [], &[c]);
    let ops = n.check(&[y]);
    assert_eq!(ops, ["QuantizeLinear", "DequantizeLinear", "ProductCodes", "ProductFloats"]);
}

#[test]
fn codes_that_somebody_else_reads_are_made_and_other_types_stay() {
    let mut n = Net::default();
    let x = n.input(&[3, 8]);
    let x = n.coded(x, 1.0 / 16.0, 128);
    let w = n.int8(&[6, 8], 0);
    let b = n.bias(6);
    let a = n.op("Gemm", [("transB", Attr::Int(1))], &[x, w, b]);
    let q = n.quantised(a, 1.0 / 8.0, 7);
    let back = n.dequantised(q, 1.0 / 8.0, 7);
    let table = n.op("Relu", [], &[back]);
    let table = n.coded(table, 1.0 / 8.0, 7);
    // A second scale: the codes are not those the sum reads.
    let other = n.dequantised(q, 1.0 / 4.0, 7);
    let twice = n.op("Add", [], &[back, other]);
    let twice = n.coded(twice, 1.0 / 2.0, 0);
    let ops = n.check(&[a, table, twice]);
    assert!(!ops.contains(&"ProductCodes".into()), "the floats are an output: {ops:?}");
    assert!(ops.contains(&"ProductFloats".into()) && ops.contains(&"Lookup".into()), "{ops:?}");
    // Weights with a zero point and codes of another type stay as the file says.
    let mut n = Net::default();
    let x = n.input(&[3, 8]);
    let (s, z) = (n.scalar(1.0 / 16.0), n.constant(Tensor::new(&[], Data::I8(vec![3])).unwrap()));
    let q = n.op("QuantizeLinear", [], &[x, s, z]);
    let x = n.op("DequantizeLinear", [], &[q, s, z]);
    let w = n.int8(&[8, 4], 1);
    let y = n.op("MatMul", [], &[x, w]);
    assert_eq!(n.check(&[y]), ["QuantizeLinear", "DequantizeLinear", "Dense"]);
}

#[test]
fn a_product_with_constant_weights_takes_in_what_follows() {
    for spelled in ["MatMul", "Gemm"] {
        let mut n = Net::default();
        let x = n.input(&[5, 7]);
        let z = n.input(&[5, 6]);
        let (w, b) = (n.weights(&[7, 6]), n.weights(&[6]));
        let a = if spelled == "Gemm" {
            n.op("Gemm", [], &[x, w, b])
        } else {
            let a = n.op("MatMul", [], &[x, w]);
            n.op("Add", [], &[b, a])
        };
        let a = n.op("Add", [], &[z, a]);
        let y = n.op("Gelu", [], &[a]);
        assert_eq!(n.check(&[y]), ["Dense"], "{spelled}");
    }
}

#[test]
fn attention_that_is_spelled_out_becomes_one_operator() {
    let (b, s, h, d) = (2, 5, 3, 4);
    for (form, ops) in [
        ("keys turned at once", &["Attention"][..]),
        ("keys turned twice", &["Attention"]),
        ("queries scaled first", &["Transpose", "Transpose", "Transpose", "Mul", "Attention", "Transpose"]),
        ("no mask", &["Attention"]),
    ] {
        let mut n = Net::default();
        let parts: Vec<ValueId> = (0..3).map(|_| n.input(&[b, s, h * d])).collect();
        let mask = n.input(&[b, 1, 1, s]);
        let apart = n.ints(&[0, 0, h as i64, d as i64]);
        let split: Vec<ValueId> = parts.iter().map(|&v| n.op("Reshape", [], &[v, apart])).collect();
        let turned =
            |n: &mut Net, v: ValueId, perm: [i64; 4]| n.op("Transpose", [("perm", Attr::Ints(perm.to_vec()))], &[v]);
        let mut q = turned(&mut n, split[0], [0, 2, 1, 3]);
        let k = if form == "keys turned at once" || form == "no mask" {
            turned(&mut n, split[1], [0, 2, 3, 1])
        } else {
            let k = turned(&mut n, split[1], [0, 2, 1, 3]);
            turned(&mut n, k, [0, 1, 3, 2])
        };
        let v = turned(&mut n, split[2], [0, 2, 1, 3]);
        let two = n.scalar(2.0);
        let mut scores = if form == "queries scaled first" {
            let half = n.scalar(0.5);
            q = n.op("Mul", [], &[q, half]);
            n.op("MatMul", [], &[q, k])
        } else {
            let product = n.op("MatMul", [], &[q, k]);
            n.op("Div", [], &[product, two])
        };
        if form != "no mask" {
            scores = n.op("Add", [], &[scores, mask]);
        }
        let weights = n.op("Softmax", [("axis", Attr::Int(-1))], &[scores]);
        let mixed = n.op("MatMul", [], &[weights, v]);
        let mixed = turned(&mut n, mixed, [0, 2, 1, 3]);
        let whole = n.ints(&[0, 0, (h * d) as i64]);
        let y = n.op("Reshape", [], &[mixed, whole]);
        assert_eq!(n.check(&[y]), ops, "{form}");
    }
}

#[test]
fn products_of_dynamic_codes_are_scaled_where_they_are_made() {
    let mut n = Net::default();
    let x = n.input(&[2, 3, 8]);
    let z = n.input(&[2, 3, 5]);
    let parts: Vec<ValueId> = ["codes", "scale", "zero"].map(|p| n.graph.add_value(p, None, None)).to_vec();
    let op = Op::Own(find("", "DynamicQuantizeLinear").unwrap(), Arc::new(Attrs::of([])));
    let outputs = parts.iter().copied().map(Some).collect();
    n.graph.nodes.push(Node { name: "dynamic".into(), op, inputs: vec![Some(x)], outputs });
    let codes = n.numbers(40).into_iter().map(|v| (v * 127.0) as i8).collect();
    let w = n.constant(Tensor::new(&[8, 5], Data::I8(codes)).unwrap());
    let w_zero = n.constant(Tensor::new(&[], Data::I8(vec![0])).unwrap());
    let sums = n.op("MatMulInteger", [], &[parts[0], w, parts[2], w_zero]);
    let real = n.op("Cast", [("to", Attr::Int(1))], &[sums]);
    let w_scale = n.scalar(0.02);
    let scale = n.op("Mul", [], &[parts[1], w_scale]);
    let y = n.op("Mul", [], &[real, scale]);
    let bias = n.weights(&[5]);
    let y = n.op("Add", [], &[y, bias]);
    let y = n.op("Add", [], &[y, z]);
    let y = n.op("Tanh", [], &[y]);
    assert_eq!(n.check(&[y]), ["DynamicQuantizeLinear", "ProductScaled"]);
}

#[test]
fn tensors_of_sixteen_bits_are_computed_in_thirty_two() {
    let mut n = Net::default();
    let x = n.input(&[1, 3, 6, 6]);
    let to = |t: i64| [("to", Attr::Int(t))];
    let half = n.op("Cast", to(10), &[x]);
    let (w, b) = (n.weights(&[4, 3, 3, 3]), n.weights(&[4]));
    let narrow = |n: &mut Net, v: ValueId| {
        let t = n.graph.values[v].constant.clone().unwrap();
        let t = Tensor::from_f64(crate::tensor::DType::F16, t.shape(), &t.data().to_f64()).unwrap();
        n.constant(t)
    };
    let (w, b) = (narrow(&mut n, w), narrow(&mut n, b));
    let a = n.op("Conv", [], &[half, w, b]);
    let a = n.op("Relu", [], &[a]);
    let a = n.op("Softmax", [("axis", Attr::Int(1))], &[a]);
    let y = n.op("Cast", to(1), &[a]);
    // Two roundings to 11 bits that the plan does not make.
    let ops = n.check_within(2e-3, &[y]);
    assert!(ops.contains(&"ConvLast".into()) && !ops.contains(&"Relu".into()), "{ops:?}");
}

#[test]
fn a_table_of_codes_that_is_looked_up_stays_codes() {
    for (axis, scales) in [(0, 1), (0, 7), (1, 5)] {
        for zero in [None, Some(Data::U8(vec![130; scales])), Some(Data::U8(vec![0; scales]))] {
            let mut n = Net::default();
            let x = n.input(&[3, 2]);
            let at = n.op("Abs", [], &[x]);
            let at = n.op("Cast", [("to", Attr::Int(i64::from(DType::I64.onnx())))], &[at]);
            let q =
                n.constant(Tensor::new(&[7, 5], Data::U8((0..35).map(|i| (i * 37 % 251) as u8).collect())).unwrap());
            let shape = if scales == 1 { vec![] } else { vec![scales] };
            let scale = (1..=scales).map(|i| 0.01 * i as f32).collect();
            let scale = n.constant(Tensor::f32(&shape, scale).unwrap());
            let zero = zero.map_or(NONE, |z| n.constant(Tensor::new(&shape, z).unwrap()));
            let table = n.op("DequantizeLinear", [("axis", Attr::Int(axis))], &[q, scale, zero]);
            let y = n.op("Gather", [("axis", Attr::Int(0))], &[table, at]);
            let steps = n.steps_within(0.0, &[y]);
            assert!(steps.iter().any(|s| s.kernel == "gather-q8"), "{axis} {scales}: {steps:?}");
        }
    }
}
