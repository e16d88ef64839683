// Of eight lanes and eight tiles, those of a tile side by side.
var<workgroup> parts: array<vec4<f32>, {{PARTS}}>;

@compute @workgroup_size(8, 8)
fn main(@builtin(local_invocation_id) here: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = here.y;
    let column = (group.x * 8u + here.x) * 8u;
    // All must come to the barrier: those beyond the last column sum the last ones once more.
    let j = min(column, (P.n - 1u) / 8u * 8u);
    let i = group.y * {{TILE_ROWS}}u;
    let a_at = batch_of(group.z, P.a_batch);
    let w_at = batch_of(group.z, P.w_batch);
    let y_at = batch_of(group.z, P.y_batch);
    let first_column = {{FIRST_COLUMN}};
    let span = (P.channels + 31u) / 32u * 4u;
    let first = min(lane * span, P.channels);
    let last = min(first + span, P.channels);
{{LOOP}}    let mine = (lane * 8u + here.x) * {{VECTORS}}u;
{{KEEP}}    workgroupBarrier();
    if lane < {{VECTORS}}u {
        var sum = vec4<f32>();
        for (var l = 0u; l < 8u; l++) {
            sum += parts[(l * 8u + here.x) * {{VECTORS}}u + lane];
        }
        let row = i + lane / 2u;
        let at = column + lane % 2u * 4u;
        finish(row, at, y_at, sum.x, first_column);
        finish(row, at + 1u, y_at, sum.y, first_column);
        finish(row, at + 2u, y_at, sum.z, first_column);
        finish(row, at + 3u, y_at, sum.w, first_column);
    }
}
