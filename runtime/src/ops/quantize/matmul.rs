//! Matrix products of integers: `Σ (a - a_zero)(b - b_zero)`, kept as `i32`, scaled to floats, or requantised.
//!
//! Dimension letters: `M` rows, `K` reduction, `N` columns.
use super::linear::dynamic_range;
use super::{coded, codes, fact, range_of, round_to};
use crate::ops::shape::{broadcast, broadcast_indices, broadcast_strides, elements};
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, for_each_strided, need, optional};
use crate::tensor::{DType, Data, Tensor, small};

/// `Σ (a - a_zero_point)(b - b_zero_point)` in `i32`.
pub(super) static MATMUL_INTEGER: OpDef = OpDef::new(
    "MatMulInteger",
    "matrix product of 8-bit integers in i32",
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        fact(DType::I32, Product::of(&a.shape, &b.shape)?.shape)
    },
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        let p = Product::of(a.shape(), b.shape())?;
        let y = p.integers(a, b, optional(inputs, 2), optional(inputs, 3))?;
        Ok(vec![Tensor::new(&p.shape, Data::I32(y))?])
    },
)
.kernel(super::product::integer)
.vjp(super::backward::integer);

/// `requantise(Σ (a - a_zero_point)(b - b_zero_point) · a_scale · b_scale / y_scale)`.
pub(super) static QLINEAR_MATMUL: OpDef = OpDef::new(
    "QLinearMatMul",
    "matrix product of 8-bit numbers, requantised",
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "a")?, need(inputs, 3, "b")?);
        fact(need(inputs, 7, "y_zero_point")?.dtype, Product::of(&a.shape, &b.shape)?.shape)
    },
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "a")?, need(inputs, 3, "b")?);
        let p = Product::of(a.shape(), b.shape())?;
        let y_zero = need(inputs, 7, "y_zero_point")?;
        let dtype = y_zero.dtype();
        let scale = p.scales(need(inputs, 1, "a_scale")?, need(inputs, 4, "b_scale")?)?;
        let (y_scale, zero) = (need(inputs, 6, "y_scale")?.data().to_f64(), y_zero.data().to_f64());
        let per = |v: &[f64], i: usize| -> Option<f64> {
            match v.len() {
                1 => v.first().copied(),
                // One per row, or one per element.
                n if n == p.m => v.get(i / p.n.max(1) % p.m.max(1)).copied(),
                _ => v.get(i).copied(),
            }
        };
        let wrong = || OpError::shape("y_scale or y_zero_point of QLinearMatMul", "one, or one a row", y_zero.shape());
        let y_of = |i: usize| per(&y_scale, i).zip(per(&zero, i)).ok_or_else(wrong);
        if a.dtype().is_float() || b.dtype().is_float() {
            if !dtype.is_float() || dtype.size_bytes() != 1 {
                return Err(OpError::unsupported(format!("QLinearMatMul of {} to {dtype}", a.dtype())));
            }
            let y = p.reals(a, b, optional(inputs, 2), optional(inputs, 5))?;
            let q: Result<Vec<u8>, OpError> = y
                .iter()
                .enumerate()
                .map(|(i, v)| Ok(small::encode(dtype, (v * f64::from(scale.at(i)) / y_of(i)?.0) as f32, true)))
                .collect();
            return Ok(vec![Tensor::new(&p.shape, Data::Small(dtype, q?))?]);
        }
        let range = range_of(dtype)?;
        let y = p.integers(a, b, optional(inputs, 2), optional(inputs, 5))?;
        let q: Result<Vec<i32>, OpError> = y
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let (s, z) = y_of(i)?;
                Ok(round_to(v as f32 * (scale.at(i) / s as f32), z as i32, range))
            })
            .collect();
        Ok(vec![coded(dtype, &p.shape, &q?)?])
    },
)
.kernel(super::product::qlinear)
.vjp(super::spelled::matmul);

/// `Σ (a - a_zero_point)(b - b_zero_point) · a_scale · b_scale + bias`.
pub(super) static MATMUL_INTEGER_TO_FLOAT: OpDef = OpDef::new(
    "MatMulIntegerToFloat",
    "matrix product of 8-bit integers, scaled to floats",
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        fact(need(inputs, 2, "a_scale")?.dtype, Product::of(&a.shape, &b.shape)?.shape)
    },
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        let p = Product::of(a.shape(), b.shape())?;
        let sa = need(inputs, 2, "a_scale")?;
        let scale = p.scales(sa, need(inputs, 3, "b_scale")?)?;
        let y = p.integers(a, b, optional(inputs, 4), optional(inputs, 5))?;
        Ok(vec![p.scaled(sa.dtype(), &y, &scale, optional(inputs, 6))?])
    },
)
.kernel(super::product::to_float)
.gpu(super::product::to_float_recorded)
.vjp(super::spelled::to_float)
.domain(MICROSOFT);

/// [`MATMUL_INTEGER_TO_FLOAT`] whose left operand is quantised as `DynamicQuantizeLinear` does.
pub(super) static DYNAMIC_QUANTIZE_MATMUL: OpDef = OpDef::new(
    "DynamicQuantizeMatMul",
    "matrix product of floats, quantised as they come, with an 8-bit weight",
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        fact(a.dtype, Product::of(&a.shape, &b.shape)?.shape)
    },
    |_, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
        let p = Product::of(a.shape(), b.shape())?;
        let (qa, sa, za) = dynamic_codes(a)?;
        let scale = p.scales(&sa, need(inputs, 2, "b_scale")?)?;
        let y = p.integers(&qa, b, Some(&za), optional(inputs, 3))?;
        Ok(vec![p.scaled(a.dtype(), &y, &scale, optional(inputs, 4))?])
    },
)
.kernel(super::product::dynamic)
.gpu(super::product::dynamic_recorded)
.vjp(super::spelled::dynamic_matmul)
.domain(MICROSOFT);

/// Codes, scale and zero point of floats, as `DynamicQuantizeLinear` gives them.
pub(super) fn dynamic_codes(x: &Tensor) -> Result<(Tensor, Tensor, Tensor), OpError> {
    let v: Vec<f32> = x.data().to_f64().into_iter().map(|v| v as f32).collect();
    let (scale, zero) = dynamic_range(&v);
    let q = v.iter().map(|&v| round_to(v / scale, zero, (0, 255)) as u8).collect();
    Ok((
        Tensor::new(x.shape(), Data::U8(q))?,
        Tensor::f32(&[], vec![scale])?,
        Tensor::new(&[], Data::U8(vec![zero as u8]))?,
    ))
}

/// `requantise((A' · B' + C) · alpha · a_scale · b_scale / y_scale)`, or floats when there is no `y_scale`.
pub(super) static QGEMM: OpDef = OpDef::new(
    "QGemm",
    "alpha · A' · B' + C of 8-bit integers, requantised or scaled to floats",
    |attrs, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 3, "B")?);
        let (m, _, n) = gemm_shape(attrs, &a.shape, &b.shape)?;
        let dtype = match (optional(inputs, 7), optional(inputs, 8)) {
            (None, _) => DType::F32,
            (Some(_), Some(z)) => z.dtype,
            (Some(_), None) => a.dtype,
        };
        fact(dtype, [m, n])
    },
    |attrs, inputs| {
        let (a, b) = (need(inputs, 0, "A")?, need(inputs, 3, "B")?);
        let (m, k, n) = gemm_shape(attrs, a.shape(), b.shape())?;
        let a2 = if attrs.flag("transA", false)? { transposed(a)? } else { a.clone() };
        let b2 = if attrs.flag("transB", false)? { transposed(b)? } else { b.clone() };
        let p = Product::of(&[m, k], &[k, n])?;
        let mut y = p.integers(&a2, &b2, optional(inputs, 2), optional(inputs, 5))?;
        if let Some(c) = optional(inputs, 6) {
            let (v, at) = (codes(c, "C")?, broadcast_indices(c.shape(), &p.shape)?);
            y.iter_mut().zip(at).for_each(|(y, i)| *y = y.wrapping_add(v[i]));
        }
        let mut scale = p.scales(need(inputs, 1, "a_scale")?, need(inputs, 4, "b_scale")?)?;
        let alpha = attrs.float("alpha", 1.0)?;
        scale.b.iter_mut().for_each(|s| *s *= alpha);
        let Some(y_scale) = optional(inputs, 7) else {
            return Ok(vec![p.scaled(DType::F32, &y, &scale, None)?]);
        };
        let y_scale = super::single(y_scale, "y")? as f32;
        let zero = optional(inputs, 8).map_or(Ok(0.0), |z| super::single(z, "y"))? as i32;
        let dtype = optional(inputs, 8).map_or(a.dtype(), Tensor::dtype);
        let range = range_of(dtype)?;
        let q: Vec<i32> =
            y.iter().enumerate().map(|(i, &v)| round_to(v as f32 * (scale.at(i) / y_scale), zero, range)).collect();
        Ok(vec![coded(dtype, &p.shape, &q)?])
    },
)
.kernel(super::product::gemm)
.vjp(super::spelled::gemm)
.domain(MICROSOFT);

/// `M K N` of a `QGemm`.
pub(super) fn gemm_shape(attrs: &Attrs, a: &[usize], b: &[usize]) -> Result<(usize, usize, usize), OpError> {
    let (&[a0, a1], &[b0, b1]) = (a, b) else {
        return Err(OpError::shape("operands of QGemm", "rank 2", (a, b)));
    };
    let (m, k) = if attrs.flag("transA", false)? { (a1, a0) } else { (a0, a1) };
    let (kb, n) = if attrs.flag("transB", false)? { (b1, b0) } else { (b0, b1) };
    if k != kb {
        return Err(OpError::shape("reduction of QGemm", k, kb));
    }
    Ok((m, k, n))
}

fn transposed(t: &Tensor) -> Result<Tensor, OpError> {
    let &[r, c] = t.shape() else { return Err(OpError::shape("operand of QGemm", "rank 2", t.shape())) };
    let at: Vec<usize> = (0..c).flat_map(|j| (0..r).map(move |i| i * c + j)).collect();
    Ok(Tensor::new(&[c, r], t.data().pick(&at))?)
}

/// A product of matrices, the leading axes broadcast as NumPy's `matmul` has them.
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    /// Of the result.
    pub(super) shape: Vec<usize>,
    /// Of the operands as matrices: rank 2 or more.
    a: Vec<usize>,
    b: Vec<usize>,
    /// Offsets of the operands of each batch.
    pub(super) offsets: Vec<(usize, usize)>,
}

impl Product {
    pub(super) fn of(a: &[usize], b: &[usize]) -> Result<Product, OpError> {
        let wrong = || OpError::shape("operands of a matrix product", "[…, M, K] and […, K, N]", (a, b));
        let (full_a, full_b) = match (a, b) {
            ([], _) | (_, []) => return Err(wrong()),
            (&[k], _) => (vec![1, k], if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() }),
            (_, &[k]) => (a.to_vec(), vec![k, 1]),
            _ => (a.to_vec(), b.to_vec()),
        };
        let (ra, rb) = (full_a.len(), full_b.len());
        let (m, k, n) = (full_a[ra - 2], full_a[ra - 1], full_b[rb - 1]);
        if full_b[rb - 2] != k {
            return Err(wrong());
        }
        let batch = broadcast(&full_a[..ra - 2], &full_b[..rb - 2])?;
        let mut shape = batch.clone();
        if a.len() > 1 {
            shape.push(m);
        }
        if b.len() > 1 {
            shape.push(n);
        }
        elements(&shape)?;
        elements(&full_a)?;
        elements(&full_b)?;
        let offsets_of = |s: &[usize], size: usize| {
            let mut at = Vec::new();
            for_each_strided(0, &broadcast_strides(s, &batch), &batch, |i| at.push(i * size));
            at
        };
        let offsets =
            offsets_of(&full_a[..ra - 2], m * k).into_iter().zip(offsets_of(&full_b[..rb - 2], k * n)).collect();
        Ok(Product { m, k, n, shape, a: full_a, b: full_b, offsets })
    }

    /// For each element of the left operand (or right one): its zero point.
    fn zeros<T: Copy>(&self, left: bool, z: &[T], shape: &[usize], what: &str) -> Result<Vec<T>, OpError> {
        let full = if left { &self.a } else { &self.b };
        // A vector runs along the rows of the left operand and the columns of the right one.
        let shape = match shape {
            &[n] if left && n > 1 => vec![n, 1],
            s => s.to_vec(),
        };
        broadcast_indices(&shape, full).map(|at| at.into_iter().map(|i| z[i]).collect()).map_err(|_| {
            OpError::shape(format!("zero point of {what}"), format!("one, or one for each of {full:?}"), shape)
        })
    }

    /// `Σ (a - za)(b - zb)` in wrapping `i32`.
    pub(super) fn integers(
        &self,
        a: &Tensor,
        b: &Tensor,
        za: Option<&Tensor>,
        zb: Option<&Tensor>,
    ) -> Result<Vec<i32>, OpError> {
        let centred = |t: &Tensor, z: Option<&Tensor>, left: bool, what: &str| -> Result<Vec<i32>, OpError> {
            let mut v = codes(t, what)?;
            if let Some(z) = z {
                let zeros = self.zeros(left, &codes(z, what)?, z.shape(), what)?;
                v.iter_mut().zip(zeros).for_each(|(v, z)| *v = v.wrapping_sub(z));
            }
            Ok(v)
        };
        let (a, b) = (centred(a, za, true, "A")?, centred(b, zb, false, "B")?);
        let (m, k, n) = (self.m, self.k, self.n);
        let mut y = vec![0i32; elements(&self.shape)?];
        for (i, &(oa, ob)) in self.offsets.iter().enumerate() {
            for r in 0..m {
                let row = &mut y[(i * m + r) * n..][..n];
                for kk in 0..k {
                    let v = a[oa + r * k + kk];
                    for (y, w) in row.iter_mut().zip(&b[ob + kk * n..][..n]) {
                        *y = y.wrapping_add(v.wrapping_mul(*w));
                    }
                }
            }
        }
        Ok(y)
    }

    /// The same of codes that are floats.
    fn reals(&self, a: &Tensor, b: &Tensor, za: Option<&Tensor>, zb: Option<&Tensor>) -> Result<Vec<f64>, OpError> {
        let centred = |t: &Tensor, z: Option<&Tensor>, left: bool, what: &str| -> Result<Vec<f64>, OpError> {
            let mut v = t.data().to_f64();
            if let Some(z) = z {
                let zeros = self.zeros(left, &z.data().to_f64(), z.shape(), what)?;
                v.iter_mut().zip(zeros).for_each(|(v, z)| *v -= z);
            }
            Ok(v)
        };
        let (a, b) = (centred(a, za, true, "A")?, centred(b, zb, false, "B")?);
        let (m, k, n) = (self.m, self.k, self.n);
        let mut y = vec![0f64; elements(&self.shape)?];
        for (i, &(oa, ob)) in self.offsets.iter().enumerate() {
            for r in 0..m {
                let row = &mut y[(i * m + r) * n..][..n];
                for kk in 0..k {
                    let v = a[oa + r * k + kk];
                    row.iter_mut().zip(&b[ob + kk * n..][..n]).for_each(|(y, w)| *y += v * w);
                }
            }
        }
        Ok(y)
    }

    /// The scales of the operands, for each element of the result.
    pub(super) fn scales(&self, a: &Tensor, b: &Tensor) -> Result<Scales, OpError> {
        let of = |t: &Tensor, left: bool| -> Result<(Vec<f32>, Vec<usize>), OpError> {
            let v: Vec<f32> = t.data().to_f64().into_iter().map(|v| v as f32).collect();
            if v.len() == 1 {
                return Ok((v, Vec::new()));
            }
            let shape = match t.shape() {
                &[n] if left => vec![n, 1],
                s => s.to_vec(),
            };
            let mut full = self.shape.clone();
            if self.a.len() + self.b.len() > 4 || full.len() < 2 {
                full = broadcast(&self.a[..self.a.len() - 2], &self.b[..self.b.len() - 2])?;
                full.extend([self.m, self.n]);
            }
            Ok((v, broadcast_indices(&shape, &full)?))
        };
        let ((a, a_at), (b, b_at)) = (of(a, true)?, of(b, false)?);
        Ok(Scales { a, a_at, b, b_at })
    }

    /// `acc · scale + bias`, in `f32`.
    pub(super) fn scaled(
        &self,
        dtype: DType,
        acc: &[i32],
        scale: &Scales,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, OpError> {
        let bias = bias.map(|b| b.data().to_f64());
        if bias.as_ref().is_some_and(|b| b.len() != self.n) {
            return Err(OpError::shape("bias of a matrix product", self.n, bias.map(|b| b.len())));
        }
        let v: Vec<f64> = acc
            .iter()
            .enumerate()
            .map(|(i, &v)| f64::from(v as f32 * scale.at(i) + bias.as_ref().map_or(0.0, |b| b[i % self.n] as f32)))
            .collect();
        Ok(Tensor::from_f64(dtype, &self.shape, &v)?)
    }
}

/// Scales of the operands of a product; an empty list of indices is "the first for all".
pub(super) struct Scales {
    a: Vec<f32>,
    a_at: Vec<usize>,
    pub(super) b: Vec<f32>,
    b_at: Vec<usize>,
}

impl Scales {
    /// Their product for element `i` of the result.
    pub(super) fn at(&self, i: usize) -> f32 {
        self.a[self.a_at.get(i).copied().unwrap_or(0)] * self.b[self.b_at.get(i).copied().unwrap_or(0)]
    }
}
