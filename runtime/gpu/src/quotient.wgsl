// a / b, rounded as the CPU does: devices may be some units in the last place off, and codes are decided by less.
//
// The rest a - q · b is exact: factors are split into halves whose products are (Dekker, 1971). It takes no fused product,
// which some devices round twice.
fn high_half(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
}

fn quotient(a: f32, b: f32) -> f32 {
    let q = a / b;
    let qh = high_half(q);
    let ql = q - qh;
    let bh = high_half(b);
    let bl = b - bh;
    let rest = (((a - qh * bh) - qh * bl) - ql * bh) - ql * bl;
    let nearer = q + rest / b;
    // Where the rest is no number there was nothing to correct.
    return select(q, nearer, abs(nearer - q) <= abs(q) * 1e-5);
}
