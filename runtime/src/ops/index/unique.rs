//! The distinct elements or slices of a tensor.
use super::select::flattened;
use super::{around, order_keys};
use crate::map_data;
use crate::ops::shape::depends_on_data;
use crate::ops::{Attrs, MICROSOFT, OpDef, OpError, need};
use crate::tensor::Tensor;

/// `Unique`: the distinct slices along `axis` (elements of the flattened tensor without one), in order, or by first
/// occurrence; with them the first index of each, the number of each element's, and how often each occurs.
pub(super) static UNIQUE: OpDef = OpDef::new(
    "Unique",
    "the distinct elements or slices, where they are and how often they occur",
    depends_on_data,
    |attrs, inputs| unique(need(inputs, 0, "X")?, attrs, attrs.flag("sorted", true)?),
);

/// ONNX Runtime's `Unique`: by first occurrence; values, the number of each element's, and how often each occurs.
pub(super) static UNIQUE_MICROSOFT: OpDef = OpDef::new(
    "Unique",
    "the distinct elements by first occurrence, which one each element is and how often they occur",
    depends_on_data,
    |attrs, inputs| {
        let mut out = unique(need(inputs, 0, "x")?, attrs, false)?;
        out.remove(1);
        Ok(out)
    },
)
.domain(MICROSOFT);

fn unique(x: &Tensor, attrs: &Attrs, sorted: bool) -> Result<Vec<Tensor>, OpError> {
    let (shape, axis) = flattened(attrs, x.shape())?;
    let (outer, dim, inner) = around(&shape, axis);
    let keys = order_keys(x.data());
    // Every slice in one piece, so that slices compare as lists do.
    let mut slices = Vec::with_capacity(keys.len());
    for i in 0..dim {
        (0..outer).for_each(|o| slices.extend_from_slice(&keys[(o * dim + i) * inner..][..inner]));
    }
    let len = outer * inner;
    let slice = |i: usize| &slices[i * len..][..len];
    let mut order: Vec<usize> = (0..dim).collect();
    order.sort_by(|&a, &b| slice(a).cmp(slice(b)));
    // The sort is stable: the first of each group is its first occurrence.
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for i in order {
        match groups.last_mut() {
            Some((first, all)) if slice(*first) == slice(i) => all.push(i),
            _ => groups.push((i, vec![i])),
        }
    }
    if !sorted {
        groups.sort_by_key(|(first, _)| *first);
    }
    let mut inverse = vec![0i64; dim];
    for (n, (_, all)) in groups.iter().enumerate() {
        all.iter().for_each(|&i| inverse[i] = n as i64);
    }
    let n = groups.len();
    let mut found = shape;
    found[axis] = n;
    let data = map_data!(x.data(), v => {
        let mut out = Vec::with_capacity(outer * n * inner);
        for o in 0..outer {
            groups.iter().for_each(|(i, _)| out.extend_from_slice(&v[(o * dim + i) * inner..][..inner]));
        }
        out
    });
    Ok(vec![
        Tensor::new(&found, data)?,
        Tensor::i64(&[n], groups.iter().map(|(first, _)| *first as i64).collect())?,
        Tensor::i64(&[dim], inverse)?,
        Tensor::i64(&[n], groups.iter().map(|(_, all)| all.len() as i64).collect())?,
    ])
}
