//! Gradients of convolutions.
//!
//! That by the input is a transposed convolution with the same weight, and the other way round; that by the weight is an
//! operator of its own: each tap is the product of the gradient with what it was multiplied with.
use hone_kernels::by_weight::{self, ByWeight};
use hone_kernels::conv::{self, Window};
use hone_kernels::gemm::{self, Gemm, Packed};
use hone_kernels::panels::{self, Lying};
use hone_kernels::shifted::Shifted;

use super::geometry::reach;
use super::transpose::Transposed;
use super::{Conv, Geometry, groups};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::matmul::frozen_codes;
use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, HONE, OpDef, OpError, need, no_kernel};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// `X [N, C, …]` and `dY [N, O, …]` of a convolution with the node's attributes (`kernel_shape` among them) to
/// `dW [O, C/G, …]`.
static CONV_VJP_WEIGHT: OpDef = OpDef::new(
    "ConvVjpWeight",
    "gradient of a convolution by its weight",
    |attrs, inputs| {
        let (x, dy) = (need(inputs, 0, "X")?, need(inputs, 1, "dY")?);
        let shape = weight_shape(attrs, &x.shape, &dy.shape)?;
        checked(attrs, &x.shape, &dy.shape, &shape)?;
        Ok(Some(vec![Fact::new(x.dtype, shape)]))
    },
    |attrs, inputs| {
        let (x, dy) = (need(inputs, 0, "X")?, need(inputs, 1, "dY")?);
        let shape = weight_shape(attrs, x.shape(), dy.shape())?;
        let Conv { n, c, o, groups, geometry } = checked(attrs, x.shape(), dy.shape(), &shape)?;
        let (xs, gs) = (x.data().to_f64(), dy.data().to_f64());
        let (pixels, taps_len, windows) = (geometry.input_len(), geometry.kernel_len(), geometry.output_len());
        let mut dw = vec![0.0; elements(&shape)?];
        let per_group = (o / groups).max(1);
        let mut p = 0;
        geometry.for_each_window(|_, taps| {
            for n in 0..n {
                for o in 0..o {
                    let g = gs[(n * shape[0] + o) * windows + p];
                    for ch in 0..c {
                        let x = &xs[(n * c * groups + o / per_group * c + ch) * pixels..];
                        let dw = &mut dw[(o * c + ch) * taps_len..];
                        taps.iter().for_each(|&(i, k)| dw[k] += g * x[i]);
                    }
                }
            }
            p += 1;
        });
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &dw)?])
    },
)
.domain(HONE)
.kernel(weight_lower)
.gpu(super::planes::by_weight);

pub(super) fn weight_shape(attrs: &Attrs, x: &[usize], dy: &[usize]) -> Result<Vec<usize>, OpError> {
    let groups = groups(attrs)?;
    let kernel = attrs.ints("kernel_shape")?.ok_or_else(|| OpError::attribute("kernel_shape", "is missing"))?;
    match (x, dy) {
        ([_, c, ..], [_, o, ..]) => {
            Ok([*o, c / groups].into_iter().chain(kernel.iter().map(|&k| k as usize)).collect())
        }
        _ => Err(OpError::shape("X and dY", "[N, C, …]", (x, dy))),
    }
}

pub(super) fn checked(attrs: &Attrs, x: &[usize], dy: &[usize], w: &[usize]) -> Result<Conv, OpError> {
    let conv = Conv::of(attrs, x, w, None)?;
    if conv.output_shape() != dy {
        return Err(OpError::shape("dY", conv.output_shape(), dy));
    }
    Ok(conv)
}

fn weight_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (x, dy) = (l.shape(0)?, l.shape(1)?);
    let conv = checked(l.attrs, x, dy, &weight_shape(l.attrs, x, dy)?)?;
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) || elements(x)? == 0 || elements(dy)? == 0 {
        return no_kernel(l);
    }
    let Some(window) = conv.geometry.window() else { return no_kernel(l) };
    if conv.groups == 1
        && !window.is_pointwise()
        && let Some(shifted) = Shifted::convolution(&window)
    {
        let scratch = by_weight::scratch(&shifted, conv.c, conv.o, l.threads);
        let kernel = ShiftedWeightVjp { shifted, sizes: [conv.n, conv.c, conv.o] };
        return Ok(Some(Lowered::new(kernel, vec![0, 1]).with_scratch(scratch).with_weights(size_of::<Shifted>())));
    }
    let (columns, windows) = (conv.c * window.taps(), window.positions());
    let each = gemm::packed_len(columns, windows);
    let laid = if window.is_pointwise() { 0 } else { gemm::NR * windows };
    let scratch = if conv.groups > 1 {
        l.threads.min(conv.groups) * (each + laid)
    } else {
        each + l.threads.min(columns.div_ceil(gemm::NR)) * laid
    };
    Ok(Some(Lowered::new(WeightVjp { conv, window, each, laid }, vec![0, 1]).with_scratch(scratch)))
}

/// Of one group by a window that [`Shifted`] lays out.
struct ShiftedWeightVjp {
    shifted: Shifted,
    /// Images, channels, and channels of the result.
    sizes: [usize; 3],
}

impl Kernel for ShiftedWeightVjp {
    fn name(&self) -> &'static str {
        "conv-vjp-weight-shifted"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let of = ByWeight { shifted: &self.shifted, sizes: self.sizes, x: reads.f32(0), dy: reads.f32(1) };
        by_weight::by_weight(pool, &of, scratch, writes.f32(0));
    }
}

/// For each example and group the product `dY · patchesᵀ`, added up in this order: groups by threads, or the panels of one.
struct WeightVjp {
    conv: Conv,
    window: Window,
    /// Floats of the packed patches of a group of an image, and of the rows of them that are laid out for a panel.
    each: usize,
    laid: usize,
}

impl WeightVjp {
    /// Packs a panel of the patches of one group of one image; `laid` is [`WeightVjp::laid`] floats.
    fn panel(&self, panel: usize, x: &[f32], laid: &mut [f32], out: &mut [f32]) {
        let (columns, windows) = (self.conv.c * self.window.taps(), self.window.positions());
        if self.laid == 0 {
            return panels::panel(panel, columns, windows, true, &Lying::F32(x), out);
        }
        let rows = panel * gemm::NR..columns.min((panel + 1) * gemm::NR);
        let count = rows.len();
        conv::columns(&self.window, x, rows, 0..windows, windows, &mut laid[..count * windows]);
        panels::panel(0, count, windows, true, &Lying::F32(laid), out);
    }
}

impl Kernel for WeightVjp {
    fn name(&self) -> &'static str {
        "conv-vjp-weight-gemm"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (x, dy, dw) = (reads.f32(0), reads.f32(1), writes.f32(0));
        let Conv { n, c, o, groups, .. } = self.conv;
        let (pixels, windows) = (self.window.pixels(), self.window.positions());
        let (per_group, columns) = (o / groups, c * self.window.taps());
        let image = |b: usize, g: usize| &x[(b * groups + g) * c * pixels..][..c * pixels];
        let problem = |b: usize, g: usize| Gemm {
            x: &dy[(b * o + g * per_group) * windows..][..per_group * windows],
            x_stride: windows,
            w: Packed::F32(&[]),
            m: per_group,
            k: windows,
            n: columns,
            bias: None,
            accumulate: b > 0,
        };
        if groups > 1 {
            pool.pieces_with(dw, per_group * columns, (scratch, self.each + self.laid), |g, dw, own| {
                let (packed, laid) = own.split_at_mut(self.each);
                for b in 0..n {
                    for (panel, out) in packed.chunks_exact_mut(gemm::NR * windows).enumerate() {
                        self.panel(panel, image(b, g), laid, out);
                    }
                    gemm::gemm(&Gemm { w: Packed::F32(packed), ..problem(b, g) }, dw);
                }
            });
            return;
        }
        let (packed, own) = scratch.split_at_mut(self.each);
        for b in 0..n {
            pool.pieces_with(packed, gemm::NR * windows, (&mut own[..], self.laid), |panel, out, laid| {
                self.panel(panel, image(b, 0), laid, out);
            });
            gemm::gemm_on(pool, &Gemm { w: Packed::F32(packed), ..problem(b, 0) }, dw);
        }
    }
}

/// Attributes of a window, with padding spelled out.
fn window(g: &Geometry, group: usize) -> Attrs {
    let ints = |v: &[usize]| Attr::Ints(v.iter().map(|&d| d as i64).collect());
    Attrs::of([
        ("group", Attr::Int(group as i64)),
        ("kernel_shape", ints(&g.kernel)),
        ("strides", ints(&g.stride)),
        ("dilations", ints(&g.dilation)),
        ("pads", Attr::Ints(g.begin.iter().chain(&g.end).copied().collect())),
    ])
}

/// Of `Conv`.
pub(super) fn conv(b: &mut Backward<'_>) -> Result<(), OpError> {
    let attrs = b.attrs();
    let (dy, x, w) = (b.dy()?, b.x(0)?, b.x(1)?);
    let conv = Conv::of(&attrs, b.shape(x), b.shape(w), None)?;
    let g = &conv.geometry;
    if b.wants(0) {
        let mut own = window(g, conv.groups);
        let extra = (0..g.axes()).map(|a| {
            let full = (g.output[a] as i64 - 1) * g.stride[a] as i64 + reach(g.kernel[a], g.dilation[a]);
            g.input[a] as i64 - (full - g.begin[a] - g.end[a])
        });
        own.map.insert("output_padding".into(), Attr::Ints(extra.collect()));
        let op = crate::ops::find("", "ConvTranspose").ok_or_else(|| OpError::unsupported("ConvTranspose"))?;
        let (dy, w) = unscaled(b, dy, w)?;
        let dx = b.one(op, own, &[Some(dy), Some(w)])?;
        b.give(0, dx);
    }
    if b.wants(1) {
        let dw = b.one(&CONV_VJP_WEIGHT, window(g, conv.groups), &[Some(x), Some(dy)])?;
        b.give(1, dw);
    }
    bias(b, dy)
}

/// The gradient and the weight of a convolution with the scales of a frozen int8 weight moved from the weight to the gradient,
/// along whose channels they run: in the transposed convolution they would lie along the reduction. Both as they are when the
/// weight is no such one.
fn unscaled(b: &mut Backward<'_>, dy: ValueId, w: ValueId) -> Result<(ValueId, ValueId), OpError> {
    let rank = b.shape(w).len();
    let Some((codes, scale)) = frozen_codes(b, w, 0, rank)? else { return Ok((dy, w)) };
    let Some(dequantize) = crate::ops::find("", "DequantizeLinear") else { return Ok((dy, w)) };
    let one = b.scalar_like(scale, 1.0)?;
    let plain = b.one(dequantize, Attrs::of([]), &[Some(codes), Some(one)])?;
    let mut shape = vec![1; rank - 1];
    shape[0] = b.shape(scale).iter().product();
    let scale = b.reshape(scale, &shape)?;
    let dy = b.mul(dy, scale)?;
    Ok((dy, plain))
}

/// The gradient by a bias of channels.
fn bias(b: &mut Backward<'_>, dy: ValueId) -> Result<(), OpError> {
    if b.wants(2) {
        let axes: Vec<usize> = (0..b.shape(dy).len()).filter(|&a| a != 1).collect();
        let g = b.reduce("ReduceSum", dy, &axes, false)?;
        b.give(2, g);
    }
    Ok(())
}

/// Of `ConvTranspose`: a convolution with the same weight, and the gradient of that by its weight.
pub(super) fn conv_transpose(b: &mut Backward<'_>) -> Result<(), OpError> {
    let attrs = b.attrs();
    let (dy, x, w) = (b.dy()?, b.x(0)?, b.x(1)?);
    let t = Transposed::of(&attrs, b.shape(x), b.shape(w), None)?;
    let mut g = t.geometry.clone();
    // Windows that only an output padding made room for are not ours: the end is cut until just those of `x` fit.
    for a in 0..g.axes() {
        let reached = (g.output[a] as i64 - 1) * g.stride[a] as i64 + reach(g.kernel[a], g.dilation[a]);
        g.end[a] = reached - g.input[a] as i64 - g.begin[a];
    }
    if b.wants(0) {
        let op = crate::ops::find("", "Conv").ok_or_else(|| OpError::unsupported("Conv"))?;
        let dx = b.one(op, window(&g, t.groups), &[Some(dy), Some(w)])?;
        b.give(0, dx);
    }
    if b.wants(1) {
        let dw = b.one(&CONV_VJP_WEIGHT, window(&g, t.groups), &[Some(dy), Some(x)])?;
        b.give(1, dw);
    }
    bias(b, dy)
}

/// Of ONNX Runtime's `activation(Conv(X, W, B) + Z)`, by way of its parts.
pub(super) fn fused_conv(b: &mut Backward<'_>) -> Result<(), OpError> {
    b.through(|b| {
        let attrs = b.attrs();
        let op = crate::ops::find("", "Conv").ok_or_else(|| OpError::unsupported("Conv"))?;
        let mut own = Attrs::clone(&attrs);
        own.map.retain(|k, _| !k.starts_with("activation"));
        let operands = b.operands();
        let mut y = b.one(op, own, &operands[..operands.len().min(3)])?;
        if let Some(z) = b.optional(3) {
            y = b.add(y, z)?;
        }
        let params = attrs.floats("activation_params")?.unwrap_or(&[]).to_vec();
        let param = |i: usize, default: f32| Attr::Float(params.get(i).copied().unwrap_or(default));
        let y = match attrs.str("activation", "")? {
            "" => y,
            name @ ("Relu" | "Tanh" | "Sigmoid") => b.unary(name, y)?,
            "LeakyRelu" => b.standard("LeakyRelu", [("alpha", param(0, 0.01))], &[y])?,
            "HardSigmoid" => b.standard("HardSigmoid", [("alpha", param(0, 0.2)), ("beta", param(1, 0.5))], &[y])?,
            "Clip" => {
                let bound = |i: usize, default: f32| f64::from(params.get(i).copied().unwrap_or(default));
                let (low, high) = (b.scalar_like(y, bound(0, f32::MIN))?, b.scalar_like(y, bound(1, f32::MAX))?);
                b.standard("Clip", [], &[y, low, high])?
            }
            other => return Err(OpError::unsupported(format!("the activation `{other}` of FusedConv"))),
        };
        Ok(vec![y])
    })
}
