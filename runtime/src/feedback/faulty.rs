//! One suite for every source: whatever a pipe does to the bytes, each press is recorded once and in order, a port is
//! dropped before it is opened again, and dropping the listener ends it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hone_wire::auth::Key;
use hone_wire::host::{Ledger, LedgerError, Received};
use hone_wire::message::{Config, Kind, PadHello};

use super::emulate::{Emulator, EmulatorConfig, Gesture};
use super::listener::{Listener, Notice, Opening};
use super::local::{Core, LocalPort, Sampler};
use super::serial::SerialPad;
use super::source::{self, Duplex, Keeper, Port, Source, SourceError, Terms};

const PATIENCE: Duration = Duration::from_secs(60);
const PRESSES: usize = 40;

/// A ledger in memory, shared with the test. It does not look for repeats itself.
#[derive(Clone, Default)]
pub(super) struct Book {
    pub(super) pages: Arc<Mutex<Pages>>,
    pub(super) full: Arc<AtomicBool>,
    pub(super) refused: Arc<AtomicU32>,
    pub(super) key: Option<Key>,
}

#[derive(Default)]
pub(super) struct Pages {
    pub(super) marks: HashMap<([u8; 8], u32), u32>,
    pub(super) log: Vec<Received>,
    pub(super) epochs: u32,
}

impl Ledger for Book {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        Ok(*self.pages.lock().unwrap().marks.get(&(*uid, epoch)).unwrap_or(&1))
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        if self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(LedgerError::Full);
        }
        let mut pages = self.pages.lock().unwrap();
        pages.log.extend_from_slice(events);
        pages.marks.insert((*uid, epoch), events.last().unwrap().event.seq + 1);
        Ok(())
    }

    fn new_epoch(&mut self, _: &[u8; 8]) -> Result<u32, LedgerError> {
        let mut pages = self.pages.lock().unwrap();
        pages.epochs += 1;
        Ok(pages.epochs)
    }
}

impl Keeper for Book {
    fn terms(&mut self, _: &PadHello) -> Terms {
        Terms { pairing_key: self.key, allow_unpaired: self.key.is_none(), timing: None }
    }
}

impl Book {
    /// Kind and button of each press, in order.
    pub(super) fn presses(&self) -> Vec<(Kind, u8)> {
        self.pages.lock().unwrap().log.iter().map(|r| (r.event.kind, r.event.button())).collect()
    }
}

/// When a port may be lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    /// At any read, with what it would have brought.
    Anywhere,
    /// Only when nothing has come: what comes is not kept by anybody.
    WhenQuiet,
}

/// A source behind a bad cable.
struct Faulty {
    inner: Box<dyn Source>,
    breaks: Breaks,
    chance: Chance,
    opened: u32,
    /// Ports that are open now, at most one.
    open: Arc<AtomicUsize>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    damaged: AtomicU32,
    lost: AtomicU32,
    open_twice: AtomicBool,
}

impl Source for Faulty {
    fn spec(&self) -> String {
        self.inner.spec()
    }

    fn open(&mut self) -> Result<Port, SourceError> {
        self.opened += 1;
        if self.open.load(Ordering::SeqCst) != 0 {
            self.tally.open_twice.store(true, Ordering::SeqCst);
        }
        if self.opened % 3 == 1 {
            return Err(SourceError::Open { port: "faulty".into(), detail: "not yet".into() });
        }
        let port = self.inner.open()?;
        self.open.fetch_add(1, Ordering::SeqCst);
        let cable = Cable {
            inner: port.io,
            breaks: self.breaks,
            chance: Chance(self.chance.next()),
            open: Arc::clone(&self.open),
            tally: Arc::clone(&self.tally),
        };
        Ok(Port { device: port.device, io: Box::new(cable) })
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
}

struct Cable {
    inner: Box<dyn Duplex>,
    breaks: Breaks,
    chance: Chance,
    open: Arc<AtomicUsize>,
    tally: Arc<Tally>,
}

impl Cable {
    /// One byte in 500 is flipped, lost, doubled, or a zero comes before it.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for &byte in bytes {
            match self.chance.below(2_000) {
                0 => out.push(byte ^ 1 << self.chance.below(8)),
                1 => {}
                2 => out.extend([byte, byte]),
                3 => out.extend([0, byte]),
                _ => {
                    out.push(byte);
                    continue;
                }
            }
            self.tally.damaged.fetch_add(1, Ordering::SeqCst);
        }
        out
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Read for Cable {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // Short reads, and room for what the cable adds.
        let mut own = [0; 96];
        let some = 1 + self.chance.below(own.len() as u32) as usize;
        let read = self.inner.read(&mut own[..some]);
        let quiet = read.is_err();
        if (self.breaks == Breaks::Anywhere || quiet) && self.chance.below(120) == 0 {
            self.tally.lost.fetch_add(1, Ordering::SeqCst);
            return match self.chance.below(3) {
                0 => Ok(0),
                1 => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Err(io::Error::other("Input/output error")),
            };
        }
        let damaged = self.damage(&own[..read?]);
        bytes[..damaged.len()].copy_from_slice(&damaged);
        if damaged.is_empty() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(damaged.len()) }
    }
}

impl Write for Cable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let damaged = self.damage(bytes);
        self.inner.write_all(&damaged)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Duplex for Cable {
    fn remark(&mut self) -> Option<String> {
        self.inner.remark()
    }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// Serves `source` behind a bad cable while `press` makes [`PRESSES`] clicks, of the buttons 0 and 1 by turns. What `press`
/// returns is held to the end: a pipe that nobody holds open forgets what is in it.
fn survives<T>(source: Box<dyn Source>, breaks: Breaks, key: Option<Key>, press: impl FnOnce() -> T) {
    let book = Book { key, ..Book::default() };
    let tally = Arc::<Tally>::default();
    let open = Arc::<AtomicUsize>::default();
    let faulty =
        Faulty { inner: source, breaks, chance: Chance(7), opened: 0, open: open.clone(), tally: tally.clone() };
    let (notices, told) = mpsc::channel();
    let listener = Listener::start(Box::new(faulty), Opening::WhenThere, Box::new(book.clone()), notices).unwrap();
    let _held = press();
    let end = Instant::now() + PATIENCE;
    // A cable that did nothing would prove nothing: it goes on until it has done enough.
    let did = || (tally.damaged.load(Ordering::SeqCst), tally.lost.load(Ordering::SeqCst));
    let mut searched = false;
    while (book.presses().len() < PRESSES || did().0 <= 5 || did().1 == 0 || !searched) && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
        searched |= told.try_iter().any(|notice| matches!(notice, Notice::Searching { .. }));
    }
    // Something that was recorded twice would come soon.
    thread::sleep(Duration::from_millis(50));
    let expected: Vec<(Kind, u8)> = (0..PRESSES).map(|i| (Kind::Click, (i % 2) as u8)).collect();
    assert_eq!(book.presses(), expected);
    drop(listener);
    assert_eq!(open.load(Ordering::SeqCst), 0, "the port outlives its listener");
    assert!(!tally.open_twice.load(Ordering::SeqCst), "a port was opened again before it was dropped");
    let (damaged, lost) = did();
    assert!(damaged > 5 && lost > 0 && searched, "{damaged} bytes damaged, {lost} ports lost, searched: {searched}");
}

#[test]
fn a_serial_pad_survives_a_bad_cable_keyed_or_not() {
    for key in [None, Some(*b"emulator pairing")] {
        let config = EmulatorConfig { pairing_key: key, virtual_time: true, ..EmulatorConfig::default() };
        let emulator = Emulator::start(config).unwrap();
        let source = Box::new(SerialPad::at(emulator.port_name().unwrap()));
        survives(source, Breaks::Anywhere, key, || {
            for i in 0..PRESSES {
                emulator.press((i % 2) as u8, Gesture::Click).unwrap();
                thread::sleep(Duration::from_millis(40));
            }
        });
    }
}

/// Buttons pressed by the clock: 30 ms down, 30 ms up, after 100 ms of rest.
struct Fingers;

impl Fingers {
    fn mask(ms: u32) -> u16 {
        let Some(since) = ms.checked_sub(100) else { return 0 };
        let press = since / 60;
        if press < PRESSES as u32 && since % 60 < 30 { 1 << (press % 2) } else { 0 }
    }
}

impl Sampler for Fingers {
    fn fill(&mut self, core: &mut Core, wait: Duration) -> io::Result<()> {
        thread::sleep(wait.min(Duration::from_millis(1)));
        while core.sampled_ms() < core.real_ms() {
            core.set(Fingers::mask(core.sampled_ms() + 1));
            core.pass(1);
        }
        Ok(())
    }
}

/// What `gpio` is but for the kernel: pins, and the pad's core on them.
struct Pins(Arc<Mutex<Core>>);

impl Source for Pins {
    fn spec(&self) -> String {
        "gpio:test/A,B".into()
    }

    fn open(&mut self) -> Result<Port, SourceError> {
        Ok(Port { device: "test".into(), io: Box::new(LocalPort::new(Arc::clone(&self.0), Fingers)) })
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[test]
fn buttons_on_pins_survive_a_bad_cable() {
    let core = Core::new(*b"gpiotest", 2, Config::default()).unwrap();
    survives(Box::new(Pins(Arc::new(Mutex::new(core)))), Breaks::Anywhere, Some([1; 16]), || {});
}

#[test]
fn a_device_that_writes_lines_survives_a_bad_cable_and_its_own_noise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let source = source::parse(&format!("lines:{}", path.display())).unwrap();
    survives(source, Breaks::WhenQuiet, None, || {
        let mut pipe = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for i in 0..PRESSES {
            let (button, at_ms) = (i % 2, 1_000 + 100 * i);
            // Noise between the lines costs itself alone; two levels at once are two levels all the same.
            let noise = ["", "BTN 1 DOWN 12*00\n", "\u{1}\u{2}BTN\n", "BTN 7 DOWN\n", "boot ok\r\n"][i % 5];
            let lines = format!("{noise}BTN {button} DOWN {at_ms}\r\nBTN {button} UP {}\n", at_ms + 60);
            pipe.write_all(lines.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(25));
        }
        pipe
    });
}

#[test]
fn a_recording_of_lines_is_heard_to_its_end_and_says_that_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines");
    // A long press that takes no time here, and one that nobody let go.
    File::create(&path).unwrap().write_all(b"BTN 0 CLICK\nBTN 1 DOWN 5\nBTN 1 UP 905\nBTN 0 DOWN 2000\n").unwrap();
    let book = Book::default();
    let (notices, told): (_, Receiver<Notice>) = mpsc::channel();
    let source = source::parse(&format!("lines:{}", path.display())).unwrap();
    let _listener = Listener::start(source, Opening::Now, Box::new(book.clone()), notices).unwrap();
    let end = Instant::now() + PATIENCE;
    while !matches!(told.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap(), Notice::Ended { .. }) {}
    let expected = [(Kind::Click, 0), (Kind::Long, 1), (Kind::LongRelease, 1), (Kind::Click, 0)];
    assert_eq!(book.presses(), expected);
}
