//! Every pass against the reference interpreter, which runs none: the same graph both ways, and what became of it.
use std::sync::Arc;

use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::{Attr, Attrs, find};
use crate::plan::{RunOptions, Runner};
use crate::tensor::Tensor;

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
    fn check(mut self, outputs: &[ValueId]) -> Vec<String> {
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
                assert!((a - b).abs() <= 2e-6 * most.max(1.0), "element {i}: {a} by reference, {b} planned");
            }
        }
        let shapes: Vec<_> = given.iter().map(|t| (t.dtype(), t.shape())).collect();
        both[1].0.plan(&shapes).unwrap().steps().into_iter().map(|s| s.op).collect()
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
