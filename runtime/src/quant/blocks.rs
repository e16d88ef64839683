//! `int4`: weights of four bits in blocks of their own scale, for language models and embeddings.
//!
//! `MatMul` and `Gemm` become `MatMulNBits`, a table of embeddings becomes `GatherBlockQuantized` (both of ONNX Runtime's
//! `com.microsoft` domain, the form its own tools write); what has no such form gets 8-bit weights. Where they cost too much
//! both get codes of 8 bits. Activations stay `f32`.
use super::edit::{Edit, tensor};
use super::observe::Watch;
use super::weight::snr;
use super::{Context, Layer, Scheme, weights};
use crate::ops::{Attr, MICROSOFT};
use crate::tensor::{Data, Tensor};

/// Blockwise 4-bit.
pub(super) static INT4: Scheme = Scheme {
    name: "int4",
    doc: "4-bit weights in blocks: MatMulNBits, GatherBlockQuantized for embeddings; 8-bit weights elsewhere",
    calibrated: false,
    widens: true,
    opset: 1,
    watch: |_| Watch::new(),
    apply,
};

/// How weights are divided and fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Elements that share a scale: 32, 64 or 128.
    pub size: usize,
    /// No zero point: code 8 stands for 0.
    pub symmetric: bool,
    /// How the scale is found.
    pub fit: Fit,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks { size: 32, symmetric: true, fit: Fit::Mse }
    }
}

/// How the scale of a block is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The one that just holds the block.
    Range,
    /// The one with the smallest squared error.
    Mse,
    /// The one with the smallest sum of `|error|^0.7`, by half-quadratic splitting: large weights may be off for the sake of
    /// the many. Source: Badri and Shaji, Half-Quadratic Quantization, 2023.
    Hqq,
}

const BITS: usize = 4;
/// Block of what gets 8 bits: its scales are fine enough.
const WIDE_BLOCK: usize = 128;
const WIDE_MIDDLE: f32 = 128.0;
const LARGEST: f32 = 15.0;
const MIDDLE: u8 = 8;
/// Elements below which a weight is left as it is.
const FEWEST: usize = 1024;

fn apply(edit: &mut Edit, context: &Context<'_>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for i in 0..edit.graph.nodes.len() {
        if context.kept(edit, i) {
            continue;
        }
        let done = match edit.standard(i).map(|(op, _)| op) {
            Some("MatMul" | "Gemm") => product(edit, context, i),
            Some("Gather") => table(edit, context, i),
            _ => None,
        };
        layers.extend(done.or_else(|| weights::quantise(edit, context, i)));
    }
    layers
}

fn product(edit: &mut Edit, context: &Context<'_>, i: usize) -> Option<Layer> {
    let (op, attrs) = edit.standard(i)?;
    let x = edit.graph.nodes[i].inputs[0].filter(|&x| edit.graph.values[x].constant.is_none())?;
    let (id, w) = edit.floats(i, 1)?;
    let [rows, columns] = *w.shape() else { return None };
    if w.len() < FEWEST {
        return None;
    }
    let gemm = op == "Gemm";
    let int = |name: &str| gemm && attrs.int(name, 0).unwrap_or(0) != 0;
    let factor = |name: &str| if gemm { attrs.float(name, 1.0).unwrap_or(1.0) } else { 1.0 };
    if int("transA") {
        return None;
    }
    let (k, n) = if int("transB") { (columns, rows) } else { (rows, columns) };
    let given = w.as_f32().ok()?;
    // [N, K], as MatMulNBits takes it.
    let at = |r: usize, c: usize| factor("alpha") * if int("transB") { given[r * k + c] } else { given[c * n + r] };
    let values: Vec<f32> = (0..n * k).map(|e| at(e / k, e % k)).collect();
    let bias = match edit.graph.nodes[i].inputs.get(2).copied().flatten() {
        None => None,
        Some(_) => {
            let (b, t) = edit.floats(i, 2).filter(|(_, t)| t.len() == n)?;
            let scaled: Vec<f32> = t.as_f32().ok()?.iter().map(|v| v * factor("beta")).collect();
            let name = edit.name(b);
            Some(if t.shape().len() == 1 && factor("beta") == 1.0 {
                b
            } else {
                edit.constant(&format!("{name}_row"), tensor(&[n], scaled))
            })
        }
    };
    let (packed, bits, b) = divided(edit, context, i, &values, k);
    let blocks = k.div_ceil(b.size);
    let name = edit.name(id);
    let codes = Tensor::new(&[n, blocks, b.size * bits / 8], Data::U8(packed.codes.clone())).ok()?;
    let operands = [
        Some(x),
        Some(edit.constant(&format!("{name}_Q{bits}"), codes)),
        Some(edit.constant(&format!("{name}_scales"), tensor(&[n, blocks], packed.scales.clone()))),
        zeros(edit, &name, &packed, &[n, blocks.div_ceil(2)], b),
        None,
        bias,
    ];
    let layer = Layer { bits: bits as u32, ..edit.layer(i, values.len(), Some(snr(&values, &packed.reals))) };
    let to = edit.graph.nodes[i].outputs[0]?;
    edit.graph.nodes[i].outputs[0] = None;
    let used = operands.iter().rposition(Option::is_some).map_or(0, |p| p + 1);
    let lengths = [
        ("K", Attr::Int(k as i64)),
        ("N", Attr::Int(n as i64)),
        ("bits", Attr::Int(bits as i64)),
        ("block_size", Attr::Int(b.size as i64)),
    ];
    edit.node((MICROSOFT, "MatMulNBits"), &format!("{}_Q{bits}", layer.name), &operands[..used], &[to], lengths);
    Some(layer)
}

fn table(edit: &mut Edit, context: &Context<'_>, i: usize) -> Option<Layer> {
    let (_, attrs) = edit.standard(i)?;
    let (id, w) = edit.floats(i, 0)?;
    let [rows, width] = *w.shape() else { return None };
    let indices = edit.graph.nodes[i].inputs.get(1).copied().flatten()?;
    // Two codes are a byte.
    if attrs.int("axis", 0) != Ok(0) || w.len() < FEWEST || width % 2 != 0 {
        return None;
    }
    let values = w.as_f32().ok()?;
    let (packed, bits, b) = divided(edit, context, i, values, width);
    let blocks = width.div_ceil(b.size);
    let name = edit.name(id);
    // Without the codes that fill the last block of a row.
    let (line, used) = (blocks * b.size * bits / 8, width * bits / 8);
    let codes: Vec<u8> = packed.codes.chunks_exact(line).flat_map(|l| &l[..used]).copied().collect();
    let codes = Tensor::new(&[rows, used], Data::U8(codes)).ok()?;
    let operands = [
        Some(edit.constant(&format!("{name}_Q{bits}"), codes)),
        Some(indices),
        Some(edit.constant(&format!("{name}_scales"), tensor(&[rows, blocks], packed.scales.clone()))),
        zeros(edit, &name, &packed, &[rows, blocks.div_ceil(2)], b),
    ];
    let layer = Layer { bits: bits as u32, ..edit.layer(i, values.len(), Some(snr(values, &packed.reals))) };
    let to = edit.graph.nodes[i].outputs[0]?;
    edit.graph.nodes[i].outputs[0] = None;
    let used = if b.symmetric { 3 } else { 4 };
    let attrs = [
        ("bits", Attr::Int(bits as i64)),
        ("block_size", Attr::Int(b.size as i64)),
        ("gather_axis", Attr::Int(0)),
        ("quantize_axis", Attr::Int(1)),
    ];
    edit.node((MICROSOFT, "GatherBlockQuantized"), &format!("{}_Q{bits}", layer.name), &operands[..used], &[to], attrs);
    Some(layer)
}

/// The weight of node `i` in rows of `k` elements, bits of its codes, and how they are divided: wide where that is asked.
fn divided(edit: &Edit, context: &Context<'_>, i: usize, values: &[f32], k: usize) -> (Packed, usize, Blocks) {
    if context.wide.contains(&edit.graph.nodes[i].name) {
        let b = Blocks { size: WIDE_BLOCK, symmetric: true, fit: Fit::Range };
        return (Packed::wide(values, k), 8, b);
    }
    let b = context.settings.blocks;
    (Packed::of(values, k, b), BITS, b)
}

fn zeros(edit: &mut Edit, name: &str, packed: &Packed, shape: &[usize], b: Blocks) -> Option<usize> {
    if b.symmetric {
        return None;
    }
    let zeros = Tensor::new(shape, Data::U8(packed.zeros.clone())).ok()?;
    Some(edit.constant(&format!("{name}_zero_points"), zeros))
}

/// The operands of `MatMulNBits` for a weight.
pub(crate) struct Repacked {
    pub(crate) codes: Tensor,
    pub(crate) scales: Tensor,
    pub(crate) zeros: Option<Tensor>,
}

/// A weight of rows of `k` elements in codes of `bits`, blocks of `size`; `None` for a form this module does not make.
pub(crate) fn repack(values: &[f32], k: usize, bits: usize, size: usize, symmetric: bool) -> Option<Repacked> {
    let packed = match bits {
        4 if size.is_multiple_of(2) && size > 0 => Packed::of(values, k, Blocks { size, symmetric, fit: Fit::Mse }),
        8 if symmetric && size == WIDE_BLOCK => Packed::wide(values, k),
        _ => return None,
    };
    let (rows, blocks) = (values.len() / k.max(1), k.div_ceil(size));
    let zeros = match symmetric {
        true => None,
        false => Some(Tensor::new(&[rows, blocks.div_ceil(2)], Data::U8(packed.zeros)).ok()?),
    };
    Some(Repacked {
        codes: Tensor::new(&[rows, blocks, size * bits / 8], Data::U8(packed.codes)).ok()?,
        scales: tensor(&[rows, blocks], packed.scales),
        zeros,
    })
}

/// A weight of rows of `k` elements, in blocks along each row.
struct Packed {
    /// Two codes a byte, the first in the low bits; each row filled up to whole blocks with codes of 0.
    codes: Vec<u8>,
    /// One a block.
    scales: Vec<f32>,
    /// Two a byte, each row on its own.
    zeros: Vec<u8>,
    /// What the codes stand for.
    reals: Vec<f32>,
}

impl Packed {
    fn of(values: &[f32], k: usize, b: Blocks) -> Packed {
        let blocks = k.div_ceil(b.size);
        let rows = values.len() / k.max(1);
        let mut out = Packed {
            codes: Vec::with_capacity(rows * blocks * b.size / 2),
            scales: Vec::with_capacity(rows * blocks),
            zeros: Vec::with_capacity(rows * blocks.div_ceil(2)),
            reals: Vec::with_capacity(values.len()),
        };
        let mut codes = vec![0u8; b.size];
        for row in values.chunks_exact(k) {
            let mut zeros = Vec::with_capacity(blocks);
            for block in row.chunks(b.size) {
                let (scale, zero) = fit(block, b);
                codes.fill(zero);
                for (q, &v) in codes.iter_mut().zip(block) {
                    *q = code(v, scale, zero);
                    out.reals.push((f32::from(*q) - f32::from(zero)) * scale);
                }
                out.codes.extend(codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4));
                out.scales.push(scale);
                zeros.push(zero);
            }
            out.zeros.extend(zeros.chunks(2).map(|z| z[0] | z.get(1).copied().unwrap_or(MIDDLE) << 4));
        }
        out
    }
}

impl Packed {
    /// Codes of 8 bits, symmetric about 128.
    fn wide(values: &[f32], k: usize) -> Packed {
        let mut out = Packed { codes: Vec::new(), scales: Vec::new(), zeros: Vec::new(), reals: Vec::new() };
        for row in values.chunks_exact(k.max(1)) {
            for block in row.chunks(WIDE_BLOCK) {
                let largest = block.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
                let scale = if largest < f32::MIN_POSITIVE * 128.0 { 1.0 } else { largest / (WIDE_MIDDLE - 1.0) };
                let q = |v: &f32| ((v / scale).round_ties_even() + WIDE_MIDDLE).clamp(0.0, 255.0);
                out.reals.extend(block.iter().map(|v| (q(v) - WIDE_MIDDLE) * scale));
                out.codes.extend(block.iter().map(|v| q(v) as u8));
                out.codes.extend(std::iter::repeat_n(WIDE_MIDDLE as u8, WIDE_BLOCK - block.len()));
                out.scales.push(scale);
            }
        }
        out
    }
}

fn code(v: f32, scale: f32, zero: u8) -> u8 {
    ((v / scale).round_ties_even() + f32::from(zero)).clamp(0.0, LARGEST) as u8
}

/// Scale and zero point of a block.
fn fit(w: &[f32], b: Blocks) -> (f32, u8) {
    let finite = || w.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite().fold((0f32, 0f32), |(l, h), v| (l.min(v), h.max(v)));
    let extreme = if -low > high { low } else { high };
    if extreme.abs() < f32::MIN_POSITIVE * 16.0 {
        return (1.0, MIDDLE);
    }
    let start = if b.symmetric {
        // The far end is code 0, which stands for -8 steps: a scale may be negative.
        (extreme / -f32::from(MIDDLE), MIDDLE)
    } else {
        let scale = (high - low) / LARGEST;
        (scale, (-low / scale).round_ties_even().clamp(0.0, LARGEST) as u8)
    };
    match b.fit {
        Fit::Range => start,
        Fit::Mse => squared(w, start, b.symmetric),
        Fit::Hqq => half_quadratic(w, start),
    }
}

/// The best of scales around the first one, each refined to the least squares of its own codes.
fn squared(w: &[f32], (start, zero): (f32, u8), symmetric: bool) -> (f32, u8) {
    let error = |scale: f32, zero: u8| -> f32 {
        w.iter().map(|&v| (v - (f32::from(code(v, scale, zero)) - f32::from(zero)) * scale).powi(2)).sum()
    };
    let mut best = (error(start, zero), start, zero);
    let signs: &[f32] = if symmetric { &[1.0, -1.0] } else { &[1.0] };
    let zeros = if symmetric { zero..=zero } else { zero.saturating_sub(1)..=(zero + 1).min(15) };
    for zero in zeros {
        for &sign in signs {
            for step in 0..12u8 {
                let scale = sign * start * (1.12 - 0.05 * f32::from(step));
                let (mut over, mut under) = (0f32, 0f32);
                for &v in w {
                    let q = f32::from(code(v, scale, zero)) - f32::from(zero);
                    over += q * v;
                    under += q * q;
                }
                let scale = if under > 0.0 && over != 0.0 { over / under } else { scale };
                let e = error(scale, zero);
                if e < best.0 {
                    best = (e, scale, zero);
                }
            }
        }
    }
    (best.1, best.2)
}

/// Norm, weight of the quadratic term and its growth, and rounds, as the method's authors have them.
const NORM: f32 = 0.7;
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;
const ROUNDS: usize = 20;

/// Splits the error into what is allowed to be large and the rest, to which the scale is fitted.
fn half_quadratic(w: &[f32], (start, zero): (f32, u8)) -> (f32, u8) {
    let norm = |scale: f32| -> f32 {
        w.iter().map(|&v| (v - (f32::from(code(v, scale, zero)) - f32::from(zero)) * scale).abs().powf(NORM)).sum()
    };
    // The method's constants are for weights of about one.
    let unit = start.abs() * f32::from(MIDDLE);
    let shrink = |e: f32, beta: f32| {
        let e = e / unit;
        let left = e.abs() - (e.abs() + 1e-8).powf(NORM - 1.0) / beta;
        e.signum() * left.max(0.0) * unit
    };
    let mut best = (norm(start), start);
    let (mut scale, mut beta) = (start, BETA);
    for _ in 0..ROUNDS {
        let (mut over, mut under) = (0f32, 0f32);
        for &v in w {
            let q = f32::from(code(v, scale, zero)) - f32::from(zero);
            let allowed = shrink(v - q * scale, beta);
            over += q * (v - allowed);
            under += q * q;
        }
        if under == 0.0 || over == 0.0 {
            break;
        }
        scale = over / under;
        beta *= KAPPA;
        let e = norm(scale);
        if e < best.0 {
            best = (e, scale);
        }
    }
    (best.1, zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(n: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        (0..n).map(|_| (0..6).map(|_| uniform()).sum::<f32>() - 2.9).collect()
    }

    fn error(values: &[f32], reals: &[f32], power: f32) -> f32 {
        values.iter().zip(reals).map(|(a, b)| (a - b).abs().powf(power)).sum()
    }

    #[test]
    fn codes_unpack_to_what_they_stand_for_and_rows_are_filled_with_zero() {
        for symmetric in [true, false] {
            let b = Blocks { size: 32, symmetric, fit: Fit::Range };
            let values = weights(3 * 40);
            let packed = Packed::of(&values, 40, b);
            assert_eq!((packed.codes.len(), packed.scales.len(), packed.zeros.len()), (3 * 32, 6, 3));
            for (e, real) in packed.reals.iter().enumerate() {
                let (row, k) = (e / 40, e % 40);
                let at = row * 64 + k;
                let q = packed.codes[at / 2] >> (at % 2 * 4) & 15;
                let zero = packed.zeros[row] >> (k / 32 * 4) & 15;
                assert_eq!(*real, (f32::from(q) - f32::from(zero)) * packed.scales[row * 2 + k / 32]);
                // Half a step, and at the near end of a symmetric range one.
                assert!((real - values[e]).abs() <= packed.scales[row * 2 + k / 32].abs() * 1.001, "{e}");
            }
            let filling = packed.codes[20] & 15;
            assert_eq!(filling, packed.zeros[0] >> 4);
        }
    }

    #[test]
    fn each_fit_is_best_in_its_own_measure() {
        let values = weights(128 * 64);
        for symmetric in [true, false] {
            let of = |fit| Packed::of(&values, 128, Blocks { size: 64, symmetric, fit }).reals;
            let (range, mse, hqq) = (of(Fit::Range), of(Fit::Mse), of(Fit::Hqq));
            assert!(error(&values, &mse, 2.0) < 0.95 * error(&values, &range, 2.0));
            assert!(error(&values, &mse, 2.0) < error(&values, &hqq, 2.0));
            assert!(error(&values, &hqq, NORM) < error(&values, &range, NORM));
        }
    }

    #[test]
    fn a_block_of_zeros_and_one_of_a_single_weight_are_exact() {
        for symmetric in [true, false] {
            for fit in [Fit::Range, Fit::Mse, Fit::Hqq] {
                let b = Blocks { size: 32, symmetric, fit };
                assert_eq!(Packed::of(&[0.0; 32], 32, b).reals, [0.0; 32]);
                let mut one = [0.0; 32];
                one[5] = -3.0;
                let reals = Packed::of(&one, 32, b).reals;
                assert!((reals[5] + 3.0).abs() < 1e-6 && reals[6] == 0.0, "{symmetric} {fit:?} {reals:?}");
            }
        }
    }
}
