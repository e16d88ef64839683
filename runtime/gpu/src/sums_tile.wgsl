@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let j = at.x * 8u;
    let i = at.y * 4u;
    let z = at.z;
    if i >= P.m || j >= P.n {
        return;
    }
    let factor = {{FACTOR}};
    let w_at = z * P.w_group + (j >> 2u);
    let first = 0u;
    let last = P.words;
{{LOOP}}{{FINISH}}}
