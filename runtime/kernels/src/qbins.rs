//! Constant weights arranged for `vpmaddubsw`, whose sums of 16 bits then never saturate: exact products of `u8` by `i8` at
//! half the multiplications that widening to 16 bits needs.
//!
//! The instruction multiplies four steps of `K` of a row by those of eight columns and adds two neighbouring products in 16
//! bits. That is exact as long as the positive weights of two neighbours sum to no more than 128, and the negative ones
//! too: `255 · 128 < 2¹⁵`. A group of four steps where some column has more is two entries whose weights sum to it. And where two
//! entries keep within the bound together, their 16-bit sums are added before they are widened: such pairs come first.
//! What a matrix gains depends on its weights: [`pack`] counts, and refuses those that would gain nothing.
//!
//! Beside [`crate::qgemm`], whose panels any instruction set multiplies, this is a second form of the same matrix, for CPUs that
//! have AVX2 and no `vpdpbusd`. Layout: for each panel of [`NR`] columns, and once more for the end, the first of its entries
//! and how many of them are in pairs (`u32` each, little end first); then the entries, 66 bytes each: which group of four
//! steps it multiplies (`u16`), and its weights as a group of a panel has them.
//!
//! Dimension letters as in [`crate::qgemm`].

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::isa::{Isa, on_isa};
use crate::qgemm::{self, NR};
use crate::qtile::{COLUMNS, Dot, Finish, Sums};
use crate::tile::{Table, Tile};

/// Weights of one sign that two neighbouring steps may have.
const MOST: i32 = 128;
/// Bytes of four steps of `K` in a panel.
const STEP: usize = 4 * NR;
/// Bytes of an entry.
pub(crate) const ENTRY: usize = 2 + STEP;
/// Most groups of four steps.
const STEPS: usize = 1024;
/// Bytes of a panel's line in the table before the entries.
const LINE: usize = 8;
/// Entries that are tried as the second of a pair.
const TRIES: usize = 32;

/// Most bytes that [`pack`] writes.
pub const fn most_len(n: usize, k: usize) -> usize {
    let panels = n.div_ceil(NR);
    (panels + 1) * LINE + panels * 2 * k.div_ceil(4) * ENTRY
}

/// Whether this CPU multiplies this form faster than panels.
pub fn preferred() -> bool {
    Dot::best() == Dot::Avx2
}

/// Arranges `panels`, a `[k, n]` matrix packed by [`qgemm::pack`], and says how many bytes of `out` that took; `None` when it
/// would be no faster, or `K` is too long.
///
/// # Panics
/// When `panels` is shorter than `qgemm::packed_len(n, k)` or `out` than [`most_len`]`(n, k)`.
pub fn pack(n: usize, k: usize, panels: &[i8], out: &mut [i8]) -> Option<usize> {
    // What the first panel is like decides whether the work is begun.
    let (groups, _) = panels[..(k.div_ceil(4) * STEP).min(panels.len())].as_chunks::<STEP>();
    let two = groups.iter().filter(|g| heaviest(&neighbours(g)) > MOST as u8).count();
    if 7 * 20 * (groups.len() + two) > 11 * 19 * groups.len() {
        return None;
    }
    arranged(n, k, panels, out).filter(|a| a.faster).map(|a| a.bytes)
}

/// What became of a matrix.
struct Arranged {
    bytes: usize,
    faster: bool,
}

/// As [`pack`], whether it is faster or not.
fn arranged(n: usize, k: usize, panels: &[i8], out: &mut [i8]) -> Option<Arranged> {
    let (count, steps) = (n.div_ceil(NR), k.div_ceil(4));
    if steps > STEPS || n == 0 {
        return None;
    }
    let (groups, _) = panels[..qgemm::packed_len(n, k)].as_chunks::<STEP>();
    let (table, entries) = out[..most_len(n, k)].split_at_mut((count + 1) * LINE);
    let (lines, _) = table.as_chunks_mut::<LINE>();
    let (entries, _) = entries.as_chunks_mut::<ENTRY>();
    let (mut first, mut paired) = (0, 0);
    for (p, line) in lines.iter_mut().enumerate() {
        let mut arranged = (0, 0);
        if p < count {
            arrange_on(Isa::best(), &groups[p * steps..][..steps], &mut entries[first..], &mut arranged);
        }
        *line = written(first as u32, arranged.1 as u32);
        first += arranged.0;
        paired += 2 * arranged.1;
    }
    // Measured on Zen 3: an entry in a pair takes .7 of the time of a group of a widened panel, one alone .8.
    let (gained, takes) = (10 * count * steps, 7 * paired + 8 * (first - paired));
    Some(Arranged { bytes: (count + 1) * LINE + first * ENTRY, faster: gained * 19 > takes * 20 })
}

fn written(a: u32, b: u32) -> [i8; LINE] {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    std::array::from_fn(|i| (if i < 4 { a[i] } else { b[i - 4] }) as i8)
}

on_isa! { fn arrange_on = arrange; (groups: &[[i8; STEP]], out: &mut [[i8; ENTRY]], made: &mut (usize, usize)) }

/// Writes the entries of a panel, pairs first, and says how many there are, and how many pairs.
#[inline(always)]
fn arrange(groups: &[[i8; STEP]], out: &mut [[i8; ENTRY]], made: &mut (usize, usize)) {
    // Entry 2g is what group g multiplies first, 2g + 1 what is left over; of each its sums of neighbours, by sign, and the
    // greatest of them.
    let mut sums = [[0u8; STEP]; 2 * STEPS];
    let mut weight = [0u8; 2 * STEPS];
    let mut by_weight = [0u16; 2 * STEPS];
    let mut next = [0u16; 2 * STEPS + 1];
    let mut starts = [0u16; MOST as usize + 2];
    for (g, group) in groups.iter().enumerate() {
        let mut two = [neighbours(group), [0; STEP]];
        if heaviest(&two[0]) > MOST as u8 {
            two = [neighbours(&share(group, 0)), neighbours(&share(group, 1))];
        }
        for (part, s) in two.into_iter().enumerate() {
            let e = 2 * g + part;
            (sums[e], weight[e]) = (s, heaviest(&s));
            starts[MOST as usize - usize::from(weight[e]) + 1] += 1;
        }
    }
    // The heaviest first; those of weight 0 multiply nothing and are left out.
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let count = usize::from(starts[MOST as usize]);
    for (e, w) in weight[..2 * groups.len()].iter().enumerate() {
        let at = &mut starts[MOST as usize - usize::from(*w)];
        by_weight[usize::from(*at)] = e as u16;
        *at += 1;
    }
    let order = &by_weight[..count];
    // `next[i]` is the one after `i - 1` that is not taken yet.
    for (i, n) in next[..=count].iter_mut().enumerate() {
        *n = i as u16;
    }
    let (mut pairs, mut alone) = (0, 0);
    let mut emit = |at: usize, e: u16| {
        let (index, weights) = ((e / 2).to_le_bytes(), share(&groups[usize::from(e / 2)], usize::from(e % 2)));
        out[at][0] = index[0] as i8;
        out[at][1] = index[1] as i8;
        out[at][2..].copy_from_slice(&weights);
    };
    let mut lonely = [0u16; 2 * STEPS];
    while usize::from(next[0]) < count {
        let i = usize::from(next[0]);
        next[0] = next[i + 1];
        let room = sums[usize::from(order[i])].map(|s| MOST as u8 - s);
        let (mut before, mut tried, mut found) = (0, 0, false);
        while usize::from(next[before]) < count && tried < TRIES {
            let j = usize::from(next[before]);
            let with = &sums[usize::from(order[j])];
            if !with.iter().zip(&room).fold(false, |over, (s, r)| over | (s > r)) {
                next[before] = next[j + 1];
                emit(2 * pairs, order[i]);
                emit(2 * pairs + 1, order[j]);
                (pairs, found) = (pairs + 1, true);
                break;
            }
            (before, tried) = (j + 1, tried + 1);
        }
        if !found {
            lonely[alone] = order[i];
            alone += 1;
        }
    }
    for (i, &e) in lonely[..alone].iter().enumerate() {
        emit(2 * pairs + i, e);
    }
    *made = (2 * pairs + alone, pairs);
}

#[inline(always)]
fn heaviest(sums: &[u8; STEP]) -> u8 {
    sums.iter().fold(0, |a, &b| a.max(b))
}

/// What of a group's weights its first (`part` 0) or second entry has.
#[inline(always)]
fn share(group: &[i8; STEP], part: usize) -> [i8; STEP] {
    let mut out = *group;
    for two in out.as_chunks_mut::<2>().0 {
        let [a, b] = two.map(i32::from);
        let over = if a > 0 && b > 0 {
            (a + b - MOST).max(0)
        } else if a < 0 && b < 0 {
            (a + b + MOST).min(0)
        } else {
            0
        };
        *two = if part == 0 { [(a - over) as i8, b as i8] } else { [over as i8, 0] };
    }
    out
}

/// The sums of two neighbours' positive weights, and those of their negative ones without the sign.
#[inline(always)]
fn neighbours(w: &[i8; STEP]) -> [u8; STEP] {
    let mut out = [0; STEP];
    for i in 0..STEP / 2 {
        let [a, b] = [w[2 * i], w[2 * i + 1]].map(i16::from);
        // At most 254 and 256, which is taken for 255: both are too many.
        out[i] = (a.max(0) + b.max(0)) as u8;
        out[STEP / 2 + i] = (-(a.min(0) + b.min(0))).min(255) as u8;
    }
    out
}

/// A matrix that [`pack`] arranged.
#[derive(Clone, Copy, Debug)]
pub struct Bins<'a> {
    n: usize,
    k: usize,
    bytes: &'a [i8],
}

/// The entries of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Entries, those in pairs first.
    pub(crate) entries: &'a [[i8; ENTRY]],
    /// Pairs.
    pub(crate) pairs: usize,
}

impl<'a> Bins<'a> {
    /// The `[k, n]` matrix in what [`pack`] wrote.
    ///
    /// # Panics
    /// When the table of the bytes is not of that form. Entries are looked at when they are used.
    pub fn new(n: usize, k: usize, bytes: &'a [i8]) -> Bins<'a> {
        let bins = Bins { n, k, bytes };
        let table = (n.div_ceil(NR) + 1) * LINE;
        assert!(bins.bytes.len() >= table, "the table of entries is not whole");
        let mut end = 0;
        for p in 0..=n.div_ceil(NR) {
            let (first, pairs) = bins.line(p);
            assert!(first >= end && (first + 2 * pairs) * ENTRY <= bins.bytes.len() - table, "entries lie elsewhere");
            end = first + 2 * pairs;
        }
        bins
    }

    pub(crate) fn is_of(&self, n: usize, k: usize) -> bool {
        (self.n, self.k) == (n, k)
    }

    /// # Panics
    /// When an entry multiplies steps that a row does not have.
    pub(crate) fn panel(&self, p: usize) -> Part<'a> {
        let (first, pairs) = self.line(p);
        let entries = &self.entries()[first..self.line(p + 1).0];
        // Here, where they are about to be read anyway: looked at when the matrix is made, whoever keeps it would have to be trusted.
        let furthest = entries.iter().map(index).fold(0, usize::max);
        assert!(entries.is_empty() || furthest < self.k.div_ceil(4), "an entry multiplies steps that are not there");
        Part { entries, pairs }
    }

    fn entries(&self) -> &'a [[i8; ENTRY]] {
        self.bytes[(self.n.div_ceil(NR) + 1) * LINE..].as_chunks().0
    }

    fn line(&self, p: usize) -> (usize, usize) {
        let at: [u8; LINE] = std::array::from_fn(|i| self.bytes[p * LINE + i] as u8);
        let [a, b, c, d, e, f, g, h] = at;
        (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize)
    }

    /// Element `(k, j)`, from the entries that multiply it.
    pub fn at(&self, k: usize, j: usize) -> i32 {
        let of = self.panel(j / NR).entries.iter().filter(|e| index(e) == k / 4);
        of.map(|e| i32::from(e[2 + j % NR * 4 + k % 4])).sum()
    }
}

/// Which group of four steps an entry multiplies.
pub(crate) fn index(e: &[i8; ENTRY]) -> usize {
    usize::from(u16::from_le_bytes([e[0] as u8, e[1] as u8]))
}

/// Rows of a tile.
pub(crate) const ROWS: usize = 4;
/// Bytes of copied rows: several of the longest, and many more of usual ones.
const COPIED: usize = 64 * 1024;

/// The columns of some panels of the rows of all tiles.
///
/// # Safety
/// As [`crate::qtile::block`], but that of the weights nothing is asked: entries are looked at here; tiles have at most [`ROWS`] rows.
pub(crate) unsafe fn block(bins: Bins<'_>, finish: &Finish<'_>, dot: Dot, table: &Table<u8>, panels: Range<usize>) {
    let steps = bins.k.div_ceil(4);
    let mut sums = MaybeUninit::<Sums>::uninit();
    let out = sums.as_mut_ptr().cast::<i32>();
    let mut memory = MaybeUninit::<[u8; COPIED]>::uninit();
    let copied = memory.as_mut_ptr().cast::<u8>();
    let mut tiles = table.tiles();
    while !tiles.is_empty() {
        // As many tiles as there is memory for.
        let most = COPIED / (4 * steps.max(1));
        let mut rows = 0;
        let fitting = |t: &&Tile| {
            rows += t.rows;
            rows <= most
        };
        let (now, later) = tiles.split_at(tiles.iter().take_while(fitting).count());
        // SAFETY: the caller's promise; a row has at most 4096 bytes, so that a tile of four fits, and copies are as long as the
        // panels; the buffer of sums has room for the rows.
        unsafe {
            // Rows that lie in one piece are read where they are.
            let direct = |t: &Tile| t.segments == 1 && t.len == 4 * steps;
            let mut to = copied;
            for t in now.iter().filter(|t| !direct(t)) {
                copy(t, table, steps, to);
                to = to.add(t.rows * steps * 4);
            }
            for p in panels.clone() {
                let part = bins.panel(p);
                let width = NR.min(bins.n - p * NR);
                let mut from = copied.cast_const();
                for t in now {
                    let mut rows = [from; ROWS];
                    if direct(t) {
                        let (pointers, _) = table.of(t);
                        rows.iter_mut().enumerate().for_each(|(r, row)| *row = *pointers.add(r.min(t.rows - 1)));
                    } else {
                        let last = t.rows - 1;
                        rows.iter_mut().enumerate().for_each(|(r, row)| *row = from.add(r.min(last) * steps * 4));
                        from = from.add(t.rows * steps * 4);
                    }
                    match dot {
                        #[cfg(target_arch = "x86_64")]
                        Dot::Avx2 | Dot::Vnni256 | Dot::Vnni512 | Dot::Amx => x86::tile(t.rows, &rows, part, out),
                        _ => plain(t.rows, &rows, part, out),
                    }
                    crate::qtile::finish::on(dot.isa(), finish, out, t.rows, t.row, p * NR, width);
                }
            }
        }
        tiles = later;
    }
}

/// The rows of a tile in one piece each, `4 · steps` bytes apart; 0 where there is no segment.
///
/// # Safety
/// As [`block`]; `to` has room for the rows.
unsafe fn copy(t: &Tile, table: &Table<u8>, steps: usize, to: *mut u8) {
    let (pointers, positions) = table.of(t);
    // SAFETY: the caller's promise.
    unsafe {
        if t.segments * t.len != 4 * steps {
            to.write_bytes(0, t.rows * 4 * steps);
        }
        for s in 0..t.segments {
            let first = *positions.add(s) as usize;
            for r in 0..t.rows {
                (*pointers.add(s * t.rows + r)).copy_to_nonoverlapping(to.add(r * 4 * steps + first), t.len);
            }
        }
    }
}

/// # Safety
/// Each row is as long as the entries say.
unsafe fn plain(rows: usize, a: &[*const u8; ROWS], part: Part<'_>, out: *mut i32) {
    for (r, row) in a.iter().enumerate().take(rows) {
        let mut acc = [0i32; NR];
        for e in part.entries {
            for (i, w) in e[2..].iter().enumerate() {
                // SAFETY: the caller's promise.
                let x = unsafe { *row.add(4 * index(e) + i % 4) };
                acc[i / 4] += i32::from(x) * i32::from(*w);
            }
        }
        // SAFETY: the buffer has the row.
        unsafe { std::ptr::copy_nonoverlapping(acc.as_ptr(), out.add(r * COLUMNS), NR) };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// As [`plain`], and the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn tile(rows: usize, a: &[*const u8; ROWS], part: Part<'_>, out: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => rows_of::<1>(a, part, out),
                2 => rows_of::<2>(a, part, out),
                3 => rows_of::<3>(a, part, out),
                _ => rows_of::<4>(a, part, out),
            }
        }
    }

    /// # Safety
    /// As [`tile`].
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rows_of<const R: usize>(a: &[*const u8; ROWS], part: Part<'_>, out: *mut i32) {
        let ones = _mm256_set1_epi16(1);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        let (pairs, alone) = part.entries.split_at(2 * part.pairs);
        // SAFETY: the caller's promise; loads and stores need no alignment.
        unsafe {
            macro_rules! load {
                ($e:expr) => {{
                    let w = $e.as_ptr().add(2);
                    [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())]
                }};
            }
            macro_rules! four {
                ($r:expr, $g:expr) => {
                    _mm256_set1_epi32(a[$r].add(4 * $g).cast::<i32>().read_unaligned())
                };
            }
            for [e, f] in pairs.as_chunks::<2>().0 {
                let (g, h) = (index(e), index(f));
                let (w, v) = (load!(e), load!(f));
                for r in 0..R {
                    let (x, y) = (four!(r, g), four!(r, h));
                    for i in 0..2 {
                        let sum = _mm256_add_epi16(_mm256_maddubs_epi16(x, w[i]), _mm256_maddubs_epi16(y, v[i]));
                        acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(sum, ones));
                    }
                }
            }
            for e in alone {
                let (g, w) = (index(e), load!(e));
                for r in 0..R {
                    let x = four!(r, g);
                    for i in 0..2 {
                        let sum = _mm256_madd_epi16(_mm256_maddubs_epi16(x, w[i]), ones);
                        acc[r][i] = _mm256_add_epi32(acc[r][i], sum);
                    }
                }
            }
            for r in 0..R {
                for i in 0..2 {
                    _mm256_storeu_si256(out.add(r * COLUMNS + 8 * i).cast(), acc[r][i]);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The matrix of `panels`, worth it or not.
    pub(crate) fn bins(n: usize, k: usize, panels: &[i8]) -> Vec<i8> {
        let mut out = vec![0; most_len(n, k)];
        let a = arranged(n, k, panels, &mut out).expect("K is short");
        out.truncate(a.bytes);
        out
    }

    /// Weights of a normal distribution whose greatest is 127 deviations over `width`.
    fn weights(n: usize, k: usize, width: f32) -> (Vec<i8>, Vec<i8>) {
        let mut s = 7u32;
        let mut uniform = move || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (s >> 8) as f32 / (1 << 24) as f32
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
        let w: Vec<i8> = (0..n * k).map(|_| (normal() * width).clamp(-128.0, 127.0) as i8).collect();
        let (mut panels, mut sums) = (vec![0; qgemm::packed_len(n, k)], vec![0; n]);
        qgemm::pack(n, k, |kk, j| w[kk * n + j], &mut panels, &mut sums);
        (w, panels)
    }

    #[test]
    fn entries_sum_to_the_matrix_and_no_sum_of_16_bits_can_overflow() {
        for (n, k, width) in
            [(1, 1, 30.0), (16, 4, 127.0), (33, 70, 25.0), (40, 200, 60.0), (5, 30, 500.0), (16, 9, 0.0)]
        {
            let (w, panels) = weights(n, k, width);
            let bytes = bins(n, k, &panels);
            let b = Bins::new(n, k, &bytes);
            for kk in 0..k {
                for j in 0..n {
                    assert_eq!(b.at(kk, j), i32::from(w[kk * n + j]), "{n}x{k}: {kk} {j}");
                }
            }
            for p in 0..n.div_ceil(NR) {
                let part = b.panel(p);
                let extremes = |e: &[i8; ENTRY]| {
                    let mut out = [0i32; STEP];
                    for (i, w) in e[2..].iter().enumerate() {
                        out[i / 2 * 2 + usize::from(*w < 0)] += i32::from(*w) * 255;
                    }
                    out
                };
                let fits = |v: i32| i16::try_from(v).is_ok();
                assert!(part.entries.iter().all(|e| extremes(e).into_iter().all(fits)));
                for [e, f] in part.entries[..2 * part.pairs].as_chunks::<2>().0 {
                    assert!(extremes(e).iter().zip(extremes(f)).all(|(a, b)| fits(a + b)));
                }
            }
        }
    }

    #[test]
    fn a_matrix_of_small_weights_is_taken_and_one_of_large_weights_is_not() {
        for (width, taken) in [(25.0, true), (110.0, false)] {
            let (n, k) = (64, 256);
            let (_, panels) = weights(n, k, width);
            let mut out = vec![0; most_len(n, k)];
            assert_eq!(pack(n, k, &panels, &mut out).is_some(), taken, "{width}");
        }
    }

    #[test]
    #[should_panic(expected = "steps that are not there")]
    fn an_entry_beyond_the_rows_is_refused() {
        let (_, panels) = weights(16, 40, 25.0);
        let mut bytes = bins(16, 40, &panels);
        bytes[2 * LINE] = 10;
        Bins::new(16, 40, &bytes).panel(0);
    }

    #[test]
    #[should_panic(expected = "entries lie elsewhere")]
    fn entries_beyond_the_end_are_refused() {
        let (_, panels) = weights(16, 40, 25.0);
        let bytes = bins(16, 40, &panels);
        Bins::new(16, 40, &bytes[..bytes.len() - ENTRY]);
    }
}
