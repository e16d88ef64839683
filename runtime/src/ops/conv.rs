//! Convolution in one and two dimensions, grouped, strided, dilated.
//!
//! Dimension letters: `N` batch, `C` channels in, `O` channels out, `G` groups, spatial sizes as in the kernels crate.
use hone_kernels::{conv, gemm};

use super::matmul::PackedMatrix;
use super::{Attrs, Fact, OpDef, OpError, Origin, need};
use crate::graph::Dim;
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

/// Convolution as ONNX defines it (cross-correlation).
pub(super) static CONV: OpDef = OpDef {
    name: "Conv",
    doc: "convolution (cross-correlation) over one or two spatial axes, grouped, strided, dilated",
    origin: Origin::Onnx,
    shape: |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?);
        let s = Sliding::of(attrs, x.shape.len(), Some(&w.shape))?;
        let mut shape = vec![x.shape[0].clone(), w.shape[0].clone()];
        shape.extend(s.output_dims(&x.shape[2..])?);
        Ok(vec![Fact::new(x.dtype, shape)])
    },
    reference: |attrs, inputs, shapes| {
        let (x, w) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?);
        let bias = inputs.get(2).copied().flatten();
        let c = Conv2d::new(attrs, x.shape(), w.shape(), bias.map(Tensor::shape), &shapes[0])?;
        let (xs, ws) = (x.as_f32()?, w.as_f32()?);
        let g = c.geometry;
        let mut y = vec![0.0; shapes[0].iter().product()];
        for n in 0..c.n {
            for o in 0..c.o {
                let group = o / (c.o / c.groups);
                for oy in 0..g.output[0] {
                    for ox in 0..g.output[1] {
                        let mut sum = bias.map_or(Ok(0.0), |b| b.as_f32().map(|b| f64::from(b[o])))?;
                        for ch in 0..g.c {
                            for ky in 0..g.kernel[0] {
                                for kx in 0..g.kernel[1] {
                                    let yy = (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.pad[0]);
                                    let xx = (ox * g.stride[1] + kx * g.dilation[1]).wrapping_sub(g.pad[1]);
                                    if yy < g.input[0] && xx < g.input[1] {
                                        let plane = (n * c.groups + group) * g.c + ch;
                                        let v = xs[(plane * g.input[0] + yy) * g.input[1] + xx];
                                        let w = ws[((o * g.c + ch) * g.kernel[0] + ky) * g.kernel[1] + kx];
                                        sum += f64::from(v) * f64::from(w);
                                    }
                                }
                            }
                        }
                        y[((n * c.o + o) * g.output[0] + oy) * g.output[1] + ox] = sum as f32;
                    }
                }
            }
        }
        Ok(vec![Tensor::f32(&shapes[0], y)?])
    },
    lower: |l: &Lowering<'_>| {
        if l.dtype(0) != Some(DType::F32) {
            return Ok(None);
        }
        let Some(weight) = l.weight(1) else { return Ok(None) };
        let bias = if l.has(2) { Some(l.shape(2)?) } else { None };
        let c = Conv2d::new(l.attrs, l.shape(0)?, weight.shape(), bias, l.output_shape(0))?;
        let bias = match (l.has(2), l.constant(2)) {
            (false, _) => None,
            (true, Some(b)) => Some(b.as_f32()?.to_vec()),
            (true, None) => return Ok(None),
        };
        let (k, og) = (c.geometry.k(), c.o / c.groups);
        let mut groups = Vec::with_capacity(c.groups);
        for g in 0..c.groups {
            match PackedMatrix::new(&weight, og, k, 0, g * og, |j, kk| (g * og + j) * k + kk)? {
                Some(p) => groups.push(p),
                None => return Ok(None),
            }
        }
        let p = c.geometry.p();
        let bytes = groups.iter().map(PackedMatrix::bytes).sum();
        Ok(Some(
            Lowered::new(Patches { c, groups, bias }, vec![0])
                .with_scratch(p.saturating_mul(k + og))
                .with_weights(bytes),
        ))
    },
};

struct Patches {
    c: Conv2d,
    groups: Vec<PackedMatrix>,
    bias: Option<Vec<f32>>,
}

impl Kernel for Patches {
    fn name(&self) -> &'static str {
        self.groups[0].label("conv-patches-f32", "conv-patches-f32w8")
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let g = &self.c.geometry;
        let (p, k, og) = (g.p(), g.k(), self.c.o / self.c.groups);
        let (patches, rows) = scratch.split_at_mut(p * k);
        let plane = g.c * g.input[0] * g.input[1];
        for n in 0..self.c.n {
            for (i, w) in self.groups.iter().enumerate() {
                let part = n * self.c.groups + i;
                conv::patches(g, &x[part * plane..][..plane], patches);
                let bias = self.bias.as_ref().map(|b| &b[i * og..][..og]);
                let problem =
                    gemm::Gemm { m: p, k, n: og, x: patches, x_stride: k, w: w.view(), bias, accumulate: false };
                gemm::gemm(&problem, rows);
                conv::rows_to_planes(p, og, rows, &mut y[part * og * p..][..og * p]);
            }
        }
    }
}

/// A convolution at concrete shapes; one spatial axis is treated as two, the first of length 1.
struct Conv2d {
    n: usize,
    o: usize,
    groups: usize,
    geometry: conv::Geometry,
}

impl Conv2d {
    fn new(attrs: &Attrs, x: &[usize], w: &[usize], bias: Option<&[usize]>, y: &[usize]) -> Result<Conv2d, OpError> {
        let s = Sliding::of(attrs, x.len(), Some(&w.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>()))?;
        if s.kernel[..] != w[2..] {
            return Err(OpError::Attribute {
                name: "kernel_shape".into(),
                why: format!("{:?} is not that of the weights, {w:?}", s.kernel),
            });
        }
        if let Some(b) = bias.filter(|b| **b != w[..1]) {
            return Err(OpError::Shape {
                what: "bias of a convolution".into(),
                expected: format!("[{}]", w[0]),
                found: format!("{b:?}"),
            });
        }
        let groups = usize::try_from(attrs.int("group", 1)?).unwrap_or(0);
        if groups == 0 || !w[0].is_multiple_of(groups) || w[1] * groups != x[1] {
            return Err(OpError::Shape {
                what: format!("weights of a convolution in {groups} groups"),
                expected: format!("[O, {}/{groups}, …]", x[1]),
                found: format!("{w:?}"),
            });
        }
        Ok(Conv2d { n: x[0], o: w[0], groups, geometry: s.geometry(w[1], &x[2..], &y[2..]) })
    }
}

/// Longest kernel, stride, dilation or padding: keeps every sum and product of them far from overflow.
const LONGEST: i64 = 1 << 24;

/// How a window slides: shared by convolution and pooling.
pub(super) struct Sliding {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    begin: Vec<usize>,
    end: Vec<usize>,
    same: Option<bool>,
    ceil: bool,
}

impl Sliding {
    /// Reads `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad`, `ceil_mode` for an input of `rank` axes; the
    /// kernel's size comes from `weight` (`[O, C/G, …]`) when the attribute is absent.
    pub(super) fn of(attrs: &Attrs, rank: usize, weight: Option<&[Dim]>) -> Result<Sliding, OpError> {
        let spatial = rank.checked_sub(2).filter(|s| (1..=2).contains(s)).ok_or_else(|| OpError::Unsupported {
            what: format!("a sliding window over an input of rank {rank} (3 and 4 are supported)"),
        })?;
        if let Some(w) = weight.filter(|w| w.len() != rank) {
            return Err(OpError::Shape {
                what: "weights of a convolution".into(),
                expected: format!("rank {rank}, as its input"),
                found: format!("rank {}", w.len()),
            });
        }
        let list = |name: &str, default: usize, n: usize| -> Result<Vec<usize>, OpError> {
            match attrs.ints(name)? {
                None => Ok(vec![default; n]),
                Some(v) if v.len() == n && v.iter().all(|d| (0..=LONGEST).contains(d)) => {
                    Ok(v.iter().map(|&d| d as usize).collect())
                }
                Some(v) => Err(OpError::Attribute { name: name.into(), why: format!("{v:?} is not {n} lengths") }),
            }
        };
        let kernel = match (attrs.ints("kernel_shape")?, weight) {
            (Some(_), _) => list("kernel_shape", 1, spatial)?,
            (None, Some(w)) => w[2..]
                .iter()
                .map(|d| d.known().ok_or_else(|| OpError::Unsupported { what: "a kernel of unknown size".into() }))
                .collect::<Result<_, _>>()?,
            (None, None) => {
                return Err(OpError::Attribute { name: "kernel_shape".into(), why: "is missing".into() });
            }
        };
        let (stride, dilation) = (list("strides", 1, spatial)?, list("dilations", 1, spatial)?);
        if stride.contains(&0) || dilation.contains(&0) || kernel.contains(&0) {
            return Err(OpError::Attribute { name: "strides".into(), why: "or dilations or kernel_shape is 0".into() });
        }
        let pads = list("pads", 0, 2 * spatial)?;
        let (mut begin, mut end) = (pads[..spatial].to_vec(), pads[spatial..].to_vec());
        let same = match attrs.str("auto_pad", "NOTSET")? {
            "NOTSET" => None,
            "VALID" => {
                begin = vec![0; spatial];
                end = vec![0; spatial];
                None
            }
            "SAME_UPPER" => Some(true),
            "SAME_LOWER" => Some(false),
            other => return Err(OpError::Attribute { name: "auto_pad".into(), why: format!("is `{other}`") }),
        };
        let ceil = attrs.int("ceil_mode", 0)? != 0;
        Ok(Sliding { kernel, stride, dilation, begin, end, same, ceil })
    }

    /// Output lengths from input lengths.
    ///
    /// # Errors
    /// [`OpError::Shape`] when a known length is shorter than the window.
    pub(super) fn output_dims(&self, input: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let lengths = self.lengths(input);
        for (i, l) in lengths.iter().enumerate() {
            if matches!(l, Dim::Val(v) if *v < 1) {
                return Err(OpError::Shape {
                    what: format!(
                        "a window of {} over spatial axis {i} is larger than its padded input",
                        self.kernel[i]
                    ),
                    expected: "room for at least one position".into(),
                    found: format!("length {}", input[i]),
                });
            }
        }
        Ok(lengths)
    }

    fn lengths(&self, input: &[Dim]) -> Vec<Dim> {
        (0..input.len())
            .map(|i| {
                let stride = self.stride[i] as i64;
                if self.same.is_some() {
                    return input[i].plus(&Dim::Val(stride - 1)).div_floor(stride);
                }
                let reach = (self.dilation[i] * (self.kernel[i] - 1) + 1) as i64;
                let span = (self.begin[i] + self.end[i]) as i64 - reach;
                let up = if self.ceil { stride - 1 } else { 0 };
                let out = input[i].plus(&Dim::Val(span + up)).div_floor(stride).plus(&Dim::Val(1));
                if !self.ceil {
                    return out;
                }
                // A window that would start in the padding behind the input is dropped (ONNX, ceil_mode).
                let starts = input[i].plus(&Dim::Val(self.begin[i] as i64 - 1)).div_floor(stride).plus(&Dim::Val(1));
                match (&out, &starts) {
                    (Dim::Val(a), Dim::Val(b)) => Dim::Val(*a.min(b)),
                    _ => Dim::Min(vec![out, starts]),
                }
            })
            .collect()
    }

    /// Height and width with the padding on both sides, at concrete lengths.
    pub(super) fn padded(&self, input: &[usize], output: &[usize]) -> [usize; 2] {
        let length = |i: usize| match self.same {
            None => self.begin[i] + input[i] + self.end[i],
            Some(_) => input[i] + self.same_total(i, input[i], output[i]),
        };
        if input.len() == 1 { [1, length(0)] } else { [length(0), length(1)] }
    }

    /// Padding of axis `i`, both sides together, where `auto_pad` decides it.
    fn same_total(&self, i: usize, input: usize, output: usize) -> usize {
        let reach = self.dilation[i] * (self.kernel[i] - 1) + 1;
        ((output.max(1) - 1) * self.stride[i] + reach).saturating_sub(input)
    }

    /// The geometry at concrete lengths.
    pub(super) fn geometry(&self, c: usize, input: &[usize], output: &[usize]) -> conv::Geometry {
        let two = |v: &[usize], fill: usize| if v.len() == 1 { [fill, v[0]] } else { [v[0], v[1]] };
        let begin: Vec<usize> = (0..input.len())
            .map(|i| match self.same {
                None => self.begin[i],
                Some(upper) => {
                    let total = self.same_total(i, input[i], output[i]);
                    if upper { total / 2 } else { total - total / 2 }
                }
            })
            .collect();
        conv::Geometry {
            c,
            input: two(input, 1),
            kernel: two(&self.kernel, 1),
            output: two(output, 1),
            stride: two(&self.stride, 1),
            dilation: two(&self.dilation, 1),
            pad: two(&begin, 0),
        }
    }
}
