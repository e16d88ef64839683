//! Convolution of 8-bit codes with channels innermost (`N[D]HWC`): `u8` by `i8`, summed exactly in `i32`, finished while the
//! sums are in the cache. Padding has the code of 0.
//!
//! Dimension letters: `C` channels in, `O` channels out, `P` output positions of one image, `G` groups.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::conv::Window;
use crate::epilogue::Epilogue;
use crate::gemm::{Out, Shares, share};
use crate::nhwc::{Run, pixel};
use crate::qgemm::{self, Columns, NR, Requant, Right};
use crate::qtile::{self, COLUMNS, Dot, Finish, Job, To, block};
use crate::threads::Pool;
use crate::window::{CHANNELS, Geometry, Scratch};

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 17;
/// Bytes of copied rows that always fit, see [`supports`].
const COPIED: usize = 12 * 1024;

/// One convolution: `sum[n][p][o] = Σ_tap,c x[n][p·stride + tap·dilation - pad][c] · w[o][tap][c] + offset[o]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// How the window slides; one or two spatial axes are three, the first of them of length 1.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels of a pixel, of all groups.
    pub channels: usize,
    /// Channels out, of all groups.
    pub outputs: usize,
    /// Groups; both channel counts are multiples of it.
    pub groups: usize,
    /// `[N, …, C]`.
    pub x: &'a [u8],
    /// The code of 0, which is what padding holds.
    pub zero: u8,
    /// For each group the matrix `[taps · C/G, O/G]` (channels innermost) packed by [`qgemm::pack`], one after the other; bins only when
    /// there is one group.
    pub w: Right<'a>,
    /// `O` offsets, the bias less `zero` times the sum of the channel's weights, and `O` scales.
    pub columns: Columns<'a>,
}

impl Conv<'_> {
    /// Reduction length of a group.
    pub fn k(&self) -> usize {
        self.window.taps() * (self.channels / self.groups)
    }

    /// Bytes the packed weights take.
    pub fn packed_len(&self) -> usize {
        self.groups * qgemm::packed_len(self.outputs / self.groups, self.k())
    }

    fn rows(&self) -> usize {
        self.batch * self.window.positions()
    }

    fn check(&self, y: usize) {
        assert!(supports(&self.window, self.channels, self.groups), "ask `supports` first");
        assert!(self.outputs.is_multiple_of(self.groups), "groups divide the channels out");
        assert!(self.x.len() >= self.batch * self.window.pixels() * self.channels, "x is shorter than its shape says");
        assert!(y >= self.rows() * self.outputs, "y is shorter than its shape says");
        let whole = match self.w {
            Right::Panels(w) => w.len() >= self.packed_len(),
            Right::Bins(_) => self.groups == 1 && self.w.is_of(self.outputs, self.k()),
        };
        assert!(whole, "w is not of its shape");
        self.columns.check(self.outputs);
    }
}

/// Whether the convolutions take that many channels: all but absurd ones.
pub fn supports(window: &Window, channels: usize, groups: usize) -> bool {
    crate::nhwc::supports(window, channels, groups)
        && ((channels / groups).is_multiple_of(4) || window.taps() * (channels / groups) + 4 <= COPIED)
}

/// The sums, by the formula.
pub fn reference(c: &Conv<'_>, sums: &mut [i32]) {
    let (g, cg, og) = (&c.window, c.channels / c.groups, c.outputs / c.groups);
    let steps = c.k().div_ceil(4);
    for row in 0..c.rows() {
        let (image, p) = (row / g.positions(), row % g.positions());
        let out = [p / g.output[2] / g.output[1], p / g.output[2] % g.output[1], p % g.output[2]];
        for o in 0..c.outputs {
            let (group, j) = (o / og, o % og);
            let mut sum = c.columns.offset[o];
            for tap in 0..g.taps() {
                for ch in 0..cg {
                    let x = pixel(g, out, tap)
                        .map_or(c.zero, |i| c.x[(image * g.pixels() + i) * c.channels + group * cg + ch]);
                    let k = tap * cg + ch;
                    let w = c.w.at(group * qgemm::packed_len(og, c.k()), steps, k, j);
                    sum = sum.wrapping_add(i32::from(x) * w);
                }
            }
            sums[row * c.outputs + o] = sum;
        }
    }
}

/// The convolution as codes, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says, or [`supports`] says no: a planner's mistake, checked there.
pub fn conv_codes(pool: &Pool, c: &Conv<'_>, r: &Requant<'_>, y: &mut [u8]) {
    codes_on(Dot::best(), pool, c, r, y);
}

/// [`conv_codes`] in one form; returns false where this CPU has not got it.
///
/// # Panics
/// As [`conv_codes`].
pub fn conv_codes_by(kernel: &qgemm::Kernel, pool: &Pool, c: &Conv<'_>, r: &Requant<'_>, y: &mut [u8]) -> bool {
    let available = kernel.available();
    if available {
        codes_on(kernel.dot, pool, c, r, y);
    }
    available
}

/// The convolution as floats, `activation(sum · scale + bias + residual)`, on all threads of `pool`.
///
/// # Panics
/// As [`conv_codes`].
pub fn conv_floats(pool: &Pool, c: &Conv<'_>, bias: Option<&[f32]>, e: &Epilogue<'_>, y: &mut [f32]) {
    floats_on(Dot::best(), pool, c, bias, e, y);
}

fn codes_on(dot: Dot, pool: &Pool, c: &Conv<'_>, r: &Requant<'_>, y: &mut [u8]) {
    c.check(y.len());
    r.check(c.rows() * c.outputs);
    let out = Out(y.as_mut_ptr());
    shared(dot, pool, c, |first| To::Codes { y: out.start().wrapping_add(first), requant: r, shift: first });
}

fn floats_on(dot: Dot, pool: &Pool, c: &Conv<'_>, bias: Option<&[f32]>, e: &Epilogue<'_>, y: &mut [f32]) {
    c.check(y.len());
    assert!(bias.is_none_or(|b| b.len() >= c.outputs), "the bias is shorter than the channels out");
    assert!(e.residual.is_none_or(|r| r.len() >= c.rows() * c.outputs), "the residual is shorter than y");
    let out = Out(y.as_mut_ptr());
    shared(dot, pool, c, |first| To::Floats {
        y: out.start().wrapping_add(first),
        bias: bias.map_or(std::ptr::null(), |b| b[first..].as_ptr()),
        residual: e.residual.map_or(std::ptr::null(), |r| r[first..].as_ptr()),
        epilogue: e,
    });
}

/// `to(first)` is where the results of the group go whose first channel out is `first`.
fn shared<'a>(dot: Dot, pool: &Pool, c: &Conv<'_>, to: impl Fn(usize) -> To<'a> + Sync) {
    if c.groups == 1 && c.window.pointwise() {
        let (m, k, n) = (c.rows(), c.channels, c.outputs);
        let g = qgemm::Problem { m, k, n, a: c.x, a_stride: k, b: c.w };
        return qgemm::shared(dot, pool, &g, &c.columns, &|| to(0));
    }
    let threads = if c.rows() * c.k() * c.outputs < WORTH_SHARING { 1 } else { pool.threads() };
    let (cg, og) = (c.channels / c.groups, c.outputs / c.groups);
    let shares = Shares::new(c.rows(), og.div_ceil(NR), threads);
    pool.run(c.groups * shares.count(), &|i| {
        let (group, (rows, panels)) = (i / shares.count(), shares.part(i % shares.count()));
        let first = group * og;
        let job = Job {
            b: c.w,
            start: group * qgemm::packed_len(og, c.k()),
            steps: c.k().div_ceil(4),
            n: og,
            finish: Finish {
                offset: c.columns.offset[first..].as_ptr(),
                scale: c.columns.scale[first..].as_ptr(),
                stride: c.outputs,
                to: to(first),
            },
        };
        // A segment that is all padding adds nothing only where padding is 0: the offset counts it.
        let geometry = Geometry::new(&c.window, c.channels, cg, 4, c.zero == 0);
        let mut memory = MaybeUninit::uninit();
        let scratch = Scratch::of(&mut memory, cg, c.zero);
        let dot = dot.suited(rows.len(), c.k());
        let height = c.w.rows(dot, panels.len() * NR);
        let most = (dot.reach() / c.k().max(1)).clamp(4 * height, 64 * height);
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: callers have seen the lengths and that the CPU has the instructions; no other call has these rows and
            // columns.
            unsafe {
                let x = c.x.as_ptr().wrapping_add(group * cg);
                let count = geometry.rows(x, row, most.min(rows.end - row), height, scratch);
                block(dot, &job, &scratch.table, panels.clone());
                row += count;
            }
        }
    });
}

/// One depthwise convolution: `sum[n][p][c] = Σ_tap x[n][p·stride + tap·dilation - pad][c] · w[tap][c] + offset[c]`.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// How the window slides.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels in and out.
    pub channels: usize,
    /// `[N, …, C]`.
    pub x: &'a [u8],
    /// The code of 0, which is what padding holds.
    pub zero: u8,
    /// `[taps, C]` packed by [`pack_depthwise`].
    pub w: &'a [i16],
    /// `C` offsets, the bias less `zero` times the sum of the channel's weights, and `C` scales.
    pub columns: Columns<'a>,
}

/// Most kernel positions of a depthwise convolution.
pub const DEPTHWISE_TAPS: usize = 128;

/// Elements a packed depthwise kernel takes.
pub const fn depthwise_len(taps: usize, channels: usize) -> usize {
    taps.div_ceil(2) * 2 * channels
}

/// Packs a depthwise kernel (`w(tap, c)`): two kernel positions of a channel side by side.
///
/// # Panics
/// When `out` is shorter than [`depthwise_len`].
pub fn pack_depthwise(taps: usize, channels: usize, w: impl Fn(usize, usize) -> i8, out: &mut [i16]) {
    for (i, out) in out[..depthwise_len(taps, channels)].iter_mut().enumerate() {
        let (tap, c) = (i / (2 * channels) * 2 + i % 2, i / 2 % channels);
        *out = if tap < taps { i16::from(w(tap, c)) } else { 0 };
    }
}

impl Depthwise<'_> {
    fn check(&self, y: usize) {
        let (g, c) = (&self.window, self.channels);
        assert!(g.stride.iter().chain(&g.dilation).chain(&g.kernel).all(|&s| s > 0), "a window of no size");
        assert!(g.taps() <= DEPTHWISE_TAPS && c <= CHANNELS, "a window or a pixel too large");
        assert!(self.x.len() >= self.batch * g.pixels() * c, "x is shorter than its shape says");
        assert!(y >= self.batch * g.positions() * c, "y is shorter than its shape says");
        assert!(self.w.len() >= depthwise_len(g.taps(), c), "w is shorter than its shape says");
        self.columns.check(c);
    }
}

/// The sums of a depthwise convolution, by the formula.
pub fn depthwise_reference(d: &Depthwise<'_>, sums: &mut [i32]) {
    let (g, c) = (&d.window, d.channels);
    for row in 0..d.batch * g.positions() {
        let (image, p) = (row / g.positions(), row % g.positions());
        let out = [p / g.output[2] / g.output[1], p / g.output[2] % g.output[1], p % g.output[2]];
        for ch in 0..c {
            let mut sum = d.columns.offset[ch];
            for tap in 0..g.taps() {
                let x = pixel(g, out, tap).map_or(d.zero, |i| d.x[(image * g.pixels() + i) * c + ch]);
                sum += i32::from(x) * i32::from(d.w[(tap / 2 * c + ch) * 2 + tap % 2]);
            }
            sums[row * c + ch] = sum;
        }
    }
}

/// The depthwise convolution as codes, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says, or there are more than [`DEPTHWISE_TAPS`] kernel positions.
pub fn depthwise_codes(pool: &Pool, d: &Depthwise<'_>, r: &Requant<'_>, y: &mut [u8]) {
    depthwise_codes_on(Dot::best(), pool, d, r, y);
}

/// [`depthwise_codes`] in one form, or what it does on vectors; returns false where this CPU has not got it.
///
/// # Panics
/// As [`depthwise_codes`].
pub fn depthwise_codes_by(
    kernel: &qgemm::Kernel,
    pool: &Pool,
    d: &Depthwise<'_>,
    r: &Requant<'_>,
    y: &mut [u8],
) -> bool {
    let available = kernel.available();
    if available {
        depthwise_codes_on(kernel.dot, pool, d, r, y);
    }
    available
}

/// The depthwise convolution as floats, `activation(sum · scale + bias + residual)`, on all threads of `pool`.
///
/// # Panics
/// As [`depthwise_codes`].
pub fn depthwise_floats(pool: &Pool, d: &Depthwise<'_>, bias: Option<&[f32]>, e: &Epilogue<'_>, y: &mut [f32]) {
    depthwise_floats_on(Dot::best(), pool, d, bias, e, y);
}

fn depthwise_codes_on(dot: Dot, pool: &Pool, d: &Depthwise<'_>, r: &Requant<'_>, y: &mut [u8]) {
    d.check(y.len());
    r.check(d.batch * d.window.positions() * d.channels);
    let out = Out(y.as_mut_ptr());
    depthwise_shared(dot, pool, d, || To::Codes { y: out.start(), requant: r, shift: 0 });
}

fn depthwise_floats_on(
    dot: Dot,
    pool: &Pool,
    d: &Depthwise<'_>,
    bias: Option<&[f32]>,
    e: &Epilogue<'_>,
    y: &mut [f32],
) {
    d.check(y.len());
    assert!(bias.is_none_or(|b| b.len() >= d.channels), "the bias is shorter than the channels");
    let results = d.batch * d.window.positions() * d.channels;
    assert!(e.residual.is_none_or(|r| r.len() >= results), "the residual is shorter than y");
    let out = Out(y.as_mut_ptr());
    depthwise_shared(dot, pool, d, || To::Floats {
        y: out.start(),
        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
        residual: e.residual.map_or(std::ptr::null(), <[f32]>::as_ptr),
        epilogue: e,
    });
}

/// Callers have seen the lengths of the results.
fn depthwise_shared<'a>(dot: Dot, pool: &Pool, d: &Depthwise<'_>, to: impl Fn() -> To<'a> + Sync) {
    let (g, c) = (&d.window, d.channels);
    let lines = d.batch * g.output[0] * g.output[1];
    let threads = if lines * g.output[2] * c * g.taps() < WORTH_SHARING { 1 } else { pool.threads() };
    // Ranges of channels are whole vectors, the last with what is left over.
    let vectors = (c / LANES).max(1);
    let (down, across) = crate::nhwc::split(lines, vectors, threads);
    let dot = dot.vectors();
    pool.run(down * across, &|i| {
        let part = share(vectors, across, i % across);
        let channels = part.start * LANES..if part.end == vectors { c } else { part.end * LANES };
        let (offset, scale) = (d.columns.offset.as_ptr(), d.columns.scale.as_ptr());
        let finish = Finish { offset, scale, stride: c, to: to() };
        let mut pad = [MaybeUninit::uninit(); CHANNELS];
        pad[..c].iter_mut().for_each(|p| {
            p.write(d.zero);
        });
        let (lines, pad) = (share(lines, down, i / across), pad.as_ptr().cast());
        // SAFETY: `check` has seen the lengths, the CPU has the instructions, and no other call has these lines and channels.
        unsafe {
            match dot {
                #[cfg(target_arch = "x86_64")]
                Dot::Vnni512 => crate::depthwise512::lines(d, lines, &channels, pad, &finish),
                _ => lines.for_each(|line| depthwise_line(dot, d, line, &channels, pad, &finish)),
            }
        }
    });
}

/// Channels taken together.
const LANES: usize = 16;
/// Positions taken together.
const SPOTS: usize = 4;

/// Where one kernel position begins, and how far on it lies at the next output position.
#[derive(Clone, Copy)]
pub(crate) struct Tap {
    pub(crate) x: *const u8,
    pub(crate) step: usize,
}

/// Gives `place` every kernel position at output position `at` of a line; those that are padding lie at `pad`, and do not move on.
#[inline(always)]
pub(crate) fn aim(d: &Depthwise<'_>, line: usize, at: usize, pad: *const u8, place: &mut impl FnMut(usize, Tap)) {
    let (g, c) = (&d.window, d.channels);
    let (image, out) = (line / (g.output[0] * g.output[1]), line % (g.output[0] * g.output[1]));
    let start = |a: usize, o: usize| (o * g.stride[a]) as isize - g.pad[a];
    let inside = |a: usize, i: isize| i >= 0 && i < g.input[a] as isize;
    let mut tap = 0;
    for kd in 0..g.kernel[0] {
        let z = start(0, out / g.output[1]) + (kd * g.dilation[0]) as isize;
        for kh in 0..g.kernel[1] {
            let y = start(1, out % g.output[1]) + (kh * g.dilation[1]) as isize;
            let row = ((image * g.input[0]) as isize + z) * g.input[1] as isize + y;
            let there = inside(0, z) && inside(1, y);
            for kw in 0..g.kernel[2] {
                let x = start(2, at) + (kw * g.dilation[2]) as isize;
                let pixel = (row * g.input[2] as isize + x) * c as isize;
                let t = if there && inside(2, x) {
                    Tap { x: d.x.as_ptr().wrapping_offset(pixel), step: g.stride[2] * c }
                } else {
                    Tap { x: pad, step: 0 }
                };
                place(tap, t);
                tap += 1;
            }
        }
    }
}

/// # Safety
/// As [`depthwise_codes`] promises; `pad` leads to `C` codes of 0.
unsafe fn depthwise_line(
    dot: Dot,
    d: &Depthwise<'_>,
    line: usize,
    channels: &Range<usize>,
    pad: *const u8,
    finish: &Finish<'_>,
) {
    let (g, c) = (&d.window, d.channels);
    let inside = Run::of(g, 2);
    let pairs = g.taps().div_ceil(2);
    let mut taps = [Tap { x: pad, step: 0 }; DEPTHWISE_TAPS];
    let mut sums = MaybeUninit::<qtile::Sums>::uninit();
    let sums = sums.as_mut_ptr().cast::<i32>();
    let (mut at, mut before) = (0, 0);
    while at < g.output[2] {
        let whole = inside.contains(&at);
        let spots = if whole { SPOTS.min(inside.end - at) } else { 1 };
        // Inside, the taps move on with the positions.
        if whole && before > 0 {
            taps[..2 * pairs].iter_mut().for_each(|t| t.x = t.x.wrapping_add(before * t.step));
        } else {
            aim(d, line, at, pad, &mut |tap, t| taps[tap] = t);
        }
        before = if whole { spots } else { 0 };
        let list = &taps[..2 * pairs];
        let mut first = channels.start;
        while first < channels.end {
            let left = channels.end - first;
            // No last part of less than a vector.
            let short = left > COLUMNS && left < COLUMNS + LANES;
            let width = if short { COLUMNS - LANES } else { COLUMNS.min(left) };
            let mut ch = 0;
            while ch < width {
                #[cfg(target_arch = "x86_64")]
                if dot != Dot::Any && ch + 2 * LANES <= width {
                    // SAFETY: the taps lead to all channels of a pixel, the buffer has room for them, the CPU has AVX2.
                    unsafe { x86::spots_twice(spots, list, first + ch, d.w.as_ptr(), c, sums.add(ch)) };
                    ch += 2 * LANES;
                    continue;
                }
                // The last vector begins earlier when it would not be whole: those sums are computed twice, and equal.
                let n = LANES.min(width - ch);
                let from = if n < LANES && width >= LANES { width - LANES } else { ch };
                // SAFETY: the taps lead to all channels of a pixel, the buffer has room for them.
                unsafe {
                    let to = sums.add(from);
                    match (dot, width >= LANES) {
                        #[cfg(target_arch = "x86_64")]
                        (Dot::Vnni512 | Dot::Vnni256 | Dot::Avx2, true) => {
                            x86::spots(spots, list, first + from, d.w.as_ptr(), c, to)
                        }
                        _ => plain(spots, list, first + from..first + ch + n, d.w, c, to),
                    }
                }
                ch += n;
            }
            let row = line * g.output[2] + at;
            // SAFETY: the sums were just written; these results are this call's.
            unsafe { qtile::finish::on(dot.isa(), finish, sums, spots, row, first, width) };
            first += width;
        }
        at += spots;
    }
}

/// # Safety
/// The taps lead to the channels at every spot; `out` has room for the rows.
unsafe fn plain(spots: usize, taps: &[Tap], channels: Range<usize>, w: &[i16], c: usize, out: *mut i32) {
    for i in 0..spots {
        for (j, ch) in channels.clone().enumerate() {
            let mut sum = 0;
            for (t, tap) in taps.iter().enumerate() {
                // SAFETY: the caller's promise.
                let x = unsafe { *tap.x.add(i * tap.step + ch) };
                sum += i32::from(x) * i32::from(w[(t / 2 * c + ch) * 2 + t % 2]);
            }
            // SAFETY: the caller's promise.
            unsafe { *out.add(i * COLUMNS + j) = sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Twice [`LANES`] channels, otherwise as [`spots`].
    ///
    /// # Safety
    /// As [`spots`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn spots_twice(spots: usize, taps: &[Tap], ch: usize, w: *const i16, c: usize, out: *mut i32) {
        let mut i = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while i + 2 <= spots {
                vectors::<2>(i, taps, ch, w, c, out);
                i += 2;
            }
            if i < spots {
                vectors::<1>(i, taps, ch, w, c, out);
            }
        }
    }

    /// Positions from `first` on.
    ///
    /// # Safety
    /// As [`spots`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn vectors<const X: usize>(first: usize, taps: &[Tap], ch: usize, w: *const i16, c: usize, out: *mut i32) {
        let zero = _mm256_setzero_si256();
        // Vector v holds channels 4v.. and 16 + 4v..: unpacking stays within halves of a register.
        let mut acc = [[zero; 4]; X];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for (p, pair) in taps.as_chunks::<2>().0.iter().enumerate() {
                let w = w.add((p * c + ch) * 2);
                let mut weights = [zero; 4];
                for v in 0..4 {
                    let low = _mm_loadu_si128(w.add(8 * v).cast());
                    let high = _mm_loadu_si128(w.add(32 + 8 * v).cast());
                    weights[v] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                }
                for i in 0..X {
                    let [a, b] = pair.map(|t| _mm256_loadu_si256(t.x.add((first + i) * t.step + ch).cast()));
                    let (p, q) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                    let pairs = [
                        _mm256_unpacklo_epi8(p, zero),
                        _mm256_unpackhi_epi8(p, zero),
                        _mm256_unpacklo_epi8(q, zero),
                        _mm256_unpackhi_epi8(q, zero),
                    ];
                    for v in 0..4 {
                        acc[i][v] = _mm256_add_epi32(acc[i][v], _mm256_madd_epi16(pairs[v], weights[v]));
                    }
                }
            }
            for i in 0..X {
                for v in 0..4 {
                    let out = out.add((first + i) * COLUMNS + 4 * v);
                    _mm_storeu_si128(out.cast(), _mm256_castsi256_si128(acc[i][v]));
                    _mm_storeu_si128(out.add(16).cast(), _mm256_extracti128_si256::<1>(acc[i][v]));
                }
            }
        }
    }

    /// [`LANES`] channels from `ch` on, at most [`SPOTS`] positions, two kernel positions at a time.
    ///
    /// # Safety
    /// As [`super::plain`]; the CPU has AVX2, and `w` leads to all channels of all pairs.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn spots(spots: usize, taps: &[Tap], ch: usize, w: *const i16, c: usize, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match spots {
                1 => vector::<1>(taps, ch, w, c, out),
                2 => vector::<2>(taps, ch, w, c, out),
                3 => vector::<3>(taps, ch, w, c, out),
                _ => vector::<4>(taps, ch, w, c, out),
            }
        }
    }

    /// # Safety
    /// As [`spots`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn vector<const X: usize>(taps: &[Tap], ch: usize, w: *const i16, c: usize, out: *mut i32) {
        let mut acc = [[_mm256_setzero_si256(); 2]; X];
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            for (p, pair) in taps.as_chunks::<2>().0.iter().enumerate() {
                let w = w.add((p * c + ch) * 2);
                let w = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(16).cast())];
                for i in 0..X {
                    let [a, b] = pair.map(|t| _mm_loadu_si128(t.x.add(i * t.step + ch).cast()));
                    let low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
                    let high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
                    acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(low, w[0]));
                    acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(high, w[1]));
                }
            }
            for i in 0..X {
                _mm256_storeu_si256(out.add(i * COLUMNS).cast(), acc[i][0]);
                _mm256_storeu_si256(out.add(i * COLUMNS + 8).cast(), acc[i][1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epilogue::Activation;
    use crate::nhwc::tests::{noise, windows};
    use crate::qbins;
    use crate::qgemm::Added;
    use crate::quantize::{Codes, Sum};

    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        noise(n, seed).iter().map(|v| (v * 127.0 + 128.0) as u8).collect()
    }

    /// What becomes of sums by the formulas of [`crate::quantize`].
    fn finished(sums: &[i32], scale: &[f32], r: &Requant<'_>) -> Vec<u8> {
        let codes = sums.iter().enumerate().map(|(i, &s)| r.codes.reference(s as f32 * scale[i % scale.len()]) as u8);
        let mut codes: Vec<u8> = codes.map(|q| r.table.map_or(q, |t| t[usize::from(q)])).collect();
        if let Some(add) = &r.add {
            let first = codes.clone();
            crate::quantize::of_u8::add(&first, &add.residual[..first.len()], &add.sum, &mut codes);
        }
        codes
    }

    /// Each way to codes once.
    fn each(residual: &[u8], mut f: impl FnMut(&Requant<'_>)) {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 7 % 256) as u8);
        let codes = Codes { zero: 3, low: 3, high: 250 };
        let sum = Sum { left: 0.7, right: 0.4, fixed: -9.3, codes: Codes { zero: 20, low: 0, high: 255 } };
        let add = Some(Added { residual, sum });
        f(&Requant { codes, table: None, add: None });
        f(&Requant { codes, table: Some(&table), add: None });
        f(&Requant { codes: Codes { zero: 128, low: 0, high: 255 }, table: None, add });
        f(&Requant { codes, table: Some(&table), add });
    }

    #[test]
    fn every_convolution_of_codes_equals_the_formula_and_nothing_else_is_written() {
        let mut ran = 0;
        for dot in Dot::ALL.into_iter().filter(|d| d.available()) {
            for window in windows() {
                for (batch, cg, og, groups, zero) in
                    [(1, 3, 20, 1, 5), (2, 16, 7, 1, 0), (1, 5, 24, 2, 255), (2, 20, 85, 1, 128), (1, 1, 3, 3, 0)]
                {
                    let (channels, outputs) = (cg * groups, og * groups);
                    let k = window.taps() * cg;
                    let rows = batch * window.positions();
                    // The extremes too: a product of them is where a saturating instruction goes wrong.
                    let mut x = bytes(batch * window.pixels() * channels, 3);
                    x.iter_mut().step_by(3).for_each(|v| *v = 255);
                    let mut w: Vec<i8> = bytes(outputs * k, 7).iter().map(|&v| v as i8).collect();
                    w.iter_mut().step_by(2).for_each(|v| *v = if *v < 0 { -128 } else { 127 });
                    let size = qgemm::packed_len(og, k);
                    let (mut packed, mut offset) = (vec![0; groups * size], vec![0; outputs]);
                    for g in 0..groups {
                        let sums = &mut offset[g * og..][..og];
                        qgemm::pack(og, k, |kk, j| w[(g * og + j) * k + kk], &mut packed[g * size..], sums);
                    }
                    offset.iter_mut().enumerate().for_each(|(o, s)| *s = o as i32 * 50 - zero * *s);
                    let scale: Vec<f32> = (0..outputs).map(|o| 0.002 + o as f32 * 1e-4).collect();
                    let columns = Columns { offset: &offset, scale: &scale };
                    let zero = zero as u8;
                    let w = Right::Panels(&packed);
                    let c = Conv { window, batch, channels, outputs, groups, x: &x, zero, w, columns };
                    let bins = qbins::tests::bins(og, k, &packed);
                    let arranged =
                        (groups == 1).then_some(Conv { w: Right::Bins(qbins::Bins::new(og, k, &bins)), ..c });
                    let mut sums = vec![0; rows * outputs];
                    reference(&c, &mut sums);
                    each(&bytes(rows * outputs, 17), |r| {
                        let want = finished(&sums, &scale, r);
                        for (threads, c) in
                            [(1, Some(&c)), (3, Some(&c)), (1, arranged.as_ref()), (3, arranged.as_ref())]
                        {
                            let Some(c) = c else { continue };
                            let mut found = vec![7; want.len() + 64];
                            codes_on(dot, &Pool::new(threads), c, r, &mut found);
                            assert_eq!(found[..want.len()], want, "{dot:?} {window:?} {cg}x{groups} to {og}");
                            assert!(found[want.len()..].iter().all(|&v| v == 7), "{dot:?} wrote past its output");
                            ran += 1;
                        }
                    });
                    let (bias, add) = (noise(outputs, 5), noise(rows * outputs, 9));
                    for (after, activation) in [(false, Activation::Relu), (true, Activation::Gelu)] {
                        let e = Epilogue { residual: Some(&add), after, activation };
                        let mut found = vec![f32::NAN; sums.len() + 20];
                        floats_on(dot, &Pool::new(2), &c, Some(&bias), &e, &mut found);
                        for (i, s) in sums.iter().enumerate() {
                            let v = *s as f32 * scale[i % outputs] + bias[i % outputs];
                            let before = if after { v } else { v + add[i] };
                            let want =
                                activation.reference(f64::from(before)) + if after { f64::from(add[i]) } else { 0.0 };
                            let tolerance = f64::from(f32::EPSILON) * 2.0 * f64::from(v.abs() + 2.0);
                            assert!((want - f64::from(found[i])).abs() <= tolerance, "{dot:?}: {want} {}", found[i]);
                        }
                        assert!(found[sums.len()..].iter().all(|v| v.is_nan()), "{dot:?} wrote past its output");
                    }
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }

    #[test]
    fn every_depthwise_convolution_of_codes_equals_the_formula_and_nothing_else_is_written() {
        let mut ran = 0;
        for dot in Dot::ALL.into_iter().filter(|d| d.available()) {
            for window in windows() {
                for (batch, c, zero) in [(1, 3, 0), (2, 16, 9), (1, 37, 255), (1, 72, 128), (1, 200, 1)] {
                    let (taps, rows) = (window.taps(), batch * window.positions());
                    let mut x = bytes(batch * window.pixels() * c, 3);
                    x.iter_mut().step_by(3).for_each(|v| *v = 255);
                    let mut w: Vec<i8> = bytes(taps * c, 7).iter().map(|&v| v as i8).collect();
                    w.iter_mut().step_by(2).for_each(|v| *v = if *v < 0 { -128 } else { 127 });
                    let mut packed = vec![0; depthwise_len(taps, c)];
                    pack_depthwise(taps, c, |t, ch| w[t * c + ch], &mut packed);
                    let sum = |ch: usize| (0..taps).map(|t| i32::from(w[t * c + ch])).sum::<i32>();
                    let offset: Vec<i32> = (0..c).map(|ch| ch as i32 * 30 - zero * sum(ch)).collect();
                    let scale: Vec<f32> = (0..c).map(|ch| 0.003 + ch as f32 * 1e-4).collect();
                    let columns = Columns { offset: &offset, scale: &scale };
                    let d = Depthwise { window, batch, channels: c, x: &x, zero: zero as u8, w: &packed, columns };
                    let mut sums = vec![0; rows * c];
                    depthwise_reference(&d, &mut sums);
                    each(&bytes(rows * c, 17), |r| {
                        let want = finished(&sums, &scale, r);
                        for threads in [1, 3] {
                            let mut found = vec![7; want.len() + 64];
                            depthwise_codes_on(dot, &Pool::new(threads), &d, r, &mut found);
                            assert_eq!(found[..want.len()], want, "{dot:?} {window:?} {c}");
                            assert!(found[want.len()..].iter().all(|&v| v == 7), "{dot:?} wrote past its output");
                            ran += 1;
                        }
                    });
                    let add: Vec<f32> = (0..rows * c).map(|i| i as f32 * 0.01).collect();
                    let bias = vec![0.5; c];
                    let e = Epilogue { residual: Some(&add), ..Epilogue::default() };
                    let mut found = vec![f32::NAN; rows * c + 64];
                    depthwise_floats_on(dot, &Pool::new(2), &d, Some(&bias), &e, &mut found);
                    for i in 0..rows * c {
                        assert_eq!(found[i], sums[i] as f32 * scale[i % c] + 0.5 + add[i], "{dot:?} {window:?} {c}");
                    }
                    assert!(found[rows * c..].iter().all(|v| v.is_nan()), "{dot:?} wrote past its output");
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }
}
