//! Pooling: over sliding windows, whole planes and regions of interest, and its inverse.
use super::conv::Geometry;
use super::shape::elements;
use super::{Attr, Attrs, Fact, OpDef, OpError, ints_of, need, optional};
use crate::tensor::{DType, Data, Tensor};

mod backward;
pub(crate) mod last;
mod lower;
mod roi;

/// The operators of this family.
pub(super) static OPS: &[&OpDef] = &[
    &MAX_POOL,
    &AVERAGE_POOL,
    &LP_POOL,
    &GLOBAL_AVERAGE_POOL,
    &GLOBAL_MAX_POOL,
    &GLOBAL_LP_POOL,
    &MAX_UNPOOL,
    &roi::MAX_ROI_POOL,
    &roi::ROI_ALIGN,
];

/// The largest value under each window; NaN if it holds one. A window that lies in the padding holds -∞, or the least
/// integer. The second output is the position of that value in the whole input, the first one if it occurs twice;
/// with `storage_order` 1 positions within a plane are counted first axis fastest.
static MAX_POOL: OpDef = OpDef::new(
    "MaxPool",
    "the largest value under a sliding window, and where it is",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let shape = Windows::of(attrs, &x.shape)?.output_shape();
        Ok(Some(vec![Fact::new(x.dtype, shape.clone()), Fact::new(DType::I64, shape)]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let w = Windows::of(attrs, x.shape())?;
        let shape = w.output_shape();
        let (pixels, windows) = (w.geometry.input_len(), w.geometry.output_len());
        let xs = x.data().to_f64();
        let mut best = vec![None; elements(&shape)?];
        let mut p = 0;
        w.geometry.for_each_window(|_, taps| {
            for plane in 0..w.planes {
                let values = &xs[plane * pixels..][..pixels];
                let mut found: Option<usize> = None;
                for &(i, _) in taps {
                    let better =
                        found.is_none_or(|f| values[i] > values[f] || values[i].is_nan() && !values[f].is_nan());
                    if better {
                        found = Some(i);
                    }
                }
                best[plane * windows + p] = found.map(|i| plane * pixels + i);
            }
            p += 1;
        });
        let least = match x.dtype().range() {
            Some((least, _)) => Data::from_i128(x.dtype(), &[least]),
            None => Data::from_f64(x.dtype(), &[f64::NEG_INFINITY]),
        };
        let mut out = vec![Tensor::new(&shape, x.data().pick_or(&best, &least))?];
        if attrs.outputs > 1 {
            let order = attrs.int("storage_order", 0)?;
            let indices = best.iter().map(|i| i.map_or(-1, |i| w.stored(i, order == 1) as i64)).collect();
            out.push(Tensor::i64(&shape, indices)?);
        }
        Ok(out)
    },
)
.kernel(lower::max_pool)
.gpu(lower::max_pool_recorded)
.vjp(backward::max_pool);

/// The mean under each window. Positions in the padding count, as zeros, only with `count_include_pad`; positions that
/// `ceil_mode` lets a window have beyond the padding never do.
static AVERAGE_POOL: OpDef =
    OpDef::new("AveragePool", "the mean under a sliding window", window_facts, |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let w = Windows::of(attrs, x.shape())?;
        let padded = attrs.flag("count_include_pad", false)?;
        w.sums(x, |at, sum| sum / w.count(at, padded).max(1) as f64, |v| v)
    })
    .kernel(lower::average_pool)
    .gpu(lower::average_pool_recorded)
    .vjp(backward::average_pool);

/// `(Σ |x|^p)^(1/p)` under each window.
static LP_POOL: OpDef =
    OpDef::new("LpPool", "the p-norm of what is under a sliding window", window_facts, |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let p = norm_order(attrs)?;
        Windows::of(attrs, x.shape())?.sums(x, |_, sum| sum.powf(1.0 / p), |v| v.abs().powf(p))
    });

static GLOBAL_AVERAGE_POOL: OpDef = OpDef::new(
    "GlobalAveragePool",
    "the mean of each plane",
    |_, inputs| global_facts(inputs),
    |_, inputs| global(inputs, |plane| plane.iter().sum::<f64>() / plane.len() as f64),
)
.kernel(lower::global_average_pool)
.gpu(|l| lower::global_recorded(l, false))
.vjp(|b| backward::global(b, |b, x, axes| b.reduce("ReduceMean", x, axes, true)));

static GLOBAL_MAX_POOL: OpDef = OpDef::new(
    "GlobalMaxPool",
    "the largest value of each plane",
    |_, inputs| global_facts(inputs),
    |_, inputs| {
        global(inputs, |plane| plane.iter().fold(f64::NEG_INFINITY, |a, &v| if v > a || v.is_nan() { v } else { a }))
    },
)
.kernel(lower::global_max_pool)
.gpu(|l| lower::global_recorded(l, true))
.vjp(|b| backward::global(b, |b, x, axes| b.reduce("ReduceMax", x, axes, true)));

static GLOBAL_LP_POOL: OpDef = OpDef::new(
    "GlobalLpPool",
    "the p-norm of each plane",
    |_, inputs| global_facts(inputs),
    |attrs, inputs| {
        let p = norm_order(attrs)?;
        global(inputs, |plane| plane.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p))
    },
)
.vjp(|b| {
    let p = norm_order(&b.attrs())?;
    backward::global(b, |b, x, axes| backward::norm(b, x, axes, p))
});

/// The inverse of `MaxPool`: every value goes where its index says, all else is zero. Indices count positions in the
/// tensor the window implies; a larger `output_shape` has that tensor in its corner.
static MAX_UNPOOL: OpDef = OpDef::new(
    "MaxUnpool",
    "values put back where MaxPool took them",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        let asked = match optional(inputs, 2).map(Fact::ints) {
            None => None,
            Some(Some(v)) => Some(v),
            Some(None) => return Ok(None),
        };
        let (_, shape) = unpooled(attrs, &x.shape, asked.as_deref())?;
        Ok(Some(vec![Fact::new(x.dtype, shape)]))
    },
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "X")?, need(inputs, 1, "I")?);
        if indices.shape() != x.shape() {
            return Err(OpError::shape("I", x.shape(), indices.shape()));
        }
        let asked = optional(inputs, 2).map(ints_of);
        let (inner, shape) = unpooled(attrs, x.shape(), asked.as_deref())?;
        let mut source = vec![None; elements(&inner)?];
        for (i, at) in ints_of(indices).into_iter().enumerate() {
            let n = source.len();
            let slot = usize::try_from(at).ok().and_then(|at| source.get_mut(at));
            *slot.ok_or_else(|| OpError::shape("an element of I", format!("0..{n}"), at))? = Some(i);
        }
        let source = if inner == shape {
            source
        } else {
            let mut moved = vec![None; elements(&shape)?];
            let from = super::strides_of(&inner);
            let common: Vec<usize> = inner.iter().zip(&shape).map(|(a, b)| *a.min(b)).collect();
            let (mut all_from, mut all_to) = (Vec::new(), Vec::new());
            super::for_each_strided(0, &from, &common, |i| all_from.push(i));
            super::for_each_strided(0, &super::strides_of(&shape), &common, |i| all_to.push(i));
            all_from.into_iter().zip(all_to).for_each(|(from, to)| moved[to] = source[from]);
            moved
        };
        Ok(vec![Tensor::new(&shape, x.data().pick_or(&source, &Data::zeros(x.dtype(), 1)))?])
    },
)
.vjp(backward::max_unpool);

/// What sliding a window over planes `[N, C, …]` gives.
struct Windows {
    /// `N` and `C`.
    lead: [usize; 2],
    /// Their product.
    planes: usize,
    geometry: Geometry,
}

impl Windows {
    fn of(attrs: &Attrs, x: &[usize]) -> Result<Windows, OpError> {
        let lead = planes(x)?;
        let geometry = Geometry::of(attrs, &x[2..], None)?;
        let w = Windows { lead, planes: lead[0] * lead[1], geometry };
        elements(&w.output_shape())?;
        Ok(w)
    }

    fn output_shape(&self) -> Vec<usize> {
        let mut shape = self.lead.to_vec();
        shape.extend(&self.geometry.output);
        shape
    }

    /// Positions that count in the mean of the window at `at`.
    fn count(&self, at: &[usize], padded: bool) -> usize {
        let g = &self.geometry;
        (0..g.axes()).map(|a| if padded { g.padded_taps(a, at[a]) } else { g.input_taps(a, at[a]) }).product()
    }

    /// `finish(window, Σ each(x))` for every window.
    fn sums(
        &self,
        x: &Tensor,
        finish: impl Fn(&[usize], f64) -> f64,
        each: impl Fn(f64) -> f64,
    ) -> Result<Vec<Tensor>, OpError> {
        let (pixels, windows) = (self.geometry.input_len(), self.geometry.output_len());
        let shape = self.output_shape();
        let mut xs = x.data().to_f64();
        xs.iter_mut().for_each(|v| *v = each(*v));
        let mut y = vec![0.0; elements(&shape)?];
        let mut p = 0;
        self.geometry.for_each_window(|at, taps| {
            for plane in 0..self.planes {
                let values = &xs[plane * pixels..][..pixels];
                y[plane * windows + p] = finish(at, taps.iter().map(|&(i, _)| values[i]).sum());
            }
            p += 1;
        });
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
    }

    /// A row-major position in the whole input as MaxPool stores it.
    fn stored(&self, at: usize, first_axis_fastest: bool) -> usize {
        if !first_axis_fastest {
            return at;
        }
        let input = &self.geometry.input;
        let pixels = self.geometry.input_len();
        let (plane, mut rest) = (at / pixels * pixels, at % pixels);
        let mut out = 0;
        for a in (0..input.len()).rev() {
            out += rest % input[a] * input[..a].iter().product::<usize>();
            rest /= input[a];
        }
        plane + out
    }
}

/// `N` and `C` of `[N, C, …]`.
fn planes(x: &[usize]) -> Result<[usize; 2], OpError> {
    if x.len() < 3 {
        return Err(OpError::shape("X", "[N, C, …] with a spatial axis", x));
    }
    Ok([x[0], x[1]])
}

fn window_facts(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "X")?;
    Ok(Some(vec![Fact::new(x.dtype, Windows::of(attrs, &x.shape)?.output_shape())]))
}

/// The attribute `p`, an integer since opset 2 and a float before.
fn norm_order(attrs: &Attrs) -> Result<f64, OpError> {
    match attrs.map.get("p") {
        Some(Attr::Float(p)) => Ok(f64::from(*p)),
        _ => Ok(attrs.int("p", 2)? as f64),
    }
}

fn global_facts(inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "X")?;
    Ok(Some(vec![Fact::new(x.dtype, global_shape(&x.shape)?)]))
}

/// `[N, C, 1, …]`.
fn global_shape(x: &[usize]) -> Result<Vec<usize>, OpError> {
    let mut shape = planes(x)?.to_vec();
    shape.resize(x.len(), 1);
    Ok(shape)
}

fn global(inputs: &[Option<&Tensor>], of: impl Fn(&[f64]) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let shape = global_shape(x.shape())?;
    let pixels: usize = x.shape()[2..].iter().product();
    let xs = x.data().to_f64();
    let y: Vec<f64> = (0..shape[0] * shape[1]).map(|i| of(&xs[i * pixels..][..pixels])).collect();
    Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
}

/// The shape MaxUnpool's indices count in, and the shape of its output.
fn unpooled(attrs: &Attrs, x: &[usize], asked: Option<&[i64]>) -> Result<(Vec<usize>, Vec<usize>), OpError> {
    let mut inner = planes(x)?.to_vec();
    let list = |name: &str, n: usize, default: Option<i64>| -> Result<Vec<i64>, OpError> {
        match (attrs.ints(name)?, default) {
            (Some(v), _) if v.len() == n && v.iter().all(|&d| (0..1 << 24).contains(&d)) => Ok(v.to_vec()),
            (Some(v), _) => Err(OpError::attribute(name, format!("{v:?} is not {n} lengths"))),
            (None, Some(d)) => Ok(vec![d; n]),
            (None, None) => Err(OpError::attribute(name, "is missing")),
        }
    };
    let axes = x.len() - 2;
    let (kernel, stride) = (list("kernel_shape", axes, None)?, list("strides", axes, Some(1))?);
    let pads = list("pads", 2 * axes, Some(0))?;
    for i in 0..axes {
        let length = (x[2 + i] as i64 - 1) * stride[i] - pads[i] - pads[axes + i] + kernel[i];
        inner.push(usize::try_from(length).map_err(|_| OpError::shape("X", "room for the window", x))?);
    }
    elements(&inner)?;
    let shape = match asked {
        None => inner.clone(),
        Some(v) if v.len() == x.len() => v
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| OpError::shape("output_shape", "lengths", v)))
            .collect::<Result<_, _>>()?,
        Some(v) => return Err(OpError::shape("output_shape", format!("{} lengths", x.len()), v)),
    };
    elements(&shape)?;
    Ok((inner, shape))
}
