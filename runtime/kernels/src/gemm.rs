//! Matrix product of `f32` rows with a frozen matrix of `f32`, int8 or bf16: `y = x · wᵀ · scale + bias`.
//!
//! Dimension letters: `M` rows of `x`, `K` reduction, `N` rows of `w` (columns of `y`).
//! `w` is packed once into panels of [`NR`] output columns, `K` outermost within a panel, so that one row of a panel
//! is one vector load whatever the element type: `panel[p][k][j] = w[p·NR + j][k]`, zero where `p·NR + j ≥ N`. In bf16 an
//! element is a pair, two steps of `K` ([`crate::bf16`]).

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::bf16::{self, Pair};
use crate::epilogue::Epilogue;
use crate::isa::{Form, Isa};
use crate::threads::Pool;
use crate::tile::{Job, Table, Weight, heights};

/// Output columns in a panel.
pub const NR: usize = 16;
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
    /// `w[j][k]` rounded to bf16, packed by [`bf16::pack`]; rows are rounded too before they are multiplied.
    Bf16(&'a [Pair]),
}

impl Packed<'_> {
    /// Elements, pairs counted as one.
    pub(crate) fn len(&self) -> usize {
        match self {
            Packed::F32(w) => w.len(),
            Packed::I8 { q, .. } => q.len(),
            Packed::Bf16(w) => w.len(),
        }
    }

    /// Elements a matrix `[n, k]` of that type takes.
    pub(crate) fn needs(&self, n: usize, k: usize) -> usize {
        if matches!(self, Packed::Bf16(_)) { bf16::packed_len(n, k) } else { packed_len(n, k) }
    }

    /// Element `(j, k)` of the matrix `[n, kk]` that begins `group` matrices on, whose first row has the scale `first`.
    pub(crate) fn at(&self, group: usize, [n, kk]: [usize; 2], j: usize, k: usize, first: usize) -> f64 {
        let start = group * self.needs(n, kk);
        let at = start + (j / NR * kk + k) * NR + j % NR;
        match self {
            Packed::F32(w) => f64::from(w[at]),
            Packed::I8 { q, scale } => f64::from(q[at]) * f64::from(scale[first + j]),
            Packed::Bf16(w) => f64::from(w[start + (j / NR * kk.div_ceil(2) + k / 2) * NR + j % NR].part(k % 2)),
        }
    }

    /// What an element of a row is multiplied as.
    pub(crate) fn left(&self, x: f32) -> f64 {
        f64::from(if matches!(self, Packed::Bf16(_)) { bf16::widen(bf16::round(x)) } else { x })
    }
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
                sum += g.w.left(g.x[m * g.x_stride + k]) * g.w.at(0, [g.n, g.k], j, k, 0);
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
    /// How it computes.
    pub(crate) form: Form,
}

impl Kernel {
    /// Runs it, or returns false when this CPU cannot.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says: a planner's mistake, checked there.
    pub fn run(&self, g: &Gemm<'_>, y: &mut [f32]) -> bool {
        self.run_fused(g, &Epilogue::default(), y)
    }

    /// Runs it with an epilogue, or returns false when this CPU cannot.
    ///
    /// # Panics
    /// As [`Kernel::run`].
    pub fn run_fused(&self, g: &Gemm<'_>, e: &Epilogue<'_>, y: &mut [f32]) -> bool {
        if !(self.available)() {
            return false;
        }
        check(g, e, y);
        // SAFETY: `available` has just said yes, `check` that the slices are long enough, and `y` is borrowed alone.
        unsafe { part(self.form, g, e, 0..g.m, 0..g.n.div_ceil(NR), y.as_mut_ptr()) };
        true
    }
}

/// That every slice is as long as its shape says.
fn check(g: &Gemm<'_>, e: &Epilogue<'_>, y: &[f32]) {
    assert!(g.x_stride >= g.k || g.m < 2, "rows of x overlap");
    assert!(g.m == 0 || g.x.len() >= (g.m - 1) * g.x_stride + g.k, "x is shorter than its shape says");
    assert!(y.len() >= g.m * g.n, "y is shorter than its shape says");
    if let Packed::I8 { scale, .. } = g.w {
        assert!(scale.len() >= g.n, "there are fewer scales than columns");
    }
    assert!(g.w.len() >= g.w.needs(g.n, g.k), "w is shorter than its shape says");
    assert!(g.bias.is_none_or(|b| b.len() >= g.n), "the bias is shorter than a row of y");
    assert!(e.residual.is_none_or(|r| r.len() >= g.m * g.n), "the residual is shorter than y");
    assert!(e.residual.is_none() || e.after || !g.accumulate, "a sum is added to what y holds or to a residual");
}

/// Every form for weights of `f32` and int8, best first; those for bf16 are [`bf16::KERNELS`].
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wf32-avx512", available: || Isa::Avx512.available(), form: Form::Floats(Isa::Avx512) },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wf32-avx2", available: || Isa::Avx2.available(), form: Form::Floats(Isa::Avx2) },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "aarch64-f32wf32-neon", available: || Isa::Any.available(), form: Form::Floats(Isa::Any) },
    #[cfg(not(target_arch = "aarch64"))]
    Kernel { name: "any-f32wf32", available: || Isa::Any.available(), form: Form::Floats(Isa::Any) },
];

/// Runs the best form this CPU has, on the calling thread.
///
/// # Panics
/// When a slice is shorter than its shape says: a planner's mistake, checked there.
pub fn gemm(g: &Gemm<'_>, y: &mut [f32]) {
    let e = Epilogue::default();
    check(g, &e, y);
    // SAFETY: this CPU has its best instruction set, `check` has seen the lengths, and `y` is borrowed alone.
    unsafe { part(Form::best(), g, &e, 0..g.m, 0..g.n.div_ceil(NR), y.as_mut_ptr()) };
}

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// [`gemm`] on all threads of `pool`: by rows, or by columns when there are few rows. Equal results whatever their number.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_on(pool: &Pool, g: &Gemm<'_>, y: &mut [f32]) {
    gemm_fused(pool, g, &Epilogue::default(), y);
}

/// `y = activation(x · wᵀ · scale + bias + residual)`, or the residual after the activation, on all threads of `pool`.
///
/// The residual has the shape of `y`. Equal results whatever the number of threads.
///
/// # Panics
/// As [`gemm`], and when a residual before the activation meets `accumulate`.
pub fn gemm_fused(pool: &Pool, g: &Gemm<'_>, e: &Epilogue<'_>, y: &mut [f32]) {
    fused_on(Form::best(), pool, g, e, y);
}

/// [`gemm_fused`] in a form that this CPU has.
pub(crate) fn fused_on(form: Form, pool: &Pool, g: &Gemm<'_>, e: &Epilogue<'_>, y: &mut [f32]) {
    assert!(form.available(), "this CPU has not got the instructions");
    check(g, e, y);
    let out = Out(y.as_mut_ptr());
    let threads = if g.m * g.n * g.k < WORTH_SHARING { 1 } else { pool.threads() };
    let shares = Shares::new(g.m, g.n.div_ceil(NR), threads);
    pool.run(shares.count(), &|i| {
        let (rows, panels) = shares.part(i);
        // SAFETY: as in `gemm`; these rows and columns are written by no other call.
        unsafe { part(form, g, e, rows, panels, out.start()) };
    });
}

/// How rows and panels are shared out among threads: evenly by rows, or by panels when there are few rows.
pub(crate) struct Shares {
    rows: usize,
    panels: usize,
    down: usize,
    across: usize,
}

impl Shares {
    pub(crate) fn new(rows: usize, panels: usize, threads: usize) -> Shares {
        // Several shares a thread, so that one that was late does not hold up the others for long.
        let (down, across) = match threads {
            0 | 1 => (1, 1),
            t if rows >= 256 * t => (4 * t, 1),
            // Each thread then reads its own part of the weights, and all of the rows, which are few.
            t if rows < 64 * t && panels >= 4 * t => (1, 4 * t),
            t if rows >= 8 * t => (t, 1),
            t => (1, panels.min(t)),
        };
        Shares { rows, panels, down, across: across.max(1) }
    }

    pub(crate) fn count(&self) -> usize {
        self.down * self.across
    }

    pub(crate) fn part(&self, i: usize) -> (Range<usize>, Range<usize>) {
        (share(self.rows, self.down, i / self.across), share(self.panels, self.across, i % self.across))
    }
}

/// Part `i` of `total` in `parts` nearly equal ones.
pub(crate) fn share(total: usize, parts: usize, i: usize) -> Range<usize> {
    total * i / parts..total * (i + 1) / parts
}

/// Where results go, for threads that write disjoint parts.
pub(crate) struct Out<T>(pub(crate) *mut T);

// SAFETY: each user sees to it that threads write disjoint parts.
unsafe impl<T: Send> Sync for Out<T> {}

impl<T> Out<T> {
    pub(crate) fn start(&self) -> *mut T {
        self.0
    }
}

/// Some rows and panels.
///
/// # Safety
/// `check` has passed, the rows and panels exist, nobody else is at those results, and the CPU has the instructions.
unsafe fn part(form: Form, g: &Gemm<'_>, e: &Epilogue<'_>, rows: Range<usize>, panels: Range<usize>, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match g.w {
            Packed::F32(w) => blocks(form, g, e, w.as_ptr(), std::ptr::null(), rows, panels, y),
            Packed::I8 { q, scale } => blocks(form, g, e, q.as_ptr(), scale.as_ptr(), rows, panels, y),
            Packed::Bf16(w) => blocks(form, g, e, w.as_ptr(), std::ptr::null(), rows, panels, y),
        }
    }
}

/// # Safety
/// As [`part`].
unsafe fn blocks<W: Weight>(
    form: Form,
    g: &Gemm<'_>,
    e: &Epilogue<'_>,
    w: *const W,
    scale: *const f32,
    rows: Range<usize>,
    panels: Range<usize>,
    y: *mut f32,
) {
    let null = std::ptr::null();
    let residual = e.residual.map_or(null, |r| r.as_ptr());
    let job = Job {
        w,
        k: g.k,
        n: g.n,
        scale,
        bias: g.bias.map_or(null, |b| b.as_ptr()),
        y,
        stride: g.n,
        addend: if g.accumulate {
            y.cast_const()
        } else if e.after {
            null
        } else {
            residual
        },
        activation: e.activation,
        after: if e.after { residual } else { null },
    };
    let mut memory = MaybeUninit::<Table<f32>>::uninit();
    // SAFETY: an empty table is made where it lies; the rest of it may be uninitialised.
    let table = unsafe {
        Table::start(memory.as_mut_ptr());
        memory.assume_init_mut()
    };
    let height = W::rows(form);
    let most = (W::reach(form) / g.k.max(1)).clamp(4 * height, 128 * height);
    let mut first = rows.start;
    while first < rows.end {
        let count = most.min(rows.end - first);
        table.clear();
        for (row, height) in heights(count, height) {
            let x = g.x.as_ptr().wrapping_add((first + row) * g.x_stride);
            table.push(first + row, height, g.k);
            table.segment(0, (0..height).map(|r| x.wrapping_add(r * g.x_stride)));
        }
        // SAFETY: the caller's promise, and `check`.
        unsafe { W::block(form, &job, table, panels.clone()) };
        first += count;
    }
}

/// `a · b + c`: one rounding where the CPU has the instruction, two where calling a library for one would cost a
/// hundred times as much.
#[inline(always)]
pub(crate) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epilogue::Activation;

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

    /// What the weights are.
    #[derive(Clone, Copy, PartialEq)]
    enum Weights {
        F32,
        I8,
        Bf16,
    }

    #[test]
    fn every_kernel_agrees_with_the_formula_at_every_tile_edge_and_writes_nothing_else() {
        let mut ran = 0;
        let of_floats = KERNELS.iter().flat_map(|k| [(k, Weights::F32), (k, Weights::I8)]);
        for (kernel, weights) in of_floats.chain(bf16::KERNELS.iter().map(|k| (k, Weights::Bf16))) {
            for (m, k, n) in [
                (1, 1, 1),
                (3, 9, 15),
                (4, 16, 16),
                (5, 17, 33),
                (9, 64, 40),
                (2, 0, 3),
                (13, 31, 10),
                (25, 7, 70),
                (1, 20, 77),
                (2, 20, 77),
                (1, 5, 131),
                (2, 5, 64),
            ] {
                for (accumulate, residual, after, activation) in [
                    (false, false, false, Activation::None),
                    (true, false, false, Activation::Relu),
                    (false, true, false, Activation::Clip(-0.3, 0.5)),
                    (false, true, false, Activation::Gelu),
                    (true, true, true, Activation::Silu),
                ] {
                    let x = noise(m * (k + 2), 7);
                    let w = noise(n * k, 11);
                    let scale: Vec<f32> = noise(n, 3).iter().map(|s| s.abs() * 0.01 + 0.001).collect();
                    let bias = noise(n, 5);
                    let mut packed = vec![0f32; packed_len(n, k)];
                    let mut packed_q = vec![0i8; packed_len(n, k)];
                    let mut pairs = vec![Pair::default(); bf16::packed_len(n, k)];
                    pack(n, k, |j, kk| w[j * k + kk], &mut packed);
                    pack(n, k, |j, kk| (w[j * k + kk] * 127.0) as i8, &mut packed_q);
                    bf16::pack(n, k, |j, kk| w[j * k + kk], &mut pairs);
                    let w = match weights {
                        Weights::F32 => Packed::F32(&packed),
                        Weights::I8 => Packed::I8 { q: &packed_q, scale: &scale },
                        Weights::Bf16 => Packed::Bf16(&pairs),
                    };
                    let g = Gemm { m, k, n, x: &x, x_stride: k + 2, w, bias: Some(&bias), accumulate };
                    let mut expected = noise(m * n, 17);
                    let mut found = expected.clone();
                    found.extend([f32::NAN; 4]);
                    let add = noise(m * n, 23);
                    let e = Epilogue { residual: residual.then_some(&add[..]), after, activation };
                    reference(&g, &mut expected);
                    for (v, add) in expected.iter_mut().zip(&add) {
                        let (before, after) =
                            if residual { if after { (0.0, *add) } else { (*add, 0.0) } } else { (0.0, 0.0) };
                        *v = activation.reference(f64::from(*v + before)) as f32 + after;
                    }
                    if !kernel.run_fused(&g, &e, &mut found) {
                        println!("{} cannot run on this CPU and was not tested", kernel.name);
                        continue;
                    }
                    ran += 1;
                    // K roundings of products no larger than max|x|·max|w|, plus scale, bias, accumulation, residual and two of
                    // the activation, whose slope is at most 1.2.
                    let w_max =
                        if weights == Weights::I8 { 127.0 * scale.iter().fold(0f32, |a, &b| a.max(b)) } else { 1.0 };
                    let tolerance = (k as f32 + 8.0) * f32::EPSILON * w_max.max(1.0) * 1.2;
                    for (e, f) in expected.iter().zip(&found) {
                        assert!((e - f).abs() <= tolerance, "{} {m}x{k}x{n}: {e} {f}", kernel.name);
                    }
                    assert!(found[m * n..].iter().all(|v| v.is_nan()), "{} wrote past its output", kernel.name);
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
            let mut pairs = vec![Pair::default(); bf16::packed_len(n, k)];
            bf16::pack(n, k, |j, kk| w[j * k + kk], &mut pairs);
            for w in [Packed::F32(&packed), Packed::Bf16(&pairs)] {
                let g = Gemm { m, k, n, x: &x, x_stride: k, w, bias: Some(&bias), accumulate: false };
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
}
