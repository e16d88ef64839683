// Of eight lanes and eight tiles, those of a tile side by side.
var<workgroup> parts: array<vec4<i32>, {{PARTS}}>;

@compute @workgroup_size(8, 8)
fn main(@builtin(local_invocation_id) here: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = here.y;
    let column = (group.x * 8u + here.x) * 8u;
    // All must come to the barrier: those beyond the last column sum the last ones once more.
    let j = min(column, (P.n - 1u) / 8u * 8u);
    let i = group.y * {{TILE_ROWS}}u;
    let z = group.z;
    let factor = {{FACTOR}};
    let w_at = z * P.w_group + (j >> 2u);
    let span = (P.words + 7u) / 8u;
    let first = min(lane * span, P.words);
    let last = min(first + span, P.words);
{{LOOP}}    let mine = (lane * 8u + here.x) * {{VECTORS}}u;
{{KEEP}}    workgroupBarrier();
    if lane < {{VECTORS}}u {
        var sum = vec4<i32>();
        for (var l = 0u; l < 8u; l++) {
            sum += parts[(l * 8u + here.x) * {{VECTORS}}u + lane];
        }
        let row = i + lane / 2u;
        let at = column + lane % 2u * 4u;
        finish(row, at, z, factor, sum.x);
        finish(row, at + 1u, z, factor, sum.y);
        finish(row, at + 2u, z, factor, sum.z);
        finish(row, at + 3u, z, factor, sum.w);
    }
}
