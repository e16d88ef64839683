//! Presses from a pad on a serial line (USB or UART).
//!
//! One thread owns the port and runs [`HostLink`] on it: bytes in, presses into the ledger, acknowledgements out. What
//! happened comes as [`Notice`]s over a channel. The thread also owns the port's misfortunes: a pad that is pulled out is
//! looked for until it is back, by what it *is*, not by the path it had. Framing, sessions and exactly-once delivery are
//! `hone-wire`'s; what a press means and how often one may press are decided behind this module.

use hone_wire::auth::Key;
use hone_wire::host::{self, CommandError, HostConfig, HostLink, Ledger, Received, Refusal};
use hone_wire::message::{Buzzer, Config, Display, Input, PadHello, Prompt, Reboot, Stats};
use serialport::{SerialPort, SerialPortInfo, SerialPortType, UsbPortInfo};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The usual speed of a pad's UART; without meaning on USB.
pub const BAUD: u32 = 115_200;
/// First pause before a lost port is looked for; doubles to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two looks.
pub const RETRY_MAX: Duration = Duration::from_secs(2);

/// A read waits at most this long, and so does a command for the thread to come round to it.
const READ_TIMEOUT: Duration = Duration::from_millis(10);
/// How long a command that needs an answer waits for it; commits may take a while on a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const BY_ID: &str = "/dev/serial/by-id";
const SYS_TTYS: &str = "/sys/class/tty";

/// Which port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    /// A device file or a link to one. Should it turn out to be a USB device with a serial number, that is what is looked
    /// for once it is lost.
    Path(PathBuf),
    /// A name in `/dev/serial/by-id`.
    ById(String),
    /// A USB device by its numbers and, if given, its serial number.
    Usb {
        /// Vendor.
        vid: u16,
        /// Product.
        pid: u16,
        /// Serial number.
        serial: Option<String>,
    },
}

impl FromStr for PortSpec {
    type Err = SerialError;

    /// `usb:VID:PID` or `usb:VID:PID:SERIAL` (hexadecimal), `by-id:NAME`, else a path.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let malformed = || SerialError::Spec { spec: text.into() };
        if let Some(name) = text.strip_prefix("by-id:") {
            let plain = !name.is_empty() && !name.contains('/');
            return plain.then(|| Self::ById(name.into())).ok_or_else(malformed);
        }
        if let Some(usb) = text.strip_prefix("usb:") {
            let mut parts = usb.splitn(3, ':');
            let mut number = || parts.next().and_then(|part| u16::from_str_radix(part, 16).ok()).ok_or_else(malformed);
            let (vid, pid) = (number()?, number()?);
            let serial = parts.next().map(str::to_owned);
            return Ok(Self::Usb { vid, pid, serial });
        }
        if text.is_empty() { Err(malformed()) } else { Ok(Self::Path(text.into())) }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::ById(name) => write!(f, "by-id:{name}"),
            Self::Usb { vid, pid, serial: None } => write!(f, "usb:{vid:04x}:{pid:04x}"),
            Self::Usb { vid, pid, serial: Some(serial) } => write!(f, "usb:{vid:04x}:{pid:04x}:{serial}"),
        }
    }
}

/// What to open and whom to believe.
#[derive(Clone, Debug)]
pub struct SerialConfig {
    /// The port.
    pub port: PortSpec,
    /// Bits per second.
    pub baud: u32,
    /// The pad's pairing key, if it has one.
    pub pairing_key: Option<Key>,
    /// Whether a pad without a pairing key is heard.
    pub allow_unpaired: bool,
    /// Whether a port that is not there yet is waited for, rather than an error.
    pub wait_for_port: bool,
    /// Timings to set on the pad; none leaves its own.
    pub timing: Option<Config>,
}

impl SerialConfig {
    /// [`BAUD`], no key, unpaired pads refused, the port must be there.
    #[must_use]
    pub fn new(port: PortSpec) -> Self {
        Self { port, baud: BAUD, pairing_key: None, allow_unpaired: false, wait_for_port: false, timing: None }
    }
}

/// Why a serial source could not be had or used.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// Not a way to name a port.
    #[error("`{spec}` names no port; write a path, `by-id:NAME`, or `usb:VID:PID[:SERIAL]` with hexadecimal numbers")]
    Spec {
        /// What was written.
        spec: String,
    },
    /// No such port.
    #[error("no serial port matches `{spec}`; ports here: {}", listed(present))]
    Absent {
        /// What was looked for.
        spec: String,
        /// What there is.
        present: Vec<String>,
    },
    /// Someone else has it.
    #[error("{port} is in use by {}; stop that first", holder.as_deref().unwrap_or("another process"))]
    Busy {
        /// The device file.
        port: String,
        /// Name and number of the process, where it may be seen.
        holder: Option<String>,
    },
    /// The operating system refused.
    #[error("cannot open {port}: {detail}; does this user belong to the group that owns it (often `dialout`)?")]
    Open {
        /// The device file.
        port: String,
        /// What it said.
        detail: String,
    },
    /// No random numbers, hence no protection against replay.
    #[error("the operating system gave no random numbers: {detail}")]
    Random {
        /// What it said.
        detail: String,
    },
    /// The thread could not be started, or has ended.
    #[error("the serial thread is not running: {detail}")]
    Thread {
        /// Why.
        detail: String,
    },
    /// The link did not accept a command.
    #[error("the pad's link refused: {0:?}")]
    Refused(CommandError),
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
        /// Why.
        why: Refusal,
    },
    /// The port is not there or cannot be opened; it is looked for. Not repeated while the reason stays the same.
    Searching {
        /// The latest attempt's error, in words.
        why: String,
    },
    /// The pad took an offered pairing key, which is to be kept.
    Paired {
        /// Identity of the pad.
        uid: [u8; 8],
        /// The key.
        key: Key,
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

/// A pad on a serial line, served by a thread of its own until dropped.
#[derive(Debug)]
pub struct SerialSource {
    // Closing the channel is what ends the thread.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    highest_prompt: AtomicU32,
}

impl SerialSource {
    /// Opens the port and serves the pad behind it. `ledger` is called from the source's thread.
    ///
    /// # Errors
    /// [`SerialError`] when the port cannot be had now; with [`SerialConfig::wait_for_port`] only when no thread or no
    /// random numbers are to be had.
    pub fn open(
        config: SerialConfig,
        ledger: Box<dyn Ledger + Send>,
        notices: Sender<Notice>,
    ) -> Result<Self, SerialError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| SerialError::Random { detail: error.to_string() })?;
        let link = HostLink::new(HostConfig {
            pairing_key: config.pairing_key,
            allow_unpaired: config.allow_unpaired,
            nonce,
            pad: config.timing,
        });
        let mut place = Place { spec: config.port, baud: config.baud, identity: None };
        let port = match place.open() {
            Ok(port) => Some(port),
            Err(_) if config.wait_for_port => None,
            Err(error) => return Err(error),
        };
        let (commands, inbox) = mpsc::channel();
        let server = Server {
            place,
            port,
            link,
            ledger,
            notices,
            inbox,
            start: Instant::now(),
            retry: RETRY_MIN,
            retry_at: Instant::now(),
            complaint: None,
        };
        let thread = thread::Builder::new()
            .name("hone-serial".into())
            .spawn(move || server.serve())
            .map_err(|error| SerialError::Thread { detail: error.to_string() })?;
        Ok(Self { commands: Some(commands), thread: Some(thread), highest_prompt: AtomicU32::new(0) })
    }

    /// Asks a question on the pad, now or as soon as it is connected; presses that begin from then on carry its id. The
    /// record of the prediction must be durable before this is called.
    ///
    /// # Errors
    /// [`CommandError::NotRising`] unless the id is greater than all before it; [`SerialError::Thread`].
    pub fn prompt(&self, prompt: Prompt) -> Result<(), SerialError> {
        let id = prompt.prompt_id;
        self.highest_prompt
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |highest| (id > highest).then_some(id))
            .map_err(|highest| SerialError::Refused(CommandError::NotRising { highest }))?;
        self.command(Command::Prompt(prompt))
    }

    /// Takes the question back.
    ///
    /// # Errors
    /// [`SerialError::Thread`].
    pub fn clear_prompt(&self) -> Result<(), SerialError> {
        self.command(Command::ClearPrompt)
    }

    /// Sets the lamps: bit i is lamp i.
    ///
    /// # Errors
    /// [`SerialError::Thread`].
    pub fn leds(&self, mask: u16) -> Result<(), SerialError> {
        self.command(Command::Leds(mask))
    }

    /// Sets the pad's timings.
    ///
    /// # Errors
    /// [`SerialError::Thread`].
    pub fn configure(&self, timing: Config) -> Result<(), SerialError> {
        self.command(Command::Configure(timing))
    }

    /// Shows text on the pad.
    ///
    /// # Errors
    /// [`SerialError::Thread`].
    pub fn display(&self, display: Display) -> Result<(), SerialError> {
        self.command(Command::Display(display))
    }

    /// Sounds a tone.
    ///
    /// # Errors
    /// [`SerialError::Refused`] when the pad is not connected; [`SerialError::Thread`].
    pub fn buzz(&self, buzzer: Buzzer) -> Result<(), SerialError> {
        self.ask(|answer| Command::Buzz(buzzer, answer))
    }

    /// Restarts the pad.
    ///
    /// # Errors
    /// [`SerialError::Refused`] when the pad is not connected or not paired; [`SerialError::Thread`].
    pub fn reboot(&self, reboot: Reboot) -> Result<(), SerialError> {
        self.ask(|answer| Command::Reboot(reboot, answer))
    }

    /// Offers a pairing key, which the pad takes while two of its buttons have been held for 5 s; see [`Notice::Paired`].
    ///
    /// # Errors
    /// [`SerialError::Refused`] when the pad is not connected; [`SerialError::Thread`].
    pub fn pair(&self, key: Key) -> Result<(), SerialError> {
        self.ask(|answer| Command::Pair(key, answer))
    }

    fn command(&self, command: Command) -> Result<(), SerialError> {
        self.commands
            .as_ref()
            .and_then(|commands| commands.send(command).ok())
            .ok_or_else(|| SerialError::Thread { detail: "it has ended".into() })
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), CommandError>>) -> Command) -> Result<(), SerialError> {
        let (answer, answered) = mpsc::channel();
        self.command(command(answer))?;
        match answered.recv_timeout(ANSWER_TIMEOUT) {
            Ok(result) => result.map_err(SerialError::Refused),
            Err(error) => Err(SerialError::Thread { detail: format!("no answer: {error}") }),
        }
    }
}

impl Drop for SerialSource {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the ledger has been reported by its own hook; there is no one left to tell.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Server {
    place: Place,
    port: Option<OpenPort>,
    link: HostLink,
    ledger: Box<dyn Ledger + Send>,
    notices: Sender<Notice>,
    inbox: Receiver<Command>,
    start: Instant,
    retry: Duration,
    retry_at: Instant,
    complaint: Option<String>,
}

struct OpenPort {
    device: String,
    io: Box<dyn SerialPort>,
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
            if self.port.is_none() {
                self.search();
            }
            let Some(port) = &mut self.port else { continue };
            let outcome =
                Self::exchange(port, &mut self.link, &mut *self.ledger, &self.notices, self.start, &mut self.retry);
            if let Err(error) = outcome {
                self.lose(&error);
            }
        }
    }

    /// One round: what is due goes out, what has come goes in.
    fn exchange(
        port: &mut OpenPort,
        link: &mut HostLink,
        ledger: &mut dyn Ledger,
        notices: &Sender<Notice>,
        start: Instant,
        retry: &mut Duration,
    ) -> io::Result<()> {
        let mut uid = link.pad().map_or([0; 8], |hello| hello.uid);
        let mut tell = |notice: host::Notice| {
            if let host::Notice::Up { hello, .. } = &notice {
                uid = hello.uid;
                // Not when the port opened: one that opens and fails again is to be tried ever less often.
                *retry = RETRY_MIN;
            }
            if let Some(notice) = told(notice, &port.device, uid) {
                // Nobody need listen: the ledger is what counts.
                let _ = notices.send(notice);
            }
        };
        link.poll(millis(start), &mut tell);
        while let Some(frame) = link.pop_tx() {
            match port.io.write_all(&frame) {
                // A pad that does not read: what was cut off here is sent again by the link.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                other => other?,
            }
        }
        let mut bytes = [0; 256];
        match port.io.read(&mut bytes) {
            // A port that has become a source of nothing would be polled at full speed for ever.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                link.rx(&bytes[..n], millis(start), ledger, &mut tell);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lose(&mut self, error: &io::Error) {
        // First of all: while this end is open, the device cannot come back under its name.
        self.port = None;
        self.retry_at = Instant::now() + self.retry;
        let notices = &self.notices;
        self.link.disconnect(&mut |_| {
            let _ = notices.send(Notice::Down { why: Down::PortLost { detail: error.to_string() } });
        });
    }

    fn search(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        match self.place.open() {
            Ok(port) => {
                self.port = Some(port);
                self.complaint = None;
            }
            Err(error) => {
                let why = error.to_string();
                if self.complaint.as_deref() != Some(&why) {
                    let _ = self.notices.send(Notice::Searching { why: why.clone() });
                    self.complaint = Some(why);
                }
            }
        }
        self.retry = (2 * self.retry).min(RETRY_MAX);
        self.retry_at = Instant::now() + self.retry;
    }

    fn obey(&mut self, command: Command) {
        let now_ms = millis(self.start);
        let link = &mut self.link;
        match command {
            // `SerialSource::prompt` has seen to it that ids rise.
            Command::Prompt(prompt) => drop(link.prompt(prompt, now_ms)),
            Command::ClearPrompt => link.clear_prompt(now_ms),
            Command::Leds(mask) => link.leds(mask, now_ms),
            Command::Configure(timing) => link.configure(timing, now_ms),
            Command::Display(display) => link.display(display),
            Command::Buzz(buzzer, answer) => drop(answer.send(link.buzz(buzzer))),
            Command::Reboot(reboot, answer) => drop(answer.send(link.reboot(reboot))),
            Command::Pair(key, answer) => drop(answer.send(link.pair(key))),
        }
    }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The link's notice as this module's.
fn told(notice: host::Notice, device: &str, uid: [u8; 8]) -> Option<Notice> {
    Some(match notice {
        host::Notice::Up { hello, epoch, authenticated } => {
            Notice::Up { port: device.to_owned(), uid: hello.uid, epoch, authenticated, hello }
        }
        host::Notice::Down(host::DownReason::Silent) => Notice::Down { why: Down::Silent },
        host::Notice::Down(host::DownReason::PadRestarted) => Notice::Down { why: Down::Restarted },
        // Told by `Server::lose`, which knows the reason.
        host::Notice::Down(host::DownReason::Disconnected) => return None,
        host::Notice::Committed { epoch, events } => {
            Notice::Committed { uid, epoch, events: events.to_vec(), received: Instant::now() }
        }
        host::Notice::Refused(why) => Notice::Refused { why },
        host::Notice::Paired { uid, key } => Notice::Paired { uid, key },
        host::Notice::Input(input) => Notice::Input(input),
        host::Notice::Stats(stats) => Notice::Stats(stats),
        host::Notice::Nak(nak) => Notice::Nak(nak),
    })
}

/// Where the port is found.
struct Place {
    spec: PortSpec,
    baud: u32,
    /// What was found to be behind a path; from then on looked for instead of the path.
    identity: Option<UsbPortInfo>,
}

impl Place {
    fn open(&mut self) -> Result<OpenPort, SerialError> {
        let ports = ports();
        let device = find(&self.spec, self.identity.as_ref(), &ports).ok_or_else(|| SerialError::Absent {
            spec: self.spec.to_string(),
            present: ports.iter().map(|port| port.port_name.clone()).collect(),
        })?;
        let name = device.to_string_lossy().into_owned();
        let io = serialport::new(&name, self.baud).timeout(READ_TIMEOUT).open().map_err(|error| {
            // An exclusive port that is taken reports no kind of its own.
            match holder(&device) {
                Some(holder) => SerialError::Busy { port: name.clone(), holder: Some(holder) },
                None => SerialError::Open { port: name.clone(), detail: error.to_string() },
            }
        })?;
        if self.identity.is_none() {
            self.identity = usb_of(&device, &ports).filter(|usb| usb.serial_number.is_some()).cloned();
        }
        Ok(OpenPort { device: name, io })
    }
}

/// The device file that `spec` means now, links resolved.
fn find(spec: &PortSpec, identity: Option<&UsbPortInfo>, ports: &[SerialPortInfo]) -> Option<PathBuf> {
    let usb = |matches: &dyn Fn(&UsbPortInfo) -> bool| {
        ports
            .iter()
            .find(|port| matches!(&port.port_type, SerialPortType::UsbPort(usb) if matches(usb)))
            .map(|port| PathBuf::from(&port.port_name))
    };
    if let Some(known) = identity {
        return usb(&|usb| same_device(usb, known));
    }
    match spec {
        PortSpec::Path(path) => path.canonicalize().ok(),
        PortSpec::ById(name) => Path::new(BY_ID).join(name).canonicalize().ok(),
        PortSpec::Usb { vid, pid, serial } => {
            usb(&|usb| usb.vid == *vid && usb.pid == *pid && (serial.is_none() || usb.serial_number == *serial))
        }
    }
}

fn same_device(a: &UsbPortInfo, b: &UsbPortInfo) -> bool {
    (a.vid, a.pid, &a.serial_number) == (b.vid, b.pid, &b.serial_number)
}

fn usb_of<'a>(device: &Path, ports: &'a [SerialPortInfo]) -> Option<&'a UsbPortInfo> {
    ports.iter().find_map(|port| match &port.port_type {
        SerialPortType::UsbPort(usb) if Path::new(&port.port_name) == device => Some(usb),
        _ => None,
    })
}

/// A serial port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// The device file.
    pub device: String,
    /// What it is, if it is a USB device.
    pub usb: Option<UsbIdentity>,
}

/// What a USB device says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbIdentity {
    /// Vendor.
    pub vid: u16,
    /// Product.
    pub pid: u16,
    /// Serial number.
    pub serial: Option<String>,
    /// Name of the product.
    pub product: Option<String>,
}

/// The serial ports of this machine by device file; none where the system does not say.
#[must_use]
pub fn list_ports() -> Vec<PortInfo> {
    let usb = |kind: SerialPortType| match kind {
        SerialPortType::UsbPort(u) => {
            Some(UsbIdentity { vid: u.vid, pid: u.pid, serial: u.serial_number, product: u.product })
        }
        _ => None,
    };
    let mut list: Vec<PortInfo> =
        ports().into_iter().map(|p| PortInfo { device: p.port_name, usb: usb(p.port_type) }).collect();
    list.sort_by(|a, b| a.device.cmp(&b.device));
    list
}

/// The machine's ports; none where the system does not say.
fn ports() -> Vec<SerialPortInfo> {
    // The crate takes the directory for granted, and containers often lack it.
    if cfg!(target_os = "linux") && !Path::new(SYS_TTYS).is_dir() {
        return Vec::new();
    }
    serialport::available_ports().unwrap_or_default()
}

/// Who else has this device open, as far as this user may know.
fn holder(device: &Path) -> Option<String> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == device)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

fn listed(ports: &[String]) -> String {
    if ports.is_empty() { "none".into() } else { ports.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usb_port(name: &str, serial: Option<&str>) -> SerialPortInfo {
        SerialPortInfo {
            port_name: name.into(),
            port_type: SerialPortType::UsbPort(UsbPortInfo {
                vid: 0x2e8a,
                pid: 0x000a,
                serial_number: serial.map(Into::into),
                manufacturer: None,
                product: None,
            }),
        }
    }

    #[test]
    fn a_port_is_named_by_path_by_id_or_usb_numbers() {
        for text in ["/dev/ttyACM0", "by-id:usb-hone_pad_1", "usb:2e8a:000a", "usb:2e8a:000a:E660:38B7"] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), text);
        }
        for text in ["", "usb:", "usb:2e8a", "usb:zzzz:0001", "by-id:", "by-id:../../etc/passwd"] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(error.to_string().contains("usb:VID:PID"), "{error}");
        }
    }

    #[test]
    fn a_lost_usb_pad_is_found_by_serial_number_under_whatever_name_it_came_back() {
        let before = [usb_port("/dev/ttyACM0", Some("A")), usb_port("/dev/ttyACM1", Some("B"))];
        let identity = usb_of(Path::new("/dev/ttyACM0"), &before).unwrap();
        let spec = PortSpec::Path("/dev/ttyACM0".into());
        // Another pad now has the old name.
        let after = [usb_port("/dev/ttyACM0", Some("B")), usb_port("/dev/ttyACM7", Some("A"))];
        assert_eq!(find(&spec, Some(identity), &after), Some("/dev/ttyACM7".into()));
        assert_eq!(find(&spec, Some(identity), &after[..1]), None, "the old name is not good enough");
    }

    #[test]
    fn usb_numbers_without_a_serial_number_find_the_first_and_with_one_the_right_one() {
        let ports = [usb_port("/dev/ttyACM0", Some("A")), usb_port("/dev/ttyACM1", Some("B"))];
        let find = |text: &str| find(&text.parse().unwrap(), None, &ports);
        assert_eq!(find("usb:2e8a:000a"), Some("/dev/ttyACM0".into()));
        assert_eq!(find("usb:2e8a:000a:B"), Some("/dev/ttyACM1".into()));
        assert_eq!(find("usb:2e8a:000a:C"), None);
        assert_eq!(find("usb:2e8a:000b"), None);
    }

    #[test]
    fn an_absent_port_is_an_error_that_names_it() {
        struct Never;
        impl Ledger for Never {
            fn mark(&mut self, _: &[u8; 8], _: u32) -> Result<u32, host::LedgerError> {
                Err(host::LedgerError::Failed)
            }
            fn commit(&mut self, _: &[u8; 8], _: u32, _: &[Received]) -> Result<(), host::LedgerError> {
                Err(host::LedgerError::Failed)
            }
            fn new_epoch(&mut self, _: &[u8; 8]) -> Result<u32, host::LedgerError> {
                Err(host::LedgerError::Failed)
            }
        }
        let (notices, told) = mpsc::channel();
        let mut config = SerialConfig::new("/dev/no-such-pad".parse().unwrap());
        let error = SerialSource::open(config.clone(), Box::new(Never), notices.clone()).unwrap_err();
        assert!(error.to_string().contains("/dev/no-such-pad"), "{error}");
        config.wait_for_port = true;
        let source = SerialSource::open(config, Box::new(Never), notices).unwrap();
        assert!(matches!(told.recv_timeout(Duration::from_secs(5)), Ok(Notice::Searching { .. })));
        assert!(matches!(source.buzz(Buzzer::default()), Err(SerialError::Refused(CommandError::Down))));
        assert!(source.prompt(Prompt { prompt_id: 4, ..Prompt::default() }).is_ok());
        assert!(matches!(
            source.prompt(Prompt { prompt_id: 4, ..Prompt::default() }),
            Err(SerialError::Refused(CommandError::NotRising { highest: 4 }))
        ));
    }
}
