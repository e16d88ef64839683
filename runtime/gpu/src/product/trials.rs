//! What [`super::Product`] must compute, by its formula.
use hone_kernels::conv::Window;

use super::{
    Batch, COLUMNS, Form, Left, Maker, Product, Right, pack, pack_4, pack_bf16, pack_f16, pack_i8, packed_len,
};
use crate::functions::of_activation;
use crate::kernel::{Allowed, Draws, Trial, bytes_of, under};

/// The formula, on elements: the sum of products, without what follows.
fn formula(p: &Product, a: &[f32], w: &dyn Fn(usize, usize, usize) -> f32, b: usize, i: usize, j: usize) -> f64 {
    let [l1, l2, l3] = [p.batch.lengths[1], p.batch.lengths[2], p.batch.lengths[3]];
    let at = [b / (l1 * l2 * l3), b / (l2 * l3) % l1, b / l3 % l2, b % l3];
    let start: usize = at.iter().zip(p.batch.a).map(|(i, s)| i * s).sum();
    let one = |k: usize| -> f64 {
        let x = match p.left {
            Left::Matrix { row, step } => a[start + i * row + k * step],
            Left::Window { window: v, channels, pixel } => {
                let (tap, c) = (k / channels, k % channels);
                let here = v.positions();
                let Some(at) = under(&v, i % here, tap) else { return 0.0 };
                a[(i / here * v.pixels() + at) * pixel + start + c]
            }
        };
        f64::from(x) * f64::from(w(b, k, j))
    };
    (0..p.k).map(one).sum()
}

/// On shapes that fill no tile, one and several of them.
pub(super) fn of(form: Form) -> Vec<Trial> {
    let mut out = Vec::new();
    // Sums shorter than a tile of shared memory, and longer ones of which each of eight threads has a part.
    let long = if form.wide { [(8, 12), (60, 60)] } else { [(3, 7), (59, 59)] };
    for (m, n, (channels, k)) in [(1, 1, long[0]), (5, 9, long[1]), (37, 70, long[0]), (70, 37, long[0])] {
        let right = match form.right {
            0 => Right::Packed,
            1 => Right::PackedI8,
            3 => Right::Packed4 { block: 4 },
            4 => Right::PackedBf16,
            5 => Right::PackedF16,
            _ => Right::Plain { row: 2, step: 2 * k },
        };
        let window = Window {
            input: [1, 5, 6],
            kernel: [1, 3, 2],
            output: [1, 3, 4],
            stride: [1, 2, 1],
            dilation: [1, 1, 2],
            pad: [0, 1, 0],
        };
        let p = if form.window {
            let w = packed_len(channels * 6, n);
            Product {
                m: 2 * window.positions(),
                n,
                k: channels * window.taps(),
                left: Left::Window { window, channels, pixel: 2 * channels },
                right: if form.right == 2 { Right::Plain { row: n, step: 1 } } else { right },
                y_row: 2 * n,
                batch: Batch {
                    lengths: [1, 1, 1, 2],
                    a: [0, 0, 0, channels],
                    w: [0, 0, 0, if form.right == 2 { channels * 6 * n } else { w }],
                    y: [0, 0, 0, n],
                },
                bias: form.bias,
                residual: form.residual,
                alpha: 1.0,
                activation: form.activation,
                matrices: None,
            }
        } else {
            let a = m * (k + if form.wide { 4 } else { 1 });
            let w = if form.right == 2 { n * 2 * k } else { packed_len(k, n) };
            Product {
                m,
                n,
                k,
                left: Left::Matrix { row: k + if form.wide { 4 } else { 1 }, step: 1 },
                right,
                y_row: n,
                batch: if form.right == 3 {
                    Batch::one()
                } else {
                    Batch { lengths: [1, 2, 1, 3], a: [0, 0, 0, a], w: [0, w, 0, 0], y: [0, 3 * m * n, 0, m * n] }
                },
                bias: form.bias,
                residual: form.residual,
                alpha: 0.5,
                activation: form.activation,
                matrices: None,
            }
        };
        out.extend(trial(&p, form.maker));
    }
    out
}

fn trial(p: &Product, maker: Maker) -> Option<Trial> {
    let call = p.made_by(maker)?;
    let mut draws = Draws::new((p.m + p.n) as u64);
    let rounded = matches!(maker, Maker::Subgroups { .. });
    // What f16 has as it is, with one that is larger than it has.
    let exact = |v: Vec<f32>| if rounded { v.into_iter().map(|v| (64.0 * v).round() / 64.0).collect() } else { v };
    let mut a: Vec<f32> = exact(draws.floats(8192));
    if rounded {
        a[5] = -1e6;
    }
    let batches: usize = p.batch.lengths.iter().product();
    let codes: Vec<i8> = draws.bytes(1 << 16).into_iter().map(|b| b as i8).collect();
    let which = |b: usize| {
        let [_, l1, l2, l3] = p.batch.lengths;
        let at = [b / (l1 * l2 * l3), b / (l2 * l3) % l1, b / l3 % l2, b % l3];
        (at.iter().zip(p.batch.w).map(|(i, s)| i * s).sum::<usize>(), at)
    };
    // Weights of matrix number `q` of those there are.
    let unit = packed_len(p.k, p.n);
    let code = |q: usize, k: usize, j: usize| codes[(q * 7919 + k * 131 + j * 17) % codes.len()];
    let scale = draws.floats(2 * p.n);
    let mut operands = vec![bytes_of(&a)];
    let matrices = p.batch.lengths.iter().zip(p.batch.w).filter(|(_, s)| *s > 0).map(|(l, _)| *l).product::<usize>();
    let plain: Vec<f32> = exact(draws.floats(1 << 14));
    match p.right {
        Right::Packed => {
            operands.push((0..matrices).flat_map(|q| pack(p.k, p.n, |k, j| f32::from(code(q, k, j)) / 64.0)).collect())
        }
        Right::PackedBf16 => operands
            .push((0..matrices).flat_map(|q| pack_bf16(p.k, p.n, |k, j| f32::from(code(q, k, j)) / 64.0)).collect()),
        Right::PackedF16 => operands
            .push((0..matrices).flat_map(|q| pack_f16(p.k, p.n, |k, j| f32::from(code(q, k, j)) / 64.0)).collect()),
        Right::PackedI8 => {
            operands.push((0..matrices).flat_map(|q| pack_i8(p.k, p.n, |k, j| code(q, k, j))).collect());
            operands.push(bytes_of(&scale));
        }
        Right::Plain { .. } => operands.push(bytes_of(&plain)),
        Right::Packed4 { block } => {
            operands.push(pack_4(p.k, p.n, |k, j| code(0, k, j) as u8));
            let row = p.n.next_multiple_of(COLUMNS);
            operands.push(bytes_of(&plain[..p.k.div_ceil(block) * row]));
            operands.push(bytes_of(&plain[8192..][..p.k.div_ceil(block) * row]));
        }
    }
    let w = |b: usize, k: usize, j: usize| {
        let (start, _) = which(b);
        match p.right {
            // Of at most eight bits, which bf16 and f16 have.
            Right::Packed | Right::PackedBf16 | Right::PackedF16 => f32::from(code(start / unit, k, j)) / 64.0,
            Right::PackedI8 => f32::from(code(start / unit, k, j)),
            Right::Plain { row, step } => plain[start + k * row + j * step],
            Right::Packed4 { block } => {
                let at = k / block * p.n.next_multiple_of(COLUMNS) + j;
                f32::from(code(0, k, j) as u8 & 15) * plain[at] - plain[8192 + at]
            }
        }
    };
    let columns = if let Left::Window { .. } = p.left { batches * p.n } else { p.n };
    let bias = draws.floats(columns);
    if p.bias {
        operands.push(bytes_of(&bias));
    }
    let len = batches * p.m * p.n;
    let z = draws.floats(len);
    if p.residual {
        operands.push(bytes_of(&z));
    }
    let (f, constants) = of_activation(p.activation);
    let constants: Vec<f64> = constants.into_iter().map(f64::from).collect();
    let most = if rounded { half::f16::MAX.to_f32() } else { f32::MAX };
    let seen: Vec<f32> = a.iter().map(|v| v.clamp(-most, most)).collect();
    let mut y = vec![0.0f32; len];
    for b in 0..batches {
        let (_, at) = which(b);
        let start: usize = at.iter().zip(p.batch.y).map(|(i, s)| i * s).sum();
        let first = if let Left::Window { .. } = p.left { start } else { 0 };
        for i in 0..p.m {
            for j in 0..p.n {
                let to = start + i * p.y_row + j;
                let mut v = formula(p, &seen, &w, b, i, j) * f64::from(p.alpha);
                if p.right == Right::PackedI8 {
                    v *= f64::from(scale[first + j]);
                }
                v += if p.bias { f64::from(bias[first + j]) } else { 0.0 };
                v += if p.residual { f64::from(z[to]) } else { 0.0 };
                y[to] = (f.formula)(&[v], &constants) as f32;
            }
        }
    }
    // Sums of at most 360 products, of bytes of at most 128 each: what rounding does to them, some times over.
    let allowed = Allowed::Floats(if p.right == Right::PackedI8 { 5e-3 } else { 1e-4 });
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y)], allowed })
}
