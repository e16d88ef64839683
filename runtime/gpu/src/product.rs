//! Matrix products and convolutions with channels last, in four manners.
//!
//! A thread makes a tile of the result in registers, alone or as one of eight that share the sum; or 256 threads share what they
//! read. Sharing the sum rounds otherwise, so that is chosen by the shape, everywhere alike; whether to share what is read is
//! measured on the device. Where operands may be rounded to f16 and the device multiplies matrices of it, subgroups do so: that
//! is chosen by the shape too.
use half::f16;
use hone_kernels::bf16::round;
use hone_kernels::conv::Window;
use hone_kernels::epilogue::Activation;

use crate::functions::of_activation;
use crate::kernel::{Call, Matrices, put_window};

mod text;
mod trials;

pub(crate) use text::{POSITIONS, Split, TAPS, finish, finish_square};

/// Columns of a tile; packed weights are padded to it.
pub(crate) const COLUMNS: usize = 8;
/// Rows of a tile.
pub(crate) const ROWS: usize = 4;

/// What the right operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// [`pack`]ed floats.
    Packed,
    /// [`pack_bf16`]ed upper halves of floats.
    PackedBf16,
    /// [`pack_f16`]ed floats of half the bits.
    PackedF16,
    /// [`pack_i8`]ed bytes, with a scale a column as an operand.
    PackedI8,
    /// [`pack_4`]ed codes of four bits, with a scale and an offset a column and block of k as two operands: `code · scale -
    /// offset`. Of one matrix only.
    Packed4 {
        /// Length of a block, a multiple of 4.
        block: usize,
    },
    /// Floats anywhere: strides in elements, along k and along columns.
    Plain {
        /// From one k to the next.
        row: usize,
        /// From one column to the next.
        step: usize,
    },
}

/// The left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Rows of `k` elements.
    Matrix {
        /// From one row to the next.
        row: usize,
        /// From one k to the next.
        step: usize,
    },
    /// Positions of a window over `[batch, depth, height, width, groups · channels]`; `k` is `taps · channels`.
    Window {
        /// The window.
        window: Window,
        /// Channels of a group.
        channels: usize,
        /// Channels of a pixel.
        pixel: usize,
    },
}

/// Products that differ in where their operands begin: over heads, or over the groups of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lengths, outermost first.
    pub lengths: [usize; 4],
    /// Elements of the left operand along each.
    pub a: [usize; 4],
    /// Elements of the right operand along each: of packed ones, of their padded form.
    pub w: [usize; 4],
    /// Elements of the result along each.
    pub y: [usize; 4],
}

impl Batch {
    /// One product.
    pub fn one() -> Batch {
        Batch { lengths: [1; 4], a: [0; 4], w: [0; 4], y: [0; 4] }
    }
}

/// `y = f(alpha · a · w · scale + bias + z)`. Operands in the order a, w, scale (of packed bytes), bias, z.
#[derive(Clone, Debug)]
pub struct Product {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Length of the sum.
    pub k: usize,
    /// The left operand.
    pub left: Left,
    /// The right operand.
    pub right: Right,
    /// Elements from one row of the result to the next.
    pub y_row: usize,
    /// The products.
    pub batch: Batch,
    /// A bias a column.
    pub bias: bool,
    /// A tensor like the result to add.
    pub residual: bool,
    /// A factor of the sum.
    pub alpha: f32,
    /// What comes last.
    pub activation: Activation,
    /// Both operands may be rounded to f16, what is larger than that has to its largest, and multiplied by these of the device; the
    /// sums are `f32`.
    pub matrices: Option<Matrices>,
}

/// Elements of one packed matrix.
pub fn packed_len(k: usize, n: usize) -> usize {
    k * n.next_multiple_of(COLUMNS)
}

/// A product with those matrices, by which it is seen whether a device has them; `None` when groups of threads cannot share them out.
#[cfg(feature = "device")]
pub(crate) fn probe(of: Matrices) -> Option<Call> {
    let (m, n, k) = (64, 64, 64);
    let product = Product {
        m,
        n,
        k,
        left: Left::Matrix { row: k, step: 1 },
        right: Right::PackedF16,
        y_row: n,
        batch: Batch::one(),
        bias: false,
        residual: false,
        alpha: 1.0,
        activation: Activation::None,
        matrices: Some(of),
    };
    product.made_by(Maker::Subgroups { side: 32, of })
}

/// The bytes of a packed matrix whose element `(k, j)` has those, and zeros behind the last column.
fn packed<const BYTES: usize>(k: usize, n: usize, element: impl Fn(usize, usize) -> [u8; BYTES]) -> Vec<u8> {
    let row = n.next_multiple_of(COLUMNS);
    (0..k * row).flat_map(|i| if i % row < n { element(i / row, i % row) } else { [0; BYTES] }).collect()
}

/// The bytes of a packed matrix of floats: `w(k, j)`.
pub fn pack(k: usize, n: usize, w: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    packed(k, n, |k, j| w(k, j).to_le_bytes())
}

/// The bytes of a packed matrix of floats in bf16, half as many: `w(k, j)`, rounded.
pub fn pack_bf16(k: usize, n: usize, w: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    packed(k, n, |k, j| round(w(k, j)).to_le_bytes())
}

/// The bytes of a packed matrix of floats in f16, half as many: `w(k, j)`, rounded, and what is larger than f16 has its largest.
pub fn pack_f16(k: usize, n: usize, w: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let most = f16::MAX.to_f32();
    packed(k, n, |k, j| f16::from_f32(w(k, j).clamp(-most, most)).to_le_bytes())
}

/// The bytes of a packed matrix of bytes: `w(k, j)`.
pub fn pack_i8(k: usize, n: usize, w: impl Fn(usize, usize) -> i8) -> Vec<u8> {
    packed(k, n, |k, j| w(k, j).to_le_bytes())
}

/// The bytes of a packed matrix of four bits: `w(k, j)` below 16; eight columns of one k in a word.
pub fn pack_4(k: usize, n: usize, w: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let row = n.next_multiple_of(COLUMNS) / 2;
    let at = |k: usize, j: usize| if j < n { w(k, j) & 15 } else { 0 };
    (0..k * row).map(|i| at(i / row, i % row * 2) | at(i / row, i % row * 2 + 1) << 4).collect()
}
/// Who makes the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A thread 4 rows by 8 columns.
    Tile,
    /// Eight threads so many rows (1 or 4) by 8 columns, each an eighth of every tap's sum.
    Split(usize),
    /// 256 threads 64 rows by 64 columns.
    Shared,
}

impl Manner {
    /// Eight threads a sum, of a result with so many rows.
    pub(crate) fn split(m: usize) -> Manner {
        Manner::Split(if m == 1 { 1 } else { ROWS })
    }

    /// Whether a result of so many rows and columns, so many times, leaves a large device idle where a thread makes a tile alone,
    /// and sums of that length are worth sharing.
    pub(crate) fn splits(m: usize, n: usize, batch: usize, length: usize) -> bool {
        let (columns, rows) = Manner::Tile.tile();
        n.div_ceil(columns) * m.div_ceil(rows) * batch < FEW_GROUPS && length >= LONG
    }

    /// Whether sharing what is read may be faster than not.
    pub(crate) fn shares(m: usize, n: usize, length: usize) -> bool {
        m >= 32 && n >= 32 && length >= 16
    }

    /// Columns and rows of a group.
    pub(crate) fn tile(self) -> (usize, usize) {
        match self {
            Manner::Tile => (8 * COLUMNS, 8 * ROWS),
            Manner::Split(rows) => (8 * COLUMNS, rows),
            Manner::Shared => (64, 64),
        }
    }

    /// How names of kernels end.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Manner::Tile => "",
            Manner::Split(1) => "-split1",
            Manner::Split(_) => "-split",
            Manner::Shared => "-shared",
        }
    }

    /// What the head of a text says.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Manner::Tile => {
                "A thread makes 4 rows by 8 columns. No shared memory: on some devices that is plain memory."
            }
            Manner::Split(_) => {
                "Eight threads make a tile of 8 columns: each sums an eighth, and those are added in order."
            }
            Manner::Shared => "A group makes 64 by 64, and reads once for all of it; a thread makes 4 by 4.",
        }
    }
}

/// Who makes the result of a product of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    /// Threads, in `f32`.
    Threads(Manner),
    /// The subgroups of a group with [`THREADS`] for each of `side` rows by `side` columns (32 or 64), with matrices of the device.
    Subgroups { side: usize, of: Matrices },
}

/// Threads for each row of what [`Maker::Subgroups`] make together.
const THREADS: usize = 4;

impl Maker {
    /// Subgroups, of a result with so many rows and columns, so many times, and sums of that length; `None` where their matrices
    /// would be filled too little.
    fn subgroups(of: Matrices, m: usize, n: usize, batch: usize, length: usize) -> Option<Maker> {
        let groups = |side: usize| n.div_ceil(side) * m.div_ceil(side) * batch;
        let side = if groups(64) < FEW_GROUPS { 32 } else { 64 };
        (m >= 16 && n >= 16 && length >= 16).then_some(Maker::Subgroups { side, of })
    }

    /// Whether the operands lie for it.
    fn takes(self, form: Form) -> bool {
        match self {
            Maker::Threads(Manner::Tile | Manner::Split(_)) => true,
            Maker::Threads(Manner::Shared) => form.wide,
            Maker::Subgroups { side, of } => form.wide && of.per_subgroup(side, THREADS * side).is_some(),
        }
    }

    /// Columns and rows of a group.
    fn tile(self) -> (usize, usize) {
        match self {
            Maker::Threads(manner) => manner.tile(),
            Maker::Subgroups { side, .. } => (side, side),
        }
    }

    /// How names of kernels end.
    fn name(self) -> String {
        match self {
            Maker::Threads(manner) => manner.name().into(),
            Maker::Subgroups { side, of: Matrices { side: of, subgroup } } => {
                format!("-matrices{side}of{of}by{subgroup}")
            }
        }
    }

    /// What the head of a text says.
    fn told(self) -> &'static str {
        match self {
            Maker::Threads(manner) => manner.told(),
            Maker::Subgroups { .. } => {
                "A group rounds what it reads to f16, and its subgroups multiply matrices of that; sums are f32."
            }
        }
    }
}

/// Groups that occupy a large device; fewer are too few, and sums are shared by threads.
const FEW_GROUPS: usize = 64;
/// Least length of a sum that is worth sharing.
const LONG: usize = 64;

/// What the text depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    maker: Maker,
    window: bool,
    /// The left operand is read four at a time.
    wide: bool,
    right: u8,
    bias: bool,
    residual: bool,
    activation: Activation,
}

impl Product {
    fn form(&self, maker: Maker) -> Form {
        let fours = |v: &[usize]| v.iter().all(|v| v.is_multiple_of(4));
        let wide = match self.left {
            Left::Matrix { row, step } => step == 1 && fours(&[row, self.k]) && fours(&self.batch.a),
            Left::Window { channels, pixel, .. } => fours(&[channels, pixel]) && fours(&self.batch.a),
        };
        Form {
            maker,
            window: matches!(self.left, Left::Window { .. }),
            wide,
            right: match self.right {
                Right::Packed => 0,
                Right::PackedI8 => 1,
                Right::Plain { .. } => 2,
                Right::Packed4 { .. } => 3,
                Right::PackedBf16 => 4,
                Right::PackedF16 => 5,
            },
            bias: self.bias,
            residual: self.residual,
            activation: self.activation,
        }
    }

    /// What is summed under one tap.
    fn channels(&self) -> usize {
        if let Left::Window { channels, .. } = self.left { channels } else { self.k }
    }

    /// The call; `None` when the sizes are more than a grid or a word has.
    pub fn call(&self) -> Option<Call> {
        let (m, n, length, batch) = (self.m, self.n, self.channels(), self.batch.lengths.iter().product());
        let threads = |manner: Manner| self.made_by(Maker::Threads(manner));
        let call = if Manner::splits(m, n, batch, length) {
            threads(Manner::split(m))?
        } else {
            let call = threads(Manner::Tile)?;
            if Manner::shares(m, n, length) { call.or(threads(Manner::Shared)) } else { call }
        };
        let subgroups = self.matrices.and_then(|of| Maker::subgroups(of, m, n, batch, length));
        Some(match subgroups.and_then(|maker| self.made_by(maker)) {
            Some(rounded) => rounded.otherwise(call),
            None => call,
        })
    }

    /// The call of that maker; `None` also when the operands do not lie for it.
    fn made_by(&self, maker: Maker) -> Option<Call> {
        let form = self.form(maker);
        if !maker.takes(form) {
            return None;
        }
        let word = |v: usize| u32::try_from(v).ok();
        let (unit, per) = (if form.wide { 4 } else { 1 }, 4);
        let mut params = vec![0u32; 52];
        let (w_row, w_step, w_unit) = match self.right {
            Right::Packed | Right::PackedBf16 | Right::PackedF16 | Right::PackedI8 => {
                (self.n.next_multiple_of(COLUMNS) / per, 0, per)
            }
            Right::Plain { row, step } => (row, step, 1),
            Right::Packed4 { block } => {
                if self.batch != Batch::one() || form.window || block % 4 != 0 || block == 0 {
                    return None;
                }
                (self.n.next_multiple_of(COLUMNS) / 8, block, 1)
            }
        };
        let (a_row, a_step) = match self.left {
            Left::Matrix { row, step } => (row / unit, step),
            Left::Window { pixel, .. } => (pixel, 0),
        };
        let head = [self.m, self.n, self.k, w_row, a_row, a_step, w_step, self.y_row];
        for (p, v) in params.iter_mut().zip(head) {
            *p = word(v)?;
        }
        if let Left::Window { window: w, .. } = self.left {
            put_window(&w, &mut params[8..32])?;
        }
        let a_unit = if form.window { 1 } else { unit };
        for axis in 0..4 {
            params[32 + axis] = word(self.batch.lengths[axis])?;
            params[36 + axis] = word(self.batch.a[axis] / a_unit)?;
            params[40 + axis] = word(self.batch.w[axis] / w_unit)?;
            params[44 + axis] = word(self.batch.y[axis])?;
        }
        let (_, constants) = of_activation(self.activation);
        for (p, c) in params[48..50].iter_mut().zip(constants) {
            *p = c.to_bits();
        }
        params[50] = word(self.channels())?;
        params[51] = self.alpha.to_bits();
        let (columns, rows) = maker.tile();
        let groups = [self.n.div_ceil(columns), self.m.div_ceil(rows), self.batch.lengths.iter().product()];
        text::kernel(form).call(params, groups)
    }
}
