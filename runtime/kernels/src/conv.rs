//! Convolution over up to three spatial axes, channels before space (`NCDHW`): as a matrix product of weights and
//! columns laid out a tile at a time, and directly for depthwise convolutions.
//!
//! Dimension letters: `M` channels out of one group, `K` reduction (`C · KD · KH · KW`), `P` output positions.
//! One or two spatial axes are three, the first of them of length 1.

use std::ops::Range;

use crate::isa::Isa;
use crate::simd::{F32s, per_isa};

/// Rows of weights packed together.
pub const MR: usize = 8;
/// Columns a tile of columns is padded to a multiple of.
pub const NR: usize = 32;

/// How a window slides over one image of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Input lengths: depth, height, width.
    pub input: [usize; 3],
    /// Kernel lengths.
    pub kernel: [usize; 3],
    /// Output lengths.
    pub output: [usize; 3],
    /// Distance between windows.
    pub stride: [usize; 3],
    /// Distance between the positions of a window.
    pub dilation: [usize; 3],
    /// Padding before the input; negative padding crops it.
    pub pad: [isize; 3],
}

impl Window {
    /// Whether each position reads the pixel of the same place and nothing else: the convolution is a matrix product.
    pub(crate) fn pointwise(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.pad == [0; 3] && self.output == self.input
    }

    /// Kernel positions.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Input positions.
    pub fn pixels(&self) -> usize {
        self.input.iter().product()
    }

    /// Output positions.
    pub fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Whether every output position is the input position of the same number.
    pub fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.input == self.output && self.stride == [1; 3] && self.pad == [0; 3]
    }

    /// Whether there is no depth: it slides over lines and along them alone.
    pub fn is_flat(&self) -> bool {
        [self.input[0], self.kernel[0], self.output[0]] == [1; 3] && self.pad[0] == 0
    }

    /// The input lines that output lines `lines` meet, of a window that has no depth.
    pub fn lines(&self, lines: Range<usize>) -> Range<usize> {
        let start = |line: usize| (line * self.stride[1]) as isize - self.pad[1];
        let end = start(lines.end.max(1) - 1) + ((self.kernel[1] - 1) * self.dilation[1]) as isize + 1;
        let clip = |v: isize| v.clamp(0, self.input[1] as isize) as usize;
        clip(start(lines.start))..clip(end).max(clip(start(lines.start)))
    }

    /// The window that makes output lines `lines` of the input lines they meet alone.
    pub fn part(&self, lines: Range<usize>) -> Window {
        let meets = self.lines(lines.clone());
        let mut part = *self;
        part.input[1] = meets.len();
        part.output[1] = lines.len();
        part.pad[1] = meets.start as isize + self.pad[1] - (lines.start * self.stride[1]) as isize;
        part
    }

    /// Kernel position number `tap` along each axis.
    fn tap(&self, tap: usize) -> [usize; 3] {
        let [_, h, w] = self.kernel;
        [tap / w / h, tap / w % h, tap % w]
    }

    /// Where output position `o` of `axis` meets the input at kernel position `k`, if it does.
    #[inline]
    fn meets(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let i = (o * self.stride[axis] + k * self.dilation[axis]) as isize - self.pad[axis];
        (i >= 0 && (i as usize) < self.input[axis]).then_some(i as usize)
    }

    /// The output positions of the innermost axis that meet the input at kernel position `k`, and where in the input
    /// the first of them does; each further one is a stride further.
    #[inline]
    fn run(&self, k: usize) -> (Range<usize>, usize) {
        let (stride, shift) = (self.stride[2] as isize, (k * self.dilation[2]) as isize - self.pad[2]);
        let up = |v: isize| (v.max(0) as usize).div_ceil(stride as usize).min(self.output[2]);
        let (first, last) = (up(-shift), up(self.input[2] as isize - shift));
        (first..last.max(first), (first as isize * stride + shift).max(0) as usize)
    }
}

/// The formula of one group of one image, in `f64`: `y: [M, P]` from `x: [C, …]` and `w: [M, C, …]`.
pub fn reference(g: &Window, c: usize, x: &[f32], m: usize, w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (taps, pixels) = (g.taps(), g.pixels());
    for o in 0..m {
        for p in 0..g.positions() {
            let at = [p / g.output[2] / g.output[1], p / g.output[2] % g.output[1], p % g.output[2]];
            let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
            for tap in 0..taps {
                let k = g.tap(tap);
                let [Some(d), Some(h), Some(v)] = std::array::from_fn(|a| g.meets(a, at[a], k[a])) else { continue };
                let i = (d * g.input[1] + h) * g.input[2] + v;
                for ch in 0..c {
                    sum += f64::from(x[ch * pixels + i]) * f64::from(w[(o * c + ch) * taps + tap]);
                }
            }
            y[o * g.positions() + p] = sum as f32;
        }
    }
}

/// Calls `f(q, run, first)` for every stretch of output positions `p` within one innermost row: they are numbers `q..`
/// of `p`, positions `run` of their row, and the row is number `first / output[2]`.
#[inline]
fn rows(g: &Window, p: &Range<usize>, mut f: impl FnMut(usize, Range<usize>, [usize; 2])) {
    let width = g.output[2];
    let mut at = p.start;
    while at < p.end {
        let (row, first) = (at / width, at % width);
        let last = width.min(first + p.end - at);
        f(at - p.start, first..last, [row / g.output[1], row % g.output[1]]);
        at += last - first;
    }
}

/// Rows `k` of the columns of positions `p`: `out[kk][q] = x[c][p_q · stride + tap · dilation - pad]`, where row `kk` is
/// channel `c`, kernel position `tap`; zero outside the input and from `p.len()` to `pitch`. `x: [C, …]`.
///
/// # Panics
/// When a slice is shorter than the window says.
pub fn columns(g: &Window, x: &[f32], k: Range<usize>, p: Range<usize>, pitch: usize, out: &mut [f32]) {
    let (taps, pixels) = (g.taps(), g.pixels());
    let [_, height, width] = g.input;
    let count = p.len();
    for (row, kk) in out.chunks_exact_mut(pitch).zip(k) {
        let (plane, tap) = (&x[kk / taps * pixels..][..pixels], g.tap(kk % taps));
        let (row, tail) = row.split_at_mut(count);
        tail.fill(0.0);
        if g.is_pointwise() {
            row.copy_from_slice(&plane[p.clone()]);
            continue;
        }
        let (valid, start) = g.run(tap[2]);
        let stride = g.stride[2];
        rows(g, &p, |q, run, [d, h]| {
            let row = &mut row[q..q + run.len()];
            let (Some(d), Some(h)) = (g.meets(0, d, tap[0]), g.meets(1, h, tap[1])) else {
                row.fill(0.0);
                return;
            };
            let (first, last) = (valid.start.clamp(run.start, run.end), valid.end.clamp(run.start, run.end));
            let last = last.max(first);
            row[..first - run.start].fill(0.0);
            row[last - run.start..].fill(0.0);
            if first == last {
                return;
            }
            let row = &mut row[first - run.start..last - run.start];
            let from = &plane[(d * height + h) * width + start + (first - valid.start) * stride..];
            if stride == 1 {
                row.copy_from_slice(&from[..row.len()]);
            } else {
                row.iter_mut().zip(from.iter().step_by(stride)).for_each(|(o, &v)| *o = v);
            }
        });
    }
}

/// The reverse of [`columns`]: adds the columns of positions `p` into `y: [C, …]`.
///
/// # Panics
/// When a slice is shorter than the window says.
pub fn add_columns(g: &Window, columns: &[f32], k: Range<usize>, p: Range<usize>, pitch: usize, y: &mut [f32]) {
    let (taps, pixels) = (g.taps(), g.pixels());
    let [_, height, width] = g.input;
    for (row, kk) in columns.chunks_exact(pitch).zip(k) {
        let (plane, tap) = (&mut y[kk / taps * pixels..][..pixels], g.tap(kk % taps));
        let (valid, start) = g.run(tap[2]);
        let stride = g.stride[2];
        rows(g, &p, |q, run, [d, h]| {
            let (Some(d), Some(h)) = (g.meets(0, d, tap[0]), g.meets(1, h, tap[1])) else { return };
            let (first, last) = (valid.start.clamp(run.start, run.end), valid.end.clamp(run.start, run.end));
            if first >= last {
                return;
            }
            let row = &row[q + first - run.start..q + last - run.start];
            let to = &mut plane[(d * height + h) * width + start + (first - valid.start) * stride..];
            if stride == 1 {
                to.iter_mut().zip(row).for_each(|(o, &v)| *o += v);
            } else {
                to.iter_mut().step_by(stride).zip(row).for_each(|(o, &v)| *o += v);
            }
        });
    }
}

/// Depthwise convolution of one plane: `y: [P]` from `x` and the `taps` weights of its channel.
///
/// # Panics
/// When a slice is shorter than the window says.
pub fn depthwise(g: &Window, x: &[f32], w: &[f32], bias: f32, y: &mut [f32]) {
    y.fill(bias);
    for_each_run(g, |tap, y_first, x_first, n| {
        let weight = w[tap];
        let y = &mut y[y_first..y_first + n];
        let x = &x[x_first..];
        match g.stride[2] {
            1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += weight * x),
            2 => y.iter_mut().zip(x.chunks(2)).for_each(|(y, x)| *y += weight * x[0]),
            s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y += weight * x),
        }
    });
}

/// Calls `f(tap, y, x, n)` for every stretch of `n` output positions from number `y` on that meet the input at kernel
/// position `tap` from input position `x` on, a stride apart; output rows outermost, so that a row stays in the cache.
#[inline(always)]
pub(crate) fn for_each_run(g: &Window, mut f: impl FnMut(usize, usize, usize, usize)) {
    let [depth, height, width] = g.output;
    let [_, kh, kw] = g.kernel;
    for od in 0..depth {
        for oh in 0..height {
            for kd in 0..g.kernel[0] {
                let Some(d) = g.meets(0, od, kd) else { continue };
                for k1 in 0..kh {
                    let Some(h) = g.meets(1, oh, k1) else { continue };
                    for k2 in 0..kw {
                        let (run, start) = g.run(k2);
                        if run.is_empty() {
                            continue;
                        }
                        let y = (od * height + oh) * width + run.start;
                        let x = (d * g.input[1] + h) * g.input[2] + start;
                        f((kd * kh + k1) * kw + k2, y, x, run.len());
                    }
                }
            }
        }
    }
}

/// Elements a packed `[m, k]` matrix takes.
pub const fn packed_len(m: usize, k: usize) -> usize {
    m.div_ceil(MR) * MR * k
}

/// Packs `w` (`w(i, k)` gives row `i`, column `k`) into blocks of [`MR`] rows, `K` outermost within a block; zero where
/// there is no row. `out` has [`packed_len`]`(m, k)` elements.
///
/// # Panics
/// When `out` is too short.
pub fn pack<T: Copy + Default>(m: usize, k: usize, w: impl Fn(usize, usize) -> T, out: &mut [T]) {
    for block in 0..m.div_ceil(MR) {
        for kk in 0..k {
            for r in 0..MR {
                let row = block * MR + r;
                out[(block * k + kk) * MR + r] = if row < m { w(row, kk) } else { T::default() };
            }
        }
    }
}

/// A packed frozen matrix `[M, K]`.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// `w[i][k]` itself.
    F32(&'a [f32]),
    /// `w[i][k] = q[i][k] · scale[i]`; `scale` has `M` entries.
    I8 {
        /// The integers, packed.
        q: &'a [i8],
        /// One scale a row.
        scale: &'a [f32],
    },
}

/// Where the rows of columns begin: row `kk` at `kk / taps.len() · step + taps[kk % taps.len()]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Of the rows of a channel, each from the channel's first element; at least one.
    pub taps: &'a [u32],
    /// From one channel to the next.
    pub step: usize,
}

impl Rows<'_> {
    /// Rows that lie so far apart.
    pub fn apart(pitch: usize) -> Rows<'static> {
        Rows { taps: &[0], step: pitch }
    }
}

/// Which columns are results: of every `pitch` the first `width`, which lie one after another in `y`.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// At least `width`.
    pub pitch: usize,
    /// At least 1.
    pub width: usize,
}

impl Lines {
    /// All of `n` columns.
    pub fn whole(n: usize) -> Lines {
        Lines { pitch: n.max(1), width: n.max(1) }
    }
}

/// One part of a product: `y[i][q] += Σ_{kk in part} w[i][kk] · columns[kk - part.start][q]`; the first part, and only
/// that, overwrites `y` and adds the bias.
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// Rows of `w` and `y`.
    pub m: usize,
    /// The whole reduction length.
    pub k: usize,
    /// The part of the reduction that `columns` holds, of whole channels of `rows`; the first one starts at 0.
    pub part: Range<usize>,
    /// The weights, of the whole reduction.
    pub w: Packed<'a>,
    /// What the rows of columns lie in: of each, `n` elements and those up to the next multiple of [`NR`] are there.
    pub columns: &'a [f32],
    /// Where they begin there.
    pub rows: Rows<'a>,
    /// Columns.
    pub n: usize,
    /// Which of them are results.
    pub lines: Lines,
    /// `M` floats to add, if any.
    pub bias: Option<&'a [f32]>,
    /// Distance between the rows of `y`.
    pub y_stride: usize,
}

impl Product<'_> {
    /// That every slice is as long as the shapes say.
    fn check(&self, y: &[f32]) {
        let (held, scales) = match self.w {
            Packed::F32(w) => (w.len(), self.m),
            Packed::I8 { q, scale } => (q.len(), scale.len()),
        };
        assert!(held >= packed_len(self.m, self.k) && self.part.end <= self.k, "w is shorter than its shape says");
        assert!(scales >= self.m, "there are fewer scales than rows");
        assert!(self.bias.is_none_or(|b| b.len() >= self.m), "there are fewer biases than rows");
        let Rows { taps, step } = self.rows;
        assert!(!taps.is_empty() && self.part.len().is_multiple_of(taps.len()), "a part of a channel");
        let (channels, furthest) = (self.part.len() / taps.len(), taps.iter().max().map_or(0, |t| *t as usize));
        assert!(
            channels == 0 || self.columns.len() >= (channels - 1) * step + furthest + self.n.next_multiple_of(NR),
            "columns are shorter than their shape says"
        );
        let Lines { pitch, width } = self.lines;
        assert!((1..=pitch).contains(&width), "a line is wider than its pitch");
        let results = self.n / pitch * width + (self.n % pitch).min(width);
        assert!(self.m == 0 || y.len() >= (self.m - 1) * self.y_stride + results, "y is shorter than its shape says");
    }
}

/// A faster form: its name, whether this CPU can run it, and the call.
pub struct Kernel {
    /// `{arch}-{dtypes}-{variant}`.
    pub name: &'static str,
    /// Whether this CPU has what it needs.
    pub available: fn() -> bool,
    /// The instruction set it is compiled for.
    isa: Isa,
}

impl Kernel {
    /// Runs it, or returns false when this CPU cannot.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says: a planner's mistake, checked there.
    pub fn run(&self, g: &Product<'_>, y: &mut [f32]) -> bool {
        if !(self.available)() {
            return false;
        }
        g.check(y);
        // SAFETY: `available` has just said yes, and `check` that the slices are long enough.
        unsafe { products::on(self.isa, g, y.as_mut_ptr()) };
        true
    }
}

/// Every form, best first.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wf32-columns-avx512", available: || Isa::Avx512.available(), isa: Isa::Avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "x86_64-f32wf32-columns-avx2", available: || Isa::Avx2.available(), isa: Isa::Avx2 },
    #[cfg(target_arch = "aarch64")]
    Kernel { name: "aarch64-f32wf32-columns-neon", available: || Isa::Any.available(), isa: Isa::Any },
    #[cfg(not(target_arch = "aarch64"))]
    Kernel { name: "any-f32wf32-columns", available: || Isa::Any.available(), isa: Isa::Any },
];

/// Runs the best form this CPU has.
///
/// # Panics
/// As [`Kernel::run`].
pub fn product(g: &Product<'_>, y: &mut [f32]) {
    for k in KERNELS {
        if k.run(g, y) {
            return;
        }
    }
}

per_isa! { products = product_by; (g: &Product<'_>, y: *mut f32) }

/// # Safety
/// [`Product::check`] has passed, and the CPU has the instructions.
#[inline(always)]
unsafe fn product_by<V: F32s>(g: &Product<'_>, y: *mut f32) {
    // Sums of eight rows by two vectors fill half of 32 registers.
    // SAFETY: the caller's promise.
    unsafe {
        if V::LANES == 16 || cfg!(target_arch = "aarch64") { all_rows::<V, 8>(g, y) } else { all_rows::<V, 4>(g, y) }
    }
}

/// `R` rows (a divisor of [`MR`]) by one or two vectors of columns are summed together.
///
/// # Safety
/// As [`product_by`].
#[inline(always)]
unsafe fn all_rows<V: F32s, const R: usize>(g: &Product<'_>, y: *mut f32) {
    for row in (0..g.m).step_by(R) {
        for column in (0..g.n).step_by(2 * V::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                if g.n - column > V::LANES {
                    block::<V, R, 2>(g, row, column, y)
                } else {
                    block::<V, R, 1>(g, row, column, y)
                }
            }
        }
    }
}

/// Most columns of a block, and one vector that may be read behind them.
const SUMS: usize = 2 * 16 + 16;

/// # Safety
/// As [`product_by`]; the row is a multiple of `R` below `M`, the column one of `LANES` below `N`.
#[inline(always)]
unsafe fn block<V: F32s, const R: usize, const N: usize>(g: &Product<'_>, row: usize, column: usize, y: *mut f32) {
    let mut sums = [[0f32; SUMS]; R];
    // SAFETY: the block of rows and columns up to the next whole vector exist, as the caller says.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; R];
        let first = (row / MR * g.k + g.part.start) * MR + row % MR;
        macro_rules! sum {
            ($w:expr, $read:expr) => {{
                let (mut w, mut channel) = ($w.as_ptr().add(first), g.columns.as_ptr().wrapping_add(column));
                for _ in 0..g.part.len() / g.rows.taps.len() {
                    for &tap in g.rows.taps {
                        let x = channel.add(tap as usize);
                        let b: [V; N] = std::array::from_fn(|v| V::load(x.add(v * V::LANES)));
                        for r in 0..R {
                            let a = V::splat($read(w.add(r)));
                            for v in 0..N {
                                acc[r][v] = a.mul_add(b[v], acc[r][v]);
                            }
                        }
                        w = w.wrapping_add(MR);
                    }
                    channel = channel.wrapping_add(g.rows.step);
                }
            }};
        }
        match g.w {
            Packed::F32(w) => sum!(w, |w: *const f32| *w),
            Packed::I8 { q, .. } => sum!(q, |w: *const i8| f32::from(*w)),
        }
        for r in 0..R {
            for v in 0..N {
                acc[r][v].store(sums[r].as_mut_ptr().add(v * V::LANES));
            }
        }
        let rows = R.min(g.m - row);
        for (r, sums) in sums[..rows].iter_mut().enumerate() {
            finish::<V, N>(g, row + r, sums);
        }
        let end = g.n.min(column + N * V::LANES);
        let Lines { pitch, width } = g.lines;
        let mut q = column;
        while q < end {
            let (line, at) = (q / pitch, q % pitch);
            let next = end.min(q - at + pitch);
            let len = (next - q).min(width.saturating_sub(at));
            if len > 0 {
                let mut to = y.add(row * g.y_stride + line * width + at);
                for sums in &sums[..rows] {
                    put::<V>(&sums[q - column..], g.part.start > 0, len, to);
                    to = to.wrapping_add(g.y_stride);
                }
            }
            q = next;
        }
    }
}

/// Sums of row `i` times their scale, and the bias, of the first part.
///
/// # Safety
/// As [`product_by`].
#[inline(always)]
unsafe fn finish<V: F32s, const N: usize>(g: &Product<'_>, i: usize, sums: &mut [f32; SUMS]) {
    let scale = if let Packed::I8 { scale, .. } = g.w { scale[i] } else { 1.0 };
    let bias = if g.part.start == 0 { g.bias.map_or(0.0, |b| b[i]) } else { 0.0 };
    for v in 0..N {
        // SAFETY: the caller's promise; `N` vectors are there.
        unsafe {
            let p = sums.as_mut_ptr().add(v * V::LANES);
            V::load(p).mul(V::splat(scale)).add(V::splat(bias)).store(p);
        }
    }
}

/// `len` sums to `y`, or added to what is there.
///
/// # Safety
/// So many elements are at `y`, so many and one vector more in `sums`, and the CPU has the instructions.
#[inline(always)]
unsafe fn put<V: F32s>(sums: &[f32], add: bool, len: usize, y: *mut f32) {
    debug_assert!(sums.len() >= len + V::LANES - 1);
    for j in (0..len).step_by(V::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut v = V::load(sums.as_ptr().add(j));
            if add {
                v = v.add(V::load_part(y.add(j), len - j));
            }
            if len - j >= V::LANES { v.store(y.add(j)) } else { v.store_part(y.add(j), len - j) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nhwc::tests::noise;

    fn windows() -> Vec<Window> {
        let mut all = Vec::new();
        for (input, kernel, stride, dilation, pad, end) in [
            ([1, 1, 9], [1, 1, 3], [1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]),
            ([1, 7, 6], [1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]),
            ([1, 8, 11], [1, 3, 3], [1, 2, 2], [1, 1, 1], [0, 1, 1], [0, 1, 0]),
            ([1, 9, 13], [1, 2, 5], [1, 1, 3], [1, 3, 2], [0, 2, 4], [0, 0, 5]),
            ([4, 5, 6], [3, 2, 3], [2, 1, 2], [1, 2, 1], [1, 0, 2], [1, 1, 0]),
            ([1, 6, 12], [1, 3, 1], [1, 1, 1], [1, 1, 1], [0, -1, -2], [0, 0, -3]),
            ([1, 1, 2], [1, 1, 9], [1, 1, 1], [1, 1, 1], [0, 0, 8], [0, 0, 8]),
            ([1, 40, 50], [1, 3, 3], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1]),
        ] {
            let output = std::array::from_fn(|a| {
                let span = input[a] as isize + pad[a] + end[a] - (dilation[a] * (kernel[a] - 1) + 1) as isize;
                span as usize / stride[a] + 1
            });
            all.push(Window { input, kernel, output, stride, dilation, pad });
        }
        all
    }

    #[test]
    fn every_kernel_times_columns_is_the_convolution_and_nothing_else_is_written() {
        let mut ran = 0;
        for kernel in KERNELS {
            for g in windows() {
                for (m, c, int8, part, tile) in
                    [(1, 1, false, 99, 99), (8, 2, false, 5, 40), (13, 3, true, 7, 1000), (20, 5, true, 64, 33)]
                {
                    let (k, p) = (c * g.taps(), g.positions());
                    let x = noise(c * g.pixels(), 3);
                    let bias = noise(m, 5);
                    let scale: Vec<f32> = noise(m, 9).iter().map(|s| s.abs() * 0.01 + 0.001).collect();
                    let q: Vec<i8> = noise(m * k, 7).iter().map(|v| (v * 127.0) as i8).collect();
                    let w: Vec<f32> = if int8 {
                        (0..m * k).map(|i| f32::from(q[i]) * scale[i / k]).collect()
                    } else {
                        noise(m * k, 7)
                    };
                    let (mut packed, mut packed_q) = (vec![0f32; packed_len(m, k)], vec![0i8; packed_len(m, k)]);
                    pack(m, k, |i, kk| w[i * k + kk], &mut packed);
                    pack(m, k, |i, kk| q[i * k + kk], &mut packed_q);
                    let mut want = vec![0.0; m * p];
                    reference(&g, c, &x, m, &w, Some(&bias), &mut want);
                    let mut found = vec![f32::NAN; m * p + 4];
                    let mut first = 0;
                    let mut all = true;
                    while first < p {
                        let last = p.min(first + tile);
                        let pitch = (last - first).div_ceil(NR) * NR;
                        for start in (0..k).step_by(part) {
                            let part = start..k.min(start + part);
                            let mut out = vec![f32::NAN; part.len() * pitch];
                            columns(&g, &x, part.clone(), first..last, pitch, &mut out);
                            let w =
                                if int8 { Packed::I8 { q: &packed_q, scale: &scale } } else { Packed::F32(&packed) };
                            let product = Product {
                                m,
                                k,
                                part,
                                w,
                                columns: &out,
                                rows: Rows::apart(pitch),
                                n: last - first,
                                lines: Lines::whole(last - first),
                                bias: Some(&bias),
                                y_stride: p,
                            };
                            all &= kernel.run(&product, &mut found[first..]);
                        }
                        first = last;
                    }
                    if !all {
                        println!("{} cannot run on this CPU and was not tested", kernel.name);
                        continue;
                    }
                    ran += 1;
                    // K roundings of products below 1.4 in magnitude, those of the parts, the scale and the bias.
                    let tolerance = 1.4 * (k as f32 + k as f32 / part as f32 + 4.0) * f32::EPSILON;
                    for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                        assert!((a - b).abs() <= tolerance, "{} {g:?} {m}x{c} at {i}: {a} {b}", kernel.name);
                    }
                    assert!(found[m * p..].iter().all(|v| v.is_nan()), "{} wrote past its output", kernel.name);
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }

    #[test]
    fn a_depthwise_plane_is_the_convolution_of_one_channel() {
        for g in windows() {
            let (x, w) = (noise(g.pixels(), 3), noise(g.taps(), 7));
            let (mut want, mut found) = (vec![0.0; g.positions()], vec![0.0; g.positions()]);
            reference(&g, 1, &x, 1, &w, Some(&[0.25]), &mut want);
            depthwise(&g, &x, &w, 0.25, &mut found);
            for (a, b) in want.iter().zip(&found) {
                assert!((a - b).abs() <= (g.taps() as f32 + 2.0) * f32::EPSILON, "{g:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn adding_columns_is_the_transpose_of_laying_them_out() {
        // <columns(x), v> = <x, add_columns(v)> for every x and v; the values are small integers, so the sums are exact.
        for g in windows() {
            let whole = |n, seed| noise(n, seed).iter().map(|v| (v * 8.0).round()).collect::<Vec<f32>>();
            let (c, p) = (2, g.positions());
            let pitch = p.div_ceil(NR) * NR;
            let rows = c * g.taps();
            let (x, v) = (whole(c * g.pixels(), 3), whole(rows * pitch, 5));
            let mut out = vec![f32::NAN; rows * pitch];
            columns(&g, &x, 0..rows, 0..p, pitch, &mut out);
            let mut y = vec![0.0; c * g.pixels()];
            let (half, k) = (p / 2, rows / 2);
            for part in [0..k, k..rows] {
                // In two halves of positions, as a tiled caller does.
                let moved: Vec<f32> = v[part.start * pitch..part.end * pitch]
                    .chunks_exact(pitch)
                    .flat_map(|row| row[half..].iter().copied().chain(std::iter::repeat_n(0.0, half)))
                    .collect();
                add_columns(&g, &v[part.start * pitch..], part.clone(), 0..half, pitch, &mut y);
                add_columns(&g, &moved, part, half..p, pitch, &mut y);
            }
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            assert_eq!(dot(&out, &v), dot(&x, &y), "{g:?}");
        }
    }
}
