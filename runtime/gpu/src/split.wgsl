// Of eight lanes and eight tiles, those of a tile side by side.
var<workgroup> parts: array<vec4<{{TYPE}}>, {{PARTS}}>;

@compute @workgroup_size(8, 8)
fn main(@builtin(local_invocation_id) here: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = here.y;
    let column = (group.x * 8u + here.x) * 8u;
    // All must come to the barrier: those beyond the last column sum the last ones once more.
    let j = min(column, (P.n - 1u) / 8u * 8u);
    let i = group.y * {{TILE_ROWS}}u;
    let z = group.z;
{{SETUP}}    // An eighth of what is under each tap, in whole units.
    let span = ({{LENGTH}} + 8u * {{UNIT}}u - 1u) / (8u * {{UNIT}}u) * {{UNIT}}u;
    let first = min(lane * span, {{LENGTH}});
    let last = min(first + span, {{LENGTH}});
{{LOOP}}    let mine = (lane * 8u + here.x) * {{VECTORS}}u;
{{KEEP}}    workgroupBarrier();
    if lane < {{VECTORS}}u {
        var sum = vec4<{{TYPE}}>();
        for (var l = 0u; l < 8u; l++) {
            sum += parts[(l * 8u + here.x) * {{VECTORS}}u + lane];
        }
        let row = i + lane / 2u;
        let at = column + lane % 2u * 4u;
{{FINISH}}    }
}
