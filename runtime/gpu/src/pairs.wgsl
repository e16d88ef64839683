// y[i] = {{WHAT}}, codes of eight bits that broadcast to the shape of the result.
//
// Every thread makes the four codes of one 32-bit word of y. `n` counts words, `elements` codes; axes are the innermost first, each
// with its length and the steps of a and b. A real is one rounded operation on what is exact, so that every device comes to the
// same code.

struct Params {
    n: u32,
    elements: u32,
    rank: u32,
    zero: i32,
    low: i32,
    high: i32,
    left: i32,
    right: i32,
    ratio: f32,
    unused: u32,
    unused1: u32,
    unused2: u32,
    axes: array<vec4<u32>, 8>,
}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

// A real in units of the scale as a code: half to even, what is no number to the lowest.
fn code(v: f32) -> u32 {
    let least = f32(P.low - P.zero);
    let most = f32(P.high - P.zero);
    let raised = select(least, v, v > least);
    return u32(i32(round(select(most, raised, raised < most))) + P.zero) & 255u;
}

fn f(i: u32) -> u32 {
    var rest = i;
    var at = vec2<u32>();
    for (var d = 0u; d < P.rank; d++) {
        let axis = P.axes[d];
        at += (rest % axis.x) * axis.yz;
        rest /= axis.x;
    }
    let a = extractBits(A[at.x >> 2u], (at.x & 3u) * 8u, 8u);
    let b = extractBits(B[at.y >> 2u], (at.y & 3u) * 8u, 8u);
    return code({{REAL}});
}

fn one(i: u32) {
{{STORE}}
}

{{LINE}}
