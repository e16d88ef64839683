// 64 rows by 16 words of k, and 16 words of k by 64 columns.
var<workgroup> a_tile: array<u32, 1024>;
var<workgroup> w_tile: array<vec4<u32>, 256>;

@compute @workgroup_size(16, 16)
fn main(
    @builtin(local_invocation_index) me: u32,
    @builtin(local_invocation_id) here: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let i = group.y * 64u + here.y * 4u;
    let j = group.x * 64u + here.x * 4u;
    let factor = {{FACTOR}};
    // What this thread brings: four words of a row of a, and four columns of a word of w.
    let row = min(group.y * 64u + (me >> 2u), P.m - 1u);
    let part = (me & 3u) * 4u;
    let q = group.z * P.w_group + min(group.x * 16u + (me & 15u), (P.n - 1u) >> 2u);
    var s0 = vec4<i32>();
    var s1 = vec4<i32>();
    var s2 = vec4<i32>();
    var s3 = vec4<i32>();
{{TAPS}}        for (var first = 0u; first < P.words; first += 16u) {
            for (var b = 0u; b < 4u; b++) {
                // Behind the row it does not matter what is read.
                let c = min(first + part + b, P.words - 1u);
                a_tile[me * 4u + b] = {{CODES_AT}};
            }
            let k = first + (me >> 4u);
            w_tile[me] = W[q + (t * P.words + min(k, P.words - 1u)) * P.w_row];
            workgroupBarrier();
            // Not 16: compilers write out what is repeated a known number of times, and choke on it.
            let words = min(16u, P.words - first);
            for (var f = 0u; f < words; f++) {
                let w = w_tile[f * 16u + here.x];
                s0 += four(a_tile[here.y * 64u + 0u + f], w);
                s1 += four(a_tile[here.y * 64u + 16u + f], w);
                s2 += four(a_tile[here.y * 64u + 32u + f], w);
                s3 += four(a_tile[here.y * 64u + 48u + f], w);
            }
            workgroupBarrier();
        }
    }
{{FINISH}}}
