//! `Gemm` with a function of its result, as ONNX Runtime's optimiser writes it.
use std::sync::Arc;

use super::contraction::Epilogue;
use super::product::{GEMM, MATMUL, gemm, gemm_kernel, gemm_shape};
use crate::ops::{Attr, Attrs, MICROSOFT, OpDef, OpError, optional};
use crate::tensor::Tensor;

/// `activation(alpha · A' · B' + beta · C)`.
pub(super) static FUSED_GEMM: OpDef =
    OpDef::new("FusedGemm", "activation(alpha · A' · B' + beta · C)", gemm_shape, |attrs, inputs| {
        gemm(attrs, inputs, Some(&activation(attrs)?))
    })
    .domain(MICROSOFT)
    .kernel(|l| {
        let f = activation(l.attrs)?;
        let activation: super::contraction::Activation = Arc::new(move |v| f(f64::from(v)) as f32);
        gemm_kernel(l, Epilogue { activation: Some(activation), ..Epilogue::default() })
    })
    .vjp(|b| {
        b.through(|b| {
            let attrs = b.attrs();
            let kept = ["transA", "transB", "alpha", "beta"];
            let map = attrs.map.iter().filter(|(k, _)| kept.contains(&&***k)).map(|(k, v)| (k.clone(), v.clone()));
            let gemm = Attrs { opset: 22, outputs: 1, map: map.collect() };
            let operands = b.operands();
            let y = b.one(&GEMM, gemm, &operands)?;
            let name = attrs.str("activation", "")?.to_string();
            if name.is_empty() {
                return Ok(vec![y]);
            }
            let op = crate::ops::find("", &name);
            let op = op.ok_or_else(|| OpError::attribute("activation", format!("`{name}` is no operator")))?;
            let mut own = Attrs::of([]);
            for key in ["alpha", "beta", "gamma"] {
                if attrs.has(&format!("activation_{key}")) {
                    let v = attrs.float(&format!("activation_{key}"), 0.0)?;
                    own.map.insert(key.to_string(), Attr::Float(v));
                }
            }
            Ok(vec![b.one(op, own, &[Some(y)])?])
        })
    });

/// `FastGelu(X · W + bias)`.
pub(super) static GEMM_FAST_GELU: OpDef = OpDef::new(
    "GemmFastGelu",
    "the tanh form of Gelu of X · W + bias",
    |attrs, inputs| (MATMUL.shape)(attrs, &inputs[..inputs.len().min(2)]),
    |attrs, inputs| {
        let product = (MATMUL.reference)(attrs, &inputs[..inputs.len().min(2)])?;
        let mut out = Vec::with_capacity(1);
        for t in product {
            let (dtype, n) = (t.dtype(), t.shape().last().copied().unwrap_or(1));
            let mut v = t.data().to_f64();
            if let Some(bias) = optional(inputs, 2) {
                check_bias(bias.shape(), n)?;
                let bias = bias.data().to_f64();
                v.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % n]);
            }
            v.iter_mut().for_each(|v| *v = fast_gelu(*v));
            out.push(Tensor::from_f64(dtype, t.shape(), &v)?);
        }
        Ok(out)
    },
)
.domain(MICROSOFT)
.vjp(|b| {
    b.through(|b| {
        let (x, w) = (b.x(0)?, b.x(1)?);
        let mut y = b.binary("MatMul", x, w)?;
        if let Some(bias) = b.optional(2) {
            y = b.add(y, bias)?;
        }
        Ok(vec![b.standard("Gelu", [("approximate", Attr::Str("tanh".into()))], &[y])?])
    })
});

fn check_bias(shape: &[usize], n: usize) -> Result<(), OpError> {
    if shape == [n] { Ok(()) } else { Err(OpError::shape("bias", [n], shape)) }
}

/// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
fn fast_gelu(x: f64) -> f64 {
    let inner = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// The function of the attributes `activation`, `activation_alpha`, `activation_beta` and `activation_gamma`, whose
/// defaults are those of the operator of that name.
fn activation(attrs: &Attrs) -> Result<impl Fn(f64) -> f64 + Send + Sync + 'static, OpError> {
    let name = attrs.str("activation", "")?.to_string();
    let (alpha, beta) = match name.as_str() {
        "LeakyRelu" => (0.01, 0.0),
        "HardSigmoid" => (0.2, 0.5),
        "Selu" => (1.673_263_2, 0.0),
        _ => (1.0, 0.0),
    };
    let alpha = f64::from(attrs.float("activation_alpha", alpha)?);
    let beta = f64::from(attrs.float("activation_beta", beta)?);
    let gamma = f64::from(attrs.float("activation_gamma", 1.050_701)?);
    type Shape = fn(f64, f64, f64, f64) -> f64;
    let f: Shape = match name.as_str() {
        "" => |x, _, _, _| x,
        "Relu" => |x, _, _, _| if x < 0.0 { 0.0 } else { x },
        "LeakyRelu" => |x, a, _, _| if x < 0.0 { a * x } else { x },
        "ThresholdedRelu" => |x, a, _, _| if x > a { x } else { 0.0 },
        "Sigmoid" => |x, _, _, _| 1.0 / (1.0 + (-x).exp()),
        "HardSigmoid" => |x, a, b, _| (a * x + b).clamp(0.0, 1.0),
        "Tanh" => |x, _, _, _| x.tanh(),
        "Softplus" => |x, _, _, _| x.max(0.0) + (-x.abs()).exp().ln_1p(),
        "Softsign" => |x, _, _, _| x / (1.0 + x.abs()),
        "Elu" => |x, a, _, _| if x < 0.0 { a * x.exp_m1() } else { x },
        "Celu" => |x, a, _, _| x.max(0.0) + (a * (x / a).exp_m1()).min(0.0),
        "Selu" => |x, a, _, g| g * if x < 0.0 { a * x.exp_m1() } else { x },
        other => return Err(OpError::attribute("activation", format!("`{other}` is no function of one number"))),
    };
    Ok(move |x| f(x, alpha, beta, gamma))
}
