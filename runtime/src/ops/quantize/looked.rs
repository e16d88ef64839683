//! `GatherBlockQuantized` by kernels: what is looked up is dequantised, and the table read as it stands in the file.
use hone_gpu::coded as gpu;
use hone_kernels::coded::{self, Blocks, Coded};

use super::blocks::Gather;
use crate::ops::OpError;
use crate::ops::index::{Ints, position};
use crate::ops::shape::elements;
use crate::plan::{At, Fallible, Io, Lowered, Lowering, Recorded};
use crate::tensor::DType;

/// Operands: the table, indices, scales and perhaps zero points.
struct LookedUp {
    /// Of the table: elements before, along and after the axis of the indices.
    around: (usize, usize, usize),
    /// How many indices, and whether they are `i64`.
    count: usize,
    wide: bool,
    blocks: Blocks,
    zeros: bool,
}

impl Fallible for LookedUp {
    fn name(&self) -> &'static str {
        match (self.blocks.bits, self.blocks.signed) {
            (2, _) => "gather-nbits2",
            (4, _) => "gather-nbits4",
            (_, false) => "gather-nbits8",
            (_, true) => "gather-signed",
        }
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        let (reads, writes) = io.split();
        let zero = if self.zeros { reads.bytes(3) } else { &[] };
        let table = Coded { blocks: self.blocks, codes: reads.bytes(0), scale: reads.f32(2), zero };
        let indices = Ints::of(reads, 1, self.wide);
        let (outer, len, inner) = self.around;
        let mut slices = writes.f32(0).chunks_exact_mut(inner.max(1));
        for o in 0..outer {
            for i in 0..self.count {
                let at = o * len + position(indices.at(i), len)?;
                if let Some(y) = slices.next() {
                    coded::dequantise(&table, at * inner, y);
                }
            }
        }
        Ok(())
    }
}

/// What `GatherBlockQuantized` reads, and how: `f32` alone, and zero points of the table's own type.
fn looked_up(l: &Lowering<'_>) -> Result<Option<LookedUp>, OpError> {
    let (Some(dtype), Some(wide)) = (l.dtype(0), Ints::takes(l.dtype(1))) else { return Ok(None) };
    if l.dtype(2) != Some(DType::F32) || (l.has(3) && l.dtype(3) != Some(dtype)) {
        return Ok(None);
    }
    let g = Gather::of(l.attrs, dtype, l.shape(0)?, l.shape(2)?)?;
    g.shape(l.shape(1)?)?;
    let (outer, along, inner) = g.around(g.quantize)?;
    let signed = matches!(dtype, DType::I4 | DType::I2);
    let blocks = Blocks { along, inner, block: g.block, bits: g.packed_bits, signed, middle: g.middle as u8 };
    if l.has(3) {
        // A line of the last axis begins with a byte.
        let (lines, codes) = if inner == 1 { (outer, blocks.count()) } else { (1, outer * blocks.count() * inner) };
        let (want, have) = (lines * (codes * g.packed_bits).div_ceil(8), elements(l.shape(3)?)?);
        if want != have {
            return Err(OpError::shape("zero_points of GatherBlockQuantized", format!("{want} bytes"), l.shape(3)?));
        }
    }
    Ok(Some(LookedUp { around: g.around(g.gather)?, count: elements(l.shape(1)?)?, wide, blocks, zeros: l.has(3) }))
}

/// The kernel.
pub(super) fn lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let Some(step) = looked_up(l)? else { return Ok(None) };
    let reads = if l.has(3) { vec![0, 1, 2, 3] } else { vec![0, 1, 2] };
    Ok(Some(Lowered::new(step, reads)))
}

/// The call on a GPU, which has the table as it stands in the file, too.
pub(super) fn recorded(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let Some(LookedUp { around: (outer, length, inner), count, wide, blocks, zeros }) = looked_up(l)? else {
        return Ok(None);
    };
    let call = gpu::LookedUp { blocks, zeros, wide, outer, length, inner, count }.call();
    let mut at: Vec<At> = (0..if zeros { 4 } else { 3 }).map(At::In).collect();
    at.extend([At::Out(0), At::Fault]);
    Ok(Recorded::one(call, at))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::graph::{Graph, Node, Op};
    use crate::ops::{Attr, Attrs, MICROSOFT, find};
    use crate::plan::{RunOptions, Runner};
    use crate::tensor::{DType, Data, Tensor};

    /// A table, its scales and perhaps zero points; bits, block, axes.
    struct Table {
        parts: Vec<Tensor>,
        bits: i64,
        axes: [i64; 2],
    }

    /// The rows by reference and by kernel, and the kernel's name.
    fn looked_up(t: &Table, indices: &Tensor) -> [Result<(Tensor, &'static str), String>; 2] {
        let attrs = [("bits", t.bits), ("block_size", 16), ("gather_axis", t.axes[0]), ("quantize_axis", t.axes[1])];
        let attrs = Arc::new(Attrs::of(attrs.map(|(k, v)| (k, Attr::Int(v)))));
        [true, false].map(|reference| {
            let mut g = Graph::default();
            let parts = t.parts.iter().map(|t| Some(g.add_value("part", None, Some(Arc::new(t.clone())))));
            let mut inputs: Vec<_> = parts.collect();
            let (i, y) = (g.add_value("indices", None, None), g.add_value("y", None, None));
            g.inputs.push(i);
            g.outputs.push(y);
            inputs.insert(1, Some(i));
            let op = Op::Own(find(MICROSOFT, "GatherBlockQuantized").expect("a row of ours"), attrs.clone());
            g.nodes.push(Node { name: "the table".into(), op, inputs, outputs: vec![Some(y)] });
            let mut runner = Runner::new(Arc::new(g), RunOptions { reference, ..RunOptions::default() });
            let y = runner.run(&[indices]).map_err(|e| e.to_string())?.remove(0);
            let plan = runner.plan(&[(indices.dtype(), indices.shape())]).map_err(|e| e.to_string())?;
            Ok((y, plan.steps().into_iter().find(|s| s.op == "GatherBlockQuantized").map_or("none", |s| s.kernel)))
        })
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 97 % 253) as u8).collect()
    }

    fn scales(dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>();
        let v: Vec<f64> = (0..n).map(|i| 0.01 + (i % 7) as f64 * 0.003).collect();
        Tensor::from_f64(dtype, shape, &v).unwrap()
    }

    #[test]
    fn every_form_of_a_table_is_looked_up_by_a_kernel_and_to_the_bit_as_by_the_reference() {
        let indices =
            [Tensor::i64(&[2, 2], vec![3, 0, -1, 3]).unwrap(), Tensor::new(&[3], Data::I32(vec![-4, 2, 2])).unwrap()];
        let mut tables = Vec::new();
        for bits in [2usize, 4, 8] {
            let per = 8 / bits;
            // An odd number of blocks, so that zero points fill no whole byte.
            let rows = Tensor::new(&[4, 48 / per], Data::U8(bytes(4 * 48 / per))).unwrap();
            let zeros = Tensor::new(&[4, (3 * bits).div_ceil(8)], Data::U8(bytes(4 * (3 * bits).div_ceil(8)))).unwrap();
            let columns = Tensor::new(&[4, 20, 8 / per], Data::U8(bytes(4 * 20 * 8 / per))).unwrap();
            let mine = Tensor::new(&[4, 2, 8 / per], Data::U8(bytes(4 * 2 * 8 / per))).unwrap();
            tables.push((bits, [0, 1], vec![rows.clone(), scales(DType::F32, &[4, 3])]));
            tables.push((bits, [0, 1], vec![rows.clone(), scales(DType::F32, &[4, 3]), zeros]));
            tables.push((bits, [1, 1], vec![rows, scales(DType::F32, &[4, 3])]));
            for axis in [0, 1, 2] {
                let parts = vec![columns.clone(), scales(DType::F32, &[4, 2, 8])];
                tables.push((bits, [axis, 1], parts.clone()));
                tables.push((bits, [axis, 1], [parts, vec![mine.clone()]].concat()));
            }
        }
        for dtype in [DType::I4, DType::U4, DType::I2, DType::U2] {
            let of = |shape: &[usize]| {
                let v: Vec<i128> = (0..shape.iter().product::<usize>()).map(|i| (i * 5 % 16) as i128 - 8).collect();
                Tensor::from_i128(dtype, shape, &v).unwrap()
            };
            tables.push((4, [0, 1], vec![of(&[4, 40]), scales(DType::F32, &[4, 3])]));
            tables.push((4, [0, 1], vec![of(&[4, 40]), scales(DType::F32, &[4, 3]), of(&[4, 3])]));
        }
        for (bits, axes, parts) in tables {
            for indices in &indices {
                let t = Table { parts: parts.clone(), bits: bits as i64, axes };
                let [want, got] = looked_up(&t, indices).map(Result::unwrap);
                let what = format!("{} of {bits} bits {:?} {axes:?}", parts[0].dtype(), parts[0].shape());
                assert_eq!(got.0, want.0, "{what}");
                assert!(want.1 == "reference" && got.1.starts_with("gather-"), "{what}: {}", got.1);
            }
        }
    }

    #[test]
    fn scales_of_16_bits_have_the_kernel_too_and_an_index_out_of_range_is_an_error_that_names_it() {
        let codes = Tensor::new(&[4, 24], Data::U8(bytes(96))).unwrap();
        let of = |dtype| Table { parts: vec![codes.clone(), scales(dtype, &[4, 3])], bits: 4, axes: [0, 1] };
        let [want, got] = looked_up(&of(DType::F16), &Tensor::i64(&[3], vec![3, 0, -1]).unwrap()).map(Result::unwrap);
        assert_eq!((got.0.dtype(), got.1), (DType::F16, "gather-nbits4"));
        assert_eq!(got.0, want.0);
        for bad in [4, -5, i64::MAX, i64::MIN] {
            let [_, got] = looked_up(&of(DType::F32), &Tensor::i64(&[2], vec![0, bad]).unwrap());
            let why = got.unwrap_err();
            assert!(why.contains("the table") && why.contains(&bad.to_string()), "{bad}: {why}");
        }
    }

    #[test]
    fn zero_points_of_the_wrong_length_are_refused() {
        let codes = Tensor::new(&[4, 24], Data::U8(bytes(96))).unwrap();
        let short = Tensor::new(&[4, 1], Data::U8(bytes(4))).unwrap();
        let t = Table { parts: vec![codes, scales(DType::F32, &[4, 3]), short], bits: 4, axes: [0, 1] };
        for found in looked_up(&t, &Tensor::i64(&[1], vec![0]).unwrap()) {
            assert!(found.unwrap_err().contains("zero_points"));
        }
    }
}
