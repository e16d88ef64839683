//! Sums and products of tensors of 8-bit codes, the very codes that the CPU makes.
use std::sync::Arc;

use hone_kernels::quantize::{Product, Sum};

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bindings, bytes_of, filled};
use crate::map::BYTES;

/// Most axes left when neighbouring ones are merged.
const MOST_AXES: usize = 8;

/// What becomes of two codes.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// Their sum. Operands a, b, and [`table`] of it.
    Sum(Sum),
    /// Their product. Operands a, b.
    Product(Product),
}

/// `y = of(a, b)` of codes that broadcast.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// What is made.
    pub of: Of,
    /// The codes are `i8`.
    pub signed: bool,
    /// Shape of the result.
    pub shape: Vec<usize>,
    /// Elements of each operand from one to the next along each axis of the result, outermost first; 0 where it is repeated.
    pub strides: [Vec<usize>; 2],
}

/// What each byte of `a` counts in a sum, then what each of `b` does, in units of the result's codes: all of it that is rounded
/// before the two are added.
pub fn table(f: &Sum, signed: bool) -> Vec<f32> {
    let code = |byte: i32| if signed { byte as u8 as i8 as f32 } else { byte as f32 };
    let left = (0..256).map(|byte| f.left * code(byte) + f.fixed);
    left.chain((0..256).map(|byte| f.right * code(byte))).collect()
}

impl Pairs {
    /// The call; `None` when it has too many axes or elements.
    pub fn call(&self) -> Option<Call> {
        let n: usize = self.shape.iter().product();
        let axes = self.merged();
        if axes.len() > MOST_AXES {
            return None;
        }
        u32::try_from(n).ok()?;
        let mut params = vec![0u32; 12 + 4 * MOST_AXES];
        params[..3].copy_from_slice(&[n.div_ceil(4) as u32, n as u32, axes.len() as u32]);
        let codes = match self.of {
            Of::Sum(f) => f.codes,
            Of::Product(f) => {
                params[6..8].copy_from_slice(&[f.left as u32, f.right as u32]);
                params[8] = f.ratio.to_bits();
                f.codes
            }
        };
        params[3..6].copy_from_slice(&[codes.zero, codes.low, codes.high].map(|v| v as u32));
        for (axis, (length, steps)) in params[12..].chunks_mut(4).zip(axes) {
            for (to, from) in axis.iter_mut().zip([length, steps[0], steps[1]]) {
                *to = u32::try_from(from).ok()?;
            }
        }
        kernel(matches!(self.of, Of::Sum(_)), self.signed).line(params, n.div_ceil(4))
    }

    /// Axes, innermost first, with the steps of the operands; neighbours along which both advance alike are one.
    fn merged(&self) -> Vec<(usize, [usize; 2])> {
        let mut axes: Vec<(usize, [usize; 2])> = Vec::new();
        for (axis, &d) in self.shape.iter().enumerate().rev().filter(|(_, d)| **d != 1) {
            let step = [self.strides[0][axis], self.strides[1][axis]];
            match axes.last_mut() {
                Some((len, inner)) if (0..2).all(|k| step[k] == inner[k] * *len) => *len *= d,
                _ => axes.push((d, step)),
            }
        }
        axes
    }
}

fn kernel(sum: bool, signed: bool) -> Arc<Kernel> {
    let name = format!("pairs-{}-{}", if sum { "sum" } else { "product" }, if signed { "i8" } else { "u8" });
    let wide = |v: &str| if signed { format!("extractBits(i32({v}), 0u, 8u)") } else { format!("i32({v})") };
    let (what, real, operands) = if sum {
        ("code(left · a + fixed + right · b)", "T[a] + T[256u + b]".to_string(), &[("T", "f32")][..])
    } else {
        let real = format!("f32(({} - P.left) * ({} - P.right)) * P.ratio", wide("a"), wide("b"));
        ("code((a - left)(b - right) · ratio)", real, &[][..])
    };
    let read = [("A", "u32"), ("B", "u32")].into_iter().chain(operands.iter().copied());
    let source = filled(
        include_str!("pairs.wgsl"),
        &[("WHAT", what), ("BINDINGS", &bindings(1, read.chain([("y", "u32")]))), ("REAL", &real), ("STORE", BYTES)],
    );
    Kernel::new(name, source, 2 + operands.len(), 1, move || trials(sum, signed))
}

fn trials(sum: bool, signed: bool) -> Vec<Trial> {
    let mut out = Vec::new();
    let mut draws = Draws::new(u64::from(sum) * 2 + u64::from(signed));
    let (low, high) = if signed { (-128, 127) } else { (0, 255) };
    // Scales as they come, of which no float is whole, and ones with which many a sum is a tie.
    for (left, right, fixed) in [(0.734_31, 0.291_17, -31.372_5), (0.5, 0.25, -31.25)] {
        for strides in [[vec![35, 7, 1], vec![35, 7, 1]], [vec![35, 7, 1], vec![0, 7, 0]], [vec![1, 0, 3], vec![0; 3]]]
        {
            let codes = hone_kernels::quantize::Codes { zero: 0, low, high };
            let of = if sum {
                Of::Sum(Sum { left, right, fixed, codes })
            } else {
                let codes = hone_kernels::quantize::Codes { zero: 3, ..codes };
                Of::Product(Product { left: 4, right: -1, ratio: left * 0.02, codes })
            };
            let pairs = Pairs { of, signed, shape: vec![3, 5, 7], strides };
            let [a, b] = [draws.bytes(105), draws.bytes(105)];
            let code = |byte: u8| if signed { i32::from(byte as i8) } else { i32::from(byte) };
            let one = |i: usize| {
                let at = |k: usize| {
                    let s: &[usize] = &pairs.strides[k];
                    i / 35 * s[0] + i / 7 % 5 * s[1] + i % 7 * s[2]
                };
                let (a, b) = (code(a[at(0)]), code(b[at(1)]));
                let q = match of {
                    Of::Sum(f) => f.codes.reference(f.left * a as f32 + f.fixed + f.right * b as f32),
                    Of::Product(f) => f.codes.reference(((a - f.left) * (b - f.right)) as f32 * f.ratio),
                };
                q as u8
            };
            let result = (0..105).map(one).collect();
            let Some(call) = pairs.call() else { continue };
            let mut operands = vec![a.clone(), b.clone()];
            if let Of::Sum(f) = of {
                operands.push(bytes_of(&table(&f, signed)));
            }
            out.push(Trial { call, before: vec![], operands, results: vec![result], allowed: Allowed::Exact });
        }
    }
    out
}
