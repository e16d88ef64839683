// {{SIDE}} rows by {{DEPTH}} of k, and {{DEPTH}} of k by {{SIDE}} columns.
var<workgroup> a_tile: array<f16, {{TILE}}>;
var<workgroup> w_tile: array<f16, {{TILE}}>;
var<workgroup> sums: array<f32, {{SQUARE}}>;

// Columns 4q to 4q + 3 of row k.
fn weights(w_at: u32, k: u32, q: u32) -> vec4<f32> {
{{FOUR}}
}

// Rounded; what is larger than f16 has its largest, and what is no number stays none.
fn halves(v: vec4<f32>) -> vec4<f16> {
    let most = vec4<f32>(65504.0);
    let none = (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return vec4<f16>(select(clamp(v, -most, most), v, none));
}

@compute @workgroup_size({{THREADS}})
fn main(
    @builtin(local_invocation_index) me: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
) {
    let a_at = batch_of(group.z, P.a_batch);
    let w_at = batch_of(group.z, P.w_batch);
    let y_at = batch_of(group.z, P.y_batch);
    let first_column = {{FIRST_COLUMN}};
    // What this thread brings: four of k of two rows of a, and four columns of two rows of w.
    let part = (me & 7u) * 4u;
    let row0 = min(group.y * {{SIDE}}u + (me >> 3u), P.m - 1u);
    let row1 = min(group.y * {{SIDE}}u + (me >> 3u) + {{SIDE}}u / 2u, P.m - 1u);
    let a_to0 = me * 4u;
    let a_to1 = a_to0 + {{TILE}}u / 2u;
    let q = min(group.x * {{QUADS}}u + me % {{QUADS}}u, (P.n - 1u) >> 2u);
    let step0 = me / {{QUADS}}u;
    let step1 = step0 + {{DEPTH}}u / 2u;
    let w_to0 = me * 4u;
    let w_to1 = w_to0 + {{TILE}}u / 2u;
    // Where the matrices begin that this subgroup makes, one beside the other.
    let rows = subgroup * {{EACH}}u / {{ACROSS}}u * {{MATRIX}}u;
    let columns = subgroup * {{EACH}}u % {{ACROSS}}u * {{MATRIX}}u;
{{ZEROS}}{{TAPS}}        for (var c = 0u; c < P.channels; c += {{DEPTH}}u) {
            // Behind the last channel a is nothing, and what w is there does not matter.
{{BRING}}            workgroupBarrier();
{{MULTIPLY}}            workgroupBarrier();
        }
    }
{{STORE}}    workgroupBarrier();
    for (var e = me; e < {{SQUARE}}u; e += {{THREADS}}u) {
        finish(group.y * {{SIDE}}u + e / {{SIDE}}u, group.x * {{SIDE}}u + e % {{SIDE}}u, y_at, sums[e], first_column);
    }
}
