//! Tensors put together along an axis and taken apart.
use hone_gpu::copy as gpu;
use hone_kernels::strided::{Axis, Layout};

use super::operands::{Facts, Operands, Tensors};
use super::view::View;
use crate::map_data;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, axis_of, need, record};
use crate::plan::{At, Io, Kernel, Lowered, Recorded};
use crate::tensor::{Data, Tensor};

/// `Concat`: tensors one after another along `axis` (1 where old files leave it out).
pub(super) static CONCAT: OpDef = OpDef::new(
    "Concat",
    "tensors one after another along one axis",
    |attrs, inputs| {
        let first = need(inputs, 0, "inputs")?;
        let joint = Joint::new(attrs, &inputs.iter().flatten().map(|f| &f.shape[..]).collect::<Vec<_>>())?;
        Ok(Some(vec![Fact::new(first.dtype, joint.shape)]))
    },
    |attrs, inputs| {
        let first = need(inputs, 0, "inputs")?;
        let parts: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
        let joint = Joint::new(attrs, &parts.iter().map(|t| t.shape()).collect::<Vec<_>>())?;
        let mut data = Data::zeros(first.dtype(), 0);
        if let Some(other) = parts.iter().find(|p| p.dtype() != first.dtype()) {
            return Err(OpError::unsupported(format!("Concat of {} and {}", first.dtype(), other.dtype())));
        }
        // One after another they lie in the order of the parts; from there every row collects its runs.
        parts.iter().for_each(|p| data.append(p.data()));
        let total = elements(&joint.shape)?;
        let mut starts = Vec::with_capacity(parts.len());
        let mut at = 0;
        for p in &parts {
            starts.push(at);
            at += p.len();
        }
        let data = map_data!(&data, v => {
            let mut out = Vec::with_capacity(total);
            for o in 0..joint.outer {
                for (&start, &run) in starts.iter().zip(&joint.runs) {
                    out.extend_from_slice(&v[start + o * run..][..run]);
                }
            }
            out
        });
        Ok(vec![Tensor::new(&joint.shape, data)?])
    },
)
.kernel(|l| {
    let n = l.inputs();
    if (0..n).any(|i| !l.has(i) || l.dtype(i) != l.dtype(0)) {
        return Ok(None);
    }
    let shapes: Vec<&[usize]> = (0..n).map(|i| l.shape(i)).collect::<Result<_, _>>()?;
    let (joint, Some(dtype)) = (Joint::new(l.attrs, &shapes)?, l.dtype(0)) else { return Ok(None) };
    let runs = joint.runs.iter().map(|r| r * dtype.size_bytes()).collect();
    Ok(Some(Lowered::new(Join { outer: joint.outer, runs }, (0..n).collect())))
})
.gpu(|l| {
    let n = l.inputs();
    if (0..n).any(|i| !l.has(i) || l.dtype(i) != l.dtype(0)) {
        return Ok(None);
    }
    let shapes: Vec<&[usize]> = (0..n).map(|i| l.shape(i)).collect::<Result<_, _>>()?;
    let (joint, Some(dtype)) = (Joint::new(l.attrs, &shapes)?, l.dtype(0)) else { return Ok(None) };
    let row: usize = joint.runs.iter().sum();
    let (mut at, mut recorded) = (0, Some(Recorded::default()));
    for (i, &run) in joint.runs.iter().enumerate() {
        let axes = vec![gpu::Axis::plain(joint.outer, run as isize, row), gpu::Axis::plain(run, 1, 1)];
        let copy = gpu::Copy { unit: dtype.size_bytes(), base: 0, to: at, axes, border: record::BARE };
        recorded = recorded.and_then(|r| r.and(copy.call(), vec![At::In(i), At::Out(0)]));
        at += run;
    }
    Ok(recorded)
})
.vjp(|b| {
    let dy = b.dy()?;
    let shapes: Vec<Vec<usize>> = (0..b.inputs()).map(|i| b.x_shape(i)).collect::<Result<_, _>>()?;
    let joint = Joint::new(&b.attrs(), &shapes.iter().map(|s| &s[..]).collect::<Vec<_>>())?;
    let rank = joint.shape.len();
    let axis = axis_of(b.attrs().int("axis", if b.attrs().opset < 4 { 1 } else { 0 })?, rank)?;
    let mut at = 0;
    for (i, shape) in shapes.iter().enumerate() {
        // An empty vector among tensors of another rank takes no part.
        let len = if shape.len() == rank { shape[axis] } else { 0 };
        if b.wants(i) && len > 0 {
            let g = b.slice(dy, axis, at, at + len)?;
            b.give(i, g);
        }
        at += len;
    }
    Ok(())
});

/// How parts lie in the whole: `outer` times one run of each.
struct Joint {
    shape: Vec<usize>,
    outer: usize,
    runs: Vec<usize>,
}

impl Joint {
    fn new(attrs: &Attrs, parts: &[&[usize]]) -> Result<Joint, OpError> {
        // Exporters put an empty vector where a list began empty; ONNX Runtime leaves it out whatever its rank.
        let empty = |s: &[usize]| s == [0];
        let first = parts.iter().find(|s| !empty(s)).or(parts.first()).copied();
        let first = first.ok_or(OpError::MissingInput { index: 0, name: "inputs" })?;
        let axis = axis_of(attrs.int("axis", if attrs.opset < 4 { 1 } else { 0 })?, first.len())?;
        let mut shape = first.to_vec();
        shape[axis] = 0;
        let inner = elements(&first[axis + 1..])?;
        let mut runs = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            if empty(part) && first.len() != 1 {
                runs.push(0);
                continue;
            }
            if part.len() != first.len() || (0..first.len()).any(|a| a != axis && part[a] != first[a]) {
                return Err(OpError::shape(format!("input {i} to join along axis {axis}"), first, part));
            }
            shape[axis] =
                shape[axis].checked_add(part[axis]).ok_or_else(|| OpError::unsupported("a length beyond memory"))?;
            runs.push(elements(&[part[axis], inner])?);
        }
        elements(&shape)?;
        Ok(Joint { outer: elements(&first[..axis])?, shape, runs })
    }
}

/// Runs of each part in turn.
struct Join {
    outer: usize,
    /// Bytes of a run of each part.
    runs: Vec<usize>,
}

impl Kernel for Join {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let mut out = writes.bytes(0);
        for o in 0..self.outer {
            for (p, &run) in self.runs.iter().enumerate() {
                let (here, rest) = out.split_at_mut(run);
                here.copy_from_slice(&reads.bytes(p)[o * run..][..run]);
                out = rest;
            }
        }
    }
}

/// `Split`: consecutive parts along `axis`, of the lengths `split` or of one length, the last one shorter if need be.
pub(super) static SPLIT: OpDef = OpDef::new(
    "Split",
    "consecutive parts along one axis",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let parts = parts(&Facts(attrs, inputs))?;
        Ok(parts.map(|p| p.into_iter().map(|v| Fact::new(x.dtype, v.shape)).collect()))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let parts = parts(&Tensors(attrs, inputs))?.unwrap_or_default();
        parts.iter().map(|v| v.read(x)).collect()
    },
)
.kernel(|l| {
    let (Some(parts), Some(dtype)) = (parts(l)?, l.dtype(0)) else { return Ok(None) };
    let mut layouts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let own = crate::ops::strides_of(&part.shape);
        let axes: Vec<Axis> = (part.lengths.iter().zip(&part.strides).zip(own))
            .map(|((&len, &from), to)| Axis { len, from, to: to as isize })
            .collect();
        let layout = if l.wants(i) { Layout::new(dtype.size_bytes(), part.base, 0, &axes) } else { None };
        if l.wants(i) && layout.is_none() {
            return Ok(None);
        }
        layouts.push(layout);
    }
    Ok(Some(Lowered::new(Parts(layouts), vec![0])))
})
.gpu(|l| {
    let (Some(parts), Some(dtype)) = (parts(l)?, l.dtype(0)) else { return Ok(None) };
    let mut recorded = Some(Recorded::default());
    for (i, part) in parts.iter().enumerate().filter(|(i, _)| l.wants(*i)) {
        let axes = record::axes(&part.lengths, &part.strides);
        let copy = gpu::Copy { unit: dtype.size_bytes(), base: part.base as isize, to: 0, axes, border: record::BARE };
        recorded = recorded.and_then(|r| r.and(copy.call(), vec![At::In(0), At::Out(i)]));
    }
    Ok(recorded)
})
.vjp(|b| {
    let x = b.x(0)?;
    let (shape, dtype) = (b.shape(x).to_vec(), b.dtype(x));
    let axis = axis_of(b.attrs().int("axis", 0)?, shape.len())?;
    let facts: Vec<Option<Fact>> = b.operands().iter().map(|v| v.map(|v| b.fact(v).clone())).collect();
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let views = parts(&Facts(&b.attrs(), &refs))?.unwrap_or_default();
    let mut grads = Vec::with_capacity(views.len());
    for (i, view) in views.iter().enumerate() {
        grads.push(match b.dy_of(i) {
            Some(dy) => dy,
            None => b.zeros(dtype, &view.shape)?,
        });
    }
    let dx = b.concat(&grads, axis)?;
    b.give(0, dx);
    Ok(())
});

/// The parts of a `Split` as views.
fn parts(o: &dyn Operands) -> Result<Option<Vec<View>>, OpError> {
    let (attrs, from) = (o.attrs(), o.shape(0, "input")?);
    let axis = axis_of(attrs.int("axis", 0)?, from.len())?;
    let Some(lengths) = o.list(1, "split")? else { return Ok(None) };
    let dim = from[axis];
    let wrong = |lengths: &dyn std::fmt::Debug| OpError::shape(format!("parts of axis {axis}"), dim, lengths);
    let lengths: Vec<usize> = match lengths {
        Some(l) => l.iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>().ok_or_else(|| wrong(&l))?,
        None => {
            let n = match attrs.int("num_outputs", 0)? {
                0 => attrs.outputs,
                n => usize::try_from(n).map_err(|_| OpError::attribute("num_outputs", "is negative"))?,
            };
            if n == 0 || n > attrs.outputs.max(1) || (attrs.opset < 18 && dim % n != 0) {
                return Err(OpError::shape(format!("axis {axis} to split"), format!("{n} equal parts"), dim));
            }
            let part = dim.div_ceil(n);
            let last = dim.checked_sub(part * (n - 1));
            let last =
                last.ok_or_else(|| OpError::shape(format!("axis {axis} to split"), format!("{n} parts"), dim))?;
            std::iter::repeat_n(part, n - 1).chain([last]).collect()
        }
    };
    if lengths.iter().try_fold(0usize, |n, &l| n.checked_add(l)) != Some(dim) {
        return Err(wrong(&lengths));
    }
    let mut at = 0;
    Ok(Some(
        lengths
            .into_iter()
            .map(|len| {
                let mut view = View::whole(from, from.to_vec());
                view.base = at * view.strides[axis] as usize;
                view.lengths[axis] = len;
                view.shape[axis] = len;
                if view.lengths.contains(&0) {
                    view.base = 0;
                }
                at += len;
                view
            })
            .collect(),
    ))
}

/// One copy a part; `None` where nobody asked for it.
struct Parts(Vec<Option<Layout>>);

impl Kernel for Parts {
    fn name(&self) -> &'static str {
        "split"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        for (i, layout) in self.0.iter().enumerate() {
            if let Some(layout) = layout {
                layout.copy(reads.bytes(0), writes.bytes(i));
            }
        }
    }
}
