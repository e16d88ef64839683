//! The weights of all recordings of a device: each there once, for as long as a recording has it.
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// What weights are made from, and how: equal names, equal bytes.
pub type Name = [u8; 32];

/// A buffer of weights. Whoever has one of them has all of it.
pub(super) struct Chunk {
    pub(super) buffer: wgpu::Buffer,
    pub(super) bytes: usize,
}

/// Each of them once.
pub(super) fn distinct(chunks: impl Iterator<Item = Arc<Chunk>>) -> Vec<Arc<Chunk>> {
    let mut chunks: Vec<Arc<Chunk>> = chunks.collect();
    chunks.sort_by_key(|c| Arc::as_ptr(c) as usize);
    chunks.dedup_by(|a, b| Arc::ptr_eq(a, b));
    chunks
}

/// Where weights are.
#[derive(Clone)]
pub(super) struct Area {
    pub(super) chunk: Arc<Chunk>,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// Weights that are on the device, by their names.
#[derive(Default)]
pub(super) struct Known {
    areas: HashMap<Name, (Weak<Chunk>, usize, usize)>,
    /// How many there may be before those that are gone are let go of.
    most: usize,
}

impl Known {
    pub(super) fn find(&self, name: &Name) -> Option<Area> {
        let (chunk, offset, len) = self.areas.get(name)?;
        Some(Area { chunk: chunk.upgrade()?, offset: *offset, len: *len })
    }

    pub(super) fn put(&mut self, name: Name, area: &Area) {
        if self.areas.len() >= self.most {
            self.areas.retain(|_, (chunk, ..)| chunk.strong_count() > 0);
            self.most = 64 + 2 * self.areas.len();
        }
        self.areas.insert(name, (Arc::downgrade(&area.chunk), area.offset, area.len));
    }

    /// Buffers that are there, and their bytes.
    pub(super) fn there(&self) -> (usize, usize) {
        let chunks = distinct(self.areas.values().filter_map(|(chunk, ..)| chunk.upgrade()));
        (chunks.len(), chunks.iter().map(|c| c.bytes).sum())
    }
}
