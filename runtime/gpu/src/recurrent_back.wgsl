// {{WHAT}} backwards through all steps of a sequence; a group of 256 threads takes one sequence, a thread every 256th unit.
//
// A is what every step went through on the way there ({{TAPE}}), row a_base + z_step · t + z_batch · n. R is
// [G · H, H]: what unit k of the state adds to gate j. DY are the gradients by Y. S{{CELLS}} are the gradients by the last state{{CELL}}
// before, and by the first one behind. The results are the gradients by the gates before their activation (D){{THROUGH}}, a row
// of d_row elements a step and sequence.

{{COMMON}}

struct Params {
    steps: u32,
    units: u32,
    reverse: u32,
    z_step: u32,
    z_batch: u32,
    // Elements of DY from one step and sequence to the next, and the first of this direction; the same of a state.
    y_step: u32,
    y_batch: u32,
    y_base: u32,
    state_batch: u32,
    state_base: u32,
    // The first element of R of this direction; elements of a row of D, and the first of this direction.
    r_base: u32,
    d_row: u32,
    d_base: u32,
    // The first row of A and Q.
    a_base: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> A: array<f32>;
@group(0) @binding(2) var<storage, read_write> R: array<f32>;
{{BINDINGS}}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.x;
    let first = P.state_base + n * P.state_batch;
    // Of a thread's own units, at most four: the gradients by the state and the cell.
    var dh = vec4<f32>();
    var dc = vec4<f32>();
    for (var k = 0u; k < 4u; k++) {
        let u = lane + k * 256u;
        if u < P.units {
            dh[k] = S[first + u];
{{BEGIN}}
        }
    }
    for (var turn = 0u; turn < P.steps; turn++) {
        let t = select(P.steps - 1u - turn, turn, P.reverse != 0u);
        let row = t * P.z_step + n * P.z_batch;
        let d = row * P.d_row + P.d_base;
        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
{{STEP}}
            }
        }
        // What the others of the group have written is read below.
        storageBarrier();
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                var sum = 0.0;
                for (var j = 0u; j < {{GATES}}u * P.units; j++) {
                    sum += {{BY_STATE}}[d + j] * R[P.r_base + j * P.units + u];
                }
                dh[k] = {{STRAIGHT}}sum;
            }
        }
    }
    for (var k = 0u; k < 4u; k++) {
        let u = lane + k * 256u;
        if u < P.units {
            S[first + u] = dh[k];
{{END}}
        }
    }
}
