// {{WHAT}}
//
// Element by element, in place: the results hold what was there before. NOW is [rate, step], the step counted from 1.

{{COMMON}}

struct Params {
    n: u32,
    nesterov: u32,
    decay: f32,
    // Of SGD the momentum; of AdamW beta1, beta2, their logarithms and epsilon.
    c0: f32,
    c1: f32,
    log0: f32,
    log1: f32,
    epsilon: f32,
    // The complements of beta1 and beta2.
    rest0: f32,
    rest1: f32,
}

@group(0) @binding(0) var<uniform> P: Params;
{{BINDINGS}}

fn one(i: u32) {
{{BODY}}
}

{{LINE}}
