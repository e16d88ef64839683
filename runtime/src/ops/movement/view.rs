//! Operators whose result is their first operand read through strides: the one formula behind half of the family.
use hone_gpu::copy::Copy;
use hone_kernels::strided::{Axis, Layout};

use super::operands::{Facts, Operands, Tensors};
use crate::map_data;
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpError, need, record, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::Tensor;

/// Element `at` of the result is element `base + Σ at[i] · axes[i].stride` of the operand.
///
/// The axes may be a finer division of the result than `shape`, which has as many elements.
#[derive(Clone, Debug)]
pub(in crate::ops) struct View {
    /// Shape of the result.
    pub(in crate::ops) shape: Vec<usize>,
    /// Lengths of the walk, outermost first.
    pub(in crate::ops) lengths: Vec<usize>,
    /// Elements of the operand to go per step of each.
    pub(in crate::ops) strides: Vec<isize>,
    /// First element.
    pub(in crate::ops) base: usize,
}

impl View {
    /// Every element in order, under another shape.
    pub(in crate::ops) fn whole(from: &[usize], shape: Vec<usize>) -> View {
        let strides = signed(strides_of(from));
        View { shape, lengths: from.to_vec(), strides, base: 0 }
    }

    /// Axes of the operand in another order or length.
    pub(in crate::ops) fn strided(shape: Vec<usize>, strides: Vec<usize>) -> View {
        View { lengths: shape.clone(), shape, strides: signed(strides), base: 0 }
    }

    /// The elements of `x`, which has the shape the view was made for.
    ///
    /// # Errors
    /// [`OpError::Tensor`] when the result cannot be held.
    pub(in crate::ops) fn read(&self, x: &Tensor) -> Result<Tensor, OpError> {
        let n = elements(&self.shape)?;
        let data = map_data!(x.data(), v => {
            let mut out = Vec::with_capacity(n);
            self.each_row(|from, len, stride| match stride {
                1 => out.extend_from_slice(&v[from..from + len]),
                _ => out.extend((0..len as isize).map(|j| v[(from as isize + j * stride) as usize])),
            });
            out
        });
        Ok(Tensor::new(&self.shape, data)?)
    }

    /// Calls `f` with the first element, length and stride of every row, in order.
    fn each_row(&self, mut f: impl FnMut(usize, usize, isize)) {
        let Some((&len, outer)) = self.lengths.split_last() else { return f(self.base, 1, 1) };
        if self.lengths.contains(&0) {
            return;
        }
        let stride = self.strides[outer.len()];
        let mut at = vec![0usize; outer.len()];
        let mut from = self.base as isize;
        'rows: loop {
            f(from as usize, len, stride);
            for ax in (0..outer.len()).rev() {
                at[ax] += 1;
                from += self.strides[ax];
                if at[ax] < outer[ax] {
                    continue 'rows;
                }
                from -= self.strides[ax] * at[ax] as isize;
                at[ax] = 0;
            }
            return;
        }
    }
}

pub(in crate::ops) fn signed(strides: Vec<usize>) -> Vec<isize> {
    strides.into_iter().map(|s| s as isize).collect()
}

/// What an operator makes of its operands; `None` when that needs values that are not known.
pub(super) type ViewOf = fn(&dyn Operands) -> Result<Option<View>, OpError>;

/// The shape rule of such an operator.
pub(super) fn rule(attrs: &Attrs, inputs: &[Option<&Fact>], view: ViewOf) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "data")?;
    let view = view(&Facts(attrs, inputs))?;
    Ok(view.map(|v| vec![Fact::new(x.dtype, v.shape)]))
}

/// Its formula.
pub(super) fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>], view: ViewOf) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "data")?;
    let view = view(&Tensors(attrs, inputs))?.ok_or_else(|| OpError::unsupported("operands without a value"))?;
    Ok(vec![view.read(x)?])
}

/// Its kernel.
pub(super) fn lower(l: &Lowering<'_>, view: ViewOf) -> Result<Option<Lowered>, OpError> {
    let (Some(view), Some(dtype)) = (view(l)?, l.dtype(0)) else { return Ok(None) };
    if view.shape != l.output_shape(0) {
        return Ok(None);
    }
    let own = strides_of(&view.lengths);
    let whole = view.base == 0
        && view.lengths.iter().product::<usize>() == l.shape(0)?.iter().product::<usize>()
        && view.lengths.iter().zip(&view.strides).zip(&own).all(|((&len, &from), &to)| len == 1 || from == to as isize);
    let axes = view.lengths.iter().zip(&view.strides).zip(own);
    let axes: Vec<Axis> = axes.map(|((&len, &from), to)| Axis { len, from, to: to as isize }).collect();
    let layout = Layout::new(dtype.size_bytes(), view.base, 0, &axes);
    let lowered = layout.map(|layout| Lowered::new(StridedCopy(layout), vec![0]));
    Ok(lowered.map(|l| if whole { l.same_bytes(0) } else { l }))
}

/// Its form on a GPU.
pub(super) fn record(l: &Lowering<'_>, view: ViewOf) -> Result<Option<Recorded>, OpError> {
    let (Some(view), Some(dtype)) = (view(l)?, l.dtype(0)) else { return Ok(None) };
    let axes = record::axes(&view.lengths, &view.strides);
    let copy = Copy { unit: dtype.size_bytes(), base: view.base as isize, to: 0, axes, border: record::BARE };
    Ok(if view.shape == l.output_shape(0) { record::copied(&copy) } else { None })
}

struct StridedCopy(Layout);

impl Kernel for StridedCopy {
    fn name(&self) -> &'static str {
        self.0.kernel()
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        self.0.copy(reads.bytes(0), writes.bytes(0));
    }
}

/// A row of an operator that is a view.
macro_rules! view_op {
    ($name:literal, $doc:literal, $view:expr) => {
        $crate::ops::OpDef::new(
            $name,
            $doc,
            |attrs, inputs| $crate::ops::movement::view::rule(attrs, inputs, $view),
            |attrs, inputs| $crate::ops::movement::view::reference(attrs, inputs, $view),
        )
        .kernel(|l| $crate::ops::movement::view::lower(l, $view))
        .gpu(|l| $crate::ops::movement::view::record(l, $view))
    };
}
pub(super) use view_op;
