//! Kernels of `QuantizeLinear`, `DequantizeLinear` and `DynamicQuantizeLinear` on `f32`.
use std::ops::Range;

use hone_gpu::functions::function;
use hone_gpu::map::{Element, Map, Operand};
use hone_kernels::quantize::{Codes, extent, of_i8, of_i16, of_i32, of_u8, of_u16};
use hone_kernels::threads::Pool;

use super::linear::{Grid, range_to_affine};
use super::{codes, range_of};
use crate::ops::OpError;
use crate::ops::record::element;
use crate::plan::{At, Io, Kernel, Lowered, Lowering, Reads, Recorded};
use crate::tensor::{DType, Tensor};

/// Which scale and zero point an element has.
enum Params {
    /// One of each, read while it runs: the slot of the zero point, if there is one.
    Tensor { zero: Option<usize> },
    /// Known beforehand: one of each for `inner` consecutive elements, in turn.
    Axis { inner: usize, scale: Vec<f32>, zero: Vec<i32> },
}

impl Params {
    /// `None` for scales in blocks and those that are not `f32` or known.
    fn of(l: &Lowering<'_>, codes_type: DType) -> Result<Option<Params>, OpError> {
        let zero_shape = if l.has(2) { Some(l.shape(2)?) } else { None };
        if l.dtype(1) != Some(DType::F32) || (l.has(2) && l.dtype(2) != Some(codes_type)) {
            return Ok(None);
        }
        Ok(match Grid::of(l.attrs, l.shape(0)?, l.shape(1)?, zero_shape)? {
            Grid::Tensor => Some(Params::Tensor { zero: l.has(2).then_some(2) }),
            Grid::Axis { inner, len } => {
                let Some(scale) = l.constant(1) else { return Ok(None) };
                let zero = match (l.has(2), l.constant(2)) {
                    (true, None) => return Ok(None),
                    (_, z) => z.map_or(Ok(vec![0; len]), |z: &std::sync::Arc<Tensor>| codes(z, "zero point"))?,
                };
                Some(Params::Axis { inner, scale: scale.as_f32()?.to_vec(), zero })
            }
            Grid::Blocks { .. } => None,
        })
    }
}

/// The zero point in the operand at `slot`.
fn zero_at(reads: &Reads<'_>, slot: Option<usize>, dtype: DType) -> i32 {
    let Some(slot) = slot else { return 0 };
    let bytes = reads.bytes(slot);
    match dtype {
        DType::U8 => i32::from(bytes[0]),
        DType::I8 => i32::from(bytes[0] as i8),
        DType::U16 => i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])),
        DType::I16 => i32::from(i16::from_ne_bytes([bytes[0], bytes[1]])),
        _ => i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

/// Elements below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// Calls `f` with parts of `y`, and which elements they are, on all threads of `pool`.
fn shared<T: Send>(pool: &Pool, y: &mut [T], f: impl Fn(Range<usize>, &mut [T]) + Sync) {
    let piece = pool.share(y.len(), 64, WORTH_SHARING);
    pool.pieces(y, piece, |i, y| f(i * piece..i * piece + y.len(), y));
}

struct Quantise {
    params: Params,
    dtype: DType,
    range: (i32, i32),
}

macro_rules! quantise {
    ($module:ident, $self:ident, $pool:ident, $reads:ident, $y:expr) => {{
        let (x, y) = ($reads.f32(0), bytemuck::cast_slice_mut($y));
        let (low, high) = $self.range;
        match &$self.params {
            Params::Tensor { zero } => {
                let zero = zero_at($reads, *zero, $self.dtype);
                let scale = $reads.f32(1)[0];
                shared($pool, y, |at, y| $module::quantise(&x[at], scale, Codes { zero, low, high }, y));
            }
            Params::Axis { inner: 1, scale, zero } => $module::quantise_rows(x, scale, zero, $self.range, y),
            Params::Axis { inner, scale, zero } => {
                for (i, (x, y)) in x.chunks_exact(*inner).zip(y.chunks_exact_mut(*inner)).enumerate() {
                    let zero = zero[i % scale.len()];
                    $module::quantise(x, scale[i % scale.len()], Codes { zero, low, high }, y);
                }
            }
        }
    }};
}

impl Kernel for Quantise {
    fn name(&self) -> &'static str {
        "quantise"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        match self.dtype {
            DType::U8 => quantise!(of_u8, self, pool, reads, writes.bytes(0)),
            DType::I8 => quantise!(of_i8, self, pool, reads, writes.bytes(0)),
            DType::U16 => quantise!(of_u16, self, pool, reads, writes.bytes(0)),
            _ => quantise!(of_i16, self, pool, reads, writes.bytes(0)),
        }
    }
}

/// `QuantizeLinear` to `dtype`.
pub(super) fn quantise(l: &Lowering<'_>, dtype: DType) -> Result<Option<Lowered>, OpError> {
    let small = matches!(dtype, DType::U8 | DType::I8 | DType::U16 | DType::I16);
    if l.dtype(0) != Some(DType::F32) || !small || !matches!(l.attrs.int("precision", 0)?, 0 | 1) {
        return Ok(None);
    }
    if l.shape(0)?.contains(&0) {
        return Ok(None);
    }
    let Some(params) = Params::of(l, dtype)? else { return Ok(None) };
    let reads = match params {
        Params::Tensor { zero: Some(_) } => vec![0, 1, 2],
        Params::Tensor { zero: None } => vec![0, 1],
        Params::Axis { .. } => vec![0],
    };
    Ok(Some(Lowered::new(Quantise { params, dtype, range: range_of(dtype)? }, reads)))
}

/// Lengths, and steps of the parameters along them.
type Axes = (Vec<usize>, Vec<usize>);

/// Axes of the data as the kernels for GPUs see them, and the strides of scale and zero point along them; `None` for scales in
/// blocks.
fn on_axes(l: &Lowering<'_>) -> Result<Option<Axes>, OpError> {
    let (shape, zero) = (l.shape(0)?, if l.has(2) { Some(l.shape(2)?) } else { None });
    let n = shape.iter().product::<usize>();
    Ok(match Grid::of(l.attrs, shape, l.shape(1)?, zero)? {
        Grid::Tensor => Some((vec![n], vec![0])),
        Grid::Axis { inner, len } => Some((vec![n / (inner * len).max(1), len, inner], vec![0, 1, 0])),
        Grid::Blocks { .. } => None,
    })
}

/// `QuantizeLinear` to `dtype` on a GPU: signed or unsigned bytes.
pub(super) fn quantise_recorded(l: &Lowering<'_>, dtype: DType) -> Result<Option<Recorded>, OpError> {
    let (name, result) = match dtype {
        DType::U8 => ("Quantize", Element::U8),
        DType::I8 => ("QuantizeSigned", Element::I8),
        _ => return Ok(None),
    };
    let floats = [0, 1].into_iter().all(|i| l.dtype(i) == Some(DType::F32));
    let fits = floats && (!l.has(2) || l.dtype(2) == Some(dtype)) && matches!(l.attrs.int("precision", 0)?, 0 | 1);
    let Some((shape, strides)) = on_axes(l)?.filter(|_| fits) else { return Ok(None) };
    let zero = if l.has(2) { (At::In(2), strides.clone()) } else { (At::bytes(vec![0; 4]), vec![0; shape.len()]) };
    let operands = vec![
        Operand { element: Element::F32, strides: super::super::strides_of(&shape) },
        Operand { element: Element::F32, strides },
        Operand { element: result, strides: zero.1 },
    ];
    let Some(function) = function(name) else { return Ok(None) };
    let map = Map { function, constants: vec![], shape, operands, result };
    Ok(Recorded::one(map.call(), vec![At::In(0), At::In(1), zero.0, At::Out(0)]))
}

/// `DequantizeLinear` to `f32` on a GPU.
pub(super) fn dequantise_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let Some(element) = l.dtype(0).and_then(element).filter(|e| *e != Element::F32) else { return Ok(None) };
    let fits = matches!(l.attrs.int("output_dtype", 0)?, 0 | 1)
        && l.dtype(1) == Some(DType::F32)
        && (!l.has(2) || l.dtype(2) == l.dtype(0));
    let Some((shape, strides)) = on_axes(l)?.filter(|_| fits) else { return Ok(None) };
    let mut operands = vec![
        Operand { element, strides: super::super::strides_of(&shape) },
        Operand { element: Element::F32, strides: strides.clone() },
    ];
    let mut at = vec![At::In(0), At::In(1)];
    if l.has(2) {
        operands.push(Operand { element, strides });
        at.push(At::In(2));
    }
    at.push(At::Out(0));
    let Some(function) = function(if l.has(2) { "Dequantize" } else { "DequantizeSigned" }) else { return Ok(None) };
    let map = Map { function, constants: vec![], shape, operands, result: Element::F32 };
    Ok(Recorded::one(map.call(), at))
}

/// `DynamicQuantizeLinear` on a GPU.
pub(super) fn dynamic_recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    let n = l.shape(0)?.iter().product::<usize>();
    Ok(quantised_as_it_comes(Recorded::default(), n, At::In(0), [At::Out(0), At::Out(1), At::Out(2)]))
}

/// `n` floats as unsigned codes on a GPU, with a scale and a zero point that just hold them: the range, then the codes.
pub(in crate::ops) fn quantised_as_it_comes(
    out: Recorded,
    n: usize,
    x: At,
    [codes, scale, zero]: [At; 3],
) -> Option<Recorded> {
    let one = |element, step| Operand { element, strides: vec![step] };
    let operands = vec![one(Element::F32, 1), one(Element::F32, 0), one(Element::U8, 0)];
    let map = Map { function: function("Quantize")?, constants: vec![], shape: vec![n], operands, result: Element::U8 };
    out.and(hone_gpu::codes::dynamic(n), vec![x.clone(), scale.clone(), zero.clone()])?
        .and(map.call(), vec![x, scale, zero, codes])
}

struct Dequantise {
    params: Params,
    dtype: DType,
}

macro_rules! dequantise {
    ($module:ident, $self:ident, $pool:ident, $reads:ident, $y:expr) => {{
        let (x, y) = (bytemuck::cast_slice($reads.bytes(0)), $y);
        match &$self.params {
            Params::Tensor { zero } => {
                let (scale, zero) = ($reads.f32(1)[0], zero_at($reads, *zero, $self.dtype));
                shared($pool, y, |at, y| $module::dequantise(&x[at], scale, zero, y));
            }
            Params::Axis { inner: 1, scale, zero } => $module::dequantise_rows(x, scale, zero, y),
            Params::Axis { inner, scale, zero } => {
                for (i, (x, y)) in x.chunks_exact(*inner).zip(y.chunks_exact_mut(*inner)).enumerate() {
                    $module::dequantise(x, scale[i % scale.len()], zero[i % scale.len()], y);
                }
            }
        }
    }};
}

impl Kernel for Dequantise {
    fn name(&self) -> &'static str {
        "dequantise"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        match self.dtype {
            DType::U8 => dequantise!(of_u8, self, pool, reads, writes.f32(0)),
            DType::I8 => dequantise!(of_i8, self, pool, reads, writes.f32(0)),
            DType::U16 => dequantise!(of_u16, self, pool, reads, writes.f32(0)),
            DType::I16 => dequantise!(of_i16, self, pool, reads, writes.f32(0)),
            _ => dequantise!(of_i32, self, pool, reads, writes.f32(0)),
        }
    }
}

/// `DequantizeLinear` to `f32`.
pub(super) fn dequantise(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(dtype @ (DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::I32)) = l.dtype(0) else {
        return Ok(None);
    };
    if !matches!(l.attrs.int("output_dtype", 0)?, 0 | 1) || l.shape(0)?.contains(&0) {
        return Ok(None);
    }
    let Some(params) = Params::of(l, dtype)? else { return Ok(None) };
    let reads = match params {
        Params::Tensor { zero: Some(_) } => vec![0, 1, 2],
        Params::Tensor { zero: None } => vec![0, 1],
        Params::Axis { .. } => vec![0],
    };
    Ok(Some(Lowered::new(Dequantise { params, dtype }, reads)))
}

/// Most parts that are looked through for the range of all.
const PARTS: usize = 16;

struct Dynamic {
    wants: [bool; 3],
}

impl Kernel for Dynamic {
    fn name(&self) -> &'static str {
        "quantise-dynamic"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let x = reads.f32(0);
        let mut ends = [[0.0; 2]; PARTS];
        let part = pool.share(x.len(), 64, WORTH_SHARING.max(x.len().div_ceil(PARTS)));
        let ends = &mut ends[..x.len().div_ceil(part)];
        pool.pieces(ends, 1, |i, e| extent(&x[i * part..x.len().min((i + 1) * part)], &mut e[0]));
        let mut e = [0.0; 2];
        extent(ends.as_flattened(), &mut e);
        let (scale, zero) = range_to_affine(e[0], e[1]);
        if self.wants[0] {
            let codes = Codes { zero, low: 0, high: 255 };
            shared(pool, writes.bytes(0), |at, y| of_u8::quantise(&x[at], scale, codes, y));
        }
        if self.wants[1] {
            writes.f32(1)[0] = scale;
        }
        if self.wants[2] {
            writes.bytes(2)[0] = zero as u8;
        }
    }
}

/// `DynamicQuantizeLinear`.
pub(super) fn dynamic(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) {
        return Ok(None);
    }
    Ok(Some(Lowered::new(Dynamic { wants: [l.wants(0), l.wants(1), l.wants(2)] }, vec![0])))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::{Graph, Node, Op};
    use crate::ops::Attrs;
    use crate::plan::{RunOptions, Runner};

    #[test]
    fn large_tensors_are_quantised_and_read_back_alike_by_any_number_of_threads() {
        // The extremes lie in different parts; a length that no number of parts divides.
        let mut x: Vec<f32> = (0..200_003).map(|i| (i * 7919 % 1009) as f32 * 0.01 - 3.0).collect();
        (x[77], x[150_001]) = (-9.5, 31.0);
        let mut graph = Graph::default();
        let values: Vec<_> =
            ["x", "codes", "scale", "zero", "y", "again"].map(|n| graph.add_value(n, None, None)).into();
        (graph.inputs, graph.outputs) = (vec![values[0]], values[1..].to_vec());
        for (name, inputs, outputs) in [
            ("DynamicQuantizeLinear", &[0][..], &[1, 2, 3][..]),
            ("DequantizeLinear", &[1, 2, 3], &[4]),
            ("QuantizeLinear", &[4, 2, 3], &[5]),
        ] {
            let op = Op::Own(crate::ops::find("", name).unwrap(), Arc::new(Attrs::of([])));
            let of = |v: &[usize]| v.iter().map(|&v| Some(values[v])).collect();
            graph.nodes.push(Node { name: name.into(), op, inputs: of(inputs), outputs: of(outputs) });
        }
        let (graph, x) = (Arc::new(graph), Tensor::f32(&[x.len()], x).unwrap());
        let run = |reference, threads| {
            let pool = Arc::new(Pool::new(threads));
            let mut runner = Runner::new(graph.clone(), RunOptions { reference, pool, ..RunOptions::default() });
            let found = runner.run(&[&x]).unwrap();
            found.iter().map(|t| t.data().as_bytes().to_vec()).collect::<Vec<_>>()
        };
        let want = run(true, 1);
        for threads in [1, 2, 3, 20] {
            assert_eq!(want, run(false, threads), "{threads} threads");
        }
    }
}
