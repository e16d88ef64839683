//! Softmax attention of a tile of queries over the keys of one head, in three steps: scores, softmax, mixture of values.
//!
//! Queries stand in lanes: the scores of a tile are `[L][LANES]`, so that the keys and values are read as they lie, one
//! row at a time, the softmax needs no sum across lanes, and nothing but a tile of queries is ever packed. For fewer
//! queries than fill the lanes well there are the `_one` forms, whose lanes are features.
//!
//! `L` keys, `D` head size of queries and keys, `E` head size of values.
use crate::gemm;

/// Queries of a tile.
pub const LANES: usize = gemm::NR;

/// Fewest queries for which a tile is worth more than one query after the other.
pub const FEWEST: usize = 4;

/// What is added to the scores of a tile.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// Nothing.
    None,
    /// One number a key: `[L]`.
    Keys(&'a [f32]),
    /// One number a score: `[L][LANES]`.
    Cells(&'a [f32]),
}

/// What the softmax of a tile has to know.
#[derive(Clone, Copy, Debug)]
pub struct Softmax<'a> {
    /// `c · tanh(x / c)` is taken first, when positive.
    pub softcap: f32,
    /// Added then; `-inf` hides a key.
    pub bias: Bias<'a>,
    /// First key each query sees, and the one behind its last.
    pub spans: Option<(&'a [u32; LANES], &'a [u32; LANES])>,
    /// Scores of one more key without value.
    pub sinks: Option<&'a [f32; LANES]>,
}

/// The whole formula for one query, in `f64`: `softmax(cap(scale · q · Kᵀ) + bias) · V`, zeros when every key is hidden.
///
/// `k: [L, D]`, `v: [L, E]`, `bias: [L]`.
#[cfg(test)]
pub fn reference(q: &[f32], k: &[f32], v: &[f32], softcap: f32, bias: &[f32], sink: Option<f32>, y: &mut [f32]) {
    let (d, e) = (q.len(), y.len());
    let cap = f64::from(softcap);
    let scores: Vec<f64> = bias
        .iter()
        .enumerate()
        .map(|(j, &b)| {
            let x = (0..d).map(|i| f64::from(q[i]) * f64::from(k[j * d + i])).sum::<f64>();
            let x = if softcap > 0.0 { cap * (x / cap).tanh() } else { x };
            if b == f32::NEG_INFINITY { f64::NEG_INFINITY } else { x + f64::from(b) }
        })
        .collect();
    let sink = sink.map(f64::from);
    let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let sum = scores.iter().copied().chain(sink).map(|x| (x - max).exp()).sum::<f64>();
    for (i, y) in y.iter_mut().enumerate() {
        let mixed: f64 = scores.iter().enumerate().map(|(j, x)| (x - max).exp() * f64::from(v[j * e + i])).sum();
        *y = if max == f64::NEG_INFINITY { 0.0 } else { (mixed / sum) as f32 };
    }
}

/// Scores, soft cap, bias and sink to what to multiply by.
type SoftmaxOne = fn(&mut [f32], f32, Option<&[f32]>, Option<f32>) -> f32;

/// A form of the steps: its name, whether this CPU can run it, and the calls.
pub struct Kernel {
    /// `{arch}-{dtypes}-{variant}`.
    pub name: &'static str,
    /// Whether this CPU has what it needs.
    pub available: fn() -> bool,
    softmax: fn(&Softmax<'_>, &mut [f32]) -> [f32; LANES],
    mix: fn(&Mix<'_>, &mut [f32]),
    scores_one: fn(&[f32], &[f32], usize, &mut [f32]),
    softmax_one: SoftmaxOne,
    mix_one: fn(&[f32], &[f32], usize, f32, &mut [f32]),
}

/// The mixture of values of a tile: `y[r][i] = factors[r] · Σ_j p[j][r] · v[j · v_stride + i]`.
#[derive(Clone, Copy, Debug)]
pub struct Mix<'a> {
    /// `[L][LANES]`.
    pub p: &'a [f32],
    /// Rows of `E` values, `v_stride` apart.
    pub v: &'a [f32],
    /// Distance between rows of `v`.
    pub v_stride: usize,
    /// One a lane.
    pub factors: &'a [f32; LANES],
    /// Lanes that are wanted.
    pub rows: usize,
    /// Values a row.
    pub e: usize,
}

macro_rules! form {
    ($name:literal, $available:expr, $module:ident) => {
        Kernel {
            name: $name,
            available: $available,
            softmax: $module::softmax,
            mix: $module::mix,
            scores_one: $module::scores_one,
            softmax_one: $module::softmax_one,
            mix_one: $module::mix_one,
        }
    };
}

/// Every form, best first.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    form!(
        "x86_64-f32-avx512",
        || std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw"),
        avx512
    ),
    #[cfg(target_arch = "x86_64")]
    form!(
        "x86_64-f32-avx2",
        || std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"),
        avx2
    ),
    form!("any-f32-lanes", || true, any),
];

impl Kernel {
    /// The best form this CPU has.
    pub fn best() -> &'static Kernel {
        KERNELS.iter().find(|k| (k.available)()).unwrap_or(&KERNELS[KERNELS.len() - 1])
    }

    /// Turns the scores `x: [L][LANES]` into `e^(score - max)`, 0 for hidden keys, and gives for each lane what to multiply
    /// by to make them sum to one: 0 when every key is hidden.
    ///
    /// # Panics
    /// When this CPU does not have the form, or the bias does not have the length of the keys.
    pub fn softmax(&self, s: &Softmax<'_>, x: &mut [f32]) -> [f32; LANES] {
        self.check();
        (self.softmax)(s, x)
    }

    /// The mixture; `y: [rows][E]`.
    ///
    /// # Panics
    /// When this CPU does not have the form, or a slice is shorter than its shape says.
    pub fn mix(&self, m: &Mix<'_>, y: &mut [f32]) {
        self.check();
        (self.mix)(m, y);
    }

    /// `x[j] = q · k[j · k_stride ..]` for one query.
    ///
    /// # Panics
    /// As [`Kernel::mix`].
    pub fn scores_one(&self, q: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
        self.check();
        (self.scores_one)(q, k, k_stride, x);
    }

    /// [`Kernel::softmax`] of one query, whose hidden keys have a bias of `-inf`.
    ///
    /// # Panics
    /// As [`Kernel::mix`].
    pub fn softmax_one(&self, x: &mut [f32], softcap: f32, bias: Option<&[f32]>, sink: Option<f32>) -> f32 {
        self.check();
        (self.softmax_one)(x, softcap, bias, sink)
    }

    /// `y[i] = factor · Σ_j p[j] · v[j · v_stride + i]` for one query.
    ///
    /// # Panics
    /// As [`Kernel::mix`].
    pub fn mix_one(&self, p: &[f32], v: &[f32], v_stride: usize, factor: f32, y: &mut [f32]) {
        self.check();
        (self.mix_one)(p, v, v_stride, factor, y);
    }

    fn check(&self) {
        assert!((self.available)(), "{} cannot run on this CPU", self.name);
    }
}

/// Packs queries into the matrix the scores of a tile are computed with: `panel[i][r] = scale · q(r)[i]`, zero in lanes
/// from `rows` on. `panel` has `D · LANES` elements.
///
/// # Panics
/// When a query is shorter than `panel` says.
pub fn pack_queries<'a>(rows: usize, scale: f32, q: impl Fn(usize) -> &'a [f32], panel: &mut [f32]) {
    let d = panel.len() / LANES;
    panel.fill(0.0);
    for r in 0..rows {
        for (i, &x) in q(r)[..d].iter().enumerate() {
            panel[i * LANES + r] = scale * x;
        }
    }
}

/// The scores of a tile: `x[j][r] = panel(r) · k[j · k_stride ..]`, with a panel of [`pack_queries`]: a product whose rows
/// are the keys.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn scores(panel: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
    gemm::gemm(
        &gemm::Gemm {
            m: x.len() / LANES,
            k: panel.len() / LANES,
            n: LANES,
            x: k,
            x_stride: k_stride,
            w: gemm::Packed::F32(panel),
            bias: None,
            accumulate: false,
        },
        x,
    );
}

#[cfg(target_arch = "x86_64")]
macro_rules! compiled {
    ($(#[$feature:meta])* $module:ident $mix:ident) => {
        mod $module {
            use super::{LANES, Mix, Softmax, generic};

            pub(super) fn softmax(s: &Softmax<'_>, x: &mut [f32]) -> [f32; LANES] {
                $(#[$feature])*
                fn f(s: &Softmax<'_>, x: &mut [f32]) -> [f32; LANES] {
                    generic::softmax::<true>(s, x)
                }
                // SAFETY: `Kernel::check` has just seen that this CPU has the features the function is compiled for.
                unsafe { f(s, x) }
            }

            pub(super) fn mix(m: &Mix<'_>, y: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::x86::$mix(m, y) }
            }

            pub(super) fn scores_one(q: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
                $(#[$feature])*
                fn f(q: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
                    generic::scores_one::<true>(q, k, k_stride, x);
                }
                // SAFETY: as above.
                unsafe { f(q, k, k_stride, x) }
            }

            pub(super) fn softmax_one(x: &mut [f32], softcap: f32, bias: Option<&[f32]>, sink: Option<f32>) -> f32 {
                $(#[$feature])*
                fn f(x: &mut [f32], softcap: f32, bias: Option<&[f32]>, sink: Option<f32>) -> f32 {
                    generic::softmax_one::<true>(x, softcap, bias, sink)
                }
                // SAFETY: as above.
                unsafe { f(x, softcap, bias, sink) }
            }

            pub(super) fn mix_one(p: &[f32], v: &[f32], v_stride: usize, factor: f32, y: &mut [f32]) {
                $(#[$feature])*
                fn f(p: &[f32], v: &[f32], v_stride: usize, factor: f32, y: &mut [f32]) {
                    generic::mix_one::<true>(p, v, v_stride, factor, y);
                }
                // SAFETY: as above.
                unsafe { f(p, v, v_stride, factor, y) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(#[target_feature(enable = "avx512f,avx512bw,avx2,fma")] avx512 mix_512);
#[cfg(target_arch = "x86_64")]
compiled!(#[target_feature(enable = "avx2,fma")] avx2 mix_256);

/// The mixture, spelled out: more accumulators than compilers make of loops over lanes.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Mix, generic};

    macro_rules! mixture {
        ($(#[$feature:meta])* $name:ident $tile:ident $rows:literal rows $vectors:literal vectors of $width:literal
         $zero:ident $load:ident $store:ident $set:ident $fma:ident $mul:ident) => {
            $(#[$feature])*
            pub(super) fn $name(m: &Mix<'_>, y: &mut [f32]) {
                let wide = m.e - m.e % $width;
                let keys = m.p.len() / LANES;
                assert!(keys == 0 || m.v.len() >= (keys - 1) * m.v_stride + m.e, "v is shorter than its shape says");
                assert!(m.rows <= LANES && y.len() >= m.rows * m.e, "y is shorter than its shape says");
                for r in (0..m.rows).step_by($rows) {
                    let mut first = 0;
                    while first + $vectors * $width <= wide {
                        // SAFETY: just checked: every key has values `first..first + vectors · width`, every lane `r..r + rows`
                        // exists because `rows` divides `LANES`, and so does every row of `y` below `m.rows`.
                        unsafe { $tile::<$vectors>(m, r, first, y) };
                        first += $vectors * $width;
                    }
                    while first < wide {
                        // SAFETY: as above, for one vector.
                        unsafe { $tile::<1>(m, r, first, y) };
                        first += $width;
                    }
                }
                generic::mix_from::<true, 4, 4>(m, wide, y);
            }

            /// # Safety
            /// Every key has values `first..first + V · width`, and rows `r..min(r + rows, m.rows)` of `y` exist.
            $(#[$feature])*
            unsafe fn $tile<const V: usize>(m: &Mix<'_>, r: usize, first: usize, y: &mut [f32]) {
                // SAFETY: all pointers stay inside what the caller promises; unaligned loads and stores are used throughout.
                unsafe {
                    let mut acc = [[$zero(); V]; $rows];
                    let (p, v) = (m.p.as_ptr().add(r), m.v.as_ptr().add(first));
                    for j in 0..m.p.len() / LANES {
                        let mut value = [$zero(); V];
                        for c in 0..V {
                            value[c] = $load(v.add(j * m.v_stride + c * $width));
                        }
                        for i in 0..$rows {
                            let weight = $set(*p.add(j * LANES + i));
                            for c in 0..V {
                                acc[i][c] = $fma(weight, value[c], acc[i][c]);
                            }
                        }
                    }
                    for i in 0..$rows {
                        if r + i < m.rows {
                            let factor = $set(m.factors[r + i]);
                            for c in 0..V {
                                let to = y.as_mut_ptr().add((r + i) * m.e + first + c * $width);
                                $store(to, $mul(acc[i][c], factor));
                            }
                        }
                    }
                }
            }
        };
    }

    mixture!(#[target_feature(enable = "avx512f,avx512bw,avx2,fma")] mix_512 tile_512 8 rows 2 vectors of 16
        _mm512_setzero_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_set1_ps _mm512_fmadd_ps _mm512_mul_ps);
    mixture!(#[target_feature(enable = "avx2,fma")] mix_256 tile_256 4 rows 2 vectors of 8
        _mm256_setzero_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_set1_ps _mm256_fmadd_ps _mm256_mul_ps);
}

mod any {
    use super::{LANES, Mix, Softmax, generic};

    pub(super) fn softmax(s: &Softmax<'_>, x: &mut [f32]) -> [f32; LANES] {
        generic::softmax::<false>(s, x)
    }

    pub(super) fn mix(m: &Mix<'_>, y: &mut [f32]) {
        generic::mix::<false>(m, y);
    }

    pub(super) fn scores_one(q: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
        generic::scores_one::<false>(q, k, k_stride, x);
    }

    pub(super) fn softmax_one(x: &mut [f32], softcap: f32, bias: Option<&[f32]>, sink: Option<f32>) -> f32 {
        generic::softmax_one::<false>(x, softcap, bias, sink)
    }

    pub(super) fn mix_one(p: &[f32], v: &[f32], v_stride: usize, factor: f32, y: &mut [f32]) {
        generic::mix_one::<false>(p, v, v_stride, factor, y);
    }
}

/// The steps themselves, compiled once for each set of CPU features.
mod generic {
    use super::{Bias, LANES, Mix, Softmax};

    type Lanes = [f32; LANES];

    #[inline(always)]
    fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
        if FMA { a.mul_add(b, c) } else { a * b + c }
    }

    /// `e^x` for `x` of at most 88, within two units in the last place; 0 below -87.3, where the result is no longer a
    /// normal number.
    ///
    /// `2^n · e^r` with `r = x - n · ln 2` of at most half of `ln 2`, where a polynomial of degree 6 is enough.
    #[inline(always)]
    fn exp<const FMA: bool>(x: f32) -> f32 {
        // Adding this leaves the nearest whole number in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let t = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
        let n = t - ROUND;
        let r = mul_add::<FMA>(n, -LN2_LOW, mul_add::<FMA>(n, -LN2_HIGH, x));
        let mut p = 1.0 / 720.0;
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = mul_add::<FMA>(p, r, c);
        }
        let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
        if x < -87.3 { 0.0 } else { p * power }
    }

    #[inline(always)]
    fn hide(x: f32, bias: f32) -> f32 {
        if bias == f32::NEG_INFINITY { bias } else { x + bias }
    }

    #[inline(always)]
    pub(super) fn softmax<const FMA: bool>(s: &Softmax<'_>, x: &mut [f32]) -> Lanes {
        let rows = x.as_chunks_mut::<LANES>().0;
        if s.softcap > 0.0 {
            rows.iter_mut().flatten().for_each(|x| *x = s.softcap * (*x / s.softcap).tanh());
        }
        match s.bias {
            Bias::None => {}
            Bias::Keys(bias) => {
                for (row, &b) in rows.iter_mut().zip(bias) {
                    row.iter_mut().for_each(|x| *x = hide(*x, b));
                }
            }
            Bias::Cells(bias) => {
                for (row, bias) in rows.iter_mut().zip(bias.as_chunks::<LANES>().0) {
                    row.iter_mut().zip(bias).for_each(|(x, &b)| *x = hide(*x, b));
                }
            }
        }
        if let Some((low, high)) = s.spans {
            for (j, row) in rows.iter_mut().enumerate() {
                let j = j as u32;
                for r in 0..LANES {
                    row[r] = if j < low[r] || j >= high[r] { f32::NEG_INFINITY } else { row[r] };
                }
            }
        }
        let mut max = s.sinks.copied().unwrap_or([f32::NEG_INFINITY; LANES]);
        for row in rows.iter() {
            for r in 0..LANES {
                max[r] = if row[r] > max[r] { row[r] } else { max[r] };
            }
        }
        // A lane that sees nothing has no maximum; with 0 in its place everything becomes e^-inf.
        max.iter_mut().for_each(|m| *m = if *m == f32::NEG_INFINITY { 0.0 } else { *m });
        let mut sum = [0f32; LANES];
        if let Some(sinks) = s.sinks {
            for r in 0..LANES {
                sum[r] = exp::<FMA>(sinks[r] - max[r]);
            }
        }
        for row in rows.iter_mut() {
            for r in 0..LANES {
                row[r] = exp::<FMA>(row[r] - max[r]);
                sum[r] += row[r];
            }
        }
        sum.map(|s| if s == 0.0 { 0.0 } else { 1.0 / s })
    }

    #[inline(always)]
    pub(super) fn mix<const FMA: bool>(m: &Mix<'_>, y: &mut [f32]) {
        mix_from::<FMA, 4, 8>(m, 0, y);
    }

    /// The mixture of values `first..`. `ROWS` divides [`LANES`].
    #[inline(always)]
    pub(super) fn mix_from<const FMA: bool, const ROWS: usize, const WIDE: usize>(
        m: &Mix<'_>,
        mut first: usize,
        y: &mut [f32],
    ) {
        let p = m.p.as_chunks::<ROWS>().0;
        while first + WIDE <= m.e {
            for r in (0..m.rows).step_by(ROWS) {
                mix_tile::<FMA, ROWS, WIDE>(m, p, r, first, y);
            }
            first += WIDE;
        }
        while first < m.e {
            for r in (0..m.rows).step_by(ROWS) {
                mix_tile::<FMA, ROWS, 1>(m, p, r, first, y);
            }
            first += 1;
        }
    }

    #[inline(always)]
    fn mix_tile<const FMA: bool, const ROWS: usize, const WIDE: usize>(
        m: &Mix<'_>,
        p: &[[f32; ROWS]],
        r: usize,
        first: usize,
        y: &mut [f32],
    ) {
        let mut acc = [[0f32; WIDE]; ROWS];
        // Of the lanes of a key only those of this tile.
        let p = p[r / ROWS..].iter().step_by(LANES / ROWS);
        // `chunks` gives a last row that may end with its values, short of the stride.
        for (p, v) in p.zip(m.v.chunks(m.v_stride.max(1))) {
            let Some(v) = v.get(first..first + WIDE).and_then(|v| v.first_chunk::<WIDE>()) else { return };
            for i in 0..ROWS {
                for c in 0..WIDE {
                    acc[i][c] = mul_add::<FMA>(p[i], v[c], acc[i][c]);
                }
            }
        }
        for i in 0..ROWS.min(m.rows - r) {
            let out = &mut y[(r + i) * m.e + first..][..WIDE];
            for c in 0..WIDE {
                out[c] = acc[i][c] * m.factors[r + i];
            }
        }
    }

    #[inline(always)]
    pub(super) fn scores_one<const FMA: bool>(q: &[f32], k: &[f32], k_stride: usize, x: &mut [f32]) {
        let d = q.len();
        let (body, tail) = q.as_chunks::<LANES>();
        for (j, x) in x.iter_mut().enumerate() {
            let (k, rest) = k[j * k_stride..][..d].as_chunks::<LANES>();
            let mut acc = [0f32; LANES];
            for (q, k) in body.iter().zip(k) {
                for c in 0..LANES {
                    acc[c] = mul_add::<FMA>(q[c], k[c], acc[c]);
                }
            }
            for c in 0..LANES / 2 {
                acc[c] += acc[c + LANES / 2];
            }
            for c in 0..LANES / 4 {
                acc[c] += acc[c + LANES / 4];
            }
            let mut sum = acc[0] + acc[1] + acc[2] + acc[3];
            for (q, k) in tail.iter().zip(rest) {
                sum = mul_add::<FMA>(*q, *k, sum);
            }
            *x = sum;
        }
    }

    #[inline(always)]
    pub(super) fn softmax_one<const FMA: bool>(
        x: &mut [f32],
        softcap: f32,
        bias: Option<&[f32]>,
        sink: Option<f32>,
    ) -> f32 {
        if softcap > 0.0 {
            x.iter_mut().for_each(|x| *x = softcap * (*x / softcap).tanh());
        }
        if let Some(bias) = bias {
            x.iter_mut().zip(bias).for_each(|(x, &b)| *x = hide(*x, b));
        }
        let (body, tail) = x.as_chunks_mut::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for row in body.iter() {
            for r in 0..LANES {
                lanes[r] = if row[r] > lanes[r] { row[r] } else { lanes[r] };
            }
        }
        let max = lanes.iter().chain(tail.iter()).copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums = [0f32; LANES];
        for row in body.iter_mut() {
            for r in 0..LANES {
                row[r] = exp::<FMA>(row[r] - max);
                sums[r] += row[r];
            }
        }
        let mut sum = sums.iter().sum::<f32>() + sink.map_or(0.0, |s| exp::<FMA>(s - max));
        for x in tail {
            *x = exp::<FMA>(*x - max);
            sum += *x;
        }
        if sum == 0.0 { 0.0 } else { 1.0 / sum }
    }

    #[inline(always)]
    pub(super) fn mix_one<const FMA: bool>(p: &[f32], v: &[f32], v_stride: usize, factor: f32, y: &mut [f32]) {
        const W: usize = 64;
        let e = y.len();
        let mut first = 0;
        while first + W <= e {
            let mut acc = [0f32; W];
            for (j, &p) in p.iter().enumerate() {
                let v: &[f32; W] = v[j * v_stride + first..].first_chunk().unwrap_or(&[0.0; W]);
                for c in 0..W {
                    acc[c] = mul_add::<FMA>(p, v[c], acc[c]);
                }
            }
            for c in 0..W {
                y[first + c] = acc[c] * factor;
            }
            first += W;
        }
        let y = &mut y[first..];
        if y.is_empty() {
            return;
        }
        y.fill(0.0);
        for (j, &p) in p.iter().enumerate() {
            for (y, &v) in y.iter_mut().zip(&v[j * v_stride + first..][..e - first]) {
                *y = mul_add::<FMA>(p, v, *y);
            }
        }
        y.iter_mut().for_each(|y| *y *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nhwc::tests::noise;

    #[test]
    fn every_kernel_agrees_with_the_formula_at_every_tile_edge_and_writes_nothing_else() {
        let mut ran = 0;
        for kernel in KERNELS.iter().filter(|k| (k.available)()) {
            for (rows, l, d, e) in [(16, 40, 64, 64), (5, 17, 3, 5), (1, 1, 1, 1), (7, 33, 20, 29), (16, 2, 16, 128)] {
                for (cap, biased, sunk) in [(0.0, 0, false), (0.7, 1, false), (0.0, 2, true), (0.0, 3, false)] {
                    ran += 1;
                    let (q, k, v) = (noise(rows * d, 1), noise(l * (d + 3), 2), noise(l * (e + 1), 3));
                    let mut bias = noise(l * LANES, 4);
                    bias[0] = f32::NEG_INFINITY;
                    let sinks: [f32; LANES] = noise(LANES, 5).try_into().unwrap();
                    let low: [u32; LANES] = std::array::from_fn(|r| r as u32 / 3);
                    let high: [u32; LANES] = std::array::from_fn(|r| (l as u32).saturating_sub(r as u32 / 2));
                    // Lane 0 of every case but the first sees no key at all when there is but one.
                    let of = |r: usize, j: usize| match biased {
                        0 => 0.0,
                        1 => bias[j],
                        2 => bias[j * LANES + r],
                        _ if (j as u32) < low[r] || j as u32 >= high[r] => f32::NEG_INFINITY,
                        _ => 0.0,
                    };
                    let s = Softmax {
                        softcap: cap,
                        bias: match biased {
                            1 => Bias::Keys(&bias[..l]),
                            2 => Bias::Cells(&bias),
                            _ => Bias::None,
                        },
                        spans: (biased == 3).then_some((&low, &high)),
                        sinks: sunk.then_some(&sinks),
                    };
                    let mut panel = vec![0.0; d * LANES];
                    let mut x = vec![0.0; l * LANES];
                    let mut y = vec![f32::NAN; rows * e + 3];
                    pack_queries(rows, 0.5, |r| &q[r * d..], &mut panel);
                    scores(&panel, &k, d + 3, &mut x);
                    let factors = kernel.softmax(&s, &mut x);
                    kernel.mix(&Mix { p: &x, v: &v, v_stride: e + 1, factors: &factors, rows, e }, &mut y);
                    assert!(y[rows * e..].iter().all(|v| v.is_nan()), "{} wrote past its output", kernel.name);
                    let k_rows: Vec<f32> = (0..l).flat_map(|j| k[j * (d + 3)..][..d].to_vec()).collect();
                    let v_rows: Vec<f32> = (0..l).flat_map(|j| v[j * (e + 1)..][..e].to_vec()).collect();
                    for r in 0..rows {
                        let q: Vec<f32> = q[r * d..][..d].iter().map(|x| x * 0.5).collect();
                        let b: Vec<f32> = (0..l).map(|j| of(r, j)).collect();
                        let sink = sunk.then_some(sinks[r]);
                        let mut expected = vec![0.0; e];
                        reference(&q, &k_rows, &v_rows, cap, &b, sink, &mut expected);
                        let mut one = vec![0.0; e];
                        let mut x = vec![0.0; l];
                        kernel.scores_one(&q, &k, d + 3, &mut x);
                        let factor = kernel.softmax_one(&mut x, cap, Some(&b), sink);
                        kernel.mix_one(&x, &v, e + 1, factor, &mut one);
                        // A score is a sum of d products below one; its error moves every weight by that factor at most,
                        // and the mixture is a sum of l products of weights that sum to one with values below one.
                        let tolerance = 2.0 * (d as f32 + l as f32 + 16.0) * f32::EPSILON;
                        for i in 0..e {
                            for found in [y[r * e + i], one[i]] {
                                let wanted = expected[i];
                                let context = format!("{} {rows}x{l}x{d}x{e} bias {biased}", kernel.name);
                                assert!((found - wanted).abs() <= tolerance, "{context} [{r}][{i}]: {wanted} {found}");
                            }
                        }
                    }
                }
            }
        }
        assert!(ran > 0, "no kernel ran");
    }

    #[test]
    fn scores_that_are_not_numbers_stay_so_and_far_apart_ones_do_not_overflow() {
        for kernel in KERNELS.iter().filter(|k| (k.available)()) {
            let mut x = [f32::NAN, 1.0];
            let factor = kernel.softmax_one(&mut x, 0.0, None, None);
            assert!((x[1] * factor).is_nan(), "{}", kernel.name);
            let mut x = [-3e38, 3e38, 3e38, f32::NEG_INFINITY];
            let factor = kernel.softmax_one(&mut x, 0.0, None, None);
            assert_eq!(x.map(|x| x * factor), [0.0, 0.5, 0.5, 0.0], "{}", kernel.name);
        }
    }
}
