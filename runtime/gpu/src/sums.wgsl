// y[i, j] = Σ_k (a[i, k] - zero) · w[k, j] + offset, exact in 32 bits.
//
// a is 8-bit codes, four of one row in a word; {{A}} w is signed bytes, four k of one column in a word and four columns in
// a vector, padded with zeros. Rows are those of a matrix or, with k = tap · channels +
// channel, the positions of a window over images with channels last, which outside of them holds `zero`.
// Unsigned codes are multiplied as a - 128, so offset[j] comes times (128 - zero): once by the caller, or here from `zero`.
// {{MANNER}}

struct Params {
    m: u32,
    n: u32,
    // Words of the sum: of a window those of one tap.
    words: u32,
    w_row: u32,
    a_row: u32,
    y_row: u32,
    zero: u32,
    flip: u32,
    {{WINDOW}}
    // Bytes of a row, or channels of a group.
    length: u32,
    // Of the groups of a convolution: bytes of a, vectors of w, elements of y.
    a_group: u32,
    w_group: u32,
    y_group: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> A: array<u32>;
@group(0) @binding(2) var<storage, read_write> W: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> O: array<i32>;
{{BINDINGS}}

// The four codes from byte `at` on, of which `left` belong to the row; flipped to signed ones.
fn codes(at: u32, left: u32) -> u32 {
{{CODES}}
}

{{ROWS}}

fn four(a: u32, w: vec4<u32>) -> vec4<i32> {
    return vec4<i32>(dot4I8Packed(a, w.x), dot4I8Packed(a, w.y), dot4I8Packed(a, w.z), dot4I8Packed(a, w.w));
}

fn finish(i: u32, j: u32, group: u32, factor: i32, sum: i32) {
    if i < P.m && j < P.n {
        let column = group * P.y_group + j;
        Y[i * P.y_row + column] = sum + O[column] * factor;
    }
}

{{MAIN}}
