//! Signal processing: Fourier transforms, windows, mel filters, n-gram counts.
//!
//! Transforms are computed in `f64`, whatever the type, and rounded once.
use super::shape::elements;
use super::{Attrs, Fact, MICROSOFT, OpDef, OpError, axis_of, ints_of, need, optional};
use crate::plan::{Io, Kernel, Lowered};
use crate::tensor::{DType, Tensor};

mod ngrams;
mod transform;

use transform::Transform;

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[
    &DFT,
    &STFT,
    &HANN_WINDOW,
    &HAMMING_WINDOW,
    &BLACKMAN_WINDOW,
    &MEL_WEIGHT_MATRIX,
    &ngrams::TF_IDF_VECTORIZER,
    &COMPLEX_MUL,
    &COMPLEX_MUL_CONJ,
];

/// The only element of an operand that is a number.
fn scalar(t: &Tensor, name: &str) -> Result<i64, OpError> {
    match ints_of(t)[..] {
        [v] => Ok(v),
        _ => Err(OpError::shape(name, "one element", t.shape())),
    }
}

/// Longest signal, transform or window: six minutes at 44 kHz. A length may be computed by the model, and a wrong one
/// must be an error before it is memory.
const LONGEST: usize = 1 << 24;

/// `n` zeros, unless there is no room for them: sizes here may be computed by the model.
fn zeros(n: usize) -> Result<Vec<f64>, OpError> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| OpError::unsupported(format!("{n} elements, more than fit in memory")))?;
    v.resize(n, 0.0);
    Ok(v)
}

/// Discrete Fourier transform along an axis
static DFT: OpDef = OpDef::new(
    "DFT",
    "discrete Fourier transform along an axis, or its inverse; one-sided from or to real numbers",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let known = |i: usize| optional(inputs, i).map(|f| f.value.as_deref());
        let value = |v: Option<Option<_>>| v.map_or(Some(None), |v| v.map(Some));
        let (Some(length), Some(axis)) = (value(known(1)), value(known(2))) else { return Ok(None) };
        Ok(Some(vec![Fact::new(x.dtype, Dft::new(attrs, &x.shape, length, axis)?.to)]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        if !x.dtype().is_float() {
            return Err(OpError::unsupported(format!("DFT of {}", x.dtype())));
        }
        let dft = Dft::new(attrs, x.shape(), optional(inputs, 1), optional(inputs, 2))?;
        let mut y = zeros(elements(&dft.to)?)?;
        let transform = Transform::new(dft.n);
        let v = x.data().to_f64();
        let (mut line, mut work) = (zeros(2 * dft.n)?, zeros(transform.work())?);
        dft.run(&transform, &mut line, &mut work, |i| v[i], |o, value| y[o] = value);
        Ok(vec![Tensor::from_f64(x.dtype(), &dft.to, &y)?])
    },
)
.kernel(|l| {
    let given = |i: usize| !l.has(i) || l.constant(i).is_some();
    if l.dtype(0) != Some(DType::F32) || !given(1) || !given(2) {
        return Ok(None);
    }
    let dft = Dft::new(l.attrs, l.shape(0)?, l.constant(1).map(|t| &**t), l.constant(2).map(|t| &**t))?;
    let transform = Transform::new(dft.n);
    // Scratch is counted in f32, two to an element.
    let scratch = 2 * (2 * dft.n + transform.work());
    Ok(Some(Lowered::new(DftKernel { dft, transform }, vec![0]).with_scratch(scratch)))
});

/// A transform along an axis at concrete shapes.
struct Dft {
    /// Length of the transform.
    n: usize,
    inverse: bool,
    onesided: bool,
    /// Elements before, along and behind the axis in the input; numbers (1 or 2) of an element.
    outer: usize,
    len: usize,
    inner: usize,
    parts: usize,
    /// Shape of the result.
    to: Vec<usize>,
}

impl Dft {
    fn new(attrs: &Attrs, shape: &[usize], length: Option<&Tensor>, axis: Option<&Tensor>) -> Result<Dft, OpError> {
        let [signal @ .., parts @ (1 | 2)] = shape else {
            return Err(OpError::shape("input", "[…, 1] or […, 2]", shape));
        };
        let axis = match axis {
            Some(t) => scalar(t, "axis")?,
            None if attrs.opset < 20 => attrs.int("axis", 1)?,
            None => -2,
        };
        let axis = axis_of(axis, shape.len())?;
        if axis >= signal.len() {
            return Err(OpError::attribute("axis", "names the axis of real and imaginary parts"));
        }
        let (inverse, onesided) = (attrs.flag("inverse", false)?, attrs.flag("onesided", false)?);
        let n = match length {
            Some(t) => scalar(t, "dft_length")?,
            None if inverse && onesided => 2 * (signal[axis] as i64 - 1),
            None => signal[axis] as i64,
        };
        let n = usize::try_from(n).ok().filter(|n| (1..=LONGEST).contains(n));
        let Some(n) = n else { return Err(OpError::shape("dft_length", "a length from 1 to 2^24", length)) };
        let mut to = shape.to_vec();
        to[axis] = if onesided && !inverse { n / 2 + 1 } else { n };
        to[signal.len()] = if onesided && inverse { 1 } else { 2 };
        elements(&to)?;
        Ok(Dft {
            n,
            inverse,
            onesided,
            outer: elements(&signal[..axis])?,
            len: signal[axis],
            inner: elements(&signal[axis + 1..])?,
            parts: *parts,
            to,
        })
    }

    /// Transforms every line. `line` has `2 n` elements, `read` gives an element of the input, `write` takes one of the
    /// result.
    fn run(
        &self,
        transform: &Transform,
        line: &mut [f64],
        work: &mut [f64],
        read: impl Fn(usize) -> f64,
        mut write: impl FnMut(usize, f64),
    ) {
        let (n, parts) = (self.n, self.parts);
        let (re, im) = line.split_at_mut(n);
        let to_real = self.inverse && self.onesided;
        let (kept, made) =
            if self.onesided && !self.inverse { (n / 2 + 1, 2) } else { (n, if to_real { 1 } else { 2 }) };
        for o in 0..self.outer {
            for i in 0..self.inner {
                re.fill(0.0);
                im.fill(0.0);
                let given = self.len.min(if to_real { n / 2 + 1 } else { n });
                for t in 0..given {
                    let at = ((o * self.len + t) * self.inner + i) * parts;
                    re[t] = read(at);
                    im[t] = if parts == 2 { read(at + 1) } else { 0.0 };
                }
                if to_real {
                    // The other half is the conjugate; what must be real is taken to be.
                    im[0] = 0.0;
                    if n % 2 == 0 {
                        im[n / 2] = 0.0;
                    }
                    for t in 1..n.div_ceil(2) {
                        (re[n - t], im[n - t]) = (re[t], -im[t]);
                    }
                }
                let scale = if self.inverse { 1.0 / n as f64 } else { 1.0 };
                if self.inverse {
                    transform.run(im, re, work);
                } else {
                    transform.run(re, im, work);
                }
                for k in 0..kept {
                    let at = ((o * kept + k) * self.inner + i) * made;
                    write(at, re[k] * scale);
                    if made == 2 {
                        write(at + 1, im[k] * scale);
                    }
                }
            }
        }
    }
}

struct DftKernel {
    dft: Dft,
    transform: Transform,
}

impl Kernel for DftKernel {
    fn name(&self) -> &'static str {
        "DFT"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        // Areas of the arena are aligned for f64 too.
        let (line, work) = bytemuck::cast_slice_mut::<f32, f64>(scratch).split_at_mut(2 * self.dft.n);
        self.dft.run(&self.transform, line, work, |i| f64::from(x[i]), |o, v| y[o] = v as f32);
    }
}

/// Fourier transforms of windowed frames
static STFT: OpDef = OpDef::new(
    "STFT",
    "Fourier transforms of windowed frames of a signal, a step apart",
    |attrs, inputs| {
        let x = need(inputs, 0, "signal")?;
        let Some(step) = &need(inputs, 1, "frame_step")?.value else { return Ok(None) };
        let window = optional(inputs, 2).map(|f| &f.shape[..]);
        let length = match optional(inputs, 3) {
            None => None,
            Some(f) => match &f.value {
                Some(t) => Some(&**t),
                None if window.is_some() => None,
                None => return Ok(None),
            },
        };
        Ok(Some(vec![Fact::new(x.dtype, Stft::new(attrs, &x.shape, step, window, length)?.to())]))
    },
    |attrs, inputs| {
        let (x, step) = (need(inputs, 0, "signal")?, need(inputs, 1, "frame_step")?);
        let window = optional(inputs, 2);
        if !x.dtype().is_float() {
            return Err(OpError::unsupported(format!("STFT of {}", x.dtype())));
        }
        let stft = Stft::new(attrs, x.shape(), step, window.map(Tensor::shape), optional(inputs, 3))?;
        let mut y = zeros(elements(&stft.to())?)?;
        let transform = Transform::new(stft.n);
        let v = x.data().to_f64();
        let window = window.map_or_else(|| vec![1.0; stft.n], |w| w.data().to_f64());
        let (mut line, mut work) = (zeros(2 * stft.n)?, zeros(transform.work())?);
        stft.run(&transform, &mut line, &mut work, |i| v[i], |t| window[t], |o, value| y[o] = value);
        Ok(vec![Tensor::from_f64(x.dtype(), &stft.to(), &y)?])
    },
)
.kernel(|l| {
    let (Some(step), true) = (l.constant(1), !l.has(3) || l.constant(3).is_some()) else { return Ok(None) };
    if l.dtype(0) != Some(DType::F32) || l.has(2) && l.dtype(2) != Some(DType::F32) {
        return Ok(None);
    }
    let window = if l.has(2) { Some(l.shape(2)?) } else { None };
    let stft = Stft::new(l.attrs, l.shape(0)?, step, window, l.constant(3).map(|t| &**t))?;
    let transform = Transform::new(stft.n);
    let scratch = 2 * (2 * stft.n + transform.work());
    let (windowed, reads) = if l.has(2) { (true, vec![0, 2]) } else { (false, vec![0]) };
    Ok(Some(Lowered::new(StftKernel { stft, transform, windowed }, reads).with_scratch(scratch)))
});

/// A short-time transform at concrete shapes.
struct Stft {
    /// Length of a frame.
    n: usize,
    step: usize,
    batch: usize,
    len: usize,
    parts: usize,
    frames: usize,
    /// Frequencies of a frame.
    bins: usize,
}

impl Stft {
    fn new(
        attrs: &Attrs,
        shape: &[usize],
        step: &Tensor,
        window: Option<&[usize]>,
        length: Option<&Tensor>,
    ) -> Result<Stft, OpError> {
        let (batch, len, parts) = match *shape {
            [batch, len] => (batch, len, 1),
            [batch, len, parts @ (1 | 2)] => (batch, len, parts),
            _ => return Err(OpError::shape("signal", "[batch, length, 1] or [batch, length, 2]", shape)),
        };
        let step = usize::try_from(scalar(step, "frame_step")?).unwrap_or(0);
        if step == 0 {
            return Err(OpError::shape("frame_step", "at least 1", step));
        }
        let n = match (length, window) {
            (Some(t), _) => usize::try_from(scalar(t, "frame_length")?).unwrap_or(0),
            (None, Some(w)) => elements(w)?,
            (None, None) => len,
        };
        if !(1..=LONGEST).contains(&n) {
            return Err(OpError::shape("frame_length", "a length from 1 to 2^24", n));
        }
        if let Some(w) = window
            && w != [n]
        {
            return Err(OpError::shape("window", [n], w));
        }
        let frames = if len < n { 0 } else { (len - n) / step + 1 };
        let bins = if attrs.flag("onesided", true)? { n / 2 + 1 } else { n };
        elements(&[batch, frames, bins, 2])?;
        Ok(Stft { n, step, batch, len, parts, frames, bins })
    }

    fn to(&self) -> Vec<usize> {
        vec![self.batch, self.frames, self.bins, 2]
    }

    fn run(
        &self,
        transform: &Transform,
        line: &mut [f64],
        work: &mut [f64],
        read: impl Fn(usize) -> f64,
        window: impl Fn(usize) -> f64,
        mut write: impl FnMut(usize, f64),
    ) {
        let (re, im) = line.split_at_mut(self.n);
        for f in 0..self.batch * self.frames {
            let start = f / self.frames * self.len + f % self.frames * self.step;
            for t in 0..self.n {
                let at = (start + t) * self.parts;
                re[t] = read(at) * window(t);
                im[t] = if self.parts == 2 { read(at + 1) * window(t) } else { 0.0 };
            }
            transform.run(re, im, work);
            for k in 0..self.bins {
                let at = (f * self.bins + k) * 2;
                write(at, re[k]);
                write(at + 1, im[k]);
            }
        }
    }
}

struct StftKernel {
    stft: Stft,
    transform: Transform,
    windowed: bool,
}

impl Kernel for StftKernel {
    fn name(&self) -> &'static str {
        "STFT"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes, scratch) = io.parts();
        let (x, y) = (reads.f32(0), writes.f32(0));
        let window = if self.windowed { reads.f32(1) } else { &[] };
        // Areas of the arena are aligned for f64 too.
        let (line, work) = bytemuck::cast_slice_mut::<f32, f64>(scratch).split_at_mut(2 * self.stft.n);
        self.stft.run(
            &self.transform,
            line,
            work,
            |i| f64::from(x[i]),
            |t| window.get(t).map_or(1.0, |&w| f64::from(w)),
            |o, v| y[o] = v as f32,
        );
    }
}

macro_rules! window {
    ($konst:ident, $name:literal, $doc:literal, $a0:expr, $a1:expr, $a2:expr) => {
        #[doc = $doc]
        static $konst: OpDef =
            OpDef::new($name, $doc, window_shape, |attrs, inputs| window(attrs, inputs, [$a0, $a1, $a2]));
    };
}

window!(HANN_WINDOW, "HannWindow", "1/2 - 1/2 cos(2π t / n)", 0.5, 0.5, 0.0);
window!(HAMMING_WINDOW, "HammingWindow", "25/46 - 21/46 cos(2π t / n)", 25.0 / 46.0, 21.0 / 46.0, 0.0);
window!(BLACKMAN_WINDOW, "BlackmanWindow", "0.42 - 0.5 cos(2π t / n) + 0.08 cos(4π t / n)", 0.42, 0.5, 0.08);

fn output_dtype(attrs: &Attrs) -> Result<DType, OpError> {
    let number = attrs.int("output_datatype", 1)?;
    DType::from_onnx(number).ok_or_else(|| OpError::unsupported(format!("a result of ONNX type {number}")))
}

fn window_len(size: &Tensor) -> Result<usize, OpError> {
    let size = scalar(size, "size")?;
    usize::try_from(size).ok().filter(|&n| n <= LONGEST).ok_or_else(|| OpError::shape("size", "from 0 to 2^24", size))
}

fn window_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let Some(size) = &need(inputs, 0, "size")?.value else { return Ok(None) };
    Ok(Some(vec![Fact::new(output_dtype(attrs)?, vec![window_len(size)?])]))
}

/// `a0 - a1 cos(φ) + a2 cos(2φ)` with `φ = 2π t / n`, where `n` is the length, or one less when not periodic.
fn window(attrs: &Attrs, inputs: &[Option<&Tensor>], [a0, a1, a2]: [f64; 3]) -> Result<Vec<Tensor>, OpError> {
    let len = window_len(need(inputs, 0, "size")?)?;
    let n = if attrs.flag("periodic", true)? { len } else { len.saturating_sub(1) };
    let mut y = zeros(elements(&[len])?)?;
    for (t, y) in y.iter_mut().enumerate() {
        let angle = 2.0 * std::f64::consts::PI * t as f64 / n as f64;
        // A symmetric window of one element is its middle.
        *y = if n == 0 { 1.0 } else { a0 - a1 * angle.cos() + a2 * (2.0 * angle).cos() };
    }
    Ok(vec![Tensor::from_f64(output_dtype(attrs)?, &[len], &y)?])
}

/// Triangular filters on the mel scale
static MEL_WEIGHT_MATRIX: OpDef = OpDef::new(
    "MelWeightMatrix",
    "triangular filters, evenly spaced on the mel scale, for the bins of a spectrum",
    |attrs, inputs| {
        let (bands, length) = (need(inputs, 0, "num_mel_bins")?, need(inputs, 1, "dft_length")?);
        let (Some(bands), Some(length)) = (&bands.value, &length.value) else { return Ok(None) };
        Ok(Some(vec![Fact::new(output_dtype(attrs)?, mel_shape(bands, length)?)]))
    },
    mel_weights,
);

fn mel_shape(bands: &Tensor, length: &Tensor) -> Result<Vec<usize>, OpError> {
    let (bands, length) = (scalar(bands, "num_mel_bins")?, scalar(length, "dft_length")?);
    let of = |v: i64| usize::try_from(v).ok().filter(|&v| v <= LONGEST);
    match (of(bands), of(length)) {
        (Some(bands), Some(length)) => Ok(vec![length / 2 + 1, bands]),
        _ => Err(OpError::shape("num_mel_bins and dft_length", "from 0 to 2^24", (bands, length))),
    }
}

fn mel_weights(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (bands, length) = (need(inputs, 0, "num_mel_bins")?, need(inputs, 1, "dft_length")?);
    let to = mel_shape(bands, length)?;
    let (bins, bands) = (to[0], to[1]);
    let length = scalar(length, "dft_length")? as f64;
    let rate = scalar(need(inputs, 2, "sample_rate")?, "sample_rate")? as f64;
    let edge = |i: usize, name: &'static str| -> Result<f64, OpError> {
        match need(inputs, i, name)?.data().to_f64()[..] {
            [hertz] => Ok(2595.0 * (1.0 + hertz / 700.0).log10()),
            _ => Err(OpError::shape(name, "one element", "another number of them")),
        }
    };
    let (low, high) = (edge(3, "lower_edge_hertz")?, edge(4, "upper_edge_hertz")?);
    let step = (high - low) / (bands + 2) as f64;
    // The bin in which the edge between two filters lies.
    let at = |i: usize| {
        let hertz = 700.0 * (10f64.powf((i as f64 * step + low) / 2595.0) - 1.0);
        ((length + 1.0) * hertz / rate).floor()
    };
    let mut y = zeros(elements(&to)?)?;
    for band in 0..bands {
        let (left, centre, right) = (at(band), at(band + 1), at(band + 2));
        for bin in left.max(0.0) as usize..bins.min(right.max(centre + 1.0).max(0.0) as usize) {
            let f = bin as f64;
            y[bin * bands + band] = if f <= centre {
                if centre == left { 1.0 } else { (f - left) / (centre - left) }
            } else {
                (right - f) / (right - centre)
            };
        }
    }
    Ok(vec![Tensor::from_f64(output_dtype(attrs)?, &to, &y)?])
}

macro_rules! complex {
    ($konst:ident, $name:literal, $doc:literal, $sign:expr) => {
        #[doc = $doc]
        static $konst: OpDef = OpDef::new(
            $name,
            $doc,
            |_, inputs| {
                let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
                Ok(Some(vec![Fact::new(a.dtype, complex_shape(&a.shape, &b.shape)?)]))
            },
            |_, inputs| complex_mul(inputs, $sign),
        )
        .domain(MICROSOFT);
    };
}

complex!(COMPLEX_MUL, "ComplexMul", "product of complex numbers", 1.0);
complex!(COMPLEX_MUL_CONJ, "ComplexMulConj", "product of complex numbers with the conjugates of others", -1.0);

fn complex_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    match (a.last(), b.last()) {
        (Some(2), Some(2)) => super::shape::broadcast(a, b),
        _ => Err(OpError::shape("complex operands", "[…, 2] and […, 2]", (a, b))),
    }
}

fn complex_mul(inputs: &[Option<&Tensor>], sign: f64) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    if a.dtype() != b.dtype() || !a.dtype().is_float() {
        return Err(OpError::unsupported(format!("complex products of {} and {}", a.dtype(), b.dtype())));
    }
    let to = complex_shape(a.shape(), b.shape())?;
    let (ia, ib) = (super::shape::broadcast_indices(a.shape(), &to)?, super::shape::broadcast_indices(b.shape(), &to)?);
    let (x, y) = (a.data().to_f64(), b.data().to_f64());
    let mut out = zeros(elements(&to)?)?;
    for (k, pair) in out.chunks_exact_mut(2).enumerate() {
        let (i, j) = (ia[2 * k], ib[2 * k]);
        let ((a, b), (c, d)) = ((x[i], x[i + 1]), (y[j], sign * y[j + 1]));
        pair.copy_from_slice(&[a * c - b * d, a * d + b * c]);
    }
    Ok(vec![Tensor::from_f64(a.dtype(), &to, &out)?])
}
