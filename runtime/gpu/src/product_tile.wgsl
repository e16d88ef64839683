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
    let first = 0u;
    let last = P.channels;
{{LOOP}}{{FINISH}}}
