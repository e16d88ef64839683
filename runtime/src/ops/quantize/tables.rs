//! Kernels of element-wise operators, concatenation and pools on 8-bit codes: tables of 256 codes where there is one operand.
use hone_gpu::lookup::lookup;
use hone_gpu::pairs as gpu;
use hone_kernels::quantize::{Codes, Product, Sum, of_i8, of_u8};

use super::elementwise::concat_shape;
use super::{Affine, codes, range_of};
use crate::ops::OpError;
use crate::ops::shape::{broadcast, broadcast_indices, broadcast_strides, elements};
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::DType;

/// Scale at input `at` and zero point at `at + 1`, when both are known.
pub(super) fn affine(l: &Lowering<'_>, at: usize) -> Result<Option<Affine>, OpError> {
    let (Some(scale), zero) = (l.constant(at), l.constant(at + 1)) else { return Ok(None) };
    if scale.len() != 1 || (l.has(at + 1) && zero.is_none_or(|z| z.len() != 1)) {
        return Ok(None);
    }
    let zero = zero.map_or(Ok(0), |z| codes(z, "zero point").map(|z| z[0]))?;
    Ok(Some(Affine { scale: scale.data().to_f64()[0] as f32, zero }))
}

fn eight(l: &Lowering<'_>, i: usize) -> Option<DType> {
    l.dtype(i).filter(|t| matches!(t, DType::U8 | DType::I8))
}

/// The byte a code is held in, for each byte.
pub(super) type Table = [u8; 256];

fn table(from: DType, f: impl Fn(i32) -> i32) -> Table {
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        f(if from == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) }) as u8
    })
}

/// The table of input 0.
pub(super) struct Unary {
    pub(super) table: Table,
}

impl Kernel for Unary {
    fn name(&self) -> &'static str {
        "table-q8"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        hone_kernels::lookup::lookup(&self.table, reads.bytes(0), writes.bytes(0));
    }
}

/// A function of one operand, on reals.
pub(super) fn unary(l: &Lowering<'_>, f: impl Fn(f64) -> f64) -> Result<Option<Lowered>, OpError> {
    Ok(unary_table(l, f)?.map(|table| Lowered::new(Unary { table }, vec![0])))
}

/// The same on a GPU.
pub(super) fn unary_recorded(l: &Lowering<'_>, f: impl Fn(f64) -> f64) -> Result<Option<Recorded>, OpError> {
    let Some(table) = unary_table(l, f)? else { return Ok(None) };
    let call = lookup(elements(l.shape(0)?)?);
    Ok(Recorded::one(call, vec![At::In(0), At::bytes(table.to_vec()), At::Out(0)]))
}

fn unary_table(l: &Lowering<'_>, f: impl Fn(f64) -> f64) -> Result<Option<Table>, OpError> {
    let (Some(t), Some(from), Some(to)) = (eight(l, 0), affine(l, 1)?, affine(l, 3)?) else { return Ok(None) };
    let range = range_of(t)?;
    Ok(Some(table(t, |q| to.code(f(f64::from(from.real(q))) as f32, range))))
}

enum Binary {
    Sum(Sum),
    Product(Product),
}

/// Where the operands of each run of the result are.
struct Pairs {
    f: Binary,
    signed: bool,
    /// Elements of a run.
    run: usize,
    /// Offsets of the operands, a run; for a whole tensor one of each.
    at: Vec<(u32, u32)>,
    /// Whether an operand is one element a run.
    single: [bool; 2],
}

impl Kernel for Pairs {
    fn name(&self) -> &'static str {
        match self.f {
            Binary::Sum(_) => "add-q8",
            Binary::Product(_) => "mul-q8",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let scratch: &mut [u8] = bytemuck::cast_slice_mut(scratch);
        let [spare_a, spare_b] = if self.single[0] || self.single[1] {
            let (a, b) = scratch.split_at_mut(self.run.next_multiple_of(4));
            [a, b]
        } else {
            [&mut [][..], &mut [][..]]
        };
        for (&(a, b), y) in self.at.iter().zip(writes.bytes(0).chunks_exact_mut(self.run)) {
            let a = spread(&reads.bytes(0)[a as usize..], self.single[0], self.run, spare_a);
            let b = spread(&reads.bytes(1)[b as usize..], self.single[1], self.run, spare_b);
            match (&self.f, self.signed) {
                (Binary::Sum(f), false) => of_u8::add(a, b, f, y),
                (Binary::Product(f), false) => of_u8::multiply(a, b, f, y),
                (Binary::Sum(f), true) => {
                    of_i8::add(bytemuck::cast_slice(a), bytemuck::cast_slice(b), f, bytemuck::cast_slice_mut(y));
                }
                (Binary::Product(f), true) => {
                    of_i8::multiply(bytemuck::cast_slice(a), bytemuck::cast_slice(b), f, bytemuck::cast_slice_mut(y));
                }
            }
        }
    }
}

/// `n` elements of an operand, or its first one as often.
fn spread<'a>(v: &'a [u8], single: bool, n: usize, spare: &'a mut [u8]) -> &'a [u8] {
    if !single {
        return &v[..n];
    }
    let spare = &mut spare[..n];
    spare.fill(v[0]);
    spare
}

/// Two operands of one type, what is made of them, and the shape of the result.
struct Operands {
    dtype: DType,
    f: Binary,
    shape: Vec<usize>,
}

fn operands(l: &Lowering<'_>, f: Make) -> Result<Option<Operands>, OpError> {
    let (Some(dtype), Some(other)) = (eight(l, 0), eight(l, 3)) else { return Ok(None) };
    let (Some(a), Some(b), Some(y)) = (affine(l, 1)?, affine(l, 4)?, affine(l, 6)?) else { return Ok(None) };
    let shape = broadcast(l.shape(0)?, l.shape(3)?)?;
    if dtype != other || shape.contains(&0) || elements(&shape)? > u32::MAX as usize {
        return Ok(None);
    }
    let (low, high) = range_of(dtype)?;
    Ok(Some(Operands { dtype, f: f(a, b, y, Codes { zero: 0, low, high }), shape }))
}

type Make = fn(Affine, Affine, Affine, Codes) -> Binary;

fn pairs(l: &Lowering<'_>, f: Make) -> Result<Option<Lowered>, OpError> {
    let Some(Operands { dtype, f, shape }) = operands(l, f)? else { return Ok(None) };
    let (sa, sb) = (l.shape(0)?, l.shape(3)?);
    // The longest tail in which each operand runs along or stands still is one run.
    let rank = shape.len();
    let dim = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    let mut first = rank;
    let mut single = [true; 2];
    while first > 0 {
        let i = first - 1;
        let still = [dim(sa, i) == 1, dim(sb, i) == 1];
        if shape[i] != 1 {
            // A run is whole in both operands, or one element of one of them.
            let fits = (0..2).all(|o| first == rank || shape[first..].iter().all(|&d| d == 1) || still[o] == single[o]);
            if !fits {
                break;
            }
            single = still;
        }
        first -= 1;
    }
    let run: usize = shape[first..].iter().product();
    let starts = |s: &[usize]| -> Result<Vec<usize>, OpError> {
        let lead = s.len().saturating_sub(rank - first);
        let inner: usize = s[lead..].iter().product();
        Ok(broadcast_indices(&s[..lead], &shape[..first])?.into_iter().map(|i| i * inner).collect())
    };
    let at = starts(sa)?.into_iter().zip(starts(sb)?).map(|(a, b)| (a as u32, b as u32)).collect();
    let k = Pairs { f, signed: dtype == DType::I8, run, at, single: if run == 1 { [false; 2] } else { single } };
    let scratch = if k.single == [false; 2] { 0 } else { 2 * run.div_ceil(4) };
    Ok(Some(Lowered::new(k, vec![0, 3]).with_scratch(scratch)))
}

/// The requantised sum of codes `a` and `b` as codes `y`, between those limits.
pub(super) fn sum(a: Affine, b: Affine, y: Affine, (low, high): (i32, i32)) -> Sum {
    let (left, right) = (a.scale / y.scale, b.scale / y.scale);
    let fixed = y.zero as f32 - (left * a.zero as f32 + right * b.zero as f32);
    Sum { left, right, fixed, codes: Codes { zero: 0, low, high } }
}

/// On a GPU, the same codes.
fn pairs_recorded(l: &Lowering<'_>, f: Make) -> Result<Option<Recorded>, OpError> {
    let Some(Operands { dtype, f, shape }) = operands(l, f)? else { return Ok(None) };
    let signed = dtype == DType::I8;
    let of = match f {
        Binary::Sum(f) => gpu::Of::Sum(f),
        Binary::Product(f) => gpu::Of::Product(f),
    };
    let strides = [l.shape(0)?, l.shape(3)?].map(|s| broadcast_strides(s, &shape));
    let mut at = vec![At::In(0), At::In(3)];
    if let gpu::Of::Sum(f) = &of {
        at.push(At::floats(&gpu::table(f, signed)));
    }
    at.push(At::Out(0));
    Ok(Recorded::one(gpu::Pairs { of, signed, shape, strides }.call(), at))
}

fn sum_of(a: Affine, b: Affine, y: Affine, codes: Codes) -> Binary {
    Binary::Sum(sum(a, b, y, (codes.low, codes.high)))
}

fn product_of(a: Affine, b: Affine, y: Affine, codes: Codes) -> Binary {
    let codes = Codes { zero: y.zero, ..codes };
    Binary::Product(Product { left: a.zero, right: b.zero, ratio: a.scale * b.scale / y.scale, codes })
}

/// `QLinearAdd`.
pub(super) fn add(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    pairs(l, sum_of)
}

/// `QLinearAdd` on a GPU.
pub(super) fn add_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    pairs_recorded(l, sum_of)
}

/// `QLinearMul`.
pub(super) fn multiply(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    pairs(l, product_of)
}

/// `QLinearMul` on a GPU.
pub(super) fn multiply_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    pairs_recorded(l, product_of)
}

struct Concat {
    /// Bytes of a line of each part, and what becomes of its codes.
    parts: Vec<(usize, Option<Box<Table>>)>,
}

impl Kernel for Concat {
    fn name(&self) -> &'static str {
        "concat-q8"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let line: usize = self.parts.iter().map(|p| p.0).sum();
        for (o, out) in writes.bytes(0).chunks_exact_mut(line.max(1)).enumerate() {
            let mut out = out;
            for (i, (len, table)) in self.parts.iter().enumerate() {
                let (to, rest) = std::mem::take(&mut out).split_at_mut(*len);
                let from = &reads.bytes(i)[o * len..][..*len];
                match table {
                    None => to.copy_from_slice(from),
                    Some(t) => to.iter_mut().zip(from).for_each(|(y, &x)| *y = t[usize::from(x)]),
                }
                out = rest;
            }
        }
    }
}

/// `QLinearConcat`.
pub(super) fn concat(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(to) = affine(l, 0)? else { return Ok(None) };
    let Some(t) = eight(l, 1) else { return Ok(None) };
    let at: Vec<usize> = (2..l.inputs()).step_by(3).collect();
    let shapes: Vec<&[usize]> = at.iter().map(|&i| l.shape(i)).collect::<Result<_, _>>()?;
    let (axis, _) = concat_shape(l.attrs, &shapes)?;
    let range = range_of(t)?;
    let mut parts = Vec::with_capacity(at.len());
    for (&i, shape) in at.iter().zip(&shapes) {
        let (Some(from), Some(part)) = (affine(l, i + 1)?, eight(l, i)) else { return Ok(None) };
        let same = from == to && part == t;
        let table = (!same).then(|| Box::new(table(part, |q| to.code(from.real(q), range))));
        parts.push((shape[axis..].iter().product(), table));
    }
    Ok(Some(Lowered::new(Concat { parts }, at)))
}

struct GlobalPool {
    signed: bool,
    from: Affine,
    codes: Codes,
    ratio: f32,
    plane: usize,
}

impl Kernel for GlobalPool {
    fn name(&self) -> &'static str {
        "global-average-pool-q8"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        for (x, y) in reads.bytes(0).chunks_exact(self.plane).zip(writes.bytes(0)) {
            let mut sum = [0i32];
            if self.signed {
                of_i8::sums(bytemuck::cast_slice(x), self.plane, &mut sum);
            } else {
                of_u8::sums(x, self.plane, &mut sum);
            }
            let sum = sum[0].wrapping_sub((self.plane as i32).wrapping_mul(self.from.zero));
            *y = self.codes.of(sum as f32 * self.ratio) as u8;
        }
    }
}

/// `QLinearGlobalAveragePool`, channels second.
pub(super) fn global_pool(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (Some(t), Some(from), Some(to)) = (eight(l, 0), affine(l, 1)?, affine(l, 3)?) else { return Ok(None) };
    let shape = l.shape(0)?;
    if l.attrs.flag("channels_last", false)? || shape.len() < 2 || shape.contains(&0) {
        return Ok(None);
    }
    let plane = elements(&shape[2..])?;
    let (low, high) = range_of(t)?;
    let codes = Codes { zero: to.zero, low, high };
    let ratio = from.scale / (to.scale * plane as f32);
    Ok(Some(Lowered::new(GlobalPool { signed: t == DType::I8, from, codes, ratio, plane }, vec![0])))
}
