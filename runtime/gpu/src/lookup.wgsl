// y[i] = table[x[i]] of bytes.
//
// Every thread makes the four bytes of one 32-bit word of y. The table has 256 bytes. `n` counts words; what is behind the last
// byte of x is looked up, too, and nobody reads it.

struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> P: Params;
@group(0) @binding(1) var<storage, read_write> X: array<u32>;
@group(0) @binding(2) var<storage, read_write> T: array<u32>;
@group(0) @binding(3) var<storage, read_write> Y: array<u32>;

fn one(i: u32) {
    let x = X[i];
    var word = 0u;
    for (var k = 0u; k < 4u; k++) {
        let q = extractBits(x, k * 8u, 8u);
        word |= extractBits(T[q >> 2u], (q & 3u) * 8u, 8u) << (k * 8u);
    }
    Y[i] = word;
}

{{LINE}}
