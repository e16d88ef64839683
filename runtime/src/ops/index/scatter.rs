//! A tensor with elements or blocks replaced by, or combined with, others.
use hone_gpu::picks::{Of, Picks};

use super::gather::{Rows, Tuples, picks};
use super::{Ints, around, by_bytes, indices_of};
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, axis_of, need, optional};
use crate::plan::{At, Fallible, Io, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor};

/// `ScatterElements`: `y = data`, then `y[…, indices[…, i, …], …] ∘= updates[…, i, …]` in order.
pub(super) static SCATTER_ELEMENTS: OpDef = OpDef::new(
    "ScatterElements",
    "single elements replaced or combined, by index along one axis",
    elements_rule,
    scatter_elements,
)
.kernel(elements_lower)
.gpu(|l| {
    let adds = Reduction::of(l.attrs)? == Reduction::Add;
    let Some(picks) = picks(l, Of::Add { shared: false })?.filter(|_| adds) else { return Ok(None) };
    Ok(Recorded::one(picks.call(), added()))
})
.vjp(|b| super::backward::scatter(b, "ScatterElements", "GatherElements"));

/// Operands and results of updates that are added.
fn added() -> Vec<At> {
    vec![At::In(0), At::In(1), At::In(2), At::Out(0), At::Fault]
}

/// `Scatter`, the name of `ScatterElements` before version 11.
pub(super) static SCATTER: OpDef =
    OpDef::new("Scatter", "single elements replaced, by index along one axis", elements_rule, scatter_elements)
        .kernel(elements_lower)
        .vjp(|b| super::backward::scatter(b, "ScatterElements", "GatherElements"));

fn elements_rule(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
    Rows::new(attrs, &x.shape, &indices.shape)?;
    same_updates(&need(inputs, 2, "updates")?.shape, &indices.shape)?;
    Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
}

fn scatter_elements(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, indices, updates) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?, need(inputs, 2, "updates")?);
    let rows = Rows::new(attrs, x.shape(), indices.shape())?;
    same_updates(updates.shape(), indices.shape())?;
    let places = rows.places(&indices_of(indices)?)?;
    Ok(vec![combine(x, &places, updates, Reduction::of(attrs)?)?])
}

fn elements_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let rows = Rows::new(l.attrs, l.shape(0)?, l.shape(1)?)?;
    same_updates(l.shape(2)?, l.shape(1)?)?;
    Ok(Fast::of(l)?.map(|how| Lowered::new(Elements { rows, how }, vec![0, 1, 2])))
}

fn same_updates(updates: &[usize], want: &[usize]) -> Result<(), OpError> {
    if updates == want { Ok(()) } else { Err(OpError::shape("updates", want, updates)) }
}

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

impl Reduction {
    fn of(attrs: &Attrs) -> Result<Reduction, OpError> {
        Ok(match attrs.str("reduction", "none")? {
            "none" => Reduction::None,
            "add" => Reduction::Add,
            "mul" => Reduction::Mul,
            "max" => Reduction::Max,
            "min" => Reduction::Min,
            other => return Err(OpError::attribute("reduction", format!("{other} is not one of ONNX's"))),
        })
    }

    fn float(self, a: f64, b: f64) -> f64 {
        match self {
            Reduction::None => b,
            Reduction::Add => a + b,
            Reduction::Mul => a * b,
            // A NaN stays, on either side, as NumPy has it.
            Reduction::Max if a > b || a.is_nan() => a,
            Reduction::Min if a < b || a.is_nan() => a,
            Reduction::Max | Reduction::Min => b,
        }
    }

    fn int(self, a: i128, b: i128) -> i128 {
        match self {
            Reduction::None => b,
            Reduction::Add => a.wrapping_add(b),
            Reduction::Mul => a.wrapping_mul(b),
            Reduction::Max => a.max(b),
            Reduction::Min => a.min(b),
        }
    }
}

/// `x` with `updates[j]` combined into element `places[j]`, in order.
fn combine(x: &Tensor, places: &[usize], updates: &Tensor, how: Reduction) -> Result<Tensor, OpError> {
    if x.dtype() != updates.dtype() {
        return Err(OpError::unsupported(format!("updates of {} for data of {}", updates.dtype(), x.dtype())));
    }
    let data = if how == Reduction::None {
        let mut data = x.data().clone();
        data.put(places, updates.data());
        data
    } else if x.dtype().is_float() {
        let mut out = x.data().to_f64();
        places.iter().zip(updates.data().to_f64()).for_each(|(&p, u)| out[p] = how.float(out[p], u));
        Data::from_f64(x.dtype(), &out)
    } else {
        let mut out = x.data().to_i128();
        places.iter().zip(updates.data().to_i128()).for_each(|(&p, u)| out[p] = how.int(out[p], u));
        Data::from_i128(x.dtype(), &out)
    };
    Ok(Tensor::new(x.shape(), data)?)
}

/// What the kernels do with an update.
#[derive(Clone, Copy)]
struct Fast {
    wide: bool,
    unit: usize,
    /// Elements are `f32` and are added.
    add: bool,
}

impl Fast {
    fn of(l: &Lowering<'_>) -> Result<Option<Fast>, OpError> {
        let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
        let add = match Reduction::of(l.attrs)? {
            Reduction::None => false,
            Reduction::Add if dtype == DType::F32 => true,
            _ => return Ok(None),
        };
        Ok((l.dtype(2) == Some(dtype)).then(|| Fast { wide, unit: dtype.size_bytes(), add }))
    }
}

struct Elements {
    rows: Rows,
    how: Fast,
}

impl Fallible for Elements {
    fn name(&self) -> &'static str {
        "scatter-elements"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 1, self.how.wide);
        writes.bytes(0).copy_from_slice(reads.bytes(0));
        if self.how.add {
            let (u, y) = (reads.f32(2), writes.f32(0));
            return self.rows.each(|i| indices.at(i), |i, place| y[place] += u[i]);
        }
        by_bytes!(self.how.unit, put_elements(&self.rows, indices, reads.bytes(2), writes.bytes(0)))
    }
}

fn put_elements<const N: usize>(rows: &Rows, indices: Ints<'_>, u: &[u8], y: &mut [u8]) -> Result<(), OpError> {
    let (u, y) = (u.as_chunks::<N>().0, y.as_chunks_mut::<N>().0);
    rows.each(|i| indices.at(i), |i, place| y[place] = u[i])
}

/// `ScatterND`: `y = data`, then each tuple of `indices` names a block that its update replaces or is combined with.
pub(super) static SCATTER_ND: OpDef = OpDef::new(
    "ScatterND",
    "blocks replaced or combined, by tuples of indices",
    |_, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let tuples = Tuples::new(0, &x.shape, &indices.shape)?;
        same_updates(&need(inputs, 2, "updates")?.shape, &tuples.shape)?;
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
    },
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let updates = need(inputs, 2, "updates")?;
        let tuples = Tuples::new(0, x.shape(), indices.shape())?;
        same_updates(updates.shape(), &tuples.shape)?;
        let indices = indices_of(indices)?;
        let mut places = Vec::with_capacity(updates.len());
        for t in 0..tuples.count {
            let at = tuples.place(t, |i| indices[i])?;
            places.extend(at..at + tuples.block);
        }
        Ok(vec![combine(x, &places, updates, Reduction::of(attrs)?)?])
    },
)
.kernel(|l| {
    let tuples = Tuples::new(0, l.shape(0)?, l.shape(1)?)?;
    same_updates(l.shape(2)?, &tuples.shape)?;
    Ok(Fast::of(l)?.map(|how| Lowered::new(Blocks { tuples, how }, vec![0, 1, 2])))
})
.gpu(|l| {
    let (data, indices) = (l.shape(0)?, l.shape(1)?);
    let floats = l.dtype(0) == Some(DType::F32) && Reduction::of(l.attrs)? == Reduction::Add;
    let Some(wide) = Ints::takes(l.dtype(1)).filter(|_| floats && indices.last() == Some(&1)) else { return Ok(None) };
    let tuples = Tuples::new(0, data, indices)?;
    let picks = Picks {
        of: Of::Add { shared: true },
        wide,
        outer: 1,
        length: data[0],
        inner: tuples.block,
        count: tuples.count,
    };
    Ok(Recorded::one(picks.call(), added()))
})
.vjp(|b| super::backward::scatter(b, "ScatterND", "GatherND"));

struct Blocks {
    tuples: Tuples,
    how: Fast,
}

impl Fallible for Blocks {
    fn name(&self) -> &'static str {
        "scatter-nd"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 1, self.how.wide);
        let (t, block) = (&self.tuples, self.tuples.block);
        writes.bytes(0).copy_from_slice(reads.bytes(0));
        if self.how.add {
            let (u, y) = (reads.f32(2), writes.f32(0));
            for (i, u) in (0..t.count).zip(u.chunks_exact(block.max(1))) {
                let at = t.place(i, |i| indices.at(i))?;
                y[at..at + block].iter_mut().zip(u).for_each(|(y, u)| *y += u);
            }
            return Ok(());
        }
        let (unit, bytes, y) = (self.how.unit, block * self.how.unit, writes.bytes(0));
        for (i, u) in (0..t.count).zip(reads.bytes(2).chunks_exact(bytes.max(1))) {
            let at = t.place(i, |i| indices.at(i))? * unit;
            y[at..at + bytes].copy_from_slice(u);
        }
        Ok(())
    }
}

/// `TensorScatter`: a cache with `update` written along `axis` from `write_indices[b]` on, in each batch entry `b`;
/// past its end an error, or with mode `circular` at its beginning again.
pub(super) static TENSOR_SCATTER: OpDef = OpDef::new(
    "TensorScatter",
    "a cache with consecutive entries replaced, from an index of each batch entry on",
    |attrs, inputs| {
        let (past, update) = (need(inputs, 0, "past_cache")?, need(inputs, 1, "update")?);
        Cache::new(attrs, &past.shape, &update.shape, optional(inputs, 2).map(|f| &f.shape[..]))?;
        Ok(Some(vec![Fact::new(past.dtype, past.shape.clone())]))
    },
    |attrs, inputs| {
        let (past, update) = (need(inputs, 0, "past_cache")?, need(inputs, 1, "update")?);
        let cache = Cache::new(attrs, past.shape(), update.shape(), optional(inputs, 2).map(Tensor::shape))?;
        let starts = optional(inputs, 2).map(indices_of).transpose()?;
        let mut places = Vec::with_capacity(update.len());
        cache.each(|b| starts.as_ref().map_or(0, |s| s[b]), |_, to| places.extend(to..to + cache.inner))?;
        Ok(vec![combine(past, &places, update, Reduction::None)?])
    },
)
.kernel(|l| {
    let starts = if l.has(2) { Some(l.shape(2)?) } else { None };
    let cache = Cache::new(l.attrs, l.shape(0)?, l.shape(1)?, starts)?;
    let Some(unit) = l.dtype(0).filter(|&d| l.dtype(1) == Some(d)).map(DType::size_bytes) else { return Ok(None) };
    let (wide, reads) = match starts {
        None => (None, vec![0, 1]),
        Some(_) => match Ints::takes(l.dtype(2)) {
            None => return Ok(None),
            wide => (wide, vec![0, 1, 2]),
        },
    };
    Ok(Some(Lowered::new(Append { cache, unit, wide }, reads)))
});

/// Lengths of a cache: `[batch, rest, max, inner]`, and of an update: `[batch, rest, len, inner]`.
struct Cache {
    batch: usize,
    rest: usize,
    max: usize,
    len: usize,
    inner: usize,
    circular: bool,
}

impl Cache {
    fn new(attrs: &Attrs, past: &[usize], update: &[usize], starts: Option<&[usize]>) -> Result<Cache, OpError> {
        let axis = axis_of(attrs.int("axis", -2)?, past.len())?;
        if axis == 0 {
            return Err(OpError::attribute("axis", "is the batch"));
        }
        let (_, max, inner) = around(past, axis);
        let fits = |a: usize| if a == axis { update[a] <= max } else { update[a] == past[a] };
        if update.len() != past.len() || !(0..past.len()).all(fits) {
            return Err(OpError::shape("update", format!("at most {past:?} along axis {axis}"), update));
        }
        if let Some(s) = starts.filter(|s| **s != [past[0]]) {
            return Err(OpError::shape("write_indices", [past[0]], s));
        }
        let circular = match attrs.str("mode", "linear")? {
            "linear" => false,
            "circular" => true,
            other => return Err(OpError::attribute("mode", format!("{other} is neither linear nor circular"))),
        };
        Ok(Cache { batch: past[0], rest: elements(&past[1..axis])?, max, len: update[axis], inner, circular })
    }

    /// Calls `f` with the first element in the update and in the cache of every entry.
    fn each(&self, start: impl Fn(usize) -> i64, mut f: impl FnMut(usize, usize)) -> Result<(), OpError> {
        for b in 0..self.batch {
            let first = usize::try_from(start(b)).ok().filter(|&s| self.circular || s <= self.max - self.len);
            let first = first.ok_or_else(|| {
                OpError::shape("write_indices", format!("from 0 to {}", self.max - self.len), start(b))
            })?;
            for r in b * self.rest..(b + 1) * self.rest {
                for i in 0..self.len {
                    // An update has no more entries than the cache, so the cache is not empty here.
                    let at = (first % self.max + i) % self.max;
                    f((r * self.len + i) * self.inner, (r * self.max + at) * self.inner);
                }
            }
        }
        Ok(())
    }
}

struct Append {
    cache: Cache,
    unit: usize,
    /// Type of the write indices; `None` when there are none.
    wide: Option<bool>,
}

impl Fallible for Append {
    fn name(&self) -> &'static str {
        "tensor-scatter"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let (u, y) = (reads.bytes(1), writes.bytes(0));
        y.copy_from_slice(reads.bytes(0));
        let starts = self.wide.map(|wide| Ints::of(reads, 2, wide));
        let bytes = self.cache.inner * self.unit;
        self.cache.each(
            |b| starts.map_or(0, |s| s.at(b)),
            |from, to| {
                let (from, to) = (from * self.unit, to * self.unit);
                y[to..to + bytes].copy_from_slice(&u[from..from + bytes]);
            },
        )
    }
}
