//! Pooling with channels last.
use hone_gpu::window::MaxCodes;
use hone_kernels::conv::Window;
use hone_kernels::nhwc_pool::{self, Kind, Pooling};

use super::{Windows, lower};
use crate::ops::internal::{DOMAIN, first, reference_last, shape_last};
use crate::ops::{Attrs, Fact, OpDef, OpError};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::DType;

/// `MaxPool` without indices.
pub(crate) static MAX_POOL: OpDef = OpDef::new(
    "MaxPoolLast",
    "the largest value under a sliding window, channels last",
    |attrs, inputs| only_first(shape_last(&super::MAX_POOL, attrs, inputs, &[])),
    |attrs, inputs| reference_last(&super::MAX_POOL, &Attrs { outputs: 1, ..attrs.clone() }, inputs, &[]),
)
.domain(DOMAIN)
.kernel(|l| windows(l, |_| None))
.gpu(|l| {
    let w = Windows::of(l.attrs, &first(l.shape(0)?))?;
    if l.dtype(0) != Some(DType::U8) {
        return lower::recorded(l, &w, false, None);
    }
    let Some(window) = w.geometry.window() else { return Ok(None) };
    let [batch, channels] = w.lead;
    Ok(Recorded::one(MaxCodes { window, batch, channels, signed: false }.call(), vec![At::In(0), At::Out(0)]))
});

/// `AveragePool`.
pub(crate) static AVERAGE_POOL: OpDef = OpDef::new(
    "AveragePoolLast",
    "the mean under a sliding window, channels last",
    |attrs, inputs| shape_last(&super::AVERAGE_POOL, attrs, inputs, &[]),
    |attrs, inputs| reference_last(&super::AVERAGE_POOL, attrs, inputs, &[]),
)
.domain(DOMAIN)
.kernel(|l| {
    let padded = l.attrs.flag("count_include_pad", false)?;
    windows(l, |w| Some(lower::factors(w, padded)))
})
.gpu(|l| {
    let w = Windows::of(l.attrs, &first(l.shape(0)?))?;
    let factors = lower::factors(&w, l.attrs.flag("count_include_pad", false)?);
    lower::recorded(l, &w, false, Some(&factors))
});

fn only_first(facts: Result<Option<Vec<Fact>>, OpError>) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(facts?.map(|mut l| {
        l.truncate(1);
        l
    }))
}

fn windows(l: &Lowering<'_>, factors: impl Fn(&Windows) -> Option<Vec<f32>>) -> Result<Option<Lowered>, OpError> {
    let w = Windows::of(l.attrs, &first(l.shape(0)?))?;
    let Some(window) = w.geometry.window() else { return Ok(None) };
    let ([batch, channels], factors) = (w.lead, factors(&w));
    match l.dtype(0) {
        Some(DType::F32) => {}
        Some(DType::U8) if factors.is_none() => {
            return Ok(Some(Lowered::new(Codes { window, batch, channels }, vec![0])));
        }
        _ => return Ok(None),
    }
    Ok(Some(Lowered::new(Last { window, batch, channels, factors }, vec![0])))
}

struct Last {
    window: Window,
    batch: usize,
    channels: usize,
    /// For averages, one over the number of positions that count, a window.
    factors: Option<Vec<f32>>,
}

impl Kernel for Last {
    fn name(&self) -> &'static str {
        "pool-last-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let Last { window, batch, channels, factors } = self;
        let kind = factors.as_deref().map_or(Kind::Max, Kind::Sum);
        let p = Pooling { window: *window, batch: *batch, channels: *channels, kind, x: reads.f32(0) };
        nhwc_pool::pooled(pool, &p, writes.f32(0));
    }
}

/// The largest codes under a window.
struct Codes {
    window: Window,
    batch: usize,
    channels: usize,
}

impl Kernel for Codes {
    fn name(&self) -> &'static str {
        "pool-last-u8"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        nhwc_pool::max_u8(pool, &self.window, self.batch, self.channels, reads.bytes(0), writes.bytes(0));
    }
}
