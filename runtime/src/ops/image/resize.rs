//! Resizing along any axes: `Resize`, its predecessor `Upsample`, and ONNX Runtime's `CropAndResize`.
//!
//! Interpolation is separable: every axis has a map from output positions to a few input positions and their weights,
//! and a tensor is resized one axis after the other.
use super::lower;
use crate::autodiff::Backward;
use crate::ops::shape::{axes_of, elements};
use crate::ops::{Attrs, Fact, MICROSOFT, OpDef, OpError, ints_of, need, optional};
use crate::tensor::{Data, Tensor};

/// Resize, all versions.
///
/// Source: ONNX operator documentation and `onnx.reference.ops.op_resize`; coordinates are computed in `f32`, as ONNX
/// Runtime does, because a nearest neighbour depends on their last bit.
pub(super) static RESIZE: OpDef = OpDef::new(
    "Resize",
    "resizing along any axes: nearest, linear, cubic, with or without antialiasing",
    |attrs, inputs| facts(&Settings::resize(attrs)?, attrs, inputs),
    |attrs, inputs| resize(&Settings::resize(attrs)?, attrs, inputs),
)
.kernel(lower::resize)
.gpu(lower::record_resize)
.vjp(|b| {
    let settings = Settings::resize(&b.attrs())?;
    vjp(b, &settings)
});

/// Upsample, all versions: what became Resize.
pub(super) static UPSAMPLE: OpDef = OpDef::new(
    "Upsample",
    "enlarging along any axes: nearest or linear",
    |attrs, inputs| facts(&Settings::first(attrs)?, attrs, inputs),
    |attrs, inputs| resize(&Settings::first(attrs)?, attrs, inputs),
)
.kernel(lower::upsample)
.gpu(lower::record_upsample)
.vjp(|b| {
    let settings = Settings::first(&b.attrs())?;
    vjp(b, &settings)
});

/// Regions of images, each resized to one size with aligned corners. `rois: [R, 4]` is y1, x1, y2, x2 in units of the
/// image.
///
/// Source: ONNX Runtime, `crop_and_resize.cc`.
pub(super) static CROP_AND_RESIZE: OpDef = OpDef::new(
    "CropAndResize",
    "regions of images resized to one size",
    |_, inputs| {
        let (x, rois, size) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?, need(inputs, 3, "crop_size")?);
        let Some(size) = size.ints() else { return Ok(None) };
        Ok(Some(vec![Fact::new(x.dtype, crop_shape(&x.shape, &rois.shape, &size)?)]))
    },
    |attrs, inputs| {
        let (x, rois) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?);
        let (batches, size) = (need(inputs, 2, "batch_indices")?, need(inputs, 3, "crop_size")?);
        let shape = crop_shape(x.shape(), rois.shape(), &ints_of(size))?;
        if batches.shape() != [shape[0]] {
            return Err(OpError::shape("batch_indices", [shape[0]], batches.shape()));
        }
        let mode = match attrs.str("mode", "bilinear")? {
            "bilinear" => Mode::Linear,
            "nearest" => Mode::Nearest,
            other => return Err(OpError::attribute("mode", format!("is `{other}`"))),
        };
        let fill = f64::from(attrs.float("extrapolation_value", 0.0)?);
        let plane = &x.shape()[2..];
        let image = x.shape()[1] * plane[0] * plane[1];
        let (xs, batches) = (x.data().to_f64(), ints_of(batches));
        let mut y = Vec::with_capacity(elements(&shape)?);
        for (r, roi) in rois.data().to_f64().chunks_exact(4).enumerate() {
            let batch = usize::try_from(batches[r]).ok().filter(|&b| b < x.shape()[0]).ok_or_else(|| {
                OpError::shape("an element of batch_indices", format!("0..{}", x.shape()[0]), batches[r])
            })?;
            let axis = |a: usize| Axis {
                axis: a + 1,
                input: plane[a],
                output: shape[2 + a],
                scale: 1.0,
                width: shape[2 + a] as f32,
                roi: Some([roi[a] as f32, roi[2 + a] as f32]),
            };
            let settings = Settings {
                mode,
                transform: Transform::Crop,
                // ONNX Runtime rounds halves away from zero here; positions are not negative.
                nearest: NearestMode::RoundPreferCeil,
                fill,
                ..Settings::plain()
            };
            let maps = [settings.map(&axis(0)), settings.map(&axis(1))];
            let (values, _) = apply(&maps, &xs[batch * image..][..image], &x.shape()[1..], fill)?;
            y.extend(values);
        }
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
    },
)
.domain(MICROSOFT);

fn crop_shape(x: &[usize], rois: &[usize], size: &[i64]) -> Result<Vec<usize>, OpError> {
    let &[_, channels, _, _] = x else { return Err(OpError::shape("X", "[N, C, H, W]", x)) };
    let &[regions, 4] = rois else { return Err(OpError::shape("rois", "[R, 4]", rois)) };
    let &[h, w] = size else { return Err(OpError::shape("crop_size", "[height, width]", size)) };
    let length = |v: i64| {
        usize::try_from(v).ok().filter(|&v| v > 0).ok_or_else(|| OpError::shape("crop_size", "positive lengths", size))
    };
    let shape = vec![regions, channels, length(h)?, length(w)?];
    elements(&shape)?;
    Ok(shape)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transform {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    TfHalfPixelForNn,
    AlignCorners,
    Asymmetric,
    Crop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NearestMode {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
    /// Before opset 11: down when enlarging, up when reducing, as ONNX Runtime did and does.
    Simple,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Stretch,
    NotLarger,
    NotSmaller,
}

/// What the attributes say.
pub(super) struct Settings {
    pub(super) mode: Mode,
    transform: Transform,
    nearest: NearestMode,
    cubic_a: f64,
    antialias: bool,
    exclude_outside: bool,
    /// The value outside the input where positions may lie there.
    pub(super) fill: f64,
    policy: Policy,
    /// Whether the inputs are those of opset 11 and later.
    with_roi: bool,
}

impl Settings {
    fn plain() -> Settings {
        Settings {
            mode: Mode::Nearest,
            transform: Transform::Asymmetric,
            nearest: NearestMode::Simple,
            cubic_a: -0.75,
            antialias: false,
            exclude_outside: false,
            fill: 0.0,
            policy: Policy::Stretch,
            with_roi: false,
        }
    }

    /// Upsample, and Resize before opset 11.
    pub(super) fn first(attrs: &Attrs) -> Result<Settings, OpError> {
        let mode = match attrs.str("mode", "nearest")? {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" => Mode::Cubic,
            other => return Err(OpError::attribute("mode", format!("is `{other}`"))),
        };
        Ok(Settings { mode, ..Settings::plain() })
    }

    pub(super) fn resize(attrs: &Attrs) -> Result<Settings, OpError> {
        let first = Settings::first(attrs)?;
        if attrs.opset < 11 {
            return Ok(first);
        }
        let wrong = |name: &str, value: &str| OpError::attribute(name, format!("is `{value}`"));
        let antialias = attrs.flag("antialias", false)?;
        if antialias && first.mode == Mode::Nearest {
            return Err(OpError::attribute("antialias", "is set though mode is nearest"));
        }
        Ok(Settings {
            transform: match attrs.str("coordinate_transformation_mode", "half_pixel")? {
                "half_pixel" => Transform::HalfPixel,
                "half_pixel_symmetric" => Transform::HalfPixelSymmetric,
                "pytorch_half_pixel" => Transform::PytorchHalfPixel,
                "tf_half_pixel_for_nn" => Transform::TfHalfPixelForNn,
                "align_corners" => Transform::AlignCorners,
                "asymmetric" => Transform::Asymmetric,
                "tf_crop_and_resize" => Transform::Crop,
                other => return Err(wrong("coordinate_transformation_mode", other)),
            },
            nearest: match attrs.str("nearest_mode", "round_prefer_floor")? {
                "round_prefer_floor" | "" => NearestMode::RoundPreferFloor,
                "round_prefer_ceil" => NearestMode::RoundPreferCeil,
                "floor" => NearestMode::Floor,
                "ceil" => NearestMode::Ceil,
                other => return Err(wrong("nearest_mode", other)),
            },
            cubic_a: f64::from(attrs.float("cubic_coeff_a", -0.75)?),
            antialias,
            exclude_outside: attrs.flag("exclude_outside", false)?,
            fill: f64::from(attrs.float("extrapolation_value", 0.0)?),
            policy: match attrs.str("keep_aspect_ratio_policy", "stretch")? {
                "stretch" => Policy::Stretch,
                "not_larger" => Policy::NotLarger,
                "not_smaller" => Policy::NotSmaller,
                other => return Err(wrong("keep_aspect_ratio_policy", other)),
            },
            with_roi: true,
            ..first
        })
    }

    /// Where the output positions of an axis lie in the input.
    pub(super) fn map(&self, axis: &Axis) -> Map {
        let taps = if self.mode == Mode::Nearest { 1 } else { self.taps(axis.scale) };
        let mut map = Map {
            axis: axis.axis,
            input: axis.input,
            output: axis.output,
            taps,
            at: Vec::with_capacity(taps * axis.output),
            weights: Vec::with_capacity(taps * axis.output),
            outside: Vec::new(),
        };
        let last = axis.input as f64 - 1.0;
        for o in 0..axis.output {
            let x = f64::from(self.position(axis, o as f32));
            if self.transform == Transform::Crop && !(0.0..=last).contains(&x) {
                map.outside.push(o);
            }
            let clamped = |i: f64| i.clamp(0.0, last.max(0.0)) as usize;
            if self.mode == Mode::Nearest {
                map.at.push(clamped(self.rounded(x, axis.scale)));
                map.weights.push(1.0);
                continue;
            }
            let low = x.floor();
            // A position on an input element counts as at the end of the interval before it.
            let (ratio, first) = if x == low { (1.0, low - 1.0) } else { (x - low, low) };
            let first = first - (taps / 2) as f64 + 1.0;
            let weights = map.weights.len();
            for t in 0..taps {
                let i = first + t as f64;
                let distance = t as f64 - (taps / 2) as f64 + 1.0 - ratio;
                let excluded = self.exclude_outside && !(0.0..=last).contains(&i);
                map.weights.push(if excluded { 0.0 } else { self.weight(distance, axis.scale) });
                map.at.push(clamped(i));
            }
            if self.exclude_outside || self.antialias {
                let sum: f64 = map.weights[weights..].iter().sum();
                if sum != 0.0 {
                    map.weights[weights..].iter_mut().for_each(|w| *w /= sum);
                }
            }
        }
        map
    }

    /// How many input positions an output position is made of.
    fn taps(&self, scale: f32) -> usize {
        let support = if self.mode == Mode::Cubic { 2.0 } else { 1.0 };
        let scale = if self.antialias { f64::from(scale).min(1.0) } else { 1.0 };
        let first = (-support / scale).floor() + 1.0;
        (2.0 - 2.0 * first).clamp(2.0, 1e9) as usize
    }

    /// The weight of an input position that far from the output position.
    fn weight(&self, distance: f64, scale: f32) -> f64 {
        let x = (distance * if self.antialias { f64::from(scale).min(1.0) } else { 1.0 }).abs();
        let a = self.cubic_a;
        match self.mode {
            Mode::Cubic if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Mode::Cubic if x < 2.0 => ((x - 5.0) * x + 8.0) * x * a - 4.0 * a,
            Mode::Cubic => 0.0,
            _ => (1.0 - x).max(0.0),
        }
    }

    /// The position in the input of output position `x`.
    fn position(&self, axis: &Axis, x: f32) -> f32 {
        let (input, scale, width) = (axis.input as f32, axis.scale, axis.width);
        match self.transform {
            Transform::HalfPixel => (x + 0.5) / scale - 0.5,
            Transform::HalfPixelSymmetric => {
                let adjustment = axis.output as f32 / width;
                input / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
            }
            Transform::PytorchHalfPixel => {
                if axis.output > 1 {
                    (x + 0.5) / scale - 0.5
                } else {
                    0.0
                }
            }
            Transform::TfHalfPixelForNn => (x + 0.5) / scale,
            Transform::AlignCorners if width == 1.0 => 0.0,
            Transform::AlignCorners => x * (input - 1.0) / (width - 1.0),
            Transform::Asymmetric => x / scale,
            Transform::Crop => {
                let [start, end] = axis.roi.unwrap_or([0.0, 1.0]);
                if width == 1.0 {
                    0.5 * (start + end) * (input - 1.0)
                } else {
                    start * (input - 1.0) + x * (end - start) * (input - 1.0) / (width - 1.0)
                }
            }
        }
    }

    fn rounded(&self, x: f64, scale: f32) -> f64 {
        match self.nearest {
            NearestMode::RoundPreferFloor => (x - 0.5).ceil(),
            NearestMode::RoundPreferCeil => (x + 0.5).floor(),
            NearestMode::Floor => x.floor(),
            NearestMode::Ceil => x.ceil(),
            NearestMode::Simple if scale < 1.0 => x.ceil(),
            NearestMode::Simple => x.trunc(),
        }
    }
}

/// One axis to resize.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    axis: usize,
    input: usize,
    output: usize,
    scale: f32,
    /// The output length before it was made whole.
    width: f32,
    /// Start and end of the region, in units of the axis.
    roi: Option<[f32; 2]>,
}

/// Where the output positions of one axis come from.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) axis: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    /// Input positions an output position is made of.
    pub(super) taps: usize,
    /// `taps` input positions an output position.
    pub(super) at: Vec<usize>,
    /// Their weights.
    pub(super) weights: Vec<f64>,
    /// Output positions that lie outside the input.
    pub(super) outside: Vec<usize>,
}

/// What resizes a tensor of shape `x`: its axes that change, and the output shape. `scales` and `sizes` are operands or
/// attributes, empty when they are not given.
pub(super) fn axes(
    settings: &Settings,
    attrs: &Attrs,
    x: &[usize],
    roi: &[f64],
    scales: &[f64],
    sizes: &[i64],
) -> Result<(Vec<Axis>, Vec<usize>), OpError> {
    let axes: Vec<usize> = match attrs.ints("axes")? {
        Some(a) if settings.with_roi => axes_of(a, x.len())?,
        _ => (0..x.len()).collect(),
    };
    let n = axes.len();
    let mut out = x.to_vec();
    let mut all = Vec::with_capacity(n);
    let (mut factors, mut widths): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    if !sizes.is_empty() {
        if sizes.len() != n || !sizes.iter().all(|s| (0..1 << 40).contains(s)) {
            return Err(OpError::shape("sizes", format!("{n} lengths"), sizes));
        }
        for (&a, &size) in axes.iter().zip(sizes) {
            if x[a] == 0 && size != 0 {
                return Err(OpError::shape("sizes", "0 for an axis of length 0", sizes));
            }
            factors.push(if x[a] == 0 { 1.0 } else { size as f32 / x[a] as f32 });
        }
        let scale = match settings.policy {
            Policy::Stretch => None,
            Policy::NotLarger => factors.iter().copied().reduce(f32::min),
            Policy::NotSmaller => factors.iter().copied().reduce(f32::max),
        };
        for (i, &a) in axes.iter().enumerate() {
            match scale {
                Some(scale) => {
                    factors[i] = scale;
                    widths.push(scale * x[a] as f32);
                    out[a] = (widths[i] + 0.5) as usize;
                }
                None => {
                    widths.push(sizes[i] as f32);
                    out[a] = sizes[i] as usize;
                }
            }
        }
    } else if scales.len() == n {
        for (&a, &scale) in axes.iter().zip(scales) {
            let scale = scale as f32;
            if !(scale > 0.0 && scale.is_finite()) {
                return Err(OpError::shape("scales", "positive factors", scales));
            }
            let width = scale * x[a] as f32;
            factors.push(scale);
            widths.push(width);
            out[a] = width as usize;
        }
    } else {
        return Err(OpError::shape("scales", format!("{n} factors"), scales));
    }
    elements(&out)?;
    let crop = settings.transform == Transform::Crop;
    if crop && roi.len() != 2 * n {
        return Err(OpError::shape("roi", format!("{} bounds", 2 * n), roi));
    }
    for (i, &axis) in axes.iter().enumerate() {
        let roi = crop.then(|| [roi[i] as f32, roi[n + i] as f32]);
        if factors[i] == 1.0 && out[axis] == x[axis] && roi.is_none_or(|r| r == [0.0, 1.0]) {
            continue;
        }
        all.push(Axis { axis, input: x[axis], output: out[axis], scale: factors[i], width: widths[i], roi });
    }
    Ok((all, out))
}

/// `scales` as an attribute: Upsample before opset 9.
pub(super) fn scales_attribute(attrs: &Attrs) -> Result<Vec<f64>, OpError> {
    if let Some(v) = attrs.floats("scales")? {
        return Ok(v.iter().map(|&s| f64::from(s)).collect());
    }
    if attrs.has("height_scale") || attrs.has("width_scale") {
        let (h, w) = (attrs.float("height_scale", 1.0)?, attrs.float("width_scale", 1.0)?);
        return Ok(vec![1.0, 1.0, f64::from(h), f64::from(w)]);
    }
    Ok(Vec::new())
}

/// Positions of the operands `roi`, `scales` and `sizes`.
pub(super) fn operands(settings: &Settings) -> [usize; 3] {
    if settings.with_roi { [1, 2, 3] } else { [usize::MAX, 1, usize::MAX] }
}

fn facts(settings: &Settings, attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "X")?;
    let [_, scales, sizes] = operands(settings);
    let mut known = [Vec::new(), scales_attribute(attrs)?];
    for (i, known) in [sizes, scales].into_iter().zip(&mut known) {
        if let Some(f) = optional(inputs, i) {
            match &f.value {
                Some(v) => *known = v.data().to_f64(),
                // An empty list is no list.
                None if f.shape == [0] => {}
                None => return Ok(None),
            }
        }
    }
    let [sizes, scales] = known;
    let sizes: Vec<i64> = sizes.into_iter().map(|v| v as i64).collect();
    // The region moves what is read, not how much is made.
    let any = vec![0.0; 2 * attrs.ints("axes")?.map_or(x.shape.len(), <[i64]>::len)];
    let (_, out) = axes(settings, attrs, &x.shape, &any, &scales, &sizes)?;
    Ok(Some(vec![Fact::new(x.dtype, out)]))
}

fn resize(settings: &Settings, attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    let [roi, scales, sizes] = operands(settings);
    let floats = |i: usize| optional(inputs, i).map(|t| t.data().to_f64());
    let scales = match floats(scales) {
        Some(v) => v,
        None => scales_attribute(attrs)?,
    };
    let sizes = optional(inputs, sizes).map(ints_of).unwrap_or_default();
    let (axes, out) = axes(settings, attrs, x.shape(), &floats(roi).unwrap_or_default(), &scales, &sizes)?;
    let maps: Vec<Map> = axes.iter().map(|a| settings.map(a)).collect();
    if settings.mode == Mode::Nearest {
        let from = nearest(&maps, x.shape(), &out)?;
        let fill = Data::from_f64(x.dtype(), &[settings.fill]);
        return Ok(vec![Tensor::new(&out, x.data().pick_or(&from, &fill))?]);
    }
    let (mut y, shape) = apply(&maps, &x.data().to_f64(), x.shape(), settings.fill)?;
    if !x.dtype().is_float() {
        y.iter_mut().for_each(|v| *v = v.round_ties_even());
    }
    Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
}

/// Resizing is a product with a small matrix along each axis; its gradient that with the transposed one.
fn vjp(b: &mut Backward<'_>, settings: &Settings) -> Result<(), OpError> {
    let (mut dy, shape, attrs) = (b.dy()?, b.x_shape(0)?, b.attrs());
    let value = |b: &Backward<'_>, i: usize| -> Result<Option<Vec<f64>>, OpError> {
        let Some(v) = b.optional(i) else { return Ok(None) };
        let fact = b.fact(v);
        let empty = fact.shape == [0];
        match &fact.value {
            Some(t) => Ok(Some(t.data().to_f64())),
            None if empty => Ok(Some(Vec::new())),
            None => Err(OpError::unsupported("a gradient through resizing by operands that depend on data")),
        }
    };
    let [roi, scales, sizes] = operands(settings);
    let roi = value(b, roi)?.unwrap_or_default();
    let scales = match value(b, scales)? {
        Some(v) => v,
        None => scales_attribute(&attrs)?,
    };
    let sizes: Vec<i64> = value(b, sizes)?.unwrap_or_default().into_iter().map(|v| v as i64).collect();
    let (axes, _) = axes(settings, &attrs, &shape, &roi, &scales, &sizes)?;
    for axis in axes.iter().rev() {
        let Map { axis, input, output, taps, at, weights, outside } = settings.map(axis);
        let mut matrix = vec![0.0; elements(&[output, input])?];
        for o in (0..output).filter(|o| !outside.contains(o)) {
            (o * taps..(o + 1) * taps).for_each(|t| matrix[o * input + at[t]] += weights[t]);
        }
        let matrix = Tensor::from_f64(b.dtype(dy), &[output, input], &matrix)?;
        let matrix = b.constant(matrix);
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.swap(axis, shape.len() - 1);
        let turned = b.transpose(dy, &order)?;
        let made = b.binary("MatMul", turned, matrix)?;
        dy = b.transpose(made, &order)?;
    }
    b.give(0, dy);
    Ok(())
}

/// Where every element of the output comes from; `None` outside the input.
pub(super) fn nearest(maps: &[Map], x: &[usize], out: &[usize]) -> Result<Vec<Option<usize>>, OpError> {
    let mut from = vec![Some(0)];
    from.reserve(elements(out)?);
    for (a, (&input, &output)) in x.iter().zip(out).enumerate() {
        let map = maps.iter().find(|m| m.axis == a);
        let mut at: Vec<Option<usize>> =
            map.map_or_else(|| (0..output).map(Some).collect(), |m| m.at.iter().copied().map(Some).collect());
        map.iter().flat_map(|m| &m.outside).for_each(|&o| at[o] = None);
        let each = |before: Option<usize>| at.iter().map(move |&i| Some(before? * input + i?));
        from = from.iter().flat_map(|&before| each(before)).collect();
    }
    Ok(from)
}

/// Resizes `x` of `shape` along each axis in turn; the values and their shape.
fn apply(maps: &[Map], x: &[f64], shape: &[usize], fill: f64) -> Result<(Vec<f64>, Vec<usize>), OpError> {
    let (mut values, mut shape) = (x.to_vec(), shape.to_vec());
    for map in maps {
        let inner: usize = shape[map.axis + 1..].iter().product();
        let outer: usize = shape[..map.axis].iter().product();
        shape[map.axis] = map.output;
        let mut next = vec![0.0; elements(&shape)?];
        for o in 0..outer {
            let x = &values[o * map.input * inner..][..map.input * inner];
            for i in 0..map.output {
                let y = &mut next[(o * map.output + i) * inner..][..inner];
                for t in i * map.taps..(i + 1) * map.taps {
                    let (row, w) = (&x[map.at[t] * inner..][..inner], map.weights[t]);
                    y.iter_mut().zip(row).for_each(|(y, x)| *y += w * x);
                }
            }
            for &i in &map.outside {
                next[(o * map.output + i) * inner..][..inner].fill(fill);
            }
        }
        values = next;
    }
    Ok((values, shape))
}
