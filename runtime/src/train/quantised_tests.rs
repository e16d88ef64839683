//! Gradients through operators that are quantised in one piece, as ONNX Runtime's quantiser writes them, against those of
//! their float forms.
//!
//! What is trained lies on the codes' grid and no code saturates: then rounding changes nothing that a gradient depends
//! on, and both are the same but for the rounding of `f32`.
use super::tests::numbers;
use super::*;
use crate::graph::{Node, Op};
use crate::ops::{Attr, MICROSOFT, find};
use crate::tensor::Data;

/// A graph that grows.
#[derive(Default)]
struct Maker {
    graph: Graph,
    made: usize,
}

impl Maker {
    fn constant(&mut self, t: Tensor) -> ValueId {
        self.made += 1;
        self.graph.add_value(&format!("c{}", self.made), None, Some(Arc::new(t)))
    }

    fn floats(&mut self, shape: &[usize], v: &[f32]) -> ValueId {
        self.constant(Tensor::f32(shape, v.to_vec()).unwrap())
    }

    fn scalar(&mut self, v: f32) -> ValueId {
        self.floats(&[], &[v])
    }

    fn byte(&mut self, v: u8) -> ValueId {
        self.constant(Tensor::new(&[], Data::U8(vec![v])).unwrap())
    }

    fn node<const N: usize>(
        &mut self,
        (domain, op): (&str, &str),
        inputs: &[ValueId],
        attrs: [(&str, Attr); N],
    ) -> ValueId {
        self.made += 1;
        let y = self.graph.add_value(&format!("v{}", self.made), None, None);
        let own = Op::Own(find(domain, op).unwrap(), Arc::new(Attrs::of(attrs)));
        let inputs = inputs.iter().copied().map(Some).collect();
        self.graph.nodes.push(Node { name: format!("{op}{}", self.made), op: own, inputs, outputs: vec![Some(y)] });
        y
    }

    fn quantised(&mut self, x: ValueId) -> ValueId {
        let (s, z) = (self.scalar(STEP), self.byte(ZERO));
        self.node(("", "QuantizeLinear"), &[x, s, z], [])
    }

    fn real(&mut self, x: ValueId, scale: f32, zero: u8) -> ValueId {
        let (s, z) = (self.scalar(scale), self.byte(zero));
        self.node(("", "DequantizeLinear"), &[x, s, z], [])
    }
}

/// Of what is trained.
const STEP: f32 = 0.03125;
const ZERO: u8 = 120;
/// Of results: wide enough that none saturates.
const WIDE: f32 = 0.25;
const MIDDLE: u8 = 128;

/// A frozen weight: codes, and what they stand for with a scale and a zero point for each of the places along `axis`.
struct Weight {
    codes: Tensor,
    scale: Vec<f32>,
    zero: Vec<i8>,
    real: Tensor,
}

fn weight(shape: &[usize], axis: usize, centred: bool) -> Weight {
    let n = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let codes: Vec<i8> = numbers("codes", shape.iter().product()).iter().map(|v| (v * 60.0) as i8).collect();
    let scale: Vec<f32> = (0..n).map(|i| 0.004 + 0.001 * i as f32).collect();
    let zero: Vec<i8> = (0..n).map(|i| if centred { 0 } else { i as i8 - 2 }).collect();
    let at = |i: usize| i / inner % n;
    let real = codes.iter().enumerate().map(|(i, &q)| f32::from(q - zero[at(i)]) * scale[at(i)]).collect();
    Weight { codes: Tensor::new(shape, Data::I8(codes)).unwrap(), real: Tensor::f32(shape, real).unwrap(), scale, zero }
}

/// The gradient by `p` of what `make` builds of it, `g` being that by the result.
fn gradient(shape: &[usize], make: &dyn Fn(&mut Maker, ValueId) -> ValueId, reference: bool) -> Vec<f32> {
    let mut m = Maker::default();
    let steps = numbers("trained", shape.iter().product());
    let p: Vec<f32> = steps.iter().map(|v| (v * 50.0).round() as f32 * STEP).collect();
    let p = m.graph.add_value("p", None, Some(Arc::new(Tensor::f32(shape, p).unwrap())));
    // A factor that is given with every batch, so that nothing is computed beforehand.
    let one = m.graph.add_value("one", None, None);
    let x = m.node(("", "Mul"), &[p, one], []);
    let y = make(&mut m, x);
    (m.graph.inputs, m.graph.outputs) = (vec![one], vec![y]);
    let recipe = Recipe {
        output: m.graph.values[y].name.clone(),
        objective: Objective::Handed,
        trainable: vec!["p".into()],
        undecayed: Vec::new(),
        optimizer: Optimizer::SGD,
        clip: None,
        accumulate: false,
        max_bytes: None,
        spare: 0.0,
    };
    let one = Tensor::f32(&[], vec![1.0]).unwrap();
    let out = crate::plan::Runner::new(Arc::new(m.graph.clone()), RunOptions::default()).run(&[&one]).unwrap();
    let shape = out[0].shape().to_vec();
    let g = numbers("given", out[0].len()).iter().map(|v| *v as f32).collect();
    let batch = Batch { inputs: vec![one], target: Some(Tensor::f32(&shape, g).unwrap()), weights: None };
    let options = TrainOptions { reference, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&m.graph, recipe, options).unwrap();
    trainer.gradients(&batch).unwrap().1[0].as_f32().unwrap().to_vec()
}

#[track_caller]
fn same(
    name: &str,
    shape: &[usize],
    float: &dyn Fn(&mut Maker, ValueId) -> ValueId,
    fused: &dyn Fn(&mut Maker, ValueId) -> ValueId,
) {
    let want = gradient(shape, float, true);
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{name}");
    for reference in [true, false] {
        let got = gradient(shape, fused, reference);
        let off = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // Sums of some dozen products.
        assert!(off <= 1e-5 * largest, "{name}, by reference {reference}: {off} of {largest}");
    }
}

fn ints(v: &[i64]) -> Attr {
    Attr::Ints(v.to_vec())
}

#[test]
fn convolutions_of_codes_have_the_gradients_of_the_floats_they_stand_for() {
    let w = weight(&[6, 2, 3, 3], 0, true);
    let window = || [("strides", ints(&[2, 1])), ("pads", ints(&[1, 0, 1, 2])), ("group", Attr::Int(2))];
    let bias: Vec<i32> = (0..6).map(|i| 40 * i - 90).collect();
    let float = |m: &mut Maker, x: ValueId, biased: bool| {
        let mut inputs = vec![x, m.constant(w.real.clone())];
        if biased {
            let b: Vec<f32> = bias.iter().zip(&w.scale).map(|(b, s)| *b as f32 * s * STEP).collect();
            inputs.push(m.floats(&[6], &b));
        }
        m.node(("", "Conv"), &inputs, window())
    };
    let shape = [2, 4, 7, 5];
    same("ConvInteger", &shape, &|m, x| float(m, x, false), &|m, x| {
        let x = m.quantised(x);
        let (codes, zx) = (m.constant(w.codes.clone()), m.byte(ZERO));
        let zw = m.constant(Tensor::new(&[6], Data::I8(w.zero.clone())).unwrap());
        let y = m.node(("", "ConvInteger"), &[x, codes, zx, zw], window());
        let y = m.node(("", "Cast"), &[y], [("to", Attr::Int(1))]);
        let scales: Vec<f32> = w.scale.iter().map(|s| s * STEP).collect();
        let scales = m.floats(&[6, 1, 1], &scales);
        m.node(("", "Mul"), &[y, scales], [])
    });
    for last in [false, true] {
        let fused = |m: &mut Maker, x: ValueId| {
            let (s, z) = (m.scalar(STEP), m.byte(ZERO));
            let x = m.quantised(x);
            let x = if last { m.node(("", "Transpose"), &[x], [("perm", ints(&[0, 2, 3, 1]))]) } else { x };
            let (codes, ws) = (m.constant(w.codes.clone()), m.floats(&[6], &w.scale));
            let wz = m.constant(Tensor::new(&[6], Data::I8(w.zero.clone())).unwrap());
            let (ys, yz) = (m.scalar(WIDE), m.byte(MIDDLE));
            let b = m.constant(Tensor::new(&[6], Data::I32(bias.clone())).unwrap());
            let inputs = [x, s, z, codes, ws, wz, ys, yz, b];
            let y = match last {
                false => m.node(("", "QLinearConv"), &inputs, window()),
                true => {
                    let [a, b, c] = window();
                    let y = m.node((MICROSOFT, "QLinearConv"), &inputs, [a, b, c, ("channels_last", Attr::Int(1))]);
                    m.node(("", "Transpose"), &[y], [("perm", ints(&[0, 3, 1, 2]))])
                }
            };
            m.real(y, WIDE, MIDDLE)
        };
        same("QLinearConv", &shape, &|m, x| float(m, x, true), &fused);
    }
}

#[test]
fn products_of_codes_have_the_gradients_of_the_floats_they_stand_for() {
    let w = weight(&[12, 5], 1, false);
    let bias = [0.5, -0.25, 0.125, 1.0, -1.0];
    let float = |m: &mut Maker, x: ValueId| {
        let real = m.constant(w.real.clone());
        m.node(("", "MatMul"), &[x, real], [])
    };
    let operands = |m: &mut Maker| {
        let zero = m.constant(Tensor::new(&[5], Data::I8(w.zero.clone())).unwrap());
        (m.constant(w.codes.clone()), m.floats(&[5], &w.scale), zero)
    };
    let shape = [2, 3, 12];
    same("QLinearMatMul", &shape, &float, &|m, x| {
        let x = m.quantised(x);
        let (s, z, (codes, ws, wz)) = (m.scalar(STEP), m.byte(ZERO), operands(m));
        let (ys, yz) = (m.scalar(WIDE), m.byte(MIDDLE));
        let y = m.node(("", "QLinearMatMul"), &[x, s, z, codes, ws, wz, ys, yz], []);
        m.real(y, WIDE, MIDDLE)
    });
    same("MatMulIntegerToFloat", &shape, &float, &|m, x| {
        let x = m.quantised(x);
        let (s, z, (codes, ws, wz)) = (m.scalar(STEP), m.byte(ZERO), operands(m));
        let b = m.floats(&[5], &bias);
        m.node((MICROSOFT, "MatMulIntegerToFloat"), &[x, codes, s, ws, z, wz, b], [])
    });
    same("DynamicQuantizeMatMul", &shape, &float, &|m, x| {
        let (codes, ws, wz) = operands(m);
        let b = m.floats(&[5], &bias);
        m.node((MICROSOFT, "DynamicQuantizeMatMul"), &[x, codes, ws, wz, b], [])
    });
    // [N, K] with a scale a row.
    let turned = weight(&[5, 12], 0, true);
    let float = |m: &mut Maker, x: ValueId| {
        let real = m.constant(turned.real.clone());
        m.node(("", "Gemm"), &[x, real], [("transB", Attr::Int(1)), ("alpha", Attr::Float(0.5))])
    };
    for rescaled in [true, false] {
        same("QGemm", &[4, 12], &float, &|m, x| {
            let x = m.quantised(x);
            let (s, z, codes) = (m.scalar(STEP), m.byte(ZERO), m.constant(turned.codes.clone()));
            let (ws, wz) =
                (m.floats(&[5], &turned.scale), m.constant(Tensor::new(&[5], Data::I8(vec![0; 5])).unwrap()));
            let c = m.constant(Tensor::new(&[5], Data::I32(vec![30, -20, 10, 0, 5])).unwrap());
            let attrs = [("transB", Attr::Int(1)), ("alpha", Attr::Float(0.5))];
            if !rescaled {
                return m.node((MICROSOFT, "QGemm"), &[x, s, z, codes, ws, wz, c], attrs);
            }
            let (ys, yz) = (m.scalar(WIDE), m.byte(MIDDLE));
            let y = m.node((MICROSOFT, "QGemm"), &[x, s, z, codes, ws, wz, c, ys, yz], attrs);
            m.real(y, WIDE, MIDDLE)
        });
    }
}

#[test]
fn functions_of_codes_have_the_gradients_of_the_functions_of_floats() {
    let shape = [2, 3, 4, 6];
    let other = Tensor::f32(&[3, 1, 6], (0..18).map(|i| (i as f32 - 9.0) * STEP).collect()).unwrap();
    let unary = |m: &mut Maker, op: &str, x: ValueId, attrs: &[(&str, Attr)]| {
        let x = m.quantised(x);
        let (s, z, ys, yz) = (m.scalar(STEP), m.byte(ZERO), m.scalar(WIDE), m.byte(MIDDLE));
        let y = m.node((MICROSOFT, op), &[x, s, z, ys, yz], []);
        if let Op::Own(def, own) = &m.graph.nodes.last().unwrap().op {
            let mut changed = Attrs::clone(own);
            changed.map.extend(attrs.iter().map(|(k, v)| (k.to_string(), v.clone())));
            m.graph.nodes.last_mut().unwrap().op = Op::Own(def, Arc::new(changed));
        }
        m.real(y, WIDE, MIDDLE)
    };
    let pool = [("kernel_shape", ints(&[2, 3])), ("strides", ints(&[1, 2])), ("pads", ints(&[1, 0, 0, 1]))];
    let mean = [("axes", ints(&[1, 3])), ("keepdims", Attr::Int(0))];
    for (op, fused, attrs) in [
        ("Sigmoid", "QLinearSigmoid", vec![]),
        ("LeakyRelu", "QLinearLeakyRelu", vec![("alpha", Attr::Float(0.25))]),
        ("Softmax", "QLinearSoftmax", vec![("axis", Attr::Int(2)), ("opset", Attr::Int(13))]),
        ("GlobalAveragePool", "QLinearGlobalAveragePool", vec![]),
        ("AveragePool", "QLinearAveragePool", pool.to_vec()),
        ("ReduceMean", "QLinearReduceMean", mean.to_vec()),
    ] {
        let float = |m: &mut Maker, x: ValueId| match op {
            "ReduceMean" => {
                let axes = m.constant(Tensor::i64(&[2], vec![1, 3]).unwrap());
                m.node(("", op), &[x, axes], [("keepdims", Attr::Int(0))])
            }
            "Softmax" => m.node(("", op), &[x], [("axis", Attr::Int(2))]),
            "LeakyRelu" => m.node(("", op), &[x], [("alpha", Attr::Float(0.25))]),
            "AveragePool" => m.node(("", op), &[x], pool.clone()),
            _ => m.node(("", op), &[x], []),
        };
        same(fused, &shape, &float, &|m, x| unary(m, fused, x, &attrs));
    }
    for (op, fused) in [("Add", "QLinearAdd"), ("Mul", "QLinearMul")] {
        let float = |m: &mut Maker, x: ValueId| {
            let c = m.constant(other.clone());
            let y = m.node(("", op), &[x, c], []);
            m.node(("", op), &[c, y], [])
        };
        same(fused, &shape, &float, &|m, x| {
            let c = m.constant(other.clone());
            let (x, c) = (m.quantised(x), m.quantised(c));
            let (s, z, ys, yz) = (m.scalar(STEP), m.byte(ZERO), m.scalar(WIDE), m.byte(MIDDLE));
            // Either operand.
            let y = m.node((MICROSOFT, fused), &[x, s, z, c, s, z, ys, yz], []);
            let y = m.node((MICROSOFT, fused), &[c, s, z, y, ys, yz, ys, yz], []);
            m.real(y, WIDE, MIDDLE)
        });
    }
    let which: Vec<bool> = (0..6).map(|i| i % 3 != 1).collect();
    let which = Tensor::new(&[6], Data::Bool(which)).unwrap();
    let float = |m: &mut Maker, x: ValueId| {
        let (c, which) = (m.constant(other.clone()), m.constant(which.clone()));
        let y = m.node(("", "Where"), &[which, x, c], []);
        m.node(("", "Concat"), &[y, x], [("axis", Attr::Int(3))])
    };
    same("QLinearWhere, QLinearConcat", &shape, &float, &|m, x| {
        let (c, which) = (m.constant(other.clone()), m.constant(which.clone()));
        let (x, c) = (m.quantised(x), m.quantised(c));
        let (s, z, ys, yz) = (m.scalar(STEP), m.byte(ZERO), m.scalar(WIDE), m.byte(MIDDLE));
        let y = m.node((MICROSOFT, "QLinearWhere"), &[which, x, s, z, c, s, z, ys, yz], []);
        let y = m.node((MICROSOFT, "QLinearConcat"), &[ys, yz, y, ys, yz, x, s, z], [("axis", Attr::Int(3))]);
        m.real(y, WIDE, MIDDLE)
    });
}

#[test]
fn the_largest_of_codes_under_a_window_has_the_gradient_of_the_largest_of_floats() {
    let pool = || [("kernel_shape", ints(&[2, 3])), ("strides", ints(&[1, 2])), ("pads", ints(&[1, 0, 0, 1]))];
    let turn = |m: &mut Maker, x: ValueId, perm: &[i64]| m.node(("", "Transpose"), &[x], [("perm", ints(perm))]);
    same("NhwcMaxPool", &[2, 3, 4, 6], &|m, x| m.node(("", "MaxPool"), &[x], pool()), &|m, x| {
        let x = m.quantised(x);
        let x = turn(m, x, &[0, 2, 3, 1]);
        let y = m.node((MICROSOFT, "NhwcMaxPool"), &[x], pool());
        let y = turn(m, y, &[0, 3, 1, 2]);
        m.real(y, STEP, ZERO)
    });
}

#[test]
fn attention_over_codes_has_the_gradient_of_the_floats_they_stand_for() {
    const H: usize = 6;
    let w = weight(&[5, 3 * H], 1, false);
    let bias: Vec<f32> = numbers("bias", 3 * H).iter().map(|v| *v as f32 * 0.3).collect();
    let past: Vec<f32> = numbers("past", 2 * 2 * 2 * 3 * 3).iter().map(|v| *v as f32).collect();
    let past = Tensor::f32(&[2, 2, 2, 3, 3], past).unwrap();
    let shape = [2, 4, 5];
    // Ends; ends and starts; a flag for each key.
    let ends = Tensor::new(&[2], Data::I32(vec![3, 4])).unwrap();
    let both = Tensor::new(&[4], Data::I32(vec![3, 4, 0, 1])).unwrap();
    let flags = Tensor::new(&[2, 4], Data::I32(vec![1, 1, 0, 1, 1, 0, 1, 1])).unwrap();
    let longer = Tensor::new(&[2, 7], Data::I32(vec![1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1])).unwrap();
    for (mask, past, causal, scale) in [
        (None, None, 0, 0.0),
        (Some(&ends), None, 0, 0.5),
        (Some(&both), None, 0, 0.0),
        (Some(&flags), None, 1, 0.0),
        (Some(&longer), Some(&past), 1, 0.0),
    ] {
        let attrs = || {
            let scale = if scale == 0.0 { 1.0 / (3f32).sqrt() } else { scale };
            [("num_heads", Attr::Int(2)), ("unidirectional", Attr::Int(causal)), ("scale", Attr::Float(scale))]
        };
        let optional = |m: &mut Maker, t: Option<&Tensor>| t.map(|t| m.constant(t.clone()));
        let float = |m: &mut Maker, x: ValueId| {
            let (real, bias) = (m.constant(w.real.clone()), m.floats(&[3 * H], &bias));
            let y = m.node((MICROSOFT, "Attention"), &[x, real, bias], attrs());
            let more = [optional(m, mask), optional(m, past)];
            m.graph.nodes.last_mut().unwrap().inputs.extend(more);
            y
        };
        same("QAttention", &shape, &float, &|m, x| {
            let x = m.quantised(x);
            let (codes, bias) = (m.constant(w.codes.clone()), m.floats(&[3 * H], &bias));
            let (s, ws) = (m.scalar(STEP), m.floats(&[3 * H], &w.scale));
            let y = m.node((MICROSOFT, "QAttention"), &[x, codes, bias, s, ws], attrs());
            let (zero, wz) = (m.byte(ZERO), m.constant(Tensor::new(&[3 * H], Data::I8(w.zero.clone())).unwrap()));
            let more = [optional(m, mask), Some(zero), Some(wz), optional(m, past)];
            m.graph.nodes.last_mut().unwrap().inputs.extend(more);
            y
        });
    }
}

#[test]
fn an_lstm_of_codes_has_the_gradients_of_the_weights_they_stand_for() {
    const H: usize = 5;
    let (w, r) = (weight(&[1, 3, 4 * H], 2, true), weight(&[1, H, 4 * H], 2, true));
    let b: Vec<f32> = numbers("b", 8 * H).iter().map(|v| *v as f32 * 0.3).collect();
    let attrs = || [("hidden_size", Attr::Int(H as i64)), ("direction", Attr::Str("reverse".into()))];
    let turned = |w: &Weight| {
        let [_, k, n] = *w.real.shape() else { panic!("three axes") };
        let v = w.real.as_f32().unwrap();
        Tensor::f32(&[1, n, k], (0..n * k).map(|i| v[i % k * n + i / k]).collect()).unwrap()
    };
    let float = |m: &mut Maker, x: ValueId| {
        let (w, r, b) = (m.constant(turned(&w)), m.constant(turned(&r)), m.floats(&[1, 8 * H], &b));
        m.node(("", "LSTM"), &[x, w, r, b], attrs())
    };
    same("DynamicQuantizeLSTM", &[4, 2, 3], &float, &|m, x| {
        let (wq, rq, b) = (m.constant(w.codes.clone()), m.constant(r.codes.clone()), m.floats(&[1, 8 * H], &b));
        let [ws, rs] = [&w, &r].map(|w| m.floats(&[1, 4 * H], &w.scale));
        let zero = m.constant(Tensor::new(&[1, 4 * H], Data::I8(vec![0; 4 * H])).unwrap());
        let y = m.node((MICROSOFT, "DynamicQuantizeLSTM"), &[x, wq, rq, b], attrs());
        let at = m.graph.nodes.last_mut().unwrap();
        at.inputs.extend([None, None, None, None, Some(ws), Some(zero), Some(rs), Some(zero)]);
        y
    });
}
