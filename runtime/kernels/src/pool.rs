//! Pooling over `NCHW` planes.

use crate::conv::Geometry;

/// Largest value under the window of one plane; positions outside do not take part. `g.c` is ignored.
///
/// # Panics
/// When a slice is shorter than the geometry says.
pub fn max_plane(g: &Geometry, x: &[f32], y: &mut [f32]) {
    window(
        g,
        |_, _, values| values.fold(f32::NEG_INFINITY, |a, i| if x[i] > a || x[i].is_nan() { x[i] } else { a }),
        y,
    );
}

/// Mean under the window of one plane. Positions outside the plane do not count; with `padded`, the height and width of
/// the plane with its padding, those within it count as zeros. A window that `ceil_mode` lets reach beyond even that
/// is as much smaller.
///
/// # Panics
/// When a slice is shorter than the geometry says.
pub fn average_plane(g: &Geometry, padded: Option<[usize; 2]>, x: &[f32], y: &mut [f32]) {
    window(
        g,
        |oy, ox, values| {
            let (sum, inside) = values.fold((0f32, 0usize), |(s, n), i| (s + x[i], n + 1));
            let count = padded.map_or(inside, |padded| {
                let taps = |axis: usize, o: usize| {
                    (0..g.kernel[axis]).filter(|k| o * g.stride[axis] + k * g.dilation[axis] < padded[axis]).count()
                };
                taps(0, oy) * taps(1, ox)
            });
            sum / count.max(1) as f32
        },
        y,
    );
}

fn window(g: &Geometry, f: impl Fn(usize, usize, &mut dyn Iterator<Item = usize>) -> f32, y: &mut [f32]) {
    let [h, w] = g.input;
    for oy in 0..g.output[0] {
        for ox in 0..g.output[1] {
            let mut inside = (0..g.kernel[0]).flat_map(|ky| {
                let yy = (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.pad[0]);
                (0..g.kernel[1]).filter_map(move |kx| {
                    let xx = (ox * g.stride[1] + kx * g.dilation[1]).wrapping_sub(g.pad[1]);
                    (yy < h && xx < w).then(|| yy * w + xx)
                })
            });
            y[oy * g.output[1] + ox] = f(oy, ox, &mut inside);
        }
    }
}
