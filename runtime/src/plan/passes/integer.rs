//! What a file spells `DequantizeLinear` … `QuantizeLinear` around an operator is computed on the codes.
//!
//! Sums of products of codes are exact; what follows them (bias, rounding, an activation between codes, a sum with other codes)
//! is done while they are at hand. Only tensors of `u8` with one scale take part, and weights of `i8` without zero points;
//! everything else stays as the file says.
use std::sync::Arc;

use super::{Here, Net};
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, Fact, MICROSOFT, OpDef, OpError, find, internal};
use crate::tensor::{DType, Data, Tensor};

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    if !(0..net.len()).any(|i| net.is(i, "DequantizeLinear").is_some()) {
        return Ok(());
    }
    for i in 0..net.len() {
        let Some(to) = quantiser(net, i) else { continue };
        let mut new = requantised(net, &to)?;
        if new.is_none() {
            new = looked_up(net, &to)?;
        }
        if let Some(new) = new.or_else(|| summed(net, &to)).or_else(|| paired(net, &to)).or_else(|| moved(net, &to)) {
            new.put(net, i);
        }
        if let Some(new) = within(net, i) {
            new.put(net, i);
        }
    }
    for i in 0..net.len() {
        if let Some(new) = floats(net, i)? {
            new.put(net, i);
        }
    }
    Ok(())
}

/// An operator to put in the place of a node; values that nobody reads then are not made.
struct New {
    def: &'static OpDef,
    attrs: Attrs,
    inputs: Vec<Option<ValueId>>,
}

impl New {
    fn put(self, net: &mut Net<'_>, i: usize) {
        let before: Vec<ValueId> = net.at(i).iter().flat_map(|h| h.node.inputs.iter().flatten().copied()).collect();
        net.replace(i, self.def, Arc::new(self.attrs), self.inputs);
        before.into_iter().for_each(|v| net.forget(v));
    }
}

/// Codes that stand for reals: which, their scale and their zero point.
#[derive(Clone, Copy)]
struct Codes {
    v: ValueId,
    scale: ValueId,
    zero: ValueId,
}

/// A `QuantizeLinear` to `u8`, or its operand.
struct Quantiser {
    /// What is quantised.
    x: ValueId,
    scale: ValueId,
    zero: ValueId,
}

/// Scale and zero point of a node that quantises to `u8` or back, with one scale.
fn parameters(net: &Net<'_>, here: Here<'_>) -> Option<(ValueId, ValueId)> {
    let (scale, zero) = (here.input(1)?, here.input(2)?);
    net.scalar(scale).filter(|s| s.is_finite() && *s > 0.0)?;
    let z = net.constant(zero)?;
    (z.dtype() == DType::U8 && z.len() == 1 && here.attrs.int("block_size", 0).ok()? == 0).then_some((scale, zero))
}

fn quantiser(net: &Net<'_>, i: usize) -> Option<Quantiser> {
    let here = net.is(i, "QuantizeLinear")?;
    let (scale, zero) = parameters(net, here)?;
    Some(Quantiser { x: here.input(0)?, scale, zero })
}

/// The codes that `v` is the real of.
fn codes(net: &Net<'_>, v: ValueId) -> Option<Codes> {
    let here = net.made_by(v, "DequantizeLinear")?;
    let (scale, zero) = parameters(net, here)?;
    Some(Codes { v: here.input(0)?, scale, zero })
}

/// The numbers behind scale and zero point.
fn affine(net: &Net<'_>, scale: ValueId, zero: ValueId) -> Option<(f32, i32)> {
    Some((net.scalar(scale)?, net.constant(zero)?.data().to_i128().first().copied()? as i32))
}

/// Symmetric `i8` weights: codes and scales, along `axis` where there are several.
pub(super) fn weights(net: &Net<'_>, v: ValueId, axis: usize) -> Option<(ValueId, ValueId)> {
    let here = net.made_by(v, "DequantizeLinear")?;
    let (w, scale) = (here.input(0)?, here.input(1)?);
    let (q, s) = (net.constant(w)?, net.constant(scale)?);
    let zero = match here.input(2) {
        Some(z) => net.constant(z)?.data().to_i128().iter().all(|&z| z == 0),
        None => true,
    };
    let along = s.len() == 1
        || crate::ops::axis_of(here.attrs.int("axis", 1).ok()?, q.shape().len()).ok()? == axis
            && s.len() == q.shape()[axis];
    let plain = here.attrs.int("block_size", 0).ok()? == 0 && s.dtype() == DType::F32;
    (q.dtype() == DType::I8 && zero && along && plain).then_some((w, scale))
}

/// The numbers of a constant, dequantised if need be.
fn numbers(net: &Net<'_>, v: ValueId) -> Option<Vec<f64>> {
    if let Some(t) = net.constant(v) {
        return (t.dtype() == DType::F32).then(|| t.data().to_f64());
    }
    let here = net.made_by(v, "DequantizeLinear")?;
    let inputs: Vec<Option<&Tensor>> = here
        .node
        .inputs
        .iter()
        .map(|v| v.map_or(Some(None), |v| net.constant(v).map(|t| Some(&**t))))
        .collect::<Option<_>>()?;
    let made = (here.def.reference)(here.attrs, &inputs).ok()?;
    Some(made.first()?.data().to_f64())
}

/// A product or a convolution of codes.
struct Sums {
    conv: bool,
    attrs: Attrs,
    x: Codes,
    w: ValueId,
    w_scale: ValueId,
    /// `f32`, one a channel out.
    bias: Option<ValueId>,
    channels: usize,
}

impl Sums {
    /// That of node `here`, when what it makes is `f32` of codes.
    fn of(net: &Net<'_>, here: Here<'_>) -> Option<Sums> {
        if std::ptr::eq(here.def, &internal::CONV) {
            let x = codes(net, here.input(0)?)?;
            let (w, w_scale) = weights(net, here.input(1)?, 0)?;
            (here.node.inputs.len() < 4 && !here.attrs.has("activation")).then_some(())?;
            let channels = net.shape(w)[0];
            return Some(Sums {
                conv: true,
                attrs: (**here.attrs).clone(),
                x,
                w,
                w_scale,
                bias: here.input(2),
                channels,
            });
        }
        let plain = |name: &str, default: f32| here.attrs.float(name, default).ok() == Some(1.0);
        let (turned, bias) = match here.def.name {
            "MatMul" if here.def.domain.is_empty() => (false, None),
            "Gemm" if here.def.domain.is_empty() && plain("alpha", 1.0) && plain("beta", 1.0) => {
                (!here.attrs.flag("transA", false).ok()?)
                    .then_some((here.attrs.flag("transB", false).ok()?, here.input(2)))?
            }
            _ => return None,
        };
        let x = codes(net, here.input(0)?)?;
        let (w, w_scale) = weights(net, here.input(1)?, usize::from(!turned))?;
        let &[a, b] = net.shape(w) else { return None };
        let channels = if turned { a } else { b };
        if net.shape(x.v).len() < 2 || bias.is_some_and(|b| net.shape(b) != [channels]) {
            return None;
        }
        let attrs = Attrs::of([("transB", Attr::Int(i64::from(turned)))]);
        Some(Sums { conv: false, attrs, x, w, w_scale, bias, channels })
    }

    /// The sums that make `v`, read by nobody else: with a bias that is added afterwards, if there is one.
    fn behind(net: &Net<'_>, v: ValueId) -> Option<Sums> {
        net.read_once(v).then_some(())?;
        let here = net.at(net.maker(v)?)?;
        if here.def.name != "Add" || !here.def.domain.is_empty() {
            return Sums::of(net, here);
        }
        let (a, b) = (here.input(0)?, here.input(1)?);
        [(a, b), (b, a)].into_iter().find_map(|(x, bias)| {
            let sums = net.read_once(x).then(|| Sums::of(net, net.at(net.maker(x)?)?))??;
            let fits = net.shape(bias) == [sums.channels] && numbers(net, bias).is_some();
            (!sums.conv && sums.bias.is_none() && fits).then_some(Sums { bias: Some(bias), ..sums })
        })
    }

    /// Whether there is a kernel for them.
    fn takes(&self, net: &Net<'_>) -> bool {
        !self.conv || internal::takes_codes(&self.attrs, &internal::first(net.shape(self.x.v)), net.shape(self.w))
    }

    fn inputs(&self, bias: Option<ValueId>) -> Vec<Option<ValueId>> {
        vec![Some(self.x.v), Some(self.x.scale), Some(self.x.zero), Some(self.w), Some(self.w_scale), bias]
    }

    /// The bias in units of the scales of the operands: as the file has it when it is in them, else rounded to them.
    fn integer_bias(&self, net: &mut Net<'_>) -> Result<Option<Option<ValueId>>, OpError> {
        let Some(b) = self.bias else { return Ok(Some(None)) };
        let (Some(v), Some(x), Some(w)) = (numbers(net, b), net.scalar(self.x.scale), net.constant(self.w_scale))
        else {
            return Ok(None);
        };
        let w = w.data().to_f64();
        let unit = |j: usize| f64::from(x * w[if w.len() == 1 { 0 } else { j }] as f32);
        let rounded: Vec<i32> = v.iter().enumerate().map(|(j, v)| (v / unit(j)).round_ties_even() as i32).collect();
        let name = format!("{}.codes", net.name(b));
        let t = Tensor::new(&[rounded.len()], Data::I32(rounded))?;
        Ok(Some(Some(net.add(name, Fact::constant(Arc::new(t))))))
    }
}

/// The limits that an activation of `v` sets to codes of that scale and zero point, and what it is of.
fn limited(net: &Net<'_>, v: ValueId, scale: f32, zero: i32) -> Option<(ValueId, i64, i64)> {
    let code = |x: f32| i64::from(((x / scale).round_ties_even() as i32).saturating_add(zero).clamp(0, 255));
    let here = net.at(net.maker(v)?)?;
    let bounded = here.def.domain.is_empty() && net.read_once(v);
    let bound = |i: usize, name: &str, none: f32| match here.input(i) {
        Some(b) => net.scalar(b),
        None => here.attrs.float(name, none).ok(),
    };
    match here.def.name {
        "Relu" if bounded => Some((here.input(0)?, code(0.0), 255)),
        "Clip" if bounded => Some((here.input(0)?, code(bound(1, "min", f32::MIN)?), code(bound(2, "max", f32::MAX)?))),
        _ => Some((v, 0, 255)),
    }
}

/// A convolution or product, perhaps limited, then quantised.
fn multiplied_at(net: &Net<'_>, to: &Quantiser) -> Option<(Sums, i64, i64)> {
    let (scale, zero) = affine(net, to.scale, to.zero)?;
    let (v, low, high) = limited(net, to.x, scale, zero)?;
    let sums = Sums::behind(net, v)?;
    (sums.takes(net) && low <= high).then_some((sums, low, high))
}

fn requantised(net: &mut Net<'_>, to: &Quantiser) -> Result<Option<New>, OpError> {
    let Some((sums, low, high)) = multiplied_at(net, to) else { return Ok(None) };
    let Some(bias) = sums.integer_bias(net)? else { return Ok(None) };
    let mut inputs = sums.inputs(bias);
    inputs.extend([Some(to.scale), Some(to.zero)]);
    let mut attrs = sums.attrs;
    attrs.map.insert("low".into(), Attr::Int(low));
    attrs.map.insert("high".into(), Attr::Int(high));
    let def = if sums.conv { &internal::CONV_CODES } else { &internal::PRODUCT_CODES };
    Ok(Some(New { def, attrs, inputs }))
}

/// The node that makes codes `v` of sums, for nobody else, and does not look up or add anything yet.
fn open<'n>(net: &'n Net<'_>, v: ValueId) -> Option<Here<'n>> {
    let here = net.at(net.maker(v)?)?;
    let ours = std::ptr::eq(here.def, &internal::CONV_CODES) || std::ptr::eq(here.def, &internal::PRODUCT_CODES);
    (ours && net.read_once(v) && here.input(internal::OTHER).is_none()).then_some(here)
}

/// The sum of codes with others, perhaps limited, then quantised: part of the convolution or product that makes the codes.
fn summed(net: &Net<'_>, to: &Quantiser) -> Option<New> {
    let (scale, zero) = affine(net, to.scale, to.zero)?;
    let (v, low, high) = limited(net, to.x, scale, zero)?;
    let here = net.made_by(v, "Add").filter(|_| net.read_once(v))?;
    let (a, b) = (here.input(0)?, here.input(1)?);
    if net.shape(a) != net.shape(b) || a == b || low > high {
        return None;
    }
    [(a, b), (b, a)].into_iter().find_map(|(a, b)| {
        let (mine, other) = (codes(net, a).filter(|_| net.read_once(a))?, codes(net, b)?);
        let here = open(net, mine.v)?;
        // The codes must be those that the sum reads.
        let same = affine(net, mine.scale, mine.zero)? == affine(net, here.input(6)?, here.input(7)?)?;
        let mut inputs = here.node.inputs.clone();
        inputs.extend([other.v, other.scale, other.zero, to.scale, to.zero].map(Some));
        let mut attrs = (**here.attrs).clone();
        attrs.map.insert("sum_low".into(), Attr::Int(low));
        attrs.map.insert("sum_high".into(), Attr::Int(high));
        same.then_some(New { def: here.def, attrs, inputs })
    })
}

/// The sum or product of two tensors of codes, then quantised.
fn paired(net: &Net<'_>, to: &Quantiser) -> Option<New> {
    net.read_once(to.x).then_some(())?;
    let here = net.made_by(to.x, "Add").or_else(|| net.made_by(to.x, "Mul"))?;
    let (a, b) = (codes(net, here.input(0)?)?, codes(net, here.input(1)?)?);
    let def = find(MICROSOFT, if here.def.name == "Add" { "QLinearAdd" } else { "QLinearMul" })?;
    let inputs = [a.v, a.scale, a.zero, b.v, b.scale, b.zero, to.scale, to.zero].map(Some).to_vec();
    Some(New { def, attrs: Attrs::of([]), inputs })
}

/// A function of one tensor of codes, then quantised: a table.
fn looked_up(net: &Net<'_>, to: &Quantiser) -> Result<Option<New>, OpError> {
    let Some((scale, zero)) = affine(net, to.scale, to.zero) else { return Ok(None) };
    // What only goes from codes to codes is no function yet.
    if codes(net, to.x).is_some() {
        return Ok(None);
    }
    let Some((of, reals)) = function(net, to.x, DEEP)? else { return Ok(None) };
    let codes = hone_kernels::quantize::Codes { zero, low: 0, high: 255 };
    let table = reals.as_f32()?.iter().map(|v| i64::from(codes.reference(v / scale))).collect();
    let attrs = Attrs::of([("table", Attr::Ints(table))]);
    Ok(Some(New { def: &internal::LOOKUP, attrs, inputs: vec![Some(of)] }))
}

/// Element-wise operators in a row that are seen as one function.
const DEEP: usize = 8;

/// What `v` is of: one tensor of codes of its shape, and what it is of each code. Whatever lies between, operators on several tensors too,
/// must be element-wise and of nothing else but numbers.
fn function(net: &Net<'_>, v: ValueId, deep: usize) -> Result<Option<(ValueId, Tensor)>, OpError> {
    if let Some(x) = codes(net, v) {
        let Some((scale, zero)) = affine(net, x.scale, x.zero) else { return Ok(None) };
        let (of, table) = match net.maker(x.v).and_then(|i| net.at(i)) {
            Some(h) if std::ptr::eq(h.def, &internal::LOOKUP) => {
                (h.input(0), h.attrs.ints("table")?.map(<[i64]>::to_vec))
            }
            _ => (Some(x.v), Some((0..256).collect())),
        };
        let (Some(of), Some(table)) = (of, table) else { return Ok(None) };
        let reals = table.iter().map(|&q| (q as i32 - zero) as f32 * scale).collect();
        return Ok(net.constant(of).is_none().then_some((of, Tensor::f32(&[256], reals)?)));
    }
    let Some(here) = net.maker(v).and_then(|i| net.at(i)).filter(|h| deep > 0 && h.output() == Some(v)) else {
        return Ok(None);
    };
    let name = here.def.name;
    let unary = super::layout::UNARY.contains(&name) && !name.contains("Quantize") && name != "Cast";
    let binary = super::layout::BROADCAST.contains(&name) && here.def.domain.is_empty();
    if !unary && !binary || net.fact(v).is_none_or(|f| f.dtype != DType::F32) {
        return Ok(None);
    }
    let (mut of, mut operands) = (None, Vec::new());
    for &input in &here.node.inputs {
        let Some(input) = input else {
            operands.push(None);
            continue;
        };
        if let Some(number) = numbers(net, input).filter(|n| n.len() == 1) {
            operands.push(Some(Tensor::f32(&[], vec![number[0] as f32])?));
            continue;
        }
        let Some((x, reals)) = function(net, input, deep - 1)? else { return Ok(None) };
        if *of.get_or_insert(x) != x || net.shape(input) != net.shape(v) {
            return Ok(None);
        }
        operands.push(Some(reals));
    }
    let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
    let Some(of) = of else { return Ok(None) };
    let made = (here.def.reference)(here.attrs, &operands)?.into_iter().next();
    Ok(made.filter(|t| t.dtype() == DType::F32 && t.len() == 256).map(|t| (of, t)))
}

/// The table at node `i` as part of what makes the codes it is of, where nobody else reads them.
fn within(net: &Net<'_>, i: usize) -> Option<New> {
    let here = net.at(i).filter(|h| std::ptr::eq(h.def, &internal::LOOKUP))?;
    let maker = open(net, here.input(0)?).filter(|m| !m.attrs.has("table"))?;
    let mut attrs = (**maker.attrs).clone();
    attrs.map.insert("table".into(), here.attrs.map.get("table")?.clone());
    Some(New { def: maker.def, attrs, inputs: maker.node.inputs.clone() })
}

/// What only moves elements, or takes the greatest, between a tensor of codes and the same scale: on the codes themselves.
fn moved(net: &Net<'_>, to: &Quantiser) -> Option<New> {
    net.read_once(to.x).then_some(())?;
    let here = net.at(net.maker(to.x)?)?;
    let def = match (here.def.domain, here.def.name) {
        ("", "Transpose" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Slice" | "Expand") => {
            here.def
        }
        _ if std::ptr::eq(here.def, &internal::MAX_POOL) => &internal::MAX_POOL,
        _ => return None,
    };
    here.output()?;
    let x = codes(net, here.input(0)?)?;
    let same = affine(net, x.scale, x.zero)? == affine(net, to.scale, to.zero)?;
    let mut inputs = here.node.inputs.clone();
    inputs[0] = Some(x.v);
    same.then_some(New { def, attrs: (**here.attrs).clone(), inputs })
}

/// A convolution or product of codes whose result stays `f32`.
fn floats(net: &mut Net<'_>, i: usize) -> Result<Option<New>, OpError> {
    let Some(sums) = net.at(i).and_then(|h| Sums::of(net, h)).filter(|s| s.takes(net)) else { return Ok(None) };
    let bias = match sums.bias {
        // A dequantised bias is a constant.
        Some(b) if net.constant(b).is_none() => {
            let Some(v) = numbers(net, b) else { return Ok(None) };
            let t = Tensor::f32(&[v.len()], v.into_iter().map(|v| v as f32).collect())?;
            let name = format!("{}.real", net.name(b));
            Some(net.add(name, Fact::constant(Arc::new(t))))
        }
        other => other,
    };
    let def = if sums.conv { &internal::CONV_FLOATS } else { &internal::PRODUCT_FLOATS };
    let inputs = sums.inputs(bias);
    Ok(Some(New { def, attrs: sums.attrs, inputs }))
}
