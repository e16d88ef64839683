//! Packed weights that several plans use: kept once.
//!
//! They are known by what is in them, so that it does not matter which shapes a plan is for or which pass touched it.
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hone_kernels::bf16::{self, Pair};

use super::arena::{LINE, to_line};

/// A packed array that begins with a cache line.
#[derive(Debug, Default)]
pub struct Kept<T> {
    all: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Kept<T> {
    fn of(made: &[T]) -> Kept<T> {
        let mut all = Vec::with_capacity(made.len() + LINE / size_of::<T>());
        let start = to_line(all.as_ptr());
        all.resize(start, T::default());
        all.extend_from_slice(made);
        Kept { all, start }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[self.start..]
    }
}

/// Arrays by the hash of their bytes.
type Held<T> = Mutex<HashMap<u64, Vec<Weak<Kept<T>>>>>;

/// The packed weights of all plans of one graph. One that no plan uses any more is freed.
#[derive(Debug, Default)]
pub struct Packs {
    f32: Held<f32>,
    i8: Held<i8>,
    bf16: Held<Pair>,
}

/// A type of packed weights.
pub trait Packed: Copy + Default {
    #[doc(hidden)]
    fn held(packs: &Packs) -> &Held<Self>;
    #[doc(hidden)]
    fn bytes(of: &[Self]) -> &[u8];
}

impl Packed for f32 {
    fn held(packs: &Packs) -> &Held<f32> {
        &packs.f32
    }

    fn bytes(of: &[f32]) -> &[u8] {
        bytemuck::cast_slice(of)
    }
}

impl Packed for i8 {
    fn held(packs: &Packs) -> &Held<i8> {
        &packs.i8
    }

    fn bytes(of: &[i8]) -> &[u8] {
        bytemuck::cast_slice(of)
    }
}

impl Packed for Pair {
    fn held(packs: &Packs) -> &Held<Pair> {
        &packs.bf16
    }

    fn bytes(of: &[Pair]) -> &[u8] {
        bytemuck::cast_slice(bf16::words(of))
    }
}

impl Packs {
    /// These weights, or the same bits from before.
    pub fn keep<T: Packed>(&self, made: Vec<T>) -> Arc<Kept<T>> {
        let bytes = T::bytes(&made);
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let mut held = T::held(self).lock().unwrap_or_else(PoisonError::into_inner);
        let same = held.entry(hasher.finish()).or_default();
        same.retain(|w| w.strong_count() > 0);
        let known = same.iter().filter_map(Weak::upgrade).find(|w| T::bytes(w) == bytes);
        known.unwrap_or_else(|| {
            let made = Arc::new(Kept::of(&made));
            same.push(Arc::downgrade(&made));
            made
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_with_a_cache_line() {
        let packs = Packs::default();
        for n in [1, 3, 64, 1000, 100_000] {
            let kept = packs.keep(vec![n as i8; n]);
            assert_eq!((kept.len(), kept.as_ptr() as usize % LINE), (n, 0));
            let kept = packs.keep(vec![n as f32; n]);
            assert_eq!((kept.len(), kept.as_ptr() as usize % LINE), (n, 0));
        }
    }

    #[test]
    fn equal_weights_are_one_array_for_as_long_as_somebody_has_it() {
        let packs = Packs::default();
        let a = packs.keep(vec![1.0f32, -0.0]);
        assert!(Arc::ptr_eq(&a, &packs.keep(vec![1.0f32, -0.0])));
        // Equal numbers of other bits.
        assert!(!Arc::ptr_eq(&a, &packs.keep(vec![1.0f32, 0.0])));
        assert_eq!(packs.keep(vec![1i8, 2])[..], [1, 2]);
        let before = Arc::downgrade(&a);
        drop(a);
        assert!(before.upgrade().is_none());
        assert_eq!(packs.keep(vec![1.0f32, -0.0])[..], [1.0, -0.0]);
    }
}
