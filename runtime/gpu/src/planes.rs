//! Convolutions with channels first and weights that change, and what training needs of them and of pooling: gradients by
//! operand and by weight. An element a thread: they follow what lies where, so that nothing is arranged before a step.
use std::sync::Arc;

use hone_kernels::conv::Window;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, floats, put_window, under};
use crate::window::DEEP;

/// What is computed. `x` is the side a window reads from, `y` the one that has a position a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// `y = Σ x · w + bias`, a convolution. Operands x, w, bias.
    Forward {
        /// A bias a channel.
        bias: bool,
    },
    /// `x = Σ y · w + bias`: its gradient by the operand, a transposed convolution. Operands y, w, bias.
    Input {
        /// A bias a channel of x.
        bias: bool,
    },
    /// `w = Σ x · y`: its gradient by the weight. Operands x, y.
    Weight,
    /// y where x is the first of the largest under a window, added up. Operands y, x.
    Max,
    /// y times the factor of its position, added up over a window. Operands y, factors.
    Average,
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    /// What is computed.
    pub of: Of,
    /// The window.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Groups; of pooling, channels.
    pub groups: usize,
    /// Channels of x of a group; of pooling 1.
    pub c: usize,
    /// Channels of y of a group; of pooling 1.
    pub o: usize,
}

impl Planes {
    /// Elements of x, w and y.
    fn lengths(&self) -> Option<[usize; 3]> {
        let of = |parts: &[usize]| {
            let n = parts.iter().try_fold(1usize, |n, &p| n.checked_mul(p))?;
            i32::try_from(n).ok().map(|n| n as usize)
        };
        let w = &self.window;
        let x = of(&[self.batch, self.groups, self.c, w.pixels()])?;
        let y = of(&[self.batch, self.groups, self.o, w.positions()])?;
        Some([x, of(&[self.groups, self.o, self.c, w.taps()])?, y])
    }

    /// The call; `None` when it is larger than a grid or than indices of 32 bits.
    pub fn call(&self) -> Option<Call> {
        let [x, w, y] = self.lengths()?;
        let n = match self.of {
            Of::Forward { .. } => y,
            Of::Weight => w,
            Of::Input { .. } | Of::Max | Of::Average => x,
        };
        let mut params = vec![0u32; 32];
        for (p, v) in params.iter_mut().zip([n, self.batch, self.groups, self.c, self.o]) {
            *p = u32::try_from(v).ok()?;
        }
        put_window(&self.window, &mut params[8..32])?;
        kernel(self.of).line(params, n)
    }
}

const FORWARD: &str = "    let p = split(i % here, P.output);
    let channel = i / here % (P.groups * P.o);
    let first = (i / (here * P.groups * P.o) * P.groups + channel / P.o) * P.c;
    var sum = 0.0;
    for (var t = 0u; t < taps; t++) {
        let s = under(p, t);
        if s < 0 {
            continue;
        }
        for (var c = 0u; c < P.c; c++) {
            sum += X[(first + c) * pixels + u32(s)] * W[(channel * P.c + c) * taps + t];
        }
    }
    Y[i] = sumBIAS;";

const INPUT: &str = "    let q = split(i % pixels, P.input);
    let channel = i / pixels % (P.groups * P.c);
    let group = channel / P.c;
    let c = channel % P.c;
    let first = i / (pixels * P.groups * P.c) * P.groups * P.o;
    var sum = 0.0;
    for (var t = 0u; t < taps; t++) {
        let p = over(q, t);
        if p < 0 {
            continue;
        }
        for (var o = group * P.o; o < group * P.o + P.o; o++) {
            sum += Y[(first + o) * here + u32(p)] * W[(o * P.c + c) * taps + t];
        }
    }
    X[i] = sumBIAS;";

const WEIGHT: &str = "    let t = i % taps;
    let c = i / taps % P.c;
    let channel = i / (taps * P.c);
    var sum = 0.0;
    for (var image = 0u; image < P.batch; image++) {
        let x = ((image * P.groups + channel / P.o) * P.c + c) * pixels;
        let y = (image * P.groups * P.o + channel) * here;
        for (var row = 0u; row < here; row += P.output.z) {
            // A row at a time, so that long sums lose less.
            var part = 0.0;
            for (var p = row; p < row + P.output.z; p++) {
                let s = under(split(p, P.output), t);
                part += select(0.0, X[x + u32(max(s, 0))] * Y[y + p], s >= 0);
            }
            sum += part;
        }
    }
    W[i] = sum;";

const MAX: &str = "    let plane = i / pixels;
    let q = split(i % pixels, P.input);
    var sum = 0.0;
    for (var t = 0u; t < taps; t++) {
        let p = over(q, t);
        if p < 0 {
            continue;
        }
        let at = split(u32(p), P.output);
        var largest = -1;
        var most = 0.0;
        for (var k = 0u; k < taps; k++) {
            let s = under(at, k);
            if s < 0 {
                continue;
            }
            let v = X[plane * pixels + u32(s)];
            if largest < 0 || v > most || (not_a_number(v) && !not_a_number(most)) {
                largest = s;
                most = v;
            }
        }
        sum += select(0.0, Y[plane * here + u32(p)], largest == i32(i % pixels));
    }
    D[i] = sum;";

const AVERAGE: &str = "    let q = split(i % pixels, P.input);
    var sum = 0.0;
    for (var t = 0u; t < taps; t++) {
        let p = over(q, t);
        if p >= 0 {
            sum += Y[i / pixels * here + u32(p)] * F[p];
        }
    }
    X[i] = sum;";

fn kernel(of: Of) -> Arc<Kernel> {
    let (name, what, operands, result, body, bias) = match of {
        Of::Forward { bias } => ("forward", "y = Σ x · w + bias", &["X", "W"][..], "Y", FORWARD, bias),
        Of::Input { bias } => ("input", "x = Σ y · w + bias", &["Y", "W"][..], "X", INPUT, bias),
        Of::Weight => ("weight", "w = Σ x · y", &["X", "Y"][..], "W", WEIGHT, false),
        Of::Max => ("max", "y where x is the first of the largest under a window", &["Y", "X"][..], "D", MAX, false),
        Of::Average => ("average", "y times the factor of its position", &["Y", "F"][..], "X", AVERAGE, false),
    };
    let mut names = operands.to_vec();
    if bias {
        names.push("B");
    }
    let reads = names.len();
    names.push(result);
    let bindings = floats(1, &names);
    let body = body.replace("BIAS", if bias { " + B[channel]" } else { "" });
    let common = if of == Of::Max { include_str!("common.wgsl") } else { "" };
    let values = [("WHAT", what), ("COMMON", common), ("BINDINGS", &bindings), ("BODY", &body)];
    let source = filled(include_str!("planes.wgsl"), &values);
    let name = format!("planes-{name}{}", if bias { "-bias" } else { "" });
    Kernel::new(name, source, reads, 1, move || trials(of))
}

fn trials(of: Of) -> Vec<Trial> {
    let window = Window {
        input: [1, 7, 6],
        kernel: [1, 3, 2],
        output: [1, 4, 4],
        stride: [1, 2, 1],
        dilation: [1, 1, 2],
        pad: [0, 1, 0],
    };
    let pools = matches!(of, Of::Max | Of::Average);
    let sizes = if pools { [(1, 3, 1, 1), (2, 2, 1, 1)] } else { [(2, 2, 3, 2), (1, 1, 2, 5)] };
    let all = [window, DEEP].into_iter().flat_map(|w| sizes.map(|s| (w, s)));
    all.filter_map(|(window, (batch, groups, c, o))| trial(&Planes { of, window, batch, groups, c, o })).collect()
}

/// Every product, where it belongs.
fn trial(p: &Planes) -> Option<Trial> {
    let call = p.call()?;
    let Planes { of, window: v, batch, groups, c, o } = *p;
    let lengths = p.lengths()?;
    let mut draws = Draws::new(lengths[0] as u64);
    let [mut x, w, y] = lengths.map(|n| draws.floats(n));
    // Equal ones, of which the first counts.
    x.iter_mut().for_each(|v| *v = (*v * 4.0).round() / 4.0);
    let (bias, factors) = (draws.floats(groups * c.max(o)), draws.floats(v.positions()));
    let [mut xs, mut ws, mut ys] = lengths.map(|n| vec![0.0f64; n]);
    for position in 0..v.positions() {
        let taps: Vec<(usize, usize)> = (0..v.taps()).filter_map(|t| Some((t, under(&v, position, t)?))).collect();
        for plane in 0..batch * groups {
            for k in 0..c * o {
                let (k, j) = (k / o, k % o);
                let (from, to) = ((plane * c + k) * v.pixels(), (plane * o + j) * v.positions() + position);
                let row = ((plane % groups * o + j) * c + k) * v.taps();
                let g = f64::from(y[to]);
                for &(t, s) in &taps {
                    ys[to] += f64::from(x[from + s]) * f64::from(w[row + t]);
                    ws[row + t] += f64::from(x[from + s]) * g;
                    xs[from + s] += match of {
                        Of::Average => g * f64::from(factors[position]),
                        Of::Max => 0.0,
                        _ => g * f64::from(w[row + t]),
                    };
                }
                if of == Of::Max {
                    let most = taps.iter().map(|t| x[from + t.1]).fold(f32::NEG_INFINITY, f32::max);
                    let first = taps.iter().find(|t| x[from + t.1] == most)?;
                    xs[from + first.1] += g;
                }
            }
        }
    }
    let biased = |sums: &mut [f64], each: usize, channels: usize| {
        sums.iter_mut().enumerate().for_each(|(i, s)| *s += f64::from(bias[i / each % channels]));
    };
    let (operands, biases, result) = match of {
        Of::Forward { bias } => (vec![&x, &w], bias.then_some(o), ys),
        Of::Input { bias } => (vec![&y, &w], bias.then_some(c), xs),
        Of::Weight => (vec![&x, &y], None, ws),
        Of::Max => (vec![&y, &x], None, xs),
        Of::Average => (vec![&y, &factors], None, xs),
    };
    let mut operands: Vec<Vec<u8>> = operands.into_iter().map(|v| bytes_of(v)).collect();
    let mut result = result;
    if let Some(own) = biases {
        operands.push(bytes_of(&bias[..groups * own]));
        let each = if matches!(of, Of::Input { .. }) { v.pixels() } else { v.positions() };
        biased(&mut result, each, groups * own);
    }
    let result: Vec<f32> = result.iter().map(|v| *v as f32).collect();
    let results = vec![bytes_of(&result)];
    Some(Trial { call, before: vec![], operands, results, allowed: Allowed::Floats(2e-5) })
}
