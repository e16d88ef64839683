//! Optimizers as operators whose results take the place of their operands, and how the learning rate goes.
use hone_gpu::update;
use hone_kernels::optimize;

use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, optional};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Tensor};

/// How a parameter is moved along its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum, as PyTorch's `SGD` without dampening.
    Sgd {
        /// What stays of the last direction.
        momentum: f32,
        /// Whether to look ahead.
        nesterov: bool,
        /// Factor of the parameter added to its gradient.
        weight_decay: f32,
    },
    /// AdamW, as PyTorch's.
    AdamW {
        /// What stays of the mean of gradients.
        beta1: f32,
        /// What stays of the mean of their squares.
        beta2: f32,
        /// Added to the root.
        epsilon: f32,
        /// Decoupled decay, times the rate.
        weight_decay: f32,
    },
    /// Adafactor (Shazeer and Stern, 2018) without momentum, as PyTorch's: of a matrix only the means of its rows and
    /// columns are remembered, and steps are relative to the size of the parameter.
    Adafactor {
        /// Exponent of the decay of the second moment.
        beta2_decay: f32,
        /// Least size of a parameter.
        epsilon: f32,
        /// Largest root mean square of an update.
        threshold: f32,
        /// Decoupled decay, times the rate.
        weight_decay: f32,
    },
}

impl Optimizer {
    /// AdamW with PyTorch's defaults.
    pub const ADAMW: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    /// SGD with a momentum of 0.9.
    pub const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    /// Adafactor with PyTorch's defaults.
    pub const ADAFACTOR: Optimizer =
        Optimizer::Adafactor { beta2_decay: -0.8, epsilon: 1e-3, threshold: 1.0, weight_decay: 0.0 };

    /// What it remembers of a parameter of that shape: names and shapes.
    pub fn states(&self, shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Optimizer::Sgd { .. } => vec![("momentum", shape.to_vec())],
            Optimizer::AdamW { .. } => vec![("mean", shape.to_vec()), ("square", shape.to_vec())],
            Optimizer::Adafactor { .. } => match shape {
                [lead @ .., rows, columns] => {
                    vec![("rows", [lead, &[*rows]].concat()), ("columns", [lead, &[*columns]].concat())]
                }
                _ => vec![("square", shape.to_vec())],
            },
        }
    }

    /// The operator, and the attributes for a parameter that decays or does not.
    pub(super) fn operator(&self, decays: bool) -> (&'static OpDef, Attrs) {
        let decay = |d: f32| Attr::Float(if decays { d } else { 0.0 });
        match *self {
            Optimizer::Sgd { momentum, nesterov, weight_decay } => {
                let attrs = [
                    ("momentum", Attr::Float(momentum)),
                    ("nesterov", Attr::Int(i64::from(nesterov))),
                    ("decay", decay(weight_decay)),
                ];
                (&SGD, Attrs::of(attrs))
            }
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                let attrs = [
                    ("beta1", Attr::Float(beta1)),
                    ("beta2", Attr::Float(beta2)),
                    ("epsilon", Attr::Float(epsilon)),
                    ("decay", decay(weight_decay)),
                ];
                (&ADAMW, Attrs::of(attrs))
            }
            Optimizer::Adafactor { beta2_decay, epsilon, threshold, weight_decay } => {
                let attrs = [
                    ("beta2_decay", Attr::Float(beta2_decay)),
                    ("epsilon", Attr::Float(epsilon)),
                    ("threshold", Attr::Float(threshold)),
                    ("decay", decay(weight_decay)),
                ];
                (&ADAFACTOR, Attrs::of(attrs))
            }
        }
    }
}

/// How the learning rate goes over the steps: a factor of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// 1.
    Constant,
    /// Up from 0 over `warmup` steps, then down to 0 at step `total` in a straight line.
    Linear {
        /// Steps of the rise.
        warmup: u64,
        /// All steps.
        total: u64,
    },
    /// Up from 0 over `warmup` steps, then down to 0 at step `total` along half a cosine.
    Cosine {
        /// Steps of the rise.
        warmup: u64,
        /// All steps.
        total: u64,
    },
}

impl Schedule {
    /// The factor of step `t`, counted from 0.
    pub fn factor(&self, t: u64) -> f64 {
        let (warmup, total) = match *self {
            Schedule::Constant => return 1.0,
            Schedule::Linear { warmup, total } | Schedule::Cosine { warmup, total } => (warmup, total),
        };
        if t < warmup {
            return (t + 1) as f64 / warmup as f64;
        }
        let rest = total.saturating_sub(warmup).max(1);
        let done = ((t - warmup) as f64 / rest as f64).min(1.0);
        match self {
            Schedule::Cosine { .. } => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            _ => 1.0 - done,
        }
    }
}

// All update operators: parameter, gradient, `[rate, step]` (step counted from 1), optionally a factor of the gradient,
// and the states from input 4 on; results are the parameter and the states, in this order, in their places.
const STATE: usize = 4;

fn updated(inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let own = |f: &Fact| Fact::new(f.dtype, f.shape.clone());
    let mut out = vec![own(need(inputs, 0, "parameter")?)];
    for i in STATE..inputs.len() {
        out.push(own(need(inputs, i, "state")?));
    }
    Ok(Some(out))
}

/// What a reference works with: the parameter, the scaled gradient, rate and step, and the states.
struct Given {
    w: Vec<f64>,
    g: Vec<f64>,
    rate: f64,
    step: f64,
    states: Vec<Vec<f64>>,
}

impl Given {
    fn new(inputs: &[Option<&Tensor>]) -> Result<Given, OpError> {
        let (w, g, now) = (need(inputs, 0, "parameter")?, need(inputs, 1, "gradient")?, need(inputs, 2, "now")?);
        let now = now.data().to_f64();
        let scale = optional(inputs, 3).map_or(Some(1.0), |t| t.data().to_f64().first().copied());
        let (&[rate, step], Some(scale)) = (&now[..], scale) else {
            return Err(OpError::shape("now", "[rate, step]", now.len()));
        };
        if g.shape() != w.shape() {
            return Err(OpError::shape("gradient", w.shape(), g.shape()));
        }
        let states = (STATE..inputs.len()).map(|i| Ok(need(inputs, i, "state")?.data().to_f64()));
        let states = states.collect::<Result<Vec<_>, OpError>>()?;
        let g = g.data().to_f64().iter().map(|v| v * scale).collect();
        Ok(Given { w: w.data().to_f64(), g, rate, step, states })
    }

    fn results(self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
        let w = need(inputs, 0, "parameter")?;
        let mut out = vec![Tensor::from_f64(w.dtype(), w.shape(), &self.w)?];
        for (i, v) in self.states.iter().enumerate() {
            let t = need(inputs, STATE + i, "state")?;
            out.push(Tensor::from_f64(t.dtype(), t.shape(), v)?);
        }
        Ok(out)
    }
}

fn float(attrs: &Attrs, name: &str) -> Result<f64, OpError> {
    Ok(f64::from(attrs.float(name, 0.0)?))
}

static SGD: OpDef = OpDef::new(
    "SgdStep",
    "a step of SGD with momentum",
    |_, inputs| updated(inputs),
    |attrs, inputs| {
        let mut s = Given::new(inputs)?;
        let (momentum, decay) = (float(attrs, "momentum")?, float(attrs, "decay")?);
        let nesterov = attrs.flag("nesterov", false)?;
        let d = s.states.first_mut().ok_or(OpError::MissingInput { index: STATE, name: "momentum" })?;
        for (i, w) in s.w.iter_mut().enumerate() {
            let g = s.g[i] + decay * *w;
            d[i] = momentum * d[i] + g;
            *w -= s.rate * if nesterov { g + momentum * d[i] } else { d[i] };
        }
        s.results(inputs)
    },
)
.domain(HONE)
.kernel(|l| {
    update(l, 1, |attrs| {
        let (momentum, decay) = (attrs.float("momentum", 0.0)?, attrs.float("decay", 0.0)?);
        let nesterov = attrs.flag("nesterov", false)?;
        Ok(Rule::Sgd(optimize::Sgd { rate: 0.0, momentum, nesterov, decay, scale: 1.0 }))
    })
})
.gpu(|l| {
    let (momentum, decay) = (l.attrs.float("momentum", 0.0)?, l.attrs.float("decay", 0.0)?);
    let nesterov = l.attrs.flag("nesterov", false)?;
    recorded(l, 1, update::Update::Sgd { momentum, nesterov, decay, clipped: l.has(3) })
});

static ADAMW: OpDef = OpDef::new(
    "AdamWStep",
    "a step of AdamW",
    |_, inputs| updated(inputs),
    |attrs, inputs| {
        let mut s = Given::new(inputs)?;
        let (beta1, beta2) = (float(attrs, "beta1")?, float(attrs, "beta2")?);
        let (epsilon, decay) = (float(attrs, "epsilon")?, float(attrs, "decay")?);
        let [m, v] = &mut s.states[..] else { return Err(OpError::MissingInput { index: STATE, name: "moments" }) };
        let (bias1, bias2) = (1.0 - beta1.powf(s.step), 1.0 - beta2.powf(s.step));
        for (i, w) in s.w.iter_mut().enumerate() {
            m[i] = beta1 * m[i] + (1.0 - beta1) * s.g[i];
            v[i] = beta2 * v[i] + (1.0 - beta2) * s.g[i] * s.g[i];
            *w -= s.rate * decay * *w;
            *w -= s.rate * (m[i] / bias1) / ((v[i] / bias2).sqrt() + epsilon);
        }
        s.results(inputs)
    },
)
.domain(HONE)
.kernel(|l| {
    update(l, 2, |attrs| {
        let of = |name: &str| attrs.float(name, 0.0);
        let (beta1, beta2, epsilon, decay) = (of("beta1")?, of("beta2")?, of("epsilon")?, of("decay")?);
        let step = optimize::AdamW { rate: 0.0, beta1, beta2, epsilon, decay, bias1: 1.0, bias2: 1.0, scale: 1.0 };
        Ok(Rule::AdamW(step))
    })
})
.gpu(|l| {
    let of = |name: &str| l.attrs.float(name, 0.0);
    let (beta1, beta2, epsilon, decay) = (of("beta1")?, of("beta2")?, of("epsilon")?, of("decay")?);
    recorded(l, 2, update::Update::AdamW { beta1, beta2, epsilon, decay, clipped: l.has(3) })
});

static ADAFACTOR: OpDef = OpDef::new(
    "AdafactorStep",
    "a step of Adafactor",
    |_, inputs| updated(inputs),
    |attrs, inputs| {
        let mut s = Given::new(inputs)?;
        let shape = need(inputs, 0, "parameter")?.shape();
        let (decay, epsilon) = (float(attrs, "decay")?, float(attrs, "epsilon")?);
        let least = f64::from(f32::EPSILON);
        let fresh = s.step.powf(float(attrs, "beta2_decay")?);
        let n = s.w.len().max(1) as f64;
        let rms = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        let size = rms(&s.w).max(epsilon) * s.rate.min(1.0 / s.step.sqrt());
        s.w.iter_mut().for_each(|w| *w *= 1.0 - s.rate * decay);
        let mut direction = vec![0.0; s.w.len()];
        match (&mut s.states[..], shape) {
            ([rows, columns], &[.., r, c]) => {
                for (block, g) in s.g.chunks_exact((r * c).max(1)).enumerate() {
                    let (rows, columns) = (&mut rows[block * r..][..r], &mut columns[block * c..][..c]);
                    for i in 0..r {
                        let mean = (0..c).map(|j| g[i * c + j].powi(2)).sum::<f64>() / c as f64;
                        rows[i] += fresh * (mean - rows[i]);
                    }
                    for j in 0..c {
                        let mean = (0..r).map(|i| g[i * c + j].powi(2)).sum::<f64>() / r as f64;
                        columns[j] += fresh * (mean - columns[j]);
                    }
                    let level = (rows.iter().sum::<f64>() / r as f64).max(least);
                    for i in 0..r {
                        for j in 0..c {
                            let var = (rows[i] * columns[j] / level).max(least * least);
                            direction[block * r * c + i * c + j] = g[i * c + j] / var.sqrt();
                        }
                    }
                }
            }
            ([square], _) => {
                for (i, g) in s.g.iter().enumerate() {
                    square[i] += fresh * (g * g - square[i]);
                    direction[i] = g / square[i].max(least * least).sqrt();
                }
            }
            _ => return Err(OpError::MissingInput { index: STATE, name: "moments" }),
        }
        let over = (rms(&direction) / float(attrs, "threshold")?).max(1.0);
        s.w.iter_mut().zip(&direction).for_each(|(w, d)| *w -= size / over * d);
        s.results(inputs)
    },
)
.domain(HONE)
.kernel(|l| {
    let matrix = match *l.shape(0)? {
        [.., r, c] => Some([r, c]),
        _ => None,
    };
    let rule = |attrs: &Attrs| {
        let of = |name: &str| attrs.float(name, 0.0);
        let (beta2_decay, epsilon, threshold, decay) =
            (of("beta2_decay")?, of("epsilon")?, of("threshold")?, of("decay")?);
        let (rate, step, scale) = (0.0, 1.0, 1.0);
        let step = optimize::Adafactor { rate, step, beta2_decay, epsilon, threshold, decay, scale };
        Ok(Rule::Adafactor { step, matrix })
    };
    let scratch = matrix.map_or(0, |[_, c]| optimize::adafactor_scratch(c));
    Ok(update(l, if matrix.is_some() { 2 } else { 1 }, rule)?.map(|l| l.with_scratch(scratch)))
});

#[derive(Clone, Copy)]
enum Rule {
    Sgd(optimize::Sgd),
    AdamW(optimize::AdamW),
    /// And rows and columns of the parameter's matrices, if it has two axes or more.
    Adafactor {
        step: optimize::Adafactor,
        matrix: Option<[usize; 2]>,
    },
}

fn update(
    l: &Lowering<'_>,
    states: usize,
    rule: impl Fn(&Attrs) -> Result<Rule, OpError>,
) -> Result<Option<Lowered>, OpError> {
    let all = (0..l.inputs()).all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    if !all || l.inputs() != STATE + states || (0..=states).any(|i| !l.wants(i)) {
        return Ok(None);
    }
    let clipped = l.has(3);
    let reads = if clipped { vec![1, 2, 3] } else { vec![1, 2] };
    Ok(Some(Lowered::new(Update { rule: rule(l.attrs)?, clipped }, reads).in_place()))
}

fn recorded(l: &Lowering<'_>, states: usize, step: update::Update) -> Result<Option<Recorded>, OpError> {
    let all = (0..l.inputs()).all(|i| !l.has(i) || l.dtype(i) == Some(DType::F32));
    if !all || l.inputs() != STATE + states || (0..=states).any(|i| !l.wants(i)) {
        return Ok(None);
    }
    let mut at = vec![At::In(1), At::In(2)];
    at.extend(l.has(3).then_some(At::In(3)));
    at.push(At::Update(0, 0));
    at.extend((0..states).map(|i| At::Update(STATE + i, 1 + i)));
    Ok(Recorded::one(step.call(elements(l.shape(0)?)?), at))
}

struct Update {
    rule: Rule,
    clipped: bool,
}

impl Kernel for Update {
    fn name(&self) -> &'static str {
        match self.rule {
            Rule::Sgd(_) => "sgd-step",
            Rule::AdamW(_) => "adamw-step",
            Rule::Adafactor { .. } => "adafactor-step",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (g, now) = (reads.f32(0), reads.f32(1));
        let (rate, step) = (now[0], now[1]);
        let scale = if self.clipped { reads.f32(2)[0] } else { 1.0 };
        match self.rule {
            Rule::Sgd(rule) => {
                let [w, d] = writes.apart_f32::<2>();
                optimize::sgd(optimize::Sgd { rate, scale, ..rule }, g, w, d);
            }
            Rule::AdamW(rule) => {
                let [w, m, v] = writes.apart_f32::<3>();
                let bias = |beta: f32| (1.0 - f64::from(beta).powf(f64::from(step))) as f32;
                let (bias1, bias2) = (bias(rule.beta1), bias(rule.beta2));
                optimize::adamw(optimize::AdamW { rate, scale, bias1, bias2, ..rule }, g, w, m, v);
            }
            Rule::Adafactor { step: rule, matrix: Some(matrix) } => {
                let [w, rows, columns] = writes.apart_f32::<3>();
                let rule = optimize::Adafactor { rate, step, scale, ..rule };
                optimize::adafactor(rule, g, w, optimize::Moment::Factored { rows, columns, matrix }, scratch);
            }
            Rule::Adafactor { step: rule, matrix: None } => {
                let [w, square] = writes.apart_f32::<2>();
                let rule = optimize::Adafactor { rate, step, scale, ..rule };
                optimize::adafactor(rule, g, w, optimize::Moment::Whole(square), scratch);
            }
        }
    }
}

/// `acc + g`, in the place of `acc`.
pub(super) static ACCUMULATE: OpDef = OpDef::new(
    "Accumulate",
    "a gradient added to those before",
    |_, inputs| {
        let acc = need(inputs, 0, "acc")?;
        Ok(Some(vec![Fact::new(acc.dtype, acc.shape.clone())]))
    },
    |_, inputs| {
        let (acc, g) = (need(inputs, 0, "acc")?, need(inputs, 1, "gradient")?);
        let sum: Vec<f64> = acc.data().to_f64().iter().zip(g.data().to_f64()).map(|(a, g)| a + g).collect();
        Ok(vec![Tensor::from_f64(acc.dtype(), acc.shape(), &sum)?])
    },
)
.domain(HONE)
.kernel(|l| {
    let f32 = l.dtype(0) == Some(DType::F32) && l.dtype(1) == Some(DType::F32);
    Ok(f32.then(|| Lowered::new(Accumulate, vec![1]).in_place()))
})
.gpu(|l| {
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) {
        return Ok(None);
    }
    let call = update::Update::Accumulate.call(elements(l.shape(0)?)?);
    Ok(Recorded::one(call, vec![At::In(1), At::Update(0, 0)]))
});

struct Accumulate;

impl Kernel for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        hone_kernels::elementwise::fold(reads.f32(0), writes.f32(0), |a: f32, g: f32| a + g);
    }
}

/// Zeros in the place of `acc`.
pub(super) static CLEAR: OpDef = OpDef::new(
    "Clear",
    "zeros",
    |_, inputs| {
        let acc = need(inputs, 0, "acc")?;
        Ok(Some(vec![Fact::new(acc.dtype, acc.shape.clone())]))
    },
    |_, inputs| {
        let acc = need(inputs, 0, "acc")?;
        Ok(vec![Tensor::zeros(acc.dtype(), acc.shape())?])
    },
)
.domain(HONE)
.kernel(|l| Ok(l.dtype(0).map(|_| Lowered::new(Clear, Vec::new()).in_place())))
.gpu(|l| {
    let words = l.dtype(0).filter(|t| t.size_bytes() == 4).map_or(Ok(0), |_| elements(l.shape(0)?))?;
    let call = (words > 0).then(|| update::Update::Clear.call(words)).flatten();
    Ok(Recorded::one(call, vec![At::Update(0, 0)]))
});

struct Clear;

impl Kernel for Clear {
    fn name(&self) -> &'static str {
        "clear"
    }

    fn run(&self, io: &mut Io<'_>) {
        io.split().1.bytes(0).fill(0);
    }
}
