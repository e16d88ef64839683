//! Pooling of regions of interest.
use super::elements;
use crate::ops::{Attrs, Fact, OpDef, OpError, ints_of, need};
use crate::tensor::Tensor;

/// Most samples of one region: a region from a file must not be able to keep the program busy for ever.
const MOST_SAMPLES: f32 = 16_777_216.0;

/// The largest value of each bin of each region; 0 for an empty bin. `rois: [R, 5]` is batch, x1, y1, x2, y2.
///
/// Source: Girshick, Fast R-CNN; ONNX Runtime, `roi_pool.cc`.
pub(super) static MAX_ROI_POOL: OpDef = OpDef::new(
    "MaxRoiPool",
    "the largest value of each bin of regions of interest",
    |attrs, inputs| {
        let (x, rois) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?);
        Ok(Some(vec![Fact::new(x.dtype, max_roi_shape(attrs, &x.shape, &rois.shape)?)]))
    },
    |attrs, inputs| {
        let (x, rois) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?);
        let shape = max_roi_shape(attrs, x.shape(), rois.shape())?;
        let scale = attrs.float("spatial_scale", 1.0)?;
        let &[n, channels, height, width] = x.shape() else { return Err(OpError::shape("X", "rank 4", x.shape())) };
        let xs = x.data().to_f64();
        let mut y = Vec::with_capacity(elements(&shape)?);
        let (bins_y, bins_x) = (shape[2], shape[3]);
        for (r, roi) in rois.data().to_f64().chunks_exact(5).enumerate() {
            let batch = batch_of(roi[0] as i64, n, r)?;
            let corner = |i: usize| (roi[i] as f32 * scale).round();
            let (left, top, right, bottom) = (corner(1), corner(2), corner(3), corner(4));
            let bin = [(bottom - top + 1.0).max(1.0) / bins_y as f32, (right - left + 1.0).max(1.0) / bins_x as f32];
            let range = |i: usize, bin: f32, first: f32, length: usize| {
                let end = |v: f32| (v + first).clamp(0.0, length as f32) as usize;
                end((i as f32 * bin).floor())..end(((i + 1) as f32 * bin).ceil())
            };
            for c in 0..channels {
                let plane = &xs[(batch * channels + c) * height * width..][..height * width];
                for by in 0..bins_y {
                    for bx in 0..bins_x {
                        let (rows, columns) = (range(by, bin[0], top, height), range(bx, bin[1], left, width));
                        let values = rows.flat_map(|y| columns.clone().map(move |x| plane[y * width + x]));
                        y.push(values.reduce(|a, v| if v > a { v } else { a }).unwrap_or(0.0));
                    }
                }
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
    },
);

fn max_roi_shape(attrs: &Attrs, x: &[usize], rois: &[usize]) -> Result<Vec<usize>, OpError> {
    let &[_, channels, _, _] = x else { return Err(OpError::shape("X", "[N, C, H, W]", x)) };
    let &[regions, 5] = rois else { return Err(OpError::shape("rois", "[R, 5]", rois)) };
    let bins = attrs.ints("pooled_shape")?.ok_or_else(|| OpError::attribute("pooled_shape", "is missing"))?;
    let &[h, w] = bins else { return Err(OpError::attribute("pooled_shape", "is not two lengths")) };
    roi_shape(regions, channels, h, w, "pooled_shape")
}

/// Samples a regular grid in each bin of each region bilinearly; the bin is their mean (`avg`), or (`max`) the largest
/// product of a grid point's value and its weight. `rois: [R, 4]` is x1, y1, x2, y2; `batch_indices: [R]`.
///
/// Source: He et al., Mask R-CNN; `onnx.reference.ops.op_roi_align`, which says what `max` means.
pub(super) static ROI_ALIGN: OpDef = OpDef::new(
    "RoiAlign",
    "bilinear samples of regions of interest, pooled in bins",
    |attrs, inputs| {
        let (x, rois) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?);
        let batches = need(inputs, 2, "batch_indices")?;
        Ok(Some(vec![Fact::new(x.dtype, roi_align_shape(attrs, &x.shape, &rois.shape, &batches.shape)?)]))
    },
    |attrs, inputs| {
        let (x, rois) = (need(inputs, 0, "X")?, need(inputs, 1, "rois")?);
        let batches = need(inputs, 2, "batch_indices")?;
        let shape = roi_align_shape(attrs, x.shape(), rois.shape(), batches.shape())?;
        let &[n, channels, height, width] = x.shape() else { return Err(OpError::shape("X", "rank 4", x.shape())) };
        let max = match attrs.str("mode", "avg")? {
            "avg" => false,
            "max" => true,
            other => return Err(OpError::attribute("mode", format!("is `{other}`"))),
        };
        let default = if attrs.opset >= 16 { "half_pixel" } else { "output_half_pixel" };
        let half_pixel = match attrs.str("coordinate_transformation_mode", default)? {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => return Err(OpError::attribute("coordinate_transformation_mode", format!("is `{other}`"))),
        };
        let scale = attrs.float("spatial_scale", 1.0)?;
        let ratio = attrs.int("sampling_ratio", 0)?;
        let (bins_y, bins_x) = (shape[2], shape[3]);
        let xs = x.data().to_f64();
        let mut y = vec![0.0; elements(&shape)?];
        let batches = ints_of(batches);
        let bins = bins_y * bins_x;
        for (r, roi) in rois.data().to_f64().chunks_exact(4).enumerate() {
            let batch = batch_of(batches[r], n, r)?;
            let corner = |i: usize| roi[i] as f32 * scale - if half_pixel { 0.5 } else { 0.0 };
            let start = [corner(1), corner(0)];
            let mut size = [corner(3) - start[0], corner(2) - start[1]];
            if !half_pixel {
                size = size.map(|s| s.max(1.0));
            }
            let bin = [size[0] / bins_y as f32, size[1] / bins_x as f32];
            let grid = bin.map(|b| if ratio > 0 { ratio as f32 } else { b.ceil().max(0.0) });
            let samples = grid[0] * grid[1] * bins as f32;
            if samples.is_nan() || samples > MOST_SAMPLES {
                return Err(OpError::shape("rois", "regions of fewer than 2²⁴ samples", roi));
            }
            let samples = grid[0] as usize * grid[1] as usize;
            for b in 0..bins {
                let at = [b / bins_x, b % bins_x];
                let mut first = true;
                for s in 0..samples {
                    let step = [s / grid[1] as usize, s % grid[1] as usize];
                    let point: [f32; 2] = std::array::from_fn(|a| {
                        start[a] + at[a] as f32 * bin[a] + (step[a] as f32 + 0.5) * bin[a] / grid[a]
                    });
                    let corners = bilinear(height, width, point);
                    for c in 0..channels {
                        let plane = &xs[(batch * channels + c) * height * width..][..height * width];
                        let out = &mut y[(r * channels + c) * bins + b];
                        let values = corners.map(|(i, w)| w * plane.get(i).copied().unwrap_or(0.0));
                        if max {
                            let largest = values.into_iter().fold(f64::NEG_INFINITY, f64::max);
                            *out = if first { largest } else { out.max(largest) };
                        } else {
                            *out += values.iter().sum::<f64>() / samples as f64;
                        }
                    }
                    first = false;
                }
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), &shape, &y)?])
    },
);

fn roi_align_shape(attrs: &Attrs, x: &[usize], rois: &[usize], batches: &[usize]) -> Result<Vec<usize>, OpError> {
    let &[_, channels, _, _] = x else { return Err(OpError::shape("X", "[N, C, H, W]", x)) };
    let &[regions, 4] = rois else { return Err(OpError::shape("rois", "[R, 4]", rois)) };
    if batches != [regions] {
        return Err(OpError::shape("batch_indices", [regions], batches));
    }
    let (h, w) = (attrs.int("output_height", 1)?, attrs.int("output_width", 1)?);
    roi_shape(regions, channels, h, w, "output_height")
}

fn roi_shape(regions: usize, channels: usize, h: i64, w: i64, attribute: &str) -> Result<Vec<usize>, OpError> {
    let length = |v: i64| {
        usize::try_from(v).ok().filter(|&v| v > 0).ok_or_else(|| OpError::attribute(attribute, format!("is {v}")))
    };
    let shape = vec![regions, channels, length(h)?, length(w)?];
    elements(&shape)?;
    Ok(shape)
}

fn batch_of(index: i64, n: usize, region: usize) -> Result<usize, OpError> {
    usize::try_from(index)
        .ok()
        .filter(|&b| b < n)
        .ok_or_else(|| OpError::shape(format!("batch index of region {region}"), format!("0..{n}"), index))
}

/// The four points around `[y, x]` and their weights; none of them weighs anything outside of `-1 ..= length`.
fn bilinear(height: usize, width: usize, [y, x]: [f32; 2]) -> [(usize, f64); 4] {
    let inside = y >= -1.0 && y <= height as f32 && x >= -1.0 && x <= width as f32;
    if !inside || height == 0 || width == 0 {
        return [(0, 0.0); 4];
    }
    let ends = |v: f32, length: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low >= length - 1 { (length - 1, length - 1, 0.0) } else { (low, low + 1, f64::from(v) - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (ends(y, height), ends(x, width));
    [
        (y0 * width + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * width + x1, (1.0 - ly) * lx),
        (y1 * width + x0, ly * (1.0 - lx)),
        (y1 * width + x1, ly * lx),
    ]
}
