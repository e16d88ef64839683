// {{WHAT}}
//
// x is [outer, length, inner]. {{HOW}}
// Sums are taken by a fixed tree, so that equal operands give equal bits.

{{COMMON}}

struct Params {
    rows: u32,
    length: u32,
    inner: u32,
    // Elements after which scale and bias repeat.
    scales: u32,
    epsilon: f32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<f32>;
{{BINDINGS}}

{{REDUCE}}

{{MAIN}}
