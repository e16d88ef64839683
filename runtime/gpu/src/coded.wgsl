// y[o, i, k] = (x[o, index[i], k] - zero) · scale for x: [outer, length, inner] of codes of {{BITS}} bits, the low ones of a
// word first; scale and zero point are those of the element's block.
//
// Blocks lie along an axis of their own: x is also [lines, along, after], S is [lines, blocks, after], and zero points are
// packed as codes are, `zero_line` · after of them a line.
// Negative indices count from the end. One out of range sets the word `fault` to 1, and its elements are 0.

{{INDICES_OF}}
@group(0) @binding(1) var<storage, read_write> X: array<u32>;
{{BINDINGS}}

// Code i, which is in that word.
fn number(word: u32, i: u32) -> f32 {
    return f32(extractBits({{TYPE}}(word), i % {{PER}}u * {{BITS}}u, {{BITS}}u));
}

fn one(e: u32) {
    let k = e % P.inner;
    let i = e / P.inner % P.count;
    let o = e / (P.inner * P.count);
    let at = position(i);
    if at < 0 {
        fault[0] = 1u;
        Y[e] = 0.0;
        return;
    }
    let source = (o * u32(P.length) + u32(at)) * P.inner + k;
    let line = source / P.after / P.along;
    let block = source / P.after % P.along / P.block;
    let beside = source % P.after;
{{ZERO}}
    Y[e] = (number(X[source / {{PER}}u], source) - zero) * S[(line * P.blocks + block) * P.after + beside];
}

{{LINE}}
