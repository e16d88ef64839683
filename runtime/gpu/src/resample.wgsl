// y[o, i, k] = Σ_t w[i · taps + t] · x[o, at[i · taps + t], k] for x: [outer, length, inner].
//
// A thread makes one element, its sum in the order of the taps. AT are positions below length.

struct Params {
    n: u32,
    length: u32,
    count: u32,
    inner: u32,
    taps: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<f32>;
@group(0) @binding(2) var<storage, read_write> AT: array<u32>;
@group(0) @binding(3) var<storage, read_write> W: array<f32>;
@group(0) @binding(4) var<storage, read_write> Y: array<f32>;

fn one(e: u32) {
    let k = e % P.inner;
    let i = e / P.inner % P.count;
    let o = e / (P.inner * P.count);
    var sum = 0.0;
    for (var t = i * P.taps; t < (i + 1u) * P.taps; t++) {
        sum += W[t] * X[(o * P.length + AT[t]) * P.inner + k];
    }
    Y[e] = sum;
}

{{LINE}}
