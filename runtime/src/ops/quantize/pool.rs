//! Pools over 8-bit codes.
use super::conv::{channels_at_end, channels_second, planes, to_channels_last, to_channels_second};
use super::window::Window;
use super::{Affine, coded, codes, fact, range_of, round_to};
use crate::ops::{MICROSOFT, OpDef, need};

/// `requantise(mean of each plane)`.
pub(super) static QLINEAR_GLOBAL_AVERAGE_POOL: OpDef = OpDef::new(
    "QLinearGlobalAveragePool",
    "mean of each plane of a quantised tensor",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let last = attrs.flag("channels_last", false)?;
        let (n, c, _) = planes(&if last { channels_second(&x.shape) } else { x.shape.clone() })?;
        let mut shape = vec![1; x.shape.len()];
        shape[0] = n;
        shape[if last { x.shape.len() - 1 } else { 1 }] = c;
        fact(x.dtype, shape)
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let last = attrs.flag("channels_last", false)?;
        let moved = if last { Some(to_channels_second(x)?) } else { None };
        let v = codes(moved.as_ref().unwrap_or(x), "X")?;
        let (n, c, p) = planes(moved.as_ref().unwrap_or(x).shape())?;
        let (from, to) = (Affine::of(inputs, 1, "X")?, Affine::of(inputs, 3, "Y")?);
        let range = range_of(x.dtype())?;
        // The zero points of all elements are taken from the sum, and the sum scaled once, as ONNX Runtime does.
        let ratio = from.scale / (to.scale * p as f32);
        let q: Vec<i32> = (0..n * c)
            .map(|i| {
                let sum: i32 = v[i * p..][..p].iter().fold(0i32, |a, &q| a.wrapping_add(q.wrapping_sub(from.zero)));
                round_to(sum as f32 * ratio, to.zero, range)
            })
            .collect();
        let mut shape = vec![1; x.shape().len()];
        shape[0] = n;
        shape[if last { x.shape().len() - 1 } else { 1 }] = c;
        Ok(vec![coded(x.dtype(), &shape, &q)?])
    },
)
.domain(MICROSOFT)
.kernel(super::tables::global_pool)
.vjp(|b| super::spelled::pool(b, "GlobalAveragePool"));

/// `requantise(mean under a window)`.
pub(super) static QLINEAR_AVERAGE_POOL: OpDef = OpDef::new(
    "QLinearAveragePool",
    "mean of a quantised tensor under a window",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let last = attrs.flag("channels_last", false)?;
        let shape = if last { channels_second(&x.shape) } else { x.shape.clone() };
        let (n, c, _) = planes(&shape)?;
        let out = [&[n, c], &Window::of(attrs, &shape[2..], None)?.output[..]].concat();
        fact(x.dtype, if last { channels_at_end(&out) } else { out })
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let last = attrs.flag("channels_last", false)?;
        let moved = if last { Some(to_channels_second(x)?) } else { None };
        let t = moved.as_ref().unwrap_or(x);
        let (n, c, plane) = planes(t.shape())?;
        let w = Window::of(attrs, &t.shape()[2..], None)?;
        let all = attrs.flag("count_include_pad", false)?;
        let (from, to) = (Affine::of(inputs, 1, "X")?, Affine::of(inputs, 3, "Y")?);
        let range = range_of(x.dtype())?;
        let v = codes(t, "X")?;
        let p = w.positions();
        let mut q = vec![0i32; n * c * p];
        let mut inside = Vec::new();
        for at in 0..p {
            w.inside(at, &mut inside);
            // A window that reaches past the padding still counts as a whole one, as in ONNX Runtime.
            let count = if all { w.taps() } else { inside.len() };
            for i in 0..n * c {
                let sum: i64 = inside.iter().map(|&(_, k)| i64::from(v[i * plane + k] - from.zero)).sum();
                let mean = if count == 0 { 0.0 } else { sum as f64 / count as f64 * f64::from(from.scale) };
                q[i * p + at] = to.code(mean as f32, range);
            }
        }
        let y = coded(x.dtype(), &[&[n, c], &w.output[..]].concat(), &q)?;
        Ok(vec![if last { to_channels_last(&y)? } else { y }])
    },
)
.domain(MICROSOFT)
.vjp(|b| super::spelled::pool(b, "AveragePool"));

/// Greatest code under a window, channels last.
pub(super) static NHWC_MAX_POOL: OpDef = OpDef::new(
    "NhwcMaxPool",
    "greatest code under a window, channels last",
    |attrs, inputs| {
        let x = need(inputs, 0, "x")?;
        let shape = channels_second(&x.shape);
        let (n, c, _) = planes(&shape)?;
        let out = [&[n, c], &Window::of(attrs, &shape[2..], None)?.output[..]].concat();
        fact(x.dtype, channels_at_end(&out))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "x")?;
        let shape = channels_second(x.shape());
        let (n, c, plane) = planes(&shape)?;
        let w = Window::of(attrs, &shape[2..], None)?;
        let low = range_of(x.dtype())?.0;
        let v = codes(x, "x")?;
        let p = w.positions();
        let mut q = vec![low; n * p * c];
        let mut inside = Vec::new();
        for at in 0..p {
            w.inside(at, &mut inside);
            for b in 0..n {
                let out = &mut q[(b * p + at) * c..][..c];
                for &(_, i) in &inside {
                    out.iter_mut().zip(&v[(b * plane + i) * c..][..c]).for_each(|(o, &v)| *o = (*o).max(v));
                }
            }
        }
        Ok(vec![coded(x.dtype(), &channels_at_end(&[&[n, c], &w.output[..]].concat()), &q)?])
    },
)
.domain(MICROSOFT)
.vjp(super::spelled::max_pool);
