//! Kernels over broadcast operands: the shapes are reduced to rows when a plan is made, and a row is one plain loop.
use std::marker::PhantomData;

use bytemuck::{AnyBitPattern, NoUninit};
use hone_kernels::elementwise::{fold, map, zip};
use hone_kernels::epilogue::{self, Activation};
use hone_kernels::threads::Pool;

use super::super::OpError;
use super::super::shape::{broadcast, broadcast_strides, elements};
use crate::plan::{Io, Kernel, Lowered, Lowering};

/// What can be read from and written to an arena; booleans are there as bytes.
pub(super) trait Element: NoUninit + AnyBitPattern + Send + Sync {}
impl<T: NoUninit + AnyBitPattern + Send + Sync> Element for T {}

/// Most axes left when neighbouring ones are merged; more is for the reference.
const MAX_AXES: usize = 8;

/// How `N` operands that broadcast to one shape are read, row by row.
///
/// Axes over which every operand advances alike are merged, so that `[N, C, H, W]` with `[C, 1, 1]` is rows of `H · W`
/// elements with one element.
pub(super) struct Walk<const N: usize> {
    /// Axes around the rows, outermost first: length and step of each operand.
    outer: Vec<(usize, [usize; N])>,
    /// Elements of a row.
    pub(super) row: usize,
    /// How far each operand advances per element of a row: 0 or 1.
    pub(super) steps: [usize; N],
}

impl<const N: usize> Walk<N> {
    /// The walk over `to`; `None` when it has too many axes.
    ///
    /// # Errors
    /// [`OpError::Shape`] when a shape does not broadcast to `to`.
    pub(super) fn new(shapes: [&[usize]; N], to: &[usize]) -> Result<Option<Walk<N>>, OpError> {
        elements(to)?;
        for shape in shapes {
            if broadcast(shape, to)? != to {
                return Err(OpError::shape("broadcasting", to, shape));
            }
        }
        let strides = shapes.map(|s| broadcast_strides(s, to));
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for (axis, &d) in to.iter().enumerate().rev() {
            if d == 1 {
                continue;
            }
            let step: [usize; N] = std::array::from_fn(|k| strides[k][axis]);
            match axes.last_mut() {
                Some((len, inner)) if (0..N).all(|k| step[k] == inner[k] * *len) => *len *= d,
                _ => axes.push((d, step)),
            }
        }
        if axes.len() > MAX_AXES {
            return Ok(None);
        }
        axes.reverse();
        let (row, steps) = axes.pop().unwrap_or((1, [1; N]));
        Ok(Some(Walk { outer: axes, row, steps }))
    }

    /// Calls `f` for pieces of the result that cover it, on all threads of `pool`: each lies in one row, and comes with the index of
    /// its first element in each operand.
    pub(super) fn pieces<T: Send>(&self, pool: &Pool, y: &mut [T], f: impl Fn(&mut [T], [usize; N]) + Sync) {
        let share = pool.share(y.len(), 1, WORTH_SHARING);
        pool.pieces(y, share, |piece, mut y| {
            let (first, mut column) = (piece * share / self.row, piece * share % self.row);
            let (mut at, mut from, mut rest) = ([0; MAX_AXES], [0; N], first);
            for (axis, (len, step)) in self.outer.iter().enumerate().rev() {
                (at[axis], rest) = (rest % len, rest / len);
                (0..N).for_each(|k| from[k] += at[axis] * step[k]);
            }
            while !y.is_empty() {
                let here;
                (here, y) = y.split_at_mut((self.row - column).min(y.len()));
                f(here, std::array::from_fn(|k| from[k] + column * self.steps[k]));
                column = 0;
                for (axis, (len, step)) in self.outer.iter().enumerate().rev() {
                    at[axis] += 1;
                    (0..N).for_each(|k| from[k] += step[k]);
                    if at[axis] < *len {
                        break;
                    }
                    (0..N).for_each(|k| from[k] -= step[k] * len);
                    at[axis] = 0;
                }
            }
        });
    }
}

/// Elements below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 14;

/// `y[i] = f(x[i])`, on all threads of `pool`.
pub(super) fn map_on<A, B, F>(pool: &Pool, x: &[A], y: &mut [B], f: F)
where
    A: Copy + Sync,
    B: Send,
    F: Fn(A) -> B + Copy + Sync,
{
    let share = pool.share(y.len(), 1, WORTH_SHARING);
    pool.pieces(y, share, |i, y| map(&x[i * share..], y, f));
}

/// `y = f(x)` for every element.
pub(super) struct Map<A, B, F> {
    name: &'static str,
    f: F,
    types: PhantomData<fn(A) -> B>,
}

impl<A: Element, B: Element, F: Fn(A) -> B + Copy + Send + Sync> Kernel for Map<A, B, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (x, y): (&[A], &mut [B]) =
            (bytemuck::cast_slice(reads.bytes(0)), bytemuck::cast_slice_mut(writes.bytes(0)));
        map_on(pool, x, y, self.f);
    }
}

/// Lowers to [`Map`] over input 0.
pub(super) fn mapped<A, B, F>(name: &'static str, f: F) -> Lowered
where
    A: Element + 'static,
    B: Element + 'static,
    F: Fn(A) -> B + Copy + Send + Sync + 'static,
{
    Lowered::new(Map { name, f, types: PhantomData }, vec![0])
}

/// `y = activation(x)` for every element.
struct Activated {
    name: &'static str,
    activation: Activation,
}

impl Kernel for Activated {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        epilogue::apply_to(pool, self.activation, reads.f32(0), writes.f32(0));
    }
}

/// Lowers to that activation of input 0.
pub(super) fn activated(name: &'static str, activation: Activation) -> Lowered {
    Lowered::new(Activated { name, activation }, vec![0])
}

/// `y = f(a, b)` for every pair of elements.
struct Zip<A, B, C, F> {
    name: &'static str,
    walk: Walk<2>,
    f: F,
    types: PhantomData<fn(A, B) -> C>,
}

impl<A: Element, B: Element, C: Element, F: Fn(A, B) -> C + Copy + Send + Sync> Kernel for Zip<A, B, C, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (a, b): (&[A], &[B]) = (bytemuck::cast_slice(reads.bytes(0)), bytemuck::cast_slice(reads.bytes(1)));
        let y: &mut [C] = bytemuck::cast_slice_mut(writes.bytes(0));
        let f = self.f;
        match self.walk.steps {
            [0, _] => self.walk.pieces(pool, y, |y, [i, j]| {
                let a = a[i];
                map(&b[j..], y, move |b| f(a, b));
            }),
            [_, 0] => self.walk.pieces(pool, y, |y, [i, j]| {
                let b = b[j];
                map(&a[i..], y, move |a| f(a, b));
            }),
            _ => self.walk.pieces(pool, y, |y, [i, j]| zip(&a[i..], &b[j..], y, f)),
        }
    }
}

/// Lowers to `f(a, b)` over inputs 0 and 1, taken as of the shapes `a` and `b`.
pub(super) fn zipped<A, B, C, F>(
    l: &Lowering<'_>,
    name: &'static str,
    a: &[usize],
    b: &[usize],
    f: F,
) -> Result<Option<Lowered>, OpError>
where
    A: Element + 'static,
    B: Element + 'static,
    C: Element + 'static,
    F: Fn(A, B) -> C + Copy + Send + Sync + 'static,
{
    let walk = Walk::new([a, b], l.output_shape(0))?;
    Ok(walk.map(|walk| Lowered::new(Zip { name, walk, f, types: PhantomData }, vec![0, 1])))
}

/// `y = g(f(f(x_0, x_1), x_2) …)` for every element.
struct Fold<A, F, G> {
    name: &'static str,
    walks: Vec<Walk<1>>,
    f: F,
    last: G,
    types: PhantomData<fn(A) -> A>,
}

impl<A: Element, F, G> Kernel for Fold<A, F, G>
where
    F: Fn(A, A) -> A + Copy + Send + Sync,
    G: Fn(A) -> A + Copy + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let y: &mut [A] = bytemuck::cast_slice_mut(writes.bytes(0));
        let f = self.f;
        for (k, walk) in self.walks.iter().enumerate() {
            let x: &[A] = bytemuck::cast_slice(reads.bytes(k));
            walk.pieces(pool, y, |y, [i]| match (k, walk.steps) {
                (0, [0]) => y.fill(x[i]),
                (0, _) => y.copy_from_slice(&x[i..][..y.len()]),
                (_, [0]) => {
                    let x = x[i];
                    y.iter_mut().for_each(|y| *y = f(*y, x));
                }
                _ => fold(&x[i..], y, f),
            });
        }
        let (last, share) = (self.last, pool.share(y.len(), 1, WORTH_SHARING));
        pool.pieces(y, share, |_, y| y.iter_mut().for_each(|y| *y = last(*y)));
    }
}

/// Lowers to `last(f(f(x_0, x_1), x_2) …)` over all inputs.
pub(super) fn folded<A, F, G>(l: &Lowering<'_>, name: &'static str, f: F, last: G) -> Result<Option<Lowered>, OpError>
where
    A: Element + 'static,
    F: Fn(A, A) -> A + Copy + Send + Sync + 'static,
    G: Fn(A) -> A + Copy + Send + Sync + 'static,
{
    let mut walks = Vec::new();
    for k in 0..l.inputs() {
        match Walk::new([l.shape(k)?], l.output_shape(0))? {
            Some(walk) => walks.push(walk),
            None => return Ok(None),
        }
    }
    let reads = (0..walks.len()).collect();
    Ok(Some(Lowered::new(Fold { name, walks, f, last, types: PhantomData }, reads)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_advance_alike_are_one_row() {
        let w = |a: &[usize], b: &[usize], to: &[usize]| Walk::new([a, b], to).unwrap().unwrap();
        let same = w(&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]);
        let rows = |w: &Walk<2>| w.outer.iter().map(|(len, _)| len).product::<usize>();
        assert_eq!((same.row, same.steps, rows(&same)), (24, [1, 1], 1));
        let channel = w(&[2, 3, 4, 5], &[3, 1, 1], &[2, 3, 4, 5]);
        assert_eq!((channel.row, channel.steps, rows(&channel)), (20, [1, 0], 6));
        let trailing = w(&[2, 3, 5], &[5], &[2, 3, 5]);
        assert_eq!((trailing.row, trailing.steps, rows(&trailing)), (5, [1, 1], 6));
        let scalar = w(&[], &[4, 1, 3], &[4, 1, 3]);
        assert_eq!((scalar.row, scalar.steps, rows(&scalar)), (12, [0, 1], 1));
        assert_eq!(rows(&w(&[], &[1, 1], &[1, 1])), 1);
        for empty in [w(&[0, 3], &[1, 3], &[0, 3]), w(&[3, 0], &[3, 1], &[3, 0])] {
            empty.pieces(&Pool::new(1), &mut [0u8; 0], |_, _| panic!("there is nothing"));
        }
    }

    #[test]
    fn rows_begin_where_broadcasting_says() {
        let (a, b, to) = ([20, 1, 3, 1], [4, 1, 175], [20, 4, 3, 175]);
        let walk = Walk::new([&a[..], &b[..]], &to).unwrap().unwrap();
        for threads in [1, 3] {
            let mut seen = vec![None; to.iter().product()];
            walk.pieces(&Pool::new(threads), &mut seen, |y, [i, j]| {
                for (k, y) in y.iter_mut().enumerate() {
                    *y = Some((i + k * walk.steps[0], j + k * walk.steps[1]));
                }
            });
            assert!(seen.len() > WORTH_SHARING);
            let (ia, ib) = (broadcast_strides(&a, &to), broadcast_strides(&b, &to));
            for (o, seen) in seen.into_iter().enumerate() {
                let at = [o / 2100, o / 525 % 4, o / 175 % 3, o % 175];
                let dot = |s: &[usize]| (0..4).map(|k| s[k] * at[k]).sum::<usize>();
                assert_eq!(seen, Some((dot(&ia), dot(&ib))));
            }
        }
    }
}
