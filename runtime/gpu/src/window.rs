//! Sliding windows that keep channels apart: pooling and depthwise convolution.
use std::sync::Arc;

use hone_kernels::conv::Window;
use hone_kernels::epilogue::Activation;

use crate::functions::of_activation;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, put_window, under};
use crate::map::BYTES;

/// What is made of the elements under a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Of {
    /// The largest; what is no number wins. -∞ where the window lies outside.
    Max,
    /// The sum, times the factor of its position, which is the second operand.
    Average,
    /// `f(Σ x · w[tap, channel] + bias + z)`. Operands in the order x, w, bias, z.
    Depthwise {
        /// A bias a channel.
        bias: bool,
        /// A tensor like the result to add.
        residual: bool,
        /// What comes last.
        activation: Activation,
    },
}

/// A call of a window on every channel.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// The window.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Whether the channels come before the pixels. Not of a depthwise convolution.
    pub first: bool,
    /// What is made.
    pub of: Of,
}

impl Windows {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let w = &self.window;
        let wide = matches!(self.of, Of::Depthwise { .. }) && self.channels.is_multiple_of(4);
        let channels = if wide { self.channels / 4 } else { self.channels };
        let n = self.batch.checked_mul(channels)?.checked_mul(w.positions())?;
        let word = |v: usize| u32::try_from(v).ok();
        word(self.batch.checked_mul(self.channels)?.checked_mul(w.pixels().max(w.positions()))?)?;
        let (pixel, channel) = if self.first { (1, w.pixels()) } else { (channels, 1) };
        let mut params = vec![0u32; 32];
        params[..6].copy_from_slice(&[
            n as u32,
            channels as u32,
            (channels * w.pixels()) as u32,
            pixel as u32,
            channel as u32,
            u32::from(self.first),
        ]);
        if let Of::Depthwise { activation, .. } = self.of {
            if self.first {
                return None;
            }
            for (p, c) in params[6..8].iter_mut().zip(of_activation(activation).1) {
                *p = c.to_bits();
            }
        }
        put_window(w, &mut params[8..32])?;
        kernel(self.of, wide).line(params, n)
    }
}

/// The largest of 8-bit codes under a window, channels last: operand the codes.
#[derive(Clone, Copy, Debug)]
pub struct MaxCodes {
    /// The window.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// The codes are `i8`.
    pub signed: bool,
}

impl MaxCodes {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let w = &self.window;
        let word = |v: usize| u32::try_from(v).ok();
        let n = self.batch.checked_mul(self.channels)?.checked_mul(w.positions())?;
        word(self.batch.checked_mul(self.channels)?.checked_mul(w.pixels())?)?;
        let mut params = vec![0u32; 32];
        let flip = if self.signed { 0x80 } else { 0 };
        params[..5].copy_from_slice(&[
            word(n.div_ceil(4))?,
            word(n)?,
            word(self.channels)?,
            word(self.channels * w.pixels())?,
            flip,
        ]);
        put_window(w, &mut params[8..32])?;
        let source = filled(include_str!("window_codes.wgsl"), &[("STORE", BYTES)]);
        Kernel::new("window-max-codes".into(), source, 1, 1, codes_trials).line(params, n.div_ceil(4))
    }
}

fn codes_trials() -> Vec<Trial> {
    let of = |(window, channels, signed)| codes_trial(&MaxCodes { window, batch: 2, channels, signed });
    [(WINDOW, 8, false), (WINDOW, 3, true), (DEEP, 5, false)].into_iter().filter_map(of).collect()
}

fn codes_trial(m: &MaxCodes) -> Option<Trial> {
    let MaxCodes { window: v, batch, channels, signed } = *m;
    let x = Draws::new(channels as u64).bytes(batch * channels * v.pixels());
    let code = |b: u8| if signed { i32::from(b as i8) } else { i32::from(b) };
    let one = |i: usize| {
        let (c, o, image) = (i % channels, i / channels % v.positions(), i / (channels * v.positions()));
        let under = (0..v.taps()).filter_map(|t| under(&v, o, t));
        let most = under.map(|p| code(x[(image * v.pixels() + p) * channels + c])).max();
        most.unwrap_or(if signed { -128 } else { 0 }) as u8
    };
    let y = (0..batch * channels * v.positions()).map(one).collect();
    Some(Trial { call: m.call()?, before: vec![], operands: vec![x], results: vec![y], allowed: Allowed::Exact })
}

fn kernel(of: Of, wide: bool) -> Arc<Kernel> {
    let word = if wide { "vec4<f32>" } else { "f32" };
    let bind = |k: usize, name: &str, word: &str| {
        format!("@group(0) @binding({k}) var<storage, read_write> {name}: array<{word}>;\n")
    };
    let (name, what, bindings, reads, step, last, activation) = match of {
        Of::Max => (
            "window-max".to_string(),
            "y = the largest x under a window.",
            bind(2, "Y", "f32"),
            1,
            "if !some || x > v || not_a_number(x) { if !not_a_number(v) || !some { v = x; } }".to_string(),
            "    if !some {\n        var none = 0xff800000u;\n        v = bitcast<f32>(none);\n    }\n    Y[i] = v;"
                .to_string(),
            Activation::None,
        ),
        Of::Average => (
            "window-average".to_string(),
            "y = the sum of x under a window, times the factor of the position.",
            bind(2, "F", "f32") + &bind(3, "Y", "f32"),
            2,
            "v += x;".to_string(),
            "    Y[i] = v * F[o];".to_string(),
            Activation::None,
        ),
        Of::Depthwise { bias, residual, activation } => {
            let mut bindings = bind(2, "W", word);
            let mut reads = 2;
            let mut last = String::new();
            if bias {
                reads += 1;
                bindings += &bind(reads, "B", word);
                last += "    v += B[c];\n";
            }
            if residual {
                reads += 1;
                bindings += &bind(reads, "Z", word);
                last += "    v += Z[i];\n";
            }
            bindings += &bind(reads + 1, "Y", word);
            last += if wide {
                "    Y[i] = vec4<f32>(activated(v.x), activated(v.y), activated(v.z), activated(v.w));"
            } else {
                "    Y[i] = activated(v);"
            };
            let (function, _) = of_activation(activation);
            let name = format!(
                "window-depthwise{}{}{}-{}",
                if wide { "4" } else { "" },
                if bias { "-bias" } else { "" },
                if residual { "-sum" } else { "" },
                function.name
            );
            let step = "v += x * W[t * P.channels + c];".to_string();
            (name, "y = f(Σ x · w[tap, channel] + bias + z).", bindings, reads, step, last, activation)
        }
    };
    let source = filled(
        include_str!("window.wgsl"),
        &[
            ("WHAT", what),
            ("PER", if wide { "four channels of a position" } else { "one element" }),
            ("COMMON", include_str!("common.wgsl")),
            ("WORD", word),
            ("BINDINGS", &bindings),
            ("ACTIVATION", of_activation(activation).0.text),
            ("ZERO", if wide { "vec4<f32>()" } else { "0.0" }),
            ("STEP", &step),
            ("LAST", &last),
        ],
    );
    Kernel::new(name, source, reads, 1, move || trials(of, wide))
}

/// What windows over three axes are tried on.
pub(crate) const DEEP: Window =
    Window { input: [3, 4, 4], kernel: [2, 2, 2], output: [2, 3, 3], stride: [1; 3], dilation: [1; 3], pad: [0; 3] };

const WINDOW: Window = Window {
    input: [1, 5, 7],
    kernel: [1, 3, 2],
    output: [1, 3, 5],
    stride: [1, 2, 1],
    dilation: [1, 1, 2],
    pad: [0, 1, 0],
};

fn trials(of: Of, wide: bool) -> Vec<Trial> {
    let mut out = Vec::new();
    for (window, batch, channels, first) in [
        (WINDOW, 2, 8usize, false),
        (WINDOW, 2, 3, false),
        (WINDOW, 2, 3, true),
        (DEEP, 1, 4, false),
        (DEEP, 1, 5, false),
    ] {
        let depthwise = matches!(of, Of::Depthwise { .. });
        if depthwise && (first || wide != channels.is_multiple_of(4)) {
            continue;
        }
        out.extend(trial(&Windows { window, batch, channels, first, of }));
    }
    out
}

fn trial(w: &Windows) -> Option<Trial> {
    let call = w.call()?;
    let Windows { window: v, batch, channels, first, of } = *w;
    let mut draws = Draws::new(channels as u64);
    let x = draws.floats(batch * channels * v.pixels());
    let weights = draws.floats(v.taps() * channels);
    let (bias, z) = (draws.floats(channels), draws.floats(batch * channels * v.positions()));
    let factors = draws.floats(v.positions());
    let mut operands = vec![bytes_of(&x)];
    match of {
        Of::Max => {}
        Of::Average => operands.push(bytes_of(&factors)),
        Of::Depthwise { bias: b, residual, .. } => {
            operands.push(bytes_of(&weights));
            operands.extend(b.then(|| bytes_of(&bias)));
            operands.extend(residual.then(|| bytes_of(&z)));
        }
    }
    let mut y = vec![0.0f32; batch * channels * v.positions()];
    for (i, y) in y.iter_mut().enumerate() {
        let (c, o) = if first {
            (i / v.positions() % channels, i % v.positions())
        } else {
            (i % channels, i / channels % v.positions())
        };
        let image = i / (channels * v.positions());
        let (mut sum, mut most) = (0.0f64, f64::NEG_INFINITY);
        for t in 0..v.taps() {
            let Some(s) = under(&v, o, t) else { continue };
            let at =
                if first { (image * channels + c) * v.pixels() + s } else { (image * v.pixels() + s) * channels + c };
            let x = f64::from(x[at]);
            most = most.max(x);
            sum += if let Of::Depthwise { .. } = of { x * f64::from(weights[t * channels + c]) } else { x };
        }
        *y = match of {
            Of::Max => most as f32,
            Of::Average => (sum * f64::from(factors[o])) as f32,
            Of::Depthwise { bias: b, residual, activation } => {
                let (f, constants) = of_activation(activation);
                let constants: Vec<f64> = constants.into_iter().map(f64::from).collect();
                sum += if b { f64::from(bias[c]) } else { 0.0 };
                sum += if residual { f64::from(z[i]) } else { 0.0 };
                (f.formula)(&[sum], &constants) as f32
            }
        };
    }
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y)], allowed: Allowed::Floats(2e-5) })
}
