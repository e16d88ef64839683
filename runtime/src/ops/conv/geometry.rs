//! How a window slides over spatial axes: shared by convolutions, pooling and their transposes.
use hone_kernels::conv::Window;

use crate::ops::shape::elements;
use crate::ops::{Attrs, OpError};

/// Longest kernel, stride, dilation or padding: keeps every sum and product of them far from overflow.
const LONGEST: i64 = 1 << 24;

/// A window sliding over any number of spatial axes, with `auto_pad` resolved and output lengths known.
///
/// Output position `o` of an axis reads input position `o · stride + k · dilation - begin` for each kernel position
/// `k`, where that lies within the input. Every vector has one entry a spatial axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Geometry {
    /// Input lengths.
    pub(in crate::ops) input: Vec<usize>,
    /// Kernel lengths, without dilation.
    pub(in crate::ops) kernel: Vec<usize>,
    /// Distance between windows.
    pub(in crate::ops) stride: Vec<usize>,
    /// Distance between the positions of a window.
    pub(in crate::ops) dilation: Vec<usize>,
    /// Padding before the input; negative padding crops it.
    pub(in crate::ops) begin: Vec<i64>,
    /// Padding after the input; negative padding crops it.
    pub(in crate::ops) end: Vec<i64>,
    /// Number of windows.
    pub(in crate::ops) output: Vec<usize>,
}

impl Geometry {
    /// Reads `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode` for an input whose spatial
    /// lengths are `input`. The kernel's lengths are those of `weight` (spatial axes only), which the attribute must
    /// repeat if it is given; without a weight the attribute must be given.
    ///
    /// # Errors
    /// [`OpError::Attribute`] naming the attribute, [`OpError::Shape`] when no window fits.
    pub(in crate::ops) fn of(attrs: &Attrs, input: &[usize], weight: Option<&[usize]>) -> Result<Geometry, OpError> {
        let Steps { kernel, stride, dilation } = Steps::of(attrs, input.len(), weight)?;
        let ceil = attrs.flag("ceil_mode", false)?;
        let (mut begin, mut end) = pads(attrs, input.len())?;
        let mut output = Vec::with_capacity(input.len());
        let auto = AutoPad::of(attrs)?;
        for i in 0..input.len() {
            let (length, step) = (input[i] as i64, stride[i] as i64);
            let reach = reach(kernel[i], dilation[i]);
            match auto {
                AutoPad::NotSet => {}
                AutoPad::Valid => (begin[i], end[i]) = (0, 0),
                AutoPad::SameUpper | AutoPad::SameLower => {
                    let windows = (length + step - 1).div_euclid(step);
                    let total = ((windows - 1) * step + reach - length).max(0);
                    (begin[i], end[i]) = auto.split(total);
                }
            }
            let span = length + begin[i] + end[i] - reach;
            let mut windows = match (ceil, weight) {
                (true, _) => -(-span).div_euclid(step) + 1,
                (false, Some(_)) => span.div_euclid(step) + 1,
                // A pool whose window is larger than its input by less than a step has one window, cut at the edge: ONNX
                // Runtime divides towards zero, and models rely on it (PP-OCR's classifier on low images).
                (false, None) => span / step + 1,
            };
            // A window that would start in the padding behind the input is left out.
            if ceil && (windows - 1) * step >= length + begin[i] {
                windows -= 1;
            }
            if length == 0 {
                windows = windows.max(0);
            }
            output.push(usize::try_from(windows).map_err(|_| {
                OpError::shape(format!("spatial axis {i} under a window of {reach}"), "room for the window", input[i])
            })?);
        }
        elements(&output)?;
        Ok(Geometry { input: input.to_vec(), kernel, stride, dilation, begin, end, output })
    }

    /// Number of spatial axes.
    pub(in crate::ops) fn axes(&self) -> usize {
        self.input.len()
    }

    /// Positions of the input.
    pub(in crate::ops) fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    /// Positions of the kernel.
    pub(in crate::ops) fn kernel_len(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Number of windows.
    pub(in crate::ops) fn output_len(&self) -> usize {
        self.output.iter().product()
    }

    /// The same as kernels see it; `None` over more than three axes.
    pub(in crate::ops) fn window(&self) -> Option<Window> {
        let missing = 3usize.checked_sub(self.axes())?;
        let three = |v: &[usize]| std::array::from_fn(|a| if a < missing { 1 } else { v[a - missing] });
        Some(Window {
            input: three(&self.input),
            kernel: three(&self.kernel),
            output: three(&self.output),
            stride: three(&self.stride),
            dilation: three(&self.dilation),
            pad: std::array::from_fn(|a| if a < missing { 0 } else { self.begin[a - missing] as isize }),
        })
    }

    /// The kernel positions of window `o` of `axis` that lie within `0..limit` when `shift` is added to the position
    /// in the input: a half-open range.
    fn inside(&self, axis: usize, o: usize, shift: i64, limit: i64) -> (usize, usize) {
        let start = o as i64 * self.stride[axis] as i64 - self.begin[axis] + shift;
        let step = self.dilation[axis] as i64;
        let kernel = self.kernel[axis] as i64;
        let first = (-start).max(0).div_euclid(step) + i64::from((-start).max(0).rem_euclid(step) != 0);
        let past = (limit - start).max(0);
        let last = past.div_euclid(step) + i64::from(past.rem_euclid(step) != 0);
        let last = last.clamp(0, kernel);
        (first.clamp(0, last) as usize, last as usize)
    }

    /// How many kernel positions of window `o` of `axis` lie within the input and its padding.
    pub(in crate::ops) fn padded_taps(&self, axis: usize, o: usize) -> usize {
        let padded = self.input[axis] as i64 + self.begin[axis] + self.end[axis];
        let (first, last) = self.inside(axis, o, self.begin[axis], padded);
        last - first
    }

    /// How many kernel positions of window `o` of `axis` lie within the input.
    pub(in crate::ops) fn input_taps(&self, axis: usize, o: usize) -> usize {
        let (first, last) = self.inside(axis, o, 0, self.input[axis] as i64);
        last - first
    }

    /// Calls `f` for every window in row-major order, with the window's index along each axis and those of its
    /// positions that lie within the input: pairs of row-major offsets into the input and into the kernel.
    pub(in crate::ops) fn for_each_window(&self, mut f: impl FnMut(&[usize], &[(usize, usize)])) {
        let axes = self.axes();
        let mut at = vec![0usize; axes];
        let (mut taps, mut wider) = (Vec::new(), Vec::new());
        for _ in 0..self.output_len() {
            taps.clear();
            taps.push((0usize, 0usize));
            for a in 0..axes {
                wider.clear();
                let (first, last) = self.inside(a, at[a], 0, self.input[a] as i64);
                let start = at[a] as i64 * self.stride[a] as i64 - self.begin[a];
                for &(x, k) in &taps {
                    for tap in first..last {
                        let i = (start + tap as i64 * self.dilation[a] as i64) as usize;
                        wider.push((x * self.input[a] + i, k * self.kernel[a] + tap));
                    }
                }
                std::mem::swap(&mut taps, &mut wider);
            }
            f(&at, &taps);
            for a in (0..axes).rev() {
                at[a] += 1;
                if at[a] < self.output[a] {
                    break;
                }
                at[a] = 0;
            }
        }
    }
}

/// How a kernel and its windows are laid out, without padding.
pub(super) struct Steps {
    pub(super) kernel: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) dilation: Vec<usize>,
}

impl Steps {
    /// Reads `kernel_shape`, `strides` and `dilations` for `axes` spatial axes, as [`Geometry::of`] describes.
    pub(super) fn of(attrs: &Attrs, axes: usize, weight: Option<&[usize]>) -> Result<Steps, OpError> {
        let kernel = match (attrs.ints("kernel_shape")?, weight) {
            (Some(_), Some(w)) => {
                let kernel = lengths(attrs, "kernel_shape", axes)?;
                if kernel != w {
                    return Err(OpError::attribute("kernel_shape", format!("{kernel:?} is not that of W, {w:?}")));
                }
                kernel
            }
            (Some(_), None) => lengths(attrs, "kernel_shape", axes)?,
            (None, Some(w)) if w.len() == axes && w.iter().all(|&d| 0 < d && d as i64 <= LONGEST) => w.to_vec(),
            (None, Some(w)) => return Err(OpError::shape("W", format!("{axes} spatial axes, none of them 0"), w)),
            (None, None) => return Err(OpError::attribute("kernel_shape", "is missing")),
        };
        elements(&kernel)?;
        Ok(Steps { kernel, stride: lengths(attrs, "strides", axes)?, dilation: lengths(attrs, "dilations", axes)? })
    }
}

/// How far a kernel reaches: `dilation · (kernel - 1) + 1`.
pub(super) fn reach(kernel: usize, dilation: usize) -> i64 {
    dilation as i64 * (kernel as i64 - 1) + 1
}

/// One positive length for each of `axes` axes; 1 when the attribute is absent.
fn lengths(attrs: &Attrs, name: &str, axes: usize) -> Result<Vec<usize>, OpError> {
    match attrs.ints(name)? {
        None => Ok(vec![1; axes]),
        Some(v) => lengths_of(name, v, axes),
    }
}

/// The same of a list that is not an attribute.
pub(super) fn lengths_of(name: &str, v: &[i64], axes: usize) -> Result<Vec<usize>, OpError> {
    if v.len() != axes || !v.iter().all(|d| (1..=LONGEST).contains(d)) {
        return Err(OpError::attribute(name, format!("{v:?} is not {axes} positive lengths")));
    }
    Ok(v.iter().map(|&d| d as usize).collect())
}

/// `pads`: before and after each of `axes` axes; 0 when the attribute is absent.
pub(super) fn pads(attrs: &Attrs, axes: usize) -> Result<(Vec<i64>, Vec<i64>), OpError> {
    match attrs.ints("pads")? {
        None => Ok((vec![0; axes], vec![0; axes])),
        Some(v) if v.len() == 2 * axes && v.iter().all(|d| (-LONGEST..=LONGEST).contains(d)) => {
            Ok((v[..axes].to_vec(), v[axes..].to_vec()))
        }
        Some(v) => Err(OpError::attribute("pads", format!("{v:?} is not {} lengths", 2 * axes))),
    }
}

/// The attribute `auto_pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AutoPad {
    NotSet,
    Valid,
    SameUpper,
    SameLower,
}

impl AutoPad {
    pub(super) fn of(attrs: &Attrs) -> Result<AutoPad, OpError> {
        match attrs.str("auto_pad", "NOTSET")? {
            "NOTSET" | "" => Ok(AutoPad::NotSet),
            "VALID" => Ok(AutoPad::Valid),
            "SAME_UPPER" => Ok(AutoPad::SameUpper),
            "SAME_LOWER" => Ok(AutoPad::SameLower),
            other => Err(OpError::attribute("auto_pad", format!("is `{other}`"))),
        }
    }

    /// A total padding in two: the odd one goes to the end for `SAME_UPPER`, to the beginning otherwise.
    pub(super) fn split(self, total: i64) -> (i64, i64) {
        let half = total / 2;
        if self == AutoPad::SameUpper { (half, total - half) } else { (total - half, half) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Attr;

    fn windows(g: &Geometry) -> Vec<Vec<(usize, usize)>> {
        let mut all = Vec::new();
        g.for_each_window(|_, taps| all.push(taps.to_vec()));
        all
    }

    #[test]
    fn a_window_keeps_the_positions_that_lie_within_the_input() {
        let attrs = Attrs::of([
            ("kernel_shape", Attr::Ints(vec![3])),
            ("pads", Attr::Ints(vec![1, 2])),
            ("strides", Attr::Ints(vec![2])),
            ("dilations", Attr::Ints(vec![2])),
        ]);
        let g = Geometry::of(&attrs, &[5], None).unwrap();
        assert_eq!(g.output, [2]);
        assert_eq!(windows(&g), [vec![(1, 1), (3, 2)], vec![(1, 0), (3, 1)]]);
        assert_eq!((g.padded_taps(0, 0), g.padded_taps(0, 1)), (3, 3));
    }

    #[test]
    fn same_padding_gives_one_window_per_stride_and_the_odd_element_to_the_named_end() {
        for (name, pads) in [("SAME_UPPER", (1, 2)), ("SAME_LOWER", (2, 1))] {
            let attrs = Attrs::of([("kernel_shape", Attr::Ints(vec![4])), ("auto_pad", Attr::Str(name.into()))]);
            let g = Geometry::of(&attrs, &[7], None).unwrap();
            assert_eq!((g.output[0], g.begin[0], g.end[0]), (7, pads.0, pads.1));
        }
    }

    #[test]
    fn a_last_window_that_would_start_behind_the_input_is_left_out() {
        let attrs = Attrs::of([
            ("kernel_shape", Attr::Ints(vec![1])),
            ("strides", Attr::Ints(vec![2])),
            ("ceil_mode", Attr::Int(1)),
        ]);
        assert_eq!(Geometry::of(&attrs, &[2], None).unwrap().output, [1]);
        assert_eq!(Geometry::of(&attrs, &[3], None).unwrap().output, [2]);
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let attrs = Attrs::of([("kernel_shape", Attr::Ints(vec![1 << 24, 1 << 24]))]);
        assert!(Geometry::of(&attrs, &[4, 4], None).is_err());
        let attrs = Attrs::of([("kernel_shape", Attr::Ints(vec![i64::MAX]))]);
        assert!(Geometry::of(&attrs, &[4], None).is_err());
        let attrs = Attrs::of([("kernel_shape", Attr::Ints(vec![9]))]);
        assert!(Geometry::of(&attrs, &[4], None).is_err());
    }
}
