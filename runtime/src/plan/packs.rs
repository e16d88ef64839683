//! Packed weights that several plans use: kept once, and not packed a second time.
//!
//! An array has a name, which says what it is made from and how: the contents of constants, a form, and every number that
//! the form depends on. It is looked up by that name before anything is packed, so that it does not matter which shapes a
//! plan is for or which pass touched a constant. The contents of a constant are hashed once for as long as it is there.
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use hone_kernels::bf16::{self, Pair};

use super::arena::{LINE, to_line};
use crate::tensor::Tensor;

/// What an array is made from, and how: equal names, equal arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(pub(super) [u8; 32]);

impl Name {
    /// Of these very bytes.
    pub(super) fn of_bytes(bytes: &[u8]) -> Name {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"bytes\0").update(bytes);
        Name(*hasher.finalize().as_bytes())
    }
}

/// Makes an array.
type Pack<T> = Box<dyn FnOnce() -> Vec<T> + Send>;

/// A packed array that begins with a cache line. One that waits is packed when it is first read.
pub struct Kept<T> {
    made: OnceLock<Aligned<T>>,
    waits: Mutex<Option<Pack<T>>>,
    /// How many elements it is expected to have.
    expected: usize,
}

struct Aligned<T> {
    all: Vec<T>,
    start: usize,
}

impl<T> Default for Kept<T> {
    /// Nothing.
    fn default() -> Kept<T> {
        Kept { made: OnceLock::new(), waits: Mutex::new(None), expected: 0 }
    }
}

impl<T> Kept<T> {
    /// How many elements it has, or is expected to have once it is packed.
    pub fn len(&self) -> usize {
        self.made.get().map_or(self.expected, |made| made.all.len() - made.start)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Copy + Default> Kept<T> {
    /// Packs what still waits.
    pub(super) fn make(&self) {
        self.aligned();
    }

    fn aligned(&self) -> &Aligned<T> {
        self.made.get_or_init(|| {
            let pack = locked(&self.waits).take();
            let made = pack.map_or_else(Vec::new, |pack| pack());
            let mut all = Vec::with_capacity(made.len() + LINE / size_of::<T>());
            let start = to_line(all.as_ptr());
            all.resize(start, T::default());
            all.extend_from_slice(&made);
            Aligned { all, start }
        })
    }
}

impl<T: Copy + Default> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Aligned { all, start } = self.aligned();
        &all[*start..]
    }
}

/// Things by what they are called, for as long as somebody has them.
struct Held<K, V, E = ()> {
    by: HashMap<K, (Weak<V>, E)>,
    /// How many there may be before those that nobody has are looked for.
    most: usize,
}

impl<K, V, E> Default for Held<K, V, E> {
    fn default() -> Held<K, V, E> {
        Held { by: HashMap::new(), most: 64 }
    }
}

impl<K: std::hash::Hash + Eq, V, E: Copy> Held<K, V, E> {
    fn put(&mut self, key: K, of: &Arc<V>, more: E) {
        if self.by.len() >= self.most {
            self.by.retain(|_, (w, _)| w.strong_count() > 0);
            self.most = 64 + 2 * self.by.len();
        }
        self.by.insert(key, (Arc::downgrade(of), more));
    }

    fn find(&self, key: &K) -> Option<(Arc<V>, E)> {
        let (of, more) = self.by.get(key)?;
        Some((of.upgrade()?, *more))
    }
}

/// The packed weights of all plans of one graph. One that no plan uses any more is freed.
#[derive(Default)]
pub struct Packs {
    f32: Mutex<Arrays<f32>>,
    i8: Mutex<Arrays<i8>>,
    u8: Mutex<Arrays<u8>>,
    i16: Mutex<Arrays<i16>>,
    i32: Mutex<Arrays<i32>>,
    bf16: Mutex<Arrays<Pair>>,
    /// Digests of constants by where they are. What is weakly held lies there until it is let go of here, so that nothing else
    /// can lie there.
    digests: Mutex<Held<usize, Tensor, Name>>,
    /// Constants that steps read as they are.
    constants: Mutex<Held<Name, Tensor>>,
    packings: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Packs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packs({} packed)", self.packings())
    }
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A type of packed weights.
pub trait Packed: Copy + Default + Send + Sync + 'static {
    #[doc(hidden)]
    fn held(packs: &Packs) -> &Mutex<Arrays<Self>>;
    #[doc(hidden)]
    fn bytes(of: &[Self]) -> &[u8];
}

/// Arrays by their names.
#[doc(hidden)]
pub struct Arrays<T>(Held<Name, Kept<T>>);

impl<T> Default for Arrays<T> {
    fn default() -> Arrays<T> {
        Arrays(Held::default())
    }
}

macro_rules! packed {
    ($($t:ident),*) => {$(
        impl Packed for $t {
            fn held(packs: &Packs) -> &Mutex<Arrays<$t>> {
                &packs.$t
            }

            fn bytes(of: &[$t]) -> &[u8] {
                bytemuck::cast_slice(of)
            }
        }
    )*};
}

packed!(f32, i8, u8, i16, i32);

impl Packed for Pair {
    fn held(packs: &Packs) -> &Mutex<Arrays<Pair>> {
        &packs.bf16
    }

    fn bytes(of: &[Pair]) -> &[u8] {
        bytemuck::cast_slice(bf16::words(of))
    }
}

impl Packs {
    /// The name of what `how` makes of those constants and numbers: of their types and elements, whatever their shapes.
    pub fn name(&self, how: &str, of: &[&Arc<Tensor>], numbers: &[usize]) -> Name {
        let mut hasher = blake3::Hasher::new();
        hasher.update(how.as_bytes()).update(&[0]);
        hasher.update(&(of.len() as u64).to_le_bytes());
        for t in of {
            hasher.update(&self.digest(t).0);
        }
        for n in numbers {
            hasher.update(&(*n as u64).to_le_bytes());
        }
        Name(*hasher.finalize().as_bytes())
    }

    /// Type and elements of a constant, hashed once for as long as it is there.
    fn digest(&self, t: &Arc<Tensor>) -> Name {
        let at = Arc::as_ptr(t) as usize;
        if let Some((_, known)) = locked(&self.digests).find(&at) {
            return known;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(t.dtype().name().as_bytes()).update(&[0]).update(t.data().as_bytes());
        let digest = Name(*hasher.finalize().as_bytes());
        locked(&self.digests).put(at, t, digest);
        digest
    }

    /// The array of that name: known, or made by `pack`, of about `len` elements; now, or where it waits when it is first read.
    pub fn packed<T: Packed>(
        &self,
        name: Name,
        len: usize,
        waits: bool,
        pack: impl FnOnce() -> Vec<T> + Send + 'static,
    ) -> Arc<Kept<T>> {
        let known = locked(T::held(self)).0.find(&name);
        let kept = match known {
            Some((known, ())) => {
                // A name that leaves out what the array depends on is a mistake that no shape alone shows.
                #[cfg(test)]
                if known.made.get().is_some() {
                    assert!(T::bytes(&known) == T::bytes(&pack()), "two arrays of one name");
                }
                known
            }
            None => {
                let count = self.packings.clone();
                let pack = move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    pack()
                };
                let waits = Mutex::new(Some(Box::new(pack) as Pack<T>));
                let made = Arc::new(Kept { made: OnceLock::new(), waits, expected: len });
                locked(T::held(self)).0.put(name, &made, ());
                made
            }
        };
        if !waits {
            kept.make();
        }
        kept
    }

    /// That constant, or an equal one that another plan reads.
    pub(super) fn constant(&self, t: &Arc<Tensor>) -> Arc<Tensor> {
        let name = self.name("constant", &[t], t.shape());
        let mut constants = locked(&self.constants);
        constants.find(&name).map_or_else(
            || {
                constants.put(name, t, ());
                t.clone()
            },
            |(known, ())| known,
        )
    }

    /// Arrays packed so far.
    pub fn packings(&self) -> usize {
        self.packings.load(Ordering::Relaxed)
    }
}

/// The elements of a constant that was found to be of `f32`.
pub fn floats(t: &Tensor) -> &[f32] {
    bytemuck::cast_slice(t.data().as_bytes())
}

/// The elements of a constant that was found to be of eight bits, as signed ones.
pub fn bytes(t: &Tensor) -> &[i8] {
    bytemuck::cast_slice(t.data().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(v: &[f32]) -> Arc<Tensor> {
        Arc::new(Tensor::f32(&[v.len()], v.to_vec()).unwrap())
    }

    fn doubled(packs: &Packs, t: &Arc<Tensor>, waits: bool) -> Arc<Kept<f32>> {
        let (name, from) = (packs.name("doubled", &[t], &[2]), t.clone());
        packs.packed(name, t.len(), waits, move || floats(&from).iter().map(|v| 2.0 * v).collect())
    }

    #[test]
    fn arrays_begin_with_a_cache_line() {
        let packs = Packs::default();
        for n in [1, 3, 64, 1000, 100_000] {
            let kept = packs.packed(packs.name("bytes", &[], &[n]), n, false, move || vec![n as i8; n]);
            assert_eq!((kept.len(), kept.as_ptr() as usize % LINE), (n, 0));
            let kept = packs.packed(packs.name("floats", &[], &[n]), n, true, move || vec![n as f32; n]);
            assert_eq!((kept.len(), kept.as_ptr() as usize % LINE), (n, 0));
        }
    }

    #[test]
    fn an_array_is_packed_once_for_as_long_as_somebody_has_it() {
        let packs = Packs::default();
        let a = doubled(&packs, &tensor(&[1.0, -0.0]), false);
        assert!(Arc::ptr_eq(&a, &doubled(&packs, &tensor(&[1.0, -0.0]), false)));
        assert_eq!(packs.packings(), 1);
        // Equal numbers of other bits.
        assert!(!Arc::ptr_eq(&a, &doubled(&packs, &tensor(&[1.0, 0.0]), false)));
        let before = Arc::downgrade(&a);
        drop(a);
        assert!(before.upgrade().is_none());
        assert_eq!(doubled(&packs, &tensor(&[1.0, -0.0]), false)[..], [2.0, -0.0]);
        assert_eq!(packs.packings(), 3);
    }

    #[test]
    fn other_forms_and_numbers_are_other_names_and_shapes_are_not() {
        let packs = Packs::default();
        let (t, flat) = (Tensor::f32(&[2, 1], vec![1.0, 2.0]).unwrap(), tensor(&[1.0, 2.0]));
        let name = packs.name("a", &[&flat], &[1, 2]);
        assert_eq!(name, packs.name("a", &[&Arc::new(t)], &[1, 2]));
        let others =
            [packs.name("b", &[&flat], &[1, 2]), packs.name("a", &[&flat], &[2, 1]), packs.name("a", &[], &[1, 2])];
        assert!(others.iter().all(|n| *n != name));
    }

    #[test]
    fn what_waits_is_packed_when_it_is_read_or_wanted_at_once() {
        let packs = Packs::default();
        let t = tensor(&[1.0, 2.0, 3.0]);
        let waits = doubled(&packs, &t, true);
        assert_eq!((packs.packings(), waits.len()), (0, 3));
        assert_eq!(doubled(&packs, &t, false)[..], [2.0, 4.0, 6.0]);
        assert_eq!((packs.packings(), waits[1]), (1, 4.0));
        let other = doubled(&packs, &tensor(&[5.0]), true);
        assert_eq!((packs.packings(), other[0], packs.packings()), (1, 10.0, 2));
    }

    #[test]
    fn a_constant_where_another_one_lay_is_not_taken_for_it() {
        let packs = Packs::default();
        for i in 0..500 {
            // What is freed is soon allocated again.
            assert_eq!(doubled(&packs, &tensor(&[i as f32]), false)[..], [2.0 * i as f32]);
        }
        assert!(locked(&packs.digests).by.len() < 200, "what is gone is let go of");
    }
}
