//! Copies between two strided layouts of elements of any size: what transposes, slices, tiles and joins are made of.
//!
//! A [`Layout`] is worked out once, when shapes are known: axes that are one in both layouts are merged, the elements of
//! a short contiguous run become one wider element, and the two axes that are contiguous on either side become a tile.

use crate::isa::Isa;
use crate::transpose::{Element, apart_few, interleave_few};

/// One axis of a copy: its length and what to add, in elements, per step in the source and in the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Number of steps.
    pub len: usize,
    /// Elements of the source per step; may be negative or 0.
    pub from: isize,
    /// Elements of the destination per step.
    pub to: isize,
}

/// Most axes that are left after merging.
const MAX_AXES: usize = 8;

/// Side of the square in which two axes change places: both sides of it stay in the first-level cache.
const TILE: usize = 8;

/// How the innermost axes are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    /// A contiguous run of bytes on both sides.
    Run(usize),
    /// Elements along one axis.
    Row(Axis),
    /// Elements along two axes: the second is the destination's innermost, the first the source's.
    Tile(Axis, Axis),
}

/// A copy whose shapes are settled.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Bytes of an element: 1, 2, 4, 8 or 16, or of a run.
    unit: usize,
    from: usize,
    to: usize,
    outer: [Axis; MAX_AXES],
    rank: usize,
    inner: Inner,
    empty: bool,
}

impl Layout {
    /// A copy of elements of `unit` bytes, beginning with element `from` of the source and `to` of the destination,
    /// over `axes`, outermost first. `None` when there are too many axes that cannot be merged.
    ///
    /// # Panics
    /// When `unit` is none of 1, 2, 4, 8.
    pub fn new(unit: usize, from: usize, to: usize, axes: &[Axis]) -> Option<Layout> {
        assert!(matches!(unit, 1 | 2 | 4 | 8), "elements of {unit} bytes");
        let empty = axes.iter().any(|a| a.len == 0);
        let mut merged = [Axis { len: 1, from: 1, to: 1 }; MAX_AXES + 1];
        let mut rank = 0;
        for &a in axes.iter().filter(|a| a.len != 1) {
            let together =
                |b: &Axis| b.from == a.from.wrapping_mul(a.len as isize) && b.to == a.to.wrapping_mul(a.len as isize);
            match merged[..rank].last_mut() {
                Some(b) if together(b) => *b = Axis { len: b.len * a.len, ..a },
                _ => {
                    if rank == MAX_AXES {
                        return None;
                    }
                    merged[rank] = a;
                    rank += 1;
                }
            }
        }
        let mut l =
            Layout { unit, from, to, outer: [merged[MAX_AXES]; MAX_AXES], rank, inner: Inner::Run(unit), empty };
        l.outer.copy_from_slice(&merged[..MAX_AXES]);
        if rank > 0 && !empty {
            l.settle();
        }
        Some(l)
    }

    fn settle(&mut self) {
        let last = self.outer[self.rank - 1];
        if last.from == 1 && last.to == 1 {
            self.rank -= 1;
            let run = last.len * self.unit;
            let n = last.len as isize;
            let divides = |v: isize| v % n == 0;
            let whole = divides(self.from as isize)
                && divides(self.to as isize)
                && self.outer[..self.rank].iter().all(|a| divides(a.from) && divides(a.to));
            if !(matches!(run, 2 | 4 | 8 | 16) && whole && self.rank > 0) {
                self.inner = Inner::Run(run);
                return;
            }
            self.unit = run;
            self.from /= last.len;
            self.to /= last.len;
            for a in &mut self.outer[..self.rank] {
                a.from /= n;
                a.to /= n;
            }
        }
        // The axis along which the source is nearest to contiguous, if that is another one.
        let row = self.outer[self.rank - 1];
        let column = (0..self.rank - 1)
            .filter(|&i| self.outer[i].from != 0 && self.outer[i].from.abs() < row.from.abs())
            .min_by_key(|&i| self.outer[i].from.abs());
        self.rank -= 1;
        self.inner = match column {
            Some(i) => {
                let column = self.outer[i];
                self.outer.copy_within(i + 1..self.rank, i);
                self.rank -= 1;
                Inner::Tile(column, row)
            }
            None => Inner::Row(row),
        };
    }

    /// Name of the way the copy goes.
    pub fn kernel(&self) -> &'static str {
        match self.inner {
            Inner::Run(_) if self.rank == 0 => "copy",
            Inner::Run(_) => "copy-runs",
            Inner::Row(a) if a.from == 0 => "copy-repeated",
            Inner::Row(_) => "copy-strided",
            Inner::Tile(..) => "copy-tiles",
        }
    }

    /// Copies; bytes of the destination that are in no place of the layout are left as they are.
    ///
    /// # Panics
    /// When a slice is shorter than the layout says.
    pub fn copy(&self, src: &[u8], dst: &mut [u8]) {
        if self.empty {
            return;
        }
        if let Inner::Tile(a, b) = self.inner
            && is_few(a, b)
        {
            // SAFETY: every pattern of bits is an `f32`.
            let (floats, dst_floats) = unsafe { (src.align_to::<f32>(), dst.align_to_mut::<f32>()) };
            match self.unit {
                1 => return self.each(|from, to| few(a, b, &src[from as usize..], &mut dst[to as usize..])),
                4 if floats.0.is_empty() && dst_floats.0.is_empty() => {
                    let (src, dst) = (floats.1, dst_floats.1);
                    return self.each(|from, to| few(a, b, &src[from as usize..], &mut dst[to as usize..]));
                }
                _ => {}
            }
        }
        match (self.inner, self.unit) {
            (Inner::Run(run), unit) => self.runs(unit, run, src, dst),
            (_, 1) => self.units::<1>(src, dst),
            (_, 2) => self.units::<2>(src, dst),
            (_, 4) => self.units::<4>(src, dst),
            (_, 8) => self.units::<8>(src, dst),
            (_, 16) => self.units::<16>(src, dst),
            (_, unit) => unreachable!("a unit of {unit} bytes is never made"),
        }
    }

    fn runs(&self, unit: usize, run: usize, src: &[u8], dst: &mut [u8]) {
        self.each(|from, to| {
            let (from, to) = (from as usize * unit, to as usize * unit);
            dst[to..to + run].copy_from_slice(&src[from..from + run]);
        });
    }

    fn units<const N: usize>(&self, src: &[u8], dst: &mut [u8]) {
        let (src, dst) = (src.as_chunks::<N>().0, dst.as_chunks_mut::<N>().0);
        match self.inner {
            Inner::Row(a) => self.each(|from, to| row(a, &src[from as usize..], from, src, &mut dst[to as usize..])),
            Inner::Tile(a, b) if a.from == 1 && b.to == 1 && b.from > 0 && a.to > 0 => {
                self.each(|from, to| transpose(a, b, &src[from as usize..], &mut dst[to as usize..]));
            }
            Inner::Tile(a, b) => self.each(|from, to| {
                for i in 0..a.len as isize {
                    let (from, to) = (from + i * a.from, to + i * a.to);
                    row(b, &src[from as usize..], from, src, &mut dst[to as usize..]);
                }
            }),
            Inner::Run(_) => {}
        }
    }

    /// Calls `f` with the places of every step of the outer axes.
    #[inline(always)]
    fn each(&self, mut f: impl FnMut(isize, isize)) {
        let outer = &self.outer[..self.rank];
        let mut at = [0usize; MAX_AXES];
        let (mut from, mut to) = (self.from as isize, self.to as isize);
        let Some((last, rest)) = outer.split_last() else { return f(from, to) };
        'rows: loop {
            for i in 0..last.len as isize {
                f(from + i * last.from, to + i * last.to);
            }
            for (a, at) in rest.iter().zip(&mut at).rev() {
                *at += 1;
                from += a.from;
                to += a.to;
                if *at < a.len {
                    continue 'rows;
                }
                from -= a.from * a.len as isize;
                to -= a.to * a.len as isize;
                *at = 0;
            }
            return;
        }
    }
}

/// One axis: `here` begins at element `from` of `src`.
#[inline(always)]
fn row<T: Copy>(a: Axis, here: &[T], from: isize, src: &[T], dst: &mut [T]) {
    if a.to != 1 {
        for i in 0..a.len as isize {
            dst[(i * a.to) as usize] = src[(from + i * a.from) as usize];
        }
        return;
    }
    let dst = &mut dst[..a.len];
    match a.from {
        0 => dst.fill(here[0]),
        1.. => dst.iter_mut().zip(here.iter().step_by(a.from as usize)).for_each(|(d, &s)| *d = s),
        _ => dst.iter_mut().enumerate().for_each(|(i, d)| *d = src[(from + i as isize * a.from) as usize]),
    }
}

/// Two axes changing places: the source is contiguous along `a`, the destination along `b`.
fn transpose<T: Copy>(a: Axis, b: Axis, src: &[T], dst: &mut [T]) {
    let (from, to) = (b.from as usize, a.to as usize);
    let (wide, high) = (a.len - a.len % TILE, b.len - b.len % TILE);
    for j in (0..high).step_by(TILE) {
        for i in (0..wide).step_by(TILE) {
            let rows: [[T; TILE]; TILE] = std::array::from_fn(|r| {
                let at = (j + r) * from + i;
                *src[at..at + TILE].first_chunk().expect("as long as it was cut")
            });
            for c in 0..TILE {
                let at = (i + c) * to + j;
                dst[at..at + TILE].copy_from_slice(&std::array::from_fn::<T, TILE, _>(|r| rows[r][c]));
            }
        }
    }
    // What the tiles leave: a strip on the right of full height, and one below.
    for i in 0..a.len {
        let first = if i < wide { high } else { 0 };
        let d = &mut dst[i * to..i * to + b.len];
        for (j, d) in d.iter_mut().enumerate().skip(first) {
            *d = src[j * from + i];
        }
    }
}

/// Whether two axes change places of which one is short and lies without gaps: the colours of an image.
fn is_few(a: Axis, b: Axis) -> bool {
    let short = |n: usize| (2..=4).contains(&n);
    let forward = a.from == 1 && b.to == 1 && b.from > 0 && a.to > 0;
    forward && (short(b.len) && a.to == b.len as isize || short(a.len) && b.from == a.len as isize)
}

/// Two axes changing places, as [`is_few`] says.
fn few<T: Element>(a: Axis, b: Axis, src: &[T], dst: &mut [T]) {
    let isa = Isa::best();
    if a.to == b.len as isize && b.len <= 4 {
        let row = |r: usize| &src[r * b.from as usize..][..a.len];
        return interleave_few(isa, b.len, row, &mut dst[..a.len * b.len]);
    }
    let mut rows = dst.chunks_mut(a.to as usize).map(|row| &mut row[..b.len]);
    apart_few(isa, &src[..a.len * b.len], a.len, |_| rows.next().unwrap_or_default());
}

/// A form of the copy: element bytes, first elements, axes, source, destination.
pub type Form = fn(usize, usize, usize, &[Axis], &[u8], &mut [u8]);

/// The formula: one element after another.
pub fn reference(unit: usize, from: usize, to: usize, axes: &[Axis], src: &[u8], dst: &mut [u8]) {
    let n: usize = axes.iter().map(|a| a.len).product();
    for flat in 0..n {
        let (mut rest, mut from, mut to) = (flat, from as isize, to as isize);
        for a in axes.iter().rev() {
            let at = (rest % a.len) as isize;
            rest /= a.len;
            from += at * a.from;
            to += at * a.to;
        }
        let (from, to) = (from as usize * unit, to as usize * unit);
        dst[to..to + unit].copy_from_slice(&src[from..from + unit]);
    }
}

/// Every form of the copy.
pub const KERNELS: &[(&str, Form)] = &[("layout", |unit, from, to, axes, src, dst| {
    Layout::new(unit, from, to, axes).expect("few axes").copy(src, dst);
})];

#[cfg(test)]
mod tests {
    use super::*;

    /// Permuted, reversed, repeated and stepped copies of `shape` into a destination with a guard on both sides.
    fn check(shape: &[usize], perm: &[usize], factor: &[isize]) {
        let mut own = vec![1isize; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            own[i] = own[i + 1] * shape[i + 1] as isize;
        }
        let mut from = 0;
        let mut axes: Vec<Axis> = Vec::new();
        for &p in perm {
            let f = factor[p];
            let len = if f == 0 { 3 } else { shape[p].div_ceil(f.unsigned_abs()) };
            if f < 0 {
                from += (len.max(1) - 1) * (own[p] * -f) as usize;
            }
            axes.push(Axis { len, from: own[p] * f, to: 0 });
        }
        let mut to = 1;
        for a in axes.iter_mut().rev() {
            a.to = to;
            to *= a.len as isize;
        }
        let (n, m) = (shape.iter().product::<usize>(), to as usize);
        for unit in [1, 2, 4, 8] {
            let src: Vec<u8> = (0..n * unit).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut want = vec![0xa5; (m + 2) * unit];
            reference(unit, from, 1, &axes, &src, &mut want);
            for (name, copy) in KERNELS {
                let mut got = vec![0xa5; (m + 2) * unit];
                copy(unit, from, 1, &axes, &src, &mut got);
                assert_eq!(got, want, "{name}: {shape:?} {perm:?} {factor:?}, {unit} bytes");
            }
        }
    }

    #[test]
    fn every_order_of_axes_is_copied_as_the_formula_says() {
        for shape in [
            [2, 3, 4, 5],
            [1, 9, 17, 3],
            [3, 8, 16, 1],
            [2, 7, 1, 8],
            [1, 1, 33, 19],
            [2, 2, 2, 2],
            [0, 2, 3, 4],
            [2, 3, 1, 70],
            [3, 35, 2, 2],
            [1, 4, 9, 9],
        ] {
            for p in [[0, 1, 2, 3], [0, 2, 1, 3], [0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [3, 2, 1, 0], [1, 0, 3, 2]]
            {
                check(&shape, &p, &[1, 1, 1, 1]);
            }
        }
    }

    #[test]
    fn steps_backward_repeated_and_skipping_are_copied_as_the_formula_says() {
        for shape in [[3, 5, 8], [2, 9, 10], [1, 16, 17]] {
            for p in [[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]] {
                for f in [
                    [1, 1, -1],
                    [-1, 1, 1],
                    [1, 2, 1],
                    [1, 1, 3],
                    [0, 1, 1],
                    [1, 0, 1],
                    [1, 1, 0],
                    [-2, 3, -1],
                    [0, 1, -1],
                ] {
                    check(&shape, &p, &f);
                }
            }
        }
    }

    #[test]
    fn the_usual_transposes_go_by_tiles_and_by_runs() {
        let axis = |len, from, to| Axis { len, from, to };
        let name = |axes: &[Axis]| Layout::new(4, 0, 0, axes).unwrap().kernel();
        assert_eq!(name(&[axis(8, 64, 64), axis(64, 1, 1)]), "copy");
        assert_eq!(name(&[axis(8, 64, 640), axis(10, 512, 64), axis(64, 1, 1)]), "copy-runs");
        assert_eq!(name(&[axis(16, 1, 20), axis(20, 16, 1)]), "copy-tiles");
        assert_eq!(name(&[axis(16, 1, 20), axis(20, 0, 1)]), "copy-repeated");
    }
}
