//! `MatMul` and its forms with transposed operands, and `Gemm`.
use super::contraction::{Addend, Epilogue, Numbers, lower, offsets};
use super::{Contraction, Lie, backward, on_gpu};
use crate::ops::shape::{broadcast, elements};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, need, no_kernel, optional, strides_of};
use crate::plan::{At, Lowered, Lowering, Recorded, Weight};
use crate::tensor::{DType, Tensor};
use hone_gpu::product as gpu;
use hone_kernels::epilogue::Activation;

/// NumPy matrix product.
pub(super) static MATMUL: OpDef = OpDef::new(
    "MatMul",
    "matrix product over the last two axes, the others broadcast",
    |_, inputs| matmul_shape(Turned::default(), inputs),
    |_, inputs| matmul(Turned::default(), 1.0, inputs),
)
.kernel(|l| matmul_kernel(Turned::default(), 1.0, l))
.gpu(|l| matmul_recorded(Turned::default(), 1.0, l))
.vjp(backward::matmul);

/// The same with either operand transposed, its first axis moved behind the batch, and the product scaled.
pub(super) static FUSED_MATMUL: OpDef = OpDef::new(
    "FusedMatMul",
    "alpha · A' · B', either operand transposed, its batch axes moved",
    |attrs, inputs| matmul_shape(Turned::of(attrs)?, inputs),
    |attrs, inputs| matmul(Turned::of(attrs)?, attrs.float("alpha", 1.0)?, inputs),
)
.domain(MICROSOFT)
.kernel(|l| matmul_kernel(Turned::of(l.attrs)?, l.attrs.float("alpha", 1.0)?, l))
.gpu(|l| matmul_recorded(Turned::of(l.attrs)?, l.attrs.float("alpha", 1.0)?, l))
.vjp(backward::fused_matmul);

/// The same under its old name.
pub(super) static TRANSPOSE_MATMUL: OpDef = OpDef::new(
    "TransposeMatMul",
    "alpha · A' · B', either operand transposed",
    FUSED_MATMUL.shape,
    FUSED_MATMUL.reference,
)
.domain(MICROSOFT)
.kernel(FUSED_MATMUL.lower)
.vjp(backward::fused_matmul);

/// `alpha · A' · B' + beta · C`.
pub(super) static GEMM: OpDef =
    OpDef::new("Gemm", "alpha · A' · B' + beta · C, either operand transposed", gemm_shape, |attrs, inputs| {
        gemm(attrs, inputs, None)
    })
    .kernel(|l| gemm_kernel(l, Epilogue::default()))
    .gpu(gemm_recorded)
    .vjp(backward::gemm);

/// How the operands of a matrix product are turned.
#[derive(Clone, Copy, Default)]
struct Turned {
    a: Side,
    b: Side,
}

#[derive(Clone, Copy, Default)]
struct Side {
    /// The last two axes are exchanged.
    transposed: bool,
    /// The first axis belongs behind the batch axes.
    batch_behind: bool,
}

impl Turned {
    fn of(attrs: &Attrs) -> Result<Turned, OpError> {
        let side = |t: &str, b: &str| -> Result<Side, OpError> {
            Ok(Side { transposed: attrs.flag(t, false)?, batch_behind: attrs.flag(b, false)? })
        };
        Ok(Turned { a: side("transA", "transBatchA")?, b: side("transB", "transBatchB")? })
    }
}

/// An operand as batches of matrices: lengths and strides.
struct Matrices {
    batch: Vec<usize>,
    batch_strides: Vec<usize>,
    row: (usize, usize),
    column: (usize, usize),
}

impl Matrices {
    /// A vector is a row on the left and a column on the right.
    fn new(shape: &[usize], side: Side, left: bool) -> Matrices {
        let (rank, strides) = (shape.len(), strides_of(shape));
        if rank < 2 {
            let all = (shape.first().copied().unwrap_or(1), 1);
            let (row, column) = if left { ((1, 0), all) } else { (all, (1, 0)) };
            return Matrices { batch: Vec::new(), batch_strides: Vec::new(), row, column };
        }
        let behind = side.batch_behind && rank > 2;
        let (batch, row) = if behind { (1..rank - 1, 0) } else { (0..rank - 2, rank - 2) };
        let mut row = (shape[row], strides[row]);
        let mut column = (shape[rank - 1], strides[rank - 1]);
        if side.transposed {
            (row, column) = (column, row);
        }
        Matrices { batch: shape[batch.clone()].to_vec(), batch_strides: strides[batch].to_vec(), row, column }
    }

    /// Offset of each batch of `to`, which the own batch broadcasts to.
    fn starts(&self, to: &[usize]) -> Result<Vec<usize>, OpError> {
        let lead = to.len() - self.batch.len();
        let stride = |i: usize| match i.checked_sub(lead) {
            Some(j) if self.batch[j] != 1 => self.batch_strides[j],
            _ => 0,
        };
        offsets(to, &(0..to.len()).map(stride).collect::<Vec<_>>())
    }
}

fn steps(n: usize, stride: usize) -> Vec<usize> {
    (0..n).map(|i| i * stride).collect()
}

/// Operands as matrices, batch shape, and shape of the product.
fn matmul_shapes(
    turned: Turned,
    a: &[usize],
    b: &[usize],
) -> Result<(Matrices, Matrices, Vec<usize>, Vec<usize>), OpError> {
    let wrong = || OpError::shape("operands of a matrix product", "[…, M, K] and […, K, N]", (a, b));
    if a.is_empty() || b.is_empty() {
        return Err(wrong());
    }
    let (left, right) = (Matrices::new(a, turned.a, true), Matrices::new(b, turned.b, false));
    if left.column.0 != right.row.0 {
        return Err(wrong());
    }
    let batch = broadcast(&left.batch, &right.batch).map_err(|_| wrong())?;
    let mut shape = batch.clone();
    if a.len() > 1 {
        shape.push(left.row.0);
    }
    if b.len() > 1 {
        shape.push(right.column.0);
    }
    Ok((left, right, batch, shape))
}

fn matmul_shape(turned: Turned, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    Ok(Some(vec![Fact::new(a.dtype, matmul_shapes(turned, &a.shape, &b.shape)?.3)]))
}

fn matmul_contraction(turned: Turned, a: &[usize], b: &[usize]) -> Result<(Contraction, Vec<usize>), OpError> {
    let (left, right, batch, shape) = matmul_shapes(turned, a, b)?;
    elements(&shape)?;
    let c = Contraction {
        batches: left.starts(&batch)?.into_iter().zip(right.starts(&batch)?).collect(),
        a_rows: steps(left.row.0, left.row.1),
        a_steps: steps(left.column.0, left.column.1),
        b_steps: steps(right.row.0, right.row.1),
        b_columns: steps(right.column.0, right.column.1),
    };
    Ok((c, shape))
}

fn matmul(turned: Turned, alpha: f32, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    let (c, shape) = matmul_contraction(turned, a.shape(), b.shape())?;
    let mut y = c.forward(&Numbers::of(a), &Numbers::of(b))?;
    if alpha != 1.0 {
        y = Numbers::Real(y.into_real().into_iter().map(|v| v * f64::from(alpha)).collect());
    }
    Ok(vec![Tensor::new(&shape, y.into_data(a.dtype()))?])
}

fn matmul_kernel(turned: Turned, alpha: f32, l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (c, _) = matmul_contraction(turned, l.shape(0)?, l.shape(1)?)?;
    let columns = if turned.b.transposed { 0 } else { 1 };
    let row_axis = (l.shape(1)?.len() == 2).then_some(columns);
    let epilogue = Epilogue { alpha: (alpha != 1.0).then_some(alpha), ..Epilogue::default() };
    lower(l, c, row_axis, epilogue, None)
}

fn matmul_recorded(turned: Turned, alpha: f32, l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let (left, right, batch, _) = matmul_shapes(turned, l.shape(0)?, l.shape(1)?)?;
    let mut at = vec![At::In(0)];
    let Some(mut p) = matrices(l, &left, &right, &batch, &mut at)? else { return Ok(None) };
    p.alpha = alpha;
    at.push(At::Out(0));
    Ok(Recorded::one(p.call(), at))
}

/// The product of those matrices on a GPU, without anything behind it; its right operand goes to `at`.
fn matrices(
    l: &Lowering<'_>,
    left: &Matrices,
    right: &Matrices,
    batch: &[usize],
    at: &mut Vec<At>,
) -> Result<Option<gpu::Product>, OpError> {
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) || batch.len() > 4 {
        return Ok(None);
    }
    let (mut m, k, n) = (left.row.0, left.column.0, right.column.0);
    let along = |of: &Matrices| -> [usize; 4] {
        let lead = batch.len() - of.batch.len();
        std::array::from_fn(|i| {
            let axis = (i + batch.len()).checked_sub(4).and_then(|i| i.checked_sub(lead));
            axis.filter(|&a| of.batch[a] != 1).map_or(0, |a| of.batch_strides[a])
        })
    };
    let mut lengths: [usize; 4] = std::array::from_fn(|i| (i + batch.len()).checked_sub(4).map_or(1, |i| batch[i]));
    let (mut a, mut w) = (along(left), along(right));
    let mut y = [0; 4];
    let mut step = m * n;
    for i in (0..4).rev() {
        y[i] = step;
        step *= lengths[i];
    }
    // Rows of all products follow one another: one product.
    let all: usize = lengths.iter().product();
    let unbroken = left.row.1 == k && left.column.1 == 1 && left.batch.iter().product::<usize>() == all;
    if w == [0; 4]
        && unbroken
        && strides_of(&[&left.batch[..], &[m, k]].concat())[..left.batch.len()] == left.batch_strides
    {
        m *= all;
        (lengths, a, y) = ([1; 4], [0; 4], [0; 4]);
    }
    let right = match l.weight(1) {
        Some(weight) if w == [0; 4] => {
            // The columns' scales are along the last axis, or the first of a turned matrix.
            let axis = if right.column.1 == 1 { l.shape(1)?.len() - 1 } else { 0 };
            let steps = [right.row.1, right.column.1];
            let lie =
                Lie { at: move |kk: usize, j: usize| kk * steps[0] + j * steps[1], numbers: &[0, steps[0], steps[1]] };
            let Some((right, operands)) = on_gpu(l, &weight, k, n, axis, lie)? else { return Ok(None) };
            at.extend(operands);
            right
        }
        Some(Weight::Q8 { .. }) => return Ok(None),
        _ => {
            at.push(At::In(1));
            gpu::Right::Plain { row: right.row.1, step: right.column.1 }
        }
    };
    if !matches!(right, gpu::Right::Plain { .. }) {
        w = [0; 4];
    }
    Ok(Some(gpu::Product {
        m,
        n,
        k,
        left: gpu::Left::Matrix { row: left.row.1, step: left.column.1 },
        right,
        y_row: n,
        batch: gpu::Batch { lengths, a, w, y },
        bias: false,
        residual: false,
        alpha: 1.0,
        activation: Activation::None,
        matrices: l.matrices,
    }))
}

fn gemm_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let (ta, tb) = (l.attrs.flag("transA", false)?, l.attrs.flag("transB", false)?);
    let side = |transposed| Side { transposed, batch_behind: false };
    let (left, right) = (Matrices::new(l.shape(0)?, side(ta), true), Matrices::new(l.shape(1)?, side(tb), false));
    let mut at = vec![At::In(0)];
    let Some(mut p) = matrices(l, &left, &right, &[], &mut at)? else { return Ok(None) };
    p.alpha = l.attrs.float("alpha", 1.0)?;
    let beta = l.attrs.float("beta", 1.0)?;
    if l.has(2) && beta != 0.0 {
        let strides = addend_strides(l.shape(2)?, p.m, p.n)?;
        match strides {
            _ if l.dtype(2) != Some(DType::F32) => return Ok(None),
            (0, 1) => p.bias = true,
            (row, 1) if row == p.n => p.residual = true,
            _ => return Ok(None),
        }
        at.push(match (beta == 1.0, l.constant(2)) {
            (true, _) => At::In(2),
            (false, Some(c)) => At::floats(&c.as_f32()?.iter().map(|v| v * beta).collect::<Vec<_>>()),
            (false, None) => return Ok(None),
        });
    }
    at.push(At::Out(0));
    Ok(Recorded::one(p.call(), at))
}

fn gemm_contraction(attrs: &Attrs, a: &[usize], b: &[usize]) -> Result<Contraction, OpError> {
    let (ta, tb) = (attrs.flag("transA", false)?, attrs.flag("transB", false)?);
    let wrong = |what| OpError::shape(what, "two matrices [M, K] and [K, N]", (a, b));
    if a.len() != 2 || b.len() != 2 {
        return Err(wrong("operands of Gemm"));
    }
    let (left, right) = (
        Matrices::new(a, Side { transposed: ta, batch_behind: false }, true),
        Matrices::new(b, Side { transposed: tb, batch_behind: false }, false),
    );
    if left.column.0 != right.row.0 {
        return Err(wrong("reduction of Gemm"));
    }
    elements(&[left.row.0, right.column.0])?;
    Ok(Contraction {
        batches: vec![(0, 0)],
        a_rows: steps(left.row.0, left.row.1),
        a_steps: steps(left.column.0, left.column.1),
        b_steps: steps(right.row.0, right.row.1),
        b_columns: steps(right.column.0, right.column.1),
    })
}

/// Strides of `C` along rows and columns of the product.
fn addend_strides(c: &[usize], m: usize, n: usize) -> Result<(usize, usize), OpError> {
    if broadcast(c, &[m, n]).ok().as_deref() != Some(&[m, n]) {
        return Err(OpError::shape("C of Gemm", format!("a shape that broadcasts to [{m}, {n}]"), c));
    }
    let s = crate::ops::shape::broadcast_strides(c, &[m, n]);
    Ok((s[0], s[1]))
}

pub(super) fn gemm_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    let side = |s: &[usize], t: bool| if t { (s[1], s[0]) } else { (s[0], s[1]) };
    if a.shape.len() != 2 || b.shape.len() != 2 {
        return Err(OpError::shape("operands of Gemm", "two matrices", (&a.shape, &b.shape)));
    }
    let (m, ka) = side(&a.shape, attrs.flag("transA", false)?);
    let (kb, n) = side(&b.shape, attrs.flag("transB", false)?);
    if ka != kb {
        return Err(OpError::shape("reduction of Gemm", "equal lengths", (&a.shape, &b.shape)));
    }
    if let Some(c) = optional(inputs, 2) {
        addend_strides(&c.shape, m, n)?;
    }
    Ok(Some(vec![Fact::new(a.dtype, vec![m, n])]))
}

/// The formula of `Gemm`, with a function of the result when a fused form has one.
pub(super) fn gemm(
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    activation: Option<&dyn Fn(f64) -> f64>,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    let product = gemm_contraction(attrs, a.shape(), b.shape())?;
    let (m, n) = (product.m(), product.n());
    let (alpha, beta) = (attrs.float("alpha", 1.0)?, attrs.float("beta", 1.0)?);
    let mut y = product.forward(&Numbers::of(a), &Numbers::of(b))?;
    let c = optional(inputs, 2).map(|c| Ok::<_, OpError>((c, addend_strides(c.shape(), m, n)?))).transpose()?;
    let place = |(row, column): (usize, usize), i: usize| i / n * row + i % n * column;
    if let Numbers::Whole(y) = &mut y
        && (alpha, beta) == (1.0, 1.0)
    {
        if let Some((c, strides)) = c
            && let Numbers::Whole(c) = Numbers::of(c)
        {
            y.iter_mut().enumerate().for_each(|(i, v)| *v = v.wrapping_add(c[place(strides, i)]));
        }
    } else {
        let mut real = y.into_real();
        real.iter_mut().for_each(|v| *v *= f64::from(alpha));
        // Nothing of C when beta is 0, whatever is in it.
        if let Some((c, strides)) = c
            && beta != 0.0
        {
            let c = c.data().to_f64();
            real.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(beta) * c[place(strides, i)]);
        }
        if let Some(f) = activation {
            real.iter_mut().for_each(|v| *v = f(*v));
        }
        y = Numbers::Real(real);
    }
    Ok(vec![Tensor::new(&[m, n], y.into_data(a.dtype()))?])
}

pub(super) fn gemm_kernel(l: &Lowering<'_>, mut epilogue: Epilogue) -> Result<Option<Lowered>, OpError> {
    let product = gemm_contraction(l.attrs, l.shape(0)?, l.shape(1)?)?;
    let (alpha, beta) = (l.attrs.float("alpha", 1.0)?, l.attrs.float("beta", 1.0)?);
    epilogue.alpha = (alpha != 1.0).then_some(alpha);
    if l.has(2) && beta != 0.0 {
        if l.dtype(2) != Some(DType::F32) {
            return no_kernel(l);
        }
        let (row_stride, column_stride) = addend_strides(l.shape(2)?, product.m(), product.n())?;
        epilogue.c = Some(Addend { input: 2, beta, row_stride, column_stride });
    }
    let row_axis = if l.attrs.flag("transB", false)? { 0 } else { 1 };
    lower(l, product, Some(row_axis), epilogue, None)
}
