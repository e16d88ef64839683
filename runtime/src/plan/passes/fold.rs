//! Constants after a convolution go into its weights: `BatchNormalization`, and products and sums with one number a
//! channel.
use std::sync::Arc;

use super::{Here, Net};
use crate::graph::ValueId;
use crate::ops::{Fact, OpError};
use crate::tensor::Tensor;

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    for i in 0..net.len() {
        if let Some((conv, affine)) = after_convolution(net, i) {
            fold(net, conv, i, &affine)?;
        }
    }
    Ok(())
}

/// `y = x · gain + shift`, one of each a channel.
pub(super) struct Affine {
    pub(super) gain: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

/// Node `i` as an affine map of the channels of a convolution with constant weights that nobody else reads.
fn after_convolution(net: &Net<'_>, i: usize) -> Option<(usize, Affine)> {
    let here = net.at(i)?;
    if !here.def.domain.is_empty() {
        return None;
    }
    here.output()?;
    let (x, other) = match here.def.name {
        "BatchNormalization" => (here.input(0)?, None),
        "Mul" | "Add" => {
            let (a, b) = (here.input(0)?, here.input(1)?);
            if net.constant(a).is_some() { (b, Some(a)) } else { (a, Some(b)) }
        }
        "Sub" | "Div" => (here.input(0)?, Some(here.input(1)?)),
        _ => return None,
    };
    let conv = net.maker(x)?;
    let c = net.is(conv, "Conv")?;
    let weights = net.constant(c.input(1)?)?;
    weights.as_f32().ok()?;
    if let Some(b) = c.input(2) {
        net.constant(b)?.as_f32().ok()?;
    }
    if !net.read_once(x) || net.shape(here.output()?) != net.shape(x) {
        return None;
    }
    let channels = weights.shape()[0];
    let affine = match other {
        None => normalisation(net, here, channels)?,
        Some(other) => {
            let v = per_channel(net, other, channels, net.shape(x).len())?;
            match here.def.name {
                "Mul" => Affine { gain: v, shift: vec![0.0; channels] },
                "Div" => Affine { gain: v.into_iter().map(f32::recip).collect(), shift: vec![0.0; channels] },
                "Add" => Affine { gain: vec![1.0; channels], shift: v },
                _ => Affine { gain: vec![1.0; channels], shift: v.into_iter().map(|v| -v).collect() },
            }
        }
    };
    affine.gain.iter().all(|g| g.is_finite()).then_some((conv, affine))
}

/// A constant of one number, or of one a channel of a tensor of `rank` axes.
fn per_channel(net: &Net<'_>, v: ValueId, channels: usize, rank: usize) -> Option<Vec<f32>> {
    let t = net.constant(v)?;
    let values = t.as_f32().ok()?;
    if let [one] = values {
        return Some(vec![*one; channels]);
    }
    let lead = rank.checked_sub(t.shape().len())?;
    let fits = t.shape().iter().enumerate().all(|(a, &d)| if a + lead == 1 { d == channels } else { d == 1 });
    (fits && values.len() == channels).then(|| values.to_vec())
}

/// What a `BatchNormalization` with constant statistics does in inference.
pub(super) fn normalisation(net: &Net<'_>, here: Here<'_>, channels: usize) -> Option<Affine> {
    let attrs = here.attrs;
    // Version 6 and before spelled inference `is_test`, and a spatial=0 form normalised every position by itself.
    if attrs.flag("training_mode", false).ok()? || !attrs.flag("spatial", true).ok()? || attrs.opset < 7 {
        return None;
    }
    let epsilon = attrs.float("epsilon", 1e-5).ok()?;
    let of = |k: usize| Some(net.constant(here.input(k)?)?.as_f32().ok()?.to_vec()).filter(|v| v.len() == channels);
    let (scale, bias, mean, var) = (of(1)?, of(2)?, of(3)?, of(4)?);
    let gain: Vec<f32> = scale
        .iter()
        .zip(&var)
        .map(|(s, v)| (f64::from(*s) / (f64::from(*v) + f64::from(epsilon)).sqrt()) as f32)
        .collect();
    let shift = (0..channels).map(|c| bias[c] - mean[c] * gain[c]).collect();
    Some(Affine { gain, shift })
}

fn fold(net: &mut Net<'_>, conv: usize, i: usize, affine: &Affine) -> Result<(), OpError> {
    let Some(c) = net.at(conv) else { return Ok(()) };
    let (attrs, mut inputs) = (c.attrs.clone(), c.node.inputs.clone());
    let (Some(w), bias) = (c.input(1), c.input(2)) else { return Ok(()) };
    let Some(weights) = net.constant(w).cloned() else { return Ok(()) };
    let channels = affine.gain.len();
    let per = weights.len() / channels.max(1);
    let scaled: Vec<f32> = weights.as_f32()?.iter().enumerate().map(|(k, w)| w * affine.gain[k / per]).collect();
    let old = match bias.and_then(|b| net.constant(b)) {
        Some(b) => b.as_f32()?.to_vec(),
        None => vec![0.0; channels],
    };
    let moved: Vec<f32> = (0..channels).map(|c| old[c] * affine.gain[c] + affine.shift[c]).collect();
    let unscaled = affine.gain.iter().all(|&g| g == 1.0);
    let name = net.name(w).to_string();
    let add = |net: &mut Net<'_>, part: &str, t: Tensor| net.add(format!("{name}.{part}"), Fact::constant(Arc::new(t)));
    let w = if unscaled { w } else { add(net, "scaled", Tensor::f32(weights.shape(), scaled)?) };
    let b = add(net, "shift", Tensor::f32(&[channels], moved)?);
    inputs.resize(3, None);
    (inputs[1], inputs[2]) = (Some(w), Some(b));
    let Some(def) = net.at(conv).map(|c| c.def) else { return Ok(()) };
    net.remove(conv);
    net.replace(i, def, attrs, inputs);
    Ok(())
}
