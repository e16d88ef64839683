//! Where the rows of a convolution lie when channels are innermost, as a [`Table`] for a matrix product.

use std::mem::MaybeUninit;

use crate::conv::Window;
use crate::tile::{POINTERS, Table, heights};

/// Most channels of a group: what a row of padding is long.
pub(crate) const CHANNELS: usize = 8192;
/// Most kernel positions.
pub(crate) const TAPS: usize = 2048;
/// Elements that are copied together: lines of an image with their padding, or rows whose segments would be short.
const COPIED: usize = 24 * 1024;
/// Segments shorter than this are copied together at the border of the image.
const SHORT: usize = 16;

/// Memory of one thread that a block of rows may point to.
pub(crate) struct Scratch<T> {
    pub(crate) table: Table<T>,
    pad: [MaybeUninit<T>; CHANNELS],
    copied: [MaybeUninit<T>; COPIED],
    used: usize,
}

impl<T: Copy> Scratch<T> {
    /// Memory on the caller's stack made usable, with `channels` elements of padding of that value.
    #[inline(always)]
    pub(crate) fn of(memory: &mut MaybeUninit<Scratch<T>>, channels: usize, value: T) -> &mut Scratch<T> {
        // SAFETY: all that is not written here may be uninitialised: its type says so.
        let scratch = unsafe {
            let at = memory.as_mut_ptr();
            (&raw mut (*at).used).write(0);
            Table::start(&raw mut (*at).table);
            &mut *at
        };
        scratch.pad[..channels].iter_mut().for_each(|p| {
            p.write(value);
        });
        scratch
    }
}

/// How one group of a convolution reads an image with channels innermost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    window: Window,
    /// Elements from pixel to pixel.
    pixel: usize,
    /// Channels of a group.
    channels: usize,
    /// Segments are a multiple of this, or are copied; rows of copies are filled up to a multiple of it.
    unit: usize,
    /// A segment that is padding for all rows of a tile is left out.
    skip: bool,
}

impl Geometry {
    pub(crate) fn new(window: &Window, pixel: usize, channels: usize, unit: usize, skip: bool) -> Geometry {
        let mut w = *window;
        // A window that has no width slides along its height: there, neighbours in the kernel are neighbours in memory.
        if w.input[2] == 1 && w.kernel[2] == 1 && w.output[2] == 1 && w.pad[2] == 0 {
            for axis in [&mut w.input, &mut w.kernel, &mut w.output, &mut w.stride, &mut w.dilation] {
                axis.swap(1, 2);
            }
            w.pad.swap(1, 2);
        }
        Geometry { window: w, pixel, channels, unit, skip }
    }

    /// Elements of a row of the left matrix.
    pub(crate) fn k(&self) -> usize {
        self.window.taps() * self.channels
    }

    /// Fills the table with tiles of rows from `first` on, at most `count` rows; returns how many.
    ///
    /// # Safety
    /// `x` leads to the first channel of the group in the first pixel of images enough for `first + count` output positions.
    #[inline(always)]
    pub(crate) unsafe fn rows<T: Copy>(
        &self,
        x: *const T,
        first: usize,
        count: usize,
        most: usize,
        scratch: &mut Scratch<T>,
    ) -> usize {
        scratch.table.clear();
        scratch.used = 0;
        // SAFETY: the caller's promise.
        if let Some(band) = unsafe { self.band(x, first, count, most, scratch) } {
            return self.rows_of_band(&band, first, most, &mut scratch.table);
        }
        let g = &self.window;
        let [_, height, width] = g.input;
        let (taps, run) = (g.taps(), self.run());
        let whole = (run * self.channels).is_multiple_of(self.unit);
        let mut at = Position::new(g, first);
        let mut done = 0;
        let copied = !self.channels.is_multiple_of(self.unit);
        let few = if copied { COPIED / self.k().next_multiple_of(self.unit) } else { POINTERS / taps };
        let few = few.clamp(1, most);
        for (row, rows) in heights(count, few) {
            if !scratch.table.has_room(taps, rows) {
                break;
            }
            let mut origins = [Origin { at: [0; 3], x }; 16];
            let mut inside = true;
            if at.at[2] + rows <= g.output[2] {
                // One line: what differs is how far along it they lie.
                let first = at.origin(self, x);
                for (r, o) in origins[..rows].iter_mut().enumerate() {
                    let along = r * g.stride[2];
                    *o = Origin {
                        at: [first.at[0], first.at[1], first.at[2] + along as isize],
                        x: first.x.wrapping_add(along * self.pixel),
                    };
                }
                inside = first.inside(g) && origins[rows - 1].inside(g);
                at.at[2] += rows - 1;
                at.next(g);
            } else {
                for o in &mut origins[..rows] {
                    *o = at.origin(self, x);
                    inside &= o.inside(g);
                    at.next(g);
                }
            }
            let origins = &origins[..rows];
            if inside && whole {
                scratch.table.push(first + row, rows, run * self.channels);
                for d in 0..g.kernel[0] {
                    for h in 0..g.kernel[1] {
                        for v in (0..g.kernel[2]).step_by(run) {
                            let tap = (d * g.kernel[1] + h) * g.kernel[2] + v;
                            let [d, h, v] = [d * g.dilation[0], h * g.dilation[1], v * g.dilation[2]];
                            let offset = ((d * height + h) * width + v) * self.pixel;
                            let starts = origins.iter().map(|o| o.x.wrapping_add(offset));
                            scratch.table.segment(tap * self.channels, starts);
                        }
                    }
                }
            } else if copied || self.channels < SHORT && self.fits(rows) {
                let len = self.k().next_multiple_of(self.unit);
                if scratch.used + rows * len > COPIED {
                    break;
                }
                // SAFETY: the caller's promise; they fit.
                unsafe { self.copy(origins, inside, len, scratch) };
                let copied = scratch.copied[scratch.used..].as_ptr().cast::<T>();
                scratch.used += rows * len;
                scratch.table.push(first + row, rows, len);
                scratch.table.segment(0, (0..rows).map(|r| copied.wrapping_add(r * len)));
            } else {
                scratch.table.push(first + row, rows, self.channels);
                let pad = scratch.pad.as_ptr().cast::<T>();
                for tap in 0..taps {
                    let [_, kh, kw] = g.kernel;
                    let k = [tap / kw / kh * g.dilation[0], tap / kw % kh * g.dilation[1], tap % kw * g.dilation[2]];
                    let meets = |o: &Origin<T>| {
                        (0..3).all(|a| {
                            let i = o.at[a] + k[a] as isize;
                            i >= 0 && i < g.input[a] as isize
                        })
                    };
                    if self.skip && !origins.iter().any(meets) {
                        continue;
                    }
                    let offset = ((k[0] * height + k[1]) * width + k[2]) * self.pixel;
                    let start = |o: &Origin<T>| if meets(o) { o.x.wrapping_add(offset) } else { pad };
                    scratch.table.segment(tap * self.channels, origins.iter().map(start));
                }
            }
            done = row + rows;
        }
        done
    }

    /// Neighbouring kernel positions that are neighbours in memory.
    fn run(&self) -> usize {
        if self.window.dilation[2] == 1 && self.pixel == self.channels { self.window.kernel[2] } else { 1 }
    }

    /// Rows from `first` on, at most `count` and all of one image of two axes, for whose windows there is an element at every kernel
    /// position: the image's own where none is padding, else a copy of the lines they meet with their padding. `None` where
    /// there are more axes, where segments are not whole, or where not even the lines of `most` rows can be copied.
    ///
    /// # Safety
    /// As [`Geometry::rows`].
    #[inline(always)]
    unsafe fn band<T: Copy>(
        &self,
        x: *const T,
        first: usize,
        count: usize,
        most: usize,
        scratch: &mut Scratch<T>,
    ) -> Option<Band<T>> {
        let (g, c) = (&self.window, self.channels);
        if !g.is_flat() || !(self.run() * c).is_multiple_of(self.unit) {
            return None;
        }
        let ([_, height, width], columns) = (g.input, g.output[2]);
        let (image, p) = (first / g.positions(), first % g.positions());
        let (line, column) = (p / columns, p % columns);
        let image = x.wrapping_add(image * height * width * self.pixel);
        let mut count = count.min(g.positions() - p);
        loop {
            let last = p + count - 1;
            // Where the windows of output positions `from..=to` of an axis begin, and where they end.
            let meets = |a: usize, from: usize, to: usize| {
                let start = |o: usize| (o * g.stride[a]) as isize - g.pad[a];
                (start(from), start(to) + ((g.kernel[a] - 1) * g.dilation[a]) as isize + 1)
            };
            let (top, bottom) = meets(1, line, last / columns);
            let one = last / columns == line;
            let (left, right) = if one { meets(2, column, last % columns) } else { meets(2, 0, columns - 1) };
            let band = |x: *const T, pixels: usize, column: usize| Band {
                x: x.wrapping_add(column * g.stride[2] * self.pixel),
                line_start: x,
                pixels,
                line,
                column,
                count,
            };
            if top >= 0 && left >= 0 && bottom <= height as isize && right <= width as isize {
                let start = (top * width as isize + left) * self.pixel as isize;
                return Some(band(image.wrapping_offset(start), width, if one { 0 } else { column }));
            }
            if self.pixel != c {
                return None;
            }
            let pixels = (right - left) as usize;
            if (bottom - top) as usize * pixels * c <= COPIED {
                let to = &mut scratch.copied[..(bottom - top) as usize * pixels * c];
                let pad = scratch.pad[0];
                let low = (-left).clamp(0, pixels as isize) as usize;
                let high = (width as isize - left).clamp(low as isize, pixels as isize) as usize;
                for (y, to) in (top..).zip(to.chunks_exact_mut(pixels * c)) {
                    if y < 0 || y >= height as isize {
                        to.fill(pad);
                        continue;
                    }
                    to[..low * c].fill(pad);
                    to[high * c..].fill(pad);
                    let from = image.wrapping_offset((y * width as isize + left.max(0)) * c as isize);
                    // SAFETY: the caller's promise; pixels `low..high` of the line are those of the image.
                    unsafe {
                        std::ptr::copy_nonoverlapping(from.cast(), to[low * c..].as_mut_ptr(), (high - low) * c);
                    }
                }
                let copied = scratch.copied.as_ptr().cast::<T>();
                return Some(band(copied, pixels, if one { 0 } else { column }));
            }
            if count <= most {
                return None;
            }
            count = (count / 2).max(most);
        }
    }

    /// Fills the table with tiles of the rows of a band; returns how many rows that were.
    #[inline(always)]
    fn rows_of_band<T>(&self, band: &Band<T>, first: usize, most: usize, table: &mut Table<T>) -> usize {
        let (g, run) = (&self.window, self.run());
        let segments = g.kernel[1] * (g.kernel[2] / run);
        let [tap_line, tap] = [g.dilation[1] * band.pixels * self.pixel, g.dilation[2] * self.pixel];
        let [line_step, step] = [g.stride[1] * band.pixels * self.pixel, g.stride[2] * self.pixel];
        let (mut line, mut column) = (band.line, band.column);
        let (mut x, mut line_start) = (band.x, band.line_start);
        let mut done = 0;
        for (row, rows) in heights(band.count, most.min(POINTERS / segments)) {
            if !table.has_room(segments, rows) {
                break;
            }
            let top = line;
            let mut starts = [x; 16];
            for start in &mut starts[..rows] {
                *start = x;
                column += 1;
                x = x.wrapping_add(step);
                if column == g.output[2] {
                    (line, column) = (line + 1, 0);
                    line_start = line_start.wrapping_add(line_step);
                    x = line_start;
                }
            }
            let bottom = if column == 0 { line - 1 } else { line };
            table.push(first + row, rows, run * self.channels);
            for h in 0..g.kernel[1] {
                let meets = |line: usize| (line * g.stride[1] + h * g.dilation[1]) as isize - g.pad[1];
                if self.skip && (meets(bottom) < 0 || meets(top) >= g.input[1] as isize) {
                    continue;
                }
                for w in (0..g.kernel[2]).step_by(run) {
                    let offset = h * tap_line + w * tap;
                    let at = (h * g.kernel[2] + w) * self.channels;
                    table.segment(at, starts[..rows].iter().map(|x| x.wrapping_add(offset)));
                }
            }
            done = row + rows;
        }
        done
    }

    /// Whether rows can be copied at all.
    fn fits(&self, rows: usize) -> bool {
        rows * self.k().next_multiple_of(self.unit) <= COPIED
    }

    /// Copies rows into the scratch, padding and all; `inside` says that there is none.
    ///
    /// # Safety
    /// As [`Geometry::rows`]; the copies fit.
    #[inline(always)]
    unsafe fn copy<T: Copy>(&self, origins: &[Origin<T>], inside: bool, len: usize, scratch: &mut Scratch<T>) {
        let g = &self.window;
        let together = g.dilation[2] == 1 && self.pixel == self.channels;
        let pad = scratch.pad[0];
        let to = &mut scratch.copied[scratch.used..][..origins.len() * len];
        for (to, o) in to.chunks_exact_mut(len).zip(origins) {
            if !together || !inside && !o.inside(g) {
                // SAFETY: the caller's promise.
                unsafe { self.copy_row(o, pad, to) };
                continue;
            }
            // What fills the row up to whole units, of four at most, with elements that are written over.
            match to.last_chunk_mut::<4>() {
                Some(end) => *end = [pad; 4],
                None => to.fill(pad),
            }
            let n = g.kernel[2] * self.channels;
            let mut to = to.as_mut_ptr().cast::<T>();
            for d in 0..g.kernel[0] {
                for h in 0..g.kernel[1] {
                    let line = d * g.dilation[0] * g.input[1] + h * g.dilation[1];
                    // SAFETY: all positions meet the input, and the copy has room for them.
                    unsafe {
                        copy_few(o.x.wrapping_add(line * g.input[2] * self.pixel), to, n);
                        to = to.add(n);
                    }
                }
            }
        }
    }

    /// Copies one row wherever it lies.
    ///
    /// # Safety
    /// As [`Geometry::copy`].
    unsafe fn copy_row<T: Copy>(&self, o: &Origin<T>, pad: MaybeUninit<T>, to: &mut [MaybeUninit<T>]) {
        let g = &self.window;
        let [_, height, width] = g.input;
        let c = self.channels;
        let together = g.dilation[2] == 1 && self.pixel == c;
        let mut at = 0;
        for d in 0..g.kernel[0] {
            for h in 0..g.kernel[1] {
                let [d, h] = [d * g.dilation[0], h * g.dilation[1]];
                let (y, z) = (o.at[0] + d as isize, o.at[1] + h as isize);
                let there = y >= 0 && y < g.input[0] as isize && z >= 0 && z < height as isize;
                let to = &mut to[at..at + g.kernel[2] * c];
                at += to.len();
                // Kernel positions of the row that meet the input: `low..high`.
                let step = g.dilation[2] as isize;
                let clip = |v: isize| v.clamp(0, g.kernel[2] as isize) as usize;
                let low = clip((step - 1 - o.at[2]).max(0) / step);
                let high = clip((width as isize - o.at[2] + step - 1).max(0) / step);
                if !there || low >= high {
                    to.fill(pad);
                    continue;
                }
                to[..low * c].fill(pad);
                to[high * c..].fill(pad);
                let row = o.x.wrapping_add((d * height + h) * width * self.pixel);
                // SAFETY: these positions meet the input, `c` channels each.
                unsafe {
                    if together {
                        let from = row.wrapping_offset(low as isize * c as isize).cast();
                        std::ptr::copy_nonoverlapping(from, to[low * c..].as_mut_ptr(), (high - low) * c);
                    } else {
                        for v in low..high {
                            let from = row.wrapping_add(v * g.dilation[2] * self.pixel);
                            for i in 0..c {
                                to[v * c + i].write(*from.wrapping_add(i));
                            }
                        }
                    }
                }
            }
        }
        to[at..].fill(pad);
    }
}

/// Copies `n` elements, few, without calling for it.
///
/// # Safety
/// They exist on both sides, and do not overlap.
#[inline(always)]
unsafe fn copy_few<T: Copy>(from: *const T, to: *mut T, n: usize) {
    let (from, to, bytes) = (from.cast::<u8>(), to.cast::<u8>(), n * size_of::<T>());
    // SAFETY: the caller's promise; the last word may overlap the one before it.
    unsafe {
        if bytes >= 8 {
            to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned());
            let mut i = 8;
            while i + 8 < bytes {
                to.add(i).cast::<u64>().write_unaligned(from.add(i).cast::<u64>().read_unaligned());
                i += 8;
            }
            let last = bytes - 8;
            to.add(last).cast::<u64>().write_unaligned(from.add(last).cast::<u64>().read_unaligned());
        } else {
            for i in 0..bytes {
                *to.add(i) = *from.add(i);
            }
        }
    }
}

/// Neighbouring rows of one image, with an element at every kernel position.
struct Band<T> {
    /// The first kernel position of the first row.
    x: *const T,
    /// That of the first position of the same line.
    line_start: *const T,
    /// Pixels from line to line.
    pixels: usize,
    /// Where the first row lies in the output.
    line: usize,
    column: usize,
    /// Rows.
    count: usize,
}

/// The first kernel position of an output position, which may lie before the image.
#[derive(Clone, Copy)]
struct Origin<T> {
    at: [isize; 3],
    x: *const T,
}

impl<T> Origin<T> {
    /// Whether the whole window meets the input.
    #[inline(always)]
    fn inside(&self, g: &Window) -> bool {
        (0..3).all(|a| {
            let last = self.at[a] + ((g.kernel[a] - 1) * g.dilation[a]) as isize;
            self.at[a] >= 0 && last < g.input[a] as isize
        })
    }
}

/// An output position, counted along.
#[derive(Clone, Copy)]
struct Position {
    image: usize,
    at: [usize; 3],
}

impl Position {
    fn new(g: &Window, p: usize) -> Position {
        let [depth, height, width] = g.output;
        let at = [p / width / height % depth.max(1), p / width % height.max(1), p % width.max(1)];
        Position { image: p / g.positions().max(1), at }
    }

    #[inline(always)]
    fn origin<T>(&self, geometry: &Geometry, x: *const T) -> Origin<T> {
        let g = &geometry.window;
        let at: [isize; 3] = std::array::from_fn(|a| (self.at[a] * g.stride[a]) as isize - g.pad[a]);
        let row = (self.image * g.input[0]) as isize + at[0];
        let pixel = (row * g.input[1] as isize + at[1]) * g.input[2] as isize + at[2];
        Origin { at, x: x.wrapping_offset(pixel * geometry.pixel as isize) }
    }

    #[inline(always)]
    fn next(&mut self, g: &Window) {
        for a in [2, 1, 0] {
            self.at[a] += 1;
            if self.at[a] < g.output[a] {
                return;
            }
            self.at[a] = 0;
        }
        self.image += 1;
    }
}
