//! Operators that find elements by index, or indices by element.
//!
//! Negative indices count from the end; an index out of range is an error, also where it is known only at run time.
use super::OpDef;
use super::{OpError, ints_of};
use crate::plan::Reads;
use crate::tensor::{DType, Data, Tensor};

mod backward;
mod cumulative;
mod gather;
mod nms;
mod order;
mod scatter;
mod select;
mod unique;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &cumulative::CUM_PROD,
    &cumulative::CUM_SUM,
    &gather::GATHER,
    &gather::GATHER_ELEMENTS,
    &gather::GATHER_ND,
    &gather::GATHER_ND_MICROSOFT,
    &nms::NON_MAX_SUPPRESSION,
    &order::ARG_MAX,
    &order::ARG_MIN,
    &order::TOP_K,
    &scatter::SCATTER,
    &scatter::SCATTER_ELEMENTS,
    &scatter::SCATTER_ND,
    &scatter::TENSOR_SCATTER,
    &select::COMPRESS,
    &select::NON_ZERO,
    &select::ONE_HOT,
    &unique::UNIQUE,
    &unique::UNIQUE_MICROSOFT,
];

/// `index` along an axis of length `dim`, counted from the front.
///
/// # Errors
/// [`OpError::Shape`] when it is outside `-dim..dim`.
#[inline(always)]
pub(super) fn position(index: i64, dim: usize) -> Result<usize, OpError> {
    let at = if index < 0 { index.wrapping_add(dim as i64) } else { index };
    // A negative one that is left becomes larger than any length.
    if at as u64 >= dim as u64 { Err(outside(index, dim)) } else { Ok(at as usize) }
}

#[cold]
fn outside(index: i64, dim: usize) -> OpError {
    OpError::shape("indices", format!("numbers from -{dim} to {}", dim as i64 - 1), index)
}

/// Product of the lengths before `axis`, length of `axis`, product of those after it.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Indices of a reference function, which are integers.
fn indices_of(t: &Tensor) -> Result<Vec<i64>, OpError> {
    if t.dtype().is_integer() { Ok(ints_of(t)) } else { Err(OpError::unsupported(format!("indices of {}", t.dtype()))) }
}

/// Indices of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Ints<'a> {
    I32(&'a [i32]),
    I64(&'a [i64]),
}

impl<'a> Ints<'a> {
    /// Whether a kernel can read indices of that type.
    pub(super) fn takes(dtype: Option<DType>) -> Option<bool> {
        match dtype {
            Some(DType::I64) => Some(true),
            Some(DType::I32) => Some(false),
            _ => None,
        }
    }

    pub(super) fn of(reads: &Reads<'a>, operand: usize, wide: bool) -> Ints<'a> {
        if wide { Ints::I64(reads.of(operand)) } else { Ints::I32(reads.of(operand)) }
    }

    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> i64 {
        match self {
            Ints::I32(v) => i64::from(v[i]),
            Ints::I64(v) => v[i],
        }
    }
}

/// Numbers that order as the elements do: NaN above everything and equal to itself, the two zeros equal.
fn order_keys(data: &Data) -> Vec<i128> {
    if !data.dtype().is_float() {
        return data.to_i128();
    }
    let key = |x: f64| match x {
        x if x.is_nan() => i128::MAX,
        x if x < 0.0 => -i128::from((-x).to_bits()),
        x => i128::from(x.abs().to_bits()),
    };
    data.to_f64().into_iter().map(key).collect()
}

/// Calls `$f::<N>($args)` for elements of `$bytes` bytes.
macro_rules! by_bytes {
    ($bytes:expr, $f:ident($($arg:expr),*)) => {
        match $bytes {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            4 => $f::<4>($($arg),*),
            _ => $f::<8>($($arg),*),
        }
    };
}
use by_bytes;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::graph::{Graph, Node, Op};
    use crate::ops::{Attr, Attrs, find};
    use crate::plan::{RunOptions, Runner};
    use crate::tensor::{Data, Tensor};

    /// A graph of one node, or of a `DequantizeLinear` of `table` before it; runs it both ways.
    fn run(op: &str, attrs: Attrs, table: Option<[Tensor; 2]>, inputs: &[Tensor]) -> [Result<Tensor, String>; 2] {
        [true, false].map(|reference| {
            let mut g = Graph::default();
            let mut ids = Vec::new();
            let node = |op: &str, attrs: Attrs, inputs: Vec<Option<usize>>, to: usize| Node {
                name: format!("the {op}"),
                op: Op::Own(find("", op).expect("a row of ours"), Arc::new(attrs)),
                inputs,
                outputs: vec![Some(to)],
            };
            if let Some(parts) = table.clone() {
                let parts = parts.map(|t| Some(g.add_value("part", None, Some(Arc::new(t)))));
                let made = g.add_value("table", None, None);
                let axis = Attrs::of([("axis", Attr::Int(0))]);
                g.nodes.push(node("DequantizeLinear", axis, parts.to_vec(), made));
                ids.push(Some(made));
            }
            for _ in inputs {
                let v = g.add_value("given", None, None);
                g.inputs.push(v);
                ids.push(Some(v));
            }
            let y = g.add_value("y", None, None);
            g.outputs.push(y);
            g.nodes.push(node(op, attrs.clone(), ids, y));
            let mut runner = Runner::new(Arc::new(g), RunOptions { reference, ..RunOptions::default() });
            let mut out = runner.run(&inputs.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())?;
            Ok(out.remove(0))
        })
    }

    fn i64s(shape: &[usize], v: &[i64]) -> Tensor {
        Tensor::i64(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn an_index_out_of_range_at_run_time_is_an_error_that_names_the_node_and_the_index() {
        let x = Tensor::f32(&[3, 4], (0..12).map(|v| v as f32).collect()).unwrap();
        let u = |shape: &[usize]| Tensor::zeros(crate::tensor::DType::F32, shape).unwrap();
        for bad in [3, -4, i64::MAX, i64::MIN] {
            for (op, rest) in [
                ("Gather", vec![i64s(&[2], &[0, bad])]),
                ("GatherElements", vec![i64s(&[1, 4], &[0, 1, bad, 2])]),
                ("GatherND", vec![i64s(&[2, 1], &[1, bad])]),
                ("ScatterElements", vec![i64s(&[1, 2], &[0, bad]), u(&[1, 2])]),
                ("ScatterND", vec![i64s(&[1, 1], &[bad]), u(&[1, 4])]),
            ] {
                for found in run(op, Attrs::of([]), None, &[vec![x.clone()], rest].concat()) {
                    let why = found.unwrap_err();
                    assert!(why.contains(&format!("the {op}")) && why.contains(&bad.to_string()), "{op} {bad}: {why}");
                }
            }
        }
    }

    #[test]
    fn rows_of_an_int8_table_are_those_of_the_table_dequantised() {
        let q = Tensor::new(&[4, 3], Data::I8((-6..6).map(|v| v * 20).collect())).unwrap();
        let indices = i64s(&[2, 2], &[3, 0, -2, 3]);
        for scale in [Tensor::f32(&[4], vec![0.5, 0.25, 2.0, 3.0]), Tensor::f32(&[], vec![0.125])] {
            let table = Some([q.clone(), scale.unwrap()]);
            let [want, got] = run("Gather", Attrs::of([]), table, std::slice::from_ref(&indices));
            assert_eq!(got.unwrap(), want.unwrap());
        }
    }

    #[test]
    fn a_nan_is_the_largest_and_the_smallest_as_numpy_has_it() {
        let x = Tensor::f32(&[2, 3], vec![1.0, f32::NAN, 3.0, f32::NAN, 2.0, f32::NAN]).unwrap();
        for (op, axis, last, want) in [
            ("ArgMax", 1, 0, vec![1, 0]),
            ("ArgMin", 1, 0, vec![1, 0]),
            ("ArgMin", 1, 1, vec![1, 2]),
            ("ArgMax", 0, 0, vec![1, 0, 1]),
            ("ArgMin", 0, 1, vec![1, 0, 1]),
        ] {
            let attrs = [("axis", axis), ("keepdims", 0), ("select_last_index", last)].map(|(k, v)| (k, Attr::Int(v)));
            for found in run(op, Attrs::of(attrs), None, std::slice::from_ref(&x)) {
                assert_eq!(found.unwrap(), i64s(&[want.len()], &want), "{op} {axis} {last}");
            }
        }
    }
}
