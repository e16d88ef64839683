// y[position, c] = Σ_tap (x[…, c] - zero) · w[tap, c] + offset[c]: depthwise sums of unsigned codes, exact in 32 bits.
//
// x is [batch, depth, height, width, channels]; outside of it the window holds `zero`. A thread makes one element.

struct Params {
    n: u32,
    channels: u32,
    zero: u32,
    unused: u32,
    {{WINDOW}}
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<u32>;
@group(0) @binding(2) var<storage, read_write> W: array<u32>;
@group(0) @binding(3) var<storage, read_write> O: array<i32>;
@group(0) @binding(4) var<storage, read_write> Y: array<i32>;

fn one(i: u32) {
    let here = P.output.x * P.output.y * P.output.z;
    let c = i % P.channels;
    let o = i / P.channels % here;
    let image = i / (P.channels * here) * P.input.x * P.input.y * P.input.z;
    let at = vec3<u32>(o / (P.output.y * P.output.z), o / P.output.z % P.output.y, o % P.output.z);
    let start = vec3<i32>(at * P.stride.xyz) - P.pad.xyz;
    var v = 0;
    for (var t = 0u; t < P.window.x * P.window.y * P.window.z; t++) {
        let tap = vec3<u32>(t / (P.window.y * P.window.z), t / P.window.z % P.window.y, t % P.window.z);
        let s = start + vec3<i32>(tap * P.dilation.xyz);
        if any(s < vec3<i32>()) || any(s >= vec3<i32>(P.input.xyz)) {
            continue;
        }
        let u = vec3<u32>(s);
        let place_x = (image + (u.x * P.input.y + u.y) * P.input.z + u.z) * P.channels + c;
        let place_w = t * P.channels + c;
        let x = i32(extractBits(X[place_x >> 2u], (place_x & 3u) * 8u, 8u)) - i32(P.zero);
        v += x * extractBits(i32(W[place_w >> 2u]), (place_w & 3u) * 8u, 8u);
    }
    Y[i] = v + O[c];
}

{{LINE}}
