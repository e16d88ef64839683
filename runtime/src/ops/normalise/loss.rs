//! Losses of classes: negative log-likelihood, and cross entropy of a softmax.
//!
//! Dimension letters: `N` batch, `C` classes, `D` positions of an example that each have a class of their own.
use crate::ops::{Attrs, Fact, OpDef, OpError, ints_of, need, optional};
use crate::tensor::{DType, Tensor};

use super::parameter;

/// `-w[t] · x[n, t, d]`, reduced.
pub(super) static NEGATIVE_LOG_LIKELIHOOD_LOSS: OpDef = OpDef::new(
    "NegativeLogLikelihoodLoss",
    "-weight · input at the target class, summed or averaged by weight",
    |attrs, inputs| {
        let (x, target) = (need(inputs, 0, "input")?, need(inputs, 1, "target")?);
        Ok(Some(vec![loss_fact(attrs, x, target)?]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        Ok(vec![loss(attrs, inputs, x.data().to_f64())?])
    },
);

/// The same of the logarithm of a softmax over classes, which is the second output.
pub(super) static SOFTMAX_CROSS_ENTROPY_LOSS: OpDef = OpDef::new(
    "SoftmaxCrossEntropyLoss",
    "-weight · log softmax of scores at the label's class, summed or averaged by weight",
    |attrs, inputs| {
        let (x, target) = (need(inputs, 0, "scores")?, need(inputs, 1, "labels")?);
        Ok(Some(vec![loss_fact(attrs, x, target)?, Fact::new(x.dtype, x.shape.clone())]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "scores")?;
        let (_, c, d) = classes(x.shape())?;
        let mut v = x.data().to_f64();
        for example in v.chunks_exact_mut((c * d).max(1)) {
            for i in 0..d {
                let at = |j: usize| j * d + i;
                let max = (0..c).map(|j| example[at(j)]).fold(f64::NEG_INFINITY, f64::max);
                let log = (0..c).map(|j| (example[at(j)] - max).exp()).sum::<f64>().ln();
                (0..c).for_each(|j| example[at(j)] -= max + log);
            }
        }
        let log_prob = Tensor::from_f64(x.dtype(), x.shape(), &v)?;
        Ok(vec![loss(attrs, inputs, v)?, log_prob])
    },
);

/// `[N, C, D]`.
fn classes(shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
    match *shape {
        [n, c, ref rest @ ..] => Ok((n, c, rest.iter().product())),
        _ => Err(OpError::shape("input", "[N, C, …]", shape)),
    }
}

fn loss_fact(attrs: &Attrs, x: &Fact, target: &Fact) -> Result<Fact, OpError> {
    check(&x.shape, &target.shape)?;
    Ok(Fact::new(x.dtype, if attrs.str("reduction", "mean")? == "none" { target.shape.clone() } else { Vec::new() }))
}

/// A target has the shape of the input without its classes.
fn check(x: &[usize], target: &[usize]) -> Result<(), OpError> {
    let (n, _, _) = classes(x)?;
    let expected = [&[n], &x[2..]].concat();
    if target == expected { Ok(()) } else { Err(OpError::shape("target", expected, target)) }
}

/// The loss of the log-probabilities `v`.
fn loss(attrs: &Attrs, inputs: &[Option<&Tensor>], v: Vec<f64>) -> Result<Tensor, OpError> {
    let (x, target) = (need(inputs, 0, "input")?, need(inputs, 1, "target")?);
    check(x.shape(), target.shape())?;
    let (_, c, d) = classes(x.shape())?;
    let weight = optional(inputs, 2).map(|w| parameter(w, c, "weight")).transpose()?;
    let ignored = if attrs.has("ignore_index") { Some(attrs.int("ignore_index", 0)?) } else { None };
    let (mut losses, mut total) = (Vec::with_capacity(target.len()), 0.0);
    for (i, t) in ints_of(target).into_iter().enumerate() {
        if Some(t) == ignored {
            losses.push(0.0);
            continue;
        }
        let class = usize::try_from(t).ok().filter(|&t| t < c);
        let class = class.ok_or_else(|| OpError::shape("target", format!("classes below {c}"), t))?;
        let w = weight.as_ref().map_or(1.0, |w| w[class]);
        total += w;
        losses.push(-w * v[(i / d * c + class) * d + i % d]);
    }
    let sum = losses.iter().sum::<f64>();
    let dtype: DType = x.dtype();
    Ok(match attrs.str("reduction", "mean")? {
        "none" => Tensor::from_f64(dtype, target.shape(), &losses)?,
        "sum" => Tensor::from_f64(dtype, &[], &[sum])?,
        "mean" => Tensor::from_f64(dtype, &[], &[sum / total])?,
        other => return Err(OpError::attribute("reduction", format!("`{other}` is none of none, sum and mean"))),
    })
}
