//! Arithmetic on shapes that more than one family needs: broadcasting, axes, strided walks, operand lists.
use super::{Attrs, Fact, OpError, axis_of, ints_of, need, optional, strides_of};
use crate::tensor::{Tensor, checked_len};

/// The shape rule of operators whose only output has the type and shape of their first input.
pub(crate) fn same_as_input(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "X")?;
    Ok(Some(vec![Fact::new(x.dtype, x.shape.clone())]))
}

/// The shape rule of operators whose output shapes depend on values.
pub(crate) fn depends_on_data(_: &Attrs, _: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(None)
}

/// The shape `a` and `b` broadcast to, by NumPy's rules.
///
/// # Errors
/// [`OpError::Shape`] when they do not fit.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(OpError::shape("broadcasting", a, b)),
        })
        .collect()
}

/// The shape all of them broadcast to.
///
/// # Errors
/// [`OpError::Shape`] when they do not fit.
pub(crate) fn broadcast_all<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Vec<usize>, OpError> {
    shapes.into_iter().try_fold(Vec::new(), |all, s| broadcast(&all, s))
}

/// For an operand of `shape` broadcast to `to` (NumPy rules, aligned at the end): the element offset to add per step of
/// each output axis; 0 on broadcast axes.
///
/// # Panics
/// When `shape` has more axes than `to`.
pub(crate) fn broadcast_strides(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides_of(shape);
    let lead = to.len() - shape.len();
    (0..to.len()).map(|i| if i < lead || shape[i - lead] == 1 { 0 } else { own[i - lead] }).collect()
}

/// Flat indices into an operand of `shape` for every element of `to` in row-major order, broadcast by NumPy's rules.
///
/// # Errors
/// [`OpError::Shape`] when `shape` does not broadcast to `to`.
pub(crate) fn broadcast_indices(shape: &[usize], to: &[usize]) -> Result<Vec<usize>, OpError> {
    if broadcast(shape, to)? != to {
        return Err(OpError::shape("broadcasting", to, shape));
    }
    let mut out = Vec::with_capacity(elements(to)?);
    super::for_each_strided(0, &broadcast_strides(shape, to), to, |i| out.push(i));
    Ok(out)
}

/// Product of a shape.
///
/// # Errors
/// [`OpError::Tensor`] when it cannot be held.
pub(crate) fn elements(shape: &[usize]) -> Result<usize, OpError> {
    checked_len(shape)
        .filter(|&n| n <= 1 << 40)
        .ok_or_else(|| OpError::Tensor(crate::tensor::TensorError::TooLarge { shape: shape.to_vec() }))
}

/// Axes counted from the front, each once.
///
/// # Errors
/// [`OpError::Attribute`] when one is out of range or occurs twice.
pub(crate) fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut out: Vec<usize> = Vec::with_capacity(axes.len());
    for &a in axes {
        let a = axis_of(a, rank)?;
        if out.contains(&a) {
            return Err(OpError::attribute("axes", format!("{axes:?} names an axis twice")));
        }
        out.push(a);
    }
    Ok(out)
}

/// A list of integers that is an attribute in old versions of an operator and an input in new ones, as a reference
/// function sees it: `None` when it is given in neither way.
///
/// # Errors
/// [`OpError::Attribute`] when the attribute has another kind.
pub(crate) fn list(
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    index: usize,
    name: &str,
) -> Result<Option<Vec<i64>>, OpError> {
    Ok(match optional(inputs, index) {
        Some(t) => Some(ints_of(t)),
        None => attrs.ints(name)?.map(<[i64]>::to_vec),
    })
}

/// What a shape rule knows of such a list.
pub(crate) enum Known<T> {
    /// Its value.
    Yes(T),
    /// It is an input that is not constant.
    No,
}

/// [`list`], as a shape rule sees it.
///
/// # Errors
/// [`OpError::Attribute`] when the attribute has another kind.
pub(crate) fn list_fact(
    attrs: &Attrs,
    inputs: &[Option<&Fact>],
    index: usize,
    name: &str,
) -> Result<Known<Option<Vec<i64>>>, OpError> {
    Ok(match optional(inputs, index) {
        Some(f) => f.ints().map_or(Known::No, |v| Known::Yes(Some(v))),
        None => Known::Yes(attrs.ints(name)?.map(<[i64]>::to_vec)),
    })
}

/// Axes in another order.
///
/// # Errors
/// [`OpError::Attribute`] when `perm` is no permutation of `rank` axes.
pub(crate) fn permutation(perm: Option<&[i64]>, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = perm else { return Ok((0..rank).rev().collect()) };
    if perm.len() != rank {
        return Err(OpError::attribute("perm", format!("{perm:?} has not {rank} entries")));
    }
    axes_of(perm, rank)
}
