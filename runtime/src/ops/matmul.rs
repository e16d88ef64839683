//! Matrix products: `MatMul` (batched, broadcast) and `Gemm`.
use hone_kernels::gemm::{self, Packed};

use super::{Attrs, Fact, OpDef, OpError, Origin, broadcast_index, need};
use crate::graph::Dim;
use crate::plan::{Io, Kernel, Lowered, Lowering, Weight};
use crate::tensor::{DType, Tensor};

/// A frozen matrix packed for [`gemm`], owned by the kernel that uses it.
pub(super) struct PackedMatrix {
    f32: Vec<f32>,
    q: Vec<i8>,
    scale: Vec<f32>,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl PackedMatrix {
    /// Packs `[n, k]` whose element `(j, kk)` is element `at(j, kk)` of `weight`. `None` when the scales of a quantised
    /// weight do not run along `j`.
    pub(super) fn new(
        weight: &Weight,
        n: usize,
        k: usize,
        row_axis: usize,
        row0: usize,
        at: impl Fn(usize, usize) -> usize,
    ) -> Result<Option<PackedMatrix>, OpError> {
        let mut m = PackedMatrix { f32: Vec::new(), q: Vec::new(), scale: Vec::new(), n, k };
        match weight {
            Weight::F32(t) => {
                let v = t.as_f32()?;
                m.f32 = vec![0.0; gemm::packed_len(n, k)];
                gemm::pack(n, k, |j, kk| v[at(j, kk)], &mut m.f32);
            }
            Weight::Q8 { q, scale, axis } => {
                if scale.len() != 1 && *axis != row_axis {
                    return Ok(None);
                }
                let crate::tensor::Data::I8(v) = q.data() else { return Ok(None) };
                if scale.len() != 1 && scale.len() != q.shape()[*axis] {
                    return Err(OpError::Shape {
                        what: format!("scales along axis {axis} of weights {:?}", q.shape()),
                        expected: q.shape()[*axis].to_string(),
                        found: scale.len().to_string(),
                    });
                }
                m.q = vec![0; gemm::packed_len(n, k)];
                gemm::pack(n, k, |j, kk| v[at(j, kk)], &mut m.q);
                m.scale = (0..n).map(|j| if scale.len() == 1 { scale[0] } else { scale[row0 + j] }).collect();
            }
        }
        Ok(Some(m))
    }

    pub(super) fn view(&self) -> Packed<'_> {
        if self.q.is_empty() { Packed::F32(&self.f32) } else { Packed::I8 { q: &self.q, scale: &self.scale } }
    }

    pub(super) fn bytes(&self) -> usize {
        self.f32.len() * 4 + self.q.len() + self.scale.len() * 4
    }

    /// The kernel name that says what the weights are.
    pub(super) fn label(&self, f32: &'static str, int8: &'static str) -> &'static str {
        if self.q.is_empty() { f32 } else { int8 }
    }
}

/// NumPy matrix product.
pub(super) static MATMUL: OpDef = OpDef {
    name: "MatMul",
    doc: "matrix product over the last two axes, the others broadcast",
    origin: Origin::Onnx,
    shape: |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        if a.shape.is_empty() || b.shape.is_empty() {
            return Err(shape_error("operands of MatMul", "rank 1 or more", a, b));
        }
        let (ra, rb) = (a.shape.len(), b.shape.len());
        let (ka, kb) = (&a.shape[ra - 1], &b.shape[if rb == 1 { 0 } else { rb - 2 }]);
        if let (Some(x), Some(y)) = (ka.known(), kb.known())
            && x != y
        {
            return Err(shape_error("reduction of MatMul", "equal lengths", a, b));
        }
        let batch_a = &a.shape[..ra.saturating_sub(2)];
        let batch_b = &b.shape[..rb.saturating_sub(2)];
        let mut shape = broadcast_dims(batch_a, batch_b);
        if ra > 1 {
            shape.push(a.shape[ra - 2].clone());
        }
        if rb > 1 {
            shape.push(b.shape[rb - 1].clone());
        }
        Ok(vec![Fact::new(a.dtype, shape)])
    },
    reference: |_, inputs, shapes| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        let g = Batches::new(a.shape(), b.shape())?;
        let (x, w) = (a.as_f32()?, b.as_f32()?);
        let mut y = vec![0.0; g.batches() * g.m * g.n];
        for i in 0..g.batches() {
            let (oa, ob) = g.offsets(i);
            for r in 0..g.m {
                for c in 0..g.n {
                    let sum: f64 =
                        (0..g.k).map(|k| f64::from(x[oa + r * g.k + k]) * f64::from(w[ob + k * g.n + c])).sum();
                    y[(i * g.m + r) * g.n + c] = sum as f32;
                }
            }
        }
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: |l| {
        if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) {
            return Ok(None);
        }
        let g = Batches::new(l.shape(0)?, l.shape(1)?)?;
        if let Some(w) = l.weight(1)
            && l.shape(1)?.len() == 2
        {
            // A two-dimensional weight: all batches of the left operand are rows of one product.
            let (k, n) = (g.k, g.n);
            let Some(packed) = PackedMatrix::new(&w, n, k, 1, 0, |j, kk| kk * n + j)? else { return Ok(None) };
            let bytes = packed.bytes();
            let rows = l.shape(0)?.iter().product::<usize>() / k.max(1);
            return Ok(Some(Lowered::new(Rows { m: rows, packed, bias: None, x_of: 0 }, vec![0]).with_weights(bytes)));
        }
        let scratch = gemm::packed_len(g.n, g.k);
        Ok(Some(Lowered::new(Live { g }, vec![0, 1]).with_scratch(scratch)))
    },
};

fn shape_error(what: &str, expected: &str, a: &Fact, b: &Fact) -> OpError {
    let show = |s: &[Dim]| s.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(",");
    OpError::Shape {
        what: what.into(),
        expected: expected.into(),
        found: format!("[{}] and [{}]", show(&a.shape), show(&b.shape)),
    }
}

fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let rank = a.len().max(b.len());
    (0..rank)
        .map(|i| {
            let of = |s: &[Dim]| (i + s.len()).checked_sub(rank).map(|j| s[j].clone()).unwrap_or(Dim::Val(1));
            match (of(a), of(b)) {
                (x, y) if x == y => x,
                (Dim::Val(1), y) => y,
                (x, Dim::Val(1)) => x,
                (x, y) => Dim::Broadcast(vec![x, y]),
            }
        })
        .collect()
}

/// `M K N` and the batches of a broadcast product.
struct Batches {
    m: usize,
    k: usize,
    n: usize,
    shape: Vec<usize>,
    sa: Vec<usize>,
    sb: Vec<usize>,
}

impl Batches {
    fn new(a: &[usize], b: &[usize]) -> Result<Batches, OpError> {
        let wrong = || OpError::Shape {
            what: "operands of MatMul".into(),
            expected: "[…, M, K] and […, K, N]".into(),
            found: format!("{a:?} and {b:?}"),
        };
        let (ra, rb) = (a.len(), b.len());
        if ra == 0 || rb == 0 {
            return Err(wrong());
        }
        let (m, k) = if ra == 1 { (1, a[0]) } else { (a[ra - 2], a[ra - 1]) };
        let (kb, n) = if rb == 1 { (b[0], 1) } else { (b[rb - 2], b[rb - 1]) };
        let (ba, bb) = (&a[..ra.saturating_sub(2)], &b[..rb.saturating_sub(2)]);
        let rank = ba.len().max(bb.len());
        let mut shape = Vec::with_capacity(rank);
        for i in 0..rank {
            let of = |s: &[usize]| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
            match (of(ba), of(bb)) {
                (x, y) if x == y || y == 1 => shape.push(x),
                (1, y) => shape.push(y),
                _ => return Err(wrong()),
            }
        }
        if k != kb {
            return Err(wrong());
        }
        let scaled = |s: Vec<usize>, by: usize| s.into_iter().map(|v| v * by).collect();
        let (sa, sb) = (scaled(broadcast_index(ba, &shape), m * k), scaled(broadcast_index(bb, &shape), k * n));
        Ok(Batches { m, k, n, shape, sa, sb })
    }

    fn batches(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element offsets of the operands of batch `i`.
    fn offsets(&self, mut i: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for ax in (0..self.shape.len()).rev() {
            let at = i % self.shape[ax];
            i /= self.shape[ax];
            a += at * self.sa[ax];
            b += at * self.sb[ax];
        }
        (a, b)
    }
}

/// `y = x · wᵀ + bias` over rows, with a frozen `w`.
struct Rows {
    m: usize,
    packed: PackedMatrix,
    bias: Option<Vec<f32>>,
    x_of: usize,
}

impl Kernel for Rows {
    fn name(&self) -> &'static str {
        self.packed.label("gemm-f32", "gemm-f32w8")
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let k = self.packed.k;
        gemm::gemm(
            &gemm::Gemm {
                m: self.m,
                k,
                n: self.packed.n,
                x: reads.f32(self.x_of),
                x_stride: k,
                w: self.packed.view(),
                bias: self.bias.as_deref(),
                accumulate: false,
            },
            writes.f32(0),
        );
    }
}

/// Both operands made by the graph: the right one is packed at each run.
struct Live {
    g: Batches,
}

impl Kernel for Live {
    fn name(&self) -> &'static str {
        "gemm-f32-live"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let g = &self.g;
        let (a, b, y) = (reads.f32(0), reads.f32(1), writes.f32(0));
        for i in 0..g.batches() {
            let (oa, ob) = g.offsets(i);
            gemm::pack(g.n, g.k, |j, kk| b[ob + kk * g.n + j], scratch);
            let problem = gemm::Gemm {
                m: g.m,
                k: g.k,
                n: g.n,
                x: &a[oa..],
                x_stride: g.k,
                w: Packed::F32(scratch),
                bias: None,
                accumulate: false,
            };
            gemm::gemm(&problem, &mut y[i * g.m * g.n..][..g.m * g.n]);
        }
    }
}

/// `alpha · A' · B' + beta · C`.
pub(super) static GEMM: OpDef = OpDef {
    name: "Gemm",
    doc: "alpha · A' · B' + beta · C, either operand transposed",
    origin: Origin::Onnx,
    shape: |attrs, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        if a.shape.len() != 2 || b.shape.len() != 2 {
            return Err(shape_error("operands of Gemm", "rank 2", a, b));
        }
        let (ta, tb) = transposes(attrs)?;
        let (m, ka) = if ta { (1, 0) } else { (0, 1) };
        let (kb, n) = if tb { (1, 0) } else { (0, 1) };
        if let (Some(x), Some(y)) = (a.shape[ka].known(), b.shape[kb].known())
            && x != y
        {
            return Err(shape_error("reduction of Gemm", "equal lengths", a, b));
        }
        Ok(vec![Fact::new(a.dtype, vec![a.shape[m].clone(), b.shape[n].clone()])])
    },
    reference: |attrs, inputs, shapes| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        let (ta, tb) = transposes(attrs)?;
        let (alpha, beta) = (attrs.float("alpha", 1.0)?, attrs.float("beta", 1.0)?);
        let (m, n) = (shapes[0][0], shapes[0][1]);
        let k = a.shape()[if ta { 0 } else { 1 }];
        let (x, w) = (a.as_f32()?, b.as_f32()?);
        let c = inputs.get(2).copied().flatten();
        if let Some(c) = c
            && (c.shape().len() > 2 || c.shape().iter().rev().zip([n, m]).any(|(&d, full)| d != 1 && d != full))
        {
            return Err(OpError::Shape {
                what: "C of Gemm".into(),
                expected: format!("a shape that broadcasts to [{m}, {n}]"),
                found: format!("{:?}", c.shape()),
            });
        }
        if b.shape()[if tb { 1 } else { 0 }] != k {
            return Err(gemm_mismatch(a.shape(), b.shape()));
        }
        let sc = c.map(|c| broadcast_index(c.shape(), &shapes[0]));
        let mut y = vec![0.0; m * n];
        for r in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k)
                    .map(|kk| {
                        let l = x[if ta { kk * m + r } else { r * k + kk }];
                        let w = w[if tb { j * k + kk } else { kk * n + j }];
                        f64::from(l) * f64::from(w)
                    })
                    .sum();
                let c = match (c, &sc) {
                    (Some(c), Some(s)) => f64::from(c.as_f32()?[r * s[0] + j * s[1]]),
                    _ => 0.0,
                };
                y[r * n + j] = (f64::from(alpha) * sum + f64::from(beta) * c) as f32;
            }
        }
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: |l: &Lowering<'_>| {
        let (ta, tb) = transposes(l.attrs)?;
        if ta || l.dtype(0) != Some(DType::F32) || l.attrs.float("alpha", 1.0)? != 1.0 {
            return Ok(None);
        }
        let Some(w) = l.weight(1) else { return Ok(None) };
        let (m, n) = (l.output_shape(0)[0], l.output_shape(0)[1]);
        let k = l.shape(0)?[1];
        if l.shape(1)?[if tb { 1 } else { 0 }] != k {
            return Err(gemm_mismatch(l.shape(0)?, l.shape(1)?));
        }
        let beta = l.attrs.float("beta", 1.0)?;
        let bias = match l.has(2) {
            false => None,
            true => match l.constant(2) {
                Some(c) if c.dtype() == DType::F32 && (c.len() == n && c.shape().last() == Some(&n)) => {
                    Some(c.as_f32()?.iter().map(|v| v * beta).collect())
                }
                _ => return Ok(None),
            },
        };
        let at = |j: usize, kk: usize| if tb { j * k + kk } else { kk * n + j };
        let Some(packed) = PackedMatrix::new(&w, n, k, if tb { 0 } else { 1 }, 0, at)? else { return Ok(None) };
        let bytes = packed.bytes();
        Ok(Some(Lowered::new(Rows { m, packed, bias, x_of: 0 }, vec![0]).with_weights(bytes)))
    },
};

fn gemm_mismatch(a: &[usize], b: &[usize]) -> OpError {
    OpError::Shape {
        what: "reduction of Gemm".into(),
        expected: "equal lengths".into(),
        found: format!("{a:?} and {b:?}"),
    }
}

fn transposes(attrs: &Attrs) -> Result<(bool, bool), OpError> {
    Ok((attrs.int("transA", 0)? != 0, attrs.int("transB", 0)? != 0))
}
