// y[o, i, k] = x[o, index[i], k] for x: [outer, length, inner]; elements are units of {{UNIT}}.
//
// Negative indices count source the end. One out of range sets the word `fault` to 1, and its elements are 0.

struct Params {
    n: u32,
    length: i32,
    inner: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<{{WORD}}>;
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
    let i = e / P.inner % P.count;
    let o = e / (P.inner * P.count);
    let at = position(i);
    if at < 0 {
        fault[0] = 1u;
        Y[e] = {{ZERO}};
        return;
    }
    let row = o * u32(P.length) + u32(at);
    let source = row * P.inner + k;
    Y[e] = {{VALUE}};
}

{{LINE}}
