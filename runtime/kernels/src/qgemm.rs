//! Matrix product of 8-bit integers in `i32`: `c = a · b`, exact modulo 2³².
//!
//! Dimension letters: `M` rows of `a`, `K` reduction, `N` columns of `b`.
//! `a` is `u8`; `i8` with the top bit flipped is 128 more. `b` is `i8`, packed into panels of [`NR`] columns, four
//! steps of `K` side by side: `panel[p][k/4][j][k%4] = b[k][p·NR + j]`, zero outside the matrix. Zero points are taken into
//! account after the product, from the sums of rows and columns ([`Terms`]).

use std::mem::MaybeUninit;

use crate::epilogue::Epilogue;
use crate::qbins::{self, Bins};
use crate::qtile::{Dot, Finish, Job, To, block};
use crate::threads::Pool;
use crate::tile::{Table, heights};

/// Columns in a panel.
pub const NR: usize = 16;
/// Bytes of four steps of `K` in a panel.
const STEP: usize = 4 * NR;

/// Bytes a packed `[k, n]` matrix takes.
pub const fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(NR) * k.div_ceil(4) * STEP
}

/// Packs `b` (`b(k, j)` gives row `k`, column `j`) into panels, and adds up its columns. `out` has [`packed_len`]`(n, k)`
/// bytes, `sums` `n` entries.
///
/// # Panics
/// When a slice is too short.
pub fn pack(n: usize, k: usize, b: impl Fn(usize, usize) -> i8, out: &mut [i8], sums: &mut [i32]) {
    let steps = k.div_ceil(4);
    sums[..n].fill(0);
    for p in 0..n.div_ceil(NR) {
        for s in 0..steps {
            let group = &mut out[(p * steps + s) * STEP..][..STEP];
            for j in 0..NR {
                for q in 0..4 {
                    let (kk, col) = (4 * s + q, p * NR + j);
                    let v = if kk < k && col < n { b(kk, col) } else { 0 };
                    group[4 * j + q] = v;
                    if col < n {
                        sums[col] += i32::from(v);
                    }
                }
            }
        }
    }
}

/// A packed right side.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Panels of [`pack`].
    Panels(&'a [i8]),
    /// The same matrix arranged by [`qbins::pack`].
    Bins(Bins<'a>),
}

impl Right<'_> {
    pub(crate) fn is_of(&self, n: usize, k: usize) -> bool {
        match self {
            Right::Panels(b) => b.len() >= packed_len(n, k),
            Right::Bins(b) => b.is_of(n, k),
        }
    }

    /// Element `(k, j)` of a matrix of `steps` groups of four steps that begins at `start`.
    pub(crate) fn at(&self, start: usize, steps: usize, k: usize, j: usize) -> i32 {
        match self {
            Right::Panels(b) => i32::from(b[start + (j / NR * steps + k / 4) * STEP + j % NR * 4 + k % 4]),
            Right::Bins(b) => b.at(k, j),
        }
    }

    /// Rows of a tile of `columns` columns.
    pub(crate) fn rows(&self, dot: Dot, columns: usize) -> usize {
        match self {
            Right::Panels(_) => dot.rows(columns),
            Right::Bins(_) => qbins::ROWS,
        }
    }
}

/// One problem: `c[m][j] = Σ_k a[m·a_stride + k] · b[k][j]`.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Rows.
    pub m: usize,
    /// Reduction length.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Rows of `K` bytes, `a_stride` apart.
    pub a: &'a [u8],
    /// Distance between rows of `a`, at least `k`.
    pub a_stride: usize,
    /// The packed matrix.
    pub b: Right<'a>,
}

/// A form of the product.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// `{arch}-u8i8-{variant}`.
    pub name: &'static str,
    pub(crate) dot: Dot,
}

impl Kernel {
    /// Every form for this architecture, best first.
    pub fn all() -> impl Iterator<Item = Kernel> {
        Dot::ALL.into_iter().filter_map(|dot| Some(Kernel { name: dot.name()?, dot }))
    }

    /// Whether this CPU has what it needs.
    pub fn available(&self) -> bool {
        self.dot.available()
    }
}

/// The formula.
pub fn reference(g: &Problem<'_>, c: &mut [i32]) {
    let steps = g.k.div_ceil(4);
    for m in 0..g.m {
        for j in 0..g.n {
            let mut sum = 0i32;
            for k in 0..g.k {
                let a = g.a[m * g.a_stride + k];
                sum = sum.wrapping_add(i32::from(a) * g.b.at(0, steps, k, j));
            }
            c[m * g.n + j] = sum;
        }
    }
}

/// An integer and a factor a column: a sum becomes `(sum + offset) · scale`.
///
/// For `a` with zero point `z` and scale `s`, and weights with scales `t`, the offset is the bias in units of `s · t` less
/// `z` times the sum of the column, the scale `s · t`, or that over the scale of the codes that result.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// `N` integers.
    pub offset: &'a [i32],
    /// `N` factors.
    pub scale: &'a [f32],
}

impl Columns<'_> {
    pub(crate) fn check(&self, n: usize) {
        assert!(self.offset.len() >= n && self.scale.len() >= n, "there are fewer offsets or scales than columns");
    }
}

/// How scaled sums become codes: rounded half to even, plus a zero point, within a range; then a table; then a sum with a residual.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// Zero point and range; an activation that is a clip is in the range.
    pub codes: crate::quantize::Codes,
    /// What each code becomes: any activation between two quantised tensors.
    pub table: Option<&'a [u8; 256]>,
    /// A residual.
    pub add: Option<Added<'a>>,
}

impl Requant<'_> {
    pub(crate) fn check(&self, results: usize) {
        let c = self.codes;
        assert!(c.low <= c.high && (0..=255).contains(&c.low) && c.high <= 255, "codes are not of eight bits");
        assert!(self.add.is_none_or(|a| a.residual.len() >= results), "the residual is shorter than y");
    }
}

/// A sum of codes, as [`crate::quantize::of_u8::add`] has it.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// Codes of the shape of the result.
    pub residual: &'a [u8],
    /// `left` belongs to the codes made here, `right` to the residual.
    pub sum: crate::quantize::Sum,
}

/// The product as codes, on all threads of `pool`. Equal results whatever their number.
///
/// # Panics
/// When a slice is shorter than its shape says: a planner's mistake, checked there.
pub fn product_codes(pool: &Pool, g: &Problem<'_>, columns: &Columns<'_>, r: &Requant<'_>, y: &mut [u8]) {
    codes_on(Dot::best(), pool, g, columns, r, y);
}

/// The product as floats, `activation((sum + offset) · scale + bias + residual)`, on all threads of `pool`.
///
/// # Panics
/// As [`product_codes`].
pub fn product_floats(
    pool: &Pool,
    g: &Problem<'_>,
    columns: &Columns<'_>,
    bias: Option<&[f32]>,
    e: &Epilogue<'_>,
    y: &mut [f32],
) {
    floats_on(Dot::best(), pool, g, columns, bias, e, y);
}

/// The sums themselves, plus `offset: [N]`, on all threads of `pool`.
///
/// # Panics
/// As [`product_codes`].
pub fn product_sums(pool: &Pool, g: &Problem<'_>, offset: &[i32], y: &mut [i32]) {
    sums_on(Dot::best(), pool, g, offset, y);
}

fn sums_on(dot: Dot, pool: &Pool, g: &Problem<'_>, offset: &[i32], y: &mut [i32]) {
    assert!(y.len() >= g.m * g.n, "y is shorter than its shape says");
    assert!(offset.len() >= g.n, "there are fewer offsets than columns");
    let out = crate::gemm::Out(y.as_mut_ptr());
    let columns = Columns { offset, scale: &[] };
    shared(dot, pool, g, &columns, &|| To::Sums { y: out.start() });
}

fn codes_on(dot: Dot, pool: &Pool, g: &Problem<'_>, columns: &Columns<'_>, r: &Requant<'_>, y: &mut [u8]) {
    assert!(y.len() >= g.m * g.n, "y is shorter than its shape says");
    r.check(g.m * g.n);
    let out = crate::gemm::Out(y.as_mut_ptr());
    columns.check(g.n);
    shared(dot, pool, g, columns, &|| To::Codes { y: out.start(), requant: r, shift: 0 });
}

fn floats_on(
    dot: Dot,
    pool: &Pool,
    g: &Problem<'_>,
    columns: &Columns<'_>,
    bias: Option<&[f32]>,
    e: &Epilogue<'_>,
    y: &mut [f32],
) {
    assert!(y.len() >= g.m * g.n, "y is shorter than its shape says");
    assert!(bias.is_none_or(|b| b.len() >= g.n), "the bias is shorter than a row of y");
    assert!(e.residual.is_none_or(|r| r.len() >= g.m * g.n), "the residual is shorter than y");
    let out = crate::gemm::Out(y.as_mut_ptr());
    columns.check(g.n);
    shared(dot, pool, g, columns, &|| To::Floats {
        y: out.start(),
        bias: bias.map_or(std::ptr::null(), |b| b.as_ptr()),
        residual: e.residual.map_or(std::ptr::null(), |r| r.as_ptr()),
        epilogue: e,
    });
}

/// Callers have seen the lengths of the columns and the results.
pub(crate) fn shared<'a>(
    dot: Dot,
    pool: &Pool,
    g: &Problem<'_>,
    columns: &Columns<'_>,
    to: &(dyn Fn() -> To<'a> + Sync),
) {
    assert!(g.a_stride >= g.k || g.m < 2, "rows of a overlap");
    assert!(g.m == 0 || g.a.len() >= (g.m - 1) * g.a_stride + g.k, "a is shorter than its shape says");
    assert!(g.b.is_of(g.n, g.k), "b is not of its shape");
    let threads = if g.m * g.n * g.k < WORTH_SHARING { 1 } else { pool.threads() };
    let shares = crate::gemm::Shares::new(g.m, g.n.div_ceil(NR), threads);
    pool.run(shares.count(), &|i| {
        let (rows, panels) = shares.part(i);
        let finish = Finish { offset: columns.offset.as_ptr(), scale: columns.scale.as_ptr(), stride: g.n, to: to() };
        let job = Job { b: g.b, start: 0, steps: g.k.div_ceil(4), n: g.n, finish };
        let mut memory = MaybeUninit::<Table<u8>>::uninit();
        // SAFETY: an empty table is made where it lies; the rest of it may be uninitialised.
        let table = unsafe {
            Table::start(memory.as_mut_ptr());
            memory.assume_init_mut()
        };
        let dot = dot.suited(rows.len(), g.k);
        let height = g.b.rows(dot, panels.len() * NR);
        let most = (dot.reach() / g.k.max(1)).clamp(4 * height, 64 * height);
        let mut first = rows.start;
        while first < rows.end {
            let count = most.min(rows.end - first);
            table.clear();
            for (row, height) in heights(count, height) {
                let a = g.a.as_ptr().wrapping_add((first + row) * g.a_stride);
                table.push(first + row, height, g.k);
                table.segment(0, (0..height).map(|r| a.wrapping_add(r * g.a_stride)));
            }
            // SAFETY: the lengths were seen above, callers have seen the results' and that the CPU has the instructions; no
            // other call has these rows and columns.
            unsafe { block(dot, &job, table, panels.clone()) };
            first += count;
        }
    });
}

/// Multiplications below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 17;

/// What zero points and biases add to a product: `c[r][j] + row[r] + col[j] + left[r] · right[j]`.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// A term a row, or none.
    pub row: &'a [i32],
    /// A term a column, or none.
    pub col: &'a [i32],
    /// A factor a row, or none.
    pub left: &'a [i32],
    /// A factor a column, where there are factors a row.
    pub right: &'a [i32],
}

/// One scale for all of a row, or one a column.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// `M` scales.
    Rows(&'a [f32]),
    /// `N` scales.
    Columns(&'a [f32]),
}

crate::dispatched! {
    /// Adds the terms to `c: [M, n]` in place, wrapping.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says.
    pub fn add_terms(n: usize, terms: &Terms<'_>, c: &mut [i32]) = add_terms_any;

    /// `y = (c + terms) · scale + bias`, in `f32`; `bias` has `n` entries or none.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says.
    pub fn to_floats(n: usize, terms: &Terms<'_>, scale: Scale<'_>, bias: &[f32], c: &mut [i32], y: &mut [f32]) = to_floats_any;

    /// `y = round((c + terms) · scale)`, half to even, plus `zero`, within `low..=high`, as the low byte of each code.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says.
    pub fn requantise(n: usize, terms: &Terms<'_>, scale: Scale<'_>, codes: crate::quantize::Codes, c: &mut [i32], y: &mut [u8]) = requantise_any;
}

#[inline(always)]
fn add_row(n: usize, r: usize, terms: &Terms<'_>, c: &mut [i32]) {
    if let Some(&add) = terms.row.get(r) {
        c.iter_mut().for_each(|c| *c = c.wrapping_add(add));
    }
    match (terms.left.get(r), terms.col.is_empty()) {
        (Some(&left), false) => {
            for ((c, right), add) in c.iter_mut().zip(&terms.right[..n]).zip(&terms.col[..n]) {
                *c = c.wrapping_add(left.wrapping_mul(*right)).wrapping_add(*add);
            }
        }
        (Some(&left), true) => {
            c.iter_mut().zip(&terms.right[..n]).for_each(|(c, right)| *c = c.wrapping_add(left.wrapping_mul(*right)));
        }
        (None, false) => c.iter_mut().zip(&terms.col[..n]).for_each(|(c, add)| *c = c.wrapping_add(*add)),
        (None, true) => {}
    }
}

#[inline(always)]
fn add_terms_any(n: usize, terms: &Terms<'_>, c: &mut [i32]) {
    for (r, c) in c.chunks_exact_mut(n.max(1)).enumerate() {
        add_row(n, r, terms, c);
    }
}

#[inline(always)]
fn to_floats_any(n: usize, terms: &Terms<'_>, scale: Scale<'_>, bias: &[f32], c: &mut [i32], y: &mut [f32]) {
    for (r, (c, y)) in c.chunks_exact_mut(n.max(1)).zip(y.chunks_exact_mut(n.max(1))).enumerate() {
        add_row(n, r, terms, c);
        match scale {
            Scale::Rows(s) => y.iter_mut().zip(&*c).for_each(|(y, &c)| *y = c as f32 * s[r]),
            Scale::Columns(s) => {
                y.iter_mut().zip(&*c).zip(&s[..n]).for_each(|((y, &c), s)| *y = c as f32 * s);
            }
        }
        if !bias.is_empty() {
            y.iter_mut().zip(&bias[..n]).for_each(|(y, b)| *y += b);
        }
    }
}

#[inline(always)]
fn requantise_any(
    n: usize,
    terms: &Terms<'_>,
    scale: Scale<'_>,
    codes: crate::quantize::Codes,
    c: &mut [i32],
    y: &mut [u8],
) {
    for (r, (c, y)) in c.chunks_exact_mut(n.max(1)).zip(y.chunks_exact_mut(n.max(1))).enumerate() {
        add_row(n, r, terms, c);
        match scale {
            Scale::Rows(s) => {
                let s = s[r];
                y.iter_mut().zip(&*c).for_each(|(y, &c)| *y = codes.of(c as f32 * s) as u8);
            }
            Scale::Columns(s) => {
                y.iter_mut().zip(&*c).zip(&s[..n]).for_each(|((y, &c), s)| *y = codes.of(c as f32 * s) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (s >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn a_fused_product_is_the_product_and_then_the_rest() {
        let mut ran = 0;
        for dot in Dot::ALL.into_iter().filter(|d| d.available()) {
            for (m, k, n) in
                [(1, 1, 1), (3, 9, 15), (6, 16, 64), (7, 17, 33), (13, 64, 80), (2, 0, 3), (1, 300, 200), (130, 70, 10)]
                    .into_iter()
                    // As tiles have them: even parts of K, parts with a rest, rows that do not end with a word.
                    .chain([(35, 96, 40), (49, 68, 33), (47, 132, 17), (40, 189, 70), (16, 512, 32), (9, 16, 50)])
            {
                let (mut a, w) = (bytes(m * (k + 3), 7), bytes(k * n, 11));
                a.iter_mut().step_by(2).for_each(|v| *v = 255);
                let (mut b, mut offset) = (vec![0i8; packed_len(n, k)], vec![0i32; n]);
                pack(n, k, |kk, j| w[kk * n + j] as i8, &mut b, &mut offset);
                for j in 0..n {
                    assert_eq!(offset[j], (0..k).map(|kk| i32::from(w[kk * n + j] as i8)).sum::<i32>());
                }
                let scale: Vec<f32> = (0..n).map(|j| 0.001 + j as f32 * 1e-4).collect();
                let bins = qbins::tests::bins(n, k, &b);
                let panels = Problem { m, k, n, a: &a, a_stride: k + 3, b: Right::Panels(&b) };
                let columns = Columns { offset: &offset, scale: &scale };
                let mut sums = vec![0; m * n];
                reference(&panels, &mut sums);
                let arranged = Problem { b: Right::Bins(Bins::new(n, k, &bins)), ..panels };
                let mut same = vec![0; m * n];
                reference(&arranged, &mut same);
                assert_eq!(same, sums);
                let scaled = |i: usize| (sums[i] + offset[i % n]) as f32 * scale[i % n];
                let codes = crate::quantize::Codes { zero: 11, low: 0, high: 255 };
                let requant = Requant { codes, table: None, add: None };
                let (bias, add): (Vec<f32>, Vec<f32>) = (vec![0.25; n], (0..m * n).map(|i| i as f32 * 0.01).collect());
                for (threads, g) in [(1, panels), (3, panels), (1, arranged), (3, arranged)] {
                    let pool = Pool::new(threads);
                    let mut found = vec![9; m * n + 20];
                    codes_on(dot, &pool, &g, &columns, &requant, &mut found);
                    for i in 0..m * n {
                        assert_eq!(i32::from(found[i]), codes.reference(scaled(i)), "{dot:?} {m}x{k}x{n}");
                    }
                    assert!(found[m * n..].iter().all(|&v| v == 9), "{dot:?} wrote past its output");
                    let e = Epilogue { residual: Some(&add), ..Epilogue::default() };
                    let mut found = vec![f32::NAN; m * n + 20];
                    floats_on(dot, &pool, &g, &columns, Some(&bias), &e, &mut found);
                    for i in 0..m * n {
                        assert_eq!(found[i], scaled(i) + bias[i % n] + add[i], "{dot:?} {m}x{k}x{n}");
                    }
                    assert!(found[m * n..].iter().all(|v| v.is_nan()), "{dot:?} wrote past its output");
                    let mut found = vec![i32::MIN; m * n + 20];
                    sums_on(dot, &pool, &g, &offset, &mut found);
                    for i in 0..m * n {
                        assert_eq!(found[i], sums[i] + offset[i % n], "{dot:?} {m}x{k}x{n}");
                    }
                    assert!(found[m * n..].iter().all(|&v| v == i32::MIN), "{dot:?} wrote past its output");
                    ran += 1;
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }

    #[test]
    fn terms_and_scales_are_applied_by_row_and_by_column() {
        let n = 19;
        let c: Vec<i32> = (0..2 * n as i32).map(|v| v * 37 - 300).collect();
        let (col, right): (Vec<i32>, Vec<i32>) = (0..n as i32).map(|j| (j - 4, 3 - j)).unzip();
        let terms = Terms { row: &[5, -7], col: &col, left: &[2, 3], right: &right };
        let expected: Vec<i32> =
            (0..2 * n).map(|i| c[i] + terms.row[i / n] + col[i % n] + terms.left[i / n] * right[i % n]).collect();
        let mut found = c.clone();
        add_terms(n, &terms, &mut found);
        assert_eq!(found, expected);
        let scales: Vec<f32> = (0..n).map(|j| 0.01 * (j + 1) as f32).collect();
        let bias = vec![0.5; n];
        let mut y = vec![0.0; 2 * n];
        to_floats(n, &terms, Scale::Columns(&scales), &bias, &mut c.clone(), &mut y);
        for i in 0..2 * n {
            assert_eq!(y[i], expected[i] as f32 * scales[i % n] + 0.5);
        }
        let codes = crate::quantize::Codes { zero: 3, low: 0, high: 255 };
        let mut q = vec![0; 2 * n];
        requantise(n, &terms, Scale::Rows(&[0.1, 0.3]), codes, &mut c.clone(), &mut q);
        for i in 0..2 * n {
            let v = (expected[i] as f32 * [0.1, 0.3][i / n]).round_ties_even() as i32 + 3;
            assert_eq!(i32::from(q[i]), v.clamp(0, 255));
        }
    }
}
