//! Triangles of matrices, and sequences reversed up to their length.
use super::operands::{Facts, Operands, Tensors};
use crate::autodiff::Backward;
use crate::map_data;
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, ints_of, need, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{Data, Tensor};

/// `Trilu`: of each matrix the part on and above (`upper`), or on and below, diagonal `k`; zeros elsewhere.
pub(super) static TRILU: OpDef =
    OpDef::new("Trilu", "the upper or lower triangle of each matrix, zeros elsewhere", trilu_rule, trilu)
        .kernel(trilu_lower)
        .vjp(again);

/// ONNX Runtime's `Trilu`, as it was before the standard took it.
pub(super) static TRILU_MICROSOFT: OpDef =
    OpDef::new("Trilu", "the upper or lower triangle of each matrix, zeros elsewhere", trilu_rule, trilu)
        .kernel(trilu_lower)
        .domain(MICROSOFT)
        .vjp(again);

/// The same operator on the gradient: it keeps a triangle, or is its own inverse.
fn again(b: &mut Backward<'_>) -> Result<(), OpError> {
    let (dy, attrs) = (b.dy()?, Attrs::clone(&b.attrs()));
    let mut operands = b.operands();
    operands[0] = Some(dy);
    let dx = match &b.node_op() {
        Some(op) => b.one(op, attrs, &operands)?,
        None => return Err(OpError::unsupported("a gradient of an operator that is not ours")),
    };
    b.give(0, dx);
    Ok(())
}

fn trilu_rule(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "input")?;
    Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
}

fn trilu(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "input")?;
    let Some(triangle) = Triangle::new(&Tensors(attrs, inputs), 1)? else {
        return Err(OpError::unsupported("a diagonal without a value"));
    };
    let zero = Data::zeros(x.dtype(), 1);
    let mut all = x.data().clone();
    all.append(&zero);
    let last = x.len();
    let mut source = Vec::with_capacity(last);
    for row in 0..triangle.rows_of(x.len()) {
        let kept = triangle.kept(row);
        source.extend((0..triangle.columns).map(|j| if kept.contains(&j) { row * triangle.columns + j } else { last }));
    }
    Ok(vec![Tensor::new(x.shape(), all.pick(&source))?])
}

fn trilu_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(dtype) = l.dtype(0) else { return Ok(None) };
    Ok(Triangle::new(l, dtype.size_bytes())?.map(|t| Lowered::new(t, vec![0])))
}

/// Which columns of each row stay.
struct Triangle {
    rows: usize,
    columns: usize,
    k: i64,
    upper: bool,
    unit: usize,
}

impl Triangle {
    fn new(o: &dyn Operands, unit: usize) -> Result<Option<Triangle>, OpError> {
        let &[.., rows, columns] = o.shape(0, "input")? else {
            return Err(OpError::shape("input", "matrices", o.shape(0, "input")?));
        };
        let Some(k) = o.list(1, "k")? else { return Ok(None) };
        let k = match k.as_deref() {
            None => 0,
            Some(&[k]) => k,
            Some(other) => return Err(OpError::shape("k", "one number", other)),
        };
        let upper = o.attrs().flag("upper", true)?;
        Ok(Some(Triangle { rows, columns, k, upper, unit }))
    }

    /// Rows of all matrices in so many elements.
    fn rows_of(&self, elements: usize) -> usize {
        elements.checked_div(self.columns).unwrap_or(0)
    }

    /// Columns of row `row`, counted over all matrices, that stay.
    fn kept(&self, row: usize) -> std::ops::Range<usize> {
        let diagonal = ((row % self.rows.max(1)) as i64).saturating_add(self.k);
        let within = |v: i64| v.clamp(0, self.columns as i64) as usize;
        if self.upper { within(diagonal)..self.columns } else { 0..within(diagonal.saturating_add(1)) }
    }
}

impl Kernel for Triangle {
    fn name(&self) -> &'static str {
        "triangle"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, y) = (reads.bytes(0), writes.bytes(0));
        let width = self.columns * self.unit;
        if width == 0 {
            return;
        }
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let kept = self.kept(row);
            let (a, b) = (kept.start * self.unit, kept.end * self.unit);
            y[..a].fill(0);
            y[a..b].copy_from_slice(&x[a..b]);
            y[b..].fill(0);
        }
    }
}

/// `ReverseSequence`: in batch entry `b` the first `sequence_lens[b]` steps backwards, the rest as it is.
pub(super) static REVERSE_SEQUENCE: OpDef = OpDef::new(
    "ReverseSequence",
    "each sequence of a batch backwards, up to its length",
    |attrs, inputs| {
        need(inputs, 1, "sequence_lens")?;
        let x = need(inputs, 0, "input")?;
        sequence_axes(&Facts(attrs, inputs))?;
        Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
    },
    |attrs, inputs| {
        let (x, lens) = (need(inputs, 0, "input")?, ints_of(need(inputs, 1, "sequence_lens")?));
        let (time, batch) = sequence_axes(&Tensors(attrs, inputs))?;
        let (shape, strides) = (x.shape(), strides_of(x.shape()));
        if lens.len() != shape[batch] {
            return Err(OpError::shape("sequence_lens", shape[batch], lens.len()));
        }
        if let Some(l) = lens.iter().find(|&&l| l < 0 || l as u64 > shape[time] as u64) {
            return Err(OpError::shape("sequence_lens", format!("lengths from 0 to {}", shape[time]), l));
        }
        // Only the two outermost axes matter; below them everything is one block.
        let block: usize = shape[2..].iter().product();
        let data = map_data!(x.data(), v => {
            let mut out = Vec::with_capacity(v.len());
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    let (t, b) = if time == 0 { (i, j) } else { (j, i) };
                    let len = lens[b] as usize;
                    let t = if t < len { len - 1 - t } else { t };
                    let at = t * strides[time] + b * strides[batch];
                    out.extend_from_slice(&v[at..at + block]);
                }
            }
            out
        });
        Ok(vec![Tensor::new(shape, data)?])
    },
)
.vjp(again);

fn sequence_axes(o: &dyn Operands) -> Result<(usize, usize), OpError> {
    let shape = o.shape(0, "input")?;
    let time = axis_of(o.attrs().int("time_axis", 0)?, shape.len())?;
    let batch = axis_of(o.attrs().int("batch_axis", 1)?, shape.len())?;
    if time + batch != 1 {
        return Err(OpError::attribute("time_axis", format!("and batch_axis are {time} and {batch}, not 0 and 1")));
    }
    Ok((time, batch))
}
