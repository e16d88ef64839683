//! How a window slides over any number of spatial axes: what quantised convolutions and pools need of it.
use crate::ops::shape::elements;
use crate::ops::{Attrs, OpError};

/// Longest kernel, stride, dilation or padding: keeps every sum and product of them far from overflow.
const LONGEST: i64 = 1 << 24;

/// A window at concrete shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) input: Vec<usize>,
    pub(super) kernel: Vec<usize>,
    pub(super) output: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) dilation: Vec<usize>,
    pub(super) begin: Vec<usize>,
}

impl Window {
    /// Reads `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad`, `ceil_mode`. `kernel` is that of the weights of a
    /// convolution.
    ///
    /// # Errors
    /// [`OpError`] when the attributes do not fit the input, or no position is left.
    pub(super) fn of(attrs: &Attrs, input: &[usize], kernel: Option<&[usize]>) -> Result<Window, OpError> {
        let rank = input.len();
        let list = |name: &str, default: usize, n: usize, least: i64| -> Result<Vec<usize>, OpError> {
            match attrs.ints(name)? {
                None => Ok(vec![default; n]),
                Some(v) if v.len() == n && v.iter().all(|d| (least..=LONGEST).contains(d)) => {
                    Ok(v.iter().map(|&d| d as usize).collect())
                }
                Some(v) => Err(OpError::attribute(name, format!("{v:?} is not {n} lengths"))),
            }
        };
        let kernel = match (attrs.has("kernel_shape"), kernel) {
            (true, known) => {
                let asked = list("kernel_shape", 1, rank, 1)?;
                if let Some(k) = known.filter(|k| **k != asked) {
                    return Err(OpError::attribute(
                        "kernel_shape",
                        format!("{asked:?} is not that of the weights, {k:?}"),
                    ));
                }
                asked
            }
            (false, Some(k)) => k.to_vec(),
            (false, None) => return Err(OpError::attribute("kernel_shape", "is missing")),
        };
        if kernel.len() != rank || kernel.iter().any(|&k| k == 0 || k > LONGEST as usize) {
            return Err(OpError::shape("kernel of a window", format!("{rank} lengths"), kernel));
        }
        let (stride, dilation) = (list("strides", 1, rank, 1)?, list("dilations", 1, rank, 1)?);
        let pads = list("pads", 0, 2 * rank, 0)?;
        let (mut begin, mut end) = (pads[..rank].to_vec(), pads[rank..].to_vec());
        let ceil = attrs.flag("ceil_mode", false)?;
        let auto = attrs.str("auto_pad", "NOTSET")?;
        let mut output = Vec::with_capacity(rank);
        for i in 0..rank {
            let reach = dilation[i] * (kernel[i] - 1) + 1;
            match auto {
                "NOTSET" | "" => {}
                "VALID" => (begin[i], end[i]) = (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let out = input[i].div_ceil(stride[i]);
                    let pad = (out.max(1) - 1).saturating_mul(stride[i]).saturating_add(reach).saturating_sub(input[i]);
                    let small = pad / 2;
                    (begin[i], end[i]) = if auto == "SAME_UPPER" { (small, pad - small) } else { (pad - small, small) };
                }
                other => return Err(OpError::attribute("auto_pad", format!("is `{other}`"))),
            }
            let padded = input[i].saturating_add(begin[i] + end[i]);
            let Some(room) = padded.checked_sub(reach) else {
                return Err(OpError::shape(
                    format!("spatial axis {i} under a window of {reach}"),
                    "room for it",
                    input,
                ));
            };
            let mut out = if ceil { room.div_ceil(stride[i]) } else { room / stride[i] } + 1;
            // A last window that would begin in the padding after the input is none.
            if ceil && (out - 1) * stride[i] >= input[i] + begin[i] {
                out -= 1;
            }
            output.push(out);
        }
        elements(&output)?;
        elements(&kernel)?;
        Ok(Window { input: input.to_vec(), kernel, output, stride, dilation, begin })
    }

    /// Output positions.
    pub(super) fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Input positions.
    pub(super) fn inputs(&self) -> usize {
        self.input.iter().product()
    }

    /// Kernel positions.
    pub(super) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// For output position `p`: fills `taps` with the pairs of kernel position and input position that lie inside the input.
    pub(super) fn inside(&self, p: usize, taps: &mut Vec<(usize, usize)>) {
        taps.clear();
        let rank = self.input.len();
        let mut at = vec![0; rank];
        let mut rest = p;
        for i in (0..rank).rev() {
            at[i] = rest % self.output[i];
            rest /= self.output[i];
        }
        for tap in 0..self.taps() {
            let (mut rest, mut offset, mut step, mut inside) = (tap, 0, 1, true);
            for i in (0..rank).rev() {
                let k = rest % self.kernel[i];
                rest /= self.kernel[i];
                let x = (at[i] * self.stride[i] + k * self.dilation[i]).wrapping_sub(self.begin[i]);
                inside &= x < self.input[i];
                offset += if inside { x * step } else { 0 };
                step *= self.input[i];
            }
            if inside {
                taps.push((tap, offset));
            }
        }
    }
}
