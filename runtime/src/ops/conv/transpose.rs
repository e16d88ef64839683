//! Operators that add windows into an image: transposed convolution and `Col2Im`.
use super::geometry::{AutoPad, Geometry, Steps, lengths_of, pads, reach};
use super::{groups, lower};
use crate::ops::shape::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, ints_of, need, optional};
use crate::tensor::Tensor;

/// Transposed convolution: the gradient of a convolution with respect to its input.
pub(super) static CONV_TRANSPOSE: OpDef = OpDef::new(
    "ConvTranspose",
    "transposed convolution over any number of spatial axes, grouped, strided, dilated",
    |attrs, inputs| {
        let (x, w) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?);
        let t = Transposed::of(attrs, &x.shape, &w.shape, optional(inputs, 2).map(|b| &b.shape[..]))?;
        Ok(Some(vec![Fact::new(x.dtype, t.output_shape())]))
    },
    |attrs, inputs| {
        let (x, w, b) = (need(inputs, 0, "X")?, need(inputs, 1, "W")?, optional(inputs, 2));
        let t = Transposed::of(attrs, x.shape(), w.shape(), b.map(Tensor::shape))?;
        let (xs, ws) = (x.data().to_f64(), w.data().to_f64());
        let image = t.geometry.input_len();
        let (pixels, taps_len) = (t.geometry.output_len(), t.geometry.kernel_len());
        let mut y = vec![0.0; elements(&t.output_shape())?];
        if let Some(b) = b {
            for (i, bias) in b.data().to_f64().into_iter().cycle().take(t.n * t.o * t.groups).enumerate() {
                y[i * image..][..image].fill(bias);
            }
        }
        let mut p = 0;
        t.geometry.for_each_window(|_, taps| {
            for n in 0..t.n {
                for c in 0..t.c * t.groups {
                    let x = xs[(n * t.c * t.groups + c) * pixels + p];
                    for o in 0..t.o {
                        let w = &ws[(c * t.o + o) * taps_len..][..taps_len];
                        let plane = (n * t.groups + c / t.c) * t.o + o;
                        let y = &mut y[plane * image..][..image];
                        for &(i, k) in taps {
                            y[i] += x * w[k];
                        }
                    }
                }
            }
            p += 1;
        });
        Ok(vec![Tensor::from_f64(x.dtype(), &t.output_shape(), &y)?])
    },
)
.kernel(lower::conv_transpose)
.gpu(super::planes::transposed)
.vjp(super::backward::conv_transpose);

/// A transposed convolution at concrete shapes.
pub(super) struct Transposed {
    pub(super) n: usize,
    /// Channels in of one group.
    pub(super) c: usize,
    /// Channels out of one group.
    pub(super) o: usize,
    pub(super) groups: usize,
    /// The window of the convolution it transposes: its `input` is this operator's output.
    pub(super) geometry: Geometry,
}

impl Transposed {
    /// Checks `x: [N, C, …]`, `w: [C, O/G, …]`, `bias: [O]` against each other and the attributes.
    pub(super) fn of(attrs: &Attrs, x: &[usize], w: &[usize], bias: Option<&[usize]>) -> Result<Transposed, OpError> {
        if x.len() < 3 {
            return Err(OpError::shape("X", "[N, C, …] with a spatial axis", x));
        }
        let groups = groups(attrs)?;
        if w.len() != x.len() || w[0] != x[1] || !x[1].is_multiple_of(groups) {
            return Err(OpError::shape("W", format!("[{}, O/{groups}, …] of rank {}", x[1], x.len()), w));
        }
        let o = w[1];
        let all = o.checked_mul(groups).ok_or_else(|| OpError::attribute("group", "is too large"))?;
        if let Some(b) = bias.filter(|b| **b != [all]) {
            return Err(OpError::shape("B", [all], b));
        }
        let axes = x.len() - 2;
        let Steps { kernel, stride, dilation } = Steps::of(attrs, axes, Some(&w[2..]))?;
        let (mut begin, mut end) = pads(attrs, axes)?;
        let extra = match attrs.ints("output_padding")? {
            None => vec![0; axes],
            Some(v) if v.len() >= axes && v.iter().all(|&d| (0..1 << 24).contains(&d)) => v[..axes].to_vec(),
            Some(v) => return Err(OpError::attribute("output_padding", format!("{v:?} is not {axes} lengths"))),
        };
        // Some exporters list batch and channels too.
        let asked = match attrs.ints("output_shape")? {
            None | Some([]) => None,
            Some(v) if v.len() == axes => Some(v),
            Some(v) if v.len() == axes + 2 => Some(&v[2..]),
            Some(v) => return Err(OpError::attribute("output_shape", format!("{v:?} is not {axes} lengths"))),
        };
        let auto = AutoPad::of(attrs)?;
        let mut image = Vec::with_capacity(axes);
        for i in 0..axes {
            let (length, step) = (x[2 + i] as i64, stride[i] as i64);
            let full = (length - 1) * step + extra[i] + reach(kernel[i], dilation[i]);
            let same = matches!(auto, AutoPad::SameUpper | AutoPad::SameLower);
            let out = match asked {
                Some(v) => Some(v[i]),
                None if same => Some(length * step),
                None => None,
            };
            if let Some(out) = out {
                if !(0..1 << 40).contains(&out) {
                    return Err(OpError::attribute("output_shape", format!("has a length of {out}")));
                }
                (begin[i], end[i]) = auto.split((full - out).max(0));
            } else if auto == AutoPad::Valid {
                (begin[i], end[i]) = (0, 0);
            }
            let out = out.unwrap_or(full - begin[i] - end[i]);
            let out = if length == 0 { out.max(0) } else { out };
            image.push(usize::try_from(out).map_err(|_| OpError::shape("X", "room for the window", x))?);
        }
        let geometry = Geometry { input: image, kernel, stride, dilation, begin, end, output: x[2..].to_vec() };
        let t = Transposed { n: x[0], c: x[1] / groups, o, groups, geometry };
        elements(&t.output_shape())?;
        Ok(t)
    }

    /// `[N, O, …]`.
    pub(super) fn output_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.n, self.o * self.groups];
        shape.extend(&self.geometry.input);
        shape
    }
}

/// `[N, C · block, L]` blocks added into images `[N, C, …image_shape]`, the inverse of cutting an image into blocks.
pub(super) static COL2IM: OpDef = OpDef::new(
    "Col2Im",
    "blocks added into an image where they lie",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let (image, block) = (need(inputs, 1, "image_shape")?, need(inputs, 2, "block_shape")?);
        let (Some(image), Some(block)) = (image.ints(), block.ints()) else { return Ok(None) };
        let b = Blocks::of(attrs, &x.shape, &image, &block)?;
        Ok(Some(vec![Fact::new(x.dtype, b.output_shape())]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let (image, block) = (need(inputs, 1, "image_shape")?, need(inputs, 2, "block_shape")?);
        let b = Blocks::of(attrs, x.shape(), &ints_of(image), &ints_of(block))?;
        let shape = b.output_shape();
        Ok(vec![if x.dtype().is_float() {
            let y = b.add(&x.data().to_f64(), 0.0, |y, x| *y += x)?;
            Tensor::from_f64(x.dtype(), &shape, &y)?
        } else {
            let y = b.add(&x.data().to_i128(), 0, |y, x| *y += x)?;
            Tensor::from_i128(x.dtype(), &shape, &y)?
        }])
    },
);

struct Blocks {
    n: usize,
    c: usize,
    geometry: Geometry,
}

impl Blocks {
    fn of(attrs: &Attrs, x: &[usize], image: &[i64], block: &[i64]) -> Result<Blocks, OpError> {
        let &[n, rows, columns] = x else { return Err(OpError::shape("input", "[N, C · block, L]", x)) };
        let image = lengths_of("image_shape", image, image.len())?;
        let kernel = lengths_of("block_shape", block, image.len())?;
        let geometry = Geometry::of(attrs, &image, Some(&kernel))?;
        let block = geometry.kernel_len();
        if !rows.is_multiple_of(block) || geometry.output_len() != columns {
            let expected = format!("[N, C · {block}, {}]", geometry.output_len());
            return Err(OpError::shape("input", expected, x));
        }
        let b = Blocks { n, c: rows / block, geometry };
        elements(&b.output_shape())?;
        Ok(b)
    }

    fn output_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.n, self.c];
        shape.extend(&self.geometry.input);
        shape
    }

    fn add<T: Copy>(&self, x: &[T], zero: T, add: impl Fn(&mut T, T)) -> Result<Vec<T>, OpError> {
        let g = &self.geometry;
        let (image, block, columns) = (g.input_len(), g.kernel_len(), g.output_len());
        let mut y = vec![zero; elements(&self.output_shape())?];
        let mut p = 0;
        g.for_each_window(|_, taps| {
            for plane in 0..self.n * self.c {
                for &(i, k) in taps {
                    add(&mut y[plane * image + i], x[(plane * block + k) * columns + p]);
                }
            }
            p += 1;
        });
        Ok(y)
    }
}
