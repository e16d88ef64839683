// {{WHAT}}
//
// For x: [outer, length, inner] and indices that are {{INDICES}}. Negative indices count from the end. One out of range
// sets the word `fault` to 1, and counts for nothing. Sums are in the order of the indices.

struct Params {
    n: u32,
    length: i32,
    inner: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<f32>;
@group(0) @binding(2) var<storage, read_write> I: array<{{INDEX}}>;
{{BINDINGS}}

// The place an index names, or -1 for none.
fn position(i: u32) -> i32 {
{{POSITION}}
    if at < 0 {
        at += P.length;
    }
    return select(-1, at, at >= 0 && at < P.length);
}

fn one(e: u32) {
    let k = e % P.inner;
{{BODY}}
}

{{LINE}}
