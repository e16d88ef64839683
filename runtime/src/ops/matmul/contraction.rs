//! `y[b, i, j] = Σ_k a[b, i, k] · b[b, k, j]` whatever the strides of the operands: the reference, and the kernel for
//! frozen and for live right operands.
//!
//! Dimension letters: `M` rows, `K` reduction, `N` columns.
use std::collections::HashMap;

use hone_kernels::threads::Pool;
use hone_kernels::transpose::transpose;
use hone_kernels::{gemm, product};

use super::lying::LyingMatrix;
use super::{Lie, PackedMatrix};
use crate::ops::shape::elements;
use crate::ops::{OpError, for_each_strided};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor, TensorError};

/// Elements as the numbers products are summed in: floats in `f64`, integers modulo 2⁶⁴ and so modulo their width.
pub(super) enum Numbers {
    Real(Vec<f64>),
    Whole(Vec<i64>),
}

impl Numbers {
    /// The elements of `t`.
    pub(super) fn of(t: &Tensor) -> Numbers {
        if t.dtype().is_float() {
            Numbers::Real(t.data().to_f64())
        } else {
            // The low 64 bits are what counts.
            Numbers::Whole(t.data().to_i128().into_iter().map(|v| v as i64).collect())
        }
    }

    /// The numbers as elements of `dtype`.
    pub(super) fn into_data(self, dtype: DType) -> Data {
        match self {
            Numbers::Real(v) => Data::from_f64(dtype, &v),
            Numbers::Whole(v) => Data::from_i128(dtype, &v.into_iter().map(i128::from).collect::<Vec<_>>()),
        }
    }

    /// The numbers as reals.
    pub(super) fn into_real(self) -> Vec<f64> {
        match self {
            Numbers::Real(v) => v,
            Numbers::Whole(v) => v.into_iter().map(|v| v as f64).collect(),
        }
    }
}

/// One side's offsets: of element `(i, j)` of batch `b`, the sum of the three entries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contraction {
    /// Offsets of each batch in `a` and in `b`.
    pub(super) batches: Vec<(usize, usize)>,
    /// Offsets of the `M` rows in `a`.
    pub(super) a_rows: Vec<usize>,
    /// Offsets of the `K` steps in `a`.
    pub(super) a_steps: Vec<usize>,
    /// Offsets of the `K` steps in `b`.
    pub(super) b_steps: Vec<usize>,
    /// Offsets of the `N` columns in `b`.
    pub(super) b_columns: Vec<usize>,
}

/// Offsets over `shape` with `strides`, in row-major order.
///
/// # Errors
/// [`OpError::Tensor`] when there are too many.
pub(super) fn offsets(shape: &[usize], strides: &[usize]) -> Result<Vec<usize>, OpError> {
    let mut out = Vec::new();
    let too_large = |_| OpError::Tensor(TensorError::TooLarge { shape: shape.to_vec() });
    out.try_reserve_exact(elements(shape)?).map_err(too_large)?;
    for_each_strided(0, strides, shape, |o| out.push(o));
    Ok(out)
}

impl Contraction {
    pub(super) fn m(&self) -> usize {
        self.a_rows.len()
    }

    pub(super) fn k(&self) -> usize {
        self.a_steps.len()
    }

    pub(super) fn n(&self) -> usize {
        self.b_columns.len()
    }

    /// The formula, batches outermost.
    pub(super) fn forward(&self, a: &Numbers, b: &Numbers) -> Result<Numbers, OpError> {
        elements(&[self.batches.len(), self.m(), self.n()])?;
        Ok(match (a, b) {
            (Numbers::Real(a), Numbers::Real(b)) => Numbers::Real(self.sums(a, b, |s, x, w| s + x * w)),
            (Numbers::Whole(a), Numbers::Whole(b)) => {
                Numbers::Whole(self.sums(a, b, |s, x: i64, w| s.wrapping_add(x.wrapping_mul(w))))
            }
            _ => return Err(OpError::unsupported("a product of floats and integers")),
        })
    }

    fn sums<T: Copy + Default>(&self, a: &[T], b: &[T], f: impl Fn(T, T, T) -> T) -> Vec<T> {
        let n = self.n();
        let mut y = vec![T::default(); self.batches.len() * self.m() * n];
        if n == 0 {
            return y;
        }
        let mut rows = y.chunks_exact_mut(n);
        for &(oa, ob) in &self.batches {
            for (&row, y) in self.a_rows.iter().zip(&mut rows) {
                for (&sa, &sb) in self.a_steps.iter().zip(&self.b_steps) {
                    let (x, w) = (a[oa + row + sa], ob + sb);
                    for (y, &c) in y.iter_mut().zip(&self.b_columns) {
                        *y = f(*y, x, b[w + c]);
                    }
                }
            }
        }
        y
    }

    /// Whether the rows of `a` are runs of `K` neighbours, some constant distance of at least `K` apart; that distance.
    fn row_stride(&self) -> Option<usize> {
        let k = self.k();
        // Rows of nothing are anywhere.
        if k == 0 {
            return Some(0);
        }
        let stride = if self.m() > 1 { self.a_rows[1] } else { k };
        (stepped(&self.a_steps, 1) && stepped(&self.a_rows, stride) && stride >= k).then_some(stride)
    }

    /// The same with all batches as rows of one, where all have the same `b` and `a` is one block.
    fn joined(mut self) -> Contraction {
        let (m, k) = (self.m(), self.k());
        let one_b = self.batches.iter().all(|b| b.1 == self.batches[0].1);
        let one_block = self.batches.iter().enumerate().all(|(i, b)| b.0 == i * m * k);
        if self.batches.len() > 1 && one_b && one_block && stepped(&self.a_steps, 1) && stepped(&self.a_rows, k) {
            self.a_rows = (0..m * self.batches.len()).map(|i| i * k).collect();
            self.batches.truncate(1);
        }
        self
    }
}

fn stepped(offsets: &[usize], by: usize) -> bool {
    offsets.iter().enumerate().all(|(i, &o)| o == i * by)
}

/// What follows the product: `activation(alpha · y + beta · c)`.
#[derive(Clone, Default)]
pub(super) struct Epilogue {
    pub(super) alpha: Option<f32>,
    /// The operand to add, by its position among the node's inputs.
    pub(super) c: Option<Addend>,
    pub(super) activation: Option<Activation>,
}

/// `beta · c[i, j]`, broadcast.
#[derive(Clone)]
pub(super) struct Addend {
    pub(super) input: usize,
    pub(super) beta: f32,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

/// A function of one number.
pub(super) type Activation = std::sync::Arc<dyn Fn(f32) -> f32 + Send + Sync>;

/// Multiplications in all from which batches are shared out among threads.
const WORTH_SHARING: usize = 1 << 16;

/// How the left operand is had.
#[derive(Clone, Copy)]
enum Left {
    /// As it lies: rows one after another, that far apart.
    Rows { stride: usize },
    /// `[K, M]` in each product, transposed at each run: the activations of a gradient by weights.
    Transposed,
    /// By its offsets, gathered at each run.
    Strided,
}

/// How the right operand is had.
enum Right {
    /// Packed when the plan was made; for each batch, which.
    Frozen(Vec<PackedMatrix>, Vec<usize>),
    /// A constant that stays as it lies, packed at each run.
    Lying(LyingMatrix),
    /// `[K, N]` as it lies, few rows.
    Plain,
    /// `[K, N]` of few columns, and the left operand `[K, M]` as it lies: the transposed product is computed, and turned.
    Swapped,
    /// `[N, K]` as it lies.
    Transposed,
    /// Packed at each run, one matrix for each of those offsets in `b`; for each batch, which.
    Packed(Pack, Vec<usize>, Vec<usize>),
}

#[derive(Clone, Copy)]
enum Pack {
    Plain,
    Transposed,
    Strided,
}

/// Lowers a contraction of the `f32` inputs 0 and 1. `row_axis` is the axis of a two-dimensional weight its columns run
/// along, if it has one. `scatter` gives each result its place when results are not in the order of the contraction.
pub(super) fn lower(
    l: &Lowering<'_>,
    c: Contraction,
    row_axis: Option<usize>,
    epilogue: Epilogue,
    scatter: Option<Vec<usize>>,
) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) {
        return Ok(None);
    }
    let c = c.joined();
    let (m, k, n) = (c.m(), c.k(), c.n());
    let mut reads = vec![0];
    let mut weight_bytes = 0;
    let mut bias = None;
    let mut epilogue = epilogue;
    let plain = stepped(&c.b_columns, 1) && stepped(&c.b_steps, n);
    let transposed = stepped(&c.b_steps, 1) && stepped(&c.b_columns, k);
    let lying = match c.batches.len() {
        1 if plain || transposed => LyingMatrix::of(l, m, (k, n), !plain, row_axis),
        _ => None,
    };
    let right = match lying {
        Some(lying) => Some(Right::Lying(lying)),
        None => frozen(l, &c, row_axis)?.map(|(matrices, which)| Right::Frozen(matrices, which)),
    };
    let right = match right {
        Some(right) => {
            if let Right::Frozen(matrices, _) = &right {
                weight_bytes = matrices.iter().map(PackedMatrix::bytes).sum();
            }
            if epilogue.alpha.is_none()
                && let Some(a) = &epilogue.c
                && let Some(t) = l.constant(a.input)
                && (a.row_stride, a.column_stride) == (0, 1)
            {
                bias = Some(t.as_f32()?.iter().map(|v| v * a.beta).collect::<Vec<f32>>());
                epilogue.c = None;
            }
            right
        }
        None => {
            reads.push(1);
            let turned = stepped(&c.a_rows, 1) && stepped(&c.a_steps, m);
            match (m < product::PACK_ROWS, plain, transposed) {
                _ if plain && m <= product::PLAIN_ROWS && (turned || c.row_stride().is_some()) => Right::Plain,
                _ if plain && n <= product::PLAIN_ROWS && turned && k > 0 && c.batches.len() == 1 => Right::Swapped,
                (true, _, true) => Right::Transposed,
                (_, true, _) => Right::Packed(Pack::Plain, Vec::new(), Vec::new()),
                (_, _, true) => Right::Packed(Pack::Transposed, Vec::new(), Vec::new()),
                _ => Right::Packed(Pack::Strided, Vec::new(), Vec::new()),
            }
        }
    };
    let x_stride = c.row_stride().filter(|&s| !matches!(right, Right::Transposed) || s == k);
    let distinct = match &right {
        Right::Packed(..) => distinct(&c),
        _ => (Vec::new(), Vec::new()),
    };
    let room = Room {
        gathered: match &right {
            Right::Plain | Right::Swapped => 0,
            _ if x_stride.is_some() => 0,
            _ => elements(&[c.batches.len(), m, k])?,
        },
        packed: match &right {
            Right::Lying(w) => w.room(k, n),
            Right::Swapped => elements(&[n, m])?,
            _ => elements(&[distinct.0.len(), n.next_multiple_of(gemm::NR), k])?,
        },
        results: if scatter.is_some() { elements(&[c.batches.len(), m, n])? } else { 0 },
    };
    let right = match right {
        Right::Packed(pack, ..) => Right::Packed(pack, distinct.0, distinct.1),
        other => other,
    };
    let floats = room.gathered.saturating_add(room.packed).saturating_add(room.results);
    if let Some(a) = &epilogue.c {
        reads.push(a.input);
    }
    let held = if let Right::Lying(w) = &right { Some(w.constant().clone()) } else { None };
    let left = match x_stride {
        Some(stride) => Left::Rows { stride },
        None if stepped(&c.a_rows, 1) && stepped(&c.a_steps, m) => Left::Transposed,
        None => Left::Strided,
    };
    // Offsets that nothing is looked up by are longer than they look: one for each row and step of every product.
    let mut c = c;
    if !matches!(left, Left::Strided) {
        (c.a_rows, c.a_steps) = (Vec::new(), Vec::new());
    }
    if !matches!(right, Right::Packed(Pack::Strided, ..)) {
        (c.b_steps, c.b_columns) = (Vec::new(), Vec::new());
    }
    let sizes = (m, k, n);
    let kernel = Product { c, sizes, left, right, bias, epilogue, scatter, room, addend_read: reads.len() - 1 };
    Ok(Some(Lowered::new(kernel, reads).with_scratch(floats).with_weights(weight_bytes).holding(held)))
}

/// Matrices, and which of them each batch takes.
type Packed = (Vec<PackedMatrix>, Vec<usize>);

/// The right operand packed, when it is a weight: one matrix for each offset batches have in it.
fn frozen(l: &Lowering<'_>, c: &Contraction, row_axis: Option<usize>) -> Result<Option<Packed>, OpError> {
    let Some(w) = l.weight(1) else { return Ok(None) };
    let (k, n) = (c.k(), c.n());
    let (starts, which) = distinct(c);
    let all: usize = w.shape().iter().product();
    if starts.len().saturating_mul(k).saturating_mul(n) > all {
        return Ok(None);
    }
    let mut matrices = Vec::with_capacity(starts.len());
    for s in starts {
        let (columns, steps) = (c.b_columns.clone(), c.b_steps.clone());
        // Places a constant step apart are named as other products of that weight name them.
        let step = |of: &[usize]| {
            let step = of.get(1).copied().unwrap_or(0);
            stepped(of, step).then_some(step)
        };
        let numbers = match (step(&steps), step(&columns)) {
            (Some(row), Some(column)) => vec![s, row, column],
            _ => [&[s][..], &steps, &columns].concat(),
        };
        let lie = Lie { at: move |kk: usize, j: usize| s + columns[j] + steps[kk], numbers: &numbers };
        // An axis number no weight has: scales by column are then refused.
        let Some(m) = PackedMatrix::new(l, &w, n, k, row_axis.unwrap_or(usize::MAX), 0, lie)? else {
            return Ok(None);
        };
        matrices.push(m);
    }
    Ok(Some((matrices, which)))
}

/// The offsets batches have in `b`, each once; and for each batch, which.
fn distinct(c: &Contraction) -> (Vec<usize>, Vec<usize>) {
    let mut starts: Vec<usize> = Vec::new();
    let mut known: HashMap<usize, usize> = HashMap::new();
    let mut which = Vec::with_capacity(c.batches.len());
    for b in &c.batches {
        which.push(*known.entry(b.1).or_insert_with(|| {
            starts.push(b.1);
            starts.len() - 1
        }));
    }
    // A weight that is broadcast along a reduced or column axis would grow.
    (starts, which)
}

/// Floats of scratch, in this order.
struct Room {
    gathered: usize,
    packed: usize,
    results: usize,
}

struct Product {
    /// Without the offsets that are not needed.
    c: Contraction,
    /// Rows, steps, columns.
    sizes: (usize, usize, usize),
    left: Left,
    right: Right,
    bias: Option<Vec<f32>>,
    epilogue: Epilogue,
    scatter: Option<Vec<usize>>,
    room: Room,
    /// Where among what it reads the addend is.
    addend_read: usize,
}

impl Kernel for Product {
    fn name(&self) -> &'static str {
        match &self.right {
            Right::Frozen(m, _) => m.first().map_or("gemm-f32", |m| m.label("gemm-f32", "gemm-f32w8", "gemm-f32wbf16")),
            Right::Lying(w) => w.label(),
            Right::Plain | Right::Transposed | Right::Swapped => "thin-f32-live",
            Right::Packed(..) => "gemm-f32-live",
        }
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes, scratch) = io.parts();
        let (gathered, rest) = scratch.split_at_mut(self.room.gathered);
        let (packed, results) = rest.split_at_mut(self.room.packed);
        let constant = matches!(self.right, Right::Frozen(..) | Right::Lying(_));
        let (a, b) = (reads.f32(0), if constant { &[] } else { reads.f32(1) });
        if self.scatter.is_none() {
            let y = writes.f32(0);
            self.products(pool, a, b, gathered, packed, y);
            self.finish(reads.f32(self.addend_read), y);
            return;
        }
        let results = &mut results[..self.room.results];
        self.products(pool, a, b, gathered, packed, results);
        self.finish(&[], results);
        let y = writes.f32(0);
        for (&v, &at) in results.iter().zip(self.scatter.iter().flatten()) {
            y[at] = v;
        }
    }
}

impl Product {
    fn products(&self, pool: &Pool, a: &[f32], b: &[f32], gathered: &mut [f32], packed: &mut [f32], y: &mut [f32]) {
        let c = &self.c;
        let (m, k, n) = self.sizes;
        if m * n == 0 || c.batches.is_empty() {
            return;
        }
        // Without a reduction there is nothing to gather or to pack.
        if !gathered.is_empty() {
            if let Left::Transposed = self.left {
                for (batch, out) in c.batches.iter().zip(gathered.chunks_exact_mut(m * k)) {
                    transpose(pool, 1, k, m, &a[batch.0..], out);
                }
            } else {
                pool.pieces(gathered, m * k, |i, out| {
                    let start = c.batches[i].0;
                    for (row, out) in c.a_rows.iter().zip(out.chunks_exact_mut(k)) {
                        for (o, step) in out.iter_mut().zip(&c.a_steps) {
                            *o = a[start + row + step];
                        }
                    }
                });
            }
        }
        let panel = gemm::packed_len(n, k);
        let (lying, packed) = match &self.right {
            Right::Lying(w) => (Some(w.pack(pool, k, n, packed)), &[][..]),
            Right::Swapped => {
                let start = c.batches[0];
                let columns = product::Rows { m: n, of: &b[start.1..], row: 1, step: n };
                let turned = &mut packed[..n * m];
                product::product_plain(pool, k, m, &columns, &a[start.0..], turned);
                return transpose(pool, 1, n, m, turned, y);
            }
            Right::Packed(pack, starts, _) if !packed.is_empty() => {
                pool.pieces(packed, panel, |i, out| {
                    let b = &b[starts[i]..];
                    match pack {
                        Pack::Plain => product::pack_plain(n, k, b, out),
                        Pack::Transposed => product::pack_transposed(n, k, b, out),
                        Pack::Strided => gemm::pack(n, k, |j, kk| b[c.b_columns[j] + c.b_steps[kk]], out),
                    }
                });
                (None, &*packed)
            }
            _ => (None, &*packed),
        };
        let all = pool;
        let one = |pool: Option<&Pool>, i: usize, y: &mut [f32]| {
            // Without a reduction the operands are empty, and nothing in them has an offset.
            let (oa, ob) = if k == 0 { (0, 0) } else { c.batches[i] };
            let (x, x_stride) = match self.left {
                Left::Rows { stride } => (&a[oa..], stride),
                // What reads the left operand as it lies has nothing gathered.
                Left::Transposed | Left::Strided => (gathered.get(i * m * k..).unwrap_or_default(), k),
            };
            let w = match (&self.right, lying) {
                (_, Some(w)) => w,
                (Right::Plain, _) => {
                    let rows = match self.left {
                        Left::Rows { stride } => product::Rows { m, of: x, row: stride, step: 1 },
                        Left::Transposed | Left::Strided => product::Rows { m, of: &a[oa..], row: 1, step: m },
                    };
                    return product::product_plain(all, k, n, &rows, &b[ob..], y);
                }
                (Right::Swapped, _) => unreachable!("there is one batch, and it is done"),
                (Right::Transposed, _) => return product::product_transposed(m, k, n, x, &b[ob..], y),
                (Right::Frozen(matrices, which), _) => matrices[which[i]].view(),
                (Right::Lying(_), None) => unreachable!("it has just been packed"),
                (Right::Packed(_, _, which), _) => gemm::Packed::F32(&packed[which[i] * panel..][..panel]),
            };
            let g = gemm::Gemm { m, k, n, x, x_stride, w, bias: self.bias.as_deref(), accumulate: false };
            match pool {
                Some(pool) => gemm::gemm_on(pool, &g, y),
                None => gemm::gemm(&g, y),
            }
        };
        // Batches are shared out when there are enough of them, otherwise each is.
        let work = m.saturating_mul(k).saturating_mul(n);
        if c.batches.len() >= 2 * pool.threads() && work.saturating_mul(c.batches.len()) >= WORTH_SHARING {
            pool.pieces(y, m * n, |i, y| one(None, i, y));
        } else {
            y.chunks_exact_mut(m * n).enumerate().for_each(|(i, y)| one(Some(pool), i, y));
        }
    }

    fn finish(&self, addend: &[f32], y: &mut [f32]) {
        if let Some(alpha) = self.epilogue.alpha {
            y.iter_mut().for_each(|v| *v *= alpha);
        }
        let n = self.sizes.2;
        if let Some(c) = &self.epilogue.c
            && n > 0
        {
            for (i, row) in y.chunks_exact_mut(n).enumerate() {
                let from = &addend[i * c.row_stride..];
                if c.column_stride == 1 {
                    row.iter_mut().zip(from).for_each(|(v, c_ij)| *v += c.beta * c_ij);
                } else {
                    row.iter_mut().for_each(|v| *v += c.beta * from[0]);
                }
            }
        }
        if let Some(f) = &self.epilogue.activation {
            y.iter_mut().for_each(|v| *v = f(*v));
        }
    }
}
