// What follows sums of products of codes: {{WHAT}}
//
// `n` counts threads, which make {{PER}}; columns repeat after `columns` elements.

{{COMMON}}

struct Params {
    n: u32,
    elements: u32,
    columns: u32,
    zero: i32,
    low: i32,
    high: i32,
    sum_zero: i32,
    sum_low: i32,
    sum_high: i32,
    c0: f32,
    c1: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> S: array<i32>;
@group(0) @binding(2) var<storage, read_write> F: array<f32>;
{{BINDINGS}}

// A real in units of the scale as a code: half to even, what is no number to the lowest.
fn code(v: f32, zero: i32, low: i32, high: i32) -> i32 {
    let least = f32(low - zero);
    let most = f32(high - zero);
    let raised = select(least, v, v > least);
    return i32(round(select(most, raised, raised < most))) + zero;
}

fn activated(a: f32) -> f32 {
    return {{ACTIVATION}};
}

fn f(i: u32) -> {{TYPE}} {
    let j = i % P.columns;
{{BODY}}
}

fn one(i: u32) {
{{STORE}}
}

{{LINE}}
