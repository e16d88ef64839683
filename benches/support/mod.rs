//! What the benches of kernels share: numbers to multiply, and what of this core's peak a kernel reaches.
use std::time::{Duration, Instant};

use hone_kernels::roofline;

/// Numbers in [-1, 1), the same every time.
pub(crate) fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect()
}

/// What one core can do at most.
pub(crate) struct Peak {
    /// Multiply-adds of `f32` a second, from registers.
    pub macs: f64,
    /// Bytes a second read from memory.
    pub bytes: f64,
}

impl Peak {
    /// Measured now, and printed. In Criterion's test mode nothing is measured.
    pub(crate) fn measure() -> Option<Peak> {
        if std::env::args().any(|a| a == "--test") {
            return None;
        }
        let macs =
            1.0 / fastest(Duration::from_millis(200), || {
                roofline::multiply_adds(100_000);
            }) * roofline::multiply_adds(100_000) as f64;
        // Larger than any cache.
        let large = vec![1f32; 64 << 20];
        let bytes = (4 * large.len()) as f64
            / fastest(Duration::from_millis(400), || {
                std::hint::black_box(roofline::read(&large));
            });
        eprintln!("roofline of one core: {:.1} GMAC/s of f32, {:.1} GB/s read from memory", macs / 1e9, bytes / 1e9);
        Some(Peak { macs, bytes })
    }

    /// Prints what `f` reaches, which makes `macs` multiply-adds (0: none to speak of) and has to read and write `bytes`.
    pub(crate) fn reached(&self, what: &str, macs: usize, bytes: usize, f: impl FnMut()) {
        let seconds = fastest(Duration::from_millis(100), f);
        let (m, b) = (macs as f64 / seconds, bytes as f64 / seconds);
        let macs = format!("{:.1} GMAC/s ({:.0} % of f32's peak), ", m / 1e9, 100.0 * m / self.macs);
        eprintln!(
            "roofline: {what}: {}{:.1} GB/s ({:.0} % of memory's)",
            if m > 0.0 { &macs[..] } else { "" },
            b / 1e9,
            100.0 * b / self.bytes
        );
    }
}

/// Seconds of the fastest of the runs that fit into `budget`, three at least.
fn fastest(budget: Duration, mut f: impl FnMut()) -> f64 {
    let (began, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || began.elapsed() < budget {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}
