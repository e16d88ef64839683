// {{WHAT}}
//
// Channels first. x is [batch, groups · C, depth, height, width], the side a window reads from; y is
// [batch, groups · O, …], a position a window; w is [groups · O, C, …]. A thread makes one element, by a sum in a fixed order.

{{COMMON}}

struct Params {
    n: u32,
    batch: u32,
    groups: u32,
    // Of a group.
    c: u32,
    o: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
    {{WINDOW}}
}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

fn volume(v: vec4<u32>) -> u32 {
    return v.x * v.y * v.z;
}

fn split(i: u32, v: vec4<u32>) -> vec3<u32> {
    return vec3<u32>(i / (v.y * v.z), i / v.z % v.y, i % v.z);
}

// The place in x under tap t of the window at p, or -1 outside.
fn under(p: vec3<u32>, t: u32) -> i32 {
    let s = vec3<i32>(p * P.stride.xyz + split(t, P.window) * P.dilation.xyz) - P.pad.xyz;
    if any(s < vec3<i32>()) || any(s >= vec3<i32>(P.input.xyz)) {
        return -1;
    }
    let u = vec3<u32>(s);
    return i32((u.x * P.input.y + u.y) * P.input.z + u.z);
}

// The window whose tap t is over place q of x, or -1.
fn over(q: vec3<u32>, t: u32) -> i32 {
    let r = vec3<i32>(q) + P.pad.xyz - vec3<i32>(split(t, P.window) * P.dilation.xyz);
    if any(r < vec3<i32>()) {
        return -1;
    }
    let u = vec3<u32>(r);
    let p = u / P.stride.xyz;
    if any(u % P.stride.xyz != vec3<u32>()) || any(p >= P.output.xyz) {
        return -1;
    }
    return i32((p.x * P.output.y + p.y) * P.output.z + p.z);
}

fn one(i: u32) {
    let pixels = volume(P.input);
    let here = volume(P.output);
    let taps = volume(P.window);
{{BODY}}
}

{{LINE}}
