//! The gradient of a view: every element goes back to where it was read from, zeros are where nothing was.
use hone_gpu::copy as gpu;
use hone_kernels::strided::{Axis, Layout};

use super::operands::Facts;
use super::view::{View, ViewOf};
use crate::autodiff::Backward;
use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, strides_of};
use crate::plan::{At, Io, Kernel, Lowered, Recorded};
use crate::tensor::{DType, Tensor};

/// Elements of the operand put where attributes say (`base` plus `strides` over `lengths`) in zeros of the shape `to`; no
/// two at the same place.
static UNVIEW: OpDef = OpDef::new(
    "Unview",
    "elements put back where a view read them, zeros elsewhere",
    |attrs, inputs| {
        let dy = need(inputs, 0, "dY")?;
        Ok(Some(vec![Fact::new(dy.dtype, places(attrs)?.0)]))
    },
    |attrs, inputs| {
        let dy = need(inputs, 0, "dY")?;
        let (to, view) = places(attrs)?;
        let mut at = vec![0usize; view.lengths.len()];
        let mut out = Tensor::zeros(dy.dtype(), &to)?.into_data();
        let mut targets = Vec::with_capacity(dy.len());
        for _ in 0..dy.len() {
            let step: isize = at.iter().zip(&view.strides).map(|(&i, &s)| i as isize * s).sum();
            targets.push((view.base as isize + step) as usize);
            for ax in (0..at.len()).rev() {
                at[ax] += 1;
                if at[ax] < view.lengths[ax] {
                    break;
                }
                at[ax] = 0;
            }
        }
        out.put(&targets, dy.data());
        Ok(vec![Tensor::new(&to, out)?])
    },
)
.domain(HONE)
.kernel(|l| {
    let (_, view) = places(l.attrs)?;
    let Some(dtype) = l.dtype(0) else { return Ok(None) };
    let own = strides_of(&view.lengths);
    let axes: Vec<Axis> = (view.lengths.iter().zip(&view.strides).zip(own))
        .map(|((&len, &to), from)| Axis { len, from: from as isize, to })
        .collect();
    let layout = Layout::new(dtype.size_bytes(), 0, view.base, &axes);
    Ok(layout.map(|layout| Lowered::new(Put(layout), vec![0])))
})
.gpu(|l| {
    let (to, view) = places(l.attrs)?;
    // Zeros, then what has a place; through strides that turn around it has none here.
    let strides: Option<Vec<usize>> = view.strides.iter().map(|&s| usize::try_from(s).ok()).collect();
    let (Some(strides), Some(DType::F32)) = (strides, l.dtype(0)) else { return Ok(None) };
    let own = strides_of(&view.lengths);
    let walk = view.lengths.iter().zip(strides).zip(own);
    let axes = walk.map(|((&len, to), from)| gpu::Axis::plain(len, from as isize, to)).collect();
    let put = gpu::Copy { unit: 4, base: 0, to: view.base, axes, border: gpu::Border::Fill([0; 8]) };
    let clear = hone_gpu::update::Update::Clear.call(elements(&to)?);
    let Some(out) = Recorded::one(clear, vec![At::Out(0)]) else { return Ok(None) };
    Ok(out.and(put.call(), vec![At::In(0), At::Out(0)]))
});

struct Put(Layout);

impl Kernel for Put {
    fn name(&self) -> &'static str {
        "unview"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let out = writes.bytes(0);
        out.fill(0);
        self.0.copy(reads.bytes(0), out);
    }
}

/// The shape of the result and the view it is put through.
fn places(attrs: &Attrs) -> Result<(Vec<usize>, View), OpError> {
    let list = |name: &str| attrs.ints(name)?.ok_or_else(|| OpError::attribute(name, "is missing"));
    let lengths = |name: &str| Ok::<_, OpError>(list(name)?.iter().map(|&d| d as usize).collect::<Vec<_>>());
    let (to, lengths) = (lengths("to")?, lengths("lengths")?);
    elements(&to)?;
    let strides = list("strides")?.iter().map(|&s| s as isize).collect();
    Ok((to, View { shape: lengths.clone(), lengths, strides, base: attrs.int("base", 0)? as usize }))
}

/// The gradient of a view that reads no element twice.
pub(super) fn unviewed(b: &mut Backward<'_>, view: ViewOf) -> Result<(), OpError> {
    let (dy, to, attrs) = (b.dy()?, b.x_shape(0)?, b.attrs());
    let facts: Vec<Option<Fact>> = b.operands().iter().map(|v| v.map(|v| b.fact(v).clone())).collect();
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let view = view(&Facts(&attrs, &refs))?.ok_or_else(|| OpError::unsupported("a view that depends on data"))?;
    let attrs = Attrs::of([
        ("to", Attr::Ints(to.iter().map(|&d| d as i64).collect())),
        ("lengths", Attr::Ints(view.lengths.iter().map(|&d| d as i64).collect())),
        ("strides", Attr::Ints(view.strides.iter().map(|&s| s as i64).collect())),
        ("base", Attr::Int(view.base as i64)),
    ]);
    let dx = b.one(&UNVIEW, attrs, &[Some(dy)])?;
    b.give(0, dx);
    Ok(())
}
