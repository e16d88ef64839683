//! Elements, slices and blocks chosen by index.
use super::{Ints, around, backward, by_bytes, indices_of, position};
use hone_gpu::gather as gpu;
use hone_gpu::picks::{Of, Picks};

use crate::map_data;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, need, strides_of};
use crate::plan::{At, Codes, Fallible, Io, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor};

/// `Gather`: `y[o…, i…, k…] = data[o…, indices[i…], k…]`, the index along `axis`.
pub(super) static GATHER: OpDef = OpDef::new(
    "Gather",
    "slices of a tensor chosen by index along one axis",
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        Ok(Some(vec![Fact::new(x.dtype, gathered(attrs, &x.shape, &indices.shape)?.1)]))
    },
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let (axis, shape) = gathered(attrs, x.shape(), indices.shape())?;
        let (outer, dim, inner) = around(x.shape(), axis);
        let at = indices_of(indices)?.into_iter().map(|i| position(i, dim)).collect::<Result<Vec<_>, _>>()?;
        let total = elements(&shape)?;
        let data = map_data!(x.data(), v => {
            let mut out = Vec::with_capacity(total);
            for o in 0..outer {
                at.iter().for_each(|i| out.extend_from_slice(&v[(o * dim + i) * inner..][..inner]));
            }
            out
        });
        Ok(vec![Tensor::new(&shape, data)?])
    },
)
.kernel(|l| {
    let (axis, _) = gathered(l.attrs, l.shape(0)?, l.shape(1)?)?;
    let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
    let (outer, dim, inner) = around(l.shape(0)?, axis);
    let at = Picked { outer, dim, count: elements(l.shape(1)?)?, wide };
    if let Some(Codes { q, scale, zero, axis: by }) = l.codes(0) {
        // An embedding table stays codes when each row, or each column of a matrix, has its scale.
        let columns = by + 1 == q.shape().len() && scale.len() == inner;
        if axis == 0 && (scale.len() == 1 || by == 0 || columns) {
            let bytes = q.len() + 8 * scale.len();
            let by_row = by == 0 && scale.len() == dim;
            let zero =
                zero.map_or_else(|| vec![0.0; scale.len()], |z| z.data().to_f64().iter().map(|&z| z as f32).collect());
            let rows = QuantisedRows { at, q, scale, zero, by_row, inner };
            return Ok(Some(Lowered::new(rows, vec![1]).with_weights(bytes)));
        }
    }
    Ok(Some(Lowered::new(Slices { at, block: inner * dtype.size_bytes() }, vec![0, 1])))
})
.gpu(|l| {
    let (axis, _) = gathered(l.attrs, l.shape(0)?, l.shape(1)?)?;
    let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
    let (outer, length, inner) = around(l.shape(0)?, axis);
    let of = |table, inner| gpu::Gather { table, wide, outer, length, inner, count: l.shape(1).map_or(0, count) };
    let at = vec![At::In(1), At::Out(0), At::Fault];
    if let (None, Some(Codes { q, scale, zero, axis: by })) = (l.constant(0), l.codes(0)) {
        if axis != 0 || !(scale.len() == 1 || by == 0 && scale.len() == length) {
            return Ok(None);
        }
        // Unsigned codes are signed ones 128 further down.
        let (shift, flip) = match q.dtype() {
            DType::I8 => (0.0, 0),
            DType::U8 => (128.0, 128),
            _ => return Ok(None),
        };
        let (from, len) = (q.clone(), q.len().next_multiple_of(4));
        let codes = l.image("gpu table of codes", &[&q], &[], len, move || {
            let mut bytes: Vec<u8> = from.data().as_bytes().iter().map(|v| v ^ flip).collect();
            bytes.resize(len, 0);
            bytes
        });
        let one = |i: usize| if scale.len() == 1 { 0 } else { i };
        let zeros = zero.map_or_else(|| vec![0.0; scale.len()], |z| z.data().to_f64());
        let scale: Vec<f32> = (0..length).map(|i| scale[one(i)]).collect();
        let offset: Vec<f32> = (0..length).map(|i| zeros[one(i)] as f32 - shift).collect();
        let table = vec![codes, At::In(1), At::floats(&scale), At::floats(&offset)];
        return Ok(Recorded::one(of(gpu::Table::I8, inner).call(), [table, vec![At::Out(0), At::Fault]].concat()));
    }
    let (table, inner) = match dtype.size_bytes() {
        4 => (gpu::Table::Words, inner),
        8 => (gpu::Table::Pairs, inner),
        // Narrow elements move as words where a slice is made of whole ones.
        unit if (inner * unit) % 4 == 0 => (gpu::Table::Words, inner * unit / 4),
        _ => return Ok(None),
    };
    Ok(Recorded::one(of(table, inner).call(), [vec![At::In(0)], at].concat()))
})
.vjp(backward::gather);

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn gathered(attrs: &Attrs, data: &[usize], indices: &[usize]) -> Result<(usize, Vec<usize>), OpError> {
    let axis = axis_of(attrs.int("axis", 0)?, data.len())?;
    let shape = [&data[..axis], indices, &data[axis + 1..]].concat();
    elements(&shape)?;
    Ok((axis, shape))
}

/// Where the indices of a `Gather` are and what they index.
struct Picked {
    outer: usize,
    dim: usize,
    count: usize,
    wide: bool,
}

struct Slices {
    at: Picked,
    /// Bytes of what one index names.
    block: usize,
}

impl Fallible for Slices {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 1, self.at.wide);
        let (x, y) = (reads.bytes(0), writes.bytes(0));
        if matches!(self.block, 1 | 2 | 4 | 8) {
            return by_bytes!(self.block, pick(&self.at, indices, x, y));
        }
        let Picked { outer, dim, count, .. } = self.at;
        let mut y = y.chunks_exact_mut(self.block.max(1));
        for o in 0..outer {
            for i in 0..count {
                let at = (o * dim + position(indices.at(i), dim)?) * self.block;
                if let Some(y) = y.next() {
                    y.copy_from_slice(&x[at..at + self.block]);
                }
            }
        }
        Ok(())
    }
}

fn pick<const N: usize>(p: &Picked, indices: Ints<'_>, x: &[u8], y: &mut [u8]) -> Result<(), OpError> {
    let (x, y) = (x.as_chunks::<N>().0, y.as_chunks_mut::<N>().0);
    for (o, y) in (0..p.outer).zip(y.chunks_exact_mut(p.count.max(1))) {
        let x = &x[o * p.dim..(o + 1) * p.dim];
        for (i, y) in y.iter_mut().enumerate() {
            *y = x[position(indices.at(i), p.dim)?];
        }
    }
    Ok(())
}

/// Rows of a table of codes, dequantised as they are read: `y[i, j] = (q[at, j] - zero) · scale`.
struct QuantisedRows {
    at: Picked,
    q: std::sync::Arc<Tensor>,
    /// One in all, one a row (`by_row`) or one a column.
    scale: Vec<f32>,
    zero: Vec<f32>,
    by_row: bool,
    inner: usize,
}

impl QuantisedRows {
    fn rows<T: Copy>(&self, q: &[T], indices: Ints<'_>, y: &mut [f32]) -> Result<(), OpError>
    where
        f32: From<T>,
    {
        for (i, y) in y.chunks_exact_mut(self.inner.max(1)).enumerate() {
            let row = position(indices.at(i), self.at.dim)?;
            let q = &q[row * self.inner..][..self.inner];
            if self.by_row || self.scale.len() == 1 {
                let of = if self.by_row { row } else { 0 };
                let (scale, zero) = (self.scale[of], self.zero[of]);
                y.iter_mut().zip(q).for_each(|(y, &q)| *y = (f32::from(q) - zero) * scale);
            } else {
                let by_column = self.scale.iter().zip(&self.zero);
                y.iter_mut().zip(q).zip(by_column).for_each(|((y, &q), (s, z))| *y = (f32::from(q) - z) * s);
            }
        }
        Ok(())
    }
}

impl Fallible for QuantisedRows {
    fn name(&self) -> &'static str {
        "gather-q8"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 0, self.at.wide);
        match self.q.data() {
            Data::I8(q) => self.rows(q, indices, writes.f32(0)),
            Data::U8(q) => self.rows(q, indices, writes.f32(0)),
            _ => Err(OpError::unsupported("a table that is not of eight bits")),
        }
    }
}

/// `GatherElements`: `y[…, i, …] = data[…, indices[…, i, …], …]`, one index an element.
pub(super) static GATHER_ELEMENTS: OpDef = OpDef::new(
    "GatherElements",
    "one element for each index, from the place of the index with the index along one axis",
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        Rows::new(attrs, &x.shape, &indices.shape)?;
        Ok(Some(vec![Fact::new(x.dtype, indices.shape.clone())]))
    },
    |attrs, inputs| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let rows = Rows::new(attrs, x.shape(), indices.shape())?;
        Ok(vec![Tensor::new(indices.shape(), x.data().pick(&rows.places(&indices_of(indices)?)?))?])
    },
)
.kernel(|l| {
    let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
    let rows = Rows::new(l.attrs, l.shape(0)?, l.shape(1)?)?;
    Ok(Some(Lowered::new(Elements { rows, wide, unit: dtype.size_bytes() }, vec![0, 1])))
})
.gpu(|l| {
    let Some(picks) = picks(l, Of::Pick)? else { return Ok(None) };
    Ok(Recorded::one(picks.call(), vec![At::In(0), At::In(1), At::Out(0), At::Fault]))
})
.vjp(backward::gather_elements);

/// Elements of floats chosen along one axis, with indices as long as the data along every other one; `None` for others.
pub(super) fn picks(l: &Lowering<'_>, of: Of) -> Result<Option<Picks>, OpError> {
    let (data, indices) = (l.shape(0)?, l.shape(1)?);
    let axis = axis_of(l.attrs.int("axis", 0)?, data.len())?;
    let Some(wide) = Ints::takes(l.dtype(1)).filter(|_| l.dtype(0) == Some(DType::F32)) else { return Ok(None) };
    if indices.len() != data.len() || (0..data.len()).any(|a| a != axis && indices[a] != data[a]) {
        return Ok(None);
    }
    let (outer, length, inner) = around(data, axis);
    Ok(Some(Picks { of, wide, outer, length, inner, count: indices[axis] }))
}

/// Where each index of an elementwise gather or scatter points: `bases[r] + index · step + j · lane` for the index in
/// column `j` of row `r`.
pub(super) struct Rows {
    bases: Vec<usize>,
    width: usize,
    step: usize,
    lane: usize,
    dim: usize,
}

impl Rows {
    /// For the attribute `axis`, a tensor of shape `data` and indices of shape `indices`.
    pub(super) fn new(attrs: &Attrs, data: &[usize], indices: &[usize]) -> Result<Rows, OpError> {
        let axis = axis_of(attrs.int("axis", 0)?, data.len())?;
        if indices.len() != data.len() || (0..data.len()).any(|a| a != axis && indices[a] > data[a]) {
            return Err(OpError::shape(format!("indices along axis {axis}"), format!("at most {data:?}"), indices));
        }
        elements(indices)?;
        let own = strides_of(data);
        let last = data.len() - 1;
        let mut strides = own[..last].to_vec();
        if axis < last {
            strides[axis] = 0;
        }
        let mut bases = Vec::new();
        if !indices.contains(&0) {
            crate::ops::for_each_strided(0, &strides, &indices[..last], |at| bases.push(at));
        }
        let lane = usize::from(axis != last);
        Ok(Rows { bases, width: indices[last], step: own[axis], lane, dim: data[axis] })
    }

    /// Flat places for all indices.
    pub(super) fn places(&self, indices: &[i64]) -> Result<Vec<usize>, OpError> {
        let mut out = Vec::with_capacity(indices.len());
        self.each(|i| indices[i], |_, place| out.push(place))?;
        Ok(out)
    }

    /// Calls `f` with the number of each index and its place.
    #[inline(always)]
    pub(super) fn each(&self, index: impl Fn(usize) -> i64, mut f: impl FnMut(usize, usize)) -> Result<(), OpError> {
        for (r, base) in self.bases.iter().enumerate() {
            for j in 0..self.width {
                let i = r * self.width + j;
                f(i, base + position(index(i), self.dim)? * self.step + j * self.lane);
            }
        }
        Ok(())
    }
}

struct Elements {
    rows: Rows,
    wide: bool,
    unit: usize,
}

impl Fallible for Elements {
    fn name(&self) -> &'static str {
        "gather-elements"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 1, self.wide);
        by_bytes!(self.unit, pick_elements(&self.rows, indices, reads.bytes(0), writes.bytes(0)))
    }
}

fn pick_elements<const N: usize>(rows: &Rows, indices: Ints<'_>, x: &[u8], y: &mut [u8]) -> Result<(), OpError> {
    let (x, y) = (x.as_chunks::<N>().0, y.as_chunks_mut::<N>().0);
    match indices {
        Ints::I64(v) => rows.each(|i| v[i], |i, place| y[i] = x[place]),
        Ints::I32(v) => rows.each(|i| i64::from(v[i]), |i, place| y[i] = x[place]),
    }
}

/// `GatherND`: each tuple along the last axis of `indices` names a block of `data` (of its batch entry).
pub(super) static GATHER_ND: OpDef =
    OpDef::new("GatherND", "blocks of a tensor chosen by tuples of indices", nd_rule, nd)
        .kernel(nd_lower)
        .vjp(backward::gather_nd);

/// ONNX Runtime's `GatherND`, as it was before the standard took it.
pub(super) static GATHER_ND_MICROSOFT: OpDef =
    OpDef::new("GatherND", "blocks of a tensor chosen by tuples of indices", nd_rule, nd)
        .kernel(nd_lower)
        .domain(MICROSOFT)
        .vjp(backward::gather_nd);

fn nd_rule(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
    let tuples = Tuples::new(attrs.int("batch_dims", 0)?, &x.shape, &indices.shape)?;
    Ok(Some(vec![Fact::new(x.dtype, tuples.shape)]))
}

fn nd(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
    let tuples = Tuples::new(attrs.int("batch_dims", 0)?, x.shape(), indices.shape())?;
    let (indices, total) = (indices_of(indices)?, elements(&tuples.shape)?);
    let blocks: Vec<usize> = (0..tuples.count).map(|t| tuples.place(t, |i| indices[i])).collect::<Result<_, _>>()?;
    let data = map_data!(x.data(), v => {
        let mut out = Vec::with_capacity(total);
        blocks.iter().for_each(|&b| out.extend_from_slice(&v[b..b + tuples.block]));
        out
    });
    Ok(vec![Tensor::new(&tuples.shape, data)?])
}

fn nd_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
    let tuples = Tuples::new(l.attrs.int("batch_dims", 0)?, l.shape(0)?, l.shape(1)?)?;
    Ok(Some(Lowered::new(Blocks { tuples, wide, unit: dtype.size_bytes() }, vec![0, 1])))
}

/// Where the tuples of a `GatherND` or `ScatterND` point.
pub(super) struct Tuples {
    /// Shape of all blocks together.
    pub(super) shape: Vec<usize>,
    /// Elements of a block.
    pub(super) block: usize,
    /// Number of tuples.
    pub(super) count: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
    per_batch: usize,
    batch_stride: usize,
}

impl Tuples {
    pub(super) fn new(batch_dims: i64, data: &[usize], indices: &[usize]) -> Result<Tuples, OpError> {
        let wrong =
            || OpError::shape("indices", format!("tuples into {data:?} after {batch_dims} batch axes"), indices);
        let (&k, outer) = indices.split_last().ok_or_else(wrong)?;
        let b = usize::try_from(batch_dims).ok().filter(|&b| b <= outer.len() && b <= data.len()).ok_or_else(wrong)?;
        if data[..b] != outer[..b] || k > data.len() - b {
            return Err(wrong());
        }
        let shape = [outer, &data[b + k..]].concat();
        elements(&shape)?;
        elements(indices)?;
        Ok(Tuples {
            block: elements(&data[b + k..])?,
            count: outer.iter().product(),
            dims: data[b..b + k].to_vec(),
            strides: strides_of(data)[b..b + k].to_vec(),
            per_batch: outer[b..].iter().product(),
            batch_stride: data[b..].iter().product(),
            shape,
        })
    }

    /// First element of the block that tuple `t` names.
    #[inline(always)]
    pub(super) fn place(&self, t: usize, index: impl Fn(usize) -> i64) -> Result<usize, OpError> {
        let mut at = t / self.per_batch * self.batch_stride;
        for (c, (&dim, stride)) in self.dims.iter().zip(&self.strides).enumerate() {
            at += position(index(t * self.dims.len() + c), dim)? * stride;
        }
        Ok(at)
    }
}

struct Blocks {
    tuples: Tuples,
    wide: bool,
    unit: usize,
}

impl Fallible for Blocks {
    fn name(&self) -> &'static str {
        "gather-nd"
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let indices = Ints::of(reads, 1, self.wide);
        let (x, y) = (reads.bytes(0), writes.bytes(0));
        let block = self.tuples.block * self.unit;
        let mut y = y.chunks_exact_mut(block.max(1));
        for t in 0..self.tuples.count {
            let at = self.tuples.place(t, |i| indices.at(i))? * self.unit;
            if let Some(y) = y.next() {
                y.copy_from_slice(&x[at..at + block]);
            }
        }
        Ok(())
    }
}
