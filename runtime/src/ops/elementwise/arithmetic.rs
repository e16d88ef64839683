//! Arithmetic on two operands, or on any number.
use hone_gpu::functions::function;
use hone_gpu::map::Element;

use super::super::shape::{broadcast_all, broadcast_indices};
use super::super::{Attrs, Fact, OpDef, OpError, need, record};
use super::walk::{folded, mapped, zipped};
use super::{aligned, alike, broadcast_shape, give_second, paired, pairs};
use crate::autodiff::Backward;
use crate::plan::{Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor};

macro_rules! binary {
    ($konst:ident, $name:literal, $doc:literal, $float:expr, $int:expr, f32: $f32:expr, i64: $i64:expr, i32: $i32:expr,
     vjp: $vjp:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, broadcast_shape, |attrs, inputs| binary(attrs, inputs, $name, $float, $int))
                .kernel(|l| {
                    let (a, b) = (l.shape(0)?, l.shape(1)?);
                    let b = &aligned(l.attrs, a, b)?;
                    match (l.dtype(0), l.dtype(1)) {
                        (Some(DType::F32), Some(DType::F32)) => zipped::<f32, f32, f32, _>(l, $name, a, b, $f32),
                        (Some(DType::I64), Some(DType::I64)) => zipped::<i64, i64, i64, _>(l, $name, a, b, $i64),
                        (Some(DType::I32), Some(DType::I32)) => zipped::<i32, i32, i32, _>(l, $name, a, b, $i32),
                        _ => Ok(None),
                    }
                })
                .gpu(|l| {
                    let (a, b) = (l.shape(0)?, l.shape(1)?);
                    Ok(record::binary(l, $name, a, &aligned(l.attrs, a, b)?))
                })
                .vjp($vjp);
    };
}

binary!(ADD, "Add", "a + b", |a, b| a + b, i128::wrapping_add,
    f32: |a, b| a + b, i64: i64::wrapping_add, i32: i32::wrapping_add, vjp: |b| sum_vjp(b, 1.0));
binary!(SUB, "Sub", "a - b", |a, b| a - b, i128::wrapping_sub,
    f32: |a, b| a - b, i64: i64::wrapping_sub, i32: i32::wrapping_sub, vjp: |b| sum_vjp(b, -1.0));
binary!(MUL, "Mul", "a · b", |a, b| a * b, i128::wrapping_mul,
    f32: |a, b| a * b, i64: i64::wrapping_mul, i32: i32::wrapping_mul, vjp: mul_vjp);
binary!(DIV, "Div", "a / b; integers towards zero, by 0 to 0", |a, b| a / b, |a, b| if b == 0 { 0 } else { a / b },
    f32: |a, b| a / b,
    i64: |a: i64, b: i64| if b == 0 { 0 } else { a.wrapping_div(b) },
    i32: |a: i32, b: i32| if b == 0 { 0 } else { a.wrapping_div(b) }, vjp: div_vjp);

/// a ^ b, of the type of a
pub(super) static POW: OpDef =
    OpDef::new("Pow", "a to the power b, of the type of a", broadcast_shape, |attrs, inputs| {
        let (a, b) = (need(inputs, 0, "X")?, need(inputs, 1, "Y")?);
        let (ia, ib, to) = pairs(attrs, a.shape(), b.shape())?;
        if a.dtype().is_integer() && b.dtype().is_integer() {
            let (x, y) = (a.data().to_i128(), b.data().to_i128());
            let out: Vec<i128> = ia.iter().zip(&ib).map(|(&i, &j)| integer_power(x[i], y[j])).collect();
            return Ok(vec![Tensor::from_i128(a.dtype(), &to, &out)?]);
        }
        let (x, y) = (a.data().to_f64(), b.data().to_f64());
        let out: Vec<f64> = ia.iter().zip(&ib).map(|(&i, &j)| x[i].powf(y[j])).collect();
        Ok(vec![Tensor::from_f64(a.dtype(), &to, &out)?])
    })
    .kernel(|l| {
        let (a, b) = (l.shape(0)?, l.shape(1)?);
        let b = &aligned(l.attrs, a, b)?;
        if l.dtype(0) != Some(DType::F32) {
            return Ok(None);
        }
        // The exponents models are written with, when they are constants.
        if let Some(t) = l.constant(1)
            && t.len() == 1
            && l.output_shape(0) == a
        {
            match t.data().to_f64()[0] {
                1.0 => return Ok(Some(mapped::<f32, f32, _>("Pow", |x| x))),
                2.0 => return Ok(Some(mapped::<f32, f32, _>("Pow", |x| x * x))),
                3.0 => return Ok(Some(mapped::<f32, f32, _>("Pow", |x| x * x * x))),
                -1.0 => return Ok(Some(mapped::<f32, f32, _>("Pow", |x| 1.0 / x))),
                // Unlike `sqrt`, the power of -0 is +0 and that of -∞ is +∞.
                0.5 => {
                    return Ok(Some(mapped::<f32, f32, _>("Pow", |x: f32| {
                        if x == f32::NEG_INFINITY { f32::INFINITY } else { (x + 0.0).sqrt() }
                    })));
                }
                _ => {}
            }
        }
        match l.dtype(1) {
            Some(DType::F32) => zipped::<f32, f32, f32, _>(l, "Pow", a, b, f32::powf),
            Some(DType::I64) => zipped::<f32, i64, f32, _>(l, "Pow", a, b, |x: f32, y: i64| x.powf(y as f32)),
            Some(DType::I32) => zipped::<f32, i32, f32, _>(l, "Pow", a, b, |x: f32, y: i32| x.powf(y as f32)),
            _ => Ok(None),
        }
    })
    .gpu(|l| {
        // WGSL has no power of a negative number; the exponents models are written with need none.
        let Some(t) = l.constant(1).filter(|t| t.len() == 1) else { return Ok(None) };
        let name = match t.data().to_f64()[0] {
            1.0 => "Identity",
            2.0 => "Square",
            3.0 => "Cube",
            -1.0 => "Reciprocal",
            0.5 => "PowHalf",
            _ => return Ok(None),
        };
        if l.output_shape(0) == l.shape(0)? { record::named(l, name, &[]) } else { Ok(None) }
    })
    .vjp(pow_vjp);

/// The power, wrapped; a negative exponent gives the quotient towards zero, and 0 for a base of 0.
fn integer_power(base: i128, exponent: i128) -> i128 {
    match (base, exponent) {
        (1, _) => 1,
        (-1, e) => {
            if e % 2 == 0 {
                1
            } else {
                -1
            }
        }
        (_, e) if e < 0 => 0,
        (b, e) => {
            // Bits beyond 128 wrap away; the squares are taken as often as the exponent has bits.
            let (mut e, mut square, mut out) = (e, b, 1i128);
            while e > 0 {
                if e & 1 == 1 {
                    out = out.wrapping_mul(square);
                }
                square = square.wrapping_mul(square);
                e >>= 1;
            }
            out
        }
    }
}

/// a mod b, with the sign of b, or of a when fmod is set
pub(super) static MOD: OpDef = OpDef::new(
    "Mod",
    "remainder, with the sign of b, or of a when fmod is set; integers by 0 give 0",
    broadcast_shape,
    |attrs, inputs| {
        if attrs.flag("fmod", false)? {
            binary(attrs, inputs, "Mod", |a, b| a % b, |a, b| if b == 0 { 0 } else { a % b })
        } else {
            binary(attrs, inputs, "Mod", floor_mod, |a, b| if b == 0 { 0 } else { ((a % b) + b) % b })
        }
    },
)
.kernel(|l| {
    let (a, b) = (l.shape(0)?, l.shape(1)?);
    let b = &aligned(l.attrs, a, b)?;
    let truncated = l.attrs.flag("fmod", false)?;
    match (l.dtype(0), l.dtype(1), truncated) {
        (Some(DType::F32), Some(DType::F32), true) => zipped::<f32, f32, f32, _>(l, "Mod", a, b, |a, b| a % b),
        (Some(DType::I64), Some(DType::I64), false) => zipped::<i64, i64, i64, _>(l, "Mod", a, b, |a: i64, b: i64| {
            let r = if b == 0 { 0 } else { a.wrapping_rem(b) };
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        }),
        _ => Ok(None),
    }
})
.vjp(mod_vjp);

/// `a - floor(a / b) · b`; a zero takes the sign of `b`.
fn floor_mod(a: f64, b: f64) -> f64 {
    let r = a % b;
    if r == 0.0 {
        r.copysign(b)
    } else if (r < 0.0) != (b < 0.0) {
        r + b
    } else {
        r
    }
}

fn binary(
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    name: &str,
    float: fn(f64, f64) -> f64,
    int: fn(i128, i128) -> i128,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = alike(inputs, name)?;
    let (ia, ib, to) = pairs(attrs, a.shape(), b.shape())?;
    if a.dtype().is_integer() {
        let (x, y) = (a.data().to_i128(), b.data().to_i128());
        let out: Vec<i128> = ia.iter().zip(&ib).map(|(&i, &j)| int(x[i], y[j])).collect();
        return Ok(vec![Tensor::from_i128(a.dtype(), &to, &out)?]);
    }
    if !a.dtype().is_float() {
        return Err(OpError::unsupported(format!("{name} of {}", a.dtype())));
    }
    let (x, y) = (a.data().to_f64(), b.data().to_f64());
    let out: Vec<f64> = ia.iter().zip(&ib).map(|(&i, &j)| float(x[i], y[j])).collect();
    Ok(vec![Tensor::from_f64(a.dtype(), &to, &out)?])
}

macro_rules! variadic {
    ($konst:ident, $name:literal, $doc:literal, $float:expr, $int:expr, f32: $f32:expr, i64: $i64:expr, i32: $i32:expr,
     vjp: $vjp:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, variadic_shape, |_, inputs| variadic(inputs, $name, $float, $int, false))
                .kernel(|l| {
                    let one = |l: &Lowering<'_>, t| (0..l.inputs()).all(|i| l.dtype(i) == Some(t));
                    let pair = l.inputs() == 2;
                    if one(l, DType::F32) && pair {
                        zipped::<f32, f32, f32, _>(l, $name, l.shape(0)?, l.shape(1)?, $f32)
                    } else if one(l, DType::F32) {
                        folded::<f32, _, _>(l, $name, $f32, |x| x)
                    } else if one(l, DType::I64) {
                        folded::<i64, _, _>(l, $name, $i64, |x| x)
                    } else if one(l, DType::I32) {
                        folded::<i32, _, _>(l, $name, $i32, |x| x)
                    } else {
                        Ok(None)
                    }
                })
                .gpu(|l| {
                    if l.inputs() != 2 {
                        return Ok(None);
                    }
                    // Labels of classes are bounded below before they pick anything.
                    if $name == "Max" && (0..2).all(|i| l.dtype(i) == Some(DType::I64)) {
                        let operands = [(0, l.shape(0)?), (1, l.shape(1)?)];
                        return Ok(record::mapped(l, function("MaxInt"), vec![], &operands, Element::I64));
                    }
                    let name = if $name == "Sum" { "Add" } else { $name };
                    Ok(record::binary(l, name, l.shape(0)?, l.shape(1)?))
                })
                .vjp($vjp);
    };
}

variadic!(MIN, "Min", "the smallest of any number of operands; NaN wins", least, Ord::min,
    f32: |a: f32, b: f32| if a < b || a.is_nan() { a } else { b }, i64: Ord::min, i32: Ord::min, vjp: extreme_vjp);
variadic!(MAX, "Max", "the largest of any number of operands; NaN wins", most, Ord::max,
    f32: |a: f32, b: f32| if a > b || a.is_nan() { a } else { b }, i64: Ord::max, i32: Ord::max, vjp: extreme_vjp);
variadic!(SUM, "Sum", "the sum of any number of operands", |a, b| a + b, i128::wrapping_add,
    f32: |a, b| a + b, i64: i64::wrapping_add, i32: i32::wrapping_add, vjp: |b| shared_vjp(b, 1.0));

/// the mean of any number of operands
pub(super) static MEAN: OpDef =
    OpDef::new("Mean", "the mean of any number of operands", variadic_shape, |_, inputs| {
        variadic(inputs, "Mean", |a, b| a + b, i128::wrapping_add, true)
    })
    .kernel(mean_lower)
    .vjp(|b| {
        let n = b.inputs() as f64;
        shared_vjp(b, 1.0 / n)
    });

fn mean_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if !(0..l.inputs()).all(|i| l.dtype(i) == Some(DType::F32)) {
        return Ok(None);
    }
    let n = l.inputs() as f32;
    folded::<f32, _, _>(l, "Mean", |a, b| a + b, move |x| x / n)
}

fn least(a: f64, b: f64) -> f64 {
    if a < b || a.is_nan() { a } else { b }
}

fn most(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

fn variadic_shape(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let first = need(inputs, 0, "data_0")?;
    let to = broadcast_all(inputs.iter().flatten().map(|f| &f.shape[..]))?;
    Ok(Some(vec![Fact::new(first.dtype, to)]))
}

fn variadic(
    inputs: &[Option<&Tensor>],
    name: &str,
    float: fn(f64, f64) -> f64,
    int: fn(i128, i128) -> i128,
    mean: bool,
) -> Result<Vec<Tensor>, OpError> {
    let first = need(inputs, 0, "data_0")?;
    let all: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
    let dtype = first.dtype();
    if let Some(other) = all.iter().find(|t| t.dtype() != dtype || dtype == DType::Bool) {
        return Err(OpError::unsupported(format!("{name} of {dtype} and {}", other.dtype())));
    }
    let to = broadcast_all(all.iter().map(|t| t.shape()))?;
    let from = |t: &Tensor| broadcast_indices(t.shape(), &to);
    if dtype.is_integer() {
        let mut out = pick(&first.data().to_i128(), &from(first)?);
        for t in &all[1..] {
            let v = t.data().to_i128();
            out.iter_mut().zip(from(t)?).for_each(|(o, i)| *o = int(*o, v[i]));
        }
        let n = all.len() as i128;
        out.iter_mut().for_each(|o| *o = if mean { *o / n } else { *o });
        return Ok(vec![Tensor::from_i128(dtype, &to, &out)?]);
    }
    let mut out = pick(&first.data().to_f64(), &from(first)?);
    for t in &all[1..] {
        let v = t.data().to_f64();
        out.iter_mut().zip(from(t)?).for_each(|(o, i)| *o = float(*o, v[i]));
    }
    let n = all.len() as f64;
    out.iter_mut().for_each(|o| *o = if mean { *o / n } else { *o });
    Ok(vec![Tensor::new(&to, Data::from_f64(dtype, &out))?])
}

fn pick<T: Copy>(v: &[T], at: &[usize]) -> Vec<T> {
    at.iter().map(|&i| v[i]).collect()
}

/// Of `a ± b`.
fn sum_vjp(b: &mut Backward<'_>, sign: f64) -> Result<(), OpError> {
    let dy = b.dy()?;
    b.give_unbroadcast(0, dy)?;
    if b.wants(1) {
        let (_, _, aligned, own) = paired(b)?;
        let g = b.unbroadcast(dy, &aligned, &own)?;
        let g = if sign < 0.0 { b.unary("Neg", g)? } else { g };
        b.give(1, g);
    }
    Ok(())
}

fn mul_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, (x, y, aligned, own)) = (b.dy()?, paired(b)?);
    if b.wants(0) {
        let g = b.mul(dy, y)?;
        b.give_unbroadcast(0, g)?;
    }
    if b.wants(1) {
        let g = b.mul(dy, x)?;
        give_second(b, g, &aligned, &own)?;
    }
    Ok(())
}

/// `d(a/b) = da/b - (a/b) db/b`.
fn div_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, (_, divisor, aligned, own)) = (b.dy()?, paired(b)?);
    let g = b.div(dy, divisor)?;
    b.give_unbroadcast(0, g)?;
    if b.wants(1) {
        let y = b.y()?;
        let g = b.mul(g, y)?;
        let g = b.unary("Neg", g)?;
        give_second(b, g, &aligned, &own)?;
    }
    Ok(())
}

/// `d(a^b) = b a^(b-1) da + a^b ln(a) db`; the second is 0 where `a` is not positive.
fn pow_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, (x, exponent, aligned, own)) = (b.dy()?, paired(b)?);
    let dtype = b.dtype(x);
    let power = b.cast(exponent, dtype)?;
    if b.wants(0) {
        let one = b.scalar(dtype, 1.0)?;
        let less = b.sub(power, one)?;
        let slope = b.binary("Pow", x, less)?;
        let slope = b.mul(slope, power)?;
        // The power 0 is constant, also at 0, where the formula is 0 · ∞.
        let zero = b.scalar(dtype, 0.0)?;
        let constant = b.binary("Equal", power, zero)?;
        let varies = b.unary("Not", constant)?;
        let slope = b.only(varies, slope)?;
        let g = b.mul(dy, slope)?;
        b.give_unbroadcast(0, g)?;
    }
    if b.wants(1) {
        let y = b.y()?;
        let zero = b.scalar(dtype, 0.0)?;
        let positive = b.binary("Greater", x, zero)?;
        let log = b.unary("Log", x)?;
        let log = b.only(positive, log)?;
        let g = b.mul(y, log)?;
        let g = b.mul(dy, g)?;
        give_second(b, g, &aligned, &own)?;
    }
    Ok(())
}

/// The remainder is `a - q b` with a quotient `q` that is constant almost everywhere.
fn mod_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let dy = b.dy()?;
    b.give_unbroadcast(0, dy)?;
    if b.wants(1) {
        let (x, divisor, aligned, own) = paired(b)?;
        let y = b.y()?;
        let q = b.sub(y, x)?;
        let q = b.div(q, divisor)?;
        let q = b.unary("Round", q)?;
        let g = b.mul(dy, q)?;
        give_second(b, g, &aligned, &own)?;
    }
    Ok(())
}

/// To every operand the same, times `share`.
fn shared_vjp(b: &mut Backward<'_>, share: f64) -> Result<(), OpError> {
    let dy = b.dy()?;
    let g = b.scaled(dy, share)?;
    (0..b.inputs()).try_for_each(|i| b.give_unbroadcast(i, g))
}

/// To the operands that are the result, in equal parts.
fn extreme_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, y) = (b.dy()?, b.y()?);
    let dtype = b.dtype(y);
    let mut marks = Vec::with_capacity(b.inputs());
    for i in 0..b.inputs() {
        let x = b.x(i)?;
        let equal = b.binary("Equal", x, y)?;
        marks.push(b.indicator(equal, dtype)?);
    }
    let count = b.standard("Sum", [], &marks)?;
    let part = b.div(dy, count)?;
    for (i, mark) in marks.into_iter().enumerate() {
        if b.wants(i) {
            let g = b.mul(part, mark)?;
            b.give_unbroadcast(i, g)?;
        }
    }
    Ok(())
}
