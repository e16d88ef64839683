// 64 rows by 16 of k, four of k in a vector, and 16 of k by 64 columns.
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> w_tile: array<vec4<f32>, 256>;

// Columns 4q to 4q + 3 of row k.
fn weights(w_at: u32, k: u32, q: u32) -> vec4<f32> {
{{FOUR}}
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(local_invocation_index) me: u32,
    @builtin(local_invocation_id) here: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let i = group.y * 64u + here.y * 4u;
    let j = group.x * 64u + here.x * 4u;
    let a_at = batch_of(group.z, P.a_batch);
    let w_at = batch_of(group.z, P.w_batch);
    let y_at = batch_of(group.z, P.y_batch);
    let first_column = {{FIRST_COLUMN}};
    // What this thread brings: four of k of a row of a, and four columns of a row of w.
    let row = min(group.y * 64u + (me >> 2u), P.m - 1u);
    let part = (me & 3u) * 4u;
    let q = min(group.x * 16u + (me & 15u), (P.n - 1u) >> 2u);
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
{{TAPS}}        for (var c = 0u; c < P.channels; c += 16u) {
            // Behind the last channel it does not matter what is read.
            a_tile[me] = {{A}};
            w_tile[me] = weights(w_at, {{TAP_K}}min(c + (me >> 4u), P.channels - 1u), q);
            workgroupBarrier();
            // Not 4: compilers write out what is repeated a known number of times.
            let fours = min(4u, (P.channels - c) >> 2u);
            for (var f = 0u; f < fours; f++) {
                let a0 = a_tile[here.y * 16u + f];
                let a1 = a_tile[here.y * 16u + 4u + f];
                let a2 = a_tile[here.y * 16u + 8u + f];
                let a3 = a_tile[here.y * 16u + 12u + f];
{{STEP}}            }
            workgroupBarrier();
        }
    }
{{FINISH}}}
