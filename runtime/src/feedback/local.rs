//! The pad's core in this process, for buttons that have no pad of their own: the same debouncing, gestures, binding to the
//! prompt and queue as on a board, and the same frames to the same host. Only the cable is missing.
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hone_pad::link::Identity;
use hone_pad::{Pad, PadConfig, RamStore};
use hone_wire::message::{Config, Kind};

use super::listener::READ_TIMEOUT;
use super::source::{Duplex, SourceError};

/// Presses that wait while the journal cannot be written.
const QUEUE: usize = 256;

/// Where the core's samples come from.
pub(super) trait Sampler: Send {
    /// Waits at most so long for something to happen, and brings the core up to now.
    ///
    /// # Errors
    /// When the device is lost.
    fn fill(&mut self, core: &mut Core, wait: Duration) -> io::Result<()>;

    /// Something people should know, once.
    fn remark(&mut self) -> Option<String> {
        None
    }
}

/// A button that went down or came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// How long ago.
    pub(super) age: Duration,
    pub(super) button: u8,
    pub(super) down: bool,
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

    /// Lets the core see each change at its own time, oldest first, however late it is told. What was sampled already stays
    /// as it was.
    pub(super) fn replay(&mut self, changes: &[Change]) {
        let now_ms = self.real_ms();
        for change in changes {
            let age_ms = u32::try_from(change.age.as_millis()).unwrap_or(u32::MAX);
            self.advance(now_ms.saturating_sub(age_ms).wrapping_sub(1));
            let bit = 1 << change.button;
            self.mask = if change.down { self.mask | bit } else { self.mask & !bit };
        }
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

    /// Keeps an event that is no button's; `false` when it is lost for want of room.
    pub(super) fn report(&mut self, kind: Kind, value: u16) -> bool {
        self.pad.report(kind, 0, value, self.sampled_ms).is_some()
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
            self.sampler.fill(&mut core, READ_TIMEOUT)?;
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
        // A press that began before this frame is not to be taken for an answer to it.
        self.sampler.fill(&mut core, Duration::ZERO)?;
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

#[cfg(test)]
mod tests {
    use hone_pad::Store;

    use super::*;

    fn running_for(time: Duration) -> Core {
        let mut core = Core::new([1; 8], 2, Config::default()).unwrap();
        core.start = Instant::now().checked_sub(time).unwrap();
        core
    }

    fn change(ago_ms: u64, button: u8, down: bool) -> Change {
        Change { age: Duration::from_millis(ago_ms), button, down }
    }

    /// What was pressed, once nothing more can come of it.
    fn pressed(mut core: Core) -> Vec<(Kind, u8)> {
        core.pass(core.settles_ms());
        let store = core.pad.into_store();
        let kept = (store.first()..store.next()).filter_map(|seq| store.event(seq));
        kept.map(|event| (event.kind, event.button())).collect()
    }

    #[test]
    fn what_the_kernel_saw_while_the_disk_was_waited_for_is_pressed_when_it_was_and_as_long_as_it_was() {
        let mut core = running_for(Duration::from_secs(3));
        core.pass(1_000);
        // Nobody sampled for two seconds: a click, another, and one that is held for 700 ms.
        let saw = [
            (1_900, 0, true),
            (1_820, 0, false),
            (1_700, 1, true),
            (1_600, 1, false),
            (1_200, 0, true),
            (500, 0, false),
        ];
        core.replay(&saw.map(|(ago, button, down)| change(ago, button, down)));
        core.sample(0);
        assert_eq!(pressed(core), [(Kind::Click, 0), (Kind::Click, 1), (Kind::Long, 0), (Kind::LongRelease, 0)]);

        // Without them the level alone would have said nothing.
        let mut core = running_for(Duration::from_secs(3));
        core.pass(1_000);
        core.sample(0);
        assert_eq!(pressed(core), []);
    }

    #[test]
    fn a_button_let_go_while_the_disk_was_waited_for_was_not_held_until_the_wait_was_over() {
        let mut core = running_for(Duration::from_secs(3));
        core.pass(2_000);
        core.set(1);
        core.pass(20);
        core.replay(&[change(900, 0, false)]);
        core.sample(0);
        assert_eq!(pressed(core), [(Kind::Click, 0)]);
    }

    #[test]
    fn a_change_that_comes_after_its_time_was_sampled_takes_nothing_back() {
        let mut core = running_for(Duration::from_secs(1));
        core.sample(1);
        let sampled_ms = core.sampled_ms();
        core.replay(&[change(500, 0, true), change(400, 1, true)]);
        assert_eq!((core.sampled_ms(), core.held()), (sampled_ms, 0b11));
    }

    /// Counts how often it was asked without being waited for.
    struct Counted(Arc<Mutex<u32>>);

    impl Sampler for Counted {
        fn fill(&mut self, _: &mut Core, wait: Duration) -> io::Result<()> {
            *self.0.lock().unwrap() += u32::from(wait.is_zero());
            Ok(())
        }
    }

    #[test]
    fn what_was_pressed_before_a_frame_is_seen_before_it() {
        let asked = Arc::<Mutex<u32>>::default();
        let core = Arc::new(Mutex::new(running_for(Duration::from_secs(1))));
        let mut port = LocalPort::new(core, Counted(Arc::clone(&asked)));
        port.write_all(b"\0").unwrap();
        assert_eq!(*asked.lock().unwrap(), 1);
    }
}
