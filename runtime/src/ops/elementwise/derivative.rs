//! Gradients of functions of one number: `dx = dy · f'(x)`, one pass over the gradient and the operand or the result.
use super::super::{OpError, need};
use crate::autodiff::Backward;
use crate::ops::{Attrs, OpDef};
use crate::tensor::Tensor;

/// What a derivative is a function of.
pub(super) enum Of {
    /// The operand.
    X,
    /// The result, which is alive anyway when what follows needs it.
    Y,
}

/// Makes the gradient by `op`, an operator on the gradient and the operand or result, with the node's own attributes.
pub(super) fn mapped(b: &mut Backward<'_>, op: &'static OpDef, of: Of) -> Result<(), OpError> {
    let at = match of {
        Of::X => b.x(0)?,
        Of::Y => b.y()?,
    };
    let (dy, attrs) = (b.dy()?, Attrs::clone(&b.attrs()));
    let dx = b.one(op, attrs, &[Some(dy), Some(at)])?;
    b.give(0, dx);
    Ok(())
}

/// `dy · f(v)` for each pair.
pub(super) fn chained(inputs: &[Option<&Tensor>], f: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let (dy, v) = (need(inputs, 0, "dY")?, need(inputs, 1, "X")?);
    if dy.len() != v.len() {
        return Err(OpError::shape("dY", v.shape(), dy.shape()));
    }
    let g: Vec<f64> = dy.data().to_f64().iter().zip(v.data().to_f64()).map(|(g, v)| g * f(v)).collect();
    Ok(vec![Tensor::from_f64(dy.dtype(), dy.shape(), &g)?])
}

/// The gradient of the function `$name` with parameters that are attributes, from its derivative in `f64` and in `f32`.
macro_rules! derivative {
    ($name:literal, $of:ident, [$($p:ident = $default:expr),*], |$x:ident| $float:expr, f32: $f32:expr) => {
        |b| {
            static D: $crate::ops::OpDef = $crate::ops::OpDef::new(
                concat!($name, "Vjp"),
                "gradient times derivative",
                $crate::ops::shape::same_as_input,
                |attrs, inputs| {
                    let [$($p),*] =
                        $crate::ops::elementwise::parameters(attrs, [$((stringify!($p), $default)),*])?.map(f64::from);
                    $crate::ops::elementwise::derivative::chained(inputs, |$x: f64| $float)
                },
            )
            .domain($crate::ops::HONE)
            .kernel(|l| {
                let [$($p),*] =
                    $crate::ops::elementwise::parameters(l.attrs, [$((stringify!($p), $default)),*])?;
                if l.dtype(0) != Some($crate::tensor::DType::F32) || l.dtype(1) != l.dtype(0) {
                    return Ok(None);
                }
                let (g, v) = (l.shape(0)?, l.shape(1)?);
                let f = move |g: f32, $x: f32| g * ($f32);
                $crate::ops::elementwise::walk::zipped::<f32, f32, f32, _>(l, concat!($name, "Vjp"), g, v, f)
            })
            .gpu(|l| {
                let constants =
                    $crate::ops::elementwise::parameters(l.attrs, [$((stringify!($p), $default)),*])?.to_vec();
                $crate::ops::record::derivative(l, concat!($name, "Vjp"), constants)
            });
            $crate::ops::elementwise::derivative::mapped(b, &D, $crate::ops::elementwise::derivative::Of::$of)
        }
    };
}
pub(super) use derivative;
