//! The operands of a node, seen alike by shape rules (facts), reference functions (tensors) and lowerings (slots).
//!
//! An operator that takes lists of integers (axes, pads, a target shape) states once what it makes of them.
use crate::ops::{Attrs, Fact, OpError, ints_of, need, optional};
use crate::plan::Lowering;
use crate::tensor::{DType, Tensor};

/// What an operator may ask of its operands in all three places.
pub(in crate::ops) trait Operands {
    /// The node's attributes.
    fn attrs(&self) -> &Attrs;

    /// Shape of the operand at `index`.
    ///
    /// # Errors
    /// [`OpError::MissingInput`] when the node has none there.
    fn shape(&self, index: usize, name: &'static str) -> Result<&[usize], OpError>;

    /// Element type of the operand at `index`; `None` when the node has none there.
    fn dtype(&self, index: usize) -> Option<DType>;

    /// Its value, if it is known by now.
    fn value(&self, index: usize) -> Option<&Tensor>;

    /// A list of integers that is input `index`, or in old versions the attribute `name`. Outer `None`: an input whose
    /// value is not known; inner `None`: not given.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when the attribute has another kind.
    fn list(&self, index: usize, name: &str) -> Result<Option<Option<Vec<i64>>>, OpError> {
        Ok(match (self.dtype(index), self.value(index)) {
            (Some(_), Some(t)) => Some(Some(ints_of(t))),
            (Some(_), None) => None,
            (None, _) => Some(self.attrs().ints(name)?.map(<[i64]>::to_vec)),
        })
    }
}

/// [`Operands`] of a shape rule.
pub(in crate::ops) struct Facts<'a>(pub(in crate::ops) &'a Attrs, pub(in crate::ops) &'a [Option<&'a Fact>]);

impl Operands for Facts<'_> {
    fn attrs(&self) -> &Attrs {
        self.0
    }

    fn shape(&self, index: usize, name: &'static str) -> Result<&[usize], OpError> {
        Ok(&need(self.1, index, name)?.shape)
    }

    fn dtype(&self, index: usize) -> Option<DType> {
        optional(self.1, index).map(|f| f.dtype)
    }

    fn value(&self, index: usize) -> Option<&Tensor> {
        optional(self.1, index).and_then(|f| f.value.as_deref())
    }
}

/// [`Operands`] of a reference function.
pub(in crate::ops) struct Tensors<'a>(pub(in crate::ops) &'a Attrs, pub(in crate::ops) &'a [Option<&'a Tensor>]);

impl Operands for Tensors<'_> {
    fn attrs(&self) -> &Attrs {
        self.0
    }

    fn shape(&self, index: usize, name: &'static str) -> Result<&[usize], OpError> {
        Ok(need(self.1, index, name)?.shape())
    }

    fn dtype(&self, index: usize) -> Option<DType> {
        optional(self.1, index).map(Tensor::dtype)
    }

    fn value(&self, index: usize) -> Option<&Tensor> {
        optional(self.1, index)
    }
}

impl Operands for Lowering<'_> {
    fn attrs(&self) -> &Attrs {
        self.attrs
    }

    fn shape(&self, index: usize, _: &'static str) -> Result<&[usize], OpError> {
        Lowering::shape(self, index)
    }

    fn dtype(&self, index: usize) -> Option<DType> {
        Lowering::dtype(self, index)
    }

    fn value(&self, index: usize) -> Option<&Tensor> {
        self.constant(index).map(|t| &**t)
    }
}
