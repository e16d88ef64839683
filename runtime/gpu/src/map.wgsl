// y[i] = f(a[..i..], b[..i..], ...), operands broadcast to the shape of the result.
//
// Every thread makes the elements of one 32-bit word of y: one of f32 and i32, four of bytes. An operand is read at the
// element of the same number, at element 0, or where its strides say. `n` counts words, `elements` elements; axes are the
// innermost first.

{{COMMON}}
{{QUOTIENT}}

struct Params {
    n: u32,
    elements: u32,
    rank: u32,
    unused: u32,
    c0: f32,
    c1: f32,
    c2: f32,
    c3: f32,
    dims: array<vec4<u32>, 2>,
    strides: array<vec4<u32>, 8>,
}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

fn strided(operand: u32, i: u32) -> u32 {
    var rest = i;
    var at = 0u;
    for (var d = 0u; d < P.rank; d++) {
        let length = P.dims[d >> 2u][d & 3u];
        at += (rest % length) * P.strides[operand * 2u + (d >> 2u)][d & 3u];
        rest /= length;
    }
    return at;
}

fn f(i: u32) -> {{TYPE}} {
{{LOADS}}
    return {{TEXT}};
}

fn one(i: u32) {
{{STORE}}
}

{{LINE}}
