//! The activations a recurrent operator may name, with their `alpha` and `beta`.
use hone_kernels::cell;

use crate::ops::{Attrs, OpError};

/// One activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(0, x)`.
    Relu,
    /// `alpha · x + beta`.
    Affine { alpha: f32, beta: f32 },
    /// `x` where positive, `alpha · x` elsewhere.
    LeakyRelu { alpha: f32 },
    /// `x` where greater than `alpha`, 0 elsewhere.
    ThresholdedRelu { alpha: f32 },
    /// `alpha · tanh(beta · x)`.
    ScaledTanh { alpha: f32, beta: f32 },
    /// `min(1, max(0, alpha · x + beta))`.
    HardSigmoid { alpha: f32, beta: f32 },
    /// `x` where positive, `alpha · (e^x - 1)` elsewhere.
    Elu { alpha: f32 },
    /// `x / (1 + |x|)`.
    Softsign,
    /// `log(1 + e^x)`.
    Softplus,
}

impl Activation {
    /// The activations of every direction, `per` each. `activation_alpha` and `activation_beta` are used up in order by
    /// the functions that take them, as ONNX Runtime reads the standard.
    pub(super) fn list(attrs: &Attrs, default: &[&str], directions: usize) -> Result<Vec<Vec<Activation>>, OpError> {
        let named: Vec<String> = match attrs.strs("activations")? {
            Some(l) if !l.is_empty() => l.to_vec(),
            _ => default.iter().cycle().take(default.len() * directions).map(|s| s.to_string()).collect(),
        };
        if named.len() != default.len() * directions {
            let why = format!("{named:?} is not {} for each of {directions} directions", default.len());
            return Err(OpError::attribute("activations", why));
        }
        let mut alphas = attrs.floats("activation_alpha")?.unwrap_or_default().iter().copied();
        let mut betas = attrs.floats("activation_beta")?.unwrap_or_default().iter().copied();
        let all: Vec<Activation> = named
            .iter()
            .map(|name| {
                let mut alpha = |default: f32| alphas.next().unwrap_or(default);
                let mut beta = |default: f32| betas.next().unwrap_or(default);
                Ok(match &name.to_ascii_lowercase()[..] {
                    "sigmoid" => Activation::Sigmoid,
                    "tanh" => Activation::Tanh,
                    "relu" => Activation::Relu,
                    "affine" => Activation::Affine { alpha: alpha(1.0), beta: beta(0.0) },
                    "leakyrelu" => Activation::LeakyRelu { alpha: alpha(0.01) },
                    "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alpha(1.0) },
                    "scaledtanh" => Activation::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
                    "hardsigmoid" => Activation::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
                    "elu" => Activation::Elu { alpha: alpha(1.0) },
                    "softsign" => Activation::Softsign,
                    "softplus" => Activation::Softplus,
                    other => return Err(OpError::attribute("activations", format!("names `{other}`"))),
                })
            })
            .collect::<Result<_, OpError>>()?;
        Ok(all.chunks(default.len()).map(<[Activation]>::to_vec).collect())
    }

    /// The values in place of `v`.
    pub(super) fn apply(self, v: &mut [f32]) {
        match self {
            Activation::Sigmoid => cell::sigmoid(v),
            Activation::Tanh => cell::tanh(v),
            Activation::Relu => v.iter_mut().for_each(|x| *x = x.max(0.0)),
            other => v.iter_mut().for_each(|x| *x = other.at(f64::from(*x)) as f32),
        }
    }

    /// Multiplies `d` by the derivative at `x`, where the function is `y`.
    pub(super) fn descend(self, x: &[f32], y: &[f32], d: &mut [f32]) {
        match self {
            Activation::Sigmoid => d.iter_mut().zip(y).for_each(|(d, y)| *d *= y * (1.0 - y)),
            Activation::Tanh => d.iter_mut().zip(y).for_each(|(d, y)| *d *= 1.0 - y * y),
            other => d.iter_mut().zip(x).for_each(|(d, x)| *d *= other.slope(f64::from(*x)) as f32),
        }
    }

    /// The derivative at `x`.
    pub(super) fn slope(self, x: f64) -> f64 {
        match self {
            Activation::Sigmoid => {
                let s = self.at(x);
                s * (1.0 - s)
            }
            Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
            Activation::Relu => f64::from(u8::from(x > 0.0)),
            Activation::Affine { alpha, .. } => f64::from(alpha),
            Activation::LeakyRelu { alpha } => {
                if x >= 0.0 {
                    1.0
                } else {
                    f64::from(alpha)
                }
            }
            Activation::ThresholdedRelu { alpha } => f64::from(u8::from(x > f64::from(alpha))),
            Activation::ScaledTanh { alpha, beta } => {
                let (alpha, beta) = (f64::from(alpha), f64::from(beta));
                alpha * beta * (1.0 - (beta * x).tanh().powi(2))
            }
            Activation::HardSigmoid { alpha, beta } => {
                let v = f64::from(alpha) * x + f64::from(beta);
                if v > 0.0 && v < 1.0 { f64::from(alpha) } else { 0.0 }
            }
            Activation::Elu { alpha } => {
                if x >= 0.0 {
                    1.0
                } else {
                    f64::from(alpha) * x.exp()
                }
            }
            Activation::Softsign => 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())),
            Activation::Softplus => 1.0 / (1.0 + (-x).exp()),
        }
    }

    /// The value at `x`.
    pub(super) fn at(self, x: f64) -> f64 {
        match self {
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
            Activation::Relu => x.max(0.0),
            Activation::Affine { alpha, beta } => f64::from(alpha) * x + f64::from(beta),
            Activation::LeakyRelu { alpha } => {
                if x >= 0.0 {
                    x
                } else {
                    f64::from(alpha) * x
                }
            }
            Activation::ThresholdedRelu { alpha } => {
                if x > f64::from(alpha) {
                    x
                } else {
                    0.0
                }
            }
            Activation::ScaledTanh { alpha, beta } => f64::from(alpha) * (f64::from(beta) * x).tanh(),
            Activation::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Activation::Elu { alpha } => {
                if x >= 0.0 {
                    x
                } else {
                    f64::from(alpha) * x.exp_m1()
                }
            }
            Activation::Softsign => x / (1.0 + x.abs()),
            Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}
