// y[o, i, k] = x[o, index[i], k] for x: [outer, length, inner]; elements are units of {{UNIT}}.
//
// Negative indices count from the end. One out of range sets the word `fault` to 1, and its elements are 0.

{{INDICES_OF}}
@group(0) @binding(1) var<storage, read_write> X: array<{{WORD}}>;
{{BINDINGS}}

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
