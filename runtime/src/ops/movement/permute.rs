//! Axes in another order.
use super::operands::Operands;
use super::unview::unviewed;
use super::view::{View, view_op};
use crate::ops::shape::permutation;
use crate::ops::{OpDef, OpError, strides_of};

/// `Transpose`: result axis `i` is operand axis `perm[i]`; all axes reversed without `perm`.
pub(super) static TRANSPOSE: OpDef = view_op!("Transpose", "axes in another order", transpose).vjp(|b| {
    let (dy, rank) = (b.dy()?, b.x_shape(0)?.len());
    let perm = permutation(b.attrs().ints("perm")?, rank)?;
    let mut back = vec![0; rank];
    perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    let dx = b.transpose(dy, &back)?;
    b.give(0, dx);
    Ok(())
});

fn transpose(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let from = o.shape(0, "data")?;
    let perm = permutation(o.attrs().ints("perm")?, from.len())?;
    Ok(Some(permuted(from, &perm)))
}

fn permuted(from: &[usize], perm: &[usize]) -> View {
    let own = strides_of(from);
    View::strided(perm.iter().map(|&p| from[p]).collect(), perm.iter().map(|&p| own[p]).collect())
}

/// `DepthToSpace`: blocks of channels to blocks of pixels, `[N, C, H, W]` to `[N, C/b², H·b, W·b]`.
pub(super) static DEPTH_TO_SPACE: OpDef =
    view_op!("DepthToSpace", "blocks of channels laid out as blocks of pixels", depth_to_space)
        .vjp(|b| unviewed(b, depth_to_space));

fn depth_to_space(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let (from, b) = (o.shape(0, "input")?, block(o)?);
    let &[n, c, h, w] = from else { return Err(OpError::shape("input", "[N, C, H, W]", from)) };
    let square = b.checked_mul(b).filter(|s| c % s == 0);
    let depth = c / square.ok_or_else(|| OpError::shape("input", format!("channels by blocks of {b} · {b}"), from))?;
    let (split, perm) = match o.attrs().str("mode", "DCR")? {
        "DCR" => ([n, b, b, depth, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, depth, b, b, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(OpError::attribute("mode", format!("{other} is neither DCR nor CRD"))),
    };
    Ok(Some(View { shape: vec![n, depth, product(h, b)?, product(w, b)?], ..permuted(&split, &perm) }))
}

/// `SpaceToDepth`: blocks of pixels to blocks of channels, `[N, C, H, W]` to `[N, C·b², H/b, W/b]`.
pub(super) static SPACE_TO_DEPTH: OpDef =
    view_op!("SpaceToDepth", "blocks of pixels laid out as blocks of channels", space_to_depth)
        .vjp(|b| unviewed(b, space_to_depth));

fn space_to_depth(o: &dyn Operands) -> Result<Option<View>, OpError> {
    let (from, b) = (o.shape(0, "input")?, block(o)?);
    let &[n, c, h, w] = from else { return Err(OpError::shape("input", "[N, C, H, W]", from)) };
    if h % b != 0 || w % b != 0 {
        return Err(OpError::shape("input", format!("height and width by blocks of {b}"), from));
    }
    let perm = match o.attrs().str("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(OpError::attribute("mode", format!("{other} is neither DCR nor CRD"))),
    };
    let depth = product(product(c, b)?, b)?;
    Ok(Some(View { shape: vec![n, depth, h / b, w / b], ..permuted(&[n, c, h / b, b, w / b, b], &perm) }))
}

fn block(o: &dyn Operands) -> Result<usize, OpError> {
    let b = o.attrs().int("blocksize", 0)?;
    usize::try_from(b)
        .ok()
        .filter(|&b| b > 0)
        .ok_or_else(|| OpError::attribute("blocksize", format!("{b} is not positive")))
}

fn product(a: usize, b: usize) -> Result<usize, OpError> {
    crate::ops::shape::elements(&[a, b])
}
