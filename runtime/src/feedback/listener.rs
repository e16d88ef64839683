//! Serves one source: frames in, presses into the ledger, acknowledgements out.
//!
//! One thread owns the port and runs [`HostLink`] on it. What happened comes as [`Notice`]s over a channel. The thread also
//! owns the port's misfortunes: one that is lost is dropped, and then looked for until it is back. Framing, sessions and
//! exactly-once delivery are `hone-wire`'s; what a press means, and how often one may press, the [`Keeper`]'s.
use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hone_wire::auth::Key;
use hone_wire::frame::{Counters, Deframer, Frame};
use hone_wire::host::{self, CommandError, HostConfig, HostLink, Ledger, LedgerError, Received, Refusal};
use hone_wire::message::{Buzzer, Config, Display, Input, Message, PadHello, Prompt, Reboot, Stats};

use super::pace::Pace;
use super::source::{Keeper, Port, Source, SourceError};

/// First pause before a lost port is looked for; doubles to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two looks.
pub const RETRY_MAX: Duration = Duration::from_secs(2);

/// A read waits at most this long, and so does a command for the thread to come round to it.
pub(super) const READ_TIMEOUT: Duration = Duration::from_millis(10);
/// How long a command that needs an answer waits for it; commits may take a while on a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a source must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Now, or it is an error.
    Now,
    /// Or it is waited for.
    WhenThere,
}

/// What happened on the line.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A pad is connected and, if it is paired, has shown that it holds the key.
    Up {
        /// The device file.
        port: String,
        /// Identity of the pad.
        uid: [u8; 8],
        /// Numbering in force.
        epoch: u32,
        /// Whether frames are tagged.
        authenticated: bool,
        /// All it said of itself.
        hello: PadHello,
    },
    /// The pad is no longer there.
    Down {
        /// The source.
        source: String,
        /// Why.
        why: Down,
    },
    /// These presses are durable. The ledger has had them already; this is for whoever acts on them.
    Committed {
        /// Identity of the pad.
        uid: [u8; 8],
        /// Numbering they belong to.
        epoch: u32,
        /// The presses, in order.
        events: Vec<Received>,
        /// When their frame arrived: a press began `age_ms` before this.
        received: Instant,
    },
    /// Something was refused; not repeated while the reason stays the same.
    Refused {
        /// The source.
        source: String,
        /// Why.
        why: Refusal,
    },
    /// The port is not there or cannot be opened; it is looked for. Not repeated while the reason stays the same.
    Searching {
        /// The latest attempt's error, in words.
        why: String,
        /// Whether there is nothing, rather than something that cannot be had.
        absent: bool,
    },
    /// The source has ended for good.
    Ended {
        /// The source.
        source: String,
    },
    /// Something about the source that people should know.
    Remark {
        /// The source.
        source: String,
        /// What.
        text: String,
    },
    /// The pad took an offered pairing key.
    Paired {
        /// Identity of the pad.
        uid: [u8; 8],
        /// The key.
        key: Key,
        /// Whether the keeper has it, or why not.
        kept: Result<(), String>,
    },
    /// Which buttons are down; for set-up and tests.
    Input(Input),
    /// The pad's health.
    Stats(Stats),
    /// The pad could not use a frame.
    Nak(hone_wire::message::Nak),
}

/// Why a pad is no longer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// It fell silent.
    Silent,
    /// It restarted, and will be back at once.
    Restarted,
    /// Its port is gone.
    PortLost {
        /// What the operating system said.
        detail: String,
    },
    /// Another pad greets on its port.
    Replaced,
}

enum Command {
    Prompt(Prompt),
    ClearPrompt,
    Leds(u16),
    Configure(Config),
    Display(Display),
    Buzz(Buzzer, Sender<Result<(), CommandError>>),
    Reboot(Reboot, Sender<Result<(), CommandError>>),
    Pair(Key, Sender<Result<(), CommandError>>),
}

/// A source served by a thread of its own until dropped.
#[derive(Debug)]
pub struct Listener {
    // Closing the channel is what ends the thread.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    highest_prompt: AtomicU32,
}

impl Listener {
    /// Opens the source and serves the pad behind it. `keeper` is called from the listener's thread.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be had now; with [`Opening::WhenThere`] only when no thread or no random numbers are
    /// to be had.
    pub fn start(
        mut source: Box<dyn Source>,
        opening: Opening,
        keeper: Box<dyn Keeper>,
        notices: Sender<Notice>,
    ) -> Result<Self, SourceError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| SourceError::Random { detail: error.to_string() })?;
        let port = match source.open() {
            Ok(port) => Some(port),
            Err(_) if opening == Opening::WhenThere => None,
            Err(error) => return Err(error),
        };
        let (commands, inbox) = mpsc::channel();
        let server = Server {
            spec: source.spec(),
            source,
            port,
            hall: Hall { nonce, greetings: Deframer::new(), met: None, standing: Standing::default() },
            link: HostLink::new(HostConfig { nonce, ..HostConfig::default() }),
            keeper: RefCell::new(keeper),
            notices,
            inbox,
            start: Instant::now(),
            backoff: Backoff::new(),
            pace: Pace::new(Instant::now()),
            complaint: None,
            ended: false,
        };
        let thread = thread::Builder::new()
            .name("hone-pad".into())
            .spawn(move || server.serve())
            .map_err(|error| SourceError::Thread { detail: error.to_string() })?;
        Ok(Self { commands: Some(commands), thread: Some(thread), highest_prompt: AtomicU32::new(0) })
    }

    /// Asks a question on the pad, now or as soon as it is connected; presses that begin from then on carry its id. The
    /// record of the prediction must be durable before this is called.
    ///
    /// # Errors
    /// [`CommandError::NotRising`] unless the id is greater than all before it; [`SourceError::Thread`].
    pub fn prompt(&self, prompt: Prompt) -> Result<(), SourceError> {
        let id = prompt.prompt_id;
        self.highest_prompt
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |highest| (id > highest).then_some(id))
            .map_err(|highest| SourceError::Refused(CommandError::NotRising { highest }))?;
        self.command(Command::Prompt(prompt))
    }

    /// Takes the question back.
    ///
    /// # Errors
    /// [`SourceError::Thread`].
    pub fn clear_prompt(&self) -> Result<(), SourceError> {
        self.command(Command::ClearPrompt)
    }

    /// Sets the lamps: bit i is lamp i.
    ///
    /// # Errors
    /// [`SourceError::Thread`].
    pub fn leds(&self, mask: u16) -> Result<(), SourceError> {
        self.command(Command::Leds(mask))
    }

    /// Sets the pad's timings.
    ///
    /// # Errors
    /// [`SourceError::Thread`].
    pub fn configure(&self, timing: Config) -> Result<(), SourceError> {
        self.command(Command::Configure(timing))
    }

    /// Shows text on the pad.
    ///
    /// # Errors
    /// [`SourceError::Thread`].
    pub fn display(&self, display: Display) -> Result<(), SourceError> {
        self.command(Command::Display(display))
    }

    /// Sounds a tone.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when the pad is not connected; [`SourceError::Thread`].
    pub fn buzz(&self, buzzer: Buzzer) -> Result<(), SourceError> {
        self.ask(|answer| Command::Buzz(buzzer, answer))
    }

    /// Restarts the pad.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when the pad is not connected or not paired; [`SourceError::Thread`].
    pub fn reboot(&self, reboot: Reboot) -> Result<(), SourceError> {
        self.ask(|answer| Command::Reboot(reboot, answer))
    }

    /// Offers a pairing key, which the pad takes while two of its buttons have been held for 5 s; see [`Notice::Paired`].
    /// The keeper has it durably before it leaves.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when the pad does not answer or the keeper cannot keep the key; [`SourceError::Thread`].
    pub fn pair(&self, key: Key) -> Result<(), SourceError> {
        self.ask(|answer| Command::Pair(key, answer))
    }

    fn command(&self, command: Command) -> Result<(), SourceError> {
        self.commands
            .as_ref()
            .and_then(|commands| commands.send(command).ok())
            .ok_or_else(|| SourceError::Thread { detail: "it has ended".into() })
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), CommandError>>) -> Command) -> Result<(), SourceError> {
        let (answer, answered) = mpsc::channel();
        self.command(command(answer))?;
        match answered.recv_timeout(ANSWER_TIMEOUT) {
            Ok(result) => result.map_err(SourceError::Refused),
            Err(error) => Err(SourceError::Thread { detail: format!("no answer: {error}") }),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the keeper has been reported by its own hook; there is no one left to tell.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Server {
    spec: String,
    source: Box<dyn Source>,
    port: Option<Port>,
    hall: Hall,
    link: HostLink,
    // Called from within the link and from its notices, by turns.
    keeper: RefCell<Box<dyn Keeper>>,
    notices: Sender<Notice>,
    inbox: Receiver<Command>,
    start: Instant,
    backoff: Backoff,
    pace: Pace,
    complaint: Option<String>,
    ended: bool,
}

impl Server {
    fn serve(mut self) {
        loop {
            // Without a port there is nothing to wait on but commands.
            let wait = if self.port.is_some() { Duration::ZERO } else { READ_TIMEOUT };
            match self.inbox.recv_timeout(wait) {
                Ok(command) => {
                    self.obey(command);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.port.is_none() && !self.ended {
                self.search();
            }
            if let Err(error) = self.exchange() {
                self.lose(&error);
            }
        }
    }

    /// One round: what is due goes out, what has come goes in.
    fn exchange(&mut self) -> io::Result<()> {
        let Self { spec, port, hall, link, keeper, notices, start, backoff, pace, .. } = self;
        let Some(port) = port else { return Ok(()) };
        let mut uid = link.pad().map_or([0; 8], |hello| hello.uid);
        let device = port.device.clone();
        let mut committed = 0;
        let mut tell = |notice: host::Notice| {
            if let host::Notice::Committed { events, .. } = &notice {
                committed += events.len();
            }
            if let host::Notice::Up { hello, .. } = &notice {
                uid = hello.uid;
                // Not when the port opened: one that opens and fails again is to be tried ever less often.
                backoff.reset();
                keeper.borrow_mut().connected(hello);
            }
            let told = match notice {
                host::Notice::Paired { uid, key } => {
                    let kept = keeper.borrow_mut().paired(&uid, &key);
                    Some(Notice::Paired { uid, key, kept })
                }
                other => told(other, spec, &device, uid),
            };
            if let Some(notice) = told {
                // Nobody need listen: the ledger is what counts.
                let _ = notices.send(notice);
            }
        };
        link.poll(millis(*start), &mut tell);
        while let Some(frame) = link.pop_tx() {
            match port.io.write_all(&frame) {
                // A pad that does not read: what was cut off here is sent again by the link.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                other => other?,
            }
        }
        if let Some(pause) = pace.pause(Instant::now()) {
            thread::sleep(pause.min(READ_TIMEOUT));
            return Ok(());
        }
        let mut bytes = [0; 256];
        let read = port.io.read(&mut bytes);
        while let Some(text) = port.io.remark() {
            let _ = notices.send(Notice::Remark { source: spec.clone(), text });
        }
        match read {
            // A port that has become a source of nothing would be polled at full speed for ever.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                pace.spend(n, 0);
                if let Some(hello) = hall.stranger(&bytes[..n]) {
                    // What else stood in these bytes was said to a link that did not know whom it heard: it comes again.
                    let local = self.source.is_local();
                    return self.meet(&hello, local);
                }
                link.rx(&bytes[..n], millis(*start), &mut Shared(keeper), &mut tell);
                pace.spend(0, committed);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Begins a link on the terms of the pad that greets.
    fn meet(&mut self, hello: &PadHello, local: bool) -> io::Result<()> {
        if self.link.is_up() {
            let _ = self.notices.send(Notice::Down { source: self.spec.clone(), why: Down::Replaced });
        }
        let terms = self.keeper.get_mut().terms(hello);
        let offered_key = self.keeper.get_mut().offered_key(&hello.uid);
        self.link = HostLink::new(HostConfig {
            pairing_key: terms.pairing_key,
            offered_key,
            allow_unpaired: terms.allow_unpaired || local,
            nonce: self.hall.fresh_nonce(),
            pad: terms.timing,
        });
        self.hall.standing.apply(&mut self.link, millis(self.start));
        Ok(())
    }

    fn lose(&mut self, error: &io::Error) {
        // First of all: while this end is open, the device cannot come back under its name.
        self.port = None;
        // Whoever comes next is met anew: its key may have been changed meanwhile.
        self.hall.met = None;
        self.backoff.failed(Instant::now());
        let Self { notices, spec, .. } = self;
        self.link.disconnect(&mut |_| {
            let why = Down::PortLost { detail: error.to_string() };
            let _ = notices.send(Notice::Down { source: spec.clone(), why });
        });
    }

    fn search(&mut self) {
        let now = Instant::now();
        if !self.backoff.is_due(now) {
            return;
        }
        match self.source.open() {
            Ok(port) => {
                self.port = Some(port);
                self.complaint = None;
            }
            Err(SourceError::Ended { .. }) => {
                self.ended = true;
                let _ = self.notices.send(Notice::Ended { source: self.spec.clone() });
            }
            Err(error) => {
                let why = error.to_string();
                if self.complaint.as_deref() != Some(&why) {
                    let absent = matches!(error, SourceError::Absent { .. });
                    let _ = self.notices.send(Notice::Searching { why: why.clone(), absent });
                    self.complaint = Some(why);
                }
            }
        }
        self.backoff.tried(now);
    }

    fn obey(&mut self, command: Command) {
        let now_ms = millis(self.start);
        let link = &mut self.link;
        let standing = &mut self.hall.standing;
        match command {
            Command::Prompt(prompt) => {
                standing.prompt = Some((prompt.clone(), now_ms));
                // `Listener::prompt` has seen to it that ids rise.
                let _ = link.prompt(prompt, now_ms);
            }
            Command::ClearPrompt => {
                standing.prompt = None;
                link.clear_prompt(now_ms);
            }
            Command::Leds(mask) => {
                standing.leds = mask;
                link.leds(mask, now_ms);
            }
            Command::Configure(timing) => {
                standing.timing = Some(timing);
                link.configure(timing, now_ms);
            }
            Command::Display(display) => {
                standing.display = Some(display.clone());
                link.display(display);
            }
            Command::Buzz(buzzer, answer) => drop(answer.send(link.buzz(buzzer))),
            Command::Reboot(reboot, answer) => drop(answer.send(link.reboot(reboot))),
            Command::Pair(key, answer) => drop(answer.send(link.pair(key, &mut Shared(&self.keeper)))),
        }
    }
}

/// Where pads are met: which one is on the line is known from its greeting, and its terms are needed before the link can
/// answer that.
struct Hall {
    nonce: [u8; 8],
    greetings: Deframer,
    met: Option<[u8; 8]>,
    standing: Standing,
}

impl Hall {
    /// The greeting in these bytes, if it is of another pad than the one before.
    fn stranger(&mut self, bytes: &[u8]) -> Option<PadHello> {
        let mut counters = Counters::default();
        let mut found = None;
        for &byte in bytes {
            let Some(raw) = self.greetings.push_counted(byte, &mut counters) else { continue };
            let Ok(frame) = Frame::parse(&raw, None) else { continue };
            if let Ok(Message::PadHello(hello)) = Message::parse(frame.kind, frame.body)
                && self.met != Some(hello.uid)
            {
                self.met = Some(hello.uid);
                found = Some(hello);
            }
        }
        found
    }

    /// Links of one listener share no nonce: a link counts on from its first, and the next begins far ahead of it.
    fn fresh_nonce(&mut self) -> [u8; 8] {
        let ahead = u64::from_le_bytes(self.nonce).wrapping_add(1 << 40);
        self.nonce = ahead.max(1).to_le_bytes();
        self.nonce
    }
}

/// What a new link is to be told as well.
#[derive(Default)]
struct Standing {
    prompt: Option<(Prompt, u64)>,
    leds: u16,
    timing: Option<Config>,
    display: Option<Display>,
}

impl Standing {
    fn apply(&self, link: &mut HostLink, now_ms: u64) {
        if let Some((prompt, since_ms)) = &self.prompt {
            let gone_ms = now_ms.saturating_sub(*since_ms);
            let left_ms = u64::from(prompt.ttl_ms).saturating_sub(gone_ms);
            if prompt.ttl_ms == 0 || left_ms > 0 {
                // The first prompt of a link cannot fail to rise.
                let ttl_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
                let _ = link.prompt(Prompt { ttl_ms, ..prompt.clone() }, now_ms);
            }
        }
        if self.leds != 0 {
            link.leds(self.leds, now_ms);
        }
        if let Some(timing) = self.timing {
            link.configure(timing, now_ms);
        }
        if let Some(display) = &self.display {
            link.display(display.clone());
        }
    }
}

/// The keeper as the link's ledger, borrowed for each call.
struct Shared<'a>(&'a RefCell<Box<dyn Keeper>>);

impl Ledger for Shared<'_> {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        self.0.borrow_mut().mark(uid, epoch)
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        self.0.borrow_mut().commit(uid, epoch, events)
    }

    fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError> {
        self.0.borrow_mut().new_epoch(uid)
    }

    fn keep_offered_key(&mut self, uid: &[u8; 8], key: &Key) -> Result<(), LedgerError> {
        self.0.borrow_mut().keep_offered_key(uid, key)
    }
}

/// When to look for a lost port.
#[derive(Debug)]
struct Backoff {
    pause: Duration,
    due: Option<Instant>,
}

impl Backoff {
    fn new() -> Backoff {
        Backoff { pause: RETRY_MIN, due: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// A port was lost: it is looked for after a pause.
    fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
    }

    /// A look was taken: the next comes later than this one did.
    fn tried(&mut self, now: Instant) {
        self.pause = (2 * self.pause).min(RETRY_MAX);
        self.due = Some(now + self.pause);
    }

    fn reset(&mut self) {
        self.pause = RETRY_MIN;
    }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The link's notice as this module's.
fn told(notice: host::Notice, source: &str, device: &str, uid: [u8; 8]) -> Option<Notice> {
    let down = |why| Notice::Down { source: source.to_owned(), why };
    Some(match notice {
        host::Notice::Up { hello, epoch, authenticated } => {
            Notice::Up { port: device.to_owned(), uid: hello.uid, epoch, authenticated, hello }
        }
        host::Notice::Down(host::DownReason::Silent) => down(Down::Silent),
        host::Notice::Down(host::DownReason::PadRestarted) => down(Down::Restarted),
        host::Notice::Committed { epoch, events } => {
            Notice::Committed { uid, epoch, events: events.to_vec(), received: Instant::now() }
        }
        host::Notice::Refused(why) => Notice::Refused { source: source.to_owned(), why },
        host::Notice::Input(input) => Notice::Input(input),
        host::Notice::Stats(stats) => Notice::Stats(stats),
        host::Notice::Nak(nak) => Notice::Nak(nak),
        // Told by `Server::lose`, which knows the reason, and by `Server::exchange`, which knows whether it is kept.
        host::Notice::Down(host::DownReason::Disconnected) | host::Notice::Paired { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_looked_for_after_a_tenth_of_a_second_then_ever_less_often_until_a_pad_answers() {
        let start = Instant::now();
        let mut backoff = Backoff::new();
        assert!(backoff.is_due(start), "at first at once");
        backoff.failed(start);
        assert!(!backoff.is_due(start + RETRY_MIN / 2) && backoff.is_due(start + RETRY_MIN));
        let pauses: Vec<u128> = (0..6)
            .map(|_| {
                backoff.tried(start);
                (backoff.due.unwrap() - start).as_millis()
            })
            .collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 2000, 2000]);
        backoff.reset();
        backoff.failed(start);
        assert!(backoff.is_due(start + RETRY_MIN));
    }

    #[test]
    fn a_prompt_told_to_a_second_pad_has_only_the_time_it_has_left() {
        let prompt = Prompt { prompt_id: 9, ttl_ms: 1_000, ..Prompt::default() };
        let asked = |now_ms| {
            let mut link = HostLink::new(HostConfig { nonce: [1; 8], ..HostConfig::default() });
            Standing { prompt: Some((prompt.clone(), 500)), ..Standing::default() }.apply(&mut link, now_ms);
            // Ids must rise, so the link tells whether it was asked.
            link.prompt(prompt.clone(), now_ms).is_err()
        };
        assert!(asked(1_499));
        assert!(!asked(1_500), "it has lapsed");
    }
}
