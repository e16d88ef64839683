//! What follows a convolution, element by element, is done while its results are at hand: the sum with another branch,
//! then an activation.
use std::sync::Arc;

use super::{Here, Net};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, OpError, internal};

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    for i in 0..net.len() {
        let Some(here) = net.at(i) else { continue };
        let Some((conv, attrs, inputs)) = sum(net, here).or_else(|| activation(net, here)) else { continue };
        net.replace(i, &internal::CONV, Arc::new(attrs), inputs);
        net.remove(conv);
    }
    Ok(())
}

/// A convolution and its new attributes and operands.
type Grown = (usize, Attrs, Vec<Option<ValueId>>);

/// The convolution that makes `v` for one reader only and does not end in an activation yet.
fn open<'n>(net: &'n Net<'_>, v: ValueId) -> Option<(usize, Here<'n>)> {
    let i = net.maker(v)?;
    let conv = net.at(i).filter(|h| std::ptr::eq(h.def, &internal::CONV))?;
    (net.read_once(v) && !conv.attrs.has("activation")).then_some((i, conv))
}

/// `Conv + z`, for the first operand that allows it.
fn sum(net: &Net<'_>, here: Here<'_>) -> Option<Grown> {
    if here.def.name != "Add" || !here.def.domain.is_empty() || here.attrs.opset < 7 && here.attrs.has("axis") {
        return None;
    }
    let (a, b) = (here.input(0)?, here.input(1)?);
    if net.shape(a) != net.shape(b) || a == b {
        return None;
    }
    [(a, b), (b, a)].into_iter().find_map(|(v, z)| {
        let (i, conv) = open(net, v)?;
        // `z` is made before the sum, but perhaps after the convolution: the sum's place serves both.
        let mut inputs = conv.node.inputs.clone();
        inputs.resize(4, None);
        inputs[3].replace(z).is_none().then(|| (i, (**conv.attrs).clone(), inputs))
    })
}

/// An activation of the convolution, or of its sum with another branch.
fn activation(net: &Net<'_>, here: Here<'_>) -> Option<Grown> {
    let (i, conv) = open(net, here.input(0)?)?;
    let param = |name: &str, default: f32| here.attrs.float(name, default).ok();
    let params = match (here.def.domain, here.def.name) {
        ("", "Relu" | "Tanh" | "Sigmoid" | "HardSwish") => vec![],
        ("", "Swish") if param("alpha", 1.0)? == 1.0 => vec![],
        ("", "Gelu") if here.attrs.str("approximate", "none").ok()? == "none" => vec![],
        ("com.microsoft", "Gelu") => vec![],
        ("", "LeakyRelu") => vec![param("alpha", 0.01)?],
        ("", "HardSigmoid") => vec![param("alpha", 0.2)?, param("beta", 0.5)?],
        ("", "Clip") => {
            let bound = |k: usize, name: &str, none: f32| match here.input(k) {
                Some(v) => net.scalar(v),
                None => param(name, none),
            };
            vec![bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?]
        }
        _ => return None,
    };
    here.output()?;
    let mut attrs = (**conv.attrs).clone();
    attrs.map.insert("activation".into(), Attr::Str(here.def.name.into()));
    attrs.map.insert("activation_params".into(), Attr::Floats(params));
    Some((i, attrs, conv.node.inputs.clone()))
}
