//! Along one axis: reductions, softmax, normalisation.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Needs, Trial, bytes_of, filled, floats, plane};

/// What is computed along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The sum, times `factor`.
    Sum,
    /// The largest; what is no number wins.
    Max,
    /// The smallest; what is no number wins.
    Min,
    /// The product.
    Prod,
    /// The sum of absolute values.
    L1,
    /// The root of the sum of squares.
    L2,
    /// The sum of squares.
    SumSquare,
    /// The logarithm of the sum.
    LogSum,
    /// The logarithm of the sum of exponentials.
    LogSumExp,
    /// `e^(x - max) / Σ`.
    Softmax,
    /// The same, and zeros where every element is -∞.
    SoftmaxOrNothing,
    /// Its logarithm.
    LogSoftmax,
    /// `(x - mean) / √(var + epsilon) · scale + bias`, the bias if there is one.
    Norm {
        /// The mean is taken off; otherwise the mean square takes the place of the variance.
        centred: bool,
        /// There is a bias.
        bias: bool,
    },
}

/// A call of [`Rows`].
#[derive(Clone, Copy, Debug)]
pub struct Along {
    /// What.
    pub rows: Rows,
    /// Elements before the axis.
    pub outer: usize,
    /// Elements of the axis.
    pub length: usize,
    /// Elements after it; of a normalisation 1.
    pub inner: usize,
    /// Elements after which scale and bias of a normalisation repeat.
    pub scales: usize,
    /// Of a normalisation.
    pub epsilon: f32,
    /// Of a sum.
    pub factor: f32,
}

impl Along {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        word(self.outer.checked_mul(self.length)?.checked_mul(self.inner)?)?;
        let rows = self.outer * self.inner;
        let together = self.inner == 1;
        if matches!(self.rows, Rows::Norm { .. }) && !together || self.length == 0 {
            return None;
        }
        let params = vec![
            word(rows)?,
            word(self.length)?,
            word(self.inner)?,
            word(self.scales.max(1))?,
            self.epsilon.to_bits(),
            self.factor.to_bits(),
        ];
        if !together {
            return kernel(self.rows, Lanes::Alone).line(params, rows);
        }
        let call = |lanes| Some(kernel(self.rows, lanes).call(params.clone(), plane(rows)?));
        SUBGROUPS.into_iter().try_fold(call(Lanes::Together)??, |of, size| Some(of.or(call(Lanes::Subgroups(size))?)))
    }
}

/// Who takes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lanes {
    /// A thread.
    Alone,
    /// 64 threads.
    Together,
    /// 64 threads in subgroups of so many.
    Subgroups(usize),
}

/// Sizes of subgroups that there are.
pub(crate) const SUBGROUPS: [usize; 4] = [8, 16, 32, 64];

fn kernel(rows: Rows, lanes: Lanes) -> Arc<Kernel> {
    let what = match rows {
        Rows::Sum => "sum",
        Rows::Max => "max",
        Rows::Min => "min",
        Rows::Prod => "prod",
        Rows::L1 => "l1",
        Rows::L2 => "l2",
        Rows::SumSquare => "sum-square",
        Rows::LogSum => "log-sum",
        Rows::LogSumExp => "log-sum-exp",
        Rows::Softmax => "softmax",
        Rows::SoftmaxOrNothing => "softmax-or-nothing",
        Rows::LogSoftmax => "log-softmax",
        Rows::Norm { centred: true, bias: false } => "layer-norm",
        Rows::Norm { centred: true, bias: true } => "layer-norm-bias",
        Rows::Norm { centred: false, bias: false } => "rms-norm",
        Rows::Norm { centred: false, bias: true } => "rms-norm-bias",
    };
    let end = match lanes {
        Lanes::Alone => "-columns".into(),
        Lanes::Together => String::new(),
        Lanes::Subgroups(size) => format!("-by{size}"),
    };
    let name = format!("rows-{what}{end}");
    let extra: &[&str] = match rows {
        Rows::Norm { bias: true, .. } => &["S", "B", "Y"],
        Rows::Norm { .. } => &["S", "Y"],
        _ => &["Y"],
    };
    let bindings = floats(2, extra);
    let group = "A group of 64 threads takes a row; inner is 1.";
    let (how, reduce, needs) = match lanes {
        Lanes::Alone => ("A thread takes a row.", String::new(), Needs::Nothing),
        Lanes::Together => (group, together(None, &Reduction::ALL), Needs::Nothing),
        Lanes::Subgroups(size) => (group, together(Some(size), &Reduction::ALL), Needs::Subgroups(size)),
    };
    let source = filled(
        include_str!("rows.wgsl"),
        &[
            ("WHAT", &format!("Along one axis: {what}.")),
            ("HOW", how),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &bindings),
            ("REDUCE", &reduce),
            ("MAIN", &main(rows, lanes != Lanes::Alone)),
        ],
    );
    Kernel::asking(needs, false, name, source, [extra.len(), 1], move || trials(rows, lanes))
}

/// How values of 64 threads become one.
#[derive(Clone, Copy)]
pub(crate) enum Reduction {
    Sum,
    Product,
    Largest,
}

impl Reduction {
    const ALL: [Reduction; 3] = [Reduction::Sum, Reduction::Product, Reduction::Largest];

    /// The function, and what it makes of two.
    fn text(self) -> (&'static str, fn(&str, &str) -> String) {
        match self {
            Reduction::Sum => ("all_sum", |a, b| format!("{a} + {b}")),
            Reduction::Product => ("all_product", |a, b| format!("{a} * {b}")),
            Reduction::Largest => ("all_max", |a, b| format!("larger({a}, {b})")),
        }
    }
}

/// Functions by which values of 64 threads become one, the same for all: always by the same tree, so that those with subgroups of so
/// many threads, which need not wait for one another so often, come to the same bits.
pub(crate) fn together(subgroup: Option<usize>, all: &[Reduction]) -> String {
    let mut out = String::from("\nvar<workgroup> part: array<f32, 64>;\n");
    out += if subgroup.is_some() { "var<workgroup> last: f32;\n" } else { "" };
    for reduction in all {
        let (name, of) = reduction.text();
        out += &format!("\nfn {name}(lane: u32, v: f32) -> f32 {{\n    part[lane] = v;\n    workgroupBarrier();\n");
        let pair = of("part[lane]", "part[lane + half]");
        let least = subgroup.unwrap_or(1);
        out += &format!(
            "    for (var half = 32u; half >= {least}u; half >>= 1u) {{
        if lane < half {{
            part[lane] = {pair};
        }}
        workgroupBarrier();
    }}\n"
        );
        match subgroup {
            None => out += "    let out = part[0];\n    workgroupBarrier();\n    return out;\n}\n",
            Some(size) => {
                out += "    var s = part[lane];\n";
                let halves = std::iter::successors(Some(size / 2), |half| Some(half / 2)).take_while(|half| *half > 0);
                for half in halves.map(|half| half.min(32)) {
                    out += &format!("    s = {};\n", of("s", &format!("subgroupShuffleDown(s, {half}u)")));
                }
                out += "    if lane == 0u {\n        last = s;\n    }\n    workgroupBarrier();\n    return last;\n}\n";
            }
        }
    }
    out
}

const LARGER: &str = "
fn larger(a: f32, b: f32) -> f32 {
    return select(b, a, a > b || not_a_number(a));
}
";

fn main(rows: Rows, together: bool) -> String {
    let (head, step, at) = if together {
        (
            "@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * grid.x + group.x;
    if row >= P.rows {
        return;
    }
    let first = row * P.length;
    let begin = lane;\n",
            "64u",
            "first + k",
        )
    } else {
        (
            "@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * grid.x + group.x) * 64u + lane;
    if row >= P.rows {
        return;
    }
    let first = row / P.inner * P.length * P.inner + row % P.inner;
    let begin = 0u;\n",
            "1u",
            "first + k * P.inner",
        )
    };
    let each = |body: &str| {
        let body = body.replace("AT", at);
        format!("    for (var k = begin; k < P.length; k += {step}) {{\n        {body}\n    }}\n")
    };
    let all = |kind: &str, v: &str| if together { format!("all_{kind}(lane, {v})") } else { v.to_string() };
    let store = |v: &str| {
        if together {
            format!("    if lane == 0u {{\n        Y[row] = {v};\n    }}\n")
        } else {
            format!("    Y[row] = {v};\n")
        }
    };
    let simple = |start: &str, body: &str, kind: &str, last: &str| {
        let sum = all(kind, "v");
        format!("    var v = {start};\n{}    let r = {sum};\n{}", each(body), store(last))
    };
    let body = match rows {
        Rows::Sum => simple("0.0", "v += X[AT];", "sum", "r * P.factor"),
        Rows::L1 => simple("0.0", "v += abs(X[AT]);", "sum", "r"),
        Rows::L2 => simple("0.0", "v += X[AT] * X[AT];", "sum", "sqrt(r)"),
        Rows::SumSquare => simple("0.0", "v += X[AT] * X[AT];", "sum", "r"),
        Rows::LogSum => simple("0.0", "v += X[AT];", "sum", "log_of(r)"),
        Rows::Prod => simple("1.0", "v *= X[AT];", "product", "r"),
        Rows::Max => simple("X[first]", "v = larger(v, X[AT]);", "max", "r"),
        Rows::Min => simple("-X[first]", "v = larger(v, -X[AT]);", "max", "-r"),
        Rows::LogSumExp => {
            let mut out = String::from("    var top = X[first];\n");
            out += &each("top = max(top, X[AT]);");
            // Nothing is taken off an infinite maximum: ∞ - ∞ is no number.
            out += &format!("    let greatest = {};\n", all("max", "top"));
            out += "    let most = select(greatest, 0.0, abs(greatest) > 3.4028235e38);\n    var v = 0.0;\n";
            out += &each("v += exp(X[AT] - most);");
            out += &format!("    let sum = {};\n{}", all("sum", "v"), store("log_of(sum) + most"));
            out
        }
        Rows::Softmax | Rows::SoftmaxOrNothing | Rows::LogSoftmax => {
            let mut out = String::from("    var top = X[first];\n");
            out += &each("top = max(top, X[AT]);");
            out += &format!("    let most = {};\n    var v = 0.0;\n", all("max", "top"));
            if rows == Rows::SoftmaxOrNothing {
                out += "    if most < -3.4028235e38 {\n    ";
                out += &each("Y[AT] = 0.0;");
                out += "        return;\n    }\n";
            }
            out += &each("v += exp(X[AT] - most);");
            out += &format!("    let sum = {};\n", all("sum", "v"));
            out += &if rows != Rows::LogSoftmax {
                format!("    let share = 1.0 / sum;\n{}", each("Y[AT] = exp(X[AT] - most) * share;"))
            } else {
                format!("    let log_sum = log(sum);\n{}", each("Y[AT] = X[AT] - most - log_sum;"))
            };
            out
        }
        Rows::Norm { centred, bias } => {
            let mut out = String::from("    var v = 0.0;\n");
            if centred {
                out += &each("v += X[AT];");
                out += &format!("    let mean = {} / f32(P.length);\n    v = 0.0;\n", all("sum", "v"));
                out += &each("let d = X[AT] - mean; v += d * d;");
            } else {
                out += "    let mean = 0.0;\n";
                out += &each("v += X[AT] * X[AT];");
            }
            out += &format!("    let inverse = 1.0 / sqrt({} / f32(P.length) + P.epsilon);\n", all("sum", "v"));
            let bias = if bias { " + B[s]" } else { "" };
            out += &each(&format!("let s = (AT) % P.scales; Y[AT] = (X[AT] - mean) * inverse * S[s]{bias};"));
            out
        }
    };
    format!("{LARGER}\n{head}{body}}}\n")
}

fn trials(rows: Rows, lanes: Lanes) -> Vec<Trial> {
    let mut out = Vec::new();
    for (outer, length, inner) in [(1, 1, 1), (3, 5, 1), (2, 130, 1), (2, 6, 5), (1, 9, 70)] {
        if (lanes == Lanes::Alone) != (inner > 1) {
            continue;
        }
        let mut along = Along { rows, outer, length, inner, scales: length, epsilon: 1e-5, factor: 0.25 };
        if let Rows::Norm { .. } = rows {
            along.scales = if outer == 3 { 1 } else { length };
        }
        out.extend(trial(&along, lanes));
    }
    out
}

fn trial(along: &Along, lanes: Lanes) -> Option<Trial> {
    let Along { rows, outer, length, inner, .. } = *along;
    let mut call = along.call()?;
    call.kernel = kernel(rows, lanes);
    let mut draws = Draws::new((outer * length) as u64);
    let x: Vec<f32> = draws.floats(outer * length * inner);
    // A logarithm needs a sum above 0; a product of many needs factors near 1.
    let x: Vec<f32> = match rows {
        Rows::LogSum => x.iter().map(|v| v.abs() + 0.1).collect(),
        Rows::Prod => x.iter().map(|v| 1.0 + 0.05 * v).collect(),
        // The first row is hidden whole.
        Rows::SoftmaxOrNothing => {
            let hidden = |i: usize| i < length * inner && i.is_multiple_of(inner);
            x.iter().enumerate().map(|(i, v)| if hidden(i) { f32::NEG_INFINITY } else { *v }).collect()
        }
        _ => x,
    };
    let (s, b) = (draws.floats(along.scales), draws.floats(along.scales));
    let mut operands = vec![bytes_of(&x)];
    if let Rows::Norm { bias, .. } = rows {
        operands.push(bytes_of(&s));
        if bias {
            operands.push(bytes_of(&b));
        }
    }
    let whole = matches!(rows, Rows::Softmax | Rows::SoftmaxOrNothing | Rows::LogSoftmax | Rows::Norm { .. });
    let mut y = vec![0.0; if whole { x.len() } else { outer * inner }];
    for row in 0..outer * inner {
        let at = |k: usize| (row / inner * length + k) * inner + row % inner;
        let v: Vec<f64> = (0..length).map(|k| f64::from(x[at(k)])).collect();
        let most = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = v.iter().sum();
        let squares: f64 = v.iter().map(|v| v * v).sum();
        let exps: f64 = v.iter().map(|v| (v - most).exp()).sum();
        let one = match rows {
            Rows::Sum => sum * f64::from(along.factor),
            Rows::Max => most,
            Rows::Min => v.iter().copied().fold(f64::INFINITY, f64::min),
            Rows::Prod => v.iter().product(),
            Rows::L1 => v.iter().map(|v| v.abs()).sum(),
            Rows::L2 => squares.sqrt(),
            Rows::SumSquare => squares,
            Rows::LogSum => sum.ln(),
            Rows::LogSumExp => most + exps.ln(),
            _ => 0.0,
        };
        if !whole {
            y[row] = one as f32;
            continue;
        }
        let n = length as f64;
        for k in 0..length {
            y[at(k)] = match rows {
                Rows::SoftmaxOrNothing if most == f64::NEG_INFINITY => 0.0,
                Rows::Softmax | Rows::SoftmaxOrNothing => ((v[k] - most).exp() / exps) as f32,
                Rows::LogSoftmax => (v[k] - most - exps.ln()) as f32,
                Rows::Norm { centred, bias } => {
                    let mean = if centred { sum / n } else { 0.0 };
                    let var = v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                    let i = at(k) % along.scales;
                    let z = (v[k] - mean) / (var + f64::from(along.epsilon)).sqrt() * f64::from(s[i]);
                    (z + if bias { f64::from(b[i]) } else { 0.0 }) as f32
                }
                _ => 0.0,
            };
        }
    }
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y)], allowed: Allowed::Floats(2e-5) })
}
