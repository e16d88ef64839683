//! Weights of 2, 4 and 8 bits with a scale for each block of consecutive elements.
use super::fact;
use crate::ops::shape::elements;
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, axis_of, ints_of, need, optional};
use crate::tensor::{DType, Data, Tensor};

/// The weight `[N, K]` of `MatMulNBits` with those operands, dequantised.
///
/// # Errors
/// [`OpError`] when attributes and operands do not fit.
pub(crate) fn nbits_weight(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<f32>, OpError> {
    NBits::of(attrs)?.weight(inputs)
}

/// `y = x · dequant(B)ᵀ + bias`; `B: u8 [N, K/block, block·bits/8]`, the low bits first.
pub(super) static MATMUL_NBITS: OpDef = OpDef::new(
    "MatMulNBits",
    "matrix product with a weight of 2, 4 or 8 bits in blocks",
    |attrs, inputs| {
        let a = need(inputs, 0, "A")?;
        let g = NBits::of(attrs)?;
        fact(a.dtype, g.shape(&a.shape)?)
    },
    |attrs, inputs| {
        let a = need(inputs, 0, "A")?;
        let g = NBits::of(attrs)?;
        let shape = g.shape(a.shape())?;
        let w = g.weight(inputs)?;
        let bias = optional(inputs, 5).map(|b| b.data().to_f64());
        if bias.as_ref().is_some_and(|b| b.len() != g.n) {
            return Err(OpError::shape("bias of MatMulNBits", g.n, bias.map(|b| b.len())));
        }
        let x = a.data().to_f64();
        let mut y = Vec::with_capacity(elements(&shape)?);
        for row in x.chunks_exact(g.k) {
            for (j, w) in w.chunks_exact(g.k).enumerate() {
                let sum: f64 = row.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
                y.push(sum + bias.as_ref().map_or(0.0, |b| b[j]));
            }
        }
        Ok(vec![Tensor::from_f64(a.dtype(), &shape, &y)?])
    },
)
.domain(MICROSOFT)
.kernel(super::packed::lower)
.gpu(super::packed::recorded)
.vjp(super::backward::nbits);

/// The geometry of a `MatMulNBits`.
#[derive(Clone, Copy, Debug)]
pub(super) struct NBits {
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) bits: usize,
    pub(super) block: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
}

impl NBits {
    pub(super) fn of(attrs: &Attrs) -> Result<NBits, OpError> {
        let length = |name: &str| match attrs.int(name, 0)? {
            v @ 1..=0x7fff_ffff => Ok(v as usize),
            v => Err(OpError::attribute(name, format!("is {v}"))),
        };
        let (k, n, block) = (length("K")?, length("N")?, length("block_size")?);
        let bits = match attrs.int("bits", 4)? {
            b @ (2 | 4 | 8) => b as usize,
            b => return Err(OpError::unsupported(format!("MatMulNBits of {b} bits"))),
        };
        if block < 16 || !block.is_power_of_two() {
            return Err(OpError::attribute("block_size", format!("{block} is no power of two from 16 on")));
        }
        Ok(NBits { k, n, bits, block, blocks: k.div_ceil(block) })
    }

    pub(super) fn shape(&self, a: &[usize]) -> Result<Vec<usize>, OpError> {
        match a {
            [lead @ .., k] if *k == self.k => {
                let shape = [lead, &[self.n]].concat();
                elements(&shape)?;
                Ok(shape)
            }
            _ => Err(OpError::shape("A of MatMulNBits", format!("[…, {}]", self.k), a)),
        }
    }

    /// Bytes of a row of `B`.
    pub(super) fn row_bytes(&self) -> usize {
        self.blocks * (self.block * self.bits / 8)
    }

    /// Bytes of a row of packed zero points.
    pub(super) fn zero_bytes(&self) -> usize {
        (self.blocks * self.bits).div_ceil(8)
    }

    /// Checks the lengths of `B`, `scales` and `zero_points`.
    pub(super) fn check(&self, b: usize, scales: usize, zeros: Option<(DType, usize)>) -> Result<(), OpError> {
        if b != self.n.saturating_mul(self.row_bytes()) {
            let expected = [self.n, self.blocks, self.block * self.bits / 8];
            return Err(OpError::shape("B of MatMulNBits", expected, b));
        }
        if scales != self.n.saturating_mul(self.blocks) {
            return Err(OpError::shape("scales of MatMulNBits", [self.n, self.blocks], scales));
        }
        match zeros {
            Some((DType::U8, len)) if len != self.n.saturating_mul(self.zero_bytes()) => {
                Err(OpError::shape("zero_points of MatMulNBits", [self.n, self.zero_bytes()], len))
            }
            Some((t, len)) if t != DType::U8 && len != self.n.saturating_mul(self.blocks) => {
                Err(OpError::shape("zero_points of MatMulNBits", [self.n, self.blocks], len))
            }
            _ => Ok(()),
        }
    }

    /// Zero points as floats, `[N, K/block]`; the middle of the range when there are none.
    pub(super) fn zeros(&self, zeros: Option<&Tensor>) -> Vec<f32> {
        match zeros.map(Tensor::data) {
            None => vec![(1u32 << (self.bits - 1)) as f32; self.n * self.blocks],
            Some(Data::U8(z)) => (0..self.n * self.blocks)
                .map(|i| {
                    let row = &z[i / self.blocks * self.zero_bytes()..];
                    f32::from(code(row, i % self.blocks, self.bits))
                })
                .collect(),
            Some(other) => other.to_f64().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// The weight `[N, K]`, dequantised.
    pub(super) fn weight(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<f32>, OpError> {
        let (b, scales) = (need(inputs, 1, "B")?, need(inputs, 2, "scales")?);
        let zeros = optional(inputs, 3);
        let Data::U8(codes) = b.data() else {
            return Err(OpError::unsupported(format!("MatMulNBits with B of {}", b.dtype())));
        };
        self.check(b.len(), scales.len(), zeros.map(|z| (z.dtype(), z.len())))?;
        let group = optional(inputs, 4).map(ints_of);
        if let Some(g) = &group {
            // The index of the group an element of a row belongs to, in place of its position divided by the block.
            if g.len() < self.k || g[..self.k].iter().any(|&g| g < 0 || g as usize >= self.blocks) {
                return Err(OpError::shape("g_idx of MatMulNBits", format!("{} indices of groups", self.k), g));
            }
        }
        let (s, z) = (scales.data().to_f64(), self.zeros(zeros));
        elements(&[self.n, self.k])?;
        let mut w = Vec::with_capacity(self.n * self.k);
        for (j, row) in codes.chunks_exact(self.row_bytes()).enumerate() {
            for k in 0..self.k {
                let block = j * self.blocks + group.as_ref().map_or(k / self.block, |g| g[k] as usize);
                w.push((f32::from(code(row, k, self.bits)) - z[block]) * s[block] as f32);
            }
        }
        Ok(w)
    }
}

/// Code `i` of a row packed low bits first.
pub(super) fn code(row: &[u8], i: usize, bits: usize) -> u8 {
    let per = 8 / bits;
    row[i / per] >> (i % per * bits) & (0xffu16 >> (8 - bits)) as u8
}

/// Rows of a weight quantised in blocks, dequantised as they are gathered.
pub(super) static GATHER_BLOCK_QUANTIZED: OpDef = OpDef::new(
    "GatherBlockQuantized",
    "gathers from a weight of 2, 4 or 8 bits in blocks and dequantises",
    |attrs, inputs| {
        let (data, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let scales = need(inputs, 2, "scales")?;
        let g = Gather::of(attrs, data.dtype, &data.shape, &scales.shape)?;
        fact(scales.dtype, g.shape(&indices.shape)?)
    },
    |attrs, inputs| {
        let (data, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let (scales, zeros) = (need(inputs, 2, "scales")?, optional(inputs, 3));
        let g = Gather::of(attrs, data.dtype(), data.shape(), scales.shape())?;
        let codes: Vec<f64> = match data.data() {
            Data::U8(v) => unpacked(v, g.packed_bits),
            other => other.to_f64(),
        };
        let s = scales.data().to_f64();
        let zeros: Option<Vec<f64>> = match zeros.map(Tensor::data) {
            None => None,
            // Zero points are packed as the codes are, each line of the last axis on its own.
            Some(Data::U8(v)) => {
                let last = scales.shape().last().copied().unwrap_or(1);
                let line = (last * g.packed_bits).div_ceil(8);
                Some(
                    v.chunks_exact(line.max(1))
                        .flat_map(|l| unpacked(l, g.packed_bits).into_iter().take(last))
                        .collect(),
                )
            }
            Some(other) => Some(other.to_f64()),
        };
        if zeros.as_ref().is_some_and(|z| z.len() != s.len()) {
            return Err(OpError::shape("zero_points of GatherBlockQuantized", scales.shape(), zeros.map(|z| z.len())));
        }
        let (outer, len, inner) = g.around(g.gather)?;
        let quantised = g.around(g.quantize)?;
        let count = scales.shape()[g.quantize];
        let mut at = Vec::new();
        for i in ints_of(indices) {
            let i = if i < 0 { i + len as i64 } else { i };
            if i < 0 || i >= len as i64 {
                return Err(OpError::shape("an index of GatherBlockQuantized", format!("below {len}"), i));
            }
            at.push(i as usize);
        }
        let shape = g.shape(indices.shape())?;
        let mut y = Vec::with_capacity(elements(&shape)?);
        for o in 0..outer {
            for &i in &at {
                for r in 0..inner {
                    let e = (o * len + i) * inner + r;
                    let along = e / quantised.2 % quantised.1;
                    let block =
                        (e / quantised.2 / quantised.1 * count + along / g.block) * quantised.2 + e % quantised.2;
                    let zero = zeros.as_ref().map_or(g.middle, |z| z[block]);
                    y.push((codes[e] - zero) * s[block]);
                }
            }
        }
        Ok(vec![Tensor::from_f64(scales.dtype(), &shape, &y)?])
    },
)
.domain(MICROSOFT)
.kernel(super::looked::lower)
.gpu(super::looked::recorded);

/// The geometry of a `GatherBlockQuantized`.
pub(super) struct Gather {
    /// Of the data, in elements.
    data: Vec<usize>,
    pub(super) gather: usize,
    pub(super) quantize: usize,
    pub(super) block: usize,
    /// Bits of a code in a byte of `u8` data; 8 where each has a byte of its own.
    pub(super) packed_bits: usize,
    /// Zero point where none is given.
    pub(super) middle: f64,
}

impl Gather {
    pub(super) fn of(attrs: &Attrs, dtype: DType, shape: &[usize], scales: &[usize]) -> Result<Gather, OpError> {
        let mut data = shape.to_vec();
        let bits = attrs.int("bits", 4)?;
        let (packed_bits, middle) = match (dtype, bits) {
            (DType::U8, b @ (2 | 4 | 8)) => (b as usize, (1u32 << (b - 1)).into()),
            (DType::I4 | DType::U4 | DType::I2 | DType::U2, _) => (8, 0.0),
            _ => return Err(OpError::unsupported(format!("GatherBlockQuantized of {dtype} with bits {bits}"))),
        };
        if let Some(last) = data.last_mut() {
            *last = last.saturating_mul(8 / packed_bits);
        }
        elements(&data)?;
        let gather = axis_of(attrs.int("gather_axis", 0)?, data.len())?;
        let quantize = axis_of(attrs.int("quantize_axis", 1)?, data.len())?;
        let block = attrs.int("block_size", 128)?;
        if block < 16 || block & (block - 1) != 0 {
            return Err(OpError::attribute("block_size", format!("{block} is no power of two from 16 on")));
        }
        let mut expected = data.clone();
        expected[quantize] = data[quantize].div_ceil(block as usize);
        if scales != expected {
            return Err(OpError::shape("scales of GatherBlockQuantized", expected, scales));
        }
        Ok(Gather { data, gather, quantize, block: block as usize, packed_bits, middle })
    }

    pub(super) fn shape(&self, indices: &[usize]) -> Result<Vec<usize>, OpError> {
        let shape = [&self.data[..self.gather], indices, &self.data[self.gather + 1..]].concat();
        elements(&shape)?;
        Ok(shape)
    }

    /// Elements before, along and after an axis.
    pub(super) fn around(&self, axis: usize) -> Result<(usize, usize, usize), OpError> {
        Ok((elements(&self.data[..axis])?, self.data[axis], elements(&self.data[axis + 1..])?))
    }
}

/// The codes of bytes packed low bits first.
fn unpacked(v: &[u8], bits: usize) -> Vec<f64> {
    (0..v.len() * (8 / bits)).map(|i| f64::from(code(v, i, bits))).collect()
}
