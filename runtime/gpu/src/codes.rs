//! Products, convolutions and quantisation of 8-bit codes, exact where integers are.
use std::sync::Arc;

use hone_kernels::conv::Window;
use hone_kernels::epilogue::Activation;
use hone_kernels::quantize::Sum;

use crate::functions::of_activation;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, bytes_of_words, filled, put_window, under};

mod sums;

pub use sums::{Left, Sums, Zero, factor, pack, packed_len};

/// Depthwise sums of unsigned codes: operands codes, weights `[taps, channels]` as bytes, and what to add to a channel.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The window.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// The code of 0.
    pub zero: u8,
}

impl Spread {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let w = &self.window;
        let word = |v: usize| u32::try_from(v).ok();
        let n = self.batch.checked_mul(self.channels)?.checked_mul(w.positions())?;
        word(self.batch.checked_mul(self.channels)?.checked_mul(w.pixels())?)?;
        let mut params = vec![0u32; 28];
        params[..3].copy_from_slice(&[word(n)?, word(self.channels)?, u32::from(self.zero)]);
        put_window(w, &mut params[4..28])?;
        let source = filled(include_str!("spread.wgsl"), &[]);
        Kernel::new("spread-u8".into(), source, 3, 1, spread_trials).line(params, n)
    }
}

/// What follows sums: operands the sums, scales `[columns]`, then what `of` says.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    /// Elements.
    pub elements: usize,
    /// Columns.
    pub columns: usize,
    /// What.
    pub of: Of,
}

/// What sums become.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// `code(sum · scale[j])`, by a table of 256 bytes where there is one, plus other codes where there are.
    Codes {
        /// Zero point, lowest and highest code.
        codes: (i32, i32, i32),
        /// A table is the next operand.
        table: bool,
        /// Zero point, lowest and highest code of a sum with other codes, which are the operand after that; behind them is what each
        /// code counts in it ([`crate::pairs::table`]).
        added: Option<(i32, i32, i32)>,
    },
    /// `f(sum · scale[j] · factor + bias[j] + z)`; the factor is in the first word of the next operand where there is one.
    Floats {
        /// A factor is the next operand.
        factor: bool,
        /// A bias is the next operand.
        bias: bool,
        /// A tensor like the result is the next operand.
        residual: bool,
        /// What comes last.
        activation: Activation,
    },
}

impl Finish {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        let mut params = vec![0u32; 11];
        let threads = if let Of::Codes { .. } = self.of { self.elements.div_ceil(4) } else { self.elements };
        params[..3].copy_from_slice(&[word(threads)?, word(self.elements)?, word(self.columns.max(1))?]);
        match self.of {
            Of::Codes { codes: (zero, low, high), added, .. } => {
                params[3..6].copy_from_slice(&[zero, low, high].map(|v| v as u32));
                if let Some((zero, low, high)) = added {
                    params[6..9].copy_from_slice(&[zero, low, high].map(|v| v as u32));
                }
            }
            Of::Floats { activation, .. } => {
                for (p, c) in params[9..].iter_mut().zip(of_activation(activation).1) {
                    *p = c.to_bits();
                }
            }
        }
        finish_kernel(self.of).line(params, threads)
    }
}

fn finish_kernel(of: Of) -> Arc<Kernel> {
    let mut bindings = String::new();
    let mut reads = 2;
    let mut bind = |name: &str, word: &str| {
        reads += 1;
        bindings += &format!("@group(0) @binding({reads}) var<storage, read_write> {name}: array<{word}>;\n");
    };
    let (name, what, per, kind, body, store, activation) = match of {
        Of::Codes { table, added, .. } => {
            let mut body = "    var q = code(f32(S[i]) * F[j], P.zero, P.low, P.high);\n".to_string();
            if table {
                bind("T", "u32");
                body += "    q = i32(extractBits(T[u32(q) >> 2u], (u32(q) & 3u) * 8u, 8u));\n";
            }
            if added.is_some() {
                bind("Z", "u32");
                bind("D", "f32");
                body += "    let z = extractBits(Z[i >> 2u], (i & 3u) * 8u, 8u);\n";
                body += "    q = code(D[u32(q) & 255u] + D[256u + z], P.sum_zero, P.sum_low, P.sum_high);\n";
            }
            body += "    return u32(q) & 255u;";
            bind("Y", "u32");
            let name = format!(
                "finish-codes{}{}",
                if table { "-table" } else { "" },
                if added.is_some() { "-added" } else { "" }
            );
            (name, "codes.", "four elements", "u32", body, crate::map::BYTES.replace("y[i]", "Y[i]"), Activation::None)
        }
        Of::Floats { factor, bias, residual, activation } => {
            let mut body = "    var v = f32(S[i]) * F[j];\n".to_string();
            let mut name = "finish-floats".to_string();
            if factor {
                bind("A", "f32");
                body = "    var v = f32(S[i]) * (A[0] * F[j]);\n".to_string();
                name += "-factor";
            }
            if bias {
                bind("B", "f32");
                body += "    v += B[j];\n";
                name += "-bias";
            }
            if residual {
                bind("Z", "f32");
                body += "    v += Z[i];\n";
                name += "-sum";
            }
            body += "    return activated(v);";
            bind("Y", "f32");
            name += &format!("-{}", of_activation(activation).0.name);
            (name, "floats.", "one element", "f32", body, "    Y[i] = f(i);".to_string(), activation)
        }
    };
    let source = filled(
        include_str!("finish.wgsl"),
        &[
            ("WHAT", what),
            ("PER", per),
            ("COMMON", include_str!("common.wgsl")),
            ("BINDINGS", &bindings),
            ("ACTIVATION", of_activation(activation).0.text),
            ("TYPE", kind),
            ("BODY", &body),
            ("STORE", &store),
        ],
    );
    Kernel::new(name, source, reads - 1, 1, move || finish_trials(of))
}

/// Scale and zero point of unsigned codes for `n` floats: operand the floats, results a float and a byte.
pub fn dynamic(n: usize) -> Option<Call> {
    let source = filled(include_str!("dynamic.wgsl"), &[("QUOTIENT", include_str!("quotient.wgsl"))]);
    let kernel =
        Kernel::new("dynamic-u8".into(), source, 1, 2, || (1..40).chain([700]).filter_map(dynamic_trial).collect());
    kernel.call(vec![u32::try_from(n).ok()?], [1, 1, 1])
}

fn window() -> Window {
    Window {
        input: [1, 5, 6],
        kernel: [1, 3, 2],
        output: [1, 3, 4],
        stride: [1, 2, 1],
        dilation: [1, 1, 2],
        pad: [0, 1, 0],
    }
}

/// The pixel of a batch under a tap of a position; `None` outside.
fn pixel(v: &Window, position: usize, tap: usize) -> Option<usize> {
    Some(position / v.positions() * v.pixels() + under(v, position % v.positions(), tap)?)
}

fn words(v: &[i32]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn spread_trials() -> Vec<Trial> {
    let mut out = Vec::new();
    for channels in [3, 8] {
        let (window, batch, zero) = (window(), 2, 77u8);
        let mut draws = Draws::new(channels as u64);
        let x = draws.bytes(batch * window.pixels() * channels);
        let w = draws.bytes(window.taps() * channels);
        let offset: Vec<i32> = (0..channels as i32).map(|c| 5 * c - 7).collect();
        let mut y = vec![0i32; batch * window.positions() * channels];
        for (i, y) in y.iter_mut().enumerate() {
            let (o, c) = (i / channels, i % channels);
            *y = offset[c];
            for t in 0..window.taps() {
                if let Some(p) = pixel(&window, o, t) {
                    *y += (i32::from(x[p * channels + c]) - i32::from(zero)) * i32::from(w[t * channels + c] as i8);
                }
            }
        }
        let Some(call) = (Spread { window, batch, channels, zero }).call() else { continue };
        out.push(Trial {
            call,
            before: vec![],
            operands: vec![x, w, words(&offset)],
            results: vec![words(&y)],
            allowed: Allowed::Exact,
        });
    }
    out
}

/// A real in units of the scale as a code.
fn code(v: f32, (zero, low, high): (i32, i32, i32)) -> i32 {
    hone_kernels::quantize::Codes { zero, low, high }.reference(v)
}

fn finish_trials(of: Of) -> Vec<Trial> {
    let (elements, columns) = (3 * 11, 11);
    let mut draws = Draws::new(elements as u64);
    let sums: Vec<i32> = (0..elements).map(|_| draws.word() as i32 % 60_000 - 30_000).collect();
    let scale: Vec<f32> = draws.floats(columns).iter().map(|v| (v.abs() + 0.1) * 0.01).collect();
    let mut operands = vec![words(&sums), bytes_of(&scale)];
    let (others, bias, z) = (draws.bytes(elements), draws.floats(columns), draws.floats(elements));
    let mut of = of;
    let (result, allowed) = match &mut of {
        Of::Codes { codes, table, added } => {
            *codes = (100, 3, 250);
            let bytes: Vec<u8> = (0..=255u8).map(|b| b.wrapping_mul(3) ^ 0x55).collect();
            if *table {
                operands.push(bytes.clone());
            }
            let codes_of_sum = hone_kernels::quantize::Codes { zero: 0, low: 0, high: 255 };
            let sum = Sum { left: 0.734_31, right: 0.291_17, fixed: -31.372_5, codes: codes_of_sum };
            if let Some(codes) = added {
                *codes = (0, 0, 255);
                operands.push(others.clone());
                operands.push(bytes_of(&crate::pairs::table(&sum, false)));
            }
            let one = |i: usize| {
                let mut q = code(sums[i] as f32 * scale[i % columns], *codes);
                if *table {
                    q = i32::from(bytes[q as usize]);
                }
                if let Some(codes) = *added {
                    q = code(sum.left * q as f32 + sum.fixed + sum.right * f32::from(others[i]), codes);
                }
                q as u8
            };
            ((0..elements).map(one).collect(), Allowed::Exact)
        }
        Of::Floats { factor, bias: b, residual, activation } => {
            let by = 0.37f32;
            operands.extend(factor.then(|| bytes_of(&[by])));
            operands.extend(b.then(|| bytes_of(&bias)));
            operands.extend(residual.then(|| bytes_of(&z)));
            let (f, constants) = of_activation(*activation);
            let constants: Vec<f64> = constants.into_iter().map(f64::from).collect();
            let one = |i: usize| {
                let j = i % columns;
                let mut v = f64::from(sums[i]) * f64::from(scale[j]) * if *factor { f64::from(by) } else { 1.0 };
                v += if *b { f64::from(bias[j]) } else { 0.0 };
                v += if *residual { f64::from(z[i]) } else { 0.0 };
                (f.formula)(&[v], &constants) as f32
            };
            (bytes_of(&(0..elements).map(one).collect::<Vec<_>>()), Allowed::Floats(1e-5))
        }
    };
    let Some(call) = (Finish { elements, columns, of }).call() else { return Vec::new() };
    vec![Trial { call, before: vec![], operands, results: vec![result], allowed }]
}

fn dynamic_trial(n: usize) -> Option<Trial> {
    let x: Vec<f32> = Draws::new(n as u64).floats(n).iter().map(|v| v * 7.0 - 1.5).collect();
    let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
    let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
    let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as u32;
    let results = vec![bytes_of(&[scale]), bytes_of_words(&[zero])];
    Some(Trial { call: dynamic(n)?, before: vec![], operands: vec![bytes_of(&x)], results, allowed: Allowed::Exact })
}
