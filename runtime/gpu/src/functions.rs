//! Functions of elements: the text, and the formula it is tried against.
//!
//! In a text `a`, `b`, `c` and `d` are the operands and `P.c0` … `P.c3` constants of the call; helpers are in `common.wgsl`.
//! Formulas are in `f64`; booleans are 0 and 1.

use hone_kernels::epilogue::Activation;

/// One function.
#[derive(Debug)]
pub struct Function {
    /// Its name; ONNX spelling where there is one.
    pub name: &'static str,
    /// How many operands it has.
    pub operands: usize,
    /// The expression.
    pub text: &'static str,
    /// The formula, of operands and constants.
    pub formula: fn(&[f64], &[f64]) -> f64,
    /// It gives a boolean; the text is one of WGSL's then.
    pub decides: bool,
    /// Only numbers above 0 are in trials.
    pub positive: bool,
}

const fn row(name: &'static str, operands: usize, text: &'static str, formula: fn(&[f64], &[f64]) -> f64) -> Function {
    Function { name, operands, text, formula, decides: false, positive: false }
}

const fn test(name: &'static str, operands: usize, text: &'static str, formula: fn(&[f64], &[f64]) -> f64) -> Function {
    Function { decides: true, ..row(name, operands, text, formula) }
}

const fn above(
    name: &'static str,
    operands: usize,
    text: &'static str,
    formula: fn(&[f64], &[f64]) -> f64,
) -> Function {
    Function { positive: true, ..row(name, operands, text, formula) }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Error function by its series of positive terms (DLMF 7.6.2).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

fn flag(b: bool) -> f64 {
    f64::from(u8::from(b))
}

/// Functions of floats.
pub static FUNCTIONS: &[Function] = &[
    row("Identity", 1, "a", |x, _| x[0]),
    row("Relu", 1, "relu(a)", |x, _| x[0].max(0.0)),
    row("Clip", 1, "clip(a, P.c0, P.c1)", |x, c| x[0].max(c[0]).min(c[1])),
    row("LeakyRelu", 1, "select(a, P.c0 * a, a < 0.0)", |x, c| if x[0] < 0.0 { c[0] * x[0] } else { x[0] }),
    row("Sigmoid", 1, "sigmoid(a)", |x, _| sigmoid(x[0])),
    row("Silu", 1, "a * sigmoid(a)", |x, _| x[0] * sigmoid(x[0])),
    row("Swish", 1, "a * sigmoid(P.c0 * a)", |x, c| x[0] * sigmoid(c[0] * x[0])),
    row("Tanh", 1, "tanh_of(a)", |x, _| x[0].tanh()),
    row("HardSigmoid", 1, "clip(P.c0 * a + P.c1, 0.0, 1.0)", |x, c| (c[0] * x[0] + c[1]).clamp(0.0, 1.0)),
    row("HardSwish", 1, "a * clip(a * 0.16666667 + 0.5, 0.0, 1.0)", |x, _| x[0] * (x[0] / 6.0 + 0.5).clamp(0.0, 1.0)),
    row("Gelu", 1, "gelu(a)", |x, _| 0.5 * x[0] * (1.0 + erf(x[0] * std::f64::consts::FRAC_1_SQRT_2))),
    row("GeluTanh", 1, "gelu_tanh(a)", |x, _| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x[0] + 0.044_715 * x[0].powi(3));
        0.5 * x[0] * (1.0 + u.tanh())
    }),
    row(
        "Elu",
        1,
        "select(a, P.c0 * expm1_of(a), a < 0.0)",
        |x, c| if x[0] < 0.0 { c[0] * x[0].exp_m1() } else { x[0] },
    ),
    row("Selu", 1, "P.c1 * select(a, P.c0 * expm1_of(a), a <= 0.0)", |x, c| {
        c[1] * if x[0] <= 0.0 { c[0] * x[0].exp_m1() } else { x[0] }
    }),
    row("Celu", 1, "select(a, P.c0 * expm1_of(a / P.c0), a < 0.0)", |x, c| {
        if x[0] < 0.0 { c[0] * (x[0] / c[0]).exp_m1() } else { x[0] }
    }),
    row("Mish", 1, "a * tanh_of(softplus(a))", |x, _| x[0] * softplus(x[0]).tanh()),
    row("Softplus", 1, "softplus(a)", |x, _| softplus(x[0])),
    row("Softsign", 1, "a / (1.0 + abs(a))", |x, _| x[0] / (1.0 + x[0].abs())),
    row("ThresholdedRelu", 1, "select(0.0, a, a > P.c0)", |x, c| if x[0] > c[0] { x[0] } else { 0.0 }),
    row("Affine", 1, "P.c0 * a + P.c1", |x, c| c[0] * x[0] + c[1]),
    row("ScaledTanh", 1, "P.c0 * tanh_of(P.c1 * a)", |x, c| c[0] * (c[1] * x[0]).tanh()),
    row("ParametricSoftplus", 1, "P.c0 * softplus(P.c1 * a)", |x, c| c[0] * softplus(c[1] * x[0])),
    row("Abs", 1, "abs(a)", |x, _| x[0].abs()),
    row("Neg", 1, "-a", |x, _| -x[0]),
    row("Sign", 1, "select(sign(a), a, not_a_number(a))", |x, _| if x[0] == 0.0 { 0.0 } else { x[0].signum() }),
    row("Ceil", 1, "ceil(a)", |x, _| x[0].ceil()),
    row("Floor", 1, "floor(a)", |x, _| x[0].floor()),
    row("Round", 1, "round(a)", |x, _| x[0].round_ties_even()),
    above("Reciprocal", 1, "1.0 / a", |x, _| 1.0 / x[0]),
    above("Sqrt", 1, "sqrt(a)", |x, _| x[0].sqrt()),
    // Unlike a root, the power of -∞ is ∞.
    above("PowHalf", 1, "select(sqrt(a), abs(a), a < -3.4028235e38)", |x, _| x[0].sqrt()),
    row("Exp", 1, "exp(a)", |x, _| x[0].exp()),
    above("Log", 1, "log_of(a)", |x, _| x[0].ln()),
    row("Erf", 1, "erf_of(a)", |x, _| erf(x[0])),
    row("Square", 1, "a * a", |x, _| x[0] * x[0]),
    row("Cube", 1, "a * a * a", |x, _| x[0].powi(3)),
    row("Add", 2, "a + b", |x, _| x[0] + x[1]),
    row("Sub", 2, "a - b", |x, _| x[0] - x[1]),
    row("Mul", 2, "a * b", |x, _| x[0] * x[1]),
    above("Div", 2, "a / b", |x, _| x[0] / x[1]),
    row(
        "Min",
        2,
        "select(b, a, a < b || not_a_number(a))",
        |x, _| if x[0] < x[1] || x[0].is_nan() { x[0] } else { x[1] },
    ),
    row(
        "Max",
        2,
        "select(b, a, a > b || not_a_number(a))",
        |x, _| if x[0] > x[1] || x[0].is_nan() { x[0] } else { x[1] },
    ),
    above("Pow", 2, "pow(a, b)", |x, _| x[0].powf(x[1])),
    row("PRelu", 2, "select(a, a * b, a < 0.0)", |x, _| if x[0] < 0.0 { x[0] * x[1] } else { x[0] }),
    row("BiasGelu", 2, "gelu(a + b)", |x, _| {
        let v = x[0] + x[1];
        0.5 * v * (1.0 + erf(v * std::f64::consts::FRAC_1_SQRT_2))
    }),
    row("FastGelu", 2, "gelu_tanh(a + b)", |x, _| {
        let v = x[0] + x[1];
        let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3));
        0.5 * v * (1.0 + u.tanh())
    }),
    // Gradients, of what comes back and the operand or the result: `dy · f'`.
    row("ReluVjp", 2, "select(0.0, a, b > 0.0)", |x, _| if x[1] > 0.0 { x[0] } else { 0.0 }),
    row("TanhVjp", 2, "a * (1.0 - b * b)", |x, _| x[0] * (1.0 - x[1] * x[1])),
    row("SigmoidVjp", 2, "a * b * (1.0 - b)", |x, _| x[0] * x[1] * (1.0 - x[1])),
    row("SoftplusVjp", 2, "a * sigmoid(b)", |x, _| x[0] * sigmoid(x[1])),
    row("ExpVjp", 2, "a * b", |x, _| x[0] * x[1]),
    above("LogVjp", 2, "a / b", |x, _| x[0] / x[1]),
    above("SqrtVjp", 2, "a * (0.5 / b)", |x, _| x[0] * 0.5 / x[1]),
    row("ReciprocalVjp", 2, "-a * b * b", |x, _| -x[0] * x[1] * x[1]),
    row("AbsVjp", 2, "a * sign(b)", |x, _| if x[1] == 0.0 { 0.0 } else { x[0] * x[1].signum() }),
    row("ErfVjp", 2, "a * 1.1283792 * exp(-b * b)", |x, _| {
        x[0] * std::f64::consts::FRAC_2_SQRT_PI * (-x[1] * x[1]).exp()
    }),
    row(
        "ClipVjp",
        2,
        "select(0.0, a, P.c0 < b && b < P.c1)",
        |x, c| if c[0] < x[1] && x[1] < c[1] { x[0] } else { 0.0 },
    ),
    row("LeakyReluVjp", 2, "select(a, P.c0 * a, b < 0.0)", |x, c| if x[1] < 0.0 { c[0] * x[0] } else { x[0] }),
    row("GeluVjp", 2, "a * gelu_slope(b)", |x, _| {
        let density = (-0.5 * x[1] * x[1]).exp() / (2.0 * std::f64::consts::PI).sqrt();
        x[0] * (0.5 * (1.0 + erf(x[1] * std::f64::consts::FRAC_1_SQRT_2)) + x[1] * density)
    }),
    row("GeluTanhVjp", 2, "a * gelu_tanh_slope(b)", |x, _| {
        let (v, root) = (x[1], (2.0 / std::f64::consts::PI).sqrt());
        let t = (root * (v + 0.044_715 * v.powi(3))).tanh();
        x[0] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044_715 * v * v))
    }),
    row("SoftmaxVjp", 3, "b * (a - c)", |x, _| x[1] * (x[0] - x[2])),
    row("LogSoftmaxVjp", 3, "a - exp(b) * c", |x, _| x[0] - x[1].exp() * x[2]),
    test("Equal", 2, "a == b", |x, _| flag(x[0] == x[1])),
    test("Greater", 2, "a > b", |x, _| flag(x[0] > x[1])),
    test("GreaterOrEqual", 2, "a >= b", |x, _| flag(x[0] >= x[1])),
    test("Less", 2, "a < b", |x, _| flag(x[0] < x[1])),
    test("LessOrEqual", 2, "a <= b", |x, _| flag(x[0] <= x[1])),
    test("IsNaN", 1, "not_a_number(a)", |x, _| flag(x[0].is_nan())),
    row("Where", 3, "select(c, b, a != 0)", |x, _| if x[0] != 0.0 { x[1] } else { x[2] }),
    row("AddUnless", 2, "select(a, a + P.c0, b == 0)", |x, c| if x[1] == 0.0 { x[0] + c[0] } else { x[0] }),
    test("Not", 1, "a == 0", |x, _| flag(x[0] == 0.0)),
    test("And", 2, "a != 0 && b != 0", |x, _| flag(x[0] != 0.0 && x[1] != 0.0)),
    test("Or", 2, "a != 0 || b != 0", |x, _| flag(x[0] != 0.0 || x[1] != 0.0)),
    test("Xor", 2, "(a != 0) != (b != 0)", |x, _| flag((x[0] != 0.0) != (x[1] != 0.0))),
    row("CastToFloat", 1, "f32(a)", |x, _| x[0]),
    test("CastToBool", 1, "a != 0", |x, _| flag(x[0] != 0.0)),
    // Of pairs of words.
    row("MaxInt", 2, "select(b, a, a.y > b.y || (a.y == b.y && bitcast<u32>(a.x) > bitcast<u32>(b.x)))", |x, _| {
        x[0].max(x[1])
    }),
    above("BatchScale", 2, "a / sqrt(b + P.c0)", |x, c| x[0] / (x[1] + c[0]).sqrt()),
    row("BatchShift", 4, "(a - b) * c + d", |x, _| (x[0] - x[1]) * x[2] + x[3]),
    row("AddInt", 2, "a + b", |x, _| x[0] + x[1]),
    row("Dequantize", 3, "f32(a - c) * b", |x, _| (x[0] - x[2]) * x[1]),
    row("DequantizeSigned", 2, "f32(a) * b", |x, _| x[0] * x[1]),
    row("Quantize", 3, "clamp(i32(round(clamp(quotient(a, b), -1e6, 1e6))) + c, 0, 255)", |x, _| {
        ((x[0] / x[1]).clamp(-1e6, 1e6).round_ties_even() + x[2]).clamp(0.0, 255.0)
    }),
    row("QuantizeSigned", 3, "clamp(i32(round(clamp(quotient(a, b), -1e6, 1e6))) + c, -128, 127)", |x, _| {
        ((x[0] / x[1]).clamp(-1e6, 1e6).round_ties_even() + x[2]).clamp(-128.0, 127.0)
    }),
];

/// The function of that name.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|f| f.name == name)
}

/// The function that an epilogue ends in, and its constants.
pub fn of_activation(a: Activation) -> (&'static Function, Vec<f32>) {
    let (name, constants) = match a {
        Activation::None => ("Identity", vec![]),
        Activation::Relu => ("Relu", vec![]),
        Activation::Clip(low, high) => ("Clip", vec![low, high]),
        Activation::LeakyRelu(alpha) => ("LeakyRelu", vec![alpha]),
        Activation::Sigmoid => ("Sigmoid", vec![]),
        Activation::Silu => ("Silu", vec![]),
        Activation::Tanh => ("Tanh", vec![]),
        Activation::HardSigmoid(alpha, beta) => ("HardSigmoid", vec![alpha, beta]),
        Activation::HardSwish => ("HardSwish", vec![]),
        Activation::Gelu => ("Gelu", vec![]),
        Activation::GeluTanh => ("GeluTanh", vec![]),
        Activation::Elu(alpha) => ("Elu", vec![alpha]),
        Activation::Mish => ("Mish", vec![]),
        Activation::Softplus => ("Softplus", vec![]),
    };
    (function(name).unwrap_or(&FUNCTIONS[0]), constants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_activation_has_a_function_that_is_its_formula() {
        let all = [
            Activation::None,
            Activation::Relu,
            Activation::Clip(-0.5, 0.75),
            Activation::LeakyRelu(0.1),
            Activation::Sigmoid,
            Activation::Silu,
            Activation::Tanh,
            Activation::HardSigmoid(0.2, 0.5),
            Activation::HardSwish,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Elu(0.5),
            Activation::Mish,
            Activation::Softplus,
        ];
        for a in all {
            let (f, constants) = of_activation(a);
            let constants: Vec<f64> = constants.iter().map(|c| f64::from(*c)).collect();
            for i in -40..=40 {
                let x = f64::from(i) / 8.0;
                let (want, got) = (a.reference(x), (f.formula)(&[x], &constants));
                assert!((want - got).abs() < 1e-12, "{a:?} of {x}: {want}, {got}");
            }
        }
    }

    #[test]
    fn every_function_has_a_name_of_its_own() {
        for (i, f) in FUNCTIONS.iter().enumerate() {
            assert!(FUNCTIONS[..i].iter().all(|o| o.name != f.name), "{}", f.name);
        }
    }
}
