// y[b, i, j] = f(Σ_k a[b, i, k] · w[b, k, j] · scale[j] + bias[j] + z[b, i, j])
//
// Rows are those of a matrix, or the positions of a convolution with channels last, whose sum runs over the taps of its
// window and the channels of a group: k = tap · channels + channel. w is {{WEIGHTS}}.
// {{MANNER}}

{{ENABLE}}{{COMMON}}

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Words from one row of w to the next.
    w_row: u32,
    a_row: u32,
    a_step: u32,
    w_step: u32,
    y_row: u32,
    // Of a convolution.
    {{WINDOW}}
    // Of a batch: lengths, outermost first, and the strides of a, w and y; of a convolution the groups.
    batch: vec4<u32>,
    a_batch: vec4<u32>,
    w_batch: vec4<u32>,
    y_batch: vec4<u32>,
    c0: f32,
    c1: f32,
    // What is summed under one tap: the channels of a group, all of k of a matrix.
    channels: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<{{A_WORD}}>;
@group(0) @binding(2) var<storage, read_write> W: array<{{W_WORD}}>;
{{BINDINGS}}{{HALVES}}

fn activated(a: f32) -> f32 {
    return {{ACTIVATION}};
}

fn batch_of(number: u32, strides: vec4<u32>) -> u32 {
    let last = number % P.batch.w;
    let third = number / P.batch.w % P.batch.z;
    let second = number / (P.batch.w * P.batch.z) % P.batch.y;
    let first = number / (P.batch.w * P.batch.z * P.batch.y);
    return dot(vec4<u32>(first, second, third, last), strides);
}

{{ROWS}}

fn finish(i: u32, j: u32, y_at: u32, sum: f32, column: u32) {
    if i >= P.m || j >= P.n {
        return;
    }
    var v = sum * P.alpha{{SCALE}};
{{BIAS}}    let at = y_at + i * P.y_row + j;
{{RESIDUAL}}    Y[at] = activated(v);
}

{{MAIN}}
