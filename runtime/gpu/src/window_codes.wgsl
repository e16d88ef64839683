// y = the largest code under a window; the least code there is where the window lies outside.
//
// x is bytes [batch, depth, height, width, channels], y likewise; `flip` makes signed codes unsigned ones of the same order. Every
// thread makes the four bytes of one 32-bit word of y. `n` counts words, `elements` bytes.

struct Params {
    n: u32,
    elements: u32,
    channels: u32,
    x_image: u32,
    flip: u32,
    unused: u32,
    unused1: u32,
    unused2: u32,
    {{WINDOW}}
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn f(i: u32) -> u32 {
    let here = P.output.x * P.output.y * P.output.z;
    let c = i % P.channels;
    let o = i / P.channels % here;
    let image = i / (P.channels * here) * P.x_image + c;
    let at = vec3<u32>(o / (P.output.y * P.output.z), o / P.output.z % P.output.y, o % P.output.z);
    let start = vec3<i32>(at * P.stride.xyz) - P.pad.xyz;
    var most = 0u;
    for (var t = 0u; t < P.window.x * P.window.y * P.window.z; t++) {
        let tap = vec3<u32>(t / (P.window.y * P.window.z), t / P.window.z % P.window.y, t % P.window.z);
        let s = start + vec3<i32>(tap * P.dilation.xyz);
        if any(s < vec3<i32>()) || any(s >= vec3<i32>(P.input.xyz)) {
            continue;
        }
        let u = vec3<u32>(s);
        let byte = image + ((u.x * P.input.y + u.y) * P.input.z + u.z) * P.channels;
        most = max(most, extractBits(X[byte >> 2u], (byte & 3u) * 8u, 8u) ^ P.flip);
    }
    return most ^ P.flip;
}

fn one(i: u32) {
{{STORE}}
}

{{LINE}}
