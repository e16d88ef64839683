//! Convolution of `f32` with kernels of 3×3, one step at a time, by minimal filtering: channels innermost, as [`crate::nhwc`].
//!
//! A square of results is made of the square of inputs it meets: those are transformed, multiplied by transformed weights one by
//! one, summed over channels, and transformed back. The sums over channels are matrix products, one for each place in the
//! square, whose rows are squares: 36 products of weights make 16 results in place of 144 ([`Square::Four`]), or 16 make 4 in
//! place of 36 ([`Square::Two`]). The price is memory for weights, and rounding: transforms of `Four` add numbers
//! up to 100 times a result's terms. An infinite input makes every result of its squares NaN.
//!
//! Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308), sections 4.1 and 4.2.
//!
//! Dimension letters: `C` channels in, `O` channels out, `T` squares, `S` length of a square of inputs.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::conv::Window;
use crate::epilogue::{self, Activation, Epilogue};
use crate::gemm::{self, NR, Out, share};
use crate::isa::{Form, Isa};
use crate::simd::{F32s, per_isa};
use crate::threads::Pool;
use crate::tile::{Job, Table, Weight, heights};

/// Length of the longer square of inputs.
const LONGEST: usize = 6;
/// Elements between what one place in the square takes and the next, so that they do not all fall into one set of the cache.
const APART: usize = 16;
/// Bytes that transformed inputs and sums of some squares should not exceed: they wait in the second-level cache.
const WAITING: usize = 256 * 1024;
/// Bytes of weights above which they come from beyond that cache each time.
const NEAR: usize = 512 * 1024;
/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// Which squares a convolution is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Square {
    /// 2×2 results of 4×4 inputs.
    Two,
    /// 4×4 results of 6×6 inputs.
    Four,
}

impl Square {
    /// Length of a square of results.
    pub const fn out(self) -> usize {
        match self {
            Square::Two => 2,
            Square::Four => 4,
        }
    }

    /// Length of a square of inputs.
    const fn side(self) -> usize {
        self.out() + 2
    }

    /// Places in a square of inputs.
    const fn places(self) -> usize {
        self.side() * self.side()
    }

    /// What the three weights of a line become: `S` rows of three factors.
    fn weights(self) -> &'static [[f64; 3]] {
        const S: f64 = 1.0 / 6.0;
        match self {
            Square::Two => &[[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]],
            Square::Four => &[
                [0.25, 0.0, 0.0],
                [-S, -S, -S],
                [-S, S, -S],
                [S / 4.0, S / 2.0, S],
                [S / 4.0, -S / 2.0, S],
                [0.0, 0.0, 1.0],
            ],
        }
    }
}

/// The shape of one convolution of a single group.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How the window slides: 3×3 without depth, stride or dilation.
    pub window: Window,
    /// Images.
    pub batch: usize,
    /// Channels in.
    pub channels: usize,
    /// Channels out.
    pub outputs: usize,
    /// What it is cut into.
    pub square: Square,
}

/// What is convolved: `y` as by [`crate::nhwc::Conv`], up to rounding.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Packed by [`Shape::pack`].
    pub w: &'a [f32],
    /// `O` floats to add, if any.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub epilogue: Epilogue<'a>,
}

impl Shape {
    /// Whether the window can be cut into squares at all.
    pub fn supports(window: &Window) -> bool {
        window.is_flat() && window.kernel == [1, 3, 3] && window.stride == [1; 3] && window.dilation == [1; 3]
    }

    /// The squares by which such a convolution is faster than by [`crate::nhwc::conv`]; `None` where it is not.
    ///
    /// By counting: multiplications, the loads, additions and stores of transforms, and weights, which come from afar. How they weigh was
    /// measured by `benches/nhwc.rs`.
    pub fn best(window: Window, batch: usize, channels: usize, outputs: usize) -> Option<Shape> {
        if !Shape::supports(&window) || channels < 8 || outputs < 8 {
            return None;
        }
        let (c, o) = (channels as f64, outputs as f64);
        let far = |weights: f64| if 4.0 * weights > NEAR as f64 { 12.0 } else { 4.0 };
        let direct = 9.0 * c * o;
        let direct = direct * ((batch * window.positions()) as f64 + far(direct));
        let of = |square: Square| {
            let shape = Shape { window, batch, channels, outputs, square };
            let (t, places) = (shape.squares() as f64, square.places() as f64);
            let weights = places * c * o;
            (shape, weights * (t + far(weights)) + 11.0 * t * places * (c + o))
        };
        let all = [Square::Four, Square::Two].map(of);
        all.into_iter().filter(|(_, cost)| 1.4 * cost < direct).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(s, _)| s)
    }

    /// Squares along height and width of an image.
    fn grid(&self) -> [usize; 2] {
        let [_, h, w] = self.window.output;
        [h.div_ceil(self.square.out()), w.div_ceil(self.square.out())]
    }

    /// `T`: squares of all images.
    fn squares(&self) -> usize {
        let [h, w] = self.grid();
        self.batch * h * w
    }

    /// Elements the packed weights take.
    pub fn packed_len(&self) -> usize {
        self.square.places() * gemm::packed_len(self.outputs, self.channels)
    }

    /// Transforms weights and packs them for each place in the square as [`gemm::pack`] does; `w(o, tap, c)` gives them. `out` has
    /// [`Shape::packed_len`] elements.
    ///
    /// # Panics
    /// When `out` is too short.
    pub fn pack(&self, w: impl Fn(usize, usize, usize) -> f32, out: &mut [f32]) {
        let (len, side) = (gemm::packed_len(self.outputs, self.channels), self.square.side());
        let by = self.square.weights();
        let transformed = |place: usize, o: usize, c: usize| {
            let (down, across) = (by[place / side], by[place % side]);
            let tap = |t: usize| f64::from(w(o, t, c)) * down[t / 3] * across[t % 3];
            (0..9).map(tap).sum::<f64>() as f32
        };
        for (place, out) in out[..self.packed_len()].chunks_exact_mut(len.max(1)).enumerate() {
            gemm::pack(self.outputs, self.channels, |o, c| transformed(place, o, c), out);
        }
    }

    /// Squares that are taken together.
    fn together(&self) -> usize {
        let each = 4 * self.square.places() * (self.channels + self.outputs);
        // Whole tiles of every instruction set.
        (WAITING / each / 12 * 12).clamp(12, 120).min(self.squares())
    }

    /// Elements of what one thread works in: of transformed inputs, and with the sums.
    fn memory(&self) -> [usize; 2] {
        let (places, together) = (self.square.places(), self.together());
        let inputs = places * (together * self.channels).next_multiple_of(APART) + places * APART;
        let sums = places * (together * self.outputs).next_multiple_of(APART) + places * APART;
        [inputs, inputs + sums]
    }

    /// Parts of the work for that many threads.
    fn parts(&self, threads: usize) -> usize {
        let work = self.square.places() * self.squares() * self.channels * self.outputs;
        if work < WORTH_SHARING { 1 } else { threads.clamp(1, self.squares().div_ceil(12).max(1)) }
    }

    /// Elements of scratch that [`Shape::conv`] works in with that many threads; with fewer elements, fewer threads have work.
    pub fn scratch_len(&self, threads: usize) -> usize {
        self.parts(threads) * self.memory()[1]
    }

    /// The convolution, on all threads of `pool`. Equal results whatever their number.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or [`Shape::supports`] says no: a planner's mistake, checked there.
    pub fn conv(&self, pool: &Pool, c: &Conv<'_>, scratch: &mut [f32], y: &mut [f32]) {
        self.conv_on(Isa::best(), pool, c, scratch, y);
    }

    /// [`Shape::conv`] on one instruction set; returns false where this CPU has not got it.
    ///
    /// # Panics
    /// As [`Shape::conv`].
    pub fn conv_on(&self, isa: Isa, pool: &Pool, c: &Conv<'_>, scratch: &mut [f32], y: &mut [f32]) -> bool {
        if !isa.available() {
            return false;
        }
        let (w, results) = (&self.window, self.batch * self.window.positions() * self.outputs);
        assert!(Shape::supports(w), "ask `supports` first");
        assert!(c.x.len() >= self.batch * w.pixels() * self.channels, "x is shorter than its shape says");
        assert!(c.w.len() >= self.packed_len(), "w is shorter than its shape says");
        assert!(c.bias.is_none_or(|b| b.len() >= self.outputs), "the bias is shorter than the channels out");
        assert!(c.epilogue.residual.is_none_or(|r| r.len() >= results), "the residual is shorter than y");
        assert!(y.len() >= results, "y is shorter than its shape says");
        let each = self.memory()[1];
        assert!(scratch.len() >= each, "there is no room for one thread");
        let parts = self.parts(pool.threads()).min(scratch.len() / each.max(1));
        let (scratch, out) = (Out(scratch.as_mut_ptr()), Out(y.as_mut_ptr()));
        pool.run(parts, &|i| {
            let squares = share(self.squares(), parts, i);
            // SAFETY: the CPU has the instruction set, the lengths were seen, and no other part has these squares and this memory.
            unsafe { part(isa, self, c, squares, scratch.start().wrapping_add(i * each), out.start()) };
        });
        true
    }
}

/// Some squares.
///
/// # Safety
/// As promised by [`Shape::conv_on`]; `memory` is [`Shape::memory`] elements that nobody else has.
unsafe fn part(isa: Isa, s: &Shape, c: &Conv<'_>, squares: Range<usize>, memory: *mut f32, y: *mut f32) {
    let mut table = MaybeUninit::<Table<f32>>::uninit();
    // SAFETY: an empty table is made where it lies; the rest of it may be uninitialised.
    let table = unsafe {
        Table::start(table.as_mut_ptr());
        table.assume_init_mut()
    };
    let (places, together) = (s.square.places(), s.together());
    let sums = memory.wrapping_add(s.memory()[0]);
    let len = gemm::packed_len(s.outputs, s.channels);
    for first in squares.clone().step_by(together.max(1)) {
        let now = first..squares.end.min(first + together);
        // From place to place.
        let [wide, tall] = [s.channels, s.outputs].map(|n| (now.len() * n).next_multiple_of(APART) + APART);
        // SAFETY: the caller's promise; each place has room for as many squares as are taken together.
        unsafe {
            inputs::on(isa, s, c.x, now.clone(), memory, wide);
            for place in 0..places {
                table.clear();
                for (row, height) in heights(now.len(), f32::rows(Form::Floats(isa))) {
                    let x = memory.wrapping_add(place * wide + row * s.channels).cast_const();
                    table.push(row, height, s.channels);
                    table.segment(0, (0..height).map(|r| x.wrapping_add(r * s.channels)));
                }
                let job = Job {
                    w: c.w.as_ptr().wrapping_add(place * len),
                    k: s.channels,
                    n: s.outputs,
                    scale: std::ptr::null(),
                    bias: std::ptr::null(),
                    y: sums.wrapping_add(place * tall),
                    stride: s.outputs,
                    addend: std::ptr::null(),
                    activation: Activation::None,
                    after: std::ptr::null(),
                };
                f32::block(Form::Floats(isa), &job, table, 0..s.outputs.div_ceil(NR));
            }
            results::on(isa, s, c, now, sums, tall, y);
        }
    }
}

/// The image of a square, and its first result there.
fn place(s: &Shape, square: usize) -> (usize, [usize; 2]) {
    let [h, w] = s.grid();
    let (image, at) = (square / (h * w), square % (h * w));
    (image, [at / w * s.square.out(), at % w * s.square.out()])
}

per_isa! { inputs = transform_inputs; (s: &Shape, x: &[f32], squares: Range<usize>, to: *mut f32, pitch: usize) }

/// Inputs of some squares, transformed: place by place, squares inside.
///
/// # Safety
/// `x` is as long as the shape says, `to` has room, and the CPU has the instructions.
#[inline(always)]
unsafe fn transform_inputs<V: F32s>(s: &Shape, x: &[f32], squares: Range<usize>, to: *mut f32, pitch: usize) {
    let from = squares.start;
    for square in squares {
        let to = to.wrapping_add((square - from) * s.channels);
        // SAFETY: the caller's promise.
        unsafe {
            match s.square {
                Square::Two => one_input::<V, 4>(s, x, square, to, pitch),
                Square::Four => one_input::<V, 6>(s, x, square, to, pitch),
            }
        }
    }
}

/// # Safety
/// As [`transform_inputs`]; `SIDE` is the square's.
#[inline(always)]
unsafe fn one_input<V: F32s, const SIDE: usize>(s: &Shape, x: &[f32], square: usize, to: *mut f32, pitch: usize) {
    let (w, c) = (&s.window, s.channels);
    let [_, height, width] = w.input;
    let (image, at) = place(s, square);
    let corner = [at[0] as isize - w.pad[1], at[1] as isize - w.pad[2]];
    // The lines and columns of the square that are in the image.
    let within = |corner: isize, length: usize| {
        let clip = |v: isize| v.clamp(0, SIDE as isize) as usize;
        clip(-corner)..clip(length as isize - corner)
    };
    let (lines, columns) = (within(corner[0], height), within(corner[1], width));
    let whole = lines.len() == SIDE && columns.len() == SIDE;
    // The first pixel of the square, which need not exist.
    let first = ((image * height) as isize + corner[0]) * width as isize + corner[1];
    let x = x.as_ptr().wrapping_offset(first * c as isize);
    let mut patch = Patch([0.0; LONGEST * LONGEST * 16]);
    let patch = patch.0.as_mut_ptr();
    for channel in (0..c).step_by(V::LANES) {
        let n = V::LANES.min(c - channel);
        let (x, to) = (x.wrapping_add(channel), to.wrapping_add(channel));
        // SAFETY: the pixels exist that are in the image, of which the others are not read; the caller's promise of `to`.
        unsafe {
            if whole && n == V::LANES {
                let load = |i, j| V::load(x.wrapping_add((i * width + j) * c));
                square_of::<V, SIDE>(load, |place, v| v.store(to.wrapping_add(place * pitch)));
                continue;
            }
            for i in lines.clone() {
                for j in columns.clone() {
                    let pixel = x.wrapping_add((i * width + j) * c);
                    V::load_part(pixel, n).store(patch.wrapping_add((i * SIDE + j) * V::LANES));
                }
            }
            let load = |i, j| V::load(patch.wrapping_add((i * SIDE + j) * V::LANES));
            square_of::<V, SIDE>(load, |place, v| v.store_part(to.wrapping_add(place * pitch), n));
        }
    }
}

/// Inputs of a square that is not whole, a vector each, zeros where there are none.
#[repr(align(64))]
struct Patch([f32; LONGEST * LONGEST * 16]);

/// A square of inputs, transformed: `Bᵀ d B`.
///
/// # Safety
/// What `load` and `store` ask for, and the CPU has the instructions.
#[inline(always)]
unsafe fn square_of<V: F32s, const SIDE: usize>(load: impl Fn(usize, usize) -> V, store: impl Fn(usize, V)) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut half = [[V::splat(0.0); SIDE]; SIDE];
        for j in 0..SIDE {
            let column = input::<V, SIDE>(std::array::from_fn(|i| load(i, j)));
            for i in 0..SIDE {
                half[i][j] = column[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, v) in input(row).into_iter().enumerate() {
                store(i * SIDE + j, v);
            }
        }
    }
}

/// A line of inputs, transformed: `Bᵀ d`.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
unsafe fn input<V: F32s, const SIDE: usize>(d: [V; SIDE]) -> [V; SIDE] {
    let mut t = d;
    // SAFETY: the caller's promise.
    unsafe {
        if SIDE == 4 {
            t[0] = d[0].sub(d[2]);
            t[1] = d[1].add(d[2]);
            t[2] = d[2].sub(d[1]);
            t[3] = d[3].sub(d[1]);
        } else {
            let by = |v: f32| V::splat(v);
            let (a, b) = (by(-4.0).mul_add(d[2], d[4]), by(-4.0).mul_add(d[1], d[3]));
            let (e, f) = (d[4].sub(d[2]), d[3].sub(d[1]));
            t[0] = by(4.0).mul_add(d[0], by(-5.0).mul_add(d[2], d[4]));
            t[1] = a.add(b);
            t[2] = a.sub(b);
            t[3] = by(2.0).mul_add(f, e);
            t[4] = by(-2.0).mul_add(f, e);
            t[5] = by(4.0).mul_add(d[1], by(-5.0).mul_add(d[3], d[5]));
        }
    }
    t
}

/// A line of sums, transformed: `Aᵀ m`; of [`Square::Two`] two results, and two that are nobody's.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
unsafe fn output<V: F32s, const SIDE: usize>(m: [V; SIDE]) -> [V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        if SIDE == 4 {
            let none = V::splat(0.0);
            return [m[0].add(m[1].add(m[2])), m[1].sub(m[2]).add(m[3]), none, none];
        }
        let by = |v: f32| V::splat(v);
        let (s, d) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (p, q) = (m[3].add(m[4]), m[3].sub(m[4]));
        [m[0].add(s).add(p), by(2.0).mul_add(q, d), by(4.0).mul_add(p, s), by(8.0).mul_add(q, d).add(m[5])]
    }
}

per_isa! { results = transform_sums; (s: &Shape, c: &Conv<'_>, squares: Range<usize>, sums: *const f32, pitch: usize, y: *mut f32) }

/// Results of some squares.
///
/// # Safety
/// As [`part`]; `sums` are what the products left.
#[inline(always)]
unsafe fn transform_sums<V: F32s>(
    s: &Shape,
    c: &Conv<'_>,
    squares: Range<usize>,
    sums: *const f32,
    pitch: usize,
    y: *mut f32,
) {
    let from = squares.start;
    for square in squares {
        let sums = sums.wrapping_add((square - from) * s.outputs);
        // SAFETY: the caller's promise.
        unsafe {
            match s.square {
                Square::Two => one_result::<V, 4>(s, c, square, sums, pitch, y),
                Square::Four => one_result::<V, 6>(s, c, square, sums, pitch, y),
            }
        }
    }
}

/// # Safety
/// As [`transform_sums`]; `SIDE` is the square's.
#[inline(always)]
unsafe fn one_result<V: F32s, const SIDE: usize>(
    s: &Shape,
    c: &Conv<'_>,
    square: usize,
    sums: *const f32,
    pitch: usize,
    y: *mut f32,
) {
    let [_, height, width] = s.window.output;
    let (image, at) = place(s, square);
    let (rows, columns) = (s.square.out().min(height - at[0]), s.square.out().min(width - at[1]));
    let o = s.outputs;
    let first = ((image * height + at[0]) * width + at[1]) * o;
    let epilogue = &c.epilogue;
    let residual = epilogue.residual.map_or(std::ptr::null(), <[f32]>::as_ptr);
    let (addend, after) = if epilogue.after { (std::ptr::null(), residual) } else { (residual, std::ptr::null()) };
    let limits = epilogue.activation.limits();
    let (low, high) = limits.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
    // SAFETY: the caller's promise; results outside the image are not stored.
    unsafe {
        let (low, high) = (V::splat(low), V::splat(high));
        for channel in (0..o).step_by(V::LANES) {
            let n = V::LANES.min(o - channel);
            let bias = c.bias.map_or(V::splat(0.0), |b| V::load_part(b.as_ptr().add(channel), n));
            let (sums, y) = (sums.wrapping_add(channel), y.wrapping_add(first + channel));
            let addend = if addend.is_null() { addend } else { addend.wrapping_add(first + channel) };
            let finish = |v: V, at: usize| {
                let mut v = v.add(bias);
                if !addend.is_null() {
                    v = v.add(V::load_part(addend.wrapping_add(at), n));
                }
                high.min(low.max(v)).store_part(y.wrapping_add(at), n);
            };
            let mut half = [[V::splat(0.0); SIDE]; 4];
            for j in 0..SIDE {
                let column = output::<V, SIDE>(std::array::from_fn(|i| {
                    V::load_part(sums.wrapping_add((i * SIDE + j) * pitch), n)
                }));
                for i in 0..SIDE - 2 {
                    half[i][j] = column[i];
                }
            }
            for i in 0..SIDE - 2 {
                let row = output(half[i]);
                for j in 0..SIDE - 2 {
                    // Not a bound of the loops: those the compiler unrolls, and keeps the sums in registers.
                    if i < rows && j < columns {
                        finish(row[j], (i * width + j) * o);
                    }
                }
            }
        }
        if limits.is_none() || !after.is_null() {
            let activation = if limits.is_none() { epilogue.activation } else { Activation::None };
            for row in 0..rows {
                let at = first + row * width * o;
                let after = if after.is_null() { after } else { after.wrapping_add(at) };
                epilogue::rows::on(V::ISA, activation, y.wrapping_add(at), columns * o, 1, 0, after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Packed;
    use crate::nhwc;
    use crate::nhwc::tests::{noise, windows};

    /// `Bᵀ` and `Aᵀ` of the source, by which a bound of the error is computed.
    fn matrices(square: Square) -> (&'static [&'static [f64]], &'static [&'static [f64]]) {
        match square {
            Square::Two => (
                &[&[1.0, 0.0, -1.0, 0.0], &[0.0, 1.0, 1.0, 0.0], &[0.0, -1.0, 1.0, 0.0], &[0.0, 1.0, 0.0, -1.0]],
                &[&[1.0, 1.0, 1.0, 0.0], &[0.0, 1.0, -1.0, -1.0]],
            ),
            Square::Four => (
                &[
                    &[4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
                    &[0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
                    &[0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
                    &[0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
                    &[0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
                    &[0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
                ],
                &[
                    &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
                    &[0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
                    &[0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
                    &[0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
                ],
            ),
        }
    }

    /// How far a result may be off. Inputs and weights are uniform in [-1, 1], so the root mean square of a product of
    /// transformed ones is known for each place. A sum of `C` of them rounds `C` times, by half an epsilon of a partial sum; each factor was rounded
    /// in a dozen operations before. Places add up as the transform back weighs them, in squares since they are
    /// independent; six times that root mean square is never met by chance.
    fn tolerance(square: Square, c: usize) -> f32 {
        let (b, a) = matrices(square);
        let g = square.weights();
        let squares = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>();
        let line: Vec<f64> = b.iter().zip(g).map(|(b, g)| squares(b) * squares(g) / 3.0).collect();
        let worst = a.iter().map(|a| a.iter().zip(&line).map(|(a, l)| a * a * l).sum::<f64>()).fold(0.0, f64::max);
        let c = c as f64;
        (6.0 * f64::from(f32::EPSILON) * 0.5 * (c + 12.0 * c.sqrt()) * worst) as f32
    }

    const EPILOGUES: [(bool, bool, Activation); 4] = [
        (false, false, Activation::None),
        (true, false, Activation::Clip(-0.4, 1.0)),
        (true, true, Activation::Silu),
        (false, false, Activation::HardSwish),
    ];

    /// Weights of a convolution, packed as they are and transformed.
    struct Weights {
        plain: Vec<f32>,
        transformed: Vec<f32>,
    }

    fn weights(s: &Shape) -> Weights {
        let (k, n, c) = (9 * s.channels, s.outputs, s.channels);
        let w = noise(n * k, 7);
        let mut plain = vec![0.0; gemm::packed_len(n, k)];
        gemm::pack(n, k, |j, kk| w[j * k + kk], &mut plain);
        let mut transformed = vec![0.0; s.packed_len()];
        s.pack(|o, tap, ch| w[o * k + tap * c + ch], &mut transformed);
        Weights { plain, transformed }
    }

    fn shapes() -> Vec<Shape> {
        let mut all = Vec::new();
        for mut window in windows().into_iter().filter(Shape::supports) {
            // As they are, cropped, and with more padding than a kernel is long.
            for (pad, more) in [(window.pad, 0), ([0, -1, -2], -3), ([0, 4, 5], 8)] {
                let output = [window.output[1], window.output[2]].map(|n| (n as isize + more).max(1) as usize);
                window.pad = pad;
                window.output = [1, output[0], output[1]];
                for (batch, channels, outputs) in [(1, 3, 20), (2, 16, 7), (1, 37, 49), (3, 64, 16)] {
                    for square in [Square::Two, Square::Four] {
                        all.push(Shape { window, batch, channels, outputs, square });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_convolution_by_squares_is_the_formula_on_every_instruction_set_and_nothing_else_is_written() {
        let mut ran = 0;
        for s in shapes() {
            let Shape { window, batch, channels, outputs, square } = s;
            let w = weights(&s);
            let results = batch * window.positions() * outputs;
            let (x, bias) = (noise(batch * window.pixels() * channels, 3), noise(outputs, 5));
            let add = noise(results, 17);
            for (residual, after, activation) in EPILOGUES {
                let epilogue = Epilogue { residual: residual.then_some(&add[..]), after, activation };
                let (bias, packed) = (Some(&bias[..]), Packed::F32(&w.plain));
                let plain =
                    nhwc::Conv { window, batch, channels, outputs, groups: 1, x: &x, w: packed, bias, epilogue };
                let mut want = vec![0.0; results];
                nhwc::reference(&plain, &mut want);
                for (isa, threads) in Isa::ALL.into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let mut scratch = vec![f32::NAN; s.scratch_len(threads)];
                    let mut found = vec![f32::NAN; results + 20];
                    let c = Conv { x: &x, w: &w.transformed, bias, epilogue };
                    if !s.conv_on(isa, &Pool::new(threads), &c, &mut scratch, &mut found) {
                        continue;
                    }
                    ran += 1;
                    let tolerance = tolerance(square, channels);
                    for (i, (a, b)) in want.iter().zip(&found).enumerate() {
                        assert!((a - b).abs() <= tolerance, "{isa:?} {s:?} at {i}: {a} {b}, may be {tolerance} off");
                    }
                    assert!(found[results..].iter().all(|v| v.is_nan()), "{isa:?} {s:?} wrote past its output");
                }
            }
        }
        assert!(ran > 0, "nothing ran");
    }

    #[test]
    fn the_bound_of_the_error_is_far_below_what_a_wrong_weight_does() {
        for square in [Square::Two, Square::Four] {
            assert!(tolerance(square, 64) < 2e-3, "{square:?}: {}", tolerance(square, 64));
        }
    }

    #[test]
    fn threads_and_memory_change_nothing_not_even_the_last_bit() {
        let window = windows()[2];
        for square in [Square::Two, Square::Four] {
            let s = Shape { window, batch: 5, channels: 24, outputs: 40, square };
            let (w, x) = (weights(&s), noise(5 * window.pixels() * 24, 3));
            let epilogue = Epilogue { activation: Activation::Silu, ..Epilogue::default() };
            let c = Conv { x: &x, w: &w.transformed, bias: None, epilogue };
            let run = |threads: usize, scratch: usize| {
                let mut y = vec![0.0; 5 * window.positions() * 40];
                s.conv(&Pool::new(threads), &c, &mut vec![0.0; scratch], &mut y);
                y
            };
            let one = run(1, s.scratch_len(1));
            assert_eq!(one, run(4, s.scratch_len(4)));
            assert_eq!(one, run(4, s.scratch_len(1)));
        }
    }

    #[test]
    fn squares_are_taken_where_they_save_multiplications_and_not_where_weights_come_from_afar() {
        let of = |lines: usize, channels: usize, outputs: usize| {
            let (input, output) = ([1, lines, lines], [1, lines, lines]);
            let window = Window { input, kernel: [1, 3, 3], output, stride: [1; 3], dilation: [1; 3], pad: [0, 1, 1] };
            Shape::best(window, 1, channels, outputs).map(|s| s.square)
        };
        assert_eq!(of(56, 64, 64), Some(Square::Four));
        assert_eq!(of(7, 512, 512), None);
        assert_eq!(of(224, 3, 64), None);
    }
}
