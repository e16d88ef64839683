//! Convolution in two dimensions as patches times weights, `NCHW`.
//!
//! Dimension letters: `C` channels in of one group, `H W` input, `KH KW` kernel, `OH OW` output, `P = OH·OW`.

/// The geometry of one group of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Channels in.
    pub c: usize,
    /// Input height and width.
    pub input: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Output height and width.
    pub output: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilation: [usize; 2],
    /// Zeros before the first row and column.
    pub pad: [usize; 2],
}

impl Geometry {
    /// Reduction length `C·KH·KW`.
    pub fn k(&self) -> usize {
        self.c * self.kernel[0] * self.kernel[1]
    }

    /// Output positions.
    pub fn p(&self) -> usize {
        self.output[0] * self.output[1]
    }
}

/// Lays out patches: `patches: [P, C·KH·KW]` from `x: [C, H, W]`; zero outside the image.
///
/// # Panics
/// When a slice is shorter than the geometry says.
pub fn patches(g: &Geometry, x: &[f32], patches: &mut [f32]) {
    let [h, w] = g.input;
    let k = g.k();
    for oy in 0..g.output[0] {
        for ox in 0..g.output[1] {
            let row = &mut patches[(oy * g.output[1] + ox) * k..][..k];
            let mut at = 0;
            for c in 0..g.c {
                for ky in 0..g.kernel[0] {
                    let y = (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.pad[0]);
                    for kx in 0..g.kernel[1] {
                        let xx = (ox * g.stride[1] + kx * g.dilation[1]).wrapping_sub(g.pad[1]);
                        row[at] = if y < h && xx < w { x[(c * h + y) * w + xx] } else { 0.0 };
                        at += 1;
                    }
                }
            }
        }
    }
}

/// `out[j][p] = rows[p][j]`: from one row a position to one plane a channel.
///
/// # Panics
/// When a slice is shorter than `p · n`.
pub fn rows_to_planes(p: usize, n: usize, rows: &[f32], out: &mut [f32]) {
    for j in 0..n {
        for (i, o) in out[j * p..][..p].iter_mut().enumerate() {
            *o = rows[i * n + j];
        }
    }
}
