//! The pad's core in this process, for buttons that have no pad of their own: the same debouncing, gestures, binding to the
//! prompt and queue as on a board, and the same frames to the same host. Only the cable is missing.
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hone_pad::link::Identity;
use hone_pad::{Pad, PadConfig, RamStore};
use hone_wire::message::Config;

use super::source::{Duplex, SourceError};

/// Presses that wait while the journal cannot be written.
const QUEUE: usize = 256;

/// Where the core's samples come from.
pub(super) trait Sampler: Send {
    /// Waits about 10 ms at most for something to happen, and brings the core up to now.
    ///
    /// # Errors
    /// When the device is lost.
    fn fill(&mut self, core: &mut Core) -> io::Result<()>;

    /// Something people should know, once.
    fn remark(&mut self) -> Option<String> {
        None
    }
}

/// The core with its clock.
pub(super) struct Core {
    pad: Pad<RamStore<QUEUE>>,
    start: Instant,
    /// The latest millisecond that was sampled.
    sampled_ms: u32,
    /// What was sampled then.
    mask: u16,
}

impl Core {
    /// A core that has just started. `uid` is the same for the same buttons, whenever they are opened.
    pub(super) fn new(uid: [u8; 8], buttons: u8, timing: Config) -> Result<Core, SourceError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| SourceError::Random { detail: error.to_string() })?;
        let identity = Identity {
            uid,
            boot: u16::from_le_bytes([nonce[0], nonce[1]]),
            buttons,
            firmware_hash: *b"in-proc.",
            ..Identity::default()
        };
        let config = PadConfig { identity, nonce, timing, ..PadConfig::default() };
        Ok(Core { pad: Pad::new(config, RamStore::new()), start: Instant::now(), sampled_ms: 0, mask: 0 })
    }

    /// Milliseconds since the start, by the real clock.
    pub(super) fn real_ms(&self) -> u32 {
        self.start.elapsed().as_millis() as u32
    }

    /// The core's clock: the real one, or ahead of it.
    fn now_ms(&self) -> u32 {
        self.real_ms().wrapping_add(self.lead_ms())
    }

    /// Brings the core up to now; what was held before is held until now, and `mask` from now on.
    pub(super) fn sample(&mut self, mask: u16) {
        let now_ms = self.real_ms();
        self.advance(now_ms.wrapping_sub(1));
        self.mask = mask;
        self.advance(now_ms);
    }

    /// Lets `ms` pass with what is held now, whatever the real clock says.
    pub(super) fn pass(&mut self, ms: u32) {
        self.advance(self.sampled_ms.wrapping_add(ms));
    }

    /// The latest millisecond that was sampled.
    pub(super) fn sampled_ms(&self) -> u32 {
        self.sampled_ms
    }

    /// How far the core is ahead of the real clock.
    pub(super) fn lead_ms(&self) -> u32 {
        u32::try_from(self.sampled_ms.wrapping_sub(self.real_ms()) as i32).unwrap_or(0)
    }

    /// Changes what is held from the next millisecond on.
    pub(super) fn set(&mut self, mask: u16) {
        self.mask = mask;
    }

    /// What is held.
    pub(super) fn held(&self) -> u16 {
        self.mask
    }

    /// Whether a button is down, or was so lately that it may not have come to rest.
    pub(super) fn is_busy(&self) -> bool {
        self.mask != 0 || self.pad.pressed() != 0
    }

    /// Events the host does not have yet.
    pub(super) fn pending(&self) -> u32 {
        self.pad.pending()
    }

    /// How long after the last release every gesture is certain.
    pub(super) fn settles_ms(&self) -> u32 {
        let timing = self.pad.timing();
        u32::from(timing.double_ms) + 4 * u32::from(timing.debounce_ms) + 20
    }

    fn advance(&mut self, upto_ms: u32) {
        while (upto_ms.wrapping_sub(self.sampled_ms) as i32) > 0 {
            self.sampled_ms = self.sampled_ms.wrapping_add(1);
            self.pad.tick(self.sampled_ms, self.mask);
        }
    }
}

/// A core that outlives its ports, so that presses made before a device was lost are not.
pub(super) type SharedCore = Arc<Mutex<Core>>;

/// The host's end of a core in this process.
pub(super) struct LocalPort<S> {
    core: SharedCore,
    sampler: S,
    unread: VecDeque<u8>,
}

impl<S: Sampler> LocalPort<S> {
    pub(super) fn new(core: SharedCore, sampler: S) -> LocalPort<S> {
        LocalPort { core, sampler, unread: VecDeque::new() }
    }
}

impl<S: Sampler> Read for LocalPort<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            self.sampler.fill(&mut core)?;
            let now_ms = core.now_ms();
            core.pad.poll(now_ms);
            // There is no display, no buzzer, and nothing to restart.
            while core.pad.pop_request().is_some() {}
            while let Some(frame) = core.pad.pop_tx() {
                self.unread.extend(frame);
            }
        }
        match self.unread.read(bytes)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            n => Ok(n),
        }
    }
}

impl<S: Sampler> Write for LocalPort<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = core.now_ms();
        core.pad.rx(bytes, now_ms);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Sampler> Duplex for LocalPort<S> {
    fn remark(&mut self) -> Option<String> {
        self.sampler.remark()
    }
}

/// An identity for buttons that have none: the same for the same `name`. Its first four bytes say what kind they are of.
pub(super) fn uid(kind: [u8; 4], name: &str) -> [u8; 8] {
    let mut uid = [0; 8];
    uid[..4].copy_from_slice(&kind);
    uid[4..].copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..4]);
    uid
}
