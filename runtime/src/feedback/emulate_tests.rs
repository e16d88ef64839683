//! The serial source against the emulated pad over a real pseudo-terminal.

use super::*;
use crate::feedback::faulty::Book;
use crate::feedback::listener::{Down, Listener, Notice, Opening};
use crate::feedback::serial::SerialPad;
use crate::feedback::source::{Keeper, SourceError, Terms};
use hone_wire::host::{CommandError, Ledger, LedgerError, Received, Refusal};
use hone_wire::message::{Kind, Labels, PadHello};
use std::sync::atomic::Ordering;

const KEY: Key = *b"emulator pairing";
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    emulator: Emulator,
    source: Listener,
    book: Book,
    told: Receiver<Notice>,
    // The link's directory lives as long as the bench.
    _directory: tempfile::TempDir,
}

fn bench(config: EmulatorConfig, key: Option<Key>) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let config = EmulatorConfig { link: Some(directory.path().join("usb-hone_pad")), virtual_time: true, ..config };
    let emulator = Emulator::start(config).unwrap();
    let book = Book { key, ..Book::default() };
    let (source, told) = listen(&emulator, &book);
    Bench { emulator, source, book, told, _directory: directory }
}

fn listen(emulator: &Emulator, book: &Book) -> (Listener, Receiver<Notice>) {
    let pad = Box::new(SerialPad::at(emulator.port_name().unwrap()));
    let (notices, told) = mpsc::channel();
    (Listener::start(pad, Opening::Now, Box::new(book.clone()), notices).unwrap(), told)
}

impl Bench {
    /// The first notice that `wanted` accepts.
    fn told<T>(&self, what: &str, wanted: impl Fn(Notice) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        while let Ok(notice) = self.told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Some(found) = wanted(notice) {
                return found;
            }
        }
        panic!("no {what} within {PATIENCE:?}");
    }

    fn up(&self) -> [u8; 8] {
        self.told("connection", |notice| match notice {
            Notice::Up { uid, .. } => Some(uid),
            _ => None,
        })
    }

    fn drained(&self) {
        self.emulator.await_drained(PATIENCE).unwrap();
    }
}

fn clicks(n: usize) -> Vec<(Kind, u8)> {
    (0..n).map(|i| (Kind::Click, (i % 2) as u8)).collect()
}

fn click(emulator: &Emulator, from: usize, to: usize) {
    for i in from..to {
        emulator.press((i % 2) as u8, Gesture::Click).unwrap();
    }
}

#[test]
fn every_press_is_committed_exactly_once_and_in_order() {
    for key in [None, Some(KEY)] {
        let bench = bench(EmulatorConfig { pairing_key: key, ..EmulatorConfig::default() }, key);
        assert_eq!(bench.up(), *b"emulated");
        click(&bench.emulator, 0, 50);
        bench.drained();
        assert_eq!(bench.book.presses(), clicks(50));
        let mut told = 0;
        while told < 50 {
            told += bench.told("commit", |notice| match notice {
                Notice::Committed { events, uid, .. } => {
                    assert_eq!(uid, *b"emulated");
                    Some(events.len())
                }
                _ => None,
            });
        }
        assert_eq!(told, 50);
    }
}

#[test]
fn a_script_speaks_every_gesture() {
    let timing = Config { double_ms: 250, ..Config::default() };
    let bench = bench(EmulatorConfig { timing, ..EmulatorConfig::default() }, None);
    bench.up();
    let script = "click 0\nlong 1 # confirmed\n\ndouble 0\nchord 0 1\nwait 200\nhold 1 50\ndrained";
    bench.emulator.script(script).unwrap();
    let expected = [
        (Kind::Click, 0),
        (Kind::Long, 1),
        (Kind::LongRelease, 1),
        (Kind::Double, 0),
        (Kind::Chord, 0),
        (Kind::Click, 1),
    ];
    assert_eq!(bench.book.presses(), expected);
}

#[test]
fn a_bad_script_is_refused_whole_with_its_line() {
    let emulator = Emulator::start(EmulatorConfig::default()).unwrap();
    for (script, part) in [
        ("click 0\npress 1", "line 2 `press 1`"),
        ("click x", "`x` is not a number"),
        ("chord 0 0", "two different buttons"),
        ("click 0\nclick 2", "buttons 0 to 1, not 2"),
    ] {
        let error = emulator.script(script).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(emulator.pending(), 0, "nothing was done");
}

#[test]
fn a_pad_pulled_out_and_put_back_under_another_name_loses_nothing() {
    let bench = bench(EmulatorConfig::default(), None);
    bench.up();
    click(&bench.emulator, 0, 10);
    bench.emulator.script("unplug").unwrap();
    assert_eq!(bench.emulator.port_name(), None);
    click(&bench.emulator, 10, 15);
    bench.told("loss of the port", |notice| match notice {
        Notice::Down { why: Down::PortLost { .. }, .. } => Some(()),
        _ => None,
    });
    assert!(bench.emulator.pending() >= 5);
    bench.emulator.script("replug").unwrap();
    bench.up();
    click(&bench.emulator, 15, 20);
    bench.drained();
    assert_eq!(bench.book.presses(), clicks(20));
}

#[test]
fn a_pad_that_loses_power_keeps_its_presses_and_delivers_them_without_an_age() {
    let bench = bench(EmulatorConfig { pairing_key: Some(KEY), ..EmulatorConfig::default() }, Some(KEY));
    bench.up();
    click(&bench.emulator, 0, 5);
    bench.drained();
    bench.book.full.store(true, Ordering::SeqCst);
    click(&bench.emulator, 5, 10);
    bench.emulator.crash().unwrap();
    assert!(!bench.emulator.is_powered());
    assert_eq!(bench.emulator.pending(), 5);
    bench.book.full.store(false, Ordering::SeqCst);
    bench.emulator.reboot().unwrap();
    click(&bench.emulator, 10, 15);
    bench.drained();
    assert_eq!(bench.book.presses(), clicks(15));
    let pages = bench.book.pages.lock().unwrap();
    let ages: Vec<bool> = pages.log.iter().map(|received| received.age_ms.is_some()).collect();
    assert_eq!(ages, [[true; 5], [false; 5], [true; 5]].concat());
}

#[test]
fn a_pad_without_flash_starts_a_new_numbering_after_a_power_cut() {
    let bench = bench(EmulatorConfig { durable: false, ..EmulatorConfig::default() }, None);
    bench.up();
    click(&bench.emulator, 0, 3);
    bench.drained();
    bench.emulator.reboot().unwrap();
    click(&bench.emulator, 3, 6);
    bench.drained();
    assert_eq!(bench.book.presses(), clicks(6));
    let pages = bench.book.pages.lock().unwrap();
    assert_eq!(pages.log.iter().map(|received| received.event.seq).collect::<Vec<_>>(), [1, 2, 3, 1, 2, 3]);
}

#[test]
fn a_full_ledger_stops_acknowledgements_and_nothing_is_lost_once_it_has_room() {
    let bench = bench(EmulatorConfig::default(), None);
    bench.up();
    bench.book.full.store(true, Ordering::SeqCst);
    click(&bench.emulator, 0, 30);
    bench.told("refusal", |notice| match notice {
        Notice::Refused { why: Refusal::Ledger(LedgerError::Full), .. } => Some(()),
        _ => None,
    });
    assert_eq!(bench.emulator.pending(), 30);
    assert!(bench.book.presses().is_empty());
    assert!(bench.book.refused.load(Ordering::SeqCst) > 0);
    bench.book.full.store(false, Ordering::SeqCst);
    bench.drained();
    assert_eq!(bench.book.presses(), clicks(30));
}

#[test]
fn a_host_that_restarts_goes_on_where_it_stopped() {
    let Bench { emulator, source, book, told, _directory } = bench(EmulatorConfig::default(), None);
    click(&emulator, 0, 10);
    drop((source, told));
    click(&emulator, 10, 20);
    let (_source, _told) = listen(&emulator, &book);
    emulator.await_drained(PATIENCE).unwrap();
    assert_eq!(book.presses(), clicks(20));
}

#[test]
fn a_press_answers_the_prompt_it_was_made_under() {
    let bench = bench(EmulatorConfig::default(), None);
    // Asked before the pad is there: it is told when it is.
    let ask = |prompt_id| Prompt { prompt_id, ttl_ms: 0, labels: Labels::pack(["cat", "dog"]).unwrap() };
    bench.source.prompt(ask(41)).unwrap();
    let shown = bench.emulator.await_prompt(41, PATIENCE).unwrap();
    assert_eq!(shown.labels.iter().collect::<Vec<_>>(), ["cat", "dog"]);
    bench.emulator.script("wait 200\nclick 0").unwrap();
    bench.source.prompt(ask(42)).unwrap();
    bench.emulator.await_prompt(42, PATIENCE).unwrap();
    bench.emulator.script("wait 200\nclick 1\ndrained").unwrap();
    bench.source.clear_prompt().unwrap();
    let end = Instant::now() + PATIENCE;
    while bench.emulator.current_prompt().is_some() {
        assert!(Instant::now() < end, "the prompt was not taken back");
        thread::sleep(TICK);
    }
    bench.emulator.script("wait 200\nclick 0\ndrained").unwrap();
    let pages = bench.book.pages.lock().unwrap();
    let answered: Vec<_> = pages.log.iter().map(|r| (r.event.prompt, r.event.is_ambiguous())).collect();
    assert_eq!(answered, [(41, false), (42, false), (0, false)]);
}

#[test]
fn a_pad_with_another_key_is_refused() {
    let bench = bench(EmulatorConfig { pairing_key: Some([1; 16]), ..EmulatorConfig::default() }, Some(KEY));
    bench.told("refusal", |notice| match notice {
        Notice::Refused { why: Refusal::WrongKey, .. } => Some(()),
        Notice::Up { .. } => panic!("connected with the wrong key"),
        _ => None,
    });
    click(&bench.emulator, 0, 2);
    assert_eq!(bench.emulator.pending(), 2);
    assert!(bench.book.presses().is_empty());
}

#[test]
fn a_port_that_is_taken_is_refused_while_its_owner_keeps_it() {
    let bench = bench(EmulatorConfig::default(), None);
    let pad = Box::new(SerialPad::at(bench.emulator.port_name().unwrap()));
    let (notices, _told) = mpsc::channel();
    let second = Listener::start(pad, Opening::Now, Box::new(bench.book.clone()), notices);
    assert!(matches!(second, Err(SourceError::Open { .. } | SourceError::Busy { .. })), "{second:?}");
}

#[test]
fn a_port_that_is_not_there_is_an_error_that_names_it_or_is_waited_for_aloud() {
    let (notices, told) = mpsc::channel();
    let absent = || Box::new(SerialPad::at("/dev/no-such-pad"));
    let error = Listener::start(absent(), Opening::Now, Box::new(Book::default()), notices.clone()).unwrap_err();
    assert!(error.to_string().contains("/dev/no-such-pad"), "{error}");
    let source = Listener::start(absent(), Opening::WhenThere, Box::new(Book::default()), notices).unwrap();
    assert!(matches!(told.recv_timeout(PATIENCE), Ok(Notice::Searching { .. })));
    assert!(matches!(source.buzz(Default::default()), Err(SourceError::Refused(CommandError::Down))));
    assert!(source.prompt(Prompt { prompt_id: 4, ..Prompt::default() }).is_ok());
    assert!(matches!(
        source.prompt(Prompt { prompt_id: 4, ..Prompt::default() }),
        Err(SourceError::Refused(CommandError::NotRising { highest: 4 }))
    ));
}

#[test]
fn several_pads_at_once_keep_their_presses_apart_and_a_key_goes_with_its_pad() {
    let start = |uid: &[u8; 8], pairing_key| {
        let config = EmulatorConfig { uid: *uid, pairing_key, virtual_time: true, ..EmulatorConfig::default() };
        Emulator::start(config).unwrap()
    };
    let pads = [start(b"pad-nr-1", None), start(b"pad-nr-2", Some(KEY)), start(b"pad-nr-3", Some([3; 16]))];
    /// Knows two pads, one by its key.
    #[derive(Clone)]
    struct Two(Book);
    impl Ledger for Two {
        fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
            self.0.mark(uid, epoch)
        }
        fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
            self.0.commit(uid, epoch, events)
        }
        fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError> {
            self.0.new_epoch(uid)
        }
    }
    impl Keeper for Two {
        fn terms(&mut self, hello: &PadHello) -> Terms {
            let pairing_key = (hello.uid == *b"pad-nr-2").then_some(KEY);
            Terms { pairing_key, allow_unpaired: hello.uid == *b"pad-nr-1", timing: None }
        }
    }
    let book = Book::default();
    let (notices, told) = mpsc::channel();
    let listeners: Vec<Listener> = pads
        .iter()
        .map(|pad| {
            let source = Box::new(SerialPad::at(pad.port_name().unwrap()));
            Listener::start(source, Opening::Now, Box::new(Two(book.clone())), notices.clone()).unwrap()
        })
        .collect();
    for (pad, n) in pads.iter().zip([3, 5, 2]) {
        click(pad, 0, n);
    }
    pads[0].await_drained(PATIENCE).unwrap();
    pads[1].await_drained(PATIENCE).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())).expect("the third is refused") {
            Notice::Refused { why: Refusal::NoKey, .. } => break,
            Notice::Up { uid, .. } => assert_ne!(uid, *b"pad-nr-3", "its key is not known here"),
            _ => {}
        }
    }
    drop(listeners);
    assert_eq!(pads[2].pending(), 2);
    let pages = book.pages.lock().unwrap();
    let marks = |uid: &[u8; 8]| pages.marks.iter().find(|((u, _), _)| u == uid).map(|(_, mark)| *mark);
    assert_eq!((marks(b"pad-nr-1"), marks(b"pad-nr-2"), marks(b"pad-nr-3")), (Some(4), Some(6), None));
}

#[test]
fn in_real_time_a_click_takes_as_long_as_it_does() {
    let emulator = Emulator::start(EmulatorConfig::default()).unwrap();
    let start = Instant::now();
    emulator.press(0, Gesture::Hold(200)).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(emulator.pending(), 1);
    assert_eq!(emulator.lamps()[0], Lamp::Queued);
}
