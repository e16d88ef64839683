//! A pad without hardware: the real firmware core behind a pseudo-terminal.
//!
//! Everything but the pins is what a board runs: debouncing, gestures, queue, link, restarts. Fingers are replaced by
//! [`Emulator::press`] or a script, the cable by a pseudo-terminal whose name goes to whoever opens serial ports. Used by
//! `pad emulate`, by demonstrations, and by the tests of everything that listens to a pad.
//!
//! In virtual time the pad's clock runs ahead through every gesture and wait instead of sleeping; bytes still travel
//! through the operating system. A single skip of more than 3.5 s looks to the pad like a silent host, as it should.
//!
//! ```
//! use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig};
//!
//! let emulator = Emulator::start(EmulatorConfig { virtual_time: true, ..EmulatorConfig::default() })?;
//! println!("a pad on {}", emulator.port_name().expect("it is plugged in"));
//! emulator.script("click 0\nlong 1")?;
//! assert_eq!(emulator.pending(), 3); // click, long, and the end of the long press
//! # Ok::<(), hone_runtime::feedback::emulate::EmulatorError>(())
//! ```

use getrandom::Error as RandomError;
use hone_pad::link::Identity;
use hone_pad::{Lamp, MAX_BUTTONS, Pad, PadConfig, RamStore, Request, Store};
use hone_wire::auth::Key;
use hone_wire::message::{Config, Prompt, RebootTarget};
use serialport::{SerialPort, TTYPort};
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Events the emulated pad holds.
pub const QUEUE: usize = 256;

/// One sample of the buttons.
const TICK: Duration = Duration::from_millis(1);
/// In virtual time, bytes are exchanged this often on the pad's clock.
const EXCHANGE_EVERY_MS: u32 = 20;
/// Time a finger leaves between two presses: the debouncer's, and a little.
const BETWEEN_MS: u32 = 30;
const CLICK_MS: u32 = 60;
/// Released samples that arm the buttons after a start.
const ARM_MS: u32 = 20;

/// What a finger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gesture {
    /// A short press.
    Click,
    /// A press somewhat longer than the pad's limit for long ones.
    Long,
    /// Two clicks well within the pad's window for doubles; two single clicks where that is off.
    Double,
    /// A press of so many milliseconds.
    Hold(u32),
}

/// One line of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `click B`, `long B`, `double B`, `hold B MS`.
    Press {
        /// The button.
        button: u8,
        /// What to do with it.
        gesture: Gesture,
    },
    /// `chord A B [MS]`: both together, as for a click unless a time is given.
    Chord {
        /// The buttons, a bit each.
        mask: u16,
        /// How long, ms.
        ms: u32,
    },
    /// `wait MS`.
    Wait(u32),
    /// `prompt`: until a question is shown, at most 10 s.
    AwaitPrompt,
    /// `drained`: until every event is acknowledged, at most 10 s.
    AwaitDrained,
    /// `unplug`: the cable is pulled; the pad goes on from its own supply.
    Unplug,
    /// `replug`: it is back, under another name.
    Replug,
    /// `crash`: the power is cut.
    Crash,
    /// `reboot`: the power comes back, or is cut and comes back.
    Reboot,
}

/// How to emulate.
#[derive(Clone, Debug)]
pub struct EmulatorConfig {
    /// Identity of the pad.
    pub uid: [u8; 8],
    /// Number of buttons, at most [`MAX_BUTTONS`].
    pub buttons: u8,
    /// Its pairing key, if it is to have one.
    pub pairing_key: Option<Key>,
    /// Timings until a host sets others.
    pub timing: Config,
    /// Whether gestures and waits advance the pad's clock without sleeping.
    pub virtual_time: bool,
    /// Whether the queue survives the loss of power, as in flash; otherwise it is lost with its epoch, as in memory.
    pub durable: bool,
    /// The version and digest it says its firmware has.
    pub firmware: ([u8; 3], [u8; 8]),
    /// A link to keep pointing at the terminal, whatever its name is after a replug: what `/dev/serial/by-id` is for a
    /// real device. Its directory must exist; a link of that name is replaced, a file is not.
    pub link: Option<PathBuf>,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        Self {
            uid: *b"emulated",
            buttons: 2,
            pairing_key: None,
            timing: Config::default(),
            virtual_time: false,
            durable: true,
            firmware: (firmware_version(), *b"emulated"),
            link: None,
        }
    }
}

/// Why an emulator could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// No pseudo-terminal.
    #[error("cannot make a pseudo-terminal: {detail}")]
    Terminal {
        /// What the operating system said.
        detail: String,
    },
    /// The link could not be set.
    #[error("cannot make {path} point at the terminal: {source}")]
    Link {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(RandomError),
    /// A line of a script that is none.
    #[error(
        "line {line} `{text}`: {problem}; known are click B, long B, double B, hold B MS, chord A B [MS], wait MS, prompt, drained, unplug, replug, crash, reboot"
    )]
    Script {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A button the pad does not have.
    #[error("the pad has buttons 0 to {}, not {button}", buttons - 1)]
    NoSuchButton {
        /// The button asked for.
        button: u8,
        /// How many there are.
        buttons: u8,
    },
    /// More buttons than a pad can have, or none.
    #[error("a pad has 1 to {MAX_BUTTONS} buttons, not {buttons}")]
    Buttons {
        /// How many were asked for.
        buttons: u8,
    },
    /// Nothing was shown or acknowledged in time.
    #[error("waited {waited_ms} ms for {what}; is a host connected?")]
    TimedOut {
        /// What for.
        what: &'static str,
        /// How long.
        waited_ms: u64,
    },
    /// The emulator's thread has ended.
    #[error("the emulator's thread has ended: {detail}")]
    Thread {
        /// Why.
        detail: String,
    },
}

/// What can be seen of the pad from outside.
#[derive(Clone, Debug, Default)]
struct Seen {
    port_name: Option<String>,
    powered: bool,
    up: bool,
    pending: u32,
    prompt: Option<Prompt>,
    lamps: [Lamp; MAX_BUTTONS],
    pairing_key: Option<Key>,
}

type Reply = Sender<Result<(), EmulatorError>>;

/// A pad without hardware, run by a thread of its own until dropped.
#[derive(Debug)]
pub struct Emulator {
    // Closing the channel is what ends the thread.
    steps: Option<Sender<(Step, Reply)>>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
    buttons: u8,
}

impl Emulator {
    /// Starts a pad that is powered, plugged in, and has its buttons armed.
    ///
    /// # Errors
    /// [`EmulatorError`] for a terminal, a link or random numbers that are not to be had, and for a senseless number of
    /// buttons.
    pub fn start(config: EmulatorConfig) -> Result<Self, EmulatorError> {
        let buttons = config.buttons;
        if buttons == 0 || usize::from(buttons) > MAX_BUTTONS {
            return Err(EmulatorError::Buttons { buttons });
        }
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut board = Board {
            pairing_key: config.pairing_key,
            config,
            pad: None,
            kept: RamStore::new(),
            boots: 0,
            cable: None,
            clock: Clock { start: Instant::now(), skipped_ms: 0, pad_ms: 0 },
            booted_ms: 0,
            seen: Arc::clone(&seen),
        };
        board.plug_in()?;
        board.power_on()?;
        board.run(0, ARM_MS);
        board.publish();
        let (steps, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("hone-emulator".into())
            .spawn(move || board.serve(&inbox))
            .map_err(|error| EmulatorError::Thread { detail: error.to_string() })?;
        Ok(Self { steps: Some(steps), thread: Some(thread), seen, buttons })
    }

    /// What to open: the link if there is one to be kept, else the terminal's name. `None` while unplugged.
    #[must_use]
    pub fn port_name(&self) -> Option<String> {
        self.seen().port_name.clone()
    }

    /// Makes a gesture and returns when the fingers are up again and the pad has numbered what it saw.
    ///
    /// # Errors
    /// [`EmulatorError::NoSuchButton`], [`EmulatorError::Thread`].
    pub fn press(&self, button: u8, gesture: Gesture) -> Result<(), EmulatorError> {
        self.step(Step::Press { button, gesture })
    }

    /// Does one step and returns when it is done.
    ///
    /// # Errors
    /// As for the step.
    pub fn step(&self, step: Step) -> Result<(), EmulatorError> {
        self.check(&step)?;
        match step {
            Step::AwaitPrompt => self.await_prompt(0, AWAIT).map(drop),
            Step::AwaitDrained => self.await_drained(AWAIT),
            step => self.ask(step),
        }
    }

    /// Runs a script: one [`Step`] a line; empty lines and what follows `#` are ignored. All of it is read before any of
    /// it is done.
    ///
    /// # Errors
    /// [`EmulatorError::Script`] with the line, and whatever a step's error is.
    pub fn script(&self, script: &str) -> Result<(), EmulatorError> {
        let steps = parse_script(script)?;
        steps.iter().try_for_each(|step| self.check(step))?;
        steps.into_iter().try_for_each(|step| self.step(step))
    }

    /// Cuts the pad's power.
    ///
    /// # Errors
    /// [`EmulatorError::Thread`].
    pub fn crash(&self) -> Result<(), EmulatorError> {
        self.step(Step::Crash)
    }

    /// Brings the power back, cutting it first if it is on.
    ///
    /// # Errors
    /// [`EmulatorError::Random`], [`EmulatorError::Thread`].
    pub fn reboot(&self) -> Result<(), EmulatorError> {
        self.step(Step::Reboot)
    }

    /// Events the pad holds that no host has acknowledged.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.seen().pending
    }

    /// Whether the pad has a host.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.seen().up
    }

    /// Whether the pad has power.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.seen().powered
    }

    /// The question the pad shows now.
    #[must_use]
    pub fn current_prompt(&self) -> Option<Prompt> {
        self.seen().prompt.clone()
    }

    /// How far the latest press of each button has come.
    #[must_use]
    pub fn lamps(&self) -> [Lamp; MAX_BUTTONS] {
        self.seen().lamps
    }

    /// The pairing key the pad holds.
    #[must_use]
    pub fn pairing_key(&self) -> Option<Key> {
        self.seen().pairing_key
    }

    /// Waits until a question with an id of at least `id` is shown.
    ///
    /// # Errors
    /// [`EmulatorError::TimedOut`].
    pub fn await_prompt(&self, id: u32, timeout: Duration) -> Result<Prompt, EmulatorError> {
        self.wait(timeout, "a prompt", |seen| seen.prompt.clone().filter(|prompt| prompt.prompt_id >= id))
    }

    /// Waits until every event is acknowledged.
    ///
    /// # Errors
    /// [`EmulatorError::TimedOut`].
    pub fn await_drained(&self, timeout: Duration) -> Result<(), EmulatorError> {
        self.wait(timeout, "acknowledgements", |seen| (seen.pending == 0).then_some(()))
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        what: &'static str,
        ready: impl Fn(&Seen) -> Option<T>,
    ) -> Result<T, EmulatorError> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready(&self.seen()) {
                return Ok(value);
            }
            if start.elapsed() >= timeout {
                return Err(EmulatorError::TimedOut { what, waited_ms: timeout.as_millis() as u64 });
            }
            thread::sleep(TICK);
        }
    }

    fn check(&self, step: &Step) -> Result<(), EmulatorError> {
        let highest = match step {
            Step::Press { button, .. } => *button,
            Step::Chord { mask, .. } => mask.checked_ilog2().unwrap_or(0) as u8,
            _ => 0,
        };
        if highest >= self.buttons {
            return Err(EmulatorError::NoSuchButton { button: highest, buttons: self.buttons });
        }
        Ok(())
    }

    fn ask(&self, step: Step) -> Result<(), EmulatorError> {
        let ended = |detail: &str| EmulatorError::Thread { detail: detail.into() };
        let (reply, replied) = mpsc::channel();
        let steps = self.steps.as_ref().ok_or_else(|| ended("stopped"))?;
        steps.send((step, reply)).map_err(|_| ended("it takes no more steps"))?;
        replied.recv().map_err(|_| ended("it ended during the step"))?
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

/// Reads a script; see [`Emulator::script`].
///
/// # Errors
/// [`EmulatorError::Script`].
pub fn parse_script(script: &str) -> Result<Vec<Step>, EmulatorError> {
    let mut steps = Vec::new();
    for (index, text) in script.lines().enumerate() {
        let words: Vec<&str> = text.split('#').next().unwrap_or_default().split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let step = parse_step(&words).map_err(|problem| EmulatorError::Script {
            line: index + 1,
            text: text.trim().into(),
            problem,
        })?;
        steps.push(step);
    }
    Ok(steps)
}

fn parse_step(words: &[&str]) -> Result<Step, String> {
    let press = |button: &str, gesture| Ok(Step::Press { button: number(button)?, gesture });
    match *words {
        ["click", button] => press(button, Gesture::Click),
        ["long", button] => press(button, Gesture::Long),
        ["double", button] => press(button, Gesture::Double),
        ["hold", button, ms] => press(button, Gesture::Hold(number(ms)?)),
        ["chord", a, b] => chord(a, b, CLICK_MS),
        ["chord", a, b, ms] => chord(a, b, number(ms)?),
        ["wait", ms] => Ok(Step::Wait(number(ms)?)),
        ["prompt"] => Ok(Step::AwaitPrompt),
        ["drained"] => Ok(Step::AwaitDrained),
        ["unplug"] => Ok(Step::Unplug),
        ["replug"] => Ok(Step::Replug),
        ["crash"] => Ok(Step::Crash),
        ["reboot"] => Ok(Step::Reboot),
        _ => Err("no such step, or not its arguments".into()),
    }
}

fn chord(a: &str, b: &str, ms: u32) -> Result<Step, String> {
    let (a, b): (u8, u8) = (number(a)?, number(b)?);
    if a == b || usize::from(a.max(b)) >= MAX_BUTTONS {
        return Err(format!("a chord is two different buttons below {MAX_BUTTONS}"));
    }
    Ok(Step::Chord { mask: 1 << a | 1 << b, ms })
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is not a number that fits here"))
}

const AWAIT: Duration = Duration::from_secs(10);

/// Everything around the core that a board would be.
struct Board {
    config: EmulatorConfig,
    pairing_key: Option<Key>,
    pad: Option<Pad<RamStore<QUEUE>>>,
    /// The queue while the power is off.
    kept: RamStore<QUEUE>,
    boots: u16,
    cable: Option<Cable>,
    clock: Clock,
    booted_ms: u32,
    seen: Arc<Mutex<Seen>>,
}

/// A pseudo-terminal. Both ends are held: with nobody at the far one, bytes wait or are dropped, as on a serial line.
struct Cable {
    near: TTYPort,
    _far: TTYPort,
    name: String,
    unsent: VecDeque<u8>,
}

/// The pad's clock: real time, and what was skipped.
struct Clock {
    start: Instant,
    skipped_ms: u32,
    /// The latest millisecond that was sampled.
    pad_ms: u32,
}

impl Clock {
    fn now_ms(&self) -> u32 {
        (self.start.elapsed().as_millis() as u32).wrapping_add(self.skipped_ms)
    }
}

impl Board {
    fn serve(mut self, inbox: &Receiver<(Step, Reply)>) {
        loop {
            match inbox.try_recv() {
                Ok((step, reply)) => {
                    let done = self.act(&step);
                    // What was done is to be seen before whoever asked goes on.
                    self.publish();
                    let _ = reply.send(done);
                }
                Err(TryRecvError::Empty) => {
                    self.catch_up(0);
                    self.exchange();
                    if self.cable.is_none() {
                        thread::sleep(TICK);
                    }
                }
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    fn act(&mut self, step: &Step) -> Result<(), EmulatorError> {
        match step {
            Step::Press { button, gesture } => self.gesture(1 << button, *gesture),
            Step::Chord { mask, ms } => self.gesture(*mask, Gesture::Hold(*ms)),
            Step::Wait(ms) => self.run(0, *ms),
            Step::Unplug => self.unplug(),
            Step::Replug => return self.plug_in(),
            Step::Crash => self.power_off(),
            Step::Reboot => {
                self.power_off();
                self.power_on()?;
                self.run(0, ARM_MS);
            }
            // Waited for by the caller's thread, so that this one goes on running the pad.
            Step::AwaitPrompt | Step::AwaitDrained => {}
        }
        Ok(())
    }

    fn gesture(&mut self, mask: u16, gesture: Gesture) {
        let timing = self.pad.as_ref().map_or(self.config.timing, |pad| *pad.timing());
        let between_ms = BETWEEN_MS + 2 * u32::from(timing.debounce_ms);
        let hold_ms = match gesture {
            Gesture::Click | Gesture::Double => CLICK_MS,
            Gesture::Long => u32::from(timing.long_ms) + 2 * CLICK_MS,
            Gesture::Hold(ms) => ms,
        };
        self.run(mask, hold_ms);
        self.run(0, between_ms);
        if gesture == Gesture::Double {
            self.run(mask, hold_ms);
            self.run(0, between_ms);
        } else if timing.double_ms > 0 {
            // Only now is it certain that this was not the first half of a double.
            self.run(0, u32::from(timing.double_ms));
        }
    }

    /// Lets `ms` pass on the pad's clock with the buttons of `mask` down.
    fn run(&mut self, mask: u16, ms: u32) {
        self.catch_up(0);
        let end_ms = self.clock.pad_ms.wrapping_add(ms);
        while self.clock.pad_ms != end_ms {
            if self.config.virtual_time {
                let left_ms = end_ms.wrapping_sub(self.clock.pad_ms);
                let ahead_ms = left_ms.min(EXCHANGE_EVERY_MS);
                let target_ms = self.clock.pad_ms.wrapping_add(ahead_ms);
                // Real time may have passed meanwhile; the clock never goes back.
                let lead_ms = target_ms.wrapping_sub(self.clock.now_ms());
                if (lead_ms as i32) > 0 {
                    self.clock.skipped_ms = self.clock.skipped_ms.wrapping_add(lead_ms);
                }
                self.sample_upto(target_ms, mask);
            } else {
                let now_ms = self.clock.now_ms();
                let over = (now_ms.wrapping_sub(end_ms) as i32) > 0;
                self.sample_upto(if over { end_ms } else { now_ms }, mask);
            }
            self.exchange();
            if self.cable.is_none() && !self.config.virtual_time {
                thread::sleep(TICK);
            }
        }
    }

    /// Samples every millisecond up to now.
    fn catch_up(&mut self, mask: u16) {
        self.sample_upto(self.clock.now_ms(), mask);
    }

    fn sample_upto(&mut self, upto_ms: u32, mask: u16) {
        while (upto_ms.wrapping_sub(self.clock.pad_ms) as i32) > 0 {
            self.clock.pad_ms = self.clock.pad_ms.wrapping_add(1);
            let now_ms = self.clock.pad_ms.wrapping_sub(self.booted_ms);
            if let Some(pad) = &mut self.pad {
                pad.tick(now_ms, mask);
            }
        }
    }

    /// Moves bytes both ways, waiting up to a millisecond for some to come.
    fn exchange(&mut self) {
        let now_ms = self.clock.pad_ms.wrapping_sub(self.booted_ms);
        if let Some(pad) = &mut self.pad {
            pad.poll(now_ms);
        }
        if let Some(cable) = &mut self.cable {
            while let Some(frame) = self.pad.as_mut().and_then(Pad::pop_tx) {
                cable.unsent.extend(frame);
            }
            cable.send();
            let mut bytes = [0; 256];
            // An error here is the far end's affair: nothing has come.
            let received = cable.near.read(&mut bytes).unwrap_or(0);
            if let Some(pad) = &mut self.pad {
                pad.rx(&bytes[..received], now_ms);
            }
        } else if let Some(pad) = &mut self.pad {
            // A transmitter does not notice that nothing is connected.
            while pad.pop_tx().is_some() {}
        }
        while let Some(request) = self.pad.as_mut().and_then(Pad::pop_request) {
            match request {
                Request::KeepPairingKey(key) => self.pairing_key = Some(key),
                Request::Reboot(RebootTarget::App) => {
                    self.power_off();
                    // Without random numbers there is no safe session: the pad stays off, as it would with a dead
                    // generator.
                    let _ = self.power_on();
                }
                // There is no loader to go to, no display and no buzzer.
                Request::Reboot(RebootTarget::Bootloader) => self.power_off(),
                Request::Display(_) | Request::Buzzer(_) => {}
            }
        }
        // In the middle of a gesture too: a lamp is to be seen when it is lit.
        self.publish();
    }

    fn power_on(&mut self) -> Result<(), EmulatorError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(EmulatorError::Random)?;
        self.boots = self.boots.wrapping_add(1);
        self.booted_ms = self.clock.pad_ms;
        let config = PadConfig {
            identity: Identity {
                uid: self.config.uid,
                boot: self.boots,
                buttons: self.config.buttons,
                leds: self.config.buttons,
                firmware: self.config.firmware.0,
                firmware_hash: self.config.firmware.1,
            },
            pairing_key: self.pairing_key,
            nonce,
            timing: self.config.timing,
            reset_cause: 0,
        };
        let store = std::mem::take(&mut self.kept);
        self.pad = Some(Pad::new(config, store));
        Ok(())
    }

    fn power_off(&mut self) {
        if let Some(pad) = self.pad.take() {
            self.kept = if self.config.durable { pad.into_store() } else { RamStore::new() };
        }
        if let Some(cable) = &mut self.cable {
            cable.unsent.clear();
        }
    }

    fn plug_in(&mut self) -> Result<(), EmulatorError> {
        if self.cable.is_some() {
            return Ok(());
        }
        let terminal = |error: serialport::Error| EmulatorError::Terminal { detail: error.to_string() };
        let (mut near, far) = TTYPort::pair().map_err(terminal)?;
        near.set_timeout(TICK).map_err(terminal)?;
        let name = far.name().ok_or_else(|| EmulatorError::Terminal { detail: "it has no name".into() })?;
        if let Some(link) = &self.config.link {
            point(link, &name).map_err(|source| EmulatorError::Link { path: link.clone(), source })?;
        }
        self.cable = Some(Cable { near, _far: far, name, unsent: VecDeque::new() });
        Ok(())
    }

    fn unplug(&mut self) {
        if self.cable.take().is_some()
            && let Some(link) = &self.config.link
        {
            // As udev does. A link that is gone already is as good.
            let _ = fs::remove_file(link);
        }
    }

    fn publish(&self) {
        let pad = self.pad.as_ref();
        let plugged = self.cable.as_ref();
        let seen = Seen {
            port_name: plugged.map(|cable| match &self.config.link {
                Some(link) => link.to_string_lossy().into_owned(),
                None => cable.name.clone(),
            }),
            powered: pad.is_some(),
            up: pad.is_some_and(Pad::is_up),
            pending: pad.map_or(self.kept.next() - self.kept.first(), Pad::pending),
            prompt: pad.map(Pad::prompt).filter(|prompt| prompt.prompt_id != 0).cloned(),
            lamps: pad.map(Pad::lamps).unwrap_or_default(),
            pairing_key: self.pairing_key,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.unplug();
    }
}

impl Cable {
    /// Sends what the terminal takes. What it does not take within a tick is lost, as on a line nobody reads.
    fn send(&mut self) {
        let bytes = self.unsent.make_contiguous();
        if !bytes.is_empty() {
            let _ = self.near.write_all(bytes);
            self.unsent.clear();
        }
    }
}

/// Makes `link` point at `target`, in one step for whoever follows it.
fn point(link: &std::path::Path, target: &str) -> io::Result<()> {
    if link.symlink_metadata().is_ok_and(|found| !found.is_symlink()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is not a link"));
    }
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    symlink(target, &fresh)?;
    fs::rename(&fresh, link)
}

/// The emulated firmware is this program, so its version is, too.
fn firmware_version() -> [u8; 3] {
    let part = |text: &str| text.parse().unwrap_or(0);
    [
        part(env!("CARGO_PKG_VERSION_MAJOR")),
        part(env!("CARGO_PKG_VERSION_MINOR")),
        part(env!("CARGO_PKG_VERSION_PATCH")),
    ]
}

#[cfg(test)]
#[path = "emulate_tests.rs"]
mod tests;
