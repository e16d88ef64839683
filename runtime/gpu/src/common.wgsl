// Functions that several kernels share. Each is the formula of `functions.rs` in 32-bit floats.

fn not_a_number(x: f32) -> bool {
    // Compilers may take `x != x` for false.
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn sigmoid(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// Some drivers divide infinity by infinity for large arguments.
fn tanh_of(x: f32) -> f32 {
    let v = abs(x);
    // Below a quarter the quotient cancels; the series is exact to single precision.
    let s = x * x;
    let series = x * (1.0 + s * (-0.33333334 + s * (0.13333334 + s * (-0.053968254 + s * (0.021869488 - s * 0.008863236)))));
    let e = exp(-2.0 * v);
    let far = select(1.0, -1.0, x < 0.0) * (1.0 - e) / (1.0 + e);
    return select(far, series, v < 0.25);
}

fn expm1_of(x: f32) -> f32 {
    let series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.008333334 + x * 0.0013888889)))));
    return select(exp(x) - 1.0, series, abs(x) < 0.25);
}

// ln(1 + x) for x >= 0, without the cancellation near 0.
fn log1p_of(x: f32) -> f32 {
    let u = 1.0 + x;
    let d = u - 1.0;
    if d == 0.0 {
        return x;
    }
    return log(u) * (x / d);
}

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log1p_of(exp(-abs(x)));
}

// Abramowitz and Stegun, 7.1.26, absolute error 1.5e-7; its series near 0, where that would be a large relative one.
fn erf_of(x: f32) -> f32 {
    let v = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * v);
    let poly = t * (0.2548296 + t * (-0.28449672 + t * (1.4214138 + t * (-1.4531521 + t * 1.0614054))));
    let far = select(1.0, -1.0, x < 0.0) * (1.0 - poly * exp(-v * v));
    let s = x * x;
    let near = x * (1.1283792 + s * (-0.37612638 + s * (0.11283792 + s * (-0.026866170 + s * 0.0052239776))));
    return select(far, near, v < 0.35);
}

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf_of(x * 0.70710677));
}

fn gelu_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + tanh_of(0.7978846 * (x + 0.044715 * x * x * x)));
}

// Φ(x) + x φ(x).
fn gelu_slope(x: f32) -> f32 {
    return 0.5 * (1.0 + erf_of(x * 0.70710677)) + x * 0.3989423 * exp(-0.5 * x * x);
}

fn gelu_tanh_slope(x: f32) -> f32 {
    let t = tanh_of(0.7978846 * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + t) + 0.3989423 * x * (1.0 - t * t) * (1.0 + 0.134145 * x * x);
}

// min and max that keep what is no number, as the standard's operators do.
fn relu(x: f32) -> f32 {
    return select(x, 0.0, x < 0.0);
}

fn clip(x: f32, low: f32, high: f32) -> f32 {
    let v = select(x, low, x < low);
    return select(v, high, v > high);
}

// Devices take numbers below the least normal one for others; such a number is its bits times 2^-149.
fn log_of(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    return select(log(x), log(f32(bits)) - 103.27893, bits != 0u && bits < 0x00800000u);
}
