// The scale and the zero point of unsigned codes that just hold x and 0: scale[0], and the first byte of zero[0].
//
// One group of 256 threads; the least and the greatest do not depend on the order they are taken in.

struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<f32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> zero: array<u32>;

var<workgroup> least: array<f32, 256>;
var<workgroup> most: array<f32, 256>;

{{QUOTIENT}}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var low = 0.0;
    var high = 0.0;
    for (var i = lane; i < P.n; i += 256u) {
        low = min(low, X[i]);
        high = max(high, X[i]);
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
    if lane == 0u {
        var s = 1.0;
        if most[0] != least[0] {
            s = quotient(most[0] - least[0], 255.0);
        }
        scale[0] = s;
        zero[0] = u32(round(clamp(-quotient(least[0], s), 0.0, 255.0)));
    }
}
