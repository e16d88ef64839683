//! Calls recorded once and run any number of times: one arena, weights, one pass and one submission a segment.
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::weights::{Area, Chunk, Name, distinct};
use super::{ALIGN, Device, GpuError, Pipeline, locked, params};
use crate::kernel::{Call, PARAMS};

/// Most bytes of one buffer of weights: some drivers do not bind more, whatever they say.
const WEIGHTS_BUFFER: usize = 128 << 20;

/// Weights in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights(usize);

/// What a call works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Bytes of the arena, from a multiple of [`ALIGN`] on.
    Arena(Range<usize>),
    /// Weights.
    Weights(Weights),
}

/// Where weights are.
enum Placement<'d> {
    /// On the device, for another recording.
    There(Area),
    /// In that new buffer, at that offset, once they are made.
    New { name: Name, len: usize, make: Box<dyn Fn() -> Vec<u8> + 'd>, buffer: usize, offset: usize },
}

/// A call, what runs it, and what it works on.
type Placed = (Arc<Pipeline>, Call, Vec<Binding>);

/// A recording in the making.
pub struct Builder<'d> {
    device: &'d Device,
    arena_bytes: usize,
    weights: Vec<Placement<'d>>,
    /// Weights by their names.
    known: HashMap<Name, Weights>,
    /// Bytes of each new buffer of weights.
    buffers: Vec<usize>,
    segments: Vec<Vec<Placed>>,
    refused: Vec<GpuError>,
}

impl<'d> Builder<'d> {
    /// A recording with an arena of that size, and one empty segment.
    pub fn new(device: &'d Device, arena_bytes: usize) -> Builder<'d> {
        let (weights, known, buffers, refused) = Default::default();
        Builder { device, arena_bytes, weights, known, buffers, segments: vec![Vec::new()], refused }
    }

    /// Adds `len` bytes of weights. Equal names are equal bytes, on this device for ever: they are made, and there, once for all
    /// recordings that have them.
    ///
    /// # Errors
    /// [`GpuError::Memory`] when they are more than one operand may take.
    pub fn weights(&mut self, name: Name, len: usize, make: impl Fn() -> Vec<u8> + 'd) -> Result<Weights, GpuError> {
        if let Some(known) = self.known.get(&name) {
            return Ok(*known);
        }
        let size = len.max(16).next_multiple_of(ALIGN);
        if size > self.device.most_bytes() {
            return Err(GpuError::Memory { what: "weights", bytes: len });
        }
        let there = locked(&self.device.inner.weights).find(&name);
        self.weights.push(match there {
            Some(area) => Placement::There(area),
            None => {
                let most = WEIGHTS_BUFFER.min(self.device.most_bytes());
                if self.buffers.last().is_none_or(|b| b + size > most) {
                    self.buffers.push(0);
                }
                let buffer = self.buffers.len() - 1;
                let offset = self.buffers[buffer];
                self.buffers[buffer] += size;
                Placement::New { name, len, make: Box::new(make), buffer, offset }
            }
        });
        let added = Weights(self.weights.len() - 1);
        self.known.insert(name, added);
        Ok(added)
    }

    /// Goes on in a new segment, which is submitted apart.
    pub fn segment(&mut self) {
        self.segments.push(Vec::new());
    }

    /// Adds a call to the segment: on its operands, then its results.
    ///
    /// # Errors
    /// [`GpuError::Kernel`] when the kernel is none for this device, [`GpuError::Call`] when the ranges are not the arena's,
    /// not aligned, or one is written that the call also reads or writes elsewhere.
    pub fn dispatch(&mut self, call: &Call, bindings: &[Binding]) -> Result<(), GpuError> {
        let bytes = |b: &Binding| match b {
            Binding::Arena(r) => r.len(),
            Binding::Weights(w) => match self.weights.get(w.0) {
                Some(Placement::There(area)) => area.len,
                Some(Placement::New { len, .. }) => *len,
                None => 0,
            },
        };
        let (call, refused) = self.device.fastest(call, &bindings.iter().map(bytes).collect::<Vec<_>>())?;
        self.refused.extend(refused);
        let pipeline = self.device.pipeline(&call.kernel)?;
        self.place(&pipeline, call, bindings)
    }

    /// What was refused of calls that would have done the same, so that others stand for them.
    pub fn refused(&self) -> &[GpuError] {
        &self.refused
    }

    /// [`Builder::dispatch`] with what runs it, tried or not.
    pub(super) fn place(
        &mut self,
        pipeline: &Arc<Pipeline>,
        call: &Call,
        bindings: &[Binding],
    ) -> Result<(), GpuError> {
        let kernel = &call.kernel;
        let wrong = |why: String| GpuError::Call { kernel: kernel.name.clone(), why };
        if bindings.len() != kernel.reads + kernel.writes {
            return Err(wrong(format!("{} bindings for {kernel:?}", bindings.len())));
        }
        for (i, b) in bindings.iter().enumerate() {
            match b {
                Binding::Arena(r) if r.start % ALIGN != 0 || r.end > self.arena_bytes || r.is_empty() => {
                    return Err(wrong(format!("bytes {r:?} of an arena of {}", self.arena_bytes)));
                }
                Binding::Arena(r) if r.len() > self.device.most_bytes() => {
                    return Err(GpuError::Memory { what: "an operand", bytes: r.len() });
                }
                Binding::Weights(w) if i >= kernel.reads || w.0 >= self.weights.len() => {
                    return Err(wrong("it writes weights".into()));
                }
                _ => {}
            }
        }
        if let Some((written, other)) = clash(bindings, kernel.reads) {
            return Err(wrong(format!("it writes {written:?} and works on {other:?}")));
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.push((pipeline.clone(), call.clone(), bindings.to_vec()));
        }
        Ok(())
    }

    /// Makes buffers and bind groups, and uploads the weights.
    ///
    /// # Errors
    /// [`GpuError::Memory`], [`GpuError::Lost`].
    pub fn finish(self) -> Result<Recording, GpuError> {
        use wgpu::BufferUsages as Use;
        let inner = &self.device.inner;
        let storage = Use::STORAGE | Use::COPY_DST | Use::COPY_SRC;
        let arena_bytes = self.arena_bytes.max(ALIGN).next_multiple_of(ALIGN);
        let arena = self.device.buffer("the arena", arena_bytes, storage)?;
        let chunk = |bytes: &usize| {
            let buffer = self.device.buffer("weights", *bytes, storage)?;
            Ok(Arc::new(Chunk { buffer, bytes: *bytes }))
        };
        let chunks: Vec<Arc<Chunk>> = self.buffers.iter().map(chunk).collect::<Result<_, GpuError>>()?;
        let mut named = Vec::new();
        let mut weights: Vec<Area> = Vec::with_capacity(self.weights.len());
        for placement in self.weights {
            weights.push(match placement {
                Placement::There(area) => area,
                Placement::New { name, len, make, buffer, offset } => {
                    let area = Area { chunk: chunks[buffer].clone(), offset, len };
                    write(&inner.queue, &area.chunk.buffer, offset, &make());
                    named.push((name, area.clone()));
                    area
                }
            });
        }
        let calls = self.segments.iter().map(Vec::len).sum::<usize>();
        let slots = self.device.buffer("parameters", calls.max(1) * PARAMS * 4, Use::UNIFORM | Use::COPY_DST)?;
        let mut all = Vec::with_capacity(calls * PARAMS * 4);
        let mut segments = Vec::new();
        for segment in &self.segments {
            let mut steps = Vec::new();
            for (pipeline, call, bindings) in segment {
                let at = all.len();
                all.extend(params(&call.params));
                let slice = |buffer: &'_ wgpu::Buffer, offset: usize, bytes: usize| {
                    let size = std::num::NonZeroU64::new(bytes.max(16).next_multiple_of(16) as u64);
                    (buffer.clone(), offset as u64, size)
                };
                let mut parts = vec![slice(&slots, at, PARAMS * 4)];
                for b in bindings {
                    parts.push(match b {
                        Binding::Arena(r) => slice(&arena, r.start, r.len()),
                        Binding::Weights(w) => {
                            let Area { chunk, offset, len } = &weights[w.0];
                            slice(&chunk.buffer, *offset, *len)
                        }
                    });
                }
                let mut entries = Vec::with_capacity(parts.len());
                for (i, (buffer, offset, size)) in parts.iter().enumerate() {
                    let resource = wgpu::BufferBinding { buffer, offset: *offset, size: *size };
                    entries.push(wgpu::BindGroupEntry {
                        binding: i as u32,
                        resource: wgpu::BindingResource::Buffer(resource),
                    });
                }
                let group = inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &pipeline.layout,
                    entries: &entries,
                });
                inner.made.fetch_add(1, Ordering::Relaxed);
                steps.push(Step { pipeline: pipeline.pipeline.clone(), group, groups: call.groups });
            }
            segments.push(steps);
        }
        if !all.is_empty() {
            write(&inner.queue, &slots, 0, &all);
        }
        self.device.failed()?;
        {
            let mut known = locked(&inner.weights);
            named.iter().for_each(|(name, area)| known.put(*name, area));
        }
        // Bind groups keep buffers alive, but only what is held here is found by others.
        let chunks = distinct(weights.into_iter().map(|area| area.chunk));
        let device = self.device.clone();
        let (uploads, encoded) = (Uploads::default(), Duration::ZERO);
        Ok(Recording { device, arena, arena_bytes, chunks, segments, uploads, download: None, encoded })
    }
}

/// A range that is written and overlaps another of the same call.
fn clash(bindings: &[Binding], reads: usize) -> Option<(&Binding, &Binding)> {
    let range = |b: &Binding| match b {
        Binding::Arena(r) => Some(r.start..r.end.next_multiple_of(16)),
        Binding::Weights(_) => None,
    };
    for (i, written) in bindings.iter().enumerate().skip(reads) {
        for (k, other) in bindings.iter().enumerate() {
            if let (Some(a), Some(b)) = (range(written), range(other))
                && i != k
                && a.start < b.end
                && b.start < a.end
            {
                return Some((written, other));
            }
        }
    }
    None
}

/// Bytes to a buffer, whose copies are of whole words; what is behind the last ones is undefined.
fn write(queue: &wgpu::Queue, buffer: &wgpu::Buffer, at: usize, bytes: &[u8]) {
    let whole = bytes.len() / 4 * 4;
    if whole > 0 {
        queue.write_buffer(buffer, at as u64, &bytes[..whole]);
    }
    if whole < bytes.len() {
        let mut last = [0; 4];
        last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        queue.write_buffer(buffer, (at + whole) as u64, &last);
    }
}

struct Step {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    groups: [u32; 3],
}

/// Calls with everything they need on the device.
pub struct Recording {
    device: Device,
    arena: wgpu::Buffer,
    arena_bytes: usize,
    chunks: Vec<Arc<Chunk>>,
    segments: Vec<Vec<Step>>,
    uploads: Uploads,
    /// Where results are read from, of the size the largest run needs.
    download: Option<wgpu::Buffer>,
    /// How long the last run took until it was submitted.
    encoded: Duration,
}

/// Bytes on their way into the arena. They wait in a buffer that stays from one run to the next, since wgpu's own way of
/// writing to a buffer makes one each time.
#[derive(Default)]
struct Uploads {
    /// Mapped between runs; of the size the largest run needs.
    buffer: Option<wgpu::Buffer>,
    /// Where bytes lie in the buffer, where they belong in the arena, and how many they are.
    copies: Vec<(u64, u64, u64)>,
    /// Bytes in the buffer.
    used: usize,
    /// Bytes for which there was no room: the next run has it.
    over: usize,
}

impl Uploads {
    /// Puts bytes into the buffer; whether there was room for them.
    ///
    /// # Errors
    /// [`GpuError::Lost`].
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<bool, GpuError> {
        let padded = bytes.len().next_multiple_of(4);
        let room = self.buffer.as_ref().map_or(0, |b| b.size() as usize);
        let Some(buffer) = self.buffer.as_ref().filter(|_| self.used + padded <= room) else {
            self.over += padded.next_multiple_of(8);
            return Ok(false);
        };
        let range = self.used as u64..(self.used + padded) as u64;
        let mut view = buffer.get_mapped_range_mut(range.clone()).map_err(|e| GpuError::Lost { why: e.to_string() })?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
        if padded > bytes.len() {
            view.slice(bytes.len()..).copy_from_slice(&[0; 4][..padded - bytes.len()]);
        }
        self.copies.push((range.start, at as u64, padded as u64));
        self.used = (self.used + padded).next_multiple_of(8);
        Ok(true)
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recording({} calls, arena {} bytes)", self.calls(), self.arena_bytes)
    }
}

impl Recording {
    /// Calls of all segments.
    pub fn calls(&self) -> usize {
        self.segments.iter().map(Vec::len).sum()
    }

    /// Bytes of the buffers that its weights are in, which other recordings may share.
    pub fn weight_bytes(&self) -> usize {
        self.chunks.iter().map(|c| c.bytes).sum()
    }

    /// Bytes of its arena, which is its own.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Puts bytes into the arena, before the next run.
    ///
    /// # Errors
    /// [`GpuError::Lost`].
    pub fn upload(&mut self, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        if at + bytes.len() > self.arena_bytes {
            return Err(GpuError::Memory { what: "an upload", bytes: bytes.len() });
        }
        if !bytes.is_empty() && !self.uploads.put(at, bytes)? {
            write(&self.device.inner.queue, &self.arena, at, bytes);
        }
        self.device.failed()
    }

    /// How long the last run took until it was submitted: encoding and submission, of a queue that had nothing to do.
    pub fn encoded(&self) -> Duration {
        self.encoded
    }

    /// Runs a segment and gives `read` the number and bytes of each range of the arena that is asked for.
    ///
    /// # Errors
    /// [`GpuError::Lost`] when the device is gone or does not answer in time; nothing is read then.
    pub fn run(
        &mut self,
        segment: usize,
        ranges: &[Range<usize>],
        mut read: impl FnMut(usize, &[u8]),
    ) -> Result<(), GpuError> {
        self.device.failed()?;
        let total: usize = ranges.iter().map(|r| r.len().next_multiple_of(8)).sum();
        if self.download.as_ref().is_none_or(|d| (d.size() as usize) < total) && total > 0 {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            self.download = Some(self.device.buffer("results", total, usage)?);
        }
        let inner = &self.device.inner;
        let began = Instant::now();
        let mut encoder = inner.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let uploaded = !self.uploads.copies.is_empty();
        if let Some(buffer) = self.uploads.buffer.as_ref().filter(|_| uploaded) {
            buffer.unmap();
            for (from, to, bytes) in self.uploads.copies.drain(..) {
                encoder.copy_buffer_to_buffer(buffer, from, &self.arena, to, bytes);
            }
        }
        if let Some(steps) = self.segments.get(segment).filter(|s| !s.is_empty()) {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for step in steps {
                pass.set_pipeline(&step.pipeline);
                pass.set_bind_group(0, &step.group, &[]);
                let [x, y, z] = step.groups;
                pass.dispatch_workgroups(x, y, z);
            }
        }
        let mut at = 0;
        if let Some(download) = &self.download {
            for r in ranges.iter().filter(|r| !r.is_empty()) {
                let len = r.len().next_multiple_of(4) as u64;
                encoder.copy_buffer_to_buffer(&self.arena, r.start as u64, download, at, len);
                at += r.len().next_multiple_of(8) as u64;
            }
        }
        let index = inner.queue.submit([encoder.finish()]);
        self.encoded = began.elapsed();
        if let Some(buffer) = self.uploads.buffer.as_ref().filter(|_| uploaded) {
            // When the wait below is over it is mapped again; if not, the next upload says so.
            buffer.map_async(wgpu::MapMode::Write, .., |_| {});
        }
        let mapped = Arc::new(AtomicBool::new(false));
        if let Some(download) = self.download.as_ref().filter(|_| total > 0) {
            let flag = mapped.clone();
            let done = move |r: Result<(), _>| flag.store(r.is_ok(), Ordering::Release);
            download.map_async(wgpu::MapMode::Read, 0..total as u64, done);
        }
        let watchdog = *locked(&inner.watchdog);
        let waited = inner.device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(watchdog) });
        self.device.failed()?;
        if let Err(e) = waited {
            // Whoever asks next must not wait as long again.
            return Err(self.device.give_up(format!("no answer within {} s ({e})", watchdog.as_secs_f32())));
        }
        let used = std::mem::take(&mut self.uploads.used);
        let over = std::mem::take(&mut self.uploads.over);
        if over > 0 {
            // Where there is no memory for it, wgpu's way remains: this run is done all the same.
            let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
            self.uploads.buffer = self.device.buffer("uploads", used + over, usage).ok();
        }
        let Some(download) = self.download.as_ref().filter(|_| total > 0) else { return Ok(()) };
        if !mapped.load(Ordering::Acquire) {
            return Err(GpuError::Lost { why: "the results cannot be read".into() });
        }
        let view = download.get_mapped_range(0..total as u64);
        let view = view.map_err(|e| GpuError::Lost { why: e.to_string() })?;
        let mut at = 0;
        for (i, r) in ranges.iter().enumerate() {
            read(i, &view[at..at + r.len()]);
            at += r.len().next_multiple_of(8);
        }
        drop(view);
        download.unmap();
        Ok(())
    }
}
