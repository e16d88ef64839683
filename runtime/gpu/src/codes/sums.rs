//! Sums of products of 8-bit codes, exact in 32 bits, in the manners of [`crate::product`].
use std::sync::Arc;

use hone_kernels::conv::Window;

use super::{pixel, window, words};
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, filled, put_window};
use crate::product::{COLUMNS, Manner, POSITIONS, ROWS, Split, TAPS, finish, finish_square};

/// The left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Rows of `k` codes, one after another.
    Matrix,
    /// Positions of a window over `[batch, depth, height, width, groups · channels]`.
    Window {
        /// The window.
        window: Window,
        /// Channels of a group.
        channels: usize,
        /// Groups.
        groups: usize,
    },
}

/// Where the zero point of the left operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Known; the offsets are whole.
    Known(u8),
    /// In the first byte of the fourth operand; the offsets are sums of the columns of the weights. Of a matrix only.
    Told,
}

/// Sums of products of codes, as `i32`. Operands: codes, packed weights, offsets, the zero point where it is told.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Rows.
    pub m: usize,
    /// Columns of a group.
    pub n: usize,
    /// Length of the sum.
    pub k: usize,
    /// The codes are `i8`.
    pub signed: bool,
    /// The left operand.
    pub left: Left,
    /// Its zero point.
    pub zero: Zero,
}

/// Bytes of packed weights of one group.
pub fn packed_len(k: usize, run: usize, n: usize) -> usize {
    k.div_ceil(run.max(1)) * run.div_ceil(4) * n.next_multiple_of(COLUMNS) * 4
}

/// Packed weights of one group: `w(k, j)`, `k = tap · channels + channel`, `run` of them in a row (all of a matrix's, the
/// channels of a window's) padded to whole words.
pub fn pack(k: usize, run: usize, n: usize, w: impl Fn(usize, usize) -> i8) -> Vec<u8> {
    let words = run.div_ceil(4);
    let columns = n.next_multiple_of(COLUMNS);
    let mut out = Vec::with_capacity(packed_len(k, run, n));
    for tap in 0..k.div_ceil(run.max(1)) {
        for word in 0..words {
            for j in 0..columns {
                out.extend((0..4).map(|b| {
                    let c = word * 4 + b;
                    if c < run && j < n { w(tap * run + c, j) as u8 } else { 0 }
                }));
            }
        }
    }
    out
}

/// What the sum of a column's weights counts for where the codes have that zero point.
pub fn factor(signed: bool, zero: u8) -> i32 {
    if signed { -i32::from(zero as i8) } else { 128 - i32::from(zero) }
}

impl Sums {
    /// Bytes of a row, or channels of a group.
    fn length(&self) -> usize {
        if let Left::Window { channels, .. } = self.left { channels } else { self.k }
    }

    /// The call; `None` when it is larger than a grid. Whole numbers are summed to the same in any order.
    pub fn call(&self) -> Option<Call> {
        let groups = if let Left::Window { groups, .. } = self.left { groups } else { 1 };
        let (m, n, length) = (self.m, self.n, self.length());
        let call = self.in_manner(Manner::Tile)?;
        let split = Manner::splits(m, n, groups, length).then(|| self.in_manner(Manner::split(m))).flatten();
        let shared = Manner::shares(m, n, length).then(|| self.in_manner(Manner::Shared)).flatten();
        Some(call.or(split).or(shared))
    }

    /// The call in a manner.
    fn in_manner(&self, manner: Manner) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        let columns = self.n.next_multiple_of(COLUMNS);
        let length = self.length();
        let (groups, pixel) = match self.left {
            Left::Matrix => (1, self.k),
            Left::Window { channels, groups, .. } => (groups, channels * groups),
        };
        let (words, wide) = (length.div_ceil(4), length.is_multiple_of(4));
        if self.zero == Zero::Told && self.left != Left::Matrix {
            return None;
        }
        let taps = if let Left::Window { window, .. } = self.left { window.taps() } else { 1 };
        let flip = if self.signed { 0 } else { 0x8080_8080 };
        let mut params = vec![0u32; 36];
        params[..6].copy_from_slice(&[
            word(self.m)?,
            word(self.n)?,
            word(words)?,
            word(columns / 4)?,
            word(pixel)?,
            word(self.n * groups)?,
        ]);
        params[6] = if let Zero::Known(z) = self.zero { u32::from(z) * 0x0101_0101 } else { 0 };
        params[7] = flip;
        if let Left::Window { window: w, .. } = self.left {
            put_window(&w, &mut params[8..32])?;
        }
        params[32..].copy_from_slice(&[word(length)?, word(length)?, word(taps * words * columns / 4)?, word(self.n)?]);
        let told = self.zero == Zero::Told;
        let form = Form { manner, window: self.left != Left::Matrix, wide, signed: self.signed, told };
        let (columns, rows) = manner.tile();
        kernel(form).call(params, [self.n.div_ceil(columns), self.m.div_ceil(rows), groups])
    }
}

#[derive(Clone, Copy)]
struct Form {
    manner: Manner,
    window: bool,
    wide: bool,
    signed: bool,
    told: bool,
}

fn kernel(form: Form) -> Arc<Kernel> {
    let Form { manner, window, wide, signed, told } = form;
    let name = format!(
        "sums-{}{}-{}{}{}",
        if window { "window" } else { "matrix" },
        if wide { "4" } else { "" },
        if signed { "i8" } else { "u8" },
        if told { "-told" } else { "" },
        manner.name(),
    );
    let (bindings, factor) = if told {
        let z = if signed { "-extractBits(i32(Z[0]), 0u, 8u)" } else { "128 - i32(Z[0] & 255u)" };
        (
            "@group(0) @binding(4) var<storage, read_write> Z: array<u32>;\n@group(0) @binding(5) var<storage, read_write> Y: array<i32>;",
            z,
        )
    } else {
        ("@group(0) @binding(4) var<storage, read_write> Y: array<i32>;", "1")
    };
    let codes = if wide {
        "    return A[at >> 2u] ^ P.flip;"
    } else {
        "    var word = 0u;
    for (var b = 0u; b < min(left, 4u); b++) {
        let byte = at + b;
        word |= extractBits(A[byte >> 2u], (byte & 3u) * 8u, 8u) << (b * 8u);
    }
    return word ^ P.flip;"
    };
    let main = match manner {
        Manner::Tile => {
            let values =
                [("FACTOR", factor), ("LOOP", &sums_of(window, ROWS)), ("FINISH", &finish("at.z, factor, SUM"))];
            filled(include_str!("../sums_tile.wgsl"), &values)
        }
        Manner::Split(rows) => {
            let setup = format!("    let factor = {factor};\n    let w_at = z * P.w_group + (j >> 2u);\n");
            let split = Split {
                ty: "i32",
                setup: &setup,
                length: "P.words",
                unit: "1",
                sums: &sums_of(window, rows),
                finish: "z, factor, SUM",
            };
            split.main(rows)
        }
        Manner::Shared => {
            let (taps, a) = if window {
                let taps = format!("    let origin = position(row);\n{TAPS}        let p = pixel(origin, tap);\n");
                let a = "select(P.zero ^ P.flip, codes(u32(max(p, 0)) + group.z * P.a_group + c * 4u, P.length - c * 4u), p >= 0)";
                (taps, a)
            } else {
                ("    let t = 0u;\n    {\n".into(), "codes(row * P.a_row + c * 4u, P.length - c * 4u)")
            };
            let finish = finish_square("group.z, factor, SUM");
            let values = [("FACTOR", factor), ("TAPS", &taps), ("CODES_AT", a), ("FINISH", &finish)];
            filled(include_str!("../sums_shared.wgsl"), &values)
        }
    };
    let source = filled(
        include_str!("../sums.wgsl"),
        &[
            ("MAIN", &main),
            ("MANNER", manner.told()),
            ("A", if wide { "rows of whole words." } else { "rows of any length." }),
            ("BINDINGS", bindings),
            ("CODES", codes),
            ("ROWS", if window { POSITIONS } else { "" }),
        ],
    );
    Kernel::new(name, source, if told { 4 } else { 3 }, 1, move || trials(form))
}

/// The sums of a tile of `rows` rows, over the words between `first` and `last` under each tap.
fn sums_of(window: bool, rows: usize) -> String {
    let mut out = String::new();
    for r in 0..rows {
        out += &format!("    var s{r}0 = vec4<i32>();\n    var s{r}1 = vec4<i32>();\n");
    }
    let step = |out: &mut String, pad: &str| {
        *out += &format!("{pad}let w0 = W[w];\n{pad}let w1 = W[w + 1u];\n{pad}w += P.w_row;\n");
        for r in 0..rows {
            *out += &format!("{pad}s{r}0 += four(a{r}, w0);\n{pad}s{r}1 += four(a{r}, w1);\n");
        }
    };
    if window {
        for r in 0..rows {
            out += &format!("    let q{r} = position(min(i + {r}u, P.m - 1u));\n");
        }
        out += TAPS;
        for r in 0..rows {
            out += &format!("        let p{r} = pixel(q{r}, tap);\n");
        }
        out += "        var w = w_at + (t * P.words + first) * P.w_row;\n";
        out += "        for (var c = first; c < last; c++) {\n";
        for r in 0..rows {
            out += &format!(
                "            let a{r} = select(P.zero ^ P.flip, codes(u32(max(p{r}, 0)) + z * P.a_group + c * 4u, \
                 P.length - c * 4u), p{r} >= 0);\n"
            );
        }
        step(&mut out, "            ");
        out += "        }\n    }\n";
    } else {
        out += "    var w = w_at + first * P.w_row;\n    for (var k = first; k < last; k++) {\n";
        for r in 0..rows {
            out +=
                &format!("        let a{r} = codes(min(i + {r}u, P.m - 1u) * P.a_row + k * 4u, P.length - k * 4u);\n");
        }
        step(&mut out, "        ");
        out += "    }\n";
    }
    out
}

fn trials(form: Form) -> Vec<Trial> {
    let mut out = Vec::new();
    // Of the longer ones each of eight threads has a part.
    let lengths = if form.wide { [8, 92] } else { [7, 89] };
    for (m, n, length) in [(1, 1, lengths[0]), (5, 9, lengths[1]), (37, 70, lengths[0]), (70, 37, lengths[1])] {
        let mut draws = Draws::new((m * n) as u64);
        let groups = if form.window { 2 } else { 1 };
        let (left, m, k) = if form.window {
            (Left::Window { window: window(), channels: length, groups }, 2 * window().positions(), 6 * length)
        } else {
            (Left::Matrix, m, length)
        };
        let a = draws.bytes(if form.window { 2 * window().pixels() * groups * length } else { m * k });
        let w: Vec<i8> = draws.bytes(groups * k * n).into_iter().map(|b| b as i8).collect();
        let at = |g: usize, k: usize, j: usize| w[(g * n + j) * 6 * length % (groups * n * k).max(1) + k];
        let at = |g: usize, kk: usize, j: usize| if form.window { at(g, kk, j) } else { w[j * k + kk] };
        let zero: u8 = if form.signed { (-3i8) as u8 } else { 131 };
        let code = |b: u8| if form.signed { i32::from(b as i8) } else { i32::from(b) };
        let column = |g: usize, j: usize| (0..k).map(|kk| i32::from(at(g, kk, j))).sum::<i32>();
        let bias = |c: usize| if form.told { 0 } else { c as i32 * 3 - 20 };
        let mut y = vec![0; m * n * groups];
        for (e, y) in y.iter_mut().enumerate() {
            let (i, c) = (e / (n * groups), e % (n * groups));
            let (g, j) = (c / n, c % n);
            let term = |kk: usize| {
                let x = match left {
                    Left::Matrix => code(a[i * k + kk]),
                    Left::Window { window, channels, groups } => match pixel(&window, i, kk / channels) {
                        Some(p) => code(a[p * channels * groups + g * channels + kk % channels]),
                        None => code(zero),
                    },
                };
                (x - code(zero)) * i32::from(at(g, kk, j))
            };
            *y = (0..k).map(term).sum::<i32>() + bias(c);
        }
        let run = if form.window { length } else { k };
        let packed: Vec<u8> = (0..groups).flat_map(|g| pack(k, run, n, |kk, j| at(g, kk, j))).collect();
        let offset: Vec<i32> = (0..n * groups)
            .map(|c| column(c / n, c % n) * if form.told { 1 } else { factor(form.signed, zero) } + bias(c))
            .collect();
        let mut operands = vec![a, packed, words(&offset)];
        operands.extend(form.told.then(|| vec![zero, 0, 0, 0]));
        let known = if form.told { Zero::Told } else { Zero::Known(zero) };
        let sums = Sums { m, n, k, signed: form.signed, left, zero: known };
        let Some(call) = sums.in_manner(form.manner) else { continue };
        out.push(Trial { call, before: vec![], operands, results: vec![words(&y)], allowed: Allowed::Exact });
    }
    out
}
