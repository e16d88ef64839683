//! Operators that hold, pass on or bound a value.

use super::super::random::Generator;
use super::super::{Attr, Attrs, Fact, HONE, OpDef, OpError, flat, need, optional, record};
use super::derivative::chained;
use super::walk::{map_on, zipped};
use super::{floats, parameters, same_as_input};
use crate::autodiff::Backward;
use crate::plan::{Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor};

/// x between min and max
pub(super) static CLIP: OpDef =
    OpDef::new("Clip", "x between min and max; the largest and smallest number when not given", same_as_input, clip)
        .kernel(clip_lower)
        .gpu(clip_record)
        .vjp(clip_vjp);

/// `dY` and `Y` to `dX`, between bounds that are attributes. At a bound there are two slopes; the one that is taken is 0, as in
/// PyTorch's ReLU6, because it is known from the result: the operand need not be kept.
static CLIP_VJP: OpDef = OpDef::new("ClipVjp", "gradient of what is between bounds", same_as_input, |attrs, inputs| {
    let [low, high] = bounds(attrs)?.map(f64::from);
    chained(inputs, |y| f64::from(u8::from(low < y && y < high)))
})
.domain(HONE)
.kernel(|l| {
    let [low, high] = bounds(l.attrs)?;
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != l.dtype(0) {
        return Ok(None);
    }
    let f = move |g: f32, y: f32| g * if low < y && y < high { 1.0 } else { 0.0 };
    zipped::<f32, f32, f32, _>(l, "ClipVjp", l.shape(0)?, l.shape(1)?, f)
})
.gpu(|l| record::derivative(l, "ClipVjp", bounds(l.attrs)?.to_vec()));

fn bounds(attrs: &Attrs) -> Result<[f32; 2], OpError> {
    parameters(attrs, [("min", f32::MIN), ("max", f32::MAX)])
}

/// Of what is passed on; a bound that is an input has the gradients of what it bounds.
fn clip_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, y) = (b.dy()?, b.y()?);
    let own = bounds(&b.attrs())?;
    // What is no `f32`, of doubles, would be rounded.
    let exact = |v: f64| (f64::from(v as f32) == v).then_some(v as f32);
    let constant = |i: usize| match b.optional(i + 1) {
        None => (b.fact(y).dtype != DType::F64 || b.attrs().has(["min", "max"][i])).then_some(own[i]),
        Some(v) => b.fact(v).value.as_ref().filter(|t| t.len() == 1).and_then(|t| exact(t.data().to_f64()[0])),
    };
    if let (Some(low), Some(high), false) = (constant(0), constant(1), b.wants(1) || b.wants(2)) {
        let attrs = Attrs::of([("min", Attr::Float(low)), ("max", Attr::Float(high))]);
        let dx = b.one(&CLIP_VJP, attrs, &[Some(dy), Some(y)])?;
        b.give(0, dx);
        return Ok(());
    }
    let x = b.x(0)?;
    if b.wants(0) {
        let kept = b.binary("Equal", x, y)?;
        let dx = b.only(kept, dy)?;
        b.give(0, dx);
    }
    // The lower bound is applied first, so that of two that cross the upper one holds.
    let mut raised = x;
    if let Some(low) = b.optional(1) {
        raised = b.binary("Max", x, low)?;
        if b.wants(1) {
            let shape = b.shape(low).to_vec();
            let (below, stays) = (b.binary("Less", x, low)?, b.binary("Equal", raised, y)?);
            let at = b.binary("And", below, stays)?;
            let g = b.only(at, dy)?;
            let g = b.unbroadcast(g, &shape, &shape)?;
            b.give(1, g);
        }
    }
    if b.wants(2) {
        let high = b.x(2)?;
        let shape = b.shape(high).to_vec();
        let at = b.binary("Greater", raised, high)?;
        let g = b.only(at, dy)?;
        let g = b.unbroadcast(g, &shape, &shape)?;
        b.give(2, g);
    }
    Ok(())
}

/// The bounds: attributes before version 11, then inputs. A bound that is not given is the last finite number.
fn clip(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "input")?;
    let dtype = x.dtype();
    let bound = |index: usize, name: &'static str| match optional(inputs, index) {
        Some(t) if t.dtype() != dtype => {
            Err(OpError::unsupported(format!("Clip of {dtype} with {name} of {}", t.dtype())))
        }
        Some(t) if t.len() != 1 => Err(OpError::shape(name, "one element", t.shape())),
        bound => Ok(bound),
    };
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    if let Some((least, most)) = dtype.range() {
        let of = |t: Option<&Tensor>| t.map(|t| t.data().to_i128()[0]);
        let (low, high) = (of(low).unwrap_or(least), of(high).unwrap_or(most));
        let y: Vec<i128> = x.data().to_i128().into_iter().map(|v| v.max(low).min(high)).collect();
        return Ok(vec![Tensor::from_i128(dtype, x.shape(), &y)?]);
    }
    let most = largest(dtype);
    let of = |t: Option<&Tensor>, name, default: f64| match t {
        Some(t) => Ok(t.data().to_f64()[0]),
        None if attrs.has(name) => Ok(f64::from(attrs.float(name, 0.0)?)),
        None => Ok::<f64, OpError>(default),
    };
    let (low, high) = (of(low, "min", -most)?, of(high, "max", most)?);
    floats(x, "Clip", |v| {
        let v = if v < low { low } else { v };
        if v > high { high } else { v }
    })
}

/// The largest finite number of a float type that `Clip` takes.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MAX,
        DType::F16 => half::f16::MAX.to_f64(),
        DType::BF16 => half::bf16::MAX.to_f64(),
        _ => f64::from(f32::MAX),
    }
}

fn clip_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let mut k = Clip { low: Err(l.attrs.float("min", f32::MIN)?), high: Err(l.attrs.float("max", f32::MAX)?) };
    let mut reads = vec![0];
    for (index, bound) in [(1, &mut k.low), (2, &mut k.high)] {
        if l.has(index) {
            if l.dtype(index) != Some(DType::F32) || l.shape(index)?.iter().product::<usize>() != 1 {
                return Ok(None);
            }
            *bound = Ok(reads.len());
            reads.push(index);
        }
    }
    Ok(Some(Lowered::new(k, reads)))
}

fn clip_record(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let mut bounds = vec![l.attrs.float("min", f32::MIN)?, l.attrs.float("max", f32::MAX)?];
    for (i, bound) in bounds.iter_mut().enumerate() {
        if l.has(i + 1) {
            let Some(t) = l.constant(i + 1).filter(|t| t.dtype() == DType::F32 && t.len() == 1) else {
                return Ok(None);
            };
            *bound = t.as_f32()?[0];
        }
    }
    record::named(l, "Clip", &bounds)
}

/// The bounds: which operand holds it, or its value.
struct Clip {
    low: Result<usize, f32>,
    high: Result<usize, f32>,
}

impl Kernel for Clip {
    fn name(&self) -> &'static str {
        "Clip"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let [low, high] = [self.low, self.high].map(|b| b.map_or_else(|v| v, |operand| reads.f32(operand)[0]));
        map_on(pool, reads.f32(0), writes.f32(0), move |v: f32| {
            let v = if v < low { low } else { v };
            if v > high { high } else { v }
        });
    }
}

/// x; while training, elements of it scaled and the others 0
pub(super) static DROPOUT: OpDef = OpDef::new(
    "Dropout",
    "x; while training, drawn elements of it scaled by 1 / (1 - ratio) and the others 0. Without a seed it is 0",
    |attrs, inputs| {
        let x = need(inputs, 0, "data")?;
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone()), Fact::new(mask_dtype(attrs, x.dtype), x.shape.clone())]))
    },
    dropout,
)
.kernel(|l| {
    let training = l.has(2) && !matches!(l.constant(2).map(|t| t.data()), Some(Data::Bool(v)) if v == &[false]);
    if training || l.wants(1) || trains_by_attribute(l.attrs)? { Ok(None) } else { copied(l) }
})
.vjp(|b| {
    let training = match b.optional(2).map(|v| b.fact(v).value.clone()) {
        None => trains_by_attribute(&b.attrs())?,
        Some(known) => known.is_none_or(|t| t.data().to_i128().first().is_some_and(|&v| v != 0)),
    };
    if training {
        return Err(OpError::unsupported("a gradient through Dropout that drops"));
    }
    let dy = b.dy()?;
    b.give(0, dy);
    Ok(())
});

/// The mask is of booleans since version 10.
fn mask_dtype(attrs: &Attrs, x: DType) -> DType {
    if attrs.opset < 10 { x } else { DType::Bool }
}

/// Before version 7 an attribute said which it is; its default is to train, which no exported model means.
fn trains_by_attribute(attrs: &Attrs) -> Result<bool, OpError> {
    Ok(attrs.opset < 7 && attrs.has("is_test") && !attrs.flag("is_test", true)?)
}

fn dropout(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "data")?;
    let training = match optional(inputs, 2) {
        Some(t) => t.data().to_i128().first().is_some_and(|&v| v != 0),
        None => trains_by_attribute(attrs)?,
    };
    let ratio = match optional(inputs, 1) {
        _ if !training => 0.0,
        Some(t) => match t.data().to_f64()[..] {
            [ratio] => ratio,
            _ => return Err(OpError::shape("ratio", "one element", t.shape())),
        },
        None => f64::from(attrs.float("ratio", 0.5)?),
    };
    let mut kept = vec![true; x.len()];
    let y = if ratio != 0.0 {
        let mut g = Generator::new(attrs.int("seed", 0)? as u32);
        kept.iter_mut().for_each(|k| *k = g.uniform() >= ratio);
        let scale = 1.0 / (1.0 - ratio);
        let y: Vec<f64> =
            x.data().to_f64().iter().zip(&kept).map(|(v, &k)| f64::from(u8::from(k)) * v * scale).collect();
        Tensor::from_f64(x.dtype(), x.shape(), &y)?
    } else {
        x.clone()
    };
    let mask: Vec<i128> = kept.into_iter().map(i128::from).collect();
    Ok(vec![y, Tensor::from_i128(mask_dtype(attrs, x.dtype()), x.shape(), &mask)?])
}

/// x
pub(super) static IDENTITY: OpDef =
    OpDef::new("Identity", "x", same_as_input, |_, inputs| Ok(vec![need(inputs, 0, "input")?.clone()]))
        .kernel(copied)
        .vjp(|b| {
            let dy = b.dy()?;
            b.give(0, dy);
            Ok(())
        });

/// Lowers to a copy of input 0.
pub(super) fn copied(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    Ok(l.dtype(0).map(|_| Lowered::new(Copied, vec![0]).same_bytes(0)))
}

struct Copied;

impl Kernel for Copied {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        writes.bytes(0).copy_from_slice(reads.bytes(0));
    }
}

/// a value of the file
pub(super) static CONSTANT: OpDef = OpDef::new(
    "Constant",
    "a value of the file",
    |attrs, _| {
        let t = constant(attrs)?;
        Ok(Some(vec![Fact::constant(std::sync::Arc::new(t))]))
    },
    |attrs, _| Ok(vec![constant(attrs)?]),
)
.vjp(flat);

fn constant(attrs: &Attrs) -> Result<Tensor, OpError> {
    if let Some(t) = attrs.tensor("value")? {
        return Ok((**t).clone());
    }
    if attrs.has("value_float") {
        return Ok(Tensor::f32(&[], vec![attrs.float("value_float", 0.0)?])?);
    }
    if let Some(v) = attrs.floats("value_floats")? {
        return Ok(Tensor::f32(&[v.len()], v.to_vec())?);
    }
    if attrs.has("value_int") {
        return Ok(Tensor::i64(&[], vec![attrs.int("value_int", 0)?])?);
    }
    if let Some(v) = attrs.ints("value_ints")? {
        return Ok(Tensor::i64(&[v.len()], v.to_vec())?);
    }
    Err(OpError::attribute("value", "is missing, or of strings or sparse, which hone has not"))
}
