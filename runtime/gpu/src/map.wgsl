// y[i] = the last of functions of elements, each of operands and of what earlier ones make; operands broadcast to the shape of
// the result.
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
    nothing: u32,
{{MORE}}}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

// What lies between two functions, rounded as in memory: `nothing` is 0, which no compiler knows, so that none makes one operation
// of two across it.
fn kept(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ P.nothing);
}

{{STRIDED}}
{{LINKS}}
fn f(i: u32) -> {{TYPE}} {
{{BODY}}
}

fn one(i: u32) {
{{STORE}}
}

{{LINE}}
