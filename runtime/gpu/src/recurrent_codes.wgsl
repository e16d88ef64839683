// Long short-term memory over all steps of all sequences, its states quantised as they come; one group of 256 threads, since
// the states of all sequences at one turn have one scale and one zero point.
//
// Z is what the inputs add to the gates `i o f c`, bias and all: row z_base + z_step · t + z_batch · n has 4 · H of them.
// R is signed codes, four of one column in a word and {{PADDED}} columns a row, padded with zeros. M is of each column the sum of
// its codes, its scale and the peephole of its gate, as bits. The results are the state after every step (Y), the last one (L),
// the last cell (K).

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
    // The first row of Z.
    z_base: u32,
    batch: u32,
    // Words of a row of codes, and columns of R.
    words: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> Z: array<f32>;
@group(0) @binding(2) var<storage, read_write> R: array<u32>;
@group(0) @binding(3) var<storage, read_write> M: array<vec4<u32>>;
{{BINDINGS}}

var<workgroup> state: array<f32, {{MOST}}>;
var<workgroup> cell: array<f32, {{MOST}}>;
var<workgroup> codes: array<u32, {{WORDS}}>;
var<workgroup> least: array<f32, 256>;
var<workgroup> most: array<f32, 256>;

{{QUOTIENT}}

// The range of all states, which holds 0, goes to least[0] and most[0].
fn range(lane: u32) {
    var low = 0.0;
    var high = 0.0;
    for (var e = lane; e < P.batch * P.units; e += 256u) {
        low = min(low, state[e]);
        high = max(high, state[e]);
    }
    least[lane] = low;
    most[lane] = high;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half >>= 1u) {
        if lane < half {
            least[lane] = min(least[lane], least[lane + half]);
            most[lane] = max(most[lane], most[lane + half]);
        }
        workgroupBarrier();
    }
}

// A sum of column j as it counts, times the scale of the states.
fn counted(sum: i32, j: u32, scale: f32, zero: i32) -> f32 {
    let column = M[j];
    return f32(sum + (128 - zero) * bitcast<i32>(column.x)) * (scale * bitcast<f32>(column.y));
}

// The products of the state of sequence n with the columns of unit u, of the gates i o f c.
fn products(n: u32, u: u32, scale: f32, zero: i32) -> vec4<f32> {
    let h = P.units;
    var sum = vec4<i32>();
    for (var w = 0u; w < P.words; w++) {
        let four = codes[n * P.words + w];
        let r = w * P.columns + u;
        sum += vec4<i32>(
            dot4I8Packed(four, R[r]),
            dot4I8Packed(four, R[r + h]),
            dot4I8Packed(four, R[r + 2u * h]),
            dot4I8Packed(four, R[r + 3u * h]),
        );
    }
    return vec4<f32>(
        counted(sum.x, u, scale, zero),
        counted(sum.y, u + h, scale, zero),
        counted(sum.z, u + 2u * h, scale, zero),
        counted(sum.w, u + 3u * h, scale, zero),
    );
}

fn peephole(j: u32) -> f32 {
    return bitcast<f32>(M[j].z);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    let all = P.batch * P.units;
    for (var e = lane; e < all; e += 256u) {
        let first = P.state_base + e / P.units * P.state_batch + e % P.units;
        state[e] = H[first];
        cell[e] = C[first];
    }
    workgroupBarrier();
    for (var turn = 0u; turn < P.steps; turn++) {
        let t = select(turn, P.steps - 1u - turn, P.reverse != 0u);
        range(lane);
        var scale = 1.0;
        if most[0] != least[0] {
            scale = quotient(most[0] - least[0], 255.0);
        }
        let zero = i32(round(clamp(-quotient(least[0], scale), 0.0, 255.0)));
        for (var w = lane; w < P.batch * P.words; w += 256u) {
            let n = w / P.words;
            var word = 0u;
            let bytes = min(4u, P.units - w % P.words * 4u);
            for (var b = 0u; b < bytes; b++) {
                let u = w % P.words * 4u + b;
                // 128 less than the code, so that it is signed; what is behind the last unit counts for nothing.
                let real = quotient(state[n * P.units + u], scale);
                let code = clamp(i32(round(clamp(real, -1e6, 1e6))) + zero, 0, 255) - 128;
                word |= (u32(code) & 255u) << (b * 8u);
            }
            codes[w] = word;
        }
        workgroupBarrier();
        for (var e = lane; e < all; e += 256u) {
            let n = e / P.units;
            let u = e % P.units;
            let z = (P.z_base + t * P.z_step + n * P.z_batch) * 4u * P.units + u;
            let old = cell[e];
            let sums = products(n, u, scale, zero);
            let i = sigmoid(Z[z] + sums.x + peephole(u) * old);
            let f = sigmoid(Z[z + 2u * P.units] + sums.z + peephole(2u * P.units + u) * old);
            let g = tanh_of(Z[z + 3u * P.units] + sums.w);
            let made = f * old + i * g;
            let o = sigmoid(Z[z + P.units] + sums.y + peephole(P.units + u) * made);
            cell[e] = made;
            state[e] = o * tanh_of(made);
            Y[P.y_base + t * P.y_step + n * P.y_batch + u] = state[e];
        }
        workgroupBarrier();
    }
    for (var e = lane; e < all; e += 256u) {
        let first = P.state_base + e / P.units * P.state_batch + e % P.units;
        L[first] = state[e];
        K[first] = cell[e];
    }
}
