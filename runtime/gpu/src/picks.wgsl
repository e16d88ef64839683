// {{WHAT}}
//
// For x: [outer, length, inner] and indices that are {{INDICES}}. Negative indices count from the end. One out of range
// sets the word `fault` to 1, and counts for nothing. Sums are in the order of the indices.

{{INDICES_OF}}
@group(0) @binding(1) var<storage, read_write> X: array<f32>;
{{BINDINGS}}

fn one(e: u32) {
    let k = e % P.inner;
{{BODY}}
}

{{LINE}}
