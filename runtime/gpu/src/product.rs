//! Matrix products and convolutions with channels last, by register tiles.
use std::sync::Arc;

use hone_kernels::conv::Window;
use hone_kernels::epilogue::Activation;

use crate::functions::of_activation;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, filled, put_window, under};

/// Columns of a tile; packed weights are padded to it.
pub(crate) const COLUMNS: usize = 8;
/// Rows of a tile.
pub(crate) const ROWS: usize = 4;

/// What the right operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// [`pack`]ed floats.
    Packed,
    /// [`pack_i8`]ed bytes, with a scale a column as an operand.
    PackedI8,
    /// [`pack_4`]ed codes of four bits, with a scale and an offset a column and block of k as two operands: `code · scale -
    /// offset`. Of one matrix only.
    Packed4 {
        /// Length of a block, a multiple of 4.
        block: usize,
    },
    /// Floats anywhere: strides in elements, along k and along columns.
    Plain {
        /// From one k to the next.
        row: usize,
        /// From one column to the next.
        step: usize,
    },
}

/// The left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Rows of `k` elements.
    Matrix {
        /// From one row to the next.
        row: usize,
        /// From one k to the next.
        step: usize,
    },
    /// Positions of a window over `[batch, depth, height, width, groups · channels]`; `k` is `taps · channels`.
    Window {
        /// The window.
        window: Window,
        /// Channels of a group.
        channels: usize,
        /// Channels of a pixel.
        pixel: usize,
    },
}

/// Products that differ in where their operands begin: over heads, or over the groups of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lengths, outermost first.
    pub lengths: [usize; 4],
    /// Elements of the left operand along each.
    pub a: [usize; 4],
    /// Elements of the right operand along each: of packed ones, of their padded form.
    pub w: [usize; 4],
    /// Elements of the result along each.
    pub y: [usize; 4],
}

impl Batch {
    /// One product.
    pub fn one() -> Batch {
        Batch { lengths: [1; 4], a: [0; 4], w: [0; 4], y: [0; 4] }
    }
}

/// `y = f(alpha · a · w · scale + bias + z)`. Operands in the order a, w, scale (of packed bytes), bias, z.
#[derive(Clone, Debug)]
pub struct Product {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Length of the sum.
    pub k: usize,
    /// The left operand.
    pub left: Left,
    /// The right operand.
    pub right: Right,
    /// Elements from one row of the result to the next.
    pub y_row: usize,
    /// The products.
    pub batch: Batch,
    /// A bias a column.
    pub bias: bool,
    /// A tensor like the result to add.
    pub residual: bool,
    /// A factor of the sum.
    pub alpha: f32,
    /// What comes last.
    pub activation: Activation,
}

/// Elements of one packed matrix.
pub fn packed_len(k: usize, n: usize) -> usize {
    k * n.next_multiple_of(COLUMNS)
}

/// The bytes of a packed matrix of floats: `w(k, j)`.
pub fn pack(k: usize, n: usize, w: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let row = n.next_multiple_of(COLUMNS);
    (0..k * row).flat_map(|i| (if i % row < n { w(i / row, i % row) } else { 0.0 }).to_le_bytes()).collect()
}

/// The bytes of a packed matrix of bytes: `w(k, j)`.
pub fn pack_i8(k: usize, n: usize, w: impl Fn(usize, usize) -> i8) -> Vec<u8> {
    let row = n.next_multiple_of(COLUMNS);
    (0..k * row).map(|i| if i % row < n { w(i / row, i % row) as u8 } else { 0 }).collect()
}

/// The bytes of a packed matrix of four bits: `w(k, j)` below 16; eight columns of one k in a word.
pub fn pack_4(k: usize, n: usize, w: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let row = n.next_multiple_of(COLUMNS) / 2;
    let at = |k: usize, j: usize| if j < n { w(k, j) & 15 } else { 0 };
    (0..k * row).map(|i| at(i / row, i % row * 2) | at(i / row, i % row * 2 + 1) << 4).collect()
}

/// What the text depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    window: bool,
    /// The left operand is read four at a time.
    wide: bool,
    right: u8,
    bias: bool,
    residual: bool,
    activation: Activation,
}

impl Product {
    fn form(&self) -> Form {
        let fours = |v: &[usize]| v.iter().all(|v| v.is_multiple_of(4));
        let wide = match self.left {
            Left::Matrix { row, step } => step == 1 && fours(&[row, self.k]) && fours(&self.batch.a),
            Left::Window { channels, pixel, .. } => fours(&[channels, pixel]) && fours(&self.batch.a),
        };
        Form {
            window: matches!(self.left, Left::Window { .. }),
            wide,
            right: match self.right {
                Right::Packed => 0,
                Right::PackedI8 => 1,
                Right::Plain { .. } => 2,
                Right::Packed4 { .. } => 3,
            },
            bias: self.bias,
            residual: self.residual,
            activation: self.activation,
        }
    }

    /// The call; `None` when the sizes are more than a grid or a word has.
    pub fn call(&self) -> Option<Call> {
        let form = self.form();
        let word = |v: usize| u32::try_from(v).ok();
        let (unit, per) = (if form.wide { 4 } else { 1 }, 4);
        let mut params = vec![0u32; 52];
        let (w_row, w_step, w_unit) = match self.right {
            Right::Packed | Right::PackedI8 => (self.n.next_multiple_of(COLUMNS) / per, 0, per),
            Right::Plain { row, step } => (row, step, 1),
            Right::Packed4 { block } => {
                if self.batch != Batch::one() || form.window || block % 4 != 0 || block == 0 {
                    return None;
                }
                (self.n.next_multiple_of(COLUMNS) / 8, block, 1)
            }
        };
        let (a_row, a_step) = match self.left {
            Left::Matrix { row, step } => (row / unit, step),
            Left::Window { pixel, .. } => (pixel, 0),
        };
        let head = [self.m, self.n, self.k, w_row, a_row, a_step, w_step, self.y_row];
        for (p, v) in params.iter_mut().zip(head) {
            *p = word(v)?;
        }
        if let Left::Window { window: w, channels, .. } = self.left {
            put_window(&w, &mut params[8..32])?;
            params[50] = word(channels)?;
        }
        let a_unit = if form.window { 1 } else { unit };
        for axis in 0..4 {
            params[32 + axis] = word(self.batch.lengths[axis])?;
            params[36 + axis] = word(self.batch.a[axis] / a_unit)?;
            params[40 + axis] = word(self.batch.w[axis] / w_unit)?;
            params[44 + axis] = word(self.batch.y[axis])?;
        }
        let (_, constants) = of_activation(self.activation);
        for (p, c) in params[48..50].iter_mut().zip(constants) {
            *p = c.to_bits();
        }
        params[51] = self.alpha.to_bits();
        let groups = [self.n.div_ceil(8 * COLUMNS), self.m.div_ceil(8 * ROWS), self.batch.lengths.iter().product()];
        kernel(form).call(params, groups)
    }
}

fn kernel(form: Form) -> Arc<Kernel> {
    let Form { window, wide, right, bias, residual, activation } = form;
    let (function, _) = of_activation(activation);
    let flag = |b: bool, s: &'static str| if b { s } else { "" };
    let name = format!(
        "product-{}{}-{}{}{}-{}",
        if window { "window" } else { "matrix" },
        flag(wide, "4"),
        ["f32", "i8", "any", "i4"][usize::from(right)],
        flag(bias, "-bias"),
        flag(residual, "-sum"),
        function.name,
    );
    let mut bindings = String::new();
    let mut reads = 2;
    let mut bind = |name: &str, word: &str| {
        reads += 1;
        bindings += &format!("@group(0) @binding({reads}) var<storage, read_write> {name}: array<{word}>;\n");
    };
    if right == 1 {
        bind("S", "f32");
    }
    if right == 3 {
        bind("S", "vec4<f32>");
        bind("H", "vec4<f32>");
    }
    if bias {
        bind("B", "f32");
    }
    if residual {
        bind("Z", "f32");
    }
    bind("Y", "f32");
    let source = filled(
        include_str!("product.wgsl"),
        &[
            ("COMMON", include_str!("common.wgsl")),
            (
                "WEIGHTS",
                [
                    "rows of f32, padded to 8",
                    "rows of i8, padded to 8, with a scale a column",
                    "f32 anywhere",
                    "four bits, eight columns in a word, with a scale and an offset a column and block",
                ][usize::from(right)],
            ),
            ("A_WORD", if wide { "vec4<f32>" } else { "f32" }),
            ("W_WORD", ["vec4<f32>", "u32", "f32", "u32"][usize::from(right)]),
            ("BINDINGS", &bindings),
            ("ACTIVATION", function.text),
            ("ROWS", if window { POSITIONS } else { "" }),
            ("SCALE", flag(right == 1, " * S[column + j]")),
            ("BIAS", flag(bias, "    v += B[column + j];\n")),
            ("RESIDUAL", flag(residual, "    v += Z[at];\n")),
            ("FIRST_COLUMN", if window { "y_at" } else { "0u" }),
            ("LOOP", &body(form)),
            ("FINISH", &finish("y_at, SUM, first_column")),
        ],
    );
    Kernel::new(name, source, reads - 1, 1, move || trials(form))
}

pub(crate) const POSITIONS: &str = "
// Where the window of a position begins, and the first pixel of its image.
struct Position {
    image: u32,
    at: vec3<i32>,
}

fn position(i: u32) -> Position {
    let here = P.output.x * P.output.y * P.output.z;
    let o = i % here;
    let at = vec3<u32>(o / (P.output.y * P.output.z), o / P.output.z % P.output.y, o % P.output.z);
    return Position(i / here * P.input.x * P.input.y * P.input.z, vec3<i32>(at * P.stride.xyz) - P.pad.xyz);
}

// The first element of the pixel under a tap, or -1 outside.
fn pixel(p: Position, tap: vec3<u32>) -> i32 {
    let at = p.at + vec3<i32>(tap * P.dilation.xyz);
    if any(at < vec3<i32>()) || any(at >= vec3<i32>(P.input.xyz)) {
        return -1;
    }
    let v = vec3<u32>(at);
    return i32((p.image + (v.x * P.input.y + v.y) * P.input.z + v.z) * P.a_row);
}
";

/// `finish(row, column, …)` of each of a thread's elements, whose sum stands in place of `SUM` in the other arguments.
pub(crate) fn finish(others: &str) -> String {
    let mut out = String::new();
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            let lane = ["x", "y", "z", "w"][c % 4];
            let others = others.replace("SUM", &format!("s{r}{}.{lane}", c / 4));
            out += &format!("    finish(i + {r}u, j + {c}u, {others});\n");
        }
    }
    out
}

/// The weights of row `w`, then their products with one element of each row.
fn step(right: u8, lane: &str, pad: &str) -> String {
    let mut out = String::new();
    let load = |half: usize| match right {
        0 => format!("W[w + {half}u]"),
        1 => format!("vec4<f32>(unpack4xI8(W[w + {half}u]))"),
        3 => {
            let shift = |b: usize| format!("word >> {}u", 16 * half + 4 * b);
            let lanes = format!("vec4<u32>({}, {}, {}, {})", shift(0), shift(1), shift(2), shift(3));
            format!("vec4<f32>({lanes} & vec4<u32>(15u)) * g{half} - h{half}")
        }
        _ => {
            let one = |c: usize| format!("W[w + min(j + {}u, P.n - 1u) * P.w_step]", 4 * half + c);
            format!("vec4<f32>({}, {}, {}, {})", one(0), one(1), one(2), one(3))
        }
    };
    out += &format!("{pad}{{\n");
    if right == 3 {
        out += &format!("{pad}    let word = W[w];\n");
    }
    out += &format!("{pad}    let w0 = {};\n{pad}    let w1 = {};\n", load(0), load(1));
    for r in 0..ROWS {
        out += &format!("{pad}    s{r}0 += a{r}{lane} * w0;\n{pad}    s{r}1 += a{r}{lane} * w1;\n");
    }
    out += &format!("{pad}    w += P.w_row;\n{pad}}}\n");
    out
}

fn body(form: Form) -> String {
    let Form { window, wide, right, .. } = form;
    let mut out = String::new();
    let start = ["w_at + (j >> 2u)", "w_at + (j >> 2u)", "w_at", "w_at + (j >> 3u)"][usize::from(right)];
    out += &format!("    var w = {start};\n");
    let steps = |pad: &str| -> String {
        if wide {
            [".x", ".y", ".z", ".w"].iter().map(|lane| step(right, lane, pad)).collect()
        } else {
            step(right, "", pad)
        }
    };
    let by = if wide { 4 } else { 1 };
    if window {
        for r in 0..ROWS {
            out += &format!("    let q{r} = position(min(i + {r}u, P.m - 1u));\n");
        }
        out += "    for (var t = 0u; t < P.window.x * P.window.y * P.window.z; t++) {\n";
        out += "        let tap = vec3<u32>(t / (P.window.y * P.window.z), t / P.window.z % P.window.y, t % P.window.z);\n";
        for r in 0..ROWS {
            out += &format!("        let p{r} = pixel(q{r}, tap);\n");
        }
        out += &format!("        for (var c = 0u; c < P.channels; c += {by}u) {{\n");
        for r in 0..ROWS {
            let (none, unit) = if wide { ("vec4<f32>()", " >> 2u") } else { ("0.0", "") };
            out += &format!(
                "            let a{r} = select({none}, A[(u32(max(p{r}, 0)) + a_at + c){unit}], p{r} >= 0);\n"
            );
        }
        out += &steps("            ");
        out += "        }\n    }\n";
    } else {
        for r in 0..ROWS {
            out += &format!("    let r{r} = a_at + min(i + {r}u, P.m - 1u) * P.a_row;\n");
        }
        out += &format!("    for (var k = 0u; k < P.k; k += {by}u) {{\n");
        for r in 0..ROWS {
            let at = if wide { format!("r{r} + (k >> 2u)") } else { format!("r{r} + k * P.a_step") };
            out += &format!("        let a{r} = A[{at}];\n");
        }
        if right == 3 {
            out += "        let block = k / P.w_step * P.w_row * 2u + (j >> 2u);\n";
            for half in 0..2 {
                out +=
                    &format!("        let g{half} = S[block + {half}u];\n        let h{half} = H[block + {half}u];\n");
            }
        }
        out += &steps("        ");
        out += "    }\n";
    }
    out
}

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

fn trials(form: Form) -> Vec<Trial> {
    let mut out = Vec::new();
    let (channels, k) = if form.wide { (8, 12) } else { (3, 7) };
    for (m, n) in [(1, 1), (5, 9), (37, 70)] {
        let right = match form.right {
            0 => Right::Packed,
            1 => Right::PackedI8,
            3 => Right::Packed4 { block: 4 },
            _ => Right::Plain { row: 2, step: 2 * 12 },
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
                right: if right == (Right::Plain { row: 2, step: 24 }) {
                    Right::Plain { row: n, step: 1 }
                } else {
                    right
                },
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
            }
        } else {
            let a = m * (k + if form.wide { 4 } else { 1 });
            let w = if form.right == 2 { n * 24 } else { packed_len(k, n) };
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
            }
        };
        out.extend(trial(&p));
    }
    out
}

fn trial(p: &Product) -> Option<Trial> {
    let call = p.call()?;
    let mut draws = Draws::new((p.m + p.n) as u64);
    let a = draws.floats(4096);
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
    let plain: Vec<f32> = draws.floats(1 << 14);
    match p.right {
        Right::Packed => {
            operands.push((0..matrices).flat_map(|q| pack(p.k, p.n, |k, j| f32::from(code(q, k, j)) / 64.0)).collect())
        }
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
            Right::Packed => f32::from(code(start / unit, k, j)) / 64.0,
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
    let mut y = vec![0.0f32; len];
    for b in 0..batches {
        let (_, at) = which(b);
        let start: usize = at.iter().zip(p.batch.y).map(|(i, s)| i * s).sum();
        let first = if let Left::Window { .. } = p.left { start } else { 0 };
        for i in 0..p.m {
            for j in 0..p.n {
                let to = start + i * p.y_row + j;
                let mut v = formula(p, &a, &w, b, i, j) * f64::from(p.alpha);
                if p.right == Right::PackedI8 {
                    v *= f64::from(scale[first + j]);
                }
                v += if p.bias { f64::from(bias[first + j]) } else { 0.0 };
                v += if p.residual { f64::from(z[to]) } else { 0.0 };
                y[to] = (f.formula)(&[v], &constants) as f32;
            }
        }
    }
    // Sums of at most 48 products of at most 128: an absolute error of 48 · 48 · 128 · 2^-24 / 2 at the very most.
    let allowed = Allowed::Floats(if p.right == Right::PackedI8 { 5e-3 } else { 1e-4 });
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y)], allowed })
}
