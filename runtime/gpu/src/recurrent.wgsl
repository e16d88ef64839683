// {{WHAT}} over all steps of a sequence; a group of 256 threads takes one sequence, a thread every 256th unit.
//
// Z is what the inputs add to the gates, {{BIAS}}: row z_base + z_step · t + z_batch · n has G · H of
// them. R is [H, G · H]: what unit j of the state adds to each. The results are {{RESULTS}}.

{{COMMON}}

struct Params {
    steps: u32,
    units: u32,
    reverse: u32,
    z_step: u32,
    z_batch: u32,
    // Elements of Y from one step and sequence to the next, and the first of this direction; the same of a state.
    y_step: u32,
    y_batch: u32,
    y_base: u32,
    state_batch: u32,
    state_base: u32,
    bias: u32,
    // The first row of Z, and the first element of R.
    z_base: u32,
    r_base: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> Z: array<f32>;
@group(0) @binding(2) var<storage, read_write> R: array<f32>;
@group(0) @binding(3) var<storage, read_write> H: array<f32>;
{{BINDINGS}}

// The state, and what else is carried: the cell of an LSTM, the reset state of a GRU.
var<workgroup> state: array<f32, 1024>;
var<workgroup> carried: array<f32, 1024>;

fn input(gate: u32, unit: u32, z: u32) -> f32 {
    return {{INPUT}};
}

fn product(gate: u32, unit: u32, row: u32) -> f32 {
    var sum = 0.0;
    for (var j = 0u; j < P.units; j++) {
        sum += state[j] * R[P.r_base + j * row + gate * P.units + unit];
    }
    return sum;
}

fn product_of_carried(gate: u32, unit: u32, row: u32) -> f32 {
    var sum = 0.0;
    for (var j = 0u; j < P.units; j++) {
        sum += carried[j] * R[P.r_base + j * row + gate * P.units + unit];
    }
    return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.x;
    let row = {{GATES}}u * P.units;
    let first = P.state_base + n * P.state_batch;
    for (var u = lane; u < P.units; u += 256u) {
        state[u] = H[first + u];
        carried[u] = {{CARRIED}};
    }
    workgroupBarrier();
    for (var turn = 0u; turn < P.steps; turn++) {
        let t = select(turn, P.steps - 1u - turn, P.reverse != 0u);
        let z = (P.z_base + t * P.z_step + n * P.z_batch) * row;
        let y = P.y_base + t * P.y_step + n * P.y_batch;
        // At most four units a thread, by names: arrays of a thread's own are slow where they are memory.
        var fresh = vec4<f32>();
        var more = vec4<f32>();
{{STEP}}
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let u = lane + k * 256u;
            if u < P.units {
                state[u] = fresh[k];
{{KEEP}}
{{MADE}}
            }
        }
        workgroupBarrier();
    }
    for (var u = lane; u < P.units; u += 256u) {
{{LAST}}
{{CELL}}
    }
}
