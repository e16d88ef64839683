//! What follows a convolution or a product with constant weights, element by element, is done while its results are at hand: a
//! bias, the sum with another branch, then an activation.
use std::sync::Arc;

use super::{Here, Net};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, OpError, internal};
use crate::tensor::DType;

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    for i in 0..net.len() {
        if let Some((attrs, inputs)) = net.at(i).and_then(|here| dense(net, here)) {
            net.replace(i, &internal::DENSE, Arc::new(attrs), inputs);
            continue;
        }
        let Some(here) = net.at(i) else { continue };
        let grown = bias(net, here).or_else(|| sum(net, here)).or_else(|| activation(net, here));
        let Some((conv, attrs, inputs)) = grown else { continue };
        let Some(def) = net.at(conv).map(|c| c.def) else { continue };
        net.replace(i, def, Arc::new(attrs), inputs);
        net.remove(conv);
    }
    Ok(())
}

/// A convolution and its new attributes and operands.
type Grown = (usize, Attrs, Vec<Option<ValueId>>);

/// The operators that can end in a sum and an activation, and where the other branch of the sum goes.
fn residual(here: Here<'_>) -> Option<usize> {
    let is = |def| std::ptr::eq(here.def, def);
    match here.def.domain {
        internal::DOMAIN if is(&internal::CONV) => Some(3),
        internal::DOMAIN if is(&internal::DENSE) => Some(internal::DENSE_RESIDUAL),
        internal::DOMAIN if is(&internal::PRODUCT_SCALED) => Some(internal::SCALED_RESIDUAL),
        internal::DOMAIN if is(&internal::CONV_FLOATS) || is(&internal::PRODUCT_FLOATS) => Some(internal::RESIDUAL),
        _ => None,
    }
}

/// The convolution or product that makes `v` for one reader only and does not end in an activation yet, and where the other
/// branch of a sum goes.
fn open<'n>(net: &'n Net<'_>, v: ValueId) -> Option<(usize, Here<'n>, usize)> {
    let i = net.maker(v)?;
    let here = net.at(i)?;
    let slot = residual(here)?;
    (net.read_once(v) && !here.attrs.has("activation") && net.may_move(here.node)).then_some((i, here, slot))
}

/// A product with constant weights, plain or dequantised.
fn dense(net: &Net<'_>, here: Here<'_>) -> Option<(Attrs, Vec<Option<ValueId>>)> {
    let one = |name: &str| here.attrs.float(name, 1.0).ok() == Some(1.0);
    let turned = match (here.def.domain, here.def.name) {
        ("", "MatMul") => false,
        ("", "Gemm") if one("alpha") && one("beta") && !here.attrs.flag("transA", false).ok()? => {
            here.attrs.flag("transB", false).ok()?
        }
        // What a gradient is multiplied by.
        ("com.microsoft", "FusedMatMul")
            if one("alpha")
                && ["transA", "transBatchA", "transBatchB"].iter().all(|t| here.attrs.flag(t, false) == Ok(false)) =>
        {
            here.attrs.flag("transB", false).ok()?
        }
        _ => return None,
    };
    let (x, w) = (here.input(0)?, here.input(1)?);
    let dequantised = super::integer::weights(net, w, usize::from(!turned)).is_some();
    let attrs = Attrs::of([("transB", Attr::Int(i64::from(turned)))]);
    let (fx, fw) = (net.fact(x)?, net.fact(w)?);
    let floats = fx.dtype == DType::F32 && fw.dtype == DType::F32 && (fw.value.is_some() || dequantised);
    if !floats || fx.shape.len() < 2 || !internal::takes_dense(&attrs, &fx.shape, &fw.shape) {
        return None;
    }
    let bias = here.input(2);
    if bias.is_some_and(|b| net.fact(b).is_none_or(|f| f.shape != [net.shape(w)[usize::from(!turned)]])) {
        return None;
    }
    Some((attrs, vec![Some(x), Some(w), bias]))
}

/// A product that has none yet, plus a vector with an element a column.
fn bias(net: &Net<'_>, here: Here<'_>) -> Option<Grown> {
    if here.def.name != "Add" || !here.def.domain.is_empty() {
        return None;
    }
    let (a, b) = (here.input(0)?, here.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(v, b)| {
        let (i, product, slot) = open(net, v)?;
        let is = |def| std::ptr::eq(product.def, def);
        let at = match () {
            () if is(&internal::DENSE) => 2,
            () if is(&internal::PRODUCT_SCALED) => internal::SCALED_BIAS,
            () => internal::BIAS,
        };
        let columns = *net.shape(v).last()?;
        let fits = !is(&internal::CONV)
            && product.input(at).is_none()
            && product.input(slot).is_none()
            && net.shape(b) == [columns]
            && net.constant(b).is_some();
        let mut inputs = product.node.inputs.clone();
        inputs.resize(inputs.len().max(at + 1), None);
        inputs[at] = Some(b);
        fits.then(|| (i, (**product.attrs).clone(), inputs))
    })
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
        let (i, conv, slot) = open(net, v)?;
        // `z` is made before the sum, but perhaps after the convolution: the sum's place serves both.
        let mut inputs = conv.node.inputs.clone();
        inputs.resize(slot + 1, None);
        inputs[slot].replace(z).is_none().then(|| (i, (**conv.attrs).clone(), inputs))
    })
}

/// An activation of the convolution, or of its sum with another branch.
fn activation(net: &Net<'_>, here: Here<'_>) -> Option<Grown> {
    let (i, conv, _) = open(net, here.input(0)?)?;
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
