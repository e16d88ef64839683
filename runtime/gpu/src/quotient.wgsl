// a / b, rounded as the CPU does: devices may be some units in the last place off, and codes are decided by less.
fn quotient(a: f32, b: f32) -> f32 {
    let q = a / b;
    let rest = fma(-q, b, a);
    let nearer = fma(rest, 1.0 / b, q);
    // Where the rest is no number there was nothing to correct.
    return select(q, nearer, abs(nearer - q) <= abs(q) * 1e-5);
}
