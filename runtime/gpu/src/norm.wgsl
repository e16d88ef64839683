// {{WHAT}}
//
// Of y = (x - mean) · inverse · scale + bias along rows of `length` elements, `mean` 0 where it is not centred.
// Sums are taken by a fixed tree or in a fixed order, so that equal operands give equal bits.

struct Params {
    rows: u32,
    length: u32,
    centred: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

{{REDUCE}}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group.y * grid.x + group.x;
{{BODY}}
}
