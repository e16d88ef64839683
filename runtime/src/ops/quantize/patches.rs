//! Kernels of `QLinearConv` and `ConvInteger` over one or two spatial axes with constant weights.
use std::sync::Arc;

use hone_kernels::qconv::{direct, flipped, pack_taps};
use hone_kernels::qgemm::{self, Problem, Right, Scale, Terms};
use hone_kernels::quantize::Codes;

use super::conv::Conv;
use super::{codes, range_of};
use crate::ops::OpError;
use crate::ops::shape::elements;
use crate::plan::{Io, Kept, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Positions taken together: their patches stay in the nearest caches.
const BLOCK: usize = 256;
/// Bytes after the laid out image that the last panel may read.
const SLACK: usize = 64;
/// Groups with fewer products than this a position are summed directly.
const DIRECT: usize = 64;

/// An image of one group, padded and split into the phases of the stride.
struct Layout {
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    /// Rows and columns of a phase.
    phase: [usize; 2],
    /// Offset of each tap, channels outermost.
    taps: Vec<usize>,
}

impl Layout {
    fn of(c: &Conv) -> Option<Layout> {
        let w = &c.window;
        let two = |v: &[usize], one: usize| match *v {
            [x] => Some([one, x]),
            [y, x] => Some([y, x]),
            _ => None,
        };
        let (input, output, kernel) = (two(&w.input, 1)?, two(&w.output, 1)?, two(&w.kernel, 1)?);
        let (stride, dilation, pad) = (two(&w.stride, 1)?, two(&w.dilation, 1)?, two(&w.begin, 0)?);
        // What the last window reaches, in whole strides.
        let reach = |i: usize| {
            (output[i].checked_sub(1)?).checked_add((kernel[i] - 1) * dilation[i] / stride[i])?.checked_add(1)
        };
        let phase = [reach(0)?, reach(1)?];
        let area = phase[0].checked_mul(phase[1])?;
        let channel = area.checked_mul(stride[0])?.checked_mul(stride[1])?;
        let total = channel.checked_mul(c.c)?;
        // A stride far larger than the kernel would make images of nothing but gaps.
        if total > 8 * (c.c * (input[0] + 2 * pad[0]).checked_mul(input[1] + 2 * pad[1])?) + 1024 || output.contains(&0)
        {
            return None;
        }
        let mut taps = Vec::with_capacity(c.c * kernel[0] * kernel[1]);
        for ch in 0..c.c {
            for ky in 0..kernel[0] {
                for kx in 0..kernel[1] {
                    let (dy, dx) = (ky * dilation[0], kx * dilation[1]);
                    let image = (ch * stride[0] + dy % stride[0]) * stride[1] + dx % stride[1];
                    taps.push(image * area + dy / stride[0] * phase[1] + dx / stride[1]);
                }
            }
        }
        Some(Layout { channels: c.c, input, output, stride, pad, phase, taps })
    }

    fn len(&self) -> usize {
        self.channels * self.stride[0] * self.stride[1] * self.phase[0] * self.phase[1] + SLACK
    }

    /// Positions, those between the end of one row and the next included.
    fn positions(&self) -> usize {
        (self.output[0] - 1) * self.phase[1] + self.output[1]
    }

    /// Lays out `x: [C, H, W]`; `fill` is what stands in the padding.
    fn lay(&self, x: &[u8], flip: u8, fill: u8, image: &mut [u8]) {
        let ([h, w], [sy, sx]) = (self.input, self.stride);
        let mut rows = image.chunks_exact_mut(self.phase[1]);
        for c in 0..self.channels {
            for ry in 0..sy {
                for rx in 0..sx {
                    for py in 0..self.phase[0] {
                        let Some(row) = rows.next() else { return };
                        let y = (py * sy + ry).wrapping_sub(self.pad[0]);
                        if y >= h {
                            row.fill(fill);
                            continue;
                        }
                        let from = &x[(c * h + y) * w..][..w];
                        // Column `j` of the phase is column `j·sx + rx - pad` of the image.
                        let first = self.pad[1].saturating_sub(rx).div_ceil(sx).min(row.len());
                        let end = (w + self.pad[1]).saturating_sub(rx).div_ceil(sx).clamp(first, row.len());
                        row[..first].fill(fill);
                        row[end..].fill(fill);
                        if first == end {
                            continue;
                        }
                        let start = first * sx + rx - self.pad[1];
                        if sx == 1 {
                            flipped(&from[start..][..end - first], flip, &mut row[first..end]);
                        } else {
                            let to = row[first..end].iter_mut();
                            to.zip(from[start..].iter().step_by(sx)).for_each(|(t, f)| *t = f ^ flip);
                        }
                    }
                }
            }
        }
    }
}

enum Finish {
    Integers,
    Codes { scale: Vec<f32>, codes: Codes },
}

struct Patches {
    n: usize,
    groups: usize,
    /// Channels out of a group.
    og: usize,
    layout: Layout,
    weights: Arc<Kept<u8>>,
    /// Weights less their zero points, where they are summed directly.
    centred: Vec<i32>,
    /// Whether the input is signed.
    signed: bool,
    /// Zero point of the input: known, or the slot it is in.
    zero: Result<i32, usize>,
    /// A channel out: zero point of the weights as the product sees it, negated; sum of the weights; bias.
    left: Vec<i32>,
    sums: Vec<i32>,
    bias: Vec<i32>,
    finish: Finish,
}

impl Patches {
    fn direct(&self) -> bool {
        !self.centred.is_empty()
    }

    /// Bytes of the parts of scratch: image, packed block, sums of columns, products, results of a group, row terms.
    fn scratch(&self) -> [usize; 6] {
        let k = self.layout.taps.len();
        let positions = self.layout.positions().next_multiple_of(qgemm::NR);
        let block = BLOCK.min(positions);
        let bytes = if matches!(self.finish, Finish::Integers) { 4 } else { 1 };
        [
            self.layout.len().next_multiple_of(4),
            if self.direct() { 0 } else { qgemm::packed_len(block, k) },
            4 * block,
            4 * self.og * block,
            (self.og * positions * bytes).next_multiple_of(4) + self.og * block,
            4 * self.og,
        ]
    }
}

impl Kernel for Patches {
    fn name(&self) -> &'static str {
        if self.direct() { "qconv-direct" } else { "qconv-patches" }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let sizes = self.scratch().map(|b| b.div_ceil(4));
        let (image, rest) = scratch.split_at_mut(sizes[0]);
        let (packed, rest) = rest.split_at_mut(sizes[1]);
        let (columns, rest) = rest.split_at_mut(sizes[2]);
        let (acc, rest) = rest.split_at_mut(sizes[3]);
        let (results, row) = rest.split_at_mut(sizes[4]);
        let image: &mut [u8] = bytemuck::cast_slice_mut(image);
        let packed: &mut [i8] = bytemuck::cast_slice_mut(packed);
        let columns: &mut [i32] = bytemuck::cast_slice_mut(columns);
        let acc: &mut [i32] = bytemuck::cast_slice_mut(acc);
        let results: &mut [u8] = bytemuck::cast_slice_mut(results);
        let row: &mut [i32] = &mut bytemuck::cast_slice_mut(row)[..self.og];
        let byte = match self.zero {
            Ok(z) => z as u8,
            Err(slot) => reads.bytes(slot)[0],
        };
        // The image is the signed side of the product.
        let flip = if self.signed { 0 } else { 0x80 };
        let zero = i32::from((byte ^ flip) as i8);
        let l = &self.layout;
        let (k, og) = (l.taps.len(), self.og);
        let plane = l.channels * l.input[0] * l.input[1];
        let padded = l.positions().next_multiple_of(qgemm::NR);
        let size = if matches!(self.finish, Finish::Integers) { 4 } else { 1 };
        let (full, part) = results.split_at_mut((og * padded * size).next_multiple_of(4));
        for n in 0..self.n {
            for g in 0..self.groups {
                let at = n * self.groups + g;
                l.lay(&reads.bytes(0)[at * plane..][..plane], flip, byte ^ flip, image);
                for r in 0..og {
                    let o = g * og + r;
                    row[r] = self.bias[o].wrapping_sub(zero.wrapping_mul(self.sums[o]));
                }
                for first in (0..padded).step_by(BLOCK) {
                    let count = BLOCK.min(padded - first);
                    let acc = &mut acc[..og * count];
                    let columns = &mut columns[..count];
                    let mut terms = Terms { row, col: &[], left: &[], right: &[] };
                    if self.direct() {
                        for r in 0..og {
                            let w = &self.centred[(g * og + r) * k..][..k];
                            direct(image, &l.taps, w, first, &mut acc[r * count..][..count]);
                        }
                    } else {
                        pack_taps(image, &l.taps, first, packed, columns);
                        columns.iter_mut().for_each(|c| *c -= k as i32 * zero);
                        let a = &self.weights[g * og * k..][..og * k];
                        let problem = Problem { m: og, k, n: count, a, a_stride: k, b: Right::Panels(packed) };
                        qgemm::product_sums(pool, &problem, &[0; BLOCK], acc);
                        terms = Terms { left: &self.left[g * og..][..og], right: columns, ..terms };
                    }
                    match &self.finish {
                        Finish::Integers => {
                            qgemm::add_terms(count, &terms, acc);
                            let full: &mut [i32] = bytemuck::cast_slice_mut(full);
                            for r in 0..og {
                                full[r * padded + first..][..count].copy_from_slice(&acc[r * count..][..count]);
                            }
                        }
                        Finish::Codes { scale, codes } => {
                            let part = &mut part[..og * count];
                            let scale = Scale::Rows(&scale[g * og..][..og]);
                            qgemm::requantise(count, &terms, scale, *codes, acc, part);
                            for r in 0..og {
                                full[r * padded + first..][..count].copy_from_slice(&part[r * count..][..count]);
                            }
                        }
                    }
                }
                let [oh, ow] = l.output;
                let y = &mut writes.bytes(0)[at * og * oh * ow * size..][..og * oh * ow * size];
                for (i, y) in y.chunks_exact_mut(ow * size).enumerate() {
                    let from = (i / oh * padded + i % oh * l.phase[1]) * size;
                    y.copy_from_slice(&full[from..][..ow * size]);
                }
            }
        }
    }
}

/// Lowers a convolution whose weights are operand `w` with zero point `w_zero`, and whose input's zero point is `x_zero`.
fn patches(
    l: &Lowering<'_>,
    (x_zero, w, w_zero): (usize, usize, usize),
    finish: impl FnOnce(&Conv) -> Result<Option<(Finish, Vec<i32>)>, OpError>,
) -> Result<Option<Lowered>, OpError> {
    let (Some(x), Some(weights)) = (l.dtype(0), l.constant(w)) else { return Ok(None) };
    let eight = |t: DType| matches!(t, DType::U8 | DType::I8);
    if !eight(x) || !eight(weights.dtype()) || l.attrs.flag("channels_last", false)? {
        return Ok(None);
    }
    let c = Conv::of(l.attrs, l.shape(0)?, weights.shape())?;
    let Some(layout) = Layout::of(&c) else { return Ok(None) };
    let zeros = match (l.has(w_zero), l.constant(w_zero)) {
        (true, None) => return Ok(None),
        (_, z) => c.weight_zeros(z.map(|z| &**z))?,
    };
    let mut reads = vec![0];
    let zero = match (l.has(x_zero), l.constant(x_zero)) {
        (false, _) => Ok(0),
        (true, Some(z)) if z.len() == 1 => Ok(codes(z, "x_zero_point")?[0]),
        (true, _) if l.shape(x_zero)?.iter().product::<usize>() == 1 => {
            reads.push(x_zero);
            Err(1)
        }
        _ => return Ok(None),
    };
    let Some((finish, bias)) = finish(&c)? else { return Ok(None) };
    let (k, og) = (layout.taps.len(), c.o / c.groups);
    let signed = weights.dtype() == DType::I8;
    let direct = og == 1 && k <= DIRECT;
    let shift = if signed { 128 } else { 0 };
    let (centred, sums): (Vec<i32>, Vec<i32>) = if direct {
        let plain = codes(weights, "w")?;
        let centred: Vec<i32> = (0..c.o * k).map(|i| plain[i] - zeros[i / k]).collect();
        let sums = (0..c.o).map(|o| centred[o * k..][..k].iter().sum()).collect();
        (centred, sums)
    } else {
        let (from, o) = (weights.clone(), c.o);
        let sums = l.packed("sums of rows of codes", &[weights], &[c.o, k], c.o, move || {
            let code = |w: &u8| if signed { i32::from(*w as i8) + shift } else { i32::from(*w) };
            let rows = from.data().as_bytes().chunks_exact(k.max(1));
            let mut sums: Vec<i32> = rows.map(|row| row.iter().map(code).sum()).collect();
            // Rows of nothing are no rows of bytes.
            sums.resize(o, 0);
            sums
        });
        (Vec::new(), l.now(sums).to_vec())
    };
    let left = zeros.iter().map(|z| -(z + shift)).collect();
    // The product takes `u8`: signed ones are 128 more there.
    let flip = if signed { 0x80 } else { 0 };
    let weights = if direct {
        Arc::default()
    } else {
        let from = weights.clone();
        l.packed("codes flipped", &[weights], &[], weights.len(), move || {
            from.data().as_bytes().iter().map(|w| w ^ flip).collect()
        })
    };
    let bytes = weights.len() + 4 * centred.len();
    let p = Patches {
        n: c.n,
        groups: c.groups,
        og,
        layout,
        weights,
        centred,
        signed: x == DType::I8,
        zero,
        left,
        sums,
        bias,
        finish,
    };
    let sizes = p.scratch();
    elements(&[sizes.iter().fold(0usize, |n, &s| n.saturating_add(s))])?;
    let floats = sizes.iter().map(|b| b.div_ceil(4)).sum();
    Ok(Some(Lowered::new(p, reads).with_scratch(floats).with_weights(bytes)))
}

/// `ConvInteger`.
pub(super) fn integer(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    patches(l, (2, 1, 3), |c| Ok(Some((Finish::Integers, vec![0; c.o]))))
}

/// `QLinearConv`.
pub(super) fn qlinear(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let constant = |i: usize| l.constant(i).map(|t| -> &Tensor { t });
    patches(l, (2, 3, 5), |c| {
        let (Some(x), Some(w), Some(y), Some(z)) = (constant(1), constant(4), constant(6), constant(7)) else {
            return Ok(None);
        };
        if !matches!(z.dtype(), DType::U8 | DType::I8) {
            return Ok(None);
        }
        let bias = match (l.has(8), constant(8)) {
            (true, None) => return Ok(None),
            (true, Some(b)) if b.len() == c.o => codes(b, "B")?,
            (true, Some(b)) => return Err(OpError::shape("B of QLinearConv", c.o, b.len())),
            (false, _) => vec![0; c.o],
        };
        let (low, high) = range_of(z.dtype())?;
        let codes = Codes { zero: super::single(z, "y")? as i32, low, high };
        Ok(Some((Finish::Codes { scale: c.rescale(x, w, y)?, codes }, bias)))
    })
}
