//! Matrix product of `f32` rows with a frozen matrix of `f32` or int8: `y = x · wᵀ · scale + bias`.
//!
//! Dimension letters: `M` rows of `x`, `K` reduction, `N` rows of `w` (columns of `y`).
//! `w` is packed once into panels of [`NR`] output columns, `K` outermost within a panel, so that one row of a panel
//! is one vector load whatever the element type: `panel[p][k][j] = w[p·NR + j][k]`, zero where `p·NR + j ≥ N`.

use std::ops::Range;

use crate::threads::Pool;

/// Output columns in a panel.
pub const NR: usize = 16;
/// Rows of `x` that the portable form takes together: NEON has 32 registers, SSE2 has 16.
const ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 4 };
/// Whether every CPU of the target multiplies and adds in one instruction.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Elements a packed `[n, k]` matrix takes.
pub const fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(NR) * NR * k
}

/// Packs `w` (`w(j, k)` gives row `j`, column `k`) into panels. `out` has [`packed_len`]`(n, k)` elements.
///
/// # Panics
/// When `out` is too short.
pub fn pack<T: Copy + Default>(n: usize, k: usize, w: impl Fn(usize, usize) -> T, out: &mut [T]) {
    for p in 0..n.div_ceil(NR) {
        for kk in 0..k {
            for j in 0..NR {
                let col = p * NR + j;
                out[(p * k + kk) * NR + j] = if col < n { w(col, kk) } else { T::default() };
            }
        }
    }
}

/// A packed frozen matrix `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// `w[j][k]` itself.
    F32(&'a [f32]),
    /// `w[j][k] = q[j][k] · scale[j]`; `scale` has `N` entries.
    I8 {
        /// The integers, packed.
        q: &'a [i8],
        /// One scale a row of `w`.
        scale: &'a [f32],
    },
}

/// One problem: `y[m][j] = Σ_k x[m·x_stride + k] · w[j][k] + bias[j]`, or added to what `y` holds when `accumulate`.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Rows.
    pub m: usize,
    /// Reduction length.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Rows of `K` floats, `x_stride` apart.
    pub x: &'a [f32],
    /// Distance between rows of `x`, at least `k`.
    pub x_stride: usize,
    /// The frozen matrix.
    pub w: Packed<'a>,
    /// `N` floats to add, if any.
    pub bias: Option<&'a [f32]>,
    /// Add to `y` in place of overwriting it.
    pub accumulate: bool,
}

/// The formula, one dot product at a time, summed in `f64`.
pub fn reference(g: &Gemm<'_>, y: &mut [f32]) {
    for m in 0..g.m {
        for j in 0..g.n {
            let mut sum = 0f64;
            for k in 0..g.k {
                let at = ((j / NR) * g.k + k) * NR + j % NR;
                let w = match g.w {
                    Packed::F32(w) => f64::from(w[at]),
                    Packed::I8 { q, scale } => f64::from(q[at]) * f64::from(scale[j]),
                };
                sum += f64::from(g.x[m * g.x_stride + k]) * w;
            }
            sum += g.bias.map_or(0.0, |b| f64::from(b[j]));
            let out = &mut y[m * g.n + j];
            *out = (sum + if g.accumulate { f64::from(*out) } else { 0.0 }) as f32;
        }
    }
}

/// A faster form: its name, whether this CPU can run it, and the call.
pub struct Kernel {
    /// `{arch}-{dtypes}-{variant}`.
    pub name: &'static str,
    /// Whether this CPU has what it needs.
    pub available: fn() -> bool,
    /// Computes the columns of some panels. It must only be called when `available` says so, for slices as long as
    /// the shapes say and panels that exist, and with nobody else at those columns of `y`; [`Kernel::run`] sees to that.
    run: unsafe fn(&Gemm<'_>, Range<usize>, *mut f32),
}

impl Kernel {
    /// Runs it, or returns false when this CPU cannot.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says: a planner's mistake, checked there.
    pub fn run(&self, g: &Gemm<'_>, y: &mut [f32]) -> bool {
        if !(self.available)() {
            return false;
        }
        check(g, y);
        // SAFETY: `available` has just said yes, `check` that the slices are long enough, and `y` is borrowed alone.
        unsafe { (self.run)(g, 0..g.n.div_ceil(NR), y.as_mut_ptr()) };
        true
    }
}

/// That every slice is as long as its shape says.
fn check(g: &Gemm<'_>, y: &[f32]) {
    assert!(g.x_stride >= g.k || g.m < 2, "rows of x overlap");
    assert!(g.m == 0 || g.x.len() >= (g.m - 1) * g.x_stride + g.k, "x is shorter than its shape says");
    assert!(y.len() >= g.m * g.n, "y is shorter than its shape says");
    let held = match g.w {
        Packed::F32(w) => w.len(),
        Packed::I8 { q, .. } => q.len(),
    };
    assert!(held >= packed_len(g.n, g.k), "w is shorter than its shape says");
}

/// Every form, best first.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "x86_64-f32wf32-avx512",
        available: || std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw"),
        run: x86::avx512,
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "x86_64-f32wf32-avx2",
        available: || std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"),
        run: x86::avx2,
    },
    Kernel { name: "any-f32wf32-panels", available: || true, run: panels },
];

/// Runs the best form this CPU has, on the calling thread.
///
/// # Panics
/// When a slice is shorter than its shape says: a planner's mistake, checked there.
pub fn gemm(g: &Gemm<'_>, y: &mut [f32]) {
    for k in KERNELS {
        if k.run(g, y) {
            return;
        }
    }
}

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// [`gemm`] on all threads of `pool`: by rows, or by columns when there are few rows. Equal results whatever their number.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_on(pool: &Pool, g: &Gemm<'_>, y: &mut [f32]) {
    let threads = pool.threads();
    let panels = g.n.div_ceil(NR);
    if threads < 2 || g.m * g.n * g.k < WORTH_SHARING {
        return gemm(g, y);
    }
    check(g, y);
    let Some(kernel) = KERNELS.iter().find(|k| (k.available)()) else { return };
    let out = Out(y.as_mut_ptr());
    // Two shares a thread, so that one that was late does not hold up the others for long.
    if g.m >= 32 * threads {
        let rows = g.m.div_ceil(2 * threads).next_multiple_of(12);
        pool.run(g.m.div_ceil(rows), &|i| {
            let from = i * rows;
            let part = Gemm { m: rows.min(g.m - from), x: &g.x[from * g.x_stride..], ..*g };
            // SAFETY: checked above; the rows from..from+m of y are written by no other call.
            unsafe { (kernel.run)(&part, 0..panels, out.row(from * g.n)) };
        });
    } else {
        let share = panels.div_ceil(2 * threads).next_multiple_of(2);
        pool.run(panels.div_ceil(share), &|i| {
            let range = i * share..((i + 1) * share).min(panels);
            // SAFETY: checked above; the columns of these panels are written by no other call.
            unsafe { (kernel.run)(g, range, out.row(0)) };
        });
    }
}

/// Where results go, for threads that write disjoint parts.
struct Out(*mut f32);

// SAFETY: see `gemm_on`.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// `offset` is inside the results.
    unsafe fn row(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{Gemm, NR, Packed};

    /// Rows of a tile. With two panels 24 accumulators, two loads and a broadcast fit the 32 registers of AVX-512; with
    /// one panel of two vectors 12, two and one fit the 16 of AVX2.
    const ROWS_512: usize = 12;
    const ROWS_256: usize = 6;

    /// # Safety
    /// As `Kernel::run` in the table.
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    pub(super) unsafe fn avx512(g: &Gemm<'_>, panels: Range<usize>, y: *mut f32) {
        let mut p = panels.start;
        while p < panels.end {
            let pair = p + 1 < panels.end;
            for (m, rows) in tiles(g.m, ROWS_512) {
                // SAFETY: the caller promises rows m..m+rows of x and y and the panels p (and p + 1 when `pair`).
                unsafe { by_height(g, rows, pair, p, m, y) };
            }
            p += 1 + usize::from(pair);
        }
    }

    /// # Safety
    /// As `Kernel::run` in the table.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(g: &Gemm<'_>, panels: Range<usize>, y: *mut f32) {
        for p in panels {
            for (m, rows) in tiles(g.m, ROWS_256) {
                macro_rules! heights {
                    ($($r:literal)*) => {
                        match rows {
                            // SAFETY: the caller promises rows m..m+rows of x and y and panel p.
                            $($r => unsafe { half::<$r>(g, p, m, y) },)*
                            _ => {}
                        }
                    };
                }
                heights!(1 2 3 4 5 6);
            }
        }
    }

    /// First row and height of each tile: nearly equal heights, because a tile of one row would wait for memory.
    fn tiles(m: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
        let count = m.div_ceil(most);
        let (base, more) = (m.checked_div(count).unwrap_or(0), m.checked_rem(count).unwrap_or(0));
        (0..count).map(move |t| (t * base + t.min(more), base + usize::from(t < more)))
    }

    /// A tile of `R` rows by one panel.
    ///
    /// # Safety
    /// Rows `m..m + R` of `x` (each `k` floats) and of `y` (each `n`) and panel `p` must exist.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn half<const R: usize>(g: &Gemm<'_>, p: usize, m: usize, y: *mut f32) {
        // SAFETY: all pointers stay inside what the caller promises; unaligned loads and stores are used throughout.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            let x = g.x.as_ptr().add(m * g.x_stride);
            macro_rules! sum {
                ($w:ident, $load:expr) => {
                    for k in 0..g.k {
                        let at = $w.add(p * g.k * NR + k * NR);
                        let b = [$load(at), $load(at.add(8))];
                        for r in 0..R {
                            let a = _mm256_set1_ps(*x.add(r * g.x_stride + k));
                            acc[r][0] = _mm256_fmadd_ps(a, b[0], acc[r][0]);
                            acc[r][1] = _mm256_fmadd_ps(a, b[1], acc[r][1]);
                        }
                    }
                };
            }
            match g.w {
                Packed::F32(w) => {
                    let w = w.as_ptr();
                    sum!(w, |at| _mm256_loadu_ps(at));
                }
                Packed::I8 { q, .. } => {
                    let q = q.as_ptr();
                    sum!(q, |at: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))));
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                let mut sums = [0f32; NR];
                _mm256_storeu_ps(sums.as_mut_ptr(), acc[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(8), acc[1]);
                let first = p * NR;
                let width = NR.min(g.n - first);
                let out = std::slice::from_raw_parts_mut(y.add((m + r) * g.n + first), width);
                super::finish(g, first, &sums, out);
            }
        }
    }

    /// # Safety
    /// As [`wide`].
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    unsafe fn by_height(g: &Gemm<'_>, rows: usize, pair: bool, p: usize, m: usize, y: *mut f32) {
        macro_rules! heights {
            ($($r:literal)*) => {
                match (rows, pair) {
                    // SAFETY: the caller's promise.
                    $(($r, true) => unsafe { wide::<$r, 2>(g, p, m, y) },
                    ($r, false) => unsafe { wide::<$r, 1>(g, p, m, y) },)*
                    _ => {}
                }
            };
        }
        heights!(1 2 3 4 5 6 7 8 9 10 11 12);
    }

    /// A tile of `R` rows by `P` panels.
    ///
    /// # Safety
    /// Rows `m..m + R` of `x` (each `k` floats) and of `y` (each `n`) and panels `p..p + P` must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    #[inline]
    unsafe fn wide<const R: usize, const P: usize>(g: &Gemm<'_>, p: usize, m: usize, y: *mut f32) {
        // SAFETY: all pointers stay inside what the caller promises; unaligned loads and stores are used throughout.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); P]; R];
            let x = g.x.as_ptr().add(m * g.x_stride);
            let panel = g.k * NR;
            match g.w {
                Packed::F32(w) => {
                    let w = w.as_ptr().add(p * panel);
                    for k in 0..g.k {
                        let mut b = [_mm512_setzero_ps(); P];
                        for v in 0..P {
                            b[v] = _mm512_loadu_ps(w.add(v * panel + k * NR));
                        }
                        for r in 0..R {
                            let a = _mm512_set1_ps(*x.add(r * g.x_stride + k));
                            for v in 0..P {
                                acc[r][v] = _mm512_fmadd_ps(a, b[v], acc[r][v]);
                            }
                        }
                    }
                }
                Packed::I8 { q, .. } => {
                    let q = q.as_ptr().add(p * panel);
                    for k in 0..g.k {
                        let mut b = [_mm512_setzero_ps(); P];
                        for v in 0..P {
                            let bytes = _mm_loadu_si128(q.add(v * panel + k * NR).cast());
                            b[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                        }
                        for r in 0..R {
                            let a = _mm512_set1_ps(*x.add(r * g.x_stride + k));
                            for v in 0..P {
                                acc[r][v] = _mm512_fmadd_ps(a, b[v], acc[r][v]);
                            }
                        }
                    }
                }
            }
            for v in 0..P {
                let first = (p + v) * NR;
                let width = NR.min(g.n - first);
                let mask = ((1u32 << width) - 1) as __mmask16;
                let bias = match g.bias {
                    Some(b) => _mm512_maskz_loadu_ps(mask, b[first..first + width].as_ptr()),
                    None => _mm512_setzero_ps(),
                };
                let scale = match g.w {
                    Packed::I8 { scale, .. } => _mm512_maskz_loadu_ps(mask, scale[first..first + width].as_ptr()),
                    Packed::F32(_) => _mm512_set1_ps(1.0),
                };
                let quantised = matches!(g.w, Packed::I8 { .. });
                // Written out row by row: a loop over twelve rows is not unrolled, and the accumulators would live in memory.
                macro_rules! rows {
                    ($($r:literal)*) => {
                        $(if $r < R {
                            let out = y.add((m + $r) * g.n + first);
                            let sum = acc[$r % R][v];
                            let mut sum = if quantised { _mm512_mul_ps(sum, scale) } else { sum };
                            sum = _mm512_add_ps(sum, bias);
                            if g.accumulate {
                                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out));
                            }
                            _mm512_mask_storeu_ps(out, mask, sum);
                        })*
                    };
                }
                rows!(0 1 2 3 4 5 6 7 8 9 10 11);
            }
        }
    }
}

/// `a · b + c`: one rounding where the CPU has the instruction, two where calling a library for one would cost a
/// hundred times as much.
#[inline(always)]
pub(crate) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// # Safety
/// As `Kernel::run` in the table.
unsafe fn panels(g: &Gemm<'_>, panels: Range<usize>, y: *mut f32) {
    for p in panels {
        let mut m = 0;
        while m + ROWS <= g.m {
            // SAFETY: the caller's promise.
            unsafe { tile::<ROWS>(g, p, m, y) };
            m += ROWS;
        }
        while m < g.m {
            // SAFETY: the caller's promise.
            unsafe { tile::<1>(g, p, m, y) };
            m += 1;
        }
    }
}

/// # Safety
/// Rows `m..m + R` and panel `p` must exist, and nobody else be at those columns of `y`.
#[inline(always)]
unsafe fn tile<const R: usize>(g: &Gemm<'_>, p: usize, m: usize, y: *mut f32) {
    let mut acc = [[0f32; NR]; R];
    let rows: [&[f32]; R] = std::array::from_fn(|r| &g.x[(m + r) * g.x_stride..][..g.k]);
    match g.w {
        Packed::F32(w) => {
            for (k, w) in w[p * g.k * NR..][..g.k * NR].as_chunks::<NR>().0.iter().enumerate() {
                // A copy: read through the reference, the loop over rows is not turned into vectors.
                let w = *w;
                for r in 0..R {
                    let x = rows[r][k];
                    for j in 0..NR {
                        acc[r][j] = mul_add(x, w[j], acc[r][j]);
                    }
                }
            }
        }
        Packed::I8 { q, .. } => {
            for (k, w) in q[p * g.k * NR..][..g.k * NR].as_chunks::<NR>().0.iter().enumerate() {
                let w: [f32; NR] = std::array::from_fn(|j| f32::from(w[j]));
                for r in 0..R {
                    let x = rows[r][k];
                    for j in 0..NR {
                        acc[r][j] = mul_add(x, w[j], acc[r][j]);
                    }
                }
            }
        }
    }
    let first = p * NR;
    let width = NR.min(g.n - first);
    for r in 0..R {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(y.add((m + r) * g.n + first), width) };
        finish(g, first, &acc[r], out);
    }
}

/// Sums of one row and panel, whose first column is `first`, to results: scale, bias, accumulation.
#[inline(always)]
fn finish(g: &Gemm<'_>, first: usize, sums: &[f32; NR], out: &mut [f32]) {
    for j in 0..out.len() {
        let mut v = sums[j];
        if let Packed::I8 { scale, .. } = g.w {
            v *= scale[first + j];
        }
        v += g.bias.map_or(0.0, |b| b[first + j]);
        out[j] = if g.accumulate { out[j] + v } else { v };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed.wrapping_mul(2_654_435_761) | 1;
        (0..n)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 17;
                s ^= s << 5;
                (s >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_kernel_agrees_with_the_formula_at_every_tile_edge_and_writes_nothing_else() {
        let mut ran = 0;
        for kernel in KERNELS {
            for (m, k, n) in
                [(1, 1, 1), (3, 9, 15), (4, 16, 16), (5, 17, 33), (9, 64, 40), (2, 0, 3), (13, 31, 10), (25, 7, 70)]
            {
                for int8 in [false, true] {
                    for accumulate in [false, true] {
                        let x = noise(m * (k + 2), 7);
                        let w = noise(n * k, 11);
                        let scale: Vec<f32> = noise(n, 3).iter().map(|s| s.abs() * 0.01 + 0.001).collect();
                        let bias = noise(n, 5);
                        let mut packed = vec![0f32; packed_len(n, k)];
                        let mut packed_q = vec![0i8; packed_len(n, k)];
                        pack(n, k, |j, kk| w[j * k + kk], &mut packed);
                        pack(n, k, |j, kk| (w[j * k + kk] * 127.0) as i8, &mut packed_q);
                        let w = if int8 { Packed::I8 { q: &packed_q, scale: &scale } } else { Packed::F32(&packed) };
                        let g = Gemm { m, k, n, x: &x, x_stride: k + 2, w, bias: Some(&bias), accumulate };
                        let mut expected = noise(m * n, 17);
                        let mut found = expected.clone();
                        found.extend([f32::NAN; 4]);
                        reference(&g, &mut expected);
                        if !kernel.run(&g, &mut found) {
                            println!("{} cannot run on this CPU and was not tested", kernel.name);
                            continue;
                        }
                        ran += 1;
                        // K roundings of products no larger than max|x|·max|w|, plus scale, bias and accumulation.
                        let w_max = if int8 { 127.0 * scale.iter().fold(0f32, |a, &b| a.max(b)) } else { 1.0 };
                        let tolerance = (k as f32 + 4.0) * f32::EPSILON * w_max.max(1.0);
                        for (e, f) in expected.iter().zip(&found) {
                            assert!((e - f).abs() <= tolerance, "{} {m}x{k}x{n}: {e} {f}", kernel.name);
                        }
                        assert!(found[m * n..].iter().all(|v| v.is_nan()), "{} wrote past its output", kernel.name);
                    }
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }

    #[test]
    fn threads_change_nothing_not_even_the_last_bit() {
        for (m, k, n) in [(1, 300, 700), (5, 64, 513), (200, 33, 70), (97, 128, 16)] {
            let (x, w, bias) = (noise(m * k, 7), noise(n * k, 11), noise(n, 5));
            let mut packed = vec![0f32; packed_len(n, k)];
            pack(n, k, |j, kk| w[j * k + kk], &mut packed);
            let g = Gemm { m, k, n, x: &x, x_stride: k, w: Packed::F32(&packed), bias: Some(&bias), accumulate: false };
            let mut alone = vec![0f32; m * n];
            gemm(&g, &mut alone);
            for threads in [2, 3, 5] {
                let mut shared = vec![f32::NAN; m * n];
                gemm_on(&Pool::new(threads), &g, &mut shared);
                assert_eq!(alone, shared, "{m}x{k}x{n} on {threads} threads");
            }
        }
    }
}
