//! Convolution of `f32` with channels innermost (`N[D]HWC`): activations as they lie, nothing laid out as columns.
//!
//! A convolution is the matrix product of [`crate::gemm`] with rows found through a table of pointers; a depthwise
//! convolution is vectorised over channels and takes several positions of a row together. Both end in an [`Epilogue`].
//!
//! Dimension letters: `C` channels in, `O` channels out, `P` output positions of one image, `G` groups.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::conv::Window;
use crate::epilogue::{self, Activation, Epilogue};
use crate::gemm::{self, NR, Out, Packed, Shares, share};
use crate::isa::{Form, Isa};
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;
use crate::tile::{Job, Weight, load};
use crate::window::{CHANNELS, Geometry, Scratch, TAPS};

/// One convolution: `y[n][p][o] = activation(Σ_tap,c x[n][p·stride + tap·dilation - pad][c] · w[o][tap][c] + bias[o] + residual)`.
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
    pub x: &'a [f32],
    /// For each group the matrix `[O/G, taps · C/G]` (channels innermost) packed by [`gemm::pack`] or [`crate::bf16::pack`], one
    /// after the other.
    pub w: Packed<'a>,
    /// `O` floats to add, if any.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub epilogue: Epilogue<'a>,
}

impl Conv<'_> {
    /// Reduction length of a group.
    pub fn k(&self) -> usize {
        self.window.taps() * (self.channels / self.groups)
    }

    /// Elements the packed weights take.
    pub fn packed_len(&self) -> usize {
        self.groups * self.w.needs(self.outputs / self.groups, self.k())
    }

    /// Output positions of all images.
    fn rows(&self) -> usize {
        self.batch * self.window.positions()
    }

    /// That every slice is as long as its shape says.
    fn check(&self, y: &[f32]) {
        assert!(supports(&self.window, self.channels, self.groups), "ask `supports` first");
        assert!(self.groups > 0 && self.outputs.is_multiple_of(self.groups), "groups divide the channels out");
        assert!(self.x.len() >= self.batch * self.window.pixels() * self.channels, "x is shorter than its shape says");
        assert!(y.len() >= self.rows() * self.outputs, "y is shorter than its shape says");
        if let Packed::I8 { scale, .. } = self.w {
            assert!(scale.len() >= self.outputs, "there are fewer scales than channels out");
        }
        assert!(self.w.len() >= self.packed_len(), "w is shorter than its shape says");
        assert!(self.bias.is_none_or(|b| b.len() >= self.outputs), "the bias is shorter than the channels out");
        let residual = self.epilogue.residual;
        assert!(residual.is_none_or(|r| r.len() >= self.rows() * self.outputs), "the residual is shorter than y");
    }
}

/// Whether [`conv`] takes a convolution of that many channels: all but absurd ones.
pub fn supports(window: &Window, channels: usize, groups: usize) -> bool {
    groups > 0
        && channels.is_multiple_of(groups)
        && channels / groups <= CHANNELS
        && (1..=TAPS).contains(&window.taps())
        && window.stride.iter().chain(&window.dilation).all(|&s| s > 0)
}

/// The formula, summed in `f64`.
pub fn reference(c: &Conv<'_>, y: &mut [f32]) {
    let (g, cg, og) = (&c.window, c.channels / c.groups, c.outputs / c.groups);
    for row in 0..c.rows() {
        let (image, p) = (row / g.positions(), row % g.positions());
        let out = [p / g.output[2] / g.output[1], p / g.output[2] % g.output[1], p % g.output[2]];
        for o in 0..c.outputs {
            let (group, j) = (o / og, o % og);
            let mut sum = c.bias.map_or(0.0, |b| f64::from(b[o]));
            for tap in 0..g.taps() {
                let Some(i) = pixel(g, out, tap) else { continue };
                for ch in 0..cg {
                    let k = tap * cg + ch;
                    let x = c.x[(image * g.pixels() + i) * c.channels + group * cg + ch];
                    sum += c.w.left(x) * c.w.at(group, [og, c.k()], j, k, group * og);
                }
            }
            y[row * c.outputs + o] = finished(&c.epilogue, sum, row * c.outputs + o);
        }
    }
}

/// Where in the image output position `out` meets kernel position `tap`, if it does.
pub(crate) fn pixel(g: &Window, out: [usize; 3], tap: usize) -> Option<usize> {
    let [_, kh, kw] = g.kernel;
    let k = [tap / kw / kh, tap / kw % kh, tap % kw];
    let at: [isize; 3] = std::array::from_fn(|a| (out[a] * g.stride[a] + k[a] * g.dilation[a]) as isize - g.pad[a]);
    let inside = (0..3).all(|a| at[a] >= 0 && at[a] < g.input[a] as isize);
    inside.then(|| (at[0] as usize * g.input[1] + at[1] as usize) * g.input[2] + at[2] as usize)
}

/// What the epilogue makes of a sum, by the formula.
fn finished(e: &Epilogue<'_>, sum: f64, at: usize) -> f32 {
    let add = e.residual.map_or(0.0, |r| f64::from(r[at]));
    (if e.after { e.activation.reference(sum) + add } else { e.activation.reference(sum + add) }) as f32
}

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// The convolution, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says, or [`supports`] says no: a planner's mistake, checked there.
pub fn conv(pool: &Pool, c: &Conv<'_>, y: &mut [f32]) {
    conv_on(Form::best(), pool, c, y);
}

/// [`conv`] in one form; returns false where this CPU has not got it.
///
/// # Panics
/// As [`conv`].
pub fn conv_on(form: Form, pool: &Pool, c: &Conv<'_>, y: &mut [f32]) -> bool {
    if !form.available() {
        return false;
    }
    c.check(y);
    if c.groups == 1 && c.window.pointwise() {
        let (m, k, n) = (c.rows(), c.channels, c.outputs);
        let g = gemm::Gemm { m, k, n, x: c.x, x_stride: k, w: c.w, bias: c.bias, accumulate: false };
        gemm::fused_on(form, pool, &g, &c.epilogue, y);
        return true;
    }
    let threads = if c.rows() * c.k() * c.outputs < WORTH_SHARING { 1 } else { pool.threads() };
    let shares = Shares::new(c.rows(), (c.outputs / c.groups).div_ceil(NR), threads);
    let out = Out(y.as_mut_ptr());
    pool.run(c.groups * shares.count(), &|i| {
        let (rows, panels) = shares.part(i % shares.count());
        // SAFETY: the CPU has the instruction set, `check` has seen the lengths, and no other call has these rows and columns.
        unsafe { part(form, c, i / shares.count(), rows, panels, out.start()) };
    });
    true
}

/// Some rows and panels of one group.
///
/// # Safety
/// `check` has passed, the rows and panels exist, nobody else is at those results, and the CPU has the instructions.
unsafe fn part(form: Form, c: &Conv<'_>, group: usize, rows: Range<usize>, panels: Range<usize>, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match c.w {
            Packed::F32(w) => blocks(form, c, w.as_ptr(), std::ptr::null(), group, rows, panels, y),
            Packed::I8 { q, scale } => blocks(form, c, q.as_ptr(), scale.as_ptr(), group, rows, panels, y),
            Packed::Bf16(w) => blocks(form, c, w.as_ptr(), std::ptr::null(), group, rows, panels, y),
        }
    }
}

/// # Safety
/// As [`part`].
unsafe fn blocks<W: Weight>(
    form: Form,
    c: &Conv<'_>,
    w: *const W,
    scale: *const f32,
    group: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    y: *mut f32,
) {
    let null = std::ptr::null();
    let (cg, og) = (c.channels / c.groups, c.outputs / c.groups);
    let (k, first) = (c.k(), group * og);
    let residual = c.epilogue.residual.map_or(null, |r| r[first..].as_ptr());
    let after = c.epilogue.after;
    let job = Job {
        w: w.wrapping_add(group * c.w.needs(og, k)),
        k,
        n: og,
        scale: scale.wrapping_add(first),
        bias: c.bias.map_or(null, |b| b[first..].as_ptr()),
        y: y.wrapping_add(first),
        stride: c.outputs,
        addend: if after { null } else { residual },
        activation: c.epilogue.activation,
        after: if after { residual } else { null },
    };
    let geometry = Geometry::new(&c.window, c.channels, cg, 1, true);
    let mut memory = MaybeUninit::uninit();
    let scratch = Scratch::of(&mut memory, cg, 0f32);
    let height = W::rows(form);
    let most = (W::reach(form) / k.max(1)).clamp(4 * height, 64 * height);
    let mut row = rows.start;
    while row < rows.end {
        // SAFETY: the caller's promise, and `check`.
        unsafe {
            let x = c.x.as_ptr().wrapping_add(group * cg);
            let count = geometry.rows(x, row, most.min(rows.end - row), height, scratch);
            W::block(form, &job, &scratch.table, panels.clone());
            row += count;
        }
    }
}

/// One depthwise convolution: `y[n][p][c] = activation(Σ_tap x[n][p·stride + tap·dilation - pad][c] · w[tap][c] + bias[c] + residual)`.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// How the window slides.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels in and out.
    pub channels: usize,
    /// `[N, …, C]`.
    pub x: &'a [f32],
    /// `[taps, C]`.
    pub w: &'a [f32],
    /// `C` floats to add, if any.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub epilogue: Epilogue<'a>,
}

impl Depthwise<'_> {
    fn check(&self, y: &[f32]) {
        let (g, c) = (&self.window, self.channels);
        assert!(g.stride.iter().chain(&g.dilation).chain(&g.kernel).all(|&s| s > 0), "a window of no size");
        assert!(g.taps() <= DEPTHWISE_TAPS, "a kernel of too many positions");
        assert!(self.x.len() >= self.batch * g.pixels() * c, "x is shorter than its shape says");
        let results = self.batch * g.positions() * c;
        assert!(y.len() >= results, "y is shorter than its shape says");
        assert!(self.w.len() >= g.taps() * c, "w is shorter than its shape says");
        assert!(self.bias.is_none_or(|b| b.len() >= c), "the bias is shorter than the channels");
        assert!(self.epilogue.residual.is_none_or(|r| r.len() >= results), "the residual is shorter than y");
    }
}

/// The formula, summed in `f64`.
pub fn depthwise_reference(d: &Depthwise<'_>, y: &mut [f32]) {
    let (g, c) = (&d.window, d.channels);
    for row in 0..d.batch * g.positions() {
        let (image, p) = (row / g.positions(), row % g.positions());
        let out = [p / g.output[2] / g.output[1], p / g.output[2] % g.output[1], p % g.output[2]];
        for ch in 0..c {
            let taps = (0..g.taps()).filter_map(|tap| pixel(g, out, tap).map(|i| (tap, i)));
            let sum: f64 = taps
                .map(|(tap, i)| f64::from(d.x[(image * g.pixels() + i) * c + ch]) * f64::from(d.w[tap * c + ch]))
                .sum();
            let sum = sum + d.bias.map_or(0.0, |b| f64::from(b[ch]));
            y[row * c + ch] = finished(&d.epilogue, sum, row * c + ch);
        }
    }
}

/// The depthwise convolution, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says, or there are more than [`DEPTHWISE_TAPS`] kernel positions: a planner's
/// mistake, checked there.
pub fn depthwise(pool: &Pool, d: &Depthwise<'_>, y: &mut [f32]) {
    depthwise_on(Isa::best(), pool, d, y);
}

/// [`depthwise`] on one instruction set; returns false where this CPU has not got it.
///
/// # Panics
/// As [`depthwise`].
pub fn depthwise_on(isa: Isa, pool: &Pool, d: &Depthwise<'_>, y: &mut [f32]) -> bool {
    if !isa.available() {
        return false;
    }
    d.check(y);
    let g = &d.window;
    let (lines, panels) = (d.batch * g.output[0] * g.output[1], d.channels.div_ceil(NR));
    let threads = if lines * g.output[2] * d.channels * g.taps() < WORTH_SHARING { 1 } else { pool.threads() };
    let (down, across) = split(lines, panels, threads);
    let out = Out(y.as_mut_ptr());
    pool.run(down * across, &|i| {
        let lines = share(lines, down, i / across);
        let panels = share(panels, across, i % across);
        let channels = panels.start * NR..d.channels.min(panels.end * NR);
        // SAFETY: the CPU has the instruction set, `check` has seen the lengths, and no other call has these lines and channels.
        unsafe { lines::on(isa, d, lines, channels, out.start()) };
    });
    true
}

/// Into how many parts lines and panels are shared out: lines first, panels too where lines are few.
pub(crate) fn split(lines: usize, panels: usize, threads: usize) -> (usize, usize) {
    match threads {
        0 | 1 => (1, 1),
        t if lines >= 8 * t => (4 * t, 1),
        // More parts than threads would take the channels apart for nothing.
        t if lines >= 6 * t => (t, 1),
        t => (1, panels.clamp(1, t)),
    }
}

per_isa! { lines = lines_of; (d: &Depthwise<'_>, lines: Range<usize>, channels: Range<usize>, y: *mut f32) }

/// Some output lines (rows of pixels) and channels.
///
/// # Safety
/// `check` has passed, lines and channels exist, nobody else is at those results, and the CPU has the instructions.
#[inline(always)]
unsafe fn lines_of<S: F32s>(d: &Depthwise<'_>, lines: Range<usize>, channels: Range<usize>, y: *mut f32) {
    let mut lists: [List; 3] = std::array::from_fn(|_| List::default());
    for line in lines {
        // SAFETY: the caller's promise.
        unsafe { one_line::<S>(d, line, &channels, &mut lists, y) };
    }
}

/// One output line of [`lines_of`].
///
/// # Safety
/// As [`lines_of`].
#[inline(always)]
unsafe fn one_line<S: F32s>(
    d: &Depthwise<'_>,
    line: usize,
    channels: &Range<usize>,
    lists: &mut [List; 3],
    y: *mut f32,
) {
    let (g, c) = (&d.window, d.channels);
    let inside = Run::of(g, 2);
    let (image, out) = (line / (g.output[0] * g.output[1]), line % (g.output[0] * g.output[1]));
    let out = [out / g.output[1], out % g.output[1]];
    let (deep, down) = (Run::taps(g, 0, out[0]), Run::taps(g, 1, out[1]));
    let origin: [isize; 2] = std::array::from_fn(|a| (out[a] * g.stride[a]) as isize - g.pad[a]);
    let row = ((image * g.input[0]) as isize + origin[0]) * g.input[1] as isize + origin[1];
    let mut at = 0;
    while at < g.output[2] {
        let whole = inside.contains(&at);
        // One list serves all positions inside, one those before, one those after, and mostly those of the next line too.
        let list = &mut lists[if whole { 0 } else { 1 + usize::from(at >= inside.start) }];
        list.fill(g, c, [deep.clone(), down.clone(), Run::taps(g, 2, at)]);
        let column = (at * g.stride[2]) as isize - g.pad[2];
        let x = d.x.as_ptr().wrapping_offset((row * g.input[2] as isize + column) * c as isize);
        let first = (line * g.output[2] + at) * c;
        let left = if whole { inside.end - at } else { 1 };
        macro_rules! by_width {
            ($($n:literal of $v:literal)*) => {
                match left {
                    // SAFETY: the caller's promise; the taps meet the input at each position.
                    $($n.. => unsafe { spots::<S, $n, $v>(d, list.taps(), x, channels, first, y); $n })*
                    _ => 1,
                }
            };
        }
        at += by_width!(8 of 1 4 of 2 2 of 4 1 of 8);
    }
}

/// Kernel positions that meet the input.
struct List {
    taps: [Tap; DEPTHWISE_TAPS],
    count: usize,
    of: [Range<usize>; 3],
}

impl Default for List {
    fn default() -> List {
        List { taps: [Tap::default(); DEPTHWISE_TAPS], count: 0, of: [0..0, 0..0, 0..0] }
    }
}

impl List {
    /// Lists the positions in these ranges, unless it holds them already.
    #[inline(always)]
    fn fill(&mut self, g: &Window, c: usize, of: [Range<usize>; 3]) {
        if self.of == of {
            return;
        }
        self.count = 0;
        for kd in of[0].clone() {
            for kh in of[1].clone() {
                for kw in of[2].clone() {
                    let pixel = (kd * g.dilation[0] * g.input[1] + kh * g.dilation[1]) * g.input[2];
                    let tap = (kd * g.kernel[1] + kh) * g.kernel[2] + kw;
                    self.taps[self.count] = Tap { x: (pixel + kw * g.dilation[2]) * c, w: tap * c };
                    self.count += 1;
                }
            }
        }
        self.of = of;
    }

    fn taps(&self) -> &[Tap] {
        &self.taps[..self.count]
    }
}

/// Most kernel positions of a depthwise convolution.
pub const DEPTHWISE_TAPS: usize = 512;

/// Where a kernel position lies, in elements from the first one, and its weights.
#[derive(Clone, Copy, Default)]
struct Tap {
    x: usize,
    w: usize,
}

/// Helpers on ranges of positions and kernel positions.
pub(crate) struct Run;

impl Run {
    /// Output positions of an axis whose whole window lies inside the input.
    pub(crate) fn of(g: &Window, a: usize) -> Range<usize> {
        let (stride, span) = (g.stride[a] as isize, ((g.kernel[a] - 1) * g.dilation[a]) as isize);
        let first = (g.pad[a].max(0) + stride - 1) / stride;
        let last = (g.input[a] as isize - 1 - span + g.pad[a]).div_euclid(stride) + 1;
        let last = last.clamp(0, g.output[a] as isize);
        first.min(last) as usize..last as usize
    }

    /// Kernel positions of an axis that meet the input at output position `o`.
    pub(crate) fn taps(g: &Window, a: usize, o: usize) -> Range<usize> {
        let (start, step) = ((o * g.stride[a]) as isize - g.pad[a], g.dilation[a] as isize);
        let clip = |v: isize| v.clamp(0, g.kernel[a] as isize) as usize;
        let low = clip((step - 1 - start).max(0) / step);
        low..clip((g.input[a] as isize - start + step - 1).max(0) / step).max(low)
    }
}

/// `X` neighbouring positions, the first kernel position of the first at `x`, the results from `first` on. `V` vectors of
/// channels are taken together, so that enough sums are under way.
///
/// # Safety
/// As [`lines_of`]; the positions exist, and the kernel positions meet the input at each.
#[inline(always)]
unsafe fn spots<S: F32s, const X: usize, const V: usize>(
    d: &Depthwise<'_>,
    taps: &[Tap],
    x: *const f32,
    channels: &Range<usize>,
    first: usize,
    y: *mut f32,
) {
    let (c, e) = (d.channels, &d.epilogue);
    let simple = e.activation.limits();
    // SAFETY: the caller's promise.
    unsafe {
        let mut ch = channels.start;
        while ch + V * S::LANES <= channels.end {
            vectors::<S, X, V, true>(d, taps, x.wrapping_add(ch), ch, channels.end, first, y);
            ch += V * S::LANES;
        }
        while ch + S::LANES <= channels.end {
            vectors::<S, X, 1, true>(d, taps, x.wrapping_add(ch), ch, channels.end, first, y);
            ch += S::LANES;
        }
        if ch < channels.end {
            vectors::<S, X, 1, false>(d, taps, x.wrapping_add(ch), ch, channels.end, first, y);
        }
        if simple.is_none() || e.after && e.residual.is_some() {
            let activation = if simple.is_none() { e.activation } else { Activation::None };
            let at = first + channels.start;
            let null = std::ptr::null();
            let residual = if e.after { e.residual.map_or(null, |r| r[at..].as_ptr()) } else { null };
            epilogue::rows::on(S::ISA, activation, y.wrapping_add(at), channels.len(), X, c, residual);
        }
    }
}

/// `V` vectors of channels of [`spots`], from `ch` on, which is where `x` is.
///
/// # Safety
/// As [`spots`]; `WHOLE` only when `last` is not within the vectors.
#[inline(always)]
unsafe fn vectors<S: F32s, const X: usize, const V: usize, const WHOLE: bool>(
    d: &Depthwise<'_>,
    taps: &[Tap],
    x: *const f32,
    ch: usize,
    last: usize,
    first: usize,
    y: *mut f32,
) {
    let (c, n) = (d.channels, last - ch);
    let step = d.window.stride[2] * c;
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; X];
        if let Some(b) = d.bias {
            for v in 0..V {
                let bias = load::<S, WHOLE>(b.as_ptr().wrapping_add(ch + v * S::LANES), n, 0);
                for i in 0..X {
                    acc[i][v] = bias;
                }
            }
        }
        let w = d.w.as_ptr().wrapping_add(ch);
        for tap in taps {
            let from = x.wrapping_add(tap.x);
            // In two halves, so that three multiples of the step are all the addresses need.
            let halves = [from, from.wrapping_add(4 * step)];
            for v in 0..V {
                let weight = load::<S, WHOLE>(w.wrapping_add(tap.w + v * S::LANES), n, 0);
                for i in 0..X {
                    let at = halves[i / 4].wrapping_add(i % 4 * step + v * S::LANES);
                    acc[i][v] = weight.mul_add(load::<S, WHOLE>(at, n, 0), acc[i][v]);
                }
            }
        }
        let e = &d.epilogue;
        if let (Some(r), false) = (e.residual, e.after) {
            for i in 0..X {
                for v in 0..V {
                    let at = first + i * c + ch + v * S::LANES;
                    acc[i][v] = acc[i][v].add(load::<S, WHOLE>(r.as_ptr().wrapping_add(at), n, 0));
                }
            }
        }
        let (low, high) = e.activation.limits().unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        let (low, high) = (S::splat(low), S::splat(high));
        for i in 0..X {
            for v in 0..V {
                let to = y.wrapping_add(first + i * c + ch + v * S::LANES);
                let value = high.min(low.max(acc[i][v]));
                if WHOLE { value.store(to) } else { value.store_part(to, n) }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bf16::{self, Pair};

    pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
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

    /// Windows with and without padding, stride, dilation, depth and height; of some no position is inside.
    pub(crate) fn windows() -> Vec<Window> {
        let mut all = Vec::new();
        for (input, kernel, stride, dilation, pad, end) in [
            ([1, 7, 6], [1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]),
            ([1, 7, 6], [1, 1, 1], [1, 2, 2], [1, 1, 1], [0, 0, 0], [0, 0, 0]),
            ([1, 8, 21], [1, 3, 3], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1]),
            ([1, 8, 11], [1, 3, 3], [1, 2, 2], [1, 1, 1], [0, 0, 0], [0, 1, 1]),
            ([1, 9, 13], [1, 2, 5], [1, 1, 3], [1, 3, 2], [0, 2, 4], [0, 0, 5]),
            ([1, 11, 12], [1, 5, 5], [1, 1, 1], [1, 1, 1], [0, 2, 2], [0, 2, 2]),
            ([4, 5, 6], [3, 2, 3], [2, 1, 2], [1, 2, 1], [1, 0, 2], [1, 1, 0]),
            ([1, 6, 12], [1, 3, 1], [1, 1, 1], [1, 1, 1], [0, -1, -2], [0, 0, -3]),
            ([1, 1, 2], [1, 1, 9], [1, 1, 1], [1, 1, 1], [0, 0, 8], [0, 0, 8]),
            ([1, 40, 1], [1, 12, 1], [1, 4, 1], [1, 1, 1], [0, 4, 0], [0, 5, 0]),
            ([1, 3, 3], [1, 3, 3], [1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]),
        ] {
            let output = std::array::from_fn(|a| {
                let span = input[a] as isize + pad[a] + end[a] - (dilation[a] * (kernel[a] - 1) + 1) as isize;
                span as usize / stride[a] + 1
            });
            all.push(Window { input, kernel, output, stride, dilation, pad });
        }
        all
    }

    /// Epilogues to go through: a residual, whether it is after the activation, the activation.
    const EPILOGUES: [(bool, bool, Activation); 4] = [
        (false, false, Activation::None),
        (true, false, Activation::Clip(-0.4, 1.0)),
        (true, true, Activation::Silu),
        (false, false, Activation::HardSwish),
    ];

    fn close(want: &[f32], found: &[f32], k: usize, what: &str) {
        // K roundings of products and sums below K in magnitude at worst, on average its root; four of the epilogue.
        let tolerance = 1.2 * (k as f32 + 8.0) * f32::EPSILON * (1.0 + (k as f32).sqrt() * 0.5);
        for (i, (a, b)) in want.iter().zip(found).enumerate() {
            assert!((a - b).abs() <= tolerance, "{what} at {i}: {a} {b}");
        }
        assert!(found[want.len()..].iter().all(|v| v.is_nan()), "{what} wrote past its output");
    }

    /// What the weights are.
    #[derive(Clone, Copy)]
    enum Weights {
        F32,
        I8,
        Bf16,
    }

    #[test]
    fn every_convolution_is_the_formula_in_every_form_and_nothing_else_is_written() {
        let mut ran = 0;
        for form in Form::ALL {
            for window in windows() {
                for (batch, cg, og, groups, weights) in [
                    (1, 3, 20, 1, Weights::F32),
                    (2, 16, 7, 1, Weights::F32),
                    (1, 5, 24, 2, Weights::I8),
                    (2, 20, 49, 1, Weights::F32),
                    (1, 1, 3, 3, Weights::F32),
                    (1, 5, 24, 2, Weights::Bf16),
                    (2, 20, 49, 1, Weights::Bf16),
                ] {
                    let (channels, outputs) = (cg * groups, og * groups);
                    let k = window.taps() * cg;
                    let rows = batch * window.positions();
                    let x = noise(batch * window.pixels() * channels, 3);
                    let (bias, add) = (noise(outputs, 5), noise(rows * outputs, 17));
                    let scale: Vec<f32> = noise(outputs, 9).iter().map(|s| s.abs() * 0.007 + 0.001).collect();
                    let w = noise(outputs * k, 7);
                    let size = gemm::packed_len(og, k);
                    let (mut packed, mut packed_q) = (vec![0f32; groups * size], vec![0i8; groups * size]);
                    let pairs_size = bf16::packed_len(og, k);
                    let mut pairs = vec![Pair::default(); groups * pairs_size];
                    for g in 0..groups {
                        let at = |j: usize, kk: usize| w[(g * og + j) * k + kk];
                        gemm::pack(og, k, at, &mut packed[g * size..]);
                        bf16::pack(og, k, at, &mut pairs[g * pairs_size..]);
                        gemm::pack(og, k, |j, kk| (at(j, kk) * 127.0) as i8, &mut packed_q[g * size..]);
                    }
                    let w = match weights {
                        Weights::F32 => Packed::F32(&packed),
                        Weights::I8 => Packed::I8 { q: &packed_q, scale: &scale },
                        Weights::Bf16 => Packed::Bf16(&pairs),
                    };
                    for (residual, after, activation) in EPILOGUES {
                        let epilogue = Epilogue { residual: residual.then_some(&add[..]), after, activation };
                        let bias = Some(&bias[..]);
                        let c = Conv { window, batch, channels, outputs, groups, x: &x, w, bias, epilogue };
                        let mut want = vec![0.0; rows * outputs];
                        reference(&c, &mut want);
                        for threads in [1, 3] {
                            let mut found = vec![f32::NAN; want.len() + 20];
                            if !conv_on(form, &Pool::new(threads), &c, &mut found) {
                                continue;
                            }
                            ran += 1;
                            close(&want, &found, k, &format!("{form:?} {window:?} {cg}x{groups} to {og}"));
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no form ran");
    }

    #[test]
    fn images_whose_lines_are_copied_in_parts_or_not_at_all_are_convolved_by_the_formula() {
        let mut ran = 0;
        // Lines of 21 pixels with their padding: all of three, then parts of one, then not even those of one tile.
        for (window, channels) in [(windows()[2], 340), (windows()[2], 900), (windows()[2], 3000), (windows()[4], 2000)]
        {
            let (k, outputs) = (window.taps() * channels, 5);
            let (x, w) = (noise(2 * window.pixels() * channels, 3), noise(outputs * k, 7));
            let mut packed = vec![0f32; gemm::packed_len(outputs, k)];
            gemm::pack(outputs, k, |j, kk| w[j * k + kk], &mut packed);
            let (w, epilogue) = (Packed::F32(&packed), Epilogue::default());
            let c = Conv { window, batch: 2, channels, outputs, groups: 1, x: &x, w, bias: None, epilogue };
            let mut want = vec![0.0; 2 * window.positions() * outputs];
            reference(&c, &mut want);
            for form in Form::ALL {
                let mut found = vec![f32::NAN; want.len() + 20];
                if conv_on(form, &Pool::new(1), &c, &mut found) {
                    ran += 1;
                    close(&want, &found, k, &format!("{form:?} {window:?} {channels}"));
                }
            }
        }
        assert!(ran > 0, "no form ran");
    }

    #[test]
    fn every_depthwise_convolution_is_the_formula_on_every_instruction_set_and_nothing_else_is_written() {
        let mut ran = 0;
        for isa in Isa::ALL {
            for window in windows() {
                for (batch, channels) in [(1, 3), (2, 16), (1, 37), (1, 72)] {
                    let rows = batch * window.positions();
                    let x = noise(batch * window.pixels() * channels, 3);
                    let (w, bias) = (noise(window.taps() * channels, 7), noise(channels, 5));
                    let add = noise(rows * channels, 17);
                    for (residual, after, activation) in EPILOGUES {
                        let epilogue = Epilogue { residual: residual.then_some(&add[..]), after, activation };
                        let d = Depthwise { window, batch, channels, x: &x, w: &w, bias: Some(&bias), epilogue };
                        let mut want = vec![0.0; rows * channels];
                        depthwise_reference(&d, &mut want);
                        for threads in [1, 3] {
                            let mut found = vec![f32::NAN; want.len() + 20];
                            if !depthwise_on(isa, &Pool::new(threads), &d, &mut found) {
                                continue;
                            }
                            ran += 1;
                            close(&want, &found, window.taps(), &format!("{isa:?} {window:?} {channels}"));
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no instruction set ran");
    }

    #[test]
    fn threads_change_nothing_not_even_the_last_bit() {
        let window = windows()[2];
        for (channels, outputs) in [(24, 40), (8, 512)] {
            let k = window.taps() * channels;
            let (x, w) = (noise(8 * window.pixels() * channels, 3), noise(outputs * k, 7));
            let mut packed = vec![0f32; gemm::packed_len(outputs, k)];
            gemm::pack(outputs, k, |j, kk| w[j * k + kk], &mut packed);
            for batch in [1, 8] {
                let epilogue = Epilogue { activation: Activation::Silu, ..Epilogue::default() };
                let w = Packed::F32(&packed);
                let c = Conv { window, batch, channels, outputs, groups: 1, x: &x, w, bias: None, epilogue };
                let mut one = vec![0.0; batch * window.positions() * outputs];
                let mut many = one.clone();
                conv(&Pool::new(1), &c, &mut one);
                conv(&Pool::new(4), &c, &mut many);
                assert_eq!(one, many);
            }
        }
    }
}
