//! The texts of [`super::Product`].
use std::sync::Arc;

use super::{COLUMNS, Form, Maker, Manner, ROWS, THREADS, trials};
use crate::functions::of_activation;
use crate::kernel::{Kernel, Matrices, Needs, filled};

pub(super) fn kernel(form: Form) -> Arc<Kernel> {
    let Form { maker, window, wide, right, bias, residual, activation } = form;
    let (function, _) = of_activation(activation);
    let flag = |b: bool, s: &'static str| if b { s } else { "" };
    let name = format!(
        "product-{}{}-{}{}{}-{}{}",
        if window { "window" } else { "matrix" },
        flag(wide, "4"),
        ["f32", "i8", "any", "i4", "bf16", "f16"][usize::from(right)],
        flag(bias, "-bias"),
        flag(residual, "-sum"),
        function.name,
        maker.name(),
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
        bind("BIAS", "f32");
    }
    if residual {
        bind("Z", "f32");
    }
    bind("Y", "f32");
    let first_column = if window { "y_at" } else { "0u" };
    let main = match maker {
        Maker::Threads(Manner::Tile) => filled(
            include_str!("../product_tile.wgsl"),
            &[
                ("FIRST_COLUMN", first_column),
                ("LOOP", &body(form, ROWS)),
                ("FINISH", &finish("y_at, SUM, first_column")),
            ],
        ),
        Maker::Threads(Manner::Split(rows)) => {
            let setup = format!(
                "    let a_at = batch_of(z, P.a_batch);\n    let w_at = batch_of(z, P.w_batch);\n    \
                 let y_at = batch_of(z, P.y_batch);\n    let first_column = {first_column};\n"
            );
            let split = Split {
                ty: "f32",
                setup: &setup,
                length: "P.channels",
                unit: "4",
                sums: &body(form, rows),
                finish: "y_at, SUM, first_column",
            };
            split.main(rows)
        }
        Maker::Threads(Manner::Shared) => shared(form, first_column),
        Maker::Subgroups { side, of } => matrices(form, first_column, side, of),
    };
    let source = filled(
        include_str!("../product.wgsl"),
        &[
            ("MAIN", &main),
            (
                "ENABLE",
                flag(matches!(maker, Maker::Subgroups { .. }), "enable f16;\nenable wgpu_cooperative_matrix;\n"),
            ),
            ("COMMON", include_str!("../common.wgsl")),
            (
                "WEIGHTS",
                [
                    "rows of f32, padded to 8",
                    "rows of i8, padded to 8, with a scale a column",
                    "f32 anywhere",
                    "four bits, eight columns in a word, with a scale and an offset a column and block",
                    "rows of bf16, padded to 8",
                    "rows of f16, padded to 8",
                ][usize::from(right)],
            ),
            ("MANNER", maker.told()),
            ("A_WORD", if wide { "vec4<f32>" } else { "f32" }),
            ("W_WORD", ["vec4<f32>", "u32", "f32", "u32", "vec2<u32>", "vec2<u32>"][usize::from(right)]),
            ("BINDINGS", &bindings),
            ("HALVES", ["", "", "", "", BF16, F16][usize::from(right)]),
            ("ACTIVATION", function.text),
            ("ROWS", if window { POSITIONS } else { "" }),
            ("SCALE", flag(right == 1, " * S[column + j]")),
            ("BIAS", flag(bias, "    v += BIAS[column + j];\n")),
            ("RESIDUAL", flag(residual, "    v += Z[at];\n")),
        ],
    );
    let needs = match maker {
        Maker::Threads(_) => Needs::Nothing,
        Maker::Subgroups { of, .. } => Needs::Matrices(of),
    };
    let halves = right == 5 || needs != Needs::Nothing;
    Kernel::asking(needs, halves, name, source, [reads - 1, 1], move || trials::of(form))
}

/// Functions of a window.
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
fn step(right: u8, rows: usize, lane: &str, pad: &str) -> String {
    let mut out = String::new();
    let load = |half: usize| match right {
        0 => format!("W[w + {half}u]"),
        1 => format!("vec4<f32>(unpack4xI8(W[w + {half}u]))"),
        4 | 5 => format!("floats(W[w + {half}u])"),
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
    for r in 0..rows {
        out += &format!("{pad}    s{r}0 += a{r}{lane} * w0;\n{pad}    s{r}1 += a{r}{lane} * w1;\n");
    }
    out += &format!("{pad}    w += P.w_row;\n{pad}}}\n");
    out
}

/// The sums of a tile of `rows` rows, over what lies between `first` and `last` under each tap.
fn body(form: Form, rows: usize) -> String {
    let Form { window, wide, right, .. } = form;
    let mut out = String::new();
    for r in 0..rows {
        out += &format!("    var s{r}0 = vec4<f32>();\n    var s{r}1 = vec4<f32>();\n");
    }
    let four = "w_at + (j >> 2u)";
    let start = [four, four, "w_at", "w_at + (j >> 3u)", four, four][usize::from(right)];
    let steps = |pad: &str| -> String {
        if wide {
            [".x", ".y", ".z", ".w"].iter().map(|lane| step(right, rows, lane, pad)).collect()
        } else {
            step(right, rows, "", pad)
        }
    };
    let by = if wide { 4 } else { 1 };
    if window {
        for r in 0..rows {
            out += &format!("    let q{r} = position(min(i + {r}u, P.m - 1u));\n");
        }
        out += TAPS;
        for r in 0..rows {
            out += &format!("        let p{r} = pixel(q{r}, tap);\n");
        }
        out += &format!("        var w = {start} + (t * P.channels + first) * P.w_row;\n");
        out += &format!("        for (var c = first; c < last; c += {by}u) {{\n");
        for r in 0..rows {
            let (none, unit) = if wide { ("vec4<f32>()", " >> 2u") } else { ("0.0", "") };
            out += &format!(
                "            let a{r} = select({none}, X[(u32(max(p{r}, 0)) + a_at + c){unit}], p{r} >= 0);\n"
            );
        }
        out += &steps("            ");
        out += "        }\n    }\n";
    } else {
        for r in 0..rows {
            out += &format!("    let r{r} = a_at + min(i + {r}u, P.m - 1u) * P.a_row;\n");
        }
        out += &format!("    var w = {start} + first * P.w_row;\n");
        out += &format!("    for (var k = first; k < last; k += {by}u) {{\n");
        for r in 0..rows {
            let at = if wide { format!("r{r} + (k >> 2u)") } else { format!("r{r} + k * P.a_step") };
            out += &format!("        let a{r} = X[{at}];\n");
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

const BF16: &str = "
// Four numbers in bf16, the low half of a word first.
fn floats(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}
";

const F16: &str = "
// Four numbers in f16, the low half of a word first.
fn floats(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}
";

/// Over the taps of a window.
pub(crate) const TAPS: &str = "    for (var t = 0u; t < P.window.x * P.window.y * P.window.z; t++) {
        let tap = vec3<u32>(t / (P.window.y * P.window.z), t / P.window.z % P.window.y, t % P.window.z);
";

/// What of a text in the manner [`Manner::Split`] is its own: the type of the sums, what comes before them, what is summed under a
/// tap and in what units, the sums themselves, and the arguments of `finish` behind row and column, with `SUM` among them.
pub(crate) struct Split<'a> {
    pub(crate) ty: &'a str,
    pub(crate) setup: &'a str,
    pub(crate) length: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) sums: &'a str,
    pub(crate) finish: &'a str,
}

impl Split<'_> {
    /// The entry point, of tiles of so many rows.
    pub(crate) fn main(&self, rows: usize) -> String {
        let vectors = 2 * rows;
        let keep: String = (0..vectors).map(|e| format!("    parts[mine + {e}u] = s{}{};\n", e / 2, e % 2)).collect();
        let one = |(c, lane): (usize, &&str)| {
            let others = self.finish.replace("SUM", &format!("sum.{lane}"));
            format!("        finish(row, at + {c}u, {others});\n")
        };
        let finish: String = LANES.iter().enumerate().map(one).collect();
        filled(
            include_str!("../split.wgsl"),
            &[
                ("TYPE", self.ty),
                ("PARTS", &(64 * vectors).to_string()),
                ("TILE_ROWS", &rows.to_string()),
                ("VECTORS", &vectors.to_string()),
                ("SETUP", self.setup),
                ("LENGTH", self.length),
                ("UNIT", self.unit),
                ("LOOP", self.sums),
                ("KEEP", &keep),
                ("FINISH", &finish),
            ],
        )
    }
}

const LANES: [&str; 4] = ["x", "y", "z", "w"];

/// `finish(row, column, …)` of the four rows by four columns of a thread that shares what is read, as [`finish`].
pub(crate) fn finish_square(others: &str) -> String {
    let one = |e: usize| {
        let others = others.replace("SUM", &format!("s{}.{}", e / 4, LANES[e % 4]));
        format!("    finish(i + {}u, j + {}u, {others});\n", e / 4, e % 4)
    };
    (0..16).map(one).collect()
}

/// Four columns of one row of the right operand.
fn four(right: u8) -> &'static str {
    let halves = "    return floats(W[w_at + k * P.w_row + q]);";
    [
        "    return W[w_at + k * P.w_row + q];",
        "    return vec4<f32>(unpack4xI8(W[w_at + k * P.w_row + q]));",
        "    let w = w_at + k * P.w_row;
    let j = q * 4u;
    let end = P.n - 1u;
    return vec4<f32>(
        W[w + j * P.w_step],
        W[w + min(j + 1u, end) * P.w_step],
        W[w + min(j + 2u, end) * P.w_step],
        W[w + min(j + 3u, end) * P.w_step],
    );",
        "    let word = W[w_at + k * P.w_row + (q >> 1u)] >> ((q & 1u) * 16u);
    let code = vec4<f32>(vec4<u32>(word, word >> 4u, word >> 8u, word >> 12u) & vec4<u32>(15u));
    let block = k / P.w_step * P.w_row * 2u + q;
    return code * S[block] - H[block];",
        halves,
        halves,
    ][usize::from(right)]
}

/// What a group that shares what is read does before it reads for the rows `row{i}`, under each tap, and where its k is.
fn under_taps(form: Form, rows: &[&str]) -> (String, &'static str) {
    if !form.window {
        return ("    {\n".into(), "");
    }
    let of = |f: &dyn Fn(&str) -> String| rows.iter().map(|i| f(i)).collect::<String>();
    let origins = of(&|i| format!("    let origin{i} = position(row{i});\n"));
    let pixels = of(&|i| format!("        let p{i} = pixel(origin{i}, tap);\n"));
    (format!("{origins}{TAPS}{pixels}"), "t * P.channels + ")
}

/// Four elements of row `row{i}` of the left operand, from `at` on.
fn left(form: Form, i: &str, at: &str) -> String {
    match form.window {
        true => format!("select(vec4<f32>(), X[(u32(max(p{i}, 0)) + a_at + {at}) >> 2u], p{i} >= 0)"),
        false => format!("X[a_at + row{i} * P.a_row + (({at}) >> 2u)]"),
    }
}

fn shared(form: Form, first_column: &str) -> String {
    let (taps, tap_k) = under_taps(form, &[""]);
    let mut step = String::new();
    for (k, lane) in LANES.iter().enumerate() {
        step += &format!("                let w{k} = w_tile[f * 64u + {}u + here.x];\n", 16 * k);
        for r in 0..4 {
            step += &format!("                s{r} += a{r}.{lane} * w{k};\n");
        }
    }
    filled(
        include_str!("../product_shared.wgsl"),
        &[
            ("FOUR", four(form.right)),
            ("FIRST_COLUMN", first_column),
            ("TAPS", &taps),
            ("A", &left(form, "", "min(c + part, P.channels - 4u)")),
            ("TAP_K", tap_k),
            ("STEP", &step),
            ("FINISH", &finish_square("y_at, SUM, first_column")),
        ],
    )
}

/// Steps of k that a group of [`Maker::Subgroups`] reads at once.
const DEPTH: usize = 32;

fn matrices(form: Form, first_column: &str, side: usize, of: Matrices) -> String {
    let threads = THREADS * side;
    let each = of.per_subgroup(side, threads).unwrap_or(1);
    let (t, line) = (of.side, side / of.side);
    let (taps, tap_k) = under_taps(form, &["0", "1"]);
    // Of the left operand a thread brings two vectors, and of the right one two.
    let mut bring = String::new();
    for i in 0..2 {
        let value = left(form, &i.to_string(), "min(c + part, P.channels - 4u)");
        bring += &format!(
            "            let a{i} = halves(select(vec4<f32>(), {value}, c + part < P.channels));
            let w{i} = halves(weights(w_at, {tap_k}min(c + step{i}, P.channels - 1u), q));\n"
        );
        for (l, lane) in LANES.iter().enumerate() {
            bring += &format!(
                "            a_tile[a_to{i} + {l}u] = a{i}.{lane};\n            w_tile[w_to{i} + {l}u] = w{i}.{lane};\n"
            );
        }
    }
    let matrix = |role: &str, scalar: &str| format!("coop_mat{t}x{t}<{scalar}, {role}>");
    let zeros: String = (0..each).map(|p| format!("    var s{p} = {}();\n", matrix("C", "f32"))).collect();
    let (mut multiply, mut store) = (String::new(), String::new());
    for k in (0..DEPTH).step_by(t) {
        let a = format!("coopLoadT<{}>(&a_tile[rows * {DEPTH}u + {k}u], {DEPTH}u)", matrix("A", "f16"));
        multiply += &format!("            let m{k} = {a};\n");
        for p in 0..each {
            let at = format!("&w_tile[{}u + columns]", k * side + p * t);
            let w = format!("coopLoadT<{}>({at}, {side}u)", matrix("B", "f16"));
            multiply += &format!("            s{p} = coopMultiplyAdd(m{k}, {w}, s{p});\n");
        }
    }
    for p in 0..each {
        store += &format!("    coopStoreT(s{p}, &sums[rows * {side}u + columns + {}u], {side}u);\n", p * t);
    }
    let number = |n: usize| n.to_string();
    filled(
        include_str!("../product_matrices.wgsl"),
        &[
            ("FOUR", four(form.right)),
            ("FIRST_COLUMN", first_column),
            ("SIDE", &number(side)),
            ("DEPTH", &number(DEPTH)),
            ("TILE", &number(side * DEPTH)),
            ("SQUARE", &number(side * side)),
            ("THREADS", &number(threads)),
            ("QUADS", &number(side / 4)),
            ("EACH", &number(each)),
            ("ACROSS", &number(line)),
            ("MATRIX", &number(t)),
            ("TAPS", &taps),
            ("BRING", &bring),
            ("ZEROS", &zeros),
            ("MULTIPLY", &multiply),
            ("STORE", &store),
        ],
    )
}
