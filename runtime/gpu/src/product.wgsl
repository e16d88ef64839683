// y[b, i, j] = f(Σ_k a[b, i, k] · w[b, k, j] · scale[j] + bias[j] + z[b, i, j])
//
// A thread makes 4 rows by 8 columns. Rows are those of a matrix, or the positions of a convolution with channels last,
// whose sum runs over the taps of its window and the channels of a group: k = tap · channels + channel.
// w is {{WEIGHTS}}. No shared memory: on some devices that is plain memory.

{{COMMON}}

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
    channels: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> A: array<{{A_WORD}}>;
@group(0) @binding(2) var<storage, read_write> W: array<{{W_WORD}}>;
{{BINDINGS}}

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

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let j = at.x * 8u;
    let i = at.y * 4u;
    if i >= P.m || j >= P.n {
        return;
    }
    let a_at = batch_of(at.z, P.a_batch);
    let w_at = batch_of(at.z, P.w_batch);
    let y_at = batch_of(at.z, P.y_batch);
    let first_column = {{FIRST_COLUMN}};
    var s00 = vec4<f32>();
    var s01 = vec4<f32>();
    var s10 = vec4<f32>();
    var s11 = vec4<f32>();
    var s20 = vec4<f32>();
    var s21 = vec4<f32>();
    var s30 = vec4<f32>();
    var s31 = vec4<f32>();
{{LOOP}}
{{FINISH}}}
