// {{WHAT}}
//
// x is [batch, depth, height, width, channels] or, planes first, [batch, channels, depth, height, width]; y likewise.
// A thread makes {{PER}}.

{{COMMON}}

struct Params {
    n: u32,
    channels: u32,
    // Elements of x from one image, pixel and channel to the next.
    x_image: u32,
    x_pixel: u32,
    x_channel: u32,
    first: u32,
    c0: f32,
    c1: f32,
    {{WINDOW}}
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<{{WORD}}>;
{{BINDINGS}}

fn activated(a: f32) -> f32 {
    return {{ACTIVATION}};
}

fn one(i: u32) {
    let here = P.output.x * P.output.y * P.output.z;
    var c = i % P.channels;
    var o = i / P.channels % here;
    if P.first != 0u {
        o = i % here;
        c = i / here % P.channels;
    }
    let image = i / (P.channels * here) * P.x_image + c * P.x_channel;
    let at = vec3<u32>(o / (P.output.y * P.output.z), o / P.output.z % P.output.y, o % P.output.z);
    let start = vec3<i32>(at * P.stride.xyz) - P.pad.xyz;
    var v = {{ZERO}};
    var some = false;
    for (var t = 0u; t < P.window.x * P.window.y * P.window.z; t++) {
        let tap = vec3<u32>(t / (P.window.y * P.window.z), t / P.window.z % P.window.y, t % P.window.z);
        let s = start + vec3<i32>(tap * P.dilation.xyz);
        if any(s < vec3<i32>()) || any(s >= vec3<i32>(P.input.xyz)) {
            continue;
        }
        let u = vec3<u32>(s);
        let x = X[image + ((u.x * P.input.y + u.y) * P.input.z + u.z) * P.x_pixel];
        {{STEP}}
        some = true;
    }
{{LAST}}
}

{{LINE}}
