//! The seam between the planner and the kernels: what an operator may ask while it is lowered, and what its kernel gets.
use std::any::Any;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use hone_gpu::kernel::Matrices;
use hone_kernels::conv::Window;
use hone_kernels::threads::Pool;

use super::packs::Packed;
use super::record::{At, Image};
use super::{Bf16, Kept, MAX_SLOTS, Packs, Place, Slot};
use crate::graph::{Node, Op};
use crate::ops::{Attrs, OpError};
use crate::tensor::{DType, Data, Tensor};

/// A fast step at concrete shapes. It allocates nothing while it runs.
pub trait Kernel: Send + Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Computes the outputs. Shapes were settled when it was made, so it cannot fail.
    fn run(&self, io: &mut Io<'_>);

    /// How it makes its result a few lines at a time, if it can.
    fn lines(&self) -> Option<&dyn Lines> {
        None
    }
}

/// What images lie in lines of: of a result, and of the operand it is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Images.
    pub images: usize,
    /// Lines of an image of the result, and bytes of a line.
    pub result: [usize; 2],
    /// Lines of an image of operand 0, and bytes of a line.
    pub operand: [usize; 2],
}

impl Grid {
    /// Of a convolution that slides so over images, whose pixels take so many bytes in the operand and in the result.
    pub fn of(window: &Window, images: usize, operand: usize, result: usize) -> Grid {
        let ([_, h, w], [_, oh, ow]) = (window.input, window.output);
        Grid { images, result: [oh, ow * result], operand: [h, w * operand] }
    }
}

/// A kernel with one result that can be made a few lines at a time, each from a few lines of operand 0.
pub trait Lines: Sync {
    /// How operand and result lie.
    fn grid(&self) -> Grid;

    /// The lines of an image of operand 0 that lines `of` of the result are made from: some, and for later lines none that are
    /// earlier.
    fn meets(&self, of: Range<usize>) -> Range<usize>;

    /// Makes lines `of` of an image: `y` is those lines, `x` the lines they meet, and `reads` all operands but the first.
    fn make(&self, of: Range<usize>, x: &[u8], reads: &Reads<'_>, pool: &Pool, y: &mut [u8]);
}

/// A fast step that may meet operands it must refuse, such as an index out of range. It allocates nothing while it
/// runs, unless it fails. Every [`Kernel`] is one that never does.
pub trait Fallible: Send + Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Computes the outputs.
    ///
    /// # Errors
    /// [`OpError`] when the values of an operand have no result; what was written by then is undefined.
    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError>;

    /// How it makes its result a few lines at a time, if it can.
    fn lines(&self) -> Option<&dyn Lines> {
        None
    }
}

impl<K: Kernel> Fallible for K {
    fn name(&self) -> &'static str {
        Kernel::name(self)
    }

    fn try_run(&self, io: &mut Io<'_>) -> Result<(), OpError> {
        self.run(io);
        Ok(())
    }

    fn lines(&self) -> Option<&dyn Lines> {
        Kernel::lines(self)
    }
}

/// The operands a kernel reads, by the positions it asked for in [`Lowered::new`].
pub struct Reads<'a> {
    pub(super) bytes: [&'a [u8]; MAX_SLOTS],
}

impl<'a> Reads<'a> {
    /// Operand `i` as `f32`; empty when the kernel did not ask for it.
    pub fn f32(&self, i: usize) -> &'a [f32] {
        self.of(i)
    }

    /// Operand `i` as elements of that type; empty when the kernel did not ask for it.
    pub fn of<T: bytemuck::AnyBitPattern>(&self, i: usize) -> &'a [T] {
        // An empty slice of bytes need not be aligned for anything.
        if self.bytes[i].is_empty() { &[] } else { bytemuck::cast_slice(self.bytes[i]) }
    }

    /// Operand `i` as `i64`.
    pub fn i64(&self, i: usize) -> &'a [i64] {
        self.of(i)
    }

    /// The bytes of operand `i`.
    pub fn bytes(&self, i: usize) -> &'a [u8] {
        self.bytes[i]
    }
}

/// The results a kernel writes, in ONNX order; an unwanted result is an empty slice.
pub struct Writes<'a> {
    pub(super) bytes: [&'a mut [u8]; MAX_SLOTS],
}

impl Writes<'_> {
    /// Result `i` as `f32`.
    pub fn f32(&mut self, i: usize) -> &mut [f32] {
        self.of(i)
    }

    /// Result `i` as elements of that type.
    pub fn of<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&mut self, i: usize) -> &mut [T] {
        if self.bytes[i].is_empty() { &mut [] } else { bytemuck::cast_slice_mut(self.bytes[i]) }
    }

    /// The first `N` results as `f32`, borrowed apart.
    ///
    /// # Panics
    /// When `N` is more than a step may have operands.
    pub fn apart_f32<const N: usize>(&mut self) -> [&mut [f32]; N] {
        let mut rest = self.bytes.iter_mut();
        std::array::from_fn(|_| match rest.next() {
            Some(bytes) if !bytes.is_empty() => bytemuck::cast_slice_mut(bytes),
            Some(_) => &mut [][..],
            None => panic!("a step has no {N} results"),
        })
    }

    /// The bytes of result `i`.
    pub fn bytes(&mut self, i: usize) -> &mut [u8] {
        self.bytes[i]
    }
}

/// What a kernel works on.
pub struct Io<'a> {
    pub(super) reads: Reads<'a>,
    pub(super) writes: Writes<'a>,
    /// The scratch area it asked for, uninitialised from its point of view.
    pub scratch: &'a mut [f32],
    /// The threads it may use.
    pub pool: &'a Pool,
}

impl<'a> Io<'a> {
    /// Operands and results, borrowed apart.
    pub fn split(&mut self) -> (&Reads<'a>, &mut Writes<'a>) {
        (&self.reads, &mut self.writes)
    }

    /// Operands, results and scratch, borrowed apart.
    pub fn parts(&mut self) -> (&Reads<'a>, &mut Writes<'a>, &mut [f32]) {
        (&self.reads, &mut self.writes, self.scratch)
    }
}

/// A kernel and what it needs.
pub struct Lowered {
    pub(super) kernel: Box<dyn Fallible>,
    /// Indices into the node's inputs, in the order the kernel reads them.
    pub(super) reads: Vec<usize>,
    pub(super) scratch_floats: usize,
    pub(super) weight_bytes: usize,
    pub(super) in_place: bool,
    pub(super) held: Vec<Arc<Tensor>>,
    /// The node input whose bytes are the first result's.
    pub(super) same: Option<usize>,
}

impl Lowered {
    /// A kernel that reads the node inputs `reads` while it runs.
    pub fn new(kernel: impl Fallible + 'static, reads: Vec<usize>) -> Lowered {
        let (kernel, held) = (Box::new(kernel), Vec::new());
        Lowered { kernel, reads, scratch_floats: 0, weight_bytes: 0, same: None, in_place: false, held }
    }

    /// Asks for a scratch area of that many `f32`.
    pub fn with_scratch(mut self, floats: usize) -> Lowered {
        self.scratch_floats = floats;
        self
    }

    /// States that the kernel updates: where a result takes the place of an operand, it finds the operand in the result,
    /// and nothing where it would read it.
    pub fn in_place(mut self) -> Lowered {
        self.in_place = true;
        self
    }

    /// States that the only result holds the bytes of node input `i`: the plan then lets both be one area of the arena
    /// where it can, and runs nothing.
    pub fn same_bytes(mut self, i: usize) -> Lowered {
        self.same = Some(i);
        self
    }

    /// States that the kernel reads these constants where they are.
    pub fn holding(mut self, constants: impl IntoIterator<Item = Arc<Tensor>>) -> Lowered {
        self.held.extend(constants);
        self
    }

    /// States the size of the weights the kernel packed.
    pub fn with_weights(mut self, bytes: usize) -> Lowered {
        self.weight_bytes = bytes;
        self
    }
}

/// A weight known when the plan is made.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Plain floats.
    F32(Arc<Tensor>),
    /// Symmetric int8 with one scale per index of `axis` (or one in all): `w = q · scale[i_axis]`.
    Q8 {
        /// The integers, in the weight's own shape.
        q: Arc<Tensor>,
        /// One scale, or one per index of `axis`.
        scale: Vec<f32>,
        /// The quantised axis.
        axis: usize,
    },
}

/// Constant codes of eight bits: `(q - zero[i_axis]) · scale[i_axis]`.
#[derive(Clone, Debug)]
pub struct Codes {
    /// `i8` or `u8`.
    pub q: Arc<Tensor>,
    /// One scale, or one per index of `axis`.
    pub scale: Vec<f32>,
    /// As many zero points of the same type, all 0 when there are none.
    pub zero: Option<Arc<Tensor>>,
    /// The quantised axis.
    pub axis: usize,
}

impl Weight {
    /// The weight's shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::F32(t) => t.shape(),
            Weight::Q8 { q, .. } => q.shape(),
        }
    }
}

/// What an operator may ask while it is lowered.
pub struct Lowering<'a> {
    /// Every node of the plan, by the numbers in `producers`.
    pub(super) nodes: &'a [Node],
    pub(super) node: &'a Node,
    /// The node's attributes.
    pub attrs: &'a Attrs,
    pub(super) slots: &'a [Slot],
    pub(super) producers: &'a [Option<usize>],
    /// Where packed weights go, so that other plans of the graph share them.
    pub(super) packs: &'a Packs,
    /// Whether a GPU has a form of this operator, so that weights are packed only when it runs here all the same.
    pub(super) waits: bool,
    /// What the plan is to keep.
    pub(super) kept: &'a RefCell<Vec<Arc<dyn Any + Send + Sync>>>,
    /// What of frozen weights is wanted in bf16.
    pub bf16: Bf16,
    /// Whether a GPU is to have frozen `f32` weights in f16.
    pub f16: bool,
    /// The matrices of f16 that products are to be made with on a GPU; `None` where that is not asked for or not to be had.
    pub matrices: Option<Matrices>,
    /// Whether frozen matrices stay as they lie, where they meet many rows.
    pub lean: bool,
    /// Threads that the plan is made for.
    pub threads: usize,
}

impl Lowering<'_> {
    /// The operator's name, in ONNX spelling.
    pub fn op(&self) -> &str {
        self.node.op.name()
    }

    /// What `pack` makes, of about `len` elements, of those constants and numbers, which are all that it depends on: `how` says
    /// what it does with them. Plans of one graph share it, and it is packed once.
    pub fn packed<T: Packed>(
        &self,
        how: &str,
        of: &[&Arc<Tensor>],
        numbers: &[usize],
        len: usize,
        pack: impl FnOnce() -> Vec<T> + Send + 'static,
    ) -> Arc<Kept<T>> {
        self.packs.packed(self.packs.name(how, of, numbers), len, self.waits, pack)
    }

    /// That, wanted now, whoever runs the operator. The plan keeps it for those that come after it.
    pub fn now<T: Packed>(&self, made: Arc<Kept<T>>) -> Arc<Kept<T>> {
        made.make();
        self.kept.borrow_mut().push(made.clone());
        made
    }

    /// The `len` bytes that `make` makes of those constants and numbers, as a device has them. Plans on one device share them.
    pub fn image(
        &self,
        how: &str,
        of: &[&Arc<Tensor>],
        numbers: &[usize],
        len: usize,
        make: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> At {
        At::Weights(Image { name: self.packs.name(how, of, numbers), len, make: Arc::new(make) })
    }

    /// How many inputs the node lists.
    pub fn inputs(&self) -> usize {
        self.node.inputs.len()
    }

    /// Whether input `i` is given.
    pub fn has(&self, i: usize) -> bool {
        self.node.inputs.get(i).copied().flatten().is_some()
    }

    /// Element type of input `i`.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.node.inputs.get(i).copied().flatten().map(|v| self.slots[v].dtype)
    }

    /// Concrete shape of input `i`.
    ///
    /// # Errors
    /// [`OpError::MissingInput`] when it was not given.
    pub fn shape(&self, i: usize) -> Result<&[usize], OpError> {
        self.node
            .inputs
            .get(i)
            .copied()
            .flatten()
            .map(|v| &self.slots[v].shape[..])
            .ok_or(OpError::MissingInput { index: i, name: "operand" })
    }

    /// Concrete shape of output `i`; empty when nobody asked for it.
    pub fn output_shape(&self, i: usize) -> &[usize] {
        self.node.outputs.get(i).copied().flatten().map_or(&[], |v| &self.slots[v].shape)
    }

    /// Whether output `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.node.outputs.get(i).copied().flatten().is_some()
    }

    /// Input `i` as a constant tensor, if it is one.
    pub fn constant(&self, i: usize) -> Option<&Arc<Tensor>> {
        let v = self.node.inputs.get(i).copied().flatten()?;
        match &self.slots[v].place {
            Place::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// Input `i` as a weight known now: a constant `f32` tensor, or a `DequantizeLinear` of constants that is symmetric
    /// int8 per tensor or per channel. The dequantised tensor is then never made.
    pub fn weight(&self, i: usize) -> Option<Weight> {
        if let Some(t) = self.constant(i) {
            return (t.dtype() == DType::F32).then(|| Weight::F32(t.clone()));
        }
        let codes = self.codes(i)?;
        let symmetric =
            codes.zero.as_ref().is_none_or(|z| matches!(z.data(), Data::I8(z) if z.iter().all(|&z| z == 0)));
        (codes.q.dtype() == DType::I8 && symmetric).then_some(Weight::Q8 {
            q: codes.q,
            scale: codes.scale,
            axis: codes.axis,
        })
    }

    /// Input `i` as constant codes of eight bits, where it is a `DequantizeLinear` of them per tensor or per channel.
    pub fn codes(&self, i: usize) -> Option<Codes> {
        let v = self.node.inputs.get(i).copied().flatten()?;
        let node = &self.nodes[self.producers[v]?];
        let Op::Own(def, attrs) = &node.op else { return None };
        if def.name != "DequantizeLinear" || attrs.int("block_size", 0).ok()? != 0 {
            return None;
        }
        let of = |k: usize| match &self.slots[node.inputs.get(k).copied().flatten()?].place {
            Place::Constant(t) => Some(t.clone()),
            _ => None,
        };
        let (q, scale, zero) = (of(0)?, of(1)?, of(2));
        if !matches!(q.dtype(), DType::I8 | DType::U8)
            || node.inputs.get(2).copied().flatten().is_some() != zero.is_some()
        {
            return None;
        }
        let axis =
            if scale.len() == 1 { 0 } else { crate::ops::axis_of(attrs.int("axis", 1).ok()?, q.shape().len()).ok()? };
        Some(Codes { scale: scale.as_f32().ok()?.to_vec(), zero, q, axis })
    }
}
