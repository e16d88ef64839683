//! Products and convolutions of codes as a plan runs them: channels last, and all that follows done while the sums are at
//! hand. No file has these operators; a pass puts them in the place of `DequantizeLinear` … `QuantizeLinear`.
//!
//! Dimension letters: `K` reduction, `O` channels out (of a product: columns), `P` positions (of a product: rows).
use std::ops::Range;
use std::sync::Arc;

use hone_gpu::codes as gpu;
use hone_gpu::lookup::lookup;
use hone_gpu::pairs;
use hone_kernels::conv::Window;
use hone_kernels::epilogue::{Activation, Epilogue};
use hone_kernels::qgemm::{self, Added, Columns, Problem, Requant};
use hone_kernels::qnhwc;
use hone_kernels::quantize::{Codes, Sum};
use hone_kernels::threads::Pool;

use super::conv::{Conv as Integers, to_channels_last, to_channels_second};
use super::matmul::MATMUL_INTEGER_TO_FLOAT;
use super::product::{Weights, sums_of};
use super::tables::{self, Table, Unary, affine};
use super::{Affine, coded, codes, fact, round_to, single};
use crate::ops::conv::{Conv, activation};
use crate::ops::internal::{DOMAIN, first, last};
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, need, optional};
use crate::plan::{At, Grid, Io, Kept, Kernel, Lines, Lowered, Lowering, Reads, Recorded, bytes};
use crate::tensor::{DType, Data, Tensor};

/// Where the operands are: codes `x`, their scale and zero point, `i8` weights, their scales (one, or one a channel out).
const X: usize = 0;
const X_SCALE: usize = 1;
const X_ZERO: usize = 2;
const W: usize = 3;
const W_SCALE: usize = 4;
/// Of what makes codes: `i32` in units of both scales. Of what makes floats: `f32`.
pub(crate) const BIAS: usize = 5;
/// Of what makes floats: a tensor to add before the activation.
pub(crate) const RESIDUAL: usize = 6;
/// Of what makes codes: scale of the result, then its zero point.
const Y_SCALE: usize = 6;
/// Of what makes codes: other codes to add, their scale, then their zero point; scale of the sum, then its zero point.
pub(crate) const OTHER: usize = 8;
const OTHER_SCALE: usize = 9;
const SUM_SCALE: usize = 11;

/// `requantise(Σ (x - x_zero) w + bias)`, within `low..=high`; then `table`; then the requantised sum with other codes, within
/// `sum_low..=sum_high`.
pub(crate) static CONV_CODES: OpDef =
    OpDef::new("ConvCodes", "convolution of codes, channels last, and what follows", conv_shape, |attrs, inputs| {
        let (shape, sums) = conv_sums(attrs, inputs)?;
        to_codes(attrs, inputs, &shape, &sums)
    })
    .domain(DOMAIN)
    .kernel(|l| lower_codes(l, Form::conv))
    .gpu(|l| record_codes(l, OnGpu::conv));

/// `activation((Σ (x - x_zero) w) · x_scale · w_scale + bias + residual)`.
pub(crate) static CONV_FLOATS: OpDef = OpDef::new(
    "ConvFloats",
    "convolution of codes, channels last, as floats, and what follows",
    |attrs, inputs| {
        Ok(conv_shape(attrs, inputs)?.map(|l| l.into_iter().map(|f| Fact::new(DType::F32, f.shape)).collect()))
    },
    |attrs, inputs| {
        let (shape, sums) = conv_sums(attrs, inputs)?;
        to_floats(attrs, inputs, &shape, &sums)
    },
)
.domain(DOMAIN)
.kernel(|l| lower_floats(l, Form::conv))
.gpu(|l| record_floats(l, OnGpu::conv));

/// As [`CONV_CODES`] for `x: [..., K]` and `w: [K, O]`, or `[O, K]` with `transB`.
pub(crate) static PRODUCT_CODES: OpDef =
    OpDef::new("ProductCodes", "matrix product of codes, and what follows", product_shape, |attrs, inputs| {
        let (shape, sums) = product_sums(attrs, inputs)?;
        to_codes(attrs, inputs, &shape, &sums)
    })
    .domain(DOMAIN)
    .kernel(|l| lower_codes(l, Form::product))
    .gpu(|l| record_codes(l, OnGpu::product));

/// As [`CONV_FLOATS`] for a matrix product.
pub(crate) static PRODUCT_FLOATS: OpDef = OpDef::new(
    "ProductFloats",
    "matrix product of codes, as floats, and what follows",
    |attrs, inputs| {
        Ok(product_shape(attrs, inputs)?.map(|l| l.into_iter().map(|f| Fact::new(DType::F32, f.shape)).collect()))
    },
    |attrs, inputs| {
        let (shape, sums) = product_sums(attrs, inputs)?;
        to_floats(attrs, inputs, &shape, &sums)
    },
)
.domain(DOMAIN)
.kernel(|l| lower_floats(l, Form::product))
.gpu(|l| record_floats(l, OnGpu::product));

/// `MatMulIntegerToFloat`, then `activation(… + residual)`; the residual is the operand after the bias.
pub(crate) static PRODUCT_SCALED: OpDef = OpDef::new(
    "ProductScaled",
    "matrix product of codes whose scale is computed, as floats, and what follows",
    MATMUL_INTEGER_TO_FLOAT.shape,
    |attrs, inputs| {
        let y = (MATMUL_INTEGER_TO_FLOAT.reference)(attrs, &inputs[..inputs.len().min(SCALED_RESIDUAL)])?;
        let residual = optional(inputs, SCALED_RESIDUAL).map_or(Ok(&[][..]), Tensor::as_f32)?;
        let activation = activation(attrs)?;
        let finish = |t: &Tensor| {
            let more = |i: usize| f64::from(*residual.get(i).unwrap_or(&0.0));
            let v = t.as_f32()?.iter().enumerate();
            Ok(Tensor::f32(t.shape(), v.map(|(i, v)| activation.reference(f64::from(*v) + more(i)) as f32).collect())?)
        };
        y.iter().map(finish).collect()
    },
)
.domain(DOMAIN)
.kernel(super::product::to_float)
.gpu(super::product::to_float_recorded);

/// Where bias and residual of [`PRODUCT_SCALED`] are.
pub(crate) const SCALED_BIAS: usize = 6;
pub(crate) const SCALED_RESIDUAL: usize = 7;

/// `table[x]`: any function of one tensor of codes.
pub(crate) static LOOKUP: OpDef = OpDef::new(
    "Lookup",
    "a function of codes by its table",
    |_, inputs| {
        let x = need(inputs, 0, "x")?;
        fact(DType::U8, x.shape.clone())
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "x")?;
        let table = table(attrs)?.ok_or_else(|| OpError::attribute("table", "is missing"))?;
        let q: Vec<i32> = codes(x, "x")?.into_iter().map(|q| i32::from(table[q as usize])).collect();
        Ok(vec![coded(DType::U8, x.shape(), &q)?])
    },
)
.domain(DOMAIN)
.kernel(|l| {
    let Some(table) = table(l.attrs)?.filter(|_| l.dtype(0) == Some(DType::U8)) else { return Ok(None) };
    Ok(Some(Lowered::new(Unary { table }, vec![0])))
})
.gpu(|l| {
    let Some(table) = table(l.attrs)?.filter(|_| l.dtype(0) == Some(DType::U8)) else { return Ok(None) };
    let call = lookup(elements(l.shape(0)?)?);
    Ok(Recorded::one(call, vec![At::In(0), At::bytes(table.to_vec()), At::Out(0)]))
});

/// The attribute `table`.
fn table(attrs: &Attrs) -> Result<Option<Table>, OpError> {
    let Some(v) = attrs.ints("table")? else { return Ok(None) };
    let v: Option<Vec<u8>> = v.iter().map(|&q| u8::try_from(q).ok()).collect();
    let v: Option<Table> = v.and_then(|v| v.try_into().ok());
    v.map(Some).ok_or_else(|| OpError::attribute("table", "is not of 256 bytes"))
}

/// Whether a convolution of codes `x: [N, C, …]` with `w` has a kernel here.
pub(crate) fn takes(attrs: &Attrs, x: &[usize], w: &[usize]) -> bool {
    let Ok(c) = Conv::of(attrs, x, w, None) else { return false };
    let Some(window) = c.geometry.window() else { return false };
    qnhwc::supports(&window, c.c * c.groups, c.groups) && (!depthwise(&c) || window.taps() <= qnhwc::DEPTHWISE_TAPS)
}

fn depthwise(c: &Conv) -> bool {
    c.c == 1 && c.groups > 1 && c.o == c.groups
}

fn conv_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, w) = (need(inputs, X, "x")?, need(inputs, W, "w")?);
    fact(DType::U8, last(&Integers::of(attrs, &first(&x.shape), &w.shape)?.shape()))
}

fn product_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, w) = (need(inputs, X, "x")?, need(inputs, W, "w")?);
    let (_, n) = sides(attrs, &x.shape, &w.shape)?;
    fact(DType::U8, [&x.shape[..x.shape.len() - 1], &[n]].concat())
}

/// `K` and `O` of a product.
fn sides(attrs: &Attrs, x: &[usize], w: &[usize]) -> Result<(usize, usize), OpError> {
    let (k, n) = match (w, attrs.flag("transB", false)?) {
        (&[k, n], false) | (&[n, k], true) => (k, n),
        _ => return Err(OpError::shape("weights of a product", "a matrix", w)),
    };
    if x.last() != Some(&k) {
        return Err(OpError::shape("x of a product", format!("[..., {k}]"), x));
    }
    Ok((k, n))
}

/// Shape of the result and the sums of a convolution, channels last.
fn conv_sums(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<(Vec<usize>, Vec<i32>), OpError> {
    let (x, w) = (to_channels_second(need(inputs, X, "x")?)?, need(inputs, W, "w")?);
    let c = Integers::of(attrs, x.shape(), w.shape())?;
    let y = c.integers(&x, w, Some(need(inputs, X_ZERO, "x_zero")?), None)?;
    let y = to_channels_last(&Tensor::new(&c.shape(), Data::I32(y))?)?;
    Ok((y.shape().to_vec(), codes(&y, "sums")?))
}

fn product_sums(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<(Vec<usize>, Vec<i32>), OpError> {
    let (x, w) = (need(inputs, X, "x")?, need(inputs, W, "w")?);
    let (k, n) = sides(attrs, x.shape(), w.shape())?;
    let (zero, turned) = (single(need(inputs, X_ZERO, "x_zero")?, "x")? as i32, attrs.flag("transB", false)?);
    let (xs, ws) = (codes(x, "x")?, codes(w, "w")?);
    let rows = xs.len().checked_div(k).unwrap_or(0);
    let at = |kk: usize, j: usize| if turned { j * k + kk } else { kk * n + j };
    let mut y = vec![0i32; rows * n];
    for (i, y) in y.iter_mut().enumerate() {
        let (r, j) = (i / n, i % n);
        *y = (0..k).fold(0i32, |s, kk| s.wrapping_add((xs[r * k + kk] - zero).wrapping_mul(ws[at(kk, j)])));
    }
    Ok(([&x.shape()[..x.shape().len() - 1], &[n]].concat(), y))
}

/// `x_scale · w_scale` a channel out.
fn scales(x: &Tensor, w: &Tensor, o: usize) -> Result<Vec<f32>, OpError> {
    let (x, w) = (single(x, "x")? as f32, w.data().to_f64());
    if w.len() != 1 && w.len() != o {
        return Err(OpError::shape("scales of the weights", format!("one, or {o}"), w.len()));
    }
    Ok((0..o).map(|j| x * w[if w.len() == 1 { 0 } else { j }] as f32).collect())
}

/// An attribute that is a code.
fn limit(attrs: &Attrs, name: &str, default: i64) -> Result<i32, OpError> {
    Ok(attrs.int(name, default)?.clamp(0, 255) as i32)
}

fn to_codes(attrs: &Attrs, inputs: &[Option<&Tensor>], shape: &[usize], sums: &[i32]) -> Result<Vec<Tensor>, OpError> {
    let o = shape.last().copied().unwrap_or(1);
    let scale = scales(need(inputs, X_SCALE, "x_scale")?, need(inputs, W_SCALE, "w_scale")?, o)?;
    let y = Affine::of(inputs, Y_SCALE, "y")?;
    let bias = optional(inputs, BIAS).map_or(Ok(vec![0; o]), |b| codes(b, "bias"))?;
    let range = (limit(attrs, "low", 0)?, limit(attrs, "high", 255)?);
    let table = table(attrs)?;
    let mut q: Vec<i32> = sums
        .iter()
        .enumerate()
        .map(|(i, &s)| round_to(s.wrapping_add(bias[i % o]) as f32 * (scale[i % o] / y.scale), y.zero, range))
        .map(|q| table.map_or(q, |t| i32::from(t[q as usize])))
        .collect();
    if let Some(z) = optional(inputs, OTHER) {
        let (other, sum) = (Affine::of(inputs, OTHER_SCALE, "other")?, Affine::of(inputs, SUM_SCALE, "sum")?);
        let range = (limit(attrs, "sum_low", 0)?, limit(attrs, "sum_high", 255)?);
        for (q, z) in q.iter_mut().zip(codes(z, "other")?) {
            *q = round_to((y.real(*q) + other.real(z)) / sum.scale, sum.zero, range);
        }
    }
    Ok(vec![coded(DType::U8, shape, &q)?])
}

fn to_floats(attrs: &Attrs, inputs: &[Option<&Tensor>], shape: &[usize], sums: &[i32]) -> Result<Vec<Tensor>, OpError> {
    let o = shape.last().copied().unwrap_or(1);
    let scale = scales(need(inputs, X_SCALE, "x_scale")?, need(inputs, W_SCALE, "w_scale")?, o)?;
    let bias = optional(inputs, BIAS).map_or(Ok(&[][..]), Tensor::as_f32)?;
    let residual = optional(inputs, RESIDUAL).map_or(Ok(&[][..]), Tensor::as_f32)?;
    let activation = activation(attrs)?;
    let one = |(i, &s): (usize, &i32)| {
        let x = s as f32 * scale[i % o] + bias.get(i % o).unwrap_or(&0.0) + residual.get(i).unwrap_or(&0.0);
        activation.reference(f64::from(x)) as f32
    };
    Ok(vec![Tensor::f32(shape, sums.iter().enumerate().map(one).collect())?])
}

/// Where the weights of a group are.
#[derive(Clone, Copy)]
enum Lies {
    /// `[O, C, taps]` of so many channels out of a group, channels in and taps; the channels are innermost in the sum.
    Conv(usize, usize, usize),
    /// Row after row of so many, or column after column.
    Rows(usize),
    Columns(usize),
}

impl Lies {
    fn at(self, g: usize, k: usize, j: usize) -> usize {
        match self {
            Lies::Conv(og, cg, taps) => ((g * og + j) * cg + k % cg) * taps + k / cg,
            Lies::Rows(n) => k * n + j,
            Lies::Columns(len) => j * len + k,
        }
    }

    fn numbers(self) -> [usize; 4] {
        match self {
            Lies::Conv(og, cg, taps) => [0, og, cg, taps],
            Lies::Rows(n) => [1, n, 0, 0],
            Lies::Columns(len) => [2, len, 0, 0],
        }
    }

    /// Those of a product.
    fn product(l: &Lowering<'_>, k: usize, n: usize) -> Result<Lies, OpError> {
        Ok(if l.attrs.flag("transB", false)? { Lies::Columns(k) } else { Lies::Rows(n) })
    }
}

/// What is summed, with the weights packed.
enum Form {
    Conv { conv: Conv, window: Window, w: Weights },
    Depthwise { conv: Conv, window: Window, w: Arc<Kept<i16>> },
    Product { m: usize, k: usize, n: usize, w: Weights },
}

impl Form {
    /// With the sums of the weights of each channel out.
    fn conv(l: &Lowering<'_>, weights: &Arc<Tensor>) -> Result<Option<(Form, Sums)>, OpError> {
        let conv = Conv::of(l.attrs, &first(l.shape(X)?), l.shape(W)?, None)?;
        let Some(window) = conv.geometry.window() else { return Ok(None) };
        let (taps, cg, og) = (window.taps(), conv.c, conv.o / conv.groups);
        let (lies, sizes) = (Lies::Conv(og, cg, taps), (conv.groups, og, cg * taps));
        let (numbers, at) = (lies.numbers(), move |g, k, j| lies.at(g, k, j));
        let sums = sums_of(l, weights, 0, sizes, &numbers, at);
        if depthwise(&conv) {
            let (channels, len, from) = (conv.o, qnhwc::depthwise_len(taps, conv.o), weights.clone());
            let w = l.packed("depthwise codes", &[weights], &[taps, channels], len, move || {
                let (weights, mut w) = (bytes(&from), vec![0; len]);
                qnhwc::pack_depthwise(taps, channels, |tap, c| weights[c * taps + tap], &mut w);
                w
            });
            return Ok(Some((Form::Depthwise { conv, window, w }, sums)));
        }
        let w = Weights::of(l, weights, 0, sizes, &numbers, at);
        Ok(Some((Form::Conv { conv, window, w }, sums)))
    }

    fn product(l: &Lowering<'_>, weights: &Arc<Tensor>) -> Result<Option<(Form, Sums)>, OpError> {
        let (k, n) = sides(l.attrs, l.shape(X)?, l.shape(W)?)?;
        let m = l.shape(X)?.iter().product::<usize>().checked_div(k).unwrap_or(0);
        let lies = Lies::product(l, k, n)?;
        let (numbers, at) = (lies.numbers(), move |g, k, j| lies.at(g, k, j));
        let sums = sums_of(l, weights, 0, (1, n, k), &numbers, at);
        Ok(Some((Form::Product { m, k, n, w: Weights::of(l, weights, 0, (1, n, k), &numbers, at) }, sums)))
    }

    fn bytes(&self) -> usize {
        match self {
            Form::Conv { w, .. } | Form::Product { w, .. } => w.bytes(),
            Form::Depthwise { w, .. } => 2 * w.len(),
        }
    }
}

/// Sums of the weights of each channel out.
type Sums = Arc<Kept<i32>>;

type Pack = fn(&Lowering<'_>, &Arc<Tensor>) -> Result<Option<(Form, Sums)>, OpError>;

/// The sums on a GPU: into scratch, of so many columns, with whole offsets that count the bias.
struct OnGpu {
    sums: Recorded,
    at: At,
    elements: usize,
    scale: Vec<f32>,
}

type RecordSums = fn(&Lowering<'_>, &Arc<Tensor>, u8, &[i32]) -> Result<Option<(Recorded, At, usize)>, OpError>;

impl OnGpu {
    fn of(l: &Lowering<'_>, sums: RecordSums, columns: usize) -> Result<Option<OnGpu>, OpError> {
        let (Some(x_scale), Some(x_zero)) = (l.constant(X_SCALE), l.constant(X_ZERO)) else { return Ok(None) };
        let (Some(w), Some(w_scale)) = (l.constant(W), l.constant(W_SCALE)) else { return Ok(None) };
        if (w.dtype(), l.dtype(X)) != (DType::I8, Some(DType::U8)) {
            return Ok(None);
        }
        let bias = match (l.has(BIAS), l.constant(BIAS)) {
            (true, Some(b)) if b.dtype() == DType::I32 && b.len() == columns => codes(b, "bias")?,
            (true, Some(b)) if b.dtype() == DType::F32 => vec![0; columns],
            (true, _) => return Ok(None),
            (false, _) => vec![0; columns],
        };
        let zero = single(x_zero, "x")? as u8;
        let Some((sums, at, elements)) = sums(l, w, zero, &bias)? else { return Ok(None) };
        Ok(Some(OnGpu { sums, at, elements, scale: scales(x_scale, w_scale, columns)? }))
    }

    fn conv(
        l: &Lowering<'_>,
        weights: &Arc<Tensor>,
        zero: u8,
        bias: &[i32],
    ) -> Result<Option<(Recorded, At, usize)>, OpError> {
        let c = Conv::of(l.attrs, &first(l.shape(X)?), l.shape(W)?, None)?;
        let Some(window) = c.geometry.window() else { return Ok(None) };
        let (taps, og, cg) = (window.taps(), c.o / c.groups, c.c);
        let elements = c.n * window.positions() * c.o;
        let mut out = Recorded::default();
        let sums = out.scratch(4 * elements);
        if depthwise(&c) {
            let (o, from) = (c.o, weights.clone());
            let len = (taps * o).next_multiple_of(4);
            let w = l.image("gpu depthwise codes", &[weights], &[taps, o], len, move || {
                let mut w: Vec<u8> = (0..taps * o).map(|i| bytes(&from)[i % o * taps + i / o] as u8).collect();
                w.resize(len, 0);
                w
            });
            let call = gpu::Spread { window, batch: c.n, channels: c.o, zero }.call();
            let offset = At::bytes(bias.iter().flat_map(|b| b.to_le_bytes()).collect());
            return Ok(out.and(call, vec![At::In(X), w, offset, sums.clone()]).map(|r| (r, sums, elements)));
        }
        let product = gpu::Sums {
            m: c.n * window.positions(),
            n: og,
            k: cg * taps,
            signed: false,
            left: gpu::Left::Window { window, channels: cg, groups: c.groups },
            zero: gpu::Zero::Known(zero),
        };
        let lies = Lies::Conv(og, cg, taps);
        Ok(OnGpu::sums(l, weights, out, sums, product, zero, bias, c.groups, lies).map(|(r, a)| (r, a, elements)))
    }

    fn product(
        l: &Lowering<'_>,
        weights: &Arc<Tensor>,
        zero: u8,
        bias: &[i32],
    ) -> Result<Option<(Recorded, At, usize)>, OpError> {
        let (k, n) = sides(l.attrs, l.shape(X)?, l.shape(W)?)?;
        let lies = Lies::product(l, k, n)?;
        let m = l.shape(X)?.iter().product::<usize>().checked_div(k).unwrap_or(0);
        let mut out = Recorded::default();
        let sums = out.scratch(4 * m * n);
        let (left, zero_at) = (gpu::Left::Matrix, gpu::Zero::Known(zero));
        let product = gpu::Sums { m, n, k, signed: false, left, zero: zero_at };
        Ok(OnGpu::sums(l, weights, out, sums, product, zero, bias, 1, lies).map(|(r, a)| (r, a, m * n)))
    }

    fn sums(
        l: &Lowering<'_>,
        weights: &Arc<Tensor>,
        out: Recorded,
        sums: At,
        s: gpu::Sums,
        zero: u8,
        bias: &[i32],
        groups: usize,
        lies: Lies,
    ) -> Option<(Recorded, At)> {
        let run = if let gpu::Left::Window { channels, .. } = s.left { channels } else { s.k };
        let (k, n, from) = (s.k, s.n, weights.clone());
        let numbers = [&[groups, k, n, run][..], &lies.numbers()].concat();
        let w = l.image("gpu codes", &[weights], &numbers, groups * gpu::packed_len(k, run, n), move || {
            let w = bytes(&from);
            (0..groups).flat_map(|g| gpu::pack(k, run, n, |k, j| w[lies.at(g, k, j)])).collect()
        });
        let of_columns = sums_of(l, weights, 0, (groups, n, k), &lies.numbers(), move |g, k, j| lies.at(g, k, j));
        let factor = gpu::factor(false, zero);
        let offset = of_columns.iter().zip(bias).map(|(sum, b)| sum.wrapping_mul(factor).wrapping_add(*b));
        let offset = At::bytes(offset.flat_map(i32::to_le_bytes).collect());
        let operands = vec![At::In(X), w, offset, sums.clone()];
        out.and(s.call(), operands).map(|r| (r, sums))
    }
}

/// Bytes as weights of whole words.
fn words(mut bytes: Vec<u8>) -> At {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    At::bytes(bytes)
}

fn columns_of(l: &Lowering<'_>) -> usize {
    l.output_shape(0).last().copied().unwrap_or(1)
}

fn record_codes(l: &Lowering<'_>, sums: RecordSums) -> Result<Option<Recorded>, OpError> {
    let columns = columns_of(l);
    let Some(OnGpu { sums, at, elements, mut scale }) = OnGpu::of(l, sums, columns)? else { return Ok(None) };
    let Some(y) = affine(l, Y_SCALE)? else { return Ok(None) };
    scale.iter_mut().for_each(|s| *s /= y.scale);
    let codes = (y.zero, limit(l.attrs, "low", 0)?, limit(l.attrs, "high", 255)?);
    let table = table(l.attrs)?;
    let mut operands = vec![at, At::floats(&scale)];
    operands.extend(table.map(|t| words(t.to_vec())));
    let mut added = None;
    if l.has(OTHER) {
        let (Some(other), Some(to)) = (affine(l, OTHER_SCALE)?, affine(l, SUM_SCALE)?) else { return Ok(None) };
        let limits = (limit(l.attrs, "sum_low", 0)?, limit(l.attrs, "sum_high", 255)?);
        let s = tables::sum(y, other, to, limits);
        added = Some((s.codes.zero, s.codes.low, s.codes.high));
        operands.extend([At::In(OTHER), At::floats(&pairs::table(&s, false))]);
    }
    operands.push(At::Out(0));
    let of = gpu::Of::Codes { codes, table: table.is_some(), added };
    Ok(sums.and(gpu::Finish { elements, columns, of }.call(), operands))
}

fn record_floats(l: &Lowering<'_>, sums: RecordSums) -> Result<Option<Recorded>, OpError> {
    let columns = columns_of(l);
    if [BIAS, RESIDUAL].into_iter().any(|i| l.has(i) && l.dtype(i) != Some(DType::F32)) {
        return Ok(None);
    }
    let Some(OnGpu { sums, at, elements, scale }) = OnGpu::of(l, sums, columns)? else { return Ok(None) };
    let (bias, residual) = (l.has(BIAS), l.has(RESIDUAL));
    let of = gpu::Of::Floats { factor: false, bias, residual, activation: activation(l.attrs)? };
    let mut operands = vec![at, At::floats(&scale)];
    operands.extend([BIAS, RESIDUAL].into_iter().filter(|&i| l.has(i)).map(At::In));
    operands.push(At::Out(0));
    Ok(sums.and(gpu::Finish { elements, columns, of }.call(), operands))
}

/// What both results have in common.
struct Work {
    form: Form,
    /// The code of 0 of `x`.
    zero: u8,
    offset: Vec<i32>,
    scale: Vec<f32>,
}

impl Work {
    /// The offsets without a bias, the scales of the sums.
    fn of(l: &Lowering<'_>, pack: Pack) -> Result<Option<Work>, OpError> {
        let (Some(x_scale), Some(x_zero)) = (l.constant(X_SCALE), l.constant(X_ZERO)) else { return Ok(None) };
        let (Some(w), Some(w_scale)) = (l.constant(W), l.constant(W_SCALE)) else { return Ok(None) };
        if (w.dtype(), l.dtype(X)) != (DType::I8, Some(DType::U8)) {
            return Ok(None);
        }
        let Some((form, sums)) = pack(l, w)? else { return Ok(None) };
        let zero = single(x_zero, "x")? as i32;
        let offset: Vec<i32> = sums.iter().map(|s| 0i32.wrapping_sub(zero.wrapping_mul(*s))).collect();
        let scale = scales(x_scale, w_scale, offset.len())?;
        Ok(Some(Work { form, zero: zero as u8, offset, scale }))
    }

    fn columns(&self) -> Columns<'_> {
        Columns { offset: &self.offset, scale: &self.scale }
    }

    fn bytes(&self) -> usize {
        self.form.bytes() + 8 * self.offset.len()
    }
}

fn lower_codes(l: &Lowering<'_>, pack: Pack) -> Result<Option<Lowered>, OpError> {
    let Some(mut work) = Work::of(l, pack)? else { return Ok(None) };
    let Some(y) = affine(l, Y_SCALE)? else { return Ok(None) };
    if l.has(BIAS) {
        let Some(bias) = l.constant(BIAS).filter(|b| b.len() == work.offset.len()) else { return Ok(None) };
        work.offset.iter_mut().zip(codes(bias, "bias")?).for_each(|(o, b)| *o = o.wrapping_add(b));
    }
    work.scale.iter_mut().for_each(|s| *s /= y.scale);
    let code = Codes { zero: y.zero, low: limit(l.attrs, "low", 0)?, high: limit(l.attrs, "high", 255)? };
    let mut reads = vec![X];
    let mut sum = None;
    if l.has(OTHER) {
        let (Some(other), Some(to)) = (affine(l, OTHER_SCALE)?, affine(l, SUM_SCALE)?) else { return Ok(None) };
        let limits = (limit(l.attrs, "sum_low", 0)?, limit(l.attrs, "sum_high", 255)?);
        sum = Some(tables::sum(y, other, to, limits));
        reads.push(OTHER);
    }
    let bytes = work.bytes();
    let k = ToCodes { work, codes: code, table: table(l.attrs)?.map(Box::new), sum };
    Ok(Some(Lowered::new(k, reads).with_weights(bytes)))
}

struct ToCodes {
    work: Work,
    codes: Codes,
    table: Option<Box<Table>>,
    sum: Option<Sum>,
}

impl Kernel for ToCodes {
    fn name(&self) -> &'static str {
        match self.work.form {
            Form::Conv { .. } => "conv-codes-q8",
            Form::Depthwise { .. } => "depthwise-codes-q8",
            Form::Product { .. } => "gemm-codes-q8",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let add = self.sum.map(|sum| Added { residual: reads.bytes(1), sum });
        let requant = Requant { codes: self.codes, table: self.table.as_deref(), add };
        let (x, y) = (reads.bytes(0), writes.bytes(0));
        match &self.work.form {
            Form::Conv { conv, window, .. } | Form::Depthwise { conv, window, .. } => {
                self.convolve(*window, conv.n, x, &requant, pool, y);
            }
            &Form::Product { m, k, n, ref w } => {
                let problem = Problem { m, k, n, a: x, a_stride: k, b: w.right() };
                qgemm::product_codes(pool, &problem, &self.work.columns(), &requant, y);
            }
        }
    }

    fn lines(&self) -> Option<&dyn Lines> {
        (self.window()?.is_flat() && self.sum.is_none()).then_some(self)
    }
}

impl Lines for ToCodes {
    fn grid(&self) -> Grid {
        let (Form::Conv { conv: c, window, .. } | Form::Depthwise { conv: c, window, .. }) = &self.work.form else {
            return Grid { images: 0, result: [0; 2], operand: [0; 2] };
        };
        Grid::of(window, c.n, c.c * c.groups, c.o)
    }

    fn meets(&self, of: Range<usize>) -> Range<usize> {
        self.window().map_or(0..0, |w| w.lines(of))
    }

    fn make(&self, of: Range<usize>, x: &[u8], _: &Reads<'_>, pool: &Pool, y: &mut [u8]) {
        let requant = Requant { codes: self.codes, table: self.table.as_deref(), add: None };
        if let Some(window) = self.window() {
            self.convolve(window.part(of), 1, x, &requant, pool, y);
        }
    }
}

impl ToCodes {
    /// How a convolution slides.
    fn window(&self) -> Option<&Window> {
        match &self.work.form {
            Form::Conv { window, .. } | Form::Depthwise { window, .. } => Some(window),
            Form::Product { .. } => None,
        }
    }

    fn convolve(&self, window: Window, batch: usize, x: &[u8], requant: &Requant<'_>, pool: &Pool, y: &mut [u8]) {
        let (zero, columns) = (self.work.zero, self.work.columns());
        match &self.work.form {
            Form::Conv { conv: c, w, .. } => {
                qnhwc::conv_codes(pool, &conv_of(c, window, batch, x, zero, w, columns), requant, y);
            }
            Form::Depthwise { conv: c, w, .. } => {
                let d = qnhwc::Depthwise { window, batch, channels: c.o, x, zero, w, columns };
                qnhwc::depthwise_codes(pool, &d, requant, y);
            }
            Form::Product { .. } => {}
        }
    }
}

fn conv_of<'a>(
    c: &Conv,
    window: Window,
    batch: usize,
    x: &'a [u8],
    zero: u8,
    w: &'a Weights,
    columns: Columns<'a>,
) -> qnhwc::Conv<'a> {
    qnhwc::Conv {
        window,
        batch,
        channels: c.c * c.groups,
        outputs: c.o,
        groups: c.groups,
        x,
        zero,
        w: w.right(),
        columns,
    }
}

fn lower_floats(l: &Lowering<'_>, pack: Pack) -> Result<Option<Lowered>, OpError> {
    let Some(work) = Work::of(l, pack)? else { return Ok(None) };
    let mut reads = vec![X];
    let mut slot = |i: usize| {
        l.has(i).then(|| {
            reads.push(i);
            reads.len() - 1
        })
    };
    let (bias, residual) = (slot(BIAS), slot(RESIDUAL));
    if [BIAS, RESIDUAL].into_iter().any(|i| l.has(i) && l.dtype(i) != Some(DType::F32)) {
        return Ok(None);
    }
    let bytes = work.bytes();
    let k = ToFloats { work, bias, residual, activation: activation(l.attrs)? };
    Ok(Some(Lowered::new(k, reads).with_weights(bytes)))
}

struct ToFloats {
    work: Work,
    bias: Option<usize>,
    residual: Option<usize>,
    activation: Activation,
}

impl Kernel for ToFloats {
    fn name(&self) -> &'static str {
        if matches!(self.work.form, Form::Product { .. }) { "gemm-floats-q8" } else { "conv-floats-q8" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let bias = self.bias.map(|i| reads.f32(i));
        let residual = self.residual.map(|i| reads.f32(i));
        let epilogue = Epilogue { residual, after: false, activation: self.activation };
        let (x, y, zero, columns) = (reads.bytes(0), writes.f32(0), self.work.zero, self.work.columns());
        match &self.work.form {
            Form::Conv { conv: c, window, w } => {
                qnhwc::conv_floats(pool, &conv_of(c, *window, c.n, x, zero, w, columns), bias, &epilogue, y);
            }
            Form::Depthwise { conv: c, window, w } => {
                let d = qnhwc::Depthwise { window: *window, batch: c.n, channels: c.o, x, zero, w, columns };
                qnhwc::depthwise_floats(pool, &d, bias, &epilogue, y);
            }
            &Form::Product { m, k, n, ref w } => {
                qgemm::product_floats(
                    pool,
                    &Problem { m, k, n, a: x, a_stride: k, b: w.right() },
                    &columns,
                    bias,
                    &epilogue,
                    y,
                );
            }
        }
    }
}
